//! One shard's records, sessions and meta on disk.
//!
//! The store is a cache of snapshot and log: losing it costs a rebuild, never data. So it does not sync, and what it says
//! after a restart counts only once [`Store::verify`] has found every value whole and the records equal to the digest that
//! was committed with them. Rules:
//! * One commit is one atomic batch with the applied id in it. A tiny record costs about 13 us of CPU through apply and
//!   commit, 9 of them in sled (on a busy machine; `cost_of_tiny_upserts` measures it).
//! * On any [`StoreError`] but [`StoreError::Locked`] the caller sets the directory aside and rebuilds. Nothing is
//!   repaired here.
//! * One writer at a time commits; readers and one export go on beside it.
//! * The digests of records and of sessions are in the same value as the applied id: a value that is whole and yet of
//!   another commit, or missing, is found out too.
//!
//! One directory is one store. Whoever replaces it builds another one beside it ([`Store::import`]) and numbers them.
//! Vectors' components are not here.
pub mod digest;
#[allow(clippy::disallowed_methods, reason = "the key-value engine is the stated exception")]
mod engine;
mod export;
mod keys;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nearring_proto::ids::{PointId, SessionId};

use self::digest::{digest_of, digest_of_pair};
use self::engine::{Engine, Memory, Sled};
pub use self::export::Export;
use self::export::Running;
use crate::machine::record::{Record, StateError};
use crate::machine::session::Session;
use crate::machine::{Applied, Facts, Machine, MachineMeta};

/// Pairs read at once by a scan.
const CHUNK: usize = 512;
/// Records written at once by an import.
const IMPORT_CHUNK: usize = 256;

/// Which engine keeps the pairs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineKind {
    /// sled, in files.
    Sled,
    /// A map in memory, gone with the store: after a restart it is empty. Touches no files.
    Memory,
}

/// Why the store cannot be used. But for [`StoreError::Locked`] and the errors of import and export, set the directory
/// aside and rebuild it from snapshot and log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed, or found its files damaged.
    #[error("the store's engine failed: {0}; set its directory aside and rebuild")]
    Engine(String),
    /// Another store, here or in another process, has the directory open. The files are not at fault: leave them.
    #[error("{path} is held by another process; stop it")]
    Locked {
        /// Which.
        path: String,
    },
    /// A directory or file cannot be reached.
    #[error("{path}: {reason}")]
    Files {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// A value's checksum does not hold, or its key is none of ours.
    #[error("a stored value is damaged ({0}); set the directory aside and rebuild")]
    Damaged(String),
    /// A value is of a newer format, or whole and yet malformed.
    #[error("a stored value cannot be read: {0}")]
    State(#[from] StateError),
    /// What was imported is not what its machine says.
    #[error("imported {found} records with another digest than the {wanted} that the snapshot's machine names")]
    ImportMismatch {
        /// Records given.
        found: u64,
        /// Records of the machine.
        wanted: u64,
    },
    /// Another export began, which ends this one.
    #[error("another export of this shard began; start again")]
    ExportEnded,
}

/// A shard's store. Cloning shares it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    engine: Box<dyn Engine>,
    /// After the engine, which lets its files go first.
    directory: Directory,
    exports: Mutex<Exports>,
    /// Sum over all sessions of [`digest_of_pair`], as committed; `None` = not known yet. A commit holds it.
    sessions: Mutex<Option<u128>>,
    /// Bytes of live keys and values; negative = not known yet.
    live: AtomicI64,
}

/// Where the files are. Deletes them at its end if they are of no use any more.
struct Directory {
    /// `None` in memory.
    path: Option<PathBuf>,
    discarded: AtomicBool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(path) = self.path.as_ref().filter(|_| self.discarded.load(Ordering::Relaxed))
            && let Err(error) = remove_dir(path)
        {
            tracing::warn!(%error, "a replaced store stays until the next start");
        }
    }
}

#[derive(Default)]
struct Exports {
    begun: u64,
    running: Option<Running>,
}

impl Inner {
    /// Also what makes one commit, and one export's chunk, happen at a time.
    fn exports(&self) -> MutexGuard<'_, Exports> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.engine.get(key)?.map(|value| unseal(key, &value)).transpose()
    }

    fn digest_of_sessions(&self) -> Result<u128, StoreError> {
        let mut digest = 0u128;
        self.each(keys::SESSIONS, &mut |key, value| {
            digest = digest.wrapping_add(digest_of_pair(&key, &value));
            Ok(())
        })?;
        Ok(digest)
    }

    /// Visits every pair of a range, chunk by chunk.
    fn each(
        &self,
        range: (&[u8], &[u8]),
        visit: &mut dyn FnMut(Vec<u8>, Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = Bound::Included(range.0.to_vec());
        loop {
            let pairs = self.engine.scan(from.as_ref().map(Vec::as_slice), range.1, CHUNK)?;
            let more = pairs.len() == CHUNK;
            if let Some((key, _)) = pairs.last() {
                from = Bound::Excluded(key.clone());
            }
            for (key, value) in pairs {
                visit(key, value)?;
            }
            if !more {
                return Ok(());
            }
        }
    }
}

fn unseal(key: &[u8], value: &Bytes) -> Result<Bytes, StoreError> {
    keys::unseal(key, value).ok_or_else(|| StoreError::Damaged(format!("checksum of key {}", key.escape_ascii())))
}

/// The record of a pair.
fn read_record(key: &[u8], value: &Bytes) -> Result<(PointId, Record), StoreError> {
    let id = keys::point_id(key).ok_or_else(|| StoreError::Damaged(format!("key {}", key.escape_ascii())))?;
    Ok((id, Record::decode(&unseal(key, value)?)?))
}

fn weight(key: &[u8], value: &[u8]) -> i64 {
    (key.len() + value.len()) as i64
}

impl Store {
    /// Opens the store of a shard, empty where there is none yet. Blocks.
    ///
    /// # Errors
    /// Where files cannot be reached or the engine does not accept them.
    pub fn open(kind: EngineKind, dir: &Path) -> Result<Self, StoreError> {
        if kind == EngineKind::Memory {
            return Ok(Self::with(Box::new(Memory::default()), None, 0));
        }
        #[allow(clippy::disallowed_methods, reason = "the key-value engine is the stated exception")]
        fs::create_dir_all(dir).map_err(|error| files(dir, &error))?;
        Ok(Self::with(Box::new(Sled::open(dir)?), Some(dir.to_owned()), -1))
    }

    fn with(engine: Box<dyn Engine>, path: Option<PathBuf>, live: i64) -> Self {
        let directory = Directory { path, discarded: AtomicBool::new(false) };
        let (exports, sessions) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { engine, directory, exports, sessions, live: AtomicI64::new(live) }))
    }

    /// The machine as of the last commit; `None` where there was none. Does not look at records.
    ///
    /// # Errors
    /// Where a value cannot be read, or the sessions are not those that were committed.
    pub fn load(&self) -> Result<Option<Machine>, StoreError> {
        let Some(head) = self.0.get(keys::META)? else { return Ok(None) };
        let (committed, meta) = keys::read_head(&head).ok_or_else(|| StoreError::Damaged("the meta".to_owned()))?;
        let mut machine = Machine { meta: MachineMeta::decode(&meta)?, ..Machine::default() };
        let mut digest = 0u128;
        self.0.each(keys::SESSIONS, &mut |key, value| {
            let id = keys::session_id(&key).ok_or_else(|| StoreError::Damaged("a session's key".to_owned()))?;
            machine.sessions.restore(id, Session::decode(&unseal(&key, &value)?)?);
            digest = digest.wrapping_add(digest_of_pair(&key, &value));
            Ok(())
        })?;
        if digest != committed {
            return Err(StoreError::Damaged("sessions of another commit".to_owned()));
        }
        Ok(Some(machine))
    }

    /// A point's record.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn record(&self, id: &PointId) -> Result<Option<Record>, StoreError> {
        Ok(self.0.get(&keys::record(id))?.map(|value| Record::decode(&value)).transpose()?)
    }

    /// The points whose text id is `routing_key` or starts with it and `separator`, by id.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn group(&self, routing_key: &str, separator: &str) -> Result<Vec<(PointId, Record)>, StoreError> {
        let itself = PointId::Text(routing_key.to_owned());
        let mut group: Vec<(PointId, Record)> =
            self.record(&itself)?.map(|record| (itself, record)).into_iter().collect();
        if !separator.is_empty() {
            let (from, until) = keys::texts(&format!("{routing_key}{separator}"));
            self.0.each((&from, &until), &mut |key, value| {
                group.push(read_record(&key, &value)?);
                Ok(())
            })?;
        }
        Ok(group)
    }

    /// Up to `limit` records after `after`, by id.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn range(&self, after: Option<&PointId>, limit: usize) -> Result<Vec<(PointId, Record)>, StoreError> {
        let from = after.map_or_else(|| keys::RECORDS.0.to_vec(), keys::record);
        let pairs = self.0.engine.scan(Bound::Excluded(&from), keys::RECORDS.1, limit)?;
        pairs.iter().map(|(key, value)| read_record(key, value)).collect()
    }

    /// Begins what one commit will write. One at a time.
    pub fn begin(&self) -> Batch<'_> {
        Batch { store: self, records: BTreeMap::new(), sessions: BTreeSet::new(), read: Mutex::default() }
    }

    /// Reads everything: every checksum, every record against the digest and the count of the last commit. Answers the
    /// machine if the store is intact; `None` = it is empty or damaged: rebuild it. `visit` sees every record by id, before
    /// it is known whether the whole is intact.
    ///
    /// # Errors
    /// Where the engine fails, or a value is of a newer format. Rebuild too.
    pub fn verify(&self, visit: &mut dyn FnMut(PointId, Record)) -> Result<Option<Machine>, StoreError> {
        match self.read_all(visit) {
            Err(StoreError::Damaged(_) | StoreError::State(StateError::Malformed(_))) => Ok(None),
            answer => answer,
        }
    }

    fn read_all(&self, visit: &mut dyn FnMut(PointId, Record)) -> Result<Option<Machine>, StoreError> {
        let Some(machine) = self.load()? else { return Ok(None) };
        let (mut points, mut digest, mut live) = (0, 0u128, 0);
        self.0.each(keys::RECORDS, &mut |key, value| {
            let (id, record) = read_record(&key, &value)?;
            points += 1;
            digest = digest.wrapping_add(digest_of(&id, &record));
            live += weight(&key, &value);
            visit(id, record);
            Ok(())
        })?;
        self.0.live.store(live, Ordering::Relaxed);
        Ok((points == machine.meta.points && digest == machine.meta.digest).then_some(machine))
    }

    /// Begins to export all records as of now. Ends an export that is still running.
    pub fn begin_export(&self) -> Export {
        Export::begin(self.0.clone())
    }

    /// Builds a store from a snapshot's machine and records in `dir`, which no open store may have; what was there goes.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError::ImportMismatch`] where the records are not the machine's; otherwise as for opening and writing.
    /// Nothing is left then.
    pub fn import(
        kind: EngineKind,
        dir: &Path,
        machine: &Machine,
        records: impl Iterator<Item = (PointId, Record)>,
    ) -> Result<Self, StoreError> {
        let store = match kind {
            EngineKind::Memory => Self::with(Box::new(Memory::default()), None, 0),
            EngineKind::Sled => {
                remove_dir(dir)?;
                Self::open(kind, dir)?
            }
        };
        if let Err(error) = store.fill(machine, records).and_then(|()| store.0.engine.flush()) {
            store.discard();
            return Err(error);
        }
        Ok(store)
    }

    fn fill(&self, machine: &Machine, records: impl Iterator<Item = (PointId, Record)>) -> Result<(), StoreError> {
        let (mut found, mut digest, mut chunk, mut live) = (0, 0u128, Vec::new(), 0);
        for (id, record) in records {
            found += 1;
            digest = digest.wrapping_add(digest_of(&id, &record));
            let key = keys::record(&id);
            let value = keys::seal(&key, &record.encode());
            live += weight(&key, &value);
            chunk.push((key, Some(value)));
            if chunk.len() == IMPORT_CHUNK {
                self.0.engine.write(std::mem::take(&mut chunk))?;
            }
        }
        if found != machine.meta.points || digest != machine.meta.digest {
            return Err(StoreError::ImportMismatch { found, wanted: machine.meta.points });
        }
        let mut sessions = 0u128;
        for (id, session) in machine.sessions.iter() {
            let key = keys::session(id);
            let value = keys::seal(&key, &session.encode());
            sessions = sessions.wrapping_add(digest_of_pair(&key, &value));
            chunk.push((key, Some(value)));
        }
        chunk.push((keys::META.to_vec(), Some(keys::head(sessions, &machine.meta.encode()))));
        self.0.live.store(live, Ordering::Relaxed);
        self.0.engine.write(chunk)
    }

    /// Flushes before a stop, so that the next start finds the store intact. Blocks.
    pub fn close(&self) {
        if let Err(error) = self.0.engine.flush() {
            tracing::warn!(%error, "the store was not flushed; the next start may have to rebuild it");
        }
    }

    /// Says that the files are of no use any more: another store has replaced this one, or it failed. They are deleted
    /// once nothing holds the store.
    pub fn discard(&self) {
        self.0.directory.discarded.store(true, Ordering::Relaxed);
    }

    /// Bytes of the files for each byte of live keys and values; 1 where there is hardly anything. Rebuild by import from
    /// an export when it passes about 3.
    pub fn bloat(&self) -> f64 {
        let live = match self.0.live.load(Ordering::Relaxed) {
            known @ 0.. => known,
            _ => {
                let mut live = 0;
                let counted = self.0.each(keys::RECORDS, &mut |key, value| {
                    live += weight(&key, &value);
                    Ok(())
                });
                if counted.is_err() {
                    return 1.0; // whoever reads it next learns why
                }
                self.0.live.store(live, Ordering::Relaxed);
                live
            }
        };
        // Below this the engine's own overhead is all there is to see.
        let live = live.max(16 << 20);
        self.0.engine.file_bytes().map_or(1.0, |bytes| (bytes as f64 / live as f64).max(1.0))
    }
}

/// What one commit is going to write: any number of applied entries. As [`Facts`] it answers what the store holds with the
/// staged entries over it. Dropped without commit, nothing has happened.
pub struct Batch<'a> {
    store: &'a Store,
    records: BTreeMap<PointId, Option<Record>>,
    sessions: BTreeSet<SessionId>,
    /// What the store holds under keys that were asked for, so that the commit need not read them again.
    read: Mutex<BTreeMap<Vec<u8>, Option<Bytes>>>,
}

impl Batch<'_> {
    /// Adds what an entry did; later entries see it.
    pub fn stage(&mut self, applied: &Applied) {
        self.records.extend(applied.records.iter().cloned());
        self.sessions.extend(applied.sessions.iter().copied());
    }

    /// The points that the commit will write or remove.
    pub fn changing(&self) -> impl Iterator<Item = &PointId> {
        self.records.keys()
    }

    /// Writes everything staged, and the machine as it is after it, in one atomic batch.
    ///
    /// # Errors
    /// Where the engine fails; then the store must not be used any more.
    pub fn commit(self, machine: &Machine) -> Result<(), StoreError> {
        let inner = &self.store.0;
        let mut writes = Vec::with_capacity(self.records.len() + self.sessions.len() + 1);
        for (id, record) in &self.records {
            let key = keys::record(id);
            let value = record.as_ref().map(|record| keys::seal(&key, &record.encode()));
            writes.push((key, value));
        }
        let mut read = self.read.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut sessions = inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut digest = match *sessions {
            Some(known) => known,
            None => inner.digest_of_sessions()?,
        };
        let mut exports = inner.exports();
        let mut growth = 0;
        for (key, value) in &writes {
            let old = match read.remove(key) {
                Some(old) => old,
                None => inner.engine.get(key)?,
            };
            growth += value.as_ref().map_or(0, |value| weight(key, value));
            growth -= old.as_ref().map_or(0, |old| weight(key, old));
            if let Some(running) = exports.running.as_mut().filter(|running| running.needs(key)) {
                running.keep(key.clone(), old);
            }
        }
        for id in &self.sessions {
            let key = keys::session(id);
            let value = machine.sessions.encode(id).map(|bytes| keys::seal(&key, &bytes));
            if let Some(old) = inner.engine.get(&key)? {
                digest = digest.wrapping_sub(digest_of_pair(&key, &old));
            }
            digest = digest.wrapping_add(value.as_ref().map_or(0, |value| digest_of_pair(&key, value)));
            writes.push((key, value));
        }
        writes.push((keys::META.to_vec(), Some(keys::head(digest, &machine.meta.encode()))));
        inner.engine.write(writes)?;
        *sessions = Some(digest);
        if inner.live.load(Ordering::Relaxed) >= 0 {
            inner.live.fetch_add(growth, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Facts for Batch<'_> {
    type Error = StoreError;

    fn record(&self, id: &PointId) -> Result<Option<Record>, StoreError> {
        match self.records.get(id) {
            Some(staged) => Ok(staged.clone()),
            None => {
                let key = keys::record(id);
                let value = self.store.0.engine.get(&key)?;
                let record = value.as_ref().map(|value| Ok(Record::decode(&unseal(&key, value)?)?)).transpose();
                self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value);
                record
            }
        }
    }

    fn group(&self, routing_key: &str, separator: &str) -> Result<Vec<(PointId, Record)>, StoreError> {
        let mut group: BTreeMap<PointId, Record> = self.store.group(routing_key, separator)?.into_iter().collect();
        let prefix = format!("{routing_key}{separator}");
        let member = |id: &PointId| matches!(id, PointId::Text(text) if text == routing_key || !separator.is_empty() && text.starts_with(&prefix));
        for (id, staged) in self.records.iter().filter(|(id, _)| member(id)) {
            match staged {
                Some(record) => group.insert(id.clone(), record.clone()),
                None => group.remove(id),
            };
        }
        Ok(group.into_iter().collect())
    }
}

impl Facts for Store {
    type Error = StoreError;

    fn record(&self, id: &PointId) -> Result<Option<Record>, StoreError> {
        Store::record(self, id)
    }

    fn group(&self, routing_key: &str, separator: &str) -> Result<Vec<(PointId, Record)>, StoreError> {
        Store::group(self, routing_key, separator)
    }
}

fn files(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Files { path: path.display().to_string(), reason: error.to_string() }
}

#[allow(clippy::disallowed_methods, reason = "the key-value engine is the stated exception")]
fn remove_dir(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(files(path, &error)),
        _ => Ok(()),
    }
}
