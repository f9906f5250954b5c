//! What the entries of a group's log add up to.
//!
//! The state is small, and written whole with every batch of entries that is applied, without a sync of its own: the
//! log has the entries, and is purged only behind a state that was written before. A snapshot is that row.
#![expect(clippy::result_large_err, reason = "the errors are openraft's, whose traits ask for them")]

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{
    Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};
use parking_lot::RwLock;
use saturn_ring::{ClusterMeta, ShardCommand, ShardMeta};
use saturn_storage::{Change, Durable, GroupLog};
use serde::{Deserialize, Serialize};

use super::{Applied, Changes, Command, GroupId, Types, Voter};
use crate::steps;

/// Row of the state.
const STATE: u8 = 2;

type Failure = StorageError<Voter>;
type Membership = StoredMembership<Voter, openraft::EmptyNode>;

/// The state of one of the two kinds of groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum GroupState {
    Cluster(ClusterMeta),
    Shard(ShardMeta),
}

impl GroupState {
    pub(super) fn cluster(&self) -> Option<&ClusterMeta> {
        match self {
            Self::Cluster(meta) => Some(meta),
            Self::Shard(_) => None,
        }
    }

    pub(super) fn shard(&self) -> Option<&ShardMeta> {
        match self {
            Self::Shard(meta) => Some(meta),
            Self::Cluster(_) => None,
        }
    }

    fn apply(&mut self, command: Command) -> Applied {
        let refusal = match (&mut *self, command) {
            (Self::Cluster(meta), Command::Cluster(command)) => {
                meta.apply(command).err().map(|e| e.to_string())
            }
            (Self::Shard(meta), Command::Shard(command)) => meta.apply(command).err().map(|e| e.to_string()),
            (Self::Cluster(_), Command::Shard(_)) | (Self::Shard(_), Command::Cluster(_)) => {
                Some("the command is for another kind of group".to_owned())
            }
        };
        let record = self.shard().and_then(|meta| meta.record.clone());
        Applied { refusal, record }
    }
}

/// What is stored of a group's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    applied: Option<LogId<Voter>>,
    membership: Membership,
    pub(super) state: GroupState,
}

fn encode(saved: &Saved) -> Result<Vec<u8>, Failure> {
    postcard::to_allocvec(saved).map_err(|e| StorageIOError::write_state_machine(&e).into())
}

/// See the module's description. Cloning shares everything.
#[derive(Clone)]
pub(super) struct StateMachine {
    group: GroupId,
    me: Voter,
    log: Arc<GroupLog>,
    saved: Arc<RwLock<Saved>>,
    changes: Arc<Changes>,
}

impl StateMachine {
    /// The state as it was written last, shared with the caller.
    pub(super) fn open(
        (group, me): (GroupId, Voter),
        log: Arc<GroupLog>,
        changes: Arc<Changes>,
    ) -> anyhow::Result<(Self, Arc<RwLock<Saved>>)> {
        let saved = match log.value(group.0, STATE)? {
            Some(bytes) => {
                changes.add(group);
                postcard::from_bytes(&bytes)?
            }
            None => {
                let state = match group.shard() {
                    None => GroupState::Cluster(ClusterMeta::default()),
                    Some(_) => GroupState::Shard(ShardMeta::default()),
                };
                Saved { applied: None, membership: Membership::default(), state }
            }
        };
        let saved = Arc::new(RwLock::new(saved));
        Ok((Self { group, me, log, saved: Arc::clone(&saved), changes }, saved))
    }

    /// The steps that an entry means for the leader that wrote it: it is committed, and nobody was told yet.
    fn pass(&self, entry: &Entry<Types>) {
        match &entry.payload {
            _ if entry.log_id.leader_id.node_id != self.me => {}
            EntryPayload::Normal(Command::Shard(ShardCommand::Step { step, .. })) => {
                steps::reach_in(step, "committed");
            }
            EntryPayload::Membership(voters) if voters.get_joint_config().len() > 1 => {
                steps::reach_in_voters(self.group.shard(), "joint");
            }
            EntryPayload::Normal(_) | EntryPayload::Membership(_) | EntryPayload::Blank => {}
        }
    }

    async fn save(&self, durable: Durable) -> Result<(), Failure> {
        let row = Change::Value(STATE, encode(&self.saved.read())?);
        let written = self.log.write(self.group.0, vec![row], durable).await;
        written.map_err(|e| StorageIOError::write_state_machine(&e))?;
        self.changes.add(self.group);
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot<Types>, Failure> {
        let saved = self.saved.read();
        let bytes = encode(&saved)?;
        let index = saved.applied.as_ref().map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: saved.applied,
            last_membership: saved.membership.clone(),
            snapshot_id: format!("{}-{index}", self.group.0),
        };
        Ok(Snapshot { meta, snapshot: Box::new(bytes) })
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId<Voter>>, Membership), Failure> {
        let saved = self.saved.read();
        Ok((saved.applied, saved.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        {
            let mut saved = self.saved.write();
            for entry in entries {
                self.pass(&entry);
                saved.applied = Some(entry.log_id);
                replies.push(match entry.payload {
                    EntryPayload::Blank => Applied::default(),
                    EntryPayload::Normal(command) => saved.state.apply(command),
                    EntryPayload::Membership(membership) => {
                        saved.membership = Membership::new(Some(entry.log_id), membership);
                        Applied::default()
                    }
                });
            }
        }
        self.save(Durable::Later).await?;
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, Failure> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<Voter, openraft::EmptyNode>,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), Failure> {
        let mut new: Saved =
            postcard::from_bytes(&snapshot).map_err(|e| StorageIOError::read_snapshot(None, &e))?;
        new.applied.clone_from(&meta.last_log_id);
        new.membership.clone_from(&meta.last_membership);
        *self.saved.write() = new;
        // The log may be purged up to here.
        self.save(Durable::Now).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failure> {
        if self.saved.read().applied.is_none() {
            return Ok(None);
        }
        self.snapshot().map(Some)
    }
}

impl RaftSnapshotBuilder<Types> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failure> {
        self.snapshot()
    }
}
