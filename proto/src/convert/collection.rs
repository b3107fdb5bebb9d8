//! Collections and their settings. What the wire leaves at 0 or unset gets its default here, except the numbers of
//! shards and replicas, whose defaults depend on the cluster and are the meta group's.
use std::collections::BTreeMap;

use super::{DecodeError, required, unknown_enum};
use crate::collection::{
    Collection, CollectionSpec, CollectionUpdate, DocumentSpec, FieldKind, IndexSpec, Modifier, MultiSpec, SparseSpec,
    VectorSpec,
};
use crate::ids::{CollectionId, ShardId};
use crate::vector::{Metric, ScalarKind};
use crate::wire;

impl TryFrom<wire::Metric> for Metric {
    type Error = DecodeError;

    fn try_from(message: wire::Metric) -> Result<Self, DecodeError> {
        match message {
            wire::Metric::Unspecified => Err(DecodeError::new("metric", "is missing; give cosine, dot, l2 or l1")),
            wire::Metric::Cosine => Ok(Metric::Cosine),
            wire::Metric::Dot => Ok(Metric::Dot),
            wire::Metric::L2 => Ok(Metric::L2),
            wire::Metric::L1 => Ok(Metric::L1),
        }
    }
}

impl From<Metric> for wire::Metric {
    fn from(metric: Metric) -> Self {
        match metric {
            Metric::Cosine => wire::Metric::Cosine,
            Metric::Dot => wire::Metric::Dot,
            Metric::L2 => wire::Metric::L2,
            Metric::L1 => wire::Metric::L1,
        }
    }
}

impl From<ScalarKind> for wire::ScalarKind {
    fn from(scalar: ScalarKind) -> Self {
        match scalar {
            ScalarKind::F32 => wire::ScalarKind::F32,
            ScalarKind::F16 => wire::ScalarKind::F16,
            ScalarKind::I8 => wire::ScalarKind::I8,
        }
    }
}

impl TryFrom<wire::FieldKind> for FieldKind {
    type Error = DecodeError;

    fn try_from(message: wire::FieldKind) -> Result<Self, DecodeError> {
        match message {
            wire::FieldKind::Unspecified => {
                Err(DecodeError::new("kind", "is missing; give keyword, integer, float, bool or datetime"))
            }
            wire::FieldKind::Keyword => Ok(FieldKind::Keyword),
            wire::FieldKind::Integer => Ok(FieldKind::Integer),
            wire::FieldKind::Float => Ok(FieldKind::Float),
            wire::FieldKind::Bool => Ok(FieldKind::Bool),
            wire::FieldKind::Datetime => Ok(FieldKind::Datetime),
        }
    }
}

impl From<FieldKind> for wire::FieldKind {
    fn from(kind: FieldKind) -> Self {
        match kind {
            FieldKind::Keyword => wire::FieldKind::Keyword,
            FieldKind::Integer => wire::FieldKind::Integer,
            FieldKind::Float => wire::FieldKind::Float,
            FieldKind::Bool => wire::FieldKind::Bool,
            FieldKind::Datetime => wire::FieldKind::Datetime,
        }
    }
}

/// Reads an index kind as it stands in a message.
///
/// # Errors
/// [`DecodeError`] on the field `kind` where it is missing or unknown.
pub fn field_kind(value: i32) -> Result<FieldKind, DecodeError> {
    wire::FieldKind::try_from(value).map_err(|_| unknown_enum(value, "kind"))?.try_into()
}

impl TryFrom<wire::VectorSpec> for VectorSpec {
    type Error = DecodeError;

    fn try_from(message: wire::VectorSpec) -> Result<Self, DecodeError> {
        let metric = wire::Metric::try_from(message.metric).map_err(|_| unknown_enum(message.metric, "metric"))?;
        let metric = Metric::try_from(metric)?;
        let scalar = wire::ScalarKind::try_from(message.scalar).map_err(|_| unknown_enum(message.scalar, "scalar"))?;
        let scalar = match scalar {
            wire::ScalarKind::Unspecified => ScalarKind::default_for(metric),
            wire::ScalarKind::F32 => ScalarKind::F32,
            wire::ScalarKind::F16 => ScalarKind::F16,
            wire::ScalarKind::I8 => ScalarKind::I8,
        };
        Ok(Self { dimension: message.dimension, metric, scalar })
    }
}

impl From<VectorSpec> for wire::VectorSpec {
    fn from(spec: VectorSpec) -> Self {
        Self {
            dimension: spec.dimension,
            metric: wire::Metric::from(spec.metric).into(),
            scalar: wire::ScalarKind::from(spec.scalar).into(),
        }
    }
}

impl TryFrom<wire::SparseSpec> for SparseSpec {
    type Error = DecodeError;

    fn try_from(message: wire::SparseSpec) -> Result<Self, DecodeError> {
        let modifier = wire::Modifier::try_from(message.modifier);
        let modifier = match modifier.map_err(|_| unknown_enum(message.modifier, "modifier"))? {
            wire::Modifier::None => Modifier::None,
            wire::Modifier::Idf => Modifier::Idf,
        };
        Ok(Self { modifier })
    }
}

impl From<SparseSpec> for wire::SparseSpec {
    fn from(spec: SparseSpec) -> Self {
        let modifier = match spec.modifier {
            Modifier::None => wire::Modifier::None,
            Modifier::Idf => wire::Modifier::Idf,
        };
        Self { modifier: modifier.into() }
    }
}

impl TryFrom<wire::MultiSpec> for MultiSpec {
    type Error = DecodeError;

    fn try_from(message: wire::MultiSpec) -> Result<Self, DecodeError> {
        let metric = wire::Metric::try_from(message.metric).map_err(|_| unknown_enum(message.metric, "metric"))?;
        Ok(Self { dimension: message.dimension, metric: metric.try_into()? })
    }
}

impl From<MultiSpec> for wire::MultiSpec {
    fn from(spec: MultiSpec) -> Self {
        Self { dimension: spec.dimension, metric: wire::Metric::from(spec.metric).into() }
    }
}

impl From<wire::IndexSpec> for IndexSpec {
    fn from(message: wire::IndexSpec) -> Self {
        let or_default = |given: u32, default: u32| if given == 0 { default } else { given };
        let default = Self::default();
        Self {
            m: or_default(message.m, default.m),
            ef_construction: or_default(message.ef_construction, default.ef_construction),
            ef_search: or_default(message.ef_search, default.ef_search),
            seal_points: or_default(message.seal_points, default.seal_points),
        }
    }
}

impl From<IndexSpec> for wire::IndexSpec {
    fn from(spec: IndexSpec) -> Self {
        Self {
            m: spec.m,
            ef_construction: spec.ef_construction,
            ef_search: spec.ef_search,
            seal_points: spec.seal_points,
        }
    }
}

impl From<wire::DocumentSpec> for DocumentSpec {
    fn from(message: wire::DocumentSpec) -> Self {
        Self { embedder: message.embedder, vector: message.vector, text_field: message.text_field }
    }
}

impl From<DocumentSpec> for wire::DocumentSpec {
    fn from(spec: DocumentSpec) -> Self {
        Self { embedder: spec.embedder, vector: spec.vector, text_field: spec.text_field }
    }
}

impl TryFrom<wire::CollectionSpec> for CollectionSpec {
    type Error = DecodeError;

    fn try_from(message: wire::CollectionSpec) -> Result<Self, DecodeError> {
        Ok(Self {
            name: message.name,
            vectors: named(message.vectors, "vectors")?,
            payload_indexes: field_kinds(message.payload_indexes, "payload_indexes")?,
            shard_count: message.shard_count,
            replication_factor: message.replication_factor,
            routing_separator: message.routing_separator,
            index: message.index.unwrap_or_default().into(),
            documents: message.documents.map(Into::into),
            sparse_vectors: named(message.sparse_vectors, "sparse_vectors")?,
            multi_vectors: named(message.multi_vectors, "multi_vectors")?,
        })
    }
}

impl From<CollectionSpec> for wire::CollectionSpec {
    fn from(spec: CollectionSpec) -> Self {
        Self {
            name: spec.name,
            vectors: spec.vectors.into_iter().map(|(name, spec)| (name, spec.into())).collect(),
            payload_indexes: field_kinds_to_wire(spec.payload_indexes),
            shard_count: spec.shard_count,
            replication_factor: spec.replication_factor,
            routing_separator: spec.routing_separator,
            index: Some(spec.index.into()),
            documents: spec.documents.map(Into::into),
            sparse_vectors: spec.sparse_vectors.into_iter().map(|(name, spec)| (name, spec.into())).collect(),
            multi_vectors: spec.multi_vectors.into_iter().map(|(name, spec)| (name, spec.into())).collect(),
        }
    }
}

impl TryFrom<wire::UpdateCollection> for CollectionUpdate {
    type Error = DecodeError;

    fn try_from(message: wire::UpdateCollection) -> Result<Self, DecodeError> {
        let index = message.index.unwrap_or_default();
        Ok(Self {
            name: message.name,
            add_payload_indexes: field_kinds(message.add_payload_indexes, "add_payload_indexes")?,
            drop_payload_indexes: message.drop_payload_indexes,
            m: index.m,
            ef_construction: index.ef_construction,
            ef_search: index.ef_search,
            seal_points: index.seal_points,
            sparse_vectors: named(message.sparse_vectors, "sparse_vectors")?,
            add_vectors: named(message.add_vectors, "add_vectors")?,
            add_sparse_vectors: named(message.add_sparse_vectors, "add_sparse_vectors")?,
            add_multi_vectors: named(message.add_multi_vectors, "add_multi_vectors")?,
        })
    }
}

impl From<CollectionUpdate> for wire::UpdateCollection {
    fn from(update: CollectionUpdate) -> Self {
        Self {
            name: update.name,
            add_payload_indexes: field_kinds_to_wire(update.add_payload_indexes),
            drop_payload_indexes: update.drop_payload_indexes,
            index: Some(wire::IndexSpec {
                m: update.m,
                ef_construction: update.ef_construction,
                ef_search: update.ef_search,
                seal_points: update.seal_points,
            }),
            sparse_vectors: update.sparse_vectors.into_iter().map(|(name, spec)| (name, spec.into())).collect(),
            add_vectors: update.add_vectors.into_iter().map(|(name, spec)| (name, spec.into())).collect(),
            add_sparse_vectors: update.add_sparse_vectors.into_iter().map(|(name, spec)| (name, spec.into())).collect(),
            add_multi_vectors: update.add_multi_vectors.into_iter().map(|(name, spec)| (name, spec.into())).collect(),
        }
    }
}

impl TryFrom<wire::CollectionInfo> for Collection {
    type Error = DecodeError;

    fn try_from(message: wire::CollectionInfo) -> Result<Self, DecodeError> {
        let spec = required(message.spec, "spec")?.try_into();
        Ok(Self {
            id: CollectionId(message.id),
            spec: spec.map_err(|error: DecodeError| error.within("spec"))?,
            shards: message.shards.into_iter().map(ShardId).collect(),
        })
    }
}

impl From<Collection> for wire::CollectionInfo {
    fn from(collection: Collection) -> Self {
        Self {
            id: collection.id.0,
            spec: Some(collection.spec.into()),
            shards: collection.shards.into_iter().map(|shard| shard.0).collect(),
        }
    }
}

/// Reads settings by name, naming those that fail.
fn named<W, T>(specs: impl IntoIterator<Item = (String, W)>, field: &str) -> Result<BTreeMap<String, T>, DecodeError>
where
    T: TryFrom<W, Error = DecodeError>,
{
    let read = |(name, spec)| match T::try_from(spec) {
        Ok(spec) => Ok((name, spec)),
        Err(error) => Err(error.within(format_args!("{field}[{name:?}]"))),
    };
    specs.into_iter().map(read).collect()
}

fn field_kinds(
    kinds: impl IntoIterator<Item = (String, i32)>,
    field: &str,
) -> Result<BTreeMap<String, FieldKind>, DecodeError> {
    let read = |(path, kind)| match field_kind(kind) {
        Ok(kind) => Ok((path, kind)),
        Err(error) => Err(DecodeError { field: format!("{field}[{path:?}]"), ..error }),
    };
    kinds.into_iter().map(read).collect()
}

fn field_kinds_to_wire<C: FromIterator<(String, i32)>>(kinds: BTreeMap<String, FieldKind>) -> C {
    kinds.into_iter().map(|(path, kind)| (path, wire::FieldKind::from(kind).into())).collect()
}
