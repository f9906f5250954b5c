//! What a shard's record says is deleted, done in this node's storage before the record is in force here.

use saturn_model::ShardId;
use saturn_ring::{Epoch, NodeId, Overdue, Placement, ShardRecord};
use saturn_storage::{AgreedDeletions, Engine, StorageError};

use crate::durability::Lacking;

/// Does the deletions of a placement that is about to be adopted, in the shards of which this node stores samples. It
/// does each once, whatever happens meanwhile: the storage remembers how far it is. No append may be under way that was
/// let in under an older record: it could store anew what is deleted here. Blocks.
///
/// A copy that missed deletions which everybody was known to have done cannot do them any more: nobody remembers what they
/// were. It is dropped where the shard is fetched from its other nodes anyway, as it is still to come or `lacking`.
///
/// # Errors
/// If the storage fails; then the placement must not be adopted.
pub(crate) fn carry_out(
    engine: &Engine,
    me: &NodeId,
    lacking: &Lacking,
    placement: &Placement,
) -> Result<(), StorageError> {
    let mut agreed = Vec::new();
    for (shard, record, overdue) in overdue(engine, me, placement) {
        let (done, settled) = (engine.deleted_through(shard), record.settled.0);
        // An empty copy, such as that of a new disk, has nothing to drop and nothing that may come back.
        let has_missed = overdue.missed && engine.holds_shard(shard);
        if has_missed && record.slots.contains(me) && !lacking.contains(shard) {
            tracing::error!(
                %shard, done, settled,
                "this node has missed deletions that it said it had done: its disk is an older copy, and nobody else \
                 remembered that; deleted samples may come back"
            );
        } else if has_missed {
            tracing::info!(%shard, done, settled, "drops an old copy that missed deletions: the shard is fetched anew");
            engine.drop_shard(shard)?;
        }
        let Overdue { through, selections, .. } = overdue;
        agreed.push(AgreedDeletions { shard, through: through.0, selections });
    }
    if agreed.is_empty() {
        return Ok(());
    }
    let shards = agreed.len();
    let series = engine.delete_agreed(agreed)?;
    tracing::info!(shards, series, "deleted what was agreed on");
    Ok(())
}

/// Whether there is anything to do. If samples are to be deleted, what is in memory is flushed, so that [`carry_out`],
/// which appends wait for, has little to flush. Blocks.
///
/// # Errors
/// If the storage fails.
pub(crate) fn prepare(engine: &Engine, me: &NodeId, placement: &Placement) -> Result<bool, StorageError> {
    let mut is_any = false;
    for (shard, _, overdue) in overdue(engine, me, placement) {
        is_any = true;
        for selection in &overdue.selections {
            if !engine.series(shard, selection, 1)?.items.is_empty() {
                return engine.flush().map(|()| true);
            }
        }
    }
    Ok(is_any)
}

fn overdue<'a>(
    engine: &'a Engine,
    me: &'a NodeId,
    placement: &'a Placement,
) -> impl Iterator<Item = (ShardId, &'a ShardRecord, Overdue)> {
    let records = (0..).map(ShardId).zip(&placement.shards);
    records.filter_map(|(shard, record)| {
        Some((shard, record, record.overdue(me, Epoch(engine.deleted_through(shard)))?))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;
    use saturn_model::{Fingerprint, Labels, Sample, Selection, ShardBatch, TenantId, TimestampMs};
    use saturn_ring::ClusterId;
    use saturn_storage::EngineOptions;
    use uuid::Uuid;

    use super::*;

    const SHARD: ShardId = ShardId(0);

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    fn tenant() -> TenantId {
        TenantId::new("demo").expect("valid")
    }

    fn until(end: i64) -> Selection {
        let (start, end) = (TimestampMs(i64::MIN), TimestampMs(end));
        Selection { tenant: tenant(), matchers: Vec::new(), start, end }
    }

    /// A storage with samples at 0 to 9 ms.
    async fn engine(dir: &std::path::Path) -> Engine {
        let engine = Engine::open(EngineOptions::new(dir), &mut Registry::default()).expect("opens");
        let labels = Labels::from_pairs([("__name__", "m")]).expect("valid");
        let mut batch = ShardBatch::new(tenant(), SHARD);
        batch.push_series(Fingerprint::of(&tenant(), labels.as_encoded()));
        (0..10).for_each(|ms| batch.push_sample(Sample { timestamp: TimestampMs(ms), value: 1.0 }));
        batch.labels.push((0, labels));
        engine.append(vec![Arc::new(batch)]).await.expect("stored");
        engine
    }

    fn held(engine: &Engine) -> usize {
        let found = engine.select(SHARD, &until(i64::MAX), 10).expect("selected");
        found.iter().map(|series| series.timestamps.len()).sum()
    }

    fn placement(record: &ShardRecord) -> Placement {
        Placement {
            cluster: ClusterId(Uuid::nil()),
            version: 1,
            replication_factor: 1,
            members: Vec::new(),
            shards: vec![record.clone()],
        }
    }

    fn deleted(record: &ShardRecord, id: u128, end: i64) -> ShardRecord {
        record.delete(Uuid::from_u128(id), vec![until(end)]).expect("deletes")
    }

    #[tokio::test]
    async fn each_deletion_is_done_once_by_whoever_stores_the_shard() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let engine = engine(dir.path()).await;
        let first = deleted(&ShardRecord::stable(Epoch(4), vec![node("a")]), 1, 3);
        carry_out(&engine, &node("b"), &Lacking::default(), &placement(&first)).expect("nothing to do");
        assert_eq!((held(&engine), engine.deleted_through(SHARD)), (10, 0));
        for _ in 0..2 {
            carry_out(&engine, &node("a"), &Lacking::default(), &placement(&first)).expect("deletes");
            assert_eq!((held(&engine), engine.deleted_through(SHARD)), (6, 5));
        }
        let second = deleted(&first, 2, 5);
        carry_out(&engine, &node("a"), &Lacking::default(), &placement(&second)).expect("deletes");
        assert_eq!((held(&engine), engine.deleted_through(SHARD)), (4, 6));
        let settled = second.settle(&[node("a")].into()).expect("settles");
        carry_out(&engine, &node("a"), &Lacking::default(), &placement(&settled)).expect("nothing to do");
        assert_eq!((held(&engine), engine.deleted_through(SHARD)), (4, 6));
    }

    #[tokio::test]
    async fn what_is_left_of_an_earlier_time_goes_if_it_missed_deletions() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let engine = engine(dir.path()).await;
        let stable = ShardRecord::stable(Epoch(4), vec![node("a")]);
        let settled = deleted(&stable, 1, 3).settle(&[node("a")].into()).expect("settles");
        let begun = settled.begin(0, &node("b")).expect("begins");
        carry_out(&engine, &node("b"), &Lacking::default(), &placement(&begun)).expect("drops");
        assert_eq!((held(&engine), engine.deleted_through(SHARD)), (0, 5));
    }

    #[tokio::test]
    async fn a_slot_that_missed_deletions_keeps_its_samples_unless_they_are_fetched_anew() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let engine = engine(dir.path()).await;
        let stable = ShardRecord::stable(Epoch(4), vec![node("a")]);
        let settled = deleted(&stable, 1, 3).settle(&[node("a")].into()).expect("settles");
        carry_out(&engine, &node("a"), &Lacking::default(), &placement(&deleted(&settled, 2, 5)))
            .expect("deletes what it can");
        assert_eq!((held(&engine), engine.deleted_through(SHARD)), (4, 7));

        let again = deleted(&settled, 2, 5).settle(&[node("a")].into()).expect("settles");
        let again = deleted(&again, 3, 7).settle(&[node("a")].into()).expect("settles");
        let lacking = Lacking::default();
        lacking.add([SHARD].into_iter());
        carry_out(&engine, &node("a"), &lacking, &placement(&again)).expect("drops");
        assert_eq!((held(&engine), engine.deleted_through(SHARD)), (0, 9));
    }
}
