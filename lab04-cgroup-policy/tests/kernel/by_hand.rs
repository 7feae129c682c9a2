//! The walkthrough with bpftool, as the guide shows it (Z7, Z10): the script that stands there is run.

use std::{fs, process::Command};

use lab04_cgroup_policy::OBJECT;
use testbed::{Cgroup, Host, Result, harness::unsupported};

use crate::{
    bpffs::Bpffs,
    client::order,
    lab::{Network, finish},
};

testbed::listed_tests![the_programs_are_loaded_attached_read_and_detached_by_bpftool_alone,];

const SCRIPT: &str = include_str!("../../by-hand.sh");

fn the_programs_are_loaded_attached_read_and_detached_by_bpftool_alone() -> Result {
    if let Err(error) = Command::new("bpftool").arg("version").output() {
        unsupported(format!(
            "bpftool cannot be run ({error}); on Debian: apt-get install bpftool"
        ));
    }
    let network = Network::new()?;
    let (cgroup, bpffs, folder) = (Cgroup::new("by-hand")?, Bpffs::mount(), tempfile::tempdir().unwrap());
    let (object, script) = (folder.path().join("lab04.o"), folder.path().join("by-hand.sh"));
    fs::write(&object, OBJECT).unwrap();
    fs::write(&script, SCRIPT).unwrap();
    let pins = bpffs.path().join("by-hand");
    let run = |host: &Host, step: &str, args: &[&std::path::Path]| {
        let mut command = host.command("sh");
        command.arg(&script).arg(step).args(args);
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
    let mut cgroup_show = host.command("bpftool");
    cgroup_show.args(["cgroup", "show"]).arg(cgroup.path());
    let can_show = finish(cgroup_show).status.success();
    if can_show {
        assert_shown(&run(host, "show", &[cgroup.path(), &pins]));
    }
    run(host, "down", &[cgroup.path(), &pins]);
    assert_eq!(order(host, &cgroup, traffic), ["answered"; 2]);
    assert!(!pins.exists());
    if !can_show {
        unsupported("bpftool as new as this wants Linux 6.0 for `cgroup show`; all else of the script did its part");
    }
    Ok(())
}

/// What is attached, loaded and counted.
fn assert_shown(shown: &str) {
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
}
