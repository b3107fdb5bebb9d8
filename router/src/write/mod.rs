//! Writing to shards: [`batch`] takes a request apart, [`Writer`] brings every part to its shard's leader.
//!
//! **When a write is sent again.** With a request id always, until the deadline: the shard answers a repeat from its
//! table. A write that comes without one is numbered here ([`numbers`]), shard by shard, so that callers who never send
//! anything again lose no write to a node that dies. Only where a shard takes no session is a write sent without a number;
//! it is repeated where the failure proves that nothing was proposed ([`Meaning::nothing_happened`]), and any other failure
//! ends it as one whose outcome is unknown. Once an attempt has been uncertain, no later refusal makes it certain again.
//!
//! **A leader that this router cannot reach** and that the others still follow, since only the way from here is cut: a
//! follower passes the write on. It is asked to only once the leader was silent towards this router; the leader carries it
//! out, or says why not, exactly as if it had been asked from here.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use nearring_proto::WIRE_FORMAT;
use nearring_proto::clock::Clock;
use nearring_proto::ids::{NodeId, RequestId, ShardId};
use nearring_proto::wire::{self, node_write_request::Op, node_write_request::OpenShardSession};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep_until, timeout};

use crate::cluster_view::ClusterView;
use crate::failure::{Error, Kind, Meaning, NodeFailure};
use crate::plan::replicas;
use crate::scatter::node_deadline_ms;

pub mod batch;
pub mod numbers;

use numbers::Numbers;

/// Pauses between rounds: first and longest. A dead leader is replaced within a second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(160));
/// How often an overloaded leader is asked again before the caller is told.
const OVERLOADED_MAX: u32 = 4;
/// The least time for one attempt of a write that may be repeated, and the most for the first; each later one has twice as
/// much. A dead leader that answers no packet must not cost much more than its election, and a slow one must not be asked
/// again and again.
const ATTEMPT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(800));

/// One shard's part of a write.
#[derive(Clone, Debug)]
pub struct ShardWrite {
    /// Its shard.
    pub shard: ShardId,
    /// What to do there.
    pub op: Op,
    /// The request's items it concerns.
    pub places: Vec<u32>,
}

/// Why a part was not written, or may not have been.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteFailure {
    /// What to do about it.
    pub kind: Kind,
    /// In words.
    pub message: String,
    /// It may have been written all the same.
    pub unknown: bool,
}

/// How one part ended.
#[derive(Clone, Debug)]
pub struct PartEnd {
    /// Its shard.
    pub shard: ShardId,
    /// The request's items it concerns.
    pub places: Vec<u32>,
    /// The shard's answer.
    pub end: Result<wire::NodeWriteReply, WriteFailure>,
}

/// How writes are sent.
#[derive(Clone, Debug)]
pub struct Sending {
    /// Makes repeats harmless.
    pub request: Option<RequestId>,
    /// Repeats are harmless anyway.
    pub harmless: bool,
    /// The end.
    pub until: Instant,
}

/// Brings writes to their shards. Cheap to clone; clones share the numbers.
#[derive(Clone)]
pub struct Writer {
    view: ClusterView,
    numbers: Numbers,
    clock: Clock,
}

impl Writer {
    /// One that has written nothing yet.
    pub fn new(view: ClusterView, clock: Clock) -> Self {
        Self { view, numbers: Numbers::default(), clock }
    }

    /// Writes every part, all at once; shards commit separately.
    ///
    /// # Errors
    /// Where no part was written: the error that says most about what to do.
    pub async fn write_all(&self, writes: Vec<ShardWrite>, sending: &Sending) -> Result<Vec<PartEnd>, Error> {
        let parts = writes.into_iter().map(|ShardWrite { shard, op, places }| async move {
            let end = match sending {
                Sending { request: None, harmless: false, until } => {
                    self.numbered(shard, op, places.len(), *until).await
                }
                Sending { request, until, .. } => write_shard(&self.view, shard, op, true, || *request, *until).await,
            };
            PartEnd { shard, places, end }
        });
        let parts = futures::future::join_all(parts).await;
        let failures: Vec<&WriteFailure> = parts.iter().filter_map(|part| part.end.as_ref().err()).collect();
        if !parts.is_empty() && failures.len() == parts.len() {
            return Err(nothing_written(&failures));
        }
        Ok(parts)
    }

    /// Writes one part under a number of this router's.
    async fn numbered(
        &self,
        shard: ShardId,
        op: Op,
        items: usize,
        until: Instant,
    ) -> Result<wire::NodeWriteReply, WriteFailure> {
        let mut renewed = false;
        loop {
            let began = Instant::now();
            let draw = || u128::from(self.view.draw()) << 64 | u128::from(self.view.draw());
            let Some(ticket) = self.numbers.begin(shard, items, began, draw) else {
                return write_shard(&self.view, shard, op, false, || None, until).await;
            };
            match ticket.is_open() {
                // A neighbour was just told that it has expired.
                None => continue,
                Some(true) => {}
                Some(false) => {
                    if let Some(table) = self.view.table() {
                        self.numbers.retain(|shard| table.shards.contains_key(&shard));
                    }
                    let session = Bytes::copy_from_slice(ticket.session().0.as_bytes());
                    let open = OpenShardSession { session, opened_at_ms: self.clock.now_ms() };
                    // Opening an open session again changes nothing, so a repeat is harmless.
                    match write_shard(&self.view, shard, Op::OpenSession(open), true, || None, until).await {
                        Ok(_) => ticket.opened(began),
                        // Too many sessions, or a clock that is far off.
                        Err(failure) if refuses_sessions(failure.kind) => {
                            tracing::warn!(%shard, "writes to this shard are not numbered for now: {}", failure.message);
                            ticket.refused(began);
                            return write_shard(&self.view, shard, op, false, || None, until).await;
                        }
                        Err(failure) => return Err(WriteFailure { unknown: false, ..failure }),
                    }
                }
            }
            let request = || Some(ticket.request_id());
            match write_shard(&self.view, shard, op.clone(), true, request, until).await {
                Err(failure) if failure.kind == Kind::SessionExpired => {
                    // The shard's clock has leapt. Nothing was executed by the attempt that was told so.
                    ticket.expired();
                    if failure.unknown || renewed {
                        let kind = if failure.unknown { Kind::Unavailable } else { Kind::NotDone };
                        return Err(WriteFailure { kind, ..failure });
                    }
                    renewed = true;
                }
                end => {
                    if end.is_ok() {
                        ticket.used(began);
                    }
                    return end;
                }
            }
        }
    }
}

fn refuses_sessions(kind: Kind) -> bool {
    matches!(kind, Kind::Invalid | Kind::Overloaded | Kind::SessionExpired)
}

/// One error for a write of which every part failed.
fn nothing_written(failures: &[&WriteFailure]) -> Error {
    let of = |test: &dyn Fn(&WriteFailure) -> bool| failures.iter().find(|failure| test(failure));
    if let Some(failure) = of(&|failure| failure.unknown) {
        let kind = if failure.kind == Kind::Deadline { Kind::Deadline } else { Kind::Unavailable };
        return Error::new(kind, format!("{}; the write may have happened all the same", failure.message));
    }
    let transient = [Kind::Overloaded, Kind::Deadline, Kind::Unavailable, Kind::NotDone];
    let first = of(&|failure| failure.kind == Kind::SessionExpired)
        .or_else(|| of(&|failure| !transient.contains(&failure.kind)))
        .or_else(|| of(&|failure| failure.kind == Kind::Overloaded))
        .or_else(|| failures.first());
    match first {
        None => Error::new(Kind::Internal, "nothing was to be written"),
        Some(failure) => {
            let kind = match failure.kind {
                Kind::Deadline | Kind::Unavailable => Kind::NotDone,
                kind => kind,
            };
            Error::new(kind, format!("{}; nothing was changed", failure.message))
        }
    }
}

/// Writes one part, again and again where that is harmless. `request` tells the number anew for each attempt: what is settled
/// by then goes with it.
async fn write_shard(
    view: &ClusterView,
    shard: ShardId,
    op: Op,
    repeatable: bool,
    request: impl Fn() -> Option<RequestId>,
    until: Instant,
) -> Result<wire::NodeWriteReply, WriteFailure> {
    let mut random = SmallRng::seed_from_u64(view.draw());
    let mut tries: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut patience_max = ATTEMPT.1;
    // Leaders that did not answer here, and a replica that is to pass the write on to one.
    let (mut silent, mut through) = (BTreeSet::new(), None);
    let (mut last, mut uncertain, mut overloaded, mut round) = (None, false, 0, 0_u32);
    let mut why = NodeFailure::new(Meaning::Late, format!("no leader of shard {shard} was found in time"));
    loop {
        let failure = |why: &NodeFailure, unknown: bool| WriteFailure {
            kind: why.meaning.kind(),
            message: format!("shard {shard}: {why}"),
            unknown,
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failure(&why, uncertain));
        }
        let Some(table) = view.table() else { return Err(failure(&why, uncertain)) };
        let nodes = replicas(&table, shard, None);
        if nodes.is_empty() {
            let why =
                NodeFailure::new(Meaning::Refused(Kind::NotFound), "the shard is gone; its collection was deleted");
            return Err(failure(&why, uncertain));
        }
        // Followers that have not noticed yet name a leader that is dead: it is asked when the others have been.
        let shunned = view.loads().1;
        let others_tried = |hint: &NodeId| nodes.iter().all(|node| node == hint || tries.contains_key(node));
        let hint = view.leader(shard).filter(|hint| table.nodes.contains_key(hint));
        let hint = hint.filter(|hint| !shunned.contains(hint) || others_tried(hint));
        let passed_on = through.take();
        let node = passed_on.or(hint).or_else(|| next(&nodes, &tries, last, &shunned)).unwrap_or_default();
        *tries.entry(node).or_default() += 1;
        last = Some(node);
        let patience = if repeatable { (left / 3).min(patience_max).max(ATTEMPT.0).min(left) } else { left };
        let flight = view.begin(node);
        let answer = match view.client(node) {
            None => Err(NodeFailure::new(Meaning::WrongShard, format!("{node} has no address"))),
            Some(mut client) => {
                let message = wire::NodeWriteRequest {
                    format: WIRE_FORMAT,
                    cluster_id: bytes::Bytes::copy_from_slice(table.cluster.0.as_bytes()),
                    shard: shard.0,
                    request: request().map(Into::into),
                    deadline_ms: node_deadline_ms(patience),
                    pass_on: passed_on.is_some(),
                    op: Some(op.clone()),
                };
                match timeout(patience, client.write(message)).await {
                    Ok(answer) => answer.map(tonic::Response::into_inner).map_err(NodeFailure::from),
                    Err(_) => Err(NodeFailure::new(Meaning::Lost, format!("no answer of {node} within {patience:?}"))),
                }
            }
        };
        why = match answer {
            Ok(reply) => {
                flight.answered();
                view.set_leader(shard, Some(node));
                return Ok(reply);
            }
            Err(failure) => failure,
        };
        if why.meaning.node_is_away() {
            patience_max *= 2;
            if flight.away() {
                silent.insert(node);
            }
        } else {
            flight.answered()
        }
        if why.meaning.table_is_stale() {
            view.refresh();
        }
        if !why.meaning.nothing_happened() {
            uncertain = true;
            if !repeatable {
                return Err(failure(&why, true));
            }
        }
        let mut at_once = false;
        match why.meaning {
            Meaning::SessionExpired | Meaning::Refused(_) => return Err(failure(&why, uncertain)),
            Meaning::Overloaded => {
                overloaded += 1;
                if overloaded > OVERLOADED_MAX {
                    return Err(failure(&why, uncertain));
                }
            }
            Meaning::NotLeader(Some(leader))
                if passed_on.is_none() && leader != node && (silent.contains(&leader) || shunned.contains(&leader)) =>
            {
                through = Some(node);
                at_once = true;
            }
            Meaning::NotLeader(leader) => {
                let new = leader.filter(|leader| *leader != node && hint != Some(*leader));
                view.set_leader(shard, new);
                at_once = new.is_some() || nodes.iter().any(|node| !tries.contains_key(node));
            }
            _ => {
                view.set_leader(shard, None);
                at_once = nodes.iter().any(|node| !tries.contains_key(node));
            }
        }
        if !at_once {
            let longest = (PAUSE.0 * (1 << round.min(6))).min(PAUSE.1);
            round += 1;
            let pause = longest.mul_f64(random.random_range(0.5..1.0));
            sleep_until(until.min(Instant::now() + pause)).await;
        }
    }
}

/// The replica tried least, not the last one where there are others, one that answers before one that does not.
fn next(
    nodes: &[NodeId],
    tries: &BTreeMap<NodeId, u32>,
    last: Option<NodeId>,
    shunned: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let others = nodes.iter().filter(|node| nodes.len() == 1 || Some(**node) != last);
    others.copied().min_by_key(|node| (tries.get(node).copied().unwrap_or(0), shunned.contains(node), *node))
}
