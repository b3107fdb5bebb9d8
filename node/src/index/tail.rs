//! The vectors of one name that no segment holds yet: rows in blocks, found by scanning them all.
//!
//! Rows lie in blocks of bounded size, so growing never copies what is there. A seal captures a block by its `Arc`; a later
//! write to a captured block copies that block first. Freed rows are reused, and when most rows are free the rest moves down.
//!
//! Deliberately not here: ids and stamps. A row knows the slot of its point, nothing else.
use std::sync::Arc;

/// A row whose point is gone, here and in segments.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// Block size aimed at, in components: 256 KiB.
const BLOCK_COMPONENTS: usize = 65_536;

/// Some rows of the tail, shared with whoever captured them.
pub(super) type Block = Arc<Vec<f32>>;

/// Rows of one named vector.
#[derive(Debug)]
pub(super) struct Tail {
    dimension: usize,
    rows_per_block: usize,
    blocks: Vec<Block>,
    slots: Vec<u32>,
    free: Vec<u32>,
}

impl Tail {
    pub(super) fn new(dimension: usize) -> Self {
        let rows_per_block = (BLOCK_COMPONENTS / dimension.max(1)).max(1);
        Self { dimension, rows_per_block, blocks: Vec::new(), slots: Vec::new(), free: Vec::new() }
    }

    /// Rows in use.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Memory of the blocks.
    pub(super) fn bytes(&self) -> u64 {
        (self.blocks.len() * self.rows_per_block * self.dimension * size_of::<f32>()) as u64
    }

    /// Takes a vector of the right length in; answers its row.
    pub(super) fn insert(&mut self, slot: u32, values: &[f32]) -> u32 {
        if let Some(row) = self.free.pop() {
            self.slots[row as usize] = slot;
            self.write(row, values);
            return row;
        }
        let row = self.slots.len();
        self.slots.push(slot);
        if row / self.rows_per_block == self.blocks.len() {
            self.blocks.push(Arc::new(Vec::with_capacity(self.rows_per_block * self.dimension)));
        }
        let block = &mut self.blocks[row / self.rows_per_block];
        match Arc::get_mut(block) {
            Some(block) => block.extend_from_slice(values),
            None => {
                let mut copy = Vec::with_capacity(self.rows_per_block * self.dimension);
                copy.extend_from_slice(block);
                copy.extend_from_slice(values);
                *block = Arc::new(copy);
            }
        }
        row as u32
    }

    fn write(&mut self, row: u32, values: &[f32]) {
        let (at, from) = self.place(row);
        Arc::make_mut(&mut self.blocks[at])[from..from + self.dimension].copy_from_slice(values);
    }

    fn place(&self, row: u32) -> (usize, usize) {
        let row = row as usize;
        (row / self.rows_per_block, row % self.rows_per_block * self.dimension)
    }

    /// Frees a row.
    pub(super) fn remove(&mut self, row: u32) {
        self.slots[row as usize] = NO_SLOT;
        self.free.push(row);
        if self.free.len() == self.slots.len() {
            *self = Self::new(self.dimension);
        }
    }

    pub(super) fn row(&self, row: u32) -> &[f32] {
        let (at, from) = self.place(row);
        &self.blocks[at][from..from + self.dimension]
    }

    /// A row's block and where in it the row begins.
    pub(super) fn capture(&self, row: u32) -> (Block, usize) {
        let (at, from) = self.place(row);
        (self.blocks[at].clone(), from)
    }

    /// Every row in use: row, slot, components; in the order of rows.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32, &[f32])> {
        let rows = self.blocks.iter().flat_map(|block| block.chunks_exact(self.dimension));
        self.slots
            .iter()
            .zip(rows)
            .zip(0_u32..)
            .filter_map(|((slot, values), row)| if *slot == NO_SLOT { None } else { Some((row, *slot, values)) })
    }

    /// Closes the holes where more than half of the rows are free; tells of every row that moved: slot, new row.
    pub(super) fn compact(&mut self, mut moved: impl FnMut(u32, u32)) {
        if self.free.len() * 2 <= self.slots.len() || self.blocks.len() < 2 {
            return;
        }
        let mut packed = Self::new(self.dimension);
        for (_, slot, values) in self.iter() {
            moved(slot, packed.insert(slot, values));
        }
        *self = packed;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_stay_what_they_were(
            steps in prop::collection::vec((0_u32..40, any::<bool>(), 0_u8..20), 1..400)
        ) {
            // 4 rows a block.
            let dimension = BLOCK_COMPONENTS / 4;
            let values = |number: f32| vec![number; dimension];
            let mut tail = Tail::new(dimension);
            let mut wanted = BTreeMap::<u32, (u32, f32)>::new();
            let mut captured: Vec<(Block, usize, f32)> = Vec::new();
            for (number, (slot, put, other)) in steps.into_iter().enumerate() {
                if let Some((row, _)) = wanted.remove(&slot) {
                    tail.remove(row);
                }
                if put {
                    let row = tail.insert(slot, &values(number as f32));
                    wanted.insert(slot, (row, number as f32));
                    if other == 0 {
                        let (block, from) = tail.capture(row);
                        captured.push((block, from, number as f32));
                    }
                }
                if other == 1 {
                    tail.compact(|slot, row| wanted.get_mut(&slot).unwrap().0 = row);
                }
                prop_assert_eq!(tail.len(), wanted.len());
            }
            let found: BTreeMap<u32, (u32, f32)> =
                tail.iter().map(|(row, slot, values)| (slot, (row, values[dimension - 1]))).collect();
            prop_assert_eq!(&found, &wanted);
            for (row, number) in wanted.values() {
                prop_assert_eq!(tail.row(*row)[0], *number);
            }
            for (block, from, number) in captured {
                prop_assert_eq!(block[from], number, "a captured row does not change");
            }
        }
    }
}
