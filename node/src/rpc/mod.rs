//! What this node's gRPC server answers, one file a service.
pub mod data;
pub mod meta;
pub mod peer;
pub mod status;
