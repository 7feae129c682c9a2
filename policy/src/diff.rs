//! In what two policies differ for a packet: not in their comments and their layout.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    model::{Policy, Prefix, Rule, Set},
    text,
};

/// The differences between two policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Keys of the policy itself and of its defaults.
    pub settings: Vec<Change>,
    /// By set.
    pub sets: Vec<SetDiff>,
    /// By rule; in the order of the new policy, with those that are gone at the end.
    pub rules: Vec<RuleDiff>,
}

/// A key and its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// As it stands in the policy: `mode`, `defaults.egress`.
    pub key: String,
    /// What it was; `null` if it was not there.
    pub old: Value,
    /// What it is; `null` if it is not there any more.
    pub new: Value,
}

/// In what a set differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetDiff {
    /// Its name.
    pub name: String,
    /// Whether the set itself is new, gone, or has other prefixes.
    pub kind: Kind,
    /// The prefixes that it has only now.
    pub added: Vec<String>,
    /// The prefixes that it had only before.
    pub removed: Vec<String>,
}

/// In what a rule differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleDiff {
    /// Its name.
    pub name: String,
    /// Whether the rule is new, gone, or another one.
    pub kind: Kind,
    /// Its keys that have changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Its place among the rules that are asked, counted from 1; before and now.
    pub place: (Option<usize>, Option<usize>),
}

/// What has become of a rule or a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It says something else.
    Changed,
    /// It says the same, and is asked before a rule that it was asked after, or the other way.
    Moved,
}

impl Diff {
    /// Whether both policies are the same to every packet.
    pub fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.sets.is_empty() && self.rules.is_empty()
    }
}

/// Compares two policies.
pub fn diff(old: &Policy, new: &Policy) -> Diff {
    Diff {
        settings: settings(old, new),
        sets: sets(old, new),
        rules: rules(old, new),
    }
}

fn settings(old: &Policy, new: &Policy) -> Vec<Change> {
    let of = |policy: &Policy| {
        let Ok(Value::Object(mut keys)) = serde_json::to_value(Policy {
            sets: BTreeMap::new(),
            rules: Vec::new(),
            ..policy.clone()
        }) else {
            return Value::Null;
        };
        keys.remove("rules");
        if let Some(Value::Object(defaults)) = keys.remove("defaults") {
            for (key, value) in defaults {
                keys.insert(format!("defaults.{key}"), value);
            }
        }
        Value::Object(keys)
    };
    changes(&of(old), &of(new))
}

/// The keys of two tables that differ.
fn changes(old: &Value, new: &Value) -> Vec<Change> {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return Vec::new();
    };
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| Change {
            key: key.clone(),
            old: old.get(key).cloned().unwrap_or_default(),
            new: new.get(key).cloned().unwrap_or_default(),
        })
        .collect()
}

fn sets(old: &Policy, new: &Policy) -> Vec<SetDiff> {
    let empty = Set::default();
    let names: BTreeSet<&String> = old.sets.keys().chain(new.sets.keys()).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let (before, now) = (old.sets.get(name), new.sets.get(name));
            let prefixes = |set: Option<&Set>| set.unwrap_or(&empty).all().copied().collect::<BTreeSet<Prefix>>();
            let (had, has) = (prefixes(before), prefixes(now));
            let kind = match (before, now) {
                (None, _) => Kind::Added,
                (_, None) => Kind::Removed,
                _ if had == has => return None,
                _ => Kind::Changed,
            };
            Some(SetDiff {
                name: name.clone(),
                kind,
                added: has.difference(&had).map(text::prefix).collect(),
                removed: had.difference(&has).map(text::prefix).collect(),
            })
        })
        .collect()
}

fn rules(old: &Policy, new: &Policy) -> Vec<RuleDiff> {
    let (before, now) = (places(old), places(new));
    let moved = moved(&before, &now);
    let mut rules: Vec<RuleDiff> = Vec::new();
    let mut in_order: Vec<(&str, &(usize, &Rule))> = now.iter().map(|(name, place)| (*name, place)).collect();
    in_order.sort_by_key(|(_, (place, _))| *place);
    for (name, (place, rule)) in in_order {
        let was = before.get(name);
        let changes = was.map_or(Vec::new(), |(_, was)| rule_changes(was, rule));
        let kind = match was {
            None => Kind::Added,
            Some(_) if !changes.is_empty() => Kind::Changed,
            Some(_) if moved.contains(name) => Kind::Moved,
            Some(_) => continue,
        };
        rules.push(RuleDiff {
            name: name.to_owned(),
            kind,
            changes,
            place: (was.map(|(place, _)| *place), Some(*place)),
        });
    }
    let mut gone: Vec<(&str, usize)> = before
        .iter()
        .filter(|(name, _)| !now.contains_key(*name))
        .map(|(name, (place, _))| (*name, *place))
        .collect();
    gone.sort_by_key(|(_, place)| *place);
    rules.extend(gone.into_iter().map(|(name, place)| RuleDiff {
        name: name.to_owned(),
        kind: Kind::Removed,
        changes: Vec::new(),
        place: (Some(place), None),
    }));
    rules
}

/// The place of each rule among those that are asked, counted from 1.
fn places(policy: &Policy) -> BTreeMap<&str, (usize, &Rule)> {
    let order = policy.order().into_iter().enumerate();
    order
        .map(|(place, index)| {
            let rule = &policy.rules[index];
            (rule.name.as_str(), (place + 1, rule))
        })
        .collect()
}

/// The keys that a packet notices. Priorities are no such keys: what they do is to move a rule.
fn rule_changes(old: &Rule, new: &Rule) -> Vec<Change> {
    let of = |rule: &Rule| {
        let mut value = serde_json::to_value(rule).unwrap_or_default();
        if let Value::Object(keys) = &mut value {
            keys.remove("name");
            keys.remove("description");
            keys.remove("priority");
        }
        value
    };
    changes(&of(old), &of(new))
}

/// The rules that both policies have and that stand in another order: as few as explain it.
fn moved<'a>(before: &BTreeMap<&'a str, (usize, &Rule)>, now: &BTreeMap<&'a str, (usize, &Rule)>) -> BTreeSet<&'a str> {
    let mut common: Vec<(&'a str, usize, usize)> = before
        .iter()
        .filter_map(|(name, (old, _))| now.get(name).map(|(new, _)| (*name, *old, *new)))
        .collect();
    common.sort_by_key(|(_, old, _)| *old);
    let kept = longest_increasing(&common.iter().map(|(_, _, new)| *new).collect::<Vec<_>>());
    common
        .iter()
        .enumerate()
        .filter(|(index, _)| !kept.contains(index))
        .map(|(_, (name, _, _))| *name)
        .collect()
}

/// The indices of a longest subsequence that increases.
fn longest_increasing(numbers: &[usize]) -> BTreeSet<usize> {
    // For each length, the index of the smallest number that such a subsequence can end with.
    let mut ends: Vec<usize> = Vec::new();
    let mut previous: Vec<Option<usize>> = vec![None; numbers.len()];
    for (index, number) in numbers.iter().enumerate() {
        let length = ends.partition_point(|end| numbers[*end] < *number);
        previous[index] = length.checked_sub(1).map(|shorter| ends[shorter]);
        if length == ends.len() {
            ends.push(index);
        } else {
            ends[length] = index;
        }
    }
    let mut kept = BTreeSet::new();
    let mut next = ends.last().copied();
    while let Some(index) = next {
        kept.insert(index);
        next = previous[index];
    }
    kept
}

/// The most prefixes of a set that are shown in a text.
const SHOWN: usize = 10;

/// What `diff` prints: a line for each difference, `+`, `-` or `~` in front.
pub fn text(diff: &Diff) -> String {
    let mut text = String::new();
    if diff.is_empty() {
        return "no difference for any packet\n".to_owned();
    }
    for Change { key, old, new } in &diff.settings {
        let _ = writeln!(text, "~ {key}: {} → {}", value(old), value(new));
    }
    for set in &diff.sets {
        let sign = sign(set.kind);
        let (added, removed) = (set.added.len(), set.removed.len());
        let what = if added == 1 { "prefix" } else { "prefixes" };
        let _ = writeln!(text, "{sign} @{}: {added} {what} more, {removed} fewer", set.name);
        let lines = set.added.iter().map(|prefix| ('+', prefix));
        let lines = lines.chain(set.removed.iter().map(|prefix| ('-', prefix)));
        for (sign, prefix) in lines.clone().take(SHOWN) {
            let _ = writeln!(text, "    {sign} {prefix}");
        }
        if added + removed > SHOWN {
            let _ = writeln!(text, "    … and {} more", added + removed - SHOWN);
        }
    }
    for rule in &diff.rules {
        let sign = sign(rule.kind);
        let place = match rule.place {
            (None, Some(place)) => format!("new, asked as number {place}"),
            (Some(place), None) => format!("gone, was asked as number {place}"),
            (Some(old), Some(new)) if rule.kind == Kind::Moved => format!("asked as number {new}, was {old}"),
            _ => "changed".to_owned(),
        };
        let _ = writeln!(text, "{sign} {}: {place}", rule.name);
        for Change { key, old, new } in &rule.changes {
            let _ = writeln!(text, "    {key}: {} → {}", value(old), value(new));
        }
    }
    text
}

fn sign(kind: Kind) -> char {
    match kind {
        Kind::Added => '+',
        Kind::Removed => '-',
        Kind::Changed | Kind::Moved => '~',
    }
}

/// A value as a policy has it: texts without quotes.
fn value(value: &Value) -> String {
    match value {
        Value::Null => "(none)".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
