//! An in-memory source of samples for scripts and properties.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use saturn_model::{Labels, SeriesColumns};
use saturn_promql::{SelectorRequest, Source, SourceError};

use crate::script::Load;
use crate::series::Sequence;

/// Marks errors that say that data is of a kind that is not evaluated yet.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotYet(String);

/// Whether an error says that data is of a kind that is not evaluated yet.
pub(crate) fn is_not_yet(error: &SourceError) -> bool {
    error.source.as_ref().is_some_and(|source| source.downcast_ref::<NotYet>().is_some())
}

/// Series by labels. Series with native histograms or start timestamps are known, but reading them is
/// an error.
#[derive(Debug, Default)]
pub(crate) struct Store {
    series: BTreeMap<Labels, BTreeMap<i64, f64>>,
    not_yet: BTreeSet<Labels>,
}

impl Store {
    pub(crate) fn load(&mut self, load: &Load) {
        // A later line for the same series replaces an earlier one.
        let mut lines = BTreeMap::new();
        for (i, line) in load.series.iter().enumerate() {
            lines.insert(line.labels.clone(), &line.sequence);
            if load.with_start_timestamps.contains(&i) || line.sequence == Sequence::Histograms {
                self.not_yet.insert(line.labels.clone());
            }
            if load.with_native_histograms {
                self.not_yet.extend(native_histogram_of(&line.labels));
            }
        }
        for (labels, sequence) in lines {
            if let Sequence::Floats(values) = sequence {
                let samples = self.series.entry(labels).or_default();
                for (time, value) in (0..).step_by(step(load.interval_ms)).zip(values) {
                    if let Some(value) = value {
                        samples.insert(time, *value);
                    }
                }
            }
        }
    }

    /// Adds one series.
    pub(crate) fn insert(&mut self, labels: Labels, samples: BTreeMap<i64, f64>) {
        self.series.insert(labels, samples);
    }

    /// All series.
    pub(crate) fn series(&self) -> &BTreeMap<Labels, BTreeMap<i64, f64>> {
        &self.series
    }
}

fn step(interval_ms: i64) -> usize {
    usize::try_from(interval_ms).expect("intervals are positive")
}

/// The native histogram that a bucket, count or sum series becomes a part of.
fn native_histogram_of(labels: &Labels) -> Option<Labels> {
    let name = labels.metric_name();
    let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix))?;
    Some(labels.to_builder().set("__name__", base).remove("le").build())
}

/// A store that checks that evaluation reads only what was announced.
pub(crate) struct Announced<'a> {
    pub(crate) store: &'a Store,
    pub(crate) requests: Vec<SelectorRequest>,
}

impl Source for Announced<'_> {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        assert!(self.requests.contains(request), "{request:?} was not announced");
        self.store.select(request)
    }
}

impl Source for Store {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        let matches = |labels: &Labels| {
            request.matchers.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or("")))
        };
        if let Some(labels) = self.not_yet.iter().find(|labels| matches(labels)) {
            let error = NotYet(format!("{labels} has native histograms or start timestamps"));
            let message = error.to_string();
            return Err(SourceError { message, source: Some(Arc::new(error)) });
        }
        let selected =
            self.series.iter().filter(|(labels, _)| matches(labels)).filter_map(|(labels, samples)| {
                let range = request.start.0..=request.end.0;
                let (timestamps, values): (Vec<i64>, Vec<f64>) =
                    samples.range(range).map(|(t, v)| (*t, *v)).unzip();
                (!timestamps.is_empty()).then(|| SeriesColumns { labels: labels.clone(), timestamps, values })
            });
        // Backwards, to see that evaluation does not rely on the order.
        Ok(selected.rev().collect())
    }
}
