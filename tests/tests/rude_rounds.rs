//! Rounds of rude devices at random, up to three at once, beside an honest disk that the guest uses all the time: every request to it completes,
//! and none takes longer than a second.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use outrigger_tests::random::Random;
use outrigger_tests::rude::{End, MANNERS, Manner, REQUEST, REQUEST_IN_BED, Rude, Run, command, requests, turn};
use outrigger_tests::testbed::Testbed;
use tempfile::TempDir;

const MOST_DEVICES: u64 = 3;
/// How long a round lasts: mostly, and now and then until devices have had time for an answer.
const SHORT: Duration = Duration::from_millis(1_500);
const LONG: Duration = Duration::from_secs(13);
const LONG_ONE_IN: u64 = 25;

/// How many requests there were, and how long the longest took.
fn round(random: &mut Random, manners: &[Manner], host: Host) -> (u64, Duration) {
    let directory = TempDir::new().expect("there is room for temporary files");
    let devices: Vec<_> = manners.iter().map(|&manner| Rude::start(manner, directory.path())).collect();
    let options: Vec<_> = devices.iter().map(Rude::option).collect();
    let memory = in_memory();
    let mut run = Run::start(command("rude", true, &options, memory.path()));
    run.vmm.wait_for("ready\n");
    let long = random.below(LONG_ONE_IN) == 0;
    sleep(random.time(if long { LONG } else { SHORT }));
    let ended = run.enough();
    ended.expect_stdout("payload: passed\n");
    let may_be_cut = manners.iter().any(|manner| host.may_cut(manner));
    assert!(ended.code() == 0 || may_be_cut && ended.code() == 6, "the exit status is wrong; output:\n{ended}");
    let (requests, longest) = requests(&ended);
    if longest > REQUEST {
        println!("a request took {longest:?}:\n{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("--disk"), "the honest disk was blamed:\n{ended}");
    (requests, longest)
}

/// A directory whose files no storage holds up: the disk's requests are to be measured, not the host's.
fn in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("there is room for temporary files")
}

/// Where rounds take place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Host {
    Here,
    TestBed,
}

impl Host {
    /// Where it is not attached there is no guest; `rude_signals` has those. The test bed's processor has 40 bits of address,
    /// in which there is no room for the huge one.
    fn has(self, manner: &Manner) -> bool {
        let attached = !matches!(manner.end, End::NotAttached | End::Attaching);
        attached && (self == Self::Here || manner.name != "huge")
    }

    /// Where KVM runs the guest itself, memory that is gone is a device that is gone.
    fn may_cut(self, manner: &Manner) -> bool {
        let harmless = matches!(manner.end, End::Unharmed | End::Slow);
        !harmless || self == Self::TestBed && manner.name == "truncating"
    }
}

/// Returns how long the longest request of all took.
fn rounds(host: Host, wanted: usize, limit: Duration) -> Duration {
    let _turn = turn();
    let (mut random, seed) = Random::fresh();
    println!("seed {seed}");
    let (start, mut count, mut all, mut longest) = (Instant::now(), 0, 0, Duration::ZERO);
    let mut of_each = BTreeMap::new();
    let mut manners: Vec<_> = MANNERS.into_iter().filter(|manner| host.has(manner)).collect();
    while count < wanted && start.elapsed() < limit {
        random.shuffle(&mut manners);
        let some = &manners[..usize::try_from(1 + random.below(MOST_DEVICES)).unwrap_or(1)];
        println!("{:?}", some.iter().map(|manner| manner.name).collect::<Vec<_>>());
        some.iter().for_each(|manner| *of_each.entry(manner.name).or_insert(0) += 1);
        let (requests, time) = round(&mut random, some, host);
        (count, all, longest) = (count + 1, all + requests, longest.max(time));
    }
    println!("of each: {of_each:?}");
    println!("{count} rounds: {all} requests, all complete, the longest took {longest:?}");
    longest
}

/// As many as half a minute has room for, on a machine that may run other tests meanwhile.
#[test]
fn an_honest_disk_beside_rude_devices() {
    let longest = rounds(Host::Here, 1_000, Duration::from_secs(30));
    assert!(longest <= REQUEST_IN_BED, "a request took {longest:?}");
}

#[test]
#[ignore = "takes an hour: scripts/test --long rude-rounds"]
fn a_thousand_rounds_of_rude_devices() {
    let longest = rounds(Host::Here, 1_000, Duration::MAX);
    assert!(longest <= REQUEST, "a request took {longest:?}");
}

/// Has the test bed run one of the tests below, and prints what they print.
fn in_bed(test: &str, minutes: u64) {
    let (bed, rounds) = Testbed::new().cpus(2).minutes(minutes).these_tests(test, &["rude-device"]);
    let ended = bed.run(&(rounds + "nothing_left\n"));
    ended.expect_stdout("all complete");
    println!("{}", ended.stdout);
}

/// Where KVM runs the guest itself.
#[test]
fn in_the_test_bed() {
    in_bed("a_minute_of_rounds_in_the_test_bed", 8);
}

#[test]
#[ignore = "takes an hour: scripts/test --long rude-rounds-bed"]
fn a_thousand_in_the_test_bed() {
    in_bed("a_thousand_rounds_in_the_test_bed", 110);
}

#[test]
#[ignore = "is what `in_the_test_bed` runs there"]
fn a_minute_of_rounds_in_the_test_bed() {
    let longest = rounds(Host::TestBed, 1_000, Duration::from_secs(60));
    assert!(longest <= REQUEST_IN_BED, "a request took {longest:?}");
}

#[test]
#[ignore = "is what `a_thousand_in_the_test_bed` runs there"]
fn a_thousand_rounds_in_the_test_bed() {
    let longest = rounds(Host::TestBed, 1_000, Duration::MAX);
    assert!(longest <= REQUEST_IN_BED, "a request took {longest:?}");
}
