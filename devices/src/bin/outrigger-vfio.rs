//! A physical PCI device as a process: a function of the host, served over vfio-user.

use std::process::ExitCode;

use clap::Parser;
use outrigger_devices::process::{self, Service};
use outrigger_devices::vfio::{HELP, Vfio};

/// A physical PCI device of the host, served to a virtual machine over vfio-user
#[derive(Parser)]
#[command(name = "outrigger-vfio", version, after_help = HELP)]
struct Arguments {
    /// The device: [host=]ADDRESS
    #[arg(long, visible_alias = "options", value_name = "ADDRESS")]
    vfio: String,
    #[command(flatten)]
    service: Service,
}

fn main() -> ExitCode {
    match process::parse("outrigger-vfio") {
        Ok(Arguments { vfio, service }) => process::run_server("outrigger-vfio", &service, || Vfio::find(&vfio)),
        Err(status) => status,
    }
}
