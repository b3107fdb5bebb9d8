//! Asking many shards at once: [`cover`] chooses whom.
pub mod cover;
