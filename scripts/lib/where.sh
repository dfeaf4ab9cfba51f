# shellcheck shell=bash
# Sourced after common.sh: does this machine's KVM run Linux guests, or does the lab have to? (/dev/kvm alone proves nothing: there
# are hosts whose KVM has no VT-x/SVM below it and cannot boot a stock kernel.)

# here_or_lab: prints "here" or "lab". POLLUX_WHERE=here|lab overrules.
here_or_lab() {
    if [[ -n ${POLLUX_WHERE:-} ]]; then printf '%s' "$POLLUX_WHERE"; return; fi
    if ((EUID == 0)) && [[ -r /dev/kvm && -w /dev/kvm && -e /dev/net/tun ]] && grep -qwE 'svm|vmx' /proc/cpuinfo; then
        printf here
    else
        printf lab
    fi
}

need_cargo() {
    command -v cargo >/dev/null || die "cargo not found: install the Rust toolchain first (rustup)"
    command -v cc >/dev/null || need gcc libc6-dev
    need protobuf-compiler libprotobuf-dev # for the etcd client
}
