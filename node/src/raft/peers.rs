//! The way to the other nodes: Raft messages of all groups, snapshots, segment files.
//!
//! A node leads or follows hundreds of groups on the same few peers, so what is cheap for one group is not for all of
//! them. Hence **one stream per peer and direction**: a node opens one stream to each peer, its requests go out there and
//! their answers come back there. Whatever waits when the stream has room goes out as one message, so that the
//! heartbeats of many groups, and small appends under load, share one. The rules:
//!
//! - Requests to one peer leave in the order they were made; answers come in any order and are matched by number.
//! - Appends of a group are pipelined, a few at a time; answers are handed to Raft in order, and nothing after the first
//!   that is not a full success.
//! - What waits for a peer is bounded: by number, and appends with entries by bytes too. Beyond that the caller waits.
//! - A stream that owes answers and is silent for a second (longer if it owes many bytes) is given up and dialled anew. Its
//!   calls fail as network errors, which Raft repeats at once; a peer that cannot be reached or refuses fails as
//!   unreachable, which Raft repeats more slowly.
//! - Files travel on connections of their own: they neither delay a heartbeat nor lose to one.
//!
//! Nothing is repeated here, and nothing is decided: Raft does both. What arrives in a file is not checked here beyond
//! its length.
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use nearring_proto::ids::{ClusterId, ReplicaId, ShardId};
use nearring_proto::position::Position;
use nearring_proto::wire::node_peer_client::NodePeerClient;
use nearring_proto::wire::raft_item::Kind;
use nearring_proto::wire::{self, Dial};
use nearring_proto::{WIRE_FORMAT, convert};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RPCTypes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::codec::{self, Wire};
use super::files::{self, Incoming};
pub use super::group::{Group, SnapshotFile, SnapshotMeta};
use super::{LogId, TypeConfig, Vote};
use crate::compute::Compute;
use crate::medium::Medium;

/// The largest message either side takes.
pub(crate) const MESSAGE_BYTES: usize = 64 << 20;
/// Payload after which a batch is closed. One item may be larger, it then travels alone.
pub(crate) const BATCH_BYTES: usize = 8 << 20;
/// The largest payload of one item: a message, less what surrounds it.
const ITEM_BYTES: usize = MESSAGE_BYTES - (64 << 10);
/// Requests that wait for one peer.
const QUEUE: usize = 1024;
/// Bytes of entries under way to one peer, in units of 1 KiB.
const BUDGET_KIB: u32 = 64 << 10;
/// Appends of one group under way to one peer.
const PIPELINE: usize = 4;
/// How long a heartbeat waits for others to share a message with. Reads that ask for a quorum wait as long.
const HEARTBEAT_HOLD: Duration = Duration::from_millis(2);
/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(1);
/// How long an answer may take, and how long a stream that owes answers may be silent, before the bytes are counted.
const PATIENCE: Duration = Duration::from_secs(1);
/// The slowest link that still serves.
const BYTES_PER_SECOND: u64 = 1 << 20;
/// How long a file transfer may make no progress.
const STALL: Duration = Duration::from_secs(20);

/// How long to wait for the answer to a request of so many bytes.
fn patience(bytes: usize) -> Duration {
    PATIENCE + Duration::from_millis((bytes as u64).saturating_mul(1000) / BYTES_PER_SECOND)
}

/// A call to another node failed.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection, or it broke. Another node, or the same one later, may answer.
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable {
        /// Its address.
        peer: String,
        /// What the transport said.
        reason: String,
    },
    /// No answer in time.
    #[error("{peer} did not answer within {after:?}")]
    Deadline {
        /// Its address.
        peer: String,
        /// The time it had.
        after: Duration,
    },
    /// It answered that it does not do this: another cluster, another life, not there.
    #[error("{peer} refuses ({code:?}): {reason}")]
    Refused {
        /// Its address.
        peer: String,
        /// The kind of refusal; [`Code::NotFound`] for a segment that it does not have.
        code: Code,
        /// Why.
        reason: String,
    },
    /// This node's file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the medium said.
        source: io::Error,
    },
}

impl PeerError {
    fn of(peer: &str, status: &Status) -> Self {
        let (peer, reason) = (peer.to_owned(), status.message().to_owned());
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => Self::Unreachable { peer, reason },
            code => Self::Refused { peer, code, reason },
        }
    }
}

/// Why a Raft request has no answer.
#[derive(Clone, Debug)]
enum CallError {
    /// No connection, or the peer does not want this: repeat slowly.
    Unreachable(String),
    /// The connection broke with the request under way: repeat.
    Broken(String),
    /// No answer in time.
    Timeout(Duration),
}

impl CallError {
    fn of(status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition | Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented => {
                Self::Unreachable(message)
            }
            _ => Self::Broken(message),
        }
    }

    fn into_rpc(self, action: RPCTypes, id: ReplicaId, target: ReplicaId) -> RPCError<TypeConfig> {
        match self {
            Self::Unreachable(reason) => Unreachable::from_string(format!("{target}: {reason}")).into(),
            Self::Broken(reason) => NetworkError::from_string(format!("{target}: {reason}")).into(),
            Self::Timeout(timeout) => Timeout { action, id, target, timeout }.into(),
        }
    }
}

/// Where a peer is: what the placement table says, or else what the group's membership says.
#[derive(Clone, Default, Debug)]
struct Address {
    table: Option<String>,
    member: Option<String>,
}

struct Shared {
    me: ReplicaId,
    cluster: ClusterId,
    dial: Dial,
    medium: Arc<dyn Medium>,
    compute: Compute,
    heartbeat: Duration,
    addresses: Mutex<BTreeMap<ReplicaId, Address>>,
    batches: AtomicU64,
    items: AtomicU64,
}

impl Shared {
    fn address(&self, replica: ReplicaId) -> Option<String> {
        let address = lock(&self.addresses).get(&replica).cloned()?;
        address.table.or(address.member)
    }

    fn cluster_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.cluster.0.as_bytes())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is complete between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn client(channel: Channel) -> NodePeerClient<Channel> {
    NodePeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
}

/// The other nodes. Cheap to clone; the connections end with the last clone and the last group's network.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
    links: Arc<Mutex<BTreeMap<ReplicaId, Link>>>,
    control: Arc<Mutex<BTreeMap<String, Channel>>>,
}

impl Peers {
    /// The peers of `me` in `cluster`. `heartbeat` is every group's heartbeat interval; nothing is dialled yet.
    pub fn new(
        me: ReplicaId,
        cluster: ClusterId,
        dial: Dial,
        medium: Arc<dyn Medium>,
        compute: Compute,
        heartbeat: Duration,
    ) -> Self {
        let shared = Shared {
            me,
            cluster,
            dial,
            medium,
            compute,
            heartbeat,
            addresses: Mutex::default(),
            batches: AtomicU64::new(0),
            items: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), links: Arc::default(), control: Arc::default() }
    }

    /// What Raft of `group` reaches its replicas with. A target's address is its `BasicNode`'s, unless
    /// [`Peers::set_address`] knows better.
    pub fn network(&self, group: ShardId) -> GroupNetworkFactory {
        GroupNetworkFactory { peers: self.clone(), group }
    }

    /// Where the placement table says that a replica's node is, `host:port`. Used from the next connection on; wins over
    /// the address in a group's membership, which may be of before a restart.
    pub fn set_address(&self, replica: ReplicaId, addr: String) {
        lock(&self.shared.addresses).entry(replica).or_default().table = Some(addr);
    }

    /// Where a replica's node is, as far as is known here.
    pub fn address(&self, replica: ReplicaId) -> Option<String> {
        self.shared.address(replica)
    }

    /// Raft messages sent, and the requests in them.
    pub fn sent(&self) -> (u64, u64) {
        (self.shared.batches.load(Ordering::Relaxed), self.shared.items.load(Ordering::Relaxed))
    }

    /// The link to `target`; the first use spawns its task.
    fn link(&self, target: ReplicaId) -> Link {
        lock(&self.links)
            .entry(target)
            .or_insert_with(|| {
                let (queue, waiting) = mpsc::channel(QUEUE);
                let connection = Connection { target, shared: self.shared.clone(), queue: waiting };
                super::spawn(connection.run());
                Link { queue, budget: Arc::new(Semaphore::new(BUDGET_KIB as usize)) }
            })
            .clone()
    }

    /// For each of `shards` that the node at `to` leads: the index that a linearizable read must wait for.
    ///
    /// # Errors
    /// Not reached, or refused.
    pub async fn read_index(
        &self,
        to: &str,
        shards: &[ShardId],
        deadline: Duration,
    ) -> Result<Vec<Position>, PeerError> {
        let request = wire::ReadIndexRequest {
            format: WIRE_FORMAT,
            cluster_id: self.shared.cluster_bytes(),
            shards: shards.iter().map(|shard| shard.0).collect(),
            deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
        };
        let mut client = client(self.control(to));
        let reply = timeout(deadline, client.read_index(request)).await;
        let reply = self.settle(to, deadline, reply)?;
        Ok(reply.positions.into_iter().map(Position::from).collect())
    }

    /// Introduces this node to the one at `to`.
    ///
    /// # Errors
    /// Not reached, or refused.
    pub async fn hello(
        &self,
        to: &str,
        request: wire::HelloRequest,
        deadline: Duration,
    ) -> Result<wire::HelloReply, PeerError> {
        let mut client = client(self.control(to));
        let reply = timeout(deadline, client.hello(request)).await;
        self.settle(to, deadline, reply)
    }

    /// Fetches the segment file with this hash of `shard` from the node at `from`, into the file `into`: complete and
    /// synced, but with whatever bytes the peer sent; the caller checks the hash. What was at `into` is removed, also on
    /// an error.
    ///
    /// # Errors
    /// Not reached, refused ([`Code::NotFound`] where it does not have it), or `into` cannot be written.
    pub async fn pull_segment(
        &self,
        from: &str,
        shard: ShardId,
        hash: [u8; 32],
        into: PathBuf,
        deadline: Duration,
    ) -> Result<(), PeerError> {
        let late = || PeerError::Deadline { peer: from.to_owned(), after: deadline };
        timeout(deadline, self.pull(from, shard, hash, into)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn pull(&self, from: &str, shard: ShardId, hash: [u8; 32], into: PathBuf) -> Result<(), PeerError> {
        let failed = |status: Status| PeerError::of(from, &status);
        let file = |source| PeerError::File { path: into.clone(), source };
        let request = wire::PullSegmentRequest {
            format: WIRE_FORMAT,
            cluster_id: self.shared.cluster_bytes(),
            shard: shard.0,
            hash: Bytes::copy_from_slice(&hash),
            offset: 0,
        };
        let stalled = || PeerError::Deadline { peer: from.to_owned(), after: STALL };
        let mut client = client((self.shared.dial)(from));
        let mut chunks = client.pull_segment(request).await.map_err(failed)?.into_inner();
        let mut incoming: Option<Incoming> = None;
        while let Some(chunk) = timeout(STALL, chunks.message()).await.map_err(|_| stalled())?.map_err(failed)? {
            let incoming = match &mut incoming {
                Some(incoming) => incoming,
                none => {
                    let (medium, compute) = (self.shared.medium.clone(), self.shared.compute.clone());
                    none.insert(Incoming::create(medium, compute, into.clone(), chunk.length).await.map_err(file)?)
                }
            };
            incoming.append(chunk.data).await.map_err(file)?;
        }
        match incoming {
            Some(incoming) => {
                incoming.finish().await.map_err(file)?.keep();
                Ok(())
            }
            None => Err(failed(Status::unavailable("the stream ended before the file began"))),
        }
    }

    /// Sends the segment file to the node at `to`; returns once that has it durably.
    ///
    /// # Errors
    /// Not reached, refused, or `file` cannot be read.
    pub async fn push_segment(
        &self,
        to: &str,
        shard: ShardId,
        segment: u64,
        hash: [u8; 32],
        file: PathBuf,
        deadline: Duration,
    ) -> Result<(), PeerError> {
        let (medium, path) = (self.shared.medium.clone(), file.clone());
        let length = self.shared.compute.io(move || medium.len(&path)).await;
        let length = length.map_err(|source| PeerError::File { path: file.clone(), source })?;
        let header = wire::PushSegmentChunk {
            format: WIRE_FORMAT,
            cluster_id: self.shared.cluster_bytes(),
            shard: shard.0,
            hash: Bytes::copy_from_slice(&hash),
            length,
            data: Bytes::new(),
            segment,
        };
        let (pieces, progress) = outgoing(&self.shared, &file, length);
        let mut header = Some(header);
        let chunks = pieces.map(move |data| wire::PushSegmentChunk { data, ..header.take().unwrap_or_default() });
        let mut client = client((self.shared.dial)(to));
        let reply = tokio::select! {
            biased;
            reply = timeout(deadline, client.push_segment(chunks)) => reply,
            () = progress.stalled() => return Err(PeerError::Deadline { peer: to.to_owned(), after: STALL }),
        };
        if let Some(source) = progress.error() {
            return Err(PeerError::File { path: file, source });
        }
        let reply = match reply {
            Err(_) => return Err(PeerError::Deadline { peer: to.to_owned(), after: deadline }),
            Ok(Err(status)) => return Err(PeerError::of(to, &status)),
            Ok(Ok(reply)) => reply.into_inner(),
        };
        if reply.durable {
            return Ok(());
        }
        Err(PeerError::Refused { peer: to.to_owned(), code: Code::Aborted, reason: reply.error })
    }

    fn control(&self, to: &str) -> Channel {
        lock(&self.control).entry(to.to_owned()).or_insert_with(|| (self.shared.dial)(to)).clone()
    }

    /// A connection that failed is not used again: it may be one that a firewall swallows.
    fn settle<T>(
        &self,
        to: &str,
        after: Duration,
        reply: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, PeerError> {
        let error = match reply {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => PeerError::of(to, &status),
            Err(_) => PeerError::Deadline { peer: to.to_owned(), after },
        };
        if !matches!(error, PeerError::Refused { .. }) {
            lock(&self.control).remove(to);
        }
        Err(error)
    }
}

/// Introduces a node that is in no cluster yet, and so has no [`Peers`], to the one at `to`.
///
/// # Errors
/// Not reached, or refused.
pub async fn hello(
    dial: &Dial,
    to: &str,
    request: wire::HelloRequest,
    deadline: Duration,
) -> Result<wire::HelloReply, PeerError> {
    match timeout(deadline, client(dial(to)).hello(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(PeerError::of(to, &status)),
        Err(_) => Err(PeerError::Deadline { peer: to.to_owned(), after: deadline }),
    }
}

/// How far a file that is being sent has come.
struct Progress {
    length: u64,
    sent: AtomicU64,
    error: Mutex<Option<io::Error>>,
}

impl Progress {
    /// Returns when nothing was sent for a while although there is more.
    async fn stalled(&self) {
        let mut before = self.sent.load(Ordering::Relaxed);
        loop {
            sleep(STALL).await;
            let now = self.sent.load(Ordering::Relaxed);
            if now == before && now < self.length {
                return;
            }
            before = now;
        }
    }

    /// What the medium said when the file could not be read.
    fn error(&self) -> Option<io::Error> {
        lock(&self.error).take()
    }
}

/// A file in pieces; at least one, which may be empty. Where it cannot be read the pieces end early, and the receiver
/// misses bytes.
fn outgoing(shared: &Shared, path: &Path, length: u64) -> (impl Stream<Item = Bytes> + Send + 'static, Arc<Progress>) {
    let progress = Arc::new(Progress { length, sent: AtomicU64::new(0), error: Mutex::default() });
    let (medium, compute) = (shared.medium.clone(), shared.compute.clone());
    let start = (progress.clone(), medium, compute, path.to_owned(), None);
    let pieces = futures::stream::unfold(start, |(progress, medium, compute, path, offset)| async move {
        let at = offset.unwrap_or(0);
        if offset.is_some() && at >= progress.length {
            return None;
        }
        match files::piece(&medium, &compute, &path, at, progress.length).await {
            Ok(piece) => {
                let end = at + piece.len() as u64;
                progress.sent.store(end, Ordering::Relaxed);
                Some((piece, (progress, medium, compute, path, Some(end))))
            }
            Err(error) => {
                *lock(&progress.error) = Some(error);
                None
            }
        }
    });
    (pieces, progress)
}

/// Makes one group's networks.
#[derive(Clone)]
pub struct GroupNetworkFactory {
    peers: Peers,
    group: ShardId,
}

impl RaftNetworkFactory<TypeConfig> for GroupNetworkFactory {
    type Network = GroupNetwork;

    async fn new_client(&mut self, target: ReplicaId, node: &BasicNode) -> GroupNetwork {
        lock(&self.peers.shared.addresses).entry(target).or_default().member = Some(node.addr.clone());
        let caller = Caller { group: self.group, link: self.peers.link(target) };
        GroupNetwork { shared: self.peers.shared.clone(), target, caller }
    }
}

/// One group's way to one of its replicas.
pub struct GroupNetwork {
    shared: Arc<Shared>,
    target: ReplicaId,
    caller: Caller,
}

/// Puts requests of one group into the queue to one peer.
#[derive(Clone)]
struct Caller {
    group: ShardId,
    link: Link,
}

#[derive(Clone)]
struct Link {
    queue: mpsc::Sender<Outgoing>,
    budget: Arc<Semaphore>,
}

/// A request on its way.
struct Outgoing {
    group: ShardId,
    kind: Kind,
    payload: Bytes,
    /// Carries no entries; may wait for company.
    heartbeat: bool,
    reply: oneshot::Sender<Result<Bytes, CallError>>,
}

impl Outgoing {
    fn fail(self, error: CallError) {
        // Nobody listens any more: fine.
        let _ = self.reply.send(Err(error));
    }
}

/// A request that was queued. The bytes it takes of the budget come back with the answer, or when the caller gives up.
struct Call {
    answer: oneshot::Receiver<Result<Bytes, CallError>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Call {
    async fn answer<T: Wire>(self, within: Duration) -> Result<T, CallError> {
        match timeout(within, self.answer).await {
            Err(_) => Err(CallError::Timeout(within)),
            Ok(Err(_)) => Err(CallError::Broken("the connection was closed".to_owned())),
            Ok(Ok(answer)) => codec::decode(answer?).map_err(|error| CallError::Unreachable(error.to_string())),
        }
    }
}

impl Caller {
    async fn begin<T: Wire>(&self, kind: Kind, request: &T, heartbeat: bool) -> Result<(Call, usize), CallError> {
        let payload = codec::encode(request);
        let bytes = payload.len();
        if bytes > ITEM_BYTES {
            return Err(CallError::Unreachable(format!("a request of {bytes} bytes cannot be sent, {ITEM_BYTES} can")));
        }
        let permit = if kind == Kind::Append && !heartbeat {
            let units = u32::try_from(bytes.div_ceil(1024)).unwrap_or(BUDGET_KIB).min(BUDGET_KIB);
            // The semaphore is never closed.
            self.link.budget.clone().acquire_many_owned(units).await.ok()
        } else {
            None
        };
        let (reply, answer) = oneshot::channel();
        let outgoing = Outgoing { group: self.group, kind, payload, heartbeat, reply };
        match self.link.queue.send(outgoing).await {
            Ok(()) => Ok((Call { answer, _permit: permit }, bytes)),
            Err(_) => Err(CallError::Unreachable("this node is stopping".to_owned())),
        }
    }

    async fn call<Q: Wire, A: Wire>(&self, kind: Kind, request: &Q, within: Duration) -> Result<A, CallError> {
        let call = async { self.begin(kind, request, false).await?.0.answer(within).await };
        timeout(within, call).await.unwrap_or(Err(CallError::Timeout(within)))
    }

    /// Sends an append; the returned future waits for its answer.
    async fn begin_append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
        ttl: Duration,
    ) -> impl Future<Output = Result<AppendEntriesResponse<TypeConfig>, CallError>> + Send + use<> {
        let begun = self.begin(Kind::Append, &request, request.entries.is_empty()).await;
        let first = request.prev_log_id.is_none();
        async move {
            let (call, bytes) = begun?;
            // An append waits for the follower's disk, and one without entries may wait behind one with. Raft gives up on
            // its own heartbeats after the interval, whatever is waited for here.
            match call.answer(ttl.max(patience(bytes))).await? {
                // Nothing comes before a log's first entry that could differ. Raft would take it for a bug, and panic.
                AppendEntriesResponse::Conflict if first => {
                    Err(CallError::Broken("answers a conflict to an append at the beginning of the log".to_owned()))
                }
                answer => Ok(answer),
            }
        }
    }
}

/// What an append was answered, as Raft's stream wants it, and whether the stream goes on behind it.
fn stream_result(
    answer: AppendEntriesResponse<TypeConfig>,
    prev: Option<LogId>,
    last: Option<LogId>,
) -> (StreamAppendResult<TypeConfig>, bool) {
    let complete = match &answer {
        AppendEntriesResponse::Success => true,
        AppendEntriesResponse::PartialSuccess(matching) => *matching == last,
        AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => false,
    };
    (answer.into_stream_result(prev, last), complete)
}

impl GroupNetwork {
    fn rpc_error(&self, action: RPCTypes, error: CallError) -> RPCError<TypeConfig> {
        error.into_rpc(action, self.shared.me, self.target)
    }
}

impl RaftNetworkV2<TypeConfig> for GroupNetwork {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = self.caller.begin_append(rpc, option.hard_ttl()).await.await;
        answer.map_err(|error| self.rpc_error(RPCTypes::AppendEntries, error))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let (caller, ttl) = (self.caller.clone(), option.hard_ttl());
        let (me, target) = (self.shared.me, self.target);
        // `then` queues one after the other, `buffered` waits for several and keeps their order.
        let begun = input.then(move |request| {
            let caller = caller.clone();
            async move {
                let prev = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id).or(prev);
                (caller.begin_append(request, ttl).await, prev, last)
            }
        });
        let answers = begun.map(move |(answer, prev, last)| async move {
            match answer.await {
                Ok(answer) => {
                    let (result, complete) = stream_result(answer, prev, last);
                    (Ok(result), complete)
                }
                Err(error) => (Err(error.into_rpc(RPCTypes::AppendEntries, me, target)), false),
            }
        });
        let answers = answers.buffered(PIPELINE).boxed();
        let until_incomplete = futures::stream::unfold(Some(answers), |answers| async move {
            let mut answers = answers?;
            let (result, complete) = answers.next().await?;
            Some((result, complete.then_some(answers)))
        });
        Box::pin(async move { Ok(until_incomplete.boxed()) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = self.caller.call(Kind::Vote, &rpc, option.soft_ttl()).await;
        answer.map_err(|error| self.rpc_error(RPCTypes::Vote, error))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = self.caller.call(Kind::PreVote, &rpc, option.soft_ttl()).await;
        answer.map_err(|error| self.rpc_error(RPCTypes::Vote, error))
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = self.caller.call(Kind::TransferLeader, &rpc, option.soft_ttl()).await;
        answer.map_err(|error| self.rpc_error(RPCTypes::TransferLeader, error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // A snapshot is expensive: whatever goes wrong, the next attempt waits.
        let failed =
            |reason: String| StreamingError::from(Unreachable::from_string(format!("{}: {reason}", self.target)));
        let openraft::Snapshot { meta, snapshot } = snapshot;
        let Some(address) = self.shared.address(self.target) else {
            return Err(failed("no address is known for it".to_owned()));
        };
        let header = wire::SnapshotChunk {
            format: WIRE_FORMAT,
            cluster_id: self.shared.cluster_bytes(),
            group: self.caller.group.0,
            vote: codec::encode(&vote),
            meta: codec::encode(&(meta.last_log_id, meta.last_membership)),
            length: snapshot.len,
            to_incarnation: self.target.incarnation.0,
            data: Bytes::new(),
            from_node: self.shared.me.node.0,
        };
        let (pieces, progress) = outgoing(&self.shared, &snapshot.path, snapshot.len);
        let mut header = Some(header);
        let chunks = pieces.map(move |data| wire::SnapshotChunk { data, ..header.take().unwrap_or_default() });
        let mut client = client((self.shared.dial)(&address));
        let within = option.soft_ttl();
        let reply = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            reply = timeout(within, client.install_snapshot(chunks)) => reply,
            () = progress.stalled() => return Err(failed(format!("took nothing of a snapshot for {STALL:?}"))),
        };
        if let Some(error) = progress.error() {
            return Err(failed(format!("{} cannot be read: {error}", snapshot.path.display())));
        }
        let reply = match reply {
            Err(_) => return Err(failed(format!("did not install a snapshot within {within:?}"))),
            Ok(Err(status)) => return Err(failed(status.message().to_owned())),
            Ok(Ok(reply)) => reply.into_inner(),
        };
        if !reply.error.is_empty() {
            return Err(failed(reply.error));
        }
        codec::decode(reply.vote).map_err(|error| failed(error.to_string()))
    }

    fn backoff(&self) -> Option<Backoff> {
        // A peer that restarts is back within one election timeout, a dead one costs five attempts a second.
        Some(Backoff::new(std::iter::repeat(self.shared.heartbeat * 2)))
    }
}

/// The task behind a [`Link`]: dials when there is something to say, and again when that breaks.
struct Connection {
    target: ReplicaId,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Outgoing>,
}

/// A stream that is up.
struct Established {
    out: mpsc::Sender<wire::RaftBatch>,
    answers: Streaming<wire::RaftBatch>,
    /// Keeps the connection up.
    _client: NodePeerClient<Channel>,
}

/// A request that waits for its answer.
struct Pending {
    kind: Kind,
    bytes: usize,
    reply: oneshot::Sender<Result<Bytes, CallError>>,
}

/// What is gathered for the next message.
#[derive(Default)]
struct Gathered {
    items: Vec<Outgoing>,
    bytes: usize,
    /// When it is to be sent; `None` while there is nothing.
    at: Option<Instant>,
}

impl Gathered {
    fn push(&mut self, item: Outgoing) {
        if item.reply.is_closed() {
            return;
        }
        let at = Instant::now() + if item.heartbeat { HEARTBEAT_HOLD } else { Duration::ZERO };
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
        self.bytes += item.payload.len();
        self.items.push(item);
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }
}

impl Connection {
    async fn run(mut self) {
        let mut down: Option<(Instant, CallError)> = None;
        while let Some(first) = self.queue.recv().await {
            // All groups of this node ask at once; one attempt to connect answers them all.
            if let Some((until, error)) = &down
                && Instant::now() < *until
            {
                first.fail(error.clone());
                continue;
            }
            let error = match self.dial().await {
                Ok(stream) => match self.serve(stream, first).await {
                    Some(error) => error,
                    None => return,
                },
                Err(error) => {
                    first.fail(error.clone());
                    while let Ok(item) = self.queue.try_recv() {
                        item.fail(error.clone());
                    }
                    error
                }
            };
            tracing::debug!(peer = %self.target, ?error, "the stream to a peer is down");
            let wait = matches!(error, CallError::Unreachable(_));
            down = wait.then(|| (Instant::now() + self.shared.heartbeat, error));
        }
    }

    async fn dial(&self) -> Result<Established, CallError> {
        let Some(address) = self.shared.address(self.target) else {
            return Err(CallError::Unreachable("no address is known for it".to_owned()));
        };
        let mut client = client((self.shared.dial)(&address));
        // One message waits while another is being written; meanwhile the next one gathers.
        let (out, batches) = mpsc::channel(1);
        match timeout(CONNECT, client.raft(ReceiverStream::new(batches))).await {
            Ok(Ok(answers)) => Ok(Established { out, answers: answers.into_inner(), _client: client }),
            Ok(Err(status)) => Err(CallError::Unreachable(format!("at {address}: {}", status.message()))),
            Err(_) => Err(CallError::Unreachable(format!("at {address}: no connection within {CONNECT:?}"))),
        }
    }

    /// Sends and receives until the stream breaks; `None` once nobody can ask any more.
    async fn serve(&mut self, mut stream: Established, first: Outgoing) -> Option<CallError> {
        let mut pending: BTreeMap<u64, Pending> = BTreeMap::new();
        let mut owed = 0;
        let mut next_call = 0;
        let mut quiet_since = Instant::now();
        let mut gathered = Gathered::default();
        gathered.push(first);
        let error = loop {
            let now = Instant::now();
            let at = gathered.at.unwrap_or(now);
            let due = gathered.at.is_some() && (gathered.is_full() || at <= now);
            tokio::select! {
                biased;
                answers = stream.answers.message() => match answers {
                    Ok(Some(batch)) => {
                        quiet_since = Instant::now();
                        if let Err(error) = self.settle(batch, &mut pending, &mut owed) {
                            break error;
                        }
                    }
                    Ok(None) => break CallError::Broken("closed the stream".to_owned()),
                    Err(status) => break CallError::of(&status),
                },
                room = stream.out.reserve(), if due => {
                    let Ok(room) = room else { break CallError::Broken("the stream was closed".to_owned()) };
                    if pending.is_empty() {
                        quiet_since = Instant::now();
                    }
                    let Gathered { items, bytes, .. } = std::mem::take(&mut gathered);
                    owed += bytes;
                    room.send(self.batch(items, &mut next_call, &mut pending));
                }
                () = sleep_until(at), if gathered.at.is_some() && !due => {}
                item = self.queue.recv(), if !gathered.is_full() => {
                    gathered.push(item?);
                    while !gathered.is_full() && let Ok(item) = self.queue.try_recv() {
                        gathered.push(item);
                    }
                }
                () = sleep_until(quiet_since + patience(owed)), if !pending.is_empty() => {
                    break CallError::Broken("is silent".to_owned());
                }
            }
        };
        for pending in pending.into_values() {
            let _ = pending.reply.send(Err(error.clone()));
        }
        for item in gathered.items {
            item.fail(error.clone());
        }
        Some(error)
    }

    fn batch(
        &self,
        items: Vec<Outgoing>,
        next_call: &mut u64,
        pending: &mut BTreeMap<u64, Pending>,
    ) -> wire::RaftBatch {
        self.shared.batches.fetch_add(1, Ordering::Relaxed);
        self.shared.items.fetch_add(items.len() as u64, Ordering::Relaxed);
        let items = items.into_iter().map(|item| {
            let Outgoing { group, kind, payload, reply, .. } = item;
            *next_call += 1;
            pending.insert(*next_call, Pending { kind, bytes: payload.len(), reply });
            wire::RaftItem { call: *next_call, group: group.0, kind: kind.into(), answer: false, payload }
        });
        let items = items.collect();
        wire::RaftBatch {
            format: WIRE_FORMAT,
            cluster_id: self.shared.cluster_bytes(),
            from_node: self.shared.me.node.0,
            from_incarnation: self.shared.me.incarnation.0,
            to_node: self.target.node.0,
            to_incarnation: self.target.incarnation.0,
            items,
        }
    }

    /// Hands answers to whoever waits for them.
    fn settle(
        &self,
        batch: wire::RaftBatch,
        pending: &mut BTreeMap<u64, Pending>,
        owed: &mut usize,
    ) -> Result<(), CallError> {
        convert::check_format(batch.format).map_err(|error| CallError::Unreachable(error.to_string()))?;
        if (batch.from_node, batch.from_incarnation) != (self.target.node.0, self.target.incarnation.0) {
            return Err(CallError::Unreachable(format!(
                "node {} in another life, or another node, answers there",
                batch.from_node
            )));
        }
        for item in batch.items {
            let Some(Pending { kind, bytes, reply }) = pending.remove(&item.call) else { continue };
            *owed -= bytes;
            let answer = match item.kind() {
                Kind::Error => {
                    let reason = codec::decode(item.payload).unwrap_or_else(|_| "refuses, without a reason".to_owned());
                    Err(CallError::Unreachable(reason))
                }
                answered if answered == kind => Ok(item.payload),
                answered => Err(CallError::Unreachable(format!("answers {answered:?} to {kind:?}"))),
            };
            let _ = reply.send(answer);
        }
        Ok(())
    }
}
