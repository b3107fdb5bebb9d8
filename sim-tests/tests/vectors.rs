//! Sparse and multi-vectors through a real cluster: three nodes and a router over localhost sockets, used through the SDK. Every
//! replica gives what the definitions give, to the bit where the order of additions is fixed, also after it was away.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use nearring_client::{Client, ErrorKind, wire};
use nearring_node::index::kernel::max_sim;
use nearring_node::node::{NodeBuilder, NodeError};
use nearring_node::settings::Settings;
use nearring_node::store::EngineKind;
use nearring_proto::ids::{NodeId, PointId};
use nearring_proto::vector::{Metric, MultiVector, SparseVector, Vector};
use nearring_router::plan::idf::inverse_frequency;
use nearring_router::router::RouterBuilder;
use nearring_router::settings::Settings as RouterSettings;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

const NODES: std::ops::RangeInclusive<u64> = 1..=3;
const COLLECTION: &str = "c";

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), NodeError>>,
}

struct Nodes {
    dir: tempfile::TempDir,
    addresses: BTreeMap<u64, SocketAddr>,
    running: BTreeMap<u64, Running>,
}

impl Nodes {
    async fn new() -> Self {
        let (mut addresses, mut held) = (BTreeMap::new(), Vec::new());
        for node in NODES {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.insert(node, listener.local_addr().unwrap());
            held.push(listener);
        }
        Self { dir: tempfile::tempdir().unwrap(), addresses, running: BTreeMap::new() }
    }

    async fn start(&mut self, node: u64) {
        let seeds = self.addresses.iter().map(|(node, address)| (NodeId(*node), address.to_string())).collect();
        let data = self.dir.path().join(node.to_string());
        let settings = Settings::new(NodeId(node), data, self.addresses[&node].to_string(), seeds);
        let listener = loop {
            match TcpListener::bind(self.addresses[&node]).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let (stop, stopped) = oneshot::channel();
        // Nothing of the store outlives the process: records and vectors come from snapshot and log.
        let builder = NodeBuilder::new(settings).engine(EngineKind::Memory).seed(node);
        let task = tokio::spawn(builder.serve(TcpListenerStream::new(listener), async move {
            let _ = stopped.await;
        }));
        self.running.insert(node, Running { stop, task });
    }

    async fn stop(&mut self, node: u64) {
        let Running { stop, task } = self.running.remove(&node).unwrap();
        let _ = stop.send(());
        task.await.unwrap().unwrap();
    }
}

async fn client(nodes: &Nodes) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let settings = RouterSettings::new(nodes.addresses.values().map(ToString::to_string).collect());
    let router = RouterBuilder::new(settings).seed(5).start().unwrap();
    tokio::spawn(router.serve(TcpListenerStream::new(listener), std::future::pending()));
    Client::builder(address).build().unwrap()
}

/// What was written.
#[derive(Clone)]
struct Point {
    group: u64,
    vectors: BTreeMap<String, Vector>,
}

fn random(rng: &mut SmallRng, group: u64) -> Point {
    let mut vectors = BTreeMap::new();
    if rng.random_bool(0.8) {
        let values = (0..4).map(|_| rng.random_range(-1.0..1.0)).collect();
        vectors.insert(String::new(), Vector::Dense(values));
    }
    if rng.random_bool(0.8) {
        // Low indices are common, high ones rare, and the order in which they are sent is any.
        let indices: BTreeSet<u32> = (0..5).map(|_| rng.random_range(0_u32..30).pow(2)).collect();
        let values = indices.iter().map(|_| rng.random_range(0.1..3.0)).collect();
        vectors.insert("words".to_owned(), SparseVector::new(indices.into_iter().collect(), values).unwrap().into());
    }
    if rng.random_bool(0.5) {
        let components = (0..3 * rng.random_range(1..5)).map(|_| rng.random_range(-1.0..1.0)).collect();
        vectors.insert("tokens".to_owned(), MultiVector::new(3, components).unwrap().into());
    }
    Point { group, vectors }
}

fn upsert(number: u64, point: &Point) -> wire::UpsertPoint {
    let point = wire::Point {
        id: Some(PointId::Number(number).into()),
        vectors: point.vectors.clone().into_iter().map(Into::into).collect(),
        payload_json: format!("{{\"group\":{}}}", point.group).into(),
    };
    wire::UpsertPoint { point: Some(point), precondition: None }
}

fn number(id: Option<wire::PointId>) -> u64 {
    match id.unwrap().id {
        Some(wire::point_id::Id::Number(number)) => number,
        other => panic!("{other:?}"),
    }
}

/// Hits as the definitions have them: every point, scored one by one.
fn expected(points: &BTreeMap<u64, Point>, name: &str, asked: &Vector, group: Option<u64>) -> Vec<(u64, u32)> {
    let sparse = || {
        points.values().filter_map(|point| match point.vectors.get(name) {
            Some(Vector::Sparse(vector)) => Some(vector),
            _ => None,
        })
    };
    let weighed = match asked {
        Vector::Sparse(asked) => asked.map_values(|_, index, value| {
            let with = sparse().filter(|vector| vector.indices().contains(&index)).count() as u64;
            (f64::from(value) * inverse_frequency(sparse().count() as u64, with)) as f32
        }),
        _ => SparseVector::default(),
    };
    let score = |point: &Point| match (asked, point.vectors.get(name)?) {
        (Vector::Sparse(_), Vector::Sparse(held)) => weighed.dot(held),
        (Vector::Multi(asked), Vector::Multi(held)) => Some(max_sim(Metric::L2, asked, held)),
        other => panic!("{other:?}"),
    };
    let matches = points.iter().filter(|(_, point)| group.is_none_or(|group| point.group == group));
    let mut hits: Vec<(u64, f32)> = matches.filter_map(|(number, point)| Some((*number, score(point)?))).collect();
    let nearer = |a: f32, b: f32| if name == "words" { b.total_cmp(&a) } else { a.total_cmp(&b) };
    hits.sort_by(|a, b| nearer(a.1, b.1).then(a.0.cmp(&b.0)));
    hits.into_iter().map(|(number, score)| (number, score.to_bits())).collect()
}

fn in_group(group: u64) -> wire::Filter {
    let value = Some(wire::Scalar { value: Some(wire::scalar::Value::Integer(group as i64)) });
    let equals = wire::filter::Equals { path: "group".to_owned(), value };
    wire::Filter { kind: Some(wire::filter::Kind::Equals(equals)) }
}

fn queries() -> [(&'static str, Vector); 3] {
    let common = SparseVector::new(vec![400, 1, 0, 841, 123_456], vec![1.0, 0.5, 2.0, 0.25, 9.0]).unwrap();
    let rare = SparseVector::new(vec![784], vec![1.0]).unwrap();
    let tokens = MultiVector::new(3, vec![0.5, -0.5, 0.1, 0.0, 0.9, -0.2]).unwrap();
    [("words", common.into()), ("words", rare.into()), ("tokens", tokens.into())]
}

/// Every replica answers every query as the definitions do.
async fn check(client: &Client, points: &BTreeMap<u64, Point>, what: &str) {
    for node in NODES {
        for (name, asked) in queries() {
            for group in [None, Some(2)] {
                let wanted = expected(points, name, &asked, group);
                assert!(!wanted.is_empty(), "{what}: nothing to find");
                let wire::NamedVector { name: vector_name, sparse, multi, .. } =
                    (name.to_owned(), asked.clone()).into();
                let limit = wanted.len() as u32 - 1;
                let query = wire::SearchQuery {
                    vector_name,
                    sparse,
                    multi,
                    limit: limit.max(1),
                    filter: group.map(in_group),
                    with_vectors: true,
                    with_payload: true,
                    ..Default::default()
                };
                let read = wire::ReadOptions { replica_node: node, full_coverage: true, ..Default::default() };
                let request = wire::SearchRequest {
                    collection: COLLECTION.to_owned(),
                    query: Some(query),
                    read: Some(read),
                    ..Default::default()
                };
                let reply = patient(async || client.search(request.clone()).await).await;
                let found: Vec<(u64, u32)> =
                    reply.hits.iter().map(|hit| (number(hit.id.clone()), hit.score.to_bits())).collect();
                assert_eq!(found, wanted[..limit.max(1) as usize], "{what}: {name} in {group:?} on node {node}");
                for hit in reply.hits {
                    let point = &points[&number(hit.id)];
                    let vectors: Vec<wire::NamedVector> = point.vectors.clone().into_iter().map(Into::into).collect();
                    // The dense one is stored at unit length.
                    let others = |vectors: Vec<wire::NamedVector>| -> Vec<wire::NamedVector> {
                        vectors.into_iter().filter(|vector| !vector.name.is_empty()).collect()
                    };
                    assert_eq!(others(hit.vectors), others(vectors));
                }
            }
        }
    }
    // A threshold keeps those that are as near or nearer.
    let (name, asked) = &queries()[0];
    let wanted = expected(points, name, asked, None);
    let least = f32::from_bits(wanted[wanted.len() / 2].1);
    let wire::NamedVector { name: vector_name, sparse, .. } = ((*name).to_owned(), asked.clone()).into();
    let query =
        wire::SearchQuery { vector_name, sparse, limit: 1_000, score_threshold: Some(least), ..Default::default() };
    let request = wire::SearchRequest { collection: COLLECTION.to_owned(), query: Some(query), ..Default::default() };
    let reply = client.search(request).await.unwrap();
    let kept = wanted.iter().filter(|(_, score)| f32::from_bits(*score) >= least).count();
    assert_eq!(reply.hits.len(), kept, "{what}");

    let scroll = wire::ScrollRequest {
        collection: COLLECTION.to_owned(),
        limit: 1_000,
        with_vectors: true,
        ..Default::default()
    };
    let page = client.scroll(scroll).await.unwrap().points;
    let held: BTreeMap<u64, Vec<String>> = page
        .into_iter()
        .map(|point| (number(point.id), point.vectors.into_iter().map(|vector| vector.name).collect()))
        .collect();
    let wanted: BTreeMap<u64, Vec<String>> =
        points.iter().map(|(number, point)| (*number, point.vectors.keys().cloned().collect())).collect();
    assert_eq!(held, wanted, "{what}");

    let verified = patient(async || {
        let verified = client.verify_replicas(COLLECTION).await.map_err(|error| error.to_string())?;
        let whole = verified.equal && verified.uncompared.is_empty();
        if whole { Ok(verified) } else { Err(format!("{verified:?}")) }
    });
    assert_eq!(verified.await.digests.len(), 9, "{what}: three replicas of three shards");
}

/// Repeats until it is answered, for half a minute.
async fn patient<T, E: std::fmt::Debug>(ask: impl AsyncFn() -> Result<T, E>) -> T {
    let mut last = None;
    for _ in 0..300 {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{last:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_answers_by_the_definitions_whatever_it_went_through() {
    let mut nodes = Nodes::new().await;
    for node in NODES {
        nodes.start(node).await;
    }
    let client = client(&nodes).await;
    let spec = wire::CollectionSpec {
        name: COLLECTION.to_owned(),
        vectors: [(
            String::new(),
            wire::VectorSpec { dimension: 4, metric: wire::Metric::Cosine.into(), ..Default::default() },
        )]
        .into(),
        sparse_vectors: [("words".to_owned(), wire::SparseSpec { modifier: wire::Modifier::Idf.into() })].into(),
        multi_vectors: [("tokens".to_owned(), wire::MultiSpec { dimension: 3, metric: wire::Metric::L2.into() })]
            .into(),
        payload_indexes: [("group".to_owned(), wire::FieldKind::Integer as i32)].into(),
        shard_count: 3,
        replication_factor: 3,
        ..Default::default()
    };
    let info = patient(async || match client.create_collection(spec.clone()).await {
        Err(error) if error.kind == ErrorKind::AlreadyExists => client.describe_collection(COLLECTION).await,
        other => other,
    });
    let described = info.await.spec.unwrap();
    assert_eq!((&described.sparse_vectors, &described.multi_vectors), (&spec.sparse_vectors, &spec.multi_vectors));

    let rng = &mut SmallRng::seed_from_u64(11);
    let mut points: BTreeMap<u64, Point> = (0..200).map(|number| (number, random(rng, number % 5))).collect();
    let batch = points.iter().map(|(number, point)| upsert(*number, point)).collect();
    let written = client.upsert(COLLECTION, batch).await.unwrap();
    assert_eq!((written.applied, written.errors), (200, vec![]));
    check(&client, &points, "written").await;

    // Overwritten, deleted, and payloads changed: vectors come, go and stay.
    for number in (0..200).step_by(3) {
        points.insert(number, random(rng, number % 5));
    }
    let batch = points.iter().filter(|(number, _)| number.is_multiple_of(3)).map(|(n, point)| upsert(*n, point));
    client.upsert(COLLECTION, batch.collect()).await.unwrap();
    let gone: Vec<u64> = (0..200).step_by(7).collect();
    client.delete(COLLECTION, gone.iter().map(|number| PointId::Number(*number).into()).collect()).await.unwrap();
    points.retain(|number, _| !gone.contains(number));
    let moved: Vec<u64> = points.keys().copied().step_by(4).collect();
    for number in &moved {
        points.get_mut(number).unwrap().group = 2;
    }
    let change = nearring_client::write::PayloadChange {
        ids: moved.iter().map(|number| PointId::Number(*number).into()).collect(),
        payload_json: br#"{"group":2}"#.to_vec(),
        ..Default::default()
    };
    client.set_payload(COLLECTION, change).await.unwrap();
    check(&client, &points, "changed").await;

    // One is away while others write, and comes back.
    nodes.stop(2).await;
    for number in 200..260 {
        points.insert(number, random(rng, number % 5));
    }
    let batch: Vec<_> = points.range(200..).map(|(number, point)| upsert(*number, point)).collect();
    let written = patient(async || {
        let written = client.upsert(COLLECTION, batch.clone()).await.map_err(|error| error.to_string())?;
        let failed = written.errors.first().map(|error| error.message.clone());
        failed.map_or(Ok(written), Err)
    });
    assert_eq!(written.await.applied, 60);
    nodes.start(2).await;
    check(&client, &points, "one was away").await;

    // All stop and start: what is in memory comes back from the log.
    for node in NODES {
        nodes.stop(node).await;
    }
    for node in NODES {
        nodes.start(node).await;
    }
    check(&client, &points, "all were away").await;
    for node in NODES {
        nodes.stop(node).await;
    }
}
