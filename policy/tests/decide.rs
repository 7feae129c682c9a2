//! What policies mean, case by case: each test is a sentence of the guide's page on the language.

use enforcer_policy::{
    Content, DecidedBy, Decision, Flow, Format, Identity, NoFiles, Originator, Outcome, Packet, Policy, Reason,
    Verdict, decide, decide_at_hook, decide_at_socket,
    model::{Direction::*, Mac, Mode, Protocol},
    packet, read,
};

/// A policy of which only the interesting lines are written.
fn policy(lines: &str) -> Policy {
    let text = format!("version: 1\nname: test\nmode: block\n{lines}");
    let reading = read("test.yaml", text.as_bytes(), Format::Yaml, &NoFiles);
    reading
        .policy
        .clone()
        .unwrap_or_else(|| panic!("{}", reading.render(false)))
}

fn incoming() -> Packet {
    packet(Ingress, "eth0").tcp("192.0.2.1:40000", "203.0.113.1:443")
}

fn outgoing() -> Packet {
    packet(Egress, "eth0").tcp("203.0.113.1:40000", "192.0.2.1:443")
}

/// A decision about a packet of no flow and of no known socket.
fn plainly(policy: &Policy, packet: &Packet) -> Decision {
    decide(policy, packet, &Flow::New, &Identity::UNKNOWN)
}

/// The verdict and the name it is counted under.
fn verdict<'p>(policy: &'p Policy, packet: &Packet) -> (Verdict, &'p str) {
    let decision = plainly(policy, packet);
    (decision.verdict, decision.rule_name(policy))
}

fn established(originator: Packet, identity: Identity) -> Flow {
    Flow::Established(Box::new(Originator {
        packet: originator,
        identity,
    }))
}

fn user(uid: u32) -> Identity {
    Identity {
        uid: Some(uid),
        ..Identity::UNKNOWN
    }
}

fn cgroup(path: &str) -> Identity {
    Identity {
        cgroup: Some(path.into()),
        ..Identity::UNKNOWN
    }
}

use Verdict::{Allow, Block, RateLimit};

#[test]
fn without_a_rule_the_direction_s_default_decides() {
    let policy = policy("defaults: { ingress: allow, egress: deny }");
    assert_eq!(verdict(&policy, &incoming()), (Allow, "default"));
    assert_eq!(verdict(&policy, &outgoing()), (Block, "default"));
    assert_eq!(plainly(&policy, &outgoing()).reason, Reason::Default);
}

#[test]
fn without_defaults_everything_is_allowed() {
    let policy = policy("rules: []");
    assert_eq!(verdict(&policy, &incoming()), (Allow, "default"));
    assert_eq!(verdict(&policy, &outgoing()), (Allow, "default"));
}

#[test]
fn every_key_of_a_rule_must_match() {
    let policy = policy(
        "rules: [{ name: r, direction: ingress, interface: eth0, protocol: tcp, source: 192.0.2.0/24,
                   destination: 203.0.113.1, source_ports: 40000-40010, destination_ports: [80, 443], action: block }]",
    );
    assert_eq!(verdict(&policy, &incoming()), (Block, "r"));
    let others = [
        packet(Egress, "eth0").tcp("192.0.2.1:40000", "203.0.113.1:443"),
        packet(Ingress, "eth1").tcp("192.0.2.1:40000", "203.0.113.1:443"),
        packet(Ingress, "eth0").udp("192.0.2.1:40000", "203.0.113.1:443"),
        packet(Ingress, "eth0").tcp("192.0.3.1:40000", "203.0.113.1:443"),
        packet(Ingress, "eth0").tcp("192.0.2.1:40000", "203.0.113.2:443"),
        packet(Ingress, "eth0").tcp("192.0.2.1:40011", "203.0.113.1:443"),
        packet(Ingress, "eth0").tcp("192.0.2.1:40000", "203.0.113.1:444"),
        packet(Ingress, "eth0").tcp("[2001:db8::1]:40000", "[2001:db8::2]:443"),
    ];
    for other in others {
        assert_eq!(verdict(&policy, &other), (Allow, "default"), "{other:?}");
    }
}

#[test]
fn a_rule_without_direction_is_for_both() {
    let policy = policy("rules: [{ name: r, destination_ports: 443, action: block }]");
    assert_eq!(verdict(&policy, &incoming()), (Block, "r"));
    assert_eq!(verdict(&policy, &outgoing()), (Block, "r"));
}

#[test]
fn the_lowest_priority_is_asked_first_and_ties_stand_in_the_order_of_the_file() {
    let policy = policy(
        "rules: [{ name: late, priority: 101, action: block }, { name: first, action: allow },
                 { name: second, action: block }]",
    );
    assert_eq!(verdict(&policy, &incoming()), (Allow, "first"));
    assert_eq!(policy.order(), [1, 2, 0]);
}

#[test]
fn the_most_specific_rule_wins_where_the_policy_says_so() {
    // P1: all wildcard combinations of the 5-tuple, in the worst order of the file, against the one that fixes most.
    let keys = [
        "source: 192.0.2.1",
        "destination: 203.0.113.1",
        "destination_ports: 443",
        "source_ports: 40000",
        "protocol: tcp",
    ];
    let mut rules: Vec<(u32, String)> = (0..32_u32)
        .map(|mask| {
            let fixed = (0..5).filter(|bit| mask & 1 << bit != 0).map(|bit| keys[bit]);
            let rule = [format!("name: r{mask}"), "action: allow".to_owned()];
            let text = rule.into_iter().chain(fixed.map(str::to_owned)).collect::<Vec<_>>();
            (mask, format!("  - {{ {} }}\n", text.join(", ")))
        })
        .collect();
    rules.sort_by_key(|(mask, _)| mask.count_ones());
    let text: String = rules.iter().map(|(_, text)| text.as_str()).collect();
    let policy = policy(&format!("match: specific\nrules:\n{text}"));
    // A packet that differs in the fields outside of `mask` is matched best by the rule of `mask`.
    for mask in 0..32_u32 {
        let pick = |bit: u32, own: &'static str, other: &'static str| if mask & 1 << bit == 0 { other } else { own };
        let source = format!("{}:{}", pick(0, "192.0.2.1", "192.0.2.9"), pick(3, "40000", "9"));
        let destination = format!("{}:{}", pick(1, "203.0.113.1", "203.0.113.9"), pick(2, "443", "9"));
        let start = packet(Ingress, "eth0");
        let packet = if mask & 16 == 0 {
            start.udp(&source, &destination)
        } else {
            start.tcp(&source, &destination)
        };
        assert_eq!(
            verdict(&policy, &packet),
            (Allow, format!("r{mask}").as_str()),
            "{packet:?}"
        );
    }
}

#[test]
fn of_rules_that_fix_as_much_the_narrower_source_wins_then_destination_then_ports_then_the_file() {
    let winner = |rules: &str| {
        let policy = policy(&format!("match: specific\nrules: [{rules}]"));
        plainly(&policy, &incoming()).rule_name(&policy).to_owned()
    };
    assert_eq!(
        winner("{ name: d, destination: 203.0.113.1, action: allow }, { name: s, source: 192.0.2.1, action: allow }"),
        "s"
    );
    assert_eq!(
        winner("{ name: a, source: 192.0.0.0/16, action: allow }, { name: b, source: 192.0.2.0/24, action: allow }"),
        "b"
    );
    assert_eq!(
        winner("{ name: p, protocol: tcp, action: allow }, { name: sp, source_ports: 40000, action: allow },
                { name: dp, destination_ports: 443, action: allow }, { name: d, destination: 0.0.0.0/0, action: allow }"),
        "d"
    );
    assert_eq!(
        winner(
            "{ name: many, destination_ports: 1-1000, action: allow }, { name: few, destination_ports: 440-443, action: allow }"
        ),
        "few"
    );
    assert_eq!(
        winner("{ name: first, source: 192.0.2.1, action: allow }, { name: second, source: 192.0.2.1, action: block }"),
        "first"
    );
}

#[test]
fn log_records_and_goes_on() {
    let policy = policy(
        "rules: [{ name: a, action: log }, { name: b, destination_ports: 443, action: log }, { name: c, action: block },
                 { name: d, action: log }]",
    );
    let decision = plainly(&policy, &incoming());
    assert_eq!((decision.by, decision.logged_by), (DecidedBy::Rule(2), vec![0, 1]));
    // Also where no rule decides.
    let policy = self::policy("rules: [{ name: a, action: log }]");
    let decision = plainly(&policy, &incoming());
    assert_eq!((decision.by, decision.logged_by), (DecidedBy::Default, vec![0]));
}

#[test]
fn a_rate_limit_is_final_below_and_above_its_rate() {
    let policy =
        policy("rules: [{ name: limited, action: { rate_limit: { packets: 10/s } } }, { name: never, action: block }]");
    let decision = plainly(&policy, &incoming());
    assert_eq!((decision.verdict, decision.rule_name(&policy)), (RateLimit, "limited"));
    assert_eq!(decision.outcome(true), Outcome::Pass);
    assert_eq!(decision.outcome(false), Outcome::Drop);
}

#[test]
fn in_observe_mode_nothing_is_dropped_and_all_is_told() {
    let mut policy =
        policy("rules: [{ name: r, action: block }, { name: l, action: { rate_limit: { packets: 1/s } } }]");
    assert_eq!(plainly(&policy, &incoming()).outcome(true), Outcome::Drop);
    policy.mode = Mode::Observe;
    let decision = plainly(&policy, &incoming());
    assert_eq!(
        (decision.verdict, decision.outcome(true)),
        (Block, Outcome::ObserveDrop)
    );
    policy.rules.remove(0);
    assert_eq!(plainly(&policy, &incoming()).outcome(true), Outcome::Pass);
    assert_eq!(plainly(&policy, &incoming()).outcome(false), Outcome::ObserveDrop);
}

#[test]
fn a_rule_may_observe_while_the_policy_blocks() {
    let policy = policy(
        "rules: [{ name: new, mode: observe, destination_ports: 443, action: block }, { name: old, action: block }]",
    );
    assert_eq!(plainly(&policy, &incoming()).outcome(true), Outcome::ObserveDrop);
    let other = packet(Ingress, "eth0").tcp("192.0.2.1:40000", "203.0.113.1:80");
    assert_eq!(plainly(&policy, &other).outcome(true), Outcome::Drop);
}

#[test]
fn malformed_packets_have_a_default_of_their_own_and_meet_no_rule() {
    let malformed = packet(Ingress, "eth0").content(Content::Malformed);
    let dropping = policy("rules: [{ name: r, action: allow }]");
    assert_eq!(verdict(&dropping, &malformed), (Block, "malformed"));
    assert_eq!(plainly(&dropping, &malformed).outcome(true), Outcome::Drop);
    let passing = policy("defaults: { malformed: allow }\nrules: [{ name: r, action: block }]");
    assert_eq!(verdict(&passing, &malformed), (Allow, "malformed"));
    let mut observing = dropping;
    observing.mode = Mode::Observe;
    assert_eq!(plainly(&observing, &malformed).outcome(true), Outcome::ObserveDrop);
}

#[test]
fn later_fragments_match_no_port_and_no_icmp_key() {
    let policy = policy(
        "rules: [{ name: port, protocol: tcp, destination_ports: 1-65535, action: block },
                 { name: icmp, protocol: icmp, icmp_type: 0-255, action: block },
                 { name: address, source: 192.0.2.1, action: log }]",
    );
    for protocol in [Protocol::TCP, Protocol::ICMP] {
        let fragment = packet(Ingress, "eth0").ip(protocol, "192.0.2.1", "203.0.113.1");
        let decision = plainly(&policy, &fragment);
        assert_eq!((decision.verdict, decision.logged_by), (Allow, vec![2]));
    }
}

#[test]
fn icmp_is_matched_by_type_and_code() {
    let policy = policy(
        "rules: [{ name: ping, protocol: icmp, icmp_type: [0, 8], icmp_code: 0, action: block },
                 { name: ping6, protocol: icmpv6, icmp_type: 128-129, action: block }]",
    );
    let icmp = |source, destination, kind, code| packet(Ingress, "eth0").icmp(source, destination, kind, code);
    assert_eq!(verdict(&policy, &icmp("192.0.2.1", "192.0.2.2", 8, 0)), (Block, "ping"));
    assert_eq!(
        verdict(&policy, &icmp("192.0.2.1", "192.0.2.2", 8, 1)),
        (Allow, "default")
    );
    assert_eq!(
        verdict(&policy, &icmp("2001:db8::1", "2001:db8::2", 128, 7)),
        (Block, "ping6")
    );
    assert_eq!(
        verdict(&policy, &icmp("192.0.2.1", "192.0.2.2", 128, 0)),
        (Allow, "default")
    );
}

#[test]
fn sets_and_lists_hold_prefixes_of_both_versions() {
    let policy = policy(
        "sets: { partners: { prefixes: [203.0.113.0/24, '2001:db8:7::/48'] } }
rules: [{ name: r, source: ['@partners', 192.0.2.7], action: block }]",
    );
    for source in ["203.0.113.200:1", "[2001:db8:7:1::1]:1", "192.0.2.7:1"] {
        let destination = if source.starts_with('[') {
            "[2001:db8::1]:80"
        } else {
            "198.51.100.1:80"
        };
        let packet = packet(Ingress, "eth0").udp(source, destination);
        assert_eq!(verdict(&policy, &packet), (Block, "r"), "{source}");
    }
    let other = packet(Ingress, "eth0").udp("[2001:db8:8::1]:1", "[2001:db8::1]:80");
    assert_eq!(verdict(&policy, &other), (Allow, "default"));
}

#[test]
fn a_mapped_address_is_no_ipv4_address() {
    let policy = policy("rules: [{ name: r, source: 192.0.2.0/24, action: block }]");
    let mapped = packet(Ingress, "eth0").tcp("[::ffff:192.0.2.1]:1", "[2001:db8::1]:80");
    assert_eq!(verdict(&policy, &mapped), (Allow, "default"));
}

#[test]
fn mac_is_the_sender_s_of_what_comes_in() {
    let policy = policy("rules: [{ name: r, direction: ingress, mac: '02:00:00:00:00:01', action: block }]");
    let from = |mac| {
        packet(Ingress, "eth0")
            .from_mac(Mac(mac))
            .tcp("192.0.2.1:40000", "203.0.113.1:443")
    };
    assert_eq!(verdict(&policy, &from([2, 0, 0, 0, 0, 1])), (Block, "r"));
    assert_eq!(verdict(&policy, &from([2, 0, 0, 0, 0, 2])), (Allow, "default"));
    assert_eq!(
        verdict(&policy, &incoming()),
        (Allow, "default"),
        "its MAC address is not known"
    );
}

#[test]
fn a_cgroup_is_matched_with_its_descendants_and_no_other() {
    let policy = policy("rules: [{ name: r, direction: egress, cgroup: batch.slice, action: block }]");
    let of = |identity: Identity| decide(&policy, &outgoing(), &Flow::New, &identity).verdict;
    assert_eq!(of(cgroup("batch.slice")), Block);
    assert_eq!(of(cgroup("batch.slice/job.scope")), Block);
    assert_eq!(of(cgroup("batch.slice-2")), Allow);
    assert_eq!(of(cgroup("system.slice/batch.slice")), Allow);
    assert_eq!(of(cgroup("")), Allow);
    assert_eq!(of(Identity::UNKNOWN), Allow);
}

#[test]
fn the_root_cgroup_is_that_of_every_known_socket() {
    let policy = policy("rules: [{ name: r, direction: egress, cgroup: /, action: block }]");
    let of = |identity: Identity| decide(&policy, &outgoing(), &Flow::New, &identity).verdict;
    assert_eq!(of(cgroup("")), Block);
    assert_eq!(of(cgroup("system.slice")), Block);
    assert_eq!(of(Identity::UNKNOWN), Allow, "forwarded packets have none");
}

#[test]
fn users_and_groups_are_numbers_and_ranges_and_what_is_unknown_matches_nothing() {
    let policy = policy(
        "rules: [{ name: u, direction: egress, uid: [0, 1000-1999], action: block },
                 { name: g, direction: egress, gid: 100, action: block }]",
    );
    let of = |identity: &Identity| decide(&policy, &outgoing(), &Flow::New, identity).verdict;
    for (uid, expected) in [(0, Block), (1, Allow), (1000, Block), (1999, Block), (2000, Allow)] {
        assert_eq!(of(&user(uid)), expected, "{uid}");
    }
    let group = Identity {
        gid: Some(100),
        ..Identity::UNKNOWN
    };
    assert_eq!(of(&group), Block);
    assert_eq!(of(&Identity::UNKNOWN), Allow);
}

#[test]
fn what_goes_out_is_decided_without_the_socket_hook() {
    let policy = policy(
        "rules: [{ name: all, action: allow },
                 { name: not-batch, direction: egress, cgroup: batch.slice, action: block }]",
    );
    let identity = cgroup("batch.slice");
    assert_eq!(decide_at_socket(&policy, &outgoing(), &Flow::New, &identity), None);
    let decision = decide(&policy, &outgoing(), &Flow::New, &identity);
    assert_eq!((decision.verdict, decision.rule_name(&policy)), (Allow, "all"));
}

#[test]
fn on_ingress_the_wire_hook_ignores_identity_and_the_socket_looks_for_block_alone() {
    let policy = policy(
        "rules: [{ name: web, priority: 1, direction: ingress, destination_ports: 443, action: allow },
                 { name: not-batch, direction: ingress, cgroup: batch.slice, action: block }]",
    );
    let identity = cgroup("batch.slice");
    let at_hook = decide_at_hook(&policy, &incoming(), &Flow::New, &identity);
    assert_eq!((at_hook.verdict, at_hook.rule_name(&policy)), (Allow, "web"));
    let at_socket = decide_at_socket(&policy, &incoming(), &Flow::New, &identity).unwrap();
    assert_eq!((at_socket.verdict, at_socket.rule_name(&policy)), (Block, "not-batch"));
    assert_eq!(decide_at_socket(&policy, &incoming(), &Flow::New, &user(7)), None);
    // Together: what either blocks is blocked, whatever the priorities.
    let decision = decide(&policy, &incoming(), &Flow::New, &identity);
    assert_eq!((decision.verdict, decision.rule_name(&policy)), (Block, "not-batch"));
}

#[test]
fn replies_of_allowed_flows_are_allowed_by_the_same_rule() {
    let policy = policy(
        "defaults: { ingress: deny, egress: deny }
rules: [{ name: out, direction: egress, uid: 1000, destination_ports: 443, action: allow }]",
    );
    let reply = outgoing().reversed();
    assert_eq!(verdict(&policy, &reply), (Block, "default"), "of no flow");
    let flow = established(outgoing(), user(1000));
    let decision = decide(&policy, &reply, &flow, &Identity::UNKNOWN);
    assert_eq!(
        (decision.verdict, decision.rule_name(&policy), decision.reason),
        (Allow, "out", Reason::Flow)
    );
}

#[test]
fn a_new_policy_that_blocks_a_flow_ends_it_in_both_directions() {
    let policy = policy("rules: [{ name: out, direction: egress, destination: 192.0.2.1, action: block }]");
    let flow = established(outgoing(), Identity::UNKNOWN);
    for packet in [outgoing(), outgoing().reversed()] {
        let decision = decide(&policy, &packet, &flow, &Identity::UNKNOWN);
        assert_eq!((decision.verdict, decision.rule_name(&policy)), (Block, "out"));
    }
}

#[test]
fn replies_follow_the_default_of_the_direction_in_which_their_flow_began() {
    let policy = policy("defaults: { ingress: deny, egress: allow }");
    let flow = established(outgoing(), Identity::UNKNOWN);
    let decision = decide(&policy, &outgoing().reversed(), &flow, &Identity::UNKNOWN);
    assert_eq!((decision.verdict, decision.by), (Allow, DecidedBy::Default));
}

#[test]
fn a_rule_without_state_looks_at_a_flow_s_first_packet_and_not_at_its_replies() {
    let policy = policy("rules: [{ name: abuse, direction: ingress, source: 192.0.2.1, action: block }]");
    let flow = established(outgoing(), Identity::UNKNOWN);
    let reply = outgoing().reversed();
    assert_eq!(verdict(&policy, &reply), (Block, "abuse"));
    assert_eq!(decide(&policy, &reply, &flow, &Identity::UNKNOWN).verdict, Allow);
}

#[test]
fn a_rule_that_names_established_looks_at_the_packet_itself() {
    let policy =
        policy("rules: [{ name: r, state: established, direction: ingress, source: 192.0.2.1, action: block }]");
    let flow = established(outgoing(), Identity::UNKNOWN);
    let reply = outgoing().reversed();
    assert_eq!(decide(&policy, &reply, &flow, &Identity::UNKNOWN).verdict, Block);
    assert_eq!(decide(&policy, &outgoing(), &flow, &Identity::UNKNOWN).verdict, Allow);
    assert_eq!(verdict(&policy, &reply).0, Allow, "it is of no flow");
}

#[test]
fn a_flow_that_was_allowed_as_new_goes_on() {
    let policy = policy(
        "defaults: { egress: deny, ingress: deny }
rules: [{ name: r, state: new, direction: egress, destination_ports: 443, action: allow }]",
    );
    let flow = established(outgoing(), Identity::UNKNOWN);
    for packet in [outgoing(), outgoing().reversed()] {
        assert_eq!(decide(&policy, &packet, &flow, &Identity::UNKNOWN).verdict, Allow);
    }
}

#[test]
fn tcp_without_syn_and_without_a_flow_is_allowed_if_either_orientation_would_be() {
    let policy = policy(
        "defaults: { ingress: deny, egress: deny }
rules: [{ name: ssh, direction: ingress, protocol: tcp, destination_ports: 22, action: allow }]",
    );
    let of_administrator = packet(Egress, "eth0").tcp("203.0.113.1:22", "192.0.2.1:40000");
    let decision = decide(&policy, &of_administrator, &Flow::Invalid, &Identity::UNKNOWN);
    assert_eq!(
        (decision.verdict, decision.rule_name(&policy), decision.reason),
        (Allow, "ssh", Reason::ReverseOrientation)
    );
    assert_eq!(verdict(&policy, &of_administrator), (Block, "default"), "with SYN");
    let of_another = packet(Egress, "eth0").tcp("203.0.113.1:23", "192.0.2.1:40000");
    let decision = decide(&policy, &of_another, &Flow::Invalid, &Identity::UNKNOWN);
    assert_eq!((decision.verdict, decision.reason), (Block, Reason::Default));
}

#[test]
fn icmp_errors_follow_the_flow_that_they_quote() {
    let lines = "defaults: { ingress: deny, egress: deny }
rules: [{ name: out, direction: egress, destination_ports: 443, action: allow }]";
    let unreachable = packet(Ingress, "eth0").icmp("198.51.100.1", "203.0.113.1", 3, 1);
    let related = Flow::Related(Box::new(Originator {
        packet: outgoing(),
        identity: Identity::UNKNOWN,
    }));
    let with_essentials = policy(lines);
    let decision = decide(&with_essentials, &unreachable, &related, &Identity::UNKNOWN);
    assert_eq!(
        (decision.verdict, decision.by, decision.reason),
        (Allow, DecidedBy::Essential, Reason::IcmpError)
    );
    assert_eq!(
        verdict(&with_essentials, &unreachable),
        (Block, "default"),
        "it quotes nothing known"
    );
    let without = policy(&format!("essentials: false\n{lines}"));
    let decision = decide(&without, &unreachable, &related, &Identity::UNKNOWN);
    assert_eq!((decision.verdict, decision.rule_name(&without)), (Allow, "out"));
}

#[test]
fn essentials_are_allowed_ahead_of_rules_and_defaults() {
    let lines = "defaults: { ingress: deny, egress: deny }\nrules: [{ name: all, action: block }]";
    let with = policy(lines);
    let without = policy(&format!("essentials: false\n{lines}"));
    let cases = [
        (
            packet(Ingress, "lo").tcp("127.0.0.1:1", "127.0.0.1:2"),
            Reason::Loopback,
        ),
        (packet(Egress, "lo").udp("[::1]:1", "[::1]:2"), Reason::Loopback),
        (packet(Ingress, "eth0").content(Content::NotIp), Reason::NotIp),
        (
            packet(Ingress, "eth0").icmp("fe80::1", "ff02::1", 134, 0),
            Reason::NeighbourDiscovery,
        ),
        (
            packet(Egress, "eth0").icmp("fe80::1", "ff02::1:ff00:2", 135, 0),
            Reason::NeighbourDiscovery,
        ),
        (
            packet(Egress, "eth0").icmp("fe80::1", "ff02::16", 143, 0),
            Reason::MulticastListener,
        ),
        (
            packet(Egress, "eth0").udp("0.0.0.0:68", "255.255.255.255:67"),
            Reason::DhcpClient,
        ),
        (
            packet(Ingress, "eth0").udp("192.0.2.1:67", "192.0.2.9:68"),
            Reason::DhcpClient,
        ),
        (
            packet(Egress, "eth0").udp("[fe80::1]:546", "[ff02::1:2]:547"),
            Reason::DhcpClient,
        ),
        (
            packet(Ingress, "eth0").udp("[fe80::2]:547", "[fe80::1]:546"),
            Reason::DhcpClient,
        ),
    ];
    for (packet, reason) in cases {
        let decision = plainly(&with, &packet);
        assert_eq!(
            (decision.verdict, decision.rule_name(&with), decision.reason),
            (Allow, "essential", reason)
        );
        assert_eq!(verdict(&without, &packet), (Block, "all"), "{packet:?}");
    }
    let not_essential = [
        // The server's side, a client of the other version's ports, ICMPv6's numbers in ICMP, a ping.
        packet(Ingress, "eth0").udp("0.0.0.0:68", "255.255.255.255:67"),
        packet(Egress, "eth0").udp("[fe80::1]:68", "[ff02::1:2]:67"),
        packet(Ingress, "eth0").icmp("192.0.2.1", "192.0.2.2", 135, 0),
        packet(Ingress, "eth0").icmp("fe80::1", "fe80::2", 128, 0),
        packet(Ingress, "eth0").icmp("192.0.2.1", "192.0.2.2", 3, 1),
    ];
    for packet in not_essential {
        assert_eq!(verdict(&with, &packet), (Block, "all"), "{packet:?}");
    }
}

#[test]
fn a_rule_that_names_what_is_essential_is_asked_in_its_place() {
    let policy = policy(
        "rules: [{ name: all, action: block },
                 { name: no-router, priority: 200, protocol: icmpv6, icmp_type: 134, source: 'fe80::bad', action: block },
                 { name: no-dhcp, priority: 200, protocol: udp, destination_ports: 68, action: block },
                 { name: no-loopback, priority: 200, interface: lo, destination_ports: 25, action: block },
                 { name: not-him, priority: 200, direction: ingress, mac: '02:00:00:00:00:01', action: block }]",
    );
    let advertisement = |source| packet(Ingress, "eth0").icmp(source, "ff02::1", 134, 0);
    assert_eq!(verdict(&policy, &advertisement("fe80::bad")), (Block, "no-router"));
    assert_eq!(verdict(&policy, &advertisement("fe80::1")), (Allow, "essential"));
    let dhcp = packet(Ingress, "eth0").udp("192.0.2.1:67", "192.0.2.9:68");
    assert_eq!(verdict(&policy, &dhcp), (Block, "no-dhcp"));
    let mail = packet(Egress, "lo").tcp("127.0.0.1:40000", "127.0.0.1:25");
    assert_eq!(verdict(&policy, &mail), (Block, "no-loopback"));
    let arp = packet(Ingress, "eth0")
        .from_mac(Mac([2, 0, 0, 0, 0, 1]))
        .content(Content::NotIp);
    assert_eq!(verdict(&policy, &arp), (Block, "not-him"));
}

#[test]
fn what_is_no_ip_matches_only_rules_that_ask_for_nothing_of_ip() {
    let policy = policy(
        "essentials: false
defaults: { ingress: allow }
rules: [{ name: ip, protocol: 0, action: block }, { name: prefix, source: 0.0.0.0/0, action: block },
        { name: eth1, interface: eth1, action: block }]",
    );
    let arp = |interface| packet(Ingress, interface).content(Content::NotIp);
    assert_eq!(verdict(&policy, &arp("eth0")), (Allow, "default"));
    assert_eq!(verdict(&policy, &arp("eth1")), (Block, "eth1"));
}

#[test]
fn no_policy_at_all_observes_and_allows() {
    let policy = Policy::allow_all("none");
    let decision = plainly(&policy, &incoming());
    assert_eq!((decision.verdict, decision.mode), (Allow, Mode::Observe));
}
