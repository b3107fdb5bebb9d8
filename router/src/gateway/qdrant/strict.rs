//! [Strict mode](crate::strict) at both doors: what is known of a collection, and which requests are looked at.
//!
//! A handler says what it was asked as [`Facts`], by a function, so that a collection without strict mode pays for none. The
//! collection may not exist: that is for the handler to tell.
use std::collections::BTreeMap;

use nearring_proto::collection::{Collection, CollectionSpec};
use nearring_proto::vector::Vector;
use serde_json::Value;
use tokio::time::Instant;

use super::Asked;
use super::collections::{ATTRIBUTE, SCHEMA};
use super::filter::QdrantFilter;
use super::query::Query;
use crate::failure::Error;
use crate::gateway::console::furthest;
use crate::pipeline::{ClusterStatus, Pipeline};
use crate::strict::{Access, Declared, Facts, Limits, Rules, Search, Sizes, Written};

/// Where limits are kept among what is told again.
const LIMITS: &str = "strict_mode_config";

/// Looks at a request before anything is done for it.
///
/// # Errors
/// The limit that it exceeds.
pub(super) async fn allow(
    pipeline: &Pipeline,
    collection: &str,
    asked: &Asked,
    facts: impl FnOnce() -> Facts,
) -> Result<(), Error> {
    let Some((collection, rules)) = rules(pipeline, collection) else { return Ok(()) };
    let mut facts = facts();
    facts.timeout = asked.parameters.timeout;
    let Rules { limits, declared } = &*rules;
    limits.verdict(&facts, declared)?;
    if facts.written.is_some() && limits.need_sizes() {
        limits.may_grow(sizes(pipeline, &collection).await?)?;
    }
    pipeline.strict().take(collection.id, limits, facts.access, facts.tokens(), Instant::now())
}

/// As [`allow`], of a write to points that a filter chooses: it costs the points that match.
pub(super) async fn allow_matching(
    pipeline: &Pipeline,
    name: &str,
    asked: &Asked,
    filter: Option<&QdrantFilter>,
    ids: Option<usize>,
) -> Result<(), Error> {
    let Some((_, rules)) = rules(pipeline, name) else { return Ok(()) };
    let mut facts = Facts {
        access: Access::Write,
        filter: filter.map(QdrantFilter::facts),
        cost: ids.unwrap_or(0) as u64,
        ..Facts::default()
    };
    if let (Some(filter), None, Some(_)) = (filter, ids, rules.limits.write_rate_limit) {
        // What is over other limits is not worth counting for.
        rules.limits.verdict(&facts, &rules.declared)?;
        let filter = QdrantFilter::read(Some(filter.clone()), pipeline, name).await?;
        facts.cost = pipeline.count(name, filter, &asked.reads()?).await?.count;
    }
    allow(pipeline, name, asked, || facts).await
}

/// As [`allow`], of one search, or of several that came together.
pub(super) async fn allow_searches<'a>(
    pipeline: &Pipeline,
    collection: &str,
    asked: &Asked,
    batch: Option<usize>,
    searches: impl Iterator<Item = &'a Query>,
) -> Result<(), Error> {
    let facts = || Facts {
        batch: batch.map(|batch| batch as u64),
        searches: searches.map(Query::facts).collect(),
        ..Facts::default()
    };
    allow(pipeline, collection, asked, facts).await
}

/// What a search asks whose hits are grouped: as many as the groups have room for.
pub(super) fn grouped(query: &Query, field: &str, limit: usize, size: usize) -> Facts {
    let limit = limit.saturating_mul(size) as u64;
    let search = Search { limit, group_by: Some(field.to_owned()), ..query.facts() };
    Facts { searches: vec![search], ..Facts::default() }
}

/// What a read of points asks that are chosen by a filter. It costs one token, and one a condition.
pub(super) fn listed(filter: Option<&QdrantFilter>, limit: Option<usize>) -> Facts {
    let limit = limit.map(|limit| limit as u64);
    Facts { filter: filter.map(QdrantFilter::facts), limit, cost: 1, ..Facts::default() }
}

/// What a write of points (`whole`), or of vectors of points, asks.
pub(super) fn writing<'a>(points: impl ExactSizeIterator<Item = &'a BTreeMap<String, Vector>>, whole: bool) -> Facts {
    let mut written = Written { points: points.len() as u64, whole, ..Written::default() };
    for (name, vector) in points.flatten() {
        let (most, count) = match vector {
            Vector::Dense(_) => continue,
            Vector::Multi(multi) => (written.rows.entry(name.clone()), multi.rows().len()),
            Vector::Sparse(sparse) => (written.indices.entry(name.clone()), sparse.indices().len()),
        };
        let most = most.or_default();
        *most = (*most).max(count as u64);
    }
    Facts { access: Access::Write, cost: written.points, written: Some(written), ..Facts::default() }
}

/// Whether one more field may be indexed.
///
/// # Errors
/// Where there are as many indexes as the collection may have.
pub(super) fn may_index(pipeline: &Pipeline, collection: &str, field: &str) -> Result<(), Error> {
    match rules(pipeline, collection) {
        Some((_, rules)) if !rules.declared.has(field) => rules.limits.may_index(rules.declared.len()),
        _ => Ok(()),
    }
}

/// The collection, and its rules where any is in force.
fn rules(pipeline: &Pipeline, name: &str) -> Option<(Collection, std::sync::Arc<Rules>)> {
    let table = pipeline.view().table()?;
    let collection = table.collection(name)?;
    let read = || {
        let kept = table.attribute(collection.id, ATTRIBUTE);
        // Most keep no limits: then there is nothing to parse.
        if !kept.contains(LIMITS) {
            return None;
        }
        let kept: Value = serde_json::from_str(kept).ok()?;
        // What was kept before limits were checked may be none.
        let limits: Limits = serde_json::from_value(kept.get(LIMITS)?.clone()).ok()?;
        let declared = Declared::new(&collection.spec.payload_indexes, kept.get(SCHEMA));
        Some(Rules { limits, declared })
    };
    let rules = pipeline.strict().rules(collection.id, table.epoch.0, Instant::now(), read)?;
    Some((collection.clone(), rules))
}

/// How large the collection is, measured now or a moment ago.
async fn sizes(pipeline: &Pipeline, collection: &Collection) -> Result<Sizes, Error> {
    if let Some(sizes) = pipeline.strict().sizes(collection.id, Instant::now()) {
        return Ok(sizes);
    }
    let sizes = measured(&pipeline.cluster_status().await?, collection);
    pipeline.strict().measured(collection.id, sizes, Instant::now());
    Ok(sizes)
}

/// Of each shard the replica that is furthest counts.
pub(super) fn measured(status: &ClusterStatus, collection: &Collection) -> Sizes {
    let bytes = |name: &str| collection.spec.vectors.get(name).map_or(0, |vector| u64::from(vector.dimension) * 4);
    let mut sizes = Sizes::default();
    for replica in furthest(status, collection) {
        sizes.points += replica.points;
        sizes.vector_bytes += replica.resident_vector_bytes + replica.tail_vectors * mean_bytes(&collection.spec);
        sizes.vector_bytes +=
            replica.segments.iter().map(|segment| segment.live * bytes(&segment.vector_name)).sum::<u64>();
    }
    sizes
}

/// Nodes do not say which of a point's vectors are in a tail: each counts as the mean of them.
fn mean_bytes(spec: &CollectionSpec) -> u64 {
    let all: u64 = spec.vectors.values().map(|vector| u64::from(vector.dimension) * 4).sum();
    all.checked_div(spec.vectors.len() as u64).unwrap_or(0)
}
