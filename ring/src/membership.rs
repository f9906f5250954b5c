//! Who is there: SWIM gossip (foca) behind sealed packets, without IO.
//!
//! The caller owns the socket, the clock and the randomness: it passes in packets and the time since start,
//! and carries out the [`Action`]s that come back. Same inputs, same actions.
//!
//! What this adds to foca:
//! * every packet is sealed ([`crate::seal`]) and says which placement version its sender holds, and how far its log is
//!   durable;
//! * hello packets to seed addresses whose names are not known yet: every second while alone, and for
//!   as long as a seed is not among the members (this is also what heals partitions);
//! * dead members stay listed, and a suspect is told, so that it can object (foca spreads a suspicion a few
//!   times and never again: without this a suspicion that the suspect missed would stay for ever);
//! * a node that others declared dead comes back under a higher boot number, at most once a second;
//! * one node id belongs to one process: who has it for some seconds keeps it against newcomers, be it a copy of its own
//!   data directory or a wrong one; of two that just started the later boot wins. The other one is told, and says so.
//!
//! Invariant: what gossip says decides whom to ask first, never who owns what.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use foca::{AccumulatingRuntime, Foca, NoCustomBroadcast, OwnedNotification, PeriodicParams, PostcardCodec};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::action::{Action, ConflictWinner, Dropped, MembershipConfig, MembershipEvent};
use crate::envelope::{Body, ENVELOPE_BYTES, Envelope};
use crate::member::Identity;
use crate::seal::{DropReason, KeyRing, Opener, PACKET_BYTES_MAX, SEAL_BYTES, Sealer};
use crate::{ClusterId, DurablePosition, Liveness, Member, MemberState, NodeId};

/// Pause between hellos while no other member is known.
const HELLO_ALONE: Duration = Duration::from_secs(1);
/// Pause between hellos to seeds that are not among the members.
const HELLO_MISSING: Duration = Duration::from_secs(10);
/// Shortest time between two comebacks of this node.
const REJOIN_PAUSE: Duration = Duration::from_secs(1);
/// So long after its start a process defends its node id against others.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// How often in a run: two that both defend themselves must come to an end.
const DEFENCES_MAX: u32 = 3;
/// How often one and the same conflict is reported.
const REPORT_PAUSE: Duration = Duration::from_secs(60);
/// Cluster size that foca's timing is tuned for.
const CLUSTER_SIZE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// Largest packet that foca may make.
const SWIM_BYTES_MAX: NonZeroUsize =
    NonZeroUsize::new(PACKET_BYTES_MAX - SEAL_BYTES - ENVELOPE_BYTES).expect("not zero");
/// How often a random member is asked for its members, and two dead ones whether they are back.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(10);

type Timer = foca::Timer<Identity>;

/// A member's state and the identity that it gossips under.
struct Known {
    identity: Identity,
    incarnation: foca::Incarnation,
    /// Whether it was told lately that it is suspected.
    told: bool,
    /// What it last said itself.
    durable: Option<DurablePosition>,
    state: MemberState,
}

/// The gossip core of one node. See the module's description.
pub struct Membership {
    foca: Foca<Identity, PostcardCodec, Xoshiro256PlusPlus, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    sealer: Sealer,
    opener: Opener,
    /// The cluster that this node belongs to; it is in every packet.
    cluster: Option<ClusterId>,
    /// The first cluster that spoke to this node while it had none. Others are foreign from then on.
    courted_by: Option<ClusterId>,
    placement_version: u64,
    durable: DurablePosition,
    seeds: Vec<SocketAddr>,
    members: BTreeMap<NodeId, Known>,
    /// Due time, timer (foca orders those that are due together), sequence number.
    timers: BinaryHeap<Reverse<(Duration, Timer, u64)>>,
    timers_made: u64,
    /// Whether some member talks to this node under its present identity. If not, foca rests.
    connected: bool,
    hello_at: Duration,
    /// When to come back, and under which boot number.
    rejoin_at: Option<(Duration, u64)>,
    rejoined_at: Option<Duration>,
    left: bool,
    dropped: Dropped,
    foreign_reported: Option<(ClusterId, Duration)>,
    conflict_reported: Option<(Member, Duration)>,
    /// From when on the node id is defended.
    settled_at: Duration,
    /// How often that was done.
    defences: u32,
}

impl Membership {
    /// A node that knows only its seeds. `now` is the time since the process started, as everywhere here.
    /// Nothing is sent before the first [`Self::handle_tick`], which is due at once.
    pub fn new(config: MembershipConfig, now: Duration) -> Self {
        let MembershipConfig { me, boot, keys, seeds, boot_nonce, rng_seed, cluster, placement_version } =
            config;
        let identity = Identity { boot, member: me.clone() };
        let rng = Xoshiro256PlusPlus::seed_from_u64(rng_seed);
        let state = MemberState {
            member: me.clone(),
            liveness: Liveness::Alive,
            since: now,
            placement_version: Some(placement_version),
        };
        Self {
            foca: Foca::new(identity.clone(), swim_config(), rng, PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            sealer: Sealer::new(&keys, boot_nonce),
            opener: Opener::new(keys, boot_nonce),
            cluster,
            courted_by: None,
            placement_version,
            durable: DurablePosition::default(),
            seeds,
            members: BTreeMap::from([(
                me.id,
                Known { identity, incarnation: 0, told: false, durable: None, state },
            )]),
            timers: BinaryHeap::new(),
            timers_made: 0,
            connected: false,
            hello_at: now,
            rejoin_at: None,
            rejoined_at: None,
            left: false,
            dropped: Dropped::default(),
            foreign_reported: None,
            conflict_reported: None,
            settled_at: now + SETTLED_AFTER,
            defences: 0,
        }
    }

    /// Takes a packet that arrived from `from`.
    pub fn handle_packet(&mut self, now: Duration, from: SocketAddr, packet: &[u8], out: &mut Vec<Action>) {
        if self.left {
            return;
        }
        if let Err(reason) = self.receive(now, from, packet, out) {
            tracing::debug!(%from, reason = reason.as_str(), "dropped a gossip packet");
            let has_event = matches!(
                reason,
                DropReason::ForeignCluster | DropReason::NameConflict | DropReason::FromMyself
            );
            if self.dropped.get(reason) == 0 && !has_event {
                out.push(Action::Event(MembershipEvent::PacketDropped { from, reason }));
            }
            self.dropped.count(reason);
        }
        self.settle(now, out);
    }

    /// Does what is due at `now`.
    pub fn handle_tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.left {
            return;
        }
        while let Some(Reverse((due, _, _))) = self.timers.peek() {
            if *due > now {
                break;
            }
            if let Some(Reverse((_, timer, _))) = self.timers.pop()
                && let Err(error) = self.foca.handle_timer(timer, &mut self.runtime)
            {
                tracing::debug!(%error, "a gossip timer came too late");
            }
        }
        self.settle(now, out);
        if now >= self.hello_at {
            self.say_hello(now, out);
        }
    }

    /// When [`Self::handle_tick`] is due next. It may change with every other call.
    pub fn next_tick(&self) -> Duration {
        if self.left {
            return Duration::MAX;
        }
        let timer = self.timers.peek().map_or(Duration::MAX, |Reverse((due, _, _))| *due);
        let rejoin = self.rejoin_at.map_or(Duration::MAX, |(at, _)| at);
        timer.min(rejoin).min(self.hello_at)
    }

    /// From now on, packets are sealed with the first of these keys and opened with any of them.
    pub fn set_keys(&mut self, keys: KeyRing) {
        self.sealer.set_keys(&keys);
        self.opener.set_keys(keys);
    }

    /// The cluster has formed, or this node has joined it.
    pub fn set_cluster_id(&mut self, cluster: ClusterId) {
        self.cluster = Some(cluster);
    }

    /// This node now holds this version of the placement; others learn it from every packet.
    pub fn set_placement_version(&mut self, version: u64) {
        self.placement_version = version;
        if let Some(me) = self.members.get_mut(&self.foca.identity().member.id) {
            me.state.placement_version = Some(version);
        }
    }

    /// So far this node's log is on its disk; others learn it from every packet.
    pub fn set_durable_position(&mut self, position: DurablePosition) {
        self.durable = position;
    }

    /// Replaces the seed addresses, say after their names were resolved again.
    pub fn set_seeds(&mut self, seeds: Vec<SocketAddr>) {
        self.seeds = seeds;
    }

    /// Tells a few members that this node goes. From then on it hears and says nothing.
    pub fn leave(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.left {
            return;
        }
        self.left = true;
        if let Err(error) = self.foca.leave_cluster(&mut self.runtime) {
            tracing::debug!(%error, "could not say goodbye to the cluster");
        }
        self.settle(now, out);
    }

    /// This node.
    pub fn me(&self) -> &Member {
        &self.foca.identity().member
    }

    /// All members ever met in this run, this node included, by id.
    pub fn members(&self) -> impl Iterator<Item = &MemberState> {
        self.members.values().map(|known| &known.state)
    }

    /// What is known about one member.
    pub fn member(&self, id: &NodeId) -> Option<&MemberState> {
        self.members.get(id).map(|known| &known.state)
    }

    /// Whether a node answers; a suspect does not count.
    pub fn is_alive(&self, id: &NodeId) -> bool {
        self.member(id).is_some_and(|state| state.liveness == Liveness::Alive)
    }

    /// Packets that were not used.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    fn receive(
        &mut self,
        now: Duration,
        from: SocketAddr,
        packet: &[u8],
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        let opened = self.opener.open(packet)?;
        self.check_cluster(now, from, opened.cluster, out)?;
        let envelope = Envelope::decode(&opened.payload).ok_or(DropReason::Malformed)?;
        match envelope.body {
            Body::Swim(data) => {
                self.receive_swim(now, data, (envelope.placement_version, envelope.durable), out)
            }
            Body::Hello(identity) => self.receive_hello(now, identity, out),
            Body::Outdated(known) => self.receive_outdated(now, &known, out),
            Body::Suspected(suspect, incarnation) => self.receive_suspicion(suspect, incarnation),
        }
    }

    fn check_cluster(
        &mut self,
        now: Duration,
        from: SocketAddr,
        theirs: Option<ClusterId>,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        // A sender without a cluster may be about to join this one.
        let Some(theirs) = theirs else { return Ok(()) };
        let mine = self.cluster.unwrap_or_else(|| *self.courted_by.get_or_insert(theirs));
        if mine == theirs {
            return Ok(());
        }
        let reported =
            self.foreign_reported.is_some_and(|(cluster, at)| cluster == theirs && now < at + REPORT_PAUSE);
        if !reported {
            self.foreign_reported = Some((theirs, now));
            out.push(Action::Event(MembershipEvent::ForeignCluster { from, cluster: theirs }));
        }
        Err(DropReason::ForeignCluster)
    }

    fn receive_swim(
        &mut self,
        now: Duration,
        data: &[u8],
        (version, durable): (u64, DurablePosition),
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        let header = postcard::take_from_bytes::<foca::Header<Identity>>(data);
        let sender = header.map_err(|_| DropReason::Malformed)?.0.src;
        if sender.member.id == self.foca.identity().member.id {
            return self.meet_namesake(now, sender, out);
        }
        if let Some(known) = self.members.get(&sender.member.id)
            && known.identity.beats(&sender)
        {
            let outdated = Body::Outdated(known.identity.clone());
            self.send(sender.member.gossip_addr, &outdated, out);
            return Ok(());
        }
        let was_alone = self.foca.num_members() == 0;
        if let Err(error) = self.foca.handle_data(data, &mut self.runtime) {
            tracing::debug!(%error, node = %sender.member.id, "a gossip packet made no sense");
            return Err(DropReason::Malformed);
        }
        if was_alone && self.foca.num_members() > 0 {
            // The first contact: ask it for all members.
            self.announce(sender.clone());
        }
        self.refresh(now);
        if let Some(known) = self.members.get_mut(&sender.member.id)
            && known.identity == sender
        {
            let member = sender.member;
            if known.durable < Some(durable) {
                known.durable = Some(durable);
                let (member, position) = (member.clone(), durable);
                out.push(Action::Event(MembershipEvent::DurablePosition { member, position }));
            }
            if known.state.placement_version != Some(version) {
                known.state.placement_version = Some(version);
                out.push(Action::Event(MembershipEvent::PlacementVersion { member, version }));
            }
        }
        Ok(())
    }

    /// Someone who knows our address but not our name wants to join, or to know whether it still belongs.
    fn receive_hello(
        &mut self,
        now: Duration,
        sender: Identity,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        if sender.member.id == self.foca.identity().member.id {
            return self.meet_namesake(now, sender, out);
        }
        if let Some(known) = self.members.get(&sender.member.id) {
            let dead = known.identity == sender && known.state.liveness == Liveness::Down;
            if dead || known.identity.beats(&sender) {
                let outdated = Body::Outdated(known.identity.clone());
                self.send(sender.member.gossip_addr, &outdated, out);
                return Ok(());
            }
        }
        // It answers with its members, and learns us from the question.
        self.announce(sender);
        Ok(())
    }

    /// Somebody's identity carries this node's id.
    fn meet_namesake(
        &mut self,
        now: Duration,
        other: Identity,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        let mine = self.foca.identity().clone();
        if other.beats(&mine) {
            return self.receive_outdated(now, &other, out);
        }
        if other != mine {
            let to = other.member.gossip_addr;
            self.send(to, &Body::Outdated(mine.clone()), out);
        }
        if is_same_home(&other, &mine) {
            return Ok(());
        }
        self.report_conflict(now, other.member, ConflictWinner::Myself, out);
        Err(DropReason::NameConflict)
    }

    /// The cluster knows this node's id as `known`, which is not older than the identity used here.
    fn receive_outdated(
        &mut self,
        now: Duration,
        known: &Identity,
        out: &mut Vec<Action>,
    ) -> Result<(), DropReason> {
        let mine = self.foca.identity();
        if known.member.id != mine.member.id || mine.beats(known) {
            return Ok(()); // Not for us, or no longer.
        }
        if is_same_home(known, mine) {
            // Ourselves, declared dead; or our earlier life, whose clock was ahead.
            self.plan_rejoin(now, known.boot.saturating_add(1));
            return Ok(());
        }
        let winner = if now >= self.settled_at && self.defences < DEFENCES_MAX {
            // One comeback at a time, however many packets speak of the other.
            if self.rejoin_at.is_none() {
                self.defences += 1;
            }
            self.plan_rejoin(now, known.boot.saturating_add(1));
            ConflictWinner::Myself
        } else {
            ConflictWinner::Other
        };
        self.report_conflict(now, known.member.clone(), winner, out);
        Err(DropReason::NameConflict)
    }

    /// Somebody believes this node dead: foca objects under a higher incarnation.
    fn receive_suspicion(
        &mut self,
        suspect: Identity,
        incarnation: foca::Incarnation,
    ) -> Result<(), DropReason> {
        if suspect != *self.foca.identity() {
            return Ok(()); // Not for us, or no longer.
        }
        let suspect = foca::Member::new(suspect, incarnation, foca::State::Suspect);
        let objected = self.foca.apply_many(std::iter::once(suspect), true, &mut self.runtime);
        objected.map_err(|_| DropReason::Malformed)
    }

    /// Tells suspects so, each once until [`Self::say_hello`] has its turn.
    fn tell_suspects(&mut self, out: &mut Vec<Action>) {
        let mut suspects = Vec::new();
        for known in self.members.values_mut() {
            if known.state.liveness == Liveness::Suspect && !known.told {
                known.told = true;
                suspects.push((known.identity.clone(), known.incarnation));
            }
        }
        for (suspect, incarnation) in suspects {
            let to = suspect.member.gossip_addr;
            self.send(to, &Body::Suspected(suspect, incarnation), out);
        }
    }

    fn report_conflict(
        &mut self,
        now: Duration,
        other: Member,
        winner: ConflictWinner,
        out: &mut Vec<Action>,
    ) {
        let reported = self
            .conflict_reported
            .as_ref()
            .is_some_and(|(member, at)| *member == other && now < *at + REPORT_PAUSE);
        if !reported {
            self.conflict_reported = Some((other.clone(), now));
            out.push(Action::Event(MembershipEvent::NameConflict { other, winner }));
        }
    }

    fn plan_rejoin(&mut self, now: Duration, boot: u64) {
        let earliest = self.rejoined_at.map_or(now, |at| now.max(at + REJOIN_PAUSE));
        let (at, planned) = self.rejoin_at.unwrap_or((earliest, boot));
        self.rejoin_at = Some((at, planned.max(boot)));
    }

    fn rejoin(&mut self, now: Duration, boot: u64, out: &mut Vec<Action>) {
        self.rejoined_at = Some(now);
        let identity = Identity { boot, member: self.foca.identity().member.clone() };
        if let Err(error) = self.foca.change_identity(identity, &mut self.runtime) {
            tracing::debug!(%error, "could not tell the members of the new identity");
        }
        self.connected = false;
        self.hello_at = now;
        out.push(Action::Event(MembershipEvent::Rejoining));
    }

    fn announce(&mut self, to: Identity) {
        if let Err(error) = self.foca.announce(to, &mut self.runtime) {
            tracing::debug!(%error, "could not announce this node");
        }
    }

    /// Looks for members under the seeds' addresses; while nobody talks to this node, also under those of
    /// all members that it believes alive.
    fn say_hello(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.hello_at = now + if self.connected { HELLO_MISSING } else { HELLO_ALONE };
        let mut known: BTreeSet<SocketAddr> = BTreeSet::from([self.foca.identity().member.gossip_addr]);
        known.extend(self.foca.iter_members().map(|entry| entry.id().member.gossip_addr));
        let mut to: BTreeSet<SocketAddr> = self.seeds.iter().copied().collect();
        if self.connected {
            to.retain(|seed| !known.contains(seed));
        } else {
            to.extend(known);
            to.remove(&self.foca.identity().member.gossip_addr);
        }
        let hello = Body::Hello(self.foca.identity().clone());
        for to in to {
            self.send(to, &hello, out);
        }
        self.members.values_mut().for_each(|known| known.told = false);
        self.tell_suspects(out);
    }

    fn send(&mut self, to: SocketAddr, body: &Body<'_>, out: &mut Vec<Action>) {
        let (placement_version, durable) = (self.placement_version, self.durable);
        let payload = Envelope::encode(placement_version, durable, body);
        out.push(Action::Send { to, packet: self.sealer.seal(self.cluster, &payload) });
    }

    /// Carries out what foca asked for, until nothing is left.
    fn settle(&mut self, now: Duration, out: &mut Vec<Action>) {
        loop {
            while let Some(notification) = self.runtime.to_notify() {
                self.take_notification(now, notification, out);
            }
            while let Some((to, data)) = self.runtime.to_send() {
                self.send(to.member.gossip_addr, &Body::Swim(&data), out);
            }
            while let Some((after, timer)) = self.runtime.to_schedule() {
                self.timers_made += 1;
                self.timers.push(Reverse((now + after, timer, self.timers_made)));
            }
            match self.rejoin_at {
                Some((at, boot)) if at <= now && !self.left => {
                    self.rejoin_at = None;
                    self.rejoin(now, boot, out);
                }
                _ => break,
            }
        }
        self.refresh(now);
        if !self.left {
            self.tell_suspects(out);
        }
    }

    fn take_notification(
        &mut self,
        now: Duration,
        notification: OwnedNotification<Identity>,
        out: &mut Vec<Action>,
    ) {
        let event = match notification {
            OwnedNotification::MemberUp(identity) => MembershipEvent::Up(identity.member),
            OwnedNotification::MemberDown(identity) => MembershipEvent::Down(identity.member),
            OwnedNotification::Rename(old, new) => {
                MembershipEvent::Replaced { old: old.member, new: new.member }
            }
            OwnedNotification::Active => {
                self.connected = true;
                return;
            }
            OwnedNotification::Idle => {
                self.connected = false;
                self.hello_at = self.hello_at.min(now + HELLO_ALONE);
                return;
            }
            OwnedNotification::Defunct => {
                self.connected = false;
                self.plan_rejoin(now, self.foca.identity().boot.saturating_add(1));
                return;
            }
            OwnedNotification::Rejoin(_) => return,
        };
        out.push(Action::Event(event));
    }

    /// Brings `members` in line with foca's list. Foca forgets the dead after a day; so does this.
    fn refresh(&mut self, now: Duration) {
        let my_id = self.foca.identity().member.id.clone();
        let mut listed = 1;
        for entry in self.foca.iter_membership_state() {
            let identity = entry.id();
            if identity.member.id == my_id {
                continue; // An earlier life of this node.
            }
            listed += 1;
            let liveness = match entry.state() {
                foca::State::Alive => Liveness::Alive,
                foca::State::Suspect => Liveness::Suspect,
                foca::State::Down => Liveness::Down,
            };
            match self.members.get_mut(&identity.member.id) {
                Some(known) if known.identity == *identity => {
                    known.incarnation = entry.incarnation();
                    if known.state.liveness != liveness {
                        known.state.liveness = liveness;
                        known.state.since = now;
                        known.told = false;
                    }
                }
                _ => {
                    let member = identity.member.clone();
                    let state = MemberState { member, liveness, since: now, placement_version: None };
                    let incarnation = entry.incarnation();
                    let identity = identity.clone();
                    let known = Known { identity, incarnation, told: false, durable: None, state };
                    self.members.insert(entry.id().member.id.clone(), known);
                }
            }
        }
        if let Some(me) = self.members.get_mut(&my_id) {
            me.identity = self.foca.identity().clone();
        }
        if self.members.len() > listed {
            let foca = &self.foca;
            let is_listed = |id: &NodeId| foca.iter_membership_state().any(|m| m.id().member.id == *id);
            self.members.retain(|id, _| *id == my_id || is_listed(id));
        }
    }
}

/// Whether both are lives of one data directory at one address, and so cannot be two living processes.
fn is_same_home(a: &Identity, b: &Identity) -> bool {
    a.member.generation == b.member.generation && a.member.gossip_addr == b.member.gossip_addr
}

fn swim_config() -> foca::Config {
    let one = NonZeroUsize::MIN;
    let two = one.saturating_add(1);
    foca::Config {
        max_packet_size: SWIM_BYTES_MAX,
        periodic_announce: Some(PeriodicParams { frequency: ANNOUNCE_EVERY, num_members: one }),
        periodic_announce_to_down_members: Some(PeriodicParams {
            frequency: ANNOUNCE_EVERY,
            num_members: two,
        }),
        ..foca::Config::new_lan(CLUSTER_SIZE)
    }
}
