//! What was deleted reaches every replica, or the answer names those that it did not reach.

use std::time::Duration;

use saturn_model::ShardId;
use saturn_replication::Settings;
use saturn_ring::ShardRecord;
use uuid::Uuid;

use crate::cluster::{World, id};

/// The records of all shards once something was deleted in each.
fn deleted(world: &World) -> Vec<(ShardId, ShardRecord)> {
    let placement = world.placement.load();
    let next = |record: &ShardRecord| record.delete(Uuid::from_u128(1), Vec::new()).expect("deletes");
    (0..).map(ShardId).zip(placement.shards.iter().map(next)).collect()
}

#[tokio::test(start_paused = true)]
async fn every_replica_adopts_a_deletion() {
    let world = World::new(&["a", "b", "c", "d"], 3);
    let records = deleted(&world);
    assert_eq!(world.coordinator.spread(&records).await, []);
    for node in ["b", "c", "d"] {
        let held = world.cluster.with(node, |replica| replica.placement.clone()).expect("it was pushed");
        assert!(held.shards.iter().eq(records.iter().map(|(_, record)| record)), "{node}");
    }
    let mine = world.placement.load();
    assert!(mine.shards.iter().all(|record| record.deletions.len() == 1), "this node as well");
}

#[tokio::test(start_paused = true)]
async fn who_did_not_is_named_and_again_is_harmless() {
    let settings = Settings { delete_timeout: Duration::from_secs(5), ..Settings::default() };
    let world = World::with_settings(&["a", "b", "c"], 3, settings);
    world.cluster.with("b", |replica| replica.dead = true);
    world.cluster.with("c", |replica| replica.delay = Duration::from_secs(60));
    let records = deleted(&world);
    for missing in [world.coordinator.spread(&records).await, world.coordinator.clean_tombstones().await] {
        let named: Vec<_> = missing.iter().map(|(node, _)| node.clone()).collect();
        assert_eq!(named, [id("b"), id("c")], "{missing:?}");
    }
    world.cluster.with("b", |replica| replica.dead = false);
    world.cluster.with("c", |replica| replica.delay = Duration::from_millis(5));
    assert_eq!(world.coordinator.spread(&records).await, []);
    assert_eq!(world.coordinator.clean_tombstones().await, []);
}
