//! Ids, vectors and selections as Qdrant's JSON has them.
use std::collections::BTreeMap;

use nearring_proto::collection::CollectionSpec;
use nearring_proto::ids::PointId;
use nearring_proto::payload::Payload;
use nearring_proto::vector::{MultiVector, SparseVector, Vector as Stored};
use nearring_proto::write::PointRecord;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::places::{self, Place};
use crate::failure::{Error, Kind};

/// A number, or a text: a UUID however it is spelt, or anything else.
#[derive(Deserialize, JsonSchema, Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(untagged)]
pub(in crate::gateway) enum Id {
    Number(u64),
    Text(String),
}

impl From<Id> for PointId {
    fn from(id: Id) -> Self {
        match id {
            Id::Number(number) => PointId::Number(number),
            // Qdrant's clients send UUIDs also without hyphens; digits in quotes are a text.
            Id::Text(text) => match uuid::Uuid::try_parse(&text) {
                Ok(uuid) => PointId::Uuid(uuid),
                Err(_) => PointId::Text(text),
            },
        }
    }
}

/// An id as it is answered.
pub(in crate::gateway) fn id_json(id: &PointId) -> Value {
    match id {
        PointId::Number(number) => json!(number),
        PointId::Uuid(uuid) => json!(uuid.to_string()),
        PointId::Text(text) => json!(text),
    }
}

/// What stands where a point's vectors do.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(untagged)]
pub(super) enum Vectors {
    Dense(Vec<f32>),
    Named(BTreeMap<String, Vector>),
    Multi(Vec<Vec<f32>>),
    #[schemars(skip)]
    Other(serde::de::IgnoredAny),
}

/// One named vector.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(untagged)]
pub(in crate::gateway) enum Vector {
    Dense(Vec<f32>),
    // Before the sparse one, which two rows of whole numbers would be as well: serde reads a struct from a list, too.
    Multi(Vec<Vec<f32>>),
    Sparse(Sparse),
    #[schemars(skip)]
    Other(serde::de::IgnoredAny),
}

/// Indices and their values.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct Sparse {
    pub(super) indices: Vec<u32>,
    pub(super) values: Vec<f32>,
}

impl Vectors {
    /// By name.
    ///
    /// # Errors
    /// Where it is no vector.
    pub(super) fn read(self, field: &str) -> Result<BTreeMap<String, Stored>, Error> {
        match self {
            Self::Dense(values) => Ok(BTreeMap::from([(String::new(), values.into())])),
            Self::Named(named) => named.into_iter().map(|(name, vector)| Ok((name, vector.read(field)?))).collect(),
            Self::Multi(rows) => Ok(BTreeMap::from([(String::new(), Vector::Multi(rows).read(field)?)])),
            Self::Other(_) => Err(other(field)),
        }
    }
}

impl Vector {
    /// The vector.
    ///
    /// # Errors
    /// Where it is none, or not a whole one.
    pub(in crate::gateway) fn read(self, field: &str) -> Result<Stored, Error> {
        let read = match self {
            Self::Dense(values) => Ok(values.into()),
            Self::Sparse(Sparse { indices, values }) => SparseVector::new(indices, values).map(Stored::from),
            Self::Multi(rows) => MultiVector::from_rows(&rows).map(Stored::from),
            Self::Other(_) => return Err(other(field)),
        };
        read.map_err(|error| Error::invalid(field, error.to_string()))
    }
}

/// The vector of a recommendation: the average of what is liked, moved away from the average of what is not. Sparse vectors
/// count over all indices that any has. Of multi-vectors all rows stand side by side, turned round where they are not liked.
///
/// # Errors
/// Where nothing is liked, or the vectors are of several kinds or lengths.
pub(super) fn recommended(liked: Vec<Stored>, not: Vec<Stored>) -> Result<Stored, Error> {
    if let Some(Stored::Multi(first)) = liked.first() {
        let (dimension, mut components) = (first.dimension(), Vec::new());
        for (vectors, sign) in [(&liked, 1.0), (&not, -1.0)] {
            for vector in vectors {
                match vector {
                    Stored::Multi(rows) if rows.dimension() == dimension => {
                        components.extend(rows.components().iter().map(|value| value * sign));
                    }
                    other => return Err(unlike(&liked, other)),
                }
            }
        }
        let rows = MultiVector::new(dimension, components);
        return rows.map(Stored::from).map_err(|error| Error::invalid("recommend", error.to_string()));
    }
    let liked = average(liked)?.ok_or_else(|| Error::invalid("recommend.positive", "is empty; give an example"))?;
    match average(not)? {
        None => Ok(liked),
        Some(not) => combined(&liked, &not, |liked, not| liked + liked - not),
    }
}

fn average(vectors: Vec<Stored>) -> Result<Option<Stored>, Error> {
    let share = 1.0 / vectors.len() as f32;
    let mut vectors = vectors.into_iter();
    let Some(first) = vectors.next() else { return Ok(None) };
    let sum = vectors.try_fold(first, |sum, vector| combined(&sum, &vector, |sum, value| sum + value))?;
    combined(&sum, &sum, |sum, _| sum * share).map(Some)
}

/// Two vectors of one kind, value by value; what a sparse one lacks is 0.
fn combined(a: &Stored, b: &Stored, value: impl Fn(f32, f32) -> f32) -> Result<Stored, Error> {
    match (a, b) {
        (Stored::Dense(a), Stored::Dense(b)) if a.len() == b.len() => {
            Ok(a.iter().zip(b).map(|(a, b)| value(*a, *b)).collect::<Vec<f32>>().into())
        }
        (Stored::Sparse(a), Stored::Sparse(b)) => {
            let mut both: BTreeMap<u32, (f32, f32)> = a.entries().map(|(index, a)| (index, (a, 0.0))).collect();
            b.entries().for_each(|(index, b)| both.entry(index).or_default().1 = b);
            let (indices, values) = both.into_iter().map(|(index, (a, b))| (index, value(a, b))).unzip();
            let vector = SparseVector::new(indices, values);
            vector.map(Stored::from).map_err(|error| Error::invalid("recommend", error.to_string()))
        }
        (a, b) => Err(unlike(std::slice::from_ref(a), b)),
    }
}

fn unlike(vectors: &[Stored], other: &Stored) -> Error {
    let shape = |vector: &Stored| match vector {
        Stored::Dense(values) => format!("a dense vector of {} components", values.len()),
        Stored::Sparse(_) => "a sparse vector".to_owned(),
        Stored::Multi(rows) => format!("a multi-vector of rows of {}", rows.dimension()),
    };
    let first = vectors.first().map(shape).unwrap_or_default();
    Error::invalid("recommend", format!("has {first} and {} among its examples; give them alike", shape(other)))
}

fn other(field: &str) -> Error {
    let reason = "is no list of numbers, nor an object of them (texts and images to embed are not supported here)";
    Error::new(Kind::Invalid, format!("{field}: {reason}"))
}

/// Which part of the payload is answered.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(untagged)]
pub(super) enum WithPayload {
    All(bool),
    Only(Vec<String>),
    Include { include: Vec<String> },
    Exclude { exclude: Vec<String> },
}

impl WithPayload {
    /// Whether anything is wanted.
    pub(super) fn any(&self) -> bool {
        !matches!(self, Self::All(false))
    }

    /// The part of a payload.
    pub(super) fn of(&self, bytes: &[u8]) -> Result<Option<Payload>, Error> {
        let parse =
            || nearring_proto::payload::parse(bytes).map_err(|error| Error::new(Kind::Internal, error.to_string()));
        Ok(match self {
            Self::All(false) => None,
            Self::All(true) => Some(parse()?),
            Self::Only(paths) | Self::Include { include: paths } => {
                let mut kept = Payload::new();
                let payload = parse()?;
                paths.iter().for_each(|path| include(&payload, &super::filter::path(path), &mut kept));
                Some(kept)
            }
            Self::Exclude { exclude } => {
                let mut payload = parse()?;
                for path in exclude {
                    Place::read("with_payload.exclude", path)?.remove(&mut payload);
                }
                Some(payload)
            }
        })
    }
}

/// Copies what stands at the path, with everything around it that leads there.
fn include(from: &Payload, path: &str, to: &mut Payload) {
    if let Some(value) = from.get(path) {
        to.insert(path.to_owned(), value.clone());
        return;
    }
    let Some((key, rest)) = places::key(path) else { return };
    let Some(rest) = rest.strip_prefix('.') else {
        if let (Some(value), "") = (from.get(&key), rest) {
            to.insert(key, value.clone());
        }
        return;
    };
    match from.get(&key) {
        Some(Value::Object(inner)) => {
            if let Value::Object(kept) = to.entry(key).or_insert_with(|| Value::Object(Payload::new())) {
                include(inner, rest, kept);
            }
        }
        Some(Value::Array(items)) => {
            let kept = to.entry(key).or_insert_with(|| Value::Array(vec![json!({}); items.len()]));
            for (item, kept) in items.iter().zip(kept.as_array_mut().into_iter().flatten()) {
                if let (Value::Object(item), Value::Object(kept)) = (item, kept) {
                    include(item, rest, kept);
                }
            }
        }
        _ => {}
    }
}

/// Which vectors are answered.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(untagged)]
pub(super) enum WithVector {
    All(bool),
    Only(Vec<String>),
}

impl WithVector {
    /// Whether any is wanted.
    pub(super) fn any(&self) -> bool {
        !matches!(self, Self::All(false))
    }

    /// Refuses names that no vector of the collection has.
    ///
    /// # Errors
    /// Naming the first of them.
    pub(super) fn check(&self, spec: &CollectionSpec) -> Result<(), Error> {
        match self {
            Self::All(_) => Ok(()),
            Self::Only(names) => names.iter().try_for_each(|name| super::query::has_vector(spec, name)),
        }
    }

    /// As the point's `vector`: a list where only the unnamed vector is answered, otherwise an object.
    pub(super) fn of(&self, vectors: &BTreeMap<String, Stored>) -> Option<Value> {
        let wanted = |name: &str| match self {
            Self::All(all) => *all,
            Self::Only(names) => names.iter().any(|wanted| wanted == name),
        };
        if !self.any() {
            return None;
        }
        let named: Vec<(&String, &Stored)> = vectors.iter().filter(|(name, _)| wanted(name)).collect();
        Some(match named.as_slice() {
            [(name, vector)] if name.is_empty() => vector_json(vector),
            named => Value::Object(named.iter().map(|(name, vector)| ((*name).clone(), vector_json(vector))).collect()),
        })
    }
}

/// A vector as it is answered.
fn vector_json(vector: &Stored) -> Value {
    match vector {
        Stored::Dense(values) => singles(values),
        Stored::Sparse(vector) => json!({"indices": vector.indices(), "values": singles(vector.values())}),
        Stored::Multi(vector) => vector.rows().map(singles).collect(),
    }
}

fn singles(values: &[f32]) -> Value {
    values.iter().map(|value| single_json(*value)).collect()
}

/// A number with as many digits as tell it from its neighbours. As a double it would have digits that nobody sent.
pub(super) fn single_json(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, |value| json!(value))
}

/// A stored point as it is answered.
pub(super) fn record_json(record: &PointRecord, payload: &WithPayload, vector: &WithVector) -> Result<Value, Error> {
    let mut answer = json!({"id": id_json(&record.id)});
    if let Some(object) = answer.as_object_mut() {
        if let Some(payload) = payload.of(&record.payload_json)? {
            object.insert("payload".to_owned(), Value::Object(payload));
        }
        if let Some(vector) = vector.of(&record.vectors) {
            object.insert("vector".to_owned(), vector);
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn scores_are_told_by_their_shortest_form() {
        for (score, told) in [(1.4063001_f32, "1.4063001"), (0.1, "0.1"), (-2.0, "-2.0"), (1e-30, "1e-30")] {
            assert_eq!(single_json(score).to_string(), told);
            assert_eq!(single_json(score).as_f64().unwrap() as f32, score);
        }
    }

    #[test]
    fn recommendations_lie_beyond_what_is_liked() {
        let sparse = |indices: &[u32], values: &[f32]| -> Stored {
            SparseVector::new(indices.to_vec(), values.to_vec()).unwrap().into()
        };
        let multi = |components: &[f32]| -> Stored { MultiVector::new(2, components.to_vec()).unwrap().into() };
        let dense = recommended(vec![vec![1.0, 0.0].into(), vec![3.0, 2.0].into()], vec![vec![1.0, 4.0].into()]);
        assert_eq!(dense.unwrap(), vec![3.0, -2.0].into());
        let words = recommended(vec![sparse(&[1, 5], &[2.0, 4.0]), sparse(&[5], &[2.0])], vec![sparse(&[9], &[1.0])]);
        assert_eq!(words.unwrap(), sparse(&[1, 5, 9], &[2.0, 6.0, -1.0]));
        let rows = recommended(vec![multi(&[1.0, 2.0]), multi(&[3.0, 4.0])], vec![multi(&[5.0, 6.0])]);
        assert_eq!(rows.unwrap(), multi(&[1.0, 2.0, 3.0, 4.0, -5.0, -6.0]));
        assert!(recommended(vec![], vec![vec![1.0].into()]).unwrap_err().message.contains("recommend.positive"));
        for (liked, not) in [
            (vec![vec![1.0].into(), vec![1.0, 2.0].into()], vec![]),
            (vec![vec![1.0].into()], vec![sparse(&[1], &[1.0])]),
            (vec![multi(&[1.0, 2.0])], vec![vec![1.0, 2.0].into()]),
            (vec![sparse(&[1], &[1.0]), multi(&[1.0, 2.0])], vec![]),
        ] {
            assert!(recommended(liked, not).unwrap_err().message.contains("alike"));
        }
    }
}
