//! Names the parts of the language that are parsed but not evaluated, before any data is read.

use crate::ast::{BinaryOp, Expr, ExprKind, VectorSelector};
use crate::error::EvalError;
use crate::functions::FunctionId;

/// Fails with [`EvalError::Unsupported`] if `expr` uses what is not evaluated.
pub(super) fn check_supported(expr: &Expr) -> Result<(), EvalError> {
    let mut open = vec![expr];
    while let Some(expr) = open.pop() {
        if let Some(what) = unsupported_part(expr) {
            return Err(EvalError::Unsupported { what });
        }
        open.extend(expr.children());
    }
    Ok(())
}

fn unsupported_part(expr: &Expr) -> Option<String> {
    match &expr.kind {
        ExprKind::VectorSelector(selector) => unsupported_extension(selector),
        ExprKind::MatrixSelector(matrix) => unsupported_extension(&matrix.selector),
        ExprKind::Binary(binary) => {
            let fill = binary.matching.fill;
            match binary.op {
                BinaryOp::TrimLower | BinaryOp::TrimUpper => {
                    Some(format!("operator \"{}\"", binary.op.symbol()))
                }
                _ if fill.left.is_some() || fill.right.is_some() => Some("the fill modifier".into()),
                _ => None,
            }
        }
        ExprKind::Call(call) => match call.function.id {
            FunctionId::HistogramAvg
            | FunctionId::HistogramCount
            | FunctionId::HistogramQuantiles
            | FunctionId::HistogramStddev
            | FunctionId::HistogramStdvar
            | FunctionId::HistogramSum
            | FunctionId::Info
            | FunctionId::StartTimestamp => Some(format!("function \"{}\"", call.function.name)),
            _ => None,
        },
        _ => None,
    }
}

fn unsupported_extension(selector: &VectorSelector) -> Option<String> {
    selector.extension.map(|extension| format!("the {} modifier", extension.name()))
}
