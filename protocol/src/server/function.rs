//! A PCI function for who writes a device: what all of them have in common, so that a device is its registers.

use std::sync::Arc;

use nix::errno::Errno;

use super::config_space::ConfigSpace;
use super::device::{Device, Region};
use super::interrupts::{Interrupts, Irq};
use super::memory::Memory;
use crate::pci::{CONFIG_REGION, INTX_IRQ};

/// The registers of a device, and what happens when they are written.
pub trait Registers {
    /// Reads `data.len()` bytes at `offset` of a BAR; the range is within the BAR, its width is the guest's choice.
    fn read(&mut self, bar: u32, offset: usize, data: &mut [u8]);

    /// Writes at `offset` of a BAR; the range is within the BAR. What the device does with the rest of the machine it
    /// does by `bus`.
    fn write(&mut self, bar: u32, offset: usize, data: &[u8], bus: &mut Bus);

    /// Back to the state after power-on. The interrupt pin is lowered by the caller.
    fn reset(&mut self);
}

/// What a device reaches of its client: memory, and the interrupt pin.
#[derive(Debug)]
pub struct Bus {
    config: ConfigSpace,
    memory: Memory,
    interrupts: Option<Arc<Interrupts>>,
    intx: bool,
}

impl Bus {
    /// Guest memory, for DMA.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Raises or lowers the interrupt pin. A raised pin interrupts again each time the guest has ended the interrupt
    /// and whenever it allows interrupts again, until it is lowered: usually when the driver writes to a register.
    pub fn set_intx(&mut self, raised: bool) {
        self.intx = raised;
        self.config.set_interrupt_status(raised);
        self.fire();
    }

    fn fire(&self) {
        if let Some(interrupts) = self.interrupts.as_ref().filter(|_| self.intx && !self.config.intx_disabled()) {
            interrupts.trigger(INTX_IRQ, 0);
        }
    }
}

/// [`Registers`] behind a [`ConfigSpace`]: a [`Device`] that a client can attach.
#[derive(Debug)]
pub struct Function<R> {
    registers: R,
    bus: Bus,
}

impl<R: Registers> Function<R> {
    /// Puts `registers` behind the BARs that `config` has.
    pub fn new(config: ConfigSpace, registers: R) -> Self {
        Self { registers, bus: Bus { config, memory: Memory::default(), interrupts: None, intx: false } }
    }
}

impl<R: Registers> Device for Function<R> {
    fn regions(&self) -> &[Region] {
        self.bus.config.regions()
    }

    fn irqs(&self) -> &[Irq] {
        self.bus.config.irqs()
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.bus.interrupts = Some(Arc::clone(interrupts));
    }

    fn memory_changed(&mut self, memory: &Memory) {
        self.bus.memory = memory.clone();
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        match region {
            CONFIG_REGION => self.bus.config.read(offset, data),
            bar => self.registers.read(bar, offset, data),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        if region != CONFIG_REGION {
            self.registers.write(region, offset, data, &mut self.bus);
            return Ok(());
        }
        let was_disabled = self.bus.config.intx_disabled();
        self.bus.config.write(offset, data);
        if was_disabled {
            self.bus.fire();
        }
        Ok(())
    }

    fn unmasked(&mut self, irq: u32) {
        if irq == INTX_IRQ {
            self.bus.fire();
        }
    }

    fn reset(&mut self) {
        self.registers.reset();
        self.bus.config.reset();
        self.bus.set_intx(false);
    }

    fn disconnected(&mut self) {
        self.bus.interrupts = None;
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    const COMMAND: u64 = 4;

    /// One byte: the level of the pin.
    struct Pin(u8);

    impl Registers for Pin {
        fn read(&mut self, _bar: u32, _offset: usize, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&mut self, _bar: u32, _offset: usize, data: &[u8], bus: &mut Bus) {
            self.0 = data[0];
            bus.set_intx(self.0 != 0);
        }

        fn reset(&mut self) {
            self.0 = 0;
        }
    }

    struct Client {
        function: Function<Pin>,
        interrupts: Arc<Interrupts>,
        eventfd: EventFd,
    }

    impl Client {
        fn new() -> Self {
            let config = ConfigSpace::new(0x1af4, 0x10f0, 0x08_80_00).with_bar(0, 16).with_intx();
            let mut function = Function::new(config, Pin(0));
            let interrupts = Arc::new(Interrupts::new(function.irqs()));
            function.connected(&interrupts);
            let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
            interrupts.connect(INTX_IRQ, 0, Some(eventfd.try_clone().unwrap()));
            Self { function, interrupts, eventfd }
        }

        fn set_pin(&mut self, level: u8) {
            self.function.write(0, 0, &[level]).unwrap();
        }

        fn set_command(&mut self, value: u16) {
            self.function.write(CONFIG_REGION, COMMAND, &value.to_le_bytes()).unwrap();
        }

        /// What a client does when the guest has ended the interrupt.
        fn unmask(&mut self) {
            self.interrupts.set_masked(INTX_IRQ, 0, false);
            self.function.unmasked(INTX_IRQ);
        }

        fn status(&mut self) -> u8 {
            let mut status = [0];
            self.function.read(CONFIG_REGION, COMMAND + 2, &mut status).unwrap();
            status[0]
        }

        fn fired(&self) -> u64 {
            self.eventfd.read().unwrap_or(0)
        }
    }

    #[test]
    fn a_raised_pin_fires_after_each_end_of_interrupt_until_it_is_lowered() {
        let mut client = Client::new();
        client.set_pin(1);
        client.set_pin(1);
        assert_eq!((client.fired(), client.status()), (1, 8));
        client.unmask();
        assert_eq!(client.fired(), 1);
        client.set_pin(0);
        client.unmask();
        assert_eq!((client.fired(), client.status()), (0, 0));
    }

    #[test]
    fn a_pin_that_the_guest_forbids_fires_when_it_is_allowed_again() {
        let mut client = Client::new();
        client.set_command(0x400);
        client.set_pin(1);
        assert_eq!((client.fired(), client.status()), (0, 8));
        client.set_command(0);
        assert_eq!(client.fired(), 1);
    }

    #[test]
    fn reset_lowers_the_pin_and_clears_the_registers() {
        let mut client = Client::new();
        client.set_pin(1);
        client.set_command(0x400);
        assert_eq!(client.fired(), 1);
        client.function.reset();
        client.unmask();
        let mut register = [0xff];
        client.function.read(0, 0, &mut register).unwrap();
        assert_eq!((client.fired(), client.status(), register), (0, 0, [0]));
    }
}
