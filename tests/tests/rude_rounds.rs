//! Rounds of rude devices at random, up to three at once, beside an honest disk that the guest uses all the time: every request to it completes,
//! and none takes longer than a second.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use outrigger_tests::random::Random;
use outrigger_tests::rude::{End, MANNERS, Manner, REQUEST, Rude, Run, command, requests, turn};
use tempfile::TempDir;

const MOST_DEVICES: u64 = 3;
/// How long a round lasts: mostly, and now and then until devices have had time for an answer.
const SHORT: Duration = Duration::from_millis(1_500);
const LONG: Duration = Duration::from_secs(13);
const LONG_ONE_IN: u64 = 25;

/// How many requests there were, and how long the longest took.
fn round(random: &mut Random, manners: &[Manner]) -> (u64, Duration) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let devices: Vec<_> = manners.iter().map(|&manner| Rude::start(manner, directory.path())).collect();
    let options: Vec<_> = devices.iter().map(Rude::option).collect();
    let mut run = Run::start(command("rude", true, &options, directory.path()));
    run.vmm.wait_for("ready\n");
    let long = random.below(LONG_ONE_IN) == 0;
    sleep(random.time(if long { LONG } else { SHORT }));
    let ended = run.enough();
    ended.expect_stdout("payload: passed\n");
    let may_be_cut = manners.iter().any(|manner| !matches!(manner.end, End::Unharmed | End::Slow));
    assert!(ended.code() == 0 || may_be_cut && ended.code() == 6, "the exit status is wrong; output:\n{ended}");
    requests(&ended)
}

/// Returns how long the longest request of all took.
fn rounds(wanted: usize, limit: Duration) -> Duration {
    let _turn = turn();
    let (mut random, seed) = Random::fresh();
    println!("seed {seed}");
    let (start, mut count, mut all, mut longest) = (Instant::now(), 0, 0, Duration::ZERO);
    let mut of_each = BTreeMap::new();
    // Where it is not attached there is no guest; `rude_signals` has those.
    let attached = |manner: &Manner| !matches!(manner.end, End::NotAttached | End::Attaching);
    let mut manners: Vec<_> = MANNERS.into_iter().filter(attached).collect();
    while count < wanted && start.elapsed() < limit {
        random.shuffle(&mut manners);
        let some = &manners[..usize::try_from(1 + random.below(MOST_DEVICES)).unwrap_or(1)];
        println!("{:?}", some.iter().map(|manner| manner.name).collect::<Vec<_>>());
        some.iter().for_each(|manner| *of_each.entry(manner.name).or_insert(0) += 1);
        let (requests, time) = round(&mut random, some);
        (count, all, longest) = (count + 1, all + requests, longest.max(time));
    }
    println!("of each: {of_each:?}");
    println!("{count} rounds: {all} requests, all complete, the longest took {longest:?}");
    longest
}

/// As many as half a minute has room for. How long requests take is printed only: where KVM interprets the guest, as on a
/// machine without virtualization, one beside an honest device takes seconds now and then, too.
#[test]
fn an_honest_disk_beside_rude_devices() {
    rounds(1_000, Duration::from_secs(30));
}

#[test]
#[ignore = "takes an hour: scripts/test --long rude-rounds"]
fn a_thousand_rounds_of_rude_devices() {
    let longest = rounds(1_000, Duration::MAX);
    assert!(longest <= REQUEST, "a request took {longest:?}");
}
