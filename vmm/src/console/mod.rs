//! The guest's console: the serial port and what it is connected to on the host.

mod input;
mod keys;
mod output;
pub mod serial;
pub mod terminal;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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
            ConsoleConfig::File(path) => {
                let file = File::create(path).map_err(|source| ConsoleError::Create { path: path.clone(), source })?;
                (Some(Output::to(file.into(), path.display().to_string())?), None)
            }
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

/// The input thread may hold the terminal's last reference, and isn't waited for.
impl Drop for Console {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }
}
