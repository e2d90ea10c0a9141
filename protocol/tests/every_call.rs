//! Client: the reply to every call may be cut off, belong to another call, be an error, be empty or garbage, or never
//! come.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use common::PATIENCE;
use common::memory::GuestMemory;
use common::raw::*;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use outrigger_protocol::client::{Client, ClientError, Options, RegionWrite};
use outrigger_protocol::migration::DeviceState;

type Call = fn(&Client) -> Result<(), ClientError>;

/// Each call, and whether its reply has a payload that matters.
const CALLS: &[(&str, bool, Call)] = &[
    ("device_info", true, |client| client.device_info().map(drop)),
    ("region_info", true, |client| client.region_info(0).map(drop)),
    ("region_io_fds", true, |client| client.region_io_fds(0, 4096).map(drop)),
    ("irq_info", true, |client| client.irq_info(0).map(drop)),
    ("set_irq_eventfds", false, |client| client.set_irq_eventfds(0, 0, &[EventFd::new().unwrap().as_fd()])),
    ("disable_irqs", false, |client| client.disable_irqs(0)),
    ("mask_irq", false, |client| client.mask_irq(0, 0)),
    ("unmask_irq", false, |client| client.unmask_irq(0, 0)),
    ("region_read", true, |client| client.region_read(0, 0, &mut [0; 4])),
    ("region_write", false, |client| client.region_write(0, 0, &[0; 4])),
    ("region_write_multi", true, |client| {
        client.region_write_multi(&[RegionWrite { region: 0, offset: 0, data: &[1] }]).map(drop)
    }),
    ("dma_map", false, |client| client.dma_map(0, 4096, None)),
    ("dma_unmap", false, |client| client.dma_unmap(0, 4096)),
    ("reset", false, Client::reset),
    ("probe_feature", true, |client| client.probe_feature(1, true, false).map(drop)),
    ("get_feature", true, |client| client.get_feature(1, &[]).map(drop)),
    ("set_feature", true, |client| client.set_feature(1, &[])),
    ("migration", true, |client| client.migration().map(drop)),
    ("device_state", true, |client| client.device_state().map(drop)),
    ("set_device_state", true, |client| client.set_device_state(DeviceState::Stop)),
    ("read_migration_data", true, |client| client.read_migration_data(&mut [0; 4]).map(drop)),
    ("write_migration_data", false, |client| client.write_migration_data(&[0; 4])),
    ("can_log_dma", true, |client| client.can_log_dma().map(drop)),
    ("start_dma_logging", true, |client| client.start_dma_logging(4096, &[]).map(drop)),
    ("stop_dma_logging", true, Client::stop_dma_logging),
    ("dirty_pages", true, |client| client.dirty_pages(0, 4096, 4096).map(drop)),
];

/// A client whose server does this with the first request, and then waits for the end.
fn against(deadline: Duration, then: impl FnOnce(&mut Raw, Message) + Send + 'static) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut raw = Raw::server(theirs, r#"{"write_multiple":true,"max_msg_fds":8}"#);
        let request = raw.receive().unwrap();
        then(&mut raw, request);
    });
    let options = Options { deadline, twin_socket: false, ..Options::default() };
    (Client::new(ours, GuestMemory::new(4096), &options).unwrap(), server)
}

#[test]
fn a_reply_that_is_cut_off_is_the_end() {
    for &(name, _, call) in CALLS {
        for cut in [0, 1, 7, 15, 16, 23] {
            let (client, server) = against(PATIENCE, move |raw, request| {
                let whole = message(request.id, request.command, REPLY, &[0; 8]);
                raw.send(&whole[..cut], &[]);
            });
            let result = call(&client);
            assert!(matches!(result, Err(ClientError::Disconnected(_))), "{name}, {cut} bytes: {result:?}");
            assert!(client.is_closed());
            server.join().unwrap();
        }
    }
}

#[test]
fn a_reply_with_another_id_or_command_or_type_is_the_end() {
    for &(name, _, call) in CALLS {
        for (id, command, flags) in
            [(1, 0, REPLY), (u16::MAX, 0, REPLY), (0, 1, REPLY), (0, 0, 3), (1, 0, REPLY | ERROR)]
        {
            let (client, server) = against(PATIENCE, move |raw, request| {
                let (id, command) = (request.id.wrapping_add(id), request.command + command);
                raw.send(&message(id, command, flags, &request.payload), &[]);
            });
            let result = call(&client);
            assert!(matches!(result, Err(ClientError::Malformed { .. })), "{name}: {result:?}");
            assert!(client.is_closed());
            server.join().unwrap();
        }
    }
}

#[test]
fn an_error_is_that_calls_matter_alone() {
    for &(name, _, call) in CALLS {
        let (client, server) = against(PATIENCE, |raw, request| {
            let mut refusal = message(request.id, request.command, REPLY | ERROR, &[]);
            refusal[12..16].copy_from_slice(&1u32.to_ne_bytes());
            raw.send(&refusal, &[]);
            let request = raw.receive().unwrap();
            raw.answer(&request, &words(&[16, 3, 9, 5]), &[]);
        });
        let result = call(&client);
        assert!(matches!(result, Err(ClientError::Refused { errno: Errno::EPERM, .. })), "{name}: {result:?}");
        client.device_info().unwrap();
        server.join().unwrap();
    }
}

#[test]
fn an_empty_reply_and_garbage_are_the_end_where_the_payload_matters() {
    for &(name, matters, call) in CALLS {
        for payload in [vec![], vec![0xff; 7], vec![0xff; 64], vec![0xff; 1 << 20]] {
            let (client, server) = against(PATIENCE, move |raw, request| {
                raw.answer(&request, &payload, &[]);
            });
            match call(&client) {
                Ok(()) => assert!(!matters, "{name}"),
                Err(ClientError::Malformed { .. }) => assert!(matters && client.is_closed(), "{name}"),
                Err(error) => panic!("{name}: {error:?}"),
            }
            server.join().unwrap();
        }
    }
}

#[test]
fn a_reply_that_never_comes_or_never_ends_is_given_up_at_the_deadline() {
    std::thread::scope(|scope| {
        for &(name, _, call) in CALLS {
            // All at the same time: most of that time is waiting.
            scope.spawn(move || {
                for cut in [0, 15, 17] {
                    let (client, server) = against(Duration::from_secs(1), move |raw, request| {
                        raw.send(&message(request.id, request.command, REPLY, &[0; 8])[..cut], &[]);
                        assert!(raw.receive().is_none());
                    });
                    let result = call(&client);
                    assert!(matches!(result, Err(ClientError::TimedOut { .. })), "{name}, {cut}: {result:?}");
                    let result = call(&client);
                    assert!(matches!(result, Err(ClientError::Disconnected(_))), "{name}: {result:?}");
                    server.join().unwrap();
                }
            });
        }
    });
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    for &(name, _, call) in CALLS.iter().filter(|(_, matters, _)| !matters) {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (client, server) = against(PATIENCE, move |raw, request| {
            raw.answer(&request, &[], &[fd(&write), fd(&write)]);
        });
        call(&client).unwrap_or_else(|error| panic!("{name}: {error}"));
        server.join().unwrap();
        // The server's copy is gone with its thread; with ours gone as well, the pipe ends.
        assert_eq!(nix::unistd::read(&read, &mut [0]), Ok(0), "{name}");
    }
}

#[test]
fn requests_with_the_id_and_command_of_the_call_under_way_are_requests() {
    for &(name, _, call) in CALLS {
        let (client, server) = against(PATIENCE, |raw, request| {
            // Refused, as no server sends this; but answered, and not taken for the reply.
            let sent = raw.send(&message(request.id, request.command, COMMAND, &request.payload), &[]);
            let reply = raw.receive().unwrap();
            assert!(sent && (reply.id, reply.command) == (request.id, request.command));
            assert_eq!((reply.flags, reply.error), (REPLY | ERROR, ENOTSUP));
            let mut refusal = message(request.id, request.command, REPLY | ERROR, &[]);
            refusal[12..16].copy_from_slice(&1u32.to_ne_bytes());
            raw.send(&refusal, &[]);
        });
        let result = call(&client);
        assert!(matches!(result, Err(ClientError::Refused { errno: Errno::EPERM, .. })), "{name}: {result:?}");
        server.join().unwrap();
    }
}
