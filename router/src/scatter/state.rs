//! Whom to ask, and whom next, until every shard has answered or failed. [core]
//!
//! Time is the duration since the request began; randomness and what is known of the nodes are handed in. Rules:
//!
//! - Shards are grouped by node (see [`super::cover`]), first attempts and repeats alike.
//! - A shard that failed is asked of the replica tried least so far, at once while there is an untried one, later with
//!   growing pauses; never the same replica twice in a row where the shard has another.
//! - An attempt gets its share of the time that is left: with `n` untried replicas behind it, one part in `n + 1`. So a
//!   node that is silent never takes the whole deadline.
//! - A node that could not be reached lately is chosen last among equals.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nearring_proto::ids::{NodeId, ShardId};
use rand::Rng;

use super::cover::{NodeLoad, cover};
use crate::failure::{Meaning, NodeFailure};

/// The least time before the deadline at which a shard is still asked once more.
const LAST_ATTEMPT: Duration = Duration::from_millis(5);

/// What is known of the nodes when a choice is made.
#[derive(Clone, Default, Debug)]
pub struct Nodes {
    /// How busy they are.
    pub loads: BTreeMap<NodeId, NodeLoad>,
    /// Those that could not be reached lately.
    pub shunned: BTreeSet<NodeId>,
}

/// One call to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Names the call in what comes back.
    pub call: u64,
    /// Whom.
    pub node: NodeId,
    /// About which shards.
    pub shards: Vec<ShardId>,
    /// Give up after this long.
    pub timeout: Duration,
}

/// What became of one shard so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// To be asked as soon as there is time.
    Ready,
    /// To be asked then.
    Waiting(Duration),
    /// Asked in this call.
    Asked(u64),
    /// Answered by this node.
    Answered(NodeId),
    /// Given up.
    Failed,
}

#[derive(Clone, Debug)]
struct Progress {
    replicas: Vec<NodeId>,
    tries: BTreeMap<NodeId, u32>,
    last: Option<NodeId>,
    state: State,
    why: NodeFailure,
}

/// One scattered request.
#[derive(Clone, Debug)]
pub struct Scatter {
    shards: BTreeMap<ShardId, Progress>,
    calls: BTreeMap<u64, (NodeId, Vec<ShardId>)>,
    next_call: u64,
    deadline: Duration,
}

impl Scatter {
    /// The least time an attempt gets, where that much is left.
    const ATTEMPT_MIN: Duration = Duration::from_millis(50);
    /// Pause after the first round over all replicas, and the longest.
    const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

    /// A request to these shards, each with the nodes that may answer, which must end at `deadline`.
    pub fn start(shards: BTreeMap<ShardId, Vec<NodeId>>, deadline: Duration) -> Self {
        let progress = |replicas: Vec<NodeId>| Progress {
            state: State::Ready,
            replicas,
            tries: BTreeMap::new(),
            last: None,
            why: NodeFailure::new(Meaning::Late, "not asked in time"),
        };
        let shards = shards.into_iter().map(|(shard, replicas)| (shard, progress(replicas))).collect();
        Self { shards, calls: BTreeMap::new(), next_call: 0, deadline }
    }

    /// A newer table names these nodes for a shard.
    pub fn set_replicas(&mut self, shard: ShardId, replicas: Vec<NodeId>) {
        if let Some(progress) = self.shards.get_mut(&shard) {
            progress.replicas = replicas;
        }
    }

    /// Shards that are neither answered nor given up.
    pub fn open(&self) -> impl Iterator<Item = ShardId> + '_ {
        let open = |progress: &Progress| !matches!(progress.state, State::Answered(_) | State::Failed);
        self.shards.iter().filter(move |(_, progress)| open(progress)).map(|(shard, _)| *shard)
    }

    /// Whether every shard has answered or failed.
    pub fn is_over(&self) -> bool {
        self.open().next().is_none()
    }

    /// The calls to send now. Shards without any replica fail here.
    pub fn due(&mut self, now: Duration, nodes: &Nodes, random: &mut impl Rng) -> Vec<Ask> {
        if now >= self.deadline {
            self.on_deadline();
            return Vec::new();
        }
        let mut candidates = BTreeMap::new();
        for (shard, progress) in &mut self.shards {
            let is_due = match progress.state {
                State::Ready => true,
                State::Waiting(until) => until <= now,
                _ => false,
            };
            if !is_due {
                continue;
            }
            let choice = progress.choice(&nodes.shunned);
            if choice.is_empty() {
                progress.state = State::Failed;
                if progress.last.is_none() {
                    progress.why = NodeFailure::new(Meaning::WrongShard, "no node that may answer holds the shard");
                }
            } else {
                candidates.insert(*shard, choice);
            }
        }
        let chosen = cover(&candidates, &nodes.loads, random);
        let left = self.deadline.saturating_sub(now);
        let mut asks = Vec::with_capacity(chosen.len());
        for (node, shards) in chosen {
            let call = self.next_call;
            self.next_call += 1;
            let mut others = 0;
            for shard in &shards {
                let Some(progress) = self.shards.get_mut(shard) else { continue };
                progress.state = State::Asked(call);
                progress.last = Some(node);
                *progress.tries.entry(node).or_default() += 1;
                others = others.max(progress.untried());
            }
            let timeout = (left / (others as u32 + 1)).max(Self::ATTEMPT_MIN).min(left);
            self.calls.insert(call, (node, shards.clone()));
            asks.push(Ask { call, node, shards, timeout });
        }
        asks
    }

    /// A call came back. Shards of the call that `answers` does not name count as not answered. Which shards this call
    /// answered; a call that is not awaited any more answers none.
    pub fn on_reply(
        &mut self,
        now: Duration,
        call: u64,
        answers: BTreeMap<ShardId, Result<(), NodeFailure>>,
        random: &mut impl Rng,
    ) -> Vec<ShardId> {
        let Some((node, shards)) = self.calls.remove(&call) else { return Vec::new() };
        let mut answered = Vec::new();
        for shard in shards {
            let Some(progress) = self.shards.get_mut(&shard) else { continue };
            if progress.state != State::Asked(call) {
                continue;
            }
            let silent = || Err(NodeFailure::new(Meaning::Broken, "the node's answer leaves the shard out"));
            match answers.get(&shard).cloned().unwrap_or_else(silent) {
                Ok(()) => {
                    progress.state = State::Answered(node);
                    answered.push(shard);
                }
                Err(why) => progress.failed(now, self.deadline, why, random),
            }
        }
        answered
    }

    /// A call failed as a whole.
    pub fn on_failure(&mut self, now: Duration, call: u64, why: &NodeFailure, random: &mut impl Rng) {
        let shards = self.calls.get(&call).map(|(_, shards)| shards.clone()).unwrap_or_default();
        let answers = shards.into_iter().map(|shard| (shard, Err(why.clone()))).collect();
        self.on_reply(now, call, answers, random);
    }

    /// Time is up: what has not answered has failed.
    pub fn on_deadline(&mut self) {
        self.calls.clear();
        for progress in self.shards.values_mut() {
            if matches!(progress.state, State::Answered(_) | State::Failed) {
                continue;
            }
            if matches!(progress.state, State::Asked(_)) {
                let before = if progress.tries.values().sum::<u32>() > 1 {
                    format!("; before that, {}", progress.why)
                } else {
                    String::new()
                };
                let node = progress.last.unwrap_or_default();
                progress.why = NodeFailure::new(Meaning::Late, format!("no answer of {node} in time{before}"));
            }
            progress.state = State::Failed;
        }
    }

    /// When a waiting shard is due, if any waits.
    pub fn wakes_at(&self) -> Option<Duration> {
        let due = |progress: &Progress| match progress.state {
            State::Ready => Some(Duration::ZERO),
            State::Waiting(until) => Some(until),
            _ => None,
        };
        self.shards.values().filter_map(due).min()
    }

    /// Why a shard failed; `None` where it did not.
    pub fn failure(&self, shard: ShardId) -> Option<&NodeFailure> {
        self.shards.get(&shard).filter(|progress| progress.state == State::Failed).map(|progress| &progress.why)
    }

    /// Where a shard stands.
    pub fn state(&self, shard: ShardId) -> Option<&State> {
        self.shards.get(&shard).map(|progress| &progress.state)
    }
}

impl Progress {
    fn untried(&self) -> usize {
        self.replicas.iter().filter(|node| !self.tries.contains_key(node)).count()
    }

    /// The replicas tried least, without the last one and without shunned ones where others are left.
    fn choice(&self, shunned: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let mut choice: BTreeSet<NodeId> = self.replicas.iter().copied().collect();
        if choice.len() > 1
            && let Some(last) = self.last
        {
            choice.remove(&last);
        }
        let tries = |node: &NodeId| self.tries.get(node).copied().unwrap_or(0);
        let least = choice.iter().map(tries).min().unwrap_or(0);
        choice.retain(|node| tries(node) == least);
        if choice.iter().any(|node| !shunned.contains(node)) {
            choice.retain(|node| !shunned.contains(node));
        }
        choice
    }

    fn failed(&mut self, now: Duration, deadline: Duration, why: NodeFailure, random: &mut impl Rng) {
        self.why = why;
        if self.untried() > 0 {
            self.state = State::Ready;
            return;
        }
        let rounds = self.tries.values().copied().min().unwrap_or(1);
        let longest = (Scatter::PAUSE.0 * (1 << rounds.saturating_sub(1).min(8))).min(Scatter::PAUSE.1);
        let until = now + longest.mul_f64(random.random_range(0.5..1.0));
        // One that is asked right before the end could not answer, and its silence would hide what this one said.
        self.state = if until + LAST_ATTEMPT < deadline { State::Waiting(until) } else { State::Failed };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// What a node does with one shard of a call.
    #[derive(Clone, Copy, Debug)]
    enum Does {
        Answers,
        Fails,
        LeavesOut,
    }

    fn behaviour() -> impl Strategy<Value = Does> {
        prop_oneof![2 => Just(Does::Answers), 3 => Just(Does::Fails), 1 => Just(Does::LeavesOut)]
    }

    proptest! {
        /// Nodes answer, fail, stay silent or leave shards out as a random script says; time moves by what calls take.
        #[test]
        fn every_shard_ends_and_the_rules_hold(
            placement in proptest::collection::btree_map(1_u64..12, proptest::collection::btree_set(1_u64..6, 0..4), 1..10),
            script in proptest::collection::vec((behaviour(), 0_u64..400, any::<bool>()), 1..200),
            shunned in proptest::collection::btree_set(1_u64..6, 0..3),
            seed: u64,
        ) {
            let deadline = Duration::from_millis(2_000);
            let placement: BTreeMap<ShardId, Vec<NodeId>> = placement
                .into_iter()
                .map(|(shard, nodes)| (ShardId(shard), nodes.into_iter().map(NodeId).collect()))
                .collect();
            let nodes = Nodes { shunned: shunned.into_iter().map(NodeId).collect(), ..Default::default() };
            let mut random = SmallRng::seed_from_u64(seed);
            let mut script = script.into_iter().cycle();
            let mut scatter = Scatter::start(placement.clone(), deadline);
            let mut asked: BTreeMap<ShardId, Vec<NodeId>> = BTreeMap::new();
            let mut under_way: BTreeMap<(Duration, u64), (Ask, bool)> = BTreeMap::new();
            let mut now = Duration::ZERO;
            let mut answered: BTreeSet<ShardId> = BTreeSet::new();
            for _ in 0..100_000 {
                for ask in scatter.due(now, &nodes, &mut random) {
                    prop_assert!(now < deadline, "asked after the deadline");
                    prop_assert!(now + ask.timeout <= deadline);
                    prop_assert!(!ask.shards.is_empty());
                    for shard in &ask.shards {
                        let replicas = &placement[shard];
                        prop_assert!(replicas.contains(&ask.node));
                        let before = asked.entry(*shard).or_default();
                        let untried: Vec<_> = replicas.iter().filter(|node| !before.contains(node)).collect();
                        prop_assert!(untried.is_empty() || untried.contains(&&ask.node), "others are untried");
                        if replicas.len() > 1 {
                            prop_assert_ne!(before.last(), Some(&ask.node), "twice in a row");
                        }
                        if untried.iter().any(|node| !nodes.shunned.contains(node)) {
                            prop_assert!(!nodes.shunned.contains(&ask.node), "a shunned node before a healthy one");
                        }
                        if untried.len() > 1 {
                            prop_assert!(ask.timeout * 2 <= deadline, "one attempt may take the whole deadline");
                        }
                        before.push(ask.node);
                    }
                    let (_, takes, silent) = script.next().unwrap();
                    let ends = if silent { ask.timeout } else { Duration::from_millis(takes).min(ask.timeout) };
                    under_way.insert((now + ends, ask.call), (ask, silent || ends < Duration::from_millis(takes)));
                }
                if scatter.is_over() {
                    break;
                }
                let next_call = under_way.keys().next().copied();
                let next = [next_call.map(|(at, _)| at), scatter.wakes_at(), Some(deadline)].into_iter().flatten().min();
                now = now.max(next.unwrap());
                if now >= deadline {
                    scatter.on_deadline();
                    continue;
                }
                if let Some(key) = next_call.filter(|(at, _)| *at <= now) {
                    let (ask, silent) = under_way.remove(&key).unwrap();
                    if silent {
                        scatter.on_failure(now, ask.call, &NodeFailure::new(Meaning::Late, "silent"), &mut random);
                    } else {
                        let mut answers = BTreeMap::new();
                        for shard in &ask.shards {
                            match script.next().unwrap().0 {
                                Does::Answers => drop(answers.insert(*shard, Ok(()))),
                                Does::Fails => {
                                    answers.insert(*shard, Err(NodeFailure::new(Meaning::Behind, "behind")));
                                }
                                Does::LeavesOut => {}
                            }
                        }
                        for shard in scatter.on_reply(now, ask.call, answers, &mut random) {
                            prop_assert!(answered.insert(shard), "answered twice");
                        }
                    }
                }
            }
            prop_assert!(scatter.is_over());
            for (shard, replicas) in &placement {
                match scatter.state(*shard) {
                    Some(State::Answered(node)) => {
                        prop_assert!(replicas.contains(node) && answered.contains(shard));
                        prop_assert!(scatter.failure(*shard).is_none());
                    }
                    Some(State::Failed) => {
                        prop_assert!(scatter.failure(*shard).is_some() && !answered.contains(shard));
                        // It may not give up early: every replica was asked, unless time ran out.
                        let tried: BTreeSet<_> = asked.get(shard).into_iter().flatten().collect();
                        prop_assert!(tried.len() == replicas.len() || now >= deadline);
                    }
                    other => prop_assert!(false, "{shard} ended as {other:?}"),
                }
            }
        }
    }

    #[test]
    fn with_all_replicas_well_one_call_a_node_answers_and_late_replies_count_for_nothing() {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let shards = (1..=6).map(|shard| (ShardId(shard), nodes.to_vec())).collect();
        let mut random = SmallRng::seed_from_u64(7);
        let mut scatter = Scatter::start(shards, Duration::from_secs(3));
        let first = scatter.due(Duration::ZERO, &Nodes::default(), &mut random);
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].shards.len(), first[0].timeout), (6, Duration::from_secs(1)));
        scatter.on_failure(Duration::from_secs(1), first[0].call, &NodeFailure::new(Meaning::Late, "x"), &mut random);
        let second = scatter.due(Duration::from_secs(1), &Nodes::default(), &mut random);
        assert_eq!((second.len(), second[0].shards.len()), (1, 6));
        assert_ne!(second[0].node, first[0].node);
        let all = |ask: &Ask| ask.shards.iter().map(|shard| (*shard, Ok(()))).collect();
        assert!(scatter.on_reply(Duration::from_secs(1), first[0].call, all(&first[0]), &mut random).is_empty());
        assert_eq!(scatter.on_reply(Duration::from_secs(1), second[0].call, all(&second[0]), &mut random).len(), 6);
        assert!(scatter.is_over());
    }
}
