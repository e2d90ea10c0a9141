//! A Linux guest that uses no message-signalled interrupts: disk and network card interrupt by pins of the I/O APIC.

use outrigger_tests::testbed::Testbed;

const GUEST: &str = r#"
set -e
mkfs.ext4 -q -F /dev/vda
mkdir -p /mnt
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=8 2> /dev/null
sha256sum < /mnt/data > /mnt/sum
umount /mnt
mount -t ext4 /dev/vda /mnt
[ "$(sha256sum < /mnt/data)" = "$(cat /mnt/sum)" ] && echo EQUAL
ip addr add 10.79.0.2/24 dev eth0
ip link set eth0 up
ping -c 3 10.79.0.1
grep virtio /proc/interrupts
"#;

#[test]
fn disk_and_network_work_by_interrupt_pins() {
    Testbed::new().initramfs(GUEST, "/guest/intx.cpio").run(
        r#"
truncate -s 64M /tmp/disk
tunctl -t orintx > /dev/null
ip addr add 10.79.0.1/24 dev orintx
ip link set orintx up
for cpus in 1 2; do
  boot intx$cpus 0 --kernel /guest/vmlinuz --initrd /guest/intx.cpio --cmdline 'console=ttyS0 quiet pci=nomsi' \
    --memory 256M --cpus $cpus --disk path=/tmp/disk --net tap=orintx
  has intx$cpus EQUAL
  has intx$cpus ' 0% packet loss'
  has intx$cpus 'IO-APIC  17-fasteoi   virtio0'
  has intx$cpus 'IO-APIC  18-fasteoi   virtio1'
  has intx$cpus 'GUEST-EXIT 0'
done
tunctl -d orintx > /dev/null
nothing_left
"#,
    );
}
