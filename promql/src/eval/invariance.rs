//! Whether an expression has the same value at every step, because `@` pins all that it reads.
//!
//! Such an expression is evaluated once. Source: `PreprocessExpr` of Prometheus's `engine.go`.

use crate::ast::{Expr, ExprKind};
use crate::functions::FunctionId;

/// Whether `expr` reads data, and all of it at pinned times, and nothing in it looks at the step's own time.
pub(super) fn is_step_invariant(expr: &Expr) -> bool {
    let mut reads = false;
    let mut open = vec![expr];
    while let Some(expr) = open.pop() {
        match &expr.kind {
            ExprKind::VectorSelector(selector) => {
                reads = true;
                if selector.time.at.is_none() {
                    return false;
                }
            }
            ExprKind::MatrixSelector(matrix) => {
                reads = true;
                if matrix.selector.time.at.is_none() {
                    return false;
                }
            }
            // What is inside of a pinned subquery has the subquery's own steps.
            ExprKind::Subquery(subquery) if subquery.time.at.is_some() => {
                reads = true;
                continue;
            }
            ExprKind::Call(call) if depends_on_step(call.function.id, &call.args) => return false,
            _ => {}
        }
        open.extend(expr.children());
    }
    reads
}

/// Whether a function looks at the step's own time.
fn depends_on_step(id: FunctionId, args: &[Expr]) -> bool {
    match id {
        FunctionId::DayOfMonth
        | FunctionId::DayOfWeek
        | FunctionId::DayOfYear
        | FunctionId::DaysInMonth
        | FunctionId::Hour
        | FunctionId::Minute
        | FunctionId::Month
        | FunctionId::Year => args.is_empty(),
        FunctionId::PredictLinear | FunctionId::Time => true,
        // Of a selector, the samples' own times.
        FunctionId::Timestamp => {
            !args.first().is_some_and(|arg| matches!(arg.without_parens().kind, ExprKind::VectorSelector(_)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[test]
    fn only_what_is_pinned_is_invariant() {
        for (query, wanted) in [
            ("x @ 1", true),
            ("rate(x[5m] @ start()) + 1", true),
            ("max_over_time(rate(x[5m])[1h:1m] @ 5)", true),
            ("timestamp(x @ 1)", true),
            ("timestamp(x @ 1 + 0)", false),
            ("x @ 1 + x", false),
            ("x @ 1 + time()", false),
            ("time()", false),
            ("1", false),
            ("predict_linear(x[5m] @ 1, 1)", false),
            ("hour(x @ 1)", true),
        ] {
            let expr = parse(query).unwrap_or_else(|e| panic!("{query}: {e}"));
            assert_eq!(is_step_invariant(&expr), wanted, "{query}");
        }
    }
}
