//! Which region of which device is decoded where. A place that two BARs claim belongs to the one that had it first, and
//! to the other when that one leaves (PCI Local Bus 3.0, section 6.2.5, leaves open what happens meanwhile).
//!
//! The lock here is the innermost: no device is asked, and no other lock of a device taken, while it is held.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::death::Cause;
use super::link::Link;
use super::peer_to_peer::PeerToPeer;
use super::region::{Placement, Region};
use crate::machine::bus::Bus;
use crate::machine::memslots::Memslots;
use crate::machine::vm::Vm;
use crate::pci::bar::Bar;
use crate::vcpu::ForeignMemory;

/// More than what file systems tell apart in their time stamps.
const TIME_STAMP: Duration = Duration::from_millis(20);

/// The guest's memory and port space as far as devices are in it.
pub struct AddressMap {
    pub(super) vm: Arc<Vm>,
    pub(super) memslots: Arc<Memslots>,
    pub(super) mmio: Arc<Bus>,
    pub(super) io: Arc<Bus>,
    /// Of the devices that are in it.
    pub(super) peers: PeerToPeer,
    claims: Mutex<Claims>,
}

#[derive(Default)]
struct Claims {
    next: u64,
    /// In the order in which they were made.
    by_number: BTreeMap<u64, Claimed>,
}

struct Claimed {
    region: Arc<Region>,
    bar: Bar,
    address: u64,
    /// None while another one has the place.
    placement: Option<Placement>,
}

/// A region's claim to an address, given up when dropped.
pub(super) struct Claim {
    map: Arc<AddressMap>,
    number: u64,
    pub(super) address: u64,
}

impl AddressMap {
    /// Nobody is there yet but what is on the buses.
    #[must_use]
    pub fn new(vm: Arc<Vm>, memslots: Arc<Memslots>, mmio: Arc<Bus>, io: Arc<Bus>) -> Arc<Self> {
        let (peers, claims) = Default::default();
        Arc::new(Self { vm, memslots, mmio, io, peers, claims })
    }

    /// Whose memory and ports these are.
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Puts a region at an address, at once or when the place becomes free.
    pub(super) fn claim(self: &Arc<Self>, region: &Arc<Region>, bar: &Bar, address: u64) -> Claim {
        let mut claims = self.claims();
        let placement = region.place(self, bar, address);
        let placement = placement.inspect_err(|error| region.warn_of_collision(error)).ok();
        let number = claims.next;
        claims.next += 1;
        claims.by_number.insert(number, Claimed { region: region.clone(), bar: *bar, address, placement });
        Claim { map: self.clone(), number, address }
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claims {
    fn placed(&self) -> impl Iterator<Item = &Claimed> {
        let claimed = self.by_number.values();
        claimed.filter(|claimed| claimed.placement.is_some() && claimed.region.link().lost().is_none())
    }

    /// Fails the links of devices whose memory is out of reach. Whether there are any.
    fn blame_memory(&self, again: bool) -> bool {
        let mut found = false;
        for claimed in self.placed() {
            if let Err(why) = claimed.region.check_reachable(again) {
                claimed.region.link().fail(Cause::TookMemory(why.to_string()));
                found = true;
            }
        }
        found
    }

    /// No memory is to blame: fails the links of devices whose hardware is not there, or of all hardware if all is.
    fn blame_hardware(&self) {
        let mut devices: Vec<(&Link, bool)> = Vec::new();
        for claimed in self.placed() {
            let Some(is_there) = claimed.region.is_hardware_there() else { continue };
            let link = claimed.region.link();
            match devices.iter_mut().find(|(other, _)| std::ptr::eq(*other, link)) {
                Some((_, others)) => *others |= is_there,
                None => devices.push((link, is_there)),
            }
        }
        let all = devices.iter().all(|(_, is_there)| *is_there);
        for (link, _) in devices.iter().filter(|(_, is_there)| all || !is_there) {
            link.fail(Cause::TookMemory("the hardware does not answer; its memory space may be disabled".to_owned()));
        }
    }

    /// Gives places that are free to those that wait for them.
    fn place_waiting(&mut self, map: &AddressMap) {
        for waiting in self.by_number.values_mut().filter(|claimed| claimed.placement.is_none()) {
            waiting.placement = waiting.region.place(map, &waiting.bar, waiting.address).ok();
        }
    }
}

impl ForeignMemory for AddressMap {
    fn withdraw_unreachable(&self, again: bool) -> bool {
        if again {
            // Long enough for a file that changes meanwhile to have another time stamp.
            thread::sleep(TIME_STAMP);
        }
        let mut claims = self.claims();
        if !claims.blame_memory(again) && again {
            claims.blame_hardware();
        }
        // At once, not only when the device's thread comes to it: the vCPU goes on, and must not fail again.
        let mut withdrawn = false;
        for claimed in claims.by_number.values_mut().filter(|claimed| claimed.region.link().lost().is_some()) {
            withdrawn |= claimed.placement.as_mut().is_some_and(Placement::suspend);
        }
        withdrawn
    }
}

impl Claim {
    /// Whether the region is where it is to be: no other one has the place.
    pub(super) fn is_placed(&self) -> bool {
        self.map.claims().by_number.get(&self.number).is_some_and(|claimed| claimed.placement.is_some())
    }

    /// Lets every access to the place come to the VMM from now on.
    pub(super) fn suspend(&self) {
        if let Some(claimed) = self.map.claims().by_number.get_mut(&self.number) {
            claimed.placement.as_mut().map(Placement::suspend);
        }
    }

    /// Puts `region`, which a successor serves, where its predecessor is, or waits to be.
    pub(super) fn hand_over(&self, region: &Arc<Region>) {
        let mut claims = self.map.claims();
        let Some(claimed) = claims.by_number.get_mut(&self.number) else { return };
        claimed.region = region.clone();
        if let Some(placement) = &mut claimed.placement {
            placement.hand_over(region, &self.map, &claimed.bar);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.map.claims();
        drop(claims.by_number.remove(&self.number));
        claims.place_waiting(&self.map);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use outrigger_protocol::client::RegionInfo;
    use outrigger_protocol::server::{self, Registers};
    use outrigger_protocol::wire::{REGION_READ, REGION_WRITE};

    use super::*;
    use crate::attach::Backplane;
    use crate::attach::dispatch::Served;
    use crate::attach::interrupts::Interrupts;
    use crate::attach::region::regions;
    use crate::attach::testing::{self, description};
    use crate::attach::warnings::Warnings;
    use crate::config::AllowedPaths;
    use crate::irq::Routes;
    use crate::machine::bus::BusDevice;
    use crate::pci::Slot;
    use crate::pci::bar::Kind;

    const SIZE: u64 = 0x1000;

    /// Reads as its number.
    struct Numbered(u8);

    impl Registers for Numbered {
        fn read(&mut self, _: u32, _: usize, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&mut self, _: u32, _: usize, _: &[u8], _: &mut server::Bus) {}
        fn reset(&mut self) {}
    }

    /// Like ECAM: always there.
    struct Fixed;

    impl BusDevice for Fixed {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(0xec);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn map() -> Arc<AddressMap> {
        let vm = Vm::new(1).unwrap();
        AddressMap::new(vm.clone(), Memslots::new(vm), Arc::default(), Arc::default())
    }

    fn region(map: &Arc<AddressMap>, number: u8) -> (Arc<Region>, Bar) {
        build(map, number, |_| ())
    }

    fn build(map: &Arc<AddressMap>, number: u8, adapt: impl FnOnce(&mut RegionInfo)) -> (Arc<Region>, Bar) {
        let mut description = description();
        description.regions[0].size = SIZE;
        adapt(&mut description.regions[0]);
        let routes = Routes::new(map.vm.clone()).unwrap();
        let interrupts = Interrupts::new(&map.vm, &routes, &description, 16).unwrap();
        let backplane = Backplane { addresses: map.clone(), routes, allowed: AllowedPaths::default() };
        let link = testing::link(Numbered(number));
        let warnings = Warnings::new(Slot(number));
        let served = Served::unsucceeded();
        let regions = regions(&link, &description, interrupts.msix.as_ref(), &served, &backplane, &warnings).unwrap();
        let kind = Kind::Memory32 { prefetchable: false };
        (regions[0].clone(), Bar { kind, size: SIZE, address: 0, enabled: true })
    }

    /// A region of which all is mapped from `file`.
    fn mapped_region(map: &Arc<AddressMap>, number: u8, file: &File) -> (Arc<Region>, Bar) {
        build(map, number, |region| {
            region.flags = REGION_READ | REGION_WRITE;
            region.fd = Some(file.try_clone().unwrap().into());
            region.areas = vec![(0, SIZE)];
        })
    }

    #[test]
    fn only_the_device_that_took_memory_away_is_withdrawn() {
        let map = map();
        let files = [1, 2].map(|_| File::from(memfd_create("bar", MFdFlags::MFD_CLOEXEC).unwrap()));
        files.iter().for_each(|file| file.set_len(SIZE).unwrap());
        let [(rude, bar), (honest, _)] =
            [1, 2].map(|number| mapped_region(&map, number, &files[usize::from(number) - 1]));
        let _claims = [map.claim(&rude, &bar, 0xc000_0000), map.claim(&honest, &bar, 0xc000_1000)];
        assert!(!map.withdraw_unreachable(false) && !map.withdraw_unreachable(true), "nothing is wrong yet");
        files[0].set_len(0).unwrap();
        assert!(map.withdraw_unreachable(false));
        assert_eq!(rude.link().lost(), Some(&Cause::TookMemory("its file was made shorter".to_owned())));
        assert_eq!(honest.link().lost(), None);
        assert_eq!((read(&map, 0xc000_0000), read(&map, 0xc000_1000)), (0xff, 2));
        assert!(!map.withdraw_unreachable(false), "it is gone already");
    }

    /// By each look it is as long as it was.
    #[test]
    fn a_device_whose_file_changes_while_accesses_fail_is_withdrawn() {
        let map = map();
        let file = File::from(memfd_create("bar", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(SIZE).unwrap();
        let (rude, bar) = mapped_region(&map, 1, &file);
        let _claim = map.claim(&rude, &bar, 0xc000_0000);
        let toggle = || [0, SIZE].map(|size| file.set_len(size).unwrap());
        toggle();
        assert!(!map.withdraw_unreachable(false));
        thread::sleep(TIME_STAMP);
        toggle();
        assert!(map.withdraw_unreachable(true));
    }

    fn read(map: &AddressMap, address: u64) -> u8 {
        let mut data = [0];
        map.mmio.read(address, &mut data);
        data[0]
    }

    #[test]
    fn what_lost_a_collision_comes_back_when_the_other_one_leaves() {
        let map = map();
        let [(one, bar), (two, _), (three, _)] = [1, 2, 3].map(|number| region(&map, number));
        let first = map.claim(&one, &bar, 0xc000_0000);
        let second = map.claim(&two, &bar, 0xc000_0000);
        let third = map.claim(&three, &bar, 0xc000_0000);
        assert_eq!(read(&map, 0xc000_0000), 1);
        drop(first);
        assert_eq!(read(&map, 0xc000_0000), 2, "the next one, in the order in which they came");
        let elsewhere = map.claim(&one, &bar, 0xc000_1000);
        drop(second);
        assert_eq!((read(&map, 0xc000_0000), read(&map, 0xc000_1000)), (3, 1));
        drop((third, elsewhere));
        assert_eq!((read(&map, 0xc000_0000), read(&map, 0xc000_1000)), (0xff, 0xff));
    }

    #[test]
    fn a_region_over_something_fixed_is_nowhere_until_it_moves_away() {
        let map = map();
        map.mmio.insert(0xe000_0000, 0x1000_0000, Arc::new(Fixed)).unwrap();
        let (one, bar) = region(&map, 1);
        let over = map.claim(&one, &bar, 0xe000_0000);
        assert_eq!(read(&map, 0xe000_0000), 0xec);
        drop(over);
        assert_eq!(read(&map, 0xe000_0000), 0xec, "what is fixed stays");
        let _moved = map.claim(&one, &bar, 0xc000_0000);
        assert_eq!(read(&map, 0xc000_0000), 1);
    }
}
