//! What was added to the sets of the policy in force, or removed from them, entry by entry and perhaps for a time only.
//!
//! The sets of the policy in force are kept with these changes, each sorted, so that a single entry is found, put in and
//! taken out at once among a million; what the policy said of it is kept beside the change.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use enforcer_policy::{
    model::{Address, Policy, Prefix, Set},
    text,
};
use thiserror::Error;

use crate::api::{ChangeKind, SetEntry, SetReport, SetSummary};

/// Why an entry was not added or removed. Each text names cause and mend.
#[derive(Debug, Error)]
pub enum SetError {
    /// The policy has no such set.
    #[error("the policy in force has no set {name}; {}", there_are(known))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names of those that there are.
        known: Vec<String>,
    },
    /// It is no prefix.
    #[error("{0}")]
    Prefix(text::Refusal),
    /// It is there.
    #[error("{} is in the set {name} already; there is nothing to be done", text::prefix(prefix))]
    IsIn {
        /// Which.
        prefix: Prefix,
        /// Where.
        name: String,
    },
    /// It is not there.
    #[error("{} is no entry of the set {name}{}", text::prefix(prefix), not_but(covered_by.as_ref()))]
    IsNotIn {
        /// Which.
        prefix: Prefix,
        /// Where not.
        name: String,
        /// An entry that holds it.
        covered_by: Option<Prefix>,
    },
}

fn there_are(known: &[String]) -> String {
    if known.is_empty() {
        "it has no sets at all, and sets come with a policy".into()
    } else {
        format!("there are: {}", known.join(", "))
    }
}

fn not_but(covered_by: Option<&Prefix>) -> String {
    match covered_by {
        Some(covered_by) => format!(
            ", but part of {0}: remove {0}, and add what of it is to stay",
            text::prefix(covered_by)
        ),
        None => "; `enforcer set list` says what is".into(),
    }
}

/// In what the sets of the policy in force differ from the policy that was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    by_set: BTreeMap<String, BTreeMap<Prefix, Change>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    kind: ChangeKind,
    /// Whether the policy that was applied has it.
    is_written: bool,
    /// When it is over; `None` for never.
    until: Option<Instant>,
}

impl Change {
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Whether the entry is in the set.
    fn is_in(&self) -> bool {
        self.kind == ChangeKind::Add
    }
}

/// What is to be done to the sets of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    set: String,
    prefix: Prefix,
    kind: ChangeKind,
}

impl Edit {
    /// Does it. The sets have to be as [`sort`] leaves them, and stay so.
    pub fn apply(&self, policy: &mut Policy) {
        let Some(set) = policy.sets.get_mut(&self.set) else {
            return;
        };
        match (set.prefixes.binary_search(&self.prefix), self.kind) {
            (Err(place), ChangeKind::Add) => set.prefixes.insert(place, self.prefix),
            (Ok(place), ChangeKind::Remove) => {
                set.prefixes.remove(place);
            }
            _ => {}
        }
    }

    /// What undoes it.
    #[must_use]
    pub fn undone(&self) -> Self {
        let kind = match self.kind {
            ChangeKind::Add => ChangeKind::Remove,
            ChangeKind::Remove => ChangeKind::Add,
        };
        Self { kind, ..self.clone() }
    }
}

/// Puts the entries of all sets in order, each once, those of files among them.
pub fn sort(policy: Policy) -> Policy {
    let mut policy = policy.self_contained();
    for set in policy.sets.values_mut() {
        set.prefixes.sort_unstable();
        set.prefixes.dedup();
        set.prefixes.shrink_to_fit();
    }
    policy
}

/// Whether a set has an entry.
fn has(set: &Set, prefix: Prefix) -> bool {
    set.prefixes.binary_search(&prefix).is_ok()
}

impl Changes {
    /// Adds or removes an entry of a set of the policy in force, for good or for a time from `now` on: what is to be done to
    /// it, if anything but the time changes.
    pub fn change(
        &mut self,
        in_force: &Policy,
        name: &str,
        prefix: Prefix,
        kind: ChangeKind,
        time: Option<Duration>,
        now: Instant,
    ) -> Result<Option<Edit>, SetError> {
        let set = find(in_force, name)?;
        let is_in = has(set, prefix);
        let before = self.by_set.get(name).and_then(|changes| changes.get(&prefix)).copied();
        let is_written = before.map_or(is_in, |change| change.is_written);
        match kind {
            // What was added for a time may be added for another one, or for good.
            ChangeKind::Add
                if is_in && (is_written || (time.is_none() && before.is_none_or(|it| it.until.is_none()))) =>
            {
                return Err(SetError::IsIn {
                    prefix,
                    name: name.into(),
                });
            }
            ChangeKind::Remove if !is_in => {
                return Err(SetError::IsNotIn {
                    prefix,
                    name: name.into(),
                    covered_by: widest_around(set, prefix),
                });
            }
            _ => {}
        }
        // So long that no clock can say when is for good.
        let until = time.and_then(|time| now.checked_add(time));
        let change = Change {
            kind,
            is_written,
            until,
        };
        let of_set = self.by_set.entry(name.into()).or_default();
        if until.is_none() && is_written == change.is_in() {
            // Nothing but what the policy says.
            of_set.remove(&prefix);
        } else {
            of_set.insert(prefix, change);
        }
        Ok((is_in != change.is_in()).then(|| Edit {
            set: name.into(),
            prefix,
            kind,
        }))
    }

    /// Whether there is one whose time is over.
    pub fn has_expired(&self, now: Instant) -> bool {
        self.by_set
            .values()
            .flat_map(BTreeMap::values)
            .any(|change| change.is_over(now))
    }

    /// Forgets the changes whose time is over: what is to be done to the policy in force.
    pub fn expire(&mut self, now: Instant) -> Vec<Edit> {
        let mut edits = Vec::new();
        for (name, changes) in &mut self.by_set {
            for (prefix, change) in changes.extract_if(.., |_, change| change.is_over(now)) {
                let kind = if change.is_written {
                    ChangeKind::Add
                } else {
                    ChangeKind::Remove
                };
                if kind != change.kind {
                    edits.push(Edit {
                        set: name.clone(),
                        prefix,
                        kind,
                    });
                }
            }
        }
        edits
    }

    /// What is left of them under another policy, whose sets are sorted: what was added to sets that it has, too, and is done
    /// to it here. What was removed is what it says of it again; so is what it has itself.
    #[must_use]
    pub fn carried_to(&self, other: &mut Policy) -> Self {
        let mut kept = self.clone();
        kept.by_set.retain(|name, changes| {
            let Some(set) = other.sets.get(name) else {
                return false;
            };
            changes.retain(|prefix, change| change.is_in() && !has(set, *prefix));
            for change in changes.values_mut() {
                change.is_written = false;
            }
            !changes.is_empty()
        });
        for (name, changes) in &kept.by_set {
            for prefix in changes.keys() {
                let edit = Edit {
                    set: name.clone(),
                    prefix: *prefix,
                    kind: ChangeKind::Add,
                };
                edit.apply(other);
            }
        }
        kept
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_set.values().map(BTreeMap::len).sum()
    }

    /// The entries of a set of the policy in force, and what was removed of it.
    pub fn report(&self, in_force: &Policy, name: &str, now: Instant) -> Result<SetReport, SetError> {
        let set = find(in_force, name)?;
        let none = BTreeMap::new();
        let changes = self.by_set.get(name).unwrap_or(&none);
        let of_policy = set.prefixes.iter().filter(|prefix| !changes.contains_key(*prefix));
        let of_policy = of_policy.map(|prefix| SetEntry {
            prefix: text::prefix(prefix),
            by: "policy".into(),
            left_s: None,
        });
        let by_command = |kind| {
            let of_kind = changes.iter().filter(move |(_, change)| change.kind == kind);
            of_kind.map(|(prefix, change)| SetEntry {
                prefix: text::prefix(prefix),
                by: "command".into(),
                left_s: change.until.map(|until| seconds_until(until, now)),
            })
        };
        Ok(SetReport {
            set: name.into(),
            rules: rules_that_name(in_force, name),
            entries: of_policy.chain(by_command(ChangeKind::Add)).collect(),
            removed: by_command(ChangeKind::Remove).collect(),
        })
    }

    /// All sets of the policy in force.
    pub fn summaries(&self, in_force: &Policy) -> Vec<SetSummary> {
        let summary = |(name, set): (&String, &Set)| {
            let changes = self.by_set.get(name).into_iter().flat_map(BTreeMap::values);
            let count = |kind| changes.clone().filter(|change| change.kind == kind).count() as u64;
            SetSummary {
                set: name.clone(),
                rules: rules_that_name(in_force, name),
                entries: set.len() as u64,
                added: count(ChangeKind::Add),
                removed: count(ChangeKind::Remove),
            }
        };
        in_force.sets.iter().map(summary).collect()
    }
}

/// The widest entry of a set that holds all of a prefix.
fn widest_around(set: &Set, prefix: Prefix) -> Option<Prefix> {
    let around = (0..=prefix.len()).filter_map(|len| Prefix::new(prefix.address(), len));
    around.into_iter().find(|around| has(set, *around))
}

fn find<'a>(policy: &'a Policy, name: &str) -> Result<&'a Set, SetError> {
    policy.sets.get(name).ok_or_else(|| SetError::Unknown {
        name: name.into(),
        known: policy.sets.keys().cloned().collect(),
    })
}

/// Rounded up: an entry that is there has a second at least.
fn seconds_until(until: Instant, now: Instant) -> u64 {
    until.saturating_duration_since(now).as_millis().div_ceil(1000) as u64
}

/// The names of the rules that name a set.
pub fn rules_that_name(policy: &Policy, set: &str) -> Vec<String> {
    let is_it = |address: &Address| matches!(address, Address::Set(name) if name == set);
    let rules = policy.rules.iter();
    let rules = rules.filter(|rule| rule.source.iter().chain(&rule.destination).any(is_it));
    rules.map(|rule| rule.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let mut policy = Policy::allow_all("p");
        for name in ["abuse", "partners"] {
            let prefixes = vec![prefix("10.0.0.0/8")];
            policy.sets.insert(
                name.into(),
                Set {
                    prefixes,
                    ..Set::default()
                },
            );
        }
        policy
    }

    fn prefix(text: &str) -> Prefix {
        text::parse_prefix(text).unwrap()
    }

    fn entries(policy: &Policy, set: &str) -> Vec<String> {
        policy.sets[set].all().map(text::prefix).collect()
    }

    #[test]
    fn an_entry_ends_with_its_time_and_what_the_policy_says_holds_again() {
        let (mut policy, mut changes, now) = (policy(), Changes::default(), Instant::now());
        let hour = Some(Duration::from_hours(1));
        let mut change = |text, kind, time| {
            let edit = changes.change(&policy, "abuse", prefix(text), kind, time, now).unwrap();
            if let Some(edit) = &edit {
                edit.apply(&mut policy);
            }
            edit.is_some()
        };
        assert!(change("192.0.2.1", ChangeKind::Add, hour));
        assert!(change("10.0.0.0/8", ChangeKind::Remove, hour));
        assert!(change("192.0.2.2", ChangeKind::Add, None));
        // Another time, counted from now on.
        assert!(!change("192.0.2.1", ChangeKind::Add, Some(Duration::from_hours(2))));
        assert_eq!(entries(&policy, "abuse"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(entries(&policy, "partners"), ["10.0.0.0/8"]);
        let mut expire = |minutes| {
            let edits = changes.expire(now + Duration::from_mins(minutes));
            for edit in &edits {
                edit.apply(&mut policy);
            }
            entries(&policy, "abuse")
        };
        assert_eq!(expire(61), ["10.0.0.0/8", "192.0.2.1", "192.0.2.2"]);
        assert_eq!(expire(121), ["10.0.0.0/8", "192.0.2.2"]);
    }

    #[test]
    fn what_is_there_is_not_added_and_what_is_not_is_not_removed() {
        let (mut policy, mut changes, now) = (policy(), Changes::default(), Instant::now());
        let mut change = |set, text, kind| {
            let changed = changes.change(&policy, set, prefix(text), kind, None, now);
            let edit = changed.map_err(|error| error.to_string())?;
            edit.unwrap().apply(&mut policy);
            Ok(())
        };
        let error: String = change("abus", "192.0.2.1", ChangeKind::Add).unwrap_err();
        assert_eq!(error, "the policy in force has no set abus; there are: abuse, partners");
        let error = change("abuse", "10.0.0.0/8", ChangeKind::Add).unwrap_err();
        assert!(error.starts_with("10.0.0.0/8 is in the set abuse already"), "{error}");
        let error = change("abuse", "10.1.0.0/16", ChangeKind::Remove).unwrap_err();
        assert!(
            error.starts_with("10.1.0.0/16 is no entry of the set abuse, but part of 10.0.0.0/8"),
            "{error}"
        );
        let error = change("abuse", "192.0.2.1", ChangeKind::Remove).unwrap_err();
        assert!(error.contains("`enforcer set list` says what is"), "{error}");
        change("abuse", "192.0.2.1", ChangeKind::Add).unwrap();
        change("abuse", "192.0.2.1", ChangeKind::Add).unwrap_err();
        change("abuse", "192.0.2.1", ChangeKind::Remove).unwrap();
        change("abuse", "10.0.0.0/8", ChangeKind::Remove).unwrap();
        change("abuse", "10.0.0.0/8", ChangeKind::Add).unwrap();
        assert_eq!(changes.count(), 0, "it is what the policy says");
    }

    #[test]
    fn another_policy_keeps_what_was_added_to_sets_that_it_has() {
        let (policy, mut changes, now) = (policy(), Changes::default(), Instant::now());
        for (set, text, kind) in [
            ("abuse", "192.0.2.1", ChangeKind::Add),
            ("abuse", "192.0.2.2", ChangeKind::Add),
            ("abuse", "10.0.0.0/8", ChangeKind::Remove),
            ("partners", "192.0.2.1", ChangeKind::Add),
        ] {
            changes.change(&policy, set, prefix(text), kind, None, now).unwrap();
        }
        let mut other = policy.clone();
        other.sets.remove("partners");
        other.sets.get_mut("abuse").unwrap().from_file.push(prefix("192.0.2.2"));
        let mut other = sort(other);
        let kept = changes.carried_to(&mut other);
        assert_eq!(kept.count(), 1);
        assert_eq!(entries(&other, "abuse"), ["10.0.0.0/8", "192.0.2.1", "192.0.2.2"]);
    }

    #[test]
    fn what_was_undone_has_changed_nothing() {
        let (before, now) = (policy(), Instant::now());
        let mut policy = before.clone();
        for (text, kind) in [("10.0.0.0/8", ChangeKind::Remove), ("192.0.2.1", ChangeKind::Add)] {
            let edit = Changes::default().change(&policy, "abuse", prefix(text), kind, None, now);
            let edit = edit.unwrap().unwrap();
            edit.apply(&mut policy);
            assert_ne!(policy, before);
            edit.undone().apply(&mut policy);
            assert_eq!(policy, before);
        }
    }
}
