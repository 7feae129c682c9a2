//! The walkthrough with bpftool, as the guide shows it (Z7, Z10): the script that stands there is run.

use std::{env, fs, path::PathBuf, process::Command};

use lab04_cgroup_policy::OBJECT;
use testbed::{Cgroup, Host, Result, harness::unsupported};

use crate::{
    bpffs::Bpffs,
    client::order,
    lab::{Network, finish},
};

testbed::listed_tests![the_programs_are_loaded_attached_read_and_detached_by_bpftool_alone,];

const SCRIPT: &str = include_str!("../../by-hand.sh");

/// The search path with bpftool in it: the machine's, or the one that was unpacked into the project.
fn path_with_bpftool() -> String {
    let path = env::var("PATH").unwrap_or_default();
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bpftool/usr/sbin");
    let path = format!("{path}:/usr/sbin:{unpacked}");
    let is_there = |folder: PathBuf| folder.join("bpftool").is_file();
    if !env::split_paths(&path).any(is_there) {
        unsupported("bpftool is missing (Debian: bpftool); or unpack that package into .tools/bpftool (dpkg -x)");
    }
    path
}

fn the_programs_are_loaded_attached_read_and_detached_by_bpftool_alone() -> Result {
    let path = path_with_bpftool();
    let network = Network::new()?;
    let (cgroup, bpffs, folder) = (Cgroup::new("by-hand")?, Bpffs::mount(), tempfile::tempdir().unwrap());
    let (object, script) = (folder.path().join("lab04.o"), folder.path().join("by-hand.sh"));
    fs::write(&object, OBJECT).unwrap();
    fs::write(&script, SCRIPT).unwrap();
    let pins = bpffs.path().join("by-hand");
    let run = |host: &Host, step: &str, args: &[&std::path::Path]| {
        let mut command: Command = host.command("sh");
        command.arg(&script).arg(step).args(args).env("PATH", &path);
        let finished = finish(command);
        assert!(finished.status.success(), "{finished:#?}");
        finished.stdout
    };
    let host = network.client();
    let udp = format!("udp {}", network.v4());
    let traffic = [format!("tcp {}", network.v4()), udp];
    let traffic = traffic.each_ref().map(String::as_str);

    run(host, "up", &[&object, cgroup.path(), &pins]);
    assert_eq!(order(host, &cgroup, traffic), ["denied"; 2]);
    let shown = run(host, "show", &[cgroup.path(), &pins]);
    for hook in ["egress", "ingress", "connect4", "connect6", "sendmsg4", "sendmsg6"] {
        assert!(shown.contains(hook), "{hook} in {shown}");
    }
    // Readable by the names of the fields.
    for words in [
        "cgroup_skb",
        "RULES_V4",
        "\"peer\"",
        "\"port\": 7",
        "\"protocol\": 6",
        "\"protocol\": 17",
    ] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    run(host, "down", &[cgroup.path(), &pins]);
    assert_eq!(order(host, &cgroup, traffic), ["answered"; 2]);
    assert!(!pins.exists());
    Ok(())
}
