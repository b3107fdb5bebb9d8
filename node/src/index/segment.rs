//! Segment files: members of one named vector, sealed for ever.
//!
//! A file goes to every replica and is named by what it holds, so it must be the same bytes everywhere and must show any damage.
//! Layout, little-endian:
//!
//! ```text
//! header 64 B   "NRSEGMNT" · format u32 · flags u32 (1 = graph) · rows u32 · dimension u32 · metric u8 · scalar u8 ·
//!               name length u16 · m u32 · efConstruction u32 · graph factor f32 · number u64 · key bytes u64 · graph bytes u64
//! name          of the vector, padded to 8
//! stamps        rows × (epoch u64 · index u64)
//! offsets       (rows + 1) × u32 into the keys
//! keys          PointId::to_key of each member, ascending, padded to 64
//! rows          rows × dimension × f32, padded to 64
//! graph         as usearch saves it; absent in small segments, where reading every row is as fast
//! footer 48 B   length of all before it u64 · "NRSEGEND" · blake3 of all before it
//! ```
//!
//! Rules: row = rank of the id; [`Segment::open`] checks the hash and then everything it relies on, and errors rather than
//! panics; rows are used where they lie in the (mapped) file. The graph's insides are usearch's and are covered by the hash, not
//! by checks: a file that was made to harm, with a right hash, is not defended against.
//!
//! Deliberately not here: which members are still alive, and where files lie.
use std::sync::Arc;

use bytes::Bytes;
use nearring_proto::collection::{IndexSpec, VectorSpec};
use nearring_proto::ids::{PointId, Version};
use nearring_proto::vector::{Metric, ScalarKind};

use super::graph::{Graph, GraphError};
use super::tail::Block;
use crate::machine::command::SegmentHash;
use crate::machine::record::Stamp;

/// The format written, and the newest that is read.
pub const FORMAT: u32 = 1;

/// Bytes of the header.
pub(super) const HEADER: usize = 64;
/// Bytes of the footer.
pub(super) const FOOTER: usize = 48;
pub(super) const MAGIC: &[u8; 8] = b"NRSEGMNT";
pub(super) const MAGIC_END: &[u8; 8] = b"NRSEGEND";
pub(super) const FLAG_GRAPH: u32 = 1;
const STAMP: usize = 16;

/// Why bytes are not a segment file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SegmentError {
    /// Damaged, cut short or something else.
    #[error("not an intact segment file: {0}; fetch it again from another replica")]
    Corrupt(String),
    /// Written by a newer version.
    #[error("segment file of format {found}, this version reads up to {known}; update this node")]
    Newer {
        /// The file's.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Intact, and another file.
    #[error("holds another segment than was asked for; fetch it again")]
    Other,
}

impl From<GraphError> for SegmentError {
    fn from(error: GraphError) -> Self {
        SegmentError::Corrupt(error.to_string())
    }
}

fn corrupt(what: &str) -> SegmentError {
    SegmentError::Corrupt(what.to_owned())
}

/// An open segment file.
#[derive(Debug)]
pub struct Segment {
    file: Bytes,
    hash: SegmentHash,
    number: u64,
    vector: String,
    spec: VectorSpec,
    index: IndexSpec,
    rows: usize,
    sections: Sections,
    /// The rows where they cannot be used in place: misaligned bytes, or a big-endian machine.
    copied: Option<Vec<f32>>,
    graph: Option<Graph>,
}

/// Where things begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sections {
    pub(super) stamps: usize,
    pub(super) offsets: usize,
    pub(super) keys: usize,
    pub(super) rows: usize,
    pub(super) graph: usize,
    pub(super) end: usize,
}

impl Sections {
    /// `None` where the sizes overflow.
    pub(super) fn of(name: usize, rows: usize, dimension: usize, keys: usize, graph: usize) -> Option<Self> {
        let stamps = HEADER.checked_add(name)?.checked_next_multiple_of(8)?;
        let offsets = stamps.checked_add(rows.checked_mul(STAMP)?)?;
        let keys_at = offsets.checked_add(rows.checked_add(1)?.checked_mul(4)?)?;
        let rows_at = keys_at.checked_add(keys)?.checked_next_multiple_of(64)?;
        let graph_at =
            rows_at.checked_add(rows.checked_mul(dimension)?.checked_mul(4)?)?.checked_next_multiple_of(64)?;
        let end = graph_at.checked_add(graph)?;
        Some(Self { stamps, offsets, keys: keys_at, rows: rows_at, graph: graph_at, end })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

impl Segment {
    /// The hash that names a file, computed over its contents and compared with its footer.
    ///
    /// # Errors
    /// [`SegmentError::Corrupt`] where footer and contents do not fit together.
    pub fn file_hash(file: &[u8]) -> Result<SegmentHash, SegmentError> {
        let end = file.len().checked_sub(FOOTER).ok_or_else(|| corrupt("shorter than its footer"))?;
        let (content, footer) = file.split_at(end);
        if footer.get(8..16) != Some(&MAGIC_END[..]) || u64_at(footer, 0) != Some(end as u64) {
            return Err(corrupt("no footer where it should be"));
        }
        let hash: SegmentHash = *blake3::hash(content).as_bytes();
        if footer.get(16..) != Some(&hash[..]) { Err(corrupt("its contents do not have its hash")) } else { Ok(hash) }
    }

    /// Opens a file: `file` is its (mapped) bytes, which must not change as long as the segment lives. Reads all of it once,
    /// to check the hash, and copies the graph into memory.
    ///
    /// # Errors
    /// [`SegmentError`]; `expect` is the hash it must have.
    pub fn open(file: Bytes, expect: Option<SegmentHash>) -> Result<Self, SegmentError> {
        let short = || corrupt("shorter than its header");
        let header = *file.first_chunk::<HEADER>().ok_or_else(short)?;
        if &header[..8] != MAGIC {
            return Err(corrupt("does not begin like one"));
        }
        // A newer file is told from a damaged one only if it is intact; its footer is where ours is.
        let hash = Self::file_hash(&file)?;
        let format = u32_at(&header, 8).ok_or_else(short)?;
        if format > FORMAT || format == 0 {
            return Err(SegmentError::Newer { found: format, known: FORMAT });
        }
        if expect.is_some_and(|expect| expect != hash) {
            return Err(SegmentError::Other);
        }
        let number_at = |at| u32_at(&header, at).ok_or_else(short);
        let long_at = |at| u64_at(&header, at).ok_or_else(short);
        let rows = number_at(16)? as usize;
        let spec = VectorSpec {
            dimension: number_at(20)?,
            metric: metric_of(header[24]).ok_or_else(|| corrupt("unknown metric"))?,
            scalar: scalar_of(header[25]).ok_or_else(|| corrupt("unknown scalar"))?,
        };
        if spec.dimension == 0 || spec.dimension > VectorSpec::DIMENSION_MAX {
            return Err(corrupt("impossible dimension"));
        }
        let name_length = usize::from(u16::from_le_bytes([header[26], header[27]]));
        let index = IndexSpec { m: number_at(28)?, ef_construction: number_at(32)?, ..IndexSpec::default() };
        let number = long_at(40)?;
        let size = |at| usize::try_from(long_at(at)?).map_err(|_| corrupt("impossible size"));
        let (key_bytes, graph_bytes) = (size(48)?, size(56)?);
        let sections = Sections::of(name_length, rows, spec.dimension as usize, key_bytes, graph_bytes)
            .filter(|sections| sections.end == file.len() - FOOTER)
            .ok_or_else(|| corrupt("its parts do not add up to its length"))?;
        let vector = file.get(HEADER..HEADER + name_length).and_then(|name| std::str::from_utf8(name).ok());
        let vector = vector.ok_or_else(|| corrupt("vector name is not text"))?.to_owned();
        let mut segment = Self { file, hash, number, vector, spec, index, rows, sections, copied: None, graph: None };
        segment.check_keys(key_bytes)?;
        segment.copied = segment.copy_unless_usable();
        if number_at(12)? & FLAG_GRAPH != 0 {
            let bytes = segment.file.get(sections.graph..sections.end).ok_or_else(short)?;
            segment.graph =
                Some(Graph::load(&segment.spec, &segment.index, f32::from_bits(number_at(36)?), rows, bytes)?);
        } else if graph_bytes != 0 {
            return Err(corrupt("a graph that it does not own up to"));
        }
        Ok(segment)
    }

    fn check_keys(&self, key_bytes: usize) -> Result<(), SegmentError> {
        let mut last: Option<&[u8]> = None;
        let first = u32_at(&self.file, self.sections.offsets);
        if first != Some(0) || u32_at(&self.file, self.sections.offsets + self.rows * 4) != Some(key_bytes as u32) {
            return Err(corrupt("its ids do not add up"));
        }
        for row in 0..self.rows {
            let key = self.key(row).filter(|key| PointId::from_key(key).is_some());
            let key = key.ok_or_else(|| corrupt("an id that is none"))?;
            if last.is_some_and(|last| last >= key) {
                return Err(corrupt("its ids are out of order"));
            }
            last = Some(key);
        }
        Ok(())
    }

    fn copy_unless_usable(&self) -> Option<Vec<f32>> {
        let bytes = self.row_bytes();
        if cfg!(target_endian = "little") && bytes.as_ptr().cast::<f32>().is_aligned() {
            return None;
        }
        let (quads, _) = bytes.as_chunks::<4>();
        Some(quads.iter().map(|quad| f32::from_le_bytes(*quad)).collect())
    }

    fn row_bytes(&self) -> &[u8] {
        let from = self.sections.rows;
        &self.file[from..from + self.rows * self.spec.dimension as usize * 4]
    }

    fn key(&self, row: usize) -> Option<&[u8]> {
        let at = self.sections.offsets + row * 4;
        let (from, to) = (u32_at(&self.file, at)? as usize, u32_at(&self.file, at + 4)? as usize);
        if self.sections.keys + to > self.sections.rows {
            return None;
        }
        self.file.get(self.sections.keys + from..self.sections.keys + to)
    }

    /// Names the file.
    pub fn hash(&self) -> SegmentHash {
        self.hash
    }

    /// The seal's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Which named vector it holds.
    pub fn vector(&self) -> &str {
        &self.vector
    }

    /// What its vectors are.
    pub fn spec(&self) -> &VectorSpec {
        &self.spec
    }

    /// Members.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// The members by id, as (id, stamp); the n-th is row n.
    pub fn members(&self) -> impl Iterator<Item = (PointId, Stamp)> {
        (0..self.rows).filter_map(|row| Some((PointId::from_key(self.key(row)?)?, self.stamp(row)?)))
    }

    fn stamp(&self, row: usize) -> Option<Stamp> {
        let at = self.sections.stamps + row * STAMP;
        Some(Version { epoch: u64_at(&self.file, at)?, index: u64_at(&self.file, at + 8)? })
    }

    /// The row of an id with this very stamp.
    pub fn row_of(&self, id: &PointId, stamp: Stamp) -> Option<u32> {
        let wanted = id.to_key();
        let (mut from, mut to) = (0, self.rows);
        while from < to {
            let middle = from + (to - from) / 2;
            match self.key(middle)?.cmp(wanted.as_slice()) {
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Greater => to = middle,
                std::cmp::Ordering::Equal => return (self.stamp(middle)? == stamp).then_some(middle as u32),
            }
        }
        None
    }

    /// All components, row after row.
    pub(super) fn components(&self) -> &[f32] {
        if let Some(copied) = &self.copied {
            return copied;
        }
        let bytes = self.row_bytes();
        // SAFETY: the bytes are readable and unchanging as long as `self.file` is borrowed, their address is a multiple of four
        // (checked on opening; `Bytes` does not move), and any four bytes are a valid f32.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<f32>(), bytes.len() / 4) }
    }

    /// A member's components.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, row: u32) -> &[f32] {
        let dimension = self.spec.dimension as usize;
        &self.components()[row as usize * dimension..][..dimension]
    }

    pub(super) fn graph(&self) -> Option<&Graph> {
        self.graph.as_ref()
    }
}

pub(super) fn metric_tag(metric: Metric) -> u8 {
    match metric {
        Metric::Cosine => 1,
        Metric::Dot => 2,
        Metric::L2 => 3,
        Metric::L1 => 4,
    }
}

fn metric_of(tag: u8) -> Option<Metric> {
    [Metric::Cosine, Metric::Dot, Metric::L2, Metric::L1].into_iter().find(|metric| metric_tag(*metric) == tag)
}

pub(super) fn scalar_tag(scalar: ScalarKind) -> u8 {
    match scalar {
        ScalarKind::F32 => 1,
        ScalarKind::F16 => 2,
        ScalarKind::I8 => 3,
    }
}

fn scalar_of(tag: u8) -> Option<ScalarKind> {
    [ScalarKind::F32, ScalarKind::F16, ScalarKind::I8].into_iter().find(|scalar| scalar_tag(*scalar) == tag)
}

/// A sealed segment before it is a file: what a seal fixed.
#[derive(Clone, Debug)]
pub struct SealWork {
    /// The seal's number.
    pub segment: u64,
    /// Which named vector.
    pub vector: String,
    /// What its vectors are.
    pub spec: VectorSpec,
    /// How the graph is built.
    pub index: IndexSpec,
    /// By id.
    pub members: Vec<Member>,
}

/// One member of a seal. Holds on to the block or segment where its components lie; nothing is copied.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: PointId,
    /// When its vector was written.
    pub stamp: Stamp,
    components: Components,
}

#[derive(Clone, Debug)]
enum Components {
    Block { block: Block, from: usize, length: usize },
    Segment(Arc<Segment>, u32),
}

impl Member {
    /// A member with components of its own.
    pub fn new(id: PointId, stamp: Stamp, values: Vec<f32>) -> Self {
        let length = values.len();
        Self { id, stamp, components: Components::Block { block: Arc::new(values), from: 0, length } }
    }

    pub(super) fn in_block(id: PointId, stamp: Stamp, (block, from): (Block, usize), length: usize) -> Self {
        Self { id, stamp, components: Components::Block { block, from, length } }
    }

    pub(super) fn in_segment(id: PointId, stamp: Stamp, segment: Arc<Segment>, row: u32) -> Self {
        Self { id, stamp, components: Components::Segment(segment, row) }
    }

    /// Its components.
    pub fn values(&self) -> &[f32] {
        match &self.components {
            Components::Block { block, from, length } => &block[*from..*from + *length],
            Components::Segment(segment, row) => segment.row(*row),
        }
    }
}
