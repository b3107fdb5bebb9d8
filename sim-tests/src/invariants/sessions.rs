//! A read runs at or after what its level promises: a session read after everything its client has been told, a
//! linearizable one after everything that anybody has been told. Read-your-writes and monotonic reads follow, since
//! answers are prefixes of one log ([`super::prefix`]).
use super::{Evidence, Known};
use crate::history::Violation;
use nearring_proto::position::ReadLevel;

/// The property.
const PROPERTY: &str = "a read runs at or after what its level promises";

/// The reads that ran too early.
pub fn violations(evidence: &Evidence<'_>) -> Vec<Violation> {
    let everybody = Known::new(evidence, None);
    let mut clients: std::collections::BTreeMap<u64, Known> = std::collections::BTreeMap::new();
    let mut violations = Vec::new();
    for look in evidence.looks {
        let known = match look.level {
            ReadLevel::Eventual => continue,
            ReadLevel::Linearizable => &everybody,
            ReadLevel::Session => clients.entry(look.client).or_insert_with(|| Known::new(evidence, Some(look.client))),
        };
        for (shard, at) in &look.shards {
            let owed = known.before(*shard, look.asked);
            if at.index < owed {
                let (client, kind, level) = (look.client, look.kind, look.level);
                let what = format!(
                    "a {level:?} {kind:?} by client {client} at [{}, {}] read {shard} at {at:?}, {owed} had been named before",
                    look.asked, look.answered
                );
                violations.push(Violation { property: PROPERTY, what, operations: Vec::new() });
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::testing::{done, judged, sight};
    use super::*;
    use crate::history::Look;
    use crate::model::Op;

    #[test]
    fn a_read_before_the_token_is_found() {
        let put = done(Op::Put(1), 1, 2, 10);
        let early = |client, level| Look { client, level, ..sight(5, 9, None) };
        let found = |look: Look| judged(violations, &[put.clone()], &[look]).len();
        assert_eq!(found(early(0, ReadLevel::Eventual)), 0);
        assert_eq!(found(early(0, ReadLevel::Session)), 1);
        assert_eq!(found(early(1, ReadLevel::Session)), 0, "another client was told nothing");
        assert_eq!(found(early(1, ReadLevel::Linearizable)), 1);
        assert_eq!(found(Look { asked: 2, ..early(0, ReadLevel::Linearizable) }), 0, "it was asked before");
        // Time must not go back for a client.
        let looks = [sight(5, 14, Some((1, 10))), Look { level: ReadLevel::Session, ..sight(7, 12, Some((1, 10))) }];
        assert_eq!(judged(violations, &[put], &looks).len(), 1);
    }
}
