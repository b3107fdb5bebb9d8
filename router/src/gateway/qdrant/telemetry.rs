//! `GET /telemetry`: the shape of Qdrant's, of what this router knows.
//!
//! Levels say more and more, as there: 0 counts collections and answers; 1 adds memory and the vectors of each collection; 2 its
//! settings instead; 3 its shards and their replicas; 4 their segments. It says nothing of what this store does not have
//! (optimizer runs, search pools, quotas) or a router does not know (payload bytes, how long a collection took to load).
//! Nothing is sent anywhere.
use std::collections::BTreeMap;

use axum::extract::State;
use nearring_proto::collection::Collection;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::cluster::{moment, replica_state};
use super::metrics::{shown, status, vectors_of};
use super::{Answer, Asked, Door, Given};
use crate::gateway::console::{furthest, groups};
use crate::pipeline::{ClusterStatus, Pipeline, own_use};
use crate::traffic::{Counted, Door as In, Seen};

/// What may be asked for.
#[derive(Deserialize, JsonSchema, Debug, Default)]
pub(super) struct Wanted {
    /// How much is told.
    #[serde(default)]
    details_level: usize,
    /// Names of collections and addresses in digests.
    #[serde(default)]
    anonymize: bool,
    /// Answers also by collection.
    #[serde(default)]
    per_collection: bool,
}

pub(super) async fn telemetry(State(door): State<Door>, asked: Asked, Given(wanted): Given<Wanted>) -> Answer<Value> {
    let Wanted { details_level: level, anonymize, per_collection } = wanted;
    let pipeline = &door.pipeline;
    let status = status(pipeline).await;
    let name = |name: &str| shown(name, anonymize);
    let started = moment(pipeline.traffic().started_ms());
    let id = status.as_ref().map(|status| shown(&status.table.cluster.0.to_string(), anonymize));
    let mut told = json!({
        "id": id.unwrap_or_default(),
        "app": {"name": "nearring", "version": env!("CARGO_PKG_VERSION"), "startup": started},
        "collections": {"number_of_collections": status.as_ref().map_or(0, |status| status.table.collections.len())},
        "cluster": cluster(status.as_ref(), level, &name),
        "requests": requests(&seen(pipeline), per_collection, &name),
    });
    if level > 0 {
        let (rss_bytes, cpu_ms) = own_use();
        told["memory"] = json!({"resident_bytes": rss_bytes});
        told["hardware"] = json!({"router": {"cpu_ms": cpu_ms}});
        let mut collections = Vec::new();
        for collection in status.iter().flat_map(|status| status.table.collections.values()) {
            let Some(status) = &status else { continue };
            let config = super::collections::config(pipeline, collection).await?;
            collections.push(collection_told(status, collection, config, level, &name));
        }
        told["collections"]["collections"] = collections.into();
    }
    Ok(asked.told(told))
}

/// What was answered so far, of collections that are still there.
pub(super) fn seen(pipeline: &Pipeline) -> Seen {
    if let Some(table) = pipeline.view().table() {
        pipeline.traffic().keep(|name| table.named(name).is_some());
    }
    pipeline.traffic().seen()
}

fn requests(seen: &Seen, per_collection: bool, shown: &dyn Fn(&str) -> String) -> Value {
    let mut told = json!({
        "rest": {"responses": responses(&seen.all, In::Rest)},
        "grpc": {"responses": responses(&seen.all, In::Grpc)},
    });
    if per_collection {
        let of = |(name, counted): (&String, &Counted)| (shown(name), responses(counted, In::Rest));
        told["rest"]["per_collection_responses"] = Value::Object(seen.of_collection.iter().map(of).collect());
    }
    told
}

fn responses(counted: &Counted, door: In) -> Value {
    let mut endpoints: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (endpoint, durations) in counted.iter().filter(|(endpoint, _)| endpoint.door == door) {
        let name = format!("{} {}", endpoint.method, endpoint.path).trim_start().to_owned();
        let told = json!({
            "count": durations.count,
            "avg_duration_micros": durations.total_us as f64 / durations.count.max(1) as f64,
            "min_duration_micros": durations.min_us,
            "max_duration_micros": durations.max_us,
            "total_duration_micros": durations.total_us,
            "last_responded": moment(durations.last_ms),
        });
        endpoints.entry(name).or_default().insert(endpoint.status.to_string(), told);
    }
    json!(endpoints)
}

fn cluster(status: Option<&ClusterStatus>, level: usize, shown: &dyn Fn(&str) -> String) -> Value {
    let mut told = json!({"enabled": true});
    if let (Some(status), 1..) = (status, level) {
        let mut consensus = super::cluster::consensus(status);
        consensus["number_of_peers"] = json!(status.nodes.len());
        told["status"] = consensus;
        let peer = |node: &nearring_proto::wire::NodeStatus| {
            (node.node.to_string(), json!({"uri": shown(&format!("http://{}/", node.address))}))
        };
        told["peers"] = Value::Object(status.nodes.iter().map(peer).collect());
    }
    told
}

fn collection_told(
    status: &ClusterStatus,
    collection: &Collection,
    config: Value,
    level: usize,
    shown: &dyn Fn(&str) -> String,
) -> Value {
    let vectors: u64 = furthest(status, collection).into_iter().map(vectors_of).sum();
    if level == 1 {
        return json!({"vectors": vectors, "optimizers_status": "ok", "params": config["params"]});
    }
    let mut told = json!({"id": shown(&collection.spec.name), "config": config});
    if level > 2 {
        told["shards"] = shards(status, collection, level);
        told["transfers"] = json!([]);
        told["resharding"] = json!([]);
    }
    told
}

/// A router holds no replica: all are remote.
fn shards(status: &ClusterStatus, collection: &Collection, level: usize) -> Value {
    let of = groups(status).into_iter().filter(|group| collection.shards.iter().any(|shard| shard.0 == group.shard));
    of.map(|group| {
        let state = |(node, replica): (&u64, &_)| (node.to_string(), json!(replica_state(*replica, group.creating)));
        let remote = group.replicas.iter().filter_map(|(node, replica)| {
            let replica = (*replica)?;
            let mut told = json!({
                "shard_id": group.shard, "peer_id": node, "role": replica.role,
                "applied_index": replica.applied_index, "last_index": replica.last_index,
                "num_points": replica.points, "num_vectors": vectors_of(replica),
                "total_optimized_points": replica.segments.iter().map(|segment| segment.live).sum::<u64>(),
            });
            if level > 3 {
                let segment = |segment: &nearring_proto::wire::SegmentStatus| {
                    json!({
                        "info": {
                            "uuid": super::cluster::segment_id(segment), "vector_name": segment.vector_name,
                            "num_vectors": segment.members, "num_indexed_vectors": segment.live,
                            "num_deleted_vectors": segment.members.saturating_sub(segment.live),
                            "disk_usage_bytes": segment.bytes,
                        },
                    })
                };
                told["segments"] = replica.segments.iter().map(segment).collect();
            }
            Some(told)
        });
        let states: Map<String, Value> = group.replicas.iter().map(state).collect();
        json!({
            "id": group.shard, "key": null, "local": null, "remote": remote.collect::<Vec<_>>(),
            "replicate_states": states,
        })
    })
    .collect()
}
