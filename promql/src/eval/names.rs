//! Label sets of results: names that go, labels that stay, series that fall together.

use std::collections::HashMap;

use saturn_model::{Labels, METRIC_NAME};

use crate::error::EvalError;
use crate::eval::block::{Block, SeriesName};
use crate::eval::params::SampleValue;

/// The error when two series of one step have the same labels.
pub(super) const SAME_LABELSET: &str = "vector cannot contain metrics with the same labelset";

/// What to do with series that have the same labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duplicates {
    /// It is an error.
    Refuse,
    /// Make one of them if they never have a value at the same step.
    MergeDisjoint,
}

/// Labels that describe the metric and go together with its name.
pub(super) fn is_metadata(name: &str) -> bool {
    matches!(name, METRIC_NAME | "__type__" | "__unit__")
}

/// `labels` without the metric's name, type and unit.
pub(super) fn without_metadata(labels: &Labels) -> Labels {
    keep_labels(labels, |name| !is_metadata(name))
}

/// The labels whose name satisfies `keep`.
pub(super) fn keep_labels(labels: &Labels, mut keep: impl FnMut(&str) -> bool) -> Labels {
    if labels.iter().all(|(name, _)| keep(name)) {
        return labels.clone();
    }
    Labels::from_pairs(labels.iter().filter(|(name, _)| keep(name)))
        .expect("a part of a label set is a label set")
}

/// Joins series with equal names. The first of them keeps its place. Series of which only one is to lose its
/// name stay apart: they are called differently in the end.
pub(super) fn merge_duplicates(block: Block, duplicates: Duplicates) -> Result<Block, EvalError> {
    let mut first_with: HashMap<&SeriesName, usize> = HashMap::with_capacity(block.len());
    let mut target = Vec::with_capacity(block.len());
    for (index, name) in block.names.iter().enumerate() {
        target.push(*first_with.entry(name).or_insert(index));
    }
    if first_with.len() == block.len() {
        return Ok(block);
    }
    // Series without values are not there: Prometheus would not know them.
    let kept: Vec<usize> = (0..block.len()).filter(|index| !block.row(*index).is_empty()).collect();
    if kept.len() < block.len() {
        return merge_duplicates(block.select(&kept)?, duplicates);
    }
    if duplicates == Duplicates::Refuse {
        return Err(EvalError::Execution(SAME_LABELSET.into()));
    }
    let mut merged = block.like();
    let mut place = vec![0; block.len()];
    for (index, (name, row)) in block.rows().enumerate() {
        if target[index] == index {
            place[index] = merged.len();
            merged.push_row(name.clone(), row)?;
            continue;
        }
        let into = place[target[index]];
        for (step, cell) in row.cells() {
            if merged.row(into).present[step] {
                return Err(EvalError::Execution(SAME_LABELSET.into()));
            }
            merged.set(into, step, cell.into())?;
        }
    }
    Ok(merged)
}

/// Collects series whose labels become known one by one.
pub(super) struct BlockBuilder {
    pub(super) block: Block,
    rows: HashMap<SeriesName, usize>,
}

impl BlockBuilder {
    pub(super) fn new(block: Block) -> Self {
        Self { block, rows: HashMap::new() }
    }

    /// The row of the series with this name; a new one if there is none yet.
    pub(super) fn row(&mut self, labels: Labels, drop_name: bool) -> Result<usize, EvalError> {
        let name = SeriesName { labels, drop_name };
        if let Some(row) = self.rows.get(&name) {
            return Ok(*row);
        }
        let row = self.block.len();
        self.block.push(name.clone())?;
        self.rows.insert(name, row);
        Ok(row)
    }

    /// Sets a cell; it is an error if it has a value already.
    pub(super) fn set(&mut self, row: usize, step: usize, value: SampleValue) -> Result<(), EvalError> {
        if self.block.row(row).present[step] {
            return Err(EvalError::Execution(SAME_LABELSET.into()));
        }
        self.block.set(row, step, value)
    }
}
