//! Back ends of guests' devices: files in memory, and taps.

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::Command;

/// A file for a disk, all of it there: no holes.
pub fn make_disk(path: &str, bytes: u64) -> io::Result<()> {
    let mut disk = File::create(path)?;
    let part = vec![0x5a; 1 << 20];
    (0..bytes >> 20).try_for_each(|_| disk.write_all(&part))
}

/// A tap that is up, for a card with so many pairs of queues; with the host's address if it is to be used.
pub fn make_tap(name: &str, address: Option<&str>, queues: u16) -> io::Result<()> {
    let several = if queues > 1 { ["multi_queue"].as_slice() } else { &[] };
    ip(&[["tuntap", "add", "dev", name, "mode", "tap"].as_slice(), several].concat())?;
    // Packets that IPv6 sends of its own accord are no load.
    fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")?;
    if let Some(address) = address {
        ip(&["addr", "add", &format!("{address}/24"), "dev", name])?;
    }
    ip(&["link", "set", name, "up"])
}

/// Takes a tap away.
pub fn remove_tap(name: &str) -> io::Result<()> {
    ip(&["link", "del", name])
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new("ip").args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {}: {status}", arguments.join(" ")))) }
}
