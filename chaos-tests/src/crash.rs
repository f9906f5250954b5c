//! The load of the crash tests: samples that can be checked one by one, the lines that a writer says about them,
//! and the check of a data directory against what was said.
//!
//! Every sample follows from its writer and its number alone: series, time and value. So whoever finds a sample
//! knows whether it is the right one, and whoever knows how far a writer was acknowledged knows all that must be
//! there. A writer process (`storage-crash-writer`) drives the storage engine itself and says what it does, one line each,
//! before and after; the lines outlive the disk.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prometheus_client::registry::Registry;
use saturn_model::{
    Fingerprint, Labels, MatchOp, Matcher, Selection, ShardId, TenantId, TimestampMs, WINDOW_MS,
};
use saturn_storage::{Engine, EngineOptions, Retention, StepHook};

/// Writers at the same time, so that one fdatasync covers several appends.
pub const WRITERS: u32 = 3;
/// Samples of one append.
pub const BATCH: u64 = 50;
/// Series that a writer writes at the same time.
const LANES: u64 = 40;
/// This lane's samples are deleted from time to time.
const DELETED_LANE: u64 = LANES - 1;
/// Time between two samples of a lane.
const STEP_MS: i64 = 291_000;
/// A lane's series are replaced by new ones after so many samples.
const SERIES_LIFE: u64 = 100;
const SHARDS: u16 = 4;
/// Windows that samples of the first tenant are kept; the second tenant's are kept half as long.
const WINDOWS_KEPT: i64 = 6;

/// One sample of the load.
#[derive(Clone, Debug, PartialEq)]
pub struct CrashSample {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its series.
    pub labels: Labels,
    /// Its time in milliseconds.
    pub timestamp: i64,
    /// Its value; all bits count.
    pub value: f64,
}

impl CrashSample {
    /// Sample `number` of a writer.
    pub fn of(writer: u32, number: u64) -> Self {
        let (lane, nth) = (number % LANES, number / LANES);
        let texts = [writer.to_string(), lane.to_string(), (nth / SERIES_LIFE).to_string()];
        let pairs =
            [("__name__", "crash"), ("writer", &*texts[0]), ("lane", &*texts[1]), ("life", &*texts[2])];
        let labels = Labels::from_pairs(pairs).expect("plain names and values");
        Self { tenant: tenant_of(writer), labels, timestamp: time(lane, nth), value: value(writer, number) }
    }

    /// Its identity.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.tenant, self.labels.as_encoded())
    }

    /// Its shard.
    pub fn shard(&self) -> ShardId {
        self.fingerprint().shard(SHARDS)
    }
}

/// Two tenants that share shards and windows, and are kept for different times.
fn tenant_of(writer: u32) -> TenantId {
    TenantId::new(if writer.is_multiple_of(2) { "crash-long" } else { "crash-short" }).expect("a plain name")
}

/// Even lanes come backwards in groups of four: out of order, as from a sender that retries.
fn time(lane: u64, nth: u64) -> i64 {
    let place = if lane.is_multiple_of(2) { nth ^ 3 } else { nth };
    i64::try_from(place).expect("small") * STEP_MS + i64::try_from(lane).expect("small")
}

/// The number of the sample of `lane` at a time.
fn number(lane: u64, timestamp: i64) -> Option<u64> {
    let place = u64::try_from(timestamp.checked_sub(i64::try_from(lane).ok()?)?).ok()?;
    let step = STEP_MS.unsigned_abs();
    if !place.is_multiple_of(step) {
        return None;
    }
    let place = place / step;
    Some((if lane.is_multiple_of(2) { place ^ 3 } else { place }) * LANES + lane)
}

/// Counters, and in every fifth lane all bits at random.
fn value(writer: u32, number: u64) -> f64 {
    if !(number % LANES).is_multiple_of(5) {
        return f64::from(writer) * 1e9 + number as f64;
    }
    let mut z = (number << 8 | u64::from(writer)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from_bits(z ^ (z >> 31))
}

/// What writer `writer` deletes when it has sent the samples below `number`.
pub fn deletion(writer: u32, number: u64) -> Selection {
    let lane = Matcher::new("lane", MatchOp::Equal, &DELETED_LANE.to_string()).expect("valid");
    let own = Matcher::new("writer", MatchOp::Equal, &writer.to_string()).expect("valid");
    let end = TimestampMs(time(DELETED_LANE, number / LANES));
    Selection { tenant: tenant_of(writer), matchers: vec![lane, own], start: TimestampMs(i64::MIN), end }
}

/// The clock that maintenance is told when the slowest writer has sent the samples below `number`.
pub fn clock(number: u64) -> i64 {
    time(1, number / LANES)
}

/// The engine's options of the crash tests: everything small, so that everything happens often.
pub fn crash_options(dir: &Path, steps: StepHook) -> EngineOptions {
    let kept = |windows: i64| Some(Duration::from_millis((windows * WINDOW_MS).unsigned_abs()));
    let retention =
        Retention { default: kept(WINDOWS_KEPT), tenants: [(tenant_of(1), kept(WINDOWS_KEPT / 2))].into() };
    EngineOptions {
        wal_segment_bytes: 32 << 10,
        // The load has a clock of its own.
        maintenance_interval: Duration::from_secs(86_400),
        retention,
        reserve_bytes: 0,
        steps,
        ..EngineOptions::new(dir)
    }
}

/// What a writer process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The engine is open.
    Open,
    /// The writer is about to append its samples below this number.
    Sending(u32, u64),
    /// The writer's samples below this number are acknowledged.
    Acked(u32, u64),
    /// The writer is about to delete, having sent its samples below this number.
    Deleting(u32, u64),
    /// It is done.
    Deleted(u32, u64),
    /// Maintenance begins with this clock.
    Maintaining(i64),
    /// This step was reached, and is not left.
    Reached(String),
    /// The engine refused something.
    Failed(String),
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Sending(writer, number) => write!(f, "sending {writer} {number}"),
            Self::Acked(writer, number) => write!(f, "acked {writer} {number}"),
            Self::Deleting(writer, number) => write!(f, "deleting {writer} {number}"),
            Self::Deleted(writer, number) => write!(f, "deleted {writer} {number}"),
            Self::Maintaining(clock) => write!(f, "maintaining {clock}"),
            Self::Reached(step) => write!(f, "reached {step}"),
            Self::Failed(text) => write!(f, "failed {}", text.replace('\n', " ")),
        }
    }
}

impl FromStr for Said {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let pair = || -> Result<(u32, u64)> {
            let (writer, number) = rest.split_once(' ').context("want two numbers")?;
            Ok((writer.parse()?, number.parse()?))
        };
        Ok(match word {
            "open" => Self::Open,
            "sending" => pair().map(|(writer, number)| Self::Sending(writer, number))?,
            "acked" => pair().map(|(writer, number)| Self::Acked(writer, number))?,
            "deleting" => pair().map(|(writer, number)| Self::Deleting(writer, number))?,
            "deleted" => pair().map(|(writer, number)| Self::Deleted(writer, number))?,
            "maintaining" => Self::Maintaining(rest.parse()?),
            "reached" => Self::Reached(rest.to_owned()),
            "failed" => Self::Failed(rest.to_owned()),
            _ => bail!("a writer said {line:?}"),
        })
    }
}

/// Everything that was said about a data directory so far.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Per writer: acknowledged numbers, as ranges.
    acked: [Vec<std::ops::Range<u64>>; WRITERS as usize],
    /// Per writer: numbers below were perhaps sent.
    sent: [u64; WRITERS as usize],
    /// Per writer: samples of the deleted lane with numbers below may be gone; and those below the second must be.
    deleting: [u64; WRITERS as usize],
    deleted: [u64; WRITERS as usize],
    clock: i64,
}

/// What a check found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Samples that had to be there, and were.
    pub kept: u64,
    /// Samples that were there and did not have to be: not acknowledged, or not yet dropped.
    pub other: u64,
}

impl Told {
    /// Takes note.
    pub fn hear(&mut self, said: &Said) {
        match *said {
            Said::Sending(writer, number) => self.sent[writer as usize] = number,
            Said::Acked(writer, number) => {
                let ranges = &mut self.acked[writer as usize];
                match ranges.last_mut() {
                    Some(last) if last.end + BATCH == number => last.end = number,
                    _ => ranges.push(number - BATCH..number),
                }
            }
            Said::Deleting(writer, number) => self.deleting[writer as usize] = number,
            Said::Deleted(writer, number) => self.deleted[writer as usize] = number,
            Said::Maintaining(clock) => self.clock = self.clock.max(clock),
            Said::Open | Said::Reached(_) | Said::Failed(_) => {}
        }
    }

    /// Where each writer goes on.
    pub fn next(&self) -> [u64; WRITERS as usize] {
        self.sent
    }

    /// How many samples are acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked.iter().flatten().map(|range| range.end - range.start).sum()
    }

    /// Whether a sample must be there.
    fn is_due(&self, writer: u32, number: u64) -> bool {
        let kept = if writer.is_multiple_of(2) { WINDOWS_KEPT } else { WINDOWS_KEPT / 2 };
        let sample_time = time(number % LANES, number / LANES);
        let window_end = (sample_time.div_euclid(WINDOW_MS) + 1) * WINDOW_MS;
        let in_time = window_end > self.clock - kept * WINDOW_MS;
        in_time && !(number % LANES == DELETED_LANE && number < self.deleting[writer as usize])
    }

    /// Opens the data directory and compares.
    ///
    /// # Errors
    /// Names the first sample that is missing, wrong, deleted, or was never sent.
    pub fn check(&self, dir: &Path) -> Result<Found> {
        let engine = Engine::open(crash_options(dir, StepHook::default()), &mut Registry::default());
        let engine = engine.context("the data directory does not open after a power cut")?;
        let mut there: BTreeMap<(u32, u64), u64> = BTreeMap::new();
        for (shard, tenant) in (0..SHARDS).flat_map(|shard| [(shard, 0), (shard, 1)]) {
            let tenant = tenant_of(tenant);
            let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
            let selection = Selection { tenant, matchers: Vec::new(), start, end };
            for series in engine.select(ShardId(shard), &selection, usize::MAX)? {
                let label = |name: &str| series.labels.get(name).and_then(|text| text.parse::<u64>().ok());
                let named = label("writer").zip(label("lane")).context("a series that nobody wrote")?;
                let (writer, lane) = (u32::try_from(named.0)?, named.1);
                for (timestamp, value) in series.timestamps.iter().zip(&series.values) {
                    let number = number(lane, *timestamp)
                        .with_context(|| format!("nobody wrote {} at {timestamp}", series.labels))?;
                    let want = CrashSample::of(writer, number);
                    ensure!(
                        want.labels == series.labels && want.value.to_bits() == value.to_bits(),
                        "sample {number} of writer {writer} is wrong: {value} in {}, not {want:?}",
                        series.labels
                    );
                    ensure!(there.insert((writer, number), value.to_bits()).is_none(), "{number} twice");
                }
            }
        }
        engine.close().context("closing")?;
        self.compare(&there)
    }

    fn compare(&self, there: &BTreeMap<(u32, u64), u64>) -> Result<Found> {
        let mut found = Found::default();
        for (writer, number) in there.keys() {
            let at = *writer as usize;
            ensure!(*number < self.sent[at], "sample {number} of writer {writer} was never sent");
            let is_deleted = number % LANES == DELETED_LANE && *number < self.deleted[at];
            ensure!(!is_deleted, "sample {number} of writer {writer} was deleted, and is there again");
        }
        for (writer, ranges) in (0..).zip(&self.acked) {
            for number in ranges.iter().cloned().flatten().filter(|number| self.is_due(writer, *number)) {
                ensure!(
                    there.contains_key(&(writer, number)),
                    "LOST: sample {number} of writer {writer} was acknowledged and is not there"
                );
                found.kept += 1;
            }
        }
        found.other = there.len() as u64 - found.kept;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_tells_its_number() {
        for n in (0..5000).chain([1_000_000_007]) {
            assert_eq!(number(n % LANES, CrashSample::of(1, n).timestamp), Some(n));
        }
        assert_eq!(number(3, 4), None);
    }

    #[test]
    fn lines_survive_and_the_check_finds_what_is_lost_or_invented() {
        let lines = [Said::Open, Said::Sending(1, 50), Said::Acked(1, 50), Said::Maintaining(-3)];
        let mut told = Told::default();
        for said in &lines {
            assert_eq!(said.to_string().parse::<Said>().expect("parses"), *said);
            told.hear(said);
        }
        assert_eq!((told.acked(), told.next()), (50, [0, 50, 0]));
        let mut there: BTreeMap<(u32, u64), u64> = (0..50).map(|n| ((1, n), 0)).collect();
        assert_eq!(told.compare(&there).expect("all there").kept, 50);
        there.insert((1, 50), 0);
        assert!(told.compare(&there).expect_err("invented").to_string().contains("never sent"));
        there.remove(&(1, 50));
        there.remove(&(1, 7));
        assert!(told.compare(&there).expect_err("lost").to_string().contains("LOST"));
        told.hear(&Said::Deleting(1, 50));
        told.hear(&Said::Deleted(1, 50));
        there.insert((1, 7), 0);
        assert!(told.compare(&there).expect_err("deleted").to_string().contains("there again"));
    }
}
