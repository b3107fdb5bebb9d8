//! `nearring dev`: three nodes and a router in this process, over real connections and on a real data directory. What it
//! leaves out is that processes fail apart from each other: it shows nearring and serves tests; it is no way to keep data.
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures::stream::{self, Stream, StreamExt};
use nearring_client::write::DocumentText;
use nearring_client::{Client, Error, ErrorKind, wire};
use nearring_node::identity::{self, Lock};
use nearring_node::node::NodeBuilder;
use nearring_proto::ids::NodeId;
use nearring_router::arguments::{ModelServers, SnapshotPlace};
use nearring_router::router::RouterBuilder;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;

use crate::arguments::for_documents;
use crate::ask::ask;
use crate::collection::embedder_dimension;
use crate::import::{bar, put_documents};
use crate::output::{Failure, Output};

include!(concat!(env!("OUT_DIR"), "/sample.rs"));

const NODES: u16 = 3;
const ROUTER_PORT: u16 = 6334;
const HTTP_PORT: u16 = 6333;
const FIRST_NODE_PORT: u16 = 7001;
const SAMPLE: &str = "sample";
const QUESTION: &str = "What do you call an error that vanishes as soon as you try to look at it with a debugger?";
/// How long the cluster may take to come up: a restart replays its log first.
const START_PATIENCE: Duration = Duration::from_secs(120);
const STOP_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(crate) struct Dev {
    /// Where the nodes keep their data. A second start on it finds everything again.
    #[arg(long, default_value = "nearring-data", value_name = "FOLDER")]
    data: PathBuf,

    /// Moves all ports: the router to N, the nodes to N+1 to N+3, the router's HTTP to N+4. Without it the router is at 6334,
    /// the nodes at 7001 to 7003, HTTP at 6333.
    #[arg(long, value_name = "N")]
    port_base: Option<u16>,

    /// Import the sample collection that comes with nearring (248 articles of the Jargon File) and ask it a question.
    #[arg(long)]
    sample: bool,

    #[command(flatten)]
    models: ModelServers,

    #[command(flatten)]
    snapshots: SnapshotPlace,
}

/// Where everything listens.
#[derive(PartialEq, Eq, Debug)]
struct Ports {
    /// The router's gRPC.
    router: u16,
    /// The router's HTTP.
    http: u16,
    nodes: Vec<u16>,
}

fn ports(base: Option<u16>) -> Result<Ports, Failure> {
    let (router, first, http) = match base {
        None => (ROUTER_PORT, FIRST_NODE_PORT, HTTP_PORT),
        Some(base) if base > 0 && base < u16::MAX - NODES => (base, base + 1, base + NODES + 1),
        Some(base) => {
            let most = u16::MAX - NODES - 1;
            return Err(Failure::new(format!(
                "--port-base {base}: give a port from 1 to {most}; it and the next {} are used",
                NODES + 1
            )));
        }
    };
    Ok(Ports { router, http, nodes: (first..=first + (NODES - 1)).collect() })
}

async fn bind(port: u16, whose: &str) -> Result<TcpListener, Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).await.map_err(|error| {
        let way = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "is in use by another program (or another `nearring dev`); move all ports with --port-base, for example \
                 --port-base 16334"
                    .to_owned()
            }
            _ => format!("cannot be opened: {error}; move all ports with --port-base"),
        };
        Failure::new(format!("port {port}, meant for {whose}, {way}"))
    })
}

impl Dev {
    /// Serves until SIGINT or SIGTERM. `client` makes a client of a router, with the settings of the command line.
    pub(crate) async fn run(
        self,
        output: Output,
        client: impl Fn(&str) -> Result<Client, Error>,
    ) -> Result<(), Failure> {
        log_to_stderr();
        let Ports { router: router_port, http: http_port, nodes: node_ports } = ports(self.port_base)?;
        // All ports before anything starts, so that a busy one leaves nothing half done.
        let router = bind(router_port, "the router").await?;
        let http = bind(http_port, "the router's HTTP").await?;
        let mut listeners = Vec::new();
        for (number, port) in (1_u64..).zip(&node_ports) {
            listeners.push((number, bind(*port, &format!("node {number}")).await?));
        }
        std::fs::create_dir_all(&self.data).map_err(|error| Failure::of(self.data.display(), error))?;

        let _locks = lock(&self.data)?;
        let (stop, stopping) = watch::channel(false);
        let addresses: Vec<String> = node_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut settings = nearring_router::settings::Settings::new(addresses);
        let variable = |name: &str| std::env::var(name).ok();
        self.models.apply(&mut settings, variable).map_err(|error| Failure::new(error.to_string()))?;
        self.snapshots.apply(&mut settings, Some(self.data.join("snapshots")));
        let builder = RouterBuilder::new(settings)
            .more_embedders(self.models.local().map_err(|error| Failure::new(error.to_string()))?);
        let mut servers = start(&self.data, builder, (router, http), listeners, &node_ports, &stopping)?;
        let address = format!("127.0.0.1:{router_port}");
        let http = format!("http://127.0.0.1:{http_port}");
        let client = client(&address)?;
        let ended = tokio::select! {
            ended = self.work(output, &client, &address, &http, &node_ports) => ended,
            server = servers.join_next() => Err(match server {
                Some(Ok(failure)) => failure,
                Some(Err(error)) => Failure::new(format!("a server broke down: {error}")),
                None => Failure::new("no server was started"),
            }),
            () = told_to_stop() => Ok(()),
        };
        eprintln!("stopping");
        // Nobody listening any more is as good.
        let _ = stop.send(true);
        let all = async {
            while let Some(server) = servers.join_next().await {
                if let Ok(Failure { .. }) = &server {
                    tracing::debug!("a server stopped");
                }
            }
        };
        tokio::select! {
            stopped = tokio::time::timeout(STOP_PATIENCE, all) => {
                if stopped.is_err() {
                    let message = "the servers did not stop in time; what was acknowledged is safe all the same";
                    return ended.and(Err(Failure::new(message)));
                }
            }
            () = told_to_stop() => return ended.and(Err(Failure::new("told to stop twice: left at once"))),
        }
        ended
    }

    /// What `dev` does once its servers run; does not end by itself unless it fails.
    async fn work(
        &self,
        output: Output,
        client: &Client,
        address: &str,
        http: &str,
        nodes: &[u16],
    ) -> Result<(), Failure> {
        eprintln!("starting three nodes and a router on {}; soon {http}/ui shows them", self.data.display());
        until_ready(client).await?;
        if self.sample {
            import_sample(client).await?;
            if !output.json {
                output.raw(&format!("\nQ: {QUESTION}\nA: "))?;
            }
            let question =
                wire::AskRequest { collection: SAMPLE.into(), question: QUESTION.into(), ..Default::default() };
            // A model server that does not answer is no reason not to serve.
            if let Err(failure) = ask(client, output, question).await {
                eprintln!("warning: the question was not answered: {failure}");
            }
        }
        let ready = json!({
            "ready": true, "router": address, "http": http, "ui": format!("{http}/ui"), "data": self.data.display().to_string(),
            "nodes": nodes.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>(),
        });
        output.write(&ready, || self.how_to_go_on(address, http, nodes))?;
        std::future::pending().await
    }

    fn how_to_go_on(&self, address: &str, http: &str, nodes: &[u16]) -> String {
        // Started as the README says, it is called as the README says.
        let own = if std::env::var_os("CARGO_MANIFEST_DIR").is_some() {
            "cargo nearring".to_owned()
        } else {
            let own = std::env::current_exe().unwrap_or_else(|_| "nearring".into());
            let here = std::env::current_dir().unwrap_or_default();
            own.strip_prefix(here).unwrap_or(&own).display().to_string()
        };
        let router = if self.port_base.is_some() { format!(" --router {address}") } else { String::new() };
        let mut text =
            format!("\nnearring is up: router {address}, data in {}. Ctrl-C stops it.\n", self.data.display());
        text.push_str(&format!("Look at it in a browser: {http}/ui\n"));
        text.push_str(&format!("Qdrant's clients find it at {http}, OpenAI's at {http}/v1.\n"));
        let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
        let nodes: Vec<String> = nodes.iter().map(u16::to_string).collect();
        text.push_str(&format!(
            "Ports on 127.0.0.1: {} HTTP, {} gRPC, {} the nodes; metrics at {http}/metrics.\n",
            port(http),
            port(address),
            nodes.join(", "),
        ));
        text.push_str("\nFrom another terminal:\n");
        if self.sample {
            text.push_str(&format!(
                "  {own}{router} ask --collection {SAMPLE} \"Why do programs that nobody touches stop working?\"\n"
            ));
            text.push_str(&format!(
                "  {own}{router} search --collection {SAMPLE} --text \"a trap for intruders\" --limit 3\n"
            ));
        }
        text.push_str(&format!(
            "  {own}{router} import FOLDER_OF_TEXTS --collection notes --create && {own}{router} ask --collection notes \"…\"\n"
        ));
        text.push_str(&format!(
            "  {own}{router} import FILE.npy --collection vectors --create && {own}{router} search --collection vectors --vector-file FILE.npy\n"
        ));
        text.push_str(&format!("  {own}{router} cluster status"));
        text
    }
}

/// Keeps other processes off the nodes' directories for as long as the locks live.
fn lock(data: &Path) -> Result<Vec<Lock>, Failure> {
    let folders = (1..=NODES).map(|node| data.join(format!("node-{node}")));
    folders.map(|folder| identity::lock(&folder).map_err(|error| Failure::new(error.to_string()))).collect()
}

/// Starts the servers; each yields why it ended, which before the stop is a failure whatever it says.
fn start(
    data: &Path,
    router: RouterBuilder,
    (grpc, http): (TcpListener, TcpListener),
    listeners: Vec<(u64, TcpListener)>,
    node_ports: &[u16],
    stopping: &watch::Receiver<bool>,
) -> Result<JoinSet<Failure>, Failure> {
    let router = router.start().map_err(|error| Failure::new(format!("the router: {error}")))?;
    let addresses: Vec<String> = node_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let seeds: Vec<(NodeId, String)> = (1..).map(NodeId).zip(addresses.iter().cloned()).collect();
    let mut servers = JoinSet::new();
    for (number, listener) in listeners {
        let folder = data.join(format!("node-{number}"));
        let advertise = addresses.get(usize::try_from(number - 1).unwrap_or(0)).cloned().unwrap_or_default();
        let settings = nearring_node::settings::Settings::new(NodeId(number), folder, advertise, seeds.clone());
        let serve = NodeBuilder::new(settings).serve(incoming(listener), stopped(stopping.clone()));
        servers.spawn(async move {
            match serve.await {
                Ok(()) => Failure::new(format!("node {number} stopped")),
                Err(error) => Failure::new(format!("node {number}: {error}")),
            }
        });
    }
    let serve_http = router.clone().serve_rest(http, stopped(stopping.clone()));
    servers.spawn(async move {
        match serve_http.await {
            Ok(()) => Failure::new("the router's HTTP stopped"),
            Err(error) => Failure::new(format!("the router: {error}")),
        }
    });
    let serve = router.serve(incoming(grpc), stopped(stopping.clone()));
    servers.spawn(async move {
        match serve.await {
            Ok(()) => Failure::new("the router stopped"),
            Err(error) => Failure::new(format!("the router: {error}")),
        }
    });
    Ok(servers)
}

/// The connections that arrive. Small answers must not wait for more to come.
fn incoming(listener: TcpListener) -> impl Stream<Item = std::io::Result<TcpStream>> + Send {
    TcpListenerStream::new(listener).map(|connection| {
        connection.inspect(|stream| {
            // A connection that cannot be told so works all the same.
            let _ = stream.set_nodelay(true);
        })
    })
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Ends at SIGINT or SIGTERM.
async fn told_to_stop() {
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// Warnings of nearring's own crates, unless `RUST_LOG` asks for something else: elections at a start are no news.
fn log_to_stderr() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "off,nearring_node=warn,nearring_router=warn".to_owned());
    let filter = tracing_subscriber::EnvFilter::new(wanted);
    // A subscriber that is set already stays.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Waits until the cluster has formed, every node answers, and every shard has a leader.
async fn until_ready(client: &Client) -> Result<(), Failure> {
    let wait = async {
        loop {
            if let Ok(status) = client.cluster_status().await {
                let table = status.table.unwrap_or_default();
                let reachable = status.nodes.iter().filter(|node| node.reachable).count();
                let led = |shard: u64| {
                    let replicas = status.nodes.iter().flat_map(|node| &node.replicas);
                    replicas.filter(|replica| replica.shard == shard).any(|replica| replica.role == "leader")
                };
                let all_led = table.shards.iter().all(|shard| led(shard.shard));
                if !table.cluster_id.is_empty() && reachable == usize::from(NODES) && all_led {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(START_PATIENCE, wait).await.map_err(|_| {
        let seconds = START_PATIENCE.as_secs();
        Failure::new(format!("the cluster was not up after {seconds} s; RUST_LOG=info shows what the nodes do"))
    })
}

/// Creates the sample collection if it is missing, and puts every document: one that is there already stays the same.
async fn import_sample(client: &Client) -> Result<(), Failure> {
    match client.describe_collection(SAMPLE).await {
        Ok(_) => {}
        Err(error) if error.kind == ErrorKind::NotFound => {
            let embedder = "static256";
            let dimension = embedder_dimension(client, embedder).await?;
            let vector = wire::VectorSpec { dimension, metric: wire::Metric::Cosine as i32, ..Default::default() };
            let mut spec = wire::CollectionSpec {
                name: SAMPLE.to_owned(),
                vectors: [(String::new(), vector)].into(),
                replication_factor: u32::from(NODES),
                ..Default::default()
            };
            for_documents(&mut spec, embedder, "");
            client.create_collection(spec).await?;
        }
        Err(error) => return Err(error.into()),
    }
    eprintln!("importing the sample: {} articles of the Jargon File 4.4.7 (public domain)", DOCUMENTS.len());
    let progress = bar(Some(DOCUMENTS.len() as u64), "documents");
    let documents = stream::iter(DOCUMENTS.iter().map(|(id, text)| {
        let document = DocumentText {
            id: (*id).to_owned(),
            text: (*text).to_owned(),
            content_type: "text/markdown".to_owned(),
            metadata_json: Vec::new(),
        };
        Ok((PathBuf::from(id), document))
    }));
    let put = put_documents(client, SAMPLE, documents, 8, &progress).await;
    progress.finish_and_clear();
    let put = put?;
    eprintln!("imported {} documents as {} chunks", put.documents, put.chunks);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_port_base_moves_every_port_and_must_leave_room() {
        let ports_of = |router, http, nodes: [u16; 3]| Ports { router, http, nodes: nodes.to_vec() };
        assert_eq!(ports(None).unwrap(), ports_of(6334, 6333, [7001, 7002, 7003]));
        assert_eq!(ports(Some(16334)).unwrap(), ports_of(16334, 16338, [16335, 16336, 16337]));
        assert_eq!(ports(Some(65531)).unwrap(), ports_of(65531, 65535, [65532, 65533, 65534]));
        assert!(ports(Some(65532)).is_err() && ports(Some(0)).is_err());
    }

    #[test]
    fn the_sample_is_part_of_the_program() {
        assert!(DOCUMENTS.len() >= 100);
        assert!(DOCUMENTS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(DOCUMENTS.iter().any(|(id, text)| *id == "heisenbug" && text.contains("bug")));
    }
}
