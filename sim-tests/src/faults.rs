//! What goes wrong in a run, decided before it starts: pure in the seed, so that it can be printed beside a failure, and
//! each fault can be left out without changing the others.
//!
//! Every seed draws which kinds of faults it has at all, and how often each: some have one kind only, some all. Every
//! fault ends. Faults may overlap, but by those of one node at most a minority of nodes is down at once, so that
//! clients get answers that can be judged; [`Kind::Majority`] and [`Kind::PowerCut`] are the exceptions, and short.
//!
//! **The budget.** What damages storage ([`Kind::damages`]) is held back until every group is whole, which the simulator
//! asks the nodes themselves (see `whole`), and is skipped where that does not come true before the fault's end. So at most one
//! replica of a group is damaged until it has healed, however many are during a run. A crash that loses unsynced bytes damages
//! nothing: nobody was promised anything of those.
//!
//! **Beyond it.** [`Kind::FlipTwo`], in a few of a hundred seeds and then once, damages the logs of two of the nodes. Both
//! notice, and never vote again as who they were. Whatever then has no majority of intact voters can elect nobody
//! and answers nothing, for ever. So every answer is judged as before, lost writes included; only that there must be
//! answers, and that all heals, is not asked of such a run.
use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;

use crate::disk::DiskOp;
use crate::knobs::Cut;

/// The least number of faults of a run that has any.
pub const FAULTS_MIN: usize = 5;
/// How many of a hundred seeds damage more than the cluster promises to survive.
const BEYOND_PERCENT: u32 = 3;

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

/// Which files of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The Raft log of its present life.
    Log,
    /// Segments.
    Segment,
    /// Snapshots of shards.
    Snapshot,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The host stops at once; a node's disk forgets what was not synced. It starts again at the end.
    Crash(Host),
    /// The host crashes before the effect after so many more (see [`crate::knobs`]), and starts again at the end.
    Fuse(Host, u64),
    /// These nodes, a majority, crash in the same step, and start again at the end.
    Majority(u64, u64),
    /// All hosts lose power in the same step: nobody is told, messages on their way are lost. They start again at the end.
    PowerCut,
    /// The host reads, writes and works on nothing until the end; then its monotonic clock jumps by so many milliseconds.
    Stop(Host, u64),
    /// The host's monotonic clock jumps ahead by so many milliseconds, once.
    Leap(Host, u64),
    /// Messages between the two are lost, and connections with them.
    Part(Host, Host),
    /// Messages from the first to the second are lost.
    PartOneWay(Host, Host),
    /// The host reaches nobody.
    Isolate(Host),
    /// The other hosts reach this node and not each other.
    Bridge(u64),
    /// Messages between the two wait until the end.
    Hold(Host, Host),
    /// Messages between the two take so many milliseconds.
    Slow(Host, Host, u64),
    /// Messages between the two take up to so many milliseconds, each another time: those of different connections
    /// overtake each other.
    Jitter(Host, Host, u64),
    /// Of so many messages between the two about one is lost, with those on their way and the connections they belong to.
    Loss(Host, Host, u32),
    /// Connections of the host are cut in the middle of what they carry.
    Cut(Host, Cut),
    /// The next sync of the node's disk fails: it must end by itself, and starts again at the end.
    FailSync(u64),
    /// Of a hundred operations of this kind on the node's disk about so many fail.
    DiskErrors(u64, DiskOp, u32),
    /// The node's disk has room for so many bytes more.
    FillDisk(u64, u64),
    /// The node's file work takes so many times as long.
    SlowDisk(u64, u32),
    /// The node's wall clock jumps by so many milliseconds, and back at the end.
    Skew(u64, i64),
    /// The node stops and everything on its disk is gone; it starts again, with nothing, at the end.
    Wipe(u64),
    /// The node stops, a durable bit of its files flips, and it starts again at the end.
    Flip(u64, Part),
    /// A durable bit of the node's files flips while it runs; it is started anew at the end.
    Rot(u64, Part),
    /// So many reads of the node's segment files return a wrong bit; what is stored is right.
    Misread(u64, u32),
    /// Beyond the budget: a durable bit flips in the logs of both, which are started anew at the end.
    FlipTwo(u64, u64),
}

impl Kind {
    /// The name without what it is done to.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Crash(_) => "crash",
            Kind::Fuse(..) => "fuse",
            Kind::Majority(..) => "majority",
            Kind::PowerCut => "power cut",
            Kind::Stop(..) => "stop",
            Kind::Leap(..) => "leap",
            Kind::Part(..) => "partition",
            Kind::PartOneWay(..) => "one-way partition",
            Kind::Isolate(_) => "isolation",
            Kind::Bridge(_) => "bridge",
            Kind::Hold(..) => "hold",
            Kind::Slow(..) => "slow link",
            Kind::Jitter(..) => "jitter",
            Kind::Loss(..) => "loss",
            Kind::Cut(..) => "cut",
            Kind::FailSync(_) => "failed sync",
            Kind::DiskErrors(..) => "disk errors",
            Kind::FillDisk(..) => "full disk",
            Kind::SlowDisk(..) => "slow disk",
            Kind::Skew(..) => "skew",
            Kind::Wipe(_) => "wipe",
            Kind::Flip(..) => "flip",
            Kind::Rot(..) => "rot",
            Kind::Misread(..) => "misread",
            Kind::FlipTwo(..) => "flip of two",
        }
    }

    /// Whether it takes from a replica what was durable, so that it must wait until everything is whole.
    pub fn damages(&self) -> bool {
        matches!(self, Kind::Wipe(_) | Kind::Flip(..) | Kind::Rot(..) | Kind::Misread(..) | Kind::FlipTwo(..))
    }

    /// The node that it takes down, for some of its time at least.
    fn takes_down(&self) -> Option<u64> {
        match *self {
            Kind::Crash(Host::Node(node))
            | Kind::Fuse(Host::Node(node), _)
            | Kind::Stop(Host::Node(node), _)
            | Kind::Isolate(Host::Node(node))
            | Kind::FailSync(node)
            | Kind::DiskErrors(node, ..)
            | Kind::FillDisk(node, _)
            | Kind::Wipe(node)
            | Kind::Flip(node, _)
            | Kind::Rot(node, _)
            | Kind::Misread(node, _) => Some(node),
            _ => None,
        }
    }
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

/// Kinds that can be drawn, by number.
const KINDS: u32 = 24;

/// Draws faults for a cluster of `nodes` that begin between `from` and `until`, sorted by when they begin; about one every
/// `every`, and at least [`FAULTS_MIN`], unless there is no time for any.
pub fn draw(rng: &mut SmallRng, nodes: u64, from: Duration, until: Duration, every: Duration) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    if until <= from {
        return faults;
    }
    // Which kinds there are, each once for its weight.
    let (how_many, every) = (rng.random_range(0..10), every.mul_f64(rng.random_range(0.4..1.6)));
    let mut mix: Vec<u32> = Vec::new();
    for kind in 0..KINDS {
        let on = match how_many {
            0 => false,
            1..=7 => rng.random_bool(0.35),
            _ => true,
        };
        mix.extend(std::iter::repeat_n(kind, if on { rng.random_range(1..5) } else { 0 }));
    }
    if mix.is_empty() {
        mix.push(rng.random_range(0..KINDS));
    }
    let mut at = from;
    let mut refused = 0;
    while refused < 1000 {
        at += every.mul_f64(rng.random_range(0.2..1.8));
        if at >= until {
            if faults.len() >= FAULTS_MIN {
                break;
            }
            at = from + (until - from).mul_f64(rng.random());
        }
        let Some(kind) = mix.choose(rng).map(|number| draw_kind(rng, nodes, *number)) else { break };
        let fault = Fault { from: at, until: at + lasts(rng, &kind), kind };
        if fits(&faults, &fault, nodes) {
            faults.push(fault);
        } else {
            refused += 1;
        }
    }
    if rng.random_range(0..100) < BEYOND_PERCENT && nodes > 2 {
        let (a, b) = two(rng, nodes);
        let from = from + (until - from) / 2;
        faults.push(Fault { from, until: until + Duration::from_secs(10), kind: Kind::FlipTwo(a, b) });
    }
    faults.sort_by_key(|fault| fault.from);
    faults
}

fn fits(faults: &[Fault], new: &Fault, nodes: u64) -> bool {
    let mut at_once = faults.iter().filter(|fault| fault.from < new.until && fault.until > new.from);
    let mut down: Vec<u64> = at_once.clone().filter_map(|fault| fault.kind.takes_down()).collect();
    let twice = at_once.any(|fault| fault.kind.name() == new.kind.name() && fault.kind.takes_down().is_none());
    let already = new.kind.takes_down().is_some_and(|node| {
        down.sort_unstable();
        down.dedup();
        down.contains(&node) || down.len() as u64 + 1 > (nodes.max(1) - 1) / 2
    });
    !twice && !already
}

fn lasts(rng: &mut SmallRng, kind: &Kind) -> Duration {
    let range = match kind {
        // Half of the crashes are over before anybody has noticed them: the process is back under its old term.
        Kind::Crash(_) | Kind::Stop(..) if rng.random_bool(0.5) => 5..600,
        Kind::Majority(..) | Kind::PowerCut => 5..3_000,
        // They may have to wait until everything is whole.
        kind if kind.damages() => 6_000..15_000,
        _ => 50..8_000,
    };
    Duration::from_millis(rng.random_range(range))
}

fn two(rng: &mut SmallRng, nodes: u64) -> (u64, u64) {
    let first = rng.random_range(1..=nodes);
    let second = rng.random_range(1..nodes);
    (first, if second >= first { second + 1 } else { second })
}

fn draw_kind(rng: &mut SmallRng, nodes: u64, number: u32) -> Kind {
    let node = rng.random_range(1..=nodes);
    let host = if rng.random_bool(0.2) { Host::Router } else { Host::Node(node) };
    let other = loop {
        let other = if rng.random_bool(0.2) { Host::Router } else { Host::Node(rng.random_range(1..=nodes)) };
        if other != host {
            break other;
        }
    };
    // Small numbers and large ones equally often.
    let up_to = |rng: &mut SmallRng, bits: u32| {
        let bits = rng.random_range(0..=bits);
        rng.random_range(0..1_u64 << bits)
    };
    let part = |rng: &mut SmallRng| match rng.random_range(0..5) {
        0 | 1 => Part::Log,
        2 | 3 => Part::Segment,
        _ => Part::Snapshot,
    };
    match number {
        0 => Kind::Crash(host),
        1 => Kind::Fuse(host, up_to(rng, 11)),
        2 if nodes > 2 => {
            let (a, b) = two(rng, nodes);
            Kind::Majority(a, b)
        }
        3 => Kind::PowerCut,
        4 => Kind::Stop(host, if rng.random_bool(0.5) { rng.random_range(0..3_000) } else { 0 }),
        5 => Kind::Leap(host, rng.random_range(100..6_000)),
        6 => Kind::Part(host, other),
        7 => Kind::PartOneWay(host, other),
        8 => Kind::Isolate(host),
        9 => Kind::Bridge(node),
        10 => Kind::Hold(host, other),
        11 => Kind::Slow(host, other, rng.random_range(50..500)),
        12 => Kind::Jitter(host, other, rng.random_range(20..400)),
        13 => Kind::Loss(host, other, rng.random_range(20..1_000)),
        14 | 15 => {
            let cut = Cut { after: up_to(rng, 17), sent: rng.random_bool(0.5), times: rng.random_range(1..12) };
            Kind::Cut(host, cut)
        }
        16 => Kind::FailSync(node),
        17 => {
            let op = DiskOp::ALL.choose(rng).copied().unwrap_or(DiskOp::Append);
            Kind::DiskErrors(node, op, if rng.random_bool(0.3) { 100 } else { rng.random_range(1..40) })
        }
        18 => Kind::FillDisk(node, rng.random_range(0..3 << 20)),
        19 => Kind::SlowDisk(node, rng.random_range(5..200)),
        20 => {
            let off = i64::try_from(up_to(rng, 22)).unwrap_or(i64::MAX);
            Kind::Skew(node, if rng.random_bool(0.5) { off } else { -off })
        }
        21 => Kind::Wipe(node),
        22 if rng.random_bool(0.5) => Kind::Flip(node, part(rng)),
        22 => Kind::Rot(node, part(rng)),
        23 => Kind::Misread(node, rng.random_range(1..4)),
        _ => Kind::Crash(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeMap;

    #[test]
    fn a_majority_stays_up_every_fault_ends_and_seeds_have_one_kind_or_many() {
        let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
        let (mut alone, mut beyond, mut many) = (0, 0, 0);
        for seed in 0..400 {
            let seconds = Duration::from_secs;
            let draw = || draw(&mut SmallRng::seed_from_u64(seed), 3, seconds(3), seconds(28), seconds(3));
            let faults = draw();
            assert_eq!(faults, draw());
            assert!(faults.is_sorted_by_key(|fault| fault.from));
            let mut names: Vec<_> = faults.iter().map(|fault| fault.kind.name()).collect();
            for (at, fault) in faults.iter().enumerate() {
                assert!(fault.from < fault.until && fault.from >= seconds(3) && fault.from < seconds(28));
                *kinds.entry(fault.kind.name()).or_default() += 1;
                let before = &faults[..at];
                let at_once = before.iter().filter(|other| other.until > fault.from);
                let down = at_once.filter(|other| other.kind.takes_down().is_some()).count();
                assert!(fault.kind.takes_down().is_none() || down == 0, "seed {seed}: two are down at once");
            }
            beyond += u32::from(names.contains(&"flip of two"));
            names.sort_unstable();
            names.dedup();
            alone += u32::from(names.len() == 1);
            many += u32::from(names.len() > 5);
            assert!(faults.len() >= FAULTS_MIN || names.len() <= 3, "seed {seed}: {faults:?}");
        }
        assert_eq!(kinds.len(), 25, "{kinds:?}");
        assert!(alone > 10 && many > 50 && (3..40).contains(&beyond), "{alone} {many} {beyond}");
    }
}
