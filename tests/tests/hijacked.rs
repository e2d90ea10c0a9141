//! A device process that was taken over has nothing but its device: the attempts of `outrigger_tests::hijack`, by a stand-in that is sealed by
//! the same code, as root and as an unprivileged user; and all of them succeed where nothing is sealed, so that the test can fail.

use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use outrigger_process::seal::Sandbox;
use outrigger_process::seal::filter::EXIT_REFUSED;
use outrigger_process::{child, launch};
use outrigger_tests::binaries::{self, of_tests};
use outrigger_tests::disk;
use outrigger_tests::hijack::ATTEMPTS;
use outrigger_tests::hijack::stand_in::{self, How, Outcome, Report};
use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::{Ended, run};
use outrigger_tests::testbed::Testbed;
use tempfile::TempDir;

/// No account has this number.
const USER: u32 = 12345;

/// The report of the stand-in, printed.
fn report(kind: &str, options: &str, how: How) -> Report {
    let report = stand_in::report(&of_tests("hijacked"), kind, options, how);
    for Outcome { name, result } in &report.outcomes {
        println!("{name:44} {result}");
    }
    report
}

/// Its image in `directory`, which belongs to `user`.
fn image_of(user: u32, directory: &Path) -> String {
    let options = image(directory);
    for path in [directory.to_owned(), directory.join("disk")] {
        chown(path, Some(user), Some(user)).expect("root gives files away");
    }
    options
}

fn image(directory: &Path) -> String {
    let image = directory.join("disk");
    std::fs::write(&image, vec![0; 1 << 20]).expect("there is room for an image");
    format!("path={}", image.display())
}

#[test]
fn a_disks_process_has_nothing_but_its_image() {
    let directory = TempDir::new().unwrap();
    let report = report("blk", &image(directory.path()), How::by_root(Sandbox::Require));
    assert!(report.surprises().is_empty(), "{:#?}", report.surprises());
}

#[test]
fn a_cards_process_has_nothing_but_its_tap() {
    let report = report("net", "tap=orhijacked", How::by_root(Sandbox::Require));
    let surprises: Vec<_> = report.surprises().into_iter().filter(|outcome| !outcome.name.contains("image")).collect();
    assert!(surprises.is_empty(), "{surprises:#?}");
}

#[test]
fn nor_has_that_of_a_user_without_privileges() {
    let directory = TempDir::new().unwrap();
    let how = How { sandbox: Sandbox::Require, ..How::by(USER) };
    let report = report("blk", &image_of(USER, directory.path()), how);
    assert!(report.surprises().is_empty(), "{:#?}", report.surprises());
}

#[test]
fn a_refused_system_call_ends_the_process_with_one_line() {
    let directory = TempDir::new().unwrap();
    let how = How::by_root(Sandbox::Require).told("told");
    let output = stand_in::run(&of_tests("hijacked"), "blk", &image(directory.path()), how);
    assert_eq!(output.status.code(), Some(EXIT_REFUSED.into()), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text, "outrigger: the sandbox refuses system call 257 (openat) to the process\n");
}

/// `outrigger-blk`, of whose layers one is missing: nobody has put it into a PID namespace.
fn without_a_pid_namespace(sandbox: Sandbox) -> (Option<i32>, String) {
    let directory = TempDir::new().expect("there is room for temporary files");
    // The client leaves before it has said anything.
    let (ours, theirs) = UnixStream::pair().expect("there are descriptors");
    drop(ours);
    let mut command = Command::new(binaries::path("outrigger-blk"));
    child::prepare(&mut command).args(["--options", &image(directory.path()), "--fd", "0"]);
    command.env(launch::SANDBOX, sandbox.name()).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    let output = command.stderr(Stdio::piped()).output().expect("it starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_missing_layer_is_one_line_or_a_refusal() {
    let line = "the sandbox is incomplete, as this host does not permit: a PID namespace (Operation not permitted (os error 1))\n";
    let (status, text) = without_a_pid_namespace(Sandbox::Require);
    assert_eq!((status, text), (Some(3), format!("outrigger-blk: sandbox=require: {line}")));
    let (status, text) = without_a_pid_namespace(Sandbox::On);
    assert_eq!((status, text), (Some(0), format!("outrigger-blk: warn: {line}")));
    assert_eq!(without_a_pid_namespace(Sandbox::Off), (Some(0), String::new()));
}

/// Runs the payload on a disk and a card with this `sandbox`, as a user without privileges.
fn run_as_user(directory: &Path, interface: &str, sandbox: &str, before: &str) -> Ended {
    let image = disk::for_payload(directory);
    let nodes = [("kvm", 232), ("tun", 200)].map(|(name, minor)| (directory.join(name), makedev(10, minor)));
    // Where any user can execute them.
    for name in ["outrigger", "outrigger-blk", "outrigger-net"] {
        std::fs::copy(binaries::path(name), directory.join(name)).expect("there is room for the programs");
    }
    let payload = with_payload("blk");
    let kernel = directory.join("payload");
    std::fs::copy(outrigger_tests::payload::path(), &kernel).expect("there is room for the payload");
    let words =
        payload.get_args().map(|word| if word == outrigger_tests::payload::path() { kernel.as_os_str() } else { word });
    for (node, number) in &nodes {
        mknod(node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, *number).expect("be root");
    }
    for path in [directory, &image, &nodes[0].0, &nodes[1].0] {
        chown(path, Some(USER), Some(USER)).expect("be root");
    }
    let tap = |verb: &str, user: &[&str]| {
        let mut ip = Command::new("ip");
        let made = ip.args(["tuntap", verb, "dev", interface, "mode", "tap"]).args(user).status().expect("ip is there");
        assert!(made.success(), "be root, and load the module tun");
    };
    tap("add", &["user", &USER.to_string()]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
    let here = directory.display();
    let mounts = format!("mount --bind {here}/kvm /dev/kvm && mount --bind {here}/tun /dev/net/tun");
    command.arg(format!("{mounts} && {before} {user} \"$@\""));
    command.arg("sh").arg(directory.join("outrigger")).args(words);
    command.arg("--disk").arg(format!("path={},sandbox={sandbox}", image.display()));
    let ended = run(command.args(["--net", &format!("tap={interface},sandbox={sandbox}")]), LIMIT);
    tap("del", &[]);
    nodes.iter().for_each(|(node, _)| std::fs::remove_file(node).expect("it was made"));
    ended
}

#[test]
fn a_user_without_privileges_can_require_the_whole_sandbox() {
    let directory = TempDir::new().unwrap();
    let ended = run_as_user(directory.path(), "orhijuser0", "require", "exec");
    ended.expect_code(0).expect_stdout("payload: passed");
    assert!(!ended.stderr.contains("the sandbox"), "{ended}");
}

/// The user namespace around the run permits none within.
#[test]
fn where_user_namespaces_are_refused_a_line_says_so() {
    let before = "unshare --user sleep 600 & p=$!
        until [ $(readlink /proc/$p/ns/user) != $(readlink /proc/self/ns/user) ]; do :; done
        for map in uid_map gid_map; do echo 0 0 65536 > /proc/$p/$map; done
        exec nsenter --user --target $p sh -c 'kill $0; echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"' $p";
    let directory = TempDir::new().unwrap();
    let ended = run_as_user(directory.path(), "orhijuser1", "on", before);
    ended.expect_code(0).expect_stdout("payload: passed");
    assert_eq!(ended.stderr.matches("the sandbox").count(), 2, "one line for each device: {ended}");
    ended.expect_stderr("a user namespace (").expect_stderr("a PID namespace (");
    let ended = run_as_user(directory.path(), "orhijuser1", "require", before);
    ended.expect_code(3).expect_stderr(": sandbox=require: the sandbox is incomplete");
    assert!(ended.stderr.lines().all(|line| line.starts_with("outrigger-")), "{ended}");
}

/// As in a container, whose root may not make namespaces: the other layers hold, a line says what is missing, and the disk works.
#[test]
fn a_disk_works_where_namespaces_are_refused() {
    let directory = TempDir::new().unwrap();
    let image = disk::for_payload(directory.path());
    let run_with = |sandbox: &str| {
        let mut command = with_payload("blk");
        command.arg("--disk").arg(format!("path={},sandbox={sandbox}", image.display()));
        let mut contained = Command::new("setpriv");
        contained.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
        contained.arg(command.get_program()).args(command.get_args());
        run(&mut contained, LIMIT)
    };
    let ended = run_with("on");
    ended.expect_code(0).expect_stdout("payload: passed");
    let lines: Vec<_> = ended.stderr.lines().filter(|line| line.contains("the sandbox")).collect();
    assert_eq!(lines.len(), 1, "{ended}");
    for layer in ["a PID namespace", "a network namespace", "a mount namespace"] {
        assert!(lines[0].contains(layer), "{ended}");
    }
    let ended = run_with("require");
    ended.expect_code(3);
    assert!(ended.stderr.starts_with("outrigger-blk: sandbox=require: the sandbox is incomplete"), "{ended}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
}

/// The attempts that nothing but the filter of system calls refuses, on one kernel or another.
const BY_FILTER_ONLY: &[&str] = &[
    "a netlink socket",
    "a vsock socket",
    "a socket of the kernel's cryptography",
    "a Unix socket",
    "connect to a Unix socket by its path",
    "an io_uring of its own",
    "userfaultfd",
    "load a BPF program",
    "count performance events",
    "a key of the kernel's",
    "ask for a key ring",
    "execute memory as a program",
    "fork",
    "fork a hundred times",
    "a process by clone3, as threads are made",
    "memory to execute",
    "make memory executable",
    "a filter of its own",
    "type into the terminal of its caller",
    "make the image shorter",
];

#[test]
fn the_other_layers_hold_without_the_filter() {
    let directory = TempDir::new().unwrap();
    let report = report("blk", &image(directory.path()), How::by_root(Sandbox::Require).told("unfiltered"));
    let surprises = report.surprises().into_iter().filter(|outcome| !BY_FILTER_ONLY.contains(&outcome.name.as_str()));
    let surprises: Vec<_> = surprises.collect();
    assert!(surprises.is_empty(), "{surprises:#?}");
}

/// The attempts that need something which the test bed's kernel or file system does not have.
const NOT_IN_THE_BED: &[&str] =
    &["read /etc/shadow", "a vsock socket", "a socket of the kernel's cryptography", "count performance events"];

/// On Debian's kernel: nothing succeeds that must not, and without the sandbox everything does.
#[test]
#[ignore = "runs in the test bed, whose root may do everything: in_the_test_bed runs it"]
fn as_root_of_a_host_that_is_thrown_away() {
    let directory = TempDir::new().unwrap();
    let options = image_of(USER, directory.path());
    for how in [How::by_root(Sandbox::Require), How { sandbox: Sandbox::Require, ..How::by(USER) }] {
        let report = report("blk", &options, how);
        assert!(report.surprises().is_empty(), "{how:?}: {:#?}", report.surprises());
    }
    let report = report("blk", &options, How::by_root(Sandbox::Off));
    let failed = report
        .outcomes
        .iter()
        .filter(|outcome| !outcome.succeeded() && !NOT_IN_THE_BED.contains(&outcome.name.as_str()));
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "without a sandbox, these fail as well: {failed:#?}");
}

#[test]
fn in_the_test_bed() {
    let (testbed, run) = Testbed::new().these_tests("as_root_of_a_host_that_is_thrown_away", &["hijacked"]);
    testbed.run(&run);
}

/// The table of `scripts/demo --hijack`.
#[test]
fn the_demo_shows_that_each_attempt_succeeds_without_a_sandbox() {
    let testbed = Testbed::new().modules("vsock af_alg");
    let testbed =
        testbed.file(of_tests("hijacked"), "/bin/hijacked").file(of_tests("hijack-table"), "/bin/hijack-table");
    let ended =
        testbed.run("echo 'root:*:1::::::' > /etc/shadow\nhijack-table /bin/hijacked || fail 'a sealed process'\n");
    let all = ATTEMPTS.len();
    ended.expect_stdout(&format!("sandbox=off    {all} attempts,  0 refused, {all} successful"));
}
