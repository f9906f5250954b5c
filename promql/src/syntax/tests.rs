//! What the parser makes of queries, and the limits that keep it safe. Prometheus's own cases are run by
//! the integration tests.

use crate::ast::{BinaryOp, Expr, ExprKind};
use crate::{ParseErrorKind, ParseLimits, evaluate, parse, parse_selector, parse_with_limits};

fn error(query: &str) -> String {
    parse(query).expect_err("an invalid query").to_string()
}

/// The expression with every operation in parentheses.
fn explicit(expr: &Expr) -> String {
    match &expr.kind {
        ExprKind::Binary(b) => {
            format!("({} {} {})", explicit(&b.left), b.op.symbol(), explicit(&b.right))
        }
        ExprKind::Unary(op, inner) => format!("({}{})", op.symbol(), explicit(inner)),
        _ => expr.to_string(),
    }
}

#[test]
fn precedence_is_prometheuss() {
    for (query, wanted) in [
        ("a + b * c", "(a + (b * c))"),
        ("a - b - c", "((a - b) - c)"),
        ("a ^ b ^ c", "(a ^ (b ^ c))"),
        ("-a ^ b", "(-(a ^ b))"),
        ("-a * b", "((-a) * b)"),
        ("a ^ -b ^ c", "(a ^ (-(b ^ c)))"),
        ("a or b and c unless d == e", "(a or ((b and c) unless (d == e)))"),
        ("a atan2 b % c", "((a atan2 b) % c)"),
        ("-1 ^ 2", "(-(1 ^ 2))"),
        ("-a offset 5m", "(-a offset 5m)"),
    ] {
        assert_eq!(explicit(&parse(query).expect("valid")), wanted, "{query}");
    }
}

#[test]
fn nodes_know_their_bytes() {
    let query = "sum by (a) (rate(x[5m] offset 1m)) > 1";
    let expr = parse(query).expect("valid");
    let ExprKind::Binary(binary) = &expr.kind else { panic!("a comparison") };
    assert_eq!(binary.op, BinaryOp::Greater);
    assert_eq!(&query[binary.left.span.start..binary.left.span.end], "sum by (a) (rate(x[5m] offset 1m))");
    let ExprKind::Aggregate(aggregate) = &binary.left.kind else { panic!("an aggregation") };
    let ExprKind::Call(call) = &aggregate.expr.kind else { panic!("a call") };
    let span = call.args[0].span;
    assert_eq!(&query[span.start..span.end], "x[5m] offset 1m");
}

#[test]
fn errors_have_a_line_and_a_column() {
    assert_eq!(error("sum(\n  up,"), "2:6: parse error: unclosed left parenthesis");
    assert_eq!(error("a b"), "1:3: parse error: unexpected identifier \"b\"");
    assert_eq!(
        error("rate(up)"),
        "1:6: parse error: expected type range vector in call to function \"rate\", got instant vector"
    );
    assert_eq!(parse("1 == 1").expect_err("invalid").kind, ParseErrorKind::Check);
    assert!(error("up{a=~\"(\"}").starts_with("1:4: parse error: invalid regular expression"));
}

#[test]
fn names_may_be_reserved_words_or_quoted() {
    for query in [
        "sum",
        "by",
        "offset",
        "fill",
        "end",
        "{\"my.metric\", \"lab.el\"=\"x\"}",
        "sum(sum)",
        "on{a=\"b\"} + x",
    ] {
        assert_eq!(parse(query).is_ok(), !query.starts_with("on"), "{query}");
    }
}

#[test]
fn selectors_of_the_api() {
    assert_eq!(parse_selector("up{a!=\"b\"}").expect("valid").len(), 2);
    assert_eq!(
        parse_selector("{a=~\".*\"}").expect_err("too wide").message,
        "vector selector must contain at least one non-empty matcher"
    );
    for text in ["up[5m]", "sum(up)", "1", "", "up offset 5m", "up up"] {
        assert!(parse_selector(text).is_err(), "{text}");
    }
}

#[test]
fn limits_are_errors() {
    let too_large = |query: &str| {
        let limits = ParseLimits { query_bytes_max: 1 << 20, ..ParseLimits::default() };
        parse_with_limits(query, &limits).expect_err("too large").kind
    };
    assert_eq!(too_large(&"(".repeat(100_000)), ParseErrorKind::TooLarge);
    assert_eq!(too_large(&"abs(".repeat(100_000)), ParseErrorKind::TooLarge);
    assert_eq!(too_large(&"-".repeat(10_000)), ParseErrorKind::TooLarge);
    assert_eq!(too_large(&format!("x[{}1]", "-".repeat(10_000))), ParseErrorKind::TooLarge);
    assert_eq!(too_large(&format!("x offset {}1", "-".repeat(10_000))), ParseErrorKind::TooLarge);
    assert_eq!(too_large(&"1^".repeat(10_000)), ParseErrorKind::TooLarge);
    assert_eq!(too_large(&"a+".repeat(10_000)), ParseErrorKind::TooLarge);
    assert_eq!(too_large(&format!("x{}", "[5m:]".repeat(10_000))), ParseErrorKind::TooLarge);
    let long = parse(&" ".repeat(17_000)).expect_err("too long");
    assert_eq!(long.kind, ParseErrorKind::TooLarge);
    assert!(long.message.contains("query_bytes_max"), "{long}");
}

/// The largest query that is allowed is parsed, printed, evaluated and dropped on a small stack.
#[test]
#[expect(clippy::disallowed_methods, reason = "the size of the stack is what is tested")]
fn the_deepest_query_fits_a_small_stack() {
    struct Nothing;
    impl crate::Source for Nothing {
        fn select(
            &self,
            _: &crate::SelectorRequest,
        ) -> Result<std::sync::Arc<[saturn_model::SeriesColumns]>, crate::SourceError> {
            Ok([].into())
        }
    }
    let work = || {
        let chain = format!("a{}", " + a".repeat(999));
        let nested = format!("{}a{}", "(".repeat(120), ")".repeat(120));
        let calls = format!("{}a{}", "abs(".repeat(120), ")".repeat(120));
        let subqueries = format!("{}a{}", "max_over_time(".repeat(120), "[5m:])".repeat(120));
        for query in [chain, nested, calls, subqueries] {
            let expr = parse(&query).expect("within the limits");
            assert_eq!(parse(&expr.to_string()).expect("valid").to_string(), expr.to_string());
            let params = crate::EvalParams::instant(saturn_model::TimestampMs(0));
            assert!(!crate::selector_requests(&expr, &params).is_empty());
            evaluate(&expr, &params, &Nothing, &|| false).expect("nothing to fail on");
        }
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(work).expect("a thread starts");
    thread.join().expect("the stack is large enough");
}
