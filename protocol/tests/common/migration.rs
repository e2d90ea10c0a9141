//! The part of the test device that migrates.

use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::server::Migration;

use super::device::State;

/// How long the state is that can be read: more than two messages.
pub const SAVED: usize = (2 << 20) + 1000;
/// A new state that ends with this byte is complete; any other makes the device fail.
pub const COMPLETE: u8 = 0xee;

/// The bytes that can be read.
pub fn saved() -> Vec<u8> {
    (0..u32::try_from(SAVED).unwrap()).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect()
}

pub struct TestMigration {
    shared: Arc<Mutex<State>>,
    pre_copy: bool,
    state: DeviceState,
    saved: Vec<u8>,
    position: usize,
}

impl TestMigration {
    pub fn new(shared: Arc<Mutex<State>>, pre_copy: bool) -> Self {
        Self { shared, pre_copy, state: DeviceState::Running, saved: saved(), position: 0 }
    }

    pub fn reset(&mut self) {
        self.state = DeviceState::Running;
    }
}

impl Migration for TestMigration {
    fn pre_copy(&self) -> bool {
        self.pre_copy
    }

    fn state(&self) -> DeviceState {
        self.state
    }

    fn transition(&mut self, to: DeviceState) -> Result<(), Errno> {
        let mut shared = self.shared.lock().unwrap();
        if self.state == DeviceState::Resuming && shared.received.last() != Some(&COMPLETE) {
            self.state = DeviceState::Error;
            return Err(Errno::EBADMSG);
        }
        match to {
            DeviceState::Resuming => shared.received.clear(),
            DeviceState::PreCopy | DeviceState::StopCopy if !self.state.is_saving() => self.position = 0,
            _ => {}
        }
        shared.transitions.push(to);
        self.state = to;
        Ok(())
    }

    fn read_data(&mut self, data: &mut [u8]) -> Result<usize, Errno> {
        assert!(!data.is_empty() && self.state.is_saving(), "a read that makes no sense reached the device");
        let rest = &self.saved[self.position..];
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
        self.position += length;
        Ok(length)
    }

    fn write_data(&mut self, data: &[u8]) -> Result<(), Errno> {
        assert!(
            !data.is_empty() && self.state == DeviceState::Resuming,
            "a write that makes no sense reached the device"
        );
        if data == b"not me" {
            return Err(Errno::EIO);
        }
        self.shared.lock().unwrap().received.extend_from_slice(data);
        Ok(())
    }
}
