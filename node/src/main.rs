//! `nearring-node`: one storage node. Arguments and environment in, [`Settings`] out, and then [`NodeBuilder`].
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nearring_node::identity;
use nearring_node::index::GRAPH_FROM;
use nearring_node::node::NodeBuilder;
use nearring_node::settings::{Limits, RaftSettings, Settings};
use nearring_proto::ids::NodeId;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tracing_subscriber::EnvFilter;

/// A storage node of nearring. Every option may also be given as the environment variable that it names.
#[derive(Parser, Debug)]
#[command(name = "nearring-node", version)]
struct Arguments {
    /// This node's number: from 1, unique in the cluster, the same over all its lives.
    #[arg(long, env = "NEARRING_NODE")]
    node: u64,
    /// Where everything is kept. One process at a time.
    #[arg(long, env = "NEARRING_DATA", default_value = "data")]
    data: PathBuf,
    /// Where to accept connections.
    #[arg(long, env = "NEARRING_LISTEN", default_value = "0.0.0.0:7000")]
    listen: SocketAddr,
    /// `host:port` under which the others reach this node. Without it: the node's address in --seeds, or else --listen.
    #[arg(long, env = "NEARRING_ADVERTISE")]
    advertise: Option<String>,
    /// The nodes that form the cluster when it is first started, the same list on each: 1=host:port,2=host:port,...
    #[arg(long, env = "NEARRING_SEEDS", value_delimiter = ',', value_parser = seed, required = true)]
    seeds: Vec<(u64, String)>,
    /// Failure domain: replicas of a shard are spread over zones first.
    #[arg(long, env = "NEARRING_ZONE", default_value = "")]
    zone: String,
    /// Bytes of writes accepted and not yet applied.
    #[arg(long, env = "NEARRING_INFLIGHT_WRITE_BYTES", default_value_t = Limits::default().inflight_write_bytes)]
    inflight_write_bytes: u64,
    /// Bytes of vectors that wait for a segment.
    #[arg(long, env = "NEARRING_TAIL_BYTES", default_value_t = Limits::default().tail_bytes)]
    tail_bytes: u64,
    /// Bytes of sparse and multi-vectors, which stay in memory.
    #[arg(long, env = "NEARRING_RESIDENT_VECTOR_BYTES", default_value_t = Limits::default().resident_vector_bytes)]
    resident_vector_bytes: u64,
    /// Free disk below which writes are refused.
    #[arg(long, env = "NEARRING_DISK_RESERVE_BYTES", default_value_t = Limits::default().disk_reserve_bytes)]
    disk_reserve_bytes: u64,
    /// Size of the log at which shards must snapshot.
    #[arg(long, env = "NEARRING_LOG_BYTES", default_value_t = Limits::default().log_bytes)]
    log_bytes: u64,
    /// Members from which on a segment that this node builds gets a graph; smaller ones are read whole.
    #[arg(long, env = "NEARRING_GRAPH_FROM", default_value_t = GRAPH_FROM)]
    graph_from: usize,
    /// How often a leader shows itself, in milliseconds. The same on all nodes.
    #[arg(long, env = "NEARRING_HEARTBEAT_MS", default_value_t = millis(RaftSettings::default().heartbeat))]
    heartbeat_ms: u64,
    /// Shortest election timeout, in milliseconds. A follower stands for election after a silence of the longest and a
    /// time drawn from between the two. The same on all nodes.
    #[arg(long, env = "NEARRING_ELECTION_MIN_MS", default_value_t = millis(RaftSettings::default().election.0))]
    election_min_ms: u64,
    /// Longest election timeout, in milliseconds. The same on all nodes.
    #[arg(long, env = "NEARRING_ELECTION_MAX_MS", default_value_t = millis(RaftSettings::default().election.1))]
    election_max_ms: u64,
    /// Threads for messages and short searches; work that takes longer has as many more as there are cores. 0 = half of the
    /// cores: every thread that waits is woken for nothing at times, which costs more than short searches do.
    #[arg(long, env = "NEARRING_THREADS", default_value_t = 0)]
    threads: usize,
}

/// Half of the cores, unless told otherwise.
fn threads(wanted: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    if wanted > 0 { wanted } else { (cores / 2).max(1) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn seed(text: &str) -> Result<(u64, String), String> {
    let (node, address) = text.split_once('=').ok_or("want NUMBER=HOST:PORT")?;
    let node = node.trim().parse().map_err(|_| format!("{node:?} is not a node's number"))?;
    Ok((node, address.trim().to_owned()))
}

impl Arguments {
    fn settings(&self) -> Settings {
        let own = self.seeds.iter().find(|(node, _)| *node == self.node).map(|(_, address)| address.clone());
        let advertise = self.advertise.clone().or(own).unwrap_or_else(|| self.listen.to_string());
        let seeds = self.seeds.iter().map(|(node, address)| (NodeId(*node), address.clone())).collect();
        let mut settings = Settings::new(NodeId(self.node), self.data.clone(), advertise, seeds);
        settings.zone.clone_from(&self.zone);
        settings.limits = Limits {
            inflight_write_bytes: self.inflight_write_bytes,
            tail_bytes: self.tail_bytes,
            resident_vector_bytes: self.resident_vector_bytes,
            disk_reserve_bytes: self.disk_reserve_bytes,
            log_bytes: self.log_bytes,
        };
        settings.graph_from = self.graph_from;
        let ms = Duration::from_millis;
        settings.raft = RaftSettings {
            heartbeat: ms(self.heartbeat_ms),
            election: (ms(self.election_min_ms), ms(self.election_max_ms)),
        };
        settings
    }
}

/// Resolves at the first SIGTERM or Ctrl-C.
fn shutdown() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    })
}

async fn run(arguments: &Arguments) -> Result<(), String> {
    let settings = arguments.settings();
    settings.check().map_err(|invalid| format!("setting {invalid}"))?;
    // Held until the process ends, whatever ends it.
    let _lock = identity::lock(&settings.data_dir).map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(arguments.listen).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{} is in use by another process; stop that one, or give another --listen", arguments.listen)
        }
        _ => format!("cannot listen on {}: {error}", arguments.listen),
    })?;
    let shutdown = shutdown().map_err(|error| format!("signals cannot be received: {error}"))?;
    tracing::info!(node = %settings.node, listen = %arguments.listen, advertise = %settings.advertise, "starting");
    let incoming = TcpListenerStream::new(listener).map(|connection| {
        connection.inspect(|stream| {
            // Small answers must not wait for more to come. A connection that cannot be told so works all the same.
            let _ = stream.set_nodelay(true);
        })
    });
    NodeBuilder::new(settings).serve(incoming, shutdown).await.map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,openraft=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let threads = threads(arguments.threads);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("nearring-node: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(&arguments));
    // Work that nobody waits for any more does not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nearring-node: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn arguments_become_settings() {
        let line = ["nearring-node", "--node", "2", "--seeds", "1=a:7001, 2=b:7002,3=c:7003", "--zone", "east"];
        let settings = Arguments::try_parse_from(line).unwrap().settings();
        assert_eq!((settings.node, settings.advertise.as_str()), (NodeId(2), "b:7002"));
        assert_eq!(settings.seeds[2], (NodeId(3), "c:7003".to_owned()));
        assert_eq!((settings.zone.as_str(), settings.raft), ("east", RaftSettings::default()));
        assert_eq!(settings.limits, Limits::default());
        settings.check().unwrap();
        let line = ["nearring-node", "--node", "9", "--seeds", "1=a:7001", "--listen", "10.0.0.9:7000"];
        assert_eq!(Arguments::try_parse_from(line).unwrap().settings().advertise, "10.0.0.9:7000");
        for seeds in ["a:7001", "one=a:7001", ""] {
            assert!(
                Arguments::try_parse_from(["nearring-node", "--node", "1", "--seeds", seeds]).is_err(),
                "{seeds:?}"
            );
        }
    }
}
