//! A function changes its driver.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use nix::errno::Errno;

use super::super::sysfs::{Function, name_behind};
use super::{DriverError, Host, VFIO_PCI};

impl Host {
    /// Takes a function from its driver and gives it to vfio-pci.
    ///
    /// # Errors
    /// If it cannot be given to a guest, or the host works with it. It has the driver that it had, then.
    pub(super) fn bind(&self, function: &Function) -> Result<String, DriverError> {
        let Function { address, directory, .. } = function;
        if function.is_bridge() {
            return Err(DriverError::Bridge(*address));
        }
        let Some(group) = function.group else { return Err(DriverError::NoIommu(*address)) };
        let mut in_the_way = String::new();
        let in_group = self.sysfs.group(group);
        for other in in_group.iter().filter(|other| other.address != *address && other.is_in_the_way()) {
            let driver = driver_of(other).unwrap_or_default();
            in_the_way.push_str(&format!(
                "; its group also has {} (driver {driver}), which must be bound to vfio-pci, too",
                other.address
            ));
        }
        if function.is_bound() {
            let driver = driver_of(function).unwrap_or_default();
            return Ok(format!("{address} is bound to {driver} already (group {group}){in_the_way}\n"));
        }
        if !self.sysfs.path("bus/pci/drivers").join(VFIO_PCI).exists() {
            return Err(DriverError::NoDriver);
        }
        self.check_unused(function)?;
        // Before it is taken from its driver: whatever comes next, no other takes it.
        write(&directory.join("driver_override"), VFIO_PCI)?;
        let changed = self.change_driver(function);
        if changed.is_err() || name_behind(&directory.join("driver")).as_deref() != Some(VFIO_PCI) {
            self.give_back(function)?;
            changed?;
            return Err(DriverError::NotTaken(*address));
        }
        let before = driver_of(function).unwrap_or("no driver");
        Ok(format!("{address}: bound to vfio-pci, group {group} (before: {before}){in_the_way}\n"))
    }

    /// Takes a function from vfio-pci and lets the kernel choose its driver, as if nothing had ever been bound.
    ///
    /// # Errors
    /// If it is not bound to vfio-pci, or somebody uses it.
    pub(super) fn unbind(&self, function: &Function) -> Result<String, DriverError> {
        let Function { address, directory, .. } = function;
        match &function.driver {
            Some(driver) if !function.is_bound() => {
                return Err(DriverError::OtherDriver { address: *address, driver: driver.0.clone() });
            }
            _ => self.check_free(function)?,
        }
        self.give_back(function)?;
        let after = name_behind(&directory.join("driver")).unwrap_or_else(|| "none".to_owned());
        let before = match driver_of(function) {
            Some(driver) => format!("taken from {driver}"),
            None => "was not bound".to_owned(),
        };
        Ok(format!("{address}: {before}; its driver is {after} now\n"))
    }

    /// No driver is asked for any more: the kernel chooses.
    fn give_back(&self, function: &Function) -> Result<(), DriverError> {
        // A line break alone is what empties it (kernel, Documentation/ABI/testing/sysfs-bus-pci).
        write(&function.directory.join("driver_override"), "\n")?;
        self.change_driver(function)
    }

    fn change_driver(&self, function: &Function) -> Result<(), DriverError> {
        let name = function.address.to_string();
        let unbind = function.directory.join("driver/unbind");
        match write(&unbind, &name) {
            // It has no driver.
            Err(DriverError::File { problem, .. }) if problem.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
        let probe = self.sysfs.path("bus/pci/drivers_probe");
        match write(&probe, &name) {
            // The driver's own answer; whether it has taken the function is seen by the link.
            Err(DriverError::File { problem, .. }) if problem.kind() != ErrorKind::PermissionDenied => {
                log::info!("{name}: {}: {problem}", probe.display());
                Ok(())
            }
            other => other,
        }
    }

    /// Whether nothing of the function is mounted or used as swap: its driver would let go of it all the same.
    fn check_unused(&self, function: &Function) -> Result<(), DriverError> {
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo")).unwrap_or_default();
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        let refuse = |what: String, remedy| {
            let address = function.address;
            Err(DriverError::HostUses { address, what, remedy })
        };
        for disk in self.block_devices(function) {
            // Fields of mountinfo (proc(5)): the third is the device, the fifth where it is mounted.
            let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let mut places = mount.filter(|fields| fields.get(2) == Some(&disk.number.as_str()));
            if let Some(place) = places.find_map(|fields| fields.get(4).map(|place| (*place).to_owned())) {
                return refuse(format!("its disk {} (mounted at {place})", disk.name), "unmount it first");
            }
            let holders = self.sysfs.path("class/block").join(&disk.name).join("holders");
            if let Some(holder) = fs::read_dir(holders).ok().and_then(|mut holders| holders.next()?.ok()) {
                let holder = holder.file_name();
                return refuse(format!("its disk {} for {}", disk.name, holder.display()), "take that down first");
            }
            let file = format!("/dev/{}", disk.name);
            if swaps.lines().any(|line| line.split_whitespace().next() == Some(&file)) {
                return refuse(format!("its disk {} as swap", disk.name), "switch it off first: swapoff");
            }
        }
        Ok(())
    }

    /// Disks and partitions that are there by a function.
    fn block_devices(&self, function: &Function) -> Vec<Block> {
        let Ok(home) = function.directory.canonicalize() else { return Vec::new() };
        let Ok(entries) = fs::read_dir(self.sysfs.path("class/block")) else { return Vec::new() };
        let block = |path: &Path| {
            let is_its = path.canonicalize().is_ok_and(|place| place.starts_with(&home));
            let number = fs::read_to_string(path.join("dev")).ok().filter(|_| is_its)?;
            Some(Block { name: path.file_name()?.to_string_lossy().into_owned(), number: number.trim().to_owned() })
        };
        entries.flatten().filter_map(|entry| block(&entry.path())).collect()
    }

    /// Whether nobody has the group open: taking the function away would wait for as long as somebody has.
    fn check_free(&self, function: &Function) -> Result<(), DriverError> {
        let Some(group) = function.group else { return Ok(()) };
        let path = self.dev.join("vfio").join(group.to_string());
        match fs::OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                Err(DriverError::InUse { address: function.address, path })
            }
            // The system says so of what follows as well.
            _ => Ok(()),
        }
    }
}

fn driver_of(function: &Function) -> Option<&str> {
    function.driver.as_ref().map(|driver| driver.0.as_str())
}

struct Block {
    name: String,
    /// Major and minor number, `259:1`.
    number: String,
}

/// Writes a file of sysfs, in one go as it wants.
fn write(path: &Path, text: &str) -> Result<(), DriverError> {
    let file = fs::OpenOptions::new().write(true).open(path);
    let written = file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|problem| DriverError::File { path: path.to_owned(), problem })
}
