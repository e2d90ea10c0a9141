//! An open device of VFIO's: its regions, interrupts and reset. Each failure is returned; nothing is done in part without
//! an error.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use outrigger_protocol::pci::{CONFIG_REGION, NUM_IRQS, NUM_REGIONS, VGA_REGION};
use outrigger_protocol::server::{Irq, Region, RegionMapping};
use outrigger_protocol::wire;
use zerocopy::{FromBytes, IntoBytes};

use super::OpenError;
use super::ioctls;
use super::regions::{MsixTable, mappable};

/// A device that is open.
#[derive(Debug)]
pub(super) struct DeviceFile {
    file: File,
    /// Where each region starts in the file.
    offsets: Vec<u64>,
}

impl DeviceFile {
    /// Asks an open device for its regions.
    pub(super) fn new(fd: OwnedFd) -> Result<(Self, Vec<Region>), OpenError> {
        let mut device = Self { file: fd.into(), offsets: Vec::new() };
        let mut info = wire::DeviceInfo { argsz: argsz::<wire::DeviceInfo>(), ..Default::default() };
        // SAFETY: the kernel fills in a structure of this size.
        unsafe { ioctls::device_info(device.fd(), &raw mut info) }.map_err(kernel("asking what it consists of"))?;
        if info.flags & wire::DEVICE_IS_PCI == 0 || info.num_regions < NUM_REGIONS || info.num_irqs < NUM_IRQS {
            return Err(OpenError::Kernel { what: "taking it for a PCI device", errno: Errno::ENODEV });
        }
        let infos = (0..NUM_REGIONS).map(|index| device.region_info(index)).collect::<Result<Vec<_>, _>>()?;
        device.offsets = infos.iter().map(|(info, _)| info.offset).collect();
        let mut config = vec![0; usize::try_from(infos[CONFIG_REGION as usize].0.size).unwrap_or(0).min(4096)];
        device.read(CONFIG_REGION, 0, &mut config).map_err(kernel("reading its configuration space"))?;
        let table = MsixTable::find(&config);
        let regions = (0..).zip(&infos).map(|(index, (info, answer))| {
            if index == VGA_REGION {
                return Ok(Region::default());
            }
            let areas = mappable(index, answer, table.as_ref());
            let mapping = match areas[..] {
                [] => None,
                _ => Some(RegionMapping { fd: device.file.try_clone()?.into(), offset: info.offset, areas }),
            };
            Ok(Region {
                size: info.size,
                readable: info.flags & wire::REGION_READ != 0,
                writable: info.flags & wire::REGION_WRITE != 0,
                mapping,
                region_type: None,
            })
        });
        let regions = regions.collect::<std::io::Result<Vec<_>>>();
        let regions =
            regions.map_err(|error| OpenError::Kernel { what: "having a descriptor", errno: errno(&error) })?;
        Ok((device, regions))
    }

    fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// The structure, and the whole answer. A region that the device does not have is of size zero.
    fn region_info(&self, index: u32) -> Result<(wire::RegionInfo, Vec<u8>), OpenError> {
        let request = wire::RegionInfo { argsz: argsz::<wire::RegionInfo>(), index, ..Default::default() };
        // SAFETY: the kernel writes no more than the first word says.
        let answer = unsafe { ioctls::answer(request.as_bytes(), |info| ioctls::region_info(self.fd(), info.cast())) };
        let answer = match answer {
            // There is no VGA, say.
            Err(Errno::EINVAL) => request.as_bytes().to_vec(),
            other => other.map_err(kernel("asking for its regions"))?,
        };
        let (info, _) = wire::RegionInfo::read_from_prefix(&answer).expect("the answer is no shorter than the request");
        Ok((info, answer))
    }

    /// The interrupts of each type.
    pub(super) fn irqs(&self) -> Result<Vec<Irq>, OpenError> {
        let irq = |index| {
            let mut info = wire::IrqInfo { argsz: argsz::<wire::IrqInfo>(), index, ..Default::default() };
            // SAFETY: the kernel fills in a structure of this size.
            match unsafe { ioctls::irq_info(self.fd(), &raw mut info) } {
                Ok(_) => Ok(Irq { count: info.count, flags: info.flags }),
                // Error reports, of a device without them.
                Err(Errno::EINVAL) => Ok(Irq::default()),
                Err(errno) => Err(OpenError::Kernel { what: "asking for its interrupts", errno }),
            }
        };
        (0..NUM_IRQS).map(irq).collect()
    }

    /// Reads from a region.
    pub(super) fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let at = self.at(region, offset)?;
        whole(self.file.read_at(data, at), data.len())
    }

    /// Writes to a region.
    pub(super) fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let at = self.at(region, offset)?;
        whole(self.file.write_at(data, at), data.len())
    }

    fn at(&self, region: u32, offset: u64) -> Result<u64, Errno> {
        let start = self.offsets.get(region as usize).ok_or(Errno::EINVAL)?;
        start.checked_add(offset).ok_or(Errno::EINVAL)
    }

    /// Resets the function.
    pub(super) fn reset(&self) -> Result<(), Errno> {
        // SAFETY: no argument.
        unsafe { ioctls::reset(self.fd()) }.map(drop)
    }

    /// `VFIO_DEVICE_SET_IRQS` without data: an action on `count` vectors, or the type disabled with none.
    pub(super) fn act_on_irqs(&self, index: u32, action: u32, start: u32, count: u32) -> Result<(), Errno> {
        self.set_irqs(index, wire::IRQ_SET_DATA_NONE | action, start, count, &[])
    }

    /// `VFIO_DEVICE_SET_IRQS` with an eventfd for each vector, or none.
    pub(super) fn connect_irqs(
        &self,
        index: u32,
        action: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), Errno> {
        let count = u32::try_from(eventfds.len()).map_err(|_| Errno::EINVAL)?;
        let numbers: Vec<i32> = eventfds.iter().map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())).collect();
        self.set_irqs(index, wire::IRQ_SET_DATA_EVENTFD | action, start, count, numbers.as_bytes())
    }

    fn set_irqs(&self, index: u32, flags: u32, start: u32, count: u32, data: &[u8]) -> Result<(), Errno> {
        let size = size_of::<wire::IrqSet>() + data.len();
        let argsz = u32::try_from(size).map_err(|_| Errno::EINVAL)?;
        let request = wire::IrqSet { argsz, flags, index, start, count };
        // Of words, so that it is aligned.
        let mut words = vec![0u32; size.div_ceil(4)];
        let bytes = words.as_mut_bytes();
        bytes[..size_of::<wire::IrqSet>()].copy_from_slice(request.as_bytes());
        bytes[size_of::<wire::IrqSet>()..size].copy_from_slice(data);
        // SAFETY: the kernel reads as many bytes as the first word says.
        match unsafe { ioctls::set_irqs(self.fd(), words.as_ptr().cast()) } {
            Ok(0) => Ok(()),
            // So many vectors it could have had, and it has none.
            Ok(_) => Err(Errno::ENOSPC),
            Err(errno) => Err(errno),
        }
    }
}

fn kernel(what: &'static str) -> impl Fn(Errno) -> OpenError {
    move |errno| OpenError::Kernel { what, errno }
}

/// All of it, or an error.
fn whole(done: std::io::Result<usize>, length: usize) -> Result<(), Errno> {
    match done {
        Ok(count) if count == length => Ok(()),
        Ok(_) => Err(Errno::EIO),
        Err(error) => Err(errno(&error)),
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn argsz<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("VFIO's structures are small")
}
