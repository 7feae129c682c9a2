//! The states of flows against a table of transitions that was written by itself, from RFC 9293's diagram and from what
//! the chapter says (F3).

use lab03_tc_egress_common::flow::state::{Beginning, Signal, State, Step, begin, step};
use proptest::prelude::*;

/// State, who sends (`o`riginator or `r`esponder), what, and what follows; what is not here changes nothing.
const TRANSITIONS: &str = "
syn-sent           o  syn      syn-sent
syn-sent           r  syn      syn-received
syn-sent           r  syn-ack  syn-received
syn-sent           o  rst      reset
syn-sent           r  rst      reset
syn-received       o  syn      syn-received
syn-received       r  syn-ack  syn-received
syn-received       o  syn-ack  established
syn-received       o  ack      established
syn-received       o  fin      fin-by-originator
syn-received       o  rst      reset
syn-received       r  rst      reset
picked-up          o  syn      anew
picked-up          r  syn      anew
picked-up          o  ack      picked-up
picked-up          o  fin      picked-up
picked-up          r  ack      established
picked-up          r  fin      fin-by-responder
picked-up          o  rst      reset
picked-up          r  rst      reset
established        o  ack      established
established        r  ack      established
established        o  fin      fin-by-originator
established        r  fin      fin-by-responder
established        o  rst      reset
established        r  rst      reset
fin-by-originator  o  ack      fin-by-originator
fin-by-originator  r  ack      fin-by-originator
fin-by-originator  o  fin      fin-by-originator
fin-by-originator  r  fin      closed
fin-by-originator  o  rst      reset
fin-by-originator  r  rst      reset
fin-by-responder   o  ack      fin-by-responder
fin-by-responder   r  ack      fin-by-responder
fin-by-responder   r  fin      fin-by-responder
fin-by-responder   o  fin      closed
fin-by-responder   o  rst      reset
fin-by-responder   r  rst      reset
closed             o  syn      anew
closed             r  syn      anew
closed             o  rst      reset
closed             r  rst      reset
reset              o  syn      anew
reset              r  syn      anew
unreplied          o  data     unreplied
unreplied          r  data     replied
unreplied          o  reply    unreplied
unreplied          r  reply    replied
replied            r  data     replied
replied            o  data     stream
replied            r  reply    replied
replied            o  reply    stream
stream             o  data     stream
stream             r  data     stream
stream             o  reply    stream
stream             r  reply    stream
";

fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::Syn => "syn",
        Signal::SynAck => "syn-ack",
        Signal::Ack => "ack",
        Signal::Fin => "fin",
        Signal::Rst => "rst",
        Signal::Nonsense => "nonsense",
        Signal::Datagram => "data",
        Signal::Reply => "reply",
    }
}

fn model(state: &str, from_originator: bool, signal: Signal) -> &'static str {
    let who = if from_originator { "o" } else { "r" };
    let row = TRANSITIONS.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [from, by, what, to] if (from, by, what) == (state, who, signal_name(signal)) => Some(to),
            _ => None,
        }
    });
    row.unwrap_or("nothing")
}

fn name(step: Step) -> &'static str {
    match step {
        Step::To(state) => state.name(),
        Step::Nothing => "nothing",
        Step::Anew => "anew",
    }
}

#[test]
fn every_state_meets_every_signal_from_either_end_as_the_table_says() {
    for state in State::ALL {
        for signal in Signal::ALL {
            for from_originator in [true, false] {
                let told = (state.name(), from_originator, signal_name(signal));
                assert_eq!(
                    name(step(state, from_originator, signal)),
                    model(state.name(), from_originator, signal),
                    "{told:?}"
                );
            }
        }
    }
}

#[test]
fn every_number_of_a_state_is_its_own() {
    for state in State::ALL {
        assert_eq!(State::from_number(state as u8), Some(state));
    }
    assert_eq!(State::from_number(0), None);
    assert_eq!(State::from_number(12), None);
}

#[test]
fn flags_mean_what_rfc_9293_says() {
    for flags in 0..=u8::MAX {
        let is_set = |bit: u8| flags >> bit & 1 == 1;
        let (fin, syn, rst, ack) = (is_set(0), is_set(1), is_set(2), is_set(4));
        let expected = match (rst, syn, fin, ack) {
            (true, false, false, _) => "rst",
            (false, true, false, false) => "syn",
            (false, true, false, true) => "syn-ack",
            (false, false, true, true) => "fin",
            (false, false, false, true) => "ack",
            _ => "nonsense",
        };
        assert_eq!(signal_name(Signal::of_tcp_flags(flags)), expected, "{flags:08b}");
    }
}

proptest! {
    #[test]
    fn no_flow_is_proven_unless_its_originator_has_spoken_after_the_responder(
        signals in prop::collection::vec((0..8_usize, any::<bool>()), 1..40)
    ) {
        let mut state: Option<(State, bool)> = None;
        let mut responder_spoke = false;
        let mut originator_after = false;
        for (signal, by_first) in signals {
            let signal = Signal::ALL[signal];
            let first = begin(signal);
            let next =
                state.map(|(state, first_is_originator)| step(state, by_first == first_is_originator, signal));
            match (state, next) {
                (None, _) | (_, Some(Step::Anew)) => {
                    let Some(Beginning { state: began, sender_is_originator }) = first else { continue };
                    state = Some((began, by_first == sender_is_originator));
                    (responder_spoke, originator_after) = (!sender_is_originator, false);
                }
                (Some((_, first_is_originator)), Some(next)) => {
                    if by_first == first_is_originator {
                        originator_after |= responder_spoke;
                    } else {
                        responder_spoke = true;
                    }
                    if let Step::To(to) = next {
                        state = Some((to, first_is_originator));
                    }
                }
                _ => {}
            }
            if let Some((state, _)) = state && state.is_proven() {
                // One that was picked up has been heard by the responder before it was seen.
                let picked_up = matches!(state, State::Established | State::FinByResponder | State::FinByOriginator | State::Closed);
                prop_assert!(responder_spoke && (originator_after || picked_up), "{state:?}");
            }
        }
    }
}
