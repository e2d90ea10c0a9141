//! A device program without a journal that migrates, as Outrigger starts it. Register 0 of BAR 0 returns what was written to it last; its
//! state is that word, many times over, so that it takes more than one message. Under a name that ends with `-stays` it does not migrate,
//! and with `-refuses` it takes no state.

use std::error::Error;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use outrigger_protocol::migration::DeviceState;
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION};
use outrigger_protocol::server::{ConfigSpace, Device, Interrupts, Irq, Memory, Migration, Options, Region, serve};

const BAR_SIZE: u32 = 0x1000;
/// Bytes of the state: more than are copied at once, and no multiple of that.
const STATE: usize = (600 << 10) + 4;

struct Kept {
    config: ConfigSpace,
    regions: [Region; 8],
    value: u32,
    migrates: bool,
    /// Takes no state, like a build that does not know it.
    refuses: bool,
    state: DeviceState,
    data: Vec<u8>,
}

impl Device for Kept {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[Irq] {
        self.config.irqs()
    }
    fn connected(&mut self, _: &Arc<Interrupts>) {}
    fn memory_changed(&mut self, _: &Memory) {}
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        if region == CONFIG_REGION {
            self.config.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else {
            data.iter_mut().zip(self.value.to_le_bytes()).for_each(|(byte, value)| *byte = value);
        }
        Ok(())
    }
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if self.state != DeviceState::Running {
            eprintln!("migrating-device: written to while stopped");
        }
        if region == CONFIG_REGION {
            self.config.write(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else {
            self.value = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        }
        Ok(())
    }
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        self.migrates.then_some(self)
    }
    fn reset(&mut self) {
        self.config.reset();
        (self.value, self.state) = (0, DeviceState::Running);
    }
    fn disconnected(&mut self) {}
}

impl Migration for Kept {
    fn state(&self) -> DeviceState {
        self.state
    }
    fn transition(&mut self, to: DeviceState) -> Result<(), Errno> {
        match (self.state, to) {
            (_, DeviceState::StopCopy) => self.data = self.value.to_le_bytes().repeat(STATE / 4),
            (_, DeviceState::Resuming) => self.data.clear(),
            (DeviceState::Resuming, _) if self.refuses || self.data.len() != STATE => return Err(Errno::EPROTO),
            (DeviceState::Resuming, _) => {
                let word = self.data.last_chunk().copied().unwrap_or_default();
                self.value = u32::from_le_bytes(word);
            }
            _ => {}
        }
        self.state = to;
        Ok(())
    }
    fn read_data(&mut self, data: &mut [u8]) -> Result<usize, Errno> {
        let length = data.len().min(self.data.len());
        data[..length].copy_from_slice(&self.data[..length]);
        self.data.drain(..length);
        Ok(length)
    }
    fn write_data(&mut self, data: &[u8]) -> Result<(), Errno> {
        self.data.extend_from_slice(data);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().next().unwrap_or_default();
    let mut regions: [Region; 8] = Default::default();
    regions[BAR0_REGION as usize] = Region::messages(BAR_SIZE.into());
    regions[CONFIG_REGION as usize] = Region::messages(256);
    let config = ConfigSpace::new(0x1af4, 0x10f4, 0x08_80_00).with_bar(BAR0_REGION, BAR_SIZE);
    let (migrates, refuses) = (!name.ends_with("-stays"), name.ends_with("-refuses"));
    let (value, state, data) = (0, DeviceState::Running, Vec::new());
    let mut device = Kept { config, regions, value, migrates, refuses, state, data };
    // SAFETY: standard input is the socket, by the contract of device programs, and nothing else here uses it.
    let stream = unsafe { UnixStream::from_raw_fd(0) };
    serve(&mut device, stream, &Options::default())?;
    Ok(())
}
