//! The `NodeData` service: what routers ask of a node.
//!
//! Everything is checked before anything is proposed. The router checked it too; a node does not rely on that. How errors
//! travel: a status, and in its metadata under [`REASON`] one word that a router can act on.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use nearring_proto::collection::{CollectionSpec, InvalidInput, check_payload};
use nearring_proto::convert::{DecodeError, check_format, encode_filter, payload_mode, precondition, read_level};
use nearring_proto::filter::Filter;
use nearring_proto::ids::{PointId, RequestId, SessionId, ShardId};
use nearring_proto::order::{Facet, First, Order};
use nearring_proto::position::ReadLevel;
use nearring_proto::query::SearchQuery;
use nearring_proto::vector::{SparseVector, Vector};
use nearring_proto::wire::{self, node_data_server::NodeData, node_write_request::Op};
use nearring_proto::write::{Point, PointRecord};
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::status::StatusSource;
use crate::index::SearchError;
use crate::machine::command::{Command, PointWrite, Refusal, Reply};
use crate::shard::state::Body;
use crate::shard::{ReadError, Shard, WriteError, Written};
use crate::shards::Shards;

/// The metadata key of the one word that says what kind of refusal a status is.
pub const REASON: &str = "nearring-reason";
/// The metadata key of the leader's node, where known, beside the reason `not_leader`.
pub const LEADER_NODE: &str = "nearring-leader-node";

const DEADLINE: Duration = Duration::from_secs(5);
const DEADLINE_MAX: Duration = Duration::from_secs(300);
/// Points a `DeleteIf` entry judges.
const DELETE_CHUNK: usize = 1000;
/// The most points that one scroll or get returns.
const POINTS_MAX: usize = 10_000;

/// The service.
pub struct DataService {
    shards: Shards,
    status: Arc<dyn StatusSource>,
}

fn deadline(ms: u32) -> Instant {
    let wanted = if ms == 0 { DEADLINE } else { Duration::from_millis(u64::from(ms)) };
    Instant::now() + wanted.min(DEADLINE_MAX)
}

/// A status with a reason.
pub fn refusal(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    let mut status = Status::new(code, message);
    status.metadata_mut().insert(REASON, tonic::metadata::MetadataValue::from_static(reason));
    status
}

fn invalid(field: &str, reason: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

fn decode_error(error: DecodeError) -> Status {
    if error.field == "format" || error.field.ends_with(".format") {
        return refusal(Code::FailedPrecondition, "newer_format", error.to_string());
    }
    Status::invalid_argument(error.to_string())
}

fn input_error(error: InvalidInput) -> Status {
    Status::invalid_argument(error.to_string())
}

fn write_error(error: WriteError) -> Status {
    let text = error.to_string();
    match error {
        WriteError::NotLeader { leader } => {
            let mut status = refusal(Code::FailedPrecondition, "not_leader", text);
            if let Some(leader) = leader {
                status.metadata_mut().insert(LEADER_NODE, leader.0.into());
            }
            status
        }
        WriteError::NotProposed(_) => refusal(Code::Unavailable, "not_proposed", text),
        WriteError::Unknown(_) => refusal(Code::DeadlineExceeded, "unknown_outcome", text),
        WriteError::Exhausted(_) => refusal(Code::ResourceExhausted, "overloaded", text),
        WriteError::Refused(refused) => match refused {
            Refusal::SessionExpired => refusal(Code::FailedPrecondition, "session_expired", text),
            Refusal::Settled { .. } => refusal(Code::FailedPrecondition, "settled", text),
            Refusal::TooManySessions => refusal(Code::ResourceExhausted, "too_many_sessions", text),
            Refusal::Invalid { .. } => Status::invalid_argument(text),
            Refusal::NotConfigured => refusal(Code::Unavailable, "not_proposed", text),
            Refusal::NotPending { .. } => Status::internal(text),
        },
    }
}

fn read_error(error: ReadError) -> Status {
    let text = error.to_string();
    match error {
        ReadError::Behind { .. } => refusal(Code::Unavailable, "behind", text),
        ReadError::NoLeader(_) => refusal(Code::DeadlineExceeded, "no_leader", text),
        ReadError::Stopped(_) => refusal(Code::Unavailable, "stopped", text),
    }
}

/// How a read must be answered.
struct Gate {
    level: ReadLevel,
    after: BTreeMap<ShardId, u64>,
    deadline: Instant,
}

impl Gate {
    fn new(read: Option<wire::NodeRead>, default: ReadLevel) -> Result<Self, Status> {
        let read = read.unwrap_or_default();
        let level = read_level(read.level).map_err(|error| decode_error(error.within("read")))?.unwrap_or(default);
        let mut after = BTreeMap::new();
        for position in read.after {
            let index = after.entry(ShardId(position.shard)).or_insert(0);
            *index = position.index.max(*index);
        }
        Ok(Self { level, after, deadline: deadline(read.deadline_ms) })
    }

    async fn pass(&self, shard: &Shard) -> Result<(), ReadError> {
        let after = self.after.get(&shard.id).copied().unwrap_or(0);
        shard.ready(self.level, after, self.deadline).await
    }
}

impl DataService {
    /// Serves the node's shards.
    pub fn new(shards: Shards, status: Arc<dyn StatusSource>) -> Self {
        Self { shards, status }
    }

    fn check(&self, format: u32, cluster_id: &[u8]) -> Result<(), Status> {
        check_format(format).map_err(decode_error)?;
        if !cluster_id.is_empty() && cluster_id != self.shards.context().cluster.0.as_bytes() {
            return Err(refusal(
                Code::FailedPrecondition,
                "wrong_cluster",
                "this node belongs to another cluster; check the router's node addresses",
            ));
        }
        Ok(())
    }

    fn shard(&self, shard: u64) -> Result<Arc<Shard>, Status> {
        self.shards.get(ShardId(shard)).ok_or_else(|| {
            let text = format!("shard {shard} does not run on this node; fetch the placement table again");
            refusal(Code::FailedPrecondition, "wrong_shard", text)
        })
    }

    /// Runs a piece of reading on the compute pool, under the shard's read lock.
    async fn read<T: Send + 'static>(
        &self,
        shard: &Arc<Shard>,
        work: impl FnOnce(&Body) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let state = shard.state.clone();
        self.shards.context().compute.run(move || work(&state.read())).await
    }
}

fn position(shard: ShardId, index: u64) -> Option<wire::Position> {
    Some(wire::Position { shard: shard.0, index })
}

fn spec_of(shard: &Shard) -> Result<CollectionSpec, Status> {
    shard.state.read().meta.spec.clone().ok_or_else(|| {
        refusal(Code::Unavailable, "not_proposed", "the shard is not configured yet; try again in a moment")
    })
}

/// What a shard says that is asked of a vector which was added to its collection and not yet to itself.
fn behind_settings() -> Status {
    let text = "the shard has not taken over its collection's new vectors yet; try again in a moment";
    refusal(Code::Unavailable, "not_proposed", text)
}

fn ids(messages: Vec<wire::PointId>, spec: &CollectionSpec, field: &str) -> Result<Vec<PointId>, Status> {
    let mut seen = std::collections::BTreeSet::new();
    let mut ids = Vec::with_capacity(messages.len());
    for (at, message) in messages.into_iter().enumerate() {
        let field = format!("{field}[{at}]");
        let id = PointId::try_from(message).map_err(|error| decode_error(error.within(&field)))?;
        spec.check_id(&id, &field).map_err(input_error)?;
        if !seen.insert(id.clone()) {
            return Err(invalid(&field, format!("{id} is named twice; name each point once")));
        }
        ids.push(id);
    }
    Ok(ids)
}

fn points(messages: Vec<wire::Point>, spec: &CollectionSpec) -> Result<Vec<PointWrite>, Status> {
    let mut seen = std::collections::BTreeSet::new();
    let mut points = Vec::with_capacity(messages.len());
    for (at, message) in messages.into_iter().enumerate() {
        let field = format!("points[{at}]");
        let point = Point::try_from(message).map_err(|error| decode_error(error.within(&field)))?;
        spec.check_point(&point, &field).map_err(input_error)?;
        if !seen.insert(point.id.clone()) {
            return Err(invalid(&field, format!("{} is named twice; name each point once", point.id)));
        }
        let (mut vectors, mut others) = (Vec::new(), Vec::new());
        for (name, vector) in point.vectors {
            match vector {
                Vector::Dense(values) => vectors.push((name, values)),
                other => others.push((name, other)),
            }
        }
        points.push(PointWrite { id: point.id, vectors, payload: point.payload_json.to_vec(), others });
    }
    Ok(points)
}

fn command(op: Op, spec: &CollectionSpec) -> Result<Command, Status> {
    Ok(match op {
        Op::Upserts(upserts) => {
            let points = points(upserts.points, spec)?;
            let mut preconditions = Vec::with_capacity(upserts.preconditions.len());
            for (at, message) in upserts.preconditions.into_iter().enumerate() {
                let read = precondition(Some(message));
                preconditions.push(read.map_err(|error| decode_error(error.within(format!("preconditions[{at}]"))))?);
            }
            if !preconditions.is_empty() && preconditions.len() != points.len() {
                return Err(invalid("preconditions", "must be empty or as many as there are points"));
            }
            Command::Upsert { points, preconditions }
        }
        Op::SetPayload(set) => {
            let mode = payload_mode(set.mode).map_err(decode_error)?;
            if mode != nearring_proto::write::PayloadMode::DeleteKeys {
                check_payload(&set.payload_json, "payload_json").map_err(input_error)?;
            }
            Command::SetPayload {
                ids: ids(set.ids, spec, "ids")?,
                payload: set.payload_json.to_vec(),
                mode,
                precondition: precondition(set.precondition)
                    .map_err(|error| decode_error(error.within("precondition")))?,
            }
        }
        Op::Deletes(deletes) => Command::Delete {
            ids: ids(deletes.ids, spec, "ids")?,
            precondition: precondition(deletes.precondition)
                .map_err(|error| decode_error(error.within("precondition")))?,
        },
        Op::ReplaceGroup(group) => {
            if group.separator.is_empty() || group.separator != spec.routing_separator {
                return Err(invalid(
                    "separator",
                    "must be the collection's routing separator, which must not be empty",
                ));
            }
            let prefix = format!("{}{}", group.routing_key, group.separator);
            let points = points(group.points, spec)?;
            for (at, point) in points.iter().enumerate() {
                if !matches!(&point.id, PointId::Text(text) if text.starts_with(&prefix)) {
                    return Err(invalid(&format!("points[{at}].id"), format!("must begin with {prefix:?}")));
                }
            }
            Command::ReplaceGroup { routing_key: group.routing_key, separator: group.separator, points }
        }
        Op::OpenSession(open) => {
            let session = Uuid::from_slice(&open.session).map_err(|_| invalid("session", "must have 16 bytes"))?;
            Command::OpenSession { session: SessionId(session), opened_at_ms: open.opened_at_ms }
        }
        Op::DeleteByFilter(_) => return Err(Status::internal("delete by filter has a way of its own")),
    })
}

/// Deletes what matches, in bounded entries, each judged again where it is applied.
///
/// The first entry fixes the moment up to which points are concerned. With a request id the shard remembers it, what the
/// parts removed, and that the last one ended it: a repeat carries on, and one point is deleted by one request at most
/// once.
async fn delete_by_filter(
    shard: &Arc<Shard>,
    service: &DataService,
    filter: Filter,
    request: Option<RequestId>,
    until: Instant,
) -> Result<Written, Status> {
    filter.check().map_err(input_error)?;
    // Applied here too once it is answered, with everything that was acknowledged before.
    let begun = shard.write(Command::BeginDelete, request, until).await.map_err(write_error)?;
    let Reply::Begun { at: begun, .. } = begun.reply else { return Ok(begun) };
    let bytes = encode_filter(&filter);
    let (mut after, mut removed, mut parts): (Option<PointId>, u64, u64) = (None, 0, 0);
    loop {
        let (filter, from) = (filter.clone(), after.clone());
        let found = service
            .read(shard, move |body| {
                Ok(body.index.matching(&filter, from.as_ref(), DELETE_CHUNK, &|id| body.payload(id)))
            })
            .await?;
        let last = found.len() < DELETE_CHUNK;
        after = found.last().cloned().or(after);
        let command = Command::DeleteIf { ids: found, filter: bytes.clone(), begun, last };
        let mut written = shard.write(command, request, until).await.map_err(|error| match error {
            WriteError::NotLeader { .. } | WriteError::NotProposed(_) if parts > 0 => write_error(WriteError::Unknown(
                format!("{parts} parts of the points were judged, then the leader changed; send the request again"),
            )),
            error => write_error(error),
        })?;
        parts += 1;
        match &mut written.reply {
            // Without a request id the shard does not add up the parts.
            Reply::Begun { removed: now, .. } if !last => removed = *now + if request.is_none() { removed } else { 0 },
            Reply::Written { removed: now, .. } => {
                *now += if request.is_none() { removed } else { 0 };
                return Ok(written);
            }
            other => return Err(Status::internal(format!("a part of a deletion was answered {other:?}"))),
        }
    }
}

fn write_reply(shard: ShardId, written: Written) -> Result<wire::NodeWriteReply, Status> {
    let mut reply = wire::NodeWriteReply {
        position: position(shard, written.index),
        repeated_request: written.repeated,
        ..Default::default()
    };
    match written.reply {
        Reply::Written { applied, removed, outcomes, version } => {
            reply.applied = applied;
            reply.removed = removed;
            reply.outcomes = outcomes.into_iter().map(|(at, outcome)| (at as usize, outcome).into()).collect();
            reply.version = Some(version.into());
        }
        Reply::Session { ttl_ms } => reply.session_ttl_ms = ttl_ms,
        Reply::Done => {}
        Reply::Begun { .. } => return Err(Status::internal("a deletion was answered before it ended")),
        Reply::Refused(refused) => return Err(write_error(WriteError::Refused(refused))),
    }
    Ok(reply)
}

fn record(body: &Body, id: &PointId, with_payload: bool, with_vectors: bool) -> Result<Option<PointRecord>, Status> {
    let stored = body.store.record(id).map_err(|error| Status::internal(error.to_string()))?;
    let Some(stored) = stored else { return Ok(None) };
    let mut vectors = BTreeMap::new();
    if with_vectors {
        for name in stored.vectors.keys() {
            let components = body.index.vector(id, name).ok_or_else(|| {
                refusal(Code::Unavailable, "segment_missing", "this replica is still fetching a segment; ask another")
            })?;
            vectors.insert(name.clone(), Vector::from(&components));
        }
    }
    let payload_json = if with_payload { stored.payload } else { bytes::Bytes::new() };
    Ok(Some(PointRecord { id: id.clone(), version: stored.version, payload_json, vectors }))
}

enum HitsError {
    Search(SearchError),
    Record(String),
}

fn hits(body: &Body, query: &SearchQuery) -> Result<wire::node_search_reply::HitList, HitsError> {
    let found = body.index.search(query, &|id| body.payload(id)).map_err(HitsError::Search)?;
    let mut hits = Vec::with_capacity(found.len());
    for found in found {
        let mut hit = wire::Hit { score: found.score, version: Some(found.version.into()), ..Default::default() };
        if query.with_payload || query.with_vectors {
            let record = record(body, &found.id, query.with_payload, query.with_vectors)
                .map_err(|status| HitsError::Record(status.message().to_owned()))?;
            if let Some(record) = record {
                let message = wire::PointRecord::from(record);
                hit.payload_json = message.payload_json;
                hit.vectors = message.vectors;
            }
        }
        hit.id = Some(found.id.into());
        hits.push(hit);
    }
    Ok(wire::node_search_reply::HitList { hits })
}

fn shard_frequencies(
    body: &Body,
    asked: &wire::node_frequencies_request::Terms,
    at: usize,
) -> Result<wire::node_frequencies_reply::Frequencies, Status> {
    let name = &asked.vector_name;
    let spec = body.meta.spec.as_ref();
    let spec = spec.ok_or_else(|| refusal(Code::Unavailable, "behind", "the shard is not configured yet"))?;
    if !spec.sparse_vectors.contains_key(name) {
        return Err(invalid(&format!("terms[{at}].vector_name"), format!("{name:?} is no sparse vector of the shard")));
    }
    let frequencies = body.index.frequencies(name, &asked.indices).ok_or_else(|| {
        refusal(Code::Unavailable, "segment_missing", "this replica is still restoring its vectors; ask another")
    })?;
    let (vectors, with) = frequencies;
    Ok(wire::node_frequencies_reply::Frequencies { vectors, with })
}

type Answer = wire::node_search_reply::ShardAnswer;

fn failed(shard: ShardId, code: &str, error: impl std::fmt::Display, leader: u64) -> Answer {
    Answer {
        shard: shard.0,
        error_code: code.to_owned(),
        error: error.to_string(),
        leader_node: leader,
        ..Default::default()
    }
}

impl DataService {
    /// Whether the collection has vectors that its shard's settings, as this replica applied them, have not.
    fn lacks_vectors(&self, id: ShardId, spec: &CollectionSpec) -> bool {
        let table = self.shards.context().meta.table().borrow().clone();
        let row = table.shards.get(&id);
        let collection = row.and_then(|row| table.collections.get(&row.collection));
        collection.is_some_and(|collection| collection.spec.vector_names().any(|name| spec.vector(name).is_none()))
    }

    /// The shard, once these of its vectors may be searched; otherwise what to say of it.
    async fn searchable(&self, shard: u64, gate: &Gate, vectors: &[&str]) -> Result<Arc<Shard>, Answer> {
        let id = ShardId(shard);
        let Some(shard) = self.shards.get(id) else {
            return Err(failed(id, "wrong_shard", "the shard does not run on this node", 0));
        };
        match gate.pass(&shard).await {
            Ok(()) => {
                let lacks = |spec: &CollectionSpec| vectors.iter().any(|name| spec.vector(name).is_none());
                let behind = shard
                    .state
                    .read()
                    .meta
                    .spec
                    .as_ref()
                    .is_some_and(|spec| lacks(spec) && self.lacks_vectors(id, spec));
                if behind { Err(failed(id, "behind", behind_settings().message(), 0)) } else { Ok(shard) }
            }
            Err(error) => {
                let code = match error {
                    ReadError::Behind { .. } => "behind",
                    ReadError::NoLeader(_) => "deadline",
                    ReadError::Stopped(_) => "internal",
                };
                Err(failed(id, code, error, shard.leader().map_or(0, |leader| leader.node.0)))
            }
        }
    }
}

/// Answers the queries from what one replica holds.
fn answer(id: ShardId, body: &Body, queries: &[SearchQuery]) -> Result<Answer, Status> {
    let Some(spec) = &body.meta.spec else {
        return Ok(failed(id, "behind", "the shard is not configured yet", 0));
    };
    for (at, query) in queries.iter().enumerate() {
        spec.check_query(query).map_err(|error| invalid(&format!("queries[{at}].{}", error.field), error.reason))?;
    }
    let mut answer = Answer {
        shard: id.0,
        position: position(id, body.applied()),
        segments: body.index.manifest().iter().map(|segment| segment.hash.to_vec().into()).collect(),
        ..Default::default()
    };
    for query in queries {
        match hits(body, query) {
            Ok(list) => answer.lists.push(list),
            Err(HitsError::Search(error @ (SearchError::SegmentMissing { .. } | SearchError::Restoring { .. }))) => {
                return Ok(failed(id, "segment_missing", error, 0));
            }
            Err(HitsError::Search(error)) => return Ok(failed(id, "internal", error, 0)),
            Err(HitsError::Record(error)) => return Ok(failed(id, "internal", error, 0)),
        }
    }
    Ok(answer)
}

/// The most components that a search on the calling task may read: some hundred microseconds' worth.
const HERE_COMPONENTS: u64 = 4 << 20;

/// Answers from all these shards at once; `None` where one of them is being written to, or it would take too long.
fn answer_here(shards: &[Result<Arc<Shard>, Answer>], queries: &[SearchQuery]) -> Option<Result<Vec<Answer>, Status>> {
    let mut bodies = Vec::with_capacity(shards.len());
    for shard in shards {
        bodies.push(match shard {
            Ok(shard) => Ok((shard.id, shard.state.try_read()?)),
            Err(answer) => Err(answer),
        });
    }
    let costs = bodies.iter().flatten().flat_map(|(_, body)| queries.iter().map(|query| body.index.cost(query)));
    if costs.fold(0, u64::saturating_add) > HERE_COMPONENTS {
        return None;
    }
    let answers = bodies.into_iter().map(|body| match body {
        Ok((id, body)) => answer(id, &body, queries),
        Err(answer) => Ok(answer.clone()),
    });
    Some(answers.collect())
}

#[tonic::async_trait]
impl NodeData for DataService {
    async fn write(&self, request: Request<wire::NodeWriteRequest>) -> Result<Response<wire::NodeWriteReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        let until = deadline(request.deadline_ms);
        if request.pass_on
            && !shard.is_leader()
            && let Some(leader) = shard.leader()
        {
            // What is passed on is not passed on again: leaders change faster than that would end.
            let write = wire::NodeWriteRequest { pass_on: false, ..request };
            return self.shards.context().meta.pass_on(leader.node, write, until).await.map(Response::new);
        }
        let size = request.encoded_len() as u64;
        let op = request.op.ok_or_else(|| invalid("op", "is missing"))?;
        let request_id: Option<RequestId> = request
            .request
            .map(TryInto::try_into)
            .transpose()
            .map_err(|error: DecodeError| decode_error(error.within("request")))?;
        if !shard.is_leader() {
            return Err(write_error(WriteError::NotLeader { leader: shard.leader().map(|leader| leader.node) }));
        }
        let spec = spec_of(&shard)?;
        let behind = |status| if self.lacks_vectors(shard.id, &spec) { behind_settings() } else { status };
        let admission = &self.shards.context().admission;
        let _permit = admission.admit(size).map_err(|text| write_error(WriteError::Exhausted(text)))?;
        let written = if let Op::DeleteByFilter(delete) = op {
            let filter = delete.filter.ok_or_else(|| invalid("filter", "is missing"))?;
            let filter = Filter::try_from(filter).map_err(|error| decode_error(error.within("filter")))?;
            delete_by_filter(&shard, self, filter, request_id, until).await?
        } else {
            let command = command(op, &spec).map_err(behind)?;
            if command.points().iter().any(|point| !point.others.is_empty()) {
                admission.admit_resident().map_err(|text| write_error(WriteError::Exhausted(text)))?;
            }
            shard.write(command, request_id, until).await.map_err(write_error)?
        };
        write_reply(shard.id, written).map(Response::new)
    }

    async fn get(&self, request: Request<wire::NodeGetRequest>) -> Result<Response<wire::NodeGetReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        if request.ids.len() > POINTS_MAX {
            return Err(invalid("ids", format!("names {} points, the limit is {POINTS_MAX}", request.ids.len())));
        }
        let mut ids = Vec::with_capacity(request.ids.len());
        for (at, id) in request.ids.into_iter().enumerate() {
            ids.push(PointId::try_from(id).map_err(|error| decode_error(error.within(format!("ids[{at}]"))))?);
        }
        Gate::new(request.read, ReadLevel::Linearizable)?.pass(&shard).await.map_err(read_error)?;
        let (id, with_payload, with_vectors) = (shard.id, request.with_payload, request.with_vectors);
        let reply = self
            .read(&shard, move |body| {
                let mut points = Vec::with_capacity(ids.len());
                for id in &ids {
                    points.extend(record(body, id, with_payload, with_vectors)?.map(Into::into));
                }
                Ok(wire::NodeGetReply { points, position: position(id, body.applied()) })
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn scroll(
        &self,
        request: Request<wire::NodeScrollRequest>,
    ) -> Result<Response<wire::NodeScrollReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        let limit = request.limit as usize;
        if !(1..=POINTS_MAX).contains(&limit) {
            return Err(invalid("limit", format!("is {limit}, must be 1 to {POINTS_MAX}")));
        }
        let after = request.after.map(PointId::try_from).transpose();
        let after = after.map_err(|error| decode_error(error.within("after")))?;
        let order = request.order.map(Order::try_from).transpose();
        let order = order.map_err(|error| decode_error(error.within("order")))?;
        if let Some(order) = &order {
            order.check().map_err(input_error)?;
            if after.is_some() {
                return Err(invalid("after", "goes with the order of ids only"));
            }
        }
        let filter = request.filter.map(Filter::try_from).transpose();
        let filter = filter.map_err(|error| decode_error(error.within("filter")))?;
        if let Some(filter) = &filter {
            filter.check().map_err(input_error)?;
        }
        Gate::new(request.read, ReadLevel::Linearizable)?.pass(&shard).await.map_err(read_error)?;
        let (id, with_payload, with_vectors) = (shard.id, request.with_payload, request.with_vectors);
        let reply = self
            .read(&shard, move |body| {
                if let Some(order) = &order {
                    let mut first = First::new(limit);
                    body.index.for_each(filter.as_ref(), &|id| body.payload(id), &mut |point, payload| {
                        order.places(point, payload).into_iter().for_each(|(place, value)| first.push(place, value));
                    });
                    let (mut points, mut order_values) = (Vec::new(), Vec::new());
                    for (point, value) in first.into_ids() {
                        points.extend(record(body, &point, with_payload, with_vectors)?.map(Into::into));
                        order_values.extend(value.map(Into::into));
                    }
                    let position = position(id, body.applied());
                    return Ok(wire::NodeScrollReply { points, position, more: false, order_values });
                }
                let mut found: Vec<PointId> = match &filter {
                    Some(filter) => body.index.matching(filter, after.as_ref(), limit + 1, &|id| body.payload(id)),
                    None => {
                        let range = body.store.range(after.as_ref(), limit + 1);
                        range.map_err(|e| Status::internal(e.to_string()))?.into_iter().map(|(id, _)| id).collect()
                    }
                };
                let more = found.len() > limit;
                found.truncate(limit);
                let mut points = Vec::with_capacity(found.len());
                for id in &found {
                    points.extend(record(body, id, with_payload, with_vectors)?.map(Into::into));
                }
                let position = position(id, body.applied());
                Ok(wire::NodeScrollReply { points, position, more, order_values: Vec::new() })
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn count(&self, request: Request<wire::NodeCountRequest>) -> Result<Response<wire::NodeCountReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        let filter = request.filter.map(Filter::try_from).transpose();
        let filter = filter.map_err(|error| decode_error(error.within("filter")))?;
        if let Some(filter) = &filter {
            filter.check().map_err(input_error)?;
        }
        Gate::new(request.read, ReadLevel::Linearizable)?.pass(&shard).await.map_err(read_error)?;
        let id = shard.id;
        let reply = self
            .read(&shard, move |body| {
                let count = body.index.count(filter.as_ref(), &|id| body.payload(id));
                Ok(wire::NodeCountReply { count, position: position(id, body.applied()) })
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn facet(&self, request: Request<wire::NodeFacetRequest>) -> Result<Response<wire::NodeFacetReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        let filter = request.filter.map(Filter::try_from).transpose();
        let filter = filter.map_err(|error| decode_error(error.within("filter")))?;
        // Only points that have something there are looked at; an index knows them.
        let there = Filter::Exists(request.path.clone());
        let filter = Filter::All(filter.into_iter().chain([there]).collect());
        filter.check().map_err(input_error)?;
        Gate::new(request.read, ReadLevel::Linearizable)?.pass(&shard).await.map_err(read_error)?;
        let (id, path) = (shard.id, request.path);
        let reply = self
            .read(&shard, move |body| {
                let mut facet = Facet::default();
                body.index.for_each(Some(&filter), &|id| body.payload(id), &mut |_, payload| {
                    if facet.len() <= Facet::VALUES_MAX {
                        facet.count(payload, &path);
                    }
                });
                if facet.len() > Facet::VALUES_MAX {
                    let reason = format!("has more than {} different values; give a filter", Facet::VALUES_MAX);
                    return Err(invalid("path", reason));
                }
                let counts = facet.into_counts().map(Into::into).collect();
                Ok(wire::NodeFacetReply { counts, position: position(id, body.applied()) })
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn search(
        &self,
        request: Request<wire::NodeSearchRequest>,
    ) -> Result<Response<wire::NodeSearchReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let mut queries = Vec::with_capacity(request.queries.len());
        for (at, query) in request.queries.into_iter().enumerate() {
            let read = SearchQuery::try_from(query);
            queries.push(read.map_err(|error| decode_error(error.within(format!("queries[{at}]"))))?);
        }
        let gate = Gate::new(request.read, ReadLevel::Session)?;
        let vectors: Vec<&str> = queries.iter().map(|query| query.vector_name.as_str()).collect();
        let searchable = request.shards.iter().map(|shard| self.searchable(*shard, &gate, &vectors));
        let shards = futures::future::join_all(searchable).await;
        if let Some(_here) = self.shards.context().compute.here().await
            && let Some(answers) = answer_here(&shards, &queries)
        {
            return Ok(Response::new(wire::NodeSearchReply { answers: answers? }));
        }
        let queries = Arc::new(queries);
        let answers = shards.into_iter().map(|shard| {
            let queries = queries.clone();
            async move {
                match shard {
                    Ok(shard) => self.read(&shard.clone(), move |body| answer(shard.id, body, &queries)).await,
                    Err(answer) => Ok(answer),
                }
            }
        });
        let answers = futures::future::try_join_all(answers).await?;
        Ok(Response::new(wire::NodeSearchReply { answers }))
    }

    async fn propose_meta(
        &self,
        request: Request<wire::ProposeMetaRequest>,
    ) -> Result<Response<wire::ProposeMetaReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        super::meta::propose(&self.shards.context().meta, request).await.map(Response::new)
    }

    type WatchTableStream = futures::stream::BoxStream<'static, Result<wire::ClusterTable, Status>>;

    async fn watch_table(
        &self,
        request: Request<wire::WatchTableRequest>,
    ) -> Result<Response<Self::WatchTableStream>, Status> {
        let request = request.into_inner();
        check_format(request.format).map_err(decode_error)?;
        Ok(Response::new(super::meta::watch(&self.shards.context().meta, request)))
    }

    async fn status(&self, request: Request<wire::NodeStatusRequest>) -> Result<Response<wire::NodeStatus>, Status> {
        let request = request.into_inner();
        check_format(request.format).map_err(decode_error)?;
        Ok(Response::new(self.status.status(request.brief).await))
    }

    async fn digest(&self, request: Request<wire::DigestRequest>) -> Result<Response<wire::ReplicaDigest>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        shard.wait_applied(request.at_least, deadline(request.deadline_ms)).await.map_err(read_error)?;
        let (id, node) = (shard.id, self.shards.context().me.node);
        let reply = self
            .read(&shard, move |body| {
                let missing = body.index.missing().len();
                Ok(wire::ReplicaDigest {
                    shard: id.0,
                    node: node.0,
                    index: body.applied(),
                    digest: body.meta.digest.to_be_bytes().to_vec().into(),
                    points: body.meta.points,
                    vectors: body.index.vectors_digest().to_be_bytes().to_vec().into(),
                    error: if missing == 0 {
                        String::new()
                    } else {
                        format!("{missing} segment files are still fetched")
                    },
                })
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn frequencies(
        &self,
        request: Request<wire::NodeFrequenciesRequest>,
    ) -> Result<Response<wire::NodeFrequenciesReply>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        for (at, terms) in request.terms.iter().enumerate() {
            let (got, most) = (terms.indices.len(), SparseVector::ENTRIES_MAX);
            if got > most {
                return Err(invalid(
                    &format!("terms[{at}].indices"),
                    format!("has {got} entries, the limit is {most}"),
                ));
            }
        }
        Gate::new(request.read, ReadLevel::Session)?.pass(&shard).await.map_err(read_error)?;
        let spec = spec_of(&shard)?;
        if request.terms.iter().any(|asked| spec.vector(&asked.vector_name).is_none())
            && self.lacks_vectors(shard.id, &spec)
        {
            return Err(refusal(Code::Unavailable, "behind", behind_settings().message()));
        }
        let (id, terms) = (shard.id, request.terms);
        let reply = self
            .read(&shard, move |body| {
                let mut frequencies = Vec::with_capacity(terms.len());
                for (at, asked) in terms.iter().enumerate() {
                    frequencies.push(shard_frequencies(body, asked, at)?);
                }
                Ok(wire::NodeFrequenciesReply { frequencies, position: position(id, body.applied()) })
            })
            .await?;
        Ok(Response::new(reply))
    }

    type ExportStream = super::export::Messages;

    async fn export(&self, request: Request<wire::NodeExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let request = request.into_inner();
        self.check(request.format, &request.cluster_id)?;
        let shard = self.shard(request.shard)?;
        Gate::new(request.read, ReadLevel::Linearizable)?.pass(&shard).await.map_err(read_error)?;
        let context = self.shards.context();
        let messages = super::export::messages(&shard, context.compute.clone()).await?;
        Ok(Response::new(messages.take_until(context.meta.stopping()).boxed()))
    }
}
