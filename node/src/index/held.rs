//! Vectors that lie in memory whole: sparse and multi-vectors, which no segment takes over.
//!
//! They come back at a start as tail vectors do: the snapshot carries all of them, the log the later ones. So their memory is
//! bounded by what the node admits ([`crate::admission`]), not by sealing, and a snapshot writes them out anew each time.
use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::machine::record::Stamp;

/// The vectors of one name, by slot.
#[derive(Debug)]
pub(super) struct Held<T> {
    /// Who has this vector.
    pub(super) slots: RoaringBitmap,
    stamps: Vec<Stamp>,
    values: Vec<Option<Arc<T>>>,
    /// Those in `slots` whose values are not here yet.
    pub(super) wanted: usize,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { slots: RoaringBitmap::new(), stamps: Vec::new(), values: Vec::new(), wanted: 0 }
    }
}

impl<T> Held<T> {
    /// Vectors whose values are here.
    pub(super) fn len(&self) -> u64 {
        self.slots.len() - self.wanted as u64
    }

    pub(super) fn stamp(&self, slot: u32) -> Option<Stamp> {
        if self.slots.contains(slot) { self.stamps.get(slot as usize).copied() } else { None }
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Arc<T>> {
        self.values.get(slot as usize)?.as_ref()
    }

    /// The stamp of a vector whose values are not here.
    pub(super) fn wanted_stamp(&self, slot: u32) -> Option<Stamp> {
        self.stamp(slot).filter(|_| self.get(slot).is_none())
    }

    /// The point has this vector with this stamp. False where that changes nothing; otherwise the values before are answered,
    /// if there were any. Without values they are wanted.
    pub(super) fn set(&mut self, slot: u32, stamp: Stamp, values: Option<Arc<T>>) -> (bool, Option<Arc<T>>) {
        if self.stamp(slot) == Some(stamp) && (values.is_none() || self.get(slot).is_some()) {
            return (false, None);
        }
        let before = self.clear(slot);
        let at = slot as usize;
        if self.values.len() <= at {
            self.values.resize_with(at + 1, || None);
            self.stamps.resize(at + 1, Stamp::default());
        }
        self.slots.insert(slot);
        self.wanted += usize::from(values.is_none());
        (self.stamps[at], self.values[at]) = (stamp, values);
        (true, before)
    }

    /// The point does not have this vector any more. Its values, if they were here.
    pub(super) fn clear(&mut self, slot: u32) -> Option<Arc<T>> {
        if !self.slots.remove(slot) {
            return None;
        }
        let before = self.values.get_mut(slot as usize).and_then(Option::take);
        self.wanted -= usize::from(before.is_none());
        before
    }

    /// Every vector whose values are here: slot, stamp, values; by slot.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Stamp, &Arc<T>)> {
        self.slots.iter().filter_map(|slot| Some((slot, self.stamp(slot)?, self.get(slot)?)))
    }
}
