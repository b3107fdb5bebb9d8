//! Wire format and shared vocabulary of nearring.
//!
//! Start with [`ids`] and [`collection`]; [`filter`] defines what every payload index must reproduce, [`hit`] the order
//! in which every merge agrees, [`placement`] where a point and a shard live. [`wire`] is the only module that names
//! generated code, [`convert`] the only one that knows both sides.
//!
//! A thing belongs here when two crates must agree on it exactly. No tokio, no I/O, no openraft; what reads the outside,
//! [`clock`] and [`wire::Dial`], is handed in by whoever starts a process.
// Determinism: `clippy.toml` says what is meant. Programs, tests and benchmarks may.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod clock;
pub mod collection;
pub mod convert;
pub mod coverage;
pub mod examples;
pub mod filter;
pub mod hit;
pub mod ids;
pub mod order;
pub mod payload;
pub mod placement;
pub mod position;
pub mod qdrant;
pub mod query;
pub mod status;
pub mod vector;
pub mod wire;
pub mod write;

/// The version of every message layout this build speaks. A receiver refuses a newer one; 0 on the wire means 1.
pub const WIRE_FORMAT: u32 = 1;
