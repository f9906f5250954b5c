//! The replication layer's requests and answers to and from the messages of the internal service.
//!
//! What another node answers is checked here: an answer that does not fit its request is an error of
//! that peer, and the quorum goes on without it.

use std::collections::HashMap;

use bytes::Bytes;
use saturn_model::{Labels, SeriesColumns, SeriesExemplars, ShardId};
use saturn_proto::{WireError, convert, peer};
use saturn_replication::{
    AppendRequest, BatchReply, CardinalityReply, CardinalityRequest, FencedBatch, LabelItems, LabelsAnswer,
    LabelsQuestion, LabelsRequest, PeerError, SelectRequest, ShardRefusal, ShardReply,
};
use saturn_ring::{Deletion, Epoch, MoveStep, NodeId, Placement, ShardRecord, SlotMove};
use tonic::{Code, Status};
use uuid::Uuid;

/// A call that failed, in the replication layer's terms.
pub(crate) fn peer_error(status: &Status) -> PeerError {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => PeerError::Timeout,
        Code::ResourceExhausted => PeerError::Overloaded(text),
        Code::Unavailable => PeerError::Unreachable(text),
        _ => PeerError::Failed(text),
    }
}

fn broken(error: &WireError) -> PeerError {
    PeerError::Failed(format!("the answer does not make sense: {error}"))
}

fn misfit(what: &str) -> PeerError {
    PeerError::Failed(format!("the answer does not fit the request: {what}"))
}

/// A placement as it travels and as it is stored: JSON.
pub(crate) fn placement_to_bytes(placement: &Placement) -> Bytes {
    serde_json::to_vec(placement).expect("a placement is made of strings and numbers").into()
}

/// Checks a placement that came from another node.
pub(crate) fn placement_from_bytes(bytes: &[u8]) -> Result<Placement, WireError> {
    let invalid = |e: String| WireError::Invalid(format!("placement: {e}"));
    let placement: Placement = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    placement.validate().map_err(|e| invalid(e.to_string()))?;
    Ok(placement)
}

pub(crate) fn append_request(cluster: Bytes, request: &AppendRequest) -> peer::AppendRequest {
    let batch = |fenced: &FencedBatch| convert::batch_to_message(&fenced.batch, fenced.epoch.0);
    peer::AppendRequest { cluster, batches: request.batches.iter().map(batch).collect() }
}

pub(crate) fn append_request_from(message: &peer::AppendRequest) -> Result<AppendRequest, WireError> {
    let fenced = |batch: &peer::AppendBatch| {
        let epoch = Epoch(batch.epoch);
        Ok(FencedBatch { epoch, batch: convert::batch_from_message(batch)?.into() })
    };
    Ok(AppendRequest { batches: message.batches.iter().map(fenced).collect::<Result<_, WireError>>()? })
}

pub(crate) fn append_reply_message(
    replies: Vec<BatchReply>,
    durable: Option<peer::DurablePosition>,
) -> peer::AppendReply {
    let refused = |refusal| peer::BatchReply { unknown: Vec::new(), refusal: Some(refusal_message(refusal)) };
    let message = |reply| match reply {
        BatchReply::Stored { unknown } => peer::BatchReply { unknown, refusal: None },
        BatchReply::Stale(record) => refused(ShardRefusal::Stale(record)),
        BatchReply::Behind => refused(ShardRefusal::Behind),
        BatchReply::NotOwner => refused(ShardRefusal::NotOwner),
        BatchReply::Failed(text) => refused(ShardRefusal::Failed(text)),
    };
    peer::AppendReply { batches: replies.into_iter().map(message).collect(), durable }
}

pub(crate) fn append_reply(
    request: &AppendRequest,
    message: peer::AppendReply,
) -> Result<Vec<BatchReply>, PeerError> {
    if message.batches.len() != request.batches.len() {
        return Err(misfit("another number of batches"));
    }
    let reply = |(reply, fenced): (peer::BatchReply, &FencedBatch)| match reply.refusal {
        Some(refusal) => Ok(refusal_from(refusal)?.into()),
        None => {
            let series = fenced.batch.series_count();
            if reply.unknown.iter().any(|index| *index as usize >= series) {
                return Err(misfit("unknown series that were not sent"));
            }
            Ok(BatchReply::Stored { unknown: reply.unknown })
        }
    };
    message.batches.into_iter().zip(&request.batches).map(reply).collect()
}

pub(crate) fn refusal_message(refusal: ShardRefusal) -> peer::Refusal {
    use peer::refusal::Kind;
    let (kind, record, text) = match refusal {
        ShardRefusal::Stale(record) => (Kind::StaleEpoch, Some(record), String::new()),
        ShardRefusal::Behind => (Kind::Behind, None, String::new()),
        ShardRefusal::NotOwner => (Kind::NotOwner, None, String::new()),
        ShardRefusal::Failed(text) => (Kind::Failed, None, text),
        ShardRefusal::TooManySeries(text) => (Kind::TooManySeries, None, text),
    };
    peer::Refusal { kind: kind.into(), record: record.map(|record| record_message(&record)), text }
}

pub(crate) fn record_message(record: &ShardRecord) -> peer::ShardRecord {
    let moving = record.moving.as_ref().map(|moving| peer::SlotMove {
        slot: u32::from(moving.slot),
        to: moving.to.to_string(),
        activated: moving.step == MoveStep::Activated,
    });
    let slots = record.slots.iter().map(NodeId::to_string).collect();
    let deletion = |deletion: &Deletion| peer::Deletion {
        id: Bytes::copy_from_slice(deletion.id.as_bytes()),
        epoch: deletion.epoch.0,
        selections: deletion.selections.iter().map(convert::selection_to_message).collect(),
    };
    let deletions = record.deletions.iter().map(deletion).collect();
    peer::ShardRecord { epoch: record.epoch.0, slots, moving, deletions, settled: record.settled.0 }
}

pub(crate) fn record_from(message: peer::ShardRecord) -> Result<ShardRecord, PeerError> {
    let node = |id: &String| NodeId::new(id).map_err(|e| misfit(&e.to_string()));
    let slots = message.slots.iter().map(node).collect::<Result<_, _>>()?;
    let moving = message.moving.map(|moving| {
        let slot = u8::try_from(moving.slot).map_err(|_| misfit("a slot beyond 255"))?;
        let step = if moving.activated { MoveStep::Activated } else { MoveStep::Begun };
        Ok(SlotMove { slot, to: node(&moving.to)?, step })
    });
    let (epoch, settled) = (Epoch(message.epoch), Epoch(message.settled));
    let deletions = message.deletions.iter().map(deletion_from).collect::<Result<_, _>>()?;
    Ok(ShardRecord { epoch, slots, moving: moving.transpose()?, deletions, settled })
}

fn deletion_from(message: &peer::Deletion) -> Result<Deletion, PeerError> {
    let id = Uuid::from_slice(&message.id).map_err(|_| misfit("a deletion's id is not 16 bytes"))?;
    let selections = message.selections.iter().map(convert::selection_from_message);
    let selections = selections.collect::<Result<_, _>>().map_err(|e| misfit(&e.to_string()))?;
    Ok(Deletion { id, epoch: Epoch(message.epoch), selections })
}

pub(crate) fn refusal_from(refusal: peer::Refusal) -> Result<ShardRefusal, PeerError> {
    use peer::refusal::Kind;
    Ok(match refusal.kind() {
        Kind::StaleEpoch => {
            let record = refusal.record.ok_or_else(|| misfit("stale epoch without a record"))?;
            ShardRefusal::Stale(record_from(record)?)
        }
        Kind::Behind => ShardRefusal::Behind,
        Kind::NotOwner => ShardRefusal::NotOwner,
        Kind::TooManySeries => ShardRefusal::TooManySeries(refusal.text),
        Kind::Failed | Kind::Unspecified => ShardRefusal::Failed(refusal.text),
    })
}

fn shards_message(shards: &[(ShardId, Epoch)]) -> Vec<peer::ShardEpoch> {
    let message =
        |(shard, epoch): &(ShardId, Epoch)| peer::ShardEpoch { shard: u32::from(shard.0), epoch: epoch.0 };
    shards.iter().map(message).collect()
}

fn shards_from(message: &[peer::ShardEpoch]) -> Result<Vec<(ShardId, Epoch)>, WireError> {
    message.iter().map(|s| Ok((convert::shard_from_number(s.shard)?, Epoch(s.epoch)))).collect()
}

fn selection_from(message: Option<&peer::Selection>) -> Result<saturn_model::Selection, WireError> {
    let message = message.ok_or_else(|| WireError::Invalid("a request without a selection".into()))?;
    convert::selection_from_message(message)
}

pub(crate) fn select_request(cluster: Bytes, request: &SelectRequest) -> peer::SelectRequest {
    peer::SelectRequest {
        cluster,
        selection: Some(convert::selection_to_message(&request.selection)),
        shards: shards_message(&request.shards),
        series_max: request.series_max as u64,
    }
}

pub(crate) fn select_request_from(message: &peer::SelectRequest) -> Result<SelectRequest, WireError> {
    Ok(SelectRequest {
        selection: selection_from(message.selection.as_ref())?,
        shards: shards_from(&message.shards)?,
        series_max: usize::try_from(message.series_max).unwrap_or(usize::MAX),
    })
}

/// One shard's answer being cut into frames of about `frame_bytes`.
pub(crate) struct FrameWriter {
    frame: peer::SelectFrame,
    bytes: usize,
    frame_bytes: usize,
}

impl FrameWriter {
    pub(crate) fn new(shard: ShardId, frame_bytes: usize) -> Self {
        Self { frame: empty_frame(u32::from(shard.0)), bytes: 0, frame_bytes }
    }

    /// Adds a series. Returns the frame that is full with it.
    pub(crate) fn push(&mut self, series: &SeriesColumns) -> Option<peer::SelectFrame> {
        let message = convert::series_to_message(series);
        self.bytes += message.labels.len() + message.timestamps.len() + message.values.len();
        self.bytes += message.histogram_timestamps.len() + message.histograms.len();
        self.frame.series.push(message);
        if self.bytes < self.frame_bytes {
            return None;
        }
        self.bytes = 0;
        let next = empty_frame(self.frame.shard);
        Some(std::mem::replace(&mut self.frame, next))
    }

    /// The last frame. After a refusal, the series that were sent do not count.
    pub(crate) fn finish(self, read: Result<(), ShardRefusal>) -> peer::SelectFrame {
        match read {
            Ok(()) => peer::SelectFrame { done: true, ..self.frame },
            Err(refusal) => peer::SelectFrame {
                refusal: Some(refusal_message(refusal)),
                done: true,
                ..empty_frame(self.frame.shard)
            },
        }
    }
}

fn empty_frame(shard: u32) -> peer::SelectFrame {
    peer::SelectFrame { shard, series: Vec::new(), done: false, refusal: None }
}

/// Puts the frames of an answer together; a shard counts once its last frame has come.
pub(crate) struct SelectCollector {
    series_max: usize,
    /// The shards whose last frame has not come.
    open: HashMap<ShardId, Growing>,
}

/// What has come of a shard.
#[derive(Default)]
struct Growing {
    series: Vec<SeriesColumns>,
    /// Weight of all series.
    samples: usize,
}

impl SelectCollector {
    pub(crate) fn new(request: &SelectRequest) -> Self {
        let open = request.shards.iter().map(|(shard, _)| (*shard, Growing::default()));
        Self { series_max: request.series_max, open: open.collect() }
    }

    /// Takes a frame; `hold` is told how many samples its shard holds with it. Returns the shard's answer if it was
    /// the last one.
    pub(crate) fn add(
        &mut self,
        frame: peer::SelectFrame,
        hold: impl FnOnce(ShardId, usize) -> Result<(), PeerError>,
    ) -> Result<Option<ShardReply<Vec<SeriesColumns>>>, PeerError> {
        let shard = convert::shard_from_number(frame.shard).map_err(|e| broken(&e))?;
        let unexpected = || misfit("a shard that was not asked for, or whose last frame has come");
        let growing = self.open.get_mut(&shard).ok_or_else(unexpected)?;
        for message in &frame.series {
            let series = convert::series_from_message(message).map_err(|e| broken(&e))?;
            growing.samples += series.weight();
            growing.series.push(series);
        }
        if growing.series.len() > self.series_max {
            return Err(misfit("more series than asked for"));
        }
        hold(shard, growing.samples)?;
        if !frame.done {
            return Ok(None);
        }
        let whole = self.open.remove(&shard).ok_or_else(unexpected)?;
        let result = match frame.refusal {
            Some(refusal) => Err(refusal_from(refusal)?),
            None => Ok(whole.series),
        };
        Ok(Some(ShardReply { shard, result }))
    }

    /// The stream has ended.
    pub(crate) fn finish(self) -> Result<(), PeerError> {
        if !self.open.is_empty() {
            return Err(misfit("the stream ended before its last frame"));
        }
        Ok(())
    }
}

pub(crate) fn labels_request(cluster: Bytes, request: &LabelsRequest) -> peer::LabelsRequest {
    use peer::labels_request::What;
    let what = match &request.question {
        LabelsQuestion::Names => What::Names(true),
        LabelsQuestion::ValuesOf(name) => What::ValuesOf(name.clone()),
        LabelsQuestion::Series => What::Series(true),
        LabelsQuestion::Exemplars => What::Exemplars(true),
        LabelsQuestion::Metadata => What::Metadata(true),
        LabelsQuestion::MetadataOf(metric) => What::MetadataOf(metric.clone()),
    };
    peer::LabelsRequest {
        cluster,
        selection: Some(convert::selection_to_message(&request.selection)),
        shards: shards_message(&request.shards),
        what: Some(what),
        limit: request.limit as u64,
    }
}

pub(crate) fn labels_request_from(message: &peer::LabelsRequest) -> Result<LabelsRequest, WireError> {
    use peer::labels_request::What;
    let question = match &message.what {
        Some(What::Names(_)) => LabelsQuestion::Names,
        Some(What::ValuesOf(name)) => LabelsQuestion::ValuesOf(name.clone()),
        Some(What::Series(_)) => LabelsQuestion::Series,
        Some(What::Exemplars(_)) => LabelsQuestion::Exemplars,
        Some(What::Metadata(_)) => LabelsQuestion::Metadata,
        Some(What::MetadataOf(metric)) => LabelsQuestion::MetadataOf(metric.clone()),
        None => return Err(WireError::Invalid("a labels request that asks nothing".into())),
    };
    let selection = selection_from(message.selection.as_ref())?;
    let limit = usize::try_from(message.limit).unwrap_or(usize::MAX);
    Ok(LabelsRequest { selection, shards: shards_from(&message.shards)?, question, limit })
}

pub(crate) fn labels_reply_message(replies: Vec<ShardReply<LabelsAnswer>>) -> peer::LabelsReply {
    let message = |reply: ShardReply<LabelsAnswer>| {
        let shard = peer::ShardLabels { shard: u32::from(reply.shard.0), ..peer::ShardLabels::default() };
        match reply.result {
            Ok(LabelsAnswer { items, truncated }) => labels_message(shard, items, truncated),
            Err(refusal) => peer::ShardLabels { refusal: Some(refusal_message(refusal)), ..shard },
        }
    };
    peer::LabelsReply { shards: replies.into_iter().map(message).collect() }
}

fn labels_message(shard: peer::ShardLabels, items: LabelItems, truncated: bool) -> peer::ShardLabels {
    let encoded = |labels: &Labels| labels.as_encoded().to_owned();
    let shard = peer::ShardLabels { truncated, ..shard };
    match items {
        LabelItems::Texts(texts) => peer::ShardLabels { texts, ..shard },
        LabelItems::Series(series) => {
            peer::ShardLabels { texts: series.iter().map(encoded).collect(), ..shard }
        }
        LabelItems::Exemplars(series) => {
            let own = |(at, one): (u32, &SeriesExemplars)| {
                let message = |exemplar| convert::exemplar_to_message(at, exemplar);
                one.exemplars.iter().map(message).collect::<Vec<_>>()
            };
            let exemplars = (0..).zip(&series).flat_map(own).collect();
            let texts = series.iter().map(|one| encoded(&one.labels)).collect();
            peer::ShardLabels { texts, exemplars, ..shard }
        }
        LabelItems::Metadata(metadata) => {
            let metadata = metadata.iter().map(convert::metadata_to_message).collect();
            peer::ShardLabels { metadata, ..shard }
        }
    }
}

pub(crate) fn labels_reply(
    request: &LabelsRequest,
    message: peer::LabelsReply,
) -> Result<Vec<ShardReply<LabelsAnswer>>, PeerError> {
    let reply = |mut labels: peer::ShardLabels| {
        let shard = convert::shard_from_number(labels.shard).map_err(|e| broken(&e))?;
        let truncated = labels.truncated;
        let result = match labels.refusal.take() {
            Some(refusal) => Err(refusal_from(refusal)?),
            None if labels.texts.len() > request.limit => return Err(misfit("more items than asked for")),
            None => {
                let items = label_items(&request.question, labels).map_err(|e| broken(&e))?;
                Ok(LabelsAnswer { items, truncated })
            }
        };
        Ok(ShardReply { shard, result })
    };
    message.shards.into_iter().map(reply).collect()
}

fn label_items(question: &LabelsQuestion, message: peer::ShardLabels) -> Result<LabelItems, WireError> {
    let sets = || message.texts.iter().map(|text| convert::labels_from_text(text));
    Ok(match question {
        LabelsQuestion::Names | LabelsQuestion::ValuesOf(_) => LabelItems::Texts(message.texts),
        LabelsQuestion::Series => LabelItems::Series(sets().collect::<Result<_, _>>()?),
        LabelsQuestion::Exemplars => {
            let empty = |labels| Ok(SeriesExemplars { labels: labels?, exemplars: Vec::new() });
            let mut series = sets().map(empty).collect::<Result<Vec<_>, WireError>>()?;
            for exemplar in &message.exemplars {
                let own = series.get_mut(exemplar.series as usize);
                let own = own.ok_or_else(|| WireError::Invalid("an exemplar of no series".into()))?;
                own.exemplars.push(convert::exemplar_from_message(exemplar)?);
            }
            LabelItems::Exemplars(series)
        }
        LabelsQuestion::Metadata | LabelsQuestion::MetadataOf(_) => {
            LabelItems::Metadata(message.metadata.iter().map(convert::metadata_from_message).collect())
        }
    })
}

pub(crate) fn count_request(cluster: Bytes, request: &CardinalityRequest) -> peer::CountRequest {
    peer::CountRequest {
        cluster,
        tenant: request.tenant.as_str().to_owned(),
        shards: shards_message(&request.shards),
        top: u32::try_from(request.top).unwrap_or(u32::MAX),
    }
}

pub(crate) fn count_request_from(message: &peer::CountRequest) -> Result<CardinalityRequest, WireError> {
    Ok(CardinalityRequest {
        tenant: convert::tenant_from_text(&message.tenant)?,
        shards: shards_from(&message.shards)?,
        top: message.top as usize,
    })
}

pub(crate) fn count_reply_message(reply: CardinalityReply) -> peer::CountReply {
    let refused = |(shard, text): (ShardId, String)| peer::ShardRefusal { shard: u32::from(shard.0), text };
    let refused = reply.refused.into_iter().map(refused).collect();
    peer::CountReply { refused, ..convert::cardinality_to_message(reply.counted) }
}

pub(crate) fn count_reply(message: peer::CountReply) -> Result<CardinalityReply, PeerError> {
    let refused =
        |refusal: &peer::ShardRefusal| Ok((convert::shard_from_number(refusal.shard)?, refusal.text.clone()));
    let refused = message.refused.iter().map(refused).collect::<Result<_, _>>().map_err(|e| broken(&e))?;
    Ok(CardinalityReply { counted: convert::cardinality_from_message(message), refused })
}

#[cfg(test)]
mod tests {
    use super::*;
    use saturn_model::{Exemplar, Selection, TenantId, TimestampMs};

    fn series(name: &str) -> SeriesColumns {
        let labels = Labels::from_pairs([("__name__", name)]).expect("valid");
        SeriesColumns::floats(labels, vec![1, 2, 3], vec![1.0, 2.0, 3.0])
    }

    fn request(shards: u16) -> SelectRequest {
        let tenant = TenantId::new("demo").expect("valid");
        let (start, end) = (TimestampMs(0), TimestampMs(9));
        SelectRequest {
            selection: Selection { tenant, matchers: Vec::new(), start, end },
            shards: (0..shards).map(|shard| (ShardId(shard), Epoch(1))).collect(),
            series_max: 10,
        }
    }

    #[test]
    fn frames_are_put_together_and_a_late_refusal_counts() {
        let mut collector = SelectCollector::new(&request(2));
        let (mut full, mut held, mut replies) = (0, Vec::new(), Vec::new());
        for (shard, read) in [(0, Ok(())), (1, Err(ShardRefusal::Failed("damaged".into())))] {
            let mut writer = FrameWriter::new(ShardId(shard), 30);
            let mut hold = |shard: ShardId, samples| {
                held.push((shard.0, samples));
                Ok(())
            };
            for name in ["a", "b", "c"] {
                if let Some(frame) = writer.push(&series(name)) {
                    full += 1;
                    assert!(collector.add(frame, &mut hold).expect("own frame").is_none());
                }
            }
            replies.extend(collector.add(writer.finish(read), &mut hold).expect("own frame"));
        }
        assert!(full >= 2, "{full} frames were full");
        assert!(held.contains(&(0, 9)) && held.contains(&(1, 3)), "{held:?}");
        collector.finish().expect("all shards are done");
        let names = |reply: &ShardReply<Vec<SeriesColumns>>| -> Option<Vec<String>> {
            let series = reply.result.as_ref().ok()?;
            Some(series.iter().map(|series| series.labels.metric_name().to_owned()).collect())
        };
        assert_eq!(names(&replies[0]), Some(vec!["a".into(), "b".into(), "c".into()]));
        assert!(matches!(&replies[1].result, Err(ShardRefusal::Failed(text)) if text == "damaged"));
    }

    #[test]
    fn exemplars_travel_with_their_series() {
        let SelectRequest { selection, shards, .. } = request(2);
        let question = LabelsQuestion::Exemplars;
        let request = LabelsRequest { selection, question, shards, limit: 9 };
        let exemplar = |time| Exemplar {
            timestamp: TimestampMs(time),
            value: -0.0,
            labels: Labels::from_pairs([("id", "x")]).expect("valid"),
        };
        let of = |name: &str, times: &[i64]| SeriesExemplars {
            labels: series(name).labels,
            exemplars: times.iter().map(|time| exemplar(*time)).collect(),
        };
        let items = LabelItems::Exemplars(vec![of("a", &[1, 2]), of("b", &[3])]);
        let answer = LabelsAnswer { items, truncated: false };
        let reply = ShardReply { shard: ShardId(1), result: Ok(answer.clone()) };
        let mut message = labels_reply_message(vec![reply]);
        let back = labels_reply(&request, message.clone()).expect("own reply").remove(0);
        assert_eq!((back.shard, back.result), (ShardId(1), Ok(answer)));
        message.shards[0].texts.pop();
        assert!(labels_reply(&request, message).is_err());
    }

    #[test]
    fn an_answer_without_its_last_frame_is_none() {
        let mut collector = SelectCollector::new(&request(1));
        let mut writer = FrameWriter::new(ShardId(0), 1);
        let frame = writer.push(&series("a")).expect("full");
        let over = collector.add(frame.clone(), |_, _| Err(PeerError::OverBudget { samples_max: 1 }));
        assert_eq!(over.expect_err("held"), PeerError::OverBudget { samples_max: 1 });
        collector.add(frame, |_, _| Ok(())).expect("own frame");
        assert!(collector.finish().is_err());
    }
}
