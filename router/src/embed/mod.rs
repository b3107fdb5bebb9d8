//! Text to vectors.
//!
//! [`Embedder`] is the seam for servers and larger models; [`Static256`] is the one that ships, so that a fresh machine
//! answers questions without a download. A collection records its embedder's name, and vectors of another are refused.

mod npy;
mod static256;

pub use static256::Static256;

use futures::future::BoxFuture;

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
        /// What it said.
        reason: String,
    },
}

/// Cosine of two vectors of unit length; the shorter length counts where lengths differ.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
