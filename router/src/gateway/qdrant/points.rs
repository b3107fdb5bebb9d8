//! Points: written, read, deleted, page by page.
//!
//! **How far operations are atomic.** An upsert is atomic for each shard. Payload operations by filter, and partial updates of
//! vectors, read first and then write: payloads change for the points that matched when they were read; vectors are written
//! only where the point is still what was read, and otherwise read again, so that no concurrent write is undone.
use std::collections::{BTreeMap, BTreeSet};

use axum::extract::{Path, State};
use bytes::Bytes;
use nearring_proto::filter::{Filter, Scalar};
use nearring_proto::ids::PointId;
use nearring_proto::order::{Order, OrderKey};
use nearring_proto::payload::{self, Payload};
use nearring_proto::write::{Outcome, PayloadMode, Point, PointRecord, Precondition};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::filter::QdrantFilter;
use super::openapi::Plain;
use super::places::{Place, set};
use super::values::{Id, Vectors, WithPayload, WithVector, id_json, record_json};
use super::{Answer, Asked, Body, Door, not_supported, strict};
use crate::failure::{Error, Kind};
use crate::pipeline::{Pipeline, ScrollWanted, Wants, WriteAnswer};
use crate::strict::Facts;

/// How often a point that others keep changing is read and written again.
const TRIES: usize = 16;

/// `PUT points`: a list, or columns.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
pub(super) enum Upsert {
    List {
        points: Vec<PointStruct>,
        #[serde(flatten)]
        how: How,
    },
    Columns {
        batch: Columns,
        #[serde(flatten)]
        how: How,
    },
}

/// Which of the points are written.
#[derive(Deserialize, JsonSchema, Debug, Clone, Default)]
pub(super) struct How {
    #[serde(default)]
    pub(super) shard_key: Option<Value>,
    /// Of the points that exist, only those that match.
    #[serde(default)]
    pub(super) update_filter: Option<QdrantFilter>,
    #[serde(default)]
    pub(super) update_mode: Option<Mode>,
}

/// Whether points that exist are replaced, and others made.
#[derive(Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    Upsert,
    InsertOnly,
    UpdateOnly,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct PointStruct {
    pub(super) id: Id,
    pub(super) vector: Vectors,
    #[serde(default)]
    pub(super) payload: Option<Payload>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct Columns {
    ids: Vec<Id>,
    vectors: ColumnVectors,
    #[serde(default)]
    payloads: Option<Vec<Option<Payload>>>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
enum ColumnVectors {
    Rows(Vec<Vectors>),
    Named(BTreeMap<String, Vec<super::values::Vector>>),
}

impl Upsert {
    fn read(self) -> Result<(Vec<Point>, How), Error> {
        let (points, how) = match self {
            Self::List { points, how } => (points.into_iter().map(|p| (p.id, p.vector, p.payload)).collect(), how),
            Self::Columns { batch, how } => (batch.rows()?, how),
        };
        no_shard_key(&how.shard_key)?;
        let points: Vec<(Id, Vectors, Option<Payload>)> = points;
        let read = |(at, (id, vectors, payload)): (usize, (Id, Vectors, Option<Payload>))| {
            let payload_json = match payload {
                Some(payload) => encode(&Value::Object(payload))?,
                None => Bytes::new(),
            };
            Ok(Point { id: id.into(), vectors: vectors.read(&format!("points[{at}].vector"))?, payload_json })
        };
        let points: Vec<Point> = points.into_iter().enumerate().map(read).collect::<Result<_, Error>>()?;
        Ok((last_of_each(points), how))
    }
}

/// Of several points with one id the last counts, as if they had been written one after the other.
fn last_of_each(points: Vec<Point>) -> Vec<Point> {
    let last: BTreeMap<&PointId, usize> = points.iter().enumerate().map(|(at, point)| (&point.id, at)).collect();
    let kept: BTreeSet<usize> = last.into_values().collect();
    points.into_iter().enumerate().filter(|(at, _)| kept.contains(at)).map(|(_, point)| point).collect()
}

impl Columns {
    fn rows(self) -> Result<Vec<(Id, Vectors, Option<Payload>)>, Error> {
        let Self { ids, vectors, payloads } = self;
        let count = ids.len();
        let vectors: Vec<Vectors> = match vectors {
            ColumnVectors::Rows(rows) => rows,
            ColumnVectors::Named(columns) => {
                let mut rows = vec![BTreeMap::new(); count];
                for (name, column) in columns {
                    if column.len() != count {
                        let reason = format!("has {} rows for {count} ids", column.len());
                        return Err(Error::invalid(format!("batch.vectors[{name:?}]"), reason));
                    }
                    for (row, vector) in rows.iter_mut().zip(column) {
                        row.insert(name.clone(), vector);
                    }
                }
                rows.into_iter().map(Vectors::Named).collect()
            }
        };
        let payloads = payloads.unwrap_or_else(|| vec![None; count]);
        if vectors.len() != count || payloads.len() != count {
            let reason = format!("has {count} ids, {} vectors and {} payloads", vectors.len(), payloads.len());
            return Err(Error::invalid("batch", reason));
        }
        Ok(ids.into_iter().zip(vectors).zip(payloads).map(|((id, vector), payload)| (id, vector, payload)).collect())
    }
}

pub(super) fn no_shard_key(shard_key: &Option<Value>) -> Result<(), Error> {
    match shard_key {
        None | Some(Value::Null) => Ok(()),
        Some(_) => Err(not_supported("shard_key").0),
    }
}

fn encode(value: &Value) -> Result<Bytes, Error> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Error::new(Kind::Internal, error.to_string()))
}

/// A write is done, or it is an error: Qdrant's answers know no part of it.
fn written(answer: WriteAnswer) -> Result<Value, Error> {
    if let Some(error) = answer.errors.first() {
        let kind = if error.unknown_outcome { Kind::Unavailable } else { Kind::NotDone };
        let rest = "other shards took their part; send the request again, it is harmless";
        return Err(Error::new(kind, format!("{}; {rest}", error.message)));
    }
    let operation = answer.positions.iter().map(|position| position.index).max().unwrap_or(0);
    Ok(json!({"operation_id": operation, "status": "completed"}))
}

/// Points by id, or by filter.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct Selector {
    #[serde(default)]
    points: Option<Vec<Id>>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    shard_key: Option<Value>,
}

enum Selected {
    Ids(Vec<PointId>),
    Matching(Filter),
}

impl Selector {
    async fn read(self, pipeline: &Pipeline, collection: &str) -> Result<Selected, Error> {
        selected(self.points, self.filter, &self.shard_key, (pipeline, collection)).await
    }
}

fn distinct(ids: Vec<Id>) -> Vec<PointId> {
    let mut seen = BTreeSet::new();
    ids.into_iter().map(PointId::from).filter(|id| seen.insert(id.clone())).collect()
}

pub(super) async fn upsert(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Upsert>,
) -> Answer<Value> {
    Ok(asked.told(put(&door.pipeline, &collection, body, &asked).await?))
}

async fn put(pipeline: &Pipeline, collection: &str, body: Upsert, asked: &Asked) -> Result<Value, Error> {
    let (points, How { update_filter, update_mode, shard_key: _ }) = body.read()?;
    let facts = || strict::writing(points.iter().map(|point| &point.vectors), true);
    strict::allow(pipeline, collection, asked, facts).await?;
    let mode = update_mode.unwrap_or(Mode::Upsert);
    if mode == Mode::Upsert && update_filter.is_none() {
        let points = points.into_iter().map(|point| (point, None)).collect();
        return written(pipeline.upsert(collection, points, None, asked.deadline()).await?);
    }
    let filter = QdrantFilter::read(update_filter, pipeline, collection).await?;
    let spec = super::collections::find(pipeline, collection).await?.spec;
    let check = |(at, mut point): (usize, Point)| {
        spec.adopt_point(&mut point);
        spec.check_point(&point, &format!("points[{at}]")).map(|()| (point.id.clone(), point))
    };
    let points = points.into_iter().enumerate().map(check).collect::<Result<_, _>>()?;
    put_where(pipeline, collection, points, (mode, filter), asked).await
}

/// Writes the points that are to be written as things are when each is: where that changes in between, it is looked at again.
async fn put_where(
    pipeline: &Pipeline,
    collection: &str,
    mut left: BTreeMap<PointId, Point>,
    (mode, filter): (Mode, Option<Filter>),
    asked: &Asked,
) -> Result<Value, Error> {
    let mut last = json!({"operation_id": 0, "status": "completed"});
    let most = pipeline.settings().limits.batch_points;
    for _ in 0..TRIES {
        let ids: Vec<PointId> = left.keys().cloned().collect();
        let mut again = BTreeMap::new();
        for batch in ids.chunks(most) {
            let wants = Wants { payload: filter.is_some(), vectors: filter.is_some() };
            let read = pipeline.get(collection, batch.to_vec(), wants, &asked.reads()?).await?;
            let there: BTreeMap<&PointId, &PointRecord> = read.points.iter().map(|point| (&point.id, point)).collect();
            let mut points = Vec::with_capacity(batch.len());
            for id in batch {
                let only = match there.get(id) {
                    None if mode == Mode::UpdateOnly => continue,
                    None => Precondition::InsertOnly,
                    Some(_) if mode == Mode::InsertOnly => continue,
                    Some(record) if !matches(filter.as_ref(), record)? => continue,
                    Some(record) => Precondition::IfVersion(record.version),
                };
                points.extend(left.get(id).map(|point| (point.clone(), Some(only))));
            }
            if points.is_empty() {
                continue;
            }
            let order: Vec<PointId> = points.iter().map(|(point, _)| point.id.clone()).collect();
            let answer = pipeline.upsert(collection, points, None, asked.deadline()).await?;
            for (at, outcome) in &answer.outcomes {
                if let (Outcome::VersionMismatch(_) | Outcome::AlreadyExists(_), Some(id)) = (outcome, order.get(*at))
                    && let Some(point) = left.remove(id)
                {
                    again.insert(id.clone(), point);
                }
            }
            last = written(answer)?;
        }
        if again.is_empty() {
            return Ok(last);
        }
        left = again;
    }
    let message = format!("{} points keep changing under this request; send it again", left.len());
    Err(Error::new(Kind::NotDone, message))
}

fn matches(filter: Option<&Filter>, record: &PointRecord) -> Result<bool, Error> {
    let Some(filter) = filter else { return Ok(true) };
    let payload = payload::parse(&record.payload_json).map_err(broken)?;
    Ok(filter.matches(&record.id, &payload, &|name| record.vectors.contains_key(name)))
}

pub(super) async fn delete(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Selector>,
) -> Answer<Value> {
    Ok(asked.told(remove_points(&door.pipeline, &collection, body, &asked).await?))
}

async fn remove_points(pipeline: &Pipeline, collection: &str, body: Selector, asked: &Asked) -> Result<Value, Error> {
    allow_selector(pipeline, collection, asked, &body).await?;
    written(match body.read(pipeline, collection).await? {
        Selected::Ids(ids) => pipeline.delete(collection, ids, None, None, asked.deadline()).await?,
        Selected::Matching(filter) => pipeline.delete_by_filter(collection, filter, None, asked.deadline()).await?,
    })
}

/// `POST points/payload` and its relatives.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct SetPayload {
    payload: Payload,
    #[serde(default)]
    points: Option<Vec<Id>>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    shard_key: Option<Value>,
    #[serde(default)]
    key: Option<String>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct DeletePayload {
    keys: Vec<String>,
    #[serde(default)]
    points: Option<Vec<Id>>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    shard_key: Option<Value>,
}

/// Looks at a write to points that exist.
async fn allow_selector(pipeline: &Pipeline, collection: &str, asked: &Asked, which: &Selector) -> Result<(), Error> {
    let ids = which.points.as_ref().map(Vec::len);
    strict::allow_matching(pipeline, collection, asked, which.filter.as_ref(), ids).await
}

async fn selected(
    points: Option<Vec<Id>>,
    filter: Option<QdrantFilter>,
    shard_key: &Option<Value>,
    (pipeline, collection): (&Pipeline, &str),
) -> Result<Selected, Error> {
    no_shard_key(shard_key)?;
    match (points, QdrantFilter::read(filter, pipeline, collection).await?) {
        (Some(points), None) => Ok(Selected::Ids(distinct(points))),
        (None, Some(filter)) => Ok(Selected::Matching(filter)),
        (Some(points), Some(filter)) => {
            let ids = Filter::Ids(distinct(points));
            Ok(Selected::Matching(Filter::All(vec![ids, filter])))
        }
        (None, None) => Err(Error::invalid("points", "or filter must be given")),
    }
}

/// The ids, in batches as large as a write may be.
async fn batches(
    pipeline: &Pipeline,
    collection: &str,
    selected: Selected,
    asked: &Asked,
) -> Result<Vec<Vec<PointId>>, Error> {
    let most = pipeline.settings().limits.batch_points.min(ScrollWanted::LIMIT_MAX);
    match selected {
        Selected::Ids(ids) => Ok(ids.chunks(most).map(<[PointId]>::to_vec).collect()),
        Selected::Matching(filter) => {
            let (mut batches, mut after) = (Vec::new(), None);
            loop {
                let wanted = ScrollWanted { after, limit: most, filter: Some(filter.clone()), ..Default::default() };
                let page = pipeline.scroll(collection, wanted, &asked.reads()?).await?;
                batches.push(page.points.into_iter().map(|point| point.id).collect());
                after = page.next;
                if after.is_none() {
                    return Ok(batches);
                }
            }
        }
    }
}

async fn change_payload(
    pipeline: &Pipeline,
    collection: &str,
    which: Selected,
    payload: Bytes,
    mode: PayloadMode,
    asked: &Asked,
) -> Result<Value, Error> {
    let mut last = json!({"operation_id": 0, "status": "completed"});
    // A collection that does not exist is an error also where no point is named.
    super::collections::find(pipeline, collection).await?;
    for ids in batches(pipeline, collection, which, asked).await?.into_iter().filter(|ids| !ids.is_empty()) {
        let set = pipeline.set_payload(collection, ids, payload.clone(), mode, None, None, asked.deadline());
        last = written(set.await?)?;
    }
    Ok(last)
}

pub(super) async fn set_payload(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<SetPayload>,
) -> Answer<Value> {
    Ok(asked.told(merge(&door.pipeline, &collection, body, &asked).await?))
}

async fn merge(pipeline: &Pipeline, collection: &str, body: SetPayload, asked: &Asked) -> Result<Value, Error> {
    let SetPayload { payload, points, filter, shard_key, key } = body;
    strict::allow_matching(pipeline, collection, asked, filter.as_ref(), points.as_ref().map(Vec::len)).await?;
    let which = selected(points, filter, &shard_key, (pipeline, collection)).await?;
    match key {
        // A null takes its key away, which nodes have no operation for beside setting others.
        None if payload.values().any(Value::is_null) => {
            pipeline.describe_collection(collection).await?;
            let ids = batches(pipeline, collection, which, asked).await?.into_iter().flatten().collect();
            rewrite(pipeline, collection, ids, asked, |record| {
                let mut old = payload::parse(&record.payload_json).map_err(broken)?;
                set(&mut old, &payload);
                Ok(Some(Point { payload_json: encode(&Value::Object(old))?, ..point(record) }))
            })
            .await
        }
        None => {
            let payload = encode(&Value::Object(payload))?;
            change_payload(pipeline, collection, which, payload, PayloadMode::Merge, asked).await
        }
        Some(key) => {
            let place = Place::read("key", &key)?;
            let ids = batches(pipeline, collection, which, asked).await?.into_iter().flatten().collect();
            rewrite(pipeline, collection, ids, asked, |record| {
                let mut old = payload::parse(&record.payload_json).map_err(broken)?;
                place.merge(&mut old, &payload);
                Ok(Some(Point { payload_json: encode(&Value::Object(old))?, ..point(record) }))
            })
            .await
        }
    }
}

fn broken(error: payload::PayloadError) -> Error {
    Error::new(Kind::Internal, format!("a stored payload {error}"))
}

fn point(record: &PointRecord) -> Point {
    Point { id: record.id.clone(), vectors: record.vectors.clone(), payload_json: record.payload_json.clone() }
}

/// Reads points, and writes what `change` makes of each, where it has not changed since; otherwise once more.
async fn rewrite(
    pipeline: &Pipeline,
    collection: &str,
    mut ids: Vec<PointId>,
    asked: &Asked,
    change: impl Fn(&PointRecord) -> Result<Option<Point>, Error>,
) -> Result<Value, Error> {
    let mut last = json!({"operation_id": 0, "status": "completed"});
    let most = pipeline.settings().limits.batch_points;
    for _ in 0..TRIES {
        let mut again = Vec::new();
        for batch in ids.chunks(most) {
            let wants = Wants { payload: true, vectors: true };
            let read = pipeline.get(collection, batch.to_vec(), wants, &asked.reads()?).await?;
            let mut points = Vec::with_capacity(read.points.len());
            for record in &read.points {
                if let Some(point) = change(record)? {
                    points.push((point, Some(Precondition::IfVersion(record.version))));
                }
            }
            if points.is_empty() {
                continue;
            }
            let order: Vec<PointId> = points.iter().map(|(point, _)| point.id.clone()).collect();
            let answer = pipeline.upsert(collection, points, None, asked.deadline()).await?;
            for (at, outcome) in &answer.outcomes {
                if let (Outcome::VersionMismatch(Some(_)), Some(id)) = (outcome, order.get(*at)) {
                    again.push(id.clone());
                }
            }
            last = written(answer)?;
        }
        if again.is_empty() {
            return Ok(last);
        }
        ids = again;
    }
    let message = format!("{} points keep changing under this request; send it again", ids.len());
    Err(Error::new(Kind::NotDone, message))
}

pub(super) async fn overwrite_payload(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<SetPayload>,
) -> Answer<Value> {
    Ok(asked.told(overwrite(&door.pipeline, &collection, body, &asked).await?))
}

async fn overwrite(pipeline: &Pipeline, collection: &str, body: SetPayload, asked: &Asked) -> Result<Value, Error> {
    let SetPayload { payload, points, filter, shard_key, key: _ } = body;
    strict::allow_matching(pipeline, collection, asked, filter.as_ref(), points.as_ref().map(Vec::len)).await?;
    let which = selected(points, filter, &shard_key, (pipeline, collection)).await?;
    change_payload(pipeline, collection, which, encode(&Value::Object(payload))?, PayloadMode::Overwrite, asked).await
}

pub(super) async fn delete_payload(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<DeletePayload>,
) -> Answer<Value> {
    Ok(asked.told(delete_keys(&door.pipeline, &collection, body, &asked).await?))
}

async fn delete_keys(
    pipeline: &Pipeline,
    collection: &str,
    body: DeletePayload,
    asked: &Asked,
) -> Result<Value, Error> {
    let DeletePayload { keys, points, filter, shard_key } = body;
    let read = |(at, key): (usize, &String)| Place::read(&format!("keys[{at}]"), key);
    let places: Vec<Place> = keys.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    strict::allow_matching(pipeline, collection, asked, filter.as_ref(), points.as_ref().map(Vec::len)).await?;
    let which = selected(points, filter, &shard_key, (pipeline, collection)).await?;
    if keys.iter().all(|key| !key.contains(['.', '[', '"'])) {
        let keys = encode(&json!(keys))?;
        return change_payload(pipeline, collection, which, keys, PayloadMode::DeleteKeys, asked).await;
    }
    let ids = batches(pipeline, collection, which, asked).await?.into_iter().flatten().collect();
    rewrite(pipeline, collection, ids, asked, |record| {
        let mut old = payload::parse(&record.payload_json).map_err(broken)?;
        places.iter().for_each(|place| place.remove(&mut old));
        Ok(Some(Point { payload_json: encode(&Value::Object(old))?, ..point(record) }))
    })
    .await
}

pub(super) async fn clear_payload(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Selector>,
) -> Answer<Value> {
    Ok(asked.told(clear(&door.pipeline, &collection, body, &asked).await?))
}

async fn clear(pipeline: &Pipeline, collection: &str, body: Selector, asked: &Asked) -> Result<Value, Error> {
    allow_selector(pipeline, collection, asked, &body).await?;
    let nothing = Bytes::from_static(b"{}");
    let which = body.read(pipeline, collection).await?;
    change_payload(pipeline, collection, which, nothing, PayloadMode::Overwrite, asked).await
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct UpdateVectors {
    pub(super) points: Vec<PointVectors>,
    #[serde(default)]
    pub(super) shard_key: Option<Value>,
    /// Only of points that match.
    #[serde(default)]
    pub(super) update_filter: Option<QdrantFilter>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct PointVectors {
    pub(super) id: Id,
    pub(super) vector: Vectors,
}

pub(super) async fn update_vectors(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<UpdateVectors>,
) -> Answer<Value> {
    Ok(asked.told(put_vectors(&door.pipeline, &collection, body, &asked).await?))
}

async fn put_vectors(
    pipeline: &Pipeline,
    collection: &str,
    body: UpdateVectors,
    asked: &Asked,
) -> Result<Value, Error> {
    no_shard_key(&body.shard_key)?;
    let mut given = BTreeMap::new();
    for (at, PointVectors { id, vector }) in body.points.into_iter().enumerate() {
        given.insert(PointId::from(id), vector.read(&format!("points[{at}].vector"))?);
    }
    strict::allow(pipeline, collection, asked, || strict::writing(given.values(), false)).await?;
    let spec = super::collections::find(pipeline, collection).await?.spec;
    for (id, vectors) in &mut given {
        let mut point = Point { id: id.clone(), vectors: std::mem::take(vectors), payload_json: Bytes::new() };
        spec.adopt_point(&mut point);
        spec.check_point(&point, &format!("points[{id}]"))?;
        *vectors = point.vectors;
    }
    let ids: Vec<PointId> = given.keys().cloned().collect();
    let found = exist(pipeline, collection, &ids, asked).await?;
    if let Some(missing) = ids.iter().find(|id| !found.contains(id)) {
        return Err(Error::new(Kind::NotFound, format!("no point with id {missing} found")));
    }
    let filter = QdrantFilter::read(body.update_filter, pipeline, collection).await?;
    rewrite(pipeline, collection, ids, asked, |record| {
        if !matches(filter.as_ref(), record)? {
            return Ok(None);
        }
        let mut point = point(record);
        point.vectors.extend(given.get(&record.id).cloned().unwrap_or_default());
        Ok(Some(point))
    })
    .await
}

async fn exist(
    pipeline: &Pipeline,
    collection: &str,
    ids: &[PointId],
    asked: &Asked,
) -> Result<BTreeSet<PointId>, Error> {
    let mut found = BTreeSet::new();
    for batch in ids.chunks(pipeline.settings().limits.batch_points) {
        let read = pipeline.get(collection, batch.to_vec(), Wants::default(), &asked.reads()?).await?;
        found.extend(read.points.into_iter().map(|point| point.id));
    }
    Ok(found)
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct DeleteVectors {
    vector: Vec<String>,
    #[serde(default)]
    points: Option<Vec<Id>>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    shard_key: Option<Value>,
}

pub(super) async fn delete_vectors(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<DeleteVectors>,
) -> Answer<Value> {
    Ok(asked.told(drop_vectors(&door.pipeline, &collection, body, &asked).await?))
}

async fn drop_vectors(
    pipeline: &Pipeline,
    collection: &str,
    body: DeleteVectors,
    asked: &Asked,
) -> Result<Value, Error> {
    let DeleteVectors { vector, points, filter, shard_key } = body;
    strict::allow_matching(pipeline, collection, asked, filter.as_ref(), points.as_ref().map(Vec::len)).await?;
    let which = selected(points, filter, &shard_key, (pipeline, collection)).await?;
    let spec = super::collections::find(pipeline, collection).await?.spec;
    if let Some(name) = vector.iter().find(|name| spec.vector(name).is_none()) {
        return Err(Error::invalid("vector", format!("Not existing vector name error: {name}")));
    }
    let ids = batches(pipeline, collection, which, asked).await?.into_iter().flatten().collect();
    rewrite(pipeline, collection, ids, asked, |record| {
        let mut point = point(record);
        point.vectors.retain(|name, _| !vector.contains(name));
        Ok((point.vectors.len() < record.vectors.len()).then_some(point))
    })
    .await
}

/// `POST points/batch`: operations one after the other.
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct Batch {
    pub(super) operations: Vec<Operation>,
}

#[derive(Deserialize, JsonSchema, Debug)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    Upsert(Upsert),
    Delete(Selector),
    SetPayload(SetPayload),
    OverwritePayload(SetPayload),
    DeletePayload(DeletePayload),
    ClearPayload(Selector),
    UpdateVectors(UpdateVectors),
    DeleteVectors(DeleteVectors),
}

pub(super) async fn batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch>,
) -> Answer<Value> {
    let pipeline = &door.pipeline;
    super::collections::find(pipeline, &collection).await?;
    let mut results = Vec::with_capacity(body.operations.len());
    for operation in body.operations {
        results.push(match operation {
            Operation::Upsert(body) => put(pipeline, &collection, body, &asked).await?,
            Operation::Delete(body) => remove_points(pipeline, &collection, body, &asked).await?,
            Operation::SetPayload(body) => merge(pipeline, &collection, body, &asked).await?,
            Operation::OverwritePayload(body) => overwrite(pipeline, &collection, body, &asked).await?,
            Operation::DeletePayload(body) => delete_keys(pipeline, &collection, body, &asked).await?,
            Operation::ClearPayload(body) => clear(pipeline, &collection, body, &asked).await?,
            Operation::UpdateVectors(body) => put_vectors(pipeline, &collection, body, &asked).await?,
            Operation::DeleteVectors(body) => drop_vectors(pipeline, &collection, body, &asked).await?,
        });
    }
    Ok(asked.told(Value::Array(results)))
}

#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct Retrieve {
    ids: Vec<Id>,
    #[serde(default)]
    with_payload: Option<WithPayload>,
    #[serde(default, alias = "with_vectors")]
    with_vector: Option<WithVector>,
    #[serde(default)]
    shard_key: Option<Value>,
}

pub(super) async fn retrieve(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Retrieve>,
) -> Answer<Value> {
    no_shard_key(&body.shard_key)?;
    let facts = || Facts { cost: body.ids.len() as u64, ..Facts::default() };
    strict::allow(&door.pipeline, &collection, &asked, facts).await?;
    let spec = super::collections::find(&door.pipeline, &collection).await?.spec;
    let payload = body.with_payload.unwrap_or(WithPayload::All(true));
    let vector = body.with_vector.unwrap_or(WithVector::All(false));
    vector.check(&spec)?;
    let ids = distinct(body.ids);
    let mut points = Vec::new();
    for batch in ids.chunks(door.pipeline.settings().limits.batch_points) {
        let wants = Wants { payload: payload.any(), vectors: vector.any() };
        let read = door.pipeline.get(&collection, batch.to_vec(), wants, &asked.reads()?).await?;
        for record in &read.points {
            points.push(record_json(record, &payload, &vector)?);
        }
    }
    Ok(asked.told(Value::Array(points)))
}

pub(super) async fn one(
    State(door): State<Door>,
    Path((collection, id)): Path<(String, String)>,
    asked: Asked,
) -> Answer<Value> {
    strict::allow(&door.pipeline, &collection, &asked, || Facts { cost: 1, ..Facts::default() }).await?;
    super::collections::find(&door.pipeline, &collection).await?;
    let id = match id.parse::<u64>() {
        Ok(number) => PointId::Number(number),
        Err(_) => Id::Text(id).into(),
    };
    let wants = Wants { payload: true, vectors: true };
    let read = door.pipeline.get(&collection, vec![id.clone()], wants, &asked.reads()?).await?;
    let record = read.points.first().ok_or_else(|| Error::new(Kind::NotFound, format!("point {id} does not exist")))?;
    Ok(asked.told(record_json(record, &WithPayload::All(true), &WithVector::All(true))?))
}

#[derive(Deserialize, JsonSchema, Debug, Default)]
pub(super) struct Scroll {
    #[serde(default)]
    offset: Option<Id>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    with_payload: Option<WithPayload>,
    #[serde(default, alias = "with_vectors")]
    with_vector: Option<WithVector>,
    #[serde(default)]
    order_by: Option<OrderBy>,
    #[serde(default)]
    shard_key: Option<Value>,
}

pub(super) async fn scroll(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Scroll>,
) -> Answer<Value> {
    no_shard_key(&body.shard_key)?;
    let limit = super::limit("limit", body.limit, 10)?;
    let facts = || strict::listed(body.filter.as_ref(), Some(limit));
    strict::allow(&door.pipeline, &collection, &asked, facts).await?;
    let spec = super::collections::find(&door.pipeline, &collection).await?.spec;
    let payload = body.with_payload.unwrap_or(WithPayload::All(true));
    let vector = body.with_vector.unwrap_or(WithVector::All(false));
    vector.check(&spec)?;
    let wants = Wants { payload: payload.any(), vectors: vector.any() };
    let filter = QdrantFilter::read(body.filter, &door.pipeline, &collection).await?;
    let reads = asked.reads()?;
    if let Some(order_by) = body.order_by {
        if body.offset.is_some() {
            let reason = "cannot be used with order_by, which begins at its start_from";
            return Err(Error::invalid("offset", reason).into());
        }
        let wanted = ScrollWanted { limit, filter, wants, order: Some(order_by.order()), after: None };
        let answer = door.pipeline.scroll(&collection, wanted, &reads).await?;
        let told = |(record, value): (&PointRecord, &Scalar)| {
            let mut told = record_json(record, &payload, &vector)?;
            told["order_value"] = order_value(value);
            Ok(told)
        };
        let points: Vec<Value> =
            answer.points.iter().zip(&answer.order_values).map(told).collect::<Result<_, Error>>()?;
        return Ok(asked.told(json!({"points": points, "next_page_offset": null})));
    }
    let (mut points, mut after) = (Vec::new(), None);
    if let Some(offset) = body.offset {
        // Here pages begin behind an id, there at one.
        let offset = PointId::from(offset);
        let only = Filter::All(std::iter::once(Filter::Ids(vec![offset.clone()])).chain(filter.clone()).collect());
        let wanted = ScrollWanted { limit: 1, filter: Some(only), wants, ..Default::default() };
        points = door.pipeline.scroll(&collection, wanted, &reads).await?.points;
        after = Some(offset);
    }
    // One more than is answered says where the next page begins.
    while points.len() <= limit {
        let left = (limit + 1 - points.len()).min(ScrollWanted::LIMIT_MAX);
        let wanted = ScrollWanted { after, limit: left, filter: filter.clone(), wants, order: None };
        let page = door.pipeline.scroll(&collection, wanted, &reads).await?;
        points.extend(page.points);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let next = (points.len() > limit).then(|| points.split_off(limit)).and_then(|rest| rest.into_iter().next());
    let points: Vec<Value> =
        points.iter().map(|record| record_json(record, &payload, &vector)).collect::<Result<_, _>>()?;
    Ok(asked.told(json!({"points": points, "next_page_offset": next.map(|record| id_json(&record.id))})))
}

/// What to order by: a path, or more of it.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
pub(super) enum OrderBy {
    Key(String),
    Wanted {
        key: String,
        #[serde(default)]
        direction: Option<Direction>,
        #[serde(default)]
        #[schemars(with = "Option<Plain>")]
        start_from: Option<Scalar>,
    },
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    Asc,
    Desc,
}

impl OrderBy {
    pub(super) fn order(self) -> Order {
        let (key, direction, start_from) = match self {
            Self::Key(key) => (key, None, None),
            Self::Wanted { key, direction, start_from } => (key, direction, start_from),
        };
        let descending = direction == Some(Direction::Desc);
        Order::ByPayload { path: super::filter::path(&key), descending, start_from }
    }
}

/// Datetimes are told as microseconds.
pub(super) fn order_value(value: &Scalar) -> Value {
    match (OrderKey::of(value), value) {
        (Some(OrderKey::Moment(micros)), _) => json!(micros),
        (_, Scalar::Int(value)) => json!(value),
        (_, Scalar::Float(value)) => json!(value),
        _ => Value::Null,
    }
}

#[derive(Deserialize, JsonSchema, Debug, Default)]
pub(super) struct Count {
    #[serde(default)]
    filter: Option<QdrantFilter>,
    // Counts are exact whatever is asked.
    #[serde(default, rename = "exact")]
    _exact: Option<bool>,
    #[serde(default)]
    shard_key: Option<Value>,
}

pub(super) async fn count(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Count>,
) -> Answer<Value> {
    no_shard_key(&body.shard_key)?;
    strict::allow(&door.pipeline, &collection, &asked, || strict::listed(body.filter.as_ref(), None)).await?;
    let filter = QdrantFilter::read(body.filter, &door.pipeline, &collection).await?;
    let answer = door.pipeline.count(&collection, filter, &asked.reads()?).await?;
    Ok(asked.told(json!({"count": answer.count})))
}
