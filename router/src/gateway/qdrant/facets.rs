//! The values of a field, counted.
use axum::extract::{Path, State};
use nearring_proto::order::{Facet, FacetValue};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::filter::QdrantFilter;
use super::points::no_shard_key;
use super::{Answer, Asked, Body, Door, strict};

/// `POST /collections/{name}/facet`.
#[derive(Deserialize, JsonSchema, Debug)]
pub(super) struct FacetBy {
    key: String,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    filter: Option<QdrantFilter>,
    // Counts are exact whatever is asked.
    #[serde(default, rename = "exact")]
    _exact: Option<bool>,
    #[serde(default)]
    shard_key: Option<Value>,
}

pub(super) async fn facet(
    State(door): State<Door>,
    Path(collection): Path<String>,
    asked: Asked,
    Body(body): Body<FacetBy>,
) -> Answer<Value> {
    no_shard_key(&body.shard_key)?;
    let limit = super::limit("limit", body.limit, 10)?;
    let facts = || strict::listed(body.filter.as_ref(), Some(limit));
    strict::allow(&door.pipeline, &collection, &asked, facts).await?;
    let filter = QdrantFilter::read(body.filter, &door.pipeline, &collection).await?;
    let path = super::filter::path(&body.key);
    let uuids = super::collections::declared(&door.pipeline, &collection, "uuid").await?.contains(&path);
    // One UUID may be spelt in several ways, so that more values than are told may count.
    let most = if uuids { Facet::VALUES_MAX } else { limit };
    let mut counts = door.pipeline.facet(&collection, path, most, filter, &asked.reads()?).await?.counts;
    if uuids {
        counts = as_uuids(counts, limit);
    }
    let told = |(value, count): (FacetValue, u64)| {
        let value = match value {
            FacetValue::Bool(value) => json!(value),
            FacetValue::Int(value) => json!(value),
            FacetValue::Text(value) => json!(value),
        };
        json!({"value": value, "count": count})
    };
    Ok(asked.told(json!({"hits": counts.into_iter().map(told).collect::<Vec<Value>>()})))
}

/// UUIDs counted however they are spelt, told with hyphens; what is none does not count.
fn as_uuids(counts: Vec<(FacetValue, u64)>, limit: usize) -> Vec<(FacetValue, u64)> {
    let mut facet = Facet::default();
    for (value, count) in counts {
        if let FacetValue::Text(text) = value
            && let Ok(uuid) = uuid::Uuid::try_parse(&text)
        {
            facet.add(FacetValue::Text(uuid.to_string()), count);
        }
    }
    facet.most_frequent(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uuid_counts_once_however_it_is_spelt() {
        let text = |text: &str| FacetValue::Text(text.to_owned());
        let (one, two) = ("a64a8051-3ee7-4881-8bc6-691d25c70d54", "2b016c50-282c-4d80-b784-cefead291180");
        let counts = vec![
            (text("soon"), 9),
            (text(two), 3),
            (text(one), 2),
            (text(&one.replace('-', "").to_uppercase()), 2),
            (FacetValue::Int(7), 8),
        ];
        assert_eq!(as_uuids(counts.clone(), 5), [(text(one), 4), (text(two), 3)]);
        assert_eq!(as_uuids(counts, 1), [(text(one), 4)]);
    }
}
