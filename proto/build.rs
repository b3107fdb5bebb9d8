//! Compiles the `.proto` files with protox, so that no `protoc` is needed.
use std::io::{Error, Result};
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=proto");
    // Ordered maps, so that equal messages are equal bytes: a simulated run must replay exactly.
    let own = ["types.proto", "public.proto", "node.proto", "raft.proto", "archive.proto"];
    let descriptors = protox::compile(own, ["proto"]).map_err(Error::other)?;
    keep("nearring.bin", &descriptors)?;
    tonic_prost_build::configure().bytes(".nearring.v1").btree_map(".nearring.v1").compile_fds(descriptors)?;
    let qdrant = ["qdrant.proto", "collections_service.proto", "points_service.proto", "snapshots_service.proto"];
    let descriptors = protox::compile(qdrant, ["proto/qdrant"]).map_err(Error::other)?;
    keep("qdrant.bin", &descriptors)?;
    tonic_prost_build::configure().btree_map(".qdrant").compile_fds(descriptors)
}

/// Keeps descriptors beside the generated code, for reflection.
fn keep(name: &str, descriptors: &impl Message) -> Result<()> {
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| Error::other("cargo sets OUT_DIR"))?;
    std::fs::write(PathBuf::from(out).join(name), descriptors.encode_to_vec())
}
