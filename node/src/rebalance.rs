//! Begins the moves that the member list asks for, a few at a time, and ends those whose target does not come back:
//! [`Rebalance`]. The leader of the member list does this.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use saturn_model::ShardId;
use saturn_ring::{Liveness, NodeId, Placement, Rebalance, RecordStep, ShardRecord};

use crate::authority::Authority;
use crate::moves::fence;
use crate::raft::GroupId;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the target of a move may be down before the move goes on without it.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// Runs for ever; does something only while this node leads the member list.
/// `started`: when this process did, as gossip counts from there.
pub(crate) async fn run(authority: Authority, started: Instant) {
    let busy: Arc<Mutex<HashSet<ShardId>>> = Arc::default();
    let mut desired = Desired::default();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let leads = authority.groups.standing(GroupId::CLUSTER).is_some_and(|standing| standing.leads);
        let is_paused = authority.groups.cluster_meta().is_none_or(|meta| meta.is_paused);
        if !leads {
            continue;
        }
        let placement = authority.placement.load();
        let Some(desired) = desired.of(&placement) else { continue };
        for (shard, next) in next_steps(&authority, &placement, desired, is_paused, started) {
            let record = placement.shards[usize::from(shard.0)].clone();
            // A shard whose group is slow to decide must not hold up the others.
            if !busy.lock().insert(shard) {
                continue;
            }
            let (authority, busy) = (authority.clone(), Arc::clone(&busy));
            tokio::spawn(async move {
                decide(&authority, shard, record, next).await;
                busy.lock().remove(&shard);
            });
        }
    }
}

/// What the member list asks for, formed anew only when the list has changed: that is dear.
#[derive(Default)]
struct Desired {
    version: u64,
    placement: Option<Placement>,
}

impl Desired {
    /// `None` when the list asks for the impossible.
    fn of(&mut self, placement: &Placement) -> Option<&Placement> {
        if self.version != placement.version {
            *self = Self { version: placement.version, placement: placement.desired().ok() };
        }
        self.placement.as_ref()
    }
}

/// What the moves under way need, and, unless the operator has paused that, the next moves.
fn next_steps(
    authority: &Authority,
    placement: &Placement,
    desired: &Placement,
    is_paused: bool,
    started: Instant,
) -> Vec<(ShardId, Rebalance)> {
    let view = authority.groups.control().view();
    let view = view.borrow();
    let is_alive = |node: &NodeId| view.member(node).is_some_and(|state| state.liveness == Liveness::Alive);
    let is_gone = |node: &NodeId| {
        view.member(node).is_none_or(|state| {
            state.liveness == Liveness::Down && started.elapsed().saturating_sub(state.since) > GONE_AFTER
        })
    };
    let mut steps = placement.moves_to_unstick(desired, is_gone);
    if !is_paused {
        steps.extend(placement.moves_to_begin(&placement.plan_towards(desired), is_alive));
    }
    steps
}

async fn decide(authority: &Authority, shard: ShardId, record: ShardRecord, next: Rebalance) {
    let step = match next {
        Rebalance::Begin { slot, to } => RecordStep::Begin { slot, to },
        Rebalance::Abort => RecordStep::Abort,
        Rebalance::Finish => RecordStep::Finish { fenced: fence(authority, shard, &record).await },
    };
    match authority.decide(shard, &record, step).await {
        Ok(next) => {
            // Both ends of a move should not wait for it to be heard of.
            let control = authority.groups.control();
            let pushes = next.writers().map(|node| control.push_record(node, shard, &next));
            futures::future::join_all(pushes).await;
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::debug!(%shard, error, "a step of a move was not decided");
        }
    }
}
