//! Every answer is what each shard's log holds up to the position that the answer names: nothing later, nothing missing,
//! and the same for everybody at every read level.
//!
//! A point seen at index p with version v (the index of the entry that wrote it) was not changed by any entry in (v, p]. So
//! its sightings make intervals [v, p] in which nothing else may be seen of it: no other version, no absence. A write that
//! was acknowledged at entry e took effect in a window that ends with e and begins behind everything that any answer had
//! named when it was asked; no interval may reach across the whole window, for then the write was lost, or what it removed
//! has come back. (A repeated request is answered with the entry of the repeat: hence a window.) And an acknowledged point
//! may only be absent at or after e if something may have removed it.
//!
//! No search is involved, and no order between shards: it fits reads that promise less than linearizability, and it tells
//! what went wrong where the search for an order only says that there is none.
use std::collections::BTreeMap;

use nearring_proto::ids::ShardId;

use super::{Evidence, Known, covers, may_remove};
use crate::history::{Kind, Look, Operation, Violation};
use crate::model::{DOCUMENTS, Group, Key, Op, Outcome, Seen, Value};
use crate::workload::{distance, vector};

/// The property.
const PROPERTY: &str = "an answer is the log's prefix at the position it names";

/// The sightings and writes that contradict each other.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let known = Known::new(evidence, None);
    let mut violations = Vec::new();
    for (key, operations) in evidence.by_key() {
        let shard = evidence.homes.of(key);
        let mut wrong = |what: String| {
            let operations = operations.iter().map(|operation| (*operation).clone()).collect();
            violations.push(Violation { property: PROPERTY, what: format!("point {key}: {what}"), operations });
        };
        let sightings = Sightings::new(evidence, key, shard, &mut wrong);
        sightings.against_each_other(&mut wrong);
        for operation in &operations {
            if let Some(window) = Window::new(operation, shard, &known) {
                sightings.against_write(operation, window, &operations, &mut wrong);
            }
        }
    }
    violations
}

/// A point seen to be there.
#[derive(Clone, Debug)]
struct Interval {
    seen: Seen,
    /// The last index at which this version was seen.
    upto: u64,
    /// Who saw it there, when.
    by: String,
}

/// A point seen to be absent, or outside of a group, or not among the nearest.
#[derive(Debug)]
struct Absence {
    at: u64,
    group: Option<Group>,
    /// Absent only as something nearer than this to the vector of this value.
    nearer: Option<(Value, f32)>,
    answered: u64,
    by: String,
}

struct Sightings {
    /// By version.
    there: BTreeMap<u64, Interval>,
    absent: Vec<Absence>,
}

/// Says what is wrong.
type Wrong<'a> = &'a mut dyn FnMut(String);

impl Sightings {
    fn new(evidence: &Evidence<'_>, key: Key, shard: ShardId, wrong: Wrong<'_>) -> Self {
        let (mut there, mut absent) = (BTreeMap::<u64, Interval>::new(), Vec::new());
        for look in evidence.looks {
            let nearer = match (look.kind, look.farthest) {
                (Kind::Nearest(query, _), Some(farthest)) if key < DOCUMENTS => Some((query, farthest)),
                _ => None,
            };
            if !covers(look, key, shard) && nearer.is_none() {
                continue;
            }
            let Some(low) = look.shards.get(&shard).map(|at| at.index) else { continue };
            let high = look.upto.get(&shard).copied().unwrap_or(low);
            let by = describe(look);
            let Some(found) = look.found.get(&key) else {
                // Pages of a scroll that were read at different positions may have missed it in between.
                if low == high {
                    absent.push(Absence { at: low, group: look.group, nearer, answered: look.answered, by });
                }
                continue;
            };
            if found.version > high {
                wrong(format!("{found:?} is from the future of {by}, which was read at {high}"));
            }
            let upto = low.max(found.version);
            let interval = Interval { seen: found.seen, upto, by: by.clone() };
            let same = there.entry(found.version).or_insert(interval);
            if same.seen != found.seen {
                wrong(format!(
                    "version {} is {:?} in {} and {:?} in {by}",
                    found.version, same.seen, same.by, found.seen
                ));
            }
            if same.upto < upto {
                (same.upto, same.by) = (upto, by);
            }
        }
        Self { there, absent }
    }

    fn against_each_other(&self, wrong: Wrong<'_>) {
        for ((version, earlier), (next, later)) in self.there.iter().zip(self.there.iter().skip(1)) {
            if earlier.upto >= *next {
                wrong(format!(
                    "{:?} of version {version} is there at {} in {}, and {:?} of version {next} in {}",
                    earlier.seen, earlier.upto, earlier.by, later.seen, later.by
                ));
            }
        }
        for absence in &self.absent {
            if let Some((version, there)) = self.there.range(..=absence.at).next_back()
                && there.upto >= absence.at
                && absence.group.is_none_or(|group| there.seen.is_in(group))
                && absence.nearer.is_none_or(|(query, farthest)| {
                    // Scores are rounded; what is as far may be left out.
                    distance(&vector(query), &vector(there.seen.vector)) < farthest * (1.0 - 1e-4)
                })
            {
                wrong(format!(
                    "missing at {} in {}, but {:?} of version {version} is there up to {} in {}",
                    absence.at, absence.by, there.seen, there.upto, there.by
                ));
            }
        }
    }

    fn against_write(&self, write: &Operation, window: Window, all: &[&Operation], wrong: Wrong<'_>) {
        let Window { from, upto } = window;
        if let Some((version, there)) = self.there.range(..from).next_back()
            && there.upto >= upto
        {
            let what = if may_remove(write) { "is back" } else { "has outlived what replaced it" };
            wrong(format!(
                "{:?} of version {version} {what}: it is there at {} in {}, after {write}",
                there.seen, there.upto, there.by
            ));
        }
        if may_remove(write) {
            return;
        }
        for absence in self
            .absent
            .iter()
            .filter(|absence| absence.at >= upto && absence.group.is_none() && absence.nearer.is_none())
        {
            // What is seen later may have come back; what matters is whether it may have gone.
            let removed = |other: &&&Operation| {
                may_remove(other)
                    && other.asked < absence.answered
                    && other.entry.is_none_or(|entry| entry >= from)
                    && (other.outcome == Outcome::Unknown
                        || other.answered.is_none_or(|answered| answered > write.asked))
            };
            if !all.iter().any(|other| removed(&other)) {
                wrong(format!("acknowledged and lost: missing at {} in {}, after {write}", absence.at, absence.by));
                return;
            }
        }
    }
}

fn describe(look: &Look) -> String {
    let Look { client, kind, level, group, asked, answered, .. } = look;
    let group = group.map(|group| format!(" of group {group}")).unwrap_or_default();
    format!("a {level:?} {kind:?}{group} by client {client} at [{asked}, {answered}]")
}

/// Where in the log a write took effect.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: u64,
    upto: u64,
}

impl Window {
    /// `None` where it is not known to have changed the point.
    fn new(operation: &Operation, shard: ShardId, known: &Known) -> Option<Self> {
        let changed = operation.op.writes()
            && operation.outcome == Outcome::Done
            // These answer alike where nothing was there.
            && !matches!(operation.op, Op::DeleteGroup(_));
        let upto = operation.entry.filter(|_| changed)?;
        Some(Self { from: known.before(shard, operation.asked) + 1, upto })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{done, judged, op, sight};
    use super::*;
    use crate::model::group_of;

    fn wrong(operations: &[Operation], looks: &[Look]) -> Vec<String> {
        judged(violations, operations, looks)
    }

    #[test]
    fn what_fits_the_log_is_fine() {
        let operations = [done(Op::Put(1), 1, 2, 10), done(Op::Put(2), 3, 4, 12), done(Op::Delete, 5, 6, 20)];
        let looks = [
            sight(3, 10, Some((1, 10))),
            sight(7, 11, Some((1, 10))), // an old position, named as such
            sight(9, 15, Some((2, 12))),
            sight(11, 20, None),
            sight(13, 5, None),
        ];
        assert_eq!(wrong(&operations, &looks), Vec::<String>::new());
    }

    #[test]
    fn lost_back_stale_future_and_mixed_answers_are_named() {
        let put = done(Op::Put(1), 1, 2, 10);
        let twice = [put.clone(), done(Op::Put(2), 3, 4, 12)];
        let deleted = [put.clone(), done(Op::Delete, 3, 4, 12)];
        let cases: [(&[Operation], Vec<Look>, &str); 8] = [
            (&twice, vec![sight(5, 12, Some((1, 10)))], "outlived what replaced it"),
            (&deleted, vec![sight(5, 12, Some((1, 10)))], "is back"),
            (&twice, vec![sight(5, 12, None)], "acknowledged and lost"),
            (&twice, vec![sight(5, 11, Some((2, 12)))], "from the future"),
            (&twice, vec![sight(5, 14, Some((2, 12))), sight(7, 13, None)], "missing at 13"),
            (&twice, vec![sight(5, 11, Some((1, 10))), sight(7, 11, Some((2, 11)))], "is there at 11"),
            (&[], vec![sight(5, 11, Some((1, 10))), sight(7, 11, Some((2, 10)))], "version 10 is"),
            (&[op(Op::Put(3), 1, 2, Outcome::Unknown), put.clone()], vec![sight(5, 10, None)], "acknowledged and lost"),
        ];
        for (operations, looks, expected) in cases {
            let said = wrong(operations, &looks);
            assert!(said.iter().any(|what| what.contains(expected)), "{expected}: {said:?}");
        }
    }

    #[test]
    fn what_is_nearer_than_the_last_hit_must_be_among_them() {
        let there = sight(3, 12, Some((5, 10)));
        let nearest = |farthest: f32| Look {
            kind: Kind::Nearest(4, 1),
            keys: Some(Vec::new()),
            farthest: Some(farthest),
            ..sight(5, 11, None)
        };
        let far = distance(&vector(4), &vector(5));
        assert_eq!(wrong(&[], &[there.clone(), nearest(far * 0.9)]), Vec::<String>::new());
        assert_eq!(wrong(&[], &[there.clone(), nearest(far * 1.1)]).len(), 1);
        let of_group = |group| Look { group: Some(group), ..nearest(far * 1.1) };
        assert_eq!(wrong(&[], &[there.clone(), of_group(group_of(5))]).len(), 1);
        assert_eq!(wrong(&[], &[there, of_group(group_of(5) + 1)]), Vec::<String>::new());
    }

    #[test]
    fn an_open_delete_may_explain_an_absence_and_a_filter_another_group() {
        let put = done(Op::Put(1), 1, 2, 10);
        let open = op(Op::Delete, 3, 0, Outcome::Unknown);
        assert_eq!(wrong(&[put.clone(), open], &[sight(5, 12, None)]), Vec::<String>::new());
        let filtered = |group: Group| Look { group: Some(group), ..sight(5, 12, None) };
        let there = sight(7, 13, Some((1, 10)));
        assert_eq!(wrong(std::slice::from_ref(&put), &[filtered(0), there.clone()]), Vec::<String>::new());
        assert_eq!(wrong(&[put], &[filtered(1), there]).len(), 1, "it is in that group");
    }
}
