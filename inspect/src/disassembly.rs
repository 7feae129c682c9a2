//! Instructions as text, in the notation of the kernel's verifier (kernel/bpf/disasm.c).

use aya_obj::generated::bpf_insn;

use crate::helpers;

// The parts of an operation code (Documentation/bpf/standardization/instruction-set.rst).
const CLASS: u8 = 0x07;
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU: u8 = 0x04;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;

const OPERATION: u8 = 0xf0;
const FROM_REGISTER: u8 = 0x08;
const NEGATE: u8 = 0x80;
const MOVE: u8 = 0xb0;
const SWAP_BYTES: u8 = 0xd0;
const GO: u8 = 0x00;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
const MAY_GO: u8 = 0xe0;

const MODE: u8 = 0xe0;
const MODE_ABSOLUTE: u8 = 0x20;
const MODE_INDIRECT: u8 = 0x40;
const MODE_SIGNED: u8 = 0x80;
const MODE_ATOMIC: u8 = 0xc0;

/// The one operation code whose instruction takes two places.
const LOAD_64_BIT: u8 = 0x18;

/// Where control goes behind an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next one.
    On,
    /// To the next one, or by so many further.
    Branch(i64),
    /// By so many further than the next one.
    Jump(i64),
    /// Back to the caller.
    Exit,
}

/// How many places an instruction takes.
pub fn width(instruction: bpf_insn) -> usize {
    if instruction.code == LOAD_64_BIT { 2 } else { 1 }
}

/// Where control goes behind an instruction.
pub fn flow(instruction: bpf_insn) -> Flow {
    let class = instruction.code & CLASS;
    if class != JMP && class != JMP32 {
        return Flow::On;
    }
    match instruction.code & OPERATION {
        // The 32-bit class has the long jump in place of the short one.
        GO if class == JMP32 => Flow::Jump(instruction.imm.into()),
        GO => Flow::Jump(instruction.off.into()),
        CALL => Flow::On,
        EXIT => Flow::Exit,
        _ => Flow::Branch(instruction.off.into()),
    }
}

/// An instruction as text; `next` is the one behind it, `map` knows the names of maps and `function` those of the
/// functions that are called, by how many places further they start.
pub fn text(
    instruction: bpf_insn,
    next: Option<bpf_insn>,
    map: impl Fn(i32) -> Option<String>,
    function: impl Fn(i64) -> Option<String>,
) -> String {
    let (destination, source) = (instruction.dst_reg(), instruction.src_reg());
    match instruction.code & CLASS {
        LD if instruction.code == LOAD_64_BIT => {
            let high = next.map_or(0, |next| next.imm);
            format!("r{destination} = {}", constant(instruction, high, map, function))
        }
        LD => packet(instruction),
        LDX => {
            let signed = instruction.code & MODE == MODE_SIGNED;
            let size = size(instruction.code, signed);
            format!("r{destination} = *({size} *)(r{source} {:+})", instruction.off)
        }
        ST => {
            let size = size(instruction.code, false);
            format!(
                "*({size} *)(r{destination} {:+}) = {}",
                instruction.off, instruction.imm
            )
        }
        STX if instruction.code & MODE == MODE_ATOMIC => atomic(instruction),
        STX => {
            let size = size(instruction.code, false);
            format!("*({size} *)(r{destination} {:+}) = r{source}", instruction.off)
        }
        ALU | ALU64 => arithmetic(instruction),
        _ => jump(instruction, function),
    }
}

/// What a 64-bit load puts into the register: `src_reg` says what its two halves mean.
fn constant(
    instruction: bpf_insn,
    high: i32,
    map: impl Fn(i32) -> Option<String>,
    function: impl Fn(i64) -> Option<String>,
) -> String {
    const MAP: u8 = 1;
    const MAP_VALUE: u8 = 2;
    const FUNCTION: u8 = 4;
    let name = || map(instruction.imm).unwrap_or_else(|| format!("#{}", instruction.imm));
    match instruction.src_reg() {
        MAP => format!("map {}", name()),
        MAP_VALUE => format!("map {}[0] {high:+}", name()),
        FUNCTION => {
            let distance = i64::from(instruction.imm);
            format!(
                "address of {}",
                function(distance).unwrap_or_else(|| format!("pc{distance:+}"))
            )
        }
        _ => format!(
            "{:#x} ll",
            u64::from(high.cast_unsigned()) << 32 | u64::from(instruction.imm.cast_unsigned())
        ),
    }
}

fn packet(instruction: bpf_insn) -> String {
    let size = size(instruction.code, false);
    match instruction.code & MODE {
        MODE_ABSOLUTE => format!("r0 = *({size} *)skb[{}]", instruction.imm),
        MODE_INDIRECT => format!("r0 = *({size} *)skb[r{} {:+}]", instruction.src_reg(), instruction.imm),
        _ => unknown(instruction),
    }
}

fn size(code: u8, signed: bool) -> &'static str {
    match (code & 0x18, signed) {
        (0x00, false) => "u32",
        (0x08, false) => "u16",
        (0x10, false) => "u8",
        (_, false) => "u64",
        (0x00, true) => "s32",
        (0x08, true) => "s16",
        (0x10, true) => "s8",
        (_, true) => "s64",
    }
}

fn atomic(instruction: bpf_insn) -> String {
    const FETCH: i32 = 0x01;
    const EXCHANGE: i32 = 0xe1;
    const COMPARE_AND_EXCHANGE: i32 = 0xf1;
    const LOAD_ACQUIRE: i32 = 0x100;
    const STORE_RELEASE: i32 = 0x110;
    let (destination, source, offset) = (instruction.dst_reg(), instruction.src_reg(), instruction.off);
    let size = size(instruction.code, false);
    let place = format!("({size} *)(r{destination} {offset:+})");
    match instruction.imm {
        EXCHANGE => return format!("r{source} = atomic_xchg({place}, r{source})"),
        COMPARE_AND_EXCHANGE => return format!("r0 = atomic_cmpxchg({place}, r0, r{source})"),
        LOAD_ACQUIRE => return format!("r{destination} = load_acquire(({size} *)(r{source} {offset:+}))"),
        STORE_RELEASE => return format!("store_release({place}, r{source})"),
        _ => {}
    }
    let (name, sign) = match instruction.imm & !FETCH {
        0x00 => ("add", "+"),
        0x40 => ("or", "|"),
        0x50 => ("and", "&"),
        0xa0 => ("xor", "^"),
        _ => return unknown(instruction),
    };
    if instruction.imm & FETCH == 0 {
        format!("lock *{place} {sign}= r{source}")
    } else {
        format!("r{source} = atomic_fetch_{name}({place}, r{source})")
    }
}

fn arithmetic(instruction: bpf_insn) -> String {
    let wide = instruction.code & CLASS == ALU64;
    let letter = if wide { 'r' } else { 'w' };
    let destination = format!("{letter}{}", instruction.dst_reg());
    let from_register = instruction.code & FROM_REGISTER != 0;
    let source = if from_register {
        format!("{letter}{}", instruction.src_reg())
    } else {
        instruction.imm.to_string()
    };
    let signed = instruction.off != 0;
    let sign = match instruction.code & OPERATION {
        0x00 => "+=",
        0x10 => "-=",
        0x20 => "*=",
        0x30 if signed => "s/=",
        0x30 => "/=",
        0x40 => "|=",
        0x50 => "&=",
        0x60 => "<<=",
        0x70 => ">>=",
        0x90 if signed => "s%=",
        0x90 => "%=",
        0xa0 => "^=",
        MOVE if from_register && signed => return format!("{destination} = (s{}){source}", instruction.off),
        MOVE => "=",
        0xc0 => "s>>=",
        NEGATE => return format!("{destination} = -{destination}"),
        SWAP_BYTES => {
            let order = match (wide, from_register) {
                (true, _) => "bswap",
                (false, true) => "be",
                (false, false) => "le",
            };
            let register = instruction.dst_reg();
            return format!("r{register} = {order}{} r{register}", instruction.imm);
        }
        _ => return unknown(instruction),
    };
    format!("{destination} {sign} {source}")
}

fn jump(instruction: bpf_insn, function: impl Fn(i64) -> Option<String>) -> String {
    const OF_PROGRAM: u8 = 1;
    const OF_KERNEL: u8 = 2;
    let wide = instruction.code & CLASS == JMP;
    let operation = instruction.code & OPERATION;
    match (operation, flow(instruction)) {
        (CALL, _) => {
            let number = instruction.imm;
            return match instruction.src_reg() {
                OF_PROGRAM => {
                    let distance = i64::from(number);
                    format!(
                        "call {}",
                        function(distance).unwrap_or_else(|| format!("pc{distance:+}"))
                    )
                }
                OF_KERNEL => format!("call kernel function #{number}"),
                _ => helpers::name(number)
                    .map_or_else(|| format!("call helper #{number}"), |name| format!("call {name}")),
            };
        }
        (EXIT, _) => return "exit".to_owned(),
        (_, Flow::Jump(distance)) => return format!("goto {distance:+}"),
        _ => {}
    }
    let letter = if wide { 'r' } else { 'w' };
    let right = if instruction.code & FROM_REGISTER == 0 {
        format!("{:#x}", instruction.imm)
    } else {
        format!("{letter}{}", instruction.src_reg())
    };
    let sign = match operation {
        0x10 => "==",
        0x20 => ">",
        0x30 => ">=",
        0x40 => "&",
        0x50 => "!=",
        0x60 => "s>",
        0x70 => "s>=",
        0xa0 => "<",
        0xb0 => "<=",
        0xc0 => "s<",
        0xd0 => "s<=",
        MAY_GO => return format!("may_goto {:+}", instruction.off),
        _ => return unknown(instruction),
    };
    format!(
        "if {letter}{} {sign} {right} goto {:+}",
        instruction.dst_reg(),
        instruction.off
    )
}

fn unknown(instruction: bpf_insn) -> String {
    format!("unknown operation {:#04x}", instruction.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, destination: u8, source: u8, off: i16, imm: i32) -> bpf_insn {
        // SAFETY: an instruction is plain numbers, for which zero is a value.
        let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
        instruction.code = code;
        instruction.set_dst_reg(destination);
        instruction.set_src_reg(source);
        instruction.off = off;
        instruction.imm = imm;
        instruction
    }

    fn text_of(code: u8, destination: u8, source: u8, off: i16, imm: i32) -> String {
        let map = |descriptor| (descriptor == 1).then(|| "PACKETS".to_owned());
        text(instruction(code, destination, source, off, imm), None, map, |_| None)
    }

    /// Every line as the kernel's own disassembler prints it.
    #[test]
    fn instructions_are_written_as_the_verifier_writes_them() {
        for (text, expected) in [
            (text_of(0xb7, 0, 0, 0, 2), "r0 = 2"),
            (text_of(0xbf, 6, 1, 0, 0), "r6 = r1"),
            (text_of(0xb4, 1, 0, 0, -1), "w1 = -1"),
            (text_of(0x07, 2, 0, 0, -8), "r2 += -8"),
            (text_of(0x0c, 1, 2, 0, 0), "w1 += w2"),
            (text_of(0xcf, 1, 2, 0, 0), "r1 s>>= r2"),
            (text_of(0x3f, 1, 2, 1, 0), "r1 s/= r2"),
            (text_of(0x9f, 1, 2, 0, 0), "r1 %= r2"),
            (text_of(0xbf, 1, 2, 8, 0), "r1 = (s8)r2"),
            (text_of(0x87, 3, 0, 0, 0), "r3 = -r3"),
            (text_of(0xdc, 1, 0, 0, 16), "r1 = be16 r1"),
            (text_of(0xd4, 1, 0, 0, 32), "r1 = le32 r1"),
            (text_of(0xd7, 1, 0, 0, 64), "r1 = bswap64 r1"),
            (text_of(0x61, 2, 1, 4, 0), "r2 = *(u32 *)(r1 +4)"),
            (text_of(0x79, 2, 10, -16, 0), "r2 = *(u64 *)(r10 -16)"),
            (text_of(0x91, 2, 1, 0, 0), "r2 = *(s8 *)(r1 +0)"),
            (text_of(0x62, 10, 0, -4, 7), "*(u32 *)(r10 -4) = 7"),
            (text_of(0x6b, 1, 2, 2, 0), "*(u16 *)(r1 +2) = r2"),
            (text_of(0x73, 1, 2, 0, 0), "*(u8 *)(r1 +0) = r2"),
            (text_of(0xdb, 0, 1, 0, 0), "lock *(u64 *)(r0 +0) += r1"),
            (text_of(0xc3, 0, 1, 8, 0x41), "r1 = atomic_fetch_or((u32 *)(r0 +8), r1)"),
            (text_of(0xdb, 2, 1, 0, 0xe1), "r1 = atomic_xchg((u64 *)(r2 +0), r1)"),
            (
                text_of(0xdb, 2, 1, 0, 0xf1),
                "r0 = atomic_cmpxchg((u64 *)(r2 +0), r0, r1)",
            ),
            (text_of(0x28, 0, 0, 0, 12), "r0 = *(u16 *)skb[12]"),
            (text_of(0x50, 0, 3, 0, 4), "r0 = *(u8 *)skb[r3 +4]"),
            (text_of(0x05, 0, 0, -3, 0), "goto -3"),
            (text_of(0x06, 0, 0, 0, 70_000), "goto +70000"),
            (text_of(0x2d, 2, 3, 10, 0), "if r2 > r3 goto +10"),
            (text_of(0x15, 1, 0, 5, 8), "if r1 == 0x8 goto +5"),
            (text_of(0xd6, 1, 0, 5, 8), "if w1 s<= 0x8 goto +5"),
            (text_of(0xe5, 0, 0, 3, 0), "may_goto +3"),
            (text_of(0x85, 0, 0, 0, 1), "call map_lookup_elem"),
            (text_of(0x85, 0, 0, 0, 9999), "call helper #9999"),
            (text_of(0x85, 0, 1, 0, 12), "call pc+12"),
            (text_of(0x85, 0, 2, 0, 4711), "call kernel function #4711"),
            (text_of(0x95, 0, 0, 0, 0), "exit"),
            (text_of(0x18, 1, 1, 0, 1), "r1 = map PACKETS"),
            (text_of(0x18, 1, 1, 0, 9), "r1 = map #9"),
            (text_of(0xff, 0, 0, 0, 0), "unknown operation 0xff"),
        ] {
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_constant_of_64_bits_is_put_together_from_two_places() {
        let low = instruction(0x18, 3, 0, 0, -1);
        let high = instruction(0x00, 0, 0, 0, 1);
        assert_eq!(width(low), 2);
        assert_eq!(text(low, Some(high), |_| None, |_| None), "r3 = 0x1ffffffff ll");
        let of_map = instruction(0x18, 3, 2, 0, 1);
        assert_eq!(
            text(of_map, Some(high), |_| Some("RATE".into()), |_| None),
            "r3 = map RATE[0] +1"
        );
    }

    #[test]
    fn control_goes_on_branches_jumps_or_ends() {
        assert_eq!(flow(instruction(0xb7, 0, 0, 0, 0)), Flow::On);
        assert_eq!(flow(instruction(0x85, 0, 1, 0, 9)), Flow::On);
        assert_eq!(flow(instruction(0x2d, 2, 3, 10, 0)), Flow::Branch(10));
        assert_eq!(flow(instruction(0x05, 0, 0, -3, 0)), Flow::Jump(-3));
        assert_eq!(flow(instruction(0x06, 0, 0, 0, 70_000)), Flow::Jump(70_000));
        assert_eq!(flow(instruction(0x95, 0, 0, 0, 0)), Flow::Exit);
    }
}
