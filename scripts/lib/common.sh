# shellcheck shell=bash
# Sourced by the scripts: strict mode, where things are, how to speak. Never run by itself.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${POLLUX_CACHE:-$repo/target/lab}
me=$(basename "$0")
verbose=${verbose:-}

say() { printf '%s: %s\n' "$me" "$*" >&2; }
detail() { [[ -z $verbose ]] || say "$*"; }
die() { say "$*"; exit 1; }
# One preparation at a time: two scripts started together must not build the same cache twice.
lock_cache() { mkdir -p "$cache" && exec 9>"$cache/.lock" && flock 9; }
unlock_cache() { exec 9>&-; }

# again CMD...: tries it three times.
again() { "$@" || { sleep 5; "$@"; } || { sleep 20; "$@"; }; }
