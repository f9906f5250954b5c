//! `POST /api/v1/write` and `/api/v1/push`: remote-write 1.0 and 2.0.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use saturn_proto::{WireError, snappy};
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::tenant::Tenant;
use crate::clock;
use crate::metrics::WriteOutcome;
use crate::write_path::{self, PathError, Protocol, Written};

/// What was written of a request of 2.0: samples, histograms, exemplars.
const WRITTEN_HEADERS: [&str; 3] = [
    "x-prometheus-remote-write-samples-written",
    "x-prometheus-remote-write-histograms-written",
    "x-prometheus-remote-write-exemplars-written",
];
/// How much larger a request of 2.0 may become when it is written out as one of 1.0, as a rule.
const WRITTEN_OUT_FACTOR: usize = 8;

/// A refusal as senders expect it: plain text.
struct Refused {
    status: StatusCode,
    text: String,
}

impl Refused {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

/// Answers 204 when every sample is durable on a quorum; see the module `write_path`.
pub(crate) async fn write(
    State(app): State<Arc<App>>,
    tenant: Result<Tenant, super::answer::ApiError>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let arrived = Instant::now();
    let protocol = check_content_type(&headers);
    let is_2 = matches!(protocol, Ok(Protocol::Two));
    let answer = match tenant {
        Ok(Tenant(tenant)) => handle(&app, tenant, protocol, &headers, body).await,
        Err(e) => {
            let (status, text) = e.into_plain();
            Err(Refused { status, text })
        }
    };
    let outcome = match &answer {
        Ok(written) if written.rejects.series == 0 => WriteOutcome::Stored,
        Ok(_) => WriteOutcome::PartlyInvalid,
        Err(refused) if refused.status.is_server_error() => WriteOutcome::Unavailable,
        Err(_) => WriteOutcome::Invalid,
    };
    app.metrics.count_write(outcome, arrived.elapsed());
    let counts = match &answer {
        Ok(written) => [written.samples - written.histograms, written.histograms, written.exemplars],
        Err(_) => [0; 3],
    };
    let mut response = respond(&app, answer);
    if is_2 {
        for (name, count) in WRITTEN_HEADERS.into_iter().zip(counts) {
            response.headers_mut().insert(name, HeaderValue::from(count as u64));
        }
    }
    response
}

fn respond(app: &App, answer: Result<Written, Refused>) -> Response {
    match answer {
        Ok(written) => {
            app.metrics.count_samples(&written);
            if written.rejects.series == 0 {
                StatusCode::NO_CONTENT.into_response()
            } else {
                (StatusCode::BAD_REQUEST, written.rejects.describe()).into_response()
            }
        }
        Err(refused) if refused.status == StatusCode::SERVICE_UNAVAILABLE => {
            (refused.status, [(RETRY_AFTER, "2")], refused.text + "\n").into_response()
        }
        Err(refused) => (refused.status, refused.text + "\n").into_response(),
    }
}

async fn handle(
    app: &App,
    tenant: saturn_model::TenantId,
    protocol: Result<Protocol, Refused>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Written, Refused> {
    let protocol = protocol?;
    check_content_encoding(headers)?;
    let Some(serving) = app.serving.get() else {
        return Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("this node does not serve yet: {}", app.waiting_for.borrow().as_str()),
        ));
    };

    let bytes_max = app.gate.limits.write_body_bytes_max;
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let announced: usize = announced.unwrap_or(bytes_max);
    let too_large = || {
        let text = format!("the body is over the limit of {bytes_max} bytes (write_body_bytes_max)");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    if announced > bytes_max {
        return Err(too_large());
    }
    let _body_budget = reserve(app, announced)?;
    let body = axum::body::to_bytes(body, bytes_max).await.map_err(|_| too_large())?;
    let claimed = snappy::claimed_len(&body, app.gate.limits.write_decoded_bytes_max).map_err(refuse_wire)?;
    let _decoded_budget = reserve(app, claimed)?;
    let _written_out_budget = match protocol {
        Protocol::One => None,
        // With each text in its places, a request is some times as large.
        Protocol::Two => {
            let bytes =
                claimed.saturating_mul(WRITTEN_OUT_FACTOR).min(app.gate.limits.write_decoded_bytes_max);
            Some(reserve(app, bytes)?)
        }
    };

    let gate = Arc::clone(&app.gate);
    write_path::write(&serving.coordinator, tenant, (protocol, body), gate, clock::unix_ms()).await.map_err(
        |e| match e {
            PathError::Wire(e) => refuse_wire(e),
            PathError::Write(e) => Refused::new(StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
            PathError::Internal(e) => Refused::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        },
    )
}

/// Takes `bytes` off the budget of write requests in memory, or refuses.
fn reserve(app: &App, bytes: usize) -> Result<OwnedSemaphorePermit, Refused> {
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    let permit = Arc::clone(&app.write_budget).try_acquire_many_owned(kib);
    permit.map_err(|_| {
        Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many bytes of write requests are in memory already",
        )
    })
}

fn refuse_wire(error: WireError) -> Refused {
    let status = match error {
        WireError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        WireError::Malformed { .. } | WireError::Invalid(_) => StatusCode::BAD_REQUEST,
    };
    Refused::new(status, error.to_string())
}

/// `application/x-protobuf`, with or without the name of its message; without, it is that of 1.0.
fn check_content_type(headers: &HeaderMap) -> Result<Protocol, Refused> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Protocol::One) };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let protocol = match (media_type, parts.next(), parts.next()) {
        ("application/x-protobuf", None | Some("proto=prometheus.writerequest"), None) => Some(Protocol::One),
        ("application/x-protobuf", Some("proto=io.prometheus.write.v2.request"), None) => Some(Protocol::Two),
        _ => None,
    };
    protocol.ok_or_else(|| {
        let text = format!(
            "content type {value:?} is not supported: want application/x-protobuf \
             (prometheus.WriteRequest or io.prometheus.write.v2.Request)"
        );
        Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
    })
}

fn check_content_encoding(headers: &HeaderMap) -> Result<(), Refused> {
    match headers.get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"snappy") => Ok(()),
        Some(value) => {
            let text = format!("content encoding {value:?} is not supported: want snappy (block format)");
            Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text))
        }
    }
}
