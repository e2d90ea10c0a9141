//! One guest with more processors and queues: what each operation costs, all taking turns on the host's one processor.

use std::fs;
use std::io;

use super::guest::{Guest, Machine};
use super::{mebibytes, print};
use crate::host::resources::{make_disk, make_tap, remove_tap};
use crate::host::subject::{DISK, RAM, TAP};
use crate::network::HOST;

const LOADS: [&str; 5] = ["read-4k-qd1", "read-4k-qd32", "write-4k-qd32", "tcp-to-host", "tcp-to-guest"];

/// Several processors on one interleave each time otherwise: of so many runs of a load, the one in the middle counts.
const RUNS: usize = 5;

/// Prints what was measured.
pub fn measure() -> io::Result<()> {
    make_disk(DISK, RAM)?;
    for queues in [1, 2, 4] {
        make_tap(TAP, Some(HOST), queues)?;
        let result = with(queues.into());
        remove_tap(TAP)?;
        result?;
    }
    fs::remove_file(DISK)
}

fn with(queues: usize) -> io::Result<()> {
    let devices = vec![format!("--disk path={DISK},queues={queues}"), format!("--net tap={TAP},queues={queues}")];
    let mut guest = Guest::boot(&Machine { cpus: queues, devices, ..Machine::default() })?;
    print("queues", queues, "boot", guest.boot);
    print("queues", queues, "ready", guest.ready);
    for load in LOADS {
        let mut values = (0..RUNS).map(|_| guest.load(load)).collect::<io::Result<Vec<_>>>()?;
        values.sort_by(f64::total_cmp);
        println!("lab:   {load} {values:.3?}");
        print("queues", queues, load, values[RUNS / 2]);
    }
    let processes = guest.processes()?;
    for process in &processes {
        print("queues", queues, &format!("memory-{}", short(&process.name)), mebibytes(process.private));
    }
    print("queues", queues, "threads", super::total(processes.iter().map(|process| process.threads)));
    guest.end()
}

/// A process's name in figures.
fn short(name: &str) -> &str {
    if name == "outrigger" { "vmm" } else { name.strip_prefix("outrigger-").unwrap_or(name) }
}
