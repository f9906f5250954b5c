//! Prometheus's JSON: envelopes, errors and results. The only place where errors become HTTP statuses.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use saturn_model::{Exemplar, Histogram, Labels};
use saturn_promql::{SampleValue, Value, format_value, histogram_buckets};
use saturn_query_frontend::QueryError;
use saturn_replication::ReadError;
use serde::Serialize;

/// Seconds after which a refused client should try again.
const RETRY_AFTER_SECONDS: &str = "2";

/// An error in Prometheus's terms.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    error_type: &'static str,
    text: String,
}

impl ApiError {
    /// The request is wrong: 400.
    pub(crate) fn bad_data(text: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error_type: "bad_data", text: text.into() }
    }

    /// A parameter is wrong: 400.
    pub(crate) fn parameter(name: &str, reason: &str) -> Self {
        Self::bad_data(format!("invalid parameter {name:?}: {reason}"))
    }

    /// There is no such thing: 404.
    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, error_type: "not_found", text: text.into() }
    }

    /// It would do harm, and was not forced: 409.
    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, error_type: "conflict", text: text.into() }
    }

    /// Whoever asks has not shown that they may: 401.
    pub(crate) fn unauthorized(text: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, error_type: "unauthorized", text: text.into() }
    }

    /// Not now: 503.
    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, error_type: "unavailable", text: text.into() }
    }

    /// The admin endpoints are off: 500, and the text that Prometheus has for it.
    pub(crate) fn admin_disabled() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            error_type: "unavailable",
            text: "admin APIs disabled".into(),
        }
    }

    /// A defect: 500.
    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, error_type: "internal", text: text.into() }
    }

    /// The message without its envelope, for clients that expect plain text.
    pub(crate) fn into_plain(self) -> (StatusCode, String) {
        (self.status, self.text)
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let text = error.to_string();
        match error {
            QueryError::Invalid { .. } | QueryError::InvalidRange(_) => Self::bad_data(text),
            QueryError::Execution(_) => {
                Self { status: StatusCode::UNPROCESSABLE_ENTITY, error_type: "execution", text }
            }
            QueryError::Timeout { .. } => {
                Self { status: StatusCode::SERVICE_UNAVAILABLE, error_type: "timeout", text }
            }
            QueryError::Overloaded { .. } | QueryError::Unavailable(_) => Self::unavailable(text),
            QueryError::Internal(_) => Self::internal(text),
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::TooManySeries { .. } | ReadError::TooManySamples(_) => {
                Self { status: StatusCode::UNPROCESSABLE_ENTITY, error_type: "execution", text }
            }
            ReadError::Internal(_) => Self::internal(text),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "status": "error",
            "errorType": self.error_type,
            "error": self.text,
        });
        let mut response = json_response(self.status, body.to_string());
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}

/// What comes with a successful answer.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) warnings: Vec<String>,
    pub(crate) infos: Vec<String>,
}

/// A successful answer around `data`, which is JSON already.
pub(crate) fn success(data: &str, notes: &Notes) -> Response {
    let mut body = String::with_capacity(data.len() + 64);
    body.push_str(r#"{"status":"success","data":"#);
    body.push_str(data);
    for (key, texts) in [("warnings", &notes.warnings), ("infos", &notes.infos)] {
        if !texts.is_empty() {
            body.push_str(&format!(",\"{key}\":"));
            body.push_str(&to_json(texts));
        }
    }
    body.push('}');
    json_response(StatusCode::OK, body)
}

/// A successful answer whose data is any serialisable value.
pub(crate) fn success_of<T: Serialize>(data: &T, notes: &Notes) -> Response {
    success(&to_json(data), notes)
}

fn json_response(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("strings, numbers and maps of them serialise")
}

/// A query's result as Prometheus writes it: `{"resultType":...,"result":...,"stats":...}`.
pub(crate) fn write_value(value: &Value, stats: Option<&serde_json::Value>) -> String {
    let mut out = String::new();
    match value {
        Value::Scalar { timestamp, value } => {
            out.push_str(r#"{"resultType":"scalar","result":"#);
            write_point(&mut out, timestamp.0, *value);
        }
        Value::String { timestamp, value } => {
            out.push_str(r#"{"resultType":"string","result":["#);
            write_time(&mut out, timestamp.0);
            out.push(',');
            out.push_str(&to_json(value));
            out.push(']');
        }
        Value::Vector(samples) => {
            out.push_str(r#"{"resultType":"vector","result":["#);
            for (i, sample) in samples.iter().enumerate() {
                out.push_str(if i == 0 { r#"{"metric":"# } else { r#",{"metric":"# });
                write_labels(&mut out, &sample.labels);
                match &sample.value {
                    SampleValue::Float(value) => {
                        out.push_str(r#","value":"#);
                        write_point(&mut out, sample.timestamp.0, *value);
                    }
                    SampleValue::Histogram(histogram) => {
                        out.push_str(r#","histogram":"#);
                        write_histogram_point(&mut out, sample.timestamp.0, histogram);
                    }
                }
                out.push('}');
            }
            out.push(']');
        }
        Value::Matrix(series) => {
            out.push_str(r#"{"resultType":"matrix","result":["#);
            for (i, one) in series.iter().enumerate() {
                out.push_str(if i == 0 { r#"{"metric":"# } else { r#",{"metric":"# });
                write_labels(&mut out, &one.labels);
                let floats = one.timestamps.iter().zip(&one.values);
                write_points(&mut out, "values", floats, |out, time, value| write_point(out, time, *value));
                let histograms = one.histograms.timestamps.iter().zip(&one.histograms.values);
                write_points(&mut out, "histograms", histograms, |out, time, histogram| {
                    write_histogram_point(out, time, histogram);
                });
                out.push('}');
            }
            out.push(']');
        }
    }
    if let Some(stats) = stats {
        out.push_str(",\"stats\":");
        out.push_str(&to_json(stats));
    }
    out.push('}');
    out
}

/// A key and its samples; nothing if there are none.
fn write_points<'a, T: 'a>(
    out: &mut String,
    key: &str,
    points: impl ExactSizeIterator<Item = (&'a i64, &'a T)>,
    write: impl Fn(&mut String, i64, &T),
) {
    if points.len() == 0 {
        return;
    }
    out.push_str(",\"");
    out.push_str(key);
    out.push_str("\":[");
    for (i, (timestamp, value)) in points.enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(out, *timestamp, value);
    }
    out.push(']');
}

/// `[time,{"count":...,"sum":...,"buckets":[[boundaries,"lower","upper","count"],...]}]`
fn write_histogram_point(out: &mut String, timestamp_ms: i64, histogram: &Histogram) {
    out.push('[');
    write_time(out, timestamp_ms);
    let (count, sum) = (format_value(histogram.count), format_value(histogram.sum));
    out.push_str(&format!(r#",{{"count":"{count}","sum":"{sum}""#));
    let buckets = histogram_buckets(histogram);
    for (i, bucket) in buckets.iter().filter(|bucket| bucket.count != 0.0).enumerate() {
        // Prometheus's code for which bounds belong to the bucket.
        let boundaries = match (bucket.lower_inclusive, bucket.upper_inclusive) {
            (false, true) => 0,
            (true, false) => 1,
            (false, false) => 2,
            (true, true) => 3,
        };
        let [lower, upper, count] = [bucket.lower, bucket.upper, bucket.count].map(format_value);
        out.push_str(if i == 0 { r#","buckets":["# } else { "," });
        out.push_str(&format!(r#"[{boundaries},"{lower}","{upper}","{count}"]"#));
    }
    if buckets.iter().any(|bucket| bucket.count != 0.0) {
        out.push(']');
    }
    out.push_str("}]");
}

fn write_point(out: &mut String, timestamp_ms: i64, value: f64) {
    out.push('[');
    write_time(out, timestamp_ms);
    out.push_str(",\"");
    out.push_str(&format_value(value));
    out.push_str("\"]");
}

/// `{"labels":{...},"value":"1","timestamp":time}`
pub(crate) fn write_exemplar(out: &mut String, exemplar: &Exemplar) {
    out.push_str(r#"{"labels":"#);
    write_labels(out, &exemplar.labels);
    out.push_str(r#","value":""#);
    out.push_str(&format_value(exemplar.value));
    out.push_str(r#"","timestamp":"#);
    write_time(out, exemplar.timestamp.0);
    out.push('}');
}

/// Seconds with three decimals, or none where the milliseconds are zero.
fn write_time(out: &mut String, timestamp_ms: i64) {
    let sign = if timestamp_ms < 0 { "-" } else { "" };
    let (seconds, ms) = (timestamp_ms.unsigned_abs() / 1000, timestamp_ms.unsigned_abs() % 1000);
    if ms == 0 {
        out.push_str(&format!("{sign}{seconds}"));
    } else {
        out.push_str(&format!("{sign}{seconds}.{ms:03}"));
    }
}

/// `{"name":"value",...}`
pub(crate) fn write_labels(out: &mut String, labels: &Labels) {
    out.push('{');
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&to_json(name));
        out.push(':');
        out.push_str(&to_json(value));
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use saturn_model::{Buckets, SeriesColumns, TimestampMs};
    use saturn_promql::VectorSample;

    #[test]
    fn results_look_like_prometheus() {
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "a\"b")]).expect("valid");
        let vector = Value::Vector(vec![VectorSample {
            labels: labels.clone(),
            timestamp: TimestampMs(1_435_781_451_780),
            value: SampleValue::Float(f64::INFINITY),
        }]);
        assert_eq!(
            write_value(&vector, None),
            r#"{"resultType":"vector","result":[{"metric":{"__name__":"up","job":"a\"b"},"value":[1435781451.780,"+Inf"]}]}"#
        );
        let matrix = Value::Matrix(vec![SeriesColumns::floats(
            Labels::empty(),
            vec![-500, 2000],
            vec![1e21, f64::NAN],
        )]);
        assert_eq!(
            write_value(&matrix, None),
            r#"{"resultType":"matrix","result":[{"metric":{},"values":[[-0.500,"1e+21"],[2,"NaN"]]}]}"#
        );
        let histogram = Arc::new(Histogram {
            count: 5.0,
            sum: 2.5,
            zero_count: 1.0,
            zero_threshold: 0.001,
            positive: Buckets::from_indexed([(0, 1.0), (1, 0.0), (2, 3.0)]),
            ..Histogram::default()
        });
        let value = SampleValue::Histogram(histogram);
        let sample = VectorSample { labels: Labels::empty(), timestamp: TimestampMs(0), value };
        assert_eq!(
            write_value(&Value::Vector(vec![sample]), None),
            r#"{"resultType":"vector","result":[{"metric":{},"histogram":[0,{"count":"5","sum":"2.5","buckets":[[3,"-0.001","0.001","1"],[0,"0.5","1","1"],[0,"2","4","3"]]}]}]}"#
        );
        let scalar = Value::Scalar { timestamp: TimestampMs(4000), value: 2.0 };
        assert_eq!(write_value(&scalar, None), r#"{"resultType":"scalar","result":[4,"2"]}"#);
        assert_eq!(write_value(&Value::Vector(vec![]), None), r#"{"resultType":"vector","result":[]}"#);
    }
}
