//! What a shard keeps of one point, beside its vectors.
//!
//! ```text
//! record  = format u8 (1) · version · placement · vectors u16 · { length u16 · name · stamp } · payload to the end
//! version, placement, stamp = epoch u64 · index u64                                  little-endian
//! ```
//! One record has one byte form: the digest that replicas compare is taken over it.
use std::collections::BTreeMap;

use bytes::Bytes;
use nearring_proto::ids::Version;

/// When one named vector of a point last changed: the entry that brought it. One entry names a point at most once, so
/// (id, stamp) names one vector for ever. A segment member is live while its point's record carries the same stamp.
pub type Stamp = Version;

/// One point's record. Its vectors' components live in log, tail and segments; here is only when each was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The last user write.
    pub version: Version,
    /// When the point last came to this shard; equal to the version of its first write here until points move.
    pub placement: Version,
    /// Vector name → stamp.
    pub vectors: BTreeMap<String, Stamp>,
    /// A JSON object; empty means `{}`.
    pub payload: Bytes,
}

/// The format written, and the newest that is understood, of every value a shard keeps; its settings have a newer one too.
pub const FORMAT: u8 = 1;

/// Bytes that are no record, or no other part of a shard's state.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateError {
    /// Written by a newer version.
    #[error("format {found} is newer than {newest}, which this version understands; upgrade this node")]
    NewerFormat {
        /// The format found.
        found: u8,
        /// The newest known.
        newest: u8,
    },
    /// Cut off, damaged, or something else.
    #[error("malformed: {0}")]
    Malformed(String),
}

impl Record {
    /// The record's bytes. Names and counts are bounded by the collection's settings, far below what the fields hold.
    pub fn encode(&self) -> Vec<u8> {
        let names: usize = self.vectors.keys().map(|name| name.len() + 18).sum();
        let mut out = Vec::with_capacity(35 + names + self.payload.len());
        out.push(FORMAT);
        put_version(self.version, &mut out);
        put_version(self.placement, &mut out);
        put_u16(self.vectors.len(), &mut out);
        for (name, stamp) in &self.vectors {
            put_u16(name.len(), &mut out);
            out.extend_from_slice(name.as_bytes());
            put_version(*stamp, &mut out);
        }
        out.extend_from_slice(&self.payload);
        out
    }

    /// Reads a record; its payload is a slice of `bytes`.
    ///
    /// # Errors
    /// Where the bytes are not a record of a format that is understood. The payload is not looked into.
    pub fn decode(bytes: &Bytes) -> Result<Self, StateError> {
        let mut rest = check_format(bytes)?;
        let (version, placement) = (take_version(&mut rest)?, take_version(&mut rest)?);
        let mut vectors = BTreeMap::new();
        for _ in 0..take_u16(&mut rest)? {
            let length = usize::from(take_u16(&mut rest)?);
            let name = std::str::from_utf8(take(&mut rest, length)?).map_err(malformed)?;
            let in_order = vectors.last_key_value().is_none_or(|(last, _): (&String, _)| last.as_str() < name);
            if !in_order {
                return Err(malformed("vector names out of order"));
            }
            let name = name.to_owned();
            vectors.insert(name, take_version(&mut rest)?);
        }
        let payload = bytes.slice(bytes.len() - rest.len()..);
        Ok(Self { version, placement, vectors, payload })
    }
}

pub(crate) fn malformed(reason: impl std::fmt::Display) -> StateError {
    StateError::Malformed(reason.to_string())
}

pub(crate) fn check_format(bytes: &[u8]) -> Result<&[u8], StateError> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => Ok(body),
        None | Some((0, _)) => Err(malformed("no format")),
        Some((&found, _)) => Err(StateError::NewerFormat { found, newest: FORMAT }),
    }
}

pub(crate) fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], StateError> {
    let (taken, left) = rest.split_at_checked(length).ok_or_else(|| malformed("cut off"))?;
    *rest = left;
    Ok(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], StateError> {
    take(rest, N)?.try_into().map_err(malformed)
}

fn take_u16(rest: &mut &[u8]) -> Result<u16, StateError> {
    take_array(rest).map(u16::from_le_bytes)
}

fn take_version(rest: &mut &[u8]) -> Result<Version, StateError> {
    let epoch = take_array(rest).map(u64::from_le_bytes)?;
    Ok(Version { epoch, index: take_array(rest).map(u64::from_le_bytes)? })
}

fn put_u16(value: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes());
}

fn put_version(version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(&version.epoch.to_le_bytes());
    out.extend_from_slice(&version.index.to_le_bytes());
}
