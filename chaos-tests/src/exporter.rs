//! Small exporters. That of [`Exporter::demo`] has the metrics of the `demo` service that the compliance queries use.
//!
//! Its values are functions of a scrape counter: counters that grow and sometimes reset, gauges that wander,
//! a metric that comes and goes, a histogram.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Upper bounds of the histogram's buckets.
const BOUNDS: [&str; 6] = ["0.001", "0.01", "0.1", "1", "10", "+Inf"];

/// Text format 0.0.4.
const PLAIN: &str = "text/plain; version=0.0.4";
/// OpenMetrics, which has exemplars.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Makes the text of the n-th scrape.
type Exposition = dyn Fn(u64) -> String + Send + Sync;

/// Serves until dropped; open connections end then, too.
#[derive(Debug)]
pub struct Exporter {
    address: String,
    task: JoinHandle<()>,
}

impl Exporter {
    /// The metrics that the compliance queries ask for. Instances with different seeds show different values.
    pub async fn demo(seed: u64) -> Result<Self> {
        Self::start(PLAIN, Arc::new(move |scrape| exposition(scrape, seed))).await
    }

    /// What `text` makes of the number of the scrape, in OpenMetrics.
    pub async fn openmetrics(text: impl Fn(u64) -> String + Send + Sync + 'static) -> Result<Self> {
        Self::start(OPENMETRICS, Arc::new(text)).await
    }

    /// Listens on a free port of loopback.
    async fn start(content_type: &'static str, text: Arc<Exposition>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let scrapes = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(async move {
            // Ends its connections with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&scrapes), content_type, Arc::clone(&text)));
            }
        });
        Ok(Self { address, task })
    }

    /// `HOST:PORT` to scrape.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers every request of a connection with the next scrape.
async fn serve(
    mut stream: TcpStream,
    scrapes: Arc<AtomicU64>,
    content_type: &'static str,
    exposition: Arc<Exposition>,
) {
    let mut request = vec![0; 8192];
    loop {
        match stream.read(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = exposition(scrapes.fetch_add(1, Ordering::Relaxed));
        let reply = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        );
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn exposition(scrape: u64, seed: u64) -> String {
    let mut text = String::new();
    let t = scrape as f64;
    let phase = seed as f64;
    let mut put = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{line}");
    };
    put(format_args!("demo_num_cpus {}", 4 + seed % 3));
    for (i, kind) in (0_u32..).zip(["buffers", "cached", "free", "used"]) {
        let value = 1e9 + f64::from(i) * 3.7e8 + (t / 3.0 + phase + f64::from(i)).sin() * 1.3e8;
        put(format_args!("demo_memory_usage_bytes{{type=\"{kind}\"}} {value}"));
    }
    for (i, mode) in (1_u32..).zip(["idle", "system", "user"]) {
        // A restart every 25 scrapes: the counter falls back to the start.
        let value = (t % 25.0 + 1.0) * f64::from(i) * 0.37 + phase;
        put(format_args!("demo_cpu_usage_seconds_total{{mode=\"{mode}\"}} {value}"));
    }
    if scrape % 4 < 2 {
        put(format_args!("demo_intermittent_metric 1"));
    }
    put(format_args!("demo_disk_usage_bytes {}", 5e9 + t * 1.7e6 + (t / 2.0).cos() * 1e5));
    put(format_args!("demo_disk_total_bytes 1e10"));
    put(format_args!("demo_batch_last_success_timestamp_seconds {}", 1.7e9 + (t / 7.0).floor() * 86_400.0));
    for (method, path, factor) in [("GET", "/api/foo", 1), ("POST", "/api/foo", 2), ("GET", "/api/bar", 3)] {
        let mut total = 0;
        for (i, bound) in (1_u64..).zip(BOUNDS) {
            total += scrape * factor * i;
            put(format_args!(
                "demo_api_request_duration_seconds_bucket{{method=\"{method}\",path=\"{path}\",status=\"200\",le=\"{bound}\"}} {total}"
            ));
        }
        put(format_args!(
            "demo_api_request_duration_seconds_count{{method=\"{method}\",path=\"{path}\",status=\"200\"}} {total}"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let text = exposition(10, 1);
        let buckets: Vec<u64> = text
            .lines()
            .filter(|line| line.contains("_bucket") && line.contains("/api/bar"))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        assert_eq!(buckets.len(), BOUNDS.len());
        assert!(buckets.is_sorted());
    }
}
