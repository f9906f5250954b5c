//! The samples of one selection while replicas send them: what is held is counted against the query's budget, and
//! whoever still sends is told when nobody wants more.
//!
//! Of a shard, as many samples count as the replica has sent that has sent most: the merged answer cannot be smaller,
//! so only what is over the budget is refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use saturn_model::{OverBudget, SampleBudget, SeriesColumns, ShardId};
use tokio::sync::mpsc;

use crate::{PeerError, ShardReply};

/// Counts the samples of a selection.
#[derive(Debug)]
pub struct Taking {
    budget: Arc<SampleBudget>,
    /// The most that is held of each shard.
    by_shard: Mutex<HashMap<ShardId, usize>>,
    stopped: AtomicBool,
}

/// Where a replica's answers go, shard by shard.
#[derive(Clone, Debug)]
pub struct SelectSink {
    taking: Arc<Taking>,
    replies: mpsc::Sender<ShardReply<Vec<SeriesColumns>>>,
}

impl Taking {
    pub(crate) fn new(budget: Arc<SampleBudget>) -> Self {
        Self { budget, by_shard: Mutex::default(), stopped: AtomicBool::new(false) }
    }

    /// So many samples of the shard are held in one answer.
    pub(crate) fn hold(&self, shard: ShardId, samples: usize) -> Result<(), OverBudget> {
        let mut by_shard = self.by_shard.lock();
        let held = by_shard.entry(shard).or_default();
        let more = samples.saturating_sub(*held);
        *held += more;
        self.budget.grow(more)
    }

    /// Nobody wants more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

impl SelectSink {
    pub(crate) fn new(taking: Arc<Taking>, replies: mpsc::Sender<ShardReply<Vec<SeriesColumns>>>) -> Self {
        Self { taking, replies }
    }

    /// To be told as an answer for a shard grows: how many samples it holds so far.
    ///
    /// # Errors
    /// [`PeerError::OverBudget`] when the query may not hold as many, and [`PeerError::Timeout`] when nobody waits for
    /// it any more: stop to read and drop what was read.
    pub fn hold(&self, shard: ShardId, samples: usize) -> Result<(), PeerError> {
        if self.taking.stopped.load(Ordering::Relaxed) {
            return Err(PeerError::Timeout);
        }
        self.taking.hold(shard, samples).map_err(|OverBudget { samples_max }| {
            self.taking.stop();
            PeerError::OverBudget { samples_max }
        })
    }

    /// Hands over a whole shard's answer.
    pub async fn reply(&self, reply: ShardReply<Vec<SeriesColumns>>) {
        // Nobody listens any more once the read has its answers.
        let _ = self.replies.send(reply).await;
    }

    /// As [`SelectSink::reply`], from a thread that may block.
    pub fn reply_blocking(&self, reply: ShardReply<Vec<SeriesColumns>>) {
        let _ = self.replies.blocking_send(reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_count_once_and_what_is_over_stops_everybody() {
        let budget = Arc::new(SampleBudget::new(10));
        let taking = Arc::new(Taking::new(Arc::clone(&budget)));
        let (replies, _listening) = mpsc::channel(1);
        let (one, other) =
            (SelectSink::new(Arc::clone(&taking), replies.clone()), SelectSink::new(taking, replies));
        for (shard, samples) in [(0, 3), (1, 4)] {
            assert_eq!(one.hold(ShardId(shard), samples), Ok(()));
            assert_eq!(other.hold(ShardId(shard), samples - 1), Ok(()));
        }
        assert_eq!(budget.held(), 7);
        assert_eq!(one.hold(ShardId(1), 7), Ok(()));
        assert_eq!(one.hold(ShardId(2), 1), Err(PeerError::OverBudget { samples_max: 10 }));
        assert_eq!(other.hold(ShardId(0), 1), Err(PeerError::Timeout));
    }
}
