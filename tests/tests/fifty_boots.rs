//! Fifty boots in a row on one host leave nothing behind and use nothing up.

use outrigger_tests::guest;
use outrigger_tests::testbed::Testbed;

#[test]
fn fifty_boots_in_a_row_leave_nothing() {
    // The ELF kernel, for a bzImage spends most of a boot here on unpacking itself; `linux_boot` boots both.
    let testbed =
        Testbed::new().initramfs("true\n", "/guest/up").file(guest::directory().join("vmlinux"), "/guest/vmlinux");
    testbed.minutes(30).cpus(2).run(
        r#"
truncate -s 16M /tmp/disk0 /tmp/disk1
# Not with `read`, which takes single bytes: files of sysctl give no more than the first.
files() { awk '{ print $1 }' /proc/sys/fs/file-nr; }
shared() { awk '$1 == "Shmem:" { print $2 }' /proc/meminfo; }
# one_boot SIDE CPUS
one_boot() {
  boot side$1 0 --kernel /guest/vmlinux --initrd /guest/up --cpus $2 --memory 128M \
    --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off' --disk path=/tmp/disk$1 --net tap=orboot$1 > /dev/null
  has side$1 OUTRIGGER-GUEST-UP
  has side$1 'GUEST-EXIT 0'
}
# Two at a time, each on a processor of its own.
for round in $(seq 25); do
  ( one_boot 0 $((round % 5 ? 1 : 2)) ) & other=$!
  ( one_boot 1 1 ) || { cat /tmp/side1.*; fail "round $round"; }
  wait $other || { cat /tmp/side0.*; fail "round $round, beside"; }
  nothing_left
  echo "$((2 * round)) boots done at $(cut -d ' ' -f 1 /proc/uptime) s"
  # The first boots fill the kernel's caches.
  [ $round != 3 ] || { files_before=$(files) shared_before=$(shared); }
done
# A run holds hundreds of files and 128 MiB: one left in forty-four would show. The kernel frees files in batches, hence the slack.
for second in $(seq 10); do
  [ $(files) -gt $((files_before + 50)) ] || break
  sleep 1
done
echo "open files: $files_before after 6 boots, $(files) after 50; shared memory: $shared_before KiB, $(shared) KiB"
[ $(files) -le $((files_before + 50)) ] || fail 'open files grow'
[ $(shared) -le $((shared_before + 1024)) ] || fail 'shared memory grows'
"#,
    );
}
