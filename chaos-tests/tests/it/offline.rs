//! A data directory from outside: refused while its node runs, whole after a SIGKILL, damage by name and exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{Cluster, ClusterOptions, SaturnBinaries, now_ms};
use serde_json::Value;

fn storage(args: &[&str], dir: &Path) -> Result<Output> {
    let mut command = Command::new(&SaturnBinaries::locate().saturnctl);
    command.arg("storage").args(args).arg(dir).output().context("saturnctl")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The newest file of the log that has records.
fn log_file(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir.join("storage/wal"))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 200));
    files.sort();
    files.pop().context("a log with records")
}

#[tokio::test]
async fn a_data_directory_is_looked_at_from_outside() -> Result<()> {
    // The samples of one tenant are acknowledged before they are synced; a kill takes none of either.
    let extra_args = ["--web.enable-admin-api", "--storage.durability.tenants=fast=interval"];
    let extra_args = extra_args.map(str::to_owned).to_vec();
    let mut cluster =
        Cluster::start_with(ClusterOptions { nodes: 1, extra_args, ..ClusterOptions::default() }).await?;
    let dir = cluster.nodes()[0].data_dir.clone();
    let now = now_ms();
    for tenant in ["fast", "slow"] {
        let series = |i: u32| Series::new(&[("__name__", "m"), ("i", &i.to_string())], &[(now, 1.5)]);
        let reply = cluster.endpoint(0, tenant).write(&(0..20).map(series).collect::<Vec<_>>()).await?;
        ensure!(reply.status == 204, "{reply:?}");
    }
    let scrub = cluster.endpoint(0, "slow").post_form("/api/v1/admin/tsdb/scrub", &[]).await?;
    let report: Value = serde_json::from_str(&scrub.text)?;
    ensure!(scrub.status == 200 && report["data"]["damage"] == serde_json::json!([]), "{report}");
    for args in [["verify"], ["stats"], ["inspect"]] {
        let refused = storage(&args, &dir)?;
        ensure!(refused.status.code() == Some(1), "{args:?}: {refused:?}");
        ensure!(text(&refused.stderr).contains("in use by another process"), "{}", text(&refused.stderr));
    }

    cluster.kill9(0)?;
    let whole = storage(&["verify"], &dir)?;
    ensure!(whole.status.code() == Some(0) && text(&whole.stdout).contains("all is whole"), "{whole:?}");
    let stats: Value = serde_json::from_slice(&storage(&["stats", "-o", "json"], &dir)?.stdout)?;
    ensure!(stats["wal"]["samples"] == 40 && stats["wal"]["newSeries"] == 40, "{stats}");
    let records = storage(&["inspect", "--wal", "-o", "json"], &dir)?;
    let records: Vec<Value> = serde_json::from_slice(&records.stdout)?;
    let of = |tenant: &str| -> u64 {
        let own = records.iter().filter(|record| record["tenant"] == tenant);
        own.filter_map(|record| record["samples"].as_u64()).sum()
    };
    ensure!((of("fast"), of("slow")) == (20, 20), "{records:?}");

    cluster.restart(0).await?;
    for tenant in ["fast", "slow"] {
        let answer = cluster.endpoint(0, tenant).query("count(m)", now).await?;
        ensure!(answer.single()? == "20", "{answer:?}");
    }
    cluster.terminate(0).await?;
    let log = log_file(&dir)?;
    let good = fs::read(&log)?;
    let mut bad = good.clone();
    bad[120] ^= 1;
    fs::write(&log, &bad)?;
    let damaged = storage(&["verify"], &dir)?;
    let name = log.file_name().context("a name")?.to_string_lossy();
    let first = text(&damaged.stdout).lines().next().unwrap_or_default().to_owned();
    ensure!(damaged.status.code() == Some(3), "{damaged:?}");
    ensure!(first.starts_with(&format!("DAMAGED  wal/{name}: byte ")), "{first}");
    fs::write(&log, &good)?;
    ensure!(storage(&["verify"], &dir)?.status.code() == Some(0), "whole again");
    let nothing = storage(&["verify"], cluster.folder())?;
    ensure!(
        nothing.status.code() == Some(1) && text(&nothing.stderr).contains("no data directory"),
        "{nothing:?}"
    );
    cluster.finish().await
}
