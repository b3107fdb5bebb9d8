//! Simulated nearring clusters: the real nodes and routers on a simulated network, disk and clock, judged by oracles.
//!
//! One seed decides everything: message latencies, crashes, what a crash forgets, elections, the order of maps. A failure
//! therefore comes with the one command that replays it. Product code knows nothing of this crate; it enters through the
//! constructor arguments that production uses too.
//!
//! [`cluster`] runs one; open it first. [`entropy`] makes the operating system's randomness follow from the seed, [`disk`] forgets what was not synced, [`net`]
//! carries gRPC over simulated connections; [`workload`] is what clients do and [`faults`] what goes wrong meanwhile; [`history`] records what the
//! clients asked and were told, and [`oracle`] judges it. [`planted`] keeps the mistakes that the judges must catch.

pub mod cluster;
pub mod disk;
pub mod entropy;
pub mod faults;
pub mod history;
pub mod net;
pub mod oracle;
pub mod planted;
pub mod workload;
