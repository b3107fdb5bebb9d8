//! The stateless router of nearring: it decides which replicas to ask, asks them, and merges what they say.
//!
//! [`merge`] joins the shards' answers into one ranking; [`scatter`] decides whom to ask, and whom next.
//!
//! Answers from documents, in the order in which data flows: [`documents`] cuts texts into chunks, [`embed`] gives chunks
//! and questions their vectors, [`rag`] packs what a search found and streams the answer, [`generate`] writes it.

pub mod documents;
pub mod embed;
pub mod generate;
pub mod merge;
pub mod rag;
pub mod scatter;
