//! Devices whose process is killed at every store that an access of the driver's brings about, and journals that a hijacked
//! process wrote.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;

use super::super::device::Identity;
use super::super::journal::{HeadSet, JournalError, Words, kill_points};
use super::super::worker::Work;
use super::*;
use crate::testing::{RAM_START, device_memory, ram};

const QUEUES: u16 = 2;

struct Still(Vec<u8>);

impl VirtioDevice for Still {
    fn identity(&self) -> Identity {
        Identity { device_type: 2, class: 0x01_80_00 }
    }
    fn name(&self) -> &'static str {
        "still"
    }
    fn features(&self) -> u64 {
        1 << 9
    }
    fn queues(&self) -> u16 {
        QUEUES
    }
    fn config(&self) -> &[u8] {
        &self.0
    }
    fn start(&mut self, _queue: u16, _features: u64) -> Result<Work, WorkerError> {
        Ok(Box::new(|_| Ok(())))
    }
}

/// The panic that ends a process.
struct Killed;

/// Runs `body` until it is killed before the store `kill`; returns whether it came to its end.
fn until_killed(kill: usize, body: impl FnOnce()) -> bool {
    let store = Cell::new(0);
    let before = move || {
        if store.replace(store.get() + 1) == kill {
            resume_unwind(Box::new(Killed));
        }
    };
    match catch_unwind(AssertUnwindSafe(|| kill_points::watch(before, body))) {
        Ok(()) => true,
        Err(payload) if payload.is::<Killed>() => false,
        Err(other) => resume_unwind(other),
    }
}

fn control(memory: &Memory) -> Control<Still> {
    let mut control = Control::new(Still(vec![7; 20]), Iommu::Absent).unwrap();
    control.end_suspend(memory);
    control
}

/// A device with a client's journal.
fn journaled(memory: &Memory) -> (Control<Still>, Words) {
    let mut control = control(memory);
    let words = Words::own(control.journal.count()).unwrap();
    control.move_journal(words.clone()).unwrap();
    (control, words)
}

/// A driver's writes: offsets and bytes. It makes mistakes, and begins again.
fn accesses() -> Vec<(u64, Vec<u8>)> {
    let mut accesses = Vec::new();
    let mut write = |offset: u64, data: &[u8]| accesses.push((offset, data.to_vec()));
    for round in 0u16..3 {
        write(0x14, &[1]);
        write(0x14, &[3]);
        for (select, half) in (0u32..).zip((1u64 << 32 | 1 << 40 | 1 << 9).to_le_bytes().chunks(4)) {
            write(0x00, &(1 - select).to_le_bytes());
            write(0x08, &select.to_le_bytes());
            write(0x0c, half);
        }
        write(0x14, &[0xb]);
        write(0x10, &[1, 0]);
        for queue in 0..QUEUES {
            let base = RAM_START + 0x8000 * u64::from(queue + round);
            write(0x16, &queue.to_le_bytes());
            write(0x18, &(16u16 << round).to_le_bytes());
            write(0x1a, &(queue + 1).to_le_bytes());
            write(0x20, &base.to_le_bytes());
            write(0x28, &(base + 0x2000).to_le_bytes());
            write(0x30, &base.to_le_bytes()[..4]);
            write(0x30, &(base + 0x4000).to_le_bytes()[..4]);
            write(0x34, &[0; 4]);
            if queue + round != 2 {
                write(0x1c, &[1, 0]);
            }
        }
        write(0x14, &[0xf]);
        // The second queue: reset, or enabled only now.
        write(0x3a, &[1, 0]);
        write(0x20, &(RAM_START + 0x3_0000).to_le_bytes());
        write(0x28, &(RAM_START + 0x3_2000).to_le_bytes());
        write(0x30, &(RAM_START + 0x3_4000).to_le_bytes());
        write(0x1c, &[1, 0]);
        write(0x16, &[0, 0]);
        write(0x3a, &[1, 0]);
        // A queue of three: the device needs a reset.
        write(0x18, &[3, 0]);
        write(0x1c, &[1, 0]);
        if round < 2 {
            write(0x14, &[0]);
        }
    }
    accesses
}

/// All that a driver can find out, and what follows from it.
fn seen(control: &Control<Still>) -> String {
    let queues =
        (0..QUEUES).map(|queue| (control.journal.queue(queue).next_used(), control.journal.queue(queue).in_flight()));
    let services = control.services.iter().map(|service| !matches!(service, Service::Off));
    format!(
        "{:?} {} {} {:?} {:?}",
        control.registers,
        control.signals.needs_reset(),
        control.signals.generation(),
        services.collect::<Vec<_>>(),
        queues.collect::<Vec<_>>(),
    )
}

/// One access, after which a running queue has something in flight.
fn access(control: &mut Control<Still>, (offset, data): &(u64, Vec<u8>)) {
    control.write(COMMON_OFFSET + offset, data);
    for queue in 0..QUEUES {
        let journal = control.journal.queue(queue);
        if matches!(control.services[usize::from(queue)], Service::Suspended { .. }) && journal.next_used() == 0 {
            journal.shown(&HeadSet::default(), &HeadSet([5, 0, 0, 0]), 9);
        }
    }
}

#[test]
fn killed_at_any_store_of_an_access_a_device_is_as_if_it_had_not_been() {
    let (_ram, file) = ram();
    let memory = device_memory(&file);
    let accesses = accesses();
    let (mut reference, _) = journaled(&memory);
    let expected: Vec<_> = accesses
        .iter()
        .map(|written| {
            access(&mut reference, written);
            seen(&reference)
        })
        .collect();
    for kill in 0.. {
        let mut whole = false;
        for again in [0, 1, 2, 5, 9, 14, 30, usize::MAX] {
            let (mut first, words) = journaled(&memory);
            let at = Cell::new(0);
            whole = until_killed(kill, || {
                for written in &accesses {
                    access(&mut first, written);
                    at.set(at.get() + 1);
                }
            });
            drop(first);
            // Its successor is killed while it takes over.
            let mut next = control(&memory);
            until_killed(again, || next.take(words.clone()).unwrap());
            let mut next = control(&memory);
            next.take(words).unwrap();
            // The access is done again whose answer did not come.
            for (written, expected) in accesses.iter().zip(&expected).skip(at.get()) {
                access(&mut next, written);
                assert_eq!(&seen(&next), expected, "store {kill}, {again}, access {}", at.get());
            }
        }
        if whole {
            assert!(kill > 3 * accesses.len(), "only {kill} stores");
            return;
        }
    }
}

#[test]
fn what_a_successor_lacks_it_refuses() {
    let (_ram, file) = ram();
    let memory = device_memory(&file);
    let (mut first, words) = journaled(&memory);
    let offer = |config: Vec<u8>, iommu| Control::new(Still(config), iommu).unwrap().offer(words.clone());
    assert_eq!(offer(vec![7; 20], Iommu::Absent), Ok(()));
    assert_eq!(offer(vec![8; 20], Iommu::Absent), Err(JournalError::Config));
    assert_eq!(offer(vec![7; 21], Iommu::Absent), Err(JournalError::Config));
    for word in [0, 1] {
        let right = words.load(word);
        words.store(word, right ^ 1 << 8);
        assert!(matches!(offer(vec![7; 20], Iommu::Absent), Err(JournalError::Format { .. })));
        words.store(word, right);
    }
    let few = Words::own(words.count() - 1).unwrap();
    assert!(matches!(control(&memory).offer(few), Err(JournalError::Size { .. })));
    assert!(matches!(control(&memory).offer(Words::own(words.count()).unwrap()), Err(JournalError::Format { .. })));
    // Features that the driver has seen offered, while it negotiates; then those it has accepted.
    let known = words.load(2);
    words.store(2, known | 1 << 50);
    assert_eq!(offer(vec![7; 20], Iommu::Absent), Ok(()));
    first.write(COMMON_OFFSET + 0x14, &[1]);
    assert_eq!(offer(vec![7; 20], Iommu::Absent), Err(JournalError::Features { missing: 1 << 50 }));
    accesses()[..9].iter().for_each(|written| access(&mut first, written));
    assert_eq!(offer(vec![7; 20], Iommu::Absent), Ok(()));
    let accepted = words.load(9);
    words.store(9, accepted | 1 << 33);
    assert_eq!(offer(vec![7; 20], Iommu::Absent), Err(JournalError::Features { missing: 1 << 33 }));
    assert_eq!(offer(vec![7; 20], Iommu::Possible), Ok(()));
}

#[test]
fn no_journal_makes_a_device_panic_or_beyond_a_reset() {
    let (_ram, file) = ram();
    let memory = device_memory(&file);
    let (mut first, words) = journaled(&memory);
    accesses()[..30].iter().for_each(|written| access(&mut first, written));
    let whole: Vec<_> = (0..words.count()).map(|word| words.load(word)).collect();
    let word = prop_oneof![3 => 8usize..12, 1 => 0..whole.len(), 4 => 88..whole.len()];
    let value = prop_oneof![any::<u64>(), (0u32..64).prop_map(|bit| 1 << bit), 0u64..1 << 20];
    let strategy = prop::collection::vec((word, value, any::<bool>()), 0..6);
    let mut runner = proptest::test_runner::TestRunner::default();
    let taken = Cell::new(0);
    let result = runner.run(&strategy, |changes| {
        let words = Words::own(whole.len()).unwrap();
        whole.iter().enumerate().for_each(|(word, &value)| words.store(word, value));
        for (word, value, flip) in changes {
            words.store(word, if flip { words.load(word) ^ value } else { value });
        }
        let mut control = control(&memory);
        let offered = control.offer(words.clone());
        let result = control.take(words);
        prop_assert_eq!(offered.is_ok(), result.is_ok());
        taken.set(taken.get() + u32::from(result.is_ok()));
        for written in &accesses() {
            access(&mut control, written);
        }
        control.write(COMMON_OFFSET + 0x14, &[0]);
        let mut status = [0xff];
        control.read(COMMON_OFFSET + 0x14, &mut status);
        prop_assert_eq!(status, [0]);
        Ok(())
    });
    result.unwrap();
    assert!(taken.get() > 20, "most are refused: {} were not", taken.get());
}
