//! Named steps: the moments at which a crash is most interesting.
//!
//! Whatever writes passes these steps in its order. Tests let an operation fail at one, or stop there while the
//! power is cut ([`StepHook`]); without a hook a step costs one comparison. Every step stands in [`STEPS`], so
//! that a test can go through all of them.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::error::StorageError;

/// All steps, in no order that matters. `open:` steps are passed while an engine is opened, `wal:` steps by the
/// log's thread and whoever removes log segments; a failure at those is final for the engine.
pub const STEPS: &[&str] = &[
    "open: database opened",
    "open: orphans removed",
    "open: log replayed",
    "open: log started",
    "wal: group written",
    "wal: segment created",
    "wal: segment removed",
    "flush: log rotated",
    "flush: rows written",
    "flush: pages written",
    "flush: days written",
    "flush: ingested",
    "flush: committed",
    "merge: number reserved",
    "merge: pages written",
    "merge: table finished",
    "merge: ingested",
    "merge: committed",
    "retention: committed",
    "retention: tombstones written",
    "delete: tombstones written",
    "import: number reserved",
    "import: pages written",
    "import: ingested",
    "import: committed",
    "notes: committed",
    "drop: committed",
];

type Hook = dyn Fn(&'static str) -> io::Result<()> + Send + Sync;

/// What a test wants to happen at steps. By default nothing does.
#[derive(Clone, Default)]
pub struct StepHook(Option<Arc<Hook>>);

impl StepHook {
    /// Calls `hook` at every step. Its error makes the operation fail there; it may also never return.
    pub fn new(hook: impl Fn(&'static str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// An operation is at `step`.
    pub(crate) fn reach(&self, step: &'static str) -> io::Result<()> {
        debug_assert!(STEPS.contains(&step), "{step:?} is not in the list of steps");
        self.0.as_ref().map_or(Ok(()), |hook| hook(step))
    }

    /// The same as an error of the operation.
    pub(crate) fn pass(&self, step: &'static str) -> Result<(), StorageError> {
        self.reach(step).map_err(|source| StorageError::Unavailable {
            action: format!("go on: {step}"),
            source: source.into(),
        })
    }
}

impl fmt::Debug for StepHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "StepHook(set)" } else { "StepHook(none)" })
    }
}
