//! What must hold of every history, one property a file. All are pure: a history in, violations out.
//!
//! [`linearizable`] asks whether each point is a linearizable object; [`prefix`], whether every answer is what the log holds
//! up to the position that the answer names, which no client could see and which holds at every read level; [`sessions`],
//! whether the position that was named is one that the level allows. [`batches`], [`one_effect`], [`counts`] and
//! [`replicas`] compare answers with one another. What an answer shows wrongly by itself is complained about where it is
//! received, in [`crate::workload`].
use std::collections::BTreeMap;

use nearring_proto::ids::ShardId;

use crate::history::{Look, Operation, Violation};
use crate::model::{Key, Op, Outcome};
use crate::workload::Homes;

pub mod batches;
pub mod counts;
pub mod linearizable;
pub mod one_effect;
pub mod prefix;
pub mod replicas;
pub mod sessions;

/// Everything that a run's clients saw.
pub struct Evidence<'a> {
    /// In the order asked.
    pub operations: &'a [Operation],
    /// In the order answered.
    pub looks: &'a [Look],
    /// Where keys live.
    pub homes: &'a Homes,
    /// Every key there may be.
    pub keys: &'a [Key],
}

/// Judges by every property.
pub fn judge(evidence: &Evidence<'_>) -> Vec<Violation> {
    [
        linearizable::violations(evidence),
        prefix::violations(evidence),
        sessions::violations(evidence),
        batches::violations(evidence),
        one_effect::violations(evidence),
        counts::violations(evidence),
        replicas::violations(evidence),
    ]
    .concat()
}

impl Evidence<'_> {
    /// The operations on each point, in the order asked.
    fn by_key(&self) -> BTreeMap<Key, Vec<&Operation>> {
        let mut keys: BTreeMap<Key, Vec<&Operation>> = self.keys.iter().map(|key| (*key, Vec::new())).collect();
        for operation in self.operations {
            keys.entry(operation.key).or_default().push(operation);
        }
        keys
    }
}

/// Whether a look says of a point what it is or that it is not there; through a filter perhaps only that it is not in the
/// group.
fn covers(look: &Look, key: Key, shard: ShardId) -> bool {
    look.kind != crate::history::Kind::Count
        && look.shards.contains_key(&shard)
        && look.keys.as_ref().is_none_or(|keys| keys.contains(&key))
}

/// Whether the operation may have removed the point.
fn may_remove(operation: &Operation) -> bool {
    let removes = matches!(operation.op, Op::Delete | Op::DeleteIf(_) | Op::DeleteGroup(_) | Op::DeleteDocument);
    removes && matches!(operation.outcome, Outcome::Done | Outcome::Unknown)
}

/// For every shard, the highest log index that any answer had named up to each moment. An index that an answer names is
/// applied, hence committed: whatever is asked later is logged behind it.
struct Known(BTreeMap<ShardId, Vec<(u64, u64)>>);

impl Known {
    /// What all answers named, or those of one client.
    fn new(evidence: &Evidence<'_>, client: Option<u64>) -> Self {
        let mut named: BTreeMap<ShardId, Vec<(u64, u64)>> = BTreeMap::new();
        let ours = |by: u64| client.is_none_or(|client| client == by);
        for operation in evidence.operations.iter().filter(|operation| ours(operation.client)) {
            if let (Some(answered), Some(entry)) = (operation.answered, operation.entry) {
                named.entry(evidence.homes.of(operation.key)).or_default().push((answered, entry));
            }
        }
        for look in evidence.looks.iter().filter(|look| ours(look.client)) {
            for (shard, index) in &look.upto {
                named.entry(*shard).or_default().push((look.answered, *index));
            }
        }
        for named in named.values_mut() {
            named.sort_unstable();
            let mut highest = 0;
            for (_, index) in named.iter_mut() {
                highest = highest.max(*index);
                *index = highest;
            }
        }
        Self(named)
    }

    /// The highest index that had been named before `moment`; 0 where none had.
    fn before(&self, shard: ShardId, moment: u64) -> u64 {
        let Some(named) = self.0.get(&shard) else { return 0 };
        let at = named.partition_point(|(answered, _)| *answered < moment);
        at.checked_sub(1).and_then(|at| named.get(at)).map_or(0, |(_, index)| *index)
    }
}

#[cfg(test)]
mod testing {
    //! Histories by hand.
    use std::collections::BTreeMap;

    use nearring_proto::ids::ShardId;
    use nearring_proto::position::ReadLevel;

    use super::Evidence;
    use crate::history::{At, Found, Kind, Look, Operation, Violation};
    use crate::model::{Key, Op, Outcome, Seen};
    use crate::workload::Homes;

    pub(super) fn op(op: Op, asked: u64, answered: u64, outcome: Outcome) -> Operation {
        let answered = (outcome != Outcome::Unknown).then_some(answered);
        Operation { client: 0, request: asked, key: 1, op, asked, answered, outcome, entry: None }
    }

    pub(super) fn done(op_: Op, asked: u64, answered: u64, entry: u64) -> Operation {
        Operation { entry: Some(entry), ..op(op_, asked, answered, Outcome::Done) }
    }

    /// A look at `key` 1 at an index: the value and the version it has.
    pub(super) fn sight(asked: u64, index: u64, found: Option<(u64, u64)>) -> Look {
        let found = found.map(|(value, version)| (1, Found { seen: Seen::whole(value), version }));
        Look {
            client: 0,
            kind: Kind::Get,
            level: ReadLevel::Eventual,
            group: None,
            keys: None,
            asked,
            answered: asked + 1,
            shards: [(ShardId(1), At { index, node: 0, segments: Vec::new() })].into(),
            upto: [(ShardId(1), index)].into(),
            found: found.into_iter().collect::<BTreeMap<Key, Found>>(),
            count: 0,
            hits: Vec::new(),
            farthest: None,
        }
    }

    /// What a property says of a collection of one shard.
    pub(super) fn judged(
        property: impl Fn(&Evidence<'_>) -> Vec<Violation>,
        operations: &[Operation],
        looks: &[Look],
    ) -> Vec<String> {
        let homes = Homes::new(vec![ShardId(1)]);
        let evidence = Evidence { operations, looks, homes: &homes, keys: &[1, 2] };
        property(&evidence).into_iter().map(|violation| violation.what).collect()
    }
}
