//! The query API beside its results: statistics, pages about the server, limits, compression, and what Grafana
//! sends.

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::Series;
use saturn_chaos_tests::{Answer, Cluster, Endpoint, now_ms};
use serde_json::{Value, json};

/// First bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Counters of `count` pods with a sample every 15 s for 5 minutes up to `end`.
async fn write_counters(endpoint: &Endpoint, count: usize, end: i64) -> Result<()> {
    let series: Vec<Series> = (0..count)
        .map(|pod| {
            let samples: Vec<(i64, f64)> = (0..20).map(|i| (end - (19 - i) * 15_000, i as f64)).collect();
            Series::new(&[("__name__", "hits_total"), ("pod", &format!("pod-{pod:05}"))], &samples)
        })
        .collect();
    for chunk in series.chunks(5000) {
        let reply = endpoint.write(chunk).await?;
        ensure!(reply.status == 204, "{}: {}", reply.status, reply.text);
    }
    Ok(())
}

#[tokio::test]
async fn statistics_say_what_a_query_read() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "stats");
    let end = now_ms();
    write_counters(&endpoint, 3, end).await?;
    let (start, end) = ((end - 30_000).to_string(), end.to_string());
    let seconds = |ms: &str| format!("{}.{}", &ms[..ms.len() - 3], &ms[ms.len() - 3..]);
    let parameters = [
        ("query", "sum(rate(hits_total[1m]))"),
        ("start", &seconds(&start)),
        ("end", &seconds(&end)),
        ("step", "15"),
    ];
    let with_stats = |stats| [parameters.as_slice(), &[("stats", stats)]].concat();
    let data = endpoint.data("/api/v1/query_range", &with_stats("all")).await?;
    let samples = &data["stats"]["samples"];
    // Windows of a minute, open on the left, hold four samples of each of three series; each step adds one.
    let counts = |steps: &Value| -> Vec<Value> {
        steps.as_array().into_iter().flatten().map(|step| step[1].clone()).collect()
    };
    ensure!(counts(&samples["totalQueryableSamplesPerStep"]) == [12, 12, 12], "{samples}");
    ensure!(counts(&samples["samplesReadPerStep"]) == [12, 3, 3], "{samples}");
    ensure!(samples["totalQueryableSamples"] == 36 && samples["samplesRead"] == 18, "{samples}");
    // Summed up at the data: no more than the sums were held.
    ensure!(samples["peakSamples"].as_u64().is_some_and(|peak| (3..18).contains(&peak)), "{samples}");
    let timings = &data["stats"]["timings"];
    for name in [
        "evalTotalTime",
        "resultSortTime",
        "queryPreparationTime",
        "innerEvalTime",
        "execQueueTime",
        "execTotalTime",
    ] {
        ensure!(timings[name].as_f64().is_some_and(|seconds| (0.0..30.0).contains(&seconds)), "{timings}");
    }
    let short = endpoint.data("/api/v1/query_range", &with_stats("true")).await?;
    ensure!(short["stats"]["samples"]["totalQueryableSamplesPerStep"].is_null(), "{short}");
    let without = endpoint.data("/api/v1/query_range", &parameters).await?;
    ensure!(without["stats"].is_null(), "{without}");
    cluster.finish().await
}

#[tokio::test]
async fn the_server_describes_itself() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "status");
    let now = now_ms();
    write_counters(&endpoint, 30, now).await?;
    let flags = endpoint.data("/api/v1/status/flags", &[]).await?;
    ensure!(flags["cluster.shards"] == "64" && flags["http.listen"].as_str().is_some(), "{flags}");
    let config = endpoint.data("/api/v1/status/config", &[]).await?;
    let yaml = config["yaml"].as_str().context("yaml")?;
    ensure!(yaml.contains("cluster:\n") && yaml.contains("  shards: 64\n"), "{yaml}");

    let data = endpoint.data("/api/v1/status/tsdb", &[("limit", "1")]).await?;
    let stats = &data["headStats"];
    ensure!(stats["numSeries"] == 30 && stats["numLabelPairs"] == 31 && stats["chunkCount"] == 30, "{data}");
    ensure!(stats["minTime"].as_i64() <= Some(now) && stats["maxTime"] == json!(now), "{data}");
    ensure!(data["seriesCountByMetricName"] == json!([{"name": "hits_total", "value": 30}]), "{data}");
    ensure!(data["labelValueCountByLabelName"] == json!([{"name": "pod", "value": 30}]), "{data}");
    ensure!(data["memoryInBytesByLabelName"] == json!([{"name": "pod", "value": 270}]), "{data}");
    ensure!(
        data["seriesCountByLabelValuePair"] == json!([{"name": "__name__=hits_total", "value": 30}]),
        "{data}"
    );
    let other = cluster.endpoint(0, "somebody-else").data("/api/v1/status/tsdb", &[]).await?;
    ensure!(other["headStats"]["numSeries"] == 0, "another tenant's series are counted: {other}");
    for limit in ["0", "10001", "x"] {
        let reply = endpoint.get("/api/v1/status/tsdb", &[("limit", limit)]).await?;
        ensure!(reply.status == 400, "limit {limit}: {}", reply.text);
    }
    cluster.finish().await
}

/// Grafana's health check, and the limit that it sends with every question for labels.
#[tokio::test]
async fn grafana_is_served() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "grafana");
    let health = endpoint.get("/api/v1/query", &[("query", "1+1"), ("time", "4")]).await?;
    ensure!(
        health.text == r#"{"status":"success","data":{"resultType":"scalar","result":[4,"2"]}}"#,
        "{}",
        health.text
    );
    let now = now_ms();
    write_counters(&endpoint, 40_001, now).await?;
    let time = format!("{}.{:03}", now / 1000, now % 1000);
    for (path, selector) in [
        ("/api/v1/series", ("match[]", "hits_total")),
        ("/api/v1/label/pod/values", ("match[]", "hits_total")),
        ("/api/v1/query", ("query", "hits_total")),
    ] {
        for (limit, wanted) in [("40000", 40_000), ("40001", 40_001), ("0", 40_001)] {
            let reply = endpoint.get(path, &[selector, ("time", &time), ("limit", limit)]).await?;
            let answer: Value = serde_json::from_str(&reply.text)?;
            let result = if path.ends_with("query") { &answer["data"]["result"] } else { &answer["data"] };
            let found = result.as_array().map_or(0, Vec::len);
            ensure!(found == wanted, "{path} with limit {limit}: {found}");
            let warned = answer["warnings"] == json!(["results truncated due to limit"]);
            ensure!(warned == (limit == "40000"), "{path} with limit {limit}: {}", answer["warnings"]);
        }
    }
    let labels = endpoint.get("/api/v1/labels", &[("limit", "1")]).await?;
    let answer: Value = serde_json::from_str(&labels.text)?;
    ensure!(answer["data"] == json!(["__name__"]), "{answer}");
    ensure!(answer["warnings"] == json!(["results truncated due to limit"]), "{answer}");
    cluster.finish().await
}

#[tokio::test]
async fn answers_are_compressed_as_the_client_wishes() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "codings");
    let now = now_ms();
    write_counters(&endpoint, 100, now).await?;
    let mut lengths = Vec::new();
    for (accept, wanted) in [("", None), ("gzip, deflate", Some("gzip")), ("gzip, zstd", Some("zstd"))] {
        let request = endpoint.request("GET", "/api/v1/query")?.query(&[("query", "hits_total")]);
        let response = request.header("Accept-Encoding", accept).send().await?;
        let coding = response.headers().get("content-encoding").and_then(|v| v.to_str().ok());
        ensure!(coding == wanted, "{accept:?}: {coding:?}");
        let body = response.bytes().await?;
        ensure!(wanted != Some("zstd") || body.starts_with(&ZSTD_MAGIC), "no zstd frame");
        ensure!(wanted.is_some() || Answer::parse(std::str::from_utf8(&body)?)?.series().len() == 100);
        lengths.push(body.len());
    }
    ensure!(lengths[1] < lengths[0] / 4 && lengths[2] < lengths[0] / 4, "{lengths:?}");
    cluster.finish().await
}
