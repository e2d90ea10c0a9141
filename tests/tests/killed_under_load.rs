//! Device processes killed again and again under a guest that verifies every block and packet (the payload's `verified-disk` and
//! `verified-card`), on this machine's own KVM: it sees no error, nothing is lost, nothing is left behind.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_tests::kills::{Killer, UNLIMITED, expect_no_growth, expect_whole_blocks, held};
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::outrigger::with_payload;
use outrigger_tests::process::{Ended, Process};
use outrigger_tests::{disk, hostile};
use tempfile::TempDir;

/// The longest pause between two kills: often a successor dies while it attaches.
const PAUSE: Duration = Duration::from_millis(60);
const HANGS: Duration = Duration::from_secs(600);
const KILLS: usize = 400;
const LONG: usize = 5_000;

enum Manner {
    Kill,
    Stop,
}

/// Runs `check` until its device was killed `kills` times. Returns what the run printed.
#[track_caller]
fn under_kills(mut command: Command, manner: &Manner, kills: usize) -> Ended {
    let mut vmm = Process::start_with_input(&mut command, HANGS.max(Duration::from_secs(kills as u64)));
    vmm.wait_for("ready\n");
    // With what comes only once something fails.
    let mut killer = Killer::new(&vmm, PAUSE);
    let one = |killer: &mut Killer, vmm: &Process| match manner {
        Manner::Kill => killer.kill_one(vmm),
        Manner::Stop => killer.stop_one(vmm),
    };
    one(&mut killer, &vmm);
    std::thread::sleep(Duration::from_secs(1));
    let (before, start) = (held(vmm.pid()), Instant::now());
    while killer.kills < kills {
        one(&mut killer, &vmm);
    }
    let time = start.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    let after = held(vmm.pid());
    let devices = children(vmm.pid());
    vmm.send("x");
    let ended = vmm.finish();
    println!("{} kills in {time:?}; {}", killer.kills, summary(&ended));
    ended.expect_code(0).expect_stdout("ok verified\n").expect_stdout("payload: passed");
    expect_no_growth(before, after);
    assert_eq!(devices.len(), 1, "one device is one process: {devices:?}");
    expect_ended(&devices);
    ended
}

fn summary(ended: &Ended) -> String {
    ended.stdout.lines().find(|line| line.starts_with("verified ")).unwrap_or("nothing is verified").to_owned()
}

fn disk_under(manner: &Manner, options: &str, kills: usize) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    under_kills(disk_command(&image, options), manner, kills);
    expect_whole_blocks(&image);
}

fn disk_command(image: &Path, options: &str) -> Command {
    let mut command = with_payload("verified-disk");
    command.arg("--disk").arg(format!("path={},{UNLIMITED}{options}", image.display()));
    command
}

fn card_under(manner: &Manner, options: &str, kills: usize) {
    let mut command = with_payload("verified-card");
    command.args(["--net", &format!("tap=orkill0,{UNLIMITED}{options}")]);
    under_kills(hostile::in_own_network(&command), manner, kills);
}

#[test]
fn a_disk() {
    disk_under(&Manner::Kill, "", KILLS);
}

#[test]
fn a_disk_with_memory_by_messages() {
    disk_under(&Manner::Kill, ",dma=messages", KILLS);
}

#[test]
fn a_card() {
    card_under(&Manner::Kill, "", KILLS);
}

#[test]
fn a_card_with_memory_by_messages() {
    card_under(&Manner::Kill, ",dma=messages", KILLS);
}

#[test]
fn a_disk_that_is_stopped() {
    disk_under(&Manner::Stop, ",deadline=1s", 8);
}

#[test]
fn a_card_that_is_stopped() {
    card_under(&Manner::Stop, ",deadline=1s", 8);
}

#[test]
#[ignore = "takes long: scripts/test --long kills"]
fn thousands_of_kills() {
    for options in ["", ",dma=messages"] {
        disk_under(&Manner::Kill, options, LONG);
        card_under(&Manner::Kill, options, LONG);
    }
    disk_under(&Manner::Stop, ",deadline=1s", 200);
}
