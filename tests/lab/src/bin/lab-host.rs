//! Runs the VMMs under comparison on the test bed's host; see the library's `host` module.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrigger_lab::host::main()
}
