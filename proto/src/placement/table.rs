//! The placement table and the changes that lead from one epoch to the next.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::collection::Collection;
use crate::ids::{ClusterId, CollectionId, Epoch, Incarnation, NodeId, ReplicaId, ShardId};

/// A storage node as the cluster knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Which life of its data directory is the current one.
    pub incarnation: Incarnation,
    /// `host:port` of its gRPC server.
    pub address: String,
    /// Failure domain; "" where none is given.
    pub zone: String,
}

/// How far a shard's life has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ShardState {
    /// Its group may be initialised, with exactly the replicas listed; it takes no requests yet.
    Creating,
    /// It serves.
    Active,
}

/// One shard's row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shard {
    /// Its id.
    pub id: ShardId,
    /// Whose shard it is.
    pub collection: CollectionId,
    /// How far it has come.
    pub state: ShardState,
    /// Who is to hold it: intent. The group's own membership is the truth.
    pub replicas: Vec<ReplicaId>,
    /// The epoch its versions carry.
    pub home_epoch: u64,
}

/// Everything the meta group decides, as of one of its log positions. Cheap to share behind an `Arc`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Whose table it is.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub epoch: Epoch,
    /// By id.
    pub nodes: BTreeMap<NodeId, Node>,
    /// By id.
    pub collections: BTreeMap<CollectionId, Collection>,
    /// By id.
    pub shards: BTreeMap<ShardId, Shard>,
    /// The next shard or collection id.
    pub next_id: u64,
}
