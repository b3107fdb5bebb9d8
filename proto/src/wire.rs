//! The generated messages and services, under one name.
#![allow(missing_docs, unreachable_pub, clippy::all)]

tonic::include_proto!("nearring.v1");

/// Opens a lazy channel to `host:port`. The network is a constructor argument everywhere: production dials TCP, the
/// simulator its own network.
pub type Dial = std::sync::Arc<dyn Fn(&str) -> tonic::transport::Channel + Send + Sync>;

/// Whether an address is one that [`Dial`] takes: `host:port`, with a port above 0.
pub fn is_host_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// The descriptors of [`self`], encoded, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nearring.bin"));
