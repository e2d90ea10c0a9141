//! `--net tap=NAME[,mac=MAC][,queues=N][,dma=messages]`.

use std::fmt;

use super::options::{self, Options};
use super::{Dma, Problem, disk, dma};

/// Longest name of a network interface in bytes: Linux's `IFNAMSIZ`, less the terminating zero.
pub const MAX_INTERFACE_NAME: usize = 15;

/// A network card for an `outrigger-net` process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of the host's tap interface.
    pub tap: String,
    /// The card's address; chosen by `outrigger-net` where not given.
    pub mac: Option<MacAddress>,
    /// Pairs of queues, 1 to [`MAX_QUEUES`](super::MAX_QUEUES).
    pub queues: Option<u16>,
    /// How the process reaches guest RAM.
    pub dma: Dma,
}

impl NetConfig {
    /// Reads the option's value.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let options = Options::parse(text, &["tap", "mac", "queues", dma::KEY], None)?;
        options.required("tap", "NAME")?;
        let tap = options.parsed("tap", interface)?.unwrap_or_default();
        Ok(NetConfig {
            tap,
            mac: options.parsed("mac", MacAddress::parse)?,
            queues: options.parsed("queues", disk::queues)?,
            dma: Dma::parse(&options)?,
        })
    }
}

/// The option's value that reads back as this card: how `outrigger-net` is told what to serve. How it reaches guest RAM is not
/// its to choose, and left out.
impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tap={}", options::escape(&self.tap))?;
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        if let Some(queues) = self.queues {
            write!(f, ",queues={queues}")?;
        }
        Ok(())
    }
}

/// What Linux's `dev_valid_name` takes, without the `%` that would make it a template.
fn interface(text: &str) -> Result<String, Problem> {
    let refused = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if text.len() > MAX_INTERFACE_NAME || text == "." || text == ".." || text.contains(refused) {
        return Err(Problem::NotInterface);
    }
    Ok(text.to_owned())
}

/// The six bytes of a unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress(
    /// In the order they are written and sent.
    pub [u8; 6],
);

impl MacAddress {
    fn parse(text: &str) -> Result<Self, Problem> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(Problem::NotMac)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(Problem::NotMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| Problem::NotMac)?;
        }
        if parts.next().is_some() {
            return Err(Problem::NotMac);
        }
        let address = MacAddress(bytes);
        let refused = |what| Problem::MacNotUnicast { address: address.to_string(), what };
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(refused("all zeros")),
            [first, ..] if first & 1 != 0 => Err(refused("a multicast address")),
            _ => Ok(address),
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::MAX_QUEUES;

    proptest! {
        #[test]
        fn a_displayed_card_reads_back(
            tap in "[a-zA-Z0-9_,=.-]{3,15}",
            mac in prop::option::of(prop::array::uniform6(1..=u8::MAX)),
            queues in prop::option::of(1..=MAX_QUEUES),
        ) {
            let mac = mac.map(|[first, rest @ ..]| {
                let [a, b, c, d, e] = rest;
                MacAddress([first & !1, a, b, c, d, e])
            });
            let card = NetConfig { tap, mac, queues, dma: Dma::default() };
            prop_assert_eq!(NetConfig::parse(&card.to_string()), Ok(card));
        }
    }
}
