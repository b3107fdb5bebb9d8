//! Searches: one vector, examples, several queries fused or weighed by a formula.
//!
//! A query with prefetches is evaluated from the inside out: each prefetch is a search of its own over the whole collection;
//! fusion and formulas rank what they found, a vector scores it anew, exactly. A query's filter holds for its prefetches, too.
//! Every part is one read at its own positions.
use std::pin::Pin;

use axum::extract::{Path, State};
use nearring_proto::collection::CollectionSpec;
use nearring_proto::filter::{Filter, Scalar};
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::order::Order;
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::{Metric, Vector as Stored, VectorError};
use nearring_proto::write::PointRecord;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use self::diverse::{likeness, marginal};
use self::examples::{Discover, Example, Pairs, Recommend, Source};
use self::feedback::Feedback;
use self::fusion::{distribution, reciprocal};
use super::filter::QdrantFilter;
use super::formula::read::Written;
use super::formula::{Formula, FormulaError};
use super::points::{OrderBy, order_value};
use super::values::{WithPayload, WithVector, id_json, single_json};
use super::{Answer, Asked, Body, Door, not_supported, out_of_bounds};
use crate::failure::{Error, Kind};
use crate::pipeline::{Pipeline, ScrollWanted, Wants};
use crate::plan::ReadOptions;

mod diverse;
mod examples;
mod facts;
mod feedback;
mod fusion;
pub(super) mod matrix;
pub(super) mod older;

/// How deep prefetches may nest.
const DEPTH_MAX: usize = 8;
/// Qdrant's constant of reciprocal rank fusion.
const RRF_K: f32 = 2.0;
/// Hits where nothing is said.
const LIMIT: usize = 10;

/// A query, or a prefetch of one.
#[derive(Deserialize, JsonSchema, Debug, Default, Clone)]
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
    lookup_from: Option<LookupFrom>,
    #[serde(default)]
    shard_key: Option<Value>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Query>),
    One(Box<Query>),
}

#[derive(Deserialize, JsonSchema, Debug, Default, Clone, Copy)]
struct Params {
    #[serde(default)]
    hnsw_ef: Option<usize>,
    #[serde(default)]
    exact: Option<bool>,
    #[serde(default)]
    quantization: Option<Quantization>,
}

/// Vectors are compared as they are; strict mode limits what is asked all the same.
#[derive(Deserialize, JsonSchema, Debug, Default, Clone, Copy)]
struct Quantization {
    #[serde(default)]
    oversampling: Option<f64>,
}

/// What is asked: a vector or an id in itself, or an object that says.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
enum Asks {
    Nearest {
        nearest: Example,
        #[serde(default)]
        mmr: Option<Mmr>,
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
    Sample {
        sample: Sample,
    },
    Discover {
        discover: Discover,
    },
    Context {
        context: Pairs,
    },
    Formula {
        #[schemars(with = "Written")]
        formula: Value,
        #[serde(default)]
        defaults: Option<Map<String, Value>>,
    },
    Feedback {
        relevance_feedback: Feedback,
    },
    // Behind the others: it takes whatever it is.
    Example(Example),
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Fusion {
    Rrf,
    Dbsf,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
struct Rrf {
    #[serde(default)]
    k: Option<u32>,
    /// One for each prefetch.
    #[serde(default)]
    weights: Option<Vec<f32>>,
}

/// A sample of which all points are equally likely members.
#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Sample {
    Random,
}

/// Maximal marginal relevance: hits that are near, and unlike those before them.
#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
struct Mmr {
    #[serde(default)]
    diversity: Option<f32>,
    #[serde(default)]
    candidates_limit: Option<usize>,
}

/// Where ids of a query are looked up, in place of the collection that is searched.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
struct LookupFrom {
    collection: String,
    #[serde(default)]
    vector: Option<String>,
}

impl Query {
    /// The same query, for so many hits from the first on. Its prefetches bring as many.
    pub(super) fn of(mut self, limit: usize) -> Self {
        (self.limit, self.offset) = (Some(limit), None);
        self.prefetch = self.prefetch.map(|prefetch| match prefetch {
            OneOrMany::One(one) => OneOrMany::One(Box::new(one.of(limit))),
            OneOrMany::Many(many) => OneOrMany::Many(many.into_iter().map(|one| one.of(limit)).collect()),
        });
        self
    }

    fn has_prefetch(&self) -> bool {
        match &self.prefetch {
            None => false,
            Some(OneOrMany::One(_)) => true,
            Some(OneOrMany::Many(many)) => !many.is_empty(),
        }
    }

    /// Refuses what does not go together, as Qdrant words it.
    fn check(&self) -> Result<(), Error> {
        let refused = |reason: &str| Err(Error::new(Kind::Invalid, format!("Bad request: {reason}")));
        for (field, value) in [("limit", self.limit), ("params.hnsw_ef", self.params.and_then(|params| params.hnsw_ef))]
        {
            if value == Some(0) {
                return Err(out_of_bounds(field, "value 0 invalid, must be 1 or larger"));
            }
        }
        let prefetched = self.has_prefetch();
        match &self.query {
            None if prefetched => {
                refused("A query is needed to merge the prefetches. Can't have prefetches without defining a query.")
            }
            None if self.score_threshold.is_some() => refused(
                "A query is needed to use the score_threshold. Can't have score_threshold without defining a query.",
            ),
            Some(Asks::OrderBy { .. }) if self.score_threshold.is_some() => {
                refused("Can't use score_threshold with an order_by query.")
            }
            Some(Asks::Fusion { .. } | Asks::Rrf { .. }) if !prefetched => refused(match self.using.as_deref() {
                None | Some("") => "cannot apply Fusion without prefetches",
                Some(_) => "Fusion queries cannot be combined with the 'using' field.",
            }),
            Some(Asks::Formula { .. }) if !prefetched => refused("cannot apply Formula without prefetches"),
            _ => Ok(()),
        }
    }

    /// The same query over the points that have something at this path.
    pub(super) fn among_those_with(mut self, path: &str) -> Self {
        self.filter = Some(QdrantFilter::with(self.filter, path));
        self
    }
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

/// Hits, and the values that they are ordered by, where they are.
#[derive(Default)]
struct Ranked {
    hits: Vec<Hit>,
    order_values: Vec<Scalar>,
}

impl From<Vec<Hit>> for Ranked {
    fn from(hits: Vec<Hit>) -> Self {
        Self { hits, order_values: Vec::new() }
    }
}

impl Ranked {
    /// Those from `offset` to `end`.
    fn page(mut self, offset: usize, end: usize) -> Self {
        self.hits.truncate(end);
        self.order_values.truncate(end);
        let hits = self.hits.split_off(offset.min(self.hits.len()));
        Self { hits, order_values: self.order_values.split_off(offset.min(self.order_values.len())) }
    }
}

impl Search<'_> {
    /// The hits of a query, best first, without its offset; `above` are the filters of the queries that it is a prefetch of.
    fn run<'s>(
        &'s self,
        query: Query,
        above: Option<Filter>,
        carry: Carry,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Ranked, Error>> + Send + 's>> {
        Box::pin(async move {
            if depth > DEPTH_MAX {
                return Err(Error::invalid("prefetch", format!("nests deeper than {DEPTH_MAX}")));
            }
            if query.shard_key.as_ref().is_some_and(|key| !key.is_null()) {
                return Err(not_supported("shard_key").0);
            }
            query.check()?;
            let formula = match &query.query {
                Some(Asks::Formula { formula, defaults }) => {
                    let indexed = self.spec.payload_indexes.keys().cloned().collect();
                    let texts = super::collections::declared(self.pipeline, self.collection, "text").await?;
                    Some(Formula { indexed, ..Formula::read(formula, defaults.as_ref(), &texts)? })
                }
                _ => None,
            };
            // A sample has no pages: each is drawn anew. One of what prefetches found has, as in Qdrant.
            let sampled = matches!(query.query, Some(Asks::Sample { .. })) && !query.has_prefetch();
            let offset = query.offset.filter(|_| !sampled).unwrap_or(0);
            let limit = query.limit.unwrap_or(LIMIT);
            let wanted = limit.saturating_add(offset);
            let own = QdrantFilter::read(query.filter, self.pipeline, self.collection).await?;
            let filter = match (above, own) {
                (Some(above), Some(own)) => Some(Filter::All(vec![above, own])),
                (above, own) => above.or(own),
            };
            let using = query.using.unwrap_or_default();
            let source = match &query.lookup_from {
                None => Source { collection: self.collection, vector: &using },
                Some(LookupFrom { collection, vector }) => {
                    // Also where no id is looked up.
                    looked_up(self.pipeline, collection).await?;
                    Source { collection, vector: vector.as_deref().unwrap_or(&using) }
                }
            };
            let prefetches = match query.prefetch {
                None => Vec::new(),
                Some(OneOrMany::One(one)) => vec![*one],
                Some(OneOrMany::Many(many)) => many,
            };
            let fused = matches!(query.query, Some(Asks::Fusion { .. } | Asks::Rrf { .. }));
            let has_prefetch = !prefetches.is_empty();
            let carried = match &formula {
                Some(formula) => {
                    Carry { payload: true, vectors: carry.vectors || formula.expression.asks_for_vectors() }
                }
                None if fused => carry,
                None => Carry::default(),
            };
            let mut lists = Vec::with_capacity(prefetches.len());
            for prefetch in prefetches {
                lists.push(self.run(prefetch, filter.clone(), carried, depth + 1).await?.hits);
            }
            // Whatever is wrong with a prefetch is told first.
            if fused && !using.is_empty() {
                let reason = "Bad request: Fusion queries cannot be combined with the 'using' field.";
                return Err(Error::new(Kind::Invalid, reason));
            }
            let candidates = has_prefetch.then(|| {
                let ids: std::collections::BTreeSet<PointId> =
                    lists.iter().flatten().map(|hit| hit.id.clone()).collect();
                Filter::Ids(ids.into_iter().collect())
            });
            let parameters = query.params.unwrap_or_default();
            let search = |target: Target, mut all: Vec<Filter>| {
                all.extend(filter.clone());
                // Candidates are few: they are compared one by one.
                let exact = parameters.exact.unwrap_or(false) || candidates.is_some();
                all.extend(candidates.clone());
                SearchQuery {
                    vector_name: using.clone(),
                    target,
                    limit: wanted.min(SearchQuery::LIMIT_MAX),
                    filter: (!all.is_empty()).then_some(Filter::All(all)),
                    exact,
                    ef: parameters.hnsw_ef.map(|ef| ef.clamp(1, SearchQuery::EF_MAX)),
                    with_payload: carry.payload,
                    with_vectors: carry.vectors,
                    score_threshold: query.score_threshold,
                }
            };
            let mut ranked: Ranked = match query.query {
                Some(Asks::Example(example) | Asks::Nearest { nearest: example, mmr: None }) => {
                    let (vector, seen) = self.example(example, source).await?;
                    self.search(search(Target::Near(vector), without(seen))).await?.into()
                }
                Some(Asks::Nearest { nearest: example, mmr: Some(mmr) }) => {
                    let (vector, seen) = self.example(example, source).await?;
                    let mut candidates = search(Target::Near(vector), without(seen));
                    candidates.limit = mmr.candidates_limit.unwrap_or(limit).clamp(1, SearchQuery::LIMIT_MAX);
                    self.diverse(candidates, mmr.diversity.unwrap_or(0.5), wanted, carry).await?.into()
                }
                Some(Asks::Recommend { recommend }) => {
                    let (target, seen) = self.recommend(recommend, source).await?;
                    self.search(search(target, without(seen))).await?.into()
                }
                Some(Asks::Discover { discover }) => {
                    let (target, seen) = self.discover(Some(discover.target), discover.context, source).await?;
                    self.search(search(target, without(seen))).await?.into()
                }
                Some(Asks::Context { context }) => {
                    let (target, seen) = self.discover(None, Some(context), source).await?;
                    self.search(search(target, without(seen))).await?.into()
                }
                Some(Asks::Fusion { fusion: Fusion::Rrf }) => reciprocal(lists, RRF_K, None)?.into(),
                Some(Asks::Rrf { rrf }) => {
                    reciprocal(lists, rrf.k.map_or(RRF_K, |k| k as f32), rrf.weights.as_deref())?.into()
                }
                Some(Asks::Fusion { fusion: Fusion::Dbsf }) => distribution(lists).into(),
                Some(Asks::OrderBy { order_by }) => {
                    let filter = filter.into_iter().chain(candidates).collect();
                    self.listed(Some(order_by.order()), Filter::All(filter), wanted, carry).await?
                }
                Some(Asks::Sample { sample: Sample::Random }) => {
                    let filter = filter.into_iter().chain(candidates).collect();
                    let order = Order::Random(self.pipeline.view().draw());
                    self.listed(Some(order), Filter::All(filter), wanted, carry).await?
                }
                Some(Asks::Formula { .. }) => match formula {
                    Some(formula) => self.weighed(formula, lists, query.score_threshold, wanted).await?.into(),
                    None => Ranked::default(),
                },
                Some(Asks::Feedback { relevance_feedback }) => {
                    let (target, seen) = self.feedback(relevance_feedback, source).await?;
                    self.search(search(target, without(seen))).await?.into()
                }
                None => self.listed(None, Filter::All(filter.into_iter().collect()), wanted, carry).await?,
            };
            if fused && let Some(least) = query.score_threshold {
                ranked.hits.retain(|hit| hit.score >= least);
            }
            Ok(ranked.page(offset, wanted))
        })
    }

    async fn search(&self, mut query: SearchQuery) -> Result<Vec<Hit>, Error> {
        has_vector(self.spec, &query.vector_name)?;
        self.spec.adopt_query(&mut query);
        if let Some(spec) = self.spec.vector(&query.vector_name) {
            query.vectors().into_iter().try_for_each(|vector| dimension(spec.check(vector)))?;
        }
        Ok(self.pipeline.search(self.collection, query, &self.reads).await?.hits)
    }

    /// Of the candidates, one after the other that is near and unlike those taken before.
    async fn diverse(
        &self,
        candidates: SearchQuery,
        diversity: f32,
        wanted: usize,
        carry: Carry,
    ) -> Result<Vec<Hit>, Error> {
        if !(0.0..=1.0).contains(&diversity) {
            return Err(out_of_bounds(
                "query.mmr.diversity",
                format!("value {diversity} invalid, must be from 0.0 to 1.0"),
            ));
        }
        let name = candidates.vector_name.clone();
        let of_rows = self.spec.multi_vectors.get(&name).map(|multi| multi.metric);
        let metric = self.spec.vectors.get(&name).map(|vector| vector.metric).or(of_rows).unwrap_or(Metric::Dot);
        let hits = self.search(SearchQuery { with_vectors: true, ..candidates }).await?;
        let relevance: Vec<f32> = hits.iter().map(|hit| likeness(metric, hit.score)).collect();
        let vectors: Vec<Option<&Stored>> = hits.iter().map(|hit| hit.vectors.get(&name)).collect();
        let order = marginal(metric, &relevance, &vectors, 1.0 - diversity, wanted);
        let mut hits: Vec<Option<Hit>> = hits.into_iter().map(Some).collect();
        let mut taken: Vec<Hit> = order.into_iter().filter_map(|at| hits.get_mut(at)?.take()).collect();
        if !carry.vectors {
            taken.iter_mut().for_each(|hit| hit.vectors.clear());
        }
        Ok(taken)
    }

    /// Ranks by a formula, off the runtime: it is computed for every point that was found.
    async fn weighed(
        &self,
        formula: Formula,
        lists: Vec<Vec<Hit>>,
        least: Option<f32>,
        wanted: usize,
    ) -> Result<Vec<Hit>, Error> {
        let ranked = self.pipeline.compute().run(move || async move { formula.rank(lists, least, wanted) }).await;
        let ranked = ranked.map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
        ranked.map_err(|error| match error {
            FormulaError::Payload(_) => Error::new(Kind::Internal, error.to_string()),
            FormulaError::NotFinite(_) | FormulaError::Value { .. } => Error::new(Kind::Invalid, error.to_string()),
        })
    }

    /// Points as a scroll lists them. Their score says nothing.
    async fn listed(&self, order: Option<Order>, filter: Filter, wanted: usize, carry: Carry) -> Result<Ranked, Error> {
        let wants = Wants { payload: carry.payload, vectors: carry.vectors };
        let limit = wanted.min(ScrollWanted::LIMIT_MAX);
        let page = ScrollWanted { after: None, limit, filter: Some(filter), wants, order };
        let page = self.pipeline.scroll(self.collection, page, &self.reads).await?;
        let hits = page.points.into_iter().map(|record| hit(record, 1.0)).collect();
        Ok(Ranked { hits, order_values: page.order_values })
    }
}

/// A collection that something is looked up in.
pub(super) async fn looked_up(pipeline: &Pipeline, name: &str) -> Result<CollectionSpec, Error> {
    let found = super::collections::find(pipeline, name).await.map_err(|error| match error.kind {
        Kind::NotFound => Error::new(Kind::NotFound, format!("Not found: Collection {name} not found")),
        _ => error,
    });
    Ok(found?.spec)
}

/// Refuses a name that no vector of the collection has.
pub(super) fn has_vector(spec: &CollectionSpec, name: &str) -> Result<(), Error> {
    let unknown = || Error::new(Kind::Invalid, format!("Wrong input: Not existing vector name error: {name}"));
    spec.vector(name).map(|_| ()).ok_or_else(unknown)
}

/// Tells of another dimension as Qdrant does. What else is wrong is told by whoever is asked to search.
fn dimension(checked: Result<(), VectorError>) -> Result<(), Error> {
    match checked {
        Err(VectorError::Dimension { got, want }) => {
            let message = format!("Wrong input: Vector dimension error: expected dim: {want}, got {got}");
            Err(Error::new(Kind::Invalid, message))
        }
        Err(VectorError::Row { why, .. }) => dimension(Err(*why)),
        _ => Ok(()),
    }
}

/// Leaves points out.
fn without(ids: impl IntoIterator<Item = PointId>) -> Vec<Filter> {
    let ids: Vec<PointId> = ids.into_iter().collect();
    if ids.is_empty() { Vec::new() } else { vec![Filter::Not(Box::new(Filter::Ids(ids)))] }
}

fn hit(record: PointRecord, score: f32) -> Hit {
    let PointRecord { id, version, payload_json, vectors } = record;
    Hit { id, score, version, payload_json, vectors }
}

/// The hits of a query, and how they are to be told.
pub(super) struct Found {
    pub(super) hits: Vec<Hit>,
    order_values: Vec<Scalar>,
    payload: WithPayload,
    vector: WithVector,
}

impl Found {
    /// The hit at this place as it is answered; `None` where there is none.
    pub(super) fn told(&self, at: usize) -> Result<Option<Value>, Error> {
        let Some(hit) = self.hits.get(at) else { return Ok(None) };
        let mut told = hit_json(hit, &self.payload, &self.vector)?;
        if let Some(value) = self.order_values.get(at) {
            told["order_value"] = order_value(value);
        }
        Ok(Some(told))
    }
}

/// Runs a query; `with_payload`: the hits carry payloads whatever is told of them.
pub(super) async fn found(
    door: &Door,
    collection: &str,
    query: Query,
    asked: &Asked,
    with_payload: bool,
) -> Result<Found, Error> {
    let spec = super::collections::find(&door.pipeline, collection).await?.spec;
    let payload = query.with_payload.clone().unwrap_or(WithPayload::All(false));
    let vector = query.with_vector.clone().unwrap_or(WithVector::All(false));
    vector.check(&spec)?;
    let search = Search { pipeline: &door.pipeline, collection, spec: &spec, reads: asked.reads()? };
    let carry = Carry { payload: with_payload || payload.any(), vectors: vector.any() };
    let Ranked { hits, order_values } = search.run(query, None, carry, 0).await?;
    Ok(Found { hits, order_values, payload, vector })
}

/// The hits as they are answered.
async fn answered(door: &Door, collection: &str, query: Query, asked: &Asked) -> Result<Vec<Value>, Error> {
    let found = found(door, collection, query, asked, false).await?;
    (0..found.hits.len()).filter_map(|at| found.told(at).transpose()).collect()
}

/// The hits of a request for one query.
async fn single(door: &Door, collection: &str, query: Query, asked: &Asked) -> Result<Vec<Value>, Error> {
    super::strict::allow_searches(&door.pipeline, collection, asked, None, std::iter::once(&query)).await?;
    answered(door, collection, query, asked).await
}

/// The hits of each query of a batch.
async fn several(door: &Door, collection: &str, queries: Vec<Query>, asked: &Asked) -> Result<Vec<Vec<Value>>, Error> {
    super::strict::allow_searches(&door.pipeline, collection, asked, Some(queries.len()), queries.iter()).await?;
    let searches = queries.into_iter().map(|query| answered(door, collection, query, asked));
    futures::future::try_join_all(searches).await
}

fn hit_json(hit: &Hit, payload: &WithPayload, vector: &WithVector) -> Result<Value, Error> {
    let mut answer = json!({"id": id_json(&hit.id), "version": hit.version.index, "score": single_json(hit.score)});
    if let Some(object) = answer.as_object_mut() {
        if let Some(payload) = payload.of(&hit.payload_json)? {
            object.insert("payload".to_owned(), Value::Object(payload));
        }
        if let Some(vector) = vector.of(&hit.vectors) {
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
    let points = single(&door, &collection, body, &asked).await?;
    Ok(asked.told(json!({"points": points})))
}

#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct Batch<T> {
    searches: Vec<T>,
}

pub(super) async fn query_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<Query>>,
) -> Answer<Value> {
    let lists = several(&door, &collection, body.searches, &asked).await?;
    Ok(asked.told(lists.into_iter().map(|points| json!({"points": points})).collect()))
}
