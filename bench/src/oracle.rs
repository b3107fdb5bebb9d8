//! What points must look like after a run with faults: for every id the states that the acknowledged writes allow.
//!
//! A write that was acknowledged leaves one state. One whose outcome is unknown leaves two, and its id is retired: no
//! later write may touch it, because an unknown write could still take effect after that one.
use std::collections::BTreeMap;

/// A point's value, from which vector and payload follow; `None` = deleted or never written.
pub type State = Option<u64>;

/// The states allowed, by id.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    allowed: BTreeMap<u64, Vec<State>>,
}

impl Oracle {
    /// The write was acknowledged.
    pub fn acknowledged(&mut self, id: u64, state: State) {
        self.allowed.insert(id, vec![state]);
    }

    /// The write may or may not have happened; the id must not be written again.
    pub fn unknown(&mut self, id: u64, state: State) {
        self.allowed.entry(id).or_insert_with(|| vec![None]).push(state);
    }

    /// Whether a later write may touch the id.
    pub fn usable(&self, id: u64) -> bool {
        self.allowed.get(&id).is_none_or(|states| states.len() == 1)
    }

    /// Whether the id is known to hold a value.
    pub fn live(&self, id: u64) -> bool {
        matches!(self.allowed.get(&id).map(Vec::as_slice), Some([Some(_)]))
    }

    /// Every id ever written.
    pub fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.allowed.keys().copied()
    }

    /// Ids whose state is known to be a value, known to be deleted, and unknown.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |wanted: fn(&[State]) -> bool| self.allowed.values().filter(|states| wanted(states)).count();
        (count(|s| matches!(s, [Some(_)])), count(|s| matches!(s, [None])), count(|s| s.len() > 1))
    }

    /// What is wrong with finding this state, if anything.
    pub fn check(&self, id: u64, found: State) -> Option<String> {
        let allowed = self.allowed.get(&id).map(Vec::as_slice).unwrap_or(&[None]);
        (!allowed.contains(&found)).then(|| format!("point {id}: found {found:?}, allowed {allowed:?}"))
    }

    /// Takes in another oracle; ids are disjoint.
    pub fn join(&mut self, other: Oracle) {
        self.allowed.extend(other.allowed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_write_leaves_one_state_and_an_unknown_one_two() {
        let mut oracle = Oracle::default();
        oracle.acknowledged(1, Some(5));
        assert!(oracle.live(1) && oracle.usable(1));
        assert!(oracle.check(1, None).is_some() && oracle.check(1, Some(4)).is_some());
        assert_eq!(oracle.check(1, Some(5)), None);
        oracle.unknown(1, None);
        assert!(!oracle.usable(1) && !oracle.live(1));
        assert_eq!((oracle.check(1, Some(5)), oracle.check(1, None)), (None, None));
        oracle.unknown(2, Some(7));
        assert_eq!((oracle.check(2, None), oracle.check(2, Some(7))), (None, None));
        assert!(oracle.check(2, Some(8)).is_some());
        oracle.acknowledged(3, None);
        assert!(oracle.check(3, Some(1)).is_some());
        assert_eq!(oracle.counts(), (0, 1, 2));
    }
}
