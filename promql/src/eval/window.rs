//! Range selectors and subqueries: for each series and step the samples in `(end - range, end]`.
//!
//! `anchored` and `smoothed` selectors also see what lies up to one lookback before the range, `smoothed` ones
//! one lookback after it.

use std::sync::Arc;

use saturn_model::{
    CounterResetHint, Histogram, HistogramColumns, Labels, METRIC_NAME, SeriesColumns, is_stale_nan,
};

use crate::ast::{Expr, ExprKind, Extension, MatrixSelector, Subquery};
use crate::error::EvalError;
use crate::eval::block::{Block, Cell, Charge, Column, Row, SeriesName, histogram_cost};
use crate::eval::counts::{SampleCounts, StepCounts};
use crate::eval::engine::{Evaluator, ResetHints};
use crate::eval::grid::{Grid, Reach, Reference, positive_duration, request_of, subquery_grid};
use crate::eval::params::{SampleValue, StartTimestamps};
use crate::eval::select::{advance, sample_cost, sorted_by_labels};
use crate::histogram::detect_reset;

/// How many steps and samples are handled before cancellation is looked at again.
const WORK_BETWEEN_CHECKS: usize = 1 << 18;

/// The samples that a range function sees at one step. Never empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window<'a> {
    /// Times of the floats.
    pub(super) timestamps: &'a [i64],
    pub(super) values: &'a [f64],
    /// Start timestamps of the floats, or empty if none are known or wanted.
    pub(super) starts: &'a [i64],
    pub(super) histograms: HistogramWindow<'a>,
    /// Whether any float of the series, in this window or not, is smaller than the one before.
    pub(super) falls: bool,
    /// The step's own time.
    pub(super) time: i64,
    /// Where the range begins, exclusive.
    pub(super) start: i64,
    /// Where the range ends, inclusive.
    pub(super) end: i64,
}

/// The native histograms of a window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HistogramWindow<'a> {
    pub(super) timestamps: &'a [i64],
    pub(super) values: &'a [Arc<Histogram>],
    pub(super) starts: &'a [i64],
}

/// One sample of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowSample<'a> {
    pub(super) timestamp: i64,
    /// 0 if it is not known.
    pub(super) start: i64,
    pub(super) cell: Cell<'a>,
}

/// All samples that a range selector or subquery may need, series by series.
pub(super) struct Ranges {
    series: Vec<RangeSeries>,
    reference: Reference,
    range_ms: i64,
    reach: Reach,
    pub(super) extension: Option<Extension>,
    starts: StartTimestamps,
    /// Whether the samples were computed and not read.
    is_subquery: bool,
    /// Holds the samples' place in the budget.
    _charge: Charge,
}

struct RangeSeries {
    name: SeriesName,
    samples: Samples,
}

enum Samples {
    /// As the source gave them.
    Shared(Arc<[SeriesColumns]>, usize),
    /// Computed, or cleaned of stale markers.
    Owned(Box<SeriesColumns>),
}

impl Samples {
    fn columns(&self) -> &SeriesColumns {
        match self {
            Samples::Shared(selected, index) => &selected[*index],
            Samples::Owned(columns) => columns,
        }
    }
}

impl<'a> Window<'a> {
    /// Whether it holds floats only, that do not know when their counter began.
    pub(super) fn is_plain(&self) -> bool {
        self.histograms.is_empty() && self.starts.is_empty()
    }

    /// The samples as a series without labels.
    pub(super) fn to_columns(self) -> SeriesColumns {
        let mut columns =
            SeriesColumns::floats(Labels::empty(), self.timestamps.to_vec(), self.values.to_vec());
        columns.histograms.timestamps = self.histograms.timestamps.to_vec();
        columns.histograms.values = self.histograms.values.to_vec();
        columns
    }

    /// All samples by time.
    pub(super) fn samples(self) -> impl Iterator<Item = WindowSample<'a>> {
        let (mut float, mut histogram) = (0, 0);
        std::iter::from_fn(move || {
            let histograms = self.histograms;
            let float_is_next = match (self.timestamps.get(float), histograms.timestamps.get(histogram)) {
                (Some(float), Some(histogram)) => float < histogram,
                (float, None) => float.map(|_| true)?,
                (None, Some(_)) => false,
            };
            let at = if float_is_next { &mut float } else { &mut histogram };
            let index = *at;
            *at += 1;
            Some(if float_is_next { self.float(index) } else { histograms.sample(index) })
        })
    }

    /// The float at `index`.
    pub(super) fn float(&self, index: usize) -> WindowSample<'a> {
        WindowSample {
            timestamp: self.timestamps[index],
            start: self.starts.get(index).copied().unwrap_or(0),
            cell: Cell::Float(self.values[index]),
        }
    }

    /// The newest sample.
    pub(super) fn last(self) -> Option<WindowSample<'a>> {
        let float = self.values.len().checked_sub(1).map(|index| self.float(index));
        let histogram =
            self.histograms.values.len().checked_sub(1).map(|index| self.histograms.sample(index));
        float.into_iter().chain(histogram).max_by_key(|sample| sample.timestamp)
    }

    /// The newest two samples, the older one first.
    pub(super) fn last_two(self) -> Option<[WindowSample<'a>; 2]> {
        let (floats, histograms) = (self.values.len(), self.histograms.values.len());
        let last_floats = (floats.saturating_sub(2)..floats).map(|index| self.float(index));
        let last_histograms =
            (histograms.saturating_sub(2)..histograms).map(|index| self.histograms.sample(index));
        let mut newest: Vec<WindowSample<'a>> = last_floats.chain(last_histograms).collect();
        newest.sort_by_key(|sample| sample.timestamp);
        match newest.as_slice() {
            [.., before, last] => Some([*before, *last]),
            _ => None,
        }
    }
}

impl<'a> HistogramWindow<'a> {
    /// The histogram at `index`.
    pub(super) fn sample(&self, index: usize) -> WindowSample<'a> {
        WindowSample {
            timestamp: self.timestamps[index],
            start: self.starts.get(index).copied().unwrap_or(0),
            cell: Cell::Histogram(&self.values[index]),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl Evaluator<'_> {
    /// The samples of a range selector or subquery, possibly in parentheses.
    pub(super) fn ranges(&self, expr: &Expr, grid: &Grid) -> Result<Ranges, EvalError> {
        match &expr.without_parens().kind {
            ExprKind::MatrixSelector(matrix) => self.ranges_of_selector(matrix, grid),
            ExprKind::Subquery(subquery) => self.ranges_of_subquery(subquery, grid),
            _ => Err(EvalError::Invalid("expected an expression of type range vector".into())),
        }
    }

    fn ranges_of_selector(&self, matrix: &MatrixSelector, grid: &Grid) -> Result<Ranges, EvalError> {
        let range_ms = positive_duration(&matrix.range, self.params)?;
        let reference = Reference::new(&matrix.selector.time, self.params);
        let extension = matrix.selector.extension;
        let mut charge = self.budget.charge();
        let mut series = Vec::new();
        if grid.count > 0 {
            let request = request_of(&matrix.selector, range_ms, grid, self.params);
            let selected = self.source.select(&request)?;
            charge.grow(sample_cost(&selected))?;
            for index in sorted_by_labels(&selected) {
                self.check_cancelled()?;
                let columns = &selected[index];
                let detected = match self.resets {
                    ResetHints::Detected => with_detected_resets(columns),
                    ResetHints::FromSource => None,
                };
                let seen = detected.as_ref().unwrap_or(columns);
                let samples = match (has_stale_markers(seen), detected.is_some()) {
                    (true, _) => Samples::Owned(Box::new(without_stale_markers(seen))),
                    (false, true) => Samples::Owned(Box::new(seen.clone())),
                    (false, false) => Samples::Shared(Arc::clone(&selected), index),
                };
                series.push(RangeSeries { name: columns.labels.clone().into(), samples });
            }
        }
        // The extended forms do not know start timestamps.
        let starts =
            if extension.is_none() { self.params.start_timestamps } else { StartTimestamps::Ignored };
        let reach = Reach::of(extension, self.params);
        let is_subquery = false;
        Ok(Ranges { series, reference, range_ms, reach, extension, starts, is_subquery, _charge: charge })
    }

    fn ranges_of_subquery(&self, subquery: &Subquery, grid: &Grid) -> Result<Ranges, EvalError> {
        let range_ms = positive_duration(&subquery.range, self.params)?;
        let reference = Reference::new(&subquery.time, self.params);
        let mut charge = self.budget.charge();
        let mut series = Vec::new();
        let inner_grid = subquery_grid(subquery, grid, self.params)?;
        if grid.count > 0 && inner_grid.count > 0 {
            let counts = SampleCounts::total();
            let evaluator = self.with_resets(ResetHints::FromSource);
            let block = evaluator.counting_into(&counts).vector(&subquery.expr, &inner_grid)?;
            self.counts.add_read_of(&counts);
            for (name, row) in block.rows() {
                self.check_cancelled()?;
                let mut columns = samples_of_row(row, &inner_grid);
                forget_resets(&mut columns);
                charge.grow(columns.len())?;
                series.push(RangeSeries { name: name.clone(), samples: Samples::Owned(Box::new(columns)) });
            }
        }
        let (reach, starts) = (Reach::default(), StartTimestamps::Ignored);
        let (extension, is_subquery) = (None, true);
        Ok(Ranges { series, reference, range_ms, reach, extension, starts, is_subquery, _charge: charge })
    }
}

/// A row as samples.
pub(super) fn samples_of_row(row: Row<'_>, grid: &Grid) -> SeriesColumns {
    let (timestamps, values) = row.floats().map(|(step, value)| (grid.time(step), value)).unzip();
    let mut columns = SeriesColumns { timestamps, values, ..SeriesColumns::default() };
    for (step, histogram) in row.histograms() {
        columns.histograms.push(grid.time(step), Arc::clone(histogram));
    }
    columns
}

/// What histograms say about the sample before them is not true for the steps of a subquery.
fn forget_resets(columns: &mut SeriesColumns) {
    for histogram in &mut columns.histograms.values {
        if matches!(histogram.hint, CounterResetHint::Reset | CounterResetHint::NotReset) {
            let hint = CounterResetHint::Unknown;
            *histogram = Arc::new(Histogram { hint, ..Histogram::clone(histogram) });
        }
    }
}

/// A series whose histograms say whether there was a counter reset before them, where that can be seen.
/// Nothing if they say so already.
pub(super) fn with_detected_resets(columns: &SeriesColumns) -> Option<SeriesColumns> {
    let is_unknown = |histogram: &Arc<Histogram>| histogram.hint == CounterResetHint::Unknown;
    if !columns.histograms.values.iter().skip(1).any(is_unknown) {
        return None;
    }
    let mut detected = columns.clone();
    let samples = &columns.histograms;
    for index in 1..samples.values.len() {
        let (before, current) = (&samples.values[index - 1], &samples.values[index]);
        let (from, to) = (samples.timestamps[index - 1], samples.timestamps[index]);
        // A float in between hides the histogram before.
        let floats_until = |time| columns.timestamps.partition_point(|t| *t < time);
        let hidden = floats_until(from) != floats_until(to);
        if is_unknown(current) && !hidden && !before.is_stale() && !current.is_stale() {
            let hint = match detect_reset(current, before) {
                true => CounterResetHint::Reset,
                false => CounterResetHint::NotReset,
            };
            detected.histograms.values[index] = Arc::new(Histogram { hint, ..Histogram::clone(current) });
        }
    }
    Some(detected)
}

/// Whether there is a stale marker. All values are looked at: several at a time take less than one by one to the first.
pub(super) fn any_stale(values: &[f64]) -> bool {
    values.iter().fold(false, |any, value| any | is_stale_nan(*value))
}

/// Whether a value is smaller than the one before it; as with [`any_stale`].
pub(super) fn falls(values: &[f64]) -> bool {
    values.windows(2).fold(false, |falls, pair| falls | (pair[1] < pair[0]))
}

pub(super) fn has_stale_markers(columns: &SeriesColumns) -> bool {
    any_stale(&columns.values) || columns.histograms.values.iter().any(|histogram| histogram.is_stale())
}

pub(super) fn without_stale_markers(columns: &SeriesColumns) -> SeriesColumns {
    fn kept<T: Clone>(column: &[T], keep: &[bool]) -> Vec<T> {
        column.iter().zip(keep).filter(|(_, keep)| **keep).map(|(value, _)| value.clone()).collect()
    }
    let keep: Vec<bool> = columns.values.iter().map(|value| !is_stale_nan(*value)).collect();
    let histograms = &columns.histograms;
    let keep_histograms: Vec<bool> =
        histograms.values.iter().map(|histogram| !histogram.is_stale()).collect();
    SeriesColumns {
        labels: columns.labels.clone(),
        timestamps: kept(&columns.timestamps, &keep),
        values: kept(&columns.values, &keep),
        start_timestamps: kept(&columns.start_timestamps, &keep),
        histograms: HistogramColumns {
            timestamps: kept(&histograms.timestamps, &keep_histograms),
            values: kept(&histograms.values, &keep_histograms),
            start_timestamps: kept(&histograms.start_timestamps, &keep_histograms),
        },
    }
}

/// A part of a column of times that only ever moves forward.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slider {
    pub(super) first: usize,
    pub(super) past: usize,
}

impl Slider {
    /// Moves to the times in `(after, until]`.
    pub(super) fn slide(&mut self, timestamps: &[i64], after: i64, until: i64) {
        self.first += advance(&timestamps[self.first..], after);
        self.past = self.past.max(self.first);
        self.past += advance(&timestamps[self.past..], until);
    }

    fn of<T>(self, column: &[T]) -> &[T] {
        // Columns of start timestamps are empty if none is known.
        column.get(self.first..self.past).unwrap_or_default()
    }
}

impl Ranges {
    /// Calls `visit` for every window that has samples, series after series, steps ascending.
    pub(super) fn for_each_window(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        mut visit: impl FnMut(&SeriesName, usize, Window<'_>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let mut counts = StepCounts::new(grid.count);
        for series in &self.series {
            evaluator.check_cancelled()?;
            self.slide(series, evaluator, (grid, &mut counts), |step, window| {
                visit(&series.name, step, window)
            })?;
        }
        evaluator.counts.add(&counts);
        Ok(())
    }

    /// Slides the window along one series, and counts what it sees.
    fn slide<'s>(
        &self,
        series: &'s RangeSeries,
        evaluator: &Evaluator<'_>,
        (grid, counts): (&Grid, &mut StepCounts),
        mut visit: impl FnMut(usize, Window<'s>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let columns = series.samples.columns();
        let histograms = &columns.histograms;
        let (starts, histogram_starts): (&'s [i64], &'s [i64]) = match self.starts {
            StartTimestamps::Used => (&columns.start_timestamps, &histograms.start_timestamps),
            StartTimestamps::Ignored => (&[], &[]),
        };
        let falls = falls(&columns.values);
        let (mut floats, mut hists) = (Slider::default(), Slider::default());
        let costs = running_costs(histograms);
        let newly_read = if self.is_subquery { 0 } else { usize::MAX };
        // One series of many steps and long windows can be most of a query's work.
        let mut work = 0;
        for (step, time) in grid.times().enumerate() {
            work += 1 + (floats.past - floats.first) + (hists.past - hists.first);
            if work > WORK_BETWEEN_CHECKS {
                evaluator.check_cancelled()?;
                work = 0;
            }
            let end = self.reference.at(time);
            let start = end.saturating_sub(self.range_ms);
            let after = start.saturating_sub(self.reach.back_ms);
            let until = end.saturating_add(self.reach.ahead_ms);
            let seen = (floats.past, hists.past);
            floats.slide(&columns.timestamps, after, until);
            hists.slide(&histograms.timestamps, after, until);
            let cost_since = |float: usize, histogram: usize| {
                let float_cost = floats.past - float.max(floats.first);
                float_cost + costs.get(hists.past).map_or(0, |to| to - costs[histogram.max(hists.first)])
            };
            counts.count(step, cost_since(0, 0), cost_since(seen.0, seen.1).min(newly_read));
            if floats.first < floats.past || hists.first < hists.past {
                let window = Window {
                    timestamps: floats.of(&columns.timestamps),
                    values: floats.of(&columns.values),
                    starts: floats.of(starts),
                    histograms: HistogramWindow {
                        timestamps: hists.of(&histograms.timestamps),
                        values: hists.of(&histograms.values),
                        starts: hists.of(histogram_starts),
                    },
                    falls,
                    time,
                    start,
                    end,
                };
                visit(step, window)?;
            }
        }
        Ok(())
    }

    /// Computes one value per window, on several cores where that is worth it. Series without any value are left out.
    /// Names stay as they are. What there is to say goes to the evaluator that `compute` is given.
    pub(super) fn map_windows(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        compute: impl Fn(&Evaluator<'_>, &SeriesName, usize, Window<'_>) -> Option<SampleValue> + Sync,
    ) -> Result<Block, EvalError> {
        self.map_parts(evaluator, grid, |own, series| {
            map_series(self, series, (own, grid), |name, step, window| compute(own, name, step, window))
        })
    }

    /// [`Ranges::map_windows`] with something that `compute` may remember from window to window; results must not
    /// depend on it.
    pub(super) fn map_windows_with<S: Default>(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        compute: impl Fn(&Evaluator<'_>, &mut S, &SeriesName, Window<'_>) -> Option<SampleValue> + Sync,
    ) -> Result<Block, EvalError> {
        self.map_parts(evaluator, grid, |own, series| {
            let mut memory = S::default();
            map_series(self, series, (own, grid), |name, _, window| compute(own, &mut memory, name, window))
        })
    }

    /// [`Ranges::map_windows`] of which `fold` computes what it can: windows of floats only, several at a time.
    pub(super) fn fold_windows(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        fold: Fold,
        compute: impl Fn(&Evaluator<'_>, &SeriesName, Window<'_>) -> Option<SampleValue> + Sync,
    ) -> Result<Block, EvalError> {
        self.map_parts(evaluator, grid, |own, series| {
            fold_series(self, series, (own, grid), fold, |name, window| compute(own, name, window))
        })
    }

    /// Gives parts of the series to `map`, at the same time where that is worth it, and puts the blocks together.
    fn map_parts(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        map: impl Fn(&Evaluator<'_>, &[RangeSeries]) -> Result<Block, EvalError> + Sync,
    ) -> Result<Block, EvalError> {
        let parts = evaluator.parts(self.work(grid)).min(self.series.len());
        if parts <= 1 {
            return map(evaluator, &self.series);
        }
        let length = self.series.len().div_ceil(parts);
        let cut: Vec<&[RangeSeries]> = self.series.chunks(length).collect();
        let blocks = evaluator.in_parts(cut.len(), |own, at| map(own, cut[at]))?;
        let mut all = Block::new(grid.count, &evaluator.budget);
        for (block, annotations) in blocks {
            evaluator.annotations().merge(annotations);
            all.append(block);
        }
        Ok(all)
    }

    /// [`Ranges::map_windows`] series after series, for what keeps something in mind.
    pub(super) fn map_windows_in_order(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        compute: impl FnMut(&SeriesName, usize, Window<'_>) -> Option<SampleValue>,
    ) -> Result<Block, EvalError> {
        map_series(self, &self.series, (evaluator, grid), compute)
    }

    /// Samples and steps of all series, roughly.
    fn work(&self, grid: &Grid) -> usize {
        let samples: usize = self.series.iter().map(|series| series.samples.columns().weight()).sum();
        samples.saturating_add(self.series.len().saturating_mul(grid.count))
    }
}

/// Computes one value per window of some series.
fn map_series(
    ranges: &Ranges,
    series: &[RangeSeries],
    (evaluator, grid): (&Evaluator<'_>, &Grid),
    mut compute: impl FnMut(&SeriesName, usize, Window<'_>) -> Option<SampleValue>,
) -> Result<Block, EvalError> {
    let mut block = Block::new(grid.count, &evaluator.budget);
    let mut column = Column::new(grid.count);
    let mut counts = StepCounts::new(grid.count);
    for series in series {
        evaluator.check_cancelled()?;
        column.clear();
        ranges.slide(series, evaluator, (grid, &mut counts), |step, window| {
            if let Some(value) = compute(&series.name, step, window) {
                column.set(step, value);
            }
            Ok(())
        })?;
        if !column.as_row().is_empty() {
            block.push_row(series.name.clone(), column.as_row())?;
        }
    }
    evaluator.counts.add(&counts);
    Ok(block)
}

/// Windows of floats that a [`Fold`] takes at a time.
pub(super) const LANES: usize = 4;

/// Computes one number of the floats of each of several windows, and of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fold {
    pub(super) several: fn([&[f64]; LANES]) -> [f64; LANES],
    pub(super) one: fn(&[f64]) -> f64,
}

/// As [`map_series`]; windows of floats wait until there are enough for the fold.
fn fold_series(
    ranges: &Ranges,
    series: &[RangeSeries],
    (evaluator, grid): (&Evaluator<'_>, &Grid),
    fold: Fold,
    compute: impl Fn(&SeriesName, Window<'_>) -> Option<SampleValue>,
) -> Result<Block, EvalError> {
    let mut block = Block::new(grid.count, &evaluator.budget);
    let mut column = Column::new(grid.count);
    let mut counts = StepCounts::new(grid.count);
    for series in series {
        evaluator.check_cancelled()?;
        column.clear();
        let mut steps = [0; LANES];
        let mut waiting: [&[f64]; LANES] = [&[]; LANES];
        let mut count = 0;
        ranges.slide(series, evaluator, (grid, &mut counts), |step, window| {
            if !window.histograms.is_empty() {
                if let Some(value) = compute(&series.name, window) {
                    column.set(step, value);
                }
                return Ok(());
            }
            (steps[count], waiting[count]) = (step, window.values);
            count += 1;
            if count == LANES {
                count = 0;
                for (step, value) in steps.iter().zip((fold.several)(waiting)) {
                    column.set(*step, SampleValue::Float(value));
                }
            }
            Ok(())
        })?;
        for (step, values) in steps.iter().zip(waiting).take(count) {
            column.set(*step, SampleValue::Float((fold.one)(values)));
        }
        if !column.as_row().is_empty() {
            block.push_row(series.name.clone(), column.as_row())?;
        }
    }
    evaluator.counts.add(&counts);
    Ok(block)
}

/// What all histograms before each one cost of the budget; empty if there are none.
fn running_costs(histograms: &HistogramColumns) -> Vec<usize> {
    if histograms.values.is_empty() {
        return Vec::new();
    }
    let mut total = 0;
    let costs = histograms.values.iter().map(|histogram| histogram_cost(histogram));
    std::iter::once(0)
        .chain(costs.map(|cost| {
            total += cost;
            total
        }))
        .collect()
}

/// The metric's name, if the series still has one.
pub(super) fn metric_name(name: &SeriesName) -> &str {
    name.labels.get(METRIC_NAME).unwrap_or("")
}
