//! What is known of a packet beside its IP headers: interface, MAC address, cgroup and user, and their combinations.
//!
//! Each of the four is numbered for itself: the names that rules have, or the intervals that their ranges make. A
//! combination has the sum of the four numbers, each times the stride of its dimension. Of two dimensions the one with more
//! numbers has the larger stride, so that the combinations of one of its numbers lie together.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use enforcer_policy::model::{self, Mac, Policy, Range};
use lab06_full_enforcer_common::{
    key::mac_number,
    table::{MAX_LEVELS, asks},
};

use super::{
    CannotEnforce,
    interval::{Interval, List},
};
use crate::names::{Names, parts};

/// How many combinations there can be.
pub const MOST_COMBINATIONS: u32 = 1 << 16;

/// The combinations of what rules ask for.
pub struct Combinations<'a> {
    /// The names of interfaces, ascending; the first one has the number 1.
    interfaces: Vec<&'a str>,
    /// MAC addresses, likewise.
    macs: Vec<Mac>,
    /// The paths of cgroups, likewise, each before those below it.
    cgroups: Vec<Vec<&'a str>>,
    /// The lowest user of each interval; the first one has the number 0.
    uids: Vec<u32>,
    /// Whether a rule names a user at all.
    names_users: bool,
    /// By dimension.
    strides: [u32; DIMENSIONS],
    /// The dimensions, the one with the largest stride first.
    by_stride: [usize; DIMENSIONS],
    /// What rules want, since many want the same.
    wanted: HashMap<Asked<'a>, Arc<List>>,
}

/// What a rule asks for.
type Asked<'a> = (&'a [String], &'a [Mac], &'a [String], &'a [Range<u32>]);

const DIMENSIONS: usize = 4;
const INTERFACE: usize = 0;
const MAC: usize = 1;
const CGROUP: usize = 2;
const UID: usize = 3;

/// Ascending numbers from the first to the last.
type Numbers = Vec<[u32; 2]>;

/// Where a number begins, and which: for a tree over values.
pub type Begins = Vec<(u128, u32)>;

impl<'a> Combinations<'a> {
    /// Of what the rules of a policy ask for.
    pub fn of(policy: &'a Policy) -> Result<Self, CannotEnforce> {
        let rules = || policy.rules.iter();
        let interfaces: BTreeSet<&str> = rules().flat_map(|rule| &rule.interface).map(String::as_str).collect();
        let macs: BTreeSet<Mac> = rules().flat_map(|rule| rule.mac.iter().copied()).collect();
        let cgroups: BTreeSet<Vec<&str>> = rules()
            .flat_map(|rule| &rule.cgroup)
            .map(|path| parts(path).collect())
            .collect();
        let mut uids = BTreeSet::from([0]);
        for range in rules().flat_map(|rule| &rule.uid) {
            uids.insert(range.first);
            uids.extend(range.last.checked_add(1));
        }
        let mut result = Self {
            interfaces: interfaces.into_iter().collect(),
            macs: macs.into_iter().collect(),
            cgroups: cgroups.into_iter().collect(),
            uids: uids.into_iter().collect(),
            names_users: rules().any(|rule| !rule.uid.is_empty()),
            strides: [1; DIMENSIONS],
            by_stride: [INTERFACE, MAC, CGROUP, UID],
            wanted: HashMap::new(),
        };
        let counts = result.counts();
        result.by_stride.sort_by_key(|dimension| Reverse(counts[*dimension]));
        result.set_strides()?;
        Ok(result)
    }

    /// Behind the numbers of cgroups and of users, where rules name any, there is one for a socket that is not known.
    fn counts(&self) -> [u32; DIMENSIONS] {
        [
            self.interfaces.len() as u32 + 1,
            self.macs.len() as u32 + 1,
            self.cgroups.len() as u32 + 1 + u32::from(!self.cgroups.is_empty()),
            self.uids.len() as u32 + u32::from(self.names_users),
        ]
    }

    /// The sum of those two numbers, each times its stride.
    pub fn unknown_socket(&self) -> u32 {
        let counts = self.counts();
        let of_cgroup = if self.cgroups.is_empty() { 0 } else { counts[CGROUP] - 1 };
        let of_user = if self.names_users { counts[UID] - 1 } else { 0 };
        of_cgroup * self.strides[CGROUP] + of_user * self.strides[UID]
    }

    fn set_strides(&mut self) -> Result<(), CannotEnforce> {
        let counts = self.counts();
        let mut stride = 1u64;
        for dimension in self.by_stride.into_iter().rev() {
            self.strides[dimension] = stride as u32;
            stride = (stride * u64::from(counts[dimension])).min(u64::from(u32::MAX));
        }
        if stride > u64::from(MOST_COMBINATIONS) {
            return Err(CannotEnforce::because(
                format!(
                    "the interfaces, MAC addresses, cgroups and users of the rules combine in {stride} ways, and the \
                     enforcer takes {MOST_COMBINATIONS} at most"
                ),
                "name fewer of them, or the same ones again",
            ));
        }
        Ok(())
    }

    /// How many combinations there are.
    pub fn count(&self) -> u32 {
        self.counts().iter().product()
    }

    /// What rules ask for at all.
    pub fn asks(&self) -> u32 {
        let bits = [asks::INTERFACE, asks::MAC, asks::CGROUP, asks::UID];
        let asked = self.counts().into_iter().zip(bits);
        asked.filter(|(count, _)| *count > 1).map(|(_, bit)| bit).sum()
    }

    /// The combinations that a rule is content with; `None` for all.
    pub fn wanted(&mut self, rule: &'a model::Rule) -> Option<Arc<List>> {
        let asked: Asked<'a> = (&rule.interface, &rule.mac, &rule.cgroup, &rule.uid);
        if asked == (&[], &[], &[], &[]) {
            return None;
        }
        if let Some(known) = self.wanted.get(&asked) {
            return Some(Arc::clone(known));
        }
        let numbers = self.numbers(asked);
        let mut intervals = Vec::new();
        self.combine(&self.by_stride, &numbers, 0, &mut intervals);
        let list: Arc<List> = Arc::new(intervals.into_iter().collect());
        self.wanted.insert(asked, Arc::clone(&list));
        Some(list)
    }

    /// By dimension.
    fn numbers(&self, (interfaces, macs, cgroups, uids): Asked<'_>) -> [Numbers; DIMENSIONS] {
        let counts = self.counts();
        let or_all = |numbers: Numbers, asked: bool, dimension: usize| {
            if asked {
                numbers
            } else {
                vec![[0, counts[dimension] - 1]]
            }
        };
        let place_of_interface = |name: &String| self.interfaces.binary_search(&name.as_str()).unwrap_or_default();
        let place_of_mac = |mac: &Mac| self.macs.binary_search(mac).unwrap_or_default();
        let single = |place: usize| [place as u32 + 1; 2];
        [
            or_all(
                interfaces.iter().map(place_of_interface).map(single).collect(),
                !interfaces.is_empty(),
                INTERFACE,
            ),
            or_all(
                macs.iter().map(place_of_mac).map(single).collect(),
                !macs.is_empty(),
                MAC,
            ),
            or_all(
                cgroups.iter().map(|path| self.subtree(path)).collect(),
                !cgroups.is_empty(),
                CGROUP,
            ),
            or_all(
                uids.iter().map(|range| self.users(*range)).collect(),
                !uids.is_empty(),
                UID,
            ),
        ]
    }

    /// The numbers of a cgroup and of those below it. All sockets are of the root or below it, also of cgroups without a
    /// number.
    fn subtree(&self, path: &str) -> [u32; 2] {
        let path: Vec<&str> = parts(path).collect();
        if path.is_empty() {
            return [0, self.cgroups.len() as u32];
        }
        let first = self.cgroups.partition_point(|other| *other < path);
        let within = self.cgroups[first..]
            .iter()
            .take_while(|other| other.starts_with(&path));
        [first as u32 + 1, (first + within.count()) as u32]
    }

    fn users(&self, range: Range<u32>) -> [u32; 2] {
        let number = |uid: u32| self.uids.partition_point(|begin| *begin <= uid) as u32 - 1;
        [number(range.first), number(range.last)]
    }

    /// The places of all combinations of these numbers, with the dimensions that are left from `base` on.
    fn combine(&self, left: &[usize], numbers: &[Numbers; DIMENSIONS], base: u32, intervals: &mut Vec<Interval>) {
        let Some((dimension, behind)) = left.split_first() else {
            intervals.push(Interval::of_numbers(base, base));
            return;
        };
        let (stride, counts) = (self.strides[*dimension], self.counts());
        let is_whole = |dimension: &usize| numbers[*dimension] == [[0, counts[*dimension] - 1]];
        let rest_is_whole = behind.iter().all(is_whole);
        for [first, last] in &numbers[*dimension] {
            if rest_is_whole {
                let place = |number: u32| base + number * stride;
                intervals.push(Interval::of_numbers(place(*first), place(*last) + (stride - 1)));
                continue;
            }
            for number in *first..=*last {
                self.combine(behind, numbers, base + number * stride, intervals);
            }
        }
    }

    /// Which number, times its stride, an interface's index begins.
    pub fn of_interfaces(&self, names: &Names) -> Begins {
        let found = self.interfaces.iter().zip(1..);
        let found = found.filter_map(|(name, number)| Some((names.interfaces.get(*name)?, number)));
        self.singled_out(INTERFACE, found.map(|(index, number)| (u128::from(*index), number)))
    }

    /// The same for MAC addresses.
    pub fn of_macs(&self) -> Begins {
        let macs = self
            .macs
            .iter()
            .zip(1..)
            .map(|(mac, number)| (u128::from(mac_number(mac.0)), number));
        self.singled_out(MAC, macs)
    }

    /// The same for the ids of cgroups.
    pub fn of_cgroups(&self, names: &Names) -> Begins {
        let found = names.cgroups.iter().map(|(path, cgroup)| {
            let path: Vec<&str> = parts(path).collect();
            let place = self.cgroups.binary_search(&path).unwrap_or_default();
            (u128::from(cgroup.id), place as u32 + 1)
        });
        self.singled_out(CGROUP, found)
    }

    /// The same for users.
    pub fn of_uids(&self) -> Begins {
        let uids = self.uids.iter().zip(0..);
        uids.map(|(uid, number): (_, u32)| (u128::from(*uid), number * self.strides[UID]))
            .collect()
    }

    /// These values with their numbers, and 0 for all others.
    fn singled_out(&self, dimension: usize, values: impl Iterator<Item = (u128, u32)>) -> Begins {
        let mut values: Begins = values.collect();
        values.sort_unstable();
        let mut begins = vec![(0, 0)];
        for (value, number) in values {
            if begins.last().is_some_and(|(begin, _)| *begin == value) {
                begins.pop();
            }
            begins.push((value, number * self.strides[dimension]));
            begins.push((value + 1, 0));
        }
        begins
    }
}

/// The levels of the cgroups that are there: see [`Metadata::levels`](lab06_full_enforcer_common::table::Metadata::levels).
pub fn levels(names: &Names) -> Result<u64, CannotEnforce> {
    let levels: BTreeSet<u32> = names.cgroups.values().map(|cgroup| cgroup.level).collect();
    if levels.len() > MAX_LEVELS || levels.last().is_some_and(|level| *level > 254) {
        return Err(CannotEnforce::because(
            format!(
                "the cgroups of the rules are on {} levels of the hierarchy, and the enforcer takes {MAX_LEVELS}, above \
                 level 255",
                levels.len()
            ),
            "name cgroups higher up, which stand for those below them as well",
        ));
    }
    let packed = levels
        .iter()
        .fold(0, |packed, level| packed << 8 | u64::from(level + 1));
    Ok(packed)
}
