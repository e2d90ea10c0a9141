//! `outrigger`: arguments in, exit status out; everything between is the library's.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use outrigger::cli::{self, Request};
use outrigger::config::Config;
use outrigger::outcome::{STATUS_POWER_OFF, STATUS_USAGE};

fn main() -> ExitCode {
    let log = env_logger::Env::default().default_filter_or("warn");
    env_logger::Builder::from_env(log)
        .format(|line, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(line, "outrigger: {level}: {}", record.args())
        })
        .init();
    ExitCode::from(match cli::parse(std::env::args_os()) {
        Ok(Request::Run(config)) => run(&config),
        Ok(Request::Print(text)) => {
            // Nobody is left to tell when standard output is closed.
            let _ = std::io::stdout().write_all(text.as_bytes());
            STATUS_POWER_OFF
        }
        Err(error) => {
            tell(&error.to_string());
            STATUS_USAGE
        }
    })
}

fn run(config: &Config) -> u8 {
    match outrigger::run::run(config) {
        Ok(outcome) => {
            if outcome.is_failure() {
                tell(&outcome.to_string());
            }
            outcome.status()
        }
        Err(error) => {
            if !error.is_told() {
                tell(&error.line());
            }
            error.status()
        }
    }
}

fn tell(what: &str) {
    // Where standard error is closed the status has to do.
    let _ = writeln!(std::io::stderr(), "outrigger: {what}");
}
