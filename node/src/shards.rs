//! The shards of a node: which run here follows from the placement table and from what is on disk.
//!
//! Rules:
//! - A replica runs where the table names this life of the node, and where its directory is this life's already.
//! - A shard's group is initialised only while its row says `Creating`, with exactly the row's replicas; all of them may do
//!   so, the first does it at once and the others when it has not for a while.
//! - Data is deleted only where the table's list of dropped shards names this replica; absence deletes nothing.
//! - A replica whose Raft ended on an error is started again from what is on disk, after a pause.
//!
//! This is the only place that starts or stops a shard.
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use nearring_proto::ids::{ClusterId, ReplicaId, ShardId};
use nearring_proto::placement::table::{Shard as Row, ShardState as RowState, Table};
use nearring_proto::position::Position;
use nearring_proto::wire;
use openraft::BasicNode;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::clock::Clock;
use crate::compute::Compute;
use crate::machine::command::SegmentHash;
use crate::medium::Medium;
use crate::meta::Meta;
use crate::raft::group::{Group, SnapshotFile};
use crate::raft::log::SharedLog;
use crate::raft::peers::Peers;
use crate::settings::Settings;
use crate::shard::state::DataLost;
use crate::shard::{Shard, files};
use crate::store::EngineKind;

/// What every shard of a node shares.
pub struct NodeContext {
    /// This node, in this life.
    pub me: ReplicaId,
    /// Whose node it is.
    pub cluster: ClusterId,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Files.
    pub medium: Arc<dyn Medium>,
    /// Where CPU and file work runs.
    pub compute: Compute,
    /// Wall time.
    pub clock: Clock,
    /// Which key-value engine.
    pub engine: EngineKind,
    /// What the node was started with.
    pub settings: Settings,
    /// The log of all groups.
    pub log: SharedLog,
    /// The other nodes.
    pub peers: Peers,
    /// The meta group.
    pub meta: Meta,
    /// The node's bounds.
    pub admission: Arc<Admission>,
}

/// The replicas that run on this node. Clones share them.
#[derive(Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

struct Inner {
    ctx: Arc<NodeContext>,
    running: RwLock<BTreeMap<ShardId, Arc<Shard>>>,
    /// Replicas that could not be started, and whether because they have lost data.
    failed: RwLock<BTreeMap<ShardId, bool>>,
    stop: CancellationToken,
}

/// How often the table is looked at again while nothing changes.
const TICK: Duration = Duration::from_millis(500);
/// How long the others wait for the first replica of a row to initialise the group.
const INITIALISE_AFTER: Duration = Duration::from_secs(3);
/// How long a replica that failed rests before it is started again.
const RESTART_AFTER: Duration = Duration::from_secs(5);

impl Shards {
    /// Starts the shards that are on disk, then follows the table.
    pub async fn start(ctx: NodeContext) -> Self {
        let inner = Inner {
            ctx: Arc::new(ctx),
            running: RwLock::default(),
            failed: RwLock::default(),
            stop: CancellationToken::new(),
        };
        let shards = Self { inner: Arc::new(inner) };
        for shard in shards.on_disk() {
            shards.start_shard(shard).await;
        }
        crate::raft::spawn(shards.clone().follow());
        shards
    }

    /// What the shards share.
    pub fn context(&self) -> &Arc<NodeContext> {
        &self.inner.ctx
    }

    /// A running replica.
    pub fn get(&self, shard: ShardId) -> Option<Arc<Shard>> {
        self.inner.running.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }

    /// Whether a replica of this life has lost data.
    pub fn has_lost_data(&self) -> bool {
        self.inner.failed.read().unwrap_or_else(PoisonError::into_inner).values().any(|lost| *lost)
    }

    /// Every running replica, by id.
    pub fn all(&self) -> Vec<Arc<Shard>> {
        self.inner.running.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A running replica, as its peers see it.
    pub fn group(&self, shard: ShardId) -> Option<Arc<dyn Group>> {
        self.get(shard).map(|shard| shard as Arc<dyn Group>)
    }

    /// Proves leadership for each of the shards that this node leads, at once; the others are left out.
    pub async fn read_index(&self, shards: Vec<ShardId>, deadline: Duration) -> Vec<Position> {
        let deadline = Instant::now() + deadline;
        let led = shards.into_iter().filter_map(|shard| self.get(shard)).filter(|shard| shard.is_leader());
        let proofs = led.map(|shard| async move {
            let index = shard.prove_leadership(deadline).await.ok()?;
            Some(Position { shard: shard.id, index })
        });
        futures::future::join_all(proofs).await.into_iter().flatten().collect()
    }

    /// A complete segment file that is here.
    pub async fn segment_file(&self, shard: ShardId, hash: SegmentHash) -> Option<SnapshotFile> {
        let shard = self.get(shard)?;
        let (state, medium) = (shard.state.clone(), self.inner.ctx.medium.clone());
        let find = move || {
            let path = state.find_segment(&hash)?;
            let len = medium.len(&path).ok()?;
            Some(SnapshotFile { path, len, source: None, guard: None })
        };
        self.inner.ctx.compute.io(find).await
    }

    /// Takes over a segment file that was pushed here, complete and synced.
    ///
    /// # Errors
    /// Why it was not taken; the file is gone then.
    pub async fn accept_segment(
        &self,
        shard: ShardId,
        segment: u64,
        hash: SegmentHash,
        file: PathBuf,
    ) -> Result<(), String> {
        let Some(shard) = self.get(shard) else { return Err(format!("shard {shard} does not run here")) };
        let state = shard.state.clone();
        let adopted = self.inner.ctx.compute.io(move || state.adopt_segment(segment, hash, &file)).await;
        adopted.map_err(|error| error.to_string())
    }

    /// Asks a shard to snapshot, so that the log before can go.
    pub async fn snapshot(&self, shard: ShardId) {
        if let Some(shard) = self.get(shard) {
            shard.snapshot().await;
        }
    }

    /// What each replica is doing. `brief` leaves the segments out.
    pub fn statuses(&self, brief: bool) -> Vec<wire::ReplicaStatus> {
        let mut statuses: Vec<_> = self.all().iter().map(|shard| status(shard, self.inner.ctx.me, brief)).collect();
        for shard in self.inner.failed.read().unwrap_or_else(PoisonError::into_inner).keys() {
            statuses.push(wire::ReplicaStatus {
                shard: shard.0,
                node: self.inner.ctx.me.node.0,
                incarnation: self.inner.ctx.me.incarnation.0,
                role: "stopped".to_owned(),
                ..Default::default()
            });
        }
        statuses
    }

    /// Hands leadership over where this node leads, stops every shard and closes its store.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let all = self.all();
        for shard in &all {
            if !shard.is_leader() {
                continue;
            }
            let metrics = shard.raft.metrics().borrow_watched().clone();
            let voters: Vec<ReplicaId> = metrics.membership_config.membership().voter_ids().collect();
            if let Some(heir) = voters.into_iter().find(|voter| *voter != self.inner.ctx.me) {
                // A wish: if it fails, the others elect after a timeout as they would after a crash.
                let _ = shard.raft.trigger().transfer_leader(heir).await;
            }
        }
        if all.iter().any(|shard| shard.is_leader()) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        futures::future::join_all(all.iter().map(|shard| shard.stop())).await;
        self.inner.running.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn on_disk(&self) -> Vec<ShardId> {
        let ctx = &self.inner.ctx;
        let names = ctx.medium.list(&ctx.data_dir.join("shards")).unwrap_or_default();
        let mine = files::owner_text(ctx.me);
        let shards = names.iter().filter_map(|name| name.parse::<u64>().ok()).map(ShardId);
        shards
            .filter(|shard| {
                let owner = files::shard_dir(&ctx.data_dir, shard.0).join("owner");
                ctx.medium.read(&owner).is_ok_and(|owner| owner.as_ref() == mine.as_bytes())
            })
            .collect()
    }

    async fn start_shard(&self, shard: ShardId) {
        if self.get(shard).is_some() {
            return;
        }
        match Shard::start(self.inner.ctx.clone(), shard).await {
            Ok(started) => {
                self.inner.failed.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
                self.inner.running.write().unwrap_or_else(PoisonError::into_inner).insert(shard, started);
            }
            Err(error) => {
                tracing::error!(%shard, %error, "a shard cannot be started here");
                let lost = error.get_ref().is_some_and(|inner| inner.is::<DataLost>());
                let mut failed = self.inner.failed.write().unwrap_or_else(PoisonError::into_inner);
                failed.insert(shard, lost);
            }
        }
    }

    async fn follow(self) {
        let mut tables = self.inner.ctx.meta.table();
        let mut seen: BTreeMap<ShardId, Instant> = BTreeMap::new();
        // The table remembers dropped shards for long; here each is looked for on disk once.
        let mut gone = BTreeSet::new();
        let mut rested = Instant::now();
        loop {
            let table = tables.borrow_and_update().clone();
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = self.reconcile(&table, &mut seen, &mut gone) => {}
            }
            if Instant::now() >= rested {
                rested = Instant::now() + RESTART_AFTER;
                self.restart_ended().await;
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                changed = tables.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    async fn reconcile(&self, table: &Arc<Table>, seen: &mut BTreeMap<ShardId, Instant>, gone: &mut BTreeSet<ShardId>) {
        let me = self.inner.ctx.me;
        gone.retain(|shard| table.dropped.contains_key(shard));
        seen.retain(|shard, _| table.shards.contains_key(shard));
        for (shard, replicas) in &table.dropped {
            if replicas.contains(&me) && !gone.contains(shard) && self.drop_shard(*shard).await {
                gone.insert(*shard);
            }
        }
        for row in table.shards.values().filter(|row| row.replicas.contains(&me)) {
            let failed = self.inner.failed.read().unwrap_or_else(PoisonError::into_inner).contains_key(&row.id);
            if !failed {
                self.start_shard(row.id).await;
            }
            if row.state == RowState::Creating {
                let first = preferred_leader(row) == Some(me);
                let since = *seen.entry(row.id).or_insert_with(Instant::now);
                if first || since.elapsed() >= INITIALISE_AFTER {
                    self.initialise(row, table).await;
                }
            } else {
                seen.remove(&row.id);
            }
        }
    }

    async fn initialise(&self, row: &Row, table: &Table) {
        let Some(shard) = self.get(row.id) else { return };
        if !matches!(shard.raft.is_initialized().await, Ok(false)) {
            return;
        }
        let mut members = BTreeMap::new();
        for replica in &row.replicas {
            // A row that is still `Creating` names the lives that the nodes have now; the table keeps that true.
            let Some(node) = table.nodes.get(&replica.node).filter(|node| node.incarnation == replica.incarnation)
            else {
                return;
            };
            members.insert(*replica, BasicNode { addr: node.address.clone() });
        }
        if let Err(error) = shard.raft.initialize(members).await {
            tracing::info!(shard = %row.id, %error, "the group was not initialised by this replica");
        }
    }

    /// Whether nothing of the shard is left here.
    async fn drop_shard(&self, shard: ShardId) -> bool {
        let ctx = &self.inner.ctx;
        let running = self.inner.running.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
        if let Some(running) = &running {
            running.stop().await;
        }
        self.inner.failed.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
        let dir = files::shard_dir(&ctx.data_dir, shard.0);
        if running.is_none() && matches!(ctx.medium.exists(&dir), Ok(false)) {
            return true;
        }
        // The log first: files without a log are found again by their directory, a log without files would not start.
        if let Err(error) = ctx.log.forget(shard).await {
            tracing::error!(%shard, %error, "the log of a dropped shard cannot be forgotten");
            return false;
        }
        let medium = ctx.medium.clone();
        let removed = ctx.compute.io(move || medium.remove_dir_all(&dir)).await;
        if let Err(error) = &removed {
            tracing::error!(%shard, %error, "the files of a dropped shard cannot be removed");
        }
        removed.is_ok()
    }

    /// Starts again what ended on an error, or could not start.
    async fn restart_ended(&self) {
        for shard in self.all() {
            let ended = shard.raft.metrics().borrow_watched().running_state.clone();
            if let Err(error) = ended {
                let id = shard.id;
                tracing::error!(shard = %id, %error, "a replica has stopped; it is started again from disk");
                self.inner.running.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
                shard.stop().await;
                // The store's files are locked for as long as anybody holds the old replica.
                drop(shard);
                self.start_shard(id).await;
            }
        }
        let failed: Vec<ShardId> =
            self.inner.failed.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        for shard in failed {
            self.start_shard(shard).await;
        }
    }
}

/// Who should lead a shard where it can: shards take turns among their replicas, so that nodes lead about equally many.
pub fn preferred_leader(row: &Row) -> Option<ReplicaId> {
    let mut replicas = row.replicas.clone();
    replicas.sort_unstable();
    let turn = row.id.0.checked_rem(replicas.len() as u64)?;
    replicas.get(usize::try_from(turn).ok()?).copied()
}

fn status(shard: &Shard, me: ReplicaId, brief: bool) -> wire::ReplicaStatus {
    let metrics = shard.raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    let body = shard.state.read();
    let missing = body.index.missing();
    let segments = if brief { Vec::new() } else { body.index.manifest() };
    let vectors = body.meta.spec.iter().flat_map(|spec| spec.vectors.keys());
    wire::ReplicaStatus {
        shard: shard.id.0,
        node: me.node.0,
        incarnation: me.incarnation.0,
        role: format!("{:?}", metrics.state).to_lowercase(),
        term: metrics.current_term,
        leader_node: metrics.current_leader.map_or(0, |leader| leader.node.0),
        last_index: metrics.last_log_index.unwrap_or(0),
        applied_index: body.applied(),
        committed_index: metrics.local_committed.map_or(0, |log_id| log_id.index),
        snapshot_index: metrics.snapshot.map_or(0, |log_id| log_id.index),
        purged_index: metrics.purged.map_or(0, |log_id| log_id.index),
        points: body.meta.points,
        tail_vectors: vectors.map(|name| body.index.tail_len(name) as u64).sum(),
        resident_vectors: body.index.resident_len(),
        resident_vector_bytes: body.index.resident_bytes(),
        segments: segments
            .into_iter()
            .map(|segment| wire::SegmentStatus {
                hash: segment.hash.to_vec().into(),
                vector_name: segment.vector.clone(),
                members: segment.members,
                live: body.index.live_members(&segment.hash),
                bytes: segment.bytes,
                local: missing.iter().all(|missing| missing.hash != segment.hash),
            })
            .collect(),
        voters: membership.voter_ids().map(|voter| voter.node.0).collect(),
        learners: membership.learner_ids().map(|learner| learner.node.0).collect(),
        pending_seals: u32::try_from(body.meta.seals.len()).unwrap_or(u32::MAX),
    }
}
