//! How fast shards come in: a bucket of bytes that fills at a steady rate.
//!
//! Who took bytes waits until the bucket has made up for them, and asks for no more meanwhile; the flow control of the
//! stream then stops its sender. All transfers of a node share one bucket.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What an idle bucket holds, in time: so long a transfer may go at full speed.
const BURST: Duration = Duration::from_millis(200);

/// The bucket.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    /// When all that was taken is made up for.
    even_at: Mutex<Option<Instant>>,
}

impl Pace {
    /// `None`: no limit.
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { bytes_per_second, even_at: Mutex::new(None) }
    }

    /// Bytes have come. Waits until more may come.
    pub(super) async fn took(&self, bytes: usize) {
        let wait = self.wait(Instant::now(), bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes bytes out at `now`. How long to wait for more.
    fn wait(&self, now: Instant, bytes: usize) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let mut even_at = self.even_at.lock();
        let even = even_at.filter(|even| *even > now).unwrap_or(now) + cost;
        *even_at = Some(even);
        (even - now).saturating_sub(BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_whoever_takes() {
        let pace = Pace::new(NonZeroU64::new(1000));
        let start = Instant::now();
        let mut now = start;
        for bytes in [1, 250, 10, 5000, 700, 39].into_iter().cycle().take(600) {
            now += pace.wait(now, bytes);
        }
        // 100 rounds of 6,000 bytes at 1,000 bytes a second, less what an idle bucket holds.
        let took = (now - start).as_secs_f64();
        assert!((599.7..=600.0).contains(&took), "{took} s");
        // Idle time fills the bucket once, not for ever.
        now += Duration::from_secs(60);
        assert_eq!(pace.wait(now, 200), Duration::ZERO);
        assert_eq!(pace.wait(now, 100), Duration::from_millis(100));
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let pace = Pace::new(None);
        assert_eq!(pace.wait(Instant::now(), usize::MAX), Duration::ZERO);
    }
}
