//! Which memory a device writes (specification: "`VFIO_DEVICE_FEATURE_DMA_LOGGING_START`" and the sections after it).

use zerocopy::{FromBytes, IntoBytes};

use super::replies::Sized;
use super::{Client, ClientError};
use crate::command::Command;
use crate::dirty_bitmap;
use crate::wire::{self, FEATURE_GET};
use crate::wire::{FEATURE_DMA_LOGGING_REPORT, FEATURE_DMA_LOGGING_START, FEATURE_DMA_LOGGING_STOP};

/// How many bits of a report are asked for at once: 512 KiB of them.
const BITS_AT_ONCE: u64 = 1 << 22;

impl Client {
    /// Whether the device can say which memory it writes.
    pub fn can_log_dma(&self) -> Result<bool, ClientError> {
        Ok(self.probe_feature(FEATURE_DMA_LOGGING_START, false, true)?
            && self.probe_feature(FEATURE_DMA_LOGGING_STOP, false, true)?
            && self.probe_feature(FEATURE_DMA_LOGGING_REPORT, true, false)?)
    }

    /// Starts a log: after this returns, the device records what it writes within these ranges of (DMA address, bytes),
    /// or anywhere if there are none. Returns the page size that the device chose, given a hint; both are in bytes and
    /// powers of two.
    pub fn start_dma_logging(&self, page_size: u64, ranges: &[(u64, u64)]) -> Result<u64, ClientError> {
        let num_ranges = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        let control = wire::DmaLoggingControl { page_size, num_ranges, reserved: 0 };
        let range = |&(iova, length)| wire::DmaLoggingRange { iova, length };
        let ranges: Vec<wire::DmaLoggingRange> = ranges.iter().map(range).collect();
        let request = [control.as_bytes(), ranges.as_bytes()].concat();
        let echo = self.set_feature_echoed(FEATURE_DMA_LOGGING_START, &request)?;
        match wire::DmaLoggingControl::read_from_prefix(&echo) {
            Ok((reply, _)) if reply.page_size.is_power_of_two() => Ok(reply.page_size),
            _ => self.malformed_feature("DMA is logged by pages of an impossible size"),
        }
    }

    /// Stops the log and discards it.
    pub fn stop_dma_logging(&self) -> Result<(), ClientError> {
        self.set_feature(FEATURE_DMA_LOGGING_STOP, &[])
    }

    /// Which pages of `page_size` bytes, from `iova` on, the device has written since it was last asked: a bitmap, the
    /// lowest bit of its first word being the first page. In as many messages as the answer needs.
    ///
    /// [`ClientError::Local`]: the range is empty or wraps, or `page_size` is not a power of two.
    pub fn dirty_pages(&self, iova: u64, length: u64, page_size: u64) -> Result<Vec<u64>, ClientError> {
        if dirty_bitmap::words(iova, length, page_size).is_none() {
            let (command, problem) = (Command::DeviceFeature, "a range that has no bitmap");
            return Err(ClientError::Local { command, problem, value: length, limit: u64::MAX - iova });
        }
        let at_once = page_size.saturating_mul(BITS_AT_ONCE);
        let mut bitmap = Vec::new();
        let mut done = 0;
        while done < length {
            let part = at_once.min(length - done);
            bitmap.extend(self.report(wire::DmaLoggingReport { iova: iova + done, length: part, page_size })?);
            done += part;
        }
        Ok(bitmap)
    }

    fn report(&self, request: wire::DmaLoggingReport) -> Result<Vec<u64>, ClientError> {
        let wire::DmaLoggingReport { iova, length, page_size } = request;
        let words = dirty_bitmap::words(iova, length, page_size).expect("a part of a range that has a bitmap");
        let words = usize::try_from(words).expect("at most 65,536");
        let size = size_of::<wire::DeviceFeature>() + size_of_val(&request) + words * size_of::<u64>();
        let argsz = u32::try_from(size).expect("at most 512 KiB and 32 bytes");
        let Sized::Whole(data) = self.feature(FEATURE_DMA_LOGGING_REPORT, FEATURE_GET, argsz, request.as_bytes())?
        else {
            return self.malformed_feature("a bitmap that is longer than the range needs");
        };
        let Some(bytes) = data.strip_prefix(request.as_bytes()).filter(|bytes| bytes.len() == words * 8) else {
            return self.malformed_feature("a bitmap for another range");
        };
        let mut bitmap = vec![0u64; words];
        bitmap.as_mut_bytes().copy_from_slice(bytes);
        let bits_of_last = length.div_ceil(page_size) % 64;
        if bits_of_last > 0 && bitmap.last().is_some_and(|last| last >> bits_of_last != 0) {
            return self.malformed_feature("a bitmap with pages beyond its range");
        }
        Ok(bitmap)
    }
}
