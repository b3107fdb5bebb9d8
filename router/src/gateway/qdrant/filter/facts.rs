//! What a filter asks, for [strict mode](crate::strict): how many conditions, how large, and which indexes would answer them.
use nearring_proto::filter::Scalar;

use super::{Bounds, Condition, Field, Match, QdrantFilter, Some};
use crate::strict::{Ability, Filter};

impl QdrantFilter {
    /// What it asks.
    pub(in crate::gateway) fn facts(&self) -> Filter {
        let mut facts = Filter::default();
        self.add("", &mut facts);
        facts
    }

    /// `above` is the path of the objects whose fields it asks about.
    fn add(&self, above: &str, facts: &mut Filter) {
        let Self { must, should, must_not, min_should } = self;
        let lists = [should, must, must_not].into_iter().flat_map(Some::slice);
        for condition in lists.chain(min_should.iter().flat_map(|least| &least.conditions)) {
            condition.add(above, facts);
        }
    }
}

impl<T> Some<T> {
    fn slice(&self) -> &[T] {
        match self {
            Self::Many(all) => all,
            Self::One(one) => std::slice::from_ref(one),
            Self::None => &[],
        }
    }
}

fn below(above: &str, key: &str) -> String {
    if above.is_empty() { key.to_owned() } else { format!("{above}.{key}") }
}

impl Condition {
    fn add(&self, above: &str, facts: &mut Filter) {
        let mut simple = |size: usize, field: Option<(&str, Vec<Ability>)>| {
            facts.conditions += 1;
            facts.largest = facts.largest.max(size as u64);
            facts.fields.extend(field.map(|(key, wanted)| (below(above, key), wanted)));
        };
        match self {
            Self::Field(field) => simple(field.size(), Option::Some((&field.key, field.wanted()))),
            Self::IsEmpty { is_empty: of } | Self::IsNull { is_null: of } => {
                simple(0, Option::Some((&of.key, Ability::ALL.to_vec())));
            }
            Self::HasId { has_id } => simple(has_id.len(), None),
            Self::HasVector { .. } | Self::Slice { .. } => simple(0, None),
            Self::Nested { nested } => {
                let key = below(above, &nested.key);
                nested.filter.add(&if key.ends_with(']') { key } else { format!("{key}[]") }, facts);
            }
            Self::Filter(filter) => filter.add(above, facts),
        }
    }
}

impl Field {
    fn size(&self) -> usize {
        match &self.r#match {
            Option::Some(Match::Any { any: values } | Match::Except { except: values }) => values.len(),
            _ => 0,
        }
    }

    /// The abilities of an index one of which answers it; none where nothing needs an answer.
    fn wanted(&self) -> Vec<Ability> {
        let mut wanted = match &self.r#match {
            None => Vec::new(),
            Option::Some(Match::Value { value }) => of_values(std::slice::from_ref(value)),
            Option::Some(Match::Any { any: values } | Match::Except { except: values }) => of_values(values),
            Option::Some(Match::Text { .. } | Match::TextAny { .. }) => vec![Ability::Text],
            Option::Some(Match::Phrase { .. }) => vec![Ability::Phrase],
            Option::Some(Match::Prefix { .. }) => vec![Ability::Prefix],
            // No index answers this one, which Qdrant does not have.
            Option::Some(Match::Substring { .. }) => vec![Ability::Keyword],
        };
        if let Option::Some(Bounds { gt, gte, lt, lte }) = &self.range {
            match [gt, gte, lt, lte].into_iter().flatten().any(|bound| matches!(bound, Scalar::Text(_))) {
                true => wanted.push(Ability::Datetime),
                false => wanted.extend([Ability::Float, Ability::IntegerRange]),
            }
        }
        if self.geo_bounding_box.is_some() || self.geo_radius.is_some() || self.geo_polygon.is_some() {
            wanted.push(Ability::Geo);
        }
        if self.values_count.is_some() || self.is_empty.is_some() || self.is_null.is_some() {
            wanted.extend(Ability::ALL);
        }
        wanted
    }
}

/// An empty list asks for no value, so for no index either.
fn of_values(values: &[Scalar]) -> Vec<Ability> {
    let is_uuid = |value: &Scalar| matches!(value, Scalar::Text(text) if uuid::Uuid::try_parse(text).is_ok());
    match values.first() {
        None => Vec::new(),
        Option::Some(Scalar::Bool(_)) => vec![Ability::Bool],
        Option::Some(Scalar::Int(_)) => vec![Ability::IntegerLookup],
        // Qdrant has no such condition; bounds are what it would be instead.
        Option::Some(Scalar::Float(_)) => vec![Ability::Float],
        Option::Some(Scalar::Text(_)) if values.iter().all(is_uuid) => vec![Ability::Uuid, Ability::Keyword],
        Option::Some(Scalar::Text(_)) => vec![Ability::Keyword],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_counted_and_fields_named_however_deep() {
        let filter = json!({
            "must": [
                {"key": "city", "match": {"value": "Berlin"}},
                {"nested": {"key": "country.cities", "filter": {"must": [
                    {"key": "population", "range": {"gte": 8.0}}, {"key": "sights", "values_count": {"lt": 3}},
                ]}}},
            ],
            "should": {"has_id": [1, 2, 3]},
            "must_not": [{"must": [{"key": "n", "match": {"any": [1, 2, 3, 4]}}]}],
            "min_should": {"conditions": [{"key": "none", "match": {"any": []}}], "min_count": 1},
        });
        let facts = serde_json::from_value::<QdrantFilter>(filter).unwrap().facts();
        assert_eq!((facts.conditions, facts.largest), (6, 4));
        let wanted = |field: &str| &facts.fields.iter().find(|(name, _)| name == field).unwrap().1;
        assert_eq!(wanted("city"), &[Ability::Keyword]);
        assert_eq!(wanted("country.cities[].population"), &[Ability::Float, Ability::IntegerRange]);
        assert_eq!(wanted("country.cities[].sights").len(), Ability::ALL.len());
        assert_eq!(wanted("n"), &[Ability::IntegerLookup]);
        assert!(wanted("none").is_empty());
    }
}
