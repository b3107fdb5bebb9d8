//! Replicas at equal positions give equal answers, to the bit: an exact search by what is applied, an approximate one also
//! by the segments that the answer names.
use std::collections::BTreeMap;

use nearring_proto::ids::ShardId;

use super::Evidence;
use crate::history::{Kind, Violation};
use crate::model::{Group, Key};

/// The property.
const PROPERTY: &str = "replicas at one position answer alike";

/// What an answer of one shard follows from: shard, index, segments, kind of search, filter.
type Cause = (ShardId, u64, Vec<Vec<u8>>, Kind, Option<Group>);

/// The searches that were answered differently.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut answers: BTreeMap<Cause, (Vec<(Key, u32)>, u64)> = BTreeMap::new();
    let mut violations = Vec::new();
    for look in evidence.looks {
        let exact = match look.kind {
            Kind::Search(_, exact) => exact,
            Kind::Words(_) => true,
            _ => continue,
        };
        for (shard, at) in &look.shards {
            let segments = if exact { Vec::new() } else { at.segments.clone() };
            let cause = (*shard, at.index, segments, look.kind, look.group);
            let of_shard = |hit: &&(Key, u32)| evidence.homes.of(hit.0) == *shard;
            let hits: Vec<(Key, u32)> = look.hits.iter().filter(of_shard).copied().collect();
            let (first, node) = answers.entry(cause.clone()).or_insert_with(|| (hits.clone(), at.node));
            if *first != hits {
                let what = format!("{cause:?}: {first:?} by node {node}, {hits:?} by node {}", at.node);
                violations.push(Violation { property: PROPERTY, what, operations: Vec::new() });
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::{judged, sight};
    use super::*;
    use crate::history::Look;

    #[test]
    fn answers_that_differ_without_a_cause_are_found() {
        let look = |exact, hits: &[(Key, u32)], segment: u8| {
            let mut look = Look { kind: Kind::Search(3, exact), hits: hits.to_vec(), ..sight(1, 10, None) };
            look.shards.values_mut().for_each(|at| at.segments = vec![vec![segment]]);
            look
        };
        let found = |looks: &[Look]| judged(violations, &[], looks).len();
        assert_eq!(found(&[look(false, &[(1, 5)], 1), look(false, &[(1, 5)], 1), look(false, &[(1, 6)], 2)]), 0);
        assert_eq!(found(&[look(false, &[(1, 5)], 1), look(false, &[(1, 6)], 1)]), 1);
        assert_eq!(found(&[look(false, &[(1, 5), (2, 5)], 1), look(false, &[(2, 5), (1, 5)], 1)]), 1, "the order, too");
        assert_eq!(found(&[look(true, &[(1, 5)], 1), look(true, &[(1, 6)], 2)]), 1, "exactness knows no segments");
        let words = |hits: &[(Key, u32)], segment: u8| Look { kind: Kind::Words(3), ..look(true, hits, segment) };
        assert_eq!(found(&[words(&[(1, 5)], 1), words(&[(1, 6)], 2)]), 1, "nor do sparse vectors");
        assert_eq!(found(&[words(&[(1, 5)], 1), look(true, &[(1, 6)], 1)]), 0, "another question");
    }
}
