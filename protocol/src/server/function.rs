//! A PCI function for who writes a device: what all of them have in common, so that a device is its registers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::config_space::{ConfigSpace, Irqs, Regions};
use super::device::{Device, IoFd, Region};
use super::function_fds::Offered;
use super::function_migration::Moving;
use super::interrupts::{Interrupts, Irq};
use super::memory::Memory;
use super::migration::Migration;
use crate::pci::{BAR5_REGION, CONFIG_REGION, INTX_IRQ};

/// The registers of a device, and what happens when they are written. One access at a time, on the thread that serves the
/// client or on the one that serves the ioregionfd.
pub trait Registers: Send + 'static {
    /// Reads `data.len()` bytes at `offset` of a BAR; the range is within the BAR, its width is the guest's choice.
    fn read(&mut self, bar: u32, offset: usize, data: &mut [u8]);

    /// Writes at `offset` of a BAR; the range is within the BAR. What the device does with the rest of the machine it
    /// does by `bus`.
    fn write(&mut self, bar: u32, offset: usize, data: &[u8], bus: &mut Bus);

    /// Back to the state after power-on. The interrupt pin is lowered by the caller.
    fn reset(&mut self);

    /// The bytes that the registers are, always as many, if another process can go on from them: the function migrates then.
    /// Bytes put here may come from anybody, so every byte may have any value.
    fn state(&mut self) -> Option<&mut [u8]> {
        None
    }
}

/// A device's access to its client: memory, and the interrupt pin.
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

    pub(super) fn config(&self) -> &ConfigSpace {
        &self.config
    }

    pub(super) fn intx(&self) -> bool {
        self.intx
    }

    /// Restores the guest's writes to configuration space, and the level of the pin.
    pub(super) fn restore(&mut self, config: &[u8], intx: bool) {
        self.config.restore(config.iter().copied());
        self.config.set_interrupt_status(intx);
        self.intx = intx;
    }

    pub(super) fn fire(&self) {
        if let Some(interrupts) = self.interrupts.as_ref().filter(|_| self.intx && !self.config.intx_disabled()) {
            interrupts.trigger(INTX_IRQ, 0);
        }
    }
}

/// [`Registers`] behind a [`ConfigSpace`]: a [`Device`] that a client can attach.
///
/// All of its BARs are also offered as ioregionfds, on one descriptor: the two ways to the registers make one order, see
/// [`Function::with_doorbell`].
#[derive(Debug)]
pub struct Function<R> {
    regions: Regions,
    irqs: Irqs,
    shared: Arc<Mutex<Shared<R>>>,
    pub(super) offered: Offered,
    pub(super) moving: Moving,
}

/// State accessed by messages and by ioregionfd.
#[derive(Debug)]
pub(super) struct Shared<R> {
    pub(super) registers: R,
    pub(super) bus: Bus,
}

impl<R: Registers> Function<R> {
    /// Puts `registers` behind the BARs that `config` has.
    pub fn new(mut config: ConfigSpace, registers: R) -> Self {
        let (regions, irqs) = config.take_description();
        let bus = Bus { config, memory: Memory::default(), interrupts: None, intx: false };
        let shared = Arc::new(Mutex::new(Shared { registers, bus }));
        Self { regions, irqs, shared, offered: Offered::default(), moving: Moving::default() }
    }

    /// Says that nobody has to wait until a write within the `size` bytes at `offset` of a BAR has had its effect: a doorbell
    /// that carries data. By ioregionfd it is a posted write, and the guest goes on at once. All registers that it accesses
    /// after that are accessed after that, being on the same descriptor; configuration space is not, so a driver that looks
    /// for the effect there reads a register first.
    ///
    /// # Panics
    /// When the BAR ends before that, or there is one here.
    pub fn with_doorbell(mut self, bar: u32, offset: u64, size: u64) -> Self {
        let end = self.regions.get(bar as usize).map_or(0, |region| region.size);
        let fits = bar <= BAR5_REGION && size > 0 && offset.checked_add(size).is_some_and(|after| after <= end);
        assert!(fits, "no {size} bytes at {offset:#x} of BAR {bar}");
        self.offered.add_doorbell(bar, offset..offset + size);
        self
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared<R>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reset(registers: &mut impl Registers, bus: &mut Bus) {
    registers.reset();
    bus.config.reset();
    bus.set_intx(false);
}

impl<R: Registers> Device for Function<R> {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[Irq] {
        &self.irqs
    }

    fn connected(&mut self, interrupts: &Arc<Interrupts>) {
        self.shared().bus.interrupts = Some(Arc::clone(interrupts));
    }

    fn memory_changed(&mut self, memory: &Memory) {
        self.shared().bus.memory = memory.clone();
    }

    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let Shared { registers, bus } = &mut *self.shared();
        match region {
            CONFIG_REGION => bus.config.read(offset, data),
            bar => registers.read(bar, offset, data),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let Shared { registers, bus } = &mut *self.shared();
        if region != CONFIG_REGION {
            registers.write(region, offset, data, bus);
            return Ok(());
        }
        let was_disabled = bus.config.intx_disabled();
        if bus.config.write(offset, data) {
            reset(registers, bus);
        } else if was_disabled {
            bus.fire();
        }
        Ok(())
    }

    fn io_fds(&self, region: u32) -> Vec<IoFd<'_>> {
        let sizes = std::array::from_fn(|bar| self.regions[bar].size);
        self.offered.io_fds(region, sizes, &self.shared)
    }

    fn unmasked(&mut self, irq: u32) {
        if irq == INTX_IRQ {
            self.shared().bus.fire();
        }
    }

    fn reset(&mut self) {
        let mut shared = self.shared();
        let Shared { registers, bus } = &mut *shared;
        reset(registers, bus);
        drop(shared);
        self.moving = Moving::default();
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        let migrates = self.shared().registers.state().is_some();
        migrates.then_some(self)
    }

    fn disconnected(&mut self) {
        // First, and without the lock: then the client has no way to the registers any more.
        self.offered.withdraw();
        self.shared().bus.interrupts = None;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::super::interrupts::checked_eventfd;
    use super::*;
    use crate::ioregionfd::{AccessError, Requester, Size};
    use crate::server::IoFdKind;

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
            let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
            let theirs = eventfd.as_fd().try_clone_to_owned().unwrap();
            interrupts.connect(INTX_IRQ, 0, Some(checked_eventfd(theirs.into()).unwrap()));
            Self { function, interrupts, eventfd }
        }

        fn set_pin(&mut self, level: u8) {
            self.function.write(0, 0, &[level]).unwrap();
        }

        fn set_command(&mut self, value: u16) {
            self.function.write(CONFIG_REGION, COMMAND, &value.to_le_bytes()).unwrap();
        }

        /// Unmasks as a client does when the guest has ended the interrupt.
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

    /// The BARs of a function, as a client asks for their registers.
    fn offered(function: &Function<Pin>, bar: u32) -> Vec<(u64, u64, IoFdKind)> {
        function.io_fds(bar).iter().map(|io_fd| (io_fd.offset, io_fd.size, io_fd.kind)).collect()
    }

    #[test]
    fn all_bars_are_offered_on_one_descriptor_and_writes_to_doorbells_are_posted() {
        let config = ConfigSpace::new(0x1af4, 0x10f0, 0x08_80_00).with_bar(0, 16).with_bar(3, 0x1000);
        let function = Function::new(config, Pin(0))
            .with_doorbell(3, 0x20, 4)
            .with_doorbell(3, 0xff8, 8)
            .with_doorbell(3, 0x10, 8);
        let part = |bar: u64, offset, size, posted_writes| {
            (offset, size, IoFdKind::Ioregionfd { user_data: bar << 32 | offset, posted_writes })
        };
        assert_eq!(offered(&function, 0), [part(0, 0, 16, false)]);
        let parts = [
            part(3, 0, 0x10, false),
            part(3, 0x10, 8, true),
            part(3, 0x18, 8, false),
            part(3, 0x20, 4, true),
            part(3, 0x24, 0xff8 - 0x24, false),
            part(3, 0xff8, 8, true),
        ];
        assert_eq!(offered(&function, 3), parts);
        let fds = [0, 3].map(|bar| function.io_fds(bar)[0].fd.as_raw_fd());
        assert_eq!(fds[0], fds[1]);
        for region in [1, 5, 6, CONFIG_REGION, u32::MAX] {
            assert!(offered(&function, region).is_empty());
        }
    }

    #[test]
    fn a_bar_is_the_same_by_ioregionfd_until_the_client_leaves() {
        let mut client = Client::new();
        let fd = client.function.io_fds(0)[0].fd.try_clone_to_owned().unwrap();
        let requester = Requester::new(Arc::new(fd.into()), std::time::Duration::from_secs(20)).unwrap();
        requester.write(0, 0, Size::One, 1, true).unwrap();
        assert_eq!(requester.read(0, 12, Size::Four).unwrap(), 0x0101_0101);
        assert_eq!(client.fired(), 1);
        client.set_pin(3);
        // Where the sub-region starts counts, too.
        assert_eq!(requester.read(14, 1, Size::One).unwrap(), 3);
        for (user_data, offset) in [(0, 15), (14, 1), (15, u64::MAX), (1 << 32, 0), (u64::MAX, 0), (0, u64::MAX)] {
            requester.write(user_data, offset, Size::Two, 0, false).unwrap();
            assert_eq!(requester.read(user_data, offset, Size::Two).unwrap(), 0);
        }
        assert_eq!(requester.read(0, 0, Size::One).unwrap(), 3);
        client.function.disconnected();
        assert!(matches!(requester.read(0, 0, Size::One), Err(AccessError::HungUp)));
    }

    #[test]
    fn a_driver_resets_the_function_by_its_capability() {
        let config = ConfigSpace::new(0x1af4, 0x10f0, 0x08_80_00).with_bar(0, 16).with_function_level_reset();
        let mut function = Function::new(config, Pin(0));
        function.write(0, 0, &[5]).unwrap();
        function.write(CONFIG_REGION, COMMAND, &[4]).unwrap();
        function.write(CONFIG_REGION, 0x48, &[0, 0x80]).unwrap();
        let (mut register, mut command) = ([0xff], [0xff]);
        function.read(0, 0, &mut register).unwrap();
        function.read(CONFIG_REGION, COMMAND, &mut command).unwrap();
        assert_eq!((register, command), ([0], [0]));
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
