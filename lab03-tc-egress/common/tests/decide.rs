//! What is decided about frames, packet by packet and from capture files (F3, F4, F13).

mod memory;

use std::collections::HashMap;

use lab02_xdp_firewall_common::bucket::Limit;
use lab03_tc_egress_common::{
    decide::{
        FlowEvent,
        Hook::{self, Egress, Ingress},
        Reason::{self, Denied, Flow, FragmentFollows, ListedPort, New, NotIp, PickedUp, Related, Stranger, Untracked},
    },
    flow::state::State,
    shaper::Shape,
    target::Target,
};
use memory::World;
use testbed::{
    packets::{self, Packet},
    pcap,
};

const US: &str = "192.0.2.1";
const THEM: &str = "192.0.2.2";

fn out() -> Packet {
    packets::ethernet().ipv4(US, THEM)
}

fn back() -> Packet {
    packets::ethernet().ipv4(THEM, US)
}

fn out_v6() -> Packet {
    packets::ethernet().ipv6("2001:db8::1", "2001:db8::2")
}

fn back_v6() -> Packet {
    packets::ethernet().ipv6("2001:db8::2", "2001:db8::1")
}

fn stateful() -> World {
    let mut world = World::new(64, 64);
    world.config.stateful = 1;
    world.listed = vec![443];
    world
}

#[track_caller]
fn states(world: &World) -> (Vec<&'static str>, Vec<&'static str>) {
    let names = |flows: Vec<lab03_tc_egress_common::flow::table::Flow>| {
        let mut names: Vec<_> = flows.iter().map(|flow| flow.state().unwrap().name()).collect();
        names.sort_unstable();
        names
    };
    (names(world.established.flows()), names(world.half_open.flows()))
}

#[test]
fn a_connection_from_here_goes_through_all_its_states() {
    let world = stateful();
    let steps: [(Hook, Packet, Reason, &str); 7] = [
        (Egress, out().tcp(1000, 80).syn(), New, "syn-sent"),
        (Ingress, back().tcp(80, 1000).syn().ack(), Flow, "syn-received"),
        (Egress, out().tcp(1000, 80).ack(), Flow, "established"),
        (
            Ingress,
            back().tcp(80, 1000).ack().payload(b"hello"),
            Flow,
            "established",
        ),
        (Ingress, back().tcp(80, 1000).fin().ack(), Flow, "fin-by-responder"),
        (Egress, out().tcp(1000, 80).fin().ack(), Flow, "closed"),
        (Ingress, back().tcp(80, 1000).ack(), Flow, "closed"),
    ];
    for (hook, packet, reason, state) in steps {
        assert_eq!(world.see(hook, &packet.build()), reason, "{state}");
        let (mut established, half_open) = states(&world);
        established.extend(half_open);
        assert_eq!(established, [state]);
    }
    let flow = world.established.flows()[0];
    assert_eq!(flow.packets, [3, 4]);
    let (originator, responder) = flow.ends();
    assert_eq!((originator.port, responder.port), (1000, 80));
    assert_eq!(originator.address.ipv4(), [192, 0, 2, 1]);
    assert_eq!(
        (world.event(FlowEvent::Created), world.event(FlowEvent::Established)),
        (1, 1)
    );
    // And begins anew.
    assert_eq!(world.see(Egress, &out().tcp(1000, 80).syn().build()), New);
    assert_eq!(states(&world), (vec![], vec!["syn-sent"]));
}

#[test]
fn strangers_stay_out_and_listed_ports_are_open() {
    let world = stateful();
    for packet in [
        back().tcp(4000, 22).syn(),
        back().tcp(4000, 22).ack(),
        back().tcp(4000, 22).rst(),
        back().tcp(4000, 443).tcp_flags(0),
        back().udp(4000, 53),
        back().icmp_echo_request(1, 1),
        back().icmp_echo_reply(1, 1),
        back().icmp(13, 0, [0; 4]),
        back().icmp_port_unreachable(&out().udp(1, 2).build()),
        back_v6().udp(4000, 53),
        back_v6().icmp_echo_request(1, 1),
    ] {
        assert_eq!(world.see(Ingress, &packet.build()), Stranger, "{packet:?}");
    }
    assert_eq!(states(&world), (vec![], vec![]));
    assert_eq!(world.see(Ingress, &back().tcp(4000, 443).syn().build()), ListedPort);
    assert_eq!(world.see(Egress, &out().tcp(443, 4000).syn().ack().build()), Flow);
    assert_eq!(world.see(Ingress, &back().tcp(4000, 443).ack().build()), Flow);
    assert_eq!(states(&world).0, ["established"]);
    assert_eq!(
        world.see(Ingress, &packets::ethernet().arp_request(THEM, US).build()),
        NotIp
    );
    // Neighbour advertisement, and an answer of a DHCP server.
    assert_eq!(
        world.see(Ingress, &back_v6().icmp(136, 0, [0; 4]).payload([0; 16]).build()),
        Reason::Essential
    );
    assert_eq!(
        world.see(Ingress, &back().udp(67, 68).payload([0; 240]).build()),
        Reason::Essential
    );
}

#[test]
fn answers_come_in_over_udp_and_ping_and_other_protocols() {
    for (question, answer, other) in [
        (out().udp(1000, 53), back().udp(53, 1000), back().udp(53, 1001)),
        (
            out().icmp_echo_request(7, 1),
            back().icmp_echo_reply(7, 1),
            back().icmp_echo_reply(8, 1),
        ),
        // Their own ping with the same identifier is no answer.
        (
            out().icmp_echo_request(7, 1),
            back().icmp_echo_reply(7, 2),
            back().icmp_echo_request(7, 1),
        ),
        (
            out_v6().icmp_echo_request(7, 1),
            back_v6().icmp_echo_reply(7, 1),
            back_v6().icmp_echo_request(7, 1),
        ),
        (out_v6().udp(1000, 53), back_v6().udp(53, 1000), back_v6().udp(54, 1000)),
        (
            out().protocol(47).payload([0; 8]),
            back().protocol(47).payload([0; 8]),
            back().protocol(50).payload([0; 8]),
        ),
    ] {
        let world = stateful();
        assert_eq!(world.see(Egress, &question.build()), New);
        assert_eq!(world.see(Ingress, &other.build()), Stranger, "{other:?}");
        assert_eq!(states(&world).1, ["unreplied"]);
        assert_eq!(world.see(Ingress, &answer.build()), Flow);
        assert_eq!(states(&world), (vec![], vec!["replied"]));
        assert_eq!(world.see(Egress, &question.build()), Flow);
        assert_eq!(states(&world), (vec!["stream"], vec![]));
    }
}

#[test]
fn icmp_errors_follow_the_flow_that_they_quote() {
    let world = stateful();
    let (question, question_v6) = (out().udp(1000, 53).build(), out_v6().tcp(1000, 53).syn().build());
    let ping = out().icmp_echo_request(9, 1).build();
    for frame in [&question, &question_v6, &ping] {
        world.see(Egress, frame);
    }
    // From a router on the way, whose address says nothing.
    let router = || packets::ethernet().ipv4("198.51.100.1", US);
    let router_v6 = || packets::ethernet().ipv6("2001:db8:9::1", "2001:db8::1");
    for (error, reason) in [
        (router().icmp_port_unreachable(&question), Related),
        (router().icmp_time_exceeded(&ping), Related),
        (router_v6().icmp_too_big(1280, &question_v6), Related),
        // About what was never sent.
        (router().icmp_port_unreachable(&out().udp(1000, 54).build()), Stranger),
        (
            router_v6().icmp_too_big(1280, &out_v6().tcp(1001, 53).build()),
            Stranger,
        ),
        // About a packet of somebody else's, to us.
        (
            router().icmp_port_unreachable(&packets::ethernet().ipv4("192.0.2.9", THEM).udp(1000, 53).build()),
            Stranger,
        ),
    ] {
        assert_eq!(world.see(Ingress, &error.build()), reason, "{error:?}");
    }
    let quoted = router().icmp_port_unreachable(&question).build();
    // Cut off inside the quote: the IP length is made to fit, so that it is the quote that ends early.
    let mut short = packets::ethernet()
        .ipv4("198.51.100.1", US)
        .icmp(3, 3, [0; 4])
        .payload(&quoted[42..42 + 24])
        .build();
    assert_eq!(world.see(Ingress, &short), Stranger);
    short.truncate(20);
    assert_eq!(world.see(Ingress, &short), Reason::Malformed);
    assert_eq!(
        states(&world).1.len(),
        3,
        "an error keeps no flow alive and begins none"
    );
}

#[test]
fn connections_that_were_there_before_are_picked_up_for_a_while() {
    let mut world = stateful();
    world.config.pick_up_until_ns = world.now_ns.get() + 1_000_000_000;
    assert_eq!(world.see(Ingress, &back().tcp(5000, 22).ack().build()), PickedUp);
    assert_eq!(world.see(Ingress, &back().tcp(5001, 22).syn().build()), Stranger);
    assert_eq!(states(&world), (vec![], vec!["picked-up"]));
    assert_eq!(world.see(Egress, &out().tcp(22, 5000).ack().build()), Flow);
    assert_eq!(states(&world), (vec!["established"], vec![]));
    // The answer to what does not exist ends it.
    assert_eq!(world.see(Ingress, &back().tcp(5002, 22).ack().build()), PickedUp);
    assert_eq!(world.see(Egress, &out().tcp(22, 5002).rst().build()), Flow);
    assert_eq!(states(&world), (vec!["established"], vec!["reset"]));
    world.now_ns.set(world.config.pick_up_until_ns);
    assert_eq!(world.see(Ingress, &back().tcp(5003, 22).ack().build()), Stranger);
    // What goes out is picked up at any time, and its answers come in.
    assert_eq!(world.see(Egress, &out().tcp(6000, 443).ack().build()), New);
    assert_eq!(world.see(Ingress, &back().tcp(443, 6000).ack().build()), Flow);
}

#[test]
fn a_flow_that_was_silent_too_long_is_forgotten() {
    for (question, answer, state) in [
        (out().tcp(1, 2).syn(), back().tcp(2, 1).syn().ack(), State::SynSent),
        (out().udp(1, 2), back().udp(2, 1), State::Unreplied),
    ] {
        let world = stateful();
        world.see(Egress, &question.build());
        let idle_ns = world.config.idle_ns[state as usize];
        let sent_ns = world.now_ns.get();
        world.now_ns.set(sent_ns + idle_ns - 1_000_001);
        assert_eq!(world.see(Ingress, &answer.build()), Flow, "{state:?}, just before");
        let world = stateful();
        world.see(Egress, &question.build());
        world.now_ns.set(sent_ns + idle_ns - 1_000_000);
        assert_eq!(world.see(Ingress, &answer.build()), Stranger, "{state:?}, at the end");
    }
}

#[test]
fn the_same_addresses_on_another_vlan_are_another_network() {
    let world = stateful();
    let question = |packet: Packet| packet.ipv4(US, THEM).udp(1000, 53).build();
    let answer = |packet: Packet| packet.ipv4(THEM, US).udp(53, 1000).build();
    let ethernet = packets::ethernet;
    assert_eq!(world.see(Egress, &question(ethernet().vlan(10))), New);
    for (frame, beside, reason) in [
        (answer(ethernet()), None, Stranger),
        (answer(ethernet().vlan(11)), None, Stranger),
        (answer(ethernet()), Some(11), Stranger),
        (answer(ethernet().vlan(10)), Some(11), Stranger),
        (answer(ethernet().vlan(11)), Some(10), Stranger),
        (answer(ethernet().vlan(10)), None, Flow),
        // The kernel takes the outer tag out of the frame, and the flow stays the same.
        (answer(ethernet()), Some(10), Flow),
        // A priority without a VLAN is none.
        (answer(ethernet().vlan(10).vlan(0)), None, Flow),
        // Two in the frame and one beside it are three.
        (answer(ethernet().service_vlan(1).vlan(2)), Some(10), Reason::Malformed),
    ] {
        assert_eq!(
            world.see_tagged(Ingress, &frame, beside),
            reason,
            "{beside:?}: {frame:02x?}"
        );
    }
    assert_eq!(world.see(Egress, &question(ethernet().service_vlan(5).vlan(6))), New);
    assert_eq!(world.see_tagged(Ingress, &answer(ethernet().vlan(6)), Some(5)), Flow);
}

#[test]
fn later_fragments_share_the_lot_of_their_first_one() {
    let world = stateful();
    let fragments = |port: u16| packets::split(&back().udp(53, port).payload([0; 3000]).build(), 1500, 7);
    world.see(Egress, &out().udp(1000, 53).build());
    let reasons = |frames: &[Vec<u8>]| frames.iter().map(|frame| world.see(Ingress, frame)).collect::<Vec<_>>();
    assert_eq!(
        reasons(&fragments(1000)[1..2]),
        [Reason::Fragment],
        "before its first one"
    );
    assert_eq!(reasons(&fragments(1000)), [Flow, FragmentFollows, FragmentFollows]);
    assert_eq!(
        reasons(&fragments(1001)),
        [Stranger, Reason::Fragment, Reason::Fragment]
    );
}

#[test]
fn rules_deny_by_prefix_and_port_and_the_first_counts() {
    let mut world = World::new(64, 64);
    let prefix = |octets: [u8; 4], mask: [u8; 4]| Target {
        prefix: lab01_count_packets_common::headers::Address::from_ipv4(octets),
        mask: lab01_count_packets_common::headers::Address::from_ipv4(mask),
        ip_version: 4,
        ..Target::default()
    };
    let tcp_25 = Target {
        first_port: 25,
        last_port: 25,
        classes: 1,
        ..Target::default()
    };
    world.deny = vec![tcp_25, prefix([192, 0, 2, 0], [255, 255, 255, 0])];
    world.config.deny_rules = 2;
    let to = |address: &str| packets::ethernet().ipv4(US, address);
    for (packet, reason) in [
        (to("198.51.100.1").tcp(1, 25).syn(), Denied),
        (to("198.51.100.1").udp(1, 25), New),
        (to("198.51.100.1").tcp(1, 26).syn(), New),
        (to("192.0.3.1").udp(1, 2), New),
        (to("192.0.2.255").udp(1, 2), Denied),
        (to("192.0.2.9").icmp_echo_request(1, 1), Denied),
        (
            to("198.51.100.1")
                .last_fragment(1, 1480)
                .protocol(6)
                .payload([0, 1, 0, 25]),
            FragmentFollows,
        ),
        (out_v6().tcp(1, 25).syn(), Denied),
        (out_v6().tcp(1, 24).syn(), New),
    ] {
        assert_eq!(world.see(Egress, &packet.build()), reason, "{packet:?}");
    }
    assert_eq!(world.half_open.flows().len(), 4, "what is denied begins no flow");
}

#[test]
fn a_flood_of_half_open_flows_pushes_no_established_one_out() {
    let mut world = World::new(64, 64);
    world.config.stateful = 1;
    world.listed = vec![443];
    for port in 1..=200_u16 {
        assert_eq!(world.see(Ingress, &back().tcp(port, 443).syn().build()), ListedPort);
        assert_eq!(world.see(Egress, &out().tcp(443, port).syn().ack().build()), Flow);
        assert_eq!(world.see(Ingress, &back().tcp(port, 443).ack().build()), Flow);
    }
    assert_eq!(world.established.flows().len(), 200);
    // Forged SYNs, which are answered; ACKs within the time of picking up, which are answered by RST.
    world.config.pick_up_until_ns = u64::MAX;
    for number in 0..20_000_u32 {
        let forged = std::net::Ipv4Addr::from_bits(0x0a00_0000 | number);
        let from = packets::ethernet().ipv4(forged, "192.0.2.1");
        let answer = packets::ethernet().ipv4("192.0.2.1", forged);
        world.see(Ingress, &from.clone().tcp(1, 443).syn().build());
        world.see(Egress, &answer.clone().tcp(443, 1).syn().ack().build());
        world.see(Ingress, &from.clone().tcp(2, 22).ack().build());
        world.see(Egress, &answer.clone().tcp(22, 2).rst().build());
        world.see(Egress, &answer.udp(3, 4).build());
    }
    assert_eq!(world.event(FlowEvent::EvictedEstablished), 0);
    assert_eq!(world.established.flows().len(), 200);
    assert!(world.event(FlowEvent::EvictedHalfOpen) > 30_000);
    for port in 1..=200_u16 {
        assert_eq!(world.see(Ingress, &back().tcp(port, 443).ack().build()), Flow, "{port}");
    }
}

#[test]
fn a_rate_takes_what_it_gives_and_waits_where_it_can() {
    let mut world = World::new(64, 64);
    // 1000 bytes a second, 100,000 at once.
    world.shapes = vec![Shape {
        target: Target::default(),
        limit: Limit::new(1000, 100_000),
    }];
    world.config.shapes = 1;
    let frame = out().udp(1, 2).payload([0; 972]).build();
    let pass = |world: &World, count: u32| {
        (0..count)
            .filter(|_| world.see(Egress, &frame) != Reason::RateExceeded)
            .count()
    };
    assert_eq!(pass(&world, 150), 100);
    world.now_ns.set(world.now_ns.get() + 10_000_000_000);
    assert_eq!(pass(&world, 50), 10);
    // Two seconds' worth may wait.
    world.config.can_wait = 1;
    assert_eq!(pass(&world, 50), 2);
}

/// What an independent observer makes of a capture: only who has spoken, by 5-tuple as text.
fn naive_directions(frames: &[Vec<u8>]) -> HashMap<(String, String), [u64; 2]> {
    let mut flows: HashMap<(String, String), [u64; 2]> = HashMap::new();
    for frame in frames {
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let protocol = frame[23];
        let end = |address: usize, at: usize| format!("{:?}:{}/{protocol}", &frame[address..address + 4], port(at));
        let (from, to) = (end(26, 34), end(30, 36));
        if let Some(counts) = flows.get_mut(&(to.clone(), from.clone())) {
            counts[1] += 1;
        } else {
            flows.entry((from, to)).or_default()[0] += 1;
        }
    }
    flows
}

#[test]
fn a_capture_is_replayed_into_the_flows_that_are_in_it() {
    // Conversations with 40 hosts that overlap each other, written to a file and read from it.
    let mut frames = Vec::new();
    let here = |them: std::net::Ipv4Addr| packets::ethernet().ipv4("192.0.2.1", them);
    let there = |them: std::net::Ipv4Addr| packets::ethernet().ipv4(them, "192.0.2.1");
    for round in 0..6_u32 {
        for host in 0..40_u32 {
            let them = std::net::Ipv4Addr::from_bits(0xc633_6400 | host);
            let port = 2000 + host as u16;
            let tcp = match round {
                0 => here(them).tcp(port, 80).syn(),
                1 => there(them).tcp(80, port).syn().ack(),
                2 => here(them).tcp(port, 80).ack(),
                3 => there(them).tcp(80, port).ack().payload([1; 100]),
                4 => there(them).tcp(80, port).fin().ack(),
                _ => here(them).tcp(port, 80).fin().ack(),
            };
            frames.push(tcp.build());
            let udp = if round % 2 == 0 {
                here(them).udp(port, 53)
            } else {
                there(them).udp(53, port)
            };
            frames.push(udp.build());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("conversations.pcap");
    pcap::write(&file, &frames).unwrap();
    let read = pcap::read(&file).unwrap();
    assert_eq!(read.len(), 480);

    let mut world = World::new(64, 64);
    world.config.stateful = 1;
    for frame in &read {
        let hook = if frame[26..30] == [192, 0, 2, 1] {
            Egress
        } else {
            Ingress
        };
        let reason = world.see(hook, frame);
        assert!(matches!(reason, New | Flow), "{reason:?}");
    }
    let (established, half_open) = states(&world);
    assert_eq!(half_open, Vec::<&str>::new());
    assert_eq!(established.iter().filter(|state| **state == "closed").count(), 40);
    assert_eq!(established.iter().filter(|state| **state == "stream").count(), 40);
    let naive = naive_directions(&read);
    assert_eq!(naive.len(), 80);
    for flow in world.established.flows() {
        let (originator, responder) = flow.ends();
        let protocol = flow.key.protocol();
        let end = |end: lab03_tc_egress_common::flow::key::Endpoint| {
            format!("{:?}:{}/{protocol}", end.address.ipv4(), end.port)
        };
        assert_eq!(naive.get(&(end(originator), end(responder))), Some(&flow.packets));
    }
    assert_eq!(world.see(Egress, &out().icmp(13, 0, [0; 4]).build()), Untracked);
}
