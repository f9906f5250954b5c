//! Remote-write requests, right and wrong ones, encoded by hand: an encoder of its own finds what a shared
//! one would get wrong twice.
//!
//! Field numbers: Prometheus Remote-Write specification 1.0, "Protobuf messages".

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
