//! Debian's Prometheus and node_exporter, which the answers are compared with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::Endpoint;
use crate::ports::free_ports;
use crate::process::Process;
use crate::wait::eventually;

/// How long a peer may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What Prometheus shall do.
#[derive(Debug)]
pub struct PrometheusOptions {
    /// Time between two scrapes.
    pub scrape_interval: Duration,
    /// Jobs, each with the addresses `HOST:PORT` that it scrapes. Prometheus adds itself as `prometheus`.
    pub scrape: Vec<(String, Vec<String>)>,
    /// URLs that every sample is written to. The tenant must be in the path or the user: Debian's build of
    /// Prometheus 2.42 takes `headers` in its configuration and does not send them.
    pub remote_write: Vec<String>,
    /// Whether exemplars are written, too, and how often metadata is; `None`: no exemplars, and metadata each minute.
    pub send_notes_every: Option<Duration>,
    /// Flags beside those for its files and address.
    pub extra_args: Vec<String>,
}

impl Default for PrometheusOptions {
    fn default() -> Self {
        Self {
            scrape_interval: Duration::from_secs(1),
            scrape: Vec::new(),
            remote_write: Vec::new(),
            send_notes_every: None,
            extra_args: Vec::new(),
        }
    }
}

/// A Prometheus server with its data in a folder of the test.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: String,
}

impl Prometheus {
    /// Starts Prometheus and waits until it is ready. Its files go to `folder`.
    pub async fn start(folder: &Path, options: &PrometheusOptions) -> Result<Self> {
        let binary = peer_binary("prometheus", "prometheus")?;
        let address = format!("127.0.0.1:{}", free_ports(1)[0]);
        let config = folder.join("prometheus.yml");
        std::fs::write(&config, config_text(options, &address))?;
        let mut command = Command::new(binary);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(&options.extra_args);
        let mut process = Process::spawn("prometheus", &mut command, &folder.join("prometheus.log"))?;
        wait_ready(&mut process, &address, "/-/ready").await?;
        Ok(Self { process, address })
    }

    /// Its HTTP API.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::plain(&format!("http://{}", self.address))
    }

    /// Fails if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.check_running()
    }

    /// The lines of its log about remote-write that are no good news.
    pub fn remote_write_complaints(&self) -> Vec<String> {
        let log = self.process.log_text();
        let is_complaint = |line: &&str| {
            line.contains("component=remote")
                && (line.contains("level=error") || line.contains("non-recoverable"))
        };
        log.lines().filter(is_complaint).map(str::to_owned).collect()
    }
}

/// A node_exporter of this host.
#[derive(Debug)]
pub struct NodeExporter {
    #[expect(dead_code, reason = "the process ends when this is dropped")]
    process: Process,
    address: String,
}

impl NodeExporter {
    /// Starts node_exporter and waits until it answers. Its log goes to `folder`.
    pub async fn start(folder: &Path) -> Result<Self> {
        let binary = peer_binary("prometheus-node-exporter", "prometheus-node-exporter")?;
        let address = format!("127.0.0.1:{}", free_ports(1)[0]);
        let mut command = Command::new(binary);
        command.arg(format!("--web.listen-address={address}"));
        let mut process = Process::spawn("node_exporter", &mut command, &folder.join("node_exporter.log"))?;
        wait_ready(&mut process, &address, "/").await?;
        Ok(Self { process, address })
    }

    /// `HOST:PORT` to scrape.
    pub fn address(&self) -> &str {
        &self.address
    }
}

async fn wait_ready(process: &mut Process, address: &str, path: &str) -> Result<()> {
    let endpoint = Endpoint::plain(&format!("http://{address}"));
    let what = format!("http://{address}{path}");
    let ready = eventually(&what, START_LIMIT, async || {
        if process.ended()?.is_some() {
            return Ok(Some(()));
        }
        let reply = endpoint.get(path, &[]).await?;
        ensure!(reply.status == 200, "status {}", reply.status);
        Ok(Some(()))
    });
    let ready = ready.await;
    process.check_running()?;
    ready
}

/// The peer's executable, by the search path.
fn peer_binary(name: &str, package: &str) -> Result<PathBuf> {
    let paths = std::env::var_os("PATH").context("no PATH")?;
    match std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => {
            bail!("{name} is missing: run `xtask/install-deps.sh test`, or install the package {package}")
        }
    }
}

fn config_text(options: &PrometheusOptions, own_address: &str) -> String {
    let interval = options.scrape_interval.as_millis();
    let mut text = format!(
        "global:\n  scrape_interval: {interval}ms\n  scrape_timeout: {}ms\n  evaluation_interval: 1m\nscrape_configs:\n",
        interval * 9 / 10
    );
    let own = ("prometheus".to_owned(), vec![own_address.to_owned()]);
    for (job, addresses) in std::iter::once(&own).chain(&options.scrape) {
        let targets = addresses.iter().map(|address| format!("'{address}'")).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("- job_name: {job}\n  static_configs:\n  - targets: [{targets}]\n"));
    }
    if !options.remote_write.is_empty() {
        text.push_str("remote_write:\n");
    }
    for url in &options.remote_write {
        // One shard: what arrives is in the order of its times.
        text.push_str(&format!(
            "- url: {url}\n  queue_config:\n    batch_send_deadline: 500ms\n    max_shards: 1\n"
        ));
        if let Some(every) = options.send_notes_every {
            text.push_str(&format!(
                "  send_exemplars: true\n  metadata_config:\n    send_interval: {}ms\n",
                every.as_millis()
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_every_target() {
        let options = PrometheusOptions {
            scrape: vec![("saturn".to_owned(), vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()])],
            remote_write: vec!["http://127.0.0.1:1/t/road/api/v1/write".to_owned()],
            ..PrometheusOptions::default()
        };
        let text = config_text(&options, "127.0.0.1:9");
        assert!(text.contains(
            "- job_name: saturn\n  static_configs:\n  - targets: ['127.0.0.1:1', '127.0.0.1:2']\n"
        ));
        assert!(text.contains("- url: http://127.0.0.1:1/t/road/api/v1/write\n"));
    }

    #[test]
    fn a_missing_peer_comes_with_a_hint() {
        let error = peer_binary("no-such-peer", "a-package").expect_err("missing").to_string();
        assert!(error.contains("install the package a-package"), "{error}");
    }
}
