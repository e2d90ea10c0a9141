//! The registers by which a guest ends itself: ACPI's sleep control, sleep status and reset registers (ACPI 6.5, sections
//! 4.8.3.7 "Sleep Control/Status Registers" and 4.8.3.6 "Reset Register"), and the keyboard controller's reset command, which
//! guests fall back to.

use crate::bus::BusDevice;
use crate::outcome::{Outcome, Stop};

/// Offsets into [`crate::layout::POWER`].
pub(super) const SLEEP_CONTROL_REGISTER: u64 = 0;
pub(super) const SLEEP_STATUS_REGISTER: u64 = 1;
pub(crate) const RESET_REGISTER: u64 = 2;
/// What the guest writes to the reset register.
pub(crate) const RESET_VALUE: u8 = 1;
/// The sleep type that `\_S5` tells the guest to write.
pub(super) const SLEEP_TYPE_S5: u8 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
/// Keyboard controller command: pulse the processor's reset line.
const KEYBOARD_PULSE_RESET: u8 = 0xFE;

/// Sleep control, sleep status and reset, one byte each.
pub struct PowerRegisters {
    stop: Stop,
}

impl PowerRegisters {
    /// Registers that request the end of the run from `stop`.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        Self { stop }
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // No wake-up has happened, and the other two registers are there to be written.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (value, register) in data.iter().zip(offset..) {
            let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            match register {
                SLEEP_CONTROL_REGISTER if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 => {
                    self.stop.request(Outcome::PowerOff);
                }
                RESET_REGISTER if *value == RESET_VALUE => self.stop.request(Outcome::Reboot),
                _ => {}
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

    fn outcome_of_writing(offset: u64, value: u8) -> Option<Outcome> {
        let stop = Stop::new().unwrap();
        PowerRegisters::new(stop.clone()).write(offset, &[value]);
        stop.outcome()
    }

    #[test]
    fn entering_s5_powers_off_and_nothing_else_does() {
        assert_eq!(outcome_of_writing(0, 5 << 2 | 1 << 5), Some(Outcome::PowerOff));
        assert_eq!(outcome_of_writing(0, 5 << 2), None, "sleep type without enable");
        assert_eq!(outcome_of_writing(0, 1 << 2 | 1 << 5), None, "another sleep state");
        assert_eq!(outcome_of_writing(1, 0xFF), None, "sleep status");
    }

    #[test]
    fn the_reset_value_reboots_and_others_do_not() {
        assert_eq!(outcome_of_writing(2, 1), Some(Outcome::Reboot));
        assert_eq!(outcome_of_writing(2, 0), None);
    }

    #[test]
    fn no_wake_up_is_ever_shown() {
        let registers = PowerRegisters::new(Stop::new().unwrap());
        let mut bytes = [0xAA; 3];
        registers.read(0, &mut bytes);
        assert_eq!(bytes, [0; 3]);
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
