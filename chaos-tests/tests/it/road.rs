//! The whole road: Prometheus scrapes and writes to two of three nodes, every node answers as Prometheus
//! does. Then one node dies while writing goes on, and nothing that was acked is missing.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use saturn_chaos_tests::{
    Cluster, Endpoint, NodeExporter, Outcome, Prometheus, PrometheusOptions, Tolerance, Writer,
    WriterOptions, eventually, now_ms,
};

use crate::queries::{compare_all, settled_time_ms};

const TENANT: &str = "road";

/// Scrapes before the first comparison; the queries reach 15 seconds back.
const SCRAPES: f64 = 20.0;

/// How long the newest scrapes may take to arrive at Saturn.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// How long the survivors may take to serve after a node was killed.
const SURVIVE_LIMIT: Duration = Duration::from_secs(20);

/// The node that is killed: the founder, and none of those that Prometheus writes to.
const VICTIM: usize = 0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_equal_prometheus_and_survive_a_killed_node() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let exporter = NodeExporter::start(cluster.folder()).await?;
    let nodes = (0..3).map(|index| cluster.http_address(index).to_owned()).collect();
    let options = PrometheusOptions {
        scrape: vec![("node".to_owned(), vec![exporter.address().to_owned()]), ("saturn".to_owned(), nodes)],
        remote_write: [1, 2].map(|index| format!("{}/t/{TENANT}/api/v1/write", cluster.url(index))).to_vec(),
        ..PrometheusOptions::default()
    };
    let mut prometheus = Prometheus::start(cluster.folder(), &options).await?;
    let truth = prometheus.endpoint();
    wait_scrapes(&truth).await?;
    compare_nodes(&cluster, &truth, &[0, 1, 2]).await?;

    cluster.tolerate(Tolerance::Warnings);
    let targets = [1, 2].map(|index| cluster.endpoint(index, "writer")).to_vec();
    let writer =
        Writer::start(WriterOptions { number: 1, lanes: 10, targets, retries: 0, pause: Writer::PAUSE });
    writer.wait_acked(500, SURVIVE_LIMIT).await?;
    cluster.kill9(VICTIM)?;
    writer.wait_acked(500, SURVIVE_LIMIT).await.context("writes go on through the survivors")?;
    compare_nodes(&cluster, &truth, &[1, 2]).await.context("the survivors answer")?;
    let history = writer.stop().await?;
    for index in [1, 2] {
        history.check(&cluster.endpoint(index, "writer")).await?;
    }

    cluster.restart(VICTIM).await.context("the killed node restarts on its data")?;
    let writer = Writer::start(WriterOptions {
        number: 2,
        lanes: 10,
        targets: vec![cluster.endpoint(VICTIM, "writer")],
        retries: 0,
        pause: Writer::PAUSE,
    });
    writer.wait_acked(100, SURVIVE_LIMIT).await.context("the killed node takes writes again")?;
    let later_history = writer.stop().await?;
    compare_nodes(&cluster, &truth, &[0, 1, 2]).await.context("all nodes answer again")?;
    for index in 0..3 {
        let endpoint = cluster.endpoint(index, "writer");
        history.check(&endpoint).await?;
        later_history.check(&endpoint).await?;
    }
    ensure!(
        later_history.count(Outcome::Unknown) <= 10,
        "only the request under way at the stop may be unknown"
    );
    prometheus.check_running()?;
    let complaints = prometheus.remote_write_complaints();
    ensure!(complaints.is_empty(), "Prometheus could not write:\n{}", complaints.join("\n"));
    cluster.finish().await
}

async fn wait_scrapes(truth: &Endpoint) -> Result<()> {
    eventually("scrapes", Duration::from_secs(90), async || {
        let answer = truth.query("min(count_over_time(up[1m]))", now_ms()).await?;
        let (count, targets) =
            (answer.single()?.parse::<f64>()?, truth.query("count(up == 1)", now_ms()).await?);
        ensure!(count >= SCRAPES && targets.single()? == "5", "{count} scrapes of {:?}", targets.result);
        Ok(Some(()))
    })
    .await
}

/// Compares these nodes with Prometheus, once they have all that Prometheus has up to some recent moment.
async fn compare_nodes(cluster: &Cluster, truth: &Endpoint, nodes: &[usize]) -> Result<()> {
    let time_ms = settled_time_ms(truth).await?;
    let samples = "sum(count_over_time(up[20s])) + sum(count_over_time(scrape_duration_seconds[20s]))";
    for index in nodes {
        let endpoint = cluster.endpoint(*index, TENANT);
        eventually("everything scraped has arrived", SETTLE_LIMIT, async || {
            let wanted = truth.query(samples, time_ms).await?;
            let got = endpoint.query(samples, time_ms).await?.complete()?;
            if wanted.single()? == got.single()? {
                return Ok(Some(()));
            }
            bail!("{} of {} samples through node {index}", got.single()?, wanted.single()?)
        })
        .await?;
        compare_all(truth, &endpoint, time_ms).await?;
    }
    Ok(())
}
