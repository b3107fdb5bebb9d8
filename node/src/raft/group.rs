//! What an incoming Raft message is handed to, and the file that a snapshot is.
//!
//! The transport knows groups by number only. [`Group`] is one of them with its state machine's type erased; every
//! [`Raft`] whose snapshots are files is one. A message that a group cannot take is answered with a text, never with a
//! made-up Raft answer: the sender then retries, and Raft's own rules decide.
use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::RaftStateMachine;

use super::{Raft, TypeConfig, Vote};

/// What a snapshot covers: the last log id in it, and the membership as of then.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A snapshot of any group: a complete file on disk.
#[derive(Clone)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub len: u64,
    /// `host:port` of the node that sent it, where segment files that it names can be pulled; `None` for one's own.
    pub source: Option<String>,
    /// Keeps the file from being deleted while in use. A received file is deleted when the last guard goes, unless it was
    /// renamed by then.
    pub guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotFile")
            .field("path", &self.path)
            .field("len", &self.len)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// One Raft group, as its peers see it. Errors are texts for the sender's log.
///
/// **Order:** the messages of one sender are handed over in the order they were sent, each future polled once before the
/// next call; an implementation that passes a message on must do so on that first poll.
#[tonic::async_trait]
pub trait Group: Send + Sync + 'static {
    /// Entries from a leader, or a heartbeat.
    async fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, String>;
    /// A request for this replica's vote.
    async fn vote(&self, request: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String>;
    /// Whether this replica would vote; nothing changes.
    async fn pre_vote(&self, request: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String>;
    /// A leader steps down in favour of some replica.
    async fn transfer_leader(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> Result<TransferLeaderResponse<TypeConfig>, String>;
    /// A whole snapshot, complete and synced.
    async fn install_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, String>;
}

#[tonic::async_trait]
impl<SM> Group for Raft<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
{
    async fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, String> {
        self.append_entries(request).await.map_err(|error| error.to_string())
    }

    async fn vote(&self, request: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String> {
        Raft::<SM>::vote(self, request).await.map_err(|error| error.to_string())
    }

    async fn pre_vote(&self, request: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>, String> {
        Raft::<SM>::pre_vote(self, request).await.map_err(|error| error.to_string())
    }

    async fn transfer_leader(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
    ) -> Result<TransferLeaderResponse<TypeConfig>, String> {
        self.handle_transfer_leader(request).await.map_err(|error| error.to_string())
    }

    async fn install_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<SnapshotResponse<TypeConfig>, String> {
        let snapshot = openraft::Snapshot { meta, snapshot };
        self.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())
    }
}
