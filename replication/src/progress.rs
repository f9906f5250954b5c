//! A read under way: which replicas were asked for which shards, and whom to ask next.
//!
//! Pure: the coordinator's core for reads, driven by `read` and by the simulator (`tests/sim/`) alike. Every shard wants answers of a quorum of its slots under one epoch. At first exactly a quorum is asked;
//! a failure, a refusal or too long a silence brings in the next slot. Order of preference: this node,
//! then those that gossip calls alive, then by shard number, so that the load spreads evenly.

use std::collections::BTreeMap;

use saturn_model::ShardId;
use saturn_ring::{Epoch, NodeId, Placement, ShardRecord};

use crate::MissingShard;

/// One request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// To whom.
    pub node: NodeId,
    /// For which shards, each with the epoch that the answer must be given under.
    pub shards: Vec<(ShardId, Epoch)>,
}

/// All shards of a read; `T` is what a replica answers for one of them.
pub struct ReadProgress<T> {
    /// The index is the shard's number.
    shards: Vec<ShardRead<T>>,
}

struct ShardRead<T> {
    epoch: Epoch,
    quorum: usize,
    /// The record's nodes, in the order in which they are asked.
    candidates: Vec<NodeId>,
    /// How many of the candidates were asked.
    asked: usize,
    /// How many of these have not answered.
    waiting: usize,
    answers: Vec<T>,
    /// How many replicas answered: answers may have become one.
    answered: usize,
    failures: Vec<String>,
    restarts: u8,
}

/// How often a request follows a shard to a newer record. A whole move has three.
pub const RESTARTS_MAX: u8 = 8;

/// The nodes of a shard's record in the order in which to ask them.
pub(crate) fn preference(
    shard: ShardId,
    record: &ShardRecord,
    me: &NodeId,
    is_alive: impl Fn(&NodeId) -> bool,
) -> Vec<NodeId> {
    let others = record.readers().filter(|node| *node != me);
    let (mut alive, mut dead): (Vec<_>, Vec<_>) = others.partition(|node| is_alive(node));
    for group in [&mut alive, &mut dead] {
        let turn = usize::from(shard.0) % group.len().max(1);
        group.rotate_left(turn);
    }
    let mine = record.readers().filter(|node| *node == me);
    mine.chain(alive).chain(dead).cloned().collect()
}

impl<T> ShardRead<T> {
    fn new(record: &ShardRecord, candidates: Vec<NodeId>) -> Self {
        Self {
            epoch: record.epoch,
            quorum: record.quorum(),
            candidates,
            asked: 0,
            waiting: 0,
            answers: Vec::new(),
            answered: 0,
            failures: Vec::new(),
            restarts: 0,
        }
    }

    fn is_complete(&self) -> bool {
        self.answered >= self.quorum
    }

    fn ask_next(&mut self) -> Option<NodeId> {
        let next = self.candidates.get(self.asked)?.clone();
        self.asked += 1;
        self.waiting += 1;
        Some(next)
    }
}

impl<T> ReadProgress<T> {
    /// Nobody has been asked yet.
    pub fn new(placement: &Placement, me: &NodeId, is_alive: impl Fn(&NodeId) -> bool) -> Self {
        let shards = (0_u16..).map(ShardId).zip(&placement.shards);
        let shards =
            shards.map(|(shard, record)| ShardRead::new(record, preference(shard, record, me, &is_alive)));
        Self { shards: shards.collect() }
    }

    /// What must be sent so that every shard can get its quorum.
    pub fn ask_needed(&mut self) -> Vec<Ask> {
        self.ask(|read| read.quorum.saturating_sub(read.answered + read.waiting))
    }

    /// One more request for every shard that still waits and has someone left to ask.
    pub fn ask_spare(&mut self) -> Vec<Ask> {
        self.ask(|read| usize::from(!read.is_complete()))
    }

    /// Asks, for each shard, so many more of its nodes, as far as there are any.
    fn ask(&mut self, how_many: impl Fn(&ShardRead<T>) -> usize) -> Vec<Ask> {
        let mut by_node: BTreeMap<NodeId, Vec<(ShardId, Epoch)>> = BTreeMap::new();
        for (shard, read) in (0_u16..).map(ShardId).zip(&mut self.shards) {
            for _ in 0..how_many(read) {
                let Some(node) = read.ask_next() else { break };
                by_node.entry(node).or_default().push((shard, read.epoch));
            }
        }
        by_node.into_iter().map(|(node, shards)| Ask { node, shards }).collect()
    }

    /// A replica answered for a shard.
    pub fn answered(&mut self, shard: ShardId, epoch: Epoch, answer: T) {
        if let Some(read) = self.awaited(shard, epoch) {
            read.answers.push(answer);
            read.answered += 1;
        }
    }

    /// The answers for a shard, if there are several: the caller makes one of them, for
    /// [`ReadProgress::put_back`].
    pub fn take_several(&mut self, shard: ShardId) -> Option<Vec<T>> {
        let read = self.shards.get_mut(usize::from(shard.0)).filter(|read| read.answers.len() > 1)?;
        Some(std::mem::take(&mut read.answers))
    }

    /// What became of the answers that [`ReadProgress::take_several`] gave.
    pub fn put_back(&mut self, shard: ShardId, answer: T) {
        self.shards[usize::from(shard.0)].answers.push(answer);
    }

    /// A replica did not answer for a shard.
    pub fn failed(&mut self, shard: ShardId, epoch: Epoch, node: &NodeId, reason: &str) {
        if let Some(read) = self.awaited(shard, epoch) {
            read.failures.push(format!("{node}: {reason}"));
        }
    }

    fn awaited(&mut self, shard: ShardId, epoch: Epoch) -> Option<&mut ShardRead<T>> {
        let read = self.shards.get_mut(usize::from(shard.0))?;
        if read.epoch != epoch {
            return None; // An answer to what was asked before the shard was restarted.
        }
        read.waiting = read.waiting.saturating_sub(1);
        Some(read)
    }

    /// Starts a shard again under a newer record. False, and nothing changes, if that has happened too often or
    /// the record is not newer.
    pub fn restart(
        &mut self,
        shard: ShardId,
        record: &ShardRecord,
        me: &NodeId,
        is_alive: impl Fn(&NodeId) -> bool,
    ) -> bool {
        let Some(read) = self.shards.get_mut(usize::from(shard.0)) else { return false };
        if read.restarts >= RESTARTS_MAX || record.epoch <= read.epoch {
            return false;
        }
        let restarts = read.restarts + 1;
        *read = ShardRead { restarts, ..ShardRead::new(record, preference(shard, record, me, is_alive)) };
        true
    }

    /// Whether no answer that may still come can make a difference.
    pub fn is_done(&self) -> bool {
        self.shards.iter().all(|read| read.is_complete() || read.waiting == 0)
    }

    /// All answers, and the shards without a quorum of them. `silence` describes those who did not answer.
    pub fn finish(self, silence: &str) -> (Vec<T>, Vec<MissingShard>) {
        let (mut answers, mut missing) = (Vec::new(), Vec::new());
        for (shard, mut read) in (0_u16..).map(ShardId).zip(self.shards) {
            if !read.is_complete() {
                if read.waiting > 0 {
                    read.failures.push(format!("{} of its replicas: {silence}", read.waiting));
                }
                read.failures.sort();
                missing.push(MissingShard { shard, reason: read.failures.join("; ") });
            }
            answers.append(&mut read.answers);
        }
        (answers, missing)
    }
}

#[cfg(test)]
mod tests {
    use saturn_ring::{ClusterId, Generation, PlacementMember, Zone};
    use uuid::Uuid;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn placement(nodes: &[&str], shards: u16, rf: u8) -> Placement {
        let member = |name: &&str| {
            PlacementMember::new(node(name), Generation(Uuid::nil()), Zone::new(name).expect("valid"))
        };
        let members: Vec<_> = nodes.iter().map(member).collect();
        Placement::form(ClusterId(Uuid::nil()), &members, shards, rf).expect("enough nodes")
    }

    fn shards_asked(asks: &[Ask]) -> BTreeMap<&str, usize> {
        asks.iter().map(|ask| (ask.node.as_str(), ask.shards.len())).collect()
    }

    const FIRST: Epoch = Epoch::FIRST;

    #[test]
    fn a_quorum_is_asked_and_the_load_spreads() {
        let placement = placement(&["a", "b", "c"], 64, 3);
        let mut read = ReadProgress::<u8>::new(&placement, &node("a"), |_| true);
        assert_eq!(shards_asked(&read.ask_needed()), BTreeMap::from([("a", 64), ("b", 32), ("c", 32)]));
        assert!(read.ask_needed().is_empty());
        let mut outsider = ReadProgress::<u8>::new(&placement, &node("z"), |_| true);
        let asked = outsider.ask_needed();
        assert!(asked.iter().all(|ask| (42..=43).contains(&ask.shards.len())), "{asked:?}");
    }

    #[test]
    fn the_dead_are_asked_last() {
        let placement = placement(&["a", "b", "c"], 8, 3);
        let mut read = ReadProgress::<u8>::new(&placement, &node("a"), |id| *id != node("b"));
        assert_eq!(shards_asked(&read.ask_needed()), BTreeMap::from([("a", 8), ("c", 8)]));
        assert_eq!(shards_asked(&read.ask_spare()), BTreeMap::from([("b", 8)]));
        assert!(read.ask_spare().is_empty());
    }

    #[test]
    fn a_failure_brings_in_the_next() {
        let placement = placement(&["a", "b", "c"], 1, 3);
        let shard = ShardId(0);
        let mut read = ReadProgress::new(&placement, &node("a"), |_| true);
        assert_eq!(shards_asked(&read.ask_needed()), BTreeMap::from([("a", 1), ("b", 1)]));
        read.answered(shard, FIRST, 'a');
        read.failed(shard, FIRST, &node("b"), "down");
        assert_eq!(shards_asked(&read.ask_needed()), BTreeMap::from([("c", 1)]));
        assert!(!read.is_done());
        read.answered(shard, FIRST, 'c');
        assert!(read.is_done());
        assert_eq!(read.finish("silent"), (vec!['a', 'c'], vec![]));
    }

    #[test]
    fn a_shard_without_quorum_is_missing() {
        let placement = placement(&["a", "b", "c"], 1, 3);
        let shard = ShardId(0);
        let mut read = ReadProgress::new(&placement, &node("a"), |_| true);
        read.ask_needed();
        read.ask_spare();
        read.answered(shard, FIRST, 'a');
        read.failed(shard, FIRST, &node("b"), "down");
        assert!(!read.is_done());
        let reason = "1 of its replicas: silent; b: down".to_owned();
        assert_eq!(read.finish("silent"), (vec!['a'], vec![MissingShard { shard, reason }]));
    }

    #[test]
    fn a_newer_record_starts_the_shard_over_a_few_times() {
        let placement = placement(&["a", "b", "c"], 1, 3);
        let (shard, me) = (ShardId(0), node("a"));
        let mut read = ReadProgress::new(&placement, &me, |_| true);
        read.ask_needed();
        read.answered(shard, FIRST, 'a');
        let at = |epoch| ShardRecord { epoch: Epoch(epoch), ..placement.shards[0].clone() };
        assert!(read.restart(shard, &at(2), &me, |_| true));
        read.answered(shard, FIRST, 'b');
        assert_eq!(shards_asked(&read.ask_needed()), BTreeMap::from([("a", 1), ("b", 1)]));
        assert!(!read.restart(shard, &at(2), &me, |_| true), "it is not newer");
        let max = u64::from(RESTARTS_MAX) + 1;
        assert!((3..=max).all(|epoch| read.restart(shard, &at(epoch), &me, |_| true)));
        assert!(!read.restart(shard, &at(max + 1), &me, |_| true));
        assert_eq!(read.finish("silent").0, Vec::<char>::new());
    }

    #[test]
    fn one_replica_is_asked_alone() {
        let placement = placement(&["a"], 4, 1);
        let mut read = ReadProgress::<u8>::new(&placement, &node("a"), |_| true);
        assert_eq!(shards_asked(&read.ask_needed()), BTreeMap::from([("a", 4)]));
        assert!(read.ask_spare().is_empty());
    }
}
