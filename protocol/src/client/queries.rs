//! Asking a server what its device consists of.

use zerocopy::IntoBytes;

use super::error::ClientError;
use super::replies::{self, IoFd, IrqInfo, RegionInfo, Sized};
use super::{Client, size_u32};
use crate::command::Command;
use crate::wire;

/// The most bytes a description of a region may need.
const MAX_ARGSZ: u32 = 1 << 16;
/// No PCI device has nearly as many regions, or interrupt types.
const MAX_INDICES: u32 = 256;

/// How many regions and interrupt types a device has.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    /// `wire::DEVICE_*`.
    pub flags: u32,
    /// Regions.
    pub num_regions: u32,
    /// Interrupt types.
    pub num_irqs: u32,
}

impl Client {
    /// `VFIO_USER_DEVICE_GET_INFO`.
    pub fn device_info(&self) -> Result<DeviceInfo, ClientError> {
        let request = wire::DeviceInfo { argsz: size_u32::<wire::DeviceInfo>(), ..Default::default() };
        self.request(Command::DeviceGetInfo, [request.as_bytes(), &[]], &[], |message| {
            let (info, _) = message.parse::<wire::DeviceInfo>().ok_or("device info is too short")?;
            if info.num_regions > MAX_INDICES || info.num_irqs > MAX_INDICES {
                return Err("device info counts more regions or interrupt types than a device can have");
            }
            Ok(DeviceInfo { flags: info.flags, num_regions: info.num_regions, num_irqs: info.num_irqs })
        })
    }

    /// `VFIO_USER_DEVICE_GET_REGION_INFO`, asked again when the server needs more room for its capabilities.
    pub fn region_info(&self, index: u32) -> Result<RegionInfo, ClientError> {
        self.with_argsz(Command::DeviceGetRegionInfo, 1024, |argsz| {
            let request = wire::RegionInfo { argsz, index, ..Default::default() };
            self.request(Command::DeviceGetRegionInfo, [request.as_bytes(), &[]], &[], |message| {
                replies::region_info(message, index, argsz)
            })
        })
    }

    /// `VFIO_USER_DEVICE_GET_REGION_IO_FDS` for a region of `region_size` bytes.
    pub fn region_io_fds(&self, index: u32, region_size: u64) -> Result<Vec<IoFd>, ClientError> {
        let command = Command::DeviceGetRegionIoFds;
        self.with_argsz(command, 4096, |argsz| {
            let request = wire::RegionIoFds { argsz, index, ..Default::default() };
            let payload = request.as_bytes();
            self.locked(command, |main| {
                let result = main.request(self.deadline_from_now(), command, [payload, &[]], &[], |message| {
                    replies::io_fds(message, index, region_size, argsz)
                });
                if matches!(result, Err(ClientError::Refused { .. })) {
                    main.expect_payload_as_header(payload);
                }
                result
            })
        })
    }

    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`.
    pub fn irq_info(&self, index: u32) -> Result<IrqInfo, ClientError> {
        let request = wire::IrqInfo { argsz: size_u32::<wire::IrqInfo>(), index, ..Default::default() };
        self.request(Command::DeviceGetIrqInfo, [request.as_bytes(), &[]], &[], |message| {
            replies::irq_info(&message, index)
        })
    }

    pub(super) fn with_argsz<T>(
        &self,
        command: Command,
        argsz: u32,
        ask: impl Fn(u32) -> Result<Sized<T>, ClientError>,
    ) -> Result<T, ClientError> {
        let needed = match ask(argsz)? {
            Sized::Whole(whole) => return Ok(whole),
            Sized::Needs(needed) => needed,
        };
        let malformed = |problem| self.closing(Err(ClientError::Malformed { command, problem }));
        if needed > MAX_ARGSZ {
            return malformed("a description larger than 64 KiB");
        }
        match ask(needed)? {
            Sized::Whole(whole) => Ok(whole),
            Sized::Needs(_) => malformed("a description that grows each time"),
        }
    }
}
