//! What interfaces and cgroups are called in a policy, and what the kernel knows them by.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_policy::{
    decide,
    model::{self, Policy},
};
use lab06_full_enforcer_common::key::{LOOPBACK, NO_GROUP, Socket};

/// The interfaces and cgroups that a policy names, as far as they are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Their indices.
    pub interfaces: BTreeMap<String, u32>,
    /// By their paths below the root, as policies have them.
    pub cgroups: BTreeMap<String, CgroupId>,
}

/// What the kernel knows a cgroup by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupId {
    /// Its id, which a cgroup that is removed and made again does not get again.
    pub id: u64,
    /// How far it is below the root, whose level is 0.
    pub level: u32,
}

impl Names {
    /// As if all of them were there, for those who ask about a policy and not about a host.
    pub fn imagined(policy: &Policy) -> Self {
        let names: BTreeSet<&String> = interfaces(policy).collect();
        let index = |name: &str, number| if name == decide::LOOPBACK { LOOPBACK } else { number };
        let interfaces = names.into_iter().zip(LOOPBACK + 1..);
        let paths: BTreeSet<&String> = cgroups(policy).collect();
        Self {
            interfaces: interfaces
                .map(|(name, number)| (name.clone(), index(name, number)))
                .collect(),
            cgroups: paths
                .into_iter()
                .zip(1..)
                .map(|(path, id)| (path.clone(), CgroupId { id, level: level(path) }))
                .collect(),
        }
    }

    /// The interfaces and cgroups that a policy names and that are not here, as a policy writes them.
    pub fn missing(&self, policy: &Policy) -> Vec<String> {
        let interfaces: BTreeSet<&String> = interfaces(policy).collect();
        let cgroups: BTreeSet<&String> = cgroups(policy).collect();
        let interfaces = interfaces
            .into_iter()
            .filter(|name| !self.interfaces.contains_key(*name));
        let cgroups = cgroups.into_iter().filter(|path| !self.cgroups.contains_key(*path));
        let interfaces = interfaces.map(|name| format!("interface {name}"));
        interfaces.chain(cgroups.map(|path| format!("cgroup {path}"))).collect()
    }

    /// The index of an interface; 0, which none has, for one that no rule names.
    pub fn interface(&self, name: &str) -> u32 {
        self.interfaces.get(name).copied().unwrap_or(0)
    }
}

/// The names of interfaces in a policy; one as often as it stands there.
pub fn interfaces(policy: &Policy) -> impl Iterator<Item = &String> {
    policy.rules.iter().flat_map(|rule: &model::Rule| &rule.interface)
}

/// The paths of cgroups in a policy, likewise.
pub fn cgroups(policy: &Policy) -> impl Iterator<Item = &String> {
    policy.rules.iter().flat_map(|rule: &model::Rule| &rule.cgroup)
}

/// The parts of a cgroup's path; the root's has none.
pub fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

/// How far a cgroup is below the root.
pub fn level(path: &str) -> u32 {
    parts(path).count() as u32
}

/// A socket that somebody thinks of.
#[derive(Clone, Copy, Debug)]
pub struct ImaginedSocket<'a> {
    /// The names of the policy that it is asked about.
    pub names: &'a Names,
    /// Its cgroup, as a policy writes it.
    pub cgroup: &'a str,
    /// Its user.
    pub uid: u32,
    /// Its group, if that is known.
    pub gid: Option<u32>,
}

impl Socket for ImaginedSocket<'_> {
    const IS_KNOWN: bool = true;

    fn uid(&self) -> u32 {
        self.uid
    }

    fn gid(&self) -> u64 {
        self.gid.map_or(NO_GROUP, u64::from)
    }

    fn ancestor_cgroup(&self, level: u32) -> u64 {
        let above: Vec<&str> = parts(self.cgroup).take(level as usize).collect();
        let cgroups = self.names.cgroups.iter();
        let mut on_level =
            cgroups.filter(|(path, cgroup)| cgroup.level == level && parts(path).eq(above.iter().copied()));
        on_level.next().map_or(0, |(_, cgroup)| cgroup.id)
    }
}
