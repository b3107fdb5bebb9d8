//! A shard's snapshot: one file with everything that is not in segment files, as of one log position.
//!
//! ```text
//! file   = "NRSNAP01" · format u32 (1, 2) · block … · blake3 of all before (32 bytes)    numbers little-endian
//! block  = kind u8 · length u32 · body
//! kinds  = 1 machine (first, once) · 2 records · 3 dense vectors · 5 sparse vectors (format 2) · 6 multi-vectors (format 2)
//!          · 4 end: records u64 · vectors u64, of all kinds (last, once)
//! record = id bytes · record bytes             vector = id bytes · name bytes · epoch u64 · index u64 · bytes of f32
//! sparse = id bytes · name bytes · epoch u64 · index u64 · bytes of u32 · bytes of f32
//! multi  = id bytes · name bytes · epoch u64 · index u64 · dimension u32 · bytes of f32
//! bytes  = length u32 · bytes
//! ```
//! Of format 2 are the snapshots of collections that have sparse or multi-vectors; readers of format 1 would pass those over.
//! Written under another name, synced, renamed: a file under the final name is complete. What it deliberately does not
//! hold: vectors that are in local, durable segment files; the machine's manifest names those.
use std::io;
use std::path::Path;

use bytes::Bytes;
use nearring_proto::collection::CollectionSpec;
use nearring_proto::ids::PointId;
use nearring_proto::vector::{MultiVector, SparseVector, Vector};

use crate::index::change::Components;
use crate::machine::Machine;
use crate::machine::record::{Record, Stamp};
use crate::medium::{AppendFile, Medium};

const MAGIC: &[u8; 8] = b"NRSNAP01";
/// The newest format that is written and understood.
pub const FORMAT: u32 = 2;
const FOOTER: usize = 32;
const BLOCK: usize = 1 << 20;

const MACHINE: u8 = 1;
const RECORDS: u8 = 2;
const VECTORS: u8 = 3;
const END: u8 = 4;
const SPARSE: u8 = 5;
const MULTI: u8 = 6;

/// Why a file is not a snapshot that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The medium failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Written by a newer version.
    #[error("snapshot format {found} is newer than {FORMAT}, which this version understands; upgrade this node")]
    NewerFormat {
        /// The format found.
        found: u32,
    },
    /// Cut off, changed, or not a snapshot.
    #[error("damaged snapshot: {0}")]
    Damaged(String),
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}

/// One vector as a snapshot carries it.
pub type SnapshotVector = (PointId, String, Stamp, Components);

/// Writes a snapshot block by block. Dropped before [`Writer::finish`], it leaves an incomplete file under the name it was given.
pub struct Writer {
    file: Box<dyn AppendFile>,
    hasher: blake3::Hasher,
    kind: u8,
    block: Vec<u8>,
    records: u64,
    vectors: u64,
    len: u64,
}

impl Writer {
    /// Begins a file that does not exist yet.
    ///
    /// # Errors
    /// Of the medium.
    pub fn create(medium: &dyn Medium, path: &Path, machine: &Machine) -> io::Result<Self> {
        if medium.exists(path)? {
            medium.remove_file(path)?;
        }
        let file = medium.open_append(path)?;
        let mut writer = Self {
            file,
            hasher: blake3::Hasher::new(),
            kind: MACHINE,
            block: Vec::new(),
            records: 0,
            vectors: 0,
            len: 0,
        };
        let mut head = MAGIC.to_vec();
        let later = machine.meta.spec.as_ref().and_then(CollectionSpec::later);
        head.extend_from_slice(&if later.is_some() { FORMAT } else { 1 }.to_le_bytes());
        writer.write(&head)?;
        writer.block = machine.encode().to_vec();
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// Of the medium.
    pub fn record(&mut self, id: &PointId, record: &Record) -> io::Result<()> {
        self.begin(RECORDS)?;
        put(&mut self.block, &id.to_key());
        put(&mut self.block, &record.encode());
        self.records += 1;
        Ok(())
    }

    /// Adds a vector.
    ///
    /// # Errors
    /// Of the medium.
    pub fn vector(&mut self, id: &PointId, name: &str, stamp: Stamp, components: &Components) -> io::Result<()> {
        self.begin(match components {
            Components::Dense(_) => VECTORS,
            Components::Sparse(_) => SPARSE,
            Components::Multi(_) => MULTI,
        })?;
        put(&mut self.block, &id.to_key());
        put(&mut self.block, name.as_bytes());
        self.block.extend_from_slice(&stamp.epoch.to_le_bytes());
        self.block.extend_from_slice(&stamp.index.to_le_bytes());
        match components {
            Components::Dense(values) => put_values(&mut self.block, values),
            Components::Sparse(vector) => {
                self.block.extend_from_slice(&length(vector.indices().len() * 4).to_le_bytes());
                self.block.extend(vector.indices().iter().flat_map(|index| index.to_le_bytes()));
                put_values(&mut self.block, vector.values());
            }
            Components::Multi(vector) => {
                self.block.extend_from_slice(&vector.dimension().to_le_bytes());
                put_values(&mut self.block, vector.components());
            }
        }
        self.vectors += 1;
        Ok(())
    }

    /// Ends the file and makes its bytes durable (its name is the caller's to make so). Returns its length.
    ///
    /// # Errors
    /// Of the medium.
    pub fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        self.kind = END;
        self.block.extend_from_slice(&self.records.to_le_bytes());
        self.block.extend_from_slice(&self.vectors.to_le_bytes());
        self.flush()?;
        let hash = self.hasher.finalize();
        self.file.append(hash.as_bytes())?;
        self.file.sync()?;
        Ok(self.len + FOOTER as u64)
    }

    fn begin(&mut self, kind: u8) -> io::Result<()> {
        if self.kind != kind || self.block.len() >= BLOCK {
            self.flush()?;
            self.kind = kind;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut head = vec![self.kind];
        head.extend_from_slice(&length(self.block.len()).to_le_bytes());
        self.write(&head)?;
        let block = std::mem::take(&mut self.block);
        self.write(&block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.append(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

fn length(len: usize) -> u32 {
    // A block is about 1 MiB; its largest single item (a multi-vector of as many components) is not much more.
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn put_values(out: &mut Vec<u8>, values: &[f32]) {
    out.extend_from_slice(&length(values.len() * 4).to_le_bytes());
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length(bytes.len()).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// A complete snapshot, checked against its footer.
pub struct Snapshot {
    machine: Machine,
    body: Bytes,
}

impl Snapshot {
    /// Opens and checks a whole file.
    ///
    /// # Errors
    /// [`SnapshotError`]; the file is not touched.
    pub fn open(medium: &dyn Medium, path: &Path) -> Result<Self, SnapshotError> {
        let bytes = medium.map(path)?;
        let damaged = |what: &str| SnapshotError::Damaged(what.to_owned());
        if bytes.len() < MAGIC.len() + 4 + FOOTER {
            return Err(damaged("too short"));
        }
        let mut body = bytes.slice(..bytes.len() - FOOTER);
        if take(&mut body, MAGIC.len())?.as_ref() != MAGIC {
            return Err(damaged("not a snapshot file"));
        }
        let found = number(&mut body)?;
        if found > FORMAT {
            return Err(SnapshotError::NewerFormat { found });
        }
        let content = bytes.slice(..bytes.len() - FOOTER);
        if blake3::hash(&content).as_bytes().as_slice() != bytes.slice(bytes.len() - FOOTER..).as_ref() {
            return Err(damaged("its checksum does not fit"));
        }
        let (kind, machine) = block(&mut body)?;
        if kind != MACHINE {
            return Err(damaged("does not begin with the machine"));
        }
        let machine = Machine::decode(&machine).map_err(|error| SnapshotError::Damaged(error.to_string()))?;
        Ok(Self { machine, body })
    }

    /// The state beside records and vectors.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Every record, in id order. An item is [`SnapshotError::Damaged`] where a block does not hold what it should.
    pub fn records(&self) -> impl Iterator<Item = Result<(PointId, Record), SnapshotError>> + '_ {
        Items { rest: self.body.clone(), block: Bytes::new(), kinds: &[RECORDS], kind: 0, parse: record }
    }

    /// Every vector; items as in [`Snapshot::records`].
    pub fn vectors(&self) -> impl Iterator<Item = Result<SnapshotVector, SnapshotError>> + '_ {
        Items { rest: self.body.clone(), block: Bytes::new(), kinds: &[VECTORS, SPARSE, MULTI], kind: 0, parse: vector }
    }
}

/// Reads the items of all blocks of some kinds; ends after an error.
struct Items<T> {
    rest: Bytes,
    block: Bytes,
    kinds: &'static [u8],
    /// Of the block at hand.
    kind: u8,
    parse: fn(u8, &mut Bytes) -> Result<T, SnapshotError>,
}

impl<T> Iterator for Items<T> {
    type Item = Result<T, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.block.is_empty() {
            if self.rest.is_empty() {
                return None;
            }
            match block(&mut self.rest) {
                Ok((kind, body)) if self.kinds.contains(&kind) => (self.kind, self.block) = (kind, body),
                Ok(_) => {}
                Err(error) => {
                    self.rest.clear();
                    return Some(Err(error));
                }
            }
        }
        let item = (self.parse)(self.kind, &mut self.block);
        if item.is_err() {
            self.block.clear();
            self.rest.clear();
        }
        Some(item)
    }
}

fn record(_: u8, body: &mut Bytes) -> Result<(PointId, Record), SnapshotError> {
    let id = id(body)?;
    let len = number(body)? as usize;
    let record = Record::decode(&take(body, len)?).map_err(|error| SnapshotError::Damaged(error.to_string()))?;
    Ok((id, record))
}

fn vector(kind: u8, body: &mut Bytes) -> Result<SnapshotVector, SnapshotError> {
    let id = id(body)?;
    let len = number(body)? as usize;
    let name = String::from_utf8(take(body, len)?.to_vec())
        .map_err(|_| SnapshotError::Damaged("a vector's name is not UTF-8".to_owned()))?;
    let stamp = Stamp { epoch: wide(body)?, index: wide(body)? };
    let no_vector = |error| SnapshotError::Damaged(format!("a vector {error}"));
    let components = match kind {
        SPARSE => {
            let indices = words(body)?.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            let vector = SparseVector::new(indices, values(body)?).map_err(no_vector)?;
            Vector::from(vector).into()
        }
        MULTI => {
            let dimension = number(body)?;
            let vector = MultiVector::new(dimension, values(body)?).map_err(no_vector)?;
            Vector::from(vector).into()
        }
        _ => Vector::Dense(values(body)?).into(),
    };
    Ok((id, name, stamp, components))
}

fn words(from: &mut Bytes) -> Result<Bytes, SnapshotError> {
    let len = number(from)? as usize;
    take(from, len)
}

fn values(from: &mut Bytes) -> Result<Vec<f32>, SnapshotError> {
    Ok(words(from)?.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn take(from: &mut Bytes, len: usize) -> Result<Bytes, SnapshotError> {
    if from.len() < len { Err(SnapshotError::Damaged("cut off".to_owned())) } else { Ok(from.split_to(len)) }
}

fn number(from: &mut Bytes) -> Result<u32, SnapshotError> {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&take(from, 4)?);
    Ok(u32::from_le_bytes(bytes))
}

fn wide(from: &mut Bytes) -> Result<u64, SnapshotError> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&take(from, 8)?);
    Ok(u64::from_le_bytes(bytes))
}

fn id(from: &mut Bytes) -> Result<PointId, SnapshotError> {
    let len = number(from)? as usize;
    PointId::from_key(&take(from, len)?).ok_or_else(|| SnapshotError::Damaged("an id cannot be read".to_owned()))
}

fn block(from: &mut Bytes) -> Result<(u8, Bytes), SnapshotError> {
    let kind = take(from, 1)?.first().copied().unwrap_or(0);
    let len = number(from)? as usize;
    Ok((kind, take(from, len)?))
}
