//! Three nodes and a router as processes of their own, which can be killed, paused, wiped and started again.
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nearring_client::{Client, RetryPolicy};
use rustix::process::{Pid, Signal, kill_process};

use crate::netns::Topology;

/// Nodes of a cluster that is started here.
pub const NODES: u64 = 3;
/// The port of every server that has a host of its own.
const PORT: u16 = 7000;

/// Where the servers listen.
#[derive(Clone, Debug)]
pub enum Place {
    /// On this machine's loopback: the router on the port, node N on the port + N.
    Ports(u16),
    /// Each on a host of its own: the router on `router`, node N on `node-N`.
    Hosts(Arc<Topology>),
}

/// What a cluster is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Holds `nearring-node` and `nearring-router`; `None` is the folder of this program.
    pub binaries: Option<PathBuf>,
    /// Data and output of the servers.
    pub folder: PathBuf,
    /// Where they listen.
    pub place: Place,
    /// Arguments that every node gets on top.
    pub node_arguments: Vec<String>,
    /// Data directories elsewhere than in `folder`, by node.
    pub data: BTreeMap<u64, PathBuf>,
}

/// The name of a node's host, and of its output.
pub fn node_name(node: u64) -> String {
    format!("node-{node}")
}

/// The name of the router's host, and of its output.
pub const ROUTER: &str = "router";

/// Process numbers by server, of those that were started and not ended from here. Clones share them.
#[derive(Clone, Default, Debug)]
pub struct Pids(Arc<Mutex<BTreeMap<String, u32>>>);

impl Pids {
    /// As of now.
    pub fn get(&self) -> BTreeMap<String, u32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, name: &str, pid: Option<u32>) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match pid {
            Some(pid) => drop(pids.insert(name.to_owned(), pid)),
            None => drop(pids.remove(name)),
        }
    }
}

/// Servers under one folder: data in `node-N`, output in `*.log`. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    binaries: PathBuf,
    options: Options,
    nodes: Vec<Option<Child>>,
    router: Option<Child>,
    pids: Pids,
}

impl Cluster {
    /// Starts all: the router on `port`, node N on `port + N`. `binaries` holds `nearring-node` and `nearring-router`;
    /// `None` is the folder of this program.
    ///
    /// # Errors
    /// A message for people.
    pub fn start(binaries: Option<PathBuf>, folder: &Path, port: u16) -> Result<Self, String> {
        let (folder, place) = (folder.to_owned(), Place::Ports(port));
        Self::start_with(Options { binaries, folder, place, node_arguments: Vec::new(), data: BTreeMap::new() })
    }

    /// Starts all.
    ///
    /// # Errors
    /// A message for people.
    pub fn start_with(options: Options) -> Result<Self, String> {
        let own = || std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
        let binaries = options.binaries.clone().or_else(own);
        let binaries = binaries.ok_or("where this program lies is unknown; name --binaries")?;
        std::fs::create_dir_all(&options.folder).map_err(|error| format!("{}: {error}", options.folder.display()))?;
        let nodes = (0..NODES).map(|_| None).collect();
        let mut cluster = Self { binaries, options, nodes, router: None, pids: Pids::default() };
        for node in 1..=NODES {
            cluster.start_node(node)?;
        }
        cluster.start_router()?;
        Ok(cluster)
    }

    /// The router's address.
    pub fn router(&self) -> String {
        match &self.options.place {
            Place::Ports(port) => format!("127.0.0.1:{port}"),
            Place::Hosts(topology) => format!("{}:{PORT}", topology.address(ROUTER)),
        }
    }

    fn address(&self, node: u64) -> String {
        match &self.options.place {
            Place::Ports(port) => format!("127.0.0.1:{}", u64::from(*port) + node),
            Place::Hosts(topology) => format!("{}:{PORT}", topology.address(&node_name(node))),
        }
    }

    /// A node's data directory.
    pub fn data(&self, node: u64) -> PathBuf {
        self.options.data.get(&node).cloned().unwrap_or_else(|| self.options.folder.join(node_name(node)))
    }

    /// The numbers of the running processes.
    pub fn pids(&self) -> Pids {
        self.pids.clone()
    }

    fn spawn(&self, binary: &str, name: &str, arguments: &[String]) -> Result<Child, String> {
        let path = self.binaries.join(binary);
        let fail = |error| format!("{}: {error}; build it with `cargo build --release --workspace`", path.display());
        let log = self.options.folder.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(log).map_err(fail)?;
        let errors = log.try_clone().map_err(fail)?;
        let mut command = match &self.options.place {
            Place::Ports(_) => Command::new(&path),
            Place::Hosts(topology) => topology.command(name, &path),
        };
        let child = command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map_err(fail)?;
        self.pids.set(name, Some(child.id()));
        Ok(child)
    }

    /// Starts a node on what its directory holds.
    ///
    /// # Errors
    /// A message for people.
    pub fn start_node(&mut self, node: u64) -> Result<(), String> {
        let seeds: Vec<String> = (1..=NODES).map(|seed| format!("{seed}={}", self.address(seed))).collect();
        let mut arguments = vec![
            "--node".to_owned(),
            node.to_string(),
            "--data".to_owned(),
            self.data(node).to_string_lossy().into_owned(),
            "--listen".to_owned(),
            self.address(node),
            "--advertise".to_owned(),
            self.address(node),
            "--seeds".to_owned(),
            seeds.join(","),
        ];
        arguments.extend(self.options.node_arguments.iter().cloned());
        let child = self.spawn("nearring-node", &node_name(node), &arguments)?;
        *self.slot(node) = Some(child);
        Ok(())
    }

    /// Starts the router.
    ///
    /// # Errors
    /// A message for people.
    pub fn start_router(&mut self) -> Result<(), String> {
        let nodes: Vec<String> = (1..=NODES).map(|node| self.address(node)).collect();
        let arguments = ["--listen".to_owned(), self.router(), "--nodes".to_owned(), nodes.join(",")];
        self.router = Some(self.spawn("nearring-router", ROUTER, &arguments)?);
        Ok(())
    }

    fn slot(&mut self, node: u64) -> &mut Option<Child> {
        let at = usize::try_from(node.saturating_sub(1)).unwrap_or(usize::MAX).min(self.nodes.len() - 1);
        &mut self.nodes[at]
    }

    /// `kill -9`, and waits for the end.
    pub fn kill_node(&mut self, node: u64) {
        if let Some(mut child) = self.slot(node).take() {
            end(&mut child);
            self.pids.set(&node_name(node), None);
        }
    }

    /// Asks a node to stop and waits for it; `None` where it is not running or has not stopped within `patience`, in which
    /// case it is killed.
    pub fn stop_node(&mut self, node: u64, patience: Duration) -> Option<ExitStatus> {
        let mut child = self.slot(node).take()?;
        self.pids.set(&node_name(node), None);
        signal(&child, Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        end(&mut child);
        None
    }

    /// Whether a node that was started has ended by itself.
    pub fn node_ended(&mut self, node: u64) -> bool {
        self.slot(node).as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// `kill -9` of the router, and waits for the end.
    pub fn kill_router(&mut self) {
        if let Some(mut child) = self.router.take() {
            end(&mut child);
            self.pids.set(ROUTER, None);
        }
    }

    /// Stops a node's process where it stands, or lets it go on.
    pub fn pause_node(&mut self, node: u64, paused: bool) {
        if let Some(child) = self.slot(node) {
            signal(child, if paused { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Removes everything a node had stored. The node must not run.
    ///
    /// # Errors
    /// What the file system says.
    pub fn wipe_node(&self, node: u64) -> std::io::Result<()> {
        // The directory itself stays: it may be where a file system is mounted.
        for entry in std::fs::read_dir(self.data(node))? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }

    /// Servers that ended by themselves, with the end of their output.
    pub fn ended(&mut self) -> Vec<String> {
        let folder = self.options.folder.clone();
        let nodes = self.nodes.iter_mut().zip(1..).map(|(child, node)| (child, node_name(node)));
        let all = nodes.chain([(&mut self.router, ROUTER.to_owned())]);
        all.filter_map(|(child, name)| {
            let status = child.as_mut()?.try_wait().ok().flatten()?;
            let log = std::fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            Some(format!("{name} ended by itself ({status}):\n  {}", tail.join("\n  ")))
        })
        .collect()
    }

    /// Waits until every node answers through the router.
    ///
    /// # Errors
    /// A message for people, after `patience`.
    pub async fn ready(&mut self, patience: Duration) -> Result<(), String> {
        let client = Client::builder(self.router())
            .retry(RetryPolicy::Never)
            .deadline(Duration::from_secs(1))
            .build()
            .map_err(|error| error.to_string())?;
        let start = Instant::now();
        loop {
            let last = match client.cluster_status().await {
                Ok(status) => {
                    let up = status.nodes.iter().filter(|node| node.reachable).count() as u64;
                    if up == NODES && status.table.is_some_and(|table| !table.cluster_id.is_empty()) {
                        return Ok(());
                    }
                    format!("{up} of {NODES} nodes answer")
                }
                Err(error) => error.to_string(),
            };
            let ended = self.ended();
            if !ended.is_empty() || start.elapsed() > patience {
                return Err(format!("the cluster did not come up: {last}\n{}", ended.join("\n")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A process that has ended in the meantime is found when it is waited for.
fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn end(child: &mut Child) {
    // Errors mean that it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().chain([&mut self.router]).flatten().for_each(end);
    }
}
