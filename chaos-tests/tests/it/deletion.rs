//! Deleting series over HTTP: at once, everywhere, for one tenant only, for good; by a replica that was away as soon as it is
//! back; and while shards move.

use std::time::Duration;

use anyhow::{Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Endpoint, Reply, Tolerance, eventually, now_ms, placement,
};

const LIMIT: Duration = Duration::from_secs(30);
const DELETE: &str = "/api/v1/admin/tsdb/delete_series";
const CLEAN: &str = "/api/v1/admin/tsdb/clean_tombstones";

async fn cluster(nodes: usize) -> Result<Cluster> {
    let extra_args = vec!["--web.enable-admin-api".to_owned()];
    Cluster::start_with(ClusterOptions { nodes, extra_args, ..ClusterOptions::default() }).await
}

async fn delete(endpoint: &Endpoint, form: &[(&str, &str)]) -> Result<Reply> {
    let form: Vec<(&str, String)> = form.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    endpoint.post_form(DELETE, &form).await
}

async fn write(endpoint: &Endpoint, name: &str, samples: &[(i64, f64)]) -> Result<()> {
    let series = |i: u32| {
        // Each series has values of its own, or they would take the space of one.
        let own: Vec<(i64, f64)> = samples.iter().map(|(t, v)| (*t, v * f64::from(i + 2).sqrt())).collect();
        Series::new(&[("__name__", name), ("i", &i.to_string())], &own)
    };
    let reply = endpoint.write(&(0..40).map(series).collect::<Vec<_>>()).await?;
    ensure!(reply.status == 204, "{reply:?}");
    Ok(())
}

/// How many samples a tenant has of a metric, as every node answers.
async fn count(cluster: &Cluster, tenant: &str, name: &str, now: i64) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for index in 0..cluster.size() {
        let query = format!("sum(count_over_time({name}[1h])) or vector(0)");
        let answer = cluster.endpoint(index, tenant).query(&query, now).await?;
        counts.push(answer.single()?.parse()?);
    }
    Ok(counts)
}

#[tokio::test]
async fn a_deletion_is_seen_at_once_everywhere_and_survives_sigkill() -> Result<()> {
    let mut cluster = cluster(3).await?;
    let now = now_ms();
    // Values without a pattern, so that they take space.
    let noise = |i: i64| {
        f64::from_bits(0x3ff0_0000_0000_0000 | (i.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 12))
    };
    let samples: Vec<(i64, f64)> = (0..500).map(|i| (now - 600_000 + i * 1000, noise(i))).collect();
    for tenant in ["one", "two"] {
        for name in ["gone", "kept"] {
            write(&cluster.endpoint(0, tenant), name, &samples).await?;
        }
    }
    // Writes are answered at two of three replicas; the third must have them before anything is deleted there.
    eventually("all replicas have all samples", LIMIT, async || {
        for index in 0..3 {
            let text = Endpoint::plain(&cluster.url(index)).get("/metrics", &[]).await?.text;
            ensure!(text.contains("saturn_storage_appended_samples_total 80000\n"), "node {index}");
        }
        Ok(Some(()))
    })
    .await?;
    let from = ((now - 600_000 + 100_000) / 1000).to_string();
    let reply = delete(&cluster.endpoint(1, "one"), &[("match[]", "gone"), ("start", &from)]).await?;
    ensure!(reply.status == 204 && reply.text.is_empty(), "{reply:?}");
    let left = count(&cluster, "one", "gone", now).await?;
    ensure!(left.iter().all(|n| *n == left[0] && (4000..=4040).contains(n)), "{left:?}");
    for (tenant, name) in [("one", "kept"), ("two", "gone"), ("two", "kept")] {
        ensure!(count(&cluster, tenant, name, now).await? == [20_000; 3], "{tenant} {name}");
    }

    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9_all()?;
    cluster.restart_all().await?;
    eventually("complete answers after the start", LIMIT, async || {
        ensure!(count(&cluster, "one", "gone", now).await? == left);
        ensure!(count(&cluster, "two", "gone", now).await? == [20_000; 3]);
        Ok(Some(()))
    })
    .await?;

    // What comes after a deletion stays.
    write(&cluster.endpoint(2, "one"), "gone", &[(now, 1.0)]).await?;
    ensure!(count(&cluster, "one", "gone", now).await? == [left[0] + 40; 3]);

    for name in ["gone", "kept"] {
        let reply = delete(&cluster.endpoint(0, "two"), &[("match[]", name)]).await?;
        ensure!(reply.status == 204, "{reply:?}");
    }
    let reply = cluster.endpoint(0, "one").post_form(CLEAN, &[]).await?;
    ensure!(reply.status == 204, "{reply:?}");
    ensure!(count(&cluster, "one", "kept", now).await? == [20_000; 3]);
    ensure!(count(&cluster, "two", "kept", now).await? == [0; 3]);
    cluster.finish().await
}

/// Has every node compare its shards with the others, and take what it lacks.
async fn repair(cluster: &Cluster) -> Result<()> {
    // A shard whose record changes meanwhile is not compared.
    eventually("all is compared", LIMIT, async || {
        for index in 0..cluster.size() {
            cluster.saturnctl(index, &["repair"])?;
        }
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_replica_that_was_away_deletes_before_it_serves_again() -> Result<()> {
    let mut cluster = cluster(3).await?;
    let now = now_ms();
    let samples: Vec<(i64, f64)> = (1..=10).map(|i| (now - i * 60_000, 1.0)).collect();
    for name in ["gone", "kept"] {
        write(&cluster.endpoint(0, "one"), name, &samples).await?;
    }
    repair(&cluster).await?;
    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9(2)?;
    let reply = delete(&cluster.endpoint(0, "one"), &[("match[]", "gone")]).await?;
    ensure!(reply.status == 204, "two of three are enough: {reply:?}");
    // What comes after the deletion stays, though one replica has not heard of it.
    write(&cluster.endpoint(1, "one"), "gone", &[(now, 1.0)]).await?;
    cluster.restart(2).await?;
    eventually("all nodes answer the same", LIMIT, async || {
        ensure!(count(&cluster, "one", "gone", now).await? == [40; 3]);
        Ok(Some(()))
    })
    .await?;
    // The replica neither keeps what it missed to delete, nor hands it to the others.
    repair(&cluster).await?;
    ensure!(count(&cluster, "one", "gone", now).await? == [40; 3]);
    ensure!(count(&cluster, "one", "kept", now).await? == [400; 3]);
    placement::settled_deletions(&cluster, 0).await?;
    cluster.kill9_all()?;
    cluster.restart_all().await?;
    eventually("complete answers after the start", LIMIT, async || {
        ensure!(count(&cluster, "one", "gone", now).await? == [40; 3]);
        Ok(Some(()))
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn without_a_majority_nothing_is_deleted_and_the_repetition_deletes() -> Result<()> {
    let mut cluster = cluster(3).await?;
    let now = now_ms();
    write(&cluster.endpoint(0, "one"), "gone", &[(now - 1000, 1.0)]).await?;
    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9(1)?;
    cluster.kill9(2)?;
    let reply = delete(&cluster.endpoint(0, "one"), &[("match[]", "gone")]).await?;
    ensure!(reply.status == 503 && reply.text.contains("repeat the request"), "{reply:?}");
    ensure!(reply.text.contains("could not decide"), "{reply:?}");
    cluster.restart(1).await?;
    cluster.restart(2).await?;
    eventually("the repetition reaches all", LIMIT, async || {
        let reply = delete(&cluster.endpoint(0, "one"), &[("match[]", "gone")]).await?;
        ensure!(reply.status == 204, "{reply:?}");
        Ok(Some(()))
    })
    .await?;
    eventually("complete answers", LIMIT, async || {
        ensure!(count(&cluster, "one", "gone", now).await? == [0; 3]);
        Ok(Some(()))
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn deletions_and_moves_do_not_get_into_each_others_way() -> Result<()> {
    let extra_args = vec!["--web.enable-admin-api".to_owned(), "--cluster.shards=16".to_owned()];
    let options = ClusterOptions { nodes: 3, zones: 3, extra_args, ..ClusterOptions::default() };
    let mut cluster = Cluster::start_with(options).await?;
    cluster.tolerate(Tolerance::Warnings);
    let now = now_ms();
    let samples: Vec<(i64, f64)> = (1..=500).map(|i| (now - i * 5000, 1.0)).collect();
    const ROUNDS: usize = 6;
    for round in 0..ROUNDS {
        write(&cluster.endpoint(0, "one"), &format!("gone_{round}"), &samples).await?;
    }
    write(&cluster.endpoint(0, "one"), "kept", &samples).await?;
    let moves = async |cluster: &Cluster| {
        let status = cluster.endpoint(0, "one").data("/api/v1/status/ring", &[]).await?;
        let number = |name: &str| status[name].as_u64().unwrap_or_default();
        anyhow::Ok(number("movesPlanned") + number("movesUnderWay"))
    };
    let fourth = cluster.add("zone-1");
    cluster.restart(fourth).await?;
    let mut met = 0;
    for round in 0..ROUNDS {
        let gone = format!("gone_{round}");
        met += moves(&cluster).await?;
        let reply = delete(&cluster.endpoint(round % 3, "one"), &[("match[]", &gone)]).await?;
        ensure!(reply.status == 204, "{reply:?}");
        let left = count(&cluster, "one", &gone, now).await?;
        ensure!(left == [0; 4], "{gone}: {left:?}");
    }
    ensure!(met > 0, "no shard moved meanwhile");
    eventually("the shards have moved", LIMIT, async || {
        ensure!(moves(&cluster).await? == 0);
        Ok(Some(()))
    })
    .await?;
    repair(&cluster).await?;
    for round in 0..ROUNDS {
        ensure!(count(&cluster, "one", &format!("gone_{round}"), now).await? == [0; 4]);
    }
    ensure!(count(&cluster, "one", "kept", now).await? == [20_000; 4]);
    cluster.finish().await
}

#[tokio::test]
async fn wrong_requests_say_what_is_wrong_and_the_doors_are_shut_by_default() -> Result<()> {
    let open = cluster(1).await?;
    let wrong: [(&[(&str, &str)], &str); 4] = [
        (&[], "no match[] parameter provided"),
        (&[("match[]", "{")], "match[]"),
        (&[("match[]", "a"), ("start", "x")], "start"),
        (&[("match[]", "a"), ("start", "5"), ("end", "4")], "end timestamp must not be before start time"),
    ];
    for (form, text) in wrong {
        let reply = delete(&open.endpoint(0, "one"), form).await?;
        ensure!(reply.status == 400 && reply.text.contains(text), "{form:?}: {reply:?}");
    }
    open.finish().await?;
    let shut = Cluster::start(1).await?;
    for path in [DELETE, CLEAN] {
        let reply = shut.endpoint(0, "one").post_form(path, &[("match[]", "a".to_owned())]).await?;
        ensure!(reply.status == 500 && reply.text.contains("admin APIs disabled"), "{reply:?}");
    }
    shut.finish().await
}
