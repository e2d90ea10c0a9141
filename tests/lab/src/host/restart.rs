//! How long a guest's reads pause when the process of its disk is killed, and when it is replaced.

use std::io;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::memory;
use super::resources::make_disk;
use super::scaling::guest::{Guest, Machine};
use super::subject::{DISK, RAM};
use crate::measurement::Measurement;

const CONTROL: &str = "/tmp/control.sock";
/// Between one disturbance and the next: several times what each is to last.
const INTERVAL: Duration = Duration::from_millis(50);

/// Actions on the disk's process, each a subject of the report.
const RUNS: [Run; 2] = [Run("killed", kill_disk), Run("replaced", replace_disk)];

/// A name, and what is done, given the VMM's process id.
struct Run(&'static str, fn(u32) -> io::Result<()>);

/// Whether a subject of the report is one of these.
pub fn is_restart(subject: &str) -> bool {
    RUNS.iter().any(|run| run.0 == subject)
}

/// Prints what was measured.
pub fn measure() -> io::Result<()> {
    make_disk(DISK, RAM)?;
    for Run(subject, disturb) in RUNS {
        let devices = vec![format!("--disk path={DISK},restart=1000/60s --control {CONTROL}")];
        let mut guest = Guest::boot(&Machine { cpus: 1, devices, cmdline: String::new() })?;
        for figure in ["restart-qd1", "restart-qd32"] {
            let value = guest.load_disturbed(figure, INTERVAL, disturb)?;
            println!("lab:   {subject} {figure} {value:.3}");
            println!("{}", Measurement { subject: subject.into(), figure: figure.into(), value }.to_line());
        }
        guest.end()?;
    }
    Ok(())
}

fn kill_disk(vmm: u32) -> io::Result<()> {
    let disk = memory::children(vmm)?.into_iter().find(|(_, name)| name == "outrigger-blk");
    let (pid, _) = disk.ok_or_else(|| io::Error::other("the disk has no process"))?;
    // Ids of processes are positive numbers of 22 bits.
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).map_err(io::Error::from)
}

fn replace_disk(_vmm: u32) -> io::Result<()> {
    let status = Command::new("outrigger").args(["ctl", CONTROL, "replace", "00:01.0"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("outrigger ctl replace: {status}"))) }
}
