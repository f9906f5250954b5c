//! A simulated node as one of a shard's replicas: the fence before everything, then the disk. What
//! `node/src/replica.rs` and `node/src/transfer/source.rs` do, with the same `fence`.

use std::rc::Rc;

use saturn_model::ShardId;
use saturn_ring::{Access, Epoch, Fence, fence};

use crate::bits::Bits;
use crate::marks::Mark;
use crate::message::{Refusal, Request, Response, Sample};
use crate::node::Timer;
use crate::planted::Bug;
use crate::world::{CallId, MS, Micros, World};

/// Words of a frame: 64 samples each.
const FRAME_WORDS: usize = 2;

/// How long the log may stop now and then.
const STALL_MAX: Micros = 1_500 * MS;

/// To whom, and what about each batch.
type AppendReply = (usize, CallId, Vec<Result<(), Refusal>>);

/// An append that the fence let in, until its samples are on the disk.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) samples: Vec<(ShardId, Sample)>,
    reply: Option<AppendReply>,
}

/// A shard of a read, and why it was refused at once, if it was.
pub(crate) type Judged = (ShardId, Epoch, Option<Refusal>);

/// A stream that waits for the appends under way before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Settling {
    /// Appends with a lower number must be over.
    before: u64,
    from: usize,
    call: CallId,
    shard: ShardId,
    epoch: Epoch,
    cursor: usize,
}

impl World {
    /// What a node does with a call that arrived.
    pub(crate) fn serve(&mut self, from: usize, to: usize, call: CallId, request: Request) {
        match request {
            Request::Append(batches) => self.append(to, (from, call), batches),
            Request::Select(shards) => {
                let mut judged = Vec::with_capacity(shards.len());
                for (shard, epoch) in shards {
                    judged.push((shard, epoch, self.judge(to, shard, epoch, Access::Read).err()));
                }
                let is_refused = judged.iter().all(|(_, _, refusal)| refusal.is_some());
                let longest = if is_refused { 50 } else { self.params.read_max };
                let delay = self.random.disk.scale(50, longest);
                self.timer(to, delay, Timer::SelectDone { from, call, shards: judged });
            }
            request @ (Request::PushPlacement(_) | Request::PushRecord(..)) => {
                let delay = self.random.disk.range(20, self.params.fsync_max);
                self.timer(to, delay, Timer::Adopt { from, call, request });
            }
            Request::PullPlacement => {
                let placement = Rc::new((*self.nodes[to].placement.load()).clone());
                self.reply(to, from, call, Response::Placement(placement));
            }
            Request::Frame { shard, epoch, stream, cursor } => {
                self.give_frame(to, (from, call), (shard, epoch), (stream, cursor));
            }
            Request::Digest(shard, epoch) => {
                let response = match self.check_source(to, shard, epoch) {
                    Ok(()) => Response::Digest(self.nodes[to].visible[usize::from(shard.0)].clone()),
                    Err(_) => Response::Refused,
                };
                self.reply(to, from, call, response);
            }
            Request::Propose(shard, command) => self.lead_proposal(to, (from, call), shard, command),
        }
    }

    /// The fence. A node that lets something through acts under its record from then on.
    fn judge(&mut self, node: usize, shard: ShardId, epoch: Epoch, access: Access) -> Result<(), Refusal> {
        let record = self.nodes[node].record(shard);
        let serves = match access {
            Access::Write => record.is_writer(&self.nodes[node].id),
            Access::Read => record.is_reader(&self.nodes[node].id),
        };
        let verdict = fence(Some(&record), &self.nodes[node].id, epoch, access);
        let unfenced = match access {
            Access::Write => self.bug == Some(Bug::StaleEpochAccepted),
            Access::Read => self.bug == Some(Bug::SkippedFence),
        };
        let verdict = match verdict {
            Fence::Stale(_) if unfenced && (serves || access == Access::Read) => Fence::Current,
            verdict => verdict,
        };
        match verdict {
            Fence::Current => {
                self.act_under(node, shard, record.epoch);
                Ok(())
            }
            Fence::Stale(record) => Err(Refusal::Stale(record)),
            Fence::Behind => Err(Refusal::Behind),
            Fence::NotOwner => Err(Refusal::NotOwner),
        }
    }

    fn check_source(&mut self, node: usize, shard: ShardId, epoch: Epoch) -> Result<(), Refusal> {
        if self.bug == Some(Bug::UnfencedSource) {
            return Ok(());
        }
        self.judge(node, shard, epoch, Access::Write)?;
        let record = self.nodes[node].record(shard);
        if record.slots.contains(&self.nodes[node].id) { Ok(()) } else { Err(Refusal::NotOwner) }
    }

    fn append(&mut self, node: usize, (from, call): (usize, CallId), batches: Vec<(ShardId, Epoch, Sample)>) {
        let mut replies = Vec::with_capacity(batches.len());
        let mut samples = Vec::new();
        for (shard, epoch, sample) in batches {
            let verdict = self.judge(node, shard, epoch, Access::Write);
            if verdict.is_ok() {
                samples.push((shard, sample));
            }
            replies.push(verdict);
        }
        if samples.is_empty() {
            return self.reply(node, from, call, Response::Appended(replies));
        }
        let append = self.nodes[node].next_serial();
        self.nodes[node].admitted.insert(append, Admitted { samples, reply: Some((from, call, replies)) });
        let is_stalled = self.params.stalls && !self.healed && self.random.disk.percent(4);
        let longest = if is_stalled { STALL_MAX } else { self.params.fsync_max };
        let visible = self.random.disk.range(1, longest);
        let durable = visible + self.random.disk.range(1, self.params.fsync_max);
        self.timer(node, visible, Timer::AppendVisible(append));
        self.timer(node, durable, Timer::AppendDurable(append));
    }

    pub(crate) fn append_visible(&mut self, node: usize, append: u64) {
        let is_early = self.bug == Some(Bug::AckBeforeSync);
        let state = &mut self.nodes[node];
        let Some(admitted) = state.admitted.get_mut(&append) else { return };
        for (shard, sample) in &admitted.samples {
            state.visible[usize::from(shard.0)].insert(*sample);
        }
        let reply = if is_early { admitted.reply.take() } else { None };
        if let Some((from, call, replies)) = reply {
            self.reply(node, from, call, Response::Appended(replies));
        }
    }

    pub(crate) fn append_durable(&mut self, node: usize, append: u64) {
        let Some(admitted) = self.nodes[node].admitted.remove(&append) else { return };
        for (shard, sample) in &admitted.samples {
            self.nodes[node].store(*shard, *sample);
            self.note(node, "stores", u64::from(shard.0), *sample as u64);
        }
        if let Some((from, call, replies)) = admitted.reply {
            self.reply(node, from, call, Response::Appended(replies));
        }
        let oldest = self.nodes[node].admitted.keys().next().copied().unwrap_or(u64::MAX);
        let waiting = std::mem::take(&mut self.nodes[node].settling);
        let (settled, waiting) = waiting.into_iter().partition(|settling| settling.before <= oldest);
        self.nodes[node].settling = waiting;
        for Settling { from, call, shard, epoch, cursor, .. } in settled {
            self.see(Mark::SourceSettled);
            self.open_stream(node, (from, call), (shard, epoch), cursor);
        }
    }

    /// What was pushed is stored, and then in force.
    pub(crate) fn adopt_pushed(&mut self, node: usize, (from, call): (usize, CallId), request: Request) {
        match request {
            Request::PushRecord(shard, record) => self.nodes[node].adopt(shard, record),
            Request::PushPlacement(placement) => {
                self.nodes[node].adopt_placement(&placement);
            }
            _ => return,
        }
        self.reply(node, from, call, Response::Adopted);
    }

    /// The read is over: what it found counts if the record is still the same.
    pub(crate) fn select_done(&mut self, node: usize, (from, call): (usize, CallId), shards: Vec<Judged>) {
        let mut answers = Vec::with_capacity(shards.len());
        for (shard, epoch, refusal) in shards {
            if let Some(refusal) = refusal {
                answers.push((shard, Err(refusal)));
                continue;
            }
            let verdict = match self.bug {
                Some(Bug::ReadWithoutSecondLook) => Ok(()),
                _ => self.judge(node, shard, epoch, Access::Read),
            };
            if verdict.is_err() {
                self.see(Mark::ReadRefusedAtItsEnd);
            }
            let found: Result<Bits, Refusal> =
                verdict.map(|()| self.nodes[node].visible[usize::from(shard.0)].clone());
            answers.push((shard, found));
        }
        self.reply(node, from, call, Response::Selected(answers));
    }

    fn give_frame(
        &mut self,
        node: usize,
        (from, call): (usize, CallId),
        (shard, epoch): (ShardId, Epoch),
        (stream, cursor): (Option<u64>, usize),
    ) {
        if self.check_source(node, shard, epoch).is_err() {
            self.see(Mark::StreamRefused);
            return self.reply(node, from, call, Response::Refused);
        }
        if let Some(stream) = stream {
            return self.send_frame(node, (from, call), stream, cursor);
        }
        let unsettled = matches!(self.bug, Some(Bug::UnsettledSource | Bug::UnfencedSource));
        if self.nodes[node].admitted.is_empty() || unsettled {
            return self.open_stream(node, (from, call), (shard, epoch), cursor);
        }
        let before = self.nodes[node].serial + 1;
        self.nodes[node].settling.push(Settling { before, from, call, shard, epoch, cursor });
    }

    fn open_stream(
        &mut self,
        node: usize,
        (from, call): (usize, CallId),
        (shard, epoch): (ShardId, Epoch),
        cursor: usize,
    ) {
        if self.check_source(node, shard, epoch).is_err() {
            self.see(Mark::StreamRefused);
            return self.reply(node, from, call, Response::Refused);
        }
        let snapshot = self.nodes[node].visible[usize::from(shard.0)].clone();
        let stream = self.nodes[node].next_serial();
        self.nodes[node].streams.insert(stream, snapshot);
        self.note(node, "gives out", u64::from(shard.0), stream);
        self.send_frame(node, (from, call), stream, cursor);
    }

    fn send_frame(&mut self, node: usize, (from, call): (usize, CallId), stream: u64, cursor: usize) {
        let Some(snapshot) = self.nodes[node].streams.get(&stream) else {
            return self.reply(node, from, call, Response::Refused);
        };
        let words = snapshot.words(cursor, FRAME_WORDS);
        let is_last = cursor + FRAME_WORDS >= snapshot.word_count();
        if is_last {
            self.nodes[node].streams.remove(&stream);
        }
        self.reply(node, from, call, Response::Frame { stream, words, is_last });
    }

    /// What the new node takes is on its disk before it asks for more.
    pub(crate) fn import(&mut self, node: usize, shard: ShardId, from: usize, words: &[u64]) {
        let index = usize::from(shard.0);
        self.nodes[node].visible[index].put_words(from, words);
        self.nodes[node].durable[index].put_words(from, words);
    }

    /// How long a node takes to delete a shard: it waits for a thread, and for a flush.
    pub(crate) fn drop_delay(&mut self) -> u64 {
        self.random.disk.scale(50, self.params.drop_max)
    }
}
