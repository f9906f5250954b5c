//! `saturnctl doctor`: is every member reachable and ready, do the clocks agree, is every shard replicated,
//! how long does a disk take to make a write durable?

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use saturn_proto::report::{MemberReport, NodeReport, RingReport};
use serde::Serialize;

use crate::Output;
use crate::api::Api;
use crate::table::layout;

/// A clock further off than this is a warning; the front door refuses samples from too far in the future.
const CLOCK_OFFSET_MS_MAX: i64 = 1000;
/// A disk slower than this delays every acknowledgement visibly.
const FSYNC_MS_MAX: f64 = 100.0;
/// How long a member may take to answer.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(10);

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing that was checked.
#[derive(Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    subject: String,
    check: &'static str,
    detail: String,
}

fn finding(verdict: Verdict, subject: &str, check: &'static str, detail: impl Into<String>) -> Finding {
    Finding { verdict, subject: subject.into(), check, detail: detail.into() }
}

pub(crate) async fn run(api: &Api, output: Output) -> anyhow::Result<ExitCode> {
    let report: RingReport = api.report("/api/v1/status/ring").await?;
    let mut findings = vec![finding(Verdict::Ok, api.address(), "reachable", "answers")];
    for member in &report.members {
        findings.extend(examine(api, member).await);
    }
    findings.push(replication(&report));
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Table => print!("{}", describe(&findings)),
    }
    let broken = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn examine(api: &Api, member: &MemberReport) -> Vec<Finding> {
    let Some(address) = &member.http_address else {
        let detail = "never heard of since the asked node started";
        return vec![finding(Verdict::Fail, &member.id, "reachable", detail)];
    };
    let asked = Instant::now();
    let asked_unix_ms = unix_ms();
    let call = async { api.at(address)?.report::<NodeReport>("/api/v1/status/node").await };
    let report = match tokio::time::timeout(MEMBER_TIMEOUT, call).await {
        Ok(Ok(report)) => report,
        Ok(Err(e)) => {
            let detail =
                format!("no answer from {address}, gossip says {}: {}", member.state, e.root_cause());
            return vec![finding(Verdict::Fail, &member.id, "reachable", detail)];
        }
        Err(_) => {
            let detail =
                format!("no answer from {address} in {MEMBER_TIMEOUT:?}, gossip says {}", member.state);
            return vec![finding(Verdict::Fail, &member.id, "reachable", detail)];
        }
    };
    let round_trip_ms = i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX);
    judge(&member.id, address, &report, asked_unix_ms, round_trip_ms)
}

/// What a member's report says about it. Its clock was read somewhere between question and answer.
fn judge(
    id: &str,
    address: &str,
    report: &NodeReport,
    asked_unix_ms: i64,
    round_trip_ms: i64,
) -> Vec<Finding> {
    let reachable = if report.ready {
        finding(Verdict::Ok, id, "reachable", format!("ready at {address}"))
    } else {
        finding(Verdict::Fail, id, "reachable", format!("answers at {address}, but is not ready"))
    };
    let before = (asked_unix_ms - report.unix_ms).max(0);
    let after = (report.unix_ms - (asked_unix_ms + round_trip_ms)).max(0);
    let offset = after - before;
    let clock = if offset.abs() > CLOCK_OFFSET_MS_MAX { Verdict::Warn } else { Verdict::Ok };
    let uncertainty = format!("{offset} ms from this host's, give or take {round_trip_ms} ms");
    let disk = match report.fsync_ms {
        Some(ms) if ms <= FSYNC_MS_MAX => {
            finding(Verdict::Ok, id, "disk", format!("fdatasync took {ms:.1} ms"))
        }
        Some(ms) => {
            let detail = format!("fdatasync took {ms:.1} ms: every acknowledgement waits for one");
            finding(Verdict::Warn, id, "disk", detail)
        }
        None => finding(Verdict::Fail, id, "disk", "a small durable write failed: see the node's log"),
    };
    vec![reachable, finding(clock, id, "clock", uncertainty), disk]
}

fn replication(report: &RingReport) -> Finding {
    let (all, factor) = (report.shards, report.replication_factor);
    let subject = "cluster";
    if report.cluster.is_none() {
        return finding(Verdict::Fail, subject, "replication", "the cluster is not formed yet");
    }
    match (report.shards_without_quorum, report.under_replicated_shards) {
        (0, 0) => {
            let detail = format!("all {all} shards have {factor} replicas alive");
            finding(Verdict::Ok, subject, "replication", detail)
        }
        (0, fewer) => {
            let detail = format!("{fewer} of {all} shards have fewer than {factor} replicas alive");
            finding(Verdict::Fail, subject, "replication", detail)
        }
        (none, _) => {
            let detail = format!("{none} of {all} shards have no quorum: no writes, and missing in answers");
            finding(Verdict::Fail, subject, "replication", detail)
        }
    }
}

fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

fn describe(findings: &[Finding]) -> String {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "WARN",
                Verdict::Fail => "FAIL",
            };
            vec![verdict.into(), finding.subject.clone(), finding.check.into(), finding.detail.clone()]
        })
        .collect();
    let failed = findings.iter().filter(|f| f.verdict == Verdict::Fail).count();
    let warned = findings.iter().filter(|f| f.verdict == Verdict::Warn).count();
    let summary = match (failed, warned) {
        (0, 0) => "All is well.".to_owned(),
        _ => format!("{failed} failed, {warned} to look at."),
    };
    format!("{}\n{summary}\n", layout(&["", "SUBJECT", "CHECK", "FINDING"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(unix_ms: i64, fsync_ms: Option<f64>) -> NodeReport {
        NodeReport {
            id: "n1".into(),
            zone: "a".into(),
            version: "0".into(),
            ready: true,
            unix_ms,
            fsync_ms,
            series: 0,
            head_samples: 0,
            wal_bytes: 0,
            disk_bytes: 0,
        }
    }

    fn verdicts(report: &NodeReport) -> Vec<Verdict> {
        judge("n1", "a:1", report, 1_000_000, 50).iter().map(|f| f.verdict).collect()
    }

    #[test]
    fn a_clock_between_question_and_answer_is_right() {
        assert_eq!(verdicts(&report(1_000_030, Some(1.0))), [Verdict::Ok; 3]);
        assert_eq!(verdicts(&report(1_002_000, Some(1.0)))[1], Verdict::Warn);
        assert_eq!(verdicts(&report(990_000, Some(1.0)))[1], Verdict::Warn);
    }

    #[test]
    fn slow_and_broken_disks_are_told_apart() {
        assert_eq!(verdicts(&report(1_000_000, Some(500.0)))[2], Verdict::Warn);
        assert_eq!(verdicts(&report(1_000_000, None))[2], Verdict::Fail);
    }
}
