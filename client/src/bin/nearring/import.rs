//! `nearring import`: files into a collection, in memory bounded by the batches under way, however large the files are; or
//! with `--from` the collections of a running Qdrant ([`qdrant`]).
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use futures::stream::{self, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use nearring_client::files::{DocumentFile, FileError, FileKind, JsonPoints, VectorRows};
use nearring_client::write::DocumentText;
use nearring_client::{Client, ErrorKind, ImportOptions, ImportReport, wire};
use serde_json::json;
use tokio::sync::mpsc;

use crate::Context;
use crate::arguments::{Layout, Metric, for_documents};
use crate::collection::embedder_dimension;
use crate::output::Failure;

mod qdrant;

#[derive(Args)]
pub(crate) struct Import {
    /// The collection. With --from: only this one; may be repeated.
    #[arg(long, short, required_unless_present = "from")]
    collection: Vec<String>,

    /// Vectors (.npy in f16, f32 or f64; .fvecs), points (.jsonl with id, vector or vectors, payload), documents (.md,
    /// .txt) or folders of documents.
    #[arg(required_unless_present = "from")]
    paths: Vec<PathBuf>,

    /// Copy the collections of the running Qdrant at this URL, such as http://10.0.0.7:6333: settings, points, payload
    /// indexes and aliases. Its API key, if it wants one, stands in NEARRING_IMPORT_KEY. What was interrupted is continued
    /// by the same command.
    #[arg(long, value_name = "URL", conflicts_with_all = ["paths", "create", "vector", "first_id"])]
    from: Option<String>,

    /// With --from: where it is kept how far the copy is. The file is removed once everything is copied and counted.
    #[arg(long, value_name = "FILE", default_value = "nearring-import.json", requires = "from")]
    state: PathBuf,

    /// Create the collection if it does not exist, with the dimension of the first file.
    #[arg(long)]
    create: bool,

    /// With --create: what nearness means.
    #[arg(long, value_enum, default_value = "cosine")]
    metric: Metric,

    /// With --create and documents: what embeds them.
    #[arg(long, default_value = "static256")]
    embedder: String,

    #[command(flatten)]
    layout: Layout,

    /// The vector's name, for .npy and .fvecs, and of documents with --create.
    #[arg(long, default_value = "")]
    vector: String,

    /// For .npy and .fvecs: the id of the first row; the rows after it count on, from file to file.
    #[arg(long, default_value_t = 0)]
    first_id: u64,

    /// Points in one request at the most.
    #[arg(long, default_value_t = ImportOptions::default().batch_points)]
    batch_points: usize,

    /// Requests under way at once.
    #[arg(long, default_value_t = ImportOptions::default().in_flight)]
    in_flight: usize,
}

impl Import {
    pub(crate) async fn run(self, context: Context) -> Result<(), Failure> {
        if let Some(url) = &self.from {
            return qdrant::run(&self, url, &context).await;
        }
        let [collection] = self.collection.as_slice() else {
            return Err(Failure::new("files are imported into one collection; give --collection once"));
        };
        let mut kinds = Vec::new();
        for path in &self.paths {
            // A missing file is better reported as such than by its ending.
            std::fs::metadata(path).map_err(|error| Failure::of(path.display(), error))?;
            let kind = FileKind::of(path).ok_or_else(|| {
                let message = "this ending is not known; .npy, .fvecs, .jsonl, .md and .txt are";
                Failure::of(path.display(), Failure::new(message))
            })?;
            kinds.push(kind);
        }
        let documents = kinds.first() == Some(&FileKind::Documents);
        if kinds.iter().any(|kind| (*kind == FileKind::Documents) != documents) {
            return Err(Failure::new("documents and points cannot be imported by one command; use two"));
        }
        if self.create {
            self.create(&context, collection, documents).await?;
        }
        if documents {
            let files = DocumentFile::find(&self.paths)?;
            let progress = bar(Some(files.len() as u64), "documents");
            let documents = stream::iter(files.into_iter().map(|file| {
                let text = file.read()?;
                let content_type = file.content_type.to_owned();
                Ok((file.path, DocumentText { id: file.id, text, content_type, metadata_json: Vec::new() }))
            }));
            let put = put_documents(&context.client, collection, documents, self.in_flight, &progress).await;
            progress.finish_and_clear();
            let put = put?;
            let value = json!({ "documents": put.documents, "chunks": put.chunks, "collection": collection });
            return context.output.write(&value, || {
                format!("imported {} documents, {} chunks, into {collection}", put.documents, put.chunks)
            });
        }
        let report = self.import_points(&context, collection).await?;
        let refused = report.refused.len();
        let value = json!({
            "read": report.read, "applied": report.applied, "refused": refused, "collection": collection,
        });
        context.output.write(&value, || format!("imported {} points into {collection}", report.applied))?;
        if refused > 0 {
            return Err(Failure::new(format!("{refused} points were refused")));
        }
        Ok(())
    }

    async fn create(&self, context: &Context, collection: &str, documents: bool) -> Result<(), Failure> {
        match context.client.describe_collection(collection).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let spec = if documents {
            let dimension = embedder_dimension(&context.client, &self.embedder).await?;
            let mut spec = self.layout.spec(collection, &self.vector, dimension, self.metric);
            for_documents(&mut spec, &self.embedder, &self.vector);
            spec
        } else {
            let Some(first) = self.paths.first() else { return Ok(()) };
            self.spec_for(collection, first)?
        };
        match context.client.create_collection(spec).await {
            Err(error) if error.kind != ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn spec_for(&self, collection: &str, first: &Path) -> Result<wire::CollectionSpec, Failure> {
        let dimension = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        if FileKind::of(first) == Some(FileKind::Vectors) {
            let rows = VectorRows::open(first)?;
            return Ok(self.layout.spec(collection, &self.vector, dimension(rows.dimension()), self.metric));
        }
        let nothing =
            || Failure::of(first.display(), Failure::new("holds no point with a vector to take the dimension from"));
        let point = JsonPoints::open(first)?.next().ok_or_else(nothing)??;
        if point.vectors.is_empty() {
            return Err(nothing());
        }
        let mut spec = wire::CollectionSpec { vectors: [].into(), ..self.layout.spec(collection, "", 0, self.metric) };
        for vector in point.vectors {
            if vector.sparse.is_some() {
                spec.sparse_vectors.insert(vector.name, wire::SparseSpec::default());
            } else if let Some(multi) = vector.multi {
                let multi = wire::MultiSpec { dimension: multi.dimension, metric: self.metric.wire() as i32 };
                spec.multi_vectors.insert(vector.name, multi);
            } else {
                let other = self.layout.spec("", &vector.name, dimension(vector.values.len()), self.metric);
                spec.vectors.extend(other.vectors);
            }
        }
        Ok(spec)
    }

    async fn import_points(&self, context: &Context, collection: &str) -> Result<ImportReport, Failure> {
        // A header tells how many rows there are; lines would have to be read twice to be counted.
        let total: Option<u64> =
            self.paths.iter().map(|path| VectorRows::open(path).ok().map(|rows| rows.rows())).sum();
        let progress = bar(total, "points");
        // Reading blocks, so it has a thread of its own, kept no further ahead than the channel is long.
        let (sender, receiver) = mpsc::channel(64);
        let failed: Arc<Mutex<Option<FileError>>> = Arc::default();
        let reader = {
            let (paths, vector, first_id, failed) =
                (self.paths.clone(), self.vector.clone(), self.first_id, failed.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = read_points(&paths, &vector, first_id, &sender) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })
        };
        let points = stream::unfold(receiver, async |mut points| Some((points.recv().await?, points)));
        let options =
            ImportOptions { batch_points: self.batch_points, in_flight: self.in_flight, ..ImportOptions::default() };
        let report = context.client.import(collection, points, options, |done| progress.set_position(done)).await;
        progress.finish_and_clear();
        // The stream is dropped by now, so the reader has ended or will at its next point.
        reader.await.map_err(|error| Failure::new(format!("reading: {error}")))?;
        let report = report?;
        match failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(Failure::new(format!("{error}\n  {} points before it are written", report.applied))),
            None => Ok(report),
        }
    }
}

fn read_points(
    paths: &[PathBuf],
    vector: &str,
    first_id: u64,
    sender: &mpsc::Sender<wire::UpsertPoint>,
) -> Result<(), FileError> {
    let mut id = first_id;
    // A receiver that is gone has failed, and says why itself.
    let send = |point| sender.blocking_send(wire::UpsertPoint { point: Some(point), precondition: None }).is_ok();
    for path in paths {
        if FileKind::of(path) == Some(FileKind::JsonLines) {
            for point in JsonPoints::open(path)? {
                if !send(point?) {
                    return Ok(());
                }
            }
            continue;
        }
        for values in VectorRows::open(path)? {
            let vectors = vec![wire::NamedVector { name: vector.to_owned(), values: values?, ..Default::default() }];
            let number = wire::PointId { id: Some(wire::point_id::Id::Number(id)) };
            if !send(wire::Point { id: Some(number), vectors, payload_json: Default::default() }) {
                return Ok(());
            }
            id += 1;
        }
    }
    Ok(())
}

/// What became of some documents.
pub(crate) struct Put {
    pub(crate) documents: u64,
    pub(crate) chunks: u64,
}

/// Puts documents, a few at once. The first that fails ends it, named.
pub(crate) async fn put_documents(
    client: &Client,
    collection: &str,
    documents: impl stream::Stream<Item = Result<(PathBuf, DocumentText), FileError>>,
    at_once: usize,
    progress: &ProgressBar,
) -> Result<Put, Failure> {
    documents
        .map_err(Failure::from)
        .map_ok(|(path, document)| async move {
            let reply = client.put_document(collection, document).await;
            reply.map_err(|error| Failure::of(path.display(), error))
        })
        .try_buffer_unordered(at_once.max(1))
        .try_fold(Put { documents: 0, chunks: 0 }, async |put, reply| {
            progress.inc(1);
            Ok(Put { documents: put.documents + 1, chunks: put.chunks + u64::from(reply.chunks) })
        })
        .await
}

/// A progress bar on stderr, or a counter where the end is not known; nothing where stderr is no terminal.
pub(crate) fn bar(total: Option<u64>, what: &'static str) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:40} {human_pos}/{human_len} {msg}, {per_sec}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} {msg}, {per_sec}"),
    };
    bar.set_message(what);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
