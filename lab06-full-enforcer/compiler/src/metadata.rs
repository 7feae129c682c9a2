//! What is known of a packet beside its IP headers: interface, MAC address, cgroup, user and group, and their combinations.
//!
//! Each of the five is numbered for itself: the names that rules have, or the intervals that their ranges make. A
//! combination has the sum of the five numbers, each times the stride of its dimension. Of two dimensions the one with more
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
    users: Ids,
    groups: Ids,
    /// By dimension.
    strides: [u32; DIMENSIONS],
    /// The dimensions, the one with the largest stride first.
    by_stride: [usize; DIMENSIONS],
    /// What rules want, since many want the same.
    wanted: HashMap<Asked<'a>, Arc<List>>,
}

/// What a rule asks for.
type Asked<'a> = (
    &'a [String],
    &'a [Mac],
    &'a [String],
    &'a [Range<u32>],
    &'a [Range<u32>],
);

const DIMENSIONS: usize = 5;
const INTERFACE: usize = 0;
const MAC: usize = 1;
const CGROUP: usize = 2;
const UID: usize = 3;
const GID: usize = 4;

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
        let mut result = Self {
            interfaces: interfaces.into_iter().collect(),
            macs: macs.into_iter().collect(),
            cgroups: cgroups.into_iter().collect(),
            users: Ids::of(rules().flat_map(|rule| &rule.uid)),
            groups: Ids::of(rules().flat_map(|rule| &rule.gid)),
            strides: [1; DIMENSIONS],
            by_stride: [INTERFACE, MAC, CGROUP, UID, GID],
            wanted: HashMap::new(),
        };
        let counts = result.counts();
        result.by_stride.sort_by_key(|dimension| Reverse(counts[*dimension]));
        result.set_strides()?;
        Ok(result)
    }

    /// Behind the numbers of cgroups, of users and of groups, where rules name any, there is one for those that are not known.
    fn counts(&self) -> [u32; DIMENSIONS] {
        [
            self.interfaces.len() as u32 + 1,
            self.macs.len() as u32 + 1,
            self.cgroups.len() as u32 + 1 + u32::from(!self.cgroups.is_empty()),
            self.users.count(),
            self.groups.count(),
        ]
    }

    /// The sum of those numbers, each times its stride.
    pub fn unknown_socket(&self) -> u32 {
        let counts = self.counts();
        let of_cgroup = if self.cgroups.is_empty() { 0 } else { counts[CGROUP] - 1 };
        of_cgroup * self.strides[CGROUP] + self.users.unknown() * self.strides[UID] + self.unknown_group()
    }

    /// That of groups alone.
    pub fn unknown_group(&self) -> u32 {
        self.groups.unknown() * self.strides[GID]
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
                    "the interfaces, MAC addresses, cgroups, users and groups of the rules combine in {stride} ways, and the \
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
        let bits = [asks::INTERFACE, asks::MAC, asks::CGROUP, asks::UID, asks::GID];
        let asked = self.counts().into_iter().zip(bits);
        asked.filter(|(count, _)| *count > 1).map(|(_, bit)| bit).sum()
    }

    /// The combinations that a rule is content with; `None` for all.
    pub fn wanted(&mut self, rule: &'a model::Rule) -> Option<Arc<List>> {
        let asked: Asked<'a> = (&rule.interface, &rule.mac, &rule.cgroup, &rule.uid, &rule.gid);
        if asked == (&[], &[], &[], &[], &[]) {
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
    fn numbers(&self, (interfaces, macs, cgroups, uids, gids): Asked<'_>) -> [Numbers; DIMENSIONS] {
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
                uids.iter().map(|range| self.users.numbers(*range)).collect(),
                !uids.is_empty(),
                UID,
            ),
            or_all(
                gids.iter().map(|range| self.groups.numbers(*range)).collect(),
                !gids.is_empty(),
                GID,
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
        self.users.begins(self.strides[UID])
    }

    /// The same for groups.
    pub fn of_gids(&self) -> Begins {
        self.groups.begins(self.strides[GID])
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

/// Numbers of users or groups, in intervals that rules tell apart.
struct Ids {
    /// The lowest of each interval; the first one has the number 0.
    begins: Vec<u32>,
    /// Whether a rule names any.
    are_named: bool,
}

impl Ids {
    fn of<'a>(ranges: impl Iterator<Item = &'a Range<u32>>) -> Self {
        let mut begins = BTreeSet::from([0]);
        let mut are_named = false;
        for range in ranges {
            are_named = true;
            begins.insert(range.first);
            begins.extend(range.last.checked_add(1));
        }
        Self {
            begins: begins.into_iter().collect(),
            are_named,
        }
    }

    /// How many intervals there are, and one more for what is not known if any are named.
    fn count(&self) -> u32 {
        self.begins.len() as u32 + u32::from(self.are_named)
    }

    /// The number of what is not known.
    fn unknown(&self) -> u32 {
        if self.are_named { self.count() - 1 } else { 0 }
    }

    /// The first and the last interval of a range.
    fn numbers(&self, range: Range<u32>) -> [u32; 2] {
        let number = |value: u32| self.begins.partition_point(|begin| *begin <= value) as u32 - 1;
        [number(range.first), number(range.last)]
    }

    /// Where each begins, with its number times this stride.
    fn begins(&self, stride: u32) -> Begins {
        let numbered = self.begins.iter().zip(0..);
        numbered
            .map(|(begin, number): (_, u32)| (u128::from(*begin), number * stride))
            .collect()
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
