//! A disk and a card that are replaced by another build of their programs, again and again, under a guest that verifies every block and
//! packet (the payload's `verified-disk` and `verified-card`), on this machine's own KVM: it sees no error, and nothing is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use outrigger_tests::control::{ctl, expect_removed, pause};
use outrigger_tests::kills::{expect_no_growth, expect_whole_blocks, held};
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::outrigger::with_payload;
use outrigger_tests::process::{Ended, Process};
use outrigger_tests::random::Random;
use outrigger_tests::rude::{Rude, by_name};
use outrigger_tests::{binaries, disk, hostile};
use tempfile::TempDir;

/// The longest pause between two replacements.
const PAUSE: Duration = Duration::from_millis(50);
const REPLACEMENTS: usize = 25;
const LONG: usize = 500;
const SLOT: &str = "00:01.0";

/// Where another build of the programs is, such as `target/release`: `scripts/test --long replacements` makes one.
const OTHER_BUILD: &str = "OUTRIGGER_OTHER_BUILD";

/// `program`, and another build of it; where there is none, the same without what a debugger needs.
fn builds(program: &str, directory: &Path) -> [PathBuf; 2] {
    if let Some(build) = std::env::var_os(OTHER_BUILD) {
        return [Path::new(&build).join(program), binaries::path(program)];
    }
    let other = directory.join(program);
    binaries::strip(&binaries::path(program), &other);
    [other, binaries::path(program)]
}

/// Runs `command` until its device was replaced `count` times, by one build and the other in turn. Returns what the run printed.
#[track_caller]
fn replaced(mut command: Command, program: &str, directory: &Path, count: usize) -> Ended {
    let socket = directory.join("vm.sock");
    let limit = Duration::from_secs(120) + Duration::from_secs(4) * u32::try_from(count).expect("it is small");
    let builds = builds(program, directory);
    command.arg("--programs").arg(builds[0].parent().expect("it is in a directory"));
    let mut vmm = Process::start_with_input(&mut command, limit);
    vmm.wait_for("ready\n");
    let (mut random, seed) = Random::fresh();
    println!("seed {seed}");
    let mut pauses = Vec::new();
    let mut before = None;
    for build in builds.iter().cycle().take(count) {
        let build = build.to_str().expect("a plain path");
        let done = ctl(&socket, &["replace", SLOT, "--program", build]);
        assert_eq!(done.code(), 0, "{done}\nthe VMM said:\n{}", vmm.stderr());
        pauses.push(pause(&done));
        // With what comes only when something is replaced.
        before.get_or_insert_with(|| held(vmm.pid()));
        sleep(random.time(PAUSE));
    }
    let status = ctl(&socket, &["status"]);
    status.expect_code(0).expect_stdout("serving").expect_stdout(&format!("  {count}  "));
    sleep(Duration::from_secs(1));
    let (before, after, devices) = (before.expect("there was one"), held(vmm.pid()), children(vmm.pid()));
    vmm.send("x");
    let ended = vmm.finish();
    pauses.sort_by(f64::total_cmp);
    println!("{count} replacements; accesses waited {} ms, the longest {} ms", pauses[count / 2], pauses[count - 1]);
    ended.expect_code(0).expect_stdout("ok verified\n").expect_stdout("payload: passed");
    assert_eq!(ended.stderr, "", "a replacement that works is worth no line");
    expect_no_growth(before, after);
    assert_eq!(devices.len(), 1, "one device is one process: {devices:?}");
    expect_ended(&devices);
    expect_removed(&socket);
    ended
}

fn controlled(check: &str, directory: &Path) -> Command {
    let mut command = with_payload(check);
    command.arg("--control").arg(directory.join("vm.sock"));
    command
}

fn a_disk_with(options: &str, count: usize) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let mut command = controlled("verified-disk", directory.path());
    command.arg("--disk").arg(format!("path={}{options}", image.display()));
    replaced(command, "outrigger-blk", directory.path(), count);
    expect_whole_blocks(&image);
}

fn a_card_with(options: &str, count: usize) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let mut command = controlled("verified-card", directory.path());
    command.args(["--net", &format!("tap=orctl0{options}")]);
    replaced(hostile::in_own_network(&command), "outrigger-net", directory.path(), count);
}

#[test]
fn a_disk() {
    a_disk_with("", REPLACEMENTS);
}

#[test]
fn a_disk_with_memory_by_messages() {
    a_disk_with(",dma=messages", REPLACEMENTS);
}

#[test]
fn a_card() {
    a_card_with("", REPLACEMENTS);
}

#[test]
fn a_card_with_memory_by_messages() {
    a_card_with(",dma=messages", REPLACEMENTS);
}

#[test]
#[ignore = "takes long: scripts/test --long replacements"]
fn hundreds_of_replacements() {
    for options in ["", ",dma=messages"] {
        a_disk_with(options, LONG);
        a_card_with(options, LONG);
    }
}

/// A program without journal or migration, and a server that somebody else runs.
#[test]
fn what_cannot_hand_over_is_refused() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let server = Rude::start(by_name("honest"), directory.path());
    let mut command = controlled("spin", directory.path());
    command.arg("--device").arg(by_name("honest").program()).arg("--device").arg(server.option());
    let mut vmm = Process::start(&mut command, Duration::from_secs(300));
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    let socket = directory.path().join("vm.sock");
    for (slot, why) in
        [("00:01.0", "keeps no journal and does not migrate"), ("00:02.0", "was not started by outrigger")]
    {
        for verb in ["restart", "replace"] {
            let refused = ctl(&socket, &[verb, slot]);
            refused.expect_code(1).expect_stderr(why);
            assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
        }
    }
    assert_eq!(children(vmm.pid()), devices, "the process has changed");
    ctl(&socket, &["stop"]).expect_code(0);
    vmm.finish().expect_code(0);
}

/// A program that cannot take over is refused in one line, and the guest's device goes on.
#[test]
fn what_cannot_take_over_is_refused() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let mut command = controlled("verified-disk", directory.path());
    command.arg("--disk").arg(format!("path={}", image.display())).args(["--programs", "/"]);
    let mut vmm = Process::start_with_input(&mut command, Duration::from_secs(300));
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    let net = binaries::path("outrigger-net");
    let rude = binaries::of_tests("rude-device");
    for (words, why) in [
        (vec!["replace", SLOT, "--program", "/nowhere/outrigger-blk"], "No such file or directory"),
        (vec!["replace", SLOT, "--program", "/bin/true"], "goes on with the process that it has"),
        (
            vec!["replace", SLOT, "--program", net.to_str().expect("a plain path")],
            "goes on with the process that it has",
        ),
        (
            vec!["replace", SLOT, "--program", rude.to_str().expect("a plain path")],
            "goes on with the process that it has",
        ),
        (vec!["restart", "00:02.0"], "there is no device in this slot"),
    ] {
        let refused = ctl(&directory.path().join("vm.sock"), &words);
        refused.expect_code(1).expect_stderr(why);
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    }
    assert_eq!(children(vmm.pid()), devices, "the process has changed");
    vmm.send("x");
    vmm.finish().expect_code(0).expect_stdout("payload: passed");
    expect_ended(&devices);
}

/// A program that the user has named neither by itself nor by its directory is refused in one line.
#[test]
fn what_the_user_has_not_named_is_refused() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk.img");
    disk::empty(&image, disk::PAYLOAD_DISK);
    let folder = directory.path().join("builds");
    std::fs::create_dir(&folder).expect("the directory is ours");
    let (outside, leads_out) = (directory.path().join("outrigger-blk"), folder.join("leads-out"));
    std::fs::copy(binaries::path("outrigger-blk"), &outside).expect("there is room for a program");
    std::os::unix::fs::symlink(&outside, &leads_out).expect("the directory is ours");
    let mut command = controlled("verified-disk", directory.path());
    command.arg("--disk").arg(format!("path={}", image.display())).arg("--programs").arg(&folder);
    let mut vmm = Process::start_with_input(&mut command, Duration::from_secs(300));
    vmm.wait_for("ready\n");
    let devices = children(vmm.pid());
    let socket = directory.path().join("vm.sock");
    for program in [
        outside.as_path(),
        &leads_out,
        Path::new("/bin/true"),
        &binaries::path("outrigger-net"),
        Path::new("outrigger-net"),
    ] {
        let program = program.to_str().expect("a plain path");
        let refused = ctl(&socket, &["replace", SLOT, "--program", program]);
        let line = "the command line does not name it; --programs DIR of 'outrigger run' permits programs below DIR; the device goes on";
        refused.expect_code(1).expect_stderr(line);
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    }
    assert_eq!(children(vmm.pid()), devices, "the process has changed");
    // As the command line has it, by its path, and below the directory.
    let inside = folder.join("blk");
    std::fs::rename(&outside, &inside).expect("the directory is ours");
    for program in
        [Path::new("outrigger-blk"), &binaries::path("outrigger-blk"), &inside, &leads_out.with_file_name("blk")]
    {
        ctl(&socket, &["replace", SLOT, "--program", program.to_str().expect("a plain path")]).expect_code(0);
    }
    vmm.send("x");
    vmm.finish().expect_code(0).expect_stdout("payload: passed");
}
