//! What was added to the sets of the policy in force, or removed from them, entry by entry and perhaps for a time only.
//!
//! The policy as it was written stays what it is; what is in force is the policy with these changes.

use std::{
    collections::{BTreeMap, HashSet},
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

/// What is changed of the sets of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    by_set: BTreeMap<String, BTreeMap<Prefix, Change>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    kind: ChangeKind,
    /// When it is over; `None` for never.
    until: Option<Instant>,
}

impl Change {
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl Changes {
    /// Adds or removes an entry of a set of `written`, for good or for a time from `now` on.
    pub fn change(
        &mut self,
        written: &Policy,
        name: &str,
        prefix: Prefix,
        kind: ChangeKind,
        time: Option<Duration>,
        now: Instant,
    ) -> Result<(), SetError> {
        let set = find(written, name)?;
        let is_written = set.all().any(|entry| *entry == prefix);
        let before = self.by_set.get(name).and_then(|changes| changes.get(&prefix)).copied();
        let is_in = before.map_or(is_written, |change| change.kind == ChangeKind::Add);
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
                let entries = self.in_force(written, name);
                return Err(SetError::IsNotIn {
                    prefix,
                    name: name.into(),
                    covered_by: entries
                        .into_iter()
                        .find(|entry| entry.len() <= prefix.len() && entry.contains(prefix.address())),
                });
            }
            _ => {}
        }
        // So long that no clock can say when is for good.
        let until = time.and_then(|time| now.checked_add(time));
        let of_set = self.by_set.entry(name.into()).or_default();
        if until.is_none() && is_written == (kind == ChangeKind::Add) {
            // Nothing but what the policy says.
            of_set.remove(&prefix);
        } else {
            of_set.insert(prefix, Change { kind, until });
        }
        Ok(())
    }

    /// Whether there is one whose time is over.
    pub fn has_expired(&self, now: Instant) -> bool {
        self.by_set
            .values()
            .flat_map(BTreeMap::values)
            .any(|change| change.is_over(now))
    }

    /// Forgets the changes whose time is over.
    pub fn expire(&mut self, now: Instant) {
        for changes in self.by_set.values_mut() {
            changes.retain(|_, change| !change.is_over(now));
        }
    }

    /// What is left of them under another policy: what was added to sets that it has, too. What was removed is what it
    /// says of it again; so is what it has itself.
    #[must_use]
    pub fn under(&self, written: &Policy) -> Self {
        let mut kept = self.clone();
        kept.by_set.retain(|name, changes| {
            let Some(set) = written.sets.get(name) else {
                return false;
            };
            let entries: HashSet<&Prefix> = set.all().collect();
            changes.retain(|prefix, change| change.kind == ChangeKind::Add && !entries.contains(prefix));
            true
        });
        kept
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_set.values().map(BTreeMap::len).sum()
    }

    /// The policy with them.
    pub fn applied_to(&self, written: &Policy) -> Policy {
        let mut policy = written.clone();
        for (name, changes) in &self.by_set {
            let Some(set) = policy.sets.get_mut(name) else { continue };
            if changes.is_empty() {
                continue;
            }
            set.prefixes.retain(|prefix| !changes.contains_key(prefix));
            set.from_file.retain(|prefix| !changes.contains_key(prefix));
            let added = changes.iter().filter(|(_, change)| change.kind == ChangeKind::Add);
            set.prefixes.extend(added.map(|(prefix, _)| *prefix));
        }
        policy
    }

    /// The entries of a set with them.
    fn in_force(&self, written: &Policy, name: &str) -> Vec<Prefix> {
        let changes = self.by_set.get(name);
        let kind_of = |prefix: &Prefix| {
            changes
                .and_then(|changes| changes.get(prefix))
                .map(|change| change.kind)
        };
        let of_policy = written.sets.get(name).into_iter().flat_map(|set| set.all().copied());
        let of_policy = of_policy.filter(|prefix| kind_of(prefix).is_none());
        let added = changes.into_iter().flatten();
        let added = added.filter(|(_, change)| change.kind == ChangeKind::Add);
        of_policy.chain(added.map(|(prefix, _)| *prefix)).collect()
    }

    /// The entries of a set, and what was removed of it.
    pub fn report(&self, written: &Policy, name: &str, now: Instant) -> Result<SetReport, SetError> {
        let set = find(written, name)?;
        let none = BTreeMap::new();
        let changes = self.by_set.get(name).unwrap_or(&none);
        let mut of_policy: Vec<&Prefix> = set.all().filter(|prefix| !changes.contains_key(*prefix)).collect();
        of_policy.sort_unstable();
        of_policy.dedup();
        let of_policy = of_policy.into_iter().map(|prefix| SetEntry {
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
            rules: rules_that_name(written, name),
            entries: of_policy.chain(by_command(ChangeKind::Add)).collect(),
            removed: by_command(ChangeKind::Remove).collect(),
        })
    }

    /// All sets.
    pub fn summaries(&self, written: &Policy) -> Vec<SetSummary> {
        let summary = |name: &String| {
            let changes = self.by_set.get(name).into_iter().flat_map(BTreeMap::values);
            let count = |kind| changes.clone().filter(|change| change.kind == kind).count() as u64;
            SetSummary {
                set: name.clone(),
                rules: rules_that_name(written, name),
                entries: self.in_force(written, name).len() as u64,
                added: count(ChangeKind::Add),
                removed: count(ChangeKind::Remove),
            }
        };
        written.sets.keys().map(summary).collect()
    }
}

fn find<'a>(written: &'a Policy, name: &str) -> Result<&'a Set, SetError> {
    written.sets.get(name).ok_or_else(|| SetError::Unknown {
        name: name.into(),
        known: written.sets.keys().cloned().collect(),
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

    fn entries(changes: &Changes, policy: &Policy, set: &str) -> Vec<String> {
        changes.applied_to(policy).sets[set].all().map(text::prefix).collect()
    }

    #[test]
    fn an_entry_ends_with_its_time_and_what_the_policy_says_holds_again() {
        let (policy, mut changes, now) = (policy(), Changes::default(), Instant::now());
        let hour = Some(Duration::from_hours(1));
        let mut change = |text, kind, time| changes.change(&policy, "abuse", prefix(text), kind, time, now);
        change("192.0.2.1", ChangeKind::Add, hour).unwrap();
        change("10.0.0.0/8", ChangeKind::Remove, hour).unwrap();
        change("192.0.2.2", ChangeKind::Add, None).unwrap();
        // Another time, counted from now on.
        change("192.0.2.1", ChangeKind::Add, Some(Duration::from_hours(2))).unwrap();
        assert_eq!(entries(&changes, &policy, "abuse"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(entries(&changes, &policy, "partners"), ["10.0.0.0/8"]);
        changes.expire(now + Duration::from_mins(61));
        assert_eq!(
            entries(&changes, &policy, "abuse"),
            ["10.0.0.0/8", "192.0.2.1", "192.0.2.2"]
        );
        changes.expire(now + Duration::from_mins(121));
        assert_eq!(entries(&changes, &policy, "abuse"), ["10.0.0.0/8", "192.0.2.2"]);
    }

    #[test]
    fn what_is_there_is_not_added_and_what_is_not_is_not_removed() {
        let (policy, mut changes, now) = (policy(), Changes::default(), Instant::now());
        let mut change = |set, text, kind| {
            let changed = changes.change(&policy, set, prefix(text), kind, None, now);
            changed.map_err(|error| error.to_string())
        };
        let error = change("abus", "192.0.2.1", ChangeKind::Add).unwrap_err();
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
        other.sets.get_mut("abuse").unwrap().prefixes.push(prefix("192.0.2.2"));
        let kept = changes.under(&other);
        assert_eq!(kept.count(), 1);
        assert_eq!(
            entries(&kept, &other, "abuse"),
            ["10.0.0.0/8", "192.0.2.2", "192.0.2.1"]
        );
    }
}
