//! The side that gives: a shard as a stream of frames, and its digests.
//!
//! Whoever takes a shard from here must know that writes of older epochs are over: the shard is given out only while
//! this node's stored record has exactly the epoch that was asked for and names this node in a slot. That is checked
//! before the snapshot is taken, which then waits for the appends under way, and again before each frame.

use std::sync::Arc;

use saturn_model::{ShardId, TimestampMs};
use saturn_proto::{WireError, convert, peer};
use saturn_replication::ShardRefusal;
use saturn_ring::Epoch;
use saturn_storage::{EXPORT_BYTES_MAX, EXPORT_CHUNK_BYTES_MAX, ExportCursor, ExportScope, StorageError};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{WindowDigests, Windows};
use crate::replica::Replica;
use crate::{steps, wire};

/// Shards that a node gives out, or computes digests of, at the same time.
const STREAMS_MAX: usize = 8;
/// Frames that wait for the network before reading waits, too.
const FRAMES_WAITING_MAX: usize = 2;

/// The answer to a `StreamShard` call.
pub(crate) type FrameStream = ReceiverStream<Result<peer::ShardFrame, Status>>;

/// The streams of this node.
#[derive(Clone, Debug)]
pub(crate) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS_MAX)))
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct StreamRequest {
    shard: ShardId,
    epoch: Epoch,
    cursor: Option<ExportCursor>,
    chunk_bytes: usize,
    /// Whether it must be all that was ever acknowledged here.
    whole: bool,
    /// First milliseconds of the windows that are wanted; none: all.
    starts: Vec<TimestampMs>,
}

/// Checks a received request for a shard.
pub(crate) fn stream_request_from(message: &peer::StreamShardRequest) -> Result<StreamRequest, WireError> {
    let (shard, epoch) = shard_from(message.shard.as_ref())?;
    let cursor = match &message.cursor[..] {
        [] => None,
        bytes => {
            let cursor = ExportCursor::from_bytes(bytes);
            Some(cursor.ok_or_else(|| WireError::Invalid("the cursor is none".into()))?)
        }
    };
    let chunk_bytes = usize::try_from(message.chunk_bytes).unwrap_or(usize::MAX);
    let chunk_bytes = chunk_bytes.clamp(1, EXPORT_CHUNK_BYTES_MAX);
    let mut starts: Vec<TimestampMs> = message.start_ms.iter().map(|start| TimestampMs(*start)).collect();
    starts.sort_unstable();
    Ok(StreamRequest { shard, epoch, cursor, chunk_bytes, whole: message.whole, starts })
}

/// Checks a received request for digests: of which shard, and of which windows.
pub(crate) fn digest_request_from(
    message: &peer::ShardDigestRequest,
) -> Result<((ShardId, Epoch), Windows), WireError> {
    let starts = message.start_ms.iter().map(|start| TimestampMs(*start)).collect();
    let windows = Windows { starts, until: TimestampMs(message.until_ms), settled: message.settled };
    Ok((shard_from(message.shard.as_ref())?, windows))
}

/// The windows of which this node may have samples of a shard, for another node that compares.
pub(crate) fn list_windows(
    replica: &Replica,
    message: &peer::ListWindowsRequest,
) -> Result<peer::ListWindowsReply, WireError> {
    let (shard, epoch) = shard_from(message.shard.as_ref())?;
    Ok(match replica.check_source(shard, epoch) {
        Ok(()) => {
            let windows = replica.engine.windows_on_disk(shard);
            peer::ListWindowsReply { start_ms: windows.iter().map(|start| start.0).collect(), refusal: None }
        }
        Err(refusal) => {
            let refusal = Some(wire::refusal_message(refusal));
            peer::ListWindowsReply { start_ms: Vec::new(), refusal }
        }
    })
}

fn shard_from(message: Option<&peer::ShardEpoch>) -> Result<(ShardId, Epoch), WireError> {
    let message = message.ok_or_else(|| WireError::Invalid("a request without a shard".into()))?;
    Ok((convert::shard_from_number(message.shard)?, Epoch(message.epoch)))
}

impl Streams {
    /// Starts to give a shard out, no faster than the frames are taken.
    pub(crate) fn start(&self, replica: Replica, request: StreamRequest) -> Result<FrameStream, Status> {
        let permit = self.permit()?;
        let (frames, answer) = mpsc::channel(FRAMES_WAITING_MAX);
        tokio::task::spawn_blocking(move || run(&replica, &request, &frames, permit));
        Ok(ReceiverStream::new(answer))
    }

    /// Computes digests for another node that compares.
    pub(crate) async fn digest(
        &self,
        replica: Replica,
        shard: (ShardId, Epoch),
        windows: Windows,
    ) -> Result<peer::ShardDigestReply, Status> {
        let permit = self.permit()?;
        Ok(digest_reply(replica, shard, windows, permit).await)
    }

    fn permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let busy = || format!("this node gives out or compares {STREAMS_MAX} shards already: try later");
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| Status::resource_exhausted(busy()))
    }
}

/// Why a stream ended early.
enum Stopped {
    Refused(ShardRefusal),
    /// Nobody takes the frames any more.
    Gone,
}

impl From<ShardRefusal> for Stopped {
    fn from(refusal: ShardRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StorageError> for Stopped {
    fn from(error: StorageError) -> Self {
        Self::Refused(ShardRefusal::Failed(error.to_string()))
    }
}

fn run(
    replica: &Replica,
    request: &StreamRequest,
    frames: &mpsc::Sender<Result<peer::ShardFrame, Status>>,
    _permit: OwnedSemaphorePermit,
) {
    let send = |part| {
        let frame = peer::ShardFrame { part: Some(part) };
        frames.blocking_send(Ok(frame)).map_err(|_| Stopped::Gone)
    };
    let refusal = match give_out(replica, request, send) {
        Ok(()) | Err(Stopped::Gone) => return,
        Err(Stopped::Refused(refusal)) => refusal,
    };
    tracing::info!(shard = request.shard.0, epoch = request.epoch.0, %refusal, "shard not given out");
    let refusal = peer::shard_frame::Part::Refusal(wire::refusal_message(refusal));
    let _ = send(refusal);
}

fn give_out(
    replica: &Replica,
    request: &StreamRequest,
    send: impl Fn(peer::shard_frame::Part) -> Result<(), Stopped>,
) -> Result<(), Stopped> {
    use peer::shard_frame::Part;
    let StreamRequest { shard, epoch, cursor, chunk_bytes, .. } = *request;
    replica.check_source(shard, epoch)?;
    if request.whole {
        replica.check_whole(shard)?;
    }
    // Else a write that was let in under an older record could be acknowledged and yet not be in the snapshot.
    replica.settle();
    let snapshot = replica.engine.snapshot(shard);
    let mut windows = snapshot.windows();
    windows.retain(|window| request.starts.is_empty() || request.starts.binary_search(window).is_ok());
    send(Part::Windows(peer::ShardWindows { start_ms: windows.iter().map(|window| window.0).collect() }))?;
    let mut sent = peer::ShardEnd::default();
    let export = |window: TimestampMs| snapshot.export(ExportScope::Window(window), cursor, chunk_bytes);
    let exports = windows.into_iter().map(export).collect::<Result<Vec<_>, _>>()?;
    for chunk in exports.into_iter().flatten() {
        replica.check_source(shard, epoch)?;
        let chunk = chunk?;
        let bytes = bounded(chunk.to_bytes())?;
        sent.series += chunk.series.len() as u64;
        sent.samples += super::samples_of(&chunk);
        sent.bytes += bytes.len() as u64;
        send(Part::Samples(bytes.into()))?;
        steps::reach("source: frame sent");
    }
    drop(snapshot);
    for notes in replica.engine.export_notes(shard, chunk_bytes) {
        replica.check_source(shard, epoch)?;
        let bytes = bounded(notes.to_bytes())?;
        sent.bytes += bytes.len() as u64;
        send(Part::Notes(bytes.into()))?;
    }
    // What was sent counts only if the record was the same all the time.
    replica.check_source(shard, epoch)?;
    send(Part::End(sent))
}

fn bounded(bytes: Vec<u8>) -> Result<Vec<u8>, Stopped> {
    if bytes.len() <= EXPORT_BYTES_MAX {
        return Ok(bytes);
    }
    let text = format!("a frame of {} bytes is over the limit of {EXPORT_BYTES_MAX}", bytes.len());
    Err(Stopped::Refused(ShardRefusal::Failed(text)))
}

/// The digests of a shard that this node holds. Blocks.
pub(super) fn digests(
    replica: &Replica,
    shard: ShardId,
    windows: &Windows,
) -> Result<WindowDigests, StorageError> {
    let engine = &replica.engine;
    if windows.settled {
        replica.settle();
    }
    let all =
        if windows.starts.is_empty() { engine.snapshot(shard).windows() } else { windows.starts.clone() };
    let mut digests = WindowDigests::new();
    for window in all {
        let digest = engine.digest_until(shard, window, windows.until)?;
        // A window whose samples were all deleted is as one that has none.
        if digest != [0; 256] {
            let hash = digest.iter().fold(Sha256::new(), |hash, sum| hash.chain_update(sum.to_le_bytes()));
            digests.insert(window, hash.finalize().into());
        }
    }
    if windows.settled {
        replica.settle();
    }
    Ok(digests)
}

/// Blocking work: runs off the async threads, and keeps its permit until it ends, whoever still waits.
async fn digest_reply(
    replica: Replica,
    (shard, epoch): (ShardId, Epoch),
    windows: Windows,
    permit: OwnedSemaphorePermit,
) -> peer::ShardDigestReply {
    let compute = move || {
        let _permit = permit;
        replica.check_source(shard, epoch)?;
        let lacking = replica.check_whole(shard).is_err();
        let digests = digests(&replica, shard, &windows).map_err(|e| ShardRefusal::Failed(e.to_string()))?;
        Ok((digests, lacking))
    };
    let computed = tokio::task::spawn_blocking(compute).await;
    match computed.unwrap_or_else(|e| Err(ShardRefusal::Failed(format!("the digest task failed: {e}")))) {
        Ok((digests, lacking)) => {
            let message = |(start, hash): (TimestampMs, [u8; 32])| peer::WindowDigest {
                start_ms: start.0,
                sha256: bytes::Bytes::copy_from_slice(&hash),
            };
            let windows = digests.into_iter().map(message).collect();
            peer::ShardDigestReply { windows, lacking, refusal: None }
        }
        Err(refusal) => {
            let refusal = Some(wire::refusal_message(refusal));
            peer::ShardDigestReply { refusal, ..peer::ShardDigestReply::default() }
        }
    }
}
