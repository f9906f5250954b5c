//! While a node replays its log, it says so, and answers nothing else.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::{Cluster, ClusterOptions, Endpoint, Tolerance, Writer, WriterOptions, eventually};

const TENANT: &str = "start";
/// Of Linux, on both architectures that Saturn is built for.
const O_NONBLOCK: i32 = 0o4000;
const LIMIT: Duration = Duration::from_secs(30);

/// The path of the log's next segment.
fn next_segment(wal: &Path) -> Result<PathBuf> {
    let mut last = 0;
    for entry in std::fs::read_dir(wal)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".wal")?.parse::<u64>().ok());
        last = last.max(number.unwrap_or(0));
    }
    ensure!(last > 0, "no log in {}", wal.display());
    Ok(wal.join(format!("{:08}.wal", last + 1)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_shows_how_far_the_replay_is() -> Result<()> {
    let mut cluster = Cluster::new(ClusterOptions { nodes: 1, ..ClusterOptions::default() })?;
    cluster.spawn(0)?;
    cluster.wait_ready().await?;
    let targets = vec![cluster.endpoint(0, TENANT)];
    let writer =
        Writer::start(WriterOptions { number: 1, lanes: 10, targets, retries: 0, pause: Writer::PAUSE });
    writer.wait_acked(500, LIMIT).await?;
    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9(0)?;
    let history = writer.stop().await?;

    // Whoever reads a pipe waits until somebody writes; an empty segment is what a power cut may leave.
    let pipe = next_segment(&cluster.nodes()[0].data_dir.join("storage").join("wal"))?;
    ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "mkfifo {}", pipe.display());
    cluster.spawn(0)?;
    let endpoint = Endpoint::plain(&cluster.url(0));
    eventually("the node says that it replays", LIMIT, async || {
        let ready = endpoint.get("/-/ready", &[]).await?;
        ensure!(ready.status == 503, "{ready:?}");
        Ok(ready.text.contains("replaying the write-ahead log: 0.0 of ").then_some(()))
    })
    .await?;
    ensure!(endpoint.get("/-/healthy", &[]).await?.status == 200);
    let metrics = endpoint.get("/metrics", &[]).await?;
    ensure!(metrics.status == 200 && metrics.text.contains("saturn_storage_head_samples"), "{metrics:?}");
    let query = endpoint.get("/api/v1/query", &[("query", "up")]).await?;
    ensure!(query.status == 503 && query.text.contains("replaying"), "{query:?}");
    ensure!(endpoint.get("/api/v1/status/node", &[]).await?.status == 503);
    let written = cluster.endpoint(0, TENANT).write(&[]).await?;
    ensure!(written.status == 503, "{written:?}");

    // The node looks at the pipe twice: at the header, and at the whole. Without a reader this open fails at once.
    let writing = std::thread::spawn(move || {
        // The node removes it, and may give its name to a segment.
        while std::fs::metadata(&pipe).is_ok_and(|file| file.file_type().is_fifo()) {
            let _ = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&pipe);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    cluster.wait_ready().await?;
    ensure!(writing.join().is_ok(), "the pipe's writer panicked");
    history.check(&cluster.endpoint(0, TENANT)).await.context("what was acked is there")?;
    cluster.finish().await
}
