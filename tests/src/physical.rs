//! Hardware of the test bed's host that can be given to guests: each device behind a port of its own, so that it is alone in its IOMMU
//! group, behind an IOMMU that remaps interrupts.

use std::fs::File;

use crate::payload;
use crate::testbed::Testbed;

/// An NVMe disk.
pub const NVME: &str = "0000:01:00.0";
/// A virtio disk that reaches memory through the IOMMU.
pub const VIRTIO: &str = "0000:02:00.0";
/// QEMU's teaching device.
pub const EDU: &str = "0000:03:00.0";
/// A device with memory in a BAR (ivshmem-plain).
pub const SHARED_MEMORY: &str = "0000:05:00.0";
/// An Intel network card (e1000e), on one wire with a card that the host keeps.
pub const CARD: &str = "0000:04:00.0";

const NVME_SIZE: u64 = 512 << 20;
const VIRTIO_SIZE: u64 = 32 << 20;

/// Shell functions for these devices.
///
/// `start NAME ARGUMENT…` runs `outrigger run ARGUMENT…` in the background with its output in /tmp/NAME.out and sets $vmm; `see NAME
/// WORDS` waits for WORDS in it, a minute at most. `disk NAME` waits for /dev/NAME of the host's own. `no_splat` ends the script when the
/// host's kernel complains. `fail` shows the kernel's last words and where Outrigger's processes wait, too.
pub const SHELL: &str = r#"
# A machine that is busy takes the processors from the host for longer than its kernel expects of real ones.
echo 60 > /proc/sys/kernel/watchdog_thresh
fail() {
  uptime; dmesg | tail -n 40
  for process in $(pidof outrigger outrigger-vfio); do
    for task in /proc/$process/task/*; do echo "$process $(cat $task/comm):" $(cat $task/stack); done
  done
  echo "TEST FAILED: $*"; exit 1
}
disk() { for try in $(seq 600); do [ -b /dev/$1 ] && return; sleep 0.1; done; fail "/dev/$1 does not come"; }
start() {
  name=$1; shift
  # Two files: in one, a line of the log may come into the middle of the guest's.
  outrigger run "$@" < /dev/null > /tmp/$name.out 2> /tmp/$name.err &
  vmm=$!
}
see() {
  for try in $(seq 1200); do grep -q "$2" /tmp/$1.out /tmp/$1.err && return; sleep 0.05; done
  cat /tmp/$1.out /tmp/$1.err
  fail "$1: '$2' does not come"
}
no_splat() { dmesg | grep -E 'Oops|BUG:|WARNING:|hung task|blocked for more' && fail 'the host complains'; }
"#;

/// A host with all of them, two processors, and `outrigger-vfio`.
pub fn testbed() -> Testbed {
    let bed =
        Testbed::new().cpus(2).modules("nvme vfio vfio_iommu_type1 vfio-pci").file(payload::path(), "/guest/payload");
    let disk = |name: &str, size: u64| {
        let path = bed.directory().join(name);
        File::create(&path).and_then(|file| file.set_len(size)).expect("the directory is ours");
        format!("-drive if=none,id={name},format=raw,file={}", path.display())
    };
    let hardware = [
        "-device intel-iommu,intremap=on,aw-bits=48".to_owned(),
        "-device pcie-root-port,id=rp1,slot=1".to_owned(),
        disk("nvme", NVME_SIZE),
        "-device nvme,drive=nvme,serial=one,bus=rp1".to_owned(),
        "-device pcie-root-port,id=rp2,slot=2".to_owned(),
        disk("virtio", VIRTIO_SIZE),
        "-device virtio-blk-pci,drive=virtio,iommu_platform=on,disable-legacy=on,bus=rp2".to_owned(),
        "-device pcie-root-port,id=rp3,slot=3".to_owned(),
        // Its DMA ends at 256 MiB otherwise.
        "-device edu,dma_mask=0xffffffffffff,bus=rp3".to_owned(),
        "-device pcie-root-port,id=rp4,slot=4".to_owned(),
        "-netdev hubport,id=wire1,hubid=0 -device e1000e,netdev=wire1,bus=rp4".to_owned(),
        "-netdev hubport,id=wire2,hubid=0 -device virtio-net-pci,netdev=wire2,mac=52:54:00:00:00:01".to_owned(),
        "-device pcie-root-port,id=rp5,slot=5".to_owned(),
        "-object memory-backend-ram,id=shared,size=4M -device ivshmem-plain,memdev=shared,bus=rp5".to_owned(),
    ];
    bed.qemu(&hardware.join(" "))
}
