//! One named sparse vector of a shard: an inverted list for each index, and the vectors themselves.
//!
//! A list holds (slot, value) by slot, so a search goes through the lists of the query's indices side by side, one window of
//! slots after another, and adds up. **Rules:**
//! - Exact: every point that shares an index with the query is scored. Nothing is skipped by bounds on scores.
//! - A score is what [`SparseVector::dot`] gives, bit for bit, whatever the way: products in f32, added in the order of the
//!   indices, beginning with zero. So replicas agree, and filters change no score.
//! - Query values are taken as they come. The IDF modifier needs the counts of all shards, so it is the asker's to apply;
//!   [`Sparse::frequencies`] is this shard's part of it.
//! - Memory in proportion to what is stored, and 70 KB for each search.
use std::collections::BTreeMap;
use std::iter::{Copied, Flatten, Peekable};
use std::sync::Arc;

use nearring_proto::vector::{Metric, SparseVector};
use roaring::RoaringBitmap;

use super::held::Held;
use super::named::Points;
use super::search::{Best, Scored, best_first};
use crate::machine::record::Stamp;

/// Slots whose sums are under way at once.
const WINDOW: u32 = 1 << 14;
/// Entries a block of a list holds at the most: what an insertion may have to move.
const BLOCK: usize = 1024;
/// About what an entry of a vector takes, in the vector and in its list.
const ENTRY_BYTES: u64 = 20;
/// About what a vector takes beside its entries.
const VECTOR_BYTES: u64 = 120;
/// About what an index takes beside its entries.
const LIST_BYTES: u64 = 80;

type Entry = (u32, f32);

/// Who has an index, and with which value: by slot, in blocks that are never empty, so that no insertion moves many.
#[derive(Debug)]
enum List {
    /// One block, perhaps empty for a moment.
    Few(Vec<Entry>),
    Many {
        blocks: Vec<Vec<Entry>>,
        len: usize,
    },
}

type Entries<'a> = Copied<Flatten<std::slice::Iter<'a, Vec<Entry>>>>;

impl List {
    fn blocks(&self) -> &[Vec<Entry>] {
        match self {
            List::Few(block) => std::slice::from_ref(block),
            List::Many { blocks, .. } => blocks,
        }
    }

    fn len(&self) -> usize {
        match self {
            List::Few(block) => block.len(),
            List::Many { len, .. } => *len,
        }
    }

    fn entries(&self) -> Entries<'_> {
        self.blocks().iter().flatten().copied()
    }

    /// Adds a slot that is not in it.
    fn insert(&mut self, slot: u32, value: f32) {
        match self {
            List::Few(block) => {
                insert(block, slot, value);
                if block.len() > BLOCK {
                    let second = block.split_off(BLOCK / 2);
                    let len = block.len() + second.len();
                    *self = List::Many { blocks: vec![std::mem::take(block), second], len };
                }
            }
            List::Many { blocks, len } => {
                *len += 1;
                let at = block_of(blocks, slot);
                let Some(block) = blocks.get_mut(at) else { return };
                insert(block, slot, value);
                if block.len() > BLOCK {
                    // At the end, where new slots come, the blocks stay full.
                    let last = at + 1 == blocks.len();
                    let second = blocks[at].split_off(if last { BLOCK } else { BLOCK / 2 });
                    blocks.insert(at + 1, second);
                }
            }
        }
    }

    fn remove(&mut self, slot: u32) {
        match self {
            List::Few(block) => drop(remove(block, slot)),
            List::Many { blocks, len } => {
                let at = block_of(blocks, slot);
                let Some(block) = blocks.get_mut(at) else { return };
                *len -= usize::from(remove(block, slot));
                join(blocks, at);
                join(blocks, at.saturating_sub(1));
                if *len <= BLOCK / 2 {
                    *self = List::Few(blocks.concat());
                }
            }
        }
    }
}

/// The block that a slot belongs to.
fn block_of(blocks: &[Vec<Entry>], slot: u32) -> usize {
    let behind = blocks.partition_point(|block| block.first().is_some_and(|(first, _)| *first <= slot));
    behind.saturating_sub(1)
}

/// Joins a block with the next where the two are small, so that a list which loses entries gives its memory back.
fn join(blocks: &mut Vec<Vec<Entry>>, at: usize) {
    let Some([block, next]) = blocks.get_mut(at..at + 2) else { return };
    if block.is_empty() || next.is_empty() || block.len() + next.len() <= BLOCK / 2 {
        block.append(next);
        blocks.remove(at + 1);
    }
}

fn insert(block: &mut Vec<Entry>, slot: u32, value: f32) {
    let at = block.partition_point(|(other, _)| *other < slot);
    block.insert(at, (slot, value));
}

fn remove(block: &mut Vec<Entry>, slot: u32) -> bool {
    match block.binary_search_by_key(&slot, |(other, _)| *other) {
        Ok(at) => {
            block.remove(at);
            true
        }
        Err(_) => false,
    }
}

/// One named sparse vector.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) held: Held<SparseVector>,
    lists: BTreeMap<u32, List>,
    entries: u64,
}

impl Sparse {
    /// The point has this vector with this stamp.
    pub(super) fn set(&mut self, slot: u32, stamp: Stamp, vector: Option<Arc<SparseVector>>) {
        let (changed, before) = self.held.set(slot, stamp, vector.clone());
        if let Some(before) = before {
            self.take_out(slot, &before);
        }
        let Some(vector) = vector.filter(|_| changed) else { return };
        self.entries += vector.indices().len() as u64;
        for (index, value) in vector.entries() {
            self.lists.entry(index).or_insert_with(|| List::Few(Vec::new())).insert(slot, value);
        }
    }

    /// The point does not have this vector any more.
    pub(super) fn clear(&mut self, slot: u32) {
        if let Some(before) = self.held.clear(slot) {
            self.take_out(slot, &before);
        }
    }

    fn take_out(&mut self, slot: u32, vector: &SparseVector) {
        self.entries -= vector.indices().len() as u64;
        for index in vector.indices() {
            let Some(list) = self.lists.get_mut(index) else { continue };
            list.remove(slot);
            if list.len() == 0 {
                self.lists.remove(index);
            }
        }
    }

    /// About the memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.entries * ENTRY_BYTES + self.held.slots.len() * VECTOR_BYTES + self.lists.len() as u64 * LIST_BYTES
    }

    /// Vectors, and of each index how many have it.
    pub(super) fn frequencies(&self, indices: &[u32]) -> (u64, Vec<u64>) {
        let with = indices.iter().map(|index| self.lists.get(index).map_or(0, |list| list.len() as u64));
        (self.held.slots.len(), with.collect())
    }

    /// Entries that a search for all reads.
    pub(super) fn cost(&self, query: &SparseVector) -> u64 {
        query.indices().iter().filter_map(|index| self.lists.get(index)).map(|list| list.len() as u64).sum()
    }

    /// Slot and score of everyone who shares an index with the query, by slot.
    fn each(&self, query: &SparseVector, mut found: impl FnMut(u32, f32)) {
        let of = |(index, weight)| Some((weight, self.lists.get(&index)?.entries().peekable()));
        let mut lists: Vec<(f32, Peekable<Entries<'_>>)> = query.entries().filter_map(of).collect();
        let mut sums = vec![0.0_f32; WINDOW as usize];
        let mut met = vec![0_u64; WINDOW as usize / 64];
        while let Some(first) = lists.iter_mut().filter_map(|(_, list)| list.peek().map(|(slot, _)| *slot)).min() {
            let base = first - first % WINDOW;
            for (weight, list) in &mut lists {
                while let Some((slot, value)) = list.next_if(|(slot, _)| *slot - base < WINDOW) {
                    let at = (slot - base) as usize;
                    sums[at] += *weight * value;
                    met[at / 64] |= 1 << (at % 64);
                }
            }
            for (word, bits) in met.iter_mut().enumerate() {
                while *bits != 0 {
                    let at = word * 64 + bits.trailing_zeros() as usize;
                    found(base + at as u32, std::mem::take(&mut sums[at]));
                    *bits &= *bits - 1;
                }
            }
        }
    }

    /// As [`Sparse::each`], of those in `among`.
    fn each_among(&self, query: &SparseVector, among: &RoaringBitmap, mut found: impl FnMut(u32, f32)) {
        // One by one costs the query and the vector for each; the lists cost every entry.
        let mean = self.entries.checked_div(self.held.slots.len()).unwrap_or(0) + query.indices().len() as u64;
        if among.len().saturating_mul(mean) < self.cost(query) {
            for slot in among {
                if let Some(score) = self.held.get(slot).and_then(|vector| query.dot(vector)) {
                    found(slot, score);
                }
            }
        } else {
            self.each(query, |slot, score| {
                if among.contains(slot) {
                    found(slot, score);
                }
            });
        }
    }

    /// The best k of all, or of `among`.
    pub(super) fn nearest(
        &self,
        query: &SparseVector,
        (k, threshold): (usize, Option<f32>),
        among: Option<&RoaringBitmap>,
        points: &Points,
    ) -> Vec<Scored> {
        let mut best = Best::new(Metric::Dot, points, k, threshold);
        match among {
            None => self.each(query, |slot, score| best.push(score, slot)),
            Some(among) => self.each_among(query, among, |slot, score| best.push(score, slot)),
        }
        best.finish()
    }

    /// The best k of those in `upper` that `matches`, asked of as few as possible.
    pub(super) fn best_first(
        &self,
        query: &SparseVector,
        (k, threshold): (usize, Option<f32>),
        upper: &RoaringBitmap,
        points: &Points,
        matches: &mut dyn FnMut(u32) -> bool,
    ) -> Vec<Scored> {
        let mut scored = Vec::new();
        self.each_among(query, upper, |slot, score| scored.push((score, slot)));
        best_first(Metric::Dot, points, (k, threshold), scored, matches)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Lists grow over several blocks and shrink again, and stay what a map says.
        #[test]
        fn a_list_is_a_map(seed: u64, up in 1_usize..6000, ordered: bool) {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let (mut list, mut model) = (List::Few(Vec::new()), BTreeMap::new());
            for at in 0..up {
                let slot = if ordered { at as u32 } else { rng.random_range(0..1_000_000) };
                if model.insert(slot, at as f32).is_some() {
                    list.remove(slot);
                }
                list.insert(slot, at as f32);
            }
            let mut slots: Vec<u32> = model.keys().copied().collect();
            loop {
                prop_assert_eq!(list.len(), model.len());
                prop_assert!(list.entries().eq(model.iter().map(|(slot, value)| (*slot, *value))));
                let full = list.blocks().iter().all(|block| !block.is_empty() && block.len() <= BLOCK);
                prop_assert!(full || model.is_empty());
                if slots.is_empty() {
                    break;
                }
                for _ in 0..slots.len().div_ceil(3) {
                    let slot = slots.swap_remove(rng.random_range(0..slots.len()));
                    model.remove(&slot);
                    list.remove(slot);
                    list.remove(slot);
                }
            }
        }
    }
}
