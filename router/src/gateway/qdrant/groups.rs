//! Searches whose hits are grouped by a value of the payload.
//!
//! The groups are those of the best hits: as many hits are asked for as it takes, more and more, until there are enough groups
//! and each of them is full, or there are no more. A point with several values belongs to several groups; one with a value that
//! is neither text nor whole number belongs to none.
use axum::extract::{Path, State};
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::payload;
use nearring_proto::query::SearchQuery;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::query::Query;
use super::query::older::{OldRecommend, OldSearch};
use super::values::{Id, WithPayload, WithVector, record_json};
use super::{Answer, Asked, Body, Door, out_of_bounds};
use crate::failure::{Error, Kind};
use crate::pipeline::Wants;

/// Groups where nothing is said.
const LIMIT: usize = 10;
/// Hits a group where nothing is said.
const SIZE: usize = 3;
/// How many more hits each round asks for.
const GROWTH: usize = 4;

/// How a query's hits are grouped.
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct Grouping {
    group_by: String,
    #[serde(default)]
    group_size: Option<usize>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    with_lookup: Option<WithLookup>,
}

#[derive(Deserialize, JsonSchema, Debug)]
#[serde(untagged)]
enum WithLookup {
    Collection(String),
    Wanted {
        collection: String,
        #[serde(default)]
        with_payload: Option<WithPayload>,
        #[serde(default, alias = "with_vector")]
        with_vectors: Option<WithVector>,
    },
}

/// `POST points/query/groups`.
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct QueryGroups {
    #[serde(flatten)]
    grouping: Grouping,
    #[serde(flatten)]
    query: Query,
}

/// `POST points/search/groups`.
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct SearchGroups {
    #[serde(flatten)]
    grouping: Grouping,
    #[serde(flatten)]
    search: OldSearch,
}

/// `POST points/recommend/groups`.
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct RecommendGroups {
    #[serde(flatten)]
    grouping: Grouping,
    #[serde(flatten)]
    recommend: OldRecommend,
}

pub(super) async fn query(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<QueryGroups>,
) -> Answer<Value> {
    Ok(asked.told(grouped(&door, &collection, body.grouping, body.query, &asked).await?))
}

pub(super) async fn search(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<SearchGroups>,
) -> Answer<Value> {
    Ok(asked.told(grouped(&door, &collection, body.grouping, body.search.query(), &asked).await?))
}

pub(super) async fn recommend(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<RecommendGroups>,
) -> Answer<Value> {
    Ok(asked.told(grouped(&door, &collection, body.grouping, body.recommend.query(), &asked).await?))
}

/// Places of hits by group, in the order of each group's best.
struct Groups {
    groups: Vec<(Value, Vec<usize>)>,
}

impl Groups {
    fn of(hits: &[Hit], path: &str, limit: usize, size: usize) -> Result<Self, Error> {
        let mut groups: Vec<(Value, Vec<usize>)> = Vec::new();
        for (at, hit) in hits.iter().enumerate() {
            for id in group_ids(hit, path)? {
                let room = groups.len() < limit;
                match groups.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, places)) if places.len() < size => places.push(at),
                    None if room => groups.push((id, vec![at])),
                    Some(_) | None => {}
                }
            }
        }
        Ok(Self { groups })
    }

    fn full(&self, limit: usize, size: usize) -> bool {
        self.groups.len() >= limit && self.groups.iter().all(|(_, places)| places.len() >= size)
    }
}

fn group_ids(hit: &Hit, path: &str) -> Result<Vec<Value>, Error> {
    let payload = payload::parse(&hit.payload_json);
    let payload = payload.map_err(|error| Error::new(Kind::Internal, format!("a stored payload {error}")))?;
    let (mut ids, mut fits) = (Vec::new(), true);
    payload::visit(&payload, path, &mut |value| {
        fits &= value.is_string() || value.is_i64() || value.is_u64();
        if !ids.contains(value) {
            ids.push(value.clone());
        }
    });
    Ok(if fits { ids } else { Vec::new() })
}

async fn grouped(
    door: &Door,
    collection: &str,
    grouping: Grouping,
    query: Query,
    asked: &Asked,
) -> Result<Value, Error> {
    let (limit, size) = (grouping.limit.unwrap_or(LIMIT), grouping.group_size.unwrap_or(SIZE));
    for (field, value) in [("limit", limit), ("group_size", size)] {
        if value == 0 {
            return Err(out_of_bounds(field, "value 0 invalid, must be 1 or larger"));
        }
    }
    let facts = || super::strict::grouped(&query, &grouping.group_by, limit, size);
    super::strict::allow(&door.pipeline, collection, asked, facts).await?;
    let path = super::filter::path(&grouping.group_by);
    let query = query.among_those_with(&path);
    let mut wanted = limit.saturating_mul(size).clamp(1, SearchQuery::LIMIT_MAX);
    let (search, groups) = loop {
        let search = query.clone().of(wanted);
        let found = super::query::found(door, collection, search, asked, true).await?;
        let groups = Groups::of(&found.hits, &path, limit, size)?;
        if groups.full(limit, size) || found.hits.len() < wanted || wanted == SearchQuery::LIMIT_MAX {
            break (found, groups);
        }
        wanted = wanted.saturating_mul(GROWTH).min(SearchQuery::LIMIT_MAX);
    };
    let mut told = Vec::with_capacity(groups.groups.len());
    for (id, places) in groups.groups {
        let hits: Vec<Value> =
            places.into_iter().filter_map(|at| search.told(at).transpose()).collect::<Result<_, _>>()?;
        told.push(json!({"id": id, "hits": hits}));
    }
    if let Some(lookup) = grouping.with_lookup {
        look_up(door, lookup, &mut told, asked).await?;
    }
    Ok(json!({"groups": told}))
}

/// Adds to each group the point of another collection whose id the group's value is.
async fn look_up(door: &Door, lookup: WithLookup, groups: &mut [Value], asked: &Asked) -> Result<(), Error> {
    let (collection, payload, vectors) = match lookup {
        WithLookup::Collection(collection) => (collection, None, None),
        WithLookup::Wanted { collection, with_payload, with_vectors } => (collection, with_payload, with_vectors),
    };
    let (payload, vectors) = (payload.unwrap_or(WithPayload::All(true)), vectors.unwrap_or(WithVector::All(false)));
    let spec = super::query::looked_up(&door.pipeline, &collection).await?;
    vectors.check(&spec)?;
    let id = |group: &Value| serde_json::from_value::<Id>(group["id"].clone()).ok().map(PointId::from);
    let ids: Vec<PointId> = groups.iter().filter_map(id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let wants = Wants { payload: payload.any(), vectors: vectors.any() };
    let read = door.pipeline.get(&collection, ids, wants, &asked.reads()?).await?;
    for group in groups {
        let of = id(group);
        if let Some(record) = read.points.iter().find(|record| Some(&record.id) == of.as_ref()) {
            group["lookup"] = record_json(record, &payload, &vectors)?;
        }
    }
    Ok(())
}
