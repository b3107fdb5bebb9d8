//! Searches: one vector, examples, several queries fused.
//!
//! A query with prefetches is evaluated from the inside out: each prefetch is a search of its own over the whole collection;
//! fusion ranks what they found, a vector scores it anew, exactly. A query's filter holds for its prefetches, too. Every part is one read at its own positions.
use std::collections::BTreeMap;
use std::pin::Pin;

use axum::extract::{Path, State};
use nearring_proto::collection::CollectionSpec;
use nearring_proto::examples::{Examples, Pair};
use nearring_proto::filter::Filter;
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::order::Order;
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::{Metric, Vector as Stored};
use nearring_proto::write::PointRecord;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::filter::QdrantFilter;
use super::points::OrderBy;
use super::values::{Id, Vector, WithPayload, WithVector, id_json, recommended};
use super::{Answer, Asked, Body, Door, not_supported};
use crate::failure::{Error, Kind};
use crate::pipeline::{Pipeline, ScrollWanted, Wants};
use crate::plan::ReadOptions;

mod facts;

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
        #[serde(rename = "formula")]
        #[schemars(with = "Value")]
        _formula: IgnoredAny,
    },
    Feedback {
        #[serde(rename = "relevance_feedback")]
        #[schemars(with = "Value")]
        _feedback: IgnoredAny,
    },
    // Behind the others: it takes whatever it is.
    Example(Example),
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
enum Example {
    Id(Id),
    Vector(Vector),
}

/// To be near to the target, on the positive side of as many pairs as can be.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct Discover {
    target: Example,
    #[serde(default)]
    context: Option<Pairs>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
enum Pairs {
    Many(Vec<PairOf>),
    One(PairOf),
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
struct PairOf {
    positive: Example,
    negative: Example,
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Strategy {
    AverageVector,
    BestScore,
    SumScores,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
struct Recommend {
    #[serde(default)]
    positive: Vec<Example>,
    #[serde(default)]
    negative: Vec<Example>,
    #[serde(default)]
    strategy: Option<Strategy>,
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

impl Search<'_> {
    /// The hits of a query, best first, without its offset; `above` are the filters of the queries that it is a prefetch of.
    fn run<'s>(
        &'s self,
        query: Query,
        above: Option<Filter>,
        carry: Carry,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Hit>, Error>> + Send + 's>> {
        Box::pin(async move {
            if depth > DEPTH_MAX {
                return Err(Error::invalid("prefetch", format!("nests deeper than {DEPTH_MAX}")));
            }
            if query.shard_key.as_ref().is_some_and(|key| !key.is_null()) {
                return Err(not_supported("shard_key").0);
            }
            // A sample has no pages: each is drawn anew.
            let sampled = matches!(query.query, Some(Asks::Sample { .. }));
            let offset = query.offset.filter(|_| !sampled).unwrap_or(0);
            let limit = query.limit.unwrap_or(LIMIT);
            if limit == 0 {
                return Err(Error::invalid("limit", "is 0, must be at least 1"));
            }
            let wanted = limit.saturating_add(offset);
            let own = query.filter.map(QdrantFilter::read).transpose()?;
            let filter = match (above, own) {
                (Some(above), Some(own)) => Some(Filter::All(vec![above, own])),
                (above, own) => above.or(own),
            };
            let using = query.using.unwrap_or_default();
            let source = match &query.lookup_from {
                None => Source { collection: self.collection, vector: &using },
                Some(LookupFrom { collection, vector }) => {
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
            let carried = if fused { carry } else { Carry::default() };
            let mut lists = Vec::with_capacity(prefetches.len());
            for prefetch in prefetches {
                lists.push(self.run(prefetch, filter.clone(), carried, depth + 1).await?);
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
            let mut hits = match query.query {
                Some(Asks::Example(example) | Asks::Nearest { nearest: example, mmr: None }) => {
                    let (vector, seen) = self.example(example, source).await?;
                    self.search(search(Target::Near(vector), without(seen))).await?
                }
                Some(Asks::Nearest { nearest: example, mmr: Some(mmr) }) => {
                    let (vector, seen) = self.example(example, source).await?;
                    let mut candidates = search(Target::Near(vector), without(seen));
                    candidates.limit = mmr.candidates_limit.unwrap_or(limit).clamp(1, SearchQuery::LIMIT_MAX);
                    self.diverse(candidates, mmr.diversity.unwrap_or(0.5), wanted, carry).await?
                }
                Some(Asks::Recommend { recommend }) => {
                    let (target, seen) = self.recommend(recommend, source).await?;
                    self.search(search(target, without(seen))).await?
                }
                Some(Asks::Discover { discover }) => {
                    let (target, seen) = self.discover(Some(discover.target), discover.context, source).await?;
                    self.search(search(target, without(seen))).await?
                }
                Some(Asks::Context { context }) => {
                    let (target, seen) = self.discover(None, Some(context), source).await?;
                    self.search(search(target, without(seen))).await?
                }
                Some(Asks::Fusion { fusion: Fusion::Rrf }) => reciprocal(lists, RRF_K, None)?,
                Some(Asks::Rrf { rrf }) => {
                    reciprocal(lists, rrf.k.map_or(RRF_K, |k| k as f32), rrf.weights.as_deref())?
                }
                Some(Asks::Fusion { fusion: Fusion::Dbsf }) => distribution(lists),
                Some(Asks::OrderBy { order_by }) => {
                    let filter = filter.into_iter().chain(candidates).collect();
                    self.listed(Some(order_by.order()), Filter::All(filter), wanted, carry).await?
                }
                Some(Asks::Sample { sample: Sample::Random }) => {
                    let filter = filter.into_iter().chain(candidates).collect();
                    let order = Order::Random(self.pipeline.view().draw());
                    self.listed(Some(order), Filter::All(filter), wanted, carry).await?
                }
                Some(Asks::Formula { .. }) => return Err(not_supported("query formula").0),
                Some(Asks::Feedback { .. }) => return Err(not_supported("query relevance_feedback").0),
                None if !has_prefetch => {
                    self.listed(None, Filter::All(filter.into_iter().collect()), wanted, carry).await?
                }
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

    /// Of the candidates, one after the other that is near and unlike those taken before.
    async fn diverse(
        &self,
        candidates: SearchQuery,
        diversity: f32,
        wanted: usize,
        carry: Carry,
    ) -> Result<Vec<Hit>, Error> {
        if !(0.0..=1.0).contains(&diversity) {
            return Err(Error::invalid("query.mmr.diversity", format!("is {diversity}, must be 0.0 to 1.0")));
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

    /// The vector that an example stands for, and its id where it is a point of this collection.
    async fn example(&self, example: Example, source: Source<'_>) -> Result<(Stored, Option<PointId>), Error> {
        match example {
            Example::Vector(vector) => Ok((vector.read("query")?, None)),
            Example::Id(id) => {
                let id = PointId::from(id);
                let spec = super::collections::find(self.pipeline, source.collection).await?.spec;
                if spec.vector(source.vector).is_none() {
                    let name = source.vector;
                    return Err(Error::invalid("using", format!("Not existing vector name error: {name}")));
                }
                let wants = Wants { payload: false, vectors: true };
                let read = self.pipeline.get(source.collection, vec![id.clone()], wants, &self.reads).await?;
                let missing = || Error::new(Kind::NotFound, format!("Not found: No point with id {id} found"));
                let record: &PointRecord = read.points.first().ok_or_else(missing)?;
                let vector = record.vectors.get(source.vector).cloned().ok_or_else(missing)?;
                Ok((vector, (source.collection == self.collection).then_some(id)))
            }
        }
    }

    /// What examples speak for: by default the average of what is liked, moved away from the average of what is not.
    async fn recommend(&self, wanted: Recommend, source: Source<'_>) -> Result<(Target, Vec<PointId>), Error> {
        let strategy = wanted.strategy.unwrap_or(Strategy::AverageVector);
        if wanted.positive.is_empty() && (strategy == Strategy::AverageVector || wanted.negative.is_empty()) {
            return Err(Error::invalid("recommend.positive", "is empty; give at least one example"));
        }
        let mut seen = Vec::new();
        let mut sides = [Vec::new(), Vec::new()];
        for (examples, vectors) in [wanted.positive, wanted.negative].into_iter().zip(&mut sides) {
            for example in examples {
                let (vector, id) = self.example(example, source).await?;
                seen.extend(id);
                vectors.push(vector);
            }
        }
        let [liked, disliked] = sides;
        let target = match strategy {
            Strategy::AverageVector => Target::Near(recommended(liked, disliked)?),
            Strategy::BestScore => Target::Examples(Examples::Best { liked, disliked }),
            Strategy::SumScores => Target::Examples(Examples::Sum { liked, disliked }),
        };
        Ok((target, seen))
    }

    /// Pairs of examples, each with a side to be on, and perhaps a target.
    async fn discover(
        &self,
        target: Option<Example>,
        context: Option<Pairs>,
        source: Source<'_>,
    ) -> Result<(Target, Vec<PointId>), Error> {
        let context = match context {
            None => Vec::new(),
            Some(Pairs::One(one)) => vec![one],
            Some(Pairs::Many(many)) => many,
        };
        if target.is_none() && context.is_empty() {
            return Err(Error::invalid("context", "is empty; give at least one pair"));
        }
        let mut seen = Vec::new();
        let mut pairs = Vec::with_capacity(context.len());
        for PairOf { positive, negative } in context {
            let (liked, first) = self.example(positive, source).await?;
            let (disliked, second) = self.example(negative, source).await?;
            seen.extend([first, second].into_iter().flatten());
            pairs.push(Pair { liked, disliked });
        }
        let examples = match target {
            None => Examples::Context { pairs },
            Some(target) => {
                let (target, id) = self.example(target, source).await?;
                seen.extend(id);
                Examples::Discover { target, pairs }
            }
        };
        Ok((Target::Examples(examples), seen))
    }

    /// Points as a scroll lists them. Their score says nothing.
    async fn listed(
        &self,
        order: Option<Order>,
        filter: Filter,
        wanted: usize,
        carry: Carry,
    ) -> Result<Vec<Hit>, Error> {
        let wants = Wants { payload: carry.payload, vectors: carry.vectors };
        let limit = wanted.min(ScrollWanted::LIMIT_MAX);
        let page = ScrollWanted { after: None, limit, filter: Some(filter), wants, order };
        let page = self.pipeline.scroll(self.collection, page, &self.reads).await?;
        Ok(page.points.into_iter().map(|record| hit(record, 1.0)).collect())
    }
}

/// Where the ids of a query are looked up.
#[derive(Clone, Copy)]
struct Source<'a> {
    collection: &'a str,
    vector: &'a str,
}

/// Leaves points out.
fn without(ids: impl IntoIterator<Item = PointId>) -> Vec<Filter> {
    let ids: Vec<PointId> = ids.into_iter().collect();
    if ids.is_empty() { Vec::new() } else { vec![Filter::Not(Box::new(Filter::Ids(ids)))] }
}

/// A score as a likeness, of which more is nearer: of a distance its square, negative.
fn likeness(metric: Metric, score: f32) -> f32 {
    if metric.higher_is_nearer() { score } else { -score * score }
}

/// How alike two rows are, on the scale of [`likeness`].
fn alike(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    let pairs = a.iter().zip(b);
    match metric {
        Metric::Cosine | Metric::Dot => pairs.map(|(a, b)| a * b).sum(),
        Metric::L2 => -pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f32>(),
    }
}

/// The same of any two vectors; of several rows each one's likest is added up. 0 where they cannot be compared.
fn likeness_of(metric: Metric, a: Option<&Stored>, b: Option<&Stored>) -> f32 {
    match (a, b) {
        (Some(Stored::Dense(a)), Some(Stored::Dense(b))) => alike(metric, a, b),
        (Some(Stored::Sparse(a)), Some(Stored::Sparse(b))) => a.dot(b).unwrap_or(0.0),
        (Some(Stored::Multi(a)), Some(Stored::Multi(b))) => {
            let likest = |row| b.rows().map(|other| alike(metric, row, other)).fold(f32::NEG_INFINITY, f32::max);
            a.rows().map(likest).sum()
        }
        _ => 0.0,
    }
}

/// Maximal marginal relevance (Carbonell and Goldstein, 1998): the places of up to `wanted` candidates, each the one of the
/// greatest `lambda` · relevance − (1 − `lambda`) · likeness to the likest of those before it.
fn marginal(metric: Metric, relevance: &[f32], vectors: &[Option<&Stored>], lambda: f32, wanted: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..relevance.len()).collect();
    let mut likest = vec![f32::NEG_INFINITY; relevance.len()];
    let mut taken: Vec<usize> = Vec::new();
    while taken.len() < wanted && !left.is_empty() {
        let worth = |at: usize| match taken.is_empty() {
            true => relevance[at],
            false => lambda * relevance[at] - (1.0 - lambda) * likest[at],
        };
        let best = (0..left.len()).reduce(|best, at| if worth(left[at]) > worth(left[best]) { at } else { best });
        let Some(best) = best else { break };
        let next = left.remove(best);
        for at in &left {
            likest[*at] = likest[*at].max(likeness_of(metric, vectors[*at], vectors[next]));
        }
        taken.push(next);
    }
    taken
}

fn hit(record: PointRecord, score: f32) -> Hit {
    let PointRecord { id, version, payload_json, vectors } = record;
    Hit { id, score, version, payload_json, vectors }
}

/// Reciprocal rank fusion: Σ 1 / (k − 1 + (rank + 1) / weight), ranks from 0. A weight of 0 leaves a list's hits without a share.
fn reciprocal(lists: Vec<Vec<Hit>>, k: f32, weights: Option<&[f32]>) -> Result<Vec<Hit>, Error> {
    if k < 1.0 {
        return Err(Error::invalid("query.rrf.k", "is 0, must be at least 1"));
    }
    if let Some(weights) = weights {
        if weights.len() != lists.len() {
            let reason = format!("has {} numbers for {} prefetches", weights.len(), lists.len());
            return Err(Error::invalid("query.rrf.weights", reason));
        }
        if let Some(weight) = weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
            return Err(Error::invalid("query.rrf.weights", format!("has {weight}, must be 0 or more")));
        }
    }
    let share = |list: usize, rank: usize| match weights.and_then(|weights| weights.get(list)).copied().unwrap_or(1.0) {
        weight if weight > 0.0 => 1.0 / (k - 1.0 + (rank + 1) as f32 / weight),
        _ => 0.0,
    };
    Ok(fused(
        lists
            .into_iter()
            .enumerate()
            .map(|(at, list)| list.into_iter().enumerate().map(|(rank, hit)| (share(at, rank), hit)).collect()),
    ))
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

/// The hits of a query, and how they are to be told.
pub(super) struct Found {
    pub(super) hits: Vec<Hit>,
    spec: CollectionSpec,
    payload: WithPayload,
    vector: WithVector,
}

impl Found {
    /// One of the hits as it is answered.
    pub(super) fn told(&self, hit: &Hit) -> Result<Value, Error> {
        hit_json(hit, &self.spec, &self.payload, &self.vector)
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
    let search = Search { pipeline: &door.pipeline, collection, spec: &spec, reads: asked.reads()? };
    let carry = Carry { payload: with_payload || payload.any(), vectors: vector.any() };
    let hits = search.run(query, None, carry, 0).await?;
    Ok(Found { hits, spec, payload, vector })
}

/// The hits as they are answered.
async fn answered(door: &Door, collection: &str, query: Query, asked: &Asked) -> Result<Vec<Value>, Error> {
    let found = found(door, collection, query, asked, false).await?;
    found.hits.iter().map(|hit| found.told(hit)).collect()
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

/// The older recommendation: examples beside each other.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct OldRecommend {
    #[serde(flatten)]
    recommend: Recommend,
    #[serde(flatten)]
    rest: Query,
}

impl OldRecommend {
    pub(super) fn query(self) -> Query {
        Query { query: Some(Asks::Recommend { recommend: self.recommend }), ..self.rest }
    }
}

pub(super) async fn recommend(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<OldRecommend>,
) -> Answer<Value> {
    Ok(asked.told(single(&door, &collection, body.query(), &asked).await?.into()))
}

pub(super) async fn recommend_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<OldRecommend>>,
) -> Answer<Value> {
    let queries = body.searches.into_iter().map(OldRecommend::query).collect();
    let lists = several(&door, &collection, queries, &asked).await?;
    Ok(asked.told(lists.into_iter().map(Value::from).collect()))
}

/// The older discovery: target and context beside each other; without a target the context alone.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct OldDiscover {
    #[serde(default)]
    target: Option<Example>,
    #[serde(default)]
    context: Option<Pairs>,
    #[serde(flatten)]
    rest: Query,
}

impl OldDiscover {
    pub(super) fn query(self) -> Query {
        let context = self.context.unwrap_or(Pairs::Many(Vec::new()));
        let asks = match self.target {
            None => Asks::Context { context },
            Some(target) => Asks::Discover { discover: Discover { target, context: Some(context) } },
        };
        Query { query: Some(asks), ..self.rest }
    }
}

pub(super) async fn discover(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<OldDiscover>,
) -> Answer<Value> {
    Ok(asked.told(single(&door, &collection, body.query(), &asked).await?.into()))
}

pub(super) async fn discover_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<OldDiscover>>,
) -> Answer<Value> {
    let queries = body.searches.into_iter().map(OldDiscover::query).collect();
    let lists = several(&door, &collection, queries, &asked).await?;
    Ok(asked.told(lists.into_iter().map(Value::from).collect()))
}

/// The older search: one vector, perhaps named.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct OldSearch {
    vector: OldVector,
    #[serde(flatten)]
    rest: Query,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
enum OldVector {
    Plain(Vec<f32>),
    Named { name: String, vector: Vector },
}

impl OldSearch {
    pub(super) fn query(self) -> Query {
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
    Ok(asked.told(single(&door, &collection, body.query(), &asked).await?.into()))
}

pub(super) async fn search_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<OldSearch>>,
) -> Answer<Value> {
    let queries = body.searches.into_iter().map(OldSearch::query).collect();
    let lists = several(&door, &collection, queries, &asked).await?;
    Ok(asked.told(lists.into_iter().map(Value::from).collect()))
}
