//! A node's handle on the meta group: the table as far as it is known here, and changes to it from anywhere.
//!
//! The problem: any node takes a change, but only the leader of the meta group can log it, and most nodes are not even
//! members. So a change travels: a member hands it to the leader that it knows, anybody else to one of the seeds, at most
//! [`HOPS_MAX`] times. **Rules:** what certainly did not happen is tried again until the deadline; what may have happened
//! is tried again only where repeating it changes nothing, and reported as [`MetaError::Unclear`] otherwise. Tables are
//! seen in the order of their epochs. A table is what this node knows, maybe less than the leader does; whoever needs a
//! decision proposes a change, and the table's rules are judged inside the log.
//!
//! Three tasks keep things as they should be: [`Meta::lead`] (members: the leader adapts the membership to the seeds'
//! current lives, every member takes snapshots and purges), [`Meta::follow`] (others: watch a member's table) and
//! [`Meta::keep_joined`] (everybody: the table's row about this node is true).
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nearring_proto::ids::{ClusterId, NodeId, ReplicaId};
use nearring_proto::placement::table::{Applied, Change, Node, Rejected, Table};
use nearring_proto::status::never_connected;
use nearring_proto::wire::node_data_client::NodeDataClient;
use nearring_proto::wire::{self, Dial};
use nearring_proto::{WIRE_FORMAT, collection::Collection};
use openraft::errors::{ClientWriteError, RaftError};
use openraft::rt::WatchReceiver as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::machine::{self, Machine};
use crate::raft::membership::{ConvergeError, Step, converge};
use crate::raft::{Membership, Proposal, Raft};
use crate::rpc::data::{REASON, refusal};
use crate::rpc::meta::{Reason, reason, rejection};

/// How often a change may be handed on. A member needs one, another node two, and a change of leaders one more.
pub const HOPS_MAX: u32 = 4;
/// Entries after which a member takes a snapshot of the table.
const SNAPSHOT_EVERY: u64 = 2048;
/// How often members look whether there is something to do.
const TICK: Duration = Duration::from_millis(250);
/// The pause before a change that did not happen is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// The pause before a table is watched elsewhere.
const WATCH_RETRY: Duration = Duration::from_millis(500);
/// How long one attempt to join may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
const MESSAGE_BYTES: usize = 64 << 20;

/// A change was not carried out, or nobody knows whether it was.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The table's rules refuse it. Nothing has changed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// It did not reach the leader in time. Nothing has changed.
    #[error("the meta group cannot be asked: {reason}. Nothing has changed; try again")]
    Unavailable {
        /// What was missing last.
        reason: String,
    },
    /// The answer did not come. It may have happened, now or yet.
    #[error("{reason}; the change may have been carried out or may yet be: look at the table before trying again")]
    Unclear {
        /// What went wrong.
        reason: String,
    },
    /// Another node refused the request for a reason of its own.
    #[error("refused: {0}")]
    Refused(Box<Status>),
}

/// A node's handle on the meta group. Cheap to clone.
#[derive(Clone)]
pub struct Meta {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    /// The other seeds, in order.
    seeds: Vec<(NodeId, String)>,
    all_seeds: Vec<NodeId>,
    dial: Dial,
    channels: Mutex<BTreeMap<String, Channel>>,
    table: watch::Sender<Arc<Table>>,
    cluster: OnceLock<ClusterId>,
    member: OnceLock<Raft<Machine>>,
    snapshot_wanted: AtomicBool,
    stop: CancellationToken,
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epoch = self.inner.table.borrow().epoch;
        f.debug_struct("Meta").field("me", &self.inner.me).field("epoch", &epoch).finish_non_exhaustive()
    }
}

/// How one attempt at a change ended short of an answer.
enum Failed {
    /// It did not happen.
    NotDone(String),
    /// It may have happened.
    Unclear(String),
    /// No further attempt would end otherwise.
    For(MetaError),
}

impl Meta {
    /// The handle of node `me` before it knows its cluster: the table is empty, changes wait. `seeds` are all seeds of the
    /// cluster, maybe this node among them.
    pub fn new(me: NodeId, seeds: &[(NodeId, String)], dial: Dial) -> Self {
        let (table, _) = watch::channel(Arc::new(Table::new(ClusterId(uuid::Uuid::nil()))));
        let inner = Inner {
            me,
            seeds: seeds.iter().filter(|(node, _)| *node != me).cloned().collect(),
            all_seeds: seeds.iter().map(|(node, _)| *node).collect(),
            dial,
            channels: Mutex::default(),
            table,
            cluster: OnceLock::new(),
            member: OnceLock::new(),
            snapshot_wanted: AtomicBool::new(false),
            stop: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The cluster, once known. The first one said stays.
    pub fn set_cluster(&self, cluster: ClusterId) {
        let cluster = *self.inner.cluster.get_or_init(|| cluster);
        self.inner.table.send_if_modified(|table| {
            let unknown = table.cluster != cluster;
            if unknown {
                *table = Arc::new(Table::new(cluster));
            }
            unknown
        });
    }

    /// The cluster, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.cluster.get().copied()
    }

    /// Where the state machine of this node's replica publishes its tables.
    pub fn publisher(&self) -> watch::Sender<Arc<Table>> {
        self.inner.table.clone()
    }

    /// Makes this node's replica of the meta group the one to ask. The first one stays.
    pub fn set_member(&self, raft: Raft<Machine>) {
        let _ = self.inner.member.set(raft);
    }

    /// This node's replica of the meta group, where it has one.
    pub fn member(&self) -> Option<&Raft<Machine>> {
        self.inner.member.get()
    }

    /// The newest table known here, and every newer one. The empty table at epoch 0 where none is known yet.
    pub fn table(&self) -> watch::Receiver<Arc<Table>> {
        self.inner.table.subscribe()
    }

    /// Ends the streams of those who watch the table here. The node is stopping.
    pub fn stop(&self) {
        self.inner.stop.cancel();
    }

    /// Resolves when the node is stopping.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.inner.stop.clone().cancelled_owned()
    }

    /// The voters of the meta group as far as this node's replica knows them for certain: what a snapshot or a committed
    /// entry says. Empty where this node has no replica, or the group has not come to its first decision.
    pub fn voters(&self) -> Vec<(ReplicaId, String)> {
        let Some(raft) = self.member() else { return Vec::new() };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.last_applied.is_none() {
            return Vec::new();
        }
        let membership = metrics.committed_membership_config.membership();
        let address = |id: &ReplicaId| membership.get_node(id).map(|node| (*id, node.addr.clone()));
        membership.voter_ids().filter_map(|id| address(&id)).collect()
    }

    /// Carries out a change, wherever the leader is, and answers once it is committed and applied there.
    ///
    /// # Errors
    /// [`MetaError`] at the latest after `within`.
    pub async fn propose(&self, change: Change, within: Duration) -> Result<Applied, MetaError> {
        self.propose_at(change, within, 0).await
    }

    /// The same for a change that was handed on `hops` times before it came here.
    ///
    /// # Errors
    /// As [`Meta::propose`].
    pub async fn propose_at(&self, change: Change, within: Duration, hops: u32) -> Result<Applied, MetaError> {
        let deadline = Instant::now() + within;
        let repeatable = !matches!(change, Change::CreateCollection(_));
        let (mut last, mut maybe_done) = ("it did not answer in time".to_owned(), false);
        let mut turn = 0;
        loop {
            // Nothing of an attempt that the deadline cuts off is known.
            let attempt = match timeout_at(deadline, self.attempt(&change, deadline, hops, turn)).await {
                Ok(attempt) => attempt,
                Err(_) => Err(Failed::Unclear(format!("no answer within {within:?} (before that: {last})"))),
            };
            match attempt {
                Ok(applied) => return Ok(applied),
                Err(Failed::For(error)) => return Err(error),
                Err(Failed::NotDone(reason)) => last = reason,
                Err(Failed::Unclear(reason)) => {
                    maybe_done = true;
                    last = reason;
                    if !repeatable {
                        return Err(MetaError::Unclear { reason: last });
                    }
                }
            }
            turn += 1;
            if Instant::now() + RETRY >= deadline {
                return Err(match maybe_done {
                    true => MetaError::Unclear { reason: last },
                    false => MetaError::Unavailable { reason: last },
                });
            }
            sleep(RETRY).await;
        }
    }

    /// Why a change should wait. A collection whose replicas or shards are to follow from the number of nodes would get a
    /// single replica for good if it were created in the moment before the others have joined.
    fn too_early(&self, change: &Change) -> Option<String> {
        let Change::CreateCollection(spec) = change else { return None };
        if spec.replication_factor != 0 && spec.shard_count != 0 {
            return None;
        }
        let table = self.inner.table.borrow();
        let (joined, all) = (
            self.inner.all_seeds.iter().filter(|seed| table.nodes.contains_key(seed)).count(),
            self.inner.all_seeds.len(),
        );
        (joined < all).then(|| {
            format!(
                "{joined} of the {all} first nodes have joined; start the others, or name replication factor and shard count"
            )
        })
    }

    async fn attempt(&self, change: &Change, deadline: Instant, hops: u32, turn: usize) -> Result<Applied, Failed> {
        let Some(cluster) = self.cluster() else {
            return Err(Failed::NotDone("this node is not part of a cluster yet".into()));
        };
        let to = match self.member() {
            Some(raft) => {
                let leader = {
                    let metrics = raft.metrics();
                    let metrics = metrics.borrow_watched();
                    let address = |id: ReplicaId| self.address(metrics.membership_config.membership(), id);
                    metrics.current_leader.map(|id| (id, address(id)))
                };
                match leader {
                    Some((id, _)) if id == *raft.node_id() => {
                        if let Some(reason) = self.too_early(change) {
                            return Err(Failed::NotDone(reason));
                        }
                        return log(raft, change).await;
                    }
                    Some((_, Some(address))) => address,
                    // A wiped seed is no member until the others let it in; they know the leader.
                    _ => self.seed(turn).ok_or_else(|| Failed::NotDone("the meta group has no leader now".into()))?,
                }
            }
            None => self.seed(turn).ok_or_else(|| Failed::NotDone("no other seed is configured".into()))?,
        };
        if hops >= HOPS_MAX {
            return Err(Failed::For(MetaError::Unavailable { reason: "no node on the way knew the leader".into() }));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let request = wire::ProposeMetaRequest {
            format: WIRE_FORMAT,
            cluster_id: Bytes::copy_from_slice(cluster.0.as_bytes()),
            hops: hops + 1,
            // Some of the time is for the way back.
            deadline_ms: u32::try_from(left.mul_f32(0.9).as_millis()).unwrap_or(u32::MAX).max(1),
            change: Some(change.clone().into()),
        };
        match self.client(&to).propose_meta(request).await {
            Ok(reply) => applied(reply.into_inner()).map_err(|reason| Failed::Unclear(format!("{to}: {reason}"))),
            Err(status) => Err(self.failed(&to, status)),
        }
    }

    /// What another node's refusal means for the change.
    fn failed(&self, to: &str, status: Status) -> Failed {
        if let Some(rejected) = rejection(&status) {
            return Failed::For(MetaError::Rejected(rejected));
        }
        let text = format!("{to}: {}", status.message());
        match reason(&status) {
            Some(Reason::NotDone) => return Failed::NotDone(text),
            Some(Reason::Unclear) => return Failed::Unclear(text),
            None => {}
        }
        match status.code() {
            // Not a word of nearring's: the connection failed before the request left, or with it under way.
            _ if never_connected(&status) => Failed::NotDone(text),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal => {
                self.forget(to);
                Failed::Unclear(text)
            }
            _ => Failed::For(MetaError::Refused(Box::new(status))),
        }
    }

    /// Where a member is: as the table says, or else as the group's membership says.
    fn address(&self, membership: &Membership, id: ReplicaId) -> Option<String> {
        let table = self.inner.table.borrow();
        let row = table.nodes.get(&id.node).filter(|node| node.incarnation == id.incarnation);
        row.map(|node| node.address.clone()).or_else(|| membership.get_node(&id).map(|node| node.addr.clone()))
    }

    /// Another seed; all of them in turn. Where the table knows a seed at a new address, that is it.
    fn seed(&self, turn: usize) -> Option<String> {
        let seeds = &self.inner.seeds;
        let (node, address) = seeds.get(turn.checked_rem(seeds.len())?)?;
        let table = self.inner.table.borrow();
        // The configured address is tried too: the table may be the older of the two.
        let known = table.nodes.get(node).filter(|_| (turn / seeds.len()).is_multiple_of(2));
        Some(known.map_or_else(|| address.clone(), |node| node.address.clone()))
    }

    fn client(&self, to: &str) -> NodeDataClient<Channel> {
        let mut channels = self.inner.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = channels.entry(to.to_owned()).or_insert_with(|| (self.inner.dial)(to)).clone();
        NodeDataClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
    }

    /// Sends a write to a node of the table, for a router that cannot.
    ///
    /// # Errors
    /// What the node says; where it says nothing, that nothing was proposed or that it is not known.
    pub async fn pass_on(
        &self,
        to: NodeId,
        write: wire::NodeWriteRequest,
        until: Instant,
    ) -> Result<wire::NodeWriteReply, Status> {
        let address = self.inner.table.borrow().nodes.get(&to).map(|node| node.address.clone());
        let Some(address) = address else {
            return Err(refusal(Code::Unavailable, "not_proposed", format!("{to}, which leads, has no address here")));
        };
        let status = match timeout_at(until, self.client(&address).write(write)).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) if status.metadata().contains_key(REASON) => return Err(status),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        let text = format!("passed on to {to}, which leads: {}", status.message());
        match status.code() {
            _ if never_connected(&status) => Err(refusal(Code::Unavailable, "not_proposed", text)),
            // A connection broke: not the one to this node, as the code alone would say.
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
                self.forget(&address);
                Err(refusal(Code::DeadlineExceeded, "unknown_outcome", text))
            }
            _ => Err(status),
        }
    }

    /// A connection that failed is not used again: it may be one that a firewall swallows.
    fn forget(&self, to: &str) {
        self.inner.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(to);
    }

    /// Asks for a snapshot of this node's replica, and for what it makes superfluous in the log to be purged; what the
    /// shared log wants when the meta group pins its oldest file.
    pub fn snapshot(&self) {
        self.inner.snapshot_wanted.store(true, Ordering::Release);
    }

    /// Keeps this node's replica of the group in order, for ever: the leader brings the membership to the seeds' current
    /// lives, every member snapshots and purges. To be spawned on members.
    pub async fn lead(self) {
        let Some(raft) = self.member().cloned() else { return };
        loop {
            sleep(TICK).await;
            self.tidy(&raft).await;
            if !raft.is_leader() {
                continue;
            }
            let desired = {
                let table = self.inner.table.borrow().clone();
                let metrics = raft.metrics();
                let metrics = metrics.borrow_watched();
                desired(&self.inner.all_seeds, &table, metrics.membership_config.membership())
            };
            match converge(&raft, &desired).await {
                Ok(Step::None) | Err(ConvergeError::NotLeader) => {}
                Ok(step) => tracing::info!(?step, "the meta group's members changed"),
                Err(error) => tracing::warn!(%error, "the meta group's members could not be changed yet"),
            }
        }
    }

    async fn tidy(&self, raft: &Raft<Machine>) {
        let (applied, snapshot, purged) = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.last_applied, metrics.snapshot, metrics.purged)
        };
        let after = |id: Option<crate::raft::LogId>| id.map_or(0, |id| id.index + 1);
        let due = after(applied).saturating_sub(after(snapshot)) >= SNAPSHOT_EVERY;
        let wanted = self.inner.snapshot_wanted.swap(false, Ordering::AcqRel);
        // A failure of either ends the replica and is reported by whoever watches it.
        if (due || wanted) && applied > snapshot {
            let _ = raft.trigger().snapshot().await;
        }
        if let Some(snapshot) = snapshot.filter(|_| after(snapshot) > after(purged)) {
            let _ = raft.trigger().purge_log(snapshot.index).await;
        }
    }

    /// Follows the table by watching a member's, for ever. To be spawned on nodes that are no members.
    pub async fn follow(self) {
        for turn in 0.. {
            let Some(to) = self.seed(turn) else { return };
            let known_epoch = self.inner.table.borrow().epoch.0;
            let request = wire::WatchTableRequest { format: WIRE_FORMAT, known_epoch };
            if let Ok(tables) = self.client(&to).watch_table(request).await {
                let mut tables = tables.into_inner();
                while let Ok(Some(table)) = tables.message().await {
                    match Table::try_from(table) {
                        Ok(table) if Some(table.cluster) == self.cluster() => self.publish(table),
                        Ok(table) => {
                            tracing::error!(%to, cluster = %table.cluster, "a seed belongs to another cluster");
                            break;
                        }
                        Err(error) => {
                            tracing::error!(%to, %error, "a seed sends a table that cannot be read");
                            break;
                        }
                    }
                }
            }
            self.forget(&to);
            sleep(WATCH_RETRY).await;
        }
    }

    fn publish(&self, table: Table) {
        self.inner.table.send_if_modified(|known| {
            let newer = table.epoch > known.epoch;
            if newer {
                *known = Arc::new(table);
            }
            newer
        });
    }

    /// Sees to it that the table's row about this node is `me`, for ever: at the start, and whenever it turns out not to be.
    ///
    /// # Errors
    /// Where that can never be: the table knows a later life of this node, so this data directory is an old copy.
    pub async fn keep_joined(&self, me: Node) -> Result<(), Rejected> {
        let mut tables = self.table();
        loop {
            let joined = tables.borrow_and_update().nodes.get(&me.id) == Some(&me);
            if joined {
                // The sender lives in `self`.
                let _ = tables.changed().await;
                continue;
            }
            match self.propose(Change::Join(me.clone()), JOIN_TIMEOUT).await {
                // The table follows: here or, on a node that is no member, by the watch.
                Ok(applied) => {
                    let newer = tables.wait_for(|table| table.epoch >= applied.epoch);
                    let _ = timeout(JOIN_TIMEOUT, newer).await;
                }
                Err(MetaError::Rejected(rejected)) => return Err(rejected),
                Err(error) => {
                    tracing::info!(%error, "not joined yet");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// Who shall be in the meta group: each seed in its current life. Of a seed that has not joined yet whoever is in the
/// group for it stays: it was there when the group was initialised.
pub fn desired(seeds: &[NodeId], table: &Table, current: &Membership) -> BTreeMap<ReplicaId, String> {
    let mut desired = BTreeMap::new();
    for seed in seeds {
        match table.nodes.get(seed) {
            Some(node) => {
                let id = ReplicaId { node: node.id, incarnation: node.incarnation };
                desired.insert(id, node.address.clone());
            }
            None => {
                let present = current.voter_ids().filter(|id| id.node == *seed);
                let addresses = present.filter_map(|id| current.get_node(&id).map(|node| (id, node.addr.clone())));
                desired.extend(addresses);
            }
        }
    }
    desired
}

/// Logs a change on the leader.
async fn log(raft: &Raft<Machine>, change: &Change) -> Result<Applied, Failed> {
    match raft.client_write(Proposal(machine::encode_change(change))).await {
        Ok(response) => match machine::decode_reply(&response.data.0) {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(rejected)) => Err(Failed::For(MetaError::Rejected(rejected))),
            Err(error) => Err(Failed::Unclear(error.to_string())),
        },
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
            Err(Failed::NotDone("the meta group changes its leader".into()))
        }
        Err(error) => Err(Failed::Unclear(error.to_string())),
    }
}

fn applied(reply: wire::ProposeMetaReply) -> Result<Applied, String> {
    let collection = reply.collection.map(Collection::try_from).transpose().map_err(|error| error.to_string())?;
    Ok(Applied { epoch: reply.epoch.into(), collection, existed: reply.existed })
}
