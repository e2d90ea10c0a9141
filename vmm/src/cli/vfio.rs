//! The arguments of `outrigger vfio`.

use clap::{Args, Subcommand};

use crate::config::{Problem, UsageError};
use crate::vfio::{Address, Command};

const EXAMPLES: &str = "\
Examples:
  outrigger vfio list
  outrigger vfio bind 0000:01:00.0
  outrigger run --kernel bzImage --initrd initramfs.img --vfio 0000:01:00.0
  outrigger vfio unbind 0000:01:00.0

Exit status:
  0  done
  1  the kernel's driver vfio-pci does not take the device
  2  there is no such device, or it cannot be taken
  3  the host lacks something: an IOMMU, the module vfio-pci, a permission

docs/VFIO.md says what a guest can do with a device, and what it cannot.";

/// See which of the host's PCI devices a guest can have, and change their drivers
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
pub(super) struct VfioArgs {
    #[command(subcommand)]
    command: VfioSubcommand,
}

#[derive(Debug, Subcommand)]
enum VfioSubcommand {
    /// Show the host's PCI devices, their drivers, and whether a guest can have them
    List,
    /// Take a device from its driver and give it to vfio-pci
    Bind {
        /// The device's place, as 'list' shows it: 0000:01:00.0
        #[arg(value_name = "ADDRESS")]
        address: String,
    },
    /// Take a device from vfio-pci; the kernel gives it to the driver that it had
    Unbind {
        /// The device's place, as 'list' shows it: 0000:01:00.0
        #[arg(value_name = "ADDRESS")]
        address: String,
    },
}

impl VfioArgs {
    /// What is asked.
    ///
    /// # Errors
    /// The address is none.
    pub(super) fn command(self) -> Result<Command, UsageError> {
        match self.command {
            VfioSubcommand::List => Ok(Command::List),
            VfioSubcommand::Bind { address } => parse(&address).map(Command::Bind),
            VfioSubcommand::Unbind { address } => parse(&address).map(Command::Unbind),
        }
    }
}

fn parse(text: &str) -> Result<Address, UsageError> {
    Address::parse(text).ok_or_else(|| UsageError::new(text, Problem::NotAddress))
}
