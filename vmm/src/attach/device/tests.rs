//! A device on the bus, against a server that says what it was told.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::errno::Errno;
use outrigger_protocol::client::{Client, Options};
use outrigger_protocol::pci::{NUM_IRQS, NUM_REGIONS};
use outrigger_protocol::server::{self, Interrupts as ServerInterrupts, Irq, Memory, Region};

use super::*;
use crate::attach::address_map::AddressMap;
use crate::attach::death::Cause;
use crate::attach::discovery::discover;
use crate::attach::testing::NoMemory;
use crate::config::AllowedPaths;
use crate::irq::Routes;
use crate::machine::layout::AddressRange;
use crate::machine::memslots::Memslots;
use crate::machine::vm::Vm;

/// A write to configuration space, or a reset.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Write(u64, u32),
    Reset,
}

/// BAR 0 of 4 KiB, BAR 2 of 64 bits and 64 KiB, and a ROM of 4 KiB.
struct Server {
    regions: Vec<Region>,
    irqs: Vec<Irq>,
    told: Sender<Told>,
    /// Its own copy of BAR 0: as long as that is empty, it does not answer there.
    bar: u32,
    /// Its BARs are nobody's business but its own.
    refuses_bars: bool,
}

impl server::Device for Server {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[Irq] {
        &self.irqs
    }
    fn connected(&mut self, _: &Arc<ServerInterrupts>) {}
    fn memory_changed(&mut self, _: &Memory) {}
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let mut config = [0; 256];
        config[..4].copy_from_slice(&0x1042_1af4u32.to_le_bytes());
        config[0x18] = 0x4;
        let offset = usize::try_from(offset).unwrap();
        match region {
            0 if self.bar == 0 => return Err(Errno::EINVAL),
            0 => data.fill(0x77),
            CONFIG_REGION => data.copy_from_slice(&config[offset..offset + data.len()]),
            _ => data.fill(0),
        }
        Ok(())
    }
    fn write(&mut self, _: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let mut value = [0; 4];
        value[..data.len()].copy_from_slice(data);
        self.told.send(Told::Write(offset, u32::from_le_bytes(value))).unwrap();
        if offset == 0x10 {
            self.bar = u32::from_le_bytes(value);
        }
        let bar = (0x10..0x28).contains(&offset) || (0x30..0x34).contains(&offset);
        if bar && self.refuses_bars { Err(Errno::EINVAL) } else { Ok(()) }
    }
    fn reset(&mut self) {
        self.told.send(Told::Reset).unwrap();
    }
    fn disconnected(&mut self) {}
}

/// Connects to a new one, and asks what it is.
fn serve(refuses_bars: bool) -> (Arc<Link>, Description, Receiver<Told>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (told, is_told) = channel();
    thread::spawn(move || {
        let mut regions: Vec<Region> = (0..NUM_REGIONS).map(|_| Region::default()).collect();
        for (index, size) in [(0, 0x1000), (2, 0x1_0000), (ROM, 0x1000), (CONFIG_REGION as usize, 256)] {
            regions[index] = Region::messages(size);
        }
        let irqs = (0..NUM_IRQS).map(|_| Irq::default()).collect();
        let mut server = Server { regions, irqs, told, bar: 0, refuses_bars };
        server::serve(&mut server, theirs, &server::Options::default())
    });
    let client = Client::new(ours, Arc::new(NoMemory), &Options::default()).unwrap();
    let description = discover(&client).unwrap();
    (Arc::new(Link::new(client, Options::default().deadline)), description, is_told)
}

fn attach(refuses_bars: bool) -> (Device, Arc<BusMaster>, Receiver<Told>) {
    let (link, description, is_told) = serve(refuses_bars);
    let vm = Vm::new(1).unwrap();
    let backplane = Backplane {
        addresses: AddressMap::new(vm.clone(), Memslots::new(vm.clone()), Arc::default(), Arc::default()),
        routes: Routes::new(vm).unwrap(),
        allowed: AllowedPaths::default(),
    };
    let mut windows = Windows::new(
        AddressRange::new(0xc000_0000, 0xd000_0000),
        AddressRange::new(1 << 32, 1 << 33),
        AddressRange::new(0x1000, 0x2000),
    );
    let bus_master = Arc::new(BusMaster::default());
    let (slot, generations) = (Slot(1), Arc::default());
    let place = Place { slot, bus_master: bus_master.clone(), generations, can_be_succeeded: false, p2p: false };
    let device = Device::new(place, link, &description, &backplane, &mut windows).unwrap();
    (device, bus_master, is_told)
}

fn write(device: &Device, register: u16, value: u32) {
    device.config_write(register, &value.to_le_bytes());
}

fn read(device: &Device, register: u16) -> u32 {
    let mut data = [0; 4];
    device.config_read(register, &mut data);
    u32::from_le_bytes(data)
}

const PLACED: [Told; 4] =
    [Told::Write(0x10, 0xc000_0000), Told::Write(0x18, 4), Told::Write(0x1c, 1), Told::Write(0x30, 0xc000_1000)];

/// Some servers, QEMU's among them, find a BAR by their own copy of the register.
#[test]
fn the_server_is_told_where_the_bars_are() {
    let (device, _, told) = attach(false);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), PLACED, "where the VMM put them");
    write(&device, 0x18, 0xffff_ffff);
    write(&device, 0x1c, 0x2);
    device.config_write(0x31, &[0x34]);
    let expected = [Told::Write(0x18, 0xffff_ffff), Told::Write(0x1c, 2), Told::Write(0x31, 0x34)];
    assert_eq!(told.try_iter().collect::<Vec<_>>(), expected, "what the guest wrote");
    assert_eq!((read(&device, 0x18), read(&device, 0x1c)), (0xffff_0004, 2));
    device.reset();
    let mut expected = vec![Told::Reset];
    expected.extend([(0x10, 0), (0x18, 4), (0x1c, 0), (0x30, 0)].map(|(at, value)| Told::Write(at, value)));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_server_that_needs_its_own_copy_answers() {
    let (device, _, _told) = attach(false);
    device.config_write(register::COMMAND, &command::MEMORY.to_le_bytes());
    let mut data = [0; 4];
    device.backplane.addresses.mmio.read(0xc000_0000, &mut data);
    assert_eq!(data, [0x77; 4]);
    write(&device, 0x10, 0);
    write(&device, 0x10, 0xc100_0000);
    device.backplane.addresses.mmio.read(0xc100_0000, &mut data);
    assert_eq!(data, [0x77; 4]);
}

#[test]
fn a_server_that_refuses_bars_is_no_worse_off() {
    let (device, _, told) = attach(true);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), PLACED);
    write(&device, 0x10, 0xc123_4567);
    assert_eq!(read(&device, 0x10), 0xc123_4000);
    device.reset();
    assert_eq!((read(&device, 0x10), read(&device, 0)), (0, 0x1042_1af4));
}

#[test]
fn bus_mastering_follows_the_command_register() {
    let (device, bus_master, _told) = attach(false);
    assert!(!bus_master.is_on());
    device.config_write(register::COMMAND, &command::BUS_MASTER.to_le_bytes());
    assert!(bus_master.is_on());
    device.reset();
    assert!(!bus_master.is_on());
}

/// Two accesses, one by message and one to configuration space, that a guest makes while nothing serves the device.
fn access_while_lost(device: &Arc<Device>) -> [thread::JoinHandle<u32>; 2] {
    let (bus, function) = (device.clone(), device.clone());
    let by_message = thread::spawn(move || {
        let mut data = [0; 4];
        bus.backplane.addresses.mmio.read(0xc000_0000, &mut data);
        u32::from_le_bytes(data)
    });
    let by_config = thread::spawn(move || read(&function, 0));
    let accesses = [by_message, by_config];
    thread::sleep(std::time::Duration::from_millis(50));
    assert!(accesses.iter().all(|access| !access.is_finished()), "an access is answered by nobody");
    accesses
}

fn lose_link(device: &Device) {
    device.lock().link().unwrap().fail(Cause::HungUp);
}

#[test]
fn accesses_wait_for_the_successor_and_are_done_there() {
    let (device, _, _told) = attach(false);
    let device = Arc::new(device);
    device.config_write(register::COMMAND, &command::MEMORY.to_le_bytes());
    write(&device, 0x44, 0x1234_5678);
    lose_link(&device);
    let accesses = access_while_lost(&device);
    let (link, description, told) = serve(false);
    assert_eq!(device.difference(&description), None);
    let successor = device.prepare(link, &description).unwrap();
    assert!(successor.is_next(&device.generations));
    device.succeed(successor, Knows::Nothing, |_| Ok(())).unwrap();
    assert_eq!(accesses.map(|access| access.join().unwrap()), [0x7777_7777, 0x1042_1af4]);
    let mut expected = vec![Told::Reset, Told::Write(0x44, 0x1234_5678), Told::Write(4, command::MEMORY.into())];
    expected.extend(PLACED);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), expected, "a server that knows nothing");
}

/// One that knows everything is not told what its predecessor was, but where its BARs are.
#[test]
fn a_successor_that_fails_leaves_the_place_to_the_next() {
    let (device, _, _told) = attach(false);
    let device = Arc::new(device);
    device.config_write(register::COMMAND, &command::MEMORY.to_le_bytes());
    write(&device, 0x44, 1);
    lose_link(&device);
    let accesses = access_while_lost(&device);
    for take_fails in [true, false] {
        let (link, description, told) = serve(false);
        let successor = device.prepare(link.clone(), &description).unwrap();
        let taken = device.succeed(successor, Knows::Everything, |client| {
            if take_fails {
                client.close();
            }
            client.device_info().map(drop)
        });
        assert_eq!((taken.is_err(), link.lost().is_some()), (take_fails, take_fails));
        let expected = if take_fails { [].as_slice() } else { &PLACED };
        assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
    }
    assert_eq!(accesses.map(|access| access.join().unwrap()), [0x7777_7777, 0x1042_1af4]);
}

#[test]
fn accesses_that_wait_read_all_ones_once_the_device_is_withdrawn() {
    let (device, _, _told) = attach(false);
    let device = Arc::new(device);
    device.config_write(register::COMMAND, &command::MEMORY.to_le_bytes());
    lose_link(&device);
    let accesses = access_while_lost(&device);
    assert!(device.withdraw() && !device.withdraw());
    assert_eq!(accesses.map(|access| access.join().unwrap()), [u32::MAX; 2]);
    let (link, description, told) = serve(false);
    let late = device.prepare(link, &description).unwrap();
    device.succeed(late, Knows::Nothing, |_| Ok(())).unwrap();
    assert_eq!((told.try_iter().count(), read(&device, 0)), (0, u32::MAX), "it stays withdrawn");
}
