//! What a shard logs and keeps: commands, replies, records, sessions, meta.
use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use nearring_node::index::ShardIndex;
use nearring_node::machine::command::{Command, Envelope, PointWrite, Refusal, Reply, decode_reply, encode_reply};
use nearring_node::machine::record::Record;
use nearring_node::machine::session::Session;
use nearring_node::machine::{Applied, Facts, Machine, MachineMeta};
use nearring_node::store::digest::digest_of;
use nearring_proto::collection::{CollectionSpec, FieldKind, IndexSpec, Modifier, MultiSpec, SparseSpec, VectorSpec};
use nearring_proto::filter::Filter;
use nearring_proto::ids::{PointId, ReplicaId, RequestId, SessionId, Version};
use nearring_proto::payload;
use nearring_proto::vector::{Metric, MultiVector, ScalarKind, SparseVector, Vector};
use nearring_proto::write::{Outcome, PayloadMode, Precondition};

use super::messages::log_id;
use super::{choice, chosen, done};

/// Dense vectors "" and "title", sparse "words", multi-vectors "tokens"; groups by `#`.
pub(super) fn spec() -> CollectionSpec {
    let vector = |metric| VectorSpec { dimension: 2, metric, scalar: ScalarKind::F32 };
    CollectionSpec {
        name: "c".to_owned(),
        vectors: BTreeMap::from([(String::new(), vector(Metric::Cosine)), ("title".to_owned(), vector(Metric::L2))]),
        payload_indexes: BTreeMap::from([("n".to_owned(), FieldKind::Integer), ("t".to_owned(), FieldKind::Keyword)]),
        shard_count: 1,
        replication_factor: 1,
        routing_separator: "#".to_owned(),
        index: IndexSpec::default(),
        documents: None,
        sparse_vectors: BTreeMap::from([("words".to_owned(), SparseSpec { modifier: Modifier::Idf })]),
        multi_vectors: BTreeMap::from([("tokens".to_owned(), MultiSpec { dimension: 2, metric: Metric::Dot })]),
    }
}

pub(super) fn session() -> SessionId {
    SessionId(uuid::Uuid::from_u128(9))
}

/// A shard without files: what its machine says, its records, and its index.
struct Shard {
    machine: Machine,
    records: Records,
    index: ShardIndex,
    next: u64,
}

#[derive(Default)]
struct Records(BTreeMap<PointId, Record>);

impl Facts for Records {
    type Error = Infallible;

    fn record(&self, id: &PointId) -> Result<Option<Record>, Infallible> {
        Ok(self.0.get(id).cloned())
    }

    fn group(&self, routing_key: &str, separator: &str) -> Result<Vec<(PointId, Record)>, Infallible> {
        let prefix = format!("{routing_key}{separator}");
        let member =
            |id: &PointId| matches!(id, PointId::Text(text) if text == routing_key || text.starts_with(&prefix));
        Ok(self.0.iter().filter(|(id, _)| member(id)).map(|(id, record)| (id.clone(), record.clone())).collect())
    }
}

impl Shard {
    /// Configured, with a session and a few points.
    fn new() -> Self {
        let (machine, records, index) = (Machine::default(), Records::default(), ShardIndex::new());
        let mut shard = Self { machine, records, index, next: 1 };
        beginning().iter().for_each(|envelope| drop(shard.apply(envelope)));
        shard
    }

    /// Applies an entry and checks that machine, records and index tell the same.
    fn apply(&mut self, envelope: &Envelope) -> Applied {
        let Ok(applied) = self.machine.apply(&self.records, log_id(3, self.next), envelope);
        self.next += 1;
        for (id, record) in &applied.records {
            match record {
                Some(record) => self.records.0.insert(id.clone(), record.clone()),
                None => self.records.0.remove(id),
            };
        }
        for change in &applied.changes {
            self.index.apply(change.clone());
        }
        let meta = &self.machine.meta;
        assert_eq!(meta.points, self.records.0.len() as u64);
        let digest = self.records.0.iter().fold(0_u128, |sum, (id, record)| sum.wrapping_add(digest_of(id, record)));
        assert_eq!(meta.digest, digest);
        if meta.spec.is_some() {
            assert_eq!(self.index.points(), meta.points);
        }
        for (id, record) in &self.records.0 {
            assert_eq!(done(Record::decode(&Bytes::from(record.encode()))), *record);
            assert!(payload::parse(&record.payload).is_ok(), "a payload that is none was stored");
            for name in record.vectors.keys() {
                assert!(self.index.vector(id, name).is_some(), "{id} has a vector {name:?} that the index lacks");
            }
        }
        let everything = Filter::All(Vec::new());
        let payload = |id: &PointId| payload::parse(&self.records.0.get(id)?.payload).ok();
        let found = self.index.matching(&everything, None, usize::MAX, &payload);
        assert!(found.iter().eq(self.records.0.keys()), "the index has other points");
        assert_eq!(done(decode_reply(&encode_reply(&applied.reply, true))), (applied.reply.clone(), true));
        assert_eq!(done(Machine::decode(&self.machine.encode())), self.machine);
        applied
    }
}

fn plain(command: Command) -> Envelope {
    Envelope { now_ms: 1_000, request: None, command }
}

pub(super) fn others() -> Vec<(String, Vector)> {
    let words = done(SparseVector::new(vec![2, 9], vec![0.5, 1.0]));
    let tokens = done(MultiVector::new(2, vec![1.0, 0.0, 0.5, 2.0]));
    vec![("words".to_owned(), words.into()), ("tokens".to_owned(), tokens.into())]
}

fn point(id: &str, payload: &str) -> PointWrite {
    let vectors = vec![(String::new(), vec![0.6, 0.8]), ("title".to_owned(), vec![1.0, 2.0])];
    PointWrite { id: PointId::parse(id), vectors, payload: payload.as_bytes().to_vec(), others: others() }
}

fn beginning() -> Vec<Envelope> {
    let points = vec![point("a#1", r#"{"n":1}"#), point("a#2", r#"{"n":2,"t":"x"}"#), point("7", "")];
    vec![
        plain(Command::Configure { spec: spec(), home_epoch: 1 }),
        plain(Command::OpenSession { session: session(), opened_at_ms: 900 }),
        plain(Command::Upsert { points, preconditions: Vec::new() }),
    ]
}

/// A command in the log, or the answer to one. A command that decodes can be applied, twice, without machine, records and
/// index parting.
pub fn commands(data: &[u8]) -> bool {
    let (which, bytes) = choice(data);
    if which % 2 == 1 {
        let Ok((reply, repeated)) = decode_reply(bytes) else { return false };
        assert_eq!(done(decode_reply(&encode_reply(&reply, repeated))), (reply, repeated));
        return true;
    }
    let Ok(envelope) = Envelope::decode(bytes) else { return false };
    let once = envelope.encode();
    assert_eq!(once, done(Envelope::decode(&once)).encode(), "not the same after a second reading");
    let mut shard = Shard::new();
    let first = shard.apply(&envelope);
    let second = shard.apply(&envelope);
    if second.repeated {
        assert!(first.reply == second.reply && second.records.is_empty() && second.changes.is_empty());
    }
    true
}

pub(super) fn command_seeds() -> Vec<Vec<u8>> {
    let ids = || vec![PointId::parse("a#1"), PointId::parse("8")];
    let version = Version { epoch: 1, index: 3 };
    let filter = serde_json::from_str::<Filter>(r#"{"range":{"path":"n","gte":2}}"#);
    let filter = nearring_proto::convert::encode_filter(&done(filter));
    let hash = [7; 32];
    let commands = vec![
        Command::Upsert {
            points: vec![point("a#1", r#"{"n":3}"#), point("8", "{}")],
            preconditions: vec![Some(Precondition::IfVersion(version)), Some(Precondition::InsertOnly)],
        },
        Command::SetPayload {
            ids: ids(),
            payload: br#"{"t":"y"}"#.to_vec(),
            mode: PayloadMode::Merge,
            precondition: None,
        },
        Command::SetPayload {
            ids: ids(),
            payload: br#"["n"]"#.to_vec(),
            mode: PayloadMode::DeleteKeys,
            precondition: Some(Precondition::IfVersion(version)),
        },
        Command::Delete { ids: ids(), precondition: None },
        Command::BeginDelete,
        Command::DeleteIf { ids: ids(), filter, begun: version, last: false },
        Command::ReplaceGroup {
            routing_key: "a".to_owned(),
            separator: "#".to_owned(),
            points: vec![point("a#2", r#"{"n":2}"#), point("a#9", "")],
        },
        Command::OpenSession { session: session(), opened_at_ms: 999 },
        Command::Seal { vector: String::new(), sources: Vec::new(), builder: ReplicaId::from(1) },
        Command::Install { segment: 4, hash, members: 3, bytes: 999 },
        Command::AbandonSeal { segment: 4 },
        Command::Configure { spec: CollectionSpec { name: "d".to_owned(), ..spec() }, home_epoch: 2 },
    ];
    let replies = [
        Reply::Written { applied: 2, removed: 1, outcomes: vec![(1, Outcome::AlreadyExists(version))], version },
        Reply::Session { ttl_ms: 3_600_000 },
        Reply::Done,
        Reply::Begun { at: version, removed: 3 },
        Reply::Refused(Refusal::Invalid { field: "points".to_owned(), reason: "no".to_owned() }),
        Reply::Refused(Refusal::Settled { seq: 3 }),
    ];
    let request = Some(RequestId { session: session(), seq: 2, settled_below: 1 });
    let entry = |command| Envelope { now_ms: 2_000, request, command }.encode();
    let commands = commands.into_iter().map(|command| chosen(0, &entry(command)));
    commands.chain(replies.iter().map(|reply| chosen(1, &encode_reply(reply, false)))).collect()
}

/// The values of a shard's store: a record, a session, meta, a whole machine, a key.
pub fn shard_state(data: &[u8]) -> bool {
    let (which, bytes) = choice(data);
    match which % 5 {
        0 => {
            let Ok(record) = Record::decode(&Bytes::copy_from_slice(bytes)) else { return false };
            assert_eq!(record.encode(), bytes, "a record has two byte forms");
        }
        1 => {
            let Ok(session) = Session::decode(bytes) else { return false };
            assert_eq!(done(Session::decode(&session.encode())), session);
        }
        2 => {
            let Ok(meta) = MachineMeta::decode(bytes) else { return false };
            assert_eq!(done(MachineMeta::decode(&meta.encode())), meta);
        }
        3 => {
            let Ok(machine) = Machine::decode(bytes) else { return false };
            assert_eq!(done(Machine::decode(&machine.encode())), machine);
        }
        _ => {
            let Some(id) = PointId::from_key(bytes) else { return false };
            assert_eq!(id.to_key(), bytes, "an id has two keys");
        }
    }
    true
}

/// A machine with everything in it that one can hold.
pub(super) fn machine() -> (Machine, BTreeMap<PointId, Record>) {
    let mut shard = Shard::new();
    let request = Some(RequestId { session: session(), seq: 1, settled_below: 0 });
    let seal = |builder| Command::Seal { vector: String::new(), sources: Vec::new(), builder };
    for command in [
        Command::Upsert { points: vec![point("9", r#"{"t":["x",null]}"#)], preconditions: vec![None] },
        seal(ReplicaId::from(1)),
        Command::Install { segment: 5, hash: [5; 32], members: 4, bytes: 1_000 },
        seal(ReplicaId::from(2)),
    ] {
        shard.apply(&Envelope { now_ms: 1_500, request: request.filter(|_| shard.next == 4), command });
    }
    shard.machine.apply_membership(log_id(3, shard.next), super::messages::membership());
    (shard.machine, shard.records.0)
}

pub(super) fn state_seeds() -> Vec<Vec<u8>> {
    let (machine, records) = machine();
    let mut seeds: Vec<Vec<u8>> = records.values().map(|record| chosen(0, &record.encode())).collect();
    seeds.extend(machine.sessions.iter().map(|(_, session)| chosen(1, &session.encode())));
    seeds.push(chosen(2, &machine.meta.encode()));
    seeds.push(chosen(3, &machine.encode()));
    seeds.extend(records.keys().map(|id| chosen(4, &id.to_key())));
    seeds
}
