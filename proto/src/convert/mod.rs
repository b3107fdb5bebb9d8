//! Between wire messages and domain types, one file a subject. The only module that knows both sides.
//!
//! `TryFrom` reads a wire message and refuses what it cannot mean with a [`DecodeError`]; `From` writes one and cannot
//! fail. Reading checks form (presence, lengths, known enum values, filters); whether a request fits its collection is
//! the question of [`crate::collection::CollectionSpec`]. Conversions lose nothing: what is written reads back equal.
use std::collections::BTreeMap;
use std::fmt::Display;

use bytes::Bytes;
use uuid::Uuid;

use crate::collection::InvalidInput;
use crate::vector::{MultiVector, SparseVector, Vector};
use crate::{WIRE_FORMAT, wire};

mod collection;
mod filter;
mod point;
mod query;
mod table;
mod write;

pub use collection::field_kind;
pub use filter::{decode_filter, encode_filter};
pub use query::read_level;
pub use write::{payload_mode, precondition};

/// A wire message that cannot be read: which field, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct DecodeError {
    /// The field within the message that was read, for example `vectors[1].name`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub reason: String,
}

impl DecodeError {
    /// Names the field and the reason.
    pub fn new(field: impl Into<String>, reason: impl Display) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }

    /// The same error, seen from the message that holds the read one in its field `outer`.
    #[must_use]
    pub fn within(self, outer: impl Display) -> Self {
        Self { field: format!("{outer}.{}", self.field), reason: self.reason }
    }
}

impl From<InvalidInput> for DecodeError {
    fn from(invalid: InvalidInput) -> Self {
        Self { field: invalid.field, reason: invalid.reason }
    }
}

/// Refuses a message of a newer layout than this build reads. 0 means 1.
///
/// # Errors
/// [`DecodeError`] on the field `format`.
pub fn check_format(format: u32) -> Result<(), DecodeError> {
    if format > WIRE_FORMAT {
        let reason = format!("is {format}, this build reads up to {WIRE_FORMAT}; upgrade it before its callers");
        return Err(DecodeError::new("format", reason));
    }
    Ok(())
}

fn required<T>(value: Option<T>, field: &str) -> Result<T, DecodeError> {
    value.ok_or_else(|| DecodeError::new(field, "is missing"))
}

fn uuid(bytes: &[u8], field: &str) -> Result<Uuid, DecodeError> {
    Uuid::from_slice(bytes).map_err(|_| DecodeError::new(field, format!("has {} bytes, must have 16", bytes.len())))
}

fn uuid_bytes(uuid: Uuid) -> Bytes {
    Bytes::copy_from_slice(uuid.as_bytes())
}

fn unknown_enum(value: i32, field: &str) -> DecodeError {
    DecodeError::new(field, format!("{value} is not a value that this build knows"))
}

/// Reads a repeated field, numbering the element that fails.
fn each<W, T, C>(items: Vec<W>, field: &str) -> Result<C, DecodeError>
where
    T: TryFrom<W, Error = DecodeError>,
    C: FromIterator<T>,
{
    let read = |(at, item)| T::try_from(item).map_err(|error| error.within(format_args!("{field}[{at}]")));
    items.into_iter().enumerate().map(read).collect()
}

/// A vector, from the fields that may hold one.
fn vector(
    dense: (&str, Vec<f32>),
    sparse: Option<wire::SparseVector>,
    multi: Option<wire::MultiVector>,
) -> Result<Vector, DecodeError> {
    let (field, values) = dense;
    match (sparse, multi) {
        (Some(_), Some(_)) => Err(DecodeError::new("multi", "is given beside sparse; give one of them")),
        (Some(_), None) if !values.is_empty() => {
            Err(DecodeError::new("sparse", format!("is given beside {field}; give one of them")))
        }
        (None, Some(_)) if !values.is_empty() => {
            Err(DecodeError::new("multi", format!("is given beside {field}; give one of them")))
        }
        (Some(sparse), None) => {
            let sparse = SparseVector::new(sparse.indices, sparse.values);
            sparse.map(Vector::Sparse).map_err(|error| DecodeError::new("sparse", error))
        }
        (None, Some(multi)) => {
            let multi = MultiVector::new(multi.dimension, multi.values);
            multi.map(Vector::Multi).map_err(|error| DecodeError::new("multi", error))
        }
        (None, None) => Ok(Vector::Dense(values)),
    }
}

type WireVector = (Vec<f32>, Option<wire::SparseVector>, Option<wire::MultiVector>);

fn vector_to_wire(vector: Vector) -> WireVector {
    match vector {
        Vector::Dense(values) => (values, None, None),
        Vector::Sparse(vector) => {
            let sparse = wire::SparseVector { indices: vector.indices().to_vec(), values: vector.values().to_vec() };
            (Vec::new(), Some(sparse), None)
        }
        Vector::Multi(vector) => {
            let multi = wire::MultiVector { dimension: vector.dimension(), values: vector.components().to_vec() };
            (Vec::new(), None, Some(multi))
        }
    }
}

impl From<(String, Vector)> for wire::NamedVector {
    fn from((name, vector): (String, Vector)) -> Self {
        let (values, sparse, multi) = vector_to_wire(vector);
        Self { name, values, sparse, multi }
    }
}

impl TryFrom<wire::NamedVector> for Vector {
    type Error = DecodeError;

    fn try_from(message: wire::NamedVector) -> Result<Self, DecodeError> {
        vector(("values", message.values), message.sparse, message.multi)
    }
}

fn vectors(vectors: Vec<wire::NamedVector>) -> Result<BTreeMap<String, Vector>, DecodeError> {
    let mut named = BTreeMap::new();
    for (at, mut vector) in vectors.into_iter().enumerate() {
        if named.contains_key(&vector.name) {
            let reason = format!("gives the vector {:?} a second time", vector.name);
            return Err(DecodeError::new(format!("vectors[{at}].name"), reason));
        }
        let name = std::mem::take(&mut vector.name);
        let vector = Vector::try_from(vector);
        named.insert(name, vector.map_err(|error| error.within(format_args!("vectors[{at}]")))?);
    }
    Ok(named)
}

fn vectors_to_wire(vectors: BTreeMap<String, Vector>) -> Vec<wire::NamedVector> {
    vectors.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests;
