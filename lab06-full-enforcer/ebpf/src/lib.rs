//! What the enforcer's programs are made of, for others to use. Defines no maps; it takes them.

#![no_std]
// Nothing in a program may panic: there is nobody to catch it, and the verifier would have to follow the message.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use core::{hint::black_box, marker::PhantomData, mem::MaybeUninit};

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::generated::{
        bpf_get_socket_uid, bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
    },
    programs::{SkBuffContext, TcContext, XdpContext},
};
use lab01_count_packets_common::{
    counter::Counter,
    headers::{self, Headers},
    packet::{Header, Packet},
};
use lab01_count_packets_ebpf::{count_at, load};
use lab02_xdp_firewall_common::transport::Malformed;
use lab03_tc_egress_ebpf::Frame;
use lab04_cgroup_policy_ebpf::IpPacket;
use lab06_full_enforcer_common::{
    call::Refused,
    classify::{Question, counting_matches},
    counters::{self, BY_REASON, Outcome, Reason},
    decision::{FromEthernet, Inspection, Parse},
    key::{Hook, Socket},
    sender::Sender,
    table::Tables,
};

use self::groups::SocketGroups;

pub mod groups;

/// The frame of a TC program. Its headers nearly always lie in the first piece, and are read there; but a packet socket puts
/// no more than the Ethernet header of a long frame into it.
pub struct InPieces<'a> {
    frame: Frame,
    ctx: &'a TcContext,
}

impl<'a> InPieces<'a> {
    /// The frame of this context.
    #[inline(always)]
    pub fn of(ctx: &'a TcContext) -> Self {
        Self {
            frame: Frame::of(ctx),
            ctx,
        }
    }

    /// How many bytes all pieces have together.
    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        self.frame.len()
    }
}

impl Packet for InPieces<'_> {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        self.frame.holds(bytes)
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        // No header begins behind that, as the parsers see to. Bounded here and not by a comparison: that would hold for a
        // register, and not for the copy on the stack that is kept for the second attempt.
        let offset = black_box(offset) & MAX_HEADER_OFFSET;
        match self.frame.read(offset) {
            Some(header) => Some(header),
            None => self.ctx.load(offset).ok(),
        }
    }
}

/// The frame of an XDP program. Its first buffer lies between `data` and `data_end`; a frame that is longer than a page has
/// further ones, of which older kernels know nothing.
pub struct InBuffers<'a, K> {
    start: usize,
    end: usize,
    len: usize,
    ctx: &'a XdpContext,
    kernel: PhantomData<K>,
}

/// Whether the kernel hands over frames of several buffers, and has helpers for them: Linux 5.18.
pub trait HasBuffers {
    /// Read from a constant of the program, so that the verifier leaves out what such a kernel would not know.
    fn has_buffers() -> bool;
}

impl<'a, K: HasBuffers> InBuffers<'a, K> {
    /// The frame of this context.
    #[inline(always)]
    pub fn of(ctx: &'a XdpContext) -> Self {
        let (start, end) = (ctx.data(), ctx.data_end());
        let len = if K::has_buffers() {
            // SAFETY: the context is valid for as long as the program runs.
            unsafe { bpf_xdp_get_buff_len(ctx.ctx) as usize }
        } else {
            end - start
        };
        Self {
            start,
            end,
            len,
            ctx,
            kernel: PhantomData,
        }
    }

    /// How many bytes all buffers have together.
    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        self.len as u64
    }
}

impl<K: HasBuffers> Packet for InBuffers<'_, K> {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        black_box(bytes) <= self.len
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        // As above.
        let offset = black_box(offset) & MAX_HEADER_OFFSET;
        let start = self.start + offset;
        if start + size_of::<H>() <= self.end {
            // SAFETY: the header lies between `data` and `data_end`, as was just compared.
            return Some(unsafe { load(start) });
        }
        if !K::has_buffers() {
            return None;
        }
        let mut header = MaybeUninit::<H>::uninit();
        let place = header.as_mut_ptr().cast();
        // SAFETY: the place is as long as is said.
        let result = unsafe { bpf_xdp_load_bytes(self.ctx.ctx, offset as u32, place, size_of::<H>() as u32) };
        // SAFETY: the helper has written all of it, and any bits make a `Header`.
        (result == 0).then(|| unsafe { header.assume_init() })
    }
}

impl<K: HasBuffers> Parse for InBuffers<'_, K> {
    #[inline(always)]
    fn headers(&self) -> Result<Headers, headers::Malformed> {
        FromEthernet(self).headers()
    }

    #[inline(always)]
    fn source_mac(&self) -> u64 {
        FromEthernet(self).source_mac()
    }
}

impl Parse for InPieces<'_> {
    #[inline(always)]
    fn headers(&self) -> Result<Headers, headers::Malformed> {
        FromEthernet(self).headers()
    }

    #[inline(always)]
    fn source_mac(&self) -> u64 {
        FromEthernet(self).source_mac()
    }
}

/// `MAX_TRANSPORT_OFFSET` of lab02's parser, all bits of which are set.
const MAX_HEADER_OFFSET: usize = 0x7fff;

/// Who sends the packet of a TC program.
#[inline(always)]
pub fn sender(ctx: &TcContext) -> Sender {
    // SAFETY: the context is the kernel's, and a TC program may read this field.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return Sender::Nobody;
    }
    // SAFETY: it is there, and these two fields can be read of any socket.
    let (family, state) = unsafe { ((*socket).family, (*socket).state) };
    // SAFETY: as above.
    let is_full = unsafe { !bpf_sk_fullsock(socket).is_null() };
    Sender::of_socket(family, state, is_full)
}

/// The packet of a `cgroup_skb` program, which begins with its IP header.
pub struct FromIp<'a>(pub IpPacket<'a>);

impl Packet for FromIp<'_> {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        self.0.holds(bytes)
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        self.0.read(offset)
    }
}

impl Parse for FromIp<'_> {
    #[inline(always)]
    fn headers(&self) -> Result<Headers, headers::Malformed> {
        self.0.headers()
    }
}

/// The socket that the packet of a `cgroup_skb` program is of, and where its group is kept.
#[derive(Clone, Copy)]
pub struct SocketOf<'a>(pub &'a SkBuffContext, pub &'a SocketGroups);

impl Socket for SocketOf<'_> {
    const IS_KNOWN: bool = true;

    #[inline(always)]
    fn uid(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { bpf_get_socket_uid(self.0.skb.skb) }
    }

    #[inline(always)]
    fn gid(&self) -> u64 {
        // SAFETY: the context is valid for as long as the program runs, and so is its socket.
        unsafe { self.1.of((*self.0.skb.skb).__bindgen_anon_2.sk) }
    }

    #[inline(always)]
    fn ancestor_cgroup(&self, level: u32) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0.skb.skb, level.cast_signed()) }
    }
}

/// How many counters by rule there are if the loader does not say how many.
pub const LEAST_BY_RULE: usize = 1024;

/// The counters of all programs.
pub struct Counters<'a> {
    /// By rule and outcome.
    pub by_rule: &'a PerCpuArray<Counter, LEAST_BY_RULE>,
    /// By hook, reason and outcome.
    pub by_reason: &'a PerCpuArray<Counter, { BY_REASON as usize }>,
    /// By the way in which a packet is malformed.
    pub malformed: &'a PerCpuArray<Counter, { Malformed::COUNT as usize }>,
}

impl Counters<'_> {
    /// Counts what was decided about a packet, and what becomes of it.
    #[inline(always)]
    pub fn count(&self, hook: Hook, inspection: &Inspection, outcome: Outcome, bytes: u64) {
        count_at(
            self.by_reason,
            counters::by_reason(hook, inspection.reason(), outcome),
            bytes,
        );
        // ANCHOR: count
        if let Some(rule) = inspection.rule() {
            count_at(self.by_rule, counters::by_rule(rule.id, outcome), bytes);
        }
        // ANCHOR_END: count
        if let Some(malformed) = inspection.malformed() {
            count_at(self.malformed, malformed, bytes);
        }
    }

    /// Counts a call that is refused. There is no packet, and no byte of one.
    #[inline(always)]
    pub fn count_call(&self, hook: Hook, refused: &Refused) {
        let outcome = Outcome::Dropped;
        count_at(self.by_reason, counters::by_reason(hook, refused.reason, outcome), 0);
        if refused.reason == Reason::Rule {
            count_at(self.by_rule, counters::by_rule(refused.rule.id, outcome), 0);
        }
    }

    /// Counts a packet under each of the rules that only count and come before the rule of this number.
    #[inline(always)]
    pub fn count_matches<T: Tables>(&self, question: Question, before: u32, bytes: u64, tables: &T) {
        counting_matches(tables, question, before, |rule| {
            count_at(self.by_rule, counters::by_rule(rule.id, Outcome::Passed), bytes);
        });
    }
}
