//! The disk's process is killed while a Linux guest reads from it, and has no successor (`restart=off`): the guest goes on, sees all ones, and can end.

use outrigger_tests::testbed::Testbed;

#[test]
fn linux_goes_on_after_its_disk_process_was_killed() {
    let guest = r#"
config=$(readlink -f /sys/class/block/vda/device/..)/config
(while dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2> /dev/null; do :; done) &
sleep 1
echo IO-RUNS
for try in $(seq 600); do
  [ "$(od -An -tx4 -N4 $config)" = ' ffffffff' ] && { echo DISK-READS-ALL-ONES; break; }
  sleep 0.1
done
ping -c 2 10.78.0.1 2>&1 | grep 'packets received' || true
sleep 2 # the console is slower than a reset
# An orderly end would reset the dead disk and wait for its status to read 0, for ever (Linux's vp_reset): this one asks no driver.
echo 1 > /proc/sys/kernel/sysrq
echo b > /proc/sysrq-trigger
"#;
    Testbed::new().initramfs(&format!("ip addr add 10.78.0.2/24 dev eth0; ip link set eth0 up\n{guest}"), "/guest/io").run(
        r#"
truncate -s 64M /tmp/precious.img
timeout -s KILL 300 outrigger run --kernel /guest/vmlinuz --initrd /guest/io --cpus 2 --memory 256M --cmdline 'console=ttyS0 quiet panic=-1' \
  --disk path=/tmp/precious.img,restart=off --net tap=orkill0 \
  < /dev/null > /tmp/killed.out 2> /tmp/killed.err &
vmm=$!
for second in $(seq 200); do grep -q IO-RUNS /tmp/killed.out && break; sleep 1; done
has killed IO-RUNS
ip addr add 10.78.0.1/24 dev orkill0; ip link set orkill0 up
kill -9 $(pidof outrigger-blk)
wait $vmm; status=$?
cat /tmp/killed.out /tmp/killed.err
[ $status = 6 ] || fail "status $status instead of 6"
has killed DISK-READS-ALL-ONES
has killed '2 packets received'
grep -q precious.img /tmp/killed.err || fail 'the dead device is not named'
nothing_left
"#,
    );
}
