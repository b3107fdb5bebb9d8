//! Qdrant's messages and services, generated from its own `.proto` files (`proto/proto/qdrant/`).
#![allow(missing_docs, unreachable_pub, deprecated, rustdoc::all, clippy::all)]

tonic::include_proto!("qdrant");

/// The descriptors of these messages and services, encoded, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/qdrant.bin"));
