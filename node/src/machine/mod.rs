//! The state machine of a shard: what a committed entry does to its points.
//!
//! Replicas that apply the same entries must hold the same state, for ever and after any restart; so what an entry means is
//! decided here and nowhere else. Pure: no clock, no randomness, no I/O, no hash order. [`command`] is what is logged,
//! [`record`] what is kept of a point, [`session`] how a repeated request has one effect.
//!
//! Rules:
//! * A point's version, and the stamp of a vector that an entry brings, is (home epoch, index of the entry).
//! * An entry that is wrong as a whole (an id twice, an unknown vector, a payload that is no JSON object) changes nothing.
//!   Preconditions are judged point by point, and the other points go on.
//! * Every entry advances `applied` and the logged time, refused ones too.
//! * Where [`Facts`] fail, nothing has changed.
//!
//! It does not hold records or vectors: it reads records through [`Facts`], and says in [`Applied`] what is to be written.
pub mod command;
pub mod record;
pub mod session;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use nearring_proto::collection::{AnySpec, CollectionSpec, LaterSpec, check_payload};
use nearring_proto::convert::decode_filter;
use nearring_proto::ids::{PointId, ReplicaId, SessionId, Version};
use nearring_proto::payload::{self, Payload};
use nearring_proto::placement::ring::{group_routing_key, routing_key};
use nearring_proto::vector::{self, VectorError};
use nearring_proto::write::{Outcome, PayloadMode, Precondition};
use serde_json::Value;

use self::command::{Command, Envelope, PointWrite, Refusal, Reply, SegmentHash};
use self::record::{FORMAT, Record, StateError, check_format, malformed, take};
use self::session::{Admission, Session, Sessions};
use crate::index::change::{Components, IndexChange, InstalledSegment, VectorChange};
use crate::raft::codec;
use crate::raft::{LogId, Membership, StoredMembership};
use crate::store::digest::digest_of;

/// The newest format of [`MachineMeta`] that is written and understood.
const FORMAT_LATER: u8 = 2;

/// A seal that is logged and whose segment is not installed yet.
#[derive(Clone, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(attr(allow(missing_docs)))]
pub struct PendingSeal {
    /// Its number: the entry's index.
    pub segment: u64,
    /// Which named vector.
    pub vector: String,
    /// The installed segments that it merges; empty = the tail.
    pub sources: Vec<SegmentHash>,
    /// Who is to build it.
    pub builder: ReplicaId,
}

/// A shard's state beside its records and sessions.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct MachineMeta {
    /// The last entry applied.
    pub applied: Option<LogId>,
    /// The last membership applied.
    pub membership: StoredMembership,
    /// Logged time in milliseconds since 1970; never goes back.
    pub time_ms: u64,
    /// The epoch that versions carry.
    pub home_epoch: u64,
    /// The collection's settings; `None` before the first `Configure`.
    pub spec: Option<CollectionSpec>,
    /// Points that exist.
    pub points: u64,
    /// Sum over all records of [`digest_of`]: equal records, equal digest.
    pub digest: u128,
    /// Installed segments, by number; their `sources` are empty.
    pub manifest: Vec<InstalledSegment>,
    /// Pending seals, by number; at most one of each named vector.
    pub seals: BTreeMap<u64, PendingSeal>,
}

/// A shard's state machine. Its records are elsewhere; cloning it is cheap.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Machine {
    /// Everything but sessions.
    pub meta: MachineMeta,
    /// Open sessions and the replies they may ask for again.
    pub sessions: Sessions,
}

/// What an entry may read: the records as the entries before it left them.
pub trait Facts {
    /// Why it cannot be read.
    type Error;
    /// A point's record; `None` where there is no such point.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn record(&self, id: &PointId) -> Result<Option<Record>, Self::Error>;
    /// Every point whose id has this routing key: the text `routing_key`, and texts that start with it and `separator`.
    /// By id. More is harmless: the machine checks each id itself.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn group(&self, routing_key: &str, separator: &str) -> Result<Vec<(PointId, Record)>, Self::Error>;
}

/// What applying an entry did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The answer.
    pub reply: Reply,
    /// The request had been carried out before, and this is its first answer; nothing was done now.
    pub repeated: bool,
    /// Records to write, `None` = to delete. No id twice.
    pub records: Vec<(PointId, Option<Record>)>,
    /// Sessions to write, or to delete where the machine does not know them any more.
    pub sessions: Vec<SessionId>,
    /// What changes in the index, in order.
    pub changes: Vec<IndexChange>,
}

/// Why judging an entry ended early.
enum Halt<E> {
    Refused(Refusal),
    Facts(E),
}

impl<E> From<Refusal> for Halt<E> {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What an entry would change. Nothing has, until it is taken over.
#[derive(Default)]
struct Effect {
    records: Vec<(PointId, Option<Record>)>,
    changes: Vec<IndexChange>,
    added: u64,
    removed: u64,
    digest: u128,                   // to add, wrapping
    meta: Option<Box<MachineMeta>>, // in its place, where an entry changes more than records
}

impl Effect {
    fn put(&mut self, id: &PointId, old: Option<&Record>, new: Record) {
        match old {
            Some(old) => self.digest = self.digest.wrapping_sub(digest_of(id, old)),
            None => self.added += 1,
        }
        self.digest = self.digest.wrapping_add(digest_of(id, &new));
        self.records.push((id.clone(), Some(new)));
    }

    fn remove(&mut self, id: &PointId, old: &Record) {
        self.digest = self.digest.wrapping_sub(digest_of(id, old));
        self.removed += 1;
        self.records.push((id.clone(), None));
        self.changes.push(IndexChange::Remove { id: id.clone() });
    }
}

/// A point that passed every check of its own.
struct Checked<'a> {
    write: &'a PointWrite,
    payload: Payload,
}

impl Machine {
    /// Applies a committed entry. The reply and the effects are the same on every replica.
    ///
    /// # Errors
    /// What `facts` answers; then nothing has changed.
    pub fn apply<F: Facts>(&mut self, facts: &F, log_id: LogId, envelope: &Envelope) -> Result<Applied, F::Error> {
        let now_ms = self.meta.time_ms.max(envelope.now_ms);
        let mut applied = Applied {
            reply: Reply::Done,
            repeated: false,
            records: Vec::new(),
            sessions: Vec::new(),
            changes: Vec::new(),
        };
        if let Command::OpenSession { session, opened_at_ms } = &envelope.command {
            (applied.reply, applied.sessions) = self.sessions.open(*session, *opened_at_ms, now_ms);
        } else {
            let request = envelope.request.as_ref();
            let (admission, removed) = match (request, &envelope.command) {
                (None, _) => (Admission::Execute, 0),
                (Some(request), Command::DeleteIf { .. }) => self.sessions.admit_part(request, now_ms),
                (Some(request), _) => (self.sessions.admit(request, now_ms), 0),
            };
            let mut remember = false;
            match admission {
                Admission::Refuse(refusal) => applied.reply = Reply::Refused(refusal),
                Admission::Replay(reply) => (applied.reply, applied.repeated) = (reply, true),
                Admission::Execute => match self.judge(facts, log_id, removed, &envelope.command) {
                    Err(Halt::Facts(error)) => return Err(error),
                    Err(Halt::Refused(refusal)) => {
                        // Before the settings are known the writer is told to try again, with the same number.
                        remember = refusal != Refusal::NotConfigured;
                        applied.reply = Reply::Refused(refusal);
                    }
                    Ok((reply, effect)) => {
                        remember = true;
                        (applied.reply, applied.records, applied.changes) = (reply, effect.records, effect.changes);
                        if let Some(meta) = effect.meta {
                            self.meta = *meta;
                        }
                        self.meta.points = self.meta.points + effect.added - effect.removed;
                        self.meta.digest = self.meta.digest.wrapping_add(effect.digest);
                    }
                },
            }
            if let Some(request) = request {
                applied.sessions = self.sessions.note(request, remember.then_some(&applied.reply), now_ms);
            }
        }
        self.meta.time_ms = now_ms;
        self.meta.applied = Some(log_id);
        Ok(applied)
    }

    /// Applies an entry without a command.
    pub fn apply_blank(&mut self, log_id: LogId) {
        self.meta.applied = Some(log_id);
    }

    /// Applies a membership.
    pub fn apply_membership(&mut self, log_id: LogId, membership: Membership) {
        self.meta.membership = StoredMembership::new(Some(log_id), membership);
        self.meta.applied = Some(log_id);
    }

    /// `removed`: by earlier parts of the same request.
    fn judge<F: Facts>(
        &self,
        facts: &F,
        log_id: LogId,
        removed: u64,
        command: &Command,
    ) -> Result<(Reply, Effect), Halt<F::Error>> {
        if let Command::Configure { spec, home_epoch } = command {
            return Ok((Reply::Done, self.configure(spec, *home_epoch)?));
        }
        let spec = self.meta.spec.as_ref().ok_or(Refusal::NotConfigured)?;
        let version = Version { epoch: self.meta.home_epoch, index: log_id.index };
        match command {
            Command::Upsert { points, preconditions } => upsert(facts, spec, version, points, preconditions),
            Command::SetPayload { ids, payload, mode, precondition } => {
                set_payload(facts, version, ids, payload, *mode, precondition.as_ref())
            }
            Command::Delete { ids, precondition } => delete(facts, version, ids, |_, old| match (precondition, old) {
                (Some(precondition), old) => unmet(precondition, old).or(old.is_none().then_some(Outcome::NotFound)),
                (None, None) => Some(Outcome::NotFound),
                (None, Some(_)) => None,
            }),
            Command::BeginDelete => Ok((Reply::Begun { at: version, removed: 0 }, Effect::default())),
            Command::DeleteIf { ids, filter, begun, last } => {
                let filter = decode_filter(filter).map_err(|error| invalid(error.field, error.reason))?;
                let (_, effect) = delete(facts, version, ids, |id, old| match old {
                    None => Some(Outcome::NotFound),
                    // The request is sent again: what it deleted before and what was then written anew stays.
                    Some(old) if old.placement > *begun => Some(Outcome::FilterMismatch),
                    // A stored payload was checked when it came.
                    Some(old) => {
                        let has_vector = |name: &str| old.vectors.contains_key(name);
                        let matches =
                            payload::parse(&old.payload).is_ok_and(|payload| filter.matches(id, &payload, &has_vector));
                        (!matches).then_some(Outcome::FilterMismatch)
                    }
                })?;
                // Whoever asked named no points, so it is told of none.
                let removed = removed + effect.removed;
                let reply = match last {
                    true => written(version, 0, removed, Vec::new()),
                    false => Reply::Begun { at: *begun, removed },
                };
                Ok((reply, effect))
            }
            Command::ReplaceGroup { routing_key, separator, points } => {
                replace_group(facts, spec, version, routing_key, separator, points)
            }
            Command::Seal { vector, sources, builder } => {
                Ok((Reply::Done, self.seal(spec, log_id.index, vector, sources, *builder)?))
            }
            Command::Install { segment, hash, members, bytes } => {
                Ok((Reply::Done, self.install(*segment, *hash, *members, *bytes)?))
            }
            Command::AbandonSeal { segment } => {
                let mut meta = self.meta.clone();
                meta.seals.remove(segment).ok_or(Refusal::NotPending { segment: *segment })?;
                let changes = vec![IndexChange::Abandon { segment: *segment }];
                Ok((Reply::Done, Effect { changes, meta: Some(Box::new(meta)), ..Effect::default() }))
            }
            // Taken before; here only so that a new command cannot be forgotten.
            Command::OpenSession { .. } | Command::Configure { .. } => Ok((Reply::Done, Effect::default())),
        }
    }

    fn configure(&self, spec: &CollectionSpec, home_epoch: u64) -> Result<Effect, Refusal> {
        spec.check().map_err(|error| invalid(error.field, error.reason))?;
        if home_epoch < self.meta.home_epoch {
            let reason = format!("is {home_epoch}, below {} already given; epochs only grow", self.meta.home_epoch);
            return Err(invalid("home_epoch", reason));
        }
        if let Some(old) = &self.meta.spec {
            // Points, their vectors and their homes follow from these.
            let same = |name: &str| match (old.vector(name), spec.vector(name)) {
                (Some(AnySpec::Dense(old)), Some(AnySpec::Dense(new))) => {
                    (new.dimension, new.metric) == (old.dimension, old.metric)
                }
                // A modifier belongs to queries.
                (Some(AnySpec::Sparse(_)), Some(AnySpec::Sparse(_))) => true,
                (Some(AnySpec::Multi(old)), Some(AnySpec::Multi(new))) => old == new,
                _ => false,
            };
            if !old.vector_names().all(same) {
                return Err(invalid(
                    "vectors",
                    "a vector's kind, dimension and metric cannot change, nor can it be dropped",
                ));
            }
            if old.routing_separator != spec.routing_separator {
                return Err(invalid("routing_separator", "cannot change"));
            }
        }
        let meta = MachineMeta { spec: Some(spec.clone()), home_epoch, ..self.meta.clone() };
        let changes = vec![IndexChange::Configure(spec.clone())];
        Ok(Effect { changes, meta: Some(Box::new(meta)), ..Effect::default() })
    }

    fn seal(
        &self,
        spec: &CollectionSpec,
        segment: u64,
        vector: &str,
        sources: &[SegmentHash],
        builder: ReplicaId,
    ) -> Result<Effect, Refusal> {
        if !spec.vectors.contains_key(vector) {
            return Err(invalid("vector", format!("the collection has no dense vector {vector:?}")));
        }
        let distinct: BTreeSet<&SegmentHash> = sources.iter().collect();
        let installed =
            |hash: &SegmentHash| self.meta.manifest.iter().any(|held| held.hash == *hash && held.vector == vector);
        if distinct.len() < sources.len() || !sources.iter().all(installed) {
            return Err(invalid("sources", "must be installed segments of this vector, each once"));
        }
        let mut meta = self.meta.clone();
        let unfinished: Vec<u64> =
            meta.seals.values().filter(|seal| seal.vector == vector).map(|seal| seal.segment).collect();
        let mut changes = Vec::new();
        for segment in unfinished {
            meta.seals.remove(&segment);
            changes.push(IndexChange::Abandon { segment });
        }
        let (vector, sources) = (vector.to_owned(), sources.to_vec());
        changes.push(IndexChange::Seal { segment, vector: vector.clone(), sources: sources.clone() });
        meta.seals.insert(segment, PendingSeal { segment, vector, sources, builder });
        Ok(Effect { changes, meta: Some(Box::new(meta)), ..Effect::default() })
    }

    fn install(&self, segment: u64, hash: SegmentHash, members: u64, bytes: u64) -> Result<Effect, Refusal> {
        let mut meta = self.meta.clone();
        let PendingSeal { vector, sources, .. } = meta.seals.remove(&segment).ok_or(Refusal::NotPending { segment })?;
        let installed = InstalledSegment { segment, hash, vector, sources: Vec::new(), members, bytes };
        meta.manifest.retain(|held| !sources.contains(&held.hash));
        let at = meta.manifest.partition_point(|held| held.segment < segment);
        meta.manifest.insert(at, installed.clone());
        let changes = vec![IndexChange::Install(InstalledSegment { sources, ..installed })];
        Ok(Effect { changes, meta: Some(Box::new(meta)), ..Effect::default() })
    }
}

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Refusal {
    Refusal::Invalid { field: field.into(), reason: reason.into() }
}

/// What a precondition answers where it does not hold.
fn unmet(precondition: &Precondition, old: Option<&Record>) -> Option<Outcome> {
    match (precondition, old) {
        (Precondition::InsertOnly, Some(old)) => Some(Outcome::AlreadyExists(old.version)),
        (Precondition::InsertOnly, None) => None,
        (Precondition::IfVersion(wanted), old) => {
            let found = old.map(|old| old.version);
            (found != Some(*wanted)).then_some(Outcome::VersionMismatch(found))
        }
    }
}

fn written(version: Version, applied: u64, removed: u64, outcomes: Vec<(u32, Outcome)>) -> Reply {
    Reply::Written { applied, removed, outcomes, version }
}

/// Positions are 32 bits on the wire; no entry has so many points.
fn position(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn check_ids<'a>(ids: impl Iterator<Item = &'a PointId>, field: &str) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for (at, id) in ids.enumerate() {
        id.check().map_err(|error| invalid(format!("{field}[{at}]"), error.to_string()))?;
        if !seen.insert(id) {
            return Err(invalid(format!("{field}[{at}]"), format!("{id} is named twice")));
        }
    }
    Ok(())
}

/// Checks points on their own and against each other, before any record is read.
fn check_points<'a>(spec: &CollectionSpec, points: &'a [PointWrite]) -> Result<Vec<Checked<'a>>, Refusal> {
    check_ids(points.iter().map(|point| &point.id), "points")?;
    points.iter().enumerate().map(|(at, point)| check_point(spec, at, point)).collect()
}

fn check_point<'a>(spec: &CollectionSpec, at: usize, write: &'a PointWrite) -> Result<Checked<'a>, Refusal> {
    let mut names = BTreeSet::new();
    for (name, values) in &write.vectors {
        let field = || format!("points[{at}].vectors[{name:?}]");
        let checked = match spec.vector(name).ok_or_else(|| invalid(field(), "the collection has no such vector"))? {
            AnySpec::Dense(known) => vector::check(values, known.dimension as usize, known.metric),
            AnySpec::Sparse(_) => Err(VectorError::Kind { got: "dense", want: "sparse" }),
            AnySpec::Multi(_) => Err(VectorError::Kind { got: "dense", want: "multi" }),
        };
        checked.map_err(|error| invalid(field(), error.to_string()))?;
        if !names.insert(name) {
            return Err(invalid(field(), "is given twice"));
        }
    }
    for (name, vector) in &write.others {
        let field = || format!("points[{at}].vectors[{name:?}]");
        let known = spec.vector(name).ok_or_else(|| invalid(field(), "the collection has no such vector"))?;
        known.check(vector).map_err(|error| invalid(field(), error.to_string()))?;
        if !names.insert(name) {
            return Err(invalid(field(), "is given twice"));
        }
    }
    let field = || format!("points[{at}].payload");
    if write.payload.len() > CollectionSpec::PAYLOAD_BYTES_MAX {
        return Err(too_large(field(), write.payload.len()));
    }
    let payload = payload::parse(&write.payload).map_err(|error| invalid(field(), error.to_string()))?;
    Ok(Checked { write, payload })
}

fn too_large(field: String, got: usize) -> Refusal {
    invalid(field, format!("has {got} bytes, at most {} are allowed", CollectionSpec::PAYLOAD_BYTES_MAX))
}

/// Writes a whole point over whatever was there.
fn write_point(effect: &mut Effect, version: Version, point: Checked<'_>, old: Option<&Record>) {
    let Checked { write: PointWrite { id, vectors, payload: bytes, others }, payload } = point;
    let names = vectors.iter().map(|(name, _)| name).chain(others.iter().map(|(name, _)| name));
    let record = Record {
        version,
        placement: old.map_or(version, |old| old.placement),
        vectors: names.map(|name| (name.clone(), version)).collect(),
        payload: Bytes::copy_from_slice(bytes),
    };
    let dense = vectors.iter().map(|(name, values)| (name.clone(), Components::from(values.as_slice())));
    let others = others.iter().map(|(name, vector)| (name.clone(), Components::from(vector.clone())));
    let brought = |(name, components)| -> (String, VectorChange) { (name, (version, Some(components))) };
    effect.changes.push(IndexChange::Put {
        id: id.clone(),
        version,
        vectors: dense.chain(others).map(brought).collect(),
        payload: old.is_none_or(|old| old.payload != record.payload).then_some(payload),
    });
    effect.put(id, old, record);
}

fn upsert<F: Facts>(
    facts: &F,
    spec: &CollectionSpec,
    version: Version,
    points: &[PointWrite],
    preconditions: &[Option<Precondition>],
) -> Result<(Reply, Effect), Halt<F::Error>> {
    if !preconditions.is_empty() && preconditions.len() != points.len() {
        let reason = format!("has {} entries for {} points", preconditions.len(), points.len());
        return Err(invalid("preconditions", reason).into());
    }
    let (mut effect, mut outcomes, mut applied) = (Effect::default(), Vec::new(), 0);
    for (at, point) in check_points(spec, points)?.into_iter().enumerate() {
        let old = facts.record(&point.write.id).map_err(Halt::Facts)?;
        let precondition = preconditions.get(at).and_then(Option::as_ref);
        if let Some(outcome) = precondition.and_then(|precondition| unmet(precondition, old.as_ref())) {
            outcomes.push((position(at), outcome));
            continue;
        }
        write_point(&mut effect, version, point, old.as_ref());
        applied += 1;
    }
    Ok((written(version, applied, 0, outcomes), effect))
}

/// A change of payloads, its JSON read once.
enum PayloadChange {
    Merge(Payload),
    Overwrite(Payload, Bytes),
    DeleteKeys(Vec<String>),
}

impl PayloadChange {
    fn read(bytes: &[u8], mode: PayloadMode) -> Result<Self, Refusal> {
        match mode {
            PayloadMode::DeleteKeys => serde_json::from_slice(bytes)
                .map(Self::DeleteKeys)
                .map_err(|error| invalid("payload", format!("must be a JSON array of keys: {error}"))),
            PayloadMode::Merge | PayloadMode::Overwrite => {
                check_payload(bytes, "payload").map_err(|error| invalid(error.field, error.reason))?;
                let payload = payload::parse(bytes).map_err(|error| invalid("payload", error.to_string()))?;
                Ok(match mode {
                    PayloadMode::Merge => Self::Merge(payload),
                    _ => Self::Overwrite(payload, Bytes::copy_from_slice(bytes)),
                })
            }
        }
    }

    /// The payload afterwards, and its bytes.
    fn over(&self, old: &Bytes) -> Result<(Payload, Bytes), Refusal> {
        if let Self::Overwrite(payload, bytes) = self {
            return Ok((payload.clone(), bytes.clone()));
        }
        let mut payload = payload::parse(old).map_err(|error| invalid("payload", format!("the old one {error}")))?;
        match self {
            Self::Merge(given) => payload.extend(given.iter().map(|(key, value)| (key.clone(), value.clone()))),
            Self::DeleteKeys(keys) => {
                for key in keys {
                    payload.remove(key);
                }
            }
            Self::Overwrite(..) => {}
        }
        let value = Value::Object(payload);
        let bytes = serde_json::to_vec(&value).map_err(|error| invalid("payload", error.to_string()))?;
        if bytes.len() > CollectionSpec::PAYLOAD_BYTES_MAX {
            return Err(too_large("payload".to_owned(), bytes.len()));
        }
        let payload = match value {
            Value::Object(payload) => payload,
            _ => Payload::new(),
        };
        Ok((payload, Bytes::from(bytes)))
    }
}

fn set_payload<F: Facts>(
    facts: &F,
    version: Version,
    ids: &[PointId],
    payload: &[u8],
    mode: PayloadMode,
    precondition: Option<&Precondition>,
) -> Result<(Reply, Effect), Halt<F::Error>> {
    check_ids(ids.iter(), "ids")?;
    let change = PayloadChange::read(payload, mode)?;
    let (mut effect, mut outcomes, mut applied) = (Effect::default(), Vec::new(), 0);
    for (at, id) in ids.iter().enumerate() {
        let old = facts.record(id).map_err(Halt::Facts)?;
        if let Some(outcome) = precondition.and_then(|precondition| unmet(precondition, old.as_ref())) {
            outcomes.push((position(at), outcome));
            continue;
        }
        let Some(old) = old else {
            outcomes.push((position(at), Outcome::NotFound));
            continue;
        };
        let (payload, bytes) = change.over(&old.payload)?;
        effect.changes.push(IndexChange::Put {
            id: id.clone(),
            version,
            vectors: old.vectors.iter().map(|(name, stamp)| (name.clone(), (*stamp, None))).collect(),
            payload: (bytes != old.payload).then_some(payload),
        });
        let new = Record { version, payload: bytes, ..old.clone() };
        effect.put(id, Some(&old), new);
        applied += 1;
    }
    Ok((written(version, applied, 0, outcomes), effect))
}

/// Deletes those of `ids` for which `keep` gives no reason against it.
fn delete<F: Facts>(
    facts: &F,
    version: Version,
    ids: &[PointId],
    keep: impl Fn(&PointId, Option<&Record>) -> Option<Outcome>,
) -> Result<(Reply, Effect), Halt<F::Error>> {
    check_ids(ids.iter(), "ids")?;
    let (mut effect, mut outcomes) = (Effect::default(), Vec::new());
    for (at, id) in ids.iter().enumerate() {
        let old = facts.record(id).map_err(Halt::Facts)?;
        match (keep(id, old.as_ref()), old) {
            (None, Some(old)) => effect.remove(id, &old),
            (outcome, _) => outcomes.push((position(at), outcome.unwrap_or(Outcome::NotFound))),
        }
    }
    Ok((written(version, 0, effect.removed, outcomes), effect))
}

fn replace_group<F: Facts>(
    facts: &F,
    spec: &CollectionSpec,
    version: Version,
    key: &str,
    separator: &str,
    points: &[PointWrite],
) -> Result<(Reply, Effect), Halt<F::Error>> {
    if separator.is_empty() || separator != spec.routing_separator {
        let reason = format!("must be the collection's, which is {:?} (empty: no groups)", spec.routing_separator);
        return Err(invalid("separator", reason).into());
    }
    if key.is_empty() || key.contains(separator) {
        return Err(invalid("routing_key", "must be the part of an id before the first separator").into());
    }
    let group = group_routing_key(key);
    let member = |id: &PointId| routing_key(id, separator) == group;
    if let Some(at) = points.iter().position(|point| !member(&point.id)) {
        return Err(invalid(format!("points[{at}].id"), format!("is not in the group {key:?}")).into());
    }
    let points = check_points(spec, points)?;
    let mut old: BTreeMap<PointId, Record> = facts.group(key, separator).map_err(Halt::Facts)?.into_iter().collect();
    old.retain(|id, _| member(id));
    let mut effect = Effect::default();
    let applied = points.len() as u64;
    for point in points {
        let old = old.remove(&point.write.id);
        write_point(&mut effect, version, point, old.as_ref());
    }
    for (id, old) in &old {
        effect.remove(id, old);
    }
    Ok((written(version, applied, effect.removed, Vec::new()), effect))
}

/// What [`MachineMeta::encode`] leaves to rkyv in format 2: settings that [`Kept`] has no place for.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct KeptLater {
    kept: Kept,
    later: LaterSpec,
}

/// What [`MachineMeta::encode`] leaves to rkyv in format 1.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Kept {
    time_ms: u64,
    home_epoch: u64,
    spec: Option<CollectionSpec>,
    points: u64,
    digest: u128,
    manifest: Vec<InstalledSegment>,
    seals: Vec<PendingSeal>,
}

impl MachineMeta {
    /// The bytes: `format u8 · length u32 · raft codec of (applied, membership) · rkyv of the rest`. Format 2 where there are
    /// settings that 1 has no place for.
    pub fn encode(&self) -> Vec<u8> {
        let raft = codec::encode(&(self.applied, self.membership.clone()));
        let later = self.spec.as_ref().and_then(CollectionSpec::later);
        let mut out = vec![if later.is_some() { FORMAT_LATER } else { FORMAT }];
        out.extend_from_slice(&u32::try_from(raft.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&raft);
        let kept = Kept {
            time_ms: self.time_ms,
            home_epoch: self.home_epoch,
            spec: self.spec.clone(),
            points: self.points,
            digest: self.digest,
            manifest: self.manifest.clone(),
            seals: self.seals.values().cloned().collect(),
        };
        // Far below 2 GiB, so this cannot fail; empty bytes would be refused when read.
        let bytes = match later {
            None => rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Failure>(&kept, out),
            Some(later) => rkyv::api::high::to_bytes_in(&KeptLater { kept, later }, out),
        };
        bytes.unwrap_or_default()
    }

    /// Reads what [`MachineMeta::encode`] wrote.
    ///
    /// # Errors
    /// Where the bytes are not that, or of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let (later, mut rest) = match bytes.split_first() {
            Some((&FORMAT_LATER, rest)) => (true, rest),
            Some((&found, _)) if found > FORMAT_LATER => {
                return Err(StateError::NewerFormat { found, newest: FORMAT_LATER });
            }
            _ => (false, check_format(bytes)?),
        };
        let length = u32::from_le_bytes(take(&mut rest, 4)?.try_into().map_err(malformed)?);
        let raft = take(&mut rest, usize::try_from(length).map_err(malformed)?)?;
        let (applied, membership) =
            codec::decode::<(Option<LogId>, StoredMembership)>(Bytes::copy_from_slice(raft)).map_err(malformed)?;
        let (kept, later) = if later {
            let KeptLater { kept, later } =
                rkyv::from_bytes::<KeptLater, rkyv::rancor::Error>(rest).map_err(malformed)?;
            (kept, Some(later))
        } else {
            (rkyv::from_bytes::<Kept, rkyv::rancor::Error>(rest).map_err(malformed)?, None)
        };
        let Kept { time_ms, home_epoch, mut spec, points, digest, manifest, seals } = kept;
        if let Some((spec, later)) = spec.as_mut().zip(later) {
            spec.set_later(later);
        }
        let seals = seals.into_iter().map(|seal| (seal.segment, seal)).collect();
        Ok(Self { applied, membership, time_ms, home_epoch, spec, points, digest, manifest, seals })
    }
}

impl Machine {
    /// The whole machine's bytes, for a snapshot: `format u8 · length u32 · meta · { session 16 bytes · length u32 · bytes }`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        let put = |bytes: &[u8], out: &mut Vec<u8>| {
            out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        put(&self.meta.encode(), &mut out);
        for (id, session) in self.sessions.iter() {
            out.extend_from_slice(id.0.as_bytes());
            put(&session.encode(), &mut out);
        }
        out
    }

    /// Reads what [`Machine::encode`] wrote.
    ///
    /// # Errors
    /// Where the bytes are not that, or of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut rest = check_format(bytes)?;
        let take_part = |rest: &mut &[u8]| -> Result<Vec<u8>, StateError> {
            let length = u32::from_le_bytes(take(rest, 4)?.try_into().map_err(malformed)?);
            take(rest, usize::try_from(length).map_err(malformed)?).map(<[u8]>::to_vec)
        };
        let meta = MachineMeta::decode(&take_part(&mut rest)?)?;
        let mut sessions = Sessions::default();
        while !rest.is_empty() {
            let id = uuid::Uuid::from_slice(take(&mut rest, 16)?).map_err(malformed)?;
            sessions.restore(SessionId(id), Session::decode(&take_part(&mut rest)?)?);
        }
        Ok(Self { meta, sessions })
    }
}
