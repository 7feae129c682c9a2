//! An eBPF object as it lies on disk, and its programs with the functions that they call.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya_obj::{Function, Map, Object, ProgramSection, generated::bpf_insn};
use object::{Architecture, Object as _, ObjectSection as _};

use crate::debug_info::DebugInfo;

/// The first of the descriptors that stand for maps where none is loaded.
const FIRST_STANDIN: i32 = 1;

/// An eBPF object.
pub struct ObjectFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: usize,
    /// Its sections, those without contents left out.
    pub sections: Vec<Section>,
    /// The same as aya sees it, not relocated.
    pub parsed: Object,
    /// Its maps by name, in the order of their names.
    pub maps: BTreeMap<String, Map>,
    /// Names of functions and places in the source, if the object has BTF.
    pub debug_info: Option<DebugInfo>,
}

/// A section of the object.
pub struct Section {
    /// Its place in the file.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A program with all the functions that it calls behind it, as it goes to the kernel.
pub struct Linked {
    /// The program's name.
    pub name: String,
    /// The section it stands in, which names its kind and often what it attaches to.
    pub section: String,
    /// What the section says.
    pub kind: ProgramSection,
    /// Its key among the object's functions.
    pub key: (usize, u64),
    /// Its instructions; calls are relative, maps are named by stand-ins.
    pub function: Function,
}

impl ObjectFile {
    /// Reads and parses the file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let name = path.display();
        let elf = object::File::parse(&*bytes).map_err(|error| anyhow!("{name} is no object file: {error}"))?;
        if elf.architecture() != Architecture::Bpf {
            bail!("{name} is an object for another machine than eBPF: inspect what the lab's build leaves in OUT_DIR");
        }
        let sections = elf
            .sections()
            .filter(|section| section.size() > 0)
            .map(|section| Section {
                index: section.index().0,
                name: section.name().unwrap_or("?").to_owned(),
                size: section.size(),
            });
        let parsed = Object::parse(&bytes).map_err(|error| anyhow!("{name} cannot be understood: {error}"))?;
        Ok(Self {
            path: path.to_owned(),
            size: bytes.len(),
            sections: sections.collect(),
            maps: parsed
                .maps
                .iter()
                .map(|(name, map)| (name.clone(), map.clone()))
                .collect(),
            debug_info: elf
                .section_by_name(".BTF")
                .and_then(|section| DebugInfo::parse(section.data().ok()?)),
            parsed,
        })
    }

    /// The programs, linked without any kernel.
    pub fn link(&self) -> Result<Vec<Linked>> {
        let mut object = self.parsed.clone();
        let standins = self
            .maps
            .iter()
            .zip(FIRST_STANDIN..)
            .map(|((name, map), standin)| (name.as_str(), standin, map));
        relocate(&mut object, standins)?;
        let mut programs: Vec<_> = object
            .programs
            .iter()
            .filter_map(|(name, program)| {
                Some(Linked {
                    name: name.clone(),
                    section: self.section_name(program.section_index).to_owned(),
                    kind: program.section.clone(),
                    key: program.function_key(),
                    function: object.functions.get(&program.function_key())?.clone(),
                })
            })
            .collect();
        programs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(programs)
    }

    /// The map that a stand-in in a linked program's instructions means.
    pub fn map_of_standin(&self, standin: i32) -> Option<&str> {
        let index = usize::try_from(standin - FIRST_STANDIN).ok()?;
        self.maps.keys().nth(index).map(String::as_str)
    }

    fn section_name(&self, index: usize) -> &str {
        self.sections
            .iter()
            .find(|section| section.index == index)
            .map_or("?", |section| section.name.as_str())
    }
}

impl Linked {
    /// Where functions start: the program itself at 0, then those linked behind it.
    pub fn function_starts(&self) -> Vec<usize> {
        let mut starts = vec![0];
        for (index, instruction) in self.function.instructions.iter().enumerate() {
            if is_call_of_function(*instruction) || is_address_of_function(*instruction) {
                let distance = isize::try_from(instruction.imm).ok();
                starts.extend(distance.and_then(|distance| (index + 1).checked_add_signed(distance)));
            }
        }
        starts.sort_unstable();
        starts.dedup();
        starts
    }
}

/// Puts maps' descriptors and called functions into the programs' instructions.
pub fn relocate<'a>(object: &mut Object, maps: impl Iterator<Item = (&'a str, i32, &'a Map)>) -> Result<()> {
    let text_sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object
        .relocate_maps(maps, &text_sections)
        .context("the programs' maps cannot be resolved")?;
    object
        .relocate_calls(&text_sections)
        .context("the programs' calls cannot be resolved")
}

const CALL: u8 = 0x85;
const LOAD_64_BIT: u8 = 0x18;
const PSEUDO_CALL: u8 = 1;
const PSEUDO_FUNC: u8 = 4;

fn is_call_of_function(instruction: bpf_insn) -> bool {
    instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL
}

fn is_address_of_function(instruction: bpf_insn) -> bool {
    instruction.code == LOAD_64_BIT && instruction.src_reg() == PSEUDO_FUNC
}
