//! A device for the payload's check `ports`, with I/O ports: `port-registers SOCKET`. The first half of them is offered as an
//! ioregionfd. Each half keeps four bytes at its start, and behind them tells by which path it was asked.

use std::error::Error;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use outrigger_protocol::ioregionfd::{Endpoint, Handler, Size, SocketType};
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION};
use outrigger_protocol::server::{
    ConfigSpace, Device, Interrupts, IoFd, IoFdKind, Irq, Listener, Memory, Options, Region, serve,
};

const PORTS: u32 = 0x20;
const HALF: u64 = 0x10;
/// Where the register is that tells the path, and its values.
const PATH: u64 = 4;
const BY_IOREGIONFD: u32 = 0x0f0f;
const BY_MESSAGE: u32 = 0x3e3e;
/// Of BAR 0 in configuration space: its lowest bit says "I/O space".
const BAR0_REGISTER: u64 = 0x10;

#[derive(Default)]
struct Kept(u32);

impl Kept {
    fn read(&self, offset: u64, path: u32) -> u32 {
        match offset {
            0 => self.0,
            PATH => path,
            _ => 0,
        }
    }
    fn write(&mut self, offset: u64, value: u32) {
        if offset == 0 {
            self.0 = value;
        }
    }
}

impl Handler for Kept {
    fn read(&mut self, _: u64, offset: u64, _: Size) -> u64 {
        Kept::read(self, offset, BY_IOREGIONFD).into()
    }
    fn write(&mut self, _: u64, offset: u64, _: Size, data: u64) {
        Kept::write(self, offset, u32::try_from(data).unwrap_or(u32::MAX));
    }
}

struct Ports {
    config: ConfigSpace,
    regions: [Region; 8],
    second: Kept,
    first: Option<Endpoint>,
}

impl Device for Ports {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[Irq] {
        self.config.irqs()
    }
    fn connected(&mut self, _: &Arc<Interrupts>) {
        self.first = Endpoint::start("ports", SocketType::Stream, Kept::default()).ok();
    }
    fn memory_changed(&mut self, _: &Memory) {}
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        if region != CONFIG_REGION {
            let value = self.second.read(offset % HALF, BY_MESSAGE).to_le_bytes();
            data.iter_mut().zip(value).for_each(|(byte, value)| *byte = value);
            return Ok(());
        }
        self.config.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
        let bar = (offset..).zip(data).find(|(at, _)| *at == BAR0_REGISTER);
        if let Some((_, byte)) = bar {
            *byte |= 1;
        }
        Ok(())
    }
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if region == CONFIG_REGION {
            self.config.write(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else {
            let value = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            self.second.write(offset % HALF, value);
        }
        Ok(())
    }
    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        let kind = IoFdKind::Ioregionfd { user_data: 1, posted_writes: false };
        let first = self.first.as_ref().filter(|_| region == BAR0_REGION);
        first.map(|first| IoFd { offset: 0, size: HALF, kind, pio: true, fd: first.as_fd() }).into_iter().collect()
    }
    fn reset(&mut self) {
        self.config.reset();
    }
    fn disconnected(&mut self) {
        self.first = None;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: port-registers SOCKET")?;
    let mut regions: [Region; 8] = Default::default();
    regions[BAR0_REGION as usize] = Region::messages(PORTS.into());
    regions[CONFIG_REGION as usize] = Region::messages(256);
    let config = ConfigSpace::new(0x1af4, 0x10f2, 0x08_80_00).with_bar(BAR0_REGION, PORTS);
    let mut device = Ports { config, regions, second: Kept::default(), first: None };
    let listener = Listener::bind(path.as_ref())?;
    loop {
        serve(&mut device, listener.accept()?, &Options::default())?;
    }
}
