//! A directory that looks like sysfs. It is no kernel: what is written to it stays, and no driver comes or goes; how drivers
//! do is seen in the test bed (tests/tests/vfio_bind.rs).

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::super::sysfs::tests::add_function;
use super::*;

struct Fake {
    host: Host,
    root: TempDir,
}

/// Address, vendor and device, class, driver, group.
type Row<'a> = (&'a str, (&'a str, &'a str), &'a str, Option<&'a str>, Option<&'a str>);

const NVME: &str = "0000:01:00.0";
const ROWS: [Row<'_>; 5] = [
    ("0000:00:01.0", ("0x1b36", "0x000c"), "0x060400", Some("pcieport"), Some("1")),
    (NVME, ("0x1b36", "0x0010"), "0x010802", Some("nvme"), Some("6")),
    ("0000:02:00.0", ("0x8086", "0x10d3"), "0x020000", Some("vfio-pci"), Some("7")),
    ("0000:02:00.1", ("0x8086", "0x2922"), "0x010601", Some("ahci"), Some("7")),
    ("0000:03:00.0", ("0x1234", "0x11e8"), "0x00ff00", None, None),
];

fn fake(rows: &[Row<'_>]) -> Fake {
    let root = TempDir::new().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir_all(path("sys/bus/pci/devices")).unwrap();
    fs::create_dir_all(path("sys/class/block")).unwrap();
    fs::write(path("sys/bus/pci/drivers_probe"), "").unwrap();
    fs::create_dir_all(path("proc/self")).unwrap();
    for (address, (vendor, device), class, driver, group) in rows {
        add_function(&path("sys"), address, [vendor, device, class], *driver, *group);
    }
    let host = Host { sysfs: Sysfs::at(path("sys")), dev: path("dev"), proc: path("proc") };
    Fake { host, root }
}

impl Fake {
    fn line(&self, command: &Command) -> String {
        one_line(&self.host.run(command).unwrap_err().to_string())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.path().join("sys/bus/pci").join(name)).unwrap()
    }
}

fn bind(text: &str) -> Command {
    Command::Bind { address: text.parse().unwrap() }
}

fn unbind(text: &str) -> Command {
    Command::Unbind { address: text.parse().unwrap() }
}

#[test]
fn the_list_says_what_can_be_given_and_what_is_in_the_way() {
    let text = fake(&ROWS).host.run(&Command::List).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "address       ids        what it is  driver    group  can be given to a guest",
            "0000:01:00.0  1b36:0010  NVMe        nvme      6      when it is bound: outrigger vfio bind 0000:01:00.0",
            "0000:02:00.0  8086:10d3  Ethernet    vfio-pci  7      no: its group also has 0000:02:00.1 (ahci)",
            "0000:02:00.1  8086:2922  SATA        ahci      7      when it is bound: outrigger vfio bind 0000:02:00.1; its \
             group also has 0000:02:00.0 (vfio-pci)",
            "0000:03:00.0  1234:11e8  class 00ff  -         -      no: this host has no IOMMU for it",
        ]
    );
    let text = fake(&[]).host.run(&Command::List).unwrap();
    assert_eq!(text, "this host has no PCI devices that could be given to a guest\n");
}

#[test]
fn what_cannot_be_bound_is_refused_in_one_line_and_nothing_is_changed() {
    let fake = fake(&ROWS);
    assert_eq!(
        fake.line(&bind("0000:09:00.0")),
        "0000:09:00.0: there is no such PCI device; 'outrigger vfio list' shows those there are"
    );
    assert_eq!(fake.line(&bind("00:01.0")), "0000:00:01.0: is a bridge, which cannot be given to a guest");
    assert_eq!(
        fake.line(&bind("03:00.0")),
        "0000:03:00.0: this host has no IOMMU for it; switch it on in the firmware (VT-d, AMD-Vi) and, on Intel, boot with \
         intel_iommu=on"
    );
    let line = fake.line(&unbind(NVME));
    assert_eq!(line, "0000:01:00.0: is not bound to vfio-pci but to nvme; there is nothing to undo");
    let bound = fake.host.run(&bind("02:00.0")).unwrap();
    assert_eq!(
        bound,
        "0000:02:00.0 is bound to vfio-pci already (group 7); its group also has 0000:02:00.1 (driver ahci), which must be \
         bound to vfio-pci, too\n"
    );
    assert_eq!(fake.read("drivers_probe"), "");
    for (address, ..) in ROWS {
        assert_eq!(fake.read(&format!("devices/{address}/driver_override")), "(null)\n");
    }
    let fake = self::fake(&ROWS[..2]);
    assert_eq!(fake.line(&bind(NVME)), "the kernel's driver vfio-pci is not loaded; load it: modprobe vfio-pci");
}

#[test]
fn what_vfio_pci_does_not_take_goes_back() {
    let fake = fake(&ROWS);
    assert_eq!(fake.line(&bind(NVME)), "0000:01:00.0: vfio-pci does not take it (see dmesg); it is as it was before");
    assert_eq!(fake.read("drivers/nvme/unbind"), NVME);
    assert_eq!(fake.read("drivers_probe"), NVME);
    assert!(fake.read(&format!("devices/{NVME}/driver_override")).starts_with('\n'));
}

#[test]
fn a_disk_that_the_host_uses_is_not_taken_from_it() {
    let fake = fake(&ROWS);
    let path = |name: &str| fake.root.path().join(name);
    let disk = path("sys/bus/pci/devices").join(NVME).join("nvme0n1");
    fs::create_dir_all(disk.join("holders")).unwrap();
    fs::write(disk.join("dev"), "259:3\n").unwrap();
    symlink(&disk, path("sys/class/block/nvme0n1")).unwrap();
    let mounts = "25 1 259:3 / /srv/data rw,relatime - ext4 /dev/nvme0n1 rw\n";
    fs::write(path("proc/self/mountinfo"), mounts).unwrap();
    let line = fake.line(&bind(NVME));
    assert_eq!(line, "0000:01:00.0: the host uses its disk nvme0n1 (mounted at /srv/data); unmount it first");
    fs::remove_file(path("proc/self/mountinfo")).unwrap();
    fs::write(path("proc/swaps"), "Filename Type Size\n/dev/nvme0n1 partition 1024\n").unwrap();
    let line = fake.line(&bind(NVME));
    assert_eq!(line, "0000:01:00.0: the host uses its disk nvme0n1 as swap; switch it off first: swapoff");
    fs::write(disk.join("holders/dm-0"), "").unwrap();
    let line = fake.line(&bind(NVME));
    assert_eq!(line, "0000:01:00.0: the host uses its disk nvme0n1 for dm-0; take that down first");
    assert_eq!(fake.read("drivers/nvme/unbind"), "");
}

#[test]
fn an_unbound_function_is_probed_again_without_an_override() {
    let fake = fake(&ROWS);
    fake.host.run(&unbind("02:00.0")).unwrap();
    assert_eq!(fake.read("drivers/vfio-pci/unbind"), "0000:02:00.0");
    assert_eq!(fake.read("drivers_probe"), "0000:02:00.0");
    assert!(fake.read("devices/0000:02:00.0/driver_override").starts_with('\n'));
}
