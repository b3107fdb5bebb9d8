//! Three nodes and a router as processes of their own, which can be killed, paused, wiped and started again.
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nearring_client::{Client, RetryPolicy};
use rustix::process::{Pid, Signal, kill_process};

/// Nodes of a cluster that is started here.
pub const NODES: u64 = 3;

/// Servers under one folder: data in `node-N`, output in `*.log`. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    binaries: PathBuf,
    folder: PathBuf,
    port: u16,
    nodes: Vec<Option<Child>>,
    router: Option<Child>,
}

impl Cluster {
    /// Starts all: the router on `port`, node N on `port + N`. `binaries` holds `nearring-node` and `nearring-router`;
    /// `None` is the folder of this program.
    ///
    /// # Errors
    /// A message for people.
    pub fn start(binaries: Option<PathBuf>, folder: &Path, port: u16) -> Result<Self, String> {
        let own = || std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
        let binaries = binaries.or_else(own).ok_or("where this program lies is unknown; name --binaries")?;
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let nodes = (0..NODES).map(|_| None).collect();
        let mut cluster = Self { binaries, folder: folder.to_owned(), port, nodes, router: None };
        for node in 1..=NODES {
            cluster.start_node(node)?;
        }
        cluster.start_router()?;
        Ok(cluster)
    }

    /// The router's address.
    pub fn router(&self) -> String {
        self.address(0)
    }

    fn address(&self, offset: u64) -> String {
        format!("127.0.0.1:{}", u64::from(self.port) + offset)
    }

    /// A node's data directory.
    pub fn data(&self, node: u64) -> PathBuf {
        self.folder.join(format!("node-{node}"))
    }

    fn spawn(&self, binary: &str, log: &str, arguments: &[String]) -> Result<Child, String> {
        let path = self.binaries.join(binary);
        let fail = |error| format!("{}: {error}; build it with `cargo build --release --workspace`", path.display());
        let log = File::options().create(true).append(true).open(self.folder.join(log)).map_err(fail)?;
        let errors = log.try_clone().map_err(fail)?;
        Command::new(&path).args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map_err(fail)
    }

    /// Starts a node on what its directory holds.
    ///
    /// # Errors
    /// A message for people.
    pub fn start_node(&mut self, node: u64) -> Result<(), String> {
        let seeds: Vec<String> = (1..=NODES).map(|seed| format!("{seed}={}", self.address(seed))).collect();
        let arguments = [
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
        let child = self.spawn("nearring-node", &format!("node-{node}.log"), &arguments)?;
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
        self.router = Some(self.spawn("nearring-router", "router.log", &arguments)?);
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
        }
    }

    /// `kill -9` of the router, and waits for the end.
    pub fn kill_router(&mut self) {
        if let Some(mut child) = self.router.take() {
            end(&mut child);
        }
    }

    /// Stops a node's process where it stands, or lets it go on.
    pub fn pause_node(&mut self, node: u64, paused: bool) {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        if let Some(child) = self.slot(node)
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            // A process that has ended in the meantime is found by `ended`.
            let _ = kill_process(pid, signal);
        }
    }

    /// Removes everything a node had stored. The node must not run.
    ///
    /// # Errors
    /// What the file system says.
    pub fn wipe_node(&self, node: u64) -> std::io::Result<()> {
        std::fs::remove_dir_all(self.data(node))
    }

    /// Servers that ended by themselves, with the end of their output.
    pub fn ended(&mut self) -> Vec<String> {
        let folder = self.folder.clone();
        let nodes = self.nodes.iter_mut().zip(1..).map(|(child, node)| (child, format!("node-{node}")));
        let all = nodes.chain([(&mut self.router, "router".to_owned())]);
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
