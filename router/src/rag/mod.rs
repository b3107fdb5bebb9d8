//! From a question to a cited answer.
//!
//! ```text
//! question → embed → search (the caller's) → rerank → context::pack → generate → citations → AnswerEvent …
//! ```
//!
//! [`answer`] drives; [`context`], [`prompt`], [`citations`] and [`words`] decide, without clock, chance or I/O.

pub mod answer;
pub mod citations;
pub mod context;
pub mod prompt;
pub mod words;
