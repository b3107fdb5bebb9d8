//! What the simulator does to a running cluster: faults begin and end, processes start again, and at last all is repaired.
//!
//! What a link or a host is like follows from all faults that are on at the moment, so one that ends does not end another.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cluster::{Cluster, LATENCY, RESTART, make_data_dir};
use crate::disk::DiskOp;
use crate::entropy;
use crate::faults::{Fault, Host, Kind, Part};
use crate::knobs::{Counts, Knobs};

/// What is being done at the moment, and what was.
#[derive(Default)]
pub(crate) struct Injector {
    pub(crate) knobs: BTreeMap<Host, Knobs>,
    active: Vec<Kind>,
    /// Faults that hold a host down.
    held: BTreeMap<Host, u32>,
    /// Hosts that are down because their fuse burnt.
    burnt: BTreeSet<Host>,
    /// Damage that waits until everything is whole.
    pending: Vec<Fault>,
    links: BTreeMap<(Host, Host), Link>,
    counts: Counts,
}

/// What a link between two hosts is to be like.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Link {
    /// From the first to the second, and back.
    lost: (bool, bool),
    held: bool,
    /// Shortest and longest time of a message.
    latency: Option<(Duration, Duration)>,
    /// One message of so many is lost.
    one_lost_of: Option<u32>,
}

impl Cluster<'_> {
    pub(crate) fn apply(&mut self, fault: &Fault, begins: bool) {
        let kind = fault.kind;
        if begins && kind.damages() {
            self.shared.history.note(format_args!("waits until all is whole: {kind:?}"));
            self.shared.whole.set(false);
            self.shared.wants_whole.set(true);
            self.injector.pending.push(*fault);
            return;
        }
        if !begins && self.injector.pending.contains(fault) {
            self.injector.pending.retain(|pending| pending != fault);
            self.shared.wants_whole.set(!self.injector.pending.is_empty());
            self.shared.history.note(format_args!("skipped, for not all was whole in time: {kind:?}"));
            self.count("skipped damage", 1);
            return;
        }
        self.change(fault, begins);
    }

    fn change(&mut self, fault: &Fault, begins: bool) {
        let kind = fault.kind;
        self.shared.history.note(format_args!("{} {kind:?}", if begins { "begins" } else { "ends" }));
        if begins {
            self.count(kind.name(), 1);
            self.injector.active.push(kind);
        } else if let Some(at) = self.injector.active.iter().position(|active| *active == kind) {
            self.injector.active.remove(at);
        }
        match kind {
            Kind::Crash(host) => self.down(host, begins),
            Kind::Fuse(host, effects) => {
                if begins {
                    self.knobs(host).set_fuse(Some(effects));
                } else {
                    // Where it did not burn it is taken out again; where it did, the host has been held down since.
                    self.knobs(host).set_fuse(None);
                    if self.injector.burnt.remove(&host) {
                        self.down(host, false);
                    }
                }
            }
            Kind::Majority(a, b) => [a, b].into_iter().for_each(|node| self.down(Host::Node(node), begins)),
            Kind::PowerCut => {
                let hosts = self.hosts();
                if begins {
                    // What is on its way is lost, and nobody says goodbye.
                    for (at, host) in hosts.iter().enumerate() {
                        for other in &hosts[at + 1..] {
                            self.sim.partition(host.to_string(), other.to_string());
                            self.injector.links.remove(&(*host, *other));
                        }
                    }
                }
                hosts.into_iter().for_each(|host| self.down(host, begins));
            }
            Kind::Stop(host, leap) => {
                self.knobs(host).stop(begins.then_some(fault.until));
                if !begins && leap > 0 {
                    self.knobs(host).leap(Duration::from_millis(leap));
                }
            }
            Kind::Leap(host, ms) if begins => self.knobs(host).leap(Duration::from_millis(ms)),
            Kind::Cut(host, cut) => self.knobs(host).set_cut(begins.then_some(cut)),
            Kind::FailSync(node) => self.with_disk(node, |disk| disk.fail_syncs(u32::from(begins))),
            Kind::DiskErrors(node, op, percent) => {
                let chance = if begins { f64::from(percent) / 100.0 } else { 0.0 };
                self.with_disk(node, |disk| disk.fail(op, chance));
            }
            Kind::FillDisk(node, room) => {
                self.with_disk(node, |disk| disk.set_capacity(if begins { disk.used() + room } else { u64::MAX }));
            }
            Kind::SlowDisk(node, factor) => self.knobs(Host::Node(node)).slow_io(begins.then_some(factor)),
            Kind::Skew(node, ms) => {
                if let Some(skew) = self.skews.get(&node) {
                    skew.store(if begins { ms } else { 0 }, Ordering::Relaxed);
                }
            }
            Kind::Wipe(node) => {
                self.down(Host::Node(node), begins);
                if begins && let Some(disk) = self.disks.get(&node) {
                    disk.wipe();
                    make_data_dir(disk);
                }
            }
            Kind::Flip(node, part) => {
                self.down(Host::Node(node), begins);
                if begins {
                    self.flip(node, part);
                }
            }
            Kind::Rot(node, part) if begins => self.flip(node, part),
            Kind::Rot(node, _) => self.restart(Host::Node(node)),
            Kind::Misread(node, times) => {
                self.with_disk(node, |disk| disk.misread("/segments/", if begins { times } else { 0 }));
            }
            Kind::FlipTwo(a, b) if begins => {
                self.shared.beyond.set(true);
                [a, b].into_iter().for_each(|node| self.flip(node, Part::Log));
            }
            Kind::FlipTwo(a, b) => [a, b].into_iter().for_each(|node| self.restart(Host::Node(node))),
            Kind::Leap(..)
            | Kind::Part(..)
            | Kind::PartOneWay(..)
            | Kind::Isolate(_)
            | Kind::Bridge(_)
            | Kind::Hold(..)
            | Kind::Slow(..)
            | Kind::Jitter(..)
            | Kind::Loss(..) => {}
        }
        self.set_links();
    }

    /// What must be done between two steps, whatever begins or ends: fuses that burnt, damage that may happen now, and
    /// processes that ended by themselves. Those are started again after a while, as a supervisor does. What they had not
    /// synced is gone all the same, for they may have ended because a sync failed.
    pub(crate) fn tend(&mut self) {
        for host in self.hosts() {
            if self.knobs(host).is_burnt() {
                self.shared.history.note(format_args!("{host} crashes at an effect"));
                self.injector.burnt.insert(host);
                self.down(host, true);
            }
        }
        if self.shared.whole.take()
            && !self.injector.pending.is_empty()
            && self.injector.held.is_empty()
            && self.shared.ended.borrow().is_empty()
        {
            let fault = self.injector.pending.remove(0);
            self.change(&fault, true);
            // The next one asks anew: what was seen is over.
            self.shared.wants_whole.set(!self.injector.pending.is_empty());
        }
        let now = self.sim.elapsed();
        let due = |(host, at): (&Host, &Duration)| (now >= *at + RESTART).then_some(*host);
        let ended: Vec<Host> = self.shared.ended.borrow().iter().filter_map(due).collect();
        for host in ended {
            self.restart(host);
        }
    }

    /// Ends everything that is still on.
    pub(crate) fn heal(&mut self) {
        self.injector.active.clear();
        self.injector.pending.clear();
        self.injector.held.clear();
        self.injector.burnt.clear();
        self.shared.wants_whole.set(false);
        for host in self.hosts() {
            let knobs = self.knobs(host);
            knobs.set_fuse(None);
            knobs.set_cut(None);
            knobs.slow_io(None);
            knobs.stop(None);
        }
        for disk in self.disks.values() {
            disk.fail_syncs(0);
            DiskOp::ALL.into_iter().for_each(|op| disk.fail(op, 0.0));
            disk.misread("", 0);
            disk.set_capacity(u64::MAX);
        }
        self.skews.values().for_each(|skew| skew.store(0, Ordering::Relaxed));
        self.injector.links.clear(); // all are set anew
        self.set_links();
        self.hosts().into_iter().for_each(|host| self.start(host));
        self.shared.history.note(format_args!("healed"));
        self.shared.healed.set(true);
    }

    /// How often each thing went wrong on purpose, by name.
    pub(crate) fn injected(&self) -> Counts {
        let mut all = self.injector.counts.clone();
        let hosts = self.injector.knobs.values().map(Knobs::counts);
        for (name, count) in hosts.chain(self.disks.values().map(|disk| disk.counts())).flatten() {
            *all.entry(name).or_default() += count;
        }
        all
    }

    fn count(&mut self, what: &'static str, times: u64) {
        *self.injector.counts.entry(what).or_default() += times;
    }

    fn knobs(&mut self, host: Host) -> Knobs {
        self.injector.knobs.entry(host).or_default().clone()
    }

    fn with_disk(&self, node: u64, what: impl FnOnce(&crate::disk::SimDisk)) {
        if let Some(disk) = self.disks.get(&node) {
            what(disk);
        }
    }

    fn flip(&mut self, node: u64, part: Part) {
        let Some(disk) = self.disks.get(&node) else { return };
        // Directories of earlier lives stay and are never read again; a later life has the greater name.
        let life = |path: &str| path.split_once("/log/").map(|(_, rest)| rest.to_owned());
        let newest = disk.files().iter().filter_map(|path| life(path)?.split('/').next().map(str::to_owned)).max();
        let flip = |part: Part| {
            disk.flip_bit(part == Part::Log, |path| match part {
                Part::Log => newest.as_ref().is_some_and(|newest| path.contains(&format!("/log/{newest}/"))),
                Part::Segment => path.contains("/segments/"),
                Part::Snapshot => path.contains("/shards/") && path.contains("/snapshot-"),
            })
        };
        // There may be no segment or snapshot yet; there is always a log.
        let (part, flipped) = match flip(part) {
            None => (Part::Log, flip(Part::Log)),
            flipped => (part, flipped),
        };
        let name = match (&flipped, part) {
            (None, _) => "flips that found no byte",
            (_, Part::Log) => "bits flipped in logs",
            (_, Part::Segment) => "bits flipped in segments",
            (_, Part::Snapshot) => "bits flipped in snapshots",
        };
        self.shared.history.note(format_args!("flipped on node-{node}: {flipped:?}"));
        self.count(name, 1);
    }

    fn hosts(&self) -> Vec<Host> {
        self.disks.keys().map(|node| Host::Node(*node)).chain([Host::Router]).collect()
    }

    /// Takes a host down, or lets it start again where nothing else holds it.
    fn down(&mut self, host: Host, begins: bool) {
        let held = self.injector.held.entry(host).or_default();
        *held = if begins { *held + 1 } else { held.saturating_sub(1) };
        let free = *held == 0;
        if free {
            self.injector.held.remove(&host);
            self.start(host);
        } else if begins {
            self.crash(host);
        }
    }

    fn crash(&mut self, host: Host) {
        // What a process does while it is torn down, no process that crashes does.
        let knobs = self.knobs(host);
        knobs.burn();
        self.sim.crash(host.to_string());
        if let Host::Node(node) = host
            && let Some(disk) = self.disks.get(&node)
        {
            disk.crash();
        }
        let stop = self.injector.active.iter().any(|kind| matches!(kind, Kind::Stop(stopped, _) if *stopped == host));
        knobs.reset();
        if stop {
            self.count("crashes of a stopped host", 1);
        }
        self.shared.ended.borrow_mut().remove(&host);
    }

    fn start(&mut self, host: Host) {
        if !self.injector.held.contains_key(&host) && !self.sim.is_host_running(host.to_string()) {
            entropy::set_elapsed(self.sim.elapsed());
            self.sim.bounce(host.to_string());
        }
    }

    fn restart(&mut self, host: Host) {
        self.crash(host);
        self.start(host);
    }

    fn link(&self, a: Host, b: Host) -> Link {
        let mut link = Link::default();
        let pair = |x: Host, y: Host| (x, y) == (a, b) || (y, x) == (a, b);
        for kind in &self.injector.active {
            match *kind {
                Kind::Part(x, y) if pair(x, y) => link.lost = (true, true),
                Kind::Isolate(host) if host == a || host == b => link.lost = (true, true),
                Kind::Bridge(node) if ![a, b].contains(&Host::Node(node)) => link.lost = (true, true),
                Kind::PartOneWay(x, y) if (x, y) == (a, b) => link.lost.0 = true,
                Kind::PartOneWay(x, y) if (x, y) == (b, a) => link.lost.1 = true,
                Kind::Hold(x, y) if pair(x, y) => link.held = true,
                Kind::Slow(x, y, ms) if pair(x, y) => {
                    link.latency = Some((Duration::from_millis(ms), Duration::from_millis(ms)));
                }
                Kind::Jitter(x, y, ms) if pair(x, y) => link.latency = Some((LATENCY.0, Duration::from_millis(ms))),
                Kind::Loss(x, y, of) if pair(x, y) => link.one_lost_of = Some(of),
                _ => {}
            }
        }
        // turmoil knows one state of a link at a time, and forgets another state where it loses a message.
        if link.lost != (false, false) {
            (link.held, link.one_lost_of) = (false, None);
        } else if link.held {
            link.one_lost_of = None;
        }
        link
    }

    fn set_links(&mut self) {
        let hosts = self.hosts();
        for (at, a) in hosts.iter().enumerate() {
            for b in &hosts[at + 1..] {
                let link = self.link(*a, *b);
                if self.injector.links.insert((*a, *b), link) == Some(link) {
                    continue;
                }
                let (a, b) = (a.to_string(), b.to_string());
                self.sim.set_link_fail_rate(&*a, &*b, link.one_lost_of.map_or(0.0, |of| 1.0 / f64::from(of)));
                let (shortest, longest) = link.latency.unwrap_or(LATENCY);
                self.sim.set_link_latency(&*a, &*b, shortest);
                self.sim.set_link_max_message_latency(&*a, &*b, longest);
                // What was held goes on its way, and may be lost by what follows.
                self.sim.release(&*a, &*b);
                match link.lost {
                    (true, true) => self.sim.partition(&*a, &*b),
                    (true, false) => self.sim.partition_oneway(&*a, &*b),
                    (false, true) => self.sim.partition_oneway(&*b, &*a),
                    (false, false) if link.held => self.sim.hold(&*a, &*b),
                    (false, false) => {}
                }
            }
        }
    }
}
