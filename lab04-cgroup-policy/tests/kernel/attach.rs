//! Links at the hooks of a cgroup (A2, Z1), and what each hook is called for.

use std::{fs, os::fd::AsFd as _, path::Path};

use lab04_cgroup_policy::attach::{AttachError, CgroupLink, Hook};
use lab04_cgroup_policy_common::destination::Destination;
use testbed::{Cgroup, Result, bpf};

use crate::{
    bpffs::Bpffs,
    client::{order, order_outside},
    hooks::{Hooks, opened},
    lab::{Network, PORT},
};

testbed::listed_tests![
    each_hook_is_called_for_its_own_and_obeyed,
    a_mapped_address_is_the_ipv4_address_that_it_maps,
    a_packet_starts_at_its_ip_header_and_is_read_to_its_last_byte,
    descendants_are_covered_and_siblings_are_not,
    a_dropped_link_detaches_and_a_pinned_one_stays,
    a_link_is_given_another_program_in_place,
    a_program_that_wants_to_be_the_only_one_is_named_as_the_cause,
    a_pin_that_cannot_be_says_why,
];

fn each_hook_is_called_for_its_own_and_obeyed() -> Result {
    let network = Network::new()?;
    let (v4, v6) = (network.v4(), network.v6());
    for (hook, traffic, expected) in [
        (
            Hook::Connect4,
            format!("tcp {v4}"),
            Destination::ipv4(network.server().ipv4.octets(), PORT, 6),
        ),
        (
            Hook::Connect4,
            format!("udp-connected {v4}"),
            Destination::ipv4(network.server().ipv4.octets(), PORT, 17),
        ),
        (
            Hook::Connect6,
            format!("tcp {v6}"),
            Destination::ipv6(network.server().ipv6.octets(), PORT, 6),
        ),
        (
            Hook::SendMsg4,
            format!("udp {v4}"),
            Destination::ipv4(network.server().ipv4.octets(), PORT, 17),
        ),
        (
            Hook::SendMsg6,
            format!("udp {v6}"),
            Destination::ipv6(network.server().ipv6.octets(), PORT, 17),
        ),
    ] {
        let cgroup = Cgroup::new("hook")?;
        let mut hooks = Hooks::load();
        let _link = hooks.attach(&cgroup, hook);
        assert_eq!(order(network.client(), &cgroup, [&traffic]), ["answered"], "{traffic}");
        assert_eq!(
            (hooks.calls(hook), hooks.last_destination(hook)),
            (1, expected),
            "{traffic}"
        );
        hooks.tell(hook, false);
        assert_eq!(order(network.client(), &cgroup, [&traffic]), ["denied"], "{traffic}");
        assert_eq!(hooks.calls(hook), 2);
    }
    for (hook, answer) in [(Hook::Egress, "denied"), (Hook::Ingress, "no answer")] {
        let cgroup = Cgroup::new("hook")?;
        let mut hooks = Hooks::load();
        let _link = hooks.attach(&cgroup, hook);
        for traffic in [format!("udp {v4}"), format!("udp {v6}"), format!("udp-connected {v4}")] {
            hooks.tell(hook, true);
            assert_eq!(
                order(network.client(), &cgroup, [&traffic]),
                ["answered"],
                "{hook}: {traffic}"
            );
            hooks.tell(hook, false);
            assert_eq!(
                order(network.client(), &cgroup, [&traffic]),
                [answer],
                "{hook}: {traffic}"
            );
        }
        assert_eq!(hooks.calls(hook), 6, "{hook}");
    }
    Ok(())
}

fn a_mapped_address_is_the_ipv4_address_that_it_maps() -> Result {
    let network = Network::new()?;
    let mapped = network.mapped();
    let ipv4 = network.server().ipv4.octets();
    for (traffic, protocol, at) in [
        (format!("tcp {mapped}"), 6, [Hook::Connect6].as_slice()),
        // The kernel turns it into IPv4 before it asks.
        (format!("udp {mapped}"), 17, &[Hook::SendMsg4, Hook::SendMsg6]),
    ] {
        let cgroup = Cgroup::new("mapped")?;
        let mut hooks = Hooks::load();
        let _links: Vec<CgroupLink> = at.iter().map(|hook| hooks.attach(&cgroup, *hook)).collect();
        assert_eq!(order(network.client(), &cgroup, [&traffic]), ["answered"]);
        let called: Vec<Hook> = at.iter().copied().filter(|hook| hooks.calls(*hook) > 0).collect();
        assert!(!called.is_empty(), "{traffic}");
        for hook in &called {
            assert_eq!(
                hooks.last_destination(*hook),
                Destination::ipv4(ipv4, PORT, protocol),
                "{hook}"
            );
            hooks.tell(*hook, false);
        }
        assert_eq!(order(network.client(), &cgroup, [&traffic]), ["denied"], "{called:?}");
    }
    Ok(())
}

fn a_packet_starts_at_its_ip_header_and_is_read_to_its_last_byte() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("packet")?;
    let hooks = Hooks::load();
    let _links = [Hook::Egress, Hook::Ingress].map(|hook| hooks.attach(&cgroup, hook));
    let interface = network.cable.left.index;
    for (target, length) in [(network.v4(), 20 + 8 + 5), (network.v6(), 40 + 8 + 5)] {
        assert_eq!(
            order(network.client(), &cgroup, [&format!("udp {target}")]),
            ["answered"]
        );
        for hook in [Hook::Egress, Hook::Ingress] {
            assert_eq!(
                hooks.longest_packet(hook),
                [length, length, interface, u32::from(b'o')],
                "{hook}: {target}"
            );
        }
    }
    // What fills pages: its bytes do not lie behind its headers.
    assert_eq!(
        order(network.client(), &cgroup, [&format!("much {}", network.v4())]),
        ["answered"]
    );
    let [length, end, _, last] = hooks.longest_packet(Hook::Egress);
    assert_eq!((length, last), (end, u32::from(b'!')));
    assert!(length > 10_000, "the stack hands pieces of only {length} bytes down");
    Ok(())
}

fn descendants_are_covered_and_siblings_are_not() -> Result {
    let network = Network::new()?;
    let traffic = [format!("udp {}", network.v4()), format!("tcp {}", network.v6())];
    let traffic = [&*traffic[0], &*traffic[1]];
    let (above, sibling) = (Cgroup::new("above")?, Cgroup::new("sibling")?);
    let below = above.child("below")?;
    let deep = below.child("deep")?;
    let mut hooks = Hooks::load();
    let _links = Hook::ALL.map(|hook| hooks.attach(&below, hook));
    for hook in Hook::ALL {
        hooks.tell(hook, false);
    }
    for cgroup in [&below, &deep] {
        assert_eq!(
            order(network.client(), cgroup, traffic),
            ["denied"; 2],
            "{}",
            cgroup.path().display()
        );
    }
    for cgroup in [&above, &sibling] {
        assert_eq!(
            order(network.client(), cgroup, traffic),
            ["answered"; 2],
            "{}",
            cgroup.path().display()
        );
    }
    assert_eq!(order_outside(network.client(), traffic), ["answered"; 2]);
    Ok(())
}

fn a_dropped_link_detaches_and_a_pinned_one_stays() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("pin")?;
    let bpffs = Bpffs::mount();
    let pin = bpffs.path().join("egress_link");
    let traffic = format!("udp {}", network.v4());
    let ask = || order(network.client(), &cgroup, [&traffic]);

    let mut hooks = Hooks::load();
    hooks.tell(Hook::Egress, false);
    let link = hooks.attach(&cgroup, Hook::Egress);
    assert_eq!(ask(), ["denied"]);
    drop(link);
    assert_eq!(ask(), ["answered"], "the link is gone, and its program still loaded");

    let link = hooks.attach(&cgroup, Hook::Egress);
    link.pin(&pin).unwrap();
    drop((link, hooks));
    assert_eq!(ask(), ["denied"], "pinned");
    let taken_up = CgroupLink::from_pin(&pin, Hook::Egress).unwrap();
    fs::remove_file(&pin).unwrap();
    assert_eq!(ask(), ["denied"], "held by a descriptor");
    drop(taken_up);
    assert_eq!(ask(), ["answered"]);
    Ok(())
}

fn a_link_is_given_another_program_in_place() -> Result {
    let network = Network::new()?;
    let cgroup = Cgroup::new("replace")?;
    let traffic = format!("tcp {}", network.v4());
    let (first, mut second) = (Hooks::load(), Hooks::load());
    second.tell(Hook::Connect4, false);
    let link = first.attach(&cgroup, Hook::Connect4);
    assert_eq!(order(network.client(), &cgroup, [&traffic]), ["answered"]);
    link.replace(second.program(Hook::Connect4).as_fd()).unwrap();
    // The link keeps its program, whoever loaded it.
    drop(first);
    assert_eq!(order(network.client(), &cgroup, [&traffic]), ["denied"]);
    assert_eq!(second.calls(Hook::Connect4), 1);

    let error = link
        .replace(second.program(Hook::Egress).as_fd())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the hook connect4 cannot be given another program: "),
        "{error}"
    );
    Ok(())
}

fn a_program_that_wants_to_be_the_only_one_is_named_as_the_cause() -> Result {
    let (above, program) = (Cgroup::new("above")?, bpf::empty_program(bpf::ProgramType::CgroupSkb)?);
    let below = above.child("below")?;
    let _attached = bpf::attach_exclusively(&program, &above)?;
    for cgroup in [&above, &below] {
        let hooks = Hooks::load();
        let refused = CgroupLink::attach(hooks.program(Hook::Ingress).as_fd(), &opened(cgroup), Hook::Ingress);
        let error = refused.unwrap_err();
        assert!(matches!(error, AttachError::Exclusive { .. }), "{error}");
        let start = format!(
            "the hook ingress of {} admits no further program: ",
            cgroup.path().display()
        );
        assert!(error.to_string().starts_with(&start), "{error}");
        drop(hooks.attach(cgroup, Hook::Connect4));
    }
    Ok(())
}

fn a_pin_that_cannot_be_says_why() -> Result {
    let (cgroup, bpffs, elsewhere) = (Cgroup::new("pin")?, Bpffs::mount(), tempfile::tempdir().unwrap());
    let hooks = Hooks::load();
    let link = hooks.attach(&cgroup, Hook::Ingress);
    link.pin(&bpffs.path().join("taken")).unwrap();
    let message = |path: &Path| link.pin(path).unwrap_err().to_string();
    for (path, mend) in [
        (bpffs.path().join("taken"), "something is pinned there already"),
        (
            bpffs.path().join("no/such/folder"),
            "the folder above it has to be there",
        ),
        (
            elsewhere.path().join("pin"),
            "pins live on bpffs: take a folder below /sys/fs/bpf",
        ),
    ] {
        let text = message(&path);
        let start = format!("{} cannot be pinned: ", path.display());
        assert!(text.starts_with(&start) && text.contains(mend), "{text}");
    }
    Ok(())
}
