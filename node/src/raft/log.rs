//! The log of one group, as rows of the database that all groups share.
#![expect(clippy::result_large_err, reason = "the errors are openraft's, whose traits ask for them")]

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{Entry, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote};
use saturn_storage::{Change, Durable, GroupLog};

use super::{GroupId, Types, Voter};

/// Row of the vote.
const VOTE: u8 = 0;
/// Row of the last entry that was purged.
const PURGED: u8 = 1;

/// See the module's description. Cloning shares everything.
#[derive(Clone)]
pub(super) struct Log {
    group: GroupId,
    log: Arc<GroupLog>,
}

type Failure = StorageError<Voter>;

impl Log {
    pub(super) fn new(group: GroupId, log: Arc<GroupLog>) -> Self {
        Self { group, log }
    }

    async fn write(&self, changes: Vec<Change>, durable: Durable) -> Result<(), Failure> {
        let written = self.log.write(self.group.0, changes, durable).await;
        written.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    fn value<T: serde::de::DeserializeOwned>(&self, name: u8) -> Result<Option<T>, Failure> {
        let bytes = self.log.value(self.group.0, name).map_err(|e| StorageIOError::read_logs(&e))?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    postcard::from_bytes(bytes).map_err(|e| StorageIOError::read_logs(&e).into())
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    postcard::to_allocvec(value).map_err(|e| StorageIOError::write_logs(&e).into())
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let rows = self.log.entries(self.group.0, from, to).map_err(|e| StorageIOError::read_logs(&e))?;
        rows.iter().map(|(_, bytes)| decode(bytes)).collect()
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failure> {
        let last_purged_log_id: Option<LogId<Voter>> = self.value(PURGED)?;
        let last = self.log.last_entry(self.group.0).map_err(|e| StorageIOError::read_logs(&e))?;
        let last = last.map(|(_, bytes)| decode::<Entry<Types>>(&bytes)).transpose()?;
        let last_log_id = last.map(|entry| entry.log_id).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<Voter>) -> Result<(), Failure> {
        self.write(vec![Change::Value(VOTE, encode(vote)?)], Durable::Now).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<Voter>>, Failure> {
        self.value(VOTE)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let rows = entries.into_iter().map(|entry| Ok(Change::Entry(entry.log_id.index, encode(&entry)?)));
        let rows = rows.collect::<Result<Vec<_>, Failure>>()?;
        let written = self.log.write(self.group.0, rows, Durable::Now).await;
        match &written {
            Ok(()) => callback.log_io_completed(Ok(())),
            Err(error) => callback.log_io_completed(Err(std::io::Error::other(error.to_string()))),
        }
        written.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    async fn truncate(&mut self, log_id: LogId<Voter>) -> Result<(), Failure> {
        self.write(vec![Change::RemoveEntries(log_id.index, u64::MAX)], Durable::Now).await
    }

    async fn purge(&mut self, log_id: LogId<Voter>) -> Result<(), Failure> {
        let end = log_id.index + 1;
        let changes = vec![Change::Value(PURGED, encode(&log_id)?), Change::RemoveEntries(0, end)];
        // The state that makes these entries superfluous was written before.
        self.write(changes, Durable::Later).await
    }
}
