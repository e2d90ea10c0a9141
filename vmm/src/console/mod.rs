//! The guest's console: the serial port and what it is connected to on the host.

mod input;
mod keys;
mod output;
pub mod serial;
pub mod terminal;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::libc::{ELOOP, O_NOFOLLOW};

use crate::config::ConsoleConfig;
use crate::console::serial::Serial;
use crate::console::terminal::Terminal;
use crate::control::outcome::Stop;
use output::Output;

/// Why the console cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file for the output cannot be created.
    #[error("--console file={}: cannot create", .path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody who may write to the directory could have the output overwrite a file of the user's.
    #[error("--console file={}: is a symbolic link, which is not followed", .path.display())]
    SymbolicLink {
        /// The link.
        path: PathBuf,
    },
    /// The host is out of descriptors or threads.
    #[error("cannot connect the console")]
    Connect(#[from] io::Error),
}

/// See the [module](self). Dropping it restores the terminal; [`finish`](Self::finish) also waits for the output.
pub struct Console {
    serial: Arc<Serial>,
    output: Option<Output>,
    input: Option<OwnedFd>,
    terminal: Option<Arc<Terminal>>,
}

impl Console {
    /// Makes the serial port and opens what it leads to. The terminal is not touched before [`start`](Self::start).
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn open(config: &ConsoleConfig) -> Result<Self, ConsoleError> {
        let (output, input) = match config {
            ConsoleConfig::Stdio => {
                let stdout = io::stdout().as_fd().try_clone_to_owned()?;
                (Some(Output::to(stdout, "standard output".to_owned())?), Some(input::stdin()?))
            }
            ConsoleConfig::File(path) => (Some(Output::to(create(path)?.into(), path.display().to_string())?), None),
            ConsoleConfig::None => (None, None),
        };
        let terminal = match &input {
            Some(stdin) => Terminal::open(stdin)?.map(Arc::new),
            None => None,
        };
        let line: Box<dyn Write + Send> = match &output {
            Some(output) => Box::new(output.clone()),
            None => Box::new(io::sink()),
        };
        Ok(Console { serial: Arc::new(Serial::new(line)?), output, input, terminal })
    }

    /// The serial port, for the bus and the interrupt controller.
    pub fn serial(&self) -> &Arc<Serial> {
        &self.serial
    }

    /// The user's terminal, where standard input is one and the console leads there.
    pub fn terminal(&self) -> Option<&Arc<Terminal>> {
        self.terminal.as_ref()
    }

    /// Takes the terminal, says how to leave, and lets input through until `stop` is requested.
    ///
    /// # Errors
    /// [`ConsoleError::Connect`].
    pub fn start(&mut self, stop: &Stop) -> Result<(), ConsoleError> {
        let Some(stdin) = self.input.take() else { return Ok(()) };
        if let Some(terminal) = &self.terminal {
            if io::stderr().is_terminal() {
                // The run goes on without this hint.
                let _ = writeln!(io::stderr(), "outrigger: Ctrl-A x ends the guest, Ctrl-A c sends a break");
            }
            terminal.set_raw();
        }
        input::start(stdin, self.terminal.clone(), Arc::clone(&self.serial), stop.clone())?;
        Ok(())
    }

    /// Waits, for `limit` at most, until the guest's output is written, then gives the terminal back.
    pub fn finish(&self, limit: Duration) {
        let unwritten = self.output.as_ref().map_or(0, |output| output.finish(limit));
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
        if unwritten > 0 {
            log::warn!("{unwritten} bytes of console output are lost: they were not read in time");
        }
    }
}

/// The file for the output, which may hold the guest's secrets: others cannot read one that is new.
fn create(path: &Path) -> Result<File, ConsoleError> {
    let options =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).custom_flags(O_NOFOLLOW).clone();
    options.open(path).map_err(|source| match source.raw_os_error() {
        Some(ELOOP) if path.is_symlink() => ConsoleError::SymbolicLink { path: path.to_owned() },
        _ => ConsoleError::Create { path: path.to_owned(), source },
    })
}

/// The input thread may hold the terminal's last reference, and isn't waited for.
impl Drop for Console {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_new_file_is_its_owners_alone_and_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let [new, old, link] = ["new", "old", "link"].map(|name| directory.path().join(name));
        let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        create(&new).unwrap();
        assert_eq!(mode(&new), 0o600);

        std::fs::write(&old, "precious").unwrap();
        symlink(&old, &link).unwrap();
        let error = create(&link).unwrap_err();
        let wanted = format!("--console file={}: is a symbolic link, which is not followed", link.display());
        assert_eq!(error.to_string(), wanted);
        assert_eq!(std::fs::read(&old).unwrap(), b"precious");

        std::fs::set_permissions(&old, PermissionsExt::from_mode(0o644)).unwrap();
        create(&old).unwrap();
        assert_eq!((mode(&old), std::fs::read(&old).unwrap().len()), (0o644, 0), "its owner has said who may read it");

        let error = create(&directory.path().join("none/file")).unwrap_err();
        assert!(matches!(error, ConsoleError::Create { .. }), "{error}");
    }
}
