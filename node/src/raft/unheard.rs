//! A leader whom nobody answers hands its group to a follower.
//!
//! The problem: where messages to a leader are lost and its own arrive (a one-way cut, a full receive queue), its followers see
//! its heartbeats, elect nobody and refuse each other's votes, while nothing can commit. Raft alone ends this only by the
//! heartbeats' ceasing, after which followers wait out their election timeout.
//!
//! The rule: once a quorum's last answer is older than the leader's lease, writes and reads are refused here in any case, so
//! nothing is lost by asking another to lead. The follower that answered last is told so, over the direction that still works,
//! and stands for election at once; it wins only if a majority holds no newer log (Raft's own rule). A leader that asked stops
//! proposing and sends no heartbeats: if the message is lost too, the followers' election timeouts run.
//!
//! Deliberately not here: choosing a better leader while there is a quorum (`shard/maintain.rs`).
use std::time::Duration;

use nearring_proto::ids::ReplicaId;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::RaftStateMachine;
use tokio::time::sleep;

use super::{Raft, TypeConfig};

type Instant = openraft::alias::InstantOf<TypeConfig>;
type Metrics = openraft::RaftMetrics<TypeConfig>;

/// Watches over a group's replica for ever. `lease` is the longest election timeout.
pub(crate) async fn watch<SM: RaftStateMachine<TypeConfig>>(raft: Raft<SM>, lease: Duration) {
    // In which term it was last asked for: one term needs no second request, its leader has stopped leading.
    let mut asked = None;
    // Seen twice: a process that stood still finds old times and unread answers alike.
    let mut seen = None;
    loop {
        sleep(lease / 6).await;
        let (heir, term) = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            (heir(&metrics, Instant::now(), lease), metrics.current_term)
        };
        let Some(heir) = heir.filter(|_| asked != Some(term)) else {
            seen = None;
            continue;
        };
        if seen.replace(term) != Some(term) {
            continue;
        }
        asked = Some(term);
        tracing::info!(%heir, term, "nobody answers this leader; another is asked to lead");
        if raft.trigger().transfer_leader(heir).await.is_err() {
            return; // the replica has stopped
        }
    }
}

/// Who is to lead instead, where this replica leads and no quorum has answered within `lease`: the voter that answered last, of
/// several the one that is known to hold more.
fn heir(metrics: &Metrics, now: Instant, lease: Duration) -> Option<ReplicaId> {
    let acked = **metrics.last_quorum_acked.as_ref().filter(|_| metrics.state.is_leader())?;
    if now.saturating_duration_since(acked) <= lease {
        return None;
    }
    let (answered, matched) = (metrics.heartbeat.as_ref()?, metrics.replication.as_ref()?);
    let others = metrics.membership_config.membership().voter_ids().filter(|voter| *voter != metrics.id);
    let last = |voter: &ReplicaId| answered.get(voter).copied().flatten().map(|at| *at);
    others
        .filter(|voter| last(voter).is_some())
        .max_by_key(|voter| (last(voter), matched.get(voter).copied().flatten()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use nearring_proto::ids::{Incarnation, NodeId};
    use openraft::ServerState;
    use openraft::metrics::SerdeInstant;

    use super::*;
    use crate::raft::{Membership, StoredMembership};

    const LEASE: Duration = Duration::from_millis(450);

    fn replica(node: u64) -> ReplicaId {
        ReplicaId { node: NodeId(node), incarnation: Incarnation(1) }
    }

    /// Replica 1 of three leads; a quorum answered, and replicas 2 and 3, so many milliseconds before `now`.
    fn leading(now: Instant, quorum: u64, answered: [Option<u64>; 2]) -> Metrics {
        let at = |ago: u64| SerdeInstant::new(now - Duration::from_millis(ago));
        let mut metrics = Metrics::new_initial(replica(1));
        metrics.state = ServerState::Leader;
        metrics.last_quorum_acked = Some(at(quorum));
        let of = |node: u64| replica(node);
        let answered = BTreeMap::from([(of(2), answered[0].map(at)), (of(3), answered[1].map(at))]);
        metrics.heartbeat = Some(answered);
        metrics.replication = Some(BTreeMap::from([(of(2), None), (of(3), None)]));
        let voters = BTreeSet::from([of(1), of(2), of(3)]);
        let membership = Membership::new_with_defaults(vec![voters], []);
        metrics.membership_config = Arc::new(StoredMembership::new(None, membership));
        metrics
    }

    #[tokio::test(start_paused = true)]
    async fn leads_on_while_a_quorum_answers() {
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        assert_eq!(heir(&leading(now, 450, [Some(450), Some(9_000)]), now, LEASE), None);
        let mut follower = leading(now, 9_000, [Some(9_000), Some(9_000)]);
        follower.state = ServerState::Follower;
        assert_eq!(heir(&follower, now, LEASE), None, "a follower has nothing to hand over");
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_answered_last_is_asked() {
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        assert_eq!(heir(&leading(now, 451, [Some(500), Some(451)]), now, LEASE), Some(replica(3)));
        assert_eq!(heir(&leading(now, 451, [Some(451), Some(30_000)]), now, LEASE), Some(replica(2)));
        assert_eq!(heir(&leading(now, 451, [None, Some(30_000)]), now, LEASE), Some(replica(3)));
        assert_eq!(heir(&leading(now, 451, [None, None]), now, LEASE), None, "none is known to be there");
    }
}
