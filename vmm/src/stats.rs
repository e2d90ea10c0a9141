//! What `--stats` prints when the guest has ended: who answered its accesses to devices. An access that the VMM never saw
//! (mapped, ioeventfd, ioregionfd in KVM) is in none of its counters, and no MMIO exit of KVM's either.

use std::fmt::Write;

use crate::attach::exits::Served;
use crate::vcpu::Exits;

/// Accesses to one part of one device.
pub struct DeviceLine {
    /// `0000:00:01.0 BAR0`, `0000:00:01.0 configuration`.
    pub what: String,
    /// Those that the VMM answered.
    pub served: Served,
}

/// Both tables.
#[must_use]
pub fn report(devices: &[DeviceLine], vcpus: &[Option<Exits>]) -> String {
    let mut text = String::new();
    let mut line = |what: &str, columns: [&dyn std::fmt::Display; 3]| {
        let [first, second, third] = columns;
        let _ = writeln!(text, "{what:40}{first:>12}{second:>12}{third:>12}");
    };
    line("accesses that the VMM answered", [&"message", &"ioregionfd", &"MSI-X"]);
    for DeviceLine { what, served } in devices {
        line(&format!("  {what}"), [&served.message, &served.ioregionfd, &served.msix]);
    }
    line("exits that KVM counted", [&"all", &"MMIO", &"I/O ports"]);
    for (id, exits) in vcpus.iter().enumerate() {
        let name = format!("  vCPU {id}");
        match exits {
            Some(exits) => line(&name, [&exits.all, &exits.mmio, &exits.io]),
            None => line(&name, [&"not told", &"not told", &"not told"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let served = Served { msix: 3, ioregionfd: 20, message: 1_000_000 };
        let device = DeviceLine { what: "0000:00:01.0 BAR0".into(), served };
        let text = report(&[device], &[Some(Exits { all: 5, mmio: 4, io: 1 }), None]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "  0000:00:01.0 BAR0                          1000000          20           3");
        assert_eq!(lines[3], "  vCPU 0                                           5           4           1");
        assert_eq!(lines[4], "  vCPU 1                                    not told    not told    not told");
    }
}
