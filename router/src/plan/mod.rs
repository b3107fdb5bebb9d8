//! Which shards a read asks, and how fresh their answers must be. [core]
//!
//! Points are placed by the hash of their ids, so every shard is equally likely to hold a neighbour: a search asks all
//! of them. A point read asks the home shards only.
pub mod idf;

use std::collections::{BTreeMap, BTreeSet};

use nearring_proto::collection::Collection;
use nearring_proto::ids::{NodeId, ShardId};
use nearring_proto::placement::table::Table;
use nearring_proto::position::{ReadLevel, ReadToken};

/// What a caller asks of a read.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReadOptions {
    /// `None` = the operation's default.
    pub level: Option<ReadLevel>,
    /// What the caller has seen; counts for session and linearizable reads.
    pub after: ReadToken,
    /// `None` = the router's default.
    pub deadline: Option<std::time::Duration>,
    /// Only this node's replicas may answer.
    pub replica_node: Option<NodeId>,
    /// An answer that does not cover every shard is an error.
    pub full_coverage: bool,
}

/// Whom to ask for what.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The shards asked, each with the nodes that may answer.
    pub shards: BTreeMap<ShardId, Vec<NodeId>>,
    /// How fresh.
    pub level: ReadLevel,
    /// The index that each shard must have applied; shards without one are left out.
    pub after: BTreeMap<ShardId, u64>,
    /// Only this node.
    pub pinned: Option<NodeId>,
}

impl Plan {
    /// Plans a read of `only` (`None` = every shard) of a collection.
    pub fn new(
        table: &Table,
        collection: &Collection,
        options: &ReadOptions,
        default: ReadLevel,
        only: Option<&BTreeSet<ShardId>>,
    ) -> Self {
        let level = options.level.unwrap_or(default);
        let asked = collection.shards.iter().filter(|shard| only.is_none_or(|only| only.contains(shard)));
        let shards: BTreeMap<_, _> =
            asked.map(|shard| (*shard, replicas(table, *shard, options.replica_node))).collect();
        let after = match level {
            ReadLevel::Eventual => BTreeMap::new(),
            ReadLevel::Session | ReadLevel::Linearizable => {
                let wanted = shards.keys().map(|shard| (*shard, options.after.index_of(*shard)));
                wanted.filter(|(_, index)| *index > 0).collect()
            }
        };
        Self { shards, level, after, pinned: options.replica_node }
    }
}

/// The nodes that may answer for a shard.
pub fn replicas(table: &Table, shard: ShardId, pinned: Option<NodeId>) -> Vec<NodeId> {
    let replicas = table.shards.get(&shard).map(|shard| shard.replicas.as_slice()).unwrap_or_default();
    let nodes = replicas.iter().map(|replica| replica.node);
    nodes.filter(|node| pinned.is_none_or(|pinned| pinned == *node)).collect()
}
