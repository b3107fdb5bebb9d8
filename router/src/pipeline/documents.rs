//! Documents in, answers out.
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use nearring_proto::collection::{CollectionSpec, DocumentSpec};
use nearring_proto::filter::Filter;
use nearring_proto::ids::{RequestId, ShardId, Version};
use nearring_proto::payload;
use nearring_proto::placement::ring::{HomeRing, group_routing_key};
use nearring_proto::position::Position;
use nearring_proto::query::SearchQuery;
use nearring_proto::wire::{node_write_request as node, node_write_request::Op};
use nearring_proto::write::Point;

use super::writes::joined;
use super::{Found, Pipeline, WriteAnswer};
use crate::documents::{ChunkSettings, Document, DocumentError, Format};
use crate::embed::EmbedError;
use crate::failure::{Error, Kind};
use crate::plan::ReadOptions;
use crate::rag::answer::{AnswerError, AnswerEvent, Answerer, Retrieved, Wanted};
use crate::rag::context::Budget;
use crate::write::{Sending, ShardWrite, write_all};

/// What putting a document did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DocumentWritten {
    /// Chunks it has now.
    pub chunks: usize,
    /// Chunks of before that are gone.
    pub removed: u64,
    /// Where it was committed.
    pub positions: Vec<Position>,
    /// What its chunks carry.
    pub version: Version,
}

/// An answer as it comes.
pub type AskAnswer = BoxStream<'static, Result<AnswerEvent, Error>>;

impl From<DocumentError> for Error {
    fn from(error: DocumentError) -> Self {
        Self::new(Kind::Invalid, error.to_string())
    }
}

impl From<EmbedError> for Error {
    fn from(error: EmbedError) -> Self {
        let kind = match error {
            EmbedError::NothingKnown { .. } => Kind::Invalid,
            EmbedError::Failed { .. } => Kind::NotDone,
        };
        Self::new(kind, error.to_string())
    }
}

impl Pipeline {
    /// The most passages an answer is written from.
    pub const PASSAGES_MAX: u32 = 50;

    /// Whether this router can embed for a collection.
    ///
    /// # Errors
    /// [`Kind::Precondition`] saying what does not fit.
    pub(super) fn check_documents<'a>(&self, spec: &'a CollectionSpec) -> Result<&'a DocumentSpec, Error> {
        let refuse = |reason: String| Error::new(Kind::Precondition, format!("collection {:?}: {reason}", spec.name));
        let documents = spec.documents.as_ref();
        let documents = documents.ok_or_else(|| refuse("takes no documents; create it with `documents`".into()))?;
        let embedder = &self.0.embedder;
        if documents.embedder != embedder.name() {
            let (theirs, ours) = (&documents.embedder, embedder.name());
            return Err(refuse(format!("its vectors come from the embedder {theirs:?}, this router has {ours:?}")));
        }
        let dimension = spec.vectors.get(&documents.vector).map_or(0, |vector| vector.dimension as usize);
        if dimension != embedder.dimension() {
            let (name, gives) = (&documents.vector, embedder.dimension());
            return Err(refuse(format!("its vector {name:?} has {dimension} components, its embedder gives {gives}")));
        }
        if spec.routing_separator.chars().ne([Document::SEPARATOR]) {
            let (has, wants) = (&spec.routing_separator, Document::SEPARATOR);
            return Err(refuse(format!("its routing separator is {has:?}; documents need {wants:?}")));
        }
        Ok(documents)
    }

    /// Replaces a document: afterwards exactly its chunks are there.
    ///
    /// # Errors
    /// [`Kind::Invalid`] naming the field; [`Kind::Precondition`] where the collection takes no documents from here;
    /// otherwise as a write.
    #[expect(clippy::too_many_arguments, reason = "one for each field of the request")]
    pub async fn put_document(
        &self,
        collection: &str,
        document: &str,
        text: &str,
        content_type: &str,
        metadata_json: &[u8],
        request: Option<RequestId>,
        deadline: Option<Duration>,
    ) -> Result<DocumentWritten, Error> {
        let limits = self.settings().limits;
        if text.len() > limits.batch_bytes {
            let reason = format!("has {} bytes, at most {} are allowed", text.len(), limits.batch_bytes);
            return Err(Error::invalid("text", reason));
        }
        let format = Format::from_content_type(content_type).ok_or_else(|| {
            Error::invalid("content_type", format!("{content_type:?} is not text/plain or text/markdown"))
        })?;
        let metadata = payload::parse(metadata_json).map_err(|error| Error::invalid("metadata_json", error))?;
        let document = Document::parse(document, text, format, metadata)?;
        let sending = Sending { request, harmless: false, until: self.write_until(deadline) };
        let found = self.collection(collection, sending.until).await?;
        let spec = &found.collection.spec;
        let documents = self.check_documents(spec)?;
        let chunks = document.chunks(&ChunkSettings::default())?;
        if chunks.len() > limits.batch_points {
            let reason = format!("makes {} chunks, at most {} are allowed", chunks.len(), limits.batch_points);
            return Err(Error::invalid("text", format!("{reason}; divide the document")));
        }
        // A chunk of nothing the embedder knows (a rule, a number table) is stored all the same, without a vector.
        let texts: Vec<String> = chunks.iter().map(|chunk| chunk.embedded_text(&document)).collect();
        let vectors = self.embed_each(texts).await?;
        let mut points = Vec::with_capacity(chunks.len());
        for (chunk, vector) in chunks.iter().zip(vectors) {
            let payload = chunk.payload(&document, &documents.text_field)?;
            let payload_json = serde_json::to_vec(&payload).map_err(|error| Error::invalid("metadata_json", error))?;
            let vectors = vector.into_iter().map(|vector| (documents.vector.clone(), vector.into())).collect();
            let mut point = Point { id: chunk.id.clone(), vectors, payload_json: Bytes::from(payload_json) };
            spec.check_point(&point, &format!("chunks[{}]", chunk.number))?;
            spec.prepare_point(&mut point);
            points.push(point);
        }
        let write = replace(&found, document.id(), points);
        let reply = self.write_one(write, &sending).await?;
        Ok(DocumentWritten {
            chunks: chunks.len(),
            removed: reply.removed,
            positions: reply.position.map(Position::from).into_iter().collect(),
            version: reply.version.map(Version::from).unwrap_or_default(),
        })
    }

    /// Removes a document's chunks.
    ///
    /// # Errors
    /// As a write.
    pub async fn delete_document(
        &self,
        collection: &str,
        document: &str,
        request: Option<RequestId>,
        deadline: Option<Duration>,
    ) -> Result<WriteAnswer, Error> {
        if document.is_empty() || document.len() > Document::ID_BYTES_MAX {
            return Err(Error::invalid("document", format!("give an id of 1 to {} bytes", Document::ID_BYTES_MAX)));
        }
        let sending = Sending { request, harmless: false, until: self.write_until(deadline) };
        let found = self.collection(collection, sending.until).await?;
        let separator = &found.collection.spec.routing_separator;
        if separator.is_empty() || document.contains(separator.as_str()) {
            return Err(Error::invalid("document", format!("is no document's id: the separator is {separator:?}")));
        }
        joined(write_all(self.view(), vec![replace(&found, document, Vec::new())], &sending).await?)
    }

    async fn write_one(
        &self,
        write: ShardWrite,
        sending: &Sending,
    ) -> Result<nearring_proto::wire::NodeWriteReply, Error> {
        let part = write_all(self.view(), vec![write], sending).await?.pop();
        match part.map(|part| part.end) {
            Some(Ok(reply)) => Ok(reply),
            Some(Err(failure)) => Err(Error::new(failure.kind, failure.message)),
            None => Err(Error::new(Kind::Internal, "a write without an end")),
        }
    }

    /// Texts to vectors of unit length; `embedder` "" means this router's.
    ///
    /// # Errors
    /// [`Kind::Invalid`] naming the field.
    pub async fn embed(&self, embedder: &str, texts: Vec<String>) -> Result<Vec<Vec<f32>>, Error> {
        let ours = self.0.embedder.name();
        if !embedder.is_empty() && embedder != ours {
            return Err(Error::invalid("embedder", format!("{embedder:?} is not here; this router has {ours:?}")));
        }
        let limits = self.settings().limits;
        if texts.is_empty() || texts.len() > limits.batch_points {
            let reason = format!("has {} entries, give 1 to {}", texts.len(), limits.batch_points);
            return Err(Error::invalid("texts", reason));
        }
        let bytes: usize = texts.iter().map(String::len).sum();
        if bytes > limits.batch_bytes {
            return Err(Error::invalid(
                "texts",
                format!("have {bytes} bytes, at most {} are allowed", limits.batch_bytes),
            ));
        }
        self.embed_pooled(move |embedder| async move {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            embedder.embed(&texts).await.map_err(Error::from)
        })
        .await
    }

    /// A vector for each text that holds a word the embedder knows.
    async fn embed_each(&self, texts: Vec<String>) -> Result<Vec<Option<Vec<f32>>>, Error> {
        self.embed_pooled(move |embedder| async move {
            let mut vectors = Vec::with_capacity(texts.len());
            for text in &texts {
                match embedder.embed(&[text]).await {
                    Ok(mut one) => vectors.push(one.pop()),
                    Err(EmbedError::NothingKnown { .. }) => vectors.push(None),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(vectors)
        })
        .await
    }

    /// Runs embedding work where it may block, so many at a time.
    async fn embed_pooled<T, F, W>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>>,
        F: FnOnce(std::sync::Arc<dyn crate::embed::Embedder>) -> W + Send + 'static,
    {
        let embedder = self.0.embedder.clone();
        let closed = |_| Error::new(Kind::NotDone, "the router is stopping; nothing was changed");
        let _permit = self.0.embedding.acquire().await.map_err(closed)?;
        let done = self.0.compute.run(move || work(embedder)).await;
        done.map_err(|error| Error::new(Kind::Internal, format!("embedding: {error}")))?
    }

    /// Answers a question from a collection's documents, as a stream. `passages` 0 means the default number.
    ///
    /// # Errors
    /// [`Kind::Precondition`] where the collection has no documents of this router's embedder. What fails later ends
    /// the stream.
    pub async fn ask(
        &self,
        collection: &str,
        question: &str,
        passages: u32,
        filter: Option<Filter>,
        options: ReadOptions,
    ) -> Result<AskAnswer, Error> {
        if passages > Self::PASSAGES_MAX {
            return Err(Error::invalid(
                "passages",
                format!("is {passages}, at most {} are allowed", Self::PASSAGES_MAX),
            ));
        }
        if let Some(filter) = &filter {
            filter.check()?;
        }
        let found = self.collection(collection, self.read_until(options.deadline)).await?;
        let documents = self.check_documents(&found.collection.spec)?.clone();
        let mut budget = Budget::default();
        if passages > 0 {
            budget.passages = passages as usize;
        }
        let answerer = Answerer {
            embedder: self.0.embedder.clone(),
            generator: self.0.generator.clone(),
            text_field: documents.text_field,
            budget,
        };
        let (pipeline, collection, vector_name) = (self.clone(), collection.to_owned(), documents.vector);
        let search = move |wanted: Wanted| async move {
            let query = SearchQuery {
                vector_name,
                vector: wanted.vector.into(),
                limit: wanted.limit,
                filter,
                exact: false,
                ef: None,
                with_payload: true,
                with_vectors: false,
                score_threshold: None,
            };
            let answer = pipeline.search(&collection, query, &options).await?;
            Ok::<_, Error>(Retrieved { hits: answer.hits, coverage: answer.coverage })
        };
        let events = answerer.answer(question, search).map(|event| {
            event.map_err(|error| match error {
                AnswerError::Search(error) => error,
                AnswerError::Embed(EmbedError::NothingKnown { .. }) => {
                    Error::invalid("question", "holds no word that the embedder knows; put it in other words")
                }
                AnswerError::Embed(error) => error.into(),
                AnswerError::Question { .. } => Error::new(Kind::Invalid, error.to_string()),
                AnswerError::Generate(error) => Error::new(Kind::NotDone, error.to_string()),
            })
        });
        Ok(events.boxed())
    }
}

/// The write after which exactly these points are the document's.
fn replace(found: &Found, document: &str, points: Vec<Point>) -> ShardWrite {
    let shard: ShardId = HomeRing::new(&found.collection.shards).home(group_routing_key(document));
    let group = node::ReplaceGroup {
        routing_key: document.to_owned(),
        separator: found.collection.spec.routing_separator.clone(),
        points: points.into_iter().map(Into::into).collect(),
    };
    ShardWrite { shard, op: Op::ReplaceGroup(group), places: Vec::new() }
}
