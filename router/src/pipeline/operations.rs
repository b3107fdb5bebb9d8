//! What operators ask: how every node is, and whether replicas agree.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nearring_proto::WIRE_FORMAT;
use nearring_proto::ids::{NodeId, ShardId};
use nearring_proto::placement::table::{Node, Table};
use nearring_proto::wire;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{Pipeline, cluster_bytes};
use crate::failure::{Error, NodeFailure};
use crate::plan::replicas;
use crate::scatter::node_deadline_ms;

/// How long a node may take to say how it is.
const STATUS_WITHIN: Duration = Duration::from_secs(2);
/// How long one replica may take at least to get to an index and digest itself.
const DIGEST_WITHIN: Duration = Duration::from_secs(5);
/// How often replicas are asked again before a shard counts as too busy to compare.
const ROUNDS: usize = 8;
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// The cluster as this router sees it.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The newest table known.
    pub table: Arc<Table>,
    /// Every node of the table, by number; unreachable ones with why.
    pub nodes: Vec<wire::NodeStatus>,
    /// Resident memory of this router, in bytes; 0 where the system does not tell.
    pub rss_bytes: u64,
    /// Processor time of this router, in milliseconds; 0 where the system does not tell.
    pub cpu_ms: u64,
}

/// What comparing replicas found.
#[derive(Clone, PartialEq, Debug)]
pub struct Verified {
    /// One for each replica: at the common index where there is one, otherwise the last or an error.
    pub digests: Vec<wire::ReplicaDigest>,
    /// No two replicas differed at one index.
    pub equal: bool,
    /// Shards of which not every replica was compared.
    pub uncompared: Vec<ShardId>,
}

impl Pipeline {
    /// Asks every node of the table how it is.
    ///
    /// # Errors
    /// Where no node was reached yet.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, Error> {
        let table = self.view().wait_for(self.read_until(None), |table| Some(table.clone())).await?;
        let nodes = futures::future::join_all(table.nodes.values().map(|node| self.node_status(node))).await;
        let (rss_bytes, cpu_ms) = own_use();
        Ok(ClusterStatus { table, nodes, rss_bytes, cpu_ms })
    }

    async fn node_status(&self, node: &Node) -> wire::NodeStatus {
        let mut client = self.view().client_at(&node.address);
        let asked =
            timeout(STATUS_WITHIN, client.status(wire::NodeStatusRequest { format: WIRE_FORMAT, brief: false }));
        let error = match asked.await {
            Ok(Ok(status)) => {
                let status = status.into_inner();
                if status.node == node.id.0 {
                    return wire::NodeStatus { reachable: true, address: node.address.clone(), ..status };
                }
                format!("node {} answers at this address", status.node)
            }
            Ok(Err(status)) => NodeFailure::from(status).to_string(),
            Err(_) => format!("no answer within {STATUS_WITHIN:?}"),
        };
        wire::NodeStatus {
            node: node.id.0,
            incarnation: node.incarnation.0,
            reachable: false,
            address: node.address.clone(),
            error,
            ..Default::default()
        }
    }

    /// Compares the digests of every shard's replicas at one applied index each; "" = of all collections.
    ///
    /// # Errors
    /// [`crate::failure::Kind::NotFound`] for the collection. Replicas that cannot be asked are no error; they leave
    /// their shard uncompared.
    pub async fn verify_replicas(&self, collection: &str, deadline: Option<Duration>) -> Result<Verified, Error> {
        let until = self.write_until(deadline);
        let (table, all) = if collection.is_empty() {
            let table = self.view().wait_for(until, |table| Some(table.clone())).await?;
            let all = table.shards.keys().copied().collect();
            (table, all)
        } else {
            let found = self.collection(collection, until).await?;
            (found.table, found.collection.shards)
        };
        let shards = all.iter().map(|shard| self.verify_shard(&table, *shard, until));
        let mut verified = Verified { digests: Vec::new(), equal: true, uncompared: Vec::new() };
        for (shard, seen) in all.iter().zip(futures::future::join_all(shards).await) {
            verified.equal &= seen.equal();
            match seen.common_index() {
                Some(index) => verified.digests.extend(seen.digests.values().filter_map(|by| by.get(&index)).cloned()),
                None => {
                    verified.uncompared.push(*shard);
                    for node in &seen.nodes {
                        let last =
                            seen.digests.get(node).and_then(|by| by.last_key_value()).map(|(_, last)| last.clone());
                        let error = seen.errors.get(node).cloned().unwrap_or_default();
                        let none = wire::ReplicaDigest { shard: shard.0, node: node.0, error, ..Default::default() };
                        verified.digests.push(last.unwrap_or(none));
                    }
                }
            }
        }
        Ok(verified)
    }

    /// Asks all replicas, the first time wherever they are, then at least where the furthest of them was, until all have
    /// been seen at one index. A shard that is being written moves on between two answers, so it takes a few rounds, or
    /// never happens.
    async fn verify_shard(&self, table: &Table, shard: ShardId, until: Instant) -> Seen {
        let mut seen = Seen { nodes: replicas(table, shard, None).into_iter().collect(), ..Default::default() };
        let mut at_least = 0;
        for _ in 0..ROUNDS {
            let asked = seen.nodes.iter().map(|node| self.digest(table, shard, *node, at_least, until));
            let answers = futures::future::join_all(asked).await;
            for (node, answer) in seen.nodes.clone().into_iter().zip(answers) {
                match answer {
                    Ok(digest) => {
                        at_least = at_least.max(digest.index);
                        seen.errors.remove(&node);
                        seen.digests.entry(node).or_default().insert(digest.index, digest);
                    }
                    Err(error) => drop(seen.errors.insert(node, error)),
                }
            }
            if seen.common_index().is_some() || Instant::now() + ROUND_PAUSE >= until {
                break;
            }
            sleep_until(Instant::now() + ROUND_PAUSE).await;
        }
        seen
    }

    async fn digest(
        &self,
        table: &Table,
        shard: ShardId,
        node: NodeId,
        at_least: u64,
        until: Instant,
    ) -> Result<wire::ReplicaDigest, String> {
        let mut client = self.view().client(node).ok_or_else(|| format!("{node} has no address"))?;
        let now = Instant::now();
        // A large shard takes its time; a silent node must leave some to the next attempt.
        let patience = until.min(now + DIGEST_WITHIN.max(until.saturating_duration_since(now) / 3));
        let request = wire::DigestRequest {
            format: WIRE_FORMAT,
            cluster_id: cluster_bytes(table.cluster),
            shard: shard.0,
            at_least,
            deadline_ms: node_deadline_ms(patience.saturating_duration_since(Instant::now())),
        };
        let digest = match timeout_at(patience, client.digest(request)).await {
            Ok(Ok(digest)) => digest.into_inner(),
            Ok(Err(status)) => return Err(NodeFailure::from(status).to_string()),
            Err(_) => return Err(format!("no answer of {node} in time")),
        };
        match digest.error.is_empty() {
            true => Ok(digest),
            false => Err(digest.error),
        }
    }
}

/// What was seen of one shard's replicas.
#[derive(Clone, Debug, Default)]
struct Seen {
    nodes: BTreeSet<NodeId>,
    /// By index.
    digests: BTreeMap<NodeId, BTreeMap<u64, wire::ReplicaDigest>>,
    errors: BTreeMap<NodeId, String>,
}

impl Seen {
    /// The highest index at which every replica was seen.
    fn common_index(&self) -> Option<u64> {
        let first = self.nodes.first().and_then(|node| self.digests.get(node))?;
        let everywhere = |index: &&u64| {
            let has = |node| self.digests.get(node).is_some_and(|by| by.contains_key(*index));
            self.nodes.iter().all(has)
        };
        first.keys().rev().find(everywhere).copied()
    }

    /// Whether no two replicas differed at one index.
    fn equal(&self) -> bool {
        let mut at: BTreeMap<u64, &wire::ReplicaDigest> = BTreeMap::new();
        self.digests.values().flatten().all(|(index, digest)| {
            let first = at.entry(*index).or_insert(digest);
            (&first.digest, first.points, &first.vectors) == (&digest.digest, digest.points, &digest.vectors)
        })
    }
}

/// Resident bytes and processor milliseconds of this process, where `/proc` tells.
#[allow(
    clippy::disallowed_methods,
    reason = "what the system says of the process is shown, and nothing follows from it"
)]
pub(crate) fn own_use() -> (u64, u64) {
    /// Linux counts processor time towards programs in hundredths of a second, on every architecture.
    const TICK_MS: u64 = 10;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in brackets, blanks and all; utime and stime are fields 14 and 15.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    (rss.unwrap_or(0) * 1024, ticks * TICK_MS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn seen(digests: &[(u64, u64, &'static [u8])]) -> Seen {
        let mut seen = Seen { nodes: [NodeId(1), NodeId(2), NodeId(3)].into(), ..Default::default() };
        for (node, index, digest) in digests {
            let digest = wire::ReplicaDigest { index: *index, digest: digest.to_vec().into(), ..Default::default() };
            seen.digests.entry(NodeId(*node)).or_default().insert(*index, digest);
        }
        seen
    }

    #[test]
    fn replicas_are_compared_at_one_index_only() {
        let agree = seen(&[(1, 5, b"a"), (2, 5, b"a"), (3, 4, b"x"), (3, 5, b"a")]);
        assert_eq!((agree.common_index(), agree.equal()), (Some(5), true));
        let busy = seen(&[(1, 5, b"a"), (2, 6, b"b"), (3, 7, b"c")]);
        assert_eq!((busy.common_index(), busy.equal()), (None, true));
        let differ = seen(&[(1, 5, b"a"), (2, 5, b"b")]);
        assert_eq!((differ.common_index(), differ.equal()), (None, false), "two that differ tell, without the third");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_knows_what_it_uses() {
        assert!(own_use().0 > 1 << 20);
    }
}
