//! Answers to different questions at equal positions agree: a count with the points that a scroll shows there.
use std::collections::BTreeMap;

use nearring_proto::ids::ShardId;

use super::Evidence;
use crate::history::{Kind, Look, Violation};
use crate::model::Group;
use crate::workload::records_of;

/// The property.
const PROPERTY: &str = "counts and scrolls at one position agree";

/// The state that was asked about: the index of every shard, and the filter.
type State = (Vec<(ShardId, u64)>, Option<Group>);

/// The pairs that disagree.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut counted: BTreeMap<State, (u64, &Look)> = BTreeMap::new();
    let mut violations = Vec::new();
    for look in evidence.looks {
        let count = match look.kind {
            Kind::Count => look.count,
            Kind::Scroll => records_of(&look.found),
            _ => continue,
        };
        let index: Vec<(ShardId, u64)> = look.shards.iter().map(|(shard, at)| (*shard, at.index)).collect();
        if !look.upto.iter().map(|(shard, index)| (*shard, *index)).eq(index.iter().copied()) {
            continue; // pages of different moments
        }
        let (first, other) = *counted.entry((index, look.group)).or_insert((count, look));
        if first != count {
            let what = format!(
                "{first} by {:?} at [{}, {}], {count} by {:?} at [{}, {}], both at {:?}",
                other.kind, other.asked, other.answered, look.kind, look.asked, look.answered, look.shards
            );
            violations.push(Violation { property: PROPERTY, what, operations: Vec::new() });
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::{judged, sight};
    use super::*;

    #[test]
    fn a_wrong_count_is_found() {
        let scroll = Look { kind: Kind::Scroll, ..sight(1, 10, Some((1, 9))) };
        let count = |count, index| Look { kind: Kind::Count, count, ..sight(3, index, None) };
        assert_eq!(judged(violations, &[], &[scroll.clone(), count(1, 10), count(0, 11)]).len(), 0);
        assert_eq!(judged(violations, &[], &[scroll.clone(), count(2, 10)]).len(), 1);
        let other = Look { group: Some(1), ..count(0, 10) };
        assert_eq!(judged(violations, &[], &[scroll, other]).len(), 0, "through a filter");
    }
}
