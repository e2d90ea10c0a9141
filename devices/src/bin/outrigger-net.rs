//! A network card as a process: a virtio network device on a tap, served over vfio-user.

use std::process::ExitCode;

use clap::Parser;
use outrigger_devices::net::{HELP, Net};
use outrigger_devices::process::{self, SealedService};

/// A virtio network device on a tap, served to a virtual machine over vfio-user
#[derive(Parser)]
#[command(name = "outrigger-net", version, after_help = HELP)]
struct Arguments {
    /// The network card: tap=NAME[,mac=MAC][,queues=N][,mtu=N]
    #[arg(long, visible_alias = "options", value_name = "KEY=VALUE,...")]
    net: String,
    #[command(flatten)]
    service: SealedService,
}

fn main() -> ExitCode {
    match process::parse("outrigger-net") {
        Ok(Arguments { net, service }) => process::run("outrigger-net", &service, || Net::open(&net)),
        Err(status) => status,
    }
}
