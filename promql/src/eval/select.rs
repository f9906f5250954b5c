//! Instant selectors: the newest sample in the lookback window of each step.
//!
//! The window is open on the left: a sample exactly `lookback` old is not seen. A stale marker ends
//! the series until its next sample. `smoothed` selectors interpolate between the samples around the step.

use std::sync::Arc;

use saturn_model::{SeriesColumns, is_stale_nan};

use crate::ast::{Extension, VectorSelector};
use crate::error::EvalError;
use crate::eval::block::{Block, Column, histogram_cost};
use crate::eval::counts::StepCounts;
use crate::eval::engine::{Evaluator, ResetHints};
use crate::eval::grid::{Grid, Reference, request_of};
use crate::eval::params::{SampleValue, SelectorRequest};
use crate::eval::remarks::Remarks;
use crate::eval::smoothed::smooth;
use crate::eval::window::{has_stale_markers, with_detected_resets, without_stale_markers};
use crate::go_text::to_float;
use crate::span::Span;

/// Which part of a sample an instant selector yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SamplePart {
    /// Its value.
    Value,
    /// Its own time in seconds, for `timestamp()`.
    Timestamp,
    /// Its start timestamp in seconds, for `start_timestamp()`.
    StartTimestamp,
}

impl Evaluator<'_> {
    /// An instant selector on all steps of `grid`.
    pub(super) fn instant_selector(
        &self,
        selector: &VectorSelector,
        span: Span,
        grid: &Grid,
        part: SamplePart,
    ) -> Result<Block, EvalError> {
        if grid.count == 0 {
            return Ok(Block::new(0, &self.budget));
        }
        let request = request_of(selector, 0, grid, self.params);
        let reference = Reference::new(&selector.time, self.params);
        if selector.extension == Some(Extension::Smoothed) && part == SamplePart::Value {
            return self.smoothed_selector(&request, reference, span, grid);
        }
        self.instant_samples(&request, reference, grid, part)
    }

    /// The newest samples that a request has at what `reference` makes of each step.
    pub(super) fn instant_samples(
        &self,
        request: &SelectorRequest,
        reference: Reference,
        grid: &Grid,
        part: SamplePart,
    ) -> Result<Block, EvalError> {
        let mut block = Block::new(grid.count, &self.budget);
        let selected = self.source.select(request)?;
        let mut charge = self.budget.charge();
        charge.grow(sample_cost(&selected))?;
        let mut column = Column::new(grid.count);
        let mut counts = StepCounts::new(grid.count);
        for index in sorted_by_labels(&selected) {
            self.check_cancelled()?;
            let detected = match self.resets {
                ResetHints::Detected => with_detected_resets(&selected[index]),
                ResetHints::FromSource => None,
            };
            let series = detected.as_ref().unwrap_or(&selected[index]);
            column.clear();
            let (mut floats, mut histograms) = (0, 0);
            let mut counted = (0, 0);
            for (step, time) in grid.times().enumerate() {
                let time = reference.at(time);
                floats += advance(&series.timestamps[floats..], time);
                histograms += advance(&series.histograms.timestamps[histograms..], time);
                if let Some(sample) = newest(series, floats, histograms)
                    && sample.timestamp > time.saturating_sub(self.params.lookback_ms)
                    && !sample.is_stale()
                {
                    column.set(step, sample.part(part));
                    let is_new = counted != (floats, histograms);
                    counted = (floats, histograms);
                    counts.count(step, sample.cost(), if is_new { sample.cost() } else { 0 });
                }
            }
            if !column.as_row().is_empty() {
                block.push_row(series.labels.clone().into(), column.as_row())?;
            }
        }
        self.counts.add(&counts);
        Ok(block)
    }

    fn smoothed_selector(
        &self,
        request: &SelectorRequest,
        reference: Reference,
        span: Span,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let mut block = Block::new(grid.count, &self.budget);
        let selected = self.source.select(request)?;
        let mut charge = self.budget.charge();
        charge.grow(sample_cost(&selected))?;
        let mut column = Column::new(grid.count);
        for index in sorted_by_labels(&selected) {
            self.check_cancelled()?;
            let cleaned =
                has_stale_markers(&selected[index]).then(|| without_stale_markers(&selected[index]));
            let series = cleaned.as_ref().unwrap_or(&selected[index]);
            column.clear();
            let remarks = Remarks { evaluator: self, metric: series.labels.metric_name(), span };
            for (step, time) in grid.times().enumerate() {
                if let Some(value) = smooth(series, reference.at(time), self.params.lookback_ms, &remarks) {
                    column.set(step, value);
                }
            }
            if !column.as_row().is_empty() {
                block.push_row(series.labels.clone().into(), column.as_row())?;
            }
        }
        Ok(block)
    }
}

/// A sample of a series of either kind.
struct Found<'a> {
    series: &'a SeriesColumns,
    timestamp: i64,
    index: usize,
    is_histogram: bool,
}

/// The newest among the first `floats` floats and the first `histograms` histograms.
fn newest(series: &SeriesColumns, floats: usize, histograms: usize) -> Option<Found<'_>> {
    let float = floats.checked_sub(1).map(|index| (series.timestamps[index], index));
    let histogram = histograms.checked_sub(1).map(|index| (series.histograms.timestamps[index], index));
    let is_histogram = histogram.map(|(time, _)| time) > float.map(|(time, _)| time);
    let (timestamp, index) = if is_histogram { histogram? } else { float? };
    Some(Found { series, timestamp, index, is_histogram })
}

impl Found<'_> {
    fn cost(&self) -> usize {
        if self.is_histogram { histogram_cost(&self.series.histograms.values[self.index]) } else { 1 }
    }

    fn is_stale(&self) -> bool {
        match self.is_histogram {
            true => self.series.histograms.values[self.index].is_stale(),
            false => is_stale_nan(self.series.values[self.index]),
        }
    }

    fn part(&self, part: SamplePart) -> SampleValue {
        let histograms = &self.series.histograms;
        match part {
            SamplePart::Value if self.is_histogram => {
                SampleValue::Histogram(Arc::clone(&histograms.values[self.index]))
            }
            SamplePart::Value => SampleValue::Float(self.series.values[self.index]),
            SamplePart::Timestamp => SampleValue::Float(to_float(self.timestamp) / 1000.0),
            SamplePart::StartTimestamp => {
                let starts = match self.is_histogram {
                    true => &histograms.start_timestamps,
                    false => &self.series.start_timestamps,
                };
                SampleValue::Float(to_float(starts.get(self.index).copied().unwrap_or(0)) / 1000.0)
            }
        }
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

/// What all samples of a selection cost of the budget.
pub(super) fn sample_cost(selected: &Arc<[SeriesColumns]>) -> usize {
    let histograms = |series: &SeriesColumns| -> usize {
        series.histograms.values.iter().map(|histogram| histogram_cost(histogram)).sum()
    };
    selected.iter().map(|series| series.timestamps.len() + histograms(series)).sum()
}

/// The order of series that everything else relies on.
pub(super) fn sorted_by_labels(selected: &Arc<[SeriesColumns]>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..selected.len()).collect();
    if !selected.is_sorted_by(|a, b| a.labels <= b.labels) {
        order.sort_by(|a, b| selected[*a].labels.cmp(&selected[*b].labels));
    }
    order
}
