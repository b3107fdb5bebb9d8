//! A cluster of real processes under a mixed workload and one fault after the other, for as long as asked: on loopback with
//! faults of processes and disks, or in network namespaces with cuts. Writes a report; exit code 0 only without a violation.
#![allow(clippy::print_stdout, reason = "the report is the product")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nearring_bench::cluster::{Cluster, NODES, Options, Place, ROUTER, node_name};
use nearring_bench::netns::Topology;
use nearring_bench::soak::faults::DISK_RESERVE_BYTES;
use nearring_bench::soak::resources::Bounds;
use nearring_bench::soak::{self, Settings, report};
use tokio::signal::unix::{SignalKind, signal};

/// Where the servers run, and so which faults there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Network {
    /// On loopback: kills, pauses, restarts, wiped and damaged disks.
    Loopback,
    /// Each in a network namespace (needs root and iproute2): cuts, one-way cuts, isolation, slow links, kills, pauses.
    Namespaces,
}

/// Breaks a cluster again and again while clients write and read, and judges every answer.
#[derive(Parser, Clone)]
struct Arguments {
    /// For how long.
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// What is drawn: operations and faults. The processes' timing is not.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the servers run.
    #[arg(long, value_enum, default_value_t = Network::Loopback)]
    network: Network,
    /// Where to write the report (Markdown); without it, stdout.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Clients at once.
    #[arg(long, default_value_t = 6)]
    clients: u64,
    /// Keys of each client.
    #[arg(long, default_value_t = 1_500)]
    keys: u64,
    /// The longest pause of a client between two operations, in milliseconds.
    #[arg(long, default_value_t = 40)]
    pause_ms: u64,
    /// Shards of the collection.
    #[arg(long, default_value_t = 4)]
    shards: u32,
    /// Vectors in a tail at which a segment is built; small, so that segments come and go.
    #[arg(long, default_value_t = 400)]
    seal_points: u32,
    /// How long healing may take after a fault, in seconds.
    #[arg(long, default_value_t = 60)]
    heal_seconds: u64,
    /// Resident memory that no process may exceed, in MiB.
    #[arg(long, default_value_t = 512)]
    rss_mib: u64,
    /// Bytes on disk that no node may exceed, in MiB.
    #[arg(long, default_value_t = 1024)]
    disk_mib: u64,
    /// A folder on a small file system of its own (say a tmpfs of 400 MiB): node 3 keeps its data there, and the fault
    /// "disk full" is among those drawn.
    #[arg(long)]
    small_disk: Option<PathBuf>,
    /// Where servers keep their data; without it a temporary folder that is removed after success.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Where nearring-node and nearring-router lie; without it, beside this program.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// The router's port on loopback; the nodes take the next three.
    #[arg(long, default_value_t = 17334)]
    port_base: u16,
}

/// Namespaces of a soak are called this and the host's name.
const PREFIX: &str = "nearring-soak";
const CLIENT: &str = "client";
/// Small, so that shards snapshot and the log is purged within minutes.
const LOG_BYTES: u64 = 48 << 20;

impl Arguments {
    fn settings(&self) -> Settings {
        Settings {
            duration: Duration::from_secs_f64((self.minutes * 60.0).max(0.0)),
            seed: self.seed,
            clients: self.clients,
            keys: self.keys.max(1),
            pause: Duration::from_millis(self.pause_ms),
            shards: self.shards,
            seal_points: self.seal_points,
            heal_within: Duration::from_secs(self.heal_seconds),
            bounds: Bounds { rss: self.rss_mib << 20, disk: self.disk_mib << 20, descriptors: 1024, threads: 128 },
            small_disk: self.small_disk.as_ref().map(|folder| (NODES, folder.clone())),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether there was no violation.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let network = match arguments.network {
        Network::Loopback => None,
        Network::Namespaces => {
            let hosts = (1..=NODES).map(node_name).chain([ROUTER.to_owned(), CLIENT.to_owned()]);
            let topology = Topology::create(PREFIX, &hosts.collect::<Vec<_>>())?;
            // Before there are other threads: all of them must see the hosts.
            topology.enter(CLIENT)?;
            Some(Arc::new(topology))
        }
    };
    let mut notes = Vec::new();
    if network.as_deref().is_some_and(|network| !network.has_netem()) {
        notes.push("this kernel has no netem: no loss, delay, reordering or duplicates were tried".to_owned());
    }
    if network.is_none() && arguments.small_disk.is_none() {
        notes.push("no --small-disk: no disk was filled".to_owned());
    }
    let temporary = match &arguments.folder {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|error| error.to_string())?),
    };
    let folder = arguments.folder.as_deref().or(temporary.as_ref().map(|folder| folder.path()));
    let folder = folder.ok_or("no folder")?.to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(|error| error.to_string())?.block_on(soak(arguments, &folder, network, &notes));
    if !matches!(outcome, Ok(true))
        && let Some(temporary) = temporary
    {
        eprintln!("the servers' data and output stay in {}", temporary.keep().display());
    }
    outcome
}

async fn soak(
    arguments: &Arguments,
    folder: &Path,
    network: Option<Arc<Topology>>,
    notes: &[String],
) -> Result<bool, String> {
    let fail = |error: std::io::Error| format!("signals cannot be received: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(fail)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fail)?;
    let interrupted = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let place = network.clone().map_or(Place::Ports(arguments.port_base), Place::Hosts);
    let numbers = [("--log-bytes", LOG_BYTES), ("--disk-reserve-bytes", DISK_RESERVE_BYTES)];
    let node_arguments = numbers.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]).collect();
    let settings = arguments.settings();
    // A folder below the mount: a node's own directory can be wiped, a mount cannot be removed.
    let data: BTreeMap<u64, PathBuf> =
        settings.small_disk.iter().map(|(node, disk)| (*node, disk.join(node_name(*node)))).collect();
    let options =
        Options { binaries: arguments.binaries.clone(), folder: folder.to_owned(), place, node_arguments, data };
    let mut cluster = Cluster::start_with(options)?;
    let outcome = soak::run(&mut cluster, network, &settings, interrupted).await?;
    drop(cluster);
    let report = report::markdown(&outcome, &settings, &command(arguments), notes);
    match &arguments.report {
        Some(path) => std::fs::write(path, &report).map_err(|error| format!("{}: {error}", path.display()))?,
        None => println!("{report}"),
    }
    let violations = outcome.shared.violations.lock().map_or(0, |violations| violations.len());
    eprintln!("{} faults, {violations} violations", outcome.struck.len());
    Ok(violations == 0 && outcome.ended_early.is_none())
}

/// The command that does the same again.
fn command(arguments: &Arguments) -> String {
    let Arguments { minutes, seed, clients, keys, pause_ms, shards, seal_points, .. } = arguments;
    let network = match arguments.network {
        Network::Loopback => "loopback",
        Network::Namespaces => "namespaces",
    };
    let disk = arguments.small_disk.as_ref().map(|disk| format!(" --small-disk {}", disk.display()));
    format!(
        "cargo run --release -p nearring-bench --bin soak -- --network {network} --minutes {minutes} --seed {seed} \
         --clients {clients} --keys {keys} --pause-ms {pause_ms} --shards {shards} --seal-points {seal_points}{}",
        disk.unwrap_or_default()
    )
}
