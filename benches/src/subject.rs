//! What is measured: processes that take remote-write, and the folders that they write to.

use std::time::{Duration, Instant};

use anyhow::Result;
use saturn_chaos_tests::{Cluster, ClusterOptions, Endpoint, Tolerance, resident_bytes};

use crate::engine::weigh_data_dir;
use crate::peer::{Peer, PeerKind};
use crate::usage::{disk_bytes, process_cpu_seconds, written_bytes};

/// Tenant of everything that is sent to Saturn.
pub(crate) const TENANT: &str = "bench";

/// Saturn or a peer, running.
#[derive(Debug)]
pub enum Subject {
    /// A cluster of Saturn nodes, with as many copies of each sample as there are nodes, three at most.
    Saturn(Cluster),
    /// A single-node server of somebody else.
    Peer(Peer),
}

impl Subject {
    /// Starts `nodes` nodes of Saturn.
    pub async fn saturn(nodes: usize) -> Result<Self> {
        Self::start(ClusterOptions { nodes, ..ClusterOptions::default() }).await
    }

    /// Starts one node of Saturn with further flags.
    pub async fn saturn_with(args: &[&str]) -> Result<Self> {
        let extra_args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self::start(ClusterOptions { nodes: 1, extra_args, ..ClusterOptions::default() }).await
    }

    async fn start(options: ClusterOptions) -> Result<Self> {
        let mut cluster = Cluster::start_with(options).await?;
        // Under full load a node may complain about its disk.
        cluster.tolerate(Tolerance::Warnings);
        Ok(Self::Saturn(cluster))
    }

    /// Starts a peer.
    pub async fn peer(kind: PeerKind) -> Result<Self> {
        Ok(Self::Peer(Peer::start(kind).await?))
    }

    /// What a table calls it.
    pub fn name(&self) -> String {
        match self {
            Self::Saturn(cluster) => match cluster.size() {
                1 => "Saturn, 1 node, 1 copy".to_owned(),
                nodes => format!("Saturn, {nodes} nodes, {} copies", self.copies()),
            },
            Self::Peer(peer) => format!("{}, 1 node, 1 copy", peer.name()),
        }
    }

    /// Copies of each sample.
    pub fn copies(&self) -> u64 {
        match self {
            Self::Saturn(cluster) => cluster.size().min(3) as u64,
            Self::Peer(_) => 1,
        }
    }

    /// Where to write to and ask, one for each node.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        match self {
            Self::Saturn(cluster) => {
                (0..cluster.size()).map(|index| cluster.endpoint(index, TENANT)).collect()
            }
            Self::Peer(peer) => vec![peer.endpoint()],
        }
    }

    /// User and system CPU time of all processes so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        self.pids()?.iter().map(|pid| process_cpu_seconds(&pid.to_string())).sum()
    }

    /// Memory of all processes, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.pids()?.iter().map(|pid| resident_bytes(*pid)).sum()
    }

    /// What all processes have written to disks so far, in bytes.
    pub fn written_bytes(&self) -> Result<u64> {
        self.pids()?.iter().map(|pid| written_bytes(&pid.to_string())).sum()
    }

    fn pids(&self) -> Result<Vec<u32>> {
        match self {
            Self::Saturn(cluster) => (0..cluster.size()).map(|index| cluster.pid(index)).collect(),
            Self::Peer(peer) => Ok(vec![peer.pid()]),
        }
    }

    /// Kills every process and starts it again; says how long it took until all were ready.
    pub async fn kill_and_restart(&mut self) -> Result<Duration> {
        let started = Instant::now();
        match self {
            Self::Saturn(cluster) => {
                cluster.kill9_all()?;
                cluster.restart_all().await?;
            }
            Self::Peer(peer) => peer.kill_and_restart().await?,
        }
        Ok(started.elapsed())
    }

    /// Ends all processes in good order and says how many bytes their data takes on disk.
    pub async fn stop(self) -> Result<u64> {
        match self {
            Self::Saturn(mut cluster) => {
                let bytes = stop_nodes(&mut cluster).await?;
                cluster.finish().await?;
                Ok(bytes)
            }
            Self::Peer(peer) => peer.stop().await,
        }
    }

    /// Ends it, and says what its data takes on disk: with nothing left in memory or in logs, and after all
    /// merges, where it can be asked for them.
    pub async fn weigh(self) -> Result<(u64, Option<u64>)> {
        match self {
            Self::Saturn(mut cluster) => {
                stop_nodes(&mut cluster).await?;
                let (mut flushed, mut merged) = (0, 0);
                for node in cluster.nodes() {
                    let one = weigh_data_dir(&node.data_dir)?;
                    (flushed, merged) = (flushed + one.0, merged + one.1);
                }
                cluster.finish().await?;
                Ok((flushed, Some(merged)))
            }
            Self::Peer(peer) => peer.weigh().await,
        }
    }
}

async fn stop_nodes(cluster: &mut Cluster) -> Result<u64> {
    for index in 0..cluster.size() {
        cluster.terminate(index).await?;
    }
    cluster.nodes().iter().map(|node| disk_bytes(&node.data_dir)).sum()
}
