//! `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`, client: served whatever the client is doing, on the one socket or on
//! the twin, and only within what was mapped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::PATIENCE;
use common::memory::GuestMemory;
use common::raw::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outrigger_protocol::client::{Client, ClientError, Options};

const RAM: usize = 4 << 20;
const INFO: [u32; 4] = [16, 3, 9, 5];

/// A client with all of its memory mapped but for the first page, and a server that does this afterwards.
/// A client whose server has memory, and then does this. `deadline` is that of what comes then.
fn mapped(deadline: Duration, then: impl FnOnce(Raw) + Send + 'static) -> (Client, Arc<GuestMemory>, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, "{}");
        let map = raw.receive().unwrap();
        raw.answer(&map, &[], &[]);
        then(raw);
    });
    let memory = GuestMemory::new(RAM);
    let client = Client::new(ours, memory.clone(), &Options { deadline: PATIENCE, ..Default::default() }).unwrap();
    client.dma_map(4096, RAM as u64 - 4096, None).unwrap();
    client.set_deadline(deadline);
    (client, memory, server)
}

/// Serves what comes while nothing else is under way, as a VMM's event loop does, until the server thread is done.
fn serve_until(client: &Client, done: impl Fn() -> bool) -> Result<(), ClientError> {
    let begun = Instant::now();
    // No socket tells of a call's leftovers.
    client.serve_ready()?;
    while !done() && begun.elapsed() < PATIENCE {
        let watched: Vec<_> = client.watch().collect();
        let events = |requests| if requests { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds: Vec<_> = watched.iter().map(|watch| PollFd::new(watch.fd, events(watch.requests))).collect();
        if poll(&mut fds, PollTimeout::from(10u8)).unwrap() > 0 {
            client.serve_ready()?;
        }
    }
    Ok(())
}

/// Serves a server until it leaves.
fn serve(client: &Client, server: JoinHandle<()>) {
    let result = serve_until(client, || server.is_finished());
    server.join().unwrap();
    assert!(matches!(result, Ok(()) | Err(ClientError::Disconnected(_))), "{result:?}");
}

fn write(address: u64, data: &[u8]) -> Vec<u8> {
    [longs(&[address, data.len() as u64]), data.to_vec()].concat()
}

#[test]
fn malformed_requests_are_refused_and_the_connection_stays() {
    let (client, _, server) = mapped(PATIENCE, |mut raw| {
        for command in [DMA_READ, DMA_WRITE] {
            for length in 0..16 {
                raw.refused(EINVAL, command, &longs(&[4096, 0])[..length], &[]);
            }
        }
        raw.refused(EINVAL, DMA_READ, &write(4096, &[0]), &[]);
        for count in [(1 << 20) + 1, 1 << 32, u64::MAX] {
            raw.refused(EINVAL, DMA_READ, &longs(&[4096, count]), &[]);
        }
        for count in [0, 3, 5, u64::MAX] {
            raw.refused(EINVAL, DMA_WRITE, &[longs(&[4096, count]), vec![0; 4]].concat(), &[]);
        }
        let own = fd(&raw.stream);
        raw.refused(EINVAL, DMA_READ, &longs(&[4096, 4]), &[own]);
    });
    serve(&client, server);
}

#[test]
fn commands_that_are_not_a_servers_to_send_are_refused() {
    let (client, _, server) = mapped(PATIENCE, |mut raw| {
        for command in [0, VERSION, DMA_MAP, GET_INFO, REGION_READ, REGION_WRITE, RESET, 14, 15, 99, u16::MAX] {
            raw.refused(ENOTSUP, command, &[0; 16], &[]);
        }
    });
    serve(&client, server);
}

#[test]
fn what_was_not_mapped_is_out_of_reach() {
    let (client, memory, server) = mapped(PATIENCE, |mut raw| {
        let end = RAM as u64;
        for address in [0, 4092, 4095, end - 4, end, u64::MAX - 7, u64::MAX] {
            raw.refused(EFAULT, DMA_READ, &longs(&[address, 8]), &[]);
            raw.refused(EFAULT, DMA_WRITE, &write(address, &[7; 8]), &[]);
        }
    });
    serve(&client, server);
    assert!(memory.0.lock().unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn what_was_unmapped_is_out_of_reach_even_if_the_server_refuses_to_let_go() {
    let (client, _, server) = mapped(PATIENCE, |mut raw| {
        let unmap = raw.receive().unwrap();
        // Until the reply, what was begun may be finished.
        raw.succeed(DMA_READ, &longs(&[4096, 8]), &[]);
        raw.send(&message(unmap.id, unmap.command, REPLY | ERROR, &[]), &[]);
        raw.refused(EFAULT, DMA_READ, &longs(&[4096, 8]), &[]);
    });
    assert!(matches!(client.dma_unmap(4096, RAM as u64 - 4096), Err(ClientError::Refused { .. })));
    serve(&client, server);
}

#[test]
fn requests_are_served_in_the_middle_of_a_call() {
    let (client, memory, server) = mapped(PATIENCE, |mut raw| {
        let request = raw.receive().unwrap();
        let reply = raw.succeed(DMA_READ, &longs(&[4096, 4]), &[]);
        assert_eq!(reply.payload, write(4096, &[1, 2, 3, 4]));
        let reply = raw.succeed(DMA_WRITE, &write(8192, b"dma"), &[]);
        assert_eq!(reply.payload, longs(&[8192, 3]));
        raw.command(DMA_WRITE, NO_REPLY, &write(8195, b"!"), &[]);
        raw.answer(&request, &words(&INFO), &[]);
    });
    memory.0.lock().unwrap()[4096..4100].copy_from_slice(&[1, 2, 3, 4]);
    client.device_info().unwrap();
    assert_eq!(&memory.0.lock().unwrap()[8192..8196], b"dma!");
    server.join().unwrap();
}

#[test]
fn a_request_that_arrives_together_with_a_reply_is_served() {
    let (client, memory, server) = mapped(PATIENCE, |raw| {
        let request = raw.receive().unwrap();
        let both = [
            message(request.id, request.command, REPLY, &words(&INFO)),
            message(1, DMA_WRITE, COMMAND, &write(4096, &[9])),
        ];
        raw.send(&both.concat(), &[]);
        assert_eq!(raw.receive().unwrap().command, DMA_WRITE);
    });
    client.device_info().unwrap();
    // No thread polls: the call serves what was read along with the reply before it returns.
    assert_eq!(memory.0.lock().unwrap()[4096], 9);
    server.join().unwrap();
}

#[test]
fn a_server_that_asks_before_it_takes_more_does_not_deadlock_with_a_client_that_sends() {
    let (client, memory, server) = mapped(PATIENCE, |raw| {
        // The client is stuck within its message by now: it is larger than the socket's buffer.
        let mut request = [0; 16];
        std::io::Read::read_exact(&mut &raw.stream, &mut request).unwrap();
        // More than the socket's buffer: this ends only if the client receives while it sends.
        for page in 1..=256 {
            raw.send(&message(page, DMA_WRITE, COMMAND, &write(u64::from(page) * 4096, &[7; 4096])), &[]);
        }
        let size = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        let mut payload = vec![0; size as usize - 16];
        std::io::Read::read_exact(&mut &raw.stream, &mut payload).unwrap();
        assert!(payload[16..].iter().all(|&byte| byte == 0x5a), "a reply got into the middle of a message");
        raw.send(&message(u16::from_ne_bytes([request[0], request[1]]), REGION_WRITE, REPLY, &payload[..16]), &[]);
        for page in 1..=256 {
            let reply = raw.receive().unwrap();
            assert_eq!((reply.id, reply.command, reply.flags), (page, DMA_WRITE, REPLY));
        }
    });
    client.region_write(0, 0, &vec![0x5a; 1 << 20]).unwrap();
    server.join().unwrap();
    assert_eq!(memory.0.lock().unwrap()[4096..][..256 * 4096].iter().filter(|&&byte| byte == 7).count(), 256 * 4096);
}

#[test]
fn replies_larger_than_the_socket_takes_reach_a_server_that_asks_for_many_first() {
    let (client, _, server) = mapped(PATIENCE, |raw| {
        let request = raw.receive().unwrap();
        let asked: Vec<u8> = (0..8).flat_map(|id| message(id, DMA_READ, COMMAND, &longs(&[4096, 1 << 20]))).collect();
        raw.send(&asked, &[]);
        raw.answer(&request, &words(&INFO), &[]);
        let replies = (0..8).map(|id| {
            let reply = raw.receive().unwrap();
            assert_eq!((reply.id, reply.payload.len()), (id, 16 + (1 << 20)));
        });
        assert_eq!(replies.count(), 8);
    });
    client.device_info().unwrap();
    serve(&client, server);
}

#[test]
fn a_flood_of_requests_neither_holds_up_a_call_for_ever_nor_grows_memory() {
    let deadline = Duration::from_millis(300);
    for flags in [COMMAND, NO_REPLY] {
        let (client, _, server) = mapped(deadline, move |raw| {
            let flood: Vec<u8> = (0..64).flat_map(|id| message(id, DMA_READ, flags, &longs(&[4096, 4096]))).collect();
            while raw.send(&flood, &[]) {}
        });
        let begun = Instant::now();
        // Disconnected: the flood was given up while the call before it was being finished.
        let result = client.device_info();
        assert!(matches!(result, Err(ClientError::TimedOut { .. } | ClientError::Disconnected(_))), "{result:?}");
        assert!(begun.elapsed() < PATIENCE && client.is_closed());
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn a_flood_while_no_call_is_under_way_leaves_room_for_calls() {
    let (client, _, server) = mapped(PATIENCE, |raw| {
        let replies = raw.stream.try_clone().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let flood = message(1, DMA_WRITE, NO_REPLY, &write(4096, &[7; 4]));
        let sender = std::thread::spawn({
            let done = done.clone();
            let raw = Raw::new(replies);
            move || {
                // Whole messages from one thread at a time: this one also answers.
                let mut answered = false;
                while !done.load(Ordering::SeqCst) && raw.send(&flood, &[]) {
                    if !answered && readable(&raw.stream) {
                        let request = raw.receive().unwrap();
                        raw.answer(&request, &words(&INFO), &[]);
                        answered = true;
                    }
                }
            }
        });
        sender.join().unwrap();
    });
    let client = Arc::new(client);
    let done = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let (client, done) = (client.clone(), done.clone());
        move || {
            let _ = serve_until(&client, || done.load(Ordering::SeqCst));
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    client.device_info().unwrap();
    done.store(true, Ordering::SeqCst);
    client.close();
    watcher.join().unwrap();
    server.join().unwrap();
}

#[test]
fn watching_by_edges_loses_no_request_whatever_calls_are_under_way() {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    const ROUNDS: u64 = 3000;
    let (served, one_served) = std::sync::mpsc::channel();
    let (client, _, server) = mapped(PATIENCE, move |mut raw| {
        for round in 0..ROUNDS {
            let request = raw.receive().unwrap();
            raw.answer(&request, &words(&INFO), &[]);
            // Arrives before, while or after the client gives its connection back.
            (0..round % 64).for_each(|_| std::hint::spin_loop());
            raw.succeed(DMA_READ, &longs(&[4096 + round, 8]), &[]);
            served.send(()).unwrap();
        }
    });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
            for watched in client.watch() {
                let edges = EpollFlags::EPOLLET | EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                epoll.add(watched.fd, EpollEvent::new(edges, 0)).unwrap();
            }
            let mut events = [EpollEvent::empty(); 4];
            while !done.load(Ordering::SeqCst) {
                if epoll.wait(&mut events, EpollTimeout::from(10u8)).unwrap() > 0 {
                    let _ = client.serve_ready();
                }
            }
        });
        let all = (0..ROUNDS).all(|_| {
            client.device_info().unwrap();
            // No call rescues a request that was forgotten.
            one_served.recv_timeout(PATIENCE / 4).is_ok()
        });
        done.store(true, Ordering::SeqCst);
        assert!(all, "a request was forgotten");
    });
    client.close();
    server.join().unwrap();
}

fn readable(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(stream), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
}

#[test]
fn a_server_that_does_not_take_its_replies_is_given_up() {
    let (given_up, is_given_up) = std::sync::mpsc::channel();
    let (client, _, server) = mapped(Duration::from_millis(200), move |raw| {
        raw.receive().unwrap();
        let asked = message(1, DMA_READ, COMMAND, &longs(&[4096, 1 << 20]));
        for _ in 0..4 {
            raw.send(&asked, &[]);
        }
        is_given_up.recv().unwrap();
    });
    client.region_write_posted(0, 0, &[0]).unwrap();
    let result = serve_until(&client, || false);
    given_up.send(()).unwrap();
    assert!(matches!(result, Err(ClientError::TimedOut { .. })), "{result:?}");
    assert!(client.is_closed());
    server.join().unwrap();
}

/// Asks without a pause, and takes every reply.
fn ask_without_pause(raw: &Raw, done: &AtomicBool) {
    let asked = message(1, DMA_READ, COMMAND, &longs(&[4096, 64 << 10]));
    while !done.load(Ordering::SeqCst) {
        // Four at a time, so that there is always one to serve.
        if !(0..4).all(|_| raw.send(&asked, &[])) || !(0..4).all(|_| raw.receive().is_some()) {
            return;
        }
    }
}

#[test]
fn a_server_that_asks_for_longer_than_the_deadline_and_takes_its_replies_is_served() {
    // The thread that takes the replies gets a processor within this time.
    let deadline = Duration::from_secs(3);
    let done = Arc::new(AtomicBool::new(false));
    let asking = done.clone();
    let (client, _, server) = mapped(deadline, move |raw| ask_without_pause(&raw, &asking));
    let begun = Instant::now();
    while begun.elapsed() < 2 * deadline {
        client.serve_step().unwrap();
    }
    done.store(true, Ordering::SeqCst);
    // Owed replies are sent, too.
    while !server.is_finished() && client.serve_step().is_ok() {}
    server.join().unwrap();
}

#[test]
fn a_server_that_takes_a_little_of_its_replies_within_each_deadline_is_served() {
    let deadline = Duration::from_secs(3);
    let (client, _, server) = mapped(deadline, move |raw| {
        let asked = message(1, DMA_READ, COMMAND, &longs(&[4096, 1 << 20]));
        assert!(raw.send(&asked, &[]) && raw.send(&asked, &[]));
        // Each is taken in a dozen parts, with pauses that add up to more than the deadline.
        let mut taken = 0;
        let mut part = vec![0; 128 << 10];
        while taken < 2 * ((1 << 20) + 32) {
            std::thread::sleep(deadline / 8);
            taken += std::io::Read::read(&mut &raw.stream, &mut part).unwrap();
        }
    });
    let begun = Instant::now();
    while !server.is_finished() && begun.elapsed() < PATIENCE {
        match client.serve_step() {
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => assert!(matches!(error, ClientError::Disconnected(_)), "{error}"),
        }
    }
    assert!(begun.elapsed() > deadline);
    server.join().unwrap();
}

/// The deadline is the access's, not that of each of the messages that it is split into.
#[test]
fn an_access_that_takes_many_messages_has_one_deadline() {
    let deadline = Duration::from_secs(1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, r#"{"max_data_xfer_size":1}"#);
        while let Some(request) = raw.receive() {
            std::thread::sleep(deadline / 4);
            raw.answer(&request, &[&request.payload[..16], &[7]].concat(), &[]);
        }
    });
    let options = Options { deadline: PATIENCE, ..Default::default() };
    let client = Client::new(ours, GuestMemory::new(0), &options).unwrap();
    client.set_deadline(deadline);
    // Sixteen deadlines long, if each message had one.
    let result = client.region_read(0, 0, &mut [0; 64]);
    assert!(matches!(result, Err(ClientError::TimedOut { .. })), "{result:?}");
    drop(client);
    server.join().unwrap();
}

#[test]
fn half_a_request_does_not_hold_up_whoever_watches() {
    let (told, tell) = std::sync::mpsc::channel();
    let (client, memory, server) = mapped(PATIENCE, move |raw| {
        let request = message(1, DMA_WRITE, COMMAND, &write(4096, &[7; 64]));
        raw.send(&request[..50], &[]);
        tell.recv().unwrap();
        raw.send(&request[50..], &[]);
        assert_eq!(raw.receive().unwrap().id, 1);
    });
    let begun = Instant::now();
    for _ in 0..20 {
        client.serve_ready().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(begun.elapsed() < PATIENCE / 2);
    told.send(()).unwrap();
    serve(&client, server);
    assert_eq!(memory.0.lock().unwrap()[4096..4160], [7; 64]);
}

#[test]
fn a_hang_up_while_nothing_is_under_way_is_noticed() {
    let (client, _, server) = mapped(PATIENCE, drop);
    server.join().unwrap();
    assert!(matches!(serve_until(&client, || false), Err(ClientError::Disconnected(_))));
    assert!(client.is_closed());
}

/// A client with a twin socket; the server has both ends.
fn twin() -> (Client, Arc<GuestMemory>, Raw, Raw) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::new(theirs);
        let request = raw.receive().unwrap();
        let text = String::from_utf8(request.payload[4..].to_vec()).unwrap();
        assert!(text.contains(r#""twin_socket":{"supported":true}"#), "{text}");
        let (kept, given) = UnixStream::pair().unwrap();
        let (other, _) = UnixStream::pair().unwrap();
        let json = r#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":1}}}"#;
        raw.answer(&request, &version(0, 1, json), &[fd(&other), fd(&given)]);
        let map = raw.receive().unwrap();
        raw.answer(&map, &[], &[]);
        (raw, Raw::new(kept))
    });
    let memory = GuestMemory::new(RAM);
    let client = Client::new(ours, memory.clone(), &Options { deadline: PATIENCE, ..Default::default() }).unwrap();
    client.dma_map(4096, 4096, None).unwrap();
    let (main, twin) = server.join().unwrap();
    (client, memory, main, twin)
}

#[test]
fn with_a_twin_socket_requests_are_served_there_while_a_call_waits_on_the_other() {
    let (client, memory, main, mut twin) = twin();
    assert_eq!(client.watch().map(|watch| watch.requests).collect::<Vec<_>>(), [false, true]);
    let server = std::thread::spawn(move || {
        let request = main.receive().unwrap();
        twin.succeed(DMA_WRITE, &write(4096, &[5; 8]), &[]);
        twin.refused(EFAULT, DMA_WRITE, &write(8192, &[5; 8]), &[]);
        main.answer(&request, &words(&INFO), &[]);
        main.receive()
    });
    std::thread::scope(|scope| {
        let done = Arc::new(AtomicBool::new(false));
        let watching = done.clone();
        let client = &client;
        scope.spawn(move || serve_until(client, || watching.load(Ordering::SeqCst)).unwrap());
        client.device_info().unwrap();
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(memory.0.lock().unwrap()[4096..4104], [5; 8]);
    drop(client);
    assert!(server.join().unwrap().is_none());
}

#[test]
fn with_a_twin_socket_the_end_of_either_is_the_end() {
    for main_ends in [true, false] {
        let (client, _, main, twin) = twin();
        let kept = if main_ends {
            drop(main);
            twin
        } else {
            drop(twin);
            main
        };
        assert!(matches!(serve_until(&client, || false), Err(ClientError::Disconnected(_))));
        kept.closed();
    }
}

#[test]
fn garbage_on_the_twin_socket_closes_both() {
    let (client, _, main, twin) = twin();
    twin.send(&[0; 64], &[]);
    assert!(matches!(serve_until(&client, || false), Err(ClientError::Receive { .. })));
    assert!(matches!(client.device_info(), Err(ClientError::Disconnected(_))));
    main.closed();
    twin.closed();
}
