//! Metadata: what senders say about a metric, beside its samples.

use std::fmt;

/// What kind of metric it is (OpenMetrics' types). The numbers are those of remote-write, and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MetricType {
    /// Nobody said.
    #[default]
    Unknown = 0,
    /// A number that only grows.
    Counter = 1,
    /// A number that goes up and down.
    Gauge = 2,
    /// Counts by size.
    Histogram = 3,
    /// Counts by size that go up and down.
    GaugeHistogram = 4,
    /// Quantiles.
    Summary = 5,
    /// Always 1; the labels are what matters.
    Info = 6,
    /// Which of several states is on.
    StateSet = 7,
}

impl MetricType {
    const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Counter,
        Self::Gauge,
        Self::Histogram,
        Self::GaugeHistogram,
        Self::Summary,
        Self::Info,
        Self::StateSet,
    ];

    /// The type with this number; `Unknown` where there is none.
    pub fn from_number(number: u64) -> Self {
        usize::try_from(number).ok().and_then(|at| Self::ALL.get(at)).copied().unwrap_or_default()
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for MetricType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
        })
    }
}

/// What a sender says about a metric. Senders may disagree, so a metric may have several.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetricMetadata {
    /// The metric: its family's name, without the suffixes of a histogram's or summary's series.
    pub metric: String,
    /// Its type.
    pub kind: MetricType,
    /// What it means, in words.
    pub help: String,
    /// What it counts, such as `seconds`; often empty.
    pub unit: String,
}

impl MetricMetadata {
    /// Roughly how many bytes it takes.
    pub fn size_bytes(&self) -> usize {
        8 + self.metric.len() + self.help.len() + self.unit.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_their_numbers() {
        for (number, kind) in (0_u8..).zip(MetricType::ALL) {
            assert_eq!((kind.number(), MetricType::from_number(u64::from(number))), (number, kind));
        }
        assert_eq!(MetricType::from_number(8), MetricType::Unknown);
        assert_eq!(MetricType::GaugeHistogram.to_string(), "gaugehistogram");
    }
}
