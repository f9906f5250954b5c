//! An in-memory source of samples for scripts and properties.
//!
//! What histograms say about counter resets is what Prometheus's storage would make of it: the first sample of
//! a chunk knows nothing, the others say that there was none, and a reset begins a chunk.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{
    DataRequest, PartialGroups, SelectorAggregate, SelectorRequest, SeriesFold, Source, SourceError,
};
use saturn_model::{
    Buckets, CUSTOM_BUCKETS_SCHEMA, CounterResetHint, Histogram, Labels, SeriesColumns, is_stale_nan,
};

use super::script::Load;
use super::series::Item;

/// One sample.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) value: StoredValue,
    /// 0 if unknown.
    start: i64,
}

#[derive(Clone, Debug)]
pub(super) enum StoredValue {
    Float(f64),
    Histogram(Arc<Histogram>),
}

type Samples = BTreeMap<i64, Stored>;

/// Series by labels.
#[derive(Debug, Default)]
pub struct Store {
    series: BTreeMap<Labels, Samples>,
}

impl Store {
    pub(crate) fn load(&mut self, load: &Load) -> Result<(), String> {
        // A later line for the same series replaces an earlier one.
        let mut lines: BTreeMap<&Labels, Samples> = BTreeMap::new();
        for (line, starts) in load.series.iter().zip(&load.starts) {
            let mut samples = Samples::new();
            for (i, item) in line.values.iter().enumerate() {
                let Some(item) = item else { continue };
                let time = i64::try_from(i).ok().and_then(|i| load.interval_ms.checked_mul(i));
                let time = time.ok_or_else(|| format!("the time of sample {i} is out of range"))?;
                let start = starts.get(i).copied().flatten().map_or(0, |offset| time.saturating_add(offset));
                let value = match item {
                    Item::Float(value) => StoredValue::Float(*value),
                    Item::Histogram(literal) => StoredValue::Histogram(Arc::new(literal.histogram.clone())),
                };
                samples.insert(time, Stored { value, start });
            }
            lines.insert(&line.labels, samples);
        }
        let native = if load.with_native_histograms { native_histograms(&lines)? } else { BTreeMap::new() };
        let all = lines.into_iter().map(|(labels, samples)| (labels.clone(), samples)).chain(native);
        for (labels, samples) in all {
            let series = self.series.entry(labels).or_default();
            series.extend(samples);
            set_hints(series);
        }
        Ok(())
    }

    /// Adds one series of floats.
    pub fn insert(&mut self, labels: Labels, samples: BTreeMap<i64, f64>) {
        let stored = |value| Stored { value: StoredValue::Float(value), start: 0 };
        self.series.insert(labels, samples.into_iter().map(|(time, value)| (time, stored(value))).collect());
    }

    /// Adds histograms to one series.
    pub fn insert_histograms(&mut self, labels: Labels, samples: BTreeMap<i64, Histogram>) {
        let stored = |histogram| Stored { value: StoredValue::Histogram(Arc::new(histogram)), start: 0 };
        let series = self.series.entry(labels).or_default();
        series.extend(samples.into_iter().map(|(time, histogram)| (time, stored(histogram))));
        set_hints(series);
    }

    /// All series, as floats.
    pub fn floats(&self) -> impl Iterator<Item = (&Labels, BTreeMap<i64, f64>)> {
        self.series.iter().map(|(labels, samples)| {
            let floats = samples.iter().filter_map(|(time, sample)| match &sample.value {
                StoredValue::Float(value) => Some((*time, *value)),
                StoredValue::Histogram(_) => None,
            });
            (labels, floats.collect())
        })
    }
}

/// Sets the hints as chunks of Prometheus's storage would.
fn set_hints(samples: &mut Samples) {
    let mut before: Option<Arc<Histogram>> = None;
    for sample in samples.values_mut() {
        let StoredValue::Histogram(histogram) = &mut sample.value else {
            before = None;
            continue;
        };
        if histogram.is_stale() {
            continue;
        }
        let original = Arc::clone(histogram);
        let new_chunk = before.as_ref().is_none_or(|before| begins_chunk(before, &original));
        let hint = match (original.hint, new_chunk) {
            (CounterResetHint::Gauge, _) => CounterResetHint::Gauge,
            (_, true) => CounterResetHint::Unknown,
            (_, false) => CounterResetHint::NotReset,
        };
        *histogram = Arc::new(Histogram { hint, ..Histogram::clone(&original) });
        before = Some(original);
    }
}

/// Whether a histogram cannot be in the chunk of the one before it.
fn begins_chunk(before: &Histogram, current: &Histogram) -> bool {
    let gauge = |histogram: &Histogram| histogram.hint == CounterResetHint::Gauge;
    if gauge(before) || gauge(current) {
        return gauge(before) != gauge(current)
            || before.schema != current.schema
            || before.zero_threshold != current.zero_threshold
            || before.custom_values != current.custom_values;
    }
    let decreased = |before: &Buckets, current: &Buckets| {
        let now: BTreeMap<i32, f64> = current.iter().collect();
        before.iter().any(|(index, count)| now.get(&index).copied().unwrap_or(0.0) < count)
    };
    current.hint == CounterResetHint::Reset
        || before.schema != current.schema
        || before.zero_threshold != current.zero_threshold
        || before.custom_values != current.custom_values
        || current.count < before.count
        || current.zero_count < before.zero_count
        || decreased(&before.positive, &current.positive)
        || decreased(&before.negative, &current.negative)
}

/// A classic histogram at one time.
#[derive(Default)]
struct Classic {
    /// Cumulative counts by the order of their upper bounds.
    buckets: Vec<(f64, f64)>,
    count: Option<f64>,
    sum: f64,
}

/// The native histograms with custom buckets that the classic ones of a load are the same as.
fn native_histograms(lines: &BTreeMap<&Labels, Samples>) -> Result<BTreeMap<Labels, Samples>, String> {
    let mut classic: BTreeMap<Labels, BTreeMap<i64, Classic>> = BTreeMap::new();
    for (labels, samples) in lines {
        let name = labels.metric_name();
        let Some((base, suffix)) = ["_bucket", "_count", "_sum"]
            .into_iter()
            .find_map(|suffix| Some((name.strip_suffix(suffix)?, suffix)))
        else {
            continue;
        };
        let bound = labels.get("le").and_then(super::series::number).filter(|bound| !bound.is_nan());
        if suffix == "_bucket" && bound.is_none() {
            continue;
        }
        let target = labels.to_builder().set("__name__", base).remove("le").build();
        for (time, sample) in samples {
            let StoredValue::Float(value) = sample.value else { continue };
            let histogram = classic.entry(target.clone()).or_default().entry(*time).or_default();
            match (suffix, bound) {
                ("_count", _) => histogram.count = Some(value),
                ("_sum", _) => histogram.sum = value,
                (_, Some(bound)) if histogram.buckets.iter().all(|(other, _)| *other != bound) => {
                    histogram.buckets.push((bound, value));
                }
                _ => {}
            }
        }
    }
    let native = |by_time: BTreeMap<i64, Classic>| -> Result<Samples, String> {
        by_time
            .into_iter()
            .map(|(time, histogram)| {
                let value = StoredValue::Histogram(Arc::new(histogram.into_native()?));
                Ok((time, Stored { value, start: 0 }))
            })
            .collect()
    };
    classic.into_iter().map(|(labels, by_time)| Ok((labels, native(by_time)?))).collect()
}

impl Classic {
    fn into_native(mut self) -> Result<Histogram, String> {
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let highest = self.buckets.last().map_or(0.0, |(_, count)| *count);
        let count = self.count.unwrap_or(highest);
        if self.buckets.last().is_none_or(|(bound, _)| *bound != f64::INFINITY) {
            self.buckets.push((f64::INFINITY, count));
        }
        let mut before = 0.0;
        let mut counts = Vec::new();
        for (bound, cumulative) in &self.buckets {
            if *cumulative < before {
                return Err(format!("bucket counts decrease at {bound}"));
            }
            counts.push(cumulative - before);
            before = *cumulative;
        }
        if before != count && !is_stale_nan(count) {
            return Err(format!("the buckets count {before}, the histogram {count}"));
        }
        let bounds: Vec<f64> =
            self.buckets.iter().map(|(bound, _)| *bound).filter(|b| b.is_finite()).collect();
        let mut positive = Buckets::from_indexed((0..).zip(counts));
        positive.compact();
        Ok(Histogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            count,
            sum: self.sum,
            positive,
            custom_values: bounds.into(),
            ..Histogram::default()
        })
    }
}

/// A store that checks that evaluation reads only what was announced.
pub struct Announced<'a> {
    /// Where the series are.
    pub store: &'a Store,
    /// What was announced.
    pub requests: Vec<SelectorRequest>,
}

impl Source for Announced<'_> {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        match self.requests.contains(request) {
            true => self.store.select(request),
            false => Err(SourceError::new(format!("{request:?} was not announced"))),
        }
    }
}

/// A store that aggregates what can be aggregated at the source, each series apart, and checks that evaluation reads
/// only what was announced.
pub struct Aggregating<'a> {
    /// Where the series are.
    pub store: &'a Store,
    /// What was announced.
    pub requests: Vec<DataRequest>,
}

impl Source for Aggregating<'_> {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        match self.requests.iter().any(|announced| announced.selector() == request) {
            true => self.store.select(request),
            false => Err(SourceError::new(format!("{request:?} was not announced"))),
        }
    }

    fn aggregate(&self, aggregate: &SelectorAggregate) -> Result<Option<Arc<PartialGroups>>, SourceError> {
        if !self.requests.contains(&DataRequest::Aggregate(Box::new(aggregate.clone()))) {
            return Ok(None);
        }
        let mut all = SeriesFold::new(aggregate.clone()).finish();
        for series in &*self.store.select(aggregate.request())? {
            let mut fold = SeriesFold::new(aggregate.clone());
            if fold.add(series).is_err() || all.merge(&fold.finish()).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(Arc::new(all)))
    }
}

impl Source for Store {
    fn select(&self, request: &SelectorRequest) -> Result<Arc<[SeriesColumns]>, SourceError> {
        let matches = |labels: &Labels| {
            request.matchers.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or("")))
        };
        let selected =
            self.series.iter().filter(|(labels, _)| matches(labels)).filter_map(|(labels, samples)| {
                let mut columns = SeriesColumns { labels: labels.clone(), ..SeriesColumns::default() };
                for (time, sample) in samples.range(request.start.0..=request.end.0) {
                    match &sample.value {
                        StoredValue::Float(value) => {
                            columns.timestamps.push(*time);
                            columns.values.push(*value);
                            columns.start_timestamps.push(sample.start);
                        }
                        StoredValue::Histogram(histogram) => {
                            columns.histograms.push(*time, Arc::clone(histogram));
                            columns.histograms.start_timestamps.push(sample.start);
                        }
                    }
                }
                (!columns.is_empty()).then_some(columns)
            });
        // Backwards, to see that evaluation does not rely on the order.
        Ok(selected.rev().collect())
    }
}
