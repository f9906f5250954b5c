//! The queries of the road test, and the moment to ask them at.
//!
//! Prometheus 2.42 includes a sample that sits exactly on the left edge of a range; Prometheus 3 and Saturn
//! do not. The queries are therefore asked at times whose milliseconds keep away from those of all scrapes.
//! Rates are taken of series that exist since before the window: for series that begin within it, the two
//! versions extrapolate differently.

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::{Answer, Endpoint, Order, compare};

/// Steps of a range query, one second each.
const RANGE_STEPS: i64 = 8;

/// How far from any scrape the queries' times must be, in milliseconds.
const EDGE_DISTANCE_MS: i64 = 5;

/// A query at one time or over a range.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    Instant,
    Range,
}

/// A query of the road test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    pub(crate) form: Form,
    pub(crate) text: &'static str,
    order: Order,
}

const fn instant(text: &'static str) -> Query {
    Query { form: Form::Instant, text, order: Order::Free }
}

const fn sorted(text: &'static str) -> Query {
    Query { form: Form::Instant, text, order: Order::Matters }
}

const fn range(text: &'static str) -> Query {
    Query { form: Form::Range, text, order: Order::Free }
}

/// Everything that is asked.
pub(crate) const QUERIES: &[Query] = &[
    instant("up"),
    instant("sum by (job) (up)"),
    instant(r#"count({__name__=~"node_.+", job="node"})"#),
    instant(r#"node_cpu_seconds_total{mode!="idle", cpu=~"0|1", mode!~"s.*"}"#),
    instant("sum without (cpu) (rate(node_cpu_seconds_total[10s]))"),
    instant("irate(node_context_switches_total[5s])"),
    instant("increase(node_intr_total[10s])"),
    instant("topk(2, scrape_duration_seconds)"),
    instant(r#"bottomk(1, node_cpu_seconds_total{mode="idle"})"#),
    instant(
        r#"histogram_quantile(0.9, sum by (le) (prometheus_http_request_duration_seconds_bucket{handler="/metrics"}))"#,
    ),
    instant("100 * node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes"),
    instant("node_memory_MemFree_bytes < bool node_memory_MemTotal_bytes"),
    instant("up * on (instance) group_left (version) prometheus_build_info"),
    instant(
        r#"node_cpu_seconds_total{mode="user"} and ignoring (mode) node_cpu_seconds_total{mode="idle"} > 0"#,
    ),
    instant(r#"label_replace(up, "host", "$1", "instance", "(.+):.+")"#),
    instant(r#"absent(nonexistent_metric{job="x"})"#),
    instant(r#"count_values("state", up)"#),
    instant("quantile by (mode) (0.5, node_cpu_seconds_total)"),
    sorted("sort_desc(sum by (job) (scrape_samples_scraped))"),
    instant("max_over_time(node_load1[10s]) - min_over_time(node_load1[10s])"),
    instant("stddev_over_time(scrape_duration_seconds[10s])"),
    instant("scalar(count(up == 1)) + vector(time())"),
    instant("up offset 5s"),
    instant(r#"count_over_time(scrape_samples_scraped{job="saturn"}[5s])"#),
    instant(r#"{job="saturn", __name__=~"up|scrape_.+"}"#),
    range("up"),
    range("sum by (mode) (rate(node_cpu_seconds_total[5s]))"),
    range(
        r#"histogram_quantile(0.5, rate(prometheus_http_request_duration_seconds_bucket{handler="/metrics"}[5s]))"#,
    ),
    range("delta(node_memory_MemFree_bytes[5s])"),
    range("time() - node_boot_time_seconds"),
    range("avg_over_time(scrape_duration_seconds[5s] offset 2s)"),
    range(r#"sum by (instance) (count_over_time(scrape_samples_scraped{job="saturn"}[3s])) or vector(0)"#),
    range("-node_load1 ^ 2 % 3 unless node_load5 > 1e9"),
];

impl Query {
    /// Asks an endpoint at `time_ms`, or over the steps that end there.
    pub(crate) async fn ask(&self, endpoint: &Endpoint, time_ms: i64) -> Result<Answer> {
        match self.form {
            Form::Instant => endpoint.query(self.text, time_ms).await,
            Form::Range => endpoint.query_range(self.text, time_ms - RANGE_STEPS * 1000, time_ms, 1000).await,
        }
    }
}

/// Asks everything of both, and fails with all differences. The answers must be complete and hold something.
pub(crate) async fn compare_all(expected: &Endpoint, actual: &Endpoint, time_ms: i64) -> Result<()> {
    let mut differences = Vec::new();
    for query in QUERIES {
        let outcome = async {
            let wanted = query.ask(expected, time_ms).await?;
            ensure!(!wanted.is_empty(), "Prometheus has no answer: the query tests nothing");
            let got = query.ask(actual, time_ms).await?.complete()?;
            compare(&wanted, &got, query.order)
        };
        if let Err(error) = outcome.await {
            differences.push(format!("{:?} {}: {error:#}", query.form, query.text));
        }
    }
    let (count, all) = (differences.len(), QUERIES.len());
    ensure!(count == 0, "{count} of {all} answers of {} differ:\n{}", actual.url(), differences.join("\n"));
    Ok(())
}

/// A recent time to ask at: after all but the last second of scrapes, and away from the edges of windows.
pub(crate) async fn settled_time_ms(prometheus: &Endpoint) -> Result<i64> {
    let answer = prometheus.query("up[20s]", saturn_chaos_tests::now_ms()).await?;
    let mut scrapes_ms = Vec::new();
    for series in answer.series() {
        for point in series["values"].as_array().context("no samples of a series")? {
            let seconds = point[0].as_f64().context("a time is a number")?;
            scrapes_ms.push((seconds * 1000.0).round() as i64);
        }
    }
    let last_ms = *scrapes_ms.iter().max().context("nothing was scraped yet")?;
    let distance = |fraction: &i64| {
        let away =
            |scrape: &i64| (scrape - fraction).rem_euclid(1000).min((fraction - scrape).rem_euclid(1000));
        scrapes_ms.iter().map(away).min().unwrap_or(0)
    };
    let best =
        (0..1000).filter(survives_prometheus).max_by_key(distance).context("some fraction survives")?;
    ensure!(distance(&best) >= EDGE_DISTANCE_MS, "scrapes at all milliseconds: {scrapes_ms:?}");
    let time_ms = (last_ms - 2000).div_euclid(1000) * 1000 + best;
    Ok(time_ms)
}

/// Whether Prometheus 2.42 reads this fraction of a second back as what was written: it cuts a float.
fn survives_prometheus(fraction_ms: &i64) -> bool {
    let nanoseconds = *fraction_ms as f64 / 1000.0 * 1e9;
    nanoseconds as i64 / 1_000_000 == *fraction_ms
}
