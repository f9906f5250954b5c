//! Shuffle sharding: tenants on few shards, whose number changes while their samples are kept.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{Cluster, ClusterOptions, Tolerance, now_ms};
use saturn_model::TenantId;
use saturn_ring::Subset;
use serde_json::Value;

const SERIES: u32 = 200;
const SHARDS: u16 = 16;

fn configure(file: &Path, tenants: &str) -> Result<()> {
    let text = format!(
        "cluster: {{shards: {SHARDS}}}\nweb: {{enable_admin_api: true}}\nshuffle_sharding: {{tenants: {tenants}}}\n"
    );
    Ok(std::fs::write(file, text)?)
}

async fn write(cluster: &Cluster, tenant: &str, timestamp: i64) -> Result<()> {
    let series =
        |i: u32| Series::new(&[("__name__", "m"), ("i", &i.to_string())], &[(timestamp, f64::from(i))]);
    let reply = cluster
        .endpoint(cluster.size() - 1, tenant)
        .write(&(0..SERIES).map(series).collect::<Vec<_>>())
        .await?;
    ensure!(reply.status == 204, "{reply:?}");
    Ok(())
}

/// Every node must find all series, each once, with so many samples.
async fn check(cluster: &Cluster, tenant: &str, samples: u32, now: i64) -> Result<()> {
    for index in 0..cluster.size() {
        let endpoint = cluster.endpoint(index, tenant);
        let whole = format!("count(count_over_time(m[1h]) == {samples})");
        let answer = endpoint.query(&whole, now).await?.complete()?;
        ensure!(answer.single()? == SERIES.to_string(), "node {index}, {samples} samples: {answer:?}");
        let all = endpoint.query("count(last_over_time(m[1h]))", now).await?.complete()?;
        ensure!(all.single()? == SERIES.to_string(), "node {index}: {all:?}");
    }
    Ok(())
}

/// The shards that writes go to, and those that queries ask, as `saturnctl` prints them.
fn shards(cluster: &Cluster, tenant: &str) -> Result<(BTreeSet<u16>, BTreeSet<u16>)> {
    let mut command = Command::new(&cluster.binaries().saturnctl);
    command.arg("--address").arg(cluster.url(0)).args(["tenant", "shards", tenant, "-o", "json"]);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let (mut written, mut read) = (BTreeSet::new(), BTreeSet::new());
    for shard in report["placement"].as_array().context("shards")? {
        let number = u16::try_from(shard["shard"].as_u64().context("a number")?)?;
        ensure!(shard["nodes"].as_array().context("nodes")?.len() == cluster.size(), "{shard}");
        read.insert(number);
        if shard["written"] == true {
            written.insert(number);
        }
    }
    Ok((written, read))
}

#[tokio::test]
async fn a_tenants_shards_grow_and_shrink_and_its_samples_stay() -> Result<()> {
    grow_and_shrink(3).await
}

/// A node that is alone aggregates shard by shard, where it can.
#[tokio::test]
async fn the_same_on_a_node_that_is_alone() -> Result<()> {
    grow_and_shrink(1).await
}

async fn grow_and_shrink(nodes: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("saturn.yml");
    configure(&file, "few=3/3")?;
    let extra_args = vec![format!("--config.file={}", file.display())];
    let options = ClusterOptions { nodes, extra_args, ..ClusterOptions::default() };
    let mut cluster = Cluster::start_with(options).await?;
    let now = now_ms();
    let tenant = TenantId::new("few")?;
    let subset = |size| -> BTreeSet<u16> {
        Subset::of(&tenant, size, SHARDS).ids().into_iter().map(|shard| shard.0).collect()
    };
    for (round, (spread, written, read)) in
        [("3/3", 3, 3), ("6/6", 6, 6), ("2/6", 2, 6), ("2", 2, 0)].into_iter().enumerate()
    {
        if round > 0 {
            configure(&file, &format!("few={spread}"))?;
            // Nodes that end one after the other may complain about those that ended before.
            cluster.tolerate(Tolerance::Warnings);
            for index in 0..nodes {
                cluster.terminate(index).await?;
            }
            cluster.restart_all().await?;
        }
        ensure!(
            shards(&cluster, "few")? == (subset(written), subset(read)),
            "{:?}",
            shards(&cluster, "few")?
        );
        let all: BTreeSet<u16> = (0..SHARDS).collect();
        ensure!(shards(&cluster, "many")? == (all.clone(), all), "others use all shards");
        let samples = u32::try_from(round)? + 1;
        for tenant in ["few", "many"] {
            write(&cluster, tenant, now - 60_000 + i64::from(samples) * 1000).await?;
            check(&cluster, tenant, samples, now).await?;
        }
    }
    cluster.finish().await
}
