//! The Rust SDK of nearring: a [`Client`] that speaks gRPC to a router.
//!
//! ```no_run
//! # async fn example() -> Result<(), nearring_client::Error> {
//! let client = nearring_client::Client::builder("127.0.0.1:6334").build()?;
//! let found = client.describe_collection("articles").await?;
//! println!("{} shards", found.shards.len());
//! # Ok(())
//! # }
//! ```
//!
//! Open [`client`] first; [`mod@write`], [`mod@read`] and [`answer`] hold its operations on points and documents; [`retry`] holds the policies, named by what they promise; [`session`] what makes a repeated
//! write have one effect; [`bulk`] imports streams in bounded memory; [`snapshot`] keeps and restores collections as files; [`error`] says what a caller can do next.
// Determinism: `clippy.toml` says what is meant. Programs, tests and benchmarks may.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod answer;
pub mod bulk;
pub mod client;
pub mod error;
#[cfg(feature = "files")]
#[allow(clippy::disallowed_methods, reason = "the caller's own files, for the command line")]
pub mod files;
pub mod read;
pub mod retry;
pub mod session;
pub mod snapshot;
pub mod write;

pub use bulk::{ImportOptions, ImportReport};
pub use client::{Client, ClientBuilder};
pub use error::{Error, ErrorKind};
pub use nearring_proto::{vector, wire};
pub use retry::RetryPolicy;
