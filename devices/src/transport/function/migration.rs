//! The function as one that migrates: stopped, and then its journal is what is copied. What a driver has in memory, the
//! client moves.
//!
//! The data is the name of the journal's format, 64 bytes with zeros at the end, and the words of the journal, little-endian.

use nix::errno::Errno;
use outrigger_protocol::journal::MAX_FORMAT;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::server::{Journaled, Migration};

use super::super::device::VirtioDevice;
use super::PciFunction;

/// Where a device is in its migration.
#[derive(Debug)]
pub(super) struct Progress {
    state: DeviceState,
    /// The data being read or written.
    data: Vec<u8>,
    /// How much of it was read.
    read: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { state: DeviceState::Running, data: Vec::new(), read: 0 }
    }
}

impl<D: VirtioDevice> PciFunction<D> {
    fn header(&self) -> [u8; MAX_FORMAT] {
        let mut header = [0; MAX_FORMAT];
        let format = self.format().format;
        header[..format.len()].copy_from_slice(format.as_bytes());
        header
    }

    fn length(&self) -> usize {
        MAX_FORMAT + usize::try_from(self.format().size).expect("at most 1 MiB")
    }

    fn save(&self) -> Result<Vec<u8>, Errno> {
        let words = self.registers.save().map_err(|error| self.refuse_to_take(&error))?;
        let words = words.into_iter().flat_map(u64::to_le_bytes);
        Ok(self.header().into_iter().chain(words).take(self.length()).collect())
    }

    fn load(&mut self) -> Result<(), Errno> {
        let data = &self.migration.data;
        if data.len() != self.length() || !data.starts_with(&self.header()) {
            return Err(Errno::EPROTO);
        }
        let words = data[MAX_FORMAT..].chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let words: Vec<_> = words.collect();
        let configuration = self.registers.load(&words).map_err(|error| self.refuse_to_take(&error))?;
        self.config.restore(configuration);
        Ok(())
    }
}

impl<D: VirtioDevice> Migration for PciFunction<D> {
    fn state(&self) -> DeviceState {
        self.migration.state
    }

    fn transition(&mut self, to: DeviceState) -> Result<(), Errno> {
        let data = match (self.migration.state, to) {
            (DeviceState::Running, DeviceState::Stop) if self.registers.stop() => Vec::new(),
            (DeviceState::Running, DeviceState::Stop) => return Err(Errno::EBUSY),
            (DeviceState::Stop, DeviceState::StopCopy) => self.save()?,
            (DeviceState::Resuming, DeviceState::Stop) if !self.migration.data.is_empty() => {
                if let Err(errno) = self.load() {
                    self.migration = Progress { state: DeviceState::Error, ..Progress::default() };
                    return Err(errno);
                }
                Vec::new()
            }
            (DeviceState::Stop, DeviceState::Running) => {
                self.registers.go().map_err(|error| self.refuse_to_take(&error))?;
                Vec::new()
            }
            _ => Vec::new(),
        };
        self.migration = Progress { state: to, data, read: 0 };
        Ok(())
    }

    fn read_data(&mut self, data: &mut [u8]) -> Result<usize, Errno> {
        let Progress { data: saved, read, .. } = &mut self.migration;
        let rest = &saved[*read..];
        let count = rest.len().min(data.len());
        data[..count].copy_from_slice(&rest[..count]);
        *read += count;
        Ok(count)
    }

    fn write_data(&mut self, data: &[u8]) -> Result<(), Errno> {
        if self.migration.data.len() + data.len() > self.length() {
            return Err(Errno::EFBIG);
        }
        self.migration.data.extend_from_slice(data);
        Ok(())
    }
}
