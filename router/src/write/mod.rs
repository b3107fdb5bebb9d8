//! Writing to shards: [`batch`] takes a request apart, [`write_all`] brings every part to its shard's leader.
//!
//! **When a write is sent again.** With a request id always, until the deadline: the shard answers a repeat from its
//! table. Without one only where the failure proves that nothing was proposed ([`Meaning::nothing_happened`]); any other
//! failure ends it as one whose outcome is unknown. Once an attempt has been uncertain, no later refusal makes it
//! certain again.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nearring_proto::WIRE_FORMAT;
use nearring_proto::ids::{NodeId, RequestId, ShardId};
use nearring_proto::wire::{self, node_write_request::Op};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep_until, timeout};

use crate::cluster_view::ClusterView;
use crate::failure::{Error, Kind, Meaning, NodeFailure};
use crate::plan::replicas;
use crate::scatter::node_deadline_ms;

pub mod batch;

/// Pauses between rounds: first and longest. A dead leader is replaced within a second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(160));
/// How often an overloaded leader is asked again before the caller is told.
const OVERLOADED_MAX: u32 = 4;
/// The least time for one attempt of a write that may be repeated.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);

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

/// Writes every part, all at once; shards commit separately.
///
/// # Errors
/// Where no part was written: the error that says most about what to do.
pub async fn write_all(view: &ClusterView, writes: Vec<ShardWrite>, sending: &Sending) -> Result<Vec<PartEnd>, Error> {
    let parts = writes.into_iter().map(|ShardWrite { shard, op, places }| async move {
        PartEnd { shard, places, end: write_shard(view, shard, op, sending).await }
    });
    let parts = futures::future::join_all(parts).await;
    let failures: Vec<&WriteFailure> = parts.iter().filter_map(|part| part.end.as_ref().err()).collect();
    if !parts.is_empty() && failures.len() == parts.len() {
        return Err(nothing_written(&failures));
    }
    Ok(parts)
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

/// Writes one part.
async fn write_shard(
    view: &ClusterView,
    shard: ShardId,
    op: Op,
    sending: &Sending,
) -> Result<wire::NodeWriteReply, WriteFailure> {
    let repeatable = sending.harmless || sending.request.is_some();
    let mut random = SmallRng::seed_from_u64(view.draw());
    let mut tries: BTreeMap<NodeId, u32> = BTreeMap::new();
    let (mut last, mut uncertain, mut overloaded, mut round) = (None, false, 0, 0_u32);
    let mut why = NodeFailure::new(Meaning::Late, format!("no leader of shard {shard} was found in time"));
    loop {
        let failure = |why: &NodeFailure, unknown: bool| WriteFailure {
            kind: why.meaning.kind(),
            message: format!("shard {shard}: {why}"),
            unknown,
        };
        let left = sending.until.saturating_duration_since(Instant::now());
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
        let node = hint.or_else(|| next(&nodes, &tries, last, &shunned)).unwrap_or_default();
        *tries.entry(node).or_default() += 1;
        last = Some(node);
        let patience = if repeatable { (left / 3).max(ATTEMPT_MIN).min(left) } else { left };
        let flight = view.begin(node);
        let answer = match view.client(node) {
            None => Err(NodeFailure::new(Meaning::WrongShard, format!("{node} has no address"))),
            Some(mut client) => {
                let message = wire::NodeWriteRequest {
                    format: WIRE_FORMAT,
                    cluster_id: bytes::Bytes::copy_from_slice(table.cluster.0.as_bytes()),
                    shard: shard.0,
                    request: sending.request.map(Into::into),
                    deadline_ms: node_deadline_ms(patience),
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
            flight.away()
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
            sleep_until(sending.until.min(Instant::now() + pause)).await;
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
