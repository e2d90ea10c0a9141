//! One guest with more devices.

use std::fs;
use std::io;

use super::guest::{Guest, Machine, Process};
use super::{host, mebibytes, print};
use crate::host::resources::{make_disk, make_tap, remove_tap};
use crate::host::subject::{DISK, RAM};

/// Bytes of those disks that stay idle.
const IDLE_DISK: u64 = 1 << 20;

/// Prints what was measured.
pub fn measure() -> io::Result<()> {
    make_disk(&disk(0), RAM)?;
    let unoccupied = host::busy()?;
    for devices in [1, 2, 4, 8, 16] {
        let taps: Vec<_> = (0..devices / 2).map(|card| format!("lab{card}")).collect();
        taps.iter().try_for_each(|tap| make_tap(tap, None, 1))?;
        let result = with(devices, unoccupied);
        taps.iter().try_for_each(|tap| remove_tap(tap))?;
        result?;
    }
    (0..16).step_by(2).try_for_each(|number| fs::remove_file(disk(number)))
}

fn disk(number: usize) -> String {
    format!("{DISK}{number}")
}

fn with(devices: usize, unoccupied: f64) -> io::Result<()> {
    let mut machine = Machine { cpus: 1, devices: vec![format!("--disk path={}", disk(0))], ..Machine::default() };
    for number in 1..devices {
        machine.devices.push(if number % 2 == 1 {
            format!("--net tap=lab{}", number / 2)
        } else {
            let path = disk(number);
            make_disk(&path, IDLE_DISK)?;
            format!("--disk path={path}")
        });
    }
    let mut guest = Guest::boot(&machine)?;
    let print = |figure: &str, value| print("devices", devices, figure, value);
    print("boot", guest.boot);
    print("ready", guest.ready);
    for load in ["read-4k-qd1", "read-4k-qd32"] {
        print(load, guest.load_again(load)?);
    }
    let processes = guest.processes()?;
    for (figure, name) in
        [("memory-vmm", "outrigger"), ("memory-blk", "outrigger-blk"), ("memory-net", "outrigger-net")]
    {
        let private: Vec<_> =
            processes.iter().filter(|process| process.name == name).map(|process| process.private).collect();
        if !private.is_empty() {
            print(figure, mebibytes(private.iter().sum::<u64>() / private.len() as u64));
        }
    }
    print("memory-all", mebibytes(processes.iter().map(|process| process.private).sum()));
    print("threads", super::total(processes.iter().map(|process| process.threads)));
    print("descriptors", super::total(processes.iter().take(1).map(|process| process.descriptors)));
    let before = guest.processes()?;
    print("idle", host::busy()? - unoccupied);
    let runs = |processes: &[Process], skip| processes.iter().skip(skip).map(|process| process.runs).sum::<usize>();
    let after = guest.processes()?;
    let [all, others] = [0, 1].map(|skip| runs(&after, skip) - runs(&before, skip));
    println!("lab:   meanwhile threads of the VMM woke {} times, of device processes {others}", all - others);
    guest.end()
}
