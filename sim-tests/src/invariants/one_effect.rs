//! A request has one effect, however often it was sent: what it wrote has one version, and that lies where the answer says.
use std::collections::{BTreeMap, BTreeSet};

use super::{Evidence, Known};
use crate::history::{Operation, Violation};
use crate::model::{Op, Outcome, Seen};

/// The property.
const PROPERTY: &str = "a request has one effect";

/// The writes that were seen twice, or elsewhere.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let known = Known::new(evidence, None);
    let mut violations = Vec::new();
    for (key, operations) in evidence.by_key() {
        let mut versions: BTreeMap<Seen, BTreeSet<u64>> = BTreeMap::new();
        for found in evidence.looks.iter().filter_map(|look| look.found.get(&key)) {
            versions.entry(found.seen).or_default().insert(found.version);
        }
        let comes_back = operations.iter().any(|operation| operation.op == Op::Unmark);
        for operation in &operations {
            let wrote = |seen: &Seen| match operation.op {
                // Unmarking gives a point back the looks that it had.
                Op::Put(value) | Op::Insert(value) | Op::Swap(_, value) | Op::PutDocument(value) => {
                    *seen == Seen::whole(value) && !comes_back
                }
                Op::Mark(mark) => seen.mark == mark,
                _ => false,
            };
            let at: BTreeSet<u64> =
                versions.iter().filter(|(seen, _)| wrote(seen)).flat_map(|(_, at)| at).copied().collect();
            let mut wrong = |what: String| {
                let operations: Vec<Operation> = operations.iter().map(|operation| (*operation).clone()).collect();
                violations.push(Violation { property: PROPERTY, what: format!("point {key}: {what}"), operations });
            };
            if at.len() > 1 {
                wrong(format!("seen under the versions {at:?}: {operation}"));
            }
            let (Some(first), Some(last)) = (at.first(), at.last()) else { continue };
            let from = known.before(evidence.homes.of(key), operation.asked) + 1;
            if *first < from {
                wrong(format!("has version {first}, though {} had been named before: {operation}", from - 1));
            }
            match (operation.outcome, operation.entry) {
                (Outcome::Done, Some(entry)) if *last > entry => {
                    wrong(format!("has version {last}, after it was acknowledged: {operation}"));
                }
                (Outcome::Failed | Outcome::Exists | Outcome::Missing | Outcome::Mismatch, _) => {
                    wrong(format!("was refused, and has version {last}: {operation}"));
                }
                _ => {}
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::{done, judged, op, sight};
    use super::*;

    #[test]
    fn two_effects_late_ones_and_those_of_refused_writes_are_found() {
        let put = done(Op::Put(1), 5, 6, 10);
        let found = |operation: &Operation, versions: &[u64]| {
            let looks: Vec<_> = versions.iter().map(|version| sight(7, version + 1, Some((1, *version)))).collect();
            judged(violations, std::slice::from_ref(operation), &looks).len()
        };
        assert_eq!(found(&put, &[10, 10]), 0);
        assert_eq!(found(&put, &[9, 10]), 1);
        assert_eq!(found(&put, &[11]), 1);
        assert_eq!(found(&op(Op::Put(1), 5, 6, Outcome::Unknown), &[11]), 0);
        assert_eq!(found(&op(Op::Put(1), 5, 6, Outcome::Failed), &[11]), 1);
        assert_eq!(found(&op(Op::Insert(1), 5, 6, Outcome::Exists), &[11]), 1);
        let early = [sight(1, 10, None), sight(7, 12, Some((1, 10)))];
        assert_eq!(judged(violations, &[done(Op::Put(1), 5, 6, 12)], &early).len(), 1, "before it was asked");
    }
}
