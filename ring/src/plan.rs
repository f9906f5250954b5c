//! From the placement that is to the one that the member list asks for: which slots must move, from whom to whom.
//!
//! Pure. A slot stays in its zone when its new node can be found there.

use std::collections::{BTreeMap, BTreeSet};

use saturn_model::ShardId;
use serde::Serialize;

use crate::{NodeId, Placement, PlacementError, ShardRecord, Zone};

/// A slot that is to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedMove {
    /// Of which shard.
    #[serde(serialize_with = "as_number")]
    pub shard: ShardId,
    /// Which slot of it.
    pub slot: u8,
    /// Who fills it.
    pub from: NodeId,
    /// Who shall.
    pub to: NodeId,
}

fn as_number<S: serde::Serializer>(shard: &ShardId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(shard.0)
}

impl Placement {
    /// What its member list asks for.
    ///
    /// # Errors
    /// If there are fewer nodes to hold shards than replicas.
    pub fn desired(&self) -> Result<Self, PlacementError> {
        Self::form(self.cluster, &self.members, self.shard_count(), self.replication_factor)
    }

    /// The moves that make this placement the desired one, by shard; moves under way count as done. None when the
    /// placement is as desired.
    ///
    /// # Errors
    /// As [`Placement::desired`].
    pub fn plan(&self) -> Result<Vec<PlannedMove>, PlacementError> {
        Ok(self.plan_towards(&self.desired()?))
    }

    /// The moves that make this placement the desired one, for who has that at hand: [`Placement::desired`] is dear.
    pub fn plan_towards(&self, desired: &Self) -> Vec<PlannedMove> {
        let zones: BTreeMap<&NodeId, &Zone> =
            self.members.iter().map(|member| (&member.id, &member.zone)).collect();
        let records = self.shards.iter().zip(&desired.shards);
        let moves = (0_u16..).map(ShardId).zip(records);
        moves.flat_map(|(shard, (now, then))| plan_shard(shard, now, then, &zones)).collect()
    }
}

fn plan_shard(
    shard: ShardId,
    now: &ShardRecord,
    then: &ShardRecord,
    zones: &BTreeMap<&NodeId, &Zone>,
) -> Vec<PlannedMove> {
    let will_be: Vec<(u8, &NodeId)> = (0_u8..)
        .zip(&now.slots)
        .map(|(slot, node)| match &now.moving {
            Some(moving) if moving.slot == slot => (slot, &moving.to),
            _ => (slot, node),
        })
        .collect();
    let held: BTreeSet<&NodeId> = will_be.iter().map(|(_, node)| *node).collect();
    let mut arriving: Vec<&NodeId> = then.slots.iter().filter(|node| !held.contains(node)).collect();
    let mut leaving: Vec<(u8, &NodeId)> =
        will_be.into_iter().filter(|(_, node)| !then.slots.contains(node)).collect();
    let mut moves = Vec::new();
    for same_zone in [true, false] {
        leaving.retain(|(slot, from)| {
            let fits = |to: &&NodeId| !same_zone || zones.get(from) == zones.get(*to);
            let Some(at) = arriving.iter().position(fits) else { return true };
            let to = arriving.remove(at).clone();
            moves.push(PlannedMove { shard, slot: *slot, from: (*from).clone(), to });
            false
        });
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Standing;
    use crate::testing::{member, placement};

    /// Carries the plan out; panics if it breaks a rule on the way.
    fn carry_out(placement: &mut Placement) -> usize {
        let plan = placement.plan().expect("enough nodes");
        for step in &plan {
            let record = &mut placement.shards[usize::from(step.shard.0)];
            assert_eq!(record.slots[usize::from(step.slot)], step.from);
            let begun = record.begin(step.slot, &step.to).expect("begins");
            let all: BTreeSet<NodeId> = begun.slots.iter().cloned().collect();
            let done = begun.activate(&all, &all).and_then(|active| active.finish(&all));
            *record = done.expect("finishes");
            placement.validate().expect("stays valid");
        }
        assert_eq!(placement.plan().expect("enough nodes"), []);
        plan.len()
    }

    #[test]
    fn nothing_moves_without_need() {
        assert_eq!(placement(&["a", "b", "c"], 3).plan().expect("enough nodes"), []);
    }

    #[test]
    fn a_joining_node_gets_its_share_from_its_zone() {
        let mut placement = placement(&["a", "b", "c"], 3);
        placement.members.push(member("a9", "a"));
        let plan = placement.plan().expect("enough nodes");
        assert!(
            plan.iter().all(|step| step.from.as_str().starts_with('a') && step.to.as_str().starts_with('a'))
        );
        // Its share is 24; the bound on loads moves a few more.
        let moved = carry_out(&mut placement);
        assert!((24..=34).contains(&moved), "{moved} of 96 moved");
        assert_eq!(placement.slots_of(&member("a9", "a").id), 24);
    }

    #[test]
    fn a_drained_node_holds_nothing_in_the_end() {
        let mut placement = placement(&["a", "b", "c"], 2);
        placement.members[0].standing = Standing::Draining;
        assert_eq!(carry_out(&mut placement), 48);
        assert_eq!(placement.slots_of(&placement.members[0].id), 0);
    }

    #[test]
    fn a_zone_that_goes_hands_its_slots_to_the_others() {
        let mut placement = placement(&["a", "b", "c"], 2);
        placement.members[0].standing = Standing::Draining;
        placement.members[1].standing = Standing::Draining;
        carry_out(&mut placement);
        assert_eq!(placement.slots_of(&placement.members[1].id), 0);
    }

    #[test]
    fn a_replaced_node_that_holds_shards_again_gets_its_share_beside_the_new_one() {
        let mut placement = placement(&["a", "b", "c"], 1);
        placement.members.push(member("a9", "a"));
        placement.members[0].standing = Standing::Draining;
        placement.members[3].stands_for = Some(placement.members[0].id.clone());
        assert_eq!(carry_out(&mut placement), 96);
        placement.members[0].standing = Standing::Active;
        assert_eq!(carry_out(&mut placement), 48);
        assert_eq!(placement.slots_of(&placement.members[0].id), 48);
    }

    #[test]
    fn a_move_under_way_is_not_planned_again() {
        let mut placement = placement(&["a", "b", "c"], 2);
        placement.members[0].standing = Standing::Draining;
        let plan = placement.plan().expect("enough nodes");
        let first = &plan[0];
        let record = &mut placement.shards[usize::from(first.shard.0)];
        *record = record.begin(first.slot, &first.to).expect("begins");
        assert_eq!(placement.plan().expect("enough nodes"), plan[1..]);
    }

    #[test]
    fn too_few_nodes_are_an_error() {
        let mut placement = placement(&["a", "b", "c"], 1);
        placement.members[0].standing = Standing::Draining;
        assert!(matches!(
            placement.plan(),
            Err(PlacementError::TooFewNodes { nodes: 2, replication_factor: 3 })
        ));
    }
}
