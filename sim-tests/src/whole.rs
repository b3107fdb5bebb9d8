//! Whether a cluster is whole, as its nodes see it: the moment at which storage may be damaged again.
//!
//! Whole means: every node answers; every node holds a replica of the same groups, the meta group among them; each of
//! these is a voter of its group as who it is now, and the groups have no other voters, no learners; every segment that is
//! named is local; and every replica has applied what any had applied in the round before. The membership that says so
//! is then applied by all, hence committed by a majority of just these voters, and so is everything that was acknowledged before
//! the first round. So any one of them can lose all it has.
use std::collections::BTreeMap;
use std::time::Duration;

use nearring_proto::WIRE_FORMAT;
use nearring_proto::ids::ShardId;
use nearring_proto::wire::node_data_client::NodeDataClient;
use nearring_proto::wire::{self, NodeStatus};

use crate::net;

/// How far each group had been applied by some replica.
pub type Applied = BTreeMap<u64, u64>;

/// What every one of `addresses` says of itself; `None` where one does not answer in time.
pub async fn ask(addresses: &[String]) -> Option<Vec<NodeStatus>> {
    let mut statuses = Vec::new();
    for address in addresses {
        let mut node = NodeDataClient::new(net::dial()(address));
        let request = wire::NodeStatusRequest { format: WIRE_FORMAT, brief: false };
        let answer = tokio::time::timeout(Duration::from_millis(500), node.status(request)).await;
        statuses.push(answer.ok()?.ok()?.into_inner());
    }
    Some(statuses)
}

/// How far each group has been applied by the replica that is farthest.
pub fn applied(statuses: &[NodeStatus]) -> Applied {
    let mut applied = Applied::new();
    for replica in statuses.iter().flat_map(|status| &status.replicas) {
        let most = applied.entry(replica.shard).or_default();
        *most = (*most).max(replica.applied_index);
    }
    applied
}

/// Whether the cluster is whole, given how far it was a round earlier.
///
/// # Errors
/// What is missing.
pub fn check(before: &Applied, statuses: &[NodeStatus]) -> Result<(), String> {
    if before.len() < 2 || !before.contains_key(&ShardId::META.0) {
        return Err("there is no collection yet".to_owned());
    }
    let mut nodes: Vec<u64> = statuses.iter().map(|status| status.node).collect();
    nodes.sort_unstable();
    for status in statuses {
        let node = status.node;
        for (shard, index) in before {
            let Some(replica) = status.replicas.iter().find(|replica| replica.shard == *shard) else {
                return Err(format!("node {node} has no replica of {shard}"));
            };
            let mut voters = replica.voters.clone();
            voters.sort_unstable();
            let votes = matches!(replica.role.as_str(), "leader" | "follower");
            if !votes || voters != nodes || !replica.learners.is_empty() {
                return Err(format!("{shard} on node {node}: {}, voters {voters:?}", replica.role));
            }
            if replica.applied_index < *index {
                return Err(format!("{shard} on node {node} is at {}, not {index}", replica.applied_index));
            }
            if replica.segments.iter().any(|segment| !segment.local) {
                return Err(format!("{shard} on node {node} lacks a segment"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn cluster() -> Vec<NodeStatus> {
        let replica = |shard: u64, node: u64| wire::ReplicaStatus {
            shard,
            node,
            role: if node == 1 { "leader" } else { "follower" }.to_owned(),
            applied_index: 7,
            voters: vec![3, 1, 2],
            segments: vec![wire::SegmentStatus { local: true, ..Default::default() }],
            ..Default::default()
        };
        let node = |node| NodeStatus { node, replicas: vec![replica(0, node), replica(5, node)], ..Default::default() };
        vec![node(1), node(2), node(3)]
    }

    #[test]
    fn whatever_is_missing_is_noticed() {
        let whole = cluster();
        let before = applied(&whole);
        assert_eq!(check(&before, &whole), Ok(()));
        assert!(check(&Applied::new(), &whole).is_err(), "nothing is there yet");
        let broken: [&dyn Fn(&mut wire::ReplicaStatus); 6] = [
            &|replica| replica.role = "learner".to_owned(),
            &|replica| replica.applied_index = 6,
            &|replica| replica.voters = vec![1, 2],
            &|replica| replica.voters = vec![1, 1, 2, 3], // an earlier life of node 1 votes, too
            &|replica| replica.learners = vec![3],
            &|replica| replica.segments[0].local = false,
        ];
        for (at, spoil) in broken.iter().enumerate() {
            let mut spoilt = cluster();
            spoil(&mut spoilt[2].replicas[1]);
            assert!(check(&before, &spoilt).is_err(), "{at}");
        }
        let mut spoilt = cluster();
        spoilt[0].replicas.pop();
        assert!(check(&before, &spoilt).is_err());
    }
}
