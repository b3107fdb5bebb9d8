//! What is written.
use std::collections::BTreeMap;

use crate::ids::{PointId, Version};
use crate::vector::Vector;

/// A point as a writer hands it in.
#[derive(Clone, PartialEq, Debug)]
pub struct Point {
    /// Its id.
    pub id: PointId,
    /// Named vectors; cosine ones are normalised by the router before they are proposed.
    pub vectors: BTreeMap<String, Vector>,
    /// A JSON object, as bytes; empty means `{}`.
    pub payload_json: bytes::Bytes,
}

/// Judged inside the home shard's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Precondition {
    /// The point must not exist.
    InsertOnly,
    /// The point must have exactly this version.
    IfVersion(Version),
}

/// How a partial payload update treats the old payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum PayloadMode {
    /// Given top-level keys replace those keys.
    Merge,
    /// The given object replaces the payload.
    Overwrite,
    /// The given array names top-level keys to remove.
    DeleteKeys,
}

/// What happened to one point of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Outcome {
    /// Done.
    Applied,
    /// There is no such point.
    NotFound,
    /// `InsertOnly`, and it exists with this version.
    AlreadyExists(Version),
    /// `IfVersion`, and it has this one (`None`: it does not exist).
    VersionMismatch(Option<Version>),
    /// It does not match the filter any more.
    FilterMismatch,
}

/// A stored point as a reader sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct PointRecord {
    /// Its id.
    pub id: PointId,
    /// Its last user write.
    pub version: Version,
    /// A JSON object, as bytes; empty where not asked for.
    pub payload_json: bytes::Bytes,
    /// Named vectors; empty where not asked for.
    pub vectors: BTreeMap<String, Vector>,
}
