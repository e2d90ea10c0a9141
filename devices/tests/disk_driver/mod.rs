//! A driver of a virtio disk, without a guest: as many requests as there is room for, and every block it reads compared.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const QUEUES: u16 = 2;
/// Entries of a queue.
pub const SIZE: u16 = 64;
/// Requests in a queue, three descriptors each.
const SLOTS: u16 = 16;
/// Bytes.
pub const BLOCK: usize = 4096;
/// Blocks of the disk.
pub const BLOCKS: u64 = 512;
pub const RAM_SIZE: u64 = 0x40_0000;

const WRITE: u32 = 1;
const FLUSH: u32 = 4;

/// Xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Where a queue's descriptors, available and used rings are.
pub fn parts(queue: u16) -> [u64; 3] {
    let base = u64::from(queue) * 0x4000;
    [base, base + 0x1000, base + 0x2000]
}

fn buffer(queue: u16, slot: u16) -> u64 {
    0x10_0000 + u64::from(queue * SLOTS + slot) * 0x2000
}

/// A block's content: its number and how often it was written, over and over.
fn content(index: u64, generation: u64) -> Vec<u8> {
    [index.to_le_bytes(), generation.to_le_bytes()].concat().repeat(BLOCK / 16)
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Read(u64),
    Write(u64),
    Flush,
}

#[derive(Clone, Default)]
struct Queue {
    available: u16,
    used: u16,
    slots: [Option<Request>; SLOTS as usize],
}

pub struct Disk {
    ram: GuestMemoryMmap,
    random: Random,
    queues: Vec<Queue>,
    /// How often each block was written, and whether a request is about it.
    generations: Vec<u64>,
    busy: Vec<bool>,
    /// Whether it was not known if the last write was done.
    forgotten: Vec<bool>,
}

impl Disk {
    pub fn new(ram: &GuestMemoryMmap, seed: u64) -> Self {
        let blocks = usize::try_from(BLOCKS).unwrap();
        Self {
            ram: ram.clone(),
            random: Random(!seed),
            queues: vec![Queue::default(); QUEUES.into()],
            generations: vec![0; blocks],
            busy: vec![false; blocks],
            forgotten: vec![false; blocks],
        }
    }

    /// Begins again, with requests under way that nobody waits for: a block that was being written has either content.
    pub fn forget(&mut self) {
        for queue in &mut self.queues {
            for request in std::mem::take(queue).slots.into_iter().flatten() {
                if let Request::Read(index) | Request::Write(index) = request {
                    let index = usize::try_from(index).unwrap();
                    self.busy[index] = false;
                    self.forgotten[index] |= matches!(request, Request::Write(_));
                }
            }
        }
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Makes some requests; returns whether the device wants the doorbell to be rung for them.
    pub fn submit(&mut self, queue: u16) -> bool {
        let [descriptors, driver, device] = parts(queue);
        let before = self.queues[usize::from(queue)].available;
        let count = self.random.below(u64::from(SLOTS)) + 1;
        for _ in 0..count {
            let state = &self.queues[usize::from(queue)];
            let Some(slot) = (0..SLOTS).find(|&slot| state.slots[usize::from(slot)].is_none()) else { break };
            let request = self.choose();
            let (kind, index) = match request {
                Request::Read(index) => (0, index),
                Request::Write(index) => (WRITE, index),
                Request::Flush => (FLUSH, 0),
            };
            let at = buffer(queue, slot);
            self.put(at, u64::from(kind));
            self.put(at + 8, index * 8);
            self.put(at + 16, 0xeeu8);
            if let Request::Write(index) = request {
                let number = usize::try_from(index).unwrap();
                self.generations[number] += 1;
                self.forgotten[number] = false;
                self.ram.write_slice(&content(index, self.generations[number]), GuestAddress(at + 0x1000)).unwrap();
            }
            let (head, length) = (3 * slot, u32::try_from(BLOCK).unwrap());
            let data = u16::from(kind == 0) << 1;
            let has_data = !matches!(request, Request::Flush);
            let chain = [
                (at, 16, 1, head + if has_data { 1 } else { 2 }),
                (at + 0x1000, length, 1 | data, head + 2),
                (at + 16, 1, 2, 0),
            ];
            for (number, (address, length, flags, next)) in (u64::from(head)..).zip(chain) {
                let at = descriptors + 16 * number;
                self.put(at, address);
                self.put(at + 8, length);
                self.put(at + 12, flags);
                self.put(at + 14, next);
            }
            let state = &mut self.queues[usize::from(queue)];
            state.slots[usize::from(slot)] = Some(request);
            let entry = driver + 4 + 2 * u64::from(state.available % SIZE);
            state.available = state.available.wrapping_add(1);
            let available = state.available;
            self.put(entry, head);
            self.ram.store(available, GuestAddress(driver + 2), Ordering::Release).unwrap();
        }
        fence(Ordering::SeqCst);
        let now = self.queues[usize::from(queue)].available;
        let event: u16 = self.ram.load(GuestAddress(device + 4 + 8 * u64::from(SIZE)), Ordering::Relaxed).unwrap();
        now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
    }

    fn choose(&mut self) -> Request {
        if self.random.below(16) == 0 {
            return Request::Flush;
        }
        let index = loop {
            let index = self.random.below(BLOCKS);
            if !std::mem::replace(&mut self.busy[usize::try_from(index).unwrap()], true) {
                break index;
            }
        };
        if self.random.below(2) == 0 { Request::Read(index) } else { Request::Write(index) }
    }

    /// Takes what the device has used, and compares it; returns how much that is.
    pub fn collect(&mut self) -> u64 {
        let mut count = 0;
        for queue in 0..QUEUES {
            let [_, _, device] = parts(queue);
            let index: u16 = self.ram.load(GuestAddress(device + 2), Ordering::Acquire).unwrap();
            loop {
                let state = &mut self.queues[usize::from(queue)];
                if state.used == index {
                    break;
                }
                let entry = device + 4 + 8 * u64::from(state.used % SIZE);
                let head: u32 = self.ram.read_obj(GuestAddress(entry)).unwrap();
                state.used = state.used.wrapping_add(1);
                let slot = u16::try_from(head / 3).unwrap();
                assert_eq!(u32::from(slot * 3), head);
                let request = state.slots[usize::from(slot)].take().expect("a request is done once");
                let at = buffer(queue, slot);
                assert_eq!(self.ram.read_obj::<u8>(GuestAddress(at + 16)).unwrap(), 0, "{request:?} failed");
                if let Request::Read(index) | Request::Write(index) = request {
                    let mut block = vec![0; BLOCK];
                    self.ram.read_slice(&mut block, GuestAddress(at + 0x1000)).unwrap();
                    self.verify(index, &block);
                    self.busy[usize::try_from(index).unwrap()] = false;
                }
                count += 1;
            }
        }
        count
    }

    /// Asks for an interrupt for the next thing that is used; returns whether it is worth waiting for.
    pub fn wants_interrupts(&mut self) -> bool {
        for queue in 0..QUEUES {
            let [_, driver, _] = parts(queue);
            self.put(driver + 4 + 2 * u64::from(SIZE), self.queues[usize::from(queue)].used);
        }
        fence(Ordering::SeqCst);
        let is_idle = (0..QUEUES).all(|queue| {
            let index: u16 = self.ram.load(GuestAddress(parts(queue)[2] + 2), Ordering::Acquire).unwrap();
            index == self.queues[usize::from(queue)].used
        });
        is_idle && self.is_busy()
    }

    pub fn is_busy(&self) -> bool {
        self.queues.iter().any(|queue| queue.slots.iter().any(Option::is_some))
    }

    fn expected(&self, index: u64, generation: u64) -> Vec<u8> {
        if generation == 0 { vec![0; BLOCK] } else { content(index, generation) }
    }

    /// Whether a block holds what was written to it last.
    pub fn verify(&self, index: u64, block: &[u8]) {
        let generation = self.generations[usize::try_from(index).unwrap()];
        if self.forgotten[usize::try_from(index).unwrap()] && block == self.expected(index, generation - 1) {
            return;
        }
        let expected = self.expected(index, generation);
        let found = block[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(block == expected, "block {index}, written {generation} times, is {found}…");
    }
}
