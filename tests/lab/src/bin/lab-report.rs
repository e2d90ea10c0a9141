//! `lab-report`: arguments in, exit status out; everything between is the library's.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    outrigger_lab::report::main()
}
