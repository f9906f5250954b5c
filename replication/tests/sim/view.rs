//! What a simulated node thinks of the others: by the real gossip core over the simulated network, or, since that
//! costs a good part of a run's time, by a plain view that lags and is sometimes wrong.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use saturn_ring::{Action, KeyRing, Liveness, Member, Membership, MembershipConfig, MembershipEvent, NodeId};

use crate::marks::Mark;
use crate::node::{Timer, generation};
use crate::world::{MS, Micros, SECOND, World, index_of};

const LOOK_EVERY: Micros = SECOND;
/// Looks in vain after which a node is taken to be down.
const MISSED_MAX: u32 = 2;
const SEEDS: usize = 3;

/// See the module's description.
#[derive(Default)]
pub(crate) struct View {
    /// Others that do not answer: for how many looks, and since when they are down.
    silent: BTreeMap<usize, (u32, Micros)>,
    gossip: Option<Box<Membership>>,
    /// When the next tick of the gossip core is due.
    armed: Option<Micros>,
}

impl View {
    pub(crate) fn stop(&mut self) {
        *self = Self::default();
    }
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7000 + node as u16))
}

impl World {
    pub(crate) fn start_view(&mut self, node: usize) {
        self.nodes[node].view.stop();
        if !self.params.gossip {
            return self.timer(node, LOOK_EVERY, Timer::See);
        }
        // The operator names nodes that are still there.
        let there = (0..self.nodes.len()).filter(|other| !self.nodes[*other].lost);
        let seeds = there.take(SEEDS).map(address).collect();
        let state = &self.nodes[node];
        let me = Member {
            id: state.id.clone(),
            generation: generation(node),
            zone: state.zone.clone(),
            gossip_addr: address(node),
            grpc_addr: address(node + 1000),
            http_addr: address(node + 2000),
        };
        let random = &mut self.random.gossip;
        let nonce = (u128::from(random.next()) << 64 | u128::from(random.next())).to_le_bytes();
        let config = MembershipConfig {
            me,
            boot: 1_000_000 + self.now / MS,
            keys: KeyRing::new(&[b"the secret of the simulated cluster"]).expect("valid"),
            seeds,
            boot_nonce: nonce,
            rng_seed: random.next(),
            cluster: None,
            placement_version: 0,
        };
        self.nodes[node].view.gossip = Some(Box::new(Membership::new(config, Duration::ZERO)));
        self.tick_gossip(node);
    }

    /// The time since a node started, as its gossip core counts.
    fn since_start(&self, node: usize) -> Duration {
        Duration::from_micros(self.now - self.nodes[node].started)
    }

    pub(crate) fn tick_gossip(&mut self, node: usize) {
        let now = self.since_start(node);
        self.nodes[node].view.armed = None;
        let mut actions = Vec::new();
        if let Some(gossip) = &mut self.nodes[node].view.gossip {
            gossip.handle_tick(now, &mut actions);
        }
        self.perform(node, actions);
    }

    pub(crate) fn receive_gossip(&mut self, from: usize, to: usize, bytes: &[u8]) {
        if !self.nodes[to].up {
            return;
        }
        let now = self.since_start(to);
        let mut actions = Vec::new();
        if let Some(gossip) = &mut self.nodes[to].view.gossip {
            gossip.handle_packet(now, address(from), bytes, &mut actions);
        }
        self.perform(to, actions);
    }

    fn perform(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { to, packet } => {
                    let to = usize::from(to.port() - 7000);
                    if to < self.nodes.len() {
                        self.note(node, "gossips", to as u64, packet.len() as u64);
                        self.send_gossip(node, to, packet);
                    }
                }
                Action::Event(MembershipEvent::Down(member)) => {
                    self.see(Mark::GossipSaysDown);
                    self.note(node, "thinks down", index_of(&member.id) as u64, 0);
                }
                Action::Event(MembershipEvent::Up(member)) => {
                    if self.nodes[index_of(&member.id)].boot > 1 {
                        self.see(Mark::GossipSaysUpAgain);
                    }
                    self.note(node, "thinks up", index_of(&member.id) as u64, 0);
                }
                Action::Event(_) => {}
            }
        }
        let view = &self.nodes[node].view;
        let Some(gossip) = &view.gossip else { return };
        let due = self.nodes[node].started + gossip.next_tick().as_micros() as Micros;
        if view.armed.is_none_or(|armed| due < armed) {
            self.nodes[node].view.armed = Some(due);
            let delay = due.saturating_sub(self.now).max(1);
            self.timer(node, delay, Timer::Gossip);
        }
    }

    /// The plain view: who can be reached at the moment, with some mistakes.
    pub(crate) fn see_others(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let is_mistaken = self.params.false_suspicion && !self.healed && self.random.node.percent(3);
            let answers = self.converse(node, other) && !is_mistaken;
            let now = self.now;
            let silent = &mut self.nodes[node].view.silent;
            if answers {
                silent.remove(&other);
            } else {
                silent.entry(other).or_insert((0, now)).0 += 1;
            }
        }
        self.timer(node, LOOK_EVERY, Timer::See);
    }

    /// Whether a node thinks that another one answers.
    pub(crate) fn sees_alive(&self, node: usize, other: &NodeId) -> bool {
        let view = &self.nodes[node].view;
        match &view.gossip {
            Some(gossip) => gossip.is_alive(other),
            None => !view.silent.contains_key(&index_of(other)),
        }
    }

    /// Whether a node thinks that another one has been down for long.
    pub(crate) fn sees_gone(&self, node: usize, other: &NodeId) -> bool {
        let view = &self.nodes[node].view;
        let after = self.params.gone_after;
        match &view.gossip {
            Some(gossip) => gossip.member(other).is_none_or(|state| {
                let down_for = self.since_start(node).saturating_sub(state.since).as_micros() as Micros;
                state.liveness == Liveness::Down && down_for > after
            }),
            None => {
                let silent = view.silent.get(&index_of(other));
                silent.is_some_and(|(missed, since)| *missed > MISSED_MAX && self.now - since > after)
            }
        }
    }
}
