//! A network of our own on one machine: hosts as network namespaces, joined by a bridge, with links that can be cut.
//!
//! ```text
//!  namespace PREFIX-node-1      PREFIX-node-2      PREFIX-router       one per host, with `lo` and `eth0`
//!        eth0 10.213.77.1        eth0 10.213.77.2     eth0 10.213.77.3
//!          │ veth                  │                    │
//!  ────────┴───────────────────────┴────────────────────┴────────     bridge `br0` in the namespace PREFIX-bridge
//! ```
//! The machine's own namespace is not touched: no interface, address or route appears in it. Nothing leads out.
//!
//! Rules of cutting:
//! - what is cut is lost in silence, as on a real network: nobody is told, connections stay open and wait. So a one-way cut
//!   drops at the receiver, by a blackhole rule on the sender's address; a blackhole route at the sender would answer its
//!   `connect` at once with an error;
//! - isolating a host takes its port at the bridge down;
//! - cuts add up, and [`Topology::heal`] lifts them all.
//!
//! Namespaces outlive processes, so a leftover of a run that was killed is removed when its prefix is used again, and
//! dropping the topology ends what runs inside it. It needs root and iproute2, and says so where one is missing. It does not
//! do what the kernel cannot: `netem` (loss, delay, reordering, duplicates) is tried when it is first asked for.
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The first three numbers of every address; namespaces may all use the same, nothing connects two topologies.
const NETWORK: &str = "10.213.77";
const BRIDGE: &str = "br0";
const INTERFACE: &str = "eth0";
/// Where iproute2 keeps namespaces by name.
const NAMES: &str = "/run/netns";
/// Priorities of rules: cuts are asked before what is local.
const CUT: &str = "10";
const LOCAL: &str = "100";
/// The longest name of an interface in Linux; a host's port at the bridge is called like the host.
const INTERFACE_NAME_MAX: usize = 15;

/// Hosts with an address each. Dropping it ends their processes and removes them.
#[derive(Debug)]
pub struct Topology {
    prefix: String,
    hosts: Vec<String>,
}

impl Topology {
    /// Creates the hosts, all of them connected. What an earlier run left behind under `prefix` is removed first.
    ///
    /// # Errors
    /// A message for people: not root, no iproute2, or what `ip` says.
    pub fn create(prefix: &str, hosts: &[String]) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        if let Some(long) = hosts.iter().find(|host| host.len() > INTERFACE_NAME_MAX) {
            return Err(format!("the host name {long:?} is longer than {INTERFACE_NAME_MAX} characters"));
        }
        remove_all(prefix)?;
        // From here on, whatever fails is cleaned up by dropping it.
        let topology = Self { prefix: prefix.to_owned(), hosts: hosts.to_vec() };
        let bridge = topology.namespace("bridge");
        ip(&["netns", "add", &bridge])?;
        ip(&["-n", &bridge, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", &bridge, "link", "set", BRIDGE, "up"])?;
        for host in hosts {
            let name = topology.namespace(host);
            ip(&["netns", "add", &name])?;
            // By default what is addressed to the host itself is delivered before any rule is asked.
            ip(&["-n", &name, "rule", "add", "priority", LOCAL, "lookup", "local"])?;
            ip(&["-n", &name, "rule", "del", "priority", "0"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &bridge, "link", "add", host, "type", "veth", "peer", "name", INTERFACE, "netns", &name])?;
            ip(&["-n", &bridge, "link", "set", host, "master", BRIDGE, "up"])?;
            let address = format!("{}/24", topology.address(host));
            ip(&["-n", &name, "address", "add", &address, "dev", INTERFACE])?;
            ip(&["-n", &name, "link", "set", INTERFACE, "up"])?;
        }
        Ok(topology)
    }

    /// The host's address; that of no host for a name that is none.
    pub fn address(&self, host: &str) -> String {
        let at = self.hosts.iter().position(|name| name == host).map_or(0, |at| at + 1);
        format!("{NETWORK}.{at}")
    }

    /// A command that runs `program` on a host. The process keeps its number when the program begins, so signals reach it.
    pub fn command(&self, host: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    /// Moves the calling thread to a host, with all threads that it starts from then on: for a program that drives the
    /// cluster, before it has other threads.
    ///
    /// # Errors
    /// A message for people.
    pub fn enter(&self, host: &str) -> Result<(), String> {
        let path = PathBuf::from(NAMES).join(self.namespace(host));
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = File::open(&path).map_err(|error| fail(&error))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|error| fail(&error))
    }

    /// Loses everything that `from` sends to `to`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut_one_way(&self, from: &str, to: &str) -> Result<(), String> {
        let (name, source) = (self.namespace(to), format!("{}/32", self.address(from)));
        ip(&["-n", &name, "rule", "add", "priority", CUT, "from", &source, "iif", INTERFACE, "blackhole"])?;
        match self.delivers(from, to) {
            false => Ok(()),
            true => Err(format!("{to} still takes what {from} sends: the cut has no effect")),
        }
    }

    /// Whether the host `to` would take a packet of `from`, as its kernel says.
    fn delivers(&self, from: &str, to: &str) -> bool {
        let (name, from, to) = (self.namespace(to), self.address(from), self.address(to));
        ip(&["-n", &name, "route", "get", &to, "from", &from, "iif", INTERFACE]).is_ok()
    }

    /// Loses everything between two hosts.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut(&self, one: &str, other: &str) -> Result<(), String> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Takes the host's link down: it reaches nobody.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn isolate(&self, host: &str) -> Result<(), String> {
        ip(&["-n", &self.namespace("bridge"), "link", "set", host, "down"])
    }

    /// Sends what leaves the host through a bucket of so many kilobits a second, in which it waits up to 400 ms; the rest
    /// is lost.
    ///
    /// # Errors
    /// What `tc` says.
    pub fn slow(&self, host: &str, kilobits: u32) -> Result<(), String> {
        let rate = format!("{kilobits}kbit");
        self.shape(host, &["tbf", "rate", &rate, "burst", "16kb", "latency", "400ms"])
    }

    /// Treats what leaves the host as `tc netem` describes, for example `["delay", "50ms", "20ms", "loss", "2%"]`.
    ///
    /// # Errors
    /// What `tc` says; above all that the kernel has no netem.
    pub fn netem(&self, host: &str, how: &[&str]) -> Result<(), String> {
        self.shape(host, &[&["netem"], how].concat())
    }

    fn shape(&self, host: &str, how: &[&str]) -> Result<(), String> {
        let name = self.namespace(host);
        let base = ["-n", &name, "qdisc", "replace", "dev", INTERFACE, "root"];
        run("tc", &[&base[..], how].concat()).map(drop)
    }

    /// Whether the kernel has netem.
    pub fn has_netem(&self) -> bool {
        let Some(host) = self.hosts.first() else { return false };
        let has = self.netem(host, &["delay", "1ms"]).is_ok();
        has && self.unshape(host).is_ok()
    }

    fn unshape(&self, host: &str) -> Result<(), String> {
        let name = self.namespace(host);
        match run("tc", &["-n", &name, "qdisc", "show", "dev", INTERFACE])? {
            shown if shown.contains("tbf") || shown.contains("netem") => {
                run("tc", &["-n", &name, "qdisc", "del", "dev", INTERFACE, "root"]).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Lifts every cut and every shaping.
    ///
    /// # Errors
    /// What `ip` or `tc` says.
    pub fn heal(&self) -> Result<(), String> {
        for host in &self.hosts {
            let name = self.namespace(host);
            ip(&["-n", &self.namespace("bridge"), "link", "set", host, "up"])?;
            let rules = run("ip", &["-n", &name, "rule", "show"])?;
            for rule in rules.lines().filter(|rule| rule.contains("blackhole")) {
                if let Some((number, _)) = rule.split_once(':') {
                    ip(&["-n", &name, "rule", "del", "priority", number])?;
                }
            }
            self.unshape(host)?;
            if let Some(other) = self.hosts.iter().find(|other| *other != host && !self.delivers(other, host)) {
                return Err(format!("{host} does not take what {other} sends after healing"));
            }
        }
        Ok(())
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.prefix) {
            eprintln!("network namespaces stay behind: {error}; `ip netns list` shows them");
        }
    }
}

/// Ends what runs in the namespaces of a prefix, and removes them.
fn remove_all(prefix: &str) -> Result<(), String> {
    let listed = run("ip", &["netns", "list"])?;
    let beginning = format!("{prefix}-");
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        if !name.starts_with(&beginning) {
            continue;
        }
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let pids = run("ip", &["netns", "pids", name])?;
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid != own) {
            if let Some(pid) = Pid::from_raw(pid) {
                // One that has ended in the meantime is what is wanted.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        ip(&["netns", "del", name])?;
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments).map(drop)
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let line = || format!("`{program} {}`", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("`{program}` is missing: install iproute2"),
        _ => format!("{}: {error}", line()),
    })?;
    if !output.status.success() {
        return Err(format!("{}: {}", line(), String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
