//! What tests of machine and store share: a collection, and entries at random.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;

use nearring_proto::collection::{CollectionSpec, IndexSpec, Modifier, MultiSpec, SparseSpec, VectorSpec};
use nearring_proto::convert::encode_filter;
use nearring_proto::filter::Filter;
use nearring_proto::ids::{PointId, ReplicaId, RequestId, SessionId, Version};
use nearring_proto::vector::{Metric, MultiVector, ScalarKind, SparseVector, Vector};
use nearring_proto::write::{PayloadMode, Precondition};
use openraft::vote::RaftLeaderId as _;
use proptest::prelude::*;
use uuid::Uuid;

use super::command::{Command, Envelope, PointWrite};
use crate::raft::LogId;

pub(crate) fn log_id(index: u64) -> LogId {
    let leader: openraft::alias::LeaderIdOf<crate::raft::TypeConfig> =
        openraft::impls::leader_id_std::LeaderId::new(1, ReplicaId::from(1));
    LogId::new(leader.to_committed(), index)
}

/// Dense vectors "" and "title" of two components, sparse "words", multi-vectors "tokens" of two components; groups by `#`.
pub(crate) fn spec() -> CollectionSpec {
    let vector = VectorSpec { dimension: 2, metric: Metric::Cosine, scalar: ScalarKind::F32 };
    CollectionSpec {
        name: "c".to_owned(),
        vectors: BTreeMap::from([(String::new(), vector.clone()), ("title".to_owned(), vector)]),
        payload_indexes: BTreeMap::new(),
        shard_count: 1,
        replication_factor: 1,
        routing_separator: "#".to_owned(),
        index: IndexSpec::default(),
        documents: None,
        sparse_vectors: BTreeMap::from([("words".to_owned(), SparseSpec { modifier: Modifier::Idf })]),
        multi_vectors: BTreeMap::from([("tokens".to_owned(), MultiSpec { dimension: 2, metric: Metric::Cosine })]),
    }
}

pub(crate) fn configure() -> Command {
    Command::Configure { spec: spec(), home_epoch: 1 }
}

pub(crate) fn plain(command: Command) -> Envelope {
    Envelope { now_ms: 0, request: None, command }
}

pub(crate) fn session(number: u8) -> SessionId {
    SessionId(Uuid::from_bytes([number; 16]))
}

pub(crate) fn request(of: u8, seq: u64, settled_below: u64) -> RequestId {
    RequestId { session: session(of), seq, settled_below }
}

/// The ids tests use: few, so that they meet; all kinds; two groups and their neighbours.
pub(crate) fn ids() -> Vec<PointId> {
    let texts = ["a", "a#0", "a#1", "a#1#2", "a$", "ab#0", "b#0", "b#1"];
    let mut ids: Vec<PointId> = texts.iter().map(|text| PointId::Text((*text).to_owned())).collect();
    ids.extend([PointId::Number(1), PointId::Number(2), PointId::Uuid(Uuid::from_bytes([9; 16]))]);
    ids
}

fn some_ids() -> impl Strategy<Value = Vec<PointId>> {
    prop::sample::subsequence(ids(), 0..=4).prop_shuffle()
}

fn point(id: PointId) -> impl Strategy<Value = PointWrite> {
    let component = -4i8..5;
    let vectors = prop::collection::btree_map(
        prop_oneof![Just(String::new()), Just("title".to_owned())],
        // Never zero, which cosine refuses.
        (component.clone(), component).prop_map(|(x, y)| vec![f32::from(x) + 0.5, f32::from(y)]),
        0..=2,
    );
    let entries = prop::collection::btree_map(0u32..6, -4i8..5, 0..4).prop_map(|entries| {
        let (indices, values) = entries.into_iter().map(|(index, value)| (index, f32::from(value))).unzip();
        Vector::from(SparseVector::new(indices, values).unwrap())
    });
    let rows = prop::collection::vec((-4i8..5, -4i8..5).prop_map(|(x, y)| [f32::from(x) + 0.5, f32::from(y)]), 1..4)
        .prop_map(|rows| Vector::from(MultiVector::new(2, rows.concat()).unwrap()));
    let others =
        (prop::option::weighted(0.3, entries), prop::option::weighted(0.3, rows)).prop_map(|(words, tokens)| {
            let named = [("words", words), ("tokens", tokens)].into_iter();
            named.filter_map(|(name, vector)| Some((name.to_owned(), vector?))).collect()
        });
    (vectors, payload(), others).prop_map(move |(vectors, payload, others)| PointWrite {
        id: id.clone(),
        vectors: vectors.into_iter().collect(),
        payload,
        others,
    })
}

fn points(ids: Vec<PointId>) -> impl Strategy<Value = Vec<PointWrite>> {
    ids.into_iter().map(point).collect::<Vec<_>>()
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let texts = [r#""#, r#"{}"#, r#"{"n":1}"#, r#"{"n":2,"t":"x"}"#, r#"{ "t": ["x", null] }"#];
    prop::sample::select(texts.to_vec()).prop_map(|text| text.as_bytes().to_vec())
}

fn precondition() -> impl Strategy<Value = Option<Precondition>> {
    let version = (1u64..3, 1u64..40).prop_map(|(epoch, index)| Version { epoch, index });
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Precondition::InsertOnly)),
        1 => version.prop_map(|version| Some(Precondition::IfVersion(version))),
    ]
}

/// A write that the collection takes.
pub(crate) fn valid_write() -> BoxedStrategy<Command> {
    let upsert = some_ids().prop_flat_map(|ids| {
        let preconditions = prop_oneof![Just(Vec::new()), prop::collection::vec(precondition(), ids.len()),];
        (points(ids), preconditions).prop_map(|(points, preconditions)| Command::Upsert { points, preconditions })
    });
    let merge = (some_ids(), payload(), prop_oneof![Just(PayloadMode::Merge), Just(PayloadMode::Overwrite)]);
    let keys = (some_ids(), Just(br#"["n","absent"]"#.to_vec()), Just(PayloadMode::DeleteKeys));
    let set_payload = (prop_oneof![merge.boxed(), keys.boxed()], precondition())
        .prop_map(|((ids, payload, mode), precondition)| Command::SetPayload { ids, payload, mode, precondition });
    let delete = (some_ids(), precondition()).prop_map(|(ids, precondition)| Command::Delete { ids, precondition });
    let filter = encode_filter(&serde_json::from_str::<Filter>(r#"{"equals":{"path":"n","value":2}}"#).unwrap());
    let begun = (1u64..40).prop_map(|index| Version { epoch: 1, index });
    let delete_if = (some_ids(), begun, any::<bool>()).prop_map(move |(ids, begun, last)| Command::DeleteIf {
        ids,
        filter: filter.clone(),
        begun,
        last,
    });
    let group = prop::sample::subsequence(vec!["a", "a#0", "a#1", "a#1#2"], 0..=3).prop_flat_map(|ids| {
        points(ids.into_iter().map(|id| PointId::Text(id.to_owned())).collect())
            .prop_map(|points| Command::ReplaceGroup { routing_key: "a".to_owned(), separator: "#".to_owned(), points })
    });
    prop_oneof![4 => upsert, 2 => set_payload, 1 => delete, 1 => Just(Command::BeginDelete), 3 => delete_if, 1 => group]
        .boxed()
}

/// A write that is wrong as a whole.
pub(crate) fn invalid_write() -> BoxedStrategy<Command> {
    let good = || PointWrite { id: PointId::Number(1), vectors: vec![], payload: vec![], others: vec![] };
    let sparse = || Vector::from(SparseVector::new(vec![1], vec![1.0]).unwrap());
    let multi = |dimension, components: &[f32]| Vector::from(MultiVector::new(dimension, components.to_vec()).unwrap());
    let other = |others: Vec<(&str, Vector)>| PointWrite {
        others: others.into_iter().map(|(name, vector)| (name.to_owned(), vector)).collect(),
        ..good()
    };
    let with = |vectors: Vec<(&str, Vec<f32>)>| PointWrite {
        vectors: vectors.into_iter().map(|(name, values)| (name.to_owned(), values)).collect(),
        ..good()
    };
    let bad_points = vec![
        vec![good(), good()],
        vec![with(vec![("nose", vec![1.0, 1.0])])],
        vec![with(vec![("", vec![1.0])])],
        vec![with(vec![("", vec![1.0, f32::NAN])])],
        vec![with(vec![("", vec![0.0, 0.0])])],
        vec![with(vec![("", vec![1.0, 1.0]), ("", vec![1.0, 1.0])])],
        vec![with(vec![("words", vec![1.0, 1.0])])],
        vec![other(vec![("nose", sparse())])],
        vec![other(vec![("", sparse())])],
        vec![other(vec![("words", sparse()), ("words", sparse())])],
        vec![other(vec![("words", multi(2, &[1.0, 1.0]))])],
        vec![other(vec![("tokens", multi(1, &[1.0]))])],
        vec![other(vec![("tokens", multi(2, &[1.0, 1.0, 0.0, 0.0]))])],
        vec![PointWrite { vectors: vec![("words".to_owned(), vec![1.0])], ..other(vec![("words", sparse())]) }],
        vec![PointWrite { payload: b"[1]".to_vec(), ..good() }],
        vec![PointWrite { payload: b"{".to_vec(), ..good() }],
        vec![PointWrite { id: PointId::Text(String::new()), ..good() }],
    ];
    let upsert = prop::sample::select(bad_points).prop_map(move |mut points| {
        points.insert(0, PointWrite { id: PointId::Number(2), ..good() });
        Command::Upsert { points, preconditions: vec![] }
    });
    let ids = |ids: &[u64]| ids.iter().map(|id| PointId::Number(*id)).collect::<Vec<_>>();
    let group = |key: &str, separator: &str, id: &str| Command::ReplaceGroup {
        routing_key: key.to_owned(),
        separator: separator.to_owned(),
        points: vec![PointWrite { id: PointId::Text(id.to_owned()), ..good() }],
    };
    let payload =
        |ids, payload: &[u8], mode| Command::SetPayload { ids, payload: payload.to_vec(), mode, precondition: None };
    let others = vec![
        Command::Upsert { points: vec![good()], preconditions: vec![None, None] },
        Command::Delete { ids: ids(&[1, 2, 1]), precondition: None },
        Command::DeleteIf { ids: ids(&[1]), filter: vec![0xff], begun: Version::default(), last: true },
        payload(ids(&[1, 1]), b"{}", PayloadMode::Merge),
        payload(ids(&[1]), b"[]", PayloadMode::Merge),
        payload(ids(&[1]), b"7", PayloadMode::Overwrite),
        payload(ids(&[1]), b"{}", PayloadMode::DeleteKeys),
        group("a", "#", "b#1"),
        group("a", "#", "ab"),
        group("a", "", "a"),
        group("a", "##", "a##1"),
        group("a#b", "#", "a#b#1"),
    ];
    prop_oneof![2 => upsert, 2 => prop::sample::select(others)].boxed()
}

/// An entry and whether its command is valid: time that jumps and goes back, requests whose numbers meet.
pub(crate) fn entry() -> BoxedStrategy<(Envelope, bool)> {
    let now = prop_oneof![6 => 0u64..1000, 3 => 1_000u64..7_000_000, 1 => Just(u64::from(u32::MAX))];
    let request = prop::option::of((0u8..3, 0u64..5, prop_oneof![3 => Just(0), 1 => 0u64..5]))
        .prop_map(|request| request.map(|(of, seq, settled)| self::request(of, seq, settled)));
    let command = prop_oneof![
        8 => valid_write().prop_map(|command| (command, true)),
        2 => invalid_write().prop_map(|command| (command, false)),
        4 => (0u8..3, 0u64..7_000_000).prop_map(|(of, opened_at_ms)| {
            (Command::OpenSession { session: session(of), opened_at_ms }, true)
        }),
    ];
    (now, request, command)
        .prop_map(|(now_ms, request, (command, valid))| (Envelope { now_ms, request, command }, valid))
        .boxed()
}
