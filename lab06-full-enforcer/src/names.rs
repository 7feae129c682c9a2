//! Looks up what a policy names on this host.

use std::{collections::BTreeSet, io};

use enforcer_policy::Policy;
use lab01_count_packets::interface::Interface;
use lab04_cgroup_policy::cgroup::{CgroupError, Hierarchy};
use lab06_full_enforcer_compiler::names::{CgroupId, cgroups, interfaces, level};
pub use lab06_full_enforcer_compiler::names::{ImaginedSocket, Names};
use thiserror::Error;

/// Why it cannot be said whether an interface or a cgroup is there. Each text names cause and mend.
#[derive(Debug, Error)]
pub enum CannotLookUp {
    /// An interface.
    #[error("interface {name} cannot be looked up: {cause}; {}", mend(cause))]
    Interface {
        /// Its name.
        name: String,
        /// The kernel's words.
        cause: io::Error,
    },
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

fn mend(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "allow more open files (`ulimit -n`, LimitNOFILE= of systemd)",
        _ => "see netdevice(7)",
    }
}

/// Looks up on this host what a policy names. What is not there is left out; what cannot be looked up is an error.
pub fn on_this_host(policy: &Policy) -> Result<Names, CannotLookUp> {
    let mut names = Names::default();
    for name in interfaces(policy).collect::<BTreeSet<_>>() {
        let found = Interface::look_up(name).map_err(|cause| CannotLookUp::Interface {
            name: name.clone(),
            cause,
        })?;
        names.interfaces.extend(found.map(|found| (found.name, found.index)));
    }
    let paths: BTreeSet<&String> = cgroups(policy).collect();
    if paths.is_empty() {
        return Ok(names);
    }
    // Asked twice a second: the hierarchy is looked for where a policy names a cgroup only.
    let hierarchy = match Hierarchy::find() {
        Err(CgroupError::NoCgroup2) => return Ok(names),
        hierarchy => hierarchy?,
    };
    for path in paths {
        match hierarchy.open(path.as_ref()) {
            Ok(cgroup) => {
                let (id, level) = (cgroup.id(), level(path));
                names.cgroups.insert(path.clone(), CgroupId { id, level });
            }
            Err(CgroupError::Missing { .. } | CgroupError::Elsewhere { .. }) => {}
            Err(CgroupError::Refused { cause, .. }) if is_gone(&cause) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(names)
}

/// Whether a cgroup was just being removed, or what is above it in its path is none.
fn is_gone(cause: &io::Error) -> bool {
    matches!(
        cause.raw_os_error(),
        Some(libc::ENODEV | libc::ENOTDIR | libc::ENAMETOOLONG)
    )
}
