# shellcheck shell=bash
# Kernels out of Debian's packages. Needs scripts/lib/{common,debian}.sh.

# kernel_unpack DEB DIRECTORY: the kernel as DIRECTORY/vmlinuz, the ELF image within as DIRECTORY/vmlinux, and its modules below DIRECTORY/lib/modules, without the drivers of
# hardware that no virtual machine has (three quarters of the stock kernel's 400 MB). Of network cards only Intel's e1000 and e1000e stay.
kernel_unpack() {
  local release modules
  mkdir -p "$2"
  dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --exclude='*/sound/*' --exclude='*/drivers/gpu/*' --exclude='*/drivers/media/*' \
    --exclude='*/drivers/net/wireless/*' --exclude='*/drivers/net/ethernet/[!i]*' --exclude='*/drivers/net/ethernet/intel/[!e]*' --exclude='*/drivers/staging/*' \
    --exclude='*/drivers/infiniband/*' --exclude='*/drivers/scsi/*' --exclude='*/drivers/usb/*' --exclude='*/drivers/iio/*' \
    ./boot ./lib/modules
  release=$(ls "$2/lib/modules")
  mv "$2/boot/vmlinuz-$release" "$2/vmlinuz"
  mv "$2/boot/config-$release" "$2/config"
  rm -r "${2:?}/boot"
  kernel_elf "$2/vmlinuz" > "$2/vmlinux"
  modules=$2/lib/modules/$release
  depmod -b "$2" "$release"
  [ -e "$modules/modules.dep" ]
}

# field FILE OFFSET SIZE: a little-endian number out of a file.
field() { od -An -v -j "$2" -N "$3" -t "u$3" --endian=little "$1" | tr -d ' '; }

# kernel_elf BZIMAGE: the ELF image within, on standard output. The boot protocol's setup_sects, payload_offset and
# payload_length (Documentation/arch/x86/boot.rst, from protocol 2.08 on) say where it is; its first bytes say how it is packed.
kernel_elf() {
  local start length magic unpack
  start=$((($(field "$1" $((0x1f1)) 1) + 1) * 512 + $(field "$1" $((0x248)) 4)))
  length=$(field "$1" $((0x24c)) 4)
  magic=$(od -An -v -j "$start" -N 4 -t x1 "$1" | tr -d ' ')
  case $magic in
    fd377a58) unpack=(xz -dc --single-stream) ;;
    02214c18) unpack=(lz4 -dc) ;;
    28b52ffd) unpack=(zstd -dc) ;;
    1f8b*) unpack=(gzip -dc) ;;
    *) die "$1: payload of an unknown kind ($magic)" ;;
  esac
  # The payload ends with its unpacked size, four bytes which no unpacker wants to see.
  dd if="$1" bs=4M iflag=skip_bytes,count_bytes skip="$start" count=$((length - 4)) status=none | "${unpack[@]}"
}
