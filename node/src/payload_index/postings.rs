//! Which slots hold which value, both ways: value → slots for asking, slot → values for taking a slot out again.
//!
//! Most values of a high-cardinality field (timestamps, prices, keys) stand in one slot only. A bitmap for each would take
//! several times the memory of the slot, so a value's slots become a bitmap only with the second one.
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

use roaring::RoaringBitmap;

/// Values of one field, ordered.
#[derive(Clone, Debug)]
pub(super) struct Postings<K> {
    slots: BTreeMap<K, Slots>,
    values: BTreeMap<u32, Few<K>>,
}

impl<K> Default for Postings<K> {
    fn default() -> Self {
        Self { slots: BTreeMap::new(), values: BTreeMap::new() }
    }
}

/// The slots that hold one value; never empty.
#[derive(Clone, Debug)]
enum Slots {
    One(u32),
    Many(Box<RoaringBitmap>),
}

/// The distinct values of one slot; never empty.
#[derive(Clone, Debug)]
enum Few<K> {
    One(K),
    Many(Box<[K]>),
}

impl<K> Few<K> {
    fn as_slice(&self) -> &[K] {
        match self {
            Few::One(value) => std::slice::from_ref(value),
            Few::Many(values) => values,
        }
    }
}

impl<K: Ord + Clone> Postings<K> {
    /// Adds a slot that holds none yet, with its values in any order and number. Equal values are kept once, and shared
    /// with the other slots that hold them where `K` is a shared pointer.
    pub(super) fn add(&mut self, slot: u32, mut values: Vec<K>) {
        values.sort_unstable();
        values.dedup();
        for value in &mut values {
            // The key that is already there, so that equal strings are one allocation however many slots hold them.
            if let Some((known, _)) = self.slots.get_key_value(value) {
                *value = known.clone();
            }
            match self.slots.get_mut(value) {
                None => {
                    self.slots.insert(value.clone(), Slots::One(slot));
                }
                Some(Slots::Many(bitmap)) => {
                    bitmap.insert(slot);
                }
                Some(slots @ Slots::One(_)) => {
                    if let Slots::One(first) = *slots {
                        *slots = Slots::Many(Box::new([first, slot].into_iter().collect()));
                    }
                }
            }
        }
        match (values.pop(), values.is_empty()) {
            (None, _) => {}
            (Some(only), true) => {
                self.values.insert(slot, Few::One(only));
            }
            (Some(last), false) => {
                values.push(last);
                self.values.insert(slot, Few::Many(values.into_boxed_slice()));
            }
        }
    }

    /// Takes out a slot and every value that only it held.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(values) = self.values.remove(&slot) else { return };
        for value in values.as_slice() {
            let now_empty = match self.slots.get_mut(value) {
                Some(Slots::One(_)) => true,
                Some(Slots::Many(bitmap)) => {
                    bitmap.remove(slot);
                    bitmap.is_empty()
                }
                None => false,
            };
            if now_empty {
                self.slots.remove(value);
            }
        }
    }

    /// Adds the slots of one value to `found`.
    pub(super) fn collect<Q: Ord + ?Sized>(&self, value: &Q, found: &mut RoaringBitmap)
    where
        K: Borrow<Q>,
    {
        match self.slots.get(value) {
            None => {}
            Some(Slots::One(slot)) => {
                found.insert(*slot);
            }
            Some(Slots::Many(bitmap)) => *found |= &**bitmap,
        }
    }

    /// Adds the slots of every value in `range` to `found`. Takes time in the number of distinct values there.
    pub(super) fn collect_range(&self, range: (Bound<K>, Bound<K>), found: &mut RoaringBitmap) {
        if is_empty(&range) {
            return;
        }
        // Slots of neighbouring values are scattered: sorted and appended they cost a fraction of single inserts.
        let mut single = Vec::new();
        for (_, slots) in self.slots.range(range) {
            match slots {
                Slots::One(slot) => single.push(*slot),
                Slots::Many(bitmap) => *found |= &**bitmap,
            }
        }
        single.sort_unstable();
        single.dedup(); // a slot with several values of its own
        *found |= single.into_iter().collect::<RoaringBitmap>();
    }

    /// Distinct values, and slots that hold any.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.slots.len(), self.values.len())
    }
}

/// Whether no value lies in the range; the ordered map panics where its ends are crossed.
fn is_empty<K: Ord>(range: &(Bound<K>, Bound<K>)) -> bool {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => start >= end,
        _ => false,
    }
}
