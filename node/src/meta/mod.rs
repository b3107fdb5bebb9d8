//! The meta group: which nodes, collections and shards there are, decided by one Raft group whose members are the seeds.
//!
//! [`machine`] is what a decision does to the placement table, and how the table is kept; [`group`] is how the rest of a
//! node, member of the group or not, reads the table and proposes changes to it.
pub mod group;
pub mod machine;

pub use group::{Meta, MetaError};
