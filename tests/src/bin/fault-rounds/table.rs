//! The result, for people.

use std::fmt;

use crate::documented::Documented;
use crate::rounds::Result;

/// One line for each fault.
pub struct Table<'a>(pub &'a [Result]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<12} {:<28} {:>6} {:>13} {:>11}",
            "fault", "documented", "rounds", "as documented", "longest, ms"
        )?;
        for Result { fault, rounds, differ, longest } in self.0 {
            let documented = match fault.documented() {
                Documented::CutOff => "6, device named, at once".to_owned(),
                Documented::CutOffAtDeadline => "6, device named, after 10 s".to_owned(),
                Documented::Unharmed => "0, nothing told".to_owned(),
                Documented::EndedBySignal(status) => format!("{status}, at once, device serves on"),
            };
            let right = rounds - differ;
            let name = fault.name();
            writeln!(f, "{name:<12} {documented:<28} {rounds:>6} {right:>13} {:>11}", longest.as_millis())?;
        }
        Ok(())
    }
}
