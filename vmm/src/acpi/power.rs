//! The registers by which a guest ends itself: ACPI's PM1 registers and its reset register (ACPI 6.5, sections 4.8.3.1 "PM1
//! Event Grouping", 4.8.3.2 "PM1 Control Grouping" and 4.8.3.6 "Reset Register"), and the keyboard controller's reset command,
//! which guests without ACPI use, and others fall back to.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::control::outcome::{Outcome, Stop};
use crate::machine::bus::BusDevice;

/// Offsets into [`crate::machine::layout::POWER`]. PM1 status, two bytes, is followed by PM1 enable.
pub(super) const PM1_EVENT: u64 = 0;
pub(super) const PM1_EVENT_SIZE: u8 = 4;
pub(super) const PM1_CONTROL: u64 = 4;
pub(super) const PM1_CONTROL_SIZE: u8 = 2;
pub(crate) const RESET_REGISTER: u64 = 6;
/// The reset register's value that resets the machine.
pub(crate) const RESET_VALUE: u8 = 1;
/// The sleep type that `\_S5` tells the guest to write; QEMU's, too.
pub(super) const SLEEP_TYPE_S5: u8 = 0;

const PM1_ENABLE: u64 = 2;
/// PM1 control, lower byte: the machine is in ACPI mode. It has no other.
const SCI_ENABLE: u8 = 1;
// PM1 control, upper byte.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
/// Keyboard controller command: pulse the processor's reset line.
const KEYBOARD_PULSE_RESET: u8 = 0xFE;

/// PM1 status, enable and control, and reset. No event ever happens, so the SCI is never raised.
pub struct PowerRegisters {
    stop: Stop,
    /// Which events may raise the SCI: guests read back what they wrote.
    enabled: [AtomicU8; 2],
}

impl PowerRegisters {
    /// Registers that request the end of the run from `stop`.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        Self { stop, enabled: Default::default() }
    }

    /// The enable register's byte that is at `offset`.
    fn enabled(&self, offset: u64) -> Option<&AtomicU8> {
        self.enabled.get(usize::try_from(offset.checked_sub(PM1_ENABLE)?).ok()?)
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (value, register) in data.iter_mut().zip(offset..) {
            *value = match register {
                PM1_CONTROL => SCI_ENABLE,
                _ => self.enabled(register).map_or(0, |byte| byte.load(Ordering::Relaxed)),
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const CONTROL_UPPER: u64 = PM1_CONTROL + 1;
        for (value, register) in data.iter().zip(offset..) {
            let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            match register {
                CONTROL_UPPER if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                    self.stop.request(Outcome::PowerOff);
                }
                RESET_REGISTER if *value == RESET_VALUE => self.stop.request(Outcome::Reboot),
                _ => {
                    if let Some(byte) = self.enabled(register) {
                        byte.store(*value, Ordering::Relaxed);
                    }
                }
            }
        }
    }
}

/// A keyboard controller's status and command port that knows one command, reset, and is always ready for it.
pub struct KeyboardReset {
    stop: Stop,
}

impl KeyboardReset {
    /// A port that requests a reboot from `stop`.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        Self { stop }
    }
}

impl BusDevice for KeyboardReset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.contains(&KEYBOARD_PULSE_RESET) {
            self.stop.request(Outcome::Reboot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_of_writing(offset: u64, value: u16) -> Option<Outcome> {
        let stop = Stop::new().unwrap();
        PowerRegisters::new(stop.clone()).write(offset, &value.to_le_bytes());
        stop.outcome()
    }

    #[test]
    fn entering_s5_powers_off_and_nothing_else_does() {
        assert_eq!(outcome_of_writing(4, 1 << 13), Some(Outcome::PowerOff));
        assert_eq!(outcome_of_writing(4, 0), None, "sleep type without enable");
        assert_eq!(outcome_of_writing(4, 1 << 13 | 5 << 10), None, "another sleep state");
        assert_eq!(outcome_of_writing(0, 0xFFFF), None, "status");
        assert_eq!(outcome_of_writing(2, 0xFFFF), None, "enable");
    }

    #[test]
    fn the_reset_value_reboots_and_others_do_not() {
        assert_eq!(outcome_of_writing(6, 1), Some(Outcome::Reboot));
        assert_eq!(outcome_of_writing(6, 0), None);
    }

    #[test]
    fn no_event_ever_happens_and_the_machine_is_in_acpi_mode() {
        let registers = PowerRegisters::new(Stop::new().unwrap());
        registers.write(0, &[0xFF; 4]);
        registers.write(4, &[0, 0]);
        let mut bytes = [0xAA; 7];
        registers.read(0, &mut bytes);
        assert_eq!(bytes, [0, 0, 0xFF, 0xFF, 1, 0, 0], "status, enable as it was written, control, reset");
    }

    #[test]
    fn the_keyboard_controller_resets_on_command_and_is_never_busy() {
        let stop = Stop::new().unwrap();
        let keyboard = KeyboardReset::new(stop.clone());
        let mut status = [0xFF];
        keyboard.read(0, &mut status);
        keyboard.write(0, &[0xAE]);
        assert_eq!((status, stop.outcome()), ([0], None));
        keyboard.write(0, &[0xFE]);
        assert_eq!(stop.outcome(), Some(Outcome::Reboot));
    }
}
