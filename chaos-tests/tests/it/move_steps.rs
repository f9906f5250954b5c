//! Whoever takes part in a move of shards dies at every named step of it, once each, and comes back: the moves end by
//! themselves, and no client notices.
//!
//! Four nodes in three zones: all that one of the two in the first zone holds moves to the other, and back, once for
//! every step. The node whose part the step is was started so that it dies there (`saturn_ring::steps`).

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use saturn_chaos_tests::placement::{equal_replicas, member_list_leader, settled, shard_leaders};
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Outcome, Reader, Tolerance, Writer, WriterOptions, eventually,
};
use saturn_ring::steps::{Participant, STEPS};

const TENANT: &str = "steps";
const SHARDS: usize = 4;
/// In the second zone, and in all groups.
const STEADY: usize = 1;
const LIMIT: Duration = Duration::from_secs(60);

// The binaries are built together with this test, and so with its features.
const _: () = assert!(fail::has_failpoints());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_at_a_step_of_a_move_delays_it_and_no_more() -> Result<()> {
    let extra_args = vec![format!("--cluster.shards={SHARDS}"), "--cluster.replication-factor=3".to_owned()];
    let options = ClusterOptions { nodes: 4, zones: 3, extra_args, ..ClusterOptions::default() };
    let mut cluster = Cluster::start_with(options).await?;
    cluster.tolerate(Tolerance::Warnings);
    let all = [0, 1, 2, 3];
    let targets: Vec<_> = all.iter().map(|index| cluster.endpoint(*index, TENANT)).collect();
    let options = WriterOptions { number: 1, lanes: 16, targets: targets.clone(), retries: 60 };
    let writer = Writer::start(options);
    let reader = Reader::start(targets, writer.counter());

    let (mut from, mut to) = (3, 0);
    cluster.saturnctl(STEADY, &["ring", "drain", "node-4", "--yes"])?;
    settled(&cluster, STEADY, &[0, 1, 2]).await?;
    for (step, participant) in STEPS {
        std::mem::swap(&mut from, &mut to);
        let moved = die_once(&mut cluster, (from, to), step, *participant).await;
        moved.with_context(|| format!("{step:?}, moving from node-{} to node-{}", from + 1, to + 1))?;
    }

    writer.wait_acked(400, LIMIT).await?;
    let answers = reader.stop().await?;
    ensure!(answers >= 10, "only {answers} answers were complete");
    let history = writer.stop().await?;
    let unknown = history.count(Outcome::Unknown) + history.count(Outcome::NotSent);
    ensure!(unknown == 0, "{unknown} samples were not acked for good");
    for index in all {
        history.check(&cluster.endpoint(index, TENANT)).await?;
    }
    // What single replicas missed meanwhile, they have after each has asked the others.
    for index in all {
        cluster.saturnctl(index, &["repair"])?;
    }
    equal_replicas(&cluster, &all).await?;
    cluster.finish().await
}

/// Moves all shards of one node to another. The participant dies at the step, and comes back.
async fn die_once(
    cluster: &mut Cluster,
    (from, to): (usize, usize),
    step: &str,
    participant: Participant,
) -> Result<()> {
    let dies = match participant {
        Participant::Target => prepare(cluster, to, step).await?,
        Participant::Source => prepare(cluster, from, step).await?,
        Participant::GroupLeader => prepare_group_leader(cluster, step).await?,
        Participant::Rebalancer => prepare_rebalancer(cluster, from, step).await?,
    };
    let ask = if dies == STEADY { 2 } else { STEADY };
    let (old, new) = (cluster.nodes()[from].id.clone(), cluster.nodes()[to].id.clone());
    cluster.process(dies)?.check_running()?;
    cluster.saturnctl(ask, &["ring", "replace", &old, &new, "--yes"])?;
    cluster.wait_death(dies, step, LIMIT).await?;
    cluster.restart(dies).await?;
    settled(cluster, STEADY, &sorted([STEADY, 2, to])).await?;
    Ok(())
}

fn sorted(mut indexes: [usize; 3]) -> [usize; 3] {
    indexes.sort_unstable();
    indexes
}

async fn prepare(cluster: &mut Cluster, index: usize, step: &str) -> Result<usize> {
    cluster.restart_to_die(index, step).await?;
    Ok(index)
}

/// A leader that comes back before it is missed leads again.
async fn prepare_group_leader(cluster: &mut Cluster, step: &str) -> Result<usize> {
    for _ in 0..5 {
        let leaders = eventually("all groups have leaders", LIMIT, async || {
            let leaders = shard_leaders(cluster, STEADY).await?;
            ensure!(leaders.len() == SHARDS, "{leaders:?}");
            Ok(Some(leaders))
        });
        let leader = prepare(cluster, leaders.await?[0], step).await?;
        if shard_leaders(cluster, leader).await?.contains(&leader) {
            return Ok(leader);
        }
        cluster.kill9(leader)?;
        cluster.restart(leader).await?;
    }
    bail!("no node leads a group that led it before it was started anew")
}

/// As above; the node that is drained leaves the council.
async fn prepare_rebalancer(cluster: &mut Cluster, drained: usize, step: &str) -> Result<usize> {
    for _ in 0..5 {
        let ask = if drained == STEADY { 2 } else { STEADY };
        let leader = eventually("the member list has a leader", LIMIT, async || {
            member_list_leader(cluster, ask).await.map(Some)
        });
        let leader = leader.await?;
        if leader == drained {
            cluster.kill9(leader)?;
            eventually("the member list has another leader", LIMIT, async || {
                let now = member_list_leader(cluster, ask).await?;
                ensure!(now != drained, "it is still led by the one that was killed");
                Ok(Some(()))
            })
            .await?;
            cluster.restart(leader).await?;
            continue;
        }
        prepare(cluster, leader, step).await?;
        if member_list_leader(cluster, leader).await? == leader {
            return Ok(leader);
        }
        cluster.kill9(leader)?;
        cluster.restart(leader).await?;
    }
    bail!("no node leads the member list that led it before it was started anew")
}
