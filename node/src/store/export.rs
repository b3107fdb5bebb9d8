//! Reading all records as of one moment while writes go on.
//!
//! The export walks the keys. A commit that changes a key the walk has not reached keeps the key's value of the first
//! moment aside (its pre-image), and the walk takes that instead. So writers never wait for longer than one chunk's read,
//! and what is kept aside is bounded by the points changed during the export.
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use nearring_proto::ids::PointId;

use super::engine::Pair;
use super::{Inner, StoreError, keys, read_record};
use crate::machine::record::Record;

/// The export that is running, as commits see it.
#[derive(Default)]
pub(super) struct Running {
    number: u64,
    /// Keys up to here have been read.
    cursor: Vec<u8>,
    /// Values, as of the beginning, of keys beyond the cursor that have changed since.
    before: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl Running {
    /// Whether the value of `key` must be kept aside before it is overwritten.
    pub(super) fn needs(&self, key: &[u8]) -> bool {
        key.starts_with(keys::RECORDS.0) && key > self.cursor.as_slice() && !self.before.contains_key(key)
    }

    pub(super) fn keep(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        self.before.insert(key, value);
    }
}

/// All records of a shard as of the moment it began, in chunks. One at a time: a later export ends an earlier one.
/// Dropping it ends it.
pub struct Export {
    inner: Arc<Inner>,
    number: u64,
}

impl Export {
    pub(super) fn begin(inner: Arc<Inner>) -> Self {
        let number = {
            let mut exports = inner.exports();
            exports.begun += 1;
            let number = exports.begun;
            exports.running = Some(Running { number, cursor: keys::RECORDS.0.to_vec(), before: BTreeMap::new() });
            number
        };
        Self { inner, number }
    }

    /// Up to `limit` (at least 1) further records in order of their ids; none left = the end.
    ///
    /// # Errors
    /// [`StoreError::ExportEnded`] where a later export began; otherwise what reading answers.
    pub fn next(&mut self, limit: usize) -> Result<Vec<(PointId, Record)>, StoreError> {
        let limit = limit.max(1);
        loop {
            let (chunk, last) = self.chunk(limit)?;
            if last || !chunk.is_empty() {
                return chunk.iter().map(|(key, value)| read_record(key, value)).collect();
            }
        }
    }

    /// The next pairs as of the beginning, and whether they are the last.
    fn chunk(&self, limit: usize) -> Result<(Vec<Pair>, bool), StoreError> {
        let mut exports = self.inner.exports();
        let running = exports.running.as_mut().filter(|running| running.number == self.number);
        let running = running.ok_or(StoreError::ExportEnded)?;
        let now = self.inner.engine.scan(Bound::Excluded(&running.cursor), keys::RECORDS.1, limit)?;
        let last = now.len() < limit;
        let end = match now.last() {
            Some((key, _)) if !last => key.clone(),
            _ => keys::RECORDS.1.to_vec(),
        };
        let beyond = running.before.split_off(&end);
        let mut before = std::mem::replace(&mut running.before, beyond);
        if let Some(value) = running.before.remove(&end) {
            before.insert(end.clone(), value);
        }
        running.cursor = end;
        let mut chunk: BTreeMap<Vec<u8>, Bytes> = now.into_iter().collect();
        for (key, value) in before {
            match value {
                Some(value) => chunk.insert(key, value),
                None => chunk.remove(&key),
            };
        }
        Ok((chunk.into_iter().collect(), last))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let mut exports = self.inner.exports();
        if exports.running.as_ref().is_some_and(|running| running.number == self.number) {
            exports.running = None;
        }
    }
}
