//! Who leads the member list begins moves, gives them up and finishes them without their target: the rules of
//! `node/src/rebalance.rs`. Two nodes may think that they lead.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use saturn_model::ShardId;
use saturn_ring::{
    MemberChange, MemberError, MoveStep, NodeId, Placement, PlannedMove, RecordStep, ShardRecord,
};

use crate::marks::Mark;
use crate::mover::Purpose;
use crate::node::Timer;
use crate::raft::After;
use crate::world::{MS, World};

const MOVES_MAX: usize = 16;
const MOVES_TO_NODE_MAX: usize = 4;

/// The plans of placements, which are the dearest part of a run: what is made once is kept.
#[derive(Default)]
pub(crate) struct Plans {
    /// By the version of the member list.
    desired: BTreeMap<u64, Option<Rc<Placement>>>,
    /// Of the placement of this fingerprint.
    last: Option<(u64, Rc<[PlannedMove]>)>,
}

impl Plans {
    /// What a placement's member list asks for, and the moves towards it.
    pub(crate) fn of(&mut self, placement: &Placement) -> (Option<Rc<Placement>>, Rc<[PlannedMove]>) {
        let make = || placement.desired().ok().map(Rc::new);
        let desired = self.desired.entry(placement.version).or_insert_with(make).clone();
        let fingerprint = placement.fingerprint();
        if self.last.as_ref().is_none_or(|(known, _)| *known != fingerprint) {
            let plan = desired.as_ref().map(|desired| placement.plan_towards(desired)).unwrap_or_default();
            self.last = Some((fingerprint, plan.into()));
        }
        let plan = self.last.as_ref().map(|(_, plan)| Rc::clone(plan)).unwrap_or_default();
        (desired, plan)
    }
}

enum Next {
    Begin { slot: u8, to: NodeId },
    Abort,
    Finish,
}

impl World {
    /// Who leads the member list: one of its council that most of the council hears.
    fn lead_cluster(&mut self) {
        let members: Vec<usize> =
            Placement::council(&self.cluster.members).iter().map(crate::world::index_of).collect();
        let leads = |world: &Self, node: usize| world.has_majority(node, &members);
        let now = self.raft.cluster_leaders.first().copied();
        if now.is_none_or(|node| !leads(self, node)) {
            let candidates: Vec<usize> = members.iter().copied().filter(|node| leads(self, *node)).collect();
            self.raft.cluster_leaders = self.random.raft.pick(&candidates).copied().into_iter().collect();
        }
    }

    pub(crate) fn rebalance(&mut self, node: usize) {
        self.lead_cluster();
        if !self.raft.cluster_leaders.contains(&node) || self.nodes[node].rebalancing > 0 {
            return;
        }
        if self.raft.cluster_leaders.len() > 1 {
            self.see(Mark::TwoRebalancers);
        }
        let placement = self.nodes[node].placement.load();
        let (desired, plan) = self.plans.of(&placement);
        let mut steps = self.unstick(node, &placement, desired.as_deref());
        if !self.cluster.is_paused {
            steps.extend(self.plan_moves(node, &placement, &plan));
        }
        self.nodes[node].rebalancing = steps.len();
        for (shard, record, next) in steps {
            let step = match next {
                Next::Begin { slot, to } => RecordStep::Begin { slot, to },
                Next::Abort => RecordStep::Abort,
                Next::Finish => {
                    self.fence_nodes(node, shard, record, Purpose::FinishWithout);
                    continue;
                }
            };
            match record.after(&step) {
                Ok(next) => self.propose(node, shard, record.epoch, step, After::Rebalance { shard, next }),
                Err(_) => self.nodes[node].rebalancing -= 1,
            }
        }
    }

    /// The shard's nodes were told: the move ends without its target.
    pub(crate) fn finish_without(
        &mut self,
        node: usize,
        shard: ShardId,
        record: &ShardRecord,
        fenced: BTreeSet<NodeId>,
    ) {
        match record.finish(&fenced) {
            Ok(next) => {
                self.see(Mark::FinishedWithoutItsTarget);
                let after = After::Rebalance { shard, next };
                self.propose(node, shard, record.epoch, RecordStep::Finish { fenced }, after);
            }
            Err(_) => self.nodes[node].rebalancing -= 1,
        }
    }

    /// The next moves of the plan, within the budget.
    fn plan_moves(
        &self,
        node: usize,
        placement: &Placement,
        plan: &[PlannedMove],
    ) -> Vec<(ShardId, ShardRecord, Next)> {
        let mut incoming: BTreeMap<NodeId, usize> = BTreeMap::new();
        let moving = placement.shards.iter().filter_map(|record| record.moving.as_ref());
        moving.for_each(|moving| *incoming.entry(moving.to.clone()).or_default() += 1);
        let mut under_way: usize = incoming.values().sum();
        let mut steps: Vec<(ShardId, ShardRecord, Next)> = Vec::new();
        let (urgent, rest): (Vec<_>, Vec<_>) =
            plan.iter().cloned().partition(|planned| !self.sees_alive(node, &planned.from));
        for planned in urgent.into_iter().chain(rest) {
            if under_way >= MOVES_MAX {
                break;
            }
            let record = &placement.shards[usize::from(planned.shard.0)];
            let to_node = incoming.entry(planned.to.clone()).or_default();
            let is_busy = record.moving.is_some() || steps.iter().any(|(shard, ..)| *shard == planned.shard);
            if is_busy || *to_node >= MOVES_TO_NODE_MAX || !self.sees_alive(node, &planned.to) {
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
    fn unstick(
        &self,
        node: usize,
        placement: &Placement,
        desired: Option<&Placement>,
    ) -> Vec<(ShardId, ShardRecord, Next)> {
        let Some(desired) = desired else { return Vec::new() };
        let records = (0..).map(ShardId).zip(placement.shards.iter().zip(&desired.shards));
        records
            .filter_map(|(shard, (record, wanted))| {
                let moving = record.moving.as_ref()?;
                let is_gone = self.sees_gone(node, &moving.to);
                let next = match moving.step {
                    MoveStep::Begun if is_gone || !wanted.slots.contains(&moving.to) => Next::Abort,
                    MoveStep::Activated if is_gone => Next::Finish,
                    MoveStep::Begun | MoveStep::Activated => return None,
                };
                Some((shard, record.clone(), next))
            })
            .collect()
    }

    /// Has a change of the member list decided. Its nodes hear of it in time.
    pub(crate) fn decide_members(&mut self, change: MemberChange) -> Result<(), MemberError> {
        let at_ms = (self.now / MS) as i64;
        self.remark(|| format!("members: {change:?}"));
        self.cluster.apply(saturn_ring::ClusterCommand { at_ms, change })?;
        let (version, members) = (self.cluster.version, self.cluster.members.clone());
        self.note(0, "changes members", version, members.len() as u64);
        for node in 0..self.nodes.len() {
            // Raft sees to it that the decision arrives once the network is well.
            if self.healed || self.random.raft.percent(70) {
                let list = saturn_replication::MemberList { version, members: members.clone() };
                self.deliver_decision(node, Timer::Members(list));
            }
        }
        Ok(())
    }
}
