//! Exemplars: single events, such as traces, that stand for what a series counts.

use std::cmp::Ordering;

use crate::{Labels, TimestampMs};

/// Most characters of an exemplar's label names and values together (OpenMetrics' number).
const LABEL_CHARACTERS_MAX: usize = 128;

/// One exemplar of a series. Ordered by time, then by value and labels, so that a set of them is the same wherever
/// it was put together.
#[derive(Clone, Debug)]
pub struct Exemplar {
    /// When it was observed.
    pub timestamp: TimestampMs,
    /// What was observed.
    pub value: f64,
    /// What names the event, such as a trace's id.
    pub labels: Labels,
}

/// The exemplars of one series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesExemplars {
    /// The series.
    pub labels: Labels,
    /// Ascending, each once.
    pub exemplars: Vec<Exemplar>,
}

impl Exemplar {
    /// Whether its labels are longer than an exemplar's may be.
    pub fn is_too_long(&self) -> bool {
        let characters =
            |(name, value): (&str, &str)| name.chars().count().saturating_add(value.chars().count());
        self.labels.iter().map(characters).sum::<usize>() > LABEL_CHARACTERS_MAX
    }

    /// Roughly how many bytes it takes.
    pub fn size_bytes(&self) -> usize {
        24 + self.labels.as_encoded().len()
    }
}

impl Ord for Exemplar {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_time = self.timestamp.cmp(&other.timestamp);
        by_time
            .then_with(|| self.value.total_cmp(&other.value))
            .then_with(|| self.labels.as_encoded().cmp(other.labels.as_encoded()))
    }
}

impl PartialOrd for Exemplar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Exemplar {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Exemplar {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_that_of_names_and_values_in_characters() {
        let exemplar = |id: &str| Exemplar {
            timestamp: TimestampMs(1),
            value: f64::NAN,
            labels: Labels::from_pairs([("trace_id", id)]).expect("valid"),
        };
        assert!(!exemplar(&"ä".repeat(120)).is_too_long());
        assert!(exemplar(&"a".repeat(121)).is_too_long());
        assert_eq!(exemplar("a"), exemplar("a"));
        assert!(exemplar("a") < exemplar("b"));
    }
}
