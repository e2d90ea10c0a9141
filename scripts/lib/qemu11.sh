# shellcheck shell=bash disable=SC2034,SC2154 # `cache` is common.sh's, qemu11_command the caller's
# QEMU 11 from Debian's trixie-backports, the first packaged one with a vfio-user client, unpacked into the cache beside whatever
# release the host runs: its own loader and libraries start it, so nothing is installed, mounted or chrooted, and paths and sockets
# are the host's. Needs common.sh, debian.sh and pack.sh.

# qemu11_root: prints the directory that holds it, after fetching it (38 MB, once) if need be.
qemu11_root() (
  root=$cache/qemu11/root
  if [ ! -e "$root" ]; then
    locked qemu11
    [ ! -e "$root" ] || { echo "$root"; return; }
    debian_lists trixie trixie-backports
    mkdir -p "$cache/qemu11"
    work=$(mktemp -d "$cache/qemu11/building.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mapfile -t packages < <(debian_apt trixie install -s -t trixie-backports qemu-system-x86 | sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1=\2/p')
    [ ${#packages[@]} -gt 0 ] || die "trixie-backports has no qemu-system-x86"
    say "downloading QEMU from trixie-backports (${#packages[@]} packages)"
    mkdir "$work/debs"
    (cd "$work/debs" && debian_fetch trixie "${packages[@]}")
    debian_unpack "$work/root" "$work"/debs/*.deb
    qemu11_command "$work/root"
    "${qemu11_command[@]}" -device vfio-user-pci,help > /dev/null || die "this QEMU has no vfio-user-pci"
    mv "$work/root" "$root"
  fi
  echo "$root"
)

# qemu11_command ROOT [PROGRAM]: sets the array qemu11_command to what starts it, or PROGRAM in its place.
qemu11_command() {
  local usr=$1/usr
  qemu11_command=(env "QEMU_MODULE_DIR=$usr/lib/x86_64-linux-gnu/qemu" "$1/$loader" --inhibit-cache
    --library-path "$(library_path "$1")" "${2:-$usr/bin/qemu-system-x86_64}" -L "$usr/share/qemu" -L "$usr/share/seabios")
}

# pack_qemu11 ROOT: puts it into ROOT/qemu11 with what a guest boots by, and the command `qemu11` that starts it there.
pack_qemu11() {
  local root=$1 from usr=/usr/share firmware
  from=$(qemu11_root)
  pack "$root/qemu11" "$from/usr/bin/qemu-system-x86_64" /usr/bin/qemu-system-x86_64 "$from"
  for firmware in qemu/kvmvapic.bin qemu/linuxboot_dma.bin seabios/bios-256k.bin; do
    mkdir -p "$root/qemu11$usr/qemu"
    cp "$from$usr/$firmware" "$root/qemu11$usr/qemu/"
  done
  mkdir -p "$root/bin"
  cat > "$root/bin/qemu11" << END
#!/bin/sh
exec /qemu11/$loader --inhibit-cache --library-path $(library_path /qemu11) /qemu11/usr/bin/qemu-system-x86_64 -L /qemu11$usr/qemu "\$@"
END
  chmod 755 "$root/bin/qemu11"
}
