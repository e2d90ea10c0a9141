//! The process that owns a physical device, or the VMM, is killed while the device copies by DMA: nothing hangs, the host's kernel has
//! nothing to complain about, and the next guest has the device.

use outrigger_tests::physical::{self, EDU};

/// Each process this many times.
fn kills(rounds: u32) {
    let script = r#"
outrigger vfio bind EDU > /dev/null || fail bind
group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/EDU/iommu_group))
for round in $(seq ROUNDS); do
  for victim in device vmm; do
    start kill --kernel /guest/payload --memory 64M --vfio EDU --cmdline checks=edu-steady
    see kill ready
    # Some time later each round: a copy takes a tenth of a second, so that the kill comes anywhere in it.
    usleep $((round * 7919 % 200000))
    if [ $victim = device ]; then
      kill -9 $(pidof outrigger-vfio)
      wait $vmm; status=$?
      [ $status = 6 ] || { cat /tmp/kill.out /tmp/kill.err; fail "round $round: the guest ends with $status"; }
      grep -q 'ok edu-lost' /tmp/kill.out || { cat /tmp/kill.out /tmp/kill.err; fail "round $round: the guest has not seen it"; }
    else
      kill -9 $vmm
      wait $vmm
    fi
    for try in $(seq 100); do ( : 3<> $group ) 2> /dev/null && break; usleep 10000; done
    [ $try -lt 100 ] || fail "round $round: the device cannot be opened again after a $victim was killed"
  done
  [ $((round % 20)) != 0 ] || echo "$round rounds at $(cut -d' ' -f1 /proc/uptime) s"
done
# Usable, and the host's own again.
boot after 0 --kernel /guest/payload --memory 64M --vfio EDU --cmdline checks=edu-pin,edu-message
outrigger vfio unbind EDU || fail unbind
no_splat
nothing_left
echo "ROUNDS rounds passed"
"#;
    let script = script.replace("EDU", EDU).replace("ROUNDS", &rounds.to_string());
    let ended = physical::testbed().minutes(5 + u64::from(rounds) / 2).run(&[physical::SHELL, &script].concat());
    println!("{}", ended.stdout);
}

#[test]
fn a_killed_process_leaves_a_device_that_works() {
    kills(4);
}

#[test]
#[ignore = "a count that takes long: scripts/test --long vfio-kills"]
fn two_hundred_kills_of_each() {
    kills(200);
}
