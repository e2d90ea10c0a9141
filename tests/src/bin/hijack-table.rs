//! `hijack-table STAND-IN`: has the stand-in make all its attempts as a sealed disk, as a sealed card, as a disk that may make any system call, and
//! with `sandbox=off`, and prints what came of them, a line for each. For a machine that is thrown away (`scripts/demo --hijack`): without
//! a sandbox the attempts succeed.
//!
//! Ends with 1 if a sealed process has got what it should not, or a process without a sandbox was refused more than the machine lacks.

use std::path::Path;
use std::process::ExitCode;

use outrigger_process::seal::Sandbox;
use outrigger_tests::hijack::ATTEMPTS;
use outrigger_tests::hijack::stand_in::{self, FILTERED, How, Outcome, Report};
use tempfile::TempDir;

/// Bytes of the image.
const SIZE: usize = 1 << 20;
const COLUMNS: [&str; 4] = ["outrigger-blk", "outrigger-net", "any call", "sandbox=off"];
/// The end of the result where this process has nothing to try it with.
const NOTHING_THERE: &str = "unsupported";

fn main() -> ExitCode {
    let Some(program) = std::env::args_os().nth(1) else {
        eprintln!("usage: hijack-table STAND-IN");
        return ExitCode::from(2);
    };
    let program = Path::new(&program);
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = directory.path().join("disk");
    std::fs::write(&image, vec![0; SIZE]).expect("there is room for an image");
    let (disk, card) = (format!("path={}", image.display()), "tap=orhijacked");
    let sealed = How::by_root(Sandbox::Require);
    print(&[
        stand_in::report(program, "blk", &disk, sealed),
        stand_in::report(program, "net", card, sealed),
        stand_in::report(program, "blk", &disk, sealed.told("unfiltered")),
        stand_in::report(program, "blk", &disk, How::by_root(Sandbox::Off)),
    ])
}

fn print(reports: &[Report; 4]) -> ExitCode {
    println!(
        "{:42}  {}",
        "a hijacked process tries to",
        COLUMNS.map(|column| format!("{column:15}")).concat().trim_end()
    );
    let mut counts = [[0; 2]; 4];
    let mut bad = 0;
    for (index, attempt) in ATTEMPTS.iter().enumerate() {
        let outcomes = reports.each_ref().map(|report| &report.outcomes[index]);
        let cells = outcomes.map(|outcome| format!("{:15}", cell(outcome))).concat();
        let why = attempt.by_design.map(|why| format!("  ({why})")).unwrap_or_default();
        println!("{:42}  {}{why}", attempt.name, cells.trim_end());
        for (counts, outcome) in counts.iter_mut().zip(outcomes) {
            counts[usize::from(outcome.succeeded())] += 1;
        }
        bad += outcomes[..2].iter().filter(|outcome| outcome.succeeded() && outcome.by_design().is_none()).count();
    }
    println!();
    for (name, [refused, succeeded]) in COLUMNS.into_iter().zip(counts) {
        println!("{name:13}  {} attempts, {refused:2} refused, {succeeded:2} successful", ATTEMPTS.len());
    }
    let [.., [lacking, _]] = counts;
    if bad == 0 && lacking < ATTEMPTS.len() / 4 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cell(outcome: &Outcome) -> &'static str {
    match outcome.result.as_str() {
        _ if outcome.succeeded() => "SUCCEEDS",
        FILTERED => "no such call",
        result if result.ends_with(NOTHING_THERE) => "not there",
        _ => "refused",
    }
}
