//! Parameters of the query API: from the URL and, for POST, the form body; times and durations as
//! Prometheus reads them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use saturn_model::{Matcher, TimestampMs};
use saturn_promql::{parse_duration, parse_selector};

use super::App;
use super::answer::ApiError;

/// All parameters in the order in which they came.
pub(crate) struct Params(Vec<(String, String)>);

impl FromRequest<Arc<App>> for Params {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let query = request.uri().query().unwrap_or_default();
        let mut pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let content_type = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        if content_type.is_some_and(|t| t.starts_with("application/x-www-form-urlencoded")) {
            let body = Bytes::from_request(request, app).await;
            let body = body.map_err(|e| ApiError::bad_data(format!("cannot read the form: {e}")))?;
            pairs.extend(form_urlencoded::parse(&body).into_owned());
        }
        Ok(Self(pairs))
    }
}

impl Params {
    /// The first value of `name`, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next().filter(|value| !value.is_empty())
    }

    /// All values of `name`.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A time, if given.
    pub(crate) fn time(&self, name: &'static str) -> Result<Option<TimestampMs>, ApiError> {
        let parse = |text| {
            // Prometheus says it twice.
            let invalid =
                |e: String| ApiError::parameter(name, &format!("Invalid time value for '{name}': {e}"));
            parse_time(text).map_err(invalid)
        };
        self.get(name).map(parse).transpose()
    }

    /// A time that must be given.
    pub(crate) fn required_time(&self, name: &'static str) -> Result<TimestampMs, ApiError> {
        let text = self.all(name).next().unwrap_or_default();
        parse_time(text).map_err(|e| ApiError::parameter(name, &e))
    }

    /// A duration in milliseconds, if given.
    pub(crate) fn duration_ms(&self, name: &'static str) -> Result<Option<i64>, ApiError> {
        let parse = |text| parse_duration_param(text).map_err(|e| ApiError::parameter(name, &e));
        self.get(name).map(parse).transpose()
    }

    /// A duration that must be given.
    pub(crate) fn required_duration_ms(&self, name: &'static str) -> Result<i64, ApiError> {
        let text = self.all(name).next().unwrap_or_default();
        parse_duration_param(text).map_err(|e| ApiError::parameter(name, &e))
    }

    /// The query's time limit, if given.
    pub(crate) fn timeout(&self) -> Result<Option<Duration>, ApiError> {
        let ms = self.duration_ms("timeout")?;
        Ok(ms.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(0))))
    }

    /// `limit`: how many results at most; 0 is no limit.
    pub(crate) fn limit(&self) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get("limit") else { return Ok(None) };
        let limit: usize = text
            .parse()
            .map_err(|_| ApiError::parameter("limit", &format!("{text:?} is not a non-negative number")))?;
        Ok(Some(limit).filter(|limit| *limit > 0))
    }

    /// The selectors in `match[]`, one list of matchers each.
    pub(crate) fn selectors(&self) -> Result<Vec<Vec<Matcher>>, ApiError> {
        let parse = |text| parse_selector(text).map_err(|e| ApiError::parameter("match[]", &e.to_string()));
        self.all("match[]").map(parse).collect()
    }
}

/// Seconds since the epoch, with fraction, or RFC 3339.
pub(crate) fn parse_time(text: &str) -> Result<TimestampMs, String> {
    let invalid = || format!("cannot parse {text:?} to a valid timestamp");
    if let Ok(seconds) = text.parse::<f64>() {
        return float_to_ms(seconds).map(TimestampMs).ok_or_else(invalid);
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| invalid())?;
    Ok(TimestampMs(time.as_millisecond()))
}

/// Seconds with fraction, or a Prometheus duration such as `1m30s`.
fn parse_duration_param(text: &str) -> Result<i64, String> {
    let invalid = || format!("cannot parse {text:?} to a valid duration");
    if let Ok(seconds) = text.parse::<f64>() {
        return float_to_ms(seconds)
            .ok_or_else(|| format!("cannot parse {text:?} to a valid duration. It overflows int64"));
    }
    parse_duration(text).map_err(|_| invalid())
}

/// Seconds to whole milliseconds, if they fit 2^53 of them.
fn float_to_ms(seconds: f64) -> Option<i64> {
    let ms = (seconds * 1000.0).round();
    (ms.abs() < 9e15).then_some(ms as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_rfc3339() {
        assert_eq!(parse_time("1435781451.781"), Ok(TimestampMs(1_435_781_451_781)));
        assert_eq!(parse_time("4"), Ok(TimestampMs(4000)));
        assert_eq!(parse_time("2015-07-01T20:10:51.781Z"), Ok(TimestampMs(1_435_781_451_781)));
        for bad in ["", "yesterday", "NaN", "1e300", "inf"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_seconds_or_prometheus_durations() {
        assert_eq!(parse_duration_param("15"), Ok(15_000));
        assert_eq!(parse_duration_param("0.5"), Ok(500));
        assert_eq!(parse_duration_param("1m30s"), Ok(90_000));
        assert!(parse_duration_param("1 minute").is_err());
    }
}
