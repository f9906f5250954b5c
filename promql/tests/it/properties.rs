//! Properties of the language: what is printed reads back, nothing panics, a range query is its instant
//! queries side by side, and a naive evaluator agrees.

use std::collections::BTreeMap;

use proptest::prelude::*;
use saturn_model::{
    Buckets, CUSTOM_BUCKETS_SCHEMA, CounterResetHint, Histogram, Labels, SeriesColumns, TimestampMs,
    is_stale_nan,
};
use saturn_promql::ast::{DurationExpr, DurationExprKind, DurationSetting, Expr, ExprKind, TimeModifiers};
use saturn_promql::promqltest::{Aggregating, Announced, Store, almost_equal, points, same_histogram};
use saturn_promql::{
    DataRequest, EvalParams, Executor, NameRemoval, SampleValue, Span, Value, data_requests, evaluate,
    evaluate_on, parse, parse_duration, parse_selector, selector_requests,
};

// Queries.

/// A duration in a selector.
fn duration() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("30s".to_owned()),
        Just("2m".to_owned()),
        Just("1h30m".to_owned()),
        Just("90".to_owned()),
        Just("(1m + 30s)".to_owned()),
        Just("2 * step() + 1m".to_owned()),
        Just("max_of(range(), 1m)".to_owned()),
    ]
}

fn modifiers() -> impl Strategy<Value = String> {
    let offset = prop_oneof![
        Just("".to_owned()),
        Just(" offset 1m".to_owned()),
        Just(" offset -45s".to_owned()),
        Just(" offset (1m - 30s)".to_owned()),
    ];
    let at = prop_oneof![Just(""), Just(" @ 120.5"), Just(" @ start()"), Just(" @ end()")];
    (at, offset).prop_map(|(at, offset)| format!("{at}{offset}"))
}

fn selector() -> impl Strategy<Value = String> {
    let matcher = prop_oneof![
        Just(""),
        Just("{a=\"1\"}"),
        Just("{a!=\"1\"}"),
        Just("{a=~\"1|2\", b!~\"x.*\"}"),
        Just("{\"a\"=`2`,b=''}"),
    ];
    (prop_oneof![Just("m"), Just("n_total"), Just("n:rule"), Just("h")], matcher)
        .prop_map(|(n, m)| format!("{n}{m}"))
}

fn range_vector(instant: BoxedStrategy<String>) -> BoxedStrategy<String> {
    let matrix = (selector(), duration(), modifiers()).prop_map(|(s, d, m)| format!("{s}[{d}]{m}"));
    let step = prop_oneof![Just(""), Just("30s"), Just("1m"), Just("step() + 7s")];
    let subquery =
        (instant, duration(), step, modifiers()).prop_map(|(e, d, s, m)| format!("({e})[{d}:{s}]{m}"));
    prop_oneof![3 => matrix, 1 => subquery].boxed()
}

fn vector() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        4 => (selector(), modifiers()).prop_map(|(s, m)| format!("{s}{m}")),
        1 => Just("vector(time())".to_owned()),
        1 => Just("vector(-1.5e-7)".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        let inner = inner.boxed();
        let range_function = prop_oneof![
            Just("rate"),
            Just("increase"),
            Just("delta"),
            Just("irate"),
            Just("avg_over_time"),
            Just("stddev_over_time"),
            Just("changes"),
            Just("last_over_time"),
            Just("absent_over_time"),
            Just("deriv"),
            Just("ts_of_max_over_time"),
            Just("idelta"),
            Just("resets"),
            Just("sum_over_time"),
            Just("count_over_time"),
            Just("first_over_time")
        ];
        let aggregate = prop_oneof![
            Just("sum"),
            Just("avg"),
            Just("avg by (a)"),
            Just("max without (a)"),
            Just("count"),
            Just("stdvar by (a)"),
            Just("group"),
        ];
        let with_scalar = prop_oneof![
            Just("+ 1"),
            Just("> bool 2"),
            Just("<= 3"),
            Just("% 2.5"),
            Just("^ 2"),
            Just("* (time() / 100)"),
            Just("</ 2.5"),
            Just(">/ -0.2")
        ];
        let set = prop_oneof![Just("and"), Just("or"), Just("unless on (a)")];
        let function = prop_oneof![
            Just("abs"),
            Just("timestamp"),
            Just("sgn"),
            Just("absent"),
            Just("-"),
            Just("histogram_sum"),
            Just("histogram_stdvar"),
            Just("histogram_quantile(0.7, "),
            Just("histogram_fraction(-1, 3, "),
        ];
        prop_oneof![
            (range_function, range_vector(inner.clone())).prop_map(|(f, r)| format!("{f}({r})")),
            range_vector(inner.clone()).prop_map(|r| format!("quantile_over_time(0.3, {r})")),
            (aggregate, inner.clone()).prop_map(|(a, e)| format!("{a} ({e})")),
            inner.clone().prop_map(|e| format!("quantile by (b) (0.25, {e})")),
            inner.clone().prop_map(|e| format!("count_values(\"v\", {e})")),
            (inner.clone(), with_scalar).prop_map(|(e, s)| format!("({e}) {s}")),
            (inner.clone(), set, inner.clone()).prop_map(|(a, op, b)| format!("({a}) {op} ({b})")),
            (function, inner.clone()).prop_map(|(f, e)| match f.ends_with(' ') {
                true => format!("{f}{e})"),
                false => format!("{f}({e})"),
            }),
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| format!("({a}) + on (a) fill (1) max by (a) ({b})")),
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| format!("sum by (a) ({a}) / on (a) sum by (a) ({b})")),
            (inner.clone(), inner)
                .prop_map(|(a, b)| format!("({a}) == on (a) group_left (b) max by (a) ({b})")),
        ]
    })
    .boxed()
}

/// Removes all places, so that trees of different texts can be compared.
fn erase(expr: &mut Expr) {
    expr.span = Span::default();
    match &mut expr.kind {
        ExprKind::Number(_) | ExprKind::Text(_) => {}
        ExprKind::VectorSelector(selector) => erase_time(&mut selector.time),
        ExprKind::MatrixSelector(matrix) => {
            erase_setting(&mut matrix.range);
            erase_time(&mut matrix.selector.time);
        }
        ExprKind::Subquery(subquery) => {
            erase_setting(&mut subquery.range);
            subquery.step.iter_mut().for_each(erase_setting);
            erase_time(&mut subquery.time);
            erase(&mut subquery.expr);
        }
        ExprKind::Call(call) => call.args.iter_mut().for_each(erase),
        ExprKind::Aggregate(aggregate) => {
            aggregate.param.iter_mut().for_each(erase);
            erase(&mut aggregate.expr);
        }
        ExprKind::Binary(binary) => {
            erase(&mut binary.left);
            erase(&mut binary.right);
        }
        ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => erase(inner),
    }
}

fn erase_time(time: &mut TimeModifiers) {
    time.offset.iter_mut().for_each(erase_setting);
}

fn erase_setting(setting: &mut DurationSetting) {
    if let DurationSetting::Computed(expr) = setting {
        erase_duration(expr);
    }
}

fn erase_duration(expr: &mut DurationExpr) {
    expr.span = Span::default();
    match &mut expr.kind {
        DurationExprKind::Number(_) | DurationExprKind::Step | DurationExprKind::Range => {}
        DurationExprKind::Negative(inner) | DurationExprKind::Paren(inner) => erase_duration(inner),
        DurationExprKind::Binary(_, a, b) | DurationExprKind::MinOf(a, b) | DurationExprKind::MaxOf(a, b) => {
            erase_duration(a);
            erase_duration(b);
        }
    }
}

// Data.

const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

fn samples() -> impl Strategy<Value = BTreeMap<i64, f64>> {
    let value = prop_oneof![
        8 => (0..20_i32).prop_map(f64::from),
        1 => Just(STALE),
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
    ];
    proptest::collection::btree_map((0..60_i64).prop_map(|i| i * 10_000), value, 0..40)
}

fn histogram() -> impl Strategy<Value = Histogram> {
    let schema = prop_oneof![3 => Just(0), 2 => Just(1), 1 => Just(CUSTOM_BUCKETS_SCHEMA)];
    let counts = proptest::collection::vec(0..6_u8, 0..5);
    let sides = (counts.clone(), counts, 0..4_u8, any::<bool>());
    (schema, sides, any::<bool>(), -2..3_i32).prop_map(
        |(schema, (above, below, zero, wide), gauge, offset)| {
            let custom = schema == CUSTOM_BUCKETS_SCHEMA;
            let side = |counts: &[u8], offset: i32| {
                Buckets::from_indexed((offset..).zip(counts.iter().map(|count| f64::from(*count))))
            };
            let below = if custom { Vec::new() } else { below };
            let zero = if custom { 0 } else { zero };
            let count = above.iter().chain(&below).chain([&zero]).map(|count| f64::from(*count)).sum();
            let bounds: &[f64] =
                if wide { &[1.0, 2.0, 5.0, 7.0, 10.0] } else { &[2.0, 5.0, 10.0, 20.0, 50.0] };
            Histogram {
                hint: if gauge && wide { CounterResetHint::Gauge } else { CounterResetHint::Unknown },
                schema,
                zero_threshold: if custom { 0.0 } else { f64::from(u8::from(wide)) * 0.3 },
                zero_count: f64::from(zero),
                count,
                sum: count * 1.5,
                positive: side(&above, if custom { 0 } else { offset }),
                negative: side(&below, offset),
                custom_values: if custom { bounds.into() } else { [].into() },
            }
        },
    )
}

fn store() -> impl Strategy<Value = Store> {
    let histograms =
        proptest::collection::btree_map((0..60_i64).prop_map(|i| i * 10_000), histogram(), 0..30);
    let names = prop_oneof![Just("m"), Just("n_total"), Just("h")];
    let with_histograms = proptest::option::of((names, 1..3_u8, histograms));
    (store_of_floats(), with_histograms).prop_map(|(mut store, with_histograms)| {
        if let Some((name, a, histograms)) = with_histograms {
            let labels = Labels::from_pairs([("__name__", name), ("a", a.to_string().as_str())]);
            store.insert_histograms(labels.expect("valid"), histograms);
        }
        store
    })
}

fn store_of_floats() -> impl Strategy<Value = Store> {
    let series = (prop_oneof![Just("m"), Just("n_total"), Just("n:rule")], 1..3_u8, 0..2_u8, samples());
    proptest::collection::vec(series, 1..6).prop_map(|series| {
        let mut store = Store::default();
        for (name, a, b, samples) in series {
            let (a, b) = (a.to_string(), if b == 0 { "" } else { "x1" });
            let labels = Labels::from_pairs([("__name__", name), ("a", a.as_str()), ("b", b)]);
            store.insert(labels.expect("valid"), samples);
        }
        store
    })
}

fn params(start: i64, count: i64, step: i64) -> EvalParams {
    EvalParams::range(TimestampMs(start), TimestampMs(start + (count - 1) * step), step)
}

/// Cuts all work into parts and runs them from the last to the first: as far from one after the other as one thread
/// can be.
struct Backwards(usize);

impl Executor for Backwards {
    fn parts(&self, _work: usize) -> usize {
        self.0
    }

    fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        (0..parts).rev().for_each(part);
    }
}

/// `sum by (a) (rate(m[2m] offset 10s))` and the like.
fn aggregation_of_a_selector() -> impl Strategy<Value = String> {
    let op = prop::sample::select(vec!["sum", "avg", "count", "min", "max"]);
    let grouping =
        prop::sample::select(vec!["", "by (a)", "by (b, none)", "without (a)", "by (__name__, b)"]);
    let metric = prop::sample::select(vec!["m", "n_total", "h", "n:rule", "m{b=\"\"}"]);
    let function = prop::sample::select(vec![
        "",
        "rate",
        "increase",
        "delta",
        "sum_over_time",
        "avg_over_time",
        "min_over_time",
        "max_over_time",
        "count_over_time",
        "last_over_time",
        "first_over_time",
        "stddev_over_time",
        "deriv",
    ]);
    let modifier = prop::sample::select(vec!["", " offset 25s", " @ 200", " @ end() offset -30s"]);
    let parts = (op, grouping, metric, function, 1..200_i64, modifier);
    parts.prop_map(|(op, grouping, metric, function, range, modifier)| match function {
        "" => format!("{op} {grouping} (({metric}{modifier}))"),
        _ => format!("{op} {grouping} ({function}({metric}[{range}s]{modifier}))"),
    })
}

/// The answer as a map, or the text of the error.
fn answer(expr: &Expr, params: &EvalParams, store: &Store) -> Result<Vec<SeriesColumns>, String> {
    let source = Announced { store, requests: selector_requests(expr, params) };
    match evaluate(expr, params, &source, &|| false).map_err(|e| e.to_string())?.value {
        value @ (Value::Matrix(_) | Value::Vector(_)) => Ok(columns(value)),
        other => Err(format!("not a vector: {other:?}")),
    }
}

/// A vector or matrix as columns.
fn columns(value: Value) -> Vec<SeriesColumns> {
    match value {
        Value::Matrix(matrix) => matrix,
        Value::Vector(samples) => samples
            .into_iter()
            .map(|s| match s.value {
                SampleValue::Float(value) => {
                    SeriesColumns::floats(s.labels, vec![s.timestamp.0], vec![value])
                }
                SampleValue::Histogram(histogram) => {
                    let mut columns = SeriesColumns::floats(s.labels, vec![], vec![]);
                    columns.histograms.push(s.timestamp.0, histogram);
                    columns
                }
            })
            .collect(),
        other => panic!("not a vector: {other:?}"),
    }
}

type Cells = BTreeMap<(String, i64), SampleValue>;

fn cells(matrix: &[SeriesColumns]) -> Cells {
    let mut cells = Cells::new();
    for series in matrix {
        for (time, value) in points(series) {
            let old = cells.insert((series.labels.as_encoded().to_owned(), time), value);
            assert!(old.is_none(), "two samples of {} at {time}", series.labels);
        }
    }
    cells
}

fn same(a: &Cells, b: &Cells) -> bool {
    let same = |a: &SampleValue, b: &SampleValue| match (a, b) {
        (SampleValue::Float(a), SampleValue::Float(b)) => almost_equal(*a, *b),
        (SampleValue::Histogram(a), SampleValue::Histogram(b)) => same_histogram(a, b),
        _ => false,
    };
    a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
}

/// Whether the value of a query depends on the start and end of the whole query.
fn depends_on_range(query: &str) -> bool {
    ["start()", "end()", "range()", "step()"].iter().any(|f| query.contains(f))
}

// A naive evaluator: one step, one series, straight from the rules.

fn naive(function: &str, samples: &BTreeMap<i64, f64>, time: i64, range: i64) -> Option<f64> {
    let window: Vec<(i64, f64)> = samples
        .range(time - range + 1..=time)
        .filter(|(_, value)| !is_stale_nan(**value))
        .map(|(time, value)| (*time, *value))
        .collect();
    let values: Vec<f64> = window.iter().map(|(_, value)| *value).collect();
    let (first, last) = (window.first()?, window.last()?);
    match function {
        "sum_over_time" => Some(values.iter().sum()),
        "count_over_time" => Some(values.len() as f64),
        "max_over_time" => Some(values.iter().copied().fold(f64::NAN, f64::max)),
        "min_over_time" => Some(values.iter().copied().fold(f64::NAN, f64::min)),
        "last_over_time" => Some(last.1),
        "first_over_time" => Some(first.1),
        "resets" => Some(values.windows(2).filter(|pair| pair[1] < pair[0]).count() as f64),
        "increase" if window.len() < 2 => None,
        "increase" => {
            let mut total = last.1 - first.1;
            for pair in values.windows(2) {
                total += if pair[1] < pair[0] { pair[0] } else { 0.0 };
            }
            let seconds = |ms: i64| ms as f64 / 1000.0;
            let sampled = seconds(last.0 - first.0);
            let gap = sampled / (values.len() - 1) as f64;
            let reach = |distance: f64| if distance >= gap * 1.1 { gap / 2.0 } else { distance };
            let mut left = reach(seconds(first.0 - (time - range)));
            if total > 0.0 && first.1 >= 0.0 {
                left = left.min(sampled * (first.1 / total));
            }
            let right = reach(seconds(time - last.0));
            Some(total * ((sampled + left + right) / sampled))
        }
        other => panic!("no naive {other}"),
    }
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(query in vector()) {
        let mut expr = parse(&query).expect("the strategy makes valid queries");
        let printed = expr.to_string();
        let mut again = parse(&printed).unwrap_or_else(|e| panic!("{query:?} printed as {printed:?}: {e}"));
        erase(&mut expr);
        erase(&mut again);
        prop_assert_eq!(&expr, &again, "{:?} printed as {:?}", query, printed);
    }

    #[test]
    fn any_text_is_parsed_or_refused(
        words in proptest::collection::vec(
            prop_oneof![
                "\\PC{0,3}",
                prop_oneof![
                    Just("sum"), Just("("), Just(")"), Just("{"), Just("}"), Just("["), Just("]"), Just("a"),
                    Just("by"), Just("offset"), Just("@"), Just("5m"), Just("1"), Just("\""), Just("="),
                    Just("=~"), Just("-"), Just(","), Just("on"), Just("bool"), Just("group_left"), Just(":"),
                    Just("step()"), Just("rate("), Just("\\x"), Just("fill(1)"), Just("`"), Just("0x"),
                ].prop_map(str::to_owned),
            ],
            0..20,
        ),
        spaced in any::<bool>(),
    ) {
        let text = words.join(if spaced { " " } else { "" });
        if let Ok(expr) = parse(&text) {
            let printed = expr.to_string();
            prop_assert!(parse(&printed).is_ok(), "{:?} printed as {:?}", text, printed);
        }
        let _ = parse_selector(&text);
        let _ = parse_duration(&text);
    }

    #[test]
    fn a_range_query_is_its_instant_queries(
        query in vector(),
        store in store(),
        start in 0..40_i64,
        count in 1..8_i64,
        step in 1..13_i64,
        delayed in any::<bool>(),
    ) {
        if depends_on_range(&query) {
            return Ok(());
        }
        let expr = parse(&query).expect("the strategy makes valid queries");
        let mut range = params(start * 10_000, count, step * 10_000);
        range.name_removal = if delayed { NameRemoval::Delayed } else { NameRemoval::Immediate };
        range.lookback_ms = 60_000;
        // Two series may collide at one step, or in all steps together: those errors need not agree.
        let Ok(matrix) = answer(&expr, &range, &store) else { return Ok(()) };
        let mut columns = Cells::new();
        for i in 0..count {
            let time = TimestampMs(range.start.0 + i * range.step_ms);
            let instant = EvalParams { start: time, end: time, step_ms: 0, ..range.clone() };
            let column = answer(&expr, &instant, &store);
            columns.extend(cells(&column.unwrap_or_else(|e| panic!("{query} at {time}: {e}"))));
        }
        let got = cells(&matrix);
        prop_assert!(same(&got, &columns), "{}\nrange: {:?}\ninstant: {:?}", query, got, columns);
    }

    #[test]
    fn parts_make_no_difference(
        left in vector(),
        right in vector(),
        operator in prop_oneof![Just("+"), Just("/ on (a) group_left ()"), Just("or"), Just("and"), Just("> bool")],
        store in store(),
        start in 0..40_i64,
        count in 1..8_i64,
        step in 1..13_i64,
        parts in 2..5_usize,
        delayed in any::<bool>(),
    ) {
        let expr = parse(&format!("({left}) {operator} ({right}) or rate(h[2m]) or rate(n_total[3m])"));
        let expr = expr.expect("the strategy makes valid queries");
        let mut range = params(start * 10_000, count, step * 10_000);
        range.name_removal = if delayed { NameRemoval::Delayed } else { NameRemoval::Immediate };
        let source = Announced { store: &store, requests: selector_requests(&expr, &range) };
        let whole = evaluate(&expr, &range, &source, &|| false);
        let cut = evaluate_on(&Backwards(parts), &expr, &range, &source, &|| false);
        match (whole, cut) {
            (Ok(whole), Ok(cut)) => {
                // Debug prints all digits of a float.
                prop_assert_eq!(format!("{:?}", whole.value), format!("{:?}", cut.value));
                prop_assert_eq!(whole.annotations, cut.annotations);
                prop_assert_eq!(whole.samples.queryable_per_step, cut.samples.queryable_per_step);
                prop_assert_eq!(whole.samples.read_per_step, cut.samples.read_per_step);
            }
            (Err(whole), Err(cut)) => prop_assert_eq!(whole.to_string(), cut.to_string()),
            (whole, cut) => prop_assert!(false, "{:?} and {:?}", whole.is_ok(), cut.is_ok()),
        }
    }

    #[test]
    fn an_aggregation_at_the_source_is_the_evaluators(
        query in aggregation_of_a_selector(),
        store in store(),
        start in 0..40_i64,
        count in 0..8_i64,
        step in 1..13_i64,
    ) {
        let expr = parse(&query).expect("the strategy makes valid queries");
        let time = TimestampMs(start * 10_000);
        let mut params = match count {
            0 => EvalParams::instant(time),
            _ => params(time.0, count, step * 10_000),
        };
        params.lookback_ms = 60_000;
        let source = Announced { store: &store, requests: selector_requests(&expr, &params) };
        let evaluated = evaluate(&expr, &params, &source, &|| false);
        let requests = data_requests(&expr, &params);
        prop_assert!(matches!(requests[..], [DataRequest::Aggregate(_)]), "{} is aggregated", query);
        let source = Aggregating { store: &store, requests };
        let aggregated = evaluate(&expr, &params, &source, &|| false);
        match (evaluated, aggregated) {
            (Ok(evaluated), Ok(aggregated)) => {
                let (want, got) = (columns(evaluated.value), columns(aggregated.value));
                let names = |all: &[SeriesColumns]| all.iter().map(|s| s.labels.clone()).collect::<Vec<_>>();
                prop_assert_eq!(names(&want), names(&got), "the order is the same");
                prop_assert!(same(&cells(&want), &cells(&got)), "{}\n{:?}\n{:?}", query, want, got);
                prop_assert_eq!(evaluated.annotations, aggregated.annotations);
                prop_assert_eq!(evaluated.samples.queryable_per_step, aggregated.samples.queryable_per_step);
                prop_assert_eq!(evaluated.samples.read_per_step, aggregated.samples.read_per_step);
            }
            (Err(evaluated), Err(aggregated)) => {
                prop_assert_eq!(evaluated.to_string(), aggregated.to_string());
            }
            (evaluated, aggregated) => {
                prop_assert!(false, "{} {:?} and {:?}", query, evaluated.is_ok(), aggregated.is_ok());
            }
        }
    }

    #[test]
    fn a_naive_evaluator_agrees(
        function in prop_oneof![
            Just("sum_over_time"), Just("count_over_time"), Just("max_over_time"), Just("min_over_time"),
            Just("last_over_time"), Just("first_over_time"), Just("resets"), Just("increase"),
        ],
        store in store_of_floats(),
        start in 0..60_i64,
        count in 1..10_i64,
        step in 1..9_i64,
        range_s in 1..200_i64,
        offset_s in -100..100_i64,
    ) {
        let query = format!("{function}(n_total[{range_s}s] offset {offset_s}s)");
        let params = params(start * 7_000, count, step * 7_000);
        let matrix = answer(&parse(&query).expect("valid"), &params, &store).expect("no reason to fail");
        let mut wanted = Cells::new();
        for (labels, samples) in store.floats().filter(|(l, _)| l.metric_name() == "n_total") {
            let keeps_name = matches!(function, "last_over_time" | "first_over_time");
            let labels = if keeps_name { labels.clone() } else { labels.to_builder().remove("__name__").build() };
            for i in 0..count {
                let time = params.start.0 + i * params.step_ms;
                if let Some(value) = naive(function, &samples, time - offset_s * 1000, range_s * 1000) {
                    wanted.insert((labels.as_encoded().to_owned(), time), SampleValue::Float(value));
                }
            }
        }
        let got = cells(&matrix);
        prop_assert!(same(&got, &wanted), "{}\ngot: {:?}\nwant: {:?}", query, got, wanted);
    }
}
