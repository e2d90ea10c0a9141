//! `VFIO_USER_DEVICE_FEATURE` with `VFIO_DEVICE_FEATURE_DMA_LOGGING_START`, `_STOP` and `_REPORT`, both sides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use common::hostile::malformed;
use common::raw::*;
use common::{Server, client, memfd};
use outrigger_protocol::client::ClientError;
use outrigger_protocol::server::Memory;

const START: u32 = 6;
const STOP: u32 = 7;
const REPORT: u32 = 8;
const PAGE: u64 = 4096;
const RAM: u64 = 256 * PAGE;

fn start(page_size: u64, num_ranges: u32, ranges: &[u64]) -> Vec<u8> {
    [words(&[4096, SET | START]), longs(&[page_size]), words(&[num_ranges, 0]), longs(ranges)].concat()
}

fn stop() -> Vec<u8> {
    words(&[8, SET | STOP])
}

fn report(argsz: u32, iova: u64, length: u64, page_size: u64) -> Vec<u8> {
    [words(&[argsz, GET | REPORT]), longs(&[iova, length, page_size])].concat()
}

/// A server on which `RAM` is mapped from 0 on, and as much behind it is reached by messages.
fn mapped() -> (Server, Raw) {
    let server = Server::migrating();
    let mut raw = Raw::client(server.connect());
    let file = memfd(RAM);
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, 0, RAM])].concat(), &[fd(&file)]);
    raw.succeed(DMA_MAP, &[words(&[32, 3]), longs(&[0, RAM, RAM])].concat(), &[]);
    (server, raw)
}

fn memory(server: &Server) -> Memory {
    server.state.lock().unwrap().memory.clone()
}

/// The words of the bitmap of 64 pages.
fn dirty(raw: &mut Raw) -> u64 {
    let request = report(40, 0, 64 * PAGE, PAGE);
    let reply = raw.succeed(FEATURE, &request, &[]);
    assert_eq!((reply.payload.len(), &reply.payload[..32]), (40, &request[..]));
    reply.u64_at(32)
}

#[test]
fn arrays_are_noted_within_a_mapping_and_across_its_end() {
    let (server, mut raw) = mapped();
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    memory(&server).write_array(3 * PAGE - 2, [1; 4]).unwrap();
    memory(&server).write_array(9 * PAGE, [1]).unwrap();
    assert_eq!(dirty(&mut raw), 0b10_0000_1100);
    assert!(memory(&server).read_array::<4>(5 * PAGE).is_ok() && dirty(&mut raw) == 0);
}

#[test]
fn a_device_that_does_not_log_has_none_of_the_features() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    for request in [start(PAGE, 0, &[]), stop(), report(4096, 0, PAGE, PAGE)] {
        raw.refused(ENOTTY, FEATURE, &request, &[]);
    }
    for index in [START, STOP, REPORT] {
        raw.refused(ENOTTY, FEATURE, &words(&[8, PROBE | index]), &[]);
    }
}

#[test]
fn each_feature_goes_one_way_only() {
    let (_server, mut raw) = mapped();
    for (index, good, bad) in [(START, SET, GET), (STOP, SET, GET), (REPORT, GET, SET)] {
        raw.succeed(FEATURE, &words(&[8, PROBE | index]), &[]);
        raw.succeed(FEATURE, &words(&[8, PROBE | good | index]), &[]);
        for action in [bad, PROBE | bad, PROBE | GET | SET] {
            raw.refused(EINVAL, FEATURE, &[words(&[4096, action | index]), longs(&[0, PAGE, PAGE])].concat(), &[]);
        }
    }
    raw.refused(EINVAL, FEATURE, &report(4096, 0, PAGE, PAGE), &[]);
}

#[test]
fn a_start_that_is_short_or_has_other_ranges_than_it_says_is_refused() {
    let (_server, mut raw) = mapped();
    let whole = start(PAGE, 1, &[0, PAGE]);
    for length in 8..whole.len() {
        raw.refused(EINVAL, FEATURE, &whole[..length], &[]);
    }
    for num_ranges in [0, 2, 1 << 28, u32::MAX] {
        raw.refused(EINVAL, FEATURE, &start(PAGE, num_ranges, &[0, PAGE]), &[]);
    }
    raw.refused(EINVAL, FEATURE, &[whole, vec![0]].concat(), &[]);
    raw.refused(EINVAL, FEATURE, &report(4096, 0, PAGE, PAGE), &[]);
}

#[test]
fn ranges_and_page_sizes_that_make_no_sense_are_refused() {
    let (_server, mut raw) = mapped();
    for page_size in [0, 1000, u64::MAX] {
        raw.refused(EINVAL, FEATURE, &start(page_size, 0, &[]), &[]);
    }
    for ranges in [[0, 0, PAGE, PAGE], [u64::MAX, 2, 0, PAGE], [0, PAGE + 1, PAGE, PAGE], [0, PAGE, 0, PAGE]] {
        raw.refused(EINVAL, FEATURE, &start(PAGE, 2, &ranges), &[]);
    }
}

#[test]
fn more_ranges_than_anybody_needs_are_refused() {
    let (_server, mut raw) = mapped();
    let ranges: Vec<u64> = (0..5000).flat_map(|i| [i * PAGE, PAGE]).collect();
    raw.refused(E2BIG, FEATURE, &start(PAGE, 5000, &ranges), &[]);
    raw.succeed(FEATURE, &start(PAGE, 4000, &ranges[..8000]), &[]);
}

#[test]
fn descriptors_are_refused() {
    let (_server, mut raw) = mapped();
    let own = fd(&raw.stream);
    raw.refused(EINVAL, FEATURE, &start(PAGE, 0, &[]), &[own]);
}

#[test]
fn the_answer_names_the_page_size_of_the_log() {
    let (_server, mut raw) = mapped();
    for hint in [1, PAGE, 1 << 21] {
        let request = start(hint, 1, &[0, RAM]);
        let mut expected = request.clone();
        expected[8..16].copy_from_slice(&PAGE.to_ne_bytes());
        assert_eq!(raw.succeed(FEATURE, &request, &[]).payload, expected);
        assert_eq!(raw.succeed(FEATURE, &stop(), &[]).payload, stop());
    }
}

#[test]
fn a_log_is_started_once_and_stopped_any_number_of_times() {
    let (_server, mut raw) = mapped();
    raw.succeed(FEATURE, &stop(), &[]);
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    raw.refused(EINVAL, FEATURE, &start(PAGE, 0, &[]), &[]);
    raw.succeed(FEATURE, &stop(), &[]);
    raw.succeed(FEATURE, &stop(), &[]);
    raw.refused(EINVAL, FEATURE, &report(4096, 0, PAGE, PAGE), &[]);
}

#[test]
fn reports_of_impossible_ranges_are_refused() {
    let (_server, mut raw) = mapped();
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    let whole = report(4096, 0, PAGE, PAGE);
    for length in 8..whole.len() {
        raw.refused(EINVAL, FEATURE, &whole[..length], &[]);
    }
    raw.refused(EINVAL, FEATURE, &[whole, vec![0]].concat(), &[]);
    for (iova, length, page_size) in
        [(0, 0, PAGE), (0, PAGE, 0), (0, PAGE, 4097), (u64::MAX, 2, PAGE), (2, u64::MAX, PAGE), (PAGE, !0, 1 << 63)]
    {
        raw.refused(EINVAL, FEATURE, &report(4096, iova, length, page_size), &[]);
    }
    // Bitmaps that no message can carry.
    for (length, page_size) in [(u64::MAX, 1), (u64::MAX, PAGE), (1 << 40, PAGE), (1 << 35, PAGE), (1 << 24, 1)] {
        raw.refused(E2BIG, FEATURE, &report(u32::MAX, 0, length, page_size), &[]);
    }
    raw.alive();
}

#[test]
fn without_room_for_the_bitmap_the_reply_says_how_much_is_needed_and_nothing_is_forgotten() {
    let (server, mut raw) = mapped();
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    memory(&server).write(3 * PAGE, &[1]).unwrap();
    for argsz in [8, 32, 39] {
        let reply = raw.succeed(FEATURE, &report(argsz, 0, 64 * PAGE, PAGE), &[]);
        assert_eq!(reply.payload, words(&[40, GET | REPORT]));
    }
    assert_eq!((dirty(&mut raw), dirty(&mut raw)), (1 << 3, 0));
}

#[test]
fn what_the_device_writes_is_reported_once_and_what_it_reads_is_not() {
    let (server, mut raw) = mapped();
    memory(&server).write(0, &[1]).unwrap();
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    let memory = memory(&server);
    memory.write(PAGE + 4095, &[1, 2]).unwrap();
    memory.store_u16(10 * PAGE, 7, Ordering::Release).unwrap();
    memory.mark_dirty(20 * PAGE, 4097);
    memory.read(30 * PAGE, &mut [0; 100]).unwrap();
    assert!(memory.write(1 << 40, &[1]).is_err());
    assert_eq!(dirty(&mut raw), 0b110 | 1 << 10 | 0b11 << 20);
    assert_eq!(dirty(&mut raw), 0);
    memory.write(5 * PAGE, &[1]).unwrap();
    assert_eq!(dirty(&mut raw), 1 << 5);
}

#[test]
fn what_is_written_by_messages_is_reported_too() {
    let (server, mut raw) = mapped();
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    let memory = memory(&server);
    let worker = std::thread::spawn(move || memory.write(RAM - 1, &[7; 2]).unwrap());
    let asked = raw.receive().unwrap();
    assert_eq!((asked.command, asked.u64_at(0), asked.u64_at(8)), (DMA_WRITE, RAM, 1));
    raw.answer(&asked, &asked.payload[..16], &[]);
    worker.join().unwrap();
    let reply = raw.succeed(FEATURE, &report(4096, RAM - PAGE, 2 * PAGE, PAGE), &[]);
    assert_eq!(reply.u64_at(32), 0b11);
}

#[test]
fn only_the_ranges_that_were_asked_for_are_noted() {
    let (server, mut raw) = mapped();
    raw.succeed(FEATURE, &start(PAGE, 2, &[8 * PAGE, 2 * PAGE, 2 * PAGE, PAGE]), &[]);
    memory(&server).write(0, &vec![1; 20 * 4096]).unwrap();
    assert_eq!(dirty(&mut raw), 0b11_0000_0100);
}

#[test]
fn bits_stand_for_pages_of_the_size_asked_for_and_none_is_set_beyond_the_range() {
    let (server, mut raw) = mapped();
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    let memory = memory(&server);
    for (page_size, expected) in [(2 * PAGE, 0b1_0010), (PAGE / 2, 0b11 << 18 | 0b11 << 4), (1 << 62, 1)] {
        for page in [2, 9, 10] {
            memory.write(page * PAGE, &[1]).unwrap();
        }
        // The tenth page is beyond the range.
        let reply = raw.succeed(FEATURE, &report(4096, 0, 10 * PAGE, page_size), &[]);
        assert_eq!((reply.payload.len(), reply.u64_at(32)), (40, expected), "{page_size}");
    }
}

#[test]
fn a_log_ends_with_its_client() {
    let (server, mut raw) = mapped();
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
    drop(raw);
    server.ended().unwrap();
    let mut raw = Raw::client(server.connect());
    raw.refused(EINVAL, FEATURE, &report(4096, 0, PAGE, PAGE), &[]);
    raw.succeed(FEATURE, &start(PAGE, 0, &[]), &[]);
}

#[test]
fn our_client_starts_asks_and_stops() {
    let server = Server::migrating();
    let client = client(server.connect());
    assert!(client.can_log_dma().unwrap());
    let file = memfd(RAM);
    client.dma_map(0, RAM, Some((file.as_fd(), 0))).unwrap();
    assert_eq!(client.start_dma_logging(1 << 16, &[(0, RAM)]).unwrap(), PAGE);
    memory(&server).write(65 * PAGE, &[1]).unwrap();
    assert_eq!(client.dirty_pages(0, RAM, PAGE).unwrap(), [0, 2, 0, 0]);
    assert_eq!(client.dirty_pages(0, RAM, PAGE).unwrap(), [0; 4]);
    for (iova, length, page_size) in [(0, 0, PAGE), (0, PAGE, 0), (0, PAGE, 3), (u64::MAX, 2, PAGE)] {
        let result = client.dirty_pages(iova, length, page_size);
        assert!(matches!(result, Err(ClientError::Local { .. })), "{result:?}");
    }
    client.stop_dma_logging().unwrap();
    assert!(matches!(client.dirty_pages(0, RAM, PAGE), Err(ClientError::Refused { .. })));
}

#[test]
fn our_client_asks_for_a_large_bitmap_in_parts() {
    let server = Server::migrating();
    let client = client(server.connect());
    client.start_dma_logging(PAGE, &[]).unwrap();
    let memory = memory(&server);
    let pages = 3 << 22;
    for page in [0, (1 << 22) - 1, 1 << 22, pages] {
        memory.mark_dirty(page * PAGE, 1);
    }
    let bitmap = client.dirty_pages(0, pages * PAGE + 1, PAGE).unwrap();
    assert_eq!(bitmap.len(), (3 << 16) + 1);
    let set: Vec<_> = bitmap.iter().enumerate().filter(|(_, word)| **word != 0).map(|(i, word)| (i, *word)).collect();
    assert_eq!(set, [(0, 1), ((1 << 16) - 1, 1 << 63), (1 << 16, 1), (3 << 16, 1)]);
}

#[test]
fn answers_that_make_no_sense_close_the_connection() {
    let answer = |argsz, fields: &[u64]| [words(&[argsz, GET | REPORT]), longs(fields)].concat();
    for wrong in [
        answer(8, &[]),
        answer(32, &[0, 10 * PAGE, PAGE]),
        answer(40, &[0, 10 * PAGE, 2 * PAGE, 0]),
        answer(40, &[PAGE, 10 * PAGE, PAGE, 0]),
        answer(40, &[0, 10 * PAGE, PAGE, 1 << 10]),
        answer(40, &[0, 10 * PAGE, PAGE, 0, 0]),
        answer(41, &[0, 10 * PAGE, PAGE, 0]),
        answer(u32::MAX, &[]),
    ] {
        malformed(|client| client.dirty_pages(0, 10 * PAGE, PAGE), wrong);
    }
    for page_size in [0, 3] {
        let echo = [words(&[24, SET | START]), longs(&[page_size, 0])].concat();
        malformed(|client| client.start_dma_logging(PAGE, &[]), echo);
    }
    malformed(|client| client.start_dma_logging(PAGE, &[]), words(&[24, SET | START]));
}
