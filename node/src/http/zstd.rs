//! Answers compressed with zstd, for clients that accept it; the layer around this one does gzip.
//!
//! Source: RFC 9110, 12.5.3 (`Accept-Encoding` and its weights); RFC 8878 (zstd as a content coding).

use axum::body::{Body, HttpBody as _, to_bytes};
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::ApiError;

/// Answers below this many bytes go as they are.
const BYTES_MIN: u64 = 512;
/// zstd's fastest level: query answers are sent once.
const LEVEL: i32 = 1;

/// Compresses the answer if the client prefers zstd and the whole of it is in memory already.
pub(super) async fn compress(request: Request, next: Next) -> Response {
    let preferred = prefers_zstd(request.headers());
    let response = next.run(request).await;
    let size = response.body().size_hint().exact();
    if !preferred || size.is_none_or(|n| n < BYTES_MIN) || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let compressed = async {
        let body = to_bytes(body, usize::MAX).await.map_err(|e| e.to_string())?;
        let compressing = tokio::task::spawn_blocking(move || compressed(&body));
        compressing.await.map_err(|e| e.to_string())?
    };
    match compressed.await {
        Ok(body) => {
            parts.headers.remove(CONTENT_LENGTH);
            parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"));
            parts.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
            Response::from_parts(parts, Body::from(body))
        }
        Err(e) => ApiError::internal(format!("cannot compress the answer: {e}")).into_response(),
    }
}

/// One zstd frame.
fn compressed(body: &[u8]) -> Result<Vec<u8>, String> {
    let mut frame = vec![0; zstd_safe::compress_bound(body.len())];
    let length = zstd_safe::compress(frame.as_mut_slice(), body, LEVEL)
        .map_err(|code| zstd_safe::get_error_name(code).to_owned())?;
    frame.truncate(length);
    Ok(frame)
}

/// Whether zstd is accepted, and gzip is not wanted more.
fn prefers_zstd(headers: &HeaderMap) -> bool {
    let weight_of = |coding: &str| {
        let listed = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let mut entries = listed.flat_map(|value| value.split(','));
        entries.find_map(|entry| {
            let (name, parameter) = entry.split_once(';').unwrap_or((entry, ""));
            let weight = parameter.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.parse::<f32>().ok());
            weight.filter(|_| name.trim().eq_ignore_ascii_case(coding))
        })
    };
    let zstd = weight_of("zstd").unwrap_or(0.0);
    zstd > 0.0 && zstd >= weight_of("gzip").unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_decide() {
        let prefers = |accept: &'static str| {
            prefers_zstd(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept))]))
        };
        for accept in ["zstd", "gzip, deflate, br, zstd", "gzip;q=0.5, ZSTD;q=0.9"] {
            assert!(prefers(accept), "{accept}");
        }
        for accept in ["", "gzip", "zstd;q=0", "gzip, zstd;q=0.5", "zstdx", "zstd;q=x"] {
            assert!(!prefers(accept), "{accept}");
        }
        assert!(!prefers_zstd(&HeaderMap::new()));
    }

    #[test]
    fn frames_are_decoded_again() {
        let body: Vec<u8> = (0..100_000_u32).flat_map(|i| (i / 100).to_string().into_bytes()).collect();
        let frame = compressed(&body).expect("compresses");
        assert!(frame.len() < body.len() / 10);
        let mut decoded = vec![0; body.len()];
        let length = zstd_safe::decompress(decoded.as_mut_slice(), &frame).expect("decodes");
        assert_eq!((length, decoded), (body.len(), body));
    }
}
