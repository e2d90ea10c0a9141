//! Requests are parsed, and carried out in as few operations as there are neighbours.

use super::*;

#[test]
fn neighbours_in_memory_are_one_buffer() {
    let mut memory = [0u8; 64];
    // A place in `memory` for each address.
    let whole = vm_memory::VolatileSlice::from(&mut memory[..]);
    let slice = |Segment { address, length }| match whole.subslice(usize::try_from(address).unwrap(), length as usize) {
        Ok(slice) => Ok(slice),
        Err(_) => Err(Memory::default().writable_slice(address, length as usize).unwrap_err()),
    };
    let mut buffers = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 4];
    let mut collect = |segments: &[(u64, u32)]| {
        let segments = segments.iter().map(|&(address, length)| Segment { address, length });
        let count = super::collect(segments, slice, &mut buffers)?;
        let base = whole.ptr_guard().as_ptr();
        let place = |buffer: &libc::iovec| (buffer.iov_base.addr() - base.addr(), buffer.iov_len);
        Ok::<_, MemoryError>(buffers[..usize::from(count)].iter().map(place).collect::<Vec<_>>())
    };
    assert_eq!(collect(&[(0, 16), (16, 16), (32, 1), (40, 8), (48, 16)]).unwrap(), [(0, 33), (40, 24)]);
    assert_eq!(collect(&[(16, 16), (0, 16), (0, 16)]).unwrap(), [(16, 16), (0, 16), (0, 16)]);
    assert_eq!(collect(&[]).unwrap(), []);
    assert!(collect(&[(0, 16), (16, 16), (32, 33)]).is_err(), "each is looked up by itself");
}

#[test]
fn a_short_transfer_goes_on_where_it_stopped() {
    let mut memory = [0u8; 64];
    let base = memory.as_mut_ptr();
    let buffer = |at: usize, iov_len| libc::iovec { iov_base: base.wrapping_add(at).cast(), iov_len };
    let mut buffers = [buffer(0, 16), buffer(16, 16), buffer(32, 32)];
    let mut request = Request { offset: 512, remaining: 64, buffers: 3, ..Request::default() };
    request.advance(20, &mut buffers);
    assert_eq!((request.offset, request.remaining, request.first_buffer), (532, 44, 1));
    assert_eq!((buffers[1].iov_base.cast::<u8>(), buffers[1].iov_len), (base.wrapping_add(20), 12));
    request.advance(12, &mut buffers);
    assert_eq!((request.remaining, request.first_buffer), (32, 2));
}

fn disk(write_through: bool) -> Disk {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let backing = Backing::open(file.path(), false, false, super::super::Locking::AtOnce).unwrap();
    Disk { backing: Arc::new(backing), serial: [0; SERIAL_SIZE], write_through }
}

/// Opcode and mode or flags, as the kernel gets them.
fn entry(disk: &Disk, operation: Operation, buffers: u16) -> (u8, u32) {
    let buffer = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 512 };
    let request = Request { operation, length: 1024, remaining: 1024, buffers, ..Request::default() };
    let entry = request.submission(disk, &[buffer; 2]);
    // SAFETY: an entry is `struct io_uring_sqe`, 64 bytes of integers.
    let bytes: [u8; 64] = unsafe { std::mem::transmute(entry) };
    // `len` is the mode of a fallocate.
    let detail = if bytes[0] == 17 { 24 } else { 28 };
    (bytes[0], u32::from_le_bytes(bytes[detail..][..4].try_into().unwrap()))
}

#[test]
fn the_kernel_is_asked_for_the_operation_and_to_sync_if_the_driver_cannot() {
    // `IORING_OP_*`, and the flags of each.
    let [read, write, readv, writev, fsync, fallocate] = [22, 23, 1, 2, 3, 17];
    let [datasync, dsync, punch, zero] = [1, 2, 3, 0x11];
    for write_through in [false, true] {
        let disk = disk(write_through);
        let sync = if write_through { dsync } else { 0 };
        assert_eq!(entry(&disk, Operation::Read, 1), (read, 0));
        assert_eq!(entry(&disk, Operation::Read, 2), (readv, 0));
        assert_eq!(entry(&disk, Operation::Write, 1), (write, sync));
        assert_eq!(entry(&disk, Operation::Write, 2), (writev, sync));
        assert_eq!(entry(&disk, Operation::Flush, 0), (fsync, datasync));
        assert_eq!(entry(&disk, Operation::Discard, 0), (fallocate, punch));
        assert_eq!(entry(&disk, Operation::ZeroUnmap, 0), (fallocate, punch));
        assert_eq!(entry(&disk, Operation::Zero, 0), (fallocate, zero));
    }
}

#[test]
fn a_range_is_flushed_if_the_driver_cannot_and_nothing_else_is() {
    use Operation::{Discard, Flush, Read, Write, Zero, ZeroUnmap};
    for write_through in [false, true] {
        let disk = disk(write_through);
        for operation in [Discard, Zero, ZeroUnmap, Flush, Read, Write] {
            let mut request = Request { operation, ..Request::default() };
            let is_range = [Discard, Zero, ZeroUnmap].contains(&operation);
            assert_eq!(request.becomes_flush(&disk), write_through && is_range, "{operation:?}");
            assert_eq!(request.operation, if write_through && is_range { Flush } else { operation });
            assert!(!request.becomes_flush(&disk), "once is enough");
        }
    }
}

#[test]
fn the_used_length_counts_the_status_only_if_nothing_is_missing_before_it() {
    let used = |room, written| Request { room, ..Request::default() }.used_length(written);
    assert_eq!([used(0, 0), used(512, 512), used(512, 0), used(512, 100), used(30, 20)], [1, 513, 0, 100, 20]);
    let read = Request { length: 1024, remaining: 512, ..Request::default() };
    assert_eq!([read.written(Status::Ok), read.written(Status::IoError)], [1024, 512]);
    let write = Request { operation: Operation::Write, ..read };
    assert_eq!([write.written(Status::Ok), write.written(Status::IoError)], [0, 0]);
}

#[test]
fn a_request_is_new_until_something_was_tried() {
    let new = Request { length: 512, remaining: 512, ..Request::default() };
    assert!(new.is_new());
    assert!(!Request { remaining: 100, ..new }.is_new());
    assert!(!Request { retries: 1, ..new }.is_new());
}
