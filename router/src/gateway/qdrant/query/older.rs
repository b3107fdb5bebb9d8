//! Searches, recommendations and discoveries as clients asked for them before there were queries.
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::super::values::Vector;
use super::super::{Answer, Asked, Body, Door};
use super::examples::{Discover, Example, Pairs, Recommend};
use super::{Asks, Batch, Query, several, single};

/// The older recommendation: examples beside each other.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(in super::super) struct OldRecommend {
    #[serde(flatten)]
    recommend: Recommend,
    #[serde(flatten)]
    rest: Query,
}

impl OldRecommend {
    pub(in super::super) fn query(self) -> Query {
        Query { query: Some(Asks::Recommend { recommend: self.recommend }), ..self.rest }
    }
}

pub(in super::super) async fn recommend(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<OldRecommend>,
) -> Answer<Value> {
    Ok(asked.told(single(&door, &collection, body.query(), &asked).await?.into()))
}

pub(in super::super) async fn recommend_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<OldRecommend>>,
) -> Answer<Value> {
    let queries = body.searches.into_iter().map(|search| search.query()).collect();
    let lists = several(&door, &collection, queries, &asked).await?;
    Ok(asked.told(lists.into_iter().map(Value::from).collect()))
}

/// The older discovery: target and context beside each other; without a target the context alone.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(in super::super) struct OldDiscover {
    #[serde(default)]
    target: Option<Example>,
    #[serde(default)]
    context: Option<Pairs>,
    #[serde(flatten)]
    rest: Query,
}

impl OldDiscover {
    pub(in super::super) fn query(self) -> Query {
        let context = self.context.unwrap_or(Pairs::Many(Vec::new()));
        let asks = match self.target {
            None => Asks::Context { context },
            Some(target) => Asks::Discover { discover: Discover { target, context: Some(context) } },
        };
        Query { query: Some(asks), ..self.rest }
    }
}

pub(in super::super) async fn discover(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<OldDiscover>,
) -> Answer<Value> {
    Ok(asked.told(single(&door, &collection, body.query(), &asked).await?.into()))
}

pub(in super::super) async fn discover_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<OldDiscover>>,
) -> Answer<Value> {
    let queries = body.searches.into_iter().map(|search| search.query()).collect();
    let lists = several(&door, &collection, queries, &asked).await?;
    Ok(asked.told(lists.into_iter().map(Value::from).collect()))
}

/// The older search: one vector, perhaps named.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(in super::super) struct OldSearch {
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
    pub(in super::super) fn query(self) -> Query {
        let (using, vector) = match self.vector {
            OldVector::Plain(values) => (None, Vector::Dense(values)),
            OldVector::Named { name, vector } => (Some(name), vector),
        };
        Query { query: Some(Asks::Example(Example::Vector(vector))), using, ..self.rest }
    }
}

pub(in super::super) async fn search(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<OldSearch>,
) -> Answer<Value> {
    Ok(asked.told(single(&door, &collection, body.query(), &asked).await?.into()))
}

pub(in super::super) async fn search_batch(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<Batch<OldSearch>>,
) -> Answer<Value> {
    let queries = body.searches.into_iter().map(|search| search.query()).collect();
    let lists = several(&door, &collection, queries, &asked).await?;
    Ok(asked.told(lists.into_iter().map(Value::from).collect()))
}
