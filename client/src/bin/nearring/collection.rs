//! `nearring collection`: create, list, describe, delete.
use clap::{Args, Subcommand};
use nearring_client::wire;
use serde_json::{Map, Value, json};

use crate::Context;
use crate::arguments::{Layout, Metric, for_documents, multi, sparse};
use crate::output::Failure;

#[derive(Subcommand)]
pub(crate) enum Collection {
    /// Create one.
    Create(Create),
    /// List all.
    List,
    /// Show one's specification and shards.
    Describe {
        /// Its name.
        name: String,
    },
    /// Delete one with all its points.
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(Args)]
pub(crate) struct Create {
    /// Its name.
    name: String,

    /// Components of its vector; not needed with --embedder, nor where there are only --sparse and --multi ones.
    #[arg(long, required_unless_present_any = ["embedder", "sparse", "multi"])]
    dimension: Option<u32>,

    /// A sparse vector of this name; with =idf its queries are weighted by how rare their indices are. May be repeated.
    #[arg(long, value_name = "NAME[=idf]", value_parser = sparse)]
    sparse: Vec<(String, wire::SparseSpec)>,

    /// A multi-vector of this name, of rows of so many components, compared by max_sim in --metric. May be repeated.
    #[arg(long, value_name = "NAME=DIMENSION", value_parser = multi)]
    multi: Vec<(String, u32)>,

    /// What nearness means.
    #[arg(long, value_enum, default_value = "cosine")]
    metric: Metric,

    /// The vector's name; "" is the default vector.
    #[arg(long, default_value = "")]
    vector: String,

    /// Take documents, embedded by this (static256 is built in).
    #[arg(long)]
    embedder: Option<String>,

    #[command(flatten)]
    layout: Layout,
}

impl Collection {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        let (client, output) = (&context.client, context.output);
        match self {
            Collection::Create(create) => {
                let dimension = match (&create.embedder, create.dimension) {
                    (_, Some(dimension)) => dimension,
                    (Some(embedder), None) => embedder_dimension(client, embedder).await?,
                    (None, None) => 0,
                };
                let mut spec = create.layout.spec(&create.name, &create.vector, dimension, create.metric);
                if dimension == 0 && create.dimension.is_none() {
                    spec.vectors.clear();
                }
                spec.sparse_vectors.extend(create.sparse);
                let metric = create.metric.wire() as i32;
                let multi = |(name, dimension)| (name, wire::MultiSpec { dimension, metric });
                spec.multi_vectors.extend(create.multi.into_iter().map(multi));
                if let Some(embedder) = &create.embedder {
                    for_documents(&mut spec, embedder, &create.vector);
                }
                let info = client.create_collection(spec).await?;
                output.write(&info_json(&info), || format!("created {}", info_text(&info)))
            }
            Collection::List => {
                let collections = client.list_collections().await?;
                let value: Vec<Value> = collections.iter().map(info_json).collect();
                output.write(&value.into(), || match collections.as_slice() {
                    [] => "no collections".to_owned(),
                    some => some.iter().map(info_text).collect::<Vec<_>>().join("\n"),
                })
            }
            Collection::Describe { name } => {
                let info = client.describe_collection(&name).await?;
                let value = info_json(&info);
                output.write(&value, || serde_json::to_string_pretty(&value).unwrap_or_default())
            }
            Collection::Delete { name } => {
                if !client.delete_collection(&name).await? {
                    return Err(Failure::new(format!("there is no collection {name:?}")));
                }
                output.write(&json!({ "deleted": name }), || format!("deleted {name}"))
            }
        }
    }
}

/// Components of an embedder's vectors, by asking it for one.
pub(crate) async fn embedder_dimension(client: &nearring_client::Client, embedder: &str) -> Result<u32, Failure> {
    let vector = client.embed(embedder, vec!["text".to_owned()]).await?.pop().unwrap_or_default();
    u32::try_from(vector.len()).map_err(|_| Failure::new(format!("embedder {embedder:?} sent no usable vector")))
}

/// The end of a wire enum's name, as the command line spells it: `METRIC_L2` is `l2`.
fn name(wire_name: Option<&'static str>, prefix: &str) -> Value {
    wire_name.map_or(Value::Null, |name| json!(name.trim_start_matches(prefix).to_ascii_lowercase()))
}

pub(crate) fn info_json(info: &wire::CollectionInfo) -> Value {
    let spec = info.spec.clone().unwrap_or_default();
    let vectors: Map<String, Value> = spec
        .vectors
        .iter()
        .map(|(vector, spec)| {
            let metric = wire::Metric::try_from(spec.metric).ok().map(|metric| metric.as_str_name());
            let scalar = wire::ScalarKind::try_from(spec.scalar).ok().map(|scalar| scalar.as_str_name());
            let value = json!({
                "dimension": spec.dimension, "metric": name(metric, "METRIC_"), "scalar": name(scalar, "SCALAR_KIND_"),
            });
            (vector.clone(), value)
        })
        .collect();
    let sparse: Map<String, Value> = spec
        .sparse_vectors
        .iter()
        .map(|(vector, spec)| {
            let modifier = wire::Modifier::try_from(spec.modifier).ok().map(|modifier| modifier.as_str_name());
            (vector.clone(), json!({ "modifier": name(modifier, "MODIFIER_") }))
        })
        .collect();
    let multi: Map<String, Value> = spec
        .multi_vectors
        .iter()
        .map(|(vector, spec)| {
            let metric = wire::Metric::try_from(spec.metric).ok().map(|metric| metric.as_str_name());
            (vector.clone(), json!({ "dimension": spec.dimension, "metric": name(metric, "METRIC_") }))
        })
        .collect();
    let indexes: Map<String, Value> = spec
        .payload_indexes
        .iter()
        .map(|(path, kind)| {
            let kind = wire::FieldKind::try_from(*kind).ok().map(|kind| kind.as_str_name());
            (path.clone(), name(kind, "FIELD_KIND_"))
        })
        .collect();
    let index = spec.index.unwrap_or_default();
    json!({
        "name": spec.name, "id": info.id, "shards": info.shards, "replication": spec.replication_factor,
        "vectors": vectors, "sparse_vectors": sparse, "multi_vectors": multi, "payload_indexes": indexes, "routing_separator": spec.routing_separator,
        "index": {
            "m": index.m, "ef_construction": index.ef_construction, "ef_search": index.ef_search,
            "seal_points": index.seal_points,
        },
        "documents": spec.documents.map(|documents| json!({
            "embedder": documents.embedder, "vector": documents.vector, "text_field": documents.text_field,
        })),
    })
}

fn info_text(info: &wire::CollectionInfo) -> String {
    let value = info_json(info);
    let vectors = value["vectors"].as_object().into_iter().flatten().map(|(vector, spec)| {
        let name = if vector.is_empty() { "vector" } else { vector };
        format!("{name} {} × {}", spec["metric"].as_str().unwrap_or("?"), spec["dimension"])
    });
    let of = |kind: &str| value[kind].as_object().cloned().unwrap_or_default();
    let sparse = of("sparse_vectors").into_iter().map(|(vector, _)| format!("{vector} sparse"));
    let multi = of("multi_vectors").into_iter().map(|(vector, spec)| format!("{vector} n × {}", spec["dimension"]));
    let vectors = vectors.chain(sparse).chain(multi).collect::<Vec<_>>().join(", ");
    let documents = value["documents"]["embedder"].as_str();
    let documents = documents.map(|embedder| format!(", documents by {embedder}")).unwrap_or_default();
    let name = value["name"].as_str().unwrap_or("?");
    format!("{name}: {vectors}, {} shards × {} replicas{documents}", info.shards.len(), value["replication"])
}
