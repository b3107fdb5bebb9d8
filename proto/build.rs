//! Compiles the `.proto` files with protox, so that no `protoc` is needed.
use std::io::Result;

fn main() -> Result<()> {
    let files = ["types.proto", "public.proto", "node.proto", "raft.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"]).map_err(std::io::Error::other)?;
    // Ordered maps, so that equal messages are equal bytes: a simulated run must replay exactly.
    tonic_prost_build::configure().bytes(".nearring.v1").btree_map(".nearring.v1").compile_fds(descriptors)
}
