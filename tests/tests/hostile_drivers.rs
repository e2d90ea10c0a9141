//! A disk, a read-only disk and a network card under attack by their driver (the payload's `checks=hostile`), on this machine's own KVM and
//! in the test bed: each attack is answered as the specification has it, each reset brings back a device that works, nothing is written but
//! where a buffer was offered, no process dies, and the log stays short.

use std::path::{Path, PathBuf};

use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::process::run;
use outrigger_tests::random::Random;
use outrigger_tests::testbed::Testbed;
use outrigger_tests::{disk, hostile, payload};
use tempfile::TempDir;

/// Outrigger makes it.
const TAP: &str = "orhost0";
/// Rounds of all attacks in each of the long counts.
const LONG: u32 = 20;

/// Two directories with a disk each.
fn disks() -> [(TempDir, PathBuf); 2] {
    [(); 2].map(|()| {
        let directory = TempDir::new().expect("there is room for temporary files");
        let image = disk::for_payload(directory.path());
        (directory, image)
    })
}

/// The devices, in the order that makes their slots.
fn devices(disk: &Path, read_only: &Path, tap: &str, dma: &str) -> [String; 6] {
    [
        "--disk".into(),
        format!("path={},serial=hostile-serial,dma={dma}", disk.display()),
        "--disk".into(),
        format!("path={},readonly=on,dma={dma}", read_only.display()),
        "--net".into(),
        format!("tap={tap},queues=2,dma={dma}"),
    ]
}

fn attacked_here(dma: &str) {
    let [(_first, disk), (_second, read_only)] = disks();
    let mut command = with_payload(&format!("hostile dma={dma}"));
    command.args(devices(&disk, &read_only, TAP, dma));
    let ended = run(&mut hostile::in_own_network(&command), 2 * LIMIT);
    let faults = hostile::faults(&ended.stdout, &ended.stderr);
    assert!(faults.is_empty(), "{faults}\n{ended}");
    ended.expect_code(0).expect_stdout("payload: passed");
    hostile::expect_unharmed(&disk);
    hostile::expect_unharmed(&read_only);
}

#[test]
fn with_shared_memory() {
    attacked_here("shared");
}

#[test]
fn with_memory_by_messages() {
    attacked_here("messages");
}

/// The attacks in ever another order from the second round on, so that each may find what another has left.
fn attacked_in_any_order(dma: &str) {
    let [(_first, disk), (_second, read_only)] = disks();
    let (mut random, seed) = Random::fresh();
    let checks = format!("hostile dma={dma} rounds={LONG} seed={}", random.below(u32::MAX.into()));
    println!("seed {seed}: {checks}");
    let mut command = with_payload(&checks);
    command.args(devices(&disk, &read_only, TAP, dma));
    let ended = run(&mut hostile::in_own_network(&command), LIMIT * LONG);
    let (attacks, faults) = hostile::counts(&ended.stdout);
    println!("{attacks} attacks, {faults} failed");
    ended.expect_code(0).expect_stdout("payload: passed");
    assert_eq!((attacks, faults), (hostile::ATTACKS * LONG as usize, 0));
    assert!(!ended.stderr.contains("panicked"), "{ended}");
    hostile::expect_unharmed(&disk);
    hostile::expect_unharmed(&read_only);
}

#[test]
#[ignore = "takes many minutes: scripts/test --long hostile"]
fn twenty_rounds_in_any_order() {
    attacked_in_any_order("shared");
    attacked_in_any_order("messages");
}

#[test]
fn in_the_test_bed() {
    let [(_first, disk), (_second, read_only)] = disks();
    let guest = ["disk", "read-only"].map(|name| PathBuf::from(format!("/guest/{name}")));
    let mut script = format!("ip address add {HOST}/32 dev lo\n", HOST = hostile::HOST);
    for dma in ["shared", "messages"] {
        let devices = devices(&guest[0], &guest[1], TAP, dma).join(" ");
        script += &format!(
            "cp /guest/disk /tmp/disk; cp /guest/read-only /tmp/read-only\n\
             boot {dma} 0 --kernel /guest/payload --memory 64M {devices} --cmdline 'checks=hostile dma={dma}'\n\
             has {dma} 'payload: passed'\n\
             has {dma} 'hostile: {attacks} attacks, 0 failed'\n\
             [ $(grep -c '^ok hostile-' /tmp/{dma}.out) = {attacks} ] || fail 'attacks are missing'\n\
             [ $(wc -l < /tmp/{dma}.err) -le {lines} ] || fail 'too many lines in the log'\n\
             for image in disk read-only; do\n\
               for part in 'count={first}' 'skip={second}'; do\n\
                 dd if=/guest/$image bs=512 $part of=/tmp/before; dd if=/tmp/$image bs=512 $part of=/tmp/after\n\
                 cmp /tmp/before /tmp/after || fail \"$image has changed\"\n\
               done\n\
             done\n\
             nothing_left\n",
            attacks = hostile::ATTACKS,
            lines = hostile::MOST_LOG_LINES,
            first = hostile::SCRATCH.start,
            second = hostile::SCRATCH.end,
        );
    }
    Testbed::new()
        .file(payload::path(), "/guest/payload")
        .file(disk, "/guest/disk")
        .file(read_only, "/guest/read-only")
        .run(&script);
}
