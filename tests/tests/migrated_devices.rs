//! Planned replacement by migration: a device whose program keeps no journal goes on in another process of it, under a guest that
//! notices nothing; and what cannot is refused and disturbs nothing.

use std::process::Command;

use outrigger_tests::binaries;
use outrigger_tests::control::{Controlled, ctl, pause};
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::process::Ended;
use tempfile::TempDir;

/// Migrations of one device.
const TIMES: usize = 50;
/// The slot of the device, behind the disk that the run has, too.
const SLOT: &str = "00:02.0";

/// A run whose guest keeps a word in a device served by the program of this name.
fn start(programs: &TempDir, name: &str) -> Controlled {
    for name in ["migrating", "migrating-refuses", "migrating-stays"] {
        let place = programs.path().join(name);
        std::fs::copy(binaries::of_tests("migrating-device"), place).expect("the directory is ours");
    }
    let program = format!("program={}", programs.path().join(name).display());
    Controlled::start("word", |command: &mut Command| {
        command.arg("--device").arg(program).arg("--programs").arg(programs.path())
    })
}

#[track_caller]
fn ends_well(mut run: Controlled) -> Ended {
    run.vmm.send("q");
    let ended = run.vmm.finish();
    ended.expect_code(0).expect_stdout("ok word-kept\n").expect_stdout("payload: passed");
    assert!(!ended.stderr.contains("written to while stopped"), "{ended}");
    ended
}

#[test]
fn a_device_migrates_from_process_to_process_and_keeps_what_it_is() {
    let programs = TempDir::new().expect("there is room for temporary files");
    let run = start(&programs, "migrating");
    let before = children(run.vmm.pid());
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", run.vmm.pid())).expect("it runs").count();
    ctl(&run.socket(), &["restart", SLOT]).expect_code(0);
    let held = descriptors();
    for _ in 1..TIMES {
        ctl(&run.socket(), &["restart", SLOT]).expect_code(0);
    }
    // The control socket's own come and go.
    assert!(descriptors() <= held + 4, "{} descriptors, {held} before", descriptors());
    let after = children(run.vmm.pid());
    assert_eq!((before.len(), after.len()), (2, 2));
    expect_ended(&before.into_iter().filter(|process| !after.contains(process)).collect::<Vec<_>>());
    println!("{}", ends_well(run).stdout);
}

/// The example device, which copies memory by DMA and interrupts all the while, between two builds of it.
fn the_example_device_moves(times: usize, options: &str) {
    let programs = TempDir::new().expect("there is room for temporary files");
    let builds = [binaries::example("copier"), programs.path().join("copier")];
    binaries::strip(&builds[0], &builds[1]);
    let builds = builds.map(|build| build.display().to_string());
    let program = format!("program={}{options}", builds[0]);
    let mut run = Controlled::start("copies", |command| {
        command.arg("--device").arg(program).arg("--programs").arg(programs.path())
    });
    let mut pauses = Vec::new();
    for build in builds.iter().cycle().skip(1).take(times) {
        let done = ctl(&run.socket(), &["replace", SLOT, "--program", build]);
        assert_eq!(done.code(), 0, "{done}\nthe VMM said:\n{}\n{}", run.vmm.stdout(), run.vmm.stderr());
        pauses.push(pause(&done));
    }
    run.vmm.send("q");
    let ended = run.vmm.finish();
    ended.expect_code(0).expect_stdout("ok copies\n").expect_stdout("payload: passed");
    assert_eq!(ended.stderr, "", "a replacement that works is worth no line");
    pauses.sort_by(f64::total_cmp);
    let (middle, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!("{times} migrations: {middle} ms in the middle, {longest} ms at most\n{}", ended.stdout);
}

#[test]
fn the_example_device_moves_from_build_to_build() {
    the_example_device_moves(TIMES, "");
}

#[test]
fn and_with_memory_by_messages() {
    the_example_device_moves(TIMES, ",dma=messages");
}

#[test]
#[ignore = "takes long: scripts/test --long replacements"]
fn hundreds_of_migrations() {
    for options in ["", ",dma=messages"] {
        the_example_device_moves(500, options);
    }
}

#[test]
fn a_process_that_takes_no_state_leaves_the_device_where_it_is() {
    let programs = TempDir::new().expect("there is room for temporary files");
    let run = start(&programs, "migrating");
    let refuses = programs.path().join("migrating-refuses");
    for _ in 0..3 {
        let ended = ctl(&run.socket(), &["replace", SLOT, "--program", &refuses.display().to_string()]);
        assert_ne!(ended.code(), 0, "{ended}");
        ended.expect_stderr("the device goes on with the process that it has");
    }
    ctl(&run.socket(), &["restart", SLOT]).expect_code(0);
    ends_well(run);
}

#[test]
fn a_device_that_does_not_migrate_is_not_replaced() {
    let programs = TempDir::new().expect("there is room for temporary files");
    let run = start(&programs, "migrating-stays");
    let ended = ctl(&run.socket(), &["restart", SLOT]);
    assert_ne!(ended.code(), 0, "{ended}");
    ended.expect_stderr("keeps no journal and does not migrate, so its state cannot be handed over");
    ends_well(run);
}

#[test]
fn one_that_migrates_is_not_replaced_by_one_that_does_not() {
    let programs = TempDir::new().expect("there is room for temporary files");
    let run = start(&programs, "migrating");
    let stays = programs.path().join("migrating-stays");
    let ended = ctl(&run.socket(), &["replace", SLOT, "--program", &stays.display().to_string()]);
    assert_ne!(ended.code(), 0, "{ended}");
    ended.expect_stderr("does not migrate; the device goes on with the process that it has");
    ends_well(run);
}
