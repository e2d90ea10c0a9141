//! Physical devices of the test bed's host, given to guests by `outrigger-vfio` through the legacy container: an NVMe disk, a virtio
//! disk behind the IOMMU under Linux, QEMU's teaching device under the payload.

use outrigger_tests::physical::{self, EDU, NVME, VIRTIO};

/// Writes to both disks and reads it back; the kernel's parameter `pieces` says how many times 4 MiB to the NVMe disk.
const DISKS: &str = r#"
set -e
pieces=$(sed 's/.*pieces=//; s/ .*//' /proc/cmdline)
for disk in nvme0n1 vda; do
  for try in $(seq 600); do [ -b /dev/$disk ] && break; sleep 0.1; done
  [ -b /dev/$disk ] || { echo "/dev/$disk does not come"; dmesg | tail -n 30; }
  mkfs.ext4 -q -F /dev/$disk
  mkdir -p /$disk
  mount -t ext4 /dev/$disk /$disk
done
dd if=/dev/urandom of=/tmp/part bs=1M count=4 2> /dev/null
# A number before each, so that no two pieces of a block's size are the same.
for piece in $(seq $pieces); do echo $piece; cat /tmp/part; done > /nvme0n1/data
cp /tmp/part /vda/data
for disk in nvme0n1 vda; do
  md5sum < /$disk/data > /$disk/sum
  umount /$disk
  mount -t ext4 /dev/$disk /$disk
  [ "$(md5sum < /$disk/data)" = "$(cat /$disk/sum)" ] && echo EQUAL-$disk
  umount /$disk
done
grep -E 'nvme|virtio' /proc/interrupts
"#;

#[test]
fn linux_and_the_payload_drive_physical_devices() {
    let script = r#"
shows() { grep -q "$2" /tmp/$1.err || fail "$1: it does not show '$2'"; }
outrigger vfio list > /tmp/list.out; cat /tmp/list.out
has list 'NVME .*NVMe  *nvme .*when it is bound: outrigger vfio bind NVME'
for address in NVME VIRTIO EDU; do outrigger vfio bind $address || fail "bind $address"; done
[ "$(outrigger vfio list | grep -c 'vfio-pci.* yes$')" = 3 ] || fail 'not all are bound'

for cpus in 1 2; do
  # With two processors, more than the guest has memory.
  [ $cpus = 1 ] && pieces=4 || pieces=64
  boot linux$cpus 0 --kernel /guest/vmlinuz --initrd /guest/disks.cpio --cmdline "console=ttyS0 quiet pieces=$pieces" --memory 256M \
    --cpus $cpus --vfio NVME,deadline=60s --vfio VIRTIO,deadline=60s --show-devices --stats
  shows linux$cpus '0x00000-0x01fff  mapped       no exit; the hardware itself'
  has linux$cpus EQUAL-nvme0n1
  has linux$cpus EQUAL-vda
  has linux$cpus 'GUEST-EXIT 0'
  echo "linux$cpus at $(cut -d' ' -f1 /proc/uptime) s"
  has linux$cpus 'nvme0q1'
  # Nothing of the data path came to the VMM: of the disk's BAR it has answered the MSI-X table, and no message at all.
  shows linux$cpus '0000:00:01.0 BAR0  *0  *0  *[1-9]'

  boot edu$cpus 0 --kernel /guest/payload --memory 64M --cpus $cpus --vfio EDU --cmdline checks=edu-pin,edu-message --show-devices --stats
  has edu$cpus 'payload: passed'
  shows edu$cpus 'mapped       no exit; the hardware itself'
  grep -q '0000:00:01.0 BAR0' /tmp/edu$cpus.err && fail 'registers came to the VMM'
done

# A device that is asleep does not answer. With restart=off it is lost, and the guest goes on.
boot lost 6 --kernel /guest/payload --memory 64M --vfio NVME,restart=off --vfio EDU --cmdline checks=asleep-lost,edu-pin
has lost 'payload: passed'
grep -q 'NVME.*the hardware does not answer' /tmp/lost.err || fail "$(cat /tmp/lost.err)"
# Otherwise the next process serves it, and it wakes up.
boot wakes 0 --kernel /guest/payload --memory 64M --vfio NVME --cmdline checks=asleep-wakes
has wakes 'payload: passed'
grep -q 'NVME.*the hardware does not answer.*another one took its place' /tmp/wakes.err || fail "$(cat /tmp/wakes.err)"

# Each goes back to its driver, with what the guest has written.
for address in NVME VIRTIO EDU; do outrigger vfio unbind $address || fail "unbind $address"; done
outrigger vfio list > /tmp/after.out
cmp /tmp/list.out /tmp/after.out || fail 'something was not undone'
mkdir /disk
for disk in nvme0n1 vda; do
  disk $disk
  mount -t ext4 /dev/$disk /disk || fail "the host cannot mount $disk"
  [ "$(md5sum < /disk/data)" = "$(cat /disk/sum)" ] || fail "the host reads something else from $disk"
  if [ $disk = nvme0n1 ]; then outrigger vfio bind NVME 2> /tmp/busy.err && fail 'a mounted disk was taken from the host'; fi
  umount /disk
done
grep -q 'nvme0n1 (mounted at /disk); unmount it first' /tmp/busy.err || fail "$(cat /tmp/busy.err)"
no_splat
nothing_left
"#;
    let script = script.replace("NVME", NVME).replace("VIRTIO", VIRTIO).replace("EDU", EDU);
    let bed = physical::testbed().initramfs(DISKS, "/guest/disks.cpio").minutes(20);
    let ended = bed.run(&[physical::SHELL, &script].concat());
    ended.stdout.lines().filter(|line| line.contains(" at ")).for_each(|line| println!("{line}"));
}
