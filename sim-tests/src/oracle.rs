//! Judges a history: is each point a linearizable register, and did what was acknowledged stay?
//!
//! [`linearizable`] looks, point by point, for an order of the operations that respects real time and explains every answer
//! (Wing and Gong's search with Lowe's memory of failed configurations). Points do not influence one another, so a history
//! of many points is many small searches. What has an unknown outcome may take effect any time after it was asked, or
//! never; such operations stay open to the end, so what nobody ever saw of them is dropped first, where that cannot change
//! the verdict.
//!
//! [`final_state`] asks a weaker question with a clearer answer: of what is there in the end, was it written, and has nothing
//! acknowledged replaced it since? It names a lost write, a resurrected point and an invented one as such, and also fits
//! reads that promise less than linearizability, a search among them.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use crate::history::{Key, Look, Op, Operation, Outcome, Value};

/// What is wrong, and the operations that show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which point.
    pub key: Key,
    /// What is wrong.
    pub what: String,
    /// All operations on the point, in the order asked.
    pub operations: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "point {}: {}", self.key, self.what)?;
        self.operations.iter().try_for_each(|operation| writeln!(f, "  {operation}"))
    }
}

/// The points whose operations no order explains.
pub fn linearizable(history: &[Operation]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, operations) in by_key(history) {
        if let Err(explained) = check(&operations) {
            let all = operations.iter().filter(|operation| operation.answered.is_some()).count();
            let what = format!("not linearizable; the longest order explains {explained} of {all} answered operations");
            violations.push(Violation { key, what, operations });
        }
    }
    violations
}

/// The points whose state in the end contradicts what was acknowledged. `found` holds what a read after the history saw
/// of each point; points it does not name do not exist.
pub fn final_state(history: &[Operation], found: &BTreeMap<Key, Value>) -> Vec<Violation> {
    let operations = by_key(history);
    let keys: BTreeSet<Key> = operations.keys().chain(found.keys()).copied().collect();
    let judge = |key: Key| {
        let operations = operations.get(&key).cloned().unwrap_or_default();
        let what = wrong_state(&operations, found.get(&key).copied())?;
        Some(Violation { key, what, operations })
    };
    keys.into_iter().filter_map(judge).collect()
}

/// The points that a look saw wrongly: what was acknowledged before it was asked (to this client, where it is not
/// linearizable) must show, what was never written or was replaced must not.
pub fn looks(history: &[Operation], looks: &[Look]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let operations = by_key(history);
    for look in looks {
        for key in operations.keys().chain(look.found.keys()).copied().collect::<BTreeSet<Key>>() {
            let found = look.found.get(&key).copied();
            if found.is_none() && !look.complete {
                continue;
            }
            let all = operations.get(&key).cloned().unwrap_or_default();
            let visible: Vec<Operation> = all
                .iter()
                .filter(|operation| operation.asked < look.answered)
                .map(|operation| {
                    let told = operation.answered.is_some_and(|answered| answered < look.asked)
                        && (look.linearizable || operation.client == look.client);
                    match operation.outcome {
                        // May or may not have shown.
                        Outcome::Done if !told => Operation { outcome: Outcome::Unknown, ..operation.clone() },
                        _ => operation.clone(),
                    }
                })
                .collect();
            if let Some(wrong) = wrong_state(&visible, found) {
                let what = format!("seen by client {} at [{}, {}]: {wrong}", look.client, look.asked, look.answered);
                violations.push(Violation { key, what, operations: all });
            }
        }
    }
    violations
}

fn by_key(history: &[Operation]) -> BTreeMap<Key, Vec<Operation>> {
    let mut keys: BTreeMap<Key, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(operation.key).or_default().push(operation.clone());
    }
    keys
}

fn wrong_state(operations: &[Operation], found: Option<Value>) -> Option<String> {
    let effect = |operation: &Operation| match (operation.op, operation.outcome) {
        (_, Outcome::Failed | Outcome::Exists) | (Op::Get, _) => None,
        (Op::Put(value) | Op::Insert(value), _) => Some(Some(value)),
        (Op::Delete, _) => Some(None),
    };
    // What was acknowledged, and asked only after this one was acknowledged, has replaced it.
    let replaced = |operation: &Operation| {
        let answered = operation.answered.filter(|_| operation.outcome == Outcome::Done)?;
        operations
            .iter()
            .find(|later| later.outcome == Outcome::Done && effect(later).is_some() && later.asked > answered)
    };
    let writers: Vec<&Operation> = operations.iter().filter(|operation| effect(operation) == Some(found)).collect();
    match found {
        None => {
            // Absent: it was never there, or a delete may have been last.
            if writers.iter().any(|delete| replaced(delete).is_none()) {
                return None;
            }
            let lost = operations.iter().find(|operation| {
                operation.outcome == Outcome::Done && effect(operation).is_some_and(|value| value.is_some())
            })?;
            Some(format!("acknowledged and lost: {lost}"))
        }
        Some(value) if writers.is_empty() => Some(format!("holds {value}, which nobody wrote or which was refused")),
        Some(value) => {
            let replacing = writers.into_iter().map(replaced).next()??;
            Some(match replacing.op {
                Op::Delete => format!("holds {value} again, after: {replacing}"),
                _ => format!("holds {value}, and lost what replaced it: {replacing}"),
            })
        }
    }
}

/// The state after an operation with this outcome; `None` where the state does not allow the outcome.
fn step(state: Option<Value>, operation: &Operation) -> Option<Option<Value>> {
    match (operation.op, operation.outcome) {
        (Op::Put(value), Outcome::Done | Outcome::Unknown) => Some(Some(value)),
        (Op::Insert(value), Outcome::Done) => state.is_none().then_some(Some(value)),
        (Op::Insert(value), Outcome::Unknown) => Some(state.or(Some(value))),
        (Op::Insert(_), Outcome::Exists) => state.is_some().then_some(state),
        (Op::Delete, Outcome::Done | Outcome::Unknown) => Some(None),
        (Op::Get, Outcome::Read(seen)) => (seen == state).then_some(state),
        _ => None,
    }
}

/// Operations that have been put in order, one bit each.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Placed(Box<[u64]>);

impl Placed {
    fn none(operations: usize) -> Self {
        Self(vec![0; operations.div_ceil(64)].into_boxed_slice())
    }

    fn holds(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn with(&self, at: usize) -> Self {
        let mut with = self.clone();
        with.0[at / 64] |= 1 << (at % 64);
        with
    }
}

/// Looks for an order of one point's operations.
///
/// # Errors
/// Where there is none: how many answered operations the best attempt placed.
fn check(operations: &[Operation]) -> Result<(), usize> {
    let operations = relevant(operations);
    let must: Vec<usize> = (0..operations.len()).filter(|at| ends(operations[*at]).is_some()).collect();
    let mut failed: HashSet<(Placed, Option<Value>)> = HashSet::new();
    let mut open = vec![(Placed::none(operations.len()), None, 0)];
    let mut best = 0;
    while let Some((placed, state, count)) = open.pop() {
        if count == must.len() {
            return Ok(());
        }
        if !failed.insert((placed.clone(), state)) {
            continue;
        }
        best = best.max(count);
        // What is answered first bounds what may come next: nothing asked after that answer.
        let unplaced = must.iter().filter(|at| !placed.holds(**at));
        let bound = unplaced.filter_map(|at| ends(operations[*at])).min().unwrap_or(u64::MAX);
        // Last in, first out: what was asked first is tried first, the optional ones after the answered.
        let candidates = operations.iter().enumerate().take_while(|(_, operation)| operation.asked < bound);
        let (mut optional, mut answered) = (Vec::new(), Vec::new());
        for (at, operation) in candidates.filter(|(at, _)| !placed.holds(*at)) {
            if let Some(state) = step(state, operation) {
                match ends(operation) {
                    Some(_) => answered.push((placed.with(at), state, count + 1)),
                    None => optional.push((placed.with(at), state, count)),
                }
            }
        }
        open.extend(optional.into_iter().rev().chain(answered.into_iter().rev()));
    }
    Err(best)
}

/// When an operation was over; `None`: it may take effect at any time, or never.
fn ends(operation: &Operation) -> Option<u64> {
    match operation.outcome {
        Outcome::Unknown => None,
        _ => operation.answered,
    }
}

/// Leaves out what explains nothing, in the order asked.
fn relevant(operations: &[Operation]) -> Vec<&Operation> {
    let seen: HashSet<Value> = operations
        .iter()
        .filter_map(|operation| match operation.outcome {
            Outcome::Read(value) => value,
            _ => None,
        })
        .collect();
    // An insert has an effect only where nothing was there, so what may have been inserted may need a delete before it.
    let absence_seen = operations.iter().any(|operation| {
        matches!(
            (operation.op, operation.outcome),
            (_, Outcome::Read(None)) | (Op::Insert(_), Outcome::Done | Outcome::Unknown)
        )
    });
    // A refused insert is explained by any value that is there, also one that nobody read.
    let existence_seen = operations.iter().any(|operation| operation.outcome == Outcome::Exists);
    let keep = |operation: &&Operation| match (operation.op, operation.outcome) {
        (_, Outcome::Failed) | (Op::Get, Outcome::Unknown) => false,
        (Op::Put(value) | Op::Insert(value), Outcome::Unknown) => existence_seen || seen.contains(&value),
        (Op::Delete, Outcome::Unknown) => absence_seen,
        _ => true,
    };
    let mut relevant: Vec<&Operation> = operations.iter().filter(keep).collect();
    relevant.sort_by_key(|operation| operation.asked);
    relevant
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn op(op: Op, asked: u64, answered: u64, outcome: Outcome) -> Operation {
        Operation { client: 0, key: 1, op, asked, answered: Some(answered), outcome }
    }

    fn unknown(op_: Op, asked: u64) -> Operation {
        Operation { answered: None, ..op(op_, asked, 0, Outcome::Unknown) }
    }

    fn read(asked: u64, answered: u64, value: Option<Value>) -> Operation {
        op(Op::Get, asked, answered, Outcome::Read(value))
    }

    fn put(value: Value, asked: u64, answered: u64) -> Operation {
        op(Op::Put(value), asked, answered, Outcome::Done)
    }

    fn delete(asked: u64, answered: u64) -> Operation {
        op(Op::Delete, asked, answered, Outcome::Done)
    }

    #[test]
    fn verdicts_by_hand() {
        let is_fine = |history: &[Operation]| linearizable(history).is_empty();
        assert!(is_fine(&[put(1, 1, 2), read(3, 4, Some(1)), delete(5, 6), read(7, 8, None)]));
        // A stale read, a lost write, a resurrection.
        assert!(!is_fine(&[put(1, 1, 2), put(2, 3, 4), read(5, 6, Some(1))]));
        assert!(!is_fine(&[put(1, 1, 2), read(3, 4, None)]));
        assert!(!is_fine(&[put(1, 1, 2), delete(3, 4), read(5, 6, Some(1))]));
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
        // An insert that may have happened may need a delete that may have happened.
        let maybe = [unknown(Op::Insert(1), 1), unknown(Op::Delete, 2), put(3, 3, 9), read(14, 19, Some(1))];
        assert!(is_fine(&maybe));
    }

    #[test]
    fn the_final_state_names_what_went_wrong() {
        let what = |history: &[Operation], found: Option<Value>| {
            let found = found.map(|value| (1, value)).into_iter().collect();
            final_state(history, &found).pop().map(|violation| violation.what)
        };
        let twice = [put(1, 1, 2), put(2, 3, 4)];
        assert_eq!(what(&twice, Some(2)), None);
        assert!(what(&twice, Some(1)).unwrap().contains("lost what replaced it"));
        assert!(what(&twice, None).unwrap().contains("acknowledged and lost"));
        assert!(what(&twice, Some(3)).unwrap().contains("nobody wrote"));
        let deleted = [put(1, 1, 2), delete(3, 4)];
        assert_eq!(what(&deleted, None), None);
        assert!(what(&deleted, Some(1)).unwrap().contains("again"));
        assert_eq!(what(&[put(1, 1, 2), unknown(Op::Delete, 1)], None), None);
        assert_eq!(what(&[unknown(Op::Put(1), 1), delete(2, 3)], Some(1)), None, "may take effect late");
        assert_eq!(what(&[op(Op::Put(1), 1, 2, Outcome::Failed)], None), None);
        assert!(what(&[op(Op::Put(1), 1, 2, Outcome::Failed)], Some(1)).unwrap().contains("refused"));
    }

    #[test]
    fn a_look_owes_what_was_told() {
        let look = |client, linearizable, complete, found: Option<Value>| {
            let found = found.map(|value| (1, value)).into_iter().collect();
            Look { client, asked: 10, answered: 20, linearizable, complete, found }
        };
        let is_fine = |history: &[Operation], seen: Look| looks(history, &[seen]).is_empty();
        let told = [put(1, 1, 2), put(2, 3, 4)];
        assert!(is_fine(&told, look(0, false, true, Some(2))));
        assert!(!is_fine(&told, look(0, false, true, Some(1))));
        assert!(!is_fine(&told, look(0, false, true, None)));
        assert!(is_fine(&told, look(0, false, false, None)), "shards were missing");
        assert!(is_fine(&told, look(1, false, true, Some(1))), "another client's session owes nothing");
        assert!(!is_fine(&told, look(1, true, true, Some(1))));
        assert!(!is_fine(&told, look(1, false, true, Some(3))), "invented");
        assert!(is_fine(&[put(1, 1, 2), put(2, 11, 12)], look(0, true, true, Some(1))), "concurrent");
        assert!(!is_fine(&[put(1, 30, 31)], look(0, true, true, Some(1))), "from the future");
    }

    /// A long history with many clients and many unknown outcomes is judged in no time.
    #[test]
    fn long_histories_are_cheap() {
        let mut history = Vec::new();
        for round in 0..300u64 {
            let at = round * 20;
            history.push(put(round + 1, at + 1, at + 8));
            history.push(unknown(Op::Put(10_000 + round), at + 2));
            history.push(read(at + 3, at + 12, Some(if round % 3 == 0 { 10_000 + round } else { round + 1 })));
            history.push(unknown(Op::Delete, at + 13));
        }
        assert_eq!(linearizable(&history), []);
        history.push(read(9_000, 9_001, Some(1)));
        assert_eq!(linearizable(&history).len(), 1);
    }

    /// Tries every order of every choice of optional operations.
    fn by_brute_force(operations: &[Operation]) -> bool {
        fn place(rest: &[Operation], state: Option<Value>) -> bool {
            if rest.iter().all(|operation| ends(operation).is_none()) {
                return true;
            }
            (0..rest.len()).any(|at| {
                let mut rest = rest.to_vec();
                let next = rest.remove(at);
                let in_time = rest.iter().all(|other| ends(other).is_none_or(|end| next.asked < end));
                in_time && step(state, &next).is_some_and(|state| place(&rest, state))
            })
        }
        let had_effect = |operation: &&Operation| operation.outcome != Outcome::Failed;
        place(&operations.iter().filter(had_effect).cloned().collect::<Vec<_>>(), None)
    }

    /// Operations at random times; writes have values of their own, reads see any of them.
    fn history() -> impl Strategy<Value = Vec<Operation>> {
        let operation = (0u8..7, 0u64..20, 0u64..8, proptest::option::of(1u64..6), 0u8..6);
        proptest::collection::vec(operation, 1..6).prop_map(|operations| {
            let mut history: Vec<Operation> = operations
                .into_iter()
                .enumerate()
                .map(|(at, (kind, asked, took, seen, outcome))| {
                    let value = at as u64 + 1;
                    let wrote = if outcome >= 4 { Outcome::Unknown } else { Outcome::Done };
                    let (op, outcome) = match kind {
                        0 | 1 => (Op::Put(value), if outcome == 1 { Outcome::Failed } else { wrote }),
                        2 => (Op::Insert(value), if outcome < 3 { Outcome::Exists } else { Outcome::Done }),
                        3 => (Op::Insert(value), wrote),
                        4 => (Op::Delete, wrote),
                        _ => (Op::Get, Outcome::Read(seen)),
                    };
                    Operation {
                        client: 0,
                        key: 1,
                        op,
                        asked: asked * 10 + value,
                        answered: Some((asked + took) * 10 + 9),
                        outcome,
                    }
                })
                .collect();
            history.sort_by_key(|operation| operation.asked);
            history
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50_000))]

        #[test]
        fn the_search_agrees_with_brute_force(history in history()) {
            prop_assert_eq!(linearizable(&history).is_empty(), by_brute_force(&history), "{:#?}", history);
        }

        /// The weaker check never complains of what linearizability allows.
        #[test]
        fn a_linearizable_end_is_a_right_end(history in history(), seen in proptest::option::of(1u64..7)) {
            let mut with_read = history.clone();
            with_read.push(read(1_000, 1_001, seen));
            if by_brute_force(&with_read) {
                let found = seen.map(|value| (1, value)).into_iter().collect();
                prop_assert_eq!(final_state(&history, &found), []);
            }
        }
    }
}
