//! Which data an evaluation will read.

use crate::ast::{Expr, ExprKind};
use crate::error::EvalError;
use crate::eval::grid::{Grid, positive_duration, request_of, subquery_grid};
use crate::eval::info::info_request;
use crate::eval::invariance::is_step_invariant;
use crate::eval::params::{EvalParams, SelectorRequest};
use crate::eval::selector_aggregate::SelectorAggregate;
use crate::functions::FunctionId;

/// What an evaluation asks its source for.
#[derive(Clone, Debug, PartialEq)]
pub enum DataRequest {
    /// All samples of a selector.
    Series(SelectorRequest),
    /// An aggregation of a selector. A source that cannot compute it is asked for the selector instead.
    Aggregate(Box<SelectorAggregate>),
}

impl DataRequest {
    /// The selector that it is about.
    pub fn selector(&self) -> &SelectorRequest {
        match self {
            Self::Series(request) => request,
            Self::Aggregate(aggregate) => aggregate.request(),
        }
    }
}

/// [`selector_requests`], with what can be aggregated at the source as such: selectors that the expression uses once,
/// so that nothing is read twice.
pub fn data_requests(expr: &Expr, params: &EvalParams) -> Vec<DataRequest> {
    let mut requests: Vec<DataRequest> = Vec::new();
    walk(expr, params, |request| {
        match requests.iter_mut().find(|known| known.selector() == request.selector()) {
            Some(known) => *known = DataRequest::Series(request.selector().clone()),
            None => requests.push(request),
        }
    });
    requests
}

/// Everything that [`evaluate`](crate::evaluate) will ask its source for, each request once. Empty parts
/// of an expression, and those that evaluation refuses, ask for nothing.
pub fn selector_requests(expr: &Expr, params: &EvalParams) -> Vec<SelectorRequest> {
    let mut requests = Vec::new();
    walk(expr, params, |request| {
        if !requests.contains(request.selector()) {
            requests.push(request.selector().clone());
        }
    });
    requests
}

/// Gives all requests to `each`, in the order of the selectors in the expression.
fn walk(expr: &Expr, params: &EvalParams, mut each: impl FnMut(DataRequest)) {
    let mut open = vec![(expr, once_if_invariant(expr, params.grid()))];
    while let Some((expr, grid)) = open.pop() {
        if let ExprKind::Aggregate(aggregate) = &expr.kind
            && let Some(aggregate) = SelectorAggregate::of(aggregate, &grid, params)
        {
            each(DataRequest::Aggregate(Box::new(aggregate)));
            continue;
        }
        // An invalid duration makes the evaluation fail before it reads.
        if let Ok(Some(request)) = request_of_node(expr, &grid, params) {
            each(DataRequest::Series(request));
        }
        if let Ok(inner) = grid_of_children(expr, &grid, params)
            && inner.count > 0
        {
            let children = read_children(expr).into_iter().rev();
            open.extend(children.map(|child| (child, once_if_invariant(child, inner))));
        }
    }
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
        ExprKind::Call(call) if call.function.id == FunctionId::Info => {
            Some(info_request(&call.args, grid, params))
        }
        _ => None,
    })
}

/// The steps at which evaluation looks at an operand. Of a chain of operators it looks at the ends only, as
/// chains may be long.
fn once_if_invariant(expr: &Expr, grid: Grid) -> Grid {
    let looked_at = !matches!(
        expr.kind,
        ExprKind::Binary(_) | ExprKind::MatrixSelector(_) | ExprKind::Subquery(_) | ExprKind::Number(_)
    );
    if grid.count > 1 && looked_at && is_step_invariant(expr) { Grid { count: 1, ..grid } } else { grid }
}

/// The operands that are evaluated. The second argument of `info` is not: it selects labels.
fn read_children(expr: &Expr) -> Vec<&Expr> {
    let mut children = expr.children();
    if matches!(&expr.kind, ExprKind::Call(call) if call.function.id == FunctionId::Info) {
        children.truncate(1);
    }
    children
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
