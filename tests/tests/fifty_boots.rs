//! Fifty boots in a row on one host leave nothing behind and use nothing up.

use outrigger_tests::guest;
use outrigger_tests::testbed::Testbed;

#[test]
fn fifty_boots_in_a_row_leave_nothing() {
    // The ELF kernel, for a bzImage spends most of a boot here on unpacking itself; `linux_boot` boots both.
    let testbed =
        Testbed::new().initramfs("true\n", "/guest/up").file(guest::directory().join("vmlinux"), "/guest/vmlinux");
    testbed.minutes(30).run(
        r#"
truncate -s 16M /tmp/disk
# Not with `read`, which takes single bytes: files of sysctl give no more than the first.
files() { awk '{ print $1 }' /proc/sys/fs/file-nr; }
shared() { awk '$1 == "Shmem:" { print $2 }' /proc/meminfo; }
for number in $(seq 50); do
  timeout 200 outrigger run --kernel /guest/vmlinux --initrd /guest/up --cpus $((number % 5 ? 1 : 2)) --memory 128M \
    --cmdline 'console=ttyS0 quiet panic=-1 mitigations=off' --disk path=/tmp/disk --net tap=orboot0 < /dev/null > /tmp/boot.out 2>&1; status=$?
  [ $status = 0 ] || { cat /tmp/boot.out; fail "boot $number: status $status"; }
  has boot OUTRIGGER-GUEST-UP
  has boot 'GUEST-EXIT 0'
  nothing_left
  echo "boot $number done at $(cut -d ' ' -f 1 /proc/uptime) s"
  # The first boots fill the kernel's caches.
  [ $number != 5 ] || { files_before=$(files) shared_before=$(shared); }
done
# A run holds hundreds of files and 128 MiB: one left in forty-five would show. The kernel frees files in batches, hence the slack.
for second in $(seq 10); do
  [ $(files) -gt $((files_before + 50)) ] || break
  sleep 1
done
echo "open files: $files_before after 5 boots, $(files) after 50; shared memory: $shared_before KiB, $(shared) KiB"
[ $(files) -le $((files_before + 50)) ] || fail 'open files grow'
[ $(shared) -le $((shared_before + 1024)) ] || fail 'shared memory grows'
"#,
    );
}
