//! Positions and read tokens.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::ShardId;

/// A log position of one shard. Shard ids are never reused, so the pair names one state of one group for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    /// The shard.
    pub shard: ShardId,
    /// Its applied log index.
    pub index: u64,
}

/// What a caller has seen: the highest position per shard. A read `after` it sees at least as much.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReadToken(BTreeMap<ShardId, u64>);

impl ReadToken {
    /// Adds what another answer showed; positions never go back.
    pub fn observe(&mut self, position: Position) {
        let index = self.0.entry(position.shard).or_default();
        *index = (*index).max(position.index);
    }

    /// The index to wait for on `shard`; 0 where nothing was seen of it.
    pub fn index_of(&self, shard: ShardId) -> u64 {
        self.0.get(&shard).copied().unwrap_or(0)
    }

    /// Every position, by shard.
    pub fn positions(&self) -> impl Iterator<Item = Position> + '_ {
        self.0.iter().map(|(shard, index)| Position { shard: *shard, index: *index })
    }

    /// Forgets shards that are gone.
    pub fn retain(&mut self, mut keep: impl FnMut(ShardId) -> bool) {
        self.0.retain(|shard, _| keep(*shard));
    }
}

impl FromIterator<Position> for ReadToken {
    fn from_iter<T: IntoIterator<Item = Position>>(positions: T) -> Self {
        let mut token = Self::default();
        positions.into_iter().for_each(|position| token.observe(position));
        token
    }
}

/// How fresh a read must be (DESIGN §6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadLevel {
    /// Any replica, as it stands.
    Eventual,
    /// At or after the caller's token.
    Session,
    /// At or after every write acknowledged before the read began, by anyone.
    Linearizable,
}
