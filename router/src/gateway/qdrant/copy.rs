//! What another server that speaks Qdrant's API tells of a collection and its points, in this store's terms: for
//! `nearring import --from`. It is read as the door reads what clients send, so a copied collection is the one that the same
//! settings would have created here. Pure.
use std::collections::BTreeMap;

use nearring_proto::collection::CollectionSpec;
use nearring_proto::ids::PointId;
use nearring_proto::payload::Payload;
use nearring_proto::write::Point;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::collections::{ATTRIBUTE, SCHEMA, SchemaKind, settings};
use super::not_supported;
use super::values::{Id, Vectors};
use crate::failure::{Error, Kind};

/// A collection that is to be created as another one is.
#[derive(Clone, PartialEq, Debug)]
pub struct Copied {
    /// Its settings, with the payload indexes that there are here.
    pub spec: CollectionSpec,
    /// What its door keeps of it, by key: the settings that are only told again.
    pub attributes: BTreeMap<String, String>,
}

/// What of `config` is laid beside the vectors when a collection is created, and under which name.
const CONFIG: [(&str, &str); 6] = [
    ("hnsw_config", "hnsw_config"),
    ("optimizer_config", "optimizers_config"),
    ("wal_config", "wal_config"),
    ("quantization_config", "quantization_config"),
    ("strict_mode_config", "strict_mode_config"),
    ("metadata", "metadata"),
];

/// Reads the `result` of `GET /collections/{name}`.
///
/// # Errors
/// [`Kind::Invalid`] naming the part that cannot be had here, or is not as Qdrant tells it.
pub fn collection(name: &str, told: &Value) -> Result<Copied, Error> {
    let config = &told["config"];
    let Value::Object(params) = &config["params"] else {
        return Err(Error::invalid("config.params", "is missing; is it a Qdrant?"));
    };
    let mut creation: Map<String, Value> = params.clone();
    for (from, to) in CONFIG {
        creation.insert(to.to_owned(), config[from].clone());
    }
    creation.retain(|_, value| !value.is_null());
    let (mut spec, mut kept) = settings(name.to_owned(), Value::Object(creation))?;
    for (field, index) in told["payload_schema"].as_object().into_iter().flatten() {
        let kind: SchemaKind = serde_json::from_value(index["data_type"].clone())
            .map_err(|error| Error::invalid(format!("payload_schema[{field:?}].data_type"), error))?;
        let path = super::filter::path(field);
        let parameters = match &index["params"] {
            Value::Object(parameters) => Value::Object(parameters.clone()),
            _ => json!({"type": index["data_type"]}),
        };
        spec.payload_indexes.extend(kind.indexed().map(|kind| (path.clone(), kind)));
        if let Value::Object(schema) = kept.entry(SCHEMA).or_insert_with(|| json!({})) {
            schema.insert(path, parameters);
        }
    }
    spec.check()?;
    let attributes = if kept.is_empty() {
        BTreeMap::new()
    } else {
        BTreeMap::from([(ATTRIBUTE.to_owned(), Value::Object(kept).to_string())])
    };
    Ok(Copied { spec, attributes })
}

#[derive(Deserialize)]
struct Told {
    id: Id,
    #[serde(default)]
    payload: Option<Payload>,
    #[serde(default)]
    vector: Option<Vectors>,
    #[serde(default)]
    shard_key: Option<Value>,
}

/// Reads one of the points that a scroll lists.
///
/// # Errors
/// [`Kind::Invalid`] naming the point and what of it cannot be read.
pub fn point(told: Value) -> Result<Point, Error> {
    let name = format!("point {}", told["id"]);
    let Told { id, payload, vector, shard_key } =
        serde_json::from_value(told).map_err(|error| Error::invalid(&name, error))?;
    if shard_key.is_some_and(|key| !key.is_null()) {
        return Err(not_supported("shard_key").0);
    }
    let vectors = match vector {
        Some(vectors) => vectors.read(&format!("{name}.vector"))?,
        None => BTreeMap::new(),
    };
    let payload_json = match payload {
        Some(payload) if !payload.is_empty() => {
            serde_json::to_vec(&payload).map_err(|error| Error::new(Kind::Internal, error.to_string()))?.into()
        }
        _ => Default::default(),
    };
    Ok(Point { id: id.into(), vectors, payload_json })
}

/// Reads an id as scrolls list them.
///
/// # Errors
/// [`Kind::Invalid`] where it is none.
pub fn id(told: &Value) -> Result<PointId, Error> {
    let id: Id = Id::deserialize(told).map_err(|error| Error::invalid("id", error))?;
    Ok(id.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nearring_proto::collection::{FieldKind, Modifier};
    use nearring_proto::vector::{Metric, MultiVector, SparseVector};

    use super::*;

    fn told() -> Value {
        json!({
            "status": "green", "points_count": 3, "segments_count": 2,
            "config": {
                "params": {
                    "vectors": {
                        "text": {"size": 4, "distance": "Cosine", "on_disk": true},
                        "late": {"size": 2, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
                    },
                    "sparse_vectors": {"words": {"modifier": "idf"}, "plain": {}},
                    "shard_number": 2, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": true,
                },
                "hnsw_config": {"m": 24, "ef_construct": 200, "full_scan_threshold": 10000, "payload_m": null},
                "optimizer_config": {"deleted_threshold": 0.3, "max_segment_size": null},
                "wal_config": {"wal_capacity_mb": 32},
                "quantization_config": null,
                "strict_mode_config": {"enabled": false},
            },
            "payload_schema": {
                "lang": {"data_type": "keyword", "points": 3},
                "at": {"data_type": "datetime", "params": {"type": "datetime", "is_principal": true}, "points": 1},
                "body": {"data_type": "text", "params": {"type": "text", "tokenizer": "word"}, "points": 3},
            },
        })
    }

    #[test]
    fn a_collection_is_read_as_a_creation_of_the_same_settings_would_be() {
        let Copied { spec, attributes } = collection("books", &told()).unwrap();
        assert_eq!((spec.vectors["text"].dimension, spec.vectors["text"].metric), (4, Metric::Cosine));
        assert_eq!((spec.multi_vectors["late"].dimension, spec.multi_vectors["late"].metric), (2, Metric::Dot));
        let modifiers = ["words", "plain"].map(|name| spec.sparse_vectors[name].modifier);
        assert_eq!(modifiers, [Modifier::Idf, Modifier::None]);
        assert_eq!((spec.shard_count, spec.replication_factor), (2, 1));
        assert_eq!((spec.index.m, spec.index.ef_construction), (24, 200));
        let indexes = [("at".to_owned(), FieldKind::Datetime), ("lang".to_owned(), FieldKind::Keyword)];
        assert_eq!(spec.payload_indexes, indexes.into(), "text is judged without an index");
        let kept: Value = serde_json::from_str(&attributes["qdrant"]).unwrap();
        assert_eq!(kept["optimizers_config"]["deleted_threshold"], 0.3);
        assert_eq!(kept["vectors"]["text"]["on_disk"], true);
        assert_eq!(kept["payload_schema"]["body"]["tokenizer"], "word");
        assert_eq!(kept["payload_schema"]["lang"], json!({"type": "keyword"}));
        assert!(kept.get("quantization_config").is_none());
    }

    #[test]
    fn what_cannot_be_had_here_is_named() {
        let refused = |change: fn(&mut Value)| {
            let mut told = told();
            change(&mut told);
            collection("books", &told).unwrap_err().message
        };
        assert!(
            refused(|t| t["config"]["params"]["vectors"]["text"]["distance"] = json!("Hamming")).contains("Hamming")
        );
        assert!(refused(|t| t["config"]["params"]["sharding_method"] = json!("custom")).contains("custom sharding"));
        assert!(refused(|t| t["payload_schema"]["lang"]["data_type"] = json!("colour")).contains("lang"));
        assert!(refused(|t| *t = json!({})).contains("config.params"));
    }

    #[test]
    fn points_come_with_vectors_of_every_kind_or_none() {
        let vector = json!({
            "text": [1.0, 0.5], "words": {"indices": [7, 1], "values": [0.5, 2.0]}, "late": [[1.0, 2.0], [3.0, 4.0]],
        });
        let read = point(json!({"id": 5, "payload": {"lang": "en"}, "vector": vector})).unwrap();
        assert_eq!((read.id, &read.payload_json[..]), (PointId::Number(5), &br#"{"lang":"en"}"#[..]));
        assert_eq!(read.vectors["text"], vec![1.0, 0.5].into());
        assert_eq!(read.vectors["words"], SparseVector::new(vec![7, 1], vec![0.5, 2.0]).unwrap().into());
        assert_eq!(read.vectors["late"], MultiVector::new(2, vec![1.0, 2.0, 3.0, 4.0]).unwrap().into());
        let plain = point(json!({"id": "a-text", "payload": null, "vector": [1.0]})).unwrap();
        assert_eq!((plain.id, plain.payload_json.len()), (PointId::Text("a-text".into()), 0));
        assert_eq!(plain.vectors[""], vec![1.0].into());
        assert!(point(json!({"id": 1, "payload": {}, "vector": {}})).unwrap().vectors.is_empty());
        assert!(point(json!({"id": 1})).unwrap().vectors.is_empty());
        assert!(point(json!({"id": 1, "vector": [1.0], "shard_key": "a"})).unwrap_err().message.contains("shard_key"));
        assert!(point(json!({"id": 9, "vector": "x"})).unwrap_err().message.contains("point 9"));
    }
}
