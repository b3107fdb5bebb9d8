//! Collections: created, described, changed, dropped.
//!
//! What has effect: vectors (size, distance), `shard_number`, `replication_factor` (an even number counts as the next odd one:
//! never fewer replicas than asked for), `hnsw_config.m` and `.ef_construct`. Everything else that Qdrant's clients send is
//! taken and has none.
use std::collections::BTreeMap;

use axum::extract::{Path, State};
use nearring_proto::collection::{Collection, CollectionSpec, CollectionUpdate, FieldKind, IndexSpec, VectorSpec};
use nearring_proto::vector::{Metric, ScalarKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, Asked, Body, Door, not_supported};
use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;

/// `PUT /collections/{name}`.
#[derive(Deserialize, Debug, Default)]
pub(super) struct Create {
    #[serde(default)]
    vectors: Option<VectorParams>,
    #[serde(default)]
    sparse_vectors: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    shard_number: Option<u32>,
    #[serde(default)]
    replication_factor: Option<u32>,
    #[serde(default)]
    hnsw_config: Option<Hnsw>,
    #[serde(default)]
    sharding_method: Option<String>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged)]
enum VectorParams {
    One(OneVector),
    Named(BTreeMap<String, OneVector>),
}

#[derive(Deserialize, Debug)]
struct OneVector {
    size: u32,
    distance: Distance,
    #[serde(default)]
    multivector_config: Option<Value>,
}

#[derive(Deserialize, Debug, Clone, Copy)]
enum Distance {
    Cosine,
    Euclid,
    Dot,
    Manhattan,
}

#[derive(Deserialize, Debug, Default, Clone, Copy)]
struct Hnsw {
    #[serde(default)]
    m: Option<u32>,
    #[serde(default)]
    ef_construct: Option<u32>,
}

impl OneVector {
    fn spec(&self) -> Result<VectorSpec, Error> {
        if self.multivector_config.as_ref().is_some_and(|config| !config.is_null()) {
            return Err(not_supported("multivectors").0);
        }
        let metric = match self.distance {
            Distance::Cosine => Metric::Cosine,
            Distance::Euclid => Metric::L2,
            Distance::Dot => Metric::Dot,
            Distance::Manhattan => return Err(not_supported("distance Manhattan").0),
        };
        Ok(VectorSpec { dimension: self.size, metric, scalar: ScalarKind::default_for(metric) })
    }
}

pub(super) async fn create(
    State(door): State<Door>,
    Path(name): Path<String>,
    asked: Asked,
    Body(body): Body<Create>,
) -> Answer<bool> {
    if body.sparse_vectors.is_some_and(|sparse| !sparse.is_empty()) {
        return Err(not_supported("sparse vectors"));
    }
    if body.sharding_method.is_some_and(|method| method != "auto") {
        return Err(not_supported("custom sharding"));
    }
    let vectors = match body.vectors {
        None => BTreeMap::new(),
        Some(VectorParams::One(one)) => BTreeMap::from([(String::new(), one.spec()?)]),
        Some(VectorParams::Named(named)) => {
            named.iter().map(|(name, one)| Ok((name.clone(), one.spec()?))).collect::<Result<_, Error>>()?
        }
    };
    let hnsw = body.hnsw_config.unwrap_or_default();
    let defaults = IndexSpec::default();
    let spec = CollectionSpec {
        name,
        vectors,
        payload_indexes: BTreeMap::new(),
        shard_count: body.shard_number.unwrap_or(0),
        replication_factor: body.replication_factor.map_or(0, |wanted| wanted | 1),
        routing_separator: String::new(),
        index: IndexSpec {
            // 0 asks Qdrant for no graph at all; here that is not a choice.
            m: hnsw.m.filter(|m| *m > 0).map_or(defaults.m, |m| m.clamp(4, 128)),
            ef_construction: hnsw.ef_construct.map_or(defaults.ef_construction, |ef| ef.clamp(8, 4096)),
            ..defaults
        },
        documents: None,
    };
    let name = spec.name.clone();
    match door.pipeline.create_collection(spec).await {
        Ok(_) => Ok(asked.told(true)),
        Err(error) if error.kind == Kind::AlreadyExists => {
            Err(Error::new(Kind::AlreadyExists, format!("Wrong input: Collection `{name}` already exists!")).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The collection, or the words that Qdrant's clients know.
pub(super) async fn find(pipeline: &Pipeline, name: &str) -> Result<Collection, Error> {
    pipeline.describe_collection(name).await.map_err(|error| match error.kind {
        Kind::NotFound => Error::new(Kind::NotFound, format!("Not found: Collection `{name}` doesn't exist!")),
        _ => error,
    })
}

pub(super) async fn describe(State(door): State<Door>, Path(name): Path<String>, asked: Asked) -> Answer<Value> {
    let Collection { spec, .. } = find(&door.pipeline, &name).await?;
    let points = door.pipeline.count(&name, None, &asked.reads()?).await?.count;
    Ok(asked.told(info(&spec, points)))
}

fn info(spec: &CollectionSpec, points: u64) -> Value {
    let vector = |spec: &VectorSpec| {
        let distance = match spec.metric {
            Metric::Cosine => "Cosine",
            Metric::L2 => "Euclid",
            Metric::Dot => "Dot",
        };
        json!({"size": spec.dimension, "distance": distance})
    };
    let vectors = match spec.vectors.get("") {
        Some(only) if spec.vectors.len() == 1 => vector(only),
        _ => Value::Object(spec.vectors.iter().map(|(name, spec)| (name.clone(), vector(spec))).collect()),
    };
    let schema = |kind: &FieldKind| {
        let name = match kind {
            FieldKind::Keyword => "keyword",
            FieldKind::Integer => "integer",
            FieldKind::Float => "float",
            FieldKind::Bool => "bool",
            FieldKind::Datetime => "datetime",
        };
        json!({"data_type": name, "points": points})
    };
    let schema: Map<String, Value> =
        spec.payload_indexes.iter().map(|(path, kind)| (path.clone(), schema(kind))).collect();
    json!({
        "status": "green",
        "optimizer_status": "ok",
        "points_count": points,
        "indexed_vectors_count": points * spec.vectors.len() as u64,
        "segments_count": spec.shard_count,
        "config": {
            "params": {
                "vectors": vectors,
                "shard_number": spec.shard_count,
                "replication_factor": spec.replication_factor,
                "write_consistency_factor": spec.replication_factor / 2 + 1,
                "on_disk_payload": true,
            },
            "hnsw_config": {
                "m": spec.index.m,
                "ef_construct": spec.index.ef_construction,
                "full_scan_threshold": 10_000,
                "max_indexing_threads": 0,
                "on_disk": false,
            },
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "max_segment_size": null,
                "memmap_threshold": null,
                "indexing_threshold": spec.index.seal_points,
                "flush_interval_sec": 5,
                "max_optimization_threads": null,
            },
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
            "quantization_config": null,
        },
        "payload_schema": schema,
    })
}

/// `PATCH /collections/{name}`.
#[derive(Deserialize, Debug, Default)]
pub(super) struct Update {
    #[serde(default)]
    hnsw_config: Option<Hnsw>,
}

pub(super) async fn update(
    State(door): State<Door>,
    Path(name): Path<String>,
    asked: Asked,
    Body(body): Body<Update>,
) -> Answer<bool> {
    find(&door.pipeline, &name).await?;
    let hnsw = body.hnsw_config.unwrap_or_default();
    let update = CollectionUpdate {
        name,
        m: hnsw.m.filter(|m| *m > 0).map_or(0, |m| m.clamp(4, 128)),
        ef_construction: hnsw.ef_construct.map_or(0, |ef| ef.clamp(8, 4096)),
        ..Default::default()
    };
    if (update.m, update.ef_construction) != (0, 0) {
        door.pipeline.update_collection(update).await?;
    }
    Ok(asked.told(true))
}

pub(super) async fn delete(State(door): State<Door>, Path(name): Path<String>, asked: Asked) -> Answer<bool> {
    Ok(asked.told(door.pipeline.delete_collection(&name).await?))
}

pub(super) async fn exists(State(door): State<Door>, Path(name): Path<String>, asked: Asked) -> Answer<Value> {
    let exists = match door.pipeline.describe_collection(&name).await {
        Ok(_) => true,
        Err(error) if error.kind == Kind::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    Ok(asked.told(json!({"exists": exists})))
}

pub(super) async fn list(State(door): State<Door>, asked: Asked) -> Answer<Value> {
    let collections = door.pipeline.list_collections().await?;
    let names: Vec<Value> = collections.iter().map(|collection| json!({"name": collection.spec.name})).collect();
    Ok(asked.told(json!({"collections": names})))
}

/// `PUT index`.
#[derive(Deserialize, Debug)]
pub(super) struct CreateIndex {
    field_name: String,
    #[serde(default)]
    field_schema: Option<FieldSchema>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged)]
enum FieldSchema {
    Kind(SchemaKind),
    Parameters { r#type: SchemaKind },
}

#[derive(Deserialize, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum SchemaKind {
    Keyword,
    Integer,
    Float,
    Bool,
    Datetime,
    Uuid,
    Text,
    Geo,
}

pub(super) async fn create_index(
    State(door): State<Door>,
    Path(name): Path<String>,
    asked: Asked,
    Body(body): Body<CreateIndex>,
) -> Answer<Value> {
    find(&door.pipeline, &name).await?;
    let Some(FieldSchema::Kind(kind) | FieldSchema::Parameters { r#type: kind }) = body.field_schema else {
        return Err(Error::invalid("field_schema", "is missing; say what the field holds, as in \"keyword\"").into());
    };
    let kind = match kind {
        SchemaKind::Keyword | SchemaKind::Uuid => FieldKind::Keyword,
        SchemaKind::Integer => FieldKind::Integer,
        SchemaKind::Float => FieldKind::Float,
        SchemaKind::Bool => FieldKind::Bool,
        SchemaKind::Datetime => FieldKind::Datetime,
        // Conditions on these are judged by the payload itself, without an index.
        SchemaKind::Text | SchemaKind::Geo => {
            return Ok(asked.told(json!({"operation_id": 0, "status": "completed"})));
        }
    };
    let path = super::filter::path(&body.field_name);
    let add_payload_indexes = BTreeMap::from([(path, kind)]);
    door.pipeline.update_collection(CollectionUpdate { name, add_payload_indexes, ..Default::default() }).await?;
    Ok(asked.told(json!({"operation_id": 0, "status": "completed"})))
}

pub(super) async fn delete_index(
    State(door): State<Door>,
    Path((name, field)): Path<(String, String)>,
    asked: Asked,
) -> Answer<Value> {
    let spec = find(&door.pipeline, &name).await?.spec;
    let path = super::filter::path(&field);
    if spec.payload_indexes.contains_key(&path) {
        let drop_payload_indexes = vec![path];
        door.pipeline.update_collection(CollectionUpdate { name, drop_payload_indexes, ..Default::default() }).await?;
    }
    Ok(asked.told(json!({"operation_id": 0, "status": "completed"})))
}
