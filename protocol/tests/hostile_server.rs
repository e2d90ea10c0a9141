//! The client against servers that are silent, absurd, or lying: each call ends with an error that names the problem,
//! in bounded time, and the connection is closed when it can no longer be in step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::hostile::{malformed, outcome, with_server};
use common::memory::GuestMemory;
use common::raw::*;
use common::{PATIENCE, memfd};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use outrigger_protocol::client::{Client, ClientError, Fault, Options};
use outrigger_protocol::codec::ReceiveError;

/// A deadline that is to pass. A thread that has something to do before it gets a processor within this time.
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

fn connect(deadline: Duration, server: impl FnOnce(UnixStream) + Send + 'static) -> Result<Client, ClientError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || server(theirs));
    Client::new(ours, GuestMemory::new(0), &Options { deadline, ..Default::default() })
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

/// As where a process had time to begin, and has less once it serves.
#[test]
fn a_deadline_that_is_changed_is_that_of_the_next_request() {
    let (client, server) = with_server(LONG, |raw, _| raw.closed());
    client.set_deadline(SHORT);
    let begun = Instant::now();
    let result = client.device_info();
    assert!(matches!(result, Err(ClientError::TimedOut { deadline: SHORT, .. })), "{result:?}");
    assert!((SHORT..LONG / 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    server.join().unwrap();
}

/// Nobody waits for an answer, and a request that has begun must go on all the same.
#[test]
fn a_deadline_that_is_changed_is_that_of_a_request_of_the_servers_own() {
    let (client, server) = with_server(LONG, |mut raw, request| {
        raw.answer(&request, &[], &[]);
        raw.stream.write_all(&[0; 4]).unwrap();
        raw.closed();
    });
    client.set_deadline(SHORT);
    client.reset().unwrap();
    let begun = Instant::now();
    while !client.is_closed() && begun.elapsed() < LONG / 2 {
        let _ = client.serve_step();
        std::thread::sleep(SHORT / 20);
    }
    assert!(client.is_closed());
    server.join().unwrap();
}

/// The server was in time. The client was stopped for longer than the deadline, by a shell or here by a handler that takes its time.
#[test]
fn an_answer_that_came_while_the_client_was_stopped_counts() {
    extern "C" fn stops(_: i32) {
        std::thread::sleep(SHORT * 2);
    }
    let action = SigAction::new(SigHandler::Handler(stops), SaFlags::empty(), SigSet::empty());
    // SAFETY: all that the handler does is nanosleep, which is async-signal-safe, and no other test uses the signal.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    let asking = pthread_self();
    let (client, server) = with_server(SHORT, move |raw, request| {
        pthread_kill(asking, Signal::SIGUSR2).unwrap();
        // Otherwise the client might have the answer before it is stopped.
        std::thread::sleep(SHORT / 4);
        raw.answer(&request, &[], &[]);
        raw.closed();
    });
    client.reset().unwrap();
    drop(client);
    server.join().unwrap();
}

/// The next caller to see the connection closed learns what for, and not that the server has closed it.
#[test]
fn what_ended_a_connection_is_known_when_it_is_seen_closed() {
    let (client, server) = with_server(PATIENCE, |raw, request| {
        raw.send(&message_of_size(request.id, request.command, REPLY, 15, &[]), &[]);
        raw.closed();
    });
    assert_eq!(client.fault(), None);
    let error = client.reset().unwrap_err();
    assert!(client.is_closed());
    assert!(matches!(client.reset(), Err(ClientError::Disconnected(_))));
    let how = format!("{error}: a message claims 15 bytes");
    assert!(matches!(client.fault(), Some(Fault::Broken(text)) if text.starts_with(&how)), "{:?}", client.fault());
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
    assert_eq!(client.fault(), Some(&Fault::Silent));
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
fn data_of_another_length_than_was_read_is_refused() {
    let reply = |count: u32, length: usize| [longs(&[0]), words(&[0, count]), vec![0; length]].concat();
    for (count, length) in [(4, 3), (4, 5), (3, 4), (3, 3), (5, 5), (0, 0), (u32::MAX, 4)] {
        malformed(|client| client.region_read(0, 0, &mut [0; 4]), reply(count, length));
    }
    malformed(|client| client.region_read(0, 0, &mut [0; 4]), vec![0; 15]);
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
