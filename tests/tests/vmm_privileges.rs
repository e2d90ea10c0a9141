//! The VMM gives up the privileges that it does not need before it has a guest, in each of its threads.

use std::collections::BTreeMap;
use std::path::Path;

use nix::unistd::Pid;
use outrigger_tests::disk;
use outrigger_tests::leftovers::launcher;
use outrigger_tests::outrigger::{LIMIT, with_disk, with_payload};
use outrigger_tests::process::Process;
use tempfile::TempDir;

/// CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_IPC_LOCK and CAP_SYS_RESOURCE (capabilities(7)).
const KEPT: u64 = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 14 | 1 << 24;

/// The sets of capabilities in a thread's `status`, and whether it can gain others.
fn privileges(status: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(status).expect("the thread runs");
    let fields = text.lines().filter_map(|line| line.split_once(":\t"));
    let fields = fields.filter(|(name, _)| name.starts_with("Cap") || *name == "NoNewPrivs");
    fields.map(|(name, set)| (name.to_owned(), u64::from_str_radix(set, 16).expect("it is a number"))).collect()
}

fn of(process: Pid) -> Vec<BTreeMap<String, u64>> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    threads.map(|thread| privileges(&thread.expect("it can be read").path().join("status"))).collect()
}

#[test]
fn no_thread_keeps_what_it_does_not_need() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let mut command = with_payload("spin");
    with_disk(&mut command, &disk::for_payload(directory.path())).args(["--cpus", "2"]);
    command.arg("--control").arg(directory.path().join("vm.sock"));
    let mut vmm = Process::start(&mut command, LIMIT);
    vmm.wait_for("ready\n");
    let ours = privileges(Path::new("/proc/thread-self/status"));
    let threads = of(vmm.pid());
    assert!(threads.len() >= 5, "main, control, two vCPUs and a device: {threads:?}");
    for thread in threads {
        let expected = [
            ("CapInh", 0),
            ("CapPrm", ours["CapPrm"] & KEPT),
            ("CapEff", ours["CapEff"] & KEPT),
            ("CapBnd", ours["CapBnd"] & KEPT),
            ("CapAmb", 0),
            ("NoNewPrivs", 1),
        ];
        assert_eq!(thread, expected.map(|(name, set)| (name.to_owned(), set)).into());
    }
    let launcher = launcher(vmm.pid()).expect("a run with devices has one");
    assert_eq!(of(launcher.pid), [ours], "what starts devices has the user's privileges");
    vmm.signal(nix::sys::signal::Signal::SIGTERM);
    vmm.finish().expect_code(143);
}
