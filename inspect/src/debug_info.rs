//! Names of functions and lines of the source, from an object's BTF (Documentation/bpf/btf.rst in the kernel).

use std::collections::HashMap;

use aya_obj::Function;

const MAGIC: u16 = 0xeb9f;
const KIND_FUNC: u32 = 12;

/// What BTF says about names and places.
pub struct DebugInfo {
    strings: Vec<u8>,
    function_names: HashMap<u32, u32>,
}

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's path as the compiler had it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The line's text, if the compiler could read it.
    pub text: String,
}

impl DebugInfo {
    /// Reads the section `.BTF`; `None` if it is not understood.
    pub fn parse(section: &[u8]) -> Option<Self> {
        // magic u16, version u8, flags u8, then as u32 the header's length, and offset and length of types and strings.
        if u16::from_le_bytes(*section.first_chunk()?) != MAGIC {
            return None;
        }
        let header_len = word(section, 4)? as usize;
        let part = |offset: u32, length: u32| {
            let start = header_len + offset as usize;
            section.get(start..start + length as usize)
        };
        let types = part(word(section, 8)?, word(section, 12)?)?;
        let strings = part(word(section, 16)?, word(section, 20)?)?;
        Some(Self {
            strings: strings.to_owned(),
            function_names: function_names(types)?,
        })
    }

    /// The name of the function that starts at instruction `start` of a linked program.
    pub fn function_name(&self, function: &Function, start: usize) -> Option<String> {
        let info = function
            .func_info
            .func_info
            .iter()
            .find(|info| info.insn_off as usize == start)?;
        let name = self.string(*self.function_names.get(&info.type_id)?)?;
        Some(demangled(name))
    }

    /// The place in the source from which an instruction of a linked program comes.
    pub fn place(&self, function: &Function, instruction: usize) -> Option<Place> {
        let lines = &function.line_info.line_info;
        let line = lines
            .iter()
            .filter(|line| line.insn_off as usize <= instruction)
            .max_by_key(|line| line.insn_off)?;
        Some(Place {
            file: self.string(line.file_name_off)?.to_owned(),
            // The low ten bits are the column.
            line: line.line_col >> 10,
            text: self.string(line.line_off)?.trim().to_owned(),
        })
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let text = self.strings.get(offset as usize..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&text[..end]).ok()
    }
}

/// A name as the programmer wrote it, without the hash.
pub fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// The name's offset of each type that is a function; types are numbered from 1 in their order.
fn function_names(types: &[u8]) -> Option<HashMap<u32, u32>> {
    let mut names = HashMap::new();
    let (mut place, mut id) = (0, 1);
    while place < types.len() {
        let (name, info) = (word(types, place)?, word(types, place + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == KIND_FUNC {
            names.insert(id, name);
        }
        place += 12 + trailing(kind, members);
        id += 1;
    }
    Some(names)
}

/// How many bytes follow the three words of a type.
fn trailing(kind: u32, members: usize) -> usize {
    const INT: u32 = 1;
    const ARRAY: u32 = 3;
    const STRUCT: u32 = 4;
    const UNION: u32 = 5;
    const ENUM: u32 = 6;
    const FUNC_PROTO: u32 = 13;
    const VAR: u32 = 14;
    const DATASEC: u32 = 15;
    const DECL_TAG: u32 = 17;
    const ENUM64: u32 = 19;
    match kind {
        INT | VAR | DECL_TAG => 4,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * members,
        ENUM | FUNC_PROTO => 8 * members,
        _ => 0,
    }
}

fn word(bytes: &[u8], place: usize) -> Option<u32> {
    bytes
        .get(place..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section with these types and strings.
    fn section(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let header = [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        let mut section = vec![0x9f, 0xeb, 1, 0];
        section.extend(header.iter().flat_map(|word| word.to_le_bytes()));
        section.extend(types);
        section.extend(strings);
        section
    }

    #[test]
    fn functions_are_found_behind_types_of_other_kinds() {
        // An int with its extra word, a prototype with one parameter, and a function called `count`.
        let types = [1, 1 << 24, 4, 32, 0, 13 << 24 | 1, 1, 0, 1, 5, 12 << 24, 2];
        let info = DebugInfo::parse(&section(&types, b"\0int\0count\0")).unwrap();
        assert_eq!(info.function_names, HashMap::from([(3, 5)]));
        assert_eq!(info.string(5), Some("count"));
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_refused() {
        let whole = section(&[1, 1 << 24, 4, 32], b"\0int\0");
        assert!(DebugInfo::parse(&whole).is_some());
        assert!(DebugInfo::parse(&whole[..whole.len() - 1]).is_none());
        assert!(DebugInfo::parse(b"something").is_none());
        assert!(DebugInfo::parse(&[]).is_none());
    }

    #[test]
    fn names_are_shown_as_the_programmer_wrote_them() {
        assert_eq!(demangled("_ZN3lab5count17h0123456789abcdefE"), "lab::count");
        assert_eq!(demangled("count_packets"), "count_packets");
    }
}
