#!/usr/bin/env bash
# Provisions a fresh Debian twice; the second time must change nothing.
#
# `cargo xtask vagrant-test --quick` runs it as root with a root folder that has debootstrap, in mount and process
# namespaces of its own. To spare the minutes that Rust and bpf-linker take, the machine's own are mounted into the fresh
# Debian, at the paths that they have here: provision.sh finds them, and leaves them alone.
set -euo pipefail

# PROJECT, OWNER (a user's number), CARGO_HOME, CARGO_TARGET_DIR, RUST (the folder of rustc) and MIRROR are set; the
# arguments are the folders to be mounted, which lie below /host here.

root=/scratch/debian

# As the first process of its namespace it would not hear them otherwise.
trap 'exit 130' INT TERM

fail() {
    printf '✗ %s\n' "$*" >&2
    exit 1
}

quietly() { "$@" > /scratch/provision.log 2>&1 || { tail -n 20 /scratch/provision.log >&2; fail "$1 failed"; }; }

in_debian() {
    chroot "$root" env -i PATH="$RUST:/usr/sbin:/usr/bin" HOME=/root LANG=C.UTF-8 \
        CARGO_HOME="$CARGO_HOME" CARGO_TARGET_DIR="$CARGO_TARGET_DIR" CARGO_NET_OFFLINE=true "$@"
}

# Everything but what programs keep for themselves: a path, its kind, permissions, owner, size, time and goal each.
listing() {
    find "$root" -xdev \( -path "$root/tmp" -o -path "$root/root" -o -path "$root/var/cache" \) -prune \
        -o -printf '%P %y %m %U:%G %s %T@ %l\n' | sort
}

mkdir -p "$root"
mount -t tmpfs -o mode=755 tmpfs "$root" # in memory: what is installed is gone with it
started=$SECONDS
quietly debootstrap --variant=minbase --include=ca-certificates trixie "$root" "$MIRROR"
echo "✓ debootstrap ($((SECONDS - started)) s)"
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount -t proc proc "$root/proc"
for folder in "$@"; do
    mkdir -p "$root$folder"
    mount --rbind "/host$folder" "$root$folder"
done

[ "$OWNER" = 0 ] || in_debian useradd --uid "$OWNER" --create-home owner

for time in first second; do
    started=$SECONDS
    in_debian bash "$PROJECT/vagrant/provision.sh" > "/scratch/$time.log" 2>&1 ||
        { cat "/scratch/$time.log" >&2; fail "provisioning failed the $time time"; }
    listing > "/scratch/$time.listing"
    echo "✓ provisioned the $time time ($((SECONDS - started)) s)"
done
grep -q '^Ready; changes made' /scratch/first.log || fail "the first time has changed nothing: $(cat /scratch/first.log)"
grep -q '^Nothing to do' /scratch/second.log || fail "the second time does not say that there is nothing to do: $(cat /scratch/second.log)"
diff /scratch/first.listing /scratch/second.listing > /scratch/difference ||
    fail "the second time has changed files: $(head -n 20 /scratch/difference)"
echo "✓ the second time changed none of $(wc -l < /scratch/second.listing) files"
