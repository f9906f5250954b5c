//! The operator's view of who owns what, and the doors to change it.
//!
//! Looking is free where it is cheap. Changing, and having shards digested, takes the `Authorization` header of
//! somebody who knows the cluster's secret (`saturn_proto::operator`). What would lose data or a quorum is refused
//! unless `force=true` is given.

use std::sync::Arc;

use axum::extract::{RawPathParams, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;
use saturn_model::{Fingerprint, Labels, LabelsBuilder, MatchOp, Matcher, ShardId, TimestampMs};
use saturn_proto::report::{
    HistoryEntry, MoveProgress, OwnerReport, OwnersReport, PlanReport, PlannedMoveReport, RepairReport,
    ShardReport, SlotMoveReport,
};
use saturn_ring::{
    ClusterCommand, ClusterMeta, Liveness, MemberChange, MemberError, MoveStep, NodeId, Placement,
    PlannedMove, ShardRecord, Standing,
};
use sha2::{Digest as _, Sha256};

use super::App;
use super::answer::{ApiError, Notes, success_of};
use super::params::Params;
use super::query::serving;
use super::tenant::Tenant;
use crate::authority::Authority;
use crate::clock;
use crate::raft::ProposeError;
use crate::repair::Repairer;
use crate::ring_status::liveness_text;
use crate::transfer::{WindowDigests, Windows};

pub(super) fn authority(app: &App) -> Result<&Authority, ApiError> {
    app.authority.get().ok_or_else(|| ApiError::unavailable("this node does not belong to a cluster yet"))
}

/// `POST /api/v1/admin/ring/ACTION`: `drain`, `undrain` and `forget` of `node`, `replace` of `old` by `new`, `pause`,
/// `resume`. Answers with the plan that follows.
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    path: RawPathParams,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    check_operator(&app, &headers)?;
    let action = path.iter().find(|(name, _)| *name == "action").map_or("", |(_, action)| action);
    let authority = authority(&app)?;
    let placement = authority.placement.load();
    let change = change_from(authority, action, &params)?;
    let report = report_plan(&app, authority, &placement, Some(&change)).await?;
    let is_forced = params.get("force") == Some("true");
    if !report.losses.is_empty() && !is_forced {
        return Err(ApiError::conflict(format!(
            "refused: {}; force=true does it anyway",
            report.losses.join("; ")
        )));
    }
    if let MemberChange::Forget(id) = &change
        && is_forced
    {
        decided(authority, MemberChange::Stand(id.clone(), Standing::Draining)).await?;
    }
    decided(authority, change).await?;
    tracing::info!(action, "the operator changed the member list");
    Ok(success_of(&report, &Notes::default()))
}

/// `POST /api/v1/admin/repair`: compares this node's shards, or the one that `shard` names, with those of the others up
/// to now, and takes what is lacking here. Reads all of them. It happens by itself every quarter of an hour, of what is
/// older than half a minute, and of what is older than a day in turn.
pub(crate) async fn repair(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    check_operator(&app, &headers)?;
    let authority = authority(&app)?;
    let shard = shard_in(&params, &authority.placement.load())?;
    let repairer = Repairer::new(authority.clone(), serving(&app)?.mover.transfers());
    let repaired = repairer.compare_all(shard, TimestampMs(clock::unix_ms())).await;
    let report = RepairReport { shards: repaired.shards, failed: repaired.failed, taken: repaired.taken };
    Ok(success_of(&report, &Notes::default()))
}

async fn decided(authority: &Authority, change: MemberChange) -> Result<(), ApiError> {
    authority.change_members(change).await.map_err(|error| match error {
        ProposeError::Refused(reason) => ApiError::bad_data(reason),
        other => ApiError::unavailable(other.to_string()),
    })
}

fn check_operator(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    if app.token.is_operator(given) {
        Ok(())
    } else {
        Err(ApiError::unauthorized(
            "the caller does not know this cluster's secret (saturnctl --secret-file)",
        ))
    }
}

fn node(params: &Params, name: &'static str) -> Result<NodeId, ApiError> {
    let text = params.get(name).ok_or_else(|| ApiError::parameter(name, "it is missing"))?;
    NodeId::new(text).map_err(|e| ApiError::parameter(name, &e.to_string()))
}

fn change_from(authority: &Authority, action: &str, params: &Params) -> Result<MemberChange, ApiError> {
    Ok(match action {
        "drain" => MemberChange::Stand(node(params, "node")?, Standing::Draining),
        "undrain" => MemberChange::Stand(node(params, "node")?, Standing::Active),
        "forget" => MemberChange::Forget(node(params, "node")?),
        "replace" => {
            let (old, new) = (node(params, "old")?, node(params, "new")?);
            if old == new { renewal(authority, new)? } else { MemberChange::Replace { old, new } }
        }
        "pause" => MemberChange::Pause(true),
        "resume" => MemberChange::Pause(false),
        other => return Err(ApiError::not_found(format!("there is no action {other:?}"))),
    })
}

/// Another data directory takes the place of the one that the cluster knows of a node: the one that was heard of.
fn renewal(authority: &Authority, id: NodeId) -> Result<MemberChange, ApiError> {
    let placement = authority.placement.load();
    let listed = placement.members.iter().find(|member| member.id == id);
    let Some(former) = listed.map(|member| member.generation) else {
        return Err(ApiError::bad_data(MemberError::NoSuchMember(id).to_string()));
    };
    let view = authority.groups.control().view();
    let heard = view.borrow().member(&id).map(|state| state.member.generation);
    match heard.filter(|generation| *generation != former) {
        Some(generation) => Ok(MemberChange::Renew { id, former, generation }),
        None => Err(ApiError::conflict(format!(
            "no other data directory of {id} was heard of: start {id} with an empty one, which is refused, and repeat this"
        ))),
    }
}

/// `GET /api/v1/status/ring/plan`: the moves that are still to begin, or with `action` and its parameters those that
/// the action would ask for.
pub(crate) async fn plan(State(app): State<Arc<App>>, params: Params) -> Result<Response, ApiError> {
    let authority = authority(&app)?;
    let change = params.get("action").map(|action| change_from(authority, action, &params)).transpose()?;
    let placement = authority.placement.load();
    let report = report_plan(&app, authority, &placement, change.as_ref()).await?;
    Ok(success_of(&report, &Notes::default()))
}

/// What follows from the member list, or from a change of it.
async fn report_plan(
    app: &App,
    authority: &Authority,
    placement: &Placement,
    change: Option<&MemberChange>,
) -> Result<PlanReport, ApiError> {
    let mut then = placement.clone();
    let mut losses = Vec::new();
    if let Some(change) = change {
        let mut meta = ClusterMeta {
            version: placement.version,
            replication_factor: placement.replication_factor,
            members: placement.members.clone(),
            ..ClusterMeta::default()
        };
        if let MemberChange::Renew { id, .. } = change {
            losses = quorums_lost(authority, placement, id);
        }
        if let MemberChange::Forget(id) = change {
            losses = losses_of(authority, placement, id);
            // What is forgotten by force is drained first.
            let drain = MemberChange::Stand(id.clone(), Standing::Draining);
            if !losses.is_empty() {
                meta.apply(ClusterCommand { at_ms: 0, change: drain })
                    .map_err(|e| ApiError::bad_data(e.to_string()))?;
            }
        }
        let command = ClusterCommand { at_ms: clock::unix_ms(), change: change.clone() };
        meta.apply(command).map_err(|e| ApiError::bad_data(e.to_string()))?;
        then.members = meta.members;
    }
    let moves = then.plan().map_err(|e| ApiError::bad_data(e.to_string()))?;
    let owned = placement.slots_of(&authority.me).max(1) as u64;
    let disk_bytes = match app.engine.get().cloned() {
        Some(engine) => {
            tokio::task::spawn_blocking(move || engine.stats().disk_bytes).await.unwrap_or_default()
        }
        None => 0,
    };
    let bytes = disk_bytes / owned * moves.len() as u64;
    let mut targets: Vec<&NodeId> = moves.iter().map(|planned| &planned.to).collect();
    targets.sort();
    targets.dedup();
    let rate = app.moves_bytes_per_second.map(|rate| rate.get() as f64 * targets.len().max(1) as f64);
    Ok(PlanReport {
        bytes,
        seconds: rate.map(|rate| bytes as f64 / rate),
        risks: risks_of(authority, placement, &moves),
        losses,
        moves: moves.into_iter().map(move_report).collect(),
    })
}

fn move_report(planned: PlannedMove) -> PlannedMoveReport {
    let PlannedMove { shard, slot, from, to } = planned;
    PlannedMoveReport { shard: shard.0, slot, from: from.to_string(), to: to.to_string() }
}

/// What stops when a node is forgotten that still holds slots.
fn losses_of(authority: &Authority, placement: &Placement, id: &NodeId) -> Vec<String> {
    let held = placement.shards.iter().filter(|record| record.is_writer(id)).count();
    if held == 0 {
        return Vec::new();
    }
    let mut losses = vec![format!("{id} still holds {held} shards, whose copies there are given up")];
    losses.extend(quorums_lost(authority, placement, id));
    losses
}

/// What is lost if a node's copies are gone.
fn quorums_lost(authority: &Authority, placement: &Placement, id: &NodeId) -> Vec<String> {
    let view = authority.groups.control().view();
    let view = view.borrow();
    let alive = |record: &&ShardRecord| {
        record.slots.iter().filter(|node| *node != id && view.is_alive(node)).count() < record.quorum()
    };
    let held = placement.shards.iter().filter(|record| record.is_writer(id));
    match held.filter(alive).count() {
        0 => Vec::new(),
        shards => {
            vec![format!(
                "{shards} shards would be left without a quorum: what only {id} has of them is lost"
            )]
        }
    }
}

/// What may go wrong while the moves are under way.
fn risks_of(authority: &Authority, placement: &Placement, moves: &[PlannedMove]) -> Vec<String> {
    let view = authority.groups.control().view();
    let view = view.borrow();
    let is_down = |node: &NodeId| view.member(node).is_none_or(|state| state.liveness == Liveness::Down);
    let mut risks = Vec::new();
    let thin = moves.iter().filter(|planned| {
        let record = &placement.shards[usize::from(planned.shard.0)];
        record.slots.iter().any(is_down)
    });
    let thin = thin.count();
    if thin > 0 {
        risks.push(format!(
            "{thin} of the moves are of shards with a replica down: until they are over, the shards take no writes \
             if another replica fails"
        ));
    }
    let absent = moves.iter().filter(|planned| is_down(&planned.to)).count();
    if absent > 0 {
        risks.push(format!("{absent} of the moves wait for nodes that are down"));
    }
    risks
}

/// `GET /api/v1/status/ring/history`: what happened to the member list, the latest last.
pub(crate) async fn history(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let Some(meta) = authority(&app)?.groups.cluster_meta() else {
        return Err(ApiError::unavailable(
            "this node takes no part in keeping the member list: ask one of those that do",
        ));
    };
    let entry = |change: &saturn_ring::ClusterChange| HistoryEntry {
        at: clock::rfc3339(change.at_ms),
        version: change.version,
        what: change.what.clone(),
    };
    let entries: Vec<HistoryEntry> = meta.history.iter().map(entry).collect();
    Ok(success_of(&entries, &Notes::default()))
}

/// `GET /api/v1/status/shards`: all shards, or the one that `shard` names; with `digest=true` what this node holds of
/// them is digested, which reads all of it and so is for the operator only.
pub(crate) async fn shards(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let is_digest_wanted = params.get("digest") == Some("true");
    if is_digest_wanted {
        check_operator(&app, &headers)?;
    }
    let authority = authority(&app)?;
    let placement = authority.placement.load();
    let wanted = shard_in(&params, &placement)?;
    let coming = app.serving.get().map(|serving| serving.mover.status()).unwrap_or_default();
    let report = |(shard, record): (ShardId, &ShardRecord)| {
        let progress = coming.iter().find(|status| status.shard == shard).map(|status| MoveProgress {
            seconds: status.since.as_secs_f64(),
            bytes: status.progress.bytes,
            samples: status.progress.samples,
            windows_done: status.progress.windows_done,
            windows_total: status.progress.windows_total,
        });
        shard_report(authority, shard, record, progress)
    };
    let all = (0..).map(ShardId).zip(&placement.shards);
    let mut reports: Vec<ShardReport> =
        all.filter(|(shard, _)| wanted.is_none_or(|wanted| wanted == *shard)).map(report).collect();
    if is_digest_wanted {
        let transfers = serving(&app)?.mover.transfers();
        for report in &mut reports {
            let digests = transfers.local_digests(ShardId(report.shard), &Windows::all()).await;
            let digests = digests.map_err(|e| ApiError::unavailable(e.to_string()))?;
            report.digest = Some(combined(&digests));
        }
    }
    Ok(success_of(&reports, &Notes::default()))
}

/// The shard that the parameters name, if they do.
fn shard_in(params: &Params, placement: &Placement) -> Result<Option<ShardId>, ApiError> {
    let shard = params.get("shard").map(str::parse::<u16>).transpose();
    let shard = shard.map_err(|_| ApiError::parameter("shard", "want the number of a shard"))?;
    match shard {
        Some(shard) if shard >= placement.shard_count() => {
            Err(ApiError::not_found(format!("there is no shard {shard}, only {}", placement.shard_count())))
        }
        shard => Ok(shard.map(ShardId)),
    }
}

fn shard_report(
    authority: &Authority,
    shard: ShardId,
    record: &ShardRecord,
    progress: Option<MoveProgress>,
) -> ShardReport {
    let meta = authority.groups.shard_meta(shard).unwrap_or_default();
    let standing = authority.groups.standing(shard.into());
    let leader = standing.and_then(|standing| authority.groups.name_of(standing.leader));
    let history = meta.history.iter().map(|change| HistoryEntry {
        at: clock::rfc3339(change.at_ms),
        version: change.record.epoch.0,
        what: describe(&change.record),
    });
    ShardReport {
        shard: shard.0,
        epoch: record.epoch.0,
        slots: record.slots.iter().map(NodeId::to_string).collect(),
        moving: record.moving.as_ref().map(|moving| SlotMoveReport {
            slot: moving.slot,
            to: moving.to.to_string(),
            step: step_text(moving.step).into(),
            progress,
        }),
        leader: leader.map(|leader| leader.to_string()),
        sealed_windows: meta.sealed.keys().filter(|window| meta.is_sealed(**window)).count(),
        deletions: record.deletions.len(),
        digest: None,
        history: history.collect(),
    }
}

/// One digest of all windows.
fn combined(digests: &WindowDigests) -> String {
    let hash = digests.iter().fold(Sha256::new(), |hash, (window, digest)| {
        hash.chain_update(window.0.to_le_bytes()).chain_update(digest)
    });
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn step_text(step: MoveStep) -> &'static str {
    match step {
        MoveStep::Begun => "begun",
        MoveStep::Activated => "activated",
    }
}

fn describe(record: &ShardRecord) -> String {
    let slots: Vec<&str> = record.slots.iter().map(NodeId::as_str).collect();
    match &record.moving {
        None => format!("held by {}", slots.join(", ")),
        Some(moving) => format!(
            "held by {}; slot {} to {}: {}",
            slots.join(", "),
            moving.slot,
            moving.to,
            step_text(moving.step)
        ),
    }
}

/// `GET /api/v1/status/ring/owners`: who holds the series that `match[]` spells out.
pub(crate) async fn owners(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    params: Params,
) -> Result<Response, ApiError> {
    let subset = serving(&app)?.coordinator.shards_written(&tenant);
    let authority = authority(&app)?;
    let placement = authority.placement.load();
    let selectors = params.selectors()?;
    let [selector] = &selectors[..] else {
        return Err(ApiError::bad_data("match[] must name one series"));
    };
    let labels = labels_of(selector)?;
    let fingerprint = Fingerprint::of(&tenant, labels.as_encoded());
    let shard = subset.shard_of(fingerprint);
    let record = placement.record(shard).ok_or_else(|| ApiError::internal("a series without a shard"))?;
    let view = authority.groups.control().view();
    let view = view.borrow();
    let owner = |id: &NodeId, role: String| OwnerReport {
        node: id.to_string(),
        zone: placement.members.iter().find(|m| m.id == *id).map(|m| m.zone.to_string()).unwrap_or_default(),
        state: view.member(id).map_or("unknown", |state| liveness_text(state.liveness)).into(),
        role,
    };
    let slots = record.slots.iter().enumerate().map(|(slot, id)| owner(id, format!("slot {slot}")));
    let coming = record.moving.iter().map(|m| owner(&m.to, format!("coming to slot {}", m.slot)));
    let report = OwnersReport {
        tenant: tenant.to_string(),
        series: format!("{labels}"),
        fingerprint: format!("{:032x}", fingerprint.0),
        shard: shard.0,
        epoch: record.epoch.0,
        owners: slots.chain(coming).collect(),
    };
    Ok(success_of(&report, &Notes::default()))
}

/// The labels that a selector of equalities spells out.
fn labels_of(selector: &[Matcher]) -> Result<Labels, ApiError> {
    let mut labels = LabelsBuilder::new();
    for matcher in selector {
        if matcher.op() != MatchOp::Equal {
            let text =
                format!("{} must be given with =: a series is wanted, not a selection", matcher.name());
            return Err(ApiError::bad_data(text));
        }
        labels.set(matcher.name(), matcher.value());
    }
    Ok(labels.build())
}
