//! Loads an object's programs, attaches them to nothing, and keeps what the kernel says of them. All of it is gone
//! when the descriptors are closed; maps that would be pinned are not.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use aya_obj::{
    EbpfSectionKind, Map, Object,
    btf::Btf,
    generated::{BPF_F_XDP_HAS_FRAGS, bpf_map_type},
};

use crate::{
    bpf::{self, LOG_EVERYTHING, LOG_STATISTICS, Load},
    object_file::{self, Linked, ObjectFile},
    program_kind::{LoadAs, Target, attaches_to},
    verifier_log::{self, Statistics},
};

const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;
/// Room for the log of a rejected program, as much as Linux 5.10 takes (`UINT_MAX >> 8` in `kernel/bpf/verifier.c`).
/// The kernel keeps the end of longer ones since 6.4.
const LOG_BYTES: usize = (16 << 20) - 1;
/// Room for the figures alone.
const STATISTICS_BYTES: usize = 4 << 10;

/// What the kernel says.
pub enum Kernel {
    /// Something.
    Asked(Answers),
    /// Nothing, for this reason.
    NotAsked(String),
}

/// What the kernel says of an object.
pub struct Answers {
    /// The kernel's release.
    pub release: String,
    /// How much memory each map takes, in bytes.
    pub map_bytes: BTreeMap<String, u64>,
    /// What became of each program.
    pub programs: BTreeMap<String, Verdict>,
}

/// What became of a program.
pub enum Verdict {
    /// It was accepted.
    Accepted(Accepted),
    /// It was not: the cause, and the end of the verifier's log.
    Rejected { cause: String, log: Vec<String> },
    /// It could not be tried, for this reason.
    NotTried(String),
}

/// What the kernel says of a program that it accepted.
pub struct Accepted {
    /// How many instructions the verifier walked through, over all paths.
    pub verified: Option<u64>,
    /// The size of the program after the verifier has rewritten it, in bytes.
    pub translated_bytes: u32,
    /// The size of the machine code, in bytes; 0 where programs are interpreted.
    pub jited_bytes: u32,
    /// The stack, in bytes, of the program and of each function that it calls.
    pub stack_bytes: Vec<u64>,
    /// How long loading took, verification and compilation included.
    pub load_time: Duration,
}

impl Kernel {
    /// Asks the kernel, if we may.
    pub fn load(object: &ObjectFile, programs: &[Linked]) -> Self {
        if !may_load() {
            return Self::NotAsked(
                "without root (or CAP_BPF and what the programs need besides) nothing can be loaded: left out are \
                 verified instructions, translated and machine code, stack, load time and measured memory"
                    .into(),
            );
        }
        match ask(object, programs) {
            Ok(answers) => Self::Asked(answers),
            Err(error) => Self::NotAsked(format!("the object cannot be loaded: {error:#}")),
        }
    }
}

fn ask(object: &ObjectFile, programs: &[Linked]) -> Result<Answers> {
    let mut parsed = object.parsed.clone();
    let types = load_types(&mut parsed)?;
    let types = types.as_ref().map(OwnedFd::as_fd);
    let kernel_types = Btf::from_sys_fs().ok();
    if parsed.has_btf_relocations() {
        let kernel_types = kernel_types
            .as_ref()
            .context("it reads structures of the kernel, and /sys/kernel/btf/vmlinux is missing")?;
        parsed
            .relocate_btf(kernel_types)
            .context("it does not fit this kernel's structures")?;
    }

    let mut maps = BTreeMap::new();
    for (name, map) in &object.maps {
        let created = LoadedMap::create(name, map, types).with_context(|| format!("map {name} cannot be created"))?;
        maps.insert(name.as_str(), created);
    }
    let descriptors = object
        .maps
        .iter()
        .filter_map(|(name, map)| Some((name.as_str(), maps.get(name.as_str())?.descriptor().as_raw_fd(), map)));
    object_file::relocate(&mut parsed, descriptors)?;
    parsed.sanitize_functions(aya::features());

    let verdicts = programs.iter().map(|program| {
        (
            program.name.clone(),
            verdict(&parsed, program, types, kernel_types.as_ref()),
        )
    });
    Ok(Answers {
        release: fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned())?,
        map_bytes: maps
            .iter()
            .filter_map(|(name, map)| Some(((*name).to_owned(), map.bytes()?)))
            .collect(),
        programs: verdicts.collect(),
    })
}

fn load_types(object: &mut Object) -> Result<Option<OwnedFd>> {
    let Some(features) = aya::features().btf() else {
        return Ok(None);
    };
    let types = object
        .fixup_and_sanitize_btf(features)
        .context("the object's BTF cannot be understood")?;
    // A kernel that refuses the types takes most programs without them; which it does not, will be rejected below.
    Ok(types.and_then(|types| bpf::load_types(&types.to_bytes()).ok()))
}

/// A map in the kernel.
enum LoadedMap {
    Plain(MapData),
    OfMaps(OwnedFd),
}

impl LoadedMap {
    fn create(name: &str, map: &Map, types: Option<BorrowedFd>) -> Result<Self> {
        let map = sized(map.clone());
        if let Some(inner) = map.inner() {
            let inner = MapData::create(sized(inner), &format!("{name}.inner"), types)?;
            return Ok(Self::OfMaps(bpf::create_map_of_maps(&map, inner.fd().as_fd())?));
        }
        let data = map.data().to_owned();
        let is_read_only = map.section_kind() == EbpfSectionKind::Rodata;
        let loaded = MapData::create(map, name, types)?;
        if !data.is_empty() {
            bpf::set_only_element(loaded.fd().as_fd(), &data)?;
        }
        if is_read_only {
            bpf::freeze(loaded.fd().as_fd())?;
        }
        Ok(Self::Plain(loaded))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(map) => map.fd().as_fd(),
            Self::OfMaps(descriptor) => descriptor.as_fd(),
        }
    }

    /// The memory that the kernel counts for it.
    fn bytes(&self) -> Option<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.descriptor().as_raw_fd());
        let info = fs::read_to_string(path).ok()?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:"))?;
        bytes.trim().parse().ok()
    }
}

/// Gives a map the sizes that are left to the loader.
fn sized(mut map: Map) -> Map {
    use bpf_map_type as kind;
    match kind::try_from(map.map_type()) {
        Ok(kind::BPF_MAP_TYPE_RINGBUF) => {
            // SAFETY: sysconf takes no pointers.
            let page = u32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
            let pages = map.max_entries().div_ceil(page).next_power_of_two();
            map.set_max_entries(pages * page);
            map.set_value_size(0);
        }
        Ok(kind::BPF_MAP_TYPE_CPUMAP) => map.set_value_size(if aya::features().cpumap_prog_id() { 8 } else { 4 }),
        Ok(kind::BPF_MAP_TYPE_DEVMAP | kind::BPF_MAP_TYPE_DEVMAP_HASH) => {
            map.set_value_size(if aya::features().devmap_prog_id() { 8 } else { 4 });
        }
        _ => {}
    }
    map
}

fn verdict(object: &Object, program: &Linked, types: Option<BorrowedFd>, kernel_types: Option<&Btf>) -> Verdict {
    let load_as = LoadAs::of(&program.kind);
    let attach_btf_id = match attach_btf_id(&load_as, program, kernel_types) {
        Ok(id) => id,
        Err(why) => return Verdict::NotTried(why),
    };
    let Some((function, licence)) = object
        .functions
        .get(&program.key)
        .zip(object.programs.get(&program.name).map(|program| &program.license))
    else {
        return Verdict::NotTried("the object does not hold it any more".into());
    };
    let functions = function.func_info.func_info_bytes();
    let lines = function.line_info.line_info_bytes();
    let load = Load {
        name: &program.name,
        program_type: load_as.program_type as u32,
        attach_type: load_as.attach_type.map_or(0, |attach_type| attach_type as u32),
        flags: load_as.flags,
        instructions: &function.instructions,
        licence,
        attach_btf_id,
        types,
        functions: (&functions, function.func_info_rec_size),
        lines: (&lines, function.line_info_rec_size),
    };
    let loaded = match try_load(&load) {
        // A kernel before 5.18 hands over frames of one buffer, and does not know the flag for several.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && load.flags == BPF_F_XDP_HAS_FRAGS => {
            try_load(&Load { flags: 0, ..load })
        }
        loaded => loaded,
    };
    match loaded {
        Ok(accepted) => Verdict::Accepted(accepted),
        Err(error) => rejected(&load, &error),
    }
}

/// The kernel's number for what a tracing program attaches to.
fn attach_btf_id(load_as: &LoadAs, program: &Linked, kernel_types: Option<&Btf>) -> Result<u32, String> {
    let (prefix, kind) = match load_as.target {
        None => return Ok(0),
        Some(Target::Program) => return Err("it extends another program, which only its loader knows".into()),
        Some(Target::KernelType { prefix, kind }) => (prefix, kind),
    };
    let Some(target) = attaches_to(&program.section) else {
        return Err("its section does not say what it attaches to; only its loader knows".into());
    };
    let kernel_types =
        kernel_types.ok_or("the kernel offers no /sys/kernel/btf/vmlinux, in which its target stands")?;
    kernel_types
        .id_by_type_name_kind(&format!("{prefix}{target}"), kind)
        .map_err(|_| format!("this kernel has no {target}"))
}

fn try_load(load: &Load) -> io::Result<Accepted> {
    // Twice: the log costs time of its own, so the first load is for the clock.
    let started = Instant::now();
    let loaded = bpf::load_program(load, 0, &mut [])?;
    let load_time = started.elapsed();
    let info = bpf::program_info(loaded.as_fd())?;

    let mut log = vec![0; STATISTICS_BYTES];
    let statistics = match bpf::load_program(load, LOG_STATISTICS, &mut log) {
        Ok(_loaded) => Statistics::of(&text(&log)),
        Err(_) => Statistics::default(),
    };
    Ok(Accepted {
        // Kernels before 5.16 do not fill it in.
        verified: Some(u64::from(info.verified_insns))
            .filter(|count| *count > 0)
            .or(statistics.processed),
        translated_bytes: info.xlated_prog_len,
        jited_bytes: info.jited_prog_len,
        stack_bytes: statistics.stack_bytes,
        load_time,
    })
}

fn rejected(load: &Load, error: &io::Error) -> Verdict {
    let mut log = vec![0; LOG_BYTES];
    let cause = match bpf::load_program(load, LOG_EVERYTHING, &mut log) {
        Ok(_loaded) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Verdict::Rejected {
        cause,
        log: verifier_log::rejection(&text(&log)),
    }
}

/// What was written to the log, up to the first zero.
fn text(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

fn may_load() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    held & (1 << CAP_SYS_ADMIN | 1 << CAP_BPF) != 0
}
