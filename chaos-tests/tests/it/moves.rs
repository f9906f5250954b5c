//! Shards move under load: nodes join, are drained, die, are replaced, and are killed in the middle of moves.
//!
//! All the time one writer writes, with the retries that senders make, and one reader asks for the sum of everything:
//! an answer that calls itself complete must not lack what was acknowledged before the question.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::placement::{equal_replicas, settled};
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Endpoint, Outcome, Reader, Tolerance, Writer, WriterOptions,
};

const TENANT: &str = "moves";
const SHARDS: usize = 24;
const ZONES: usize = 3;
const ACK_LIMIT: Duration = Duration::from_secs(60);
/// How far a node's shards may be from its share: 15 %, or one shard.
const BALANCE: f64 = 0.15;

fn check_balance(owned: &BTreeMap<String, usize>, per_zone: &[&[&str]]) -> Result<()> {
    for zone in per_zone {
        let share = SHARDS as f64 / zone.len() as f64;
        for node in *zone {
            let held = owned.get(*node).copied().unwrap_or_default() as f64;
            ensure!(
                (held - share).abs() <= (share * BALANCE).max(1.0),
                "{node} holds {held} of {share}: {owned:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_drain_die_and_are_replaced_under_load() -> Result<()> {
    let extra_args = vec![format!("--cluster.shards={SHARDS}"), "--cluster.replication-factor=3".to_owned()];
    let options = ClusterOptions { nodes: 5, zones: ZONES, extra_args, ..ClusterOptions::default() };
    let mut cluster = Cluster::start_with(options).await?;
    cluster.tolerate(Tolerance::Warnings);
    // Nodes 1 and 4 are in zone 1, 2 and 5 in zone 2, 3 in zone 3. The first three stay to the end.
    let steady: Vec<Endpoint> = (0..3).map(|index| cluster.endpoint(index, TENANT)).collect();
    let writer = Writer::start(WriterOptions {
        number: 1,
        lanes: 40,
        targets: steady.clone(),
        retries: 40,
        pause: Writer::PAUSE,
    });
    let reader = Reader::start(steady, writer.counter());
    writer.wait_acked(2000, ACK_LIMIT).await?;

    // Two join: one in the zone that has a single node, one beside two others.
    let (sixth, seventh) = (cluster.add("zone-3"), cluster.add("zone-1"));
    for index in [sixth, seventh] {
        cluster.restart(index).await.context("a joining node becomes ready")?;
    }
    cluster.saturnctl(1, &["ring", "join", "node-6", "--wait"])?;
    let owned = settled(&cluster, 0, &[0, 1, 2, 3, 4, 5, 6]).await.context("two joined")?;
    check_balance(&owned, &[&["node-1", "node-4", "node-7"], &["node-2", "node-5"], &["node-3", "node-6"]])?;

    // One is drained, killed in the middle of that, and comes back.
    cluster.saturnctl(2, &["ring", "drain", "node-4", "--yes"])?;
    cluster.kill9(3)?;
    writer.wait_acked(400, ACK_LIMIT).await.context("writes go on while the drained node is down")?;
    cluster.restart(3).await?;
    settled(&cluster, 0, &[0, 1, 2, 4, 5, 6]).await.context("one is drained")?;

    // One dies for good and is replaced by a new one, which is killed while it fetches.
    cluster.kill9(4)?;
    let eighth = cluster.add("zone-2");
    cluster.restart(eighth).await?;
    cluster.saturnctl(0, &["ring", "replace", "node-5", "node-8", "--yes"])?;
    cluster.kill9(eighth)?;
    writer.wait_acked(400, ACK_LIMIT).await.context("writes go on while both are down")?;
    cluster.restart(eighth).await?;
    let owned = settled(&cluster, 1, &[0, 1, 2, 5, 6, 7]).await.context("one is replaced")?;
    check_balance(&owned, &[&["node-1", "node-7"], &["node-2", "node-8"], &["node-3", "node-6"]])?;
    cluster.saturnctl(1, &["ring", "forget", "node-5", "--yes"])?;

    writer.wait_acked(1000, ACK_LIMIT).await?;
    let answers = reader.stop().await?;
    ensure!(answers >= 10, "only {answers} answers were complete");
    let history = writer.stop().await?;
    ensure!(history.count(Outcome::Acked) >= 4000, "{} acked", history.count(Outcome::Acked));
    ensure!(
        history.count(Outcome::Unknown) == 0,
        "{} writes failed for good",
        history.count(Outcome::Unknown)
    );
    for index in [0, 1, 2, 5, 6, 7] {
        history.check(&cluster.endpoint(index, TENANT)).await?;
    }
    // What single replicas missed meanwhile, they have after each has asked the others.
    for index in [0, 1, 2, 5, 6, 7] {
        cluster.saturnctl(index, &["repair"])?;
    }
    equal_replicas(&cluster, &[0, 1, 2, 5, 6, 7]).await?;
    cluster.finish().await
}
