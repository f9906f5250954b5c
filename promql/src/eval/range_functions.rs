//! Calls of functions of a range vector: which samples of a window each looks at, and what it says about the
//! others.
//!
//! Source: Prometheus's `functions.go`.

use std::sync::Arc;

use saturn_model::Histogram;

use crate::ast::{Call, Expr, ExprKind, Extension};
use crate::error::EvalError;
use crate::eval::block::{Block, SeriesName};
use crate::eval::engine::Evaluator;
use crate::eval::extended::extended_change;
use crate::eval::extrapolate::{Change, extrapolated_change, plain_change};
use crate::eval::grid::Grid;
use crate::eval::histogram_change::{InstantChange, instant_change};
use crate::eval::histogram_mean::{HistogramMean, ResetsSeen};
use crate::eval::names::Duplicates;
use crate::eval::numerics::{mean, means, quantile, sums};
use crate::eval::over_time::{
    count_pairs, double_exponential_smoothing, float_function, is_change, is_reset, predict_linear,
    sample_function, sum,
};
use crate::eval::params::SampleValue;
use crate::eval::remarks::Remarks;
use crate::eval::window::{Fold, Ranges, Window, WindowSample, metric_name};
use crate::functions::FunctionId;
use crate::histogram::{HistogramSum, IncompatibleSchemas};
use crate::span::Span;

/// Ends of names that say that a metric is a counter.
const COUNTER_SUFFIXES: [&str; 4] = ["_total", "_sum", "_count", "_bucket"];

impl Evaluator<'_> {
    /// Evaluates the call if it is one of a function of a range vector.
    pub(super) fn range_call(&self, call: &Call, grid: &Grid) -> Result<Option<Block>, EvalError> {
        let (id, args) = (call.function.id, call.args.as_slice());
        args.iter().try_for_each(|arg| check_extension(call, arg))?;
        let block = match id {
            FunctionId::Rate => self.change_call(Change::Rate, &args[0], grid)?,
            FunctionId::Increase => self.change_call(Change::Increase, &args[0], grid)?,
            FunctionId::Delta => self.change_call(Change::Delta, &args[0], grid)?,
            FunctionId::Irate => self.instant_change_call(InstantChange::Rate, &args[0], grid)?,
            FunctionId::Idelta => self.instant_change_call(InstantChange::Delta, &args[0], grid)?,
            FunctionId::Changes => self.count_call(&args[0], grid, is_change)?,
            FunctionId::Resets => self.count_call(&args[0], grid, is_reset)?,
            FunctionId::SumOverTime => self.fold_call(&args[0], grid, SUM, sum_histograms)?,
            FunctionId::AvgOverTime => self.fold_call(&args[0], grid, MEAN, average_histograms)?,
            FunctionId::QuantileOverTime => self.quantile_over_time(args, grid)?,
            FunctionId::PredictLinear => self.predict_linear(args, grid)?,
            FunctionId::DoubleExponentialSmoothing => self.double_exponential_smoothing(args, grid)?,
            FunctionId::AbsentOverTime => return self.absent_over_time(&args[0], grid).map(Some),
            _ => match (float_function(id), sample_function(id)) {
                (Some(function), _) => {
                    let ranges = self.ranges(&args[0], grid)?;
                    self.map_floats(&ranges, args[0].span, grid, |_, _, window| function(window))?
                }
                (None, Some(function)) => {
                    let ranges = self.ranges(&args[0], grid)?;
                    ranges.map_windows(self, grid, |_, _, _, window| function(window))?
                }
                (None, None) => return Ok(None),
            },
        };
        match id {
            FunctionId::FirstOverTime | FunctionId::LastOverTime => Ok(Some(block)),
            _ => self.drop_names(block, Duplicates::Refuse).map(Some),
        }
    }

    fn remarks_on<'a>(&'a self, name: &'a SeriesName, span: Span) -> Remarks<'a> {
        Remarks { evaluator: self, metric: metric_name(name), span }
    }

    fn change_call(&self, change: Change, arg: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        let ranges = self.ranges(arg, grid)?;
        let block = ranges.map_windows_with(self, grid, |own, recent, name, window| {
            if window.is_plain() && ranges.extension.is_none() {
                return plain_change(window, change, recent).map(SampleValue::Float);
            }
            let remarks = own.remarks_on(name, arg.span);
            match ranges.extension {
                None => extrapolated_change(window, change, &remarks),
                Some(extension) => extended_change(window, extension, change, &remarks),
            }
        })?;
        if change.is_of_counter() {
            for (name, _) in block.rows().filter(|(_, row)| row.floats().next().is_some()) {
                self.remark_on_counter(metric_name(name), arg.span);
            }
        }
        Ok(block)
    }

    /// Says so if the metric does not look like the counter that it should be.
    pub(super) fn remark_on_counter(&self, metric: &str, span: Span) {
        let counter = COUNTER_SUFFIXES.iter().any(|suffix| metric.ends_with(suffix));
        if !metric.is_empty() && !counter {
            Remarks { evaluator: self, metric, span }.name_is_no_counters();
        }
    }

    fn instant_change_call(
        &self,
        change: InstantChange,
        arg: &Expr,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let ranges = self.ranges(arg, grid)?;
        ranges.map_windows(self, grid, |own, name, _, window| {
            instant_change(window, change, &own.remarks_on(name, arg.span))
        })
    }

    fn count_call(
        &self,
        arg: &Expr,
        grid: &Grid,
        happens: fn(WindowSample<'_>, WindowSample<'_>) -> bool,
    ) -> Result<Block, EvalError> {
        let ranges = self.ranges(arg, grid)?;
        ranges.map_windows(self, grid, |_, _, _, window| {
            count_pairs(window, ranges.extension, happens).map(SampleValue::Float)
        })
    }

    /// Functions that compute one value of floats, or one of histograms, but not of both.
    fn fold_call(
        &self,
        arg: &Expr,
        grid: &Grid,
        of_floats: Fold,
        of_histograms: HistogramFold,
    ) -> Result<Block, EvalError> {
        let ranges = self.ranges(arg, grid)?;
        ranges.fold_windows(self, grid, of_floats, |own, name, window| {
            let histograms = window.histograms.values;
            let remarks = own.remarks_on(name, arg.span);
            if !window.values.is_empty() {
                remarks.mixed_types();
                return None;
            }
            let mut seen = ResetsSeen::default();
            histograms.iter().for_each(|histogram| seen.see(histogram));
            match of_histograms(histograms, &mut seen) {
                Ok(result) => {
                    seen.remark(&remarks);
                    Some(SampleValue::Histogram(Arc::new(result)))
                }
                Err(IncompatibleSchemas) => {
                    remarks.mixed_schemas();
                    None
                }
            }
        })
    }

    /// Functions that look at floats only. Where there are some, they say that they ignored histograms.
    fn map_floats(
        &self,
        ranges: &Ranges,
        span: Span,
        grid: &Grid,
        function: impl Fn(&Evaluator<'_>, usize, Window<'_>) -> Option<f64> + Sync,
    ) -> Result<Block, EvalError> {
        ranges.map_windows(self, grid, |own, name, step, window| {
            if window.values.is_empty() {
                return None;
            }
            if !window.histograms.is_empty() {
                own.remarks_on(name, span).ignored_histograms();
            }
            function(own, step, window).map(SampleValue::Float)
        })
    }

    fn quantile_over_time(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let phis = self.scalar(&args[0], grid)?;
        let ranges = self.ranges(&args[1], grid)?;
        // Like Prometheus, all remarks point at the quantile.
        self.map_floats(&ranges, args[0].span, grid, |own, step, window| {
            own.warn_of_quantiles(&phis[step..=step], args[0].span);
            Some(quantile(phis[step], &mut window.values.to_vec()))
        })
    }

    fn predict_linear(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let seconds = self.scalar(&args[1], grid)?;
        let ranges = self.ranges(&args[0], grid)?;
        self.map_floats(&ranges, args[0].span, grid, |_, step, window| predict_linear(window, seconds[step]))
    }

    fn double_exponential_smoothing(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let smoothing = self.scalar(&args[1], grid)?;
        let trend = self.scalar(&args[2], grid)?;
        let ranges = self.ranges(&args[0], grid)?;
        let valid = |factor: f64| !(factor <= 0.0 || factor >= 1.0);
        let mut invalid = None;
        let block = ranges.map_windows_in_order(self, grid, |name, step, window| {
            let (smoothing, trend) = (smoothing[step], trend[step]);
            if !valid(smoothing) {
                invalid =
                    Some(format!("invalid smoothing factor. Expected: 0 < sf < 1, got: {smoothing:.6}"));
            } else if !valid(trend) {
                invalid = Some(format!("invalid trend factor. Expected: 0 < tf < 1, got: {trend:.6}"));
            }
            if !window.values.is_empty() && !window.histograms.is_empty() {
                self.remarks_on(name, args[0].span).ignored_histograms();
            }
            double_exponential_smoothing(window, smoothing, trend).map(SampleValue::Float)
        })?;
        invalid.map_or(Ok(block), |text| Err(EvalError::Execution(text)))
    }
}

pub(super) const SUM: Fold = Fold { several: |windows| sums(windows, sum), one: sum };
pub(super) const MEAN: Fold = Fold { several: means, one: mean };

/// Computes one histogram of at least one.
type HistogramFold = fn(&[Arc<Histogram>], &mut ResetsSeen) -> Result<Histogram, IncompatibleSchemas>;

fn sum_histograms(
    histograms: &[Arc<Histogram>],
    seen: &mut ResetsSeen,
) -> Result<Histogram, IncompatibleSchemas> {
    let mut sum = HistogramSum::from(&*histograms[0]);
    for histogram in &histograms[1..] {
        seen.added(sum.add(histogram)?);
    }
    Ok(sum.finish())
}

fn average_histograms(
    histograms: &[Arc<Histogram>],
    seen: &mut ResetsSeen,
) -> Result<Histogram, IncompatibleSchemas> {
    let mut mean = HistogramMean::new(&histograms[0]);
    for histogram in &histograms[1..] {
        seen.added(mean.add(histogram)?);
    }
    Ok(mean.finish())
}

/// Refuses `anchored` and `smoothed` arguments of functions that would not know what the samples beyond the
/// range mean. The words are Prometheus's.
fn check_extension(call: &Call, arg: &Expr) -> Result<(), EvalError> {
    let ExprKind::MatrixSelector(matrix) = &arg.without_parens().kind else {
        return Ok(());
    };
    let Some(extension) = matrix.selector.extension else {
        return Ok(());
    };
    use FunctionId::{Changes, Delta, Increase, Rate, Resets};
    let (safe, names): (&[FunctionId], _) = match extension {
        Extension::Anchored => {
            (&[Changes, Delta, Increase, Rate, Resets], "changes, delta, increase, rate, resets")
        }
        Extension::Smoothed => (&[Delta, Increase, Rate], "delta, increase, rate"),
    };
    if safe.contains(&call.function.id) {
        return Ok(());
    }
    Err(EvalError::Execution(format!(
        "{} modifier can only be used with: {names} - not with {}",
        extension.name(),
        call.function.name
    )))
}
