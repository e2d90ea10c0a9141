//! `--disk path=FILE[,readonly=on][,serial=ID][,queues=N][,dma=messages]`.

use std::fmt;
use std::path::PathBuf;

use super::options::{self, Options};
use super::{Dma, MAX_QUEUES, Problem, dma};

/// Longest serial number in bytes (virtio 1.2, section 5.2.6.1: `VIRTIO_BLK_T_GET_ID` returns 20 bytes).
pub const MAX_SERIAL: usize = 20;

/// A disk for an `outrigger-blk` process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Raw image file or block device.
    pub path: PathBuf,
    /// Opened for reading only, and read-only to the guest.
    pub readonly: bool,
    /// Serial number the guest reads: 1 to [`MAX_SERIAL`] bytes of printable ASCII.
    pub serial: Option<String>,
    /// Request queues, 1 to [`MAX_QUEUES`]; one per vCPU where not given.
    pub queues: Option<u16>,
    /// How the process reaches guest RAM.
    pub dma: Dma,
}

impl DiskConfig {
    /// Reads the option's value.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let options = Options::parse(text, &["path", "readonly", "serial", "queues", dma::KEY], None)?;
        Ok(DiskConfig {
            path: PathBuf::from(options.required("path", "FILE")?),
            readonly: options.switch("readonly")?,
            serial: options.parsed("serial", serial)?,
            queues: options.parsed("queues", queues)?,
            dma: Dma::parse(&options)?,
        })
    }
}

/// The option's value that reads back as this disk: how `outrigger-blk` is told what to serve. How it reaches guest RAM is not
/// its to choose, and left out.
impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path={}", options::escape(&self.path.to_string_lossy()))?;
        if self.readonly {
            f.write_str(",readonly=on")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={}", options::escape(serial))?;
        }
        if let Some(queues) = self.queues {
            write!(f, ",queues={queues}")?;
        }
        Ok(())
    }
}

fn serial(text: &str) -> Result<String, Problem> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Problem::NotPrintable);
    }
    if text.len() > MAX_SERIAL {
        return Err(Problem::TooLong { length: text.len(), limit: MAX_SERIAL });
    }
    Ok(text.to_owned())
}

/// A number of queues, or of pairs of queues.
pub(super) fn queues(text: &str) -> Result<u16, Problem> {
    options::number(text, 1, MAX_QUEUES.into()).map(|queues| u16::try_from(queues).unwrap_or(MAX_QUEUES))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_displayed_disk_reads_back(
            path in ".+",
            readonly: bool,
            serial in prop::option::of("[!-~]{1,20}"),
            queues in prop::option::of(1..=MAX_QUEUES),
        ) {
            let disk = DiskConfig { path: path.into(), readonly, serial, queues, dma: Dma::default() };
            prop_assert_eq!(DiskConfig::parse(&disk.to_string()), Ok(disk));
        }
    }
}
