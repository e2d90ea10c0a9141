//! More guests on one host.

use std::io;

use super::guest::{Guest, Machine};
use super::{host, mebibytes, print};
use crate::host::resources::{make_disk, make_tap, remove_tap};
use crate::host::subject::{DISK, RAM};
use crate::network::HOST;

/// Bytes of those disks that stay idle.
const IDLE_DISK: u64 = 1 << 20;
const MOST: usize = 16;

/// Prints what was measured.
pub fn measure() -> io::Result<()> {
    let taps: Vec<_> = (0..MOST).map(|guest| format!("lab{guest}")).collect();
    for (guest, tap) in taps.iter().enumerate() {
        make_disk(&disk(guest), if guest == 0 { RAM } else { IDLE_DISK })?;
        make_tap(tap, (guest == 0).then_some(HOST), 1)?;
    }
    let result = grow(&taps);
    taps.iter().try_for_each(|tap| remove_tap(tap))?;
    result
}

fn disk(guest: usize) -> String {
    format!("{DISK}{guest}")
}

/// One more guest at a time; what there is is measured now and then.
fn grow(taps: &[String]) -> io::Result<()> {
    let unoccupied = host::busy()?;
    let kernel = host::kernel_memory()?;
    let mut guests = Vec::new();
    for (number, tap) in taps.iter().enumerate() {
        let devices = vec![format!("--disk path={}", disk(number)), format!("--net tap={tap}")];
        guests.push(Guest::boot(&Machine { cpus: 1, devices, ..Machine::default() })?);
        if guests.len().is_power_of_two() {
            measure_all(&mut guests, unoccupied, kernel)?;
        }
    }
    guests.into_iter().try_for_each(Guest::end)
}

fn measure_all(guests: &mut [Guest], unoccupied: f64, kernel: u64) -> io::Result<()> {
    let count = guests.len();
    let print = |figure: &str, value| print("guests", count, figure, value);
    let each = 1.0 / super::total([count]);
    print("idle", (host::busy()? - unoccupied) * each);
    // No figure: it does not repeat.
    let kernel = mebibytes(host::kernel_memory()?.saturating_sub(kernel)) * each;
    println!("lab:   guests-{count}: the host's kernel has {kernel:.2} MiB for each");
    let mut private = 0;
    for guest in &*guests {
        private += guest.processes()?.iter().map(|process| process.private).sum::<u64>();
    }
    print("memory-all", mebibytes(private) * each);
    if let Some(last) = guests.last() {
        print("boot", last.boot);
        print("ready", last.ready);
    }
    if let Some(first) = guests.first_mut() {
        for load in ["read-4k-qd1", "read-4k-qd32", "tcp-to-host", "tcp-rr"] {
            print(load, first.load_again(load)?);
        }
    }
    Ok(())
}
