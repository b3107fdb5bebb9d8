//! What clients do: writes and reads of a few points and documents through the SDK, everything written down.
//!
//! Few points and several clients, so that operations meet. Every step of every client is drawn by itself from the seed, the
//! client's number and the step's, so that leaving one out changes no other; the shrinker rests on that.
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use nearring_client::write::{DocumentText, PayloadChange};
use nearring_client::{Client, Error, ErrorKind};
use nearring_proto::WIRE_FORMAT;
use nearring_proto::ids::{PointId, ShardId};
use nearring_proto::placement::ring::HomeRing;
use nearring_proto::position::{Position, ReadLevel, ReadToken};
use nearring_proto::vector::{SparseVector, Vector};
use nearring_proto::wire::nearring_client::NearringClient;
use nearring_proto::wire::{self, WriteReply, point_outcome, shard_coverage};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::history::{At, Found, History, Kind, Look};
use crate::model::{DOCUMENTS, GROUPS, Group, Key, Op, Outcome, Seen, Value, group_of};

/// The collection that the clients use.
pub const COLLECTION: &str = "points";
/// How long a client without the SDK waits.
const BARE_WITHIN: Duration = Duration::from_secs(8);
/// Components of a point's vector.
const DIMENSION: usize = 8;
/// The named vector of documents.
const TEXT_VECTOR: &str = "text";
/// The sparse vector of points.
const WORDS: &str = "words";
/// What the first two components of a vector count in; every precision of an index holds such whole numbers.
const BASE: u64 = 512;

/// How much is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Clients at once.
    pub clients: u64,
    /// Steps of each; most are one operation, some are two.
    pub operations: u64,
    /// Points they share.
    pub keys: u64,
    /// Documents they share.
    pub documents: u64,
    /// The longest pause between two operations of a client.
    pub pause: Duration,
    /// Shards of the collection.
    pub shards: u32,
    /// Tail size at which a segment is sealed.
    pub seal_points: u32,
    /// The most bytes of a payload; some are large, so that logs outgrow their budget and snapshots are taken.
    pub payload_bytes: usize,
}

impl Load {
    /// Every point and document there may be.
    pub fn all_keys(&self) -> Vec<Key> {
        (0..self.keys).chain(DOCUMENTS..DOCUMENTS + self.documents).collect()
    }
}

/// The collection's settings.
pub fn collection(load: &Load) -> wire::CollectionSpec {
    let vector = |dimension: usize, metric: wire::Metric| wire::VectorSpec {
        dimension: dimension as u32,
        metric: metric as i32,
        scalar: wire::ScalarKind::F32 as i32,
    };
    let text = vector(256, wire::Metric::Cosine);
    wire::CollectionSpec {
        name: COLLECTION.to_owned(),
        vectors: [(String::new(), vector(DIMENSION, wire::Metric::L2)), (TEXT_VECTOR.to_owned(), text)].into(),
        // Without the modifier: what a search finds follows from the points alone, and can be judged point by point.
        sparse_vectors: [(WORDS.to_owned(), wire::SparseSpec::default())].into(),
        payload_indexes: [
            ("group", wire::FieldKind::Integer),
            ("half", wire::FieldKind::Float),
            ("kind", wire::FieldKind::Keyword),
            ("day", wire::FieldKind::Datetime),
        ]
        .map(|(path, kind)| (path.to_owned(), kind as i32))
        .into(),
        shard_count: load.shards,
        replication_factor: 3, // the default follows from how many nodes have joined when the collection is made
        routing_separator: "#".to_owned(),
        index: Some(wire::IndexSpec { seal_points: load.seal_points, ..Default::default() }),
        documents: Some(wire::DocumentSpec {
            embedder: "static256".to_owned(),
            vector: TEXT_VECTOR.to_owned(),
            text_field: "text".to_owned(),
        }),
        ..Default::default()
    }
}

/// The id of a point: a number, a text or a UUID. Of a document the text before the separator.
pub fn id_of(key: Key) -> PointId {
    match key % 3 {
        _ if key >= DOCUMENTS => PointId::Text(format!("doc{}", key - DOCUMENTS)),
        0 => PointId::Number(key),
        1 => PointId::Text(format!("point-{key}")),
        _ => PointId::from(format!("00000000-0000-4000-8000-{key:012x}").as_str()),
    }
}

/// The key whose point, or whose chunk, has this id.
fn key_of(id: &PointId) -> Option<Key> {
    let key = match id {
        PointId::Number(number) => *number,
        PointId::Uuid(uuid) => u64::try_from(uuid.as_u128() & 0xffff_ffff_ffff).ok()?,
        PointId::Text(text) => match text.split_once('#') {
            Some((document, _)) => DOCUMENTS + document.strip_prefix("doc")?.parse::<u64>().ok()?,
            None => text.strip_prefix("point-")?.parse().ok()?,
        },
    };
    (key >= DOCUMENTS || id_of(key) == *id).then_some(key)
}

/// The vector that is written with a value; the value can be read off it.
pub(crate) fn vector(value: Value) -> Vec<f32> {
    let rest = (2..DIMENSION as u64).map(|at| value.wrapping_mul(2 * at + 3) % 251);
    [value % BASE, value / BASE].into_iter().chain(rest).map(|component| component as f32).collect()
}

/// The sparse vector that is written with a value: an index that all share, one that some do, one of its own.
fn words(value: Value) -> SparseVector {
    let indices = vec![0, 1 + (value % 5) as u32, 1_000 + value as u32];
    let values = vec![1.0 + (value % 7) as f32, 0.5, 0.25];
    SparseVector::new(indices, values).unwrap_or_default()
}

/// What a point of a value has.
fn vectors(value: Value) -> Vec<wire::NamedVector> {
    let dense = wire::NamedVector { values: vector(value), ..Default::default() };
    vec![dense, (WORDS.to_owned(), Vector::from(words(value))).into()]
}

fn value_of(values: &[f32]) -> Option<Value> {
    let [low, high, ..] = values else { return None };
    let value = *low as Value + *high as Value * BASE;
    (vector(value) == values).then_some(value)
}

/// How much padding a value's payload has.
fn padding(value: Value, most: usize) -> usize {
    value.wrapping_mul(7919) as usize % most.max(1)
}

/// The payload that is written with a value.
fn payload(value: Value, most: usize) -> Vec<u8> {
    let mut payload = grouped(value);
    payload.insert("padding".to_owned(), "x".repeat(padding(value, most)).into());
    serde_json::Value::Object(payload).to_string().into_bytes()
}

/// The value, and its group said in many ways, for filters of every kind.
fn grouped(value: Value) -> serde_json::Map<String, serde_json::Value> {
    let group = group_of(value);
    let fields = [
        ("day", day(group).into()),
        ("group", group.into()),
        ("half", (group as f64 + 0.5).into()),
        ("kind", kind(group).into()),
        ("list", vec![group; group as usize + 1].into()),
        ("parts", serde_json::json!([{"n": group}, {"n": GROUPS}])),
        ("value", value.into()),
        ("words", format!("some {} here", kind(group)).into()),
    ];
    fields.map(|(key, field)| (key.to_owned(), field)).into_iter().collect()
}

fn kind(group: Group) -> String {
    format!("kind{group}")
}

fn day(group: Group) -> String {
    format!("2024-01-{:02}T12:00:00Z", group + 1)
}

/// How many chunks the document of a value has.
fn chunks_of(value: Value) -> u64 {
    1 + value % 4
}

/// The text of a document: a paragraph that fills a chunk for each.
fn document_text(value: Value) -> String {
    let paragraph = |number: u64| format!("Part {number} of text {value}. {}", "It says one more thing. ".repeat(30));
    (0..chunks_of(value)).map(paragraph).collect::<Vec<_>>().join("\n\n")
}

/// A point or a chunk as it came back.
struct Raw<'a> {
    id: Option<&'a wire::PointId>,
    payload_json: &'a [u8],
    vectors: &'a [wire::NamedVector],
    version: Option<&'a wire::Version>,
}

/// What is wrong with an answer in itself.
const DECODE: &str = "answers hold what was written together";

/// The points and documents of an answer.
///
/// # Errors
/// What does not belong together: a payload or a vector that nobody wrote; where `whole` says that all was read at one
/// moment, also chunks of different versions of a document, and a document with too few or too many chunks.
fn decode<'a>(raw: impl Iterator<Item = Raw<'a>>, load: &Load, whole: bool) -> (BTreeMap<Key, Found>, Vec<String>) {
    let (mut found, mut wrong) = (BTreeMap::new(), Vec::new());
    let mut chunks: BTreeMap<Key, Vec<(u64, Found)>> = BTreeMap::new();
    for raw in raw {
        match decode_one(&raw, load) {
            Err(reason) => wrong.push(reason),
            Ok((key, Some(chunk), one)) => chunks.entry(key).or_default().push((chunk, one)),
            Ok((key, None, one)) => {
                if found.insert(key, one).is_some() {
                    wrong.push(format!("point {key} is there twice"));
                }
            }
        }
    }
    for (key, mut chunks) in chunks {
        chunks.sort_by_key(|(number, _)| *number);
        let Some((_, first)) = chunks.first().copied() else { continue };
        if whole && chunks.iter().any(|(_, chunk)| *chunk != first) {
            wrong.push(format!("document {key} is a mixture: {chunks:?}"));
        }
        let numbers = chunks.iter().map(|(number, _)| *number);
        if whole && !numbers.clone().eq(0..chunks_of(first.seen.vector)) {
            wrong.push(format!("document {key} as of {first:?} has the chunks {:?}", numbers.collect::<Vec<_>>()));
        }
        found.insert(key, first);
    }
    (found, wrong)
}

/// Its key, the number of the chunk where it is one, and what it is.
fn decode_one(raw: &Raw<'_>, load: &Load) -> Result<(Key, Option<u64>, Found), String> {
    let id = raw.id.cloned().map(PointId::try_from);
    let Some(Ok(id)) = id else { return Err(format!("an id nobody wrote: {:?}", raw.id)) };
    let key = key_of(&id).ok_or_else(|| format!("an id nobody wrote: {id}"))?;
    let version = raw.version.map(|version| version.index).ok_or_else(|| format!("point {id} without a version"))?;
    let json: serde_json::Value = serde_json::from_slice(raw.payload_json)
        .map_err(|error| format!("point {id} has a payload that is no JSON: {error}"))?;
    let number = |field: &str| json.get(field).and_then(serde_json::Value::as_u64);
    let odd = || {
        let text: String = json.to_string().chars().take(200).collect();
        format!("point {id} has a payload that nobody wrote: {text}")
    };
    let value = number("value").ok_or_else(odd)?;
    if key >= DOCUMENTS {
        let chunk = number("chunk").ok_or_else(odd)?;
        let text = json.get("text").and_then(serde_json::Value::as_str).unwrap_or_default();
        let right = text.starts_with(&format!("Part {chunk} of text {value}."))
            && number("group") == Some(group_of(value))
            && id == PointId::Text(format!("{}#{chunk:04}", id_of(key)));
        return match (right, raw.vectors) {
            (true, [only]) if only.name == TEXT_VECTOR && only.values.len() == 256 => {
                Ok((key, Some(chunk), Found { seen: Seen::whole(value), version }))
            }
            _ => Err(odd()),
        };
    }
    let length = json.get("padding").and_then(serde_json::Value::as_str).map(str::len);
    if number("group") != Some(group_of(value)) || length != Some(padding(value, load.payload_bytes)) {
        return Err(odd());
    }
    let vector = match raw.vectors {
        [dense, _] if dense.name.is_empty() => {
            value_of(&dense.values).filter(|value| raw.vectors == vectors(*value).as_slice())
        }
        _ => None,
    };
    let vector = vector.ok_or_else(|| format!("point {id} has vectors nobody wrote: {:?}", raw.vectors))?;
    let seen = Seen { vector, payload: value, mark: number("mark").unwrap_or(0) };
    Ok((key, None, Found { seen, version }))
}

/// Makes the collection, trying until the cluster is there and does it. Its shards, in the order that homes follow.
pub async fn create_collection(client: &Client, load: &Load, history: &History) -> Vec<ShardId> {
    let info = loop {
        let made = match client.create_collection(collection(load)).await {
            Err(error) if error.kind == ErrorKind::AlreadyExists => client.describe_collection(COLLECTION).await,
            other => other,
        };
        match made {
            Ok(info) => break info,
            Err(error) => history.note(format_args!("not created yet: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    history.note(format_args!("collection created"));
    info.shards.into_iter().map(ShardId).collect()
}

/// Where keys live.
#[derive(Clone, Default)]
pub struct Homes(Vec<ShardId>);

impl Homes {
    /// The homes in a collection with these shards, in its order.
    pub fn new(shards: Vec<ShardId>) -> Self {
        Self(shards)
    }

    /// All shards.
    pub fn shards(&self) -> &[ShardId] {
        &self.0
    }

    /// The shard of a key.
    pub fn of(&self, key: Key) -> ShardId {
        let id = match id_of(key) {
            PointId::Text(document) if key >= DOCUMENTS => PointId::Text(format!("{document}#0000")),
            id => id,
        };
        HomeRing::new(&self.0).home_of(&id, "#")
    }
}

/// One client at work.
pub struct Worker {
    /// Its number.
    pub number: u64,
    /// What its steps follow from.
    pub seed: u64,
    /// Its SDK.
    pub client: Client,
    /// The router without the SDK: neither numbers nor repeats.
    pub bare: NearringClient<Channel>,
    /// How much is done.
    pub load: Load,
    /// Where keys live.
    pub homes: Rc<Homes>,
    /// Where it writes everything down.
    pub history: History,
    /// Steps that are left out.
    pub skipped: BTreeSet<u64>,
    /// Nodes of the cluster.
    pub nodes: u64,
}

/// Every value is written once.
fn value(client: u64, step: u64, item: u64) -> Value {
    1 + (client * 1_000 + step) * 8 + item
}

impl Worker {
    /// Does all steps.
    pub async fn run(&self) {
        for step in 0..self.load.operations {
            let mut rng = SmallRng::seed_from_u64(self.seed ^ (step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            if !self.skipped.contains(&step) {
                self.step(step, &mut rng).await;
            }
            // Bursts, so that much is under way when something breaks, and pauses, so that nothing is.
            if rng.random_bool(0.4) {
                tokio::time::sleep(self.load.pause.mul_f64(rng.random())).await;
            }
        }
    }

    async fn step(&self, step: u64, rng: &mut SmallRng) {
        let key = rng.random_range(0..self.load.keys);
        let document = DOCUMENTS + rng.random_range(0..self.load.documents.max(1));
        let fresh = value(self.number, step, 0);
        if let Some(group) = self.history.deleting()
            && rng.random_bool(0.5)
        {
            // Says whether the delete has come by already, and gives its next try something that it must not take.
            let again = (0..).map(|item| value(self.number, step, item)).find(|value| group_of(*value) == group);
            return self.write(&[(key, Op::Insert(again.unwrap_or(fresh)))]).await;
        }
        match rng.random_range(0..100) {
            0..=19 => self.write(&[(key, Op::Put(fresh))]).await,
            20..=25 => self.write(&[(key, Op::Insert(fresh))]).await,
            27..=34 => {
                let some = self.some_keys(rng, 2..=5);
                let op = |(item, key): (u64, Key)| match rng.random_bool(0.2) {
                    true => (key, Op::Insert(value(self.number, step, item))),
                    false => (key, Op::Put(value(self.number, step, item))),
                };
                let batch: Vec<(Key, Op)> = (0..).zip(some).map(op).collect();
                self.write(&batch).await;
            }
            35..=42 => {
                let many = if rng.random_bool(0.3) { 1..=4 } else { 1..=1 };
                let op = match rng.random_range(0..10) {
                    0..=5 => Op::Mark(fresh),
                    6..=7 => Op::Overwrite(fresh),
                    _ => Op::Unmark,
                };
                let some: Vec<(Key, Op)> = self.some_keys(rng, many).into_iter().map(|key| (key, op)).collect();
                self.write(&some).await;
            }
            43..=54 => {
                let many = if rng.random_bool(0.3) { 2..=4 } else { 1..=1 };
                let some: Vec<(Key, Op)> = self.some_keys(rng, many).into_iter().map(|key| (key, Op::Delete)).collect();
                self.write(&some).await;
            }
            55..=60 => {
                let delete = rng.random_bool(0.3);
                self.compare_and_set(key, (!delete).then_some(fresh)).await;
            }
            26 | 61 => self.delete_group(rng.random_range(0..GROUPS)).await,
            62..=67 if self.load.documents > 0 => {
                let delete = rng.random_bool(0.25);
                let op = if delete { Op::DeleteDocument } else { Op::PutDocument(fresh) };
                self.write_document(document, op).await;
            }
            62..=81 => {
                let many = if rng.random_bool(0.3) { 2..=4 } else { 1..=1 };
                let keys = self.some_keys(rng, many);
                let level = draw_level(rng, 0.6);
                drop(self.get(keys, level).await);
            }
            82..=90 => {
                let look = self.draw_search(rng);
                drop(self.search(look).await);
            }
            91..=96 => {
                let group = rng.random_bool(0.3).then(|| rng.random_range(0..GROUPS));
                let page = if rng.random_bool(0.5) { 1_000 } else { rng.random_range(1..6) };
                let _ = self.scroll(group, draw_level(rng, 0.6), page).await;
            }
            _ => {
                let group = rng.random_bool(0.5).then(|| rng.random_range(0..GROUPS));
                let _ = self.count(group, draw_level(rng, 0.6)).await;
            }
        }
    }

    fn some_keys(&self, rng: &mut SmallRng, many: std::ops::RangeInclusive<usize>) -> Vec<Key> {
        let mut all: Vec<Key> = (0..self.load.keys).collect();
        all.shuffle(rng);
        all.truncate(rng.random_range(many));
        all
    }

    fn draw_search(&self, rng: &mut SmallRng) -> SearchFor {
        let replica = if rng.random_bool(0.3) { rng.random_range(1..=self.nodes) } else { 0 };
        let wanted = SearchFor {
            // Few different questions, so that the same one meets the same state on different replicas.
            query: rng.random_range(1..4),
            exact: rng.random_bool(0.5),
            group: rng.random_bool(0.3).then(|| rng.random_range(0..GROUPS)),
            level: if replica == 0 { draw_level(rng, 0.4) } else { ReadLevel::Eventual },
            replica,
            limit: rng.random_bool(0.3).then(|| rng.random_range(1..4)),
            narrow: false,
            words: false,
        };
        if rng.random_bool(0.3) {
            return SearchFor { words: true, limit: None, ..wanted };
        }
        // A walk is asked for more candidates than it returns hits, so only few hits leave anything out. There are so few points
        // that mostly nothing is left out even so; what this asks is whether all replicas walk alike.
        SearchFor { narrow: !wanted.exact && wanted.limit.is_some_and(|limit| limit < 3), ..wanted }
    }

    /// The error of a request that must not have one, or of one whose outcome is open.
    fn failed(&self, what: std::fmt::Arguments<'_>, error: &Error) {
        self.history.note(format_args!("{what}: {:?} {error}", error.kind));
        if matches!(error.kind, ErrorKind::InvalidInput | ErrorKind::Internal | ErrorKind::NotFound) {
            self.history.complain("errors fit the request", format_args!("{what}: {:?} {error}", error.kind));
        }
    }

    /// A failed write, for all of its operations.
    fn failed_write(&self, what: std::fmt::Arguments<'_>, error: &Error) -> Outcome {
        self.failed(what, error);
        match error.kind {
            ErrorKind::InvalidInput | ErrorKind::SessionExpired => Outcome::Failed,
            // Of anything else an earlier send may have taken effect.
            _ => Outcome::Unknown,
        }
    }

    /// Writes to points, all operations of one kind of request.
    async fn write(&self, operations: &[(Key, Op)]) {
        self.write_expecting(operations, None).await;
    }

    async fn write_expecting(&self, operations: &[(Key, Op)], version: Option<wire::Version>) {
        let Some((_, first)) = operations.first().copied() else { return };
        let asked = self.history.ask(self.number, operations);
        let ids: Vec<wire::PointId> = operations.iter().map(|(key, _)| id_of(*key).into()).collect();
        let if_version = || version.map(|version| precondition(wire::precondition::Kind::IfVersion(version)));
        let bare = asked.at.is_multiple_of(4);
        let reply = match first {
            Op::Put(_) | Op::Insert(_) | Op::Swap(..) => {
                let points = operations.iter().map(|(key, op)| self.upsert(*key, *op, if_version())).collect();
                match bare {
                    false => self.client.upsert(COLLECTION, points).await,
                    true => {
                        let request = wire::UpsertRequest {
                            format: WIRE_FORMAT,
                            collection: COLLECTION.to_owned(),
                            points,
                            ..Default::default()
                        };
                        self.once(self.bare.clone().upsert(request)).await
                    }
                }
            }
            Op::Mark(mark) => {
                let payload_json = format!("{{\"mark\":{mark}}}").into_bytes();
                let change = PayloadChange { ids, payload_json, mode: wire::PayloadMode::Merge, precondition: None };
                self.client.set_payload(COLLECTION, change).await
            }
            Op::Overwrite(value) => {
                let payload_json = payload(value, self.load.payload_bytes);
                let mode = wire::PayloadMode::Overwrite;
                let change = PayloadChange { ids, payload_json, mode, precondition: None };
                self.client.set_payload(COLLECTION, change).await
            }
            Op::Unmark => {
                let payload_json = b"[\"mark\"]".to_vec();
                let mode = wire::PayloadMode::DeleteKeys;
                let change = PayloadChange { ids, payload_json, mode, precondition: None };
                self.client.set_payload(COLLECTION, change).await
            }
            Op::Delete if bare => {
                let request = wire::DeleteRequest {
                    format: WIRE_FORMAT,
                    collection: COLLECTION.to_owned(),
                    ids,
                    ..Default::default()
                };
                self.once(self.bare.clone().delete(request)).await
            }
            Op::Delete => self.client.delete(COLLECTION, ids).await,
            Op::DeleteIf(_) => self.client.delete_if(COLLECTION, ids, if_version()).await,
            Op::DeleteGroup(_) | Op::PutDocument(_) | Op::DeleteDocument | Op::Get(_) => return,
        };
        let outcomes = match reply {
            Ok(reply) => self.point_outcomes(operations, &reply),
            Err(error) => {
                let outcome = self.failed_write(format_args!("{operations:?}"), &error);
                vec![(outcome, None); operations.len()]
            }
        };
        self.history.answer(asked, &outcomes);
    }

    /// Sends once, without a number, as clients of other protocols do. What the answer names counts as seen.
    async fn once(
        &self,
        call: impl Future<Output = Result<Response<WriteReply>, Status>>,
    ) -> Result<WriteReply, Error> {
        let answer = tokio::time::timeout(BARE_WITHIN, call).await;
        let reply = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))?.into_inner();
        let token: ReadToken =
            reply.positions.iter().map(|at| Position { shard: ShardId(at.shard), index: at.index }).collect();
        self.client.observe_token(COLLECTION, &token);
        Ok(reply)
    }

    fn upsert(&self, key: Key, op: Op, if_version: Option<wire::Precondition>) -> wire::UpsertPoint {
        let (value, precondition) = match op {
            Op::Insert(value) => (value, Some(precondition(wire::precondition::Kind::InsertOnly(true)))),
            Op::Put(value) | Op::Swap(_, value) => (value, if_version),
            _ => (0, None),
        };
        wire::UpsertPoint {
            point: Some(wire::Point {
                id: Some(id_of(key).into()),
                vectors: vectors(value),
                payload_json: payload(value, self.load.payload_bytes).into(),
            }),
            precondition,
        }
    }

    /// What a reply says of every operation of its request.
    fn point_outcomes(&self, operations: &[(Key, Op)], reply: &WriteReply) -> Vec<(Outcome, Option<u64>)> {
        let positions: BTreeMap<u64, u64> = reply.positions.iter().map(|at| (at.shard, at.index)).collect();
        let mut outcomes = Vec::with_capacity(operations.len());
        for (place, (key, op)) in (0_u32..).zip(operations) {
            let shard = self.homes.of(*key).0;
            let error = reply.errors.iter().find(|error| error.positions.contains(&place));
            let refused = reply.outcomes.iter().find(|outcome| outcome.position == place);
            let outcome = match (error, refused.map(wire::PointOutcome::kind)) {
                (Some(error), _) if error.unknown_outcome => Outcome::Unknown,
                (Some(error), _) => {
                    self.history.note(format_args!("{op:?} of {key} certainly failed: {}", error.message));
                    Outcome::Failed
                }
                (None, None | Some(point_outcome::Kind::Applied)) => Outcome::Done,
                (None, Some(point_outcome::Kind::NotFound)) => Outcome::Missing,
                (None, Some(point_outcome::Kind::AlreadyExists)) => Outcome::Exists,
                (None, Some(point_outcome::Kind::VersionMismatch)) => Outcome::Mismatch,
                (None, Some(point_outcome::Kind::FilterMismatch)) => Outcome::Mismatch,
            };
            if error.is_none() && !positions.contains_key(&shard) {
                let what = format_args!("{op:?} of {key}: no position of shard {shard} in {:?}", reply.positions);
                self.history.complain("a write names the position of every shard it touched", what);
            }
            outcomes.push((outcome, positions.get(&shard).copied().filter(|_| error.is_none())));
        }
        outcomes
    }

    /// Reads a point, and replaces or deletes it if it is still that.
    async fn compare_and_set(&self, key: Key, new: Option<Value>) {
        let Some(found) = self.get(vec![key], ReadLevel::Linearizable).await else { return };
        // A point without a mark may come back as it was, with another version; the model knows no versions.
        let Some((found, version)) = found.get(&key).filter(|(found, _)| found.seen.mark != 0) else { return };
        let op = match new {
            Some(value) => Op::Swap(found.seen, value),
            None => Op::DeleteIf(found.seen),
        };
        self.write_expecting(&[(key, op)], Some(*version)).await;
    }

    /// Deletes all points of a group.
    async fn delete_group(&self, group: Group) {
        // Documents have the field, too.
        let operations: Vec<(Key, Op)> =
            self.load.all_keys().into_iter().map(|key| (key, Op::DeleteGroup(group))).collect();
        let asked = self.history.ask(self.number, &operations);
        let filter = in_group(group, asked.at);
        let outcome = match self.client.delete_by_filter(COLLECTION, filter).await {
            Err(error) => {
                let outcome = self.failed_write(format_args!("delete of group {group}"), &error);
                operations.iter().map(|_| (outcome, None)).collect()
            }
            Ok(reply) => {
                let bad: BTreeMap<u64, bool> =
                    reply.errors.iter().map(|error| (error.shard, error.unknown_outcome)).collect();
                let outcome = |(key, _): &(Key, Op)| match bad.get(&self.homes.of(*key).0) {
                    None => (Outcome::Done, None),
                    Some(true) => (Outcome::Unknown, None),
                    Some(false) => (Outcome::Failed, None),
                };
                operations.iter().map(outcome).collect::<Vec<_>>()
            }
        };
        self.history.answer(asked, &outcome);
    }

    async fn write_document(&self, key: Key, op: Op) {
        let asked = self.history.ask(self.number, &[(key, op)]);
        let id = id_of(key).to_string();
        let reply = match op {
            Op::PutDocument(value) => {
                let metadata_json = serde_json::Value::Object(grouped(value)).to_string().into_bytes();
                let text = document_text(value);
                let document = DocumentText { id, text, metadata_json, ..Default::default() };
                self.client.put_document(COLLECTION, document).await.map(|reply| {
                    if u64::from(reply.chunks) != chunks_of(value) {
                        let what = format_args!("{value} makes {} chunks", reply.chunks);
                        self.history.complain(DECODE, what);
                    }
                    (reply.positions, Vec::new())
                })
            }
            _ => self.client.delete_document(COLLECTION, &id).await.map(|reply| (reply.positions, reply.errors)),
        };
        let outcome = match reply {
            Err(error) => (self.failed_write(format_args!("{op:?} of {key}"), &error), None),
            Ok((positions, errors)) => match errors.first() {
                Some(error) if error.unknown_outcome => (Outcome::Unknown, None),
                Some(_) => (Outcome::Failed, None),
                None => {
                    let shard = self.homes.of(key).0;
                    (Outcome::Done, positions.iter().find(|at| at.shard == shard).map(|at| at.index))
                }
            },
        };
        self.history.answer(asked, &[outcome]);
    }

    /// Reads points by id; `None` where there was no answer.
    pub async fn get(&self, keys: Vec<Key>, level: ReadLevel) -> Option<BTreeMap<Key, (Found, wire::Version)>> {
        let asked = self.history.look(self.number, format_args!("gets {keys:?} {level:?}"));
        let request = wire::GetRequest {
            collection: COLLECTION.to_owned(),
            ids: keys.iter().map(|key| id_of(*key).into()).collect(),
            with_payload: true,
            with_vectors: true,
            read: Some(read(level, 0)),
            ..Default::default()
        };
        let reply = match self.client.get(request).await {
            Ok(reply) => reply,
            Err(error) => {
                self.failed(format_args!("get of {keys:?}"), &error);
                return None;
            }
        };
        let (found, wrong) = decode(reply.points.iter().map(Raw::of_record), &self.load, true);
        let mut seen = BTreeMap::new();
        for record in &reply.points {
            let key = record.id.clone().and_then(|id| key_of(&PointId::try_from(id).ok()?));
            if let Some((key, version)) = key.zip(record.version)
                && let Some(found) = found.get(&key)
            {
                seen.insert(key, (*found, version));
            }
        }
        if let Some(other) = found.keys().find(|key| !keys.contains(key)) {
            self.history.complain(DECODE, format_args!("asked for {keys:?}, got {other}"));
        }
        let shards = shards_of(&reply.positions);
        let wanted: BTreeSet<ShardId> = keys.iter().map(|key| self.homes.of(*key)).collect();
        if !wanted.iter().eq(shards.keys()) {
            let what = format_args!("get of {keys:?} names {shards:?}, wanted {wanted:?}");
            self.history.complain("an answer names the position of every shard it ran on", what);
        }
        let reads = if wrong.is_empty() { keys.clone() } else { Vec::new() };
        let look = Look { keys: Some(keys), ..self.look(Kind::Get, level, None, asked, shards, found) };
        self.note_look(look, wrong, &reads);
        Some(seen)
    }

    fn look(
        &self,
        kind: Kind,
        level: ReadLevel,
        group: Option<Group>,
        asked: u64,
        shards: BTreeMap<ShardId, At>,
        found: BTreeMap<Key, Found>,
    ) -> Look {
        Look {
            client: self.number,
            kind,
            level,
            group,
            keys: None,
            asked,
            answered: 0,
            upto: shards.iter().map(|(shard, at)| (*shard, at.index)).collect(),
            shards,
            count: found.len() as u64,
            found,
            hits: Vec::new(),
            farthest: None,
        }
    }

    fn note_look(&self, look: Look, wrong: Vec<String>, reads: &[Key]) {
        for wrong in wrong {
            self.history.complain(DECODE, format_args!("{:?} by client {}: {wrong}", look.kind, look.client));
        }
        if let Some(group) = look.group
            && let Some((key, found)) = look.found.iter().find(|(_, found)| !found.seen.is_in(group))
        {
            self.history.complain("a filter lets only matches through", format_args!("{key} {found:?}, group {group}"));
        }
        self.history.saw(look, reads);
    }

    /// Searches for some points, or for more than there are, so that all must be found; `None` where there was no answer.
    pub async fn search(&self, wanted: SearchFor) -> Option<Look> {
        let SearchFor { query, exact, words: by_words, group, level, replica, limit, narrow } = wanted;
        let (name, asked_vector) = match by_words {
            true => (WORDS, Vector::from(words(query))),
            false => ("", vector(query).into()),
        };
        let wire::NamedVector { name, values, sparse, .. } = (name.to_owned(), asked_vector).into();
        let asked = self.history.look(self.number, format_args!("searches {wanted:?}"));
        let request = wire::SearchRequest {
            collection: COLLECTION.to_owned(),
            query: Some(wire::SearchQuery {
                vector_name: name,
                vector: values,
                sparse,
                limit: limit.unwrap_or(u32::try_from(self.load.keys).unwrap_or(u32::MAX).saturating_add(10)),
                // The same question is always put the same way: how a filter is said may decide how segments are walked.
                filter: group.map(|group| in_group(group, query + 5 * group)),
                exact,
                ef: u32::from(narrow),
                with_payload: true,
                with_vectors: true,
                ..Default::default()
            }),
            read: Some(read(level, replica)),
            ..Default::default()
        };
        let reply = match self.client.search(request).await {
            Ok(reply) => reply,
            // A replica that was named may be down, or hold none of the shards.
            Err(error) if replica != 0 => {
                self.history.note(format_args!("search on {replica}: {:?} {error}", error.kind));
                return None;
            }
            Err(error) => {
                self.failed(format_args!("search"), &error);
                return None;
            }
        };
        let (found, mut wrong) = decode(reply.hits.iter().map(Raw::of_hit), &self.load, false);
        let mut hits = Vec::new();
        for hit in &reply.hits {
            let key = hit.id.clone().and_then(|id| key_of(&PointId::try_from(id).ok()?));
            if let Some(key) = key {
                hits.push((key, hit.score.to_bits()));
                let expected = found.get(&key).map(|found| match by_words {
                    true => words(query).dot(&words(found.seen.vector)).unwrap_or(f32::NAN),
                    false => distance(&vector(query), &vector(found.seen.vector)),
                });
                if expected.is_some_and(|expected| (expected - hit.score).abs() > expected.abs() * 1e-5 + 1e-5) {
                    wrong.push(format!("point {key} scores {}, it is {expected:?}", hit.score));
                }
            }
        }
        let in_order = match by_words {
            true => reply.hits.is_sorted_by(|a, b| a.score >= b.score),
            false => reply.hits.is_sorted_by(|a, b| a.score <= b.score),
        };
        if !in_order {
            wrong.push("hits are not in the order of their scores".to_owned());
        }
        let coverage = reply.coverage.map(|coverage| coverage.shards).unwrap_or_default();
        let named: BTreeSet<ShardId> = coverage.iter().map(|shard| ShardId(shard.shard)).collect();
        let all: BTreeSet<ShardId> = self.homes.shards().iter().copied().collect();
        if named != all || coverage.len() != all.len() {
            let what = format_args!("{coverage:?}, the collection has {all:?}");
            self.history.complain("coverage names every shard of the collection once", what);
        }
        let searched = coverage.iter().filter(|shard| shard.state() == shard_coverage::State::Searched);
        let shards: BTreeMap<ShardId, At> = searched
            .map(|shard| {
                let segments = shard.segments.iter().map(|hash| hash.to_vec()).collect();
                (ShardId(shard.shard), At { index: shard.index, node: shard.node, segments })
            })
            .collect();
        if let Some((shard, at)) = shards.iter().find(|(_, at)| replica != 0 && at.node != replica) {
            self.history.complain("a named replica answers", format_args!("{shard} by {at:?}, asked was {replica}"));
        }
        let homes = |key: &Key| shards.contains_key(&self.homes.of(*key));
        // With as many hits as were asked for, nothing is said of what was not found, but that it is not nearer, and of a
        // narrow walk not even that.
        let full = limit.is_some_and(|limit| reply.hits.len() >= limit as usize);
        let farthest = reply.hits.last().filter(|_| full && !narrow).map(|hit| hit.score);
        let keys: Vec<Key> = (0..self.load.keys).filter(|key| !full || found.contains_key(key)).collect();
        let reads: Vec<Key> = keys.iter().copied().filter(homes).collect();
        let reads = if wrong.is_empty() { reads } else { Vec::new() };
        let kind = match limit {
            _ if by_words => Kind::Words(query),
            None => Kind::Search(query, exact),
            Some(limit) if narrow => Kind::Walked(query, limit),
            Some(limit) => Kind::Nearest(query, limit),
        };
        let look = Look { hits, ..self.look(kind, level, group, asked, shards, found) };
        // An approximate search through a filter may miss what an exact one finds; it is judged where it is exact.
        let look = Look { keys: Some(keys), farthest, ..look };
        self.note_look(look.clone(), wrong, &reads);
        Some(look)
    }

    /// Scrolls through everything, a page at a time; `None` where a page had no answer.
    pub async fn scroll(&self, group: Option<Group>, level: ReadLevel, page: u32) -> Option<u64> {
        let asked = self.history.look(self.number, format_args!("scrolls {group:?} {level:?} by {page}"));
        let (mut records, mut after, mut pages) = (Vec::new(), None, 0);
        let (mut shards, mut upto): (BTreeMap<ShardId, At>, BTreeMap<ShardId, u64>) = Default::default();
        loop {
            let request = wire::ScrollRequest {
                collection: COLLECTION.to_owned(),
                after: after.clone(),
                limit: page,
                filter: group.map(|group| in_group(group, asked)),
                with_payload: true,
                with_vectors: true,
                read: Some(read(level, 0)),
                ..Default::default()
            };
            let reply = match self.client.scroll(request).await {
                Ok(reply) => reply,
                Err(error) => {
                    self.failed(format_args!("scroll"), &error);
                    return None;
                }
            };
            for (shard, at) in shards_of(&reply.positions) {
                let upto = upto.entry(shard).or_default();
                *upto = (*upto).max(at.index);
                let low = shards.entry(shard).or_insert_with(|| at.clone());
                low.index = low.index.min(at.index);
            }
            records.extend(reply.points);
            pages += 1;
            after = reply.next;
            if after.is_none() {
                break;
            }
            if pages > 1_000 {
                self.history.complain("a scroll ends", format_args!("{pages} pages of {page}"));
                return None;
            }
        }
        // Pages are read one after the other, so what changed between them may show in part.
        let (found, wrong) = decode(records.iter().map(Raw::of_record), &self.load, pages == 1);
        let whole = pages == 1 && wrong.is_empty();
        let reads = if whole { self.load.all_keys() } else { Vec::new() };
        let look = Look { upto, ..self.look(Kind::Scroll, level, group, asked, shards, found) };
        let count = look.count;
        self.note_look(look, wrong, &reads);
        Some(count)
    }

    /// Counts points and chunks; `None` where there was no answer.
    pub async fn count(&self, group: Option<Group>, level: ReadLevel) -> Option<u64> {
        let asked = self.history.look(self.number, format_args!("counts {group:?} {level:?}"));
        let request = wire::CountRequest {
            collection: COLLECTION.to_owned(),
            filter: group.map(|group| in_group(group, asked)),
            read: Some(read(level, 0)),
            ..Default::default()
        };
        match self.client.count(request).await {
            Ok(reply) => {
                let shards = shards_of(&reply.positions);
                let look = self.look(Kind::Count, level, group, asked, shards, BTreeMap::new());
                self.history.saw(Look { count: reply.count, ..look }, &[]);
                Some(reply.count)
            }
            Err(error) => {
                self.failed(format_args!("count"), &error);
                None
            }
        }
    }
}

/// A search.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SearchFor {
    /// The value whose vector is searched for.
    pub query: Value,
    /// Whether exactly.
    pub exact: bool,
    /// By the sparse vector in place of the dense one, without a limit.
    pub words: bool,
    /// Only in this group.
    pub group: Option<Group>,
    /// At which level.
    pub level: ReadLevel,
    /// Only on this node's replicas; 0 = any.
    pub replica: u64,
    /// So many hits; `None` = more than there are points.
    pub limit: Option<u32>,
    /// Walking graphs as narrowly as can be.
    pub narrow: bool,
}

impl SearchFor {
    /// Everything, in the order of nearness to the vector of this value, found without exactness being asked for.
    pub fn all(query: Value, level: ReadLevel) -> Self {
        Self { query, exact: false, words: false, group: None, level, replica: 0, limit: None, narrow: false }
    }
}

/// How many points and chunks a look stands for.
pub fn records_of(found: &BTreeMap<Key, Found>) -> u64 {
    let one = |(key, found): (&Key, &Found)| if *key >= DOCUMENTS { chunks_of(found.seen.vector) } else { 1 };
    found.iter().map(one).sum()
}

impl<'a> Raw<'a> {
    fn of_record(record: &'a wire::PointRecord) -> Self {
        let wire::PointRecord { id, version, payload_json, vectors } = record;
        Self { id: id.as_ref(), payload_json, vectors, version: version.as_ref() }
    }

    fn of_hit(hit: &'a wire::Hit) -> Self {
        let wire::Hit { id, version, payload_json, vectors, .. } = hit;
        Self { id: id.as_ref(), payload_json, vectors, version: version.as_ref() }
    }
}

fn draw_level(rng: &mut SmallRng, linearizable: f64) -> ReadLevel {
    match rng.random_bool(linearizable) {
        true => ReadLevel::Linearizable,
        false if rng.random_bool(0.7) => ReadLevel::Session,
        false => ReadLevel::Eventual,
    }
}

pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

fn shards_of(positions: &[wire::Position]) -> BTreeMap<ShardId, At> {
    let at = |at: &wire::Position| (ShardId(at.shard), At { index: at.index, node: 0, segments: Vec::new() });
    positions.iter().map(at).collect()
}

fn precondition(kind: wire::precondition::Kind) -> wire::Precondition {
    wire::Precondition { kind: Some(kind) }
}

/// How many ways there are to say that a point is in a group.
const WAYS: u64 = 16;

/// That a point is in the group, said in one of several ways, over indexed fields and others.
fn in_group(group: Group, way: u64) -> wire::Filter {
    use wire::filter::{AtLeast, Contains, Equals, In, InRange, Kind, List, Nested, StartsWith, WantedWords, Words};
    use wire::scalar::Value as Of;
    let scalar = |value: Of| wire::Scalar { value: Some(value) };
    let integer = |value: u64| scalar(Of::Integer(i64::try_from(value).unwrap_or(i64::MAX)));
    let text = |value: String| scalar(Of::Text(value));
    let filter = |kind: Kind| wire::Filter { kind: Some(kind) };
    let equals = |path: &str, value| filter(Kind::Equals(Equals { path: path.to_owned(), value: Some(value) }));
    let list = |filters: Vec<wire::Filter>| List { filters };
    let range = |path: &str, range| InRange { path: path.to_owned(), range: Some(range) };
    let words = |text: String, wanted: WantedWords| {
        filter(Kind::Words(Words { path: "words".to_owned(), text, wanted: wanted.into() }))
    };
    let others = || (0..GROUPS).filter(move |other| *other != group);
    let (is_group, is_kind) = (equals("group", integer(group)), equals("kind", text(kind(group))));
    match way % WAYS {
        0 => is_group,
        1 => {
            let values = vec![integer(group), integer(GROUPS + 7), text("nothing".to_owned())];
            filter(Kind::In(In { path: "group".to_owned(), values }))
        }
        2 => {
            let only = wire::Range { gte: Some(integer(group)), lte: Some(integer(group)), ..Default::default() };
            filter(Kind::Range(range("group", only)))
        }
        3 => {
            let other = filter(Kind::Any(list(others().map(|other| equals("group", integer(other))).collect())));
            let not = filter(Kind::Negated(Box::new(other)));
            filter(Kind::All(list(vec![filter(Kind::Exists("group".to_owned())), not])))
        }
        4 => is_kind,
        5 => {
            let bound = |value: u64| Some(scalar(Of::Number(value as f64)));
            let open = wire::Range { gt: bound(group), lt: bound(group + 1), ..Default::default() };
            filter(Kind::Range(range("half", open)))
        }
        6 => {
            let only = wire::Range { gte: Some(text(day(group))), lte: Some(text(day(group))), ..Default::default() };
            filter(Kind::Range(range("day", only)))
        }
        7 => {
            let filters = vec![is_group, is_kind, equals("kind", text("none".to_owned()))];
            filter(Kind::AtLeast(AtLeast { count: 2, filters }))
        }
        8 => {
            let values = others().map(|other| text(kind(other))).collect();
            filter(Kind::NotIn(In { path: "kind".to_owned(), values }))
        }
        9 => filter(Kind::Contains(Contains { path: "words".to_owned(), text: kind(group) })),
        10 => {
            let inner = Some(Box::new(equals("n", integer(group))));
            filter(Kind::Nested(Box::new(Nested { path: "parts".to_owned(), filter: inner })))
        }
        11 => filter(Kind::StartsWith(StartsWith { path: "kind".to_owned(), text: kind(group) })),
        12 => words(format!("here {}", kind(group).to_uppercase()), WantedWords::All),
        13 => words(format!("nowhere {}", kind(group)), WantedWords::Any),
        14 => words(format!("Some {}", kind(group)), WantedWords::Phrase),
        _ => {
            let count = Some(integer(group + 1));
            filter(Kind::ValuesCount(range(
                "list",
                wire::Range { gte: count.clone(), lte: count, ..Default::default() },
            )))
        }
    }
}

fn read(level: ReadLevel, replica_node: u64) -> wire::ReadOptions {
    wire::ReadOptions { level: wire::ReadLevel::from(level) as i32, replica_node, ..Default::default() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const LOAD: Load = Load {
        clients: 1,
        operations: 1,
        keys: 9,
        documents: 2,
        pause: Duration::ZERO,
        shards: 2,
        seal_points: 16,
        payload_bytes: 1_000,
    };

    fn record(key: Key, vector_of: Value, payload_json: Vec<u8>) -> wire::PointRecord {
        wire::PointRecord {
            id: Some(id_of(key).into()),
            version: Some(wire::Version { epoch: 1, index: 7 }),
            payload_json: payload_json.into(),
            vectors: vectors(vector_of),
        }
    }

    #[test]
    fn ids_and_vectors_name_what_was_written() {
        for key in LOAD.all_keys() {
            let id = match id_of(key) {
                PointId::Text(document) if key >= DOCUMENTS => PointId::Text(format!("{document}#0003")),
                id => id,
            };
            assert_eq!(key_of(&id), Some(key));
        }
        for value in (1..100_000).step_by(37) {
            assert_eq!(value_of(&vector(value)), Some(value));
        }
        assert_eq!(value_of(&[1.0; 8]), None);
        assert!((1..100_000).all(|value| words(value).dot(&words(value + 1)).is_some()), "all share an index");
    }

    #[test]
    fn what_was_written_together_is_recognised_and_a_mixture_is_not() {
        let decode = |record: wire::PointRecord| decode_one(&Raw::of_record(&record), &LOAD);
        let (_, _, found) = decode(record(4, 7, payload(7, 1_000))).unwrap();
        assert_eq!(found, Found { seen: Seen::whole(7), version: 7 });
        let (_, _, found) = decode(record(4, 7, payload(8, 1_000))).unwrap();
        assert_eq!(found.seen, Seen { vector: 7, payload: 8, mark: 0 }, "for the judges to explain");
        let mut mixed = record(4, 7, payload(7, 1_000));
        mixed.vectors[1] = vectors(8).remove(1);
        assert!(decode(mixed).is_err(), "one vector of another write");
        assert!(decode(record(4, 7, b"{}".to_vec())).is_err());
        assert!(decode(record(4, 7, br#"{"value":7,"group":1,"padding":""}"#.to_vec())).is_err());
    }

    #[test]
    fn values_are_unique() {
        let mut all = BTreeSet::new();
        for client in 0..4 {
            for step in 0..1_000 {
                (0..8).for_each(|item| assert!(all.insert(value(client, step, item))));
            }
        }
        assert!(all.iter().all(|value| value_of(&vector(*value)) == Some(*value)));
    }
}
