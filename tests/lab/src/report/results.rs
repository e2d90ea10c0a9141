//! The values measured so far, each once.

use crate::figure::{FIGURES, Figure};
use crate::measurement::Measurement;

/// The subject that the aims are for. Those whose names go on after it are variants of it; all others are peers.
pub const OURS: &str = "outrigger";
/// Of characters in a subject's name, so that headings and labels stay small.
const MAX_SUBJECT: usize = 32;

/// A measurement that makes no sense in a report.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultsError {
    /// [`FIGURES`] does not have it.
    #[error("there is no figure '{0}'")]
    UnknownFigure(String),
    /// It would not fit the tables.
    #[error("a subject is named by 1 to {MAX_SUBJECT} letters, digits and any of -+._,:=")]
    Subject,
    /// Nothing takes no time at all, or less.
    #[error("the value is not above zero")]
    Value,
    /// There would be two values for one place in the table.
    #[error("{figure} of {subject} is measured a second time")]
    Twice {
        /// Its name.
        figure: String,
        /// Its name.
        subject: String,
    },
}

/// Values by figure and subject.
#[derive(Clone, Debug, Default)]
pub struct Results {
    subjects: Vec<String>,
    measurements: Vec<Measurement>,
}

impl Results {
    /// Takes one more.
    ///
    /// # Errors
    /// It cannot be reported; nothing has changed.
    pub fn add(&mut self, measurement: Measurement) -> Result<(), ResultsError> {
        let Measurement { subject, figure, value } = &measurement;
        let figure = Figure::named(figure).ok_or_else(|| ResultsError::UnknownFigure(figure.clone()))?;
        let in_name = |c: char| c.is_ascii_alphanumeric() || "-+._,:=".contains(c);
        if subject.is_empty() || subject.len() > MAX_SUBJECT || !subject.chars().all(in_name) {
            return Err(ResultsError::Subject);
        }
        if !is_value(*value) {
            return Err(ResultsError::Value);
        }
        if self.value(figure, subject).is_some() {
            return Err(ResultsError::Twice { figure: figure.name.into(), subject: subject.clone() });
        }
        if !self.subjects.contains(subject) {
            self.subjects.push(subject.clone());
        }
        self.measurements.push(measurement);
        Ok(())
    }

    /// Whether nothing has been measured.
    pub fn is_empty(&self) -> bool {
        self.measurements.is_empty()
    }

    /// In the order first seen.
    pub fn subjects(&self) -> &[String] {
        &self.subjects
    }

    /// Those with a value for any subject, in the report's order.
    pub fn figures(&self) -> impl Iterator<Item = &'static Figure> {
        FIGURES.iter().filter(|figure| self.measurements.iter().any(|known| known.figure == figure.name))
    }

    /// In the figure's unit.
    pub fn value(&self, figure: &Figure, subject: &str) -> Option<f64> {
        let mut known = self.measurements.iter();
        known.find(|known| known.figure == figure.name && known.subject == subject).map(|known| known.value)
    }

    /// The subjects with a value for this figure, in the order first seen.
    pub fn values(&self, figure: &Figure) -> impl Iterator<Item = (&str, f64)> {
        self.subjects.iter().filter_map(move |subject| Some((subject.as_str(), self.value(figure, subject)?)))
    }

    /// The peer with the least value; of equals the one seen first.
    pub fn best_peer(&self, figure: &Figure) -> Option<(&str, f64)> {
        self.values(figure).filter(|(subject, _)| is_peer(subject)).min_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}

/// Whether a subject is neither Outrigger nor a variant of it.
pub fn is_peer(subject: &str) -> bool {
    !subject.starts_with(OURS)
}

/// Whether a number can be what a figure came to.
pub fn is_value(number: f64) -> bool {
    number.is_finite() && number > 0.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn measurement(subject: &str, figure: &str, value: f64) -> Measurement {
        Measurement { subject: subject.into(), figure: figure.into(), value }
    }

    pub fn results(measurements: &[(&str, &str, f64)]) -> Results {
        let mut results = Results::default();
        for &(subject, figure, value) in measurements {
            results.add(measurement(subject, figure, value)).unwrap();
        }
        results
    }

    /// Two figures of three subjects, and one that only ours has.
    pub fn example() -> Results {
        results(&[
            ("qemu-q35", "read-4k-qd1", 52.2),
            ("qemu-q35", "boot", 1736.0),
            ("outrigger", "boot", 1300.0),
            ("outrigger", "read-4k-qd1", 39.25),
            ("outrigger", "memory-blk", 1.25),
            ("outrigger-messages", "read-4k-qd1", 61.5),
            ("qemu-microvm", "read-4k-qd1", 50.0),
        ])
    }

    #[test]
    fn what_cannot_be_reported_is_refused() {
        let mut results = example();
        let refused = |results: &mut Results, subject: &str, figure: &str, value: f64| {
            results.add(measurement(subject, figure, value)).unwrap_err()
        };
        assert_eq!(refused(&mut results, "a", "bot", 1.0), ResultsError::UnknownFigure("bot".into()));
        for subject in ["", "a|b", "a b", "a\n", "é", &"x".repeat(33)] {
            assert_eq!(refused(&mut results, subject, "boot", 1.0), ResultsError::Subject, "{subject:?}");
        }
        for value in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(&mut results, "a", "boot", value), ResultsError::Value, "{value}");
        }
        let twice = refused(&mut results, "outrigger", "boot", 1300.0);
        assert_eq!(twice.to_string(), "boot of outrigger is measured a second time");
        assert_eq!(results.subjects(), example().subjects(), "refusals leave no trace");
    }

    #[test]
    fn subjects_come_in_the_order_seen_and_figures_in_that_of_the_report() {
        let results = example();
        assert_eq!(results.subjects(), ["qemu-q35", "outrigger", "outrigger-messages", "qemu-microvm"]);
        let figures: Vec<_> = results.figures().map(|figure| figure.name).collect();
        assert_eq!(figures, ["boot", "read-4k-qd1", "memory-blk"]);
    }

    #[test]
    fn the_best_peer_is_never_a_variant_of_ours() {
        let results = results(&[
            ("outrigger", "boot", 1.0),
            ("outrigger-2q", "boot", 0.5),
            ("b", "boot", 3.0),
            ("a", "boot", 3.0),
            ("outrigger", "tcp-rr", 1.0),
        ]);
        assert_eq!(results.best_peer(Figure::named("boot").unwrap()), Some(("b", 3.0)));
        assert_eq!(results.best_peer(Figure::named("tcp-rr").unwrap()), None);
    }
}
