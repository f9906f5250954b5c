//! What a writer sent and what became of it, and the check of the database against it.
//!
//! Every value says who sent it and when: the writer's number and a sequence number in one integer that
//! a float holds exactly. So a sample that comes back wrong tells where it came from.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use crate::answers::{timestamp_ms, value};
use crate::{Answer, Endpoint};

/// The metric that writers write.
pub(crate) const WRITER_METRIC: &str = "saturn_test_writer_sample";

/// Bits of a value that hold the sequence number; the writer's number is above. Together below 2^53.
const SEQUENCE_BITS: u32 = 32;

/// Findings that an error shows of each kind.
const SHOWN_MAX: usize = 5;

/// What the writer knows of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The answer was 2xx: the sample must be there.
    Acked,
    /// There was no answer, or an error: the sample may be there.
    Unknown,
    /// No byte of it was sent: the sample must not be there.
    NotSent,
}

/// One sample that a writer made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) lane: u32,
    pub(crate) timestamp_ms: i64,
    pub(crate) sequence: u32,
    pub(crate) outcome: Outcome,
}

/// Everything that one writer made.
#[derive(Debug, Clone)]
pub struct History {
    writer: u32,
    sent: Vec<Sent>,
}

/// The database compared with a history. Each list holds one text a finding.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acked, and not there.
    pub missing: Vec<String>,
    /// There, with another value than was sent.
    pub changed: Vec<String>,
    /// There, and never sent.
    pub phantom: Vec<String>,
}

impl Verdict {
    /// Fails when there is a finding.
    pub fn clean(&self) -> Result<()> {
        let kinds =
            [("acked but missing", &self.missing), ("changed", &self.changed), ("never sent", &self.phantom)];
        let texts = kinds.iter().filter(|(_, list)| !list.is_empty()).map(|(kind, list)| {
            format!(
                "{} samples {kind}, among them {}",
                list.len(),
                list[..list.len().min(SHOWN_MAX)].join("; ")
            )
        });
        let text = texts.collect::<Vec<_>>().join("\n");
        ensure!(text.is_empty(), "{text}");
        Ok(())
    }
}

/// The value of a sample.
pub(crate) fn traceable_value(writer: u32, sequence: u32) -> f64 {
    (u64::from(writer) << SEQUENCE_BITS | u64::from(sequence)) as f64
}

impl History {
    pub(crate) fn new(writer: u32, sent: Vec<Sent>) -> Self {
        Self { writer, sent }
    }

    /// How many samples have this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.sent.iter().filter(|sent| sent.outcome == outcome).count()
    }

    /// Reads everything of this writer through `endpoint` and compares; the answer must be complete.
    pub async fn check(&self, endpoint: &Endpoint) -> Result<()> {
        let answer = self.read(endpoint).await?.complete()?;
        let verdict = self.judge(&found_samples(&answer)?);
        verdict.clean().with_context(|| format!("writer {} through {}", self.writer, endpoint.url()))
    }

    async fn read(&self, endpoint: &Endpoint) -> Result<Answer> {
        let times = || self.sent.iter().map(|sent| sent.timestamp_ms);
        let (Some(first_ms), Some(last_ms)) = (times().min(), times().max()) else {
            anyhow::bail!("the writer sent nothing");
        };
        // Whole seconds, with room at both ends: the window is open on one side.
        let range_seconds = (last_ms - first_ms) / 1000 + 3;
        let query = format!("{WRITER_METRIC}{{writer=\"{}\"}}[{range_seconds}s]", self.writer);
        endpoint.query(&query, last_ms + 1000).await
    }

    /// Compares with what was found, by lane and time.
    fn judge(&self, found: &HashMap<(u32, i64), f64>) -> Verdict {
        let mut verdict = Verdict::default();
        let mut left = found.clone();
        for sent in &self.sent {
            let key = (sent.lane, sent.timestamp_ms);
            let wanted = traceable_value(self.writer, sent.sequence);
            match (left.remove(&key), sent.outcome) {
                (None, Outcome::Acked) => verdict.missing.push(format!("{sent:?}")),
                (None, _) => {}
                (Some(_), Outcome::NotSent) => verdict.phantom.push(format!("{sent:?}")),
                (Some(got), _) if got != wanted => {
                    verdict.changed.push(format!("{sent:?}: want {wanted}, got {got}"))
                }
                (Some(_), _) => {}
            }
        }
        verdict
            .phantom
            .extend(left.iter().map(|((lane, time), got)| format!("lane {lane} at {time}: {got}")));
        verdict
    }
}

/// The samples of an answer, by lane and time.
fn found_samples(answer: &Answer) -> Result<HashMap<(u32, i64), f64>> {
    let mut found = HashMap::new();
    for series in answer.series() {
        let lane: u32 = series["metric"]["lane"].as_str().context("no label `lane`")?.parse()?;
        for point in series["values"].as_array().context("no samples of a series")? {
            let twice = found.insert((lane, timestamp_ms(point)?), value(point)?);
            ensure!(twice.is_none(), "lane {lane} has {point} twice");
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(lane: u32, sequence: u32, outcome: Outcome) -> Sent {
        Sent { lane, timestamp_ms: 1000 + i64::from(sequence), sequence, outcome }
    }

    #[test]
    fn values_say_who_sent_them_and_are_exact() {
        let value = traceable_value((1 << 20) - 1, u32::MAX);
        assert!(value < 2f64.powi(53));
        assert_eq!(value as u64 & u64::from(u32::MAX), u64::from(u32::MAX));
        assert_eq!(value as u64 >> 32, (1 << 20) - 1);
    }

    #[test]
    fn a_planted_fault_of_each_kind_is_found() {
        let sent_samples = vec![
            sent(0, 1, Outcome::Acked),
            sent(1, 2, Outcome::Unknown),
            sent(0, 3, Outcome::NotSent),
            sent(1, 4, Outcome::Acked),
        ];
        let history = History::new(7, sent_samples);
        assert_eq!(history.count(Outcome::Acked), 2);
        let right = HashMap::from([((0, 1001), traceable_value(7, 1)), ((1, 1004), traceable_value(7, 4))]);
        history.judge(&right).clean().expect("the unknown one may be missing");

        let mut with_unknown = right.clone();
        with_unknown.insert((1, 1002), traceable_value(7, 2));
        history.judge(&with_unknown).clean().expect("the unknown one may be there");

        let mut lost = right.clone();
        lost.remove(&(0, 1001));
        assert_eq!(history.judge(&lost).missing.len(), 1);
        let mut changed = right.clone();
        changed.insert((0, 1001), 1.0);
        assert_eq!(history.judge(&changed).changed.len(), 1);
        for key in [(0, 1003), (5, 1001), (0, 999)] {
            let mut more = right.clone();
            more.insert(key, traceable_value(7, 3));
            assert_eq!(history.judge(&more).phantom.len(), 1, "{key:?}");
        }
    }

    #[test]
    fn samples_are_read_from_a_matrix() -> Result<()> {
        let text = r#"{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"lane":"3"},"values":[[1.001,"5"],[2,"6"]]}]}}"#;
        let found = found_samples(&Answer::parse(text)?)?;
        assert_eq!(found, HashMap::from([((3, 1001), 5.0), ((3, 2000), 6.0)]));
        Ok(())
    }
}
