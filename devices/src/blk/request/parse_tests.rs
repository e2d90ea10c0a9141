//! Each kind of request is taken apart: operation, place, length, buffers, and what is done at once.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::testing::{BUFFERS, device_memory, ram};

const SECTORS: u64 = 2048;
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

struct Rig {
    disk: Disk,
    ram: GuestMemoryMmap,
    memory: Memory,
    buffers: [libc::iovec; 4],
}

impl Rig {
    fn new(readonly: bool) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(SECTORS * SECTOR).unwrap();
        let backing = Backing::open(image.path(), readonly, false, super::super::Locking::AtOnce).unwrap();
        let disk = Disk { backing: Arc::new(backing), serial: *b"a-serial-of-20-bytes", write_through: false };
        let (ram, file) = ram();
        let buffers = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 4];
        Self { disk, ram, memory: device_memory(&file), buffers }
    }

    /// The request with these data buffers after its header, each with whether the device writes it, and a status byte.
    fn parse(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (Request, Parsed) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.ram.write_slice(&header, GuestAddress(HEADER)).unwrap();
        let mut chain = Chain::new();
        for (address, length, writable) in [&[(HEADER, HEADER_SIZE, false)], data, &[(STATUS, 1, true)]].concat() {
            chain.add(Segment { address, length }, writable).unwrap();
        }
        let (request, parsed) = Request::parse(&self.disk, &self.memory, &chain, &mut self.buffers, &mut None).unwrap();
        assert_eq!(request.status_address, STATUS);
        (request, parsed)
    }

    /// The request for one range of sectors.
    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> (Request, Parsed) {
        let range = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        self.ram.write_slice(&range, GuestAddress(DATA)).unwrap();
        self.parse(kind, 0, &[(DATA, RANGE_SIZE, false)])
    }
}

fn is_submitted(parsed: &Parsed) -> bool {
    matches!(parsed, Parsed::Submit)
}

fn is_done(parsed: &Parsed, status: Status, written: u32) -> bool {
    matches!(parsed, Parsed::Done(now, bytes) if (*now, *bytes) == (status, written))
}

#[test]
fn reads_and_writes_are_for_the_kernel() {
    let mut rig = Rig::new(false);
    let two = |writable| [(DATA, 512, writable), (DATA + 0x1000, 1024, writable)];
    for (kind, operation) in [(spec::VIRTIO_BLK_T_IN, Operation::Read), (spec::VIRTIO_BLK_T_OUT, Operation::Write)] {
        let is_read = operation == Operation::Read;
        let (request, parsed) = rig.parse(kind, SECTORS - 3, &two(is_read));
        assert!(is_submitted(&parsed), "{kind}: {parsed:?}");
        assert_eq!((request.operation, request.offset), (operation, (SECTORS - 3) * SECTOR));
        assert_eq!((request.length, request.remaining, request.retries), (1536, 1536, 0));
        assert_eq!(request.room, if is_read { 1536 } else { 0 });
        let lengths: Vec<_> = request.left(&rig.buffers).iter().map(|buffer| buffer.iov_len).collect();
        assert_eq!(lengths, [512, 1024]);
        let (_, parsed) = rig.parse(kind, SECTORS - 2, &two(is_read));
        let Parsed::Failed(Status::IoError, RequestError::Range { sector, length, capacity }) = parsed else {
            panic!("{parsed:?}");
        };
        assert_eq!((sector, length, capacity), (SECTORS - 2, 1536, SECTORS));
        let (_, parsed) = rig.parse(kind, 0, &[(DATA, 511, is_read)]);
        assert!(matches!(parsed, Parsed::Failed(Status::IoError, RequestError::Range { .. })), "{parsed:?}");
    }
}

/// An empty request needs no kernel; a flush has no data, and needs it.
#[test]
fn nothing_is_done_at_once_and_a_flush_is_not() {
    let mut rig = Rig::new(false);
    for kind in [spec::VIRTIO_BLK_T_IN, spec::VIRTIO_BLK_T_OUT] {
        assert!(is_done(&rig.parse(kind, 0, &[]).1, Status::Ok, 0));
    }
    let (request, parsed) = rig.parse(spec::VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert!(is_submitted(&parsed), "{parsed:?}");
    assert_eq!(request.operation, Operation::Flush);
    for kind in [spec::VIRTIO_BLK_T_DISCARD, spec::VIRTIO_BLK_T_WRITE_ZEROES] {
        assert!(is_done(&rig.range(kind, 0, 0, 0).1, Status::Ok, 0));
    }
}

#[test]
fn ranges_are_for_the_kernel_as_long_as_they_may_be() {
    let mut rig = Rig::new(false);
    let (discard, zero) = (spec::VIRTIO_BLK_T_DISCARD, spec::VIRTIO_BLK_T_WRITE_ZEROES);
    let kinds = [(discard, 0, Operation::Discard), (zero, 1, Operation::ZeroUnmap), (zero, 0, Operation::Zero)];
    for (kind, flags, operation) in kinds {
        let (request, parsed) = rig.range(kind, 8, 16, flags);
        assert!(is_submitted(&parsed), "{operation:?}: {parsed:?}");
        assert_eq!((request.operation, request.offset), (operation, 8 * SECTOR));
        assert_eq!((request.length, request.remaining), (8192, 8192));
        assert!(is_done(&rig.range(kind, 0, MAX_ZERO_SECTORS + 1, flags).1, Status::Unsupported, 0));
        // More than the disk has, not more than a request may have.
        let (_, parsed) = rig.range(kind, 0, MAX_ZERO_SECTORS, flags);
        assert!(matches!(parsed, Parsed::Failed(Status::IoError, RequestError::Range { .. })), "{parsed:?}");
        assert!(is_done(&rig.range(kind, 8, 16, flags | 2).1, Status::Unsupported, 0));
        let parts = rig.parse(kind, 0, &[(DATA, RANGE_SIZE - 1, false)]).1;
        assert!(is_done(&parts, Status::Unsupported, 0), "{parts:?}");
    }
    assert!(is_done(&rig.range(discard, 8, 16, 1).1, Status::Unsupported, 0));
}

#[test]
fn the_file_system_cannot_do_every_range() {
    let (discard, zero) = (spec::VIRTIO_BLK_T_DISCARD, spec::VIRTIO_BLK_T_WRITE_ZEROES);
    for (can_punch, can_zero) in [(false, true), (true, false), (false, false)] {
        let mut rig = Rig::new(false);
        let backing = Arc::get_mut(&mut rig.disk.backing).unwrap();
        (backing.can_punch, backing.can_zero) = (can_punch, can_zero);
        // A hole where there can be one, zeros otherwise.
        let unmapped = if can_punch { Operation::ZeroUnmap } else { Operation::Zero };
        for (kind, flags, possible, operation) in [
            (discard, 0, can_punch, Operation::Discard),
            (zero, 0, can_zero, Operation::Zero),
            (zero, 1, can_punch || can_zero, unmapped),
        ] {
            let (request, parsed) = rig.range(kind, 8, 16, flags);
            if possible {
                assert!(is_submitted(&parsed), "{operation:?}: {parsed:?}");
                assert_eq!(request.operation, operation);
            } else {
                assert!(is_done(&parsed, Status::Unsupported, 0), "{operation:?}: {parsed:?}");
            }
        }
    }
}

#[test]
fn a_read_only_disk_is_read_and_flushed() {
    let mut rig = Rig::new(true);
    for kind in [spec::VIRTIO_BLK_T_OUT, spec::VIRTIO_BLK_T_DISCARD, spec::VIRTIO_BLK_T_WRITE_ZEROES] {
        let (_, parsed) = rig.range(kind, 0, 1, 0);
        assert!(matches!(parsed, Parsed::Failed(Status::IoError, RequestError::ReadOnly(now)) if now == kind));
    }
    assert!(is_submitted(&rig.parse(spec::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).1));
    assert!(is_submitted(&rig.parse(spec::VIRTIO_BLK_T_FLUSH, 0, &[]).1));
}

#[test]
fn the_serial_is_as_long_as_there_is_room() {
    let mut rig = Rig::new(false);
    for room in [1, 19, 20, 21, 512] {
        rig.ram.write_slice(&[0xee; 512], GuestAddress(DATA)).unwrap();
        let length = room.min(20);
        let (_, parsed) = rig.parse(spec::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, room, true)]);
        assert!(is_done(&parsed, Status::Ok, length), "{room}: {parsed:?}");
        let mut bytes = [0; 21];
        rig.ram.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        assert_eq!(&bytes[..length as usize], &rig.disk.serial[..length as usize]);
        assert_eq!(bytes[length as usize], 0xee);
    }
    assert!(is_done(&rig.parse(0x55, 0, &[]).1, Status::Unsupported, 0));
}

#[test]
fn a_buffer_outside_of_memory_fails_the_request() {
    let mut rig = Rig::new(false);
    for (kind, is_read) in [(spec::VIRTIO_BLK_T_IN, true), (spec::VIRTIO_BLK_T_OUT, false)] {
        let (_, parsed) = rig.parse(kind, 0, &[(0, 512, is_read)]);
        assert!(matches!(parsed, Parsed::Failed(Status::IoError, RequestError::Memory(_))), "{parsed:?}");
    }
}

/// Moved by bytes that the kernel has moved already.
#[test]
fn what_was_moved_and_what_is_left() {
    let mut rig = Rig::new(false);
    let (mut request, _) = rig.parse(spec::VIRTIO_BLK_T_IN, 4, &[(DATA, 1024, true)]);
    assert_eq!(request.done(), 0);
    request.advance(100, &mut rig.buffers);
    assert_eq!((request.done(), request.left(&rig.buffers)[0].iov_len), (100, 924));
    let piece = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 7 };
    request.set_buffer(piece, &mut rig.buffers);
    assert_eq!(request.left(&rig.buffers).iter().map(|buffer| buffer.iov_len).collect::<Vec<_>>(), [7]);
}
