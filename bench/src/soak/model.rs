//! What points must look like: for every key the states that the answers to its writes allow.
//!
//! A write that was acknowledged leaves one state. One whose outcome is unknown leaves two, and its key is retired: no later
//! write may touch it, because an unknown write could still take effect after that one. When nothing is under way any more,
//! [`Model::settle`] takes the state that was found for what happened.
use std::collections::BTreeMap;

use super::points::{Condition, Contents, distance, vector};

/// A point's contents; `None` = deleted or never written.
pub type State = Option<Contents>;

/// The states allowed, by key.
#[derive(Clone, Debug, Default)]
pub struct Model {
    allowed: BTreeMap<u64, Vec<State>>,
}

impl Model {
    /// The write was acknowledged.
    pub fn acknowledged(&mut self, key: u64, state: State) {
        self.allowed.insert(key, vec![state]);
    }

    /// The write may or may not have happened.
    pub fn unknown(&mut self, key: u64, state: State) {
        let states = self.allowed.entry(key).or_insert_with(|| vec![None]);
        if !states.contains(&state) {
            states.push(state);
        }
    }

    /// Nothing is under way, and this was found. It must be one of the states allowed.
    pub fn settle(&mut self, key: u64, found: State) {
        self.allowed.insert(key, vec![found]);
    }

    /// The state of a key, where it is certain.
    pub fn certain(&self, key: u64) -> Option<State> {
        match self.allowed.get(&key).map(Vec::as_slice) {
            None => Some(None),
            Some([state]) => Some(*state),
            Some(_) => None,
        }
    }

    /// Every key ever written.
    pub fn keys(&self) -> impl Iterator<Item = u64> + '_ {
        self.allowed.keys().copied()
    }

    /// Keys whose state is not certain.
    pub fn uncertain(&self) -> Vec<u64> {
        self.allowed.iter().filter(|(_, states)| states.len() > 1).map(|(key, _)| *key).collect()
    }

    /// Keys that certainly hold something.
    pub fn live(&self) -> impl Iterator<Item = (u64, Contents)> + '_ {
        self.allowed.iter().filter_map(|(key, states)| match states.as_slice() {
            [Some(contents)] => Some((*key, *contents)),
            _ => None,
        })
    }

    /// Keys that may match: every state of theirs that does, and whether it is certain.
    fn matching<'a>(&'a self, condition: &'a Condition) -> impl Iterator<Item = (u64, bool)> + 'a {
        self.allowed.iter().filter_map(|(key, states)| {
            let matches = |state: &State| state.is_some_and(|contents| condition.holds(contents));
            let any = states.iter().any(matches);
            any.then(|| (*key, states.iter().all(matches)))
        })
    }

    /// What is wrong with finding this state, if anything.
    pub fn check(&self, key: u64, found: State) -> Option<String> {
        let allowed = self.allowed.get(&key).map_or(&[None][..], Vec::as_slice);
        (!allowed.contains(&found)).then(|| format!("key {key}: found {found:?}, allowed {allowed:?}"))
    }

    /// What is wrong with this number of matches, if anything.
    pub fn check_count(&self, condition: &Condition, found: u64) -> Option<String> {
        let (mut certain, mut possible) = (0, 0);
        for (_, is_certain) in self.matching(condition) {
            possible += 1;
            certain += u64::from(is_certain);
        }
        let fits = (certain..=possible).contains(&found);
        (!fits).then(|| format!("counted {found} where {certain} to {possible} match {condition:?}"))
    }

    /// What is wrong with finding exactly these under a condition.
    pub fn check_matches(&self, condition: &Condition, found: &BTreeMap<u64, Contents>) -> Vec<String> {
        let mut wrong = self.check_found(condition, found);
        let missing = self.matching(condition).filter(|(key, certain)| *certain && !found.contains_key(key));
        wrong.extend(
            missing.map(|(key, _)| format!("key {key} is missing, {:?} under {condition:?}", self.certain(key))),
        );
        wrong
    }

    fn check_found(&self, condition: &Condition, found: &BTreeMap<u64, Contents>) -> Vec<String> {
        let one = |(key, contents): (&u64, &Contents)| match condition.holds(*contents) {
            true => self.check(*key, Some(*contents)),
            false => Some(format!("key {key}: {contents:?} does not match {condition:?}")),
        };
        found.iter().filter_map(one).collect()
    }

    /// What is wrong with these being the nearest `limit` under a condition: scores that are no distances, wrong order,
    /// too few, contents that are not allowed; and where the search was `exact`, a nearer one that is missing.
    pub fn check_hits(
        &self,
        query: &[f32],
        limit: usize,
        condition: &Condition,
        hits: &[(u64, Contents, f32)],
        exact: bool,
    ) -> Vec<String> {
        let found: BTreeMap<u64, Contents> = hits.iter().map(|(key, contents, _)| (*key, *contents)).collect();
        let mut wrong = self.check_found(condition, &found);
        if found.len() != hits.len() {
            wrong.push("a point was found twice in one search".to_owned());
        }
        if hits.windows(2).any(|pair| pair[0].2 > pair[1].2) {
            wrong.push(format!("hits are not in order: {hits:?}"));
        }
        for (key, contents, score) in hits {
            let expected = distance(query, &vector(contents.value));
            if expected != *score {
                wrong.push(format!("key {key} has the score {score}, its distance is {expected}"));
            }
        }
        let certain: Vec<u64> = self.matching(condition).filter(|(_, certain)| *certain).map(|(key, _)| key).collect();
        if hits.len() < limit.min(certain.len()) {
            wrong.push(format!("{} hits of {limit} wanted, {} match {condition:?}", hits.len(), certain.len()));
        }
        if exact {
            let last = hits.last().filter(|_| hits.len() >= limit).map_or(f32::INFINITY, |(_, _, score)| *score);
            for key in certain.into_iter().filter(|key| !found.contains_key(key)) {
                // Certain to match: each of its states does.
                let states = self.allowed.get(&key).into_iter().flatten().flatten();
                let far = states.map(|contents| distance(query, &vector(contents.value))).fold(0.0, f32::max);
                if far < last {
                    wrong.push(format!("key {key} at {far} is missing before {last}, under {condition:?}"));
                }
            }
        }
        wrong
    }

    /// Takes in another model; keys are disjoint.
    pub fn join(&mut self, other: &Model) {
        self.allowed.extend(other.allowed.iter().map(|(key, states)| (*key, states.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: u64) -> Contents {
        Contents { value, mark: None }
    }

    #[test]
    fn an_acknowledged_write_leaves_one_state_and_an_unknown_one_two() {
        let mut model = Model::default();
        model.acknowledged(1, Some(of(5)));
        assert_eq!(model.certain(1), Some(Some(of(5))));
        assert!(model.check(1, None).is_some() && model.check(1, Some(of(4))).is_some());
        model.unknown(1, None);
        assert_eq!((model.certain(1), model.uncertain()), (None, vec![1]));
        assert_eq!((model.check(1, Some(of(5))), model.check(1, None)), (None, None));
        model.settle(1, None);
        assert!(model.check(1, Some(of(5))).is_some(), "deleted, and back again");
        assert!(model.check(2, Some(of(8))).is_some(), "nobody wrote it");
    }

    #[test]
    fn counts_and_matches_allow_what_is_unknown_and_nothing_else() {
        let mut model = Model::default();
        (1..=4).for_each(|key| model.acknowledged(key, Some(of(key))));
        model.unknown(4, None);
        assert_eq!(model.check_count(&Condition::Even, 1), None);
        assert_eq!(model.check_count(&Condition::Even, 2), None);
        assert!(model.check_count(&Condition::Even, 0).is_some() && model.check_count(&Condition::Even, 3).is_some());
        let found = |keys: &[u64]| keys.iter().map(|key| (*key, of(*key))).collect();
        assert_eq!(model.check_matches(&Condition::Even, &found(&[2])), Vec::<String>::new());
        assert_eq!(model.check_matches(&Condition::Even, &found(&[4])).len(), 1, "2 is missing");
        assert_eq!(model.check_matches(&Condition::Even, &found(&[2, 3])).len(), 1, "3 does not match");
    }

    #[test]
    fn an_exact_search_owes_the_nearest() {
        let mut model = Model::default();
        (1..=20).for_each(|key| model.acknowledged(key, Some(of(key))));
        let query = vector(3);
        let mut hits: Vec<_> = (1..=20).map(|key| (key, of(key), distance(&query, &vector(key)))).collect();
        hits.sort_by(|a, b| a.2.total_cmp(&b.2));
        let wrong = |hits: &[_], exact| model.check_hits(&query, 5, &Condition::Any, hits, exact).len();
        assert_eq!(wrong(&hits[..5], true), 0);
        assert!(wrong(&hits[1..6], true) > 0, "the nearest is missing");
        assert_eq!(wrong(&hits[1..6], false), 0, "which an approximate search may do");
        assert!(wrong(&hits[..4], false) > 0, "too few");
        let mut lying = hits[..5].to_vec();
        lying[2].2 += 0.5;
        assert!(wrong(&lying, true) > 0);
        let mut turned = hits[..5].to_vec();
        turned.swap(1, 2);
        assert!(wrong(&turned, false) > 0);
    }
}
