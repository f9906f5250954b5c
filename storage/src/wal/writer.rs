//! Group commit: many appenders, one thread that writes and syncs.
//!
//! Invariants: records reach the file in the order of [`Wal::enqueue`]; who waits for [`Ack::Durable`] is completed
//! only after fdatasync of everything enqueued before; after an error the group goes to a new segment, and if that
//! fails too, nothing is written, synced or completed any more. Waiting bytes are bounded by a semaphore that appenders
//! take from before they lock anything.
//!
//! Who waits for [`Ack::Written`] is completed once its records were written, so a process that dies loses nothing of
//! them. fdatasync follows when somebody needs it, when a group is full, and at the latest after
//! [`WalOptions::sync_interval`]. Until then the group goes on: its records stay in memory, for the new segment that
//! they go to if the sync fails.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::position::PositionFile;
use super::record::{MARK_BYTES, encode_mark, put_group};
use super::replay::end_of;
use super::{HEADER_BYTES, Header, Replayed, create_segment, segment_path, sync_dir};
use crate::error::StorageError;
use crate::metrics::Metrics;
use crate::snapshot::LogPosition;
use crate::steps::StepHook;

/// How often the durable position is noted.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How long the log is idle before it gets a closing mark.
const IDLE_MARK_AFTER: Duration = Duration::from_secs(1);

/// Bounds of the log, see `EngineOptions`.
#[derive(Clone, Debug)]
pub(crate) struct WalOptions {
    pub(crate) dir: PathBuf,
    /// The file that remembers the durable position.
    pub(crate) position: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) group_bytes_max: usize,
    pub(crate) queue_bytes_max: usize,
    /// How long records may be written and not synced, if nobody waits for that.
    pub(crate) sync_interval: Duration,
    pub(crate) steps: StepHook,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    /// Everything enqueued before is synced.
    Durable,
    /// Everything enqueued before is written.
    Written,
}

/// The log's front: everything here is cheap, but for [`Wal::rotate`] and [`Wal::close`].
#[derive(Debug)]
pub(crate) struct Wal {
    shared: Arc<Shared>,
    recovered: LogPosition,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    options: WalOptions,
    queue: Mutex<Queue>,
    /// Signalled when something was enqueued or the state changed.
    wakeup: Condvar,
    room: Arc<Semaphore>,
    /// Bytes of each segment file, by number.
    sizes: Mutex<BTreeMap<u64, u64>>,
    metrics: Arc<Metrics>,
    /// How many of the next syncs fail.
    #[cfg(test)]
    failing_syncs: std::sync::atomic::AtomicUsize,
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Item>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Open,
    Closing,
    Failed(Arc<io::Error>),
}

#[derive(Debug)]
enum Item {
    Record(Vec<u8>),
    /// Completes when everything before it is durable, or written. Gives its room back then.
    Waiter(Ack, oneshot::Sender<()>, OwnedSemaphorePermit),
    /// Starts a new segment and answers with its number.
    Rotate(mpsc::SyncSender<u64>),
}

impl Wal {
    /// Starts the thread, with a new segment behind those that were replayed.
    pub(crate) fn start(
        options: WalOptions,
        replayed: Replayed,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StorageError> {
        let starting = |e| StorageError::io("start the log in", &options.dir.clone(), e);
        let room = options.queue_bytes_max.clamp(1, Semaphore::MAX_PERMITS.min(1 << 31));
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { items: VecDeque::new(), state: State::Open }),
            wakeup: Condvar::new(),
            room: Arc::new(Semaphore::new(room)),
            sizes: Mutex::new(replayed.sizes.clone()),
            metrics,
            options: options.clone(),
            #[cfg(test)]
            failing_syncs: std::sync::atomic::AtomicUsize::new(0),
        });
        let writer = Writer::new(Arc::clone(&shared), &replayed).map_err(starting)?;
        let thread = std::thread::Builder::new()
            .name("saturn-wal".into())
            .spawn(move || writer.run_guarded())
            .map_err(starting)?;
        Ok(Self { shared, recovered: replayed.end(), thread: Mutex::new(Some(thread)) })
    }

    /// Waits until `bytes` more may wait in the queue. To be taken before any lock.
    pub(crate) async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, StorageError> {
        // A call larger than the whole queue takes all of it.
        let wanted = bytes.clamp(1, self.shared.options.queue_bytes_max.max(1));
        let wanted = u32::try_from(wanted).unwrap_or(1 << 31);
        let permit = Arc::clone(&self.shared.room).acquire_many_owned(wanted).await;
        permit.map_err(|_| self.refusal())
    }

    /// Puts a framed record behind all others. The caller's lock on the shard makes the order of the log
    /// the order of the head.
    pub(crate) fn enqueue(&self, record: Vec<u8>) -> Result<(), StorageError> {
        self.push(Item::Record(record))
    }

    /// Resolves when everything enqueued so far is durable, or written; an error if it never will be.
    pub(crate) async fn wait(&self, ack: Ack, room: OwnedSemaphorePermit) -> Result<(), StorageError> {
        let (sender, receiver) = oneshot::channel();
        self.push(Item::Waiter(ack, sender, room))?;
        receiver.await.map_err(|_| self.refusal())
    }

    /// Starts a new segment and returns its number: every record enqueued before is in an older segment,
    /// and durable.
    pub(crate) fn rotate(&self) -> Result<u64, StorageError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.push(Item::Rotate(sender))?;
        receiver.recv().map_err(|_| self.refusal())
    }

    /// Removes the segments below `number`.
    pub(crate) fn remove_below(&self, number: u64) -> Result<(), StorageError> {
        let dir = &self.shared.options.dir;
        let old: Vec<u64> = self.shared.sizes.lock().range(..number).map(|(number, _)| *number).collect();
        for number in old {
            let path = segment_path(dir, number);
            fs::remove_file(&path).map_err(|e| StorageError::io("remove", &path, e))?;
            self.shared.sizes.lock().remove(&number);
            self.shared.options.steps.pass("wal: segment removed")?;
        }
        sync_dir(dir).map_err(|e| StorageError::io("sync", dir, e))
    }

    /// Bytes of all segment files.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.sizes.lock().values().sum()
    }

    /// The end of what is durable.
    pub(crate) fn durable_position(&self) -> LogPosition {
        end_of(&self.shared.sizes.lock())
    }

    /// The end of what was found when the log was started.
    pub(crate) fn recovered_position(&self) -> LogPosition {
        self.recovered
    }

    /// Why nothing is accepted, if so.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        self.shared.queue.lock().state.refusal().map_or(Ok(()), Err)
    }

    /// Stops accepting for ever, because of `error`. The first error is kept.
    pub(crate) fn fail(&self, error: io::Error) {
        self.shared.fail(error);
    }

    /// Stops accepting, writes and syncs what waits, and ends the thread. Idempotent.
    pub(crate) fn close(&self) -> Result<(), StorageError> {
        {
            let mut queue = self.shared.queue.lock();
            if matches!(queue.state, State::Open) {
                queue.state = State::Closing;
            }
            self.shared.wakeup.notify_one();
        }
        if let Some(thread) = self.thread.lock().take() {
            thread.join().expect("the thread catches its panics");
        }
        self.shared.room.close();
        match &self.shared.queue.lock().state {
            State::Failed(source) => Err(StorageError::Failed { source: Arc::clone(source) }),
            State::Open | State::Closing => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn fail_next_syncs(&self, count: usize) {
        self.shared.failing_syncs.store(count, std::sync::atomic::Ordering::SeqCst);
    }

    fn push(&self, item: Item) -> Result<(), StorageError> {
        let mut queue = self.shared.queue.lock();
        if let Some(refusal) = queue.state.refusal() {
            return Err(refusal);
        }
        queue.items.push_back(item);
        drop(queue);
        self.shared.wakeup.notify_one();
        Ok(())
    }

    fn refusal(&self) -> StorageError {
        let refusal = self.shared.queue.lock().state.refusal();
        // Still open, yet the promise was dropped: the thread is just dying of a panic.
        let dying = || StorageError::Failed { source: Arc::new(io::Error::other("the log's thread died")) };
        refusal.unwrap_or_else(dying)
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        // An error was logged when it occurred.
        let _ = self.close();
    }
}

impl State {
    fn refusal(&self) -> Option<StorageError> {
        match self {
            Self::Open => None,
            Self::Closing => Some(StorageError::Closed),
            Self::Failed(source) => Some(StorageError::Failed { source: Arc::clone(source) }),
        }
    }
}

impl Shared {
    fn fail(&self, error: io::Error) {
        let mut queue = self.queue.lock();
        if !matches!(queue.state, State::Failed(_)) {
            tracing::error!(%error, "storage stops acknowledging writes until it is started again");
            queue.state = State::Failed(Arc::new(error));
        }
        // Dropping the waiters tells them.
        queue.items.clear();
        drop(queue);
        self.metrics.wal_failed.set(1);
        self.room.close();
        self.wakeup.notify_one();
    }

    #[cfg(test)]
    fn takes_injected_error(&self) -> bool {
        use std::sync::atomic::Ordering::SeqCst;
        self.failing_syncs.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    /// What is written together; waits for it. Not beyond `sync_due`, when what was written before is to be synced.
    fn next_group(&self, idle: Idle, sync_due: Option<Instant>) -> Group {
        let mut queue = self.queue.lock();
        let mut group = Group::default();
        while queue.items.is_empty() {
            match queue.state {
                State::Open => {}
                State::Closing => {
                    group.then = Then::Close;
                    return group;
                }
                State::Failed(_) => {
                    group.then = Then::Abort;
                    return group;
                }
            }
            let (until, then) = match (sync_due, idle) {
                (Some(due), _) => (due, Then::Sync),
                (None, Idle::Unmarked) => (Instant::now() + IDLE_MARK_AFTER, Then::Mark),
                (None, Idle::Marked) => {
                    self.wakeup.wait(&mut queue);
                    continue;
                }
            };
            if self.wakeup.wait_until(&mut queue, until).timed_out() && queue.items.is_empty() {
                group.then = then;
                return group;
            }
        }
        while let Some(item) = queue.items.front() {
            if let Item::Record(record) = item
                && !group.records.is_empty()
                && group.bytes + record.len() > self.options.group_bytes_max
            {
                break;
            }
            match queue.items.pop_front().expect("the front was just looked at") {
                Item::Record(record) => {
                    group.bytes += record.len();
                    group.records.push(record);
                }
                Item::Waiter(Ack::Durable, waiter, room) => group.waiters.push((waiter, room)),
                Item::Waiter(Ack::Written, waiter, room) => group.for_write.push((waiter, room)),
                Item::Rotate(reply) => {
                    group.then = Then::Rotate(reply);
                    break;
                }
            }
        }
        group
    }
}

/// Whether the end of the file is covered by a mark.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Idle {
    Marked,
    Unmarked,
}

#[derive(Debug, Default)]
struct Group {
    records: Vec<Vec<u8>>,
    bytes: usize,
    /// For fdatasync.
    waiters: Vec<Waiter>,
    /// For the write only.
    for_write: Vec<Waiter>,
    then: Then,
}

type Waiter = (oneshot::Sender<()>, OwnedSemaphorePermit);

/// What to do once the group is durable.
#[derive(Debug, Default)]
enum Then {
    #[default]
    GoOn,
    /// It is time to sync what was only written.
    Sync,
    Mark,
    Rotate(mpsc::SyncSender<u64>),
    Close,
    Abort,
}

fn complete(waiters: Vec<Waiter>) {
    for (waiter, room) in waiters {
        drop(room);
        // Who no longer waits was cancelled; the samples are stored all the same.
        let _ = waiter.send(());
    }
}

/// The thread's own state.
struct Writer {
    shared: Arc<Shared>,
    number: u64,
    salt: u64,
    file: File,
    /// Every byte before it is durable.
    offset: u64,
    /// Records that were written behind it and are not synced.
    unsynced: Unsynced,
    idle: Idle,
    position: PositionFile,
    noted: Option<Instant>,
    /// Reused between groups.
    buffer: Vec<u8>,
    unpacked: Vec<u8>,
}

/// A group that was written and not synced yet: its records, packed, without the mark before them.
#[derive(Debug, Default)]
struct Unsynced {
    records: Vec<u8>,
    /// When the first of them was written.
    since: Option<Instant>,
}

impl Writer {
    fn new(shared: Arc<Shared>, replayed: &Replayed) -> io::Result<Self> {
        let number = replayed.next_number;
        let salt = RandomState::new().hash_one(number);
        let previous_end = replayed.sizes.get(&(number - 1)).copied().unwrap_or(0);
        let file = create_segment(&shared.options.dir, Header { number, salt, previous_end })?;
        let offset = HEADER_BYTES as u64;
        shared.sizes.lock().insert(number, offset);
        let position = PositionFile::open(&shared.options.position)?;
        let idle = Idle::Marked;
        let unsynced = Unsynced::default();
        Ok(Self {
            shared,
            number,
            salt,
            file,
            offset,
            unsynced,
            idle,
            position,
            noted: None,
            buffer: Vec::new(),
            unpacked: Vec::new(),
        })
    }

    /// Whatever ends the thread, nobody waits for ever, and a death is never silent.
    fn run_guarded(mut self) {
        let shared = Arc::clone(&self.shared);
        if std::panic::catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            shared.fail(io::Error::other("the thread that writes the log panicked"));
        }
    }

    fn run(&mut self) {
        loop {
            let due = self.unsynced.since.map(|since| since + self.shared.options.sync_interval);
            let group = self.shared.next_group(self.idle, due);
            // The failure must be known before the group's waiters are dropped and ask for it.
            if let Err(error) = self.write_group(&group.records) {
                return self.shared.fail(error);
            }
            complete(group.for_write);
            let must_sync = !group.waiters.is_empty()
                || !matches!(group.then, Then::GoOn)
                || due.is_some_and(|due| due <= Instant::now())
                || self.unsynced.records.len() >= self.shared.options.group_bytes_max;
            if must_sync && let Err(error) = self.sync_group() {
                return self.shared.fail(error);
            }
            complete(group.waiters);
            let done = match &group.then {
                Then::GoOn | Then::Sync => Ok(()),
                Then::Mark | Then::Close => self.write_closing_mark(),
                Then::Rotate(_) => self.next_segment(),
                Then::Abort => return,
            };
            if let Err(error) = done {
                return self.shared.fail(error);
            }
            match group.then {
                Then::Rotate(reply) => {
                    let _ = reply.send(self.number);
                }
                Then::Close => return self.sync_position(),
                Then::GoOn | Then::Sync | Then::Mark | Then::Abort => {}
            }
        }
    }

    /// Writes the records, into a new segment if the current one is full.
    fn write_group(&mut self, records: &[Vec<u8>]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if self.offset >= self.shared.options.segment_bytes {
            self.sync_group()?;
            self.next_segment()?;
        }
        let from = self.unsynced.records.len();
        put_group(records, &mut self.unpacked, &mut self.unsynced.records);
        self.unpacked.shrink_to(2 * self.shared.options.group_bytes_max);
        self.unsynced.since.get_or_insert_with(Instant::now);
        self.idle = Idle::Unmarked;
        if let Err(error) = self.write_from(from) {
            self.abandon_segment(&error)?;
            self.write_from(0)?;
        }
        Ok(())
    }

    /// Makes what was written durable.
    fn sync_group(&mut self) -> io::Result<()> {
        if self.unsynced.records.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.sync() {
            self.abandon_segment(&error)?;
            self.write_from(0)?;
            self.sync()?;
        }
        Ok(())
    }

    /// Goes on in a new segment: the current file must not be trusted with anything more.
    fn abandon_segment(&mut self, error: &io::Error) -> io::Result<()> {
        let file = segment_path(&self.shared.options.dir, self.number);
        tracing::error!(file = %file.display(), %error, "writing the log failed; going on in a new file");
        self.shared.metrics.wal_abandoned_segments.inc();
        self.next_segment()
    }

    fn write_closing_mark(&mut self) -> io::Result<()> {
        if self.idle == Idle::Unmarked {
            self.noted = None;
            if let Err(error) = self.write_from(0).and_then(|()| self.sync()) {
                self.abandon_segment(&error)?;
            }
            self.idle = Idle::Marked;
        }
        Ok(())
    }

    /// Writes the unsynced records from byte `from` on; a mark before the first.
    fn write_from(&mut self, from: usize) -> io::Result<()> {
        self.buffer.clear();
        if from == 0 {
            // Everything before this group is durable: it was synced.
            self.buffer.extend_from_slice(&encode_mark(self.salt, self.offset));
        }
        self.buffer.extend_from_slice(&self.unsynced.records[from..]);
        self.file.write_all(&self.buffer)?;
        self.shared.metrics.wal_written_bytes.inc_by(self.buffer.len() as u64);
        // One huge group must not hold its memory for ever.
        self.buffer.shrink_to(2 * self.shared.options.group_bytes_max);
        self.shared.options.steps.reach("wal: group written")
    }

    /// Makes the mark and all unsynced records durable.
    fn sync(&mut self) -> io::Result<()> {
        let started = Instant::now();
        self.sync_file()?;
        let metrics = &self.shared.metrics;
        metrics.wal_fsync_duration.observe(started.elapsed().as_secs_f64());
        let bytes = (MARK_BYTES + self.unsynced.records.len()) as u64;
        if let Ok(group_bytes) = u32::try_from(bytes) {
            metrics.wal_group_bytes.observe(f64::from(group_bytes));
        }
        self.offset += bytes;
        self.unsynced.since = None;
        self.unsynced.records.clear();
        self.unsynced.records.shrink_to(2 * self.shared.options.group_bytes_max);
        self.shared.sizes.lock().insert(self.number, self.offset);
        if self.noted.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY) {
            self.noted = Some(Instant::now());
            self.warn_of(self.position.note(self.number, self.offset));
        }
        Ok(())
    }

    fn sync_position(&self) {
        self.warn_of(self.position.sync());
    }

    /// The position is a guard: without it, the log is as good as before.
    fn warn_of(&self, noted: io::Result<()>) {
        if let Err(error) = noted {
            let file = self.shared.options.position.display();
            tracing::warn!(%file, %error, "cannot note the durable position of the log");
        }
    }

    fn sync_file(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.shared.takes_injected_error() {
            return Err(io::Error::other("injected fdatasync error"));
        }
        self.file.sync_data()
    }

    /// Everything before the current offset is durable here: [`Writer::sync`] moves it.
    fn next_segment(&mut self) -> io::Result<()> {
        let number = self.number + 1;
        let salt = RandomState::new().hash_one(number);
        let header = Header { number, salt, previous_end: self.offset };
        self.file = create_segment(&self.shared.options.dir, header)?;
        self.shared.options.steps.reach("wal: segment created")?;
        (self.number, self.salt) = (number, salt);
        self.offset = HEADER_BYTES as u64;
        self.idle = Idle::Marked;
        self.shared.sizes.lock().insert(self.number, self.offset);
        Ok(())
    }
}
