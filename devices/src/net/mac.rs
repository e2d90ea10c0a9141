//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered address that depends on nothing but `name` (FNV-1a), so that a guest finds its card
    /// unchanged after the next start.
    pub fn from_name(name: &str) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let hash = name.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        let [_, _, a, b, c, d, e, f] = hash.to_be_bytes();
        // Locally administered, unicast.
        Self([a & !1 | 2, b, c, d, e, f])
    }
}

/// A text that is no address of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes.
    #[error("must be six hexadecimal bytes like 52:54:00:12:34:56")]
    Form,
    /// An address that no card can have.
    #[error("{address} is {what}; a card needs a unicast address like 52:54:00:12:34:56")]
    NotUnicast {
        /// The address.
        address: Mac,
        /// "a multicast address" or "all zeros".
        what: &'static str,
    },
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let two_digits = |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            let part = parts.next().filter(two_digits).ok_or(MacError::Form)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Form)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Form);
        }
        let address = Self(bytes);
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::NotUnicast { address, what: "all zeros" }),
            [first, ..] if first & 1 != 0 => Err(MacError::NotUnicast { address, what: "a multicast address" }),
            _ => Ok(address),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        assert_eq!("02:00:00:00:0a:FF".parse(), Ok(Mac([2, 0, 0, 0, 10, 255])));
        let no_bytes =
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "02:00:00:00:00:+5", "02:00:00:00:00:5g"];
        for text in no_bytes {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Form), "{text}");
        }
        let line = |text: &str| text.parse::<Mac>().unwrap_err().to_string();
        let wanted = "a card needs a unicast address like 52:54:00:12:34:56";
        assert_eq!(line("01:00:00:00:00:0A"), format!("01:00:00:00:00:0a is a multicast address; {wanted}"));
        assert_eq!(line("00:00:00:00:00:00"), format!("00:00:00:00:00:00 is all zeros; {wanted}"));
    }

    #[test]
    fn derived_addresses_are_stable_local_and_distinct() {
        assert_eq!(Mac::from_name("tap0"), Mac::from_name("tap0"));
        assert_ne!(Mac::from_name("tap0"), Mac::from_name("tap1"));
        assert!((0..100).all(|n| Mac::from_name(&format!("tap{n}")).0[0] & 3 == 2));
    }
}
