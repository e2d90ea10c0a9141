//! The host's PCI functions as people read them.

use outrigger_process::aligned::aligned;

use super::super::sysfs::Function;

const HEADINGS: [&str; 6] = ["address", "ids", "what it is", "driver", "group", "can be given to a guest"];

/// Every function that is no bridge, one line each.
pub(super) fn text(functions: &[Function]) -> String {
    let devices = functions.iter().filter(|function| !function.is_bridge());
    let rows: Vec<_> = devices.map(|function| row(function, functions)).collect();
    if rows.is_empty() {
        return "this host has no PCI devices that could be given to a guest\n".to_owned();
    }
    aligned(&std::iter::once(HEADINGS.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

fn row(function: &Function, all: &[Function]) -> [String; 6] {
    let (vendor, device) = function.ids;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        function.address.to_string(),
        format!("{vendor:04x}:{device:04x}"),
        what(function.class),
        or_none(function.driver.as_ref().map(|driver| driver.0.clone())),
        or_none(function.group.map(|group| group.to_string())),
        can_be_given(function, all),
    ]
}

/// Whether, or what is missing.
fn can_be_given(function: &Function, all: &[Function]) -> String {
    let named = |other: &Function| match &other.driver {
        Some(driver) => format!("{} ({})", other.address, driver.0),
        None => other.address.to_string(),
    };
    if function.group.is_none() {
        return "no: this host has no IOMMU for it".to_owned();
    }
    let others = || all.iter().filter(|other| other.group == function.group && other.address != function.address);
    let in_the_way: Vec<_> = others().filter(|other| other.is_in_the_way()).map(named).collect();
    if !in_the_way.is_empty() {
        return format!("no: its group also has {}", in_the_way.join(", "));
    }
    let others: Vec<_> = others().map(named).collect();
    let with = if others.is_empty() { String::new() } else { format!("; its group also has {}", others.join(", ")) };
    match function.is_bound() {
        true => format!("yes{with}"),
        false => format!("when it is bound: outrigger vfio bind {}{with}", function.address),
    }
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
