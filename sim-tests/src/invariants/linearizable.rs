//! Each point is a linearizable object: there is an order of its operations that respects real time and explains every
//! answer.
//!
//! Judged by `todc-utils`, whose checker is Wing and Gong's search with Lowe's memory (as in Horn and Kroening,
//! arXiv:1504.00204). What has an unknown outcome may take effect any time after it was asked, or never: its response is
//! put behind everything else, where an effect is seen by nobody. Such operations are what makes the search long, so those
//! that can explain nothing are left out first.
use std::collections::BTreeSet;

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::Evidence;
use crate::history::{Operation, Violation};
use crate::model::{Op, Outcome, Seen, Value};

/// The property.
const PROPERTY: &str = "each point is linearizable";

/// The points whose operations no order explains.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let judge = |(key, operations): (u64, Vec<&Operation>)| {
        (!is_linearizable(&operations)).then(|| Violation {
            property: PROPERTY,
            what: format!("no order of the operations on point {key} explains every answer"),
            operations: operations.into_iter().cloned().collect(),
        })
    };
    evidence.by_key().into_iter().filter_map(judge).collect()
}

/// A point, as the checker wants it.
struct Point;

impl Specification for Point {
    type State = Option<Seen>;
    type Operation = (Op, Outcome);

    fn init() -> Self::State {
        None
    }

    fn apply((op, outcome): &Self::Operation, state: &Self::State) -> (bool, Self::State) {
        match op.after(*state, *outcome) {
            Some(after) => (true, after),
            None => (false, *state),
        }
    }
}

fn is_linearizable(operations: &[&Operation]) -> bool {
    let relevant = relevant(operations);
    if relevant.is_empty() {
        return true;
    }
    // (moment, response before question, which)
    let mut events = Vec::with_capacity(relevant.len() * 2);
    for (which, operation) in relevant.iter().enumerate() {
        events.push((operation.asked, true, which));
        events.push((ends(operation).unwrap_or(u64::MAX), false, which));
    }
    events.sort_unstable();
    let actions = events.into_iter().filter_map(|(_, asks, which)| {
        let operation = relevant.get(which)?;
        let what = (operation.op, operation.outcome);
        Some((which, if asks { Action::Call(what) } else { Action::Response(what) }))
    });
    WGLChecker::<Point>::is_linearizable(History::from_actions(actions.collect()))
}

/// When an operation was over; `None`: it may take effect at any time, or never.
fn ends(operation: &Operation) -> Option<u64> {
    operation.answered.filter(|_| operation.outcome != Outcome::Unknown)
}

/// Leaves out what explains nothing.
fn relevant<'a>(operations: &[&'a Operation]) -> Vec<&'a Operation> {
    let mut seen: BTreeSet<Value> = BTreeSet::new();
    // Answers that need a point to be absent, or to be there, whatever it holds.
    let (mut absence, mut existence) = (false, false);
    for operation in operations.iter().filter(|operation| operation.outcome != Outcome::Failed) {
        match (operation.op, operation.outcome) {
            (_, Outcome::Read(Some(found))) => seen.extend([found.vector, found.payload, found.mark]),
            (Op::Swap(expected, _) | Op::DeleteIf(expected), Outcome::Done | Outcome::Unknown) => {
                seen.extend([expected.vector, expected.payload, expected.mark]);
            }
            // Outside of a group is absent, or something else.
            (Op::Get(Some(_)), _) | (_, Outcome::Mismatch) => (absence, existence) = (true, true),
            (_, Outcome::Read(None) | Outcome::Missing) | (Op::Insert(_), Outcome::Done | Outcome::Unknown) => {
                absence = true;
            }
            (_, Outcome::Exists) => existence = true,
            // Which point it removes depends on what the point was.
            (Op::DeleteGroup(_), _) => existence = true,
            (Op::Delete | Op::Mark(_) | Op::Unmark | Op::Overwrite(_), Outcome::Done) => existence = true,
            _ => {}
        }
    }
    let keep = |operation: &&&Operation| match (operation.op, operation.outcome) {
        (_, Outcome::Failed) | (Op::Get(_), Outcome::Unknown) => false,
        (Op::Put(value) | Op::Insert(value) | Op::Swap(_, value) | Op::PutDocument(value), Outcome::Unknown) => {
            existence || seen.contains(&value)
        }
        (Op::Mark(value) | Op::Overwrite(value), Outcome::Unknown) => {
            existence || absence || seen.contains(&value) // a payload in another group, or a version that was expected
        }
        (Op::Delete | Op::DeleteIf(_) | Op::DeleteGroup(_) | Op::DeleteDocument, Outcome::Unknown) => absence,
        _ => true,
    };
    let mut relevant: Vec<&Operation> = operations.iter().filter(keep).copied().collect();
    relevant.sort_by_key(|operation| operation.asked);
    relevant
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::op;
    use super::*;
    use proptest::prelude::*;

    fn unknown(what: Op, asked: u64) -> Operation {
        op(what, asked, 0, Outcome::Unknown)
    }

    fn read(asked: u64, answered: u64, value: Option<Value>) -> Operation {
        op(Op::Get(None), asked, answered, Outcome::Read(value.map(Seen::whole)))
    }

    fn put(value: Value, asked: u64, answered: u64) -> Operation {
        op(Op::Put(value), asked, answered, Outcome::Done)
    }

    fn delete(asked: u64, answered: u64) -> Operation {
        op(Op::Delete, asked, answered, Outcome::Done)
    }

    fn is_fine(history: &[Operation]) -> bool {
        is_linearizable(&history.iter().collect::<Vec<_>>())
    }

    #[test]
    fn verdicts_by_hand() {
        assert!(is_fine(&[put(1, 1, 2), read(3, 4, Some(1)), delete(5, 6), read(7, 8, None)]));
        // A stale read, a lost write, a resurrection, a delete of nothing.
        assert!(!is_fine(&[put(1, 1, 2), put(2, 3, 4), read(5, 6, Some(1))]));
        assert!(!is_fine(&[put(1, 1, 2), read(3, 4, None)]));
        assert!(!is_fine(&[put(1, 1, 2), delete(3, 4), read(5, 6, Some(1))]));
        assert!(!is_fine(&[delete(3, 4)]));
        // Concurrent with the write, a read may see either, but not the old one after the new one.
        assert!(is_fine(&[put(1, 1, 2), put(2, 3, 9), read(4, 5, Some(1)), read(6, 7, Some(2))]));
        assert!(!is_fine(&[put(1, 1, 2), put(2, 3, 9), read(4, 5, Some(2)), read(6, 7, Some(1))]));
        // What timed out may take effect late, or never, but not before it was asked, and not twice.
        assert!(is_fine(&[put(1, 1, 2), unknown(Op::Put(2), 3), read(4, 5, Some(1)), read(6, 7, Some(2))]));
        assert!(!is_fine(&[read(1, 2, Some(2)), unknown(Op::Put(2), 3)]));
        assert!(!is_fine(&[unknown(Op::Put(2), 1), read(2, 3, Some(2)), put(3, 4, 5), read(6, 7, Some(2))]));
        // What certainly failed must not be seen.
        assert!(!is_fine(&[op(Op::Put(1), 1, 2, Outcome::Failed), read(3, 4, Some(1))]));
        // Of two inserts one wins.
        let insert = |value, outcome| op(Op::Insert(value), 1, 4, outcome);
        assert!(is_fine(&[insert(1, Outcome::Done), insert(2, Outcome::Exists)]));
        assert!(!is_fine(&[insert(1, Outcome::Done), insert(2, Outcome::Done)]));
        assert!(!is_fine(&[insert(1, Outcome::Exists)]));
        // Of two swaps of one version, too.
        let swap = |value, outcome| op(Op::Swap(Seen::whole(9), value), 3, 4, outcome);
        assert!(is_fine(&[put(9, 1, 2), swap(1, Outcome::Done), swap(2, Outcome::Mismatch)]));
        assert!(!is_fine(&[put(9, 1, 2), swap(1, Outcome::Done), swap(2, Outcome::Done)]));
        assert!(!is_fine(&[put(9, 1, 2), swap(1, Outcome::Mismatch)]));
        // A lost update: the mark was acknowledged on the first value.
        let mark = op(Op::Mark(7), 3, 4, Outcome::Done);
        assert!(!is_fine(&[put(1, 1, 2), mark.clone(), read(5, 6, Some(1))]));
        let marked = op(Op::Get(None), 5, 6, Outcome::Read(Some(Seen { mark: 7, ..Seen::whole(1) })));
        assert!(is_fine(&[put(1, 1, 2), mark, marked]));
        // An insert that may have happened may need a delete that may have happened.
        let maybe = [unknown(Op::Insert(1), 1), unknown(Op::Delete, 2), put(3, 3, 9), read(14, 19, Some(1))];
        assert!(is_fine(&maybe));
    }

    /// Many clients and many unknown outcomes are judged in no time.
    #[test]
    fn long_histories_are_cheap() {
        let mut history = Vec::new();
        for round in 0..60u64 {
            let at = round * 20;
            history.push(put(round + 1, at + 1, at + 8));
            history.push(unknown(Op::Put(10_000 + round), at + 2));
            history.push(read(at + 3, at + 12, Some(if round % 3 == 0 { 10_000 + round } else { round + 1 })));
            if round % 8 == 0 {
                history.push(unknown(Op::Delete, at + 13));
            }
        }
        assert!(is_fine(&history));
        history.push(read(9_000, 9_001, Some(1)));
        assert!(!is_fine(&history));
    }

    /// Tries every order of every choice of optional operations.
    fn by_brute_force(operations: &[Operation]) -> bool {
        fn place(rest: &[Operation], state: Option<Seen>) -> bool {
            if rest.iter().all(|operation| ends(operation).is_none()) {
                return true;
            }
            (0..rest.len()).any(|at| {
                let mut rest = rest.to_vec();
                let next = rest.remove(at);
                let in_time = rest.iter().all(|other| ends(other).is_none_or(|end| next.asked < end));
                in_time && next.op.after(state, next.outcome).is_some_and(|state| place(&rest, state))
            })
        }
        let had_effect = |operation: &&Operation| operation.outcome != Outcome::Failed;
        place(&operations.iter().filter(had_effect).cloned().collect::<Vec<_>>(), None)
    }

    /// Operations at random times; writes have values of their own, reads see any of them.
    fn history() -> impl Strategy<Value = Vec<Operation>> {
        let operation = (0u8..14, 0u64..20, 0u64..8, proptest::option::of((1u64..6, 0u64..6)), 0u8..6);
        proptest::collection::vec(operation, 1..6).prop_map(|operations| {
            let mut history: Vec<Operation> = operations
                .into_iter()
                .enumerate()
                .map(|(at, (kind, asked, took, seen, number))| {
                    let value = at as u64 + 1;
                    let seen = seen.map(|(value, mark)| Seen { mark, ..Seen::whole(value) });
                    let expected = seen.unwrap_or(Seen::whole(1));
                    let wrote = match number {
                        0..=2 => Outcome::Done,
                        3 => Outcome::Failed,
                        _ => Outcome::Unknown,
                    };
                    let (what, outcome) = match kind {
                        0 | 1 => (Op::Put(value), wrote),
                        2 => (Op::Insert(value), if number < 3 { Outcome::Exists } else { Outcome::Done }),
                        3 => (Op::Insert(value), wrote),
                        4 => (Op::Delete, wrote),
                        5 => (Op::Delete, Outcome::Missing),
                        6 => (Op::Mark(value), wrote),
                        7 => (Op::Swap(expected, value), if number == 0 { Outcome::Mismatch } else { wrote }),
                        8 => (Op::DeleteGroup(number.into()), wrote),
                        9 => (Op::Unmark, wrote),
                        10 => (Op::Overwrite(value), wrote),
                        11 => (Op::Get(Some(number.into())), Outcome::Read(seen)),
                        _ => (Op::Get(None), Outcome::Read(seen)),
                    };
                    op(what, asked * 10 + value, (asked + took) * 10 + 9, outcome)
                })
                .collect();
            history.sort_by_key(|operation| operation.asked);
            history
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// The crate, our model and what is left out before it is asked, together.
        #[test]
        fn the_search_agrees_with_brute_force(history in history()) {
            prop_assert_eq!(is_fine(&history), by_brute_force(&history), "{:#?}", history);
        }
    }
}
