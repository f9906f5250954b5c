//! Replicas in memory: they fence, ask for labels, fail, hang and lag as told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use saturn_model::{
    Cardinality, Fingerprint, Labels, Sample, Selection, SeriesColumns, ShardBatch, ShardId, TenantId,
    TimestampMs,
};
use saturn_replication::{
    AppendRequest, BatchReply, CardinalityReply, CardinalityRequest, Coordinator, LabelItems, LabelSource,
    LabelsAnswer, LabelsQuestion, LabelsRequest, PeerError, Peers, PlacementHandle, SelectRequest,
    SelectSink, Settings, ShardRefusal, ShardReply, ShardWrite,
};
use saturn_ring::{
    Access, ClusterId, Epoch, Fence, Generation, NodeId, Placement, PlacementMember, ShardRecord, Zone, fence,
};
use uuid::Uuid;

pub(crate) const SHARDS: u16 = 8;

/// One replica's behaviour and state.
pub(crate) struct Replica {
    pub(crate) dead: bool,
    pub(crate) delay: Duration,
    /// Every reply to an append says this.
    pub(crate) append_reply: Option<BatchReply>,
    /// Reads find more series than allowed.
    pub(crate) too_many: bool,
    pub(crate) placement: Option<Placement>,
    pub(crate) series: BTreeMap<u128, (Labels, BTreeMap<i64, f64>)>,
    pub(crate) appends: u32,
    pub(crate) appended_labels: usize,
    pub(crate) selects: u32,
    /// Shards of which it sent samples.
    pub(crate) sent_shards: usize,
    pub(crate) pushes: u32,
}

/// All replicas.
pub(crate) struct Cluster {
    replicas: Mutex<BTreeMap<NodeId, Replica>>,
}

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("t").expect("valid")
}

pub(crate) fn placement_of(nodes: &[&str], rf: u8) -> Placement {
    let member = |name: &&str| {
        PlacementMember::new(id(name), Generation(Uuid::nil()), Zone::new(name).expect("valid"))
    };
    let members: Vec<_> = nodes.iter().map(member).collect();
    Placement::form(ClusterId(Uuid::nil()), &members, SHARDS, rf).expect("enough nodes")
}

/// A coordinator on node "a", its replicas, and its metrics.
pub(crate) struct World {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) coordinator: Coordinator<Cluster>,
    pub(crate) placement: Arc<PlacementHandle>,
    registry: Registry,
}

impl World {
    pub(crate) fn new(nodes: &[&str], rf: u8) -> Self {
        Self::with_settings(nodes, rf, Settings::default())
    }

    pub(crate) fn with_settings(nodes: &[&str], rf: u8, settings: Settings) -> Self {
        let placement = placement_of(nodes, rf);
        let replica = || Replica {
            dead: false,
            delay: Duration::from_millis(5),
            append_reply: None,
            too_many: false,
            placement: Some(placement.clone()),
            series: BTreeMap::new(),
            appends: 0,
            appended_labels: 0,
            selects: 0,
            sent_shards: 0,
            pushes: 0,
        };
        let replicas = nodes.iter().map(|name| (id(name), replica())).collect();
        let cluster = Arc::new(Cluster { replicas: Mutex::new(replicas) });
        let handle = Arc::new(PlacementHandle::new(placement, |_| Ok(None)));
        let mut registry = Registry::default();
        let peers = Arc::clone(&cluster);
        let coordinator = Coordinator::new(peers, id("a"), Arc::clone(&handle), settings, &mut registry);
        Self { cluster, coordinator, placement: handle, registry }
    }

    /// The value of a metric by its name and labels as printed.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encodes");
        let prefix = format!("saturn_replication_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    /// Writes series `0..count` with one sample each.
    pub(crate) async fn write(&self, count: u32, timestamp: i64, value: f64) -> Result<(), String> {
        let (writes, labels) = request(count, timestamp, value);
        self.coordinator.write(writes, labels).await.map_err(|e| e.to_string())
    }

    /// How many replicas hold sample `timestamp` of each series.
    pub(crate) fn copies(&self, count: u32, timestamp: i64) -> Vec<usize> {
        let replicas = self.cluster.replicas.lock();
        let holds = |replica: &Replica, series: u32| {
            let fingerprint = Fingerprint::of(&tenant(), labels_of(series).as_encoded());
            replica.series.get(&fingerprint.0).is_some_and(|(_, samples)| samples.contains_key(&timestamp))
        };
        (0..count).map(|series| replicas.values().filter(|r| holds(r, series)).count()).collect()
    }
}

impl Cluster {
    pub(crate) fn with<R>(&self, node: &str, change: impl FnOnce(&mut Replica) -> R) -> R {
        change(self.replicas.lock().get_mut(&id(node)).expect("the replica exists"))
    }

    pub(crate) fn kill(&self, node: &str) {
        self.with(node, |replica| replica.dead = true);
    }

    /// Every replica learns a record.
    pub(crate) fn set_epoch(&self, nodes: &[&str], epoch: u64) {
        for node in nodes {
            self.with(node, |replica| {
                let placement = replica.placement.as_mut().expect("it has one");
                placement.shards.iter_mut().for_each(|record| record.epoch = Epoch(epoch));
            });
        }
    }

    /// Waits as long as the replica takes; fails if it is dead.
    async fn reach(&self, node: &NodeId) -> Result<(), PeerError> {
        let delay = self.replicas.lock()[node].delay;
        tokio::time::sleep(delay).await;
        if self.replicas.lock()[node].dead {
            return Err(PeerError::Unreachable("connection refused".into()));
        }
        Ok(())
    }

    fn read<T>(
        &self,
        to: &NodeId,
        shards: &[(ShardId, Epoch)],
        answer: impl Fn(&Replica, ShardId) -> T,
    ) -> Vec<ShardReply<T>> {
        let replicas = self.replicas.lock();
        let replica = &replicas[to];
        let reply = |(shard, epoch): &(ShardId, Epoch)| ShardReply {
            shard: *shard,
            result: match replica.judge(to, (*shard, *epoch), Access::Read) {
                Ok(()) if replica.too_many => Err(ShardRefusal::TooManySeries("over the limit".into())),
                Ok(()) => Ok(answer(replica, *shard)),
                Err(refusal) => Err(refusal),
            },
        };
        shards.iter().map(reply).collect()
    }
}

impl Replica {
    fn judge(
        &self,
        me: &NodeId,
        (shard, epoch): (ShardId, Epoch),
        access: Access,
    ) -> Result<(), ShardRefusal> {
        let record: Option<&ShardRecord> = self.placement.as_ref().and_then(|p| p.record(shard));
        match fence(record, me, epoch, access) {
            Fence::Current => Ok(()),
            Fence::Stale(record) => Err(ShardRefusal::Stale(record)),
            Fence::Behind => Err(ShardRefusal::Behind),
            Fence::NotOwner => Err(ShardRefusal::NotOwner),
        }
    }

    fn store(&mut self, batch: &ShardBatch) -> BatchReply {
        assert!(batch.is_consistent());
        let labels: BTreeMap<u32, &Labels> = batch.labels.iter().map(|(i, labels)| (*i, labels)).collect();
        self.appended_labels += labels.len();
        let mut unknown = Vec::new();
        for (index, fingerprint, timestamps, values) in batch.series() {
            let index = u32::try_from(index).expect("small");
            if let Some(labels) = labels.get(&index) {
                self.series.entry(fingerprint.0).or_insert_with(|| ((*labels).clone(), BTreeMap::new()));
            }
            match self.series.get_mut(&fingerprint.0) {
                Some((_, samples)) => samples.extend(timestamps.iter().copied().zip(values.iter().copied())),
                None => unknown.push(index),
            }
        }
        BatchReply::Stored { unknown }
    }

    fn series_of(&self, shard: ShardId) -> impl Iterator<Item = &(Labels, BTreeMap<i64, f64>)> {
        self.series.iter().filter(move |(f, _)| Fingerprint(**f).shard(SHARDS) == shard).map(|(_, s)| s)
    }
}

impl Peers for Cluster {
    async fn append(&self, to: &NodeId, request: AppendRequest) -> Result<Vec<BatchReply>, PeerError> {
        self.reach(to).await?;
        let mut replicas = self.replicas.lock();
        let replica = replicas.get_mut(to).expect("the replica exists");
        replica.appends += 1;
        let replies = request.batches.iter().map(|fenced| {
            if let Some(reply) = &replica.append_reply {
                return reply.clone();
            }
            match replica.judge(to, (fenced.batch.shard, fenced.epoch), Access::Write) {
                Ok(()) => replica.store(&fenced.batch),
                Err(refusal) => refusal.into(),
            }
        });
        Ok(replies.collect())
    }

    async fn select(&self, to: &NodeId, request: SelectRequest, sink: SelectSink) -> Result<(), PeerError> {
        self.reach(to).await?;
        self.with(to.as_str(), |replica| replica.selects += 1);
        let columns = |(labels, samples): &(Labels, BTreeMap<i64, f64>)| {
            let (timestamps, values) =
                (samples.keys().copied().collect(), samples.values().copied().collect());
            SeriesColumns::floats(labels.clone(), timestamps, values)
        };
        let replies =
            self.read(to, &request.shards, |replica, shard| replica.series_of(shard).map(columns).collect());
        for reply in replies {
            let series: &[SeriesColumns] = reply.result.as_deref().unwrap_or_default();
            sink.hold(reply.shard, series.iter().map(SeriesColumns::weight).sum())?;
            self.with(to.as_str(), |replica| replica.sent_shards += 1);
            sink.reply(reply).await;
        }
        Ok(())
    }

    async fn labels(
        &self,
        to: &NodeId,
        request: LabelsRequest,
    ) -> Result<Vec<ShardReply<LabelsAnswer>>, PeerError> {
        self.reach(to).await?;
        Ok(self.read(to, &request.shards, |replica, shard| {
            let sets = replica.series_of(shard).map(|(labels, _)| labels);
            let name = |(name, _): (&str, &str)| name.to_owned();
            let texts = |texts: BTreeSet<String>| LabelsAnswer {
                truncated: texts.len() > request.limit,
                items: LabelItems::Texts(texts.into_iter().take(request.limit).collect()),
            };
            match &request.question {
                LabelsQuestion::Names => texts(sets.flat_map(|labels| labels.iter().map(name)).collect()),
                LabelsQuestion::ValuesOf(name) => {
                    texts(sets.filter_map(|labels| labels.get(name)).map(str::to_owned).collect())
                }
                LabelsQuestion::Series => LabelsAnswer {
                    truncated: replica.series_of(shard).count() > request.limit,
                    items: LabelItems::Series(sets.take(request.limit).cloned().collect()),
                },
                LabelsQuestion::Exemplars => {
                    LabelsAnswer { items: LabelItems::Exemplars(Vec::new()), truncated: false }
                }
                LabelsQuestion::Metadata | LabelsQuestion::MetadataOf(_) => {
                    LabelsAnswer { items: LabelItems::Metadata(Vec::new()), truncated: false }
                }
            }
        }))
    }

    async fn cardinality(
        &self,
        to: &NodeId,
        request: CardinalityRequest,
    ) -> Result<CardinalityReply, PeerError> {
        self.reach(to).await?;
        let mut reply = CardinalityReply::default();
        let pairs = self.read(to, &request.shards, |replica, shard| {
            let sets = replica.series_of(shard).map(|(labels, _)| labels);
            sets.map(|labels| labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect()).collect()
        });
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        for ShardReply { shard, result } in pairs {
            let result: Result<Vec<Vec<(String, String)>>, _> = result;
            match result {
                Ok(series) => {
                    reply.counted.series += series.len() as u64;
                    series.into_iter().flatten().for_each(|pair| *counts.entry(pair).or_default() += 1);
                }
                Err(refusal) => reply.refused.push((shard, refusal.to_string())),
            }
        }
        for ((name, value), count) in counts {
            reply.counted.label_pairs.add(Cardinality::pair_hash(&name, &value));
            if name == "__name__" {
                reply.counted.series_by_metric.push((value, count));
            }
        }
        reply.counted.label_pairs.settle();
        Ok(reply)
    }

    async fn clean_tombstones(&self, to: &NodeId) -> Result<(), PeerError> {
        self.reach(to).await
    }

    async fn push_placement(&self, to: &NodeId, placement: &Placement) -> Result<(), PeerError> {
        self.reach(to).await?;
        self.with(to.as_str(), |replica| {
            replica.pushes += 1;
            replica.placement = Some(placement.clone());
        });
        Ok(())
    }

    fn is_alive(&self, _: &NodeId) -> bool {
        true // Gossip lags: the coordinator must find out by itself.
    }
}

/// The labels of a test request's series, and how often they were asked for.
pub(crate) struct TestLabels {
    pub(crate) asked: AtomicU32,
}

impl LabelSource for TestLabels {
    fn labels(&self, series: u32) -> Labels {
        self.asked.fetch_add(1, Ordering::SeqCst);
        labels_of(series)
    }
}

pub(crate) fn labels_of(series: u32) -> Labels {
    Labels::from_pairs([("__name__", "m"), ("i", series.to_string().as_str())]).expect("valid")
}

/// Series `0..count`, one sample each, split by shard as the write path does.
pub(crate) fn request(count: u32, timestamp: i64, value: f64) -> (Vec<ShardWrite>, Arc<TestLabels>) {
    let mut shards: BTreeMap<ShardId, (ShardBatch, Vec<u32>)> = BTreeMap::new();
    for series in 0..count {
        let fingerprint = Fingerprint::of(&tenant(), labels_of(series).as_encoded());
        let shard = fingerprint.shard(SHARDS);
        let (batch, indexes) =
            shards.entry(shard).or_insert_with(|| (ShardBatch::new(tenant(), shard), Vec::new()));
        batch.push_series(fingerprint);
        batch.push_sample(Sample { timestamp: TimestampMs(timestamp), value });
        indexes.push(series);
    }
    let writes = shards.into_values().map(|(batch, series)| ShardWrite { batch: Arc::new(batch), series });
    (writes.collect(), Arc::new(TestLabels { asked: AtomicU32::new(0) }))
}

pub(crate) fn everything() -> Selection {
    Selection { tenant: tenant(), matchers: Vec::new(), start: TimestampMs(0), end: TimestampMs(i64::MAX) }
}
