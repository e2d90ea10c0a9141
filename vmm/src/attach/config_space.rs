//! Which bytes of a device's configuration space are the VMM's: everything that says where the device is and how it
//! interrupts. The rest is the server's region 7.

use std::collections::BTreeMap;
use std::ops::Range;

use super::discovery::{Description, MsiCapability};
use super::interrupts::Mode;
use crate::irq::Message;
use crate::irq::msi::MsiState;
use crate::pci::bar::{BARS, Bars, ROM};
use crate::pci::{capabilities, command, register};

const SIZE: usize = register::END as usize;
/// Message control of MSI-X: enable, and function mask.
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// The VMM's bytes, their values, and which of their bits a guest can change.
pub(super) struct ConfigSpace {
    bytes: Vec<u8>,
    owned: Vec<bool>,
    writable: Vec<u8>,
    /// As after power-on, for reset.
    initial: Vec<u8>,
    size: usize,
    /// The value last told to the server of each byte that a guest wrote, BARs excluded.
    told: BTreeMap<u16, u8>,
    msi: Option<MsiCapability>,
    msix: Option<u16>,
    /// There is a pin.
    intx: bool,
}

impl ConfigSpace {
    pub(super) fn new(description: &Description, interrupt_line: u8) -> Self {
        let size = description.config.len();
        let mut bytes = description.config.clone();
        bytes.resize(SIZE, 0);
        let mut space = Self {
            bytes,
            owned: vec![false; SIZE],
            writable: vec![0; SIZE],
            initial: Vec::new(),
            size,
            told: BTreeMap::new(),
            msi: description.msi,
            msix: description.msix.map(|msix| msix.offset),
            intx: description.intx,
        };
        space.own(register::COMMAND, &[0, 0], &command::WRITABLE.to_le_bytes());
        space.own(register::HEADER_TYPE, &[0], &[0]);
        space.own(register::INTERRUPT_LINE, &[interrupt_line], &[0xff]);
        space.own(register::INTERRUPT_PIN, &[u8::from(description.intx)], &[0]);
        space.own(register::BAR0, &[0; 4 * BARS], &[0; 4 * BARS]);
        space.own(register::ROM, &[0; 4], &[0; 4]);
        if let Some(msi) = description.msi {
            // Enable and the number of granted vectors; the messages and the masks whole.
            let control = capabilities::read_u16(&description.config, msi.offset + 2) & !0x71;
            space.own(msi.offset + 2, &control.to_le_bytes(), &[0x71, 0]);
            let rest = msi_end(&msi) - (msi.offset + 4);
            space.own(msi.offset + 4, &vec![0; rest.into()], &vec![0xff; rest.into()]);
        }
        if let Some(offset) = space.msix {
            let control = capabilities::read_u16(&description.config, offset + 2) & !(MSIX_ENABLE | MSIX_MASK);
            space.own(offset + 2, &control.to_le_bytes(), &(MSIX_ENABLE | MSIX_MASK).to_le_bytes());
        }
        for offset in capabilities::hidden_extended(&description.config) {
            // A capability without an id is passed over, and the list goes on behind it.
            space.own(offset, &[0, 0], &[0, 0]);
        }
        space.initial = space.bytes.clone();
        space
    }

    fn own(&mut self, offset: u16, values: &[u8], writable: &[u8]) {
        let range = usize::from(offset)..(usize::from(offset) + values.len()).min(SIZE);
        let length = range.len();
        self.owned[range.clone()].fill(true);
        self.bytes[range.clone()].copy_from_slice(&values[..length]);
        self.writable[range].copy_from_slice(&writable[..length]);
    }

    /// Whether the server has to be asked for any of these bytes.
    pub(super) fn needs_server(&self, range: &Range<u16>) -> bool {
        let range = as_usize(range);
        range.end <= self.size && self.owned[range].iter().any(|owned| !owned)
    }

    /// Puts the VMM's bytes over what the server answered. Beyond the end there are ones.
    pub(super) fn overlay(&self, range: &Range<u16>, data: &mut [u8]) {
        for (at, byte) in as_usize(range).zip(data) {
            if at >= self.size {
                *byte = 0xff;
            } else if self.owned[at] {
                *byte = self.bytes[at];
            }
        }
    }

    /// Takes what the guest wrote to the VMM's bytes, except for the BARs.
    pub(super) fn write(&mut self, range: &Range<u16>, data: &[u8]) {
        for (at, byte) in as_usize(range).zip(data) {
            let writable = self.writable[at];
            self.bytes[at] = self.bytes[at] & !writable | byte & writable;
        }
    }

    /// Takes what the guest wrote to the BARs; whether it wrote to any.
    pub(super) fn write_bars(&mut self, range: &Range<u16>, data: &[u8], bars: &mut Bars) -> bool {
        let double_word = range.start & !3;
        let index = match double_word {
            register::ROM => ROM,
            register::BAR0..register::CARDBUS => usize::from((double_word - register::BAR0) / 4),
            _ => return false,
        };
        let mut value = bars.read(index).to_le_bytes();
        let lane = usize::from(range.start - double_word);
        value[lane..lane + data.len()].copy_from_slice(data);
        bars.write(index, u32::from_le_bytes(value));
        self.refresh_bars(bars);
        true
    }

    /// Remembers what the server was told.
    pub(super) fn remember(&mut self, range: &Range<u16>, data: &[u8]) {
        self.told.extend(range.clone().zip(data.iter().copied()));
    }

    /// The writes for a server that knows nothing yet, each within one double word; the command register comes last.
    pub(super) fn replay(&self) -> Vec<(u16, Vec<u8>)> {
        let mut writes: Vec<(u16, Vec<u8>)> = Vec::new();
        for (&at, &byte) in &self.told {
            match writes.last_mut() {
                Some((start, bytes)) if at % 4 != 0 && usize::from(at - *start) == bytes.len() => bytes.push(byte),
                _ => writes.push((at, vec![byte])),
            }
        }
        let (last, mut first): (Vec<_>, _) = writes.into_iter().partition(|(at, _)| at & !3 == register::COMMAND);
        first.extend(last);
        first
    }

    /// Shows the BARs as they are now.
    pub(super) fn refresh_bars(&mut self, bars: &Bars) {
        for index in 0..BARS {
            let at = usize::from(register::BAR0) + 4 * index;
            self.bytes[at..at + 4].copy_from_slice(&bars.read(index).to_le_bytes());
        }
        let at = usize::from(register::ROM);
        self.bytes[at..at + 4].copy_from_slice(&bars.read(ROM).to_le_bytes());
    }

    /// Back to the state after power-on. The BARs are refreshed by their owner.
    pub(super) fn reset(&mut self) {
        self.told.clear();
        self.bytes.copy_from_slice(&self.initial);
    }

    pub(super) fn command(&self) -> u16 {
        self.u16(register::COMMAND)
    }

    /// How the device interrupts now: MSI-X goes before MSI, and MSI before INTx. While bus mastering is off, messages
    /// stay pending as if they were masked.
    pub(super) fn mode(&self) -> Mode {
        let command = self.command();
        let is_master = command & command::BUS_MASTER != 0;
        let msix = self.msix.map(|offset| self.u16(offset + 2)).filter(|control| control & MSIX_ENABLE != 0);
        let msi = self.msi();
        // A function that decodes nothing has not been started, or is being sized.
        let intx = command & (command::IO | command::MEMORY) != 0 && command & command::INTX_DISABLE == 0;
        match msix {
            Some(control) => Mode::Msix { masked: control & MSIX_MASK != 0 || !is_master },
            None if msi.enabled => Mode::Msi(MsiState { mask: if is_master { msi.mask } else { u32::MAX }, ..msi }),
            None if intx && self.intx => Mode::Intx,
            None => Mode::None,
        }
    }

    fn msi(&self) -> MsiState {
        let Some(msi) = self.msi else { return MsiState::default() };
        let control = self.u16(msi.offset + 2);
        let high = if msi.wide { u64::from(self.u32(msi.offset + 8)) << 32 } else { 0 };
        let data_at = msi.offset + if msi.wide { 12 } else { 8 };
        let message = Message { address: u64::from(self.u32(msi.offset + 4)) | high, data: self.u16(data_at).into() };
        let mask = if msi.maskable { self.u32(data_at + 4) } else { 0 };
        let granted = 1 << ((control >> 4) & 0x7).min(5);
        MsiState { enabled: control & 1 != 0, message, granted, mask }
    }

    /// Where MSI's pending bits are, if it has any.
    pub(super) fn msi_pending_register(&self) -> Option<u16> {
        let msi = self.msi.filter(|msi| msi.maskable)?;
        Some(msi.offset + if msi.wide { 20 } else { 16 })
    }

    fn u16(&self, offset: u16) -> u16 {
        capabilities::read_u16(&self.bytes, offset)
    }

    fn u32(&self, offset: u16) -> u32 {
        capabilities::read_u32(&self.bytes, offset)
    }
}

/// Where the capability ends, pending bits excluded (PCI Local Bus 3.0, figure 6-9).
fn msi_end(msi: &MsiCapability) -> u16 {
    let data = if msi.wide { 12 } else { 8 };
    msi.offset + if msi.maskable { data + 8 } else { data + 2 }
}

fn as_usize(range: &Range<u16>) -> Range<usize> {
    range.start.into()..range.end.into()
}

/// Whether two ranges of registers have any in common.
pub(super) fn touches(range: &Range<u16>, offset: u16, length: u16) -> bool {
    range.start < offset + length && offset < range.end
}

#[cfg(test)]
mod tests {
    use super::super::discovery::MsixCapability;
    use super::super::testing::description;
    use super::*;

    const MSI: u16 = 0x50;
    const MSIX: u16 = 0x70;

    fn config_space() -> ConfigSpace {
        let mut description = description();
        description.intx = true;
        description.msi = Some(MsiCapability { offset: MSI, vectors: 4, wide: true, maskable: true });
        description.msix = Some(MsixCapability { offset: MSIX, vectors: 4, table: (0, 0), pba: (0, 0x800) });
        ConfigSpace::new(&description, 11)
    }

    fn write(space: &mut ConfigSpace, offset: u16, value: u16) {
        space.write(&(offset..offset + 2), &value.to_le_bytes());
    }

    #[test]
    fn msix_goes_before_msi_and_msi_before_intx() {
        let mut space = config_space();
        assert_eq!(space.mode(), Mode::None);
        write(&mut space, register::COMMAND, command::MEMORY);
        assert_eq!(space.mode(), Mode::Intx);
        write(&mut space, register::COMMAND, command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE);
        assert_eq!(space.mode(), Mode::None);
        write(&mut space, MSI + 4, 0x1000);
        write(&mut space, MSI + 12, 0x41);
        write(&mut space, MSI + 2, 0x11);
        let Mode::Msi(state) = space.mode() else { panic!("{:?}", space.mode()) };
        assert_eq!((state.message, state.granted), (Message { address: 0x1000, data: 0x41 }, 2));
        write(&mut space, MSIX + 2, MSIX_ENABLE | MSIX_MASK);
        assert_eq!(space.mode(), Mode::Msix { masked: true });
        write(&mut space, MSIX + 2, MSIX_ENABLE);
        assert_eq!(space.mode(), Mode::Msix { masked: false });
        space.reset();
        assert_eq!(space.mode(), Mode::None);
    }

    #[test]
    fn what_was_told_is_replayed_in_whole_accesses_and_enabled_last() {
        let mut space = config_space();
        for (at, data) in [(4, vec![6, 4]), (0x52, vec![1]), (0x50, vec![7, 8]), (0x52, vec![9]), (0x54, vec![5])] {
            space.remember(&(at..at + u16::try_from(data.len()).unwrap()), &data);
        }
        assert_eq!(space.replay(), [(0x50, vec![7, 8, 9]), (0x54, vec![5]), (4, vec![6, 4])]);
        space.reset();
        assert_eq!(space.replay(), []);
    }

    /// PCI Local Bus 3.0, section 6.2.2: a message is a memory write of the function's own.
    #[test]
    fn messages_stay_pending_while_bus_mastering_is_off() {
        let mut space = config_space();
        write(&mut space, register::COMMAND, command::MEMORY);
        write(&mut space, MSI + 2, 1);
        assert!(matches!(space.mode(), Mode::Msi(MsiState { mask: u32::MAX, .. })));
        write(&mut space, register::COMMAND, command::MEMORY | command::BUS_MASTER);
        assert!(matches!(space.mode(), Mode::Msi(MsiState { mask: 0, .. })));
        write(&mut space, MSIX + 2, MSIX_ENABLE);
        assert_eq!(space.mode(), Mode::Msix { masked: false });
        write(&mut space, register::COMMAND, command::MEMORY);
        assert_eq!(space.mode(), Mode::Msix { masked: true });
    }
}
