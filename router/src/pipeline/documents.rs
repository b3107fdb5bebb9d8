//! Documents in, answers out.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use nearring_proto::collection::{Collection, CollectionSpec, DocumentSpec};
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
use crate::embed::{EmbedError, Embedder};
use crate::failure::{Error, Kind};
use crate::plan::ReadOptions;
use crate::rag::answer::{AnswerError, AnswerEvent, Answerer, Question, Retrieved, Wanted};
use crate::rag::context::{Budget, TextField};
use crate::write::{Sending, ShardWrite};

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

/// How a collection's questions are answered.
struct Answering {
    embedder: Arc<dyn Embedder>,
    /// The named vector that is searched.
    vector: String,
    text_field: TextField,
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
            EmbedError::Failed { failure, .. } => failure.into(),
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
    pub(super) fn check_documents<'a>(
        &self,
        spec: &'a CollectionSpec,
    ) -> Result<(&'a DocumentSpec, &Arc<dyn Embedder>), Error> {
        let refuse = |reason: String| Error::new(Kind::Precondition, format!("collection {:?}: {reason}", spec.name));
        let documents = spec.documents.as_ref();
        let documents = documents.ok_or_else(|| refuse("takes no documents; create it with `documents`".into()))?;
        // "" would be this router's first, whichever that is.
        let named = Some(documents.embedder.as_str()).filter(|name| !name.is_empty());
        let embedder = named.and_then(|name| self.embedders().get(name)).ok_or_else(|| {
            let (theirs, ours) = (&documents.embedder, self.embedders().names());
            refuse(format!("its vectors come from the embedder {theirs:?}, this router has {ours}"))
        })?;
        let dimension = spec.vectors.get(&documents.vector).map_or(0, |vector| vector.dimension as usize);
        if dimension != embedder.dimension() {
            let (name, gives) = (&documents.vector, embedder.dimension());
            return Err(refuse(format!("its vector {name:?} has {dimension} components, its embedder gives {gives}")));
        }
        if spec.routing_separator.chars().ne([Document::SEPARATOR]) {
            let (has, wants) = (&spec.routing_separator, Document::SEPARATOR);
            return Err(refuse(format!("its routing separator is {has:?}; documents need {wants:?}")));
        }
        Ok((documents, embedder))
    }

    /// How questions of a collection are answered. One that takes documents records it. Any other is taken to have been filled
    /// by a program that embedded texts elsewhere, and is searched by its first vector (by name; "" is first) of as many
    /// components as an embedder of this router has: whether it is the same embedder, only the user knows.
    fn answering(&self, spec: &CollectionSpec) -> Result<Answering, Error> {
        if spec.documents.is_some() {
            let (documents, embedder) = self.check_documents(spec)?;
            return Ok(Answering {
                embedder: embedder.clone(),
                vector: documents.vector.clone(),
                text_field: TextField::Named(documents.text_field.clone()),
            });
        }
        let fitting = spec.vectors.iter().find_map(|(name, vector)| {
            let embedder = self.embedders().fitting(vector.dimension as usize)?;
            Some(Answering { embedder: embedder.clone(), vector: name.clone(), text_field: TextField::Usual })
        });
        fitting.ok_or_else(|| {
            let ours =
                self.embedders().iter().map(|embedder| format!("{:?} {}", embedder.name(), embedder.dimension()));
            let ours = ours.collect::<Vec<_>>().join(", ");
            let reason = format!("none of its vectors has the components of an embedder of this router ({ours})");
            Error::new(Kind::Precondition, format!("collection {:?}: {reason}; search it by vector", spec.name))
        })
    }

    /// What questions of a collection are searched by: the name of the collection's vector, and what embeds them.
    ///
    /// # Errors
    /// [`Kind::Precondition`] saying what is missing.
    pub fn question_embedder(&self, spec: &CollectionSpec) -> Result<(String, Arc<dyn Embedder>), Error> {
        self.answering(spec).map(|answering| (answering.vector, answering.embedder))
    }

    /// The collections of which questions can be asked, by name.
    ///
    /// # Errors
    /// [`Kind::NotDone`] where no node was reached yet.
    pub async fn answerable(&self) -> Result<Vec<Collection>, Error> {
        let all = self.list_collections().await?;
        Ok(all.into_iter().filter(|collection| self.answering(&collection.spec).is_ok()).collect())
    }

    /// Whether questions of this collection can be asked.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Precondition`] saying what is missing.
    pub async fn check_answerable(&self, collection: &str) -> Result<(), Error> {
        let found = self.described(collection, self.read_until(None)).await?;
        self.answering(&found.collection.spec).map(drop)
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
        let (documents, embedder) = self.check_documents(spec)?;
        let chunks = document.chunks(&ChunkSettings::default())?;
        if chunks.len() > limits.batch_points {
            let reason = format!("makes {} chunks, at most {} are allowed", chunks.len(), limits.batch_points);
            return Err(Error::invalid("text", format!("{reason}; divide the document")));
        }
        // A chunk of nothing the embedder knows (a rule, a number table) is stored all the same, without a vector.
        let texts: Vec<String> = chunks.iter().map(|chunk| chunk.embedded_text(&document)).collect();
        let vectors = self.embed_each(embedder, texts).await?;
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
        joined(self.writer().write_all(vec![replace(&found, document, Vec::new())], &sending).await?)
    }

    async fn write_one(
        &self,
        write: ShardWrite,
        sending: &Sending,
    ) -> Result<nearring_proto::wire::NodeWriteReply, Error> {
        let part = self.writer().write_all(vec![write], sending).await?.pop();
        match part.map(|part| part.end) {
            Some(Ok(reply)) => Ok(reply),
            Some(Err(failure)) => Err(Error::new(failure.kind, failure.message)),
            None => Err(Error::new(Kind::Internal, "a write without an end")),
        }
    }

    /// Texts to vectors of unit length; `embedder` "" means this router's first.
    ///
    /// # Errors
    /// [`Kind::Invalid`] naming the field.
    pub async fn embed(&self, embedder: &str, texts: Vec<String>) -> Result<Vec<Vec<f32>>, Error> {
        let embedder = self.embedders().get(embedder).ok_or_else(|| {
            let ours = self.embedders().names();
            Error::invalid("embedder", format!("{embedder:?} is not here; this router has {ours}"))
        })?;
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
        self.embed_pooled(embedder, move |embedder| async move {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            embedder.embed(&texts).await.map_err(Error::from)
        })
        .await
    }

    /// A vector for each text that holds a word the embedder knows.
    async fn embed_each(
        &self,
        embedder: &Arc<dyn Embedder>,
        texts: Vec<String>,
    ) -> Result<Vec<Option<Vec<f32>>>, Error> {
        self.embed_pooled(embedder, move |embedder| async move {
            // All at once where that goes: an embedder may be a server.
            let all: Vec<&str> = texts.iter().map(String::as_str).collect();
            match embedder.embed(&all).await {
                Ok(vectors) => return Ok(vectors.into_iter().map(Some).collect()),
                Err(EmbedError::NothingKnown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
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
    async fn embed_pooled<T, F, W>(&self, embedder: &Arc<dyn Embedder>, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>>,
        F: FnOnce(Arc<dyn Embedder>) -> W + Send + 'static,
    {
        let embedder = embedder.clone();
        let closed = |_| Error::new(Kind::NotDone, "the router is stopping; nothing was changed");
        let _permit = self.0.embedding.acquire().await.map_err(closed)?;
        let done = self.0.compute.run(move || work(embedder)).await;
        done.map_err(|error| Error::new(Kind::Internal, format!("embedding: {error}")))?
    }

    /// Answers a question from a collection's documents, or from points with a text that other programs wrote, as a stream.
    /// `passages` 0 means the default number.
    ///
    /// # Errors
    /// [`Kind::Precondition`] where no embedder of this router fits the collection. What fails later ends the stream.
    pub async fn ask(
        &self,
        collection: &str,
        question: Question,
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
        let answering = self.answering(&found.collection.spec)?;
        let mut budget = Budget::default();
        if passages > 0 {
            budget.passages = passages as usize;
        }
        let answerer = Answerer {
            embedder: answering.embedder,
            generator: self.0.generator.clone(),
            text_field: answering.text_field,
            budget,
        };
        let (pipeline, collection, vector_name) = (self.clone(), collection.to_owned(), answering.vector);
        let search = move |wanted: Wanted| async move {
            let query = SearchQuery {
                vector_name,
                target: wanted.vector.into(),
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
                AnswerError::Generate(error) => Error::new(error.failure.into(), error.to_string()),
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
