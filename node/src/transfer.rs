//! Whole shards between nodes: the side that takes. The side that gives is `transfer/source.rs`.
//!
//! [`Transfers::pull_shard`] reads a stream of frames and hands them to the storage engine's importer, in a thread of
//! its own, many frames at a time: each batch becomes one segment per window. A connection that breaks is opened anew
//! behind the last frame that came. After a restart of this process a pull goes on by comparing: windows that are the same
//! here and there are not fetched once more. Taking the same samples twice changes nothing.
//!
//! This module does not decide who takes what from whom: it refuses what the source's fence refuses, and says why.

mod pace;
pub(crate) mod source;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use saturn_model::{ShardId, TimestampMs};
use saturn_proto::peer;
use saturn_proto::peer::shard_frame::Part;
use saturn_replication::{PeerError, ShardRefusal};
use saturn_ring::{Epoch, NodeId, ShardRecord};
use saturn_storage::{
    EXPORT_BYTES_MAX, EXPORT_CHUNK_BYTES_MAX, Engine, ExportChunk, ExportCursor, ExportedNotes, StorageError,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

use crate::peers::NodePeers;
use crate::{steps, wire};
use pace::Pace;

/// Largest message of a stream: a frame and what is around it; or the list of a shard's windows.
pub(crate) const FRAME_BYTES_MAX: usize = 2 * EXPORT_BYTES_MAX;
/// Samples that are imported at once, by their weight: 32 MiB in columns.
const IMPORT_SAMPLES: usize = 2 << 20;
/// Frames that wait for the importer before the stream waits, too.
const FRAMES_WAITING_MAX: usize = 4;
/// Attempts in a row that bring nothing, after which a pull gives up.
const ATTEMPTS_MAX: u32 = 8;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long the source may take for one frame: its snapshot waits for a merge's last steps, or a flush.
const FRAME_LIMIT: Duration = Duration::from_secs(60);

/// By first millisecond of a window: the SHA-256 of the digest of its samples. Windows without samples are left out.
pub(crate) type WindowDigests = BTreeMap<TimestampMs, [u8; 32]>;

/// What another node says that it holds of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteDigests {
    pub(crate) windows: WindowDigests,
    /// Whether it may lack what it had acknowledged.
    pub(crate) is_lacking: bool,
}

/// Takes shards from other nodes.
pub(crate) struct Transfers {
    peers: Arc<NodePeers>,
    pace: Pace,
    received_bytes: Counter,
    received_samples: Counter,
    retries: Counter,
}

/// Of which samples digests are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// First milliseconds of the windows; none: all that have samples.
    pub(crate) starts: Vec<TimestampMs>,
    /// Samples from here on do not count.
    pub(crate) until: TimestampMs,
    /// Whether the appends under way are waited for, before and after: what counts is durable then, and nothing comes
    /// any more that was let in under an older record. Costs those who append a moment.
    pub(crate) settled: bool,
}

impl Windows {
    /// All samples.
    pub(crate) fn all() -> Self {
        Self::until(TimestampMs(i64::MAX))
    }

    /// All samples before a time.
    pub(crate) fn until(until: TimestampMs) -> Self {
        Self { starts: Vec::new(), until, settled: false }
    }
}

/// How far a pull has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes of frames received.
    pub(crate) bytes: u64,
    /// Series received, each once for every frame with samples of it.
    pub(crate) series: u64,
    /// Samples received.
    pub(crate) samples: u64,
    /// Windows of the source whose samples have all come.
    pub(crate) windows_done: usize,
    /// Windows of the source; 0 before it has answered.
    pub(crate) windows_total: usize,
}

/// What a pull brought: all that the source had is durable here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pulled {
    /// As at the end.
    pub(crate) progress: Progress,
    /// Series that this node did not have.
    pub(crate) new_series: u64,
}

/// Why a shard was not taken, or not whole. What was taken stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The shard's record has moved on: learn the newer one.
    #[error("the source holds a newer record of the shard, epoch {}", .0.epoch)]
    Stale(ShardRecord),
    /// The source must learn the shard's record first.
    #[error("the source holds an older record of the shard")]
    Behind,
    /// Begin anew with the record that this node holds now.
    #[error("this node holds another record of the shard by now")]
    Changed,
    /// Take it from another node.
    #[error("the source fills no slot of the shard")]
    NotOwner,
    /// Take it from another node.
    #[error("the source cannot give the shard out: {0}")]
    Source(String),
    /// Try again later, or take it from another node.
    #[error("gave up after {attempts} attempts in a row that brought nothing: {last}")]
    Broken {
        /// How many.
        attempts: u32,
        /// Why the last one failed.
        last: String,
    },
    /// This node's storage does not take it.
    #[error("cannot store what the source sent")]
    Storage(#[from] StorageError),
    /// Somebody did not want it any more.
    #[error("cancelled")]
    Cancelled,
}

/// What the importer is told.
enum Work {
    Samples(ExportChunk),
    Notes(ExportedNotes),
    /// All has come.
    Finish,
}

/// Why a stream ended early.
#[derive(Debug)]
enum Ended {
    /// Another one may do better.
    Broken(String),
    /// No other one would.
    Final(TransferError),
    /// The importer has ended, and will say why.
    Importer,
}

impl From<&Status> for Ended {
    fn from(status: &Status) -> Self {
        match status.code() {
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::Unimplemented => Self::Final(TransferError::Source(status.message().to_owned())),
            _ => Self::Broken(wire::peer_error(status).to_string()),
        }
    }
}

impl From<PeerError> for Ended {
    fn from(error: PeerError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<ShardRefusal> for TransferError {
    fn from(refusal: ShardRefusal) -> Self {
        match refusal {
            ShardRefusal::Stale(record) => Self::Stale(record),
            ShardRefusal::Behind => Self::Behind,
            ShardRefusal::NotOwner => Self::NotOwner,
            ShardRefusal::Failed(text) | ShardRefusal::TooManySeries(text) => Self::Source(text),
        }
    }
}

impl Transfers {
    /// `bytes_per_second` is for all pulls together; `None`: no limit.
    pub(crate) fn new(
        peers: Arc<NodePeers>,
        bytes_per_second: Option<NonZeroU64>,
        registry: &mut Registry,
    ) -> Self {
        let transfers = Self {
            peers,
            pace: Pace::new(bytes_per_second),
            received_bytes: Counter::default(),
            received_samples: Counter::default(),
            retries: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("saturn_node_transfer");
        let mut counter =
            |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("received_bytes", "Bytes of shards taken from other nodes", &transfers.received_bytes);
        counter("received_samples", "Samples of shards taken from other nodes", &transfers.received_samples);
        counter("retries", "Streams of shards that broke and were opened anew", &transfers.retries);
        transfers
    }

    /// Takes all that `source` has of the shard, which must hold exactly this epoch of the record and fill a slot; this
    /// node must hold it as well, and have done the same deletions until the end.
    /// When this returns without an error, that is durable and visible here. After any return nothing more is stored.
    ///
    /// If this node has something of the shard already, as from an attempt that a crash has ended, only the windows that
    /// differ are fetched.
    ///
    /// # Errors
    /// What to do about each says [`TransferError`].
    pub(crate) async fn pull_shard(
        &self,
        (shard, epoch): (ShardId, Epoch),
        source: &NodeId,
        progress: &watch::Sender<Progress>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Pulled, TransferError> {
        let windows = tokio::select! {
            windows = self.missing_windows((shard, epoch), source) => windows,
            () = cancelled(cancel.clone()) => return Err(TransferError::Cancelled),
        };
        // If they cannot be compared, the stream will say why.
        let extent = Extent { windows: windows.unwrap_or_default(), whole: true };
        self.pull((shard, epoch), source, extent, progress, cancel).await
    }

    /// The windows to be fetched from a source; none: all.
    async fn missing_windows(
        &self,
        (shard, epoch): (ShardId, Epoch),
        source: &NodeId,
    ) -> Result<Vec<TimestampMs>, TransferError> {
        if !self.peers.replica.engine.holds_shard(shard) {
            return Ok(Vec::new());
        }
        let windows = Windows { settled: true, ..Windows::all() };
        let theirs = self.remote_digests((shard, epoch), source, &windows).await?.windows;
        let mine = self.local_digests(shard, &windows).await?;
        let mut missing = differing_windows(&mine, &theirs);
        if missing.is_empty() {
            // Exemplars and metadata are not compared; they come with any window.
            missing.extend(theirs.into_keys().next_back());
        }
        Ok(missing)
    }

    /// As [`Transfers::pull_shard`], but of these windows only. A source gives what it has, even if it may lack what it
    /// had acknowledged.
    ///
    /// # Errors
    /// Those of [`Transfers::pull_shard`].
    pub(crate) async fn pull_windows(
        &self,
        (shard, epoch): (ShardId, Epoch),
        source: &NodeId,
        windows: Vec<TimestampMs>,
        progress: &watch::Sender<Progress>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Pulled, TransferError> {
        self.pull((shard, epoch), source, Extent { windows, whole: false }, progress, cancel).await
    }

    async fn pull(
        &self,
        (shard, epoch): (ShardId, Epoch),
        source: &NodeId,
        extent: Extent,
        progress: &watch::Sender<Progress>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Pulled, TransferError> {
        let (work, inbox) = mpsc::channel(FRAMES_WAITING_MAX);
        let engine = self.peers.replica.engine.clone();
        let placement = self.peers.replica.placement.load();
        let record = placement.record(shard).filter(|record| record.epoch == epoch);
        let deleted_through = record.ok_or(TransferError::Changed)?.deleted_through().0;
        let import = tokio::task::spawn_blocking(move || import(&engine, (shard, deleted_through), inbox));
        let transfers = self;
        let mut pull = Pull { transfers, shard, epoch, source, progress, work, cursor: None, extent };
        let received = tokio::select! {
            received = pull.receive_all() => received,
            () = cancelled(cancel) => Err(Ended::Final(TransferError::Cancelled)),
        };
        // The importer ends when nothing can come any more.
        drop(pull);
        let imported = import.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        match received {
            Err(Ended::Final(error)) => Err(error),
            // It is not told that this is all, so it ends with an error of its own.
            Err(Ended::Importer | Ended::Broken(_)) | Ok(()) => {
                Ok(Pulled { progress: *progress.borrow(), new_series: imported? })
            }
        }
    }

    /// The digests of a shard on another node, which must hold exactly this epoch; of all windows, or of some.
    ///
    /// # Errors
    /// As [`Transfers::pull_shard`]; one attempt is made.
    pub(crate) async fn remote_digests(
        &self,
        (shard, epoch): (ShardId, Epoch),
        source: &NodeId,
        windows: &Windows,
    ) -> Result<RemoteDigests, TransferError> {
        let broken = |last: String| TransferError::Broken { attempts: 1, last };
        let mut client = self.peers.transfer_client(source).map_err(|e| broken(e.to_string()))?;
        let request = peer::ShardDigestRequest {
            cluster: self.peers.cluster_bytes(),
            shard: Some(shard_message(shard, epoch)),
            start_ms: windows.starts.iter().map(|window| window.0).collect(),
            until_ms: windows.until.0,
            settled: windows.settled,
        };
        let reply = client.shard_digest(request).await.map_err(|status| match Ended::from(&status) {
            Ended::Final(error) => error,
            Ended::Broken(_) | Ended::Importer => broken(wire::peer_error(&status).to_string()),
        })?;
        let reply = reply.into_inner();
        if let Some(refusal) = reply.refusal {
            return Err(wire::refusal_from(refusal).map_err(|e| broken(e.to_string()))?.into());
        }
        let digest = |window: peer::WindowDigest| {
            let hash: [u8; 32] = window.sha256[..].try_into().ok()?;
            Some((TimestampMs(window.start_ms), hash))
        };
        let windows: Option<WindowDigests> = reply.windows.into_iter().map(digest).collect();
        let windows = windows
            .ok_or_else(|| broken("a digest of the answer has another length than 32 bytes".to_owned()))?;
        Ok(RemoteDigests { windows, is_lacking: reply.lacking })
    }

    /// The windows of which another node, which must hold exactly this epoch, may have samples on disk.
    ///
    /// # Errors
    /// As [`Transfers::pull_shard`]; one attempt is made.
    pub(crate) async fn remote_windows(
        &self,
        (shard, epoch): (ShardId, Epoch),
        source: &NodeId,
    ) -> Result<Vec<TimestampMs>, TransferError> {
        let broken = |last: String| TransferError::Broken { attempts: 1, last };
        let mut client = self.peers.transfer_client(source).map_err(|e| broken(e.to_string()))?;
        let request = peer::ListWindowsRequest {
            cluster: self.peers.cluster_bytes(),
            shard: Some(shard_message(shard, epoch)),
        };
        let reply = client.list_windows(request).await;
        let reply = reply.map_err(|status| broken(wire::peer_error(&status).to_string()))?.into_inner();
        match reply.refusal {
            Some(refusal) => Err(wire::refusal_from(refusal).map_err(|e| broken(e.to_string()))?.into()),
            None => Ok(reply.start_ms.into_iter().map(TimestampMs).collect()),
        }
    }

    /// The windows of which this node may have samples on disk.
    pub(crate) fn local_windows(&self, shard: ShardId) -> Vec<TimestampMs> {
        self.peers.replica.engine.windows_on_disk(shard)
    }

    /// The digests of a shard on this node; of all windows, or of some. Off the async threads.
    ///
    /// # Errors
    /// `Storage`: `Corrupt` if stored data is damaged, `Invalid` if no window begins at one of the times.
    pub(crate) async fn local_digests(
        &self,
        shard: ShardId,
        windows: &Windows,
    ) -> Result<WindowDigests, TransferError> {
        let (replica, windows) = (self.peers.replica.clone(), windows.clone());
        let digests = tokio::task::spawn_blocking(move || source::digests(&replica, shard, &windows)).await;
        Ok(digests.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
    }
}

/// The windows in which two replicas differ.
pub(crate) fn differing_windows(a: &WindowDigests, b: &WindowDigests) -> Vec<TimestampMs> {
    let mut windows: Vec<TimestampMs> = a.keys().chain(b.keys()).copied().collect();
    windows.sort_unstable();
    windows.dedup();
    windows.retain(|window| a.get(window) != b.get(window));
    windows
}

/// Returns when that is wanted; never when nobody is left who could want it.
async fn cancelled(mut cancel: watch::Receiver<bool>) {
    if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
        std::future::pending().await
    }
}

/// How much is pulled.
#[derive(Debug)]
struct Extent {
    /// First milliseconds of the windows that are wanted; none: all.
    windows: Vec<TimestampMs>,
    /// Whether the source must have all that it ever acknowledged.
    whole: bool,
}

/// One pull.
struct Pull<'a> {
    transfers: &'a Transfers,
    shard: ShardId,
    epoch: Epoch,
    source: &'a NodeId,
    progress: &'a watch::Sender<Progress>,
    work: mpsc::Sender<Work>,
    /// Behind the last frame that came.
    cursor: Option<ExportCursor>,
    extent: Extent,
}

impl Pull<'_> {
    /// Reads stream after stream until all has come.
    async fn receive_all(&mut self) -> Result<(), Ended> {
        let (mut attempts, mut received) = (0, 0);
        loop {
            let last = match self.receive().await {
                Err(Ended::Broken(text)) => text,
                done => return done,
            };
            let bytes = self.progress.borrow().bytes;
            attempts = if bytes > received { 1 } else { attempts + 1 };
            received = bytes;
            if attempts >= ATTEMPTS_MAX {
                return Err(Ended::Final(TransferError::Broken { attempts, last }));
            }
            self.transfers.retries.inc();
            tracing::info!(
                shard = self.shard.0, source = %self.source, attempts, reason = last,
                "the stream of a shard broke; opening it anew"
            );
            tokio::time::sleep((PAUSE_MIN * 2_u32.pow(attempts - 1)).min(PAUSE_MAX)).await;
        }
    }

    /// Reads one stream, from the cursor on.
    async fn receive(&mut self) -> Result<(), Ended> {
        let mut client = self.transfers.peers.transfer_client(self.source)?;
        let request = peer::StreamShardRequest {
            cluster: self.transfers.peers.cluster_bytes(),
            shard: Some(shard_message(self.shard, self.epoch)),
            cursor: self
                .cursor
                .map_or_else(bytes::Bytes::new, |cursor| bytes::Bytes::copy_from_slice(&cursor.to_bytes())),
            chunk_bytes: u32::try_from(EXPORT_CHUNK_BYTES_MAX).unwrap_or(u32::MAX),
            whole: self.extent.whole,
            start_ms: self.extent.windows.iter().map(|window| window.0).collect(),
        };
        let silent = |_| Ended::Broken(format!("nothing came for {FRAME_LIMIT:?}"));
        let stream = tokio::time::timeout(FRAME_LIMIT, client.stream_shard(request)).await;
        let frames = stream.map_err(silent)?.map_err(|status| Ended::from(&status))?.into_inner();
        self.take_frames(frames).await
    }

    async fn take_frames(
        &mut self,
        mut frames: impl Stream<Item = Result<peer::ShardFrame, Status>> + Unpin,
    ) -> Result<(), Ended> {
        let silent = |_| Ended::Broken(format!("nothing came for {FRAME_LIMIT:?}"));
        let broken = |text: &str| Ended::Broken(text.to_owned());
        let (mut windows, mut got) = (Vec::new(), peer::ShardEnd::default());
        loop {
            let frame = tokio::time::timeout(FRAME_LIMIT, frames.next()).await.map_err(silent)?;
            let frame = frame.ok_or_else(|| broken("the stream ended before its last frame"))?;
            match frame
                .map_err(|status| Ended::from(&status))?
                .part
                .ok_or_else(|| broken("a frame is empty"))?
            {
                Part::Windows(list) => {
                    windows = list.start_ms;
                    self.progress.send_modify(|progress| progress.windows_total = windows.len());
                }
                Part::Samples(bytes) => self.take_samples(bytes, &windows, &mut got).await?,
                Part::Notes(bytes) => {
                    got.bytes += bytes.len() as u64;
                    let size = bytes.len();
                    let notes = decode(move || ExportedNotes::from_bytes(&bytes)).await?;
                    self.hand_over(Work::Notes(notes), size).await?;
                    self.transfers.pace.took(size).await;
                }
                Part::End(sent) if sent == got => {
                    self.progress.send_modify(|progress| progress.windows_done = progress.windows_total);
                    return self.work.send(Work::Finish).await.map_err(|_| Ended::Importer);
                }
                Part::End(sent) => {
                    return Err(Ended::Broken(format!(
                        "the source says that it sent {sent:?}, but {got:?} came"
                    )));
                }
                Part::Refusal(refusal) => {
                    return Err(Ended::Final(wire::refusal_from(refusal)?.into()));
                }
            }
        }
    }

    async fn take_samples(
        &mut self,
        bytes: bytes::Bytes,
        windows: &[i64],
        got: &mut peer::ShardEnd,
    ) -> Result<(), Ended> {
        let size = bytes.len();
        let chunk = decode(move || ExportChunk::from_bytes(&bytes)).await?;
        if chunk.shard != self.shard || self.cursor.is_some_and(|cursor| chunk.next <= cursor) {
            return Err(Ended::Broken("a frame is of another place than the one asked for".to_owned()));
        }
        let (next, start) = (chunk.next, chunk.window_start.0);
        let (series, samples) = (chunk.series.len() as u64, samples_of(&chunk));
        got.series += series;
        got.samples += samples;
        got.bytes += size as u64;
        self.hand_over(Work::Samples(chunk), size).await?;
        steps::reach("fetch: frame received");
        self.cursor = Some(next);
        self.transfers.received_samples.inc_by(samples);
        self.progress.send_modify(|progress| {
            progress.series += series;
            progress.samples += samples;
            progress.windows_done = windows.partition_point(|window| *window < start);
        });
        self.transfers.pace.took(size).await;
        Ok(())
    }

    /// Gives the importer its work.
    async fn hand_over(&self, work: Work, size: usize) -> Result<(), Ended> {
        self.work.send(work).await.map_err(|_| Ended::Importer)?;
        self.transfers.received_bytes.inc_by(size as u64);
        self.progress.send_modify(|progress| progress.bytes += size as u64);
        Ok(())
    }
}

/// Unpacks a frame off the async threads.
async fn decode<T: Send + 'static>(
    decode: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Ended> {
    let decoded = tokio::task::spawn_blocking(decode).await;
    let decoded = decoded.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    decoded.map_err(|error| Ended::Broken(error.to_string()))
}

fn shard_message(shard: ShardId, epoch: Epoch) -> peer::ShardEpoch {
    peer::ShardEpoch { shard: u32::from(shard.0), epoch: epoch.0 }
}

/// How many samples a chunk has.
fn samples_of(chunk: &ExportChunk) -> u64 {
    chunk.series.iter().map(|series| series.columns.len() as u64).sum()
}

/// Imports what comes until it is told that this was all. Returns how many series were new. Blocks.
fn import(
    engine: &Engine,
    (shard, deleted_through): (ShardId, u64),
    mut inbox: mpsc::Receiver<Work>,
) -> Result<u64, StorageError> {
    let mut importer = engine.importer(shard, deleted_through)?;
    let (mut waiting, mut weight, mut new_series) = (Vec::new(), 0, 0);
    while let Some(work) = inbox.blocking_recv() {
        let is_last = matches!(work, Work::Finish);
        match work {
            Work::Samples(chunk) => {
                weight += chunk.series.iter().map(|series| series.columns.weight()).sum::<usize>();
                waiting.push(chunk);
            }
            Work::Notes(notes) => importer.ingest_notes(&[notes])?,
            Work::Finish => {}
        }
        if is_last || weight >= IMPORT_SAMPLES {
            new_series += importer.ingest(&waiting)?.new_series;
            steps::reach("fetch: batch stored");
            waiting.clear();
            weight = 0;
        }
        if is_last {
            return Ok(new_series);
        }
    }
    Err(StorageError::Closed)
}

#[cfg(test)]
mod tests;
