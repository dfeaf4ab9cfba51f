# shellcheck shell=bash
# Sourced after packages.sh: Debian kernels, unpacked once into the cache, and initramfs images for them.
# Out: in $cache/NAME: vmlinuz, vmlinux (the ELF inside it), lib/modules/$(cat version), and modules/ with plain .ko files.

# prepare_kernel NAME PACKAGE: PACKAGE is the metapackage, linux-image-cloud-amd64 or linux-image-amd64.
prepare_kernel() {
    local kernel_dir=$cache/$1 temp=$cache/$1.new suite package
    [[ ! -e $kernel_dir/version ]] || return 0
    say "fetching $2 (once)"
    need kmod xz-utils zstd binutils
    refresh_apt
    rm -rf "$temp" && mkdir -p "$temp/modules"
    for suite in "$(release)-backports" ""; do
        package=$(backports_apt apt-cache depends --important ${suite:+-t "$suite"} "$2" 2>/dev/null |
            sed -n 's/^ *Depends: \(linux-image-.*amd64\)$/\1/p' | head -n 1 || true)
        [[ -z $package ]] || break
    done
    [[ -n $package ]] || die "no $2 in the package lists"
    unpack "$suite" "$temp" "$package"
    mv "$temp"/boot/vmlinuz-* "$temp/vmlinuz"
    local modules=$temp/lib/modules
    [[ -e $modules ]] || modules=$temp/usr/lib/modules
    [[ $modules == "$temp/lib/modules" ]] || { mkdir -p "$temp/lib" && mv "$modules" "$temp/lib/modules"; }
    local version; version=$(ls "$temp/lib/modules")
    depmod -b "$temp" "$version"
    extract_vmlinux "$temp/vmlinuz" >"$temp/vmlinux"
    rm -rf "$temp/boot" "$temp/usr" "$kernel_dir"
    printf '%s\n' "$version" >"$temp/version"
    mv "$temp" "$kernel_dir"
}

# The compressed kernel inside a bzImage starts at a compressor's magic number: try each place until an ELF comes out.
extract_vmlinux() {
    local image=$1 temp offset magic tool
    temp=$(mktemp "$cache/elf.XXXXXX")
    while IFS='|' read -r magic tool; do
        while read -r offset; do
            tail -c "+$((offset + 1))" "$image" | $tool >"$temp" 2>/dev/null || true
            [[ $(head -c 4 "$temp" | tail -c 3) != ELF ]] || { cat "$temp"; rm "$temp"; return; }
        done < <(LC_ALL=C grep -abo -P "$magic" "$image" | cut -d: -f1)
    done <<<$'\\x28\\xb5\\x2f\\xfd|zstd -dc\n\\xfd7zXZ\\x00|xz -dc\n\\x02!L\\x18|lz4 -dc\n\\x1f\\x8b\\x08|gzip -dc'
    rm "$temp"; die "no ELF kernel found inside $image"
}

# kernel_modules KERNEL NAME...: paths of the plain .ko files of the modules and all they depend on, in loading order.
kernel_modules() {
    local kernel_dir=$cache/$1 version file name seen=" "; shift
    version=$(cat "$kernel_dir/version")
    for name; do
        modprobe -d "$kernel_dir" -S "$version" --show-depends --ignore-install "$name" 2>/dev/null || die "kernel module $name not found"
    done | while read -r kind file _; do
        [[ $kind == insmod && $seen != *" $file "* ]] || continue
        seen+="$file "
        name=$(basename "$file"); name=${name%%.ko*}.ko
        case $file in
            *.xz) xz -dc "$file" >"$kernel_dir/modules/$name" ;;
            *.zst) zstd -qdc "$file" >"$kernel_dir/modules/$name" ;;
            *) cp "$file" "$kernel_dir/modules/$name" ;;
        esac
        printf '%s\n' "$kernel_dir/modules/$name"
    done
}

# make_initramfs OUTPUT INIT KERNEL MODULE...: busybox, INIT as /init, and the modules with /modules listing them in order.
make_initramfs() {
    local output=$1 init=$2 temp list; shift 2
    temp=$(mktemp -d "$cache/initramfs.XXXXXX")
    mkdir -p "$temp"/{bin,dev,proc,sys,run,newroot,lib}
    cp "$(command -v busybox)" "$temp/bin/busybox"
    install -m 755 "$init" "$temp/init"
    list=$(kernel_modules "$@")
    while read -r module; do
        cp "$module" "$temp/lib/"; printf '/lib/%s\n' "$(basename "$module")" >>"$temp/modules"
    done <<<"$list"
    (cd "$temp" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$output"
    rm -rf "$temp"
}
