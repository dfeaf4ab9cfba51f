# shellcheck shell=bash
# Sourced after common.sh: Debian packages, installed on this machine or only unpacked into a folder.
# In: the machine's apt sources. Out: installed packages, unpacked trees. Never: a changed apt configuration.

# Somebody else's apt may hold the lock, and a mirror may be out of reach for a moment.
lock=(-o Debug::NoLocking=0 -o DPkg::Lock::Timeout=600)
strict=(-o APT::Update::Error-Mode=any)

release() { (. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}"); }

# apt with this machine's sources plus the release's backports, all state in the cache (works without root).
backports_apt() {
    local dir=${apt_dir:-$cache/apt} tool=$1; shift
    "$tool" -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/sources" -o Dir::State::Lists="$dir/lists" \
        -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=1 "$@"
}

# Fills the private apt state once a day; the backports suite is left out where the mirror has none.
refresh_apt() {
    local dir=$cache/apt mirror file stamp
    stamp=$(find "$dir/fresh" -mmin -1440 2>/dev/null || true)
    [[ -z $stamp ]] || return 0
    command -v apt-get >/dev/null || die "apt-get not found: the lab is built from Debian packages"
    mkdir -p "$dir/sources" "$dir/lists/partial" "$dir/cache/archives/partial"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [[ ! -e $file ]] || cp "$file" "$dir/sources/$(basename "$file" | sed 's/^sources.list$/main.list/')"
    done
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $(release)" "Created-By: Packages" 2>/dev/null | head -n 1 || true)
    printf 'deb %s %s-backports main\n' "${mirror:-http://deb.debian.org/debian}" "$(release)" >"$dir/sources/backports.list"
    detail "reading package lists"
    # A source that stays out of reach is not always one of ours.
    again backports_apt apt-get -qq "${strict[@]}" update >&2 || backports_apt apt-get -qq update >&2 || {
        rm "$dir/sources/backports.list"
        backports_apt apt-get -qq update >&2 || die "apt-get update failed: no package lists (is a mirror reachable?)"
    }
    touch "$dir/fresh"
}

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true) == installed ]]; }

# need PACKAGE...: installs what is missing; without root says exactly what to install.
need() {
    local missing=() package
    for package; do installed "$package" || missing+=("$package"); done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "missing Debian packages: ${missing[*]} (run as root: apt-get install ${missing[*]})"
    say "installing ${missing[*]}"
    # What comes with a service does not start it: etcd and NFS servers are needed in the lab only.
    export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1
    again apt-get -qq "${strict[@]}" update >&2 || say "apt-get update failed, trying with the package lists at hand"
    apt-get -qq "${lock[@]}" install -y --no-remove --no-install-recommends "${missing[@]}" >"$cache/install.log" 2>&1 && return 0
    # A library or qemu-utils from backports is in the way of the release's own version: take the whole set from there.
    refresh_apt
    say "installing from $(release)-backports (packages from there are already on this machine)"
    backports_apt apt-get -qq "${lock[@]}" install -y --no-remove --no-install-recommends -t "$(release)-backports" "${missing[@]}" \
        >"$cache/install.log" 2>&1 </dev/null || { cat "$cache/install.log" >&2; die "cannot install ${missing[*]}"; }
}

# need_newer PACKAGE VERSION: as need, but an older one than VERSION is replaced by that of backports; kept where that fails.
need_newer() {
    local have
    have=$(dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true)
    [[ -z $have ]] || ! dpkg --compare-versions "$have" ge "$2" || return 0
    if ((EUID == 0)); then
        refresh_apt
        say "installing $1 from $(release)-backports${have:+ (this machine has ${have%%-*}, too old)}"
        DEBIAN_FRONTEND=noninteractive backports_apt apt-get -qq "${lock[@]}" install -y --no-remove --no-install-recommends \
            -t "$(release)-backports" "$1" >"$cache/install.log" 2>&1 </dev/null && return 0
        tail -n 3 "$cache/install.log" >&2
    fi
    [[ -n $have ]] || need "$1"
    say "warning: $1 is older than $2; what runs in it may crash (newer: $1 from $(release)-backports)"
}

# unpack SUITE DIR PACKAGE...: downloads packages and unpacks them into DIR, installing nothing. SUITE "" = the default.
unpack() {
    local suite=$1 into=$2 temp deb; shift 2
    temp=$(mktemp -d "$cache/debs.XXXXXX")
    (cd "$temp" && backports_apt apt-get -qq download ${suite:+-t "$suite"} "$@" >&2) || { rm -rf "$temp"; die "cannot download $*"; }
    for deb in "$temp"/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$into"; done
    rm -rf "$temp"
}

# closure PACKAGE...: the packages and, through their dependencies, every library package they need, but for those in omit.
closure() {
    local seen=" " level=("$@") package next=()
    while ((${#level[@]})); do
        next=()
        for package in "${level[@]}"; do
            [[ $seen != *" $package "* && " ${omit[*]:-} " != *" $package "* ]] || continue
            seen+="$package "
            next+=("$package")
        done
        ((${#next[@]})) || break
        # One question for all of a level: each costs apt a second or more.
        mapfile -t level < <(backports_apt apt-cache depends --important "${next[@]}" 2>/dev/null |
            sed -n 's/^ *\(Pre\)\?Depends: \(lib[^<>]*\)$/\2/p')
    done
    printf '%s\n' $seen
}
