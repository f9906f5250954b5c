//! What the leader of the member list does next about moves: which to begin, within a budget, and what becomes of those
//! whose target does not come back.
//!
//! Pure. A member that is merely down is no reason to move anything: only the member list is.

use std::collections::{BTreeMap, BTreeSet};

use saturn_model::ShardId;

use crate::{MoveStep, NodeId, Placement, PlannedMove};

/// Moves in the cluster at a time.
const MOVES_MAX: usize = 16;
/// Moves to one node at a time.
const MOVES_TO_NODE_MAX: usize = 4;

/// What is to be decided about a shard's move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// Move this slot to this node.
    Begin {
        /// Which slot of the shard.
        slot: u8,
        /// Who is to fill it.
        to: NodeId,
    },
    /// Give the move up.
    Abort,
    /// End the move without its target, which has begun to answer reads: the shard's other nodes are to be fenced
    /// first.
    Finish,
}

impl Placement {
    /// The next moves of a plan of [`Placement::plan_towards`], within the budget, by shard; those away from nodes that
    /// are not alive first, none to such a node.
    pub fn moves_to_begin(
        &self,
        plan: &[PlannedMove],
        is_alive: impl Fn(&NodeId) -> bool,
    ) -> Vec<(ShardId, Rebalance)> {
        let mut incoming: BTreeMap<&NodeId, usize> = BTreeMap::new();
        for moving in self.shards.iter().filter_map(|record| record.moving.as_ref()) {
            *incoming.entry(&moving.to).or_default() += 1;
        }
        let mut under_way: usize = incoming.values().sum();
        let mut chosen: BTreeSet<ShardId> = BTreeSet::new();
        let mut begun = Vec::new();
        let (urgent, rest): (Vec<_>, Vec<_>) = plan.iter().partition(|planned| !is_alive(&planned.from));
        for planned in urgent.into_iter().chain(rest) {
            if under_way >= MOVES_MAX {
                break;
            }
            let is_busy = self.shards[usize::from(planned.shard.0)].moving.is_some();
            let to_node = incoming.entry(&planned.to).or_default();
            if is_busy || *to_node >= MOVES_TO_NODE_MAX || !is_alive(&planned.to) {
                continue;
            }
            if chosen.insert(planned.shard) {
                *to_node += 1;
                under_way += 1;
                let next = Rebalance::Begin { slot: planned.slot, to: planned.to.clone() };
                begun.push((planned.shard, next));
            }
        }
        begun
    }

    /// What becomes of the moves under way whose target does not come back, or is not wanted any more.
    ///
    /// `desired` is what [`Placement::desired`] answers.
    pub fn moves_to_unstick(
        &self,
        desired: &Self,
        is_gone: impl Fn(&NodeId) -> bool,
    ) -> Vec<(ShardId, Rebalance)> {
        let records = (0..).map(ShardId).zip(self.shards.iter().zip(&desired.shards));
        let unstuck = records.filter_map(|(shard, (record, wanted))| {
            let moving = record.moving.as_ref()?;
            let is_gone = is_gone(&moving.to);
            match moving.step {
                MoveStep::Begun if is_gone || !wanted.slots.contains(&moving.to) => {
                    Some((shard, Rebalance::Abort))
                }
                MoveStep::Activated if is_gone => Some((shard, Rebalance::Finish)),
                MoveStep::Begun | MoveStep::Activated => None,
            }
        });
        unstuck.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{member, placement};

    fn begin_all(placement: &mut Placement, steps: Vec<(ShardId, Rebalance)>) {
        for (shard, step) in steps {
            let Rebalance::Begin { slot, to } = step else { panic!("{step:?}") };
            let record = &mut placement.shards[usize::from(shard.0)];
            *record = record.begin(slot, &to).expect("begins");
        }
    }

    #[test]
    fn a_node_is_sent_four_shards_at_a_time() {
        let mut placement = placement(&["a", "b", "c"], 3);
        placement.members.push(member("a9", "a"));
        let plan = placement.plan().expect("enough nodes");
        let target = member("a9", "a").id;
        let sent = |steps: &[(ShardId, Rebalance)]| {
            let to_target = |step: &Rebalance| matches!(step, Rebalance::Begin { to, .. } if *to == target);
            steps.iter().filter(|(_, step)| to_target(step)).count()
        };
        let begun = placement.moves_to_begin(&plan, |_| true);
        assert_eq!(sent(&begun), MOVES_TO_NODE_MAX);
        begin_all(&mut placement, begun);
        let plan = placement.plan().expect("enough nodes");
        assert_eq!(sent(&placement.moves_to_begin(&plan, |_| true)), 0);
    }

    #[test]
    fn the_cluster_moves_sixteen_shards_at_a_time_and_each_shard_once() {
        let mut placement = placement(&["a", "b", "c"], 3);
        for zone in ["a", "b", "c"] {
            (6..9).for_each(|i| placement.members.push(member(&format!("{zone}{i}"), zone)));
        }
        let plan = placement.plan().expect("enough nodes");
        let begun = placement.moves_to_begin(&plan, |_| true);
        assert_eq!(begun.len(), MOVES_MAX);
        let shards: BTreeSet<ShardId> = begun.iter().map(|(shard, _)| *shard).collect();
        assert_eq!(shards.len(), MOVES_MAX);
    }

    #[test]
    fn nothing_moves_to_a_node_that_is_down_and_what_moves_off_one_goes_first() {
        let mut placement = placement(&["a", "b", "c"], 3);
        placement.members.push(member("a9", "a"));
        let plan = placement.plan().expect("enough nodes");
        let down = member("a2", "a").id;
        let begun = placement.moves_to_begin(&plan, |node| *node != down);
        let moves: Vec<&PlannedMove> = begun
            .iter()
            .map(|(shard, _)| plan.iter().find(|planned| planned.shard == *shard).expect("of the plan"))
            .collect();
        let to_target = moves.iter().filter(|planned| planned.to.as_str() == "a9");
        assert!(
            to_target.clone().count() == MOVES_TO_NODE_MAX
                && to_target.clone().all(|planned| planned.from == down)
        );
        assert!(moves.iter().all(|planned| planned.to != down));
        assert!(plan.iter().any(|planned| planned.to == down), "the plan tests nothing");
    }

    /// Two shards on their way to a new node: one is not read from there yet, the other one is.
    fn begun_and_activated() -> (Placement, ShardId, ShardId) {
        let mut placement = placement(&["a", "b", "c"], 3);
        placement.members.push(member("a9", "a"));
        let plan = placement.plan().expect("enough nodes");
        let begun = placement.moves_to_begin(&plan, |node| node.as_str() != "a2");
        let to_target = |(_, step): &&(ShardId, Rebalance)| matches!(step, Rebalance::Begin { to, .. } if to.as_str() == "a9");
        let shards: Vec<ShardId> = begun.iter().filter(to_target).map(|(shard, _)| *shard).collect();
        begin_all(&mut placement, begun);
        let record = &mut placement.shards[usize::from(shards[1].0)];
        let all: BTreeSet<NodeId> = record.slots.iter().cloned().collect();
        *record = record.activate(&all, &all).expect("activates");
        (placement, shards[0], shards[1])
    }

    fn unstuck(placement: &Placement, gone: &str) -> BTreeMap<ShardId, Rebalance> {
        let desired = placement.desired().expect("enough nodes");
        placement.moves_to_unstick(&desired, |node| node.as_str() == gone).into_iter().collect()
    }

    #[test]
    fn a_move_to_a_lost_node_is_given_up_before_it_is_read_from_and_finished_after() {
        let (placement, begun, activated) = begun_and_activated();
        assert_eq!(unstuck(&placement, "nobody"), BTreeMap::new());
        let unstuck = unstuck(&placement, "a9");
        assert_eq!(unstuck[&begun], Rebalance::Abort);
        assert_eq!(unstuck[&activated], Rebalance::Finish);
    }

    #[test]
    fn a_move_to_a_node_that_is_not_wanted_any_more_is_given_up_but_not_once_it_is_read_from() {
        let (mut placement, begun, activated) = begun_and_activated();
        placement.members.retain(|known| known.id.as_str() != "a9");
        let unstuck = unstuck(&placement, "nobody");
        assert_eq!(unstuck[&begun], Rebalance::Abort);
        assert_eq!(unstuck.get(&activated), None);
    }
}
