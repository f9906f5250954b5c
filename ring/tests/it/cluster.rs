//! A simulated network of [`Membership`] cores: virtual time, seeded delays and losses, partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use saturn_ring::{
    Action, Generation, KeyRing, Liveness, Member, Membership, MembershipConfig, MembershipEvent, NodeId,
    PACKET_BYTES_MAX, Zone,
};
use uuid::Uuid;

pub(crate) const SECRET: &[u8] = b"the secret of the simulated cluster";

/// A packet under way.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// The network, the clock and the nodes.
pub(crate) struct Cluster {
    pub(crate) now: Duration,
    pub(crate) nodes: BTreeMap<SocketAddr, Membership>,
    pub(crate) events: Vec<(SocketAddr, MembershipEvent)>,
    /// Every packet ever sent.
    pub(crate) sent: Vec<Packet>,
    /// Packets lost, of each hundred.
    pub(crate) loss_percent: u64,
    /// Nodes on the far side of a partition.
    pub(crate) far_side: BTreeSet<SocketAddr>,
    under_way: BTreeMap<(Duration, u64), Packet>,
    random: u64,
    boots: u64,
}

pub(crate) fn addr(node: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7000 + node))
}

pub(crate) fn id(node: u16) -> NodeId {
    NodeId::new(&format!("node-{node}")).expect("valid")
}

pub(crate) fn member(node: u16) -> Member {
    Member {
        id: id(node),
        generation: Generation(Uuid::from_u128(u128::from(node))),
        zone: Zone::new(&format!("zone-{}", node % 3)).expect("valid"),
        gossip_addr: addr(node),
        grpc_addr: addr(node + 1000),
        http_addr: addr(node + 2000),
    }
}

impl Cluster {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            nodes: BTreeMap::new(),
            events: Vec::new(),
            sent: Vec::new(),
            loss_percent: 0,
            far_side: BTreeSet::new(),
            under_way: BTreeMap::new(),
            random: seed,
            boots: 1_000_000,
        }
    }

    /// Splitmix64.
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// What a node would start from; nodes 0, 1 and 2 are the seeds.
    pub(crate) fn config(&mut self, me: Member) -> MembershipConfig {
        self.boots += 1000;
        let (a, b) = (self.random(), self.random());
        MembershipConfig {
            me,
            boot: self.boots,
            keys: KeyRing::new(&[SECRET]).expect("valid"),
            seeds: vec![addr(0), addr(1), addr(2)],
            boot_nonce: (u128::from(a) << 64 | u128::from(b)).to_le_bytes(),
            rng_seed: self.random(),
            cluster: None,
            placement_version: 0,
        }
    }

    pub(crate) fn start(&mut self, node: u16) {
        let config = self.config(member(node));
        self.start_with(config);
    }

    pub(crate) fn start_with(&mut self, config: MembershipConfig) {
        let at = config.me.gossip_addr;
        self.nodes.insert(at, Membership::new(config, self.now));
    }

    pub(crate) fn crash(&mut self, node: u16) {
        self.nodes.remove(&addr(node));
    }

    pub(crate) fn node(&mut self, node: u16) -> &mut Membership {
        self.nodes.get_mut(&addr(node)).expect("the node runs")
    }

    /// Hands a packet to a node, now.
    pub(crate) fn deliver(&mut self, packet: &Packet) {
        let mut actions = Vec::new();
        if let Some(node) = self.nodes.get_mut(&packet.to) {
            node.handle_packet(self.now, packet.from, &packet.bytes, &mut actions);
        }
        self.perform(packet.to, actions);
    }

    pub(crate) fn perform(&mut self, at: SocketAddr, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Event(event) => self.events.push((at, event)),
                Action::Send { to, packet } => {
                    assert!(packet.len() <= PACKET_BYTES_MAX);
                    let packet = Packet { from: at, to, bytes: packet };
                    self.sent.push(packet.clone());
                    let lost = self.random() % 100 < self.loss_percent;
                    let cut = self.far_side.contains(&at) != self.far_side.contains(&to);
                    if !lost && !cut {
                        let delay = Duration::from_micros(100 + self.random() % 5_000);
                        let sequence = self.random();
                        self.under_way.insert((self.now + delay, sequence), packet);
                    }
                }
            }
        }
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let tick = self.nodes.iter().map(|(at, node)| (node.next_tick(), *at)).min();
            let arrival = self.under_way.keys().next().copied();
            let next_tick = tick.map_or(Duration::MAX, |(due, _)| due);
            let next_arrival = arrival.map_or(Duration::MAX, |(due, _)| due);
            if next_tick.min(next_arrival) > end {
                break;
            }
            self.now = self.now.max(next_tick.min(next_arrival));
            if let Some(key) = arrival.filter(|_| next_arrival <= next_tick) {
                let packet = self.under_way.remove(&key).expect("it was the next to arrive");
                self.deliver(&packet);
            } else if let Some((_, at)) = tick {
                let mut actions = Vec::new();
                let node = self.nodes.get_mut(&at).expect("it was the next to tick");
                node.handle_tick(self.now, &mut actions);
                self.perform(at, actions);
            }
        }
        self.now = end;
    }

    pub(crate) fn run_secs(&mut self, secs: u64) {
        self.run(Duration::from_secs(secs));
    }

    /// Lets time pass until `condition` holds; fails the test after `secs`.
    pub(crate) fn run_until(&mut self, secs: u64, condition: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !condition(self) {
            assert!(self.now < start + Duration::from_secs(secs), "not within {secs} s: {:#?}", self.views());
            self.run(Duration::from_millis(100));
        }
        self.now - start
    }

    /// Whether every running node sees exactly the running nodes alive.
    pub(crate) fn agrees(&self) -> bool {
        let running: Vec<&SocketAddr> = self.nodes.keys().collect();
        self.nodes.values().all(|node| {
            let mut alive: Vec<&SocketAddr> = node
                .members()
                .filter(|state| state.liveness == Liveness::Alive)
                .map(|state| &state.member.gossip_addr)
                .collect();
            alive.sort();
            alive == running
        })
    }

    /// What each node thinks of each.
    pub(crate) fn views(&self) -> BTreeMap<SocketAddr, Vec<String>> {
        let view = |node: &Membership| {
            node.members()
                .map(|s| format!("{} {} {:?}", s.member.id, s.member.gossip_addr, s.liveness))
                .collect()
        };
        self.nodes.iter().map(|(at, node)| (*at, view(node))).collect()
    }
}
