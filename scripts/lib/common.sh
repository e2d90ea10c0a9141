# shellcheck shell=bash
# What every script here shares: words for the user, the cache directory, and one lock per thing that is built in it.
# Source it from a bash script that runs under `set -euo pipefail`.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
# usage: the header comment of the running script is its help text.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

cache=${OUTRIGGER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/outrigger}
mkdir -p "$cache"

# locked NAME: hold the lock NAME until this shell (or the subshell that calls this) ends. Whoever waits is told so.
locked() {
  local fd
  exec {fd}> "$cache/$1.lock"
  flock -n "$fd" || { say "waiting for another build of $1"; flock "$fd"; }
}

# fingerprint FILE...: 12 hex digits that change when the content of any FILE, or of standard input, does.
fingerprint() { cat -- "$@" - | sha256sum | cut -c 1-12; }
