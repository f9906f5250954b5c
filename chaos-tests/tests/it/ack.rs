//! Acked means durable: whatever happens to all nodes at once, an acked sample is there afterwards.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::{
    Cluster, ClusterOptions, History, Outcome, PowerCutDisk, Tolerance, Writer, WriterOptions,
};

const TENANT: &str = "ack";

/// Writers at the same time, so that one fsync covers several requests.
const WRITERS: u32 = 4;

/// Samples that each writer has acked when the fault comes.
const ACKED_BEFORE: usize = 500;

const ACK_LIMIT: Duration = Duration::from_secs(30);

fn start_writers(cluster: &Cluster, first_number: u32) -> Vec<Writer> {
    let targets: Vec<_> = (0..cluster.size()).map(|index| cluster.endpoint(index, TENANT)).collect();
    let numbers = first_number..first_number + WRITERS;
    numbers
        .map(|number| {
            Writer::start(WriterOptions {
                number,
                lanes: 10,
                targets: targets.clone(),
                retries: 0,
                pause: Writer::PAUSE,
            })
        })
        .collect()
}

async fn wait_acked(writers: &[Writer], more: usize) -> Result<()> {
    for writer in writers {
        writer.wait_acked(more, ACK_LIMIT).await?;
    }
    Ok(())
}

async fn stop(writers: Vec<Writer>) -> Result<Vec<History>> {
    let mut histories = Vec::new();
    for writer in writers {
        histories.push(writer.stop().await?);
    }
    Ok(histories)
}

/// Every node, as the one that is asked, has every acked sample and none that was not sent.
async fn check_through_all_nodes(cluster: &Cluster, histories: &[History]) -> Result<()> {
    for index in 0..cluster.size() {
        for history in histories {
            history.check(&cluster.endpoint(index, TENANT)).await?;
        }
    }
    Ok(())
}

/// After the fault: what was acked before is there, and writing works.
async fn check_recovered(cluster: &Cluster, histories: &[History]) -> Result<()> {
    for history in histories {
        ensure!(history.count(Outcome::Acked) >= ACKED_BEFORE, "the fault came too early");
    }
    check_through_all_nodes(cluster, histories).await?;
    let writers = start_writers(cluster, 100);
    wait_acked(&writers, 100).await.context("writing works again")?;
    let later_histories = stop(writers).await?;
    check_through_all_nodes(cluster, &later_histories).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acked_samples_survive_sigkill_of_all_nodes() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let writers = start_writers(&cluster, 1);
    wait_acked(&writers, ACKED_BEFORE).await?;
    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9_all()?;
    let histories = stop(writers).await?;
    cluster.restart_all().await?;
    check_recovered(&cluster, &histories).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acked_samples_survive_a_power_cut_of_all_nodes() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("saturn-disks-").tempdir()?;
    let disks = ["disk-1", "disk-2", "disk-3"].map(|name| PowerCutDisk::create(folder.path(), name));
    let disks = disks.into_iter().collect::<Result<Vec<_>>>()?;
    let data_dirs = disks.iter().map(|disk| disk.path().join("data")).collect();
    let mut cluster =
        Cluster::start_with(ClusterOptions { nodes: 3, data_dirs, ..ClusterOptions::default() }).await?;

    let writers = start_writers(&cluster, 1);
    wait_acked(&writers, ACKED_BEFORE).await?;
    // Between the cut and the kill a node sees its disk fail.
    cluster.tolerate(Tolerance::Errors);
    writers.iter().for_each(Writer::doubt);
    for disk in &disks {
        disk.cut()?;
    }
    cluster.kill9_all()?;
    let histories = stop(writers).await?;
    for disk in &disks {
        disk.remount().await?;
    }
    cluster.restart_all().await?;
    check_recovered(&cluster, &histories).await?;
    cluster.finish().await
}
