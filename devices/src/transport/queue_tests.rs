use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::layout::LayoutError;
use super::super::mapped::Mapped;
use super::*;
use crate::testing::{BUFFERS, RAM_SIZE, RAM_START, device_memory, device_memory_in_pieces, ram};

const SIZE: u16 = 8;
const DESCRIPTORS: u64 = RAM_START;
const DRIVER: u64 = RAM_START + 0x1000;
const DEVICE: u64 = RAM_START + 0x2000;
const INDIRECT: u64 = RAM_START + 0x3000;

struct Rig {
    ram: GuestMemoryMmap,
    memory: Memory,
    available: u16,
}

impl Rig {
    fn new() -> Self {
        let (ram, file) = ram();
        Self { memory: device_memory(&file), ram, available: 0 }
    }

    fn queue(&self, event_idx: bool) -> Queue {
        let layout = QueueLayout::new(SIZE, DESCRIPTORS, DRIVER, DEVICE).unwrap().with_features(event_idx, true);
        assert!(layout.is_reachable(&self.memory));
        let queue = Queue::new(layout, self.memory.clone(), QueueJournal::own()).unwrap();
        assert!(matches!(queue.rings, Rings::Mapped(_)));
        queue
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.put(at, address);
        self.put(at + 8, length);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    fn offer(&mut self, head: u16) {
        self.put(DRIVER + 4 + 2 * u64::from(self.available % SIZE), head);
        self.available = self.available.wrapping_add(1);
        self.put(DRIVER + 2, self.available);
    }

    fn used(&self) -> u16 {
        self.ram.read_obj(GuestAddress(DEVICE + 2)).unwrap()
    }
}

#[test]
fn a_chain_is_taken_and_used() {
    let mut rig = Rig::new();
    let mut queue = rig.queue(false);
    let mut chain = Chain::new();
    assert!(queue.pop(&mut chain).unwrap().is_none());
    rig.descriptor(DESCRIPTORS, 3, BUFFERS, 16, DESCRIPTOR_NEXT, 5);
    rig.descriptor(DESCRIPTORS, 5, BUFFERS + 64, 32, DESCRIPTOR_WRITE, 0);
    rig.offer(3);
    assert_eq!(queue.pop(&mut chain).unwrap(), Some(3));
    assert_eq!(chain.readable(), [Segment { address: BUFFERS, length: 16 }]);
    assert_eq!(chain.writable(), [Segment { address: BUFFERS + 64, length: 32 }]);
    assert!(queue.pop(&mut chain).unwrap().is_none());
    queue.push(3, 32);
    assert_eq!(rig.used(), 0, "used before it was published");
    assert!(queue.publish().unwrap());
    assert_eq!(rig.used(), 1);
    assert_eq!(rig.ram.read_obj::<u64>(GuestAddress(DEVICE + 4)).unwrap(), 3 | 32 << 32);
    assert!(!queue.publish().unwrap(), "nothing new");
}

#[test]
fn indirect_tables_are_followed_once() {
    let mut rig = Rig::new();
    let mut queue = rig.queue(false);
    let mut chain = Chain::new();
    rig.descriptor(DESCRIPTORS, 0, INDIRECT, 48, DESCRIPTOR_INDIRECT, 0);
    for index in 0..3 {
        let flags = if index < 2 { DESCRIPTOR_NEXT } else { DESCRIPTOR_WRITE };
        rig.descriptor(INDIRECT, index, BUFFERS + 4096 * u64::from(index), 100, flags, index + 1);
    }
    rig.offer(0);
    assert_eq!(queue.pop(&mut chain).unwrap(), Some(0));
    assert_eq!((chain.readable().len(), chain.writable().len()), (2, 1));

    rig.descriptor(INDIRECT, 1, INDIRECT, 48, DESCRIPTOR_INDIRECT, 0);
    rig.descriptor(DESCRIPTORS, 1, INDIRECT, 48, DESCRIPTOR_INDIRECT, 0);
    rig.offer(1);
    assert!(matches!(queue.pop(&mut chain), Err(QueueError::Indirect { index: 1, length: 48 })));
}

#[test]
fn impossible_indirect_tables_are_refused() {
    for (length, flags) in [(0, 0), (15, 0), (16 * 257, 0), (16, DESCRIPTOR_NEXT)] {
        let mut rig = Rig::new();
        rig.descriptor(DESCRIPTORS, 0, INDIRECT, length, DESCRIPTOR_INDIRECT | flags, 0);
        rig.offer(0);
        let result = rig.queue(false).pop(&mut Chain::new());
        assert!(matches!(result, Err(QueueError::Indirect { .. })), "{length} {flags}");
    }
}

#[test]
fn loops_and_wild_indices_end_in_an_error() {
    let mut rig = Rig::new();
    rig.descriptor(DESCRIPTORS, 0, BUFFERS, 1, DESCRIPTOR_NEXT, 1);
    rig.descriptor(DESCRIPTORS, 1, BUFFERS, 1, DESCRIPTOR_NEXT, 0);
    rig.offer(0);
    assert!(matches!(rig.queue(false).pop(&mut Chain::new()), Err(QueueError::Chain { head: 0, .. })));
    rig.descriptor(DESCRIPTORS, 1, BUFFERS, 1, DESCRIPTOR_NEXT, SIZE);
    assert!(matches!(rig.queue(false).pop(&mut Chain::new()), Err(QueueError::DescriptorIndex { index: SIZE, .. })));
    rig.put(DRIVER + 4, SIZE);
    assert!(matches!(rig.queue(false).pop(&mut Chain::new()), Err(QueueError::DescriptorIndex { .. })));
    rig.put(DRIVER + 2, SIZE + 1);
    assert!(matches!(rig.queue(false).pop(&mut Chain::new()), Err(QueueError::AvailableIndex { .. })));
}

#[test]
fn a_head_offered_twice_is_refused() {
    let mut rig = Rig::new();
    let mut queue = rig.queue(false);
    rig.descriptor(DESCRIPTORS, 2, BUFFERS, 1, 0, 0);
    rig.offer(2);
    rig.offer(2);
    assert_eq!(queue.pop(&mut Chain::new()).unwrap(), Some(2));
    assert!(matches!(queue.pop(&mut Chain::new()), Err(QueueError::AlreadyInFlight(2))));
}

#[test]
fn chains_given_back_are_taken_again() {
    let mut rig = Rig::new();
    let mut queue = rig.queue(false);
    let journal = queue.journal.clone();
    let mut chain = Chain::new();
    for head in [4, 1, 7] {
        rig.descriptor(DESCRIPTORS, head, BUFFERS, 1, 0, 0);
        rig.offer(head);
    }
    let heads: Vec<u16> = std::iter::from_fn(|| queue.pop(&mut chain).unwrap()).collect();
    assert_eq!(heads, [4, 1, 7]);
    queue.push(4, 0);
    queue.publish().unwrap();
    queue.undo_pop(7);
    queue.undo_pop(1);
    // The queue, as another process goes on with it.
    let mut queue = Queue::new(queue.layout, rig.memory.clone(), journal).unwrap();
    let heads: Vec<u16> = std::iter::from_fn(|| queue.pop(&mut chain).unwrap()).collect();
    assert_eq!(heads, [1, 7]);
}

#[test]
fn interrupts_come_when_the_event_index_is_passed_and_once_per_batch() {
    let mut rig = Rig::new();
    let mut queue = rig.queue(true);
    let mut chain = Chain::new();
    let mut finish = |rig: &mut Rig, heads: &[u16]| {
        for &head in heads {
            rig.descriptor(DESCRIPTORS, head, BUFFERS, 1, 0, 0);
            rig.offer(head);
            queue.pop(&mut chain).unwrap();
            queue.push(head, 0);
        }
        queue.publish().unwrap()
    };
    assert!(finish(&mut rig, &[0]), "the first is always reported");
    rig.put(DRIVER + 4 + 2 * u64::from(SIZE), 3u16);
    assert!(!finish(&mut rig, &[1, 2]), "entries 1 and 2, while 3 is waited for");
    assert!(finish(&mut rig, &[3, 4]));
    assert!(!finish(&mut rig, &[5]));
}

#[test]
fn doorbells_are_asked_for_where_the_device_stands() {
    let mut rig = Rig::new();
    let mut queue = rig.queue(true);
    assert!(!queue.want_doorbell().unwrap());
    rig.descriptor(DESCRIPTORS, 0, BUFFERS, 1, 0, 0);
    rig.offer(0);
    assert!(queue.want_doorbell().unwrap(), "it came in between");
    queue.pop(&mut Chain::new()).unwrap();
    assert!(!queue.want_doorbell().unwrap());
    assert_eq!(rig.ram.read_obj::<u16>(GuestAddress(DEVICE + 4 + 8 * u64::from(SIZE))).unwrap(), 1);
    let mut queue = rig.queue(false);
    queue.suppress_doorbell().unwrap();
    assert_eq!(rig.ram.read_obj::<u16>(GuestAddress(DEVICE)).unwrap(), USED_NO_NOTIFY);
    queue.want_doorbell().unwrap();
    assert_eq!(rig.ram.read_obj::<u16>(GuestAddress(DEVICE)).unwrap(), 0);
}

#[test]
fn queues_that_cannot_be_are_refused() {
    for size in [0, 3, 512] {
        assert_eq!(QueueLayout::new(size, 0, 0, 0), Err(LayoutError::Size(size)));
    }
    assert!(QueueLayout::new(8, 8, 0, 0).is_err());
    assert!(QueueLayout::new(8, 0, 1, 0).is_err());
    assert!(QueueLayout::new(8, 0, 0, 2).is_err());
    assert!(QueueLayout::new(8, u64::MAX - 15, 0, 0).is_err());
    let far = QueueLayout::new(8, 1 << 40, 0, 0).unwrap();
    assert!(!far.is_reachable(&Memory::default()));
}

#[test]
fn a_ring_across_two_mappings_is_reached_all_the_same() {
    let (ram, file) = ram();
    let rig = Rig { memory: device_memory_in_pieces(&file, &[0x1000, RAM_SIZE - 0x1000]), ram, available: 0 };
    for (descriptors, driver, device) in [
        (RAM_START + 0x1000 - 64, DEVICE, INDIRECT),
        (DESCRIPTORS, RAM_START + 0x1000 - 12, DEVICE),
        (DESCRIPTORS, DEVICE, RAM_START + 0x1000 - 20),
    ] {
        let layout = QueueLayout::new(SIZE, descriptors, driver, device).unwrap();
        let mut queue = Queue::new(layout, rig.memory.clone(), QueueJournal::own()).unwrap();
        assert!(matches!(queue.rings, Rings::Shadow(_)));
        rig.put(driver, 0u32);
        rig.put(device, 0u32);
        for head in 0..SIZE {
            rig.descriptor(descriptors, head, BUFFERS, 16, DESCRIPTOR_WRITE, 0);
            rig.put(driver + 4 + 2 * u64::from(head), head);
        }
        rig.put(driver + 2, SIZE);
        for head in 0..SIZE {
            assert_eq!(queue.pop(&mut Chain::new()).unwrap(), Some(head));
            queue.push(head, 16);
        }
        assert!(queue.publish().unwrap());
        assert_eq!(rig.ram.read_obj::<u16>(GuestAddress(device + 2)).unwrap(), SIZE);
        let last = device + 4 + 8 * u64::from(SIZE - 1);
        assert_eq!(rig.ram.read_obj::<u64>(GuestAddress(last)).unwrap(), 16 << 32 | u64::from(SIZE - 1));
    }
}

#[test]
fn rings_are_mapped_up_to_the_last_byte_of_a_mapping_and_no_further() {
    let (_ram, file) = ram();
    let memory = device_memory(&file);
    let end = RAM_START + RAM_SIZE;
    let is_mapped = |descriptors, driver, device| {
        let layout = QueueLayout::new(SIZE, descriptors, driver, device).unwrap();
        Mapped::new(&layout, &memory).is_some()
    };
    assert!(is_mapped(end - 128, end - 22, end - 72));
    assert!(!is_mapped(end - 112, DRIVER, DEVICE));
    assert!(!is_mapped(DESCRIPTORS, end - 20, DEVICE));
    assert!(!is_mapped(DESCRIPTORS, DRIVER, end - 68));
    assert!(!is_mapped(0u64.wrapping_sub(256), DRIVER, DEVICE));
    assert!(Mapped::new(&QueueLayout::new(SIZE, 0, 0, 0).unwrap(), &Memory::default()).is_none());
}

/// Descriptors that are likely to refer to each other.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![Just(BUFFERS), Just(DESCRIPTORS), Just(INDIRECT), any::<u64>()];
    let length = prop_oneof![0u32..128, any::<u32>()];
    (address, length, 0u16..8, prop_oneof![0..SIZE, any::<u16>()])
}

#[test]
fn hostile_rings_neither_panic_nor_loop() {
    let rig = Rig::new();
    let strategy = (
        prop::collection::vec(descriptor(), 16),
        prop::collection::vec(0..SIZE + 1, SIZE as usize),
        prop_oneof![0..SIZE + 2, any::<u16>()],
        any::<u16>(),
    );
    let mut runner = proptest::test_runner::TestRunner::default();
    let result = runner.run(&strategy, |(descriptors, heads, index, event)| {
        for (at, (address, length, flags, next)) in (0..).zip(descriptors) {
            let table = if at < SIZE { DESCRIPTORS } else { INDIRECT };
            rig.descriptor(table, at % SIZE, address, length, flags, next);
        }
        for (slot, head) in (0..).zip(heads) {
            rig.put(DRIVER + 4 + 2 * slot, head);
        }
        rig.put(DRIVER + 2, index);
        rig.put(DRIVER + 4 + 2 * u64::from(SIZE), event);
        let mut queue = rig.queue(true);
        let mut chain = Chain::new();
        for _ in 0..2 * SIZE {
            match queue.pop(&mut chain) {
                Ok(Some(head)) => {
                    prop_assert!(chain.readable().len() + chain.writable().len() <= MAX_QUEUE_SIZE.into());
                    queue.push(head, 0);
                }
                Ok(None) | Err(_) => break,
            }
        }
        queue.publish().unwrap();
        Ok(())
    });
    result.unwrap();
}
