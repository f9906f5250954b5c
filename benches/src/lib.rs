//! Benchmarks, and side-by-side runs against peers.
//!
//! * [`Load`]: the requests of real senders, encoded before anything is measured.
//! * [`send_all`]: sends them and keeps the time.
//! * [`Subject`]: what is measured, Saturn or a peer, by its processes and folders.
//! * [`record`]: real data, for a load of its requests.
//! * [`measure_engine`]: the storage engine alone, in this process.
//! * [`measure`]: one run; [`Figures`]: what came out, and the table of several.
//!
//! The benchmarks are binaries in `src/bin/`.

mod backfill;
mod engine;
mod figures;
mod load;
mod peer;
mod recording;
mod run;
mod scan;
mod sending;
mod subject;
mod usage;

pub use backfill::{Backfill, BackfillFigures, measure_backfill};
pub use engine::{EngineFigures, measure_engine};
pub use figures::{Figures, machine, table};
pub use load::{Load, LoadOptions, SCRAPE_INTERVAL_MS};
pub use peer::{Peer, PeerKind};
pub use recording::{read_recording, record};
pub use run::{check_count, measure};
pub use scan::{ScanFigures, measure_scan};
pub use sending::{Sent, send_all};
pub use subject::Subject;
pub use usage::process_cpu_seconds;
