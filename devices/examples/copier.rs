//! A whole PCI device: registers, an interrupt, and DMA that copies guest memory. README.md, "Writing a device", runs it.
//!
//! BAR 0 keeps what is written to it. START is a doorbell that carries data, the number of bytes: it copies them from
//! address SOURCE to DESTINATION, leaves 1 (done) or 2 (failed) in STATUS, and raises the interrupt pin; a write to
//! STATUS lowers it. All that the device is are those bytes, so another process can go on with it: it migrates.

use std::error::Error;
use std::io::stdin;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use outrigger_protocol::server::{Bus, ConfigSpace, Function, Listener, Memory, Options, Registers, serve};

const SOURCE: usize = 0x00;
const DESTINATION: usize = 0x08;
const START: usize = 0x10;
const STATUS: usize = 0x1c;

struct Copier([u8; 4096]);

impl Copier {
    fn register(&self, at: usize) -> u64 {
        (0..8).fold(0, |value, byte| value | u64::from(self.0[at + byte]) << (8 * byte))
    }

    fn copy(&self, memory: &Memory) -> Result<(), Box<dyn Error>> {
        // Checked before allocating: less than 64 KiB at a time.
        let mut buffer = vec![0; u16::try_from(self.register(START))?.into()];
        memory.read(self.register(SOURCE), &mut buffer)?;
        Ok(memory.write(self.register(DESTINATION), &buffer)?)
    }
}

impl Registers for Copier {
    fn read(&mut self, _bar: u32, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.0[offset..][..data.len()]);
    }

    fn write(&mut self, _bar: u32, offset: usize, data: &[u8], bus: &mut Bus) {
        self.0[offset..][..data.len()].copy_from_slice(data);
        if offset == START {
            self.0[STATUS] = if self.copy(bus.memory()).is_ok() { 1 } else { 2 };
        }
        if offset == START || offset == STATUS {
            bus.set_intx(offset == START);
        }
    }

    fn reset(&mut self) {
        self.0.fill(0);
    }

    fn state(&mut self) -> Option<&mut [u8]> {
        Some(&mut self.0)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args_os().nth(1).ok_or("usage: copier SOCKET")?;
    let config = ConfigSpace::new(0x1af4, 0x10f0, 0x08_80_00).with_bar(0, 4096).with_intx();
    let mut device = Function::new(config, Copier([0; 4096])).with_doorbell(0, START as u64, 8);
    if argument == "--options" {
        // Outrigger has started this, and standard input is the socket: docs/DEVICE-PROGRAMS.md.
        let stream = UnixStream::from(stdin().as_fd().try_clone_to_owned()?);
        return Ok(serve(&mut device, stream, &Options::default())?);
    }
    let listener = Listener::bind(argument.as_ref())?;
    loop {
        let served = serve(&mut device, listener.accept()?, &Options::default());
        served.unwrap_or_else(|error| eprintln!("copier: {error}"));
    }
}
