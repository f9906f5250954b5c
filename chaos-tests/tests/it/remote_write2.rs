//! Remote-write 2.0: what is valid is stored and counted in the answer's headers, what is not is named.

use anyhow::{Context as _, Result, ensure};
use saturn_chaos_tests::remote_write::{Series2, compress, encode, encode2};
use saturn_chaos_tests::{Cluster, Endpoint, now_ms};
use serde_json::json;

const MESSAGE: &str = "application/x-protobuf;proto=io.prometheus.write.v2.Request";
const KINDS: [&str; 3] = ["Samples", "Histograms", "Exemplars"];

/// Status, the counts of the headers, and the text.
async fn write(
    endpoint: &Endpoint,
    content_type: &str,
    body: Vec<u8>,
) -> Result<(u16, [Option<u64>; 3], String)> {
    let request = endpoint.request("POST", "/api/v1/write")?;
    let headers = [
        ("Content-Type", content_type),
        ("Content-Encoding", "snappy"),
        ("X-Prometheus-Remote-Write-Version", "2.0.0"),
    ];
    let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    let response = request.body(body).send().await?;
    let count = |kind: &str| {
        let name = format!("X-Prometheus-Remote-Write-{kind}-Written");
        let value = response.headers().get(name.as_str())?;
        value.to_str().ok()?.parse().ok()
    };
    let counts = KINDS.map(count);
    Ok((response.status().as_u16(), counts, response.text().await?))
}

#[tokio::test]
async fn what_is_written_is_counted_and_what_is_not_is_named() -> Result<()> {
    let cluster = Cluster::start(3).await?;
    let endpoint = cluster.endpoint(1, "two");
    let now = now_ms();
    let symbols = ["", "job", "a", "__name__", "hits_total", "trace_id", "x", "Hits of\nall.", "unused"];
    let good = Series2 {
        // Not sorted, as receivers must take it.
        labels_refs: vec![1, 2, 3, 4],
        samples: vec![(now - 1000, 1.0), (now, 2.0)],
        exemplars: vec![(vec![5, 6], 0.25, now)],
        metadata: Some((1, 7, 0)),
    };
    let (status, counts, text) =
        write(&endpoint, MESSAGE, compress(&encode2(&symbols, std::slice::from_ref(&good)))).await?;
    ensure!(status == 204 && text.is_empty(), "{status}: {text}");
    ensure!(counts == [Some(2), Some(0), Some(1)], "{counts:?}");
    ensure!(endpoint.query("hits_total{job=\"a\"}", now).await?.single()? == "2");
    let said = endpoint.data("/api/v1/metadata", &[]).await?;
    ensure!(
        said == json!({"hits_total": [{"type": "counter", "help": "Hits of\nall.", "unit": ""}]}),
        "{said}"
    );
    let found = endpoint.data("/api/v1/query_exemplars", &[("query", "hits_total")]).await?;
    let exemplar = &found[0]["exemplars"][0];
    ensure!(exemplar["labels"] == json!({"trace_id": "x"}) && exemplar["value"] == "0.25", "{found}");

    let nameless = Series2 { labels_refs: vec![1, 2], ..good.clone() };
    let lost = Series2 { labels_refs: vec![3, 99], ..good.clone() };
    let all = [nameless, good.clone(), lost];
    let (status, counts, text) = write(&endpoint, MESSAGE, compress(&encode2(&symbols, &all))).await?;
    ensure!(status == 400 && counts == [Some(2), Some(0), Some(1)], "{status} {counts:?}: {text}");
    ensure!(text.contains("no metric name") && text.contains("symbol 99 of 9 is missing"), "{text}");

    for (what, body) in [
        ("cut snappy", compress(&encode2(&symbols, &all))[..20].to_vec()),
        ("no request", compress(b"\x2a\xff\xff\xff")),
        ("a first symbol", compress(&encode2(&["x"], &[]))),
    ] {
        let (status, counts, text) = write(&endpoint, MESSAGE, body).await?;
        ensure!(status == 400 && counts == [Some(0); 3], "{what}: {status} {counts:?}: {text}");
    }
    // Version 1 has no such headers, whatever the version header says.
    let (status, counts, _) = write(&endpoint, "application/x-protobuf", compress(&encode(&[]))).await?;
    ensure!(status == 204 && counts == [None; 3], "{status} {counts:?}");
    let (status, counts, _) = write(&endpoint, "image/png", Vec::new()).await?;
    ensure!(status == 415 && counts == [None; 3], "{status} {counts:?}");
    let stored = endpoint.query("count({__name__=~\".+\"})", now).await?;
    ensure!(stored.single().context("one series")? == "1", "{stored:?}");
    cluster.finish().await
}
