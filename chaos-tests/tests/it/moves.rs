//! Shards move under load: nodes join, are drained, die, are replaced, and are killed in the middle of moves.
//!
//! All the time one writer writes, with the retries that senders make, and one reader asks for the sum of everything:
//! an answer that calls itself complete must not lack what was acknowledged before the question.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Endpoint, Outcome, Tolerance, Writer, WriterOptions, eventually, now_ms,
};
use serde_json::Value;
use tokio::task::JoinHandle;

const TENANT: &str = "moves";
const SHARDS: usize = 24;
const ZONES: usize = 3;
/// How long a set of moves may take on a busy machine.
const MOVES_LIMIT: Duration = Duration::from_secs(120);
const ACK_LIMIT: Duration = Duration::from_secs(60);
/// How far a node's shards may be from its share: 15 %, or one shard.
const BALANCE: f64 = 0.15;

/// Asks again and again, and remembers the first answer that lacks something.
struct Reader {
    stop: Arc<AtomicBool>,
    complete: Arc<AtomicUsize>,
    task: JoinHandle<Result<()>>,
}

impl Reader {
    fn start(targets: Vec<Endpoint>, acked: impl Fn() -> usize + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let complete = Arc::new(AtomicUsize::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&complete));
        let task = tokio::spawn(async move {
            for target in targets.iter().cycle() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let before = acked();
                let asked =
                    target.query("sum(count_over_time(saturn_test_writer_sample[1h]))", now_ms() + 1000);
                // A node that is down, and an answer that says that it lacks something, are no findings.
                if let Ok(answer) = asked.await
                    && let Ok(answer) = answer.complete()
                {
                    let found: f64 = if answer.is_empty() { 0.0 } else { answer.single()?.parse()? };
                    ensure!(found >= before as f64, "{} has {found} of {before} acked samples", target.url());
                    counted.fetch_add(1, Ordering::AcqRel);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        });
        Self { stop, complete, task }
    }

    async fn stop(self) -> Result<usize> {
        self.stop.store(true, Ordering::Release);
        self.task.await.context("the reader panicked")??;
        Ok(self.complete.load(Ordering::Acquire))
    }
}

/// Runs `saturnctl` against a node; it must succeed.
fn saturnctl(cluster: &Cluster, index: usize, args: &[&str]) -> Result<String> {
    let mut command = Command::new(&cluster.binaries().saturnctl);
    command.arg("--address").arg(cluster.url(index)).args(args);
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "saturnctl {args:?} ended with {}:\n{out}{err}", output.status);
    Ok(out.into_owned())
}

/// Waits until nothing is left to move and the nodes at these indexes, and no others, own shards.
async fn settled(cluster: &Cluster, ask: usize, owners: &[usize]) -> Result<BTreeMap<String, usize>> {
    let endpoint = cluster.endpoint(ask, TENANT);
    eventually("the shards have moved", MOVES_LIMIT, async || {
        let status = endpoint.data("/api/v1/status/ring", &[]).await?;
        ensure!(status["movesPlanned"] == 0 && status["movesUnderWay"] == 0, "{status}");
        let members = status["members"].as_array().context("members")?;
        let owned: BTreeMap<String, usize> = members
            .iter()
            .filter_map(|member| {
                let shards = usize::try_from(member["shardsOwned"].as_u64()?).ok()?;
                (shards > 0).then(|| (member["id"].as_str().unwrap_or_default().to_owned(), shards))
            })
            .collect();
        let wanted = owners.iter().map(|index| cluster.nodes()[*index].id.clone());
        ensure!(owned.keys().cloned().eq(wanted.collect::<std::collections::BTreeSet<_>>()), "{status}");
        Ok(Some(owned))
    })
    .await
}

/// Waits until all three nodes of every shard hold the same.
async fn equal_replicas(cluster: &Cluster, alive: &[usize]) -> Result<()> {
    eventually("the replicas of all shards are equal", MOVES_LIMIT, async || {
        let mut digests: BTreeMap<(u64, String), String> = BTreeMap::new();
        let mut slots: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for index in alive {
            let shards = saturnctl(cluster, *index, &["-o", "json", "shard", "ls", "--digest"])?;
            let shards: Value = serde_json::from_str(&shards).context("saturnctl shard ls")?;
            for shard in shards.as_array().context("shards")? {
                let number = shard["shard"].as_u64().context("number")?;
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                slots.insert(number, shard["slots"].as_array().context("slots")?.iter().map(text).collect());
                digests.insert((number, cluster.nodes()[*index].id.clone()), text(&shard["digest"]));
            }
        }
        for (shard, nodes) in slots {
            let held: Vec<_> = nodes.iter().map(|node| digests.get(&(shard, node.clone()))).collect();
            if held.iter().any(|digest| digest.is_none() || *digest != held[0]) {
                bail!("shard {shard}: {nodes:?} hold {held:?}");
            }
        }
        Ok(Some(()))
    })
    .await
}

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
    let writer = Writer::start(WriterOptions { number: 1, lanes: 40, targets: steady.clone(), retries: 40 });
    let reader = Reader::start(steady, writer.counter());
    writer.wait_acked(2000, ACK_LIMIT).await?;

    // Two join: one in the zone that has a single node, one beside two others.
    let (sixth, seventh) = (cluster.add("zone-3"), cluster.add("zone-1"));
    for index in [sixth, seventh] {
        cluster.restart(index).await.context("a joining node becomes ready")?;
    }
    saturnctl(&cluster, 1, &["ring", "join", "node-6", "--wait"])?;
    let owned = settled(&cluster, 0, &[0, 1, 2, 3, 4, 5, 6]).await.context("two joined")?;
    check_balance(&owned, &[&["node-1", "node-4", "node-7"], &["node-2", "node-5"], &["node-3", "node-6"]])?;

    // One is drained, killed in the middle of that, and comes back.
    saturnctl(&cluster, 2, &["ring", "drain", "node-4", "--yes"])?;
    cluster.kill9(3)?;
    writer.wait_acked(400, ACK_LIMIT).await.context("writes go on while the drained node is down")?;
    cluster.restart(3).await?;
    settled(&cluster, 0, &[0, 1, 2, 4, 5, 6]).await.context("one is drained")?;

    // One dies for good and is replaced by a new one, which is killed while it fetches.
    cluster.kill9(4)?;
    let eighth = cluster.add("zone-2");
    cluster.restart(eighth).await?;
    saturnctl(&cluster, 0, &["ring", "replace", "node-5", "node-8", "--yes"])?;
    cluster.kill9(eighth)?;
    writer.wait_acked(400, ACK_LIMIT).await.context("writes go on while both are down")?;
    cluster.restart(eighth).await?;
    let owned = settled(&cluster, 1, &[0, 1, 2, 5, 6, 7]).await.context("one is replaced")?;
    check_balance(&owned, &[&["node-1", "node-7"], &["node-2", "node-8"], &["node-3", "node-6"]])?;
    saturnctl(&cluster, 1, &["ring", "forget", "node-5", "--yes"])?;

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
        saturnctl(&cluster, index, &["repair"])?;
    }
    equal_replicas(&cluster, &[0, 1, 2, 5, 6, 7]).await?;
    cluster.finish().await
}
