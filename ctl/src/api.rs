//! One node's HTTP API, with errors that say what to do.

use std::time::Duration;

use anyhow::{Context as _, bail};
use saturn_proto::operator;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long a node may take to answer.
const TIMEOUT: Duration = Duration::from_secs(130);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A node.
pub(crate) struct Api {
    http: reqwest::Client,
    address: String,
    /// What shows that the operator may change the cluster.
    authorization: String,
}

/// Prometheus's envelope.
#[derive(Debug, Deserialize)]
pub(crate) struct Envelope {
    status: String,
    #[serde(default)]
    pub(crate) data: Value,
    #[serde(default)]
    error: String,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    #[serde(default)]
    pub(crate) infos: Vec<String>,
}

impl Api {
    /// `secret`: the cluster's, if it has one.
    pub(crate) fn new(address: &str, secret: Option<&[u8]>) -> anyhow::Result<Self> {
        let secret = secret.unwrap_or(operator::LOOPBACK_SECRET);
        Self::with_authorization(address, operator::authorization(secret))
    }

    fn with_authorization(address: &str, authorization: String) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build()?;
        let with_scheme =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        Ok(Self { http, address: with_scheme.trim_end_matches('/').to_owned(), authorization })
    }

    /// The same for another node.
    pub(crate) fn at(&self, address: &str) -> anyhow::Result<Self> {
        Self::with_authorization(address, self.authorization.clone())
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Posts a form and opens the envelope.
    pub(crate) async fn call(
        &self,
        path: &str,
        tenant: Option<&str>,
        form: &[(&str, String)],
    ) -> anyhow::Result<Envelope> {
        let mut request = self.http.post(format!("{}{path}", self.address)).form(form);
        if let Some(tenant) = tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        self.open(request).await
    }

    /// Gets a report.
    pub(crate) async fn report<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let envelope = self.open(self.http.get(format!("{}{path}", self.address))).await?;
        serde_json::from_value(envelope.data).context("the node answers something else: is it a Saturn node?")
    }

    /// Gets a report about something.
    pub(crate) async fn report_of<T: DeserializeOwned>(
        &self,
        path: &str,
        tenant: Option<&str>,
        query: &[(&str, String)],
    ) -> anyhow::Result<T> {
        let mut request = self.http.get(format!("{}{path}", self.address)).query(query);
        if let Some(tenant) = tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let envelope = self.open(request).await?;
        serde_json::from_value(envelope.data).context("the node answers something else: is it a Saturn node?")
    }

    /// Changes something, as somebody who knows the cluster's secret.
    pub(crate) async fn operate(&self, path: &str, form: &[(&str, String)]) -> anyhow::Result<Envelope> {
        let request = self.http.post(format!("{}{path}", self.address)).form(form);
        self.open(request.header("Authorization", &self.authorization)).await
    }

    /// Gets a report that only somebody gets who knows the cluster's secret.
    pub(crate) async fn report_to_operator<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<T> {
        let request = self.http.get(format!("{}{path}", self.address)).query(query);
        let envelope = self.open(request.header("Authorization", &self.authorization)).await?;
        serde_json::from_value(envelope.data).context("the node answers something else: is it a Saturn node?")
    }

    async fn open(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Envelope> {
        let reply = request.send().await.with_context(|| {
            format!("cannot reach {} (--address or SATURN_ADDRESS names the node to ask)", self.address)
        })?;
        let status = reply.status();
        let text = reply.text().await.context("the answer broke off")?;
        let envelope: Envelope = serde_json::from_str(&text).with_context(|| {
            let start: String = text.chars().take(200).collect();
            format!("{} answers {status} and no JSON: {start:?}", self.address)
        })?;
        if envelope.status != "success" {
            bail!("{}", envelope.error);
        }
        Ok(envelope)
    }
}
