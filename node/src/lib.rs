//! A nearring storage node: one process, many shards, each an openraft group of replicas over one shared log.
//!
//! [`node`] puts the parts together. [`medium`], [`compute`] and [`clock`] are the seams through which a node reaches disk,
//! processor and wall time, and which a simulator fills with its own. Who the node is and how it finds its cluster:
//! [`identity`], [`bootstrap`], [`meta`]; when it gives up its life, [`renewal`]. [`shards`] runs the replicas that the
//! placement table gives it; one of them is [`shard`]: [`raft`] orders its entries, [`machine`] says what an entry does,
//! [`store`] keeps the points, [`index`] finds them by vector and [`payload_index`] by payload. [`rpc`] answers routers and
//! other nodes; [`admission`] bounds what is under way; [`settings`] is what a node is started with.
// Determinism: `clippy.toml` says what is meant. Programs, tests and benchmarks may.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod admission;
pub mod bootstrap;
pub mod compute;
pub mod identity;
pub mod index;
pub mod machine;
pub mod medium;
pub mod meta;
pub mod node;
pub mod payload_index;
pub mod raft;
pub mod renewal;
pub mod rpc;
pub mod settings;
pub mod shard;
pub mod shards;
pub mod store;

pub use nearring_proto::clock;
