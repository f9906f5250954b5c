//! The HTTP API as a client sees it, Saturn's and Prometheus's alike.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::remote_write::{Series, compress, encode};

/// How long a client waits for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long a client waits for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// An HTTP answer of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body.
    pub text: String,
}

/// A successful answer to a query.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `vector`, `matrix`, `scalar` or `string`.
    pub result_type: String,
    /// The result as JSON.
    pub result: Value,
    /// What the server warned of, an incomplete answer among it.
    pub warnings: Vec<String>,
}

impl Answer {
    /// Reads Prometheus's envelope of a query.
    pub fn parse(text: &str) -> Result<Self> {
        let envelope: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
        ensure!(envelope["status"] == "success", "the query failed: {text}");
        let warnings = envelope["warnings"].as_array().cloned().unwrap_or_default();
        Ok(Self {
            result_type: envelope["data"]["resultType"].as_str().context("no resultType")?.to_owned(),
            result: envelope["data"]["result"].clone(),
            warnings: warnings
                .iter()
                .map(|warning| warning.as_str().unwrap_or_default().to_owned())
                .collect(),
        })
    }

    /// This answer, if it came without warnings.
    pub fn complete(self) -> Result<Self> {
        ensure!(self.warnings.is_empty(), "the answer has warnings: {:?}", self.warnings);
        Ok(self)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.result.as_array().is_some_and(Vec::is_empty)
    }

    /// The series of a vector or matrix.
    pub fn series(&self) -> &[Value] {
        self.result.as_array().map_or(&[], Vec::as_slice)
    }

    /// The value of a vector of one element, or of a scalar, as the server wrote it.
    pub fn single(&self) -> Result<&str> {
        let point = match (self.result_type.as_str(), self.series()) {
            ("vector", [one]) => &one["value"],
            ("scalar", _) => &self.result,
            _ => bail!("want one value: {}", self.result),
        };
        point[1].as_str().with_context(|| format!("no value in {}", self.result))
    }
}

/// A server, and the tenant that a client speaks for.
#[derive(Debug, Clone)]
pub struct Endpoint {
    client: reqwest::Client,
    url: String,
    tenant: Option<String>,
}

impl Endpoint {
    /// A client that names no tenant.
    pub fn plain(url: &str) -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_LIMIT)
            .connect_timeout(CONNECT_LIMIT)
            .build();
        let client = client.expect("a client without TLS needs nothing that could fail");
        Self { client, url: url.to_owned(), tenant: None }
    }

    /// A client that names its tenant in the header.
    pub fn of_tenant(url: &str, tenant: &str) -> Self {
        Self { tenant: Some(tenant.to_owned()), ..Self::plain(url) }
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A request with the tenant's header, to be filled in further.
    pub fn request(&self, method: &str, path: &str) -> Result<reqwest::RequestBuilder> {
        let method = reqwest::Method::from_bytes(method.as_bytes())?;
        let request = self.client.request(method, format!("{}{path}", self.url));
        Ok(match &self.tenant {
            Some(tenant) => request.header("X-Scope-OrgID", tenant),
            None => request,
        })
    }

    /// Sends a request and reads the answer, whatever its status.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Reply> {
        let response = request.send().await?;
        let status = response.status().as_u16();
        Ok(Reply { status, text: response.text().await? })
    }

    /// GET with parameters.
    pub async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Reply> {
        self.send(self.request("GET", path)?.query(parameters)).await
    }

    /// Posts a form.
    pub async fn post_form(&self, path: &str, form: &[(&str, String)]) -> Result<Reply> {
        self.send(self.request("POST", path)?.form(form)).await
    }

    /// The `data` of a successful GET.
    pub async fn data(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let reply = self.get(path, parameters).await?;
        ensure!(reply.status == 200, "{path}: status {}: {}", reply.status, reply.text);
        let mut envelope: Value = serde_json::from_str(&reply.text)?;
        ensure!(envelope["status"] == "success", "{path}: {}", reply.text);
        Ok(envelope["data"].take())
    }

    /// An instant query at a time in milliseconds.
    pub async fn query(&self, query: &str, time_ms: i64) -> Result<Answer> {
        let form = [("query", query.to_owned()), ("time", seconds(time_ms))];
        self.answer("/api/v1/query", &form).await
    }

    /// A range query, all times in milliseconds.
    pub async fn query_range(&self, query: &str, start_ms: i64, end_ms: i64, step_ms: i64) -> Result<Answer> {
        let form = [
            ("query", query.to_owned()),
            ("start", seconds(start_ms)),
            ("end", seconds(end_ms)),
            ("step", seconds(step_ms)),
        ];
        self.answer("/api/v1/query_range", &form).await
    }

    async fn answer(&self, path: &str, form: &[(&str, String)]) -> Result<Answer> {
        let reply = self.send(self.request("POST", path)?.form(form)).await?;
        ensure!(reply.status == 200, "{form:?} at {}: status {}: {}", self.url, reply.status, reply.text);
        Answer::parse(&reply.text).with_context(|| format!("{form:?} at {}", self.url))
    }

    /// Writes series by remote-write 1.0.
    pub async fn write(&self, series: &[Series]) -> Result<Reply> {
        self.write_body(compress(&encode(series))).await
    }

    /// Writes a body that is compressed already.
    pub async fn write_body(&self, body: Vec<u8>) -> Result<Reply> {
        self.send(remote_write_request(self.request("POST", "/api/v1/write")?).body(body)).await
    }
}

/// Adds the headers of remote-write 1.0.
pub(crate) fn remote_write_request(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request
        .header("Content-Type", "application/x-protobuf")
        .header("Content-Encoding", "snappy")
        .header("X-Prometheus-Remote-Write-Version", "0.1.0")
}

/// Milliseconds as seconds with three decimals.
fn seconds(ms: i64) -> String {
    format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_their_warnings() -> Result<()> {
        let text = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"2"]}]},"warnings":["w"]}"#;
        let answer = Answer::parse(text)?;
        assert_eq!(answer.single()?, "2");
        assert_eq!(answer.series().len(), 1);
        assert!(answer.complete().is_err());
        assert!(Answer::parse(r#"{"status":"error","error":"x"}"#).is_err());
        Ok(())
    }

    #[test]
    fn times_are_written_to_the_millisecond() {
        assert_eq!(seconds(1_700_000_000_007), "1700000000.007");
        assert_eq!(seconds(1000), "1.000");
    }
}
