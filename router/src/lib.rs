//! The stateless router of nearring: it decides which replicas to ask, asks them, and merges what they say.
//!
//! [`merge`] joins the shards' answers into one ranking; [`scatter`] decides whom to ask, and whom next.
//!
//! Answers from documents, in the order in which data flows: [`documents`] cuts texts into chunks, [`embed`] gives chunks
//! and questions their vectors, [`rerank`] looks again at what a search found, [`rag`] packs it and streams the
//! answer that [`generate`] writes.

pub mod documents;
pub mod embed;
pub mod generate;
pub mod merge;
pub mod rag;
pub mod rerank;
pub mod scatter;
