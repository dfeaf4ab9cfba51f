# shellcheck shell=bash
# Sourced by scripts/guest-image --postgres: makes the database cluster in the guest's tree, so that the guest need not at its first boot.
# In: tree with the package unpacked. Out: /var/lib/postgresql/main in it, every commit on the disk, open to the LAN.

# Just-in-time compilation is a module that is loaded when it is there; it is larger than all the rest.
postgres_omit=(libllvm14 libllvm19 libz3-4 libedit2)

# postgres_packages: what this release of Debian has.
postgres_packages() {
    local version
    version=$(backports_apt apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9]*\)$/\1/p')
    [[ -n $version ]] || die "no PostgreSQL among the packages"
    printf '%s\n' "postgresql-$version" "postgresql-client-$version" zlib1g
}

make_cluster() {
    local tree=$1 bin=/usr/lib/postgresql/bin data=/var/lib/postgresql/main
    printf 'postgres:x:104:104:postgres:/var/lib/postgresql:/bin/sh\n' >>"$tree/etc/passwd"
    printf 'postgres:x:104:\n' >>"$tree/etc/group"
    # A path without the version.
    (cd "$tree/usr/lib/postgresql" && ln -s */bin bin)
    mkdir -p "$tree/var/lib/postgresql"
    chmod 1777 "$tree/tmp" "$tree/dev"
    : >"$tree/dev/null"
    chmod 666 "$tree/dev/null"
    ((EUID != 0)) || chown -R 104:104 "$tree/var/lib/postgresql"
    # initdb refuses to be root: it is user 104, of a namespace of its own where there is no root to become somebody else.
    local as=(unshare --user --map-user=104 --map-group=104 --root="$tree")
    ((EUID != 0)) || as=(chroot --userspec=104:104 "$tree")
    "${as[@]}" "$bin/initdb" -D "$data" --encoding=UTF8 --no-locale --data-checksums \
        --auth-local=trust --auth-host=trust --wal-segsize=4 --no-sync >"$cache/initdb.log" 2>&1 ||
        { cat "$cache/initdb.log" >&2; die "initdb failed"; }
    rm "$tree/dev/null"
    chmod 755 "$tree/dev"
    printf 'host all all 0.0.0.0/0 trust\n' >>"$tree$data/pg_hba.conf"
    cat >>"$tree$data/postgresql.conf" <<'CONF'
listen_addresses = '*'
unix_socket_directories = '/tmp'
fsync = on
synchronous_commit = on
full_page_writes = on
jit = off
max_connections = 20
shared_buffers = 16MB
min_wal_size = 8MB
max_wal_size = 32MB
CONF
    # What only just-in-time compilation reads.
    rm -rf "$tree"/usr/lib/postgresql/*/lib/bitcode
    # What this user made is PostgreSQL's in the image if it was made by root; if not, init sees to it at the first boot.
}
