//! `lab-report`: reads what the test bed's host said; makes it a table, JSON, a plot, a comparison with an earlier run.

pub mod arguments;
pub mod baseline;
pub mod console;
pub mod grid;
pub mod json;
pub mod kind;
pub mod number;
pub mod plot;
pub mod results;
pub mod series;
pub mod table;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::arguments::Arguments;
use self::console::ConsoleError;
use self::json::{Record, RecordError};
use self::kind::Kind;
use self::plot::PlotError;
use self::results::Results;

/// Exit status for bad usage and for a baseline that cannot be used.
pub const EXIT_USAGE: u8 = 2;
/// Exit status when there is nothing to report, or no way to.
pub const EXIT_FAILURE: u8 = 1;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file with an earlier run's results is not usable.
    #[error("{}", path.display())]
    Record {
        /// As the user named it.
        path: PathBuf,
        /// The error in it.
        source: RecordError,
    },
    /// The directory to write into cannot be had.
    #[error("cannot create --out {}", path.display())]
    Directory {
        /// As the user named it.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The console said something that cannot be reported.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The plot was not drawn.
    #[error("cannot draw the plot")]
    Plot(#[from] PlotError),
    /// A result did not get out.
    #[error("cannot write {to}")]
    Write {
        /// A path, or what people call the stream.
        to: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl ReportError {
    /// The process's exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Record { .. } | Self::Directory { .. } => EXIT_USAGE,
            Self::Console(_) | Self::Plot(_) | Self::Write { .. } => EXIT_FAILURE,
        }
    }
}

/// The whole of `lab-report`.
pub fn main() -> ExitCode {
    let result = arguments::parse().and_then(|arguments| {
        run(&arguments).map_err(|error| {
            tell(&chain(&error));
            ExitCode::from(error.status())
        })
    });
    result.err().unwrap_or(ExitCode::SUCCESS)
}

fn run(arguments: &Arguments) -> Result<(), ReportError> {
    let text = match &arguments.compare {
        Some(files) => {
            let records = files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
            // Clap sees to there being two.
            records.windows(2).map(|pair| baseline::compare(&pair[0], &pair[1]).to_string()).collect()
        }
        None => report(arguments)?,
    };
    // In one piece: a reader may stop at the first line.
    io::stdout().write_all(text.as_bytes()).map_err(|source| write_error("standard output", source))
}

/// Reads the console, writes the files asked for; what is left to print is returned.
fn report(arguments: &Arguments) -> Result<String, ReportError> {
    let baseline = arguments.baseline.as_deref().map(read).transpose()?;
    if let Some(path) = &arguments.out {
        fs::create_dir_all(path).map_err(|source| ReportError::Directory { path: path.clone(), source })?;
    }
    let results = console::read(io::stdin().lock(), &mut io::stderr())?;
    if let Some(directory) = &arguments.out {
        write_files(directory, &results)?;
    }
    let mut text = table::text(&results);
    if let Some(baseline) = baseline {
        text.push('\n');
        text.push_str(&baseline::compare(&baseline, &Record::of(&results)).to_string());
    }
    Ok(text)
}

fn read(path: &Path) -> Result<Record, ReportError> {
    Record::read(path).map_err(|source| ReportError::Record { path: path.into(), source })
}

fn write_files(directory: &Path, results: &Results) -> Result<(), ReportError> {
    let (json, tables) = (Record::of(results).to_json(), table::markdown(results));
    let files = match Kind::of(results) {
        Kind::Comparison => vec![("lab.json", json), ("lab.svg", plot::svg(results)?), ("lab.md", tables)],
        Kind::Series => vec![("scaling.json", json), ("scaling.md", tables)],
        Kind::Restarts => vec![("restart.json", json), ("restart.md", tables)],
        Kind::Paths => vec![("paths.json", json), ("paths.md", tables)],
    };
    for (name, content) in files {
        let path = directory.join(name);
        fs::write(&path, content).map_err(|source| write_error(&path.display().to_string(), source))?;
    }
    Ok(())
}

fn write_error(to: &str, source: io::Error) -> ReportError {
    ReportError::Write { to: to.into(), source }
}

fn tell(what: &str) {
    // Where standard error is closed the status has to do.
    let _ = writeln!(io::stderr(), "lab-report: {what}");
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |line, source| format!("{line}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_baseline_is_told_before_the_console_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.json");
        let arguments = Arguments { baseline: Some(path.clone()), ..Arguments::default() };
        let error = report(&arguments).unwrap_err();
        assert_eq!(error.status(), EXIT_USAGE);
        let line = chain(&error);
        assert!(line.starts_with(&path.display().to_string()), "{line}");
        assert!(line.contains("No such file"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn a_directory_in_place_of_a_file_is_bad_usage() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let arguments = Arguments { out: Some(file), ..Arguments::default() };
        assert_eq!(report(&arguments).unwrap_err().status(), EXIT_USAGE);
    }

    #[test]
    fn the_three_files_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let results = results::tests::example();
        write_files(directory.path(), &results).unwrap();
        assert_eq!(Record::read(&directory.path().join("lab.json")).unwrap(), Record::of(&results));
        assert_eq!(fs::read_to_string(directory.path().join("lab.md")).unwrap(), table::markdown(&results));
        assert!(fs::read_to_string(directory.path().join("lab.svg")).unwrap().starts_with("<svg "));
    }

    #[test]
    fn series_have_files_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        write_files(directory.path(), &results::tests::results(&[("guests-1", "boot", 1500.0)])).unwrap();
        let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["scaling.json", "scaling.md"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("lab.md")).unwrap();
        let error = write_files(directory.path(), &results::tests::example()).unwrap_err();
        assert_eq!(error.status(), EXIT_FAILURE);
        assert!(chain(&error).contains("lab.md: Is a directory"), "{}", chain(&error));
    }
}
