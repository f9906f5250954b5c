//! Instant selectors: the newest sample in the lookback window of each step.
//!
//! The window is open on the left: a sample exactly `lookback` old is not seen. A stale marker ends
//! the series until its next sample.

use std::sync::Arc;

use saturn_model::{SeriesColumns, is_stale_nan};

use crate::ast::VectorSelector;
use crate::error::EvalError;
use crate::eval::block::{Block, Row};
use crate::eval::engine::Evaluator;
use crate::eval::grid::{Grid, Reference, request_of};
use crate::go_text::to_float;

/// Which part of a sample an instant selector yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SamplePart {
    /// Its value.
    Value,
    /// Its own time in seconds, for `timestamp()`.
    Timestamp,
}

impl Evaluator<'_> {
    /// An instant selector on all steps of `grid`.
    pub(super) fn instant_selector(
        &self,
        selector: &VectorSelector,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        self.instant_selector_part(selector, grid, SamplePart::Value)
    }

    pub(super) fn instant_selector_part(
        &self,
        selector: &VectorSelector,
        grid: &Grid,
        part: SamplePart,
    ) -> Result<Block, EvalError> {
        let mut block = Block::new(grid.count, &self.budget);
        if grid.count == 0 {
            return Ok(block);
        }
        let request = request_of(selector, 0, grid, self.params);
        let selected = self.source.select(&request)?;
        let mut charge = self.budget.charge();
        charge.grow(sample_count(&selected))?;
        let reference = Reference::new(&selector.time, self.params);
        let (mut values, mut present) = (vec![0.0; grid.count], vec![false; grid.count]);
        for index in sorted_by_labels(&selected) {
            self.check_cancelled()?;
            let series = &selected[index];
            present.fill(false);
            let mut seen = 0;
            for (step, time) in grid.times().enumerate() {
                let time = reference.at(time);
                seen += advance(&series.timestamps[seen..], time);
                let Some(last) = seen.checked_sub(1) else { continue };
                let (timestamp, value) = (series.timestamps[last], series.values[last]);
                if timestamp > time.saturating_sub(self.params.lookback_ms) && !is_stale_nan(value) {
                    present[step] = true;
                    values[step] = match part {
                        SamplePart::Value => value,
                        SamplePart::Timestamp => to_float(timestamp) / 1000.0,
                    };
                }
            }
            let row = Row { values: &values, present: &present };
            if !row.is_empty() {
                block.push_row(series.labels.clone().into(), row)?;
            }
        }
        Ok(block)
    }
}

/// How many of the ascending `timestamps` are at or before `time`. Looks at the next few one by one, as
/// steps are usually close, then halves.
pub(super) fn advance(timestamps: &[i64], time: i64) -> usize {
    const NEAR: usize = 8;
    match timestamps.iter().take(NEAR).position(|t| *t > time) {
        Some(count) => count,
        None if timestamps.len() <= NEAR => timestamps.len(),
        None => NEAR + timestamps[NEAR..].partition_point(|t| *t <= time),
    }
}

/// All samples of a selection.
pub(super) fn sample_count(selected: &Arc<[SeriesColumns]>) -> usize {
    selected.iter().map(|series| series.timestamps.len()).sum()
}

/// The order of series that everything else relies on.
pub(super) fn sorted_by_labels(selected: &Arc<[SeriesColumns]>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..selected.len()).collect();
    if !selected.is_sorted_by(|a, b| a.labels <= b.labels) {
        order.sort_by(|a, b| selected[*a].labels.cmp(&selected[*b].labels));
    }
    order
}
