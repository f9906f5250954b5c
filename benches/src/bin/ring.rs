//! `ring`: what three nodes with many shards cost while nothing happens, and how long the shards of a node that dies
//! are without a leader, while writes go on; and how long a deletion in all of them takes, under the same load.
//!
//! Run it by `make bench-ring`.
#![expect(clippy::print_stdout, reason = "a command line tool talks to its terminal")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use saturn_benches::{machine, process_cpu_seconds};
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Tolerance, Writer, WriterOptions, eventually, resident_bytes,
};

/// Rest after the start, so that what it left to do is done.
const REST: Duration = Duration::from_secs(10);
/// How long new leaders may take.
const FAILOVER_LIMIT: Duration = Duration::from_secs(60);
/// How many deletions are timed.
const DELETIONS: usize = 10;
/// Time between two looks for them.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Parser)]
struct Options {
    /// Shards of the cluster.
    #[arg(long, default_value_t = 1024)]
    shards: u16,
    /// How long to watch it idle, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}\n", machine());
    for shards in [1, options.shards] {
        idle(shards, Duration::from_secs(options.seconds)).await?;
    }
    deletions(options.shards).await?;
    failover(options.shards).await
}

async fn start(shards: u16) -> Result<Cluster> {
    let extra_args = vec![format!("--cluster.shards={shards}"), "--web.enable-admin-api".to_owned()];
    let mut cluster =
        Cluster::start_with(ClusterOptions { nodes: 3, extra_args, ..ClusterOptions::default() }).await?;
    cluster.tolerate(Tolerance::Warnings);
    eventually("all shards have leaders", FAILOVER_LIMIT, async || {
        let leaders = leaders(&cluster, 0).await?;
        ensure!(leaders.len() == usize::from(shards), "{} of {shards} shards have one", leaders.len());
        Ok(Some(()))
    })
    .await?;
    Ok(cluster)
}

/// CPU and memory of nodes that have nothing to do.
async fn idle(shards: u16, watch: Duration) -> Result<()> {
    let started = Instant::now();
    let cluster = start(shards).await?;
    println!(
        "{shards} shards: all have leaders {:.1} s after the start of the processes",
        started.elapsed().as_secs_f64()
    );
    tokio::time::sleep(REST).await;
    let pids = (0..3).map(|index| cluster.pid(index)).collect::<Result<Vec<u32>>>()?;
    let before = pids.iter().map(|pid| cpu_seconds(*pid)).collect::<Result<Vec<f64>>>()?;
    let clock = Instant::now();
    tokio::time::sleep(watch).await;
    let seconds = clock.elapsed().as_secs_f64();
    for (pid, before) in pids.iter().zip(before) {
        let percent = (cpu_seconds(*pid)? - before) / seconds * 100.0;
        println!("  idle: {percent:.2} % of a core, {} MiB", resident_bytes(*pid)? >> 20);
    }
    cluster.finish().await
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    process_cpu_seconds(&pid.to_string())
}

/// Kills the node that leads, and waits until the others lead its shards.
async fn failover(shards: u16) -> Result<()> {
    let mut cluster = start(shards).await?;
    let led = leaders(&cluster, 0).await?.values().filter(|leader| *leader == "node-3").count();
    ensure!(led > 0, "the node to be killed leads nothing");
    let targets = vec![cluster.endpoint(0, "ring"), cluster.endpoint(1, "ring")];
    let writer =
        Writer::start(WriterOptions { number: 1, lanes: 50, targets, retries: 0, pause: Writer::PAUSE });
    writer.wait_acked(500, FAILOVER_LIMIT).await?;
    cluster.kill9(2)?;
    let clock = Instant::now();
    loop {
        let leaders = leaders(&cluster, 0).await?;
        let led_by_living = leaders.values().filter(|leader| *leader != "node-3").count();
        if led_by_living == usize::from(shards) {
            break;
        }
        ensure!(
            clock.elapsed() < FAILOVER_LIMIT,
            "{led_by_living} of {shards} shards have a leader that lives"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let took = clock.elapsed();
    writer.wait_acked(500, FAILOVER_LIMIT).await?;
    let history = writer.stop().await?;
    let failed = history.count(saturn_chaos_tests::Outcome::Unknown);
    println!(
        "{led} of {shards} shards led by a node that is killed: all led by others after {:.1} s; of {} samples written \
         meanwhile, each once, {failed} were not acknowledged",
        took.as_secs_f64(),
        history.count(saturn_chaos_tests::Outcome::Acked) + failed,
    );
    history.check(&cluster.endpoint(0, "ring")).await?;
    cluster.finish().await
}

/// Deletes one lane after another, each in all shards, while a writer writes.
async fn deletions(shards: u16) -> Result<()> {
    let cluster = start(shards).await?;
    let endpoint = cluster.endpoint(0, "ring");
    let targets = vec![cluster.endpoint(0, "ring"), cluster.endpoint(1, "ring")];
    let writer =
        Writer::start(WriterOptions { number: 1, lanes: 50, targets, retries: 0, pause: Writer::PAUSE });
    writer.wait_acked(500, FAILOVER_LIMIT).await?;
    let other = Writer::start(WriterOptions {
        number: 2,
        lanes: 50,
        targets: vec![endpoint.clone()],
        retries: 0,
        pause: Writer::PAUSE,
    });
    other.wait_acked(500, FAILOVER_LIMIT).await?;
    other.stop().await?;
    let mut took = Vec::new();
    for lane in 0..DELETIONS {
        let selector = format!("saturn_test_writer_sample{{writer=\"2\",lane=\"{lane}\"}}");
        let started = Instant::now();
        let form = [("match[]", selector)];
        let reply = endpoint.post_form("/api/v1/admin/tsdb/delete_series", &form).await?;
        took.push(started.elapsed().as_secs_f64());
        ensure!(reply.status == 204, "{reply:?}");
    }
    took.sort_by(f64::total_cmp);
    let history = writer.stop().await?;
    let failed = history.count(saturn_chaos_tests::Outcome::Unknown);
    println!(
        "{DELETIONS} deletions in {shards} shards, one after another: {:.2} s each (median), {:.2} s at most; of {} samples \
         written meanwhile, each once, {failed} were not acknowledged",
        took[DELETIONS / 2],
        took[DELETIONS - 1],
        history.count(saturn_chaos_tests::Outcome::Acked) + failed,
    );
    history.check(&endpoint).await?;
    cluster.finish().await
}

/// Who leads each shard, as a node knows.
async fn leaders(cluster: &Cluster, ask: usize) -> Result<BTreeMap<u64, String>> {
    let shards = cluster.endpoint(ask, "ring").data("/api/v1/status/shards", &[]).await?;
    let led = shards
        .as_array()
        .context("shards")?
        .iter()
        .filter_map(|shard| Some((shard["shard"].as_u64()?, shard["leader"].as_str()?.to_owned())));
    Ok(led.collect())
}
