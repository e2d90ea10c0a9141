//! The host's console, line by line: measurements, progress for the user, and anything else that machines print.

use std::io::{self, BufRead, Read, Write};

use super::results::{Results, ResultsError};
use crate::measurement::Measurement;

/// The start of a line for the user.
pub const PROGRESS: &str = "lab: ";
/// Of bytes that are taken as one line; what is longer is read in pieces of this size, each as if it were a line.
const MAX_LINE: u64 = 1 << 16;
/// Of characters of a line that are shown.
const MAX_SHOWN: usize = 200;

/// Why a console cannot be reported.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// It ended otherwise than by its end.
    #[error("cannot read the console")]
    Read(#[source] io::Error),
    /// The mark is there, and then something else.
    #[error("the console's line {number} is no measurement: {line}")]
    Malformed {
        /// From 1.
        number: u64,
        /// As it can be shown.
        line: String,
        /// The error in it.
        source: serde_json::Error,
    },
    /// A measurement, but not one for a report.
    #[error("the console's line {number} cannot be reported: {line}")]
    Refused {
        /// From 1.
        number: u64,
        /// As it can be shown.
        line: String,
        /// The error in it.
        source: ResultsError,
    },
    /// Nothing to report.
    #[error("the console carried no measurement")]
    Empty,
}

/// All measurements of a console, to its end. Progress is shown as it comes.
///
/// # Errors
/// The first line that has the mark and no measurement for a report; a console without any.
pub fn read(mut input: impl BufRead, progress: &mut impl Write) -> Result<Results, ConsoleError> {
    let mut results = Results::default();
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        if input.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes).map_err(ConsoleError::Read)? == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&bytes);
        if line.starts_with(PROGRESS) {
            // If standard error is closed, progress is not wanted.
            let _ = writeln!(progress, "{}", shown(&line));
        }
        let Some(measurement) = Measurement::from_line(&line) else { continue };
        let measurement =
            measurement.map_err(|source| ConsoleError::Malformed { number, line: shown(&line), source })?;
        results.add(measurement).map_err(|source| ConsoleError::Refused { number, line: shown(&line), source })?;
    }
    if results.is_empty() { Err(ConsoleError::Empty) } else { Ok(results) }
}

/// The line as a terminal can take it, and no more of it than helps.
fn shown(line: &str) -> String {
    line.trim_end().chars().take(MAX_SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(console: &str) -> String {
        super::super::chain(&read(console.as_bytes(), &mut io::sink()).unwrap_err())
    }

    #[test]
    fn a_marked_line_without_a_measurement_is_named() {
        let good = r#"@lab {"subject":"a","figure":"boot","value":1}"#;
        let cases = [
            ("@lab ", "EOF"),
            ("@lab nonsense", "expected ident"),
            (r#"@lab {"subject":"a","figure":"boot"}"#, "missing field `value`"),
            (r#"@lab {"subject":"a","figure":"boot","value":1,"unit":"ms"}"#, "unknown field `unit`"),
            (r#"@lab {"subject":"a","figure":"boot","value":1e999}"#, "out of range"),
            (r#"@lab {"subject":"a","figure":"boot","value":1} [  3.14] random: crng init done"#, "trailing"),
        ];
        for (line, why) in cases {
            let told = refused(&format!("{good}\n{line}\n"));
            let expected = format!("the console's line 2 is no measurement: {}: ", line.trim_end());
            assert!(told.starts_with(&expected), "{told}");
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn an_unknown_figure_is_named() {
        let line = r#"@lab {"subject":"a","figure":"bot","value":1}"#;
        let expected = format!("the console's line 1 cannot be reported: {line}: there is no figure 'bot'");
        assert_eq!(refused(&format!("{line}\r\n")), expected);
    }

    #[test]
    fn a_long_line_with_control_characters_is_shown_in_part() {
        let told = refused(&format!("@lab \u{1b}[2J{}\n", "x".repeat(5000)));
        assert!(told.chars().count() < 400 && !told.contains('\u{1b}'), "{told}");
    }

    #[test]
    fn a_console_without_measurements_is_an_error() {
        for console in ["", "\n", "lab: boot\nlogin: @lab {}\n"] {
            assert_eq!(refused(console), "the console carried no measurement");
        }
    }

    #[test]
    fn all_but_measurements_is_passed_over_and_progress_shown() {
        let console = b"[    0.0] Linux\r\n\xff\xfe\r\nlab: qemu-q35, boot\r\n\
            @lab {\"subject\":\"qemu-q35\",\"figure\":\"boot\",\"value\":1736.5}\r\nlabel: none\nlab: done";
        let mut progress = Vec::new();
        let results = read(&console[..], &mut progress).unwrap();
        assert_eq!(String::from_utf8(progress).unwrap(), "lab: qemu-q35, boot\nlab: done\n");
        assert_eq!(results.subjects(), ["qemu-q35"]);
        assert_eq!(results.value(crate::figure::Figure::named("boot").unwrap(), "qemu-q35"), Some(1736.5));
    }

    #[test]
    fn a_line_without_end_is_read_in_pieces() {
        let mut console = vec![b'x'; 3 << 16];
        console.extend(b"\n@lab {\"subject\":\"a\",\"figure\":\"boot\",\"value\":1}\n");
        assert_eq!(read(&console[..], &mut io::sink()).unwrap().subjects(), ["a"]);
    }
}
