//! `POST /api/v1/read`: Prometheus remote-read, sampled and streamed.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use prost::Message as _;
use saturn_model::{OverBudget, SampleBudget, Selection, SeriesColumns, TimestampMs};
use saturn_proto::histogram::PbHistogram;
use saturn_proto::remote_read::{
    Chunk, ChunkedReadResponse, ChunkedSeries, PbSample, Query, QueryResult, ReadRequest, ReadResponse,
    TimeSeries, frame, histogram_chunks, labels_to_messages, xor_chunks,
};
use saturn_proto::snappy;
use saturn_replication::ReadError;

use super::App;
use super::answer::ApiError;
use super::query::serving;
use super::tenant::Tenant;
use crate::read_path::describe_missing;

const SAMPLES: i32 = 0;
const STREAMED_XOR_CHUNKS: i32 = 1;
const STREAM_TYPE: &str = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";
/// Chunks of one frame; of 120 samples, they stay well below the customary 1 MiB.
const FRAME_CHUNKS_MAX: usize = 500;

/// Answers in the first form of the client's list that is known; without a list, in samples.
pub(crate) async fn read(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    body: Bytes,
) -> Result<Response, ApiError> {
    let decoded = snappy::decompress(&body, app.gate.limits.write_decoded_bytes_max);
    let decoded = decoded.map_err(|e| ApiError::bad_data(e.to_string()))?;
    let request = ReadRequest::decode(decoded.as_slice()).map_err(|e| ApiError::bad_data(e.to_string()))?;
    let form = match request.accepted_response_types.as_slice() {
        [] => SAMPLES,
        wanted => *wanted
            .iter()
            .find(|form| [SAMPLES, STREAMED_XOR_CHUNKS].contains(*form))
            .ok_or_else(|| ApiError::bad_data(format!("none of the response types {wanted:?} is known")))?,
    };
    let mut results = Vec::with_capacity(request.queries.len());
    let budget = Arc::new(SampleBudget::new(app.gate.limits.query_samples_max));
    for query in &request.queries {
        results.push(select(&app, &tenant, query, &budget).await?);
    }
    Ok(if form == STREAMED_XOR_CHUNKS { streamed(results) } else { sampled(&results) })
}

async fn select(
    app: &App,
    tenant: &saturn_model::TenantId,
    query: &Query,
    budget: &Arc<SampleBudget>,
) -> Result<Vec<SeriesColumns>, ApiError> {
    let matchers = query.matchers.iter().map(|m| m.to_matcher()).collect::<Result<_, _>>();
    let selection = Selection {
        tenant: tenant.clone(),
        matchers: matchers.map_err(|e| ApiError::bad_data(e.to_string()))?,
        start: TimestampMs(query.start_timestamp_ms),
        end: TimestampMs(query.end_timestamp_ms),
    };
    let answer = serving(app)?.coordinator.select(&selection, app.gate.limits.query_series_max, budget).await;
    let answer = answer.map_err(|error| match error {
        ReadError::TooManySamples(OverBudget { samples_max }) => {
            ApiError::bad_data(format!("exceeded sample limit ({samples_max})"))
        }
        other => other.into(),
    })?;
    // The protocol has no place for warnings: an incomplete answer is an error.
    if let Some(text) = describe_missing(&answer.completeness).into_iter().next() {
        return Err(ApiError::unavailable(text));
    }
    Ok(answer.value)
}

fn sampled(results: &[Vec<SeriesColumns>]) -> Response {
    let series = |series: &SeriesColumns| TimeSeries {
        labels: labels_to_messages(&series.labels),
        samples: series
            .timestamps
            .iter()
            .zip(&series.values)
            .map(|(timestamp, value)| PbSample { value: *value, timestamp: *timestamp })
            .collect(),
        histograms: series
            .histograms
            .timestamps
            .iter()
            .zip(&series.histograms.values)
            .map(|(timestamp, histogram)| PbHistogram::from_model(*timestamp, histogram))
            .collect(),
    };
    let result = |all: &Vec<SeriesColumns>| QueryResult { timeseries: all.iter().map(series).collect() };
    let message = ReadResponse { results: results.iter().map(result).collect() };
    let body = snappy::compress(&message.encode_to_vec());
    let headers = [(CONTENT_TYPE, "application/x-protobuf"), (CONTENT_ENCODING, "snappy")];
    (StatusCode::OK, headers, body).into_response()
}

/// Frames are made as the client reads them.
fn streamed(results: Vec<Vec<SeriesColumns>>) -> Response {
    let frames = results.into_iter().zip(0..).flat_map(|(all, query_index)| {
        all.into_iter().flat_map(move |series| frames_of(&series, query_index))
    });
    let stream = futures::stream::iter(frames.map(Ok::<_, std::convert::Infallible>));
    (StatusCode::OK, [(CONTENT_TYPE, STREAM_TYPE)], Body::from_stream(stream)).into_response()
}

/// Floats and native histograms in chunks of their own, none of which reaches over another.
fn chunks_of(series: &SeriesColumns) -> Vec<Chunk> {
    let (mut float_times, mut floats) = (series.timestamps.as_slice(), series.values.as_slice());
    let columns = &series.histograms;
    let (mut times, mut histograms) = (columns.timestamps.as_slice(), columns.values.as_slice());
    let before = |times: &[i64], other: &[i64]| match other.first() {
        Some(first) => times.partition_point(|time| time < first),
        None => times.len(),
    };
    let mut chunks = Vec::new();
    while !float_times.is_empty() || !times.is_empty() {
        let len = before(float_times, times);
        chunks.extend(xor_chunks(&float_times[..len], &floats[..len]));
        (float_times, floats) = (&float_times[len..], &floats[len..]);
        let len = before(times, float_times);
        chunks.extend(histogram_chunks(&times[..len], &histograms[..len]));
        (times, histograms) = (&times[len..], &histograms[len..]);
    }
    chunks
}

fn frames_of(series: &SeriesColumns, query_index: i64) -> Vec<Vec<u8>> {
    let chunks = chunks_of(series);
    let labels = labels_to_messages(&series.labels);
    chunks
        .chunks(FRAME_CHUNKS_MAX)
        .map(|chunks| {
            let series = ChunkedSeries { labels: labels.clone(), chunks: chunks.to_vec() };
            frame(&ChunkedReadResponse { chunked_series: vec![series], query_index })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use saturn_model::{Histogram, Labels};

    #[test]
    fn chunks_of_both_kinds_take_turns() {
        let mut series = SeriesColumns::floats(Labels::empty(), vec![1, 2, 5], vec![1.0; 3]);
        series.merge_histograms(&[3, 4, 6], &[1, 2, 3].map(|_| Arc::new(Histogram::default())));
        let chunks = chunks_of(&series);
        let seen: Vec<(i64, i64, i32)> =
            chunks.iter().map(|chunk| (chunk.min_time_ms, chunk.max_time_ms, chunk.encoding)).collect();
        assert_eq!(seen, [(1, 2, 1), (3, 4, 3), (5, 5, 1), (6, 6, 3)]);
    }
}
