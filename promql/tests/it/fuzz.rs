//! The fuzzers' bodies over the queries of our scripts, mutations of them, and random texts. Every run sees the
//! same inputs.

use std::path::Path;

use saturn_promql::fuzz;

/// Inputs of each body.
const INPUTS: usize = 20_000;

const TOKENS: &[&str] = &[
    "m",
    "n_total",
    "h_bucket",
    "sum",
    "rate",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "5m",
    "1m:10s",
    "a",
    "=",
    "!=",
    "=~",
    "\"1\"",
    "'.+'",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "bool",
    "offset",
    "@",
    "start()",
    "end()",
    "-",
    "+",
    "*",
    "/",
    "%",
    "^",
    "==",
    ">",
    "and",
    "or",
    "unless",
    "topk",
    "quantile",
    "histogram_quantile",
    "0.9",
    "1e9",
    "NaN",
    "-Inf",
    ",",
    "label_replace",
    "absent",
    "time()",
    "vector",
    "scalar",
    "step()",
    "anchored",
    "smoothed",
    "fill",
    "count_values",
    "le",
    "0x1F",
    "`",
    "\"",
    "\\",
    "\u{20ac}",
    " ",
    "\n",
    "# ",
    "1y",
    "max_over_time",
    "info",
    "atan2",
    "limitk",
    "0",
];

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

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// The queries of our own scripts, each on a line that begins with `eval`.
fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut queries = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder of scripts") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "test") {
            let text = std::fs::read_to_string(&path).expect("the script can be read");
            let evals = text.lines().filter(|line| line.starts_with("eval instant at "));
            queries.extend(evals.filter_map(|line| Some(line.splitn(5, ' ').nth(4)?.as_bytes().to_vec())));
        }
    }
    queries.sort();
    assert!(queries.len() > 100, "the corpus has only {} queries", queries.len());
    queries
}

/// A query of the corpus, whole or changed, two of them mixed, or tokens in any order.
fn input(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut text = corpus[random.below(corpus.len())].clone();
    match random.below(4) {
        0 => {
            let words = (0..random.below(24)).map(|_| TOKENS[random.below(TOKENS.len())]);
            text = words.collect::<Vec<_>>().join(" ").into_bytes();
        }
        1 => {
            let other = &corpus[random.below(corpus.len())];
            text.truncate(random.below(text.len() + 1));
            text.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
        2 => {
            for _ in 0..=random.below(3) {
                let (at, token) = (random.below(text.len() + 1), TOKENS[random.below(TOKENS.len())]);
                text.splice(at..at, token.bytes());
            }
        }
        _ => {
            for _ in 0..random.below(4) {
                let at = random.below(text.len().max(1));
                if let Some(byte) = text.get_mut(at) {
                    *byte = random.next().to_le_bytes()[0];
                }
            }
        }
    }
    text
}

#[test]
fn parser_keeps_its_promises() {
    let (corpus, mut random) = (corpus(), Random(1));
    corpus.iter().for_each(|query| fuzz::parser(query));
    for _ in 0..INPUTS {
        fuzz::parser(&input(&mut random, &corpus));
    }
}

#[test]
fn evaluator_keeps_its_promises() {
    let (corpus, mut random) = (corpus(), Random(2));
    let when = |random: &mut Random| random.next().to_le_bytes()[..4].to_vec();
    for query in &corpus {
        fuzz::evaluator(&[when(&mut random), query.clone()].concat());
    }
    for _ in 0..INPUTS {
        let query = input(&mut random, &corpus);
        fuzz::evaluator(&[when(&mut random), query].concat());
    }
}
