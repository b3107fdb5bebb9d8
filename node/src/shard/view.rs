//! All points of a replica as of one applied entry, read in chunks while entries go on being applied.
//!
//! The problem: an export of a collection must be the state at one log position, and takes as long as its reader does; writers
//! must not wait for it, and nobody has the memory for a copy. **Rules:**
//! - A view walks the ids. Before an entry changes a point that the walk has not reached, the point as it was is kept aside, and
//!   the walk takes that instead. What is kept is bounded; a view that would need more ends, with an error.
//! - Reading a chunk and applying an entry exclude each other by the lock of the [`Body`], so that a chunk never shows half of an
//!   entry, and what is kept aside is what the walk would have met.
//! - A replica that installs a snapshot, or lacks the components of a vector, ends its views: another replica is to be asked.
//!
//! Deliberately not here: the store's own export, which carries records and stamps to a snapshot, and no vectors.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nearring_proto::ids::PointId;
use nearring_proto::vector::Vector;
use nearring_proto::write::PointRecord;

use super::state::{Body, ShardState};
use crate::machine::record::Record;
use crate::store::StoreError;

/// Why a view gives no more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ViewError {
    /// There are as many as may be.
    #[error("{0} exports of this shard are under way on this replica; try again when one has ended")]
    TooMany(usize),
    /// More has changed during it than may be kept aside.
    #[error("more than {0} bytes of points changed while they were being exported; try again, or when less is written")]
    TooMuchChanged(usize),
    /// The replica's state was replaced by a snapshot.
    #[error("this replica received its state anew; start again")]
    Replaced,
    /// Components of a vector are not here yet.
    #[error("this replica is still fetching a segment; ask another")]
    VectorMissing,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The views of a replica, as whoever applies entries sees them.
#[derive(Default)]
pub(super) struct Views(Mutex<Running>);

#[derive(Default)]
struct Running {
    begun: u64,
    views: BTreeMap<u64, Kept>,
}

/// One view's place, and what is kept aside for it.
#[derive(Default)]
struct Kept {
    /// Keys up to here have been read.
    cursor: Vec<u8>,
    /// Points beyond the cursor that have changed, as they were; `None` = it was not there.
    before: BTreeMap<Vec<u8>, Option<PointRecord>>,
    bytes: usize,
    ended: Option<ViewError>,
}

impl Kept {
    fn end(&mut self, why: ViewError) {
        self.before.clear();
        self.bytes = 0;
        self.ended = Some(why);
    }
}

impl Views {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps aside what views have still to read of these points, which are about to change. The caller holds the lock for
    /// writing.
    pub(super) fn keep<'a>(&self, body: &Body, changing: impl Iterator<Item = &'a PointId>) {
        let mut running = self.running();
        if running.views.is_empty() {
            return;
        }
        for id in changing {
            let key = id.to_key();
            let needs = |kept: &&mut Kept| kept.ended.is_none() && key > kept.cursor && !kept.before.contains_key(&key);
            let mut was: Option<Result<Option<PointRecord>, ViewError>> = None;
            for kept in running.views.values_mut().filter(needs) {
                match was.get_or_insert_with(|| body.stored(id)).clone() {
                    Ok(point) => {
                        kept.bytes += key.len() + point.as_ref().map_or(0, size_of_point);
                        kept.before.insert(key.clone(), point);
                        if kept.bytes > View::KEPT_BYTES_MAX {
                            kept.end(ViewError::TooMuchChanged(View::KEPT_BYTES_MAX));
                        }
                    }
                    Err(error) => kept.end(error),
                }
            }
        }
    }

    /// The state is another one.
    pub(super) fn end_all(&self) {
        self.running().views.values_mut().for_each(|kept| kept.end(ViewError::Replaced));
    }
}

impl Body {
    /// A point with its payload and its vectors.
    fn stored(&self, id: &PointId) -> Result<Option<PointRecord>, ViewError> {
        self.store.record(id)?.map(|record| self.with_vectors(id.clone(), record)).transpose()
    }

    fn with_vectors(&self, id: PointId, record: Record) -> Result<PointRecord, ViewError> {
        let mut vectors = BTreeMap::new();
        for name in record.vectors.into_keys() {
            let components = self.index.vector(&id, &name).ok_or(ViewError::VectorMissing)?;
            vectors.insert(name, Vector::from(&components));
        }
        Ok(PointRecord { id, version: record.version, payload_json: record.payload, vectors })
    }
}

/// About the memory that a point takes.
fn size_of_point(point: &PointRecord) -> usize {
    let of = |vector: &Vector| match vector {
        Vector::Dense(values) => values.len() * 4,
        Vector::Sparse(vector) => vector.indices().len() * 8,
        Vector::Multi(vector) => vector.components().len() * 4,
    };
    let vectors: usize = point.vectors.iter().map(|(name, vector)| name.len() + 64 + of(vector)).sum();
    128 + point.payload_json.len() + vectors
}

/// Every point of a replica as of the entry that was applied last when it began. Dropping it ends it.
pub struct View {
    state: Arc<ShardState>,
    number: u64,
    index: u64,
    points: u64,
}

impl View {
    /// The most views of a replica at once.
    pub const MOST: usize = 4;
    /// The most bytes of changed points that are kept aside for one.
    pub const KEPT_BYTES_MAX: usize = 256 << 20;
    /// Records read from the store at once.
    const PAGE: usize = 64;

    /// Begins one as of now.
    ///
    /// # Errors
    /// [`ViewError::TooMany`].
    pub fn begin(state: Arc<ShardState>) -> Result<Self, ViewError> {
        let (number, index, points) = {
            // No entry is applied while this is held.
            let body = state.read();
            let mut running = state.views.running();
            if running.views.len() >= Self::MOST {
                return Err(ViewError::TooMany(Self::MOST));
            }
            running.begun += 1;
            let number = running.begun;
            running.views.insert(number, Kept::default());
            (number, body.applied(), body.meta.points)
        };
        Ok(Self { state, number, index, points })
    }

    /// The entry that it is as of.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many points there are in it.
    pub fn points(&self) -> u64 {
        self.points
    }

    /// Further points, by id, until they take about `bytes` or more; none left = the end. Blocks.
    ///
    /// # Errors
    /// [`ViewError`]; then it gives no more.
    pub fn next(&mut self, bytes: usize) -> Result<Vec<PointRecord>, ViewError> {
        let body = self.state.read();
        let mut running = self.state.views.running();
        let kept = running.views.get_mut(&self.number).ok_or(ViewError::Replaced)?;
        if let Some(why) = &kept.ended {
            return Err(why.clone());
        }
        let (mut found, mut taken) = (Vec::new(), 0);
        loop {
            let after = PointId::from_key(&kept.cursor);
            let page = body.store.range(after.as_ref(), Self::PAGE)?;
            let last = page.len() < Self::PAGE;
            // Where no more is stored, what is left was deleted meanwhile.
            let end = page.last().filter(|_| !last).map(|(id, _)| id.to_key());
            let mut here: BTreeMap<Vec<u8>, Option<(PointId, Record)>> =
                page.into_iter().map(|(id, record)| (id.to_key(), Some((id, record)))).collect();
            for key in kept.before.keys().take_while(|key| end.as_ref().is_none_or(|end| *key <= end)) {
                here.entry(key.clone()).or_default();
            }
            for (key, now) in here {
                let point = match kept.before.remove(&key) {
                    Some(was) => {
                        kept.bytes = kept.bytes.saturating_sub(key.len() + was.as_ref().map_or(0, size_of_point));
                        was
                    }
                    None => now.map(|(id, record)| body.with_vectors(id, record)).transpose()?,
                };
                kept.cursor = key;
                if let Some(point) = point {
                    taken += size_of_point(&point);
                    found.push(point);
                    if taken >= bytes {
                        return Ok(found);
                    }
                }
            }
            if last {
                return Ok(found);
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.state.views.running().views.remove(&self.number);
    }
}
