//! How boxes were divided, so that it need not be done again: it takes most of the time that a policy of many rules takes,
//! and what a set holds does not matter to it.

use std::sync::Arc;

use foldhash::HashMap;

use super::{
    CannotEnforce,
    boxes::{Box, Boxes, Intervals},
    interval::Interval,
    partition::Sorted,
};

/// How the boxes of a policy were divided.
#[derive(Default)]
pub struct Divisions {
    boxes: Vec<Box>,
    intervals: Vec<Vec<Interval>>,
    /// Of the policy before this one, if its boxes are the same, and of this one so far.
    known: HashMap<View, Vec<Arc<Sorted>>>,
    /// Of this one.
    used: HashMap<View, Vec<Arc<Sorted>>>,
}

/// The numbers of boxes, and whether those that are hidden behind others are left out.
type View = (Vec<u32>, bool);

impl Divisions {
    /// From here on it is about these boxes.
    pub fn begin(&mut self, boxes: &Boxes<'_>) {
        let intervals = boxes.intervals.iter().map(Intervals::all);
        if self.boxes != boxes.all || !self.intervals.iter().eq(intervals.clone()) {
            self.known.clear();
            self.boxes.clone_from(&boxes.all);
            self.intervals = intervals.map(<[Interval]>::to_vec).collect();
        }
        self.used.clear();
    }

    /// How these boxes are divided; by `divide`, if it is not known.
    pub fn find(
        &mut self,
        boxes: Vec<u32>,
        hides: bool,
        divide: impl FnOnce(&[u32]) -> Result<Vec<Sorted>, CannotEnforce>,
    ) -> Result<Vec<Arc<Sorted>>, CannotEnforce> {
        if boxes.is_empty() {
            return Ok(Vec::new());
        }
        let view = (boxes, hides);
        let known = self.used.get(&view).or_else(|| self.known.get(&view));
        let sorted = match known {
            Some(sorted) => sorted.clone(),
            None => divide(&view.0)?.into_iter().map(Arc::new).collect(),
        };
        self.used.insert(view, sorted.clone());
        Ok(sorted)
    }

    /// Forgets what was not asked for since the beginning.
    pub fn end(&mut self) {
        self.known = std::mem::take(&mut self.used);
    }
}
