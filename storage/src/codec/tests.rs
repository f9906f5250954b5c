//! Properties of the whole codec, the special vectors, and the golden files.

use super::*;
use proptest::prelude::*;
use saturn_model::STALE_NAN_BITS;

const EFFORTS: [Effort; 2] = [Effort::Recent, Effort::Dense];

fn special() -> Vec<f64> {
    vec![
        f64::from_bits(STALE_NAN_BITS),
        f64::NAN,
        f64::from_bits(0x7ff8_0000_dead_beef),
        f64::from_bits(0xfff0_0000_0000_0001),
        f64::INFINITY,
        f64::NEG_INFINITY,
        -0.0,
        0.0,
        f64::MIN_POSITIVE / 2.0,
        f64::from_bits(1),
        -f64::from_bits(1),
        0.1 + 0.2,
        9_007_199_254_740_992.0,
        9_007_199_254_740_994.0,
        -9_223_372_036_854_775_808.0,
        9_223_372_036_854_775_808.0,
        18_446_744_073_709_551_616.0,
        f64::MAX,
        f64::MIN,
        1e300,
        123_456_789.123_456,
    ]
}

fn any_value() -> impl Strategy<Value = f64> + Clone {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (-1000_i32..1000).prop_map(f64::from),
        (-100_000_i32..100_000).prop_map(|n| f64::from(n) / 100.0),
        proptest::sample::select(special()),
    ]
}

/// Sums of the steps, each scaled by `scale`.
fn walk(
    steps: impl Strategy<Value = i32>,
    count: usize,
    scale: fn(f64) -> f64,
) -> impl Strategy<Value = Vec<f64>> {
    (proptest::collection::vec(steps, count), any::<i32>()).prop_map(move |(steps, start)| {
        let mut sum = f64::from(start);
        let add = |step: i32| {
            sum += f64::from(step);
            scale(sum)
        };
        steps.into_iter().map(add).collect()
    })
}

/// A column of `count` values of one of the classes, some of them replaced by special ones.
pub(super) fn column(count: usize) -> impl Strategy<Value = Vec<f64>> {
    let plain = prop_oneof![
        proptest::collection::vec(any::<u64>().prop_map(f64::from_bits), count),
        proptest::collection::vec(any_value(), count),
        any_value().prop_map(move |value| vec![value; count]),
        walk(0..100, count, |sum| sum),
        walk(0..100_000, count, |sum| sum / 100.0),
        walk(-20..20, count, |sum| sum * 4096.0),
        walk(-20..20, count, |sum| sum * 0.001),
        walk(0..9, count, |sum| sum / 3.0),
        walk(prop_oneof![30 => Just(0), 1 => -1..2_i32], count, |sum| sum),
        walk(prop_oneof![30 => Just(7), 1 => Just(i32::MAX)], count, |sum| sum),
        proptest::collection::vec(any::<i64>().prop_map(|n| decimal::Scale::Divide(0).value(n)), count),
        proptest::collection::vec(0.0..1.0_f64, count),
    ];
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any_value()), 0..8);
    (plain, changes, any::<bool>()).prop_map(move |(mut values, changes, change)| {
        for (at, value) in changes.into_iter().filter(|_| change) {
            values[at.index(count)] = value;
        }
        values
    })
}

/// Ascending timestamps: scrapes with jitter and gaps, or anything.
pub(super) fn ascending(count_max: usize) -> impl Strategy<Value = Vec<i64>> {
    let scrape = prop_oneof![20 => Just(0_i64), 1 => -300_i64..300, 1 => 10_000_i64..100_000];
    let scrapes = proptest::collection::vec(scrape, 1..count_max).prop_map(|offsets| {
        let mut time = 1_700_000_000_000_i64;
        let step = |offset: i64| {
            time += 15_000 + offset;
            time
        };
        offsets.into_iter().map(step).collect::<Vec<_>>()
    });
    let sorted = |times: std::collections::BTreeSet<i64>| times.into_iter().collect::<Vec<_>>();
    prop_oneof![
        scrapes,
        proptest::collection::btree_set(any::<i64>(), 1..count_max).prop_map(sorted),
        proptest::collection::btree_set(0_i64..100_000, 1..count_max).prop_map(sorted),
    ]
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Encodes, decodes, compares, and checks the flags; returns the chunk.
fn values_survive(values: &[f64], effort: Effort) -> Vec<u8> {
    let mut scratch = Scratch::default();
    let mut chunk = Vec::new();
    encode_values(values, effort, &mut scratch, &mut chunk);
    let mut again = Vec::new();
    encode_values(values, effort, &mut scratch, &mut again);
    assert_eq!(chunk, again, "the scratch must not show");
    let mut back = vec![1.0];
    decode_values(&chunk, &mut scratch, &mut back).expect("own chunk");
    assert_eq!(bits(&back[1..]), bits(values));
    let flag = |bit: u8| chunk[0] & 1 << bit > 0;
    let stale = values.iter().any(|value| value.to_bits() == STALE_NAN_BITS);
    assert_eq!(flag(4), stale);
    let others = values.iter().any(|value| !value.is_finite() && value.to_bits() != STALE_NAN_BITS);
    assert_eq!(flag(5), others);
    let numbers: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    assert_eq!(flag(3), numbers.windows(2).any(|pair| pair[1] < pair[0]));
    chunk
}

fn timestamps_survive(timestamps: &[i64], origin: i64, effort: Effort) -> Vec<u8> {
    let mut scratch = Scratch::default();
    let mut vector = Vec::new();
    encode_timestamps(timestamps, origin, effort, &mut scratch, &mut vector);
    let mut back = vec![7];
    decode_timestamps(&vector, origin, &mut scratch, &mut back).expect("own vector");
    assert_eq!(&back[1..], timestamps);
    let (first, last) = (timestamps[0], timestamps[timestamps.len() - 1]);
    let summary = summarize_timestamps(&vector, origin).expect("own vector");
    assert_eq!((summary.count, summary.first, summary.last), (timestamps.len(), first, last));
    vector
}

proptest! {
    #[test]
    fn every_bit_of_values_comes_back(
        values in prop_oneof![8 => 1..300_usize, 1 => 1000..2600_usize].prop_flat_map(column),
    ) {
        for effort in EFFORTS {
            values_survive(&values, effort);
        }
    }

    #[test]
    fn ranges_are_what_they_are_in_the_whole(
        values in (1..3000_usize).prop_flat_map(column),
        a in any::<proptest::sample::Index>(), b in any::<proptest::sample::Index>(),
    ) {
        let (a, b) = (a.index(values.len() + 1), b.index(values.len() + 1));
        let range = a.min(b)..a.max(b);
        for effort in EFFORTS {
            let (mut chunk, mut back, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
            encode_values(&values, effort, &mut scratch, &mut chunk);
            decode_value_range(&chunk, range.clone(), &mut scratch, &mut back).expect("own chunk");
            prop_assert_eq!(bits(&back), bits(&values[range.clone()]));
        }
    }

    #[test]
    fn every_timestamp_comes_back(timestamps in ascending(2000), origin in prop_oneof![Just(0), any::<i64>()]) {
        for effort in EFFORTS {
            timestamps_survive(&timestamps, origin, effort);
        }
    }

    #[test]
    fn damaged_chunks_are_refused_or_read(
        values in prop_oneof![4 => 1..300_usize, 1 => 1000..2600_usize].prop_flat_map(column),
        at in any::<proptest::sample::Index>(), with in any::<u8>(),
    ) {
        for effort in EFFORTS {
            let (mut chunk, mut scratch) = (Vec::new(), Scratch::default());
            encode_values(&values, effort, &mut scratch, &mut chunk);
            let at = at.index(chunk.len());
            let mut back = Vec::new();
            prop_assert!(decode_values(&chunk[..at], &mut scratch, &mut back).is_none(), "cut at {}", at);
            let mut longer = chunk.clone();
            longer.push(with);
            prop_assert!(decode_values(&longer, &mut scratch, &mut Vec::new()).is_none());
            chunk[at] = with;
            let mut back = Vec::new();
            let _ = decode_values(&chunk, &mut scratch, &mut back);
            prop_assert!(back.len() <= CHUNK_SAMPLES_MAX);
            let _ = decode_value_range(&chunk, values.len() / 2..values.len(), &mut scratch, &mut back);
        }
    }

    #[test]
    fn damaged_vectors_are_refused_or_read(
        timestamps in ascending(1500), at in any::<proptest::sample::Index>(), with in any::<u8>(),
    ) {
        let (mut vector, mut scratch) = (Vec::new(), Scratch::default());
        encode_timestamps(&timestamps, 0, Effort::Dense, &mut scratch, &mut vector);
        let at = at.index(vector.len());
        prop_assert!(decode_timestamps(&vector[..at], 0, &mut scratch, &mut Vec::new()).is_none());
        vector[at] = with;
        let mut back = Vec::new();
        if decode_timestamps(&vector, 0, &mut scratch, &mut back).is_some() {
            prop_assert!(back.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(summarize_timestamps(&vector, 0).map(|summary| summary.count), Some(back.len()));
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), class in 0..6_u8) {
        let mut scratch = Scratch::default();
        let (mut values, mut timestamps) = (Vec::new(), Vec::new());
        for round in 0..2 {
            let _ = decode_values(&bytes, &mut scratch, &mut values);
            let _ = decode_value_range(&bytes, 1..600, &mut scratch, &mut values);
            let _ = decode_timestamps(&bytes, 0, &mut scratch, &mut timestamps);
            if let (0, Some(first)) = (round, bytes.first_mut()) {
                *first = FORMAT_VERSION << VERSION_SHIFT | class;
            }
        }
    }
}

/// The 13 special vectors of the design (storage.md, B).
fn special_vectors() -> Vec<Vec<f64>> {
    let stale = f64::from_bits(STALE_NAN_BITS);
    let counted = |f: fn(f64) -> f64| (0..200).map(|i| f(f64::from(i))).collect::<Vec<f64>>();
    let mut with_stale = counted(|i| i * 3.0);
    (with_stale[0], with_stale[77], with_stale[199]) = (stale, stale, stale);
    vec![
        vec![stale; 50],
        with_stale,
        vec![f64::from_bits(0x7ff8_0000_dead_beef), f64::NAN, f64::from_bits(0xfff0_0000_0000_0001), stale],
        (0..100).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect(),
        vec![f64::INFINITY, f64::NEG_INFINITY, 1.0, f64::INFINITY],
        (1..100).map(f64::from_bits).collect(),
        counted(|i| 9_007_199_254_740_992.0 + 2.0 * i),
        counted(|i| 9_223_372_036_854_775_808.0 + 4096.0 * i),
        vec![0.1 + 0.2; 100],
        counted(|i| i * 0.1),
        vec![f64::MAX, f64::MIN, f64::MIN_POSITIVE, -f64::MIN_POSITIVE, f64::EPSILON],
        counted(|i| 1.0 / (i + 3.0)),
        special(),
    ]
}

#[test]
fn special_vectors_come_back() {
    for values in special_vectors() {
        for effort in EFFORTS {
            values_survive(&values, effort);
            for value in &values {
                values_survive(&[*value], effort);
            }
        }
    }
}

#[test]
fn stale_markers_are_cheap() {
    let stale = f64::from_bits(STALE_NAN_BITS);
    let plain: Vec<f64> = (0..120).map(|i| f64::from(i * i % 50)).collect();
    let mut gone = plain.clone();
    (gone[40], gone[80]) = (stale, stale);
    let more = values_survive(&gone, Effort::Recent).len() - values_survive(&plain, Effort::Recent).len();
    assert!(more <= 5, "{more} bytes for two stale markers");
}

/// Chunks and vectors that stand for all classes, by name. Integer arithmetic only: the same everywhere.
fn golden_inputs() -> Vec<(String, Vec<f64>)> {
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(random >> 44).expect("20 bits"))
    };
    let mut sum = 0.0;
    let mut counter = |count: usize, most: f64, scale: fn(f64) -> f64| -> Vec<f64> {
        let mut step = || {
            sum += (next() % most).trunc();
            scale(sum)
        };
        (0..count).map(|_| step()).collect()
    };
    let mut inputs = vec![
        ("counter".to_owned(), counter(100, 50.0, |sum| sum)),
        ("decimals".to_owned(), counter(100, 500.0, |sum| sum / 100.0)),
        ("sparse".to_owned(), counter(200, 1.05, |sum| sum)),
        ("multiples".to_owned(), counter(50, 50.0, |sum| sum * 4096.0)),
        ("products".to_owned(), counter(50, 50.0, |sum| sum * 0.001)),
        ("thirds".to_owned(), counter(50, 9.0, |sum| sum / 3.0)),
        ("long".to_owned(), counter(1600, 30.0, |sum| sum)),
        ("long-floats".to_owned(), counter(1100, 4.0, |sum| 1.0 / (1.0 + sum % 5.0))),
    ];
    inputs.push(("constant".to_owned(), vec![42.5; 100]));
    // Steps of 1 to 128, each half as frequent as the one before: Huffman codes, in sections.
    let steps = (1..1500_u32).scan(0, |sum, i| {
        *sum += 1_u32 << i.wrapping_mul(2_654_435_761).leading_zeros().min(7);
        Some(f64::from(*sum))
    });
    inputs.push(("skewed".to_owned(), steps.collect()));
    let signs = (0..1100).map(|i| if i % 3 == 0 { -1.5e200 } else { 1.5e200 });
    inputs.push(("signs".to_owned(), signs.collect()));
    let mut patched = vec![f64::NEG_INFINITY; 2];
    patched.extend((0..98).map(|i| f64::from(i * i % 100) / 1000.0));
    patched[50] = 0.1 + 0.2;
    inputs.push(("patched".to_owned(), patched));
    for (index, values) in special_vectors().into_iter().enumerate() {
        inputs.push((format!("special-{index}"), values));
    }
    inputs
}

fn golden_vectors() -> Vec<(String, Vec<i64>)> {
    let times = |count: i64, jitter: fn(i64) -> i64| -> Vec<i64> {
        (0..count).map(|i| 1_700_000_000_123 + i * 15_000 + jitter(i)).collect()
    };
    vec![
        ("exact".to_owned(), times(120, |_| 0)),
        ("jitter".to_owned(), times(120, |i| i * 7919 % 11)),
        ("outliers".to_owned(), times(240, |i| i64::from(i % 50 == 7))),
        ("gaps".to_owned(), times(240, |i| i / 100 * 45_000)),
        ("irregular".to_owned(), times(60, |i| i * i * i * 977)),
        ("extremes".to_owned(), vec![i64::MIN, -1, 0, i64::MAX]),
        ("one".to_owned(), vec![-5]),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex");
    digits.chunks(2).map(byte).collect()
}

/// One line per golden input: kind, name, effort, the bytes, and the samples' bits as hexadecimal numbers.
fn golden_lines() -> Vec<String> {
    let mut lines = Vec::new();
    for (effort, effort_name) in [(Effort::Recent, "recent"), (Effort::Dense, "dense")] {
        for (name, values) in golden_inputs() {
            let samples: Vec<String> = values.iter().map(|value| format!("{:x}", value.to_bits())).collect();
            let chunk = hex(&values_survive(&values, effort));
            lines.push(format!("values {name} {effort_name} {chunk} {}", samples.join(",")));
        }
        for (name, timestamps) in golden_vectors() {
            let samples: Vec<String> =
                timestamps.iter().map(|t| format!("{:x}", t.cast_unsigned())).collect();
            let vector = hex(&timestamps_survive(&timestamps, 1_700_000_000_000, effort));
            lines.push(format!("timestamps {name} {effort_name} {vector} {}", samples.join(",")));
        }
    }
    lines
}

const GOLDEN: &str = include_str!("../../testdata/codec/v1.txt");

#[test]
fn golden_files_open() {
    // Chunks of version 1 are on disks: every later version must read these lines as they are.
    let mut scratch = Scratch::default();
    for line in GOLDEN.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let samples = fields[4].split(',').map(|bits| u64::from_str_radix(bits, 16).expect("hex"));
        let decoded: Vec<u64> = if fields[0] == "values" {
            let mut values = Vec::new();
            decode_values(&unhex(fields[3]), &mut scratch, &mut values).expect(line);
            bits(&values)
        } else {
            let mut timestamps = Vec::new();
            decode_timestamps(&unhex(fields[3]), 1_700_000_000_000, &mut scratch, &mut timestamps)
                .expect(line);
            timestamps.iter().map(|t| t.cast_unsigned()).collect()
        };
        assert_eq!(decoded, samples.collect::<Vec<_>>(), "{} {} {}", fields[0], fields[1], fields[2]);
    }
}

#[test]
fn bytes_are_canonical() {
    // Replicas compare segments by their bytes: equal samples must give these bytes on every machine. To
    // change them is to change the format's version; SATURN_BLESS=1 writes the file of a new one.
    let lines = golden_lines();
    if std::env::var_os("SATURN_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/codec/v1.txt");
        let head =
            "# Chunks and timestamp vectors of format version 1: kind, name, effort, bytes, samples.\n";
        std::fs::write(path, head.to_owned() + &lines.join("\n") + "\n").expect("writable testdata");
        return;
    }
    let golden: Vec<&str> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), golden.len());
    for (line, golden) in lines.iter().zip(golden) {
        assert_eq!(line, golden);
    }
}
