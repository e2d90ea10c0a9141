//! Device processes that are started by hand (`--socket`): sealed as those that Outrigger starts, with a process outside that removes the
//! socket; and who may connect.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use outrigger_tests::driver::Driver;
use outrigger_tests::leftovers::{children, open_files};
use outrigger_tests::process::{Ended, eventually, run};
use outrigger_tests::qemu::Server;
use outrigger_tests::rude_client::honest;
use outrigger_tests::{binaries, disk};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
/// No accounts have these numbers.
const USER: u32 = 12345;
const OTHER: u32 = 12346;

/// A directory that every user may look into, with an image.
fn place() -> TempDir {
    let directory = TempDir::new().expect("there is room for temporary files");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("the directory is ours");
    disk::empty(&directory.path().join("disk.img"), disk::PAYLOAD_DISK);
    directory
}

fn socket(directory: &TempDir) -> PathBuf {
    directory.path().join("blk.sock")
}

/// `program`, or a copy of it where any user can execute it.
fn disk_command(program: &Path, directory: &TempDir, options: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("--disk").arg(format!("path={}", directory.path().join("disk.img").display()));
    command.arg("--socket").arg(socket(directory)).args(options);
    command
}

fn serve(directory: &TempDir, options: &[&str]) -> Server {
    Server::spawn(&mut disk_command(&binaries::path("outrigger-blk"), directory, options), &socket(directory))
}

#[track_caller]
fn stop(server: Server) -> Ended {
    let socket = server.socket().to_owned();
    let ended = server.stop();
    ended.expect_code(0);
    assert!(!socket.exists(), "the socket is left; output:\n{ended}");
    ended
}

/// The words after a key in `/proc/PID/status`.
fn status(process: Pid, key: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.expect("the kernel tells").split_whitespace().map(str::to_owned).collect()
}

/// Waits until a client is served: everything has been given up by then.
#[track_caller]
fn expect_sealed(server: &Server) -> Pid {
    Driver::connect(server.socket()).expect("it serves");
    let serving = server.serving().pid;
    assert_eq!(status(serving, "Uid"), ["65534"; 4]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(serving, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(status(serving, "NoNewPrivs"), ["1"]);
    assert_eq!(status(serving, "NSpid").last().map(String::as_str), Some("1"));
    assert_eq!(fs::read_dir(format!("/proc/{serving}/root/")).expect("we are root").count(), 0);
    let environment = fs::read(format!("/proc/{serving}/environ")).expect("we are root");
    assert!(environment.iter().all(|&byte| byte == 0), "{}", String::from_utf8_lossy(&environment));
    for space in ["user", "mnt", "net", "ipc", "uts", "cgroup", "pid"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{space}")).expect("we are root");
        assert_ne!(of(&serving.to_string()), of("self"), "{space}");
    }
    let threads = fs::read_dir(format!("/proc/{serving}/task")).expect("it runs");
    for thread in threads {
        let text = fs::read_to_string(thread.expect("it is there").path().join("status")).expect("it runs");
        assert!(text.contains("Seccomp:\t2"), "{text}");
    }
    serving
}

#[test]
fn a_disk_is_sealed_and_the_process_outside_holds_nothing() {
    let directory = place();
    let mut command = disk_command(&binaries::path("outrigger-blk"), &directory, &[]);
    // The variable is for processes that Outrigger starts. A descriptor that the caller has left open is not for the device.
    command.env("OUTRIGGER_SANDBOX", "off");
    let script = "exec 9</etc/passwd; exec \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env("OUTRIGGER_SANDBOX", "off");
    let server = Server::spawn(&mut shell, &socket(&directory));
    let serving = expect_sealed(&server);
    let files = open_files(serving);
    assert!(files.iter().any(|file| file.ends_with("disk.img")), "{files:?}");
    assert!(!files.iter().any(|file| file.ends_with("passwd")), "{files:?}");
    let outside = open_files(server.process().pid());
    let strange = |file: &&String| !file.starts_with("pipe:") && *file != "/dev/null";
    assert_eq!(outside.iter().find(strange), None, "{outside:?}");
    assert_eq!(
        outside.len(),
        4,
        "three that it was started with, and one by which the child sees that it is there: {outside:?}"
    );
    for _ in 0..3 {
        honest(server.socket()).expect("one client after the other is served");
    }
    stop(server);
}

#[test]
fn a_card_is_sealed() {
    let directory = place();
    let socket = directory.path().join("net.sock");
    let server = Server::start("outrigger-net", &socket, &["--net", "tap=orsealed0", "--sandbox", "require"]);
    expect_sealed(&server);
    for _ in 0..3 {
        Driver::connect(&socket).and_then(|mut driver| driver.start()).expect("one client after the other is served");
    }
    stop(server);
}

#[test]
fn without_a_sandbox_it_keeps_its_rights() {
    let directory = place();
    let server = serve(&directory, &["--sandbox", "off"]);
    honest(&socket(&directory)).expect("it serves");
    let serving = server.serving().pid;
    assert_eq!((status(serving, "Uid"), status(serving, "Seccomp")), (vec!["0".to_owned(); 4], vec!["0".to_owned()]));
    stop(server);
}

/// As in a container, whose root may not make namespaces.
#[test]
fn a_missing_layer_is_one_line_or_a_refusal() {
    let directory = place();
    let command = |sandbox: &str| {
        let command = disk_command(&binaries::path("outrigger-blk"), &directory, &["--sandbox", sandbox]);
        let mut contained = Command::new("setpriv");
        contained.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
        contained.arg(command.get_program()).args(command.get_args());
        contained
    };
    let line = "the sandbox is incomplete, as this host does not permit: a PID namespace (Operation not permitted (os error 1))";
    let ended = run(&mut command("require"), LIMIT);
    ended.expect_code(3);
    assert!(ended.stderr.starts_with(&format!("outrigger-blk: sandbox=require: {line}")), "{ended}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    assert!(!socket(&directory).exists(), "the socket is left");
    let server = Server::spawn(&mut command("on"), &socket(&directory));
    honest(&socket(&directory)).expect("it serves");
    let ended = stop(server);
    assert!(ended.stderr.starts_with(&format!("outrigger-blk: warn: {line}")), "{ended}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
}

/// A copy of the program where any user can execute it, and an image of theirs.
fn for_user(directory: &TempDir) -> PathBuf {
    binaries::copy_stripped(directory.path());
    for name in ["", "disk.img"] {
        chown(directory.path().join(name), Some(USER), Some(USER)).expect("we are root");
    }
    directory.path().join("outrigger-blk")
}

/// Such a user makes a user namespace first, and with it all the others.
#[test]
fn a_user_without_privileges_has_all_layers() {
    let directory = place();
    let program = for_user(&directory);
    let mut command = disk_command(&program, &directory, &["--sandbox", "require"]);
    let server = Server::spawn(command.uid(USER).gid(USER), &socket(&directory));
    honest(&socket(&directory)).expect("it serves");
    let serving = server.serving().pid;
    assert_eq!(status(serving, "Uid"), [USER.to_string().as_str(); 4]);
    assert_eq!(status(serving, "NSpid").last().map(String::as_str), Some("1"));
    assert_eq!(status(serving, "Seccomp"), ["2"]);
    stop(server);
    let mut command = disk_command(&program, &directory, &["--socket-user", "root"]);
    let ended = run(command.uid(USER).gid(USER), LIMIT);
    ended
        .expect_code(3)
        .expect_stderr("blk.sock: cannot be given to another user: Operation not permitted (os error 1)\n");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    assert!(!socket(&directory).exists(), "the socket is left");
}

/// The outcome of connecting as this user.
fn connects(user: u32, socket: &Path) -> Result<(), ErrorKind> {
    let socket = socket.to_owned();
    let connect = move || {
        // SAFETY: a system call on plain values, which changes this thread alone.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }, 0, "we are root");
        UnixStream::connect(socket).map(drop).map_err(|error| error.kind())
    };
    thread::spawn(connect).join().expect("it does not panic")
}

fn mode(socket: &Path) -> u32 {
    fs::symlink_metadata(socket).expect("it is there").mode() & 0o7777
}

#[test]
fn others_connect_if_they_are_let() {
    let directory = place();
    let path = socket(&directory);
    let denied = Err(ErrorKind::PermissionDenied);
    for (umask, options, wanted, may) in [
        ("0", &[][..], 0o600, (denied, denied)),
        ("0777", &[], 0o600, (denied, denied)),
        ("077", &["--socket-mode", "666"], 0o666, (Ok(()), Ok(()))),
        ("077", &["--socket-user", "12345"], 0o600, (Ok(()), denied)),
    ] {
        let command = disk_command(&binaries::path("outrigger-blk"), &directory, options);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        let server = Server::spawn(&mut shell, &path);
        assert_eq!(mode(&path), wanted, "umask {umask}, {options:?}");
        assert_eq!((connects(USER, &path), connects(OTHER, &path)), may, "umask {umask}, {options:?}");
        assert_eq!(connects(0, &path), Ok(()), "root may");
        honest(&path).expect("it goes on");
        stop(server);
    }
}

#[test]
fn options_that_cannot_be_used_are_one_line() {
    for (option, value, line) in [
        ("--sandbox", "maybe", "invalid value 'maybe' for '--sandbox <on|require|off>': must be on, require or off"),
        ("--socket-mode", "0888", "invalid value '0888' for '--socket-mode <OCTAL>': must be octal, from 0 to 0777"),
        ("--socket-mode", "4755", "invalid value '4755' for '--socket-mode <OCTAL>': must be octal, from 0 to 0777"),
        ("--socket-user", "nosuch", "invalid value 'nosuch' for '--socket-user <NAME|UID>': there is no user 'nosuch'"),
    ] {
        for program in ["outrigger-blk", "outrigger-net"] {
            let kind = if program == "outrigger-blk" { "--disk" } else { "--net" };
            let ended =
                run(Command::new(binaries::path(program)).args([kind, "x", "--socket", "/s", option, value]), LIMIT);
            ended.expect_code(2);
            assert_eq!(ended.stderr, format!("{program}: {line} (see {program} --help)\n"));
        }
    }
    for (option, value) in [("--sandbox", "on"), ("--socket-mode", "0600"), ("--socket-user", "root")] {
        let mut command = Command::new(binaries::path("outrigger-blk"));
        let ended = run(command.args(["--disk", "path=/x", "--fd", "0", option, value]), LIMIT);
        ended.expect_code(2).expect_stderr("cannot be used with").expect_stderr("--fd <N>").expect_stderr(option);
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    }
    // It opens files while it serves.
    let mut command = Command::new(binaries::path("outrigger-vfio"));
    let ended = run(command.args(["--vfio", "0000:00:00.0", "--socket", "/s", "--sandbox", "on"]), LIMIT);
    ended.expect_code(2).expect_stderr("unexpected argument '--sandbox' found");
}

/// The one that the user knows of is killed: the one that serves dies with it, and another can take its place at once.
#[test]
fn a_server_that_is_killed_can_be_started_again_at_once() {
    let directory = place();
    let path = socket(&directory);
    // The lock on an image that is written is waited for as well; what others may share has none, and a tap is the card's alone.
    let image = format!("path={}", directory.path().join("disk.img").display());
    let shared = format!("{image},readonly=on");
    for (program, kind, device) in [
        ("outrigger-blk", "--disk", &*image),
        ("outrigger-blk", "--disk", &shared),
        ("outrigger-net", "--net", "tap=orsealed1"),
    ] {
        let start = || Server::start(program, &path, &[kind, device]);
        for _ in 0..20 {
            let server = start();
            let serving = server.serving();
            server.process().signal(Signal::SIGKILL);
            server.finish().expect_code(128 + Signal::SIGKILL as i32);
            let next = start();
            Driver::connect(&path).expect("the next one serves");
            assert!(eventually(LIMIT, || !serving.alive()), "the process that serves is left");
            stop(next);
        }
    }
}

#[test]
fn a_process_that_dies_while_it_serves_is_told_of_and_its_socket_removed() {
    let directory = place();
    let server = serve(&directory, &[]);
    kill(server.serving().pid, Signal::SIGKILL).expect("it runs");
    let ended = server.finish();
    ended.expect_code(128 + Signal::SIGKILL as i32);
    assert_eq!(ended.stderr, "outrigger-blk: the process that serves was ended by SIGKILL\n");
    assert!(!socket(&directory).exists(), "the socket is left");
}

/// As one would that was taken over.
#[test]
fn one_that_does_not_end_when_it_is_told_is_killed() {
    let directory = place();
    let server = serve(&directory, &[]);
    let serving = server.serving();
    kill(serving.pid, Signal::SIGSTOP).expect("it runs");
    let start = Instant::now();
    stop(server);
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    assert!(!serving.alive(), "it is left");
}

/// Ctrl-C and Ctrl-Z at a terminal are for all of the process group.
#[test]
fn keys_at_the_terminal_stop_and_end_both_processes() {
    for sandbox in ["on", "off"] {
        let directory = place();
        let mut command = disk_command(&binaries::path("outrigger-blk"), &directory, &["--sandbox", sandbox]);
        let server = Server::spawn(command.process_group(0), &socket(&directory));
        let both = [server.process().pid(), server.serving().pid];
        let are = |state: &str| both.iter().all(|&process| status(process, "State")[0] == state);
        for _ in 0..3 {
            honest(&socket(&directory)).expect("it serves");
            killpg(both[0], Signal::SIGTSTP).expect("it runs");
            assert!(eventually(LIMIT, || are("T")), "they are not stopped: {both:?}");
            killpg(both[0], Signal::SIGCONT).expect("it is there");
            assert!(eventually(LIMIT, || !are("T")), "they are stopped: {both:?}");
        }
        honest(&socket(&directory)).expect("it serves");
        killpg(both[0], Signal::SIGINT).expect("it runs");
        server.finish().expect_code(0);
        assert!(!socket(&directory).exists(), "the socket is left");
        assert_eq!(children(both[0]), []);
    }
}
