//! The stateless router of nearring: it decides which replicas to ask, asks them, and merges what they say.
//!
//! ```text
//! gateway → pipeline → plan → scatter → merge          reads
//! gateway → pipeline → write::batch → write            writes
//! gateway → pipeline → documents → embed → write       documents
//! gateway → pipeline → rag (embed → search → rerank → generate)   answers
//! ```
//!
//! Start with [`pipeline`]. [`cluster_view`] is all that a router knows, and none of it is lost when it stops; a cluster
//! may have any number of routers. [`failure`] says what a node's refusal means, [`router`] puts the parts together.
//!
//! Answers from documents, in the order in which data flows: [`documents`] cuts texts into chunks, [`embed`] gives chunks
//! and questions their vectors, [`rerank`] looks again at what a search found, [`rag`] packs it and streams the
//! answer that [`generate`] writes. Embedder and generator may be servers of others: [`model_server`].
//!
//! Collections come from elsewhere too: [`qdrant_server`] reads another server that speaks Qdrant's API, and [`snapshot`] writes a
//! collection into a file and restores it from one.
// Determinism: `clippy.toml` says what is meant. Programs, tests and benchmarks may.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod arguments;
pub mod cluster_view;
pub mod compute;
pub mod documents;
pub mod embed;
pub mod failure;
pub mod gateway;
pub mod generate;
mod http_client;
pub mod merge;
pub mod model_server;
pub mod pipeline;
pub mod plan;
pub mod qdrant_server;
pub mod rag;
pub mod rerank;
pub mod router;
pub mod scatter;
pub mod settings;
pub mod snapshot;
pub mod strict;
pub mod traffic;
pub mod write;
