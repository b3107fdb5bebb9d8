//! Real nodes over localhost sockets: they form one cluster whatever the order they start in, take changes anywhere, and let
//! a node that lost its disk back in.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nearring_node::node::{NodeBuilder, NodeError, dial_tcp};
use nearring_node::settings::Settings;
use nearring_node::store::EngineKind;
use nearring_proto::ids::{NodeId, ShardId};
use nearring_proto::placement::table::{ShardState, Table};
use nearring_proto::wire::node_data_client::NodeDataClient;
use nearring_proto::{WIRE_FORMAT, wire};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::Channel;

struct RunningNode {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), NodeError>>,
}

struct Cluster {
    dir: tempfile::TempDir,
    addresses: BTreeMap<u64, SocketAddr>,
    seeds: Vec<u64>,
    running: BTreeMap<u64, RunningNode>,
}

impl Cluster {
    /// Nodes 1 to `nodes`, the first `seeds` of them seeds; none runs.
    async fn new(nodes: u64, seeds: u64) -> Self {
        let mut addresses = BTreeMap::new();
        let mut held = Vec::new();
        for node in 1..=nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.insert(node, listener.local_addr().unwrap());
            held.push(listener);
        }
        Self { dir: tempfile::tempdir().unwrap(), addresses, seeds: (1..=seeds).collect(), running: BTreeMap::new() }
    }

    fn data(&self, node: u64) -> PathBuf {
        self.dir.path().join(node.to_string())
    }

    async fn start(&mut self, node: u64) {
        let address = |node: u64| self.addresses[&node].to_string();
        let seeds = self.seeds.iter().map(|seed| (NodeId(*seed), address(*seed))).collect();
        let settings = Settings::new(NodeId(node), self.data(node), address(node), seeds);
        let listener = loop {
            match TcpListener::bind(self.addresses[&node]).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let (stop, stopped) = oneshot::channel();
        let builder = NodeBuilder::new(settings).engine(EngineKind::Memory).seed(node);
        let task = tokio::spawn(builder.serve(TcpListenerStream::new(listener), async move {
            let _ = stopped.await;
        }));
        self.running.insert(node, RunningNode { stop, task });
    }

    async fn stop(&mut self, node: u64) {
        let RunningNode { stop, task } = self.running.remove(&node).unwrap();
        let _ = stop.send(());
        task.await.unwrap().unwrap();
    }

    fn client(&self, node: u64) -> NodeDataClient<Channel> {
        NodeDataClient::new(dial_tcp()(&self.addresses[&node].to_string()))
    }

    /// The table of a node, once it is as wanted.
    async fn table(&self, node: u64, what: &str, wanted: impl Fn(&Table) -> bool) -> Table {
        let wait = async {
            loop {
                let request = wire::WatchTableRequest { format: WIRE_FORMAT, known_epoch: 0 };
                if let Ok(tables) = self.client(node).watch_table(request).await {
                    let mut tables = tables.into_inner();
                    while let Ok(Some(table)) = tables.message().await {
                        let table = Table::try_from(table).unwrap();
                        if wanted(&table) {
                            return table;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("node {node}: {what}"))
    }

    async fn propose(&self, node: u64, change: wire::propose_meta_request::Change) -> wire::ProposeMetaReply {
        self.try_propose(node, change).await.unwrap()
    }

    async fn try_propose(
        &self,
        node: u64,
        change: wire::propose_meta_request::Change,
    ) -> Result<wire::ProposeMetaReply, tonic::Status> {
        let request = wire::ProposeMetaRequest {
            format: WIRE_FORMAT,
            deadline_ms: 20_000,
            change: Some(change),
            ..Default::default()
        };
        self.client(node).propose_meta(request).await.map(tonic::Response::into_inner)
    }

    /// A node's life that votes in the meta group, with the numbers of all voters and learners, as the node itself sees them.
    /// `None` while it does not vote: its old life has the same number, so the numbers alone do not tell.
    async fn meta_voter(&self, node: u64) -> Option<(u64, Vec<u64>, Vec<u64>)> {
        let request = wire::NodeStatusRequest { format: WIRE_FORMAT, brief: true };
        let status = self.client(node).status(request).await.ok()?.into_inner();
        let meta = status.replicas.into_iter().find(|replica| replica.shard == ShardId::META.0)?;
        matches!(meta.role.as_str(), "leader" | "follower").then_some((meta.incarnation, meta.voters, meta.learners))
    }

    async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        let wait = async {
            while !done().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("{what}"));
    }
}

fn create(name: &str) -> wire::propose_meta_request::Change {
    let vector = wire::VectorSpec { dimension: 4, metric: wire::Metric::Cosine.into(), ..Default::default() };
    wire::propose_meta_request::Change::CreateCollection(wire::CollectionSpec {
        name: name.to_owned(),
        vectors: [(String::new(), vector)].into(),
        shard_count: 2,
        ..Default::default()
    })
}

fn wipe(dir: &Path) {
    std::fs::remove_dir_all(dir).unwrap();
}

/// Flips a bit that had been durable.
fn damage(data: &Path) {
    let life = std::fs::read_dir(data.join("log")).unwrap().next().unwrap().unwrap().path();
    let file = std::fs::read_dir(life).unwrap().map(|file| file.unwrap().path()).min().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[60] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_takes_changes_anywhere_and_lets_a_wiped_node_back_in() {
    let mut cluster = Cluster::new(4, 3).await;
    // The lowest seed comes last, after a node that is no seed.
    for node in [3, 4, 2, 1] {
        cluster.start(node).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut ids = BTreeSet::new();
    for node in 1..=4 {
        ids.insert(cluster.table(node, "all four join", |table| table.nodes.len() == 4).await.cluster);
    }
    assert_eq!(ids.len(), 1, "one cluster");

    // Through a node that is not in the meta group.
    let reply = cluster.propose(4, create("books")).await;
    assert_eq!(reply.collection.as_ref().unwrap().shards.len(), 2);
    let mut tables = BTreeSet::new();
    for node in 1..=4 {
        let active = |table: &Table| {
            table.collection("books").is_some() && table.shards.values().all(|shard| shard.state == ShardState::Active)
        };
        let table = cluster.table(node, "all shards are active", active).await;
        tables.insert(serde_json::to_string(&table).unwrap());
    }
    assert_eq!(tables.len(), 1, "all watch the same table");
    let again = cluster.try_propose(4, create("books")).await.unwrap_err();
    assert_eq!(
        (again.code(), again.metadata().get("nearring-reason").unwrap().to_str().unwrap()),
        (Code::AlreadyExists, "exists")
    );
    let many = match create("many") {
        wire::propose_meta_request::Change::CreateCollection(spec) => {
            wire::propose_meta_request::Change::CreateCollection(wire::CollectionSpec { replication_factor: 5, ..spec })
        }
        other => other,
    };
    let refused = cluster.try_propose(2, many).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    // Node 2 loses its disk, and comes back as another replica: a voter again, and its old life gone.
    let before = cluster.table(1, "a table", |_| true).await.nodes[&NodeId(2)].incarnation;
    cluster.stop(2).await;
    wipe(&cluster.data(2));
    cluster.start(2).await;
    let table = cluster.table(1, "node 2 joins anew", |table| table.nodes[&NodeId(2)].incarnation > before).await;
    assert_eq!(BTreeSet::from([table.cluster]), ids);
    let life = table.nodes[&NodeId(2)].incarnation.0;
    cluster
        .until("the new life votes", async || cluster.meta_voter(2).await == Some((life, vec![1, 2, 3], Vec::new())))
        .await;
    // It counts: with node 3 gone the two others decide.
    cluster.stop(3).await;
    cluster.propose(2, create("films")).await;
    let there = |table: &Table| table.collection("films").is_some();
    assert_eq!(cluster.table(2, "films", there).await.cluster, *ids.first().unwrap());

    // Everything stops and starts: the table is as it was. Node 3's log is damaged meanwhile, so it comes back as another
    // replica too.
    for node in [1, 2, 4] {
        cluster.stop(node).await;
    }
    damage(&cluster.data(3));
    for node in [4, 3, 2, 1] {
        cluster.start(node).await;
    }
    for node in 1..=4 {
        let table = cluster.table(node, "both collections", there).await;
        assert_eq!((table.collections.len(), table.nodes.len()), (2, 4));
    }
    let before = table.nodes[&NodeId(3)].incarnation;
    let table = cluster.table(3, "node 3 joins anew", |table| table.nodes[&NodeId(3)].incarnation > before).await;
    let life = table.nodes[&NodeId(3)].incarnation.0;
    cluster
        .until("node 3 votes again", async || cluster.meta_voter(3).await == Some((life, vec![1, 2, 3], Vec::new())))
        .await;
    for node in 1..=4 {
        cluster.stop(node).await;
    }
}
