//! Begins the moves that the member list asks for, a few at a time. The leader of the member list does this.
//!
//! A member that is merely down is no reason to move anything: only the member list is. A move to a node that does
//! not come back is given up, or finished without it when it has begun to answer reads.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use saturn_model::ShardId;
use saturn_ring::{Liveness, MoveStep, NodeId, Placement, PlannedMove, RecordStep, ShardRecord};

use crate::authority::Authority;
use crate::moves::fence;
use crate::raft::GroupId;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Moves in the cluster at a time.
const MOVES_MAX: usize = 16;
/// Moves to one node at a time.
const MOVES_TO_NODE_MAX: usize = 4;
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
        let mut steps = unstick(&authority, &placement, desired, started);
        if !is_paused {
            steps.extend(begin(&authority, &placement, desired));
        }
        for (shard, record, next) in steps {
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

/// What is to be decided about a shard, following a record.
type Step = (ShardId, ShardRecord, Next);

enum Next {
    Begin { slot: u8, to: NodeId },
    Abort,
    Finish,
}

async fn decide(authority: &Authority, shard: ShardId, record: ShardRecord, next: Next) {
    let step = match next {
        Next::Begin { slot, to } => RecordStep::Begin { slot, to },
        Next::Abort => RecordStep::Abort,
        Next::Finish => RecordStep::Finish { fenced: fence(authority, shard, &record).await },
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

/// The next moves of the plan, within the budget.
fn begin(authority: &Authority, placement: &Placement, desired: &Placement) -> Vec<Step> {
    let plan = placement.plan_towards(desired);
    let view = authority.groups.control().view();
    let view = view.borrow();
    let alive = |node: &NodeId| view.member(node).is_some_and(|state| state.liveness == Liveness::Alive);
    let moving = placement.shards.iter().filter_map(|record| record.moving.as_ref());
    let mut incoming: HashMap<NodeId, usize> = HashMap::new();
    moving.for_each(|moving| *incoming.entry(moving.to.clone()).or_default() += 1);
    let mut under_way: usize = incoming.values().sum();
    let mut steps: Vec<Step> = Vec::new();
    let (urgent, rest): (Vec<PlannedMove>, Vec<PlannedMove>) =
        plan.into_iter().partition(|planned| !alive(&planned.from));
    for planned in urgent.into_iter().chain(rest) {
        if under_way >= MOVES_MAX {
            break;
        }
        let record = &placement.shards[usize::from(planned.shard.0)];
        let to_node = incoming.entry(planned.to.clone()).or_default();
        let is_busy = record.moving.is_some() || steps.iter().any(|(shard, ..)| *shard == planned.shard);
        if is_busy || *to_node >= MOVES_TO_NODE_MAX || !alive(&planned.to) {
            continue;
        }
        *to_node += 1;
        under_way += 1;
        let next = Next::Begin { slot: planned.slot, to: planned.to };
        steps.push((planned.shard, record.clone(), next));
    }
    steps
}

/// What becomes of moves whose target does not come back, or is not wanted any more.
fn unstick(authority: &Authority, placement: &Placement, desired: &Placement, started: Instant) -> Vec<Step> {
    let view = authority.groups.control().view();
    let view = view.borrow();
    let is_gone = |node: &NodeId| {
        view.member(node).is_none_or(|state| {
            state.liveness == Liveness::Down && started.elapsed().saturating_sub(state.since) > GONE_AFTER
        })
    };
    let records = (0..).map(ShardId).zip(placement.shards.iter().zip(&desired.shards));
    records
        .filter_map(|(shard, (record, wanted))| {
            let moving = record.moving.as_ref()?;
            let is_unwanted = !wanted.slots.contains(&moving.to);
            let next = match moving.step {
                MoveStep::Begun if is_unwanted || is_gone(&moving.to) => Next::Abort,
                MoveStep::Activated if is_gone(&moving.to) => Next::Finish,
                MoveStep::Begun | MoveStep::Activated => return None,
            };
            Some((shard, record.clone(), next))
        })
        .collect()
}
