//! The ring as this node sees it: placement and gossip put together, for operators and for `/metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Error as FmtError;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use saturn_proto::report::{MemberReport, RingReport};
use saturn_replication::PlacementHandle;
use saturn_ring::{
    Liveness, MemberState, NodeId, Placement, PlacementMember, ShardRecord, SlotMove, Standing,
};
use tokio::sync::watch;

use crate::gossip::View;
use crate::raft::{GroupId, Groups};

/// Puts placement and gossip together when asked.
#[derive(Clone)]
pub(crate) struct RingStatus {
    pub(crate) view: watch::Receiver<View>,
    pub(crate) placement: Arc<OnceLock<Arc<PlacementHandle>>>,
    pub(crate) groups: Arc<OnceLock<Arc<Groups>>>,
    /// Wall-clock time of the process's start, to which gossip's times are relative.
    pub(crate) started: jiff::Timestamp,
    /// What the operator asked for, shown until the cluster is formed.
    pub(crate) wanted_replication_factor: u8,
    pub(crate) wanted_shards: u16,
}

impl RingStatus {
    /// The report behind `/api/v1/status/ring`.
    pub(crate) fn report(&self) -> RingReport {
        let view = self.view.borrow().clone();
        let placement = self.placement.get().map(|handle| handle.load());
        let placement = placement.as_deref();
        let registered: BTreeMap<&NodeId, &PlacementMember> =
            placement.iter().flat_map(|p| &p.members).map(|m| (&m.id, m)).collect();
        let heard: BTreeMap<&NodeId, &MemberState> = view.members.iter().map(|m| (&m.member.id, m)).collect();
        let ids: BTreeSet<&NodeId> = registered.keys().chain(heard.keys()).copied().collect();
        let members = ids.into_iter().map(|id| {
            let (state, member) = (heard.get(id), registered.get(id));
            self.member_report(id, state.copied(), member.copied(), placement)
        });
        let alive = alive_replicas(&view, placement);
        RingReport {
            cluster: placement.map(|p| p.cluster.to_string()),
            placement_version: placement.map_or(0, |p| p.version),
            replication_factor: placement.map_or(self.wanted_replication_factor, |p| p.replication_factor),
            shards: placement.map_or(self.wanted_shards, Placement::shard_count),
            under_replicated_shards: alive.iter().filter(|(alive, slots, _)| alive < slots).count(),
            shards_without_quorum: alive.iter().filter(|(alive, _, quorum)| alive < quorum).count(),
            moves_under_way: placement
                .map_or(0, |p| p.shards.iter().filter(|record| record.moving.is_some()).count()),
            moves_planned: placement.map_or(Some(0), |p| p.plan().ok().map(|plan| plan.len())),
            is_paused: self.groups.get().and_then(|g| g.cluster_meta()).is_some_and(|meta| meta.is_paused),
            leader: self.leader(),
            council: self.council(),
            members: members.collect(),
        }
    }

    fn leader(&self) -> Option<String> {
        let groups = self.groups.get()?;
        let leader = groups.name_of(groups.standing(GroupId::CLUSTER)?.leader);
        leader.map(|id| id.to_string())
    }

    fn council(&self) -> Vec<String> {
        let groups = self.groups.get();
        let standing = groups.and_then(|groups| groups.standing(GroupId::CLUSTER));
        let voters = standing.map(|standing| standing.voters).unwrap_or_default().into_iter();
        let names = voters.filter_map(|voter| groups?.name_of(Some(voter)));
        let mut council: Vec<String> = names.map(|id| id.to_string()).collect();
        council.sort();
        council
    }

    fn member_report(
        &self,
        id: &NodeId,
        state: Option<&MemberState>,
        registered: Option<&PlacementMember>,
        placement: Option<&Placement>,
    ) -> MemberReport {
        let since = state.and_then(|s| {
            let since = jiff::SignedDuration::try_from(s.since).ok()?;
            Some(self.started.checked_add(since).ok()?.round(jiff::Unit::Second).ok()?.to_string())
        });
        let zone = registered.map(|r| r.zone.to_string());
        let generation = registered.map(|r| r.generation.to_string());
        let from_gossip = |text: fn(&MemberState) -> String| state.map(text);
        MemberReport {
            id: id.to_string(),
            zone: zone.or(from_gossip(|s| s.member.zone.to_string())).unwrap_or_default(),
            state: state_text(state, registered).into(),
            shards_owned: placement.map_or(0, |p| p.slots_of(id)),
            shards_coming: count_moves(placement, |_, moving| moving.to == *id),
            shards_leaving: count_moves(placement, |record, moving| {
                record.slots.get(usize::from(moving.slot)) == Some(id)
            }),
            standing: standing_text(registered).into(),
            weight: registered.map_or(0, |registered| registered.weight),
            since,
            generation: generation.or(from_gossip(|s| s.member.generation.to_string())).unwrap_or_default(),
            http_address: from_gossip(|s| s.member.http_addr.to_string()),
            grpc_address: from_gossip(|s| s.member.grpc_addr.to_string()),
            gossip_address: from_gossip(|s| s.member.gossip_addr.to_string()),
        }
    }
}

fn count_moves(placement: Option<&Placement>, counts: impl Fn(&ShardRecord, &SlotMove) -> bool) -> usize {
    let records = placement.iter().flat_map(|placement| &placement.shards);
    records.filter(|record| record.moving.as_ref().is_some_and(|moving| counts(record, moving))).count()
}

fn standing_text(registered: Option<&PlacementMember>) -> &'static str {
    match registered.map(|registered| registered.standing) {
        None => "stranger",
        Some(Standing::Active) => "active",
        Some(Standing::Draining) => "draining",
    }
}

/// Per shard: replicas alive, slots, quorum.
fn alive_replicas(view: &View, placement: Option<&Placement>) -> Vec<(usize, usize, usize)> {
    let Some(placement) = placement else { return Vec::new() };
    let count = |slots: &[NodeId]| slots.iter().filter(|id| view.is_alive(id)).count();
    let shards = placement.shards.iter();
    shards.map(|record| (count(&record.slots), record.slots.len(), placement.quorum())).collect()
}

fn state_text(state: Option<&MemberState>, registered: Option<&PlacementMember>) -> &'static str {
    let Some(state) = state else { return "unknown" };
    if registered.is_some_and(|r| r.generation != state.member.generation) {
        return "replaced";
    }
    liveness_text(state.liveness)
}

/// What the operator reads of it.
pub(crate) fn liveness_text(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Down => "down",
    }
}

impl std::fmt::Debug for RingStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RingStatus")
    }
}

impl Collector for RingStatus {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), FmtError> {
        let report = self.report();
        let states = ["alive", "suspect", "down", "unknown", "replaced"];
        let mut family =
            encoder.encode_descriptor("saturn_ring_members", "Members by state", None, MetricType::Gauge)?;
        for state in states {
            let count = report.members.iter().filter(|m| m.state == state).count();
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&[("state", state)])?)?;
        }
        for (name, help, count) in [
            ("saturn_ring_moves_under_way", "Shards of which a slot moves", report.moves_under_way),
            (
                "saturn_ring_under_replicated_shards",
                "Shards with a replica down",
                report.under_replicated_shards,
            ),
            ("saturn_ring_shards_without_quorum", "Shards without a quorum", report.shards_without_quorum),
        ] {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "saturn_ring_dropped_packets",
            "Gossip packets that were not let in, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in self.view.borrow().dropped.iter() {
            let counter = ConstCounter::new(count);
            counter.encode(family.encode_family(&[("reason", reason.as_str())])?)?;
        }
        Ok(())
    }
}
