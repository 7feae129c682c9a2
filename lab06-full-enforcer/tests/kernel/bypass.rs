//! Ways around a filter, each tried at every hook (F14, P6, A10): packets whose headers hide what they carry, or lie about it.
//!
//! Two policies look at each packet from both sides. One lets everything pass but port 53; whoever hides the port gets
//! through. The other lets nothing pass but port 53; whoever feigns the port gets through. What has come in is then for a
//! socket, where the first one blocks port 53 for root once more. What no header can tell a filter
//! is stated here, too, by tests named after it; what does not come by the hooks at all is in `unseen.rs`.

use std::ops::DerefMut;

use enforcer_policy::{Flow, Format, Identity, NoFiles, Policy, decide::decide_at_hook};
use etherparse::IpNumber;
use lab06_full_enforcer_common::key::{Direction, Hook};
use testbed::{
    Host, Inside, Link,
    packets::{self, Mutate as _, Packet, ip_number, split},
};

use crate::{
    program::{Programs, Shared, hooks, packets as by_outcome},
    reference,
};

testbed::listed_tests![
    later_fragments_match_no_rule_on_ports_and_meet_those_on_addresses_and_protocols,
    fragments_that_hide_or_overwrite_a_header_are_malformed,
    options_of_ipv4_and_of_tcp_hide_no_port,
    an_extension_header_of_any_kind_and_length_hides_no_port,
    extension_headers_are_followed_to_the_eighth_and_a_ninth_is_malformed,
    tags_hide_no_port_and_a_third_is_malformed,
    ip_in_a_link_protocol_that_is_not_known_is_a_frame_without_ip,
    a_packet_cut_anywhere_is_malformed,
    a_transport_header_that_is_not_whole_is_malformed,
    lengths_that_lie_are_malformed_and_padding_is_no_header,
    no_combination_of_tcp_flags_gets_around_a_port,
    what_is_no_syn_and_of_no_flow_passes_as_its_answer_would_unless_invalid_is_blocked,
    an_icmp_error_is_decided_by_its_own_header_and_not_by_what_it_quotes,
    neighbour_discovery_passes_a_strict_policy_and_nothing_else_of_icmpv6_does,
    the_ports_of_a_dhcp_client_are_a_way_out_of_a_strict_policy_unless_it_has_no_essentials,
    a_mapped_address_in_an_ipv6_packet_is_no_ipv4_address,
    a_jumbogram_is_decided_as_any_packet,
    of_a_tunnel_the_outer_header_decides,
    what_is_encrypted_has_no_ports,
];

/// At the socket, whatever else is for root is observed, so that each packet is seen to meet one rule or none.
const ALL_BUT_DNS: &str = "
version: 1
name: all-but-dns
mode: block
rules:
  - { name: dns, destination_ports: 53, action: block }
  - { name: dns-of-root, direction: ingress, uid: 0, destination_ports: 53, action: block }
  - { name: rest-of-root, direction: ingress, uid: 0, mode: observe, action: block }
";

const ONLY_DNS: &str = "
version: 1
name: only-dns
mode: block
defaults: { ingress: deny, egress: deny }
rules:
  - { name: dns, destination_ports: 53, action: allow }
";

/// What decides about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By<'a> {
    Rule(&'a str),
    Default,
    Essential,
    Malformed,
}

/// To port 53.
const DNS: By = By::Rule("dns");

/// The programs with a policy, on a host with an interface.
struct Filter {
    programs: Box<dyn DerefMut<Target = Programs>>,
    names: Vec<String>,
    interface: u32,
    _inside: Inside,
    _link: Link,
}

impl Filter {
    #[track_caller]
    fn with(policy: &str) -> Self {
        let mut filter = Self::on(|| Box::new(Shared::take()));
        filter.apply(&read(policy));
        filter
    }

    /// With programs that follow flows, and without a policy yet.
    fn following_flows() -> Self {
        Self::on(|| Box::new(Box::new(Programs::following(4096, &hooks()))))
    }

    fn on(programs: impl FnOnce() -> Box<dyn DerefMut<Target = Programs>>) -> Self {
        let host = Host::new("here").unwrap();
        let link = host.join(&Host::new("there").unwrap()).unwrap();
        let inside = host.enter().unwrap();
        Self {
            programs: programs(),
            names: Vec::new(),
            interface: link.left.index,
            _inside: inside,
            _link: link,
        }
    }

    fn apply(&mut self, policy: &Policy) {
        self.names = self.programs.apply(policy);
    }

    /// Whether a hook lets a frame pass, and by what.
    #[track_caller]
    fn decide(&self, hook: Hook, frame: &[u8]) -> (bool, By<'_>) {
        let before = self.counted(hook);
        let passes = self.programs.lets_pass(hook, frame, self.interface);
        let counted = self.counted(hook);
        let mut met = counted
            .iter()
            .zip(before)
            .filter(|((_, after), (_, before))| after != before);
        let ((by, after), (_, before)) = met.next().expect("every packet is counted");
        assert!(met.next().is_none(), "counted twice: {frame:02x?}");
        let [passed, observed, dropped] = [0, 1, 2].map(|outcome| after[outcome] - before[outcome]);
        assert_eq!(
            (passed, observed, dropped),
            (passes.into(), 0, (!passes).into()),
            "{frame:02x?}"
        );
        (passes, *by)
    }

    /// Whether a frame passes at its socket, which is one of root, and what it meets there.
    #[track_caller]
    fn decide_at_socket(&self, frame: &[u8]) -> (bool, Option<&str>) {
        let before = self.programs.by_rule(self.names.len());
        let passes = self.programs.lets_pass(Hook::CgroupIngress, frame, self.interface);
        let counted = self.programs.by_rule(self.names.len());
        let places = (0..self.names.len()).filter(|place| counted[*place] != before[*place]);
        let met: Vec<&str> = places.map(|place| self.names[place].as_str()).collect();
        assert!(met.len() <= 1, "counted twice: {met:?} {frame:02x?}");
        (passes, met.first().copied())
    }

    /// Packets by outcome, for all that can be the reason at a hook.
    fn counted(&self, hook: Hook) -> Vec<(By<'_>, [u64; 3])> {
        let rules = self.names.iter().map(|name| By::Rule(name));
        let rules = rules.zip(self.programs.by_rule(self.names.len()));
        let rules = rules.map(|(by, amounts)| (by, by_outcome(&amounts)));
        let reasons = self.programs.by_reason().into_iter().filter_map(|stats| {
            let by = match stats.reason.as_str() {
                "default" => By::Default,
                "essential" => By::Essential,
                "malformed" => By::Malformed,
                _ => return None,
            };
            (stats.hook == hook.name()).then(|| (by, by_outcome(&stats.amounts)))
        });
        rules.chain(reasons).collect()
    }

    #[track_caller]
    fn expect(&self, hook: Hook, what: &str, frame: &[u8], expected: (bool, By<'_>)) {
        let decided = self.decide(hook, frame);
        assert_eq!(decided, expected, "{what} at {}: {frame:02x?}", hook.name());
    }
}

#[track_caller]
fn read(policy: &str) -> Policy {
    let reading = enforcer_policy::read("policy", policy.as_bytes(), Format::Yaml, &NoFiles);
    reading
        .policy
        .clone()
        .unwrap_or_else(|| panic!("{}", reading.render(false)))
}

/// Both policies, at these hooks.
struct Both {
    hooks: Vec<Hook>,
    all_but_dns: Filter,
    only_dns: Filter,
}

impl Both {
    fn new() -> Self {
        Self {
            hooks: hooks(),
            all_but_dns: Filter::with(ALL_BUT_DNS),
            only_dns: Filter::with(ONLY_DNS),
        }
    }

    /// At every hook, by either policy, this is what decides.
    #[track_caller]
    fn decide_by(&self, by: By<'_>, what: &str, frame: &[u8]) {
        for &hook in &self.hooks {
            self.decide_at(hook, by, what, frame);
        }
        if reference::is_asked(Hook::CgroupIngress, frame) {
            self.decide_at_socket(by, what, frame);
        }
    }

    /// At the socket, which only blocks more than was blocked before: what is malformed meets no rule on a port there, and
    /// those that ask for nothing but the socket.
    #[track_caller]
    fn decide_at_socket(&self, by: By<'_>, what: &str, frame: &[u8]) {
        let expected = match by {
            By::Rule(_) => (false, Some("dns-of-root")),
            By::Default | By::Malformed => (true, Some("rest-of-root")),
            By::Essential => (true, None),
        };
        let decided = self.all_but_dns.decide_at_socket(frame);
        assert_eq!(decided, expected, "{what} at the socket: {frame:02x?}");
    }

    #[track_caller]
    fn decide_at(&self, hook: Hook, by: By<'_>, what: &str, frame: &[u8]) {
        let [passes_all_but, passes_only] = match by {
            By::Rule(_) => [false, true],
            By::Default => [true, false],
            By::Essential => [true, true],
            By::Malformed => [false, false],
        };
        self.all_but_dns.expect(hook, what, frame, (passes_all_but, by));
        self.only_dns.expect(hook, what, frame, (passes_only, by));
    }
}

const V4: [&str; 2] = ["192.0.2.7", "192.0.2.1"];
const V6: [&str; 2] = ["2001:db8::7", "2001:db8::1"];

fn v4() -> Packet {
    packets::ethernet().ipv4(V4[0], V4[1])
}

fn v6() -> Packet {
    packets::ethernet().ipv6(V6[0], V6[1])
}

/// Either version of IP.
fn both_versions() -> [(&'static str, Packet); 2] {
    [("IPv4", v4()), ("IPv6", v6())]
}

/// Where IP's header begins, and what follows it.
const IP: usize = 14;
const BEHIND_V4: usize = IP + 20;
const BEHIND_V6: usize = IP + 40;

/// A header of UDP, from port 1000 to 53, without payload.
const UDP_HEADER: [u8; 8] = [3, 0xe8, 0, 53, 0, 8, 0, 0];

const UDP: u8 = 17;
const TCP: u8 = 6;

fn later_fragments_match_no_rule_on_ports_and_meet_those_on_addresses_and_protocols() {
    let both = Both::new();
    let near = Filter::with(
        "
version: 1
name: near
mode: block
rules:
  - { name: documentation, source: [192.0.2.0/24, 2001:db8::/32], protocol: udp, action: block }
",
    );
    for (version, ip) in both_versions() {
        // Read as a header, what is in them would be one to port 53.
        let like_a_header = || UDP_HEADER.repeat(4);
        let later = |offset: u16| {
            ip.clone()
                .later_fragment(7, offset)
                .protocol(UDP)
                .payload(like_a_header())
        };
        let last = |offset: u16| {
            ip.clone()
                .last_fragment(7, offset)
                .protocol(UDP)
                .payload(like_a_header())
        };
        let head = |packet: Packet| packet.udp(1000, 53).payload([0; 32]);
        let mut fragments = vec![
            ("a whole packet", head(ip.clone()), DNS),
            ("the first one", head(ip.clone().first_fragment(7)), DNS),
            ("an atomic one", head(ip.clone().atomic_fragment(7)), DNS),
        ];
        for offset in [8, 16, 1480, 65_000] {
            fragments.push(("a later one", later(offset), By::Default));
            fragments.push(("the last one", last(offset), By::Default));
        }
        for (what, packet, by) in fragments {
            let frame = packet.build();
            let what = format!("{version}: {what}");
            both.decide_by(by, &what, &frame);
            for hook in hooks() {
                near.expect(hook, &what, &frame, (false, By::Rule("documentation")));
            }
        }
        // Those of a real datagram: by the policy that names the port the first one passes, and the others need a rule.
        let datagram = ip.clone().udp(1000, 53).payload([53; 4000]).build();
        for (number, frame) in split(&datagram, 1500, 7).iter().enumerate() {
            let by = if number == 0 { DNS } else { By::Default };
            both.decide_by(by, &format!("{version}: fragment {number}"), frame);
        }
    }
}

fn fragments_that_hide_or_overwrite_a_header_are_malformed() {
    let both = Both::new();
    for (version, ip) in both_versions() {
        let first = |protocol: u8, bytes: usize| {
            let fragment = ip.clone().first_fragment(7).protocol(protocol);
            fragment.payload(vec![0x50; bytes])
        };
        let mut fragments = Vec::new();
        for bytes in 0..20 {
            fragments.push((format!("{bytes} bytes of TCP first"), first(TCP, bytes)));
        }
        for bytes in 0..8 {
            fragments.push((format!("{bytes} bytes of UDP first"), first(UDP, bytes)));
        }
        let overwriting = ip.clone().later_fragment(7, 8).protocol(TCP).payload([0; 32]);
        fragments.push(("TCP's flags in a second one".into(), overwriting));
        let beyond = ip.clone().last_fragment(7, 65_528).protocol(UDP).payload([0; 64]);
        fragments.push(("one that ends beyond 64 KiB".into(), beyond));
        for (what, packet) in fragments {
            both.decide_by(By::Malformed, &format!("{version}: {what}"), &packet.build());
        }
    }
    let nested = v6().first_fragment(7).first_fragment(8).udp(1000, 53).payload([0; 8]);
    both.decide_by(By::Malformed, "a fragment of a fragment", &nested.build());
}

fn options_of_ipv4_and_of_tcp_hide_no_port() {
    let both = Both::new();
    for bytes in (4..=40).step_by(4) {
        // No operation; and those that routers record their addresses in, and that set a route of the sender's own (LSRR).
        let mut record = vec![0; bytes];
        (record[0], record[1], record[2]) = (7, bytes as u8 - 1, 4);
        let mut route = record.clone();
        route[0] = 131;
        for options in [vec![1; bytes], record, route] {
            let ip = v4().ipv4_options(&options);
            both.decide_by(DNS, "options and UDP", &ip.clone().udp(1000, 53).build());
            both.decide_by(DNS, "options and TCP", &ip.clone().tcp(1000, 53).syn().build());
            both.decide_by(By::Default, "options and another port", &ip.udp(53, 1000).build());
        }
        for (version, ip) in both_versions() {
            let segment = ip.tcp(1000, 53).tcp_options(&vec![1; bytes]).build();
            both.decide_by(DNS, &format!("{version}, options of TCP"), &segment);
        }
    }
}

/// The extension headers that have a length of their own.
const WITH_LENGTH: [(&str, IpNumber); 6] = [
    ("hop-by-hop", ip_number::IPV6_HOP_BY_HOP),
    ("routing", ip_number::IPV6_ROUTE),
    ("destination options", ip_number::IPV6_DEST_OPTIONS),
    ("mobility", ip_number::MOBILITY_HEADER),
    ("HIP", ip_number::HIP),
    ("Shim6", ip_number::SHIM6),
];

fn an_extension_header_of_any_kind_and_length_hides_no_port() {
    let both = Both::new();
    let decide = |what: &str, ip: Packet| {
        both.decide_by(DNS, what, &ip.clone().udp(1000, 53).build());
        both.decide_by(DNS, what, &ip.clone().tcp(1000, 53).build());
        both.decide_by(By::Default, what, &ip.udp(53, 1000).build());
    };
    for (name, number) in WITH_LENGTH {
        // Full of what would be port 53, if it were read too soon.
        for bytes in [6, 14, 62, 1022, 2046] {
            decide(name, v6().extension(number, &[0, 53].repeat(bytes / 2)));
        }
    }
    decide("authentication", v6().authentication());
    decide("an atomic fragment", v6().atomic_fragment(53));
    both.decide_by(
        By::Default,
        "no next header",
        &v6().protocol(59).payload(UDP_HEADER).build(),
    );
}

fn extension_headers_are_followed_to_the_eighth_and_a_ninth_is_malformed() {
    let both = Both::new();
    for count in 1..=20 {
        let chain = (0..count).fold(v6(), |packet, _| packet.destination_options());
        let by = if count <= 8 { DNS } else { By::Malformed };
        both.decide_by(by, &format!("{count} headers"), &chain.udp(1000, 53).build());
    }
    // One of each kind, in the order of their numbers.
    let each = WITH_LENGTH
        .iter()
        .fold(v6(), |packet, (_, number)| packet.extension(*number, &[0; 6]));
    let each = each.authentication().atomic_fragment(7);
    both.decide_by(DNS, "eight kinds", &each.clone().udp(1000, 53).build());
    both.decide_by(By::Malformed, "one more", &each.routing().udp(1000, 53).build());
    let twice = v6().hop_by_hop().hop_by_hop().udp(1000, 53);
    both.decide_by(By::Malformed, "hop-by-hop options twice", &twice.build());
    let late = v6().routing().hop_by_hop().udp(1000, 53);
    both.decide_by(By::Malformed, "hop-by-hop options behind others", &late.build());
}

/// The hooks that see Ethernet headers.
fn hooks_of_interfaces() -> impl Iterator<Item = Hook> {
    hooks().into_iter().filter(|hook| *hook != Hook::CgroupEgress)
}

fn tags_hide_no_port_and_a_third_is_malformed() {
    let both = Both::new();
    // All stacks of up to four tags of either kind.
    for tags in 0..=4 {
        for kinds in 0..1_u32 << tags {
            let tagged = (0..tags).fold(packets::ethernet(), |frame, position| {
                // With the number that has no tag's meaning, too: 0 is priority only.
                let id = position * 53;
                if kinds & (1 << position) == 0 {
                    frame.vlan(id)
                } else {
                    frame.service_vlan(id)
                }
            });
            let what = format!("{tags} tags, kinds {kinds:b}");
            let by = if tags <= 2 { DNS } else { By::Malformed };
            for hook in hooks_of_interfaces() {
                let v4 = tagged.clone().ipv4(V4[0], V4[1]).udp(1000, 53).build();
                let v6 = tagged.clone().ipv6(V6[0], V6[1]).tcp(1000, 53).build();
                both.decide_at(hook, by, &what, &v4);
                both.decide_at(hook, by, &what, &v6);
            }
        }
    }
}

fn ip_in_a_link_protocol_that_is_not_known_is_a_frame_without_ip() {
    let both = Both::new();
    let strict = Filter::with(&ONLY_DNS.replace("mode: block", "mode: block\nessentials: false"));
    for (what, ether_type) in [
        ("an old number for service tags", 0x9100),
        ("MPLS", 0x8847),
        ("PPPoE", 0x8864),
        ("a length, as before Ethernet II", 0x0100),
    ] {
        let frame = packets::ethernet().ether_type(ether_type).ipv4(V4[0], V4[1]);
        let frame = frame.udp(1000, 53).build();
        both.decide_by(By::Essential, what, &frame);
        for hook in hooks() {
            strict.expect(hook, what, &frame, (false, By::Default));
        }
    }
}

fn a_packet_cut_anywhere_is_malformed() {
    let both = Both::new();
    let tagged = || packets::ethernet().service_vlan(1).vlan(2);
    for (what, whole) in [
        ("UDP", v4().udp(1000, 53).payload([0; 16])),
        ("TCP", v4().tcp(1000, 53).tcp_options(&[1; 20])),
        ("ICMP", v4().icmp_echo_request(1, 1).payload([0; 8])),
        ("options", v4().ipv4_options(&[1; 40]).udp(1000, 53)),
        ("UDP over IPv6", v6().udp(1000, 53).payload([0; 16])),
        ("TCP over IPv6", v6().tcp(1000, 53).tcp_options(&[1; 20])),
        (
            "extension headers",
            v6().hop_by_hop().routing().authentication().udp(1000, 53),
        ),
        ("a fragment", v6().first_fragment(7).udp(1000, 53).payload([0; 8])),
    ] {
        let frame = whole.build();
        // Newer kernels run no test on less than what the `EtherType` promises.
        let shortest = if frame[12] == 0x08 { BEHIND_V4 } else { BEHIND_V6 };
        for length in shortest..frame.len() {
            both.decide_by(
                By::Malformed,
                &format!("{what}, {length} bytes"),
                &frame.clone().truncate_to(length),
            );
        }
    }
    for (what, whole) in [
        ("tags", tagged().ipv4(V4[0], V4[1]).udp(1000, 53)),
        ("tags and IPv6", tagged().ipv6(V6[0], V6[1]).udp(1000, 53)),
    ] {
        let frame = whole.build();
        for length in IP + 1..frame.len() {
            for hook in hooks_of_interfaces() {
                let cut = frame.clone().truncate_to(length);
                both.decide_at(hook, By::Malformed, &format!("{what}, {length} bytes"), &cut);
            }
        }
    }
}

fn a_transport_header_that_is_not_whole_is_malformed() {
    let both = Both::new();
    // With lengths that say so: the packet has arrived as it was sent.
    let tcp = v4().tcp(1000, 53).build()[BEHIND_V4..].to_vec();
    let ports_only = [3, 0xe8, 0, 53, 0, 0, 0, 0, 0, 0, 0, 0];
    for (what, protocol, whole, by) in [
        ("UDP", UDP, UDP_HEADER.to_vec(), DNS),
        ("UDP-Lite", 136, UDP_HEADER.to_vec(), DNS),
        ("TCP", TCP, tcp, DNS),
        ("SCTP", 132, ports_only.to_vec(), DNS),
        ("DCCP", 33, ports_only.to_vec(), DNS),
        ("ICMP", 1, vec![8; 8], By::Default),
        ("ICMPv6", 58, vec![128; 8], By::Default),
    ] {
        for (version, ip) in both_versions() {
            for length in 0..=whole.len() {
                let packet = ip.clone().protocol(protocol).payload(&whole[..length]);
                let by = if length == whole.len() { by } else { By::Malformed };
                both.decide_by(by, &format!("{version}: {length} bytes of {what}"), &packet.build());
            }
        }
    }
}

fn lengths_that_lie_are_malformed_and_padding_is_no_header() {
    let both = Both::new();
    let udp = v4().udp(1000, 53).payload([0; 8]).build();
    let tcp = v4().tcp(1000, 53).build();
    let udp_v6 = v6().udp(1000, 53).payload([0; 8]).build();
    let too_far = (BEHIND_V4 + 8 + 8 - IP + 1) as u8;
    let mut lies = vec![
        (
            "a version of 6 where IPv4 is announced",
            udp.clone().with_byte(IP, 0x65),
        ),
        (
            "a version of 4 where IPv6 is announced",
            udp_v6.clone().with_byte(IP, 0x40),
        ),
        (
            "a total length beyond the end",
            udp.clone().with_bytes(IP + 2, &[0, too_far]),
        ),
        (
            "a total length that ends in the header",
            udp.clone().with_bytes(IP + 2, &[0, 19]),
        ),
        (
            "a payload length beyond the end",
            udp_v6.clone().with_bytes(IP + 4, &[0, 17]),
        ),
        (
            "a UDP length beyond the end",
            udp.clone().with_bytes(BEHIND_V4 + 4, &[0, 17]),
        ),
        (
            "a UDP length below its header",
            udp.clone().with_bytes(BEHIND_V4 + 4, &[0, 7]),
        ),
        (
            "a UDP length of nothing",
            udp.clone().with_bytes(BEHIND_V4 + 4, &[0, 0]),
        ),
        (
            "a TCP header beyond the end",
            tcp.clone().with_byte(BEHIND_V4 + 12, 0x60),
        ),
        (
            "a TCP header below its least",
            tcp.clone().with_byte(BEHIND_V4 + 12, 0x40),
        ),
        (
            "an extension header beyond the end",
            v6().routing().udp(1000, 53).build().with_byte(BEHIND_V6 + 1, 2),
        ),
    ];
    for words in 0..5 {
        lies.push((
            "a header length below its least",
            udp.clone().with_byte(IP, 0x40 + words),
        ));
    }
    // A header is there, but not in the packet: the network card's padding can be filled by anyone.
    for length in 20..28 {
        lies.push(("a header in the padding", udp.clone().with_bytes(IP + 2, &[0, length])));
    }
    for length in 0..8 {
        lies.push((
            "a header in IPv6's padding",
            udp_v6.clone().with_bytes(IP + 4, &[0, length]),
        ));
    }
    for (what, frame) in lies {
        both.decide_by(By::Malformed, what, &frame);
    }
    both.decide_by(DNS, "padding behind all of it", &udp.pad_to(600));
}

fn no_combination_of_tcp_flags_gets_around_a_port() {
    let both = Both::new();
    for flags in 0..=u8::MAX {
        for (version, ip) in both_versions() {
            let what = format!("{version}, flags {flags:08b}");
            both.decide_by(DNS, &what, &ip.clone().tcp(1000, 53).tcp_flags(flags).build());
            both.decide_by(By::Default, &what, &ip.tcp(1000, 80).tcp_flags(flags).build());
        }
    }
}

/// What the daemon does unless it is told to follow no flows. A connection that is older than the enforcer is to go on, so
/// TCP that begins nothing is let pass if it would be the other way round; who has blocked a port has blocked its beginnings.
fn what_is_no_syn_and_of_no_flow_passes_as_its_answer_would_unless_invalid_is_blocked() {
    const STRAY: (bool, By<'_>) = (false, By::Rule("stray"));
    let mut filter = Filter::following_flows();
    // No two packets are of one flow.
    let mut others = 1024..;
    for (policy, ports, itself, its_answer) in [
        (ALL_BUT_DNS, [None, Some(53)], (false, DNS), (true, By::Default)),
        (ALL_BUT_DNS, [Some(53), None], (true, By::Default), (false, DNS)),
        (ONLY_DNS, [None, Some(53)], (true, DNS), (false, By::Default)),
        (ONLY_DNS, [Some(53), None], (false, By::Default), (true, DNS)),
        (ONLY_DNS, [None, Some(80)], (false, By::Default), (false, By::Default)),
    ] {
        let closed = policy.replace("rules:", "rules:\n  - { name: stray, state: invalid, action: block }");
        for (policy, is_closed) in [(policy, false), (&closed, true)] {
            let policy = read(policy);
            filter.apply(&policy);
            for (hook, flags) in hooks()
                .into_iter()
                .flat_map(|hook| (0..=u8::MAX).map(move |flags| (hook, flags)))
            {
                // Whatever is set beside them of PSH, URG, ECE and CWR: SYN without FIN, RST and ACK.
                let begins = flags & 0b1_0111 == 0b0_0010;
                let expected = match (begins, is_closed) {
                    (true, _) => itself,
                    (false, true) => STRAY,
                    (false, false) if itself.0 => itself,
                    (false, false) => its_answer,
                };
                for (version, ip) in both_versions() {
                    let other: u16 = others.next().unwrap();
                    let [source, destination] = ports.map(|port| port.unwrap_or(other));
                    let frame = ip.tcp(source, destination).tcp_flags(flags).build();
                    let what = format!("{version}, flags {flags:08b}, {}", policy.name);
                    filter.expect(hook, &what, &frame, expected);
                    let flow = if begins { Flow::New } else { Flow::Invalid };
                    let packet = reference::packet(&frame, hook, "eth0");
                    let decision = decide_at_hook(&policy, &packet, &flow, &Identity::UNKNOWN);
                    let name = match expected.1 {
                        By::Rule(name) => name,
                        _ => "default",
                    };
                    assert_eq!(
                        (decision.lets_pass(), decision.rule_name(&policy)),
                        (expected.0, name),
                        "{what}"
                    );
                }
            }
        }
    }
}

fn an_icmp_error_is_decided_by_its_own_header_and_not_by_what_it_quotes() {
    let both = Both::new();
    let back = packets::ethernet().ipv4(V4[1], V4[0]);
    let back_v6 = packets::ethernet().ipv6(V6[1], V6[0]);
    for port in [53, 80] {
        let (question, question_v6) = (v4().udp(1000, port).build(), v6().udp(1000, port).build());
        // Whether what it quotes was seen before or not: these programs follow no flows. If they do, see `flows.rs`.
        both.only_dns.decide(Hook::CgroupEgress, &question);
        both.all_but_dns.decide(Hook::CgroupEgress, &question);
        for kind in [3, 4, 5, 11, 12] {
            let error = back.clone().icmp_error(kind, 0, [0; 4], &question).build();
            both.decide_by(By::Default, &format!("ICMP error {kind} about port {port}"), &error);
        }
        for kind in 1..=4 {
            let error = back_v6.clone().icmp_error(kind, 0, [0; 4], &question_v6).build();
            both.decide_by(By::Default, &format!("ICMPv6 error {kind} about port {port}"), &error);
        }
    }
    let errors = Filter::with(
        "
version: 1
name: errors
mode: block
defaults: { ingress: deny, egress: deny }
rules:
  - { name: unreachable, protocol: icmp, icmp_type: 3, action: allow }
  - { name: too-big, protocol: icmpv6, icmp_type: 2, action: allow }
",
    );
    let (question, question_v6) = (v4().udp(1000, 53).build(), v6().udp(1000, 53).build());
    for hook in hooks() {
        for (packet, expected) in [
            (
                back.clone().icmp_port_unreachable(&question),
                (true, By::Rule("unreachable")),
            ),
            (back.clone().icmp_time_exceeded(&question), (false, By::Default)),
            (
                back_v6.clone().icmp_too_big(1280, &question_v6),
                (true, By::Rule("too-big")),
            ),
            (
                back_v6.clone().icmp_port_unreachable(&question_v6),
                (false, By::Default),
            ),
        ] {
            errors.expect(hook, "an error", &packet.build(), expected);
        }
    }
}

fn neighbour_discovery_passes_a_strict_policy_and_nothing_else_of_icmpv6_does() {
    let both = Both::new();
    let strict = Filter::with(&ONLY_DNS.replace("mode: block", "mode: block\nessentials: false"));
    for kind in 0..=u8::MAX {
        let message = v6().icmp(kind, 0, [0; 4]).payload([0; 16]).build();
        // Neighbour discovery, and multicast listeners.
        let by = match kind {
            130..=137 | 143 => By::Essential,
            _ => By::Default,
        };
        let what = format!("ICMPv6 type {kind}");
        both.decide_by(by, &what, &message);
        for hook in hooks() {
            strict.expect(hook, &what, &message, (false, By::Default));
        }
        // The same number in IPv4's ICMP means something else.
        both.decide_by(By::Default, &what, &v4().icmp(kind, 0, [0; 4]).payload([0; 16]).build());
    }
    // From afar, behind options or in one fragment: receivers refuse it (RFC 4861, RFC 6980), and the filter need not.
    let solicitation = |ip: Packet| ip.icmp(135, 0, [0; 4]).payload([0; 16]).build();
    both.decide_by(By::Essential, "from afar", &solicitation(v6().ttl(1)));
    both.decide_by(By::Essential, "behind options", &solicitation(v6().hop_by_hop()));
    both.decide_by(By::Essential, "in one fragment", &solicitation(v6().atomic_fragment(7)));
    let later = v6().last_fragment(7, 16).protocol(58).payload([135; 16]).build();
    both.decide_by(By::Default, "in a later fragment", &later);
}

fn the_ports_of_a_dhcp_client_are_a_way_out_of_a_strict_policy_unless_it_has_no_essentials() {
    let both = Both::new();
    let strict = Filter::with(&ONLY_DNS.replace("mode: block", "mode: block\nessentials: false"));
    for hook in hooks() {
        // Whoever may bind the client's port can say anything to anyone who listens on the server's.
        for (version, ip, client, server) in [("DHCP", v4(), 68, 67), ("DHCPv6", v6(), 546, 547)] {
            let (out, back) = (ip.clone().udp(client, server).build(), ip.udp(server, client).build());
            let (ours, others) = match hook.direction() {
                Direction::Egress => (out, back),
                Direction::Ingress => (back, out),
            };
            both.decide_at(hook, By::Essential, version, &ours);
            both.decide_at(hook, By::Default, "a server's part", &others);
            strict.expect(hook, version, &ours, (false, By::Default));
        }
        both.decide_at(hook, By::Default, "TCP on these ports", &v4().tcp(68, 67).build());
        both.decide_at(
            hook,
            By::Default,
            "ports of the other version",
            &v4().udp(546, 547).build(),
        );
    }
}

fn a_mapped_address_in_an_ipv6_packet_is_no_ipv4_address() {
    let filter = Filter::with(
        "
version: 1
name: mapped
mode: block
rules:
  - { name: by-ipv4, source: 192.0.2.0/24, action: block }
  - { name: by-mapped, source: '::ffff:0:0/96', action: block }
",
    );
    let from = |source: &str| packets::ethernet().ipv6(source, V6[1]).udp(1000, 53).build();
    for hook in hooks() {
        filter.expect(hook, "IPv4", &v4().udp(1000, 53).build(), (false, By::Rule("by-ipv4")));
        filter.expect(
            hook,
            "mapped",
            &from("::ffff:192.0.2.7"),
            (false, By::Rule("by-mapped")),
        );
        // Nor is one that a translator makes of it (RFC 6052), or that has it in its middle (RFC 3056).
        filter.expect(hook, "translated", &from("64:ff9b::192.0.2.7"), (true, By::Default));
        filter.expect(hook, "6to4", &from("2002:c000:207::1"), (true, By::Default));
    }
}

fn a_jumbogram_is_decided_as_any_packet() {
    let both = Both::new();
    // Its length stands in an option (RFC 2675), and IPv6's own says 0. (A test run takes no packet that is really as long.)
    let jumbo = |port: u16| {
        let ip = v6().extension(ip_number::IPV6_HOP_BY_HOP, &[0xc2, 4, 0, 1, 0, 0]);
        ip.udp(1000, port)
            .payload([0; 1000])
            .build()
            .with_bytes(IP + 4, &[0, 0])
    };
    both.decide_by(DNS, "a jumbogram", &jumbo(53));
    both.decide_by(By::Default, "a jumbogram to another port", &jumbo(80));
}

fn of_a_tunnel_the_outer_header_decides() {
    let both = Both::new();
    let tunnels = Filter::with(
        "
version: 1
name: no-tunnels
mode: block
rules:
  - { name: dns, destination_ports: 53, action: block }
  - { name: ip-in-ip, protocol: 4, action: block }
  - { name: ipv6-in-ip, protocol: 41, action: block }
  - { name: gre, protocol: 47, action: block }
  - { name: vxlan, protocol: udp, destination_ports: 4789, action: block }
",
    );
    let question = |ip: Packet| ip.udp(1000, 53).build();
    let gre = [&[0, 0, 0x08, 0][..], &question(v4())[IP..]].concat();
    let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &question(v4())].concat();
    for (version, ip) in both_versions() {
        for (rule, packet) in [
            ("ip-in-ip", ip.clone().ipv4(V4[0], V4[1]).udp(1000, 53)),
            ("ipv6-in-ip", ip.clone().ipv6(V6[0], V6[1]).udp(1000, 53)),
            ("gre", ip.clone().protocol(47).payload(&gre)),
            ("vxlan", ip.clone().udp(1000, 4789).payload(&vxlan)),
        ] {
            let frame = packet.build();
            both.decide_by(By::Default, &format!("{version}, {rule}"), &frame);
            for hook in hooks() {
                tunnels.expect(hook, version, &frame, (false, By::Rule(rule)));
            }
        }
    }
}

fn what_is_encrypted_has_no_ports() {
    let both = Both::new();
    let no_ipsec = Filter::with(
        "
version: 1
name: no-ipsec
mode: block
rules:
  - { name: esp, protocol: 50, action: block }
  - { name: authenticated, protocol: 51, action: block }
",
    );
    let decide = |rule, what: &str, frame: &[u8]| {
        both.decide_by(By::Default, what, frame);
        for hook in hooks() {
            no_ipsec.expect(hook, what, frame, (false, By::Rule(rule)));
        }
    };
    for (version, ip) in both_versions() {
        let esp = ip.protocol(50).payload(UDP_HEADER.repeat(4)).build();
        decide("esp", &format!("{version}, ESP"), &esp);
    }
    // Of IPv4 it is a protocol, and no header on the way to one.
    decide(
        "authenticated",
        "AH over IPv4",
        &v4().authentication().udp(1000, 53).build(),
    );
}
