//! Faults of a register access by ioregionfd while a vCPU waits for its answer, many times over and at random moments
//! (`src/bin/fault-rounds`), on this machine's own KVM. `ioregionfd` has one of each; `ioregionfd_testbed` has these where KVM asks.

use std::process::Command;
use std::time::Duration;

use outrigger_tests::process::run;
use outrigger_tests::{binaries, payload};

/// Of each fault. There are 14, so this makes a thousand, which take a minute on two processors that have nothing else to do.
const ROUNDS: &str = "72";
const LIMIT: Duration = Duration::from_secs(600);

#[test]
fn a_thousand_rounds_end_as_documented() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fault-rounds"));
    command.arg("--outrigger").arg(binaries::path("outrigger")).arg("--payload").arg(payload::path());
    command.arg("--paths").arg(binaries::example("paths")).arg("--faulty").arg(env!("CARGO_BIN_EXE_faulty-registers"));
    let ended = run(command.args(["--rounds", ROUNDS, "--at-once", "80"]), LIMIT);
    println!("{}", ended.stdout);
    ended.expect_code(0).expect_stdout("1008 rounds, 0 of them not as documented\n");
}
