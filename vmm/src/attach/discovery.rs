//! A server's description of its device, asked for once and checked before anything is built on it.

use outrigger_protocol::client::{Client, IoFd, RegionInfo};
use outrigger_protocol::{pci, wire};

use super::AttachError;
use crate::pci::bar::{BARS, Bars, Kind, ROM};
use crate::pci::capabilities::{self, id, read_u16, read_u32};
use crate::pci::register;

/// Enough for any identity that is checked here (PCI Local Bus 3.0: the header has 64 bytes).
const HEADER: u64 = 64;
const MSIX_ENTRY: u64 = 16;

/// A device as its server describes it.
#[derive(Debug)]
pub struct Description {
    /// Whether the server takes `VFIO_USER_DEVICE_RESET`.
    pub resettable: bool,
    /// Configuration space, as much as there is.
    pub config: Vec<u8>,
    /// Regions 0 to 6: the BARs and the ROM.
    pub regions: Vec<RegionInfo>,
    /// Sub-regions that KVM can signal, by region.
    pub io_fds: Vec<Vec<IoFd>>,
    /// The BARs, nowhere placed yet.
    pub bars: Bars,
    /// Where function-level reset is initiated: (offset of the byte in configuration space, bit).
    pub flr: Option<(u16, u8)>,
    /// INTx is there.
    pub intx: bool,
    /// The MSI capability.
    pub msi: Option<MsiCapability>,
    /// The MSI-X capability.
    pub msix: Option<MsixCapability>,
}

/// The MSI capability of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiCapability {
    /// Where it is in configuration space.
    pub offset: u16,
    /// How many vectors the server signals.
    pub vectors: u32,
    /// The address has 64 bits.
    pub wide: bool,
    /// Each vector can be masked.
    pub maskable: bool,
}

/// The MSI-X capability of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCapability {
    /// Where it is in configuration space.
    pub offset: u16,
    /// How many vectors.
    pub vectors: u16,
    /// The table: (BAR, offset).
    pub table: (u32, u64),
    /// The pending bit array: (BAR, offset).
    pub pba: (u32, u64),
}

impl MsixCapability {
    /// Bytes of the table.
    #[must_use]
    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors) * MSIX_ENTRY
    }

    /// Bytes of the pending bit array: whole quad words.
    #[must_use]
    pub fn pba_size(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }
}

/// Asks for everything.
///
/// # Errors
/// If the server doesn't answer, or what it says is no PCI device.
pub fn discover(client: &Client) -> Result<Description, AttachError> {
    let bad = |problem: &str| AttachError::Device(problem.into());
    let info = client.device_info()?;
    if info.flags & wire::DEVICE_IS_PCI == 0 {
        return Err(bad("it is not a PCI device"));
    }
    if info.num_regions <= pci::CONFIG_REGION || info.num_irqs <= pci::MSIX_IRQ {
        return Err(bad("it has fewer regions or interrupt types than every PCI device has"));
    }
    let config = read_config(client)?;
    if config[usize::from(register::HEADER_TYPE)] & 0x7f != 0 {
        return Err(bad("it is a bridge"));
    }
    let regions = (0..=pci::ROM_REGION).map(|index| client.region_info(index)).collect::<Result<Vec<_>, _>>()?;
    let bars = describe_bars(&config, &regions)?;
    let io_fds = regions.iter().map(|region| io_fds(client, region)).collect::<Result<Vec<_>, _>>()?;

    let list = capabilities::standard(&config);
    let find = |wanted| list.iter().find(|(id, _)| *id == wanted).map(|(_, offset)| *offset);
    let vectors = |irq| client.irq_info(irq).map(|info| info.count);
    let msi = match find(id::MSI) {
        Some(offset) => msi(&config, offset, vectors(pci::MSI_IRQ)?),
        None => None,
    };
    let msix = match find(id::MSIX) {
        Some(offset) => msix(&config, offset, vectors(pci::MSIX_IRQ)?, &regions)?,
        None => None,
    };
    let intx = config[usize::from(register::INTERRUPT_PIN)] != 0 && vectors(pci::INTX_IRQ)? > 0;
    let flr = function_level_reset(&config, find(id::EXPRESS), find(id::ADVANCED_FEATURES));
    let resettable = info.flags & wire::DEVICE_RESET_SUPPORTED != 0;
    Ok(Description { resettable, config, regions, io_fds, bars, flr, intx, msi, msix })
}

fn read_config(client: &Client) -> Result<Vec<u8>, AttachError> {
    let region = client.region_info(pci::CONFIG_REGION)?;
    if region.size < HEADER {
        return Err(AttachError::Device(format!("its configuration space has {} bytes", region.size)));
    }
    let size = usize::try_from(region.size.min(register::END.into())).unwrap_or(0);
    let mut config = vec![0; size];
    client.region_read(pci::CONFIG_REGION, 0, &mut config)?;
    Ok(config)
}

fn describe_bars(config: &[u8], regions: &[RegionInfo]) -> Result<Bars, AttachError> {
    let mut bars = Bars::default();
    for (index, region) in regions.iter().enumerate().filter(|(_, region)| region.size > 0) {
        let kind = if index == ROM {
            Kind::Rom
        } else {
            let at = register::BAR0 + 4 * u16::try_from(index).unwrap_or(0);
            let kind = Kind::from_register(read_u32(config, at));
            kind.ok_or_else(|| AttachError::Device(format!("BAR {index} is of a reserved type")))?
        };
        bars.add(index, kind, region.size)?;
    }
    Ok(bars)
}

fn io_fds(client: &Client, region: &RegionInfo) -> Result<Vec<IoFd>, AttachError> {
    if region.size == 0 || region.index as usize >= BARS {
        return Ok(Vec::new());
    }
    match client.region_io_fds(region.index, region.size) {
        // An optional message: whoever does not know it has none to offer.
        Err(outrigger_protocol::client::ClientError::Refused { .. }) => Ok(Vec::new()),
        other => Ok(other?),
    }
}

fn msi(config: &[u8], offset: u16, vectors: u32) -> Option<MsiCapability> {
    let control = read_u16(config, offset + 2);
    let capable = 1 << ((control >> 1) & 0x7).min(5);
    let vectors = vectors.min(capable);
    let (wide, maskable) = (control & 1 << 7 != 0, control & 1 << 8 != 0);
    (vectors > 0).then_some(MsiCapability { offset, vectors, wide, maskable })
}

fn msix(
    config: &[u8],
    offset: u16,
    vectors: u32,
    regions: &[RegionInfo],
) -> Result<Option<MsixCapability>, AttachError> {
    let table_vectors = (read_u16(config, offset + 2) & 0x7ff) + 1;
    if vectors == 0 {
        return Ok(None);
    }
    let place = |register: u32| (register & 0x7, u64::from(register & !0x7));
    let msix = MsixCapability {
        offset,
        vectors: u16::try_from(vectors).unwrap_or(u16::MAX).min(table_vectors),
        table: place(read_u32(config, offset + 4)),
        pba: place(read_u32(config, offset + 8)),
    };
    let fits = |(bar, at): (u32, u64), size: u64| {
        regions.get(bar as usize).is_some_and(|region| at.checked_add(size).is_some_and(|end| end <= region.size))
    };
    if !fits(msix.table, msix.table_size()) || !fits(msix.pba, msix.pba_size()) {
        return Err(AttachError::Device("its MSI-X table is not within a BAR".into()));
    }
    Ok(Some(msix))
}

/// PCI Express Base 5.0, section 7.5.3 (device capabilities bit 28, device control bit 15), or the Advanced Features
/// capability (capabilities bit 1, control bit 0).
fn function_level_reset(config: &[u8], express: Option<u16>, advanced: Option<u16>) -> Option<(u16, u8)> {
    let express = express.filter(|&at| read_u32(config, at + 4) & 1 << 28 != 0).map(|at| (at + 9, 7));
    let advanced = advanced.filter(|&at| read_u16(config, at + 3) & 1 << 1 != 0).map(|at| (at + 4, 0));
    express.or(advanced)
}
