//! How Linux guests end: reboot, panic, and signals to the VMM while they run.

use outrigger_tests::testbed::Testbed;

#[test]
fn reboot_panic_and_signals_have_their_statuses() {
    let testbed = Testbed::new()
        .initramfs("reboot -f\n", "/guest/reboot")
        .initramfs("echo 1 > /proc/sys/kernel/sysrq\necho c > /proc/sysrq-trigger\n", "/guest/panic")
        .initramfs("while :; do sleep 1; done\n", "/guest/sleep");
    testbed.run(
        r#"
common="--kernel /guest/vmlinuz --memory 256M"
truncate -s 1M /tmp/disk
# The default command line, under which a panic is a reboot; the others are quiet, for a console byte is dear here.
boot panic 4 $common --initrd /guest/panic
has panic 'Kernel panic'
quiet='console=ttyS0 quiet'
boot reboot 4 $common --initrd /guest/reboot --cpus 2 --cmdline "$quiet"
for signal in TERM:143 HUP:129 KILL:137; do
  outrigger run $common --initrd /guest/sleep --cmdline "$quiet" --disk path=/tmp/disk --net tap=orsig0 < /dev/null > /tmp/signal.out 2>&1 &
  vmm=$!
  for second in $(seq 200); do grep -q OUTRIGGER-GUEST-UP /tmp/signal.out && break; sleep 1; done
  has signal OUTRIGGER-GUEST-UP
  # A shell without job control has its background children ignore SIGINT, which stays so.
  kill -INT $vmm
  sleep 1
  kill -0 $vmm || fail 'an ignored SIGINT ended it'
  kill -${signal%:*} $vmm
  wait $vmm; status=$?
  [ $status = ${signal#*:} ] || { cat /tmp/signal.out; fail "after $signal: status $status"; }
  nothing_left
done
"#,
    );
}
