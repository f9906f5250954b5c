//! Bodies for fuzzers: any bytes in, no panic, and what must hold of every input checked.
//!
//! An ordinary test runs them over a corpus and random inputs; a fuzzer calls them as they are. A broken promise
//! is a panic, which is what fuzzers look for.

use std::cell::Cell;
use std::collections::BTreeMap;

use saturn_model::{Labels, TimestampMs};

use crate::ast::Expr;
use crate::promqltest::{Aggregating, Announced, Store};
use crate::{
    EvalError, EvalParams, NameRemoval, Source, StartTimestamps, Value, data_requests, evaluate, parse,
    parse_duration, parse_selector, selector_requests,
};

/// How often an evaluation asks whether it should stop before it is told to.
const CHECKS_MAX: usize = 2_000;
/// Most samples that an evaluation may hold.
const SAMPLES_MAX: usize = 20_000;

/// Reads `data` as a query, a selector and a duration. What parses prints as a text that parses to the same; what
/// does not names a place in the text.
pub fn parser(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = parse_selector(&text);
    let _ = parse_duration(&text);
    match parse(&text) {
        Ok(expr) => {
            let printed = expr.to_string();
            let again = parse(&printed).unwrap_or_else(|e| panic!("{text:?} prints as {printed:?}: {e}"));
            // Like Prometheus's, our printer writes `Inf` as `+Inf`, which reads as a sign and a number.
            if !printed.contains("Inf") {
                assert_eq!(again.to_string(), printed, "{text:?} prints differently the second time");
            }
        }
        Err(error) => {
            let span = error.span;
            assert!(span.start <= span.end && span.start <= text.len(), "{text:?}: {error} is at {span:?}");
        }
    }
}

/// Evaluates `data`, whose first four bytes say when and how, over a few series. The answer is sorted, without
/// duplicates and within the steps, or an error that is not of the evaluator's own making; also where what can be is
/// aggregated at the source.
pub fn evaluator(data: &[u8]) {
    let Some(([start, steps, step, rules], text)) = data.split_first_chunk() else { return };
    let text = String::from_utf8_lossy(text);
    let Ok(expr) = parse(&text) else { return };
    let start_ms = i64::from(*start) * 10_000 - 300_000;
    let (step_ms, steps) = (i64::from(*step) * 1000 + 1, i64::from(steps % 32));
    let mut params = match rules & 1 {
        0 => EvalParams::instant(TimestampMs(start_ms)),
        _ => EvalParams::range(TimestampMs(start_ms), TimestampMs(start_ms + steps * step_ms), step_ms),
    };
    params.samples_max = SAMPLES_MAX;
    if rules & 2 != 0 {
        params.name_removal = NameRemoval::Delayed;
    }
    if rules & 4 != 0 {
        params.start_timestamps = StartTimestamps::Used;
    }
    let store = store();
    let source = Announced { store: &store, requests: selector_requests(&expr, &params) };
    evaluate_over(&source, &expr, &params, &text);
    let source = Aggregating { store: &store, requests: data_requests(&expr, &params) };
    evaluate_over(&source, &expr, &params, &text);
}

fn evaluate_over(source: &dyn Source, expr: &Expr, params: &EvalParams, text: &str) {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let cancelled = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > CHECKS_MAX;
    match evaluate(expr, params, source, &cancelled) {
        Ok(result) => {
            check(&result.value, params, text);
            result.annotations.render(text, 10);
        }
        Err(EvalError::Source(error)) => panic!("{text:?}: {error}"),
        Err(_) => {}
    }
}

fn check(value: &Value, params: &EvalParams, text: &str) {
    let Value::Matrix(series) = value else { return };
    assert!(series.is_sorted_by(|a, b| a.labels < b.labels), "{text:?}: unsorted or double series");
    if params.step_ms == 0 {
        return;
    }
    let range = params.start.0..=params.end.0;
    for one in series {
        let ascending = |times: &[i64]| times.is_sorted_by(|a, b| a < b);
        assert!(ascending(&one.timestamps) && ascending(&one.histograms.timestamps), "{text:?}: times");
        let mut times = one.timestamps.iter().chain(&one.histograms.timestamps);
        assert!(times.all(|time| range.contains(time)), "{text:?}: outside of its steps");
    }
}

/// Counters, gauges, buckets, gaps and values that are no numbers.
fn store() -> Store {
    let mut store = Store::default();
    let value = Cell::new(0.0_f64);
    let series = |pairs: &[(&str, &str)], next: &dyn Fn(f64, i64) -> Option<f64>| {
        value.set(0.0);
        let samples: BTreeMap<i64, f64> = (0..40)
            .filter_map(|i| {
                let time = i * 15_000;
                let next = next(value.get(), i)?;
                value.set(next);
                Some((time, next))
            })
            .collect();
        (Labels::from_pairs(pairs.iter().copied()).ok(), samples)
    };
    let all = [
        series(&[("__name__", "m"), ("a", "1")], &|v, _| Some(v + 1.0)),
        series(&[("__name__", "m"), ("a", "2"), ("b", "x")], &|v, i| (i % 7 != 3).then_some(v * -1.5 + 1.0)),
        series(&[("__name__", "n_total"), ("a", "1")], &|v, i| Some(if i == 20 { 0.0 } else { v + 5.0 })),
        series(&[("__name__", "n_total"), ("a", "2")], &|v, i| Some(if i > 30 { f64::NAN } else { v + 0.1 })),
        series(&[("__name__", "h_bucket"), ("le", "0.5")], &|v, _| Some(v + 1.0)),
        series(&[("__name__", "h_bucket"), ("le", "1")], &|v, _| Some(v + 1.5)),
        series(&[("__name__", "h_bucket"), ("le", "+Inf")], &|v, _| Some(v + 2.0)),
        series(&[("__name__", "target_info"), ("a", "1"), ("v", "7")], &|_, _| Some(f64::INFINITY)),
    ];
    for (labels, samples) in all {
        store.insert(labels.expect("sorted and different names"), samples);
    }
    store
}
