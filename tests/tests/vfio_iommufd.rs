//! Physical devices by iommufd, on the bed's own kernel, which has it.

use outrigger_tests::physical::{self, EDU, NVME, SHARED_MEMORY, VIRTIO};

const DISKS: &str = r#"
set -e
for disk in nvme0n1 vda; do
  for try in $(seq 100); do [ -b /dev/$disk ] && break; sleep 0.1; done
  dd if=/dev/urandom of=/tmp/part bs=1M count=4 2> /dev/null
  dd if=/tmp/part of=/dev/$disk bs=1M oflag=direct 2> /dev/null
  [ "$(dd if=/dev/$disk bs=1M count=4 iflag=direct 2> /dev/null | sha256sum)" = "$(sha256sum < /tmp/part)" ] && echo EQUAL-$disk
done
"#;

#[test]
#[ignore = "needs the test bed's own kernel, which has iommufd: scripts/test --kernel"]
fn devices_work_by_iommufd_and_by_the_container() {
    let script = r#"
for address in NVME VIRTIO EDU; do outrigger vfio bind $address || fail "bind $address"; done
export RUST_LOG=info
group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/EDU/iommu_group))
free() { for try in $(seq 100); do ( : 7<> $group ) 2> /dev/null && return; usleep 50000; done; fail 'the device stays in use'; }
for iommu in auto iommufd container; do
  boot edu-$iommu 0 --kernel /guest/payload --memory 64M --vfio EDU,iommu=$iommu --cmdline checks=edu-pin,edu-message --stats
  has edu-$iommu 'payload: passed'
  grep -q '0000:00:01.0 BAR0' /tmp/edu-$iommu.err && fail 'registers came to the VMM'
done
grep -q 'EDU is reached by iommufd: the kernel and the device have it' /tmp/edu-auto.err || fail "$(cat /tmp/edu-auto.err)"
grep -q 'EDU is reached by iommufd: as was asked for' /tmp/edu-iommufd.err || fail "$(cat /tmp/edu-iommufd.err)"
grep -q 'EDU is reached by the legacy container: as was asked for' /tmp/edu-container.err || fail "$(cat /tmp/edu-container.err)"

boot linux 0 --kernel /guest/vmlinuz --initrd /guest/disks.cpio --cmdline 'console=ttyS0 quiet' --memory 256M \
  --vfio NVME,deadline=60s --vfio VIRTIO,deadline=60s
has linux EQUAL-nvme0n1
has linux EQUAL-vda
has linux 'GUEST-EXIT 0'

# One server, one client after the other: each has a file of its own.
outrigger-vfio --vfio EDU --socket /tmp/edu.sock 2> /tmp/server.err & server=$!
for try in $(seq 100); do [ -S /tmp/edu.sock ] && break; sleep 0.1; done
for client in 1 2; do
  boot client$client 0 --kernel /guest/payload --memory 64M --device socket=/tmp/edu.sock --cmdline checks=edu-message
done
kill $server; wait $server

# Files that were opened by somebody else.
cdev=/dev/vfio/devices/$(basename /sys/bus/pci/devices/EDU/vfio-dev/vfio*)
( exec 7<> $cdev 8<> /dev/iommu
  boot given 0 --kernel /guest/payload --memory 64M --vfio EDU,fd=7,iommufd=8 --cmdline checks=edu-message ) || fail 'given files'
# `timeout` in `boot` has inherited the descriptors, too, and holds them a little longer.
free
( exec 7<> $group
  boot group 0 --kernel /guest/payload --memory 64M --vfio EDU,fd=7 --cmdline checks=edu-message ) || fail 'a given group'
free
( exec 7<> /dev/null
  outrigger run --kernel /guest/payload --memory 64M --vfio EDU,fd=7 2> /tmp/other.err ) && fail 'another file'
grep -q 'neither the device.s file' /tmp/other.err || fail "$(cat /tmp/other.err)"

# From device to device: this kernel has no way to map a BAR by iommufd. That is said once, and the guest goes on.
outrigger vfio bind SHARED || fail 'bind SHARED'
for iommu in iommufd container; do
  [ $iommu = iommufd ] && checks=peer-out-of-reach || checks=peer-reached
  boot peers-$iommu 0 --kernel /guest/payload --memory 64M --vfio EDU,p2p=on,iommu=$iommu --vfio SHARED --cmdline checks=$checks
  has peers-$iommu 'payload: passed'
done
[ $(grep -c 'p2p=on: it does not reach the BAR' /tmp/peers-iommufd.err) = 1 ] || fail 'it is not said once'
grep p2p=on: /tmp/peers-container.err && fail 'something is said'

# Whoever is killed, the device is there for the next. There is no successor.
for victim in device vmm; do
  start kill --kernel /guest/payload --memory 64M --vfio EDU --cmdline checks=edu-steady
  see kill ready
  if [ $victim = device ]; then kill -9 $(pidof outrigger-vfio); else kill -9 $vmm; fi
  wait $vmm; status=$?
  [ $victim = vmm ] || [ $status = 6 ] || { cat /tmp/kill.out /tmp/kill.err; fail "the guest ends with $status"; }
  free
  boot after-$victim 0 --kernel /guest/payload --memory 64M --vfio EDU --cmdline checks=edu-message
done
no_splat
nothing_left
"#;
    let script =
        script.replace("NVME", NVME).replace("VIRTIO", VIRTIO).replace("EDU", EDU).replace("SHARED", SHARED_MEMORY);
    let bed = physical::testbed().kernel("ioregionfd").initramfs(DISKS, "/guest/disks.cpio").minutes(20);
    bed.run(&[physical::SHELL, &script].concat());
}
