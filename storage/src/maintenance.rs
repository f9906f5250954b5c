//! Maintenance: retention and merges, on a clock of their own.
//!
//! One thread, which wakes up at an interval. It works window by window and gives way to a flush that is
//! wanted, because a flush frees memory and the log. Damage in one window never stops the others.

use std::io;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::engine::Store;
use crate::error::StorageError;
use crate::merge::{self, Step};
use crate::retention;

/// How long a round waits for a flush that is wanted before it looks again.
const GIVE_WAY: Duration = Duration::from_millis(100);

/// Ends the threads for maintenance and scrubs.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stopping: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Asks the thread to end.
    pub(crate) fn stop(&self) {
        *self.stopping.lock() = true;
        self.changed.notify_all();
    }

    /// Whether somebody asked.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.lock()
    }

    /// Waits. Whether the thread shall end.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let mut stopping = self.stopping.lock();
        let until = Instant::now() + at_most;
        self.changed.wait_while_until(&mut stopping, |stopping| !*stopping, until);
        *stopping
    }
}

/// The thread: a round at every interval, until it is stopped.
pub(crate) fn run_guarded(store: &Store) {
    let run = || {
        while !store.maintenance_stop.wait(store.options.maintenance_interval) {
            let started = Instant::now();
            match round(store) {
                Ok(()) => {}
                // The log has told why.
                Err(StorageError::Failed { .. } | StorageError::Closed) => return,
                Err(error) => {
                    store.metrics.merge_failures.inc();
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "maintenance failed, trying again later"
                    );
                }
            }
            store.metrics.maintenance_runs.inc();
            store.metrics.maintenance_duration.observe(started.elapsed().as_secs_f64());
        }
    };
    if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
        store.wal().fail(io::Error::other("the maintenance thread panicked"));
    }
}

fn round(store: &Store) -> Result<(), StorageError> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
    retention::expire(store, now_ms)?;
    loop {
        while store.flush_signal.is_wanted() {
            if store.maintenance_stop.wait(GIVE_WAY) {
                return Ok(());
            }
        }
        if store.maintenance_stop.wait(Duration::ZERO) || merge::merge_one(store, now_ms)? == Step::Idle {
            return Ok(());
        }
    }
}

/// Does all that is due at `now_ms`: retention, then merges.
pub(crate) fn maintain(store: &Store, now_ms: i64) -> Result<(), StorageError> {
    retention::expire(store, now_ms)?;
    while merge::merge_one(store, now_ms)? == Step::Done {}
    Ok(())
}
