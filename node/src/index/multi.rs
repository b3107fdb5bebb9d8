//! One named multi-vector of a shard, searched by comparing the query with every one.
//!
//! The score is [`kernel::max_sim`], so it is exact and equal on every replica. Deliberately not here: a graph over the rows to
//! pick candidates from. A search reads every row of every point that its filter leaves, which suits tens of thousands of
//! points, and re-ranking what another vector found.
use std::sync::Arc;

use nearring_proto::collection::MultiSpec;
use nearring_proto::vector::MultiVector;
use roaring::RoaringBitmap;

use super::held::Held;
use super::kernel;
use super::named::Points;
use super::search::{Best, Scored, best_first};
use crate::machine::record::Stamp;

/// About what a vector takes beside its components.
const VECTOR_BYTES: u64 = 80;

/// One named multi-vector.
#[derive(Debug)]
pub(super) struct Multi {
    pub(super) spec: MultiSpec,
    pub(super) held: Held<MultiVector>,
    components: u64,
}

impl Multi {
    pub(super) fn new(spec: MultiSpec) -> Self {
        Self { spec, held: Held::default(), components: 0 }
    }

    /// The point has this vector with this stamp.
    pub(super) fn set(&mut self, slot: u32, stamp: Stamp, vector: Option<Arc<MultiVector>>) {
        let size = |vector: &Option<Arc<MultiVector>>| vector.as_ref().map_or(0, |v| v.components().len() as u64);
        let brought = size(&vector);
        let (changed, before) = self.held.set(slot, stamp, vector);
        if changed {
            self.components = self.components + brought - size(&before);
        }
    }

    /// The point does not have this vector any more.
    pub(super) fn clear(&mut self, slot: u32) {
        if let Some(before) = self.held.clear(slot) {
            self.components -= before.components().len() as u64;
        }
    }

    /// About the memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.components * size_of::<f32>() as u64 + self.held.slots.len() * VECTOR_BYTES
    }

    /// Components that a search of all reads.
    pub(super) fn cost(&self, query: &MultiVector) -> u64 {
        self.components.saturating_mul(query.rows().len() as u64)
    }

    fn score(&self, query: &MultiVector, slot: u32) -> Option<f32> {
        self.held.get(slot).map(|vector| kernel::max_sim(self.spec.metric, query, vector))
    }

    /// The best k of all, or of `among`. Slots in `among` that lack the vector do not count.
    pub(super) fn nearest(
        &self,
        query: &MultiVector,
        (k, threshold): (usize, Option<f32>),
        among: Option<&RoaringBitmap>,
        points: &Points,
    ) -> Vec<Scored> {
        let mut best = Best::new(self.spec.metric, points, k, threshold);
        for slot in among.unwrap_or(&self.held.slots) {
            if let Some(score) = self.score(query, slot) {
                best.push(score, slot);
            }
        }
        best.finish()
    }

    /// The best k of those in `upper` that `matches`, asked of as few as possible.
    pub(super) fn best_first(
        &self,
        query: &MultiVector,
        (k, threshold): (usize, Option<f32>),
        upper: &RoaringBitmap,
        points: &Points,
        matches: &mut dyn FnMut(u32) -> bool,
    ) -> Vec<Scored> {
        let scored = upper.iter().filter_map(|slot| Some((self.score(query, slot)?, slot))).collect();
        best_first(self.spec.metric, points, (k, threshold), scored, matches)
    }
}
