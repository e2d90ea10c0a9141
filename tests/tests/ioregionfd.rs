//! The device that has the same registers on every path (`devices/examples/paths.rs`), with bare metal as its guest, whichever paths
//! are allowed; and what becomes of a device whose ioregionfd breaks under a guest. Whether KVM asks the device or Outrigger in its
//! place is this machine's matter: the device does not know, and the guest sees no difference.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_tests::binaries;
use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::{Ended, Process, run};
use outrigger_tests::qemu::Server;
use tempfile::TempDir;

/// A device process's time for an answer, and some room.
const DEADLINE: Duration = Duration::from_secs(10);

fn paths_device(socket: &Path) -> Server {
    Server::spawn(Command::new(binaries::example("paths")).arg(socket), socket)
}

fn guest(checks: &str, socket: &Path) -> Command {
    let mut command = with_payload(checks);
    command.arg("--device").arg(format!("socket={}", socket.display()));
    command
}

/// Accesses to BAR 0 that the VMM answered: by message, and by ioregionfd.
fn answered(ended: &Ended) -> (u64, u64) {
    let line = ended.stderr.lines().find(|line| line.contains("0000:00:01.0 BAR0 ")).expect("--stats was given");
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().expect("a column"), numbers.next().expect("a column"))
}

#[test]
fn registers_are_the_same_by_every_path() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = paths_device(&directory.path().join("paths.sock"));
    let mut by_message = Vec::new();
    for paths in
        ["message", "stand-in,message", "mapped,ioeventfd,message", "mapped,ioeventfd,ioregionfd,stand-in,message"]
    {
        let mut command = guest("paths", server.socket());
        let ended = run(command.args(["--stats", "--show-devices", "--paths", paths]), LIMIT);
        ended.expect_code(0).expect_stdout("payload: passed");
        let ranges = || ended.stderr.lines().filter(|line| line.starts_with("    0x"));
        let shown = |words: &str| ranges().filter(|line| line.contains(words)).count();
        for (name, count) in [("mapped       ", 1), ("ioeventfd    ", 1)] {
            let allowed = paths.contains(name.trim());
            assert_eq!(shown(name), if allowed { count } else { 0 }, "{paths}: {name}:\n{ended}");
            let forbidden = format!("{} is forbidden by --paths", name.trim());
            assert_eq!(shown(&forbidden), if allowed { 0 } else { count }, "{paths}: {name}:\n{ended}");
        }
        // Which of the two it is depends on this host's KVM.
        let asked = shown("ioregionfd   ") + shown("stand-in     ");
        assert_eq!(asked, if paths.contains("stand-in") { 6 } else { 0 }, "{paths}:\n{ended}");
        assert_eq!(
            shown("ioregionfd is forbidden by --paths"),
            if paths.contains("ioregionfd") { 0 } else { 6 },
            "{paths}:\n{ended}"
        );
        by_message.push(answered(&ended));
    }
    let [all, stand_in, others, best] = by_message[..] else { panic!("{by_message:?}") };
    assert_eq!((all.1, others.1), (0, 0), "what is forbidden is not used");
    // Each of the six pages is accessed some 200 times. Where KVM asks, the VMM sees none of that.
    assert!(all.0 - stand_in.0 > 1000 && all.0 - best.0 > 1000, "{by_message:?}");
    assert!(stand_in.1 > 1000 && (best.1 == 0 || best.1 > 1000), "{by_message:?}");
}

#[test]
fn io_ports_are_asked_for_too() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let socket = directory.path().join("ports.sock");
    let server = Server::spawn(Command::new(env!("CARGO_BIN_EXE_port-registers")).arg(&socket), &socket);
    for (paths, stand_in) in [("message", false), ("stand-in,message", true)] {
        let mut command = guest("ports", server.socket());
        let ended = run(command.args(["--stats", "--show-devices", "--paths", paths]), LIMIT);
        ended.expect_code(0).expect_stdout("payload: passed").expect_stderr("I/O ports at");
        let (message, asked) = answered(&ended);
        // Two thirds of the accesses are to the first half.
        assert_eq!(ended.stderr.contains("-0x0000f  stand-in     "), stand_in, "{ended}");
        assert_eq!(message < 20, stand_in, "{ended}");
        assert!(stand_in || asked == 0, "{ended}");
    }
}

#[test]
fn a_device_killed_while_it_is_read_is_named_once() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = paths_device(&directory.path().join("paths.sock"));
    let mut vmm = Process::start(&mut guest("gone", server.socket()), LIMIT);
    vmm.wait_for("ready\n");
    server.process().signal(Signal::SIGKILL);
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("payload: passed");
    assert_eq!(ended.stderr.matches("paths.sock").count(), 1, "{ended}");
}

#[test]
fn a_device_stopped_while_it_is_read_is_cut_off() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = paths_device(&directory.path().join("paths.sock"));
    let mut vmm = Process::start(&mut guest("gone", server.socket()), LIMIT);
    vmm.wait_for("ready\n");
    server.process().signal(Signal::SIGSTOP);
    let start = Instant::now();
    let ended = vmm.finish();
    ended.expect_code(6).expect_stdout("payload: passed");
    assert_eq!(ended.stderr.matches("paths.sock").count(), 1, "{ended}");
    assert!(start.elapsed() < DEADLINE * 2, "one deadline and not one for each access: {:?}", start.elapsed());
    server.process().signal(Signal::SIGKILL);
}

/// A guest that waits for a device that does not answer can be ended, long before the deadline.
#[test]
fn a_stopped_device_does_not_hold_up_the_end() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = paths_device(&directory.path().join("paths.sock"));
    let mut vmm = Process::start(&mut guest("gone", server.socket()), LIMIT);
    vmm.wait_for("ready\n");
    server.process().signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    vmm.signal(Signal::SIGTERM);
    vmm.finish().expect_code(143);
    assert!(start.elapsed() < DEADLINE / 2, "{:?}", start.elapsed());
    server.process().signal(Signal::SIGKILL);
}

fn breaks(fault: &str) -> Duration {
    let directory = TempDir::new().expect("there is room for temporary files");
    let socket = directory.path().join("faulty.sock");
    let server = Server::spawn(Command::new(env!("CARGO_BIN_EXE_faulty-registers")).arg(&socket).arg(fault), &socket);
    let start = Instant::now();
    let ended = run(&mut guest("gone", server.socket()), LIMIT);
    ended.expect_code(6).expect_stdout("ok gone\n").expect_stdout("payload: passed");
    assert_eq!(ended.stderr.matches("faulty.sock").count(), 1, "{ended}");
    start.elapsed()
}

#[test]
fn an_ioregionfd_that_ends_is_the_end_of_the_device() {
    assert!(breaks("hangs-up") < DEADLINE);
}

#[test]
fn an_answer_to_nothing_is_the_end_of_the_device() {
    assert!(breaks("answers-twice") < DEADLINE);
}

#[test]
fn an_answer_of_another_size_is_the_end_of_the_device() {
    assert!(breaks("answers-short") < DEADLINE);
}

#[test]
fn an_answer_that_does_not_come_is_the_end_of_the_device() {
    let time = breaks("never-answers");
    assert!(time >= DEADLINE && time < DEADLINE * 2, "{time:?}");
}
