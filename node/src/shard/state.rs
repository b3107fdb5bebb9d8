//! What a replica of a shard holds, how committed entries change it, and how it is found again after any stop.
//!
//! Problem: records live in a key-value store that may lose or damage what it has not flushed; vectors live in the log, in
//! the snapshot and in segment files; the index lives in memory only. After any stop they must come together again as of
//! one log position, and no search may ever see half of an entry.
//!
//! Rules:
//! - Ground truth is log, snapshot and segment files. The store is trusted only if all of it reads back, agrees with the
//!   digest committed with it, and lies between the snapshot and the last durable log entry; else it is built anew.
//! - The index is built from the records, then from segment files, then from the snapshot's vectors, then from the
//!   log's entries up to the applied one. A vector counts if its stamp is the record's.
//! - Entries are applied, and the index changed, under one write lock; readers hold the read lock. So a reader sees the
//!   state as of one log index, and that index.
//! - A file is deleted only where [`files::is_garbage`] says so.
//!
//! Deliberately not here: Raft (`apply`), when to seal or to snapshot (`maintain`).
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak};

use bytes::Bytes;
use nearring_proto::ids::{PointId, ReplicaId, ShardId, Version};
use nearring_proto::payload::{self, Payload};
use openraft::EntryPayload;
use tokio::sync::watch;

use super::files;
use super::snapshot::{self, Snapshot, SnapshotError};
use super::view::Views;
use crate::index::change::IndexChange;
use crate::index::segment::Segment;
use crate::index::{SealWork, ShardIndex};
use crate::machine::command::{Command, Envelope, SegmentHash, encode_reply};
use crate::machine::record::Record;
use crate::machine::{Machine, MachineMeta};
use crate::medium::{Medium, write_durably};
use crate::raft::{Entry, LogId, StoredMembership};
use crate::store::{EngineKind, Store, StoreError};

/// Bytes of a store's files for each live byte, above which it is built anew.
const BLOAT_MAX: f64 = 3.0;

/// What readers see: all of it as of one applied entry.
pub struct Body {
    /// The machine's state beside records and sessions.
    pub meta: MachineMeta,
    /// Records.
    pub store: Arc<Store>,
    /// Vectors and payload indexes.
    pub index: ShardIndex,
}

impl Body {
    /// The applied index; 0 before the first entry.
    pub fn applied(&self) -> u64 {
        self.meta.applied.map_or(0, |log_id| log_id.index)
    }

    /// The payload of a point, read from the store. Where the store fails the point counts as having none; the failure
    /// is logged.
    pub fn payload(&self, id: &PointId) -> Option<Payload> {
        match self.store.record(id) {
            Ok(record) => record.and_then(|record| payload::parse(&record.payload).ok()),
            Err(error) => {
                tracing::error!(%id, %error, "a record cannot be read");
                None
            }
        }
    }
}

/// One replica's state; shared by Raft, readers and maintenance.
pub struct ShardState {
    /// The shard.
    pub shard: ShardId,
    dir: PathBuf,
    medium: Arc<dyn Medium>,
    engine: EngineKind,
    body: RwLock<Body>,
    applied: watch::Sender<u64>,
    /// What pending seals captured in this process where this replica is the builder, by number; `None` = nothing to build.
    works: Mutex<BTreeMap<u64, Option<SealWork>>>,
    /// Snapshot files in use, by path.
    guards: Mutex<BTreeMap<PathBuf, Weak<()>>>,
    /// Manifests of the snapshots on disk, by index.
    snapshots: Mutex<BTreeMap<u64, BTreeSet<SegmentHash>>>,
    me: ReplicaId,
    /// Whether the store is to be built anew.
    compact: AtomicBool,
    since_snapshot: AtomicU64,
    snapshot_bytes: AtomicU64,
    writes: AtomicU64,
    pub(super) views: Views,
}

/// What a replica starts with.
pub struct Opened {
    /// The state, as of the machine's applied entry, but for vectors that only the log holds.
    pub state: Arc<ShardState>,
    /// The machine.
    pub machine: Machine,
    /// The range of log indexes whose vectors are still to be restored with [`ShardState::restore_from_entries`], if any.
    pub replay: Option<(u64, u64)>,
    /// The home epoch before the first entry of that range.
    pub home_epoch: u64,
}

/// A lock's content, also after a panic elsewhere: what is behind it is replaced whole or not at all.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Neither snapshot nor log holds the state: the replica has lost data, and must come back under a new incarnation.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "shard {shard}: the log begins after entry {purged} and no readable snapshot reaches it; this replica's data is lost. \
     The node begins a new life by itself once the other replicas of all its shards run. Where they never will: stop it, \
     remove its data directory and start it again, which gives up what its other replicas hold"
)]
pub struct DataLost {
    /// Whose.
    pub shard: ShardId,
    /// The last entry that is gone from the log.
    pub purged: u64,
}

impl ShardState {
    /// Opens what is on disk. `last_durable` is the last log entry known to be synced, `purged` the last one gone.
    ///
    /// # Errors
    /// Of the medium; and `InvalidData` with [`DataLost`] inside.
    pub fn open(
        medium: Arc<dyn Medium>,
        engine: EngineKind,
        data_dir: &Path,
        shard: ShardId,
        me: ReplicaId,
        last_durable: Option<LogId>,
        purged: Option<LogId>,
    ) -> io::Result<Opened> {
        let dir = files::shard_dir(data_dir, shard.0);
        let segments_dir = dir.join("segments");
        medium.create_dir_all(&segments_dir)?;
        medium.remove_dir_all(&dir.join("incoming"))?;
        medium.create_dir_all(&dir.join("incoming"))?;
        claim(medium.as_ref(), &dir, me)?;
        for parent in [&dir, &data_dir.join("shards"), &data_dir.to_path_buf()] {
            medium.sync_dir(parent)?;
        }

        let (snapshot, snapshots) = newest_snapshot(medium.as_ref(), &dir)?;
        let snapshot_at = snapshot.as_ref().and_then(|(_, snapshot)| snapshot.machine().meta.applied);
        let index_of = |log_id: Option<LogId>| log_id.map_or(0, |log_id| log_id.index);
        if index_of(purged) > index_of(snapshot_at) {
            let lost = DataLost { shard, purged: index_of(purged) };
            return Err(io::Error::new(io::ErrorKind::InvalidData, lost));
        }
        let local = local_segments(medium.as_ref(), &segments_dir)?;

        let newest = index_of(last_durable).max(index_of(snapshot_at));
        let generations = store_generations(medium.as_ref(), &dir)?;
        let newest_store = generations.last().map(|number| files::store_dir(&dir, *number));
        let kept = match &newest_store {
            Some(path) => open_store(engine, path, index_of(snapshot_at)..=newest, &local)?,
            None => None,
        };
        // Older ones, and the newest where it is not kept, are of no use; a crash may bring them back all the same.
        let rest = generations.len() - usize::from(kept.is_some());
        for number in generations.iter().take(rest) {
            medium.remove_dir_all(&files::store_dir(&dir, *number))?;
        }
        let (machine, store, mut index) = match kept {
            Some(kept) => kept,
            None => {
                let path = files::store_dir(&dir, next_generation(&generations));
                rebuild_store(engine, &path, snapshot.as_ref().map(|(_, snapshot)| snapshot), &local)?
            }
        };
        if let Some((_, snapshot)) = &snapshot {
            for vector in snapshot.vectors() {
                let (id, name, stamp, values) = vector?;
                if index.wants(&id, &name, stamp) {
                    index.restore_vector(&id, &name, stamp, values);
                }
            }
        }
        let applied = index_of(machine.meta.applied);
        let replay = (applied > index_of(snapshot_at)).then_some((index_of(snapshot_at) + 1, applied));
        let home_epoch = snapshot.as_ref().map_or(0, |(_, snapshot)| snapshot.machine().meta.home_epoch);
        let state = Self {
            shard,
            dir,
            medium,
            engine,
            body: RwLock::new(Body { meta: machine.meta.clone(), store, index }),
            applied: watch::Sender::new(applied),
            works: Mutex::default(),
            guards: Mutex::default(),
            snapshots: Mutex::new(snapshots),
            me,
            compact: AtomicBool::new(false),
            since_snapshot: AtomicU64::new(0),
            snapshot_bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            views: Views::default(),
        };
        Ok(Opened { state: Arc::new(state), machine, replay, home_epoch })
    }

    /// Takes the vectors that entries brought, where they are current and not in a local segment. `home_epoch` is the
    /// epoch before the first entry; returns the one after the last.
    ///
    /// # Errors
    /// `InvalidData` where an entry cannot be decoded.
    pub fn restore_from_entries(&self, entries: &[Entry], mut home_epoch: u64) -> io::Result<u64> {
        let mut body = self.write_body();
        for entry in entries {
            let EntryPayload::Normal(proposal) = &entry.payload else { continue };
            self.since_snapshot.fetch_add(proposal.0.len() as u64, Ordering::Relaxed);
            let envelope = Envelope::decode(&proposal.0).map_err(invalid)?;
            let points = match envelope.command {
                Command::Configure { home_epoch: epoch, .. } => {
                    home_epoch = epoch;
                    continue;
                }
                Command::Upsert { points, .. } | Command::ReplaceGroup { points, .. } => points,
                _ => continue,
            };
            let stamp = Version { epoch: home_epoch, index: entry.log_id.index };
            for point in points {
                for (name, values) in point.vectors {
                    if body.index.wants(&point.id, &name, stamp) {
                        body.index.restore_vector(&point.id, &name, stamp, values.as_slice().into());
                    }
                }
                for (name, vector) in point.others {
                    if body.index.wants(&point.id, &name, stamp) {
                        body.index.restore_vector(&point.id, &name, stamp, vector.into());
                    }
                }
            }
        }
        Ok(home_epoch)
    }

    /// The state, for reading. Never hold it over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Body> {
        self.body.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the replica holds, unless that would have to be waited for.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, Body>> {
        match self.body.try_read() {
            Ok(body) => Some(body),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn write_body(&self) -> RwLockWriteGuard<'_, Body> {
        self.body.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The applied index, as it grows.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Bytes of entries applied since the last snapshot.
    pub fn bytes_since_snapshot(&self) -> u64 {
        self.since_snapshot.load(Ordering::Relaxed)
    }

    /// Length of the last snapshot's file; 0 before the first of this process.
    pub fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes.load(Ordering::Relaxed)
    }

    /// Grows with every entry that carries user data: it stands still while writing pauses.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Takes what a seal captured. `None` where this process did not apply it, or it was taken before; `Some(None)` where it
    /// has no members.
    pub fn take_work(&self, segment: u64) -> Option<Option<SealWork>> {
        locked(&self.works).remove(&segment)
    }

    /// Applies committed entries, in order, in one step for readers. Returns one encoded reply per entry.
    ///
    /// # Errors
    /// Of the store, or `InvalidData` where an entry cannot be understood. The replica must stop then: what it applied is
    /// unknown, and its store is rebuilt at the next start.
    pub fn apply(&self, machine: &mut Machine, entries: &[Entry]) -> io::Result<Vec<Bytes>> {
        let store = self.read().store.clone();
        // What a failing store holds is not to be tried again: the next start builds another one.
        let broken = |error: StoreError| {
            store.discard();
            invalid(error)
        };
        let mut batch = store.begin();
        let mut replies = Vec::with_capacity(entries.len());
        let mut changes = Vec::new();
        let (mut bytes, mut writes) = (0, 0);
        for entry in entries {
            match &entry.payload {
                EntryPayload::Blank => {
                    machine.apply_blank(entry.log_id);
                    replies.push(Bytes::new());
                }
                EntryPayload::Membership(membership) => {
                    machine.apply_membership(entry.log_id, membership.clone());
                    replies.push(Bytes::new());
                }
                EntryPayload::Normal(proposal) => {
                    let envelope = Envelope::decode(&proposal.0).map_err(invalid)?;
                    bytes += proposal.0.len() as u64;
                    writes += u64::from(!is_upkeep(&envelope.command));
                    let applied = machine.apply(&batch, entry.log_id, &envelope).map_err(broken)?;
                    batch.stage(&applied);
                    replies.push(encode_reply(&applied.reply, applied.repeated));
                    changes.extend(applied.changes);
                }
            }
        }
        let mut body = self.write_body();
        self.views.keep(&body, batch.changing());
        batch.commit(machine).map_err(broken)?;
        let mut works = Vec::new();
        for change in changes {
            let segment = match &change {
                IndexChange::Seal { segment, .. } => Some(*segment),
                _ => None,
            };
            let work = body.index.apply(change);
            if let Some(segment) = segment {
                works.push((segment, work));
            }
        }
        fill_payload_indexes(&mut body).map_err(broken)?;
        body.meta = machine.meta.clone();
        let applied = body.applied();
        {
            let mut kept = locked(&self.works);
            for (segment, work) in works {
                if body.meta.seals.get(&segment).is_some_and(|seal| seal.builder == self.me) {
                    kept.insert(segment, work);
                }
            }
            kept.retain(|segment, _| body.meta.seals.contains_key(segment));
        }
        drop(body);
        self.since_snapshot.fetch_add(bytes, Ordering::Relaxed);
        self.writes.fetch_add(writes, Ordering::Relaxed);
        self.applied.send_replace(applied);
        Ok(replies)
    }

    /// Looks whether the store's files are mostly waste, and has them built anew after a batch that comes if they are.
    /// Entries wait meanwhile, for about half a minute a million points; so a leader, whom writers wait for, does it late.
    pub fn check_bloat(&self, leads: bool) {
        let most = if leads { BLOAT_MAX * 2.0 } else { BLOAT_MAX };
        let store = self.read().store.clone();
        self.compact.store(store.bloat() > most, Ordering::Relaxed);
    }

    /// Builds the store anew from itself where [`ShardState::check_bloat`] asked for that. `machine` is as of the last
    /// entry applied, and none is being applied meanwhile; readers are. Blocks.
    ///
    /// # Errors
    /// Of the medium or a store; the old one goes on then.
    pub fn compact_if_asked(&self, machine: &Machine) -> io::Result<()> {
        if self.compact.swap(false, Ordering::Relaxed) { self.compact(machine) } else { Ok(()) }
    }

    pub(super) fn compact(&self, machine: &Machine) -> io::Result<()> {
        let old = self.read().store.clone();
        let (mut after, mut failed, mut page) = (None, None, Vec::new().into_iter());
        let records = std::iter::from_fn(|| {
            if page.len() == 0 {
                match old.range(after.as_ref(), Capture::CHUNK) {
                    Ok(next) => {
                        after = next.last().map(|(id, _)| id.clone());
                        page = next.into_iter();
                    }
                    Err(error) => failed = Some(error),
                }
            }
            page.next()
        });
        let new = Store::import(self.engine, &self.next_store_dir()?, machine, records);
        if let Some(error) = failed {
            return Err(invalid(error));
        }
        self.write_body().store = Arc::new(new.map_err(invalid)?);
        // An export of it may still be running.
        old.discard();
        Ok(())
    }

    fn next_store_dir(&self) -> io::Result<PathBuf> {
        let generations = store_generations(self.medium.as_ref(), &self.dir)?;
        Ok(files::store_dir(&self.dir, next_generation(&generations)))
    }

    /// A snapshot as of now, to be written while entries go on being applied.
    pub fn capture(self: &Arc<Self>, machine: &Machine) -> Capture {
        let body = self.read();
        Capture {
            state: self.clone(),
            machine: machine.clone(),
            export: body.store.begin_export(),
            tail: body.index.tail_vectors().collect(),
            since: self.bytes_since_snapshot(),
        }
    }

    /// The newest snapshot on disk, held against deletion while the answer lives.
    ///
    /// # Errors
    /// Of the medium.
    pub fn current_snapshot(&self) -> io::Result<Option<CurrentSnapshot>> {
        let Some(index) = locked(&self.snapshots).keys().next_back().copied() else { return Ok(None) };
        let path = self.dir.join(files::snapshot_name(index));
        let guard = self.guard(&path);
        let len = self.medium.len(&path)?;
        let snapshot = Snapshot::open(self.medium.as_ref(), &path)?;
        let meta = &snapshot.machine().meta;
        Ok(Some(CurrentSnapshot { applied: meta.applied, membership: meta.membership.clone(), path, len, guard }))
    }

    fn guard(&self, path: &Path) -> Arc<()> {
        let mut guards = locked(&self.guards);
        guards.retain(|_, guard| guard.strong_count() > 0);
        if let Some(guard) = guards.get(path).and_then(Weak::upgrade) {
            return guard;
        }
        let guard = Arc::new(());
        guards.insert(path.to_owned(), Arc::downgrade(&guard));
        guard
    }

    /// Replaces everything by a received snapshot, complete under `path`, which is moved here. Returns the machine.
    ///
    /// # Errors
    /// Of medium or store; the state is as before, or the snapshot's after the next start.
    pub fn install(&self, path: &Path) -> io::Result<Machine> {
        let medium = self.medium.as_ref();
        let snapshot = Snapshot::open(medium, path)?;
        let index = snapshot.machine().meta.applied.map_or(0, |log_id| log_id.index);
        let name = self.dir.join(files::snapshot_name(index));
        medium.rename(path, &name)?;
        medium.sync_dir(&self.dir)?;
        let local = local_segments(medium, &self.dir.join("segments"))?;
        let (machine, store, mut index_in_memory) =
            rebuild_store(self.engine, &self.next_store_dir()?, Some(&snapshot), &local)?;
        for vector in snapshot.vectors() {
            let (id, name, stamp, values) = vector?;
            if index_in_memory.wants(&id, &name, stamp) {
                index_in_memory.restore_vector(&id, &name, stamp, values);
            }
        }
        let body = Body { meta: machine.meta.clone(), store, index: index_in_memory };
        let before = {
            let mut here = self.write_body();
            self.views.end_all();
            std::mem::replace(&mut *here, body)
        };
        // An export of it may still be running.
        before.store.discard();
        locked(&self.works).clear();
        locked(&self.snapshots).insert(index, hashes(&machine.meta));
        self.since_snapshot.store(0, Ordering::Relaxed);
        self.applied.send_replace(index);
        Ok(machine)
    }

    /// Where unfinished files go.
    pub fn incoming_dir(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    /// Where a segment file is kept, here or not.
    pub fn segment_path(&self, segment: u64, hash: &SegmentHash) -> PathBuf {
        self.dir.join("segments").join(files::segment_name(segment, hash))
    }

    /// The complete local file of a segment, by hash.
    pub fn find_segment(&self, hash: &SegmentHash) -> Option<PathBuf> {
        let dir = self.dir.join("segments");
        let names = self.medium.list(&dir).ok()?;
        let name = names.into_iter().find(|name| files::parse_segment_name(name).is_some_and(|(_, h)| h == *hash))?;
        Some(dir.join(name))
    }

    /// Takes over a complete, synced file: checks it, makes it durable under its name, hands it to the index.
    ///
    /// # Errors
    /// Of the medium; `InvalidData` where it is not the segment it should be. The file is removed then.
    pub fn adopt_segment(&self, segment: u64, hash: SegmentHash, file: &Path) -> io::Result<()> {
        let medium = self.medium.as_ref();
        let path = self.segment_path(segment, &hash);
        if !medium.exists(&path)? {
            let checked = medium.map(file).and_then(|bytes| Segment::open(bytes, Some(hash)).map_err(invalid));
            if let Err(error) = checked {
                medium.remove_file(file)?;
                return Err(error);
            }
            medium.rename(file, &path)?;
        } else if file != path {
            medium.remove_file(file)?;
        }
        // Also where it was here: whoever put it here may have ended before this.
        medium.sync_dir(&self.dir.join("segments"))?;
        let opened = Segment::open(medium.map(&path)?, None).map_err(invalid)?;
        self.write_body().index.attach(Arc::new(opened));
        Ok(())
    }

    /// Whether the newest snapshot names segment files that are not here: no other replica can be given it any more. So it is
    /// where a file turned out damaged that only the snapshot still needs; nobody has it then, and it is not fetched.
    ///
    /// # Errors
    /// Of the medium.
    pub fn snapshot_lacks_segments(&self) -> io::Result<bool> {
        let named: BTreeSet<SegmentHash> = locked(&self.snapshots).values().next_back().cloned().unwrap_or_default();
        if named.is_empty() {
            return Ok(false);
        }
        let names = self.medium.list(&self.dir.join("segments"))?;
        let here: BTreeSet<SegmentHash> =
            names.iter().filter_map(|name| files::parse_segment_name(name)).map(|(_, hash)| hash).collect();
        Ok(!named.is_subset(&here))
    }

    /// Deletes snapshots that a newer one replaced and segment files that nothing needs. Returns how many files went.
    ///
    /// # Errors
    /// Of the medium.
    pub fn collect_garbage(&self) -> io::Result<usize> {
        let mut removed = 0;
        let old: Vec<u64> = {
            let snapshots = locked(&self.snapshots);
            let newest = snapshots.keys().next_back().copied();
            snapshots.keys().copied().filter(|index| Some(*index) != newest).collect()
        };
        for index in old {
            let path = self.dir.join(files::snapshot_name(index));
            let in_use = locked(&self.guards).get(&path).is_some_and(|guard| guard.strong_count() > 0);
            if !in_use {
                self.medium.remove_file(&path)?;
                locked(&self.snapshots).remove(&index);
                removed += 1;
            }
        }
        let named: BTreeSet<SegmentHash> = locked(&self.snapshots).values().flatten().copied().collect();
        let (manifest, pending, applied) = {
            let body = self.read();
            (hashes(&body.meta), body.meta.seals.keys().copied().collect(), body.applied())
        };
        let dir = self.dir.join("segments");
        for name in self.medium.list(&dir)? {
            let Some((number, hash)) = files::parse_segment_name(&name) else { continue };
            if files::is_garbage(number, &hash, &manifest, &named, &pending, applied) {
                self.medium.remove_file(&dir.join(name))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Makes the store durable and closes it, so that the next start finds it whole.
    pub fn close(&self) {
        self.read().store.close();
    }
}

fn is_upkeep(command: &Command) -> bool {
    matches!(
        command,
        Command::Seal { .. } | Command::Install { .. } | Command::AbandonSeal { .. } | Command::Configure { .. }
    )
}

fn hashes(meta: &MachineMeta) -> BTreeSet<SegmentHash> {
    meta.manifest.iter().map(|segment| segment.hash).collect()
}

/// Tells payload indexes that a `Configure` added what the points hold. Under the write lock: searches wait once for as long
/// as it takes to read every payload.
fn fill_payload_indexes(body: &mut Body) -> Result<(), StoreError> {
    let paths = body.index.unfilled().to_vec();
    if paths.is_empty() {
        return Ok(());
    }
    let store = body.store.clone();
    let mut after = None;
    loop {
        let records = store.range(after.as_ref(), 1024)?;
        let Some((last, _)) = records.last() else { break };
        after = Some(last.clone());
        for (id, record) in &records {
            if let Ok(payload) = payload::parse(&record.payload) {
                body.index.fill_payload(id, &payload, &paths);
            }
        }
    }
    body.index.filled(&paths);
    Ok(())
}

/// Marks the directory as this replica's. State of another life of the node is removed: it was voted and acknowledged under
/// an identity that must not return. Segment files are named by content and stay.
fn claim(medium: &dyn Medium, dir: &Path, me: ReplicaId) -> io::Result<()> {
    let owner = dir.join("owner");
    let mine = files::owner_text(me);
    if medium.exists(&owner)? && medium.read(&owner)?.as_ref() == mine.as_bytes() {
        return Ok(());
    }
    for name in medium.list(dir)? {
        if files::snapshot_index(&name).is_some() {
            medium.remove_file(&dir.join(&name))?;
        } else if files::store_generation(&name).is_some() {
            medium.remove_dir_all(&dir.join(&name))?;
        }
    }
    medium.sync_dir(dir)?;
    write_durably(medium, &owner, mine.as_bytes())
}

type Snapshots = BTreeMap<u64, BTreeSet<SegmentHash>>;

fn newest_snapshot(medium: &dyn Medium, dir: &Path) -> io::Result<(Option<(u64, Snapshot)>, Snapshots)> {
    let mut indexes: Vec<u64> = medium.list(dir)?.iter().filter_map(|name| files::snapshot_index(name)).collect();
    indexes.sort_unstable();
    let (mut found, mut manifests) = (None, Snapshots::new());
    for index in indexes.into_iter().rev() {
        let path = dir.join(files::snapshot_name(index));
        match Snapshot::open(medium, &path) {
            Ok(snapshot) => {
                manifests.insert(index, hashes(&snapshot.machine().meta));
                if found.is_none() {
                    found = Some((index, snapshot));
                }
            }
            Err(SnapshotError::Damaged(reason)) => {
                tracing::error!(
                    index,
                    reason,
                    "a snapshot is damaged and set aside; an older one or the log takes its place"
                );
                medium.rename(&path, &path.with_extension("damaged"))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((found, manifests))
}

fn local_segments(medium: &dyn Medium, dir: &Path) -> io::Result<BTreeMap<SegmentHash, Arc<Segment>>> {
    let mut local = BTreeMap::new();
    for name in medium.list(dir)? {
        let Some((_, hash)) = files::parse_segment_name(&name) else { continue };
        let path = dir.join(&name);
        match Segment::open(medium.map(&path)?, Some(hash)) {
            Ok(segment) => {
                local.insert(hash, Arc::new(segment));
            }
            Err(error) => {
                tracing::error!(name, %error, "a segment file is damaged and removed; it is fetched again");
                medium.remove_file(&path)?;
            }
        }
    }
    Ok(local)
}

type Loaded = (Machine, Arc<Store>, ShardIndex);

fn index_of_settings(meta: &MachineMeta) -> ShardIndex {
    let mut index = ShardIndex::new();
    if let Some(spec) = &meta.spec {
        index.apply(IndexChange::Configure(spec.clone()));
    }
    index
}

fn restore(index: &mut ShardIndex, id: PointId, record: &Record) {
    let parsed = payload::parse(&record.payload).ok();
    index.restore_record(id, record.version, &record.vectors, parsed.as_ref());
}

/// The numbers of the stores that are there, growing. The newest counts: it is complete, or what it replaced is not between
/// snapshot and log any more.
fn store_generations(medium: &dyn Medium, dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = medium.list(dir)?.iter().filter_map(|name| files::store_generation(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn next_generation(generations: &[u64]) -> u64 {
    generations.last().map_or(1, |newest| newest.saturating_add(1))
}

/// Opens the store where all of it can be trusted. Anything else about it is no error: it is a cache. But one that somebody
/// still holds open is whole as far as anybody knows, and to be asked for again.
fn open_store(
    engine: EngineKind,
    path: &Path,
    trusted: std::ops::RangeInclusive<u64>,
    local: &BTreeMap<SegmentHash, Arc<Segment>>,
) -> io::Result<Option<Loaded>> {
    let try_open = || -> Result<Option<Loaded>, StoreError> {
        let store = Store::open(engine, path)?;
        let Some(machine) = store.load()? else { return Ok(None) };
        let applied = machine.meta.applied.map_or(0, |log_id| log_id.index);
        if !trusted.contains(&applied) {
            tracing::warn!(applied, ?trusted, "the store is not between snapshot and log; it is built anew");
            return Ok(None);
        }
        let mut index = index_of_settings(&machine.meta);
        let Some(machine) = store.verify(&mut |id, record| restore(&mut index, id, &record))? else { return Ok(None) };
        let bloat = store.bloat();
        if bloat > BLOAT_MAX {
            tracing::info!(bloat, "the store's files are mostly waste; it is built anew");
            return Ok(None);
        }
        index.restore_manifest(&machine.meta.manifest, local.clone());
        Ok(Some((machine, Arc::new(store), index)))
    };
    match try_open() {
        Ok(loaded) => Ok(loaded),
        Err(error @ StoreError::Locked { .. }) => Err(io::Error::new(io::ErrorKind::ResourceBusy, error.to_string())),
        Err(error) => {
            tracing::warn!(%error, "the store cannot be read; it is built anew from snapshot and log");
            Ok(None)
        }
    }
}

/// A store under `path`, and an index, as of the snapshot; or empty ones.
fn rebuild_store(
    engine: EngineKind,
    path: &Path,
    snapshot: Option<&Snapshot>,
    local: &BTreeMap<SegmentHash, Arc<Segment>>,
) -> io::Result<Loaded> {
    let machine = snapshot.map_or_else(Machine::default, |snapshot| snapshot.machine().clone());
    let mut index = index_of_settings(&machine.meta);
    let mut failed = None;
    let records = snapshot.into_iter().flat_map(Snapshot::records).map_while(|item| match item {
        Ok((id, record)) => {
            restore(&mut index, id.clone(), &record);
            Some((id, record))
        }
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let store = Store::import(engine, path, &machine, records);
    // The cause, before what the store says of the records that did not come.
    if let Some(error) = failed {
        return Err(error.into());
    }
    index.restore_manifest(&machine.meta.manifest, local.clone());
    Ok((machine, Arc::new(store.map_err(invalid)?), index))
}

/// A snapshot on disk.
pub struct CurrentSnapshot {
    /// The entry it is as of.
    pub applied: Option<LogId>,
    /// The membership then.
    pub membership: StoredMembership,
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// While it lives the file stays.
    pub guard: Arc<()>,
}

/// A snapshot that is being taken.
pub struct Capture {
    state: Arc<ShardState>,
    machine: Machine,
    export: crate::store::Export,
    tail: Vec<snapshot::SnapshotVector>,
    since: u64,
}

impl Capture {
    /// Records read from the store at a time.
    const CHUNK: usize = 1024;

    /// Writes the file and makes it durable. Blocks.
    ///
    /// # Errors
    /// Of medium or store; the snapshot before stays.
    pub fn write(mut self) -> io::Result<CurrentSnapshot> {
        let state = self.state;
        let medium = state.medium.as_ref();
        let index = self.machine.meta.applied.map_or(0, |log_id| log_id.index);
        let temporary = state.incoming_dir().join(format!("snapshot-{index}.writing"));
        let mut writer = snapshot::Writer::create(medium, &temporary, &self.machine)?;
        loop {
            let records = self.export.next(Self::CHUNK).map_err(invalid)?;
            if records.is_empty() {
                break;
            }
            for (id, record) in &records {
                writer.record(id, record)?;
            }
        }
        drop(self.export);
        for (id, name, stamp, values) in &self.tail {
            writer.vector(id, name, *stamp, values)?;
        }
        let len = writer.finish()?;
        let path = state.dir.join(files::snapshot_name(index));
        let guard = state.guard(&path);
        medium.rename(&temporary, &path)?;
        medium.sync_dir(&state.dir)?;
        locked(&state.snapshots).insert(index, hashes(&self.machine.meta));
        // An installed snapshot may have set the count back meanwhile.
        let _ = state
            .since_snapshot
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| Some(bytes.saturating_sub(self.since)));
        state.snapshot_bytes.store(len, Ordering::Relaxed);
        let meta = &self.machine.meta;
        Ok(CurrentSnapshot { applied: meta.applied, membership: meta.membership.clone(), path, len, guard })
    }
}
