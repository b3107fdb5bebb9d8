//! Searches and point reads.
use std::collections::{BTreeMap, BTreeSet};

use nearring_proto::WIRE_FORMAT;
use nearring_proto::collection::Modifier;
use nearring_proto::coverage::{Coverage, ShardCoverage};
use nearring_proto::filter::{Filter, Scalar};
use nearring_proto::hit::Hit;
use nearring_proto::ids::{PointId, ShardId};
use nearring_proto::order::{Facet, FacetValue, Order};
use nearring_proto::placement::ring::HomeRing;
use nearring_proto::position::{Position, ReadLevel};
use nearring_proto::query::SearchQuery;
use nearring_proto::vector::Vector;
use nearring_proto::wire;
use nearring_proto::write::PointRecord;
use tokio::time::Instant;

use super::{Found, Pipeline, cluster_bytes};
use crate::failure::{Error, Kind, Meaning, NodeFailure};
use crate::merge::Merge;
use crate::plan::idf::Frequencies;
use crate::plan::{Plan, ReadOptions};
use crate::scatter::{Answers, Call, Reached, scatter};

/// What a search found.
#[derive(Clone, PartialEq, Debug)]
pub struct SearchAnswer {
    /// Nearest first.
    pub hits: Vec<Hit>,
    /// Which shards answered, and which did not.
    pub coverage: Coverage,
}

/// Points read.
#[derive(Clone, PartialEq, Debug)]
pub struct GetAnswer {
    /// Those that exist, in the order asked for.
    pub points: Vec<PointRecord>,
    /// Where they were read.
    pub positions: Vec<Position>,
}

/// A page of points.
#[derive(Clone, PartialEq, Debug)]
pub struct ScrollAnswer {
    /// In id order, or the order asked for.
    pub points: Vec<PointRecord>,
    /// Ordered by payload: the value that each point is listed for.
    pub order_values: Vec<Scalar>,
    /// Where the next page begins, exclusively; `None` at the end.
    pub next: Option<PointId>,
    /// Where they were read.
    pub positions: Vec<Position>,
}

/// Values counted.
#[derive(Clone, PartialEq, Debug)]
pub struct FacetAnswer {
    /// Values and how many points have each; most frequent first.
    pub counts: Vec<(FacetValue, u64)>,
    /// Where they were counted.
    pub positions: Vec<Position>,
}

/// Points counted.
#[derive(Clone, PartialEq, Debug)]
pub struct CountAnswer {
    /// How many match.
    pub count: u64,
    /// Where they were counted.
    pub positions: Vec<Position>,
}

/// What is returned beside ids and versions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wants {
    /// Payloads.
    pub payload: bool,
    /// Vectors.
    pub vectors: bool,
}

/// Which page of points.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ScrollWanted {
    /// Exclusive; `None` = from the start.
    pub after: Option<PointId>,
    /// 0 = [`ScrollWanted::LIMIT`].
    pub limit: usize,
    /// Only points that match.
    pub filter: Option<Filter>,
    /// What to return of each.
    pub wants: Wants,
    /// Another order than that of ids; then there is one page, from the start.
    pub order: Option<Order>,
}

impl ScrollWanted {
    /// Points a page by default.
    pub const LIMIT: usize = 100;
    /// The most points a page.
    pub const LIMIT_MAX: usize = 10_000;
}

impl Pipeline {
    /// Answers one query.
    ///
    /// # Errors
    /// [`Kind::Invalid`] naming a field of `query`; [`Kind::NotFound`]; where no shard answered, or not every one did
    /// and full coverage was asked for.
    pub async fn search(
        &self,
        collection: &str,
        query: SearchQuery,
        options: &ReadOptions,
    ) -> Result<SearchAnswer, Error> {
        let until = self.read_until(options.deadline);
        let found = self.collection(collection, until).await?;
        let mut answers = self.search_found(&found, vec![query], options, until, |_| "query".to_owned()).await?;
        answers.pop().ok_or_else(|| Error::new(Kind::Internal, "a query without an answer"))
    }

    /// Answers several queries in one go, each as [`Pipeline::search`] would.
    ///
    /// # Errors
    /// As [`Pipeline::search`], for all of them.
    pub async fn search_batch(
        &self,
        collection: &str,
        queries: Vec<SearchQuery>,
        options: &ReadOptions,
    ) -> Result<Vec<SearchAnswer>, Error> {
        let most = self.settings().limits.batch_queries;
        if queries.is_empty() || queries.len() > most {
            return Err(Error::invalid("queries", format!("has {} entries, give 1 to {most}", queries.len())));
        }
        let until = self.read_until(options.deadline);
        let found = self.collection(collection, until).await?;
        self.search_found(&found, queries, options, until, |at| format!("queries[{at}]")).await
    }

    async fn search_found(
        &self,
        found: &Found,
        mut queries: Vec<SearchQuery>,
        options: &ReadOptions,
        until: Instant,
        field: impl Fn(usize) -> String,
    ) -> Result<Vec<SearchAnswer>, Error> {
        let spec = &found.collection.spec;
        for (at, query) in queries.iter_mut().enumerate() {
            spec.adopt_query(query);
            spec.check_query(query)
                .map_err(|invalid| Error::invalid(format!("{}.{}", field(at), invalid.field), invalid.reason))?;
            spec.prepare_query(query);
        }
        let mut plan = Plan::new(&found.table, &found.collection, options, ReadLevel::Session, None);
        let asked: Vec<ShardId> = plan.shards.keys().copied().collect();
        let uncounted = self.weigh(found, &plan, &mut queries, options.full_coverage, until).await?;
        plan.shards.retain(|shard, _| !uncounted.contains_key(shard));
        let messages: Vec<wire::SearchQuery> = queries.iter().cloned().map(Into::into).collect();
        let reached = scatter(self.view(), &plan, until, |call| {
            let request = wire::NodeSearchRequest {
                format: WIRE_FORMAT,
                cluster_id: cluster_bytes(found.table.cluster),
                shards: call.shards.iter().map(|shard| shard.0).collect(),
                queries: messages.clone(),
                read: Some(node_read(&plan, &call.shards, call.deadline_ms)),
            };
            search_node(call, request)
        });
        let mut reached = reached.await?;
        reached.failed.extend(uncounted);
        if let Some(error) = reached.missing()
            && (options.full_coverage || reached.answers.is_empty())
        {
            return Err(error);
        }
        let merge = |query: &SearchQuery| {
            let metric = spec.vector(&query.vector_name).map(|vector| vector.metric());
            let metric = metric.unwrap_or(nearring_proto::vector::Metric::Cosine);
            Merge::new(query.ranking(metric), query.limit, asked.iter().copied())
        };
        let mut merges: Vec<Merge> = queries.iter().map(merge).collect();
        let Reached { answers, failed } = reached;
        for (shard, (node, answer)) in answers {
            let searched = ShardCoverage::Searched { node, index: answer.index, segments: answer.segments };
            for (merge, hits) in merges.iter_mut().zip(answer.lists) {
                merge.push(shard, searched.clone(), hits);
            }
        }
        for (shard, why) in failed {
            let why = ShardCoverage::Failed { reason: why.to_string() };
            merges.iter_mut().for_each(|merge| merge.push_absent(shard, why.clone()));
        }
        let answer = |merge: Merge| {
            let (hits, coverage) = merge.finish();
            SearchAnswer { hits, coverage }
        };
        Ok(merges.into_iter().map(answer).collect())
    }

    /// Multiplies the values of sparse queries by the inverse frequencies of their indices, where the vector has that modifier;
    /// the frequencies are those of all shards together (see [`crate::plan::idf`]). The shards that did not tell theirs, with why.
    async fn weigh(
        &self,
        found: &Found,
        plan: &Plan,
        queries: &mut [SearchQuery],
        full_coverage: bool,
        until: Instant,
    ) -> Result<BTreeMap<ShardId, NodeFailure>, Error> {
        let specs = &found.collection.spec.sparse_vectors;
        let has_modifier = |name: &str| specs.get(name).is_some_and(|spec| spec.modifier == Modifier::Idf);
        let mut weighed = Vec::new();
        for query in queries.iter_mut().filter(|query| has_modifier(&query.vector_name)) {
            let name = query.vector_name.clone();
            for vector in query.vectors_mut() {
                if let Vector::Sparse(vector) = vector {
                    weighed.push((name.clone(), vector));
                }
            }
        }
        if weighed.is_empty() {
            return Ok(BTreeMap::new());
        }
        let terms = weighed.iter().map(|(vector_name, vector)| wire::node_frequencies_request::Terms {
            vector_name: vector_name.clone(),
            indices: vector.indices().to_vec(),
        });
        let (terms, cluster): (Vec<_>, _) = (terms.collect(), found.table.cluster);
        let terms = &terms;
        // A shard that does not count must leave time to search the others.
        let now = Instant::now();
        let until = now + until.saturating_duration_since(now) / 2;
        let reached = scatter(self.view(), plan, until, |call| {
            each_shard(call, move |mut client, shard, deadline_ms| {
                let request = wire::NodeFrequenciesRequest {
                    format: WIRE_FORMAT,
                    cluster_id: cluster_bytes(cluster),
                    shard: shard.0,
                    terms: terms.clone(),
                    read: Some(node_read(plan, &[shard], deadline_ms)),
                };
                async move {
                    let reply = client.frequencies(request).await?.into_inner();
                    position(reply.position, shard)?;
                    frequencies(reply.frequencies, terms)
                }
            })
        });
        let reached = reached.await?;
        if let Some(error) = reached.missing()
            && (full_coverage || reached.answers.is_empty())
        {
            return Err(error);
        }
        let mut sums = vec![Frequencies::default(); weighed.len()];
        for (_, counted) in reached.answers.values() {
            sums.iter_mut().zip(counted).for_each(|(sum, counted)| sum.add(counted));
        }
        for ((_, vector), sum) in weighed.into_iter().zip(&sums) {
            *vector = sum.weigh(vector);
        }
        Ok(reached.failed)
    }

    /// Reads points by id.
    ///
    /// # Errors
    /// [`Kind::Invalid`]; [`Kind::NotFound`] for the collection; where a shard that is asked did not answer.
    pub async fn get(
        &self,
        collection: &str,
        ids: Vec<PointId>,
        wants: Wants,
        options: &ReadOptions,
    ) -> Result<GetAnswer, Error> {
        let most = self.settings().limits.batch_points;
        if ids.is_empty() || ids.len() > most {
            return Err(Error::invalid("ids", format!("has {} entries, give 1 to {most}", ids.len())));
        }
        let until = self.read_until(options.deadline);
        let found = self.collection(collection, until).await?;
        let ring = HomeRing::new(&found.collection.shards);
        let mut homes: BTreeMap<ShardId, Vec<wire::PointId>> = BTreeMap::new();
        let (mut order, mut seen) = (Vec::with_capacity(ids.len()), BTreeSet::new());
        for (at, id) in ids.into_iter().enumerate() {
            found.collection.spec.check_id(&id, &format!("ids[{at}]"))?;
            if seen.insert(id.clone()) {
                let home = ring.home_of(&id, &found.collection.spec.routing_separator);
                homes.entry(home).or_default().push(id.clone().into());
                order.push(id);
            }
        }
        let only = homes.keys().copied().collect();
        let plan = Plan::new(&found.table, &found.collection, options, ReadLevel::Linearizable, Some(&only));
        let (plan, homes, cluster) = (&plan, &homes, found.table.cluster);
        let reached = scatter(self.view(), plan, until, |call| {
            each_shard(call, move |mut client, shard, deadline_ms| {
                let request = wire::NodeGetRequest {
                    format: WIRE_FORMAT,
                    cluster_id: cluster_bytes(cluster),
                    shard: shard.0,
                    ids: homes.get(&shard).cloned().unwrap_or_default(),
                    with_payload: wants.payload,
                    with_vectors: wants.vectors,
                    read: Some(node_read(plan, &[shard], deadline_ms)),
                };
                async move {
                    let reply = client.get(request).await?.into_inner();
                    Ok((records(reply.points)?, position(reply.position, shard)?))
                }
            })
        });
        let (mut by_id, mut positions) = (BTreeMap::new(), Vec::new());
        for (_, (records, position)) in reached.await?.complete()?.into_values() {
            by_id.extend(records.into_iter().map(|record| (record.id.clone(), record)));
            positions.push(position);
        }
        Ok(GetAnswer { points: order.iter().filter_map(|id| by_id.remove(id)).collect(), positions })
    }

    /// One page of all points, in id order.
    ///
    /// # Errors
    /// As [`Pipeline::get`].
    pub async fn scroll(
        &self,
        collection: &str,
        wanted: ScrollWanted,
        options: &ReadOptions,
    ) -> Result<ScrollAnswer, Error> {
        let limit = if wanted.limit == 0 { ScrollWanted::LIMIT } else { wanted.limit };
        if limit > ScrollWanted::LIMIT_MAX {
            return Err(Error::invalid("limit", format!("is {limit}, must be 1 to {}", ScrollWanted::LIMIT_MAX)));
        }
        if let Some(filter) = &wanted.filter {
            filter.check()?;
        }
        if let Some(order) = &wanted.order {
            order.check()?;
            if wanted.after.is_some() {
                return Err(Error::invalid("after", "goes with the order of ids only; begin at a value instead"));
            }
        }
        let until = self.read_until(options.deadline);
        let found = self.collection(collection, until).await?;
        let plan = Plan::new(&found.table, &found.collection, options, ReadLevel::Linearizable, None);
        let (plan, cluster) = (&plan, found.table.cluster);
        let (after, filter) = (wanted.after.map(wire::PointId::from), wanted.filter.map(wire::Filter::from));
        let order = wanted.order.clone().map(wire::Order::from);
        let (after, filter, order) = (&after, &filter, &order);
        let reached = scatter(self.view(), plan, until, |call| {
            each_shard(call, move |mut client, shard, deadline_ms| {
                let request = wire::NodeScrollRequest {
                    format: WIRE_FORMAT,
                    cluster_id: cluster_bytes(cluster),
                    shard: shard.0,
                    after: after.clone(),
                    limit: u32::try_from(limit).unwrap_or(u32::MAX),
                    filter: filter.clone(),
                    with_payload: wanted.wants.payload,
                    with_vectors: wanted.wants.vectors,
                    read: Some(node_read(plan, &[shard], deadline_ms)),
                    order: order.clone(),
                };
                async move {
                    let reply = client.scroll(request).await?.into_inner();
                    let values: Result<Vec<Scalar>, _> = reply.order_values.into_iter().map(Scalar::try_from).collect();
                    let values = values.map_err(malformed)?;
                    let page = Page { records: records(reply.points)?, more: reply.more, values };
                    Ok((page, position(reply.position, shard)?))
                }
            })
        });
        let (mut pages, mut positions) = (Vec::new(), Vec::new());
        for (_, (page, position)) in reached.await?.complete()?.into_values() {
            pages.push(page);
            positions.push(position);
        }
        if let Some(order) = &wanted.order {
            let (points, order_values) = join_ordered(order, pages, limit)?;
            return Ok(ScrollAnswer { points, order_values, next: None, positions });
        }
        let (points, next) = join_pages(pages, limit)?;
        Ok(ScrollAnswer { points, order_values: Vec::new(), next, positions })
    }

    /// Counts points by the values at a path; a point with several counts for each. Exact.
    ///
    /// # Errors
    /// As [`Pipeline::get`]; [`Kind::Invalid`] where a shard has more than [`Facet::VALUES_MAX`] different values.
    pub async fn facet(
        &self,
        collection: &str,
        path: String,
        limit: usize,
        filter: Option<Filter>,
        options: &ReadOptions,
    ) -> Result<FacetAnswer, Error> {
        Filter::All(filter.iter().cloned().chain([Filter::Exists(path.clone())]).collect()).check()?;
        let until = self.read_until(options.deadline);
        let found = self.collection(collection, until).await?;
        let plan = Plan::new(&found.table, &found.collection, options, ReadLevel::Linearizable, None);
        let filter = filter.map(wire::Filter::from);
        let (plan, filter, path, cluster) = (&plan, &filter, &path, found.table.cluster);
        let reached = scatter(self.view(), plan, until, |call| {
            each_shard(call, move |mut client, shard, deadline_ms| {
                let request = wire::NodeFacetRequest {
                    format: WIRE_FORMAT,
                    cluster_id: cluster_bytes(cluster),
                    shard: shard.0,
                    path: path.clone(),
                    filter: filter.clone(),
                    read: Some(node_read(plan, &[shard], deadline_ms)),
                };
                async move {
                    let reply = client.facet(request).await?.into_inner();
                    let counts = reply.counts.into_iter().map(<(FacetValue, u64)>::try_from);
                    let counts: Vec<(FacetValue, u64)> = counts.collect::<Result<_, _>>().map_err(malformed)?;
                    Ok((counts, position(reply.position, shard)?))
                }
            })
        });
        let (mut facet, mut positions) = (Facet::default(), Vec::new());
        for (_, (counts, position)) in reached.await?.complete()?.into_values() {
            counts.into_iter().for_each(|(value, count)| facet.add(value, count));
            positions.push(position);
        }
        Ok(FacetAnswer { counts: facet.most_frequent(limit), positions })
    }

    /// Counts points.
    ///
    /// # Errors
    /// As [`Pipeline::get`].
    pub async fn count(
        &self,
        collection: &str,
        filter: Option<Filter>,
        options: &ReadOptions,
    ) -> Result<CountAnswer, Error> {
        if let Some(filter) = &filter {
            filter.check()?;
        }
        let until = self.read_until(options.deadline);
        let found = self.collection(collection, until).await?;
        let plan = Plan::new(&found.table, &found.collection, options, ReadLevel::Linearizable, None);
        let filter = filter.map(wire::Filter::from);
        let (plan, filter, cluster) = (&plan, &filter, found.table.cluster);
        let reached = scatter(self.view(), plan, until, |call| {
            each_shard(call, move |mut client, shard, deadline_ms| {
                let request = wire::NodeCountRequest {
                    format: WIRE_FORMAT,
                    cluster_id: cluster_bytes(cluster),
                    shard: shard.0,
                    filter: filter.clone(),
                    read: Some(node_read(plan, &[shard], deadline_ms)),
                };
                async move {
                    let reply = client.count(request).await?.into_inner();
                    Ok((reply.count, position(reply.position, shard)?))
                }
            })
        });
        let mut answer = CountAnswer { count: 0, positions: Vec::new() };
        for (_, (count, position)) in reached.await?.complete()?.into_values() {
            answer.count += count;
            answer.positions.push(position);
        }
        Ok(answer)
    }
}

fn frequencies(
    counted: Vec<wire::node_frequencies_reply::Frequencies>,
    terms: &[wire::node_frequencies_request::Terms],
) -> Result<Vec<Frequencies>, NodeFailure> {
    let fits =
        |(counted, terms): (&wire::node_frequencies_reply::Frequencies, &wire::node_frequencies_request::Terms)| {
            counted.with.len() == terms.indices.len()
        };
    if counted.len() != terms.len() || !counted.iter().zip(terms).all(fits) {
        return Err(malformed("frequencies: are not those of the terms asked for"));
    }
    Ok(counted.into_iter().map(|counted| Frequencies { vectors: counted.vectors, with: counted.with }).collect())
}

/// One shard's answer to all queries of a search.
struct ShardSearch {
    index: u64,
    segments: Vec<bytes::Bytes>,
    lists: Vec<Vec<Hit>>,
}

async fn search_node(mut call: Call, request: wire::NodeSearchRequest) -> Answers<ShardSearch> {
    let queries = request.queries.len();
    let reply = call.client.search(request).await?.into_inner();
    let mut answers = BTreeMap::new();
    for answer in reply.answers {
        let shard = ShardId(answer.shard);
        answers.insert(shard, shard_search(answer, queries));
    }
    Ok(answers)
}

fn shard_search(answer: wire::node_search_reply::ShardAnswer, queries: usize) -> Result<ShardSearch, NodeFailure> {
    if !answer.error_code.is_empty() {
        return Err(NodeFailure::from_search(&answer.error_code, answer.error, answer.leader_node));
    }
    if answer.lists.len() != queries {
        return Err(malformed(format!("{} lists for {queries} queries", answer.lists.len())));
    }
    let position = position(answer.position, ShardId(answer.shard))?;
    let mut lists = Vec::with_capacity(queries);
    for list in answer.lists {
        let hits: Result<Vec<Hit>, _> = list.hits.into_iter().map(Hit::try_from).collect();
        lists.push(hits.map_err(malformed)?);
    }
    Ok(ShardSearch { index: position.index, segments: answer.segments, lists })
}

fn malformed(reason: impl std::fmt::Display) -> NodeFailure {
    NodeFailure::new(Meaning::Broken, format!("the node's answer cannot be read: {reason}"))
}

fn position(message: Option<wire::Position>, shard: ShardId) -> Result<Position, NodeFailure> {
    let position: Position = message.ok_or_else(|| malformed("position: is missing"))?.into();
    if position.shard != shard {
        return Err(malformed(format!("position: is of shard {}, asked was {shard}", position.shard)));
    }
    Ok(position)
}

fn records(messages: Vec<wire::PointRecord>) -> Result<Vec<PointRecord>, NodeFailure> {
    messages.into_iter().map(|message| PointRecord::try_from(message).map_err(malformed)).collect()
}

fn node_read(plan: &Plan, shards: &[ShardId], deadline_ms: u32) -> wire::NodeRead {
    let after = shards.iter().filter_map(|shard| Some(Position { shard: *shard, index: *plan.after.get(shard)? }));
    wire::NodeRead {
        level: wire::ReadLevel::from(plan.level).into(),
        after: after.map(Into::into).collect(),
        deadline_ms,
    }
}

/// Asks about each shard of a call on its own, over the one connection; a shard's failure is its own.
async fn each_shard<T, A>(call: Call, ask: impl Fn(crate::cluster_view::NodeClient, ShardId, u32) -> A) -> Answers<T>
where
    A: Future<Output = Result<T, NodeFailure>>,
{
    let asked = call.shards.iter().map(|shard| {
        let answer = ask(call.client.clone(), *shard, call.deadline_ms);
        async move { (*shard, answer.await) }
    });
    let answers: BTreeMap<ShardId, Result<T, NodeFailure>> =
        futures::future::join_all(asked).await.into_iter().collect();
    // A node that none of its shards could be asked of is away as a whole.
    let away = |answer: &Result<T, NodeFailure>| matches!(answer, Err(why) if why.meaning.node_is_away());
    if answers.values().all(away)
        && let Some(Err(why)) = answers.values().next()
    {
        return Err(why.clone());
    }
    Ok(answers)
}

/// One shard's page.
struct Page {
    records: Vec<PointRecord>,
    more: bool,
    values: Vec<Scalar>,
}

/// Joins what shards list in another order than that of ids.
fn join_ordered(order: &Order, pages: Vec<Page>, limit: usize) -> Result<(Vec<PointRecord>, Vec<Scalar>), Error> {
    let mut listed = Vec::new();
    for page in pages {
        let mut values = page.values.into_iter();
        for record in page.records {
            let value = values.next();
            let place = order.place(&record.id, value.as_ref());
            let place = place.ok_or_else(|| Error::new(Kind::Internal, "a shard lists a point for no value"))?;
            listed.push((place, record, value));
        }
    }
    listed.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    listed.truncate(limit);
    let (mut records, mut values) = (Vec::with_capacity(listed.len()), Vec::with_capacity(listed.len()));
    for (_, record, value) in listed {
        records.push(record);
        values.extend(value);
    }
    Ok((records, values))
}

/// Joins the shards' pages in id order. A shard with more to come says nothing of ids beyond its page, so the joined
/// page ends there at the latest.
fn join_pages(pages: Vec<Page>, limit: usize) -> Result<(Vec<PointRecord>, Option<PointId>), Error> {
    let mut horizon: Option<PointId> = None;
    let mut records = Vec::new();
    let mut more = false;
    for page in pages {
        if page.more {
            more = true;
            let last = page.records.last().map(|record| record.id.clone());
            let last = last.ok_or_else(|| Error::new(Kind::Internal, "a shard has more points but returned none"))?;
            horizon = Some(horizon.map_or(last.clone(), |horizon: PointId| horizon.min(last)));
        }
        records.extend(page.records);
    }
    records.sort_by(|a, b| a.id.cmp(&b.id));
    let all = records.len();
    if let Some(horizon) = horizon {
        records.retain(|record| record.id <= horizon);
    }
    records.truncate(limit);
    more |= records.len() < all;
    let next = records.last().map(|record| record.id.clone()).filter(|_| more);
    Ok((records, next))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the shards' page sizes, walking the pages gives every point once, in order.
        #[test]
        fn pages_give_every_point_once(
            points in proptest::collection::btree_map(0_u64..200, 0_usize..4, 0..60), limit in 1_usize..9,
            cut in 1_usize..9,
        ) {
            let record = |id: u64| PointRecord {
                id: PointId::Number(id), version: Default::default(), payload_json: Default::default(),
                vectors: Default::default(),
            };
            let (mut seen, mut after) = (Vec::new(), None::<PointId>);
            for _ in 0..1_000 {
                let pages = (0..4).map(|shard| {
                    let mut ids: Vec<u64> = points.iter().filter(|(_, home)| **home == shard).map(|(id, _)| *id)
                        .filter(|id| after.as_ref().is_none_or(|after| PointId::Number(*id) > *after)).collect();
                    let size = if shard == 0 { limit.min(cut) } else { limit }; // a shard may return less than asked
                    let more = ids.len() > size;
                    ids.truncate(size);
                    Page { records: ids.into_iter().map(record).collect(), more, values: Vec::new() }
                });
                let (page, next) = join_pages(pages.collect(), limit).unwrap();
                prop_assert!(page.len() <= limit);
                seen.extend(page.into_iter().map(|record| record.id));
                after = next;
                if after.is_none() { break; }
            }
            prop_assert!(after.is_none());
            let all: Vec<PointId> = points.keys().map(|id| PointId::Number(*id)).collect();
            prop_assert_eq!(seen, all);
        }
    }
}
