//! The process that owns a physical device, or the VMM, is killed while the device copies by DMA: nothing hangs, and the host's kernel has
//! nothing to complain about. Another process goes on with the device, and the guest's I/O never stops; with `restart=off`, and after
//! the VMM, the next guest has the device.

use outrigger_tests::physical::{self, EDU, NVME};

/// Finds the process that serves the device, one after `pid`, and makes it $pid. Not one that gets ready: then none would ever serve.
const SERVING: &str = r#"
serving() {
  for try in $(seq 600); do
    next=$(outrigger ctl /tmp/control status 2> /dev/null | sed -n 's/.* serving .*outrigger-vfio (\([0-9]*\)).*/\1/p')
    [ -n "$next" ] && [ "$next" != "$pid" ] && { pid=$next; return; }
    [ -d /proc/$vmm ] || return
    usleep 20000
  done
  fail "nothing serves after process $pid: $(cat /tmp/*.err)"
}
"#;

/// In each round the process is killed, and then the VMM; in every tenth one the process of a device that has no successor.
fn kills(rounds: u32) {
    let script = r#"
outrigger vfio bind EDU > /dev/null || fail bind
group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/EDU/iommu_group))
processes=0 vmms=0 lost=0
begin() {
  start kill --kernel /guest/payload --memory 64M --vfio EDU,restart=$1 --cmdline checks=edu-steady --control /tmp/control
  see kill ready
  pid=''; serving
}
# Some time later each round: a copy takes a tenth of a second, so that the kill comes anywhere in it.
later() { usleep $((($1 + round) * 7919 % 200000)); }
free() {
  for try in $(seq 100); do ( : 3<> $group ) 2> /dev/null && return; usleep 10000; done
  fail "round $round: the device cannot be opened again after $1 was killed"
}
for round in $(seq ROUNDS); do
  if [ $((round % 10)) = 1 ]; then
    begin off; later 0
    kill -9 $pid; lost=$((lost + 1))
    wait $vmm; status=$?
    [ $status = 6 ] || { cat /tmp/kill.out /tmp/kill.err; fail "round $round: the guest ends with $status"; }
    has kill 'ok edu-lost'
    free 'the process'
  fi
  begin 1000/60; later 0
  kill -9 $pid; processes=$((processes + 1))
  # In every other round while another process is about to take its place.
  [ $((round % 2)) = 1 ] || serving
  later 17
  [ -d /proc/$vmm ] && ! grep -E 'edu-copies|edu-lost' /tmp/kill.out || { cat /tmp/kill.out /tmp/kill.err; fail "round $round: the guest has noticed"; }
  kill -9 $vmm; vmms=$((vmms + 1))
  wait $vmm
  free 'the VMM'
  [ $((round % 20)) != 0 ] || echo "$round rounds at $(cut -d' ' -f1 /proc/uptime) s"
done
# Usable, and the host's own again.
boot after 0 --kernel /guest/payload --memory 64M --vfio EDU --cmdline checks=edu-pin,edu-message
outrigger vfio unbind EDU || fail unbind
no_splat
nothing_left
echo "killed: $processes processes with a successor, $lost without, $vmms VMMs; $(cut -d' ' -f1 /proc/uptime) s"
"#;
    let script = script.replace("EDU", EDU).replace("ROUNDS", &rounds.to_string());
    let bed = physical::testbed().minutes(5 + u64::from(rounds) / 2);
    println!("{}", bed.run(&[physical::SHELL, SERVING, &script].concat()).stdout);
}

/// Writes and reads back past the caches until the host says that it is enough.
const VERIFIED: &str = r#"
for try in $(seq 100); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done
dd if=/dev/urandom of=/tmp/part bs=64k count=16 2> /dev/null
sum=$(sha256sum < /tmp/part)
{ read -r line < /dev/ttyS0; echo > /enough; } &
echo GUEST-STARTS
round=0
until [ -e /enough ]; do
  round=$((round + 1))
  at=$((round % 8 * 16))
  dd if=/tmp/part of=/dev/nvme0n1 bs=64k seek=$at oflag=direct 2> /dev/null || { echo WRITE-FAILED; exit; }
  [ "$(dd if=/dev/nvme0n1 bs=64k skip=$at count=16 iflag=direct 2> /dev/null | sha256sum)" = "$sum" ] || { echo DIFFERENT; exit; }
done
dmesg | grep -iE 'nvme.*(timeout|abort|reset|error|down)' && exit
echo "ALL-EQUAL: $round MiB"
"#;

/// `outrigger-vfio` is killed so many times under a Linux guest's verified I/O.
fn kills_under_io(kills: u32) {
    let script = r#"
outrigger vfio bind NVME > /dev/null || fail bind
mkfifo /tmp/console
outrigger run --kernel /guest/vmlinuz --initrd /guest/kills.cpio --cmdline 'console=ttyS0 quiet' --memory 256M --cpus 2 \
  --vfio NVME,restart=10000/60 --control /tmp/control < /tmp/console > /tmp/linux.out 2> /tmp/linux.err &
vmm=$!
exec 9> /tmp/console
for try in $(seq 2400); do grep -q GUEST-STARTS /tmp/linux.out && break; sleep 0.1; done
kills=0 pid=''
while [ $kills -lt KILLS ] && [ -d /proc/$vmm ] && ! grep -qE 'WRITE-FAILED|DIFFERENT|GUEST-EXIT' /tmp/linux.out; do
  serving
  kill -9 $pid 2> /dev/null && kills=$((kills + 1))
  [ $((kills % 50)) != 0 ] || echo "$kills kills at $(cut -d' ' -f1 /proc/uptime) s"
  usleep $((kills * 7919 % 100000))
done
sleep 1
echo enough >&9
wait $vmm; status=$?
cat /tmp/linux.out
echo "$kills kills, status $status; $(cut -d' ' -f1 /proc/uptime) s"
[ $status = 0 ] || { cat /tmp/linux.err; fail "status $status"; }
has linux 'ALL-EQUAL: [1-9]'
[ $kills = KILLS ] || fail "only $kills kills"
no_splat
outrigger vfio unbind NVME || fail unbind
nothing_left
"#;
    let script = script.replace("NVME", NVME).replace("KILLS", &kills.to_string());
    let bed = physical::testbed().minutes(8 + u64::from(kills) / 5).initramfs(VERIFIED, "/guest/kills.cpio");
    println!("{}", bed.run(&[physical::SHELL, SERVING, &script].concat()).stdout);
}

#[test]
fn a_killed_process_is_succeeded_and_io_goes_on() {
    kills_under_io(20);
}

#[test]
#[ignore = "a count that takes long: scripts/test --long vfio-kills"]
fn two_hundred_kills_under_io() {
    kills_under_io(200);
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
