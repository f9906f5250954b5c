//! Shards that come to a simulated node, and copies that it does not need any more: the steps of
//! `node/src/moves.rs`, call by call.

use std::collections::{BTreeSet, VecDeque};

use saturn_model::ShardId;
use saturn_ring::{Epoch, MoveStep, NodeId, RecordStep, ShardRecord};

use crate::bits::Bits;
use crate::marks::Mark;
use crate::message::{Request, Response};
use crate::node::{CALL_LIMIT, Then, Timer};
use crate::planted::Bug;
use crate::raft::After;
use crate::world::{MS, Micros, SECOND, World};

const PAUSE_MIN: Micros = 500 * MS;
const PAUSE_MAX: Micros = 5 * SECOND;
/// Attempts in a row that bring nothing, after which a pull gives up.
const ATTEMPTS_MAX: u32 = 8;
/// Samples of windows of this length are compared once the window is over.
const WINDOW_MS: i64 = 10_000;

/// A shard on its way to this node.
pub(crate) struct Mover {
    /// Of the step under way: what comes for another one is too late.
    serial: u64,
    pause: Micros,
    record: ShardRecord,
    fenced: BTreeSet<NodeId>,
    /// From whom it is still to be fetched, the next one last.
    left: Vec<usize>,
    sources: BTreeSet<NodeId>,
    stream: Option<u64>,
    cursor: usize,
    attempts: u32,
}

/// What the fence is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Move(u64),
    /// To finish a move without its target.
    FinishWithout,
    /// To say that something is deleted.
    Delete(usize),
    /// To forget deletions.
    Settle,
}

/// A record that the shard's nodes are made to know.
pub(crate) struct FenceJob {
    shard: ShardId,
    record: ShardRecord,
    open: usize,
    fenced: BTreeSet<NodeId>,
    purpose: Purpose,
}

/// A look for copies that can go.
pub(crate) struct Cleaning {
    serial: u64,
    queue: VecDeque<(ShardId, ShardRecord)>,
    /// Whom to ask for what it has of the first shard in the queue.
    left: Vec<usize>,
    first: Option<Bits>,
}

impl World {
    pub(crate) fn look_for_moves(&mut self, node: usize) {
        let placement = self.nodes[node].placement.load();
        let me = self.id(node);
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            let is_coming = record.moving.as_ref().is_some_and(|moving| moving.to == me);
            if is_coming && !self.nodes[node].movers.contains_key(&shard) {
                self.begin_step(node, shard, PAUSE_MIN);
            }
        }
    }

    /// The step that the record asks for, if the shard is still coming here.
    fn begin_step(&mut self, node: usize, shard: ShardId, pause: Micros) {
        let record = self.nodes[node].record(shard);
        let me = self.id(node);
        if record.moving.as_ref().is_none_or(|moving| moving.to != me) {
            self.nodes[node].movers.remove(&shard);
            return;
        }
        let serial = self.nodes[node].next_serial();
        let mover = Mover {
            serial,
            pause,
            record: record.clone(),
            fenced: BTreeSet::new(),
            left: Vec::new(),
            sources: BTreeSet::new(),
            stream: None,
            cursor: 0,
            attempts: 0,
        };
        self.note(node, "takes", u64::from(shard.0), record.epoch.0);
        self.nodes[node].movers.insert(shard, mover);
        self.fence_nodes(node, shard, record, Purpose::Move(serial));
    }

    pub(crate) fn move_on(&mut self, node: usize, shard: ShardId, serial: u64) {
        if let Some(pause) =
            self.nodes[node].movers.get(&shard).filter(|m| m.serial == serial).map(|m| m.pause)
        {
            self.begin_step(node, shard, pause);
        }
    }

    /// The step failed, and will be tried again.
    fn pause(&mut self, node: usize, shard: ShardId) {
        let Some(mover) = self.nodes[node].movers.get_mut(&shard) else { return };
        let (pause, serial) = (mover.pause, mover.serial);
        mover.pause = (pause * 2).min(PAUSE_MAX);
        self.note(node, "pauses", u64::from(shard.0), pause);
        self.timer(node, pause, Timer::MoveOn(shard, serial));
    }

    /// Makes the nodes of a shard's slots know its record; the new one of a moving slot as well, if it is about deletions.
    pub(crate) fn fence_nodes(&mut self, node: usize, shard: ShardId, record: ShardRecord, purpose: Purpose) {
        let job = self.nodes[node].next_serial();
        let mut fence = FenceJob { shard, record: record.clone(), open: 0, fenced: BTreeSet::new(), purpose };
        let mut others = Vec::new();
        let nodes: Vec<&NodeId> = match purpose {
            Purpose::Settle | Purpose::Delete(_) => record.writers().collect(),
            _ => record.slots.iter().collect(),
        };
        for slot in nodes {
            let peer = self.index(slot);
            if self.bug == Some(Bug::SkippedBarrier) {
                fence.fenced.insert(slot.clone());
            } else if peer != node {
                others.push(peer);
            } else if self.nodes[node].record(shard).epoch >= record.epoch {
                fence.fenced.insert(slot.clone());
            }
        }
        fence.open = others.len();
        self.nodes[node].fences.insert(job, fence);
        if others.is_empty() {
            return self.fence_done(node, job);
        }
        for peer in others {
            let push = Request::PushRecord(shard, record.clone());
            self.call(node, peer, push, Then::Fence { job }, CALL_LIMIT);
        }
    }

    pub(crate) fn fenced(&mut self, node: usize, peer: usize, job: u64, response: Option<Response>) {
        let id = self.id(peer);
        let Some(fence) = self.nodes[node].fences.get_mut(&job) else { return };
        fence.open -= 1;
        if matches!(response, Some(Response::Adopted)) {
            fence.fenced.insert(id);
        }
        if fence.open == 0 {
            self.fence_done(node, job);
        }
    }

    fn fence_done(&mut self, node: usize, job: u64) {
        let Some(FenceJob { shard, record, fenced, purpose, .. }) = self.nodes[node].fences.remove(&job)
        else {
            return;
        };
        let serial = match purpose {
            Purpose::Move(serial) => serial,
            Purpose::FinishWithout => return self.finish_without(node, shard, &record, fenced),
            Purpose::Delete(deletion) => return self.deletion_spread(deletion, &record, &fenced),
            Purpose::Settle => return self.settle(node, shard, &record, fenced),
        };
        let Some(mover) = self.nodes[node].movers.get_mut(&shard).filter(|mover| mover.serial == serial)
        else {
            return;
        };
        if fenced.len() < record.barrier() {
            return self.pause(node, shard);
        }
        let moving = record.moving.clone().expect("it is coming here");
        if moving.step == MoveStep::Activated {
            let Ok(next) = record.finish(&fenced) else { return self.pause(node, shard) };
            let after = After::Move { shard, serial, next };
            return self.propose(node, shard, record.epoch, RecordStep::Finish { fenced }, after);
        }
        let leaving = record.slots[usize::from(moving.slot)].clone();
        let from: Vec<NodeId> = if fenced.contains(&leaving) {
            vec![leaving]
        } else {
            record.slots.iter().filter(|node| fenced.contains(*node)).cloned().collect()
        };
        mover.fenced = fenced;
        mover.left = from.iter().map(crate::world::index_of).collect();
        if from.len() > 1 {
            self.see(Mark::FetchedFromTheOthers);
        }
        if self.bug == Some(Bug::UnfencedSource) {
            let slots: Vec<usize> = record.slots.iter().map(crate::world::index_of).collect();
            let one = self.random.node.pick(&slots).copied().expect("a shard has slots");
            self.nodes[node].movers.get_mut(&shard).expect("it was there").left = vec![one];
        }
        self.fetch_more(node, shard);
    }

    /// The next part, or the next source, or all is here.
    fn fetch_more(&mut self, node: usize, shard: ShardId) {
        let Some(mover) = self.nodes[node].movers.get(&shard) else { return };
        let (serial, epoch) = (mover.serial, mover.record.epoch);
        if let Some(source) = mover.left.last().copied() {
            let request = Request::Frame { shard, epoch, stream: mover.stream, cursor: mover.cursor };
            return self.call(node, source, request, Then::Frame { shard, serial }, CALL_LIMIT);
        }
        let (record, fenced, mut sources) =
            (mover.record.clone(), mover.fenced.clone(), mover.sources.clone());
        if self.bug == Some(Bug::UnfencedSource) {
            sources = record.slots.iter().cloned().collect();
        }
        let Ok(next) = record.activate(&fenced, &sources) else { return self.pause(node, shard) };
        let after = After::Move { shard, serial, next };
        self.propose(node, shard, epoch, RecordStep::Activate { fenced, sources }, after);
    }

    pub(crate) fn took_frame(
        &mut self,
        node: usize,
        peer: usize,
        (shard, serial): (ShardId, u64),
        response: Option<Response>,
    ) {
        let now = self.nodes[node].record(shard).epoch;
        let id = self.id(peer);
        let Some(mover) = self.nodes[node].movers.get_mut(&shard).filter(|mover| mover.serial == serial)
        else {
            return;
        };
        let is_changed = now != mover.record.epoch;
        match response {
            Some(Response::Frame { stream, words, is_last }) if !is_changed => {
                let at = mover.cursor;
                mover.stream = Some(stream);
                mover.cursor += words.len();
                mover.attempts = 0;
                if is_last {
                    mover.left.pop();
                    mover.sources.insert(id);
                    (mover.stream, mover.cursor) = (None, 0);
                }
                self.import(node, shard, at, &words);
                self.fetch_more(node, shard);
            }
            None if !is_changed && mover.attempts < ATTEMPTS_MAX => {
                mover.attempts += 1;
                mover.stream = None;
                if mover.cursor > 0 {
                    self.see(Mark::StreamResumed);
                }
                self.fetch_more(node, shard);
            }
            _ => self.pause(node, shard),
        }
    }

    /// A step of the move was decided, or was not.
    pub(crate) fn step_decided(
        &mut self,
        node: usize,
        shard: ShardId,
        serial: u64,
        next: Option<ShardRecord>,
    ) {
        let Some(mover) = self.nodes[node].movers.get(&shard).filter(|mover| mover.serial == serial) else {
            return;
        };
        let Some(next) = next else { return self.pause(node, shard) };
        let slots = mover.record.slots.clone();
        self.nodes[node].adopt(shard, next.clone());
        if next.moving.is_none() && self.bug != Some(Bug::SkippedBarrier) {
            for slot in slots.iter().map(crate::world::index_of).filter(|slot| *slot != node) {
                self.tell(node, slot, Request::PushRecord(shard, next.clone()));
            }
        }
        self.begin_step(node, shard, PAUSE_MIN);
    }

    /// Looks for copies of shards that are others' now.
    pub(crate) fn clean(&mut self, node: usize) {
        if self.nodes[node].cleaning.is_some() {
            return;
        }
        let placement = self.nodes[node].placement.load();
        let me = self.id(node);
        let shards = (0..).map(ShardId).zip(placement.shards.iter().cloned());
        let queue = shards.filter(|(_, record)| record.moving.is_none() && !record.is_writer(&me)).collect();
        self.nodes[node].cleaning = Some(Cleaning { serial: 0, queue, left: Vec::new(), first: None });
        self.clean_first(node);
    }

    /// The first shard of the queue that this node has anything of.
    fn clean_first(&mut self, node: usize) {
        let serial = self.nodes[node].next_serial();
        let state = &mut self.nodes[node];
        let Some(cleaning) = &mut state.cleaning else { return };
        while cleaning.queue.front().is_some_and(|(shard, _)| state.visible[usize::from(shard.0)].is_empty())
        {
            cleaning.queue.pop_front();
        }
        let Some((_, record)) = cleaning.queue.front() else {
            state.cleaning = None;
            return;
        };
        cleaning.serial = serial;
        cleaning.left = record.slots.iter().rev().map(crate::world::index_of).collect();
        cleaning.first = None;
        self.compare_next(node);
    }

    fn clean_other(&mut self, node: usize) {
        if let Some(cleaning) = &mut self.nodes[node].cleaning {
            cleaning.queue.pop_front();
            self.clean_first(node);
        }
    }

    fn compare_next(&mut self, node: usize) {
        let Some(cleaning) = &mut self.nodes[node].cleaning else { return };
        let Some((shard, record)) = cleaning.queue.front() else { return };
        let (shard, epoch, serial) = (*shard, record.epoch, cleaning.serial);
        if let Some(peer) = cleaning.left.pop() {
            return self.call(node, peer, Request::Digest(shard, epoch), Then::Digest { serial }, CALL_LIMIT);
        }
        let delay = self.drop_delay();
        self.timer(node, delay, Timer::Drop(shard, epoch));
    }

    pub(crate) fn compared(&mut self, node: usize, serial: u64, response: Option<Response>) {
        let now_ms = self.clock_ms(node);
        let Some(cleaning) = &mut self.nodes[node].cleaning else { return };
        let Some((shard, _)) = cleaning.queue.front().filter(|_| cleaning.serial == serial) else { return };
        let times = &self.clients.times[usize::from(shard.0)];
        let Some(Response::Digest(bits)) = response else { return self.clean_other(node) };
        let mut over = Bits::default();
        for sample in (0..times.len()).filter(|sample| bits.contains(*sample)) {
            if times[sample].div_euclid(WINDOW_MS) * WINDOW_MS + WINDOW_MS < now_ms {
                over.insert(sample);
            }
        }
        match &cleaning.first {
            None => cleaning.first = Some(over),
            Some(first)
                if first.first_missing_in(&[&over]).is_some()
                    || over.first_missing_in(&[first]).is_some() =>
            {
                return self.clean_other(node);
            }
            Some(_) => {}
        }
        self.compare_next(node);
    }

    /// Deletes what this node has of a shard, if the record is still the one that was compared under.
    pub(crate) fn drop_copy(&mut self, node: usize, shard: ShardId, epoch: Epoch) {
        let index = usize::from(shard.0);
        let is_at = self.nodes[node].placement.while_at(shard, epoch, || ()).is_some();
        if is_at || self.bug == Some(Bug::DropWithoutLook) {
            self.see(Mark::CopyDropped);
            self.note(node, "drops", u64::from(shard.0), epoch.0);
            self.nodes[node].visible[index].clear();
            self.nodes[node].durable[index].clear();
            self.check_shard(shard);
        } else {
            self.see(Mark::DropRefused);
        }
        self.clean_other(node);
    }
}
