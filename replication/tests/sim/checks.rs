//! What must always be true of the simulated cluster, and what must become true once the faults have ended.

use std::collections::BTreeSet;

use saturn_model::ShardId;
use saturn_ring::{ClusterId, Epoch, MoveStep, NodeId, Placement, RecordStep, ShardCommand, ShardRecord};
use uuid::Uuid;

use crate::bits::Bits;
use crate::world::{REST_BY, World, index_of};

/// Final reads in vain, after which something is wrong.
const FINAL_READS_MAX: u32 = 20;

/// The reads after everything has come to rest.
#[derive(Default)]
pub(crate) struct FinalReads {
    open: BTreeSet<usize>,
    in_vain: u32,
    begun: bool,
}

impl World {
    /// No acknowledged write is lost or hidden: of the nodes that answer reads of the shard, as decided, no quorum is
    /// without it on its disks. A lost disk answers no reads.
    pub(crate) fn check_shard(&mut self, shard: ShardId) {
        let record = self.raft.record(shard);
        let index = usize::from(shard.0);
        let readers: Vec<usize> =
            record.readers().map(index_of).filter(|node| !self.nodes[*node].lost).collect();
        let acked = &self.clients.acked[index];
        let held = |node: usize| -> &Bits { &self.nodes[node].durable[index] };
        let mut found = None;
        if record.quorum() == 1 {
            found = readers.iter().find_map(|a| Some((acked.first_missing_in(&[held(*a)])?, vec![*a])));
        } else {
            for (at, a) in readers.iter().enumerate() {
                for b in &readers[at + 1..] {
                    if let Some(sample) = acked.first_missing_in(&[held(*a), held(*b)]) {
                        found = Some((sample, vec![*a, *b]));
                    }
                }
            }
        }
        if let Some((sample, nodes)) = found {
            let record = record.clone();
            self.fail(format!(
                "sample {sample} of shard {shard} was acknowledged, and the nodes {nodes:?}, a quorum of its readers, \
                 do not have it: {record:?}"
            ));
        }
    }

    /// A node never acts under an older record than it did before.
    pub(crate) fn act_under(&mut self, node: usize, shard: ShardId, epoch: Epoch) {
        let acted = &mut self.nodes[node].acted[usize::from(shard.0)];
        let before = *acted;
        *acted = before.max(epoch);
        if epoch < before {
            self.fail(format!("n{node} served shard {shard} under {epoch}, after it did under {before}"));
        }
    }

    /// A shard's record changes by one legal step at a time.
    pub(crate) fn check_step(
        &mut self,
        shard: ShardId,
        before: &ShardRecord,
        after: &ShardRecord,
        command: &ShardCommand,
    ) {
        let ShardCommand::Step { step, .. } = command else {
            return self.check_deletion(shard, before, after);
        };
        if let RecordStep::Settle { .. } = step {
            self.see(crate::marks::Mark::DeletionSettled);
            return self.check_deletion(shard, before, after);
        }
        if before.slots.len() == 1 && matches!(step, RecordStep::Finish { .. }) {
            self.see(crate::marks::Mark::SingleReplicaMoved);
        }
        self.see(match step {
            RecordStep::Begin { .. } => crate::marks::Mark::MoveBegun,
            RecordStep::Activate { .. } => crate::marks::Mark::MoveActivated,
            RecordStep::Finish { .. } => crate::marks::Mark::MoveFinished,
            RecordStep::Abort => crate::marks::Mark::MoveAborted,
            RecordStep::Settle { .. } => return,
        });
        let step_of = |record: &ShardRecord| record.moving.as_ref().map(|moving| moving.step);
        let path = (step_of(before), step_of(after));
        let changed: Vec<(&NodeId, &NodeId)> =
            before.slots.iter().zip(&after.slots).filter(|(a, b)| a != b).collect();
        let is_same_move = |before: &ShardRecord| {
            let pair = before.moving.as_ref().zip(after.moving.as_ref());
            pair.is_some_and(|(a, b)| (a.slot, &a.to) == (b.slot, &b.to))
        };
        let is_legal = match path {
            (None, Some(MoveStep::Begun)) | (Some(MoveStep::Begun), None) => changed.is_empty(),
            (Some(MoveStep::Begun), Some(MoveStep::Activated)) => changed.is_empty() && is_same_move(before),
            (Some(MoveStep::Activated), None) => {
                let moving = before.moving.as_ref().expect("it has a step");
                let from = &before.slots[usize::from(moving.slot)];
                changed == [(from, &moving.to)]
            }
            _ => false,
        };
        let distinct: BTreeSet<&NodeId> = after.writers().collect();
        let is_whole = distinct.len() == after.writers().count() && after.slots.len() == before.slots.len();
        if !is_legal || !is_whole || after.epoch != before.epoch.next() {
            self.fail(format!("shard {shard}: {after:?} does not follow {before:?}"));
        }
    }

    /// Whether all moves are done, and then whether every member answers with all that was acknowledged.
    pub(crate) fn check_rest(&mut self) {
        let placement = Placement {
            cluster: ClusterId(Uuid::from_u128(7)),
            version: self.cluster.version,
            replication_factor: self.params.replication_factor,
            members: self.cluster.members.clone(),
            shards: self.raft.records().cloned().collect(),
        };
        let moving = placement.shards.iter().filter(|record| record.moving.is_some()).count();
        let (desired, plan) = self.plans.of(&placement);
        let is_planned = desired.is_some() && plan.is_empty();
        let is_still = self.now > crate::world::HEAL_AT + 12 * crate::world::SECOND;
        if moving > 0 || !is_planned || self.misses_a_disk() || !is_still {
            if self.now > REST_BY && self.bug.is_some() {
                // A planted bug must be seen in what is lost or hidden.
                self.at_rest = true;
            } else if self.now > REST_BY {
                self.fail(format!("{moving} moves go on and the plan is {plan:?}, long after all faults"));
            }
            return;
        }
        if self.final_reads.begun {
            if self.now > REST_BY {
                self.fail("the last reads do not end".into());
            }
            return;
        }
        self.final_reads.begun = true;
        let members: Vec<usize> = self.cluster.members.iter().map(|member| index_of(&member.id)).collect();
        let members: Vec<usize> = members.into_iter().filter(|node| self.nodes[*node].up).collect();
        self.final_reads.open = members.iter().copied().collect();
        for node in members {
            self.begin_read(node, true);
        }
    }

    /// A last read has ended; a complete one was compared already.
    pub(crate) fn final_read_ended(&mut self, node: usize, is_complete: bool) {
        if is_complete {
            self.final_reads.open.remove(&node);
            self.at_rest = self.final_reads.open.is_empty();
            return;
        }
        self.final_reads.in_vain += 1;
        if self.final_reads.in_vain > FINAL_READS_MAX {
            self.fail(format!("n{node} cannot read everything although all is well"));
        } else {
            self.begin_read(node, true);
        }
    }
}
