//! What the load and the chaos program share: real server processes, data from files, and figures.
//!
//! `load` measures what a cluster costs beside usearch in this process; `chaos` kills and pauses servers while clients
//! write, and then looks for every acknowledged write on every replica. Neither asserts speed: figures are for people.

pub mod baseline;
pub mod cluster;
pub mod data;
pub mod figures;
pub mod oracle;
