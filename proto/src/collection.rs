//! Collections: their settings, and every check a request against one must pass.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{CollectionId, ShardId};
use crate::vector::{Metric, ScalarKind};

/// One named vector of a collection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct VectorSpec {
    /// Components, 1 to [`VectorSpec::DIMENSION_MAX`].
    pub dimension: u32,
    /// How nearness is measured.
    pub metric: Metric,
    /// What the graph stores.
    pub scalar: ScalarKind,
}

impl VectorSpec {
    /// The longest vector.
    pub const DIMENSION_MAX: u32 = 65_536;
}

/// What a payload index holds.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum FieldKind {
    /// Strings, matched exactly.
    Keyword,
    /// Integers.
    Integer,
    /// Numbers.
    Float,
    /// Booleans.
    Bool,
    /// RFC 3339 datetimes.
    Datetime,
}

/// Graph and segment settings; a change is logged and reaches every replica at one position.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct IndexSpec {
    /// Graph degree, 4 to 128.
    pub m: u32,
    /// Breadth while building, 8 to 4,096.
    pub ef_construction: u32,
    /// Breadth while searching, 8 to 16,384.
    pub ef_search: u32,
    /// Tail vectors at which a segment is sealed without waiting for a pause in writing.
    pub seal_points: u32,
}

impl Default for IndexSpec {
    fn default() -> Self {
        Self { m: 16, ef_construction: 128, ef_search: 128, seal_points: 32_768 }
    }
}

/// What turns documents and questions into vectors for a collection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct DocumentSpec {
    /// The embedder's name, for example `static256`; vectors of another embedder are refused.
    pub embedder: String,
    /// The named vector it writes.
    pub vector: String,
    /// The payload field with a chunk's text.
    pub text_field: String,
}

/// Everything a collection is created with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct CollectionSpec {
    /// 1 to 128 of `A-Z a-z 0-9 _ - .`, starting with a letter, a digit or `_`.
    pub name: String,
    /// At least one; "" is the default vector.
    pub vectors: BTreeMap<String, VectorSpec>,
    /// Path → kind.
    pub payload_indexes: BTreeMap<String, FieldKind>,
    /// 1 to 1,024; 0 asks the meta group for its default.
    pub shard_count: u32,
    /// 1 to 7, odd; 0 asks for 3, or 1 where there are fewer than three nodes.
    pub replication_factor: u32,
    /// "" = the whole id is the routing key; otherwise a text id's part before the first separator is.
    pub routing_separator: String,
    /// Graph and segment settings.
    pub index: IndexSpec,
    /// Present where the collection takes documents.
    pub documents: Option<DocumentSpec>,
}

/// A collection as the meta group keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Collection {
    /// Its identity.
    pub id: CollectionId,
    /// Its settings, with every default filled in.
    pub spec: CollectionSpec,
    /// Its shards, in the order the home ring numbers them.
    pub shards: Vec<ShardId>,
}

/// A change to a collection's settings.
#[derive(
    Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct CollectionUpdate {
    /// Which collection.
    pub name: String,
    /// Indexes to build.
    pub add_payload_indexes: BTreeMap<String, FieldKind>,
    /// Indexes to drop.
    pub drop_payload_indexes: Vec<String>,
    /// New settings; 0 leaves one as it is.
    pub m: u32,
    /// See [`IndexSpec::ef_construction`].
    pub ef_construction: u32,
    /// See [`IndexSpec::ef_search`].
    pub ef_search: u32,
    /// See [`IndexSpec::seal_points`].
    pub seal_points: u32,
}

/// Input that a collection refuses: which field, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidInput {
    /// The request's field, for example `points[3].vectors["title"]`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub reason: String,
}

impl InvalidInput {
    /// Names the field and the reason.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}
