//! All rounds, many at once, in random order.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use outrigger_tests::random::Random;
use tempfile::TempDir;

use crate::faults::{Fault, Round};
use crate::left::left_in;
use crate::options::Options;

/// So many rounds that are not as documented are shown.
const SHOWN: usize = 5;
/// Workers have little on their stacks.
const STACK: usize = 256 << 10;

/// The outcome of all rounds of one fault.
pub struct Result {
    /// Which.
    pub fault: Fault,
    /// How many there were.
    pub rounds: usize,
    /// How many did not end as documented.
    pub differ: usize,
    /// From the fault to its documented result, at most.
    pub longest: Duration,
}

/// Runs them all and prints the output of those that are not as documented. Also what they left in their directory.
pub fn run(options: &Options) -> (Vec<Result>, Vec<String>) {
    let result = |&fault| Result { fault, rounds: 0, differ: 0, longest: Duration::ZERO };
    let results: Mutex<Vec<Result>> = Mutex::new(options.faults.iter().map(result).collect());
    let mut random = Random::new(options.seed);
    let faults = (0..options.rounds).flat_map(|_| options.faults.iter().copied());
    let mut todo: Vec<_> = faults.map(|fault| (fault, random.any())).collect();
    random.shuffle(&mut todo);
    let todo = Mutex::new(todo);
    let busy = Turns { free: Mutex::new(options.busy), change: Condvar::new() };
    let directory = TempDir::new().expect("there is room for temporary files");
    set_hook(Box::new(|panic| PROBLEM.set(panic.to_string())));
    thread::scope(|scope| {
        for _ in 0..options.at_once {
            let worker = thread::Builder::new().stack_size(STACK);
            let spawned = worker.spawn_scoped(scope, || {
                while let Some((fault, seed)) = { lock(&todo).pop() } {
                    let socket = directory.path().join(format!("{seed:016x}.sock"));
                    let round = Round { options, socket, random: Random::new(seed), turn: busy.wait() };
                    // Work that a panic leaves half done is the round's own.
                    let time = catch_unwind(AssertUnwindSafe(|| round.run(fault)));
                    note(&mut lock(&results), fault, seed, time.ok());
                }
            });
            spawned.expect("there is room for another thread");
        }
    });
    let _ = std::panic::take_hook();
    (results.into_inner().unwrap_or_else(PoisonError::into_inner), left_in(directory.path()))
}

thread_local! {
    static PROBLEM: RefCell<String> = const { RefCell::new(String::new()) };
}

fn note(results: &mut [Result], fault: Fault, seed: u64, time: Option<Duration>) {
    let shown: usize = results.iter().map(|result| result.differ).sum();
    let result =
        results.iter_mut().find(|result| result.fault == fault).expect("it is one of those that were asked for");
    result.rounds += 1;
    match time {
        Some(time) => result.longest = result.longest.max(time),
        None => {
            result.differ += 1;
            if shown < SHOWN {
                println!("NOT AS DOCUMENTED: {}, seed {seed:#018x}: {}\n", fault.name(), PROBLEM.take());
            }
        }
    }
}

/// How many guests may run, and not only wait, at once.
struct Turns {
    free: Mutex<usize>,
    change: Condvar,
}

impl Turns {
    fn wait(&self) -> Turn<'_> {
        let free = self.change.wait_while(lock(&self.free), |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
        Turn(Some(self))
    }
}

/// The right to keep a processor busy.
pub struct Turn<'a>(Option<&'a Turns>);

impl Turn<'_> {
    /// Gives it to another round.
    pub fn end(&mut self) {
        if let Some(turns) = self.0.take() {
            *lock(&turns.free) += 1;
            turns.change.notify_one();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
