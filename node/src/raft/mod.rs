//! Raft: the types every group runs with, the log they share, the bytes they exchange.
//!
//! One [`TypeConfig`] serves shards and the meta group alike: to Raft, what is proposed and what is answered are opaque
//! bytes. So an entry's payload is encoded once by the proposer and then travels as slices of the same bytes through
//! log, wire and state machine.
//!
//! **Invariant:** every task of the node is spawned by [`spawn`] inside a [`scope`], in production too; randomness in Raft
//! (election timeouts) then comes from the scope's seed, and the binary that is simulated is the binary that is shipped.
pub mod codec;
pub(crate) mod files;
pub mod group;
pub mod log;
pub mod membership;
pub mod peers;
pub(crate) mod unheard;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nearring_proto::ids::ReplicaId;
use openraft::{AsyncRuntime, Config, ConfigError, SnapshotPolicy};
use openraft_rt::deterministic_rng::DeterministicRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! opaque_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Default)]
        pub struct $name(pub Bytes);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} bytes", self.0.len())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({} bytes)"), self.0.len())
            }
        }

        impl From<Bytes> for $name {
            fn from(bytes: Bytes) -> Self {
                Self(bytes)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Vec::<u8>::deserialize(deserializer).map(|bytes| Self(Bytes::from(bytes)))
            }
        }
    };
}

opaque_bytes!(
    /// What a leader proposes: an encoded command. Raft does not look inside.
    Proposal
);
opaque_bytes!(
    /// What the state machine answered: an encoded reply for whoever proposed. Raft does not look inside; empty for
    /// entries that carry no command.
    Response
);

openraft::declare_raft_types!(
    /// The types of every Raft group of a node. One leader per term.
    pub TypeConfig:
        D = Proposal,
        R = Response,
        NodeId = ReplicaId,
        Node = openraft::BasicNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, ReplicaId>,
        AsyncRuntime = Runtime,
);

/// The async runtime as Raft sees it: tokio with a seeded source of randomness.
pub type Runtime = DeterministicRng<openraft_rt_tokio::TokioRuntime>;
/// One group's Raft with state machine `SM`.
pub type Raft<SM> = openraft::Raft<TypeConfig, SM>;
/// (term, index).
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote, and whether a quorum granted it.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What a log entry carries.
pub type Payload = openraft::alias::PayloadOf<TypeConfig>;
/// Voters and learners.
pub type Membership = openraft::Membership<ReplicaId, openraft::BasicNode>;
/// A membership, and the entry that made it so.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;

/// Spawns a task that inherits the scope's randomness. All tasks of the node are spawned here.
///
/// # Panics
/// Outside a [`scope`].
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Runtime::spawn(future)
}

/// Runs `future`, and every task it spawns by [`spawn`], with randomness that follows from `seed`.
pub fn scope<F: Future>(seed: u64, future: F) -> impl Future<Output = F::Output> {
    Runtime::scope(seed, future)
}

/// The Raft configuration of every group: heartbeat interval, and the shortest and longest election timeout
/// ([`crate::settings::RaftSettings`] says what they mean).
///
/// Snapshots are ours to trigger, and logs are purged only up to a durable one. Log reversion stays off: a replica that
/// lost its log comes back under another id.
///
/// # Errors
/// Where the timings contradict each other: heartbeat < shortest < longest must hold.
pub fn config(heartbeat: Duration, election: (Duration, Duration)) -> Result<Arc<Config>, ConfigError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "nearring".to_owned(),
        heartbeat_interval: millis(heartbeat),
        // A follower that answered lately needs no heartbeat.
        heartbeat_min_interval: Some(millis(heartbeat) / 2),
        election_timeout_min: millis(election.0),
        election_timeout_max: millis(election.1),
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        // A leader sends entries before its own disk has them. Were it killed then and led on in the same term, it would
        // give their indexes to other entries under the same log ids, which followers cannot tell apart: replicas that
        // differ for ever. (Found by `bench`'s process runs: kill -9 of a leader under writes.) A leader that restarts is a
        // follower first, and leads again in a new term only.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::Never,
        // The log bounds a message by bytes; this bounds it where entries are tiny.
        max_payload_entries: 256,
        // Purge when told to, whole: what to keep is decided by whoever triggers the purge.
        max_in_snapshot_log_to_keep: 0,
        install_snapshot_timeout: 600_000,
        ..Config::default()
    };
    Ok(Arc::new(config.validate()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_also_in_spawned_tasks() {
        // A generator prints its state where it can; two of one seed are equal, two of different seeds are not.
        let draw = |seed| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(scope(seed, async {
                let child = spawn(async { Runtime::thread_rng() }).await.unwrap();
                (child, Runtime::thread_rng())
            }))
        };
        assert!(draw(7) == draw(7));
        assert!(draw(7) != draw(8));
    }

    #[test]
    fn a_restarted_leader_is_elected_anew() {
        let ms = Duration::from_millis;
        let config = config(ms(100), (ms(400), ms(800))).unwrap();
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.allow_log_reversion, Some(false));
    }

    #[test]
    fn contradicting_timings_are_refused() {
        let ms = Duration::from_millis;
        assert!(config(ms(100), (ms(400), ms(800))).is_ok());
        assert!(config(ms(500), (ms(400), ms(800))).is_err());
        assert!(config(ms(100), (ms(800), ms(400))).is_err());
    }

    #[test]
    fn opaque_bytes_survive_serde() {
        let proposal = Proposal(Bytes::from_static(b"\x00\xff opaque"));
        let json = serde_json::to_string(&proposal).unwrap();
        assert_eq!(serde_json::from_str::<Proposal>(&json).unwrap(), proposal);
    }
}
