//! Answers of the REST door as protobuf.
use std::collections::BTreeMap;

use nearring_proto::qdrant as pb;
use serde_json::{Map, Value};

use super::plain;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn floats(value: &Value) -> Vec<f32> {
    items(value).iter().filter_map(Value::as_f64).map(|value| value as f32).collect()
}

/// A part of an object, where it is there and not null.
fn there<'a>(of: &'a Value, key: &str) -> Option<&'a Value> {
    of.get(key).filter(|value| !value.is_null())
}

/// The shards of a collection.
pub(super) fn shards(of: &Value) -> pb::CollectionClusterInfoResponse {
    let number = |of: &Value, key: &str| of[key].as_u64().unwrap_or_default();
    // Numbers of shards are small: they are counted up.
    let shard = |of: &Value| u32::try_from(number(of, "shard_id")).unwrap_or(u32::MAX);
    let state = |of: &Value| pb::ReplicaState::from_str_name(&text(&of["state"])).unwrap_or_default().into();
    let local = |of: &Value| pb::LocalShardInfo {
        shard_id: shard(of),
        points_count: number(of, "points_count"),
        state: state(of),
        shard_key: None,
    };
    let remote = |of: &Value| pb::RemoteShardInfo {
        shard_id: shard(of),
        peer_id: number(of, "peer_id"),
        state: state(of),
        shard_key: None,
    };
    pb::CollectionClusterInfoResponse {
        peer_id: number(of, "peer_id"),
        shard_count: number(of, "shard_count"),
        local_shards: items(&of["local_shards"]).iter().map(local).collect(),
        remote_shards: items(&of["remote_shards"]).iter().map(remote).collect(),
        ..Default::default()
    }
}

/// A value of a payload. Whole numbers that no `int64` holds are floating-point numbers.
pub(super) fn value(of: &Value) -> pb::Value {
    use pb::value::Kind;
    let kind = match of {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => match number.as_i64() {
            Some(value) => Kind::IntegerValue(value),
            None => Kind::DoubleValue(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(pb::ListValue { values: values.iter().map(value).collect() }),
        Value::Object(fields) => Kind::StructValue(pb::Struct { fields: payload(fields) }),
    };
    pb::Value { kind: Some(kind) }
}

fn payload(fields: &Map<String, Value>) -> BTreeMap<String, pb::Value> {
    fields.iter().map(|(key, field)| (key.clone(), value(field))).collect()
}

fn payload_of(of: &Value) -> BTreeMap<String, pb::Value> {
    of.get("payload").and_then(Value::as_object).map(payload).unwrap_or_default()
}

fn id(of: &Value) -> Option<pb::PointId> {
    use pb::point_id::PointIdOptions;
    let options = match of.as_u64() {
        Some(number) => PointIdOptions::Num(number),
        None => PointIdOptions::Uuid(of.as_str()?.to_owned()),
    };
    Some(pb::PointId { point_id_options: Some(options) })
}

fn vector(of: &Value) -> pb::VectorOutput {
    use pb::vector_output::Vector;
    // Clients older than the choice below read these; a dense vector is written twice for them, as Qdrant does.
    let (mut data, mut indices, mut vectors_count) = (Vec::new(), None, None);
    let vector = match of {
        Value::Object(sparse) => {
            let values = sparse.get("values").map(floats).unwrap_or_default();
            let index = |value: &Value| value.as_u64().and_then(|index| u32::try_from(index).ok());
            let places: Vec<u32> =
                sparse.get("indices").map(items).unwrap_or_default().iter().filter_map(index).collect();
            data.clone_from(&values);
            indices = Some(pb::SparseIndices { data: places.clone() });
            Vector::Sparse(pb::SparseVector { values, indices: places })
        }
        Value::Array(rows) if rows.first().is_some_and(Value::is_array) => {
            let rows: Vec<pb::DenseVector> = rows.iter().map(|row| pb::DenseVector { data: floats(row) }).collect();
            data = rows.iter().flat_map(|row| row.data.iter().copied()).collect();
            vectors_count = u32::try_from(rows.len()).ok();
            Vector::MultiDense(pb::MultiDenseVector { vectors: rows })
        }
        other => {
            let values = floats(other);
            data.clone_from(&values);
            Vector::Dense(pb::DenseVector { data: values })
        }
    };
    #[allow(deprecated, reason = "older clients read them")]
    pb::VectorOutput { data, indices, vectors_count, vector: Some(vector) }
}

/// The vectors of a point: one, where it is a list; a sparse one never stands alone.
fn vectors(of: &Value) -> Option<pb::VectorsOutput> {
    use pb::vectors_output::VectorsOptions;
    let options = match there(of, "vector")? {
        Value::Object(named) => {
            let vectors = named.iter().map(|(name, one)| (name.clone(), vector(one))).collect();
            VectorsOptions::Vectors(pb::NamedVectorsOutput { vectors })
        }
        one => VectorsOptions::Vector(vector(one)),
    };
    Some(pb::VectorsOutput { vectors_options: Some(options) })
}

fn order_value(of: &Value) -> Option<pb::OrderValue> {
    use pb::order_value::Variant;
    let value = there(of, "order_value")?;
    let variant = match value.as_i64() {
        Some(whole) => Variant::Int(whole),
        None => Variant::Float(value.as_f64()?),
    };
    Some(pb::OrderValue { variant: Some(variant) })
}

/// A stored point.
pub(super) fn retrieved(of: &Value) -> pb::RetrievedPoint {
    pb::RetrievedPoint {
        id: of.get("id").and_then(id),
        payload: payload_of(of),
        vectors: vectors(of),
        shard_key: None,
        order_value: order_value(of),
    }
}

/// A list of stored points.
pub(super) fn all_retrieved(of: &Value) -> Vec<pb::RetrievedPoint> {
    items(of).iter().map(retrieved).collect()
}

/// Where the next page begins.
pub(super) fn next_page(of: &Value) -> Option<pb::PointId> {
    there(of, "next_page_offset").and_then(id)
}

fn scored(of: &Value) -> pb::ScoredPoint {
    pb::ScoredPoint {
        id: of.get("id").and_then(id),
        payload: payload_of(of),
        score: of.get("score").and_then(Value::as_f64).unwrap_or_default() as f32,
        version: of.get("version").and_then(Value::as_u64).unwrap_or_default(),
        vectors: vectors(of),
        shard_key: None,
        order_value: order_value(of),
    }
}

/// The hits of a query.
pub(super) fn hits(of: &Value) -> Vec<pb::ScoredPoint> {
    items(&of["points"]).iter().map(scored).collect()
}

/// The hits of several queries.
pub(super) fn batches(of: &Value) -> Vec<pb::BatchResult> {
    items(of).iter().map(|one| pb::BatchResult { result: hits(one) }).collect()
}

/// Hits in groups.
pub(super) fn groups(of: &Value) -> pb::GroupsResult {
    use pb::group_id::Kind;
    let kind = |of: &Value| match (of.as_u64(), of.as_i64(), of.as_str()) {
        (Some(number), ..) => Some(Kind::UnsignedValue(number)),
        (None, Some(number), _) => Some(Kind::IntegerValue(number)),
        (None, None, Some(text)) => Some(Kind::StringValue(text.to_owned())),
        (None, None, None) => None,
    };
    let group = |of: &Value| pb::PointGroup {
        id: Some(pb::GroupId { kind: kind(&of["id"]) }),
        hits: items(&of["hits"]).iter().map(scored).collect(),
        lookup: there(of, "lookup").map(retrieved),
    };
    pb::GroupsResult { groups: items(&of["groups"]).iter().map(group).collect() }
}

/// Values of a field, counted.
pub(super) fn facet(of: &Value) -> Vec<pb::FacetHit> {
    use pb::facet_value::Variant;
    let variant = |of: &Value| match of {
        Value::Bool(value) => Some(Variant::BoolValue(*value)),
        Value::String(text) => Some(Variant::StringValue(text.clone())),
        other => other.as_i64().map(Variant::IntegerValue),
    };
    let hit = |of: &Value| pb::FacetHit {
        value: Some(pb::FacetValue { variant: variant(&of["value"]) }),
        count: of["count"].as_u64().unwrap_or_default(),
    };
    items(&of["hits"]).iter().map(hit).collect()
}

/// Distances within a sample, in pairs.
pub(super) fn matrix_pairs(of: &Value) -> pb::SearchMatrixPairs {
    let pair = |of: &Value| pb::SearchMatrixPair {
        a: id(&of["a"]),
        b: id(&of["b"]),
        score: of["score"].as_f64().unwrap_or_default() as f32,
    };
    pb::SearchMatrixPairs { pairs: items(&of["pairs"]).iter().map(pair).collect() }
}

/// The same by places in the list of ids.
pub(super) fn matrix_offsets(of: &Value) -> pb::SearchMatrixOffsets {
    let places = |of: &Value| items(of).iter().filter_map(Value::as_u64).collect();
    pb::SearchMatrixOffsets {
        offsets_row: places(&of["offsets_row"]),
        offsets_col: places(&of["offsets_col"]),
        scores: floats(&of["scores"]),
        ids: items(&of["ids"]).iter().filter_map(id).collect(),
    }
}

/// A write that is done.
pub(super) fn updated(of: &Value) -> pb::UpdateResult {
    pb::UpdateResult { operation_id: of["operation_id"].as_u64(), status: pb::UpdateStatus::Completed.into() }
}

/// Writes that are done.
pub(super) fn all_updated(of: &Value) -> Vec<pb::UpdateResult> {
    items(of).iter().map(updated).collect()
}

/// Aliases and what they stand for.
pub(super) fn aliases(of: &Value) -> Vec<pb::AliasDescription> {
    let alias = |of: &Value| pb::AliasDescription {
        alias_name: text(&of["alias_name"]),
        collection_name: text(&of["collection_name"]),
    };
    items(&of["aliases"]).iter().map(alias).collect()
}

/// The names of collections.
pub(super) fn collections(of: &Value) -> Vec<pb::CollectionDescription> {
    items(&of["collections"]).iter().map(|of| pb::CollectionDescription { name: text(&of["name"]) }).collect()
}

fn quantization(of: &Value) -> Option<pb::QuantizationConfig> {
    use pb::quantization_config::Quantization;
    let (kind, settings) = of.as_object()?.iter().next()?;
    let quantization = match kind.as_str() {
        "scalar" => Quantization::Scalar(plain::from_json(settings)),
        "product" => Quantization::Product(plain::from_json(settings)),
        "binary" => Quantization::Binary(plain::from_json(settings)),
        "turbo" => Quantization::Turboquant(plain::from_json(settings)),
        _ => return None,
    };
    Some(pb::QuantizationConfig { quantization: Some(quantization) })
}

fn vector_params(of: &Value) -> pb::VectorParams {
    let distance = pb::Distance::from_str_name(of["distance"].as_str().unwrap_or_default());
    let datatype = match of["datatype"].as_str() {
        Some("float32") => Some(pb::Datatype::Float32),
        Some("float16") => Some(pb::Datatype::Float16),
        Some("uint8") => Some(pb::Datatype::Uint8),
        _ => None,
    };
    let comparator = pb::MultiVectorComparator::MaxSim.into();
    #[allow(deprecated, reason = "clients read it")]
    pb::VectorParams {
        size: of["size"].as_u64().unwrap_or_default(),
        distance: distance.unwrap_or_default().into(),
        hnsw_config: there(of, "hnsw_config").map(plain::from_json),
        quantization_config: there(of, "quantization_config").and_then(quantization),
        on_disk: of["on_disk"].as_bool(),
        datatype: datatype.map(Into::into),
        multivector_config: there(of, "multivector_config").map(|_| pb::MultiVectorConfig { comparator }),
        ..Default::default()
    }
}

fn vectors_config(of: &Value) -> pb::VectorsConfig {
    use pb::vectors_config::Config;
    let config = if of["size"].is_u64() {
        Config::Params(vector_params(of))
    } else {
        let named = of.as_object().into_iter().flatten();
        Config::ParamsMap(pb::VectorParamsMap {
            map: named.map(|(name, one)| (name.clone(), vector_params(one))).collect(),
        })
    };
    pb::VectorsConfig { config: Some(config) }
}

fn sparse_config(of: &Value) -> pb::SparseVectorConfig {
    let params = |of: &Value| pb::SparseVectorParams {
        index: there(of, "index").map(plain::from_json),
        modifier: (of["modifier"] == "idf").then(|| pb::Modifier::Idf.into()),
    };
    let named = of.as_object().into_iter().flatten();
    pb::SparseVectorConfig { map: named.map(|(name, one)| (name.clone(), params(one))).collect() }
}

fn schema(of: &Value) -> pb::PayloadSchemaInfo {
    use pb::PayloadSchemaType as Type;
    use pb::payload_index_params::IndexParams;
    let params = there(of, "params");
    let (kind, params) = match of["data_type"].as_str().unwrap_or_default() {
        "keyword" => (Type::Keyword, params.map(|of| IndexParams::KeywordIndexParams(plain::from_json(of)))),
        "integer" => (Type::Integer, params.map(|of| IndexParams::IntegerIndexParams(plain::from_json(of)))),
        "float" => (Type::Float, params.map(|of| IndexParams::FloatIndexParams(plain::from_json(of)))),
        "geo" => (Type::Geo, params.map(|of| IndexParams::GeoIndexParams(plain::from_json(of)))),
        "text" => (Type::Text, params.map(|of| IndexParams::TextIndexParams(plain::from_json(of)))),
        "bool" => (Type::Bool, params.map(|of| IndexParams::BoolIndexParams(plain::from_json(of)))),
        "datetime" => (Type::Datetime, params.map(|of| IndexParams::DatetimeIndexParams(plain::from_json(of)))),
        "uuid" => (Type::Uuid, params.map(|of| IndexParams::UuidIndexParams(plain::from_json(of)))),
        _ => (Type::UnknownType, None),
    };
    pb::PayloadSchemaInfo {
        data_type: kind.into(),
        params: params.map(|params| pb::PayloadIndexParams { index_params: Some(params) }),
        points: of["points"].as_u64(),
    }
}

/// A collection.
pub(super) fn collection(of: &Value) -> pb::CollectionInfo {
    let (config, params) = (&of["config"], &of["config"]["params"]);
    let count = |of: &Value| of.as_u64().and_then(|count| u32::try_from(count).ok());
    let status = match of["status"].as_str() {
        Some("green") => pb::CollectionStatus::Green,
        Some("yellow") => pb::CollectionStatus::Yellow,
        Some("red") => pb::CollectionStatus::Red,
        Some("grey") => pb::CollectionStatus::Grey,
        _ => pb::CollectionStatus::UnknownCollectionStatus,
    };
    let sharding = match params["sharding_method"].as_str() {
        Some("auto") => Some(pb::ShardingMethod::Auto),
        Some("custom") => Some(pb::ShardingMethod::Custom),
        _ => None,
    };
    #[allow(deprecated, reason = "clients read it")]
    let params = pb::CollectionParams {
        shard_number: count(&params["shard_number"]).unwrap_or_default(),
        on_disk_payload: params["on_disk_payload"].as_bool().unwrap_or_default(),
        vectors_config: Some(vectors_config(&params["vectors"])),
        replication_factor: count(&params["replication_factor"]),
        write_consistency_factor: count(&params["write_consistency_factor"]),
        read_fan_out_factor: count(&params["read_fan_out_factor"]),
        sharding_method: sharding.map(Into::into),
        sparse_vectors_config: there(params, "sparse_vectors").map(sparse_config),
        ..Default::default()
    };
    let config = pb::CollectionConfig {
        params: Some(params),
        hnsw_config: Some(plain::from_json(&config["hnsw_config"])),
        optimizer_config: Some(plain::from_json(&config["optimizer_config"])),
        wal_config: Some(plain::from_json(&config["wal_config"])),
        quantization_config: there(config, "quantization_config").and_then(quantization),
        strict_mode_config: there(config, "strict_mode_config").map(plain::from_json),
        metadata: config["metadata"].as_object().map(payload).unwrap_or_default(),
    };
    let declared = of["payload_schema"].as_object().into_iter().flatten();
    pb::CollectionInfo {
        status: status.into(),
        optimizer_status: Some(pb::OptimizerStatus { ok: of["optimizer_status"] == "ok", error: String::new() }),
        segments_count: of["segments_count"].as_u64().unwrap_or_default(),
        config: Some(config),
        payload_schema: declared.map(|(path, of)| (path.clone(), schema(of))).collect(),
        points_count: of["points_count"].as_u64(),
        indexed_vectors_count: of["indexed_vectors_count"].as_u64(),
        ..Default::default()
    }
}
