//! Asks while others write, and believes an answer that calls itself complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinHandle;

use crate::history::WRITER_METRIC;
use crate::{Endpoint, now_ms};

/// The pause between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// A task that asks for the number of all samples again and again, and remembers the first complete answer that lacks
/// some of those that were acked before the question.
#[derive(Debug)]
pub struct Reader {
    stop: Arc<AtomicBool>,
    complete: Arc<AtomicUsize>,
    task: JoinHandle<Result<()>>,
}

impl Reader {
    /// Starts to ask the targets in turn. `acked`: how many samples were acked so far.
    pub fn start(targets: Vec<Endpoint>, acked: impl Fn() -> usize + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let complete = Arc::new(AtomicUsize::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&complete));
        let task = tokio::spawn(async move {
            let question = format!("sum(count_over_time({WRITER_METRIC}[1h]))");
            for target in targets.iter().cycle() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let before = acked();
                // A node that is down, and an answer that says that it lacks something, are no findings.
                if let Ok(answer) = target.query(&question, now_ms() + 1000).await
                    && let Ok(answer) = answer.complete()
                {
                    let found: f64 = if answer.is_empty() { 0.0 } else { answer.single()?.parse()? };
                    ensure!(found >= before as f64, "{} has {found} of {before} acked samples", target.url());
                    counted.fetch_add(1, Ordering::AcqRel);
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        });
        Self { stop, complete, task }
    }

    /// Stops to ask, and says how many answers were complete.
    ///
    /// # Errors
    /// If one of them lacked something.
    pub async fn stop(self) -> Result<usize> {
        self.stop.store(true, Ordering::Release);
        self.task.await.context("the reader panicked")??;
        Ok(self.complete.load(Ordering::Acquire))
    }
}
