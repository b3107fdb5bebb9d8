//! The only file that names the key-value engine, and an in-memory one beside it.
//!
//! The interface is what a shard needs: point reads, scans in chunks, atomic batches. sled is used as a cache of snapshot
//! and log, because between its flushes a power loss may damage it: no flusher thread, a small cache, and whoever opens
//! a store verifies it. sled may also panic on files that it cannot make sense of; such a panic is caught here and is an
//! error like any other.
use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;

use super::StoreError;

/// Key and value.
pub(super) type Pair = (Vec<u8>, Bytes);

/// Bytes that sled may keep of one shard in memory.
const CACHE_BYTES: u64 = 16 << 20;
/// What sled says, in text only, where another store holds the directory.
const LOCKED: &str = "could not acquire lock";
const LOCK_WAIT: Duration = Duration::from_millis(20);
const LOCK_WAITS: u32 = 250;

/// An ordered map of bytes to bytes.
pub(super) trait Engine: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// The first `limit` pairs after `from` (or from it on) and before `until`, in order of keys.
    fn scan(&self, from: Bound<&[u8]>, until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;
    /// Writes or, with `None`, deletes; all of it or, after a crash, nothing.
    fn write(&self, batch: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError>;
    /// Makes what was written durable as far as the engine can.
    fn flush(&self) -> Result<(), StoreError>;
    /// Bytes of the files.
    fn file_bytes(&self) -> Result<u64, StoreError>;
}

#[derive(Default)]
pub(super) struct Memory(RwLock<BTreeMap<Vec<u8>, Bytes>>);

impl Engine for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn scan(&self, from: Bound<&[u8]>, until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if is_empty(from, until) {
            return Ok(Vec::new());
        }
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let range = map.range::<[u8], _>((from, Bound::Excluded(until)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn write(&self, batch: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch {
            match value {
                Some(value) => map.insert(key, Bytes::from(value)),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn file_bytes(&self) -> Result<u64, StoreError> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}

pub(super) struct Sled(sled::Db);

impl Sled {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput);
        // A store that was just dropped holds its lock until sled's own threads are through with its last writes.
        let mut waits = 0;
        loop {
            match guarded(|| config.open()).map(Self) {
                Err(StoreError::Engine(reason)) if reason.contains(LOCKED) => {
                    waits += 1;
                    if waits > LOCK_WAITS {
                        return Err(StoreError::Locked { path: dir.display().to_string() });
                    }
                    std::thread::sleep(LOCK_WAIT);
                }
                answer => return answer,
            }
        }
    }
}

impl Engine for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = guarded(|| self.0.get(key))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, from: Bound<&[u8]>, until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if is_empty(from, until) {
            return Ok(Vec::new()); // sled may panic on such a range
        }
        guarded(|| {
            let range = self.0.range::<&[u8], _>((from, Bound::Excluded(until)));
            let pair = |(key, value): (sled::IVec, sled::IVec)| (key.to_vec(), Bytes::copy_from_slice(&value));
            range.take(limit).map(|found| found.map(pair)).collect()
        })
    }

    fn write(&self, batch: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), StoreError> {
        let mut writes = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => writes.insert(key, value),
                None => writes.remove(key),
            }
        }
        guarded(|| self.0.apply_batch(writes))
    }

    fn flush(&self) -> Result<(), StoreError> {
        guarded(|| self.0.flush()).map(drop)
    }

    fn file_bytes(&self) -> Result<u64, StoreError> {
        guarded(|| self.0.size_on_disk())
    }
}

/// Runs sled, which may panic on damaged files.
fn guarded<T>(run: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(answer) => answer.map_err(|error| StoreError::Engine(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let said = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
            Err(StoreError::Engine(format!("panicked: {said}")))
        }
    }
}

fn is_empty(from: Bound<&[u8]>, until: &[u8]) -> bool {
    match from {
        Bound::Included(from) | Bound::Excluded(from) => from >= until,
        Bound::Unbounded => false,
    }
}
