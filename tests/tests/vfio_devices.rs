//! Physical devices of the test bed's host, given to guests by `outrigger-vfio` through the legacy container: an NVMe disk and a virtio
//! disk behind the IOMMU under Linux, and QEMU's teaching device under the payload.

use std::fs::File;
use std::path::Path;

use outrigger_tests::payload;
use outrigger_tests::testbed::Testbed;

/// Where the devices are on the host.
const NVME: &str = "0000:01:00.0";
const VIRTIO: &str = "0000:02:00.0";
const EDU: &str = "0000:03:00.0";

const GUEST: &str = r#"
set -e
modprobe virtio_blk
for disk in nvme0n1 vda; do
  for try in $(seq 100); do [ -b /dev/$disk ] && break; sleep 0.1; done
  mkfs.ext4 -q -F /dev/$disk
  mkdir -p /$disk
  mount -t ext4 /dev/$disk /$disk
  dd if=/dev/urandom of=/tmp/part bs=1M count=4 2> /dev/null
done
for part in $(seq 16); do cat /tmp/part; done > /nvme0n1/data
cp /tmp/part /vda/data
for disk in nvme0n1 vda; do
  sha256sum < /$disk/data > /$disk/sum
  umount /$disk
  mount -t ext4 /dev/$disk /$disk
  [ "$(sha256sum < /$disk/data)" = "$(cat /$disk/sum)" ] && echo EQUAL-$disk
  umount /$disk
done
grep -E 'nvme|virtio' /proc/interrupts
"#;

/// The host's hardware: an IOMMU that remaps interrupts, and each device behind a port of its own, so that it has a group of its own.
fn bed(directory: &Path) -> String {
    let disk = |name: &str, size: u64| {
        let path = directory.join(name);
        File::create(&path).and_then(|file| file.set_len(size)).expect("the directory is ours");
        format!("-drive if=none,id={name},format=raw,file={}", path.display())
    };
    [
        "-device intel-iommu,intremap=on,aw-bits=48".to_owned(),
        "-device pcie-root-port,id=rp1,slot=1".to_owned(),
        disk("nvme", 128 << 20),
        "-device nvme,drive=nvme,serial=one,bus=rp1".to_owned(),
        "-device pcie-root-port,id=rp2,slot=2".to_owned(),
        disk("virtio", 32 << 20),
        "-device virtio-blk-pci,drive=virtio,iommu_platform=on,disable-legacy=on,bus=rp2".to_owned(),
        "-device pcie-root-port,id=rp3,slot=3".to_owned(),
        "-device edu,bus=rp3".to_owned(),
    ]
    .join(" ")
}

#[test]
fn linux_and_the_payload_drive_physical_devices() {
    let bed = Testbed::new().cpus(2).modules("nvme vfio vfio_iommu_type1 vfio-pci");
    let hardware = self::bed(bed.directory());
    bed.qemu(&hardware).initramfs(GUEST, "/guest/disks.cpio").file(payload::path(), "/guest/payload").run(&format!(
        r#"
outrigger vfio list > /tmp/list.out; cat /tmp/list.out
has list '{NVME} .*NVMe  *nvme .*when it is bound: outrigger vfio bind {NVME}'
for address in {NVME} {VIRTIO} {EDU}; do outrigger vfio bind $address || fail "bind $address"; done
[ "$(outrigger vfio list | grep -c 'vfio-pci.* yes$')" = 3 ] || fail 'not all are bound'

for cpus in 1 2; do
  boot linux$cpus 0 --kernel /guest/vmlinuz --initrd /guest/disks.cpio --cmdline 'console=ttyS0 quiet' --memory 256M --cpus $cpus \
    --vfio {NVME} --vfio {VIRTIO} --show-devices --stats
  has linux$cpus '0x00000-0x01fff  mapped       no exit; the hardware itself'
  has linux$cpus EQUAL-nvme0n1
  has linux$cpus EQUAL-vda
  has linux$cpus 'GUEST-EXIT 0'
  has linux$cpus 'nvme0q1'
  # Nothing of the data path came to the VMM: of the disk's BAR it has answered the MSI-X table, and no message at all.
  grep -q '0000:00:01.0 BAR0  *0  *0  *[1-9]' /tmp/linux$cpus.out || fail 'doorbells came to the VMM'

  boot edu$cpus 0 --kernel /guest/payload --memory 64M --cpus $cpus --vfio {EDU} --cmdline checks=edu-pin,edu-message --show-devices --stats
  has edu$cpus 'payload: passed'
  has edu$cpus 'mapped       no exit; the hardware itself'
  grep -q '0000:00:01.0 BAR0' /tmp/edu$cpus.out && fail 'registers came to the VMM'
done

# Each goes back to its driver, with what the guest has written.
for address in {NVME} {VIRTIO} {EDU}; do outrigger vfio unbind $address || fail "unbind $address"; done
outrigger vfio list > /tmp/after.out
cmp /tmp/list.out /tmp/after.out || fail 'something was not undone'
mkdir /disk
for disk in nvme0n1 vda; do
  mount -t ext4 /dev/$disk /disk || fail "the host cannot mount $disk"
  [ "$(sha256sum < /disk/data)" = "$(cat /disk/sum)" ] || fail "the host reads something else from $disk"
  if [ $disk = nvme0n1 ]; then outrigger vfio bind {NVME} 2> /tmp/busy.err && fail 'a mounted disk was taken from the host'; fi
  umount /disk
done
grep -q 'nvme0n1 (mounted at /disk); unmount it first' /tmp/busy.err || fail "$(cat /tmp/busy.err)"
dmesg | grep -E 'DMAR:.*fault|Oops|BUG:|WARNING:' && fail 'the host complains'
nothing_left
"#
    ));
}
