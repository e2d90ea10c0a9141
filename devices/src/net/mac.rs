//! Ethernet addresses.

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

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(drop)?;
        }
        let unicast = mac[0] & 1 == 0 && mac != [0; 6];
        (parts.next().is_none() && unicast).then_some(Self(mac)).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        assert_eq!("02:00:00:00:0a:FF".parse(), Ok(Mac([2, 0, 0, 0, 10, 255])));
        for text in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "01:00:00:00:00:01", "00:00:00:00:00:00"]
        {
            assert_eq!(text.parse::<Mac>(), Err(()), "{text}");
        }
    }

    #[test]
    fn derived_addresses_are_stable_local_and_distinct() {
        assert_eq!(Mac::from_name("tap0"), Mac::from_name("tap0"));
        assert_ne!(Mac::from_name("tap0"), Mac::from_name("tap1"));
        assert!((0..100).all(|n| Mac::from_name(&format!("tap{n}")).0[0] & 3 == 2));
    }
}
