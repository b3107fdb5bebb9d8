//! Passages to an answer.
//!
//! [`Generator`] is the seam for model servers (which would send [`crate::rag::prompt::chat`]); [`Extractive`] is the one
//! that ships: it answers with sentences of the passages themselves, so it cannot say what no document says.

mod extractive;
mod sentences;

pub use extractive::Extractive;

use futures::stream::BoxStream;

use crate::rag::context::Passage;

/// What is to be answered, from what.
#[derive(Clone, PartialEq, Debug)]
pub struct GenerateRequest {
    /// The question as the user wrote it.
    pub question: String,
    /// Packed passages, numbered from 1.
    pub passages: Vec<Passage>,
}

/// Writes an answer from passages.
pub trait Generator: std::fmt::Debug + Send + Sync + 'static {
    /// Its name, for example `extractive`.
    fn name(&self) -> &str;

    /// The answer's text in pieces that a reader can be shown as they come. The text cites with `[n]`, n the passage's
    /// number; [`crate::rag::citations`] finds the markers and drops those of no passage. A text that cites nothing
    /// means: the passages do not answer this.
    fn generate(&self, request: GenerateRequest) -> BoxStream<'static, Result<String, GenerateError>>;
}

/// Why an answer ends early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the generator `{generator}` failed: {reason}")]
pub struct GenerateError {
    /// The generator's name.
    pub generator: String,
    /// What it said.
    pub reason: String,
}
