//! The host's PCI functions as people read them.

use super::functions::{Function, Other};
use crate::aligned::aligned;

const HEADINGS: [&str; 6] = ["address", "ids", "what it is", "driver", "group", "can be given to a guest"];

/// Every function that is no bridge, one line each.
pub(super) fn text(functions: &[Function]) -> String {
    let rows: Vec<_> = functions.iter().filter(|function| !function.is_bridge()).map(row).collect();
    if rows.is_empty() {
        return "this host has no PCI devices that could be given to a guest\n".to_owned();
    }
    aligned(&std::iter::once(HEADINGS.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

fn row(function: &Function) -> [String; 6] {
    let (vendor, device) = function.ids;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    [
        function.address.to_string(),
        format!("{vendor:04x}:{device:04x}"),
        what(function.class),
        or_none(&function.driver),
        or_none(&function.group),
        can_be_given(function),
    ]
}

/// Whether, or what is missing.
fn can_be_given(function: &Function) -> String {
    let named = |other: &Other| match &other.driver {
        Some(driver) => format!("{} ({driver})", other.address),
        None => other.address.to_string(),
    };
    if function.group.is_none() {
        return "no: this host has no IOMMU for it".to_owned();
    }
    let in_the_way: Vec<_> = function.in_the_way().map(named).collect();
    if !in_the_way.is_empty() {
        return format!("no: its group also has {}", in_the_way.join(", "));
    }
    let others: Vec<_> = function.others.iter().map(named).collect();
    let with = if others.is_empty() { String::new() } else { format!("; its group also has {}", others.join(", ")) };
    let can = if function.is_bound() { "yes" } else { "when it is bound: outrigger vfio bind" };
    let address = if function.is_bound() { String::new() } else { format!(" {}", function.address) };
    format!("{can}{address}{with}")
}

/// A class's name (PCI Code and ID Assignment 1.11, section 1); its number where it is rare.
fn what(class: u32) -> String {
    let name = match class >> 8 {
        0x0100 => "SCSI storage",
        0x0106 => "SATA",
        0x0108 => "NVMe",
        0x0104 => "RAID",
        0x0101 => "IDE",
        0x0200 => "Ethernet",
        0x0280 => "network",
        0x0300 => "VGA",
        0x0302 => "3D controller",
        0x0380 => "display",
        0x0401 | 0x0403 => "audio",
        0x0c03 => "USB",
        0x0c05 => "SMBus",
        0x0780 => "communication",
        0x1080 => "encryption",
        0x1200 => "accelerator",
        _ => return format!("class {:04x}", class >> 8),
    };
    name.to_owned()
}
