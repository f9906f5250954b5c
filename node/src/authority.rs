//! Who decides: the way from any node to the leader of any group.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use saturn_model::{Selection, ShardId, TimestampMs};
use saturn_replication::PlacementHandle;
use saturn_ring::{
    ClusterCommand, Epoch, MemberChange, NodeId, Placement, RecordStep, ShardCommand, ShardRecord,
};
use uuid::Uuid;

use crate::clock;
use crate::raft::{Command, GroupId, Groups, ProposeError, Voter};
use crate::steps;

/// How long a proposal looks for a leader.
const LOOK_FOR_LEADER: Duration = Duration::from_secs(15);
/// Pause after everybody was asked in vain.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a node needs to have something decided. Cloning shares everything.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) me: NodeId,
    /// This node in the groups.
    pub(crate) voter: Voter,
    pub(crate) groups: Arc<Groups>,
    pub(crate) placement: Arc<PlacementHandle>,
}

impl Authority {
    /// Has a change of the member list decided.
    pub(crate) async fn change_members(&self, change: MemberChange) -> Result<(), ProposeError> {
        let command = ClusterCommand { at_ms: clock::unix_ms(), change };
        self.propose(GroupId::CLUSTER, Command::Cluster(command)).await.map(drop)
    }

    /// Has a step of a shard's move decided that follows `record`, and acts on it at once: returns the record that
    /// follows, which is in force here.
    pub(crate) async fn decide(
        &self,
        shard: ShardId,
        record: &ShardRecord,
        step: RecordStep,
    ) -> anyhow::Result<ShardRecord> {
        let next = record.after(&step)?;
        steps::reach_in(&step, "asked");
        let at_ms = clock::unix_ms();
        let command = ShardCommand::Step { at_ms, epoch: record.epoch, step: step.clone() };
        self.propose(shard.into(), Command::Shard(command)).await?;
        steps::reach_in(&step, "decided");
        let (placement, adopted) = (Arc::clone(&self.placement), next.clone());
        tokio::task::spawn_blocking(move || placement.adopt(shard, adopted)).await??;
        steps::reach_in(&step, "adopted");
        Ok(next)
    }

    /// Has it written down that all nodes of the record of an epoch hold the same in a window.
    pub(crate) async fn seal(
        &self,
        shard: ShardId,
        epoch: Epoch,
        window: TimestampMs,
        digest: [u8; 32],
    ) -> Result<(), ProposeError> {
        let command = ShardCommand::Seal { epoch, window_ms: window.0, digest };
        self.propose(shard.into(), Command::Shard(command)).await.map(drop)
    }

    /// Has it decided that samples of a shard are deleted. Returns the record that says so, which is in force nowhere
    /// before nodes adopt it.
    pub(crate) async fn delete(
        &self,
        shard: ShardId,
        id: Uuid,
        selections: Vec<Selection>,
    ) -> Result<ShardRecord, ProposeError> {
        // A group that was never asked for anything may still be unfounded.
        let first =
            self.placement.load().record(shard).filter(|record| record.epoch == Epoch::FIRST).cloned();
        if let Some(record) = first {
            self.propose(shard.into(), Command::Shard(ShardCommand::Found(record))).await?;
        }
        let command = ShardCommand::Delete { id, selections };
        let record = self.propose(shard.into(), Command::Shard(command)).await?;
        record.ok_or_else(|| ProposeError::Unavailable("the leader did not say what follows".to_owned()))
    }

    /// Finds the group's leader and has it propose the command. A command whose outcome is unknown is proposed again,
    /// so it must be one that is refused or says nothing the second time.
    async fn propose(&self, group: GroupId, command: Command) -> Result<Option<ShardRecord>, ProposeError> {
        let started = Instant::now();
        let mut last = ProposeError::Unavailable(format!("nobody leads the group of {group}"));
        while started.elapsed() < LOOK_FOR_LEADER {
            let mut candidates = self.candidates(group);
            let mut hints = 0;
            while let Some(node) = candidates.pop_front() {
                let outcome = if node == self.me {
                    self.groups.propose(group, command.clone()).await
                } else {
                    self.groups.control().propose(&node, group, &command).await
                };
                match outcome {
                    Ok(record) => return Ok(record),
                    Err(ProposeError::Refused(text)) => return Err(ProposeError::Refused(text)),
                    Err(ProposeError::NotLeader(Some(leader))) if leader != node && hints < 3 => {
                        hints += 1;
                        candidates.push_front(leader);
                    }
                    Err(ProposeError::NotLeader(_)) => {}
                    Err(error) => last = error,
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(last)
    }

    /// Whom to ask, the likeliest first.
    fn candidates(&self, group: GroupId) -> VecDeque<NodeId> {
        let placement = self.placement.load();
        let likely: Vec<NodeId> = match group.shard() {
            Some(shard) => {
                placement.record(shard).into_iter().flat_map(ShardRecord::writers).cloned().collect()
            }
            None => Placement::council(&placement.members),
        };
        let leader = self.groups.standing(group).and_then(|standing| standing.leader);
        let mut candidates = VecDeque::new();
        let others = placement.members.iter().map(|member| member.id.clone());
        for id in self.groups.name_of(leader).into_iter().chain(likely).chain(others) {
            if !candidates.contains(&id) {
                candidates.push_back(id);
            }
        }
        candidates
    }
}
