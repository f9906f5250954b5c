//! Replicas that missed writes get them, however late these were.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{Cluster, Endpoint, Tolerance, eventually, now_ms, placement};

const TENANT: &str = "late";
const LIMIT: Duration = Duration::from_secs(60);
/// Long enough for a window to be over.
const LONG_AGO_MS: i64 = 3 * 86_400_000;
const SERIES: u32 = 20;

async fn write(endpoint: &Endpoint, time_ms: i64, value: f64) -> Result<()> {
    let series = |i: u32| Series::new(&[("__name__", "late"), ("i", &i.to_string())], &[(time_ms, value)]);
    let reply = endpoint.write(&(0..SERIES).map(series).collect::<Vec<_>>()).await?;
    ensure!(reply.status == 204, "{reply:?}");
    Ok(())
}

/// The windows that are written down, in all shards, as all nodes know it.
async fn sealed(cluster: &Cluster) -> Result<u64> {
    let mut known = Vec::new();
    for index in 0..cluster.size() {
        let shards = Endpoint::plain(&cluster.url(index)).data("/api/v1/status/shards", &[]).await?;
        let shards = shards.as_array().context("shards")?.iter();
        known.push(shards.map(|shard| shard["sealedWindows"].as_u64().unwrap_or_default()).sum::<u64>());
    }
    ensure!(known.iter().all(|number| *number == known[0]), "{known:?}");
    Ok(known[0])
}

#[tokio::test]
async fn late_samples_reach_all_replicas_although_their_window_was_written_down() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let time = now_ms() - LONG_AGO_MS;
    write(&cluster.endpoint(0, TENANT), time, 1.0).await?;
    eventually("the window is written down", LIMIT, async || {
        for index in 0..3 {
            cluster.saturnctl(index, &["repair"])?;
        }
        Ok((sealed(&cluster).await? > 0).then_some(()))
    })
    .await?;
    let before = sealed(&cluster).await?;

    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9(2)?;
    write(&cluster.endpoint(0, TENANT), time + 1000, 2.0).await?;
    cluster.restart(2).await?;
    eventually("all is compared", LIMIT, async || {
        let text = cluster.saturnctl(2, &["repair"])?;
        ensure!(text.contains("took samples of"), "{text}");
        Ok(Some(()))
    })
    .await?;
    placement::equal_replicas(&cluster, &[0, 1, 2]).await?;
    // Written down anew, not once more.
    for index in 0..3 {
        cluster.saturnctl(index, &["repair"])?;
    }
    ensure!(sealed(&cluster).await? == before);

    cluster.kill9(0)?;
    let answer = cluster.endpoint(2, TENANT).query("count(late == 2)", time + 2000).await?;
    ensure!(answer.complete()?.single()? == SERIES.to_string());
    cluster.finish().await
}
