//! Parts of a nearring storage node: one process, many shards, each an openraft group of replicas over one shared log.
//!
//! [`medium`], [`compute`] and [`clock`] are the seams through which a node reaches disk, processor and wall time, and
//! which a simulator fills with its own; [`raft`] fixes the types that every group shares; [`settings`] is what a node
//! is started with.

pub mod clock;
pub mod compute;
pub mod medium;
pub mod raft;
pub mod settings;
