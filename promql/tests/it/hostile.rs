//! Inputs that are made to cost: each is refused, or answered within its memory limit, on little CPU.

use std::sync::Arc;

use saturn_model::{Labels, SeriesColumns, TimestampMs};
use saturn_promql::{
    EvalError, EvalParams, ParseLimits, SelectorRequest, Source, SourceError, evaluate, parse,
    parse_with_limits,
};

/// CPU time that a refusal may take.
const CPU_MS_MAX: f64 = 50.0;

/// CPU milliseconds of this thread so far.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let ns: f64 = text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds on the CPU");
    ns / 1e6
}

/// Runs `f` a few times. The quickest run says what it costs: others may have been disturbed.
fn cheaply<T>(what: &str, f: impl Fn() -> T) -> T {
    let run = || {
        let begin = cpu_ms();
        let result = f();
        (cpu_ms() - begin, result)
    };
    let mut runs: Vec<(f64, T)> = (0..3).map(|_| run()).collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (cost, result) = runs.swap_remove(0);
    assert!(cost <= CPU_MS_MAX, "{what} took {cost} ms of CPU");
    result
}

/// The hostile texts, and a word of the refusal with a limit on bytes that lets them through.
fn texts() -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("100,000 parentheses", format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000)), "nest"),
        ("100,000 open parentheses", "(".repeat(100_000), "nest"),
        ("10,000 minuses", format!("{}1", "-".repeat(10_000)), "nest"),
        ("10,000 powers", format!("1{}", "^1".repeat(10_000)), "nest"),
        ("10,000 calls", format!("{}1{}", "abs(".repeat(10_000), ")".repeat(10_000)), "nest"),
        ("100,000 additions", format!("1{}", "+1".repeat(100_000)), "operators"),
        ("100,000 offsets", format!("m{}", " offset 1m".repeat(100_000)), ""),
        ("a regex of nested repetitions", "m{a=~\"((a{1000}){1000}){1000}\"}".into(), ""),
        ("a string without end", format!("\"{}", "x".repeat(1 << 20)), ""),
    ]
}

#[test]
fn texts_are_refused_by_their_length() {
    let alternatives: Vec<String> = (0..100_000).map(|i| format!("a{i}.*b")).collect();
    let regex = format!("m{{a=~\"{}\"}}", alternatives.join("|"));
    let mega = format!("m{{a=\"{}\"}}", "x".repeat(1 << 20));
    let long = texts().into_iter().filter(|(_, text, _)| text.len() > 16 << 10);
    for (what, text, _) in long.chain([("1 MiB", mega, ""), ("a regex of 100,000 alternations", regex, "")]) {
        let error = cheaply(what, || parse(&text).expect_err("refused"));
        let error = error.to_string();
        assert!(error.contains("16384"), "{what}: {}", &error[..error.len().min(300)]);
    }
}

#[test]
fn texts_are_refused_by_their_form() {
    let limits = ParseLimits { query_bytes_max: 4 << 20, ..ParseLimits::default() };
    for (what, text, word) in texts() {
        let error = cheaply(what, || parse_with_limits(&text, &limits).expect_err("refused"));
        let error = error.to_string();
        assert!(error.len() < 1000 && error.contains(word), "{what}: {}", &error[..error.len().min(300)]);
    }
}

/// One series with a sample each minute of a day.
struct Day;

impl Source for Day {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        let timestamps: Vec<i64> = (0..1440).map(|minute| minute * 60_000).collect();
        let values = vec![1.0; timestamps.len()];
        let name = Labels::from_pairs([("__name__", "m")]).expect("valid");
        assert!(request.start <= request.end);
        Ok([SeriesColumns::floats(name, timestamps, values)].into())
    }
}

#[test]
fn evaluations_stay_within_their_memory() {
    let params = EvalParams::instant(TimestampMs(86_400_000));
    let run = |query: &str| {
        let expr = parse(query).expect("valid");
        evaluate(&expr, &params, &Day, &|| false)
    };
    for query in [
        "max_over_time(max_over_time(m[1y:1s])[1y:1s])",
        "max_over_time(max_over_time(m[1y:1ms])[1y:1ms])",
        "sum_over_time(vector(1)[100y:1ms])",
        "max_over_time(rate(max_over_time(m[1y:1ms])[1y:1ms])[1y:1ms])",
    ] {
        let error = cheaply(query, || run(query).expect_err("too much"));
        assert!(matches!(error, EvalError::TooManySamples { .. }), "{query}: {error}");
    }
    for query in [
        "topk(1e9, m)",
        "bottomk(9e18, m)",
        "limitk(1e300, m)",
        "quantile(1e300, m)",
        "topk(Inf, m)",
        "m * 1e308 * 1e308",
        "round(m, 1e-320)",
        "m offset 290y",
        "label_replace(m, \"x\", \"$1$1$1$1\", \"__name__\", \"(.*)\")",
    ] {
        // An answer or a refusal: either way it costs little.
        let _ = cheaply(query, || run(query).map(|result| result.value));
    }
}
