//! Sees to it that the Raft groups of this node have leaders and the right voters, and that this node acts on what
//! they decide.
//!
//! Raft's own timers are off, and with them its repetitions: a leader is told to send again while somebody who answers
//! lacks a part of its log. Gossip says who is there: the voters of a group whose leader does not answer any more
//! ask for votes in turn, the one first whose turn it is by the group's number. Being wrong about that costs an
//! election, never a decision. Who has asked in vain asks again after a pause that is drawn anew each time: in step, one
//! whose log is too short to be elected would disturb every election of one who could be, for ever.
//!
//! A shard's voters follow its record: the nodes of its slots vote, the new node of a moving slot follows. The member
//! list's voters follow the member list.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use saturn_model::ShardId;
use saturn_proto::peer::PullPlacementRequest;
use saturn_replication::{AdoptError, Adoption, MemberList, PlacementHandle};
use saturn_ring::{
    Epoch, Liveness, MemberChange, NodeId, Placement, PlacementMember, RecordStep, ShardCommand, ShardRecord,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::authority::Authority;
use crate::raft::{Command, Founding, GroupId, Standing, Voter};
use crate::wire;
use crate::{clock, cluster, gossip};

/// Time between two looks at all groups.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a group may be without a leader before its first voter asks for votes; the next one waits a turn longer.
const TURN: Duration = Duration::from_millis(1000);
/// Time between two comparisons of the placement with some other node.
const COMPARE_EVERY: Duration = Duration::from_secs(3);
/// How long a leader that is none of the shard's nodes any more may take to hand over.
const HAND_OVER: Duration = Duration::from_secs(5);
/// Pause after what was decided could not be stored.
const ADOPT_AGAIN: Duration = Duration::from_secs(2);
/// Pause between two attempts to have deletions forgotten.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);
/// How long another node may take to hand over its placement.
const PULL_TIMEOUT: Duration = Duration::from_secs(3);

/// Shortest pause after votes were asked for in vain: as long as who has heard a leader votes for nobody else.
const PAUSE_MIN: Duration = Duration::from_millis(2000);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(6000);

/// A group without a leader.
#[derive(Clone, Copy)]
struct Leaderless {
    since: Instant,
    /// Not before this are votes asked for again.
    rests_until: Instant,
}

impl Leaderless {
    fn new(now: Instant) -> Self {
        Self { since: now, rests_until: now }
    }

    /// Whether the voter that comes at this place should ask for votes now. `draw`: a random number.
    fn should_ask(&mut self, now: Instant, place: u32, draw: u16) -> bool {
        if now < self.since + TURN * place || now < self.rests_until {
            return false;
        }
        self.rests_until = now + PAUSE_MIN + (PAUSE_MAX - PAUSE_MIN) * u32::from(draw) / u32::from(u16::MAX);
        true
    }
}

/// See the module's description.
pub(crate) struct Shepherd {
    authority: Authority,
    leaderless: HashMap<GroupId, Leaderless>,
    /// Since when groups are led by a node that has no part in the shard any more.
    handing_over: HashMap<GroupId, Instant>,
    /// Groups whose founding or voters are being worked on.
    busy: Arc<Mutex<HashSet<GroupId>>>,
    /// Has deletions forgotten, while there are some.
    settling: Option<JoinHandle<()>>,
    /// Whether this node may found groups.
    founding: Founding,
}

impl Shepherd {
    pub(crate) fn new(authority: Authority, founding: Founding) -> Self {
        Self {
            authority,
            leaderless: HashMap::new(),
            handing_over: HashMap::new(),
            busy: Arc::default(),
            settling: None,
            founding,
        }
    }

    /// Watches over the groups for ever.
    pub(crate) async fn run(mut self) {
        let mut view = self.authority.groups.control().view();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                changed = view.changed() => if changed.is_err() { return },
            }
            if self.founding == Founding::Possible {
                self.found_groups();
            }
            self.settle_deletions();
            for id in self.authority.groups.ids() {
                if let Some(standing) = self.authority.groups.standing(id) {
                    self.look_at(id, &standing).await;
                }
            }
        }
    }

    /// Sees to it that records forget the deletions that all nodes have done.
    fn settle_deletions(&mut self) {
        if self.settling.as_ref().is_some_and(|settling| !settling.is_finished()) {
            return;
        }
        let placement = self.authority.placement.load();
        let is_led = |shard: ShardId| self.authority.groups.standing(shard.into()).is_some_and(|s| s.leads);
        let view = self.authority.groups.control().view();
        let all_there = |record: &ShardRecord| {
            let view = view.borrow();
            record.writers().all(|node| *node == self.authority.me || view.is_alive(node))
        };
        let records = (0..).map(ShardId).zip(&placement.shards);
        let listed = records.filter(|(_, record)| !record.deletions.is_empty() && all_there(record));
        let led: Vec<(ShardId, ShardRecord)> = listed
            .filter(|(shard, _)| is_led(*shard))
            .map(|(shard, record)| (shard, record.clone()))
            .collect();
        if !led.is_empty() {
            let authority = self.authority.clone();
            self.settling = Some(tokio::spawn(async move { settle(&authority, led).await }));
        }
    }

    /// Whether a voter answers: gossip neither suspects it nor knows it with another disk.
    fn answers(&self, voter: Voter) -> bool {
        voter == self.authority.voter
            || self.authority.groups.control().find(voter).is_some_and(|s| s.liveness == Liveness::Alive)
    }

    /// Founds the groups of a new cluster, each on the first of its voters that is there.
    fn found_groups(&self) {
        let placement = self.authority.placement.load();
        let mut unfounded = Vec::new();
        if placement.version == 1 {
            let council = Placement::council(&placement.members);
            unfounded.extend(self.unfounded(GroupId::CLUSTER, &council, &placement));
        }
        for (shard, record) in (0..).map(ShardId).zip(&placement.shards) {
            if record.epoch == Epoch::FIRST {
                unfounded.extend(self.unfounded(shard.into(), &record.slots, &placement));
            }
        }
        if unfounded.is_empty() {
            return;
        }
        let mut busy = self.busy.lock();
        unfounded.retain(|(id, _)| busy.insert(*id));
        drop(busy);
        let (groups, busy) = (Arc::clone(&self.authority.groups), Arc::clone(&self.busy));
        tokio::spawn(async move {
            let ids: Vec<GroupId> = unfounded.iter().map(|(id, _)| *id).collect();
            groups.found(unfounded).await;
            ids.iter().for_each(|id| _ = busy.lock().remove(id));
        });
    }

    /// The group with its voters, if it is this node's turn to found it.
    fn unfounded(
        &self,
        id: GroupId,
        nodes: &[NodeId],
        placement: &Placement,
    ) -> Option<(GroupId, BTreeSet<Voter>)> {
        if !nodes.contains(&self.authority.me)
            || self.authority.groups.standing(id).is_some_and(|s| s.is_founded)
        {
            return None;
        }
        let voters = voters_of(nodes, &placement.members)?;
        let turn = usize::try_from(id.0).unwrap_or_default() % voters.len();
        let mut in_turn = voters.iter().cycle().skip(turn).take(voters.len());
        (in_turn.find(|voter| self.answers(**voter)) == Some(&self.authority.voter)).then_some((id, voters))
    }

    async fn look_at(&mut self, id: GroupId, standing: &Standing) {
        if standing.has_failed {
            tracing::error!(group = %id, "a Raft group has failed on this node; it is started anew");
            if let Err(error) = self.authority.groups.revive(id).await {
                tracing::error!(group = %id, error = format!("{error:#}"), "a Raft group was not started anew");
            }
            return;
        }
        if standing.leads {
            self.leaderless.remove(&id);
            self.handing_over.remove(&id);
            if standing.lagging.iter().any(|voter| self.answers(*voter)) {
                self.authority.groups.resend(id).await;
                self.check_leadership(id);
            }
            return self.lead(id, standing);
        }
        let now = Instant::now();
        let led = standing
            .leader
            .is_some_and(|leader| standing.voters.contains(&leader) && self.is_led_by(id, leader, now));
        if led || !standing.voters.contains(&self.authority.voter) {
            self.leaderless.remove(&id);
            return;
        }
        let alive: Vec<Voter> =
            standing.voters.iter().copied().filter(|voter| self.answers(*voter)).collect();
        let turn = usize::try_from(id.0).unwrap_or_default() % alive.len().max(1);
        let place = alive.iter().position(|voter| *voter == self.authority.voter).unwrap_or_default();
        let place = u32::try_from((place + alive.len() - turn) % alive.len().max(1)).unwrap_or_default();
        let leaderless = self.leaderless.entry(id).or_insert_with(|| Leaderless::new(now));
        if leaderless.should_ask(now, place, draw()) {
            self.authority.groups.elect(id).await;
        }
    }

    /// Whether a leader does what leaders do, as far as this node can know. One that answers and is none of the shard's
    /// nodes any more should have handed over: it may have left the group without knowing that it led.
    fn is_led_by(&mut self, id: GroupId, leader: Voter, now: Instant) -> bool {
        if !self.answers(leader) {
            return false;
        }
        let placement = self.authority.placement.load();
        let record = id.shard().and_then(|shard| placement.record(shard));
        let name = self.authority.groups.name_of(Some(leader)).filter(|_| leader != self.authority.voter);
        let hands_over = record
            .zip(name.as_ref())
            .is_some_and(|(record, name)| record.is_writer(&self.authority.me) && !record.is_writer(name));
        if !hands_over {
            self.handing_over.remove(&id);
            return true;
        }
        now.duration_since(*self.handing_over.entry(id).or_insert(now)) < HAND_OVER
    }

    /// Asks the voters whether this node still leads them: one that has asked for votes in vain follows nobody of an
    /// older term any more, and its answer makes this node give way and be elected anew.
    fn check_leadership(&self, id: GroupId) {
        if !self.busy.lock().insert(id) {
            return;
        }
        let (groups, busy) = (Arc::clone(&self.authority.groups), Arc::clone(&self.busy));
        tokio::spawn(async move {
            if let Err(error) = groups.linearize(id).await {
                tracing::debug!(group = %id, %error, "this node does not lead a group as it thought");
            }
            busy.lock().remove(&id);
        });
    }

    /// What the leader of a group does: it says who founded it, and follows the record with the voters.
    fn lead(&self, id: GroupId, standing: &Standing) {
        let Some(work) = self.work(id, standing) else { return };
        if !self.busy.lock().insert(id) {
            return;
        }
        let (groups, busy) = (Arc::clone(&self.authority.groups), Arc::clone(&self.busy));
        tokio::spawn(async move {
            let done = match work {
                Work::Found(command) => groups.propose(id, command).await.map(drop),
                Work::Voters(voters, learner) => groups.set_voters(id, voters, learner).await,
            };
            if let Err(error) = done {
                tracing::info!(group = %id, %error, "a group's leader will try again");
            }
            busy.lock().remove(&id);
        });
    }

    fn work(&self, id: GroupId, standing: &Standing) -> Option<Work> {
        // A leader that is no voter any more only sees its own removal through.
        if !standing.voters.contains(&self.authority.voter) {
            return None;
        }
        let placement = self.authority.placement.load();
        let (nodes, learner) = match id.shard() {
            None => {
                let meta = self.authority.groups.cluster_meta()?;
                if meta.version == 0 {
                    let (replication_factor, members) =
                        (placement.replication_factor, placement.members.clone());
                    let change = MemberChange::Found { replication_factor, members };
                    let command = saturn_ring::ClusterCommand { at_ms: clock::unix_ms(), change };
                    return Some(Work::Found(Command::Cluster(command)));
                }
                (Placement::council(&meta.members), None)
            }
            Some(shard) => {
                let Some(record) = self.authority.groups.shard_meta(shard)?.record else {
                    let record = placement.record(shard)?.clone();
                    return Some(Work::Found(Command::Shard(ShardCommand::Found(record))));
                };
                (record.slots, record.moving.map(|moving| moving.to))
            }
        };
        let voters = voters_of(&nodes, &placement.members)?;
        let learner = learner.and_then(|id| placement.members.iter().find(|m| m.id == id)).map(Voter::from);
        let learners: BTreeSet<Voter> = learner.iter().copied().collect();
        if standing.voters == voters && standing.learners == learners && !standing.is_joint {
            return None;
        }
        // A voter that is not there could not confirm what it is made to vote on.
        let coming = voters.iter().chain(&learner).filter(|voter| !standing.voters.contains(voter));
        coming.copied().all(|voter| self.answers(voter)).then_some(Work::Voters(voters, learner))
    }
}

/// A random number; without randomness from the system one that is the same each time, which is no worse than slow.
fn draw() -> u16 {
    getrandom::u32().map_or(0, |number| (number >> 16) as u16)
}

/// What the leader of a group has to do.
enum Work {
    Found(Command),
    Voters(BTreeSet<Voter>, Option<Voter>),
}

/// Has deletions forgotten that all nodes of their shards have done: of all shards that this node leads at once, as there
/// are as many after a deletion.
async fn settle(authority: &Authority, shards: Vec<(ShardId, ShardRecord)>) {
    let nodes: BTreeSet<&NodeId> = shards.iter().flat_map(|(_, record)| record.writers()).collect();
    let placement = authority.placement.load();
    let push = async |node: &NodeId| {
        if *node == authority.me {
            return Some(node.clone());
        }
        let pushed = authority.groups.control().push_placement(node, &placement).await;
        let failed = |error| tracing::debug!(%node, error, "a node did not say that it has done deletions");
        pushed.map_err(failed).ok().map(|()| node.clone())
    };
    let known: BTreeSet<NodeId> =
        futures::future::join_all(nodes.into_iter().map(push)).await.into_iter().flatten().collect();
    let steps = shards.iter().filter(|(shard, record)| placement.record(*shard) == Some(record));
    let steps = steps.map(async |(shard, record)| {
        let known = known.clone();
        if let Err(error) = authority.decide(*shard, record, RecordStep::Settle { known }).await {
            tracing::debug!(%shard, error = format!("{error:#}"), "a shard's deletions are not settled yet");
        }
    });
    futures::future::join_all(steps).await;
    tokio::time::sleep(SETTLE_AGAIN).await;
}

/// The nodes as voters; `None` while one of them is not in the member list.
fn voters_of(nodes: &[NodeId], members: &[PlacementMember]) -> Option<BTreeSet<Voter>> {
    let voter = |id: &NodeId| members.iter().find(|member| member.id == *id).map(Voter::from);
    nodes.iter().map(voter).collect()
}

/// Makes this node act on what its groups decide, and on what others know; ends when it is no member any more.
pub(crate) async fn follow(
    authority: Authority,
    gossip: mpsc::Sender<gossip::Command>,
) -> anyhow::Result<()> {
    let mut compare = tokio::time::interval(COMPARE_EVERY);
    compare.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turn = 0;
    let mut was_member = false;
    loop {
        was_member |= check_membership(&authority.placement.load(), &authority.me, authority.voter).is_ok();
        let adoption = tokio::select! {
            changed = authority.groups.changes().take() => {
                let records = changed.iter().filter_map(|id| {
                    let shard = id.shard()?;
                    Some((shard, authority.groups.shard_meta(shard)?.record?))
                });
                let records: Vec<(ShardId, ShardRecord)> = records.collect();
                let meta = authority.groups.cluster_meta();
                let members = meta.map(|meta| MemberList { version: meta.version, members: meta.members });
                let placement = Arc::clone(&authority.placement);
                let adopt =
                    tokio::task::spawn_blocking(move || placement.adopt_all(&records, members.as_ref()));
                match adopt.await.context("adopting what was decided")? {
                    // Others go on without this node; once there is space on the disk again, it follows.
                    Err(error @ AdoptError::Persist(_)) => {
                        let error = format!("{:#}", anyhow::Error::from(error));
                        tracing::error!(error, "this node cannot act on what was decided; it will try again");
                        changed.into_iter().for_each(|id| authority.groups.changes().add(id));
                        tokio::time::sleep(ADOPT_AGAIN).await;
                        Adoption::Known
                    }
                    adopted => adopted.context("cannot adopt what was decided")?,
                }
            }
            _ = compare.tick() => {
                turn += 1;
                compare_with_someone(&authority, turn).await
            }
        };
        if adoption == Adoption::Adopted {
            let placement = authority.placement.load();
            // Whoever is about to join is in no list yet.
            if was_member {
                check_membership(&placement, &authority.me, authority.voter)?;
            }
            let announce = gossip::Command::SetPlacement(placement.cluster, placement.version);
            gossip.send(announce).await.context("the gossip task has ended")?;
        }
    }
}

/// A node that the cluster has forgotten must not go on.
fn check_membership(placement: &Placement, me: &NodeId, voter: Voter) -> anyhow::Result<()> {
    match placement.members.iter().find(|member| member.id == *me) {
        Some(member) if Voter::from(member) == voter => Ok(()),
        Some(_) => bail!("another node has joined the cluster under the name of {me}"),
        None => bail!(cluster::forgotten(me)),
    }
}

/// Asks one of the other nodes for what this one does not know.
async fn compare_with_someone(authority: &Authority, turn: usize) -> Adoption {
    let placement = authority.placement.load();
    let control = authority.groups.control();
    let others: Vec<NodeId> = {
        let view = control.view();
        let view = view.borrow();
        let others = placement.members.iter().map(|member| &member.id);
        others.filter(|id| **id != authority.me && view.is_alive(id)).cloned().collect()
    };
    let Some(node) = others.get(turn % others.len().max(1)) else { return Adoption::Known };
    match pull_from(authority, node, &placement).await {
        Ok(adoption) => adoption,
        Err(error) => {
            tracing::debug!(%node, error = format!("{error:#}"), "the placement was not compared");
            Adoption::Known
        }
    }
}

async fn pull_from(authority: &Authority, node: &NodeId, mine: &Placement) -> anyhow::Result<Adoption> {
    let mut client = authority.groups.control().client(node).map_err(anyhow::Error::msg)?;
    let request = PullPlacementRequest {
        cluster: bytes::Bytes::copy_from_slice(mine.cluster.0.as_bytes()),
        fingerprint: mine.fingerprint(),
    };
    let reply = tokio::time::timeout(PULL_TIMEOUT, client.pull_placement(request)).await??.into_inner();
    if reply.placement.is_empty() {
        return Ok(Adoption::Known);
    }
    let theirs = wire::placement_from_bytes(&reply.placement)?;
    adopt(&authority.placement, theirs).await
}

/// Takes over what is newer in another node's placement.
pub(crate) async fn adopt(placement: &Arc<PlacementHandle>, theirs: Placement) -> anyhow::Result<Adoption> {
    let handle = Arc::clone(placement);
    Ok(tokio::task::spawn_blocking(move || handle.adopt_placement(&theirs)).await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_ask_in_turn_and_then_not_in_step() {
        let start = Instant::now();
        let mut voters = [Leaderless::new(start); 2];
        let mut asked: Vec<Vec<usize>> = vec![Vec::new(); 2];
        for tick in 0..2000 {
            let now = start + LOOK_EVERY * tick;
            for (place, (voter, asked)) in (0..).zip(voters.iter_mut().zip(&mut asked)) {
                if voter.should_ask(now, place, draw()) {
                    asked.push(tick as usize);
                }
            }
        }
        assert_eq!((asked[0][0], asked[1][0]), (0, 2), "the second one's turn is a second later");
        // Whoever could be elected needs one election in which the other keeps still.
        let alone = asked[0].iter().filter(|tick| !asked[1].contains(tick)).count();
        assert!(alone > asked[0].len() / 2, "{alone} of {}", asked[0].len());
        let pauses = asked[0].windows(2).map(|pair| LOOK_EVERY * (pair[1] - pair[0]) as u32);
        let limits = PAUSE_MIN..=PAUSE_MAX + LOOK_EVERY;
        assert!(pauses.clone().all(|pause| limits.contains(&pause)), "{:?}", pauses.collect::<Vec<_>>());
    }
}
