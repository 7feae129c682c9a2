//! The programs, loaded, their tables, filled, and the links that hold them at a cgroup.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    pin::PinError,
    programs::{CgroupSkb, CgroupSockAddr, ProgramError, ProgramFd},
};
use lab01_count_packets::{
    counts::CountsError,
    load::{self, LoadError},
};
use thiserror::Error;

use crate::{
    attach::{AttachError, CgroupLink, Hook},
    cgroup::Cgroup,
    statistics::Counters,
    tables::{PolicyTables, TablesError, map_sizes},
};

/// Why a policy could not be brought into force. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum EnforcementError {
    /// The object could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A table could not be written.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A counter could not be read.
    #[error(transparent)]
    Counts(#[from] CountsError),
    /// A program could not be attached, or a link not be pinned.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The folder for pins.
    #[error("{} cannot be made a folder of pins: {cause}; take a new one below /sys/fs/bpf", folder.display())]
    PinFolder {
        /// The folder.
        folder: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// A map or program could not be pinned.
    #[error("{} cannot be pinned: {cause}; pins live on bpffs: take a folder below /sys/fs/bpf", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The kernel's words.
        cause: PinError,
    },
}

/// All programs, loaded into the kernel and attached to nothing.
pub struct Loaded {
    ebpf: Ebpf,
    /// The tables that they look rules up in.
    pub tables: PolicyTables,
    /// What they have counted.
    pub counters: Counters,
}

impl Loaded {
    /// Loads `object`; all is pinned in `pins` too, if that is given.
    pub fn load(object: &[u8], max_entries: u32, pins: Option<&Path>) -> Result<Self, EnforcementError> {
        let mut ebpf = load::load_object(object, &map_sizes(max_entries))?;
        for hook in Hook::ALL {
            let loaded = match hook {
                Hook::Egress | Hook::Ingress => {
                    load::program::<CgroupSkb>(&mut ebpf, hook.name(), "cgroup_skb")?.load()
                }
                _ => load::program::<CgroupSockAddr>(&mut ebpf, hook.name(), "cgroup_sock_addr")?.load(),
            };
            loaded.map_err(|error| load::explain_program(hook.name(), error))?;
        }
        if let Some(folder) = pins {
            pin_all(&mut ebpf, folder)?;
        }
        Ok(Self {
            tables: PolicyTables::take(&mut ebpf)?,
            counters: Counters::take(&mut ebpf)?,
            ebpf,
        })
    }

    /// The program of a hook.
    pub fn program(&self, hook: Hook) -> Result<ProgramFd, ProgramError> {
        let program = self.ebpf.program(hook.name()).ok_or(ProgramError::NotLoaded)?;
        program.fd()?.try_clone().map_err(ProgramError::from)
    }

    /// Attaches the programs of `hooks` to `cgroup`, and pins the links in `pins`, if that is given.
    pub fn attach(
        &self,
        cgroup: &Cgroup,
        hooks: &[Hook],
        pins: Option<&Path>,
    ) -> Result<Vec<CgroupLink>, EnforcementError> {
        let mut links = Vec::new();
        for hook in hooks {
            let program = self
                .program(*hook)
                .map_err(|error| load::explain_program(hook.name(), error))?;
            let link = CgroupLink::attach(program.as_fd(), cgroup, *hook)?;
            if let Some(folder) = pins {
                link.pin(&folder.join(format!("{hook}_link")))?;
            }
            links.push(link);
        }
        Ok(links)
    }
}

/// Pins maps and programs under their names in a new folder.
fn pin_all(ebpf: &mut Ebpf, folder: &Path) -> Result<(), EnforcementError> {
    fs::create_dir(folder).map_err(|cause| EnforcementError::PinFolder {
        folder: folder.to_owned(),
        cause,
    })?;
    let failed = |path: PathBuf| move |cause| EnforcementError::Pin { path, cause };
    for (name, map) in ebpf.maps() {
        // bpffs keeps names with dots, such as .rodata, for itself.
        let path = folder.join(name.replace('.', "_"));
        map.pin(&path).map_err(failed(path))?;
    }
    for (name, program) in ebpf.programs_mut() {
        let path = folder.join(name);
        program.pin(&path).map_err(failed(path))?;
    }
    Ok(())
}
