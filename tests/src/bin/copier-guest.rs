//! The guest's side of `devices/examples/copier.rs`: finds the device in sysfs and drives it from user space, its registers
//! by mapping BAR 0, its interrupt by `uio_pci_generic`, to which it must be bound. Run as root, for physical addresses.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, mmap_anonymous};

const VENDOR: &str = "0x1af4";
const DEVICE: &str = "0x10f0";
const PAGE: usize = 4096;
const PAGE_SIZE: NonZeroUsize = NonZeroUsize::new(PAGE).expect("a page is not empty");
const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
/// Where no guest of ours has memory.
const NOWHERE: u64 = 1 << 45;

const COMMAND: u64 = 0x04;
const STATUS_REGISTER: u64 = 0x06;
const BUS_MASTER: u16 = 1 << 2;
const INTX_DISABLE: u16 = 1 << 10;
const INTERRUPT_STATUS: u16 = 1 << 3;

const SOURCE: usize = 0x00;
const DESTINATION: usize = 0x08;
const START: usize = 0x10;
const STATUS: usize = 0x1c;
const SCRATCH: usize = 0x20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let path = find()?;
    println!("copier: {}", path.display());
    let mut device = Device::open(&path)?;
    let (source, destination) = (Page::new()?, Page::new()?);

    device.registers.write::<u32>(SCRATCH, 0x1234_5678);
    device.registers.write::<u8>(SCRATCH + 5, 0x9a);
    check("registers keep what is written", device.registers.read::<u64>(SCRATCH) == 0x9a00_1234_5678)?;
    check("each byte is readable", device.registers.read::<u8>(SCRATCH + 1) == 0x56)?;

    device.allow_interrupts()?;
    for round in 1..=3u8 {
        (0..PAGE).for_each(|at| source.write(at, u8::try_from(at % 251).unwrap_or(0) ^ round));
        (0..PAGE).for_each(|at| destination.write(at, 0xff_u8));
        device.start(source.physical + 1, destination.physical, PAGE - 2);
        device.wait(round.into())?;
        check("interrupt", true)?;
        check("the device is done", device.registers.read::<u32>(STATUS) == 1)?;
        let copied = (0..PAGE - 2).all(|at| destination.read::<u8>(at) == source.read::<u8>(at + 1));
        let rest = (PAGE - 2..PAGE).all(|at| destination.read::<u8>(at) == 0xff);
        check("the bytes are copied and no others", copied && rest)?;
        device.acknowledge()?;
    }
    check("no interrupt without a cause", !device.fires()?)?;

    device.start(NOWHERE, destination.physical, 16);
    device.wait(4)?;
    check("a copy from nowhere fails", device.registers.read::<u32>(STATUS) == 2)?;
    // Allowed again with the cause still there: a level, not an edge.
    device.allow_interrupts()?;
    device.wait(5)?;
    check("the pin interrupts until it is lowered", true)?;
    device.acknowledge()?;
    check("then no more", !device.fires()?)?;
    println!("copier: passed");
    Ok(())
}

fn check(what: &str, holds: bool) -> Result<()> {
    println!("{} {what}", if holds { "ok" } else { "FAIL" });
    if holds { Ok(()) } else { Err(what.into()) }
}

fn find() -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let path = entry?.path();
        let is = |file, id| fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == id);
        if is("vendor", VENDOR) && is("device", DEVICE) {
            return Ok(path);
        }
    }
    Err("no such device".into())
}

struct Device {
    config: File,
    registers: Mapping,
    uio: File,
}

impl Device {
    fn open(path: &Path) -> Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let bar = open(&path.join("resource0"))?;
        Ok(Self {
            config: open(&path.join("config"))?,
            registers: Mapping::of(&bar)?,
            uio: open(Path::new("/dev/uio0"))?,
        })
    }

    /// Copies; the device interrupts when it is done.
    fn start(&self, source: u64, destination: u64, length: usize) {
        self.registers.write(SOURCE, source);
        self.registers.write(DESTINATION, destination);
        self.registers.write(START, length as u64);
    }

    /// Waits for an interrupt, which must be the one with this number since the driver was bound. The driver has then
    /// forbidden interrupts.
    fn wait(&mut self, number: u32) -> Result<()> {
        if !self.fires_within(10_000)? {
            return Err(format!("interrupt {number} does not come").into());
        }
        let mut count = [0; 4];
        self.uio.read_exact(&mut count)?;
        match u32::from_ne_bytes(count) {
            count if count == number => Ok(()),
            count => Err(format!("{count} interrupts instead of {number}").into()),
        }
    }

    fn fires(&self) -> Result<bool> {
        self.fires_within(200)
    }

    fn fires_within(&self, milliseconds: u16) -> Result<bool> {
        let mut fds = [PollFd::new(self.uio.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::from(milliseconds))? > 0)
    }

    /// Lowers the pin and allows interrupts again.
    fn acknowledge(&self) -> Result<()> {
        check("the driver forbade interrupts", self.config_word(COMMAND)? & INTX_DISABLE != 0)?;
        check("the status register shows the cause", self.config_word(STATUS_REGISTER)? & INTERRUPT_STATUS != 0)?;
        self.registers.write(STATUS, 0_u32);
        check("and that it is gone", self.config_word(STATUS_REGISTER)? & INTERRUPT_STATUS == 0)?;
        self.allow_interrupts()
    }

    fn allow_interrupts(&self) -> Result<()> {
        let command = self.config_word(COMMAND)? & !INTX_DISABLE | BUS_MASTER;
        Ok(self.config.write_all_at(&command.to_le_bytes(), COMMAND)?)
    }

    fn config_word(&self, register: u64) -> Result<u16> {
        let mut word = [0; 2];
        self.config.read_exact_at(&mut word, register)?;
        Ok(u16::from_le_bytes(word))
    }
}

/// A page, mapped until the program ends.
struct Mapping(NonNull<u8>);

impl Mapping {
    fn of(file: &File) -> Result<Self> {
        // SAFETY: a new mapping, of device registers.
        Ok(Self(unsafe { mmap(None, PAGE_SIZE, READ_WRITE, MapFlags::MAP_SHARED, file, 0) }?.cast()))
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(
            offset.is_multiple_of(size_of::<T>()) && offset + size_of::<T>() <= PAGE,
            "within the page and aligned"
        );
        self.0.as_ptr().wrapping_add(offset).cast()
    }

    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: the pointer is aligned and within a page that stays mapped; `T` is an integer.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    fn write<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: as for reading; nothing in this process refers to the page.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }
}

/// A page of memory that stays where it is.
struct Page {
    mapping: Mapping,
    physical: u64,
}

impl Page {
    fn new() -> Result<Self> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping of new memory.
        let page = unsafe { mmap_anonymous(None, PAGE_SIZE, READ_WRITE, flags) }?;
        // SAFETY: the page was just mapped.
        unsafe { mlock(page, PAGE) }?;
        // Documentation/admin-guide/mm/pagemap.rst: 64 bits for each page; bits 0 to 54 are the frame, 63 says present.
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, (page.as_ptr() as usize / PAGE * 8) as u64)?;
        let entry = u64::from_ne_bytes(entry);
        let frame = entry & ((1 << 55) - 1);
        if entry >> 63 == 0 || frame == 0 {
            return Err("/proc/self/pagemap does not tell; be root".into());
        }
        Ok(Self { mapping: Mapping(page.cast()), physical: frame * PAGE as u64 })
    }

    fn read<T: Copy>(&self, offset: usize) -> T {
        self.mapping.read(offset)
    }

    fn write<T: Copy>(&self, offset: usize, value: T) {
        self.mapping.write(offset, value);
    }
}
