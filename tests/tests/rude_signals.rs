//! SIGTERM at random moments, from the VMM's first instruction on, with any rude device attached or about to be, alone and beside an honest
//! disk, started by the VMM and not: it ends the run within a second with status 143, the device processes that the VMM has started within two, and nothing is left.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use outrigger_tests::leftovers::expect_empty;
use outrigger_tests::random::Random;
use outrigger_tests::rude::{MANNERS, Manner, Rude, Run, command, turn};
use tempfile::TempDir;

/// The moments, from the start: mostly, and now and then until devices have had time for an answer.
const MOMENTS: Duration = Duration::from_millis(2_000);
const LATE_MOMENTS: Duration = Duration::from_secs(12);
const LATE_ONE_IN: u64 = 20;

/// How long the run took to end.
fn once(random: &mut Random, manner: Manner, most: Duration) -> Duration {
    let (with_disk, with_program) = (random.below(2) == 0, random.below(2) == 0);
    println!(
        "{}{}{}",
        manner.name,
        if with_program { ", a child" } else { "" },
        if with_disk { ", with a disk" } else { "" }
    );
    let directory = TempDir::new().expect("there is room for temporary files");
    let private = directory.path().join("private");
    fs::create_dir(&private).expect("the directory is ours");
    let server = (!with_program).then(|| Rude::start(manner, directory.path()));
    let device = server.as_ref().map_or_else(|| manner.program(), Rude::option);
    let mut command = command("rude", with_disk, &[device], directory.path());
    for variable in ["TMPDIR", "XDG_RUNTIME_DIR", "HOME"] {
        command.env(variable, &private);
    }
    let run = Run::start(command);
    sleep(random.time(most));
    let (_, time) = run.terminate();
    println!("  {time:?}");
    expect_empty(&private);
    time
}

fn times(wanted: usize, limit: Duration) {
    let _turn = turn();
    let (mut random, seed) = Random::fresh();
    println!("seed {seed}");
    let (start, mut longest, mut count) = (Instant::now(), Duration::ZERO, 0);
    let mut manners = MANNERS;
    while count < wanted && start.elapsed() < limit {
        // Each of them before any of them again.
        if count % manners.len() == 0 {
            random.shuffle(&mut manners);
        }
        let late = limit == Duration::MAX && random.below(LATE_ONE_IN) == 0;
        let most = if late { LATE_MOMENTS } else { MOMENTS };
        longest = longest.max(once(&mut random, manners[count % manners.len()], most));
        count += 1;
    }
    println!("SIGTERM at {count} random moments: each ended the run, after {longest:?} at the latest");
}

/// As many as a minute has room for.
#[test]
fn sigterm_at_random_moments() {
    times(200, Duration::from_secs(60));
}

#[test]
#[ignore = "takes ten minutes: scripts/test --long rude"]
fn sigterm_at_two_hundred_random_moments() {
    times(200, Duration::MAX);
}
