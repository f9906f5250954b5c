//! Prometheus remote-write 2.0 (`io.prometheus.write.v2.Request`), written out as a request of 1.0.
//!
//! Version 2 keeps each text once and refers to it by number. Everything behind the door works on labels that stand
//! next to their samples, so the texts are put back in their places; how large that may become is bounded. Series
//! whose references lead nowhere are left out and named. Start timestamps are not stored.
//!
//! Source: `prompb/io/prometheus/write/v2/types.proto` of Prometheus.

use prost::Message;

use crate::WireError;
use crate::notes::{PbExemplar, PbLabel, PbMetadata};
use crate::remote_write::{put_bytes, put_label};

/// `io.prometheus.write.v2.Request`
#[derive(Clone, PartialEq, Message)]
struct PbRequest {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<PbSeries>,
}

/// `TimeSeries`. Samples and histograms have the fields of version 1, and start timestamps that it does not read.
#[derive(Clone, PartialEq, Message)]
struct PbSeries {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    samples: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    histograms: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<PbExemplarRefs>,
    #[prost(message, optional, tag = "5")]
    metadata: Option<PbMetadataRefs>,
}

#[derive(Clone, PartialEq, Message)]
struct PbExemplarRefs {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct PbMetadataRefs {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint32, tag = "3")]
    help_ref: u32,
    #[prost(uint32, tag = "4")]
    unit_ref: u32,
}

/// A request of version 2 as one of version 1.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written1 {
    /// The encoding of a `prometheus.WriteRequest`.
    pub request: Vec<u8>,
    /// Series that were left out.
    pub refused: Vec<RefusedSeries>,
}

/// A series that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedSeries {
    /// Which one, by its place in the request, and what is wrong.
    pub reason: String,
    /// How many samples and histograms it has.
    pub samples: usize,
}

/// Most labels of a series, and most bytes of them: far beyond what the gateway admits, and little enough to be
/// written out before it says so.
const LABELS_MAX: usize = 1000;
const LABELS_BYTES_MAX: usize = 1 << 20;
/// Most bytes of an exemplar's labels: longer ones are not stored anyway.
const EXEMPLAR_BYTES_MAX: usize = 1 << 10;

/// Kinds of metrics whose series have suffixes: histogram, gauge histogram, summary.
const WITH_SUFFIXES: [i32; 3] = [3, 4, 5];

/// Writes a request of version 2 out as one of version 1, of at most `bytes_max` bytes.
///
/// # Errors
/// `Malformed` if the bytes are no request, `Invalid` if its symbols do not begin with the empty one, `TooLarge`.
pub fn write_as_1(request: &[u8], bytes_max: usize) -> Result<Written1, WireError> {
    let message = PbRequest::decode(request)
        .map_err(|_| WireError::Malformed { what: "broken io.prometheus.write.v2.Request", at: 0 })?;
    if message.symbols.first().is_some_and(|first| !first.is_empty()) {
        return Err(WireError::Invalid("the first symbol is not empty".into()));
    }
    let mut written = Written1::default();
    let mut described = std::collections::HashSet::new();
    for (at, series) in message.timeseries.iter().enumerate() {
        if let Err(reason) = put(&mut written.request, &message.symbols, series, &mut described) {
            let reason = format!("series {at} of the request: {reason}");
            let samples = series.samples.len() + series.histograms.len();
            written.refused.push(RefusedSeries { reason, samples });
        }
        if written.request.len() > bytes_max {
            let bytes = written.request.len();
            return Err(WireError::TooLarge { what: "request with its symbols in place", bytes, bytes_max });
        }
    }
    Ok(written)
}

fn put(
    out: &mut Vec<u8>,
    symbols: &[String],
    series: &PbSeries,
    described: &mut std::collections::HashSet<(String, i32, u32, u32)>,
) -> Result<(), String> {
    let labels = resolve(symbols, &series.labels_refs, LABELS_BYTES_MAX)?;
    let nothing = series.samples.is_empty() && series.histograms.is_empty() && series.exemplars.is_empty();
    if nothing && series.metadata.is_none() {
        return Err("TimeSeries must contain at least one sample or histogram".into());
    }
    if let Some(metadata) = &series.metadata
        && (metadata.kind != 0 || metadata.help_ref != 0 || metadata.unit_ref != 0)
    {
        let name = labels.iter().find(|(name, _)| *name == "__name__").map_or("", |(_, value)| value);
        let (help, unit) = (symbol(symbols, metadata.help_ref)?, symbol(symbols, metadata.unit_ref)?);
        let metric = family(name, metadata.kind);
        let key = (metric.to_owned(), metadata.kind, metadata.help_ref, metadata.unit_ref);
        if !metric.is_empty() && described.insert(key) {
            let message = PbMetadata {
                kind: metadata.kind,
                metric_family_name: metric.to_owned(),
                help: help.to_owned(),
                unit: unit.to_owned(),
            };
            put_bytes(out, 3, &message.encode_to_vec());
        }
    }
    if nothing {
        return Ok(());
    }
    let mut message = Vec::new();
    labels.iter().for_each(|(name, value)| put_label(&mut message, name, value));
    series.samples.iter().for_each(|sample| put_bytes(&mut message, 2, sample));
    // Prometheus does not refuse a series for its exemplars either.
    let exemplars = series.exemplars.iter().filter_map(|exemplar| exemplar_of(symbols, exemplar).ok());
    exemplars.for_each(|exemplar| put_bytes(&mut message, 3, &exemplar.encode_to_vec()));
    series.histograms.iter().for_each(|histogram| put_bytes(&mut message, 4, histogram));
    put_bytes(out, 1, &message);
    Ok(())
}

/// The name that a series' metadata belongs to.
fn family(name: &str, kind: i32) -> &str {
    if !WITH_SUFFIXES.contains(&kind) {
        return name;
    }
    let suffixes = ["_bucket", "_count", "_sum"];
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

fn symbol(symbols: &[String], at: u32) -> Result<&str, String> {
    // A request without symbols means the empty one, too.
    match symbols.get(at as usize) {
        Some(symbol) => Ok(symbol),
        None if at == 0 => Ok(""),
        None => Err(format!("symbol {at} of {} is missing", symbols.len())),
    }
}

/// Pairs of names and values, sorted by name.
fn resolve<'a>(
    symbols: &'a [String],
    refs: &[u32],
    bytes_max: usize,
) -> Result<Vec<(&'a str, &'a str)>, String> {
    let (pairs, rest) = refs.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a label has a name and no value".into());
    }
    if pairs.len() > LABELS_MAX {
        return Err(format!("{} labels are over the limit of {LABELS_MAX}", pairs.len()));
    }
    let pair = |[name, value]: &[u32; 2]| Ok((symbol(symbols, *name)?, symbol(symbols, *value)?));
    let mut pairs = pairs.iter().map(pair).collect::<Result<Vec<_>, String>>()?;
    let bytes: usize = pairs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > bytes_max {
        return Err(format!("labels of {bytes} bytes are over the limit of {bytes_max}"));
    }
    pairs.sort_by_key(|(name, _)| *name);
    Ok(pairs)
}

fn exemplar_of(symbols: &[String], exemplar: &PbExemplarRefs) -> Result<PbExemplar, String> {
    let labels = resolve(symbols, &exemplar.labels_refs, EXEMPLAR_BYTES_MAX)?;
    let label = |(name, value): (&str, &str)| PbLabel { name: name.to_owned(), value: value.to_owned() };
    let labels = labels.into_iter().map(label).collect();
    Ok(PbExemplar { labels, value: exemplar.value, timestamp: exemplar.timestamp })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote_write::{walk_metadata, walk_request};
    use proptest::prelude::*;
    use saturn_model::{MetricType, Sample, TimestampMs};

    #[derive(Clone, PartialEq, Message)]
    struct PbSample {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        timestamp: i64,
        #[prost(int64, tag = "3")]
        start_timestamp: i64,
    }

    fn sample(timestamp: i64) -> Vec<u8> {
        PbSample { value: 2.5, timestamp, start_timestamp: 1 }.encode_to_vec()
    }

    fn request(symbols: &[&str], timeseries: Vec<PbSeries>) -> Vec<u8> {
        let symbols = symbols.iter().map(|symbol| (*symbol).to_owned()).collect();
        PbRequest { symbols, timeseries }.encode_to_vec()
    }

    #[test]
    fn texts_are_put_back_in_their_places() {
        let symbols = ["", "job", "a", "__name__", "m_bucket", "trace_id", "x", "help", "s"];
        let metadata = Some(PbMetadataRefs { kind: 3, help_ref: 7, unit_ref: 8 });
        let exemplar = PbExemplarRefs { labels_refs: vec![5, 6], value: 1.0, timestamp: 9 };
        // Labels in any order; a series of each kind; metadata that two series share.
        let one = PbSeries {
            labels_refs: vec![1, 2, 3, 4],
            samples: vec![sample(7), sample(8)],
            exemplars: vec![exemplar.clone()],
            metadata: metadata.clone(),
            ..PbSeries::default()
        };
        let two = PbSeries { exemplars: Vec::new(), ..one.clone() };
        let alone = PbSeries { labels_refs: vec![3, 4], exemplars: vec![exemplar], ..PbSeries::default() };
        let written = write_as_1(&request(&symbols, vec![one, two, alone]), 1000).expect("valid");
        assert!(written.refused.is_empty());
        let (mut labels, mut found, mut exemplars) = (Vec::new(), Vec::new(), 0);
        let walked = walk_request(&written.request, |series| {
            series.labels_into(&mut labels)?;
            let mut samples = Vec::new();
            exemplars += series.walk_samples(|sample| samples.push(sample))?.exemplars;
            series
                .walk_exemplars(|exemplar| assert!(exemplar.is_ok_and(|e| e.timestamp == TimestampMs(9))))?;
            found.push((labels.clone(), samples));
            Ok(())
        });
        assert_eq!(walked.map(|contents| contents.metadata), Ok(1));
        assert_eq!(exemplars, 2);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].0, [("__name__", "m_bucket"), ("job", "a")]);
        let Sample { timestamp, value } = found[0].1[1];
        assert_eq!((timestamp, value), (TimestampMs(8), 2.5));
        walk_metadata(&written.request, |said| {
            assert_eq!((said.metric.as_str(), said.kind), ("m", MetricType::Histogram));
            assert_eq!((said.help.as_str(), said.unit.as_str()), ("help", "s"));
        })
        .expect("walked before");
    }

    #[test]
    fn references_that_lead_nowhere_are_named() {
        let series = |labels_refs| PbSeries { labels_refs, samples: vec![sample(1)], ..PbSeries::default() };
        let empty = PbSeries { labels_refs: vec![1, 2], ..PbSeries::default() };
        let all = vec![series(vec![1, 2]), series(vec![1, 9]), series(vec![1]), empty];
        let written = write_as_1(&request(&["", "__name__", "m"], all), 1000).expect("valid");
        let reasons: Vec<&str> = written.refused.iter().map(|refused| refused.reason.as_str()).collect();
        assert_eq!(
            reasons,
            [
                "series 1 of the request: symbol 9 of 3 is missing",
                "series 2 of the request: a label has a name and no value",
                "series 3 of the request: TimeSeries must contain at least one sample or histogram",
            ]
        );
        assert_eq!(written.refused.iter().map(|refused| refused.samples).sum::<usize>(), 2);
        assert!(write_as_1(&request(&["x"], Vec::new()), 1000).is_err());
    }

    #[test]
    fn a_small_request_cannot_become_a_large_one() {
        let long = "x".repeat(10_000);
        let many = PbSeries { labels_refs: vec![1, 2], samples: vec![sample(1)], ..PbSeries::default() };
        let error = write_as_1(&request(&["", "__name__", &long], vec![many; 1000]), 100_000);
        assert!(matches!(error, Err(WireError::TooLarge { bytes_max: 100_000, .. })), "{error:?}");
        let wide =
            PbSeries { labels_refs: vec![1; 1 << 20], samples: vec![sample(1)], ..PbSeries::default() };
        let long = PbSeries { labels_refs: vec![2; 500], ..wide.clone() };
        let written = write_as_1(&request(&["", "n", &"x".repeat(10_000)], vec![wide, long]), 100_000);
        assert_eq!(written.expect("refuses series only").refused.len(), 2);
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = write_as_1(&bytes, 1000);
        }
    }
}
