//! XDP in the place of TC ingress: where it decides, and what it sees (A2, F14).

use std::{
    fs, io,
    net::UdpSocket,
    os::fd::{AsRawFd as _, OwnedFd},
};

use enforcer_policy::{Format, NoFiles};
use lab06_full_enforcer::object;
use lab06_full_enforcer_common::key::Hook;
use testbed::{
    LinkOptions, Running,
    harness::{falls_back, unsupported},
    packets::{self, ip_number},
};

use crate::{
    lab::{AT_INTERFACE, AT_XDP, Lab, PATIENCE, wait_until},
    program::Programs,
};

testbed::listed_tests![
    xdp_decides_where_it_is_asked_for,
    frames_of_a_veth_are_decided_at_tc_unless_xdp_is_asked_for,
    frames_of_a_driver_with_native_xdp_are_decided_there,
    jumbo_frames_are_decided_at_xdp,
    a_header_behind_the_first_buffer_hides_no_port,
    an_interface_with_another_xdp_program_is_refused_or_decided_at_tc,
    an_interface_whose_packets_have_no_ethernet_header_is_refused_by_its_name,
];

const NO_DNS: &str = "
version: 1
name: no-dns
mode: block
essentials: false
rules:
  - { name: dns, direction: ingress, protocol: udp, destination_ports: 53, action: block }
  - { name: other, direction: ingress, protocol: udp, destination_ports: 54, action: allow }
";

/// What decides about what comes in, and how it is attached.
fn wire(lab: &Lab) -> (String, String) {
    let status = lab.json(&["status", "--json"]);
    let hook = &status["hooks"][0];
    let text = |key: &str| hook[key].as_str().unwrap().to_owned();
    (text("hook"), text("attached_by"))
}

/// Sends one packet of each rule to the server, so long.
fn inject(lab: &Lab, payload: usize) {
    for port in [53, 54] {
        let frame = lab.client.frame_to(&lab.server);
        let frame = frame.ipv4(lab.client.ipv4, lab.server.ipv4).udp(1000, port);
        let frame = frame.payload(vec![7; payload]).build();
        lab.client.host.inject(&lab.client.interface, &frame).unwrap();
    }
}

fn xdp_decides_where_it_is_asked_for() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", NO_DNS);
    let _enforcer = lab.enforce(&policy, &[&["--wire", "xdp"][..], &AT_XDP].concat());
    assert_eq!(wire(&lab), ("xdp-ingress".into(), "native".into()));
    inject(&lab, 10);
    wait_until("both are counted", || {
        (lab.counted("dns"), lab.counted("other")) == ([0, 0, 1], [1, 0, 0])
    });
    assert_eq!(lab.counted_at("xdp-ingress", "rule"), [1, 0, 1]);
    assert_eq!(lab.counted_at("tc-ingress", "rule"), [0; 3]);
    let explained = |direction: &str, interface: &[&str]| {
        let packet = [
            "--direction",
            direction,
            "--src",
            "192.0.2.1",
            "--dst",
            "192.0.2.2",
            "--proto",
            "udp",
            "--dport",
            "53",
            "--json",
        ];
        let told = lab.json(&[&["policy", "explain"], &packet[..], interface].concat());
        told["hook"].as_str().unwrap().to_owned()
    };
    assert_eq!(explained("ingress", &[]), "xdp-ingress");
    assert_eq!(explained("ingress", &["--iface", "eth0"]), "xdp-ingress");
    assert_eq!(explained("ingress", &["--iface", "eth1"]), "none");
    assert_eq!(explained("egress", &[]), "none");
    // The mode holds there, too.
    lab.done(&["mode", "observe"]);
    inject(&lab, 10);
    wait_until("both pass", || lab.counted_at("xdp-ingress", "rule") == [2, 1, 1]);
}

fn frames_of_a_veth_are_decided_at_tc_unless_xdp_is_asked_for() {
    let lab = Lab::new();
    let policy = lab.file("policy.yaml", NO_DNS);
    for args in [&[][..], &["--wire", "auto"], &["--wire", "tc"], &["--no-xdp"]] {
        let enforcer = lab.enforce(&policy, &[args, &AT_INTERFACE].concat());
        assert_eq!(wire(&lab).0, "tc-ingress", "{args:?}");
        enforcer.interrupt(PATIENCE).unwrap();
    }
    inject(&lab, 10);
}

fn frames_of_a_driver_with_native_xdp_are_decided_there() {
    let lab = Lab::new();
    let _tap = tap(&lab, "tap0", libc::IFF_TAP);
    let policy = lab.file("policy.yaml", NO_DNS);
    let policy = policy.to_str().unwrap();
    let told = lab.done(&["run", "--dry-run", "--iface", "tap0", "--no-cgroup", "--policy", policy]);
    assert!(
        told.contains("\n  xdp-ingress or tc-ingress at tap0\n  tc-egress at tap0\n"),
        "{told}"
    );
    let enforcer = Running::start(lab.command(&["run", "--iface", "tap0", "--no-cgroup", "--policy", policy])).unwrap();
    enforcer.wait_for("listening on", PATIENCE).unwrap();
    assert_eq!(wire(&lab), ("xdp-ingress".into(), "native".into()));
}

fn an_interface_whose_packets_have_no_ethernet_header_is_refused_by_its_name() {
    let lab = Lab::new();
    let _tun = tap(&lab, "tun0", libc::IFF_TUN);
    let policy = lab.file("policy.yaml", NO_DNS);
    let policy = policy.to_str().unwrap();
    let run = ["run", "--policy", policy, "--no-cgroup"];
    for args in [&["--iface", "tun0"][..], &["--iface", "tun0", "--dry-run"]] {
        let error = lab.refused(&[&run[..], args].concat(), 1);
        assert!(
            error.contains("error: packets of tun0 have no Ethernet header"),
            "{error}"
        );
    }
    // Who names none does not mean what is down.
    let told = lab.done(&[&run[..], &["--dry-run"]].concat());
    assert!(told.contains(" at eth0\n") && !told.contains("tun0"), "{told}");
    lab.server.host.run(|| set_up("tun0")).unwrap();
    let error = lab.refused(&run, 1);
    assert!(
        error.contains("error: packets of tun0 have no Ethernet header"),
        "{error}"
    );
    let error = lab.refused(&[&run[..], &["--dry-run"]].concat(), 1);
    assert!(error.contains("--iface"), "{error}");
    // The cgroup sees what goes by it from its IP header on.
    let cgroup = lab.cgroup.path().to_str().unwrap();
    let in_cgroup = [
        "run",
        "--policy",
        policy,
        "--no-xdp",
        "--no-tc",
        "--cgroup",
        cgroup,
        "--dry-run",
    ];
    let told = lab.done(&in_cgroup);
    assert!(told.contains("cgroup-egress at "), "{told}");
}

/// A device whose packets come from a process, with Ethernet headers or without. It goes with the descriptor.
fn tap(lab: &Lab, name: &str, kind: libc::c_int) -> OwnedFd {
    match lab.server.host.run(|| make_tap(name, kind)) {
        Ok(tap) => tap,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            unsupported("this kernel has no tap devices (CONFIG_TUN)")
        }
        Err(error) => panic!("{error}"),
    }
}

fn set_up(name: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the request lives until the call returns.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A request about a device.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn make_tap(name: &str, kind: libc::c_int) -> io::Result<OwnedFd> {
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as i16;
    // SAFETY: the request lives until the call returns.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file.into())
}

fn jumbo_frames_are_decided_at_xdp() {
    let jumbo = LinkOptions {
        mtu: 9000,
        ..LinkOptions::default()
    };
    let lab = Lab::with(jumbo);
    let policy = lab.file("policy.yaml", NO_DNS);
    let _enforcer = lab.enforce(&policy, &[&["--wire", "xdp"][..], &AT_XDP].concat());
    let (hook, mode) = wire(&lab);
    assert_eq!(hook, "xdp-ingress");
    if mode == "generic" {
        falls_back("frames of one buffer: a veth with so large an MTU has generic XDP only");
    }
    inject(&lab, 8000);
    wait_until("both are counted", || {
        (lab.counted("dns"), lab.counted("other")) == ([0, 0, 1], [1, 0, 0])
    });
    let stats = lab.json(&["stats", "--json"]);
    let other = stats["rules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["rule"] == "other");
    assert_eq!(other.unwrap()["passed"]["bytes"], 20 + 8 + 8000);
}

fn a_header_behind_the_first_buffer_hides_no_port() {
    if !object::has_buffers() {
        return falls_back("frames of one buffer: BPF_F_XDP_HAS_FRAGS is Linux 5.18's");
    }
    let reading = enforcer_policy::read("policy", NO_DNS.as_bytes(), Format::Yaml, &NoFiles);
    let mut programs = Programs::load(&[Hook::XdpIngress]);
    programs.apply(&reading.policy.clone().unwrap());
    let behind_extensions = |port: u16| {
        let ip = packets::ethernet().ipv6("2001:db8::1", "2001:db8::2");
        let ip = (0..3).fold(ip, |ip, _| ip.extension(ip_number::IPV6_DEST_OPTIONS, &[0; 2046]));
        ip.udp(1000, port).payload([0; 100]).build()
    };
    assert!(!programs.lets_pass(Hook::XdpIngress, &behind_extensions(53), 1));
    assert!(programs.lets_pass(Hook::XdpIngress, &behind_extensions(54), 1));
    let counted = programs.by_rule(2);
    assert_eq!((counted[0].dropped.packets, counted[1].passed.packets), (1, 1));
    assert_eq!(counted[1].passed.bytes, 40 + 3 * 2048 + 8 + 100);
}

fn an_interface_with_another_xdp_program_is_refused_or_decided_at_tc() {
    let lab = Lab::new();
    lab.server.pass_xdp().unwrap();
    let policy = lab.file("policy.yaml", NO_DNS);
    let policy = policy.to_str().unwrap();
    let run = ["run", "--iface", "eth0", "--no-cgroup", "--policy", policy];
    let error = lab.refused(&[&run[..], &["--wire", "xdp"]].concat(), 1);
    assert!(error.contains("error: eth0 already carries"), "{error}");
    let enforcer = Running::start(lab.command(&run)).unwrap();
    enforcer.wait_for("listening on", PATIENCE).unwrap();
    assert_eq!(wire(&lab).0, "tc-ingress");
}
