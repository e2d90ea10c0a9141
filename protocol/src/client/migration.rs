//! Moving a device's state from one server to another (specification: "`VFIO_DEVICE_FEATURE_MIGRATION`",
//! "`VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE`", "`VFIO_USER_MIG_DATA_READ`", "`VFIO_USER_MIG_DATA_WRITE`").

use zerocopy::{FromBytes, IntoBytes};

use super::features::is_absence;
use super::{Client, ClientError};
use crate::command::Command;
use crate::migration::DeviceState;
use crate::wire::{self, FEATURE_MIG_DEVICE_STATE, FEATURE_MIGRATION};

/// How a device migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationInfo {
    /// Whether there is [`DeviceState::PreCopy`].
    pub pre_copy: bool,
}

impl Client {
    /// How the device migrates. `None`: it does not.
    pub fn migration(&self) -> Result<Option<MigrationInfo>, ClientError> {
        let data = match self.get_feature(FEATURE_MIGRATION, &[]) {
            Err(error) if is_absence(&error) => return Ok(None),
            data => data?,
        };
        match wire::Migration::read_from_prefix(&data) {
            Ok((wire::Migration { flags }, _)) if flags & wire::MIGRATION_STOP_COPY != 0 => {
                Ok(Some(MigrationInfo { pre_copy: flags & wire::MIGRATION_PRE_COPY != 0 }))
            }
            Ok(_) => self.malformed_feature("a device migrates, but cannot be stopped for that"),
            Err(_) => self.malformed_feature("how the device migrates is too short"),
        }
    }

    /// Where the device is in its migration.
    pub fn device_state(&self) -> Result<DeviceState, ClientError> {
        let data = self.get_feature(FEATURE_MIG_DEVICE_STATE, &[])?;
        let state = wire::MigDeviceState::read_from_prefix(&data).ok();
        match state.and_then(|(state, _)| DeviceState::from_number(state.device_state)) {
            Some(state) => Ok(state),
            None => self.malformed_feature("a state that a device cannot be in"),
        }
    }

    /// Takes the device to a state, by as many transitions as that needs; they are complete when this returns. After a
    /// refusal, [`Client::device_state`] says how far it came.
    pub fn set_device_state(&self, state: DeviceState) -> Result<(), ClientError> {
        let request = wire::MigDeviceState { device_state: state as u32, data_fd: 0 };
        let echo = self.set_feature_echoed(FEATURE_MIG_DEVICE_STATE, request.as_bytes())?;
        match wire::MigDeviceState::read_from_prefix(&echo) {
            Ok((reply, _)) if reply.device_state == request.device_state => Ok(()),
            _ => self.malformed_feature("the answer is for another device state"),
        }
    }

    /// The next bytes of the state of a device that is in [`DeviceState::PreCopy`] or [`DeviceState::StopCopy`], in as
    /// many messages as the server's `max_data_xfer_size` asks for. Returns how many there are: fewer than there is
    /// room for at the end.
    pub fn read_migration_data(&self, data: &mut [u8]) -> Result<usize, ClientError> {
        let mut total = 0;
        for chunk in data.chunks_mut(self.max_transfer()) {
            let request = mig_data(chunk.len());
            let read = self.request(Command::MigDataRead, [request.as_bytes(), &[]], &[], |message| {
                let (reply, data) = message.parse::<wire::MigData>().ok_or("migration data is too short")?;
                if reply.size as usize != data.len() {
                    return Err("migration data is not as long as it says");
                }
                let room = chunk.get_mut(..data.len()).ok_or("more migration data than was asked for")?;
                room.copy_from_slice(data);
                Ok(data.len())
            })?;
            total += read;
            if read < chunk.len() {
                break;
            }
        }
        Ok(total)
    }

    /// The next bytes of the state that a device in [`DeviceState::Resuming`] is to take, likewise.
    pub fn write_migration_data(&self, data: &[u8]) -> Result<(), ClientError> {
        data.chunks(self.max_transfer()).try_for_each(|chunk| {
            let request = mig_data(chunk.len());
            self.request(Command::MigDataWrite, [request.as_bytes(), chunk], &[], |_| Ok(()))
        })
    }
}

fn mig_data(length: usize) -> wire::MigData {
    let of = |size: usize| u32::try_from(size).expect("transfers are at most 1 MiB");
    wire::MigData { argsz: of(size_of::<wire::MigData>() + length), size: of(length) }
}
