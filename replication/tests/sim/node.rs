//! A simulated node: what is on its disk, what a crash takes, and its timers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use saturn_model::ShardId;
use saturn_replication::{MemberList, PlacementHandle};
use saturn_ring::{Epoch, Generation, NodeId, Placement, ShardRecord, Zone};
use uuid::Uuid;

use crate::bits::Bits;
use crate::coordinator::{ReadOp, WriteOp};
use crate::deletions::Deleting;
use crate::marks::Mark;
use crate::message::{Request, Response, Sample};
use crate::mover::{Cleaning, FenceJob, Mover};
use crate::planted::Bug;
use crate::raft::Proposal;
use crate::replica::{Admitted, Judged, Settling};
use crate::view::View;
use crate::world::{CallId, Event, MS, Micros, World};

/// Time between two looks for moves to this node.
pub(crate) const LOOK_EVERY: Micros = 250 * MS;
/// Time between two looks of who leads the member list.
pub(crate) const REBALANCE_EVERY: Micros = 500 * MS;
/// Time between two comparisons of the placement with some other node.
pub(crate) const COMPARE_EVERY: Micros = 3_000 * MS;
/// How long one of the nodes' own calls may take.
pub(crate) const CALL_LIMIT: Micros = 2_000 * MS;

/// What goes on when a call has been answered, or not in time.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    Append { write: u64, items: Vec<Item> },
    AppendAgain { write: u64, items: Vec<Item> },
    Select { read: u64, shards: Vec<(ShardId, Epoch)>, pushed: bool },
    SelectAgain { read: u64, shards: Vec<(ShardId, Epoch)> },
    Fence { job: u64 },
    Frame { shard: ShardId, serial: u64 },
    Digest { serial: u64 },
    Pull,
    Propose { proposal: u64 },
}

/// One batch on its way to one replica.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) index: usize,
    pub(crate) epoch: Epoch,
    pub(crate) pushed: bool,
}

/// What a node does later.
#[derive(Clone, Debug)]
pub(crate) enum Timer {
    CallLimit(CallId),
    WriteLimit(u64),
    ReadLimit(u64),
    Hedge(u64),
    AppendVisible(u64),
    AppendDurable(u64),
    Adopt { from: usize, call: CallId, request: Request },
    SelectDone { from: usize, call: CallId, shards: Vec<Judged> },
    LookForMoves,
    MoveOn(ShardId, u64),
    Rebalance,
    Clean,
    Drop(ShardId, Epoch),
    Compare,
    See,
    Gossip,
    ProposeAgain(u64),
    Apply(ShardId, ShardRecord),
    Members(MemberList),
}

/// See the module's description.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) zone: Zone,
    pub(crate) up: bool,
    /// Whether its disk is gone for good.
    pub(crate) lost: bool,
    pub(crate) boot: u64,
    pub(crate) started: Micros,
    /// How far its clock is off, in milliseconds.
    pub(crate) clock_off_ms: i64,
    disk: Arc<Mutex<Placement>>,
    pub(crate) placement: PlacementHandle,
    /// Of each shard, the samples on its disk.
    pub(crate) durable: Vec<Bits>,
    /// Of each shard, the samples that it answers with.
    pub(crate) visible: Vec<Bits>,
    /// Of each shard, the last deletion that it has done, on its disk.
    pub(crate) deleted: Vec<Epoch>,
    /// How it deletes.
    pub(crate) deleting: Deleting,
    /// Shards whose deletions it has forgotten.
    pub(crate) forgetting: BTreeSet<ShardId>,
    /// The highest epochs that it acted under, for the check.
    pub(crate) acted: Vec<Epoch>,
    /// Numbers of what it starts.
    pub(crate) serial: u64,
    pub(crate) admitted: BTreeMap<u64, Admitted>,
    pub(crate) settling: Vec<Settling>,
    pub(crate) streams: BTreeMap<u64, Bits>,
    pub(crate) calls: BTreeMap<CallId, (usize, Then)>,
    pub(crate) writes: BTreeMap<u64, WriteOp>,
    pub(crate) reads: BTreeMap<u64, ReadOp>,
    pub(crate) movers: BTreeMap<ShardId, Mover>,
    pub(crate) fences: BTreeMap<u64, FenceJob>,
    pub(crate) proposals: BTreeMap<u64, Proposal>,
    pub(crate) rebalancing: usize,
    pub(crate) cleaning: Option<Cleaning>,
    pub(crate) view: View,
}

fn open(disk: &Arc<Mutex<Placement>>) -> PlacementHandle {
    let placement = disk.lock().expect("no panic holds it").clone();
    let disk = Arc::clone(disk);
    PlacementHandle::new(placement, move |placement| {
        disk.lock().expect("no panic holds it").clone_from(placement);
        Ok(None)
    })
}

/// The life of a node's disk: there is one for each node ever.
pub(crate) fn generation(node: usize) -> Generation {
    Generation(Uuid::from_u128(node as u128 + 1))
}

pub(crate) fn node_id(node: usize) -> NodeId {
    NodeId::new(&format!("n{node}")).expect("valid")
}

impl Node {
    pub(crate) fn new(index: usize, zone: Zone, placement: Placement) -> Self {
        let shards = placement.shards.len();
        let disk = Arc::new(Mutex::new(placement));
        Self {
            id: node_id(index),
            zone,
            up: false,
            lost: false,
            boot: 0,
            started: 0,
            clock_off_ms: 0,
            placement: open(&disk),
            disk,
            durable: vec![Bits::default(); shards],
            visible: vec![Bits::default(); shards],
            deleted: vec![Epoch(0); shards],
            deleting: Deleting::default(),
            forgetting: BTreeSet::new(),
            acted: vec![Epoch(0); shards],
            serial: 0,
            admitted: BTreeMap::new(),
            settling: Vec::new(),
            streams: BTreeMap::new(),
            calls: BTreeMap::new(),
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            movers: BTreeMap::new(),
            fences: BTreeMap::new(),
            proposals: BTreeMap::new(),
            rebalancing: 0,
            cleaning: None,
            view: View::default(),
        }
    }

    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn record(&self, shard: ShardId) -> ShardRecord {
        self.placement.load().shards[usize::from(shard.0)].clone()
    }

    /// Takes a newer record over, on the disk first.
    pub(crate) fn adopt(&mut self, shard: ShardId, record: ShardRecord) {
        self.placement.adopt(shard, record).expect("a decided record is valid");
        self.delete_overdue();
    }

    /// The same for a placement.
    pub(crate) fn adopt_placement(&mut self, theirs: &Placement) {
        self.placement.adopt_placement(theirs).expect("a placement of this cluster is valid");
        if self.deleting.bug == Some(Bug::DeletionMissed) {
            let placement = self.placement.load();
            self.deleted = placement.shards.iter().map(ShardRecord::deleted_through).collect();
        }
        self.delete_overdue();
    }

    pub(crate) fn store(&mut self, shard: ShardId, sample: Sample) {
        self.visible[usize::from(shard.0)].insert(sample);
        self.durable[usize::from(shard.0)].insert(sample);
    }

    /// What a crash takes.
    fn forget(&mut self) {
        self.admitted.clear();
        self.settling.clear();
        self.streams.clear();
        self.calls.clear();
        self.writes.clear();
        self.reads.clear();
        self.movers.clear();
        self.fences.clear();
        self.proposals.clear();
        self.forgetting.clear();
        self.rebalancing = 0;
        self.cleaning = None;
        self.visible.clone_from(&self.durable);
        self.placement = open(&self.disk);
    }
}

impl World {
    /// Starts a node, or starts it again.
    pub(crate) fn restart(&mut self, index: usize) {
        let (now, bug) = (self.now, self.bug);
        let node = &mut self.nodes[index];
        node.deleting.bug = bug;
        if node.up || node.lost {
            return;
        }
        node.up = true;
        node.boot += 1;
        node.started = now;
        node.forget();
        self.note(index, "starts", 0, 0);
        self.start_view(index);
        let timers = [
            (LOOK_EVERY, Timer::LookForMoves),
            (REBALANCE_EVERY, Timer::Rebalance),
            (self.params.clean_every, Timer::Clean),
            (COMPARE_EVERY, Timer::Compare),
        ];
        for (every, timer) in timers {
            let delay = self.random.node.range(1, every);
            self.timer(index, delay, timer);
        }
        self.catch_up(index);
    }

    /// Stops a node at once. What was not synced is kept or lost.
    pub(crate) fn crash(&mut self, index: usize) {
        if !self.nodes[index].up {
            return;
        }
        self.note(index, "crashes", 0, 0);
        self.see(Mark::NodeCrashed);
        if !self.nodes[index].movers.is_empty() {
            self.see(Mark::TargetCrashed);
        }
        if !self.nodes[index].streams.is_empty() {
            self.see(Mark::SourceCrashed);
        }
        let unsynced: Vec<Admitted> = std::mem::take(&mut self.nodes[index].admitted).into_values().collect();
        for admitted in unsynced {
            if self.random.disk.percent(50) {
                self.see(Mark::UnsyncedLost);
                continue;
            }
            for (shard, sample) in admitted.samples {
                self.nodes[index].durable[usize::from(shard.0)].insert(sample);
            }
        }
        let node = &mut self.nodes[index];
        node.up = false;
        node.forget();
        node.view.stop();
    }

    /// What a timer brings.
    pub(crate) fn fire(&mut self, node: usize, timer: Timer) {
        match timer {
            Timer::CallLimit(call) => {
                if self.nodes[node].calls.contains_key(&call) {
                    self.note(node, "waits no longer", call, 0);
                    self.resume(node, call, None);
                }
            }
            Timer::WriteLimit(write) => self.end_write(node, write),
            Timer::ReadLimit(read) => self.end_read(node, read),
            Timer::Hedge(read) => self.hedge(node, read),
            Timer::AppendVisible(append) => self.append_visible(node, append),
            Timer::AppendDurable(append) => self.append_durable(node, append),
            Timer::Adopt { from, call, request } => self.adopt_pushed(node, (from, call), request),
            Timer::SelectDone { from, call, shards } => self.select_done(node, (from, call), shards),
            Timer::LookForMoves => {
                self.look_for_moves(node);
                self.timer(node, LOOK_EVERY, Timer::LookForMoves);
            }
            Timer::MoveOn(shard, serial) => self.move_on(node, shard, serial),
            Timer::Rebalance => {
                self.rebalance(node);
                self.forget_deletions(node);
                self.timer(node, REBALANCE_EVERY, Timer::Rebalance);
            }
            Timer::Clean => {
                self.clean(node);
                self.timer(node, self.params.clean_every, Timer::Clean);
            }
            Timer::Drop(shard, epoch) => self.drop_copy(node, shard, epoch),
            Timer::Compare => {
                let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
                if let Some(other) = self.random.node.pick(&others).copied() {
                    self.call(node, other, Request::PullPlacement, Then::Pull, CALL_LIMIT);
                }
                self.timer(node, COMPARE_EVERY, Timer::Compare);
            }
            Timer::See => self.see_others(node),
            Timer::Gossip => self.tick_gossip(node),
            Timer::ProposeAgain(proposal) => self.propose_again(node, proposal),
            Timer::Apply(shard, record) => {
                self.note(node, "applies", u64::from(shard.0), record.epoch.0);
                self.nodes[node].adopt(shard, record);
            }
            Timer::Members(list) => {
                let adopted = self.nodes[node].placement.adopt_all(&[], Some(&list));
                adopted.expect("a decided member list is valid");
            }
        }
    }

    /// A call is over: with an answer, or without.
    pub(crate) fn resume(&mut self, node: usize, call: CallId, response: Option<Response>) {
        let Some((peer, then)) = self.nodes[node].calls.remove(&call) else { return };
        match then {
            Then::Append { write, items } => self.appended(node, peer, (write, items), response),
            Then::AppendAgain { write, items } => self.append_again(node, peer, (write, items), response),
            Then::Select { read, shards, pushed } => {
                self.selected(node, peer, (read, shards, pushed), response);
            }
            Then::SelectAgain { read, shards } => self.select_again(node, peer, (read, shards), response),
            Then::Fence { job } => self.fenced(node, peer, job, response),
            Then::Frame { shard, serial } => self.took_frame(node, peer, (shard, serial), response),
            Then::Digest { serial } => self.compared(node, serial, response),
            Then::Pull => {
                if let Some(Response::Placement(theirs)) = response {
                    self.nodes[node].adopt_placement(&theirs);
                }
            }
            Then::Propose { proposal } => self.proposed(node, proposal, response),
        }
    }

    /// Lets a node hear of what was decided.
    pub(crate) fn deliver_decision(&mut self, node: usize, timer: Timer) {
        if self.nodes[node].up {
            let longest = if self.healed { 1_000 * MS } else { self.params.apply_max };
            let delay = self.random.raft.scale(100, longest);
            let boot = self.nodes[node].boot;
            self.schedule(delay, Event::Timer { node, boot, timer });
        }
    }
}
