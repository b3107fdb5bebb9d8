//! The router against nodes that follow a script: dead, silent, behind, not leading, failing in part. The nodes keep
//! points in memory and score them exactly, so that what comes out can be compared with what went in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use nearring_proto::ids::{ClusterId, Incarnation, NodeId, PointId, ShardId};
use nearring_proto::placement::table::{Change, Node, Table};
use nearring_proto::vector::SparseVector;
use nearring_proto::wire::nearring_client::NearringClient;
use nearring_proto::wire::node_data_server::{NodeData, NodeDataServer};
use nearring_proto::wire::{self, node_write_request::Op};
use nearring_router::plan::idf::inverse_frequency;
use nearring_router::router::RouterBuilder;
use nearring_router::settings::Settings;
use nearring_router::snapshot::SnapshotSettings;
use nearring_router::snapshot::archive::Reader;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// What all nodes share: they are perfect replicas of each other, and lie only where told to.
struct World {
    table: watch::Sender<Table>,
    points: Mutex<BTreeMap<u64, BTreeMap<PointId, wire::Point>>>,
    leader: Mutex<u64>,
    /// Search errors, by node and shard; node 0 is every node.
    search_errors: Mutex<BTreeMap<(u64, u64), &'static str>>,
    /// Shards of which nobody tells how often indices occur.
    uncounted: Mutex<BTreeSet<u64>>,
    /// Nodes that never answer a search.
    silent: Mutex<BTreeSet<u64>>,
    /// How the next writes to a shard end; afterwards they succeed.
    write_errors: Mutex<BTreeMap<u64, VecDeque<Status>>>,
    /// Nodes that get no write of the router, though the others reach them.
    cut: Mutex<BTreeSet<u64>>,
    /// Writes that reached a leader.
    writes: Mutex<Vec<wire::NodeWriteRequest>>,
    /// Reads asked for, with the node.
    reads: Mutex<Vec<(u64, wire::NodeRead)>>,
    /// Shards whose replica on this node has gone astray.
    astray: Mutex<BTreeSet<(u64, u64)>>,
    /// After how many points exports break off, by node and shard.
    export_breaks: Mutex<BTreeMap<(u64, u64), usize>>,
}

#[derive(Clone)]
struct Fake {
    node: u64,
    world: Arc<World>,
}

fn refusal(code: Code, reason: &'static str) -> Status {
    let mut status = Status::new(code, "scripted");
    status.metadata_mut().insert("nearring-reason", reason.parse().unwrap());
    status
}

impl World {
    fn shard(&self, shard: u64) -> BTreeMap<PointId, wire::Point> {
        self.points.lock().unwrap().get(&shard).cloned().unwrap_or_default()
    }

    fn index(&self) -> u64 {
        100 + self.writes.lock().unwrap().len() as u64
    }

    fn position(&self, shard: u64) -> Option<wire::Position> {
        Some(wire::Position { shard, index: self.index() })
    }
}

fn id_of(point: &wire::Point) -> PointId {
    point.id.clone().unwrap().try_into().unwrap()
}

fn record(point: &wire::Point) -> wire::PointRecord {
    wire::PointRecord {
        id: point.id.clone(),
        version: Some(wire::Version { epoch: 1, index: 1 }),
        payload_json: point.payload_json.clone(),
        vectors: point.vectors.clone(),
    }
}

#[tonic::async_trait]
impl NodeData for Fake {
    async fn write(&self, request: Request<wire::NodeWriteRequest>) -> Result<Response<wire::NodeWriteReply>, Status> {
        let request = request.into_inner();
        if self.world.cut.lock().unwrap().contains(&self.node) {
            std::future::pending::<()>().await;
        }
        let leader = *self.world.leader.lock().unwrap();
        if leader != self.node && !request.pass_on {
            let mut status = refusal(Code::FailedPrecondition, "not_leader");
            status.metadata_mut().insert("nearring-leader-node", leader.into());
            return Err(status);
        }
        self.world.writes.lock().unwrap().push(request.clone());
        let scripted = self.world.write_errors.lock().unwrap().get_mut(&request.shard).and_then(VecDeque::pop_front);
        if let Some(status) = scripted {
            return Err(status);
        }
        let mut reply = wire::NodeWriteReply {
            position: self.world.position(request.shard),
            version: Some(wire::Version { epoch: 1, index: 7 }),
            ..Default::default()
        };
        let mut shards = self.world.points.lock().unwrap();
        let shard = shards.entry(request.shard).or_default();
        match request.op.unwrap() {
            Op::Upserts(upserts) => {
                for (at, point) in upserts.points.into_iter().enumerate() {
                    let insert_only = upserts.preconditions.get(at).is_some_and(|p| p.kind.is_some());
                    if insert_only && shard.contains_key(&id_of(&point)) {
                        reply.outcomes.push(wire::PointOutcome {
                            position: at as u32,
                            kind: wire::point_outcome::Kind::AlreadyExists.into(),
                            current: Some(wire::Version { epoch: 1, index: 1 }),
                        });
                    } else {
                        reply.applied += 1;
                        shard.insert(id_of(&point), point);
                    }
                }
            }
            Op::Deletes(deletes) => {
                for id in deletes.ids {
                    reply.removed += u64::from(shard.remove(&id.try_into().unwrap()).is_some());
                }
            }
            Op::DeleteByFilter(_) => reply.removed = std::mem::take(shard).len() as u64,
            Op::ReplaceGroup(group) => {
                let prefix = format!("{}{}", group.routing_key, group.separator);
                let of_group = |id: &PointId| matches!(id, PointId::Text(text) if text.starts_with(&prefix));
                let new: BTreeMap<PointId, wire::Point> =
                    group.points.into_iter().map(|point| (id_of(&point), point)).collect();
                reply.removed = shard.keys().filter(|id| of_group(id) && !new.contains_key(*id)).count() as u64;
                shard.retain(|id, _| !of_group(id));
                reply.applied = new.len() as u64;
                shard.extend(new);
            }
            Op::OpenSession(_) => reply.session_ttl_ms = 60_000 + request.shard,
            Op::SetPayload(set) => {
                for id in set.ids {
                    if let Some(point) = shard.get_mut(&PointId::try_from(id).unwrap()) {
                        point.payload_json = set.payload_json.clone();
                        reply.applied += 1;
                    }
                }
            }
        }
        Ok(Response::new(reply))
    }

    async fn get(&self, request: Request<wire::NodeGetRequest>) -> Result<Response<wire::NodeGetReply>, Status> {
        let request = request.into_inner();
        self.world.reads.lock().unwrap().push((self.node, request.read.clone().unwrap()));
        let shard = self.world.shard(request.shard);
        let ids = request.ids.into_iter().map(|id| PointId::try_from(id).unwrap());
        let points = ids.filter_map(|id| shard.get(&id).map(record)).collect();
        Ok(Response::new(wire::NodeGetReply { points, position: self.world.position(request.shard) }))
    }

    async fn scroll(
        &self,
        request: Request<wire::NodeScrollRequest>,
    ) -> Result<Response<wire::NodeScrollReply>, Status> {
        let request = request.into_inner();
        let after = request.after.map(|id| PointId::try_from(id).unwrap());
        let shard = self.world.shard(request.shard);
        let all: Vec<_> = shard
            .iter()
            .filter(|(id, _)| after.as_ref().is_none_or(|after| *id > after))
            .map(|(_, p)| record(p))
            .collect();
        let more = all.len() > request.limit as usize;
        let points = all.into_iter().take(request.limit as usize).collect();
        let position = self.world.position(request.shard);
        Ok(Response::new(wire::NodeScrollReply { points, position, more, order_values: Vec::new() }))
    }

    async fn count(&self, request: Request<wire::NodeCountRequest>) -> Result<Response<wire::NodeCountReply>, Status> {
        let shard = request.into_inner().shard;
        let count = self.world.shard(shard).len() as u64;
        Ok(Response::new(wire::NodeCountReply { count, position: self.world.position(shard) }))
    }

    async fn facet(&self, _: Request<wire::NodeFacetRequest>) -> Result<Response<wire::NodeFacetReply>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn search(
        &self,
        request: Request<wire::NodeSearchRequest>,
    ) -> Result<Response<wire::NodeSearchReply>, Status> {
        if self.world.silent.lock().unwrap().contains(&self.node) {
            std::future::pending::<()>().await;
        }
        let request = request.into_inner();
        self.world.reads.lock().unwrap().push((self.node, request.read.clone().unwrap()));
        let answer = |shard: u64| {
            let errors = self.world.search_errors.lock().unwrap();
            let error = errors.get(&(self.node, shard)).or_else(|| errors.get(&(0, shard)));
            if let Some(code) = error {
                let error_code = (*code).to_owned();
                return wire::node_search_reply::ShardAnswer { shard, error_code, ..Default::default() };
            }
            let points = self.world.shard(shard);
            let list = |query: &wire::SearchQuery| {
                let mut hits: Vec<wire::Hit> = points.values().filter_map(|point| hit(point, query)).collect();
                hits.sort_by(|a, b| b.score.total_cmp(&a.score));
                hits.truncate(query.limit as usize);
                wire::node_search_reply::HitList { hits }
            };
            let lists = request.queries.iter().map(list).collect();
            wire::node_search_reply::ShardAnswer {
                shard,
                position: self.world.position(shard),
                lists,
                ..Default::default()
            }
        };
        let answers = request.shards.iter().map(|shard| answer(*shard)).collect();
        Ok(Response::new(wire::NodeSearchReply { answers }))
    }

    async fn propose_meta(
        &self,
        request: Request<wire::ProposeMetaRequest>,
    ) -> Result<Response<wire::ProposeMetaReply>, Status> {
        let change = Change::try_from(request.into_inner().change.unwrap()).unwrap();
        let mut applied = None;
        self.world.table.send_modify(|table| applied = Some(table.apply(&change)));
        let applied = applied.unwrap().map_err(|rejected| Status::already_exists(rejected.to_string()))?;
        if let Some(collection) = &applied.collection {
            let (world, shards) = (self.world.clone(), collection.shards.clone());
            tokio::spawn(async move {
                for shard in shards {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    world.table.send_modify(|table| drop(table.apply(&Change::ShardReady(shard)).unwrap()));
                }
            });
        }
        let collection = applied.collection.map(Into::into);
        Ok(Response::new(wire::ProposeMetaReply { epoch: applied.epoch.0, collection, existed: applied.existed }))
    }

    type WatchTableStream = BoxStream<'static, Result<wire::ClusterTable, Status>>;

    async fn watch_table(
        &self,
        _: Request<wire::WatchTableRequest>,
    ) -> Result<Response<Self::WatchTableStream>, Status> {
        let tables = tokio_stream::wrappers::WatchStream::new(self.world.table.subscribe());
        Ok(Response::new(tables.map(|table| Ok(table.into())).boxed()))
    }

    async fn status(&self, _: Request<wire::NodeStatusRequest>) -> Result<Response<wire::NodeStatus>, Status> {
        Ok(Response::new(wire::NodeStatus { node: self.node, log_bytes: 77, ..Default::default() }))
    }

    async fn digest(&self, request: Request<wire::DigestRequest>) -> Result<Response<wire::ReplicaDigest>, Status> {
        let shard = request.into_inner().shard;
        let astray = self.world.astray.lock().unwrap().contains(&(self.node, shard));
        let digest = if astray { b"x" } else { b"y" };
        let index = self.world.index();
        let digest = bytes::Bytes::from_static(digest);
        Ok(Response::new(wire::ReplicaDigest { shard, node: self.node, index, digest, ..Default::default() }))
    }

    async fn frequencies(
        &self,
        request: Request<wire::NodeFrequenciesRequest>,
    ) -> Result<Response<wire::NodeFrequenciesReply>, Status> {
        let request = request.into_inner();
        if self.world.uncounted.lock().unwrap().contains(&request.shard) {
            return Err(refusal(Code::Unavailable, "behind"));
        }
        let shard = self.world.shard(request.shard);
        let of = |terms: &wire::node_frequencies_request::Terms| {
            let vectors = shard.values().flat_map(|point| &point.vectors);
            let vectors = vectors.filter(|vector| vector.name == terms.vector_name).filter_map(|v| v.sparse.as_ref());
            let vectors: Vec<&wire::SparseVector> = vectors.collect();
            let with = |index| vectors.iter().filter(|vector| vector.indices.contains(index)).count() as u64;
            let with = terms.indices.iter().map(with).collect();
            wire::node_frequencies_reply::Frequencies { vectors: vectors.len() as u64, with }
        };
        let frequencies = request.terms.iter().map(of).collect();
        Ok(Response::new(wire::NodeFrequenciesReply { frequencies, position: self.world.position(request.shard) }))
    }

    type ExportStream = BoxStream<'static, Result<wire::NodeExportReply, Status>>;

    /// Each node's replica is at a position of its own.
    async fn export(&self, request: Request<wire::NodeExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let shard = request.into_inner().shard;
        let points: Vec<wire::PointRecord> = self.world.shard(shard).values().map(record).collect();
        let position = Some(wire::Position { shard, index: 1000 + self.node });
        let mut messages =
            vec![Ok(wire::NodeExportReply { position, count: points.len() as u64, ..Default::default() })];
        let breaks = self.world.export_breaks.lock().unwrap().get(&(self.node, shard)).copied();
        let one =
            |point: &wire::PointRecord| wire::NodeExportReply { points: vec![point.clone()], ..Default::default() };
        messages.extend(points.iter().take(breaks.unwrap_or(usize::MAX)).map(|point| Ok(one(point))));
        match breaks {
            // One that dies: its connection breaks; one that stops: its stream ends.
            Some(points) if points % 2 == 0 => messages.push(Err(Status::unavailable("scripted"))),
            Some(_) => {}
            None => messages.push(Ok(wire::NodeExportReply { last: true, ..Default::default() })),
        }
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }
}

fn hit(point: &wire::Point, query: &wire::SearchQuery) -> Option<wire::Hit> {
    let vector = point.vectors.iter().find(|vector| vector.name == query.vector_name)?;
    let score = match (&vector.sparse, &query.sparse) {
        (Some(held), Some(asked)) => sparse(held).dot(&sparse(asked))?,
        _ => vector.values.iter().zip(&query.vector).map(|(a, b)| a * b).sum(),
    };
    Some(wire::Hit {
        id: point.id.clone(),
        score,
        version: Some(wire::Version { epoch: 1, index: 1 }),
        payload_json: point.payload_json.clone(),
        vectors: vec![],
    })
}

fn sparse(vector: &wire::SparseVector) -> SparseVector {
    SparseVector::new(vector.indices.clone(), vector.values.clone()).unwrap()
}

struct Cluster {
    world: Arc<World>,
    client: NearringClient<Channel>,
}

/// Three nodes and a router that starts from all of them; a dead node's port refuses connections.
async fn cluster(dead: &[u64], change: impl FnOnce(&mut Settings)) -> Cluster {
    let mut listeners = Vec::new();
    let mut table = Table::new(ClusterId(uuid::Uuid::from_u128(77)));
    for node in 1..=3 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let zone = String::new();
        table.apply(&Change::Join(Node { id: NodeId(node), incarnation: Incarnation(node), address, zone })).unwrap();
        listeners.push((node, listener));
    }
    let mut settings = Settings::new(table.nodes.values().map(|node| node.address.clone()).collect());
    change(&mut settings);
    let world = Arc::new(World {
        table: watch::Sender::new(table),
        points: Mutex::default(),
        leader: Mutex::new(2),
        search_errors: Mutex::default(),
        uncounted: Mutex::default(),
        silent: Mutex::default(),
        cut: Mutex::default(),
        write_errors: Mutex::default(),
        writes: Mutex::default(),
        reads: Mutex::default(),
        astray: Mutex::default(),
        export_breaks: Mutex::default(),
    });
    for (node, listener) in listeners {
        if !dead.contains(&node) {
            let service = NodeDataServer::new(Fake { node, world: world.clone() });
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = RouterBuilder::new(settings).seed(5).start().unwrap();
    tokio::spawn(router.serve(TcpListenerStream::new(listener), std::future::pending()));
    let client = NearringClient::connect(format!("http://{address}")).await.unwrap();
    Cluster { world, client }
}

fn id(number: u64) -> Option<wire::PointId> {
    Some(PointId::Number(number).into())
}

fn point(number: u64) -> wire::UpsertPoint {
    let angle = number as f32 / 20.0;
    let values = vec![angle.cos() * 2.0, angle.sin() * 2.0];
    let vectors = vec![wire::NamedVector { values, ..Default::default() }, words(number)];
    let point = wire::Point { id: id(number), vectors, payload_json: bytes::Bytes::from_static(b"{\"a\":1}") };
    wire::UpsertPoint { point: Some(point), precondition: None }
}

/// Every point has index 0, every other one index 1, and so on.
fn words(number: u64) -> wire::NamedVector {
    let indices: Vec<u32> = (0..4).filter(|index| number.is_multiple_of(1 << index)).collect();
    let values = indices.iter().map(|index| 1.0 + (number % 5) as f32 + *index as f32).collect();
    let sparse = Some(wire::SparseVector { indices, values });
    wire::NamedVector { name: "words".into(), sparse, ..Default::default() }
}

fn upsert(numbers: impl IntoIterator<Item = u64>) -> wire::UpsertRequest {
    let points = numbers.into_iter().map(point).collect();
    wire::UpsertRequest { collection: "c".into(), points, ..Default::default() }
}

fn query(limit: u32) -> wire::SearchRequest {
    let query = wire::SearchQuery { vector: vec![5.0, 0.0], limit, ..Default::default() };
    wire::SearchRequest { collection: "c".into(), query: Some(query), ..Default::default() }
}

fn numbers(ids: impl IntoIterator<Item = Option<wire::PointId>>) -> Vec<u64> {
    let number = |id: Option<wire::PointId>| match id.unwrap().id {
        Some(wire::point_id::Id::Number(number)) => number,
        other => panic!("{other:?}"),
    };
    ids.into_iter().map(number).collect()
}

impl Cluster {
    /// Creates `c`: three shards on all three nodes.
    async fn create(&mut self) -> Vec<u64> {
        let vector = wire::VectorSpec { dimension: 2, metric: wire::Metric::Cosine.into(), scalar: 0 };
        let spec = wire::CollectionSpec {
            name: "c".into(),
            vectors: BTreeMap::from([(String::new(), vector)]),
            sparse_vectors: BTreeMap::from([(
                "words".into(),
                wire::SparseSpec { modifier: wire::Modifier::Idf.into() },
            )]),
            shard_count: 3,
            ..Default::default()
        };
        let request = wire::CreateCollectionRequest { format: 1, spec: Some(spec) };
        let info = self.client.create_collection(request).await.unwrap().into_inner();
        let table = self.world.table.borrow().clone();
        assert!(info.shards.iter().all(|shard| {
            table.shards[&ShardId(*shard)].state == nearring_proto::placement::table::ShardState::Active
        }));
        info.shards
    }

    /// Shards by how many of the points 0..30 live there, with those points.
    fn homes(&self) -> BTreeMap<u64, Vec<u64>> {
        let table = self.world.table.borrow().clone();
        let collection = table.collection("c").unwrap().clone();
        let mut homes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for number in 0..30 {
            homes.entry(table.home(&collection, &PointId::Number(number)).0).or_default().push(number);
        }
        homes
    }

    fn script(&self, shard: u64, errors: impl IntoIterator<Item = Status>) {
        self.world.write_errors.lock().unwrap().insert(shard, errors.into_iter().collect());
        self.world.writes.lock().unwrap().clear();
    }

    /// What reached the leader for a shard since the last script.
    fn sent(&self, shard: u64) -> Vec<wire::NodeWriteRequest> {
        self.world.writes.lock().unwrap().iter().filter(|write| write.shard == shard).cloned().collect()
    }
}

#[tokio::test]
async fn with_a_dead_node_and_a_leader_elsewhere_everything_works() {
    let mut cluster = cluster(&[3], |_| ()).await;
    let shards = cluster.create().await;
    let again = wire::CollectionSpec { name: "c".into(), ..Default::default() };
    let refused =
        cluster.client.create_collection(wire::CreateCollectionRequest { format: 1, spec: Some(again) }).await;
    assert_eq!(refused.unwrap_err().code(), Code::AlreadyExists, "that it has no vectors is no other mistake");
    let described = wire::DescribeCollectionRequest { format: 1, name: "c".into() };
    assert_eq!(cluster.client.describe_collection(described).await.unwrap().into_inner().shards, shards);

    let written = cluster.client.upsert(upsert(0..30)).await.unwrap().into_inner();
    assert_eq!((written.applied, written.errors, written.outcomes), (30, vec![], vec![]));
    assert_eq!(written.positions.iter().map(|position| position.shard).collect::<Vec<_>>(), shards);

    let get = wire::GetRequest {
        collection: "c".into(),
        ids: [29, 4, 99, 4].into_iter().filter_map(id).collect(),
        with_vectors: true,
        ..Default::default()
    };
    let got = cluster.client.get(get).await.unwrap().into_inner();
    assert_eq!(got.points[1].vectors[0].values, [0.2_f32.cos(), 0.2_f32.sin()], "stored at unit length");
    assert_eq!(numbers(got.points.into_iter().map(|point| point.id)), [29, 4], "in the order asked for, each once");
    let level = cluster.world.reads.lock().unwrap().last().unwrap().1.level;
    assert_eq!(level, i32::from(wire::ReadLevel::Linearizable), "point reads see every acknowledged write");

    for _ in 0..10 {
        let found = cluster.client.search(query(12)).await.unwrap().into_inner();
        assert!((found.hits[3].score - 0.15_f32.cos()).abs() < 1e-6);
        assert_eq!(numbers(found.hits.into_iter().map(|hit| hit.id)), (0..12).collect::<Vec<_>>());
        let coverage = found.coverage.unwrap().shards;
        assert_eq!(coverage.len(), 3);
        assert!(coverage.iter().all(|shard| shard.state == 0 && shard.index > 0 && shard.node != 3), "{coverage:?}");
    }

    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let request = wire::ScrollRequest { collection: "c".into(), after, limit: 7, ..Default::default() };
        let page = cluster.client.scroll(request).await.unwrap().into_inner();
        seen.extend(numbers(page.points.into_iter().map(|point| point.id)));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    let count = wire::CountRequest { collection: "c".into(), ..Default::default() };
    assert_eq!(cluster.client.count(count.clone()).await.unwrap().into_inner().count, 30);

    *cluster.world.leader.lock().unwrap() = 1;
    let ids = [1, 2, 77].into_iter().filter_map(id).collect();
    let delete = wire::DeleteRequest { collection: "c".into(), ids, ..Default::default() };
    assert_eq!(cluster.client.delete(delete).await.unwrap().into_inner().applied, 2);
    let all = wire::Filter { kind: Some(wire::filter::Kind::All(wire::filter::List { filters: vec![] })) };
    let delete = wire::DeleteRequest { collection: "c".into(), filter: Some(all), ..Default::default() };
    assert_eq!(cluster.client.delete(delete).await.unwrap().into_inner().applied, 28);
    assert_eq!(cluster.client.count(count).await.unwrap().into_inner().count, 0);

    let open = wire::OpenSessionRequest {
        collection: "c".into(),
        session: bytes::Bytes::from_static(&[7; 16]),
        opened_at_ms: 1,
        ..Default::default()
    };
    let opened = cluster.client.open_session(open).await.unwrap().into_inner();
    assert_eq!((opened.ttl_ms, opened.positions.len()), (60_000 + shards[0], 3), "the shortest life, at every shard");

    let status = cluster.client.cluster_status(wire::ClusterStatusRequest::default()).await.unwrap().into_inner();
    let nodes: Vec<_> = status.nodes.iter().map(|node| (node.node, node.reachable, node.error.is_empty())).collect();
    assert_eq!(nodes, [(1, true, true), (2, true, true), (3, false, false)]);
    assert_eq!(status.table.unwrap().collections.len(), 1);
    let verify = wire::VerifyReplicasRequest { collection: "c".into(), ..Default::default() };
    let verified = cluster.client.verify_replicas(verify).await.unwrap().into_inner();
    assert_eq!((verified.equal, verified.uncompared), (true, shards), "a dead replica was not compared");

    let delete = wire::DeleteCollectionRequest { format: 1, name: "c".into() };
    assert!(cluster.client.delete_collection(delete.clone()).await.unwrap().into_inner().existed);
    assert!(!cluster.client.delete_collection(delete).await.unwrap().into_inner().existed);
    assert_eq!(cluster.client.search(query(1)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn sparse_queries_are_weighted_by_what_all_shards_count_together() {
    let mut cluster = cluster(&[], |_| ()).await;
    let shards = cluster.create().await;
    cluster.client.upsert(upsert(0..30)).await.unwrap();
    let sparse = wire::SparseVector { indices: vec![3, 0, 9, 1], values: vec![0.5, 1.0, 7.0, 2.0] };
    let query = |sparse: wire::SparseVector, full_coverage| wire::SearchRequest {
        collection: "c".into(),
        query: Some(wire::SearchQuery {
            vector_name: "words".into(),
            sparse: Some(sparse),
            limit: 30,
            ..Default::default()
        }),
        read: Some(wire::ReadOptions { full_coverage, ..Default::default() }),
        ..Default::default()
    };
    // By the definition, over these points.
    let expected = |numbers: &[u64]| {
        let all = numbers.len() as u64;
        let weighed = self::sparse(&sparse).map_values(|_, index, value| {
            let with = numbers.iter().filter(|number| words(**number).sparse.unwrap().indices.contains(&index)).count();
            (f64::from(value) * inverse_frequency(all, with as u64)) as f32
        });
        let score = |number: &u64| (*number, self::sparse(&words(*number).sparse.unwrap()).dot(&weighed).unwrap());
        let mut scores: Vec<(u64, f32)> = numbers.iter().map(score).collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scores
    };
    let found = |reply: wire::SearchReply| -> Vec<(u64, f32)> {
        let scores: Vec<f32> = reply.hits.iter().map(|hit| hit.score).collect();
        numbers(reply.hits.into_iter().map(|hit| hit.id)).into_iter().zip(scores).collect()
    };
    let near = |found: Vec<(u64, f32)>, expected: Vec<(u64, f32)>| {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-5, "{found:?} {expected:?}");
        }
    };
    let all: Vec<u64> = (0..30).collect();
    let reply = cluster.client.search(query(sparse.clone(), false)).await.unwrap().into_inner();
    near(found(reply), expected(&all));
    let twice = wire::SearchBatchRequest {
        collection: "c".into(),
        queries: vec![query(sparse.clone(), false).query.unwrap(), self::query(3).query.unwrap()],
        ..Default::default()
    };
    let replies = cluster.client.search_batch(twice).await.unwrap().into_inner().replies;
    near(found(replies[0].clone()), expected(&all));
    assert_eq!(replies[1].hits.len(), 3, "a dense query beside it is none of its business");

    // A shard that does not count is not searched, and the others' counts are those of the answer.
    cluster.world.uncounted.lock().unwrap().insert(shards[1]);
    let homes = cluster.homes();
    let rest: Vec<u64> = all.iter().copied().filter(|number| !homes[&shards[1]].contains(number)).collect();
    let mut request = query(sparse.clone(), false);
    request.read.as_mut().unwrap().deadline_ms = 700;
    let reply = cluster.client.search(request.clone()).await.unwrap().into_inner();
    let states: Vec<i32> = reply.coverage.clone().unwrap().shards.iter().map(|shard| shard.state).collect();
    assert_eq!(states, [0, 2, 0], "searched, failed, searched");
    near(found(reply), expected(&rest));
    request.read.as_mut().unwrap().full_coverage = true;
    assert_eq!(cluster.client.search(request).await.unwrap_err().code(), Code::Unavailable);

    let mut unknown = query(sparse.clone(), false);
    unknown.query.as_mut().unwrap().vector_name = String::new();
    let refused = cluster.client.search(unknown).await.unwrap_err();
    assert!(refused.message().starts_with("query.sparse"), "{refused}");
    let repeated = wire::SparseVector { indices: vec![1, 1], values: vec![1.0; 2] };
    let refused = cluster.client.search(query(repeated, false)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("query.sparse"), "{refused}");
}

#[tokio::test]
async fn replicas_that_are_behind_or_silent_are_passed_over_and_what_fails_everywhere_is_reported() {
    let mut cluster = cluster(&[], |_| ()).await;
    let shards = cluster.create().await;
    cluster.client.upsert(upsert(0..30)).await.unwrap();
    for shard in &shards {
        cluster.world.search_errors.lock().unwrap().insert((1, *shard), "behind");
    }
    for _ in 0..10 {
        let found = cluster.client.search(query(30)).await.unwrap().into_inner();
        assert_eq!(found.hits.len(), 30);
        assert!(found.coverage.unwrap().shards.iter().all(|shard| shard.state == 0 && shard.node != 1));
    }
    // One more node falls silent: its share of the deadline passes, then the third answers.
    cluster.world.silent.lock().unwrap().insert(2);
    let read = Some(wire::ReadOptions { deadline_ms: 1_500, ..Default::default() });
    for _ in 0..3 {
        let began = Instant::now();
        let request = wire::SearchRequest { read: read.clone(), ..query(30) };
        let found = cluster.client.search(request).await.unwrap().into_inner();
        assert!(found.coverage.unwrap().shards.iter().all(|shard| shard.state == 0 && shard.node == 3));
        assert!(began.elapsed() < Duration::from_millis(1_500));
    }
    cluster.world.silent.lock().unwrap().clear();
    cluster.world.search_errors.lock().unwrap().clear();

    // A shard that nobody can search: the answer says so, or is refused where all was demanded.
    cluster.world.search_errors.lock().unwrap().insert((0, shards[1]), "segment_missing");
    let read = wire::ReadOptions { deadline_ms: 300, ..Default::default() };
    let partial = wire::SearchRequest { read: Some(read.clone()), ..query(30) };
    let found = cluster.client.search(partial.clone()).await.unwrap().into_inner();
    let homes = cluster.homes();
    let mut expected: Vec<u64> = (0..30).collect();
    expected.retain(|number| !homes[&shards[1]].contains(number));
    assert_eq!(numbers(found.hits.into_iter().map(|hit| hit.id)), expected);
    let states: Vec<_> = found.coverage.unwrap().shards.into_iter().map(|s| (s.shard, s.state, s.reason)).collect();
    assert_eq!((states[0].1, states[1].1, states[2].1), (0, wire::shard_coverage::State::Failed.into(), 0));
    assert!(states[1].2.starts_with("behind"), "{states:?}");
    let full = wire::ReadOptions { full_coverage: true, ..read.clone() };
    let refused = cluster.client.search(wire::SearchRequest { read: Some(full), ..query(30) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("1 of 3 shards"), "{refused}");

    // Nobody at all.
    for shard in &shards {
        cluster.world.search_errors.lock().unwrap().insert((0, *shard), "behind");
    }
    assert_eq!(cluster.client.search(partial).await.unwrap_err().code(), Code::Unavailable);

    // A pinned read asks that node only.
    cluster.world.search_errors.lock().unwrap().clear();
    for node in [3, 1, 2] {
        let read = Some(wire::ReadOptions { replica_node: node, ..read.clone() });
        let found = cluster.client.search(wire::SearchRequest { read, ..query(3) }).await.unwrap().into_inner();
        assert!(found.coverage.unwrap().shards.iter().all(|shard| shard.node == node));
    }
    // Session reads carry each shard's own position, and no other's.
    let after = vec![wire::Position { shard: shards[0], index: 41 }, wire::Position { shard: 999, index: 5 }];
    let read = Some(wire::ReadOptions { after: after.clone(), ..read });
    cluster.world.reads.lock().unwrap().clear();
    cluster.client.search(wire::SearchRequest { read, ..query(3) }).await.unwrap();
    let carried: Vec<_> = cluster.world.reads.lock().unwrap().iter().flat_map(|(_, read)| read.after.clone()).collect();
    assert_eq!(carried, after[..1]);
}

#[tokio::test]
async fn a_write_is_repeated_only_where_that_is_harmless() {
    let mut cluster = cluster(&[], |_| ()).await;
    let shards = cluster.create().await;
    let homes = cluster.homes();
    let (one, here) = (shards[0], homes[&shards[0]].clone());
    let lost = || Status::unavailable("the connection broke");
    let not_proposed = || refusal(Code::Unavailable, "not_proposed");
    let numbered = |request: wire::UpsertRequest| wire::UpsertRequest {
        request: Some(wire::RequestId { session: vec![1; 16].into(), seq: 9, settled_below: 3 }),
        ..request
    };

    let is_open = |write: &wire::NodeWriteRequest| matches!(write.op, Some(Op::OpenSession(_)));
    let expired = || refusal(Code::FailedPrecondition, "session_expired");

    // A shard that takes no session. Without a request id, lost: not sent again, and its part is reported as unknown.
    cluster.script(one, [Status::invalid_argument("opened_at_ms: is ahead"), lost()]);
    let written = cluster.client.upsert(upsert(0..30)).await.unwrap().into_inner();
    let sent = cluster.sent(one);
    assert_eq!((sent.len(), is_open(&sent[0]), sent[1].request.clone()), (2, true, None));
    assert_eq!((written.applied, written.positions.len()), (30 - here.len() as u64, 2));
    let [error] = &written.errors[..] else { panic!("{:?}", written.errors) };
    assert_eq!((error.shard, error.unknown_outcome), (one, true));
    assert_eq!(error.positions.iter().map(|at| u64::from(*at)).collect::<Vec<_>>(), here);

    // The same, but certainly not proposed: sent again.
    cluster.script(one, [not_proposed(), refusal(Code::ResourceExhausted, "overloaded")]);
    let written = cluster.client.upsert(upsert(0..30)).await.unwrap().into_inner();
    assert_eq!((cluster.sent(one).len(), written.applied, written.errors.len()), (3, 30, 0));

    // Without a request id at a shard that takes sessions: numbered by the router, and sent again whatever happened.
    let (two, there) = (shards[1], homes[&shards[1]].clone());
    cluster.script(two, [lost(), Status::deadline_exceeded("late")]);
    let written = cluster.client.upsert(upsert(there.clone())).await.unwrap().into_inner();
    assert_eq!((written.applied, written.errors.len()), (there.len() as u64, 0));
    let sent = cluster.sent(two);
    assert_eq!((sent.len(), sent.iter().any(is_open)), (3, false), "the session was opened before");
    assert!(sent[0].request.is_some() && sent.iter().all(|write| write.request == sent[0].request), "{sent:?}");
    // Its session has expired: another one, unless an attempt before was uncertain.
    cluster.script(two, [expired()]);
    cluster.client.upsert(upsert(there.clone())).await.unwrap();
    let sent = cluster.sent(two);
    assert_eq!(sent.iter().map(is_open).collect::<Vec<_>>(), [false, true, false]);
    let session = |write: &wire::NodeWriteRequest| write.request.as_ref().unwrap().session.clone();
    assert_ne!(session(&sent[0]), session(&sent[2]));
    cluster.script(two, [lost(), expired()]);
    let status = cluster.client.upsert(upsert(there.clone())).await.unwrap_err();
    assert_eq!((status.code(), cluster.sent(two).len()), (Code::Unavailable, 2), "{status}");
    assert!(status.message().contains("may have happened"), "{status}");

    // With a request id: sent again under the same one, whatever happened.
    cluster.script(one, [lost(), Status::deadline_exceeded("late")]);
    let written = cluster.client.upsert(numbered(upsert(0..30))).await.unwrap().into_inner();
    assert_eq!((written.applied, written.errors.len()), (30, 0));
    let sent = cluster.sent(one);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|write| write.request == numbered(upsert([])).request), "{sent:?}");

    // An expired session is passed on: certain where nothing was sent before, uncertain after a lost attempt.
    cluster.script(one, [expired()]);
    let status = cluster.client.upsert(numbered(upsert(here.clone()))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.metadata().get("nearring-reason").unwrap(), "session_expired");
    cluster.script(one, [lost(), expired()]);
    let status = cluster.client.upsert(numbered(upsert(here.clone()))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");

    // All shards fail: a status that says what is known.
    cluster.script(one, std::iter::repeat_with(not_proposed).take(10_000));
    let hopeless = wire::UpsertRequest { deadline_ms: 300, ..upsert(here.clone()) };
    let status = cluster.client.upsert(hopeless).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("nearring-reason").unwrap(), "not_proposed");
    assert!(status.message().contains("nothing was changed"), "{status}");
    cluster.script(one, std::iter::repeat_with(|| refusal(Code::ResourceExhausted, "overloaded")).take(100));
    let status = cluster.client.upsert(upsert(here.clone())).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);

    // A batch with one bad point: nothing is proposed. Outcomes come in the request's numbering.
    cluster.script(one, []);
    let mut bad = upsert(0..30);
    bad.points[17].point.as_mut().unwrap().vectors[0].values.push(1.0);
    let status = cluster.client.upsert(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("points[17].vectors[\"\"]"), "{status}");
    let status = cluster.client.upsert(upsert([1, 2, 1])).await.unwrap_err();
    assert!(status.message().starts_with("points[2].id"), "{status}");
    assert!(cluster.world.writes.lock().unwrap().is_empty());
    let mut insert = upsert(25..35);
    let insert_only = wire::Precondition { kind: Some(wire::precondition::Kind::InsertOnly(true)) };
    insert.points.iter_mut().for_each(|point| point.precondition = Some(insert_only));
    let written = cluster.client.upsert(insert).await.unwrap().into_inner();
    assert_eq!(written.applied, 5);
    assert_eq!(written.outcomes.iter().map(|outcome| outcome.position).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_follower_passes_on_what_the_router_cannot_bring_to_the_leader() {
    let mut cluster = cluster(&[], |_| ()).await;
    let shards = cluster.create().await;
    cluster.client.upsert(upsert(0..30)).await.unwrap();
    let leader = *cluster.world.leader.lock().unwrap();
    cluster.world.cut.lock().unwrap().insert(leader);
    cluster.script(shards[0], []);
    let written = cluster.client.upsert(upsert(0..30)).await.unwrap().into_inner();
    assert_eq!((written.applied, written.errors.len()), (30, 0));
    let writes = cluster.world.writes.lock().unwrap().clone();
    assert_eq!(writes.len(), 3, "one for each shard");
    assert!(writes.iter().all(|write| write.pass_on), "{writes:?}");
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_code_that_says_so() {
    let mut cluster = cluster(&[], |settings| {
        settings.limits.in_flight = 1;
        settings.limits.batch_bytes = 2_000;
    })
    .await;
    let shards = cluster.create().await;
    let code = |status: Status| (status.code(), status.message().split(':').next().unwrap_or_default().to_owned());
    let newer = wire::SearchRequest { format: 2, ..query(1) };
    assert_eq!(code(cluster.client.search(newer).await.unwrap_err()), (Code::FailedPrecondition, "format".into()));
    let field = |status: Status| code(status).1;
    assert_eq!(field(cluster.client.search(query(0)).await.unwrap_err()), "query.limit");
    assert_eq!(field(cluster.client.upsert(upsert(0..200)).await.unwrap_err()), "points", "too many bytes");
    let elsewhere = wire::UpsertRequest { collection: "d".into(), ..upsert([1]) };
    assert_eq!(cluster.client.upsert(elsewhere).await.unwrap_err().code(), Code::NotFound);
    let ask = wire::AskRequest { collection: "c".into(), question: "why?".into(), ..Default::default() };
    assert_eq!(cluster.client.ask(ask).await.unwrap_err().code(), Code::FailedPrecondition, "takes no documents");

    // One request under way, one too many.
    cluster.world.silent.lock().unwrap().extend([1, 2, 3]);
    let mut other = cluster.client.clone();
    let slow = tokio::spawn(async move { other.search(query(1)).await });
    let mut refused = None;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let described = wire::DescribeCollectionRequest { format: 1, name: "c".into() };
        refused = cluster.client.describe_collection(described).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.unwrap().code(), Code::ResourceExhausted);
    slow.abort();
    let _aborted = slow.await;

    // Replicas that differ are found. The slot is free again once the aborted call has been noticed.
    cluster.world.astray.lock().unwrap().insert((2, shards[2]));
    let verify = wire::VerifyReplicasRequest { collection: "c".into(), ..Default::default() };
    let verified = loop {
        match cluster.client.verify_replicas(verify.clone()).await {
            Ok(verified) => break verified.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(!verified.equal && verified.uncompared.is_empty());
    assert_eq!(verified.digests.len(), 9);
}

#[tokio::test]
async fn a_document_is_put_asked_about_replaced_and_deleted() {
    let mut cluster = cluster(&[], |_| ()).await;
    let vector = wire::VectorSpec { dimension: 256, metric: wire::Metric::Cosine.into(), scalar: 0 };
    let documents =
        wire::DocumentSpec { embedder: "static256".into(), vector: String::new(), text_field: "text".into() };
    let spec = wire::CollectionSpec {
        name: "notes".into(),
        vectors: BTreeMap::from([(String::new(), vector)]),
        routing_separator: "#".into(),
        documents: Some(documents),
        ..Default::default()
    };
    let request = wire::CreateCollectionRequest { format: 1, spec: Some(spec) };
    cluster.client.create_collection(request).await.unwrap();
    let long = "The lighthouse of Alma was built in 1874 from granite by the engineer Ida Brandt.\n\n".to_owned()
        + &"Storms often delayed its supply boats during the long and dark winters. ".repeat(40);
    let put = |document: &str, text: &str| wire::PutDocumentRequest {
        collection: "notes".into(),
        document: document.into(),
        text: text.into(),
        content_type: "text/plain".into(),
        ..Default::default()
    };
    let written = cluster.client.put_document(put("alma", &long)).await.unwrap().into_inner();
    assert!(written.chunks > 2 && written.removed == 0, "{written:?}");
    let bread = "Bread dough rests for an hour before it is baked in a hot oven.";
    cluster.client.put_document(put("bread", bread)).await.unwrap();
    let homes: BTreeSet<u64> = cluster
        .world
        .points
        .lock()
        .unwrap()
        .iter()
        .filter(|(_, points)| points.keys().any(|id| id.to_string().contains("alma")))
        .map(|(shard, _)| *shard)
        .collect();
    assert_eq!(homes.len(), 1, "a document's chunks share a home");

    let question = "Who built the lighthouse of Alma?".to_owned();
    let ask = wire::AskRequest { collection: "notes".into(), question, ..Default::default() };
    let mut events = cluster.client.ask(ask).await.unwrap().into_inner();
    let (mut text, mut done) = (String::new(), None);
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            wire::answer_event::Event::Delta(delta) => text += &delta.text,
            wire::answer_event::Event::Done(end) => done = Some(end),
            wire::answer_event::Event::Passages(passages) => assert_eq!(passages.passages[0].document, "alma"),
            wire::answer_event::Event::Stage(_) => {}
        }
    }
    let done = done.unwrap();
    assert!(done.answered && text.contains("Ida Brandt") && text.contains("[1]"), "{text}");

    let replaced = cluster.client.put_document(put("alma", "The lighthouse is gone.")).await.unwrap().into_inner();
    assert_eq!((replaced.chunks, replaced.removed), (1, written.chunks - 1));
    let delete =
        wire::DeleteDocumentRequest { collection: "notes".into(), document: "alma".into(), ..Default::default() };
    cluster.client.delete_document(delete).await.unwrap();
    let count = wire::CountRequest { collection: "notes".into(), ..Default::default() };
    assert_eq!(cluster.client.count(count).await.unwrap().into_inner().count, 1);
    let embed = wire::EmbedRequest { texts: vec!["bread".into(), "dough".into()], ..Default::default() };
    let vectors = cluster.client.embed(embed).await.unwrap().into_inner().vectors;
    assert_eq!(vectors.iter().map(|vector| vector.values.len()).collect::<Vec<_>>(), [256, 256]);
    let reserved =
        wire::PutDocumentRequest { metadata_json: b"{\"document\":1}".as_slice().into(), ..put("x", "text") };
    let status = cluster.client.put_document(reserved).await.unwrap_err();
    assert!(status.message().starts_with("metadata.document"), "{status}");
}

#[tokio::test]
async fn an_export_that_breaks_off_is_begun_again_elsewhere_and_nothing_is_left_where_nobody_has_all() {
    let place = tempfile::tempdir().unwrap();
    let snapshots = SnapshotSettings { directory: place.path().to_owned(), upload_bytes_max: 1 << 20 };
    let mut cluster = cluster(&[], |settings| settings.snapshots = Some(snapshots)).await;
    let shards = cluster.create().await;
    cluster.client.upsert(upsert(0..30)).await.unwrap();
    for (node, after) in [(1, 3), (2, 0)] {
        let broken = shards.iter().map(|shard| ((node, *shard), after));
        cluster.world.export_breaks.lock().unwrap().extend(broken);
    }
    let create = wire::CreateSnapshotRequest { format: 1, collection: "c".into() };
    let info = cluster.client.create_snapshot(create.clone()).await.unwrap().into_inner();
    let file = std::fs::File::open(place.path().join("c").join(&info.name)).unwrap();
    let verified = Reader::open(file).unwrap().verify().unwrap();
    assert_eq!(verified.points, 30);
    let read_at: Vec<(u64, u64)> = verified.positions.iter().map(|at| (at.shard.0, at.index)).collect();
    assert_eq!(read_at, shards.iter().map(|shard| (*shard, 1003)).collect::<Vec<_>>(), "all of it from node 3");

    cluster.world.export_breaks.lock().unwrap().insert((3, shards[1]), 2);
    let status = cluster.client.create_snapshot(create).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("try again"), "{status}");
    assert_eq!(std::fs::read_dir(place.path().join(".partial")).unwrap().count(), 0);
    let list = wire::ListSnapshotsRequest { format: 1, collection: "c".into() };
    let listed = cluster.client.list_snapshots(list).await.unwrap().into_inner().snapshots;
    assert_eq!(listed, [info]);
}
