//! What a replica does of its own accord: fetch segment files it lacks, take snapshots, delete what nothing needs; and as
//! leader: configure a new shard, bring its members to the table's, seal, build, ship and install segments.
//!
//! Problem: an index must be built once, and be the same on all replicas, while writes go on and any of them may die.
//!
//! Rules:
//! - The leader logs `Seal`; the entry fixes the members. It builds the file itself and pushes it to the other voters.
//! - `Install` is proposed once a majority of the voters, itself included, holds the file durably. Replicas that missed the
//!   push fetch it when they see the `Install`, and refuse searches until then.
//! - A leader that finds a seal it has not captured (it was another's, or it restarted) seals anew, which replaces it.
//! - At most one build of a replica runs; the loop goes on meanwhile.
//! - A leader that is not the one the shard's turn names ([`preferred_leader`]) hands over once that one has caught up and
//!   nothing is being built: after a restart one node would otherwise lead everything.
//!
//! Deliberately not here: moving a shard, splitting one.
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nearring_proto::ids::ReplicaId;
use nearring_proto::placement::table::{Change, Shard as Row, ShardState as RowState};
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shard;
use super::plan::{self, Size};
use super::snapshot::Snapshot;
use crate::index::SealWork;
use crate::index::segment::Segment;
use crate::machine::command::{Command, SegmentHash};
use crate::medium::Medium;
use crate::raft::group::SnapshotFile;
use crate::shards::preferred_leader;

/// How often a replica looks after itself.
const TICK: Duration = Duration::from_millis(200);
/// Writing has paused when nothing came for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a leader whose turn it is not tries to hand over.
const HAND_OVER_EVERY: Duration = Duration::from_secs(5);
/// How long the heir must have been there, and near the end of the log, without a break.
const HEIR_SETTLED: Duration = Duration::from_secs(60);
/// How often garbage is looked for.
const GARBAGE_EVERY: Duration = Duration::from_secs(5);
/// How long a proposal of maintenance may take.
const PROPOSAL: Duration = Duration::from_secs(10);
/// How long one segment file may take from one node to another.
const TRANSFER: Duration = Duration::from_secs(120);
/// Entries applied since the last snapshot, in bytes, from which the next is taken; never less than twice that
/// snapshot's length, so that a snapshot's cost stays in proportion to what was written.
const SNAPSHOT_AFTER: u64 = 64 << 20;

struct Upkeep {
    build: Option<(u64, JoinHandle<()>)>,
    last_writes: u64,
    written_at: Instant,
    garbage_at: Instant,
    fetch_after: Instant,
    snapshot_after: Instant,
    hand_over_after: Instant,
    heir_since: Option<Instant>,
}

/// Runs until `stop`.
pub async fn run(shard: Arc<Shard>, stop: CancellationToken) {
    let now = Instant::now();
    let mut upkeep = Upkeep {
        build: None,
        last_writes: 0,
        written_at: now,
        garbage_at: now + GARBAGE_EVERY,
        fetch_after: now,
        snapshot_after: now,
        hand_over_after: now + HAND_OVER_EVERY,
        heir_since: None,
    };
    let (mut tail_bytes, mut resident_bytes) = (0, 0);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(TICK) => {}
        }
        let (tail, resident) = {
            let body = shard.state.read();
            (body.index.tail_bytes(), body.index.resident_bytes())
        };
        shard.ctx.admission.tail_changed(tail_bytes, tail);
        shard.ctx.admission.resident_changed(resident_bytes, resident);
        (tail_bytes, resident_bytes) = (tail, resident);
        tokio::select! {
            () = stop.cancelled() => break,
            () = upkeep.step(&shard) => {}
        }
    }
    shard.ctx.admission.tail_changed(tail_bytes, 0);
    shard.ctx.admission.resident_changed(resident_bytes, 0);
    if let Some((_, build)) = upkeep.build {
        build.abort();
    }
}

impl Upkeep {
    async fn step(&mut self, shard: &Arc<Shard>) {
        let now = Instant::now();
        if now >= self.fetch_after
            && let Err(error) = fetch_missing(shard).await
        {
            tracing::warn!(shard = %shard.id, error, "segment files are missing here; searches of this replica are refused");
            self.fetch_after = Instant::now() + Duration::from_millis(500);
        }
        let mut snapshot_due = false;
        if now >= self.garbage_at {
            self.garbage_at = now + GARBAGE_EVERY;
            let (state, leads) = (shard.state.clone(), shard.is_leader());
            let tidy = move || {
                state.check_bloat(leads);
                state.collect_garbage().and_then(|_| state.snapshot_lacks_segments())
            };
            match shard.ctx.compute.io(tidy).await {
                // What the state itself needs is fetched first; then a snapshot of it is whole.
                Ok(lacks) => snapshot_due = lacks && shard.state.read().index.missing().is_empty(),
                Err(error) => tracing::warn!(shard = %shard.id, %error, "old files could not be removed"),
            }
        }
        let due = SNAPSHOT_AFTER.max(shard.state.snapshot_bytes() * 2);
        snapshot_due |= shard.state.bytes_since_snapshot() >= due && now >= self.snapshot_after;
        if snapshot_due {
            self.snapshot_after = now + Duration::from_secs(10);
            shard.snapshot().await;
        }
        let writes = shard.state.writes();
        if writes != self.last_writes {
            self.last_writes = writes;
            self.written_at = now;
        }
        if self.build.as_ref().is_some_and(|(_, task)| task.is_finished()) {
            self.build = None;
        }
        if shard.is_leader() {
            self.lead(shard, now).await;
        } else {
            self.heir_since = None;
        }
    }

    async fn lead(&mut self, shard: &Arc<Shard>, now: Instant) {
        let table = shard.ctx.meta.table().borrow().clone();
        let Some(row) = table.shards.get(&shard.id) else { return };
        let Some(collection) = table.collections.get(&row.collection) else { return };
        let (configured, applied) = {
            let body = shard.state.read();
            let configured =
                body.meta.spec.as_ref() == Some(&collection.spec) && body.meta.home_epoch == row.home_epoch;
            (configured, body.meta.applied.is_some())
        };
        if !applied {
            return;
        }
        if !configured {
            let configure = Command::Configure { spec: collection.spec.clone(), home_epoch: row.home_epoch };
            propose(shard, configure, "settings").await;
            return;
        }
        if row.state == RowState::Creating {
            if let Err(error) = shard.ctx.meta.propose(Change::ShardReady(shard.id), PROPOSAL).await {
                tracing::warn!(shard = %shard.id, %error, "the shard is ready and the meta group does not know it yet");
            }
            return;
        }
        converge(shard, row).await;
        if self.build.is_none() && !self.hand_over(shard, row, now).await {
            self.index(shard, now).await;
        }
    }

    /// Hands leadership to the replica whose turn it is, if it can take it. Tried seldom: a transfer costs the shard's
    /// writers a round of messages.
    async fn hand_over(&mut self, shard: &Shard, row: &Row, now: Instant) -> bool {
        let Some(heir) = preferred_leader(row).filter(|heir| *heir != shard.ctx.me) else { return false };
        if now < self.hand_over_after || !shard.state.read().meta.seals.is_empty() {
            return false;
        }
        self.hand_over_after = now + HAND_OVER_EVERY;
        let metrics = shard.raft.metrics().borrow_watched().clone();
        let voter = metrics.membership_config.membership().voter_ids().any(|voter| voter == heir);
        let matched = metrics.replication.as_ref().and_then(|progress| progress.get(&heir).copied().flatten());
        let near = matched.is_some_and(|log_id| log_id.index + 64 >= metrics.last_log_index.unwrap_or(0));
        // Only to one that is there: a leader that goes to a dead node costs an election.
        let heard = metrics.heartbeat.as_ref().and_then(|heartbeat| heartbeat.get(&heir).copied().flatten());
        let alive = heard.is_some_and(|at| openraft::Instant::elapsed(&*at) < shard.ctx.settings.raft.election.0);
        if !(voter && near && alive) {
            self.heir_since = None;
            return false;
        }
        // What it has matched it may not have applied: a replica that came back empty replays for a while, and could not
        // serve as leader until it is through.
        if now.saturating_duration_since(*self.heir_since.get_or_insert(now)) < HEIR_SETTLED {
            return false;
        }
        match shard.raft.trigger().transfer_leader(heir).await {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(shard = %shard.id, %heir, %error, "leadership was not handed over");
                false
            }
        }
    }

    /// Seals, or builds what is sealed: one step.
    async fn index(&mut self, shard: &Arc<Shard>, now: Instant) {
        let paused = now.saturating_duration_since(self.written_at) >= PAUSE;
        let mut upkeep = None;
        {
            let body = shard.state.read();
            let Some(spec) = body.meta.spec.clone() else { return };
            let seal_points = spec.index.seal_points as usize;
            for name in spec.vectors.keys() {
                if let Some(pending) = body.meta.seals.values().find(|pending| pending.vector == *name) {
                    let segment = pending.segment;
                    let work = shard.state.take_work(segment);
                    if let Some(None) = work {
                        upkeep = Some(Command::AbandonSeal { segment });
                        break;
                    }
                    if let Some(Some(work)) = work {
                        let task = crate::raft::spawn(build_and_install(shard.clone(), work));
                        self.build = Some((segment, task));
                        return;
                    }
                    // Another's, or from before a restart. Its sources may have changed since.
                    let (vector, sources) = (name.clone(), pending.sources.clone());
                    upkeep = Some(Command::Seal { vector, sources, builder: shard.ctx.me });
                    break;
                }
                let installed = body.index.manifest();
                let sizes: Vec<Size> = installed
                    .iter()
                    .filter(|segment| segment.vector == *name)
                    .map(|segment| Size {
                        hash: segment.hash,
                        members: segment.members,
                        live: body.index.live_members(&segment.hash),
                    })
                    .collect();
                // A replica without a file cannot build from it.
                let sizes = if body.index.missing().is_empty() { sizes } else { Vec::new() };
                if let Some(sources) = plan::next_seal(body.index.tail_len(name), seal_points, paused, &sizes) {
                    upkeep = Some(Command::Seal { vector: name.clone(), sources, builder: shard.ctx.me });
                    break;
                }
            }
        }
        if let Some(command) = upkeep {
            propose(shard, command, "upkeep").await;
        }
    }
}

async fn propose(shard: &Shard, command: Command, what: &str) -> bool {
    match shard.write(command, None, Instant::now() + PROPOSAL).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(shard = %shard.id, %error, "{what}: not logged; tried again later");
            false
        }
    }
}

async fn converge(shard: &Shard, row: &Row) {
    let mut desired = BTreeMap::new();
    for replica in &row.replicas {
        let Some(address) = shard.address_of(*replica) else { return };
        desired.insert(*replica, address);
    }
    if let Err(error) = crate::raft::membership::converge(&shard.raft, &desired).await {
        tracing::warn!(shard = %shard.id, %error, "the shard's members are not yet those of the table");
    }
}

/// Builds a segment, ships it to the other voters, and installs it once a majority holds it.
async fn build_and_install(shard: Arc<Shard>, work: SealWork) {
    let segment = work.segment;
    if let Err(error) = try_build_and_install(&shard, work).await {
        tracing::warn!(shard = %shard.id, segment, error, "a segment could not be built and installed; it is sealed anew");
    }
}

async fn try_build_and_install(shard: &Arc<Shard>, work: SealWork) -> Result<(), String> {
    let segment = work.segment;
    let (ctx, state) = (&shard.ctx, &shard.state);
    let text = |error: io::Error| error.to_string();
    let graph_from = ctx.settings.graph_from;
    let file =
        ctx.compute.build(move || Segment::build_with(&work, graph_from)).await.map_err(|error| error.to_string())?;
    let written = {
        let (medium, state) = (ctx.medium.clone(), state.clone());
        ctx.compute.io(move || write_segment(medium.as_ref(), &state, segment, &file)).await.map_err(text)?
    };
    let SegmentFile { hash, members, bytes } = written;
    let path = state.segment_path(segment, &hash);

    let (voters, learners) = members_of(shard);
    let majority = voters.len() / 2 + 1;
    let mut durable = usize::from(voters.contains(&ctx.me));
    let mut pushes = futures::stream::FuturesUnordered::new();
    for replica in voters.iter().chain(&learners).filter(|replica| **replica != ctx.me) {
        let (shard, path, replica) = (shard.clone(), path.clone(), *replica);
        pushes.push(async move {
            let Some(address) = shard.address_of(replica) else { return (replica, false) };
            let pushed = shard.ctx.peers.push_segment(&address, shard.id, segment, hash, path, TRANSFER).await;
            if let Err(error) = &pushed {
                tracing::info!(shard = %shard.id, segment, %replica, %error, "a replica did not take a segment; it will fetch it");
            }
            (replica, pushed.is_ok())
        });
    }
    while let Some((replica, taken)) = futures::StreamExt::next(&mut pushes).await {
        durable += usize::from(taken && voters.contains(&replica));
        if durable >= majority {
            break;
        }
    }
    if durable < majority {
        return Err(format!("{durable} of {} voters hold the file, {majority} must", voters.len()));
    }
    // Pushes that are still running go on beside the proposal: a slow replica is not cut off.
    let install = shard.write(Command::Install { segment, hash, members, bytes }, None, Instant::now() + PROPOSAL);
    let rest = async { while futures::StreamExt::next(&mut pushes).await.is_some() {} };
    let (installed, ()) = tokio::join!(install, rest);
    installed.map(|_| ()).map_err(|error| error.to_string())
}

pub(super) struct SegmentFile {
    pub(super) hash: SegmentHash,
    pub(super) members: u64,
    pub(super) bytes: u64,
}

pub(super) fn write_segment(
    medium: &dyn Medium,
    state: &super::state::ShardState,
    segment: u64,
    file: &[u8],
) -> io::Result<SegmentFile> {
    let hash = Segment::file_hash(file).map_err(|error| io::Error::other(error.to_string()))?;
    let temporary = state.incoming_dir().join(super::files::segment_name(segment, &hash));
    if medium.exists(&temporary)? {
        medium.remove_file(&temporary)?;
    }
    let mut out = medium.open_append(&temporary)?;
    out.append(file)?;
    out.sync()?;
    drop(out);
    let opened =
        Segment::open(medium.map(&temporary)?, Some(hash)).map_err(|error| io::Error::other(error.to_string()))?;
    let members = opened.len() as u64;
    drop(opened);
    state.adopt_segment(segment, hash, &temporary)?;
    Ok(SegmentFile { hash, members, bytes: file.len() as u64 })
}

fn members_of(shard: &Shard) -> (Vec<ReplicaId>, Vec<ReplicaId>) {
    let metrics = shard.raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    (membership.voter_ids().collect(), membership.learner_ids().collect())
}

/// Fetches every file that the manifest names and this replica lacks.
async fn fetch_missing(shard: &Shard) -> Result<(), String> {
    let missing = shard.state.read().index.missing();
    for segment in missing {
        let from = addresses(shard, None);
        fetch(shard, segment.segment, segment.hash, &from).await?;
    }
    Ok(())
}

/// Fetches the segment files that a received snapshot names and that are not here.
pub(super) async fn fetch_segments_of(shard: &Shard, file: &SnapshotFile) -> Result<(), String> {
    let (medium, path) = (shard.ctx.medium.clone(), file.path.clone());
    let snapshot = shard.ctx.compute.io(move || Snapshot::open(medium.as_ref(), &path)).await;
    let manifest = snapshot.map_err(|error| error.to_string())?.machine().meta.manifest.clone();
    let from = addresses(shard, file.source.as_deref());
    for segment in manifest {
        if shard.state.find_segment(&segment.hash).is_none() {
            fetch(shard, segment.segment, segment.hash, &from).await?;
        }
    }
    Ok(())
}

fn addresses(shard: &Shard, first: Option<&str>) -> Vec<String> {
    let (voters, learners) = members_of(shard);
    let mut addresses: Vec<String> = first.map(str::to_owned).into_iter().collect();
    let table = shard.ctx.meta.table().borrow().clone();
    let row: Vec<ReplicaId> = table.shards.get(&shard.id).map_or_else(Vec::new, |row| row.replicas.clone());
    for replica in voters.into_iter().chain(learners).chain(row).filter(|replica| replica.node != shard.ctx.me.node) {
        if let Some(address) = shard.address_of(replica).filter(|address| !addresses.contains(address)) {
            addresses.push(address);
        }
    }
    addresses
}

async fn fetch(shard: &Shard, segment: u64, hash: SegmentHash, from: &[String]) -> Result<(), String> {
    let into = shard.state.incoming_dir().join(format!("{}.pulled", super::files::segment_name(segment, &hash)));
    let mut why = "nobody to ask".to_owned();
    for address in from {
        let pulled = shard.ctx.peers.pull_segment(address, shard.id, hash, into.clone(), TRANSFER).await;
        let adopted = match pulled {
            Ok(()) => {
                let (state, into) = (shard.state.clone(), into.clone());
                shard.ctx.compute.io(move || state.adopt_segment(segment, hash, &into)).await.map_err(|e| e.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match adopted {
            Ok(()) => return Ok(()),
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Err(why)
}
