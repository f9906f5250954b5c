//! Binary operations with a scalar. Operations between vectors are in `vector_matching`, those on two samples
//! in `element`.
//!
//! Source: `VectorscalarBinop` of Prometheus's `engine.go`.

use crate::ast::{Binary, BinaryOp};
use crate::error::EvalError;
use crate::eval::block::{Block, Cell, Column};
use crate::eval::element::{ElementRemark, combine, scalar_result};
use crate::eval::engine::{Evaluated, Evaluator};
use crate::eval::grid::Grid;
use crate::eval::names::Duplicates;
use crate::eval::params::SampleValue;
use crate::span::Span;

/// Which side of the operator the scalar is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScalarSide {
    Left,
    Right,
}

impl Evaluator<'_> {
    /// Applies an operator to operands that are evaluated already.
    pub(super) fn binary(
        &self,
        binary: &Binary,
        span: Span,
        (left, right): (Evaluated, Evaluated),
        grid: &Grid,
    ) -> Result<Evaluated, EvalError> {
        match (left, right) {
            (Evaluated::Scalar(_), Evaluated::Scalar(_)) if is_trim(binary.op) => {
                let op = binary.op.symbol();
                Err(EvalError::Execution(format!("operator \"{op}\" not allowed for Scalar operations")))
            }
            (Evaluated::Scalar(left), Evaluated::Scalar(right)) => {
                let pairs = left.into_iter().zip(right);
                let values = pairs.map(|(a, b)| scalar_result(binary.op, a, b)).collect();
                Ok(Evaluated::Scalar(values))
            }
            (Evaluated::Vector(block), Evaluated::Scalar(scalar)) => {
                self.with_scalar(binary, span, block, (&scalar, ScalarSide::Right)).map(Evaluated::Vector)
            }
            (Evaluated::Scalar(scalar), Evaluated::Vector(block)) => {
                self.with_scalar(binary, span, block, (&scalar, ScalarSide::Left)).map(Evaluated::Vector)
            }
            (Evaluated::Vector(left), Evaluated::Vector(right)) => {
                self.vectors(binary, span, (&left, &right), grid).map(Evaluated::Vector)
            }
            _ => Err(EvalError::Invalid(
                "binary expression must contain only scalar and instant vector types".into(),
            )),
        }
    }

    fn with_scalar(
        &self,
        binary: &Binary,
        span: Span,
        block: Block,
        (scalar, side): (&[f64], ScalarSide),
    ) -> Result<Block, EvalError> {
        let op = binary.op;
        let mut result = block.like();
        let mut column = Column::new(block.steps());
        let mut remarks: Vec<ElementRemark> = Vec::new();
        for (name, row) in block.rows() {
            self.check_cancelled()?;
            column.clear();
            for (step, cell) in row.cells() {
                let number = Cell::Float(scalar[step]);
                let outcome = match side {
                    ScalarSide::Right => combine(op, cell, number),
                    ScalarSide::Left => combine(op, number, cell),
                };
                match outcome.value {
                    Err(remark) if !remarks.contains(&remark) => remarks.push(remark),
                    Err(_) => {}
                    Ok(_) if binary.return_bool => {
                        column.set(step, SampleValue::Float(f64::from(u8::from(outcome.holds))));
                    }
                    // A comparison that filters keeps the vector's value, whichever side it is on.
                    Ok(_) if op.is_comparison() && outcome.holds => column.set(step, cell.into()),
                    Ok(_) if op.is_comparison() => {}
                    Ok(value) => column.set(step, value),
                }
            }
            result.push_row(name.clone(), column.as_row())?;
        }
        for remark in remarks {
            remark.add_to(&mut self.annotations(), op, span);
        }
        if drops_name(binary) { self.drop_names(result, Duplicates::MergeDisjoint) } else { Ok(result) }
    }
}

fn is_trim(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::TrimLower | BinaryOp::TrimUpper)
}

/// Whether the result is no longer the metric that the operand was. Trimmed histograms still are.
pub(super) fn drops_name(binary: &Binary) -> bool {
    binary.return_bool || binary.op.is_arithmetic()
}
