//! `nearring cluster`: what the nodes say of themselves, and whether the replicas agree.
use clap::Subcommand;
use nearring_client::wire;
use serde_json::{Value, json};

use crate::Context;
use crate::output::{Failure, hex};

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Nodes, shards and replicas. Fails where a shard has no leader, or its leader no majority.
    Status {
        /// Fail also where a node cannot be reached.
        #[arg(long)]
        all_nodes: bool,
    },
    /// Compare the digests of all replicas at equal log positions. Fails where two differ or could not be compared.
    Verify {
        /// Only this collection.
        #[arg(long, default_value = "")]
        collection: String,
    },
}

impl Cluster {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        match self {
            Cluster::Status { all_nodes } => status(&context, all_nodes).await,
            Cluster::Verify { collection } => verify(&context, &collection).await,
        }
    }
}

/// What a shard needs to take writes.
#[derive(Clone, Copy)]
enum Rule {
    /// A replica says that it leads.
    Led,
    /// A majority of its voters answers. A leader that has lost them goes on leading in its own eyes for a while.
    Followed,
}

impl Rule {
    fn holds(self, status: &wire::ClusterStatusReply, shard: u64) -> bool {
        let reachable = status.nodes.iter().filter(|node| node.reachable);
        let replicas: Vec<(u64, &wire::ReplicaStatus)> = reachable
            .flat_map(|node| node.replicas.iter().map(|replica| (node.node, replica)))
            .filter(|(_, replica)| replica.shard == shard)
            .collect();
        match self {
            Self::Led => replicas.iter().any(|(_, replica)| replica.role == "leader"),
            Self::Followed => {
                // Whoever is behind may not know of a change of members.
                let newest = replicas.iter().max_by_key(|(_, replica)| (replica.term, replica.applied_index));
                let voters = newest.map(|(_, replica)| replica.voters.as_slice()).unwrap_or_default();
                let there =
                    |voter: &&u64| replicas.iter().any(|(node, replica)| node == *voter && replica.role != "stopped");
                voters.iter().filter(there).count() * 2 > voters.len()
            }
        }
    }
}

async fn status(context: &Context, all_nodes: bool) -> Result<(), Failure> {
    let status = context.client.cluster_status().await?;
    let table = status.table.clone().unwrap_or_default();
    context.output.write(&status_json(&status), || status_text(&status))?;
    // The meta group counts as shard 0 where nodes report it; without a table it has no leader anybody knows.
    if table.cluster_id.is_empty() {
        return Err(Failure::new("the cluster has not formed yet; wait until a majority of the first nodes is up"));
    }
    let stuck = |rule: Rule| -> Vec<String> {
        let shards = table.shards.iter().map(|shard| shard.shard);
        shards.filter(|shard| !rule.holds(&status, *shard)).map(|shard| shard.to_string()).collect()
    };
    let headless = stuck(Rule::Led);
    if !headless.is_empty() {
        return Err(Failure::new(format!("no leader for shards {}: they take no writes", headless.join(", "))));
    }
    let alone = stuck(Rule::Followed);
    if !alone.is_empty() {
        return Err(Failure::new(format!(
            "no majority for shards {}: their leaders have too few followers left, and they take no writes",
            alone.join(", ")
        )));
    }
    let gone: Vec<String> =
        status.nodes.iter().filter(|node| !node.reachable).map(|node| node.node.to_string()).collect();
    if all_nodes && !gone.is_empty() {
        return Err(Failure::new(format!("nodes out of reach: {}", gone.join(", "))));
    }
    Ok(())
}

fn status_json(status: &wire::ClusterStatusReply) -> Value {
    let table = status.table.clone().unwrap_or_default();
    let nodes: Vec<Value> = status.nodes.iter().map(node_json).collect();
    let shards: Vec<Value> = table
        .shards
        .iter()
        .map(|shard| {
            let replicas: Vec<u64> = shard.replicas.iter().map(|replica| replica.node).collect();
            let active = shard.state == wire::ShardState::Active as i32;
            json!({
                "shard": shard.shard, "collection": shard.collection, "replicas": replicas,
                "state": if active { "active" } else { "creating" },
            })
        })
        .collect();
    let collections: Vec<Value> = table.collections.iter().map(crate::collection::info_json).collect();
    json!({
        "cluster_id": hex(&table.cluster_id), "epoch": table.epoch, "collections": collections, "shards": shards,
        "nodes": nodes, "router": { "rss_bytes": status.router_rss_bytes, "cpu_ms": status.router_cpu_ms },
    })
}

fn node_json(node: &wire::NodeStatus) -> Value {
    let replicas: Vec<Value> = node
        .replicas
        .iter()
        .map(|replica| {
            let segments: Vec<Value> = replica
                .segments
                .iter()
                .map(|segment| {
                    json!({
                        "hash": hex(&segment.hash), "vector": segment.vector_name, "members": segment.members,
                        "live": segment.live, "bytes": segment.bytes, "local": segment.local,
                    })
                })
                .collect();
            json!({
                "shard": replica.shard, "role": replica.role, "term": replica.term, "leader": replica.leader_node,
                "last_index": replica.last_index, "applied_index": replica.applied_index,
                "snapshot_index": replica.snapshot_index, "points": replica.points,
                "tail_vectors": replica.tail_vectors, "resident_vectors": replica.resident_vectors,
                "resident_vector_bytes": replica.resident_vector_bytes, "segments": segments, "voters": replica.voters,
                "learners": replica.learners, "pending_seals": replica.pending_seals,
            })
        })
        .collect();
    json!({
        "node": node.node, "incarnation": format!("{:x}", node.incarnation), "address": node.address,
        "reachable": node.reachable, "error": node.error, "log_bytes": node.log_bytes, "rss_bytes": node.rss_bytes,
        "cpu_ms": node.cpu_ms, "disk_free_bytes": node.disk_free_bytes, "refusing_writes": node.refusing_writes,
        "inflight_write_bytes": node.inflight_write_bytes, "replicas": replicas,
    })
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn status_text(status: &wire::ClusterStatusReply) -> String {
    let table = status.table.clone().unwrap_or_default();
    let mut text = format!("cluster {}, placement epoch {}\n", hex(&table.cluster_id), table.epoch);
    for node in &status.nodes {
        if !node.reachable {
            text.push_str(&format!("\nnode {} {}: out of reach: {}\n", node.node, node.address, node.error));
            continue;
        }
        let refusing = if node.refusing_writes { ", refusing writes: its disk is nearly full" } else { "" };
        text.push_str(&format!(
            "\nnode {} {}: memory {}, log {}, disk free {}{refusing}\n",
            node.node,
            node.address,
            mib(node.rss_bytes),
            mib(node.log_bytes),
            mib(node.disk_free_bytes),
        ));
        for replica in &node.replicas {
            let kind = if replica.shard == 0 { "meta  ".to_owned() } else { format!("shard {}", replica.shard) };
            text.push_str(&format!(
                "  {kind} {:<9} applied {:>8}  points {:>9}  tail {:>7}  segments {}{}\n",
                replica.role,
                replica.applied_index,
                replica.points,
                replica.tail_vectors,
                replica.segments.len(),
                if replica.pending_seals > 0 { "  building" } else { "" },
            ));
        }
    }
    text.trim_end().to_owned()
}

async fn verify(context: &Context, collection: &str) -> Result<(), Failure> {
    let reply = context.client.verify_replicas(collection).await?;
    let digests: Vec<Value> = reply
        .digests
        .iter()
        .map(|digest| {
            json!({
                "shard": digest.shard, "node": digest.node, "index": digest.index, "points": digest.points,
                "records": hex(&digest.digest), "vectors": hex(&digest.vectors), "error": digest.error,
            })
        })
        .collect();
    let value = json!({ "equal": reply.equal, "uncompared": reply.uncompared, "digests": digests });
    context.output.write(&value, || {
        let lines = reply.digests.iter().map(|digest| {
            let what = if digest.error.is_empty() {
                format!("records {}  vectors {}", hex(&digest.digest), hex(&digest.vectors))
            } else {
                digest.error.clone()
            };
            let (shard, node, index, points) = (digest.shard, digest.node, digest.index, digest.points);
            format!("shard {shard:>4}  node {node:>3}  at {index:>8}  points {points:>9}  {what}")
        });
        let verdict = if reply.equal { "equal" } else { "NOT EQUAL" };
        lines.chain([format!("replicas that were compared are {verdict}")]).collect::<Vec<_>>().join("\n")
    })?;
    if !reply.equal {
        return Err(Failure::new("replicas differ; keep the data directories and report this"));
    }
    if !reply.uncompared.is_empty() {
        let shards: Vec<String> = reply.uncompared.iter().map(ToString::to_string).collect();
        let shards = shards.join(", ");
        return Err(Failure::new(format!(
            "shards {shards} could not be compared: a replica is down or writes are too busy; repeat with a longer --deadline-ms"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_followers_has_no_majority() {
        let replica = |role: &str| wire::ReplicaStatus {
            shard: 1,
            role: role.to_owned(),
            term: 3,
            voters: vec![1, 2, 3],
            ..Default::default()
        };
        let node = |node: u64, reachable, role: &str| {
            let replicas = if reachable { vec![replica(role)] } else { Vec::new() };
            wire::NodeStatus { node, reachable, replicas, ..Default::default() }
        };
        let holds = |second: wire::NodeStatus, third: wire::NodeStatus| {
            let status =
                wire::ClusterStatusReply { nodes: vec![node(1, true, "leader"), second, third], ..Default::default() };
            (Rule::Led.holds(&status, 1), Rule::Followed.holds(&status, 1))
        };
        assert_eq!(holds(node(2, true, "follower"), node(3, false, "")), (true, true));
        assert_eq!(holds(node(2, false, ""), node(3, false, "")), (true, false));
        assert_eq!(holds(node(2, true, "stopped"), node(3, false, "")), (true, false));
    }
}
