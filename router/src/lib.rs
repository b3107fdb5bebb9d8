//! The stateless router of nearring: it decides which replicas to ask, asks them, and merges what they say.
//!
//! [`merge`] joins the shards' answers into one ranking; [`scatter`] decides whom to ask, and whom next.

pub mod merge;
pub mod scatter;
