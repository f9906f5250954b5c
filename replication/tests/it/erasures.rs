//! Erasing reaches every replica, or the answer names the ones that it did not reach.

use std::time::Duration;

use saturn_model::{Selection, TimestampMs};
use saturn_replication::{Erase, Settings};

use crate::cluster::{World, id, tenant};

fn everything() -> Erase {
    let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
    Erase::Series(vec![Selection { tenant: tenant(), matchers: Vec::new(), start, end }])
}

#[tokio::test(start_paused = true)]
async fn every_replica_erases() {
    let world = World::new(&["a", "b", "c", "d"], 3);
    world.write(20, 1, 1.0).await.expect("stored");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.copies(20, 1), [3; 20]);
    let erased = world.coordinator.erase(everything()).await;
    assert!(erased.missing.is_empty() && erased.series > 0, "{erased:?}");
    assert_eq!(world.copies(20, 1), [0; 20]);
}

#[tokio::test(start_paused = true)]
async fn who_did_not_is_named_and_again_is_harmless() {
    let settings = Settings { erase_timeout: Duration::from_secs(5), ..Settings::default() };
    let world = World::with_settings(&["a", "b", "c"], 3, settings);
    world.write(20, 1, 1.0).await.expect("stored");
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.cluster.with("b", |replica| replica.dead = true);
    world.cluster.with("c", |replica| replica.delay = Duration::from_secs(60));
    let erased = world.coordinator.erase(everything()).await;
    let named: Vec<_> = erased.missing.iter().map(|(node, _)| node.clone()).collect();
    assert_eq!(named, [id("b"), id("c")], "{erased:?}");
    world.cluster.with("b", |replica| replica.dead = false);
    world.cluster.with("c", |replica| replica.delay = Duration::from_millis(5));
    assert_eq!(world.coordinator.erase(everything()).await.missing, []);
    assert_eq!(world.copies(20, 1), [0; 20]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_without_the_placement_gets_it_first() {
    let world = World::new(&["a", "b", "c"], 3);
    world.write(20, 1, 1.0).await.expect("stored");
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.cluster.with("c", |replica| replica.placement = None);
    assert_eq!(world.coordinator.erase(everything()).await.missing, []);
    assert_eq!(world.copies(20, 1), [0; 20]);
}
