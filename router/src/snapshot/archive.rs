//! The file that a collection is exported to.
//!
//! The problem: an archive is read years later, on another machine, after a download that may have been cut short, and nothing may
//! be changed before it is known to be whole. **Format** (numbers little-endian):
//!
//! ```text
//! file   = "NRARCHIV" · format u32 (1) · block …
//! block  = kind u8 · length u32 · body · check (32 bytes)
//! check  = blake3(check of the block before · kind · length · body); before the first block stands blake3("NRARCHIV" · format)
//! kinds  = 1 header (first, once) · 2 shard · 3 points · 4 end (last, once; nothing follows)
//! body   = ArchiveHeader, ArchiveShard, ArchivePoints, ArchiveEnd of proto/proto/archive.proto
//! ```
//! A shard's block says how many points follow it, ascending by id; the end says how many shards and points there were. So a bit
//! that is another, a block that is missing, doubled or out of its place, and a file that is cut anywhere are all found. The
//! checks are against accidents: whoever makes an archive to deceive can make them fit. So a reader believes nothing of a
//! body either: it is decoded within bounds, and points are checked as a client's are.
//!
//! **Rules:** both directions hold one block at a time (about 1 MiB, and one point more). A shard that broke off while it was
//! written is taken back ([`Writer::back_to`]) and written again. What it deliberately does not hold: versions that count anywhere
//! else (they are kept in the records, and a restored point gets a new one), aliases, segments.
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use nearring_proto::collection::CollectionSpec;
use nearring_proto::ids::{PointId, ShardId};
use nearring_proto::position::Position;
use nearring_proto::wire;
use nearring_proto::write::{Point, PointRecord};
use prost::Message;
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"NRARCHIV";
/// The format that is written, and the newest that is read.
pub const FORMAT: u32 = 1;
/// The largest body of a block: more than the largest point that can be written.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Bodies of points are closed when they reach this.
const BODY_BYTES: usize = 1 << 20;

const HEADER: u8 = 1;
const SHARD: u8 = 2;
const POINTS: u8 = 3;
const END: u8 = 4;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading failed.
    #[error("the archive cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Of another kind of file.
    #[error("this is no archive of a nearring collection")]
    NotOne,
    /// Written by a newer version.
    #[error("the archive has format {found}, this version reads up to {FORMAT}; upgrade this router")]
    Newer {
        /// The format found.
        found: u32,
    },
    /// Cut short or changed.
    #[error("the archive is damaged {at} bytes from its beginning: {reason}")]
    Damaged {
        /// Where the block begins that is at fault.
        at: u64,
        /// What is wrong.
        reason: String,
    },
}

/// What an archive is written to: it can be cut back to what it was.
pub trait Target: Write {
    /// Cuts everything behind `len` bytes off; what is written next goes there.
    ///
    /// # Errors
    /// Of the medium.
    fn cut(&mut self, len: u64) -> io::Result<()>;
}

impl Target for File {
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.seek(SeekFrom::Start(len)).map(|_| ())
    }
}

impl Target for Vec<u8> {
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(())
    }
}

/// How far a writer is; [`Writer::back_to`] returns there.
#[derive(Clone)]
pub struct Mark {
    len: u64,
    check: [u8; 32],
    sha: Sha256,
    shards: u64,
    points: u64,
}

/// Writes an archive block by block. Without [`Writer::finish`] it is none.
pub struct Writer<T> {
    target: T,
    at: Mark,
    gathered: wire::ArchivePoints,
    gathered_bytes: usize,
}

/// A finished archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// Bytes.
    pub len: u64,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
    /// Points.
    pub points: u64,
}

impl<T: Target> Writer<T> {
    /// Begins an archive.
    ///
    /// # Errors
    /// Of the target.
    pub fn create(target: T, header: &wire::ArchiveHeader) -> io::Result<Self> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&FORMAT.to_le_bytes());
        let check = *blake3::hash(&head).as_bytes();
        let at = Mark { len: 0, check, sha: Sha256::new(), shards: 0, points: 0 };
        let mut writer = Self { target, at, gathered: wire::ArchivePoints::default(), gathered_bytes: 0 };
        writer.write(&head)?;
        writer.block(HEADER, &header.encode_to_vec())?;
        Ok(writer)
    }

    /// Begins a shard of which `points` follow.
    ///
    /// # Errors
    /// Of the target.
    pub fn shard(&mut self, position: Position, points: u64) -> io::Result<()> {
        self.flush()?;
        let shard = wire::ArchiveShard { shard: position.shard.0, index: position.index, points };
        self.block(SHARD, &shard.encode_to_vec())?;
        self.at.shards += 1;
        Ok(())
    }

    /// Adds a point of the shard.
    ///
    /// # Errors
    /// Of the target.
    pub fn point(&mut self, point: wire::PointRecord) -> io::Result<()> {
        self.gathered_bytes += point.encoded_len() + 8;
        self.gathered.points.push(point);
        self.at.points += 1;
        if self.gathered_bytes >= BODY_BYTES { self.flush() } else { Ok(()) }
    }

    /// Points so far.
    pub fn points(&self) -> u64 {
        self.at.points
    }

    /// Where it is. Call it where no shard is half written.
    ///
    /// # Errors
    /// Of the target.
    pub fn mark(&mut self) -> io::Result<Mark> {
        self.flush()?;
        Ok(self.at.clone())
    }

    /// Takes everything back that came after the mark.
    ///
    /// # Errors
    /// Of the target.
    pub fn back_to(&mut self, mark: &Mark) -> io::Result<()> {
        self.gathered.points.clear();
        self.gathered_bytes = 0;
        self.target.cut(mark.len)?;
        self.at = mark.clone();
        Ok(())
    }

    /// Ends the archive. Its bytes are the caller's to make durable.
    ///
    /// # Errors
    /// Of the target.
    pub fn finish(mut self) -> io::Result<(T, Written)> {
        self.flush()?;
        let end = wire::ArchiveEnd { shards: self.at.shards, points: self.at.points };
        self.block(END, &end.encode_to_vec())?;
        self.target.flush()?;
        let written = Written { len: self.at.len, sha256: hex(&self.at.sha.finalize()), points: self.at.points };
        Ok((self.target, written))
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.points.is_empty() {
            return Ok(());
        }
        let body = self.gathered.encode_to_vec();
        self.gathered.points.clear();
        self.gathered_bytes = 0;
        self.block(POINTS, &body)
    }

    fn block(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        if body.len() > BODY_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a block of {} bytes", body.len())));
        }
        let mut head = vec![kind];
        head.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.at.check = check(&self.at.check, &head, body);
        let check = self.at.check;
        [&head, body, &check].into_iter().try_for_each(|part| self.write(part))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.target.write_all(bytes)?;
        self.at.sha.update(bytes);
        self.at.len += bytes.len() as u64;
        Ok(())
    }
}

fn check(before: &[u8; 32], head: &[u8], body: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(before).update(head).update(body).finalize().as_bytes()
}

/// Bytes in hexadecimal, as checksums are told.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| format!("{text}{byte:02x}"))
}

/// What an archive says of its collection.
#[derive(Clone, PartialEq, Debug)]
pub struct Header {
    /// The collection's settings.
    pub spec: CollectionSpec,
    /// What doors kept of it.
    pub attributes: std::collections::BTreeMap<String, String>,
    /// When it was written: milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// Shards that follow.
    pub shards: u32,
}

/// A part of an archive, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Part {
    /// A shard begins.
    Shard {
        /// As of where.
        position: Position,
        /// How many points it has.
        points: u64,
    },
    /// Points of it, checked against the collection's settings.
    Points(Vec<Point>),
}

/// What a whole archive was found to hold.
#[derive(Clone, PartialEq, Debug)]
pub struct Verified {
    /// Its collection.
    pub header: Header,
    /// Each shard's position.
    pub positions: Vec<Position>,
    /// All points.
    pub points: u64,
    /// The last block's check, which stands for all of it.
    pub check: [u8; 32],
}

/// Reads an archive, one block at a time. What it has given is known to be as it was written; that the archive is whole, only
/// at its end.
pub struct Reader<R> {
    blocks: Blocks<R>,
    header: Header,
    shards: u64,
    points: u64,
    /// Points that the shard at hand still has.
    left: u64,
    last: Option<PointId>,
    ended: bool,
}

/// The blocks of a file, each checked.
struct Blocks<R> {
    from: R,
    at: u64,
    check: [u8; 32],
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(from: R) -> Result<Self, ArchiveError> {
        let mut blocks = Blocks::open(from)?;
        let at = blocks.at;
        let damaged = |reason: &dyn std::fmt::Display| ArchiveError::Damaged { at, reason: reason.to_string() };
        let (kind, body) = blocks.next()?;
        if kind != HEADER {
            return Err(damaged(&"it does not begin with its header"));
        }
        let message = wire::ArchiveHeader::decode(body.as_slice()).map_err(|error| damaged(&error))?;
        let spec = message.collection.ok_or_else(|| damaged(&"its header has no collection"))?;
        let spec = CollectionSpec::try_from(spec).map_err(|error| damaged(&error))?;
        spec.check().map_err(|error| damaged(&error))?;
        let (attributes, created_ms, shards) = (message.attributes, message.created_ms, message.shards);
        let header = Header { spec, attributes, created_ms, shards };
        Ok(Self { blocks, header, shards: 0, points: 0, left: 0, last: None, ended: false })
    }

    /// What it says of its collection.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next part; `None` at the end, and then the archive is whole.
    ///
    /// # Errors
    /// [`ArchiveError`]; then there is nothing more.
    pub fn next_part(&mut self) -> Result<Option<Part>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let at = self.blocks.at;
        let damaged = |reason: &dyn std::fmt::Display| ArchiveError::Damaged { at, reason: reason.to_string() };
        let (kind, body) = self.blocks.next()?;
        match kind {
            SHARD => {
                let shard = wire::ArchiveShard::decode(body.as_slice()).map_err(|error| damaged(&error))?;
                self.between_shards(at)?;
                (self.left, self.last) = (shard.points, None);
                self.shards += 1;
                let position = Position { shard: ShardId(shard.shard), index: shard.index };
                Ok(Some(Part::Shard { position, points: shard.points }))
            }
            POINTS => {
                let block = wire::ArchivePoints::decode(body.as_slice()).map_err(|error| damaged(&error))?;
                drop(body);
                let mut points = Vec::with_capacity(block.points.len());
                for record in block.points {
                    let record = PointRecord::try_from(record).map_err(|error| damaged(&error))?;
                    let PointRecord { id, payload_json, vectors, .. } = record;
                    if self.last.as_ref().is_some_and(|last| last.to_key() >= id.to_key()) {
                        return Err(damaged(&format_args!("point {id} is out of its place")));
                    }
                    let left = self.left.checked_sub(1);
                    self.left = left.ok_or_else(|| damaged(&"there are more points than the shard has"))?;
                    let point = Point { id, vectors, payload_json };
                    self.header.spec.check_point(&point, "point").map_err(|error| damaged(&error))?;
                    self.points += 1;
                    self.last = Some(point.id.clone());
                    points.push(point);
                }
                Ok(Some(Part::Points(points)))
            }
            END => {
                let end = wire::ArchiveEnd::decode(body.as_slice()).map_err(|error| damaged(&error))?;
                self.between_shards(at)?;
                if (end.shards, end.points) != (self.shards, self.points) || u64::from(self.header.shards) != end.shards
                {
                    return Err(damaged(&"its end counts other shards or points than there are"));
                }
                if fill(&mut self.blocks.from, &mut [0])? != 0 {
                    return Err(damaged(&"something follows its end"));
                }
                self.ended = true;
                Ok(None)
            }
            _ => Err(damaged(&"a block of an unknown kind")),
        }
    }

    /// Reads it to its end, and says what it holds.
    ///
    /// # Errors
    /// [`ArchiveError`] where it is not whole.
    pub fn verify(mut self) -> Result<Verified, ArchiveError> {
        let mut positions = Vec::new();
        while let Some(part) = self.next_part()? {
            if let Part::Shard { position, .. } = part {
                positions.push(position);
            }
        }
        Ok(Verified { header: self.header, positions, points: self.points, check: self.blocks.check })
    }

    fn between_shards(&self, at: u64) -> Result<(), ArchiveError> {
        match self.left {
            0 => Ok(()),
            left => Err(ArchiveError::Damaged { at, reason: format!("{left} points of the shard before are missing") }),
        }
    }
}

impl<R: Read> Blocks<R> {
    fn open(mut from: R) -> Result<Self, ArchiveError> {
        let mut head = [0; 12];
        let got = fill(&mut from, &mut head)?;
        let (magic, format) = head.split_at(MAGIC.len());
        if got < MAGIC.len() || magic != MAGIC {
            return Err(ArchiveError::NotOne);
        }
        let damaged = |reason: &str| ArchiveError::Damaged { at: 0, reason: reason.to_owned() };
        match format.first_chunk().map(|format| u32::from_le_bytes(*format)) {
            _ if got < head.len() => Err(damaged("it is cut off")),
            None | Some(0) => Err(damaged("it has no format")),
            Some(found) if found > FORMAT => Err(ArchiveError::Newer { found }),
            Some(_) => Ok(Self { from, at: head.len() as u64, check: *blake3::hash(&head).as_bytes() }),
        }
    }

    fn next(&mut self) -> Result<(u8, Vec<u8>), ArchiveError> {
        let at = self.at;
        let damaged = |reason: String| ArchiveError::Damaged { at, reason };
        let cut = || damaged("it is cut off".to_owned());
        let mut head = [0; 5];
        if fill(&mut self.from, &mut head)? < head.len() {
            return Err(cut());
        }
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if length > BODY_BYTES_MAX {
            return Err(damaged(format!("a block of {length} bytes")));
        }
        // It grows by what is there, not by what the length claims.
        let mut body = Vec::new();
        let wanted = length as u64 + 32;
        if Read::by_ref(&mut self.from).take(wanted).read_to_end(&mut body)? < length + 32 {
            return Err(cut());
        }
        let found = body.split_off(length);
        self.check = check(&self.check, &head, &body);
        if self.check.as_slice() != found {
            return Err(damaged("its check does not fit".to_owned()));
        }
        self.at += head.len() as u64 + wanted;
        Ok((kind, body))
    }
}

/// Reads until the buffer is full or there is no more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::BTreeMap;

    use nearring_proto::collection::{FieldKind, Modifier, MultiSpec, SparseSpec, VectorSpec};
    use nearring_proto::ids::Version;
    use nearring_proto::vector::{Metric, MultiVector, ScalarKind, SparseVector, Vector};

    use super::*;

    fn header() -> wire::ArchiveHeader {
        let vector = VectorSpec { dimension: 3, metric: Metric::Dot, scalar: ScalarKind::F16 };
        let spec = CollectionSpec {
            name: "books".into(),
            vectors: BTreeMap::from([(String::new(), vector)]),
            payload_indexes: BTreeMap::from([("lang".into(), FieldKind::Keyword)]),
            shard_count: 2,
            replication_factor: 3,
            routing_separator: "#".into(),
            index: Default::default(),
            documents: None,
            sparse_vectors: BTreeMap::from([("words".into(), SparseSpec { modifier: Modifier::Idf })]),
            multi_vectors: BTreeMap::from([("rows".into(), MultiSpec { dimension: 2, metric: Metric::Dot })]),
        };
        let attributes = [("qdrant".to_owned(), r#"{"metadata":{"a":1}}"#.to_owned())].into();
        wire::ArchiveHeader { collection: Some(spec.into()), attributes, created_ms: 1_800_000_000_000, shards: 2 }
    }

    fn record(id: PointId, number: f32) -> PointRecord {
        let words = SparseVector::new(vec![7, 9], vec![number, 2.0]).unwrap();
        let rows = MultiVector::new(2, vec![1.0, number, 3.0, 4.0]).unwrap();
        let vectors = BTreeMap::from([
            (String::new(), Vector::Dense(vec![1.0, 2.0, number])),
            ("words".to_owned(), words.into()),
            ("rows".to_owned(), rows.into()),
        ]);
        let payload_json = format!(r#"{{"lang": "en", "n": {number}}}"#).into();
        PointRecord { id, version: Version { epoch: 1, index: 4 }, payload_json, vectors }
    }

    fn position(shard: u64, index: u64) -> Position {
        Position { shard: ShardId(shard), index }
    }

    fn ids() -> [PointId; 3] {
        [PointId::Number(3), PointId::Uuid(uuid::Uuid::from_u128(5)), PointId::Text("doc#1".into())]
    }

    fn small() -> (Vec<u8>, Written) {
        let mut writer = Writer::create(Vec::new(), &header()).unwrap();
        writer.shard(position(4, 70), 3).unwrap();
        for (id, number) in ids().into_iter().zip([0.5, 1.5, 2.5]) {
            writer.point(record(id, number).into()).unwrap();
        }
        writer.shard(position(9, 71), 1).unwrap();
        writer.point(record(PointId::Number(1), 9.0).into()).unwrap();
        writer.finish().unwrap()
    }

    fn verify(bytes: &[u8]) -> Result<Verified, ArchiveError> {
        Reader::open(bytes)?.verify()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let (bytes, written) = small();
        assert_eq!((written.len, written.points), (bytes.len() as u64, 4));
        assert_eq!(written.sha256, hex(&Sha256::digest(&bytes)));
        let verified = verify(&bytes).unwrap();
        assert_eq!(verified.positions, [position(4, 70), position(9, 71)]);
        assert_eq!(wire::CollectionSpec::from(verified.header.spec), header().collection.unwrap());
        assert_eq!((verified.points, verified.header.attributes.len()), (4, 1));
        let mut reader = Reader::open(bytes.as_slice()).unwrap();
        assert!(matches!(reader.next_part().unwrap(), Some(Part::Shard { points: 3, .. })));
        let Some(Part::Points(points)) = reader.next_part().unwrap() else { panic!("no points") };
        let wanted = record(ids()[2].clone(), 2.5);
        assert_eq!((&points[2].id, &points[2].vectors), (&wanted.id, &wanted.vectors));
        assert_eq!(points[2].payload_json, wanted.payload_json);
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_found() {
        let (bytes, _) = small();
        for len in 0..bytes.len() {
            assert!(verify(&bytes[..len]).is_err(), "cut to {len} of {} bytes", bytes.len());
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&flipped).is_err(), "bit {bit}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(verify(&longer).unwrap_err().to_string().contains("follows its end"));
        assert!(matches!(verify(b"PK\x03\x04 a zip file"), Err(ArchiveError::NotOne)));
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let (mut bytes, _) = small();
        bytes[8] = 2;
        assert!(matches!(verify(&bytes), Err(ArchiveError::Newer { found: 2 })));
    }

    #[test]
    fn a_shard_that_broke_off_is_written_again_and_leaves_no_trace() {
        let (wanted, written) = small();
        let mut writer = Writer::create(Vec::new(), &header()).unwrap();
        writer.shard(position(4, 70), 3).unwrap();
        for (id, number) in ids().into_iter().zip([0.5, 1.5, 2.5]) {
            writer.point(record(id, number).into()).unwrap();
        }
        let mark = writer.mark().unwrap();
        for attempt in 0..3 {
            writer.shard(position(9, 60 + attempt), 100).unwrap();
            for number in 0..20 {
                let mut large = record(PointId::Number(number), 1.0);
                large.payload_json = format!(r#"{{"x": "{}"}}"#, "y".repeat(200_000)).into();
                writer.point(large.into()).unwrap();
            }
            writer.back_to(&mark).unwrap();
        }
        writer.shard(position(9, 71), 1).unwrap();
        writer.point(record(PointId::Number(1), 9.0).into()).unwrap();
        let (bytes, again) = writer.finish().unwrap();
        assert_eq!((bytes, again), (wanted, written));
    }

    #[test]
    fn what_fits_its_checks_and_not_its_settings_or_counts_is_refused() {
        let with = |change: &dyn Fn(&mut Writer<Vec<u8>>)| {
            let mut writer = Writer::create(Vec::new(), &header()).unwrap();
            change(&mut writer);
            verify(&writer.finish().unwrap().0).unwrap_err().to_string()
        };
        let two = |first: u64, second: u64| {
            move |writer: &mut Writer<Vec<u8>>| {
                writer.shard(position(1, 1), 2).unwrap();
                writer.point(record(PointId::Number(first), 1.0).into()).unwrap();
                writer.point(record(PointId::Number(second), 1.0).into()).unwrap();
                writer.shard(position(2, 1), 0).unwrap();
            }
        };
        assert!(with(&two(2, 1)).contains("out of its place"));
        assert!(with(&two(2, 2)).contains("out of its place"));
        assert!(
            with(&|writer| {
                writer.shard(position(1, 1), 2).unwrap();
                writer.point(record(PointId::Number(1), 1.0).into()).unwrap();
                writer.shard(position(2, 1), 0).unwrap();
            })
            .contains("missing")
        );
        assert!(
            with(&|writer| {
                writer.shard(position(1, 1), 0).unwrap();
                writer.point(record(PointId::Number(1), 1.0).into()).unwrap();
            })
            .contains("more points")
        );
        assert!(with(&|writer| writer.shard(position(1, 1), 0).unwrap()).contains("counts other shards"));
        assert!(
            with(&|writer| {
                writer.shard(position(1, 1), 1).unwrap();
                let mut point = record(PointId::Number(1), 1.0);
                point.vectors.insert(String::new(), Vector::Dense(vec![1.0]));
                writer.point(point.into()).unwrap();
            })
            .contains("components")
        );
    }
}
