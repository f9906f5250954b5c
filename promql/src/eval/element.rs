//! Binary operations on two samples: floats, histograms and one of each.
//!
//! Source: `vectorElemBinop` of Prometheus's `engine.go`.

use std::sync::Arc;

use saturn_model::{CounterResetHint, Histogram};

use crate::annotations::Annotations;
use crate::ast::BinaryOp;
use crate::eval::block::Cell;
use crate::eval::params::SampleValue;
use crate::eval::remarks::Operation;
use crate::histogram::{
    Added, HistogramSum, IncompatibleSchemas, Kept, divided, multiplied, same_data, trimmed,
};
use crate::span::Span;

/// What an operation says besides its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementRemark {
    /// The operator is not for operands of these types: `float`, `histogram`.
    Types(&'static str, &'static str),
    /// Exponential and custom buckets met.
    Layout,
    /// Custom buckets differed.
    Reconciled(Operation),
    /// The operands contradict each other about a counter reset.
    ResetCollision(Operation),
}

/// The outcome for two samples.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The result, or why there is none. Of a comparison, the left operand.
    pub(super) value: Result<SampleValue, ElementRemark>,
    /// Whether a comparison holds; true for all other operators.
    pub(super) holds: bool,
    /// A remark on a result that there is.
    pub(super) remark: Option<ElementRemark>,
}

impl Outcome {
    fn of(value: SampleValue) -> Self {
        Self { value: Ok(value), holds: true, remark: None }
    }

    fn compared(left: SampleValue, holds: bool) -> Self {
        Self { value: Ok(left), holds, remark: None }
    }

    fn none(why: ElementRemark) -> Self {
        Self { value: Err(why), holds: false, remark: None }
    }
}

impl ElementRemark {
    /// Adds the remark on the operation at `span`.
    pub(super) fn add_to(self, annotations: &mut Annotations, op: BinaryOp, span: Span) {
        let op = op.symbol();
        match self {
            ElementRemark::Types(left, right) => annotations.inform(
                span,
                &format!(
                    "incompatible sample types encountered for binary operator \"{op}\": {left} {op} {right}"
                ),
            ),
            ElementRemark::Layout => annotations
                .warn(span, &format!("incompatible bucket layout encountered for binary operator {op}")),
            ElementRemark::Reconciled(operation) => annotations.inform(
                span,
                &format!("mismatched custom buckets were reconciled during {}", operation.name()),
            ),
            ElementRemark::ResetCollision(operation) => annotations
                .warn(span, &format!("conflicting counter resets during histogram {}", operation.name())),
        }
    }
}

/// Applies an operator that is no set operator.
pub(super) fn combine(op: BinaryOp, left: Cell<'_>, right: Cell<'_>) -> Outcome {
    match (left, right) {
        (Cell::Float(_), Cell::Float(_)) if matches!(op, BinaryOp::TrimLower | BinaryOp::TrimUpper) => {
            Outcome::none(ElementRemark::Types("float", "float"))
        }
        (Cell::Float(a), Cell::Float(b)) if op.is_comparison() => {
            Outcome::compared(SampleValue::Float(a), compare(op, a, b))
        }
        (Cell::Float(a), Cell::Float(b)) => Outcome::of(SampleValue::Float(scalar_result(op, a, b))),
        (Cell::Float(factor), Cell::Histogram(histogram)) => match op {
            BinaryOp::Multiply => Outcome::of(compacted(multiplied(Histogram::clone(histogram), factor))),
            _ => Outcome::none(ElementRemark::Types("float", "histogram")),
        },
        (Cell::Histogram(histogram), Cell::Float(number)) => match op {
            BinaryOp::Multiply => Outcome::of(compacted(multiplied(Histogram::clone(histogram), number))),
            BinaryOp::Divide => Outcome::of(compacted(divided(Histogram::clone(histogram), number))),
            BinaryOp::TrimUpper => Outcome::of(shared(trimmed(histogram, number, Kept::Below))),
            BinaryOp::TrimLower => Outcome::of(shared(trimmed(histogram, number, Kept::Above))),
            _ => Outcome::none(ElementRemark::Types("histogram", "float")),
        },
        (Cell::Histogram(a), Cell::Histogram(b)) => combine_histograms(op, a, b),
    }
}

fn combine_histograms(op: BinaryOp, a: &Arc<Histogram>, b: &Arc<Histogram>) -> Outcome {
    match op {
        BinaryOp::Add => {
            let mut sum = HistogramSum::from(&**a);
            let added = sum.add(b);
            finished(sum, added, Operation::Addition)
        }
        BinaryOp::Subtract => {
            let mut sum = HistogramSum::from(&**a);
            let added = sum.subtract(b);
            // A difference may decrease.
            sum.hint = CounterResetHint::Gauge;
            finished(sum, added, Operation::Subtraction)
        }
        BinaryOp::Equal => Outcome::compared(SampleValue::Histogram(Arc::clone(a)), same_data(a, b)),
        BinaryOp::NotEqual => Outcome::compared(SampleValue::Histogram(Arc::clone(a)), !same_data(a, b)),
        _ => Outcome::none(ElementRemark::Types("histogram", "histogram")),
    }
}

fn finished(sum: HistogramSum, added: Result<Added, IncompatibleSchemas>, operation: Operation) -> Outcome {
    match added {
        Err(IncompatibleSchemas) => Outcome::none(ElementRemark::Layout),
        Ok(added) if added.reset_collision => Outcome::none(ElementRemark::ResetCollision(operation)),
        Ok(added) => {
            let remark = added.bounds_reconciled.then_some(ElementRemark::Reconciled(operation));
            Outcome { remark, ..Outcome::of(compacted(sum.finish())) }
        }
    }
}

fn shared(histogram: Histogram) -> SampleValue {
    SampleValue::Histogram(Arc::new(histogram))
}

fn compacted(mut histogram: Histogram) -> SampleValue {
    histogram.compact();
    shared(histogram)
}

/// The result for two numbers; 1 and 0 for comparisons.
pub(super) fn scalar_result(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Subtract => a - b,
        BinaryOp::Multiply => a * b,
        BinaryOp::Divide => a / b,
        BinaryOp::Modulo => a % b,
        BinaryOp::Power => a.powf(b),
        BinaryOp::Atan2 => a.atan2(b),
        _ if compare(op, a, b) => 1.0,
        _ => 0.0,
    }
}

fn compare(op: BinaryOp, a: f64, b: f64) -> bool {
    match op {
        BinaryOp::Equal => a == b,
        BinaryOp::NotEqual => a != b,
        BinaryOp::Greater => a > b,
        BinaryOp::Less => a < b,
        BinaryOp::GreaterEqual => a >= b,
        BinaryOp::LessEqual => a <= b,
        _ => false,
    }
}
