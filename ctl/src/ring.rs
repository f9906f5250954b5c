//! `saturnctl ring` and `saturnctl shard`: who is there, who owns what, and changing it.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use saturn_proto::report::{HistoryEntry, OwnersReport, PlanReport, RepairReport, RingReport, ShardReport};

use crate::Output;
use crate::api::Api;
use crate::table::layout;

/// Exit code when a change was refused because it would do harm and was not forced, or was not confirmed.
const REFUSED: u8 = 4;
/// Exit code when `--wait` gave up.
const TIMED_OUT: u8 = 5;
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
pub(crate) enum RingCommand {
    /// Members, zones, states, shards owned, since when.
    Status {
        /// Look again and again, until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// The shard and the replicas of one series, such as 'up{job="node",instance="a:9100"}'.
    Owners {
        /// The series, all of its labels.
        series: String,
        /// Whose.
        #[arg(long, default_value = "anonymous")]
        tenant: String,
    },
    /// The moves that are to come; with a change, those that it would ask for. Nothing happens.
    Plan {
        #[command(subcommand)]
        change: Option<Planned>,
    },
    /// Wait for a node that was started with --cluster.join to hold its share.
    Join {
        /// Its id.
        node: String,
        #[command(flatten)]
        how: How,
    },
    /// Move all shards away from a node.
    Drain {
        /// Its id.
        node: String,
        #[command(flatten)]
        how: How,
    },
    /// Give a drained node its share again.
    Undrain {
        /// Its id.
        node: String,
        #[command(flatten)]
        how: How,
    },
    /// Move all shards of one node to another, which has joined before. The old one may be dead. Twice the same name:
    /// an empty data directory takes the place of a lost one, once the node was started with it and refused.
    Replace {
        /// Who goes.
        old: String,
        /// Who comes.
        new: String,
        #[command(flatten)]
        how: How,
    },
    /// Remove a node that holds nothing any more from the cluster.
    Forget {
        /// Its id.
        node: String,
        #[command(flatten)]
        how: How,
    },
    /// Let shards move as the member list asks for, or stop them from beginning to.
    Rebalance {
        /// No further move begins.
        #[arg(long, conflicts_with = "resume")]
        pause: bool,
        /// Moves begin again.
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        how: How,
    },
    /// What happened to the member list.
    History,
}

/// A change that is only looked at.
#[derive(Subcommand)]
pub(crate) enum Planned {
    /// As `ring drain`.
    Drain {
        /// Its id.
        node: String,
    },
    /// As `ring undrain`.
    Undrain {
        /// Its id.
        node: String,
    },
    /// As `ring replace`.
    Replace {
        /// Who goes.
        old: String,
        /// Who comes.
        new: String,
    },
    /// As `ring forget`.
    Forget {
        /// Its id.
        node: String,
    },
}

#[derive(Args)]
pub(crate) struct How {
    /// Return when all moves are over. Interrupting this stops nothing: run it again to go on watching.
    #[arg(long)]
    wait: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Do it although something would be lost; the refusal says what.
    #[arg(long)]
    force: bool,
    /// How long --wait waits, in seconds.
    #[arg(long, default_value_t = 86_400)]
    wait_seconds: u64,
}

#[derive(Subcommand)]
pub(crate) enum ShardCommand {
    /// All shards: epoch, nodes, moves.
    Ls {
        /// Digest what the asked node holds of each; equal where the samples are. Reads all of it, and needs the secret.
        #[arg(long)]
        digest: bool,
    },
    /// One shard, with its history.
    Show {
        /// Its number.
        shard: u16,
        /// Digest what the asked node holds of it; equal where the samples are. Reads all of it, and needs the secret.
        #[arg(long)]
        digest: bool,
    },
}

/// A change of the member list as the API has it.
type Change<'a> = (&'a str, Vec<(&'a str, String)>);

pub(crate) async fn run(api: &Api, command: &RingCommand, output: Output) -> anyhow::Result<ExitCode> {
    let node = |node: &String| vec![("node", node.clone())];
    let both = |old: &String, new: &String| vec![("old", old.clone()), ("new", new.clone())];
    match command {
        RingCommand::Status { watch } => status(api, *watch, output).await,
        RingCommand::Owners { series, tenant } => owners(api, series, tenant, output).await,
        RingCommand::History => history(api, output).await,
        RingCommand::Plan { change } => {
            let change = change.as_ref().map(|change| match change {
                Planned::Drain { node: id } => ("drain", node(id)),
                Planned::Undrain { node: id } => ("undrain", node(id)),
                Planned::Replace { old, new } => ("replace", both(old, new)),
                Planned::Forget { node: id } => ("forget", node(id)),
            });
            show_plan(&plan(api, change.as_ref()).await?, output)?;
            Ok(ExitCode::SUCCESS)
        }
        RingCommand::Join { node, how } => join(api, node, how, output).await,
        RingCommand::Drain { node: id, how } => change(api, &("drain", node(id)), how, output).await,
        RingCommand::Undrain { node: id, how } => change(api, &("undrain", node(id)), how, output).await,
        RingCommand::Forget { node: id, how } => change(api, &("forget", node(id)), how, output).await,
        RingCommand::Replace { old, new, how } => {
            change(api, &("replace", both(old, new)), how, output).await
        }
        RingCommand::Rebalance { pause, resume, how } => {
            let action = match (pause, resume) {
                (true, false) => "pause",
                (false, true) => "resume",
                _ => bail!("want --pause or --resume"),
            };
            change(api, &(action, Vec::new()), how, output).await
        }
    }
}

async fn status(api: &Api, watch: bool, output: Output) -> anyhow::Result<ExitCode> {
    loop {
        let report: RingReport = api.report("/api/v1/status/ring").await?;
        match output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            Output::Table => {
                if watch && std::io::stdout().is_terminal() {
                    // Clears the screen, as `watch` does.
                    print!("\x1b[2J\x1b[H");
                }
                print!("{}", describe(&report));
            }
        }
        if !watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::io::stdout().flush()?;
        tokio::time::sleep(2 * LOOK_EVERY).await;
    }
}

async fn owners(api: &Api, series: &str, tenant: &str, output: Output) -> anyhow::Result<ExitCode> {
    let form = [("match[]", series.to_owned())];
    let report: OwnersReport = api.report_of("/api/v1/status/ring/owners", Some(tenant), &form).await?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => {
            let row = |owner: &saturn_proto::report::OwnerReport| {
                [&owner.node, &owner.zone, &owner.state, &owner.role].map(String::clone).to_vec()
            };
            let rows: Vec<Vec<String>> = report.owners.iter().map(row).collect();
            println!(
                "{} of tenant {}: shard {}, epoch {}\n",
                report.series, report.tenant, report.shard, report.epoch
            );
            print!("{}", layout(&["NODE", "ZONE", "STATE", "ROLE"], &rows));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn history(api: &Api, output: Output) -> anyhow::Result<ExitCode> {
    let entries: Vec<HistoryEntry> = api.report("/api/v1/status/ring/history").await?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&entries)?),
        Output::Table => print!("{}", describe_history(&entries, "VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe_history(entries: &[HistoryEntry], version: &str) -> String {
    let row = |entry: &HistoryEntry| vec![entry.at.clone(), entry.version.to_string(), entry.what.clone()];
    layout(&["AT", version, "WHAT"], &entries.iter().map(row).collect::<Vec<_>>())
}

async fn plan(api: &Api, change: Option<&Change<'_>>) -> anyhow::Result<PlanReport> {
    let mut form = Vec::new();
    if let Some((action, parameters)) = change {
        form.push(("action", (*action).to_owned()));
        form.extend(parameters.iter().cloned());
    }
    api.report_of("/api/v1/status/ring/plan", None, &form).await
}

fn show_plan(plan: &PlanReport, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(plan)?),
        Output::Table => print!("{}", describe_plan(plan)),
    }
    Ok(())
}

fn describe_plan(plan: &PlanReport) -> String {
    let mut pairs: Vec<(String, String, usize)> = Vec::new();
    for planned in &plan.moves {
        match pairs.iter_mut().find(|(from, to, _)| *from == planned.from && *to == planned.to) {
            Some((_, _, count)) => *count += 1,
            None => pairs.push((planned.from.clone(), planned.to.clone(), 1)),
        }
    }
    pairs.sort();
    let rows: Vec<Vec<String>> =
        pairs.into_iter().map(|(from, to, count)| vec![from, to, count.to_string()]).collect();
    let mut text = "No shard has to move.\n".to_owned();
    if !rows.is_empty() {
        text = layout(&["FROM", "TO", "SHARDS"], &rows);
        text += &format!("\n{} moves, about {} MiB", plan.moves.len(), plan.bytes >> 20);
        if let Some(seconds) = plan.seconds {
            text += &format!(", at least {seconds:.0} s at the rate that is set");
        }
        text += ".\n";
    }
    plan.risks.iter().for_each(|risk| text += &format!("Risk: {risk}.\n"));
    plan.losses.iter().for_each(|loss| text += &format!("Loss: {loss}.\n"));
    text
}

/// Shows the plan, asks, changes, and waits if that is wanted.
async fn change(api: &Api, change: &Change<'_>, how: &How, output: Output) -> anyhow::Result<ExitCode> {
    let (action, parameters) = change;
    let planned = plan(api, Some(change)).await?;
    if output == Output::Table {
        print!("{}", describe_plan(&planned));
    }
    if !planned.losses.is_empty() && !how.force {
        eprintln!("saturnctl: refused, see the losses above; --force does it anyway");
        return Ok(ExitCode::from(REFUSED));
    }
    if !how.yes && !confirmed(action)? {
        return Ok(ExitCode::from(REFUSED));
    }
    let mut form = parameters.clone();
    if how.force {
        form.push(("force", "true".to_owned()));
    }
    api.operate(&format!("/api/v1/admin/ring/{action}"), &form).await?;
    if how.wait {
        return wait(api, how, output, |_| true).await;
    }
    if output == Output::Json {
        show_plan(&planned, output)?;
    } else {
        println!("Decided. Moves go on by themselves: saturnctl ring status --watch");
    }
    Ok(ExitCode::SUCCESS)
}

fn confirmed(action: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to confirm: use --yes");
    }
    eprint!("{action}: go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("no answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn join(api: &Api, node: &str, how: &How, output: Output) -> anyhow::Result<ExitCode> {
    let report: RingReport = api.report("/api/v1/status/ring").await?;
    let is_member = |report: &RingReport| {
        report.members.iter().any(|member| member.id == node && member.standing != "stranger")
    };
    if !how.wait {
        if is_member(&report) {
            println!("{node} is a member; --wait returns when it holds its share.");
            return Ok(ExitCode::SUCCESS);
        }
        bail!(
            "{node} is no member yet: start it with --node.id={node}, --cluster.join and the cluster's secret, and it \
             registers itself"
        );
    }
    wait(api, how, output, is_member).await
}

/// Watches until the placement is as the member list asks for and `condition` holds.
async fn wait(
    api: &Api,
    how: &How,
    output: Output,
    condition: impl Fn(&RingReport) -> bool,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut most = 0;
    loop {
        let report: RingReport = api.report("/api/v1/status/ring").await?;
        let left = report.moves_planned.map_or(usize::MAX, |planned| planned + report.moves_under_way);
        // A decision takes a moment to reach the node that is asked.
        if left == 0 && condition(&report) && started.elapsed() > 4 * LOOK_EVERY {
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
                Output::Table => {
                    eprintln!("\r{} {most} of {most} moves{:20}", bar(most, most), "");
                    print!("{}", describe(&report));
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        if left != usize::MAX {
            most = most.max(left);
            if output == Output::Table {
                let (done, under_way) = (most - left, report.moves_under_way);
                eprint!("\r{} {done} of {most} moves, {under_way} under way   ", bar(done, most));
            }
        }
        if started.elapsed() > Duration::from_secs(how.wait_seconds) {
            eprintln!("\nsaturnctl: still not done after {} s; moves go on by themselves", how.wait_seconds);
            return Ok(ExitCode::from(TIMED_OUT));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn bar(done: usize, all: usize) -> String {
    const WIDTH: usize = 40;
    let full = (WIDTH * done).checked_div(all).unwrap_or_default();
    format!("[{}{}]", "#".repeat(full), ".".repeat(WIDTH - full))
}

pub(crate) async fn shards(api: &Api, command: &ShardCommand, output: Output) -> anyhow::Result<ExitCode> {
    let (mut form, digest) = match command {
        ShardCommand::Ls { digest } => (vec![], *digest),
        ShardCommand::Show { shard, digest } => (vec![("shard", shard.to_string())], *digest),
    };
    let path = "/api/v1/status/shards";
    let reports: Vec<ShardReport> = if digest {
        form.push(("digest", "true".to_owned()));
        api.report_to_operator(path, &form).await?
    } else {
        api.report_of(path, None, &form).await?
    };
    match (output, command) {
        (Output::Json, _) => println!("{}", serde_json::to_string_pretty(&reports)?),
        (Output::Table, ShardCommand::Ls { .. }) => print!("{}", describe_shards(&reports)),
        (Output::Table, ShardCommand::Show { .. }) => {
            let shard = reports.first().context("the node says nothing about the shard")?;
            print!("{}", describe_shards(&reports));
            println!("\n{} sealed windows", shard.sealed_windows);
            if shard.deletions > 0 {
                println!("{} deletions that not all of its nodes are known to have done", shard.deletions);
            }
            if !shard.history.is_empty() {
                print!("\n{}", describe_history(&shard.history, "EPOCH"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Shard after shard, as each may take long.
pub(crate) async fn repair(api: &Api, only: Option<u16>, output: Output) -> anyhow::Result<ExitCode> {
    let shards: Vec<u16> = match only {
        Some(shard) => vec![shard],
        None => (0..api.report::<RingReport>("/api/v1/status/ring").await?.shards).collect(),
    };
    let mut report = RepairReport { shards: 0, failed: 0, taken: 0 };
    for (done, shard) in (1..).zip(&shards) {
        let envelope = api.operate("/api/v1/admin/repair", &[("shard", shard.to_string())]).await?;
        let one: RepairReport =
            serde_json::from_value(envelope.data).context("the node answers something else")?;
        report.shards += one.shards;
        report.failed += one.failed;
        report.taken += one.taken;
        if output == Output::Table && std::io::stderr().is_terminal() {
            let end = if done == shards.len() { "\n" } else { "   " };
            eprint!("\r{} {done} of {} shards{end}", bar(done, shards.len()), shards.len());
        }
    }
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => println!(
            "{} shards compared, {} of them not with all of their nodes; took samples of {} copies that differed",
            report.shards, report.failed, report.taken
        ),
    }
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe_shards(reports: &[ShardReport]) -> String {
    let row = |report: &ShardReport| {
        let moving = report.moving.as_ref().map(|moving| {
            let progress = moving.progress.as_ref().map(|progress| {
                let (done, total) = (progress.windows_done, progress.windows_total);
                format!(", {done} of {total} windows, {} MiB", progress.bytes >> 20)
            });
            format!("slot {} to {}: {}{}", moving.slot, moving.to, moving.step, progress.unwrap_or_default())
        });
        let mut row = vec![
            report.shard.to_string(),
            report.epoch.to_string(),
            report.slots.join(" "),
            report.leader.clone().unwrap_or_else(|| "-".into()),
            moving.unwrap_or_else(|| "-".into()),
        ];
        row.extend(report.digest.clone());
        row
    };
    let rows: Vec<Vec<String>> = reports.iter().map(row).collect();
    let mut heads = vec!["SHARD", "EPOCH", "SLOTS", "LEADER", "MOVING"];
    if reports.iter().any(|report| report.digest.is_some()) {
        heads.push("DIGEST");
    }
    layout(&heads, &rows)
}

fn describe(report: &RingReport) -> String {
    let rows: Vec<Vec<String>> = report
        .members
        .iter()
        .map(|member| {
            let moves = match (member.shards_coming, member.shards_leaving) {
                (0, 0) => String::new(),
                (coming, leaving) => format!(" (+{coming} -{leaving})"),
            };
            vec![
                member.id.clone(),
                member.zone.clone(),
                member.state.clone(),
                member.standing.clone(),
                format!("{}{moves}", member.shards_owned),
                member.since.clone().unwrap_or_else(|| "-".into()),
                member.http_address.clone().unwrap_or_else(|| "-".into()),
            ]
        })
        .collect();
    let cluster = report.cluster.as_deref().unwrap_or("not formed yet");
    let mut text = format!(
        "cluster {cluster}, {} shards, replication factor {}",
        report.shards, report.replication_factor
    );
    if let Some(leader) = &report.leader {
        text += &format!(", led by {leader}");
    }
    text += "\n\n";
    text += &layout(&["ID", "ZONE", "STATE", "STANDING", "SHARDS OWNED", "SINCE", "HTTP"], &rows);
    text.push('\n');
    text += &match (report.shards_without_quorum, report.under_replicated_shards) {
        (0, 0) => "All replicas of all shards are alive.\n".to_owned(),
        (0, fewer) => format!("{fewer} shards have a replica down; reads and writes go on.\n"),
        (none, _) => {
            format!("{none} shards have no quorum: they take no writes and are missing in answers.\n")
        }
    };
    text += &match (report.moves_planned, report.moves_under_way) {
        (Some(0), 0) => String::new(),
        (Some(planned), under_way) => format!("{under_way} moves are under way, {planned} are to begin.\n"),
        (None, _) => "There are fewer nodes to hold shards than replicas: nothing moves.\n".to_owned(),
    };
    if report.is_paused {
        text += "Rebalancing is paused: no move begins (saturnctl ring rebalance --resume).\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use saturn_proto::report::{MemberReport, PlannedMoveReport};

    use super::*;

    fn report() -> RingReport {
        let member = |id: &str, state: &str| MemberReport {
            id: id.into(),
            zone: "a".into(),
            state: state.into(),
            shards_owned: 64,
            shards_coming: 0,
            shards_leaving: 0,
            standing: "active".into(),
            weight: 100,
            since: Some("2026-01-01T00:00:00Z".into()),
            generation: String::new(),
            http_address: Some("127.0.0.1:9090".into()),
            grpc_address: None,
            gossip_address: None,
        };
        RingReport {
            cluster: Some("c".into()),
            placement_version: 1,
            replication_factor: 3,
            shards: 64,
            under_replicated_shards: 64,
            shards_without_quorum: 0,
            moves_under_way: 0,
            moves_planned: Some(0),
            is_paused: false,
            leader: Some("n1".into()),
            council: vec!["n1".into(), "n2".into()],
            members: vec![member("n1", "alive"), member("n2", "down")],
        }
    }

    #[test]
    fn the_table_says_what_matters() {
        assert_eq!(
            describe(&report()),
            "cluster c, 64 shards, replication factor 3, led by n1\n\n\
             ID  ZONE  STATE  STANDING  SHARDS OWNED  SINCE                 HTTP\n\
             n1  a     alive  active    64            2026-01-01T00:00:00Z  127.0.0.1:9090\n\
             n2  a     down   active    64            2026-01-01T00:00:00Z  127.0.0.1:9090\n\n\
             64 shards have a replica down; reads and writes go on.\n"
        );
    }

    #[test]
    fn moves_are_in_the_table() {
        let mut report = report();
        report.members[0].shards_coming = 2;
        (report.moves_under_way, report.moves_planned, report.is_paused) = (2, Some(7), true);
        let text = describe(&report);
        assert!(text.contains("64 (+2 -0)"), "{text}");
        assert!(text.contains("2 moves are under way, 7 are to begin.\nRebalancing is paused"), "{text}");
    }

    #[test]
    fn a_plan_is_summed_up() {
        let planned =
            |shard, to: &str| PlannedMoveReport { shard, slot: 0, from: "n1".into(), to: to.into() };
        let plan = PlanReport {
            moves: vec![planned(1, "n4"), planned(2, "n5"), planned(3, "n4")],
            bytes: 5 << 20,
            seconds: Some(2.0),
            risks: vec!["something".into()],
            losses: Vec::new(),
        };
        let text = describe_plan(&plan);
        assert!(text.contains("n1    n4  2\nn1    n5  1\n\n3 moves, about 5 MiB, at least 2 s"), "{text}");
        assert!(text.ends_with("Risk: something.\n"), "{text}");
    }

    #[test]
    fn the_bar_fills() {
        assert_eq!(bar(0, 0), format!("[{}]", ".".repeat(40)));
        assert_eq!(bar(5, 10), format!("[{}{}]", "#".repeat(20), ".".repeat(20)));
        assert_eq!(bar(10, 10), format!("[{}]", "#".repeat(40)));
    }
}
