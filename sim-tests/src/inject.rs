//! What the simulator does to a running cluster: faults begin and end, processes start again, and at last all is repaired.
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::cluster::{Cluster, RESTART, make_data_dir};
use crate::faults::{Host, Kind};

impl Cluster<'_> {
    pub(crate) fn apply(&mut self, kind: Kind, begins: bool) {
        self.shared.history.note(format_args!("{} {kind:?}", if begins { "begins" } else { "ends" }));
        let name = |host: Host| host.to_string();
        match kind {
            Kind::Crash(host) if begins => self.crash(host),
            Kind::Crash(host) => self.start(host),
            Kind::Part(a, b) if begins => self.sim.partition(name(a), name(b)),
            Kind::Part(a, b) => self.sim.repair(name(a), name(b)),
            Kind::PartOneWay(a, b) if begins => self.sim.partition_oneway(name(a), name(b)),
            Kind::PartOneWay(a, b) => self.sim.repair_oneway(name(a), name(b)),
            Kind::Isolate(host) => {
                for other in self.hosts().into_iter().filter(|other| *other != host) {
                    match begins {
                        true => self.sim.partition(name(host), name(other)),
                        false => self.sim.repair(name(host), name(other)),
                    }
                }
            }
            Kind::Hold(a, b) if begins => self.sim.hold(name(a), name(b)),
            Kind::Hold(a, b) => self.sim.release(name(a), name(b)),
            Kind::Slow(a, b, ms) => {
                let ms = if begins { ms } else { 2 };
                self.sim.set_link_latency(name(a), name(b), Duration::from_millis(ms));
            }
            Kind::FailSync(node) if begins => {
                if let Some(disk) = self.disks.get(&node) {
                    disk.fail_syncs(1);
                }
            }
            Kind::FailSync(node) => {
                // It may have had nothing to sync.
                if let Some(disk) = self.disks.get(&node) {
                    disk.fail_syncs(0);
                }
            }
            Kind::FillDisk(node, room) => {
                if let Some(disk) = self.disks.get(&node) {
                    disk.set_capacity(if begins { disk.used() + room } else { u64::MAX });
                }
            }
            Kind::Wipe(node) if begins => {
                self.crash(Host::Node(node));
                if let Some(disk) = self.disks.get(&node) {
                    disk.wipe();
                    make_data_dir(disk);
                }
            }
            Kind::Wipe(node) => self.start(Host::Node(node)),
            Kind::Skew(node, ms) => {
                if let Some(skew) = self.skews.get(&node) {
                    skew.store(if begins { ms } else { 0 }, Ordering::Relaxed);
                }
            }
        }
    }

    fn hosts(&self) -> Vec<Host> {
        self.disks.keys().map(|node| Host::Node(*node)).chain([Host::Router]).collect()
    }

    fn crash(&mut self, host: Host) {
        self.sim.crash(host.to_string());
        if let Host::Node(node) = host
            && let Some(disk) = self.disks.get(&node)
        {
            disk.crash();
        }
        self.shared.ended.borrow_mut().remove(&host);
    }

    fn start(&mut self, host: Host) {
        if !self.sim.is_host_running(host.to_string()) {
            self.sim.bounce(host.to_string());
        }
    }

    /// A process that ended by itself is started again after a while, as a supervisor does. What it had not synced is gone
    /// all the same, for it may have ended because a sync failed.
    pub(crate) fn restart_ended(&mut self) {
        let now = self.sim.elapsed();
        let due = |(host, at): (&Host, &Duration)| (now >= *at + RESTART).then_some(*host);
        let ended: Vec<Host> = self.shared.ended.borrow().iter().filter_map(due).collect();
        for host in ended {
            self.crash(host);
            self.start(host);
        }
    }

    pub(crate) fn heal(&mut self) {
        for host in self.hosts() {
            for other in self.hosts().into_iter().filter(|other| *other > host) {
                self.sim.release(host.to_string(), other.to_string());
                self.sim.repair(host.to_string(), other.to_string());
            }
            self.start(host);
        }
        self.shared.history.note(format_args!("healed"));
        self.shared.healed.set(true);
    }
}
