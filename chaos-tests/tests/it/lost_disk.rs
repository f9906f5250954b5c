//! A disk that has lost what a node had acknowledged: the others remember, and it is repaired before it is read again.
//!
//! The loss is made by putting an older copy of a data directory in its place while the node is down; or nothing at all:
//! then the operator lets an empty one take its place.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Endpoint, History, Tolerance, Writer, WriterOptions, eventually, now_ms,
    placement,
};

const TENANT: &str = "lost";
const LIMIT: Duration = Duration::from_secs(60);
const LOSS: &str = "the disk has lost what this node had acknowledged";
/// Older than what is compared from time to time.
const LONG_AGO_MS: i64 = 3 * 86_400_000;

fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(done.success(), "cp ended with {done}");
    Ok(())
}

/// Writes until so many samples more are acknowledged.
async fn write(cluster: &Cluster, number: u32, samples: usize) -> Result<History> {
    let targets = (0..3).map(|index| cluster.endpoint(index, TENANT)).collect();
    let writer =
        Writer::start(WriterOptions { number, lanes: 8, targets, retries: 20, pause: Writer::PAUSE });
    writer.wait_acked(samples, LIMIT).await?;
    writer.stop().await
}

async fn metric(cluster: &Cluster, index: usize, name: &str) -> Result<u64> {
    let text = Endpoint::plain(&cluster.url(index)).get("/metrics", &[]).await?.text;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

/// Deletes what is called `lost_doomed`, and waits until all nodes are known to have done it.
async fn delete_doomed(cluster: &Cluster) -> Result<()> {
    let form = [("match[]", "lost_doomed".to_owned())];
    let reply = cluster.endpoint(0, TENANT).post_form("/api/v1/admin/tsdb/delete_series", &form).await?;
    ensure!(reply.status == 204, "{reply:?}");
    placement::settled_deletions(cluster, 0).await
}

async fn repaired(cluster: &Cluster, index: usize) -> Result<()> {
    eventually("the node has all again", LIMIT, async || {
        Ok((metric(cluster, index, "saturn_node_lacking_shards").await? == 0).then_some(()))
    })
    .await
}

/// How often the node has said that its disk has lost something.
fn told(cluster: &Cluster, index: usize) -> Result<usize> {
    Ok(cluster.log_text(index)?.matches(LOSS).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_a_data_directory_is_noticed_and_repaired() -> Result<()> {
    let extra_args = vec!["--web.enable-admin-api".to_owned()];
    let mut cluster =
        Cluster::start_with(ClusterOptions { nodes: 3, extra_args, ..ClusterOptions::default() }).await?;
    let now = now_ms();
    let doomed = |i: u32| Series::new(&[("__name__", "lost_doomed"), ("i", &i.to_string())], &[(now, 1.0)]);
    let reply = cluster.endpoint(2, TENANT).write(&(0..50).map(doomed).collect::<Vec<_>>()).await?;
    ensure!(reply.status == 204, "{reply:?}");
    cluster.saturnctl(2, &["repair"])?;
    let before = write(&cluster, 1, 200).await?;
    cluster.terminate(2).await?;
    let data_dir = cluster.nodes()[2].data_dir.clone();
    let old = cluster.folder().join("old");
    copy(&data_dir, &old)?;
    cluster.restart(2).await?;
    ensure!(told(&cluster, 2)? == 0, "a clean restart has lost nothing: {}", cluster.log_text(2)?);

    // The older copy knows nothing of this, and nobody will remember what was to be deleted.
    delete_doomed(&cluster).await?;
    let old_time = now_ms() - LONG_AGO_MS;
    let ancient = [Series::new(&[("__name__", "lost_ancient")], &[(old_time, 7.0)])];
    let reply = cluster.endpoint(2, TENANT).write(&ancient).await?;
    ensure!(reply.status == 204, "{reply:?}");
    let lost = write(&cluster, 2, 200).await?;
    cluster.tolerate(Tolerance::Errors);
    cluster.kill9(2)?;
    std::fs::remove_dir_all(&data_dir)?;
    copy(&old, &data_dir)?;
    cluster.restart(2).await?;
    ensure!(told(&cluster, 2)? == 1, "{}", cluster.log_text(2)?);
    ensure!(metric(&cluster, 2, "saturn_node_disk_losses_total").await? == 1);
    repaired(&cluster, 2).await?;
    placement::equal_replicas(&cluster, &[0, 1, 2]).await?;

    // What counts from here on: it is one of the two that answer.
    cluster.kill9(0)?;
    for history in [&before, &lost] {
        history.check(&cluster.endpoint(2, TENANT)).await?;
        history.check(&cluster.endpoint(1, TENANT)).await?;
    }
    let answer = cluster.endpoint(2, TENANT).query("lost_ancient", old_time + 1000).await?;
    ensure!(answer.complete()?.single()? == "7");
    let answer = cluster.endpoint(2, TENANT).query("lost_doomed", now).await?;
    ensure!(answer.complete()?.is_empty(), "what was deleted is back");
    cluster.restart(0).await?;

    // The loss is over: neither a stop nor a kill makes it look like another one.
    cluster.terminate(2).await?;
    cluster.restart(2).await?;
    cluster.kill9(2)?;
    cluster.restart(2).await?;
    ensure!(told(&cluster, 2)? == 1, "{}", cluster.log_text(2)?);
    ensure!(metric(&cluster, 2, "saturn_node_lacking_shards").await? == 0);

    // Another loss is noticed again.
    cluster.terminate(2).await?;
    let newer = cluster.folder().join("newer");
    copy(&data_dir, &newer)?;
    cluster.restart(2).await?;
    let lost = write(&cluster, 3, 50).await?;
    cluster.terminate(2).await?;
    std::fs::remove_dir_all(&data_dir)?;
    copy(&newer, &data_dir)?;
    cluster.restart(2).await?;
    ensure!(told(&cluster, 2)? == 2, "{}", cluster.log_text(2)?);
    repaired(&cluster, 2).await?;
    cluster.kill9(1)?;
    lost.check(&cluster.endpoint(2, TENANT)).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_data_directory_takes_the_place_of_a_lost_one_when_the_operator_says_so() -> Result<()> {
    let extra_args = vec!["--web.enable-admin-api".to_owned()];
    let mut cluster =
        Cluster::start_with(ClusterOptions { nodes: 3, extra_args, ..ClusterOptions::default() }).await?;
    delete_doomed(&cluster).await?;
    let written = write(&cluster, 1, 200).await?;
    cluster.tolerate(Tolerance::Errors);
    cluster.kill9(2)?;
    let (id, data_dir) = (cluster.nodes()[2].id.clone(), cluster.nodes()[2].data_dir.clone());
    let replace = ["ring", "replace", &id, &id, "--yes"];
    let refused = cluster.saturnctl(0, &replace).expect_err("nobody heard of another one");
    ensure!(format!("{refused:#}").contains("no other data directory"), "{refused:#}");

    let lost = cluster.folder().join("lost");
    std::fs::rename(&data_dir, &lost)?;
    let text = cluster.refused(2).await?;
    ensure!(text.contains(&format!("saturnctl ring replace {id} {id}")), "{text}");
    let while_away = write(&cluster, 2, 50).await?;
    cluster.saturnctl(0, &replace)?;
    cluster.restart(2).await?;
    ensure!(metric(&cluster, 2, "saturn_node_disk_losses_total").await? == 1);
    let text = cluster.log_text(2)?;
    ensure!(!text.contains("missed deletions"), "an empty directory holds nothing that was deleted: {text}");
    repaired(&cluster, 2).await?;
    placement::equal_replicas(&cluster, &[0, 1, 2]).await?;

    // What was lost is not let in again, and the new one is a member like any other.
    cluster.terminate(2).await?;
    cluster.set_data_dir(2, &lost);
    let text = cluster.refused(2).await?;
    // What the others' member list says, or who was asked: whichever comes first.
    let reasons = [
        format!("another node has joined the cluster under the name of {id}"),
        "of another generation".into(),
    ];
    ensure!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
    cluster.set_data_dir(2, &data_dir);
    cluster.restart(2).await?;
    ensure!(metric(&cluster, 2, "saturn_node_lacking_shards").await? == 0);
    cluster.kill9(0)?;
    for history in [&written, &while_away] {
        history.check(&cluster.endpoint(2, TENANT)).await?;
        history.check(&cluster.endpoint(1, TENANT)).await?;
    }
    cluster.restart(0).await?;
    cluster.finish().await
}
