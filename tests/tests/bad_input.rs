//! Errors of a user or a host: each is one clear line on standard error, and the documented exit status.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::outrigger::{LIMIT, command, with_disk, with_payload};
use outrigger_tests::process::{Ended, Process, run};
use outrigger_tests::qemu::Server;
use outrigger_tests::{binaries, disk, payload, server};
use tempfile::TempDir;

const USAGE: i32 = 2;
const HOST: i32 = 3;

/// Runs `command`, which must end with `status` and one line on standard error that has all of `words` in it, and nothing on
/// standard output.
#[track_caller]
fn refused(command: &mut Command, status: i32, words: &[&str]) -> Ended {
    let ended = run(command, LIMIT);
    ended.expect_code(status);
    assert_eq!(ended.stderr.lines().count(), 1, "not exactly one line:\n{ended}");
    for word in words {
        assert!(ended.stderr.contains(word), "the line lacks {word:?}:\n{ended}");
    }
    assert!(!ended.stderr.contains("panicked"), "{ended}");
    assert_eq!(ended.stdout, "", "the guest started:\n{ended}");
    ended
}

fn temporary() -> TempDir {
    let directory = TempDir::new().expect("there is room for temporary files");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("it is ours");
    directory
}

fn kernel(path: &Path) -> Command {
    let mut command = command();
    command.arg("--kernel").arg(path);
    command
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]);
    command
}

/// `outrigger run` with the payload under another program, such as `setpriv`. The binaries and the payload are copied to
/// `directory`, which any user can read.
fn under(mut wrapper: Command, directory: &Path) -> Command {
    binaries::copy_stripped(directory);
    let kernel = directory.join("payload");
    fs::copy(payload::path(), &kernel).expect("the directory is ours");
    wrapper.arg(directory.join("outrigger")).arg("run").arg("--kernel").arg(kernel);
    wrapper.args(["--cmdline", "checks=pci"]);
    wrapper
}

/// As an ordinary user, where /dev/kvm is usable by root and a group only.
fn unprivileged() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    command
}

#[test]
fn the_kernel_is_missing() {
    refused(&mut kernel(Path::new("/nowhere/vmlinuz")), USAGE, &["--kernel", "/nowhere/vmlinuz", "No such file"]);
}

#[test]
fn no_kernel_is_named() {
    refused(&mut command(), USAGE, &["--kernel"]);
}

#[test]
fn the_kernel_is_a_directory() {
    let directory = temporary();
    refused(&mut kernel(directory.path()), USAGE, &["--kernel", "directory"]);
}

#[test]
fn the_kernel_is_unreadable() {
    let directory = temporary();
    let secret = directory.path().join("secret");
    fs::copy(payload::path(), &secret).expect("the directory is ours");
    fs::set_permissions(&secret, Permissions::from_mode(0o000)).expect("the file is ours");
    let mut command = unprivileged();
    binaries::copy_stripped(directory.path());
    command.arg(directory.path().join("outrigger")).args(["run", "--kernel"]).arg(&secret);
    refused(&mut command, USAGE, &["--kernel", "secret", "ermission denied"]);
}

#[test]
fn the_kernel_is_a_text_file() {
    let directory = temporary();
    let text = directory.path().join("text");
    fs::write(&text, "This is not a kernel.\n".repeat(500)).expect("the directory is ours");
    refused(&mut kernel(&text), USAGE, &["kernel", "text", "bzImage"]);
}

#[test]
fn the_kernel_is_empty() {
    let directory = temporary();
    let empty = directory.path().join("empty");
    fs::write(&empty, "").expect("the directory is ours");
    refused(&mut kernel(&empty), USAGE, &["kernel", "empty"]);
}

#[test]
fn the_kernel_is_an_ordinary_program() {
    refused(&mut kernel(&binaries::path("outrigger")), USAGE, &["kernel", "outrigger"]);
}

#[test]
fn the_kernel_is_cut_short() {
    let directory = temporary();
    let short = directory.path().join("short");
    let whole = fs::read(payload::path()).expect("it was just built");
    for length in [4, 40, 64, 100, 200, 5000] {
        fs::write(&short, &whole[..length]).expect("the directory is ours");
        refused(&mut kernel(&short), USAGE, &["kernel", "short"]);
    }
}

#[test]
fn the_initrd_is_missing() {
    refused(
        with_payload("pci").args(["--initrd", "/nowhere/initrd"]),
        USAGE,
        &["--initrd", "/nowhere/initrd", "No such file"],
    );
}

#[test]
fn the_initrd_is_larger_than_ram() {
    let directory = temporary();
    let large = directory.path().join("large");
    disk::empty(&large, 100 << 20);
    refused(with_payload("pci").arg("--initrd").arg(&large), USAGE, &["initrd", "large"]);
}

#[test]
fn numbers_of_cpus_that_cannot_be() {
    for cpus in ["0", "65", "-1", "two", "", "4294967297"] {
        refused(with_payload("pci").args(["--cpus", cpus]), USAGE, &["--cpus", "1", "64"]);
    }
}

#[test]
fn memory_sizes_that_cannot_be() {
    for memory in ["1M", "0", "lots", "", "99999999999G", "512"] {
        let mut command = kernel(&payload::path());
        refused(command.args(["--memory", memory]), USAGE, &["--memory"]);
    }
}

#[test]
fn options_that_do_not_exist() {
    refused(with_payload("pci").arg("--turbo"), USAGE, &["--turbo"]);
    refused(with_payload("pci").args(["--console", "vga"]), USAGE, &["--console", "vga"]);
    refused(with_payload("pci").args(["--nested", "maybe"]), USAGE, &["--nested", "on or off", "'maybe'"]);
    refused(with_payload("pci").args(["--device", "tcp=1"]), USAGE, &["--device", "tcp", "socket"]);
    refused(with_payload("pci").args(["--net", "bridge=br0"]), USAGE, &["--net", "bridge", "tap"]);
    refused(with_payload("pci").args(["--net", "tap=t0,mac=01:00:00:00:00:01"]), USAGE, &["--net", "mac"]);
    let words = ["--device", "dma", "'copied'", "shared or messages"];
    refused(with_payload("pci").args(["--device", "socket=/s,dma=copied"]), USAGE, &words);
}

#[test]
fn paths_that_cannot_be_used() {
    let refuse = |paths: &str, words: &[&str]| refused(with_payload("pci").args(["--paths", paths]), USAGE, words);
    refuse("mapped,ioeventfd", &["--paths", "message cannot be left out", "mapped,ioeventfd,message"]);
    refuse(
        "mapped,ioregion,message",
        &["--paths", "'ioregion'", "mapped, ioeventfd, ioregionfd, stand-in and message"],
    );
    refuse("message,", &["--paths", "''"]);
    refuse("", &["--paths", "empty"]);
}

#[test]
fn arguments_that_a_device_program_cannot_use() {
    let blk = |arguments: &[&str], words: &[&str]| {
        refused(Command::new(binaries::path("outrigger-blk")).args(arguments), USAGE, words);
    };
    blk(&[], &["--disk", "--socket"]);
    blk(&["--disk", "path=/x"], &["--socket", "--fd", "--help"]);
    blk(&["--disk", "path=/x", "--socket", "/s", "--turbo"], &["--turbo"]);
    blk(&["--disk", "path=/x", "--socket", "/s", "--max-data-xfer-size", "0"], &["--max-data-xfer-size", "1048576"]);
    blk(&["--disk", "path=/nowhere/disk", "--socket", "/s"], &["/nowhere/disk"]);
}

#[test]
fn a_disk_with_an_unknown_key() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    let mut command = with_payload("pci");
    refused(
        command.arg("--disk").arg(format!("path={},cache=on", image.display())),
        USAGE,
        &["--disk", "cache", "readonly"],
    );
}

#[test]
fn a_disk_that_is_a_directory() {
    let directory = temporary();
    refused(with_disk(&mut with_payload("pci"), directory.path()), USAGE, &["--disk", "directory"]);
}

/// Served as raw, its headers would be the guest's first sectors, and its size a fraction of what it holds.
#[test]
fn a_disk_in_another_format() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("disk.qcow2");
    std::fs::write(&image, [&b"QFI\xfb\0\0\0\x03"[..], &[0; 1016]].concat()).unwrap();
    refused(with_disk(&mut with_payload("pci"), &image), USAGE, &["--disk", "disk.qcow2", "qcow2", "format=raw"]);
}

#[test]
fn a_disk_that_is_missing() {
    refused(
        with_disk(&mut with_payload("pci"), Path::new("/nowhere/disk")),
        USAGE,
        &["--disk", "/nowhere/disk", "No such file"],
    );
}

#[test]
fn a_file_without_write_permission_needs_readonly() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    fs::set_permissions(&image, Permissions::from_mode(0o444)).expect("the file is ours");
    refused(with_disk(&mut with_payload("pci"), &image), USAGE, &["--disk", "disk.img", "readonly=on"]);
}

/// Permissions do not bind root, a read-only mount does.
#[test]
fn a_disk_on_a_read_only_mount_needs_readonly() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    let path = directory.path().to_str().expect("a plain path");
    let mut command = shell(r#"mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@""#);
    command.arg(path).arg(binaries::path("outrigger")).args(["run", "--kernel"]).arg(payload::path());
    refused(with_disk(command.args(["--memory", "64M"]), &image), USAGE, &["--disk", "disk.img", "readonly=on"]);
}

#[test]
fn a_disk_that_another_instance_uses() {
    let directory = temporary();
    let image = disk::for_payload(directory.path());
    let mut first = Process::start(with_disk(&mut with_payload("spin"), &image), LIMIT);
    first.wait_for("ready\n");
    refused(with_disk(&mut with_payload("pci"), &image), USAGE, &["--disk", "disk.img", "lock"]);
}

/// The interface is in use by another instance's guest.
#[test]
fn a_tap_that_is_busy() {
    let mut first = Process::start(with_payload("spin").args(["--net", "tap=orbusy0"]), LIMIT);
    first.wait_for("ready\n");
    refused(with_payload("pci").args(["--net", "tap=orbusy0"]), USAGE, &["--net", "orbusy0", "busy"]);
}

/// A missing interface is made, so it takes a user who may not make one.
#[test]
fn a_tap_that_is_missing_and_cannot_be_made() {
    let directory = temporary();
    let mut wrapper = Command::new("setpriv");
    wrapper.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    let mut command = under(wrapper, directory.path());
    refused(command.args(["--net", "tap=ormiss0"]), HOST, &["--net", "ormiss0", "permission"]);
}

#[test]
fn a_name_that_is_another_kind_of_interface() {
    refused(with_payload("pci").args(["--net", "tap=lo"]), USAGE, &["--net", "lo", "tap"]);
}

#[test]
fn no_dev_kvm() {
    let directory = temporary();
    let mut command = under(
        shell(
            r#"mount -t tmpfs none /mnt; touch /mnt/null; mount --bind /dev/null /mnt/null; mount --move /mnt /dev; exec "$@""#,
        ),
        directory.path(),
    );
    refused(&mut command, HOST, &["/dev/kvm", "does not exist"]);
}

#[test]
fn no_permission_for_dev_kvm() {
    let directory = temporary();
    refused(&mut under(unprivileged(), directory.path()), HOST, &["/dev/kvm", "ermission denied"]);
}

#[test]
fn a_dev_kvm_that_is_something_else() {
    let directory = temporary();
    let mut command = under(shell(r#"mount --bind /dev/null /dev/kvm; exec "$@""#), directory.path());
    refused(&mut command, HOST, &["/dev/kvm"]);
}

fn device(path: &Path) -> Command {
    let mut command = with_payload("pci");
    command.arg("--device").arg(format!("socket={}", path.display()));
    command
}

#[test]
fn a_socket_that_is_missing() {
    refused(&mut device(Path::new("/nowhere/sock")), USAGE, &["--device", "/nowhere/sock"]);
}

#[test]
fn a_socket_that_nobody_listens_on() {
    let directory = temporary();
    let path = directory.path().join("deaf.sock");
    drop(UnixListener::bind(&path).expect("the directory is ours"));
    refused(&mut device(&path), USAGE, &["--device", "deaf.sock", "nobody listens"]);
}

#[test]
fn a_socket_that_is_a_file() {
    let directory = temporary();
    refused(&mut device(&disk::for_payload(directory.path())), USAGE, &["--device", "disk.img"]);
}

/// A server that is there and misbehaves: whichever way, in one line, after a bounded wait.
fn misbehaves(name: &str, serve: fn(UnixStream)) {
    let directory = temporary();
    let path: PathBuf = server::listen(directory.path(), name, serve);
    refused(&mut device(&path), USAGE, &["--device", name]);
}

#[test]
fn a_server_that_closes_at_once() {
    misbehaves("closes.sock", server::closes);
}

#[test]
fn a_server_that_answers_garbage() {
    misbehaves("garbage.sock", server::answers_garbage);
}

#[test]
fn a_server_that_refuses() {
    misbehaves("refuses.sock", server::refuses);
}

#[test]
fn a_server_that_announces_more_than_it_sends() {
    misbehaves("huge.sock", server::announces_too_much);
}

#[test]
fn a_server_that_never_answers() {
    misbehaves("silent.sock", server::never_answers);
}

/// Takes no connection at all: the backlog is full or the process is stopped.
#[test]
fn a_server_that_never_accepts() {
    let directory = temporary();
    let path = directory.path().join("stuck.sock");
    let listener = UnixListener::bind(&path).expect("the directory is ours");
    refused(&mut device(&path), USAGE, &["--device", "stuck.sock"]);
    drop(listener);
}

/// The kernel tells who listens. A server gets guest RAM, so it has to be root's or our own unless `user=` says otherwise.
#[test]
fn a_server_that_another_user_runs() {
    let directory = temporary();
    binaries::copy_stripped(directory.path());
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("the directory is ours");
    let image = disk::for_payload(directory.path());
    fs::set_permissions(&image, Permissions::from_mode(0o666)).expect("the file is ours");
    let path = directory.path().join("theirs.sock");
    let mut command = unprivileged();
    command.arg(directory.path().join("outrigger-blk")).arg("--disk").arg(format!("path={}", image.display()));
    let _server = Server::spawn(command.arg("--socket").arg(&path), &path);

    let with = |more: &str| {
        let mut command = with_payload("blk");
        command.arg("--device").arg(format!("socket={}{more}", path.display()));
        command
    };
    let words = ["--device", "theirs.sock", "runs as user nobody", "for root only", "add user=nobody"];
    refused(&mut with(""), USAGE, &words);
    refused(&mut with(",dma=messages"), USAGE, &words);
    refused(&mut with(",user=root"), USAGE, &["runs as user nobody", "for root only"]);
    for user in ["nobody", "65534", "any"] {
        run(&mut with(&format!(",user={user}")), LIMIT).expect_code(0).expect_stdout("payload: passed");
    }
}
