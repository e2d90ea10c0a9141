//! The process that owns a physical device, or the VMM, is killed while the device copies by DMA: nothing hangs, and the host's kernel has
//! nothing to complain about. Another process goes on with the device, and the guest's I/O never stops; with `restart=off`, and after
//! the VMM, the next guest has the device.

use outrigger_tests::physical::{self, EDU, NVME};

/// Each process this many times.
fn kills(rounds: u32) {
    let script = r#"
outrigger vfio bind EDU > /dev/null || fail bind
group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/EDU/iommu_group))
for round in $(seq ROUNDS); do
  for victim in device vmm; do
    start kill --kernel /guest/payload --memory 64M --vfio EDU,restart=off --cmdline checks=edu-steady
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

/// Writes and reads back past the caches until the host says that it is enough.
const VERIFIED: &str = r#"
for try in $(seq 100); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done
dd if=/dev/urandom of=/tmp/part bs=64k count=16 2> /dev/null
sum=$(sha256sum < /tmp/part)
echo GUEST-STARTS
for round in $(seq ROUNDS); do
  at=$((round % 8 * 16))
  dd if=/tmp/part of=/dev/nvme0n1 bs=64k seek=$at oflag=direct 2> /dev/null || { echo WRITE-FAILED; exit; }
  [ "$(dd if=/dev/nvme0n1 bs=64k skip=$at count=16 iflag=direct 2> /dev/null | sha256sum)" = "$sum" ] || { echo DIFFERENT; exit; }
done
dmesg | grep -iE 'nvme.*(timeout|abort|reset|error|down)' && exit
echo ALL-EQUAL
"#;

/// `outrigger-vfio` is killed under a Linux guest's I/O until that has verified so many MiB. At least `kills` must have come of it.
fn kills_under_io(rounds: u32, kills: u32) {
    let script = r#"
outrigger vfio bind NVME > /dev/null || fail bind
start linux --kernel /guest/vmlinuz --initrd /guest/kills.cpio --cmdline 'console=ttyS0 quiet' --memory 256M --cpus 2 \
  --vfio NVME,restart=10000/60 --control /tmp/control
for try in $(seq 1200); do grep -q GUEST-STARTS /tmp/linux.out && break; sleep 0.1; done
kills=0
while [ -d /proc/$vmm ] && ! grep -qE 'ALL-EQUAL|WRITE-FAILED|DIFFERENT|GUEST-EXIT' /tmp/linux.out; do
  # One that serves the device, not one that gets ready: then none would ever serve it.
  pid=$(outrigger ctl /tmp/control status 2> /dev/null | sed -n 's/.* serving .*outrigger-vfio (\([0-9]*\)).*/\1/p')
  [ -n "$pid" ] && kill -9 $pid 2> /dev/null && kills=$((kills + 1))
  usleep $((kills * 7919 % 100000))
done
wait $vmm; status=$?
cat /tmp/linux.out
echo "$kills kills, status $status"
[ $status = 0 ] || { cat /tmp/linux.err; fail "status $status"; }
has linux ALL-EQUAL
[ $kills -ge KILLS ] || fail "only $kills kills"
no_splat
outrigger vfio unbind NVME || fail unbind
nothing_left
"#;
    let script = script.replace("NVME", NVME).replace("KILLS", &kills.to_string());
    let guest = VERIFIED.replace("ROUNDS", &rounds.to_string());
    let bed = physical::testbed().minutes(8 + u64::from(kills) / 10).initramfs(&guest, "/guest/kills.cpio");
    println!("{}", bed.run(&[physical::SHELL, &script].concat()).stdout);
}

#[test]
fn a_killed_process_is_succeeded_and_io_goes_on() {
    kills_under_io(20, 20);
}

#[test]
#[ignore = "a count that takes long: scripts/test --long vfio-kills"]
fn two_hundred_kills_under_io() {
    kills_under_io(100, 200);
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
