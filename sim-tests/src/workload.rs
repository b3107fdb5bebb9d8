//! What clients do: random writes and reads of a few points through the SDK, everything written down.
//!
//! Few points and several clients, so that operations meet. A value decides the vector and the payload that are written
//! with it, so an answer that mixes two writes shows itself at once.
use std::collections::BTreeMap;
use std::time::Duration;

use nearring_client::{Client, ErrorKind};
use nearring_proto::wire::{self, point_outcome, shard_coverage};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::history::{History, Key, Op, Outcome, Value};

/// The collection that the clients use.
pub const COLLECTION: &str = "points";
/// Components of a vector.
const DIMENSION: usize = 8;

/// How much is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Clients at once.
    pub clients: u64,
    /// Operations of each.
    pub operations: u64,
    /// Points they share.
    pub keys: u64,
    /// The longest pause between two operations of a client.
    pub pause: Duration,
    /// Shards of the collection.
    pub shards: u32,
    /// Tail size at which a segment is sealed.
    pub seal_points: u32,
}

/// The collection's settings.
pub fn collection(load: &Load) -> wire::CollectionSpec {
    let vector = wire::VectorSpec {
        dimension: DIMENSION as u32,
        metric: wire::Metric::L2 as i32,
        scalar: wire::ScalarKind::F32 as i32,
    };
    wire::CollectionSpec {
        name: COLLECTION.to_owned(),
        vectors: [(String::new(), vector)].into(),
        payload_indexes: [("value".to_owned(), wire::FieldKind::Integer as i32)].into(),
        shard_count: load.shards,
        replication_factor: 3, // the default follows from how many nodes have joined when the collection is made
        index: Some(wire::IndexSpec { seal_points: load.seal_points, ..Default::default() }),
        ..Default::default()
    }
}

/// The vector that is written with a value: whole numbers, which every precision holds exactly.
fn vector(value: Value) -> Vec<f32> {
    (0..DIMENSION as u64).map(|at| (value.wrapping_mul(2 * at + 3) % 251) as f32).collect()
}

/// The payload that is written with a value. Some are large, so that logs outgrow their budget and snapshots are taken.
fn payload(value: Value) -> Vec<u8> {
    let padding = "x".repeat(value.wrapping_mul(7919) as usize % 24_000);
    format!("{{\"padding\":\"{padding}\",\"value\":{value}}}").into_bytes()
}

fn id(key: Key) -> wire::PointId {
    wire::PointId { id: Some(wire::point_id::Id::Number(key)) }
}

/// The key and the value of what was read.
///
/// # Errors
/// Where they do not belong together.
fn decode(
    found: Option<&wire::PointId>,
    payload_json: &[u8],
    vectors: &[wire::NamedVector],
) -> Result<(Key, Value), String> {
    let Some(wire::PointId { id: Some(wire::point_id::Id::Number(key)) }) = found else {
        return Err(format!("an id nobody wrote: {found:?}"));
    };
    let text = String::from_utf8_lossy(payload_json);
    let last = text.rsplit_once("\"value\":").and_then(|(_, rest)| rest.strip_suffix('}')?.parse().ok());
    let Some(value) = last.filter(|value| payload(*value) == payload_json) else {
        let end: String = text.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
        return Err(format!("point {key} has a payload that nobody wrote, {} bytes ending in {end}", text.len()));
    };
    match vectors {
        [only] if only.values == vector(value) => Ok((*key, value)),
        other => Err(format!("point {key} has the payload of {value} and the vectors {other:?}")),
    }
}

/// Makes the collection, trying until the cluster is there and does it.
pub async fn create_collection(client: &Client, load: &Load, history: &History) {
    loop {
        match client.create_collection(collection(load)).await {
            Ok(_) => break,
            Err(error) if error.kind == ErrorKind::AlreadyExists => break,
            Err(error) => history.note(format_args!("not created yet: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    history.note(format_args!("collection created"));
}

/// Runs one client's operations.
pub async fn run(number: u64, seed: u64, client: Client, load: Load, history: History) {
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..load.operations {
        let key = rng.random_range(0..load.keys);
        match rng.random_range(0..100) {
            0..=34 => write(number, &client, key, Op::Put(history.fresh_value()), &history).await,
            35..=49 => write(number, &client, key, Op::Insert(history.fresh_value()), &history).await,
            50..=64 => write(number, &client, key, Op::Delete, &history).await,
            65..=89 => {
                read(number, &client, key, &history).await;
            }
            _ => {
                let linearizable = rng.random_bool(0.3);
                look(number, &client, &load, linearizable, rng.random_bool(0.5), &history).await;
            }
        }
        // Bursts, so that much is under way when something breaks, and pauses, so that nothing is.
        if rng.random_bool(0.4) {
            tokio::time::sleep(load.pause.mul_f64(rng.random())).await;
        }
    }
}

async fn write(number: u64, client: &Client, key: Key, op: Op, history: &History) {
    let asked = history.ask(number, key, op);
    let upsert = |value, precondition| wire::UpsertPoint {
        point: Some(wire::Point {
            id: Some(id(key)),
            vectors: vec![wire::NamedVector { name: String::new(), values: vector(value) }],
            payload_json: payload(value).into(),
        }),
        precondition,
    };
    let insert_only = wire::Precondition { kind: Some(wire::precondition::Kind::InsertOnly(true)) };
    let reply = match op {
        Op::Put(value) => client.upsert(COLLECTION, vec![upsert(value, None)]).await,
        Op::Insert(value) => client.upsert(COLLECTION, vec![upsert(value, Some(insert_only))]).await,
        Op::Delete | Op::Get => client.delete(COLLECTION, vec![id(key)]).await,
    };
    let outcome = match &reply {
        // A refused input changed nothing. Of anything else an earlier send may have taken effect.
        Err(error) if error.kind == ErrorKind::InvalidInput => Outcome::Failed,
        Err(_) => Outcome::Unknown,
        Ok(reply) if !reply.errors.is_empty() => Outcome::Unknown,
        Ok(reply) => match reply.outcomes.first().map(|outcome| outcome.kind()) {
            None => Outcome::Done,
            Some(point_outcome::Kind::NotFound) if op == Op::Delete => Outcome::Done,
            Some(point_outcome::Kind::AlreadyExists) if matches!(op, Op::Insert(_)) => Outcome::Exists,
            Some(other) => {
                history.complain(format_args!("{op:?} of {key} was answered with {other:?}"));
                Outcome::Unknown
            }
        },
    };
    if let Err(error) = reply {
        history.note(format_args!("{op:?} of {key}: {:?} {error}", error.kind));
        if error.kind == ErrorKind::InvalidInput || error.kind == ErrorKind::Internal {
            history.complain(format_args!("{op:?} of {key}: {:?} {error}", error.kind));
        }
    }
    history.answer(asked, outcome);
}

/// Reads one point linearizably; `Err` where there was no answer.
async fn read(number: u64, client: &Client, key: Key, history: &History) -> Option<Option<Value>> {
    let asked = history.ask(number, key, Op::Get);
    let request = wire::GetRequest {
        collection: COLLECTION.to_owned(),
        ids: vec![id(key)],
        with_payload: true,
        with_vectors: true,
        read: Some(wire::ReadOptions { level: wire::ReadLevel::Linearizable as i32, ..Default::default() }),
        ..Default::default()
    };
    let seen = match client.get(request).await {
        Ok(reply) => match reply.points.first() {
            None => Ok(None),
            Some(point) => decode(point.id.as_ref(), &point.payload_json, &point.vectors).and_then(|(found, value)| {
                if found == key { Ok(Some(value)) } else { Err(format!("asked for {key}, got {found}")) }
            }),
        },
        Err(error) => {
            history.note(format_args!("Get of {key}: {:?} {error}", error.kind));
            if error.kind == ErrorKind::Internal {
                history.complain(format_args!("Get of {key}: {error}"));
            }
            history.answer(asked, Outcome::Unknown);
            return None;
        }
    };
    match seen {
        Ok(seen) => {
            history.answer(asked, Outcome::Read(seen));
            Some(seen)
        }
        Err(wrong) => {
            history.complain(format_args!("{wrong}"));
            history.answer(asked, Outcome::Unknown);
            None
        }
    }
}

/// Searches for more points than there are, so that all must be found. Whether there was an answer.
async fn look(number: u64, client: &Client, load: &Load, linearizable: bool, exact: bool, history: &History) -> bool {
    let asked = history.look(number);
    let level = if linearizable { wire::ReadLevel::Linearizable } else { wire::ReadLevel::Session };
    let request = wire::SearchRequest {
        collection: COLLECTION.to_owned(),
        query: Some(wire::SearchQuery {
            vector: vector(asked),
            limit: u32::try_from(load.keys).unwrap_or(u32::MAX).saturating_add(10),
            exact,
            with_payload: true,
            with_vectors: true,
            ..Default::default()
        }),
        read: Some(wire::ReadOptions { level: level as i32, ..Default::default() }),
        ..Default::default()
    };
    let reply = match client.search(request).await {
        Ok(reply) => reply,
        Err(error) => {
            history.note(format_args!("search: {:?} {error}", error.kind));
            if error.kind == ErrorKind::Internal {
                history.complain(format_args!("search: {error}"));
            }
            return false;
        }
    };
    let shards = reply.coverage.map(|coverage| coverage.shards).unwrap_or_default();
    let complete = shards.len() == load.shards as usize
        && shards.iter().all(|shard| shard.state() == shard_coverage::State::Searched);
    let (mut found, mut last) = (BTreeMap::new(), f32::MIN);
    for hit in &reply.hits {
        match decode(hit.id.as_ref(), &hit.payload_json, &hit.vectors) {
            Err(wrong) => history.complain(format_args!("a hit: {wrong}")),
            Ok((key, value)) => {
                if found.insert(key, value).is_some() {
                    history.complain(format_args!("point {key} was found twice in one search"));
                }
            }
        }
        if hit.score < last {
            history.complain(format_args!("a hit at distance {} follows one at {last}", hit.score));
        }
        last = hit.score;
    }
    history.saw(number, asked, linearizable, complete, found);
    true
}

/// After the faults: reads every point, searches, and compares the replicas, trying until each is answered or `patience`
/// is over. What remains unanswered is a complaint: a healed cluster answers.
pub async fn judge(number: u64, client: Client, load: Load, history: History, patience: Duration) {
    let until = tokio::time::Instant::now() + patience;
    let again = async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        tokio::time::Instant::now() < until
    };
    for key in 0..load.keys {
        while read(number, &client, key, &history).await.is_none() {
            if !again().await {
                history.complain(format_args!("the healed cluster does not answer a read of {key}"));
                return;
            }
        }
    }
    for exact in [true, false] {
        while !look(number, &client, &load, true, exact, &history).await {
            if !again().await {
                history.complain(format_args!("the healed cluster does not answer a search, exact {exact}"));
                return;
            }
        }
        // An answer of a healed cluster covers everything.
        if history.looks().last().is_some_and(|look| !look.complete) {
            history.complain(format_args!("the healed cluster's search did not cover every shard"));
        }
    }
    loop {
        match client.verify_replicas(COLLECTION).await {
            Ok(reply) if reply.equal && reply.uncompared.is_empty() => {
                for digest in reply.digests {
                    let wire::ReplicaDigest { shard, node, index, digest, points, vectors, error } = digest;
                    history.note(format_args!(
                        "shard {shard} on {node} at {index}: {points} points, {digest:?} {vectors:?} {error}"
                    ));
                }
                return;
            }
            Ok(reply) if !reply.equal => {
                history.complain(format_args!("replicas differ: {:?}", reply.digests));
                return;
            }
            Ok(reply) => history.note(format_args!("not compared yet: {:?}", reply.uncompared)),
            Err(error) => history.note(format_args!("verify: {:?} {error}", error.kind)),
        }
        if !again().await {
            history.complain(format_args!("the healed cluster's replicas could not be compared"));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_was_written_together_is_recognised_and_a_mixture_is_not() {
        let named = |value| [wire::NamedVector { name: String::new(), values: vector(value) }];
        assert_eq!(decode(Some(&id(3)), &payload(7), &named(7)), Ok((3, 7)));
        assert!(decode(Some(&id(3)), &payload(7), &named(8)).unwrap_err().contains("payload of 7"));
        assert!(decode(Some(&id(3)), b"{}", &named(7)).is_err());
        assert!(decode(None, &payload(7), &named(7)).is_err());
        assert!(decode(Some(&id(3)), &payload(7), &[]).is_err());
    }
}
