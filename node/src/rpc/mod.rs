//! The node's gRPC services.
