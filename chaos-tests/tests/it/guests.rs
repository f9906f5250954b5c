//! Who does not belong to a cluster changes nothing in it: what they send is dropped, counted and explained once.
//! And the secret by which members know each other is rotated while they work.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Endpoint, Process, SaturnBinaries, Signal, Tolerance, Writer, WriterOptions,
    eventually, free_ports,
};
use saturn_ring::{
    Action, BOOT_NONCE_BYTES, ClusterId, Generation, KeyRing, Member, Membership, MembershipConfig, NodeId,
    Zone,
};
use serde_json::Value;
use uuid::Uuid;

const SECRET: &str = "the secret of this cluster";
const OTHER_SECRET: &str = "the secret of another one";
const LIMIT: Duration = Duration::from_secs(60);
/// A node defends its name from then on, in milliseconds after its start.
const SETTLED_MS: i64 = 10_000;

/// A cluster whose secrets are in a file.
struct Guarded {
    cluster: Cluster,
    file: PathBuf,
    folder: tempfile::TempDir,
}

fn write_secrets(file: &Path, secrets: &[&str]) -> Result<()> {
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, secrets.join("\n"))?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    Ok(std::fs::rename(temporary, file)?)
}

async fn guarded() -> Result<Guarded> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("secret");
    write_secrets(&file, &[SECRET])?;
    let extra_args = vec![format!("--cluster.secret-file={}", file.display())];
    let cluster =
        Cluster::start_with(ClusterOptions { nodes: 3, extra_args, ..ClusterOptions::default() }).await?;
    Ok(Guarded { cluster, file, folder })
}

fn gossip_address(cluster: &Cluster, index: usize) -> Result<String> {
    let arg = cluster.node_args(index).iter().find_map(|arg| arg.strip_prefix("--gossip.listen="));
    Ok(arg.context("nodes listen to gossip")?.to_owned())
}

/// A hello as a node of another cluster, or with another secret, would send it.
fn hello(secret: &str, cluster: u128) -> Result<Vec<u8>> {
    let address = "127.0.0.1:9".parse()?;
    let me = Member {
        id: NodeId::new("guest")?,
        generation: Generation(Uuid::from_u128(9)),
        zone: Zone::new("zone-9")?,
        gossip_addr: address,
        grpc_addr: address,
        http_addr: address,
    };
    let config = MembershipConfig {
        me,
        boot: 1,
        keys: KeyRing::new(&[secret.as_bytes()])?,
        seeds: vec!["127.0.0.1:10".parse()?],
        boot_nonce: [7; BOOT_NONCE_BYTES],
        rng_seed: 1,
        cluster: Some(ClusterId(Uuid::from_u128(cluster))),
        placement_version: 1,
    };
    let mut actions = Vec::new();
    Membership::new(config, Duration::ZERO).handle_tick(Duration::ZERO, &mut actions);
    let packet = actions.into_iter().find_map(|action| match action {
        Action::Send { packet, .. } => Some(packet),
        Action::Event(_) => None,
    });
    packet.context("a node that is alone says hello")
}

async fn dropped(cluster: &Cluster, index: usize, reason: &str) -> Result<u64> {
    let text = Endpoint::plain(&cluster.url(index)).get("/metrics", &[]).await?.text;
    let prefix = format!("saturn_ring_dropped_packets_total{{reason=\"{reason}\"}} ");
    let count = text.lines().find_map(|line| line.strip_prefix(&prefix));
    Ok(count.with_context(|| format!("no counter for {reason}"))?.parse()?)
}

/// The members as a node sees them: id, state, generation and gossip address.
async fn members(cluster: &Cluster, index: usize) -> Result<Vec<[String; 4]>> {
    let reply = Endpoint::plain(&cluster.url(index)).get("/api/v1/status/ring", &[]).await?;
    let report: Value = serde_json::from_str(&reply.text)?;
    let members = report["data"]["members"].as_array().with_context(|| reply.text.clone())?;
    let field = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    let of = |m: &Value| ["id", "state", "generation", "gossipAddress"].map(|key| field(m, key));
    Ok(members.iter().map(of).collect())
}

/// Waits until all nodes see the same members as before.
async fn unchanged(cluster: &Cluster, before: &[[String; 4]]) -> Result<()> {
    for index in 0..3 {
        eventually("the members are as before", LIMIT, async || {
            let now = members(cluster, index).await?;
            ensure!(now == before, "node {index} sees {now:?}");
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

fn lines_with<'a>(log: &'a str, words: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect()
}

#[tokio::test]
async fn packets_of_strangers_change_nothing_and_are_explained_once() -> Result<()> {
    let Guarded { mut cluster, folder: _folder, .. } = guarded().await?;
    cluster.tolerate(Tolerance::Warnings);
    let before = members(&cluster, 0).await?;
    let to = gossip_address(&cluster, 0)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let foreign = hello(SECRET, 5)?;
    let mut corrupted = foreign.clone();
    *corrupted.last_mut().context("not empty")? ^= 1;
    let cases = [
        ("foreign_cluster", foreign.clone(), "packet of another cluster dropped"),
        ("replayed", foreign, "it came before"),
        ("tampered", corrupted, "it was altered on the way"),
        ("unknown_key", hello(OTHER_SECRET, 5)?, "a secret that this node does not have"),
        ("length", b"hello".to_vec(), "it is no packet of a member"),
    ];
    for (reason, packet, words) in &cases {
        let count = dropped(&cluster, 0, reason).await?;
        // The second one of a kind is only counted; that of a foreign cluster is a replay.
        let times = if *reason == "foreign_cluster" { 1 } else { 2 };
        for _ in 0..times {
            socket.send_to(packet, &to)?;
        }
        eventually("the packets are counted", LIMIT, async || {
            Ok((dropped(&cluster, 0, reason).await? == count + times).then_some(()))
        })
        .await?;
        let log = cluster.log_text(0)?;
        let told = lines_with(&log, &[words]);
        ensure!(told.len() == 1, "{reason}: {told:?}");
    }
    unchanged(&cluster, &before).await?;
    cluster.finish().await
}

/// A process beside the cluster, with arguments of `index` but for its addresses, data folder, and what is given.
fn spawn_beside(cluster: &Cluster, index: usize, data_dir: &Path, other: &[&str]) -> Result<Process> {
    let ports = free_ports(3);
    let own = [
        format!("--data-dir={}", data_dir.display()),
        format!("--http.listen=127.0.0.1:{}", ports[0]),
        format!("--grpc.listen=127.0.0.1:{}", ports[1]),
        format!("--gossip.listen=127.0.0.1:{}", ports[2]),
    ];
    let own: Vec<String> = own.into_iter().chain(other.iter().map(|arg| (*arg).to_owned())).collect();
    let flag = |arg: &str| arg.split('=').next().unwrap_or_default().to_owned();
    let replaced = |arg: &&String| own.iter().any(|own| flag(own) == flag(arg));
    let args = cluster.node_args(index).iter().filter(|arg| !replaced(arg)).chain(&own);
    let mut command = Command::new(SaturnBinaries::locate().saturn);
    Process::spawn("guest", command.args(args), &data_dir.with_extension("log"))
}

#[tokio::test]
async fn a_node_with_a_wrong_secret_stays_outside() -> Result<()> {
    let Guarded { mut cluster, file, folder: _folder } = guarded().await?;
    cluster.tolerate(Tolerance::Warnings);
    let before = members(&cluster, 0).await?;
    let wrong = file.with_file_name("wrong");
    write_secrets(&wrong, &[OTHER_SECRET])?;
    let secret = format!("--cluster.secret-file={}", wrong.display());
    let data_dir = cluster.folder().join("guest");
    let mut guest = spawn_beside(&cluster, 2, &data_dir, &["--node.id=guest", &secret])?;
    eventually("its packets are dropped", LIMIT, async || {
        guest.check_running()?;
        Ok((dropped(&cluster, 0, "unknown_key").await? > 3).then_some(()))
    })
    .await?;
    let log = cluster.log_text(0)?;
    ensure!(lines_with(&log, &["unknown_key", "secret"]).len() == 1, "{log}");
    unchanged(&cluster, &before).await?;
    guest.kill9()?;
    cluster.finish().await
}

/// Waits until a node has been up for long enough to defend its name.
async fn settled(cluster: &Cluster, index: usize) -> Result<()> {
    let id = cluster.nodes()[index].id.clone();
    let since = async || -> Result<i64> {
        let reply = Endpoint::plain(&cluster.url(index)).get("/api/v1/status/ring", &[]).await?;
        let report: Value = serde_json::from_str(&reply.text)?;
        let member = report["data"]["members"].as_array().into_iter().flatten().find(|m| m["id"] == *id);
        let since = member.and_then(|member| member["since"].as_str()).context("it knows itself")?;
        Ok(since.parse::<jiff::Timestamp>()?.as_millisecond())
    };
    eventually("it is settled", LIMIT, async || {
        // Half a second more, as the time is rounded to seconds.
        let age = saturn_chaos_tests::now_ms() - since().await?;
        Ok((age > SETTLED_MS + 1500).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_copy_of_a_data_folder_and_a_lost_one_are_refused_while_the_node_lives() -> Result<()> {
    let Guarded { mut cluster, folder: _folder, .. } = guarded().await?;
    cluster.terminate(2).await?;
    let copy = cluster.folder().join("copy");
    let done = Command::new("cp").arg("-a").arg(&cluster.nodes()[2].data_dir).arg(&copy).status()?;
    ensure!(done.success(), "cp ended with {done}");
    cluster.restart(2).await?;
    settled(&cluster, 2).await?;
    cluster.tolerate(Tolerance::Warnings);
    let before = members(&cluster, 2).await?;
    unchanged(&cluster, &before).await?;

    let mut guest = spawn_beside(&cluster, 2, &copy, &[])?;
    let status = guest.wait_end(LIMIT).await?;
    let text = guest.log_text();
    ensure!(!status.success() && !text.contains("panicked"), "the copy ended with {status}: {text}");
    ensure!(text.contains("node node-3 runs at") && text.contains("is a copy"), "{text}");
    unchanged(&cluster, &before).await?;
    let log = cluster.log_text(2)?;
    ensure!(lines_with(&log, &["another process uses this"]).len() == 1, "{log}");
    ensure!(dropped(&cluster, 2, "name_conflict").await? > 0, "counted");

    // The same id with a new folder: the disk was lost, and it has another generation.
    let lost = cluster.folder().join("lost");
    let mut guest = spawn_beside(&cluster, 2, &lost, &[])?;
    let status = guest.wait_end(LIMIT).await?;
    let text = guest.log_text();
    ensure!(!status.success() && !text.contains("panicked"), "the new folder ended with {status}: {text}");
    ensure!(text.contains("node-3") && text.contains("generation"), "{text}");
    unchanged(&cluster, &before).await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_secret_is_rotated_under_load() -> Result<()> {
    const NEW: &str = "the next secret of this cluster";
    let Guarded { mut cluster, file, folder: _folder } = guarded().await?;
    let before = members(&cluster, 0).await?;
    let targets = (0..3).map(|index| cluster.endpoint(index, "rotation")).collect();
    let writer =
        Writer::start(WriterOptions { number: 1, lanes: 8, targets, retries: 0, pause: Writer::PAUSE });
    writer.wait_acked(20, LIMIT).await?;
    for (round, secrets) in [&[SECRET, NEW][..], &[NEW, SECRET], &[NEW]].into_iter().enumerate() {
        write_secrets(&file, secrets)?;
        for index in 0..3 {
            cluster.process(index)?.signal(Signal::Hangup)?;
            eventually("the node has the new secrets", LIMIT, async || {
                let log = cluster.log_text(index)?;
                let replaced = lines_with(&log, &["secrets were replaced"]).len();
                Ok((replaced == round + 1).then_some(()))
            })
            .await?;
            writer.wait_acked(20, LIMIT).await?;
        }
    }
    unchanged(&cluster, &before).await?;
    for index in 0..3 {
        ensure!(dropped(&cluster, index, "unknown_key").await? == 0, "nobody was ever left without a key");
    }
    writer.stop().await?.check(&cluster.endpoint(1, "rotation")).await?;
    // A file that is of no use changes nothing, and is complained of; the old secret is that of a stranger now.
    cluster.tolerate(Tolerance::Warnings);
    write_secrets(&file, &["short"])?;
    cluster.process(0)?.signal(Signal::Hangup)?;
    eventually("the node complains", LIMIT, async || {
        let log = cluster.log_text(0)?;
        Ok((!lines_with(&log, &["is of no use", "holds 5 bytes"]).is_empty()).then_some(()))
    })
    .await?;
    write_secrets(&file, &[NEW])?;
    UdpSocket::bind("127.0.0.1:0")?.send_to(&hello(SECRET, 5)?, gossip_address(&cluster, 0)?)?;
    eventually("the old secret is refused", LIMIT, async || {
        Ok((dropped(&cluster, 0, "unknown_key").await? == 1).then_some(()))
    })
    .await?;
    unchanged(&cluster, &before).await?;
    cluster.finish().await
}
