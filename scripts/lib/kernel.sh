# shellcheck shell=bash
# shellcheck disable=SC2030,SC2031,SC2154 # `cache` is common.sh's, `here` the caller's; kernel_build runs in kernel_directory's subshell
# Linux with our ioregionfd series (protocol/kvm-ioregionfd) out of Debian's linux-source package, built once into the cache for
# each series, configuration and source version. Needs common.sh, debian.sh, and what `scripts/install kernel` installs.

kernel_release=bookworm
kernel_source=linux-source-6.12
kernel_selftests=(ioregionfd_test ioregionfd_faults_test)

# kernel_version: the version of the source package, resolved once per state of the package lists.
kernel_version() (
  version=$cache/kernel/$kernel_source.version
  locked kernel-version
  debian_lists $kernel_release
  mkdir -p "$cache/kernel"
  if [ ! -s "$version" ] || [ "$cache/apt/$kernel_release/ready" -nt "$version" ]; then
    debian_closure $kernel_release $kernel_source | sed -n "s/^$kernel_source //p" > "$version.new"
    [ -s "$version.new" ] || die "Debian $kernel_release has no $kernel_source"
    mv "$version.new" "$version"
  fi
  cat "$version"
)

# kernel_configs VARIANT: prints the configuration fragments of `ioregionfd`, or of `ioregionfd-debug` with its sanitizers.
kernel_configs() {
  local series=$here/../protocol/kvm-ioregionfd
  case $1 in
    ioregionfd) echo "$series/config" ;;
    ioregionfd-debug) printf '%s\n' "$series/config" "$series/config.debug" ;;
    *) die "unknown kernel '$1' (known: ioregionfd, ioregionfd-debug)" ;;
  esac
}

# kernel_directory VARIANT: prints the directory with its vmlinux, config and the series' selftests (static programs), after building
# it if need be.
kernel_directory() (
  configs=$(kernel_configs "$1")
  mapfile -t configs <<< "$configs"
  series=("$here"/../protocol/kvm-ioregionfd/000[1-9]-*.patch)
  version=$(kernel_version)
  directory=$cache/kernel/$1-$(fingerprint "${series[@]}" "${configs[@]}" "$here/lib/kernel.sh" <<< "$kernel_source $version")
  if [ ! -e "$directory" ]; then
    locked kernel
    [ -e "$directory" ] || kernel_build
  fi
  touch "$directory"
  echo "$directory"
)

# For kernel_directory, whose variables it uses and in whose subshell the trap needs some of these.
kernel_build() {
  local program tree out started=$SECONDS fragments=() config patch
  make=''
  for program in bc bison flex gcc make patch rsync xz; do
    command -v $program > /dev/null || die "$program is missing, which building a kernel needs: run scripts/install kernel"
  done
  find "$cache/kernel" -mindepth 1 -maxdepth 1 -type d -mtime +14 -exec rm -rf {} + # what no one has used for two weeks
  work=$(mktemp -d "$cache/kernel/building.XXXXXX")
  trap '[ -z "$make" ] || kill "$make" 2> /dev/null; rm -rf "$work"' EXIT
  tree=$work/$kernel_source out=$work/out
  mkdir "$out"

  say "downloading $kernel_source $version from Debian (150 MB)"
  (cd "$work" && debian_fetch $kernel_release "$kernel_source=$version")
  say "unpacking and patching it"
  dpkg-deb --fsys-tarfile "$work"/*.deb | tar -xO "./usr/src/$kernel_source.tar.xz" | tar -xJ -C "$work"
  rm "$work"/*.deb
  for patch in "${series[@]}"; do
    patch -d "$tree" -p1 -s --no-backup-if-mismatch < "$patch" || die "does not apply to $kernel_source $version: $patch"
  done

  for config in "${configs[@]}"; do
    cp "$config" "$tree/kernel/configs/outrigger-${#fragments[@]}.config"
    fragments+=("outrigger-${#fragments[@]}.config")
  done
  kernel_make configuration x86_64_defconfig kvm_guest.config "${fragments[@]}"
  kernel_make headers headers_install
  kernel_make 'kernel (some 2,200 files)' vmlinux
  kernel_make selftests -C tools/testing/selftests/kvm "OUTPUT=$out/selftest" "KHDR_INCLUDES=-isystem $out/usr/include" LDFLAGS=-static \
    "${kernel_selftests[@]/#/$out/selftest/x86_64/}"

  mkdir "$work/result"
  strip -o "$work/result/vmlinux" "$out/vmlinux"
  for program in "${kernel_selftests[@]}"; do strip -o "$work/result/$program" "$out/selftest/x86_64/$program"; done
  cp "$out/.config" "$work/result/config"
  mv "$work/result" "$directory"
  say "built in $((SECONDS - started)) s"
}

# kernel_make WHAT ARGUMENT...: make in the tree, with a sign of life every half minute. For kernel_build, whose variables it uses.
kernel_make() {
  local since=$SECONDS
  say "building Linux $version: $1"
  make -C "$tree" "O=$out" -j "$(nproc)" "${@:2}" > "$work/log" 2>&1 < /dev/null &
  make=$!
  while kill -0 "$make" 2> /dev/null; do
    sleep 1
    [ $((SECONDS - since)) -ge 30 ] || continue
    since=$SECONDS
    say "$(grep -cE '^ +(CC|AS) ' "$work/log" || true) files compiled"
  done
  wait "$make" || { tail -n 20 "$work/log" >&2; die "make ${*:2} failed"; }
  make=
}
