//! Collections: their settings, and every check a request against one must pass.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::examples::Examples;
use crate::filter::check_path;
use crate::ids::{CollectionId, PointId, ShardId};
use crate::payload;
use crate::query::{SearchQuery, Target};
use crate::vector::{self, Metric, MultiVector, ScalarKind, Vector, VectorError};
use crate::write::Point;

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

/// What happens to the values of a sparse query.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Modifier {
    /// Nothing.
    #[default]
    None,
    /// Each is multiplied by its index's inverse document frequency, ln((N − n + 0.5) / (n + 0.5) + 1): N vectors of this name
    /// in the whole collection, n of them with this index.
    Idf,
}

/// One named sparse vector of a collection.
#[derive(
    Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct SparseSpec {
    /// What happens to the values of a query.
    pub modifier: Modifier,
}

/// One named multi-vector of a collection, compared by max_sim. Its score for cosine and dot: the sum over the query's rows
/// of the largest product with any row. For L2: the root of the sum of the smallest squared distances; lower is nearer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct MultiSpec {
    /// Components of every row, 1 to [`VectorSpec::DIMENSION_MAX`].
    pub dimension: u32,
    /// How nearness of two rows is measured.
    pub metric: Metric,
}

/// The settings of a named vector, of whichever kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AnySpec<'a> {
    /// A row of components.
    Dense(&'a VectorSpec),
    /// Values at some indices.
    Sparse(&'a SparseSpec),
    /// Several rows.
    Multi(&'a MultiSpec),
}

impl AnySpec<'_> {
    /// In which order hits rank.
    pub fn metric(self) -> Metric {
        match self {
            AnySpec::Dense(spec) => spec.metric,
            AnySpec::Sparse(_) => Metric::Dot,
            AnySpec::Multi(spec) => spec.metric,
        }
    }

    /// Checks a vector against these settings.
    ///
    /// # Errors
    /// [`VectorError`] saying which rule it breaks.
    pub fn check(self, vector: &Vector) -> Result<(), VectorError> {
        let want = match (self, vector) {
            (AnySpec::Dense(spec), Vector::Dense(values)) => {
                return vector::check(values, spec.dimension as usize, spec.metric);
            }
            (AnySpec::Sparse(_), Vector::Sparse(vector)) => return vector.check(),
            (AnySpec::Multi(spec), Vector::Multi(vector)) => return vector.check(spec.dimension as usize, spec.metric),
            (AnySpec::Dense(_), _) => "dense",
            (AnySpec::Sparse(_), _) => "sparse",
            (AnySpec::Multi(_), _) => "multi",
        };
        Err(VectorError::Kind { got: vector.kind(), want })
    }
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
    /// Breadth while searching, 8 to 16,384: of one graph over the whole collection. Its parts are walked less wide.
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
    /// Dense vectors; "" is the default vector. A name stands in one of this and the two other maps, and one of them is not empty.
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
    /// Sparse vectors. Not in the archived form, which is of a time before them: whoever archives settings keeps
    /// [`CollectionSpec::later`] beside them.
    #[serde(default)]
    #[rkyv(with = rkyv::with::Skip)]
    pub sparse_vectors: BTreeMap<String, SparseSpec>,
    /// Multi-vectors. Archived as sparse vectors are.
    #[serde(default)]
    #[rkyv(with = rkyv::with::Skip)]
    pub multi_vectors: BTreeMap<String, MultiSpec>,
}

/// Settings that came to [`CollectionSpec`] after its archived form was fixed.
#[derive(Clone, PartialEq, Eq, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct LaterSpec {
    /// [`CollectionSpec::sparse_vectors`].
    pub sparse_vectors: BTreeMap<String, SparseSpec>,
    /// [`CollectionSpec::multi_vectors`].
    pub multi_vectors: BTreeMap<String, MultiSpec>,
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
    /// New settings of sparse vectors that there are.
    pub sparse_vectors: BTreeMap<String, SparseSpec>,
    /// Dense vectors to add: points get one when they are written.
    pub add_vectors: BTreeMap<String, VectorSpec>,
    /// Sparse vectors to add.
    pub add_sparse_vectors: BTreeMap<String, SparseSpec>,
    /// Multi-vectors to add.
    pub add_multi_vectors: BTreeMap<String, MultiSpec>,
}

impl CollectionUpdate {
    /// Whether it adds a vector.
    pub fn adds_vectors(&self) -> bool {
        !(self.add_vectors.is_empty() && self.add_sparse_vectors.is_empty() && self.add_multi_vectors.is_empty())
    }
}

impl CollectionSpec {
    /// The longest collection or vector name, in bytes.
    pub const NAME_BYTES_MAX: usize = 128;
    /// The most named vectors.
    pub const VECTORS_MAX: usize = 64;
    /// The most payload indexes.
    pub const PAYLOAD_INDEXES_MAX: usize = 256;
    /// The most shards.
    pub const SHARDS_MAX: u32 = 1024;
    /// The longest routing separator, in bytes.
    pub const SEPARATOR_BYTES_MAX: usize = 8;
    /// The largest payload, in bytes of JSON.
    pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

    /// Checks the settings themselves. 0 shards and 0 replicas pass: they ask for the defaults.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the first field that is out of its bounds.
    pub fn check(&self) -> Result<(), InvalidInput> {
        check_name(&self.name, "name")?;
        let vectors = self.vectors.len() + self.sparse_vectors.len() + self.multi_vectors.len();
        check_count(vectors, Self::VECTORS_MAX, "vectors")?;
        for (name, spec) in &self.vectors {
            spec.check(name)?;
        }
        let twice = |field: String| InvalidInput::new(field, "is the name of a vector of another kind too");
        for name in self.sparse_vectors.keys() {
            let field = format!("sparse_vectors[{name:?}]");
            check_vector_name(name, &field)?;
            if self.vectors.contains_key(name) {
                return Err(twice(field));
            }
        }
        for (name, spec) in &self.multi_vectors {
            let field = format!("multi_vectors[{name:?}]");
            check_vector_name(name, &field)?;
            check_dimension(spec.dimension, &field)?;
            if self.vectors.contains_key(name) || self.sparse_vectors.contains_key(name) {
                return Err(twice(field));
            }
        }
        check_count(self.payload_indexes.len(), Self::PAYLOAD_INDEXES_MAX, "payload_indexes")?;
        self.payload_indexes.keys().try_for_each(|path| check_path(path, &format!("payload_indexes[{path:?}]")))?;
        if self.shard_count > Self::SHARDS_MAX {
            let reason = format!("is {}, at most {} are allowed", self.shard_count, Self::SHARDS_MAX);
            return Err(InvalidInput::new("shard_count", reason));
        }
        if !matches!(self.replication_factor, 0 | 1 | 3 | 5 | 7) {
            let reason = format!("is {}; give 1, 3, 5 or 7, or 0 for the default", self.replication_factor);
            return Err(InvalidInput::new("replication_factor", reason));
        }
        if self.routing_separator.len() > Self::SEPARATOR_BYTES_MAX {
            let (got, most) = (self.routing_separator.len(), Self::SEPARATOR_BYTES_MAX);
            return Err(InvalidInput::new("routing_separator", format!("has {got} bytes, at most {most} are allowed")));
        }
        self.index.check()?;
        self.documents.as_ref().map_or(Ok(()), |documents| self.check_documents(documents))
    }

    fn check_documents(&self, documents: &DocumentSpec) -> Result<(), InvalidInput> {
        if documents.embedder.is_empty() || documents.embedder.len() > Self::NAME_BYTES_MAX {
            let reason = format!("must name an embedder in 1 to {} bytes", Self::NAME_BYTES_MAX);
            return Err(InvalidInput::new("documents.embedder", reason));
        }
        if !self.vectors.contains_key(&documents.vector) {
            let reason = format!("names {:?}, which is no dense vector of the collection", documents.vector);
            return Err(InvalidInput::new("documents.vector", reason));
        }
        if self.routing_separator.is_empty() {
            return Err(InvalidInput::new(
                "routing_separator",
                "is empty; a collection of documents needs one, such as #, to keep a document's chunks together",
            ));
        }
        check_path(&documents.text_field, "documents.text_field")
    }

    /// Checks an id on its own.
    ///
    /// # Errors
    /// [`InvalidInput`] naming `field` for a string id that is empty or too long.
    pub fn check_id(&self, id: &PointId, field: &str) -> Result<(), InvalidInput> {
        id.check().map_err(|error| InvalidInput::new(field, error.to_string()))
    }

    /// Takes what a writer gives as the kind that is wanted: a dense vector in a multi-vector's place is its only row.
    pub fn adopt_point(&self, point: &mut Point) {
        point.vectors.iter_mut().for_each(|(name, vector)| self.adopt(name, vector));
    }

    /// As [`CollectionSpec::adopt_point`], of a query.
    pub fn adopt_query(&self, query: &mut SearchQuery) {
        let name = query.vector_name.clone();
        query.vectors_mut().into_iter().for_each(|vector| self.adopt(&name, vector));
    }

    fn adopt(&self, name: &str, vector: &mut Vector) {
        if let Vector::Dense(values) = vector
            && self.multi_vectors.contains_key(name)
            && let Ok(row) = MultiVector::from_rows(std::slice::from_ref(values))
        {
            *vector = Vector::Multi(row);
        }
    }

    /// Checks a point before any of its batch is proposed. Every vector given must be one of the collection's; a point
    /// may lack any of them. `field` is the point's place in the request, for example `points[3]`.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the id, the payload or the vector that is refused.
    pub fn check_point(&self, point: &Point, field: &str) -> Result<(), InvalidInput> {
        self.check_id(&point.id, &format!("{field}.id"))?;
        for (name, vector) in &point.vectors {
            self.check_vector(name, vector, || format!("{field}.vectors[{name:?}]"))?;
        }
        check_payload(&point.payload_json, &format!("{field}.payload_json"))
    }

    /// Brings a checked point into the form that is stored: cosine vectors at unit length.
    pub fn prepare_point(&self, point: &mut Point) {
        for (name, vector) in &mut point.vectors {
            self.prepare_vector(name, vector);
        }
    }

    /// Checks a query.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field that is refused.
    pub fn check_query(&self, query: &SearchQuery) -> Result<(), InvalidInput> {
        if self.vector(&query.vector_name).is_none() {
            return Err(InvalidInput::new("vector_name", self.unknown_vector(&query.vector_name)));
        }
        match &query.target {
            Target::Near(vector) => {
                let field = match vector {
                    Vector::Dense(_) => "vector",
                    Vector::Sparse(_) => "sparse",
                    Vector::Multi(_) => "multi",
                };
                self.check_vector(&query.vector_name, vector, || field.to_owned())?;
            }
            Target::Examples(examples) => {
                let vectors = examples.vectors();
                if !(1..=Examples::VECTORS_MAX).contains(&vectors.len()) {
                    let reason = format!("has {} vectors, give 1 to {}", vectors.len(), Examples::VECTORS_MAX);
                    return Err(InvalidInput::new("examples", reason));
                }
                for (at, vector) in vectors.into_iter().enumerate() {
                    self.check_vector(&query.vector_name, vector, || format!("examples[{at}]"))?;
                }
                if let Examples::Weighted { examples } = examples
                    && let Some(at) = examples.iter().position(|(_, weight)| !weight.is_finite())
                {
                    return Err(InvalidInput::new(format!("examples[{at}]"), "has a weight that is not finite"));
                }
            }
        }
        if !(1..=SearchQuery::LIMIT_MAX).contains(&query.limit) {
            let reason = format!("is {}, must be 1 to {}", query.limit, SearchQuery::LIMIT_MAX);
            return Err(InvalidInput::new("limit", reason));
        }
        if let Some(ef) = query.ef
            && !(1..=SearchQuery::EF_MAX).contains(&ef)
        {
            return Err(InvalidInput::new("ef", format!("is {ef}, must be 1 to {}", SearchQuery::EF_MAX)));
        }
        if query.score_threshold.is_some_and(f32::is_nan) {
            return Err(InvalidInput::new("score_threshold", "is NaN; give a number or leave it out"));
        }
        query.filter.as_ref().map_or(Ok(()), |filter| filter.check())
    }

    /// Brings a checked query's vector into the form that vectors are stored in, so that scores are the metric's.
    pub fn prepare_query(&self, query: &mut SearchQuery) {
        let name = query.vector_name.clone();
        query.vectors_mut().into_iter().for_each(|vector| self.prepare_vector(&name, vector));
    }

    fn prepare_vector(&self, name: &str, vector: &mut Vector) {
        if self.vector(name).is_some_and(|spec| spec.metric() == Metric::Cosine) {
            match vector {
                Vector::Dense(values) => vector::normalize(values),
                Vector::Multi(vector) => vector.normalize(),
                Vector::Sparse(_) => {}
            }
        }
    }

    fn check_vector(&self, name: &str, vector: &Vector, field: impl Fn() -> String) -> Result<(), InvalidInput> {
        let spec = self.vector(name).ok_or_else(|| InvalidInput::new(field(), self.unknown_vector(name)))?;
        spec.check(vector).map_err(|error| InvalidInput::new(field(), error.to_string()))
    }

    /// The settings of a named vector.
    pub fn vector(&self, name: &str) -> Option<AnySpec<'_>> {
        let dense = self.vectors.get(name).map(AnySpec::Dense);
        let sparse = || self.sparse_vectors.get(name).map(AnySpec::Sparse);
        dense.or_else(sparse).or_else(|| self.multi_vectors.get(name).map(AnySpec::Multi))
    }

    /// The names of all vectors.
    pub fn vector_names(&self) -> impl Iterator<Item = &str> {
        let names = self.vectors.keys().chain(self.sparse_vectors.keys()).chain(self.multi_vectors.keys());
        names.map(String::as_str)
    }

    /// What the archived form lacks; `None` where that is nothing.
    pub fn later(&self) -> Option<LaterSpec> {
        let later =
            LaterSpec { sparse_vectors: self.sparse_vectors.clone(), multi_vectors: self.multi_vectors.clone() };
        (later != LaterSpec::default()).then_some(later)
    }

    /// Takes back what [`CollectionSpec::later`] gave.
    pub fn set_later(&mut self, later: LaterSpec) {
        let LaterSpec { sparse_vectors, multi_vectors } = later;
        (self.sparse_vectors, self.multi_vectors) = (sparse_vectors, multi_vectors);
    }

    fn unknown_vector(&self, name: &str) -> String {
        let known: Vec<String> = self.vector_names().map(|known| format!("{known:?}")).collect();
        format!("{name:?} is not a vector of the collection {:?}, which has {}", self.name, known.join(", "))
    }
}

impl VectorSpec {
    fn check(&self, name: &str) -> Result<(), InvalidInput> {
        let field = format!("vectors[{name:?}]");
        check_vector_name(name, &field)?;
        check_dimension(self.dimension, &field)?;
        if self.scalar == ScalarKind::I8 && self.metric != Metric::Cosine {
            let reason = "i8 holds components in [-1, 1] and so serves cosine only; give f16 or f32";
            return Err(InvalidInput::new(format!("{field}.scalar"), reason));
        }
        if self.metric == Metric::L1 && self.scalar != ScalarKind::F32 {
            return Err(InvalidInput::new(format!("{field}.scalar"), "graphs over l1 hold f32 only; give f32"));
        }
        Ok(())
    }
}

impl IndexSpec {
    /// Checks each setting against its bounds.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the setting that is out of them.
    pub fn check(&self) -> Result<(), InvalidInput> {
        let bounds = [
            ("index.m", self.m, 4..=128),
            ("index.ef_construction", self.ef_construction, 8..=4096),
            ("index.ef_search", self.ef_search, 8..=16_384),
            ("index.seal_points", self.seal_points, 1..=16_777_216),
        ];
        for (field, value, allowed) in bounds {
            if !allowed.contains(&value) {
                let reason = format!("is {value}, must be {} to {}", allowed.start(), allowed.end());
                return Err(InvalidInput::new(field, reason));
            }
        }
        Ok(())
    }
}

/// Checks that bytes are a payload that may be stored.
///
/// # Errors
/// [`InvalidInput`] naming `field` where they are more than [`CollectionSpec::PAYLOAD_BYTES_MAX`] or no JSON object.
pub fn check_payload(bytes: &[u8], field: &str) -> Result<(), InvalidInput> {
    if bytes.len() > CollectionSpec::PAYLOAD_BYTES_MAX {
        let (got, most) = (bytes.len(), CollectionSpec::PAYLOAD_BYTES_MAX);
        return Err(InvalidInput::new(field, format!("has {got} bytes, at most {most} are allowed")));
    }
    payload::parse(bytes).map(drop).map_err(|error| InvalidInput::new(field, error.to_string()))
}

/// Checks a collection's name.
///
/// # Errors
/// [`InvalidInput`] naming `field`.
pub fn check_name(name: &str, field: &str) -> Result<(), InvalidInput> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if name.len() > CollectionSpec::NAME_BYTES_MAX || !starts_well || !name.chars().all(allowed) {
        return Err(InvalidInput::new(
            field,
            "must be 1 to 128 of A-Z a-z 0-9 _ - . and start with a letter, a digit or _",
        ));
    }
    Ok(())
}

fn check_vector_name(name: &str, field: &str) -> Result<(), InvalidInput> {
    let most = CollectionSpec::NAME_BYTES_MAX;
    if name.len() > most || name.chars().any(char::is_control) {
        return Err(InvalidInput::new(field, format!("must have at most {most} bytes and no control characters")));
    }
    Ok(())
}

fn check_dimension(dimension: u32, field: &str) -> Result<(), InvalidInput> {
    if !(1..=VectorSpec::DIMENSION_MAX).contains(&dimension) {
        let reason = format!("is {dimension}, must be 1 to {}", VectorSpec::DIMENSION_MAX);
        return Err(InvalidInput::new(format!("{field}.dimension"), reason));
    }
    Ok(())
}

fn check_count(got: usize, most: usize, field: &str) -> Result<(), InvalidInput> {
    if got > most {
        return Err(InvalidInput::new(field, format!("has {got} entries, at most {most} are allowed")));
    }
    Ok(())
}

/// Input that a collection refuses: which field, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
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

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::filter::Filter;
    use crate::vector::SparseVector;

    pub(crate) fn spec(name: &str) -> CollectionSpec {
        let vector = |metric| VectorSpec { dimension: 2, metric, scalar: ScalarKind::default_for(metric) };
        CollectionSpec {
            name: name.to_owned(),
            vectors: BTreeMap::from([(String::new(), vector(Metric::Cosine)), ("l2".to_owned(), vector(Metric::L2))]),
            payload_indexes: BTreeMap::from([("lang".to_owned(), FieldKind::Keyword)]),
            shard_count: 0,
            replication_factor: 0,
            routing_separator: "#".to_owned(),
            index: IndexSpec::default(),
            documents: Some(DocumentSpec {
                embedder: "static256".to_owned(),
                vector: String::new(),
                text_field: "text".to_owned(),
            }),
            sparse_vectors: BTreeMap::from([("words".to_owned(), SparseSpec { modifier: Modifier::Idf })]),
            multi_vectors: BTreeMap::from([("tokens".to_owned(), MultiSpec { dimension: 2, metric: Metric::Cosine })]),
        }
    }

    fn sparse(indices: &[u32]) -> Vector {
        SparseVector::new(indices.to_vec(), vec![1.0; indices.len()]).unwrap().into()
    }

    fn multi(dimension: u32, components: &[f32]) -> Vector {
        MultiVector::new(dimension, components.to_vec()).unwrap().into()
    }

    fn point(vectors: &[(&str, &[f32])], payload: &'static str) -> Point {
        Point {
            id: PointId::Number(1),
            vectors: vectors.iter().map(|(name, values)| (name.to_string(), values.to_vec().into())).collect(),
            payload_json: bytes::Bytes::from_static(payload.as_bytes()),
        }
    }

    fn query() -> SearchQuery {
        SearchQuery {
            vector_name: String::new(),
            target: vec![3.0, 4.0].into(),
            limit: 10,
            filter: None,
            exact: false,
            ef: None,
            with_payload: false,
            with_vectors: false,
            score_threshold: None,
        }
    }

    #[test]
    fn a_spec_out_of_bounds_is_refused_by_field() {
        assert_eq!(spec("books").check(), Ok(()));
        type Break = fn(&mut CollectionSpec);
        let cases: [(&str, Break); 18] = [
            ("name", |s| s.name.clear()),
            ("name", |s| s.name = ".hidden".into()),
            ("name", |s| s.name = "a/b".into()),
            ("name", |s| s.name = "x".repeat(129)),
            ("vectors", |s| s.sparse_vectors.extend((0..64).map(|at| (format!("v{at}"), SparseSpec::default())))),
            ("vectors[\"l2\"].scalar", |s| s.vectors.get_mut("l2").unwrap().metric = Metric::L1),
            ("sparse_vectors[\"l2\"]", |s| s.sparse_vectors.extend([("l2".to_owned(), SparseSpec::default())])),
            ("multi_vectors[\"words\"]", |s| {
                s.multi_vectors.extend([("words".to_owned(), MultiSpec { dimension: 2, metric: Metric::L2 })]);
            }),
            ("multi_vectors[\"tokens\"].dimension", |s| s.multi_vectors.get_mut("tokens").unwrap().dimension = 0),
            ("vectors[\"l2\"].dimension", |s| s.vectors.get_mut("l2").unwrap().dimension = 0),
            ("vectors[\"l2\"].scalar", |s| s.vectors.get_mut("l2").unwrap().scalar = ScalarKind::I8),
            ("payload_indexes[\"\"]", |s| s.payload_indexes.extend([(String::new(), FieldKind::Bool)])),
            ("shard_count", |s| s.shard_count = 1025),
            ("replication_factor", |s| s.replication_factor = 2),
            ("routing_separator", |s| s.routing_separator = "123456789".into()),
            ("routing_separator", |s| s.routing_separator.clear()),
            ("index.ef_search", |s| s.index.ef_search = 7),
            ("documents.vector", |s| s.documents.as_mut().unwrap().vector = "title".into()),
        ];
        for (field, spoil) in cases {
            let mut spec = spec("books");
            spoil(&mut spec);
            assert_eq!(spec.check().unwrap_err().field, field);
        }
    }

    #[test]
    fn a_point_is_refused_by_field() {
        let spec = spec("books");
        let refused = |point: Point| spec.check_point(&point, "points[3]").unwrap_err().field;
        assert_eq!(spec.check_point(&point(&[], ""), "p"), Ok(()));
        assert_eq!(spec.check_point(&point(&[("l2", &[0.0, 0.0])], "{\"a\":[1]}"), "p"), Ok(()));
        assert_eq!(refused(point(&[("title", &[1.0, 0.0])], "")), "points[3].vectors[\"title\"]");
        assert_eq!(refused(point(&[("", &[1.0])], "")), "points[3].vectors[\"\"]");
        assert_eq!(refused(point(&[("", &[0.0, 0.0])], "")), "points[3].vectors[\"\"]");
        assert_eq!(refused(point(&[("l2", &[f32::NAN, 0.0])], "")), "points[3].vectors[\"l2\"]");
        let with =
            |name: &str, vector| Point { vectors: BTreeMap::from([(name.to_owned(), vector)]), ..point(&[], "") };
        assert_eq!(spec.check_point(&with("words", sparse(&[9, 1])), "p"), Ok(()));
        assert_eq!(spec.check_point(&with("tokens", multi(2, &[1.0, 0.0, 3.0, 4.0])), "p"), Ok(()));
        assert_eq!(refused(with("words", vec![1.0, 2.0].into())), "points[3].vectors[\"words\"]");
        assert_eq!(refused(with("tokens", multi(1, &[1.0]))), "points[3].vectors[\"tokens\"]");
        assert_eq!(refused(with("tokens", multi(2, &[1.0, 0.0, 0.0, 0.0]))), "points[3].vectors[\"tokens\"]");
        assert_eq!(refused(with("", sparse(&[1]))), "points[3].vectors[\"\"]");
        assert_eq!(refused(point(&[], "[1]")), "points[3].payload_json");
        assert_eq!(refused(point(&[], "{")), "points[3].payload_json");
        let text = Point { id: PointId::Text(String::new()), ..point(&[], "") };
        assert_eq!(refused(text), "points[3].id");
        let payload = format!("{{\"a\":\"{}\"}}", "x".repeat(CollectionSpec::PAYLOAD_BYTES_MAX));
        assert_eq!(refused(Point { payload_json: payload.into(), ..point(&[], "") }), "points[3].payload_json");
    }

    #[test]
    fn only_cosine_vectors_are_normalised() {
        let spec = spec("books");
        let mut point = point(&[("", &[3.0, 4.0]), ("l2", &[3.0, 4.0])], "");
        spec.prepare_point(&mut point);
        assert_eq!(point.vectors[""], vec![0.6, 0.8].into());
        assert_eq!(point.vectors["l2"], vec![3.0, 4.0].into());
        let mut query = query();
        spec.prepare_query(&mut query);
        assert_eq!(query.target, vec![0.6, 0.8].into());
        let mut query =
            SearchQuery { vector_name: "tokens".into(), target: multi(2, &[3.0, 4.0, 0.0, 2.0]).into(), ..query };
        spec.prepare_query(&mut query);
        assert_eq!(query.target, multi(2, &[0.6, 0.8, 0.0, 1.0]).into());
    }

    #[test]
    fn a_single_row_may_be_given_as_a_dense_vector() {
        let spec = spec("books");
        let mut point = point(&[("", &[3.0, 4.0]), ("tokens", &[3.0, 4.0])], "");
        spec.adopt_point(&mut point);
        assert_eq!(point.vectors[""], vec![3.0, 4.0].into());
        assert_eq!(point.vectors["tokens"], multi(2, &[3.0, 4.0]));
        let mut query = SearchQuery { vector_name: "tokens".into(), target: vec![1.0].into(), ..query() };
        spec.adopt_query(&mut query);
        assert_eq!(spec.check_query(&query).unwrap_err().reason, "row 0 has 1 components, the collection wants 2");
        query.target = Vec::<f32>::new().into();
        spec.adopt_query(&mut query);
        assert_eq!(spec.check_query(&query).unwrap_err().field, "vector", "no row at all");
    }

    #[test]
    fn a_query_is_refused_by_field() {
        let spec = spec("books");
        assert_eq!(spec.check_query(&query()), Ok(()));
        type Break = fn(&mut SearchQuery);
        let cases: [(&str, Break); 9] = [
            ("vector_name", |q| q.vector_name = "title".into()),
            ("vector", |q| q.target = vec![3.0, 4.0, 1.0].into()),
            ("sparse", |q| q.target = sparse(&[1]).into()),
            ("multi", |q| (q.vector_name, q.target) = ("words".into(), multi(2, &[1.0, 0.0]).into())),
            ("limit", |q| q.limit = 0),
            ("limit", |q| q.limit = SearchQuery::LIMIT_MAX + 1),
            ("ef", |q| q.ef = Some(SearchQuery::EF_MAX + 1)),
            ("score_threshold", |q| q.score_threshold = Some(f32::NAN)),
            ("filter.exists", |q| q.filter = Some(Filter::Exists(String::new()))),
        ];
        for (field, spoil) in cases {
            let mut query = query();
            spoil(&mut query);
            assert_eq!(spec.check_query(&query).unwrap_err().field, field);
        }
    }
}
