//! What goes wrong in a run, decided before it starts: pure in the seed, so that it can be printed beside a failure.
//!
//! Every fault ends. Faults may overlap, but at most a minority of nodes is down at once: a cluster without a majority has
//! nothing to say that could be judged, and the time is better spent on what it must get right. One disk a run is wiped at
//! the most: what a majority holds survives one, and nobody promises more.
use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

/// A host of the cluster: a node by its number from 1, or the router.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Host {
    /// `node-<number>`.
    Node(u64),
    /// `router`.
    Router,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Node(number) => write!(f, "node-{number}"),
            Host::Router => f.write_str("router"),
        }
    }
}

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The host stops at once; a node's disk forgets what was not synced. It starts again at the end.
    Crash(Host),
    /// Messages between the two are lost, and connections with them.
    Part(Host, Host),
    /// Messages from the first to the second are lost.
    PartOneWay(Host, Host),
    /// The host reaches nobody.
    Isolate(Host),
    /// Messages between the two wait until the end.
    Hold(Host, Host),
    /// Messages between the two take so many milliseconds.
    Slow(Host, Host, u64),
    /// The next sync of the node's disk fails: it must end by itself, and starts again at the end.
    FailSync(u64),
    /// The node's wall clock is off by so many milliseconds.
    Skew(u64, i64),
    /// The node's disk has room for so many bytes more.
    FillDisk(u64, u64),
    /// The node stops and everything on its disk is gone; it starts again, with nothing, at the end.
    Wipe(u64),
}

/// A fault and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Simulated time at which it begins.
    pub from: Duration,
    /// Simulated time at which it is over.
    pub until: Duration,
    /// What.
    pub kind: Kind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8.3} s to {:>8.3} s  {:?}", self.from.as_secs_f64(), self.until.as_secs_f64(), self.kind)
    }
}

/// Draws faults for a cluster of `nodes` between `from` and `until`, sorted by when they begin; about one every
/// `every`.
pub fn draw(rng: &mut SmallRng, nodes: u64, from: Duration, until: Duration, every: Duration) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = from;
    loop {
        at += every.mul_f64(rng.random_range(0.2..1.8));
        if at >= until {
            return faults;
        }
        let kind = draw_kind(rng, nodes);
        // Half of the crashes are over before anybody has noticed them: the process is back under its old term.
        let quick = matches!(kind, Kind::Crash(_)) && rng.random_bool(0.5);
        let end = at + Duration::from_millis(rng.random_range(if quick { 5..600 } else { 50..8_000 }));
        let downs = |fault: &&Fault| fault.until > at && down(fault.kind).is_some();
        let already: Vec<u64> = faults.iter().filter(downs).filter_map(|fault| down(fault.kind)).collect();
        let too_many =
            down(kind).is_some_and(|node| already.contains(&node) || already.len() as u64 + 1 > (nodes.max(1) - 1) / 2);
        // The router has one crash at a time, too: a second one would start it before the first is over.
        let twice = faults.iter().any(|fault| fault.until > at && fault.kind == kind)
            || matches!(kind, Kind::Wipe(_)) && faults.iter().any(|fault| matches!(fault.kind, Kind::Wipe(_)));
        if !too_many && !twice {
            faults.push(Fault { from: at, until: end, kind });
        }
    }
}

/// The node that a fault takes down.
fn down(kind: Kind) -> Option<u64> {
    match kind {
        Kind::Crash(Host::Node(node))
        | Kind::FailSync(node)
        | Kind::Isolate(Host::Node(node))
        | Kind::FillDisk(node, _)
        | Kind::Wipe(node) => Some(node),
        _ => None,
    }
}

fn draw_kind(rng: &mut SmallRng, nodes: u64) -> Kind {
    let node = |rng: &mut SmallRng| rng.random_range(1..=nodes);
    let host = |rng: &mut SmallRng| if rng.random_bool(0.2) { Host::Router } else { Host::Node(node(rng)) };
    let first = host(rng);
    let second = loop {
        let second = host(rng);
        if second != first {
            break second;
        }
    };
    match rng.random_range(0..24) {
        0..=5 => Kind::Crash(first),
        6..=8 => Kind::Part(first, second),
        9..=10 => Kind::PartOneWay(first, second),
        11..=13 => Kind::Isolate(first),
        14..=15 => Kind::Hold(first, second),
        16 => Kind::Slow(first, second, rng.random_range(50..500)),
        17 => Kind::FailSync(node(rng)),
        18..=19 => Kind::Skew(node(rng), rng.random_range(-3_600_000..3_600_000)),
        20..=21 => Kind::FillDisk(node(rng), rng.random_range(0..3 << 20)),
        _ => Kind::Wipe(node(rng)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_majority_stays_up_every_fault_ends_and_all_kinds_are_drawn() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let seconds = Duration::from_secs;
            let draw = || draw(&mut SmallRng::seed_from_u64(seed), 3, seconds(5), seconds(65), seconds(2));
            let faults = draw();
            assert_eq!(faults, draw());
            assert!(faults.is_sorted_by_key(|fault| fault.from));
            for fault in &faults {
                assert!(fault.from < fault.until && fault.from >= seconds(5) && fault.from < seconds(65));
                kinds.insert(format!("{:?}", fault.kind).split('(').next().map(str::to_owned));
                let wipes = faults.iter().filter(|fault| matches!(fault.kind, Kind::Wipe(_)));
                assert!(wipes.count() <= 1);
                let at_once = |other: &&Fault| other.from <= fault.from && other.until > fault.from;
                let down: Vec<u64> = faults.iter().filter(at_once).filter_map(|fault| down(fault.kind)).collect();
                assert!(down.len() <= 1, "seed {seed}: {down:?} are down at once");
            }
        }
        assert_eq!(kinds.len(), 10, "{kinds:?}");
    }
}
