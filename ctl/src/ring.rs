//! `saturnctl ring status`.

use std::process::ExitCode;

use saturn_proto::report::RingReport;

use crate::Output;
use crate::api::Api;
use crate::table::layout;

pub(crate) async fn status(api: &Api, output: Output) -> anyhow::Result<ExitCode> {
    let report: RingReport = api.report("/api/v1/status/ring").await?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print!("{}", describe(&report)),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(report: &RingReport) -> String {
    let rows: Vec<Vec<String>> = report
        .members
        .iter()
        .map(|member| {
            vec![
                member.id.clone(),
                member.zone.clone(),
                member.state.clone(),
                member.shards_owned.to_string(),
                member.since.clone().unwrap_or_else(|| "-".into()),
                member.http_address.clone().unwrap_or_else(|| "-".into()),
            ]
        })
        .collect();
    let cluster = report.cluster.as_deref().unwrap_or("not formed yet");
    let mut text = format!(
        "cluster {cluster}, {} shards, replication factor {}\n\n",
        report.shards, report.replication_factor
    );
    text += &layout(&["ID", "ZONE", "STATE", "SHARDS OWNED", "SINCE", "HTTP"], &rows);
    text.push('\n');
    text += &match (report.shards_without_quorum, report.under_replicated_shards) {
        (0, 0) => "All replicas of all shards are alive.\n".to_owned(),
        (0, fewer) => format!("{fewer} shards have a replica down; reads and writes go on.\n"),
        (none, _) => {
            format!("{none} shards have no quorum: they take no writes and are missing in answers.\n")
        }
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use saturn_proto::report::MemberReport;

    #[test]
    fn the_table_says_what_matters() {
        let member = |id: &str, state: &str| MemberReport {
            id: id.into(),
            zone: "a".into(),
            state: state.into(),
            shards_owned: 64,
            since: Some("2026-01-01T00:00:00Z".into()),
            generation: String::new(),
            http_address: Some("127.0.0.1:9090".into()),
            grpc_address: None,
            gossip_address: None,
        };
        let report = RingReport {
            cluster: Some("c".into()),
            placement_version: 1,
            replication_factor: 3,
            shards: 64,
            under_replicated_shards: 64,
            shards_without_quorum: 0,
            members: vec![member("n1", "alive"), member("n2", "down")],
        };
        assert_eq!(
            describe(&report),
            "cluster c, 64 shards, replication factor 3\n\n\
             ID  ZONE  STATE  SHARDS OWNED  SINCE                 HTTP\n\
             n1  a     alive  64            2026-01-01T00:00:00Z  127.0.0.1:9090\n\
             n2  a     down   64            2026-01-01T00:00:00Z  127.0.0.1:9090\n\n\
             64 shards have a replica down; reads and writes go on.\n"
        );
    }
}
