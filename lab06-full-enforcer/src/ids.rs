//! The stable ids under which rules are counted: a rule keeps its id, and so its counters, from one policy to the next.

use std::{collections::VecDeque, sync::Arc};

use foldhash::{HashMap, HashMapExt as _, HashSet};

/// Which rule has which id.
#[derive(Clone, Debug)]
pub struct Ids {
    /// How many ids there are.
    most: u32,
    /// Shared with copies until one of them changes.
    by_name: Arc<HashMap<String, u32>>,
    /// Rules that are in no policy any more, the longest gone first: their counters wait for them to come back until
    /// somebody needs the place.
    gone: VecDeque<String>,
}

/// The ids of a policy's rules.
#[derive(Debug)]
pub struct Assigned {
    /// In the order of the names.
    pub ids: Vec<u32>,
    /// Those that were another rule's: their counters are to be set to zero before the rules are in force.
    pub reused: Vec<u32>,
}

impl Ids {
    /// So many ids, and nobody has one.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            by_name: Arc::new(HashMap::new()),
            gone: VecDeque::new(),
        }
    }

    /// Gives each of the names, which are all that the next policy has, its id.
    ///
    /// # Panics
    ///
    /// If there are more names than ids, which the limit on rules rules out.
    pub fn assign(&mut self, names: &[String]) -> Assigned {
        if let Some(ids) = self.unchanged(names) {
            let reused = Vec::new();
            return Assigned { ids, reused };
        }
        // Whoever stays or comes back is not gone; whoever is left behind has gone now.
        let in_force: HashSet<&String> = names.iter().collect();
        self.gone.retain(|name| !in_force.contains(name));
        let already_gone: HashSet<&String> = self.gone.iter().collect();
        let is_gone_now = |name: &&String| !in_force.contains(*name) && !already_gone.contains(*name);
        let mut just_gone: Vec<String> = self.by_name.keys().filter(is_gone_now).cloned().collect();
        just_gone.sort_unstable();
        self.gone.extend(just_gone);
        let mut reused = Vec::new();
        let ids = names.iter().map(|name| self.id_of(name, &mut reused)).collect();
        Assigned { ids, reused }
    }

    /// The ids of these names, if they are the ones that have any.
    fn unchanged(&self, names: &[String]) -> Option<Vec<u32>> {
        if !self.gone.is_empty() || self.by_name.len() != names.len() {
            return None;
        }
        names.iter().map(|name| self.by_name.get(name).copied()).collect()
    }

    /// The rules that have ids, by name: those in force and those that have gone.
    pub fn all(&self) -> impl Iterator<Item = (&str, u32)> {
        let mut all: Vec<(&str, u32)> = self.by_name.iter().map(|(name, id)| (name.as_str(), *id)).collect();
        all.sort_unstable();
        all.into_iter()
    }

    fn id_of(&mut self, name: &str, reused: &mut Vec<u32>) -> u32 {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let unused = self.by_name.len() as u32;
        let id = if unused < self.most {
            unused
        } else {
            let gone = self.gone.pop_front().expect("there are more ids than rules in force");
            let by_name = Arc::make_mut(&mut self.by_name);
            let id = by_name.remove(&gone).expect("who has gone had an id");
            reused.push(id);
            id
        };
        Arc::make_mut(&mut self.by_name).insert(name.to_owned(), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|number| format!("rule-{number}")).collect()
    }

    #[test]
    fn a_rule_keeps_its_id_in_any_place_and_when_it_comes_back() {
        let mut ids = Ids::new(256);
        assert_eq!(ids.assign(&names(0..3)).ids, [0, 1, 2]);
        let assigned = ids.assign(&["rule-2".into(), "new".into(), "rule-0".into()]);
        assert_eq!((assigned.ids, assigned.reused), (vec![2, 3, 0], vec![]));
        assert_eq!(ids.assign(&names(1..2)).ids, [1], "rule-1 was gone for a while");
    }

    #[test]
    fn only_when_all_are_taken_the_one_of_the_rule_that_is_gone_longest_is_given_away() {
        let mut ids = Ids::new(256);
        ids.assign(&names(0..64));
        ids.assign(&names(64..128));
        ids.assign(&names(128..192));
        let assigned = ids.assign(&names(192..256));
        assert_eq!((assigned.ids.last(), assigned.reused.len()), (Some(&255), 0));
        let assigned = ids.assign(&["one-more".into(), "rule-255".into()]);
        assert_eq!((&assigned.ids[..], &assigned.reused[..]), (&[0, 255][..], &[0][..]));
        assert!(ids.all().all(|(name, _)| name != "rule-0"));
        assert_eq!(ids.all().count(), 256);
    }
}
