//! Distances within a sample: of each of its points the nearest others.
//!
//! The sample is drawn anew by each request and listed by ids; each of its points is a search of its own among the others,
//! exact, since they are few. A point that is deleted meanwhile is missing in later rows.
use std::collections::BTreeMap;

use axum::extract::{Path, State};
use nearring_proto::filter::Filter;
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::order::Order;
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::Vector;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::filter::QdrantFilter;
use super::super::values::{id_json, single_json};
use super::super::{Answer, Asked, Body, Door, not_supported, out_of_bounds};
use super::has_vector;
use crate::failure::Error;
use crate::pipeline::{ScrollWanted, SearchAnswer, Wants};

/// Points in a sample where nothing is said.
const SAMPLE: usize = 10;
/// The most points in a sample: each is compared with every other.
const SAMPLE_MAX: usize = 2_000;
/// The most ids in the queries of one message.
const IDS_MAX: usize = 100_000;
/// Others told of each where nothing is said.
const LIMIT: usize = 3;

/// `POST points/search/matrix/…`.
#[derive(Deserialize, JsonSchema, Debug)]
pub(in super::super) struct Matrix {
    #[serde(default)]
    filter: Option<QdrantFilter>,
    #[serde(default)]
    sample: Option<usize>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    using: Option<String>,
    #[serde(default)]
    shard_key: Option<Value>,
}

/// The sample, in the order of its ids, and the nearest of each.
#[derive(PartialEq, Debug)]
struct Rows(Vec<(PointId, Vec<(PointId, f32)>)>);

impl Rows {
    fn pairs(&self) -> Value {
        let row = |(a, near): &(PointId, Vec<(PointId, f32)>)| {
            let a = id_json(a);
            let pair = |(b, score): &(PointId, f32)| json!({"a": a, "b": id_json(b), "score": single_json(*score)});
            near.iter().map(pair).collect::<Vec<Value>>()
        };
        json!({"pairs": self.0.iter().flat_map(row).collect::<Vec<Value>>()})
    }

    fn offsets(&self) -> Value {
        let places: BTreeMap<&PointId, usize> = self.0.iter().enumerate().map(|(at, (id, _))| (id, at)).collect();
        let (mut rows, mut columns, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (_, near)) in self.0.iter().enumerate() {
            for (column, score) in near.iter().filter_map(|(id, score)| Some((places.get(id)?, score))) {
                rows.push(row);
                columns.push(*column);
                scores.push(single_json(*score));
            }
        }
        let ids: Vec<Value> = self.0.iter().map(|(id, _)| id_json(id)).collect();
        json!({"offsets_row": rows, "offsets_col": columns, "scores": scores, "ids": ids})
    }
}

/// The nearest without the point itself, which takes no place.
fn others(of: &PointId, hits: Vec<Hit>, limit: usize) -> Vec<(PointId, f32)> {
    hits.into_iter().filter(|hit| hit.id != *of).map(|hit| (hit.id, hit.score)).take(limit).collect()
}

async fn rows(door: &Door, collection: &str, matrix: Matrix, asked: &Asked) -> Result<Rows, Error> {
    if matrix.shard_key.as_ref().is_some_and(|key| !key.is_null()) {
        return Err(not_supported("shard_key").0);
    }
    let (sample, limit) = (matrix.sample.unwrap_or(SAMPLE), matrix.limit.unwrap_or(LIMIT));
    if !(2..=SAMPLE_MAX).contains(&sample) {
        return Err(out_of_bounds("sample", format!("value {sample} invalid, must be from 2 to {SAMPLE_MAX}")));
    }
    if limit == 0 {
        return Err(out_of_bounds("limit", "value 0 invalid, must be 1 or larger"));
    }
    let (pipeline, reads) = (&door.pipeline, asked.reads()?);
    let facts = || super::super::strict::listed(matrix.filter.as_ref(), Some(sample));
    super::super::strict::allow(pipeline, collection, asked, facts).await?;
    let spec = super::super::collections::find(pipeline, collection).await?.spec;
    let using = matrix.using.unwrap_or_default();
    has_vector(&spec, &using)?;
    let filter = QdrantFilter::read(matrix.filter, pipeline, collection).await?;
    let filter = Filter::All(filter.into_iter().chain([Filter::HasVector(using.clone())]).collect());
    let wanted = ScrollWanted {
        after: None,
        limit: sample,
        filter: Some(filter),
        wants: Wants { payload: false, vectors: true },
        order: Some(Order::Random(pipeline.view().draw())),
    };
    let mut points = pipeline.scroll(collection, wanted, &reads).await?.points;
    points.sort_by(|a, b| a.id.cmp(&b.id));
    let sampled: Vec<_> = points
        .into_iter()
        .filter_map(|mut point| point.vectors.remove(&using).map(|vector| (point.id, vector)))
        .collect();
    if sampled.len() < 2 {
        return Ok(Rows(Vec::new()));
    }
    let among = Filter::Ids(sampled.iter().map(|(id, _)| id.clone()).collect());
    let mut rows = Vec::with_capacity(sampled.len());
    // Every query names the whole sample: a message holds as many of them as it can carry ids.
    let queries = (IDS_MAX / sampled.len()).clamp(1, pipeline.settings().limits.batch_queries);
    for batch in sampled.chunks(queries) {
        let query = |vector: &Vector| SearchQuery {
            vector_name: using.clone(),
            target: Target::Near(vector.clone()),
            limit: limit.saturating_add(1).min(sampled.len()),
            filter: Some(among.clone()),
            exact: true,
            ef: None,
            with_payload: false,
            with_vectors: false,
            score_threshold: None,
        };
        let queries = batch.iter().map(|(_, vector)| query(vector)).collect();
        let answers = pipeline.search_batch(collection, queries, &reads).await?;
        let row = |((id, _), answer): (&(PointId, _), SearchAnswer)| (id.clone(), others(id, answer.hits, limit));
        rows.extend(batch.iter().zip(answers).map(row));
    }
    Ok(Rows(rows))
}

pub(in super::super) async fn pairs(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Matrix>,
) -> Answer<Value> {
    Ok(asked.told(rows(&door, &collection, body, &asked).await?.pairs()))
}

pub(in super::super) async fn offsets(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Matrix>,
) -> Answer<Value> {
    Ok(asked.told(rows(&door, &collection, body, &asked).await?.offsets()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let id = PointId::Number;
        let rows =
            Rows(vec![(id(4), vec![(id(9), 0.5), (id(7), 0.25)]), (id(7), vec![(id(4), 0.25)]), (id(9), vec![])]);
        let expected = json!({"pairs": [
            {"a": 4, "b": 9, "score": 0.5}, {"a": 4, "b": 7, "score": 0.25}, {"a": 7, "b": 4, "score": 0.25},
        ]});
        assert_eq!(rows.pairs(), expected);
        let expected = json!({
            "offsets_row": [0, 0, 1], "offsets_col": [2, 1, 0], "scores": [0.5, 0.25, 0.25], "ids": [4, 7, 9],
        });
        assert_eq!(rows.offsets(), expected);
    }

    #[test]
    fn a_point_is_no_neighbour_of_its_own() {
        let hit = |number: u64, score: f32| Hit {
            id: PointId::Number(number),
            score,
            version: Default::default(),
            payload_json: Default::default(),
            vectors: Default::default(),
        };
        let near = |hits| others(&PointId::Number(1), hits, 2);
        let expected = vec![(PointId::Number(2), 0.9), (PointId::Number(3), 0.8)];
        assert_eq!(near(vec![hit(1, 1.0), hit(2, 0.9), hit(3, 0.8)]), expected);
        assert_eq!(near(vec![hit(2, 0.9), hit(3, 0.8), hit(4, 0.7)]), expected, "it is not among the nearest");
    }
}
