//! The messages of exemplars and of metadata in remote-write. prost decodes them: they are few beside samples.
//!
//! Source: `prompb/types.proto` of Prometheus (`Exemplar`, `MetricMetadata`).

use prost::Message;
use saturn_model::{Exemplar, InvalidLabels, Labels, MetricMetadata, MetricType, TimestampMs};

/// `prometheus.Label`
#[derive(Clone, PartialEq, Message)]
pub struct PbLabel {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `prometheus.Exemplar`
#[derive(Clone, PartialEq, Message)]
pub struct PbExemplar {
    /// What names the event.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<PbLabel>,
    /// What was observed.
    #[prost(double, tag = "2")]
    pub value: f64,
    /// Milliseconds.
    #[prost(int64, tag = "3")]
    pub timestamp: i64,
}

/// `prometheus.MetricMetadata`
#[derive(Clone, PartialEq, Message)]
pub struct PbMetadata {
    /// See [`MetricType`].
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// Of the family, without suffixes.
    #[prost(string, tag = "2")]
    pub metric_family_name: String,
    /// In words.
    #[prost(string, tag = "4")]
    pub help: String,
    /// Such as `seconds`.
    #[prost(string, tag = "5")]
    pub unit: String,
}

impl PbExemplar {
    /// The message of an exemplar.
    pub fn of(exemplar: &Exemplar) -> Self {
        let label = |(name, value): (&str, &str)| PbLabel { name: name.to_owned(), value: value.to_owned() };
        let labels = exemplar.labels.iter().map(label).collect();
        Self { labels, value: exemplar.value, timestamp: exemplar.timestamp.0 }
    }

    /// The exemplar.
    ///
    /// # Errors
    /// Its labels are no label set.
    pub fn to_model(&self) -> Result<Exemplar, InvalidLabels> {
        let pairs = self.labels.iter().map(|label| (label.name.as_str(), label.value.as_str()));
        let labels = Labels::from_pairs(pairs)?;
        Ok(Exemplar { timestamp: TimestampMs(self.timestamp), value: self.value, labels })
    }
}

impl PbMetadata {
    /// The message of metadata.
    pub fn of(metadata: &MetricMetadata) -> Self {
        Self {
            kind: i32::from(metadata.kind.number()),
            metric_family_name: metadata.metric.clone(),
            help: metadata.help.clone(),
            unit: metadata.unit.clone(),
        }
    }

    /// The metadata.
    pub fn into_model(self) -> MetricMetadata {
        let kind = u64::try_from(self.kind).map_or(MetricType::Unknown, MetricType::from_number);
        MetricMetadata { metric: self.metric_family_name, kind, help: self.help, unit: self.unit }
    }
}
