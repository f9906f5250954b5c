//! `saturnctl` against a whole cluster, and against one with a dead node.

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{Cluster, SaturnBinaries, Tolerance, eventually, now_ms};
use serde_json::Value;

const TENANT: &str = "operator";

/// How long the survivors may take to see that a node is gone.
const DETECTION_LIMIT: Duration = Duration::from_secs(30);

/// Runs `saturnctl` against a node.
fn saturnctl(cluster: &Cluster, index: usize, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(&cluster.binaries().saturnctl);
    command.arg("--address").arg(cluster.url(index)).args(args);
    command.output().with_context(|| format!("{command:?}"))
}

/// What a run that must succeed wrote.
fn success(cluster: &Cluster, index: usize, args: &[&str]) -> Result<String> {
    let output = saturnctl(cluster, index, args)?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "saturnctl {args:?} ended with {}:\n{out}{err}", output.status);
    Ok(out.into_owned())
}

fn ring_status(cluster: &Cluster, index: usize) -> Result<Value> {
    Ok(serde_json::from_str(&success(cluster, index, &["ring", "status", "-o", "json"])?)?)
}

/// The states of the members as a node sees them, by node id.
fn states(status: &Value) -> Vec<(String, String)> {
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    let members = status["members"].as_array().map_or(&[][..], Vec::as_slice);
    let mut states: Vec<_> =
        members.iter().map(|member| (text(member, "id"), text(member, "state"))).collect();
    states.sort();
    states
}

fn expected_states(dead: Option<&str>) -> Vec<(String, String)> {
    let state = |id: &str| if dead == Some(id) { "down" } else { "alive" };
    ["node-1", "node-2", "node-3"].iter().map(|id| ((*id).to_owned(), state(id).to_owned())).collect()
}

fn check_whole_ring(cluster: &Cluster) -> Result<()> {
    for index in 0..3 {
        let status = ring_status(cluster, index)?;
        ensure!(states(&status) == expected_states(None), "node {index} sees {status}");
        ensure!(status["replicationFactor"] == 3 && status["shards"] == 64, "{status}");
        for member in status["members"].as_array().context("members")? {
            ensure!(
                member["shardsOwned"] == 64,
                "with three nodes and three replicas each has all: {member}"
            );
            let zone = member["id"].as_str().unwrap_or_default().replace("node", "zone");
            ensure!(member["zone"] == zone.as_str(), "{member}");
            ensure!(member["since"].as_str().is_some_and(|since| since.contains('T')), "{member}");
        }
    }
    let table = success(cluster, 0, &["ring", "status"])?;
    for word in ["node-1", "node-2", "node-3", "zone-1", "zone-2", "zone-3", "alive", "64"] {
        ensure!(table.contains(word), "{word} is not in the table:\n{table}");
    }
    Ok(())
}

fn check_queries(cluster: &Cluster, now: i64) -> Result<()> {
    let time = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
    let instant = ["query", "instant", "operator_test", "--tenant", TENANT, "--time", &time(now)];
    let text = success(cluster, 1, &instant)?;
    ensure!(text.contains("operator_test") && text.contains("42"), "{text}");
    let (start, end) = (time(now), time(now + 4000));
    let range = [
        "query",
        "range",
        "operator_test * 2",
        "--tenant",
        TENANT,
        "--start",
        &start,
        "--end",
        &end,
        "--step",
        "2s",
    ];
    let text = success(cluster, 2, &range)?;
    ensure!(text.matches("84").count() >= 3, "{text}");
    let wrong = saturnctl(cluster, 0, &["query", "instant", "sum(", "--tenant", TENANT])?;
    ensure!(!wrong.status.success() && !wrong.stderr.is_empty(), "a wrong query is an error");
    Ok(())
}

#[tokio::test]
async fn saturnctl_shows_a_whole_and_a_damaged_cluster() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let now = now_ms() - 5000;
    let series = [Series::new(&[("__name__", "operator_test")], &[(now, 42.0)])];
    let reply = cluster.endpoint(0, TENANT).write(&series).await?;
    ensure!(reply.status == 204, "{reply:?}");
    eventually("all nodes see all nodes", DETECTION_LIMIT, async || check_whole_ring(&cluster).map(Some))
        .await?;
    check_queries(&cluster, now)?;
    check_digests(&cluster).await?;
    let text = success(&cluster, 0, &["doctor"])?;
    for word in ["node-1", "node-2", "node-3", "clock", "disk"] {
        ensure!(text.to_lowercase().contains(word), "{word} is not in:\n{text}");
    }

    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9(2)?;
    for index in [0, 1] {
        eventually("the dead node is seen as down", DETECTION_LIMIT, async || {
            let status = ring_status(&cluster, index)?;
            ensure!(states(&status) == expected_states(Some("node-3")), "{status}");
            Ok(Some(()))
        })
        .await?;
    }
    check_queries_of_survivors(&cluster, now)?;
    let sick = saturnctl(&cluster, 0, &["doctor"])?;
    let text = String::from_utf8_lossy(&sick.stdout).into_owned();
    ensure!(!sick.status.success(), "the doctor finds a dead node healthy:\n{text}");
    ensure!(text.contains("node-3"), "the doctor does not name the dead node:\n{text}");

    cluster.restart(2).await?;
    eventually("the cluster is whole again", DETECTION_LIMIT, async || {
        check_whole_ring(&cluster)?;
        success(&cluster, 0, &["doctor"]).map(Some)
    })
    .await?;
    cluster.finish().await
}

/// Digests are equal on all nodes, and for the operator only.
async fn check_digests(cluster: &Cluster) -> Result<()> {
    let digests = success(cluster, 0, &["shard", "ls", "--digest"])?;
    ensure!(digests.contains("DIGEST"), "{digests}");
    let of = |index| {
        let text = success(cluster, index, &["-o", "json", "shard", "ls", "--digest"])?;
        let shards: Vec<Value> = serde_json::from_str(&text)?;
        let digests = shards.iter().map(|shard| shard["digest"].as_str().map(str::to_owned));
        digests.collect::<Option<Vec<String>>>().context("a shard has no digest")
    };
    // The third replica stores what two have acknowledged a moment later.
    eventually("the replicas are equal", DETECTION_LIMIT, async || {
        ensure!(of(0)? == of(1)? && of(1)? == of(2)?, "the replicas differ");
        Ok(Some(()))
    })
    .await?;
    let path = "/api/v1/status/shards";
    let reply = cluster.endpoint(0, TENANT).get(path, &[("digest", "true")]).await?;
    ensure!(reply.status == 401 && reply.text.contains("secret"), "{reply:?}");
    Ok(())
}

fn check_queries_of_survivors(cluster: &Cluster, now: i64) -> Result<()> {
    for index in [0, 1] {
        let time = format!("{}.{:03}", now / 1000, now % 1000);
        let text = success(
            cluster,
            index,
            &["query", "instant", "operator_test", "--tenant", TENANT, "--time", &time],
        )?;
        ensure!(text.contains("42"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn saturnctl_says_when_nobody_answers() -> Result<()> {
    let cluster = Cluster::new(saturn_chaos_tests::ClusterOptions { nodes: 1, ..Default::default() })?;
    let output = saturnctl(&cluster, 0, &["ring", "status"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && text.contains(cluster.http_address(0)), "{text}");
    cluster.finish().await
}

/// Scripts that pass end with 0 and their count, others with 1 and what is wrong where.
#[test]
fn scripts_are_run() -> Result<()> {
    let run = |args: &[&str]| {
        Command::new(&SaturnBinaries::locate().saturnctl).args(args).output().context("saturnctl")
    };
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../promql/testdata/staleness.test");
    let folder = tempfile::tempdir()?;
    let wrong = folder.path().join("wrong.test");
    std::fs::write(&wrong, "load 1m\n  m 1 2\n\neval instant at 1m m + 1\n  {} 4\n")?;
    let wrong = wrong.to_str().context("a plain name")?;

    let passed = run(&["promql", "test", own])?;
    let text = String::from_utf8_lossy(&passed.stdout);
    ensure!(passed.status.success() && text.ends_with(" passed, 0 failed\n"), "{text}");

    let failed = run(&["promql", "test", own, wrong, "no-such-file"])?;
    let text = String::from_utf8_lossy(&failed.stdout);
    ensure!(failed.status.code() == Some(1) && text.ends_with(" passed, 2 failed\n"), "{text}");
    ensure!(text.contains(&format!("FAILED  {wrong}:4: m + 1: {{}}: got Float(3.0)")), "{text}");
    ensure!(text.contains("FAILED  no-such-file:0: cannot read it"), "{text}");

    let json = run(&["promql", "test", "-o", "json", wrong])?;
    let report: Value = serde_json::from_slice(&json.stdout)?;
    ensure!(report[0]["failures"][0]["line"] == 4 && report[0]["passed"] == 0, "{report}");
    Ok(())
}
