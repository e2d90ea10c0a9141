//! A physical NVMe disk under somebody else's client: QEMU 11's `vfio-user-pci` in the test bed's host, with KVM and a Debian guest.

use outrigger_tests::physical::{self, NVME};

/// First boot: makes a file system and leaves a sum. Second boot, in the same QEMU, and any later: reads it again.
const GUEST: &str = r#"
for try in $(seq 600); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done
mkdir -p /disk
if ! mount -t ext4 /dev/nvme0n1 /disk 2> /dev/null; then
  mkfs.ext4 -q -F /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /disk || { dmesg | tail -n 30; exit; }
  dd if=/dev/urandom of=/tmp/part bs=1M count=4 2> /dev/null
  for piece in $(seq 4); do echo $piece; cat /tmp/part; done > /disk/data
  md5sum < /disk/data > /disk/sum
  umount /disk
  echo MADE
  reboot -f
fi
[ "$(md5sum < /disk/data)" = "$(cat /disk/sum)" ] && echo EQUAL
echo boot >> /disk/boots
echo BOOTS $(wc -l < /disk/boots)
umount /disk
grep nvme /proc/interrupts
dmesg | grep -iE 'nvme.*(timeout|abort|error|down)' || echo NO-ERRORS
"#;

#[test]
fn a_guest_of_qemu_uses_a_physical_disk() {
    let script = r#"
outrigger vfio bind NVME || fail bind
RUST_LOG=info outrigger-vfio --vfio NVME --socket /tmp/nvme.sock 2> /tmp/server.err &
server=$!
for try in $(seq 100); do [ -S /tmp/nvme.sock ] && break; usleep 100000; done
# qemu NAME: its guest with the disk, which may reboot.
qemu() {
  timeout 600 qemu11 -accel kvm -cpu host -smp 2 -m 256M -object memory-backend-memfd,id=memory,size=256M,share=on \
    -machine q35,memory-backend=memory -nodefaults -no-user-config -display none -serial stdio \
    -kernel /guest/vmlinuz -initrd /guest/qemu.cpio -append 'console=ttyS0 quiet panic=-1' \
    -device '{"driver":"vfio-user-pci","socket":{"path":"/tmp/nvme.sock","type":"unix"}}' < /dev/null > /tmp/$1.out 2>&1
  status=$?
  sed "s/^/$1| /" /tmp/$1.out
  [ $status = 0 ] || { cat /tmp/server.err; fail "$1: QEMU ends with $status"; }
  echo "$1 ended at $(cut -d' ' -f1 /proc/uptime) s"
}
# (A line from a guest ends with a carriage return.) One after the other, and the device is opened for each: the server outlives its clients.
qemu first
has first MADE; has first 'BOOTS 1.$'
qemu second
has second 'BOOTS 2.$'
for name in first second; do has $name EQUAL; has $name nvme0q1; has $name NO-ERRORS; has $name 'GUEST-EXIT 0'; done
cat /tmp/server.err
kill $server
wait $server || fail "the server ends with $?"

# The host reads what the guest has written.
outrigger vfio unbind NVME || fail unbind
disk nvme0n1
mkdir /disk
mount -t ext4 /dev/nvme0n1 /disk || fail 'the host cannot mount the disk'
[ "$(md5sum < /disk/data)" = "$(cat /disk/sum)" ] && [ "$(wc -l < /disk/boots)" = 2 ] || fail 'the host reads something else'
umount /disk
no_splat
nothing_left
"#;
    let bed = physical::testbed().with_qemu().initramfs(GUEST, "/guest/qemu.cpio").minutes(20);
    let ended = bed.run(&[physical::SHELL, &script.replace("NVME", NVME)].concat());
    ended.stdout.lines().filter(|line| line.contains(" ended at ")).for_each(|line| println!("{line}"));
}
