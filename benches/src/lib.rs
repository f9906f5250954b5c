//! Benchmarks, and side-by-side runs against peers.
//!
//! * [`Load`]: the requests of real senders, encoded before anything is measured.
//! * [`send_all`]: sends them and keeps the time.
//! * [`Subject`]: what is measured, Saturn or a peer, by its processes and folders.
//! * [`measure`]: one run; [`Figures`]: what came out, and the table of several.
//!
//! The benchmarks are binaries in `src/bin/`.

mod figures;
mod load;
mod recording;
mod run;
mod sending;
mod subject;

pub use figures::{Figures, machine, table};
pub use load::{Load, LoadOptions, SCRAPE_INTERVAL_MS};
pub use recording::{read_recording, record};
pub use run::measure;
pub use sending::{Sent, send_all};
pub use subject::Subject;
