//! Flows: what belongs to one is judged as the packet that began it (F3, A3, N2, P7).

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use enforcer_policy::{
    Content, Flow, Identity, Ip, Originator, Outcome, Packet, Policy, Transport,
    decide::decide_at_hook,
    model::{Action, DefaultVerdict, Direction, Mode, Protocol, Range, Rule, State},
};
use lab03_tc_egress_common::flow::state::{self, Signal, Step};
use lab06_full_enforcer::names::Names;
use lab06_full_enforcer_common::key::Hook;
use testbed::{Host, packets::ethernet};

use crate::{
    program::{self, Programs, packets},
    random::Dice,
    reference,
};

testbed::listed_tests![
    twenty_thousand_packets_of_flows_are_decided_as_by_the_reference,
    twenty_thousand_packets_of_flows_by_the_other_hooks_are_decided_as_by_the_reference,
    what_is_answered_comes_in_and_what_is_not_asked_for_does_not,
    an_error_comes_in_if_it_is_about_a_flow,
    a_flow_that_is_blocked_ends_in_both_directions,
    what_would_be_blocked_begins_no_flow,
    a_flow_goes_on_by_what_only_its_first_packet_showed,
    a_flood_of_half_open_flows_leaves_the_others_alone,
];

/// Those between which a flow goes: where packets come in, and where they go out.
const HOOKS: [Hook; 2] = [Hook::TcIngress, Hook::CgroupEgress];

/// TCP's flags.
const SYN: u8 = 2;
const ACK: u8 = 16;

const HERE: &str = "192.0.2.1";
const THERE: &str = "198.51.100.7";

/// The two ends of a flow, the lower one first, and the side of the host from which they are seen.
type Key = (Protocol, [(IpAddr, u16); 2], bool);

/// The flows as one would keep them without hurry: by the two ends, and by the side of the host from which they are seen.
#[derive(Default)]
struct Followed {
    flows: HashMap<Key, (state::State, Packet)>,
}

impl Followed {
    /// What is known of a packet; then it is told what became of it.
    fn judge(&mut self, policy: &Policy, packet: &Packet, signal: Signal) -> enforcer_policy::Decision {
        let key = key(packet);
        let is_originator = |originator: &Packet| originator.content == packet.content;
        let known = self.flows.get(&key).cloned();
        let step = known.as_ref().map(|(state, originator)| {
            let from_originator = is_originator(originator);
            (state::step(*state, from_originator, signal), *state, from_originator)
        });
        let root = Identity {
            uid: Some(0),
            ..Identity::UNKNOWN
        };
        let flow = match (&known, step) {
            (Some((_, originator)), Some((Step::To(_) | Step::Nothing, state, from_originator))) => {
                let is_first = from_originator && matches!(state, state::State::SynSent | state::State::Unreplied);
                if is_first {
                    Flow::New
                } else {
                    Flow::Established(Box::new(Originator {
                        packet: originator.clone(),
                        identity: root.clone(),
                    }))
                }
            }
            _ if is_tcp(packet) && signal != Signal::Syn => Flow::Invalid,
            _ => Flow::New,
        };
        let decision = decide_at_hook(policy, packet, &flow, &root);
        match step {
            Some((Step::To(next), ..)) => {
                self.flows.get_mut(&key).expect("it is known").0 = next;
            }
            Some((Step::Nothing, ..)) => {}
            Some((Step::Anew, ..)) | None => {
                let begins = match signal {
                    Signal::Syn => Some(state::State::SynSent),
                    Signal::Datagram => Some(state::State::Unreplied),
                    _ => None,
                };
                if let Some(state) = begins
                    && flow == Flow::New
                    && decision.lets_pass()
                {
                    self.flows.insert(key, (state, packet.clone()));
                }
            }
        }
        decision
    }
}

fn is_tcp(packet: &Packet) -> bool {
    matches!(&packet.content, Content::Ip(ip) if ip.protocol == Protocol::TCP)
}

fn ends(ip: &Ip) -> [(IpAddr, u16); 2] {
    let (source, destination) = match ip.transport {
        Transport::Ports { source, destination } => (source, destination),
        _ => (0, 0),
    };
    [(ip.source, source), (ip.destination, destination)]
}

fn key(packet: &Packet) -> Key {
    let Content::Ip(ip) = &packet.content else {
        panic!("not a packet of a flow: {packet:?}")
    };
    let [source, destination] = ends(ip);
    let from_low = source <= destination;
    let side = (packet.direction == Direction::Egress) != from_low;
    let low_first = if from_low {
        [source, destination]
    } else {
        [destination, source]
    };
    (ip.protocol, low_first, side)
}

fn twenty_thousand_packets_of_flows_are_decided_as_by_the_reference() {
    compare(HOOKS, 12);
}

fn twenty_thousand_packets_of_flows_by_the_other_hooks_are_decided_as_by_the_reference() {
    compare([Hook::XdpIngress, Hook::TcEgress], 13);
}

/// Random packets of few flows, under random policies that follow one another while the flows go on.
fn compare(hooks: [Hook; 2], seed: u64) {
    const POLICIES: usize = 100;
    const PACKETS_EACH: usize = 200;
    let here = Host::new("here").unwrap();
    let link = here.join(&Host::new("there").unwrap()).unwrap();
    here.run(|| {
        let mut dice = Dice::new(seed);
        // Without essentials `lo` is an interface as any.
        let can_be_elsewhere = !hooks.contains(&Hook::XdpIngress) || program::hooks().contains(&Hook::XdpIngress);
        let interface = if can_be_elsewhere { link.left.index } else { 1 };
        let mut programs = Programs::following(4096, &hooks);
        // As this follower, which has no clock.
        programs.forget_no_flow();
        let mut followed = Followed::default();
        let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
        for _ in 0..POLICIES {
            let policy = policy(&mut dice);
            let names = programs.apply_for(&policy, Names::default());
            let before: Vec<[u64; 3]> = programs.by_rule(names.len()).iter().map(packets).collect();
            let mut expected = before.clone();
            let place = |name: &str| names.iter().position(|other| other == name).expect("it is a rule");
            for number in 0..PACKETS_EACH {
                let (frame, hook, signal) = packet_of_a_flow(hooks, &mut dice);
                let packet = reference::packet(&frame, hook, "eth0");
                let decision = followed.judge(&policy, &packet, signal);
                let outcome = decision.outcome(true);
                let passes = programs.lets_pass(hook, &frame, interface);
                assert_eq!(
                    passes,
                    outcome != Outcome::Drop,
                    "packet {number} {hook:?} {packet:?} {signal:?}: {decision:?}\n{policy:#?}"
                );
                let column = match outcome {
                    Outcome::Pass => 0,
                    Outcome::ObserveDrop => 1,
                    Outcome::Drop => 2,
                };
                let name = decision.rule_name(&policy);
                if name.starts_with("rule-") {
                    expected[place(name)][column] += 1;
                }
                for index in &decision.logged_by {
                    expected[place(&policy.rules[*index].name)][0] += 1;
                }
                let kind = match decision.reason {
                    enforcer_policy::Reason::Flow => "by its flow",
                    enforcer_policy::Reason::ReverseOrientation => "the other way round",
                    _ => "by itself",
                };
                *seen.entry(kind).or_default() += 1;
            }
            let counted: Vec<[u64; 3]> = programs.by_rule(names.len()).iter().map(packets).collect();
            assert_eq!(counted, expected, "{names:?}\n{policy:#?}");
        }
        for (kind, count) in &seen {
            assert!(*count > 150, "{kind} is too rare: {seen:?}");
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
    });
}

/// A random policy whose rules ask for nothing that only the first packet of a flow shows.
fn policy(dice: &mut Dice) -> Policy {
    let mut policy = reference::policy(dice);
    policy.essentials = false;
    for rule in &mut policy.rules {
        rule.interface.clear();
        rule.mac.clear();
        for addresses in [&mut rule.source, &mut rule.destination] {
            if dice.percent(50) {
                addresses.clear();
            }
        }
        rule.state = if rule.action == Action::Log || dice.percent(60) {
            Vec::new()
        } else {
            dice.some_of(2, |dice| {
                dice.one_of(&[State::New, State::Established, State::Related, State::Invalid])
            })
        };
    }
    policy
}

fn packet_of_a_flow(hooks: [Hook; 2], dice: &mut Dice) -> (Vec<u8>, Hook, Signal) {
    let hook = dice.one_of(&hooks);
    // Often of a flow that goes on, and often of one that nothing is known of.
    let ports = dice.one_of(&[3, 3, 3, 2000]);
    let (near, far) = (40_000 + dice.below(ports) as u16, dice.one_of(&[22, 53, 443]));
    let goes_out = (hook == hooks[1]) != dice.percent(10);
    let (source, destination) = if goes_out { (near, far) } else { (far, near) };
    let is_v6 = dice.percent(30);
    let ip = if is_v6 {
        let (near, far) = ("2001:db8::1", "2001:db8:0:3::7");
        let (from, to) = if goes_out { (near, far) } else { (far, near) };
        ethernet().ipv6(from, to)
    } else {
        let (from, to) = if goes_out { (HERE, THERE) } else { (THERE, HERE) };
        ethernet().ipv4(from, to)
    };
    if dice.percent(30) {
        return (ip.udp(source, destination).build(), hook, Signal::Datagram);
    }
    let flags = dice.one_of(&[SYN, SYN, SYN | ACK, ACK, ACK, ACK, ACK | 1, 4, ACK | 4, 0, SYN | 1]);
    let frame = ip.tcp(source, destination).tcp_flags(flags).build();
    (frame, hook, Signal::of_tcp_flags(flags))
}

/// A policy by which everything may go out, and nothing may come in by itself.
fn only_answers() -> Policy {
    let mut policy = Policy::allow_all("only-answers");
    policy.mode = Mode::Block;
    policy.defaults.ingress = DefaultVerdict::Deny;
    policy
}

/// The programs, and an interface that is not `lo`.
struct Bench {
    programs: Programs,
    interface: u32,
}

impl Bench {
    fn run(flows: u32, test: impl FnOnce(&mut Self) + Send) {
        let here = Host::new("here").unwrap();
        let link = here.join(&Host::new("there").unwrap()).unwrap();
        let interface = link.left.index;
        here.run(|| {
            test(&mut Self {
                programs: Programs::following(flows, &HOOKS),
                interface,
            });
        });
    }

    fn comes_in(&self, frame: &[u8]) -> bool {
        self.programs.lets_pass(Hook::TcIngress, frame, self.interface)
    }

    fn goes_out(&self, frame: &[u8]) -> bool {
        self.programs.lets_pass(Hook::CgroupEgress, frame, self.interface)
    }
}

fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    ethernet().ipv4(from.0, to.0).udp(from.1, to.1).build()
}

fn what_is_answered_comes_in_and_what_is_not_asked_for_does_not() {
    Bench::run(4096, |bench| {
        bench.programs.apply(&only_answers());
        let answer = udp((THERE, 53), (HERE, 40_000));
        assert!(!bench.comes_in(&answer));
        assert!(bench.goes_out(&udp((HERE, 40_000), (THERE, 53))));
        assert!(bench.comes_in(&answer));
        for (from, to) in [
            ((THERE, 53), (HERE, 40_001)),
            ((THERE, 54), (HERE, 40_000)),
            (("198.51.100.8", 53), (HERE, 40_000)),
        ] {
            assert!(!bench.comes_in(&udp(from, to)), "{from:?} {to:?}");
        }
        // Seen from the other side of the host, it is another flow: what was sent from here does not come in here.
        assert!(!bench.comes_in(&udp((HERE, 40_000), (THERE, 53))));

        let echo = |request: bool, id| {
            let there = ethernet().ipv4(HERE, THERE);
            let back = ethernet().ipv4(THERE, HERE);
            if request {
                there.icmp_echo_request(id, 1).build()
            } else {
                back.icmp_echo_reply(id, 1).build()
            }
        };
        assert!(!bench.comes_in(&echo(false, 7)));
        assert!(bench.goes_out(&echo(true, 7)));
        assert!(bench.comes_in(&echo(false, 7)));
        assert!(!bench.comes_in(&echo(false, 8)));

        let tcp = |from: (&str, u16), to: (&str, u16)| ethernet().ipv4(from.0, to.0).tcp(from.1, to.1);
        assert!(!bench.comes_in(&tcp((THERE, 443), (HERE, 40_000)).syn().build()));
        assert!(bench.goes_out(&tcp((HERE, 40_000), (THERE, 443)).syn().build()));
        assert!(bench.comes_in(&tcp((THERE, 443), (HERE, 40_000)).syn().ack().build()));
        assert!(bench.goes_out(&tcp((HERE, 40_000), (THERE, 443)).ack().build()));
        assert!(bench.comes_in(&tcp((THERE, 443), (HERE, 40_000)).ack().payload([0; 9]).build()));
        // A connection that was there before the enforcer: it would be allowed the other way round.
        assert!(bench.comes_in(&tcp((THERE, 22), (HERE, 50_000)).ack().build()));
        assert!(!bench.comes_in(&tcp((THERE, 50_000), (HERE, 22)).syn().build()));
    });
}

fn an_error_comes_in_if_it_is_about_a_flow() {
    Bench::run(4096, |bench| {
        let mut policy = only_answers();
        bench.programs.apply(&policy);
        let asked = udp((HERE, 40_000), (THERE, 53));
        let error = |about: &[u8]| ethernet().ipv4("203.0.113.1", HERE).icmp_time_exceeded(about).build();
        assert!(!bench.comes_in(&error(&asked)));
        assert!(bench.goes_out(&asked));
        assert!(bench.comes_in(&error(&asked)));
        assert!(!bench.comes_in(&error(&udp((HERE, 40_001), (THERE, 53)))));
        // About what somebody else has sent: it is no answer to that.
        let elsewhere = ethernet()
            .ipv4("203.0.113.1", "192.0.2.9")
            .icmp_time_exceeded(&asked)
            .build();
        assert!(!bench.comes_in(&elsewhere));

        for (key, name) in [("type", "no-times"), ("state", "no-related")] {
            let mut rule = Rule::new(name, Action::Block);
            rule.protocol = Some(Protocol::ICMP);
            match key {
                "type" => rule.icmp_type = vec![Range::single(11)],
                _ => rule.icmp_type = vec![Range::single(3)],
            }
            rule.state = vec![State::Related];
            policy.rules = vec![rule];
            bench.programs.apply(&policy);
            assert_eq!(bench.comes_in(&error(&asked)), key == "state", "{name}");
        }

        // Without essentials it is judged as the flow is.
        policy.essentials = false;
        policy.rules.clear();
        bench.programs.apply(&policy);
        assert!(bench.goes_out(&asked));
        assert!(bench.comes_in(&error(&asked)));
        assert!(!bench.comes_in(&error(&udp((HERE, 40_001), (THERE, 53)))));
    });
}

fn a_flow_that_is_blocked_ends_in_both_directions() {
    Bench::run(4096, |bench| {
        let mut policy = only_answers();
        bench.programs.apply(&policy);
        let tcp = |from: (&str, u16), to: (&str, u16)| ethernet().ipv4(from.0, to.0).tcp(from.1, to.1);
        let (near, far) = ((HERE, 40_000), (THERE, 443));
        assert!(bench.goes_out(&tcp(near, far).syn().build()));
        assert!(bench.comes_in(&tcp(far, near).syn().ack().build()));
        assert!(bench.goes_out(&tcp(near, far).ack().build()));
        assert!(bench.comes_in(&tcp(far, near).ack().build()));
        let mut rule = Rule::new("no-web", Action::Block);
        rule.direction = Some(Direction::Egress);
        rule.protocol = Some(Protocol::TCP);
        rule.destination_ports = vec![Range::single(443)];
        policy.rules = vec![rule];
        let names = bench.programs.apply(&policy);
        // The answer is judged as the packet that began the flow, whichever of the two comes first.
        assert!(!bench.comes_in(&tcp(far, near).ack().build()));
        assert!(!bench.goes_out(&tcp(near, far).ack().build()));
        assert!(!bench.comes_in(&tcp(far, near).ack().build()));
        assert_eq!(packets(&bench.programs.by_rule(names.len())[0]), [0, 0, 3]);
        // And it is allowed again when the rule goes.
        policy.rules.clear();
        bench.programs.apply(&policy);
        assert!(bench.comes_in(&tcp(far, near).ack().build()));
        assert!(bench.goes_out(&tcp(near, far).ack().build()));
    });
}

fn what_would_be_blocked_begins_no_flow() {
    Bench::run(4096, |bench| {
        let mut policy = only_answers();
        policy.mode = Mode::Observe;
        policy.defaults.egress = DefaultVerdict::Deny;
        bench.programs.apply(&policy);
        let (asked, answer) = (udp((HERE, 40_000), (THERE, 53)), udp((THERE, 53), (HERE, 40_000)));
        assert!(bench.goes_out(&asked), "it is observed only");
        policy.mode = Mode::Block;
        bench.programs.apply(&policy);
        assert!(!bench.comes_in(&answer));
        assert!(!bench.goes_out(&asked));
        assert!(!bench.comes_in(&answer));
    });
}

/// Whose socket it was, an answer does not show.
fn a_flow_goes_on_by_what_only_its_first_packet_showed() {
    Bench::run(4096, |bench| {
        let mut policy = only_answers();
        policy.defaults.egress = DefaultVerdict::Deny;
        let mut rule = Rule::new("root", Action::Allow);
        rule.direction = Some(Direction::Egress);
        rule.uid = vec![Range::single(0)];
        policy.rules = vec![rule];
        bench.programs.apply(&policy);
        let (asked, answer) = (udp((HERE, 40_000), (THERE, 53)), udp((THERE, 53), (HERE, 40_000)));
        assert!(bench.goes_out(&asked));
        assert!(bench.comes_in(&answer));
        // Another policy by which it is allowed, too: the answer has to wait for nobody.
        policy.rules[0].name = "still-root".into();
        bench.programs.apply(&policy);
        assert!(bench.comes_in(&answer));
        // And one that allows somebody else. It ends with the next packet that shows whose it is.
        policy.rules[0].uid = vec![Range::single(1)];
        bench.programs.apply(&policy);
        assert!(bench.comes_in(&answer));
        assert!(!bench.goes_out(&asked));
        assert!(!bench.comes_in(&answer));
    });
}

/// F3: what nobody has answered has places of its own.
fn a_flood_of_half_open_flows_leaves_the_others_alone() {
    Bench::run(1024, |bench| {
        bench.programs.apply(&only_answers());
        let (near, far) = ((HERE, 40_000), (THERE, 443));
        let tcp = |from: (&str, u16), to: (&str, u16)| ethernet().ipv4(from.0, to.0).tcp(from.1, to.1);
        assert!(bench.goes_out(&tcp(near, far).syn().build()));
        assert!(bench.comes_in(&tcp(far, near).syn().ack().build()));
        assert!(bench.goes_out(&tcp(near, far).ack().build()));
        for port in 0..20_000 {
            assert!(bench.goes_out(&udp((HERE, port), (THERE, 9))));
        }
        let events = bench.programs.flow_events();
        assert_eq!((events.created, events.established), (20_001, 1));
        assert!(events.evicted_half_open > 5000, "{events:?}");
        assert_eq!(events.evicted_established, 0);
        // A datagram would not pass by itself, nor a SYN; this one belongs to the flow.
        let mut policy = only_answers();
        policy.defaults.egress = DefaultVerdict::Deny;
        let mut rule = Rule::new("web", Action::Allow);
        rule.state = vec![State::Established];
        policy.rules = vec![rule];
        bench.programs.apply(&policy);
        assert!(bench.comes_in(&tcp(far, near).ack().build()));
    });
}
