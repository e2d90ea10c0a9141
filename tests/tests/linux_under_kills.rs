//! A Linux guest with two processors that verifies what its disk and its card do (`verified-load`) while their processes are killed at
//! random moments, in the test bed, where KVM runs the guest itself: no error, nothing lost, nothing corrupted, nothing left behind.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{panicking, scope, sleep};
use std::time::{Duration, Instant};

use outrigger_tests::kills::{Killer, UNLIMITED};
use outrigger_tests::leftovers::{children, expect_ended, expect_no_interface};
use outrigger_tests::load::disk;
use outrigger_tests::load::stream::{self, From};
use outrigger_tests::process::{Ended, Process, run};
use outrigger_tests::testbed::Testbed;
use outrigger_tests::{binaries, guest};
use tempfile::TempDir;

const TAP: &str = "orload0";
const HOST: &str = "10.78.0.1";
const PORT: u16 = 7000;
/// Half a minute for each kill: the bed's processor is emulated.
const HANGS: Duration = Duration::from_secs(1200);
/// The longest pause between two kills; a restart takes some 200 ms of this emulated host.
const PAUSE: Duration = Duration::from_millis(700);
/// How many kills there are, by an environment variable within the bed.
const KILLS: &str = "OUTRIGGER_TEST_KILLS";

/// The guest's script. Its kernel's log must not speak of errors.
const GUEST: &str = r"
ip addr add 10.78.0.2/24 dev eth0; ip link set eth0 up
mkdir -p /mounted
mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mounted || echo LOAD-FAILED: no file system
echo LOAD-RUNS
/bin/verified-load /mounted 10.78.0.1:7000 || echo LOAD-FAILED
umount /mounted || echo LOAD-FAILED: umount
dmesg | grep -Ei 'I/O error|EXT4-fs (error|warning)|lost .*write|blocked for more than|NETDEV WATCHDOG|not a head|is broken|WARNING: CPU|BUG:|Oops|stall' && echo LOAD-FAILED: the kernel has seen errors
echo LOAD-ENDS
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// SIGKILL while the loads run.
    Kill,
    /// SIGSTOP while the loads run.
    Stop,
    /// SIGKILL from the kernel's first line to its power-off.
    Throughout,
}

/// Boots the guest, and kills until `kills` are reached.
fn under_kills(options: &str, manner: Manner, kills: usize) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk.img");
    outrigger_tests::disk::empty(&image, 64 << 20);
    let mut command = Command::new(binaries::path("outrigger"));
    command.args(["run", "--kernel", "/guest/vmlinuz", "--initrd", "/guest/load", "--cpus", "2", "--memory", "256M"]);
    command.args(["--cmdline", "console=ttyS0 panic=-1", "--disk"]);
    command.arg(format!("path={},{UNLIMITED}{options}", image.display()));
    command.args(["--net", &format!("tap={TAP},{UNLIMITED}{options}")]);
    let mut vmm =
        Process::start(&mut command, HANGS + Duration::from_secs(30) * u32::try_from(kills).unwrap_or(u32::MAX));
    let mut killer = Killer::new(&vmm, PAUSE);
    vmm.wait_for("Linux version");
    host(&["ip", "addr", "add", &format!("{HOST}/24"), "dev", TAP]);
    host(&["ip", "link", "set", TAP, "up"]);
    let listener = TcpListener::bind((HOST, PORT)).expect("the address is this host's");
    let stream = connection(&listener, || (manner == Manner::Throughout).then(|| killer.kill_any()), &vmm);
    let enough = AtomicBool::new(false);
    let (sent, received, time) = scope(|scope| {
        let _end = EndOf(&stream);
        let sent = scope.spawn(|| stream::send(&stream, From::Host, |_| enough.load(Ordering::Relaxed)));
        let received = scope.spawn(|| stream::receive(&stream, From::Guest));
        let start = Instant::now();
        while killer.kills < kills && !received.is_finished() {
            match manner {
                Manner::Stop => killer.stop_one(&vmm),
                Manner::Kill | Manner::Throughout => killer.kill_one(&vmm),
            }
        }
        let time = start.elapsed();
        sleep(Duration::from_secs(2));
        enough.store(true, Ordering::Relaxed);
        let join = |thread: std::thread::ScopedJoinHandle<'_, std::io::Result<u64>>| thread.join().expect("no panic");
        (join(sent), join(received), time)
    });
    while manner == Manner::Throughout && !vmm.has_ended() {
        killer.kill_any();
    }
    let devices = children(vmm.pid());
    let ended = vmm.finish();
    println!("{} kills in {time:?}; the host has sent {sent:?} and received {received:?}", killer.kills);
    ended.stdout.lines().filter(|line| line.contains("load ")).for_each(|line| println!("{line}"));
    let exchanged = |result: std::io::Result<u64>| result.unwrap_or_else(|error| panic!("{error}; output:\n{ended}"));
    assert!(exchanged(sent) > 0, "nothing is sent; output:\n{ended}");
    assert!(exchanged(received) > 0, "nothing is received; output:\n{ended}");
    ended.expect_code(0).expect_stdout("LOAD-ENDS");
    assert!(!ended.stdout.contains("FAILED"), "the guest has seen an error; output:\n{ended}");
    expect_image(&image, &ended);
    expect_ended(&devices);
    expect_no_interface(TAP);
}

/// Ends a connection when the test fails, so that nobody waits for what does not come any more.
struct EndOf<'a>(&'a TcpStream);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        if panicking() {
            let _ = self.0.shutdown(Shutdown::Both);
        }
    }
}

/// The guest's connection. Meanwhile `kill` is called.
fn connection(listener: &TcpListener, mut kill: impl FnMut() -> Option<()>, vmm: &Process) -> TcpStream {
    listener.set_nonblocking(true).expect("it is a socket");
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("it is a socket");
                return stream;
            }
            Err(_) if kill().is_some() => {}
            Err(_) => sleep(Duration::from_millis(50)),
        }
        assert!(start.elapsed() < HANGS, "the guest does not connect; stdout:\n{}", vmm.stdout());
    }
}

/// The image is a clean file system, and its files are what the guest says it has written.
#[track_caller]
fn expect_image(image: &Path, ended: &Ended) {
    run(Command::new("/sbin/e2fsck").arg("-fn").arg(image), HANGS).expect_code(0);
    let mounted = image.with_file_name("mounted");
    std::fs::create_dir(&mounted).expect("the directory is ours");
    let path = mounted.to_str().expect("a temporary directory has an ordinary name").to_owned();
    host(&["mount", "-t", "ext4", "-o", "ro,loop", image.to_str().expect("the same"), &path]);
    for name in ["direct-1", "direct-2", "cached"] {
        let sum = disk::sum(&mounted.join(name)).unwrap_or_else(|error| panic!("{name}: {error}; output:\n{ended}"));
        let said = ended.stdout.lines().find(|line| line.contains(&format!("load {name}: ")));
        let said = said.unwrap_or_else(|| panic!("the guest says nothing of {name}; output:\n{ended}"));
        assert!(said.contains(&format!("sum: {sum} ")), "{name} has the sum {sum}, not as in {said}");
    }
    host(&["umount", &path]);
}

#[track_caller]
fn host(words: &[&str]) {
    run(Command::new(words[0]).args(&words[1..]), HANGS).expect_code(0);
}

/// Has the test bed run one of the tests below.
fn in_bed(test: &str, kills: usize, minutes: u64) {
    let (bed, command) = Testbed::new().cpus(2).minutes(minutes).these_tests(test, &[]);
    let program = bed.directory().join("verified-load");
    binaries::strip(Path::new(env!("CARGO_BIN_EXE_verified-load")), &program);
    let initramfs = bed.directory().join("load");
    guest::initramfs(&initramfs, GUEST, &[(&program, "/bin/verified-load")], &[]);
    let bed = bed.file(initramfs, "/guest/load").file("/sbin/e2fsck", "/sbin/e2fsck");
    let ended = bed.run(&format!("export {KILLS}={kills}\n{command}nothing_left\n"));
    println!("{}", ended.stdout);
    assert!(ended.stdout.contains("kills in"), "nothing was killed");
}

fn kills() -> usize {
    let kills = std::env::var(KILLS).ok().and_then(|kills| kills.parse().ok());
    kills.unwrap_or_else(|| panic!("{KILLS} says how many kills there are to be"))
}

#[test]
fn a_guest_verifies_while_its_devices_are_killed() {
    in_bed("shared_memory", 300, 20);
}

#[test]
fn a_guest_verifies_while_its_devices_without_shared_memory_are_killed() {
    in_bed("memory_by_messages", 75, 20);
}

#[test]
fn a_guest_boots_and_ends_while_its_devices_are_killed() {
    in_bed("throughout", 60, 20);
}

#[test]
fn a_guest_verifies_while_its_devices_are_stopped() {
    in_bed("stopped", 10, 20);
}

#[test]
#[ignore = "takes long: scripts/test --long stops"]
fn two_hundred_stops() {
    in_bed("stopped", 200, 115);
}

#[test]
#[ignore = "takes hours: scripts/test --long kills"]
fn five_thousand_kills() {
    in_bed("shared_memory", 5_000, 115);
}

#[test]
#[ignore = "takes hours: scripts/test --long kills"]
fn five_thousand_kills_without_shared_memory() {
    in_bed("memory_by_messages", 5_000, 115);
}

#[test]
#[ignore = "is what runs in the bed"]
fn shared_memory() {
    under_kills("", Manner::Kill, kills());
}

#[test]
#[ignore = "is what runs in the bed"]
fn memory_by_messages() {
    under_kills(",dma=messages", Manner::Kill, kills());
}

#[test]
#[ignore = "is what runs in the bed"]
fn stopped() {
    under_kills(",deadline=1s", Manner::Stop, kills());
}

#[test]
#[ignore = "is what runs in the bed"]
fn throughout() {
    under_kills("", Manner::Throughout, kills());
}
