//! What reads find, whom they ask, and what they say is missing.

use std::sync::Arc;
use std::time::Duration;

use saturn_model::{OverBudget, SampleBudget, SeriesColumns};
use saturn_replication::{Completeness, Listed, ReadAnswer, ReadError, Settings};
use saturn_ring::{Spread, Spreads, Subset};
use tokio::time::Instant;

use crate::cluster::{SHARDS, World, everything, labels_of, tenant};

const NODES: [&str; 3] = ["a", "b", "c"];
const SERIES: u32 = 100;

fn unlimited() -> Arc<SampleBudget> {
    Arc::new(SampleBudget::new(usize::MAX))
}

async fn select(world: &World) -> ReadAnswer<Vec<SeriesColumns>> {
    world.coordinator.select(&everything(), 1000, &unlimited()).await.expect("an answer")
}

/// Waits until the background of earlier writes is over.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

fn missing_shards<T>(answer: &ReadAnswer<T>) -> usize {
    match &answer.completeness {
        Completeness::Complete => 0,
        Completeness::Partial { missing } => missing.len(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_acked_write_is_read_back_merged_and_sorted() {
    let world = World::new(&NODES, 3);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    settle().await;
    world.cluster.kill("b");
    world.write(SERIES, 2, 2.0).await.expect("acked");
    settle().await;
    world.cluster.with("b", |replica| replica.dead = false);
    world.cluster.kill("c");
    world.write(SERIES, 3, 3.0).await.expect("acked");
    settle().await;
    // a holds all three, b lacks the second, c the third; any two of them make the whole.
    for dead in NODES {
        for node in NODES {
            world.cluster.with(node, |replica| replica.dead = node == dead);
        }
        let answer = select(&world).await;
        assert_eq!(answer.completeness, Completeness::Complete);
        assert_eq!(answer.value.len(), SERIES as usize);
        assert!(answer.value.is_sorted_by(|x, y| x.labels < y.labels), "sorted, without duplicates");
        assert!(answer.value.iter().all(|s| s.timestamps == [1, 2, 3] && s.values == [1.0, 2.0, 3.0]));
    }
}

#[tokio::test(start_paused = true)]
async fn two_dead_replicas_make_the_answer_say_so() {
    let world = World::new(&["a", "b", "c", "d", "e"], 3);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    settle().await;
    world.cluster.kill("d");
    world.cluster.kill("e");
    let start = Instant::now();
    let answer = select(&world).await;
    let placement = world.placement.load();
    let is_dead = |node: &&saturn_ring::NodeId| ["d", "e"].contains(&node.as_str());
    let hit: Vec<_> = (0..SHARDS)
        .filter(|s| placement.shards[usize::from(*s)].slots.iter().filter(is_dead).count() == 2)
        .collect();
    assert!(!hit.is_empty() && hit.len() < usize::from(SHARDS), "some shards, not all");
    let Completeness::Partial { missing } = &answer.completeness else { panic!("complete") };
    assert_eq!(missing.iter().map(|m| m.shard.0).collect::<Vec<_>>(), hit);
    assert_eq!(missing[0].reason, "d: unreachable: connection refused; e: unreachable: connection refused");
    assert!(start.elapsed() < Duration::from_secs(1), "nobody waits for the dead");
    assert_eq!(answer.value.len(), SERIES as usize, "the last replica's word is in the answer");
    assert_eq!(world.metric("incomplete_reads_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn if_nobody_answers_every_shard_is_missing() {
    let world = World::new(&NODES, 3);
    NODES.iter().for_each(|node| world.cluster.kill(node));
    let answer = select(&world).await;
    assert_eq!((missing_shards(&answer), answer.value.len()), (usize::from(SHARDS), 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_replica_is_hedged() {
    let world = World::new(&NODES, 3);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    settle().await;
    let start = Instant::now();
    select(&world).await;
    assert!(start.elapsed() < Duration::from_millis(100));
    assert_eq!(world.metric("hedged_reads_total"), 0);
    world.cluster.with("b", |replica| replica.delay = Duration::from_secs(20));
    let start = Instant::now();
    let answer = select(&world).await;
    assert_eq!((missing_shards(&answer), answer.value.len()), (0, SERIES as usize));
    let took = start.elapsed();
    assert!(took > Duration::from_secs(1) && took < Duration::from_millis(1100), "{took:?}");
    assert_eq!(world.metric("hedged_reads_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline() {
    let world = World::new(&NODES, 3);
    for node in ["b", "c"] {
        world.cluster.with(node, |replica| replica.delay = Duration::from_secs(100));
    }
    let start = Instant::now();
    let answer = select(&world).await;
    assert_eq!((missing_shards(&answer), start.elapsed().as_secs()), (usize::from(SHARDS), 30));
    let Completeness::Partial { missing } = &answer.completeness else { panic!("complete") };
    assert_eq!(missing[0].reason, "2 of its replicas: no answer within 30s");
}

#[tokio::test(start_paused = true)]
async fn a_quorum_is_asked_no_more() {
    let world = World::new(&NODES, 3);
    select(&world).await;
    let asked: u32 = NODES.map(|node| world.cluster.with(node, |r| r.selects)).iter().sum();
    assert_eq!(asked, 3, "one request for each node covers all its shards");
    let world = World::new(&["a"], 1);
    assert_eq!(missing_shards(&select(&world).await), 0);
    assert_eq!(world.cluster.with("a", |r| r.selects), 1);
}

#[tokio::test(start_paused = true)]
async fn stale_and_behind_are_mended_on_the_way() {
    let world = World::new(&NODES, 3);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    settle().await;
    world.cluster.set_epoch(&["b", "c"], 7);
    let answer = select(&world).await;
    assert_eq!((missing_shards(&answer), answer.value.len()), (0, SERIES as usize));
    assert!(world.placement.load().shards.iter().all(|record| record.epoch.0 == 7));
    assert!(world.cluster.with("a", |replica| replica.pushes) > 0, "a was behind");
    for node in NODES {
        world.cluster.with(node, |replica| replica.placement = None);
    }
    let answer = select(&world).await;
    assert_eq!((missing_shards(&answer), answer.value.len()), (0, SERIES as usize));
}

#[tokio::test(start_paused = true)]
async fn too_many_series_are_an_error() {
    let world = World::new(&NODES, 3);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    let error = world.coordinator.select(&everything(), 99, &unlimited()).await.expect_err("over the limit");
    assert_eq!(error.to_string(), "the selection matches 100 series, over the limit of 99");
    world.cluster.with("b", |replica| replica.too_many = true);
    let error = world.coordinator.select(&everything(), 1000, &unlimited()).await.expect_err("over");
    assert_eq!(error, ReadError::TooManySeries { reason: "over the limit".into() });
}

#[tokio::test(start_paused = true)]
async fn a_read_over_the_budget_ends_before_everything_was_sent() {
    let world = World::new(&NODES, 3);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    settle().await;
    let samples = SERIES as usize;
    // Two copies of each sample come; they count once.
    let enough = Arc::new(SampleBudget::new(samples));
    let answer = world.coordinator.select(&everything(), 1000, &enough).await.expect("fits");
    assert_eq!((answer.value.len(), missing_shards(&answer), enough.held()), (samples, 0, samples));
    // What another selector of the query holds counts, too.
    let error = world.coordinator.select(&everything(), 1000, &enough).await.expect_err("is full");
    assert_eq!(error, ReadError::TooManySamples(OverBudget { samples_max: samples }));

    let before: usize = NODES.map(|node| world.cluster.with(node, |r| r.sent_shards)).iter().sum();
    let little = Arc::new(SampleBudget::new(samples / 4));
    world.coordinator.select(&everything(), 1000, &little).await.expect_err("too little");
    let sent: usize = NODES.map(|node| world.cluster.with(node, |r| r.sent_shards)).iter().sum();
    assert!(sent - before < usize::from(SHARDS), "{} answers for shards came", sent - before);
    assert!(little.held() <= samples / 2, "{} samples were held", little.held());
}

#[tokio::test(start_paused = true)]
async fn labels_are_read_like_samples() {
    let world = World::new(&NODES, 3);
    world.write(3, 1, 1.0).await.expect("acked");
    settle().await;
    world.cluster.kill("c");
    let all = everything();
    let names = world.coordinator.label_names(&all, 9).await.expect("an answer");
    let both = Listed { items: vec!["__name__".into(), "i".into()], truncated: false };
    assert_eq!((names.value, names.completeness), (both, Completeness::Complete));
    let values = world.coordinator.label_values(&all, "i", 9).await.expect("an answer").value;
    assert_eq!((values.items.join(" "), values.truncated), ("0 1 2".into(), false));
    let sets = world.coordinator.series(&all, 9).await.expect("an answer");
    assert_eq!(sets.value.items, [labels_of(0), labels_of(1), labels_of(2)]);
    world.cluster.kill("b");
    assert_eq!(
        missing_shards(&world.coordinator.series(&all, 9).await.expect("an answer")),
        usize::from(SHARDS)
    );
}

#[tokio::test(start_paused = true)]
async fn a_limit_is_one_of_every_shard_and_said_to_have_bitten() {
    let world = World::new(&NODES, 3);
    world.write(100, 1, 1.0).await.expect("acked");
    settle().await;
    let listed = world.coordinator.series(&everything(), 3).await.expect("an answer").value;
    assert!(listed.truncated);
    assert!((3..=3 * usize::from(SHARDS)).contains(&listed.items.len()), "{} series", listed.items.len());
    let all = world.coordinator.series(&everything(), 100).await.expect("an answer").value;
    assert_eq!((all.items.len(), all.truncated), (100, false));
}

#[tokio::test(start_paused = true)]
async fn each_series_is_counted_once_by_whoever_answers() {
    let world = World::new(&["a", "b", "c", "d"], 3);
    world.write(200, 1, 1.0).await.expect("acked");
    settle().await;
    let whole = world.coordinator.cardinality(&tenant(), 10).await;
    assert_eq!((whole.value.series, whole.completeness), (200, Completeness::Complete));
    assert_eq!(whole.value.label_pairs.count(), 201);
    assert_eq!(whole.value.series_by_metric, [("m".to_owned(), 200)]);

    world.cluster.kill("b");
    world.cluster.kill("c");
    let others = world.coordinator.cardinality(&tenant(), 10).await;
    assert_eq!((others.value.series, others.completeness), (200, Completeness::Complete));
    world.cluster.with("d", |replica| replica.delay = Duration::from_secs(3600));
    let part = world.coordinator.cardinality(&tenant(), 10).await;
    assert!(part.value.series < 200 && missing_shards(&part) > 0, "{part:?}");
}

#[tokio::test(start_paused = true)]
async fn only_the_shards_of_the_tenant_are_asked_and_missed() {
    let nodes = ["a", "b", "c", "d", "e"];
    for size in 0..=SHARDS {
        let spreads = Spreads { default: Spread { written: 1, read: size }, ..Spreads::default() };
        let world = World::with_settings(&nodes, 3, Settings { spreads, ..Settings::default() });
        let subset = Subset::of(&tenant(), size, SHARDS);
        assert_eq!(world.coordinator.shards_read(&tenant()), subset);
        assert_eq!(world.coordinator.shards_written(&tenant()).len(), 1);
        world.cluster.kill("d");
        world.cluster.kill("e");
        let placement = world.placement.load();
        let is_dead = |node: &&saturn_ring::NodeId| ["d", "e"].contains(&node.as_str());
        let without_quorum =
            |shard: &usize| placement.shards[*shard].slots.iter().filter(is_dead).count() == 2;
        let hit = subset.ids().into_iter().filter(|shard| without_quorum(&usize::from(shard.0)));
        let hit: Vec<u16> = hit.map(|shard| shard.0).collect();
        let missed = match select(&world).await.completeness {
            Completeness::Complete => Vec::new(),
            Completeness::Partial { missing } => missing.iter().map(|missing| missing.shard.0).collect(),
        };
        assert_eq!(missed, hit, "{size} shards");
        let names = world.coordinator.label_names(&everything(), 10).await.expect("an answer");
        assert_eq!(missing_shards(&names), hit.len(), "{size} shards");
        let counted = world.coordinator.cardinality(&tenant(), 5).await;
        assert_eq!(counted.completeness, Completeness::Complete, "one replica of each shard lives");
    }
}
