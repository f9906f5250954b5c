//! Native histograms in by remote-write, and out by queries, on every node, after kills; federation leaves them
//! out. (Prometheus 2.42 does not take them from remote-read, so that answers of that are for unit tests.) Where a Prometheus of Debian computes the same today, it is asked the same; what changed since (how
//! quantiles are interpolated, custom buckets) is computed here.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::{NativeHistogram, compress, put_histograms};
use saturn_chaos_tests::{
    Cluster, Endpoint, Order, Prometheus, PrometheusOptions, compare, eventually, now_ms,
};
use serde_json::{Value, json};

const TENANT: &str = "histograms";
/// Samples of each series.
const SAMPLES: u32 = 40;
const STEP_MS: i64 = 15_000;
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);

/// Expressions of which Prometheus 2.42 and Saturn think alike.
const SAME: &[&str] = &[
    "latency",
    "latency_float",
    "histogram_count(latency)",
    "histogram_sum(latency)",
    "histogram_count(rate(latency[4m]))",
    "rate(latency[4m])",
    "increase(latency_float[4m])",
    "sum(rate(latency[4m]))",
    "sum by (job) (latency)",
];

fn time(base_ms: i64, number: u32) -> i64 {
    base_ms + i64::from(number) * STEP_MS
}

fn whole(base_ms: i64, number: u32) -> NativeHistogram {
    let n = f64::from(number);
    NativeHistogram {
        timestamp_ms: time(base_ms, number),
        schema: 0,
        whole: true,
        count: 4.0 * n + 3.0,
        zero_count: 2.0,
        sum: 5.5 * n + 1.25,
        first_index: 1,
        buckets: vec![3.0 * n, n + 1.0],
        bounds: Vec::new(),
        reset_hint: 0,
    }
}

/// Never empty: Prometheus 2.42 takes a float histogram without observations for one of whole numbers.
fn float(base_ms: i64, number: u32) -> NativeHistogram {
    let n = f64::from(number + 1);
    NativeHistogram {
        whole: false,
        count: 0.5 * n,
        zero_count: 0.0,
        sum: n / 3.0,
        buckets: vec![0.5 * n],
        ..whole(base_ms, number)
    }
}

fn custom(base_ms: i64, number: u32) -> NativeHistogram {
    let n = f64::from(number);
    NativeHistogram {
        schema: -53,
        count: 6.0 * n,
        zero_count: 0.0,
        sum: 9.0 * n,
        first_index: 0,
        buckets: vec![n, 2.0 * n, 3.0 * n],
        bounds: vec![1.0, 2.5],
        ..whole(base_ms, number)
    }
}

/// What Prometheus 2.42 takes, too.
fn exponential(base_ms: i64) -> Vec<u8> {
    let mut request = Vec::new();
    let series = |of: fn(i64, u32) -> NativeHistogram| -> Vec<_> {
        (0..SAMPLES).map(|number| of(base_ms, number)).collect()
    };
    put_histograms(&mut request, &[("__name__", "latency"), ("job", "a")], &[], &series(whole));
    put_histograms(&mut request, &[("__name__", "latency_float"), ("job", "a")], &[], &series(float));
    request
}

/// Custom buckets, a series that changes its kind, one that ends.
fn others(base_ms: i64) -> Vec<u8> {
    let mut request = Vec::new();
    let all: Vec<_> = (0..SAMPLES).map(|number| custom(base_ms, number)).collect();
    put_histograms(&mut request, &[("__name__", "custom")], &[], &all);
    let floats: Vec<_> = (0..20).map(|number| (time(base_ms, number), f64::from(number))).collect();
    let rest: Vec<_> = (20..SAMPLES).map(|number| whole(base_ms, number)).collect();
    put_histograms(&mut request, &[("__name__", "mixed")], &floats, &rest);
    let stale = NativeHistogram {
        sum: f64::from_bits(0x7ff0_0000_0000_0002),
        count: 0.0,
        zero_count: 0.0,
        buckets: Vec::new(),
        ..whole(base_ms, 1)
    };
    put_histograms(&mut request, &[("__name__", "ended")], &[], &[whole(base_ms, 0), stale]);
    request
}

/// Away from samples, and from windows that begin or end at one.
fn query_time(base_ms: i64) -> i64 {
    time(base_ms, SAMPLES - 1) + 7000
}

async fn check_against(prometheus: &Endpoint, saturn: &Endpoint, base_ms: i64) -> Result<()> {
    let at = query_time(base_ms);
    for text in SAME {
        let wanted = prometheus.query(text, at).await?;
        ensure!(!wanted.is_empty(), "Prometheus has no answer to {text}");
        let got = saturn.query(text, at).await?.complete()?;
        compare(&wanted, &got, Order::Free).with_context(|| format!("{text} at {}", saturn.url()))?;
        let start = time(base_ms, 20) + 7000;
        let wanted = prometheus.query_range(text, start, at, 30_000).await?;
        let got = saturn.query_range(text, start, at, 30_000).await?.complete()?;
        compare(&wanted, &got, Order::Free)
            .with_context(|| format!("range of {text} at {}", saturn.url()))?;
    }
    Ok(())
}

async fn number(saturn: &Endpoint, text: &str, at: i64) -> Result<f64> {
    let answer = saturn.query(text, at).await?.complete()?;
    Ok(answer.single().with_context(|| text.to_owned())?.parse()?)
}

async fn check_others(saturn: &Endpoint, base_ms: i64) -> Result<()> {
    let at = query_time(base_ms);
    let last = f64::from(SAMPLES - 1);
    // All of the upper half of latency_float's observations lie in (1, 2]: the median is 2^0.5.
    for (text, wanted) in [
        ("histogram_quantile(0.5, latency_float)", 2_f64.sqrt()),
        ("histogram_quantile(0.5, rate(latency_float[4m]))", 2_f64.sqrt()),
        // A sixth up to 1, a half up to 2.5: the first third of the observations ends within (1, 2.5].
        ("histogram_quantile(1 / 3, custom)", 1.75),
        ("histogram_count(custom)", 6.0 * last),
        ("histogram_avg(custom)", 1.5),
        ("histogram_fraction(0, 1, custom)", 1.0 / 6.0),
        ("count_over_time(mixed[11m])", f64::from(SAMPLES)),
        ("histogram_count(mixed)", 4.0 * last + 3.0),
        ("count_over_time(ended[11m])", 1.0),
        ("count({__name__=~\".+\"})", 4.0),
    ] {
        let got = number(saturn, text, at).await?;
        ensure!((got - wanted).abs() < 1e-9 * wanted.abs(), "{text}: {got}, not {wanted}");
    }
    let answer = saturn.query("custom", at).await?.complete()?;
    let histogram = &answer.series()[0]["histogram"][1];
    let wanted = json!({
        "count": "234",
        "sum": "351",
        "buckets": [[0, "-Inf", "1", "39"], [0, "1", "2.5", "78"], [0, "2.5", "+Inf", "117"]],
    });
    ensure!(buckets_of(histogram) == buckets_of(&wanted), "{histogram} is not {wanted}");
    ensure!(histogram["count"] == "234" && histogram["sum"] == "351", "{histogram}");
    ensure!(saturn.query("ended", time(base_ms, 1) + 1).await?.is_empty(), "a stale series");
    ensure!(!saturn.query("ended", time(base_ms, 1) - 1).await?.is_empty(), "a series before its end");
    Ok(())
}

/// Bounds and counts; which ends are closed is not what this test is about.
fn buckets_of(histogram: &Value) -> Vec<Vec<Value>> {
    let buckets = histogram["buckets"].as_array().cloned().unwrap_or_default();
    buckets.iter().map(|bucket| bucket.as_array().map_or(Vec::new(), |b| b[1..].to_vec())).collect()
}

async fn write(to: &Endpoint, request: &[u8], status: u16) -> Result<String> {
    let reply = to.write_body(compress(request)).await?;
    ensure!(reply.status == status, "{}: status {}: {}", to.url(), reply.status, reply.text);
    Ok(reply.text)
}

#[tokio::test]
async fn native_histograms_come_back_by_every_door() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let base_ms = now_ms() - i64::from(SAMPLES + 2) * STEP_MS;
    let saturn = cluster.endpoint(0, TENANT);
    write(&saturn, &exponential(base_ms), 204).await?;
    write(&saturn, &others(base_ms), 204).await?;
    // Sent again, by another door: nothing changes.
    write(&cluster.endpoint(1, TENANT), &exponential(base_ms), 204).await?;

    let features = "--enable-feature=native-histograms,remote-write-receiver".to_owned();
    let folder = cluster.folder().join("writer");
    std::fs::create_dir(&folder)?;
    let options = PrometheusOptions { extra_args: vec![features], ..PrometheusOptions::default() };
    let prometheus = Prometheus::start(&folder, &options).await?;
    write(&prometheus.endpoint(), &exponential(base_ms), 204).await?;

    for index in 0..cluster.size() {
        let saturn = cluster.endpoint(index, TENANT);
        check_against(&prometheus.endpoint(), &saturn, base_ms).await?;
        check_others(&saturn, base_ms).await?;
    }

    let federated = saturn.get("/federate", &[("match[]", "{__name__=~\".+\"}")]).await?;
    ensure!(federated.status == 200 && federated.text.is_empty(), "{federated:?}");

    cluster.kill9(1)?;
    cluster.restart(1).await?;
    // A node that begins again answers once it has heard of the others.
    eventually("answers of the node that was killed", RECOVERY_LIMIT, async || {
        check_others(&cluster.endpoint(1, TENANT), base_ms).await.map(Some)
    })
    .await?;
    cluster.kill9_all()?;
    cluster.restart_all().await?;
    for index in 0..cluster.size() {
        let saturn = cluster.endpoint(index, TENANT);
        eventually("answers after all nodes were killed", RECOVERY_LIMIT, async || {
            check_others(&saturn, base_ms).await.map(Some)
        })
        .await?;
        check_against(&prometheus.endpoint(), &saturn, base_ms).await?;
    }
    drop(prometheus);
    cluster.finish().await
}

#[tokio::test]
async fn invalid_histograms_are_named_and_the_rest_is_stored() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let saturn = cluster.endpoint(0, TENANT);
    let base_ms = now_ms() - 60_000;
    let mut request = Vec::new();
    let good = whole(base_ms, 1);
    for (name, bad) in [
        ("miscounted", NativeHistogram { count: 1.0, ..good.clone() }),
        ("unknown_schema", NativeHistogram { schema: -9, ..good.clone() }),
        ("unsorted_bounds", NativeHistogram { bounds: vec![2.0, 1.0], ..custom(base_ms, 1) }),
        ("late", NativeHistogram { timestamp_ms: base_ms + 86_400_000, ..good.clone() }),
    ] {
        put_histograms(&mut request, &[("__name__", name)], &[], &[good.clone(), bad]);
    }
    put_histograms(&mut request, &[("__name__", "fine")], &[], &[NativeHistogram { schema: 20, ..good }]);
    let text = write(&saturn, &request, 400).await?;
    for wanted in [
        "4 samples of 4 series were not stored",
        "{__name__=\"miscounted\"}: invalid native histogram: 7 observations found in buckets",
        "{__name__=\"unknown_schema\"}: invalid native histogram: schema -9",
        "{__name__=\"unsorted_bounds\"}: invalid native histogram: custom buckets",
        "{__name__=\"late\"}: timestamp",
    ] {
        ensure!(text.contains(wanted), "{wanted} is not in {text}");
    }
    let count = number(&saturn, "count({__name__=~\".+\"})", base_ms + 20_000).await?;
    ensure!(count == 5.0, "{count} series");
    cluster.finish().await
}
