//! Text to vectors.
//!
//! [`Embedder`] is the seam for servers and larger models; [`Static256`] is the one that ships, so that a fresh machine
//! answers questions without a download; [`OpenAi`] asks a server; with the feature `minilm`, a model of a directory is computed
//! here. A router may have several: [`Embedders`]. A collection records its embedder's name, and vectors of another are refused.

#[cfg(feature = "minilm")]
mod minilm;
mod npy;
mod openai;
mod static256;

#[cfg(feature = "minilm")]
pub use minilm::MiniLm;
pub use openai::OpenAi;
pub use static256::Static256;

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::failure::ModelFailure;

/// Turns texts into vectors of one length.
pub trait Embedder: std::fmt::Debug + Send + Sync + 'static {
    /// The name that collections record, for example `static256`. Another vector space must have another name.
    fn name(&self) -> &str;

    /// Components of every vector.
    fn dimension(&self) -> usize;

    /// One vector of unit length for each text, in order.
    ///
    /// # Errors
    /// [`EmbedError`]; then no text has a vector.
    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>>;
}

/// Why texts have no vectors.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EmbedError {
    /// Nothing in the text means anything to the embedder (blank, or only characters it does not know).
    #[error("texts[{text}] holds no word that the embedder `{embedder}` knows; give it words")]
    NothingKnown {
        /// The text's index among those given.
        text: usize,
        /// The embedder's name.
        embedder: String,
    },
    /// The embedder itself is broken or out of reach.
    #[error("the embedder `{embedder}` failed: {reason}")]
    Failed {
        /// The embedder's name.
        embedder: String,
        /// What can be done about it.
        failure: ModelFailure,
        /// What it said.
        reason: String,
    },
}

/// What a router can embed with: at least one, no two of one name.
#[derive(Clone, Debug)]
pub struct Embedders(Vec<Arc<dyn Embedder>>);

impl Embedders {
    /// `first` is used where none is named; a name that comes twice keeps the one that came first.
    pub fn new(first: Arc<dyn Embedder>, others: impl IntoIterator<Item = Arc<dyn Embedder>>) -> Self {
        let mut all = vec![first];
        for other in others {
            if all.iter().all(|embedder| embedder.name() != other.name()) {
                all.push(other);
            }
        }
        Self(all)
    }

    /// All, in order of preference.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Embedder>> {
        self.0.iter()
    }

    /// The one of this name; "" is the first.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Embedder>> {
        self.iter().find(|embedder| name.is_empty() || embedder.name() == name)
    }

    /// The first whose vectors have so many components.
    pub fn fitting(&self, dimension: usize) -> Option<&Arc<dyn Embedder>> {
        self.iter().find(|embedder| embedder.dimension() == dimension)
    }

    /// Their names, for messages.
    pub fn names(&self) -> String {
        self.iter().map(|embedder| format!("{:?}", embedder.name())).collect::<Vec<_>>().join(", ")
    }
}

/// Cosine of two vectors of unit length; the shorter length counts where lengths differ.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
