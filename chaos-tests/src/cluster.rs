//! Real `saturn` processes on loopback.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::logs::unexpected;
use crate::ports::free_ports;
use crate::process::Process;
use crate::wait::eventually;
use crate::{Endpoint, SaturnBinaries, Signal, Tolerance};

/// How long a node may take from its start until it can serve.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// The setting of a node's environment that says at which step it dies.
const DIE_AT: &str = "SATURN_DIE_AT";

/// What a cluster shall be like.
#[derive(Debug, Default)]
pub struct ClusterOptions {
    /// How many nodes. One node is started without `--cluster.join`.
    pub nodes: usize,
    /// How many zones they are dealt to in turn; 0: each has its own.
    pub zones: usize,
    /// The nodes' data folders; empty: folders of the cluster's own.
    pub data_dirs: Vec<PathBuf>,
    /// Arguments for all nodes, after the cluster's own.
    pub extra_args: Vec<String>,
}

/// One node, running or not.
#[derive(Debug)]
pub struct Node {
    /// Its `--node.id`, which also names its log files.
    pub id: String,
    /// Its data folder.
    pub data_dir: PathBuf,
    http: String,
    args: Vec<String>,
    process: Option<Process>,
    logs: Vec<PathBuf>,
}

/// A running cluster. A test that succeeds ends with [`Cluster::finish`]; otherwise the folder with logs
/// and data stays, and its name is printed.
#[derive(Debug)]
pub struct Cluster {
    binaries: SaturnBinaries,
    nodes: Vec<Node>,
    /// Where nodes that come later find the first ones, and what they are told besides.
    join: String,
    extra_args: Vec<String>,
    tolerance: Tolerance,
    // After the nodes: they are dropped, and with them their processes, before the folder is.
    folder: Option<TempDir>,
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

impl Node {
    /// `ports`: for HTTP, gRPC and gossip.
    fn new(id: String, zone: &str, data_dir: PathBuf, ports: &[u16], more: Vec<String>) -> Self {
        let http = address(ports[0]);
        let mut args = vec![
            format!("--node.id={id}"),
            format!("--node.zone={zone}"),
            format!("--http.listen={http}"),
            format!("--grpc.listen={}", address(ports[1])),
            format!("--gossip.listen={}", address(ports[2])),
        ];
        args.extend(more);
        Self { id, data_dir, http, args, process: None, logs: Vec::new() }
    }
}

impl Cluster {
    /// Starts `nodes` nodes, each in a zone of its own, and waits until all can serve.
    pub async fn start(nodes: usize) -> Result<Self> {
        Self::start_with(ClusterOptions { nodes, ..ClusterOptions::default() }).await
    }

    /// Starts a cluster and waits until all nodes can serve.
    pub async fn start_with(options: ClusterOptions) -> Result<Self> {
        let mut cluster = Self::new(options)?;
        for index in 0..cluster.nodes.len() {
            cluster.spawn(index)?;
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Makes a cluster of nodes that do not run yet.
    pub fn new(options: ClusterOptions) -> Result<Self> {
        let ClusterOptions { nodes: count, zones, data_dirs, extra_args } = options;
        ensure!(data_dirs.is_empty() || data_dirs.len() == count, "want one data folder a node");
        let folder = tempfile::Builder::new().prefix("saturn-test-").tempdir()?;
        let ports = free_ports(3 * count);
        let join = ports.chunks(3).map(|node| address(node[2])).collect::<Vec<_>>().join(",");
        let nodes = ports.chunks(3).enumerate().map(|(index, node_ports)| {
            let number = index + 1;
            let id = format!("node-{number}");
            let data_dir = data_dirs.get(index).cloned().unwrap_or_else(|| folder.path().join(&id));
            let zone = format!("zone-{}", if zones == 0 { number } else { index % zones + 1 });
            let mut args = Vec::new();
            if count > 1 {
                args.push(format!("--cluster.join={join}"));
            }
            args.extend(extra_args.iter().cloned());
            Node::new(id, &zone, data_dir, node_ports, args)
        });
        let nodes = nodes.collect();
        let binaries = SaturnBinaries::locate();
        Ok(Self { binaries, nodes, join, extra_args, tolerance: Tolerance::Quiet, folder: Some(folder) })
    }

    /// Adds a node that does not run yet and that joins the others; returns its index.
    pub fn add(&mut self, zone: &str) -> usize {
        let id = format!("node-{}", self.nodes.len() + 1);
        let data_dir = self.folder().join(&id);
        let mut args = vec![format!("--cluster.join={}", self.join)];
        args.extend(self.extra_args.iter().cloned());
        self.nodes.push(Node::new(id, zone, data_dir, &free_ports(3), args));
        self.nodes.len() - 1
    }

    /// Says what the logs may contain from now on; it only grows.
    pub fn tolerate(&mut self, tolerance: Tolerance) {
        self.tolerance = self.tolerance.max(tolerance);
    }

    /// The binaries that run.
    pub fn binaries(&self) -> &SaturnBinaries {
        &self.binaries
    }

    /// The cluster's own folder, for files of the test.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("only `finish` takes the folder").path()
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many nodes there are, running or not.
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// The node's HTTP API as `tenant`.
    pub fn endpoint(&self, index: usize, tenant: &str) -> Endpoint {
        Endpoint::of_tenant(&self.url(index), tenant)
    }

    /// The URL of a node's HTTP API.
    pub fn url(&self, index: usize) -> String {
        format!("http://{}", self.nodes[index].http)
    }

    /// `IP:PORT` of a node's HTTP API.
    pub fn http_address(&self, index: usize) -> &str {
        &self.nodes[index].http
    }

    /// The process id of a node that runs.
    pub fn pid(&self, index: usize) -> Result<u32> {
        Ok(self.nodes[index].process.as_ref().context("the node does not run")?.pid())
    }

    /// The process of a node that runs.
    pub fn process(&mut self, index: usize) -> Result<&mut Process> {
        self.nodes[index].process.as_mut().context("the node does not run")
    }

    /// Lets a node that does not run have another data folder from its next start.
    pub fn set_data_dir(&mut self, index: usize, data_dir: &Path) {
        self.nodes[index].data_dir = data_dir.to_owned();
    }

    /// The arguments of a node but its data folder, those for all nodes among them.
    pub fn node_args(&self, index: usize) -> &[String] {
        &self.nodes[index].args
    }

    /// All that a node has written since its first start.
    pub fn log_text(&self, index: usize) -> Result<String> {
        let read = |log| Ok(String::from_utf8_lossy(&std::fs::read(log)?).into_owned());
        self.nodes[index].logs.iter().map(read).collect()
    }

    /// Runs `saturnctl` against a node; it must succeed. Returns what it printed.
    pub fn saturnctl(&self, index: usize, args: &[&str]) -> Result<String> {
        output_of(self.saturnctl_command(index, args))
    }

    /// The same in a thread of its own, for what may have to wait for nodes that the caller starts meanwhile.
    pub fn spawn_saturnctl(&self, index: usize, args: &[&str]) -> JoinHandle<Result<String>> {
        let command = self.saturnctl_command(index, args);
        tokio::task::spawn_blocking(move || output_of(command))
    }

    fn saturnctl_command(&self, index: usize, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.saturnctl);
        command.arg("--address").arg(self.url(index)).args(args);
        command
    }

    /// Starts a node without waiting for it.
    pub fn spawn(&mut self, index: usize) -> Result<()> {
        self.start_process(index, None)
    }

    fn start_process(&mut self, index: usize, dies_at: Option<&str>) -> Result<()> {
        let folder = self.folder().to_owned();
        let node = &mut self.nodes[index];
        ensure!(node.process.is_none(), "{} runs already", node.id);
        let log = folder.join(format!("{}.{}.log", node.id, node.logs.len() + 1));
        let mut command = saturn_command(&self.binaries.saturn);
        command.arg("--data-dir").arg(&node.data_dir).args(&node.args);
        command.envs(dies_at.map(|step| (DIE_AT, step)));
        node.process = Some(Process::spawn(&node.id, &mut command, &log)?);
        node.logs.push(log);
        Ok(())
    }

    /// Waits until every node that was started can serve.
    pub async fn wait_ready(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            if self.nodes[index].process.is_some() {
                self.wait_node_ready(index).await?;
            }
        }
        Ok(())
    }

    async fn wait_node_ready(&mut self, index: usize) -> Result<()> {
        let endpoint = Endpoint::plain(&self.url(index));
        let node = &mut self.nodes[index];
        let process = node.process.as_mut().context("the node does not run")?;
        let what = format!("{} is ready", node.id);
        let ready = eventually(&what, READY_LIMIT, async || {
            if process.ended()?.is_some() {
                return Ok(Some(false));
            }
            let reply = endpoint.get("/-/ready", &[]).await?;
            ensure!(reply.status == 200, "status {}: {}", reply.status, reply.text);
            Ok(Some(true))
        });
        let ready = ready.await;
        process.check_running()?;
        ready.with_context(|| format!("log of {}:\n{}", node.id, process.log_tail()))?;
        Ok(())
    }

    /// Kills a node with SIGKILL.
    pub fn kill9(&mut self, index: usize) -> Result<()> {
        self.process(index)?.kill9()?;
        self.nodes[index].process = None;
        Ok(())
    }

    /// Kills all nodes with SIGKILL, each before any is waited for.
    pub fn kill9_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                process.signal_kill()?;
            }
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].process.is_some() {
                self.kill9(index)?;
            }
        }
        Ok(())
    }

    /// Ends a node with SIGTERM; it must end in time and without an error.
    pub async fn terminate(&mut self, index: usize) -> Result<()> {
        self.process(index)?.terminate().await?;
        self.nodes[index].process = None;
        Ok(())
    }

    /// Starts a node that does not run, and waits until it can serve.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        self.spawn(index)?;
        self.wait_node_ready(index).await
    }

    /// Starts a node that does not run, and which must end by itself, with an error. Returns what it said.
    pub async fn refused(&mut self, index: usize) -> Result<String> {
        self.spawn(index)?;
        let process = self.process(index)?;
        let status = process.wait_end(READY_LIMIT).await?;
        let text = process.log_text();
        self.nodes[index].process = None;
        ensure!(status.code().is_some_and(|code| code != 0), "it ended with {status}:\n{text}");
        Ok(text)
    }

    /// Starts a node that does not run so that it dies when it first comes to a step of a move (`saturn_ring::steps`),
    /// and waits until it can serve or has died there.
    pub async fn start_to_die(&mut self, index: usize, step: &str) -> Result<()> {
        self.start_process(index, Some(step))?;
        let ready = self.wait_node_ready(index).await;
        if ready.is_err() && self.nodes[index].process.as_ref().is_some_and(|process| process.died_at(step)) {
            return Ok(());
        }
        ready
    }

    /// Whether a node has died at the step that it was started for; any other end is an error.
    pub fn has_died(&mut self, index: usize, step: &str) -> Result<bool> {
        let process = self.process(index)?;
        let Some(status) = process.ended()? else { return Ok(false) };
        ensure!(
            status.signal() == Some(libc::SIGKILL) && process.died_at(step),
            "ended with {status} and not at {step:?}:\n{}",
            process.log_tail()
        );
        self.nodes[index].process = None;
        Ok(true)
    }

    /// Starts all nodes that do not run, and waits until they can serve.
    pub async fn restart_all(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            if self.nodes[index].process.is_none() {
                self.spawn(index)?;
            }
        }
        self.wait_ready().await
    }

    /// Checks the logs, ends all nodes, and removes the folder.
    pub async fn finish(mut self) -> Result<()> {
        self.check_logs()?;
        // Nodes that end one after the other may complain about those that ended before.
        self.tolerate(Tolerance::Warnings);
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            process.signal(Signal::Terminate)?;
        }
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            process.wait_clean_end().await?;
        }
        self.check_logs()?;
        if let Some(folder) = self.folder.take() {
            folder.close()?;
        }
        Ok(())
    }

    /// Fails when a log has a line that this test does not expect.
    pub fn check_logs(&self) -> Result<()> {
        for log in self.nodes.iter().flat_map(|node| &node.logs) {
            let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
            let lines = unexpected(&text, self.tolerance);
            let shown = lines[..lines.len().min(10)].join("\n");
            ensure!(lines.is_empty(), "{} has {} unexpected lines:\n{shown}", log.display(), lines.len());
        }
        Ok(())
    }
}

impl Drop for Cluster {
    #[expect(clippy::print_stderr, reason = "the runner shows it with the failed test")]
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take() {
            eprintln!("logs and data are kept in {}", folder.keep().display());
        }
    }
}

/// What a command that must succeed prints.
fn output_of(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}:\n{out}{err}", output.status);
    Ok(out.into_owned())
}

/// A command of the server that no setting of this process's environment reaches.
pub(crate) fn saturn_command(binary: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SATURN_") {
            command.env_remove(name);
        }
    }
    command
}
