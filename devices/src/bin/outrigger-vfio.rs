//! A physical PCI device as a process: a function of the host, served over vfio-user.

use std::process::ExitCode;

use clap::Parser;
use outrigger_devices::process::{self, Service};
use outrigger_devices::vfio::{Command, HELP, Vfio};

/// A physical PCI device of the host, served to a virtual machine over vfio-user
#[derive(Parser)]
#[command(name = NAME, version, after_help = HELP, disable_help_subcommand = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The device: [host=]ADDRESS
    #[arg(long, visible_alias = "options", value_name = "ADDRESS", required = true)]
    vfio: Option<String>,
    #[command(flatten)]
    service: Service,
}

const NAME: &str = "outrigger-vfio";

fn main() -> ExitCode {
    match process::parse(NAME) {
        Ok(Arguments { command: Some(command), .. }) => command.run(NAME),
        Ok(Arguments { vfio, service, .. }) => {
            process::run_server(NAME, &service, || Vfio::find(&vfio.unwrap_or_default(), service.has_one_client()))
        }
        Err(status) => status,
    }
}
