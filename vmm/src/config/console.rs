//! `--console stdio|file=PATH|none`.

use std::path::PathBuf;

use outrigger_process::options::OptionError;

use super::Problem;

/// Where the guest's serial port leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// Outrigger's own standard input and output.
    #[default]
    Stdio,
    /// Output to a file, truncated, or created for its owner alone; no input.
    File(PathBuf),
    /// Output discarded; no input.
    None,
}

impl ConsoleConfig {
    /// Reads the option's value. All after `file=` is the path, commas included: there are no further keys.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(ConsoleConfig::Stdio),
            ("none", _) => Ok(ConsoleConfig::None),
            (_, Some("")) => Err(OptionError::value("file", OptionError::Empty).into()),
            (_, Some(path)) => Ok(ConsoleConfig::File(PathBuf::from(path))),
            _ => Err(Problem::NotConsole),
        }
    }
}
