//! Moving a device's state to another server (specification: "`VFIO_DEVICE_FEATURE_MIGRATION`",
//! "`VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`", "`VFIO_USER_MIG_DATA_READ`", "`VFIO_USER_MIG_DATA_WRITE`").

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::device::Device;
use super::reply::Reply;
use crate::codec::Message;
use crate::migration::DeviceState;
use crate::wire;

/// A device whose state can be read out of one server and put into another ([`Device::migration`]).
///
/// The device keeps its state, also from one client to the next; after [`Device::reset`] it is
/// [`DeviceState::Running`].
pub trait Migration {
    /// Whether there is [`DeviceState::PreCopy`].
    fn pre_copy(&self) -> bool {
        false
    }

    /// Where the device is.
    fn state(&self) -> DeviceState;

    /// Goes one direct transition from [`Migration::state`] to `to`, all of it (specification: "Direct State
    /// Transitions"). A device that fails and can neither stay nor go on is in [`DeviceState::Error`] afterwards.
    fn transition(&mut self, to: DeviceState) -> Result<(), Errno>;

    /// The next bytes of the device's state, which is read as a stream; called in [`DeviceState::PreCopy`] and
    /// [`DeviceState::StopCopy`] only. Returns how many there are: fewer than there is room for at the end.
    fn read_data(&mut self, data: &mut [u8]) -> Result<usize, Errno>;

    /// The next bytes of the state that the device takes; called in [`DeviceState::Resuming`] only. Whether they are
    /// complete shows at the transition to [`DeviceState::Stop`].
    fn write_data(&mut self, data: &[u8]) -> Result<(), Errno>;
}

/// The data of a feature that is read.
pub(super) fn get_feature(migration: &mut dyn Migration, index: u16) -> Vec<u8> {
    if index == wire::FEATURE_MIGRATION {
        let pre_copy = if migration.pre_copy() { wire::MIGRATION_PRE_COPY } else { 0 };
        return wire::Migration { flags: wire::MIGRATION_STOP_COPY | pre_copy }.as_bytes().to_vec();
    }
    wire::MigDeviceState { device_state: migration.state() as u32, data_fd: 0 }.as_bytes().to_vec()
}

/// Takes the device to the state that `data` asks for. `EINVAL`: there is no such state, or no way to it.
pub(super) fn set_device_state(migration: &mut dyn Migration, data: &[u8]) -> Result<(), Errno> {
    let request = wire::MigDeviceState::read_from_bytes(data).map_err(|_| Errno::EINVAL)?;
    let target = DeviceState::from_number(request.device_state).ok_or(Errno::EINVAL)?;
    if target == DeviceState::Error {
        return Err(Errno::EINVAL);
    }
    let pre_copy = migration.pre_copy();
    while migration.state() != target {
        let next = migration.state().step_towards(target, pre_copy).ok_or(Errno::EINVAL)?;
        migration.transition(next)?;
        if migration.state() != next {
            log::error!("a device is in state {:?} after a transition to {next:?}", migration.state());
            return Err(Errno::EIO);
        }
    }
    Ok(())
}

/// `VFIO_USER_MIG_DATA_READ`. `ENOTSUP`: the device does not migrate; `EINVAL`: not in this state, or more than `limit`
/// bytes, or than the client has room for.
pub(super) fn read_data(
    device: &mut dyn Device,
    message: &Message<'_>,
    limit: u64,
    reply: &mut Reply,
) -> Result<(), Errno> {
    let migration = device.migration().ok_or(Errno::ENOTSUP)?;
    let (request, rest) = message.parse::<wire::MigData>().ok_or(Errno::EINVAL)?;
    let fixed = size_of::<wire::MigData>();
    let room = u64::from(request.argsz).checked_sub(fixed as u64).ok_or(Errno::EINVAL)?;
    let wanted = u64::from(request.size);
    if !rest.is_empty() || wanted > limit || wanted > room || !migration.state().is_saving() {
        return Err(Errno::EINVAL);
    }
    reply.push(&wire::MigData::default());
    let read = match reply.push_zeroed(request.size as usize) {
        [] => 0,
        data => migration.read_data(data)?.min(data.len()),
    };
    let size = u32::try_from(read).map_err(|_| Errno::EOVERFLOW)?;
    let argsz = u32::try_from(fixed + read).map_err(|_| Errno::EOVERFLOW)?;
    reply.shorten(&wire::MigData { argsz, size }, read);
    Ok(())
}

/// `VFIO_USER_MIG_DATA_WRITE`. `ENOTSUP`: the device does not migrate; `EINVAL`: not in this state, or other data than
/// the message says, or more than `limit` bytes.
pub(super) fn write_data(device: &mut dyn Device, message: &Message<'_>, limit: u64) -> Result<(), Errno> {
    let migration = device.migration().ok_or(Errno::ENOTSUP)?;
    let (request, data) = message.parse::<wire::MigData>().ok_or(Errno::EINVAL)?;
    let resuming = migration.state() == DeviceState::Resuming;
    if data.len() != request.size as usize || u64::from(request.size) > limit || !resuming {
        return Err(Errno::EINVAL);
    }
    match data {
        [] => Ok(()),
        data => migration.write_data(data),
    }
}
