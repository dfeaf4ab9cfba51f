# shellcheck shell=bash
# Sourced after packages.sh: the rival of scripts/bench, Debian 12's QEMU 7.2, the last release whose COLO works.
# Out: the packages, unpacked into $cache/qemu-colo with the libraries that this machine lacks. Never: an installed package.

prepare_qemu_colo() {
    local dir=$cache/qemu-colo qemu=(qemu-system-x86 qemu-system-data qemu-system-common seabios) libraries=() package
    [[ ! -e $dir/complete ]] || return 0
    [[ $(release) == bookworm ]] || die "--against colo needs Debian 12: it has the QEMU 7.2 whose COLO works"
    say "fetching QEMU 7.2 (once)"
    refresh_apt
    for package in $(closure qemu-system-x86 | grep ^lib); do
        installed "$package" || libraries+=("$package")
    done
    rm -rf "$dir" && mkdir -p "$dir"
    # By release: a newer one that is installed would win otherwise.
    unpack "" "$dir" "${qemu[@]/%//bookworm}" "${libraries[@]}"
    touch "$dir/complete"
}
