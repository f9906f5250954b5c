//! Two engines behind two servers on loopback, and what lies between them breaking.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use saturn_model::{
    Buckets, Exemplar, Fingerprint, Histogram, Labels, MetricMetadata, MetricType, Sample, Selection,
    ShardBatch, TenantId, WINDOW_MS,
};
use saturn_proto::peer::peer_server::PeerServer;
use saturn_replication::PlacementHandle;
use saturn_ring::{
    ClusterId, Generation, Liveness, Member, MemberState, Placement, PlacementMember, ShardRecord, Zone,
};
use saturn_storage::EngineOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use uuid::Uuid;

use super::*;
use crate::durability::Positions;
use crate::gossip::View;
use crate::grpc::PeerService;
use crate::peers::Connections;
use crate::replica::{Admission, Replica};
use crate::rpc_auth::Token;

const SHARD: ShardId = ShardId(2);

fn node_id(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

/// Three members, of which `a` and `b` are here.
fn placement() -> Placement {
    let member = |name: &str| {
        PlacementMember::new(node_id(name), Generation(Uuid::nil()), Zone::new(name).expect("valid"))
    };
    let members = ["a", "b", "c"].map(member);
    Placement::form(ClusterId(Uuid::nil()), &members, 4, 3).expect("enough nodes")
}

fn replica(name: &str, dir: &Path) -> Replica {
    let engine = Engine::open(EngineOptions::new(dir.join(name)), &mut Registry::default()).expect("opened");
    let placement = Arc::new(PlacementHandle::new(placement(), |_| Ok(None)));
    Replica::new(node_id(name), engine, placement, Admission::default(), Arc::default())
}

fn positions(replica: &Replica) -> Arc<Positions> {
    Arc::new(Positions::new(replica.engine.clone(), Generation(Uuid::nil())))
}

/// Serves the replica on loopback.
async fn serve(replica: Replica) -> SocketAddr {
    let positions = positions(&replica);
    let service = PeerService {
        placement: Arc::new(OnceLock::from(Arc::clone(&replica.placement))),
        replica: Arc::new(OnceLock::from(replica)),
        streams: source::Streams::default(),
        groups: Arc::default(),
        positions,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let server = tonic::transport::Server::builder().add_service(PeerServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// Passes bytes on to `to`; each connection breaks after so many bytes from there, the last number for all others.
async fn breaking(to: SocketAddr, after: [usize; 4]) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(AtomicUsize::new(0));
    let connections = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let number = connections.fetch_add(1, Ordering::SeqCst);
            let server = TcpStream::connect(to).await.expect("the server listens");
            let left = after[number.min(after.len() - 1)];
            tokio::spawn(pass_on(client, server, left));
        }
    });
    (address, count)
}

async fn pass_on(mut client: TcpStream, mut server: TcpStream, mut left: usize) {
    let (mut up, mut down) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    while left > 0 {
        let passed = tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(len @ 1..) => server.write_all(&up[..len]).await,
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(len @ 1..) => {
                    let len = len.min(left);
                    left -= len;
                    client.write_all(&down[..len]).await
                }
                _ => return,
            },
        };
        if passed.is_err() {
            return;
        }
    }
}

/// What takes shards as `b`, and reaches `a` at this address.
fn transfers(replica: &Replica, source: SocketAddr, bytes_per_second: Option<u64>) -> Transfers {
    let member = Member {
        id: node_id("a"),
        generation: Generation(Uuid::nil()),
        zone: Zone::new("a").expect("valid"),
        gossip_addr: source,
        grpc_addr: source,
        http_addr: source,
    };
    let (liveness, since) = (Liveness::Alive, Duration::ZERO);
    let state = MemberState { member, liveness, since, placement_version: None };
    let view = View { members: Arc::from([state]), ..View::default() };
    let peers = NodePeers {
        replica: replica.clone(),
        cluster: replica.placement.load().cluster,
        view: watch::channel(view).1,
        connections: Arc::new(Connections::new(Token::derive(&[b"a secret of sixteen bytes"]))),
        positions: positions(replica),
    };
    let rate = bytes_per_second.and_then(NonZeroU64::new);
    Transfers::new(Arc::new(peers), rate, &mut Registry::default())
}

/// 300 series over `windows` windows, every tenth of them with native histograms, with exemplars and metadata.
async fn fill(engine: &Engine, windows: i64) {
    for name in ["alpha", "beta"] {
        let mut batch = ShardBatch::new(TenantId::new(name).expect("valid"), SHARD);
        for number in 0..300_u32 {
            let labels = Labels::from_pairs([("__name__", "m"), ("n", &number.to_string())]).expect("valid");
            batch.push_series(Fingerprint::of(&batch.tenant, labels.as_encoded()));
            for at in 0..windows * 8 {
                let timestamp = TimestampMs(at * WINDOW_MS / 8 + i64::from(number));
                let seed = u64::from(number) << 32 | at.cast_unsigned();
                let value = f64::from_bits(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_pow(3));
                if number % 10 == 0 {
                    let positive = Buckets::from_indexed([(-3, value), (2, 1.0)]);
                    let histogram = Histogram { sum: value, positive, ..Histogram::default() };
                    batch.push_histogram(timestamp, Arc::new(histogram));
                } else {
                    batch.push_sample(Sample { timestamp, value });
                }
            }
            if number % 7 == 0 {
                let (timestamp, value, labels) = (TimestampMs(i64::from(number)), 0.5, labels.clone());
                batch.push_exemplar(Exemplar { timestamp, value, labels });
            }
            batch.labels.push((number, labels));
        }
        let (metric, help, unit) = ("m".to_owned(), "what it is".to_owned(), "s".to_owned());
        batch.metadata.push(MetricMetadata { metric, kind: MetricType::Gauge, help, unit });
        engine.append(vec![Arc::new(batch)]).await.expect("appended");
    }
}

fn everything(tenant: &str) -> Selection {
    let (start, end) = (TimestampMs(i64::MIN), TimestampMs(i64::MAX));
    Selection { tenant: TenantId::new(tenant).expect("valid"), matchers: Vec::new(), start, end }
}

/// Samples that queries see, and exemplars and metadata.
fn read(engine: &Engine) -> Vec<String> {
    let mut all = Vec::new();
    for tenant in ["alpha", "beta"] {
        let selection = everything(tenant);
        for columns in engine.select(SHARD, &selection, 1000).expect("selected") {
            let values: Vec<u64> = columns.values.iter().map(|value| value.to_bits()).collect();
            let histograms = &columns.histograms;
            all.push(format!(
                "{tenant} {} {:?} {values:?} {histograms:?}",
                columns.labels, columns.timestamps
            ));
        }
        all.extend(engine.exemplars(SHARD, &selection).iter().map(|exemplars| format!("{exemplars:?}")));
        let metadata = engine.metadata(SHARD, &selection.tenant, None, 10).items;
        all.extend(metadata.iter().map(|metadata| format!("{metadata:?}")));
    }
    all.sort();
    all
}

struct Two {
    _dir: tempfile::TempDir,
    a: Replica,
    b: Replica,
    address: SocketAddr,
}

async fn two(windows: i64) -> Two {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (a, b) = (replica("a", dir.path()), replica("b", dir.path()));
    fill(&a.engine, windows).await;
    let address = serve(a.clone()).await;
    Two { _dir: dir, a, b, address }
}

/// Pulls with the epoch that all know.
async fn pull(transfers: &Transfers) -> Result<Pulled, TransferError> {
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    transfers.pull_shard((SHARD, Epoch::FIRST), &node_id("a"), &progress, cancel).await
}

/// A node that loses a shard deletes its copy: what it has given of a long read until then is not all.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_during_which_the_record_changes_does_not_count() {
    use std::ops::ControlFlow;

    use saturn_replication::SelectRequest;

    let Two { a, .. } = &two(1).await;
    let shards = vec![(SHARD, Epoch::FIRST)];
    let request = SelectRequest { selection: everything("alpha"), shards, series_max: 1000 };
    let mut series = 0;
    let read = a.read_shard((SHARD, Epoch::FIRST), &request, |_| {
        series += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((read, series), (Ok(()), 300));
    let mut series = 0;
    let read = a.read_shard((SHARD, Epoch::FIRST), &request, |_| {
        if series == 0 {
            let mut record = a.placement.load().record(SHARD).expect("there").clone();
            record.slots = ["b", "c", "d"].map(node_id).to_vec();
            record.epoch = Epoch(5);
            a.placement.adopt(SHARD, record).expect("adopted");
            a.engine.drop_shard(SHARD).expect("dropped");
        }
        series += 1;
        ControlFlow::Continue(())
    });
    assert!(series < 300, "the copy is gone");
    assert!(matches!(read, Err(ShardRefusal::Stale(record)) if record.epoch == Epoch(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_comes_over_whole_though_connections_break() {
    let Two { a, b, address, .. } = &two(6).await;
    let (between, connections) = breaking(*address, [60_000, 60_000, 60_000, usize::MAX]).await;
    let transfers = transfers(b, between, None);
    let pulled = pull(&transfers).await.expect("pulled");
    assert!(connections.load(Ordering::SeqCst) >= 4, "{connections:?}");
    assert_eq!(transfers.retries.get() as usize, connections.load(Ordering::SeqCst) - 1);
    assert_eq!(pulled.new_series, 600);
    let Progress { samples, windows_done, windows_total, .. } = pulled.progress;
    assert_eq!((samples, windows_done, windows_total), (600 * 48, 6, 6));
    assert_eq!(read(&b.engine), read(&a.engine));
    let local = transfers.local_digests(SHARD, &Windows::all()).await.expect("digests");
    let remote = transfers
        .remote_digests((SHARD, Epoch::FIRST), &node_id("a"), &Windows::all())
        .await
        .expect("digests")
        .windows;
    assert_eq!((local.len(), differing_windows(&local, &remote)), (6, vec![]));

    // What is there does not come once more, but for the window that brings exemplars; what differs is found.
    let again = pull(&transfers).await.expect("pulled");
    assert_eq!((again.new_series, again.progress.samples), (0, samples / 6));
    fill(&a.engine, 7).await;
    let remote = transfers
        .remote_digests((SHARD, Epoch::FIRST), &node_id("a"), &Windows::all())
        .await
        .expect("digests")
        .windows;
    assert_eq!(differing_windows(&local, &remote), [TimestampMs(6 * WINDOW_MS)]);
    let one = [TimestampMs(WINDOW_MS)];
    let remote = transfers
        .remote_digests(
            (SHARD, Epoch::FIRST),
            &node_id("a"),
            &Windows { starts: one.to_vec(), ..Windows::all() },
        )
        .await
        .expect("digests")
        .windows;
    assert_eq!((remote.len(), remote.get(&one[0])), (1, local.get(&one[0])));
    let rest = pull(&transfers).await.expect("pulled");
    assert_eq!((rest.progress.samples, rest.progress.windows_total), (samples / 6, 1));
    assert_eq!(read(&b.engine), read(&a.engine));
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_come_over_one_by_one_and_those_on_disk_are_listed() {
    let Two { a, b, address, .. } = &two(6).await;
    let (between, connections) = breaking(*address, [60_000, usize::MAX, usize::MAX, usize::MAX]).await;
    let transfers = transfers(b, between, None);
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    let wanted = [1, 4].map(|number| TimestampMs(number * WINDOW_MS));
    let source = node_id("a");
    let pulled = transfers
        .pull_windows((SHARD, Epoch::FIRST), &source, wanted.to_vec(), &progress, cancel)
        .await
        .expect("pulled");
    assert!(connections.load(Ordering::SeqCst) >= 2, "{connections:?}");
    assert_eq!((pulled.progress.samples, pulled.progress.windows_total), (600 * 8 * 2, 2));
    let local = transfers.local_digests(SHARD, &Windows::all()).await.expect("digests");
    assert!(local.keys().copied().eq(wanted), "{local:?}");

    a.engine.flush().expect("flushed");
    let on_disk = transfers.remote_windows((SHARD, Epoch::FIRST), &source).await.expect("listed");
    assert_eq!(on_disk, (0..6).map(|number| TimestampMs(number * WINDOW_MS)).collect::<Vec<_>>());
    let behind = transfers.remote_windows((SHARD, Epoch(9)), &source).await;
    assert!(matches!(behind, Err(TransferError::Behind)), "{behind:?}");
}

/// A node whose disk has lost something answers no reads and is no source of a move, but helps others to repair.
#[tokio::test(flavor = "multi_thread")]
async fn who_lacks_something_gives_no_whole_shard_and_repairs_from_others() {
    use std::ops::ControlFlow;

    use crate::repair::{Compared, Comparison};

    let Two { a, b, address, .. } = &two(6).await;
    let transfers = transfers(b, *address, None);
    let request = saturn_replication::SelectRequest {
        selection: everything("alpha"),
        shards: vec![(SHARD, Epoch::FIRST)],
        series_max: 1000,
    };
    let read_a = || a.read_shard((SHARD, Epoch::FIRST), &request, |_| ControlFlow::Continue(()));
    a.lacking.add([SHARD].into_iter());
    let refused = read_a().expect_err("it may lack something");
    assert!(matches!(&refused, ShardRefusal::Failed(text) if text.contains("being repaired")), "{refused}");
    let refused = pull(&transfers).await.expect_err("it may lack something");
    assert!(matches!(&refused, TransferError::Source(text) if text.contains("being repaired")), "{refused}");
    assert_eq!(read(&b.engine), Vec::<String>::new());

    // However old: the windows are of 1970.
    let compared = Comparison::new(&transfers, (SHARD, Epoch::FIRST), Windows::all()).await;
    let mut comparison = compared.expect("digests");
    let compared = comparison.with(&node_id("a")).await.expect("taken");
    assert_eq!(compared, Compared { differs: true, is_lacking: true });
    assert_eq!(read(&b.engine), read(&a.engine));
    a.lacking.remove(SHARD);
    let compared = comparison.with(&node_id("a")).await.expect("the same now");
    assert_eq!(compared, Compared { differs: false, is_lacking: false });
    read_a().expect("it has all again");
    assert_eq!(pull(&transfers).await.expect("pulled").new_series, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_gives_only_under_exactly_its_own_record() {
    let Two { a, b, address, .. } = &two(1).await;
    let transfers = transfers(b, *address, None);
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    let first = a.placement.load().shards[usize::from(SHARD.0)].clone();
    let at = |epoch: u64| ShardRecord { epoch: Epoch(epoch), ..first.clone() };
    let with = async |epoch: u64| {
        let shard = (SHARD, Epoch(epoch));
        b.placement.adopt(SHARD, at(epoch)).expect("stored");
        let pulled = transfers.pull_shard(shard, &node_id("a"), &progress, cancel.clone()).await;
        (pulled, transfers.remote_digests(shard, &node_id("a"), &Windows::all()).await)
    };
    let (pulled, digests) = with(2).await;
    assert!(matches!(pulled, Err(TransferError::Behind)), "{pulled:?}");
    assert!(matches!(digests, Err(TransferError::Behind)), "{digests:?}");
    let record = at(3);
    a.placement.adopt(SHARD, record.clone()).expect("stored");
    let (pulled, digests) = with(2).await;
    assert!(matches!(&pulled, Err(TransferError::Stale(newer)) if *newer == record), "{pulled:?}");
    assert!(matches!(&digests, Err(TransferError::Stale(newer)) if *newer == record), "{digests:?}");
    assert_eq!(read(&b.engine).len(), 0);
    assert!(with(3).await.0.is_ok());
    let past = transfers.pull_shard((SHARD, Epoch(2)), &node_id("a"), &progress, cancel.clone()).await;
    assert!(matches!(past, Err(TransferError::Changed)), "{past:?}");
    // Nobody is asked to wait for a node that nobody knows.
    let nobody = transfers
        .remote_digests((SHARD, Epoch(3)), &node_id("c"), &Windows::all())
        .await
        .expect_err("unknown");
    assert!(nobody.to_string().contains("c was not heard of yet"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_can_be_cancelled_and_gives_up_on_a_source_that_is_gone() {
    let Two { b, address, .. } = &two(6).await;
    let slow = transfers(b, *address, Some(1));
    let progress = watch::Sender::new(Progress::default());
    let mut seen = progress.subscribe();
    let (cancel, cancelled) = watch::channel(false);
    let stop = async {
        seen.wait_for(|progress| progress.samples > 0).await.expect("the pull is there");
        cancel.send_replace(true);
    };
    let source = node_id("a");
    let pull_slowly = slow.pull_shard((SHARD, Epoch::FIRST), &source, &progress, cancelled);
    let (pulled, ()) = tokio::join!(pull_slowly, stop);
    assert!(matches!(pulled, Err(TransferError::Cancelled)), "{pulled:?}");
    assert_eq!(read(&b.engine).len(), 0, "what waited for the importer is not stored any more");
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
    let gone = pull(&transfers(b, nobody, None)).await.expect_err("nobody is there");
    let text = gone.to_string();
    assert!(text.starts_with("gave up after 8 attempts in a row that brought nothing: "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_damaged_too_large_or_missing_are_not_taken() {
    let Two { a, b, address, .. } = &two(1).await;
    let good = {
        let snapshot = a.engine.snapshot(SHARD);
        let mut chunks = snapshot.export(saturn_storage::ExportScope::Shard, None, 10_000).expect("valid");
        chunks.next().expect("a chunk").expect("readable")
    };
    let of_another = ExportChunk { shard: ShardId(3), ..good.clone() };
    let mut damaged = good.to_bytes();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let samples = |bytes: Vec<u8>| Part::Samples(bytes.into());
    let cases = [
        (vec![samples(damaged)], "the checksum of a chunk is wrong"),
        (
            vec![samples(vec![0; EXPORT_BYTES_MAX + 1])],
            "1048577 bytes are more than the 1048576 that a chunk has",
        ),
        (vec![Part::Notes(bytes::Bytes::from_static(b"?"))], "1 bytes are no chunk"),
        (vec![samples(of_another.to_bytes())], "a frame is of another place than the one asked for"),
        (
            vec![samples(good.to_bytes()), samples(good.to_bytes())],
            "a frame is of another place than the one asked for",
        ),
        (vec![samples(good.to_bytes())], "the stream ended before its last frame"),
        (
            vec![samples(good.to_bytes()), Part::End(peer::ShardEnd::default())],
            "the source says that it sent",
        ),
    ];
    let transfers = transfers(b, *address, None);
    let (source, progress) = (node_id("a"), watch::Sender::new(Progress::default()));
    for (parts, text) in cases {
        let (work, mut inbox) = mpsc::channel(10);
        let mut pull = Pull {
            transfers: &transfers,
            shard: SHARD,
            epoch: Epoch::FIRST,
            source: &source,
            progress: &progress,
            work,
            cursor: None,
            extent: Extent { windows: Vec::new(), whole: true },
        };
        let frames = parts.into_iter().map(|part| Ok(peer::ShardFrame { part: Some(part) }));
        let ended = pull.take_frames(tokio_stream::iter(frames)).await;
        assert!(matches!(&ended, Err(Ended::Broken(got)) if got.contains(text)), "{text}: {ended:?}");
        drop(pull);
        while let Some(work) = inbox.recv().await {
            assert!(!matches!(work, Work::Finish), "{text}: it was not the whole shard");
        }
    }
}
