//! Sends a load as fast as it is taken: a fixed number of senders, each with one request under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use saturn_chaos_tests::Endpoint;

use crate::Load;

/// How often a request that is told to come back later comes back.
const TRIES_MAX: usize = 50;

/// How long it then waits.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What sending took.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Times from request to answer, sorted.
    pub latencies: Vec<Duration>,
    /// Answers that asked to come back later.
    pub retries: usize,
}

impl Sent {
    /// The latency that this share of requests, in percent, stayed within.
    pub fn latency_percentile(&self, percent: usize) -> Duration {
        let index = (self.latencies.len() * percent).div_ceil(100).saturating_sub(1);
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

/// Sends every request of `load`, in turn to each endpoint; fails if one is refused.
pub async fn send_all(load: &Arc<Load>, endpoints: &[Endpoint], senders: usize) -> Result<Sent> {
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..senders)
        .map(|sender| {
            let endpoint = endpoints[sender % endpoints.len()].clone();
            tokio::spawn(send_some(Arc::clone(load), endpoint, Arc::clone(&next)))
        })
        .collect();
    let mut sent = Sent { elapsed: Duration::ZERO, latencies: Vec::new(), retries: 0 };
    for task in tasks {
        let (latencies, retries) = task.await.context("a sender panicked")??;
        sent.latencies.extend(latencies);
        sent.retries += retries;
    }
    sent.elapsed = started.elapsed();
    sent.latencies.sort_unstable();
    Ok(sent)
}

async fn send_some(
    load: Arc<Load>,
    endpoint: Endpoint,
    next: Arc<AtomicUsize>,
) -> Result<(Vec<Duration>, usize)> {
    let (mut latencies, mut retries) = (Vec::new(), 0);
    while let Some(body) = load.requests.get(next.fetch_add(1, Ordering::Relaxed)) {
        let started = Instant::now();
        let mut tries = 0;
        loop {
            let reply = endpoint.write_body(body.clone()).await?;
            tries += 1;
            match reply.status {
                200..=299 => break,
                429 | 503 if tries < TRIES_MAX => {
                    retries += 1;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                status => bail!("a write was refused with {status}: {}", reply.text),
            }
        }
        latencies.push(started.elapsed());
    }
    Ok((latencies, retries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_list() {
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let sent = Sent { elapsed: Duration::ZERO, latencies, retries: 0 };
        assert_eq!(sent.latency_percentile(50), Duration::from_millis(50));
        assert_eq!(sent.latency_percentile(99), Duration::from_millis(99));
        assert_eq!(sent.latency_percentile(100), Duration::from_millis(100));
    }
}
