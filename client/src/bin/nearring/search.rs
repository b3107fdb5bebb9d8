//! `nearring search`: nearest points to a vector, a row of a file, or a text.
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use nearring_client::files::{FileKind, JsonPoints, VectorRows, parse_vector};
use nearring_client::{Client, wire};
use nearring_proto::vector::Vector;
use serde_json::{Value, json};

use crate::Context;
use crate::arguments::{Read, filter, vector};
use crate::output::{
    Failure, Output, coverage_gap, coverage_json, id_json, id_of, payload_json, short, vectors_json, version_json,
};

#[derive(Args)]
#[command(group = ArgGroup::new("query").required(true).args(["vector", "vector_file", "text"]))]
pub(crate) struct Search {
    /// The collection.
    #[arg(long, short)]
    collection: String,

    /// The query vector, as `[0.1, 0.2]` or 0.1,0.2; sparse, as `{"indices": [3], "values": [0.5]}`; multi, as `[[0.1], [0.2]]`.
    #[arg(long, allow_hyphen_values = true, value_parser = vector_argument)]
    vector: Option<Components>,

    /// A file that holds it: .npy, .fvecs, or .jsonl with `vector`.
    #[arg(long, value_name = "FILE")]
    vector_file: Option<PathBuf>,

    /// Which row of the file, counted from 0.
    #[arg(long, default_value_t = 0)]
    row: u64,

    /// A text, embedded by the collection's embedder.
    #[arg(long)]
    text: Option<String>,

    /// The named vector to compare with; without it the collection's document vector for a text, "" otherwise.
    #[arg(long)]
    name: Option<String>,

    /// Hits wanted.
    #[arg(long, default_value_t = 10)]
    limit: u32,

    /// Only points that match, in JSON.
    #[arg(long, value_name = "JSON", value_parser = filter)]
    filter: Option<wire::Filter>,

    /// Compare with every vector instead of walking the graph.
    #[arg(long)]
    exact: bool,

    /// Breadth of the graph walk; 0 = the collection's.
    #[arg(long, default_value_t = 0)]
    ef: u32,

    /// Leave out worse hits: cosine and dot below this, l2 above it.
    #[arg(long, allow_hyphen_values = true)]
    threshold: Option<f32>,

    /// Show vectors too.
    #[arg(long)]
    with_vectors: bool,

    #[command(flatten)]
    read: Read,
}

/// Keeps clap from reading a list type as a repeated argument.
#[derive(Clone)]
struct Components(Vector);

/// A list of numbers, or as points have vectors in JSON.
fn vector_argument(text: &str) -> Result<Components, String> {
    let json = text.trim_start();
    let vector = match json.starts_with('{') || json.starts_with("[[") {
        true => parse_vector(json)?,
        false => vector(text)?.into(),
    };
    Ok(Components(vector))
}

impl Search {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        let (vector, vector_name): (Vector, String) = match (&self.text, &self.vector_file, self.vector) {
            (Some(text), _, _) => {
                let (vector, name) = embed(&context.client, &self.collection, text).await?;
                (vector.into(), self.name.unwrap_or(name))
            }
            (None, Some(file), _) => {
                let name = self.name.unwrap_or_default();
                let (file, row, wanted) = (file.clone(), self.row, name.clone());
                let read = tokio::task::spawn_blocking(move || read_row(&file, row, &wanted)).await;
                (read.map_err(|error| Failure::new(error.to_string()))??, name)
            }
            (None, None, vector) => {
                let vector = vector.map_or_else(|| Vec::new().into(), |vector| vector.0);
                (vector, self.name.unwrap_or_default())
            }
        };
        let wire::NamedVector { name, values, sparse, multi } = (vector_name, vector).into();
        let query = wire::SearchQuery {
            vector_name: name,
            vector: values,
            sparse,
            multi,
            limit: self.limit,
            filter: self.filter,
            exact: self.exact,
            ef: self.ef,
            with_payload: true,
            with_vectors: self.with_vectors,
            score_threshold: self.threshold,
            examples: None,
        };
        let request = wire::SearchRequest {
            collection: self.collection,
            query: Some(query),
            read: Some(self.read.options()),
            ..Default::default()
        };
        print(context.output, context.client.search(request).await?, self.with_vectors)
    }
}

/// The text's vector, and the named vector it is to be compared with.
async fn embed(client: &Client, collection: &str, text: &str) -> Result<(Vec<f32>, String), Failure> {
    let info = client.describe_collection(collection).await?;
    let Some(documents) = info.spec.and_then(|spec| spec.documents) else {
        let message = format!("collection {collection:?} has no embedder; give --vector or --vector-file instead");
        return Err(Failure::new(message));
    };
    let vector = client.embed(&documents.embedder, vec![text.to_owned()]).await?.pop();
    let vector = vector.ok_or_else(|| Failure::new("the router sent no vector for the text"))?;
    Ok((vector, documents.vector))
}

fn read_row(file: &std::path::Path, row: u64, name: &str) -> Result<Vector, Failure> {
    let nothing = || Failure::new(format!("{}: has no row {row}", file.display()));
    let skip = usize::try_from(row).map_err(|_| nothing())?;
    if FileKind::of(file) == Some(FileKind::JsonLines) {
        let point = JsonPoints::open(file)?.nth(skip).ok_or_else(nothing)??;
        let vector = point.vectors.into_iter().find(|vector| vector.name == name);
        let vector = vector
            .ok_or_else(|| Failure::new(format!("{}: row {row} has no vector named {name:?}", file.display())))?;
        return Vector::try_from(vector).map_err(|error| Failure::of(file.display(), Failure::new(error.to_string())));
    }
    Ok(VectorRows::open(file)?.nth(skip).ok_or_else(nothing)??.into())
}

fn print(output: Output, reply: wire::SearchReply, with_vectors: bool) -> Result<(), Failure> {
    let mut text = String::new();
    let mut hits = Vec::new();
    for (rank, hit) in reply.hits.into_iter().enumerate() {
        let (id, payload) = (id_of(hit.id), payload_json(&hit.payload_json));
        let mut value =
            json!({ "id": id_json(&id), "score": hit.score, "version": version_json(hit.version), "payload": payload });
        if with_vectors {
            value["vectors"] = vectors_json(&hit.vectors);
        }
        hits.push(value);
        text.push_str(&format!("{:>3}  {:>9.6}  {id}\n", rank + 1, hit.score));
        let shown = match &payload {
            Value::Object(fields) if fields.is_empty() => continue,
            Value::Object(fields) => fields.get("text").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        text.push_str(&format!("     {}\n", short(&shown.unwrap_or_else(|| payload.to_string()), 160)));
    }
    let value = json!({ "hits": hits, "coverage": coverage_json(reply.coverage.as_ref()) });
    if let Some(gap) = coverage_gap(reply.coverage.as_ref()) {
        eprintln!("warning: {gap}");
    }
    output.write(&value, || if text.is_empty() { "no hits".to_owned() } else { text.trim_end().to_owned() })
}
