//! Waiting with a limit.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Probes until there is an answer. An error of the probe counts as "not yet", and is told when the limit
/// is reached.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let last = match probe().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}; at last: {last}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(now.as_millis()).expect("the clock is before the year 292 million")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_limit_holds_and_tells_the_last_error() {
        let error = eventually("a miracle", Duration::from_millis(10), async || -> Result<Option<()>> {
            bail!("the sea is calm")
        });
        let text = error.await.expect_err("it does not happen").to_string();
        assert!(text.contains("a miracle") && text.contains("the sea is calm"), "{text}");
        let mut left = 3;
        let value = eventually("a countdown", Duration::from_secs(5), async || {
            left -= 1;
            Ok((left == 0).then_some("done"))
        });
        assert_eq!(value.await.expect("soon"), "done");
    }
}
