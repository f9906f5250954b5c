//! Native histograms as chunks of streamed remote-read answers: `FloatHistogramChunk` of Prometheus.
//!
//! Source: `tsdb/chunkenc/float_histogram.go`, `histogram_meta.go` and `varbit.go`. Histograms of whole numbers
//! are sent in this form, too: readers make floats of them anyway. All histograms of a chunk have the same
//! layout; a new one begins a new chunk, as does a stale marker, which has none.

use std::sync::Arc;

use saturn_model::{CounterResetHint, Histogram, Span};

use crate::remote_read::{BitStream, Chunk, put_xor};

/// `Chunk.Encoding.FLOAT_HISTOGRAM`.
const ENCODING_FLOAT_HISTOGRAM: i32 = 3;
/// Histograms of one chunk.
const CHUNK_SAMPLES_MAX: usize = 120;

/// The histograms as chunks.
pub fn histogram_chunks(timestamps: &[i64], histograms: &[Arc<Histogram>]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < histograms.len() {
        let same = |other: &&Arc<Histogram>| have_same_layout(&histograms[at], other);
        let len = histograms[at..].iter().take(CHUNK_SAMPLES_MAX).take_while(same).count();
        let (timestamps, histograms) = (&timestamps[at..at + len], &histograms[at..at + len]);
        chunks.push(Chunk {
            min_time_ms: timestamps[0],
            max_time_ms: timestamps[len - 1],
            encoding: ENCODING_FLOAT_HISTOGRAM,
            data: encode(timestamps, histograms),
        });
        at += len;
    }
    chunks
}

fn have_same_layout(a: &Histogram, b: &Histogram) -> bool {
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    // What one chunk says of resets is said of all its histograms.
    let explicit = |h: &Histogram| h.hint == CounterResetHint::Reset;
    a.is_stale() == b.is_stale()
        && a.hint == b.hint
        && (std::ptr::eq(a, b) || !explicit(b))
        && a.schema == b.schema
        && a.zero_threshold.to_bits() == b.zero_threshold.to_bits()
        && a.positive.spans() == b.positive.spans()
        && a.negative.spans() == b.negative.spans()
        && bits(&a.custom_values) == bits(&b.custom_values)
}

/// Numbers of a histogram, in the order of a chunk.
fn numbers(histogram: &Histogram) -> impl Iterator<Item = f64> {
    let buckets = histogram.positive.counts().iter().chain(histogram.negative.counts()).copied();
    [histogram.count, histogram.zero_count, histogram.sum].into_iter().chain(buckets)
}

fn encode(timestamps: &[i64], histograms: &[Arc<Histogram>]) -> Vec<u8> {
    let count = u16::try_from(histograms.len()).expect("a chunk has at most 120 histograms");
    let first = &histograms[0];
    let header = match first.hint {
        CounterResetHint::Unknown => 0b00,
        CounterResetHint::NotReset => 0b01,
        CounterResetHint::Reset => 0b10,
        CounterResetHint::Gauge => 0b11,
    };
    let mut stream = BitStream { bytes: count.to_be_bytes().to_vec(), free: 0 };
    stream.put(header << 6, 8);
    put_layout(&mut stream, first);
    put_varbit_int(&mut stream, timestamps[0]);
    let mut last: Vec<u64> = numbers(first).map(f64::to_bits).collect();
    last.iter().for_each(|bits| stream.put(*bits, 64));
    let mut windows = vec![None; last.len()];
    let mut delta = 0_i64;
    for (at, histogram) in histograms.iter().enumerate().skip(1) {
        let new_delta = timestamps[at].wrapping_sub(timestamps[at - 1]);
        match at {
            1 => put_varbit_uint(&mut stream, new_delta.cast_unsigned()),
            _ => put_varbit_int(&mut stream, new_delta.wrapping_sub(delta)),
        }
        delta = new_delta;
        for ((number, last), window) in numbers(histogram).zip(&mut last).zip(&mut windows) {
            put_xor(&mut stream, *last ^ number.to_bits(), window);
            *last = number.to_bits();
        }
    }
    stream.bytes
}

fn put_layout(stream: &mut BitStream, histogram: &Histogram) {
    put_zero_threshold(stream, histogram.zero_threshold);
    put_varbit_int(stream, i64::from(histogram.schema));
    for side in [&histogram.positive, &histogram.negative] {
        put_varbit_uint(stream, side.spans().len() as u64);
        for Span { offset, length } in side.spans() {
            put_varbit_uint(stream, u64::from(*length));
            put_varbit_int(stream, i64::from(*offset));
        }
    }
    if histogram.uses_custom_buckets() {
        put_varbit_uint(stream, histogram.custom_values.len() as u64);
        for bound in histogram.custom_values.iter() {
            // The form for bounds that are not whole thousandths holds all others, too.
            stream.put(0, 1);
            stream.put(bound.to_bits(), 64);
        }
    }
}

/// 0 is the byte 0; powers of two from 2^-243 to 2^10 are the bytes 1 to 254; else 255 and the bits.
fn put_zero_threshold(stream: &mut BitStream, threshold: f64) {
    if threshold.to_bits() == 0 {
        return stream.put(0, 8);
    }
    let power =
        (-243_i32..=10).position(|exponent| f64::from(exponent).exp2().to_bits() == threshold.to_bits());
    match power {
        Some(at) => stream.put(at as u64 + 1, 8),
        None => {
            stream.put(255, 8);
            stream.put(threshold.to_bits(), 64);
        }
    }
}

/// Sizes of numbers in bits; each is announced by as many ones as its place here, plus one, and a zero.
const SIZES: [u32; 7] = [3, 6, 9, 12, 18, 25, 56];

fn put_varbit_int(stream: &mut BitStream, value: i64) {
    let fits = |bits: u32| -((1_i64 << (bits - 1)) - 1) <= value && value <= 1_i64 << (bits - 1);
    put_varbit(stream, value.cast_unsigned(), fits);
}

fn put_varbit_uint(stream: &mut BitStream, value: u64) {
    put_varbit(stream, value, |bits| value >> bits == 0);
}

fn put_varbit(stream: &mut BitStream, value: u64, fits: impl Fn(u32) -> bool) {
    if value == 0 {
        return stream.put(0, 1);
    }
    for (bits, ones) in SIZES.into_iter().zip(1_u32..) {
        if fits(bits) {
            stream.put((1 << (ones + 1)) - 2, ones + 1);
            return stream.put(value, bits);
        }
    }
    stream.put(0xff, 8);
    stream.put(value, 64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use saturn_model::{Buckets, CUSTOM_BUCKETS_SCHEMA, STALE_NAN_BITS};

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

        /// The number and its size in bits.
        fn varbit(&mut self) -> (u64, u32) {
            let ones = (0..8).take_while(|_| self.take(1) == 1).count();
            let bits = [0, 3, 6, 9, 12, 18, 25, 56, 64][ones];
            (self.take(bits), bits)
        }

        fn uint(&mut self) -> u64 {
            self.varbit().0
        }

        fn int(&mut self) -> i64 {
            match self.varbit() {
                (value, bits @ 1..64) if value > 1 << (bits - 1) => value.cast_signed() - (1 << bits),
                (value, _) => value.cast_signed(),
            }
        }

        fn double(&mut self) -> f64 {
            f64::from_bits(self.take(64))
        }

        fn xor(&mut self, window: &mut (u32, u32)) -> u64 {
            if self.take(1) == 0 {
                return 0;
            }
            if self.take(1) == 1 {
                let leading = u32::try_from(self.take(5)).expect("small");
                let significant = u32::try_from(self.take(6)).expect("small");
                let significant = if significant == 0 { 64 } else { significant };
                *window = (leading, 64 - leading - significant);
            }
            self.take(64 - window.0 - window.1) << window.1
        }
    }

    /// A reader of the format, written from its description.
    fn decode(chunk: &[u8]) -> Vec<(i64, Histogram)> {
        let count = u16::from_be_bytes([chunk[0], chunk[1]]);
        let mut reader = BitReader { bytes: chunk, at: 24 };
        let hints = [
            CounterResetHint::Unknown,
            CounterResetHint::NotReset,
            CounterResetHint::Reset,
            CounterResetHint::Gauge,
        ];
        let zero_threshold = match reader.take(8) {
            0 => 0.0,
            255 => reader.double(),
            byte => (f64::from(u8::try_from(byte).expect("a byte")) - 244.0).exp2(),
        };
        let schema = i32::try_from(reader.int()).expect("a schema");
        let mut side = || {
            let span = |reader: &mut BitReader<'_>| {
                let length = u32::try_from(reader.uint()).expect("a length");
                Span { length, offset: i32::try_from(reader.int()).expect("an offset") }
            };
            (0..reader.uint()).map(|_| span(&mut reader)).collect::<Vec<_>>()
        };
        let (positive, negative) = (side(), side());
        let mut custom_values = Vec::new();
        if schema == CUSTOM_BUCKETS_SCHEMA {
            for _ in 0..reader.uint() {
                assert_eq!(reader.take(1), 0);
                custom_values.push(reader.double());
            }
        }
        let buckets = |spans: &[Span]| spans.iter().map(|span| span.length as usize).sum::<usize>();
        let mut numbers = vec![0_u64; 3 + buckets(&positive) + buckets(&negative)];
        let mut windows = vec![(0, 0); numbers.len()];
        let (mut time, mut delta) = (0_i64, 0_i64);
        let mut out = Vec::new();
        for at in 0..count {
            match at {
                0 => time = reader.int(),
                1 => delta = reader.uint().cast_signed(),
                _ => delta += reader.int(),
            }
            time += delta;
            for (number, window) in numbers.iter_mut().zip(&mut windows) {
                *number ^= if at == 0 { reader.take(64) } else { reader.xor(window) };
            }
            let doubles: Vec<f64> = numbers.iter().map(|bits| f64::from_bits(*bits)).collect();
            let (of_positive, of_negative) = doubles[3..].split_at(buckets(&positive));
            let make = |spans: &[Span], counts: &[f64]| Buckets::new(spans.to_vec(), counts.to_vec());
            let histogram = Histogram {
                hint: hints[usize::from(chunk[2] >> 6)],
                schema,
                zero_threshold,
                count: doubles[0],
                zero_count: doubles[1],
                sum: doubles[2],
                positive: make(&positive, of_positive).expect("they fit"),
                negative: make(&negative, of_negative).expect("they fit"),
                custom_values: custom_values.clone().into(),
            };
            out.push((time, histogram));
        }
        out
    }

    #[test]
    fn chunks_hold_every_histogram() {
        let mut samples = Vec::new();
        for at in 0..300_i32 {
            let count = f64::from(at);
            let mut histogram = Histogram {
                schema: 3,
                zero_threshold: (-128_f64).exp2(),
                zero_count: 1.0,
                count: count * 3.0,
                sum: count / 3.0,
                positive: Buckets::from_indexed([(-7, count), (at / 100, count), (40, count)]),
                negative: Buckets::from_indexed([(2, 0.5)]),
                ..Histogram::default()
            };
            match at {
                50 => histogram = Histogram { sum: f64::from_bits(STALE_NAN_BITS), ..Histogram::default() },
                60..70 => {
                    histogram.schema = CUSTOM_BUCKETS_SCHEMA;
                    histogram.zero_threshold = 0.3;
                    histogram.custom_values = Arc::from([0.001, 1e300]);
                }
                80 | 81 => histogram.hint = CounterResetHint::Reset,
                90..95 => histogram.hint = CounterResetHint::Gauge,
                _ => {}
            }
            let time = 1_700_000_000_000 + i64::from(at) * 15_000 + i64::from(at % 7);
            samples.push((time, Arc::new(histogram)));
        }
        let (timestamps, histograms): (Vec<i64>, Vec<Arc<Histogram>>) = samples.iter().cloned().unzip();
        let chunks = histogram_chunks(&timestamps, &histograms);
        assert!(chunks.len() > 7);
        let bytes = |histogram: &Histogram| {
            let mut bytes = Vec::new();
            histogram.append_bytes(&mut bytes);
            bytes
        };
        let decoded: Vec<_> = chunks.iter().flat_map(|chunk| decode(&chunk.data)).collect();
        assert_eq!(decoded.len(), samples.len());
        for ((time, got), (want_time, want)) in decoded.iter().zip(&samples) {
            assert_eq!((time, bytes(got)), (want_time, bytes(want)));
        }
    }

    #[test]
    fn numbers_have_the_bits_of_prometheus() {
        let bits = |put: &dyn Fn(&mut BitStream)| {
            let mut stream = BitStream::default();
            put(&mut stream);
            (stream.bytes.clone(), stream.free)
        };
        // `0b10<<3 | 4` in 5 bits; `0b110<<6 | 5` in 9; 0b11111111 and 64 bits.
        assert_eq!(bits(&|s| put_varbit_int(s, 4)), (vec![0b1010_0000], 3));
        assert_eq!(bits(&|s| put_varbit_int(s, 5)), (vec![0b1100_0010, 0b1000_0000], 7));
        assert_eq!(bits(&|s| put_varbit_int(s, -3)), (vec![0b1010_1000], 3));
        assert_eq!(bits(&|s| put_varbit_uint(s, 7)), (vec![0b1011_1000], 3));
        assert_eq!(bits(&|s| put_varbit_uint(s, 0)), (vec![0], 7));
        assert_eq!(bits(&|s| put_varbit_uint(s, u64::MAX)).0, vec![0xff; 9]);
        assert_eq!(bits(&|s| put_zero_threshold(s, (-128_f64).exp2())).0, [116]);
    }
}
