//! `dma=shared|messages`: how a device process reaches guest RAM.

use super::Problem;
use super::options::Options;

/// The key's name, in every option that describes a device.
pub(super) const KEY: &str = "dma";

/// How a device process reaches guest RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dma {
    /// It is handed the memory file and maps it: fast, and it can read and write all of the guest.
    #[default]
    Shared,
    /// It asks the VMM for every byte, by `VFIO_USER_DMA_READ` and `VFIO_USER_DMA_WRITE`, and holds no guest memory.
    Messages,
}

impl Dma {
    /// Reads the key, where given.
    pub(super) fn parse(options: &Options) -> Result<Self, Problem> {
        let dma = options.parsed(KEY, |text| match text {
            "shared" => Ok(Dma::Shared),
            "messages" => Ok(Dma::Messages),
            _ => Err(Problem::NotDma { text: text.to_owned() }),
        })?;
        Ok(dma.unwrap_or_default())
    }
}
