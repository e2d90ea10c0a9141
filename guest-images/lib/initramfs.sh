# shellcheck shell=bash disable=SC2154 # here, work, sysroot and the cloud kernel's tree are guest-images/build's
# The demo guest's initramfs and the archives of bigger programs that go in front of it on request. Programs and their
# libraries come from the packages unpacked in $work/sysroot, not from this machine.

guest_modules=(virtio_pci virtio_blk virtio_net ext4 nvme)

make_initramfs() {
  local root=$work/initramfs program release
  release=$(ls "$work/out/cloud/lib/modules")
  mkdir -p "$root"/{dev,etc,newroot,proc,root,run,sys,tmp}
  pack_busybox "$root" "$work/sysroot/bin/busybox"
  for program in mkfs.ext4 e2fsck; do pack "$root" "$work/sysroot/sbin/$program" "/sbin/$program" "$work/sysroot"; done
  pack "$root" "$work/sysroot/bin/nc.openbsd" /bin/nc.openbsd "$work/sysroot" # busybox's nc moves a KiB at a time
  ln -s ../bin/modprobe "$root/sbin/modprobe" # where the kernel looks when mount needs a file system's module
  cp "$here/files/fstab" "$root/etc/fstab"
  cp "$here/files/mke2fs.conf" "$root/etc/mke2fs.conf"
  install -m 755 "$here/files/init" "$root/init"
  pack_modules "$root" "$work/out/cloud" "$release" "${guest_modules[@]}"
  archive "$root" | lz4 -9 -l -q - "$work/out/initramfs.cpio.lz4" # lz4: the quickest that Debian's kernels unpack
}

# Archives to go in front of an initramfs: cat tools.cpio initramfs.cpio.lz4. They are not compressed, because the kernel takes
# nothing after an archive that lz4 has compressed.
make_tools() {
  local program
  for program in iperf3 lspci; do pack "$work/tools" "$work/sysroot/usr/bin/$program" "/usr/bin/$program" "$work/sysroot"; done
  pack "$work/tools" "$work/sysroot/sbin/ethtool" /usr/sbin/ethtool "$work/sysroot"
  archive "$work/tools" > "$work/out/tools.cpio"
  pack "$work/fio" "$work/sysroot/usr/bin/fio" /usr/bin/fio "$work/sysroot"
  archive "$work/fio" > "$work/out/fio.cpio"
}
