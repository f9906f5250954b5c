//! Deletions: clients delete what they have written. What is deleted must not come back, whoever was away meanwhile, and
//! what is not must stay. After `node/src/http/admin.rs`, `node/src/deletions.rs` and `settle` of `node/src/shepherd.rs`.

use std::collections::BTreeSet;

use saturn_model::{Selection, ShardId, TenantId, TimestampMs};
use saturn_ring::{NodeId, RecordStep, ShardCommand, ShardRecord};
use uuid::Uuid;

use crate::bits::Bits;
use crate::client::WRITE_UNTIL;
use crate::marks::Mark;
use crate::mover::Purpose;
use crate::node::Node;
use crate::planted::Bug;
use crate::raft::After;
use crate::world::{Event, World};

/// What clients have asked to delete.
pub(crate) struct Deletions {
    /// By shard, what may be deleted or not: somebody has asked for it.
    pub(crate) asked: Vec<Bits>,
    /// By shard, what is deleted, and must not be seen again.
    pub(crate) gone: Vec<Bits>,
    /// Of each deletion, its shard and the samples that were acknowledged before it was asked for. Writes of all others
    /// may still be under way, and bring them later.
    sure: Vec<(ShardId, Bits)>,
}

/// How a node deletes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deleting {
    pub(crate) bug: Option<Bug>,
    /// What happened, until the world takes it.
    pub(crate) marks: Vec<Mark>,
}

impl Deletions {
    pub(crate) fn new(shards: usize) -> Self {
        Self { asked: vec![Bits::default(); shards], gone: vec![Bits::default(); shards], sure: Vec::new() }
    }
}

fn samples_of(selection: &Selection) -> std::ops::RangeInclusive<usize> {
    selection.start.0 as usize..=selection.end.0 as usize
}

impl Node {
    /// Does the deletions of records that it has just adopted. Appends that were let in before are waited for.
    pub(crate) fn delete_overdue(&mut self) {
        let placement = self.placement.load();
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            let index = usize::from(shard.0);
            let Some(overdue) = record.overdue(&self.id, self.deleted[index]) else { continue };
            self.deleted[index] = overdue.through;
            if overdue.missed && !record.slots.contains(&self.id) {
                self.deleting.marks.push(Mark::OldCopyDropped);
                self.visible[index].clear();
                self.durable[index].clear();
            }
            let is_deleted =
                |sample: usize| overdue.selections.iter().any(|s| samples_of(s).contains(&sample));
            for admitted in self.admitted.values_mut() {
                if self.deleting.bug == Some(Bug::UnsettledDeletion) {
                    break;
                }
                let before = admitted.samples.len();
                admitted.samples.retain(|(of, sample)| *of != shard || !is_deleted(*sample));
                if admitted.samples.len() < before {
                    self.deleting.marks.push(Mark::AppendDeletedBeforeItsEnd);
                }
            }
            for sample in overdue.selections.iter().flat_map(samples_of) {
                self.visible[index].remove(sample);
                self.durable[index].remove(sample);
            }
        }
    }
}

impl World {
    /// A client deletes some samples of a shard, as far as there are any.
    pub(crate) fn client_delete(&mut self) {
        let Some(every) = self.params.delete_every else { return };
        if self.now < WRITE_UNTIL {
            let delay = self.random.deletion.range(1, 2 * every);
            self.schedule(delay, Event::Delete);
        }
        let up: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].up).collect();
        let Some(node) = self.random.deletion.pick(&up).copied() else { return };
        let index = self.random.deletion.range(0, u64::from(self.params.shards) - 1) as usize;
        let (shard, count) = (ShardId(index as u16), self.clients.times[index].len() as u64);
        if count == 0 {
            return;
        }
        let from = self.random.deletion.range(0, count - 1);
        let to = self.random.deletion.range(from, count - 1);
        let range = Bits::of(from as usize..to as usize + 1);
        let mut sure = Bits::default();
        for sample in from as usize..=to as usize {
            if self.clients.acked[index].contains(sample) {
                sure.insert(sample);
                self.clients.acked[index].remove(sample);
            }
        }
        let deletions = &mut self.clients.deletions;
        deletions.asked[index].union(&range);
        deletions.sure.push((shard, sure));
        let deletion = deletions.sure.len() - 1;
        let selection = Selection {
            tenant: TenantId::new("sim").expect("valid"),
            matchers: Vec::new(),
            start: TimestampMs(from as i64),
            end: TimestampMs(to as i64),
        };
        let id = Uuid::from_u128(deletion as u128);
        self.note(node, "deletes", u64::from(shard.0), from << 32 | to);
        let command = ShardCommand::Delete { id, selections: vec![selection] };
        self.propose_command(node, shard, command, After::Delete { shard, deletion });
    }

    /// The shard's nodes must know it.
    pub(crate) fn deletion_decided(&mut self, node: usize, shard: ShardId, deletion: usize) {
        let record = self.raft.record(shard).clone();
        if record.moving.is_some() {
            self.see(Mark::DeletionWhileMoving);
        }
        self.nodes[node].adopt(shard, record.clone());
        self.fence_nodes(node, shard, record, Purpose::Delete(deletion));
    }

    /// Enough nodes know it, or it is as if nobody had asked.
    pub(crate) fn deletion_spread(
        &mut self,
        deletion: usize,
        record: &ShardRecord,
        known: &BTreeSet<NodeId>,
    ) {
        if !record.is_in_force(known) {
            return self.see(Mark::DeletionUndone);
        }
        self.see(Mark::DeletionDone);
        let Deletions { gone, sure, .. } = &mut self.clients.deletions;
        let (shard, samples) = &sure[deletion];
        gone[usize::from(shard.0)].union(samples);
    }

    /// Has deletions forgotten that all nodes of a shard which this one leads have done.
    pub(crate) fn forget_deletions(&mut self, node: usize) {
        let placement = self.nodes[node].placement.load();
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            let is_due = !record.deletions.is_empty() && self.leader(shard) == Some(node);
            if is_due && self.nodes[node].forgetting.insert(shard) {
                self.fence_nodes(node, shard, record.clone(), Purpose::Settle);
            }
        }
    }

    pub(crate) fn settle(
        &mut self,
        node: usize,
        shard: ShardId,
        record: &ShardRecord,
        known: BTreeSet<NodeId>,
    ) {
        let Ok(next) = record.settle(&known) else {
            self.nodes[node].forgetting.remove(&shard);
            return;
        };
        let after = After::Settle { shard, next };
        self.propose(node, shard, record.epoch, RecordStep::Settle { known }, after);
    }

    /// A deletion, or that it is forgotten, changes nothing else.
    pub(crate) fn check_deletion(&mut self, shard: ShardId, before: &ShardRecord, after: &ShardRecord) {
        if before == after {
            return; // Asked for again.
        }
        let same = (&before.slots, &before.moving) == (&after.slots, &after.moving);
        let forgets_none = after.deletions.len() > before.deletions.len() && after.settled == before.settled;
        let forgets_all = after.deletions.is_empty() && after.settled == before.deleted_through();
        if !same || !(forgets_none || forgets_all) || after.epoch != before.epoch.next() {
            self.fail(format!("shard {shard}: {after:?} does not follow {before:?}"));
        }
    }
}
