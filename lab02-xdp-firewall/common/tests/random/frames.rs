//! Frames: well-formed ones of all kinds, changed ones, cut ones, noise.

use etherparse::{EtherType, IpNumber, ether_type, ip_number};
use testbed::packets::{self, Mutate as _, Packet, random_bytes};

use super::{Dice, PORTS, ipv4, ipv6, mac};

/// The least that `BPF_PROG_TEST_RUN` and drivers take for a frame.
const SHORTEST: usize = 14;

/// A frame of 14 bytes at least.
pub fn random(dice: &mut Dice) -> Vec<u8> {
    let frame = match dice.below(20) {
        0 => noise(dice),
        1 => not_ip(dice),
        2 | 3 => of_few_packets(dice),
        _ => ip(dice),
    };
    match dice.below(10) {
        0 => changed(frame, dice),
        1 => {
            let length = SHORTEST + dice.below(frame.len() - SHORTEST + 1);
            frame.truncate_to(length)
        }
        2 => [frame, random_bytes(dice.number(), 60)].concat(),
        3 => frame.pad_to(60),
        _ => frame,
    }
}

/// Some bytes among the headers are others.
fn changed(frame: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    let headers = frame.len().min(100);
    (0..=dice.below(3)).fold(frame, |frame, _| {
        let offset = 12 + dice.below(headers - 12);
        let any = dice.number() as u8;
        let value = dice.one_of(&[0, 1, 8, 17, 44, 60, 0x45, 0x60, 0xff, any]);
        frame.with_byte(offset, value)
    })
}

fn noise(dice: &mut Dice) -> Vec<u8> {
    const TYPES: [EtherType; 4] = [
        ether_type::IPV4,
        ether_type::IPV6,
        ether_type::VLAN_TAGGED_FRAME,
        ether_type::PROVIDER_BRIDGING,
    ];
    let length = SHORTEST + dice.below(120);
    random_bytes(dice.number(), length).with_bytes(12, &dice.one_of(&TYPES).0.to_be_bytes())
}

fn ethernet(dice: &mut Dice) -> Packet {
    let packet = packets::ethernet().from_mac(mac(dice));
    match dice.below(12) {
        0 => packet.vlan(dice.below(4096) as u16),
        1 => packet.service_vlan(7).vlan(8),
        2 => packet.vlan(0),
        3 if dice.percent(10) => packet.vlan(1).vlan(2).vlan(3),
        _ => packet,
    }
}

fn not_ip(dice: &mut Dice) -> Vec<u8> {
    let packet = ethernet(dice);
    match dice.below(3) {
        0 => packet.arp_request("192.0.2.1", "192.0.2.2").build(),
        1 => packet.ether_type(0x88cc).payload([0; 46]).build(),
        _ => packet.ether_type(46).payload([0x42; 46]).build(),
    }
}

/// Fragments of so few packets that first and later ones of the same meet.
fn of_few_packets(dice: &mut Dice) -> Vec<u8> {
    let id = dice.below(2) as u32;
    let packet = if dice.percent(50) {
        packets::ethernet().ipv4("192.0.2.1", "203.0.113.1")
    } else {
        packets::ethernet().ipv6("2001:db8::1", "2001:db8::2")
    };
    if dice.percent(50) {
        packet
            .first_fragment(id)
            .udp(dice.one_of(&PORTS), dice.one_of(&PORTS))
            .build()
    } else {
        packet.later_fragment(id, 64).protocol(17).payload([0; 8]).build()
    }
}

fn ip(dice: &mut Dice) -> Vec<u8> {
    let packet = ethernet(dice);
    let packet = if dice.percent(50) {
        let mut packet = packet.ipv4(
            std::net::Ipv4Addr::from(ipv4(dice)),
            std::net::Ipv4Addr::from(ipv4(dice)),
        );
        if dice.percent(15) {
            packet = packet.ipv4_options(&[1; 40][..4 * dice.below(11)]);
        }
        if dice.percent(25) {
            fragment(packet, dice)
        } else {
            packet
        }
    } else {
        let mut packet = packet.ipv6(
            std::net::Ipv6Addr::from(ipv6(dice)),
            std::net::Ipv6Addr::from(ipv6(dice)),
        );
        if dice.percent(10) {
            packet = packet.hop_by_hop();
        }
        let mut extensions = if dice.percent(40) { dice.below(5) } else { 0 };
        if dice.percent(3) {
            extensions += 6;
        }
        let fragment_at = dice.percent(30).then(|| dice.below(extensions + 1));
        for position in 0..=extensions {
            if fragment_at == Some(position) {
                packet = fragment(packet, dice);
            }
            if position < extensions {
                packet = extension(packet, dice);
            }
        }
        packet
    };
    upper(packet, dice)
}

fn fragment(packet: Packet, dice: &mut Dice) -> Packet {
    let id = dice.below(4) as u32;
    match dice.below(8) {
        0 | 1 => packet.first_fragment(id),
        2 => packet.atomic_fragment(id),
        3 => packet.last_fragment(id, 65_528),
        4 => packet.later_fragment(id, 8),
        5 => packet.last_fragment(id, 8 * dice.below(200) as u16),
        _ => packet.later_fragment(id, 8 * dice.below(200) as u16),
    }
}

fn extension(packet: Packet, dice: &mut Dice) -> Packet {
    let content = [0; 22];
    let content = &content[..dice.one_of(&[6, 6, 14, 22])];
    match dice.below(16) {
        0 => packet.hop_by_hop(),
        1 | 2 => packet.authentication(),
        3 => packet.extension(ip_number::MOBILITY, content),
        4 => packet.extension(ip_number::HIP, content),
        5 => packet.extension(ip_number::SHIM6, content),
        6..10 => packet.routing(),
        _ => packet.extension(ip_number::IPV6_DEST_OPTIONS, content),
    }
}

fn upper(packet: Packet, dice: &mut Dice) -> Vec<u8> {
    let (source, destination) = (dice.one_of(&PORTS), dice.one_of(&PORTS));
    let payload = random_bytes(dice.number(), dice.below(60));
    // A header of ports by hand, for what the builder does not know.
    let ports = |packet: Packet, number: u8| {
        let header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        packet.protocol(number).payload([&header, &payload[..]].concat())
    };
    match dice.below(24) {
        0..7 => packet.udp(source, destination).payload(&payload).build(),
        7..14 => {
            let options = [1; 40];
            let options = &options[..if dice.percent(20) { 4 * dice.below(11) } else { 0 }];
            packet
                .tcp(source, destination)
                .tcp_flags(dice.number() as u8)
                .tcp_options(options)
                .payload(&payload)
                .build()
        }
        14..17 => packet.icmp_echo_request(1, 2).payload(&payload).build(),
        // Neighbour discovery and its neighbours among the types.
        17 | 18 => packet
            .icmp(132 + dice.below(7) as u8, 0, [0; 4])
            .payload(&payload)
            .build(),
        19 => ports(packet, ip_number::SCTP.0).build(),
        20 => ports(packet, dice.one_of(&[33, 136])).build(),
        21 => ports(packet, dice.one_of(&[ip_number::TCP.0, ip_number::UDP.0])).build(),
        // What says one version's ICMP inside the other's packet.
        22 => packet.protocol(58).payload([135, 0, 0, 0, 0, 0, 0, 0, 0]).build(),
        _ => packet
            .protocol(IpNumber(dice.number() as u8).0)
            .payload(&payload)
            .build(),
    }
}
