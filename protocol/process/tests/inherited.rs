//! The state of a program that an unkind caller started, and of its own children. Each test starts a program of the
//! system's that shows its state: /proc/self/status has masks and dispositions (proc(5)).

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use outrigger_process::{child, inherited};

const ROLE: &str = "OUTRIGGER_TEST_ROLE";

/// Runs this test again as a process of its own, in the role that `name` is given there.
fn again(name: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test has a path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

fn mask(status: &str, field: &str) -> u64 {
    let line =
        status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_else(|| panic!("no {field}:\n{status}"));
    u64::from_str_radix(line.trim(), 16).expect("masks are hexadecimal")
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as u32 - 1)
}

/// An unkind caller: blocks everything, ignores what it can, has few descriptors and leaves one open.
fn unkind(command: &mut Command) -> File {
    let leak = tempfile::tempfile().expect("there is room for a file");
    let number = leak.as_raw_fd();
    // SAFETY: system calls only, between fork and exec; no disposition runs a handler.
    unsafe {
        command.pre_exec(move || {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
            for ignored in [Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGUSR1] {
                signal(ignored, SigHandler::SigIgn)?;
            }
            // Tests that run in the background of a script have them ignored.
            for heeded in [Signal::SIGINT, Signal::SIGQUIT] {
                signal(heeded, SigHandler::SigDfl)?;
            }
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, 256, hard)?;
            let leak = std::os::fd::BorrowedFd::borrow_raw(number);
            fcntl(leak, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        });
    }
    leak
}

#[test]
fn a_program_and_its_children_start_in_a_known_state() {
    let name = "a_program_and_its_children_start_in_a_known_state";
    if role().is_none() {
        let mut command = again(name, "program");
        let _leak = unkind(&mut command);
        let output = command.output().expect("this test can run again");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }

    inherited::normalize().unwrap();
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert_eq!(mask(&status, "SigBlk:"), 0, "{status}");
    assert_eq!(mask(&status, "SigIgn:") & bit(Signal::SIGCHLD), 0, "children can be waited for");
    assert!(inherited::is_ignored(Signal::SIGHUP) && !inherited::is_ignored(Signal::SIGTERM));
    assert!(inherited::is_ignored(Signal::SIGXFSZ));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(soft == hard && soft > 256);

    // As a VMM does.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::from(Signal::SIGTERM)), None).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "cat /proc/self/status; ulimit -Sn; ls /proc/self/fd; env"]);
    let output = child::prepare(&mut command).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(mask(&text, "SigBlk:"), 0, "{text}");
    // Signals 32 and 33 are the C library's, which lets nobody change them.
    let ignored = mask(&text, "SigIgn:") & !(3 << 31);
    let expected = [Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGTTOU].map(bit).iter().sum::<u64>();
    assert_eq!(ignored, expected, "{ignored:#x} is not {expected:#x}");
    let rest: Vec<_> = text.lines().skip_while(|line| *line != "256").collect();
    assert_eq!(rest.first(), Some(&"256"), "{text}");
    // 3 is the directory that ls reads.
    let descriptors: Vec<_> = rest[1..].iter().take_while(|line| line.parse::<u32>().is_ok()).copied().collect();
    assert_eq!(descriptors, ["0", "1", "2", "3"]);
    assert!(!text.contains(ROLE), "the environment is the child's own:\n{text}");
}

#[test]
fn a_child_ends_with_its_parent() {
    let name = "a_child_ends_with_its_parent";
    if role().is_some() {
        let mut sleeper = Command::new("/bin/sleep");
        let mut process = child::prepare(sleeper.arg("1000")).stdout(Stdio::null()).spawn().unwrap();
        writeln!(std::io::stdout(), "child {}", process.id()).unwrap();
        process.wait().unwrap();
        return;
    }
    let mut parent = again(name, "parent").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(parent.stdout.take().unwrap()));
    let number =
        lines.find_map(|line| line.unwrap().split_once("child ").map(|(_, number)| number.to_owned())).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let status = format!("/proc/{number}/status");
    let start = Instant::now();
    // Gone, or a zombie that whoever adopted it has not waited for.
    while std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ")) {
        assert!(start.elapsed() < Duration::from_secs(10), "process {number} outlives its parent");
        std::thread::sleep(Duration::from_millis(10));
    }
}
