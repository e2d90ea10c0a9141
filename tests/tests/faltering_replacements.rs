//! A disk that is to be replaced by a process that fails at one message of its way to the guest: refused while the old process works, or
//! restarted once that has been let go. The guest is the payload on this machine's own KVM, and verifies what it reads all the while.

use std::fs;

use outrigger_protocol::command::Command as Message;
use outrigger_tests::control::{connect, ctl, exchange, status_of};
use outrigger_tests::faltering::{Faltering, MOMENTS, PATIENCE, attaching, messages};
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::process::{Process, eventually};

const RESTART: &[u8] = b"POST /v1/devices/00:01.0/restart HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Asks for another process, and returns the status and the text of the answer.
#[track_caller]
fn replaced(faltering: &Faltering) -> (u16, String) {
    let answer = exchange(connect(&faltering.path("vm.sock")), RESTART);
    (status_of(&answer).unwrap_or_else(|| panic!("no answer: {answer:?}")), answer)
}

#[track_caller]
fn ends_well(mut vmm: Process) {
    let devices = children(vmm.pid());
    assert_eq!(devices.len(), 1, "one disk is one process: {devices:?}");
    vmm.send("x");
    vmm.finish().expect_code(0).expect_stdout("ok verified\n").expect_stdout("payload: passed");
    expect_ended(&devices);
}

#[track_caller]
fn fails_at_each_message(fault: &str) {
    let faltering = Faltering::new();
    let vmm = faltering.start("verified-disk", ",restart=10000/1s");
    let messages = messages(&faltering, &vmm, 0);
    let is_let_go =
        |at: usize| [Message::DeviceSetIrqs, Message::JournalTake].iter().any(|it| *it as u16 == messages[at]);
    let mut answers = [0, 0];
    for moment in MOMENTS {
        for at in attaching(&messages) {
            // Without these the guest's accesses take another path.
            if fault == "refuses" && messages[at] == Message::DeviceGetRegionIoFds as u16 {
                continue;
            }
            let case = format!("{fault} {moment} message {} ({at})", messages[at]);
            let mut before = None;
            assert!(
                eventually(PATIENCE, || {
                    before = faltering.serving();
                    before.is_some()
                }),
                "{case}: nothing serves it"
            );
            faltering.script(&format!("1 {at} {moment} {fault}"));
            let (status, answer) = replaced(&faltering);
            assert!(faltering.has_faltered(), "{case}: it has not: {answer}; the VMM says:\n{}", vmm.stderr());
            if is_let_go(at) {
                assert_eq!(status, 500, "{case}: {answer}");
                assert!(answer.contains("the new process failed when it took over: "), "{case}: {answer}");
                let is_restarted = || faltering.serving().is_some_and(|now| Some(now) != before);
                assert!(eventually(PATIENCE, is_restarted), "{case}: no restart; the VMM says:\n{}", vmm.stderr());
            } else {
                assert_eq!(status, 409, "{case}: {answer}");
                assert!(answer.contains("the device goes on with the process that it has"), "{case}: {answer}");
                assert_eq!(faltering.serving(), before, "{case}: the process has changed");
            }
            answers[usize::from(is_let_go(at))] += 1;
        }
    }
    let (status, answer) = replaced(&faltering);
    assert_eq!(status, 200, "{answer}");
    println!("{fault}: {} times refused, {} times restarted", answers[0], answers[1]);
    ends_well(vmm);
}

#[test]
fn by_a_process_that_dies() {
    fails_at_each_message("killed");
}

#[test]
fn by_one_that_sends_nonsense() {
    fails_at_each_message("nonsense");
}

#[test]
fn by_one_that_refuses() {
    fails_at_each_message("refuses");
}

/// A replacement that takes long is alone, and disturbs neither the guest nor whoever asks for the status.
#[test]
fn a_second_replacement_meanwhile_is_refused() {
    let faltering = Faltering::new();
    let vmm = faltering.start("verified-disk", ",deadline=3s");
    let socket = faltering.path("vm.sock");
    let before = faltering.serving();
    faltering.script("1 3 before silent");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| replaced(&faltering));
        assert!(eventually(PATIENCE, || faltering.has_faltered()), "it has not begun");
        let (status, answer) = replaced(&faltering);
        assert_eq!(status, 409, "{answer}");
        assert!(answer.contains("the device is being replaced now"), "{answer}");
        let refused = ctl(&socket, &["replace", "00:01.0"]);
        refused.expect_code(1).expect_stderr("the device is being replaced now");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
        assert_eq!(faltering.serving(), before, "the process has changed");
        let (status, answer) = first.join().expect("it ends");
        assert_eq!(status, 409, "{answer}");
        assert!(answer.contains("the device goes on with the process that it has"), "{answer}");
    });
    assert_eq!(faltering.serving(), before, "the process has changed");
    assert_eq!(replaced(&faltering).0, 200);
    ends_well(vmm);
}

/// Nothing is refused for ever because of what failed before.
#[test]
fn while_the_device_is_restarted_it_is_refused() {
    let faltering = Faltering::new();
    let vmm = faltering.start("verified-disk", ",deadline=3s");
    let before = faltering.serving().expect("it has just begun");
    faltering.script("1 0 before stops");
    nix::sys::signal::kill(before, nix::sys::signal::Signal::SIGKILL).expect("it runs");
    assert!(eventually(PATIENCE, || faltering.has_faltered()), "no restart");
    let (status, answer) = replaced(&faltering);
    assert_eq!(status, 409, "{answer}");
    assert!(answer.contains("the device is restarting now"), "{answer}");
    assert!(eventually(PATIENCE, || faltering.serving().is_some()), "no restart; the VMM says:\n{}", vmm.stderr());
    assert_eq!(fs::read_to_string(faltering.path("script")).expect("it is there").split(' ').next(), Some("0"));
    assert_eq!(replaced(&faltering).0, 200);
    ends_well(vmm);
}
