//! Device features: probed, read and changed (specification: "`VFIO_USER_DEVICE_FEATURE`").

use nix::errno::Errno;

use super::device::Device;
use super::reply::Reply;
use crate::codec::Message;
use crate::wire::{self, FEATURE_GET, FEATURE_INDEX_MASK, FEATURE_PROBE, FEATURE_SET};

/// The longest data of a feature, in bytes.
const MAX_DATA: usize = 1 << 20;

/// `ENOTTY`: the device does not have the feature; `EINVAL`: not this way; `E2BIG`: its data is longer than 1 MiB.
pub(super) fn execute(device: &mut dyn Device, message: &Message<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let (request, data) = message.parse::<wire::DeviceFeature>().ok_or(Errno::EINVAL)?;
    let fixed = size_of::<wire::DeviceFeature>();
    let known = FEATURE_INDEX_MASK | FEATURE_GET | FEATURE_SET | FEATURE_PROBE;
    let (get, set, probe) = (has(request, FEATURE_GET), has(request, FEATURE_SET), has(request, FEATURE_PROBE));
    let one_action = probe || get != set;
    if (request.argsz as usize) < fixed || request.flags & !known != 0 || !one_action {
        return Err(Errno::EINVAL);
    }
    let index = u16::try_from(request.flags & FEATURE_INDEX_MASK).expect("it has 16 bits");
    let feature = device.feature(index).ok_or(Errno::ENOTTY)?;
    if get && !feature.get || set && !feature.set {
        return Err(Errno::EINVAL);
    }
    if probe || set {
        if set && !probe {
            device.set_feature(index, data)?;
        }
        reply.push(&request);
        reply.push_zeroed(data.len()).copy_from_slice(data);
        return Ok(());
    }
    let data = device.get_feature(index, data)?;
    if data.len() > MAX_DATA {
        return Err(Errno::E2BIG);
    }
    let argsz = u32::try_from(fixed + data.len()).map_err(|_| Errno::E2BIG)?;
    reply.push(&wire::DeviceFeature { argsz, ..request });
    // Without room for all of it, the client learns how much that would need.
    if argsz <= request.argsz {
        reply.push_zeroed(data.len()).copy_from_slice(&data);
    }
    Ok(())
}

fn has(request: wire::DeviceFeature, flag: u32) -> bool {
    request.flags & flag != 0
}
