//! Divides boxes into partitions that can be searched by halving.
//!
//! Field by field, each time the one in which most boxes can stay: of the intervals in it those are kept that have nothing
//! in common and that most boxes have (weighted interval scheduling). The boxes that stay are a partition, what is left is
//! divided in the same way. This is the offline algorithm of `PartitionSort`, but for one thing: in the first field,
//! many intervals count, since a look-up by class leads straight to the boxes of one.

use lab06_full_enforcer_common::table::{FIELDS, Field};

/// Boxes in terms of ranks.
#[derive(Debug, Default)]
pub struct Ranked {
    /// By [`Field`], the different intervals of ranks that boxes have, the lowest and the highest rank of each; in ascending
    /// order of the highest, then of the lowest.
    pub intervals: [Vec<[u32; 2]>; FIELDS],
    /// By [`Field`] and box, the place of its interval among them.
    pub places: [Vec<u32>; FIELDS],
    /// By box, the number of its rule.
    pub rules: Vec<u32>,
}

impl Ranked {
    /// The lowest and the highest rank of a box in a field.
    pub fn ranks(&self, number: u32, field: Field) -> [u32; 2] {
        self.intervals[field as usize][self.place(number, field) as usize]
    }

    /// The place of a box's interval among all of the field.
    pub fn place(&self, number: u32, field: Field) -> u32 {
        self.places[field as usize][number as usize]
    }

    fn rule(&self, number: u32) -> u32 {
        self.rules[number as usize]
    }
}

/// Boxes that can be searched by halving.
#[derive(Clone, Debug)]
pub struct Sorted {
    /// The order in which fields are compared.
    pub order: [Field; FIELDS],
    /// Their numbers, in ascending order of what is compared.
    pub boxes: Vec<u32>,
    /// The lowest number of a rule.
    pub best: u32,
}

impl Sorted {
    /// The boxes in groups with the same interval in the first field.
    pub fn groups<'a>(&'a self, ranked: &'a Ranked) -> impl Iterator<Item = &'a [u32]> {
        let first = self.order[0];
        self.boxes
            .chunk_by(move |one, other| ranked.place(*one, first) == ranked.place(*other, first))
    }
}

/// Divides boxes, and puts those partitions first whose best rule is first; `None` if there were more than `most`.
pub fn divide(ranked: &Ranked, boxes: Vec<u32>, most: usize) -> Option<Vec<Sorted>> {
    let mut left = boxes;
    let mut partitions = Vec::new();
    while !left.is_empty() {
        if partitions.len() == most {
            return None;
        }
        let (partition, rest) = Division::of(ranked, &left).finish(&left);
        partitions.push(partition);
        left = rest;
    }
    partitions.sort_by_key(|partition| partition.best);
    Some(partitions)
}

/// Which boxes stay, in groups that are alike in the fields chosen so far.
struct Division<'a> {
    ranked: &'a Ranked,
    order: Vec<Field>,
    groups: Groups,
}

/// Numbers of boxes, group behind group; the groups in ascending order of the fields chosen so far.
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

impl<'a> Division<'a> {
    fn of(ranked: &'a Ranked, boxes: &[u32]) -> Self {
        let groups = Groups {
            boxes: boxes.to_vec(),
            ends: vec![boxes.len() as u32],
        };
        let mut division = Self {
            ranked,
            order: Vec::new(),
            groups,
        };
        while division.order.len() < FIELDS {
            division.add_best_field();
        }
        division
    }

    fn add_best_field(&mut self) {
        let is_first = self.order.is_empty();
        let mut best: Option<(Field, Groups)> = None;
        for field in Field::ALL.into_iter().rev().filter(|field| !self.order.contains(field)) {
            let candidate = split(self.ranked, &self.groups, field);
            let is_better = |(_, best): &(Field, Groups)| score(&candidate, is_first) > score(best, is_first);
            let all_stay = candidate.boxes.len() == self.groups.boxes.len();
            if best.as_ref().is_none_or(is_better) {
                best = Some((field, candidate));
            }
            if all_stay && !is_first {
                break;
            }
        }
        let (field, groups) = best.expect("a field is left");
        self.order.push(field);
        self.groups = groups;
    }

    /// The partition, and the boxes that are left. Of those that are the same in all fields only the best one stays.
    fn finish(self, boxes: &[u32]) -> (Sorted, Vec<u32>) {
        let best_of = |group: &[u32]| group.iter().copied().min_by_key(|number| self.ranked.rule(*number));
        let sorted: Vec<u32> = self.groups.iter().filter_map(best_of).collect();
        let mut stays = vec![false; self.ranked.rules.len()];
        for number in &sorted {
            stays[*number as usize] = true;
        }
        let rest = boxes
            .iter()
            .copied()
            .filter(|number| !stays[*number as usize])
            .collect();
        let best = sorted.iter().map(|number| self.ranked.rule(*number)).min();
        let sorted = Sorted {
            order: self.order.try_into().expect("every field has its place"),
            boxes: sorted,
            best: best.unwrap_or(u32::MAX),
        };
        (sorted, rest)
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
fn split(ranked: &Ranked, groups: &Groups, field: Field) -> Groups {
    let intervals = &ranked.intervals[field as usize];
    let mut result = Groups::default();
    let mut by_place: Vec<(u32, u32)> = Vec::new();
    let mut schedule = Schedule::default();
    for group in groups.iter() {
        if let [single] = group {
            result.boxes.push(*single);
            result.end_group();
            continue;
        }
        by_place.clear();
        by_place.extend(group.iter().map(|number| (ranked.place(*number, field), *number)));
        by_place.sort_unstable();
        let same = by_place.chunk_by(|one, other| one.0 == other.0);
        schedule.intervals.clear();
        schedule.intervals.extend(
            same.clone()
                .map(|same| (intervals[same[0].0 as usize], same.len() as u32)),
        );
        for (same, stays) in same.zip(schedule.choose()) {
            if *stays {
                result.boxes.extend(same.iter().map(|(_, number)| *number));
                result.end_group();
            }
        }
    }
    result
}

/// Weighted interval scheduling.
#[derive(Default)]
struct Schedule {
    /// Lowest and highest value, in ascending order of the highest, and the weight.
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
        for (number, ([lowest, _], weight)) in self.intervals.iter().enumerate() {
            let before = self.intervals[..number].partition_point(|([_, highest], _)| highest < lowest);
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

    fn ranked(boxes: &[(u32, [[u32; 2]; 2])]) -> Ranked {
        let mut ranked = Ranked::default();
        for field in Field::ALL {
            let ranks = boxes
                .iter()
                .map(|(_, ranks)| ranks.get(field as usize).copied().unwrap_or([0, 9]));
            let mut intervals: Vec<[u32; 2]> = ranks.clone().collect();
            intervals.sort_unstable_by_key(|[lowest, highest]| (*highest, *lowest));
            intervals.dedup();
            let place = |ranks| intervals.iter().position(|interval| *interval == ranks).unwrap() as u32;
            ranked.places[field as usize] = ranks.map(place).collect();
            ranked.intervals[field as usize] = intervals;
        }
        ranked.rules = boxes.iter().map(|(rule, _)| *rule).collect();
        ranked
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
            let boxes: Vec<_> = (0..60).map(|rule| (rule, [interval(), interval()])).collect();
            let ranked = ranked(&boxes);
            let partitions = divide(&ranked, (0..60).collect(), 60).unwrap();
            let mut rules: Vec<u32> = Vec::new();
            for partition in &partitions {
                for pair in partition.boxes.windows(2) {
                    let apart = partition.order.iter().map(|field| {
                        let [one, other] = [0, 1].map(|place| ranked.ranks(pair[place], *field));
                        (one == other, one[1] < other[0])
                    });
                    let differ = apart.into_iter().find(|(same, _)| !same);
                    assert_eq!(differ, Some((false, true)), "{pair:?} in {:?}", partition.order);
                }
                let of_partition = partition.boxes.iter().map(|number| ranked.rule(*number));
                assert_eq!(of_partition.clone().min(), Some(partition.best));
                rules.extend(of_partition);
            }
            rules.sort_unstable();
            assert!(rules.into_iter().eq(0..60));
            assert!(partitions.is_sorted_by_key(|partition| partition.best));
        }
    }

    #[test]
    fn the_same_box_twice_takes_two_partitions_with_the_better_rule_in_the_first() {
        let ranked = ranked(&[(7, [[0, 9], [0, 9]]), (3, [[0, 9], [0, 9]])]);
        let partitions = divide(&ranked, vec![0, 1], 2).unwrap();
        let bests: Vec<u32> = partitions.iter().map(|partition| partition.best).collect();
        assert_eq!(bests, [3, 7]);
        assert!(divide(&ranked, vec![0, 1], 1).is_none());
    }
}
