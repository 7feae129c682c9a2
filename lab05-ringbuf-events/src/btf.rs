//! Where fields lie in the kernel's own structures, as the kernel's type information (BTF) tells.
//!
//! aya reads BTF as well, but keeps the members to itself. The format: <https://docs.kernel.org/bpf/btf.html>.

use std::{fs, io};

use lab05_ringbuf_events_common::process::Offsets;
use thiserror::Error;

/// The kernel's own types.
const PATH: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset is not known.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel tells nothing.
    #[error(
        "the kernel's type information ({PATH}) cannot be read: {0}; processes are watched with its help only: a kernel \
         with CONFIG_DEBUG_INFO_BTF=y has it, or leave processes out: --no-processes"
    )]
    Unreadable(io::Error),
    /// What it tells makes no sense.
    #[error("the kernel's type information ({PATH}) is not as expected: {0}")]
    Malformed(&'static str),
    /// It does not know this field.
    #[error("this kernel has no field {field} in its struct {structure}; leave processes out: --no-processes")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// The kernel's types.
pub struct Btf {
    /// By number; number 0 is `void`.
    types: Vec<Type>,
    strings: Vec<u8>,
}

struct Type {
    name: u32,
    kind: u32,
    /// For kinds that refer to one other type: its number.
    refers_to: u32,
    /// For structures and unions: name, type, and offset in bits.
    members: Vec<(u32, u32, u32)>,
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;

impl Btf {
    /// Reads the running kernel's.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(&fs::read(PATH).map_err(BtfError::Unreadable)?)
    }

    fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let word = |at: usize| word(bytes, at);
        if bytes.get(..2) != Some(&0xeb9f_u16.to_ne_bytes()) {
            return Err(BtfError::Malformed("it does not start with the magic number"));
        }
        let header_len = word(4)? as usize;
        let [types_at, types_len, strings_at, strings_len] = [word(8)?, word(12)?, word(16)?, word(20)?];
        let section = |at: u32, len: u32| {
            let start = header_len + at as usize;
            bytes
                .get(start..start + len as usize)
                .ok_or(BtfError::Malformed("a section ends behind the file"))
        };
        Ok(Self {
            types: parse_types(section(types_at, types_len)?)?,
            strings: section(strings_at, strings_len)?.to_vec(),
        })
    }

    /// The offset in bytes of a field of a structure, those of its nameless members included.
    pub fn offset(&self, structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
        let types = self.types.iter();
        types
            .filter(|candidate| candidate.kind == STRUCT && self.is_called(candidate.name, structure))
            .find_map(|found| self.offset_in(found, field, 0))
            .map(|bits| bits / 8)
            .ok_or(BtfError::NoField { structure, field })
    }

    fn offset_in(&self, structure: &Type, field: &str, depth: u32) -> Option<u32> {
        // Deeper than any structure of the kernel's; a circle would be no end.
        if depth > 16 {
            return None;
        }
        structure.members.iter().find_map(|(name, member_type, offset)| {
            if self.is_called(*name, field) {
                return Some(*offset);
            }
            if *name != 0 {
                return None;
            }
            let nameless = self.types.get(*member_type as usize)?;
            let inside = self.offset_in(nameless, field, depth + 1)?;
            Some(offset + inside)
        })
    }

    fn is_called(&self, name: u32, wanted: &str) -> bool {
        let text = self.strings.get(name as usize..).unwrap_or_default();
        text.strip_prefix(wanted.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// All that lab05's programs read of processes.
    pub fn process_offsets(&self) -> Result<Offsets, BtfError> {
        Ok(Offsets {
            task_pid: self.offset("task_struct", "pid")?,
            task_tgid: self.offset("task_struct", "tgid")?,
            task_real_parent: self.offset("task_struct", "real_parent")?,
            task_start_boottime: self.offset("task_struct", "start_boottime")?,
            task_exit_code: self.offset("task_struct", "exit_code")?,
            task_signal: self.offset("task_struct", "signal")?,
            task_mm: self.offset("task_struct", "mm")?,
            signal_live: self.offset("signal_struct", "live")?,
            mm_arg_start: self.offset("mm_struct", "arg_start")?,
            mm_arg_end: self.offset("mm_struct", "arg_end")?,
            binprm_filename: self.offset("linux_binprm", "filename")?,
            padding: 0,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    bytes
        .map(u32::from_ne_bytes)
        .ok_or(BtfError::Malformed("it ends in the middle"))
}

fn parse_types(bytes: &[u8]) -> Result<Vec<Type>, BtfError> {
    let void = Type {
        name: 0,
        kind: 0,
        refers_to: 0,
        members: Vec::new(),
    };
    let mut types = vec![void];
    let mut at = 0;
    while at < bytes.len() {
        let (name, info, size_or_type) = (word(bytes, at)?, word(bytes, at + 4)?, word(bytes, at + 8)?);
        at += 12;
        let (count, kind, has_bit_fields) = ((info & 0xffff) as usize, info >> 24 & 0x1f, info >> 31 != 0);
        let mut members = Vec::new();
        let behind = match kind {
            // Nothing follows a pointer, a forward declaration, a name for another type, a qualifier, a function, a
            // floating-point number and a tag of a type.
            2 | 7..=12 | 16 | 18 => 0,
            // An integer, a variable, a tag of a declaration.
            1 | 14 | 17 => 4,
            // An array.
            3 => 12,
            STRUCT | UNION => {
                for index in 0..count {
                    let member = at + index * 12;
                    let offset = word(bytes, member + 8)?;
                    let bits = if has_bit_fields { offset & 0x00ff_ffff } else { offset };
                    members.push((word(bytes, member)?, word(bytes, member + 4)?, bits));
                }
                count * 12
            }
            // An enumeration, and the parameters of a function.
            6 | 13 => count * 8,
            // A section, and an enumeration of 64 bits.
            15 | 19 => count * 12,
            _ => {
                return Err(BtfError::Malformed(
                    "it has a kind of type that is newer than this program",
                ));
            }
        };
        at += behind;
        types.push(Type {
            name,
            kind,
            refers_to: size_or_type,
            members,
        });
    }
    // A qualifier may stand before a nameless member's structure: what refers to a structure is read as that structure.
    for index in 0..types.len() {
        let target = types[index].refers_to as usize;
        if matches!(types[index].kind, 8..=11) && target < types.len() {
            let members = types[target].members.clone();
            types[index].members = members;
        }
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_tells_all_offsets_and_no_two_are_the_same() {
        let Ok(btf) = Btf::of_kernel() else {
            return;
        };
        let offsets = btf.process_offsets().unwrap();
        let of_task = [
            offsets.task_pid,
            offsets.task_tgid,
            offsets.task_real_parent,
            offsets.task_start_boottime,
            offsets.task_exit_code,
            offsets.task_signal,
            offsets.task_mm,
        ];
        let distinct: std::collections::BTreeSet<u32> = of_task.into_iter().collect();
        assert_eq!(distinct.len(), of_task.len(), "{offsets:?}");
        assert_eq!(offsets.task_tgid, offsets.task_pid + 4);
        assert_eq!(offsets.mm_arg_end, offsets.mm_arg_start + 8);
    }

    #[test]
    fn a_field_that_is_not_there_is_named_with_the_way_around_it() {
        let Ok(btf) = Btf::of_kernel() else {
            return;
        };
        let error = btf.offset("task_struct", "no_such_field").unwrap_err();
        assert_eq!(
            error.to_string(),
            "this kernel has no field no_such_field in its struct task_struct; leave processes out: --no-processes"
        );
    }

    #[test]
    fn what_is_no_type_information_is_refused() {
        for bytes in [
            &b""[..],
            b"\x9f\xeb",
            &[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 99, 0, 0, 0],
        ] {
            assert!(Btf::parse(bytes).is_err());
        }
    }
}
