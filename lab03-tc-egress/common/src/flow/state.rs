//! The states of a flow, and what a packet does to them.
//!
//! TCP as RFC 9293 has it, seen from the middle: without sequence numbers, and therefore without judging whether an end
//! will accept what is seen. UDP and everything else by who has spoken, echo requests by who has asked.

/// What a packet says to the flow that it belongs to.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// TCP: SYN alone.
    Syn = 0,
    /// TCP: SYN and ACK.
    SynAck = 1,
    /// TCP: ACK, and none of SYN, FIN, RST.
    Ack = 2,
    /// TCP: FIN.
    Fin = 3,
    /// TCP: RST.
    Rst = 4,
    /// TCP with flags that no host sends: SYN with FIN, or nothing of SYN, ACK, FIN, RST.
    Nonsense = 5,
    /// A datagram of another protocol, or an echo request.
    Datagram = 6,
    /// An echo reply: only ever an answer.
    Reply = 7,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Syn,
        Self::SynAck,
        Self::Ack,
        Self::Fin,
        Self::Rst,
        Self::Nonsense,
        Self::Datagram,
        Self::Reply,
    ];

    /// From its number, of which the three lowest bits count.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number & 7 {
            0 => Self::Syn,
            1 => Self::SynAck,
            2 => Self::Ack,
            3 => Self::Fin,
            4 => Self::Rst,
            5 => Self::Nonsense,
            6 => Self::Datagram,
            _ => Self::Reply,
        }
    }

    /// What TCP's flags mean, RFC 9293 section 3.1.
    #[inline(always)]
    pub const fn of_tcp_flags(flags: u8) -> Self {
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        if flags & RST != 0 {
            return if flags & (SYN | FIN) == 0 {
                Self::Rst
            } else {
                Self::Nonsense
            };
        }
        match (flags & SYN != 0, flags & FIN != 0, flags & ACK != 0) {
            (true, false, false) => Self::Syn,
            (true, false, true) => Self::SynAck,
            (false, true, true) => Self::Fin,
            (false, false, true) => Self::Ack,
            _ => Self::Nonsense,
        }
    }
}

/// Where a flow stands.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// TCP: a SYN was sent.
    SynSent = 1,
    /// TCP: a SYN was answered.
    SynReceived = 2,
    /// TCP: seen in the middle of the connection, one direction so far.
    PickedUp = 3,
    /// TCP: both ends have shown that they hear each other.
    Established = 4,
    /// TCP: the originator has nothing more to send.
    FinByOriginator = 5,
    /// TCP: the responder has nothing more to send.
    FinByResponder = 6,
    /// TCP: neither has.
    Closed = 7,
    /// TCP: one end has broken it off.
    Reset = 8,
    /// Other: nobody has answered.
    Unreplied = 9,
    /// Other: somebody has answered.
    Replied = 10,
    /// Other: the originator has gone on after an answer.
    Stream = 11,
}

impl State {
    /// One more than the highest number of a state: the size of an array that is indexed by them.
    pub const COUNT: usize = 12;

    /// All of them.
    pub const ALL: [Self; Self::COUNT - 1] = [
        Self::SynSent,
        Self::SynReceived,
        Self::PickedUp,
        Self::Established,
        Self::FinByOriginator,
        Self::FinByResponder,
        Self::Closed,
        Self::Reset,
        Self::Unreplied,
        Self::Replied,
        Self::Stream,
    ];

    /// From its number; `None` for what is none.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::SynSent,
            2 => Self::SynReceived,
            3 => Self::PickedUp,
            4 => Self::Established,
            5 => Self::FinByOriginator,
            6 => Self::FinByResponder,
            7 => Self::Closed,
            8 => Self::Reset,
            9 => Self::Unreplied,
            10 => Self::Replied,
            11 => Self::Stream,
            _ => return None,
        })
    }

    /// A name for people and for JSON, in kebab case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::PickedUp => "picked-up",
            Self::Established => "established",
            Self::FinByOriginator => "fin-by-originator",
            Self::FinByResponder => "fin-by-responder",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Unreplied => "unreplied",
            Self::Replied => "replied",
            Self::Stream => "stream",
        }
    }

    // ANCHOR: proven
    /// Whether both ends are known to be there, because the originator has heard the responder. Only such flows may stay
    /// where they can push out others: whoever forges addresses hears nothing.
    #[inline(always)]
    pub const fn is_proven(self) -> bool {
        matches!(
            self,
            Self::Established | Self::FinByOriginator | Self::FinByResponder | Self::Closed | Self::Stream
        )
    }
    // ANCHOR_END: proven
}

const SECOND_NS: u64 = 1_000_000_000;

/// How long a flow may be silent in each state, in nanoseconds, by the state's number.
///
/// Established TCP is 2 hours and 4 minutes and what is half open or closing 4 minutes in RFC 5382 (REQ-5); UDP 2 minutes
/// in RFC 4787 (REQ-5); ICMP 60 seconds in RFC 5508 (REQ-2). Shorter where those speak of what an address translator
/// must not forget, and nothing is lost here by forgetting: unanswered SYNs and datagrams, closed and reset connections.
pub const IDLE_NS: [u64; State::COUNT] = {
    let mut idle = [0; State::COUNT];
    idle[State::SynSent as usize] = 60 * SECOND_NS;
    idle[State::SynReceived as usize] = 60 * SECOND_NS;
    idle[State::PickedUp as usize] = 60 * SECOND_NS;
    idle[State::Established as usize] = (2 * 3600 + 4 * 60) * SECOND_NS;
    idle[State::FinByOriginator as usize] = 240 * SECOND_NS;
    idle[State::FinByResponder as usize] = 240 * SECOND_NS;
    idle[State::Closed as usize] = 60 * SECOND_NS;
    idle[State::Reset as usize] = 10 * SECOND_NS;
    idle[State::Unreplied as usize] = 30 * SECOND_NS;
    idle[State::Replied as usize] = 60 * SECOND_NS;
    idle[State::Stream as usize] = 120 * SECOND_NS;
    idle
};

/// How a flow begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Its first state.
    pub state: State,
    /// Whether the packet's sender is the originator. A SYN that is being answered came from the other end.
    pub sender_is_originator: bool,
}

// ANCHOR: begin
/// The flow that a packet begins which belongs to none; `None` if it begins none.
#[inline(always)]
pub const fn begin(signal: Signal) -> Option<Beginning> {
    let (state, sender_is_originator) = match signal {
        Signal::Syn => (State::SynSent, true),
        Signal::SynAck => (State::SynReceived, false),
        Signal::Ack | Signal::Fin => (State::PickedUp, true),
        Signal::Datagram => (State::Unreplied, true),
        Signal::Rst | Signal::Nonsense | Signal::Reply => return None,
    };
    Some(Beginning {
        state,
        sender_is_originator,
    })
}
// ANCHOR_END: begin

/// What a packet does to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes to this state, or stays in it, and is not silent.
    To(State),
    /// Nothing: not even that it is not silent.
    Nothing,
    /// It is over, and another one begins with this packet.
    Anew,
}

// ANCHOR: step
/// What a packet does to a flow in `state`; `from_originator` says who sent it.
#[inline(always)]
#[expect(clippy::match_same_arms, reason = "a table is read state by state")]
pub const fn step(state: State, from_originator: bool, signal: Signal) -> Step {
    match signal {
        Signal::Datagram | Signal::Reply => return step_datagram(state, from_originator),
        Signal::Nonsense => return Step::Nothing,
        _ => {}
    }
    match (state, from_originator, signal) {
        // A datagram's states, which TCP is never in.
        (State::Unreplied | State::Replied | State::Stream, ..) => Step::Nothing,
        // After the end a SYN begins anew; what is still under way does not keep the flow.
        (State::Closed | State::Reset, _, Signal::Syn) => Step::Anew,
        (State::Reset, ..) => Step::Nothing,
        (_, _, Signal::Rst) => Step::To(State::Reset),
        (State::Closed, ..) => Step::Nothing,

        // The SYN again, or two SYNs that cross each other.
        (State::SynSent, true, Signal::Syn) => Step::To(State::SynSent),
        (State::SynSent, false, Signal::SynAck | Signal::Syn) => Step::To(State::SynReceived),
        (State::SynReceived, true, Signal::Syn) | (State::SynReceived, false, Signal::SynAck) => {
            Step::To(State::SynReceived)
        }
        (State::SynReceived, true, Signal::Ack | Signal::SynAck) => Step::To(State::Established),
        (State::SynReceived, true, Signal::Fin) => Step::To(State::FinByOriginator),

        // What was there before us may be over for the ends before it is for us.
        (State::PickedUp, _, Signal::Syn) => Step::Anew,
        (State::PickedUp, true, Signal::Ack | Signal::Fin) => Step::To(State::PickedUp),
        (State::PickedUp, false, Signal::Ack) => Step::To(State::Established),
        (State::PickedUp, false, Signal::Fin) => Step::To(State::FinByResponder),

        (State::Established, true, Signal::Fin) => Step::To(State::FinByOriginator),
        (State::Established, false, Signal::Fin) => Step::To(State::FinByResponder),
        (State::FinByOriginator, false, Signal::Fin) | (State::FinByResponder, true, Signal::Fin) => {
            Step::To(State::Closed)
        }
        (State::Established | State::FinByOriginator | State::FinByResponder, _, Signal::Ack | Signal::Fin) => {
            Step::To(state)
        }
        _ => Step::Nothing,
    }
}

#[inline(always)]
const fn step_datagram(state: State, from_originator: bool) -> Step {
    match (state, from_originator) {
        (State::Unreplied, true) => Step::To(State::Unreplied),
        (State::Unreplied | State::Replied, false) => Step::To(State::Replied),
        (State::Replied, true) | (State::Stream, _) => Step::To(State::Stream),
        _ => Step::Nothing,
    }
}
// ANCHOR_END: step
