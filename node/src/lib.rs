//! A nearring storage node: one process, many shards, each an openraft group of replicas over one shared log.
//!
//! Read [`node`] first (what is started, in which order), then [`shard`] (one replica), then what it drives:
//! [`raft`] (shared log and transport), [`machine`] (the pure state machine), [`store`] (its records), [`index`] (its
//! vectors). [`meta`] keeps the placement table. [`medium`], [`compute`] and [`clock`] are the seams a simulator fills.

pub mod bootstrap;
pub mod clock;
pub mod compute;
pub mod identity;
pub mod index;
pub mod machine;
pub mod medium;
pub mod meta;
pub mod node;
pub mod payload_index;
pub mod raft;
pub mod rpc;
pub mod settings;
pub mod shard;
pub mod shards;
pub mod store;
