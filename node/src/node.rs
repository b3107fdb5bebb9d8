//! A storage node from its parts: what is opened in which order, who watches what, and how it ends.
//!
//! ```text
//! identity → log → server (peers only) → bootstrap → meta group → shards → server (everybody) → joined
//! ```
//! Rules:
//! - Nothing is promised under an identity whose log is not whole. Where the log, or the meta group's snapshot, turns out
//!   damaged or gone, the node first writes down a new incarnation and then begins with an empty log: all its replicas
//!   re-enter as learners. So it does where a shard has lost data, once the others can do without this life ([`renewal`]).
//!   What a life left stays in directories that name it, until the next one takes part in everything.
//! - A failed log write ends the node. So does the end of the meta group's replica, and a table that knows a later life
//!   of this node.
//! - Everything runs inside one [`scope`](crate::raft::scope); every task ends with the node.
//! - Below the disk reserve writes and appends are refused; a group that keeps the log above its budget is asked to
//!   snapshot.
//!
//! ```text
//! data/ identity · minting · lock · log/LIFE/ · meta/LIFE/ · shards/ · incoming/
//! ```
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either, Ready};
use futures::{FutureExt, Stream};
use nearring_proto::WIRE_FORMAT;
use nearring_proto::collection::InvalidInput;
use nearring_proto::convert::check_format;
use nearring_proto::ids::{ClusterId, NodeId, ReplicaId, ShardId};
use nearring_proto::placement::table::{Node, Rejected, Table};
use nearring_proto::position::Position;
use nearring_proto::wire::node_data_client::NodeDataClient;
use nearring_proto::wire::node_data_server::NodeDataServer;
use nearring_proto::wire::{self, Dial};
use openraft::BasicNode;
use openraft::rt::WatchReceiver as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use uuid::Uuid;

use crate::admission::Admission;
use crate::bootstrap::{self, Mint, Seeds, Standing, Step};
use crate::clock::Clock;
use crate::compute::Compute;
use crate::identity::{Identity, IdentityError};
use crate::medium::{Medium, OsMedium};
use crate::meta::Meta;
use crate::meta::machine::{Machine, OpenError};
use crate::raft::group::{Group, SnapshotFile};
use crate::raft::log::{LogError, LogSettings, SharedLog};
use crate::raft::peers::Peers;
use crate::raft::{self, Raft};
use crate::renewal;
use crate::rpc::data::{DataService, refusal};
use crate::rpc::meta::malformed;
use crate::rpc::peer::{Host, PeerService};
use crate::rpc::status::{ProcessUsage, StatusSource};
use crate::settings::Settings;
use crate::shards::{NodeContext, Shards};
use crate::store::EngineKind;

/// How often seeds are asked while the cluster forms.
const BOOTSTRAP_RETRY: Duration = Duration::from_millis(300);
/// How often disk and log are looked at.
const WATCH_TICK: Duration = Duration::from_secs(1);
/// How often it is looked whether earlier lives left anything that is of no use any more.
const FORGET_TICK: Duration = Duration::from_secs(10);
/// How often it is looked whether a replica has lost its data, and how long the others may take to answer then.
const RENEWAL_TICK: Duration = Duration::from_secs(2);
/// How long stopping may take before the node just ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long open connections may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
const MESSAGE_BYTES: usize = 64 << 20;

/// Why a node could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A setting is out of bounds.
    #[error("setting {0}")]
    Settings(#[from] InvalidInput),
    /// Who this node is cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log could not be written. What the disk holds is known again after a restart.
    #[error("the log could not be written: {reason}. Look after the disk, then start the node again")]
    LogFailed {
        /// What went wrong.
        reason: String,
    },
    /// The meta group's state cannot be opened.
    #[error("the meta group's state cannot be opened: {0}")]
    Meta(#[from] OpenError),
    /// A Raft group of the node itself cannot run.
    #[error("the meta group's replica ended: {reason}. Start the node again")]
    Raft {
        /// What went wrong.
        reason: String,
    },
    /// The medium failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the medium said.
        source: io::Error,
    },
    /// The cluster does not take this node.
    #[error("the cluster refuses this node: {0}")]
    Refused(Rejected),
    /// A new directory, but the clock stands behind the one that the node's earlier directory was made by.
    #[error(
        "the clock stands behind that of the node's earlier life; a later life was written down, start the node again"
    )]
    ClockBehind,
    /// A replica has lost data, and the node goes on as somebody else, who is given it anew.
    #[error("a replica of this node has lost its data; a later life was written down, start the node again")]
    DataLost,
    /// The server ended.
    #[error("the server ended: {0}")]
    Server(String),
}

/// What a node is made of. Parts that are not given are the operating system's.
#[derive(Clone)]
pub struct NodeBuilder {
    settings: Settings,
    medium: Arc<dyn Medium>,
    dial: Dial,
    compute: Compute,
    clock: Clock,
    engine: EngineKind,
    seed: u64,
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Dials TCP, lazily. A connection that says nothing for some seconds is asked whether it still is one.
pub fn dial_tcp() -> Dial {
    Arc::new(|to: &str| {
        let uri = http::Uri::builder().scheme("http").authority(to).path_and_query("/").build();
        // An address that is none fails when it is used, as one that nobody answers at.
        let endpoint = tonic::transport::Endpoint::from(uri.unwrap_or_default());
        endpoint
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .connect_lazy()
    })
}

impl NodeBuilder {
    /// A node with these settings on the operating system's disk, network, clock and threads.
    #[allow(clippy::disallowed_methods, reason = "the seed of a node that is given none")]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            medium: Arc::new(OsMedium),
            dial: dial_tcp(),
            compute: Compute::pool(),
            clock: Clock::system(),
            engine: EngineKind::Sled,
            seed: rand::random(),
        }
    }

    /// Where files are.
    #[must_use]
    pub fn medium(mut self, medium: Arc<dyn Medium>) -> Self {
        self.medium = medium;
        self
    }

    /// How other nodes are reached.
    #[must_use]
    pub fn dial(mut self, dial: Dial) -> Self {
        self.dial = dial;
        self
    }

    /// Where CPU and file work runs.
    #[must_use]
    pub fn compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Wall time.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The key-value engine.
    #[must_use]
    pub fn engine(mut self, engine: EngineKind) -> Self {
        self.engine = engine;
        self
    }

    /// What all randomness follows from: election timeouts, the cluster id. Drawn where it is not given.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Runs the node on the connections of `incoming` until `shutdown` is done, then stops it in good order. The data
    /// directory must be this process's alone ([`crate::identity::lock`]).
    ///
    /// # Errors
    /// [`NodeError`]: it could not start, or had to end.
    pub async fn serve<I, IO, IE>(self, incoming: I, shutdown: impl Future<Output = ()> + Send) -> Result<(), NodeError>
    where
        I: Stream<Item = Result<IO, IE>> + Send,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IE: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.settings.check()?;
        raft::scope(self.seed, self.run(incoming, shutdown)).await
    }

    async fn run<I, IO, IE>(self, incoming: I, shutdown: impl Future<Output = ()> + Send) -> Result<(), NodeError>
    where
        I: Stream<Item = Result<IO, IE>> + Send,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IE: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let meta = Meta::new(self.settings.node, &self.settings.seeds, self.dial.clone());
        let mut shutdown = std::pin::pin!(shutdown);
        let (identity, log, machine) = tokio::select! {
            opened = self.open(&meta) => opened?,
            () = &mut shutdown => return Ok(()),
        };
        let noted = self.noted().await?;
        let stop = CancellationToken::new();
        let host = Arc::new(NodeHost::new(&self.settings, identity.replica(), meta, log.clone()));
        // Before anybody can ask: the lowest seed, its disk gone, must not take a node that is starting for a blank one.
        if let Some(cluster) = identity.cluster().filter(|_| !mints(noted, &identity)) {
            let _ = host.told.set(cluster);
        }
        let peers = PeerService::new(host.clone(), self.medium.clone(), self.compute.clone(), stop.clone());
        let gate: Gate<NodeDataServer<DataService>> = Gate::new();
        let (mut health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::NotServing).await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(nearring_proto::wire::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let failed = |error: tonic_reflection::server::Error| NodeError::Server(error.to_string());
        let server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .add_service(peers.into_server())
            .add_service(gate.clone())
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(failed)?)
            // As it was called before it was a standard: many tools ask for that.
            .add_service(reflection().build_v1alpha().map_err(failed)?)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let mut server = std::pin::pin!(server);
        let node = Running {
            builder: self,
            host: host.clone(),
            log: log.clone(),
            gate: gate.clone(),
            health: health.clone(),
            stop: stop.clone(),
        };
        let outcome = tokio::select! {
            ended = &mut server => Err(match ended {
                Ok(()) => NodeError::Server("no more connections can come in".into()),
                Err(error) => NodeError::Server(error.to_string()),
            }),
            () = &mut shutdown => Ok(()),
            error = node.live(identity, noted, machine) => Err(error),
            reason = log.failed() => Err(NodeError::LogFailed { reason }),
        };
        gate.close();
        health.set_service_status("", ServingStatus::NotServing).await;
        let stopping = async {
            // While the others still reach this node: leaders hand over, what is under way is finished.
            let leaving = async {
                if let Some(shards) = host.shards.get() {
                    shards.stop().await;
                }
                host.leave().await;
                // Ends the streams of those who watch; the server waits for every stream.
                health.clear_service_status("").await;
                stop.cancel();
                let _ = timeout(DRAIN_TIMEOUT, future::pending::<()>()).await;
            };
            // The server ends as soon as its connections have; it must be polled for as long as anybody is to be answered.
            tokio::select! {
                _ = &mut server => {}
                () = leaving => {}
            }
            log.close().await;
        };
        if timeout(STOP_TIMEOUT, stopping).await.is_err() {
            tracing::warn!("the node does not stop in good order within {STOP_TIMEOUT:?}; it ends as in a crash");
            stop.cancel();
        }
        outcome
    }

    fn io<T>(path: &Path, result: io::Result<T>) -> Result<T, NodeError> {
        result.map_err(|source| NodeError::Io { path: path.to_owned(), source })
    }

    /// Opens what this life has on disk; begins a new one where that is not whole.
    async fn open(&self, meta: &Meta) -> Result<(Identity, SharedLog, Option<Machine>), NodeError> {
        let (dir, medium) = (&self.settings.data_dir, &self.medium);
        let (builder, clock) = (self.clone(), self.clock.clone());
        let mut identity = self
            .compute
            .io(move || {
                let dir = &builder.settings.data_dir;
                let identity = Identity::open(&*builder.medium, dir, builder.settings.node, || clock.now_ms())?;
                // What was being received when the node ended is of no use.
                let incoming = dir.join(INCOMING);
                Self::io(&incoming, builder.medium.remove_dir_all(&incoming))?;
                Self::io(&incoming, builder.medium.create_dir_all(&incoming))?;
                Self::io(&dir.join(LOG), builder.medium.create_dir_all(&dir.join(LOG)))?;
                Self::io(dir, builder.medium.sync_dir(dir))?;
                Ok::<_, NodeError>(identity)
            })
            .await?;
        // A life that begins here and now has no log yet.
        let mut begins = identity.cluster().is_none();
        loop {
            let log_dir = life_dir(&dir.join(LOG), identity.replica());
            if !begins && !Self::io(&log_dir, medium.exists(&log_dir))? {
                tracing::error!(path = %log_dir.display(), "the log is gone; this node's replicas re-enter as new ones");
                self.renew(&mut identity).await?;
                begins = true;
                continue;
            }
            let bytes = self.settings.limits.log_bytes;
            let settings = LogSettings {
                budget_bytes: bytes,
                file_bytes: (bytes / 8).clamp(1 << 20, 64 << 20),
                cache_bytes: (bytes / 64).min(LogSettings::default().cache_bytes),
            };
            let log = match SharedLog::open(medium.clone(), log_dir, self.compute.clone(), settings).await {
                Ok(log) => log,
                Err(error @ LogError::Damaged { .. }) => {
                    tracing::error!(%error, "this node's replicas re-enter as new ones");
                    self.renew(&mut identity).await?;
                    begins = true;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let Some(cluster) = identity.cluster() else { return Ok((identity, log, None)) };
            match self.open_machine(meta, identity.replica(), cluster).await {
                Ok(machine) => return Ok((identity, log, machine)),
                Err(NodeError::Meta(error @ OpenError::Snapshot { .. })) => {
                    tracing::error!(%error, "this node's replicas re-enter as new ones");
                    log.close().await;
                    self.renew(&mut identity).await?;
                    begins = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The meta group's state, where this node is a member.
    async fn open_machine(&self, meta: &Meta, me: ReplicaId, cluster: ClusterId) -> Result<Option<Machine>, NodeError> {
        let dir = life_dir(&self.settings.data_dir.join(META), me);
        let seed = self.settings.seeds.iter().any(|(node, _)| *node == me.node);
        let (medium, compute, meta) = (self.medium.clone(), self.compute.clone(), meta.clone());
        self.compute
            .io(move || {
                // Who was a seed stays a member until the group lets it go.
                if !seed && !Self::io(&dir, medium.exists(&dir))? {
                    return Ok(None);
                }
                meta.set_cluster(cluster);
                Ok(Some(Machine::open(medium, compute, &dir, cluster, meta.publisher())?))
            })
            .await
    }

    /// The note of minting in the data directory.
    async fn noted(&self) -> Result<Option<Mint>, NodeError> {
        let (medium, dir) = (self.medium.clone(), self.settings.data_dir.clone());
        let read = self.compute.io(move || Mint::read(&*medium, &dir)).await;
        Self::io(&self.settings.data_dir, read)
    }

    async fn renew(&self, identity: &mut Identity) -> Result<(), NodeError> {
        let (medium, clock, mut next) = (self.medium.clone(), self.clock.clone(), identity.clone());
        *identity = self.compute.io(move || next.renew(&*medium, || clock.now_ms()).map(|()| next)).await?;
        Ok(())
    }
}

const INCOMING: &str = "incoming";
const LOG: &str = "log";
const META: &str = "meta";

fn life_dir(dir: &Path, me: ReplicaId) -> PathBuf {
    dir.join(format!("{:016x}", me.incarnation.0))
}

/// Whether `noted` says that this very life mints the cluster that `identity` names.
fn mints(noted: Option<Mint>, identity: &Identity) -> bool {
    let named = identity.cluster().map(|cluster| Mint { incarnation: identity.replica().incarnation, cluster });
    noted.is_some() && noted == named
}

/// A node between its start and its end.
struct Running {
    builder: NodeBuilder,
    host: Arc<NodeHost>,
    log: SharedLog,
    gate: Gate<NodeDataServer<DataService>>,
    health: HealthReporter,
    stop: CancellationToken,
}

impl Running {
    /// Finds or forms the cluster, takes part in it, and answers why it cannot any longer.
    async fn live(self, identity: Identity, noted: Option<Mint>, machine: Option<Machine>) -> NodeError {
        match self.run(identity, noted, machine).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn run(
        &self,
        mut identity: Identity,
        noted: Option<Mint>,
        machine: Option<Machine>,
    ) -> Result<Infallible, NodeError> {
        let (host, meta, settings) = (&self.host, &self.host.meta, &self.builder.settings);
        // A life that no group was ever told to is as good as new: it stopped before it was let in.
        let fresh = identity.cluster().is_none() || self.log.groups().is_empty();
        let (cluster, minting) = self.find_cluster(&mut identity, noted).await?;
        tracing::info!(%cluster, node = %identity.replica(), "this node is part of a cluster");
        meta.set_cluster(cluster);
        let config = raft::config(settings.raft.heartbeat, settings.raft.election)
            .map_err(|error| InvalidInput::new("raft", error.to_string()))?;
        let peers = Peers::new(
            identity.replica(),
            cluster,
            self.builder.dial.clone(),
            self.builder.medium.clone(),
            self.builder.compute.clone(),
            settings.raft.heartbeat,
        );
        self.spawn(addresses(meta.clone(), peers.clone()));
        let machine = match machine {
            Some(machine) => Some(machine),
            None => self.builder.open_machine(meta, identity.replica(), cluster).await?,
        };
        let member = match machine {
            Some(machine) => {
                let network = peers.network(ShardId::META);
                let log = self.log.group(ShardId::META);
                let raft = Raft::new(identity.replica(), config, network, log, machine).await.map_err(ended)?;
                meta.set_member(raft.clone());
                if minting {
                    self.initialise(&raft, &identity).await?;
                }
                let _ = host.group.set(Arc::new(raft.clone()));
                self.spawn(meta.clone().lead());
                self.spawn(raft::unheard::watch(raft.clone(), settings.raft.election.1));
                Some(raft)
            }
            None => {
                self.spawn(meta.clone().follow());
                None
            }
        };
        let _ = host.told.set(cluster);
        let _ = host.cluster.set(cluster);
        let context = NodeContext {
            me: identity.replica(),
            cluster,
            data_dir: settings.data_dir.clone(),
            medium: self.builder.medium.clone(),
            compute: self.builder.compute.clone(),
            clock: self.builder.clock.clone(),
            engine: self.builder.engine,
            settings: settings.clone(),
            log: self.log.clone(),
            peers,
            meta: meta.clone(),
            admission: host.admission.clone(),
        };
        self.look_at_disk().await;
        let shards = Shards::start(context).await;
        let _ = host.shards.set(shards.clone());
        let service = DataService::new(shards.clone(), host.clone() as Arc<dyn StatusSource>);
        let service = NodeDataServer::new(service);
        self.gate.open(service.max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES));
        self.health.set_service_status("", ServingStatus::Serving).await;
        let (anew, me) = (identity.clone(), identity.replica());
        tokio::select! {
            error = self.keep_joined(&mut identity, fresh) => Err(error),
            error = ending(member.as_ref()) => Err(error),
            never = self.watch(&shards) => match never {},
            error = self.begin_anew(&shards, anew) => Err(error),
            never = self.forget_earlier_lives(me) => match never {},
            never = self.forget_minting(minting) => match never {},
        }
    }

    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        raft::spawn(self.stop.clone().run_until_cancelled_owned(future).map(drop));
    }

    /// The cluster that this node belongs to, on disk before anything else; and whether it has to initialise its meta
    /// group.
    async fn find_cluster(&self, identity: &mut Identity, noted: Option<Mint>) -> Result<(ClusterId, bool), NodeError> {
        let (host, dir) = (&self.host, &self.builder.settings.data_dir);
        let mut reported = String::new();
        loop {
            let me = identity.replica();
            if let Some(cluster) = identity.cluster() {
                return Ok((cluster, mints(noted, identity)));
            }
            let standing = Standing { me, cluster: None, minting: false, formed: false };
            match bootstrap::next(&host.seeds, &standing, &self.ask(None).await) {
                Step::Adopt(cluster) => {
                    self.adopt(identity, cluster).await?;
                    let _ = host.told.set(cluster);
                }
                Step::Mint => {
                    let mint =
                        Mint { incarnation: me.incarnation, cluster: ClusterId(draw_uuid(self.builder.seed, me)) };
                    let (medium, of) = (self.builder.medium.clone(), dir.clone());
                    let written = self.builder.compute.io(move || mint.write(&*medium, &of)).await;
                    NodeBuilder::io(dir, written)?;
                    self.adopt(identity, mint.cluster).await?;
                    return Ok((mint.cluster, true));
                }
                Step::Wait(reason) => self.wait(&mut reported, reason).await,
                // Neither is ever the answer for a node without a cluster.
                Step::Initialise(_) | Step::Ready => sleep(BOOTSTRAP_RETRY).await,
            }
        }
    }

    /// Initialises the meta group, unless that has happened: in an earlier start, or as far as anybody says.
    async fn initialise(&self, raft: &Raft<Machine>, identity: &Identity) -> Result<(), NodeError> {
        let (me, cluster) = (identity.replica(), identity.cluster());
        let mut reported = String::new();
        loop {
            let formed = raft.is_initialized().await.map_err(ended)?;
            let standing = Standing { me, cluster, minting: true, formed };
            match bootstrap::next(&self.host.seeds, &standing, &self.ask(None).await) {
                Step::Initialise(members) => {
                    tracing::info!(?members, "initialising the meta group");
                    let members = members.into_iter().map(|(id, addr)| (id, BasicNode { addr }));
                    let members: BTreeMap<ReplicaId, BasicNode> = members.collect();
                    raft.initialize(members).await.map_err(ended)?;
                    return Ok(());
                }
                Step::Wait(reason) => self.wait(&mut reported, reason).await,
                Step::Ready | Step::Adopt(_) | Step::Mint => return Ok(()),
            }
        }
    }

    async fn ask(&self, cluster: Option<ClusterId>) -> BTreeMap<NodeId, bootstrap::Heard> {
        let request = bootstrap::introduction(&self.host.node, cluster, &self.host.seeds);
        bootstrap::ask(&self.builder.dial, &self.host.seeds, self.host.node.id, &request).await
    }

    async fn wait(&self, reported: &mut String, reason: String) {
        if *reported != reason {
            tracing::info!("waiting: {reason}");
            self.gate.say(&reason);
            *reported = reason;
        }
        sleep(BOOTSTRAP_RETRY).await;
    }

    async fn adopt(&self, identity: &mut Identity, cluster: ClusterId) -> Result<(), NodeError> {
        let (medium, mut next) = (self.builder.medium.clone(), identity.clone());
        *identity = self.builder.compute.io(move || next.adopt(&*medium, cluster).map(|()| next)).await?;
        Ok(())
    }

    async fn keep_joined(&self, identity: &mut Identity, fresh: bool) -> NodeError {
        match self.host.meta.keep_joined(self.host.node.clone()).await {
            // A directory in which this life holds nothing is no old copy: the clock went back.
            Err(Rejected::EarlierLife { known, .. }) if fresh => {
                let (medium, mut next) = (self.builder.medium.clone(), identity.clone());
                let later = move || known.0.saturating_add(1);
                match self.builder.compute.io(move || next.renew(&*medium, later)).await {
                    Ok(()) => NodeError::ClockBehind,
                    Err(error) => error.into(),
                }
            }
            Err(rejected) => NodeError::Refused(rejected),
            Ok(()) => future::pending().await,
        }
    }

    /// Ends this life where one of its replicas has lost data, as soon as the others can do without it.
    async fn begin_anew(&self, shards: &Shards, mut identity: Identity) -> NodeError {
        let mut reported = String::new();
        loop {
            sleep(RENEWAL_TICK).await;
            if !shards.has_lost_data() {
                continue;
            }
            let table = self.host.meta.table().borrow().clone();
            let meta: Vec<ReplicaId> = self.host.meta.voters().into_iter().map(|(id, _)| id).collect();
            let statuses = self.others(&table).await;
            match renewal::dispensable(identity.replica(), &table, &meta, &statuses) {
                Ok(()) => {
                    return match self.builder.renew(&mut identity).await {
                        Ok(()) => NodeError::DataLost,
                        Err(error) => error,
                    };
                }
                Err(reason) if reported != reason => {
                    tracing::error!(reason, "a replica has lost its data, and the node cannot begin a new life yet");
                    reported = reason;
                }
                Err(_) => {}
            }
        }
    }

    /// Removes what earlier lives left, once this one takes part in all that the node should hold; then there is nothing more
    /// to remove in this life.
    async fn forget_earlier_lives(&self, me: ReplicaId) -> Infallible {
        let dirs = [LOG, META].map(|name| self.builder.settings.data_dir.join(name));
        let own = life_dir(Path::new(""), me);
        loop {
            sleep(FORGET_TICK).await;
            let meta: Vec<ReplicaId> = self.host.meta.voters().into_iter().map(|(id, _)| id).collect();
            let table = self.host.meta.table().borrow().clone();
            if meta.is_empty() || !renewal::settled(me, &table, &meta, self.host.status(true).await) {
                continue;
            }
            let (medium, dirs, own) = (self.builder.medium.clone(), dirs.clone(), own.clone());
            let removed = self.builder.compute.io(move || {
                for dir in &dirs {
                    // A node that is no member of the meta group has none of it.
                    let lives = if medium.exists(dir)? { medium.list(dir)? } else { Vec::new() };
                    for life in lives.iter().filter(|life| Path::new(life) != own) {
                        tracing::info!(path = %dir.join(life).display(), "what an earlier life left is removed");
                        medium.remove_dir_all(&dir.join(life))?;
                        medium.sync_dir(dir)?;
                    }
                }
                Ok::<_, io::Error>(())
            });
            match removed.await {
                Ok(()) => future::pending::<()>().await,
                Err(error) => tracing::warn!(%error, "what an earlier life left cannot be removed"),
            }
        }
    }

    /// What the other nodes say of themselves; who does not answer is left out.
    async fn others(&self, table: &Table) -> BTreeMap<NodeId, wire::NodeStatus> {
        let others = table.nodes.values().filter(|node| node.id != self.host.node.id);
        let asked = others.map(|node| async move {
            let mut client = NodeDataClient::new((self.builder.dial)(&node.address));
            let request = wire::NodeStatusRequest { format: WIRE_FORMAT, brief: true };
            let answer = timeout(RENEWAL_TICK, client.status(request)).await;
            Some((node.id, answer.ok()?.ok()?.into_inner()))
        });
        future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn look_at_disk(&self) {
        let (medium, dir) = (self.builder.medium.clone(), self.builder.settings.data_dir.clone());
        match self.builder.compute.io(move || medium.free_bytes(&dir)).await {
            Ok(free) => {
                let full = free < self.builder.settings.limits.disk_reserve_bytes;
                if full != self.host.admission.disk_full() {
                    tracing::warn!(free, full, "free disk crosses the reserve: writes are refused while it is below");
                }
                self.host.free_bytes.store(free, Ordering::Relaxed);
                self.host.admission.set_disk_full(full);
            }
            Err(error) => tracing::warn!(%error, "free disk space cannot be read"),
        }
    }

    async fn watch(&self, shards: &Shards) -> Infallible {
        loop {
            self.look_at_disk().await;
            match self.log.pinning() {
                Some(ShardId::META) => self.host.meta.snapshot(),
                Some(shard) => shards.snapshot(shard).await,
                None => {}
            }
            sleep(WATCH_TICK).await;
        }
    }

    /// The note of minting is removed once the group has come to a decision.
    async fn forget_minting(&self, minting: bool) -> Infallible {
        if minting {
            while self.host.meta.voters().is_empty() {
                sleep(WATCH_TICK).await;
            }
            let (medium, dir) = (self.builder.medium.clone(), self.builder.settings.data_dir.clone());
            if let Err(error) = self.builder.compute.io(move || Mint::remove(&*medium, &dir)).await {
                tracing::warn!(%error, "the note of minting stays behind");
            }
        }
        future::pending().await
    }
}

fn ended(error: impl fmt::Display) -> NodeError {
    NodeError::Raft { reason: error.to_string() }
}

/// Resolves when a replica has ended by itself.
async fn ending(member: Option<&Raft<Machine>>) -> NodeError {
    let Some(raft) = member else { return future::pending().await };
    let mut metrics = raft.metrics();
    loop {
        if let Err(error) = &metrics.borrow_watched().running_state {
            return ended(error);
        }
        if metrics.changed().await.is_err() {
            return ended("it says nothing any more");
        }
    }
}

/// Tells the transport where the table says that nodes are.
async fn addresses(meta: Meta, peers: Peers) {
    let mut tables = meta.table();
    loop {
        for node in tables.borrow_and_update().nodes.values() {
            peers.set_address(ReplicaId { node: node.id, incarnation: node.incarnation }, node.address.clone());
        }
        if tables.changed().await.is_err() {
            return;
        }
    }
}

/// Follows from the node's seed and its life, so that a simulation's cluster id repeats.
fn draw_uuid(seed: u64, me: ReplicaId) -> Uuid {
    use rand::{Rng as _, SeedableRng as _};
    let mut random = rand::rngs::StdRng::seed_from_u64(seed ^ me.incarnation.0);
    uuid::Builder::from_random_bytes(random.random()).into_uuid()
}

/// The node as its peers see it.
struct NodeHost {
    me: ReplicaId,
    node: Node,
    seeds: Seeds,
    /// What others are told when they ask which cluster this is: known to be one whose group exists.
    told: OnceLock<ClusterId>,
    /// Set once requests of the cluster can be answered.
    cluster: OnceLock<ClusterId>,
    group: OnceLock<Arc<dyn Group>>,
    meta: Meta,
    shards: OnceLock<Shards>,
    admission: Arc<Admission>,
    log: SharedLog,
    incoming: PathBuf,
    free_bytes: AtomicU64,
}

impl NodeHost {
    fn new(settings: &Settings, me: ReplicaId, meta: Meta, log: SharedLog) -> Self {
        let node = Node {
            id: me.node,
            incarnation: me.incarnation,
            address: settings.advertise.clone(),
            zone: settings.zone.clone(),
        };
        Self {
            me,
            node,
            seeds: settings.seeds.iter().cloned().collect(),
            told: OnceLock::new(),
            cluster: OnceLock::new(),
            group: OnceLock::new(),
            meta,
            shards: OnceLock::new(),
            admission: Admission::new(settings.limits),
            log,
            incoming: settings.data_dir.join(INCOMING),
            free_bytes: AtomicU64::new(0),
        }
    }

    /// Hands the meta group's leadership over, where this node has it, and ends its replica.
    async fn leave(&self) {
        self.meta.stop();
        let Some(raft) = self.meta.member() else { return };
        if raft.is_leader() {
            let voters = self.meta.voters();
            if let Some((heir, _)) = voters.into_iter().find(|(id, _)| *id != self.me) {
                // A wish: without it the others elect one after a timeout, as after a crash.
                let _ = raft.trigger().transfer_leader(heir).await;
                let mut metrics = raft.metrics();
                let handed_over = async { while raft.is_leader() && metrics.changed().await.is_ok() {} };
                let _ = timeout(Duration::from_millis(500), handed_over).await;
            }
        }
        let _ = raft.shutdown().await;
    }
}

#[tonic::async_trait]
impl Host for NodeHost {
    fn me(&self) -> ReplicaId {
        self.me
    }

    fn cluster(&self) -> Option<ClusterId> {
        self.cluster.get().copied()
    }

    fn group(&self, group: ShardId) -> Option<Arc<dyn Group>> {
        if group == ShardId::META { self.group.get().cloned() } else { self.shards.get()?.group(group) }
    }

    fn admits_appends(&self) -> bool {
        !self.admission.disk_full()
    }

    fn is_replaced(&self, peer: ReplicaId) -> bool {
        let table = self.meta.table();
        let table = table.borrow();
        table.nodes.get(&peer.node).is_some_and(|node| node.incarnation > peer.incarnation)
    }

    fn address(&self, peer: ReplicaId) -> Option<String> {
        let table = self.meta.table();
        let table = table.borrow();
        let row = table.nodes.get(&peer.node).filter(|node| node.incarnation == peer.incarnation)?;
        Some(row.address.clone())
    }

    fn incoming_dir(&self) -> PathBuf {
        self.incoming.clone()
    }

    async fn hello(&self, request: wire::HelloRequest) -> Result<wire::HelloReply, Status> {
        check_format(request.format).map_err(|error| malformed(&error))?;
        let cluster = self.told.get().copied();
        let voter = |(id, address): (ReplicaId, String)| wire::NodeInfo {
            node: id.node.0,
            incarnation: id.incarnation.0,
            address,
            zone: String::new(),
        };
        Ok(wire::HelloReply {
            format: WIRE_FORMAT,
            node: Some(self.node.clone().into()),
            cluster_id: cluster.map_or_else(Bytes::new, |cluster| Bytes::copy_from_slice(cluster.0.as_bytes())),
            seeds: bootstrap::seeds_to_wire(&self.seeds),
            meta_voters: self.meta.voters().into_iter().map(voter).collect(),
        })
    }

    async fn read_index(&self, shards: Vec<ShardId>, deadline: Duration) -> Vec<Position> {
        match self.shards.get() {
            Some(running) => running.read_index(shards, deadline).await,
            None => Vec::new(),
        }
    }

    async fn segment_file(&self, shard: ShardId, hash: [u8; 32]) -> Option<SnapshotFile> {
        self.shards.get()?.segment_file(shard, hash).await
    }

    async fn accept_segment(&self, shard: ShardId, segment: u64, hash: [u8; 32], file: PathBuf) -> Result<(), String> {
        match self.shards.get() {
            Some(running) => running.accept_segment(shard, segment, hash, file).await,
            None => Err("the node is starting".to_owned()),
        }
    }
}

#[tonic::async_trait]
impl StatusSource for NodeHost {
    async fn status(&self, brief: bool) -> wire::NodeStatus {
        let usage = ProcessUsage::now();
        let mut replicas = self.shards.get().map(|shards| shards.statuses(brief)).unwrap_or_default();
        replicas.extend(self.meta_status());
        replicas.sort_by_key(|replica| replica.shard);
        wire::NodeStatus {
            node: self.me.node.0,
            incarnation: self.me.incarnation.0,
            reachable: true,
            address: self.node.address.clone(),
            replicas,
            log_bytes: self.log.size_bytes(),
            rss_bytes: usage.rss_bytes,
            cpu_ms: usage.cpu_ms,
            disk_free_bytes: self.free_bytes.load(Ordering::Relaxed),
            refusing_writes: self.admission.disk_full(),
            inflight_write_bytes: u32::try_from(self.admission.in_flight_bytes()).unwrap_or(u32::MAX),
            error: String::new(),
        }
    }
}

impl NodeHost {
    fn meta_status(&self) -> Option<wire::ReplicaStatus> {
        let raft = self.meta.member()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        Some(wire::ReplicaStatus {
            shard: ShardId::META.0,
            node: self.me.node.0,
            incarnation: self.me.incarnation.0,
            role: format!("{:?}", metrics.state).to_lowercase(),
            term: metrics.current_term,
            leader_node: metrics.current_leader.map_or(0, |leader| leader.node.0),
            last_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            committed_index: metrics.local_committed.map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            voters: membership.voter_ids().map(|voter| voter.node.0).collect(),
            learners: membership.learner_ids().map(|learner| learner.node.0).collect(),
            ..Default::default()
        })
    }
}

/// A service that is there later than the server, and gone earlier.
struct Gate<S> {
    phase: Arc<RwLock<Phase<S>>>,
}

enum Phase<S> {
    Closed(String),
    Open(S),
}

impl<S> Clone for Gate<S> {
    fn clone(&self) -> Self {
        Self { phase: self.phase.clone() }
    }
}

impl<S> Gate<S> {
    fn new() -> Self {
        Self { phase: Arc::new(RwLock::new(Phase::Closed("the node is starting".to_owned()))) }
    }

    fn set(&self, phase: Phase<S>) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn open(&self, service: S) {
        self.set(Phase::Open(service));
    }

    fn say(&self, reason: &str) {
        self.set(Phase::Closed(format!("the node is starting: {reason}")));
    }

    fn close(&self) {
        self.set(Phase::Closed("the node is stopping".to_owned()));
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<Body>> for Gate<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Self::Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match &*self.phase.read().unwrap_or_else(PoisonError::into_inner) {
            // tonic's services are always ready.
            Phase::Open(service) => Either::Right(service.clone().call(request)),
            Phase::Closed(reason) => {
                let status = refusal(Code::Unavailable, "not_done", reason.clone());
                Either::Left(future::ready(Ok(status.into_http())))
            }
        }
    }
}
