//! The client against servers that are silent, absurd, or lying: each call ends with an error that names the problem,
//! in bounded time, and the connection is closed when it can no longer be in step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::memory::GuestMemory;
use common::raw::*;
use common::{PATIENCE, memfd};
use outrigger_protocol::client::{Client, ClientError, Options};
use outrigger_protocol::codec::ReceiveError;

const SHORT: Duration = Duration::from_millis(200);

fn connect(deadline: Duration, server: impl FnOnce(UnixStream) + Send + 'static) -> Result<Client, ClientError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || server(theirs));
    Client::new(ours, GuestMemory::new(0), &Options { deadline, ..Default::default() })
}

/// A client whose server has negotiated, and then does this with the first request.
fn with_server(deadline: Duration, then: impl FnOnce(Raw, Message) + Send + 'static) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, "{}");
        if let Some(request) = raw.receive() {
            then(raw, request);
        }
    });
    (Client::new(ours, GuestMemory::new(0), &Options { deadline, ..Default::default() }).unwrap(), server)
}

/// What becomes of one call on a client whose server does this.
fn outcome<T>(
    call: impl FnOnce(&Client) -> Result<T, ClientError>,
    then: impl FnOnce(Raw, Message) + Send + 'static,
) -> Result<T, ClientError> {
    let (client, server) = with_server(PATIENCE, then);
    let result = call(&client);
    if let Err(error) = &result {
        let usable = matches!(error, ClientError::Refused { .. } | ClientError::Local { .. });
        assert_eq!(client.is_closed(), !usable, "{error:?}");
    }
    drop(client);
    server.join().unwrap();
    result
}

/// The server answers with this payload; the client must call it malformed.
#[track_caller]
fn malformed<T>(call: impl FnOnce(&Client) -> Result<T, ClientError>, payload: Vec<u8>) {
    let result = outcome(call, move |raw, request| {
        raw.answer(&request, &payload, &[]);
    });
    assert!(matches!(&result, Err(ClientError::Malformed { .. })), "{:?}", result.err());
}

/// The version is answered with this; the client must call it malformed.
fn version_refused(json: &str, fds: &[std::os::fd::RawFd]) -> ClientError {
    let (json, fds) = (format!("{{\"capabilities\":{json}}}"), fds.to_vec());
    let result = connect(PATIENCE, move |stream| {
        let raw = Raw::new(stream);
        let request = raw.receive().unwrap();
        raw.answer(&request, &version(0, 1, &json), &fds);
        raw.closed();
    });
    result.unwrap_err()
}

#[test]
fn a_server_that_never_answers_the_version_is_given_up() {
    let begun = Instant::now();
    let result = connect(SHORT, |stream| Raw::new(stream).closed());
    assert!(matches!(result, Err(ClientError::TimedOut { .. })));
    assert!(begun.elapsed() >= SHORT);
}

#[test]
fn a_server_that_never_answers_a_request_is_given_up_for_good() {
    let (client, server) = with_server(SHORT, |raw, _| raw.closed());
    assert!(matches!(client.device_info(), Err(ClientError::TimedOut { .. })));
    assert!(matches!(client.device_info(), Err(ClientError::Disconnected(_))));
    server.join().unwrap();
}

#[test]
fn a_server_whose_answer_trickles_is_given_up() {
    let (client, server) = with_server(SHORT, |mut raw, request| {
        raw.send(&message_of_size(request.id, request.command, REPLY, 1 << 20, &[]), &[]);
        while raw.stream.write_all(&[0]).is_ok() {
            std::thread::sleep(SHORT / 20);
        }
    });
    assert!(matches!(client.device_info(), Err(ClientError::TimedOut { .. })));
    server.join().unwrap();
}

#[test]
fn a_server_that_takes_nothing_is_given_up() {
    let (client, server) = with_server(SHORT, |raw, _| {
        std::thread::sleep(SHORT * 2);
        drop(raw);
    });
    client.region_write_posted(0, 0, &[0]).unwrap();
    let result = client.region_write_posted(0, 0, &vec![0; 8 << 20]);
    assert!(matches!(result, Err(ClientError::TimedOut { .. } | ClientError::Disconnected(_))), "{result:?}");
    assert!(client.is_closed());
    server.join().unwrap();
}

#[test]
fn a_server_that_closes_at_once_within_the_version_or_within_a_reply_is_gone() {
    assert!(matches!(connect(PATIENCE, drop), Err(ClientError::Disconnected(_))));
    let half = connect(PATIENCE, |mut stream| stream.write_all(&[0; 7]).unwrap());
    assert!(matches!(half, Err(ClientError::Disconnected(_))));
    let result = outcome(Client::device_info, |raw, _| drop(raw));
    assert!(matches!(result, Err(ClientError::Disconnected(_))));
    let result = outcome(Client::device_info, |raw, request| {
        raw.send(&message_of_size(request.id, request.command, REPLY, 32, &[0; 4]), &[]);
    });
    assert!(matches!(result, Err(ClientError::Disconnected(_))));
}

#[test]
fn garbage_is_refused() {
    for byte in [0, b'H', 0xff] {
        let result = connect(PATIENCE, move |mut stream| {
            let _ = stream.write_all(&[byte; 4096]);
            Raw::new(stream).closed();
        });
        assert!(matches!(result, Err(ClientError::Receive { .. } | ClientError::Malformed { .. })), "{result:?}");
    }
}

#[test]
fn sizes_below_the_header_or_above_the_limit_are_refused() {
    for size in [0, 15, 16 + 16 + (1 << 20) + 1, u32::MAX] {
        let result = outcome(Client::device_info, move |raw, request| {
            raw.send(&message_of_size(request.id, request.command, REPLY, size, &[0; 16]), &[]);
        });
        assert!(matches!(result, Err(ClientError::Receive { source: ReceiveError::Size { .. }, .. })), "{result:?}");
    }
}

#[test]
fn a_version_reply_beyond_the_limit_is_refused() {
    let result = connect(PATIENCE, |stream| {
        let raw = Raw::new(stream);
        let request = raw.receive().unwrap();
        raw.answer(&request, &vec![b' '; 8192], &[]);
    });
    assert!(matches!(result, Err(ClientError::Receive { source: ReceiveError::Size { .. }, .. })), "{result:?}");
}

#[test]
fn a_reply_to_something_else_and_a_type_that_does_not_exist_are_refused() {
    for (id, command, flags) in [(1, 0, REPLY), (0, 1, REPLY), (0, 0, 2), (0, 0, 0xf), (1, 0, REPLY | ERROR)] {
        let result = outcome(Client::device_info, move |raw, request| {
            let (id, command) = (request.id.wrapping_add(id), request.command + command);
            raw.send(&message(id, command, flags, &words(&[16, 3, 9, 5])), &[]);
        });
        assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
    }
}

#[test]
fn an_error_is_handed_on_whatever_its_number_and_the_connection_stays() {
    for error in [0u32, 1, 22, 99999, u32::MAX] {
        let result = outcome(Client::device_info, move |raw, request| {
            let mut bytes = message(request.id, request.command, REPLY | ERROR, &[]);
            bytes[12..].copy_from_slice(&error.to_ne_bytes());
            raw.send(&bytes, &[]);
        });
        assert!(matches!(result, Err(ClientError::Refused { .. })), "{result:?}");
    }
}

#[test]
fn replies_that_nobody_asked_for_close_the_connection() {
    let (client, server) = with_server(PATIENCE, |raw, request| {
        raw.answer(&request, &words(&[16, 3, 9, 5]), &[]);
        raw.answer(&request, &words(&[16, 3, 9, 5]), &[]);
        raw.closed();
    });
    client.device_info().unwrap();
    let begun = Instant::now();
    while client.serve_ready().is_ok() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(client.is_closed());
    server.join().unwrap();
}

#[test]
fn another_version_is_refused() {
    for (major, minor) in [(1, 0), (1, 1), (0, 2), (u16::MAX, u16::MAX)] {
        let result = connect(PATIENCE, move |stream| {
            let raw = Raw::new(stream);
            let request = raw.receive().unwrap();
            raw.answer(&request, &version(major, minor, "{}"), &[]);
            raw.closed();
        });
        assert!(matches!(result, Err(ClientError::Version { major: m, .. }) if m == major), "{result:?}");
    }
}

#[test]
fn capabilities_that_make_no_sense_are_refused() {
    for json in [
        "[]",
        "{",
        r#"{"max_msg_fds":-1}"#,
        r#"{"max_data_xfer_size":0}"#,
        r#"{"pgsizes":0}"#,
        r#"{"pgsizes":"4k"}"#,
        r#"{"max_dma_maps":[1]}"#,
        r#"{"twin_socket":true}"#,
    ] {
        let error = version_refused(json, &[]);
        assert!(matches!(error, ClientError::Capabilities(_)), "{json}: {error:?}");
    }
}

#[test]
fn a_twin_socket_that_is_announced_but_not_there_is_refused() {
    let (one, _two) = UnixStream::pair().unwrap();
    for (index, fds) in
        [("", vec![]), (r#","fd_index":0"#, vec![]), (r#","fd_index":1"#, vec![fd(&one)]), ("", vec![fd(&one)])]
    {
        let error = version_refused(&format!(r#"{{"twin_socket":{{"supported":true{index}}}}}"#), &fds);
        assert!(matches!(error, ClientError::Malformed { .. }), "{error:?}");
    }
}

#[test]
fn a_twin_socket_that_is_no_connected_stream_socket_is_refused() {
    let memory = memfd(4096);
    let (pipe, _other) = nix::unistd::pipe().unwrap();
    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap();
    for wrong in [fd(&memory), fd(&pipe), fd(&datagram), fd(&tcp), fd(&listener)] {
        let error = version_refused(r#"{"twin_socket":{"supported":true,"fd_index":0}}"#, &[wrong]);
        assert!(matches!(error, ClientError::Malformed { .. }), "{error:?}");
    }
}

#[test]
fn limits_of_the_server_are_kept_or_named() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, r#"{"max_msg_fds":0,"max_data_xfer_size":3,"max_dma_maps":1}"#);
        let mut counts = Vec::new();
        while let Some(request) = raw.receive() {
            assert!(request.fds.is_empty());
            if request.command == REGION_WRITE {
                counts.push(request.u32_at(12));
            }
            raw.answer(&request, &[], &[]);
        }
        assert_eq!(counts, [3, 3, 1]);
    });
    let client = Client::new(ours, GuestMemory::new(0), &Options { deadline: PATIENCE, ..Default::default() }).unwrap();
    client.region_write(0, 0, &[0; 7]).unwrap();
    let memory = memfd(4096);
    let file = Some((std::os::fd::AsFd::as_fd(&memory), 0));
    client.dma_map(0, 4096, file).unwrap();
    assert!(matches!(client.dma_map(4096, 4096, file), Err(ClientError::Local { value: 2, limit: 1, .. })));
    let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
    let result = client.set_irq_eventfds(2, 0, &[std::os::fd::AsFd::as_fd(&eventfd)]);
    assert!(matches!(result, Err(ClientError::Local { limit: 0, .. })));
    assert!(!client.is_closed());
    drop(client);
    server.join().unwrap();
}

#[test]
fn page_sizes_of_the_server_are_kept() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, r#"{"pgsizes":2162688}"#);
        let request = raw.receive().unwrap();
        assert_eq!((request.command, request.u64_at(16), request.u64_at(24)), (DMA_MAP, 0x1_0000, 0x3_0000));
        raw.answer(&request, &[], &[]);
        raw.closed();
    });
    let client = common::client(ours);
    for (address, size) in [(0x1_0000, 4096), (4096, 0x1_0000), (0, 0x1_0001)] {
        let result = client.dma_map(address, size, None);
        assert!(matches!(result, Err(ClientError::Local { limit: 0x1_0000, .. })), "{result:?}");
    }
    client.dma_map(0x1_0000, 0x3_0000, None).unwrap();
    drop(client);
    server.join().unwrap();
}

#[test]
fn device_info_that_is_short_or_absurd_is_refused() {
    malformed(Client::device_info, vec![]);
    malformed(Client::device_info, words(&[16, 3, 9]));
    malformed(Client::device_info, words(&[16, 3, u32::MAX, 5]));
    malformed(Client::device_info, words(&[16, 3, 9, 257]));
}

#[test]
fn interrupt_info_that_is_short_for_another_type_or_absurd_is_refused() {
    malformed(|client| client.irq_info(2), words(&[16, 1, 2]));
    malformed(|client| client.irq_info(2), words(&[16, 1, 1, 4]));
    malformed(|client| client.irq_info(2), words(&[16, 1, 2, 2049]));
}

#[test]
fn data_of_another_length_than_was_read_is_refused() {
    let reply = |count: u32, length: usize| [longs(&[0]), words(&[0, count]), vec![0; length]].concat();
    for (count, length) in [(4, 3), (4, 5), (3, 4), (3, 3), (5, 5), (0, 0), (u32::MAX, 4)] {
        malformed(|client| client.region_read(0, 0, &mut [0; 4]), reply(count, length));
    }
    malformed(|client| client.region_read(0, 0, &mut [0; 4]), vec![0; 15]);
}

/// A region info reply for region 0 with this capability list behind it.
fn region(flags: u32, cap_offset: u32, size: u64, offset: u64, capabilities: &[u8]) -> Vec<u8> {
    let argsz = u32::try_from(32 + capabilities.len()).unwrap();
    [words(&[argsz, flags, 0, cap_offset]), longs(&[size, offset]), capabilities.to_vec()].concat()
}

fn sparse(next: u32, count: u32, areas: &[u64]) -> Vec<u8> {
    [words(&[0x0001_0001, next, count, 0]), longs(areas)].concat()
}

#[test]
fn region_info_whose_capabilities_lie_is_refused() {
    let bad = |cap_offset, capabilities: &[u8]| {
        malformed(|client| client.region_info(0), region(15, cap_offset, 0x4000, 0, capabilities));
    };
    bad(1, &sparse(0, 1, &[0, 0x1000]));
    bad(31, &sparse(0, 1, &[0, 0x1000]));
    bad(4096, &sparse(0, 1, &[0, 0x1000]));
    bad(u32::MAX, &sparse(0, 1, &[0, 0x1000]));
    bad(32, &[1, 0, 1, 0]);
    bad(32, &words(&[0x0001_0001, 0, 1]));
    bad(32, &sparse(0, 2, &[0, 0x1000]));
    bad(32, &sparse(0, u32::MAX, &[0, 0x1000]));
    bad(32, &sparse(0, 1, &[1, 0x1000]));
    bad(32, &sparse(0, 1, &[0, 0x1001]));
    bad(32, &sparse(0, 1, &[0, 0x5000]));
    bad(32, &sparse(0, 1, &[0x4000, 0x1000]));
    bad(32, &sparse(0, 1, &[!0xfff, 0x1000]));
    bad(32, &sparse(0, 2, &[0, 0x2000, 0x1000, 0x1000]));
    bad(32, &words(&[0x0001_0003, 32]));
    bad(32, &words(&[0x0001_0003, 8]));
    bad(32, &words(&[0x0001_0003, 4096]));
    // A region type that is cut off, loops, or comes twice, and areas that come twice or are not the end.
    bad(32, &words(&[0x0001_0002, 0, 1]));
    bad(32, &words(&[0x0001_0002, 32, 1, 2]));
    bad(32, &words(&[0x0001_0002, 48, 1, 2, 0x0001_0002, 0, 1, 2]));
    bad(32, &[sparse(64, 1, &[0, 0x1000]), sparse(0, 1, &[0, 0x1000])].concat());
    bad(32, &sparse(32, 1, &[0, 0x1000]));
    bad(32, &[words(&[0x0001_0002, 48, 1, 2]), sparse(0, 1, &[0, 0x5000])].concat());
}

#[test]
fn region_info_that_is_short_for_another_region_or_grows_each_time_is_refused() {
    malformed(|client| client.region_info(0), vec![0; 31]);
    malformed(|client| client.region_info(1), region(3, 0, 0x1000, 0, &[]));
    malformed(|client| client.region_info(0), [words(&[u32::MAX, 3, 0, 0]), longs(&[0, 0])].concat());
    let grown = outcome(
        |client| client.region_info(0),
        |raw, mut request| {
            for _ in 0..2 {
                raw.answer(&request, &[words(&[request.u32_at(0) + 1, 3, 0, 0]), longs(&[0, 0])].concat(), &[]);
                request = match raw.receive() {
                    Some(request) => request,
                    None => return,
                };
            }
        },
    );
    assert!(matches!(grown, Err(ClientError::Malformed { .. })), "{grown:?}");
}

#[test]
fn a_mapping_that_no_file_can_have_is_refused() {
    for (size, offset) in [(0x1000, 1), (0x1000, !0xfff), (0x1000, 1 << 63), (u64::MAX, 0x1000)] {
        let memory = memfd(4096);
        let result = outcome(
            |client| client.region_info(0),
            move |raw, request| {
                raw.answer(&request, &region(7, 0, size, offset, &[]), &[fd(&memory)]);
            },
        );
        assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
    }
}

#[test]
fn a_region_without_the_flag_or_the_descriptor_is_not_mappable() {
    for (flags, count) in [(3, 1), (7, 0), (11, 1), (15, 0)] {
        let memory = memfd(4096);
        let info = outcome(
            |client| client.region_info(0),
            move |raw, request| {
                let payload = region(flags, 32, 0x4000, 0, &sparse(0, 1, &[0, 0x1000]));
                raw.answer(&request, &payload, &vec![fd(&memory); count]);
            },
        );
        let info = info.unwrap();
        assert!(info.fd.is_none() && info.areas.is_empty());
    }
}

#[test]
fn more_than_one_descriptor_for_a_region_is_refused() {
    let result = outcome(
        |client| client.region_info(0),
        |raw, request| {
            let memory = memfd(4096);
            raw.answer(&request, &region(7, 0, 0x1000, 0, &[]), &[fd(&memory); 2]);
        },
    );
    assert!(matches!(result, Err(ClientError::Malformed { .. })), "{result:?}");
}

#[test]
fn a_part_of_a_page_at_the_end_of_a_mappable_region_is_left_out() {
    for (size, areas) in [(0x1800, vec![(0, 0x1000)]), (0x800, vec![]), (0, vec![])] {
        let memory = memfd(8192);
        let info = outcome(
            |client| client.region_info(0),
            move |raw, request| {
                raw.answer(&request, &region(7, 0, size, 0, &[]), &[fd(&memory)]);
            },
        );
        assert_eq!(info.unwrap().areas, areas);
    }
}

/// A sub-region.
fn io_fd(offset: u64, size: u64, fd_index: u32, kind: u32) -> Vec<u8> {
    [longs(&[offset, size]), words(&[fd_index, kind, 0, 0]), longs(&[0])].concat()
}

#[test]
fn sub_regions_that_lie_are_refused() {
    let bad = |argsz: u32, index: u32, count: u32, entries: Vec<u8>| {
        let result = outcome(
            |client| client.region_io_fds(0, 0x1000),
            move |raw, request| {
                let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
                raw.answer(&request, &[words(&[argsz, 0, index, count]), entries].concat(), &[fd(&eventfd)]);
            },
        );
        assert!(matches!(&result, Err(ClientError::Malformed { .. })), "{result:?}");
    };
    bad(56, 1, 1, io_fd(0, 4, 0, 0));
    bad(56, 0, 2, io_fd(0, 4, 0, 0));
    bad(56, 0, u32::MAX, io_fd(0, 4, 0, 0));
    bad(96, 0, 1, io_fd(0, 4, 0, 0));
    bad(16, 0, 1, io_fd(0, 4, 0, 0));
    bad(0, 0, 1, io_fd(0, 4, 0, 0));
    bad(u32::MAX, 0, 1, io_fd(0, 4, 0, 0));
    bad(56, 0, 1, io_fd(0, 4, 1, 0));
    bad(56, 0, 1, io_fd(0, 4, u32::MAX, 0));
    bad(56, 0, 1, io_fd(0, 0, 0, 1));
    bad(56, 0, 1, io_fd(0xffd, 4, 0, 2));
    bad(56, 0, 1, io_fd(0xffd, 4, 0, 0));
    bad(56, 0, 1, io_fd(0x1000, 0, 0, 0));
    bad(56, 0, 1, io_fd(u64::MAX, 4, 0, 0));
    bad(56, 0, 1, io_fd(8, u64::MAX, 0, 0));
}

#[test]
fn sub_regions_may_share_a_descriptor_and_be_longer_than_today() {
    let io_fds = outcome(
        |client| client.region_io_fds(0, 0x1000),
        |raw, request| {
            let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
            let entries = [io_fd(0, 4, 0, 0), vec![0xee; 8], io_fd(8, 4, 0, 1), vec![0xee; 8]].concat();
            raw.answer(&request, &[words(&[16 + 96, 0, 0, 2]), entries].concat(), &[fd(&eventfd)]);
        },
    );
    let io_fds = io_fds.unwrap();
    assert_eq!(io_fds.iter().map(|io_fd| io_fd.offset).collect::<Vec<_>>(), [0, 8]);
    assert_eq!(fd(&*io_fds[0].fd), fd(&*io_fds[1].fd));
}

#[test]
fn sub_regions_of_types_that_the_text_does_not_have_are_left_out() {
    let io_fds = outcome(
        |client| client.region_io_fds(0, 0x1000),
        |raw, request| {
            let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
            let entries = [io_fd(0, 4, 0, 2), io_fd(8, 4, 0, 0), io_fd(16, 4, 0, u32::MAX)].concat();
            raw.answer(&request, &[words(&[16 + 120, 0, 0, 3]), entries].concat(), &[fd(&eventfd)]);
        },
    );
    assert_eq!(io_fds.unwrap().iter().map(|io_fd| io_fd.offset).collect::<Vec<_>>(), [8]);
}

#[test]
fn posted_writes_that_are_answered_nevertheless_do_no_harm() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, "{}");
        while let Some(request) = raw.receive() {
            match request.command {
                REGION_WRITE => raw.answer(&request, &request.payload[..16], &[]),
                _ => raw.answer(&request, &words(&[16, 3, 9, 5]), &[]),
            };
        }
    });
    let client = Client::new(ours, GuestMemory::new(0), &Options { deadline: PATIENCE, ..Default::default() }).unwrap();
    for _ in 0..50 {
        client.region_write_posted(0, 0, &[0; 4]).unwrap();
        client.region_write_posted(0, 0, &[0; 4]).unwrap();
        client.device_info().unwrap();
        client.serve_ready().unwrap();
    }
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_dma_map_that_is_refused_leaves_an_earlier_one_of_the_same_range_alone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, "{}");
        let request = raw.receive().unwrap();
        raw.answer(&request, &[], &[]);
        let request = raw.receive().unwrap();
        raw.send(&message(request.id, request.command, REPLY | ERROR, &[]), &[]);
        let mut raw = raw;
        raw.succeed(DMA_READ, &longs(&[0, 16]), &[]);
    });
    let client =
        Client::new(ours, GuestMemory::new(4096), &Options { deadline: PATIENCE, ..Default::default() }).unwrap();
    client.dma_map(0, 4096, None).unwrap();
    assert!(matches!(client.dma_map(0, 4096, None), Err(ClientError::Refused { .. })));
    while !server.is_finished() {
        let _ = client.serve_ready();
        std::thread::yield_now();
    }
    server.join().unwrap();
}
