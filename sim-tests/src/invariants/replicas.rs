//! Replicas at equal positions give equal answers, to the bit: an exact search by what is applied, an approximate one also
//! by the segments that the answer names, however narrowly their graphs were walked.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use nearring_proto::ids::ShardId;

use super::Evidence;
use crate::history::{At, Kind, Look, Violation};
use crate::model::{Group, Key};

/// The property.
const PROPERTY: &str = "replicas at one position answer alike";

/// What an answer follows from: the question, the filter, and of every shard that was read its index, and its segments where
/// the search was approximate.
type Cause = (Kind, Option<Group>, Vec<(ShardId, u64, Vec<Vec<u8>>)>);

/// Hits, and who gave them.
struct Answer<'a> {
    shards: Vec<(ShardId, &'a At)>,
    hits: Vec<(Key, u32)>,
}

impl Answer<'_> {
    fn nodes(&self) -> Vec<u64> {
        self.shards.iter().map(|(_, at)| at.node).collect()
    }
}

/// The searches that were answered differently.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut answers: BTreeMap<Cause, Answer<'_>> = BTreeMap::new();
    let mut violations = Vec::new();
    for look in evidence.looks {
        for answer in comparable(evidence, look) {
            let exact = matches!(look.kind, Kind::Search(_, true) | Kind::Words(_));
            let segments = |at: &At| if exact { Vec::new() } else { at.segments.clone() };
            let read = answer.shards.iter().map(|(shard, at)| (*shard, at.index, segments(at))).collect();
            match answers.entry((look.kind, look.group, read)) {
                Entry::Vacant(place) => drop(place.insert(answer)),
                Entry::Occupied(first) if first.get().hits == answer.hits => {}
                Entry::Occupied(first) => {
                    let (cause, first) = (first.key(), first.get());
                    let (nodes, others) = (first.nodes(), answer.nodes());
                    let what = format!(
                        "{cause:?}: {:?} by nodes {nodes:?}, {:?} by nodes {others:?}",
                        first.hits, answer.hits
                    );
                    violations.push(Violation { property: PROPERTY, what, operations: Vec::new() });
                }
            }
        }
    }
    violations
}

/// What can be compared of a look: each shard's hits where all were wanted; otherwise all hits together, since those of one
/// shard left less room for those of the others.
fn comparable<'a>(evidence: &Evidence<'_>, look: &'a Look) -> Vec<Answer<'a>> {
    let shards = look.shards.iter().map(|(shard, at)| (*shard, at));
    match look.kind {
        Kind::Search(..) | Kind::Words(_) => {
            let of_shard = |shard: ShardId| {
                look.hits.iter().filter(|hit| evidence.homes.of(hit.0) == shard).copied().collect::<Vec<_>>()
            };
            shards.map(|(shard, at)| Answer { shards: vec![(shard, at)], hits: of_shard(shard) }).collect()
        }
        Kind::Nearest(..) | Kind::Walked(..) => vec![Answer { shards: shards.collect(), hits: look.hits.clone() }],
        Kind::Get | Kind::Scroll | Kind::Count => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{judged, sight};
    use super::*;

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
        let walked = |hits: &[(Key, u32)], segment| Look { kind: Kind::Walked(3, 1), ..look(false, hits, segment) };
        assert_eq!(found(&[walked(&[(1, 5)], 1), walked(&[(1, 5)], 1), walked(&[(2, 5)], 2)]), 0);
        assert_eq!(found(&[walked(&[(1, 5)], 1), walked(&[(2, 5)], 1)]), 1);
    }
}
