//! `outrigger`: arguments in, exit status out; everything between is the library's.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use outrigger::cli::{self, Request};
use outrigger::config::Config;
use outrigger::control::Control;
use outrigger::control::outcome::{STATUS_HOST, STATUS_POWER_OFF, STATUS_USAGE};
use outrigger::{ctl, vfio};
use outrigger_process::output::{self, tell};

/// How long standard error may take to accept the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);
/// The same after a signal, which is to end the run within a second.
const LAST_LINES_AFTER_SIGNAL: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    outrigger_process::heap::share();
    output::init("outrigger");
    if let Err(error) = outrigger_process::inherited::normalize() {
        tell(format_args!("cannot bring signals and limits into a known state: {error}"));
        output::finish(LAST_LINES);
        return ExitCode::from(STATUS_HOST);
    }
    let mut patience = LAST_LINES;
    let status = match cli::parse(std::env::args_os()) {
        Ok(Request::Run(config)) => start(&config, &mut patience),
        Ok(Request::Ctl(call)) => match ctl::run(&call) {
            Ok(text) => print(&text),
            Err(error) => {
                tell(error.line());
                error.status()
            }
        },
        Ok(Request::Vfio(words)) => {
            tell(vfio::become_program(&words));
            STATUS_USAGE
        }
        Ok(Request::Print(text)) => print(&text),
        Err(error) => {
            tell(error);
            STATUS_USAGE
        }
    };
    output::finish(patience);
    ExitCode::from(status)
}

fn print(text: &str) -> u8 {
    // Nobody is left to tell when standard output is closed.
    let _ = std::io::stdout().write_all(text.as_bytes());
    STATUS_POWER_OFF
}

fn start(config: &Config, patience: &mut Duration) -> u8 {
    // There is no other thread yet.
    match Control::start(config) {
        Ok(control) => run(config, &control, patience),
        Err(error) => {
            tell(error);
            STATUS_HOST
        }
    }
}

fn run(config: &Config, control: &Control, patience: &mut Duration) -> u8 {
    match outrigger::run::run(config, control) {
        Ok(outcome) => {
            if outcome.is_users() {
                *patience = LAST_LINES_AFTER_SIGNAL;
            }
            if outcome.is_failure() {
                tell(&outcome);
            }
            outcome.status()
        }
        Err(error) => {
            if !error.is_told() {
                tell(error.line());
            }
            error.status()
        }
    }
}
