//! A disk as a process: a virtio block device, served over vfio-user.

use std::process::ExitCode;

use clap::Parser;
use outrigger_devices::blk::{Blk, HELP};
use outrigger_devices::process::{self, SealedService};

/// A virtio block device, served to a virtual machine over vfio-user
#[derive(Parser)]
#[command(name = "outrigger-blk", version, after_help = HELP)]
struct Arguments {
    /// The disk: path=FILE[,readonly=on][,serial=ID][,queues=N]
    #[arg(long, visible_alias = "options", value_name = "KEY=VALUE,...")]
    disk: String,
    #[command(flatten)]
    service: SealedService,
}

fn main() -> ExitCode {
    match process::parse("outrigger-blk") {
        Ok(Arguments { disk, service }) => process::run("outrigger-blk", &service, || Blk::open(&disk)),
        Err(status) => status,
    }
}
