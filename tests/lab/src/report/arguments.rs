//! The command line of `lab-report`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use super::{EXIT_USAGE, tell};

const HELP: &str = "\
Standard input is what the test bed's host prints. Lines that start with \"@lab \" carry measurements; lines that start
with \"lab: \" are shown on standard error as they come; all others are passed over. At the end two tables are printed:
outrigger against the best peer (any subject not named outrigger...) with the project's aims, and all subjects. Time is
that of the test bed's host, where one executed instruction is one nanosecond; less is better in every figure.

Files in --out:
  lab.json  the measurements with their units, sorted, to be another run's --baseline
  lab.svg   bars, one group for each figure, relative to the best peer
  lab.md    the tables, for docs/PERFORMANCE.md
Of series such as queues-1 and queues-2 there are scaling.json and scaling.md.

Exit status:
  0  reported, whatever moved
  1  no measurement, one that cannot be read, or a result that cannot be written
  2  bad usage, or a baseline that cannot be read (before anything is read from standard input)";

/// Make the lab's measurements a table, JSON, a plot, and a comparison with an earlier run
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "lab-report", version, after_help = HELP)]
pub struct Arguments {
    /// Write lab.json, lab.svg and lab.md into this directory; it is created if it is missing
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// After the tables, name each value that moved by more than 1 % since this lab.json was written
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Compare two files of the form of lab.json in that way, and read no standard input
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], conflicts_with_all = ["out", "baseline"])]
    pub compare: Option<Vec<PathBuf>>,
}

/// Reads the command line. An error is reported on one line; help and version go to standard output.
///
/// # Errors
/// The status to exit with.
pub fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        tell(&one_line(&error));
        ExitCode::from(EXIT_USAGE)
    })
}

/// The first paragraph says what is wrong; what clap puts below is in the help.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let words: Vec<_> = first.split_whitespace().collect();
    format!("{} (see lab-report --help)", words.join(" "))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn refused(arguments: &[&str]) -> String {
        let arguments = std::iter::once("lab-report").chain(arguments.iter().copied());
        one_line(&Arguments::try_parse_from(arguments).unwrap_err())
    }

    #[test]
    fn bad_usage_is_one_line() {
        for arguments in [&["--nonsense"][..], &["--out"], &["file"], &["--compare", "a", "b", "--out", "c"]] {
            let line = refused(arguments);
            assert!(!line.contains('\n') && !line.contains("error:"), "{line}");
            assert!(line.ends_with("(see lab-report --help)"), "{line}");
        }
    }

    #[test]
    fn a_comparison_takes_two_files() {
        assert!(refused(&["--compare", "a"]).contains("2 values required"));
        assert!(refused(&["--compare", "a", "b", "c"]).contains("'c'"));
        let arguments = Arguments::try_parse_from(["lab-report", "--compare", "a", "b"]).unwrap();
        assert_eq!(arguments.compare, Some(vec!["a".into(), "b".into()]));
    }

    #[test]
    fn clap_accepts_the_definition() {
        Arguments::command().debug_assert();
    }
}
