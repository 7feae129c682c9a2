#!/bin/sh
# lab04's programs by hand: loaded, attached, read and detached by bpftool alone.
#
#   by-hand.sh up OBJECT CGROUP FOLDER     FOLDER is a new one on bpffs, such as /sys/fs/bpf/by-hand
#   by-hand.sh show CGROUP FOLDER
#   by-hand.sh down CGROUP FOLDER
set -eu

hooks='egress ingress connect4 connect6 sendmsg4 sendmsg6'

zeros() {
    count=0
    while [ "$count" -lt "$1" ]; do
        printf '00 '
        count=$((count + 1))
    done
}

# ANCHOR: up
up() {
    object=$1 cgroup=$2 folder=$3
    # Load: every program and every map is pinned under its name.
    mkdir "$folder"
    bpftool prog loadall "$object" "$folder/programs" pinmaps "$folder/maps"

    # A policy without rules that denies what goes out. For each family and direction: no tuples, and no rank of a rule
    # that asks for the source; then the flags, of which the first says what happens to what goes out.
    no_rules_v4="$(zeros 652) ff ff ff ff" no_rules_v6="$(zeros 1420) ff ff ff ff"
    # shellcheck disable=SC2046,SC2086
    bpftool map update pinned "$folder/maps/CONFIGS" key 0 0 0 0 \
        value hex $no_rules_v4 $no_rules_v4 $no_rules_v6 $no_rules_v6 01 00 00 00 $(zeros 12)
    # Block: the mode is one word.
    bpftool map update pinned "$folder/maps/MODE" key 0 0 0 0 value 1 0 0 0

    # Attach.
    for hook in $hooks; do
        bpftool cgroup attach "$cgroup" "$hook" pinned "$folder/programs/$hook" multi
    done
}
# ANCHOR_END: up

# ANCHOR: show
show() {
    cgroup=$1 folder=$2
    # What is attached, and what was loaded.
    bpftool cgroup show "$cgroup"
    bpftool prog show pinned "$folder/programs/egress"
    bpftool map show pinned "$folder/maps/RULES_V4"

    # What was counted by rule, and whom what was blocked was for: BTF names the fields.
    bpftool map dump pinned "$folder/maps/BLOCKED"
}
# ANCHOR_END: show

# ANCHOR: down
down() {
    cgroup=$1 folder=$2
    for hook in $hooks; do
        bpftool cgroup detach "$cgroup" "$hook" pinned "$folder/programs/$hook"
    done
    rm -r "$folder"
}
# ANCHOR_END: down

step=$1
shift
"$step" "$@"
