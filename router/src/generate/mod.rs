//! Passages to an answer.
//!
//! [`Generator`] is the seam; [`Extractive`] is the one that ships: it answers with sentences of the passages themselves, so
//! it cannot say what no document says. [`OpenAi`] asks a model server.

mod extractive;
mod openai;
mod sentences;

pub use extractive::Extractive;
pub use openai::OpenAi;

use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::failure::ModelFailure;
use crate::rag::context::Passage;

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Whoever set the conversation up.
    System,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
}

/// A message of the conversation before the question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Whose it is.
    pub role: Role,
    /// What it says.
    pub text: String,
}

/// How a model is to choose its words, where it is a model that chooses: named and bounded as OpenAI's API does. `None` is the
/// model's own default.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 to 2.
    pub temperature: Option<f64>,
    /// 0 to 1.
    pub top_p: Option<f64>,
    /// The longest answer, in the model's tokens.
    pub max_tokens: Option<u32>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Makes answers repeatable where the model can.
    pub seed: Option<i64>,
    /// Where the answer is to end: up to four texts.
    pub stop: Option<Vec<String>>,
}

/// What is to be answered, from what.
#[derive(Clone, PartialEq, Debug)]
pub struct GenerateRequest {
    /// The question as the user wrote it.
    pub question: String,
    /// Packed passages, numbered from 1.
    pub passages: Vec<Passage>,
    /// What was said before, oldest first. A generator that only quotes has no use for it.
    pub turns: Vec<Turn>,
    /// How to choose words. A generator that only quotes has no use for it.
    pub sampling: Sampling,
}

/// Why an answer's text ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Finish {
    /// It is complete.
    #[default]
    Complete,
    /// It is as long as was allowed.
    Length,
    /// The model held the rest back.
    Filtered,
}

/// What a generator gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Generated {
    /// A piece of the text; may be empty.
    Text(String),
    /// The end, and its reason. A stream that ends without it is complete.
    Finished(Finish),
}

/// Writes an answer from passages.
pub trait Generator: std::fmt::Debug + Send + Sync + 'static {
    /// Its name, for example `extractive`.
    fn name(&self) -> &str;

    /// The answer's text in pieces that a reader can be shown as they come. The text cites with `[n]`, n the passage's
    /// number; [`crate::rag::citations`] finds the markers and drops those of no passage. A text that cites nothing
    /// means: the passages do not answer this.
    fn generate(&self, request: GenerateRequest) -> BoxStream<'static, Result<Generated, GenerateError>>;
}

/// Why an answer ends early.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the generator `{generator}` failed: {reason}")]
pub struct GenerateError {
    /// The generator's name.
    pub generator: String,
    /// What can be done about it.
    pub failure: ModelFailure,
    /// What it said.
    pub reason: String,
}
