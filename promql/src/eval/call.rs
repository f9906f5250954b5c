//! Calls of functions: what their arguments are and who computes them.
//!
//! Source: the `Call` branch of `eval` in Prometheus's `engine.go`, and `functions.go`.

use crate::ast::{Call, Expr};
use crate::error::EvalError;
use crate::eval::block::Block;
use crate::eval::calendar::date_part;
use crate::eval::engine::{Evaluated, Evaluator};
use crate::eval::extrapolate::{Change, extrapolated_change};
use crate::eval::grid::Grid;
use crate::eval::instant_functions::{go_max, go_min, value_function};
use crate::eval::names::Duplicates;
use crate::eval::numerics::quantile;
use crate::eval::over_time::{WindowFunction, double_exponential_smoothing, predict_linear, window_function};
use crate::eval::sort::Order;
use crate::eval::window::metric_name;
use crate::functions::FunctionId;
use crate::go_text::to_float;
use crate::span::Span;

/// Ends of names that say that a metric is a counter.
const COUNTER_SUFFIXES: [&str; 4] = ["_total", "_sum", "_count", "_bucket"];

impl Evaluator<'_> {
    pub(super) fn call(&self, call: &Call, span: Span, grid: &Grid) -> Result<Evaluated, EvalError> {
        let (id, args) = (call.function.id, call.args.as_slice());
        if let Some(values) = self.scalar_call(id, args, grid)? {
            return Ok(Evaluated::Scalar(values));
        }
        if let Some(block) = self.range_call(id, args, grid)? {
            return Ok(Evaluated::Vector(block));
        }
        if let Some(f) = value_function(id) {
            let mut block = self.vector(&args[0], grid)?;
            block.map(f);
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

    /// Functions of a range vector.
    fn range_call(&self, id: FunctionId, args: &[Expr], grid: &Grid) -> Result<Option<Block>, EvalError> {
        let change = match id {
            FunctionId::Rate => Some(Change::Rate),
            FunctionId::Increase => Some(Change::Increase),
            FunctionId::Delta => Some(Change::Delta),
            _ => None,
        };
        if let Some(change) = change {
            return self.change_call(change, &args[0], grid).map(Some);
        }
        if let Some(function) = window_function(id) {
            return self.window_call(id, function, &args[0], grid).map(Some);
        }
        match id {
            FunctionId::QuantileOverTime => self.quantile_over_time(args, grid).map(Some),
            FunctionId::PredictLinear => self.predict_linear(args, grid).map(Some),
            FunctionId::DoubleExponentialSmoothing => self.double_exponential_smoothing(args, grid).map(Some),
            FunctionId::AbsentOverTime => self.absent_over_time(&args[0], grid).map(Some),
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
            FunctionId::HistogramFraction => self.histogram_fraction(args, grid),
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
            _ => Err(EvalError::Unsupported { what: format!("function \"{}\"", call.function.name) }),
        }
    }

    fn window_call(
        &self,
        id: FunctionId,
        function: WindowFunction,
        arg: &Expr,
        grid: &Grid,
    ) -> Result<Block, EvalError> {
        let ranges = self.ranges(arg, grid)?;
        let block = ranges.map_windows(self, grid, |_, window| function(window), |_| {})?;
        match id {
            FunctionId::FirstOverTime | FunctionId::LastOverTime => Ok(block),
            _ => self.drop_names(block, Duplicates::Refuse),
        }
    }

    fn change_call(&self, change: Change, arg: &Expr, grid: &Grid) -> Result<Block, EvalError> {
        let ranges = self.ranges(arg, grid)?;
        let range_ms = ranges.range_ms();
        let block = ranges.map_windows(
            self,
            grid,
            |_, window| extrapolated_change(window, range_ms, change),
            |series| {
                let name = metric_name(series);
                let counter = COUNTER_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
                if change != Change::Delta && !name.is_empty() && !counter {
                    let text = format!(
                        "metric might not be a counter, name does not end in _total/_sum/_count/_bucket: \"{name}\""
                    );
                    self.annotations.borrow_mut().inform(arg.span, &text);
                }
            },
        )?;
        self.drop_names(block, Duplicates::Refuse)
    }

    fn quantile_over_time(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let phis = self.scalar(&args[0], grid)?;
        let ranges = self.ranges(&args[1], grid)?;
        let mut sorted = Vec::new();
        let block = ranges.map_windows(
            self,
            grid,
            |step, window| {
                self.warn_of_quantiles(&phis[step..=step], args[0].span);
                sorted.clear();
                sorted.extend_from_slice(window.values);
                Some(quantile(phis[step], &mut sorted))
            },
            |_| {},
        )?;
        self.drop_names(block, Duplicates::Refuse)
    }

    fn predict_linear(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let seconds = self.scalar(&args[1], grid)?;
        let ranges = self.ranges(&args[0], grid)?;
        let block =
            ranges.map_windows(self, grid, |step, window| predict_linear(window, seconds[step]), |_| {})?;
        self.drop_names(block, Duplicates::Refuse)
    }

    fn double_exponential_smoothing(&self, args: &[Expr], grid: &Grid) -> Result<Block, EvalError> {
        let smoothing = self.scalar(&args[1], grid)?;
        let trend = self.scalar(&args[2], grid)?;
        let ranges = self.ranges(&args[0], grid)?;
        let valid = |factor: f64| factor > 0.0 && factor < 1.0;
        let mut invalid = None;
        let block = ranges.map_windows(
            self,
            grid,
            |step, window| {
                let (smoothing, trend) = (smoothing[step], trend[step]);
                if !valid(smoothing) {
                    invalid =
                        Some(format!("invalid smoothing factor. Expected: 0 < sf < 1, got: {smoothing:.6}"));
                } else if !valid(trend) {
                    invalid = Some(format!("invalid trend factor. Expected: 0 < tf < 1, got: {trend:.6}"));
                }
                double_exponential_smoothing(window, smoothing, trend)
            },
            |_| {},
        )?;
        match invalid {
            Some(text) => Err(EvalError::Execution(text)),
            None => self.drop_names(block, Duplicates::Refuse),
        }
    }
}

/// `scalar()`: the value of the only series at each step, else NaN.
fn only_values(block: &Block) -> Vec<f64> {
    let mut seen = vec![0_usize; block.steps()];
    let mut values = vec![f64::NAN; block.steps()];
    for (_, row) in block.rows() {
        for (step, value) in row.cells() {
            seen[step] += 1;
            values[step] = if seen[step] == 1 { value } else { f64::NAN };
        }
    }
    values
}
