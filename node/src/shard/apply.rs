//! The shard's state as openraft drives it: batches of committed entries in, replies out; snapshots both ways.
//!
//! A batch is what is ready, up to [`BATCH_ENTRIES`] entries or [`BATCH_BYTES`]: one commit of the store and one
//! write lock for all of it. File work runs on the compute pool, in order: the machine travels with it.
use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};

use super::state::{Capture, CurrentSnapshot, ShardState};
use crate::compute::Compute;
use crate::machine::Machine;
use crate::raft::group::{SnapshotFile, SnapshotMeta};
use crate::raft::{LogId, Response, StoredMembership, TypeConfig};

/// Entries applied at a time, at most.
pub const BATCH_ENTRIES: usize = 128;
/// Bytes of entries after which a batch takes no more.
pub const BATCH_BYTES: usize = 8 << 20;

/// The state machine of one replica.
pub struct ShardMachine {
    state: Arc<ShardState>,
    compute: Compute,
    /// Absent only while a batch is being applied, and for ever after one failed.
    machine: Option<Machine>,
}

impl ShardMachine {
    /// Drives `state`, whose machine is `machine`.
    pub fn new(state: Arc<ShardState>, compute: Compute, machine: Machine) -> Self {
        Self { state, compute, machine: Some(machine) }
    }

    fn machine(&self) -> io::Result<&Machine> {
        self.machine.as_ref().ok_or_else(|| io::Error::other("an earlier entry could not be applied; restart the node"))
    }

    async fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        self.machine()?;
        let Some(mut machine) = self.machine.take() else { return Ok(()) };
        let (entries, responders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let state = self.state.clone();
        let (machine, replies) = self
            .compute
            .io(move || {
                let replies = state.apply(&mut machine, &entries);
                if replies.is_ok()
                    && let Err(error) = state.compact_if_asked(&machine)
                {
                    tracing::warn!(shard = %state.shard, %error, "the store could not be built anew");
                }
                (machine, replies)
            })
            .await;
        let replies = replies?;
        self.machine = Some(machine);
        for (responder, reply) in responders.into_iter().zip(replies) {
            if let Some(responder) = responder {
                responder.send(Response(reply));
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for ShardMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = ShardSnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = &self.machine()?.meta;
        Ok((meta.applied, meta.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(item) = entries.next().await {
            let item = item?;
            if let EntryPayload::Normal(proposal) = &item.0.payload {
                bytes += proposal.0.len();
            }
            batch.push(item);
            if batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                self.apply_batch(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            self.apply_batch(batch).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        // Captured here, between two batches: machine and state are as of one entry.
        let capture = self.machine.as_ref().map(|machine| self.state.capture(machine));
        ShardSnapshotBuilder { capture, compute: self.compute.clone() }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let state = self.state.clone();
        let current = self.machine()?.meta.applied;
        // On restart openraft installs the current snapshot where nothing is applied beyond it; it is there already.
        let own = snapshot.source.is_none();
        let machine = self
            .compute
            .io(move || {
                let _keep = &snapshot.guard;
                if own && current.is_some() { Ok(None) } else { state.install(&snapshot.path).map(Some) }
            })
            .await?;
        if let Some(machine) = machine {
            self.machine = Some(machine);
        }
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        let state = self.state.clone();
        Ok(self.compute.io(move || state.current_snapshot()).await?.map(into_raft))
    }
}

fn into_raft(current: CurrentSnapshot) -> openraft::alias::SnapshotOf<TypeConfig, SnapshotFile> {
    Snapshot {
        meta: SnapshotMeta { last_log_id: current.applied, last_membership: current.membership },
        snapshot: SnapshotFile { path: current.path, len: current.len, source: None, guard: Some(current.guard) },
    }
}

/// Writes the snapshot that was captured.
pub struct ShardSnapshotBuilder {
    capture: Option<Capture>,
    compute: Compute,
}

impl RaftSnapshotBuilder<TypeConfig> for ShardSnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        let capture = self.capture.take().ok_or_else(|| io::Error::other("this snapshot cannot be taken any more"))?;
        Ok(into_raft(self.compute.io(move || capture.write()).await?))
    }
}
