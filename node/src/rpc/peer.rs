//! The service that other nodes call: their Raft messages, snapshots and segment files, and who this node is.
//!
//! The other end of [`crate::raft::peers`]. Every message names the cluster, and Raft's name the life of this node that
//! they are for: what was meant for another is refused before any group sees it, so that a replica which lost its log
//! can never answer for the one it was. A sender is refused only if its life is known to be over.
//!
//! Requests of one stream are handed to their groups in order, and answered in whatever order they finish. A stream whose
//! sender has too much unanswered is not read until that is less. Files are received under temporary names into
//! [`Host::incoming_dir`], made durable, and then handed on; what is in them is checked by whoever takes them.
//!
//! tonic runs handlers on tasks of its own, outside the node's [`scope`](crate::raft::scope). So handlers do nothing but
//! pass their work to a task inside it.
use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nearring_proto::ids::{ClusterId, Incarnation, NodeId, ReplicaId, ShardId};
use nearring_proto::position::Position;
use nearring_proto::wire::node_peer_server::{NodePeer, NodePeerServer};
use nearring_proto::wire::raft_item::Kind;
use nearring_proto::{WIRE_FORMAT, convert, wire};
use openraft::raft::AppendEntriesRequest;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::compute::Compute;
use crate::medium::Medium;
use crate::raft::codec::{self, Wire};
use crate::raft::files::{self, Incoming, RemoveOnDrop};
use crate::raft::group::{Group, SnapshotFile, SnapshotMeta};
use crate::raft::peers::{BATCH_BYTES, MESSAGE_BYTES};
use crate::raft::{LogId, StoredMembership, TypeConfig, Vote};

/// Bytes of requests of one stream that are not answered yet; beyond it the stream is not read.
const UNANSWERED_BYTES: usize = 64 << 20;
/// What any request counts at least.
const ITEM_COST: usize = 1 << 10;
/// How long a sender of a file may be silent.
const STALL: Duration = Duration::from_secs(60);

/// What the node does for its peers.
#[tonic::async_trait]
pub trait Host: Send + Sync + 'static {
    /// This node, in this life.
    fn me(&self) -> ReplicaId;
    /// Its cluster, once it has one.
    fn cluster(&self) -> Option<ClusterId>;
    /// A group that has a replica here.
    fn group(&self, group: ShardId) -> Option<Arc<dyn Group>>;
    /// Whether there is room for entries. Below the disk reserve they are refused before Raft sees them.
    fn admits_appends(&self) -> bool;
    /// Whether this is a life of some node that has been seen replaced.
    fn is_replaced(&self, peer: ReplicaId) -> bool;
    /// `host:port` of a replica's node, where the placement table knows it.
    fn address(&self, peer: ReplicaId) -> Option<String> {
        let _ = peer;
        None
    }
    /// Where files are received, under temporary names. The node may empty it before it starts to listen.
    fn incoming_dir(&self) -> PathBuf;
    /// A node introduces itself.
    async fn hello(&self, request: wire::HelloRequest) -> Result<wire::HelloReply, Status>;
    /// For each of `shards` that is led here: the index that a linearizable read must wait for.
    async fn read_index(&self, shards: Vec<ShardId>, deadline: Duration) -> Vec<Position>;
    /// The segment file with this hash, where it is here, complete.
    async fn segment_file(&self, shard: ShardId, hash: [u8; 32]) -> Option<SnapshotFile>;
    /// Takes a segment file: complete and synced, but not checked. It is removed afterwards unless it was renamed.
    ///
    /// # Errors
    /// Why it cannot be used.
    async fn accept_segment(&self, shard: ShardId, segment: u64, hash: [u8; 32], file: PathBuf) -> Result<(), String>;
}

/// The service.
pub struct PeerService<H: Host> {
    inner: Arc<Inner<H>>,
    inside: mpsc::Sender<BoxFuture<'static, ()>>,
}

struct Inner<H> {
    host: Arc<H>,
    medium: Arc<dyn Medium>,
    compute: Compute,
    stop: CancellationToken,
    files: AtomicU64,
}

impl<H: Host> PeerService<H> {
    /// The service for `host`. When `stop` is cancelled all streams end, without which a server that waits for its
    /// connections would never stop. It still may: a connection whose other end vanished without a word stays open until
    /// the server's HTTP/2 keepalive notices, so bound that wait. Spawns a task that ends with the service.
    ///
    /// # Panics
    /// Outside a [`scope`](crate::raft::scope).
    pub fn new(host: Arc<H>, medium: Arc<dyn Medium>, compute: Compute, stop: CancellationToken) -> Self {
        let (inside, mut work) = mpsc::channel(64);
        crate::raft::spawn(async move {
            while let Some(future) = work.recv().await {
                crate::raft::spawn(future);
            }
        });
        let inner = Inner { host, medium, compute, stop, files: AtomicU64::new(0) };
        Self { inner: Arc::new(inner), inside }
    }

    /// As tonic serves it.
    pub fn into_server(self) -> NodePeerServer<Self> {
        NodePeerServer::new(self).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
    }

    /// Runs `future` on a task of the node. It ends when the node stops.
    async fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> Result<(), Status> {
        let stop = self.inner.stop.clone();
        let future = async move {
            tokio::select! {
                biased;
                () = stop.cancelled_owned() => {}
                () = future => {}
            }
        };
        self.inside.send(Box::pin(future)).await.map_err(|_| stopping())
    }

    /// The same, and waits for what it says.
    async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let (done, result) = oneshot::channel();
        self.spawn(async move {
            // A caller that went away does not wait.
            let _ = done.send(future.await);
        })
        .await?;
        result.await.map_err(|_| stopping())?.map(Response::new)
    }
}

fn stopping() -> Status {
    Status::unavailable("this node is stopping")
}

fn refused(reason: impl ToString) -> Status {
    Status::failed_precondition(reason.to_string())
}

fn hash(bytes: &[u8]) -> Result<[u8; 32], Status> {
    bytes.try_into().map_err(|_| Status::invalid_argument(format!("hash: has {} bytes, must have 32", bytes.len())))
}

impl<H: Host> Inner<H> {
    fn check(&self, format: u32, cluster: &[u8]) -> Result<(), Status> {
        convert::check_format(format).map_err(refused)?;
        let Some(ours) = self.host.cluster() else {
            return Err(refused("this node is in no cluster yet"));
        };
        if cluster != ours.0.as_bytes() {
            return Err(refused(format!("this node belongs to cluster {ours}, the message to another")));
        }
        Ok(())
    }

    fn check_batch(&self, batch: &wire::RaftBatch) -> Result<ReplicaId, Status> {
        self.check(batch.format, &batch.cluster_id)?;
        let (me, to) = (self.host.me(), replica(batch.to_node, batch.to_incarnation));
        if to != me {
            return Err(refused(format!("this is {me}, the message is for {to}")));
        }
        let from = replica(batch.from_node, batch.from_incarnation);
        if self.host.is_replaced(from) {
            return Err(refused(format!("{from} has been replaced by a later life of that node")));
        }
        Ok(from)
    }

    /// A name under which nothing is received yet.
    fn incoming(&self, what: &str) -> PathBuf {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        self.host.incoming_dir().join(format!("{what}-{number}.tmp"))
    }

    /// Receives the rest of a file whose first piece is here.
    async fn receive<C>(
        &self,
        what: &str,
        length: u64,
        first: Bytes,
        chunks: &mut Streaming<C>,
        data: impl Fn(C) -> Bytes,
    ) -> Result<RemoveOnDrop, Status> {
        let failed = |error: std::io::Error| Status::aborted(format!("the file was not received: {error}"));
        let path = self.incoming(what);
        let file = Incoming::create(self.medium.clone(), self.compute.clone(), path, length).await;
        let mut file = file.map_err(failed)?;
        file.append(first).await.map_err(failed)?;
        while let Some(chunk) = next(chunks).await? {
            file.append(data(chunk)).await.map_err(failed)?;
        }
        file.finish().await.map_err(failed)
    }

    async fn install_snapshot(
        &self,
        mut chunks: Streaming<wire::SnapshotChunk>,
    ) -> Result<wire::SnapshotReply, Status> {
        let Some(first) = next(&mut chunks).await? else {
            return Err(Status::invalid_argument("a snapshot without a first piece"));
        };
        self.check(first.format, &first.cluster_id)?;
        let me = self.host.me();
        if first.to_incarnation != me.incarnation.0 {
            return Err(refused(format!("this is {me}, the snapshot is for another life")));
        }
        let malformed = |error: codec::DecodeError| Status::invalid_argument(error.to_string());
        let vote: Vote = codec::decode(first.vote).map_err(malformed)?;
        let (last_log_id, last_membership): (Option<LogId>, StoredMembership) =
            codec::decode(first.meta).map_err(malformed)?;
        let sender = vote.leader_id.voted_for;
        if self.host.is_replaced(sender) {
            return Err(refused(format!("{sender} has been replaced by a later life of that node")));
        }
        let group = ShardId(first.group);
        let no_group = || refused(format!("this node has no replica of {group}"));
        if self.host.group(group).is_none() {
            return Err(no_group());
        }
        let what = format!("snapshot-{}-{}", group.0, first.from_node);
        let file = self.receive(&what, first.length, first.data, &mut chunks, |chunk| chunk.data).await?;
        let member = || last_membership.membership().get_node(&sender).map(|node| node.addr.clone());
        let snapshot = SnapshotFile {
            path: file.path().to_owned(),
            len: first.length,
            source: self.host.address(sender).or_else(member),
            guard: Some(Arc::new(file)),
        };
        let meta = SnapshotMeta { last_log_id, last_membership };
        // It may have been closed in the meantime.
        let replica = self.host.group(group).ok_or_else(no_group)?;
        Ok(match replica.install_snapshot(vote, meta, snapshot).await {
            Ok(answer) => wire::SnapshotReply { vote: codec::encode(&answer), error: String::new() },
            Err(error) => wire::SnapshotReply { vote: Bytes::new(), error },
        })
    }

    async fn push_segment(
        &self,
        mut chunks: Streaming<wire::PushSegmentChunk>,
    ) -> Result<wire::PushSegmentReply, Status> {
        let Some(first) = next(&mut chunks).await? else {
            return Err(Status::invalid_argument("a segment without a first piece"));
        };
        self.check(first.format, &first.cluster_id)?;
        let (shard, hash) = (ShardId(first.shard), hash(&first.hash)?);
        let what = format!("segment-{}", shard.0);
        let file = self.receive(&what, first.length, first.data, &mut chunks, |chunk| chunk.data).await?;
        let accepted = self.host.accept_segment(shard, first.segment, hash, file.path().to_owned()).await;
        Ok(wire::PushSegmentReply { durable: accepted.is_ok(), error: accepted.err().unwrap_or_default() })
    }

    async fn pull_segment(
        &self,
        request: wire::PullSegmentRequest,
        out: &mpsc::Sender<Result<wire::FileChunk, Status>>,
    ) {
        let result = self.send_segment(request, out).await;
        if let Err(status) = result {
            let _ = out.send(Err(status)).await;
        }
    }

    async fn send_segment(
        &self,
        request: wire::PullSegmentRequest,
        out: &mpsc::Sender<Result<wire::FileChunk, Status>>,
    ) -> Result<(), Status> {
        self.check(request.format, &request.cluster_id)?;
        let (shard, hash) = (ShardId(request.shard), hash(&request.hash)?);
        let Some(file) = self.host.segment_file(shard, hash).await else {
            return Err(Status::not_found(format!("this node has no such segment of {shard}")));
        };
        let mut offset = request.offset;
        loop {
            let piece = files::piece(&self.medium, &self.compute, &file.path, offset, file.len).await;
            let data = piece.map_err(|error| Status::aborted(format!("{}: {error}", file.path.display())))?;
            offset += data.len() as u64;
            let end = offset >= file.len;
            let sent = timeout(STALL, out.send(Ok(wire::FileChunk { length: file.len, data }))).await;
            if end || !matches!(sent, Ok(Ok(()))) {
                return Ok(());
            }
        }
    }
}

fn replica(node: u64, incarnation: u64) -> ReplicaId {
    ReplicaId { node: NodeId(node), incarnation: Incarnation(incarnation) }
}

async fn next<C>(chunks: &mut Streaming<C>) -> Result<Option<C>, Status> {
    timeout(STALL, chunks.message()).await.map_err(|_| Status::aborted("the sender is silent"))?
}

/// Answers one stream of requests until it ends.
async fn serve_stream<H: Host>(
    inner: Arc<Inner<H>>,
    mut requests: Streaming<wire::RaftBatch>,
    out: mpsc::Sender<Result<wire::RaftBatch, Status>>,
) {
    let mut running = FuturesUnordered::new();
    let mut ready: VecDeque<(wire::RaftItem, usize)> = VecDeque::new();
    let mut sender = None;
    let mut unanswered = 0;
    loop {
        tokio::select! {
            biased;
            Some(answer) = running.next(), if !running.is_empty() => ready.push_back(answer),
            room = out.reserve(), if !ready.is_empty() => {
                let Ok(room) = room else { return };
                let (mut items, mut bytes) = (Vec::new(), 0);
                while bytes < BATCH_BYTES && let Some((item, cost)) = ready.pop_front() {
                    bytes += item.payload.len();
                    unanswered -= cost;
                    items.push(item);
                }
                room.send(Ok(answers(&*inner.host, sender.unwrap_or_default(), items)));
            }
            request = requests.message(), if unanswered < UNANSWERED_BYTES => {
                let batch = match request {
                    Ok(Some(batch)) => batch,
                    Ok(None) | Err(_) => return,
                };
                match inner.check_batch(&batch) {
                    Ok(from) => sender = Some(from),
                    Err(status) => {
                        let _ = out.send(Err(status)).await;
                        return;
                    }
                }
                for item in batch.items {
                    let cost = item.payload.len().max(ITEM_COST);
                    unanswered += cost;
                    let host = inner.host.clone();
                    let mut answer = Box::pin(async move { (answer(&*host, item).await, cost) });
                    // Polled once now, so that the group gets its messages in order.
                    match futures::poll!(&mut answer) {
                        std::task::Poll::Ready(answer) => ready.push_back(answer),
                        std::task::Poll::Pending => running.push(answer),
                    }
                }
            }
        }
    }
}

fn answers<H: Host>(host: &H, to: ReplicaId, items: Vec<wire::RaftItem>) -> wire::RaftBatch {
    let me = host.me();
    wire::RaftBatch {
        format: WIRE_FORMAT,
        cluster_id: host.cluster().map(|cluster| Bytes::copy_from_slice(cluster.0.as_bytes())).unwrap_or_default(),
        from_node: me.node.0,
        from_incarnation: me.incarnation.0,
        to_node: to.node.0,
        to_incarnation: to.incarnation.0,
        items,
    }
}

async fn answer<H: Host>(host: &H, item: wire::RaftItem) -> wire::RaftItem {
    let (call, group, kind) = (item.call, item.group, item.kind());
    let (kind, payload) = match respond(host, ShardId(group), kind, item.payload).await {
        Ok(payload) => (kind, payload),
        Err(reason) => (Kind::Error, codec::encode(&reason)),
    };
    wire::RaftItem { call, group, kind: kind.into(), answer: true, payload }
}

fn read<T: Wire>(payload: Bytes) -> Result<T, String> {
    codec::decode(payload).map_err(|error| error.to_string())
}

async fn respond<H: Host>(host: &H, group: ShardId, kind: Kind, payload: Bytes) -> Result<Bytes, String> {
    let replica = host.group(group).ok_or_else(|| format!("this node has no replica of {group}"))?;
    match kind {
        Kind::Append => {
            let request: AppendEntriesRequest<TypeConfig> = read(payload)?;
            if !request.entries.is_empty() && !host.admits_appends() {
                return Err("the disk is full up to the reserve: free space or add a node".to_owned());
            }
            replica.append(request).await.map(|answer| codec::encode(&answer))
        }
        Kind::Vote => replica.vote(read(payload)?).await.map(|answer| codec::encode(&answer)),
        Kind::PreVote => replica.pre_vote(read(payload)?).await.map(|answer| codec::encode(&answer)),
        Kind::TransferLeader => replica.transfer_leader(read(payload)?).await.map(|answer| codec::encode(&answer)),
        Kind::Unknown | Kind::Error => Err("a kind of request that this version does not know; upgrade it".to_owned()),
    }
}

#[tonic::async_trait]
impl<H: Host> NodePeer for PeerService<H> {
    type RaftStream = ReceiverStream<Result<wire::RaftBatch, Status>>;
    type PullSegmentStream = ReceiverStream<Result<wire::FileChunk, Status>>;

    async fn raft(&self, request: Request<Streaming<wire::RaftBatch>>) -> Result<Response<Self::RaftStream>, Status> {
        let (out, answers) = mpsc::channel(1);
        self.spawn(serve_stream(self.inner.clone(), request.into_inner(), out)).await?;
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::SnapshotReply>, Status> {
        let inner = self.inner.clone();
        self.run(async move { inner.install_snapshot(request.into_inner()).await }).await
    }

    async fn pull_segment(
        &self,
        request: Request<wire::PullSegmentRequest>,
    ) -> Result<Response<Self::PullSegmentStream>, Status> {
        let (out, pieces) = mpsc::channel(2);
        let inner = self.inner.clone();
        self.spawn(async move { inner.pull_segment(request.into_inner(), &out).await }).await?;
        Ok(Response::new(ReceiverStream::new(pieces)))
    }

    async fn push_segment(
        &self,
        request: Request<Streaming<wire::PushSegmentChunk>>,
    ) -> Result<Response<wire::PushSegmentReply>, Status> {
        let inner = self.inner.clone();
        self.run(async move { inner.push_segment(request.into_inner()).await }).await
    }

    async fn hello(&self, request: Request<wire::HelloRequest>) -> Result<Response<wire::HelloReply>, Status> {
        let inner = self.inner.clone();
        self.run(async move {
            let request = request.into_inner();
            convert::check_format(request.format).map_err(refused)?;
            inner.host.hello(request).await
        })
        .await
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexReply>, Status> {
        let inner = self.inner.clone();
        self.run(async move {
            let request = request.into_inner();
            inner.check(request.format, &request.cluster_id)?;
            let shards = request.shards.into_iter().map(ShardId).collect();
            let deadline = Duration::from_millis(request.deadline_ms.into());
            let positions = inner.host.read_index(shards, deadline).await;
            Ok(wire::ReadIndexReply { positions: positions.into_iter().map(wire::Position::from).collect() })
        })
        .await
    }
}

#[cfg(test)]
mod tests;
