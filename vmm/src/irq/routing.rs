//! KVM's table from GSI numbers to pins of interrupt controllers and to messages.
//!
//! The first 24 GSIs are the I/O APIC's pins, the first 16 of them the two 8259s' as well: a guest that uses one masks the
//! other. The rest are handed out to message-signalled vectors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::Cap;

use super::IrqError;
use crate::machine::vm::Vm;

/// Pins of KVM's I/O APIC.
const IOAPIC_PINS: u32 = 24;
/// Pins of each of the two 8259s.
const PIC_PINS: u32 = 8;

/// A device's write that interrupts a processor (PCI Local Bus 3.0, section 6.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Address.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// The routing table.
#[derive(Debug)]
pub struct Routes {
    vm: Arc<Vm>,
    limit: u32,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Messages by GSI, from [`IOAPIC_PINS`] on; `None`: reserved, nothing set yet.
    messages: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    Free,
    Reserved,
    Message(Message),
}

/// One GSI for messages, given back when dropped.
#[derive(Debug)]
pub struct Route {
    routes: Arc<Routes>,
    gsi: u32,
}

impl Routes {
    /// Routes GSIs 0 to 23 to the I/O APIC, and 0 to 15 to the 8259s.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn new(vm: Arc<Vm>) -> Result<Arc<Self>, IrqError> {
        // KVM counts entries, of which the GSIs up to 15 have two.
        let entries = u32::try_from(vm.fd().check_extension_int(Cap::IrqRouting)).unwrap_or(0);
        let limit = entries.saturating_sub(2 * PIC_PINS).max(IOAPIC_PINS);
        let routes = Self { vm, limit, table: Mutex::default() };
        routes.apply(&routes.lock())?;
        Ok(Arc::new(routes))
    }

    /// Takes a GSI that nobody uses.
    ///
    /// # Errors
    /// If there is none.
    pub fn reserve(self: &Arc<Self>) -> Result<Route, IrqError> {
        let mut table = self.lock();
        let index = table.messages.iter().position(|slot| *slot == Slot::Free).unwrap_or(table.messages.len());
        let gsi = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(IOAPIC_PINS);
        if gsi >= self.limit {
            return Err(IrqError::RoutesFull(self.limit));
        }
        if index == table.messages.len() {
            table.messages.push(Slot::Reserved);
        } else {
            table.messages[index] = Slot::Reserved;
        }
        Ok(Route { routes: self.clone(), gsi })
    }

    fn set(&self, gsi: u32, slot: Slot) -> Result<(), IrqError> {
        let mut table = self.lock();
        let place = &mut table.messages[(gsi - IOAPIC_PINS) as usize];
        if *place == slot {
            return Ok(());
        }
        let known_to_kvm = matches!(*place, Slot::Message(_)) || matches!(slot, Slot::Message(_));
        *place = slot;
        if known_to_kvm { self.apply(&table) } else { Ok(()) }
    }

    /// Hands the whole table to KVM, which knows no smaller change.
    fn apply(&self, table: &Table) -> Result<(), IrqError> {
        let pin = |gsi: u32, irqchip, pin| {
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
            (entry.u.irqchip.irqchip, entry.u.irqchip.pin) = (irqchip, pin);
            entry
        };
        let pins = (0..IOAPIC_PINS)
            .map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi))
            .chain((0..PIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)))
            .chain((0..PIC_PINS).map(|gsi| pin(PIC_PINS + gsi, KVM_IRQCHIP_PIC_SLAVE, gsi)));
        let messages = (IOAPIC_PINS..).zip(&table.messages).filter_map(|(gsi, slot)| {
            let Slot::Message(message) = slot else { return None };
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            let bytes = message.address.to_le_bytes();
            let (low, high) = bytes.split_at(4);
            entry.u.msi.address_lo = u32::from_le_bytes(low.try_into().expect("half of eight bytes"));
            entry.u.msi.address_hi = u32::from_le_bytes(high.try_into().expect("half of eight bytes"));
            entry.u.msi.data = message.data;
            Some(entry)
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| IrqError::RoutesFull(self.limit))?;
        let failed = |source: vmm_sys_util::errno::Error| IrqError::Kvm {
            call: "KVM_SET_GSI_ROUTING",
            gsi: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            source: source.into(),
        };
        self.vm.fd().set_gsi_routing(&routing).map_err(failed)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Route {
    /// The GSI.
    #[must_use]
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Sends `message` whenever the GSI fires. Nothing is asked of KVM if that is so already.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn set(&self, message: Message) -> Result<(), IrqError> {
        self.routes.set(self.gsi, Slot::Message(message))
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Err(error) = self.routes.set(self.gsi, Slot::Free) {
            log::error!("giving back GSI {}: {error}", self.gsi);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gsis_are_given_back_and_used_again() {
        let routes = Routes::new(Vm::new(1).unwrap()).unwrap();
        let first = routes.reserve().unwrap();
        let second = routes.reserve().unwrap();
        assert_eq!((first.gsi(), second.gsi()), (24, 25));
        first.set(Message { address: 0xfee0_0000, data: 0x41 }).unwrap();
        drop(first);
        assert_eq!(routes.reserve().unwrap().gsi(), 24);
        assert_eq!(routes.lock().messages.len(), 2);
        drop(second);
    }

    #[test]
    fn the_table_ends_where_kvm_says() {
        let routes = Routes::new(Vm::new(1).unwrap()).unwrap();
        let all: Vec<_> = (IOAPIC_PINS..routes.limit).map(|_| routes.reserve().unwrap()).collect();
        assert!(matches!(routes.reserve(), Err(IrqError::RoutesFull(_))));
        all.last().unwrap().set(Message { address: 0xfee0_0000, data: 0x41 }).unwrap();
    }
}
