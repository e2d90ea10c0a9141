//! `lab-host`: runs on the test bed's host. It starts the VMMs under comparison one after the other, each with the same kernel, disk, tap and
//! guest, is the far end of the guest's network, looks at the processes' memory, and prints what was measured.

mod access;
mod memory;
mod peers;
mod profile;
mod resources;
mod restart;
mod run;
mod scaling;
mod subject;

use std::fs;
use std::io;
use std::process::ExitCode;

use clap::Parser;

pub use access::is_path;
pub use restart::is_restart;
pub use scaling::SERIES;
pub use subject::{SUBJECTS, Subject};

use crate::figure::FIGURES;

/// Runs VMMs one after the other and measures them.
#[derive(Debug, Parser)]
#[command(name = "lab-host")]
struct Arguments {
    /// Subjects to run, by name
    #[arg(long, value_delimiter = ',', required_unless_present_any = ["scaling", "access", "restart"])]
    subjects: Vec<String>,
    /// Loads to put on each, by the figure's name; boot and memory come with any
    #[arg(long, value_delimiter = ',', required_unless_present_any = ["scaling", "access", "restart"])]
    loads: Vec<String>,
    /// Also say where the time of each load went, by perf
    #[arg(long)]
    profile: bool,
    /// Measure Outrigger alone, as these become more: queues, devices, guests
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["subjects", "loads", "profile"])]
    scaling: Vec<String>,
    /// Measure register accesses by each path; the host's KVM has to have ioregionfd
    #[arg(long, conflicts_with_all = ["subjects", "loads", "profile", "scaling"])]
    access: bool,
    /// Measure how long reads pause when the disk's process is killed or replaced
    #[arg(long, conflicts_with_all = ["subjects", "loads", "profile", "scaling", "access"])]
    restart: bool,
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab-host: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all went well.
fn run(arguments: &Arguments) -> io::Result<bool> {
    let unknown = |what: &str, name: &str| io::Error::other(format!("no {what} is called {name}"));
    let named = |name: &String| Subject::named(name).ok_or_else(|| unknown("subject", name));
    let subjects = arguments.subjects.iter().map(named).collect::<io::Result<Vec<_>>>()?;
    for load in &arguments.loads {
        FIGURES.iter().find(|figure| figure.name == load).ok_or_else(|| unknown("load", load))?;
    }
    // Where a program lies decides how many pages of it are touched.
    fs::write("/proc/sys/kernel/randomize_va_space", "0")?;
    if arguments.access {
        return access::measure().map(|()| true);
    }
    if arguments.restart {
        return restart::measure().map(|()| true);
    }
    peers::start()?;
    if !arguments.scaling.is_empty() {
        return scaling::run(&arguments.scaling);
    }
    let mut well = true;
    for subject in subjects {
        println!("lab: {}", subject.name);
        if let Err(error) = run::run(subject, &arguments.loads.join(","), arguments.profile) {
            println!("lab: {} failed: {error}", subject.name);
            well = false;
        }
    }
    Ok(well)
}
