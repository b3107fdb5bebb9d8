//! What this node's gRPC server answers, one file a service.
pub mod data;
mod export;
pub mod meta;
pub mod peer;
pub mod status;
