//! Vectors from a model behind OpenAI's `embeddings`.
//!
//! The server's vectors are brought to unit length, as [`Embedder`] promises. How many components they have is told at the
//! start rather than asked for, so that a router starts without its model server; a reply of another length is an error.
use std::collections::BTreeMap;

use futures::future::BoxFuture;
use nearring_proto::collection::{InvalidInput, VectorSpec};
use serde::Deserialize;
use serde_json::json;

use super::{EmbedError, Embedder};
use crate::model_server::{Failed, ModelServer, ModelServerSettings};

/// Texts in one request to the server.
const BATCH: usize = 64;

/// An embedder that asks a server.
#[derive(Clone, Debug)]
pub struct OpenAi {
    server: ModelServer,
    dimension: usize,
}

#[derive(Deserialize)]
struct Reply {
    data: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    index: usize,
    embedding: Vec<f32>,
}

impl OpenAi {
    /// Asks this server, whose model gives vectors of `dimension` components. Collections record the model's name.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field.
    pub fn new(settings: ModelServerSettings, dimension: usize, seed: u64) -> Result<Self, InvalidInput> {
        if dimension == 0 || dimension > VectorSpec::DIMENSION_MAX as usize {
            let reason = format!("is {dimension}; give what the model has, 1 to {}", VectorSpec::DIMENSION_MAX);
            return Err(InvalidInput::new("dimension", reason));
        }
        Ok(Self { server: ModelServer::new(settings, seed)?, dimension })
    }

    async fn batch(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Failed> {
        let body = json!({"model": self.server.model(), "input": texts, "encoding_format": "float"});
        // A component takes at most some 25 characters.
        let bytes_max = texts.len() * (self.dimension * 32 + 1024) + (64 << 10);
        let value = self.server.call("/embeddings", &body, bytes_max).await?;
        if let Some(failed) = self.server.error_in(&value) {
            return Err(failed);
        }
        let reply: Reply = serde_json::from_value(value)
            .map_err(|error| Failed::broken(format!("its reply holds no list of embeddings: {error}")))?;
        let got = reply.data.len();
        let mut by_index: BTreeMap<usize, Vec<f32>> =
            reply.data.into_iter().map(|one| (one.index, one.embedding)).collect();
        let missing =
            |at| Failed::broken(format!("it sent {got} vectors for {} texts, none for number {at}", texts.len()));
        let one = |at| self.unit(by_index.remove(&at).ok_or_else(|| missing(at))?);
        (0..texts.len()).map(one).collect()
    }

    /// The vector at unit length.
    fn unit(&self, mut vector: Vec<f32>) -> Result<Vec<f32>, Failed> {
        if vector.len() != self.dimension {
            let (got, wanted) = (vector.len(), self.dimension);
            return Err(Failed::broken(format!("its vectors have {got} components, this router was told {wanted}")));
        }
        let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if !length.is_normal() {
            return Err(Failed::broken("it sent a vector without a direction"));
        }
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        Ok(vector)
    }
}

impl Embedder for OpenAi {
    fn name(&self) -> &str {
        self.server.model()
    }

    fn dimension(&self) -> usize {
        self.dimension
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        let embedder = || self.name().to_owned();
        Box::pin(async move {
            // Servers refuse these, each in its own words.
            if let Some(text) = texts.iter().position(|text| text.trim().is_empty()) {
                return Err(EmbedError::NothingKnown { text, embedder: embedder() });
            }
            let mut vectors = Vec::with_capacity(texts.len());
            for batch in texts.chunks(BATCH) {
                let more = self.batch(batch).await.map_err(|Failed { failure, reason }| EmbedError::Failed {
                    embedder: embedder(),
                    failure,
                    reason,
                })?;
                vectors.extend(more);
            }
            Ok(vectors)
        })
    }
}
