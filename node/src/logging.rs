//! Log lines on standard error: logfmt or JSON.

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogFormat;

/// Starts logging at `level`. Libraries log from `warn` on only; openraft nothing: it calls every vote that a peer does
/// not answer an error, and what matters comes back to the groups as a result.
pub(crate) fn start(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let ours = [
        "saturn",
        "saturn_node",
        "saturn_query_frontend",
        "saturn_promql",
        "saturn_replication",
        "saturn_storage",
        "saturn_ring",
    ];
    let directives: Vec<String> = ours.iter().map(|name| format!("{name}={level}")).collect();
    let filter: EnvFilter =
        format!("warn,openraft=off,{}", directives.join(",")).parse().context("log level")?;
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Logfmt => {
            let layer = tracing_logfmt::builder().with_target(false).layer();
            registry.with(layer.with_writer(std::io::stderr)).try_init()
        }
        LogFormat::Json => {
            registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init()
        }
    }
    .context("logging was started twice")
}
