//! Outrigger's costs as there is more of it: queues and processors of a guest, devices of a guest, guests of a host.
//!
//! Each of the three is a series of subjects, `queues-1`, `queues-2` and so on; see [`SERIES`].

mod devices;
pub mod guest;
mod guests;
mod host;
mod queues;

use std::io;

use crate::figure::Unit;
use crate::measurement::Measurement;

/// The series by name: what the number after it counts.
pub const SERIES: [(&str, &str); 3] = [
    ("queues", "One guest with as many processors as queues, one thread on each (for the streams, pairs of queues)."),
    ("devices", "One guest with disks and network cards in turn, all but the first disk idle."),
    ("guests", "Guests with a disk and a network card each, all but the first idle; per guest."),
];

/// Measures these series; whether all went well.
pub fn run(names: &[String]) -> io::Result<bool> {
    let mut well = true;
    for name in names {
        let measure = match name.as_str() {
            "queues" => queues::measure,
            "devices" => devices::measure,
            "guests" => guests::measure,
            _ => return Err(io::Error::other(format!("no series is called {name}"))),
        };
        if let Err(error) = measure() {
            println!("lab: {name} failed: {error}");
            well = false;
        }
    }
    Ok(well)
}

fn print(series: &str, number: usize, figure: &str, value: f64) {
    let measurement = Measurement { subject: format!("{series}-{number}"), figure: figure.to_owned(), value };
    println!("lab:   {series}-{number} {figure} {value:.3}");
    println!("{}", measurement.to_line());
}

fn mebibytes(bytes: u64) -> f64 {
    Unit::Mebibytes.per(bytes, 1)
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred")]
fn total(counts: impl IntoIterator<Item = usize>) -> f64 {
    counts.into_iter().sum::<usize>() as f64
}
