//! The stateless router of nearring: it decides which replicas to ask, asks them, and merges what they say.
//!
//! [`merge`] joins the shards' answers into one ranking; [`scatter`] decides whom to ask, and whom next.
//!
//! Answers from documents, in the order in which data flows: [`documents`] cuts texts into chunks, [`embed`] gives chunks
//! and questions their vectors.

pub mod documents;
pub mod embed;
pub mod merge;
pub mod scatter;
