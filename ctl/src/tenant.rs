//! `saturnctl tenant shards`.

use std::process::ExitCode;

use saturn_proto::report::TenantShardsReport;

use crate::Output;
use crate::api::Api;
use crate::table::layout;

/// Prints which shards a tenant's series go to, and which queries ask.
pub(crate) async fn shards(api: &Api, name: &str, output: Output) -> anyhow::Result<ExitCode> {
    let plain =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    anyhow::ensure!(plain, "{name:?} is no tenant's name: want 1 to 63 of a-z, 0-9, '_' and '-'");
    let report: TenantShardsReport = api.report(&format!("/api/v1/admin/tenants/{name}/shards")).await?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print!("{}", describe(&report)),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(report: &TenantShardsReport) -> String {
    let of_all = |count: usize| {
        if count == usize::from(report.shards) {
            format!("all {count}")
        } else {
            format!("{count} of {}", report.shards)
        }
    };
    let written = report.placement.iter().filter(|shard| shard.written).count();
    let rows: Vec<Vec<String>> = report
        .placement
        .iter()
        .map(|shard| {
            let used = if shard.written { "writes, queries" } else { "queries" };
            vec![shard.shard.to_string(), used.to_owned(), shard.nodes.join(", ")]
        })
        .collect();
    let mut text = format!(
        "tenant {}: writes go to {} shards, queries ask {}\n\n",
        report.tenant,
        of_all(written),
        of_all(report.placement.len())
    );
    text += &layout(&["SHARD", "USED BY", "NODES"], &rows);
    text
}

#[cfg(test)]
mod tests {
    use saturn_proto::report::TenantShard;

    use super::*;

    #[test]
    fn the_table_tells_writes_from_queries() {
        let shard =
            |shard, written| TenantShard { shard, written, epoch: 1, nodes: vec!["n1".into(), "n2".into()] };
        let report = TenantShardsReport {
            tenant: "demo".into(),
            shards: 64,
            placement: vec![shard(3, true), shard(40, false)],
        };
        assert_eq!(
            describe(&report),
            "tenant demo: writes go to 1 of 64 shards, queries ask 2 of 64\n\n\
             SHARD  USED BY          NODES\n\
             3      writes, queries  n1, n2\n\
             40     queries          n1, n2\n"
        );
    }
}
