//! The tools of these tests do what they claim: a peer answers itself alike, a disk forgets what was not
//! synced and keeps what was.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use saturn_chaos_tests::{NodeExporter, PowerCutDisk, Prometheus, PrometheusOptions, eventually, now_ms};

use crate::queries::{compare_all, settled_time_ms};

/// Every query of the road test has an answer on Prometheus, and an answer equals itself.
#[tokio::test]
async fn prometheus_agrees_with_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let exporter = NodeExporter::start(folder.path()).await?;
    // In place of Saturn's nodes, which this test does without.
    let scrape = [("node", exporter.address()), ("saturn", exporter.address())];
    let scrape = scrape.map(|(job, address)| (job.to_owned(), vec![address.to_owned()])).to_vec();
    let options = PrometheusOptions { scrape, ..PrometheusOptions::default() };
    let prometheus = Prometheus::start(folder.path(), &options).await?;
    let endpoint = prometheus.endpoint();
    eventually("20 scrapes", Duration::from_secs(60), async || {
        let answer = endpoint.query("min(count_over_time(up[1m]))", now_ms()).await?;
        let count: f64 = answer.single()?.parse()?;
        ensure!(count >= 20.0, "{count}");
        Ok(Some(()))
    })
    .await?;
    compare_all(&endpoint, &endpoint, settled_time_ms(&endpoint).await?).await
}

#[tokio::test]
async fn a_power_cut_loses_what_was_not_synced_and_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = PowerCutDisk::create(folder.path(), "disk")?;
    let open = |name: &str| OpenOptions::new().create(true).append(true).open(disk.path().join(name));
    let mut synced = open("synced")?;
    synced.write_all(&[b'a'; 5000])?;
    synced.sync_all()?;
    std::fs::File::open(disk.path())?.sync_all()?;
    synced.write_all(&[b'b'; 5000])?;
    open("unsynced")?.write_all(b"c")?;
    disk.cut()?;
    ensure!(synced.write_all(b"d").and_then(|()| synced.sync_all()).is_err(), "a dead disk took a write");
    drop(synced);
    disk.remount().await?;
    ensure!(std::fs::read(disk.path().join("synced"))? == [b'a'; 5000], "the synced part changed");
    let unsynced = std::fs::read(disk.path().join("unsynced")).unwrap_or_default();
    ensure!(unsynced.is_empty(), "the unsynced file survived");
    std::fs::write(disk.path().join("after"), b"e")?;
    Ok(())
}
