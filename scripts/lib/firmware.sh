# shellcheck shell=bash
# Sourced after packages.sh: UEFI firmware for the machine that pollux-vmm emulates, and Debian's signed GRUB, unpacked into the cache.
# Out: $cache/firmware with CLOUDHV.fd and grubx64.efi.signed. Never: a failure; tests say SKIPPED where there is no firmware.

# prepare_firmware: only Debian's newest releases have the firmware; the file is the same for all.
prepare_firmware() {
    local dir=$cache/firmware apt_dir=$cache/apt mirror temp
    [[ ! -e $dir/CLOUDHV.fd ]] || return 0
    say "fetching UEFI firmware and GRUB (once)"
    refresh_apt
    temp=$(mktemp -d "$cache/firmware.XXXXXX")
    mirror=$(sed -n "s/^deb \([^ ]*\) $(release)-backports .*/\1/p" "$apt_dir/sources/backports.list" 2>/dev/null || true)
    (
        unpack "" "$temp" grub-efi-amd64-signed
        # A state of its own: nothing else may come from there.
        apt_dir=$cache/apt-sid
        mkdir -p "$apt_dir/sources" "$apt_dir/lists/partial" "$apt_dir/cache/archives/partial"
        printf 'deb %s sid main\n' "${mirror:-http://deb.debian.org/debian}" >"$apt_dir/sources/sid.list"
        again backports_apt apt-get -qq "${strict[@]}" update >&2
        unpack "" "$temp" cloudhv-efi-x86-64
        mkdir -p "$dir"
        find "$temp" -name grubx64.efi.signed -exec cp {} "$dir/" \;
        find "$temp" -name CLOUDHV.fd -exec cp {} "$dir/" \;
        [[ -s $dir/CLOUDHV.fd && -s $dir/grubx64.efi.signed ]]
    ) || say "there is no UEFI firmware: the tests that boot it say SKIPPED"
    rm -rf "$temp"
}
