//! Accesses to the registers of `devices/examples/paths.rs`, a page for each path, as they are made without a driver: through /dev/mem.
//! Needs `iomem=relaxed`.

use std::fs::{self, OpenOptions};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::Spent;

const COUNT: u32 = 2000;
const PAGE: NonZero<usize> = NonZero::new(4096).expect("it is not zero");
/// Vendor and device.
const IDS: [&str; 2] = ["0x1af4", "0x10f1"];
/// Beyond every BAR, so the VMM itself answers.
const BEYOND: u64 = 16 << 20;

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A page of the BAR.
    Page(u64),
    /// An address that belongs to no device.
    Nobody,
}

impl Target {
    /// As the kernel command line has it: a number, or `nobody`.
    pub fn parse(word: &str) -> Option<Self> {
        if word == "nobody" { Some(Self::Nobody) } else { word.parse().ok().map(Self::Page) }
    }
}

/// Whether this load is one of these.
pub fn measures(figure: &str) -> bool {
    figure.starts_with("access-")
}

/// The average access. Writes are over when a read comes back, which is told the last value wherever the path carries values.
pub fn measure(figure: &str, target: Target) -> io::Result<Spent> {
    let register = map(target)?;
    // SAFETY: the mapping is never unmapped, and the register is at its start.
    let read = || unsafe { register.read_volatile() };
    // SAFETY: likewise.
    let write = |value| unsafe { register.write_volatile(value) };
    let keeps = matches!(target, Target::Page(_)) && figure != "access-doorbell";
    let start = match figure {
        "access-read" => {
            write(COUNT);
            read();
            let start = Instant::now();
            (0..COUNT).for_each(|_| {
                read();
            });
            start
        }
        _ => {
            write(1);
            read();
            let start = Instant::now();
            (1..=COUNT).for_each(write);
            start
        }
    };
    let last = read();
    let spent = Spent::since(start, COUNT as usize);
    match keeps && last != COUNT {
        true => Err(io::Error::other(format!("{figure}: the register has {last:#x}, not {COUNT:#x}"))),
        false => Ok(spent),
    }
}

fn map(target: Target) -> io::Result<*mut u32> {
    let function = function()?;
    fs::write(function.join("enable"), "1")?;
    let bar = fs::read_to_string(function.join("resource"))?;
    let bar =
        bar.split_whitespace().next().and_then(|start| u64::from_str_radix(start.trim_start_matches("0x"), 16).ok());
    let bar = bar.ok_or_else(|| io::Error::other("the device has no BAR 0"))?;
    let address = match target {
        Target::Page(page) => bar + page * PAGE.get() as u64,
        Target::Nobody => bar + BEYOND,
    };
    let memory = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
    let offset = libc::off_t::try_from(address).map_err(io::Error::other)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, of a device's registers or of nothing.
    let mapping = unsafe { mmap(None, PAGE, protection, MapFlags::MAP_SHARED, &memory, offset)? };
    Ok(mapping.as_ptr().cast())
}

fn function() -> io::Result<PathBuf> {
    let is_it = |path: &Path| {
        let id = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
        [id("vendor"), id("device")].iter().map(|id| id.trim()).eq(IDS)
    };
    let mut functions = fs::read_dir("/sys/bus/pci/devices")?.filter_map(|entry| Some(entry.ok()?.path()));
    functions.find(|path| is_it(path)).ok_or_else(|| io::Error::other("there is no device with a page for each path"))
}
