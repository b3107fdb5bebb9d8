//! What an applied entry changes in the index. Everything the index holds follows from these changes in log order, so
//! replicas at one position hold the same.
use std::collections::BTreeMap;
use std::sync::Arc;

use nearring_proto::collection::CollectionSpec;
use nearring_proto::ids::{PointId, Version};
use nearring_proto::payload::Payload;
use nearring_proto::vector::{MultiVector, SparseVector, Vector};

use crate::machine::command::SegmentHash;
use crate::machine::record::Stamp;

/// What a vector holds, shared by those who hold it.
#[derive(Clone, PartialEq, Debug)]
pub enum Components {
    /// A row of components.
    Dense(Arc<[f32]>),
    /// Values at some indices.
    Sparse(Arc<SparseVector>),
    /// Several rows.
    Multi(Arc<MultiVector>),
}

impl From<Vector> for Components {
    fn from(vector: Vector) -> Self {
        match vector {
            Vector::Dense(values) => Components::Dense(values.into()),
            Vector::Sparse(vector) => Components::Sparse(vector.into()),
            Vector::Multi(vector) => Components::Multi(vector.into()),
        }
    }
}

impl From<&[f32]> for Components {
    fn from(values: &[f32]) -> Self {
        Components::Dense(values.into())
    }
}

impl From<Arc<[f32]>> for Components {
    fn from(values: Arc<[f32]>) -> Self {
        Components::Dense(values)
    }
}

impl From<&Components> for Vector {
    fn from(components: &Components) -> Self {
        match components {
            Components::Dense(values) => Vector::Dense(values.to_vec()),
            Components::Sparse(vector) => Vector::Sparse(SparseVector::clone(vector)),
            Components::Multi(vector) => Vector::Multi(MultiVector::clone(vector)),
        }
    }
}

/// One named vector: when it was last written and, where this entry brought it, what it holds.
pub type VectorChange = (Stamp, Option<Components>);

/// One change, in log order.
#[derive(Clone, Debug)]
pub enum IndexChange {
    /// A point was written, or its payload changed.
    Put {
        /// Which.
        id: PointId,
        /// Its version now.
        version: Version,
        /// Every named vector the point has now; one that is not named any more is gone.
        vectors: BTreeMap<String, VectorChange>,
        /// The payload now; `None` where it did not change.
        payload: Option<Payload>,
    },
    /// A point was deleted.
    Remove {
        /// Which.
        id: PointId,
    },
    /// A seal was logged: the live tail vectors of this name (or the live members of the sources) are its members.
    Seal {
        /// Its number: the entry's index.
        segment: u64,
        /// Which named vector.
        vector: String,
        /// Installed segments to merge; empty = the tail.
        sources: Vec<SegmentHash>,
    },
    /// A sealed segment takes its place; its sources leave. A live source member that the file does not cover goes back to
    /// the tail.
    Install(InstalledSegment),
    /// A seal was given up.
    Abandon {
        /// Its number.
        segment: u64,
    },
    /// The collection's settings are these now.
    Configure(CollectionSpec),
}

/// A segment of the manifest: part of the state every replica agrees on.
#[derive(Clone, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct InstalledSegment {
    /// The seal's number.
    pub segment: u64,
    /// Names the file.
    pub hash: SegmentHash,
    /// Which named vector.
    pub vector: String,
    /// Installed segments that it replaced, for the change that installs it; empty in a manifest.
    pub sources: Vec<SegmentHash>,
    /// Members in the file, live or not.
    pub members: u64,
    /// Bytes of the file.
    pub bytes: u64,
}
