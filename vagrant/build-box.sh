#!/usr/bin/env bash
# Builds the box of the labs' virtual machine out of Debian's packages, and of nothing else.
#
# The box holds what provision.sh installs, and lab01 built, so that the machine has little left to do. Needs a Debian machine and root;
# what is mounted meanwhile, is mounted in a mount namespace of its own, so that nothing is left behind.
set -euo pipefail

usage() {
    cat << EOF
Usage: build-box.sh [OPTIONS]

Builds boxes/ebpf-labs-PROVIDER-ARCHITECTURE.box, which the Vagrantfile finds there.

  --provider libvirt|qemu   what the box is for [libvirt]
  --kernel SERIES|RELEASE   its kernel: the newest of a series, or an exact release [$kernel]
  --bare                    without what provision.sh installs and builds, which the machine will do
  --mirror URL              where Debian's packages come from [as apt has it here]
  --security-mirror URL     where its security updates come from [as apt has it here]
  --ca FILE                 CA certificates to trust, where a proxy opens encrypted connections
  --help                    this text
EOF
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(dirname "$here")
suite=trixie
provider=libvirt
kernel=6.12
bare=no
mirror=
security_mirror=
ca=
disk_size=20 # GiB; what is not written to takes no room

# Vagrant's keys, known to everybody; it exchanges them for one of its own at the first `vagrant up`.
insecure_keys='ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN1YdxBpNlzxDqfJyw/QKow1F+wvG9hXGoqiysfJOn5Y vagrant insecure public key'

say() { printf '%s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit "${status:-1}"
}

# The mirror that apt is configured for: of the archive with this label, or at this path where no list was fetched yet.
mirror_of() {
    # shellcheck disable=SC2016 # apt fills these in
    { apt-get indextargets --format '$(REPO_URI)|$(ORIGIN)|$(LABEL)' 2> /dev/null || true; } | awk -F'|' -v label="$1" -v path="$2" '
        $2 == "Debian" && $3 == label && !named { named = $1 }
        $2 == "" && $1 ~ path "/?$" && !guessed { guessed = $1 }
        END { print named ? named : guessed }'
}

misuse() { status=2 fail "$*; see build-box.sh --help"; }

main() {
    local arguments=("$@")
    while [ $# -gt 0 ]; do
        case $1 in
            --help) usage; exit ;;
            --bare) bare=yes; shift; continue ;;
            --provider | --kernel | --mirror | --security-mirror | --ca)
                [ $# -ge 2 ] || misuse "$1 needs a value"
                ;;
            *) misuse "there is no option $1" ;;
        esac
        case $1 in
            --provider) provider=$2 ;;
            --kernel) kernel=$2 ;;
            --mirror) mirror=$2 ;;
            --security-mirror) security_mirror=$2 ;;
            --ca) ca=$2 ;;
        esac
        shift 2
    done
    case $provider in libvirt | qemu) ;; *) misuse "--provider is libvirt or qemu, not $provider" ;; esac
    [[ $kernel =~ ^[0-9]+\.[0-9]+([.+~a-z0-9-]*)$ ]] || misuse "--kernel is a series as 6.12 or a release, not $kernel"
    [ -z "$ca" ] || [ -f "$ca" ] || misuse "--ca names $ca, which is no file"
    require_tools
    [ -n "$mirror" ] || mirror=$(mirror_of Debian /debian)
    [ -n "$mirror" ] || fail "apt's configuration names no mirror of Debian's main archive; give one with --mirror"
    [ -n "$security_mirror" ] || security_mirror=$(mirror_of Debian-Security /debian-security)
    [ -n "$security_mirror" ] || fail "apt's configuration names no mirror of Debian's security updates; give one with --security-mirror"
    if [ -z "${EBPF_VM_INSIDE:-}" ]; then
        # All that follows, in namespaces that end with it.
        EBPF_VM_INSIDE=1 exec unshare --mount --pid --fork --kill-child -- bash "$here/build-box.sh" "${arguments[@]}"
    fi
    build
}

require_tools() {
    [ "$(id -u)" = 0 ] || fail "a box is built as root: sudo $0"
    local missing=() program package
    while read -r program package; do
        command -v "$program" > /dev/null || missing+=("$package")
    done << EOF
debootstrap debootstrap
mkfs.ext4 e2fsprogs
sfdisk fdisk
qemu-img qemu-utils
tar tar
unshare util-linux
EOF
    [ ${#missing[@]} -eq 0 ] || fail "not installed here: ${missing[*]}; apt-get install ${missing[*]}"
}

build() {
    architecture=$(dpkg --print-architecture)
    [ "$architecture" = amd64 ] ||
        fail "boxes are built here for amd64 only, this machine is $architecture; take a public box (EBPF_VM_BOX), or Lima"
    output=$here/boxes/ebpf-labs-$provider-$architecture.box
    mkdir -p "$here/boxes"
    work=$(mktemp -d "$here/boxes/building.XXXXXX")
    trap discard EXIT
    trap 'exit 130' INT TERM
    root=$work/root

    step "installing Debian $suite" install_debian
    step "choosing a kernel" choose_kernel
    step "installing the kernel $release" install_kernel
    step "setting the system up" set_up
    if [ "$bare" = no ]; then
        provision
        step "building lab01" build_lab
    fi
    step "cleaning up" clean
    step "making the disk" make_disk
    step "packing the box" pack
    say "Built $output: $(du -h "$output" | cut -f 1), Linux $release."
}

# What is still mounted in the folder is none of it.
discard() {
    umount "$root/tmp" "$root/proc" 2> /dev/null || true
    rm -rf --one-file-system "$work"
}

# Runs a function with its output in a log, which is shown if it fails.
step() {
    local what=$1 started=$SECONDS
    shift
    # A subshell of its own, whose errors end it: `if ! step` would switch that off.
    set +e
    (set -e; "$@") > "$work/log" 2>&1
    local outcome=$?
    set -e
    if [ $outcome -ne 0 ]; then
        tail -n 25 "$work/log" >&2
        require_room "$what"
        fail "$what failed; the last lines of its output stand above"
    fi
    say "  ✓ $what ($((SECONDS - started)) s)"
    if [ -f "$work/release" ]; then release=$(cat "$work/release"); fi
}

# Few programs say that it is for want of room that they have failed.
require_room() {
    local left
    left=$(df --output=avail --block-size=1M "$work" | tail -n 1)
    [ "$left" -ge 100 ] || fail "$1 failed, for the disk that holds $here/boxes is full ($((left)) MiB are left)"
}

in_root() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

install_debian() {
    debootstrap --variant=minbase --include=ca-certificates,systemd-sysv,udev,kmod,zstd,ifupdown,dhcpcd-base,openssh-server,sudo,rsync,less,nano,iputils-ping "$suite" "$root" "$mirror"
    cat > "$root/etc/apt/sources.list" << EOF
deb $mirror $suite main
deb $mirror $suite-updates main
deb $mirror $suite-backports main
deb $security_mirror $suite-security main
EOF
    # Services are not started while the box is built.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    mount -t proc proc "$root/proc"
    in_root apt-get update
}

# The newest release of the series whose signed image is there, or the release that was named.
choose_kernel() {
    local pattern
    pattern=$(printf '%s' "$kernel" | sed 's/[.+]/[&]/g')
    in_root apt-cache search --names-only "^linux-image-$pattern([.~+].*)?-cloud-$architecture\$" | cut -d ' ' -f 1 |
        sed 's/^linux-image-//' | grep -v '^unsigned' | grep -E '^[0-9]+\.[0-9]+\.' | sort -V | tail -n 1 > "$work/release"
    if [ ! -s "$work/release" ]; then
        echo "Debian $suite has no kernel $kernel now; it has:"
        in_root apt-cache search --names-only "^linux-image-[0-9].*-cloud-$architecture\$" | cut -d ' ' -f 1
        return 1
    fi
}

# Exactly this release, without the package that would always depend on the newest one.
install_kernel() {
    echo "LABEL=root / ext4 errors=remount-ro 0 1" > "$root/etc/fstab"
    in_root apt-get install --yes --no-install-recommends "linux-image-$release" initramfs-tools grub-common grub-pc-bin
    mkdir -p "$root/boot/grub"
    # What GRUB needs to read the file system and this file is all in one image, which is written between the partition
    # table and the first partition. Debian keeps /vmlinuz and /initrd.img pointing at the installed kernel.
    in_root grub-mkimage --format i386-pc --prefix '(hd0,msdos1)/boot/grub' --output /boot/grub/core.img \
        biosdisk part_msdos ext2 normal linux serial terminal test
    cat > "$root/boot/grub/grub.cfg" << EOF
set timeout=0
menuentry "Linux" {
    set root=(hd0,msdos1)
    linux /vmlinuz root=LABEL=root ro net.ifnames=0 console=tty0 console=ttyS0
    initrd /initrd.img
}
EOF
}

set_up() {
    echo ebpf-labs > "$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 ebpf-labs\n::1 localhost\n' > "$root/etc/hosts"
    printf 'auto lo\niface lo inet loopback\n\nallow-hotplug eth0\niface eth0 inet dhcp\n' > "$root/etc/network/interfaces"
    in_root useradd --create-home --shell /bin/bash --uid 1000 vagrant
    echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/vagrant"
    chmod 440 "$root/etc/sudoers.d/vagrant"
    install -d -m 700 "$root/home/vagrant/.ssh"
    printf '%s\n' "$insecure_keys" > "$root/home/vagrant/.ssh/authorized_keys"
    chmod 600 "$root/home/vagrant/.ssh/authorized_keys"
    in_root chown -R vagrant: /home/vagrant/.ssh
    echo 'UseDNS no' > "$root/etc/ssh/sshd_config.d/vagrant.conf"
    # Each machine makes host keys of its own, at its first boot.
    rm -f "$root"/etc/ssh/ssh_host_*
    mkdir -p "$root/etc/systemd/system/ssh.service.d"
    printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
        > "$root/etc/systemd/system/ssh.service.d/host-keys.conf"
}

provision() {
    say "  provision.sh, inside:"
    local inside=$root/home/vagrant/ebpf-labs
    mkdir -p "$inside"
    tar -C "$project" --exclude=./target --exclude=./.tools --exclude=./exercises --exclude=./book/book --exclude=./.git \
        --exclude=./vagrant/boxes --exclude=./vagrant/.vagrant -c . | tar -C "$inside" -x
    in_root chown -R vagrant: /home/vagrant/ebpf-labs
    mount -t tmpfs tmpfs "$root/tmp"
    [ -z "$ca" ] || cp "$ca" "$root/tmp/ebpf-vm-ca.crt"
    in_root bash /home/vagrant/ebpf-labs/vagrant/provision.sh | sed 's/^/    /'
    umount "$root/tmp"
}

# So that a first run in the machine shows something at once; what has changed by then is built again. By the command
# that will run it, or libraries are built with other features; and in a login shell, as it will be there, for the labs'
# programs are built anew where PATH is another one.
build_lab() {
    in_root runuser --login vagrant --command 'cd ebpf-labs && cargo xtask run lab01 --no-run'
}

clean() {
    in_root apt-get clean
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/var/cache/debconf/*-old "$root/usr/sbin/policy-rc.d"
    : > "$root/etc/machine-id"
    rm -f "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id"
    umount "$root/proc"
}

make_disk() {
    local disk=$work/disk partition_start=2048 # sectors of 512 bytes: 1 MiB for the partition table and GRUB
    truncate -s "${disk_size}G" "$disk"
    echo "start=$partition_start, type=83, bootable" | sfdisk --quiet "$disk"
    # Without the features that GRUB cannot read.
    mkfs.ext4 -q -L root -O '^metadata_csum_seed,^orphan_file' -d "$root" -E "offset=$((partition_start * 512))" \
        "$disk" "$((disk_size * 1024 * 1024 - 2 * 1024))k"
    # The boot code, without the partition table that follows it in the same sector.
    dd if="$root/usr/lib/grub/i386-pc/boot.img" of="$disk" bs=440 count=1 conv=notrunc
    dd if="$root/boot/grub/core.img" of="$disk" bs=512 seek=1 conv=notrunc
    local size
    size=$(stat -c %s "$root/boot/grub/core.img")
    [ "$size" -le $(((partition_start - 1) * 512)) ] || { echo "GRUB's image is too big: $size bytes"; return 1; }
    qemu-img convert -O qcow2 "$disk" "$work/box.img"
    rm "$disk"
}

pack() {
    printf '{"provider": "%s", "format": "qcow2", "virtual_size": %s}\n' "$provider" "$disk_size" > "$work/metadata.json"
    printf '{"name": "ebpf-labs", "debian": "%s", "kernel": "%s"}\n' "$suite" "$release" > "$work/info.json"
    tar -C "$work" -c metadata.json info.json box.img | gzip -1 > "$work/box"
    mv "$work/box" "$output"
}

main "$@"
