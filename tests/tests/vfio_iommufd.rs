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
    run(script);
}

/// `free` waits until nobody has EDU.
const FREE: &str = r#"
group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/EDU/iommu_group))
free() { for try in $(seq 100); do ( : 7<> $group ) 2> /dev/null && return; usleep 50000; done; fail 'the device stays in use'; }
"#;

#[test]
#[ignore = "needs the test bed's own kernel, which has iommufd: scripts/test --kernel"]
fn the_vmm_maps_guest_ram_and_the_process_has_none() {
    let script = r#"
for address in NVME VIRTIO EDU; do outrigger vfio bind $address || fail "bind $address"; done
# Guest RAM as /proc shows it in a process: how often it is mapped or open.
ram() { { cat /proc/$1/maps; ls -l /proc/$1/fd; } | grep -c memfd:; }

# The process is killed, and the guest that has the memory goes on. With dma=shared, to see that it would be seen.
# With dma=vmm this shell has the device's file as well, so that the kernel does not close it.
for dma in shared vmm; do
  options=EDU,iommu=iommufd,dma=$dma
  [ $dma = shared ] || { exec 7<> /dev/vfio/devices/$(basename /sys/bus/pci/devices/EDU/vfio-dev/vfio*); options=$options,fd=7; }
  start $dma --kernel /guest/payload --memory 64M --vfio $options --cmdline checks=edu-pin,spin --show-devices
  see $dma edu-dma-copied
  device=$(pidof outrigger-vfio)
  echo "$dma: guest RAM $(ram $vmm) times in the VMM, $(ram $device) times in the process"
  [ $(ram $vmm) -gt 0 ] || fail 'the VMM has no guest RAM'
  if [ $dma = shared ]; then
    [ $(ram $device) -gt 0 ] || fail 'guest RAM is not seen where it is'
  else
    [ $(ram $device) = 0 ] || fail "the process has guest RAM: $(cat /proc/$device/maps; ls -l /proc/$device/fd)"
  fi
  kill -9 $device
  see $dma 'was killed by SIGKILL; from now on the guest reads all-ones'
  [ $dma = vmm ] || { free; kill $vmm; wait $vmm; }
done
grep -q 'guest RAM mapped by outrigger, not in the process' /tmp/vmm.err || fail "$(cat /tmp/vmm.err)"
# Nothing is mapped for the device any more: DMA, which the host starts by the registers, faults in the IOMMU.
dmesg | grep -q 'DMAR:.*\[DMA Write.*03:00.0.*fault addr' && fail 'DMA has faulted before'
echo on > /sys/bus/pci/devices/EDU/power/control
printf '\006\000' | dd of=/sys/bus/pci/devices/EDU/config bs=2 seek=2 conv=notrunc 2> /dev/null
base=$(head -n 1 /sys/bus/pci/devices/EDU/resource | cut -d' ' -f1)
[ "$(devmem $((base)) 32)" = 0x010000ED ] || fail "the device is not there: $(devmem $((base)) 32)"
for register in '0x80 0x40000' '0x88 0x100000' '0x90 64' '0x98 3'; do devmem $((base + ${register% *})) 64 $((${register#* })); done
for try in $(seq 600); do dmesg | grep 'DMAR:.*\[DMA Write.*03:00.0.*fault addr 0x100000' && break; sleep 0.1; done
[ $try -lt 600 ] || { dmesg | tail -n 20; fail 'DMA to memory of the guest does not fault'; }
kill -0 $vmm || fail 'the guest is gone'
printf '\000\000' | dd of=/sys/bus/pci/devices/EDU/config bs=2 seek=2 conv=notrunc 2> /dev/null
kill $vmm; wait $vmm
exec 7>&-
free

# A device that another process has, of a host that has no groups, so that only binding it shows that.
start first --kernel /guest/payload --memory 64M --vfio EDU,iommu=iommufd --cmdline checks=edu-pin,spin
see first edu-dma-copied
mv $group /dev/vfio/hidden
outrigger run --kernel /guest/payload --memory 64M --vfio EDU,dma=vmm 2> /tmp/busy.err; status=$?
mv /dev/vfio/hidden $group
cat /tmp/busy.err
line="outrigger: --vfio EDU,dma=vmm: dma=vmm: the device's file cannot be bound to an iommufd: in use by another process"
[ $status = 2 ] && [ "$(cat /tmp/busy.err)" = "$line" ] || fail "status $status; it should be 2 and '$line'"
kill $vmm; wait $vmm
free

boot edu 0 --kernel /guest/payload --memory 64M --vfio EDU,dma=vmm --cmdline checks=edu-pin,edu-message --stats
has edu 'payload: passed'
grep -q '0000:00:01.0 BAR0' /tmp/edu.err && fail 'registers came to the VMM'
boot linux 0 --kernel /guest/vmlinuz --initrd /guest/disks.cpio --cmdline 'console=ttyS0 quiet' --memory 256M \
  --vfio NVME,dma=vmm,deadline=60s --vfio VIRTIO,dma=vmm,deadline=60s
has linux EQUAL-nvme0n1
has linux EQUAL-vda
has linux 'GUEST-EXIT 0'

# The VMM is killed while the device copies.
start kill --kernel /guest/payload --memory 64M --vfio EDU,dma=vmm --cmdline checks=edu-steady
see kill ready
kill -9 $vmm
wait $vmm
free
boot after 0 --kernel /guest/payload --memory 64M --vfio EDU,dma=vmm --cmdline checks=edu-message

# A process that sends another file, here its group's, and one whose client does not map memory.
mkdir /tmp/other
cp /bin/outrigger /tmp/other
printf '#!/bin/sh\nexec /bin/outrigger-vfio --options EDU,iommu=container --fd 0\n' > /tmp/other/outrigger-vfio
chmod +x /tmp/other/outrigger-vfio
/tmp/other/outrigger run --kernel /guest/payload --memory 64M --vfio EDU,dma=vmm 2> /tmp/other.err; status=$?
cat /tmp/other.err
[ $status = 3 ] || fail "status $status instead of 3"
line="outrigger: --vfio EDU,dma=vmm: dma=vmm: the device's file cannot be bound to an iommufd: VFIO_DEVICE_BIND_IOMMUFD: Not a typewriter"
[ "$(cat /tmp/other.err)" = "$line" ] || fail "it should say '$line'"
free
# One that sends the file of another device, which it may open: the guest has that one, and the process no guest RAM.
outrigger vfio bind SHARED || fail 'bind SHARED'
printf '#!/bin/sh\nexec /bin/outrigger-vfio --options EDU,dma=vmm --fd 0\n' > /tmp/other/outrigger-vfio
/tmp/other/outrigger run --kernel /guest/payload --memory 64M --vfio SHARED,dma=vmm --cmdline checks=edu-pin,spin \
  < /dev/null > /tmp/swapped.out 2> /tmp/swapped.err &
vmm=$!
see swapped edu-dma-copied
device=$(pidof outrigger-vfio)
[ $(ram $vmm) -gt 0 ] && [ $(ram $device) = 0 ] || fail "the process has guest RAM: $(cat /proc/$device/maps; ls -l /proc/$device/fd)"
kill $vmm; wait $vmm
free
outrigger-vfio --vfio EDU,dma=vmm --socket /tmp/edu.sock 2> /tmp/server.err & server=$!
for try in $(seq 100); do [ -S /tmp/edu.sock ] && break; sleep 0.1; done
boot refused 2 --kernel /guest/payload --memory 64M --device socket=/tmp/edu.sock
grep -q 'with dma=vmm it is for a client that maps memory for it' /tmp/server.err || fail "$(cat /tmp/server.err)"
kill $server; wait $server
no_splat
nothing_left
"#;
    run(script);
}

fn run(script: &str) {
    let script = [physical::SHELL, FREE, script].concat();
    let script =
        script.replace("NVME", NVME).replace("VIRTIO", VIRTIO).replace("EDU", EDU).replace("SHARED", SHARED_MEMORY);
    let bed = physical::testbed().kernel("ioregionfd").initramfs(DISKS, "/guest/disks.cpio").minutes(20);
    println!("{}", bed.run(&script).stdout);
}
