//! What is measured: processes that take remote-write, and the folders that they write to.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use saturn_chaos_tests::{Cluster, Endpoint, Process, eventually, free_ports};
use tempfile::TempDir;

const TENANT: &str = "bench";

/// How long a peer may take to start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a block in `st_blocks`, whatever the file system's own.
const STAT_BLOCK_BYTES: u64 = 512;

/// Clock ticks in a second in `/proc`, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Saturn or a peer, running.
#[derive(Debug)]
pub enum Subject {
    /// A cluster of Saturn nodes, with as many copies of each sample as there are nodes, three at most.
    Saturn(Cluster),
    /// Debian's single-node VictoriaMetrics.
    VictoriaMetrics {
        /// The server.
        process: Process,
        /// Its URL.
        url: String,
        /// Its data.
        folder: TempDir,
    },
}

impl Subject {
    /// Starts `nodes` nodes of Saturn.
    pub async fn saturn(nodes: usize) -> Result<Self> {
        Ok(Self::Saturn(Cluster::start(nodes).await?))
    }

    /// Starts VictoriaMetrics.
    pub async fn victoria_metrics() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("saturn-bench-peer-").tempdir()?;
        let address = format!("127.0.0.1:{}", free_ports(1)[0]);
        let mut command = Command::new("victoria-metrics");
        command
            .arg(format!("-storageDataPath={}", folder.path().join("data").display()))
            .arg(format!("-httpListenAddr={address}"))
            .args(["-retentionPeriod=100y", "-search.latencyOffset=0s"]);
        let mut process = Process::spawn("victoria-metrics", &mut command, &folder.path().join("log"))
            .context("install the package victoria-metrics")?;
        let url = format!("http://{address}");
        let endpoint = Endpoint::plain(&url);
        eventually("VictoriaMetrics answers", START_LIMIT, async || {
            process.check_running()?;
            ensure!(endpoint.get("/health", &[]).await?.status == 200, "not healthy");
            Ok(Some(()))
        })
        .await?;
        Ok(Self::VictoriaMetrics { process, url, folder })
    }

    /// What a table calls it.
    pub fn name(&self) -> String {
        match self {
            Self::Saturn(cluster) => match cluster.size() {
                1 => "Saturn, 1 node, 1 copy".to_owned(),
                nodes => format!("Saturn, {nodes} nodes, {} copies", self.copies()),
            },
            Self::VictoriaMetrics { .. } => "VictoriaMetrics, 1 node, 1 copy".to_owned(),
        }
    }

    /// Copies of each sample.
    pub fn copies(&self) -> u64 {
        match self {
            Self::Saturn(cluster) => cluster.size().min(3) as u64,
            Self::VictoriaMetrics { .. } => 1,
        }
    }

    /// Where to write to and ask, one for each node.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        match self {
            Self::Saturn(cluster) => {
                (0..cluster.size()).map(|index| cluster.endpoint(index, TENANT)).collect()
            }
            Self::VictoriaMetrics { url, .. } => vec![Endpoint::plain(url)],
        }
    }

    /// User and system CPU time of all processes so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.pids()?.iter().map(|pid| process_cpu_seconds(*pid)).sum()
    }

    fn pids(&self) -> Result<Vec<u32>> {
        match self {
            Self::Saturn(cluster) => (0..cluster.size()).map(|index| cluster.pid(index)).collect(),
            Self::VictoriaMetrics { process, .. } => Ok(vec![process.pid()]),
        }
    }

    /// Ends all processes in good order and says how many bytes their data takes on disk.
    pub async fn stop(self) -> Result<u64> {
        match self {
            Self::Saturn(mut cluster) => {
                for index in 0..cluster.size() {
                    cluster.terminate(index).await?;
                }
                let folders = cluster.nodes().iter().map(|node| disk_bytes(&node.data_dir));
                let bytes = folders.sum::<Result<u64>>()?;
                // The last nodes to stop may have complained about the first.
                cluster.tolerate(saturn_chaos_tests::Tolerance::Warnings);
                cluster.finish().await?;
                Ok(bytes)
            }
            Self::VictoriaMetrics { mut process, folder, .. } => {
                process.terminate().await?;
                disk_bytes(&folder.path().join("data"))
            }
        }
    }
}

/// User and system CPU time of a process.
fn process_cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(path)?;
    let (user, system) = stat_fields(&stat, 14).context("/proc/<pid>/stat has 52 fields")?;
    Ok((user + system) / TICKS_PER_SECOND)
}

/// User and system CPU time of all children of this process that have ended.
pub(crate) fn ended_children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (user, system) = stat_fields(&stat, 16).context("/proc/self/stat has 52 fields")?;
    Ok((user + system) / TICKS_PER_SECOND)
}

/// The field with this number, counted from 1 as in proc(5), and the next. The second field is a name in
/// brackets that may hold anything.
fn stat_fields(stat: &str, number: usize) -> Option<(f64, f64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(number - 3);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// What a folder takes on disk.
fn disk_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            bytes += metadata.blocks() * STAT_BLOCK_BYTES;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 3 4 20 0";
        assert_eq!(stat_fields(stat, 14), Some((250.0, 50.0)));
        assert_eq!(stat_fields(stat, 16), Some((3.0, 4.0)));
        assert_eq!(stat_fields("7 (x) S", 14), None);
    }

    #[test]
    fn disk_space_is_what_files_take() -> Result<()> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("inner"))?;
        fs::write(folder.path().join("inner/file"), vec![1; 100_000])?;
        assert!(disk_bytes(folder.path())? >= 100_000);
        Ok(())
    }
}
