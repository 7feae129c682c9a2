//! Packets with names: those that are as the standards want them, and those that are not.

use lab01_count_packets_common::headers::Malformed;
use testbed::packets::{self, Mutate as _, Packet, ip_number};

/// Where all of them come from, if they are IPv4.
pub const V4: &str = "192.0.2.7";
/// Where all of them come from, if they are IPv6.
pub const V6: &str = "2001:db8::7";

/// A well-formed packet.
#[derive(Clone)]
pub struct WellFormed {
    pub what: &'static str,
    pub frame: Vec<u8>,
    /// The source address that it is counted by.
    pub source: Option<&'static str>,
    /// The protocol that it is counted by.
    pub protocol: &'static str,
}

/// A malformed packet.
#[derive(Clone)]
pub struct Refused {
    pub what: &'static str,
    pub frame: Vec<u8>,
    pub reason: Malformed,
}

/// An IPv4 packet from [`V4`], to be continued.
pub fn from_v4() -> Packet {
    to_v4(packets::ethernet())
}

/// An IPv6 packet from [`V6`], to be continued.
pub fn from_v6() -> Packet {
    to_v6(packets::ethernet())
}

fn to_v4(link: Packet) -> Packet {
    link.ipv4(V4, "192.0.2.1")
}

fn to_v6(link: Packet) -> Packet {
    link.ipv6(V6, "2001:db8::1")
}

/// All well-formed packets.
pub fn well_formed() -> Vec<WellFormed> {
    [ipv4(), ipv6(), tagged(), from_odd_sources(), not_ip()].concat()
}

fn ipv4() -> Vec<WellFormed> {
    let case = |what, packet: Packet, protocol| WellFormed {
        what,
        frame: packet.build(),
        source: Some(V4),
        protocol,
    };
    let p = from_v4;
    vec![
        case("UDP", p().udp(1000, 53).payload("who?"), "IPv4 UDP"),
        case("TCP SYN", p().tcp(1000, 80).syn(), "IPv4 TCP"),
        case("ping", p().icmp_echo_request(1, 1).payload([0; 56]), "IPv4 ICMP"),
        case("GRE", p().protocol(ip_number::GRE.0).payload([0; 8]), "IPv4 GRE"),
        case("IPv6 inside", to_v6(p()).udp(1, 2), "IPv4 IPv6 tunnel"),
        case("IPsec AH", p().authentication().udp(1, 2), "IPv4 AH"),
        case("nothing inside", p(), "IPv4 protocol 253"),
        case("as large as can be", p().udp(1, 2).payload([0; 1472]), "IPv4 UDP"),
        case("first fragment", p().first_fragment(9).udp(1, 2), "IPv4 UDP"),
        case("later fragment", p().later_fragment(9, 64).protocol(17), "IPv4 UDP"),
        case("last fragment", p().last_fragment(9, 65_528).protocol(17), "IPv4 UDP"),
    ]
}

fn ipv6() -> Vec<WellFormed> {
    let case = |what, packet: Packet, protocol| WellFormed {
        what,
        frame: packet.build(),
        source: Some(V6),
        protocol,
    };
    let p = from_v6;
    let chain = p().hop_by_hop().destination_options().routing().first_fragment(1);
    let mobility = p().extension(ip_number::MOBILITY, &[0; 6]);
    vec![
        case("UDP over IPv6", p().udp(1000, 53), "IPv6 UDP"),
        case("TCP over IPv6", p().tcp(1000, 80).ack(), "IPv6 TCP"),
        case("ping over IPv6", p().icmp_echo_request(1, 1), "IPv6 ICMPv6"),
        case("IPv4 inside", to_v4(p()).udp(1, 2), "IPv6 IPv4 tunnel"),
        case("nothing inside, IPv6", p(), "IPv6 no next header"),
        case("fragment", p().first_fragment(9).udp(1, 2), "IPv6 fragment"),
        case("atomic fragment", p().atomic_fragment(9).udp(1, 2), "IPv6 fragment"),
        case("hop-by-hop", p().hop_by_hop().udp(1, 2), "IPv6 hop-by-hop options"),
        case("options", p().destination_options(), "IPv6 destination options"),
        case("routing header", p().routing().udp(1, 2), "IPv6 routing header"),
        case("mobility header", mobility, "IPv6 protocol 135"),
        case("IPsec AH over IPv6", p().authentication().udp(1, 2), "IPv6 AH"),
        case("chain of extension headers", chain.udp(1, 2), "IPv6 hop-by-hop options"),
    ]
}

fn tagged() -> Vec<WellFormed> {
    let tags = packets::ethernet;
    [
        ("one VLAN tag", tags().vlan(10)),
        ("two VLAN tags", tags().vlan(10).vlan(20)),
        ("QinQ", tags().service_vlan(20).vlan(10)),
        ("service tag alone", tags().service_vlan(20)),
        ("priority tag (VLAN 0)", tags().vlan(0).priority(7)),
    ]
    .into_iter()
    .flat_map(|(what, link)| {
        let (v4, v6) = (to_v4(link.clone()).udp(1, 2), to_v6(link).udp(1, 2));
        [(v4, V4, "IPv4 UDP"), (v6, V6, "IPv6 UDP")].map(|(packet, source, protocol)| WellFormed {
            what,
            frame: packet.build(),
            source: Some(source),
            protocol,
        })
    })
    .collect()
}

fn from_odd_sources() -> Vec<WellFormed> {
    let case = |what, packet: Packet, source, protocol| WellFormed {
        what,
        frame: packet.build(),
        source: Some(source),
        protocol,
    };
    let p = packets::ethernet;
    let dhcp = p().ipv4("0.0.0.0", "255.255.255.255").udp(68, 67);
    let listener_report = p().ipv6("::", "ff02::16").icmp(143, 0, [0; 4]);
    let everybody = p().ipv4("255.255.255.255", "192.0.2.1").udp(1, 2);
    vec![
        case("from nowhere", dhcp, "0.0.0.0", "IPv4 UDP"),
        case("from nowhere, IPv6", listener_report, "::", "IPv6 ICMPv6"),
        case("from everybody", everybody, "255.255.255.255", "IPv4 UDP"),
    ]
}

fn not_ip() -> Vec<WellFormed> {
    let case = |what, packet: Packet, protocol| WellFormed {
        what,
        frame: packet.build(),
        source: None,
        protocol,
    };
    let p = packets::ethernet;
    let tagged_reply = p().vlan(10).arp_reply("192.0.2.1", "192.0.2.2");
    let lldp = p().ether_type(0x88cc).payload([0; 46]);
    let with_length = p().ether_type(46).payload([0x42; 46]);
    vec![
        case("ARP", p().to_broadcast().arp_request("192.0.2.1", "192.0.2.2"), "ARP"),
        case("ARP behind a tag", tagged_reply, "ARP"),
        case("LLDP", lldp, "neither IP nor ARP"),
        case("IEEE 802.3, with a length", with_length, "neither IP nor ARP"),
        case("nothing behind Ethernet", p(), "neither IP nor ARP"),
    ]
}

/// All malformed packets: each reason at least once, but for a cut Ethernet header.
pub fn malformed() -> Vec<Refused> {
    [malformed_tags(), malformed_ipv4(), malformed_ipv6()].concat()
}

fn malformed_tags() -> Vec<Refused> {
    let case = |what, frame, reason| Refused { what, frame, reason };
    let two = to_v4(packets::ethernet().service_vlan(1).vlan(2)).build();
    let three = to_v4(packets::ethernet().vlan(1).vlan(2).vlan(3)).build();
    vec![
        case("a tag cut off", two.clone().truncate_to(16), Malformed::VlanTruncated),
        case("a second tag cut off", two.truncate_to(18), Malformed::VlanTruncated),
        case("three tags", three, Malformed::TooManyTags),
    ]
}

fn malformed_ipv4() -> Vec<Refused> {
    let case = |what, frame, reason| Refused { what, frame, reason };
    let p = || from_v4().udp(1, 2).payload([0; 32]).build();
    let (version_and_length, total_length) = (14, 16);
    let first_byte = |value| p().with_byte(version_and_length, value);
    let says = |bytes: u16| p().with_bytes(total_length, &bytes.to_be_bytes());
    vec![
        case("no IPv4 header", p().truncate_to(14), Malformed::Ipv4Truncated),
        case("half of one", p().truncate_to(24), Malformed::Ipv4Truncated),
        case(
            "options cut off",
            first_byte(0x4f).truncate_to(40),
            Malformed::Ipv4Truncated,
        ),
        case("version 6 in IPv4", first_byte(0x65), Malformed::Ipv4Version),
        case("version 0", first_byte(0x05), Malformed::Ipv4Version),
        case("header length 16", first_byte(0x44), Malformed::Ipv4HeaderLength),
        case("header length 0", first_byte(0x40), Malformed::Ipv4HeaderLength),
        case("shorter than its header", says(19), Malformed::Ipv4TotalLength),
        case("one byte too long", says(61), Malformed::Ipv4TotalLength),
        case("65,535 bytes", says(0xffff), Malformed::Ipv4TotalLength),
    ]
}

fn malformed_ipv6() -> Vec<Refused> {
    let case = |what, frame, reason| Refused { what, frame, reason };
    let p = || from_v6().udp(1, 2).payload([0; 32]).build();
    let (version, payload_length) = (14, 18);
    let says = |bytes: u16| p().with_bytes(payload_length, &bytes.to_be_bytes());
    vec![
        case("no IPv6 header", p().truncate_to(14), Malformed::Ipv6Truncated),
        case("one byte short", p().truncate_to(53), Malformed::Ipv6Truncated),
        case(
            "version 4 in IPv6",
            p().with_byte(version, 0x45),
            Malformed::Ipv6Version,
        ),
        case("one byte too long, IPv6", says(41), Malformed::Ipv6PayloadLength),
        case("65,535 bytes, IPv6", says(0xffff), Malformed::Ipv6PayloadLength),
    ]
}
