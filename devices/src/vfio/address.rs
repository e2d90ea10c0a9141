//! Where a PCI function of the host is.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the address of a PCI function, as 0000:01:00.0 (outrigger vfio list shows them)")]
pub struct NotAnAddress;

impl FromStr for Address {
    type Err = NotAnAddress;

    /// With the domain or without: then it is domain 0, as lspci has it.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let hex = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
            let legal = lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u32::from_str_radix(text, 16).ok().filter(|_| legal).ok_or(NotAnAddress)
        };
        let below = |number: u32, end: u8| u8::try_from(number).ok().filter(|&n| n < end).ok_or(NotAnAddress);
        let (rest, function) = text.split_once('.').ok_or(NotAnAddress)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(NotAnAddress)?;
        let (domain, bus) = rest.split_once(':').unwrap_or(("0", rest));
        Ok(Self {
            // A domain of an emulated bus, such as those of VMD, has five digits or more.
            domain: hex(domain, 1..=8)?,
            bus: u8::try_from(hex(bus, 2..=2)?).map_err(|_| NotAnAddress)?,
            device: below(hex(device, 2..=2)?, 32)?,
            function: below(hex(function, 1..=1)?, 8)?,
        })
    }
}

impl Address {
    /// As one number.
    pub(super) fn number(self) -> u64 {
        let devfn = u64::from(self.device) << 3 | u64::from(self.function);
        u64::from(self.domain) << 16 | u64::from(self.bus) << 8 | devfn
    }
}

/// As the kernel writes it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        for (text, canonical) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("ABCD:fF:1f.7", "abcd:ff:1f.7"),
            ("10000:e1:00.0", "10000:e1:00.0"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn anything_else_is_no_address() {
        for text in [
            "",
            "0000",
            "01:00",
            "01.0",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:1:00.0",
            "0000:01:0.0",
            "0000:01:00.00",
            "0000:101:00.0",
            "123456789:01:00.0",
            ":01:00.0",
            "0000:01:00.",
            "+000:01:00.0",
            "0000:+1:00.0",
            "0000:01:00.0 ",
            "../../../etc",
            "0000:0000:01:00.0",
        ] {
            assert_eq!(text.parse::<Address>(), Err(NotAnAddress), "{text:?}");
        }
    }
}
