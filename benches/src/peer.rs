//! The peers: Debian's single-node VictoriaMetrics and Prometheus, which take the same requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use saturn_chaos_tests::{Endpoint, Process, eventually, free_ports};
use tempfile::TempDir;

use crate::usage::disk_bytes;

/// How long a peer may take to start, its log replayed.
const START_LIMIT: Duration = Duration::from_secs(300);

/// How long a peer may take to merge what it has.
const MERGE_LIMIT: Duration = Duration::from_secs(300);

/// Which peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerKind {
    /// The server of the Debian package `victoria-metrics`.
    VictoriaMetrics,
    /// The server of the Debian package `prometheus`, with its remote-write receiver.
    Prometheus,
}

/// A peer and its data.
#[derive(Debug)]
pub struct Peer {
    kind: PeerKind,
    process: Process,
    address: String,
    folder: TempDir,
}

impl Peer {
    /// Starts a peer with an empty folder.
    pub async fn start(kind: PeerKind) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("saturn-bench-peer-").tempdir()?;
        // Prometheus takes samples of several senders only in a window for what comes late.
        let config = "global: {}\nstorage:\n  tsdb:\n    out_of_order_time_window: 1h\n";
        fs::write(folder.path().join("prometheus.yml"), config)?;
        let address = format!("127.0.0.1:{}", free_ports(1)[0]);
        let process = spawn(kind, folder.path(), &address)?;
        let mut peer = Self { kind, process, address, folder };
        peer.wait_ready().await?;
        Ok(peer)
    }

    /// What a table calls it.
    pub fn name(&self) -> &'static str {
        match self.kind {
            PeerKind::VictoriaMetrics => "VictoriaMetrics",
            PeerKind::Prometheus => "Prometheus",
        }
    }

    /// Where to write to and ask.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::plain(&format!("http://{}", self.address))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let (endpoint, process) = (self.endpoint(), &mut self.process);
        let path = match self.kind {
            PeerKind::VictoriaMetrics => "/health",
            PeerKind::Prometheus => "/-/ready",
        };
        eventually("the peer answers", START_LIMIT, async || {
            process.check_running()?;
            ensure!(endpoint.get(path, &[]).await?.status == 200, "not ready");
            Ok(Some(()))
        })
        .await
    }

    /// Ends it in good order and says what its data takes on disk.
    pub async fn stop(mut self) -> Result<u64> {
        self.process.terminate().await?;
        disk_bytes(&self.data())
    }

    /// Kills it, and starts it again on the same data; returns when it is ready.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill9()?;
        self.process = spawn(self.kind, self.folder.path(), &self.address)?;
        self.wait_ready().await
    }

    /// What its data takes on disk with nothing left in memory or logs, and after it merged all it could.
    pub async fn weigh(mut self) -> Result<(u64, Option<u64>)> {
        match self.kind {
            PeerKind::VictoriaMetrics => {
                self.process.terminate().await?;
                let flushed = disk_bytes(&self.data())?;
                self.process = spawn(self.kind, self.folder.path(), &self.address)?;
                self.wait_ready().await?;
                self.merge_all().await?;
                self.process.terminate().await?;
                Ok((flushed, Some(disk_bytes(&self.data())?)))
            }
            PeerKind::Prometheus => {
                let request = self.endpoint().request("POST", "/api/v1/admin/tsdb/snapshot")?;
                let reply = self.endpoint().send(request).await?;
                ensure!(reply.status == 200, "no snapshot: {}", reply.text);
                let flushed = disk_bytes(&self.data().join("snapshots"))?;
                self.process.terminate().await?;
                Ok((flushed, None))
            }
        }
    }

    async fn merge_all(&self) -> Result<()> {
        let endpoint = self.endpoint();
        ensure!(endpoint.get("/internal/force_merge", &[]).await?.status == 200, "no merge");
        eventually("all is merged", MERGE_LIMIT, async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let text = endpoint.get("/metrics", &[]).await?.text;
            let busy = text
                .lines()
                .filter(|line| {
                    line.starts_with("vm_active_merges") || line.starts_with("vm_active_force_merges")
                })
                .any(|line| !line.ends_with(" 0"));
            ensure!(!busy, "merges run");
            Ok(Some(()))
        })
        .await
    }
}

fn spawn(kind: PeerKind, folder: &Path, address: &str) -> Result<Process> {
    let data = folder.join("data");
    let (binary, args) = match kind {
        PeerKind::VictoriaMetrics => (
            "victoria-metrics",
            vec![
                format!("-storageDataPath={}", data.display()),
                format!("-httpListenAddr={address}"),
                "-retentionPeriod=100y".to_owned(),
                "-search.latencyOffset=0s".to_owned(),
                // Timestamps of a recording are not touched; answers are not served from a cache of results.
                "-search.disableCache".to_owned(),
            ],
        ),
        PeerKind::Prometheus => (
            "prometheus",
            vec![
                format!("--storage.tsdb.path={}", data.display()),
                format!("--web.listen-address={address}"),
                format!("--config.file={}", folder.join("prometheus.yml").display()),
                "--storage.tsdb.retention.time=100y".to_owned(),
                "--web.enable-remote-write-receiver".to_owned(),
                "--web.enable-admin-api".to_owned(),
                "--enable-feature=native-histograms".to_owned(),
            ],
        ),
    };
    let mut command = Command::new(binary);
    Process::spawn(binary, command.args(args), &folder.join("log"))
        .with_context(|| format!("install the Debian package {binary}"))
}
