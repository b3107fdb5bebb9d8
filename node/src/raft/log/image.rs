//! What the groups' logs hold, as their readers see it: every accepted operation at once, whether it is durable or not.
//!
//! Pure memory: no file, no task. Entries are held here from acceptance until they are on disk, and then for as long as
//! the cache has room; of the others only id, size and place are kept.
use std::collections::{BTreeMap, VecDeque};

use nearring_proto::ids::ShardId;
use openraft::EntryPayload;

use super::recover::Replayed;
use crate::raft::{Entry, LogId, Vote};

/// A frame on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    /// The file.
    pub(super) seq: u64,
    /// Where the frame begins.
    pub(super) offset: u64,
    /// Length of the whole frame in bytes.
    pub(super) len: u64,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) log_id: LogId,
    /// About as many bytes as it takes.
    pub(super) size: u64,
    /// Distinguishes it from any other entry that ever had its index.
    pub(super) serial: u64,
    /// Once it is durable.
    pub(super) place: Option<Place>,
    /// While it is in memory. At least one of this and `place` is there.
    pub(super) entry: Option<Box<Entry>>,
}

/// One group.
#[derive(Default, Debug)]
pub(super) struct Image {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// The last entry known durable.
    pub(super) durable: Option<LogId>,
    /// Without gaps, in order of index.
    pub(super) slots: VecDeque<Slot>,
}

impl Image {
    pub(super) fn is_empty(&self) -> bool {
        self.vote.is_none() && self.committed.is_none() && self.purged.is_none() && self.slots.is_empty()
    }

    /// The last entry, or the purge mark where there is none.
    pub(super) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.log_id).or(self.purged)
    }

    fn position(&self, index: u64) -> Option<usize> {
        let first = self.slots.front()?.log_id.index;
        let position = usize::try_from(index.checked_sub(first)?).ok()?;
        (position < self.slots.len()).then_some(position)
    }

    fn slot_mut(&mut self, index: u64, serial: u64) -> Option<&mut Slot> {
        let position = self.position(index)?;
        self.slots.get_mut(position).filter(|slot| slot.serial == serial)
    }

    /// The entries from `first` to `last`, both included, as far as they are there.
    pub(super) fn range(&self, first: u64, last: u64) -> impl Iterator<Item = &Slot> {
        let start = self.slots.front().map_or(0, |slot| slot.log_id.index).max(first);
        let skip = self.position(start).unwrap_or(self.slots.len());
        self.slots.range(skip..).take_while(move |slot| slot.log_id.index <= last)
    }
}

/// All groups, and what of their entries is in memory.
#[derive(Default, Debug)]
pub(super) struct Images {
    pub(super) groups: BTreeMap<ShardId, Image>,
    next_serial: u64,
    /// Entries in memory in the order in which they came: group, index, serial. Some may be gone.
    recent: VecDeque<(ShardId, u64, u64)>,
    /// How many of `recent` are still in memory, and their bytes.
    held: usize,
    held_bytes: u64,
}

/// Entries that do not continue the log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {found} does not continue a log whose next entry is {expected}")]
pub(super) struct Gap {
    expected: u64,
    found: u64,
}

impl Images {
    /// A group as it was found on disk.
    pub(super) fn restore(&mut self, group: ShardId, replayed: Replayed) {
        let mut image =
            Image { vote: replayed.vote, committed: replayed.committed, purged: replayed.purged, ..Image::default() };
        for (log_id, place) in replayed.entries.into_values() {
            let serial = self.next_serial;
            self.next_serial += 1;
            image.slots.push_back(Slot { log_id, size: place.len, serial, place: Some(place), entry: None });
            image.durable = Some(log_id);
        }
        if !image.is_empty() {
            self.groups.insert(group, image);
        }
    }

    /// Adds entries at the end of a group's log; answers each one's serial. Nothing happens where they do not continue it.
    pub(super) fn append(&mut self, group: ShardId, entries: &[Entry]) -> Result<Vec<u64>, Gap> {
        let image = self.groups.entry(group).or_default();
        let mut expected = image.last().map(|last| last.index + 1);
        for entry in entries {
            let found = entry.log_id.index;
            match expected {
                Some(expected) if expected != found => return Err(Gap { expected, found }),
                _ => expected = Some(found + 1),
            }
        }
        let mut serials = Vec::with_capacity(entries.len());
        for entry in entries {
            let (serial, size) = (self.next_serial, size_of(entry));
            self.next_serial += 1;
            self.recent.push_back((group, entry.log_id.index, serial));
            self.held += 1;
            self.held_bytes += size;
            image.slots.push_back(Slot {
                log_id: entry.log_id,
                size,
                serial,
                place: None,
                entry: Some(Box::new(entry.clone())),
            });
            serials.push(serial);
        }
        Ok(serials)
    }

    /// Drops the entries after index `after`, all of them for `None`.
    pub(super) fn truncate(&mut self, group: ShardId, after: Option<u64>) {
        let Some(image) = self.groups.get_mut(&group) else { return };
        while let Some(slot) = image.slots.pop_back_if(|slot| after.is_none_or(|after| slot.log_id.index > after)) {
            release(&mut self.held, &mut self.held_bytes, &slot);
        }
        let last = image.last();
        if image.durable.map(|durable| durable.index) > last.map(|last| last.index) {
            image.durable = last;
        }
    }

    /// Drops the entries up to `upto` and remembers that they were there. False where they had been dropped before.
    pub(super) fn purge(&mut self, group: ShardId, upto: LogId) -> bool {
        let image = self.groups.entry(group).or_default();
        if image.purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        image.purged = Some(upto);
        while let Some(slot) = image.slots.pop_front_if(|slot| slot.log_id.index <= upto.index) {
            release(&mut self.held, &mut self.held_bytes, &slot);
        }
        true
    }

    /// Drops the group.
    pub(super) fn forget(&mut self, group: ShardId) {
        self.truncate(group, None);
        self.groups.remove(&group);
    }

    /// An entry became durable.
    pub(super) fn placed(&mut self, group: ShardId, index: u64, serial: u64, place: Place) {
        let Some(image) = self.groups.get_mut(&group) else { return };
        let Some(slot) = image.slot_mut(index, serial) else { return };
        slot.place = Some(place);
        image.durable = Some(slot.log_id);
    }

    /// Lets go of the oldest entries in memory until at most `bytes` are held, or one is met that is not durable yet.
    pub(super) fn evict(&mut self, bytes: u64) {
        while let Some(&(group, index, serial)) = self.recent.front() {
            let slot = self.groups.get_mut(&group).and_then(|image| image.slot_mut(index, serial));
            if let Some(slot) = slot {
                // They become durable in the order in which they came: behind this one none is.
                if self.held_bytes <= bytes || slot.place.is_none() {
                    break;
                }
                release(&mut self.held, &mut self.held_bytes, slot);
                slot.entry = None;
            }
            self.recent.pop_front();
        }
        // An old entry at the front may hide any number behind it that are gone.
        if self.recent.len() > 2 * self.held + 1024 {
            let groups = &mut self.groups;
            self.recent.retain(|&(group, index, serial)| {
                groups.get_mut(&group).and_then(|image| image.slot_mut(index, serial)).is_some()
            });
        }
    }

    /// Bytes of the entries in memory.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

fn release(held: &mut usize, held_bytes: &mut u64, slot: &Slot) {
    if slot.entry.is_some() {
        *held -= 1;
        *held_bytes -= slot.size;
    }
}

/// About as many bytes as an entry takes, on disk or in memory.
pub(super) fn size_of(entry: &Entry) -> u64 {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Membership(membership) => membership.nodes().map(|(_, node)| 64 + node.addr.len()).sum(),
    };
    payload as u64 + 64
}
