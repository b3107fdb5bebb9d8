//! Small data directories, written once and kept: every later version must open them, start from them and answer the same.
//!
//! `tests/data/v1` is a node alone in its cluster: two points deleted of 300, a segment, a tail, a log
//! beyond the store, a session. `v2` is the same, and every point has a sparse and a multi-vector beside. Written by the ignored
//! test below, on purpose only, where a format gets a new version (then as `v3`).
//! Time is the directory's own: sessions end an hour of logged time after their last request, however long the directory was kept.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nearring_node::clock::Clock;
use nearring_node::node::{NodeBuilder, NodeError, dial_tcp};
use nearring_node::settings::Settings;
use nearring_node::store::EngineKind;
use nearring_proto::ids::NodeId;
use nearring_proto::wire::node_data_client::NodeDataClient;
use nearring_proto::{WIRE_FORMAT, wire};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::transport::Channel;

const POINTS: u64 = 300;
const SESSION: [u8; 16] = [7; 16];
/// Shortly after each was written: milliseconds since 1970.
const WRITTEN_MS: [u64; 2] = [1_795_434_300_000, 1_795_589_241_000];
const HOUR_MS: u64 = 3_600_000;

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), NodeError>>,
    client: NodeDataClient<Channel>,
}

impl Running {
    /// The node on `data`; its clock starts at `from_ms`.
    async fn start(data: &Path, from_ms: u64) -> Self {
        let started = Instant::now();
        let clock = Clock::with(Arc::new(move || from_ms + started.elapsed().as_millis() as u64));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // The seed's address is another each time: only the node itself is ever called there.
        let settings = Settings::new(NodeId(1), data, &address, vec![(NodeId(1), address.clone())]);
        let (stop, stopped) = oneshot::channel();
        let builder = NodeBuilder::new(settings).engine(EngineKind::Sled).clock(clock).seed(1);
        let task = tokio::spawn(builder.serve(TcpListenerStream::new(listener), async move {
            let _ = stopped.await;
        }));
        Self { stop, task, client: NodeDataClient::new(dial_tcp()(&address)) }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap().unwrap();
    }

    /// The one shard, once it takes requests.
    async fn shard(&mut self) -> u64 {
        for _ in 0..300 {
            let request = wire::WatchTableRequest { format: WIRE_FORMAT, known_epoch: 0 };
            if let Ok(tables) = self.client.watch_table(request).await
                && let Ok(Some(table)) = tables.into_inner().message().await
                && let Some(shard) = table.shards.iter().find(|shard| shard.state() == wire::ShardState::Active)
            {
                return shard.shard;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no shard serves")
    }

    async fn write(&mut self, shard: u64, seq: u64, op: wire::node_write_request::Op) -> wire::NodeWriteReply {
        self.try_write(shard, seq, op).await.unwrap()
    }

    async fn try_write(
        &mut self,
        shard: u64,
        seq: u64,
        op: wire::node_write_request::Op,
    ) -> Result<wire::NodeWriteReply, Status> {
        let request = (seq > 0).then(|| wire::RequestId { session: SESSION.to_vec().into(), seq, settled_below: 1 });
        let request =
            wire::NodeWriteRequest { shard, request, op: Some(op), deadline_ms: 10_000, ..Default::default() };
        Ok(self.client.write(request).await?.into_inner())
    }

    async fn status(&mut self) -> wire::ReplicaStatus {
        let status = self.client.status(wire::NodeStatusRequest::default()).await.unwrap().into_inner();
        status.replicas.into_iter().find(|replica| replica.shard != 0).unwrap()
    }
}

fn id(number: u64) -> wire::PointId {
    wire::PointId { id: Some(wire::point_id::Id::Number(number)) }
}

/// Row `number`, at unit length.
fn vector(number: u64) -> Vec<f32> {
    let raw: Vec<f64> = (1..=8_u32).map(|at| (number as f64 * 0.37 + f64::from(at)).sin()).collect();
    let length = raw.iter().map(|value| value * value).sum::<f64>().sqrt();
    raw.iter().map(|value| (value / length) as f32).collect()
}

/// What a point has in a version of the data, by name.
fn vectors(version: usize, number: u64) -> Vec<wire::NamedVector> {
    let mut vectors = vec![wire::NamedVector { values: vector(number), ..Default::default() }];
    if version > 1 {
        let tokens = wire::MultiVector { dimension: 2, values: vec![number as f32, 1.0, -1.0, 0.5] };
        vectors.push(wire::NamedVector { name: "tokens".to_owned(), multi: Some(tokens), ..Default::default() });
        let words = wire::SparseVector { indices: vec![0, 1 + number as u32], values: vec![0.5, 2.0] };
        vectors.push(wire::NamedVector { name: "words".to_owned(), sparse: Some(words), ..Default::default() });
    }
    vectors
}

fn upserts(version: usize, numbers: impl Iterator<Item = u64>) -> wire::node_write_request::Op {
    let point = |number| wire::Point {
        id: Some(id(number)),
        vectors: vectors(version, number),
        payload_json: format!("{{\"n\":{number}}}").into_bytes().into(),
    };
    let points = numbers.map(point).collect();
    wire::node_write_request::Op::Upserts(wire::node_write_request::Upserts { points, preconditions: Vec::new() })
}

/// Every point is there, and found; returns the shard.
async fn check(running: &mut Running, version: usize) -> u64 {
    let shard = running.shard().await;
    // Retried: a group of one still has to elect itself.
    let mut got = None;
    for _ in 0..100 {
        let ids = (0..POINTS).map(id).collect();
        let get = wire::NodeGetRequest { shard, ids, with_payload: true, with_vectors: true, ..Default::default() };
        match running.client.get(get).await {
            Ok(reply) => {
                got = Some(reply.into_inner());
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    let got = got.expect("the shard answers");
    assert_eq!(got.points.len() as u64, POINTS - 2);
    for point in &got.points {
        let Some(wire::point_id::Id::Number(number)) = point.id.as_ref().unwrap().id else { panic!("not a number") };
        assert!(number != 11 && number != 280, "deleted points stay deleted");
        assert_eq!(point.payload_json, format!("{{\"n\":{number}}}"));
        assert_eq!(point.vectors, vectors(version, number));
    }
    let by = |number| {
        let query = |vector: wire::NamedVector| wire::SearchQuery {
            vector_name: vector.name,
            vector: vector.values,
            sparse: vector.sparse,
            multi: vector.multi,
            limit: 3,
            ..Default::default()
        };
        // Of the multi-vectors, compared by L2, the point's own is at no distance.
        vectors(version, number).into_iter().map(query).map(move |query| (number, query))
    };
    for (number, query) in [5, 290].into_iter().flat_map(by) {
        let search = wire::NodeSearchRequest { shards: vec![shard], queries: vec![query], ..Default::default() };
        let reply = running.client.search(search).await.unwrap().into_inner();
        assert_eq!(reply.answers[0].error_code, "");
        assert_eq!(reply.answers[0].lists[0].hits[0].id, Some(id(number)));
    }
    shard
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            drop(fs::copy(entry.path(), target))
        }
    }
}

fn kept(version: usize) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/v{version}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_earlier_versions_wrote_still_opens() {
    for (version, written_ms) in (1..).zip(WRITTEN_MS) {
        let dir = tempfile::tempdir().unwrap();
        copy(&kept(version), dir.path());
        let mut running = Running::start(dir.path(), written_ms).await;
        let shard = check(&mut running, version).await;
        // The session is known, and its request is not carried out twice.
        assert!(running.write(shard, 1, upserts(version, 0..2)).await.repeated_request);
        running.stop().await;
        // And what this version wrote on top of it opens too, long after.
        let mut running = Running::start(dir.path(), written_ms + 2 * HOUR_MS).await;
        let shard = check(&mut running, version).await;
        let expired = running.try_write(shard, 1, upserts(version, 0..2)).await.unwrap_err();
        assert_eq!(expired.metadata().get("nearring-reason").unwrap(), "session_expired");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes tests/data; only where a format gets a new version"]
async fn write_the_data_directory() {
    let version = WRITTEN_MS.len();
    let dir = tempfile::tempdir().unwrap();
    // With the written directory goes the constant at the top of this file.
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    println!("WRITTEN_MS: {now_ms}");
    let mut running = Running::start(dir.path(), now_ms).await;
    for _ in 0..100 {
        let vector = wire::VectorSpec { dimension: 8, metric: wire::Metric::Cosine.into(), ..Default::default() };
        let spec = wire::CollectionSpec {
            name: "kept".to_owned(),
            vectors: [(String::new(), vector)].into(),
            sparse_vectors: [("words".to_owned(), wire::SparseSpec { modifier: wire::Modifier::Idf.into() })].into(),
            multi_vectors: [("tokens".to_owned(), wire::MultiSpec { dimension: 2, metric: wire::Metric::L2.into() })]
                .into(),
            shard_count: 1,
            index: Some(wire::IndexSpec { seal_points: 256, ..Default::default() }),
            ..Default::default()
        };
        let change = Some(wire::propose_meta_request::Change::CreateCollection(spec));
        let create = wire::ProposeMetaRequest { change, deadline_ms: 2000, ..Default::default() };
        if running.client.propose_meta(create).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shard = running.shard().await;
    let open = wire::node_write_request::OpenShardSession { session: SESSION.to_vec().into(), opened_at_ms: now_ms };
    running.write(shard, 0, wire::node_write_request::Op::OpenSession(open)).await;
    running.write(shard, 1, upserts(version, 0..2)).await;
    running.write(shard, 0, upserts(version, 2..270)).await;
    while running.status().await.segments.is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // A clean stop and start does not snapshot; the log alone holds the rest.
    running.write(shard, 0, upserts(version, 270..POINTS)).await;
    let ids = vec![id(11), id(280)];
    let deletes = wire::node_write_request::Deletes { ids, precondition: None };
    running.write(shard, 0, wire::node_write_request::Op::Deletes(deletes)).await;
    running.stop().await;
    let _ = fs::remove_dir_all(kept(version));
    copy(dir.path(), &kept(version));
}
