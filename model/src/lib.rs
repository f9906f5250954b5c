//! Nouns and units of Saturn, shared by every other crate.
//!
//! * [`TenantId`]: whose data it is.
//! * [`Labels`], [`LabelsBuilder`]: what a series is called, in one canonical encoding.
//! * [`Fingerprint`], [`ShardId`]: where a series lives.
//! * [`TimestampMs`], [`Sample`], [`resolve`]: what a series holds and how conflicts end.
//! * [`Histogram`]: a sample that is a whole distribution.
//! * [`ShardBatch`]: samples on their way in.
//! * [`Matcher`], [`Selection`], [`SeriesColumns`]: how a query picks series, and what it gets.
//! * [`Exemplar`], [`MetricMetadata`]: what comes with samples.
//! * [`Cardinality`]: how many series, and which labels have most of them.
//! * [`SampleBudget`]: what a query may hold while it reads.
//! * [`Limits`]: the bounds on what a tenant may send and ask.
//!
//! This crate does no IO, knows no clock and depends on no other crate of the workspace.

mod batch;
mod budget;
mod cardinality;
mod exemplar;
mod fingerprint;
mod fingerprint_cache;
mod histogram;
mod labels;
mod limits;
mod matcher;
mod metadata;
mod re2;
mod sample;
mod series;
mod tenant;

pub use batch::{BatchHistograms, ShardBatch};
pub use budget::{OverBudget, SampleBudget};
pub use cardinality::{Cardinality, Distinct, LabelCardinality, largest};
pub use exemplar::{Exemplar, SeriesExemplars};
pub use fingerprint::{Fingerprint, ShardId};
pub use fingerprint_cache::{FingerprintCache, LabelBytesKey, TenantFingerprints};
pub use histogram::{
    BUCKETS_MAX, Buckets, CUSTOM_BUCKETS_SCHEMA, CountKind, CounterResetHint, Histogram, InvalidBuckets,
    InvalidHistogram, Span,
};
pub use labels::{InvalidLabels, Labels, LabelsBuilder, METRIC_NAME, append_label_pair, decode_label_pairs};
pub use limits::Limits;
pub use matcher::{MatchOp, Matcher, MatcherError, compile_anchored_regex, translate_re2};
pub use metadata::{MetricMetadata, MetricType};
pub use sample::{
    STALE_NAN_BITS, Sample, TimestampMs, WINDOW_MS, float_beats_histogram, is_stale_nan, resolve,
    resolve_histograms,
};
pub use series::{HistogramColumns, Selection, SeriesColumns, merge_columns, merge_histograms};
pub use tenant::{InvalidTenant, TenantId};
