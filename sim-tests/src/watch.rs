//! What the nodes say of themselves while a run goes on, and what must hold of it at every moment.
//!
//! A term has one leader; what is applied has been committed; a log is purged only up to its snapshot, and neither log nor
//! tail outgrows its bound. Asked over the simulated network by a client of the simulation, so nothing is known of nodes
//! that do not answer. A status is put together from parts that are read one after the other, so what was applied is
//! compared with what the same life of the node knew to be committed one question later.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use nearring_proto::WIRE_FORMAT;
use nearring_proto::ids::ShardId;
use nearring_proto::wire::node_data_client::NodeDataClient;
use nearring_proto::wire::{self, Dial};
use tonic::transport::Channel;

use crate::history::History;

/// How often nodes are asked.
const EVERY: Duration = Duration::from_millis(400);
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_millis(300);

/// Bounds of what a node holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Bytes of its log's files: its budget, and as much again while a group that is behind keeps it from purging, with
    /// room for what is written meanwhile.
    pub log_bytes: u64,
    /// Vectors in the tails of one replica: what is sealed at once, and what comes while that is built and installed.
    pub tail_vectors: u64,
    /// Bytes of writes that it has taken and not answered.
    pub inflight_bytes: u32,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Who led each group in each term.
    leaders: BTreeMap<(ShardId, u64), (u64, u64)>,
    /// The last answer of each replica.
    last: BTreeMap<(u64, ShardId), wire::ReplicaStatus>,
    /// How often what was reached, to tell how much of the product a run exercises.
    pub reached: BTreeMap<&'static str, u64>,
}

impl Watched {
    /// Takes one node's answer.
    pub fn see(&mut self, status: &wire::NodeStatus, bounds: &Bounds, history: &History) {
        if status.log_bytes > bounds.log_bytes {
            let what = format_args!("node {}: {} bytes of log, {bounds:?}", status.node, status.log_bytes);
            history.complain("logs stay within their budget", what);
        }
        if status.inflight_write_bytes > bounds.inflight_bytes {
            let what =
                format_args!("node {}: {} bytes in flight, {bounds:?}", status.node, status.inflight_write_bytes);
            history.complain("writes in flight are bounded", what);
        }
        for replica in &status.replicas {
            self.see_replica(replica, bounds, history);
        }
    }

    fn see_replica(&mut self, now: &wire::ReplicaStatus, bounds: &Bounds, history: &History) {
        let shard = ShardId(now.shard);
        let who = (now.node, now.incarnation);
        if now.role == "stopped" {
            history.note(format_args!("{shard} on {} has stopped", now.node));
            return;
        }
        if now.role == "leader" {
            match self.leaders.get(&(shard, now.term)) {
                None => {
                    self.leaders.insert((shard, now.term), who);
                    *self.reached.entry("terms with a leader").or_default() += 1;
                }
                Some(leader) if *leader != who => {
                    let what = format_args!("{shard}, term {}: {leader:?} and {who:?}", now.term);
                    history.complain("a term has one leader", what);
                }
                Some(_) => {}
            }
        }
        if now.purged_index > now.snapshot_index {
            let (purged, snapshot) = (now.purged_index, now.snapshot_index);
            let what = format_args!("{shard} on {who:?}: purged up to {purged}, snapshot at {snapshot}");
            history.complain("a log is purged only up to a snapshot", what);
        }
        if now.tail_vectors > bounds.tail_vectors {
            let what = format_args!("{shard} on {who:?}: {} vectors in tails, {bounds:?}", now.tail_vectors);
            history.complain("tails are bounded", what);
        }
        let Some(before) = self.last.insert((now.node, shard), now.clone()) else { return };
        let mut reach = |what, happened: bool| *self.reached.entry(what).or_default() += u64::from(happened);
        if before.incarnation != now.incarnation {
            reach("replicas that came back as new ones", true);
            return;
        }
        // A life that ended in between may begin behind where the last one was.
        if now.committed_index >= before.committed_index
            && before.applied_index > now.committed_index.max(now.applied_index)
        {
            let (applied, committed) = (before.applied_index, now.committed_index);
            let what = format_args!("{shard} on {who:?}: {applied} was applied, {committed} is committed");
            history.complain("what is applied is committed", what);
        }
        if now.term < before.term {
            let what = format_args!("{shard} on {who:?}: {} after {}", now.term, before.term);
            history.complain("terms never go back", what);
        }
        reach("snapshots", now.snapshot_index > before.snapshot_index);
        reach("purges", now.purged_index > before.purged_index);
        reach("segments installed", now.segments.len() > before.segments.len());
        reach("segments merged or emptied", now.segments.len() < before.segments.len());
        reach("segments missing", now.segments.iter().any(|segment| !segment.local));
        reach("lives that began behind", now.applied_index < before.applied_index);
    }

    /// Why a cluster that nothing disturbs any more is not whole yet: what it says of itself, as of the table.
    pub fn unhealed(table: &wire::ClusterTable, nodes: &[wire::NodeStatus], expected: usize) -> Option<String> {
        if nodes.len() != expected || table.nodes.len() != expected {
            return Some(format!("{} of {expected} nodes have joined", nodes.len()));
        }
        if let Some(node) = nodes.iter().find(|node| !node.reachable || node.refusing_writes) {
            return Some(format!("node {} is {:?}, refuses writes: {}", node.node, node.error, node.refusing_writes));
        }
        let incarnations: BTreeMap<u64, u64> = nodes.iter().map(|node| (node.node, node.incarnation)).collect();
        for shard in &table.shards {
            if shard.state() != wire::ShardState::Active {
                return Some(format!("shard {} is {:?}", shard.shard, shard.state()));
            }
            for row in &shard.replicas {
                if incarnations.get(&row.node) != Some(&row.incarnation) {
                    return Some(format!("the table knows another life of node {}", row.node));
                }
            }
            let members: Vec<u64> = shard.replicas.iter().map(|row| row.node).collect();
            if let Some(why) = Self::group_unhealed(shard.shard, &members, nodes) {
                return Some(why);
            }
        }
        let all: Vec<u64> = incarnations.keys().copied().collect();
        Self::group_unhealed(ShardId::META.0, &all, nodes)
    }

    fn group_unhealed(shard: u64, members: &[u64], nodes: &[wire::NodeStatus]) -> Option<String> {
        let replicas = nodes.iter().flat_map(|node| &node.replicas).filter(|replica| replica.shard == shard);
        let replicas: Vec<&wire::ReplicaStatus> = replicas.filter(|replica| members.contains(&replica.node)).collect();
        if replicas.len() != members.len() {
            return Some(format!("group {shard} has {} of {} replicas", replicas.len(), members.len()));
        }
        let leaders: Vec<u64> =
            replicas.iter().filter(|replica| replica.role == "leader").map(|replica| replica.node).collect();
        let [leader] = leaders.as_slice() else { return Some(format!("group {shard} is led by {leaders:?}")) };
        for replica in &replicas {
            let mut voters = replica.voters.clone();
            voters.sort_unstable();
            let mut wanted = members.to_vec();
            wanted.sort_unstable();
            let who = format!("group {shard} on {}", replica.node);
            if replica.leader_node != *leader {
                return Some(format!("{who} follows {}, {leader} leads", replica.leader_node));
            }
            if voters != wanted || !replica.learners.is_empty() {
                return Some(format!("{who}: voters {voters:?}, learners {:?}, wanted {wanted:?}", replica.learners));
            }
            if replica.applied_index != replica.last_index || replica.pending_seals > 0 {
                return Some(format!(
                    "{who}: applied {} of {}, {} seals open",
                    replica.applied_index, replica.last_index, replica.pending_seals
                ));
            }
            if let Some(segment) = replica.segments.iter().find(|segment| !segment.local) {
                return Some(format!("{who} lacks the segment {:02x?}", &segment.hash.get(..4)));
            }
        }
        let position = |replica: &&wire::ReplicaStatus| (replica.applied_index, replica.points, replica.tail_vectors);
        let first = replicas.first().map(position);
        let other = replicas.iter().find(|replica| Some(position(replica)) != first);
        other.map(|other| format!("group {shard}: {:?} on one, {:?} on {}", first, position(other), other.node))
    }
}

/// Asks every node again and again; never ends.
pub async fn watch(nodes: Vec<String>, dial: Dial, bounds: Bounds, history: History, watched: Rc<RefCell<Watched>>) {
    let mut clients: Vec<NodeDataClient<Channel>> =
        nodes.iter().map(|address| NodeDataClient::new(dial(address))).collect();
    loop {
        tokio::time::sleep(EVERY).await;
        let asked = clients.iter_mut().map(|client| {
            let request = wire::NodeStatusRequest { format: WIRE_FORMAT, brief: false };
            tokio::time::timeout(PATIENCE, client.status(request))
        });
        for answer in futures::future::join_all(asked).await.into_iter().flatten().flatten() {
            watched.borrow_mut().see(&answer.into_inner(), &bounds, &history);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const BOUNDS: Bounds = Bounds { log_bytes: 100, tail_vectors: 10, inflight_bytes: 10 };

    fn replica(node: u64, role: &str, term: u64) -> wire::ReplicaStatus {
        let indexes = wire::ReplicaStatus { applied_index: 9, last_index: 9, committed_index: 9, ..Default::default() };
        let voters = vec![1, 2];
        wire::ReplicaStatus {
            shard: 7,
            node,
            incarnation: 1,
            role: role.into(),
            term,
            leader_node: 1,
            voters,
            ..indexes
        }
    }

    fn complaints(replicas: &[wire::ReplicaStatus]) -> Vec<&'static str> {
        let (mut watched, history) = (Watched::default(), History::new());
        for replica in replicas {
            let status = wire::NodeStatus { node: replica.node, replicas: vec![replica.clone()], ..Default::default() };
            watched.see(&status, &BOUNDS, &history);
        }
        history.complaints().into_iter().map(|violation| violation.property).collect()
    }

    #[test]
    fn what_must_not_be_is_seen() {
        let leader = replica(1, "leader", 3);
        assert_eq!(
            complaints(&[leader.clone(), leader.clone(), replica(2, "follower", 3), replica(2, "leader", 4)]),
            [""; 0]
        );
        assert_eq!(complaints(&[leader.clone(), replica(2, "leader", 3)]), ["a term has one leader"]);
        assert_eq!(complaints(&[leader.clone(), replica(1, "follower", 2)]), ["terms never go back"]);
        let purged = wire::ReplicaStatus { purged_index: 5, snapshot_index: 4, ..leader.clone() };
        assert_eq!(complaints(&[purged]), ["a log is purged only up to a snapshot"]);
        let ahead = wire::ReplicaStatus { applied_index: 12, ..leader.clone() };
        assert_eq!(complaints(&[ahead, leader.clone()]), ["what is applied is committed"]);
        assert_eq!(complaints(&[wire::ReplicaStatus { tail_vectors: 11, ..leader }]), ["tails are bounded"]);
    }

    #[test]
    fn a_whole_cluster_is_told_from_one_that_is_not() {
        let node = |node: u64| {
            let role = if node == 1 { "leader" } else { "follower" };
            let meta = wire::ReplicaStatus { shard: ShardId::META.0, ..replica(node, role, 1) };
            let replicas = vec![replica(node, role, 1), meta];
            wire::NodeStatus { node, incarnation: 1, reachable: true, replicas, ..Default::default() }
        };
        let rows = vec![wire::Replica { node: 1, incarnation: 1 }, wire::Replica { node: 2, incarnation: 1 }];
        let state = wire::ShardState::Active as i32;
        let table = wire::ClusterTable {
            nodes: vec![wire::NodeInfo::default(); 2],
            shards: vec![wire::ShardInfo { shard: 7, replicas: rows, state, ..Default::default() }],
            ..Default::default()
        };
        let unhealed = |nodes: &[wire::NodeStatus]| Watched::unhealed(&table, nodes, 2);
        assert_eq!(unhealed(&[node(1), node(2)]), None);
        assert!(unhealed(&[node(1)]).unwrap().contains("have joined"));
        let with = |change: &dyn Fn(&mut wire::ReplicaStatus)| {
            let mut second = node(2);
            change(&mut second.replicas[0]);
            unhealed(&[node(1), second]).unwrap()
        };
        assert!(with(&|replica| replica.role = "leader".into()).contains("is led by"));
        assert!(with(&|replica| replica.voters = vec![1]).contains("voters"));
        assert!(with(&|replica| replica.points = 3).contains("on one"));
        assert!(with(&|replica| replica.applied_index = 8).contains("applied 8 of 9"));
        let missing = wire::SegmentStatus { local: false, ..Default::default() };
        assert!(with(&|replica| replica.segments = vec![missing.clone()]).contains("lacks"));
    }
}
