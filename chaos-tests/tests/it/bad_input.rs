//! What senders and clients get wrong is refused with the reason, the valid rest is stored, and no tenant
//! sees another's data.

use anyhow::{Result, ensure};
use saturn_chaos_tests::remote_write::{Series, compress, encode, snappy_claiming};
use saturn_chaos_tests::{Cluster, Endpoint, Reply, now_ms, resident_bytes};

/// How much a node's memory may grow by refusing bodies that claim to be huge.
const REFUSAL_GROWTH_BYTES_MAX: u64 = 64 << 20;

/// A claim that is far above every limit.
const CLAIMED_BYTES: u64 = u32::MAX as u64;

fn expect_status(what: &str, reply: &Reply, status: u16) -> Result<()> {
    ensure!(reply.status == status, "{what}: want {status}, got {}: {}", reply.status, reply.text);
    Ok(())
}

/// A request of one valid series with one content header replaced.
async fn write_with_header(endpoint: &Endpoint, name: &str, value: &str) -> Result<Reply> {
    let mut headers = vec![("Content-Type", "application/x-protobuf"), ("Content-Encoding", "snappy")];
    headers.iter_mut().filter(|header| header.0 == name).for_each(|header| header.1 = value);
    let body = compress(&encode(&[Series::new(&[("__name__", "header_test")], &[(now_ms(), 1.0)])]));
    let request = endpoint.request("POST", "/api/v1/write")?;
    let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    endpoint.send(request.body(body)).await
}

#[tokio::test]
async fn bodies_that_are_no_remote_write_are_refused() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "bodies");
    for content_type in
        ["text/plain", "application/json", "application/x-protobuf;proto=io.prometheus.write.v3.Request"]
    {
        expect_status(content_type, &write_with_header(&endpoint, "Content-Type", content_type).await?, 415)?;
    }
    for encoding in ["gzip", "zstd", "identity"] {
        expect_status(encoding, &write_with_header(&endpoint, "Content-Encoding", encoding).await?, 415)?;
    }
    expect_status("a valid request", &write_with_header(&endpoint, "", "").await?, 204)?;

    let valid = encode(&[Series::new(&[("__name__", "cut_test")], &[(now_ms(), 1.0)])]);
    let cut_snappy = compress(&valid)[..8].to_vec();
    for (what, body) in [
        ("an empty body", Vec::new()),
        ("no snappy", vec![10, 0xff, 0xff, 0xff]),
        ("a cut snappy block", cut_snappy),
        ("no protobuf", compress(&[0xff; 20])),
        ("a cut protobuf", compress(&valid[..valid.len() - 3])),
        ("field number 0", compress(&[0x00, 0x01])),
    ] {
        expect_status(what, &endpoint.write_body(body).await?, 400)?;
    }
    let found = endpoint.query(r#"{__name__=~"cut_test"}"#, now_ms()).await?;
    ensure!(found.is_empty(), "a broken request left something behind: {}", found.result);
    cluster.finish().await
}

#[tokio::test]
async fn a_body_that_claims_gigabytes_costs_nothing() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "bombs");
    expect_status("warm-up", &write_with_header(&endpoint, "", "").await?, 204)?;
    let before = resident_bytes(cluster.pid(0)?)?;
    for _ in 0..50 {
        expect_status("a bomb", &endpoint.write_body(snappy_claiming(CLAIMED_BYTES)).await?, 413)?;
    }
    let after = resident_bytes(cluster.pid(0)?)?;
    let grown = after.saturating_sub(before);
    ensure!(grown < REFUSAL_GROWTH_BYTES_MAX, "refusing bombs took {} MiB", grown >> 20);
    cluster.finish().await
}

/// Series that must be refused, each with a word that the answer must hold to name it.
fn invalid_series(now: i64) -> Vec<(&'static str, Series)> {
    let day_ms = 24 * 3600 * 1000;
    vec![
        (
            "bad_duplicate",
            Series::new(&[("__name__", "bad_duplicate"), ("a", "1"), ("a", "2")], &[(now, 1.0)]),
        ),
        (
            "bad_same_pair",
            Series::new(&[("__name__", "bad_same_pair"), ("a", "1"), ("a", "1")], &[(now, 1.0)]),
        ),
        ("bad_unsorted", Series::new(&[("__name__", "bad_unsorted"), ("b", "1"), ("a", "2")], &[(now, 1.0)])),
        ("bad_empty", Series::new(&[("", "x"), ("__name__", "bad_empty")], &[(now, 1.0)])),
        ("bad_nameless", Series::new(&[("bad_nameless", "1")], &[(now, 1.0)])),
        ("bad_future", Series::new(&[("__name__", "bad_future")], &[(now + day_ms, 1.0)])),
        ("bad_end_of_time", Series::new(&[("__name__", "bad_end_of_time")], &[(i64::MAX, 1.0)])),
        ("bad_start_of_time", Series::new(&[("__name__", "bad_start_of_time")], &[(i64::MIN, 1.0)])),
    ]
}

#[tokio::test]
async fn invalid_series_are_named_and_the_rest_is_stored() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "series");
    let now = now_ms();
    for (number, (word, invalid)) in invalid_series(now).into_iter().enumerate() {
        let case = number.to_string();
        let good =
            |name: &str, value: f64| Series::new(&[("__name__", name), ("case", &case)], &[(now, value)]);
        let reply = endpoint.write(&[good("good_first", 1.0), invalid, good("good_last", 2.0)]).await?;
        expect_status(word, &reply, 400)?;
        ensure!(reply.text.contains(word), "the answer does not name {word}: {}", reply.text);
        let query = format!("sum({{__name__=~\"good_.+\", case=\"{case}\"}})");
        let stored = endpoint.query(&query, now).await?;
        ensure!(stored.single()? == "3", "beside {word}: {}", stored.result);
    }
    let bad = endpoint.query(r#"{__name__=~"bad_.+"}"#, now + 500).await?;
    ensure!(bad.is_empty(), "stored: {}", bad.result);
    let nameless = endpoint.query(r#"{bad_nameless="1"}"#, now + 500).await?;
    ensure!(nameless.is_empty(), "stored: {}", nameless.result);

    // One sample out of range does not take its series' others with it.
    let mixed = Series::new(&[("__name__", "mixed")], &[(now - 1000, 5.0), (i64::MAX, 6.0)]);
    let reply = endpoint.write(&[mixed]).await?;
    expect_status("mixed", &reply, 400)?;
    ensure!(reply.text.contains("mixed"), "{}", reply.text);
    ensure!(endpoint.query("mixed", now).await?.single()? == "5", "the valid sample is stored");
    cluster.finish().await
}

#[tokio::test]
async fn special_values_are_data() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "values");
    let now = now_ms();
    let stale = f64::from_bits(0x7ff0_0000_0000_0002);
    let payload = f64::from_bits(0x7ff8_0000_dead_beef);
    let values = [
        ("nan", f64::NAN, "NaN"),
        ("payload", payload, "NaN"),
        ("plus", f64::INFINITY, "+Inf"),
        ("minus", f64::NEG_INFINITY, "-Inf"),
        ("minus_zero", -0.0, "-0"),
        ("tiny", 5e-324, "5e-324"),
        ("huge", f64::MAX, "1.7976931348623157e+308"),
    ];
    let series: Vec<Series> = values
        .iter()
        .map(|(name, value, _)| Series::new(&[("__name__", name)], &[(now - 2000, *value)]))
        .collect();
    expect_status("special values", &endpoint.write(&series).await?, 204)?;
    for (name, _, text) in values {
        let answer = endpoint.query(name, now).await?;
        ensure!(answer.single()? == text, "{name}: want {text}, got {}", answer.result);
    }

    let ended = Series::new(&[("__name__", "ended")], &[(now - 2000, 1.0), (now - 1000, stale)]);
    expect_status("a stale marker", &endpoint.write(&[ended]).await?, 204)?;
    ensure!(endpoint.query("ended", now - 1500).await?.single()? == "1", "before the marker it is there");
    ensure!(endpoint.query("ended", now).await?.is_empty(), "after the marker it is gone");
    ensure!(
        endpoint.query("count_over_time(ended[10s])", now).await?.single()? == "1",
        "a marker is no sample"
    );
    cluster.finish().await
}

#[tokio::test]
async fn query_errors_say_where() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let endpoint = cluster.endpoint(0, "queries");
    for query in ["sum(", "up{job=}", "rate(up)", "up[5m", "1 +", "nosuch(up)", r#"{job=~"("}"#, "{}"] {
        let reply = endpoint.get("/api/v1/query", &[("query", query)]).await?;
        expect_status(query, &reply, 400)?;
        let envelope: serde_json::Value = serde_json::from_str(&reply.text)?;
        ensure!(
            envelope["status"] == "error" && envelope["errorType"] == "bad_data",
            "{query}: {}",
            reply.text
        );
        let text = envelope["error"].as_str().unwrap_or_default();
        ensure!(has_position(text), "{query}: no line:column in {text:?}");
    }
    for (path, parameters) in [
        ("/api/v1/query", vec![]),
        ("/api/v1/query", vec![("query", "up"), ("time", "soon")]),
        ("/api/v1/query_range", vec![("query", "up"), ("start", "2"), ("end", "1"), ("step", "1")]),
        ("/api/v1/query_range", vec![("query", "up"), ("start", "1"), ("end", "2"), ("step", "0")]),
        ("/api/v1/query_range", vec![("query", "up"), ("start", "0"), ("end", "90000"), ("step", "1")]),
        ("/api/v1/series", vec![]),
    ] {
        expect_status(path, &endpoint.get(path, &parameters).await?, 400)?;
    }
    cluster.finish().await
}

/// Whether a text holds `line:column`.
fn has_position(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.windows(3).any(|three| three[0].is_ascii_digit() && three[1] == b':' && three[2].is_ascii_digit())
}

#[tokio::test]
async fn tenants_do_not_see_one_another() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let now = now_ms();
    let own = cluster.endpoint(0, "team-a");
    let secret =
        Series::new(&[("__name__", "secret_metric"), ("secret_label", "secret_value")], &[(now, 7.0)]);
    expect_status("team-a", &own.write(std::slice::from_ref(&secret)).await?, 204)?;
    ensure!(own.query("secret_metric", now).await?.single()? == "7", "its own data is there");

    for other in [cluster.endpoint(0, "team-b"), Endpoint::plain(&cluster.url(0))] {
        ensure!(other.query(r#"{__name__=~".+"}"#, now).await?.is_empty(), "a query leaks");
        for (path, parameters) in [
            ("/api/v1/series", vec![("match[]", r#"{__name__=~".+"}"#)]),
            ("/api/v1/labels", vec![]),
            ("/api/v1/label/__name__/values", vec![]),
            ("/api/v1/label/secret_label/values", vec![]),
        ] {
            let data = other.data(path, &parameters).await?;
            ensure!(data.as_array().is_some_and(Vec::is_empty), "{path} leaks {data}");
        }
    }
    for name in ["Team-A", "a/b", "..", "", "a b", &"x".repeat(64)] {
        let reply = cluster.endpoint(0, name).get("/api/v1/query", &[("query", "up")]).await?;
        expect_status(&format!("tenant {name:?}"), &reply, 400)?;
        let reply = cluster.endpoint(0, name).write(std::slice::from_ref(&secret)).await?;
        expect_status(&format!("tenant {name:?} writes"), &reply, 400)?;
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_tenant_is_named_in_four_ways() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let now = now_ms();
    let plain = Endpoint::plain(&cluster.url(0));
    let write = |request: reqwest::RequestBuilder, value: f64| {
        let body = compress(&encode(&[Series::new(&[("__name__", "whose")], &[(now, value)])]));
        let headers = [("Content-Type", "application/x-protobuf"), ("Content-Encoding", "snappy")];
        headers.into_iter().fold(request, |request, (name, value)| request.header(name, value)).body(body)
    };
    let requests = [
        ("by-header", plain.request("POST", "/api/v1/push")?.header("X-Scope-OrgID", "by-header"), 1.0),
        ("by-user", plain.request("POST", "/api/v1/write")?.basic_auth("by-user", Some("password")), 2.0),
        ("by-path", plain.request("POST", "/t/by-path/api/v1/write")?, 3.0),
        ("anonymous", plain.request("POST", "/api/v1/write")?, 4.0),
    ];
    for (tenant, request, value) in requests {
        expect_status(tenant, &plain.send(write(request, value)).await?, 204)?;
        let stored = cluster.endpoint(0, tenant).query("whose", now).await?;
        ensure!(stored.single()? == value.to_string(), "{tenant}: {}", stored.result);
    }
    // The header wins over the user, the user over the path.
    let request = plain.request("POST", "/t/by-path/api/v1/write")?.basic_auth("stronger", Some(""));
    expect_status("user over path", &plain.send(write(request, 5.0)).await?, 204)?;
    ensure!(cluster.endpoint(0, "stronger").query("whose", now).await?.single()? == "5", "the user wins");
    let request = plain.request("POST", "/t/by-path/api/v1/write")?.basic_auth("by-user", Some(""));
    let request = request.header("X-Scope-OrgID", "strongest");
    expect_status("header over all", &plain.send(write(request, 6.0)).await?, 204)?;
    ensure!(cluster.endpoint(0, "strongest").query("whose", now).await?.single()? == "6", "the header wins");
    ensure!(
        cluster.endpoint(0, "by-path").query("whose", now).await?.single()? == "3",
        "the path is unchanged"
    );
    cluster.finish().await
}
