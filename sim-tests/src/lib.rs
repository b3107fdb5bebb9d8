//! Simulated nearring clusters: the real nodes and routers on a simulated network, disk and clock, judged by what
//! must hold of every history.
//!
//! One seed decides everything: message latencies, crashes, what a crash forgets, elections, the order of maps. A failure
//! therefore comes with the one command that replays it. Product code knows nothing of this crate; it enters through the
//! constructor arguments that production uses too.
//!
//! [`cluster`] runs one; open it first. [`entropy`] makes the operating system's randomness and clocks follow from the
//! seed, [`disk`] forgets what was not synced, [`net`] carries gRPC over simulated connections, [`knobs`] are what faults
//! pull at a running host. [`workload`] is what clients do, [`faults`] what goes wrong meanwhile. [`model`] says what every
//! operation means, [`history`] records what was asked and answered; [`invariants`] judges it, [`watch`] looks at the nodes
//! meanwhile, [`whole`] says when the next damage may be done, and [`convergence`] demands that all heals in the end.
//! [`planted`] keeps the mistakes that all of these must catch.
//! [`shrink`] makes a failing run smaller.
//!
//! Beside the simulator: [`decoders`], what everything that reads bytes from outside must do, driven by `cargo fuzz`.

pub mod cluster;
pub mod convergence;
pub mod decoders;
pub mod disk;
pub mod entropy;
pub mod faults;
pub mod history;
mod inject;
pub mod invariants;
pub mod knobs;
pub mod model;
pub mod net;
pub mod planted;
pub mod shrink;
pub mod watch;
pub mod whole;
pub mod workload;
