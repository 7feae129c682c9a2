#!/usr/bin/env bash
# The whole life of a machine (Z14): `vagrant up`, lab01, provisioning again, `vagrant destroy`, emulated by software.
#
# `cargo xtask vagrant-test` runs it as root with a root folder that has all programs, in mount and process namespaces of
# its own. It makes a network namespace, in which libvirt may set up what it likes; its way out is slirp4netns, a network
# in user space, so that no real interface and no rule of this machine's firewall is touched.
set -euo pipefail

certificates=${1:-}

# As the first process of its namespace it would not hear them otherwise.
trap 'exit 130' INT TERM

say() { printf '%s\n' "$*"; }

fail() {
    printf '✗ %s\n' "$*" >&2
    exit 1
}

# Waits for a condition, for two minutes.
await() {
    local what=$1 tries=600
    shift
    until "$@" > /dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "waited in vain: $what"
        sleep 0.2
    done
}

outside() {
    unshare --net --mount -- bash "$0" "$certificates" inside &
    local machine=$!
    await "a network namespace" namespace_of "$machine"
    slirp4netns --configure --mtu=1500 --disable-host-loopback "$machine" tap0 > /scratch/slirp4netns.log 2>&1 &
    wait "$machine"
}

namespace_of() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }

has_address() { ip -4 -oneline address show tap0 | grep -q inet; }

inside() {
    mount -t sysfs sysfs /sys
    ip link set lo up
    await "the way out, by slirp4netns (its log: target/vagrant/slirp4netns.log)" has_address
    echo 'nameserver 10.0.2.3' > /tmp/resolv.conf
    mount --bind /tmp/resolv.conf /etc/resolv.conf

    # Disks are big: not into memory.
    rm -rf /scratch/libvirt /scratch/home /scratch/state
    mkdir -p /scratch/libvirt /scratch/home /scratch/state
    mount --bind /scratch/libvirt /var/lib/libvirt
    # Nor is what libvirt notes in its configuration to be found by the next run.
    cp -a /etc/libvirt /tmp/libvirt
    mount --bind /tmp/libvirt /etc/libvirt
    trap 'rm -rf /scratch/libvirt/* /scratch/home /scratch/state' EXIT
    libvirtd --daemon
    await "libvirt" virsh --connect qemu:///system uri

    export VAGRANT_HOME=/scratch/home VAGRANT_DOTFILE_PATH=/scratch/state VAGRANT_DEFAULT_PROVIDER=libvirt
    export VAGRANT_CHECKPOINT_DISABLE=1 EBPF_VM_DRIVER=qemu
    [ -z "$certificates" ] || export EBPF_VM_CA=$certificates
    cd /project/vagrant

    step up vagrant up
    in_guest 'uname -r; cat /etc/motd; apt-mark showhold'
    step lab01 in_guest 'cd ebpf-labs && cargo xtask run lab01 -- --duration 5s'
    grep -Eq ' total .* packets=[1-9]' /scratch/lab01.log || fail "lab01 has counted nothing"
    # What comes from elsewhere is named without a folder. It does not change, so the box has it built.
    ! grep -E '^ *Compiling [^(]+$' /scratch/lab01.log || fail "the box was to have built this, and it was built again"
    step again vagrant provision
    grep -q 'Nothing to do: this machine is ready' /scratch/again.log || fail "provisioning it again has changed something"
    step destroy vagrant destroy --force
    local left
    left=$(virsh --connect qemu:///system list --all --name | tr -d '[:space:]')
    [ -z "$left" ] || fail "vagrant destroy has left $left"
}

in_guest() { vagrant ssh --no-tty -c "$1"; }

# Hundreds of percentages, drawn over one another on a terminal.
without_progress() { sed -u -E 's/(\r|\x1b\[K|Progress: [0-9]+%)+//g'; }

# The machine's disks grow, and a machine whose disk cannot is stopped without a word.
for_want_of_room() {
    local left
    left=$(df --output=avail --block-size=1M /scratch | tail -n 1)
    [ "$left" -ge 100 ] || printf ', for the disk that holds target/vagrant is full (%s MiB are left)' "$((left))"
}

# Runs a command with its output shown and kept in /scratch/NAME.log.
step() {
    local name=$1 started=$SECONDS
    shift
    "$@" 2>&1 | without_progress | tee "/scratch/$name.log" || fail "$* failed$(for_want_of_room)"
    say "✓ $name ($((SECONDS - started)) s)"
}

if [ "${2:-}" = inside ]; then inside; else outside; fi
