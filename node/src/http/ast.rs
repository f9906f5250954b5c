//! `/api/v1/parse_query`: the syntax tree as JSON, in the form of Prometheus's `translate_ast.go`.
//!
//! Durations are milliseconds. A duration that is an expression is in the field `...Expr`, and its fixed
//! counterpart is 0.

use saturn_model::Matcher;
use saturn_promql::ast::{
    Aggregate, At, Binary, BinaryOp, Call, Cardinality, DurationExpr, DurationExprKind, DurationSetting,
    Expr, ExprKind, Extension, Grouping, MatrixSelector, NumberLiteral, Subquery, TimeModifiers, ValueType,
    VectorMatching, VectorSelector,
};
use saturn_promql::{Variadic, format_value};
use serde_json::{Map, Value, json};

/// The tree below `expr`.
pub(crate) fn tree(expr: &Expr) -> Value {
    match &expr.kind {
        ExprKind::Number(number) => number_node(number),
        ExprKind::Text(bytes) => {
            json!({"type": "stringLiteral", "val": String::from_utf8_lossy(bytes)})
        }
        ExprKind::VectorSelector(selector) => with_type("vectorSelector", selector_fields(selector)),
        ExprKind::MatrixSelector(matrix) => matrix_node(matrix),
        ExprKind::Subquery(subquery) => subquery_node(subquery),
        ExprKind::Call(call) => call_node(call),
        ExprKind::Aggregate(aggregate) => aggregate_node(aggregate),
        ExprKind::Binary(binary) => binary_node(binary),
        ExprKind::Unary(op, inner) => json!({"type": "unaryExpr", "op": op.symbol(), "expr": tree(inner)}),
        ExprKind::Paren(inner) => json!({"type": "parenExpr", "expr": tree(inner)}),
    }
}

fn with_type(name: &str, mut fields: Map<String, Value>) -> Value {
    fields.insert("type".into(), name.into());
    Value::Object(fields)
}

fn number_node(number: &NumberLiteral) -> Value {
    json!({"type": "numberLiteral", "val": format_value(number.value)})
}

fn selector_fields(selector: &VectorSelector) -> Map<String, Value> {
    let mut fields = time_fields(&selector.time);
    fields.insert("name".into(), selector.name.clone().into());
    fields.insert("matchers".into(), selector.matchers.iter().map(matcher_node).collect());
    fields.insert("anchored".into(), (selector.extension == Some(Extension::Anchored)).into());
    fields.insert("smoothed".into(), (selector.extension == Some(Extension::Smoothed)).into());
    fields
}

fn matcher_node(matcher: &Matcher) -> Value {
    json!({"name": matcher.name(), "value": matcher.value(), "type": matcher.op().to_string()})
}

/// `offset`, `offsetExpr`, `timestamp` and `startOrEnd`.
fn time_fields(time: &TimeModifiers) -> Map<String, Value> {
    let mut fields = Map::new();
    let (offset, offset_expr) = time.offset.as_ref().map_or((json!(0), Value::Null), duration_values);
    fields.insert("offset".into(), offset);
    fields.insert("offsetExpr".into(), offset_expr);
    let (timestamp, start_or_end) = match time.at {
        None => (Value::Null, Value::Null),
        Some(At::Timestamp(ms)) => (ms.into(), Value::Null),
        Some(At::Start) => (Value::Null, "start".into()),
        Some(At::End) => (Value::Null, "end".into()),
    };
    fields.insert("timestamp".into(), timestamp);
    fields.insert("startOrEnd".into(), start_or_end);
    fields
}

/// A duration as milliseconds and, if it is computed, as a tree.
fn duration_values(duration: &DurationSetting) -> (Value, Value) {
    match duration {
        DurationSetting::Fixed(ms) => (json!(ms), Value::Null),
        DurationSetting::Computed(expr) => (json!(0), duration_node(expr)),
    }
}

fn duration_node(expr: &DurationExpr) -> Value {
    let node = |op: &str, lhs: Value, rhs: Value| json!({"type": "durationExpr", "op": op, "lhs": lhs, "rhs": rhs, "wrapped": false});
    match &expr.kind {
        DurationExprKind::Number(number) => number_node(number),
        DurationExprKind::Step => node("step", Value::Null, Value::Null),
        DurationExprKind::Range => node("range", Value::Null, Value::Null),
        DurationExprKind::Negative(inner) => node("-", Value::Null, duration_node(inner)),
        DurationExprKind::Binary(op, left, right) => {
            node(op.symbol(), duration_node(left), duration_node(right))
        }
        DurationExprKind::MinOf(left, right) => node("min_of", duration_node(left), duration_node(right)),
        DurationExprKind::MaxOf(left, right) => node("max_of", duration_node(left), duration_node(right)),
        DurationExprKind::Paren(inner) => {
            let mut inner = duration_node(inner);
            if let Some(wrapped) = inner.get_mut("wrapped") {
                *wrapped = true.into();
            }
            inner
        }
    }
}

fn matrix_node(matrix: &MatrixSelector) -> Value {
    let mut fields = selector_fields(&matrix.selector);
    let (range, range_expr) = duration_values(&matrix.range);
    fields.insert("range".into(), range);
    fields.insert("rangeExpr".into(), range_expr);
    with_type("matrixSelector", fields)
}

fn subquery_node(subquery: &Subquery) -> Value {
    let mut fields = time_fields(&subquery.time);
    fields.insert("expr".into(), tree(&subquery.expr));
    let (range, range_expr) = duration_values(&subquery.range);
    let (step, step_expr) = subquery.step.as_ref().map_or((json!(0), Value::Null), duration_values);
    fields.insert("range".into(), range);
    fields.insert("rangeExpr".into(), range_expr);
    fields.insert("step".into(), step);
    fields.insert("stepExpr".into(), step_expr);
    with_type("subquery", fields)
}

fn call_node(call: &Call) -> Value {
    let function = call.function;
    let arg_types: Vec<&str> = function.args.iter().map(|t: &ValueType| t.api_name()).collect();
    let variadic = match function.variadic {
        Variadic::No => 0,
        Variadic::UpTo(count) => i64::try_from(count).unwrap_or(i64::MAX),
        Variadic::Any => -1,
    };
    json!({
        "type": "call",
        "func": {
            "name": function.name,
            "argTypes": arg_types,
            "variadic": variadic,
            "returnType": function.returns.api_name(),
        },
        "args": call.args.iter().map(tree).collect::<Vec<_>>(),
    })
}

fn aggregate_node(aggregate: &Aggregate) -> Value {
    let (grouping, without) = match &aggregate.grouping {
        Grouping::By(labels) => (labels, false),
        Grouping::Without(labels) => (labels, true),
    };
    json!({
        "type": "aggregation",
        "op": aggregate.op.name(),
        "expr": tree(&aggregate.expr),
        "param": aggregate.param.as_ref().map(tree),
        "grouping": grouping,
        "without": without,
    })
}

fn binary_node(binary: &Binary) -> Value {
    let both_vectors = [&binary.left, &binary.right].iter().all(|e| e.value_type() == ValueType::Vector);
    let is_set = matches!(binary.op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless);
    let matching = (both_vectors || is_set).then(|| matching_node(&binary.matching));
    json!({
        "type": "binaryExpr",
        "op": binary.op.symbol(),
        "lhs": tree(&binary.left),
        "rhs": tree(&binary.right),
        "matching": matching,
        "bool": binary.return_bool,
    })
}

fn matching_node(matching: &VectorMatching) -> Value {
    let card = match matching.cardinality {
        Cardinality::OneToOne => "one-to-one",
        Cardinality::ManyToOne => "many-to-one",
        Cardinality::OneToMany => "one-to-many",
        Cardinality::ManyToMany => "many-to-many",
    };
    let fill = |value: Option<f64>| value.map(format_value);
    json!({
        "card": card,
        "labels": matching.labels,
        "on": matching.on,
        "include": matching.include,
        "fillValues": {"lhs": fill(matching.fill.left), "rhs": fill(matching.fill.right)},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> Value {
        tree(&saturn_promql::parse(query).expect("valid"))
    }

    #[test]
    fn selectors_carry_their_modifiers() {
        let tree = parsed(r#"rate(up{job=~"a.*"}[5m] offset -1m)"#);
        assert_eq!(tree["type"], "call");
        assert_eq!(tree["func"]["returnType"], "vector");
        let matrix = &tree["args"][0];
        assert_eq!(matrix["type"], "matrixSelector");
        assert_eq!((&matrix["range"], &matrix["offset"]), (&json!(300_000), &json!(-60_000)));
        assert!(
            matrix["matchers"]
                .as_array()
                .expect("list")
                .contains(&json!({"name": "job", "value": "a.*", "type": "=~"}))
        );
        assert_eq!(parsed("up @ end()")["startOrEnd"], "end");
        assert_eq!(parsed("up @ 1.5")["timestamp"], 1500);
    }

    #[test]
    fn operators_carry_their_matching() {
        let tree = parsed("a / on (x) group_left (y) b");
        assert_eq!(tree["matching"]["card"], "many-to-one");
        assert_eq!(tree["matching"]["include"], json!(["y"]));
        assert_eq!(parsed("1 + 2")["matching"], Value::Null);
        assert_eq!(parsed("sum without (a) (b)")["without"], true);
        assert_eq!(parsed("sum(b)")["grouping"], json!([]));
    }
}
