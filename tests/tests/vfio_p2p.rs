//! One physical device reaches another's BAR by DMA, if that is asked for: QEMU's teaching device, and one with memory in a BAR.

use outrigger_tests::physical::{self, EDU, SHARED_MEMORY};

#[test]
fn a_device_reaches_the_memory_of_another() {
    let script = r#"
for address in EDU SHARED; do outrigger vfio bind $address || fail "bind $address"; done
faults() { dmesg | grep -c 'DMAR:.*03:00.0.*fault addr'; }
group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/SHARED/iommu_group))

# Unless it is asked for, the IOMMU is in the way.
boot apart 0 --kernel /guest/payload --memory 64M --vfio EDU --vfio SHARED,p2p=on --cmdline checks=peer-out-of-reach
has apart 'payload: passed'
[ $(faults) != 0 ] || fail 'no DMA has faulted'

boot together 0 --kernel /guest/payload --memory 64M --vfio EDU,p2p=on --vfio SHARED --cmdline checks=peer-reached,edu-pin
has together 'payload: passed'
[ -s /tmp/together.err ] && fail 'something was said'

boot waits 0 --kernel /guest/payload --memory 64M --vfio EDU,p2p=on --vfio SHARED --cmdline checks=peer-waits
has waits 'payload: passed'

# Either process is killed and succeeded meanwhile.
start killed --kernel /guest/payload --memory 64M --vfio EDU,p2p=on --vfio SHARED --cmdline checks=peer-steady --control /tmp/control
see killed ready
for device in EDU SHARED; do
  before=$(faults)
  pid=$(outrigger ctl /tmp/control status | grep "vfio $device" | sed -n 's/.* serving .*outrigger-vfio (\([0-9]*\)).*/\1/p')
  kill -9 $pid || fail "no process of $device: $(outrigger ctl /tmp/control status)"
  see killed "$device.*another one took its place"
  [ "$(faults)" = "$before" ] || fail "DMA has faulted while $device was succeeded"
done
wait $vmm || { cat /tmp/killed.out /tmp/killed.err; fail 'it was not reached each time'; }
grep 'took its place' /tmp/killed.err

# A device that is lost is not kept open by those that could reach it.
start lost --kernel /guest/payload --memory 64M --vfio EDU,p2p=on --vfio SHARED,restart=off --cmdline checks=peer-steady,spin --control /tmp/control
see lost 'peer-reached-each-time'
( : 3<> $group ) 2> /dev/null && fail 'it is not open'
kill -9 $(outrigger ctl /tmp/control status | grep 'vfio SHARED' | sed -n 's/.* serving .*outrigger-vfio (\([0-9]*\)).*/\1/p')
for try in $(seq 100); do ( : 3<> $group ) 2> /dev/null && break; usleep 10000; done
[ $try -lt 100 ] || fail 'the lost device stays open'
[ -d /proc/$vmm ] || fail 'the guest is gone'
kill $vmm; wait $vmm
for address in EDU SHARED; do outrigger vfio unbind $address || fail "unbind $address"; done
no_splat
nothing_left
"#;
    let script = script.replace("EDU", EDU).replace("SHARED", SHARED_MEMORY);
    let ended = physical::testbed().run(&[physical::SHELL, &script].concat());
    println!("{}", ended.stdout);
}
