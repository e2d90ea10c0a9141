//! However a run ends, nothing of it stays: no device process, socket, interface or temporary file.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use outrigger_tests::disk;
use outrigger_tests::leftovers::{
    Seen, children, expect_empty, expect_ended, expect_no_interface, launcher, open_files, sockets,
};
use outrigger_tests::outrigger::{LIMIT, with_disk, with_payload};
use outrigger_tests::process::{Ended, Process};
use tempfile::TempDir;

/// A guest with a disk and a network card whose interface Outrigger makes.
struct Run {
    vmm: Process,
    devices: Vec<Seen>,
    launcher: Seen,
    interface: String,
    directory: TempDir,
}

impl Run {
    fn start(checks: &str, interface: &str) -> Self {
        let directory = TempDir::new().expect("there is room for temporary files");
        let image = disk::for_payload(directory.path());
        let private = directory.path().join("private");
        std::fs::create_dir(&private).expect("the directory is ours");
        let mut command = with_payload(checks);
        with_disk(&mut command, &image).args(["--net", &format!("tap={interface}")]);
        command.current_dir(&private);
        for variable in ["TMPDIR", "XDG_RUNTIME_DIR", "HOME"] {
            command.env(variable, &private);
        }
        let mut vmm = Process::start_with_input(&mut command, LIMIT);
        vmm.wait_for("ready\n");
        let devices = children(vmm.pid());
        let launcher = launcher(vmm.pid()).expect("a run with devices has a launcher");
        let run = Self { vmm, devices, launcher, interface: interface.to_owned(), directory };
        run.expect_two_confined_devices();
        run
    }

    /// A process per device, each with its own back end, none with a KVM file.
    fn expect_two_confined_devices(&self) {
        assert_eq!(self.devices.len(), 2, "two devices are two processes: {:?}", self.devices);
        assert!(Path::new("/sys/class/net").join(&self.interface).exists(), "{} was not made", self.interface);
        let holders = |what: &str| -> Vec<&str> {
            let all =
                self.devices.iter().filter(|device| open_files(device.pid).iter().any(|file| file.contains(what)));
            all.map(|device| device.name.as_str()).collect()
        };
        assert_eq!(holders("disk.img"), ["outrigger-blk"]);
        assert_eq!(holders("/dev/net/tun"), ["outrigger-net"]);
        assert!(holders("kvm").is_empty(), "device processes hold KVM files: {:?}", holders("kvm"));
        let vmm = open_files(self.vmm.pid());
        let launcher = open_files(self.launcher.pid);
        let others: Vec<_> = launcher.iter().filter(|file| !file.contains("/dev/null")).collect();
        assert_eq!(others.len(), 2, "the launcher has more than its socket and standard error: {launcher:?}");
        // The tap is kept for a successor, and nothing is done with it. An image is locked, and would stay so.
        let held = |what: &str| vmm.iter().filter(|file| file.contains(what)).count();
        assert_eq!((held("disk.img"), held("net/tun")), (0, 1), "the VMM holds other back ends: {vmm:?}");
    }

    #[track_caller]
    fn expect_nothing_left(self) -> Ended {
        let Self { vmm, devices, launcher, interface, directory } = self;
        let ended = vmm.finish();
        expect_ended(&devices);
        expect_ended(&[launcher]);
        expect_no_interface(&interface);
        expect_empty(&directory.path().join("private"));
        let path = directory.path().to_str().expect("a plain path");
        assert!(sockets(path).is_empty(), "sockets are left: {:?}", sockets(path));
        ended
    }
}

#[test]
fn after_power_off() {
    let mut run = Run::start("input", "orleft0");
    run.vmm.send("go");
    run.expect_nothing_left().expect_code(0).expect_stdout("payload: passed");
}

#[test]
fn after_a_reboot() {
    let mut run = Run::start("input,reboot", "orleft4");
    run.vmm.send("go");
    run.expect_nothing_left().expect_code(4);
}

#[test]
fn after_a_crash() {
    let mut run = Run::start("input,crash", "orleft5");
    run.vmm.send("go");
    run.expect_nothing_left().expect_code(5);
}

#[test]
fn after_sigterm() {
    let run = Run::start("spin", "orleft1");
    run.vmm.signal(Signal::SIGTERM);
    run.expect_nothing_left().expect_code(143);
}

#[test]
fn after_sigint() {
    let run = Run::start("spin", "orleft2");
    run.vmm.signal(Signal::SIGINT);
    run.expect_nothing_left().expect_code(130);
}

#[test]
fn after_the_vmm_is_killed() {
    let run = Run::start("spin", "orleft3");
    run.vmm.signal(Signal::SIGKILL);
    run.expect_nothing_left().expect_code(137);
}

/// Ctrl-C at a terminal reaches the whole process group at once.
#[test]
fn after_sigint_to_the_process_group() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let mut command = with_payload("spin");
    with_disk(&mut command, &image);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut vmm = Process::start(&mut command, LIMIT);
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    assert_eq!(devices.len(), 1, "one disk is one process: {devices:?}");
    nix::sys::signal::killpg(vmm.pid(), Signal::SIGINT).expect("it leads the group");
    vmm.finish().expect_code(130);
    expect_ended(&devices);
}

/// An interface that was there before stays.
#[test]
fn an_interface_of_the_users_own_is_kept() {
    let interface = Interface::make("orkeep0");
    let mut command = with_payload("pci");
    let ended = outrigger_tests::process::run(command.args(["--net", "tap=orkeep0"]), LIMIT);
    ended.expect_code(0).expect_stdout("payload: passed").expect_stdout("1af4:1041");
    assert!(Path::new("/sys/class/net/orkeep0").exists(), "the user's own interface was removed");
    drop(interface);
}

struct Interface(&'static str);

impl Interface {
    fn make(name: &'static str) -> Self {
        let status = Command::new("ip").args(["tuntap", "add", "dev", name, "mode", "tap"]).status();
        let status = status.expect("ip is there: apt-get install iproute2");
        assert!(status.success(), "cannot make a tap interface: be root, and load the module tun");
        Self(name)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["tuntap", "del", "dev", self.0, "mode", "tap"]).status();
    }
}
