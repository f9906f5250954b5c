//! Functions of an instant vector that look at each value on its own, and a few that look at presence.

use saturn_model::{Histogram, Labels, METRIC_NAME, MatchOp, Matcher};

use crate::ast::{Call, Expr, ExprKind};
use crate::error::EvalError;
use crate::eval::block::Block;
use crate::eval::calendar::date_part;
use crate::eval::engine::Evaluator;
use crate::eval::grid::Grid;
use crate::eval::names::Duplicates;
use crate::eval::params::StartTimestamps;
use crate::eval::select::SamplePart;
use crate::eval::sort::{Order, sorted_indexes};
use crate::functions::FunctionId;
use crate::go_text::{quote, to_float};
use crate::span::Span;

/// The function of one value with this id, if it is one.
pub(super) fn value_function(id: FunctionId) -> Option<fn(f64) -> f64> {
    Some(match id {
        FunctionId::Abs => f64::abs,
        FunctionId::Acos => f64::acos,
        FunctionId::Acosh => f64::acosh,
        FunctionId::Asin => f64::asin,
        FunctionId::Asinh => f64::asinh,
        FunctionId::Atan => f64::atan,
        FunctionId::Atanh => f64::atanh,
        FunctionId::Ceil => f64::ceil,
        FunctionId::Cos => f64::cos,
        FunctionId::Cosh => f64::cosh,
        FunctionId::Deg => |v| v * 180.0 / std::f64::consts::PI,
        FunctionId::Exp => f64::exp,
        FunctionId::Floor => f64::floor,
        FunctionId::Ln => f64::ln,
        FunctionId::Log10 => f64::log10,
        FunctionId::Log2 => f64::log2,
        FunctionId::Rad => |v| v * std::f64::consts::PI / 180.0,
        FunctionId::Sgn => sign,
        FunctionId::Sin => f64::sin,
        FunctionId::Sinh => f64::sinh,
        FunctionId::Sqrt => f64::sqrt,
        FunctionId::Tan => f64::tan,
        FunctionId::Tanh => f64::tanh,
        _ => return None,
    })
}

/// The sign; zeros and NaN stay what they are.
fn sign(value: f64) -> f64 {
    match value {
        _ if value > 0.0 => 1.0,
        _ if value < 0.0 => -1.0,
        same => same,
    }
}

/// Go's `math.Max`: NaN wins.
pub(super) fn go_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Go's `math.Min`: NaN wins.
pub(super) fn go_min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

impl Evaluator<'_> {
    /// `clamp`, `clamp_min` and `clamp_max`. Where the bounds exclude each other, nothing is left.
    pub(super) fn clamp(
        &self,
        arg: &Expr,
        min: Option<&Expr>,
        max: Option<&Expr>,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let mut block = self.vector(arg, grid)?;
        block.remove_histograms();
        let min = min.map(|expr| self.scalar(expr, grid)).transpose()?;
        let max = max.map(|expr| self.scalar(expr, grid)).transpose()?;
        for index in 0..block.len() {
            self.check_cancelled()?;
            let row = block.row_mut(index);
            for (step, value) in row.values.iter_mut().enumerate() {
                let min = min.as_ref().map(|min| min[step]);
                let max = max.as_ref().map(|max| max[step]);
                if let (Some(min), Some(max)) = (min, max)
                    && max < min
                {
                    row.present[step] = false;
                }
                *value = max.map_or(*value, |max| go_min(max, *value));
                *value = min.map_or(*value, |min| go_max(min, *value));
            }
        }
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// `round`: to the nearest multiple, halves up.
    pub(super) fn round(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let mut block = self.vector(&args[0], grid)?;
        block.remove_histograms();
        let nearest = match args.get(1) {
            Some(expr) => self.scalar(expr, grid)?,
            None => vec![1.0; grid.count],
        };
        for index in 0..block.len() {
            self.check_cancelled()?;
            let row = block.row_mut(index);
            for (value, nearest) in row.values.iter_mut().zip(&nearest) {
                // The inverse keeps 0.1 and its like exact.
                let inverse = 1.0 / nearest;
                *value = (*value * inverse + 0.5).floor() / inverse;
            }
        }
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// `timestamp`: of a selector the samples' own times, of anything else the step's.
    pub(super) fn timestamp(&self, arg: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        let block = match &arg.without_parens().kind {
            ExprKind::VectorSelector(selector) => {
                let span = arg.without_parens().span;
                self.instant_selector(selector, span, grid, SamplePart::Timestamp)?
            }
            _ => {
                let mut block = self.vector(arg, grid)?;
                for index in 0..block.len() {
                    let mut row = block.row_mut(index);
                    for (step, time) in grid.times().enumerate() {
                        if row.present[step] {
                            row.set_float(step, to_float(time) / 1000.0);
                        }
                    }
                }
                block
            }
        };
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// `start_timestamp`: of a selector when its samples' counters started, 0 if that is not known. Nothing of
    /// anything else, and where start timestamps are not used.
    pub(super) fn start_timestamp(&self, arg: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        let used = self.params.start_timestamps == StartTimestamps::Used;
        let block = match &arg.without_parens().kind {
            ExprKind::VectorSelector(selector) if used => {
                let span = arg.without_parens().span;
                self.instant_selector(selector, span, grid, SamplePart::StartTimestamp)?
            }
            _ => self.vector(arg, grid)?.like(),
        };
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// Functions that compute a number of each histogram; floats go.
    pub(super) fn of_histograms(
        &self,
        arg: &Expr,
        grid: &Grid,
        function: impl Fn(&Histogram) -> f64,
    ) -> Result<Block, EvalError> {
        let input = self.vector(arg, grid)?;
        let mut block = input.like();
        for (name, row) in input.rows().filter(|(_, row)| row.has_histograms()) {
            self.check_cancelled()?;
            let mut result = block.push(name.clone())?;
            row.histograms().for_each(|(step, histogram)| result.set_float(step, function(histogram)));
        }
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// The date functions; without an argument, of the step's time.
    pub(super) fn date(&self, id: FunctionId, arg: Option<&Expr>, grid: &Grid) -> Result<Block, EvalError> {
        let part = |seconds: f64| date_part(id, seconds).unwrap_or(f64::NAN);
        let Some(arg) = arg else {
            return self.one_series(grid.times().map(|time| part(to_float(time) / 1000.0)));
        };
        let mut block = self.vector(arg, grid)?;
        block.map_floats(part);
        self.drop_names(block, Duplicates::MergeDisjoint)
    }

    /// `vector`: a scalar as the series without labels.
    pub(super) fn vector_of_scalar(&self, arg: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        self.one_series(self.scalar(arg, grid)?.into_iter())
    }

    fn one_series(&self, values: impl ExactSizeIterator<Item = f64>) -> Result<Block, EvalError> {
        let mut block = Block::new(values.len(), &self.budget);
        let mut row = block.push(Labels::empty().into())?;
        values.enumerate().for_each(|(step, value)| row.set_float(step, value));
        Ok(block)
    }

    /// `absent`: 1 where no series has a value.
    pub(super) fn absent(&self, arg: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        let block = self.vector(arg, grid)?;
        let mut found = vec![false; grid.count];
        for (_, row) in block.rows() {
            found.iter_mut().zip(row.present).for_each(|(found, present)| *found |= *present);
        }
        self.absence(arg, &found)
    }

    /// `absent_over_time`: 1 where no series has a sample in the window.
    pub(super) fn absent_over_time(&self, arg: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        let mut found = vec![false; grid.count];
        self.ranges(arg, grid)?.for_each_window(self, grid, |_, step, _| {
            found[step] = true;
            Ok(())
        })?;
        self.absence(arg, &found)
    }

    fn absence(&self, arg: &Expr, found: &[bool]) -> Result<Block, EvalError> {
        let mut block = Block::new(found.len(), &self.budget);
        let mut row = block.push(labels_of_absent(arg).into())?;
        let absent = found.iter().enumerate().filter(|(_, found)| !**found);
        absent.for_each(|(step, _)| row.set_float(step, 1.0));
        Ok(block)
    }

    /// The sort functions; they have no effect on a range query.
    pub(super) fn sort(
        &self,
        call: &Call,
        span: Span,
        order: Order,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let block = self.vector(&call.args[0], grid)?;
        if !self.params.is_instant() {
            let text = format!(
                "{} is ineffective for range queries since results are always ordered by labels",
                call.function.name
            );
            self.annotations().warn(span, &text);
        }
        let mut block = block;
        if matches!(order, Order::Ascending | Order::Descending) {
            block.remove_histograms();
        }
        if grid.count != 1 {
            return Ok(block);
        }
        block.select(&sorted_indexes(&block, &order))
    }

    /// Arguments that name labels.
    pub(super) fn label_names(&self, args: &[Expr], grid: &Grid) -> Result<Vec<String>, EvalError> {
        args.iter()
            .map(|arg| {
                let bytes = self.text(arg, grid)?;
                match std::str::from_utf8(&bytes) {
                    Ok(name) if !name.is_empty() => Ok(name.to_owned()),
                    _ => Err(EvalError::Execution(format!("invalid label name {}", quote(&bytes)))),
                }
            })
            .collect()
    }
}

/// The labels that an absent series would have: those that a bare selector asks for by equality, unless
/// it says more about the same label.
fn labels_of_absent(arg: &Expr) -> Labels {
    let matchers: &[Matcher] = match &arg.kind {
        ExprKind::VectorSelector(selector) => &selector.matchers,
        ExprKind::MatrixSelector(matrix) => &matrix.selector.matchers,
        _ => &[],
    };
    let mut builder = Labels::empty().to_builder();
    let mut seen = Vec::new();
    for matcher in matchers.iter().filter(|matcher| matcher.name() != METRIC_NAME) {
        if matcher.op() == MatchOp::Equal && !seen.contains(&matcher.name()) {
            builder.set(matcher.name(), matcher.value());
            seen.push(matcher.name());
        } else {
            builder.remove(matcher.name());
        }
    }
    builder.build()
}
