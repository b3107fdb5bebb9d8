//! Doors: each decodes requests, calls the [`crate::pipeline`], encodes answers, and decides nothing else.
pub mod console;
pub(crate) mod count;
pub mod native;
mod native_snapshots;
pub mod openai;
pub mod qdrant;
pub mod ui;
