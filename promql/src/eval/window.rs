//! Range selectors and subqueries: for each series and step the samples in `(end - range, end]`.

use std::sync::Arc;

use saturn_model::{METRIC_NAME, SeriesColumns, is_stale_nan};

use crate::ast::{Expr, ExprKind, MatrixSelector, Subquery};
use crate::error::EvalError;
use crate::eval::block::{Block, Charge, Row, SeriesName};
use crate::eval::engine::Evaluator;
use crate::eval::grid::{Grid, Reference, positive_duration, request_of, subquery_grid};
use crate::eval::select::{advance, sample_count, sorted_by_labels};

/// How many steps and samples are handled before cancellation is looked at again.
const WORK_BETWEEN_CHECKS: usize = 1 << 18;

/// The samples that a range function sees at one step. Never empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window<'a> {
    pub(super) timestamps: &'a [i64],
    pub(super) values: &'a [f64],
    /// The step's own time.
    pub(super) time: i64,
    /// Where the window begins, exclusive.
    pub(super) start: i64,
    /// Where the window ends, inclusive.
    pub(super) end: i64,
}

/// All samples that a range selector or subquery may need, series by series.
pub(super) struct Ranges {
    series: Vec<RangeSeries>,
    reference: Reference,
    range_ms: i64,
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
    Owned(Vec<i64>, Vec<f64>),
}

impl Samples {
    fn columns(&self) -> (&[i64], &[f64]) {
        match self {
            Samples::Shared(selected, index) => (&selected[*index].timestamps, &selected[*index].values),
            Samples::Owned(timestamps, values) => (timestamps, values),
        }
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
        let mut charge = self.budget.charge();
        let mut series = Vec::new();
        if grid.count > 0 {
            let request = request_of(&matrix.selector, range_ms, grid, self.params);
            let selected = self.source.select(&request)?;
            charge.grow(sample_count(&selected))?;
            for index in sorted_by_labels(&selected) {
                self.check_cancelled()?;
                let columns = &selected[index];
                let samples = match columns.values.iter().any(|value| is_stale_nan(*value)) {
                    false => Samples::Shared(Arc::clone(&selected), index),
                    true => without_stale_markers(columns),
                };
                series.push(RangeSeries { name: columns.labels.clone().into(), samples });
            }
        }
        Ok(Ranges { series, reference, range_ms, _charge: charge })
    }

    fn ranges_of_subquery(&self, subquery: &Subquery, grid: &Grid) -> Result<Ranges, EvalError> {
        let range_ms = positive_duration(&subquery.range, self.params)?;
        let reference = Reference::new(&subquery.time, self.params);
        let mut charge = self.budget.charge();
        let mut series = Vec::new();
        let inner_grid = subquery_grid(subquery, grid, self.params)?;
        if grid.count > 0 && inner_grid.count > 0 {
            let block = self.vector(&subquery.expr, &inner_grid)?;
            for (name, row) in block.rows() {
                self.check_cancelled()?;
                let (timestamps, values): (Vec<i64>, Vec<f64>) =
                    row.cells().map(|(step, value)| (inner_grid.time(step), value)).unzip();
                charge.grow(timestamps.len())?;
                series.push(RangeSeries { name: name.clone(), samples: Samples::Owned(timestamps, values) });
            }
        }
        Ok(Ranges { series, reference, range_ms, _charge: charge })
    }
}

fn without_stale_markers(columns: &SeriesColumns) -> Samples {
    let samples = columns.timestamps.iter().zip(&columns.values);
    let (timestamps, values) = samples.filter(|(_, value)| !is_stale_nan(**value)).unzip();
    Samples::Owned(timestamps, values)
}

impl Ranges {
    /// The range in milliseconds.
    pub(super) fn range_ms(&self) -> i64 {
        self.range_ms
    }

    /// Calls `visit` for every window that has samples, series after series, steps ascending.
    pub(super) fn for_each_window(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        mut visit: impl FnMut(&SeriesName, usize, Window<'_>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        for series in &self.series {
            evaluator.check_cancelled()?;
            self.slide(series, evaluator, grid, |step, window| visit(&series.name, step, window))?;
        }
        Ok(())
    }

    /// Slides the window along one series. Both ends only ever move forward.
    fn slide(
        &self,
        series: &RangeSeries,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        mut visit: impl FnMut(usize, Window<'_>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let (timestamps, values) = series.samples.columns();
        let (mut first, mut past) = (0, 0);
        // One series of many steps and long windows can be most of a query's work.
        let mut work = 0;
        for (step, time) in grid.times().enumerate() {
            work += 1 + past - first;
            if work > WORK_BETWEEN_CHECKS {
                evaluator.check_cancelled()?;
                work = 0;
            }
            let end = self.reference.at(time);
            let start = end.saturating_sub(self.range_ms);
            first += advance(&timestamps[first..], start);
            past = past.max(first);
            past += advance(&timestamps[past..], end);
            if first < past {
                let window = Window {
                    timestamps: &timestamps[first..past],
                    values: &values[first..past],
                    time,
                    start,
                    end,
                };
                visit(step, window)?;
            }
        }
        Ok(())
    }

    /// Computes one value per window. Series without any value are left out. Names stay as they are.
    /// `after_series` sees the name of each series that has values.
    pub(super) fn map_windows(
        &self,
        evaluator: &Evaluator<'_>,
        grid: &Grid,
        mut compute: impl FnMut(usize, Window<'_>) -> Option<f64>,
        mut after_series: impl FnMut(&SeriesName),
    ) -> Result<Block, EvalError> {
        let mut block = Block::new(grid.count, &evaluator.budget);
        let (mut values, mut present) = (vec![0.0; grid.count], vec![false; grid.count]);
        for series in &self.series {
            evaluator.check_cancelled()?;
            present.fill(false);
            self.slide(series, evaluator, grid, |step, window| {
                if let Some(value) = compute(step, window) {
                    values[step] = value;
                    present[step] = true;
                }
                Ok(())
            })?;
            let row = Row { values: &values, present: &present };
            if !row.is_empty() {
                block.push_row(series.name.clone(), row)?;
                after_series(&series.name);
            }
        }
        Ok(block)
    }
}

/// The metric's name, if the series still has one.
pub(super) fn metric_name(name: &SeriesName) -> &str {
    name.labels.get(METRIC_NAME).unwrap_or("")
}
