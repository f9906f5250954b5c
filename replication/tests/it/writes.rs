//! When a write is acknowledged, and what its replicas are sent.

use std::sync::atomic::Ordering;
use std::time::Duration;

use saturn_replication::{BatchReply, Settings, WriteError};
use saturn_ring::Epoch;
use tokio::time::Instant;

use crate::cluster::{World, request};

const NODES: [&str; 3] = ["a", "b", "c"];
const SERIES: u32 = 100;

#[tokio::test(start_paused = true)]
async fn all_replicas_get_everything() {
    let world = World::new(&NODES, 3);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.copies(SERIES, 1), [3; SERIES as usize]);
    assert_eq!(world.metric("writes_total{outcome=\"acked\"}"), 1);
    world.coordinator.write(Vec::new(), request(0, 1, 1.0).1).await.expect("nothing to store");
}

#[tokio::test(start_paused = true)]
async fn labels_travel_only_to_those_who_do_not_know_them() {
    let world = World::new(&NODES, 3);
    let (writes, labels) = request(SERIES, 1, 1.0);
    world.coordinator.write(writes, labels.clone()).await.expect("acked");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(labels.asked.load(Ordering::SeqCst), 3 * SERIES);
    world.cluster.with("b", |replica| replica.series.clear());
    let (writes, labels) = request(SERIES, 2, 1.0);
    world.coordinator.write(writes, labels.clone()).await.expect("acked");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(labels.asked.load(Ordering::SeqCst), SERIES, "only b had forgotten");
    assert_eq!(world.copies(SERIES, 2), [3; SERIES as usize]);
    let requests: Vec<u32> = NODES.map(|node| world.cluster.with(node, |r| r.appends)).into();
    assert_eq!(requests, [3, 4, 3], "one request for each node, one more for labels");
    assert_eq!(world.metric("resent_series_total"), u64::from(4 * SERIES));
}

#[tokio::test(start_paused = true)]
async fn one_dead_replica_does_not_matter() {
    let world = World::new(&NODES, 3);
    world.cluster.kill("b");
    world.write(SERIES, 1, 1.0).await.expect("acked");
    assert_eq!(world.copies(SERIES, 1), [2; SERIES as usize]);
    assert_eq!(world.metric("append_errors_total{kind=\"unreachable\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn two_dead_replicas_refuse_at_once() {
    let world = World::new(&NODES, 3);
    world.cluster.kill("b");
    world.cluster.kill("c");
    let start = Instant::now();
    let (writes, labels) = request(SERIES, 1, 1.0);
    let WriteError::NoQuorum { missing } =
        world.coordinator.write(writes, labels).await.expect_err("no quorum");
    assert_eq!(missing.len(), 8, "every shard");
    assert!(missing[0].reason.contains("b: unreachable: connection refused"), "{}", missing[0].reason);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(world.metric("writes_total{outcome=\"no_quorum\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_majority_ends_at_the_deadline() {
    let world = World::new(&NODES, 3);
    for node in ["b", "c"] {
        world.cluster.with(node, |replica| replica.delay = Duration::from_secs(100));
    }
    let start = Instant::now();
    let error = world.write(SERIES, 1, 1.0).await.expect_err("no quorum");
    assert!(error.contains("no answer within 9s"), "{error}");
    assert_eq!(start.elapsed().as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn the_slow_replica_finishes_in_the_background_or_is_given_up() {
    let world = World::new(&NODES, 3);
    world.write(SERIES, 1, 1.0).await.expect("acked, and all know the labels");
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.cluster.with("c", |replica| replica.delay = Duration::from_secs(1));
    let start = Instant::now();
    world.write(SERIES, 2, 1.0).await.expect("acked");
    assert!(start.elapsed() < Duration::from_millis(100));
    assert_eq!(world.copies(SERIES, 2), [2; SERIES as usize]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.copies(SERIES, 2), [3; SERIES as usize]);

    world.cluster.with("c", |replica| replica.delay = Duration::from_secs(3));
    world.write(SERIES, 3, 1.0).await.expect("acked");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.copies(SERIES, 3), [2; SERIES as usize]);
    assert_eq!(world.metric("background_drops_total{reason=\"timeout\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn the_background_is_bounded() {
    let settings = Settings { background_bytes_max: 10 << 10, ..Settings::default() };
    let world = World::with_settings(&NODES, 3, settings);
    world.cluster.with("c", |replica| replica.delay = Duration::from_secs(1));
    // 3.6 KB each: two fit.
    for timestamp in 1..=3 {
        world.write(SERIES, timestamp, 1.0).await.expect("acked");
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.metric("background_drops_total{reason=\"budget\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_nothing_running() {
    let world = World::new(&NODES, 3);
    for node in NODES {
        world.cluster.with(node, |replica| replica.delay = Duration::from_secs(100));
    }
    let write = world.write(SERIES, 1, 1.0);
    assert!(tokio::time::timeout(Duration::from_secs(1), write).await.is_err());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(world.copies(SERIES, 1), [0; SERIES as usize]);
    assert_eq!(world.metric("background_drops_total{reason=\"timeout\"}"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stores_only_part_does_not_count() {
    let world = World::new(&NODES, 3);
    world.cluster.with("b", |replica| replica.append_reply = Some(BatchReply::Failed("disk full".into())));
    world.cluster.with("c", |replica| {
        replica.append_reply = Some(BatchReply::Stored { unknown: vec![0] });
    });
    let error = world.write(SERIES, 1, 1.0).await.expect_err("no quorum");
    assert!(error.contains("b: disk full; c: asks for labels that it was given"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn nonsense_from_a_replica_is_a_failure() {
    let world = World::new(&NODES, 3);
    world.cluster.with("b", |replica| {
        replica.append_reply = Some(BatchReply::Stored { unknown: vec![7, 3, 4_000_000] });
    });
    world.write(SERIES, 1, 1.0).await.expect("the others suffice");
    world.cluster.kill("c");
    let error = world.write(SERIES, 2, 1.0).await.expect_err("no quorum");
    assert!(error.contains("asks for labels of series that the batch does not have"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_coordinator_is_refused_learns_and_retries() {
    let world = World::new(&NODES, 3);
    world.cluster.set_epoch(&NODES, 4);
    world.write(SERIES, 1, 1.0).await.expect("acked under the newer records");
    assert_eq!(world.placement.load().shards[3].epoch, Epoch(4));
    assert!(world.copies(SERIES, 1).iter().all(|copies| *copies >= 2));
    assert!(world.metric("append_errors_total{kind=\"stale\"}") >= 8);
    let before = world.cluster.with("a", |replica| replica.appends);
    world.write(SERIES, 2, 1.0).await.expect("acked");
    assert_eq!(world.cluster.with("a", |replica| replica.appends), before + 1, "no retry any more");
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_of_different_epochs_are_not_added_up() {
    let world = World::new(&NODES, 3);
    world.cluster.kill("c");
    world.cluster.set_epoch(&["b"], 4);
    // b refuses the old epoch; a takes the new one only because it is handed the placement.
    world.write(SERIES, 1, 1.0).await.expect("acked");
    assert!(world.cluster.with("a", |replica| replica.pushes) > 0);
    assert_eq!(world.copies(SERIES, 1), [2; SERIES as usize]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_behind_is_handed_the_placement() {
    let world = World::new(&NODES, 3);
    world.cluster.kill("c");
    world.cluster.with("b", |replica| replica.placement = None);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    assert_eq!(world.cluster.with("b", |replica| replica.pushes), 1, "once for all shards");
    assert_eq!(world.copies(SERIES, 1), [2; SERIES as usize]);
}

#[tokio::test(start_paused = true)]
async fn a_single_node_acks_alone() {
    let world = World::new(&["a"], 1);
    world.write(SERIES, 1, 1.0).await.expect("acked");
    assert_eq!(world.copies(SERIES, 1), [1; SERIES as usize]);
    world.cluster.kill("a");
    world.write(SERIES, 2, 1.0).await.expect_err("no quorum");
}

#[tokio::test(start_paused = true)]
async fn a_write_is_acked_if_and_only_if_two_replicas_hold_every_series() {
    const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];
    for case in 0..243_u32 {
        let world = World::new(&FIVE, 3);
        let mut digits = case;
        for node in FIVE {
            world.cluster.with(node, |replica| match digits % 3 {
                0 => {}
                1 => replica.dead = true,
                _ => replica.append_reply = Some(BatchReply::Failed("read-only".into())),
            });
            digits /= 3;
        }
        let result = world.write(SERIES, 1, 1.0).await;
        let copies = world.copies(SERIES, 1);
        if result.is_ok() {
            assert!(copies.iter().all(|copies| *copies >= 2), "case {case}: {copies:?}");
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let copies = world.copies(SERIES, 1);
        assert_eq!(result.is_ok(), copies.iter().all(|copies| *copies >= 2), "case {case}: {copies:?}");
    }
}
