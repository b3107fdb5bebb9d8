//! One named vector of a shard: which point has it, since when, and where its components lie.
//!
//! Files arrive when they arrive, before or after the entry that installs them, and replicas must agree all the same. So places are
//! a function of the records, the manifest and the files that are here: a vector lies in the segment of the manifest with the
//! highest number that holds it with its stamp, otherwise in the tail. While a file of the manifest is missing, components stay
//! where they were (tail, or a segment that has left the manifest and is kept for them), and nobody searches; once the last file is
//! here everything is where it would have been.
use std::collections::BTreeMap;
use std::sync::Arc;

use nearring_proto::collection::VectorSpec;
use nearring_proto::ids::{PointId, Version};
use roaring::RoaringBitmap;

use super::change::InstalledSegment;
use super::segment::{Member, Segment};
use super::tail::{NO_SLOT, Tail};
use crate::machine::command::SegmentHash;
use crate::machine::record::Stamp;

/// The points of a shard by slot: small dense numbers, reused.
#[derive(Debug, Default)]
pub(super) struct Points {
    by_id: BTreeMap<PointId, u32>,
    slots: Vec<Option<(PointId, Version)>>,
    free: Vec<u32>,
    used: RoaringBitmap,
}

impl Points {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn slot(&self, id: &PointId) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    pub(super) fn at(&self, slot: u32) -> Option<(&PointId, Version)> {
        self.slots.get(slot as usize)?.as_ref().map(|(id, version)| (id, *version))
    }

    pub(super) fn put(&mut self, id: PointId, version: Version) -> u32 {
        if let Some(slot) = self.slot(&id) {
            self.slots[slot as usize] = Some((id, version));
            return slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some((id.clone(), version));
        self.by_id.insert(id, slot);
        self.used.insert(slot);
        slot
    }

    pub(super) fn remove(&mut self, id: &PointId) -> Option<u32> {
        let slot = self.by_id.remove(id)?;
        self.slots[slot as usize] = None;
        self.free.push(slot);
        self.used.remove(slot);
        Some(slot)
    }

    /// By id, from behind `after`.
    pub(super) fn after<'a>(&'a self, after: Option<&PointId>) -> impl Iterator<Item = (&'a PointId, u32)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.by_id.range::<PointId, _>((from, Unbounded)).map(|(id, slot)| (id, *slot))
    }

    /// The slots in use.
    pub(super) fn used(&self) -> &RoaringBitmap {
        &self.used
    }
}

/// Where a vector's components lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// The point does not have this vector.
    Absent,
    /// Not here yet.
    Wanted,
    Tail(u32),
    /// `holder` is a key of [`Named::holders`].
    Segment {
        holder: u32,
        row: u32,
    },
}

/// A segment of the manifest, here or not, or one that left it and is still needed.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) entry: InstalledSegment,
    pub(super) file: Option<Arc<Segment>>,
    /// Of each row, the slot of the point whose vector lies there now, or [`NO_SLOT`].
    pub(super) slots: Vec<u32>,
    /// Rows with a slot.
    pub(super) live: u64,
    pub(super) in_manifest: bool,
}

#[derive(Debug)]
pub(super) struct Named {
    pub(super) spec: VectorSpec,
    /// Who has this vector.
    pub(super) slots: RoaringBitmap,
    stamps: Vec<Stamp>,
    pub(super) places: Vec<Place>,
    pub(super) tail: Tail,
    pub(super) holders: BTreeMap<u32, Holder>,
    next_holder: u32,
    /// Places that are `Wanted`.
    pub(super) wanted: usize,
}

impl Named {
    pub(super) fn new(spec: VectorSpec) -> Self {
        let tail = Tail::new(spec.dimension as usize);
        let (slots, holders) = (RoaringBitmap::new(), BTreeMap::new());
        Self { spec, slots, stamps: Vec::new(), places: Vec::new(), tail, holders, next_holder: 0, wanted: 0 }
    }

    pub(super) fn place(&self, slot: u32) -> Place {
        self.places.get(slot as usize).copied().unwrap_or(Place::Absent)
    }

    pub(super) fn stamp(&self, slot: u32) -> Option<Stamp> {
        self.slots.contains(slot).then(|| self.stamps[slot as usize])
    }

    /// A point's components, where they are here.
    pub(super) fn components(&self, slot: u32) -> Option<&[f32]> {
        match self.place(slot) {
            Place::Absent | Place::Wanted => None,
            Place::Tail(row) => Some(self.tail.row(row)),
            Place::Segment { holder, row } => Some(self.holders.get(&holder)?.file.as_ref()?.row(row)),
        }
    }

    /// The point has this vector with this stamp. Without components the vector is looked for where it was and in the segments.
    pub(super) fn set(&mut self, slot: u32, id: &PointId, stamp: Stamp, values: Option<&[f32]>) {
        let values = values.filter(|values| values.len() == self.spec.dimension as usize);
        let here = self.place(slot);
        if self.stamp(slot) == Some(stamp) && (here != Place::Wanted || values.is_none()) {
            return;
        }
        self.vacate(slot);
        if self.places.len() <= slot as usize {
            self.places.resize(slot as usize + 1, Place::Absent);
            self.stamps.resize(slot as usize + 1, Stamp::default());
        }
        self.slots.insert(slot);
        self.stamps[slot as usize] = stamp;
        // Components come with the entry that stamps them, which no segment here can hold yet, or because no segment did.
        let place = match values {
            Some(values) => Place::Tail(self.tail.insert(slot, values)),
            None => match self.covering(id, stamp) {
                Some((holder, row)) => self.occupy(slot, holder, row),
                None => {
                    self.wanted += 1;
                    Place::Wanted
                }
            },
        };
        self.places[slot as usize] = place;
    }

    /// The point does not have this vector any more.
    pub(super) fn clear(&mut self, slot: u32) {
        self.vacate(slot);
        self.slots.remove(slot);
    }

    fn vacate(&mut self, slot: u32) {
        match self.place(slot) {
            Place::Absent => return,
            Place::Wanted => self.wanted -= 1,
            Place::Tail(row) => self.tail.remove(row),
            Place::Segment { holder, row } => {
                if let Some(holder) = self.holders.get_mut(&holder) {
                    holder.slots[row as usize] = NO_SLOT;
                    holder.live -= 1;
                }
            }
        }
        self.places[slot as usize] = Place::Absent;
    }

    fn occupy(&mut self, slot: u32, key: u32, row: u32) -> Place {
        if let Some(holder) = self.holders.get_mut(&key) {
            holder.slots[row as usize] = slot;
            holder.live += 1;
        }
        Place::Segment { holder: key, row }
    }

    /// The segment of the manifest with the highest number that holds this very vector.
    fn covering(&self, id: &PointId, stamp: Stamp) -> Option<(u32, u32)> {
        let installed = self.holders.iter().filter(|(_, holder)| holder.in_manifest);
        let rows = installed
            .filter_map(|(key, holder)| Some((holder.entry.segment, *key, holder.file.as_ref()?.row_of(id, stamp)?)));
        rows.max().map(|(_, key, row)| (key, row))
    }

    /// The manifest has this segment now, and its sources no more.
    pub(super) fn install(&mut self, entry: InstalledSegment, file: Option<Arc<Segment>>, points: &Points) {
        if self.holders.values().any(|holder| holder.in_manifest && holder.entry.hash == entry.hash) {
            return;
        }
        for holder in self.holders.values_mut() {
            holder.in_manifest &= !entry.sources.contains(&holder.entry.hash);
        }
        let entry = InstalledSegment { sources: Vec::new(), ..entry };
        let key = self.next_holder;
        self.next_holder += 1;
        self.holders.insert(key, Holder { entry, file: None, slots: Vec::new(), live: 0, in_manifest: true });
        if let Some(file) = file {
            self.fill(key, file, points);
        }
        self.settle(points);
    }

    /// A file arrived; false where no entry of the manifest waits for it.
    pub(super) fn attach(&mut self, file: &Arc<Segment>, points: &Points) -> bool {
        let waiting = self.holders.iter().find(|(_, holder)| holder.in_manifest && holder.entry.hash == file.hash());
        match waiting {
            Some((key, Holder { file: None, .. })) => {
                let key = *key;
                self.fill(key, file.clone(), points);
                self.settle(points);
                true
            }
            Some(_) => true,
            None => false,
        }
    }

    /// Puts every member of a file that is current into its place there.
    fn fill(&mut self, key: u32, file: Arc<Segment>, points: &Points) {
        let Some(holder) = self.holders.get_mut(&key) else { return };
        if file.spec().dimension != self.spec.dimension || file.number() != holder.entry.segment {
            tracing::error!(segment = holder.entry.segment, "a segment file does not fit its entry; it is left out");
            return;
        }
        let number = holder.entry.segment;
        holder.slots = vec![NO_SLOT; file.len()];
        holder.file = Some(file.clone());
        for ((id, stamp), row) in file.members().zip(0_u32..) {
            let Some(slot) = points.slot(&id).filter(|slot| self.stamp(*slot) == Some(stamp)) else { continue };
            if let Place::Segment { holder, .. } = self.place(slot)
                && self.holders.get(&holder).is_some_and(|other| other.in_manifest && other.entry.segment > number)
            {
                continue;
            }
            self.vacate(slot);
            self.places[slot as usize] = self.occupy(slot, key, row);
        }
        let places = &mut self.places;
        self.tail.compact(|slot, row| places[slot as usize] = Place::Tail(row));
    }

    /// With all files here, segments that left the manifest are needed no more.
    fn settle(&mut self, points: &Points) {
        if self.missing().next().is_some() {
            return;
        }
        let left: Vec<u32> =
            self.holders.iter().filter(|(_, holder)| !holder.in_manifest).map(|(key, _)| *key).collect();
        for key in left {
            let Some(Holder { slots, file: Some(file), .. }) = self.holders.remove(&key) else { continue };
            for (slot, row) in slots.into_iter().zip(0_u32..).filter(|(slot, _)| *slot != NO_SLOT) {
                let covering = points.at(slot).and_then(|(id, _)| self.covering(id, self.stamps[slot as usize]));
                self.places[slot as usize] = match covering {
                    Some((holder, row)) => self.occupy(slot, holder, row),
                    None => Place::Tail(self.tail.insert(slot, file.row(row))),
                };
            }
        }
    }

    /// Entries of the manifest without their file.
    pub(super) fn missing(&self) -> impl Iterator<Item = &InstalledSegment> {
        self.holders.values().filter(|holder| holder.in_manifest && holder.file.is_none()).map(|holder| &holder.entry)
    }

    pub(super) fn manifest(&self) -> impl Iterator<Item = &InstalledSegment> {
        self.holders.values().filter(|holder| holder.in_manifest).map(|holder| &holder.entry)
    }

    pub(super) fn live_members(&self, hash: &SegmentHash) -> Option<u64> {
        self.holders.values().find(|holder| holder.in_manifest && holder.entry.hash == *hash).map(|holder| holder.live)
    }

    /// The members of a seal over these sources (none = the tail), by id; `None` where this replica lacks a file and so cannot
    /// tell, or a source is not in the manifest.
    pub(super) fn seal(&self, sources: &[SegmentHash], points: &Points) -> Option<Vec<Member>> {
        if self.missing().next().is_some() || self.wanted > 0 {
            return None;
        }
        let member = |slot: u32| points.at(slot).map(|(id, _)| (id.clone(), self.stamps[slot as usize]));
        let mut members = Vec::new();
        if sources.is_empty() {
            let length = self.spec.dimension as usize;
            members.extend(self.tail.iter().filter_map(|(row, slot, _)| {
                member(slot).map(|(id, stamp)| Member::in_block(id, stamp, self.tail.capture(row), length))
            }));
        }
        for source in sources {
            let installed = self.holders.values().find(|holder| holder.in_manifest && holder.entry.hash == *source)?;
            let file = installed.file.as_ref()?;
            members.extend(installed.slots.iter().zip(0_u32..).filter(|(slot, _)| **slot != NO_SLOT).filter_map(
                |(slot, row)| member(*slot).map(|(id, stamp)| Member::in_segment(id, stamp, file.clone(), row)),
            ));
        }
        members.sort_by(|a, b| a.id.cmp(&b.id));
        Some(members)
    }

    /// Whether a slot's components are in no file of the manifest here.
    pub(super) fn outside_files(&self, slot: u32) -> bool {
        match self.place(slot) {
            Place::Absent | Place::Wanted => false,
            Place::Tail(_) => true,
            Place::Segment { holder, .. } => !self.holders.get(&holder).is_some_and(|holder| holder.in_manifest),
        }
    }
}
