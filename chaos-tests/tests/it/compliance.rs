//! The public compliance queries: Saturn's answers equal those of a real Prometheus that fed it.
//!
//! The queries are read from the folder beside the checkout where it is present; CI has it and fails without.
//! Debian's Prometheus is 2.42. Where today's rules differ from its, the query is listed below with the rule.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::{Cluster, Exporter, Prometheus, PrometheusOptions, Tolerance, eventually, now_ms};
use serde_json::Value;

use crate::queries::settled_time_ms;

const TENANT: &str = "compliance";
/// Scrapes before the comparison.
const SCRAPES: f64 = 40.0;

/// Queries that 2.42 answers by an older rule, and what today's rule is.
const OLDER_RULES: [(&str, &str); 1] = [(
    r#"label_replace(demo_num_cpus, "~invalid", "", "src", "(.*)")"#,
    "any UTF-8 text is a label name since Prometheus 3.0: the call is valid and changes nothing",
)];

fn queries_file() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let file = workspace.parent()?.join("shared/compliance/queries.json");
    file.exists().then_some(file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_equal_prometheus_on_the_compliance_queries() -> Result<()> {
    let Some(queries) = queries_file() else {
        ensure!(std::env::var_os("CI").is_none(), "the compliance queries are missing, and CI must run them");
        println!("no compliance queries beside the checkout: nothing compared");
        return Ok(());
    };
    let mut cluster = Cluster::start(3).await?;
    cluster.tolerate(Tolerance::Quiet);
    let exporters = [Exporter::demo(1).await?, Exporter::demo(2).await?];
    let targets = exporters.iter().map(|exporter| exporter.address().to_owned()).collect();
    let options = PrometheusOptions {
        scrape: vec![("demo".to_owned(), targets)],
        remote_write: vec![format!("{}/t/{TENANT}/api/v1/write", cluster.url(0))],
        ..PrometheusOptions::default()
    };
    let mut prometheus = Prometheus::start(cluster.folder(), &options).await?;
    let truth = prometheus.endpoint();
    eventually("scrapes", Duration::from_secs(120), async || {
        let answer = truth.query("min(count_over_time(demo_num_cpus[2m]))", now_ms()).await?;
        let count: f64 = answer.single()?.parse()?;
        ensure!(count >= SCRAPES, "{count} scrapes");
        Ok(Some(()))
    })
    .await?;
    let end_ms = settled_time_ms(&truth).await?;
    // Queries that look ahead see the newest sample: nothing may move while two servers are asked in turn.
    drop(exporters);
    let endpoint = cluster.endpoint(1, TENANT);
    eventually("the series have gone stale on both sides", Duration::from_secs(30), async || {
        let series = "demo_num_cpus or demo_memory_usage_bytes or demo_disk_usage_bytes";
        for server in [&truth, &endpoint] {
            ensure!(server.query(series, now_ms()).await?.is_empty(), "there are series still");
        }
        let samples = "sum(count_over_time(demo_memory_usage_bytes[1m]))";
        let (wanted, got) = (truth.query(samples, end_ms).await?, endpoint.query(samples, end_ms).await?);
        ensure!(wanted.single()? == got.complete()?.single()?, "Saturn has not everything yet");
        Ok(Some(()))
    })
    .await?;

    let end = format!("{}.{:03}", end_ms / 1000, end_ms % 1000);
    let start = format!("{}.{:03}", end_ms / 1000 - 30, end_ms % 1000);
    let output = Command::new(&cluster.binaries().saturnctl)
        .args(["promql", "diff", "-o", "json", "--step", "1", "--tenant", TENANT])
        .args(["--reference", truth.url(), "--test", &cluster.url(1), "--start", &start, "--end", &end])
        .arg("--queries")
        .arg(&queries)
        .output()?;
    let verdicts: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let verdicts = verdicts.as_array().context("a list of verdicts")?;
    let is_older_rule = |expr: &Value| OLDER_RULES.iter().any(|(listed, _)| *expr == **listed);
    let unexpected: Vec<String> = verdicts
        .iter()
        .filter(|verdict| !verdict["difference"].is_null() && !is_older_rule(&verdict["expr"]))
        .map(|verdict| format!("{}: {}", verdict["expr"], verdict["difference"]))
        .collect();
    println!("{} of {} queries agree", verdicts.len() - unexpected.len() - OLDER_RULES.len(), verdicts.len());
    ensure!(unexpected.is_empty(), "{} queries differ:\n{}", unexpected.len(), unexpected.join("\n"));
    for (query, rule) in OLDER_RULES {
        let answer = endpoint.query(query, end_ms).await?.complete();
        ensure!(answer.is_ok(), "{query}: {rule}");
    }
    prometheus.check_running()?;
    cluster.finish().await
}
