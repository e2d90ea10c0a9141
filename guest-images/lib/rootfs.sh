# shellcheck shell=bash disable=SC2154 # here, guest and release are guest-images/build's
# A Debian root file system with systemd on a bare ext4, for `root=/dev/vda rw console=ttyS0` together with the initramfs, which
# brings the modules to mount it. It reaches `login:` (root, no password) on the console with little else started. With
# `outrigger.poweroff` on the kernel's command line it powers off as soon as the login prompt is there.
rootfs_packages=systemd-sysv,systemd,udev,dbus,kmod,iproute2,e2fsprogs,login

# A subshell with a lock of its own: whoever wants only the initramfs need not wait.
make_rootfs() (
  locked rootfs
  [ ! -e "$guest/rootfs.ext4" ] || return 0
  command -v mmdebstrap > /dev/null || die "mmdebstrap is missing: scripts/install test"
  work=$(mktemp -d "$cache/guest/building.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  root=$work/root
  say "installing Debian with systemd into a directory (about half a minute)"
  mmdebstrap --mode=root --variant=essential --include="$rootfs_packages" --quiet --skip=check/qemu --architectures=amd64 \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    "$release" "$root" - < "$cache/apt/$release/sources.list" > "$work/log" 2>&1 ||
    { tail -n 20 "$work/log" >&2; die "mmdebstrap failed"; }

  kernel=$(ls "$guest/cloud/lib/modules")
  pack_modules "$root/usr" "$guest/cloud" "$kernel" virtio_pci virtio_blk virtio_net ext4
  echo outrigger-guest > "$root/etc/hostname"
  echo '/dev/vda / ext4 defaults 0 1' > "$root/etc/fstab"
  sed -i 's|^root:[^:]*:|root::|' "$root/etc/shadow"
  for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    systemd-timesyncd.service getty@tty1.service systemd-hwdb-update.service systemd-journal-catalog-update.service \
    systemd-binfmt.service systemd-pstore.service systemd-update-utmp.service systemd-networkd-wait-online.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
  cp "$here/files/outrigger-poweroff.service" "$root/etc/systemd/system/"
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
  ln -sf ../outrigger-poweroff.service "$root/etc/systemd/system/multi-user.target.wants/outrigger-poweroff.service"

  say "making rootfs.ext4"
  truncate -s 600M "$work/rootfs.ext4"
  mkfs.ext4 -q -d "$root" -L outrigger-root -U 6f757472-6967-6765-7220-726f6f746673 "$work/rootfs.ext4"
  mv "$work/rootfs.ext4" "$guest/rootfs.ext4"
)
