//! From the members a group has to the members it shall have, one safe step at a time.
//!
//! The problem: a node whose data directory was wiped comes back as another replica, and must take its old life's seat
//! without the group ever being less able to survive a death than before. So [`next_step`] lets it in as a learner, waits
//! until it has caught up, and only then gives it the seat, in the same change that takes the seat from the old life.
//!
//! **Rules:** a replica votes only after it has caught up; there are never fewer voters than are desired, nor fewer than
//! now, unless every desired replica votes already; a change that a leader left half done is finished before anything else; nothing is
//! done for an empty wish. [`next_step`] is pure; [`converge`] takes the step that it names, and may be called again at
//! any time, by any leader, after any failure.
//!
//! Not decided here: what is desired. That is the placement table's business.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nearring_proto::ids::ReplicaId;
use openraft::rt::WatchReceiver as _;
use openraft::storage::RaftStateMachine;
use openraft::{BasicNode, ChangeMembers};

use super::{Membership, Raft, TypeConfig};

/// How many entries a learner may be behind and count as caught up: a busy group never stands still for it, and these
/// are sent in a fraction of a second.
pub const CAUGHT_UP_WITHIN: u64 = 256;

/// How long one step may take to be committed before the caller is told that it was not.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// One change of a group's membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Members are as desired, or what is missing needs time: a learner is catching up.
    None,
    /// Let a replica follow, without a vote.
    AddLearner(ReplicaId, String),
    /// Members with these ids have new addresses.
    SetAddresses(BTreeMap<ReplicaId, String>),
    /// Exactly these vote from now on. Whoever loses the vote leaves the group.
    ChangeVoters(BTreeSet<ReplicaId>),
    /// These follow no more.
    RemoveLearners(BTreeSet<ReplicaId>),
}

/// The next step from `current` to `desired`, which maps replicas to their addresses. `caught_up` are the replicas whose
/// log the leader knows to be nearly complete.
pub fn next_step(current: &Membership, caught_up: &BTreeSet<ReplicaId>, desired: &BTreeMap<ReplicaId, String>) -> Step {
    let configs = current.get_joint_config();
    let Some(voters) = configs.last().filter(|_| !desired.is_empty()) else { return Step::None };
    if configs.len() > 1 {
        return Step::ChangeVoters(voters.clone());
    }
    let nodes: BTreeMap<ReplicaId, &str> = current.nodes().map(|(id, node)| (*id, node.addr.as_str())).collect();
    let moved: BTreeMap<ReplicaId, String> = desired
        .iter()
        .filter(|(id, address)| nodes.get(id).is_some_and(|known| known != address))
        .map(|(id, address)| (*id, address.clone()))
        .collect();
    if !moved.is_empty() {
        return Step::SetAddresses(moved);
    }
    let strays: BTreeSet<ReplicaId> =
        nodes.keys().filter(|id| !voters.contains(id) && !desired.contains_key(id)).copied().collect();
    if !strays.is_empty() {
        return Step::RemoveLearners(strays);
    }
    if let Some((id, address)) = desired.iter().find(|(id, _)| !nodes.contains_key(id)) {
        return Step::AddLearner(*id, address.clone());
    }
    let ready = desired.keys().find(|id| !voters.contains(id) && caught_up.contains(id));
    if let Some(ready) = ready {
        return Step::ChangeVoters(seat(*ready, voters, desired));
    }
    let waiting = desired.keys().any(|id| !voters.contains(id));
    let wanted: BTreeSet<ReplicaId> = desired.keys().copied().collect();
    if waiting || *voters == wanted { Step::None } else { Step::ChangeVoters(wanted) }
}

/// The voters once `ready` votes: in the place of its own earlier life, or else of any voter that is not desired, so that
/// their number (and with it the majority that must be alive) does not grow while a seat is merely handed on.
fn seat(ready: ReplicaId, voters: &BTreeSet<ReplicaId>, desired: &BTreeMap<ReplicaId, String>) -> BTreeSet<ReplicaId> {
    let mut next = voters.clone();
    next.insert(ready);
    let leaving = || voters.iter().filter(|id| !desired.contains_key(id));
    let old_life = leaving().find(|id| id.node == ready.node);
    if let Some(gone) = old_life.or_else(|| leaving().next()).filter(|_| voters.len() >= desired.len()) {
        next.remove(gone);
    }
    next
}

/// A step was not taken, or nobody knows whether it was. Calling again is safe.
#[derive(Debug, thiserror::Error)]
pub enum ConvergeError {
    /// Only a leader changes members.
    #[error("this replica does not lead the group (any more)")]
    NotLeader,
    /// No majority confirmed the step in time; it may still be.
    #[error("the change of members was not confirmed within {STEP_TIMEOUT:?}; it may still be")]
    TimedOut,
    /// Raft refused or stopped.
    #[error("the change of members failed: {0}")]
    Raft(String),
}

/// Takes one step towards `desired`, and says which. To be called by a leader whenever the wish, or a learner's progress,
/// has changed; [`Step::None`] means that there was nothing to do now.
///
/// # Errors
/// [`ConvergeError`]; the next call continues from wherever the group is then.
pub async fn converge<SM>(raft: &Raft<SM>, desired: &BTreeMap<ReplicaId, String>) -> Result<Step, ConvergeError>
where
    SM: RaftStateMachine<TypeConfig>,
{
    let (membership, caught_up) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(replication) = metrics.replication.as_ref() else { return Err(ConvergeError::NotLeader) };
        let last = metrics.last_log_index.unwrap_or(0);
        let caught_up: BTreeSet<ReplicaId> = replication
            .iter()
            .filter(|(_, matched)| {
                matched.as_ref().is_some_and(|matched| matched.index.saturating_add(CAUGHT_UP_WITHIN) >= last)
            })
            .map(|(id, _)| *id)
            .collect();
        (metrics.membership_config.membership().clone(), caught_up)
    };
    let step = next_step(&membership, &caught_up, desired);
    let node = |address: &String| BasicNode { addr: address.clone() };
    let change: ChangeMembers<ReplicaId, BasicNode> = match &step {
        Step::None => return Ok(Step::None),
        Step::AddLearner(id, address) => ChangeMembers::AddNodes(BTreeMap::from([(*id, node(address))])),
        Step::SetAddresses(moved) => {
            ChangeMembers::SetNodes(moved.iter().map(|(id, address)| (*id, node(address))).collect())
        }
        Step::ChangeVoters(voters) => ChangeMembers::ReplaceAllVoters(voters.clone()),
        Step::RemoveLearners(learners) => ChangeMembers::RemoveNodes(learners.clone()),
    };
    // Who loses the vote leaves; a learner stays one, whatever happens to the voters.
    match tokio::time::timeout(STEP_TIMEOUT, raft.change_membership(change, false)).await {
        Err(_) => Err(ConvergeError::TimedOut),
        Ok(Ok(_)) => Ok(step),
        Ok(Err(error)) => match error.forward_to_leader() {
            Some(_) => Err(ConvergeError::NotLeader),
            None => Err(ConvergeError::Raft(error.to_string())),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nearring_proto::ids::{Incarnation, NodeId};
    use proptest::prelude::*;

    use super::*;

    fn replica(node: u64, life: u64) -> ReplicaId {
        ReplicaId { node: NodeId(node), incarnation: Incarnation(life) }
    }

    fn address(id: ReplicaId) -> String {
        format!("node{}:7000", id.node.0)
    }

    fn wish(ids: &[ReplicaId]) -> BTreeMap<ReplicaId, String> {
        ids.iter().map(|id| (*id, address(*id))).collect()
    }

    fn membership(configs: Vec<BTreeSet<ReplicaId>>, nodes: &BTreeMap<ReplicaId, String>) -> Membership {
        let nodes: BTreeMap<_, _> = nodes.iter().map(|(id, addr)| (*id, BasicNode { addr: addr.clone() })).collect();
        Membership::new(configs, nodes).unwrap()
    }

    #[test]
    fn a_new_life_follows_first_and_then_takes_its_old_lifes_seat() {
        let (one, two, old, new) = (replica(1, 1), replica(2, 1), replica(3, 1), replica(3, 2));
        let voters = BTreeSet::from([one, two, old]);
        let desired = wish(&[one, two, new]);
        let before = membership(vec![voters.clone()], &wish(&[one, two, old]));
        let caught_up = voters.clone();
        assert_eq!(next_step(&before, &caught_up, &desired), Step::AddLearner(new, address(new)));
        let learning = membership(vec![voters.clone()], &wish(&[one, two, old, new]));
        assert_eq!(next_step(&learning, &caught_up, &desired), Step::None, "it is still catching up");
        let caught_up = BTreeSet::from([one, two, new]);
        let after = BTreeSet::from([one, two, new]);
        assert_eq!(next_step(&learning, &caught_up, &desired), Step::ChangeVoters(after.clone()));
        let halfway = membership(vec![voters, after.clone()], &wish(&[one, two, old, new]));
        assert_eq!(next_step(&halfway, &BTreeSet::new(), &desired), Step::ChangeVoters(after.clone()));
        let done = membership(vec![after], &desired);
        assert_eq!(next_step(&done, &caught_up, &desired), Step::None);
        assert_eq!(next_step(&done, &caught_up, &BTreeMap::new()), Step::None, "an empty wish empties nothing");
        let mut elsewhere = desired.clone();
        elsewhere.insert(one, "elsewhere:1".into());
        let moved = Step::SetAddresses(BTreeMap::from([(one, "elsewhere:1".to_owned())]));
        assert_eq!(next_step(&done, &caught_up, &elsewhere), moved);
    }

    /// A group, as far as its membership goes: what openraft does with each step, or with half of one.
    fn take(step: &Step, voters: &mut Vec<BTreeSet<ReplicaId>>, nodes: &mut BTreeMap<ReplicaId, String>, half: bool) {
        match step {
            Step::None => {}
            Step::AddLearner(id, address) => drop(nodes.insert(*id, address.clone())),
            Step::SetAddresses(moved) => nodes.extend(moved.clone()),
            Step::RemoveLearners(gone) => nodes.retain(|id, _| !gone.contains(id)),
            Step::ChangeVoters(next) => {
                let before = voters.last().unwrap().clone();
                if half && voters.len() == 1 && before != *next {
                    *voters = vec![before, next.clone()];
                    return;
                }
                let all: BTreeSet<ReplicaId> = voters.iter().flatten().copied().collect();
                *voters = vec![next.clone()];
                nodes.retain(|id, _| next.contains(id) || !all.contains(id));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// From any members to any wish: it ends, it ends as wished, and on the way no voter is new and behind, nor are
        /// there fewer voters than before and than wished.
        #[test]
        fn every_group_converges_and_keeps_its_quorum(
            start in prop::collection::btree_map(1..6u64, 1..3u64, 1..6),
            learners in prop::collection::btree_map(1..6u64, 3..5u64, 0..3),
            wishes in prop::collection::vec((prop::collection::btree_map(1..6u64, 1..6u64, 1..6), 0..8usize), 1..4),
            halves in prop::collection::vec(any::<bool>(), 64),
            slow in prop::collection::vec(any::<bool>(), 64),
        ) {
            let ids = |map: &BTreeMap<u64, u64>| map.iter().map(|(node, life)| replica(*node, *life)).collect::<Vec<_>>();
            let mut voters = vec![ids(&start).into_iter().collect::<BTreeSet<_>>()];
            let mut nodes = wish(&ids(&start));
            nodes.extend(wish(&ids(&learners)));
            let mut caught_up = voters[0].clone();
            let last = wishes.len() - 1;
            for (at, (wished, patience)) in wishes.iter().enumerate() {
                let mut desired = wish(&ids(wished));
                if at % 2 == 1 {
                    desired.values_mut().for_each(|address| address.push('1'));
                }
                // The last wish is carried to its end; earlier ones are given up anywhere on the way.
                let steps = if at == last { 64 } else { *patience };
                for turn in 0..steps {
                    let step = next_step(&membership(voters.clone(), &nodes), &caught_up, &desired);
                    if let Step::ChangeVoters(next) = &step {
                        let now = voters.last().unwrap();
                        prop_assert!(next.is_subset(&now.union(&caught_up).copied().collect()), "{next:?} votes unprepared");
                        let all_vote = desired.keys().all(|id| now.contains(id));
                        prop_assert!(next.len() >= now.len() || all_vote, "{now:?} shrinks to {next:?}");
                        prop_assert!(next.len() >= desired.len().min(now.len()));
                        prop_assert!(voters.len() == 1 || next == now, "a half done change is finished first");
                    }
                    let idle = step == Step::None;
                    take(&step, &mut voters, &mut nodes, halves[turn]);
                    if idle || !slow[turn] {
                        caught_up.extend(nodes.keys().copied());
                    }
                }
                if at == last {
                    prop_assert_eq!(&voters, &vec![desired.keys().copied().collect::<BTreeSet<_>>()]);
                    prop_assert_eq!(&nodes, &desired);
                }
            }
        }
    }
}
