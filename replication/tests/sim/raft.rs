//! The decisions: for each shard a log that all agree on, applied to the real `ShardMeta`. Its leader may be lost with
//! a proposal under way, which then is decided or not, and nobody is told; nodes apply late, or never in this life.
//!
//! The log is taken to be linearizable: that is Raft's own affair.

use saturn_model::ShardId;
use saturn_ring::{Epoch, RecordStep, ShardCommand, ShardMeta, ShardRecord};

use crate::marks::Mark;
use crate::message::{Proposed, Request, Response};
use crate::node::{CALL_LIMIT, Then, Timer};
use crate::planted::Bug;
use crate::world::{CallId, Event, MS, Micros, SECOND, World};

/// How long a proposal looks for a leader.
const LOOK_FOR_LEADER: Micros = 15 * SECOND;
const LOOK_AGAIN: Micros = 250 * MS;

/// All groups.
#[derive(Default)]
pub(crate) struct Raft {
    groups: Vec<Group>,
    /// Who leads the member list, and who still thinks so.
    pub(crate) cluster_leaders: Vec<usize>,
}

struct Group {
    meta: ShardMeta,
    leader: Option<usize>,
    /// Until then nobody is elected.
    leaderless_until: Micros,
}

/// A proposal that its leader has taken.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    shard: ShardId,
    command: ShardCommand,
    leader: usize,
    reply: (usize, CallId),
}

/// What goes on when a step was decided, or was not.
#[derive(Clone, Debug)]
pub(crate) enum After {
    Move { shard: ShardId, serial: u64, next: ShardRecord },
    Rebalance { shard: ShardId, next: ShardRecord },
    Delete { shard: ShardId, deletion: usize },
    Settle { shard: ShardId, next: ShardRecord },
}

/// A proposal that looks for its leader.
pub(crate) struct Proposal {
    shard: ShardId,
    command: ShardCommand,
    until: Micros,
    after: After,
}

impl Raft {
    pub(crate) fn found(&mut self, records: &[ShardRecord]) {
        let found = |record: &ShardRecord| {
            let mut meta = ShardMeta::default();
            meta.apply(ShardCommand::Found(record.clone())).expect("the first command");
            Group { meta, leader: None, leaderless_until: 0 }
        };
        self.groups = records.iter().map(found).collect();
    }

    /// The record of a shard, as decided.
    pub(crate) fn record(&self, shard: ShardId) -> &ShardRecord {
        self.groups[usize::from(shard.0)].meta.record.as_ref().expect("every group is founded")
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &ShardRecord> {
        self.groups.iter().map(|group| group.meta.record.as_ref().expect("every group is founded"))
    }
}

impl World {
    /// Whether a node has the votes of most of them.
    pub(crate) fn has_majority(&self, node: usize, voters: &[usize]) -> bool {
        let votes = voters.iter().filter(|voter| self.converse(node, **voter)).count();
        votes > voters.len() / 2
    }

    pub(crate) fn leader(&mut self, shard: ShardId) -> Option<usize> {
        let voters: Vec<usize> = self.raft.record(shard).slots.iter().map(crate::world::index_of).collect();
        let group = &self.raft.groups[usize::from(shard.0)];
        let (leader, until) = (group.leader, group.leaderless_until);
        if leader.is_some_and(|leader| voters.contains(&leader) && self.has_majority(leader, &voters)) {
            return leader;
        }
        let new = if leader.is_some() {
            self.lose_leader(shard);
            None
        } else if self.now >= until {
            voters.iter().copied().find(|voter| self.has_majority(*voter, &voters))
        } else {
            None
        };
        self.raft.groups[usize::from(shard.0)].leader = new;
        new
    }

    pub(crate) fn lose_leader(&mut self, shard: ShardId) {
        self.see(Mark::LeaderLost);
        let delay = self.random.raft.scale(50 * MS, 3 * SECOND);
        let group = &mut self.raft.groups[usize::from(shard.0)];
        group.leader = None;
        group.leaderless_until = self.now + delay;
    }

    /// Has a step decided that follows the record of an epoch.
    pub(crate) fn propose(
        &mut self,
        node: usize,
        shard: ShardId,
        epoch: Epoch,
        step: RecordStep,
        after: After,
    ) {
        let command = ShardCommand::Step { at_ms: self.clock_ms(node), epoch, step };
        self.propose_command(node, shard, command, after);
    }

    pub(crate) fn propose_command(
        &mut self,
        node: usize,
        shard: ShardId,
        command: ShardCommand,
        after: After,
    ) {
        let proposal = self.nodes[node].next_serial();
        let until = self.now + LOOK_FOR_LEADER;
        self.nodes[node].proposals.insert(proposal, Proposal { shard, command, until, after });
        self.propose_again(node, proposal);
    }

    pub(crate) fn propose_again(&mut self, node: usize, proposal: u64) {
        let Some(Proposal { shard, command, until, .. }) = self.nodes[node].proposals.get(&proposal) else {
            return;
        };
        let (shard, command) = (*shard, command.clone());
        if self.now > *until {
            return self.end_proposal(node, proposal, false);
        }
        match self.leader(shard) {
            Some(leader) => {
                let then = Then::Propose { proposal };
                self.call(node, leader, Request::Propose(shard, command), then, CALL_LIMIT);
            }
            None => self.timer(node, LOOK_AGAIN, Timer::ProposeAgain(proposal)),
        }
    }

    /// A proposal arrives at whom the proposer thinks to lead.
    pub(crate) fn lead_proposal(
        &mut self,
        node: usize,
        (from, call): (usize, CallId),
        shard: ShardId,
        command: ShardCommand,
    ) {
        if self.leader(shard) != Some(node) {
            return self.reply(node, from, call, Response::Proposed(Proposed::NotLeader));
        }
        let round_trip = 2 * self.random.raft.range(self.params.delay_min, self.params.delay_max);
        let sync = self.random.raft.range(1, self.params.fsync_max);
        let commit = Commit { shard, command, leader: node, reply: (from, call) };
        self.schedule(round_trip + sync, Event::Commit(Box::new(commit)));
    }

    /// A proposal is decided, unless its leader was lost before the others had it.
    pub(crate) fn commit(&mut self, Commit { shard, command, leader, reply }: Commit) {
        let leads = self.leader(shard) == Some(leader);
        let is_bad_luck = self.params.leader_loss && !self.healed && self.random.raft.percent(10);
        if leads && is_bad_luck {
            self.lose_leader(shard);
        }
        let is_told = leads && !is_bad_luck;
        if !is_told && self.random.raft.percent(50) {
            return;
        }
        let before = self.raft.record(shard).clone();
        let applied = self.raft.groups[usize::from(shard.0)].meta.apply(command.clone());
        if applied.is_ok() {
            self.decided(shard, &before, &command);
            if self.bug == Some(Bug::TwoStepMove)
                && let ShardCommand::Step { at_ms, step: RecordStep::Activate { .. }, epoch } = command
            {
                let before = self.raft.record(shard).clone();
                let step = RecordStep::Finish { fenced: before.slots.iter().cloned().collect() };
                let command = ShardCommand::Step { at_ms, epoch: epoch.next(), step };
                self.raft.groups[usize::from(shard.0)].meta.apply(command.clone()).expect("it follows");
                self.decided(shard, &before, &command);
            }
        }
        if !is_told {
            return self.see(Mark::ProposalWithoutAnswer);
        }
        let outcome = if applied.is_ok() { Proposed::Decided } else { Proposed::Refused };
        self.reply(leader, reply.0, reply.1, Response::Proposed(outcome));
    }

    /// A shard has a new record: it is checked, and its nodes hear of it in time.
    fn decided(&mut self, shard: ShardId, before: &ShardRecord, command: &ShardCommand) {
        let after = self.raft.record(shard).clone();
        self.note(0, "decided", u64::from(shard.0), after.epoch.0);
        self.remark(|| format!("shard {shard}: {after:?}"));
        self.check_step(shard, before, &after, command);
        self.check_shard(shard);
        for id in after.writers() {
            self.deliver_decision(crate::world::index_of(id), Timer::Apply(shard, after.clone()));
        }
        // Who is not in the group any more may never hear of it.
        for id in before.writers().filter(|id| !after.is_writer(id)) {
            if self.random.raft.percent(70) {
                self.deliver_decision(crate::world::index_of(id), Timer::Apply(shard, after.clone()));
            }
        }
    }

    /// A node that starts hears of what its groups have decided meanwhile.
    pub(crate) fn catch_up(&mut self, node: usize) {
        let me = self.id(node);
        for shard in (0..self.params.shards).map(ShardId) {
            let record = self.raft.record(shard).clone();
            if record.is_writer(&me) {
                self.deliver_decision(node, Timer::Apply(shard, record));
            }
        }
    }

    pub(crate) fn proposed(&mut self, node: usize, proposal: u64, response: Option<Response>) {
        match response {
            Some(Response::Proposed(Proposed::Decided)) => self.end_proposal(node, proposal, true),
            Some(Response::Proposed(Proposed::Refused)) => {
                self.see(Mark::ProposalRefused);
                self.end_proposal(node, proposal, false);
            }
            // Nobody knows: it is proposed again, and refused if it was decided.
            _ => self.timer(node, LOOK_AGAIN, Timer::ProposeAgain(proposal)),
        }
    }

    fn end_proposal(&mut self, node: usize, proposal: u64, is_decided: bool) {
        let Some(Proposal { after, .. }) = self.nodes[node].proposals.remove(&proposal) else { return };
        match after {
            After::Move { shard, serial, next } => {
                self.step_decided(node, shard, serial, is_decided.then_some(next));
            }
            After::Delete { shard, deletion } if is_decided => self.deletion_decided(node, shard, deletion),
            After::Delete { .. } => self.see(Mark::DeletionUndone),
            After::Settle { shard, next } => {
                self.nodes[node].forgetting.remove(&shard);
                if is_decided {
                    self.nodes[node].adopt(shard, next);
                }
            }
            After::Rebalance { shard, next } => {
                self.nodes[node].rebalancing -= 1;
                if is_decided {
                    self.nodes[node].adopt(shard, next.clone());
                    let writers: Vec<usize> = next.writers().map(crate::world::index_of).collect();
                    for peer in writers {
                        self.tell(node, peer, Request::PushRecord(shard, next.clone()));
                    }
                }
            }
        }
    }
}
