//! The cluster as Qdrant's clients ask for it. Whoever asks Qdrant asks a peer, which tells of itself; a router is none, and tells
//! of the node that leads the meta group, or of the first one that answers.
//!
//! Nothing here changes anything: shards do not move.
use axum::extract::{Path, State};
use nearring_proto::wire;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, Asked, Door, Given};
use crate::gateway::console::{META, furthest, groups, problems};
use crate::pipeline::ClusterStatus;

/// A moment as Qdrant writes it.
pub(super) fn moment(ms: u64) -> String {
    i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default().to_string()
}

/// The node that is told of.
fn spokesman(status: &ClusterStatus) -> u64 {
    let all = groups(status);
    let leader = all.iter().find(|group| group.shard == META).and_then(|meta| meta.leader());
    let first = || status.nodes.iter().find(|node| node.reachable).map(|node| node.node);
    leader.or_else(first).unwrap_or(0)
}

/// The meta group, as the node that is told of sees it.
pub(super) fn consensus(status: &ClusterStatus) -> Value {
    let peer = spokesman(status);
    let all = groups(status);
    let meta = all.iter().find(|group| group.shard == META);
    let replica = meta.and_then(|meta| *meta.replicas.get(&peer)?);
    let role = replica.map(|replica| match replica.role.as_str() {
        "leader" => "Leader",
        "candidate" => "Candidate",
        _ => "Follower",
    });
    let stopped = replica.is_none_or(|replica| replica.role == "stopped");
    let works = !stopped && meta.is_some_and(|meta| meta.has_majority());
    json!({
        "term": replica.map_or(0, |replica| replica.term),
        "commit": replica.map_or(0, |replica| replica.committed_index),
        "pending_operations": replica.map_or(0, |replica| replica.last_index.saturating_sub(replica.applied_index)),
        "leader": meta.and_then(|meta| meta.leader()),
        "role": role,
        "is_voter": replica.is_some_and(|replica| replica.voters.contains(&peer)),
        "peer_id": peer,
        "consensus_thread_status": {"consensus_thread_status": if works { "working" } else { "stopped" }},
    })
}

pub(super) async fn cluster(State(door): State<Door>, asked: Asked) -> Answer<Value> {
    Ok(asked.told(told(&door.pipeline.cluster_status().await?, moment(door.pipeline.now_ms()))))
}

/// `now` stands where Qdrant says when its consensus last did something: that is when the nodes were asked.
fn told(status: &ClusterStatus, now: String) -> Value {
    let mut raft = consensus(status);
    let parts = raft.as_object_mut();
    let (peer, mut thread) = match parts {
        Some(parts) => (parts.remove("peer_id"), parts.remove("consensus_thread_status").unwrap_or_default()),
        None => (None, Value::Null),
    };
    if thread["consensus_thread_status"] == "working" {
        thread["last_update"] = json!(now);
    }
    let uri = |node: &wire::NodeStatus| json!({"uri": format!("http://{}/", node.address)});
    let peers: Map<String, Value> = status.nodes.iter().map(|node| (node.node.to_string(), uri(node))).collect();
    let failure = |node: &wire::NodeStatus| {
        let failure = json!({"count": 1, "latest_error": node.error, "latest_error_timestamp": now});
        (format!("http://{}/", node.address), failure)
    };
    let failures: Map<String, Value> = status.nodes.iter().filter(|node| !node.reachable).map(failure).collect();
    json!({
        "status": "enabled", "peer_id": peer, "peers": peers, "raft_info": raft, "consensus_thread_status": thread,
        "message_send_failures": failures,
    })
}

/// How a replica is, in Qdrant's words.
pub(super) fn replica_state(replica: Option<&wire::ReplicaStatus>, creating: bool) -> &'static str {
    match replica {
        _ if creating => "Initializing",
        None => "Dead",
        Some(replica) if replica.role == "stopped" => "Dead",
        Some(replica) if replica.role == "learner" => "Partial",
        Some(_) => "Active",
    }
}

pub(super) async fn of_collection(State(door): State<Door>, Path(name): Path<String>, asked: Asked) -> Answer<Value> {
    let collection = super::collections::find(&door.pipeline, &name).await?;
    let status = door.pipeline.cluster_status().await?;
    let peer = spokesman(&status);
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    for group in groups(&status) {
        if !collection.shards.iter().any(|shard| shard.0 == group.shard) {
            continue;
        }
        for (node, replica) in &group.replicas {
            let state = replica_state(*replica, group.creating);
            match replica {
                Some(replica) if *node == peer => local.push(json!({
                    "shard_id": group.shard, "points_count": replica.points, "state": state,
                })),
                _ => remote.push(json!({"shard_id": group.shard, "peer_id": node, "state": state})),
            }
        }
    }
    Ok(asked.told(json!({
        "peer_id": peer, "shard_count": collection.shards.len(), "local_shards": local, "remote_shards": remote,
        "shard_transfers": [],
    })))
}

/// What is known to be wrong. Nothing is kept of it: it is told for as long as it is so.
pub(super) async fn issues(State(door): State<Door>, asked: Asked) -> Answer<Value> {
    let status = door.pipeline.cluster_status().await?;
    let issue = |problem: &Value| {
        let of = problem.get("shard").or(problem.get("node")).cloned().unwrap_or_default();
        let kind = problem["kind"].as_str().unwrap_or_default().to_uppercase();
        json!({"id": format!("{kind}/{of}"), "description": problem["text"], "solution": {}})
    };
    let issues: Vec<Value> = problems(&status, &groups(&status)).iter().map(issue).collect();
    Ok(asked.told(json!({"issues": issues})))
}

/// There is nothing to forget.
pub(super) async fn clear_issues(asked: Asked) -> Answer<bool> {
    Ok(asked.told(true))
}

/// What else is to be told of a collection's segments.
#[derive(Deserialize, JsonSchema, Debug, Default)]
pub(super) struct Wanted {
    /// Of `queued`, `completed`, `idle_segments`, with commas between them.
    #[serde(default)]
    with: Option<String>,
}

/// A name that a segment has on every replica: the beginning of its digest.
pub(super) fn segment_id(segment: &wire::SegmentStatus) -> uuid::Uuid {
    uuid_of(&segment.hash)
}

/// A UUID of the first sixteen bytes.
fn uuid_of(digest: &[u8]) -> uuid::Uuid {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest).for_each(|(byte, of)| *byte = *of);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// What becomes of a collection's segments, shard by shard on the replica that is furthest. A segment is being built from the
/// moment its members are fixed in the log until it is installed. Those that were built and are still in use are what is known to
/// be completed. The tail, which takes what is written, is told beside the idle segments.
pub(super) async fn optimizations(
    State(door): State<Door>,
    Path(name): Path<String>,
    asked: Asked,
    Given(Wanted { with }): Given<Wanted>,
) -> Answer<Value> {
    let collection = super::collections::find(&door.pipeline, &name).await?;
    let with: Vec<&str> = with.iter().flat_map(|with| with.split(',')).map(str::trim).collect();
    if let Some(other) = with.iter().find(|part| !["queued", "completed", "idle_segments"].contains(part)) {
        let reason = format!("has {other:?}, knows queued, completed and idle_segments");
        return Err(crate::failure::Error::invalid("with", reason).into());
    }
    let status = door.pipeline.cluster_status().await?;
    let (mut running, mut completed, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for replica in furthest(&status, &collection) {
        // What has no digest yet is named by its place.
        let named = |what: &str| uuid_of(blake3::hash(format!("{}/{what}", replica.shard).as_bytes()).as_bytes());
        let build = |uuid: uuid::Uuid, status: &str| {
            let progress = json!({"name": format!("shard {}", replica.shard)});
            json!({"uuid": uuid, "optimizer": "seal", "status": status, "segments": [], "progress": progress})
        };
        running.extend((0..replica.pending_seals).map(|at| build(named(&format!("seal {at}")), "optimizing")));
        completed.extend(replica.segments.iter().map(|segment| build(segment_id(segment), "done")));
        let segment =
            |segment: &wire::SegmentStatus| json!({"uuid": segment_id(segment), "points_count": segment.live});
        idle.extend(replica.segments.iter().map(segment));
        let tail = replica.tail_vectors + replica.resident_vectors;
        idle.push(json!({"uuid": named("tail"), "points_count": tail}));
    }
    let mut told = json!({
        "summary": {
            "queued_optimizations": 0, "queued_segments": 0, "queued_points": 0, "idle_segments": idle.len(),
        },
        "running": running,
    });
    if with.contains(&"queued") {
        told["queued"] = json!([]);
    }
    if with.contains(&"completed") {
        told["completed"] = completed.into();
    }
    if with.contains(&"idle_segments") {
        told["idle_segments"] = idle.into();
    }
    Ok(asked.told(told))
}
