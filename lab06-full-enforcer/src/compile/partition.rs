//! Divides boxes into partitions that can be searched by halving.
//!
//! Field by field, each time the one in which most boxes can stay: of the intervals in it those are kept that have nothing
//! in common and that most boxes have (weighted interval scheduling). The boxes that stay are a partition, what is left is
//! divided in the same way. This is the offline algorithm of `PartitionSort`, but for one thing: in the first field,
//! many intervals count, since a look-up by class leads straight to the boxes of one.

use lab06_full_enforcer_common::table::{FIELDS, Field};

/// A box in terms of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ranked {
    /// By [`Field`], the lowest and the highest rank.
    pub ranks: [[u32; 2]; FIELDS],
    /// The lists that the packet has to be on.
    pub member_of: u64,
    /// The number of its rule.
    pub rule: u32,
}

/// Boxes that can be searched by halving.
#[derive(Clone, Debug)]
pub struct Sorted {
    /// The order in which fields are compared.
    pub order: [Field; FIELDS],
    /// In ascending order.
    pub boxes: Vec<Ranked>,
}

impl Sorted {
    /// The lowest number of a rule.
    pub fn best(&self) -> u32 {
        self.boxes.iter().map(|one| one.rule).min().unwrap_or(u32::MAX)
    }

    /// The boxes in groups with the same interval in the first field.
    pub fn groups(&self) -> impl Iterator<Item = &[Ranked]> {
        let first = self.order[0] as usize;
        self.boxes
            .chunk_by(move |one, other| one.ranks[first] == other.ranks[first])
    }
}

/// Divides `boxes`, and puts those partitions first whose best rule is first; `None` if there were more than `most`.
pub fn divide(boxes: Vec<Ranked>, most: usize) -> Option<Vec<Sorted>> {
    let mut left = boxes;
    let mut partitions = Vec::new();
    while !left.is_empty() {
        if partitions.len() == most {
            return None;
        }
        let (partition, rest) = Division::of(&left).finish(&left);
        partitions.push(partition);
        left = rest;
    }
    partitions.sort_by_key(Sorted::best);
    Some(partitions)
}

/// Which boxes stay, in groups that are alike in the fields chosen so far.
struct Division {
    order: Vec<Field>,
    groups: Groups,
}

/// Indices of boxes, group behind group.
#[derive(Default)]
struct Groups {
    boxes: Vec<u32>,
    /// Where each group ends.
    ends: Vec<u32>,
}

impl Groups {
    fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let mut begin = 0;
        self.ends.iter().map(move |end| {
            let group = &self.boxes[begin as usize..*end as usize];
            begin = *end;
            group
        })
    }

    fn end_group(&mut self) {
        self.ends.push(self.boxes.len() as u32);
    }
}

impl Division {
    fn of(boxes: &[Ranked]) -> Self {
        let mut groups = Groups {
            boxes: (0..boxes.len() as u32).collect(),
            ends: Vec::new(),
        };
        groups.end_group();
        let mut order = Vec::new();
        while order.len() < FIELDS {
            let rest = Field::ALL.into_iter().filter(|field| !order.contains(field));
            let candidates = rest.map(|field| (field, split(boxes, &groups, field)));
            let (field, best) = candidates
                .max_by(|(_, one), (_, other)| score(one, order.is_empty()).total_cmp(&score(other, order.is_empty())))
                .expect("a field is left");
            order.push(field);
            groups = best;
        }
        Self { order, groups }
    }

    /// The partition, and the boxes that are left. Of those that are the same in all fields only the best one stays.
    fn finish(self, boxes: &[Ranked]) -> (Sorted, Vec<Ranked>) {
        let mut stays = vec![false; boxes.len()];
        for group in self.groups.iter() {
            let best = group.iter().min_by_key(|index| boxes[**index as usize].rule);
            stays[*best.expect("a group is not empty") as usize] = true;
        }
        let (mut sorted, mut rest) = (Vec::new(), Vec::new());
        for (one, stays) in boxes.iter().zip(stays) {
            if stays { &mut sorted } else { &mut rest }.push(*one);
        }
        let order: [Field; FIELDS] = self.order.try_into().expect("every field has its place");
        sorted.sort_unstable_by_key(|one| order.map(|field| one.ranks[field as usize]));
        (Sorted { order, boxes: sorted }, rest)
    }
}

/// How much is gained by a field: the boxes that stay, and in the first field also into how many groups they fall.
fn score(groups: &Groups, is_first: bool) -> f64 {
    let stay = f64::from(groups.boxes.len() as u32);
    if is_first {
        stay * f64::from(groups.ends.len() as u32).powf(GROUPS_COUNT)
    } else {
        stay
    }
}

/// Measured with rules in the shapes of `ClassBench`: from 0 to 0.3 the steps of a search shrink to a half, and the number
/// of partitions does not grow.
const GROUPS_COUNT: f64 = 0.25;

/// Splits every group by its intervals in `field`, and keeps those that have nothing in common.
fn split(boxes: &[Ranked], groups: &Groups, field: Field) -> Groups {
    let mut result = Groups::default();
    let mut by_interval: Vec<([u32; 2], u32)> = Vec::new();
    let mut schedule = Schedule::default();
    for group in groups.iter() {
        if let [single] = group {
            result.boxes.push(*single);
            result.end_group();
            continue;
        }
        by_interval.clear();
        by_interval.extend(group.iter().map(|index| {
            let [lowest, highest] = boxes[*index as usize].ranks[field as usize];
            ([highest, lowest], *index)
        }));
        by_interval.sort_unstable();
        let same = by_interval.chunk_by(|one, other| one.0 == other.0);
        schedule.intervals.clear();
        schedule
            .intervals
            .extend(same.clone().map(|same| (same[0].0, same.len() as u32)));
        for (same, stays) in same.zip(schedule.choose()) {
            if *stays {
                result.boxes.extend(same.iter().map(|(_, index)| *index));
                result.end_group();
            }
        }
    }
    result
}

/// Weighted interval scheduling.
#[derive(Default)]
struct Schedule {
    /// Highest and lowest value in ascending order, and the weight.
    intervals: Vec<([u32; 2], u32)>,
    /// How many of them end before each begins.
    before: Vec<usize>,
    /// The most weight with the first so many.
    weights: Vec<u32>,
    chosen: Vec<bool>,
}

impl Schedule {
    /// Of each interval, whether it is among those that have nothing in common and the most weight together.
    fn choose(&mut self) -> &[bool] {
        self.before.clear();
        self.weights.clear();
        self.weights.push(0);
        for (number, ([_, lowest], weight)) in self.intervals.iter().enumerate() {
            let before = self.intervals[..number].partition_point(|([highest, _], _)| highest < lowest);
            self.before.push(before);
            let with = self.weights[before] + weight;
            self.weights.push(with.max(self.weights[number]));
        }
        self.chosen.clear();
        self.chosen.resize(self.intervals.len(), false);
        let mut number = self.intervals.len();
        while number > 0 {
            if self.weights[number] == self.weights[number - 1] {
                number -= 1;
            } else {
                self.chosen[number - 1] = true;
                number = self.before[number - 1];
            }
        }
        &self.chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(rule: u32, source: [u32; 2], destination: [u32; 2]) -> Ranked {
        Ranked {
            ranks: [source, destination, [0, 9], [0, 9], [0, 9], [0, 9]],
            member_of: 0,
            rule,
        }
    }

    #[test]
    fn boxes_of_a_partition_have_nothing_in_common_and_none_is_lost() {
        let mut state = 1u32;
        let mut dice = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..200 {
            let mut interval = || {
                let first = dice(20);
                [first, first + dice(20 - first)]
            };
            let boxes: Vec<Ranked> = (0..60).map(|rule| ranked(rule, interval(), interval())).collect();
            let partitions = divide(boxes.clone(), 60).unwrap();
            let mut rules: Vec<u32> = Vec::new();
            for partition in &partitions {
                for pair in partition.boxes.windows(2) {
                    let apart = partition.order.iter().map(|field| {
                        let [one, other] = [0, 1].map(|place| pair[place].ranks[*field as usize]);
                        (one == other, one[1] < other[0])
                    });
                    let differ = apart.into_iter().find(|(same, _)| !same);
                    assert_eq!(differ, Some((false, true)), "{pair:?} in {:?}", partition.order);
                }
                rules.extend(partition.boxes.iter().map(|one| one.rule));
            }
            rules.sort_unstable();
            assert!(rules.into_iter().eq(0..60));
            assert!(partitions.is_sorted_by_key(Sorted::best));
        }
    }

    #[test]
    fn the_same_box_twice_takes_two_partitions_with_the_better_rule_in_the_first() {
        let boxes = vec![ranked(7, [0, 9], [0, 9]), ranked(3, [0, 9], [0, 9])];
        let bests: Vec<u32> = divide(boxes.clone(), 2).unwrap().iter().map(Sorted::best).collect();
        assert_eq!(bests, [3, 7]);
        assert!(divide(boxes, 1).is_none());
    }
}
