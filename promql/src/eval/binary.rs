//! Binary operations with a scalar, and the arithmetic itself. Operations between vectors are in
//! `vector_matching`.

use crate::ast::{Binary, BinaryOp};
use crate::error::EvalError;
use crate::eval::block::Block;
use crate::eval::engine::{Evaluated, Evaluator};
use crate::eval::grid::Grid;
use crate::eval::names::Duplicates;

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
        left: Evaluated,
        right: Evaluated,
        grid: &Grid,
    ) -> Result<Evaluated, EvalError> {
        match (left, right) {
            (Evaluated::Scalar(left), Evaluated::Scalar(right)) => {
                let pairs = left.into_iter().zip(right);
                let values = pairs.map(|(a, b)| scalar_result(binary.op, a, b)).collect();
                Ok(Evaluated::Scalar(values))
            }
            (Evaluated::Vector(block), Evaluated::Scalar(scalar)) => {
                self.with_scalar(binary, block, &scalar, ScalarSide::Right).map(Evaluated::Vector)
            }
            (Evaluated::Scalar(scalar), Evaluated::Vector(block)) => {
                self.with_scalar(binary, block, &scalar, ScalarSide::Left).map(Evaluated::Vector)
            }
            (Evaluated::Vector(left), Evaluated::Vector(right)) => {
                self.vectors(binary, &left, &right, grid).map(Evaluated::Vector)
            }
            _ => Err(EvalError::Invalid(
                "binary expression must contain only scalar and instant vector types".into(),
            )),
        }
    }

    fn with_scalar(
        &self,
        binary: &Binary,
        mut block: Block,
        scalar: &[f64],
        side: ScalarSide,
    ) -> Result<Block, EvalError> {
        let op = binary.op;
        for index in 0..block.len() {
            self.check_cancelled()?;
            let row = block.row_mut(index);
            for ((value, present), scalar) in row.values.iter_mut().zip(row.present).zip(scalar) {
                if !*present {
                    continue;
                }
                let (a, b) = if side == ScalarSide::Right { (*value, *scalar) } else { (*scalar, *value) };
                match element_result(op, a, b, binary.return_bool) {
                    // A comparison that filters keeps the vector's value, whichever side it is on.
                    Some(_) if op.is_comparison() && !binary.return_bool => {}
                    Some(result) => *value = result,
                    None => *present = false,
                }
            }
        }
        if drops_name(binary) { self.drop_names(block, Duplicates::MergeDisjoint) } else { Ok(block) }
    }
}

/// Whether the result is no longer the metric that the operand was.
pub(super) fn drops_name(binary: &Binary) -> bool {
    binary.return_bool || !(binary.op.is_comparison() || binary.op.is_set())
}

/// The result for one pair of values: the left value or nothing for a comparison that filters.
pub(super) fn element_result(op: BinaryOp, a: f64, b: f64, return_bool: bool) -> Option<f64> {
    match (op.is_comparison(), return_bool) {
        (true, false) => compare(op, a, b).then_some(a),
        _ => Some(scalar_result(op, a, b)),
    }
}

fn scalar_result(op: BinaryOp, a: f64, b: f64) -> f64 {
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
