//! Who leads the member list begins moves, gives them up and finishes them without their target, as
//! `node/src/rebalance.rs` does. Two nodes may think that they lead.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use saturn_model::ShardId;
use saturn_ring::{
    MemberChange, MemberError, NodeId, Placement, PlannedMove, Rebalance, RecordStep, ShardRecord,
};

use crate::marks::Mark;
use crate::mover::Purpose;
use crate::node::Timer;
use crate::raft::After;
use crate::world::{MS, World};

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
        let Some(desired) = desired else { return };
        let mut steps = placement.moves_to_unstick(&desired, |target| self.sees_gone(node, target));
        if !self.cluster.is_paused {
            steps.extend(placement.moves_to_begin(&plan, |other| self.sees_alive(node, other)));
        }
        self.nodes[node].rebalancing = steps.len();
        for (shard, next) in steps {
            let record = placement.shards[usize::from(shard.0)].clone();
            let step = match next {
                Rebalance::Begin { slot, to } => RecordStep::Begin { slot, to },
                Rebalance::Abort => RecordStep::Abort,
                Rebalance::Finish => {
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
