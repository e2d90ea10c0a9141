//! `lab-guest`: the first process of a measured guest. It reports its start, attaches the devices' drivers, and runs
//! the loads that the kernel command line names (`lab=FIGURE,FIGURE`). It reports each result on the console, then
//! powers off, or with `lab.serve` takes more loads from the console.
//!
//! Loads are plain (libaio with `O_DIRECT`, blocking sockets, nothing recorded per operation), so that they measure the
//! path to the device and not themselves.

mod access;
mod aio;
mod console;
mod disk;
mod network;
mod pauses;
mod register;
mod setup;
mod together;

use std::io;
use std::time::{Duration, Instant};

use crate::figure::Figure;

use access::Target;
pub use console::{END, Line};
use setup::Scale;

/// How long the guest is idle, so that the host can look at the processes' memory.
const IDLE: Duration = Duration::from_millis(100);

/// Nanoseconds, and how many operations or bytes they were spent on.
#[derive(Clone, Copy, Debug)]
struct Spent {
    nanoseconds: u64,
    count: u64,
}

impl Spent {
    fn since(start: Instant, count: usize) -> Self {
        Self::between(start, Instant::now(), count)
    }

    fn between(start: Instant, end: Instant, count: usize) -> Self {
        Self { nanoseconds: u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX), count: count as u64 }
    }
}

/// Runs as the first process: never returns.
pub fn main() -> ! {
    Line::Init.print();
    if let Err(error) = run() {
        Line::Problem(error.to_string()).print();
    }
    setup::power_off()
}

fn run() -> io::Result<()> {
    setup::mount_all()?;
    setup::load_modules()?;
    let setup::Wanted { figures, scale, target, serve } = setup::wanted()?;
    if serve {
        setup::all_networks()?;
    } else if figures.iter().any(|figure| network::measures(figure)) {
        setup::network()?;
    }
    for figure in figures {
        work(figure, scale, target)?;
    }
    Line::Idle.print();
    if serve {
        return serve_console(scale, target);
    }
    std::thread::sleep(IDLE);
    Ok(())
}

/// Loads as they are asked for, a line each, until [`END`].
fn serve_console(scale: Scale, target: Target) -> io::Result<()> {
    for line in io::stdin().lines() {
        match line?.trim() {
            "" => {}
            END => break,
            name => {
                let figure = Figure::named(name);
                work(figure.ok_or_else(|| io::Error::other(format!("no figure is called {name}")))?, scale, target)?;
            }
        }
    }
    Ok(())
}

fn work(figure: &'static Figure, scale: Scale, target: Target) -> io::Result<()> {
    Line::Begin(figure).print();
    let spent = match figure.name {
        "register-read" => register::read(scale.part)?,
        name if access::measures(name) => access::measure(name, target)?,
        name if pauses::measures(name) => pauses::measure(name)?,
        _ if network::measures(figure) => network::measure(figure, scale)?,
        _ => disk::measure(figure, scale)?,
    };
    Line::Figure(figure, figure.unit.per(spent.nanoseconds, spent.count)).print();
    Ok(())
}
