//! Two ends over real sockets: [`Peers`] here, a served [`PeerService`] with a made-up host and group there.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use futures::stream;
use nearring_proto::wire::Dial;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, StreamAppendError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId as _;
use openraft::{BasicNode, EntryPayload, Membership};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use uuid::Uuid;

mod groups;

use super::*;
use crate::medium::OsMedium;
use crate::raft::peers::{GroupNetwork, PeerError, Peers};
use crate::raft::{Entry, Proposal, scope};

const GROUP: ShardId = ShardId(5);
const HEARTBEAT: Duration = Duration::from_millis(50);
const TTL: Duration = Duration::from_secs(5);

fn cluster(n: u128) -> ClusterId {
    ClusterId(Uuid::from_u128(n))
}

fn log_id(index: u64) -> LogId {
    LogId::new(openraft::alias::LeaderIdOf::<TypeConfig>::new(1, ReplicaId::default()).to_committed(), index)
}

fn leader_vote() -> Vote {
    Vote { leader_id: openraft::alias::LeaderIdOf::<TypeConfig>::new(1, replica(1, 10)), committed: true }
}

fn append(prev: Option<u64>, entries: std::ops::Range<u64>) -> AppendEntriesRequest<TypeConfig> {
    let entry = |index: u64| Entry {
        log_id: log_id(index),
        payload: EntryPayload::Normal(Proposal(Bytes::from(vec![7; 1000]))),
    };
    AppendEntriesRequest {
        vote: leader_vote(),
        prev_log_id: prev.map(log_id),
        entries: entries.map(entry).collect(),
        leader_commit: None,
    }
}

/// A group that answers what the test wants, and remembers what it saw.
#[derive(Default)]
struct FakeGroup {
    seen: Mutex<Vec<u64>>,
    /// At this index it answers a conflict.
    conflict_at: Mutex<Option<u64>>,
    /// Later requests of a pipeline answer sooner.
    uneven: AtomicBool,
    running: AtomicUsize,
    most_running: AtomicUsize,
    installed: Mutex<Option<(SnapshotFile, [u8; 32], SnapshotMeta)>>,
    refuses_snapshots: AtomicBool,
}

#[tonic::async_trait]
impl Group for FakeGroup {
    async fn append(&self, r: AppendEntriesRequest<TypeConfig>) -> Result<AppendEntriesResponse<TypeConfig>, String> {
        let index = r.entries.first().map_or(0, |entry| entry.log_id.index);
        self.seen.lock().unwrap().push(index);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        if self.uneven.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(20 - (index % 4) * 6)).await;
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        if *self.conflict_at.lock().unwrap() == Some(index) {
            return Ok(AppendEntriesResponse::Conflict);
        }
        Ok(AppendEntriesResponse::Success)
    }

    async fn vote(&self, r: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String> {
        Ok(VoteResponse::new(r.vote, Some(log_id(42)), true))
    }

    async fn pre_vote(&self, r: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String> {
        Ok(VoteResponse::new(r.vote, Some(log_id(43)), false))
    }

    async fn transfer_leader(
        &self,
        _: TransferLeaderRequest<TypeConfig>,
    ) -> Result<TransferLeaderResponse<TypeConfig>, String> {
        Ok(Ok(()))
    }

    async fn install_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, String> {
        if self.refuses_snapshots.load(Ordering::SeqCst) {
            return Err("not this one".to_owned());
        }
        let hash = *blake3::hash(&OsMedium.read(&snapshot.path).unwrap()).as_bytes();
        *self.installed.lock().unwrap() = Some((snapshot, hash, meta));
        Ok(SnapshotResponse::new(vote))
    }
}

struct FakeHost {
    me: ReplicaId,
    cluster: Option<ClusterId>,
    group: Arc<FakeGroup>,
    /// Real ones, which come first.
    groups: Mutex<BTreeMap<ShardId, Arc<dyn Group>>>,
    full: AtomicBool,
    replaced: Mutex<BTreeSet<ReplicaId>>,
    dir: PathBuf,
    segments: Mutex<BTreeMap<[u8; 32], PathBuf>>,
}

#[tonic::async_trait]
impl Host for FakeHost {
    fn me(&self) -> ReplicaId {
        self.me
    }
    fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }
    fn group(&self, group: ShardId) -> Option<Arc<dyn Group>> {
        if let Some(real) = self.groups.lock().unwrap().get(&group) {
            return Some(real.clone());
        }
        (group.0 < 1000).then(|| self.group.clone() as Arc<dyn Group>)
    }
    fn admits_appends(&self) -> bool {
        !self.full.load(Ordering::SeqCst)
    }
    fn is_replaced(&self, peer: ReplicaId) -> bool {
        self.replaced.lock().unwrap().contains(&peer)
    }
    fn incoming_dir(&self) -> PathBuf {
        self.dir.join("incoming")
    }
    async fn hello(&self, r: wire::HelloRequest) -> Result<wire::HelloReply, Status> {
        // What a host does may spawn; outside the scope this would panic.
        crate::raft::spawn(async {}).await.unwrap();
        Ok(wire::HelloReply { format: WIRE_FORMAT, seeds: r.seeds, ..Default::default() })
    }
    async fn read_index(&self, shards: Vec<ShardId>, _: Duration) -> Vec<Position> {
        shards
            .into_iter()
            .filter(|shard| shard.0 % 2 == 0)
            .map(|shard| Position { shard, index: shard.0 * 10 })
            .collect()
    }
    async fn segment_file(&self, _: ShardId, hash: [u8; 32]) -> Option<SnapshotFile> {
        let path = self.segments.lock().unwrap().get(&hash)?.clone();
        let len = OsMedium.len(&path).unwrap();
        Some(SnapshotFile { path, len, source: None, guard: None })
    }
    async fn accept_segment(&self, shard: ShardId, segment: u64, hash: [u8; 32], file: PathBuf) -> Result<(), String> {
        if *blake3::hash(&OsMedium.read(&file).unwrap()).as_bytes() != hash {
            return Err("another hash".to_owned());
        }
        let kept = self.dir.join(format!("kept-{}-{segment}", shard.0));
        OsMedium.rename(&file, &kept).unwrap();
        self.segments.lock().unwrap().insert(hash, kept);
        Ok(())
    }
}

struct TestNode {
    host: Arc<FakeHost>,
    addr: SocketAddr,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl TestNode {
    async fn start(me: ReplicaId) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), me).await
    }

    async fn start_at(addr: SocketAddr, me: ReplicaId) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Arc::new(FakeHost {
            me,
            cluster: Some(cluster(1)),
            group: Arc::default(),
            groups: Mutex::default(),
            full: AtomicBool::new(false),
            replaced: Mutex::default(),
            dir: dir.path().to_owned(),
            segments: Mutex::default(),
        });
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let service = PeerService::new(host.clone(), Arc::new(OsMedium), Compute::pool_of(2), stop.clone());
        let stopped = stop.clone();
        let server = crate::raft::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(service.into_server());
            server.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned()).await.unwrap();
        });
        Self { host, addr, stop, server, dir }
    }

    /// Stops it as a node stops: streams end, connections close.
    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.server).await.unwrap().unwrap();
    }

    fn incoming(&self) -> Vec<String> {
        OsMedium.list(&self.dir.path().join("incoming")).unwrap_or_default()
    }
}

fn tcp() -> Dial {
    Arc::new(|addr: &str| Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy())
}

fn peers_in(cluster: ClusterId, me: ReplicaId) -> Peers {
    Peers::new(me, cluster, tcp(), Arc::new(OsMedium), Compute::pool_of(2), HEARTBEAT)
}

fn peers() -> Peers {
    peers_in(cluster(1), replica(1, 10))
}

async fn network(peers: &Peers, group: ShardId, target: ReplicaId, addr: impl ToString) -> GroupNetwork {
    peers.network(group).new_client(target, &BasicNode { addr: addr.to_string() }).await
}

async fn append_to(network: &mut GroupNetwork) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
    network.append_entries(append(Some(0), 1..2), RPCOption::new(HEARTBEAT)).await
}

/// The answer once there is one, and the errors until then.
async fn eventually(network: &mut GroupNetwork) -> Vec<RPCError<TypeConfig>> {
    let start = Instant::now();
    let mut errors = Vec::new();
    while start.elapsed() < Duration::from_secs(20) {
        match append_to(network).await {
            Ok(_) => return errors,
            Err(error) => errors.push(error),
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("no answer in time: {errors:?}");
}

fn test(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(scope(1, future));
}

fn unreachable(result: Result<impl std::fmt::Debug, RPCError<TypeConfig>>, why: &str) {
    match result {
        Err(RPCError::Unreachable(error)) => assert!(error.to_string().contains(why), "{error}"),
        other => panic!("expected an unreachable peer ({why}), got {other:?}"),
    }
}

#[test]
fn every_kind_of_request_reaches_the_group_and_its_answer_comes_back() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        let peers = peers();
        let mut network = network(&peers, GROUP, replica(2, 20), node.addr).await;
        let option = || RPCOption::new(TTL);
        assert_eq!(append_to(&mut network).await.unwrap(), AppendEntriesResponse::Success);
        assert_eq!(*node.host.group.seen.lock().unwrap(), vec![1]);
        let request = || VoteRequest::new(leader_vote(), None);
        let vote = network.vote(request(), option()).await.unwrap();
        assert_eq!((vote.vote, vote.last_log_id, vote.vote_granted), (leader_vote(), Some(log_id(42)), true));
        let vote = network.pre_vote(request(), option()).await.unwrap();
        assert_eq!((vote.last_log_id, vote.vote_granted), (Some(log_id(43)), false));
        let transfer = TransferLeaderRequest::new(leader_vote(), replica(2, 20), None);
        assert_eq!(network.transfer_leader(transfer, option()).await.unwrap(), Ok(()));

        // A conflict is an answer, except where nothing comes before.
        *node.host.group.conflict_at.lock().unwrap() = Some(1);
        assert_eq!(append_to(&mut network).await.unwrap(), AppendEntriesResponse::Conflict);
        let first = network.append_entries(append(None, 1..2), option()).await;
        assert!(matches!(first, Err(RPCError::Network(_))), "{first:?}");

        // Below the disk reserve entries are refused, and the group does not see them; heartbeats pass.
        node.host.full.store(true, Ordering::SeqCst);
        node.host.group.seen.lock().unwrap().clear();
        unreachable(append_to(&mut network).await, "disk");
        network.append_entries(append(Some(1), 0..0), option()).await.unwrap();
        assert_eq!(*node.host.group.seen.lock().unwrap(), vec![0]);

        let mut absent = self::network(&peers, ShardId(1000), replica(2, 20), node.addr).await;
        unreachable(absent.vote(request(), option()).await, "no replica of s1000");
        node.stop().await;
    });
}

#[test]
fn a_pipeline_keeps_its_order_and_ends_at_the_first_answer_that_is_no_success() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        node.host.group.uneven.store(true, Ordering::SeqCst);
        *node.host.group.conflict_at.lock().unwrap() = Some(41);
        let mut network = network(&peers(), GROUP, replica(2, 20), node.addr).await;
        // The input never ends by itself.
        let input = stream::iter((1..=60u64).map(|i| append(Some(i - 1), i..i + 1))).chain(stream::pending());
        let answers = network.stream_append(input.boxed(), RPCOption::new(HEARTBEAT)).await.unwrap();
        let answers: Vec<_> = tokio::time::timeout(Duration::from_secs(20), answers.collect()).await.unwrap();
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        let mut expected: Vec<_> = (1..=40).map(|i| Ok(Some(log_id(i)))).collect();
        expected.push(Err(StreamAppendError::Conflict(log_id(40))));
        assert_eq!(answers, expected);
        let seen = node.host.group.seen.lock().unwrap().clone();
        assert!(seen.len() >= 41 && seen.len() <= 45, "{seen:?}");
        assert!(seen.iter().copied().eq(1..=seen.len() as u64), "{seen:?}");
        assert!(node.host.group.most_running.load(Ordering::SeqCst) > 1, "appends are not pipelined");
        node.stop().await;
    });
}

#[test]
fn what_is_meant_for_another_life_or_cluster_or_comes_from_a_replaced_life_is_refused() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        let peers = peers();
        let refused = async |peers: &Peers, target, why| {
            let mut network = network(peers, GROUP, target, node.addr).await;
            unreachable(append_to(&mut network).await, why);
        };
        refused(&peers, replica(2, 19), "this is n2.14").await;
        refused(&peers, replica(3, 20), "the message is for n3.14").await;
        refused(&peers_in(cluster(2), replica(1, 10)), replica(2, 20), "belongs to cluster").await;
        node.host.replaced.lock().unwrap().insert(replica(1, 9));
        refused(&peers_in(cluster(1), replica(1, 9)), replica(2, 20), "replaced").await;
        assert!(node.host.group.seen.lock().unwrap().is_empty(), "a group saw what was refused");
        let mut network = network(&peers, GROUP, replica(2, 20), node.addr).await;
        append_to(&mut network).await.unwrap();
        node.stop().await;
    });
}

#[test]
fn a_peer_that_went_away_is_unreachable_and_comes_back_also_elsewhere() {
    test(async {
        let (me, peers) = (replica(2, 20), peers());
        let node = TestNode::start(me).await;
        let addr = node.addr;
        let mut network = network(&peers, GROUP, me, addr).await;
        append_to(&mut network).await.unwrap();
        node.stop().await;
        let start = Instant::now();
        loop {
            match append_to(&mut network).await {
                Err(RPCError::Unreachable(_)) => break,
                Err(RPCError::Network(_)) if start.elapsed() < Duration::from_secs(5) => {}
                other => panic!("{other:?}"),
            }
        }
        let node = TestNode::start_at(addr, me).await;
        eventually(&mut network).await;
        node.stop().await;
        // The membership still has the old address; the table knows the new one.
        let node = TestNode::start(me).await;
        peers.set_address(me, node.addr.to_string());
        eventually(&mut network).await;
        assert_eq!(node.host.group.seen.lock().unwrap().len(), 1);
        node.stop().await;
    });
}

#[test]
fn a_silent_stream_is_given_up_and_dialled_anew() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        // A wire that can be cut without either end noticing: what is connected now stays open and carries nothing.
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, target, cut) = (proxy.local_addr().unwrap(), node.addr, Arc::new(Notify::new()));
        let (cutter, (opened, mut connections)) = (cut.clone(), watch::channel(0));
        let (carries_nothing, mut is_cut) = watch::channel(false);
        crate::raft::spawn(async move {
            loop {
                let (mut near, _) = proxy.accept().await.unwrap();
                opened.send_modify(|count| *count += 1);
                let (cut, carries_nothing) = (cut.clone(), carries_nothing.clone());
                crate::raft::spawn(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.notified() => {
                            carries_nothing.send_replace(true);
                            std::future::pending().await
                        }
                    }
                });
            }
        });
        let mut network = network(&peers(), GROUP, replica(2, 20), addr).await;
        append_to(&mut network).await.unwrap();
        assert_eq!(*connections.borrow_and_update(), 1);
        cutter.notify_waiters();
        // Until the wire has run, it could still carry a request and its answer.
        is_cut.wait_for(|cut| *cut).await.unwrap();
        let start = Instant::now();
        let errors = eventually(&mut network).await;
        let took = start.elapsed();
        assert!(!errors.is_empty() && took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
        assert!(errors.iter().all(|error| !matches!(error, RPCError::Unreachable(_))), "{errors:?}");
        assert_eq!(*connections.borrow_and_update(), 2);
        // Not stopped: a server that waits for its connections would wait for the cut one.
        drop(node);
    });
}

#[test]
fn requests_that_coincide_share_messages() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        let peers = peers();
        let mut warm = network(&peers, GROUP, replica(2, 20), node.addr).await;
        append_to(&mut warm).await.unwrap();
        let before = peers.sent();
        let mut calls = FuturesUnordered::new();
        for group in 0..100 {
            // Half of them with an entry, half heartbeats.
            let mut network = network(&peers, ShardId(group), replica(2, 20), node.addr).await;
            let request = append(Some(0), if group % 2 == 0 { 1..2 } else { 0..0 });
            calls.push(async move { network.append_entries(request, RPCOption::new(TTL)).await });
        }
        while let Some(answer) = calls.next().await {
            assert_eq!(answer.unwrap(), AppendEntriesResponse::Success);
        }
        let (batches, items) = (peers.sent().0 - before.0, peers.sent().1 - before.1);
        assert_eq!(items, 100);
        assert!(batches <= 20, "100 requests went out in {batches} messages");
        node.stop().await;
    });
}

fn big_file(dir: &Path) -> (PathBuf, u64, [u8; 32]) {
    let path = dir.join("big");
    let bytes: Vec<u8> = (0..10_000_019u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes.len() as u64, *blake3::hash(&bytes).as_bytes())
}

#[test]
fn a_snapshot_arrives_whole_with_its_meta_and_its_sender() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        let dir = tempfile::tempdir().unwrap();
        let (path, len, hash) = big_file(dir.path());
        let nodes: BTreeMap<_, _> =
            [1, 2].map(|n| (replica(n, n * 10), BasicNode { addr: format!("host-{n}:1") })).into();
        let membership = Membership::new(vec![BTreeSet::from([replica(1, 10)])], nodes).unwrap();
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(99)),
            last_membership: StoredMembership::new(Some(log_id(3)), membership),
        };
        let snapshot = || openraft::Snapshot {
            meta: meta.clone(),
            snapshot: SnapshotFile { path: path.clone(), len, source: None, guard: None },
        };
        let mut network = network(&peers(), GROUP, replica(2, 20), node.addr).await;
        let never = std::future::pending::<ReplicationClosed>;
        let option = || RPCOption::new(Duration::from_secs(60));
        let answer = network.full_snapshot(leader_vote(), snapshot(), never(), option()).await.unwrap();
        assert_eq!(answer.vote, leader_vote());
        let (file, got, got_meta) = node.host.group.installed.lock().unwrap().take().unwrap();
        assert_eq!((got, file.len, &got_meta, file.source.as_deref()), (hash, len, &meta, Some("host-1:1")));
        // Whoever holds the file has it; the last to let go removes it.
        assert_eq!(node.incoming().len(), 1);
        drop(file);
        assert_eq!(node.incoming().len(), 0);

        let unreachable = |result: Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>, why: &str| {
            let error = result.unwrap_err();
            assert!(matches!(&error, StreamingError::Unreachable(_)) && error.to_string().contains(why), "{error}");
        };
        node.host.group.refuses_snapshots.store(true, Ordering::SeqCst);
        unreachable(network.full_snapshot(leader_vote(), snapshot(), never(), option()).await, "not this one");
        let mut other = self::network(&peers(), GROUP, replica(2, 21), node.addr).await;
        unreachable(other.full_snapshot(leader_vote(), snapshot(), never(), option()).await, "another life");
        // Shorter than announced: it does not arrive at all.
        let mut short = snapshot();
        short.snapshot.len += 1;
        unreachable(network.full_snapshot(leader_vote(), short, never(), option()).await, "cannot be read");
        let cancelled = async { ReplicationClosed::new("over") };
        let closed = network.full_snapshot(leader_vote(), snapshot(), cancelled, option()).await;
        assert!(matches!(closed, Err(StreamingError::Closed(_))), "{closed:?}");
        node.stop().await;
    });
}

#[test]
fn a_segment_is_pushed_durably_and_pulled_back_whole() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        let dir = tempfile::tempdir().unwrap();
        let (path, _, hash) = big_file(dir.path());
        let (peers, to, minute) = (peers(), node.addr.to_string(), Duration::from_secs(60));
        peers.push_segment(&to, GROUP, 4, hash, path.clone(), minute).await.unwrap();
        let kept = node.dir.path().join("kept-5-4");
        assert_eq!(blake3::hash(&std::fs::read(&kept).unwrap()).as_bytes(), &hash);
        let into = dir.path().join("pulled");
        std::fs::write(&into, b"left over from before").unwrap();
        peers.pull_segment(&to, GROUP, hash, into.clone(), minute).await.unwrap();
        assert_eq!(blake3::hash(&std::fs::read(&into).unwrap()).as_bytes(), &hash);

        let absent = peers.pull_segment(&to, GROUP, [1; 32], dir.path().join("absent"), minute).await;
        assert!(matches!(absent, Err(PeerError::Refused { code: tonic::Code::NotFound, .. })), "{absent:?}");
        assert!(!dir.path().join("absent").exists());
        // What the receiver does not want, it does not keep.
        let unwanted = peers.push_segment(&to, GROUP, 5, [1; 32], path, minute).await;
        assert!(
            matches!(&unwanted, Err(PeerError::Refused { reason, .. }) if reason == "another hash"),
            "{unwanted:?}"
        );
        assert!(node.incoming().is_empty());
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        let hash = *blake3::hash(b"").as_bytes();
        peers.push_segment(&to, GROUP, 6, hash, empty, minute).await.unwrap();
        peers.pull_segment(&to, GROUP, hash, into.clone(), minute).await.unwrap();
        assert!(std::fs::read(&into).unwrap().is_empty());
        node.stop().await;
    });
}

#[test]
fn read_index_and_hello_answer_and_a_missing_peer_is_unreachable() {
    test(async {
        let node = TestNode::start(replica(2, 20)).await;
        let (peers, to, second) = (peers(), node.addr.to_string(), Duration::from_secs(5));
        let positions = peers.read_index(&to, &[ShardId(2), ShardId(3), ShardId(4)], second).await.unwrap();
        let position = |shard| Position { shard: ShardId(shard), index: shard * 10 };
        assert_eq!(positions, vec![position(2), position(4)]);
        let stranger = peers_in(cluster(2), replica(1, 10)).read_index(&to, &[ShardId(2)], second).await;
        assert!(matches!(stranger, Err(PeerError::Refused { .. })), "{stranger:?}");

        let seeds = vec![wire::SeedNode { node: 1, address: "a:1".to_owned() }];
        let request = || wire::HelloRequest { format: WIRE_FORMAT, seeds: seeds.clone(), ..Default::default() };
        assert_eq!(peers.hello(&to, request(), second).await.unwrap().seeds, seeds);
        assert_eq!(crate::raft::peers::hello(&tcp(), &to, request(), second).await.unwrap().seeds, seeds);
        let newer = wire::HelloRequest { format: WIRE_FORMAT + 1, ..Default::default() };
        assert!(matches!(peers.hello(&to, newer, second).await, Err(PeerError::Refused { .. })));
        let addr = node.addr;
        node.stop().await;
        let gone = peers.hello(&to, request(), second).await;
        assert!(matches!(gone, Err(PeerError::Unreachable { .. })), "{gone:?}");
        let node = TestNode::start_at(addr, replica(2, 20)).await;
        peers.hello(&to, request(), second).await.unwrap();
        node.stop().await;
    });
}
