//! COM1: the 16550 UART that the guest's `ttyS0` is. The registers are vm-superio's; added here are flow control of the
//! input, the break condition, and the place on the [`Bus`](crate::machine::bus::Bus).

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::bus::BusDevice;

/// I/O ports that the UART has.
pub const PORTS: u64 = 8;

// Offsets of registers (PC16550D data sheet, section 8.0 "Registers", table II).
const DATA: u8 = 0;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

/// Modem control: what is sent comes back, the line is cut off.
const LOOPBACK: u8 = 0x10;
/// Line status: the byte to be read next is a break.
const BREAK_INTERRUPT: u8 = 0x10;

/// Bytes that the receive FIFO holds.
const FIFO: usize = 64;

/// One item received on the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A character.
    Byte(u8),
    /// The break condition, on which Linux expects a SysRq key.
    Break,
}

/// Raises GSI 4 by an irqfd.
struct Interrupt(Arc<EventFd>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the guest's output goes.
type Line = Box<dyn Write + Send>;

struct Uart {
    registers: vm_superio::Serial<Interrupt, NoEvents, Line>,
    /// The one byte in the FIFO is a break; `Some(true)` when the line status told so already.
    line_break: Option<bool>,
    /// Input was refused since the FIFO was last empty.
    refused: bool,
}

/// See the [module](self).
pub struct Serial {
    uart: Mutex<Uart>,
    interrupt: Arc<EventFd>,
    room: EventFd,
}

impl Serial {
    /// A UART that sends its output to `line`, which must neither block for long nor fail.
    ///
    /// # Errors
    /// The host's, where it is out of descriptors.
    pub fn new(line: Line) -> io::Result<Self> {
        let interrupt = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let registers = vm_superio::Serial::new(Interrupt(Arc::clone(&interrupt)), line);
        let uart = Mutex::new(Uart { registers, line_break: None, refused: false });
        Ok(Serial { uart, interrupt, room: EventFd::new(EFD_NONBLOCK)? })
    }

    /// The eventfd to register as irqfd, edge-triggered, for the UART's interrupt line (GSI 4).
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Becomes readable when [`receive`](Self::receive) refused something and it may be offered again.
    pub fn room(&self) -> &EventFd {
        &self.room
    }

    /// Offers the guest what arrived on the line. `false`: there is no room for it now; [`room`](Self::room) tells
    /// when to try again.
    #[must_use]
    pub fn receive(&self, received: Received) -> bool {
        let mut uart = self.lock();
        let queued = FIFO - uart.registers.fifo_capacity();
        let taken = !uart.is_cut_off()
            && uart.line_break.is_none()
            && match received {
                Received::Byte(byte) => queued < FIFO && uart.enqueue(byte),
                // The line status speaks of the next byte only, so a break is alone in the FIFO.
                Received::Break => queued == 0 && uart.enqueue(0),
            };
        if taken && received == Received::Break {
            uart.line_break = Some(false);
        }
        uart.refused |= !taken;
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals that refused input can be offered again, once the guest has read everything: one wake-up per FIFO.
    fn wake_refused(&self, uart: &mut Uart) {
        if uart.refused && uart.registers.fifo_capacity() == FIFO && !uart.is_cut_off() {
            uart.refused = false;
            // Fails only with 2^64-2 wake-ups unread.
            let _ = self.room.write(1);
        }
    }
}

impl Uart {
    fn is_cut_off(&mut self) -> bool {
        self.registers.read(MODEM_CONTROL) & LOOPBACK != 0
    }

    fn enqueue(&mut self, byte: u8) -> bool {
        match self.registers.enqueue_raw_bytes(&[byte]) {
            Ok(count) => count == 1,
            // The byte is in the FIFO, and the interrupt is pending already: the eventfd's counter is full.
            Err(vm_superio::serial::Error::Trigger(_)) => true,
            Err(_) => false,
        }
    }

    fn read(&mut self, register: u8) -> u8 {
        let value = self.registers.read(register);
        match (register, &mut self.line_break) {
            (LINE_STATUS, Some(told @ false)) => {
                *told = true;
                value | BREAK_INTERRUPT
            }
            (DATA, Some(_)) if self.registers.fifo_capacity() == FIFO => {
                self.line_break = None;
                value
            }
            _ => value,
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        // The line takes everything, and an interrupt that cannot be raised is pending already.
        if let Err(error) = self.registers.write(register, value) {
            log::debug!("serial port: {error}");
        }
    }
}

/// Accesses wider than a byte reach consecutive registers, as they do on the ISA bus.
impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.lock();
        for (register, byte) in (offset..PORTS).zip(data.iter_mut()) {
            *byte = uart.read(register.to_le_bytes()[0]);
        }
        self.wake_refused(&mut uart);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.lock();
        for (register, byte) in (offset..PORTS).zip(data) {
            uart.write(register.to_le_bytes()[0], *byte);
        }
        self.wake_refused(&mut uart);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const INTERRUPT_ENABLE: u8 = 1;
    const LINE_CONTROL: u8 = 3;
    /// Line control: offsets 0 and 1 are the baud rate's divisor.
    const DIVISOR_LATCH: u8 = 0x80;
    const DATA_READY: u8 = 0x01;
    const TRANSMITTER_EMPTY: u8 = 0x60;

    struct Wire(Sender<u8>);

    impl Write for Wire {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            for byte in bytes {
                self.0.send(*byte).unwrap();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn uart() -> (Serial, Receiver<u8>) {
        let (wire, sent) = channel();
        (Serial::new(Box::new(Wire(wire))).unwrap(), sent)
    }

    fn inb(serial: &Serial, register: u8) -> u8 {
        let mut byte = [0];
        serial.read(register.into(), &mut byte);
        byte[0]
    }

    fn outb(serial: &Serial, register: u8, value: u8) {
        serial.write(register.into(), &[value]);
    }

    #[test]
    fn what_the_guest_sends_goes_down_the_line() {
        let (serial, sent) = uart();
        for byte in b"hello" {
            assert_eq!(inb(&serial, LINE_STATUS), TRANSMITTER_EMPTY);
            outb(&serial, DATA, *byte);
        }
        assert_eq!(sent.try_iter().collect::<Vec<_>>(), b"hello");
    }

    #[test]
    fn received_bytes_raise_the_interrupt_and_are_read_in_order() {
        let (serial, _sent) = uart();
        outb(&serial, INTERRUPT_ENABLE, 1);
        assert!(serial.interrupt().read().is_err(), "nothing is pending");
        assert!(serial.receive(Received::Byte(b'a')) && serial.receive(Received::Byte(b'b')));
        assert!(serial.interrupt().read().is_ok());
        assert_eq!((inb(&serial, LINE_STATUS) & DATA_READY, inb(&serial, DATA)), (DATA_READY, b'a'));
        assert_eq!((inb(&serial, LINE_STATUS) & DATA_READY, inb(&serial, DATA)), (DATA_READY, b'b'));
        assert_eq!(inb(&serial, LINE_STATUS) & DATA_READY, 0);
    }

    #[test]
    fn a_full_fifo_refuses_and_tells_when_it_was_read_empty() {
        let (serial, _sent) = uart();
        for _ in 0..FIFO {
            assert!(serial.receive(Received::Byte(7)));
        }
        assert!(!serial.receive(Received::Byte(8)));
        for _ in 1..FIFO {
            assert_eq!(inb(&serial, DATA), 7);
            assert!(serial.room().read().is_err());
        }
        assert_eq!(inb(&serial, DATA), 7);
        assert_eq!(serial.room().read().unwrap(), 1);
        assert!(serial.receive(Received::Byte(8)));
        inb(&serial, DATA);
        assert!(serial.room().read().is_err(), "nobody was refused since");
    }

    #[test]
    fn a_break_is_told_by_the_line_status_once_and_read_as_zero() {
        let (serial, _sent) = uart();
        assert!(serial.receive(Received::Byte(b'a')));
        assert!(!serial.receive(Received::Break), "a byte is before it");
        assert_eq!(inb(&serial, DATA), b'a');
        assert_eq!(serial.room().read().unwrap(), 1);
        assert!(serial.receive(Received::Break));
        assert!(!serial.receive(Received::Byte(b'h')), "the break is alone");
        assert_eq!(inb(&serial, LINE_STATUS), TRANSMITTER_EMPTY | DATA_READY | BREAK_INTERRUPT);
        assert_eq!(inb(&serial, LINE_STATUS), TRANSMITTER_EMPTY | DATA_READY);
        assert_eq!(inb(&serial, DATA), 0);
        assert_eq!(inb(&serial, LINE_STATUS), TRANSMITTER_EMPTY);
        assert_eq!(serial.room().read().unwrap(), 1);
        assert!(serial.receive(Received::Byte(b'h')));
        assert_eq!(inb(&serial, DATA), b'h');
    }

    #[test]
    fn reading_the_divisor_leaves_a_break_alone() {
        let (serial, _sent) = uart();
        assert!(serial.receive(Received::Break));
        outb(&serial, LINE_CONTROL, DIVISOR_LATCH);
        inb(&serial, DATA);
        outb(&serial, LINE_CONTROL, 3);
        assert_eq!(inb(&serial, LINE_STATUS) & BREAK_INTERRUPT, BREAK_INTERRUPT);
    }

    #[test]
    fn in_loopback_the_line_is_cut_off_until_it_ends() {
        let (serial, sent) = uart();
        outb(&serial, MODEM_CONTROL, LOOPBACK);
        assert!(!serial.receive(Received::Byte(b'a')));
        outb(&serial, DATA, b'z');
        assert_eq!((inb(&serial, DATA), sent.try_recv().is_err()), (b'z', true));
        outb(&serial, MODEM_CONTROL, 0);
        assert_eq!(serial.room().read().unwrap(), 1);
        assert!(serial.receive(Received::Byte(b'a')));
    }

    #[test]
    fn wide_accesses_reach_consecutive_registers_and_stop_at_the_last() {
        let (serial, sent) = uart();
        serial.write(0, b"x\x01");
        assert_eq!((sent.try_recv(), inb(&serial, INTERRUPT_ENABLE)), (Ok(b'x'), 1));
        let mut data = [0xee; 4];
        serial.read(6, &mut data);
        assert_eq!(data[2..], [0xee, 0xee]);
    }
}
