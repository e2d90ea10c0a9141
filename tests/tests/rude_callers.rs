//! Callers that leave a program in a strange state: signals that are ignored or blocked, limits, descriptors, an environment, a standard error
//! that nobody reads. What was meant is kept, the rest changes nothing; and a start that fails does so at once, in one line.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc::O_NONBLOCK;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use outrigger_tests::leftovers::{children, expect_ended, open_files};
use outrigger_tests::outrigger::{LIMIT, with_disk, with_disk_and, with_payload};
use outrigger_tests::process::{Ended, Process, eventually, run};
use outrigger_tests::qemu::Server;
use outrigger_tests::rude::{END, Rude, Run, by_name, go_first};
use outrigger_tests::{binaries, disk, rude, rude_client};
use tempfile::TempDir;

/// A start that fails does so within this time.
const FAILED_START: Duration = Duration::from_millis(500);

fn temporary() -> TempDir {
    TempDir::new().expect("there is room for temporary files")
}

/// `command` as a shell starts it that has run `script` before.
fn after(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{script}; exec \"$@\""), "sh"]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    shell
}

/// A guest with one disk that makes `checks`.
fn guest(checks: &str, directory: &Path) -> Command {
    let image = disk::for_payload(directory);
    let mut command = with_payload(checks);
    with_disk(&mut command, &image);
    command
}

/// A guest that is started after `script` reads and writes its disk, and powers off.
#[track_caller]
fn passes_after(script: &str) -> Ended {
    let directory = temporary();
    let ended = run(&mut after(script, &guest("blk", directory.path())), LIMIT);
    ended.expect_code(0);
    assert!(disk::payload_wrote(&directory.path().join("disk.img")), "the guest did not write; output:\n{ended}");
    ended
}

/// The signal does nothing to the run, which `end` ends.
#[track_caller]
fn goes_on_after(script: &str, signal: Signal, end: Signal) {
    let directory = temporary();
    let mut vmm = Process::start_with_input(&mut after(script, &guest("input", directory.path())), LIMIT);
    vmm.wait_for("ready\n");
    vmm.signal(signal);
    for device in children(vmm.pid()) {
        kill(device.pid, signal).expect("it runs");
    }
    sleep(Duration::from_millis(500));
    assert!(!vmm.has_ended(), "{signal} ended it, which the caller has ignored:\n{}", vmm.finish());
    vmm.signal(end);
    let start = Instant::now();
    eventually(LIMIT, || vmm.has_ended());
    let time = start.elapsed();
    vmm.finish().expect_code(128 + end as i32);
    assert!(time <= END, "{end} took {time:?}");
}

#[test]
fn nohup() {
    goes_on_after("trap '' HUP", Signal::SIGHUP, Signal::SIGTERM);
}

#[test]
fn in_the_background_of_a_script() {
    goes_on_after("trap '' INT QUIT", Signal::SIGINT, Signal::SIGTERM);
    goes_on_after("trap '' INT QUIT", Signal::SIGQUIT, Signal::SIGHUP);
}

#[test]
fn sigterm_is_ignored() {
    goes_on_after("trap '' TERM", Signal::SIGTERM, Signal::SIGINT);
}

#[test]
fn sigchld_is_ignored() {
    passes_after("trap '' CHLD");
}

/// `env` leaves the signals blocked to what it starts.
fn with_blocked_signals(command: &Command) -> Command {
    let mut wrapper = Command::new("env");
    wrapper.arg("--block-signal=TERM,INT,HUP,QUIT,CHLD,USR1,PIPE");
    wrapper.arg(command.get_program()).args(command.get_args());
    wrapper
}

#[test]
fn signals_are_blocked() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let directory = temporary();
        let mut vmm = Process::start(&mut with_blocked_signals(&guest("spin", directory.path())), LIMIT);
        vmm.wait_for("ready\n");
        let devices = children(vmm.pid());
        vmm.signal(signal);
        assert!(eventually(END, || vmm.has_ended()), "{signal} does not end it");
        vmm.finish().expect_code(128 + signal as i32);
        expect_ended(&devices);
    }
}

/// Device processes do not inherit the signals that the VMM blocks for itself either.
#[test]
fn signals_reach_device_processes() {
    for blocked in [false, true] {
        let directory = temporary();
        let image = disk::for_payload(directory.path());
        let mut command = with_payload("allones");
        with_disk_and(&mut command, &image, ",restart=off");
        let mut vmm = Process::start(&mut if blocked { with_blocked_signals(&command) } else { command }, LIMIT);
        vmm.wait_for("ready\n");
        let devices = children(vmm.pid());
        assert_eq!(devices.len(), 1, "one disk is one process: {devices:?}");
        kill(devices[0].pid, Signal::SIGTERM).expect("it runs");
        assert!(eventually(END, || !devices[0].alive()), "SIGTERM does not reach the device process");
        vmm.finish().expect_code(6).expect_stdout("payload: passed");
    }
}

#[test]
fn signals_are_blocked_for_a_server() {
    let directory = temporary();
    let (image, socket) = (directory.path().join("disk.img"), directory.path().join("blk.sock"));
    disk::empty(&image, disk::PAYLOAD_DISK);
    let mut command = Command::new(binaries::path("outrigger-blk"));
    command.arg("--socket").arg(&socket).arg("--disk").arg(format!("path={}", image.display()));
    let server = Server::spawn(&mut with_blocked_signals(&command), &socket);
    server.stop().expect_code(0);
    assert!(!socket.exists(), "its socket is left");
}

/// The hard limit has room.
#[test]
fn the_usual_soft_limit_of_descriptors() {
    let directory = temporary();
    let mut command = with_payload("pci");
    command.args(["--cpus", "64"]);
    for number in 0..8 {
        let image = directory.path().join(format!("{number}.img"));
        disk::empty(&image, disk::PAYLOAD_DISK);
        with_disk(&mut command, &image);
    }
    let ended = run(&mut after("ulimit -Sn 1024", &command), LIMIT);
    ended.expect_code(0).expect_stdout("payload: passed").expect_stdout("pci 00:08.0 1af4:1042");
    assert!(ended.stderr.is_empty(), "there is nothing to tell; output:\n{ended}");
}

/// Wherever the start comes to it, one line says so, and blames no device.
#[test]
fn a_hard_limit_of_descriptors_that_is_too_low() {
    let directory = temporary();
    let images = ["a.img", "b.img"].map(|name| directory.path().join(name));
    images.iter().for_each(|image| disk::empty(image, disk::PAYLOAD_DISK));
    let failed = |limit: &u32| {
        let mut command = with_payload("pci");
        command.args(["--cpus", "4"]);
        images.iter().for_each(|image| _ = with_disk(&mut command, image));
        let ended = run(&mut after(&format!("ulimit -n {limit}"), &command), LIMIT);
        if ended.code() == 0 {
            return false;
        }
        assert!([2, 3].contains(&ended.code()), "with {limit}:\n{ended}");
        ended.expect_stderr("Too many open files");
        let raise = format!("; a process may have {limit} here: raise that (ulimit -Hn, LimitNOFILE= of systemd)\n");
        let is_told = ended.stderr.ends_with(&raise) || ended.stderr.starts_with("outrigger-blk: ");
        assert!(is_told && ended.stderr.lines().count() == 1, "with {limit}:\n{ended}");
        true
    };
    let failures = (10..).take_while(failed).count();
    assert!((40..200).contains(&failures), "the limit that is enough is {}", 10 + failures);
}

#[test]
fn other_limits() {
    passes_after("ulimit -c 0 -l 0");
    passes_after("ulimit -s 256");
    passes_after("ulimit -i 0");
}

/// Guest RAM is a file, too. SIGXFSZ ends nothing.
#[test]
fn a_limit_of_file_sizes() {
    let directory = temporary();
    let image = directory.path().join("disk.img");
    let command = guest("blk", directory.path());
    // Of 512 bytes each: as many as RAM has. Nothing that is written to the disk is beyond that.
    run(&mut after("ulimit -f 131072", &command), LIMIT).expect_code(0);
    assert!(disk::payload_wrote(&image), "the guest did not write");
    let ended = run(&mut after("ulimit -f 0", &command), LIMIT);
    ended.expect_code(3).expect_stderr("guest memory");
    assert_eq!(ended.stderr.lines().count(), 1, "not exactly one line; output:\n{ended}");
}

#[test]
fn standard_descriptors_are_closed() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"] {
        passes_after(&format!("exec {closed}"));
    }
}

/// With all three closed, what is opened next has their numbers: no log line may come to be in an image.
#[test]
fn log_lines_do_not_go_to_what_took_the_place_of_standard_error() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    let before = fs::read(&image).expect("just made");
    let mut command = guest("pci", directory.path());
    command.env("RUST_LOG", "trace");
    let mut command = after("exec <&- >&- 2>&-", &command);
    command.env("RUST_LOG", "trace");
    run(&mut command, LIMIT).expect_code(0);
    assert!(fs::read(&image).expect("still there") == before, "the image has changed");
}

#[test]
fn any_umask() {
    passes_after("umask 0");
    passes_after("umask 0777");
}

#[test]
fn no_controlling_terminal() {
    let directory = temporary();
    let command = guest("blk", directory.path());
    let mut session = Command::new("setsid");
    session.arg("--wait").arg(command.get_program()).args(command.get_args());
    run(&mut session, LIMIT).expect_code(0).expect_stdout("payload: passed");
}

#[test]
fn the_working_directory_is_gone() {
    passes_after("d=$(mktemp -d); cd \"$d\"; rmdir \"$d\"");
}

#[test]
fn odd_environments() {
    passes_after(
        "for name in $(env | sed 's/=.*//'); do [ $name = PATH ] || unset $name; done; unset PATH; set -- \"$@\"",
    );
    for variable in [
        "RUST_LOG=garbage=[=,=,",
        "RUST_LOG=trace",
        "TMPDIR=/nowhere",
        "LC_ALL=xx_YY.\u{fffd}",
        "OUTRIGGER_VCPUS=-1",
        "RUST_BACKTRACE=full",
    ] {
        let (name, value) = variable.split_once('=').expect("it has one");
        passes_after(&format!("export {name}='{value}'"));
    }
    passes_after("export ODD=$(printf '\\377\\376')");
}

/// Device processes do not inherit what the caller has open and did not close for the VMM.
#[test]
fn open_descriptors_do_not_reach_device_processes() {
    let directory = temporary();
    let secret = directory.path().join("secret");
    fs::write(&secret, "secret").expect("the directory is ours");
    let script = format!("exec 3<{0} 7<{0} 9>>{0}", secret.display());
    let mut vmm = Process::start(&mut after(&script, &guest("spin", directory.path())), LIMIT);
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    assert_eq!(devices.len(), 1, "one disk is one process: {devices:?}");
    let open = open_files(devices[0].pid);
    assert!(!open.iter().any(|file| file.ends_with("/secret")), "a device process has {open:?}");
    let environment = fs::read(format!("/proc/{}/environ", devices[0].pid)).expect("it runs");
    assert!(!environment.windows(5).any(|word| word == b"PATH="), "it has the caller's environment");
    vmm.signal(Signal::SIGTERM);
    vmm.finish().expect_code(143);
}

/// A FIFO that is full, and that nobody reads.
fn full_fifo(directory: &Path) -> (std::path::PathBuf, File) {
    let path = directory.join("stderr");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("the directory is ours");
    // Both ends, so that neither opening it nor writing to it fails.
    let both = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(&path);
    let mut both = both.expect("just made");
    while both.write(&[b'x'; 4096]).is_ok() {}
    while both.write(b"x").is_ok() {}
    (path, both)
}

/// The guest makes log lines without an end, by two ways, to a standard error that nobody reads: it goes on, and SIGTERM ends it.
#[test]
fn nobody_reads_standard_error() {
    for (check, with_disk) in [("ecam-toggle", false), ("rude", false), ("rude", true)] {
        let _turn = rude::turn();
        let directory = temporary();
        let (fifo, _both) = full_fifo(directory.path());
        let script = format!("exec 2>{}", fifo.display());
        let device = Rude::start(by_name("refusing"), directory.path());
        let command = || after(&script, &rude::command(check, with_disk, &[device.option()], directory.path()));
        let mut run = Run::start(command());
        run.vmm.wait_for("ready\n");
        sleep(Duration::from_millis(300));
        // The console is served as ever, so the vCPU goes on.
        run.enough().expect_code(0).expect_stdout("payload: passed");
        let mut run = Run::start(command());
        run.vmm.wait_for("ready\n");
        sleep(Duration::from_millis(300));
        run.terminate();
    }
}

/// The same for one line: a start that fails, with nobody to tell.
#[test]
fn nobody_reads_why_a_start_fails() {
    let directory = temporary();
    let (fifo, _both) = full_fifo(directory.path());
    let mut command = with_payload("pci");
    with_disk(&mut command, Path::new("/nowhere/disk.img"));
    let start = Instant::now();
    run(&mut after(&format!("exec 2>{}", fifo.display()), &command), LIMIT).expect_code(2);
    // The device process, and then the VMM, hope for a reader for two seconds.
    assert!(start.elapsed() < Duration::from_secs(6), "it took {:?}", start.elapsed());
}

#[test]
fn nobody_reads_a_servers_standard_error() {
    let directory = temporary();
    let (fifo, _both) = full_fifo(directory.path());
    let (image, socket) = (directory.path().join("disk.img"), directory.path().join("blk.sock"));
    disk::empty(&image, disk::PAYLOAD_DISK);
    let mut command = Command::new(binaries::path("outrigger-blk"));
    command.arg("--socket").arg(&socket).arg("--disk").arg(format!("path={}", image.display()));
    let server = Server::spawn(&mut after(&format!("exec 2>{}", fifo.display()), &command), &socket);
    let garbage = rude_client::MANNERS.into_iter().find(|(name, _)| *name == "garbage").expect("it is there").1;
    for _ in 0..5 {
        // Each is worth a line.
        let _ = garbage(&socket);
    }
    let start = Instant::now();
    rude_client::honest(&socket).expect("an honest client is served");
    assert!(start.elapsed() <= Duration::from_secs(1), "an honest client took {:?}", start.elapsed());
    let start = Instant::now();
    server.stop().expect_code(0);
    assert!(start.elapsed() <= END, "SIGTERM took {:?}", start.elapsed());
}

/// Standard output is a pipe that nobody reads: the guest's console stands still, and SIGTERM ends the run.
#[test]
fn nobody_reads_the_console() {
    let directory = temporary();
    let (fifo, _both) = full_fifo(directory.path());
    let command = guest("pci,spin", directory.path());
    let mut vmm = Process::start(&mut after(&format!("exec >{}", fifo.display()), &command), LIMIT);
    sleep(Duration::from_secs(1));
    vmm.signal(Signal::SIGTERM);
    let start = Instant::now();
    eventually(LIMIT, || vmm.has_ended());
    let time = start.elapsed();
    vmm.finish().expect_code(143);
    assert!(time <= END, "SIGTERM took {time:?}");
}

/// Disks before the one that cannot be used, which are not to blame and do not hold it up.
#[track_caller]
fn fails_at_once(directory: &Path, last: &[&str], words: &[&str]) {
    go_first();
    for good in [0, 1, 3] {
        let mut command = with_payload("pci");
        for number in 0..good {
            let image = directory.join(format!("good{number}.img"));
            disk::empty(&image, disk::PAYLOAD_DISK);
            with_disk(&mut command, &image);
        }
        command.args(last);
        let start = Instant::now();
        let ended = run(&mut command, LIMIT);
        let time = start.elapsed();
        ended.expect_code(2);
        assert_eq!(ended.stderr.lines().count(), 1, "not exactly one line; output:\n{ended}");
        assert!(words.iter().all(|word| ended.stderr.contains(word)), "the line lacks {words:?}; output:\n{ended}");
        assert!(!ended.stderr.contains("good"), "a disk that is good is named; output:\n{ended}");
        assert!(time <= FAILED_START, "it took {time:?} behind {good} disks; output:\n{ended}");
    }
}

#[test]
fn a_disk_of_odd_size_fails_at_once() {
    let directory = temporary();
    let odd = directory.path().join("odd.img");
    disk::empty(&odd, 1000);
    fails_at_once(directory.path(), &["--disk", &format!("path={}", odd.display())], &["odd.img"]);
}

#[test]
fn a_locked_disk_fails_at_once() {
    let directory = temporary();
    let image = directory.path().join("locked.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let server = Server::start(
        "outrigger-blk",
        &directory.path().join("blk.sock"),
        &["--disk", &format!("path={}", image.display())],
    );
    fails_at_once(directory.path(), &["--disk", &format!("path={}", image.display())], &["locked.img"]);
    drop(server);
}

#[test]
fn a_bad_tap_fails_at_once() {
    let directory = temporary();
    fails_at_once(directory.path(), &["--net", "tap=lo"], &["lo"]);
}

#[test]
fn a_missing_disk_fails_at_once() {
    let directory = temporary();
    fails_at_once(directory.path(), &["--disk", "path=/nowhere/disk.img"], &["/nowhere/disk.img"]);
}

#[test]
fn a_missing_server_fails_at_once() {
    let directory = temporary();
    fails_at_once(directory.path(), &["--device", "socket=/nowhere/device.sock"], &["/nowhere/device.sock"]);
}

#[test]
fn a_server_that_hangs_up_fails_at_once() {
    let directory = temporary();
    let socket = outrigger_tests::server::listen(directory.path(), "rude.sock", drop);
    let mut command = with_payload("pci");
    command.arg("--device").arg(format!("socket={}", socket.display()));
    let start = Instant::now();
    let ended = run(&mut command, LIMIT);
    ended.expect_code(2).expect_stderr("rude.sock");
    assert!(start.elapsed() <= FAILED_START, "it took {:?}; output:\n{ended}", start.elapsed());
}
