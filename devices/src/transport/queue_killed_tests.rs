//! Queues whose process is killed at every store, and journals that a hijacked process wrote.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::journal::kill_points;
use super::*;
use crate::testing::{BUFFERS, RAM_SIZE, RAM_START, device_memory, device_memory_in_pieces, ram};

const SIZE: u16 = 8;
const DESCRIPTORS: u64 = RAM_START;
const DRIVER: u64 = RAM_START + 0x1000;
/// Across the end of a page.
const DEVICE: u64 = RAM_START + PAGES - 36;
const PAGES: u64 = 0x3000;
/// Indices wrap in the middle.
const FIRST: u16 = u16::MAX - 20;
const REQUESTS: usize = 48;

fn layout() -> QueueLayout {
    QueueLayout::new(SIZE, DESCRIPTORS, DRIVER, DEVICE).unwrap()
}

/// The panic that ends a process.
struct Killed;

/// A driver that makes one request after the other, as many as there is room for, and looks at the used ring all the time.
struct Driver {
    ram: GuestMemoryMmap,
    available: u16,
    used: u16,
    /// Which request a chain is, if one.
    requests: [Option<usize>; SIZE as usize],
    made: usize,
    /// How often each was used.
    completed: [usize; REQUESTS],
    /// How often the device did each.
    executed: [usize; REQUESTS],
}

impl Driver {
    fn new(ram: &GuestMemoryMmap) -> Self {
        ram.write_slice(&[0; 0x4000], GuestAddress(RAM_START)).unwrap();
        let driver = Self {
            ram: ram.clone(),
            available: FIRST,
            used: FIRST,
            requests: [None; SIZE as usize],
            made: 0,
            completed: [0; REQUESTS],
            executed: [0; REQUESTS],
        };
        driver.put(DRIVER + 2, FIRST);
        driver.put(DEVICE + 2, FIRST);
        driver
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn step(&mut self) {
        let index: u16 = self.ram.read_obj(GuestAddress(DEVICE + 2)).unwrap();
        while self.used != index {
            let entry = DEVICE + 4 + 8 * u64::from(self.used % SIZE);
            let head: u32 = self.ram.read_obj(GuestAddress(entry)).unwrap();
            let request = self.requests[head as usize].take().expect("a chain comes back that the device has");
            self.completed[request] += 1;
            self.used = self.used.wrapping_add(1);
        }
        // Not always the same ones first.
        for turn in 0..SIZE {
            let head = (turn * 3 + self.available % SIZE) % SIZE;
            if self.made == REQUESTS || self.requests[usize::from(head)].is_some() {
                continue;
            }
            self.requests[usize::from(head)] = Some(self.made);
            let at = DESCRIPTORS + 16 * u64::from(head);
            self.put(at, BUFFERS + 64 * self.made as u64);
            self.put(at + 8, 64);
            self.put(at + 12, 0u32);
            self.put(DRIVER + 4 + 2 * u64::from(self.available % SIZE), head);
            self.available = self.available.wrapping_add(1);
            self.put(DRIVER + 2, self.available);
            self.made += 1;
        }
    }

    fn is_done(&self) -> bool {
        self.completed.iter().all(|&times| times == 1)
    }
}

struct Rig {
    memory: Memory,
    driver: Rc<RefCell<Driver>>,
    journal: QueueJournal,
}

impl Rig {
    fn new(ram: &GuestMemoryMmap, memory: &Memory) -> Self {
        let journal = QueueJournal::own();
        let none = HeadSet::default();
        journal.shown(&none, &none, FIRST);
        let driver = Rc::new(RefCell::new(Driver::new(ram)));
        Self { memory: memory.clone(), driver, journal }
    }

    /// Runs a process until all is done, or it is killed before the store `kill`; returns whether all was done. It does what
    /// it takes in another order, and shows several at a time.
    fn process(&self, succeeds: bool, kill: usize) -> bool {
        let (driver, store) = (Rc::clone(&self.driver), Rc::new(Cell::new(0)));
        let before = move || {
            driver.borrow_mut().step();
            if store.replace(store.get() + 1) == kill {
                resume_unwind(Box::new(Killed));
            }
        };
        let end = catch_unwind(AssertUnwindSafe(|| kill_points::watch(before, || self.work(succeeds))));
        match end {
            Ok(()) => true,
            Err(payload) if payload.is::<Killed>() => false,
            Err(other) => resume_unwind(other),
        }
    }

    fn work(&self, succeeds: bool) {
        let mut queue = Queue::new(layout(), self.memory.clone(), self.journal.clone()).unwrap();
        if succeeds {
            queue.follow().unwrap();
        }
        let (mut chain, mut taken, mut round) = (Chain::new(), Vec::new(), 0);
        loop {
            self.driver.borrow_mut().step();
            if self.driver.borrow().is_done() {
                return;
            }
            round += 1;
            for _ in 0..=round % 5 {
                let Some(head) = queue.pop(&mut chain).unwrap() else { break };
                let request = usize::try_from((chain.readable()[0].address - BUFFERS) / 64).unwrap();
                let mut driver = self.driver.borrow_mut();
                assert_eq!(driver.completed[request], 0, "a request is done again that the driver has seen done");
                driver.executed[request] += 1;
                taken.push(head);
            }
            for _ in 0..=round % 3 {
                if !taken.is_empty() {
                    queue.push(taken.remove(round * 7 % taken.len()), 0);
                }
            }
            queue.publish().unwrap();
        }
    }
}

fn every_store(memory: impl Fn(&std::fs::File) -> Memory) {
    let (ram, file) = ram();
    let memory = memory(&file);
    for kill in 0.. {
        let whole = Rig::new(&ram, &memory).process(false, kill);
        // Its successor is killed soon as well, and so is the next.
        for again in 0..12 {
            let rig = Rig::new(&ram, &memory);
            rig.process(false, kill);
            rig.process(true, again);
            rig.process(true, 2 * again);
            assert!(rig.process(true, usize::MAX));
            let driver = rig.driver.borrow();
            assert_eq!((driver.completed, driver.made), ([1; REQUESTS], REQUESTS));
            assert!(driver.executed.iter().all(|&times| times >= 1));
        }
        if whole {
            assert!(kill > 3 * REQUESTS / 2, "only {kill} stores");
            return;
        }
    }
}

#[test]
fn killed_at_any_store_a_queue_loses_nothing_and_shows_nothing_twice() {
    every_store(device_memory);
}

/// The rings are across two mappings, so copies are used, and the stores that count are few.
#[test]
fn so_it_is_with_copies_of_the_rings() {
    every_store(|file| device_memory_in_pieces(file, &[PAGES, RAM_SIZE - PAGES]));
}

#[test]
fn no_journal_and_no_used_ring_make_it_loop_or_panic() {
    let (ram, file) = ram();
    let memory = device_memory(&file);
    let near = |index: u16| prop_oneof![(0..2 * SIZE).prop_map(move |more| index.wrapping_add(more)), any::<u16>()];
    let strategy = (
        any::<u16>().prop_flat_map(move |next| (Just(next), near(next), near(next))),
        prop_oneof![0u64..1 << SIZE, any::<u64>()],
        prop_oneof![4 => Just(0u64), 1 => any::<u64>()],
        prop::collection::vec(prop_oneof![0..u32::from(SIZE), any::<u32>()], SIZE as usize),
        prop::collection::vec(0..SIZE + 1, SIZE as usize),
    );
    let mut runner = proptest::test_runner::TestRunner::default();
    let result = runner.run(&strategy, |((next, used, available), low, high, ids, heads)| {
        let put = |address, value: u32| ram.write_obj(value, GuestAddress(address)).unwrap();
        let put_u16 = |address, value: u16| ram.write_obj(value, GuestAddress(address)).unwrap();
        put_u16(DEVICE + 2, used);
        put_u16(DRIVER + 2, available);
        (0..).zip(ids).for_each(|(entry, id)| put(DEVICE + 4 + 8 * entry, id));
        (0..).zip(heads).for_each(|(entry, head)| put_u16(DRIVER + 4 + 2 * entry, head));
        let journal = QueueJournal::own();
        let in_flight = HeadSet([low, high, 0, 0]);
        journal.shown(&HeadSet::default(), &in_flight, next);
        let Ok(mut queue) = Queue::new(layout(), memory.clone(), journal.clone()) else {
            prop_assert!(!in_flight.is_within(SIZE));
            return Ok(());
        };
        if queue.follow().is_err() {
            // Nothing was changed, for another to look at.
            prop_assert_eq!((journal.next_used(), journal.in_flight()), (next, in_flight));
            return Ok(());
        }
        prop_assert_eq!(journal.next_used(), used);
        let (mut chain, mut taken) = (Chain::new(), 0);
        while let Ok(Some(head)) = queue.pop(&mut chain) {
            prop_assert!(head < SIZE);
            taken += 1;
            prop_assert!(taken <= SIZE, "a chain is handed out twice");
        }
        queue.publish().unwrap();
        Ok(())
    });
    result.unwrap();
}
