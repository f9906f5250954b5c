//! `saturn demo`: a three-zone cluster of three `saturn` processes on this machine, which watches itself.
//!
//! The children are this very program with flags that anybody could give. The parent scrapes their
//! `/metrics` and a few figures of the host into the tenant `demo`, over the same HTTP API that users have.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use saturn_model::{Labels, Sample, TimestampMs};
use saturn_proto::remote_write::put_time_series;
use saturn_proto::snappy;
use tokio::process::Child;

use crate::{clock, exposition, stop_signal};

const NODES: u16 = 3;
const TENANT: &str = "demo";
const SCRAPE_EVERY: Duration = Duration::from_secs(5);
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Marks a child of the demo, so that it ends with its parent.
const CHILD_VARIABLE: &str = "SATURN_DEMO_CHILD";

/// What the user asked for.
pub(crate) struct Options {
    keep: Option<PathBuf>,
    http_port: u16,
}

/// The subcommand's command line.
pub(crate) fn command() -> Command {
    Command::new("demo")
        .about("Runs a three-zone cluster of three nodes on this machine")
        .arg(
            Arg::new("keep")
                .long("keep")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Keep the data in DIR [default: a temporary folder, removed at the end]"),
        )
        .arg(
            Arg::new("http-port")
                .long("http-port")
                .value_name("PORT")
                .default_value("9090")
                .value_parser(value_parser!(u16).range(1..65_000))
                .help("HTTP port of the first node; the others take the next ones that are free"),
        )
}

impl Options {
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        Self {
            keep: matches.get_one("keep").cloned(),
            http_port: *matches.get_one("http-port").expect("it has a default"),
        }
    }
}

/// In a child of the demo: asks the kernel for SIGTERM when the parent dies, however it dies.
pub(crate) fn die_with_parent_if_child() {
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        let asked = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
        if let Err(e) = asked {
            tracing::info!(error = %e, "this node will outlive a demo that is killed");
        }
    }
}

/// One node of the demo.
struct DemoNode {
    id: String,
    zone: String,
    http: SocketAddr,
    grpc: SocketAddr,
    gossip: SocketAddr,
    log: PathBuf,
}

/// Runs the demo until Ctrl-C.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let stop_asked = stop_signal();
    let temporary;
    let dir: &Path = match &options.keep {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
            dir
        }
        None => {
            temporary = tempfile::Builder::new().prefix("saturn-demo-").tempdir()?;
            temporary.path()
        }
    };
    let nodes = plan(dir, options.http_port)?;
    say(&format!("Starting {NODES} nodes with data under {} ...", dir.display()));
    let mut children = Vec::new();
    for node in &nodes {
        children.push(start(node, &nodes, dir)?);
    }
    let outcome = tokio::select! {
        () = stop_asked => Ok(()),
        failed = supervise(&nodes, &mut children) => Err(failed),
    };
    say("\nStopping ...");
    stop(&mut children).await;
    if options.keep.is_some() {
        say(&format!("Stopped. The data is kept in {}; the same command goes on with it.", dir.display()));
    } else {
        say("Stopped. The data is removed.");
    }
    outcome
}

/// Prints to standard output; a closed one is no reason to stop.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Chooses names and ports. A kept directory keeps its ports in the cluster's memory only by node id, so they
/// may differ from run to run.
fn plan(dir: &Path, http_port: u16) -> anyhow::Result<Vec<DemoNode>> {
    let mut taken = Vec::new();
    let mut nodes = Vec::new();
    for i in 1..=NODES {
        let port = |wanted: u16, taken: &mut Vec<u16>| free_port(wanted, taken);
        nodes.push(DemoNode {
            id: format!("demo-{i}"),
            zone: format!("zone-{}", char::from(b'a' + u8::try_from(i - 1).expect("few nodes"))),
            http: port(http_port + i - 1, &mut taken)?,
            grpc: port(9095 + i - 1, &mut taken)?,
            gossip: port(7946 + i - 1, &mut taken)?,
            log: dir.join(format!("demo-{i}.log")),
        });
    }
    Ok(nodes)
}

/// `wanted` on loopback, or the next port above it that is free for TCP and UDP.
fn free_port(wanted: u16, taken: &mut Vec<u16>) -> anyhow::Result<SocketAddr> {
    for port in (wanted..=u16::MAX).take(2000).filter(|port| !taken.contains(port)) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            taken.push(port);
            return Ok(address);
        }
    }
    bail!("no free port from {wanted} on")
}

fn start(node: &DemoNode, all: &[DemoNode], dir: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let join: Vec<String> = all.iter().map(|node| node.gossip.to_string()).collect();
    let log = File::options().create(true).append(true).open(&node.log);
    let log = log.with_context(|| format!("cannot write {}", node.log.display()))?;
    let mut command = tokio::process::Command::new(program);
    command
        .arg("--data-dir")
        .arg(dir.join(&node.id))
        .args(["--node.id", &node.id, "--node.zone", &node.zone])
        .args(["--http.listen", &node.http.to_string(), "--grpc.listen", &node.grpc.to_string()])
        .args(["--gossip.listen", &node.gossip.to_string(), "--cluster.join", &join.join(",")])
        .args(["--cluster.replication-factor", "3", "--tenant.default", TENANT])
        .env(CHILD_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C reaches the parent only; it stops the children in order.
        .process_group(0)
        .kill_on_drop(true);
    command.spawn().with_context(|| format!("cannot start {}", node.id))
}

/// Waits until the cluster is ready, says so, and scrapes; returns only what went wrong.
async fn supervise(nodes: &[DemoNode], children: &mut [Child]) -> anyhow::Error {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build();
    let http = match http {
        Ok(http) => http,
        Err(e) => return anyhow::Error::new(e).context("cannot make an HTTP client"),
    };
    if let Err(e) = wait_until_ready(&http, nodes, children).await {
        return e;
    }
    if let Err(e) = scrape_all(&http, nodes).await {
        return e.context("the first scrape was not stored");
    }
    say(&introduction(nodes));
    let mut ended = vec![false; nodes.len()];
    let mut ticks = tokio::time::interval(SCRAPE_EVERY);
    loop {
        ticks.tick().await;
        if let Err(e) = scrape_all(&http, nodes).await {
            say(&format!("A scrape was not stored: {e:#}"));
        }
        for ((node, child), ended) in nodes.iter().zip(children.iter_mut()).zip(&mut ended) {
            match child.try_wait() {
                Ok(Some(status)) if !*ended => {
                    *ended = true;
                    let log = node.log.display();
                    say(&format!("{} has ended ({status}); the others go on. Its log: {log}", node.id));
                }
                _ => {}
            }
        }
    }
}

async fn wait_until_ready(
    http: &reqwest::Client,
    nodes: &[DemoNode],
    children: &mut [Child],
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    for (node, child) in nodes.iter().zip(children) {
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended at its start ({status}): see {}", node.id, node.log.display());
            }
            let ready = http.get(format!("http://{}/-/ready", node.http)).send().await;
            if ready.is_ok_and(|reply| reply.status().is_success()) {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                bail!("{} is not ready after {READY_WITHIN:?}: see {}", node.id, node.log.display());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// Scrapes every node and the host, and writes all of it to the first node that takes it.
async fn scrape_all(http: &reqwest::Client, nodes: &[DemoNode]) -> anyhow::Result<()> {
    let now = TimestampMs(clock::unix_ms());
    let mut request = Vec::new();
    let mut put = |labels: &Labels, value: f64| {
        put_time_series(&mut request, labels.iter(), &[Sample { timestamp: now, value }]);
    };
    for node in nodes {
        let instance = node.http.to_string();
        let target = [("job", "saturn"), ("instance", instance.as_str()), ("zone", node.zone.as_str())];
        let text = match http.get(format!("http://{instance}/metrics")).send().await {
            Ok(reply) => reply.text().await.ok(),
            Err(_) => None,
        };
        let up = if text.is_some() { 1.0 } else { 0.0 };
        put(&Labels::from_pairs(target.iter().copied().chain([("__name__", "up")]))?, up);
        for line in text.iter().flat_map(|text| exposition::parse(text)) {
            put(&line.series(&target)?, line.value);
        }
    }
    for (name, pairs, value) in host_figures() {
        let pairs = pairs.iter().map(|(n, v)| (*n, v.as_str()));
        put(&Labels::from_pairs(pairs.chain([("__name__", name), ("job", "host")]))?, value);
    }
    let body = snappy::compress(&request);
    let mut last_error = anyhow::anyhow!("no node answers");
    for node in nodes {
        let reply = http
            .post(format!("http://{}/api/v1/write", node.http))
            .header("content-type", "application/x-protobuf")
            .header("content-encoding", "snappy")
            .header("x-scope-orgid", TENANT)
            .body(body.clone())
            .send()
            .await;
        match reply {
            Ok(reply) if reply.status().is_success() => return Ok(()),
            Ok(reply) => {
                let status = reply.status();
                last_error = anyhow::anyhow!("{} answers {status}: {}", node.id, reply.text().await?);
            }
            Err(e) => last_error = e.into(),
        }
    }
    Err(last_error)
}

type Figure = (&'static str, Vec<(&'static str, String)>, f64);

/// Load, memory and CPU time of this host, under the names that node_exporter gives them.
fn host_figures() -> Vec<Figure> {
    use procfs::{Current as _, CurrentSI as _};
    let mut figures: Vec<Figure> = Vec::new();
    if let Ok(load) = procfs::LoadAverage::current() {
        // The kernel gives two decimals; single precision would add noise to them.
        let exact = |load: f32| (f64::from(load) * 100.0).round() / 100.0;
        figures.push(("node_load1", vec![], exact(load.one)));
        figures.push(("node_load5", vec![], exact(load.five)));
    }
    if let Ok(memory) = procfs::Meminfo::current() {
        figures.push(("node_memory_MemTotal_bytes", vec![], memory.mem_total as f64));
        let available = memory.mem_available.unwrap_or(memory.mem_free);
        figures.push(("node_memory_MemAvailable_bytes", vec![], available as f64));
    }
    if let Ok(stat) = procfs::KernelStats::current() {
        let ticks = procfs::ticks_per_second() as f64;
        for (cpu, times) in stat.cpu_time.iter().enumerate() {
            let modes = [
                ("user", times.user),
                ("system", times.system),
                ("idle", times.idle),
                ("iowait", times.iowait.unwrap_or_default()),
            ];
            for (mode, time) in modes {
                let pairs = vec![("cpu", cpu.to_string()), ("mode", mode.to_owned())];
                figures.push(("node_cpu_seconds_total", pairs, time as f64 / ticks));
            }
        }
    }
    figures
}

async fn stop(children: &mut [Child]) {
    for child in children.iter() {
        let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            // The only failure is that it has ended already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    for child in children {
        if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

/// How the user can call `saturnctl`: it is built into the folder of this program.
fn saturnctl() -> String {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name("saturnctl"));
    let beside = beside.filter(|path| path.exists());
    beside.map_or_else(|| "saturnctl".into(), |path| path.display().to_string())
}

fn introduction(nodes: &[DemoNode]) -> String {
    let first = nodes[0].http;
    let list: String = nodes
        .iter()
        .map(|node| {
            format!("  {}  {}  http://{}  log: {}\n", node.id, node.zone, node.http, node.log.display())
        })
        .collect();
    format!(
        r#"
Saturn is ready: 3 nodes in 3 zones, replication factor 3.

{list}
API      http://{first}

Send it your own metrics (prometheus.yml):

  remote_write:
    - url: http://{first}/t/{TENANT}/api/v1/write

Ask it (any node gives the same answer):

  curl -s 'http://{first}/api/v1/query?query=sum(up)'

  {{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[<now>,"3"]}}]}}}}

What to try next:

  {ctl} --address http://{first} ring status
  {ctl} --address http://{first} query instant 'rate(process_cpu_seconds_total[1m])'
  {ctl} --address http://{first} doctor
  kill -9 $(pgrep -f 'node.id {victim}')    then ask the other two again: the answers stay complete

Ctrl-C stops everything.
"#,
        ctl = saturnctl(),
        victim = nodes[2].id,
    )
}
