# shellcheck shell=bash
# Debian packages without installing them: a private apt, with its own lists and an empty list of installed packages, resolves
# and downloads; dpkg-deb unpacks into a directory of the cache. The host's /boot, /lib/modules and package state stay untouched,
# and another release's programs (QEMU from trixie-backports) run beside the host's. Mirror and proxy are the ones the machine's
# own apt uses; signatures are checked against debian-archive-keyring. Needs common.sh, apt and dpkg.
# shellcheck disable=SC2016,SC2154 # apt's own $(…); `cache` is common.sh's

# debian_mirror [-security]: the address this machine gets its own Debian release from.
debian_mirror() {
  local release
  release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")$1
  apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(SITE)' 'Created-By: Packages' |
    awk -v release="$release" '$1 == release && $2 == "main" && $3 ~ /\/debian(-security)?\/?$/ { print $3; exit }'
}

# debian_apt RELEASE COMMAND...: apt-get with the private state of RELEASE.
debian_apt() {
  local state=$cache/apt/$1
  shift
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dir::State="$state/state" -o Dir::State::status="$state/status" \
    -o Dir::Cache="$state/cache" -o Dir::Cache::pkgcache=pkgcache.bin \
    -o Dir::Cache::srcpkgcache=srcpkgcache.bin -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User=root \
    -o APT::Install-Recommends=false -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
    -o Acquire::Retries=3 "$@"
}

# debian_sources RELEASE [SUITE...]: the sources.list of RELEASE, its security archive, and further suites such as RELEASE-backports.
debian_sources() {
  local main security keys=/usr/share/keyrings/debian-archive-keyring.gpg suite
  main=$(debian_mirror '') security=$(debian_mirror -security)
  [ -n "$main" ] || die "this machine's apt has no Debian mirror configured (looked for its own release, component main)"
  for suite in "$@"; do echo "deb [signed-by=$keys] $main $suite main"; done
  [ -z "$security" ] || echo "deb [signed-by=$keys] $security $1-security main"
}

# debian_lists [--update] RELEASE [SUITE...]: make sure that package lists are there. They stay as they are until --update, so
# that a cached build remains valid and needs no network.
debian_lists() {
  local update=
  [ "$1" != --update ] || { update=1; shift; }
  local state=$cache/apt/$1
  [ -n "$update" ] || [ ! -e "$state/ready" ] || return 0
  say "fetching Debian's package lists for $1"
  mkdir -p "$state/state/lists/partial" "$state/cache/archives/partial"
  : > "$state/status"
  debian_sources "$@" > "$state/sources.list"
  debian_apt "$1" update >&2
  touch "$state/ready"
}

# debian_closure RELEASE PACKAGE...: "name version" of the packages and of all they depend on.
debian_closure() { debian_apt "$1" install -s "${@:2}" | sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1 \2/p'; }

# debian_fetch RELEASE PACKAGE[=VERSION]...: download exactly these .deb files to the current directory.
debian_fetch() {
  debian_apt "$1" download "${@:2}" >&2 && return
  die "the mirror no longer has what the cached package lists of $1 name: run guest-images/build --update"
}

# debian_unpack ROOT DEB...: unpack below ROOT, where /bin, /sbin, /lib and /lib64 lead to /usr as on an installed Debian.
debian_unpack() {
  local root=$1 deb name
  for name in bin sbin lib lib64; do
    mkdir -p "$root/usr/$name"
    [ -e "$root/$name" ] || ln -s "usr/$name" "$root/$name"
  done
  for deb in "${@:2}"; do dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$root"; done
  # This link would otherwise lead out of ROOT.
  [ ! -L "$root/lib64/ld-linux-x86-64.so.2" ] || ln -sf ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$root/usr/lib64/ld-linux-x86-64.so.2"
}
