//! Queries that are made to cost: each is refused in clear words or answered within its limit of memory, and the node
//! lives.

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{Cluster, Endpoint, now_ms, resident_bytes};
use serde_json::Value;

/// CPU seconds of the whole node that a refusal may take; what the node does besides is in it.
const CPU_SECONDS_MAX: f64 = 1.0;
/// Memory that all of it together may leave, or take while it runs as far as that is seen: far below one gigabyte,
/// which is what the samples of one query may take.
const GROWTH_BYTES_MAX: u64 = 512 << 20;

/// The node's CPU seconds so far.
async fn cpu_seconds(endpoint: &Endpoint) -> Result<f64> {
    let metrics = endpoint.get("/metrics", &[]).await?.text;
    let line = metrics.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
    Ok(line.context("no CPU seconds")?.parse()?)
}

/// Texts that are no valid query, or one beyond a limit.
fn refused() -> Vec<(&'static str, String)> {
    let regex = |count: usize| (0..count).map(|i| format!("a{i}.*b")).collect::<Vec<_>>().join("|");
    vec![
        ("100,000 nested parentheses", format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000))),
        ("as many as fit", format!("{}1{}", "(".repeat(8_000), ")".repeat(8_000))),
        ("10,000 minuses", format!("{}1", "-".repeat(10_000))),
        ("a query of 1 MiB", format!("up{{a=\"{}\"}}", "x".repeat((1 << 20) - 20))),
        ("a regex of 100,000 alternations", format!("up{{a=~\"{}\"}}", regex(100_000))),
        ("nested repetitions", "up{a=~\"((a{1000}){1000}){1000}\"}".to_owned()),
    ]
}

#[tokio::test]
async fn queries_that_are_made_to_cost_are_cheap() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "hostile");
    let now = now_ms();
    let up = Series::new(&[("__name__", "up"), ("a", "b")], &[(now - 1000, 1.0)]);
    ensure!(endpoint.write(&[up]).await?.status == 204);
    ensure!(endpoint.query("up", now).await?.single()? == "1");
    let pid = cluster.pid(0)?;
    let before = resident_bytes(pid)?;

    let paths = ["/api/v1/query", "/api/v1/query_range", "/api/v1/query_exemplars", "/api/v1/format_query"];
    for (what, query) in refused() {
        for path in paths {
            let spent = cpu_seconds(&endpoint).await?;
            let range = [("start", "1".to_owned()), ("end", "2".to_owned()), ("step", "1".to_owned())];
            let form = [&[("query", query.clone())], &range[..]].concat();
            let reply = endpoint.post_form(path, &form).await?;
            ensure!(reply.status == 400, "{what} at {path}: {} {:.300}", reply.status, reply.text);
            let envelope: Value = serde_json::from_str(&reply.text)?;
            ensure!(envelope["errorType"] == "bad_data", "{what} at {path}: {:.300}", reply.text);
            ensure!(reply.text.len() < 100_000, "{what} at {path}: an error of {} bytes", reply.text.len());
            let spent = cpu_seconds(&endpoint).await? - spent;
            ensure!(spent < CPU_SECONDS_MAX, "{what} at {path}: {spent} s of CPU");
        }
    }
    for (what, query) in [
        ("a subquery of a subquery", "max_over_time(max_over_time(up[1y:1s])[1y:1s])"),
        ("of numbers", "sum_over_time(sum_over_time(vector(1)[1y:1s])[1y:1s])"),
        ("a subquery of 100 years of milliseconds", "count_over_time(up[100y:1ms])"),
    ] {
        let spent = cpu_seconds(&endpoint).await?;
        let reply = endpoint.get("/api/v1/query", &[("query", query)]).await?;
        ensure!(reply.status == 422 && reply.text.contains("too many samples"), "{what}: {reply:?}");
        let spent = cpu_seconds(&endpoint).await? - spent;
        ensure!(spent < CPU_SECONDS_MAX, "{what}: {spent} s of CPU");
    }
    // As in Prometheus, more than there are is all.
    let top = endpoint.query("topk(1e9, up)", now).await?;
    ensure!(top.single()? == "1", "{top:?}");

    let grown = resident_bytes(pid)?.saturating_sub(before);
    ensure!(grown < GROWTH_BYTES_MAX, "the node grew by {grown} bytes");
    ensure!(endpoint.query("up", now).await?.single()? == "1", "it lives");
    cluster.finish().await
}
