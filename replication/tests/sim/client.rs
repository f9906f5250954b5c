//! Clients: they send samples to any node, send again what was not acknowledged, and read.
//!
//! The history that the checks compare with is theirs: which sample was acknowledged when.

use saturn_model::ShardId;
use saturn_ring::Epoch;

use crate::bits::Bits;
use crate::deletions::Deletions;
use crate::marks::Mark;
use crate::message::Sample;
use crate::world::{Event, HEAL_AT, MS, SECOND, World};

/// Clients go on so long after the faults have ended.
pub(crate) const WRITE_UNTIL: u64 = HEAL_AT + 5 * SECOND;

/// What one request carries.
struct ClientWrite {
    samples: Vec<(ShardId, Sample)>,
    attempts: u32,
}

/// All clients.
pub(crate) struct Clients {
    writes: Vec<ClientWrite>,
    /// By shard, the time of each sample, by the clock of the node that took it in first.
    pub(crate) times: Vec<Vec<i64>>,
    /// By shard, the samples that were acknowledged, and that nobody has asked to delete.
    pub(crate) acked: Vec<Bits>,
    pub(crate) deletions: Deletions,
}

impl Clients {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            writes: Vec::new(),
            times: vec![Vec::new(); shards],
            acked: vec![Bits::default(); shards],
            deletions: Deletions::new(shards),
        }
    }
}

impl World {
    pub(crate) fn any_node(&mut self) -> Option<usize> {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].up).collect();
        self.random.client.pick(&up).copied()
    }

    /// By the clock of a node, in milliseconds.
    pub(crate) fn clock_ms(&self, node: usize) -> i64 {
        (self.now / MS) as i64 + self.nodes[node].clock_off_ms
    }

    pub(crate) fn client_write(&mut self) {
        if self.now < WRITE_UNTIL {
            let delay = self.random.client.range(1, 2 * self.params.write_every);
            self.schedule(delay, Event::Write);
        }
        let Some(node) = self.any_node() else { return };
        let time = self.clock_ms(node);
        let mut samples: Vec<(ShardId, Sample)> = Vec::new();
        for _ in 0..self.random.client.range(1, 3) {
            // Half of the samples go to one shard, so that one always has writes under way.
            let is_hot = self.random.client.percent(50);
            let last = if is_hot { 0 } else { u64::from(self.params.shards) - 1 };
            let shard = self.random.client.range(0, last);
            let times = &mut self.clients.times[shard as usize];
            let shard = ShardId(shard as u16);
            if samples.iter().all(|(other, _)| *other != shard) {
                samples.push((shard, times.len()));
                times.push(time);
            }
        }
        self.clients.writes.push(ClientWrite { samples: samples.clone(), attempts: 1 });
        self.begin_write(node, self.clients.writes.len() - 1, samples);
    }

    pub(crate) fn client_read(&mut self) {
        if self.now < WRITE_UNTIL {
            let delay = self.random.client.range(1, 2 * self.params.read_every);
            self.schedule(delay, Event::Read);
        }
        if let Some(node) = self.any_node() {
            self.begin_read(node, false);
        }
    }

    /// No quorum: half of the clients send again.
    pub(crate) fn client_failed(&mut self, write: usize) {
        let attempts = &mut self.clients.writes[write].attempts;
        *attempts += 1;
        if *attempts <= 4 && self.random.client.percent(50) {
            let delay = self.random.client.range(10 * MS, 2 * SECOND);
            self.schedule(delay, Event::Retry(write));
        }
    }

    pub(crate) fn client_retry(&mut self, write: usize) {
        if let Some(node) = self.any_node() {
            let samples = self.clients.writes[write].samples.clone();
            self.begin_write(node, write, samples);
        }
    }

    /// A node has answered a write with success.
    pub(crate) fn acked(
        &mut self,
        node: usize,
        write: usize,
        samples: &[(ShardId, Sample)],
        epochs: &[Epoch],
    ) {
        self.see(Mark::WriteAcked);
        self.note(node, "acks", write as u64, 0);
        for ((shard, sample), epoch) in samples.iter().zip(epochs) {
            let index = usize::from(shard.0);
            if !self.clients.deletions.asked[index].contains(*sample) {
                self.clients.acked[index].insert(*sample);
            }
            let record = self.raft.record(*shard);
            if *epoch < record.epoch {
                self.marks.see(Mark::WriteAckedUnderPastEpoch);
            } else if record.moving.is_some() {
                self.marks.see(Mark::WriteAckedWhileMoving);
            }
            self.check_shard(*shard);
        }
    }
}
