//! Named packets × options → verdict and reason (M3, F2, P2, P3, P6), through `BPF_PROG_TEST_RUN`: no interface, no
//! traffic.

use lab02_xdp_firewall_common::firewall::Reason::{
    self, Address, Allowed, DroppedByDefault, Fragment, FragmentFollows, Mac, NeighbourDiscovery, NotIp,
    PassedByDefault, Port, RateLimit, SourcePort,
};
use testbed::packets::{self, Mutate as _, Packet, ip_number};

use crate::{options::policy, program::Program};

testbed::listed_tests![
    every_rule_matches_behind_every_kind_of_header,
    no_rule_matches_what_it_does_not_name,
    addresses_match_to_the_last_bit_of_a_prefix,
    ports_match_to_the_ends_of_a_range_and_by_protocol,
    what_blocks_wins_over_what_allows,
    under_default_drop_only_what_is_allowed_and_neighbour_discovery_pass,
    what_is_not_ip_passes_unless_its_sender_is_blocked,
    fragments_pass_are_dropped_or_follow_their_first_one,
    ports_in_later_fragments_never_match,
    sources_beyond_their_rate_are_dropped_each_for_itself,
];

/// Applies each set of options in turn, and sends its packets: what they are, and the reason that they have to meet.
/// That a verdict is that of its reason is checked with each packet.
fn assert_reasons<'a>(program: &mut Program, cases: impl IntoIterator<Item = (&'a str, Vec<Row>)>) -> usize {
    let mut packets = 0;
    for (options, rows) in cases {
        program.apply(&policy(options));
        for (what, frame, reason) in rows {
            let decided = program.decide(&frame).reason;
            assert_eq!(decided, reason, "{what} with {options:?}: {frame:02x?}");
            packets += 1;
        }
    }
    packets
}

type Row = (&'static str, Vec<u8>, Reason);

fn row(what: &'static str, packet: &Packet, reason: Reason) -> Row {
    (what, packet.build(), reason)
}

const V4: &str = "192.0.2.7";
const V6: &str = "2001:db8::7";

fn v4() -> Packet {
    packets::ethernet().ipv4(V4, "192.0.2.1")
}

fn v6() -> Packet {
    packets::ethernet().ipv6(V6, "2001:db8::1")
}

fn v4_from(source: &str) -> Packet {
    packets::ethernet().ipv4(source, "192.0.2.1")
}

fn v6_from(source: &str) -> Packet {
    packets::ethernet().ipv6(source, "2001:db8::1")
}

/// Everything that can stand in front of a transport header.
fn carriers() -> Vec<(&'static str, Packet)> {
    let tagged = |packet: Packet| packet.ipv4(V4, "192.0.2.1");
    let tagged_v6 = |packet: Packet| packet.ipv6(V6, "2001:db8::1");
    let ethernet = packets::ethernet;
    vec![
        ("IPv4", v4()),
        ("IPv4 with the least options", v4().ipv4_options(&[1; 4])),
        ("IPv4 with the most options", v4().ipv4_options(&[1; 40])),
        ("IPv4 behind a tag", tagged(ethernet().vlan(10))),
        ("IPv4 behind a priority tag", tagged(ethernet().vlan(0).priority(7))),
        ("IPv4 behind two tags", tagged(ethernet().vlan(10).vlan(20))),
        ("IPv4 behind QinQ", tagged(ethernet().service_vlan(20).vlan(10))),
        ("an atomic IPv4 fragment", v4().atomic_fragment(7)),
        ("IPv6", v6()),
        ("IPv6 behind a tag", tagged_v6(ethernet().vlan(10))),
        ("IPv6 behind QinQ", tagged_v6(ethernet().service_vlan(20).vlan(10))),
        ("hop-by-hop options", v6().hop_by_hop()),
        ("destination options", v6().destination_options()),
        (
            "long destination options",
            v6().extension(ip_number::IPV6_DEST_OPTIONS, &[0; 254]),
        ),
        ("a routing header", v6().routing()),
        ("an authentication header", v6().authentication()),
        ("a mobility header", v6().extension(ip_number::MOBILITY, &[0; 14])),
        ("a Host Identity header", v6().extension(ip_number::HIP, &[0; 22])),
        ("a Shim6 header", v6().extension(ip_number::SHIM6, &[0; 6])),
        ("an atomic IPv6 fragment", v6().atomic_fragment(7)),
        (
            "all that RFC 8200 lists",
            v6().hop_by_hop()
                .destination_options()
                .routing()
                .atomic_fragment(7)
                .authentication()
                .destination_options(),
        ),
        (
            "eight extension headers",
            (0..8).fold(v6(), |packet, _| packet.destination_options()),
        ),
    ]
}

fn every_rule_matches_behind_every_kind_of_header() {
    let mut program = Program::load();
    let everybody = "--block-ip 0.0.0.0/0 --block-ip ::/0";
    let rules = [
        ("--block-ip 192.0.2.7 --block-ip 2001:db8::7", Address),
        ("--block-ip 192.0.2.0/28 --block-ip 2001:db8::/64", Address),
        (everybody, Address),
        ("--block-port 53", Port),
        ("--block-port udp/53", Port),
        ("--block-port 50-60", Port),
        ("--block-port udp/1-65535", Port),
        ("--block-source-port 1000", SourcePort),
        ("--block-source-port udp/900-1000", SourcePort),
        ("--block-mac 02:00:00:00:00:01", Mac),
        ("--default drop", DroppedByDefault),
        ("--default drop --allow-ip 192.0.2.7 --allow-ip 2001:db8::7", Allowed),
        ("--default drop --allow-ip 192.0.0.0/16 --allow-ip 2001::/16", Allowed),
        ("--default drop --allow-port udp/53", Allowed),
        ("--default drop --allow-port 1-1023", Allowed),
        ("--rate-limit 8bit --burst 1", RateLimit),
        ("", PassedByDefault),
    ];
    let packets = assert_reasons(
        &mut program,
        rules.map(|(options, reason)| {
            let rows = carriers().into_iter();
            let rows = rows.flat_map(|(what, carrier)| {
                let frame = carrier.udp(1000, 53).payload(b"who is it?").build();
                [(what, frame.clone(), reason), (what, frame.pad_to(200), reason)]
            });
            (options, rows.collect())
        }),
    );
    assert!(packets >= 17 * 22 * 2);
}

fn no_rule_matches_what_it_does_not_name() {
    let others = "--block-ip 192.0.2.8 --block-ip 192.0.2.64/26 --block-ip 2001:db8::8 --block-ip 2001:db8:1::/48 \
                  --block-port 54 --block-port 1000 --block-port tcp/53 --block-source-port 53 --block-mac 02:00:00:00:00:99";
    let rows = carriers().into_iter();
    let rows = rows.map(|(what, carrier)| row(what, &carrier.udp(1000, 53), PassedByDefault));
    assert_reasons(&mut Program::load(), [(others, rows.collect())]);
}

fn addresses_match_to_the_last_bit_of_a_prefix() {
    let v4_row = |source: &'static str, reason| row(source, &v4_from(source), reason);
    let v6_row = |source: &'static str, reason| row(source, &v6_from(source), reason);
    let passes = PassedByDefault;
    assert_reasons(
        &mut Program::load(),
        [
            (
                "--block-ip 198.51.100.64/26",
                vec![
                    v4_row("198.51.100.63", passes),
                    v4_row("198.51.100.64", Address),
                    v4_row("198.51.100.127", Address),
                    v4_row("198.51.100.128", passes),
                    v6_row("::ffff:198.51.100.64", passes),
                    v6_row("::198.51.100.64", passes),
                    v6_row("c633:6440::", passes),
                ],
            ),
            (
                "--block-ip 2001:db8:8000::/33",
                vec![
                    v6_row("2001:db8:7fff:ffff:ffff:ffff:ffff:ffff", passes),
                    v6_row("2001:db8:8000::", Address),
                    v6_row("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Address),
                    v6_row("2001:db9::", passes),
                    v4_row("32.1.13.184", passes),
                ],
            ),
            (
                "--block-ip 2001:db8::1:0/127",
                vec![
                    v6_row("2001:db8::ffff", passes),
                    v6_row("2001:db8::1:0", Address),
                    v6_row("2001:db8::1:1", Address),
                    v6_row("2001:db8::1:2", passes),
                ],
            ),
            (
                "--block-ip 0.0.0.0 --block-ip 255.255.255.255 --block-ip :: --block-ip ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                vec![
                    v4_row("0.0.0.0", Address),
                    v4_row("0.0.0.1", passes),
                    v4_row("255.255.255.254", passes),
                    v4_row("255.255.255.255", Address),
                    v6_row("::", Address),
                    v6_row("::1", passes),
                    v6_row("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", passes),
                    v6_row("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Address),
                ],
            ),
            // Mapped addresses are IPv6 addresses like others.
            (
                "--block-ip ::ffff:192.0.2.7",
                vec![v4_row(V4, passes), v6_row("::ffff:192.0.2.7", Address)],
            ),
            // The destination is nobody's source.
            (
                "--block-ip 192.0.2.1 --block-ip 2001:db8::1",
                vec![v4_row(V4, passes), v6_row(V6, passes)],
            ),
        ],
    );
}

fn ports_match_to_the_ends_of_a_range_and_by_protocol() {
    let udp = |port| v4().udp(1000, port);
    let tcp = |port| v6().tcp(1000, port).syn();
    let by_hand = |number: u8, port: u16| {
        let header = [&1000_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 8]].concat();
        v4().protocol(number).payload(header)
    };
    let passes = PassedByDefault;
    assert_reasons(
        &mut Program::load(),
        [
            (
                "--block-port udp/5000-5999",
                vec![
                    row("below", &udp(4999), passes),
                    row("the first", &udp(5000), Port),
                    row("the last", &udp(5999), Port),
                    row("above", &udp(6000), passes),
                    row("TCP", &tcp(5000), passes),
                ],
            ),
            (
                "--block-port tcp/443",
                vec![
                    row("TCP", &tcp(443), Port),
                    row("UDP", &udp(443), passes),
                    row("an answer from there", &v6().tcp(443, 1000).ack(), passes),
                ],
            ),
            (
                "--block-port 65535",
                vec![
                    row("TCP", &tcp(65_535), Port),
                    row("UDP", &udp(65_535), Port),
                    row("SCTP", &by_hand(132, 65_535), Port),
                    row("DCCP", &by_hand(33, 65_535), Port),
                    row("UDP-Lite", &by_hand(136, 65_535), Port),
                    row("the port before", &udp(65_534), passes),
                    row("protocols without ports", &by_hand(253, 65_535), passes),
                    row("ESP", &by_hand(50, 65_535), passes),
                    row("ICMP", &v4().icmp(3, 3, [0xff; 4]), passes),
                ],
            ),
            (
                "--block-port tcp/80 --block-port udp/80",
                vec![row("SCTP", &by_hand(132, 80), passes), row("TCP", &tcp(80), Port)],
            ),
            (
                "--block-source-port udp/53 --block-port tcp/22",
                vec![
                    row("from there", &v4().udp(53, 1000), SourcePort),
                    row("to there", &udp(53), passes),
                    row("both", &v4().tcp(53, 22), Port),
                    row("from there over TCP", &v4().tcp(53, 1000), passes),
                ],
            ),
            (
                "--block-port 22",
                vec![row(
                    "a tunnel's inner packet",
                    &v4().ipv4(V4, "192.0.2.1").tcp(1, 22),
                    passes,
                )],
            ),
        ],
    );
}

fn what_blocks_wins_over_what_allows() {
    let packet = v4().tcp(1000, 80).syn();
    let meets = |reason| vec![row("TCP to port 80", &packet, reason)];
    assert_reasons(
        &mut Program::load(),
        [
            ("--allow-ip 192.0.2.7 --block-ip 192.0.2.0/24", meets(Address)),
            ("--allow-ip 192.0.2.7 --block-port 80", meets(Port)),
            ("--allow-port 80 --block-ip 192.0.2.7", meets(Address)),
            ("--allow-port 80 --block-source-port 1000", meets(SourcePort)),
            ("--allow-port 80 --block-port tcp/80", meets(Port)),
            ("--allow-ip 192.0.2.7 --block-mac 02:00:00:00:00:01", meets(Mac)),
            ("--block-ip 192.0.2.7 --block-mac 02:00:00:00:00:01", meets(Mac)),
            ("--block-ip 192.0.2.7 --block-port 80", meets(Address)),
            ("--allow-port 80 --default drop", meets(Allowed)),
            ("--allow-port tcp/80 --rate-limit 8bit --burst 1", meets(Allowed)),
            ("--allow-ip 192.0.2.0/24 --rate-limit 8bit --burst 1", meets(Allowed)),
            ("--default drop --rate-limit 8bit --burst 1", meets(RateLimit)),
        ],
    );
}

fn under_default_drop_only_what_is_allowed_and_neighbour_discovery_pass() {
    let icmp_v6 = |kind| v6().icmp(kind, 0, [0; 4]).payload([0; 16]);
    assert_reasons(
        &mut Program::load(),
        [
            (
                "--default drop --allow-port tcp/22 --allow-ip 203.0.113.0/24 --allow-ip 2001:db8:f::/48",
                vec![
                    row("SSH", &v4().tcp(1000, 22).syn(), Allowed),
                    row("SSH over IPv6", &v6().tcp(1000, 22).syn(), Allowed),
                    row("SSH over UDP", &v4().udp(1000, 22), DroppedByDefault),
                    row("another port", &v4().tcp(1000, 23), DroppedByDefault),
                    row("a partner", &v4_from("203.0.113.9").udp(1, 2), Allowed),
                    row("a partner over IPv6", &v6_from("2001:db8:f::9").udp(1, 2), Allowed),
                    row("ping", &v4().icmp_echo_request(1, 1), DroppedByDefault),
                    row("ping over IPv6", &v6().icmp_echo_request(1, 1), DroppedByDefault),
                    row("GRE", &v4().protocol(47), DroppedByDefault),
                    row("router solicitation", &icmp_v6(133), NeighbourDiscovery),
                    row("router advertisement", &icmp_v6(134), NeighbourDiscovery),
                    row("neighbour solicitation", &icmp_v6(135), NeighbourDiscovery),
                    row("neighbour advertisement", &icmp_v6(136), NeighbourDiscovery),
                    row("redirect", &icmp_v6(137), NeighbourDiscovery),
                    row("the types before", &icmp_v6(132), DroppedByDefault),
                    row("the types behind", &icmp_v6(138), DroppedByDefault),
                    row(
                        "behind a hop-by-hop header",
                        &v6().hop_by_hop().icmp(135, 0, [0; 4]),
                        NeighbourDiscovery,
                    ),
                    row(
                        "ICMPv6 inside IPv4",
                        &v4().protocol(58).payload([135, 0, 0, 0, 0, 0, 0, 0]),
                        DroppedByDefault,
                    ),
                    row(
                        "a later fragment that looks like it",
                        &v6()
                            .later_fragment(1, 64)
                            .protocol(58)
                            .payload([135, 0, 0, 0, 0, 0, 0, 0]),
                        DroppedByDefault,
                    ),
                ],
            ),
            (
                "--default drop --block-ip fe80::/10",
                vec![row(
                    "neighbour discovery of somebody blocked",
                    &v6_from("fe80::1").icmp(135, 0, [0; 4]),
                    Address,
                )],
            ),
        ],
    );
}

fn what_is_not_ip_passes_unless_its_sender_is_blocked() {
    let arp = || packets::ethernet().to_broadcast().arp_request(V4, "192.0.2.1");
    let lldp = || packets::ethernet().ether_type(0x88cc).payload([0; 46]);
    let all = |reason| {
        vec![
            row("ARP", &arp(), reason),
            row(
                "ARP's answer",
                &packets::ethernet().vlan(7).arp_reply(V4, "192.0.2.1"),
                reason,
            ),
            row("LLDP", &lldp(), reason),
            row(
                "IEEE 802.3",
                &packets::ethernet().ether_type(46).payload([1; 46]),
                reason,
            ),
            row("nothing", &packets::ethernet(), reason),
        ]
    };
    assert_reasons(
        &mut Program::load(),
        [
            ("", all(NotIp)),
            ("--default drop", all(NotIp)),
            (
                "--block-ip 0.0.0.0/0 --block-ip ::/0 --default drop --fragments drop",
                all(NotIp),
            ),
            ("--rate-limit 8bit --burst 1", all(NotIp)),
            // Blocked senders are only ever added, so the one of all these frames comes last.
            ("--block-mac 02:00:00:00:00:02", all(NotIp)),
            (
                "--block-mac 02:00:00:00:00:77",
                vec![
                    row("the blocked sender", &arp().from_mac([2, 0, 0, 0, 0, 0x77]), Mac),
                    row("to the blocked sender", &arp().to_mac([2, 0, 0, 0, 0, 0x77]), NotIp),
                    row(
                        "its malformed packet",
                        &lldp().from_mac([2, 0, 0, 0, 0, 0x77]).ether_type(0x0800),
                        Mac,
                    ),
                ],
            ),
        ],
    );
}

fn fragments_pass_are_dropped_or_follow_their_first_one() {
    let first = |id, port| v4().first_fragment(id).udp(1000, port).payload([0; 56]);
    let later = |id| v4().later_fragment(id, 64).protocol(17).payload([0; 64]);
    let last = |id| v4().last_fragment(id, 128).protocol(17).payload([0; 3]);
    let first_v6 = |id, port| v6().hop_by_hop().first_fragment(id).tcp(1000, port).payload([0; 44]);
    let later_v6 = |id| v6().hop_by_hop().later_fragment(id, 64).protocol(6).payload([0; 64]);
    let (passes, whole) = (PassedByDefault, v4().udp(1000, 80));
    assert_reasons(
        &mut Program::load(),
        [
            (
                "--fragments pass --block-port 53 --allow-port 80",
                vec![
                    row("a first one to an allowed port", &first(1, 80), Allowed),
                    row("its next", &later(1), passes),
                    row("a first one to a blocked port", &first(2, 53), Port),
                    row("its next, of no use alone", &later(2), passes),
                    row("one of IPv6", &later_v6(3), passes),
                ],
            ),
            (
                "--fragments drop --allow-port 80",
                vec![
                    row("a first one", &first(1, 80), Fragment),
                    row("a later one", &later(1), Fragment),
                    row("the last one", &last(1), Fragment),
                    row("a first one of IPv6", &first_v6(1, 80), Fragment),
                    row("a later one of IPv6", &later_v6(1), Fragment),
                    row("a whole packet", &whole, Allowed),
                    row("an atomic fragment", &v6().atomic_fragment(1).tcp(1, 80), Allowed),
                ],
            ),
            (
                "--fragments drop --allow-ip 192.0.2.7",
                vec![row("even of somebody allowed", &first(1, 80), Fragment)],
            ),
            (
                "--fragments drop --block-ip 192.0.2.7",
                vec![row("of somebody blocked", &first(1, 80), Address)],
            ),
            (
                "--fragments track --block-port 53",
                vec![
                    row("a later one before its first", &later(101), Fragment),
                    row("a first one", &first(101, 80), passes),
                    row("its next", &later(101), FragmentFollows),
                    row("its last", &last(101), FragmentFollows),
                    row("another packet's", &later(102), Fragment),
                    row("a first one to a blocked port", &first(103, 53), Port),
                    row("its next", &later(103), Fragment),
                    row("of IPv6, early", &later_v6(104), Fragment),
                    row("a first one of IPv6", &first_v6(104, 80), passes),
                    row("its next of IPv6", &later_v6(104), FragmentFollows),
                    row("a first one of IPv6 to a blocked port", &first_v6(105, 53), Port),
                    row("its next of IPv6", &later_v6(105), Fragment),
                    row("a whole packet", &whole, passes),
                    row(
                        "the same identification of another protocol",
                        &v4().later_fragment(101, 64).protocol(253).payload([0; 8]),
                        Fragment,
                    ),
                    row(
                        "the same identification to another host",
                        &packets::ethernet()
                            .ipv4(V4, "192.0.2.2")
                            .later_fragment(101, 64)
                            .protocol(17),
                        Fragment,
                    ),
                ],
            ),
            (
                "--fragments track --block-ip 192.0.2.7",
                vec![row("a later one of somebody blocked since", &later(101), Address)],
            ),
        ],
    );
}

fn ports_in_later_fragments_never_match() {
    // What would be read as ports, were it a header.
    let looks_like = [
        &1000_u16.to_be_bytes()[..],
        &53_u16.to_be_bytes(),
        &[0, 16, 0, 0, 0x50, 0, 0, 0, 0x50, 0, 0, 0],
    ];
    let bytes = looks_like.concat();
    let rows = |reason: Reason| {
        let mut rows = Vec::new();
        for protocol in [6, 17, 33, 132, 136] {
            let (v4, v6) = (v4().later_fragment(1, 64), v6().later_fragment(1, 64));
            let hidden = crate::packets::v6().destination_options().last_fragment(1, 64);
            rows.push(row("IPv4", &v4.protocol(protocol).payload(&bytes), reason));
            rows.push(row("IPv6", &v6.protocol(protocol).payload(&bytes), reason));
            rows.push(row(
                "IPv6, the last",
                &hidden.protocol(protocol).payload(&bytes),
                reason,
            ));
        }
        rows
    };
    assert_reasons(
        &mut Program::load(),
        [
            ("--block-port 53 --block-source-port 1000", rows(PassedByDefault)),
            ("--allow-port 53 --default drop", rows(DroppedByDefault)),
            // They are charged like any packet.
            ("--rate-limit 8bit --burst 1", rows(RateLimit)),
        ],
    );
}

fn sources_beyond_their_rate_are_dropped_each_for_itself() {
    let of = |source: &'static str| v4_from(source).udp(1, 2);
    let of_v6 = |source: &'static str| v6_from(source).udp(1, 2);
    let passes = PassedByDefault;
    assert_reasons(
        &mut Program::load(),
        [
            (
                "--rate-limit 1 --burst 2",
                vec![
                    row("the first", &of("203.0.113.1"), passes),
                    row("the second", &of("203.0.113.1"), passes),
                    row("the third", &of("203.0.113.1"), RateLimit),
                    row("another source", &of("203.0.113.2"), passes),
                    row("IPv6", &of_v6("2001:db8:1::1"), passes),
                    row("another address of its /64", &of_v6("2001:db8:1::2"), passes),
                    row("one more", &of_v6("2001:db8:1::ffff:3"), RateLimit),
                    row("another /64", &of_v6("2001:db8:1:1::1"), passes),
                ],
            ),
            (
                // 28 bytes of headers each: 100 bytes hold three packets, and no fourth.
                "--rate-limit 8bit --burst 100",
                vec![
                    row("28 bytes", &of("203.0.113.3"), passes),
                    row("28 more", &of("203.0.113.3"), passes),
                    row("28 more", &of("203.0.113.3"), passes),
                    row("28 too many", &of("203.0.113.3"), RateLimit),
                    row(
                        "a packet larger than the burst",
                        &of("203.0.113.4").payload([0; 73]),
                        RateLimit,
                    ),
                    row("one as large as the burst", &of("203.0.113.4").payload([0; 72]), passes),
                    row("a tag, which is not of the IP layer", &tagged_of_100_bytes(), passes),
                ],
            ),
        ],
    );
}

fn tagged_of_100_bytes() -> Packet {
    packets::ethernet()
        .vlan(9)
        .ipv4("203.0.113.5", "192.0.2.1")
        .udp(1, 2)
        .payload([0; 72])
}
