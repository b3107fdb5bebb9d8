//! Messages: what Raft writes and sends, and every conversion from the wire.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bytes::Bytes;
use nearring_node::raft::codec::{self, Wire};
use nearring_node::raft::{Entry, LogId, Membership, Proposal, StoredMembership, TypeConfig, Vote};
use nearring_proto::collection::{Collection, CollectionSpec, CollectionUpdate};
use nearring_proto::convert;
use nearring_proto::coverage::Coverage;
use nearring_proto::examples::{Examples, Pair};
use nearring_proto::hit::Hit;
use nearring_proto::ids::{PointId, ReplicaId, RequestId, Version};
use nearring_proto::placement::table::{Change, Node, Shard, Table};
use nearring_proto::position::ReadToken;
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::Vector;
use nearring_proto::wire;
use nearring_proto::write::{Outcome, Point, PointRecord, Precondition};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId as _;
use openraft::{BasicNode, EntryPayload};
use prost::Message;

use super::{choice, chosen, done};

// ---- Raft ----

/// What decodes survives being encoded and decoded again, and encodes to the same bytes.
fn same<T: Wire>(message: &[u8]) -> bool {
    let Ok(value) = codec::decode::<T>(Bytes::copy_from_slice(message)) else { return false };
    let once = codec::encode(&value);
    let again = codec::encode(&done(codec::decode::<T>(once.clone())));
    assert_eq!(once, again, "not the same after a second reading");
    true
}

/// Everything of Raft's codec.
pub fn raft_messages(data: &[u8]) -> bool {
    let (which, message) = choice(data);
    match which % 12 {
        0 => same::<Vote>(message),
        1 => same::<Option<LogId>>(message),
        2 => same::<Entry>(message),
        3 => same::<(Option<LogId>, StoredMembership)>(message),
        4 => same::<AppendEntriesRequest<TypeConfig>>(message),
        5 => same::<AppendEntriesResponse<TypeConfig>>(message),
        6 => same::<VoteRequest<TypeConfig>>(message),
        7 => same::<VoteResponse<TypeConfig>>(message),
        8 => same::<SnapshotResponse<TypeConfig>>(message),
        9 => same::<TransferLeaderRequest<TypeConfig>>(message),
        10 => same::<TransferLeaderResponse<TypeConfig>>(message),
        _ => same::<String>(message),
    }
}

pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::alias::LeaderIdOf::<TypeConfig>::new(term, ReplicaId::default()).to_committed(), index)
}

/// A group in the middle of a change of members.
pub(super) fn membership() -> Membership {
    let ids: Vec<ReplicaId> = (1..=4).map(ReplicaId::from).collect();
    let nodes: BTreeMap<ReplicaId, BasicNode> =
        ids.iter().map(|id| (*id, BasicNode { addr: format!("{}:7000", id.node) })).collect();
    let voters = |range: &[ReplicaId]| range.iter().copied().collect::<BTreeSet<ReplicaId>>();
    done(Membership::new(vec![voters(&ids[..3]), voters(&ids[1..])], nodes))
}

pub(super) fn raft_seeds() -> Vec<Vec<u8>> {
    let vote = Vote::new(7, ReplicaId::from(2));
    let entries = || {
        vec![
            Entry { log_id: log_id(7, 1), payload: EntryPayload::Blank },
            Entry { log_id: log_id(7, 2), payload: EntryPayload::Normal(Proposal(Bytes::from_static(b"bytes"))) },
            Entry { log_id: log_id(7, 3), payload: EntryPayload::Membership(membership()) },
        ]
    };
    let stored = (Some(log_id(7, 9)), StoredMembership::new(Some(log_id(6, 3)), membership()));
    let append = AppendEntriesRequest::<TypeConfig> {
        vote,
        prev_log_id: Some(log_id(6, 0)),
        leader_commit: Some(log_id(7, 2)),
        entries: entries(),
    };
    let mut seeds = vec![chosen(0, &codec::encode(&vote)), chosen(1, &codec::encode(&Some(log_id(7, 1))))];
    seeds.extend(entries().iter().map(|entry| chosen(2, &codec::encode(entry))));
    seeds.push(chosen(3, &codec::encode(&stored)));
    seeds.push(chosen(4, &codec::encode(&append)));
    let answers = [
        AppendEntriesResponse::Success,
        AppendEntriesResponse::PartialSuccess(Some(log_id(7, 3))),
        AppendEntriesResponse::Conflict,
        AppendEntriesResponse::<TypeConfig>::HigherVote(vote),
    ];
    seeds.extend(answers.iter().map(|answer| chosen(5, &codec::encode(answer))));
    seeds.push(chosen(6, &codec::encode(&VoteRequest::<TypeConfig>::new(vote, Some(log_id(6, 3))))));
    seeds.push(chosen(7, &codec::encode(&VoteResponse::<TypeConfig>::new(vote, Some(log_id(6, 3)), true))));
    seeds.push(chosen(8, &codec::encode(&SnapshotResponse::<TypeConfig>::new(vote))));
    let transfer = TransferLeaderRequest::<TypeConfig>::new(vote, ReplicaId::from(3), Some(log_id(7, 3)));
    seeds.push(chosen(9, &codec::encode(&transfer)));
    let changed = openraft::raft::TransferLeaderError::VoteChanged { expected: vote, actual: vote };
    seeds.push(chosen(10, &codec::encode::<TransferLeaderResponse<TypeConfig>>(&Err(changed))));
    seeds.push(chosen(11, &codec::encode(&"refuses".to_owned())));
    seeds
}

// ---- the wire ----

/// What a message means survives being written and read again, and is written as the same bytes.
fn through<W, T>(message: &[u8]) -> bool
where
    W: Message + Default,
    T: TryFrom<W> + Into<W>,
    T::Error: Debug,
{
    let read = |bytes: &[u8]| W::decode(bytes).ok().map(T::try_from);
    let Some(Ok(value)) = read(message) else { return false };
    let once = value.into().encode_to_vec();
    let again = match read(&once) {
        Some(Ok(value)) => value.into().encode_to_vec(),
        Some(Err(error)) => panic!("what was written is refused: {error:?}"),
        None => panic!("what was written is no message"),
    };
    assert_eq!(once, again, "not the same after a second reading");
    true
}

/// A change stands in a request to the meta group and is no message of its own.
fn change(message: &[u8]) -> bool {
    let read = |bytes: &[u8]| {
        let request = wire::ProposeMetaRequest::decode(bytes).ok()?;
        Change::try_from(request.change?).ok()
    };
    let Some(change) = read(message) else { return false };
    let request = wire::ProposeMetaRequest { change: Some(change.clone().into()), ..Default::default() };
    assert_eq!(read(&request.encode_to_vec()), Some(change));
    true
}

fn token(message: &[u8]) -> bool {
    let Ok(reply) = wire::ReadIndexReply::decode(message) else { return false };
    let token = ReadToken::from(reply.positions);
    assert_eq!(ReadToken::from(Vec::<wire::Position>::from(&token)), token);
    true
}

/// Enumerations as they stand in messages: any number is a value or an error.
fn numbers(message: &[u8]) -> bool {
    let Some(number) = message.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)) else { return false };
    let known = [convert::field_kind(number).is_ok(), convert::payload_mode(number).is_ok()];
    known.contains(&true) | convert::read_level(number).is_ok()
}

/// Every conversion from a message to what it means.
pub fn wire_messages(data: &[u8]) -> bool {
    let (which, message) = choice(data);
    match which % 21 {
        0 => through::<wire::PointId, PointId>(message),
        1 => through::<wire::Version, Version>(message),
        2 => through::<wire::Point, Point>(message),
        3 => through::<wire::PointRecord, PointRecord>(message),
        4 => through::<wire::SearchQuery, SearchQuery>(message),
        5 => through::<wire::Hit, Hit>(message),
        6 => through::<wire::Coverage, Coverage>(message),
        7 => through::<wire::Precondition, Precondition>(message),
        8 => through::<wire::RequestId, RequestId>(message),
        9 => through::<wire::PointOutcome, (usize, Outcome)>(message),
        10 => through::<wire::CollectionSpec, CollectionSpec>(message),
        11 => through::<wire::UpdateCollection, CollectionUpdate>(message),
        12 => through::<wire::CollectionInfo, Collection>(message),
        13 => through::<wire::Replica, ReplicaId>(message),
        14 => through::<wire::NodeInfo, Node>(message),
        15 => through::<wire::ShardInfo, Shard>(message),
        16 => through::<wire::ClusterTable, Table>(message),
        17 => change(message),
        18 => token(message),
        19 => numbers(message),
        _ => {
            let Ok(message) = wire::Precondition::decode(message) else { return false };
            convert::precondition(Some(message)).is_ok()
        }
    }
}

pub(super) fn wire_seeds() -> Vec<Vec<u8>> {
    fn of<W: Message>(which: u8, message: impl Into<W>) -> Vec<u8> {
        chosen(which, &message.into().encode_to_vec())
    }
    let version = Version { epoch: 1, index: 7 };
    let vectors = || -> BTreeMap<String, Vector> {
        let dense = [(String::new(), vec![0.6, 0.8].into()), ("title".to_owned(), vec![1.0].into())];
        dense.into_iter().chain(super::machine::others()).collect()
    };
    let payload = || Bytes::from_static(br#"{"n":1,"tags":["a","b"]}"#);
    let id = |text: &str| PointId::parse(text);
    let point = Point { id: id("a#1"), vectors: vectors(), payload_json: payload() };
    let record = PointRecord { id: id("7"), version, payload_json: payload(), vectors: vectors() };
    let hit = Hit { id: id("7"), score: 0.5, version, payload_json: payload(), vectors: vectors() };
    let spec = super::machine::spec();
    let mut table = super::snapshots::table();
    let update = CollectionUpdate { name: "c".to_owned(), ef_search: 64, ..Default::default() };
    let change =
        wire::ProposeMetaRequest { change: Some(Change::CreateCollection(spec.clone()).into()), ..Default::default() };
    let shard = table.shards.pop_first().map(|(_, shard)| shard);
    let node = table.nodes.first_key_value().map(|(_, node)| node.clone());
    let collection = table.collections.first_key_value().map(|(_, collection)| collection.clone());
    let coverage = wire::Coverage {
        shards: (0..3)
            .map(|state| wire::ShardCoverage {
                shard: 5 + u64::from(state as u8),
                state,
                node: 1,
                index: 9,
                segments: vec![Bytes::from_static(&[1; 32])],
                reason: "late".to_owned(),
                estimated_loss: 0.25,
            })
            .collect(),
    };
    let mut seeds = vec![
        of::<wire::PointId>(0, id("a#1")),
        of::<wire::PointId>(0, id("7")),
        of::<wire::PointId>(0, id("6e9a1a52-3c5b-4c8c-8c2e-0d6a4a3b2c1d")),
        of::<wire::Version>(1, version),
        of::<wire::Point>(2, point),
        of::<wire::PointRecord>(3, record),
        of::<wire::Hit>(5, hit),
        of::<wire::Coverage>(6, coverage),
        of::<wire::Precondition>(7, Precondition::InsertOnly),
        of::<wire::Precondition>(7, Precondition::IfVersion(version)),
        of::<wire::PointOutcome>(9, (3, Outcome::VersionMismatch(Some(version)))),
        of::<wire::CollectionSpec>(10, spec),
        of::<wire::UpdateCollection>(11, update),
        of::<wire::Replica>(13, ReplicaId::from(3)),
        of::<wire::ClusterTable>(16, super::snapshots::table()),
        of::<wire::ProposeMetaRequest>(17, change),
        chosen(19, &2_i32.to_le_bytes()),
    ];
    seeds.extend(node.map(|node| of::<wire::NodeInfo>(14, node)));
    seeds.extend(shard.map(|shard| of::<wire::ShardInfo>(15, shard)));
    seeds.extend(collection.map(|collection| of::<wire::CollectionInfo>(12, collection)));
    let request = RequestId { session: super::machine::session(), seq: 3, settled_below: 2 };
    seeds.push(of::<wire::RequestId>(8, request));
    let query = SearchQuery {
        vector_name: String::new(),
        target: vec![0.6, 0.8].into(),
        limit: 10,
        filter: serde_json::from_str(r#"{"all":[{"exists":"n"},{"not":{"ids":[7,"x"]}}]}"#).ok(),
        exact: false,
        ef: Some(64),
        with_payload: true,
        with_vectors: false,
        score_threshold: Some(0.1),
    };
    for (vector_name, vector) in super::machine::others() {
        let pairs = vec![Pair { liked: vector.clone(), disliked: vector.clone() }];
        let discover = Target::Examples(Examples::Discover { target: vector.clone(), pairs });
        let weighted = Target::Examples(Examples::Weighted { examples: vec![(vector.clone(), -0.5)] });
        for target in [Target::Near(vector), discover, weighted] {
            let vector_name = vector_name.clone();
            seeds.push(of::<wire::SearchQuery>(4, SearchQuery { vector_name, target, ..query.clone() }));
        }
    }
    seeds.push(of::<wire::SearchQuery>(4, query));
    seeds
}

/// For checks that compare values without equality of their own, floats among them.
pub(super) fn shown(value: &impl Debug) -> String {
    format!("{value:?}")
}
