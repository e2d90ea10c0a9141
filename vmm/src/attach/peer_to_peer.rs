//! DMA from one physical device to the BARs of another (peer-to-peer), for devices that ask for it (`p2p=on`).
//!
//! It is decided here, and here alone, what such a device reaches: of all other devices the parts of BARs that are hardware
//! and mapped, where the guest has put them, for as long as it lets them be decoded. VFIO maps what is decoded only, so the
//! order is: a device's own process is told to decode, and then the others' to map; and the other way round.
//!
//! A device's state is locked before what is here, and the connections of other devices after it.

use std::sync::{Arc, Mutex, PoisonError};

use outrigger_protocol::client::{Client, ClientError};
use outrigger_protocol::foreign::ForeignFd;

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
    /// The device's file, which stays open for as long as this is a target.
    pub(super) file: Arc<ForeignFd>,
    pub(super) offset: u64,
}

/// A device that reaches others.
#[derive(Debug)]
struct Initiator {
    slot: Slot,
    link: Arc<Link>,
    warnings: Arc<Warnings>,
    /// The areas that its process has mapped: addresses and sizes.
    mapped: Vec<(u64, u64)>,
    has_warned: bool,
}

impl Target {
    fn place(&self) -> (u64, u64) {
        (self.address, self.size)
    }
}

impl PeerToPeer {
    /// The device in a slot reaches all others from now on. Again: another process serves it, behind `link`.
    pub(super) fn join(&self, slot: Slot, link: &Arc<Link>, warnings: &Arc<Warnings>) {
        self.change(|peers| {
            let before = peers.initiators.iter().position(|initiator| initiator.slot == slot);
            let has_warned = before.is_some_and(|before| peers.initiators.swap_remove(before).has_warned);
            let (link, warnings) = (link.clone(), warnings.clone());
            peers.initiators.push(Initiator { slot, link, warnings, mapped: Vec::new(), has_warned });
        });
    }

    /// The device in a slot is gone.
    pub(super) fn leave(&self, slot: Slot) {
        self.change(|peers| {
            peers.initiators.retain(|initiator| initiator.slot != slot);
            peers.targets.retain(|(owner, _)| *owner != slot);
        });
    }

    /// Before a device decodes nothing but this any more: the others reach no more of it.
    pub(super) fn keep(&self, slot: Slot, targets: &[Target]) {
        let is_kept = |target: &Target| targets.iter().any(|kept| kept.place() == target.place());
        self.change(|peers| peers.targets.retain(|(owner, target)| *owner != slot || is_kept(target)));
    }

    /// A device decodes this now.
    pub(super) fn show(&self, slot: Slot, targets: Vec<Target>) {
        self.change(|peers| {
            for target in targets {
                if !peers.targets.iter().any(|(owner, known)| *owner == slot && known.place() == target.place()) {
                    peers.targets.push((slot, target));
                }
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Peers)) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut peers);
        let Peers { targets, initiators } = &mut *peers;
        initiators.iter_mut().for_each(|initiator| initiator.follow(targets));
    }
}

impl Initiator {
    /// Lets the device reach the targets that are not its own, and nothing else.
    fn follow(&mut self, targets: &[(Slot, Target)]) {
        let Self { slot, link, warnings, mapped, has_warned } = self;
        let others = || targets.iter().filter(|(owner, _)| owner != slot).map(|(_, target)| target);
        let mut warn = |error: ClientError, what: &str, address: u64| {
            if !error.is_fatal() && !std::mem::replace(has_warned, true) {
                warnings.warn(format_args!("p2p=on: {what} at {address:#x} of another device: {error}"));
            }
        };
        mapped.retain(|&(address, size)| {
            let is_kept = others().any(|target| target.place() == (address, size));
            if !is_kept && let Err(error) = link.call(|client| client.dma_unmap(address, size)) {
                warn(error, "it still reaches what was", address);
            }
            is_kept
        });
        for target in others() {
            if mapped.contains(&target.place()) {
                continue;
            }
            let file = Some((target.file.lend(), target.offset));
            match link.call(|client: &Client| client.dma_map(target.address, target.size, file)) {
                Ok(()) => mapped.push(target.place()),
                Err(error) => warn(error, "it does not reach the BAR", target.address),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

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
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (told, is_told) = channel();
        thread::spawn(move || server::serve(&mut Recorder { told, refuses }, theirs, &server::Options::default()));
        let options = Options::default();
        (Arc::new(Link::new(Client::new(ours, Arc::new(NoMemory), &options).unwrap(), options.deadline)), is_told)
    }

    fn target(address: u64) -> Target {
        let file = File::from(memfd_create("bar", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(SIZE).unwrap();
        Target { address, size: SIZE, file: Arc::new(file.into()), offset: 0 }
    }

    fn told(is_told: &Receiver<(bool, u64)>) -> Vec<(bool, u64)> {
        is_told.try_iter().collect()
    }

    #[test]
    fn a_device_reaches_what_others_show_where_they_show_it() {
        let peers = PeerToPeer::default();
        let warnings = [1, 2].map(|slot| Warnings::new(Slot(slot)));
        let [(one, one_told), (two, two_told)] = [initiator(false), initiator(false)];
        peers.join(Slot(1), &one, &warnings[0]);
        peers.show(Slot(1), vec![target(0x10_0000)]);
        peers.show(Slot(3), vec![target(0x30_0000), target(0x31_0000)]);
        assert_eq!(told(&one_told), [(true, 0x30_0000), (true, 0x31_0000)], "not its own");
        peers.join(Slot(2), &two, &warnings[1]);
        assert_eq!(told(&two_told), [(true, 0x10_0000), (true, 0x30_0000), (true, 0x31_0000)]);

        // Moved: taken back first, and what stays is not touched, whatever file it is of.
        let moved = [target(0x31_0000), target(0x32_0000)];
        peers.keep(Slot(3), &moved);
        assert_eq!((told(&one_told), told(&two_told)), (vec![(false, 0x30_0000)], vec![(false, 0x30_0000)]));
        peers.show(Slot(3), moved.to_vec());
        assert_eq!((told(&one_told), told(&two_told)), (vec![(true, 0x32_0000)], vec![(true, 0x32_0000)]));

        // A successor is told of everything.
        let (successor, is_told) = initiator(false);
        peers.join(Slot(1), &successor, &warnings[0]);
        assert_eq!(told(&is_told), [(true, 0x31_0000), (true, 0x32_0000)]);
        assert_eq!(told(&one_told), []);

        peers.leave(Slot(1));
        assert_eq!((told(&is_told), told(&two_told)), (vec![], vec![(false, 0x10_0000)]));
        peers.leave(Slot(3));
        assert_eq!(told(&two_told), [(false, 0x31_0000), (false, 0x32_0000)]);
        let kept = target(0x40_0000);
        let file = Arc::downgrade(&kept.file);
        peers.show(Slot(4), vec![kept]);
        peers.leave(Slot(4));
        assert!(file.upgrade().is_none(), "a device that is gone is open still");
    }

    #[test]
    fn what_is_refused_is_tried_again_and_said_once() {
        let peers = PeerToPeer::default();
        let (link, is_told) = initiator(true);
        peers.join(Slot(1), &link, &Warnings::new(Slot(1)));
        peers.show(Slot(2), vec![target(0x20_0000)]);
        peers.show(Slot(3), vec![target(0x30_0000)]);
        assert_eq!(told(&is_told), [(true, 0x20_0000), (true, 0x20_0000), (true, 0x30_0000)]);
        assert!(peers.0.lock().unwrap().initiators[0].has_warned);
        assert_eq!(link.lost(), None);
        peers.leave(Slot(2));
        assert_eq!(told(&is_told), [(true, 0x30_0000)], "nothing to take back");
    }
}
