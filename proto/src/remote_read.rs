//! Prometheus remote-read: messages, and the XOR chunks of streamed answers.
//!
//! Sources: `prompb/remote.proto` and `prompb/types.proto` of Prometheus; chunks: `tsdb/docs/format/chunks.md`
//! and `tsdb/chunkenc/xor.go`.

use prost::Message;
use saturn_model::{Labels, MatchOp, Matcher, MatcherError};

use crate::histogram::PbHistogram;
pub use crate::histogram_chunks::histogram_chunks;

/// Samples of one XOR chunk, as in Prometheus's blocks.
const CHUNK_SAMPLES_MAX: usize = 120;
/// `Chunk.Encoding.XOR`.
const ENCODING_XOR: i32 = 1;
/// `LabelMatcher.Type`.
const MATCHER_OPS: [MatchOp; 4] = [MatchOp::Equal, MatchOp::NotEqual, MatchOp::Regex, MatchOp::NotRegex];

/// `prometheus.ReadRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ReadRequest {
    /// Answered in order.
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<Query>,
    /// What the client can read, in order of preference: 0 samples, 1 streamed XOR chunks.
    #[prost(int32, repeated, tag = "2")]
    pub accepted_response_types: Vec<i32>,
}

/// `prometheus.Query`
#[derive(Clone, PartialEq, Message)]
pub struct Query {
    /// Inclusive.
    #[prost(int64, tag = "1")]
    pub start_timestamp_ms: i64,
    /// Inclusive.
    #[prost(int64, tag = "2")]
    pub end_timestamp_ms: i64,
    /// All must hold.
    #[prost(message, repeated, tag = "3")]
    pub matchers: Vec<LabelMatcher>,
}

/// `prometheus.LabelMatcher`
#[derive(Clone, PartialEq, Message)]
pub struct LabelMatcher {
    /// 0 `=`, 1 `!=`, 2 `=~`, 3 `!~`.
    #[prost(int32, tag = "1")]
    pub op: i32,
    /// The label's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// What it is compared with.
    #[prost(string, tag = "3")]
    pub value: String,
}

/// `prometheus.ReadResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ReadResponse {
    /// Parallel to the request's queries.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<QueryResult>,
}

/// `prometheus.QueryResult`
#[derive(Clone, PartialEq, Message)]
pub struct QueryResult {
    /// Sorted by labels.
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
}

/// `prometheus.TimeSeries`
#[derive(Clone, PartialEq, Message)]
pub struct TimeSeries {
    /// Sorted by name.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// Ascending in time.
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<PbSample>,
    /// Ascending in time.
    #[prost(message, repeated, tag = "4")]
    pub histograms: Vec<PbHistogram>,
}

/// `prometheus.Label`
#[derive(Clone, PartialEq, Message)]
pub struct Label {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `prometheus.Sample`
#[derive(Clone, PartialEq, Message)]
pub struct PbSample {
    /// Bits are data.
    #[prost(double, tag = "1")]
    pub value: f64,
    /// Milliseconds.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// `prometheus.ChunkedReadResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ChunkedReadResponse {
    /// At most one series.
    #[prost(message, repeated, tag = "1")]
    pub chunked_series: Vec<ChunkedSeries>,
    /// The query that this frame answers.
    #[prost(int64, tag = "2")]
    pub query_index: i64,
}

/// `prometheus.ChunkedSeries`
#[derive(Clone, PartialEq, Message)]
pub struct ChunkedSeries {
    /// Sorted by name.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    /// Ascending in time.
    #[prost(message, repeated, tag = "2")]
    pub chunks: Vec<Chunk>,
}

/// `prometheus.Chunk`
#[derive(Clone, PartialEq, Message)]
pub struct Chunk {
    /// Time of the first sample.
    #[prost(int64, tag = "1")]
    pub min_time_ms: i64,
    /// Time of the last sample.
    #[prost(int64, tag = "2")]
    pub max_time_ms: i64,
    /// 1: XOR, 3: float histograms.
    #[prost(int32, tag = "3")]
    pub encoding: i32,
    /// The chunk's bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
}

impl LabelMatcher {
    /// The matcher that this message describes; an unknown kind is an error.
    pub fn to_matcher(&self) -> Result<Matcher, MatcherError> {
        let op = usize::try_from(self.op).ok().and_then(|op| MATCHER_OPS.get(op));
        let op = op.ok_or_else(|| MatcherError {
            pattern: self.value.clone(),
            reason: format!("there is no kind {} of matchers", self.op),
        })?;
        Matcher::new(&self.name, *op, &self.value)
    }
}

/// A label set as messages.
pub fn labels_to_messages(labels: &Labels) -> Vec<Label> {
    labels.iter().map(|(name, value)| Label { name: name.into(), value: value.into() }).collect()
}

/// One frame of a streamed answer: length, CRC-32C (big-endian), message.
pub fn frame(message: &ChunkedReadResponse) -> Vec<u8> {
    let payload = message.encode_to_vec();
    let mut frame = Vec::with_capacity(payload.len() + 16);
    crate::varint::put_varint(&mut frame, payload.len() as u64);
    frame.extend_from_slice(&crc32c::crc32c(&payload).to_be_bytes());
    frame.extend_from_slice(&payload);
    frame
}

/// The samples as XOR chunks of up to 120.
pub fn xor_chunks(timestamps: &[i64], values: &[f64]) -> Vec<Chunk> {
    let chunks = timestamps.chunks(CHUNK_SAMPLES_MAX).zip(values.chunks(CHUNK_SAMPLES_MAX));
    chunks
        .map(|(timestamps, values)| Chunk {
            min_time_ms: timestamps[0],
            max_time_ms: timestamps[timestamps.len() - 1],
            encoding: ENCODING_XOR,
            data: xor_chunk(timestamps, values),
        })
        .collect()
}

/// Bits, most significant first.
#[derive(Default)]
pub(crate) struct BitStream {
    pub(crate) bytes: Vec<u8>,
    /// Bits still free in the last byte.
    pub(crate) free: u32,
}

impl BitStream {
    pub(crate) fn put(&mut self, value: u64, bits: u32) {
        for shift in (0..bits).rev() {
            if self.free == 0 {
                self.bytes.push(0);
                self.free = 8;
            }
            self.free -= 1;
            let bit = ((value >> shift) & 1).to_le_bytes()[0];
            *self.bytes.last_mut().expect("a byte was pushed") |= bit << self.free;
        }
    }
}

/// `tsdb/chunkenc/xor.go`. Sample times must ascend.
fn xor_chunk(timestamps: &[i64], values: &[f64]) -> Vec<u8> {
    let count = u16::try_from(timestamps.len()).expect("a chunk has at most 120 samples");
    let mut stream = BitStream { bytes: count.to_be_bytes().to_vec(), free: 0 };
    let mut varint = Vec::new();
    let mut window = None;
    let mut delta = 0_i64;
    for (i, (timestamp, value)) in timestamps.iter().zip(values).enumerate() {
        varint.clear();
        if i == 0 {
            crate::varint::put_varint(&mut varint, crate::varint::zigzag(*timestamp));
            varint.iter().for_each(|byte| stream.put(u64::from(*byte), 8));
            stream.put(value.to_bits(), 64);
            continue;
        }
        let new_delta = timestamp.wrapping_sub(timestamps[i - 1]);
        if i == 1 {
            crate::varint::put_varint(&mut varint, new_delta.cast_unsigned());
            varint.iter().for_each(|byte| stream.put(u64::from(*byte), 8));
        } else {
            put_delta_of_delta(&mut stream, new_delta.wrapping_sub(delta));
        }
        delta = new_delta;
        put_xor(&mut stream, values[i - 1].to_bits() ^ value.to_bits(), &mut window);
    }
    stream.bytes
}

fn put_delta_of_delta(stream: &mut BitStream, dod: i64) {
    let fits = |bits: u32| -((1_i64 << (bits - 1)) - 1) <= dod && dod <= 1_i64 << (bits - 1);
    let (prefix, prefix_bits, bits) = match dod {
        0 => return stream.put(0, 1),
        _ if fits(14) => (0b10, 2, 14),
        _ if fits(17) => (0b110, 3, 17),
        _ if fits(20) => (0b1110, 4, 20),
        _ => (0b1111, 4, 64),
    };
    stream.put(prefix, prefix_bits);
    stream.put(dod.cast_unsigned(), bits);
}

/// `window`: leading and trailing zeros of the last explicitly sized value.
pub(crate) fn put_xor(stream: &mut BitStream, xor: u64, window: &mut Option<(u32, u32)>) {
    if xor == 0 {
        return stream.put(0, 1);
    }
    stream.put(1, 1);
    let (leading, trailing) = (xor.leading_zeros().min(31), xor.trailing_zeros());
    match *window {
        Some((lead, trail)) if leading >= lead && trailing >= trail => {
            stream.put(0, 1);
            stream.put(xor >> trail, 64 - lead - trail);
        }
        _ => {
            *window = Some((leading, trailing));
            let significant = 64 - leading - trailing;
            stream.put(1, 1);
            stream.put(u64::from(leading), 5);
            // 64 significant bits are written as 0, which cannot occur otherwise.
            stream.put(u64::from(significant) & 0x3f, 6);
            stream.put(xor >> trailing, significant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::varint::{take_varint, unzigzag};
    use proptest::prelude::*;

    struct BitReader<'a> {
        bytes: &'a [u8],
        at: usize,
    }

    impl BitReader<'_> {
        fn take(&mut self, bits: u32) -> u64 {
            (0..bits).fold(0, |value, _| {
                let bit = self.bytes[self.at / 8] >> (7 - self.at % 8) & 1;
                self.at += 1;
                value << 1 | u64::from(bit)
            })
        }

        fn varint(&mut self) -> u64 {
            let mut at = self.at / 8;
            let value = take_varint(self.bytes, &mut at).expect("valid");
            self.at = at * 8;
            value
        }
    }

    /// A reader of the format, written from its description.
    fn decode(chunk: &[u8]) -> Vec<(i64, u64)> {
        let count = u16::from_be_bytes([chunk[0], chunk[1]]);
        let mut reader = BitReader { bytes: chunk, at: 16 };
        let (mut out, mut delta, mut window) = (Vec::new(), 0_i64, (0, 0));
        for i in 0..count {
            if i == 0 {
                out.push((unzigzag(reader.varint()), reader.take(64)));
                continue;
            }
            let (time, bits) = *out.last().expect("not the first");
            if i == 1 {
                delta = reader.varint().cast_signed();
            } else {
                let ones = (0..4).take_while(|_| reader.take(1) == 1).count();
                let size = [0, 14, 17, 20, 64][ones];
                let raw = reader.take(size);
                let signed = match size {
                    0 => 0,
                    64 => raw.cast_signed(),
                    _ if raw > 1 << (size - 1) => raw.cast_signed() - (1 << size),
                    _ => raw.cast_signed(),
                };
                delta = delta.wrapping_add(signed);
            }
            let xor = if reader.take(1) == 0 {
                0
            } else {
                if reader.take(1) == 1 {
                    let leading = u32::try_from(reader.take(5)).expect("small");
                    let significant = u32::try_from(reader.take(6)).expect("small");
                    let significant = if significant == 0 { 64 } else { significant };
                    window = (leading, 64 - leading - significant);
                }
                reader.take(64 - window.0 - window.1) << window.1
            };
            out.push((time.wrapping_add(delta), bits ^ xor));
        }
        out
    }

    proptest! {
        #[test]
        fn chunks_hold_every_sample(
            start in -1_000_000_000_000_i64..2_000_000_000_000,
            steps in proptest::collection::vec((1_i64..2_000_000, any::<u64>()), 1..300),
        ) {
            let mut time = start;
            let mut samples = Vec::new();
            for (step, bits) in steps {
                samples.push((time, bits));
                time += step;
            }
            let timestamps: Vec<i64> = samples.iter().map(|(t, _)| *t).collect();
            let values: Vec<f64> = samples.iter().map(|(_, bits)| f64::from_bits(*bits)).collect();
            let chunks = xor_chunks(&timestamps, &values);
            let decoded: Vec<(i64, u64)> = chunks.iter().flat_map(|chunk| decode(&chunk.data)).collect();
            prop_assert_eq!(decoded, samples);
        }
    }

    #[test]
    fn a_frame_is_length_checksum_message() {
        let message = ChunkedReadResponse { chunked_series: Vec::new(), query_index: 3 };
        let frame = frame(&message);
        assert_eq!(frame[0], 2);
        assert_eq!(frame[1..5], crc32c::crc32c(&frame[5..]).to_be_bytes());
        assert_eq!(ChunkedReadResponse::decode(&frame[5..]).expect("valid"), message);
    }
}
