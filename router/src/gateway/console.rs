//! What the [page](super::ui) shows and no other HTTP door tells, as JSON. Programs may use it, too.
//!
//! - `GET /nearring/cluster`: every node, and every shard with its replicas as their nodes describe them, and in `problems`
//!   what is wrong, in words.
//! - `GET /nearring/collections`: every collection's vectors, and whether it can be searched by text.
//! - `POST /nearring/collections/{collection}/search`: the points nearest to a `text`, to a `vector`, or to the point with an
//!   `id`; `filter` is in Qdrant's language. Where Qdrant's own search fails as a whole when a shard does not answer, this one
//!   gives what the others found, and says in `coverage` what became of each shard.
//!
//! Nothing here changes anything. Errors have the form that they have at [Qdrant's door](super::qdrant).
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use nearring_proto::collection::{AnySpec, Collection};
use nearring_proto::coverage::{Coverage, ShardCoverage};
use nearring_proto::filter::Filter;
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::placement::table::ShardState;
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::{Metric, Vector as Stored};
use nearring_proto::wire;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::qdrant::Refused;
use super::qdrant::filter::QdrantFilter;
use super::qdrant::values::{Id, Vector, id_json};
use crate::failure::{Error, Kind};
use crate::pipeline::{ClusterStatus, Pipeline, Wants};
use crate::plan::ReadOptions;

/// The number under which nodes report the meta group, which has no row in the table.
pub(super) const META: u64 = 0;
/// Hits where nothing is said.
const LIMIT: usize = 10;

#[derive(Clone)]
struct Door {
    pipeline: Pipeline,
    in_flight: Arc<Semaphore>,
}

/// The API, below `/nearring`.
pub fn app(pipeline: Pipeline) -> Router {
    let limits = pipeline.settings().limits;
    let door = Door { pipeline, in_flight: Arc::new(Semaphore::new(limits.in_flight)) };
    Router::new()
        .route("/nearring/cluster", get(cluster))
        .route("/nearring/collections", get(collections))
        .route("/nearring/collections/{collection}/search", post(search))
        .layer(DefaultBodyLimit::max(limits.message_bytes))
        .layer(middleware::from_fn_with_state(door.clone(), admit))
        .with_state(door)
}

/// Refuses at once what is one too many, rather than keep it waiting with all its memory.
async fn admit(State(door): State<Door>, request: Request, next: Next) -> Response {
    match door.in_flight.clone().try_acquire_owned() {
        Ok(_permit) => next.run(request).await,
        Err(_) => Refused::from(Error::new(Kind::Overloaded, "too many requests are under way; slow down and repeat"))
            .into_response(),
    }
}

async fn cluster(State(door): State<Door>) -> Result<Json<Value>, Refused> {
    Ok(Json(cluster_json(&door.pipeline.cluster_status().await?)))
}

/// A group of replicas, and what their nodes say of them.
pub(super) struct Group<'a> {
    pub(super) shard: u64,
    pub(super) collection: Option<&'a str>,
    /// What it is called in messages.
    name: String,
    pub(super) creating: bool,
    /// Its replicas by node: those of the table, and those that a node has besides. `None` where the node reports none.
    pub(super) replicas: BTreeMap<u64, Option<&'a wire::ReplicaStatus>>,
}

impl Group<'_> {
    /// The node that leads: of several that say so the one of the latest term, since one that is cut off does not know yet.
    pub(super) fn leader(&self) -> Option<u64> {
        let leads = |(node, replica): (&u64, &Option<&wire::ReplicaStatus>)| {
            let replica = replica.filter(|replica| replica.role == "leader")?;
            Some((replica.term, *node))
        };
        self.replicas.iter().filter_map(leads).max().map(|(_, node)| node)
    }

    /// How many of its voters are there, and how many there are. A leader that has lost its followers may lead on in its own
    /// eyes, but nothing that it is given is committed.
    fn voters(&self) -> (usize, usize) {
        // Whoever is behind may not know of a change of members.
        let newest = self.replicas.values().flatten().max_by_key(|replica| (replica.term, replica.applied_index));
        let voters: BTreeSet<u64> = newest.into_iter().flat_map(|replica| replica.voters.iter().copied()).collect();
        let there =
            |node: &&u64| self.replicas.get(node).is_some_and(|one| one.is_some_and(|one| one.role != "stopped"));
        (voters.iter().filter(there).count(), voters.len())
    }

    /// Whether a majority of its voters is there.
    pub(super) fn has_majority(&self) -> bool {
        let (there, all) = self.voters();
        there * 2 > all
    }
}

/// Of each of the collection's shards that any node reports, the replica that has applied most.
pub(super) fn furthest<'a>(status: &'a ClusterStatus, collection: &Collection) -> Vec<&'a wire::ReplicaStatus> {
    let replicas = || status.nodes.iter().flat_map(|node| &node.replicas);
    let of = |shard: u64| {
        replicas().filter(move |replica| replica.shard == shard).max_by_key(|replica| replica.applied_index)
    };
    collection.shards.iter().filter_map(|shard| of(shard.0)).collect()
}

/// The meta group, then every shard by collection and number.
pub(super) fn groups(status: &ClusterStatus) -> Vec<Group<'_>> {
    let table = &status.table;
    let reachable = || status.nodes.iter().filter(|node| node.reachable);
    let reported = |shard: u64| {
        let of = move |node: &'_ wire::NodeStatus| node.replicas.iter().position(|replica| replica.shard == shard);
        reachable().filter_map(move |node| Some((node.node, node.replicas.get(of(node)?))))
    };
    let mut meta: BTreeMap<u64, Option<&wire::ReplicaStatus>> = reported(META).collect();
    // Who is out of reach is still one of those who vote.
    let voters: BTreeSet<u64> = meta.values().flatten().flat_map(|replica| replica.voters.iter().copied()).collect();
    for node in voters {
        meta.entry(node).or_default();
    }
    let meta = Group { shard: META, collection: None, name: "the meta group".into(), creating: false, replicas: meta };
    let shards = table.shards.values().map(|row| {
        let collection = table.collections.get(&row.collection).map(|collection| collection.spec.name.as_str());
        let mut replicas: BTreeMap<u64, Option<&wire::ReplicaStatus>> =
            row.replicas.iter().map(|replica| (replica.node.0, None)).collect();
        replicas.extend(reported(row.id.0));
        let name = format!("shard {} of {}", row.id.0, collection.unwrap_or("a collection that is gone"));
        Group { shard: row.id.0, collection, name, creating: row.state == ShardState::Creating, replicas }
    });
    let mut groups: Vec<Group<'_>> = shards.collect();
    groups.sort_by_key(|group| (group.collection, group.shard));
    groups.insert(0, meta);
    groups
}

fn cluster_json(status: &ClusterStatus) -> Value {
    let groups = groups(status);
    let zone = |node: u64| {
        let found = status.table.nodes.values().find(|row| row.id.0 == node);
        found.map_or("", |row| row.zone.as_str())
    };
    let node = |node: &wire::NodeStatus| {
        json!({
            "node": node.node, "address": node.address, "zone": zone(node.node), "reachable": node.reachable,
            "incarnation": format!("{:x}", node.incarnation), "error": node.error,
            "refusing_writes": node.refusing_writes, "rss_bytes": node.rss_bytes, "cpu_ms": node.cpu_ms,
            "log_bytes": node.log_bytes, "disk_free_bytes": node.disk_free_bytes,
        })
    };
    let shard = |group: &Group<'_>| {
        let replicas: Vec<Value> = group.replicas.iter().map(|(node, replica)| replica_json(*node, *replica)).collect();
        json!({
            "shard": group.shard, "kind": if group.shard == META { "meta" } else { "data" },
            "collection": group.collection, "state": if group.creating { "creating" } else { "active" },
            "leader": group.leader(), "majority": group.has_majority(), "replicas": replicas,
        })
    };
    json!({
        "cluster": status.table.cluster.0.to_string(),
        "epoch": status.table.epoch.0,
        "version": env!("CARGO_PKG_VERSION"),
        "router": {"rss_bytes": status.rss_bytes, "cpu_ms": status.cpu_ms},
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "shards": groups.iter().map(shard).collect::<Vec<_>>(),
        "problems": problems(status, &groups),
    })
}

/// `reported` is false where the node is out of reach or has no such replica.
fn replica_json(node: u64, replica: Option<&wire::ReplicaStatus>) -> Value {
    let Some(replica) = replica else { return json!({"node": node, "reported": false}) };
    let segment = |segment: &wire::SegmentStatus| {
        json!({
            "vector": segment.vector_name, "members": segment.members, "live": segment.live, "bytes": segment.bytes,
            "local": segment.local,
        })
    };
    json!({
        "node": node, "reported": true, "role": replica.role, "term": replica.term,
        "applied_index": replica.applied_index, "committed_index": replica.committed_index,
        "last_index": replica.last_index, "points": replica.points, "tail_vectors": replica.tail_vectors,
        "resident_vectors": replica.resident_vectors, "pending_seals": replica.pending_seals,
        "segments": replica.segments.iter().map(segment).collect::<Vec<_>>(),
    })
}

/// What is wrong, the worst first.
pub(super) fn problems(status: &ClusterStatus, groups: &[Group<'_>]) -> Vec<Value> {
    let mut problems = Vec::new();
    for group in groups.iter().filter(|group| !group.creating && group.leader().is_none()) {
        let cannot = if group.shard == META { "changes of collections wait" } else { "it takes no writes" };
        let text = format!("{} has no leader: {cannot} until a majority of its replicas elects one", group.name);
        problems.push(json!({"kind": "no_leader", "shard": group.shard, "text": text}));
    }
    for group in groups.iter().filter(|group| !group.creating && group.leader().is_some() && !group.has_majority()) {
        let cannot = if group.shard == META { "changes of collections wait" } else { "it takes no writes" };
        let (name, (there, all)) = (&group.name, group.voters());
        let text = format!("{name} has {there} of {all} replicas: {cannot} until a majority is back");
        problems.push(json!({"kind": "no_majority", "shard": group.shard, "text": text}));
    }
    for node in status.nodes.iter().filter(|node| !node.reachable) {
        let text = format!("node {} at {} is out of reach: {}", node.node, node.address, node.error);
        problems.push(json!({"kind": "node_out", "node": node.node, "text": text}));
    }
    for node in status.nodes.iter().filter(|node| node.refusing_writes) {
        let text = format!("node {} refuses writes: its disk is nearly full", node.node);
        problems.push(json!({"kind": "disk", "node": node.node, "text": text}));
    }
    let up: BTreeSet<u64> = status.nodes.iter().filter(|node| node.reachable).map(|node| node.node).collect();
    for group in groups {
        if group.creating {
            let text = format!("{} is being created: it takes no requests yet", group.name);
            problems.push(json!({"kind": "creating", "shard": group.shard, "text": text}));
            continue;
        }
        for (node, replica) in &group.replicas {
            let what = match replica {
                None if up.contains(node) => "is missing",
                Some(replica) if replica.role == "stopped" => "has stopped",
                _ => continue,
            };
            let text = format!("the replica of {} on node {node} {what}", group.name);
            problems.push(json!({"kind": "replica", "shard": group.shard, "node": node, "text": text}));
        }
    }
    problems
}

async fn collections(State(door): State<Door>) -> Result<Json<Value>, Refused> {
    let (all, aliases) = (door.pipeline.list_collections().await?, door.pipeline.aliases().await?);
    let told = |collection: &Collection| {
        let spec = &collection.spec;
        let vectors = spec.vector_names().filter_map(|name| {
            let (kind, dimension, metric) = match spec.vector(name)? {
                AnySpec::Dense(vector) => ("dense", Some(vector.dimension), vector.metric),
                AnySpec::Multi(vector) => ("multi", Some(vector.dimension), vector.metric),
                AnySpec::Sparse(_) => ("sparse", None, Metric::Dot),
            };
            Some(json!({"name": name, "kind": kind, "dimension": dimension, "metric": metric_name(metric)}))
        });
        let asked = door.pipeline.question_embedder(spec).ok();
        let asked = asked.map(|(vector, embedder)| json!({"vector": vector, "embedder": embedder.name()}));
        let named: Vec<&String> =
            aliases.iter().filter(|(_, name)| **name == spec.name).map(|(alias, _)| alias).collect();
        json!({
            "name": spec.name, "aliases": named, "shards": collection.shards.len(),
            "replication_factor": spec.replication_factor, "vectors": vectors.collect::<Vec<_>>(), "text": asked,
        })
    };
    Ok(Json(json!({"collections": all.iter().map(told).collect::<Vec<_>>()})))
}

fn metric_name(metric: Metric) -> &'static str {
    match metric {
        Metric::Cosine => "cosine",
        Metric::Dot => "dot",
        Metric::L2 => "euclid",
        Metric::L1 => "manhattan",
    }
}

/// What is searched for: by text, by vector, or by the id of a point that the hits are to be like.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    vector: Option<Vector>,
    #[serde(default)]
    id: Option<Id>,
    /// The name of the vector that is compared; of a text the collection decides.
    #[serde(default)]
    using: Option<String>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    limit: Option<usize>,
}

async fn search(State(door): State<Door>, Path(name): Path<String>, body: Bytes) -> Result<Json<Value>, Refused> {
    let wanted: Wanted = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&body))
        .map_err(|error| Error::new(Kind::Invalid, format!("Format error in JSON body: {error}")))?;
    let pipeline = &door.pipeline;
    let spec = pipeline.describe_collection(&name).await?.spec;
    let reads = ReadOptions::default();
    let given_filter = QdrantFilter::read(wanted.filter, pipeline, &name).await?;
    let (using, vector, embedder, left_out) = match (wanted.text, wanted.vector, wanted.id) {
        (Some(_), None, None) if wanted.using.is_some() => {
            return Err(Error::invalid("using", "goes with vector or id; the collection says where texts are").into());
        }
        (Some(text), None, None) => {
            let (using, embedder) = pipeline.question_embedder(&spec)?;
            let vector = pipeline.embed(embedder.name(), vec![text]).await?.pop();
            let vector = vector.ok_or_else(|| Error::new(Kind::Internal, "a text without a vector"))?;
            (using, Stored::from(vector), Some(embedder.name().to_owned()), None)
        }
        (None, Some(vector), None) => (wanted.using.unwrap_or_default(), vector.read("vector")?, None, None),
        (None, None, Some(id)) => {
            let (id, using) = (PointId::from(id), wanted.using.unwrap_or_default());
            let wants = Wants { payload: false, vectors: true };
            let read = pipeline.get(&name, vec![id.clone()], wants, &reads).await?;
            let record = read.points.first();
            let record = record.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no point with id {id}")))?;
            let vector = record.vectors.get(&using).cloned();
            let vector =
                vector.ok_or_else(|| Error::invalid("using", format!("point {id} has no vector {using:?}")))?;
            (using, vector, None, Some(Filter::Not(Box::new(Filter::Ids(vec![id])))))
        }
        _ => return Err(Error::invalid("text", "give exactly one of text, vector and id").into()),
    };
    let filters: Vec<Filter> = given_filter.into_iter().chain(left_out).collect();
    let query = SearchQuery {
        vector_name: using.clone(),
        target: Target::Near(vector),
        limit: wanted.limit.unwrap_or(LIMIT),
        filter: (!filters.is_empty()).then_some(Filter::All(filters)),
        exact: false,
        ef: None,
        with_payload: true,
        with_vectors: false,
        score_threshold: None,
    };
    let metric = spec.vector(&using).map(AnySpec::metric);
    let answer = pipeline.search(&name, query, &reads).await?;
    Ok(Json(json!({
        "using": using,
        "embedder": embedder,
        "metric": metric.map(metric_name),
        "higher_is_nearer": metric.is_none_or(Metric::higher_is_nearer),
        "hits": answer.hits.iter().map(hit_json).collect::<Result<Vec<_>, _>>()?,
        "coverage": coverage_json(&answer.coverage),
    })))
}

fn hit_json(hit: &Hit) -> Result<Value, Error> {
    let payload = match hit.payload_json.is_empty() {
        true => json!({}),
        false => serde_json::from_slice(&hit.payload_json)
            .map_err(|error| Error::new(Kind::Internal, format!("the payload of {}: {error}", hit.id)))?,
    };
    Ok(json!({"id": id_json(&hit.id), "score": hit.score, "payload": payload}))
}

fn coverage_json(coverage: &Coverage) -> Value {
    let told = coverage.0.iter().map(|(shard, became)| match became {
        ShardCoverage::Searched { node, index, segments } => json!({
            "shard": shard.0, "state": "searched", "node": node.0, "index": index, "segments": segments.len(),
        }),
        ShardCoverage::Skipped { .. } => json!({"shard": shard.0, "state": "skipped"}),
        ShardCoverage::Failed { reason } => json!({"shard": shard.0, "state": "failed", "reason": reason}),
    });
    json!({"complete": coverage.is_full(), "shards": told.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::Arc;

    use nearring_proto::collection::{CollectionSpec, IndexSpec, VectorSpec};
    use nearring_proto::ids::{ClusterId, Incarnation, NodeId, ReplicaId, ShardId};
    use nearring_proto::placement::table::{Change, Node, Table};
    use nearring_proto::vector::ScalarKind;

    use super::*;

    fn replica(shard: u64, node: u64, role: &str, term: u64) -> wire::ReplicaStatus {
        let voters = vec![1, 2, 3];
        wire::ReplicaStatus { shard, node, role: role.into(), term, voters, points: 7, ..Default::default() }
    }

    fn nodes(of: [(u64, bool, Vec<wire::ReplicaStatus>); 3]) -> Vec<wire::NodeStatus> {
        let status = |(node, reachable, replicas): (u64, bool, Vec<wire::ReplicaStatus>)| wire::NodeStatus {
            node,
            reachable,
            replicas,
            address: format!("n{node}:7000"),
            error: if reachable { String::new() } else { "no answer".into() },
            ..Default::default()
        };
        of.into_iter().map(status).collect()
    }

    /// Three nodes with one shard, its number, and what the nodes say.
    fn status(say: impl FnOnce(u64) -> Vec<wire::NodeStatus>) -> (ClusterStatus, u64) {
        let mut table = Table::new(ClusterId(uuid::Uuid::from_u128(7)));
        for id in [1, 2, 3] {
            let node = Node {
                id: NodeId(id),
                incarnation: Incarnation(id),
                address: format!("n{id}:7000"),
                zone: String::new(),
            };
            table.apply(&Change::Join(node)).unwrap();
        }
        let vector = VectorSpec { dimension: 2, metric: Metric::Dot, scalar: ScalarKind::default_for(Metric::Dot) };
        let spec = CollectionSpec {
            name: "books".into(),
            vectors: BTreeMap::from([(String::new(), vector)]),
            payload_indexes: BTreeMap::new(),
            shard_count: 1,
            replication_factor: 3,
            routing_separator: String::new(),
            index: IndexSpec::default(),
            documents: None,
            sparse_vectors: BTreeMap::new(),
            multi_vectors: BTreeMap::new(),
        };
        table.apply(&Change::CreateCollection(spec)).unwrap();
        let shard: ShardId = *table.shards.keys().next().unwrap();
        table.apply(&Change::ShardReady(shard)).unwrap();
        let all: Vec<ReplicaId> = table.shards[&shard].replicas.clone();
        assert_eq!(all.len(), 3);
        (ClusterStatus { table: Arc::new(table), nodes: say(shard.0), rss_bytes: 1, cpu_ms: 1 }, shard.0)
    }

    fn kinds(told: &Value) -> Vec<&str> {
        told["problems"].as_array().unwrap().iter().map(|problem| problem["kind"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_node_that_is_out_is_told_and_its_replicas_are_shown_as_not_reported() {
        let (status, shard) = status(|shard| {
            nodes([
                (1, true, vec![replica(META, 1, "leader", 2), replica(shard, 1, "follower", 3)]),
                (2, true, vec![replica(META, 2, "follower", 2), replica(shard, 2, "leader", 3)]),
                (3, false, vec![]),
            ])
        });
        let told = cluster_json(&status);
        assert_eq!(kinds(&told), ["node_out"]);
        assert_eq!(told["problems"][0]["text"], "node 3 at n3:7000 is out of reach: no answer");
        let groups = told["shards"].as_array().unwrap();
        assert_eq!(groups.iter().map(|group| group["leader"].clone()).collect::<Vec<_>>(), [json!(1), json!(2)]);
        for group in groups {
            let reported: Vec<_> =
                group["replicas"].as_array().unwrap().iter().map(|one| one["reported"].clone()).collect();
            assert_eq!(reported, [json!(true), json!(true), json!(false)]);
        }
        assert_eq!((&groups[1]["shard"], &groups[1]["collection"]), (&json!(shard), &json!("books")));
    }

    #[test]
    fn a_shard_without_a_leader_comes_first_and_one_that_led_before_does_not_count() {
        let (headless, shard) = status(|shard| {
            nodes([
                (1, true, vec![replica(META, 1, "leader", 2), replica(shard, 1, "candidate", 4)]),
                (2, false, vec![]),
                (3, true, vec![replica(META, 3, "follower", 2)]),
            ])
        });
        let told = cluster_json(&headless);
        assert_eq!(kinds(&told), ["no_leader", "node_out", "replica"]);
        let majorities: Vec<_> = told["shards"].as_array().unwrap().iter().map(|group| &group["majority"]).collect();
        assert_eq!(majorities, [&json!(true), &json!(false)]);
        let text = told["problems"][0]["text"].as_str().unwrap();
        assert!(text.starts_with(&format!("shard {shard} of books has no leader: it takes no writes")), "{text}");
        assert_eq!(told["problems"][2]["text"], format!("the replica of shard {shard} of books on node 3 is missing"));

        let (two, _) = status(|shard| {
            nodes([
                (1, true, vec![replica(META, 1, "leader", 2), replica(shard, 1, "leader", 4)]),
                (2, true, vec![replica(META, 2, "follower", 2), replica(shard, 2, "follower", 5)]),
                (3, true, vec![replica(META, 3, "follower", 2), replica(shard, 3, "leader", 5)]),
            ])
        });
        let told = cluster_json(&two);
        assert_eq!((kinds(&told), &told["shards"][1]["leader"]), (vec![], &json!(3)));
    }

    #[test]
    fn a_leader_without_a_majority_is_told() {
        let (alone, shard) = status(|shard| {
            nodes([
                (1, true, vec![replica(META, 1, "leader", 2), replica(shard, 1, "leader", 4)]),
                (2, false, vec![]),
                (3, true, vec![replica(META, 3, "follower", 2), replica(shard, 3, "stopped", 4)]),
            ])
        });
        let told = cluster_json(&alone);
        assert_eq!(kinds(&told), ["no_majority", "node_out", "replica"]);
        let expected =
            format!("shard {shard} of books has 1 of 3 replicas: it takes no writes until a majority is back");
        assert_eq!(told["problems"][0]["text"], expected);
        assert_eq!((&told["shards"][1]["leader"], &told["shards"][1]["majority"]), (&json!(1), &json!(false)));
    }

    #[test]
    fn what_became_of_each_shard_is_told() {
        let searched = ShardCoverage::Searched { node: NodeId(2), index: 9, segments: vec![] };
        let failed = ShardCoverage::Failed { reason: "no answer in time".into() };
        let told = coverage_json(&Coverage(BTreeMap::from([(ShardId(4), searched), (ShardId(5), failed)])));
        let expected = json!({"complete": false, "shards": [
            {"shard": 4, "state": "searched", "node": 2, "index": 9, "segments": 0},
            {"shard": 5, "state": "failed", "reason": "no answer in time"},
        ]});
        assert_eq!(told, expected);
    }
}
