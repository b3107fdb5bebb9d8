//! Searches: one vector, examples, several queries fused.
//!
//! A query with prefetches is evaluated from the inside out: each prefetch is a search of its own over the whole collection;
//! fusion ranks what they found, a vector scores it anew, exactly. Every part is one read at its own positions.
use std::collections::BTreeMap;
use std::pin::Pin;

use axum::extract::{Path, State};
use nearring_proto::collection::CollectionSpec;
use nearring_proto::filter::Filter;
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::query::SearchQuery;
use nearring_proto::vector::Vector as Stored;
use nearring_proto::write::PointRecord;
use serde::Deserialize;
use serde_json::{Value, json};

use super::filter::QdrantFilter;
use super::values::{Id, Vector, WithPayload, WithVector, id_json, recommended};
use super::{Answer, Asked, Body, Door, not_supported};
use crate::failure::{Error, Kind};
use crate::pipeline::{Pipeline, ScrollWanted, Wants};
use crate::plan::ReadOptions;

/// How deep prefetches may nest.
const DEPTH_MAX: usize = 8;
/// Qdrant's constant of reciprocal rank fusion.
const RRF_K: f32 = 2.0;
/// Hits where nothing is said.
const LIMIT: usize = 10;

/// A query, or a prefetch of one.
#[derive(Deserialize, Debug, Default)]
pub(super) struct Query {
    #[serde(default)]
    query: Option<Asks>,
    #[serde(default)]
    prefetch: Option<OneOrMany>,
    #[serde(default)]
    using: Option<String>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    params: Option<Params>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    offset: Option<usize>,
    #[serde(default)]
    score_threshold: Option<f32>,
    #[serde(default)]
    with_payload: Option<WithPayload>,
    #[serde(default, alias = "with_vectors")]
    with_vector: Option<WithVector>,
    #[serde(default)]
    lookup_from: Option<Value>,
    #[serde(default)]
    shard_key: Option<Value>,
}

#[derive(Deserialize, Debug)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Query>),
    One(Box<Query>),
}

#[derive(Deserialize, Debug, Default, Clone, Copy)]
struct Params {
    #[serde(default)]
    hnsw_ef: Option<usize>,
    #[serde(default)]
    exact: Option<bool>,
}

/// What is asked: a vector or an id in itself, or an object that says.
#[derive(Deserialize, Debug)]
#[serde(untagged)]
enum Asks {
    Nearest {
        nearest: Example,
        #[serde(default)]
        mmr: Option<Value>,
    },
    Recommend {
        recommend: Recommend,
    },
    Fusion {
        fusion: Fusion,
    },
    Rrf {
        rrf: Rrf,
    },
    OrderBy {
        order_by: OrderBy,
    },
    Example(Example),
    Other(Value),
}

#[derive(Deserialize, Debug, Clone)]
#[serde(untagged)]
enum Example {
    Id(Id),
    Vector(Vector),
}

#[derive(Deserialize, Debug)]
struct Recommend {
    #[serde(default)]
    positive: Vec<Example>,
    #[serde(default)]
    negative: Vec<Example>,
    #[serde(default)]
    strategy: Option<String>,
}

#[derive(Deserialize, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Fusion {
    Rrf,
    Dbsf,
}

#[derive(Deserialize, Debug, Clone, Copy)]
struct Rrf {
    #[serde(default)]
    k: Option<u32>,
}

#[derive(Deserialize, Debug, Clone)]
#[serde(untagged)]
enum OrderBy {
    Key(String),
    Wanted {
        key: String,
        #[serde(default)]
        direction: Option<String>,
    },
}

struct Search<'a> {
    pipeline: &'a Pipeline,
    collection: &'a str,
    spec: &'a CollectionSpec,
    reads: ReadOptions,
}

/// What the hits of a query carry.
#[derive(Clone, Copy, Default)]
struct Carry {
    payload: bool,
    vectors: bool,
}

impl Search<'_> {
    /// The hits of a query, best first, without its offset.
    fn run<'s>(
        &'s self,
        query: Query,
        carry: Carry,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Hit>, Error>> + Send + 's>> {
        Box::pin(async move {
            if depth > DEPTH_MAX {
                return Err(Error::invalid("prefetch", format!("nests deeper than {DEPTH_MAX}")));
            }
            if query.lookup_from.as_ref().is_some_and(|lookup| !lookup.is_null()) {
                return Err(not_supported("lookup_from").0);
            }
            if query.shard_key.as_ref().is_some_and(|key| !key.is_null()) {
                return Err(not_supported("shard_key").0);
            }
            let offset = query.offset.unwrap_or(0);
            let limit = query.limit.unwrap_or(LIMIT);
            if limit == 0 {
                return Err(Error::invalid("limit", "is 0, must be at least 1"));
            }
            let wanted = limit.saturating_add(offset);
            let filter = query.filter.map(QdrantFilter::read).transpose()?;
            let using = query.using.unwrap_or_default();
            let prefetches = match query.prefetch {
                None => Vec::new(),
                Some(OneOrMany::One(one)) => vec![*one],
                Some(OneOrMany::Many(many)) => many,
            };
            let fused = matches!(query.query, Some(Asks::Fusion { .. } | Asks::Rrf { .. }));
            let has_prefetch = !prefetches.is_empty();
            let carried = if fused { carry } else { Carry::default() };
            let mut lists = Vec::with_capacity(prefetches.len());
            for prefetch in prefetches {
                lists.push(self.run(prefetch, carried, depth + 1).await?);
            }
            let candidates = has_prefetch.then(|| {
                let ids: std::collections::BTreeSet<PointId> =
                    lists.iter().flatten().map(|hit| hit.id.clone()).collect();
                Filter::Ids(ids.into_iter().collect())
            });
            let parameters = query.params.unwrap_or_default();
            let nearest = |vector: Stored, mut all: Vec<Filter>| {
                all.extend(filter.clone());
                // Candidates are few: they are compared one by one.
                let exact = parameters.exact.unwrap_or(false) || candidates.is_some();
                all.extend(candidates.clone());
                SearchQuery {
                    vector_name: using.clone(),
                    vector,
                    limit: wanted.min(SearchQuery::LIMIT_MAX),
                    filter: (!all.is_empty()).then_some(Filter::All(all)),
                    exact,
                    ef: parameters.hnsw_ef.map(|ef| ef.clamp(1, SearchQuery::EF_MAX)),
                    with_payload: carry.payload,
                    with_vectors: carry.vectors,
                    score_threshold: query.score_threshold,
                }
            };
            let mut hits = match query.query {
                Some(Asks::Example(example) | Asks::Nearest { nearest: example, mmr: None }) => {
                    let (vector, seen) = self.example(example, &using).await?;
                    let without = seen.map(|id| Filter::Not(Box::new(Filter::Ids(vec![id]))));
                    self.search(nearest(vector, without.into_iter().collect())).await?
                }
                Some(Asks::Nearest { mmr: Some(_), .. }) => return Err(not_supported("mmr").0),
                Some(Asks::Recommend { recommend }) => {
                    let (vector, seen) = self.recommend(recommend, &using).await?;
                    self.search(nearest(vector, vec![Filter::Not(Box::new(Filter::Ids(seen)))])).await?
                }
                Some(Asks::Fusion { fusion: Fusion::Rrf }) => reciprocal(lists, RRF_K),
                Some(Asks::Rrf { rrf }) => reciprocal(lists, rrf.k.map_or(RRF_K, |k| k as f32)),
                Some(Asks::Fusion { fusion: Fusion::Dbsf }) => distribution(lists),
                Some(Asks::OrderBy { order_by }) => self.ordered(order_by, filter, candidates, wanted, carry).await?,
                Some(Asks::Other(other)) => return Err(unknown(&other)),
                None if !has_prefetch => self.listed(filter, wanted, carry).await?,
                None => return Err(Error::invalid("query", "is missing beside prefetch")),
            };
            if fused && let Some(least) = query.score_threshold {
                hits.retain(|hit| hit.score >= least);
            }
            hits.truncate(wanted);
            Ok(hits.split_off(offset.min(hits.len())))
        })
    }

    async fn search(&self, query: SearchQuery) -> Result<Vec<Hit>, Error> {
        Ok(self.pipeline.search(self.collection, query, &self.reads).await?.hits)
    }

    /// The vector that an example stands for, and its id where it is a point.
    async fn example(&self, example: Example, using: &str) -> Result<(Stored, Option<PointId>), Error> {
        match example {
            Example::Vector(vector) => Ok((vector.read("query")?, None)),
            Example::Id(id) => {
                let id = PointId::from(id);
                let wants = Wants { payload: false, vectors: true };
                let read = self.pipeline.get(self.collection, vec![id.clone()], wants, &self.reads).await?;
                let missing = || Error::new(Kind::NotFound, format!("Not found: No point with id {id} found"));
                let record: &PointRecord = read.points.first().ok_or_else(missing)?;
                let vector = record.vectors.get(using).cloned().ok_or_else(missing)?;
                Ok((vector, Some(id)))
            }
        }
    }

    /// The average of what is liked, moved away from the average of what is not.
    async fn recommend(&self, wanted: Recommend, using: &str) -> Result<(Stored, Vec<PointId>), Error> {
        if wanted.strategy.as_deref().is_some_and(|strategy| strategy != "average_vector") {
            return Err(not_supported("recommend by best or summed scores").0);
        }
        if wanted.positive.is_empty() {
            return Err(Error::invalid("recommend.positive", "is empty; give at least one example"));
        }
        let mut seen = Vec::new();
        let mut sides = [Vec::new(), Vec::new()];
        for (examples, vectors) in [wanted.positive, wanted.negative].into_iter().zip(&mut sides) {
            for example in examples {
                let (vector, id) = self.example(example, using).await?;
                seen.extend(id);
                vectors.push(vector);
            }
        }
        let [liked, not] = sides;
        Ok((recommended(liked, not)?, seen))
    }

    /// Points as a scroll lists them.
    async fn listed(&self, filter: Option<Filter>, wanted: usize, carry: Carry) -> Result<Vec<Hit>, Error> {
        let wants = Wants { payload: carry.payload, vectors: carry.vectors };
        let limit = wanted.min(ScrollWanted::LIMIT_MAX);
        let page = ScrollWanted { after: None, limit, filter, wants };
        let page = self.pipeline.scroll(self.collection, page, &self.reads).await?;
        Ok(page.points.into_iter().map(|record| hit(record, 0.0)).collect())
    }

    /// Points by a number of their payload. Reads everything that matches.
    async fn ordered(
        &self,
        order_by: OrderBy,
        filter: Option<Filter>,
        candidates: Option<Filter>,
        wanted: usize,
        carry: Carry,
    ) -> Result<Vec<Hit>, Error> {
        let (key, descending) = match order_by {
            OrderBy::Key(key) => (key, false),
            OrderBy::Wanted { key, direction } => (key, direction.as_deref() == Some("desc")),
        };
        let path = super::filter::path(&key);
        let filter =
            Filter::All([filter, candidates].into_iter().flatten().chain([Filter::Exists(path.clone())]).collect());
        let wants = Wants { payload: true, vectors: carry.vectors };
        let mut by_value: Vec<(f64, Hit)> = Vec::new();
        let mut after = None;
        loop {
            let page = ScrollWanted { after, limit: 1_000, filter: Some(filter.clone()), wants };
            let page = self.pipeline.scroll(self.collection, page, &self.reads).await?;
            for record in page.points {
                let value = nearring_proto::payload::parse(&record.payload_json).ok().and_then(|payload| {
                    let mut first = None;
                    nearring_proto::payload::visit(&payload, &path, &mut |found| first = first.or(order_of(found)));
                    first
                });
                by_value.extend(value.map(|value| (value, hit(record, 0.0))));
            }
            by_value.sort_by(|(a, x), (b, y)| {
                let order = a.total_cmp(b);
                (if descending { order.reverse() } else { order }).then_with(|| x.id.cmp(&y.id))
            });
            by_value.truncate(wanted);
            after = page.next;
            if after.is_none() {
                return Ok(by_value.into_iter().map(|(_, hit)| hit).collect());
            }
        }
    }
}

fn order_of(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => nearring_proto::filter::datetime_micros(text).map(|micros| micros as f64),
        _ => None,
    }
}

fn hit(record: PointRecord, score: f32) -> Hit {
    let PointRecord { id, version, payload_json, vectors } = record;
    Hit { id, score, version, payload_json, vectors }
}

fn unknown(query: &Value) -> Error {
    let kind = query.as_object().and_then(|object| object.keys().next());
    match kind.map(String::as_str) {
        Some(name @ ("discover" | "context" | "sample" | "formula" | "relevance_feedback")) => {
            not_supported(&format!("query {name}")).0
        }
        _ => Error::invalid("query", "is no vector, no id, and no kind of query"),
    }
}

/// Reciprocal rank fusion: Σ 1 / (k + rank), ranks from 0.
fn reciprocal(lists: Vec<Vec<Hit>>, k: f32) -> Vec<Hit> {
    fused(
        lists
            .into_iter()
            .map(|list| list.into_iter().enumerate().map(|(rank, hit)| (1.0 / (k + rank as f32), hit)).collect()),
    )
}

/// Distribution-based score fusion: scores of each list between its mean ± 3 standard deviations, summed.
fn distribution(lists: Vec<Vec<Hit>>) -> Vec<Hit> {
    fused(lists.into_iter().map(|list| {
        let count = list.len() as f32;
        let mean = list.iter().map(|hit| hit.score).sum::<f32>() / count.max(1.0);
        let variance = list.iter().map(|hit| (hit.score - mean).powi(2)).sum::<f32>() / (count - 1.0).max(1.0);
        let (low, span) = (mean - 3.0 * variance.sqrt(), 6.0 * variance.sqrt());
        let scaled = |score: f32| if span > 0.0 { (score - low) / span } else { 0.5 };
        list.into_iter().map(|hit| (scaled(hit.score), hit)).collect()
    }))
}

fn fused(lists: impl Iterator<Item = Vec<(f32, Hit)>>) -> Vec<Hit> {
    let mut by_id: BTreeMap<PointId, Hit> = BTreeMap::new();
    for (score, hit) in lists.flatten() {
        by_id.entry(hit.id.clone()).and_modify(|known| known.score += score).or_insert(Hit { score, ..hit });
    }
    let mut hits: Vec<Hit> = by_id.into_values().collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
    hits
}

/// The hits as they are answered.
async fn answered(door: &Door, collection: &str, query: Query, asked: &Asked) -> Result<Vec<Value>, Error> {
    let spec = super::collections::find(&door.pipeline, collection).await?.spec;
    let payload = query.with_payload.clone().unwrap_or(WithPayload::All(false));
    let vector = query.with_vector.clone().unwrap_or(WithVector::All(false));
    let search = Search { pipeline: &door.pipeline, collection, spec: &spec, reads: asked.reads()? };
    let carry = Carry { payload: payload.any(), vectors: vector.any() };
    let hits = search.run(query, carry, 0).await?;
    hits.iter().map(|hit| hit_json(hit, search.spec, &payload, &vector)).collect()
}

fn hit_json(hit: &Hit, spec: &CollectionSpec, payload: &WithPayload, vector: &WithVector) -> Result<Value, Error> {
    let mut answer = json!({"id": id_json(&hit.id), "version": hit.version.index, "score": hit.score});
    if let Some(object) = answer.as_object_mut() {
        if let Some(payload) = payload.of(&hit.payload_json)? {
            object.insert("payload".to_owned(), Value::Object(payload));
        }
        if let Some(vector) = vector.of(spec, &hit.vectors) {
            object.insert("vector".to_owned(), vector);
        }
    }
    Ok(answer)
}

pub(super) async fn query(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Query>,
) -> Answer<Value> {
    let points = answered(&door, &collection, body, &asked).await?;
    Ok(asked.told(json!({"points": points})))
}

#[derive(Deserialize, Debug)]
pub(super) struct Batch<T> {
    searches: Vec<T>,
}

pub(super) async fn query_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<Query>>,
) -> Answer<Value> {
    let searches = body.searches.into_iter().map(|query| answered(&door, &collection, query, &asked));
    let lists = futures::future::try_join_all(searches).await?;
    Ok(asked.told(lists.into_iter().map(|points| json!({"points": points})).collect()))
}

/// The older search: one vector, perhaps named.
#[derive(Deserialize, Debug)]
pub(super) struct OldSearch {
    vector: OldVector,
    #[serde(flatten)]
    rest: Query,
}

#[derive(Deserialize, Debug)]
#[serde(untagged)]
enum OldVector {
    Plain(Vec<f32>),
    Named { name: String, vector: Vector },
}

impl OldSearch {
    fn query(self) -> Query {
        let (using, vector) = match self.vector {
            OldVector::Plain(values) => (None, Vector::Dense(values)),
            OldVector::Named { name, vector } => (Some(name), vector),
        };
        Query { query: Some(Asks::Example(Example::Vector(vector))), using, ..self.rest }
    }
}

pub(super) async fn search(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<OldSearch>,
) -> Answer<Value> {
    Ok(asked.told(answered(&door, &collection, body.query(), &asked).await?.into()))
}

pub(super) async fn search_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<OldSearch>>,
) -> Answer<Value> {
    let searches = body.searches.into_iter().map(|search| answered(&door, &collection, search.query(), &asked));
    let lists = futures::future::try_join_all(searches).await?;
    Ok(asked.told(lists.into_iter().map(Value::from).collect()))
}
