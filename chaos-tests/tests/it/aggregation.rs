//! Aggregations at the data: a node that has every shard alone computes them at its storage engine, and answers what it
//! answers from columns. Nodes that share the shards do not.

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{Cluster, Endpoint, Order, compare, now_ms};

const STALE: u64 = 0x7ff0_0000_0000_0002;

/// What can be aggregated at the data: the aggregation and what it is of.
const QUERIES: &[(&str, &str)] = &[
    ("sum", "q_total"),
    ("avg by (host)", "q_total"),
    ("count without (i, host)", "q_total offset 90s"),
    ("max by (host, zone)", "gauge"),
    ("sum by (host)", "rate(q_total[2m])"),
    ("sum without (i)", "increase(q_total[3m] offset 1m)"),
    ("avg by (zone)", "delta(gauge[2m])"),
    ("min by (zone)", "avg_over_time(gauge[90s])"),
    ("max by (zone)", "max_over_time(gauge[2m])"),
    ("sum by (zone)", "count_over_time(q_total[5m])"),
    ("sum by (__name__, zone)", "last_over_time(q_total[2m])"),
    ("sum", "sum_over_time(gauge[4m])"),
    ("sum", "rate(gauge[2m])"),
];

/// Sixty series of two metrics over ten minutes: resets, gaps, stale markers and values that are no numbers.
fn series(end_ms: i64) -> Vec<Series> {
    let one = |metric: &str, i: u32| {
        let samples: Vec<(i64, f64)> = (0..60_u32)
            .filter(|round| !(round + i).is_multiple_of(13))
            .map(|round| {
                let time = end_ms - i64::from(60 - round) * 10_000 + i64::from(i * 37 % 1000);
                let value = match (metric, (round + i) % 41) {
                    (_, 20) => f64::from_bits(STALE),
                    ("gauge", 30) => f64::NAN,
                    ("gauge", _) => f64::from((round * 7919 + i * 31) % 1000) / 10.0,
                    _ => f64::from((round + i * 3) % 25 * (i + 1)),
                };
                (time, value)
            })
            .collect();
        let (host, zone) = (format!("host-{}", i % 7), format!("zone-{}", i % 3));
        let i = i.to_string();
        Series::new(&[("__name__", metric), ("host", &host), ("i", &i), ("zone", &zone)], &samples)
    };
    (0..30).flat_map(|i| [one("q_total", i), one("gauge", i)]).collect()
}

/// Selectors that were aggregated at the data so far.
async fn aggregated(cluster: &Cluster) -> Result<u64> {
    let text = Endpoint::plain(&cluster.url(0)).get("/metrics", &[]).await?.text;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("saturn_query_frontend_aggregated_selectors_total "))
        .context("the counter")?;
    Ok(line.parse()?)
}

/// Asks each query, and the same in a form that must be read as columns. Returns how many were aggregated at the data.
async fn ask_all(cluster: &Cluster, end_ms: i64) -> Result<u64> {
    let endpoint = cluster.endpoint(0, "demo");
    let before = aggregated(cluster).await?;
    let start_ms = end_ms - 540_000;
    for (head, operand) in QUERIES {
        let (query, by_columns) = (format!("{head} ({operand})"), format!("{head} ({operand} or nothing)"));
        for is_range in [false, true] {
            let ask = async |text: &str| match is_range {
                false => endpoint.query(text, end_ms).await,
                true => endpoint.query_range(text, start_ms, end_ms, 15_000).await,
            };
            let (wanted, got) = (ask(&by_columns).await?, ask(&query).await?.complete()?);
            ensure!(!wanted.is_empty(), "{by_columns} has an answer");
            compare(&wanted, &got, Order::Matters).with_context(|| format!("{query}, range: {is_range}"))?;
        }
    }
    Ok(aggregated(cluster).await? - before)
}

#[tokio::test]
async fn a_lone_node_aggregates_at_its_data() -> Result<()> {
    let end_ms = now_ms() - 1000;
    let mut lone = Cluster::start(1).await?;
    let reply = lone.endpoint(0, "demo").write(&series(end_ms)).await?;
    ensure!(reply.status == 204, "{reply:?}");
    let all = 2 * QUERIES.len() as u64;
    ensure!(ask_all(&lone, end_ms).await? == all, "every query was aggregated at the data");
    // Again with what the log brings back.
    lone.kill9(0)?;
    lone.restart(0).await?;
    ensure!(ask_all(&lone, end_ms).await? == all, "every query was aggregated at the data");
    // One selector that is used twice is read once.
    let before = aggregated(&lone).await?;
    let ratio = lone.endpoint(0, "demo").query("sum(q_total) / count(q_total)", end_ms).await?.complete()?;
    ensure!(ratio.series().len() == 1 && aggregated(&lone).await? == before, "{ratio:?}");
    lone.finish().await?;

    let cluster = Cluster::start(3).await?;
    let reply = cluster.endpoint(0, "demo").write(&series(end_ms)).await?;
    ensure!(reply.status == 204, "{reply:?}");
    ensure!(ask_all(&cluster, end_ms).await? == 0, "replicas are merged sample by sample");
    cluster.finish().await
}
