//! What a gRPC status says beyond its code.
use tonic::Status;

/// Whether the call failed before there was a connection, so that the request was never sent.
pub fn never_connected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
