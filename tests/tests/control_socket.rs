//! The control socket (docs/CONTROL.md): every answer, whatever clients do, beside a guest that works undisturbed; the socket's own
//! life; and `outrigger ctl`.

use std::fs::{self, Permissions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use outrigger_tests::control::{Controlled, GET_STATUS, connect, ctl, exchange, expect_removed, status_of};
use outrigger_tests::leftovers::{children, expect_ended, open_files, sockets};
use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::{Process, eventually, run};
use outrigger_tests::{rude, server};
use tempfile::TempDir;

/// How long a request may take (docs/CONTROL.md).
const DEADLINE: Duration = Duration::from_secs(5);
/// Most connections at a time (docs/CONTROL.md).
const CONNECTIONS: usize = 16;

fn temporary() -> TempDir {
    TempDir::new().expect("there is room for temporary files")
}

#[test]
fn every_mistake_has_its_status() {
    let run = Controlled::spinning();
    let long = "x".repeat(9000);
    let table = [
        ("GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 200),
        ("HEAD /v1/status HTTP/1.0\r\n\r\n".to_owned(), 200),
        ("nonsense\r\n\r\n".to_owned(), 400),
        ("GET /v1/status HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nnonsense".to_owned(), 400),
        ("POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n{\"now\": true}".to_owned(), 400),
        ("GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 404),
        ("GET /v1/stop HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 405),
        ("DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 405),
        ("POST /v1/stop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 411),
        (format!("POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{}", long.repeat(111)), 413),
        (format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 414),
        ("POST /v1/stop HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n".to_owned(), 417),
        (format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"), 431),
        ("GET /v1/status HTTP/3.0\r\nHost: x\r\n\r\n".to_owned(), 505),
    ];
    for (request, status) in &table {
        let answer = run.exchange(request.as_bytes());
        assert_eq!(status_of(&answer), Some(*status), "{:.200}\n{answer}", request);
        let error = answer.contains("\r\n\r\n{\n  \"error\": \"");
        assert_eq!(error, *status != 200, "what is wrong is said as JSON: {answer}");
    }
    // None of these was a stop, not even after a while.
    thread::sleep(Duration::from_millis(500));
    assert!(run.status().contains("\"state\": \"running\""));
    let answer = run.exchange(b"PUT /v1/stop HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.contains("\r\nAllow: POST\r\n"), "{answer}");
    run.ctl(&["stop"]).expect_code(0);
    run.vmm.finish().expect_code(0);
}

#[test]
fn a_slow_request_is_told_so_and_a_silent_client_is_cut_off() {
    let run = Controlled::spinning();
    for (begun, status) in [
        ("", None),
        ("GET /v1/sta", Some(408)),
        ("POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", Some(408)),
    ] {
        let mut stream = run.connect();
        let start = Instant::now();
        stream.write_all(begun.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers or hangs up");
        assert_eq!(status_of(&answer), status, "{answer}");
        assert!(start.elapsed() >= DEADLINE, "after {:?}", start.elapsed());
    }
    // Between requests it is the same, and the run goes on.
    let mut stream = run.connect();
    stream.write_all(GET_STATUS).expect("it reads");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("it hangs up in the end");
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    run.status();
}

#[test]
fn as_many_connections_as_documented_are_served_and_the_next_is_told() {
    let run = Controlled::spinning();
    let mut open: Vec<_> = (0..CONNECTIONS).map(|_| run.connect()).collect();
    for stream in &mut open {
        stream.write_all(GET_STATUS).expect("it reads");
        stream.read_exact(&mut [0; 15]).expect("it answers");
    }
    // More than the socket's buffer holds, so that it is still being sent when the answer comes.
    let large = [b"POST /v1/stop HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), &vec![b'x'; 1 << 20]].concat();
    for bytes in [GET_STATUS, &large, b""] {
        let answer = run.exchange(bytes);
        assert_eq!(status_of(&answer), Some(503), "{answer}");
    }
    run.ctl(&["status"]).expect_code(1).expect_stderr("16 connections are open already");
    drop(open);
    assert!(eventually(DEADLINE, || status_of(&run.exchange(GET_STATUS)) == Some(200)), "no room again");
}

#[test]
fn another_user_is_refused() {
    let run = Controlled::spinning();
    let curl = |wrapper: &mut Command| {
        let curl = ["curl", "--silent", "--show-error", "--unix-socket", "vm.sock", "http://localhost/v1/status"];
        outrigger_tests::process::run(wrapper.args(curl).current_dir(run.directory.path()), LIMIT)
    };
    fs::set_permissions(run.directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
    let other = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
    };
    curl(&mut other()).expect_code(7).expect_stderr("connect");
    // Even if the socket is open to all.
    fs::set_permissions(run.socket(), Permissions::from_mode(0o666)).expect("it is ours");
    curl(&mut other()).expect_code(0).expect_stdout("only root and the user who runs Outrigger may ask");
    curl(&mut Command::new("env")).expect_code(0).expect_stdout("\"state\": \"running\"");
}

/// The guest uses its disk all the time, on one of two processors, and looks whether the other goes on.
#[test]
fn the_guest_works_undisturbed_whatever_clients_do() {
    let _turn = rude::turn();
    let run = Controlled::start("rude", |command| command.args(["--cpus", "2"]));
    let before = open_files(run.vmm.pid()).len();
    let enough = AtomicBool::new(false);
    let (served, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let until_enough = |act: &(dyn Fn() + Sync)| {
        while !enough.load(Ordering::Relaxed) {
            act();
        }
    };
    let path = &run.socket();
    let ask = || match status_of(&exchange(connect(path), GET_STATUS)) {
        Some(200) => served.fetch_add(1, Ordering::Relaxed),
        Some(503) => refused.fetch_add(1, Ordering::Relaxed),
        other => panic!("answered with {other:?}"),
    };
    let oversized =
        [b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n".as_slice(), &[b'x'; 1 << 18]].concat();
    let pipelined = GET_STATUS.repeat(50);
    let clients: [Box<dyn Fn() + Sync + '_>; 8] = [
        Box::new(|| _ = ask()),
        Box::new(|| _ = ask()),
        Box::new(|| _ = exchange(connect(path), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")),
        Box::new(|| _ = exchange(connect(path), &oversized)),
        Box::new(|| _ = exchange(connect(path), &pipelined)),
        // Says something and goes; says something and stays for a while; says nothing.
        Box::new(|| _ = connect(path).write_all(b"GET /v1/sta")),
        Box::new(|| {
            let mut stream = connect(path);
            let _ = stream.write_all(b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{");
            thread::sleep(Duration::from_millis(50));
        }),
        // Asks and asks and never reads.
        Box::new(|| {
            let mut stream = connect(path);
            stream.set_write_timeout(Some(Duration::from_millis(50))).expect("not zero");
            while stream.write_all(&pipelined).is_ok() {}
        }),
    ];
    thread::scope(|threads| {
        for client in &clients {
            threads.spawn(move || until_enough(client.as_ref()));
        }
        thread::sleep(Duration::from_secs(4));
        enough.store(true, Ordering::Relaxed);
    });
    assert!(served.load(Ordering::Relaxed) > 0, "{refused:?} refused");
    assert!(eventually(3 * DEADLINE, || open_files(run.vmm.pid()).len() <= before), "{:?}", open_files(run.vmm.pid()));
    let Controlled { mut vmm, directory } = run;
    vmm.send("x");
    let ended = vmm.finish();
    ended.expect_code(0).expect_stdout("payload: passed");
    let (count, longest) = rude::requests(&ended);
    println!("{served:?} served, {refused:?} refused; {count} requests of the guest, the longest took {longest:?}");
    assert_eq!(ended.stderr, "", "nobody is told of clients");
    expect_removed(&directory.path().join("vm.sock"));
}

/// A vCPU waits for a device that has stopped; who asks for the status does not.
#[test]
fn a_device_that_does_not_answer_delays_nobody_who_asks() {
    let run = Controlled::start("rude", |command| command.args(["--cpus", "2"]));
    let disk = children(run.vmm.pid()).pop().expect("the disk");
    kill(disk.pid, Signal::SIGSTOP).expect("it runs");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        run.status();
        assert!(asked.elapsed() < Duration::from_secs(2), "took {:?}", asked.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
    run.ctl(&["stop"]).expect_code(0);
    run.vmm.finish().expect_code(0);
    expect_ended(&[disk]);
}

#[test]
fn descriptors_that_clients_send_are_closed() {
    let run = Controlled::spinning();
    run.status();
    let before = open_files(run.vmm.pid()).len();
    let (lingering, _peer) = UnixStream::pair().expect("two descriptors are left");
    for _ in 0..20 {
        let stream = run.connect();
        let fds = [lingering.as_raw_fd(); 100];
        let parts = [IoSlice::new(GET_STATUS)];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).expect("it is connected");
        assert_eq!(status_of(&exchange(stream, b"")), Some(200));
    }
    assert!(eventually(DEADLINE, || open_files(run.vmm.pid()).len() <= before), "{:?}", open_files(run.vmm.pid()));
}

#[test]
fn a_stop_ends_the_run_with_status_0_and_leaves_nothing() {
    let run = Controlled::spinning();
    let devices = children(run.vmm.pid());
    assert_eq!(devices.len(), 1, "{devices:?}");
    let (mut asking, mut idle) = (run.connect(), run.connect());
    idle.write_all(b"GET /v1/sta").expect("it reads");
    asking.write_all(b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").expect("it reads");
    let mut answer = String::new();
    asking.read_to_string(&mut answer).expect("the answer comes before the end");
    assert_eq!(status_of(&answer), Some(202), "{answer}");
    let Controlled { vmm, directory } = run;
    let ended = vmm.finish();
    ended.expect_code(0);
    assert_eq!(ended.stderr, "");
    expect_ended(&devices);
    // Removed before the process ended.
    assert!(!directory.path().join("vm.sock").exists());
    let path = directory.path().to_str().expect("a plain path");
    assert!(sockets(path).is_empty(), "{:?}", sockets(path));
}

#[test]
fn a_run_whose_devices_do_not_come_can_be_seen_and_stopped() {
    let directory = temporary();
    let silent = server::listen(directory.path(), "silent.sock", server::never_answers);
    let path = directory.path().join("vm.sock");
    let mut command = with_payload("pci");
    command.arg("--device").arg(format!("socket={}", silent.display())).arg("--control").arg(&path);
    let vmm = Process::start(&mut command, LIMIT);
    assert!(eventually(LIMIT, || path.exists()), "it never listens");
    ctl(&path, &["status"]).expect_code(0).expect_stdout("starting");
    ctl(&path, &["stop"]).expect_code(0);
    vmm.finish().expect_code(0);
    assert!(!path.exists());
}

#[test]
fn the_socket_is_removed_however_the_run_ends() {
    for signals in [&[Signal::SIGTERM][..], &[Signal::SIGTERM, Signal::SIGINT]] {
        let run = Controlled::spinning();
        // So that the second signal finds something to cut short.
        children(run.vmm.pid()).iter().for_each(|disk| kill(disk.pid, Signal::SIGSTOP).expect("it runs"));
        for signal in signals {
            run.vmm.signal(*signal);
            thread::sleep(Duration::from_millis(20));
        }
        let Controlled { vmm, directory } = run;
        vmm.finish().expect_code(143);
        assert!(!directory.path().join("vm.sock").exists(), "{signals:?}");
    }
    // A run that does not begin.
    let directory = temporary();
    let path = directory.path().join("vm.sock");
    let mut command = with_payload("pci");
    run(command.args(["--disk", "path=/nowhere"]).arg("--control").arg(&path), LIMIT).expect_code(2);
    assert!(!path.exists());
}

#[test]
fn what_took_the_sockets_place_stays() {
    let run = Controlled::spinning();
    let path = run.socket();
    fs::remove_file(&path).expect("it is there");
    fs::write(&path, "precious").expect("the directory is ours");
    let Controlled { vmm, directory } = run;
    vmm.signal(Signal::SIGTERM);
    vmm.finish().expect_code(143);
    assert_eq!(fs::read(directory.path().join("vm.sock")).expect("it is left"), b"precious");
}

#[test]
fn a_socket_that_a_killed_run_left_is_replaced_and_a_live_one_is_not() {
    let run = Controlled::spinning();
    let path = run.socket();
    let again = || {
        let mut command = with_payload("pci");
        command.arg("--control").arg(&path);
        outrigger_tests::process::run(&mut command, LIMIT)
    };
    let refused = again();
    refused.expect_code(2).expect_stderr("--control").expect_stderr("another server listens here");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    run.status();
    run.vmm.signal(Signal::SIGKILL);
    let Controlled { vmm, directory: _directory } = run;
    vmm.finish().expect_code(137);
    assert!(path.exists(), "nobody was left to remove it");
    again().expect_code(0);
    assert!(!path.exists());
}

#[test]
fn a_path_that_cannot_be_used_is_named_in_one_line() {
    let directory = temporary();
    let file = directory.path().join("file");
    fs::write(&file, "precious").expect("the directory is ours");
    let long = directory.path().join("x".repeat(108));
    for (path, why) in [
        (file.as_path(), "exists and is not a socket"),
        (directory.path(), "exists and is not a socket"),
        (long.as_path(), "at most 107 are possible"),
        (Path::new("/nowhere/vm.sock"), "No such file or directory"),
        (Path::new("/proc/vm.sock"), ""),
    ] {
        let ended = run(with_payload("pci").arg("--control").arg(path), LIMIT);
        ended.expect_code(2).expect_stderr(&format!("outrigger: --control {}: ", path.display())).expect_stderr(why);
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
        assert_eq!(ended.stdout, "", "the guest started: {ended}");
    }
    assert_eq!(fs::read(&file).expect("it is left"), b"precious");
}

#[test]
fn the_socket_is_its_users_whatever_the_umask() {
    for umask in ["0", "0777"] {
        let directory = temporary();
        let path = directory.path().join("vm.sock");
        let payload = with_payload("spin");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
        command.arg(payload.get_program()).args(payload.get_args()).arg("--control").arg(&path);
        let mut vmm = Process::start(&mut command, LIMIT);
        vmm.wait_for("ready\n");
        assert_eq!(fs::symlink_metadata(&path).expect("it is served").mode() & 0o7777, 0o600, "umask {umask}");
        ctl(&path, &["stop"]).expect_code(0);
        vmm.finish().expect_code(0);
    }
}

#[test]
fn outrigger_ctl_tells_what_is_wrong_in_one_line() {
    let directory = temporary();
    let refused = |path: &Path, words: &[&str], status: i32, why: &str| {
        let ended = ctl(path, words);
        ended.expect_code(status).expect_stderr(why);
        assert_eq!(ended.stderr.lines().count(), 1, "not exactly one line: {ended}");
        assert!(ended.stdout.is_empty(), "{ended}");
    };
    let nobody = directory.path().join("nobody.sock");
    refused(&nobody, &["status"], 2, "nobody.sock: no Outrigger listens on this socket");
    drop(UnixListener::bind(&nobody).expect("the directory is ours"));
    refused(&nobody, &["stop"], 2, "no Outrigger listens on this socket");
    refused(&nobody, &["dance"], 2, "dance: ");
    refused(&nobody, &[], 2, "no command given");
    refused(&directory.path().join("x".repeat(120)), &["status"], 2, "at most 107 are possible");
    for (name, serve, why) in [
        ("closes.sock", server::closes as fn(UnixStream), "hung up without an answer"),
        ("garbage.sock", server::answers_garbage, "does not speak HTTP"),
        ("silent.sock", server::never_answers, "does not answer"),
    ] {
        let path = server::listen(directory.path(), name, serve);
        refused(&path, &["status"], 1, why);
    }
}
