//! Device processes whose clients are rude (`tests/src/rude_client.rs`): the next honest one is served at once, SIGTERM ends the process at
//! any moment, and its socket is removed, but nothing that others have put in its place.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::driver::Driver;
use outrigger_tests::process::{Process, eventually, run};
use outrigger_tests::qemu::Server;
use outrigger_tests::random::Random;
use outrigger_tests::rude_client::{MANNERS, Manner, honest};
use outrigger_tests::{binaries, disk};
use tempfile::TempDir;

/// The time of an honest client for all that it does, behind a rude one.
const AT_ONCE: Duration = Duration::from_secs(1);
const END: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(60);

fn disk_server(directory: &Path) -> Server {
    let image = directory.join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    Server::start("outrigger-blk", &directory.join("blk.sock"), &["--disk", &format!("path={}", image.display())])
}

/// Sends SIGTERM; the process has a second to end with status 0, and its socket is gone.
#[track_caller]
fn ends_at_once(server: Server, after: &str) -> Duration {
    let socket = server.socket().to_owned();
    let pid = server.process().pid();
    let start = Instant::now();
    server.process().signal(Signal::SIGTERM);
    // A zombie counts as ended.
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    eventually(LIMIT, || state().rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z")));
    let time = start.elapsed();
    let ended = server.finish();
    assert!(time <= END, "after {after:?} SIGTERM took {time:?}; output:\n{ended}");
    ended.expect_code(0);
    assert!(!socket.exists(), "after {after:?} the socket is left");
    time
}

#[track_caller]
fn next_is_served(name: &str, manner: Manner) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = disk_server(directory.path());
    honest(server.socket()).expect("a new server serves");
    // How it fails is its own business.
    let rude = manner(server.socket());
    let start = Instant::now();
    let next = honest(server.socket());
    let time = start.elapsed();
    println!("{name}: {rude:?}, the next took {time:?}");
    if let Err(error) = next {
        server.process().signal(Signal::SIGKILL);
        panic!("after {name:?} an honest client fails: {error}\n{}", server.finish());
    }
    assert!(time <= AT_ONCE, "after {name:?} an honest client took {time:?}");
    ends_at_once(server, name);
}

#[test]
fn the_next_client_is_served_at_once() {
    let failed: Vec<_> = thread::scope(|scope| {
        let run = |(name, manner)| scope.spawn(move || next_is_served(name, manner));
        let all: Vec<_> = MANNERS.into_iter().map(|each| (each.0, run(each))).collect();
        all.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name)).collect()
    });
    assert!(failed.is_empty(), "not after {failed:?}");
}

/// Many leave in less time than it takes a process with one processor to notice that one has.
#[test]
fn a_crowd_that_leaves_at_once_keeps_nobody_out() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let socket = directory.path().join("blk.sock");
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(binaries::path("outrigger-blk")).arg("--socket").arg(&socket);
    let server = Server::spawn(command.arg("--disk").arg(format!("path={}", image.display())), &socket);
    for _ in 0..10 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..250).for_each(|_| drop(Driver::connect(&socket))));
            }
        });
        honest(&socket).expect("an honest client is served");
    }
    let ended = server.stop();
    ended.expect_code(0);
    assert!(!ended.stderr.contains("setting up the connection"), "{ended}");
}

#[test]
fn sigterm_ends_it_at_random_moments() {
    let (mut random, seed) = Random::fresh();
    println!("seed {seed}");
    let (start, mut count, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(20) {
        let directory = TempDir::new().expect("there is room for temporary files");
        let server = disk_server(directory.path());
        let socket = server.socket().to_owned();
        let (name, manner) = random.one_of(&MANNERS);
        // It fails when the server is gone, and has nobody to wait for then.
        let client = thread::spawn(move || drop(manner(&socket)));
        thread::sleep(random.time(Duration::from_millis(300)));
        longest = longest.max(ends_at_once(server, name));
        drop(client);
        count += 1;
    }
    println!("SIGTERM at {count} random moments: each ended the process, after {longest:?} at the latest");
}

fn moved_away(directory: &Path) -> (Server, PathBuf) {
    let server = disk_server(directory);
    let socket = server.socket().to_owned();
    fs::rename(&socket, directory.join("moved.sock")).expect("the directory is ours");
    (server, socket)
}

/// Ends it with SIGTERM, whatever is where its socket was.
#[track_caller]
fn stop(server: Server) {
    server.stop().expect_code(0);
}

#[test]
fn somebody_elses_file_is_kept() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let (server, socket) = moved_away(directory.path());
    fs::write(&socket, "precious").expect("the directory is ours");
    stop(server);
    assert_eq!(fs::read(&socket).expect("it is kept"), b"precious");
}

#[test]
fn somebody_elses_socket_is_kept() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let (server, socket) = moved_away(directory.path());
    let other = UnixListener::bind(&socket).expect("the directory is ours");
    stop(server);
    UnixStream::connect(&socket).expect("the other server is still there");
    drop(other);
}

#[test]
fn a_second_server_is_refused_at_once_where_the_first_one_has_no_room_for_more_clients() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = disk_server(directory.path());
    let connections: Vec<_> = fill(server.socket());
    let image = directory.path().join("other.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let mut second = Command::new(binaries::path("outrigger-blk"));
    second.arg("--socket").arg(server.socket()).arg("--disk").arg(format!("path={}", image.display()));
    let start = Instant::now();
    let ended = run(&mut second, LIMIT);
    let time = start.elapsed();
    ended.expect_code(2).expect_stderr("blk.sock").expect_stderr("another server listens here");
    assert_eq!(ended.stderr.lines().count(), 1, "not exactly one line; output:\n{ended}");
    assert!(time <= Duration::from_millis(500), "{time:?}; output:\n{ended}");
    drop(connections);
    stop(server);
}

/// Connects until nobody is let in any more.
fn fill(socket: &Path) -> Vec<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as new_socket};
    use std::os::fd::AsRawFd;
    let address = UnixAddr::new(socket).expect("the path is short");
    let mut connections = Vec::new();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let connection =
            new_socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("there is room for a socket");
        if connect(connection.as_raw_fd(), &address).is_err() {
            return connections;
        }
        connections.push(connection);
        assert!(connections.len() < 10_000, "a backlog has an end");
    }
}

/// A card's process, which has no disk to drive: clients that leave it in the middle.
#[test]
fn a_card_serves_the_next_client_at_once() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let socket = directory.path().join("net.sock");
    let server = Server::start("outrigger-net", &socket, &["--net", "tap=orrude0"]);
    for (name, manner) in MANNERS {
        let _ = manner(&socket);
        let start = Instant::now();
        let next = Driver::connect(&socket).and_then(|mut driver| driver.start());
        assert!(next.is_ok(), "after {name:?} an honest client fails: {next:?}");
        let time = start.elapsed();
        assert!(time <= AT_ONCE, "after {name:?} an honest client took {time:?}");
    }
    ends_at_once(server, "all of them");
}

/// One that was started without a path ends with its client, however rude that was.
#[test]
fn without_a_path_it_ends_with_its_client() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let (ours, theirs) = UnixStream::pair().expect("there is room for two sockets");
    let mut command = Command::new(binaries::path("outrigger-blk"));
    command.args(["--fd", "0", "--disk"]).arg(format!("path={}", image.display()));
    let mut process = Process::start_on(&mut command, theirs.into(), LIMIT);
    thread::sleep(Duration::from_millis(100));
    drop(ours);
    assert!(eventually(Duration::from_secs(2), || process.has_ended()), "it lives on");
    process.finish();
}
