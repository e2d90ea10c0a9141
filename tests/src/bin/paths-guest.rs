//! Order between two processors of a guest, whichever paths their accesses take: litmus tests with the devices in
//! `devices/examples/paths.rs`, whose pages are different paths, and `devices/examples/copier.rs`, whose registers are several
//! sub-regions on one socket. Run as root; needs two processors.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::thread;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::unistd::Pid;

const TIMES: u32 = 100;

/// Pages of the first device: what they offer besides messages.
const MESSAGE: usize = 0;
const STREAM: usize = 0x1000;
const SEQPACKET: usize = 0x2000;
const STREAM_POSTED: usize = 0x3000;
const SEQPACKET_POSTED: usize = 0x4000;
const MAPPED: usize = 0x6000;
/// Where a write is over before the next access.
const DONE_AT_ONCE: [usize; 4] = [MESSAGE, STREAM, SEQPACKET, MAPPED];
const ALL: [usize; 6] = [MESSAGE, STREAM, SEQPACKET, STREAM_POSTED, SEQPACKET_POSTED, MAPPED];

/// Registers of the second, in two sub-regions on one socket.
const SOURCE: usize = 0x00;
const SCRATCH: usize = 0x20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let paths = Registers::of("0x10f1", 0x8000)?;
    let mut violations = 0;
    for data in DONE_AT_ONCE {
        for flag in ALL.into_iter().filter(|flag| *flag != data) {
            let broken = message_passing(&paths, data, flag);
            println!("{} {data:#x} is seen before {flag:#x}", if broken == 0 { "ok" } else { "FAIL" });
            violations += broken;
        }
    }
    let copier = Registers::of("0x10f0", 0x1000)?;
    let wrong = own_answers(&copier);
    println!("{} each processor gets its own answers", if wrong == 0 { "ok" } else { "FAIL" });
    if violations + wrong > 0 {
        return Err(format!("{violations} reads out of order, {wrong} wrong answers").into());
    }
    println!("litmus: passed");
    Ok(())
}

/// One processor writes `data` and then `flag`, again and again; how often the other reads an older `data` after a newer
/// `flag`.
fn message_passing(registers: &Registers, data: usize, flag: usize) -> u32 {
    registers.write(data, 0);
    registers.write(flag, 0);
    // A posted write is not over yet, but a read on its path waits for it.
    registers.read(flag);
    let start = Barrier::new(2);
    thread::scope(|threads| {
        threads.spawn(|| {
            run_on(0);
            start.wait();
            for value in 1..=TIMES {
                registers.write(data, value);
                registers.write(flag, value);
            }
        });
        let reader = threads.spawn(|| {
            run_on(1);
            start.wait();
            let mut broken = 0;
            loop {
                let seen = registers.read(flag);
                broken += u32::from(registers.read(data) < seen);
                if seen == TIMES {
                    return broken;
                }
            }
        });
        reader.join().unwrap_or(u32::MAX)
    })
}

/// Each processor writes and reads a register of its own; how often one reads something else than it wrote.
fn own_answers(registers: &Registers) -> u32 {
    let start = Barrier::new(2);
    let drive = |cpu, register| {
        run_on(cpu);
        start.wait();
        let mine = |value: u32| value << 8 | u32::try_from(register).unwrap_or(0);
        let wrong = (0..TIMES).filter(|&value| {
            registers.write(register, mine(value));
            registers.read(register) != mine(value)
        });
        u32::try_from(wrong.count()).unwrap_or(u32::MAX)
    };
    thread::scope(|threads| {
        let threads = [(0, SOURCE), (1, SCRATCH)].map(|(cpu, register)| threads.spawn(move || drive(cpu, register)));
        threads.into_iter().map(|thread| thread.join().unwrap_or(TIMES)).sum()
    })
}

/// Moves this thread to a processor.
fn run_on(cpu: usize) {
    let mut set = CpuSet::new();
    let moved = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    moved.expect("the guest has two processors");
}

/// BAR 0 of a device.
struct Registers(NonNull<u8>);

// SAFETY: the mapping stays, and is only accessed by volatile reads and writes of whole words.
unsafe impl Sync for Registers {}

impl Registers {
    fn of(device: &str, size: usize) -> Result<Self> {
        let path = find(device)?;
        fs::write(path.join("enable"), "1")?;
        let bar = OpenOptions::new().read(true).write(true).open(path.join("resource0"))?;
        let size = NonZeroUsize::new(size).ok_or("an empty BAR")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let mapping = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, &bar, 0) }?;
        Ok(Self(mapping.cast()))
    }

    fn read(&self, at: usize) -> u32 {
        // SAFETY: `at` is one of the constants above, aligned and within the mapping.
        unsafe { self.0.as_ptr().add(at).cast::<u32>().read_volatile() }
    }

    fn write(&self, at: usize, value: u32) {
        // SAFETY: as for the read.
        unsafe { self.0.as_ptr().add(at).cast::<u32>().write_volatile(value) }
    }
}

fn find(device: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("device")).is_ok_and(|text| text.trim() == device) {
            return Ok(path);
        }
    }
    Err(format!("no device {device}").into())
}
