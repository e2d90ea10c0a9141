//! A ring does what requests need and nothing else, and is as new for each queue.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep, spawn};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use squeue::Flags;

use super::*;

const DOORBELL: u64 = 1;
const END: u64 = 2;
/// For a kernel that lets go of registered files after a second (Linux 6.1).
const LIMIT: Duration = Duration::from_secs(20);

/// Has the kernel execute one entry that refers to nothing, or to what stays.
fn execute(ring: &mut Ring, entry: &squeue::Entry) -> i32 {
    // SAFETY: the callers' entries refer to what they hold, and have completed when this returns.
    unsafe { ring.push(entry) }.unwrap();
    ring.enter(1).unwrap();
    ring.complete().unwrap().result()
}

fn begin(ring: &mut Ring) {
    // SAFETY: the entry refers to nothing but a registered file.
    unsafe { ring.push(&arm(DOORBELL)) }.unwrap();
    ring.enter(0).unwrap();
}

/// Takes the doorbell out by one attempt; returns how many calls it took to see the end.
fn end(ring: &mut Ring) -> usize {
    // SAFETY: the entry refers to nothing.
    unsafe { ring.push(&disarm(DOORBELL, END)) }.unwrap();
    let (mut armed, mut ending, mut calls) = (true, true, 0);
    while armed || ending {
        assert!(calls < 1000, "no end: armed {armed}, ending {ending}");
        ring.enter(1).unwrap();
        calls += 1;
        while let Some(completion) = ring.complete() {
            match completion.user_data() {
                DOORBELL => armed &= cqueue::more(completion.flags()),
                END => {
                    assert_eq!(completion.result(), 0, "the doorbell stays in the ring");
                    ending = false;
                }
                other => panic!("{other}"),
            }
        }
    }
    calls
}

#[test]
fn a_ring_takes_no_operation_but_those_of_requests() {
    let (reader, mut writer) = pipe().unwrap();
    let mut ring = Ring::take(reader.as_raw_fd(), None).unwrap();
    writer.write_all(b"data").unwrap();
    let mut buffer = [0; 4];
    let read = opcode::Read::new(DOORBELL_FILE, buffer.as_mut_ptr(), 4).build();
    assert_eq!(execute(&mut ring, &read), 4);
    assert_eq!(&buffer, b"data");

    let file = types::Fd(reader.as_raw_fd());
    let time = types::Timespec::new();
    let refused = [
        opcode::Nop::new().build(),
        opcode::PollRemove::new(DOORBELL).build(),
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build(),
        opcode::Close::new(file).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Connect::new(file, std::ptr::null(), 0).build(),
        opcode::SendMsg::new(file, std::ptr::null()).build(),
        opcode::RecvMsg::new(file, std::ptr::null_mut()).build(),
        opcode::FilesUpdate::new(std::ptr::null(), 0).build(),
        opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), c"/nonexistent".as_ptr()).build(),
        opcode::Splice::new(file, -1, file, -1, 1).build(),
        opcode::Timeout::new(&raw const time).build(),
        opcode::MsgRingData::new(file, 0, 0, None).build(),
        // An operation that it takes, in a way that it does not.
        opcode::Fsync::new(file).build().flags(Flags::IO_LINK),
        opcode::Fsync::new(file).build().flags(Flags::ASYNC),
    ];
    for entry in &refused {
        assert_eq!(execute(&mut ring, entry), -libc::EACCES, "{entry:?}");
    }
    ring.release().unwrap();
}

#[test]
fn a_ring_is_told_nothing_but_which_files_are_registered() {
    let doorbell = EventFd::new().unwrap();
    let ring = Ring::take(doorbell.as_raw_fd(), None).unwrap();
    let refused = [
        ring.submitter.register_eventfd(doorbell.as_raw_fd()),
        ring.submitter.register_personality().map(drop),
        ring.submitter.register_iowq_max_workers(&mut [0; 2]),
        ring.submitter.unregister_files(),
        ring.submitter.register_restrictions(&mut restrictions()),
        ring.submitter.register_probe(&mut io_uring::Probe::new()),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
    ring.release().unwrap();
}

#[test]
fn a_thread_keeps_its_ring_and_nothing_of_the_queue_before() {
    spawn(|| {
        prepare().unwrap();
        for _ in 0..5 {
            let [(doorbell, doorbell_writer), (fence, fence_writer)] = [pipe().unwrap(), pipe().unwrap()];
            let mut ring = Ring::take(doorbell.as_raw_fd(), Some(fence.as_raw_fd())).unwrap();
            begin(&mut ring);
            (&doorbell_writer).write_all(b"!").unwrap();
            assert!(end(&mut ring) > 0);
            assert!(ring.is_kept);
            ring.release().unwrap();
            drop((doorbell, fence));
            for writer in [doorbell_writer, fence_writer] {
                expect_no_reader(writer.into());
            }
        }
    })
    .join()
    .unwrap();
}

fn expect_no_reader(writer: OwnedFd) {
    let begun = Instant::now();
    let mut writer = File::from(writer);
    while writer.write_all(b"?").is_ok() {
        assert!(begun.elapsed() < LIMIT, "the ring still holds a file of the queue before");
        sleep(Duration::from_millis(10));
    }
}

/// The client has the doorbell, and may ring it for as long as it lives.
#[test]
fn a_doorbell_that_is_rung_all_the_time_is_taken_out() {
    let doorbell = EventFd::new().unwrap();
    let over = AtomicBool::new(false);
    scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                doorbell.write(1).unwrap();
            }
        });
        let mut ring = Ring::take(doorbell.as_raw_fd(), None).unwrap();
        for _ in 0..500 {
            begin(&mut ring);
            end(&mut ring);
        }
        ring.release().unwrap();
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_ring_that_is_not_given_back_is_closed() {
    spawn(|| {
        prepare().unwrap();
        let (reader, writer) = pipe().unwrap();
        let mut ring = Ring::take(reader.as_raw_fd(), None).unwrap();
        begin(&mut ring);
        drop((ring, reader));
        expect_no_reader(writer.into());
        let (mut reader, mut writer) = pipe().unwrap();
        Ring::take(reader.as_raw_fd(), None).unwrap().release().unwrap();
        writer.write_all(b"!").unwrap();
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 1);
    })
    .join()
    .unwrap();
}
