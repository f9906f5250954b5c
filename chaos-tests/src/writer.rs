//! Load that remembers what was acked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::task::JoinHandle;

use crate::Endpoint;
use crate::history::{History, Outcome, Sent, WRITER_METRIC, traceable_value};
use crate::remote_write::{Series, compress, encode};
use crate::wait::{eventually, now_ms};

/// Most requests of one writer; it then stops by itself.
const REQUESTS_MAX: u32 = 20_000;

/// The pause before a request is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What a writer writes.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Its number, unique in its test, below 2^20.
    pub number: u32,
    /// How many series it writes, one sample of each a request.
    pub lanes: u32,
    /// Where it writes to, in turn.
    pub targets: Vec<Endpoint>,
    /// How often a request that was not acked is sent again, to the targets in turn, as senders do.
    pub retries: u32,
    /// The pause between two requests, which keeps what a test reads back small.
    pub pause: Duration,
}

/// A task that writes until it is stopped, one request after the other.
#[derive(Debug)]
pub struct Writer {
    number: u32,
    stop: Arc<AtomicBool>,
    doubt: Arc<AtomicBool>,
    acked: Arc<AtomicUsize>,
    task: JoinHandle<Vec<Sent>>,
}

impl Writer {
    /// The usual pause between two requests.
    pub const PAUSE: Duration = Duration::from_millis(2);

    /// Starts to write.
    pub fn start(options: WriterOptions) -> Self {
        let (stop, doubt) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let acked = Arc::new(AtomicUsize::new(0));
        let number = options.number;
        let task = tokio::spawn(run(options, Arc::clone(&stop), Arc::clone(&doubt), Arc::clone(&acked)));
        Self { number, stop, doubt, acked, task }
    }

    /// How many samples were acked so far.
    pub fn acked(&self) -> usize {
        self.acked.load(Ordering::Acquire)
    }

    /// The same, for whoever asks later.
    pub fn counter(&self) -> impl Fn() -> usize + Send + 'static {
        let acked = Arc::clone(&self.acked);
        move || acked.load(Ordering::Acquire)
    }

    /// Waits until `more` further samples are acked.
    pub async fn wait_acked(&self, more: usize, limit: Duration) -> Result<()> {
        let goal = self.acked() + more;
        let what = format!("{more} more acked samples of writer {}", self.number);
        eventually(&what, limit, async || {
            if self.acked() >= goal {
                return Ok(Some(()));
            }
            bail!("{} of {goal} are acked", self.acked())
        })
        .await
    }

    /// From now on, what is acked counts as unknown: Linux lets an fdatasync that races with the ioctl which takes a
    /// disk's power return without an error and without having written.
    pub fn doubt(&self) {
        self.doubt.store(true, Ordering::SeqCst);
    }

    /// Stops to write, and says what was written.
    pub async fn stop(self) -> Result<History> {
        self.stop.store(true, Ordering::Release);
        let sent = self.task.await.context("the writer panicked")?;
        Ok(History::new(self.number, sent))
    }
}

async fn run(
    options: WriterOptions,
    stop: Arc<AtomicBool>,
    doubt: Arc<AtomicBool>,
    acked: Arc<AtomicUsize>,
) -> Vec<Sent> {
    let WriterOptions { number, lanes, targets, retries, pause } = options;
    let lane_labels: Vec<String> = (0..lanes).map(|lane| lane.to_string()).collect();
    let writer_label = number.to_string();
    let mut sent = Vec::new();
    let mut timestamp_ms = 0;
    let mut sequence = 0;
    let mut targets = targets.iter().cycle();
    for request in 0..REQUESTS_MAX {
        if stop.load(Ordering::Acquire) {
            break;
        }
        timestamp_ms = now_ms().max(timestamp_ms + 1);
        let first = sent.len();
        let mut series = Vec::new();
        for (lane, lane_label) in (0..lanes).zip(&lane_labels) {
            sequence += 1;
            let labels = [("__name__", WRITER_METRIC), ("lane", lane_label), ("writer", &writer_label)];
            series.push(Series::new(&labels, &[(timestamp_ms, traceable_value(number, sequence))]));
            // Until there is an answer nobody knows.
            sent.push(Sent { lane, timestamp_ms, sequence, outcome: Outcome::Unknown });
        }
        let mut outcome = send(targets.next(), &series).await;
        for _ in 0..retries {
            if outcome == Outcome::Acked {
                break;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            let again = send(targets.next(), &series).await;
            // What an earlier attempt may have stored does not go away.
            outcome = if again == Outcome::NotSent { outcome } else { again };
        }
        if outcome == Outcome::Acked && doubt.load(Ordering::SeqCst) {
            outcome = Outcome::Unknown;
        }
        sent[first..].iter_mut().for_each(|sample| sample.outcome = outcome);
        if outcome == Outcome::Acked {
            acked.fetch_add(lane_labels.len(), Ordering::AcqRel);
        }
        debug_assert_eq!(sent.len(), (request as usize + 1) * lane_labels.len());
        tokio::time::sleep(pause).await;
    }
    sent
}

async fn send(target: Option<&Endpoint>, series: &[Series]) -> Outcome {
    let Some(target) = target else { return Outcome::NotSent };
    let body = compress(&encode(series));
    match target.write_body(body).await {
        Ok(reply) if (200..300).contains(&reply.status) => Outcome::Acked,
        Ok(_) => Outcome::Unknown,
        Err(error) => {
            // No connection: no byte was sent. Anything else may have got through.
            let refused = error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect);
            if refused { Outcome::NotSent } else { Outcome::Unknown }
        }
    }
}
