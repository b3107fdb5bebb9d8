//! The points of a batch that live on one shard change together, or not at all: whoever sees one of them as the batch
//! wrote it, at some position, sees the others as it wrote them, or as something later made them.
use std::collections::BTreeMap;

use nearring_proto::ids::ShardId;

use super::{Evidence, covers, may_remove};
use crate::history::{Operation, Violation};
use crate::model::{Op, Seen};

/// The property.
const PROPERTY: &str = "a batch on one shard is all or nothing";

/// The batches of which a part was seen without the rest.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut batches: BTreeMap<(u64, ShardId), Vec<&Operation>> = BTreeMap::new();
    // Without preconditions, so that every point of the batch must change.
    for operation in evidence.operations.iter().filter(|operation| matches!(operation.op, Op::Put(_))) {
        batches.entry((operation.request, evidence.homes.of(operation.key))).or_default().push(operation);
    }
    let by_key = evidence.by_key();
    let all_on = |key: u64| by_key.get(&key).into_iter().flatten();
    let mut violations = Vec::new();
    for ((request, shard), batch) in batches.into_iter().filter(|(_, batch)| batch.len() > 1) {
        for look in
            evidence.looks.iter().filter(|look| look.upto.get(&shard) == look.shards.get(&shard).map(|at| &at.index))
        {
            let seen = batch.iter().find_map(|operation| {
                let Op::Put(value) = operation.op else { return None };
                let found = look.found.get(&operation.key).filter(|found| found.seen == Seen::whole(value))?;
                // Unmarking may give a point back the looks that it had, with a later version.
                let comes_back = all_on(operation.key).any(|other| other.op == Op::Unmark);
                (!comes_back).then_some((operation.key, found.version))
            });
            let Some((key, version)) = seen else { continue };
            let without = batch.iter().find(|other| match look.found.get(&other.key) {
                Some(found) => found.version < version,
                None => {
                    look.group.is_none()
                        && covers(look, other.key, shard)
                        && !all_on(other.key).any(|later| {
                            may_remove(later)
                                && later.asked < look.answered
                                && later.entry.is_none_or(|at| at > version)
                        })
                }
            });
            if let Some(other) = without {
                let what = format!(
                    "request {request} wrote points {key} and {} at {version}; client {} saw at [{}, {}] {:?} and {:?}",
                    other.key,
                    look.client,
                    look.asked,
                    look.answered,
                    look.found.get(&key),
                    look.found.get(&other.key)
                );
                let operations = all_on(other.key).map(|operation| (*operation).clone()).collect();
                violations.push(Violation { property: PROPERTY, what, operations });
                break;
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::{done, judged, sight};
    use super::*;
    use crate::history::{Found, Look};
    use crate::model::Outcome;

    #[test]
    fn half_a_batch_is_found_and_a_later_write_explains() {
        let put = |key, value, asked, entry| Operation {
            key,
            request: asked,
            ..done(Op::Put(value), asked, asked + 1, entry)
        };
        let before = put(2, 9, 1, 5);
        let batch = [put(1, 1, 3, 10), put(2, 2, 3, 10)];
        let operations = [vec![before.clone()], batch.to_vec()].concat();
        let look = |second: Option<(u64, u64)>| {
            let mut look = sight(8, 12, Some((1, 10)));
            look.found.extend(second.map(|(value, version)| (2, Found { seen: Seen::whole(value), version })));
            look
        };
        let found = |operations: &[Operation], look: Look| judged(violations, operations, &[look]).len();
        assert_eq!(found(&operations, look(Some((2, 10)))), 0);
        assert_eq!(found(&operations, look(Some((9, 5)))), 1);
        assert_eq!(found(&operations, look(None)), 1);
        let delete = Operation { key: 2, outcome: Outcome::Unknown, entry: None, ..done(Op::Delete, 5, 6, 0) };
        assert_eq!(found(&[operations, vec![delete]].concat(), look(None)), 0);
    }
}
