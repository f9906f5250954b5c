//! Calls of functions: what their arguments are and who computes them.
//!
//! Source: the `Call` branch of `eval` in Prometheus's `engine.go`, and `functions.go`.

use crate::ast::{Call, Expr};
use crate::error::EvalError;
use crate::eval::block::Block;
use crate::eval::calendar::date_part;
use crate::eval::engine::{Evaluated, Evaluator, ResetHints};
use crate::eval::grid::Grid;
use crate::eval::instant_functions::{go_max, go_min, value_function};
use crate::eval::names::Duplicates;
use crate::eval::sort::Order;
use crate::functions::FunctionId;
use crate::go_text::to_float;
use crate::histogram::variance;
use crate::span::Span;

impl Evaluator<'_> {
    pub(super) fn call(&self, call: &Call, span: Span, grid: &Grid) -> Result<Evaluated, EvalError> {
        let resets = match call.function.id {
            FunctionId::HistogramCount | FunctionId::HistogramSum | FunctionId::HistogramAvg => {
                ResetHints::Detected
            }
            FunctionId::HistogramQuantile
            | FunctionId::HistogramQuantiles
            | FunctionId::HistogramFraction => ResetHints::FromSource,
            _ => self.resets,
        };
        self.with_resets(resets).call_function(call, span, grid)
    }

    fn call_function(&self, call: &Call, span: Span, grid: &Grid) -> Result<Evaluated, EvalError> {
        let (id, args) = (call.function.id, call.args.as_slice());
        if let Some(values) = self.scalar_call(id, args, grid)? {
            return Ok(Evaluated::Scalar(values));
        }
        if let Some(block) = self.range_call(call, grid)? {
            return Ok(Evaluated::Vector(block));
        }
        if let Some(f) = value_function(id) {
            let mut block = self.vector(&args[0], grid)?;
            block.map_floats(f);
            return self.drop_names(block, Duplicates::MergeDisjoint).map(Evaluated::Vector);
        }
        self.vector_call(call, span, grid).map(Evaluated::Vector)
    }

    /// Functions that return a scalar.
    fn scalar_call(&self, id: FunctionId, args: &[Expr], grid: &Grid) -> Result<Option<Vec<f64>>, EvalError> {
        let constant = |value: f64| Ok(Some(vec![value; grid.count]));
        let params = self.params;
        match id {
            FunctionId::Pi => constant(std::f64::consts::PI),
            FunctionId::Start => constant(to_float(params.start.0) / 1000.0),
            FunctionId::End => constant(to_float(params.end.0) / 1000.0),
            FunctionId::Range => constant(to_float(params.end.0 - params.start.0) / 1000.0),
            FunctionId::Step => constant(to_float(params.step_ms) / 1000.0),
            FunctionId::Time => Ok(Some(grid.times().map(|time| to_float(time) / 1000.0).collect())),
            FunctionId::Scalar => {
                let block = self.vector(&args[0], grid)?;
                Ok(Some(only_values(&block)))
            }
            FunctionId::MinOf | FunctionId::MaxOf => {
                let (a, b) = (self.scalar(&args[0], grid)?, self.scalar(&args[1], grid)?);
                let choose = if id == FunctionId::MinOf { go_min } else { go_max };
                Ok(Some(a.into_iter().zip(b).map(|(a, b)| choose(a, b)).collect()))
            }
            _ => Ok(None),
        }
    }

    /// Functions of an instant vector that need more than the values.
    fn vector_call(&self, call: &Call, span: Span, grid: &Grid) -> Result<Block, EvalError> {
        let args = call.args.as_slice();
        match call.function.id {
            FunctionId::Absent => self.absent(&args[0], grid),
            FunctionId::Clamp => self.clamp(&args[0], Some(&args[1]), Some(&args[2]), grid),
            FunctionId::ClampMin => self.clamp(&args[0], Some(&args[1]), None, grid),
            FunctionId::ClampMax => self.clamp(&args[0], None, Some(&args[1]), grid),
            FunctionId::Round => self.round(args, grid),
            FunctionId::Timestamp => self.timestamp(&args[0], grid),
            FunctionId::Vector => self.vector_of_scalar(&args[0], grid),
            FunctionId::LabelReplace => self.label_replace(args, grid),
            FunctionId::LabelJoin => self.label_join(args, grid),
            FunctionId::HistogramQuantile => self.histogram_quantile(args, grid),
            FunctionId::HistogramQuantiles => self.histogram_quantiles(args, grid),
            FunctionId::HistogramFraction => self.histogram_fraction(args, grid),
            FunctionId::HistogramAvg => self.of_histograms(&args[0], grid, |h| h.sum / h.count),
            FunctionId::HistogramCount => self.of_histograms(&args[0], grid, |h| h.count),
            FunctionId::HistogramSum => self.of_histograms(&args[0], grid, |h| h.sum),
            FunctionId::HistogramStddev => self.of_histograms(&args[0], grid, |h| variance(h).sqrt()),
            FunctionId::HistogramStdvar => self.of_histograms(&args[0], grid, variance),
            FunctionId::Info => self.info(args, grid),
            FunctionId::StartTimestamp => self.start_timestamp(&args[0], grid),
            FunctionId::Sort => self.sort(call, span, Order::Ascending, grid),
            FunctionId::SortDesc => self.sort(call, span, Order::Descending, grid),
            FunctionId::SortByLabel => {
                let order = Order::ByLabels(self.label_names(&args[1..], grid)?);
                self.sort(call, span, order, grid)
            }
            FunctionId::SortByLabelDesc => {
                let order = Order::ByLabelsDescending(self.label_names(&args[1..], grid)?);
                self.sort(call, span, order, grid)
            }
            id if date_part(id, 0.0).is_some() => self.date(id, args.first(), grid),
            _ => Err(EvalError::Invalid(format!("unknown function with name {:?}", call.function.name))),
        }
    }
}

/// `scalar()`: the float of the only series that has one, at each step; else NaN.
fn only_values(block: &Block) -> Vec<f64> {
    let mut seen = vec![0_usize; block.steps()];
    let mut values = vec![f64::NAN; block.steps()];
    for (_, row) in block.rows() {
        for (step, value) in row.floats() {
            seen[step] += 1;
            values[step] = if seen[step] == 1 { value } else { f64::NAN };
        }
    }
    values
}
