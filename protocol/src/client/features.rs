//! Device features (specification: "`VFIO_USER_DEVICE_FEATURE`"; indices and data as in `<linux/vfio.h>`).

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::replies::Sized;
use super::{Client, ClientError, size_u32};
use crate::command::Command;
use crate::wire::{self, FEATURE_GET, FEATURE_PROBE, FEATURE_SET};

const COMMAND: Command = Command::DeviceFeature;
/// A feature's data may have this many bytes, even if the server takes fewer in one transfer.
const MIN_ROOM: usize = 4096;

/// Whether a refusal says that the device has no such feature, or not this way.
pub(super) fn is_absence(error: &ClientError) -> bool {
    let absent = [Errno::ENOTTY, Errno::EINVAL, Errno::ENOTSUP];
    matches!(error, ClientError::Refused { errno, .. } if absent.contains(errno))
}

impl Client {
    /// Whether the device has a feature, and lets it be read or changed if that is asked for.
    pub fn probe_feature(&self, index: u16, get: bool, set: bool) -> Result<bool, ClientError> {
        let flags = FEATURE_PROBE | if get { FEATURE_GET } else { 0 } | if set { FEATURE_SET } else { 0 };
        match self.feature(index, flags, size_u32::<wire::DeviceFeature>(), &[]) {
            Ok(_) => Ok(true),
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a feature's data; `request` is what that feature needs to know. Asked again when the server needs more
    /// room than a page.
    pub fn get_feature(&self, index: u16, request: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.check_length(request)?;
        self.with_argsz(COMMAND, 4096, |argsz| self.feature(index, FEATURE_GET, argsz, request))
    }

    /// Changes a feature's data.
    pub fn set_feature(&self, index: u16, data: &[u8]) -> Result<(), ClientError> {
        self.set_feature_echoed(index, data).map(|_| ())
    }

    /// Changes a feature's data; returns what the server makes of it.
    pub(super) fn set_feature_echoed(&self, index: u16, data: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.check_length(data)?;
        let argsz = size_u32::<wire::DeviceFeature>() + u32::try_from(data.len()).expect("at most 1 MiB");
        match self.feature(index, FEATURE_SET, argsz, data)? {
            Sized::Whole(echo) => Ok(echo),
            Sized::Needs(_) => self.malformed_feature("the answer to a change is longer than the change"),
        }
    }

    /// Closes the connection.
    pub(super) fn malformed_feature<T>(&self, problem: &'static str) -> Result<T, ClientError> {
        self.closing(Err(ClientError::Malformed { command: COMMAND, problem }))
    }

    fn check_length(&self, data: &[u8]) -> Result<(), ClientError> {
        let (value, limit) = (data.len() as u64, self.max_transfer().max(MIN_ROOM) as u64);
        if value > limit {
            return Err(ClientError::Local { command: COMMAND, problem: "bytes of a feature", value, limit });
        }
        Ok(())
    }

    pub(super) fn feature(
        &self,
        index: u16,
        action: u32,
        argsz: u32,
        data: &[u8],
    ) -> Result<Sized<Vec<u8>>, ClientError> {
        let request = wire::DeviceFeature { argsz, flags: u32::from(index) | action };
        self.request(COMMAND, [request.as_bytes(), data], &[], |message| {
            let (reply, data) = message.parse::<wire::DeviceFeature>().ok_or("a device feature is too short")?;
            if reply.flags != request.flags {
                return Err("the answer is for another device feature");
            }
            if reply.argsz > argsz {
                return Ok(Sized::Needs(reply.argsz));
            }
            Ok(Sized::Whole(data.to_vec()))
        })
    }
}
