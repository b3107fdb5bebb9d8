//! Compiles the `.proto` files with protox, so that no `protoc` is needed.
use std::io::Result;

fn main() -> Result<()> {
    let files = ["types.proto", "public.proto", "node.proto", "raft.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"]).map_err(std::io::Error::other)?;
    tonic_prost_build::configure().bytes(".nearring.v1").compile_fds(descriptors)
}
