//! The report that `--stats` prints when the guest has ended: who answered its accesses to devices. The VMM never sees one
//! that is mapped, or that KVM hands over by ioeventfd or ioregionfd: it is in no count but KVM's own, which has those
//! by ioregionfd apart, too.

use std::fmt::{Display, Write};

use crate::attach::dispatch::AccessCounts;
use crate::vcpu::{ExitCounters, Exits};

/// Accesses to one part of one device.
#[derive(Clone, Debug)]
pub struct DeviceLine {
    /// `0000:00:01.0 BAR0`, `0000:00:01.0 configuration`.
    pub what: String,
    /// Those that the VMM answered.
    pub served: AccessCounts,
}

/// All tables.
#[must_use]
pub fn report(devices: &[DeviceLine], vcpus: &[ExitCounters]) -> String {
    let mut text = row("accesses that the VMM answered", &["message", "stand-in", "MSI-X"]);
    for DeviceLine { what, served } in devices {
        text.push_str(&row(&format!("  {what}"), &[served.message, served.stand_in, served.msix]));
    }
    text.push_str(&row("exits to KVM, and on to the VMM", &["all", "MMIO", "I/O ports"]));
    for (id, counters) in vcpus.iter().enumerate() {
        match counters.to_kvm() {
            Some(exits) => text.push_str(&exits_row(&format!("  vCPU {id}, to KVM"), exits)),
            None => text.push_str(&row(&format!("  vCPU {id}, to KVM"), &["not told"; 3])),
        }
        text.push_str(&exits_row(&format!("  vCPU {id}, to the VMM"), counters.to_vmm()));
        if let Some(accesses) = counters.by_ioregionfd() {
            text.push_str(&row(&format!("  vCPU {id}, by ioregionfd to a device"), &[&accesses.to_string(), "-", "-"]));
        }
    }
    text
}

fn exits_row(what: &str, exits: Exits) -> String {
    row(what, &[exits.all, exits.mmio, exits.io])
}

fn row<T: Display>(what: &str, columns: &[T; 3]) -> String {
    let mut text = format!("{what:40}");
    for column in columns {
        // Writing to a string does not fail.
        let _ = write!(text, "{column:>12}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let served = AccessCounts { msix: 3, stand_in: 20, message: 1_000_000 };
        let text = report(&[DeviceLine { what: "0000:00:01.0 BAR0".into(), served }], &[]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "accesses that the VMM answered               message    stand-in       MSI-X");
        assert_eq!(lines[1], "  0000:00:01.0 BAR0                          1000000          20           3");
    }
}
