//! DMA from one physical device to the BARs of another (peer-to-peer), for devices that ask for it (`p2p=on`).
//!
//! The areas that such a device reaches are decided here, and here alone: of all other devices the parts of BARs that are
//! hardware and mapped, where the guest has put them, for as long as it lets them be decoded. VFIO maps what is decoded only, so
//! the order is: a device's own process is told to decode, and then the others' to map; and the other way round.
//!
//! The file of an area stays open for as long as the kernel may still map the area for another device, so that nobody else has
//! its device meanwhile: until a process has said that it is unmapped, or a successor has closed all that it was not told of.
//!
//! A device's state is locked before what is here, and the connections of other devices after it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::foreign::ForeignFd;

use super::death::Cause;
use super::link::Link;
use super::warnings::Warnings;
use crate::pci::Slot;

/// The devices that reach others, and the areas that are reached.
#[derive(Debug, Default)]
pub(super) struct PeerToPeer(Mutex<Peers>);

#[derive(Debug, Default)]
struct Peers {
    targets: Vec<(Slot, Target)>,
    initiators: Vec<Initiator>,
}

/// A part of a BAR.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: u64,
    pub(super) size: u64,
    /// The device's file.
    pub(super) file: Arc<ForeignFd>,
    pub(super) offset: u64,
}

/// A part of a device, by its offset in the device's file, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    owner: Slot,
    offset: u64,
    address: u64,
    size: u64,
}

/// A device that reaches others.
#[derive(Debug)]
struct Initiator {
    slot: Slot,
    link: Arc<Link>,
    warnings: Arc<Warnings>,
    /// The areas that its process has mapped.
    reached: Vec<(Place, Arc<ForeignFd>)>,
    /// The areas that its process does not map.
    refused: Vec<Place>,
    /// Files of areas that a process which is gone may have left mapped.
    left: Vec<Arc<ForeignFd>>,
    has_warned: bool,
}

impl PeerToPeer {
    /// The device in a slot reaches others. Again: another process is to serve it, behind `link`. It is told of the areas that its
    /// predecessor had mapped and that are still there, and takes these mappings over; of all others it is told by
    /// [`settle`](Self::settle).
    pub(super) fn join(&self, slot: Slot, link: &Arc<Link>, warnings: &Arc<Warnings>) {
        let mut peers = self.lock();
        let Peers { targets, initiators } = &mut *peers;
        let (link, warnings) = (link.clone(), warnings.clone());
        let (reached, refused, left) = Default::default();
        let mut next = Initiator { slot, link, warnings, reached, refused, left, has_warned: false };
        if let Some(at) = initiators.iter().position(|initiator| initiator.slot == slot) {
            next.go_on(initiators.swap_remove(at), targets);
        }
        initiators.push(next);
    }

    /// The device in a slot reaches nothing that its process was not told of. From now on it reaches all others.
    pub(super) fn settle(&self, slot: Slot) {
        let mut peers = self.lock();
        let Peers { targets, initiators } = &mut *peers;
        for initiator in initiators.iter_mut().filter(|initiator| initiator.slot == slot) {
            initiator.left.clear();
            initiator.follow(targets);
        }
    }

    /// The device in a slot is gone, and so is what the kernel mapped for it.
    pub(super) fn leave(&self, slot: Slot) {
        let mut peers = self.lock();
        peers.initiators.retain(|initiator| initiator.slot != slot);
        peers.change(|targets| targets.retain(|(owner, _)| *owner != slot));
    }

    /// Before a device decodes nothing but this any more: the others reach no more of it.
    pub(super) fn keep(&self, slot: Slot, kept: &[Target]) {
        let is_kept = |place: Place| kept.iter().any(|target| target.place(slot) == place);
        self.lock().change(|targets| {
            targets.retain(|(owner, target)| *owner != slot || is_kept(target.place(slot)));
        });
    }

    /// A device decodes this now.
    pub(super) fn show(&self, slot: Slot, shown: Vec<Target>) {
        self.lock().change(|targets| {
            for target in shown {
                let place = target.place(slot);
                if !targets.iter().any(|(owner, known)| known.place(*owner) == place) {
                    targets.push((slot, target));
                }
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Peers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// No process is asked for anything where `change` changes nothing.
    fn change(&mut self, change: impl FnOnce(&mut Vec<(Slot, Target)>)) {
        let places = |targets: &[(Slot, Target)]| -> Vec<_> {
            targets.iter().map(|(owner, target)| target.place(*owner)).collect()
        };
        let before = places(&self.targets);
        change(&mut self.targets);
        if places(&self.targets) != before {
            self.initiators.iter_mut().for_each(|initiator| initiator.follow(&self.targets));
        }
    }
}

impl Target {
    fn place(&self, owner: Slot) -> Place {
        Place { owner, offset: self.offset, address: self.address, size: self.size }
    }
}

impl Initiator {
    /// Takes over what the process before this one has mapped. Anything may be mapped until the kernel was asked.
    fn go_on(&mut self, before: Initiator, targets: &[(Slot, Target)]) {
        self.has_warned = before.has_warned;
        self.left = before.left;
        for (place, file) in before.reached {
            self.left.push(file.clone());
            if targets.iter().any(|(owner, target)| target.place(*owner) == place) {
                self.reach(place, file);
            }
        }
    }

    /// Lets the device reach the targets that are not its own, and nothing else. The guest waits meanwhile: a process whose
    /// answers together take longer than its deadline is lost.
    fn follow(&mut self, targets: &[(Slot, Target)]) {
        let others = targets.iter().filter(|(owner, _)| *owner != self.slot);
        let wanted: Vec<_> = others.map(|(owner, target)| (target.place(*owner), &target.file)).collect();
        let is_wanted = |place: &Place| wanted.iter().any(|(other, _)| other == place);
        let (kept, gone) = std::mem::take(&mut self.reached).into_iter().partition(|(place, _)| is_wanted(place));
        self.reached = kept;
        self.refused.retain(is_wanted);
        let end = Instant::now() + self.link.deadline();
        for (place, file) in gone {
            self.give_up(place, file);
            self.must_be_done_by(end);
        }
        for (place, file) in wanted {
            if !self.refused.contains(&place) && !self.reached.iter().any(|(known, _)| *known == place) {
                self.reach(place, file.clone());
                self.must_be_done_by(end);
            }
        }
    }

    fn must_be_done_by(&self, end: Instant) {
        if Instant::now() > end {
            self.link.fail(Cause::Silent);
        }
    }

    fn reach(&mut self, place: Place, file: Arc<ForeignFd>) {
        let given = Some((file.lend(), place.offset));
        match self.link.call(|client: &Client| client.dma_map(place.address, place.size, given)) {
            Ok(()) => self.reached.push((place, file)),
            // It may have been done.
            Err(error) if error.is_fatal() => self.left.push(file),
            Err(error) => {
                self.refused.push(place);
                self.warn(place, &error);
            }
        }
    }

    /// A process that does not unmap is of no use: the next one unmaps all that it was not told of.
    fn give_up(&mut self, place: Place, file: Arc<ForeignFd>) {
        let Err(error) = self.link.call(|client| client.dma_unmap(place.address, place.size)) else { return };
        self.left.push(file);
        if !error.is_fatal() {
            self.link.fail(Cause::Broken(format!("it does not unmap another device's BAR: {error}")));
        }
    }

    fn warn(&mut self, place: Place, error: &ClientError) {
        if !std::mem::replace(&mut self.has_warned, true) {
            let address = place.address;
            let warnings = &self.warnings;
            warnings.warn(format_args!("p2p=on: it does not reach the BAR at {address:#x} of another device: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use outrigger_protocol::client::Options;
    use outrigger_protocol::server::{self, Device, DmaRange, Interrupts, Irq, Memory, Region};

    use super::super::testing::NoMemory;
    use super::*;

    const SIZE: u64 = 0x1000;

    /// Says what is mapped and unmapped, by address.
    struct Recorder {
        told: Sender<(bool, u64)>,
        refuses: bool,
        takes: Duration,
    }

    impl Device for Recorder {
        fn regions(&self) -> &[Region] {
            &[]
        }
        fn irqs(&self) -> &[Irq] {
            &[]
        }
        fn connected(&mut self, _: &Arc<Interrupts>) {}
        fn disconnected(&mut self) {}
        fn reset(&mut self) {}
        fn memory_changed(&mut self, _: &Memory) {}
        fn map(&mut self, range: &DmaRange<'_>) -> Result<(), Errno> {
            thread::sleep(self.takes);
            self.told.send((true, range.address)).unwrap();
            if self.refuses { Err(Errno::EFAULT) } else { Ok(()) }
        }
        fn unmap(&mut self, range: &DmaRange<'_>) {
            // When the client leaves, nobody listens any more.
            let _ = self.told.send((false, range.address));
        }
        fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
            Err(Errno::EINVAL)
        }
        fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
            Err(Errno::EINVAL)
        }
    }

    fn initiator(refuses: bool) -> (Arc<Link>, Receiver<(bool, u64)>) {
        serve(|told| Recorder { told, refuses, takes: Duration::ZERO }, &Options::default())
    }

    fn serve(
        recorder: impl FnOnce(Sender<(bool, u64)>) -> Recorder,
        options: &Options,
    ) -> (Arc<Link>, Receiver<(bool, u64)>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (told, is_told) = channel();
        let mut recorder = recorder(told);
        thread::spawn(move || server::serve(&mut recorder, theirs, &server::Options::default()));
        (Arc::new(Link::new(Client::new(ours, Arc::new(NoMemory), options).unwrap(), options.deadline)), is_told)
    }

    fn target(address: u64) -> Target {
        let file = File::from(memfd_create("bar", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(2 * SIZE).unwrap();
        Target { address, size: SIZE, file: Arc::new(file.into()), offset: 0 }
    }

    fn told(is_told: &Receiver<(bool, u64)>) -> Vec<(bool, u64)> {
        is_told.try_iter().collect()
    }

    fn join(peers: &PeerToPeer, slot: u8, link: &Arc<Link>) {
        peers.join(Slot(slot), link, &Warnings::new(Slot(slot)));
        peers.settle(Slot(slot));
    }

    #[test]
    fn a_device_reaches_what_others_show_where_they_show_it() {
        let peers = PeerToPeer::default();
        let [(one, one_told), (two, two_told)] = [initiator(false), initiator(false)];
        join(&peers, 1, &one);
        peers.show(Slot(1), vec![target(0x10_0000)]);
        peers.show(Slot(3), vec![target(0x30_0000), target(0x31_0000)]);
        assert_eq!(told(&one_told), [(true, 0x30_0000), (true, 0x31_0000)], "not its own");
        join(&peers, 2, &two);
        assert_eq!(told(&two_told), [(true, 0x10_0000), (true, 0x30_0000), (true, 0x31_0000)]);

        // Moved: taken back first, and what stays is not touched.
        let moved = [target(0x31_0000), target(0x32_0000)];
        peers.keep(Slot(3), &moved);
        assert_eq!((told(&one_told), told(&two_told)), (vec![(false, 0x30_0000)], vec![(false, 0x30_0000)]));
        peers.show(Slot(3), moved.to_vec());
        assert_eq!((told(&one_told), told(&two_told)), (vec![(true, 0x32_0000)], vec![(true, 0x32_0000)]));

        peers.leave(Slot(1));
        assert_eq!((told(&one_told), told(&two_told)), (vec![], vec![(false, 0x10_0000)]));
        peers.leave(Slot(3));
        assert_eq!(told(&two_told), [(false, 0x31_0000), (false, 0x32_0000)]);
        let kept = target(0x40_0000);
        let file = Arc::downgrade(&kept.file);
        peers.show(Slot(4), vec![kept]);
        peers.leave(Slot(4));
        assert!(file.upgrade().is_none(), "a device that is gone is open still");
    }

    #[test]
    fn a_place_that_another_bar_has_now_is_another() {
        let peers = PeerToPeer::default();
        let (link, is_told) = initiator(false);
        join(&peers, 1, &link);
        peers.show(Slot(2), vec![target(0x20_0000)]);
        peers.show(Slot(3), vec![target(0x30_0000)]);
        told(&is_told);
        // Another device's, and another BAR of the same one.
        peers.keep(Slot(2), &[]);
        peers.keep(Slot(3), &[]);
        peers.show(Slot(3), vec![target(0x20_0000), Target { offset: SIZE, ..target(0x30_0000) }]);
        let expected = [(false, 0x20_0000), (false, 0x30_0000), (true, 0x20_0000), (true, 0x30_0000)];
        assert_eq!(told(&is_told), expected);
        peers.keep(Slot(3), &[Target { offset: SIZE, ..target(0x20_0000) }, target(0x30_0000)]);
        assert_eq!(told(&is_told), [(false, 0x20_0000), (false, 0x30_0000)]);
    }

    #[test]
    fn a_successor_is_told_at_first_of_what_its_predecessor_had_and_what_is_still_there() {
        let peers = PeerToPeer::default();
        let (link, is_told) = initiator(false);
        join(&peers, 1, &link);
        let gone = target(0x20_0000);
        let file = Arc::downgrade(&gone.file);
        peers.show(Slot(2), vec![gone]);
        peers.show(Slot(3), vec![target(0x30_0000)]);
        link.fail(Cause::HungUp);
        told(&is_told);
        // Meanwhile another device comes to the place of one that is gone.
        peers.leave(Slot(2));
        peers.show(Slot(4), vec![target(0x20_0000)]);
        assert!(file.upgrade().is_some(), "the kernel may still map it");

        let (successor, is_told) = initiator(false);
        peers.join(Slot(1), &successor, &Warnings::new(Slot(1)));
        assert_eq!(told(&is_told), [(true, 0x30_0000)]);
        assert!(file.upgrade().is_some(), "the successor has not closed it yet");
        peers.settle(Slot(1));
        assert_eq!(told(&is_told), [(true, 0x20_0000)]);
        assert!(file.upgrade().is_none(), "a device that is gone is open still");
    }

    #[test]
    fn a_process_that_does_not_unmap_is_lost() {
        let peers = PeerToPeer::default();
        let (link, _is_told) = initiator(false);
        join(&peers, 1, &link);
        let shown = target(0x20_0000);
        let file = Arc::downgrade(&shown.file);
        peers.show(Slot(2), vec![shown]);
        link.call(|client| client.dma_unmap(0x20_0000, SIZE)).unwrap();
        peers.leave(Slot(2));
        assert!(matches!(link.lost(), Some(Cause::Broken(_))), "{:?}", link.lost());
        assert!(file.upgrade().is_some(), "the kernel may still map it");
    }

    #[test]
    fn a_process_that_answers_each_time_just_in_time_is_lost() {
        let (takes, deadline) = (Duration::from_millis(400), Duration::from_millis(1000));
        let options = Options { deadline, ..Options::default() };
        let (link, is_told) = serve(|told| Recorder { told, refuses: false, takes }, &options);
        let peers = PeerToPeer::default();
        join(&peers, 1, &link);
        peers.show(Slot(2), (2..12).map(|place| target(place * 0x10_0000)).collect());
        assert_eq!(link.lost(), Some(&Cause::Silent));
        assert!(told(&is_told).len() < 10, "the guest waits for each answer");
    }

    #[test]
    fn what_is_refused_is_not_tried_again_and_said_once() {
        let peers = PeerToPeer::default();
        let (link, is_told) = initiator(true);
        join(&peers, 1, &link);
        peers.show(Slot(2), vec![target(0x20_0000)]);
        peers.show(Slot(3), vec![target(0x30_0000)]);
        assert_eq!(told(&is_told), [(true, 0x20_0000), (true, 0x30_0000)]);
        assert!(peers.0.lock().unwrap().initiators[0].has_warned);
        assert_eq!(link.lost(), None);
        peers.leave(Slot(2));
        assert_eq!(told(&is_told), [], "nothing to take back");
        peers.show(Slot(2), vec![target(0x20_0000)]);
        assert_eq!(told(&is_told), [(true, 0x20_0000)], "it has come back");
    }
}
