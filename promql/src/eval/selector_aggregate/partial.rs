//! Groups of an aggregation, of some of its series.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME, append_label_pair};

use super::NotApart;
use crate::ast::{AggregateOp, Grouping};
use crate::eval::accumulators::{Accumulator, Count, Greatest, Least, Mergeable};
use crate::eval::aggregate::keeps;
use crate::eval::block::RowMut;
use crate::eval::counts::StepCounts;
use crate::eval::names::is_metadata;
use crate::eval::numerics::{KahanSum, Mean};

/// Most cells, groups times steps: up to 160 MB.
const CELLS_MAX: usize = 4 << 20;

/// Groups with what is known of the values of their members, step by step.
#[derive(Clone, Debug)]
pub struct PartialGroups {
    steps: usize,
    groups: Vec<Group>,
    by_labels: HashMap<Box<str>, usize>,
    cells: Cells,
    /// Whether a cell has any value.
    seen: Vec<bool>,
    pub(super) counts: StepCounts,
    /// The labels of the group that is looked for.
    scratch: String,
}

#[derive(Clone, Debug)]
struct Group {
    labels: Labels,
    /// The first of its members: groups are in this order.
    first: Labels,
}

/// For each group, its steps.
#[derive(Clone, Debug)]
enum Cells {
    Sum(Vec<KahanSum>),
    Avg(Vec<Mean>),
    Count(Vec<Count>),
    Min(Vec<Least>),
    Max(Vec<Greatest>),
}

impl PartialGroups {
    /// Without groups.
    pub(super) fn new(op: AggregateOp, steps: usize) -> Self {
        let cells = match op {
            AggregateOp::Avg => Cells::Avg(Vec::new()),
            AggregateOp::Count => Cells::Count(Vec::new()),
            AggregateOp::Min => Cells::Min(Vec::new()),
            AggregateOp::Max => Cells::Max(Vec::new()),
            _ => Cells::Sum(Vec::new()),
        };
        Self {
            steps,
            groups: Vec::new(),
            by_labels: HashMap::new(),
            cells,
            seen: Vec::new(),
            counts: StepCounts::new(steps),
            scratch: String::new(),
        }
    }

    /// The group of a series that has a value.
    pub(super) fn group_of(
        &mut self,
        labels: &Labels,
        grouping: &Grouping,
        drops_names: bool,
    ) -> Result<usize, NotApart> {
        self.scratch.clear();
        for (name, value) in labels.iter() {
            let goes = drops_names && is_metadata(name);
            // Series that differ in nothing else become the same, which is an error.
            if goes && name != METRIC_NAME {
                return Err(NotApart);
            }
            if !goes && keeps(grouping, name) {
                append_label_pair(&mut self.scratch, name, value);
            }
        }
        let group = self.group_named(labels)?;
        let first = &mut self.groups[group].first;
        if *labels < *first {
            first.clone_from(labels);
        }
        Ok(group)
    }

    /// The group whose labels are in the scratch space. A new one has the member `first`.
    fn group_named(&mut self, first: &Labels) -> Result<usize, NotApart> {
        if let Some(known) = self.by_labels.get(self.scratch.as_str()) {
            return Ok(*known);
        }
        let group = self.groups.len();
        if (group + 1).saturating_mul(self.steps) > CELLS_MAX {
            return Err(NotApart);
        }
        let labels = Labels::from_encoded(&self.scratch).expect("a part of a label set is a label set");
        self.groups.push(Group { labels, first: first.clone() });
        self.by_labels.insert(self.scratch.as_str().into(), group);
        let cells = self.groups.len() * self.steps;
        self.seen.resize(cells, false);
        match &mut self.cells {
            Cells::Sum(all) => all.resize(cells, KahanSum::default()),
            Cells::Avg(all) => all.resize(cells, Mean::default()),
            Cells::Count(all) => all.resize(cells, Count::default()),
            Cells::Min(all) => all.resize(cells, Least::default()),
            Cells::Max(all) => all.resize(cells, Greatest::default()),
        }
        Ok(group)
    }

    /// Adds the values that a member has at some steps.
    pub(super) fn add_row(&mut self, group: usize, steps: &[u32], values: &[f64]) {
        let own = group * self.steps..(group + 1) * self.steps;
        let seen = &mut self.seen[own.clone()];
        steps.iter().for_each(|step| seen[*step as usize] = true);
        match &mut self.cells {
            Cells::Sum(all) => add_all(&mut all[own], steps, values),
            Cells::Avg(all) => add_all(&mut all[own], steps, values),
            Cells::Count(all) => add_all(&mut all[own], steps, values),
            Cells::Min(all) => add_all(&mut all[own], steps, values),
            Cells::Max(all) => add_all(&mut all[own], steps, values),
        }
    }

    /// Adds what another part of the same aggregation found, of other series.
    ///
    /// # Errors
    /// [`NotApart`] if there are too many groups.
    ///
    /// # Panics
    /// If it is of another aggregation.
    pub fn merge(&mut self, other: &Self) -> Result<(), NotApart> {
        assert_eq!(self.steps, other.steps, "parts of one aggregation have the same steps");
        for (at, group) in other.groups.iter().enumerate() {
            self.scratch.clear();
            self.scratch.push_str(group.labels.as_encoded());
            let into = self.group_named(&group.first)?;
            let first = &mut self.groups[into].first;
            if group.first < *first {
                first.clone_from(&group.first);
            }
            let (own, others) = (into * self.steps, at * self.steps..(at + 1) * self.steps);
            let own = own..own + self.steps;
            for (seen, other) in self.seen[own.clone()].iter_mut().zip(&other.seen[others.clone()]) {
                *seen |= other;
            }
            match (&mut self.cells, &other.cells) {
                (Cells::Sum(all), Cells::Sum(more)) => merge_all(&mut all[own], &more[others]),
                (Cells::Avg(all), Cells::Avg(more)) => merge_all(&mut all[own], &more[others]),
                (Cells::Count(all), Cells::Count(more)) => merge_all(&mut all[own], &more[others]),
                (Cells::Min(all), Cells::Min(more)) => merge_all(&mut all[own], &more[others]),
                (Cells::Max(all), Cells::Max(more)) => merge_all(&mut all[own], &more[others]),
                _ => panic!("parts of one aggregation compute the same"),
            }
        }
        self.counts.add(&other.counts);
        Ok(())
    }

    /// How many groups have a value.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether no series had a value.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The groups in the order of their first members, as the evaluator has them.
    pub(super) fn in_order(&self) -> Vec<(&Labels, usize)> {
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_by(|a, b| self.groups[*a].first.cmp(&self.groups[*b].first));
        order.into_iter().map(|at| (&self.groups[at].labels, at)).collect()
    }

    /// Writes the results of a group.
    pub(super) fn write(&self, group: usize, row: &mut RowMut<'_>) {
        let own = group * self.steps..(group + 1) * self.steps;
        row.present.copy_from_slice(&self.seen[own.clone()]);
        match &self.cells {
            Cells::Sum(all) => finish_all(&all[own], row),
            Cells::Avg(all) => finish_all(&all[own], row),
            Cells::Count(all) => finish_all(&all[own], row),
            Cells::Min(all) => finish_all(&all[own], row),
            Cells::Max(all) => finish_all(&all[own], row),
        }
    }
}

fn add_all<A: Accumulator>(cells: &mut [A], steps: &[u32], values: &[f64]) {
    for (step, value) in steps.iter().zip(values) {
        cells[*step as usize].add(*value);
    }
}

fn merge_all<A: Mergeable>(cells: &mut [A], others: &[A]) {
    cells.iter_mut().zip(others).for_each(|(cell, other)| cell.merge(*other));
}

fn finish_all<A: Accumulator>(cells: &[A], row: &mut RowMut<'_>) {
    for ((cell, value), present) in cells.iter().zip(row.values.iter_mut()).zip(row.present.iter()) {
        if *present {
            *value = cell.finish();
        }
    }
}
