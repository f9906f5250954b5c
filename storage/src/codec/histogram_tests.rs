//! Chunks of native histograms: whatever they hold comes back, damage does no harm, the bytes stay, and what
//! they cost.

use std::fmt::Write as _;

use proptest::prelude::*;
use saturn_model::STALE_NAN_BITS;

use super::*;

const GOLDEN: &str = include_str!("../../testdata/codec/histograms-v1.txt");

fn encode(histograms: &[Arc<Histogram>]) -> Vec<u8> {
    let mut chunk = Vec::new();
    encode_histograms(histograms, Effort::Dense, &mut Scratch::default(), &mut chunk);
    chunk
}

fn decode(chunk: &[u8]) -> Option<Vec<Arc<Histogram>>> {
    let mut histograms = Vec::new();
    decode_histograms(chunk, &mut Scratch::default(), &mut histograms)?;
    Some(histograms)
}

/// All that tells histograms from others.
fn bytes(histograms: &[Arc<Histogram>]) -> Vec<Vec<u8>> {
    let bytes = |histogram: &Arc<Histogram>| {
        let mut bytes = Vec::new();
        histogram.append_bytes(&mut bytes);
        bytes
    };
    histograms.iter().map(bytes).collect()
}

fn any_double() -> impl Strategy<Value = f64> + Clone {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (0_u32..50).prop_map(f64::from),
        Just(-0.0),
        Just(f64::from_bits(STALE_NAN_BITS)),
        Just(f64::NAN),
    ]
}

fn any_side() -> impl Strategy<Value = Vec<Span>> {
    let span = (-3_i32..4, 0_u32..4).prop_map(|(offset, length)| Span { offset, length });
    proptest::collection::vec(span, 0..3).prop_map(|mut spans| {
        spans.iter_mut().skip(1).for_each(|span| span.offset = span.offset.abs());
        spans
    })
}

fn any_layout() -> impl Strategy<Value = Layout> {
    let hints = [
        CounterResetHint::Unknown,
        CounterResetHint::Reset,
        CounterResetHint::NotReset,
        CounterResetHint::Gauge,
    ];
    let bounds = proptest::collection::vec(any::<u64>(), 0..3);
    let hint = proptest::sample::select(hints.to_vec());
    (hint, any::<i32>(), any::<u64>(), any_side(), any_side(), bounds).prop_map(
        |(hint, schema, zero_threshold, positive, negative, bounds)| Layout {
            hint,
            schema,
            zero_threshold,
            positive,
            negative,
            bounds,
        },
    )
}

fn of_layout(
    layout: &Layout,
    sum: f64,
    count: Option<f64>,
    numbers: &mut impl Iterator<Item = f64>,
) -> Histogram {
    let mut side = |spans: &[Span]| {
        let len: u32 = spans.iter().map(|span| span.length).sum();
        let counts: Vec<f64> = numbers.by_ref().take(len as usize).collect();
        Buckets::new(spans.to_vec(), counts).expect("as many as described")
    };
    let (positive, negative) = (side(&layout.positive), side(&layout.negative));
    let mut histogram = Histogram {
        hint: layout.hint,
        schema: layout.schema,
        zero_threshold: f64::from_bits(layout.zero_threshold),
        zero_count: numbers.next().expect("endless"),
        count: 0.0,
        sum,
        positive,
        negative,
        custom_values: layout.bounds.iter().map(|bits| f64::from_bits(*bits)).collect(),
    };
    histogram.count = count.unwrap_or_else(|| sum_of_buckets(&histogram));
    histogram
}

/// A few layouts, and histograms of them: counters, or any bits at all.
fn any_histograms() -> impl Strategy<Value = Vec<Arc<Histogram>>> {
    let layouts = proptest::collection::vec(any_layout(), 1..4);
    let samples =
        proptest::collection::vec((any::<prop::sample::Index>(), any_double(), any_double()), 1..40);
    let numbers = proptest::collection::vec(any_double(), 1..30);
    (layouts, samples, numbers, any::<bool>()).prop_map(|(layouts, samples, numbers, counters)| {
        let mut total = 0_u32;
        let mut counter = std::iter::repeat_with(move || {
            total += 7;
            f64::from(total)
        });
        let mut others = numbers.into_iter().cycle();
        let of = |(layout, sum, count): (prop::sample::Index, f64, f64)| {
            let layout = &layouts[layout.index(layouts.len())];
            Arc::new(match counters {
                true => of_layout(layout, sum, None, &mut counter),
                false => of_layout(layout, sum, Some(count), &mut others),
            })
        };
        samples.into_iter().map(of).collect()
    })
}

proptest! {
    #[test]
    fn histograms_survive(histograms in any_histograms()) {
        let chunk = encode(&histograms);
        prop_assert!(is_histograms(&chunk));
        let back = decode(&chunk).expect("own chunk");
        prop_assert_eq!(bytes(&back), bytes(&histograms));
        prop_assert_eq!(encode(&back), chunk);
    }

    #[test]
    fn damage_is_refused_or_read(
        histograms in any_histograms(), at in any::<prop::sample::Index>(), with in any::<u8>(),
    ) {
        let mut chunk = encode(&histograms);
        let at = at.index(chunk.len());
        prop_assert!(decode(&chunk[..at]).is_none());
        chunk[at] = with;
        if let Some(read) = decode(&chunk) {
            prop_assert!((1..=HISTOGRAMS_MAX).contains(&read.len()));
        }
    }

    #[test]
    fn noise_never_panics(mut noise in proptest::collection::vec(any::<u8>(), 1..120)) {
        noise[0] = FORMAT_VERSION << VERSION_SHIFT | CLASS;
        let _ = decode(&noise);
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).expect("32 bits")) / f64::from(u32::MAX)
    }
}

/// What an HTTP server's latencies make of schema 3: `requests` more in each sample, log-normal around 20 ms,
/// 1 in 100 around a second, in milliseconds of whole microseconds. Buckets appear when they are first hit.
fn latencies(samples: usize, requests: usize) -> Vec<Arc<Histogram>> {
    let mut random = Random(1);
    let mut buckets: BTreeMap<i32, f64> = BTreeMap::new();
    let (mut sum_us, mut count) = (0.0, 0.0);
    let mut histograms = Vec::new();
    for _ in 0..samples {
        for _ in 0..requests {
            let normal = (0..12).map(|_| random.fraction()).sum::<f64>() - 6.0;
            let median = if random.fraction() < 0.01 { 1.0 } else { 0.02 };
            let seconds: f64 = median * (0.5 * normal).exp();
            sum_us += (seconds * 1e6).round();
            count += 1.0;
            // Bucket i ends at 2^(i / 8).
            let bound = (-200..200).find(|i| (f64::from(*i) / 8.0).exp2() >= seconds).expect("not that slow");
            *buckets.entry(bound).or_default() += 1.0;
        }
        histograms.push(Arc::new(Histogram {
            schema: 3,
            zero_threshold: 2.938_735_877_055_719e-39,
            count,
            sum: sum_us / 1e6,
            positive: Buckets::from_indexed(buckets.iter().map(|(index, count)| (*index, *count))),
            ..Histogram::default()
        }));
    }
    histograms
}

fn golden() -> Vec<(&'static str, Vec<Arc<Histogram>>)> {
    let stale = Histogram { sum: f64::from_bits(STALE_NAN_BITS), ..Histogram::default() };
    let custom = |count: f64| Histogram {
        schema: saturn_model::CUSTOM_BUCKETS_SCHEMA,
        count,
        sum: count / 4.0,
        positive: Buckets::from_indexed([(0, count - 1.5), (2, 1.5)]),
        custom_values: Arc::from([0.1, 2.5]),
        ..Histogram::default()
    };
    let gauge = Histogram {
        hint: CounterResetHint::Gauge,
        zero_threshold: 0.25,
        zero_count: 1.0,
        count: 6.0,
        sum: -3.5,
        positive: Buckets::from_indexed([(-2, 2.0)]),
        negative: Buckets::from_indexed([(1, 3.0)]),
        ..Histogram::default()
    };
    let shared = |histograms: Vec<Histogram>| histograms.into_iter().map(Arc::new).collect();
    vec![
        ("latencies", latencies(6, 3)),
        ("custom, not adding up", shared(vec![custom(3.5), Histogram { count: 5.0, ..custom(4.5) }])),
        ("gauge, then stale", shared(vec![gauge.clone(), gauge, stale])),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("text grows");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16);
    pairs.iter().map(|pair| byte(pair).expect("digits")).collect()
}

#[test]
fn the_format_is_pinned() {
    // Files written by earlier versions must stay readable: these bytes must never change.
    let mut cases = 0;
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split("; ").collect();
        let [name, chunk, samples] = fields[..] else { panic!("{line}") };
        let histogram = |text: &str| Histogram::take_bytes(&mut unhex(text).as_slice()).expect("a histogram");
        let histograms: Vec<_> = samples.split(',').map(|text| Arc::new(histogram(text))).collect();
        assert_eq!(hex(&encode(&histograms)), chunk, "{name}");
        assert_eq!(bytes(&decode(&unhex(chunk)).expect("a chunk")), bytes(&histograms), "{name}");
        cases += 1;
    }
    assert_eq!(cases, golden().len());
}

/// Prints what `testdata/codec/histograms-v1.txt` holds, for cases that are new.
#[test]
#[ignore = "prints golden lines"]
fn print_golden_histograms() {
    for (name, histograms) in golden() {
        let samples: Vec<String> = bytes(&histograms).iter().map(|bytes| hex(bytes)).collect();
        println!("{name}; {}; {}", hex(&encode(&histograms)), samples.join(","));
    }
}

#[test]
fn chunks_are_cut_by_size() {
    let small = Arc::new(Histogram::default());
    assert_eq!(next_chunk(&vec![Arc::clone(&small); 2000]), (1024, 3072));
    let buckets = (0..i32::try_from(BUCKETS_MAX).expect("small")).map(|index| (index, 0.0));
    let large = Arc::new(Histogram { positive: Buckets::from_indexed(buckets), ..Histogram::default() });
    let (len, numbers) = next_chunk(&vec![large; 200]);
    assert_eq!((len, numbers), (128, 128 * (BUCKETS_MAX + 3)));
    // The part number of a page can count the chunks of a window in milliseconds, floats included.
    let window_ms = usize::try_from(crate::keys::WINDOW_MS).expect("positive");
    assert!(u16::try_from(window_ms / len + window_ms / 8192 + 2).is_ok());
}

/// `cargo test --release -p saturn-storage histogram_bytes -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn histogram_bytes_per_sample() {
    for requests in [1, 20, 400] {
        for samples in [60, 240, 480] {
            let histograms = latencies(samples, requests);
            let chunk = encode(&histograms);
            let started = std::time::Instant::now();
            for _ in 0..20 {
                decode(&chunk).expect("own chunk");
            }
            let decoded = started.elapsed().as_nanos() / 20 / samples as u128;
            let records: usize = bytes(&histograms).iter().map(Vec::len).sum();
            let buckets = histograms[samples - 1].positive.counts().len();
            println!(
                "{requests:4} requests a sample, {samples} samples, {buckets} buckets: {} B/histogram on disk, \
                 {} B in the log, {decoded} ns to decode",
                chunk.len() / samples,
                records / samples,
            );
        }
    }
}
