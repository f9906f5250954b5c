//! One run: send, take the CPU time, count what is there, stop, weigh.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use saturn_chaos_tests::{Endpoint, eventually};

use crate::usage::ended_children_cpu_seconds;
use crate::{Figures, Load, Subject, send_all};

/// How long acked samples may take to be found.
const FOUND_LIMIT: Duration = Duration::from_secs(30);

/// Measures a subject that was started for this and holds nothing yet; it is stopped afterwards.
pub async fn measure(subject: Subject, load: &Arc<Load>, senders: usize) -> Result<Figures> {
    let name = subject.name();
    let copies = subject.copies();
    let cpu_of_others = ended_children_cpu_seconds()?;
    let cpu_at_start = subject.cpu_seconds()?;
    let sent = send_all(load, &subject.endpoints(), senders).await.with_context(|| name.clone())?;
    let cpu_at_last_ack = subject.cpu_seconds()?;
    check_count(&subject, load).await.with_context(|| name.clone())?;
    let cpu_of_check = subject.cpu_seconds()? - cpu_at_last_ack;
    let disk_bytes = subject.stop().await?;
    let cpu_in_all = ended_children_cpu_seconds()? - cpu_of_others;
    Ok(Figures {
        name,
        copies,
        samples: load.samples,
        sent,
        cpu_seconds: cpu_at_last_ack - cpu_at_start,
        cpu_seconds_to_stop: cpu_in_all - cpu_at_start - cpu_of_check,
        disk_bytes,
    })
}

/// Every sample is there, asked through the last node. A peer may show samples a while after it took them.
pub async fn check_count(subject: &Subject, load: &Load) -> Result<()> {
    let endpoint = subject.endpoints().pop().context("a subject has an endpoint")?;
    eventually("all samples are found", FOUND_LIMIT, async || {
        let found = count(&endpoint, load).await?;
        ensure!(found == load.samples, "{} samples were acked, {found} are found", load.samples);
        Ok(Some(()))
    })
    .await
}

/// How many samples there are, metric by metric, so that no query is large.
async fn count(endpoint: &Endpoint, load: &Load) -> Result<u64> {
    // One second more, because the window is open on one side; less than a scrape before the first.
    let range_seconds = load.span_ms / 1000 + 1;
    let mut found = 0;
    for metric in &load.metrics {
        let query = format!("sum(count_over_time({metric}[{range_seconds}s]))");
        let answer = endpoint.query(&query, load.end_ms).await?.complete()?;
        if !answer.is_empty() {
            found += answer.single()?.parse::<u64>()?;
        }
    }
    Ok(found)
}
