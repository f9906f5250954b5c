//! A simulated node as the coordinator of writes and reads: what `replication/src/write.rs` and `read.rs` do around
//! the cores [`QuorumTracker`] and [`ReadProgress`], with calls and timers in place of tasks.

use std::collections::BTreeMap;
use std::rc::Rc;

use saturn_model::ShardId;
use saturn_replication::{Ask, QuorumTracker, RESTARTS_MAX, ReadProgress, Standing};
use saturn_ring::{Epoch, NodeId, ShardRecord};

use crate::bits::Bits;
use crate::marks::Mark;
use crate::message::{Refusal, Request, Response, Sample};
use crate::node::{CALL_LIMIT, Item, Then, Timer};
use crate::planted::Bug;
use crate::world::{Micros, SECOND, World};

const WRITE_LIMIT: Micros = 4 * SECOND;
const READ_LIMIT: Micros = 15 * SECOND;
const READ_CALL_LIMIT: Micros = 8 * SECOND;
const HEDGE_AFTER: Micros = SECOND;

/// A write under way.
pub(crate) struct WriteOp {
    /// The client's number of it.
    pub(crate) client: usize,
    samples: Vec<(ShardId, Sample)>,
    tracker: QuorumTracker,
    restarts: Vec<u8>,
    /// Who has stored, for the bug that counts nodes instead of slots.
    stored: Vec<Vec<NodeId>>,
}

/// A read under way, of all shards.
pub(crate) struct ReadOp {
    progress: ReadProgress<(ShardId, Bits)>,
    /// What was acknowledged before it began.
    before: Vec<Bits>,
    /// What was deleted before it began.
    gone: Vec<Bits>,
    pub(crate) is_final: bool,
}

impl World {
    /// A client's write arrives at a node.
    pub(crate) fn begin_write(&mut self, node: usize, client: usize, samples: Vec<(ShardId, Sample)>) {
        let records: Vec<ShardRecord> =
            samples.iter().map(|(shard, _)| self.nodes[node].record(*shard)).collect();
        let count = samples.len();
        let write = self.nodes[node].next_serial();
        let op = WriteOp {
            client,
            samples,
            tracker: QuorumTracker::new(&records),
            restarts: vec![0; count],
            stored: vec![Vec::new(); count],
        };
        self.note(node, "writes", client as u64, write);
        self.nodes[node].writes.insert(write, op);
        self.timer(node, WRITE_LIMIT, Timer::WriteLimit(write));
        self.send_batches(node, write, records.iter().enumerate());
    }

    fn send_batches<'a>(
        &mut self,
        node: usize,
        write: u64,
        records: impl Iterator<Item = (usize, &'a ShardRecord)>,
    ) {
        let mut by_node: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
        for (index, record) in records {
            for writer in record.writers() {
                let item = Item { index, epoch: record.epoch, pushed: false };
                by_node.entry(self.index(writer)).or_default().push(item);
            }
        }
        for (peer, items) in by_node {
            self.send_items(node, peer, write, items);
        }
    }

    fn send_items(&mut self, node: usize, peer: usize, write: u64, items: Vec<Item>) {
        let Some(op) = self.nodes[node].writes.get(&write) else { return };
        let batch = |item: &Item| {
            let (shard, sample) = op.samples[item.index];
            (shard, item.epoch, sample)
        };
        let batches = items.iter().map(batch).collect();
        self.call(node, peer, Request::Append(batches), Then::Append { write, items }, CALL_LIMIT);
    }

    pub(crate) fn appended(
        &mut self,
        node: usize,
        peer: usize,
        (write, items): (u64, Vec<Item>),
        response: Option<Response>,
    ) {
        let Some(Response::Appended(replies)) = response else {
            return self.report_failed(node, peer, write, &items);
        };
        let mut behind = Vec::new();
        let mut again: Vec<(usize, ShardRecord)> = Vec::new();
        let id = self.id(peer);
        for (item, reply) in items.into_iter().zip(replies) {
            if reply == Err(Refusal::Behind) && !item.pushed {
                behind.push(Item { pushed: true, ..item });
                continue;
            }
            if let Err(Refusal::Stale(record)) = &reply {
                let shard = self.nodes[node].writes.get(&write).map(|op| op.samples[item.index].0);
                if let Some(shard) = shard {
                    self.nodes[node].adopt(shard, record.clone());
                }
            }
            let Some(op) = self.nodes[node].writes.get_mut(&write) else { continue };
            if op.tracker.epoch(item.index) != item.epoch {
                continue;
            }
            match reply {
                Ok(()) => {
                    op.tracker.stored(item.index, &id);
                    op.stored[item.index].push(id.clone());
                }
                Err(Refusal::Stale(record))
                    if op.restarts[item.index] < RESTARTS_MAX && record.epoch > item.epoch =>
                {
                    op.restarts[item.index] += 1;
                    op.tracker.restart(item.index, &record);
                    op.stored[item.index].clear();
                    again.push((item.index, record));
                }
                Err(_) => op.tracker.failed(item.index, &id, String::new()),
            }
        }
        if !again.is_empty() {
            self.see(Mark::WriteStartedAgain);
            self.send_batches(node, write, again.iter().map(|(index, record)| (*index, record)));
        }
        if !behind.is_empty() {
            self.see(Mark::ReplicaBehind);
            let placement = Rc::new((*self.nodes[node].placement.load()).clone());
            let then = Then::AppendAgain { write, items: behind };
            self.call(node, peer, Request::PushPlacement(placement), then, CALL_LIMIT);
        }
        self.judge_write(node, write);
    }

    pub(crate) fn append_again(
        &mut self,
        node: usize,
        peer: usize,
        (write, items): (u64, Vec<Item>),
        response: Option<Response>,
    ) {
        match response {
            Some(Response::Adopted) => self.send_items(node, peer, write, items),
            _ => self.report_failed(node, peer, write, &items),
        }
    }

    fn report_failed(&mut self, node: usize, peer: usize, write: u64, items: &[Item]) {
        let id = self.id(peer);
        if let Some(op) = self.nodes[node].writes.get_mut(&write) {
            for item in items {
                if op.tracker.epoch(item.index) == item.epoch {
                    op.tracker.failed(item.index, &id, String::new());
                }
            }
        }
        self.judge_write(node, write);
    }

    fn judge_write(&mut self, node: usize, write: u64) {
        let Some(op) = self.nodes[node].writes.get(&write) else { return };
        let any_two = self.bug == Some(Bug::AnyTwoOfFour) && op.stored.iter().all(|nodes| nodes.len() >= 2);
        let standing = if any_two { Standing::Acked } else { op.tracker.standing() };
        match standing {
            Standing::Pending => {}
            Standing::Acked => {
                let op = self.nodes[node].writes.remove(&write).expect("it was there");
                let epochs: Vec<Epoch> = (0..op.samples.len()).map(|index| op.tracker.epoch(index)).collect();
                self.acked(node, op.client, &op.samples, &epochs);
            }
            Standing::Impossible => self.end_write(node, write),
        }
    }

    /// The write is answered without a quorum: nobody knows what became of it.
    pub(crate) fn end_write(&mut self, node: usize, write: u64) {
        if let Some(op) = self.nodes[node].writes.remove(&write) {
            self.see(Mark::WriteWithoutQuorum);
            self.note(node, "has no quorum", op.client as u64, write);
            self.client_failed(op.client);
        }
    }

    /// A client reads all shards from a node.
    pub(crate) fn begin_read(&mut self, node: usize, is_final: bool) {
        let read = self.nodes[node].next_serial();
        let placement = self.nodes[node].placement.load();
        let me = self.id(node);
        let progress = ReadProgress::new(&placement, &me, |other| self.sees_alive(node, other));
        let before = self.clients.acked.clone();
        let gone = self.clients.deletions.gone.clone();
        self.note(node, "reads", read, 0);
        self.nodes[node].reads.insert(read, ReadOp { progress, before, gone, is_final });
        self.timer(node, READ_LIMIT, Timer::ReadLimit(read));
        self.timer(node, HEDGE_AFTER, Timer::Hedge(read));
        self.read_on(node, read);
    }

    fn send_asks(&mut self, node: usize, read: u64, asks: Vec<Ask>) {
        for Ask { node: peer, shards } in asks {
            let peer = self.index(&peer);
            let then = Then::Select { read, shards: shards.clone(), pushed: false };
            self.call(node, peer, Request::Select(shards), then, READ_CALL_LIMIT);
        }
    }

    fn read_on(&mut self, node: usize, read: u64) {
        let Some(op) = self.nodes[node].reads.get_mut(&read) else { return };
        let asks = op.progress.ask_needed();
        let is_done = op.progress.is_done();
        self.send_asks(node, read, asks);
        if is_done {
            self.end_read(node, read);
        }
    }

    pub(crate) fn hedge(&mut self, node: usize, read: u64) {
        let Some(op) = self.nodes[node].reads.get_mut(&read) else { return };
        let asks = op.progress.ask_spare();
        if !asks.is_empty() {
            self.see(Mark::ReadHedged);
        }
        self.send_asks(node, read, asks);
    }

    pub(crate) fn selected(
        &mut self,
        node: usize,
        peer: usize,
        (read, shards, pushed): (u64, Vec<(ShardId, Epoch)>, bool),
        response: Option<Response>,
    ) {
        let answers = match response {
            Some(Response::Selected(answers)) => answers,
            _ => Vec::new(),
        };
        let mut silent: BTreeMap<ShardId, Epoch> = shards.into_iter().collect();
        let mut behind = Vec::new();
        for (shard, result) in answers {
            let Some(epoch) = silent.remove(&shard) else { continue };
            match result {
                Ok(found) => {
                    if let Some(op) = self.nodes[node].reads.get_mut(&read) {
                        op.progress.answered(shard, epoch, (shard, found));
                    }
                }
                Err(Refusal::Behind) if !pushed => behind.push((shard, epoch)),
                Err(Refusal::Stale(record)) => self.read_again(node, peer, read, (shard, epoch), &record),
                Err(_) => self.read_failed(node, peer, read, (shard, epoch)),
            }
        }
        for (shard, epoch) in silent {
            self.read_failed(node, peer, read, (shard, epoch));
        }
        if !behind.is_empty() && self.nodes[node].reads.contains_key(&read) {
            self.see(Mark::ReplicaBehind);
            let placement = Rc::new((*self.nodes[node].placement.load()).clone());
            let then = Then::SelectAgain { read, shards: behind };
            self.call(node, peer, Request::PushPlacement(placement), then, CALL_LIMIT);
        }
        self.read_on(node, read);
    }

    fn read_again(
        &mut self,
        node: usize,
        peer: usize,
        read: u64,
        (shard, epoch): (ShardId, Epoch),
        record: &ShardRecord,
    ) {
        self.nodes[node].adopt(shard, record.clone());
        let me = self.id(node);
        let Some(mut op) = self.nodes[node].reads.remove(&read) else { return };
        if op.progress.restart(shard, record, &me, |other| self.sees_alive(node, other)) {
            self.see(Mark::ReadStartedAgain);
        } else {
            op.progress.failed(shard, epoch, &self.id(peer), "");
        }
        self.nodes[node].reads.insert(read, op);
    }

    fn read_failed(&mut self, node: usize, peer: usize, read: u64, (shard, epoch): (ShardId, Epoch)) {
        let id = self.id(peer);
        if let Some(op) = self.nodes[node].reads.get_mut(&read) {
            op.progress.failed(shard, epoch, &id, "");
        }
    }

    pub(crate) fn select_again(
        &mut self,
        node: usize,
        peer: usize,
        (read, shards): (u64, Vec<(ShardId, Epoch)>),
        response: Option<Response>,
    ) {
        if matches!(response, Some(Response::Adopted)) && self.nodes[node].reads.contains_key(&read) {
            let then = Then::Select { read, shards: shards.clone(), pushed: true };
            return self.call(node, peer, Request::Select(shards), then, READ_CALL_LIMIT);
        }
        for shard in shards {
            self.read_failed(node, peer, read, shard);
        }
        self.read_on(node, read);
    }

    /// The read is answered: what it says that it covers must be all that was acknowledged before it.
    pub(crate) fn end_read(&mut self, node: usize, read: u64) {
        let Some(ReadOp { progress, before, gone, is_final }) = self.nodes[node].reads.remove(&read) else {
            return;
        };
        let (answers, missing) = progress.finish("");
        let mut found = vec![Bits::default(); before.len()];
        for (shard, bits) in &answers {
            found[usize::from(shard.0)].union(bits);
        }
        self.note(node, "has read", read, missing.len() as u64);
        self.see(if missing.is_empty() { Mark::ReadComplete } else { Mark::ReadIncomplete });
        for (index, acked) in before.iter().enumerate() {
            let is_missing = missing.iter().any(|shard| usize::from(shard.shard.0) == index);
            if is_missing {
                continue;
            }
            // What somebody has asked to delete meanwhile may be there or not.
            if let Some(sample) =
                acked.first_missing_in(&[&found[index], &self.clients.deletions.asked[index]])
            {
                self.fail(format!(
                    "n{node} read shard {index} completely, without sample {sample}, which was acknowledged before"
                ));
            }
            if let Some(sample) = found[index].first_shared(&gone[index]) {
                self.fail(format!(
                    "n{node} read shard {index} completely, with sample {sample}, which was deleted before"
                ));
            }
        }
        if is_final {
            self.final_read_ended(node, missing.is_empty());
        }
    }
}
