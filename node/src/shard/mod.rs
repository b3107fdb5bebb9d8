//! One replica of one shard: its Raft, its state, and everything that happens to them.
//!
//! [`state`] is what it holds, [`apply`] drives it from Raft, [`snapshot`] and [`files`] are its files, [`plan`] decides
//! about segments and [`maintain`] carries that out, [`view`] reads all of it as of one moment. Here is the handle: writing
//! through the log, and waiting until a read may be answered.
//!
//! Tasks: openraft's own, which end with [`Shard::stop`]; and what [`Shard::start`] spawns, maintenance and the watch over a leader
//! whom nobody answers.
pub mod apply;
pub mod files;
pub mod maintain;
pub mod plan;
pub mod snapshot;
pub mod state;
#[cfg(test)]
mod tests;
pub mod view;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nearring_proto::ids::{NodeId, ReplicaId, RequestId, ShardId};
use nearring_proto::position::ReadLevel;
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use self::apply::ShardMachine;
use self::state::ShardState;
use crate::machine::command::{Command, Envelope, Refusal, Reply, decode_reply};
use crate::raft::group::{Group, SnapshotFile, SnapshotMeta};
use crate::raft::{Proposal, Raft, TypeConfig, Vote};
use crate::shards::NodeContext;

/// Why a write was not carried out, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Another replica leads. Nothing was proposed.
    #[error("this replica does not lead the shard")]
    NotLeader {
        /// Who does, as far as this replica knows.
        leader: Option<NodeId>,
    },
    /// Nothing was proposed.
    #[error("{0}")]
    NotProposed(String),
    /// It was proposed, and what became of it is not known.
    #[error("{0}; the write may or may not have happened")]
    Unknown(String),
    /// Over a limit; nothing was proposed.
    #[error("{0}")]
    Exhausted(String),
    /// The log took it, and the state machine refused it; nothing changed.
    #[error(transparent)]
    Refused(Refusal),
}

/// Why a read cannot be answered here.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// This replica has not applied what the caller has seen.
    #[error("this replica has applied entry {applied}, the read wants {wanted}")]
    Behind {
        /// The applied index.
        applied: u64,
        /// The index wanted.
        wanted: u64,
    },
    /// Nobody proved to lead in time.
    #[error("no leader proved itself within the deadline: {0}")]
    NoLeader(String),
    /// The replica has stopped.
    #[error("the replica has stopped: {0}")]
    Stopped(String),
}

/// A write that was carried out.
#[derive(Debug)]
pub struct Written {
    /// The log index.
    pub index: u64,
    /// What the state machine answered.
    pub reply: Reply,
    /// Whether it had answered the same request before.
    pub repeated: bool,
}

/// A running replica.
pub struct Shard {
    /// The shard.
    pub id: ShardId,
    /// What it holds.
    pub state: Arc<ShardState>,
    /// Its Raft.
    pub raft: Raft<ShardMachine>,
    ctx: Arc<NodeContext>,
    stop: CancellationToken,
}

impl Shard {
    /// How long a session read waits for a replica that is behind before another one should be asked.
    pub const BEHIND_WAIT: Duration = Duration::from_millis(250);
    /// The largest encoded command. A Raft message and a snapshot block must hold it.
    pub const COMMAND_BYTES_MAX: usize = 32 << 20;

    /// Opens the replica's state and starts its Raft. It takes part in nothing until it is initialised, or a leader adds it.
    ///
    /// # Errors
    /// As [`ShardState::open`], and of openraft where log and state contradict each other.
    pub async fn start(ctx: Arc<NodeContext>, id: ShardId) -> io::Result<Arc<Self>> {
        let log = ctx.log.group(id);
        let compute = ctx.compute.clone();
        let (last_durable, purged) = (log.last_durable(), log.purged());
        let opened = {
            let ctx = ctx.clone();
            let open = move || {
                let engine = ctx.engine;
                ShardState::open(ctx.medium.clone(), engine, &ctx.data_dir, id, ctx.me, last_durable, purged)
            };
            compute.io(open).await?
        };
        let state = opened.state;
        if let Some((mut from, to)) = opened.replay {
            let mut home_epoch = opened.home_epoch;
            while from <= to {
                let until = to.min(from + 255);
                let entries = log.entries(from..=until).await?;
                let state = state.clone();
                home_epoch = compute.io(move || state.restore_from_entries(&entries, home_epoch)).await?;
                from = until + 1;
            }
        }
        let config = crate::raft::config(ctx.settings.raft.heartbeat, ctx.settings.raft.election)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        let machine = ShardMachine::new(state.clone(), compute, opened.machine);
        let raft = Raft::new(ctx.me, config, ctx.peers.network(id), log, machine)
            .await
            .map_err(|error| io::Error::other(error.to_string()))?;
        let shard = Arc::new(Self { id, state, raft, ctx, stop: CancellationToken::new() });
        crate::raft::spawn(maintain::run(shard.clone(), shard.stop.clone()));
        let unheard = crate::raft::unheard::watch(shard.raft.clone(), shard.ctx.settings.raft.election.1);
        crate::raft::spawn(shard.stop.clone().run_until_cancelled_owned(unheard));
        Ok(shard)
    }

    /// Stops Raft and maintenance and closes the store. Idempotent.
    pub async fn stop(&self) {
        self.stop.cancel();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = %self.id, %error, "raft did not shut down cleanly");
        }
        let state = self.state.clone();
        self.ctx.compute.io(move || state.close()).await;
    }

    /// Takes a snapshot in the background; the log before it is purged then.
    pub async fn snapshot(&self) {
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::warn!(shard = %self.id, %error, "no snapshot can be taken");
        }
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<ReplicaId> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// Whether this replica believes it leads.
    pub fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// Proposes a command and waits until it is applied here.
    ///
    /// # Errors
    /// [`WriteError`], which tells whether anything was proposed.
    pub async fn write(
        &self,
        command: Command,
        request: Option<RequestId>,
        deadline: Instant,
    ) -> Result<Written, WriteError> {
        let envelope = Envelope { now_ms: self.ctx.clock.now_ms(), request, command };
        let bytes = envelope.encode();
        if bytes.len() > Self::COMMAND_BYTES_MAX {
            let reason = format!(
                "the write is {} bytes encoded, the limit is {}; send fewer points at once",
                bytes.len(),
                Self::COMMAND_BYTES_MAX
            );
            return Err(WriteError::Refused(Refusal::Invalid { field: "points".to_owned(), reason }));
        }
        drop(envelope);
        let proposed = timeout_at(deadline, self.raft.client_write(Proposal(bytes))).await;
        let written = match proposed {
            Err(_) => return Err(WriteError::Unknown("the deadline passed before the write was committed".into())),
            Ok(Ok(written)) => written,
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                return Err(WriteError::NotLeader { leader: forward.leader_id.map(|replica| replica.node) });
            }
            Ok(Err(RaftError::APIError(error))) => return Err(WriteError::Unknown(error.to_string())),
            Ok(Err(RaftError::Fatal(error))) => {
                return Err(WriteError::Unknown(format!("the replica has stopped: {error}")));
            }
        };
        let (reply, repeated) = decode_reply(&written.data.0)
            .map_err(|error| WriteError::Unknown(format!("the answer cannot be read: {error}")))?;
        match reply {
            Reply::Refused(refusal) => Err(WriteError::Refused(refusal)),
            reply => Ok(Written { index: written.log_id.index, reply, repeated }),
        }
    }

    /// Waits until a read at `level`, and at or after `after`, may be answered from this replica's state.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn ready(&self, level: ReadLevel, after: u64, deadline: Instant) -> Result<(), ReadError> {
        match level {
            ReadLevel::Eventual => Ok(()),
            ReadLevel::Session => self.wait_applied(after, deadline.min(Instant::now() + Self::BEHIND_WAIT)).await,
            ReadLevel::Linearizable => {
                let index = self.read_index(deadline).await?;
                self.wait_applied(index.max(after), deadline).await
            }
        }
    }

    /// Waits until `index` is applied here.
    ///
    /// # Errors
    /// [`ReadError::Behind`] at the deadline.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), ReadError> {
        let mut applied = self.state.applied();
        let reached = timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped("it is shutting down".to_owned())),
            Err(_) => Err(ReadError::Behind { applied: self.state.read().applied(), wanted: index }),
        }
    }

    /// The index that a linearizable read beginning now must wait for: proven by this replica where it leads, else asked
    /// of the leader.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] where no proof came in time.
    pub async fn read_index(&self, deadline: Instant) -> Result<u64, ReadError> {
        let mut why = "no leader is known".to_owned();
        loop {
            match self.leader() {
                Some(leader) if leader == self.ctx.me => match self.prove_leadership(deadline).await {
                    Ok(index) => return Ok(index),
                    Err(error) => why = error.to_string(),
                },
                Some(leader) => {
                    let address = self.address_of(leader);
                    let left = deadline.saturating_duration_since(Instant::now());
                    // One attempt is short: the leader may be gone, and the next one elected before the deadline.
                    let attempt = left.min(self.ctx.settings.raft.election.1 * 2);
                    match address {
                        Some(address) => match self.ctx.peers.read_index(&address, &[self.id], attempt).await {
                            Ok(positions) => {
                                if let Some(position) = positions.iter().find(|position| position.shard == self.id) {
                                    return Ok(position.index);
                                }
                                why = "the leader does not lead any more".to_owned();
                            }
                            Err(error) => why = error.to_string(),
                        },
                        None => why = "the leader's address is not known".to_owned(),
                    }
                }
                None => {}
            }
            if Instant::now() + Self::RETRY_PAUSE >= deadline {
                return Err(ReadError::NoLeader(why));
            }
            tokio::time::sleep(Self::RETRY_PAUSE).await;
        }
    }

    const RETRY_PAUSE: Duration = Duration::from_millis(20);

    /// The commit index, after a majority has confirmed that this replica leads.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] where it does not, or no majority answered in time.
    pub async fn prove_leadership(&self, deadline: Instant) -> Result<u64, ReadError> {
        // On the wrong side of a partition openraft waits for ever.
        match timeout_at(deadline, self.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => {
                Err(ReadError::NoLeader("this replica does not lead any more".to_owned()))
            }
            Ok(Err(error)) => Err(ReadError::NoLeader(error.to_string())),
            Err(_) => Err(ReadError::NoLeader("no majority confirmed the leader".to_owned())),
        }
    }

    /// Where a replica can be reached: the placement table knows where a node is now, the membership where it was.
    pub fn address_of(&self, replica: ReplicaId) -> Option<String> {
        let table = self.ctx.meta.table().borrow().clone();
        if let Some(node) = table.nodes.get(&replica.node) {
            return Some(node.address.clone());
        }
        let metrics = self.raft.metrics().borrow_watched().clone();
        metrics.membership_config.membership().get_node(&replica).map(|node| node.addr.clone())
    }
}

#[tonic::async_trait]
impl Group for Shard {
    async fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, String> {
        self.raft.append(request).await
    }

    async fn vote(&self, request: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String> {
        Group::vote(&self.raft, request).await
    }

    async fn pre_vote(&self, request: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String> {
        Group::pre_vote(&self.raft, request).await
    }

    async fn transfer_leader(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> Result<TransferLeaderResponse<TypeConfig>, String> {
        Group::transfer_leader(&self.raft, request).await
    }

    /// A replica that installed a snapshot without its segment files would count for data that it does not hold. So the
    /// files come first; where one cannot be had, the sender is told and tries again.
    async fn install_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, String> {
        maintain::fetch_segments_of(self, &snapshot).await?;
        self.raft.install_snapshot(vote, meta, snapshot).await
    }
}
