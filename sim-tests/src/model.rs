//! What a point is in the eyes of a client, and what every operation makes of it: the specification that the store is
//! judged by.
//!
//! A write carries a value that no other write has, and the value decides the vector, the payload and the group that are
//! written with it. So what a read sees names the writes that made it, and an answer that mixes what was never together
//! shows itself at once.
use std::fmt;

/// What is written; unique among the writes of a run. 0 is never written.
pub type Value = u64;

/// A point, by number. From [`DOCUMENTS`] on it is a document, whose chunks change in one step and are judged as one
/// point.
pub type Key = u64;

/// The first key that is a document.
pub const DOCUMENTS: Key = 1_000;

/// How many groups the values fall into.
pub const GROUPS: u64 = 3;

/// A part of all points, by the payload field `group`.
pub type Group = u64;

/// The group that a payload of this value is in.
pub fn group_of(payload: Value) -> Group {
    payload % GROUPS
}

/// A point as a read sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    /// The value whose vector it has.
    pub vector: Value,
    /// The value whose payload it has.
    pub payload: Value,
    /// The payload field `mark`, which only partial updates write; 0 = it has none.
    pub mark: Value,
}

impl Seen {
    /// What writing a whole point with a value leaves.
    pub fn whole(value: Value) -> Self {
        Self { vector: value, payload: value, mark: 0 }
    }

    /// Whether it is in a group.
    pub fn is_in(&self, group: Group) -> bool {
        group_of(self.payload) == group
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, payload, mark } = self;
        match (vector == payload, *mark) {
            (true, 0) => write!(f, "<{vector}>"),
            _ => write!(f, "<{vector}/{payload}/{mark}>"),
        }
    }
}

/// What a client asks of one point.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Write, whether it exists or not.
    Put(Value),
    /// Write if it does not exist.
    Insert(Value),
    /// Write if it is exactly what was read, by its version.
    Swap(Seen, Value),
    /// Merge a mark into the payload.
    Mark(Value),
    /// Remove the mark from the payload.
    Unmark,
    /// Replace the payload, and leave the vector.
    Overwrite(Value),
    /// Remove.
    Delete,
    /// Remove if it is exactly what was read, by its version.
    DeleteIf(Seen),
    /// Remove where it is in the group; the answer does not say whether it was.
    DeleteGroup(Group),
    /// Make a document of it: replaces all its chunks.
    PutDocument(Value),
    /// Remove a document with all its chunks; the answer does not say whether it was there.
    DeleteDocument,
    /// Read, linearizably. Through a filter by group, a point outside of it looks absent.
    Get(Option<Group>),
}

/// What the client was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// A write took effect.
    Done,
    /// It did not: the point existed.
    Exists,
    /// It did not: the point did not exist.
    Missing,
    /// It did not: the point had another version, or did not exist.
    Mismatch,
    /// A read saw this; `None`: no such point (in the group that was asked for).
    Read(Option<Seen>),
    /// It certainly had no effect.
    Failed,
    /// Anything may be true.
    Unknown,
}

impl Op {
    /// Whether it may change the point.
    pub fn writes(&self) -> bool {
        !matches!(self, Op::Get(_))
    }

    /// What it makes of a point, and what it answers.
    pub fn on(&self, state: Option<Seen>) -> (Option<Seen>, Outcome) {
        match (*self, state) {
            (Op::Put(value) | Op::PutDocument(value) | Op::Insert(value), None) => {
                (Some(Seen::whole(value)), Outcome::Done)
            }
            (Op::Put(value) | Op::PutDocument(value), Some(_)) => (Some(Seen::whole(value)), Outcome::Done),
            (Op::Insert(_), Some(_)) => (state, Outcome::Exists),
            (Op::Swap(expected, value), Some(seen)) if seen == expected => (Some(Seen::whole(value)), Outcome::Done),
            (Op::DeleteIf(expected), Some(seen)) if seen == expected => (None, Outcome::Done),
            (Op::Swap(..) | Op::DeleteIf(_), _) => (state, Outcome::Mismatch),
            (Op::Mark(mark), Some(seen)) => (Some(Seen { mark, ..seen }), Outcome::Done),
            (Op::Unmark, Some(seen)) => (Some(Seen { mark: 0, ..seen }), Outcome::Done),
            (Op::Overwrite(payload), Some(seen)) => (Some(Seen { payload, mark: 0, ..seen }), Outcome::Done),
            (Op::Delete, Some(_)) => (None, Outcome::Done),
            (Op::Mark(_) | Op::Unmark | Op::Overwrite(_) | Op::Delete, None) => (None, Outcome::Missing),
            (Op::DeleteGroup(group), _) => (state.filter(|seen| !seen.is_in(group)), Outcome::Done),
            (Op::DeleteDocument, _) => (None, Outcome::Done),
            (Op::Get(group), _) => {
                let shows = |seen: &Seen| group.is_none_or(|group| seen.is_in(group));
                (state, Outcome::Read(state.filter(shows)))
            }
        }
    }

    /// The state after it, where it may have been answered like this; `None` where it may not.
    pub fn after(&self, state: Option<Seen>, outcome: Outcome) -> Option<Option<Seen>> {
        let (after, answer) = self.on(state);
        (outcome == Outcome::Unknown || outcome == answer).then_some(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operations_do() {
        let (one, marked) = (Seen::whole(1), Seen { mark: 9, ..Seen::whole(1) });
        assert_eq!(Op::Put(1).on(Some(marked)), (Some(one), Outcome::Done));
        assert_eq!(Op::Insert(2).on(Some(one)), (Some(one), Outcome::Exists));
        assert_eq!(Op::Swap(marked, 2).on(Some(marked)), (Some(Seen::whole(2)), Outcome::Done));
        assert_eq!(Op::Swap(marked, 2).on(Some(one)), (Some(one), Outcome::Mismatch));
        assert_eq!(Op::DeleteIf(one).on(None), (None, Outcome::Mismatch));
        assert_eq!(Op::Mark(9).on(Some(one)), (Some(marked), Outcome::Done));
        assert_eq!(Op::Unmark.on(Some(marked)), (Some(one), Outcome::Done));
        assert_eq!(Op::Mark(9).on(None), (None, Outcome::Missing));
        let overwritten = Seen { vector: 1, payload: 5, mark: 0 };
        assert_eq!(Op::Overwrite(5).on(Some(marked)), (Some(overwritten), Outcome::Done));
        assert_eq!(Op::DeleteGroup(group_of(5)).on(Some(overwritten)), (None, Outcome::Done));
        assert_eq!(Op::DeleteGroup(group_of(4)).on(Some(overwritten)), (Some(overwritten), Outcome::Done));
        assert_eq!(Op::Get(Some(group_of(4))).on(Some(overwritten)).1, Outcome::Read(None));
        assert_eq!(Op::Get(None).after(Some(one), Outcome::Read(None)), None);
        assert_eq!(Op::Delete.after(None, Outcome::Done), None);
        assert_eq!(Op::Delete.after(None, Outcome::Unknown), Some(None));
    }
}
