//! Ways around the enforcer that only real traffic shows (F14, A2, N6): what comes in pieces, tagged, or cut by nobody yet;
//! what is sent past sockets or only forwarded; and what no hook sees, each by a test of that name.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use testbed::{
    Cgroup, End, Host, Link, LinkOptions, Running,
    packets::Packet,
    patience,
    traffic::{self, Server},
};

use crate::{
    lab::{Lab, PATIENCE, wait_until},
    sender::order,
};

testbed::listed_tests![
    a_tag_that_the_kernel_has_taken_out_hides_no_port,
    a_jumbo_frame_is_decided_wherever_its_headers_lie,
    a_super_packet_of_segmentation_offload_is_one_packet_with_all_its_bytes,
    datagrams_that_are_handed_over_at_once_are_decided_before_they_are_cut,
    ipv4_by_an_ipv6_socket_is_decided_as_ipv4,
    a_mapped_source_on_the_wire_meets_no_rule_of_ipv4_and_is_kept_out_by_one_of_its_own,
    a_raw_socket_is_decided_by_the_header_that_it_writes_itself,
    a_socket_stays_in_the_cgroup_in_which_it_was_made,
    what_a_packet_socket_sends_is_decided_where_it_leaves,
    a_packet_socket_still_reads_what_is_dropped_on_its_way_in,
    forwarded_packets_are_ingress_where_they_come_in_and_egress_where_they_leave,
    what_leaves_is_decided_by_exactly_one_hook,
    without_a_cgroup_everything_is_decided_where_it_leaves,
];

const NO_DNS: &str = "
version: 1
name: no-dns
mode: block
rules:
  - { name: dns-in, direction: ingress, protocol: udp, destination_ports: 53, action: block }
  - { name: dns-out, direction: egress, protocol: udp, destination_ports: 53, action: block }
";

fn under_attack(options: LinkOptions, policy: &str) -> (Lab, Running) {
    let lab = Lab::with(options);
    let file = lab.file("policy.yaml", policy);
    let enforcer = lab.enforce(&file, &[]);
    (lab, enforcer)
}

/// A datagram from the client to a port of the server, to be injected.
fn datagram(lab: &Lab, port: u16) -> Packet {
    let frame = lab.client.frame_to(&lab.server);
    frame.ipv4(lab.client.ipv4, lab.server.ipv4).udp(1000, port)
}

fn inject(end: &End, frame: &[u8]) {
    end.host.inject(&end.interface, frame).unwrap();
}

/// A socket on the server.
fn receiver(lab: &Lab, address: SocketAddr) -> UdpSocket {
    let socket = lab.server.host.run(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(patience(PATIENCE))).unwrap();
    socket
}

fn a_tag_that_the_kernel_has_taken_out_hides_no_port() {
    let (lab, _enforcer) = under_attack(LinkOptions::default(), NO_DNS);
    let behind = |tags: u16| {
        let frame = lab.client.frame_to(&lab.server);
        let frame = (1..=tags).fold(frame, Packet::vlan);
        frame.ipv4(lab.client.ipv4, lab.server.ipv4).udp(1000, 53).build()
    };
    // The outer tag stands beside the frame, so that of three tags the program sees two, and of four three.
    for tags in 1..=4 {
        inject(&lab.client, &behind(tags));
    }
    wait_until("all are counted", || {
        let malformed = lab.json(&["stats", "--json"])["malformed"].clone();
        let too_many = malformed.as_array().into_iter().flatten();
        let too_many = too_many.filter(|line| line["malformed"] == "too-many-vlan-tags");
        lab.counted("dns-in") == [0, 0, 3] && too_many.count() == 1
    });
}

fn a_jumbo_frame_is_decided_wherever_its_headers_lie() {
    let jumbo = LinkOptions {
        mtu: 9000,
        ..LinkOptions::default()
    };
    let (lab, _enforcer) = under_attack(jumbo, NO_DNS);
    let receiver = receiver(&lab, (lab.server.ipv4, 54).into());
    // Of a frame that is longer than a page, a packet socket puts the Ethernet header into the first piece, and no more.
    for port in [53, 54] {
        inject(&lab.client, &datagram(&lab, port).payload([7; 8000]).build());
    }
    let mut received = [0; 9000];
    assert_eq!(receiver.recv(&mut received).unwrap(), 8000);
    assert_eq!(lab.counted("dns-in"), [0, 0, 1]);
    let stats = lab.json(&["stats", "--json"]);
    assert_eq!(stats["malformed"].as_array().map(Vec::len), Some(0), "{stats:#}");
}

fn a_super_packet_of_segmentation_offload_is_one_packet_with_all_its_bytes() {
    const BYTES: u64 = 1_000_000;
    let (lab, _enforcer) = under_attack(
        LinkOptions::default(),
        "
version: 1
name: echo
mode: block
rules:
  - { name: echo, direction: ingress, protocol: tcp, destination_ports: 7, action: allow }
",
    );
    let _echo = Server::tcp(&lab.server.host, 7).unwrap();
    let exchange = traffic::tcp_exchange(&lab.client.host, (lab.server.ipv4, 7).into(), BYTES, PATIENCE).unwrap();
    assert!(exchange.is_complete(), "{exchange:?}");
    let [packets, bytes] = passed(&lab, "echo");
    assert!(bytes >= BYTES, "{bytes} bytes");
    // More than the interface's 1500 each: what is counted, or limited, by packets has few of them.
    assert!(packets < BYTES / 1500, "{packets} packets");
}

/// Packets and bytes that a rule has let pass.
fn passed(lab: &Lab, rule: &str) -> [u64; 2] {
    let stats = lab.json(&["stats", "--json"]);
    let rules = stats["rules"].as_array().unwrap();
    let of_rule = rules.iter().find(|line| line["rule"] == rule).unwrap();
    ["packets", "bytes"].map(|unit| of_rule["passed"][unit].as_u64().unwrap())
}

fn datagrams_that_are_handed_over_at_once_are_decided_before_they_are_cut() {
    let (lab, _enforcer) = under_attack(
        LinkOptions::default(),
        "
version: 1
name: segments
mode: block
rules:
  - { name: dns, direction: egress, protocol: udp, destination_ports: 53, action: block }
  - { name: other, direction: egress, protocol: udp, destination_ports: 54, action: allow }
",
    );
    let orders = [53, 54].map(|port| format!("segments {}:{port}", lab.client.ipv4));
    assert_eq!(order(&lab.server.host, &lab.cgroup, orders), ["denied", "sent"]);
    assert_eq!(lab.counted("dns"), [0, 0, 1]);
    assert_eq!(passed(&lab, "other"), [1, 20 + 8 + 10_000]);
}

fn ipv4_by_an_ipv6_socket_is_decided_as_ipv4() {
    let lab = Lab::new();
    let client = lab.client.ipv4;
    let policy = format!(
        "
version: 1
name: mapped
mode: block
rules:
  - {{ name: by-ipv4, direction: egress, destination: {client}, action: block }}
  - {{ name: by-mapped, direction: egress, destination: '::ffff:0:0/96', action: block }}
"
    );
    let policy = lab.file("policy.yaml", &policy);
    let _enforcer = lab.enforce(&policy, &[]);
    let to = |address: Ipv6Addr| format!("udp [{address}]:514");
    assert_eq!(
        order(
            &lab.server.host,
            &lab.cgroup,
            [to(client.to_ipv6_mapped()), to(lab.client.ipv6)]
        ),
        ["denied", "sent"]
    );
    assert_eq!(lab.counted("by-ipv4"), [0, 0, 1]);
    assert_eq!(lab.counted("by-mapped"), [0, 0, 0]);
}

fn a_mapped_source_on_the_wire_meets_no_rule_of_ipv4_and_is_kept_out_by_one_of_its_own() {
    let lab = Lab::new();
    let client = lab.client.ipv4;
    let policy = format!(
        "
version: 1
name: mapped
mode: block
rules:
  - {{ name: by-ipv4, direction: ingress, source: {client}, action: block }}
  - {{ name: by-mapped, direction: ingress, source: '::ffff:0:0/96', action: block }}
"
    );
    let policy = lab.file("policy.yaml", &policy);
    let _enforcer = lab.enforce(&policy, &[]);
    // A socket of both versions takes such a sender for one of IPv4, whom the first rule blocks.
    let receiver = receiver(&lab, (Ipv6Addr::UNSPECIFIED, 5000).into());
    let frame = || lab.client.frame_to(&lab.server);
    let mapped = frame().ipv6(client.to_ipv6_mapped(), lab.server.ipv6);
    inject(&lab.client, &mapped.udp(1000, 5000).payload("mapped").build());
    let ordinary = frame().ipv6(lab.client.ipv6, lab.server.ipv6);
    inject(&lab.client, &ordinary.udp(1000, 5000).payload("ordinary").build());
    let mut received = [0; 100];
    let (length, _) = receiver.recv_from(&mut received).unwrap();
    assert_eq!(&received[..length], b"ordinary");
    assert_eq!(lab.counted("by-ipv4"), [0, 0, 0]);
    assert_eq!(lab.counted("by-mapped"), [0, 0, 1]);
}

fn a_raw_socket_is_decided_by_the_header_that_it_writes_itself() {
    let (lab, _enforcer) = under_attack(LinkOptions::default(), NO_DNS);
    let client = lab.client.ipv4;
    let orders = [format!("raw {client}:53"), format!("raw {client}:54")];
    assert_eq!(order(&lab.server.host, &lab.cgroup, orders), ["denied", "sent"]);
    assert_eq!(lab.counted("dns-out"), [0, 0, 1]);
}

fn a_socket_stays_in_the_cgroup_in_which_it_was_made() {
    let (lab, _enforcer) = under_attack(LinkOptions::default(), NO_DNS);
    let elsewhere = Cgroup::new("elsewhere").unwrap();
    let target = (lab.client.ipv4, 53);
    // This process is in neither of them.
    let inside = lab.cgroup.udp_socket(&lab.server.host).unwrap();
    let error = inside.send_to(b"hello", target).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let outside = elsewhere.udp_socket(&lab.server.host).unwrap();
    assert_eq!(outside.send_to(b"hello", target).unwrap(), 5);
    assert_eq!(lab.counted("dns-out"), [0, 0, 1]);
}

fn what_a_packet_socket_sends_is_decided_where_it_leaves() {
    let (lab, _enforcer) = under_attack(LinkOptions::default(), NO_DNS);
    let mut capture = lab.client.host.capture(&lab.client.interface).unwrap();
    let orders = [53, 54].map(|port| format!("frame {}:{port}", lab.client.ipv4));
    // What TC drops is no space to a packet socket (`net_xmit_errno`).
    let [blocked, passed] = order(&lab.server.host, &lab.cgroup, orders);
    assert!(
        blocked.starts_with("No buffer space") && passed == "sent",
        "{blocked}, {passed}"
    );
    let frame = capture
        .next(patience(PATIENCE))
        .unwrap()
        .expect("the second one has left");
    assert_eq!(frame[36..38], [0, 54], "{frame:02x?}");
    assert_eq!(lab.counted("dns-out"), [0, 0, 1]);
    assert_eq!(lab.counted_at("tc-egress", "rule"), [0, 0, 1]);
}

fn a_packet_socket_still_reads_what_is_dropped_on_its_way_in() {
    let (lab, _enforcer) = under_attack(LinkOptions::default(), NO_DNS);
    let mut capture = lab.server.host.capture(&lab.server.interface).unwrap();
    let frame = datagram(&lab, 53).payload("seen").build();
    inject(&lab.client, &frame);
    assert_eq!(capture.next(patience(PATIENCE)).unwrap(), Some(frame));
    wait_until("it is dropped", || lab.counted("dns-in") == [0, 0, 1]);
}

/// A lab whose server forwards to a further host, which is at its second interface.
fn router() -> (Lab, Link) {
    let lab = Lab::new();
    let beyond = lab.server.host.join(&Host::new("beyond").unwrap()).unwrap();
    lab.server.host.set_parameter("ipv4/ip_forward", "1").unwrap();
    (lab, beyond)
}

/// A datagram from the client to the host beyond the router.
fn forwarded(lab: &Lab, beyond: &Link, port: u16) -> Vec<u8> {
    let frame = lab.client.frame_to(&lab.server);
    frame.ipv4(lab.client.ipv4, beyond.right.ipv4).udp(1000, port).build()
}

fn forwarded_packets_are_ingress_where_they_come_in_and_egress_where_they_leave() {
    let (lab, beyond) = router();
    let policy = lab.file(
        "policy.yaml",
        "
version: 1
name: router
mode: block
rules:
  - { name: in, direction: ingress, protocol: udp, destination_ports: 53, action: block }
  - { name: out, direction: egress, protocol: udp, destination_ports: 54, action: block }
",
    );
    let _enforcer = lab.enforce(&policy, &["--iface", &beyond.left.interface]);
    let mut capture = beyond.right.host.capture(&beyond.right.interface).unwrap();
    for port in [53, 54, 55] {
        inject(&lab.client, &forwarded(&lab, &beyond, port));
    }
    let frame = capture.next(patience(PATIENCE)).unwrap().expect("one is forwarded");
    assert_eq!(frame[36..38], [0, 55], "{frame:02x?}");
    assert_eq!((lab.counted("in"), lab.counted("out")), ([0, 0, 1], [0, 0, 1]));
    assert_eq!(lab.counted_at("tc-egress", "rule"), [0, 0, 1]);
    let order = order(&lab.server.host, &lab.cgroup, [format!("udp {}:54", beyond.right.ipv4)]);
    assert_eq!(order, ["denied"], "what a socket of the router sends");
}

const COUNT_OUT: &str = "
version: 1
name: count
mode: block
rules:
  - { name: out, direction: egress, protocol: udp, destination_ports: 5000, action: allow }
";

/// Sends from sockets, from packet sockets and from beyond: so many of each.
fn send_in_every_way(lab: &Lab, beyond: &Link) -> [u64; 3] {
    let target = format!("{}:5000", beyond.right.ipv4);
    let (udp, segments, raw) = (
        format!("udp {target}"),
        format!("segments {target}"),
        format!("raw {target}"),
    );
    let orders = [udp.clone(), udp, segments, raw];
    let sent = order(&lab.server.host, &lab.cgroup, orders);
    assert_eq!(sent, ["sent"; 4]);
    let own = beyond.left.frame_to(&beyond.right);
    let own = own.ipv4(beyond.left.ipv4, beyond.right.ipv4).udp(1000, 5000).build();
    for _ in 0..3 {
        inject(&beyond.left, &own);
    }
    for _ in 0..5 {
        inject(&lab.client, &forwarded(lab, beyond, 5000));
    }
    [4, 3, 5]
}

fn what_leaves_is_decided_by_exactly_one_hook() {
    let (lab, beyond) = router();
    let policy = lab.file("policy.yaml", COUNT_OUT);
    let _enforcer = lab.enforce(&policy, &["--iface", &beyond.left.interface]);
    let [sockets, packet_sockets, forwarded] = send_in_every_way(&lab, &beyond);
    let all = sockets + packet_sockets + forwarded;
    wait_until("all are counted", || lab.counted("out") == [all, 0, 0]);
    assert_eq!(lab.counted_at("cgroup-egress", "rule"), [sockets, 0, 0]);
    assert_eq!(lab.counted_at("tc-egress", "rule"), [packet_sockets + forwarded, 0, 0]);
}

fn without_a_cgroup_everything_is_decided_where_it_leaves() {
    let (lab, beyond) = router();
    let policy = format!("{COUNT_OUT}  - {{ name: root, direction: egress, uid: 0, protocol: udp, action: block }}\n");
    // A rule that names a user meets nothing where nobody knows whose a packet is.
    let policy = lab.file(
        "policy.yaml",
        &policy.replace("action: allow", "priority: 200, action: allow"),
    );
    let mut command = lab.command(&["run", "--no-cgroup", "--iface", &lab.server.interface]);
    command
        .args(["--iface", &beyond.left.interface, "--policy"])
        .arg(policy);
    let enforcer = Running::start(command).unwrap();
    enforcer.wait_for("listening on", PATIENCE).unwrap();
    let all = send_in_every_way(&lab, &beyond).iter().sum();
    wait_until("all are counted", || lab.counted("out") == [all, 0, 0]);
    assert_eq!(lab.counted_at("cgroup-egress", "rule"), [0; 3]);
    assert_eq!(lab.counted_at("tc-egress", "rule"), [all, 0, 0]);
    assert_eq!(lab.counted("root"), [0; 3]);
}
