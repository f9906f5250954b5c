//! A node that should not start does not: it ends soon, with an error that says what to change.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use saturn_chaos_tests::{Cluster, ClusterOptions, Process, SaturnBinaries, Tolerance, free_ports};

/// How long a node may take to refuse.
const REFUSAL_LIMIT: Duration = Duration::from_secs(30);

/// Runs the server with these arguments; it must end with an error. Returns what it said.
async fn refused(folder: &Path, args: &[String]) -> Result<String> {
    let mut command = Command::new(SaturnBinaries::locate().saturn);
    let mut process =
        Process::spawn("saturn", command.args(args).current_dir(folder), &folder.join("refusal.log"))?;
    let status = process.wait_end(REFUSAL_LIMIT).await?;
    let text = process.log_text();
    ensure!(status.code().is_some_and(|code| code != 0), "{args:?} ended with {status}: {text}");
    ensure!(!text.contains("panicked"), "{args:?} panicked: {text}");
    Ok(text)
}

fn expect_words(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.to_lowercase().contains(&word.to_lowercase()), "{word:?} is not in: {text}");
    }
    Ok(())
}

/// Arguments of a node of its own, on free ports.
fn node_args(data_dir: &Path) -> Vec<String> {
    let ports = free_ports(3);
    vec![
        format!("--data-dir={}", data_dir.display()),
        "--node.id=node-1".to_owned(),
        format!("--http.listen=127.0.0.1:{}", ports[0]),
        format!("--grpc.listen=127.0.0.1:{}", ports[1]),
        format!("--gossip.listen=127.0.0.1:{}", ports[2]),
    ]
}

/// The same arguments with one replaced.
fn with_arg(args: &[String], flag: &str, value: &str) -> Vec<String> {
    let prefix = format!("{flag}=");
    args.iter().filter(|arg| !arg.starts_with(&prefix)).cloned().chain([format!("{prefix}{value}")]).collect()
}

#[tokio::test]
async fn wrong_settings_come_with_a_suggestion() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let args = node_args(&folder.path().join("data"));
    let unknown = [&args[..], &["--http.listn=127.0.0.1:1".to_owned()]].concat();
    expect_words(&refused(folder.path(), &unknown).await?, &["--http.listn", "--http.listen"])?;

    let config = folder.path().join("saturn.yml");
    std::fs::write(&config, "node:\n  zone: a\ncluster:\n  shrads: 4\n")?;
    let with_file = [&args[..], &[format!("--config.file={}", config.display())]].concat();
    let text = refused(folder.path(), &with_file).await?;
    expect_words(&text, &["saturn.yml", "line 4", "cluster.shrads", "cluster.shards"])?;

    let text = refused(folder.path(), &with_arg(&args, "--http.listen", "0.0.0.0:9090")).await?;
    expect_words(&text, &["--http.listen", "0.0.0.0"])?;
    let text = refused(folder.path(), &with_arg(&args, "--cluster.shards", "0")).await?;
    expect_words(&text, &["--cluster.shards", "\"0\"", "1 to 4096"])?;
    ensure!(!folder.path().join("data").exists(), "a node with wrong settings touched its data folder");
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let args = node_args(&folder.path().join("data"));
    for flag in ["--http.listen", "--grpc.listen"] {
        let taken = TcpListener::bind("127.0.0.1:0")?;
        let address = taken.local_addr()?.to_string();
        let text = refused(folder.path(), &with_arg(&args, flag, &address)).await?;
        expect_words(&text, &[&address, "in use"])?;
    }
    let taken = UdpSocket::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let text = refused(folder.path(), &with_arg(&args, "--gossip.listen", &address)).await?;
    expect_words(&text, &[&address, "in use"])
}

#[tokio::test]
async fn a_data_folder_belongs_to_one_running_node() -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let data_dir = cluster.nodes()[0].data_dir.clone();
    let folder = tempfile::tempdir()?;
    let text = refused(folder.path(), &node_args(&data_dir)).await?;
    expect_words(&text, &[&data_dir.display().to_string(), "in use"])?;
    cluster.process(0)?.check_running()?;

    cluster.terminate(0).await?;
    let other_id = with_arg(&node_args(&data_dir), "--node.id", "node-9");
    let text = refused(folder.path(), &other_id).await?;
    expect_words(&text, &["node-1", "node-9"])?;

    cluster.restart(0).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_data_folder_of_another_cluster_is_refused() -> Result<()> {
    let mut first = Cluster::start(3).await?;
    first.tolerate(Tolerance::Warnings);
    let foreign = first.nodes()[2].data_dir.clone();
    for index in 0..3 {
        first.terminate(index).await?;
    }

    let mut second = Cluster::start_with(ClusterOptions { nodes: 3, ..ClusterOptions::default() }).await?;
    second.tolerate(Tolerance::Errors);
    let own = second.nodes()[2].data_dir.clone();
    second.terminate(2).await?;
    second.set_data_dir(2, &foreign);
    second.spawn(2)?;
    let status = second.process(2)?.wait_end(REFUSAL_LIMIT).await?;
    let text = second.process(2)?.log_text();
    ensure!(!status.success(), "a node of another cluster ended with {status}: {text}");
    expect_words(&text, &["cluster"])?;
    second.kill9(2)?;

    second.set_data_dir(2, &own);
    second.restart(2).await?;
    second.finish().await?;
    first.finish().await
}
