//! A disk's program that fails at each message of its way to the guest (`tests/src/bin/faltering-device.rs`): it dies, hangs up, answers
//! nonsense or nothing, before it does what it is asked or in place of the answer. What the guest sees is the payload's to say, on this
//! machine's own KVM.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use outrigger_protocol::command::Command as Message;
use outrigger_tests::faltering::{Faltering, MOMENTS, PATIENCE, TRIES, attaching, each, kinds, messages};
use outrigger_tests::leftovers::{children, expect_ended};
use outrigger_tests::outrigger::LIMIT;
use outrigger_tests::process::{eventually, run};

/// A run that does not begin ends within this, on a machine that is busy. Waiting for an answer comes to it: a deadline of some seconds, or
/// the ten that the first answer has.
const SOON: Duration = Duration::from_secs(18);

/// Guests that verify what they read, by the name of their check, and the key that ends it.
#[derive(Clone, Copy)]
enum Guest {
    /// Starts its device anew again and again.
    Restless,
    /// Starts it once, so that its interrupts are connected all the time.
    Busy,
}

/// Under a guest that verifies what it reads, one successor after the other fails, each at another message, and the next one serves.
#[track_caller]
fn unnoticed(guest: Guest, faults: &[&str], options: &str, is_tried: fn(&[u16]) -> Vec<usize>) {
    let faltering = Faltering::new();
    let (check, key, passed, more) = match guest {
        // The BARs are told first, then comes the driver.
        Guest::Restless => ("blk-steady", "q", "ok blk-steady\n", 6),
        Guest::Busy => ("verified-disk", "x", "ok verified\n", 0),
    };
    let mut vmm = faltering.start(check, &format!(",restart=10000/1s{options}"));
    let messages = messages(&faltering, &vmm, more);
    let places = is_tried(&messages);
    for fault in faults {
        for moment in MOMENTS {
            for &at in &places {
                let is_tried = (0..TRIES).any(|_| {
                    faltering.succeeded(&vmm, &format!("1 {at} {moment} {fault}"));
                    faltering.seen().get(at) == Some(&messages[at])
                });
                assert!(is_tried, "message {at} is never {} but {:?}", messages[at], faltering.seen());
            }
        }
    }
    println!("{faults:?} at {} of {} messages", places.len(), messages.len());
    let devices = children(vmm.pid());
    vmm.send(key);
    let ended = vmm.finish();
    ended.expect_code(0).expect_stdout(passed).expect_stdout("payload: passed");
    expect_ended(&devices);
}

#[test]
fn a_successor_may_die_at_each_message() {
    unnoticed(Guest::Restless, &["killed"], "", each);
}

#[test]
fn a_successor_may_close_the_connection_at_each_message() {
    unnoticed(Guest::Restless, &["closes"], "", each);
}

#[test]
fn a_successor_may_send_nonsense_at_each_message() {
    unnoticed(Guest::Restless, &["nonsense"], "", each);
}

/// Answers without the fields that belong into them, or with others. Some answers have none; what says that it is done is believed.
#[test]
fn a_successor_may_answer_wrongly() {
    let asking = |messages: &[u16]| {
        let done = [Message::DmaMap, Message::DeviceSetIrqs, Message::JournalTake].map(|message| message as u16);
        attaching(messages).into_iter().filter(|at| !done.contains(&messages[*at])).collect()
    };
    unnoticed(Guest::Busy, &["empty", "garbled"], "", asking);
}

/// The guest's later requests may be refused, which the guest then notices.
#[test]
fn a_successor_may_refuse_each_message_by_which_it_is_attached() {
    unnoticed(Guest::Busy, &["refuses"], "", attaching);
}

#[test]
fn a_successor_may_hang_up_and_stay() {
    unnoticed(Guest::Restless, &["hangs-up"], "", kinds);
}

#[test]
fn a_successor_may_be_stopped() {
    unnoticed(Guest::Restless, &["stops"], ",deadline=2s", kinds);
}

/// Where the first process fails, the run does not begin.
#[track_caller]
fn ends_the_run(fault: &str, moments: &[&str], deadline: &str) {
    let faltering = Faltering::new();
    faltering.script("1");
    let mut vmm = faltering.start("blk-steady", "");
    let messages = faltering.seen();
    vmm.send("q");
    vmm.finish().expect_code(0);
    let mapped = messages.iter().position(|message| *message == Message::DmaMap as u16).expect("it is given RAM");
    // To a request to map memory an empty answer is the right one.
    let end = if fault == "garbled" { mapped } else { mapped + 1 };
    for moment in moments {
        for at in kinds(&messages[..end]) {
            faltering.script(&format!("1 {at} {moment} {fault}"));
            let begun = Instant::now();
            let ended = run(&mut faltering.command("blk-steady", deadline), LIMIT);
            let case = format!("{fault} {moment} message {} ({at})", messages[at]);
            assert!(faltering.has_faltered(), "{case}: it has not:\n{ended}");
            assert_eq!(ended.code(), 2, "{case}:\n{ended}");
            // The program waits ten seconds for the first message as the VMM does for its answer, and may say so, too.
            let lines = ended.stderr.lines().filter(|line| !line.ends_with(": nothing came within the deadline"));
            assert_eq!(lines.count(), 1, "{case}: not one line:\n{ended}");
            assert!(begun.elapsed() < SOON, "{case}: it took {:?}", begun.elapsed());
            assert!(eventually(PATIENCE, || faltering.left().is_empty()), "{case}: {:?} live on", faltering.left());
        }
    }
}

#[test]
fn a_device_that_dies_at_a_message_of_the_start_ends_the_run() {
    ends_the_run("killed", &MOMENTS, "");
}

#[test]
fn one_that_closes_its_connection_ends_the_run() {
    ends_the_run("closes", &MOMENTS, "");
    ends_the_run("hangs-up", &["before"], "");
}

#[test]
fn one_that_sends_nonsense_ends_the_run() {
    ends_the_run("nonsense", &MOMENTS, "");
    ends_the_run("garbled", &MOMENTS, "");
}

#[test]
fn one_that_does_not_answer_ends_the_run_at_the_deadline() {
    ends_the_run("silent", &["before"], ",deadline=2s");
    ends_the_run("stops", &["after"], ",deadline=2s");
}

/// One after the other fails at the same message, as often as they may; the guest goes on without the disk.
#[track_caller]
fn is_withdrawn(fault: &str, moments: &[&str], lines: usize, why: &str) {
    let messages = all_messages();
    for moment in moments {
        kinds(&messages).into_iter().for_each(|at| is_withdrawn_at(&messages, at, (fault, moment), lines, why));
    }
}

/// The messages to a successor.
fn all_messages() -> Vec<u16> {
    let faltering = Faltering::new();
    let vmm = faltering.start("allones", "");
    messages(&faltering, &vmm, 0)
}

#[track_caller]
fn is_withdrawn_at(messages: &[u16], at: usize, (fault, moment): (&str, &str), lines: usize, why: &str) {
    let faltering = Faltering::new();
    let case = format!("{fault} {moment} message {} ({at})", messages[at]);
    faltering.script("0");
    let vmm = faltering.start("allones", ",restart=3/60s,deadline=2s");
    faltering.script(&format!("1000 {at} {moment} {fault}"));
    kill(faltering.serving().expect("it has just begun"), Signal::SIGKILL).expect("it runs");
    let ended = vmm.finish();
    assert!(faltering.has_faltered(), "{case}: it has not:\n{ended}");
    ended.expect_code(6).expect_stdout("ok allones\n").expect_stdout("payload: passed");
    ended.expect_stderr(&format!("and {why}; from now on the guest reads all-ones from it"));
    assert_eq!(ended.stderr.matches("no successor: ").count(), lines, "{case}:\n{ended}");
    assert_eq!(ended.stderr.lines().count(), lines + 2, "{case}: more lines than those:\n{ended}");
    assert!(eventually(PATIENCE, || faltering.left().is_empty()), "{case}: {:?} live on", faltering.left());
}

#[test]
fn successors_that_all_die_are_bounded_and_told_on_one_line_each() {
    is_withdrawn("killed", &MOMENTS, 3, "3 restarts in 60 s are used up");
}

#[test]
fn successors_that_all_close_the_connection_are_bounded() {
    is_withdrawn("closes", &MOMENTS, 3, "3 restarts in 60 s are used up");
}

#[test]
fn successors_that_all_send_nonsense_are_bounded() {
    is_withdrawn("nonsense", &MOMENTS, 3, "3 restarts in 60 s are used up");
}

/// The guest waits for as long as it may have to, which is longer than for an answer, and no longer. All cases wait at once.
#[test]
fn a_successor_that_does_not_answer_is_the_last() {
    let messages = &all_messages();
    std::thread::scope(|scope| {
        for at in kinds(messages) {
            scope.spawn(move || {
                is_withdrawn_at(messages, at, ("silent", "after"), 1, "nothing took its place within 10s");
            });
        }
    });
}

/// It serves the guest already, which has asked it this and that by then. What finds out that a message is none closes the connection, and
/// what finds that closed does not say that the process has closed it.
#[test]
fn a_disk_that_breaks_the_protocol_is_killed_and_succeeded() {
    for at in 60..64 {
        let faltering = Faltering::new();
        faltering.script(&format!("1 {at} before nonsense"));
        let mut vmm = faltering.start("blk-steady", "");
        assert!(eventually(PATIENCE, || faltering.has_faltered()), "{at}: {}", vmm.stderr());
        vmm.wait_for_stderr("another one took its place in ");
        let devices = children(vmm.pid());
        assert_eq!(devices.len(), 1, "{at}: one disk is one process: {devices:?}");
        vmm.send("q");
        let ended = vmm.finish();
        ended.expect_code(0).expect_stdout("ok blk-steady\n").expect_stdout("payload: passed");
        ended.expect_stderr("disk broke the protocol: ").expect_stderr("a message claims");
        assert_eq!(ended.stderr.lines().count(), 1, "{at}: not one line:\n{ended}");
    }
}

/// The guest waits for an answer until the deadline, and has it from the next process.
#[test]
fn a_disk_that_stops_answering_is_killed_and_succeeded() {
    let faltering = Faltering::new();
    faltering.script("1 60 before silent");
    let mut vmm = faltering.start("blk-steady", ",deadline=2s");
    vmm.wait_for_stderr("another one took its place in ");
    assert!(faltering.has_faltered(), "it has not");
    assert_eq!(children(vmm.pid()).len(), 1, "one disk is one process");
    vmm.send("q");
    let ended = vmm.finish();
    ended.expect_code(0).expect_stdout("ok blk-steady\n").expect_stdout("payload: passed");
    ended.expect_stderr("disk stopped answering; another one took its place in ");
    assert_eq!(ended.stderr.lines().count(), 1, "not one line:\n{ended}");
}

/// A successor had more time while it took over.
#[test]
fn a_successor_that_stops_answering_later_has_no_longer_than_the_first() {
    let faltering = Faltering::new();
    let mut vmm = faltering.start("blk-steady", ",restart=100/1s,deadline=2s");
    faltering.succeeded(&vmm, "1 120 before silent");
    let begun = Instant::now();
    vmm.wait_for_stderr("disk stopped answering; another one took its place in ");
    assert!(begun.elapsed() < Duration::from_secs(9), "it was waited for {:?}", begun.elapsed());
    vmm.send("q");
    let ended = vmm.finish();
    ended.expect_code(0).expect_stdout("ok blk-steady\n").expect_stdout("payload: passed");
}
