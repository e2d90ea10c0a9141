//! A run's results as a file, for the next run to be compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::number::rounded;
use super::results::{Results, is_value};

/// The name of the format, in the file.
const FORMAT: &str = "outrigger-lab";
/// Of the format; another one is not read.
const VERSION: u32 = 1;
/// Says what the figures are, wherever they were measured.
const CLOCK: &str = "one executed instruction of the test bed's host is one nanosecond";
/// Of significant digits kept: what is smaller is noise, and would make each line differ from the last run's.
const DIGITS: usize = 6;

/// Why a file is no run's results.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be opened or read, or is not text.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// Not JSON, or not of the structure.
    #[error("is not a lab.json")]
    Malformed(#[source] serde_json::Error),
    /// Something else, or from another time.
    #[error("is '{format}' version {version}, and '{FORMAT}' version {VERSION} is expected")]
    Other {
        /// The format that it names.
        format: String,
        /// The version that it names.
        version: u32,
    },
    /// A value that no run can have had.
    #[error("{figure} of {subject} is not above zero")]
    Value {
        /// Its name.
        figure: String,
        /// Its name.
        subject: String,
    },
    /// Which one would count?
    #[error("has {0} twice")]
    Twice(String),
}

/// A run's results. Figures are in the report's order, subjects in that of the alphabet: two files differ in what differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: String,
    version: u32,
    clock: String,
    /// Those that were measured.
    pub figures: Vec<RecordedFigure>,
}

/// A figure and its values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedFigure {
    /// Its name; an earlier version may have had others.
    pub figure: String,
    /// Its symbol.
    pub unit: String,
    /// By subject.
    pub values: BTreeMap<String, f64>,
}

/// The fields read first, to tell another version from a broken file.
#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

impl Record {
    /// To be written.
    pub fn of(results: &Results) -> Self {
        let figures = results.figures().map(|figure| RecordedFigure {
            figure: figure.name.into(),
            unit: figure.unit.symbol().into(),
            values: results.values(figure).map(|(subject, value)| (subject.into(), rounded(value, DIGITS))).collect(),
        });
        Self { format: FORMAT.into(), version: VERSION, clock: CLOCK.into(), figures: figures.collect() }
    }

    /// As a file has it.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and finite numbers can be JSON");
        text.push('\n');
        text
    }

    /// Reads an earlier run's file.
    ///
    /// # Errors
    /// There is no such file, or something else is in it.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        Self::from_json(&fs::read_to_string(path).map_err(RecordError::Read)?)
    }

    fn from_json(text: &str) -> Result<Self, RecordError> {
        let Header { format, version } = serde_json::from_str(text).map_err(RecordError::Malformed)?;
        if format != FORMAT || version != VERSION {
            return Err(RecordError::Other { format, version });
        }
        let record: Self = serde_json::from_str(text).map_err(RecordError::Malformed)?;
        let mut seen = BTreeSet::new();
        for RecordedFigure { figure, values, .. } in &record.figures {
            if !seen.insert(figure) {
                return Err(RecordError::Twice(figure.clone()));
            }
            if let Some((subject, _)) = values.iter().find(|(_, value)| !is_value(**value)) {
                return Err(RecordError::Value { figure: figure.clone(), subject: subject.clone() });
            }
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain;
    use super::super::results::tests::{example, results};
    use super::*;

    fn refused(text: &str) -> String {
        chain(&Record::from_json(text).unwrap_err())
    }

    #[test]
    fn what_is_no_record_is_refused_in_one_line() {
        let file =
            |figures: &str| format!(r#"{{"format":"outrigger-lab","version":1,"clock":"c","figures":[{figures}]}}"#);
        let boot = r#"{"figure":"boot","unit":"ms","values":{"a":1.0}}"#;
        let cases = [
            (String::new(), "EOF"),
            ("[]".into(), "is not a lab.json: "),
            (r#"{"format":"x","version":1}"#.into(), "is 'x' version 1, and"),
            (r#"{"format":"outrigger-lab","version":2,"more":[]}"#.into(), "'outrigger-lab' version 2, and"),
            (r#"{"format":"outrigger-lab","version":1}"#.into(), "missing field `clock`"),
            (file(r#"{"figure":"boot","values":{}}"#), "missing field `unit`"),
            (file(r#"{"figure":"boot","unit":"ms","values":{"a":null}}"#), "invalid type: null"),
            (file(r#"{"figure":"boot","unit":"ms","values":{"a":1e999}}"#), "out of range"),
            (file(r#"{"figure":"boot","unit":"ms","values":{"a":1,"b":0}}"#), "boot of b is not above zero"),
            (file(&format!("{boot},{boot}")), "has boot twice"),
            (file(boot) + "x", "trailing characters"),
        ];
        for (text, why) in cases {
            let told = refused(&text);
            assert!(told.contains(why) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let record = Record::of(&example());
        assert_eq!(Record::from_json(&record.to_json()).unwrap(), record);
    }

    #[test]
    fn the_order_of_measuring_leaves_no_trace() {
        let forth = [("b", "boot", 1300.0), ("a", "boot", 1.5), ("a", "tcp-rr", 38.123_456_789)];
        let mut back = forth;
        back.reverse();
        let text = Record::of(&results(&forth)).to_json();
        assert_eq!(text, Record::of(&results(&back)).to_json());
        let expected = r#"{
  "format": "outrigger-lab",
  "version": 1,
  "clock": "one executed instruction of the test bed's host is one nanosecond",
  "figures": [
    {
      "figure": "boot",
      "unit": "ms",
      "values": {
        "a": 1.5,
        "b": 1300.0
      }
    },
    {
      "figure": "tcp-rr",
      "unit": "µs",
      "values": {
        "a": 38.1235
      }
    }
  ]
}
"#;
        assert_eq!(text, expected);
    }
}
