# shellcheck shell=bash
# Packing programs and files into a directory that becomes an initramfs, and the directory into a cpio archive.

# libraries PROGRAM [SYSROOT]: the shared libraries that PROGRAM needs, its dynamic loader included; with SYSROOT, that
# directory's loader answers for its own libraries, and paths are given without it.
libraries() {
  local sysroot=${2:-}
  if [ -z "$sysroot" ]; then
    ldd "$1" 2> /dev/null || true # says no for scripts and static programs, which need none
  else
    "$sysroot/$loader" --inhibit-cache --library-path "$(library_path "$sysroot")" --list "$1" | sed "s| $sysroot/| /|"
  fi | sed -nE 's/^(.*=>)?[[:space:]]*(\/[^ ]+) \(0x.*/\2/p'
}

loader=lib64/ld-linux-x86-64.so.2

# library_path SYSROOT: where a sysroot unpacked from Debian packages keeps its libraries, those in folders of their own included.
library_path() {
  local directory=$1/usr/lib/x86_64-linux-gnu
  echo "$directory:$directory/ceph:$directory/pulseaudio:$directory/libproxy"
}

# pack ROOT FILE DEST [SYSROOT]: copy FILE to ROOT/DEST and, if it is a program, the libraries it needs to their own places.
pack() {
  local root=$1 sysroot=${4:-} library
  mkdir -p "$root$(dirname "$3")"
  cp -L --preserve=mode "$2" "$root$3"
  libraries "$2" "$sysroot" | while read -r library; do
    [ -e "$root$library" ] || { mkdir -p "$root$(dirname "$library")"; cp -L "$sysroot$library" "$root$library"; }
  done
}

# pack_argument ROOT FILE[:DEST]: the same for a command-line argument; DEST is FILE's own absolute path unless given.
pack_argument() {
  local file=${2%%:*} dest
  [ -r "$file" ] || die "cannot read $file"
  case $2 in *:/*) dest=${2#*:} ;; *:*) die "$2: the destination must be an absolute path" ;; *) dest=$(realpath -s "$file") ;; esac
  pack "$1" "$file" "$dest"
}

# pack_modules ROOT TREE RELEASE MODULE...: kernel modules and what they depend on, with an index for modprobe. TREE is the
# directory that holds lib/modules/RELEASE.
pack_modules() {
  local root=$1 tree=$2 release=$3 module file
  mkdir -p "$root/lib/modules/$release"
  cp "$tree/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$release/"
  for module in "${@:4}"; do
    modprobe -d "$tree" -S "$release" --show-depends "$module" > /dev/null 2>&1 || die "kernel $release has no module $module"
    modprobe -d "$tree" -S "$release" --show-depends "$module"
  done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r file; do
    mkdir -p "$root$(dirname "/${file#"$tree"/}")"
    cp "$file" "$root/${file#"$tree"/}"
  done
  depmod -b "$root" "$release"
}

# pack_busybox ROOT BUSYBOX: busybox and a link for each of its commands, so that nothing has to be installed at boot.
pack_busybox() {
  local root=$1 name
  mkdir -p "$root/bin"
  cp "$2" "$root/bin/busybox"
  chmod 755 "$root/bin/busybox"
  "$2" --list | grep -v '^busybox$' | while read -r name; do ln -s busybox "$root/bin/$name"; done
}

# archive ROOT: ROOT as an uncompressed cpio archive on standard output, the same for the same content.
archive() { (cd "$1" && find . -exec touch -h -d @0 {} + && find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0); }
