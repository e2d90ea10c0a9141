//! Many rounds of everything that can happen to a register access by ioregionfd while a vCPU waits for its answer: each round is a
//! guest of its own with a device process of its own, and the fault comes at a random moment. Checks that each round ends as
//! documented (docs/ARCHITECTURE.md, "When a device fails"), that nothing hangs, and that nothing is left.
//!
//!     fault-rounds --outrigger FILE --payload FILE --paths FILE --faulty FILE [--rounds N] [--faults NAME,…] [--at-once N] [--busy N]
//!                  [--seed N]
//!
//! `--rounds` of each fault (default 10), all in random order, `--at-once` at a time (50), of which `--busy` (4) have a guest that runs
//! and does not wait. Prints the seed first and a table last, and ends with 1 if any round differs.

mod documented;
mod faults;
mod guest;
mod left;
mod options;
mod rounds;
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match options::Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("fault-rounds: {problem}");
            return ExitCode::from(2);
        }
    };
    println!("seed {}", options.seed);
    let before = left::Before::take();
    let (results, mut left) = rounds::run(&options);
    left.extend(before.compare());
    print!("{}", table::Table(&results));
    for what in &left {
        println!("left behind: {what}");
    }
    let differ: usize = results.iter().map(|result| result.differ).sum();
    println!(
        "{} rounds, {differ} of them not as documented",
        results.iter().map(|result| result.rounds).sum::<usize>()
    );
    ExitCode::from(u8::from(differ > 0 || !left.is_empty()))
}
