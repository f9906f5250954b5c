//! The simulated world: one queue of events in virtual time, the network, and who can reach whom.
//!
//! Nothing here knows what a shard is for. A run is a function of its seed: the trace hash covers every event and
//! every action, and two runs of a seed must have the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use saturn_ring::{ClusterMeta, NodeId};

use crate::checks::FinalReads;
use crate::client::Clients;
use crate::marks::{Mark, Marks};
use crate::message::{Request, Response};
use crate::node::{Node, Then, Timer};
use crate::planted::Bug;
use crate::raft::{Commit, Raft};
use crate::random::{Params, Random, mix};
use crate::rebalance::Plans;

/// Virtual time, in microseconds.
pub(crate) type Micros = u64;
pub(crate) const MS: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;
/// A call's number.
pub(crate) type CallId = u64;

/// When faults and changes end.
pub(crate) const HEAL_AT: Micros = 45 * SECOND;
/// What every run lasts at least.
pub(crate) const END_AT: Micros = 60 * SECOND;
/// By when all must have come to rest.
pub(crate) const REST_BY: Micros = HEAL_AT + 120 * SECOND;
/// How long messages of a slow node take at most.
const SLOW_MAX: Micros = 1_500 * MS;
/// More events than any run has: a run that does not end is a failure.
const EVENTS_MAX: u64 = 5_000_000;

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Request {
        from: usize,
        to: usize,
        call: CallId,
        request: Request,
    },
    Response {
        to: usize,
        call: CallId,
        response: Response,
    },
    Gossip {
        from: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    /// Of this life of a node: a restart forgets it.
    Timer {
        node: usize,
        boot: u64,
        timer: Timer,
    },
    Commit(Box<Commit>),
    /// A client sends something.
    Write,
    Read,
    Retry(usize),
    Delete,
    Fault,
    Change,
    Restart(usize),
    Replace(usize),
    Heal,
    /// A cut ends.
    Mend(Vec<(usize, usize)>),
    /// Looks whether all has come to rest.
    Look,
}

/// The streams of randomness.
pub(crate) struct Streams {
    pub(crate) network: Random,
    pub(crate) disk: Random,
    pub(crate) client: Random,
    pub(crate) nemesis: Random,
    pub(crate) raft: Random,
    pub(crate) node: Random,
    pub(crate) gossip: Random,
    pub(crate) deletion: Random,
}

/// See the module's description.
pub(crate) struct World {
    pub(crate) params: Params,
    pub(crate) bug: Option<Bug>,
    pub(crate) now: Micros,
    /// When, in which order what is due at once, and where the event is.
    queue: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    scheduled: u64,
    /// The events of the queue, and places that are free.
    pending: Vec<Option<Event>>,
    free: Vec<usize>,
    pub(crate) random: Streams,
    pub(crate) nodes: Vec<Node>,
    /// Directions in which nothing arrives.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Until when a node's messages take long.
    pub(crate) slow: BTreeMap<usize, Micros>,
    pub(crate) raft: Raft,
    pub(crate) cluster: ClusterMeta,
    pub(crate) plans: Plans,
    pub(crate) clients: Clients,
    pub(crate) marks: Marks,
    pub(crate) calls: u64,
    pub(crate) healed: bool,
    pub(crate) at_rest: bool,
    pub(crate) final_reads: FinalReads,
    /// The first thing that was wrong: the run ends with it.
    pub(crate) violation: Option<String>,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    /// What happened, if somebody wants to read it.
    pub(crate) trace: Option<Vec<String>>,
}

/// How a run ended.
pub(crate) struct Outcome {
    pub(crate) violation: Option<String>,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    pub(crate) marks: Marks,
    pub(crate) trace: Vec<String>,
}

/// Runs a seed.
pub(crate) fn run(seed: u64, bug: Option<Bug>, traced: bool) -> Outcome {
    let mut world = World::new(seed, bug, traced);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    if ran.is_err() {
        world.fail("a panic: see above".into());
    }
    let params = format!("{:?}", world.params);
    let of_nodes: Vec<Mark> = world.nodes.iter_mut().flat_map(|node| node.deleting.marks.drain(..)).collect();
    of_nodes.into_iter().for_each(|mark| world.see(mark));
    Outcome {
        violation: world.violation.map(|text| format!("{text}\nat {} us, {params}", world.now)),
        hash: world.hash,
        events: world.events,
        marks: world.marks,
        trace: world.trace.unwrap_or_default(),
    }
}

impl World {
    fn new(seed: u64, bug: Option<Bug>, traced: bool) -> Self {
        let mut params = Params::draw(seed);
        // The other bugs are found without deletions, which only make runs longer.
        if bug.is_some_and(|bug| !matches!(bug, Bug::DeletionMissed | Bug::UnsettledDeletion)) {
            params.delete_every = None;
        }
        let stream = |name| Random::stream(seed, name);
        let random = Streams {
            network: stream("network"),
            disk: stream("disk"),
            client: stream("client"),
            nemesis: stream("nemesis"),
            raft: stream("raft"),
            node: stream("node"),
            gossip: stream("gossip"),
            deletion: stream("deletion"),
        };
        let shards = usize::from(params.shards);
        let mut world = Self {
            params,
            bug,
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            pending: Vec::new(),
            free: Vec::new(),
            random,
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            raft: Raft::default(),
            cluster: ClusterMeta::default(),
            plans: Plans::default(),
            clients: Clients::new(shards),
            marks: Marks::default(),
            calls: 0,
            healed: false,
            at_rest: false,
            final_reads: FinalReads::default(),
            violation: None,
            hash: mix(seed),
            events: 0,
            trace: traced.then(Vec::new),
        };
        world.form();
        world
    }

    fn run(&mut self) {
        while let Some(Reverse((at, _, place))) = self.queue.pop() {
            let event = self.pending[place].take().expect("an event is there until it is due");
            self.free.push(place);
            self.now = at;
            self.events += 1;
            if self.events > EVENTS_MAX {
                self.fail("the run does not end".into());
            }
            self.handle(event);
            if self.violation.is_some() || (self.at_rest && self.now >= END_AT) {
                return;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request { from, to, call, request } => {
                if self.nodes[to].up {
                    self.note(to, "gets", call, request.code());
                    self.serve(from, to, call, request);
                }
            }
            Event::Response { to, call, response } => {
                if self.nodes[to].up && self.nodes[to].calls.contains_key(&call) {
                    self.note(to, "hears", call, 0);
                    self.resume(to, call, Some(response));
                }
            }
            Event::Gossip { from, to, bytes } => self.receive_gossip(from, to, &bytes),
            Event::Timer { node, boot, timer } => {
                if self.nodes[node].up && self.nodes[node].boot == boot {
                    self.fire(node, timer);
                }
            }
            Event::Commit(commit) => self.commit(*commit),
            Event::Write => self.client_write(),
            Event::Read => self.client_read(),
            Event::Retry(write) => self.client_retry(write),
            Event::Delete => self.client_delete(),
            Event::Fault => self.fault(),
            Event::Change => self.change_members(),
            Event::Restart(node) => self.restart(node),
            Event::Replace(node) => self.replace_lost(node),
            Event::Heal => self.heal(),
            Event::Mend(pairs) => self.mend(&pairs),
            Event::Look => self.look(),
        }
    }

    pub(crate) fn schedule(&mut self, delay: Micros, event: Event) {
        self.scheduled += 1;
        let place = self.free.pop().unwrap_or(self.pending.len());
        if place == self.pending.len() {
            self.pending.push(None);
        }
        self.pending[place] = Some(event);
        self.queue.push(Reverse((self.now + delay, self.scheduled, place)));
    }

    /// For this life of a node.
    pub(crate) fn timer(&mut self, node: usize, delay: Micros, timer: Timer) {
        let boot = self.nodes[node].boot;
        self.schedule(delay, Event::Timer { node, boot, timer });
    }

    /// Puts something into the trace.
    pub(crate) fn note(&mut self, node: usize, what: &str, a: u64, b: u64) {
        let what_hash =
            what.bytes().fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let event = mix(self.now ^ (node as u64) << 48 ^ what_hash << 20).wrapping_add(mix(a) ^ b);
        self.hash = mix(self.hash ^ event);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>11} n{node} {what} {a} {b}", self.now));
        }
    }

    /// Puts text into the trace, which nobody has to make if nobody reads it.
    pub(crate) fn remark(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>11} {}", text()));
        }
    }

    pub(crate) fn see(&mut self, mark: Mark) {
        self.marks.see(mark);
    }

    pub(crate) fn fail(&mut self, text: String) {
        self.remark(|| format!("VIOLATION: {text}"));
        self.violation.get_or_insert(text);
    }

    pub(crate) fn id(&self, node: usize) -> NodeId {
        self.nodes[node].id.clone()
    }

    /// The node of this id.
    pub(crate) fn index(&self, id: &NodeId) -> usize {
        index_of(id)
    }

    /// Whether a message from one node arrives at another, but for bad luck.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        self.nodes[to].up && (from == to || !self.cut.contains(&(from, to)))
    }

    /// Whether two nodes hear each other.
    pub(crate) fn converse(&self, a: usize, b: usize) -> bool {
        self.nodes[a].up && self.reaches(a, b) && self.reaches(b, a)
    }

    /// Sends something, which arrives later, never, or twice.
    fn transmit(&mut self, from: usize, to: usize, event: Event) {
        if from == to {
            let delay = self.random.network.range(5, 50);
            return self.schedule(delay, event);
        }
        if self.cut.contains(&(from, to)) {
            return;
        }
        let (loss, duplicates) =
            if self.healed { (0, 0) } else { (self.params.loss_percent, self.params.duplicate_percent) };
        if self.random.network.percent(loss) {
            return;
        }
        let copies = if self.random.network.percent(duplicates) {
            self.see(Mark::PacketDuplicated);
            2
        } else {
            1
        };
        for _ in 0..copies {
            let (min, max) = (self.params.delay_min, self.params.delay_max);
            let max = if self.healed { max.min(20 * MS) } else { max };
            let is_slow = |node| self.slow.get(node).is_some_and(|until| *until > self.now);
            let more = if is_slow(&from) || is_slow(&to) { SLOW_MAX } else { 0 };
            let delay = self.random.network.range(min.min(max), max + more);
            self.schedule(delay, event.clone());
        }
    }

    /// Calls another node, or this one. What becomes of it goes to [`World::resume`].
    pub(crate) fn call(&mut self, from: usize, to: usize, request: Request, then: Then, limit: Micros) {
        self.calls += 1;
        let call = self.calls;
        self.note(from, "calls", call, to as u64);
        self.nodes[from].calls.insert(call, (to, then));
        self.timer(from, limit, Timer::CallLimit(call));
        self.transmit(from, to, Event::Request { from, to, call, request });
    }

    /// Calls another node, whatever becomes of it.
    pub(crate) fn tell(&mut self, from: usize, to: usize, request: Request) {
        self.calls += 1;
        let call = self.calls;
        self.transmit(from, to, Event::Request { from, to, call, request });
    }

    pub(crate) fn reply(&mut self, from: usize, to: usize, call: CallId, response: Response) {
        self.transmit(from, to, Event::Response { to, call, response });
    }

    pub(crate) fn send_gossip(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.transmit(from, to, Event::Gossip { from, to, bytes });
    }
}

/// The number in a node's name.
pub(crate) fn index_of(id: &NodeId) -> usize {
    id.as_str()[1..].parse().expect("nodes are called n0, n1 and so on")
}
