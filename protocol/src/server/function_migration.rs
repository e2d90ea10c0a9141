//! Migration of a [`Function`] whose registers are bytes: what the guest wrote to configuration space, the level of the pin,
//! and the registers, as one stream.

use nix::errno::Errno;

use super::function::{Function, Registers, Shared};
use super::migration::Migration;
use crate::migration::DeviceState;

/// Where a function is in its migration.
#[derive(Debug)]
pub(super) struct Moving {
    state: DeviceState,
    /// The bytes still to be read, or written so far.
    data: Vec<u8>,
}

impl Default for Moving {
    fn default() -> Self {
        Self { state: DeviceState::Running, data: Vec::new() }
    }
}

impl<R: Registers> Shared<R> {
    fn save(&mut self) -> Vec<u8> {
        let registers = self.registers.state().map_or(&[][..], |state| state);
        [self.bus.config().bytes(), &[u8::from(self.bus.intx())], registers].concat()
    }

    /// Takes what another process has saved. None: it is not what this one would have saved.
    fn restore(&mut self, data: &[u8]) -> Option<()> {
        let (config, rest) = data.split_at_checked(self.bus.config().bytes().len())?;
        let (&intx, registers) = rest.split_first()?;
        let ours = self.registers.state()?;
        if registers.len() != ours.len() || intx > 1 {
            return None;
        }
        ours.copy_from_slice(registers);
        self.bus.restore(config, intx == 1);
        Some(())
    }
}

impl<R: Registers> Migration for Function<R> {
    fn state(&self) -> DeviceState {
        self.moving.state
    }

    fn transition(&mut self, to: DeviceState) -> Result<(), Errno> {
        match (self.moving.state, to) {
            // Posted writes come on another socket than this.
            (DeviceState::Running, _) => self.offered.settle()?,
            (_, DeviceState::StopCopy) => {
                let saved = self.shared().save();
                self.moving.data = saved;
            }
            (_, DeviceState::Resuming) => self.moving.data.clear(),
            (DeviceState::Resuming, _) => self.shared().restore(&self.moving.data).ok_or(Errno::EPROTO)?,
            // An interrupt that the other process raised and nobody has taken.
            (_, DeviceState::Running) => self.shared().bus.fire(),
            _ => {}
        }
        self.moving.state = to;
        Ok(())
    }

    fn read_data(&mut self, data: &mut [u8]) -> Result<usize, Errno> {
        let length = data.len().min(self.moving.data.len());
        data[..length].copy_from_slice(&self.moving.data[..length]);
        self.moving.data.drain(..length);
        Ok(length)
    }

    fn write_data(&mut self, data: &[u8]) -> Result<(), Errno> {
        let most = self.shared().save().len();
        if self.moving.data.len() + data.len() > most {
            return Err(Errno::E2BIG);
        }
        self.moving.data.extend_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::config_space::ConfigSpace;
    use super::super::device::Device;
    use super::super::function::Bus;
    use super::*;
    use crate::ioregionfd::{Requester, Size};
    use crate::pci::CONFIG_REGION;

    const COMMAND: u64 = 4;

    struct Word([u8; 4]);

    impl Registers for Word {
        fn read(&mut self, _bar: u32, offset: usize, data: &mut [u8]) {
            data.copy_from_slice(&self.0[offset..][..data.len()]);
        }

        fn write(&mut self, _bar: u32, offset: usize, data: &[u8], bus: &mut Bus) {
            self.0[offset..][..data.len()].copy_from_slice(data);
            bus.set_intx(self.0[0] != 0);
        }

        fn reset(&mut self) {
            self.0.fill(0);
        }

        fn state(&mut self) -> Option<&mut [u8]> {
            Some(&mut self.0)
        }
    }

    fn function() -> Function<Word> {
        let config = ConfigSpace::new(0x1af4, 0x10f0, 0x08_80_00).with_bar(0, 16).with_intx();
        Function::new(config, Word([0; 4])).with_doorbell(0, 0, 4)
    }

    fn go(function: &mut Function<Word>, way: &[DeviceState]) -> Result<(), Errno> {
        way.iter().try_for_each(|to| function.transition(*to))
    }

    /// A function's saved state, read a few bytes at a time.
    fn saved(function: &mut Function<Word>) -> Vec<u8> {
        go(function, &[DeviceState::Stop, DeviceState::StopCopy]).unwrap();
        let mut saved = Vec::new();
        let mut some = [0; 7];
        while let Ok(length @ 1..) = function.read_data(&mut some) {
            saved.extend_from_slice(&some[..length]);
        }
        saved
    }

    fn restore(function: &mut Function<Word>, data: &[u8]) -> Result<(), Errno> {
        go(function, &[DeviceState::Stop, DeviceState::Resuming])?;
        data.chunks(5).try_for_each(|data| function.write_data(data))?;
        go(function, &[DeviceState::Stop, DeviceState::Running])
    }

    #[test]
    fn a_function_goes_on_as_another_was() {
        let mut before = function();
        before.write(CONFIG_REGION, COMMAND, &[6, 4]).unwrap();
        before.write(0, 0, &[1, 2, 3, 4]).unwrap();
        let saved = saved(&mut before);
        let mut after = function();
        restore(&mut after, &saved).unwrap();
        assert_eq!(after.state(), DeviceState::Running);
        let (mut config, mut word) = ([0; 4], [0; 4]);
        after.read(CONFIG_REGION, COMMAND, &mut config).unwrap();
        after.read(0, 0, &mut word).unwrap();
        // Interrupts are forbidden and one is pending.
        assert_eq!((config, word), ([6, 4, 8, 0], [1, 2, 3, 4]));
        go(&mut after, &[DeviceState::Stop, DeviceState::StopCopy]).unwrap();
        let mut again = vec![0; saved.len() + 1];
        assert_eq!(after.read_data(&mut again), Ok(saved.len()));
        assert_eq!(again[..saved.len()], saved);
    }

    #[test]
    fn what_no_function_has_saved_is_refused_and_changes_nothing() {
        let saved = saved(&mut function());
        let mut after = function();
        after.write(0, 0, &[9; 4]).unwrap();
        for length in [0, 1, 256, saved.len() - 1] {
            assert_eq!(restore(&mut after, &saved[..length]), Err(Errno::EPROTO), "{length} bytes");
            after.moving = Moving::default();
        }
        assert_eq!(restore(&mut after, &[&saved[..], &[0]].concat()), Err(Errno::E2BIG));
        after.moving = Moving::default();
        let mut no_level = saved.clone();
        no_level[256] = 2;
        assert_eq!(restore(&mut after, &no_level), Err(Errno::EPROTO));
        let mut word = [0; 4];
        after.read(0, 0, &mut word).unwrap();
        assert_eq!(word, [9; 4]);
    }

    #[test]
    fn what_cannot_be_written_cannot_be_restored() {
        let mut saved = saved(&mut function());
        saved[..256].fill(0xff);
        let mut after = function();
        restore(&mut after, &saved).unwrap();
        let mut config = [0; 4];
        after.read(CONFIG_REGION, 0, &mut config).unwrap();
        assert_eq!(config, 0x10f0_1af4u32.to_le_bytes());
    }

    /// They are on their way on another socket than the one that asks for the state.
    #[test]
    fn posted_writes_are_done_before_the_state_is_saved() {
        for round in 1..200u32 {
            let mut before = function();
            let fd = before.io_fds(0)[0].fd.try_clone_to_owned().unwrap();
            let requester = Requester::new(std::sync::Arc::new(fd.into()), std::time::Duration::from_secs(20)).unwrap();
            for value in 0..20 {
                requester.write(0, 0, Size::Four, (round << 8 | value).into(), true).unwrap();
            }
            let saved = saved(&mut before);
            assert_eq!(saved[257..], (round << 8 | 19).to_le_bytes(), "round {round}");
        }
    }
}
