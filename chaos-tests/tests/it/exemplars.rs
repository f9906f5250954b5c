//! Exemplars and metadata that a real Prometheus scrapes and writes on: Saturn answers for them as Prometheus does
//! itself, on every node, with a node down, and after all nodes were killed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use saturn_chaos_tests::{
    Cluster, Endpoint, Exporter, Prometheus, PrometheusOptions, Reply, Tolerance, eventually, now_ms,
};
use serde_json::Value;

const TENANT: &str = "exemplars";
/// How long anything may take that needs some scrapes.
const SCRAPES_LIMIT: Duration = Duration::from_secs(60);
/// Exemplars of each series that are compared, at least.
const COMPARED_MIN: usize = 4;

/// A counter, a histogram and a gauge. Only some exemplars have a time of their own.
fn exposition(scrape: u64) -> String {
    let seconds = now_ms() as f64 / 1000.0;
    let twice = 2 * scrape;
    format!(
        "# HELP requests Requests\\nby path.\n# TYPE requests counter\n\
         requests_total{{path=\"/a\"}} {scrape} # {{trace_id=\"a{scrape}\",span_id=\"\u{e4}\"}} 0.5 {seconds}\n\
         requests_total{{path=\"/b\"}} {scrape} # {{trace_id=\"b{scrape}\"}} 1e-07\n\
         # HELP latency_seconds Time of a request.\n# TYPE latency_seconds histogram\n# UNIT latency_seconds seconds\n\
         latency_seconds_bucket{{le=\"0.1\"}} {scrape} # {{trace_id=\"c{scrape}\"}} 0.05\n\
         latency_seconds_bucket{{le=\"+Inf\"}} {twice} # {{}} {twice} {seconds}\n\
         latency_seconds_count {twice}\nlatency_seconds_sum {twice}.5\n\
         # HELP temperature Degrees.\n# TYPE temperature gauge\ntemperature 21\n# EOF\n"
    )
}

/// The exemplars of a range, as an endpoint has them.
async fn exemplars(endpoint: &Endpoint, query: &str, (start, end): (i64, i64)) -> Result<Value> {
    let (start, end) = (format!("{}", start as f64 / 1000.0), format!("{}", end as f64 / 1000.0));
    endpoint.data("/api/v1/query_exemplars", &[("query", query), ("start", &start), ("end", &end)]).await
}

/// What is said of each metric, whatever the order.
async fn metadata(endpoint: &Endpoint, parameters: &[(&str, &str)]) -> Result<BTreeMap<String, Vec<String>>> {
    let data = endpoint.data("/api/v1/metadata", parameters).await?;
    let sorted = |(metric, said): (String, Vec<Value>)| {
        let mut said: Vec<String> = said.iter().map(Value::to_string).collect();
        said.sort();
        (metric, said)
    };
    Ok(serde_json::from_value::<BTreeMap<String, Vec<Value>>>(data)?.into_iter().map(sorted).collect())
}

/// Waits until the endpoint has these exemplars, and some of each series.
async fn wait_same(endpoint: &Endpoint, reference: &Endpoint, query: &str, range: (i64, i64)) -> Result<()> {
    eventually(&format!("the same exemplars for {query}"), SCRAPES_LIMIT, async || {
        let wanted = exemplars(reference, query, range).await?;
        let series = wanted.as_array().map_or(&[][..], Vec::as_slice);
        let fewest = series.iter().map(|one| one["exemplars"].as_array().map_or(0, Vec::len)).min();
        ensure!(fewest >= Some(COMPARED_MIN), "Prometheus has few: {wanted}");
        let found = exemplars(endpoint, query, range).await?;
        ensure!(found == wanted, "Saturn has {found}, Prometheus {wanted}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn exemplars_and_metadata_are_prometheus_own() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let exporter = Exporter::openmetrics(exposition).await?;
    let options = PrometheusOptions {
        scrape: vec![("app".to_owned(), vec![exporter.address().to_owned()])],
        remote_write: vec![format!("{}/t/{TENANT}/api/v1/write", cluster.url(0))],
        send_notes_every: Some(Duration::from_secs(1)),
        extra_args: vec!["--enable-feature=exemplar-storage".to_owned()],
        ..PrometheusOptions::default()
    };
    let mut prometheus = Prometheus::start(cluster.folder(), &options).await?;
    let reference = prometheus.endpoint();
    let saturn = cluster.endpoint(1, TENANT);
    let started = now_ms();
    let all = "requests_total";
    eventually("exemplars arrive", SCRAPES_LIMIT, async || {
        let found = exemplars(&saturn, all, (started, now_ms())).await?;
        Ok(found.as_array().is_some_and(|series| series.len() == 2).then_some(()))
    })
    .await?;
    let start = now_ms();
    let range = (start, start + 6000);
    eventually("time passes", SCRAPES_LIMIT, async || Ok((now_ms() > range.1 + 1000).then_some(()))).await?;

    let queries = [
        all,
        "sum(rate(requests_total{path=\"/b\"}[1m]))",
        "histogram_quantile(0.9, sum by (le) (rate(latency_seconds_bucket[5m])))",
        "max_over_time(requests_total{path=~\"/.*\"}[5m:1m] offset 1h) + on() latency_seconds_bucket{le=\"0.1\"}",
    ];
    for query in queries {
        wait_same(&saturn, &reference, query, range).await?;
    }
    check_parameters(&saturn, &reference, range).await?;
    check_metadata(&saturn, &reference).await?;

    cluster.tolerate(Tolerance::Warnings);
    cluster.kill9(2)?;
    wait_same(&cluster.endpoint(0, TENANT), &reference, queries[0], range).await?;
    cluster.kill9_all()?;
    cluster.restart_all().await?;
    for node in 0..3 {
        wait_same(&cluster.endpoint(node, TENANT), &reference, queries[2], range).await?;
        check_metadata(&cluster.endpoint(node, TENANT), &reference).await?;
    }
    let other = exemplars(&cluster.endpoint(0, "somebody-else"), all, range).await?;
    ensure!(other == Value::Array(Vec::new()), "another tenant's exemplars: {other}");
    prometheus.check_running()?;
    cluster.finish().await
}

/// Times in both forms, forms posted, and what is no question for exemplars.
async fn check_parameters(saturn: &Endpoint, reference: &Endpoint, (start, end): (i64, i64)) -> Result<()> {
    let rfc3339 = jiff::Timestamp::from_millisecond(start)?.to_string();
    let end = format!("{}.{:03}", end / 1000, end % 1000);
    let selector = "requests_total{path=\"/a\"}";
    let mut answers = Vec::new();
    for endpoint in [saturn, reference] {
        let form = [("query", selector.to_owned()), ("start", rfc3339.clone()), ("end", end.clone())];
        let reply = endpoint.post_form("/api/v1/query_exemplars", &form).await?;
        let answer: Value = serde_json::from_str(&reply.text)?;
        answers.push(answer["data"].clone());
    }
    ensure!(answers[0] == answers[1] && answers[0][0]["exemplars"][0].is_object(), "{answers:?}");
    for parameters in [
        &[("query", "1 + 1")][..],
        &[("query", "nothing_has_this_name")],
        &[("query", "foo{")],
        &[("query", selector), ("start", "7"), ("end", "6")],
        &[("query", selector), ("start", "yesterday")],
    ] {
        let path = "/api/v1/query_exemplars";
        let (own, wanted) = (saturn.get(path, parameters).await?, reference.get(path, parameters).await?);
        // Parse errors are worded anew since 2.42.
        let reworded = parameters.contains(&("query", "foo{"));
        ensure!(
            if reworded { own.status == wanted.status } else { same_reply(&own, &wanted) },
            "{parameters:?}: {own:?}, Prometheus {wanted:?}"
        );
    }
    Ok(())
}

/// Prometheus's own metrics are among them.
async fn check_metadata(saturn: &Endpoint, reference: &Endpoint) -> Result<()> {
    eventually("the same metadata", SCRAPES_LIMIT, async || {
        let wanted = metadata(reference, &[]).await?;
        let found = metadata(saturn, &[]).await?;
        let different = wanted.iter().find(|(metric, said)| found.get(*metric) != Some(said));
        ensure!(different.is_none(), "Prometheus: {different:?}, Saturn has {} metrics", found.len());
        ensure!(found.len() == wanted.len() && wanted.len() > 100, "{} metrics", found.len());
        Ok(Some(()))
    })
    .await?;
    for metric in ["requests", "latency_seconds", "prometheus_http_requests_total", "nothing"] {
        let parameters = [("metric", metric)];
        let (own, wanted) = (metadata(saturn, &parameters).await?, metadata(reference, &parameters).await?);
        ensure!(own == wanted, "{metric}: {own:?}, Prometheus {wanted:?}");
    }
    for (limit, metrics) in [("3", 3), ("0", 0)] {
        let (own, wanted) = (
            metadata(saturn, &[("limit", limit), ("limit_per_metric", "1")]).await?,
            metadata(reference, &[("limit", limit), ("limit_per_metric", "1")]).await?,
        );
        ensure!(own.len() == metrics && wanted.len() == metrics, "limit {limit}: {own:?}, {wanted:?}");
    }
    let wrong = [("limit", "x")];
    let (own, wanted) =
        (saturn.get("/api/v1/metadata", &wrong).await?, reference.get("/api/v1/metadata", &wrong).await?);
    ensure!(same_reply(&own, &wanted), "{own:?}, Prometheus {wanted:?}");
    Ok(())
}

/// Whether both say the same, whatever the order of the keys.
fn same_reply(a: &Reply, b: &Reply) -> bool {
    let json = |reply: &Reply| serde_json::from_str::<Value>(&reply.text).ok();
    a.status == b.status && json(a) == json(b)
}
