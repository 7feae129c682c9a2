//! eBPF objects written by hand, so that these tests need no compiler for eBPF.

use std::path::PathBuf;

use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    elf::R_BPF_64_64,
    write::{Object, Relocation, RelocationFlags, Symbol, SymbolSection},
};
use tempfile::TempDir;

/// `r0 = XDP_PASS; exit`
pub const PASS: &[u64] = &[0x0000_0002_0000_00b7, EXIT];
/// Reads the packet's first byte without having compared with its end, which the verifier rejects.
#[allow(dead_code, reason = "only the tests on the kernel need a program that is rejected")]
pub const UNCHECKED: &[u64] = &[0x0000_0000_0000_1261, 0x0000_0000_0000_2071, EXIT];
/// `r1 = map; if r1 == 0 goto +1; r0 = 2; r0 = 1; exit`: two ways that meet.
pub const WITH_MAP_AND_BRANCH: &[u64] = &[
    0x0000_0000_0000_0118,
    0x0000_0000_0000_0000,
    0x0000_0002_0000_00b7,
    0x0000_0000_0001_0115,
    0x0000_0001_0000_00b7,
    EXIT,
];
const EXIT: u64 = 0x0000_0000_0000_0095;

/// Writes an object with one XDP program, `judge`, and one array map, `PACKETS`; where the program's first instruction
/// loads a map, it is this one.
pub fn with_program(instructions: &[u64]) -> (TempDir, PathBuf) {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);

    let licence = object.add_section(vec![], b"license".to_vec(), SectionKind::Data);
    object.set_section_data(licence, b"GPL\0".to_vec(), 1);

    let maps = object.add_section(vec![], b"maps".to_vec(), SectionKind::Data);
    // struct bpf_map_def: type (array), key and value size, entries, flags, id, pinning.
    let definition: Vec<u8> = [2_u32, 4, 8, 16, 0, 0, 0]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    object.set_section_data(maps, definition, 4);
    let map = object.add_symbol(Symbol {
        name: b"PACKETS".to_vec(),
        value: 0,
        size: 28,
        kind: SymbolKind::Data,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(maps),
        flags: SymbolFlags::None,
    });

    let text = object.add_section(vec![], b"xdp".to_vec(), SectionKind::Text);
    let bytes: Vec<u8> = instructions
        .iter()
        .flat_map(|instruction| instruction.to_le_bytes())
        .collect();
    let size = bytes.len() as u64;
    object.set_section_data(text, bytes, 8);
    object.add_symbol(Symbol {
        name: b"judge".to_vec(),
        value: 0,
        size,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    if instructions == WITH_MAP_AND_BRANCH {
        let relocation = Relocation {
            offset: 0,
            symbol: map,
            addend: 0,
            flags: RelocationFlags::Elf { r_type: R_BPF_64_64 },
        };
        object.add_relocation(text, relocation).unwrap();
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judge.o");
    std::fs::write(&path, object.write().unwrap()).unwrap();
    (folder, path)
}
