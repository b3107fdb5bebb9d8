//! Between wire messages and domain types.
