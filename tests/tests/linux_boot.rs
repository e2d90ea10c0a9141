//! Debian's kernel boots in the test bed, as bzImage and as ELF, with one, two and four processors; its disk and network card are
//! processes of their own, and work.

use outrigger_tests::guest;
use outrigger_tests::testbed::Testbed;

/// The test bed's processor is AMD's, and its KVM lets guests have guests.
const SAY_CPUS: &str = "grep -qw svm /proc/cpuinfo && echo RUNS GUESTS || echo RUNS NO GUESTS\n\
    echo CPUS $(grep -c ^processor /proc/cpuinfo) of $(cat /sys/devices/system/cpu/present)\n";

#[test]
fn bzimage_and_vmlinux_boot_with_one_two_and_four_processors() {
    let testbed =
        Testbed::new().initramfs(SAY_CPUS, "/guest/cpus").file(guest::directory().join("vmlinux"), "/guest/vmlinux");
    testbed.run(
        r#"
for kernel in vmlinuz vmlinux; do
  for cpus in 1 2 4; do
    boot $kernel$cpus 0 --kernel /guest/$kernel --initrd /guest/cpus --cpus $cpus --memory 256M --cmdline 'console=ttyS0 quiet panic=-1'
    has $kernel$cpus OUTRIGGER-GUEST-UP
    has $kernel$cpus "CPUS $cpus of"
    has $kernel$cpus 'RUNS NO GUESTS'
  done
done
boot nested 0 --kernel /guest/vmlinux --initrd /guest/cpus --nested on --memory 256M --cmdline 'console=ttyS0 quiet panic=-1'
has nested 'RUNS GUESTS'
nothing_left
"#,
    );
}

/// A file system is made, written, unmounted, mounted again and compared; a megabyte goes both ways through the tap; both devices
/// interrupt by MSI-X; the host's e2fsck finds nothing wrong.
#[test]
fn disk_and_network_card_work() {
    let guest = r#"
set -e
mkfs.ext4 -q /dev/vda
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=16 2> /dev/null
before=$(sha256sum < /mnt/data)
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
[ "$before" = "$(sha256sum < /mnt/data)" ] && echo DISK-EQUAL
echo "$before" > /mnt/sum
umount /mnt
ip addr add 10.77.0.2/24 dev eth0
ip link set eth0 up
ping -c 3 10.77.0.1
# nc gives up at the first end of file on either side: /tmp/never has none.
mkfifo /tmp/never
nc 10.77.0.1 7000 <> /tmp/never > /tmp/got
nc 10.77.0.1 7001 < /tmp/got
for device in /sys/class/block/vda/device/.. /sys/class/net/eth0/device/..; do
  for vector in "$device"/msi_irqs/*; do
    grep "^ *${vector##*/}:" /proc/interrupts
  done | awk '{ sum += $2 + $3 } END { print "MSIX", (sum > 0) ? "COUNTS" : "SILENT" }'
done
"#;
    Testbed::new().initramfs(guest, "/guest/devices").file("/sbin/e2fsck", "/sbin/e2fsck").run(
        r#"
dd if=/dev/urandom of=/tmp/sent bs=1M count=1 2> /dev/null
truncate -s 64M /tmp/disk
mkfifo /tmp/never
(
  until ip addr add 10.77.0.1/24 dev ordev0 && ip link set ordev0 up; do sleep 0.2; done 2> /dev/null
  nc -l -p 7000 < /tmp/sent
  nc -l -p 7001 <> /tmp/never > /tmp/back
) &
boot devices 0 --kernel /guest/vmlinuz --initrd /guest/devices --cpus 2 --memory 256M --cmdline 'console=ttyS0 quiet panic=-1' \
  --disk path=/tmp/disk,serial=outrigger --net tap=ordev0,mac=52:54:00:12:34:56
has devices DISK-EQUAL
has devices '0% packet loss'
has devices 'GUEST-EXIT 0'
[ $(grep -c 'MSIX COUNTS' /tmp/devices.out) = 2 ] || fail 'a device did not interrupt by MSI-X'
wait
cmp /tmp/sent /tmp/back || fail 'what came back through the tap differs'
e2fsck -fn /tmp/disk || fail 'e2fsck found something'
mkdir /tmp/mnt && mount -t ext4 -o ro,loop /tmp/disk /tmp/mnt || fail 'the image does not mount'
[ "$(sha256sum < /tmp/mnt/data)" = "$(cat /tmp/mnt/sum)" ] || fail 'the file differs on the host'
nothing_left
"#,
    );
}
