//! Which shards an answer rests on.
use crate::ids::{NodeId, ShardId};

/// What became of one shard.
#[derive(Clone, PartialEq, Debug)]
pub enum ShardCoverage {
    /// It answered.
    Searched {
        /// Whose replica.
        node: NodeId,
        /// The applied index it answered at.
        index: u64,
        /// Content hashes of the installed segments it searched, in order.
        segments: Vec<bytes::Bytes>,
    },
    /// It was not asked.
    Skipped {
        /// Expected share of the true top k that lies there.
        estimated_loss: f32,
    },
    /// It could not be reached in time.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Coverage of one answer, by shard.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Coverage(pub std::collections::BTreeMap<ShardId, ShardCoverage>);

impl Coverage {
    /// Whether every shard answered.
    pub fn is_full(&self) -> bool {
        self.0.values().all(|shard| matches!(shard, ShardCoverage::Searched { .. }))
    }
}
