//! The deterministic lab behind `scripts/lab`: programs that load a guest's devices, run the VMMs under comparison on the test
//! bed's host, and turn what was measured into a table, JSON and a plot.
//!
//! Three binaries, each a few lines over a module of the same name: `lab-guest` is a guest's first process, `lab-host` runs
//! on the test bed's host, `lab-report` on the machine where a person looks.

pub mod figure;
pub mod guest;
pub mod host;
pub mod measurement;
pub mod network;
pub mod report;
