//! Clients of the soak: each writes and reads keys and documents of its own through the SDK, one operation after the other,
//! and knows what it must find.
//!
//! Keys are few and written again and again, so that deleted ones come back and segments fill with dead members. A client's
//! own points are told apart by their payload's `owner`; a filter on it makes counts, scrolls and exact searches judgeable
//! while the others write.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use nearring_client::wire::{point_outcome::Kind as Outcome, precondition::Kind as Precondition, shard_coverage};
use nearring_client::write::{DocumentText, PayloadChange};
use nearring_client::{Client, Error, ErrorKind, wire};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::model::{Model, State};
use super::points::{Condition, Contents, KEYS_PER_CLIENT, decode, point, vector, wire_id};

/// The collection of points.
pub const POINTS: &str = "soak";
/// The collection of documents.
pub const DOCUMENTS: &str = "soak-documents";
/// How long one send of a client may take; a write that got no answer is over then on the servers too.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Documents of one client.
const DOCUMENTS_EACH: u64 = 6;

/// A plain lock: what it guards is whole after any panic, and none is held across an await.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all tasks see.
#[derive(Debug)]
pub struct Shared {
    /// When the run began.
    pub start: Instant,
    /// Clients end.
    pub stop: AtomicBool,
    /// An operation holds it for reading; whoever holds it for writing knows that none is under way.
    pub gate: tokio::sync::RwLock<()>,
    /// What must not have happened, with the second at which it was seen.
    pub violations: Mutex<Vec<String>>,
    /// When which shard acknowledged a write.
    pub acknowledgements: Mutex<Vec<(Instant, u64)>>,
    /// Operations by kind: answered, and not.
    pub counts: Mutex<BTreeMap<&'static str, (u64, u64)>>,
    /// Errors that clients saw, by kind, with the last one's words.
    pub errors: Mutex<BTreeMap<String, (u64, String)>>,
}

impl Shared {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            gate: tokio::sync::RwLock::default(),
            violations: Mutex::default(),
            acknowledgements: Mutex::default(),
            counts: Mutex::default(),
            errors: Mutex::default(),
        }
    }

    /// Notes what must not have happened.
    pub fn violation(&self, what: impl std::fmt::Display) {
        let line = format!("{:.1} s: {what}", self.start.elapsed().as_secs_f64());
        eprintln!("VIOLATION {line}");
        lock(&self.violations).push(line);
    }

    fn count(&self, kind: &'static str, answered: bool) {
        let mut counts = lock(&self.counts);
        let (yes, no) = counts.entry(kind).or_default();
        if answered { *yes += 1 } else { *no += 1 }
    }

    /// Notes an error; one that no fault explains is a violation.
    fn error(&self, kind: &'static str, error: &Error) {
        self.count(kind, false);
        let mut errors = lock(&self.errors);
        let entry = errors.entry(format!("{:?}", error.kind)).or_default();
        entry.0 += 1;
        entry.1.clone_from(&error.message);
        drop(errors);
        let explained =
            error.kind.is_transient() || matches!(error.kind, ErrorKind::UnknownOutcome | ErrorKind::SessionExpired);
        if !explained {
            self.violation(format_args!("{kind} was answered with {:?}: {error}", error.kind));
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

/// What a client knows of a document: revision and number of chunks (0 = unknown) of every state allowed; `None` = not there.
pub type DocumentStates = BTreeMap<String, Vec<Option<(u64, usize)>>>;

/// What one client has written; shared with whoever judges when nothing is under way.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Points.
    pub points: Arc<Mutex<Model>>,
    /// Documents.
    pub documents: Arc<Mutex<DocumentStates>>,
}

/// One client.
pub struct Worker {
    /// Its number.
    pub number: u64,
    /// How it reaches the router.
    pub client: Client,
    /// What all see.
    pub shared: Arc<Shared>,
    /// What it wrote.
    pub written: Written,
    /// Keys it uses.
    pub keys: u64,
    /// The longest pause between two operations.
    pub pause: Duration,
    /// Follows from the run's seed and the number.
    pub random: SmallRng,
}

impl Worker {
    /// A client with nothing written yet.
    pub fn new(number: u64, seed: u64, client: Client, shared: Arc<Shared>, keys: u64, pause: Duration) -> Self {
        let random = SmallRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number));
        Self { number, client, shared, written: Written::default(), keys, pause, random }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self) {
        // Values are never used twice.
        let mut value = self.number * KEYS_PER_CLIENT;
        while !self.shared.stop.load(Ordering::SeqCst) {
            let shared = self.shared.clone();
            let open = shared.gate.read().await;
            match self.random.random_range(0..100) {
                0..30 => self.upsert(&mut value).await,
                30..37 => self.insert(&mut value).await,
                37..47 => self.delete().await,
                47..56 => self.mark(&mut value).await,
                56..60 => self.replace_if(&mut value).await,
                60 => self.delete_matching().await,
                61..76 => self.get().await,
                76..85 => self.search(true).await,
                85..90 => self.search(false).await,
                90..93 => self.count().await,
                93..95 => self.scroll().await,
                95..98 => self.put_document(&mut value).await,
                98 => self.delete_document().await,
                _ => self.read_document().await,
            }
            drop(open);
            tokio::time::sleep(self.pause.mul_f64(self.random.random())).await;
        }
    }

    fn key(&mut self) -> u64 {
        self.number * KEYS_PER_CLIENT + self.random.random_range(0..self.keys)
    }

    /// Keys that may be written, none twice.
    fn usable(&mut self, most: usize) -> Vec<u64> {
        let count = self.random.random_range(1..=most);
        let mut keys: Vec<u64> = (0..count).map(|_| self.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        let model = lock(&self.written.points);
        keys.retain(|key| model.certain(*key).is_some());
        keys
    }

    fn certain(&self, key: u64) -> State {
        lock(&self.written.points).certain(key).flatten()
    }

    /// Takes in the answer to a write of several keys: what each is meant to be afterwards, and how a shard that did not
    /// fail must answer for it (`None`: applied).
    fn take_in(
        &self,
        kind: &'static str,
        reply: Result<wire::WriteReply, Error>,
        planned: &[(u64, State, Option<Outcome>)],
    ) {
        let mut model = lock(&self.written.points);
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                planned.iter().for_each(|(key, state, _)| model.unknown(*key, *state));
                drop(model);
                return self.shared.error(kind, &error);
            }
        };
        self.shared.count(kind, reply.errors.is_empty());
        let failed: Vec<u32> = reply.errors.iter().flat_map(|error| error.positions.iter().copied()).collect();
        let outcomes: BTreeMap<u32, Outcome> =
            reply.outcomes.iter().map(|outcome| (outcome.position, outcome.kind())).collect();
        for (position, (key, state, expected)) in (0..).zip(planned) {
            if failed.contains(&position) {
                // Even where a shard says that nothing happened, an earlier send may have.
                model.unknown(*key, *state);
                continue;
            }
            let outcome = outcomes.get(&position).copied();
            // A delete of what is not there is both: nothing to do, and done.
            let fits = outcome == *expected || (kind == "delete" && outcome.is_none());
            if !fits {
                let before = model.certain(*key);
                let text = format!("{kind} of key {key}, which was {before:?}, was answered with {outcome:?}");
                self.shared.violation(text);
            }
            if outcome.is_none() || outcome == Some(Outcome::NotFound) {
                model.acknowledged(*key, *state);
            }
        }
        let now = Instant::now();
        lock(&self.shared.acknowledgements).extend(reply.positions.iter().map(|position| (now, position.shard)));
    }

    async fn upsert(&mut self, value: &mut u64) {
        let keys = self.usable(8);
        let mut planned = Vec::new();
        let mut points = Vec::new();
        for key in keys {
            *value += 1;
            planned.push((key, Some(Contents { value: *value, mark: None }), None));
            points.push(point(key, *value, None));
        }
        if !points.is_empty() {
            let reply = self.client.upsert(POINTS, points).await;
            self.take_in("upsert", reply, &planned);
        }
    }

    async fn insert(&mut self, value: &mut u64) {
        let Some(key) = self.usable(1).pop() else { return };
        *value += 1;
        let before = self.certain(key);
        let new = Some(Contents { value: *value, mark: None });
        let expected = before.map(|_| Outcome::AlreadyExists);
        let reply = self.client.upsert(POINTS, vec![point(key, *value, Some(Precondition::InsertOnly(true)))]).await;
        self.take_in("insert", reply, &[(key, before.or(new), expected)]);
    }

    async fn delete(&mut self) {
        let keys = self.usable(6);
        if keys.is_empty() {
            return;
        }
        let planned: Vec<_> =
            keys.iter().map(|key| (*key, None, self.certain(*key).is_none().then_some(Outcome::NotFound))).collect();
        let reply = self.client.delete(POINTS, keys.into_iter().map(wire_id).collect()).await;
        self.take_in("delete", reply, &planned);
    }

    async fn mark(&mut self, value: &mut u64) {
        let keys = self.usable(4);
        if keys.is_empty() {
            return;
        }
        *value += 1;
        let mark = self.random.random_bool(0.7).then_some(*value);
        let planned: Vec<_> = keys
            .iter()
            .map(|key| match self.certain(*key) {
                Some(contents) => (*key, Some(Contents { mark, ..contents }), None),
                None => (*key, None, Some(Outcome::NotFound)),
            })
            .collect();
        let (payload_json, mode) = match mark {
            Some(mark) => (format!("{{\"mark\":{mark}}}"), wire::PayloadMode::Merge),
            None => ("[\"mark\"]".to_owned(), wire::PayloadMode::DeleteKeys),
        };
        let change = PayloadChange {
            ids: keys.into_iter().map(wire_id).collect(),
            payload_json: payload_json.into_bytes(),
            mode,
            precondition: None,
        };
        let reply = self.client.set_payload(POINTS, change).await;
        self.take_in("set payload", reply, &planned);
    }

    /// Reads a version and replaces exactly that one; then once more with the version that is gone.
    async fn replace_if(&mut self, value: &mut u64) {
        let Some(key) = self.usable(1).pop() else { return };
        let Some(before) = self.certain(key) else { return };
        let found = match self.client.get(get(vec![key], wire::ReadLevel::Linearizable, 0)).await {
            Ok(reply) => reply.points.into_iter().next(),
            Err(error) => return self.shared.error("get", &error),
        };
        let Some(version) = found.and_then(|point| point.version) else {
            return self.shared.violation(format_args!("key {key} is missing, it is {before:?}"));
        };
        for expected in [None, Some(Outcome::VersionMismatch)] {
            if lock(&self.written.points).certain(key).is_none() {
                return;
            }
            *value += 1;
            let new = Contents { value: *value, mark: None };
            let after = if expected.is_none() { Some(new) } else { self.certain(key) };
            let points = vec![point(key, *value, Some(Precondition::IfVersion(version)))];
            let reply = self.client.upsert(POINTS, points).await;
            self.take_in("replace if version", reply, &[(key, after, expected)]);
        }
    }

    async fn delete_matching(&mut self) {
        let condition = Condition::Both(
            Box::new(Condition::Group(self.random.random_range(0..10))),
            Box::new(Condition::draw(&mut self.random, 0)),
        );
        let reply = self.client.delete_by_filter(POINTS, condition.filter(Some(self.number))).await;
        let mut model = lock(&self.written.points);
        let keys: Vec<u64> = model.keys().collect();
        let complete = reply.as_ref().is_ok_and(|reply| reply.errors.is_empty());
        for key in keys {
            match model.certain(key) {
                Some(Some(contents)) if condition.holds(contents) => match complete {
                    true => model.acknowledged(key, None),
                    false => model.unknown(key, None),
                },
                Some(_) => {}
                None => model.unknown(key, None),
            }
        }
        drop(model);
        match reply {
            Ok(reply) => {
                self.shared.count("delete by filter", reply.errors.is_empty());
                let now = Instant::now();
                lock(&self.shared.acknowledgements).extend(reply.positions.iter().map(|at| (now, at.shard)));
            }
            Err(error) => self.shared.error("delete by filter", &error),
        }
    }

    async fn get(&mut self) {
        let linearizable = self.random.random_bool(0.5);
        let (level, kind) = match linearizable {
            true => (wire::ReadLevel::Linearizable, "get, linearizable"),
            false => (wire::ReadLevel::Session, "get, session"),
        };
        let mut keys: Vec<u64> = (0..20).map(|_| self.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        match self.client.get(get(keys.clone(), level, 0)).await {
            Err(error) => self.shared.error(kind, &error),
            Ok(reply) => {
                self.shared.count(kind, true);
                let found = self.decoded(
                    reply.points.iter().map(|point| decode(point.id.as_ref(), &point.payload_json, &point.vectors)),
                );
                let model = lock(&self.written.points);
                for wrong in keys.iter().filter_map(|key| model.check(*key, found.get(key).copied())) {
                    self.shared.violation(format_args!("{kind}: {wrong}"));
                }
            }
        }
    }

    fn decoded(&self, points: impl Iterator<Item = Result<(u64, Contents), String>>) -> BTreeMap<u64, Contents> {
        let sound = points.filter_map(|point| point.map_err(|wrong| self.shared.violation(wrong)).ok());
        sound.collect()
    }

    /// A search for own points, exact or by the graphs, filtered beyond that or not.
    async fn search(&mut self, exact: bool) {
        let kind = if exact { "search, exact" } else { "search, by graph" };
        let condition =
            if self.random.random_bool(0.3) { Condition::Any } else { Condition::draw(&mut self.random, 2) };
        let limit = self.random.random_range(1..=30);
        let query = vector(self.random.random());
        let request = search(&query, limit, condition.filter(Some(self.number)), exact, wire::ReadLevel::Session, 0);
        match self.client.search(request).await {
            Err(error) => self.shared.error(kind, &error),
            Ok(reply) => {
                self.shared.count(kind, true);
                let hits = self.hits(&reply);
                if covers_all(&reply) {
                    let model = lock(&self.written.points);
                    for wrong in model.check_hits(&query, limit as usize, &condition, &hits, exact) {
                        self.shared.violation(format_args!("{kind}: {wrong}"));
                    }
                }
            }
        }
    }

    fn hits(&self, reply: &wire::SearchReply) -> Vec<(u64, Contents, f32)> {
        let (hits, wrong) = decode_hits(reply);
        wrong.into_iter().for_each(|wrong| self.shared.violation(wrong));
        hits
    }

    async fn count(&mut self) {
        let condition = Condition::draw(&mut self.random, 2);
        let request = count(condition.filter(Some(self.number)), wire::ReadLevel::Session, 0);
        match self.client.count(request).await {
            Err(error) => self.shared.error("count", &error),
            Ok(reply) => {
                self.shared.count("count", true);
                if let Some(wrong) = lock(&self.written.points).check_count(&condition, reply.count) {
                    self.shared.violation(format_args!("count: {wrong}"));
                }
            }
        }
    }

    async fn scroll(&mut self) {
        let condition = Condition::draw(&mut self.random, 1);
        let request = scroll(POINTS, condition.filter(Some(self.number)), wire::ReadLevel::Session, 0);
        match self.client.scroll_all(request).try_collect::<Vec<_>>().await {
            Err(error) => self.shared.error("scroll", &error),
            Ok(points) => {
                self.shared.count("scroll", true);
                let all = points.len();
                let found = self
                    .decoded(points.iter().map(|point| decode(point.id.as_ref(), &point.payload_json, &point.vectors)));
                if found.len() != all {
                    self.shared.violation("scroll: a point came twice");
                }
                for wrong in lock(&self.written.points).check_matches(&condition, &found) {
                    self.shared.violation(format_args!("scroll: {wrong}"));
                }
            }
        }
    }

    /// A document whose states are certain, and the state.
    fn document(&mut self) -> Option<String> {
        let name = format!("document-{}-{}", self.number, self.random.random_range(0..DOCUMENTS_EACH));
        let certain = lock(&self.written.documents).get(&name).is_none_or(|states| states.len() == 1);
        certain.then_some(name)
    }

    async fn put_document(&mut self, value: &mut u64) {
        let Some(name) = self.document() else { return };
        *value += 1;
        let sentences = self.random.random_range(5..120);
        let text: String = (0..sentences)
            .map(|at| format!("In revision {value} sentence {at} says that the harbour opens before the storm ends. "))
            .collect();
        let metadata_json = format!("{{\"revision\":{value}}}").into_bytes();
        let document = DocumentText { id: name.clone(), text, content_type: "text/plain".to_owned(), metadata_json };
        let reply = self.client.put_document(DOCUMENTS, document).await;
        let mut documents = lock(&self.written.documents);
        match reply {
            Ok(reply) => {
                documents.insert(name, vec![Some((*value, reply.chunks as usize))]);
                drop(documents);
                self.shared.count("put document", true);
            }
            Err(error) => {
                documents.entry(name).or_insert_with(|| vec![None]).push(Some((*value, 0)));
                drop(documents);
                self.shared.error("put document", &error);
            }
        }
    }

    async fn delete_document(&mut self) {
        let Some(name) = self.document() else { return };
        let reply = self.client.delete_document(DOCUMENTS, &name).await;
        let done = reply.as_ref().is_ok_and(|reply| reply.errors.is_empty());
        let mut documents = lock(&self.written.documents);
        match done {
            true => drop(documents.insert(name, vec![None])),
            false => documents.entry(name).or_insert_with(|| vec![None]).push(None),
        }
        drop(documents);
        match reply {
            Ok(_) => self.shared.count("delete document", done),
            Err(error) => self.shared.error("delete document", &error),
        }
    }

    async fn read_document(&mut self) {
        let name = format!("document-{}-{}", self.number, self.random.random_range(0..DOCUMENTS_EACH));
        match read_document(&self.client, &name, wire::ReadLevel::Session, 0).await {
            Err(error) => self.shared.error("read document", &error),
            Ok(found) => {
                self.shared.count("read document", true);
                let documents = lock(&self.written.documents);
                if let Some(wrong) = check_document(&documents, &name, &found) {
                    self.shared.violation(wrong);
                }
            }
        }
    }
}

/// The revisions of a document's chunks.
///
/// # Errors
/// As a scroll.
pub async fn read_document(client: &Client, name: &str, level: wire::ReadLevel, node: u64) -> Result<Vec<u64>, Error> {
    let value = wire::Scalar { value: Some(wire::scalar::Value::Text(name.to_owned())) };
    let equals = wire::filter::Equals { path: "document".to_owned(), value: Some(value) };
    let filter = wire::Filter { kind: Some(wire::filter::Kind::Equals(equals)) };
    // One page, so that it is read at one moment.
    let reply = client.scroll(scroll(DOCUMENTS, filter, level, node)).await?;
    let revision = |point: &wire::PointRecord| {
        let payload: Value = serde_json::from_slice(&point.payload_json).unwrap_or_default();
        payload["revision"].as_u64().unwrap_or_default()
    };
    Ok(reply.points.iter().map(revision).collect())
}

/// What is wrong with a document having chunks of these revisions, if anything.
pub fn check_document(states: &DocumentStates, name: &str, found: &[u64]) -> Option<String> {
    let absent = vec![None];
    let allowed = states.get(name).unwrap_or(&absent);
    let fits = allowed.iter().any(|state| match state {
        None => found.is_empty(),
        Some((revision, chunks)) => {
            !found.is_empty() && found.iter().all(|found| found == revision) && (*chunks == 0 || found.len() == *chunks)
        }
    });
    (!fits).then(|| format!("{name} has chunks of the revisions {found:?}, allowed are (revision, chunks) {allowed:?}"))
}

fn read_options(level: wire::ReadLevel, replica_node: u64) -> wire::ReadOptions {
    wire::ReadOptions { level: level as i32, replica_node, full_coverage: replica_node != 0, ..Default::default() }
}

/// A read of points; `node` 0 = any.
pub fn get(keys: Vec<u64>, level: wire::ReadLevel, node: u64) -> wire::GetRequest {
    wire::GetRequest {
        collection: POINTS.to_owned(),
        ids: keys.into_iter().map(wire_id).collect(),
        with_payload: true,
        with_vectors: true,
        read: Some(read_options(level, node)),
        ..Default::default()
    }
}

/// A scroll with everything; `node` 0 = any.
pub fn scroll(collection: &str, filter: wire::Filter, level: wire::ReadLevel, node: u64) -> wire::ScrollRequest {
    wire::ScrollRequest {
        collection: collection.to_owned(),
        limit: 500,
        filter: Some(filter),
        with_payload: true,
        with_vectors: collection == POINTS,
        read: Some(read_options(level, node)),
        ..Default::default()
    }
}

/// A count; `node` 0 = any.
pub fn count(filter: wire::Filter, level: wire::ReadLevel, node: u64) -> wire::CountRequest {
    wire::CountRequest {
        collection: POINTS.to_owned(),
        filter: Some(filter),
        read: Some(read_options(level, node)),
        ..Default::default()
    }
}

/// A search with everything; `node` 0 = any.
pub fn search(
    query: &[f32],
    limit: u32,
    filter: wire::Filter,
    exact: bool,
    level: wire::ReadLevel,
    node: u64,
) -> wire::SearchRequest {
    wire::SearchRequest {
        collection: POINTS.to_owned(),
        query: Some(wire::SearchQuery {
            vector: query.to_vec(),
            limit,
            filter: Some(filter),
            exact,
            with_payload: true,
            with_vectors: true,
            ..Default::default()
        }),
        read: Some(read_options(level, node)),
        ..Default::default()
    }
}

/// Whether every shard was searched.
pub fn covers_all(reply: &wire::SearchReply) -> bool {
    let shards = reply.coverage.as_ref().map(|coverage| coverage.shards.as_slice()).unwrap_or_default();
    !shards.is_empty() && shards.iter().all(|shard| shard.state() == shard_coverage::State::Searched)
}

/// Hits as (key, contents, score), and what is wrong with the others.
pub fn decode_hits(reply: &wire::SearchReply) -> (Vec<(u64, Contents, f32)>, Vec<String>) {
    let (mut hits, mut wrong) = (Vec::new(), Vec::new());
    for hit in &reply.hits {
        match decode(hit.id.as_ref(), &hit.payload_json, &hit.vectors) {
            Ok((key, contents)) => hits.push((key, contents, hit.score)),
            Err(reason) => wrong.push(format!("a hit: {reason}")),
        }
    }
    (hits, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_one_revision_and_whole() {
        let states = DocumentStates::from([("d".to_owned(), vec![Some((7, 2))])]);
        let wrong = |name: &str, found: &[u64]| check_document(&states, name, found).is_some();
        assert!(!wrong("d", &[7, 7]) && !wrong("other", &[]));
        assert!(wrong("d", &[7]) && wrong("d", &[6, 7]) && wrong("d", &[]) && wrong("other", &[1]));
        let unknown = DocumentStates::from([("d".to_owned(), vec![None, Some((7, 0))])]);
        assert!(check_document(&unknown, "d", &[7, 7, 7]).is_none() && check_document(&unknown, "d", &[]).is_none());
        assert!(check_document(&unknown, "d", &[7, 6]).is_some());
    }
}
