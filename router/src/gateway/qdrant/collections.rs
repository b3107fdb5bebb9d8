//! Collections: created, described, changed, dropped.
//!
//! What has effect: vectors (size, distance, multivector_config), sparse vectors (modifier), `shard_number`,
//! `replication_factor` (an even number counts as the next odd one: never fewer replicas than asked for), `hnsw_config.m` and
//! `.ef_construct`, and `strict_mode_config` (see `strict`). Everything else that Qdrant's clients send is taken,
//! told again, and has none.
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use axum::extract::{Path, State};
use nearring_proto::collection::{
    Collection, CollectionSpec, CollectionUpdate, FieldKind, IndexSpec, Modifier, MultiSpec, SparseSpec, VectorSpec,
};
use nearring_proto::filter::Filter;
use nearring_proto::placement::table::AliasAction;
use nearring_proto::vector::{Metric, ScalarKind};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, Asked, Body, Door, not_supported};
use crate::failure::{Error, Kind};
use crate::gateway::console::furthest;
use crate::pipeline::Pipeline;
use crate::snapshot::restore::MARK;
use crate::strict::Limits;

/// `PUT /collections/{name}`.
#[derive(Deserialize, JsonSchema, Debug, Default)]
pub(super) struct Create {
    #[serde(default)]
    vectors: Option<VectorParams>,
    #[serde(default)]
    sparse_vectors: Option<BTreeMap<String, Option<SparseParams>>>,
    #[serde(default)]
    shard_number: Option<NonZeroU32>,
    #[serde(default)]
    replication_factor: Option<NonZeroU32>,
    #[serde(default)]
    hnsw_config: Option<Hnsw>,
    #[serde(default)]
    sharding_method: Option<String>,
    #[serde(flatten)]
    _echoed: Echoed,
}

/// What is only told again; read for its shape.
#[derive(Deserialize, JsonSchema, Debug, Default)]
struct Echoed {
    #[serde(default, rename = "optimizers_config")]
    _optimizers: Option<Map<String, Value>>,
    #[serde(default, rename = "wal_config")]
    _wal: Option<Map<String, Value>>,
    #[serde(default, rename = "strict_mode_config")]
    _strict_mode: Option<Limits>,
    #[serde(default, rename = "metadata")]
    _metadata: Option<Map<String, Value>>,
    #[serde(default, rename = "quantization_config")]
    _quantization: Option<Quantization>,
    #[serde(default, rename = "on_disk_payload")]
    _on_disk_payload: Option<bool>,
    #[serde(default, rename = "write_consistency_factor")]
    _write_consistency_factor: Option<NonZeroU32>,
    #[serde(default, rename = "read_fan_out_factor")]
    _read_fan_out_factor: Option<u32>,
}

#[derive(Deserialize, JsonSchema, Debug)]
#[serde(untagged)]
enum Quantization {
    Kind(#[allow(dead_code, reason = "read for its shape")] Map<String, Value>),
    Word(#[allow(dead_code, reason = "read for its shape")] String),
}

#[derive(JsonSchema, Debug)]
#[schemars(untagged)]
enum VectorParams {
    One(OneVector),
    Named(BTreeMap<String, OneVector>),
}

/// Told apart before they are read, so that an error is about what was meant.
impl<'de> Deserialize<'de> for VectorParams {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let map = Map::deserialize(from)?;
        let one = ["size", "distance"].iter().any(|key| map.get(*key).is_some_and(|value| !value.is_object()));
        let map = Value::Object(map);
        match one {
            true => serde_json::from_value(map).map(Self::One),
            false => serde_json::from_value(map).map(Self::Named),
        }
        .map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize, JsonSchema, Debug)]
struct OneVector {
    size: u32,
    distance: Distance,
    #[serde(default)]
    multivector_config: Option<MultiParams>,
}

/// What is beside the modifier (`index`) is told again.
#[derive(Deserialize, JsonSchema, Debug, Default)]
struct SparseParams {
    #[serde(default)]
    modifier: Option<SparseModifier>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum SparseModifier {
    None,
    Idf,
}

impl From<SparseModifier> for Modifier {
    fn from(modifier: SparseModifier) -> Self {
        match modifier {
            SparseModifier::None => Modifier::None,
            SparseModifier::Idf => Modifier::Idf,
        }
    }
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
struct MultiParams {
    #[serde(rename = "comparator")]
    _comparator: Comparator,
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Comparator {
    MaxSim,
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
enum Distance {
    Cosine,
    Euclid,
    Dot,
    Manhattan,
}

#[derive(Deserialize, JsonSchema, Debug, Default, Clone, Copy)]
struct Hnsw {
    #[serde(default)]
    m: Option<u32>,
    #[serde(default)]
    ef_construct: Option<u32>,
}

impl Hnsw {
    /// # Errors
    /// Where a setting is below what Qdrant takes; what is merely beyond what is kept here is clamped.
    fn check(&self) -> Result<(), Error> {
        match self.ef_construct {
            Some(ef @ 0..4) => Err(super::out_of_bounds(
                "hnsw_config.ef_construct",
                format!("value {ef} invalid, must be 4 or larger"),
            )),
            _ => Ok(()),
        }
    }
}

/// The longest vector that Qdrant knows.
const DIMENSION_MAX: u32 = 65_536;

impl OneVector {
    /// Adds it to the settings, as the kind that it is.
    fn add(&self, name: String, spec: &mut CollectionSpec) -> Result<(), Error> {
        if !(1..=DIMENSION_MAX).contains(&self.size) {
            let field = if name.is_empty() { "vectors.size".to_owned() } else { format!("vectors.{name}.size") };
            let reason = format!("value {} invalid, must be from 1 to {DIMENSION_MAX}", self.size);
            return Err(super::out_of_bounds(field, reason));
        }
        let metric = match self.distance {
            Distance::Cosine => Metric::Cosine,
            Distance::Euclid => Metric::L2,
            Distance::Dot => Metric::Dot,
            Distance::Manhattan => Metric::L1,
        };
        if self.multivector_config.is_some() {
            spec.multi_vectors.insert(name, MultiSpec { dimension: self.size, metric });
        } else {
            let scalar = ScalarKind::default_for(metric);
            spec.vectors.insert(name, VectorSpec { dimension: self.size, metric, scalar });
        }
        Ok(())
    }
}

/// Which parts of a creation are kept to be told again. What has effect is told from the collection itself.
const ECHOED: [&str; 12] = [
    "hnsw_config",
    "optimizers_config",
    "wal_config",
    "quantization_config",
    "strict_mode_config",
    "metadata",
    "on_disk_payload",
    "write_consistency_factor",
    "read_fan_out_factor",
    "sharding_method",
    "vectors",
    "sparse_vectors",
];
/// The key of what is told again.
pub(super) const ATTRIBUTE: &str = "qdrant";

pub(super) async fn create(
    State(door): State<Door>,
    Path(name): Path<String>,
    asked: Asked,
    Body(body): Body<Value>,
) -> Answer<bool> {
    let (spec, kept) = settings(name, body)?;
    let name = spec.name.clone();
    match door.pipeline.create_collection(spec).await {
        Ok(_) => {}
        Err(error) if error.kind == Kind::AlreadyExists => {
            return Err(
                Error::new(Kind::AlreadyExists, format!("Wrong input: Collection `{name}` already exists!")).into()
            );
        }
        Err(error) => return Err(error.into()),
    }
    if !kept.is_empty() {
        door.pipeline.set_attribute(&name, ATTRIBUTE, Value::Object(kept).to_string()).await?;
    }
    Ok(asked.told(true))
}

/// The settings that a creation asks for, and the part of it that is kept to be told again.
pub(super) fn settings(name: String, body: Value) -> Result<(CollectionSpec, Map<String, Value>), Error> {
    let Create { vectors, sparse_vectors, shard_number, replication_factor, hnsw_config, sharding_method, _echoed } =
        super::typed(&body)?;
    if sharding_method.is_some_and(|method| method != "auto") {
        return Err(not_supported("custom sharding").0);
    }
    let hnsw = hnsw_config.unwrap_or_default();
    hnsw.check()?;
    let defaults = IndexSpec::default();
    let mut spec = CollectionSpec {
        name,
        vectors: BTreeMap::new(),
        payload_indexes: BTreeMap::new(),
        shard_count: shard_number.map_or(0, NonZeroU32::get),
        replication_factor: replication_factor.map_or(0, |wanted| wanted.get() | 1),
        routing_separator: String::new(),
        index: IndexSpec {
            // 0 asks Qdrant for no graph at all; here that is not a choice.
            m: hnsw.m.filter(|m| *m > 0).map_or(defaults.m, |m| m.clamp(4, 128)),
            ef_construction: hnsw.ef_construct.map_or(defaults.ef_construction, |ef| ef.clamp(8, 4096)),
            ..defaults
        },
        documents: None,
        sparse_vectors: BTreeMap::new(),
        multi_vectors: BTreeMap::new(),
    };
    match vectors {
        None => {}
        Some(VectorParams::One(one)) => one.add(String::new(), &mut spec)?,
        Some(VectorParams::Named(named)) => {
            named.into_iter().try_for_each(|(name, one)| one.add(name, &mut spec))?;
        }
    }
    for (name, params) in sparse_vectors.unwrap_or_default() {
        let modifier = params.unwrap_or_default().modifier.map_or(Modifier::None, Into::into);
        spec.sparse_vectors.insert(name, SparseSpec { modifier });
    }
    let mut kept = Map::new();
    if let Value::Object(body) = body {
        kept.extend(body.into_iter().filter(|(key, value)| ECHOED.contains(&key.as_str()) && !value.is_null()));
    }
    Ok((spec, kept))
}

/// What was sent when the collection was created or changed, and has no effect but to be told again.
async fn echo(pipeline: &Pipeline, name: &str) -> Result<Map<String, Value>, Error> {
    match serde_json::from_str(&pipeline.attribute(name, ATTRIBUTE).await?) {
        Ok(Value::Object(kept)) => Ok(kept),
        _ => Ok(Map::new()),
    }
}

/// Lays what is given over what there is, objects part by part. A null that is given takes effect only where `clears`.
fn overlay(into: &mut Value, given: &Value, clears: bool) {
    match (into, given) {
        (Value::Object(into), Value::Object(given)) => {
            for (key, value) in given {
                if value.is_null() {
                    if clears {
                        into.remove(key);
                    }
                    continue;
                }
                overlay(into.entry(key.clone()).or_insert(Value::Null), value, clears);
            }
        }
        (into, given) => *into = given.clone(),
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
    let collection = find(&door.pipeline, &name).await?;
    let points = door.pipeline.count(&name, None, &asked.reads()?).await?.count;
    let indexed = indexed(&door.pipeline, &collection).await?;
    let echo = echo(&door.pipeline, &name).await?;
    let schema = schema(&door.pipeline, &collection.spec, &echo, &asked).await?;
    let mut told = info(&collection.spec, points, &indexed, &echo, schema);
    if !door.pipeline.attribute(&name, MARK).await?.is_empty() {
        let message = "it is being restored from a snapshot, or that did not end; restore the same again, or delete it";
        told["warnings"] = json!([{"message": message}]);
    }
    Ok(asked.told(told))
}

/// The payload indexes: those that were asked for here as they were written then, and those made elsewhere.
async fn schema(
    pipeline: &Pipeline,
    spec: &CollectionSpec,
    echo: &Map<String, Value>,
    asked: &Asked,
) -> Result<Map<String, Value>, Error> {
    let mut schema = Map::new();
    for (key, parameters) in echo.get(SCHEMA).and_then(Value::as_object).into_iter().flatten() {
        let mut entry = json!({"data_type": parameters.get("type").cloned().unwrap_or_default()});
        if parameters.as_object().is_some_and(|parameters| parameters.len() > 1) {
            entry["params"] = parameters.clone();
        }
        schema.insert(key.clone(), entry);
    }
    let declared: BTreeSet<String> = schema.keys().map(|key| super::filter::path(key)).collect();
    for (path, kind) in spec.payload_indexes.iter().filter(|(path, _)| !declared.contains(*path)) {
        schema.insert(path.clone(), json!({"data_type": data_type(*kind)}));
    }
    for (key, entry) in &mut schema {
        let there = Filter::Exists(super::filter::path(key));
        entry["points"] = json!(pipeline.count(&spec.name, Some(there), &asked.reads()?).await?.count);
    }
    Ok(schema)
}

/// How far searches are served from segments.
struct Indexed {
    /// Vectors in installed segments, over all shards, and those that are searched where they lie.
    vectors: u64,
    segments: u64,
    /// No shard has more in its tail than is scanned in no time, nor a segment that is being built.
    green: bool,
}

/// A tail up to here is scanned as fast as a graph is walked.
const TAIL_OF_NO_ACCOUNT: u64 = 2_000;

/// Of each shard the replica that is furthest counts.
async fn indexed(pipeline: &Pipeline, collection: &Collection) -> Result<Indexed, Error> {
    let status = pipeline.cluster_status().await?;
    let furthest = furthest(&status, collection);
    let mut indexed = Indexed { vectors: 0, segments: 0, green: furthest.len() == collection.shards.len() };
    for replica in furthest {
        indexed.vectors += replica.segments.iter().map(|segment| segment.live).sum::<u64>() + replica.resident_vectors;
        indexed.segments += replica.segments.len() as u64;
        indexed.green &= replica.tail_vectors <= TAIL_OF_NO_ACCOUNT && replica.pending_seals == 0;
    }
    Ok(indexed)
}

fn data_type(kind: FieldKind) -> &'static str {
    match kind {
        FieldKind::Keyword => "keyword",
        FieldKind::Integer => "integer",
        FieldKind::Float => "float",
        FieldKind::Bool => "bool",
        FieldKind::Datetime => "datetime",
    }
}

/// What the collection was set up with, as its description tells it.
pub(super) async fn config(pipeline: &Pipeline, collection: &Collection) -> Result<Value, Error> {
    let echo = echo(pipeline, &collection.spec.name).await?;
    let indexed = Indexed { vectors: 0, segments: 0, green: true };
    Ok(info(&collection.spec, 0, &indexed, &echo, Map::new())["config"].take())
}

fn info(
    spec: &CollectionSpec,
    points: u64,
    indexed: &Indexed,
    echo: &Map<String, Value>,
    schema: Map<String, Value>,
) -> Value {
    let vector = |name: &str, dimension: u32, metric: Metric| {
        let distance = match metric {
            Metric::Cosine => "Cosine",
            Metric::L2 => "Euclid",
            Metric::L1 => "Manhattan",
            Metric::Dot => "Dot",
        };
        // The unnamed vector is sent alone, or under its empty name.
        let sent = echo.get("vectors").and_then(|sent| sent.get(name).or(name.is_empty().then_some(sent)));
        let mut told = sent.filter(|sent| sent.is_object()).cloned().unwrap_or_else(|| json!({}));
        overlay(&mut told, &json!({"size": dimension, "distance": distance}), false);
        told
    };
    let dense = spec.vectors.iter().map(|(name, spec)| (name.clone(), vector(name, spec.dimension, spec.metric)));
    let multi = spec.multi_vectors.iter().map(|(name, spec)| {
        let mut told = vector(name, spec.dimension, spec.metric);
        overlay(&mut told, &json!({"multivector_config": {"comparator": "max_sim"}}), false);
        (name.clone(), told)
    });
    let mut vectors: Map<String, Value> = dense.chain(multi).collect();
    let vectors = match vectors.remove("") {
        Some(only) if vectors.is_empty() => only,
        Some(one) => {
            vectors.insert(String::new(), one);
            Value::Object(vectors)
        }
        None => Value::Object(vectors),
    };
    let mut params = json!({
        "vectors": vectors,
        "shard_number": spec.shard_count,
        "replication_factor": spec.replication_factor,
        "write_consistency_factor": spec.replication_factor / 2 + 1,
        "on_disk_payload": true,
    });
    let mut config = json!({
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
    });
    if !spec.sparse_vectors.is_empty() {
        let told = |(name, spec): (&String, &SparseSpec)| {
            let sent = echo.get("sparse_vectors").and_then(|sent| sent.get(name)).filter(|sent| sent.is_object());
            let mut told = sent.cloned().unwrap_or_else(|| json!({}));
            match spec.modifier {
                Modifier::Idf => overlay(&mut told, &json!({"modifier": "idf"}), false),
                Modifier::None => drop(told.as_object_mut().map(|told| told.remove("modifier"))),
            }
            (name.clone(), told)
        };
        params["sparse_vectors"] = Value::Object(spec.sparse_vectors.iter().map(told).collect());
    }
    for key in ["on_disk_payload", "write_consistency_factor", "read_fan_out_factor", "sharding_method"] {
        if let Some(sent) = echo.get(key) {
            params[key] = sent.clone();
        }
    }
    config["params"] = params;
    for (sent, told) in [
        ("hnsw_config", "hnsw_config"),
        ("optimizers_config", "optimizer_config"),
        ("wal_config", "wal_config"),
        ("quantization_config", "quantization_config"),
        ("strict_mode_config", "strict_mode_config"),
        ("metadata", "metadata"),
    ] {
        if let Some(sent) = echo.get(sent) {
            overlay(&mut config[told], sent, false);
        }
    }
    json!({
        "status": if indexed.green { "green" } else { "yellow" },
        "optimizer_status": "ok",
        "points_count": points,
        "indexed_vectors_count": indexed.vectors,
        "segments_count": indexed.segments,
        "config": config,
        "payload_schema": schema,
    })
}

/// `PATCH /collections/{name}`.
#[derive(Deserialize, JsonSchema, Debug, Default)]
pub(super) struct Update {
    #[serde(default)]
    hnsw_config: Option<Hnsw>,
    #[serde(default, rename = "vectors")]
    _vectors: Option<BTreeMap<String, Map<String, Value>>>,
    #[serde(default)]
    sparse_vectors: Option<BTreeMap<String, SparseParams>>,
    #[serde(default, rename = "params")]
    _params: Option<Echoed>,
    #[serde(flatten)]
    _echoed: Echoed,
}

pub(super) async fn update(
    State(door): State<Door>,
    Path(name): Path<String>,
    asked: Asked,
    Body(body): Body<Value>,
) -> Answer<bool> {
    let spec = find(&door.pipeline, &name).await?.spec;
    let Update { hnsw_config, sparse_vectors, .. } = super::typed(&body)?;
    let hnsw = hnsw_config.unwrap_or_default();
    hnsw.check()?;
    let mut modified = BTreeMap::new();
    for (vector, params) in sparse_vectors.unwrap_or_default() {
        let Some(known) = spec.sparse_vectors.get(&vector) else {
            return Err(Error::invalid("sparse_vectors", format!("Not existing vector name error: {vector}")).into());
        };
        let modifier = params.modifier.map_or(known.modifier, Into::into);
        modified.insert(vector, SparseSpec { modifier });
    }
    modified.retain(|vector, spec_now| spec.sparse_vectors.get(vector) != Some(spec_now));
    let changes_modifiers = !modified.is_empty();
    let update = CollectionUpdate {
        name: name.clone(),
        m: hnsw.m.filter(|m| *m > 0).map_or(0, |m| m.clamp(4, 128)),
        ef_construction: hnsw.ef_construct.map_or(0, |ef| ef.clamp(8, 4096)),
        sparse_vectors: modified,
        ..Default::default()
    };
    if (update.m, update.ef_construction) != (0, 0) || changes_modifiers {
        door.pipeline.update_collection(update).await?;
    }
    let mut kept = Value::Object(echo(&door.pipeline, &name).await?);
    let before = kept.clone();
    for (key, given) in body.as_object().into_iter().flatten() {
        match (key.as_str(), given) {
            // These are laid beside the others when a collection is created, and apart when it is changed.
            ("params", Value::Object(given)) => {
                for (key, value) in given.iter().filter(|(key, _)| ECHOED.contains(&key.as_str())) {
                    overlay(&mut kept[key], value, false);
                }
            }
            ("vectors", Value::Object(given)) => {
                for (vector, value) in given {
                    let alone = vector.is_empty() && kept["vectors"].get(vector).is_none();
                    let into = if alone { &mut kept["vectors"] } else { &mut kept["vectors"][vector] };
                    overlay(into, value, false);
                }
            }
            // Quantization that is switched off again.
            ("quantization_config", Value::String(_)) => drop(kept.as_object_mut().map(|kept| kept.remove(key))),
            (known, given) if ECHOED.contains(&known) && !given.is_null() => {
                overlay(&mut kept[key], given, known == "metadata");
            }
            _ => {}
        }
    }
    if kept != before {
        door.pipeline.set_attribute(&name, ATTRIBUTE, kept.to_string()).await?;
    }
    Ok(asked.told(true))
}

/// `PUT /collections/{name}/vectors/{vector}`.
#[derive(Deserialize, JsonSchema, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct AddVector {
    #[serde(default)]
    dense: Option<OneVector>,
    #[serde(default)]
    sparse: Option<SparseParams>,
}

/// Adds a vector, which points get when they are next written. What beside its shape has no effect is told again.
pub(super) async fn add_vector(
    State(door): State<Door>,
    Path((name, vector)): Path<(String, String)>,
    asked: Asked,
    Body(body): Body<Value>,
) -> Answer<Value> {
    let spec = find(&door.pipeline, &name).await?.spec;
    let AddVector { dense, sparse } = super::typed(&body)?;
    let mut added = CollectionSpec { vectors: BTreeMap::new(), ..spec.clone() };
    (added.sparse_vectors, added.multi_vectors) = Default::default();
    let (kind, kept_under) = match (dense, sparse) {
        (Some(dense), None) => {
            dense.add(vector.clone(), &mut added)?;
            ("dense", "vectors")
        }
        (None, Some(sparse)) => {
            let modifier = sparse.modifier.map_or(Modifier::None, Into::into);
            added.sparse_vectors.insert(vector.clone(), SparseSpec { modifier });
            ("sparse", "sparse_vectors")
        }
        _ => return Err(Error::invalid("body", "must have either dense or sparse").into()),
    };
    let there = spec.vector(&vector);
    if there.is_some() && there != added.vector(&vector) {
        let message = format!("Wrong input: Vector name `{vector}` already exists in the collection");
        return Err(Error::new(Kind::Invalid, message).into());
    }
    let update = CollectionUpdate {
        name: name.clone(),
        add_vectors: added.vectors,
        add_sparse_vectors: added.sparse_vectors,
        add_multi_vectors: added.multi_vectors,
        ..Default::default()
    };
    door.pipeline.update_collection(update).await?;
    let mut kept = Value::Object(echo(&door.pipeline, &name).await?);
    // The unnamed vector was sent alone; beside others it stands under its empty name.
    if kept_under == "vectors" && spec.vectors.contains_key("") && kept[kept_under].get("size").is_some() {
        kept[kept_under] = json!({"": kept[kept_under].take()});
    }
    kept[kept_under][&vector] = body[kind].clone();
    door.pipeline.set_attribute(&name, ATTRIBUTE, kept.to_string()).await?;
    Ok(asked.told(json!({"operation_id": 0, "status": "completed"})))
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
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct CreateIndex {
    field_name: String,
    #[serde(default)]
    field_schema: Option<FieldSchema>,
}

#[derive(Deserialize, JsonSchema, Debug)]
#[serde(untagged)]
enum FieldSchema {
    Kind(SchemaKind),
    Parameters { r#type: SchemaKind },
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum SchemaKind {
    Keyword,
    Integer,
    Float,
    Bool,
    Datetime,
    Uuid,
    Text,
    Geo,
}

impl SchemaKind {
    /// What such a field is indexed as; `None` for what is judged by the payload itself, without an index.
    pub(super) fn indexed(self) -> Option<FieldKind> {
        match self {
            Self::Keyword | Self::Uuid => Some(FieldKind::Keyword),
            Self::Integer => Some(FieldKind::Integer),
            Self::Float => Some(FieldKind::Float),
            Self::Bool => Some(FieldKind::Bool),
            Self::Datetime => Some(FieldKind::Datetime),
            Self::Text | Self::Geo => None,
        }
    }
}

/// Where index parameters are kept among what is told again.
pub(super) const SCHEMA: &str = "payload_schema";

/// The paths for which an index of this kind was asked for.
///
/// # Errors
/// Where the collection is not there.
pub(super) async fn declared(pipeline: &Pipeline, name: &str, kind: &str) -> Result<BTreeSet<String>, Error> {
    let kept = echo(pipeline, name).await?;
    let declared = kept.get(SCHEMA).and_then(Value::as_object).into_iter().flatten();
    let of_kind = declared.filter(|(_, parameters)| parameters.get("type").is_some_and(|found| found == kind));
    Ok(of_kind.map(|(path, _)| super::filter::path(path)).collect())
}

pub(super) async fn create_index(
    State(door): State<Door>,
    Path(name): Path<String>,
    asked: Asked,
    Body(body): Body<Value>,
) -> Answer<Value> {
    let spec = find(&door.pipeline, &name).await?.spec;
    let CreateIndex { field_name, field_schema } = super::typed(&body)?;
    let Some(FieldSchema::Kind(kind) | FieldSchema::Parameters { r#type: kind }) = field_schema else {
        return Err(Error::invalid("field_schema", "is missing; say what the field holds, as in \"keyword\"").into());
    };
    let path = super::filter::path(&field_name);
    super::strict::may_index(&door.pipeline, &name, &path)?;
    let indexed = kind.indexed();
    let before = spec.payload_indexes.get(&path).copied();
    if indexed != before {
        let update = CollectionUpdate {
            name: name.clone(),
            drop_payload_indexes: before.map(|_| path.clone()).into_iter().collect(),
            add_payload_indexes: indexed.map(|kind| (path.clone(), kind)).into_iter().collect(),
            ..Default::default()
        };
        door.pipeline.update_collection(update).await?;
    }
    let told = match &body["field_schema"] {
        Value::Object(parameters) => Value::Object(parameters.clone()),
        kind => json!({"type": kind}),
    };
    let mut kept = Value::Object(echo(&door.pipeline, &name).await?);
    if kept[SCHEMA][&field_name] != told {
        kept[SCHEMA][&field_name] = told;
        door.pipeline.set_attribute(&name, ATTRIBUTE, kept.to_string()).await?;
    }
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
        let drop_payload_indexes = vec![path.clone()];
        let update = CollectionUpdate { name: name.clone(), drop_payload_indexes, ..Default::default() };
        door.pipeline.update_collection(update).await?;
    }
    let mut kept = echo(&door.pipeline, &name).await?;
    let declared = kept.get_mut(SCHEMA).and_then(Value::as_object_mut);
    // However it was written: both spellings are one path.
    let before = declared.as_ref().map_or(0, |declared| declared.len());
    let after = declared.map_or(0, |declared| {
        declared.retain(|key, _| super::filter::path(key) != path);
        declared.len()
    });
    if after < before {
        door.pipeline.set_attribute(&name, ATTRIBUTE, Value::Object(kept).to_string()).await?;
    }
    Ok(asked.told(json!({"operation_id": 0, "status": "completed"})))
}

/// `POST /collections/aliases`.
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct Aliases {
    actions: Vec<Action>,
}

#[derive(Deserialize, JsonSchema, Debug)]
enum Action {
    #[serde(rename = "create_alias")]
    Create { collection_name: String, alias_name: String },
    #[serde(rename = "delete_alias")]
    Delete { alias_name: String },
    #[serde(rename = "rename_alias")]
    Rename { old_alias_name: String, new_alias_name: String },
}

impl From<Action> for AliasAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Create { collection_name: collection, alias_name: alias } => Self::Assign { alias, collection },
            Action::Delete { alias_name } => Self::Remove(alias_name),
            Action::Rename { old_alias_name: from, new_alias_name: to } => Self::Rename { from, to },
        }
    }
}

pub(super) async fn change_aliases(State(door): State<Door>, asked: Asked, Body(body): Body<Aliases>) -> Answer<bool> {
    door.pipeline.change_aliases(body.actions.into_iter().map(Into::into).collect()).await?;
    Ok(asked.told(true))
}

pub(super) async fn aliases(State(door): State<Door>, asked: Asked) -> Answer<Value> {
    Ok(asked.told(told_aliases(door.pipeline.aliases().await?, None)))
}

pub(super) async fn aliases_of(State(door): State<Door>, Path(name): Path<String>, asked: Asked) -> Answer<Value> {
    let name = find(&door.pipeline, &name).await?.spec.name;
    Ok(asked.told(told_aliases(door.pipeline.aliases().await?, Some(&name))))
}

fn told_aliases(aliases: BTreeMap<String, String>, of: Option<&str>) -> Value {
    let of = aliases.into_iter().filter(|(_, collection)| of.is_none_or(|of| of == collection));
    let told: Vec<Value> =
        of.map(|(alias, collection)| json!({"alias_name": alias, "collection_name": collection})).collect();
    json!({"aliases": told})
}
