//! Fixtures for the tests of several files here: a server that is there, and descriptions made by hand.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use outrigger_protocol::client::{Client, ClientMemory, Options, RegionInfo};
use outrigger_protocol::server::{self, ConfigSpace, Function, Registers};

use super::discovery::Description;
use super::link::Link;
use crate::pci::bar::Bars;

/// No memory at all.
#[derive(Debug)]
pub(super) struct NoMemory;

impl ClientMemory for NoMemory {
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

/// A connection to a server of `registers` behind a BAR 0 of 4 KiB.
pub(super) fn link(registers: impl Registers) -> Arc<Link> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || {
        let config = ConfigSpace::new(0x1af4, 0x10f1, 0x08_80_00).with_bar(0, 0x1000);
        server::serve(&mut Function::new(config, registers), theirs, &server::Options::default())
    });
    let options = Options::default();
    Arc::new(Link::new(Client::new(ours, Arc::new(NoMemory), &options).unwrap(), options.deadline))
}

/// Nothing behind any register.
pub(super) struct Nothing;

impl Registers for Nothing {
    fn read(&mut self, _: u32, _: usize, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&mut self, _: u32, _: usize, _: &[u8], _: &mut server::Bus) {}
    fn reset(&mut self) {}
}

/// A device without anything but configuration space.
pub(super) fn description() -> Description {
    let absent = |index| RegionInfo { index, flags: 0, size: 0, offset: 0, fd: None, areas: vec![], region_type: None };
    Description {
        resettable: true,
        config: vec![0; 256],
        regions: (0..7).map(absent).collect(),
        io_fds: vec![Vec::new(); 7],
        bars: Bars::default(),
        flr: None,
        intx: false,
        msi: None,
        msix: None,
    }
}
