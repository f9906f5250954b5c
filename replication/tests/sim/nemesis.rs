//! What goes wrong, and what the operator does: crashes, cuts, lost disks, clocks that jump; nodes that join, drain,
//! are replaced and forgotten. And the end of all that.
//!
//! The budget: at most one disk is lost at a time, until the shards have other nodes for it; with a single replica
//! none is.

use saturn_model::ShardId;
use saturn_ring::{ClusterId, MemberChange, NodeId, Placement, PlacementMember, Standing, Zone};
use uuid::Uuid;

use crate::marks::Mark;
use crate::node::{Node, generation, node_id};
use crate::world::{Event, HEAL_AT, MS, Micros, SECOND, World, index_of};

/// Nodes that there ever are.
const NODES_MAX: usize = 16;
/// Time between two looks whether all has come to rest.
const LOOK_EVERY: Micros = 500 * MS;

enum Fault {
    Crash,
    Partition,
    OneWay,
    Slow,
    LoseDisk,
    JumpClock,
    SecondRebalancer,
    LoseLeader,
}

fn zone(number: usize) -> Zone {
    Zone::new(&format!("z{number}")).expect("valid")
}

impl World {
    /// The first nodes, their shards, and the first events.
    pub(crate) fn form(&mut self) {
        let member = |index: usize| {
            PlacementMember::new(node_id(index), generation(index), zone(index % self.params.zones))
        };
        let members: Vec<PlacementMember> = (0..self.params.nodes).map(member).collect();
        let replication_factor = self.params.replication_factor;
        let cluster = ClusterId(Uuid::from_u128(7));
        let placement = Placement::form(cluster, &members, self.params.shards, replication_factor);
        let placement = placement.expect("there are enough nodes");
        self.raft.found(&placement.shards);
        self.decide_members(MemberChange::Found { replication_factor, members }).expect("the first");
        for index in 0..self.params.nodes {
            self.nodes.push(Node::new(index, zone(index % self.params.zones), placement.clone()));
        }
        for index in 0..self.params.nodes {
            self.restart(index);
        }
        self.schedule(10 * MS, Event::Write);
        self.schedule(20 * MS, Event::Read);
        self.schedule(self.params.fault_every, Event::Fault);
        self.schedule(self.params.change_every, Event::Change);
        self.schedule(HEAL_AT, Event::Heal);
        if let Some(every) = self.params.delete_every {
            self.schedule(every, Event::Delete);
        }
    }

    fn up_nodes(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].up).collect()
    }

    pub(crate) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let delay = self.random.nemesis.range(1, 2 * self.params.fault_every);
        self.schedule(delay, Event::Fault);
        let params = &self.params;
        let mut kinds = Vec::new();
        let possible = [
            (params.crashes, Fault::Crash),
            (params.partitions, Fault::Partition),
            (params.one_way, Fault::OneWay),
            (params.slow_nodes, Fault::Slow),
            (params.lost_disks, Fault::LoseDisk),
            (params.clock_jumps, Fault::JumpClock),
            (params.leader_loss, Fault::SecondRebalancer),
            (params.leader_loss, Fault::LoseLeader),
        ];
        kinds.extend(possible.into_iter().filter(|(is_on, _)| *is_on).map(|(_, kind)| kind));
        let Some(kind) = self.random.nemesis.pick(&kinds) else { return };
        let up = self.up_nodes();
        let Some(node) = self.random.nemesis.pick(&up).copied() else { return };
        let lasts = self.random.nemesis.scale(50 * MS, 10 * SECOND);
        match kind {
            Fault::Crash => {
                self.crash(node);
                self.schedule(lasts, Event::Restart(node));
            }
            Fault::Partition => self.partition(lasts),
            Fault::OneWay => self.cut_one_way(node, lasts),
            Fault::Slow => {
                self.see(Mark::NodeSlow);
                self.slow.insert(node, self.now + lasts);
            }
            Fault::LoseDisk => self.lose_disk(node),
            Fault::JumpClock => {
                self.see(Mark::ClockJumped);
                let hour = 3_600_000;
                self.nodes[node].clock_off_ms = self.random.nemesis.range(0, 2 * hour) as i64 - hour as i64;
            }
            Fault::SecondRebalancer => {
                self.raft.cluster_leaders.insert(0, node);
                self.raft.cluster_leaders.truncate(2);
            }
            Fault::LoseLeader => {
                let shard = self.random.nemesis.range(0, u64::from(self.params.shards) - 1);
                self.lose_leader(ShardId(shard as u16));
            }
        }
    }

    fn cut_for(&mut self, pairs: Vec<(usize, usize)>, lasts: Micros) {
        self.cut.extend(pairs.iter().copied());
        self.schedule(lasts, Event::Mend(pairs));
    }

    fn partition(&mut self, lasts: Micros) {
        let sides: Vec<bool> = (0..self.nodes.len()).map(|_| self.random.nemesis.percent(50)).collect();
        let all = 0..sides.len();
        let pairs: Vec<(usize, usize)> = all
            .flat_map(|a| (0..sides.len()).map(move |b| (a, b)))
            .filter(|(a, b)| sides[*a] != sides[*b])
            .collect();
        self.see(Mark::Partitioned);
        self.remark(|| format!("partition {sides:?} for {lasts}"));
        self.cut_for(pairs, lasts);
    }

    /// One direction of one pair, or all that a node says, or all that it hears.
    fn cut_one_way(&mut self, node: usize, lasts: Micros) {
        let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
        let pairs: Vec<(usize, usize)> = match self.random.nemesis.range(0, 2) {
            0 => self.random.nemesis.pick(&others).map(|other| (node, *other)).into_iter().collect(),
            1 => others.iter().map(|other| (node, *other)).collect(),
            _ => others.iter().map(|other| (*other, node)).collect(),
        };
        self.see(Mark::CutOneWay);
        self.remark(|| format!("one way {pairs:?} for {lasts}"));
        self.cut_for(pairs, lasts);
    }

    pub(crate) fn mend(&mut self, pairs: &[(usize, usize)]) {
        self.see(Mark::Healed);
        for pair in pairs {
            self.cut.remove(pair);
        }
    }

    /// Whether a shard has a node whose disk is lost.
    pub(crate) fn misses_a_disk(&self) -> bool {
        let mut writers = self.raft.records().flat_map(|record| record.writers());
        writers.any(|id| self.nodes[index_of(id)].lost)
    }

    fn lose_disk(&mut self, node: usize) {
        let waits = self.nodes.iter().any(|other| {
            other.lost && self.cluster.member(&other.id).is_some_and(|m| m.standing == Standing::Active)
        });
        if self.misses_a_disk() || waits || self.nodes.len() >= NODES_MAX {
            return;
        }
        self.see(Mark::NodeLost);
        let id = self.id(node);
        if self.raft.records().any(|record| record.moving.is_some() && record.is_writer(&id)) {
            self.see(Mark::NodeLostWhileMoving);
        }
        self.crash(node);
        self.note(node, "is lost", 0, 0);
        let state = &mut self.nodes[node];
        state.lost = true;
        state.durable.iter_mut().chain(&mut state.visible).for_each(crate::bits::Bits::clear);
        for shard in (0..self.params.shards).map(ShardId) {
            self.check_shard(shard);
        }
        let delay = self.random.nemesis.scale(100 * MS, 5 * SECOND);
        self.schedule(delay, Event::Replace(node));
    }

    /// A new node, with what some other one knows.
    fn join(&mut self, zone: Zone) -> Option<usize> {
        let up = self.up_nodes();
        let teacher = self.random.nemesis.pick(&up).copied()?;
        let placement = (*self.nodes[teacher].placement.load()).clone();
        let index = self.nodes.len();
        let member = PlacementMember::new(node_id(index), generation(index), zone.clone());
        self.decide_members(MemberChange::Register(member)).expect("a new name");
        self.nodes.push(Node::new(index, zone, placement));
        self.restart(index);
        self.see(Mark::NodeJoined);
        Some(index)
    }

    /// The operator replaces a node that does not come back.
    pub(crate) fn replace_lost(&mut self, node: usize) {
        let Some(new) = self.join(self.nodes[node].zone.clone()) else {
            return self.schedule(SECOND, Event::Replace(node));
        };
        let (old, new) = (self.id(node), self.id(new));
        if self.decide_members(MemberChange::Replace { old, new }).is_ok() {
            self.see(Mark::NodeReplaced);
        }
    }

    /// The operator changes the member list.
    pub(crate) fn change_members(&mut self) {
        if self.healed || !self.params.membership {
            return;
        }
        let delay = self.random.nemesis.range(1, 2 * self.params.change_every);
        self.schedule(delay, Event::Change);
        let members = self.cluster.members.clone();
        let of = |standing| -> Vec<NodeId> {
            members.iter().filter(|m| m.standing == standing).map(|m| m.id.clone()).collect()
        };
        let (active, draining) = (of(Standing::Active), of(Standing::Draining));
        let has_room = self.nodes.len() < NODES_MAX - 2;
        match self.random.nemesis.range(0, 9) {
            0..=2 if has_room => {
                let number = self.random.nemesis.index(self.params.zones);
                self.join(zone(number));
            }
            3..=4 => self.stand(&active, Standing::Draining, Mark::NodeDrained),
            5 => self.stand(&draining, Standing::Active, Mark::NodeUndrained),
            6..=7 if has_room => {
                let Some(old) = self.random.nemesis.pick(&active).cloned() else { return };
                let Some(new) = self.join(self.nodes[index_of(&old)].zone.clone()) else { return };
                let new = self.id(new);
                if self.decide_members(MemberChange::Replace { old, new }).is_ok() {
                    self.see(Mark::NodeReplaced);
                }
            }
            8 => {
                let holds = |id: &NodeId| self.raft.records().any(|record| record.is_writer(id));
                let empty: Vec<NodeId> = draining.into_iter().filter(|id| !holds(id)).collect();
                let Some(id) = self.random.nemesis.pick(&empty).cloned() else { return };
                if self.decide_members(MemberChange::Forget(id)).is_ok() {
                    self.see(Mark::NodeForgotten);
                }
            }
            9 => {
                let is_paused = !self.cluster.is_paused;
                if self.decide_members(MemberChange::Pause(is_paused)).is_ok() && is_paused {
                    self.see(Mark::MovesPaused);
                }
            }
            _ => {}
        }
    }

    fn stand(&mut self, among: &[NodeId], standing: Standing, mark: Mark) {
        let Some(id) = self.random.nemesis.pick(among).cloned() else { return };
        if self.nodes[index_of(&id)].lost {
            return;
        }
        if self.decide_members(MemberChange::Stand(id, standing)).is_ok() {
            self.see(mark);
        }
    }

    /// The faults end: from now on the cluster must come to rest.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.remark(|| "all faults end".into());
        self.cut.clear();
        self.slow.clear();
        for node in 0..self.nodes.len() {
            self.restart(node);
        }
        self.decide_members(MemberChange::Pause(false)).expect("always allowed");
        self.schedule(LOOK_EVERY, Event::Look);
    }

    pub(crate) fn look(&mut self) {
        self.schedule(LOOK_EVERY, Event::Look);
        self.check_rest();
    }
}
