//! Real data: what a Prometheus server sends by remote-write while it scrapes a node_exporter, itself and
//! three Saturn nodes that it also writes to.
//!
//! A recording is a file of requests as they came, each behind its length (4 bytes, little-endian). It keeps
//! the real timestamps, stale markers, label sets and request sizes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use saturn_chaos_tests::{Cluster, NodeExporter, Prometheus, PrometheusOptions, Tolerance};
use tokio::net::TcpListener;

/// Largest request that is recorded, in bytes. Prometheus sends a few hundred samples at a time.
const REQUEST_BYTES_MAX: usize = 32 << 20;

/// Tenant of the Saturn nodes that Prometheus writes to.
const TENANT: &str = "recording";

/// Records for `length` into `path`, with a scrape of each target every `interval`.
pub async fn record(path: &Path, length: Duration, interval: Duration) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let (url, receiver) = receive(file).await?;
    let mut cluster = Cluster::start(3).await?;
    // Nodes that share a busy machine for an hour may complain about a slow disk.
    cluster.tolerate(Tolerance::Warnings);
    let folder = tempfile::tempdir()?;
    let exporter = NodeExporter::start(folder.path()).await?;
    let saturn = (0..cluster.size()).map(|index| cluster.http_address(index).to_owned()).collect();
    let options = PrometheusOptions {
        scrape_interval: interval,
        scrape: vec![("node".to_owned(), vec![exporter.address().to_owned()]), ("saturn".to_owned(), saturn)],
        remote_write: vec![url, format!("{}/t/{TENANT}/api/v1/write", cluster.url(0))],
        ..PrometheusOptions::default()
    };
    let mut prometheus = Prometheus::start(folder.path(), &options).await?;
    tokio::time::sleep(length).await;
    prometheus.check_running()?;
    drop(prometheus);
    receiver.abort();
    cluster.finish().await
}

/// The requests of a recording, still compressed, in the order in which they came.
pub fn read_recording(path: &Path) -> Result<Vec<Vec<u8>>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let mut requests = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        // The recorder may have been stopped in the middle of one.
        let Some((request, after)) = after.split_at_checked(length) else { break };
        requests.push(request.to_vec());
        rest = after;
    }
    ensure!(!requests.is_empty(), "{} holds no request", path.display());
    Ok(requests)
}

/// Takes remote-write requests and appends them to `file`. Returns the URL to write to, and what ends it.
async fn receive(file: File) -> Result<(String, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/write", listener.local_addr()?);
    let router = Router::new()
        .route("/write", axum::routing::post(append))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(Arc::new(Mutex::new(file)));
    let task = tokio::spawn(async move {
        // It ends when it is aborted.
        let _ = axum::serve(listener, router).await;
    });
    Ok((url, task))
}

async fn append(State(file): State<Arc<Mutex<File>>>, body: Bytes) -> StatusCode {
    let mut file = file.lock().expect("no holder panics");
    let length = u32::try_from(body.len()).expect("bodies are limited");
    match file.write_all(&length.to_le_bytes()).and_then(|()| file.write_all(&body)) {
        Ok(()) => StatusCode::NO_CONTENT,
        // Prometheus sends it again.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_gives_its_requests_back() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("recording");
        fs::write(&path, [&[2, 0, 0, 0, 7, 8][..], &[1, 0, 0, 0, 9], &[9, 0, 0, 0, 1]].concat())?;
        assert_eq!(read_recording(&path)?, [vec![7, 8], vec![9]]);
        fs::write(&path, [])?;
        assert!(read_recording(&path).is_err());
        Ok(())
    }
}
