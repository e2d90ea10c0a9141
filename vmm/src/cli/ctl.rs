//! The arguments of `outrigger ctl`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{self, Problem, UsageError};
use crate::ctl::{Call, Command};
use crate::pci::Slot;

const EXAMPLES: &str = "\
Examples:
  outrigger run --kernel bzImage --disk path=root.img --control vm.sock --programs /opt/builds
  outrigger ctl vm.sock status
  outrigger ctl vm.sock restart 00:01.0
  outrigger ctl vm.sock replace 00:01.0 --program /opt/builds/outrigger-blk
  outrigger ctl vm.sock stop

Exit status:
  0  done
  1  Outrigger refuses, or does not answer
  2  the command line, or the socket it names, cannot be used

The socket speaks HTTP: curl --unix-socket vm.sock http://localhost/v1/status (docs/CONTROL.md)";

/// See and control a guest that runs, by its control socket
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
pub(super) struct CtlArgs {
    /// The socket that 'outrigger run --control PATH' made
    #[arg(value_name = "PATH")]
    path: PathBuf,

    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Show the guest, its devices, and the processes that serve them
    Status,
    /// End the guest as SIGTERM does, and wait for the end; the run's exit status is 0
    Stop,
    /// Let a new process of the same program serve a device; the guest does not notice
    Restart {
        /// The device's place, as 'status' shows it
        #[arg(value_name = "SLOT")]
        slot: String,
    },
    /// Let another build of its program serve a device; the guest does not notice
    Replace {
        /// The device's place, as 'status' shows it
        #[arg(value_name = "SLOT")]
        slot: String,

        /// The program to start, with the options of the device [default: the one that it has]
        ///
        /// A bare name is looked for beside outrigger itself. A program that the command line of 'outrigger run' does not
        /// name has to be below its --programs DIR
        #[arg(long, value_name = "PATH")]
        program: Option<PathBuf>,
    },
}

impl CtlArgs {
    /// The call that the arguments describe.
    ///
    /// # Errors
    /// The path cannot be that of a socket, or the slot that of a device.
    pub(super) fn call(self) -> Result<Call, UsageError> {
        let path = config::parse_control(&self.path);
        let path = path.map_err(|problem| UsageError::new(self.path.display(), problem))?;
        let command = match self.command {
            CtlCommand::Status => Command::Status,
            CtlCommand::Stop => Command::Stop,
            CtlCommand::Restart { slot } => Command::Restart(parse_slot(&slot)?),
            CtlCommand::Replace { slot, program } => Command::Replace(parse_slot(&slot)?, program),
        };
        Ok(Call { path, command })
    }
}

fn parse_slot(text: &str) -> Result<Slot, UsageError> {
    Slot::parse(text).ok_or_else(|| UsageError::new(text, Problem::NotSlot))
}
