//! Device features: probed, read and changed (specification: "`VFIO_USER_DEVICE_FEATURE`").

use std::sync::Arc;

use nix::errno::Errno;
use zerocopy::IntoBytes;

use super::commands::Commands;
use super::device::{Device, Feature};
use super::dirty_log::{self, DirtyLog, Report};
use super::migration;
use super::reply::Reply;
use crate::codec::Message;
use crate::wire::{self, FEATURE_GET, FEATURE_INDEX_MASK, FEATURE_PROBE, FEATURE_SET};
use crate::wire::{FEATURE_DMA_LOGGING_REPORT, FEATURE_DMA_LOGGING_START, FEATURE_DMA_LOGGING_STOP};
use crate::wire::{FEATURE_MIG_DEVICE_STATE, FEATURE_MIGRATION};

/// The longest data of a feature, in bytes.
const MAX_DATA: usize = 1 << 20;
const FIXED: usize = size_of::<wire::DeviceFeature>();

impl Commands<'_> {
    /// `ENOTTY`: the device does not have the feature; `EINVAL`: not this way; `E2BIG`: its data is longer than 1 MiB.
    pub(super) fn feature(&mut self, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (request, data) = message.parse::<wire::DeviceFeature>().ok_or(Errno::EINVAL)?;
        let known = FEATURE_INDEX_MASK | FEATURE_GET | FEATURE_SET | FEATURE_PROBE;
        let [get, set, probe] = [FEATURE_GET, FEATURE_SET, FEATURE_PROBE].map(|flag| request.flags & flag != 0);
        let one_action = probe || get != set;
        if (request.argsz as usize) < FIXED || request.flags & !known != 0 || !one_action {
            return Err(Errno::EINVAL);
        }
        let index = u16::try_from(request.flags & FEATURE_INDEX_MASK).expect("it has 16 bits");
        let feature = available(self.device, index).ok_or(Errno::ENOTTY)?;
        if get && !feature.get || set && !feature.set {
            return Err(Errno::EINVAL);
        }
        if probe {
            return echo(request, data, reply);
        }
        if set {
            return self.set_feature(index, request, data, reply);
        }
        match index {
            FEATURE_DMA_LOGGING_REPORT => self.report_dirty(request, data, reply),
            FEATURE_MIGRATION | FEATURE_MIG_DEVICE_STATE => {
                let migration = self.device.migration().ok_or(Errno::ENOTTY)?;
                answer(request, &migration::get_feature(migration, index), reply)
            }
            _ => answer(request, &self.device.get_feature(index, data)?, reply),
        }
    }

    fn set_feature(
        &mut self,
        index: u16,
        request: wire::DeviceFeature,
        data: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        match index {
            FEATURE_DMA_LOGGING_START => {
                if self.dma.log.is_some() {
                    return Err(Errno::EINVAL);
                }
                self.change_log(Some(DirtyLog::start(data)?));
                let (_, ranges) = data.split_at(size_of::<u64>());
                return echo(request, &[dirty_log::PAGE.as_bytes(), ranges].concat(), reply);
            }
            FEATURE_DMA_LOGGING_STOP => self.change_log(None),
            FEATURE_MIG_DEVICE_STATE => {
                migration::set_device_state(self.device.migration().ok_or(Errno::ENOTTY)?, data)?;
            }
            _ => self.device.set_feature(index, data)?,
        }
        echo(request, data, reply)
    }

    /// The change takes effect when the device takes its memory anew: its writes are recorded, or no longer.
    fn change_log(&mut self, log: Option<DirtyLog>) {
        if log.is_some() || self.dma.log.is_some() {
            self.dma.log = log.map(Arc::new);
            self.device.memory_changed(&self.dma.memory(self.connection));
        }
    }

    /// `EINVAL`: nothing was started.
    fn report_dirty(&self, request: wire::DeviceFeature, data: &[u8], reply: &mut Reply) -> Result<(), Errno> {
        let log = self.dma.log.as_ref().ok_or(Errno::EINVAL)?;
        let report = Report::parse(data, MAX_DATA)?;
        let argsz = argsz(report.reply_size())?;
        reply.push(&wire::DeviceFeature { argsz, ..request });
        // Reported pages are forgotten, so that they are taken only where there is room for them.
        if argsz <= request.argsz {
            reply.push(&report.request);
            let bitmap = log.take(&report);
            reply.push_zeroed(size_of_val(&bitmap[..])).copy_from_slice(bitmap.as_bytes());
        }
        Ok(())
    }
}

/// The operations of a feature. Features of the specification are checked here, others are the device's own.
fn available(device: &mut dyn Device, index: u16) -> Option<Feature> {
    let feature = |there: bool, get, set| there.then_some(Feature { get, set });
    match index {
        FEATURE_MIGRATION => feature(device.migration().is_some(), true, false),
        FEATURE_MIG_DEVICE_STATE => feature(device.migration().is_some(), true, true),
        FEATURE_DMA_LOGGING_START | FEATURE_DMA_LOGGING_STOP => feature(device.logs_dma(), false, true),
        FEATURE_DMA_LOGGING_REPORT => feature(device.logs_dma(), true, false),
        _ => device.feature(index),
    }
}

fn echo(request: wire::DeviceFeature, data: &[u8], reply: &mut Reply) -> Result<(), Errno> {
    reply.push(&request);
    reply.push_zeroed(data.len()).copy_from_slice(data);
    Ok(())
}

/// Without room for all of it, the client learns how much that would need.
fn answer(request: wire::DeviceFeature, data: &[u8], reply: &mut Reply) -> Result<(), Errno> {
    if data.len() > MAX_DATA {
        return Err(Errno::E2BIG);
    }
    let argsz = argsz(data.len())?;
    reply.push(&wire::DeviceFeature { argsz, ..request });
    if argsz <= request.argsz {
        reply.push_zeroed(data.len()).copy_from_slice(data);
    }
    Ok(())
}

fn argsz(data: usize) -> Result<u32, Errno> {
    u32::try_from(FIXED + data).map_err(|_| Errno::E2BIG)
}
