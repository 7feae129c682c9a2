#!/usr/bin/env bash
# Makes a Debian machine ready for the labs: packages, Rust, what `cargo xtask setup` installs, a greeting.
#
# Run as root; it may be run again at any time, and changes nothing where all is as it should be. The project is the one
# that this file lies in, its user the owner of its folder, unless EBPF_VM_USER names another.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
user=${EBPF_VM_USER:-$(stat -c %U "$project")}
oldest_rust=1.95
changes=0

say() { printf '%s\n' "$*"; }

changed() {
    changes=$((changes + 1))
    say "  ✓ $*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

main() {
    [ "$(id -u)" = 0 ] || fail "this must run as root: sudo $0"
    command -v apt-get > /dev/null || fail "apt-get is not there: this is for Debian; elsewhere follow book/src/setup.md"
    home=$(getent passwd "$user" | cut -d: -f6)
    [ -n "$home" ] || fail "there is no user $user; name the one who will work on the labs in EBPF_VM_USER"

    say "Making this machine ready for the labs in $project, for $user"
    trust_certificates
    install_packages ca-certificates git gcc libc6-dev iproute2 bpftool procps sudo
    install_rust
    hold_kernel
    set_up_project
    greet
    if [ "$changes" = 0 ]; then say "Nothing to do: this machine is ready."; else say "Ready; changes made: $changes."; fi
}

# Where a proxy opens encrypted connections, its CA must be trusted: the Vagrantfile leaves the file of EBPF_VM_CA there.
trust_certificates() {
    local given=/tmp/ebpf-vm-ca.crt trusted=/usr/local/share/ca-certificates/ebpf-vm
    [ -f "$given" ] || return 0
    install_packages ca-certificates openssl
    local fresh
    fresh=$(mktemp -d)
    # A file for each certificate, as update-ca-certificates wants them.
    awk -v folder="$fresh" '/-BEGIN CERTIFICATE-/ { number += 1; inside = 1 }
        inside { print > (folder "/" number ".crt") }
        /-END CERTIFICATE-/ { inside = 0 }' "$given"
    if ! diff -rq "$fresh" "$trusted" > /dev/null 2>&1; then
        rm -rf "$trusted"
        install -d "$trusted"
        install -m 644 "$fresh"/*.crt "$trusted"
        update-ca-certificates > /dev/null 2>&1
        changed "trusts the certificates that were given"
    fi
    rm -rf "$fresh"
}

is_installed() { [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2> /dev/null)" = installed ]; }

install_packages() {
    local missing=() package
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    refresh_package_lists
    DEBIAN_FRONTEND=noninteractive quietly apt-get install --yes --no-install-recommends "${missing[@]}"
    changed "installed ${missing[*]}"
}

# Once a run, and only where something is to be installed.
refresh_package_lists() {
    [ -z "${refreshed:-}" ] || return 0
    quietly apt-get update
    refreshed=yes
}

# Its output is of interest only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || fail "$* failed:"$'\n'"$output"
}

# Debian's own Rust, built for its browsers and therefore kept new in the stable release; a newer one that the user has
# already, by rustup for example, is left alone.
install_rust() {
    if has_rust; then return 0; fi
    if ! is_installed rustc-web; then
        refresh_package_lists
        local offered
        offered=$(apt-cache show rustc-web 2> /dev/null | sed -n 's/^Version: //p' | head -1)
        dpkg --compare-versions "${offered:-0}" ge "$oldest_rust" ||
            fail "Debian offers here ${offered:-no} rustc-web, not $oldest_rust or later: as $user install Rust from https://rustup.rs, then run this again"
    fi
    install_packages rustc-web cargo-web rust-web-src
    has_rust || fail "rustc is installed, but $user does not find one of version $oldest_rust or later"
}

has_rust() {
    local version
    version=$(as_user rustc --version 2> /dev/null | cut -d ' ' -f 2)
    as_user cargo --version > /dev/null 2>&1 && dpkg --compare-versions "${version:-0}" ge "$oldest_rust"
}

as_user() {
    if [ "$user" = "$(id -un)" ]; then
        env --chdir="$project" "$@"
    else
        runuser -u "$user" -- env --chdir="$project" HOME="$home" PATH="$home/.cargo/bin:$PATH" "$@"
    fi
}

# The kernel that the machine was made with stays: `apt-get upgrade` must not exchange what the labs were tried on.
hold_kernel() {
    local package held
    held=$(apt-mark showhold)
    while read -r package; do
        is_installed "$package" || continue
        grep -qxF "$package" <<< "$held" && continue
        apt-mark hold "$package" > /dev/null
        changed "holds $package"
    done < <(dpkg-query --show --showformat '${Package}\n' 'linux-image-*' 'linux-binary-*' 'linux-modules-*' 2> /dev/null)
}

# What the project needs beyond packages, it installs itself, into its own folder.
set_up_project() {
    local output
    say "  cargo xtask setup (the first time it takes minutes) …"
    output=$(as_user cargo xtask setup 2>&1) || fail "cargo xtask setup failed:"$'\n'"$output"
    case $output in
        *"Nothing to do"*) ;;
        *) changed "cargo xtask setup: $(tail -n 1 <<< "$output")" ;;
    esac
}

greet() {
    write /etc/motd << EOF

eBPF in Rust: six labs, one enforcer. You are in $project; try

    cargo xtask run lab01     a first eBPF program at work, in throw-away network namespaces
    cargo xtask test lab01    its tests, on this machine's kernel
    cargo xtask doctor        what this machine has against what the labs need

EOF
    write /etc/profile.d/ebpf-labs.sh << EOF
# Logins begin in the project's folder.
case \$- in
    *i*) if [ "\$(id -un)" = "$user" ] && [ "\$PWD" = "\$HOME" ] && [ -d "$project" ]; then cd "$project"; fi ;;
esac
EOF
}

# Writes standard input to a file, unless that is what the file holds.
write() {
    local content
    content=$(cat; printf .)
    content=${content%.}
    if [ ! -f "$1" ] || [ "$(cat "$1"; printf .)" != "$content." ]; then
        printf '%s' "$content" > "$1"
        changed "wrote $1"
    fi
}

main
