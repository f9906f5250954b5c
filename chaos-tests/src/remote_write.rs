//! Remote-write requests, right and wrong ones, encoded by hand: an encoder of its own finds what a shared
//! one would get wrong twice.
//!
//! Field numbers: Prometheus Remote-Write specifications 1.0 and 2.0, "Protobuf messages".

/// Longest varint, in bytes.
const VARINT_BYTES_MAX: usize = 10;

/// One series of a request, in the order and spelling that it is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Names and values.
    pub labels: Vec<(String, String)>,
    /// Timestamps in milliseconds, and values.
    pub samples: Vec<(i64, f64)>,
}

impl Series {
    /// A series whose labels are sent as they stand here.
    pub fn new(labels: &[(&str, &str)], samples: &[(i64, f64)]) -> Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { labels, samples: samples.to_vec() }
    }
}

/// Encodes a `prometheus.WriteRequest`.
pub fn encode(series: &[Series]) -> Vec<u8> {
    let mut request = Vec::new();
    for one in series {
        put_series(&mut request, &encode_labels(&one.labels), &one.samples);
    }
    request
}

/// The labels of a series as they are in its message, for [`put_series`].
pub fn encode_labels(labels: &[(String, String)]) -> Vec<u8> {
    let (mut encoded, mut part) = (Vec::new(), Vec::new());
    for (name, value) in labels {
        part.clear();
        put_bytes(&mut part, 1, name.as_bytes());
        put_bytes(&mut part, 2, value.as_bytes());
        put_bytes(&mut encoded, 1, &part);
    }
    encoded
}

/// Appends a series to a request.
pub fn put_series(request: &mut Vec<u8>, labels: &[u8], samples: &[(i64, f64)]) {
    let (mut message, mut part) = (labels.to_vec(), Vec::new());
    for (timestamp, value) in samples {
        part.clear();
        part.push(1 << 3 | 1);
        part.extend_from_slice(&value.to_bits().to_le_bytes());
        part.push(2 << 3);
        put_varint(&mut part, timestamp.cast_unsigned());
        put_bytes(&mut message, 2, &part);
    }
    put_bytes(request, 1, &message);
}

/// One series of a request of version 2; texts are numbers of symbols.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series2 {
    /// Names and values, in turn.
    pub labels_refs: Vec<u32>,
    /// Timestamps in milliseconds, and values.
    pub samples: Vec<(i64, f64)>,
    /// Names and values, value, timestamp.
    pub exemplars: Vec<(Vec<u32>, f64, i64)>,
    /// Type, help and unit.
    pub metadata: Option<(u64, u32, u32)>,
}

/// Encodes an `io.prometheus.write.v2.Request`.
pub fn encode2(symbols: &[&str], series: &[Series2]) -> Vec<u8> {
    let packed = |refs: &[u32]| {
        let mut packed = Vec::new();
        refs.iter().for_each(|at| put_varint(&mut packed, u64::from(*at)));
        packed
    };
    let value_and_time = |message: &mut Vec<u8>, fields: [u8; 2], value: f64, timestamp: i64| {
        message.push(fields[0] << 3 | 1);
        message.extend_from_slice(&value.to_bits().to_le_bytes());
        message.push(fields[1] << 3);
        put_varint(message, timestamp.cast_unsigned());
    };
    let mut request = Vec::new();
    symbols.iter().for_each(|symbol| put_bytes(&mut request, 4, symbol.as_bytes()));
    for one in series {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, &packed(&one.labels_refs));
        for (timestamp, value) in &one.samples {
            let mut sample = Vec::new();
            value_and_time(&mut sample, [1, 2], *value, *timestamp);
            // A start timestamp.
            sample.push(3 << 3);
            put_varint(&mut sample, (timestamp - 1000).cast_unsigned());
            put_bytes(&mut message, 2, &sample);
        }
        for (refs, value, timestamp) in &one.exemplars {
            let mut exemplar = Vec::new();
            put_bytes(&mut exemplar, 1, &packed(refs));
            value_and_time(&mut exemplar, [2, 3], *value, *timestamp);
            put_bytes(&mut message, 4, &exemplar);
        }
        if let Some((kind, help, unit)) = one.metadata {
            let mut metadata = vec![1 << 3];
            put_varint(&mut metadata, kind);
            metadata.push(3 << 3);
            put_varint(&mut metadata, u64::from(help));
            metadata.push(4 << 3);
            put_varint(&mut metadata, u64::from(unit));
            put_bytes(&mut message, 5, &metadata);
        }
        put_bytes(&mut request, 5, &message);
    }
    request
}

/// A native histogram with positive buckets, of whole numbers or of doubles.
#[derive(Debug, Clone, PartialEq)]
pub struct NativeHistogram {
    /// Milliseconds.
    pub timestamp_ms: i64,
    /// Resolution, or -53 for custom bounds.
    pub schema: i64,
    /// Whether the counts are sent as whole numbers.
    pub whole: bool,
    /// All observations.
    pub count: f64,
    /// Observations in the zero bucket.
    pub zero_count: f64,
    /// Sum of the observations.
    pub sum: f64,
    /// Index of the first bucket.
    pub first_index: i64,
    /// Observations of the buckets, one after the other.
    pub buckets: Vec<f64>,
    /// Upper bounds of custom buckets.
    pub bounds: Vec<f64>,
    /// 0 unknown, 1 yes, 2 no, 3 gauge.
    pub reset_hint: u64,
}

/// Appends a series of floats and native histograms to a request.
pub fn put_histograms(
    request: &mut Vec<u8>,
    labels: &[(&str, &str)],
    samples: &[(i64, f64)],
    histograms: &[NativeHistogram],
) {
    let mut series = Vec::new();
    let labels: Vec<(String, String)> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    put_series(&mut series, &encode_labels(&labels), samples);
    // Field number and length go: they come again, with the histograms.
    let mut message = series[1..].to_vec();
    while message.remove(0) >= 0x80 {}
    for histogram in histograms {
        put_bytes(&mut message, 4, &encode_histogram(histogram));
    }
    put_bytes(request, 1, &message);
}

fn encode_histogram(histogram: &NativeHistogram) -> Vec<u8> {
    let mut message = Vec::new();
    let double = |message: &mut Vec<u8>, field: u8, value: f64| {
        message.push(field << 3 | 1);
        message.extend_from_slice(&value.to_bits().to_le_bytes());
    };
    let zigzag = |value: i64| ((value << 1) ^ (value >> 63)).cast_unsigned();
    if histogram.whole {
        for (field, count) in [(1, histogram.count), (6, histogram.zero_count)] {
            message.push(field << 3);
            put_varint(&mut message, count as u64);
        }
    } else {
        double(&mut message, 2, histogram.count);
        double(&mut message, 7, histogram.zero_count);
    }
    double(&mut message, 3, histogram.sum);
    message.push(4 << 3);
    put_varint(&mut message, zigzag(histogram.schema));
    if !histogram.buckets.is_empty() {
        let mut span = vec![1 << 3];
        put_varint(&mut span, zigzag(histogram.first_index));
        span.push(2 << 3);
        put_varint(&mut span, histogram.buckets.len() as u64);
        put_bytes(&mut message, 11, &span);
        let mut packed = Vec::new();
        let mut last = 0;
        for count in &histogram.buckets {
            if histogram.whole {
                put_varint(&mut packed, zigzag(*count as i64 - last));
                last = *count as i64;
            } else {
                packed.extend_from_slice(&count.to_bits().to_le_bytes());
            }
        }
        put_bytes(&mut message, if histogram.whole { 12 } else { 13 }, &packed);
    }
    message.push(14 << 3);
    put_varint(&mut message, histogram.reset_hint);
    message.push(15 << 3);
    put_varint(&mut message, histogram.timestamp_ms.cast_unsigned());
    if !histogram.bounds.is_empty() {
        let bounds: Vec<u8> =
            histogram.bounds.iter().flat_map(|bound| bound.to_bits().to_le_bytes()).collect();
        // The tag of field 16 has two bytes.
        message.extend_from_slice(&[0x82, 0x01]);
        put_varint(&mut message, bounds.len() as u64);
        message.extend_from_slice(&bounds);
    }
    message
}

/// Compresses a request as remote-write wants it: snappy's block format.
pub fn compress(request: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(request).expect("requests of tests are far below 4 GiB")
}

/// A snappy block that claims to hold `length` bytes and holds next to none.
pub fn snappy_claiming(length: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(VARINT_BYTES_MAX + 2);
    put_varint(&mut body, length);
    // One literal byte.
    body.extend_from_slice(&[0, b'x']);
    body
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let series = Series::new(&[("__name__", "up")], &[(300, 1.0)]);
        let expected = [
            &[0x0a, 31][..],
            &[0x0a, 14, 0x0a, 8],
            b"__name__",
            &[0x12, 2],
            b"up",
            &[0x12, 12, 0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10, 0xac, 0x02],
            &[],
        ]
        .concat();
        let encoded = encode(std::slice::from_ref(&series));
        assert_eq!(usize::from(encoded[1]), encoded.len() - 2);
        assert_eq!(encoded[2..], expected[2..]);
    }

    #[test]
    fn negative_timestamps_take_ten_bytes() {
        let encoded = encode(&[Series::new(&[], &[(-1, 0.0)])]);
        assert!(encoded.ends_with(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]));
    }

    #[test]
    fn a_claim_is_only_a_claim() {
        assert!(snappy_claiming(u64::from(u32::MAX)).len() < 16);
        assert_eq!(snap::raw::decompress_len(&snappy_claiming(1 << 31)).expect("a header"), 1 << 31);
    }
}
