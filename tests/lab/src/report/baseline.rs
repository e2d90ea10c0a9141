//! Differences between two runs.

use std::fmt;

use super::grid::{Content, Grid};
use super::json::{Record, RecordedFigure};
use super::number::four_digits;

/// Percent that a value may differ and still count as the same.
const TOLERANCE: f64 = 1.0;
/// Percent more that is allowed for, as decimal fractions are not exact: 38 to 38.38 is exactly 1 %.
const EPSILON: f64 = 1e-6;

/// The change of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// By more than the tolerance.
    Moved { old: f64, new: f64 },
    /// Only in the earlier run.
    Missing { old: f64 },
    /// Only in the later run.
    New { new: f64 },
}

/// A value that is not as it was.
#[derive(Clone, Debug, PartialEq)]
struct Difference {
    figure: String,
    unit: String,
    subject: String,
    change: Change,
}

/// Two runs, compared. Displayed as a table, if anything differs, and a line that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    differences: Vec<Difference>,
    /// Of values in both runs.
    compared: usize,
}

/// Compares an earlier run with a later one. A figure whose unit has changed is another figure.
pub fn compare(old: &Record, new: &Record) -> Comparison {
    let mut comparison = Comparison { differences: Vec::new(), compared: 0 };
    for (figure, subject, new) in values(new) {
        let change = match value(old, figure, subject) {
            None => Change::New { new },
            Some(old) => {
                comparison.compared += 1;
                if percent(old, new).abs() <= TOLERANCE + EPSILON {
                    continue;
                }
                Change::Moved { old, new }
            }
        };
        comparison.differ(figure, subject, change);
    }
    for (figure, subject, old) in values(old) {
        if value(new, figure, subject).is_none() {
            comparison.differ(figure, subject, Change::Missing { old });
        }
    }
    comparison
}

fn values(record: &Record) -> impl Iterator<Item = (&RecordedFigure, &str, f64)> {
    let figures = record.figures.iter();
    figures.flat_map(|figure| figure.values.iter().map(move |(subject, value)| (figure, subject.as_str(), *value)))
}

fn value(record: &Record, like: &RecordedFigure, subject: &str) -> Option<f64> {
    let mut figures = record.figures.iter();
    let figure = figures.find(|figure| figure.figure == like.figure && figure.unit == like.unit)?;
    figure.values.get(subject).copied()
}

/// Above zero is more, and so worse.
fn percent(old: f64, new: f64) -> f64 {
    (new - old) / old * 100.0
}

impl Comparison {
    fn differ(&mut self, figure: &RecordedFigure, subject: &str, change: Change) {
        let RecordedFigure { figure, unit, .. } = figure;
        self.differences.push(Difference {
            figure: figure.clone(),
            unit: unit.clone(),
            subject: subject.into(),
            change,
        });
    }

    fn count(&self, which: fn(&Change) -> bool) -> usize {
        self.differences.iter().filter(|difference| which(&difference.change)).count()
    }

    fn grid(&self) -> Grid {
        use Content::{Numbers, Words};
        let columns = [
            ("figure", Words),
            ("unit", Words),
            ("subject", Words),
            ("baseline", Numbers),
            ("now", Numbers),
            ("percent", Numbers),
            ("", Words),
        ];
        Grid {
            caption: "Not as in the baseline:".into(),
            columns: columns.map(|(heading, content)| (heading.into(), content)).into(),
            rows: self.differences.iter().map(Difference::row).collect(),
        }
    }
}

impl Difference {
    fn row(&self) -> Vec<String> {
        let (old, new, percent, word) = match self.change {
            Change::Moved { old, new } => {
                let percent = percent(old, new);
                let word = if percent < 0.0 { "better" } else { "worse" };
                (four_digits(old), four_digits(new), format!("{percent:+.2}"), word)
            }
            Change::Missing { old } => (four_digits(old), String::new(), String::new(), "missing"),
            Change::New { new } => (String::new(), four_digits(new), String::new(), "new"),
        };
        vec![self.figure.clone(), self.unit.clone(), self.subject.clone(), old, new, percent, word.into()]
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.differences.is_empty() {
            f.write_str(&self.grid().text())?;
        }
        let better = self.count(|change| matches!(change, Change::Moved { old, new } if new < old));
        let worse = self.count(|change| matches!(change, Change::Moved { old, new } if new > old));
        let missing = self.count(|change| matches!(change, Change::Missing { .. }));
        let new = self.count(|change| matches!(change, Change::New { .. }));
        let (moved, compared) = (better + worse, self.compared);
        writeln!(
            f,
            "{moved} of {compared} values moved by more than {TOLERANCE} %: {better} better, {worse} worse; \
            {missing} missing, {new} new"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    fn record(measurements: &[(&str, &str, f64)]) -> Record {
        Record::of(&results(measurements))
    }

    fn moved(old: f64, new: f64) -> usize {
        compare(&record(&[("a", "boot", old)]), &record(&[("a", "boot", new)])).differences.len()
    }

    #[test]
    fn exactly_one_percent_is_no_move() {
        // 0.38 and 0.0162 have no exact binary form.
        for (old, new) in [(100.0, 101.0), (100.0, 99.0), (38.0, 38.38), (38.0, 37.62), (1.62, 1.6362), (1.62, 1.6038)]
        {
            assert_eq!(moved(old, new), 0, "{old} to {new}");
        }
        for (old, new) in [(100.0, 101.001), (100.0, 98.999), (38.0, 38.3804), (38.0, 37.6196)] {
            assert_eq!(moved(old, new), 1, "{old} to {new}");
        }
    }

    #[test]
    fn nothing_common_is_all_missing_and_new() {
        let comparison = compare(&record(&[("a", "boot", 1.0)]), &record(&[("b", "boot", 1.0)]));
        let told = comparison.to_string();
        assert!(
            told.ends_with("0 of 0 values moved by more than 1 %: 0 better, 0 worse; 1 missing, 1 new\n"),
            "{told}"
        );
    }

    #[test]
    fn a_figure_in_another_unit_is_another() {
        let new = record(&[("a", "boot", 1.0)]);
        let mut old = new.clone();
        old.figures[0].unit = "s".into();
        let changes: Vec<_> = compare(&old, &new).differences.into_iter().map(|difference| difference.change).collect();
        assert_eq!(changes, [Change::New { new: 1.0 }, Change::Missing { old: 1.0 }]);
    }

    #[test]
    fn what_is_the_same_is_one_line() {
        let record = record(&[("a", "boot", 1300.0), ("a", "tcp-rr", 80.0)]);
        let told = compare(&record, &record).to_string();
        assert_eq!(told, "0 of 2 values moved by more than 1 %: 0 better, 0 worse; 0 missing, 0 new\n");
    }

    #[test]
    fn what_moved_is_told_with_its_direction() {
        let old = record(&[("a", "boot", 1300.0), ("a", "tcp-rr", 80.0), ("a", "memory-vmm", 3.0), ("z", "boot", 2.0)]);
        let new = record(&[("a", "boot", 1200.0), ("a", "tcp-rr", 82.0), ("a", "memory-vmm", 3.0), ("b", "boot", 9.0)]);
        let expected = "\
Not as in the baseline:
────────────────────────────────────────────────────────────────
 figure   unit   subject   baseline     now   percent
────────────────────────────────────────────────────────────────
 boot     ms     a             1300    1200     -7.69   better
 boot     ms     b                    9.000             new
 tcp-rr   µs     a            80.00   82.00     +2.50   worse
 boot     ms     z            2.000                     missing
────────────────────────────────────────────────────────────────
2 of 3 values moved by more than 1 %: 1 better, 1 worse; 1 missing, 1 new
";
        assert_eq!(compare(&old, &new).to_string(), expected);
    }
}
