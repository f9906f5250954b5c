//! Which data an evaluation will read.

use crate::ast::{Expr, ExprKind};
use crate::error::EvalError;
use crate::eval::grid::{Grid, positive_duration, request_of, subquery_grid};
use crate::eval::params::{EvalParams, SelectorRequest};

/// Everything that [`evaluate`](crate::evaluate) will ask its source for, each request once. Empty parts
/// of an expression, and those that evaluation refuses, ask for nothing.
pub fn selector_requests(expr: &Expr, params: &EvalParams) -> Vec<SelectorRequest> {
    let mut requests = Vec::new();
    let mut open = vec![(expr, params.grid())];
    while let Some((expr, grid)) = open.pop() {
        // An invalid duration makes the evaluation fail before it reads.
        if let Ok(Some(request)) = request_of_node(expr, &grid, params)
            && !requests.contains(&request)
        {
            requests.push(request);
        }
        if let Ok(inner) = grid_of_children(expr, &grid, params)
            && inner.count > 0
        {
            open.extend(expr.children().into_iter().rev().map(|child| (child, inner)));
        }
    }
    requests
}

fn request_of_node(
    expr: &Expr,
    grid: &Grid,
    params: &EvalParams,
) -> Result<Option<SelectorRequest>, EvalError> {
    Ok(match &expr.kind {
        ExprKind::VectorSelector(selector) => Some(request_of(selector, 0, grid, params)),
        ExprKind::MatrixSelector(matrix) => {
            let range_ms = positive_duration(&matrix.range, params)?;
            Some(request_of(&matrix.selector, range_ms, grid, params))
        }
        _ => None,
    })
}

fn grid_of_children(expr: &Expr, grid: &Grid, params: &EvalParams) -> Result<Grid, EvalError> {
    match &expr.kind {
        ExprKind::Subquery(subquery) => subquery_grid(subquery, grid, params),
        _ => Ok(*grid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use saturn_model::TimestampMs;

    fn ranges(query: &str, params: &EvalParams) -> Vec<(i64, i64)> {
        let expr = parse(query).expect("valid");
        selector_requests(&expr, params).iter().map(|r| (r.start.0, r.end.0)).collect()
    }

    #[test]
    fn windows_are_left_open() {
        let at = |t| TimestampMs(t);
        let instant = EvalParams::instant(at(1_000_000));
        assert_eq!(ranges("up", &instant), [(700_001, 1_000_000)]);
        assert_eq!(ranges("rate(up[1m] offset 10s)", &instant), [(930_001, 990_000)]);
        assert_eq!(ranges("up @ 2 + up @ 2", &instant), [(-297_999, 2_000)]);
        assert_eq!(ranges("sum_over_time(up[2m:1m])", &instant), [(600_001, 960_000)]);
        let range = EvalParams::range(at(0), at(100_000), 30_000);
        assert_eq!(ranges("up", &range), [(-299_999, 90_000)]);
    }
}
