//! What a query asks, for [strict mode](crate::strict).
use super::super::values::Vector;
use super::examples::{Discover, Example, PairOf, Pairs};
use super::{Asks, LIMIT, OneOrMany, Query};
use crate::strict::Search;

/// Indices of a sparse vector that cost as much as a dense one.
const INDICES: usize = 64;

impl Query {
    /// What it asks, with its prefetches.
    pub(in crate::gateway::qdrant) fn facts(&self) -> Search {
        let prefetches = match &self.prefetch {
            None => Vec::new(),
            Some(OneOrMany::One(one)) => vec![one.facts()],
            Some(OneOrMany::Many(many)) => many.iter().map(Self::facts).collect(),
        };
        let parameters = self.params.unwrap_or_default();
        Search {
            limit: self.limit.unwrap_or(LIMIT) as u64,
            filter: self.filter.as_ref().map(|filter| filter.facts()),
            exact: parameters.exact == Some(true),
            hnsw_ef: parameters.hnsw_ef.map(|ef| ef as u64),
            oversampling: parameters.quantization.and_then(|quantization| quantization.oversampling),
            group_by: None,
            cost: self.query.as_ref().map_or(1, Asks::cost),
            prefetches,
        }
    }
}

impl Asks {
    fn cost(&self) -> u64 {
        let all = |examples: &mut dyn Iterator<Item = &Example>| examples.map(Example::cost).sum();
        match self {
            Self::Nearest { nearest: example, .. } | Self::Example(example) => example.cost(),
            Self::Recommend { recommend } => all(&mut recommend.all()),
            Self::Discover { discover: Discover { target, context } } => {
                target.cost() + context.as_ref().map_or(0, Pairs::cost)
            }
            Self::Context { context } => context.cost(),
            Self::Feedback { relevance_feedback } => all(&mut relevance_feedback.all()),
            _ => 1,
        }
    }
}

impl Pairs {
    fn cost(&self) -> u64 {
        let pair = |pair: &PairOf| pair.positive.cost() + pair.negative.cost();
        match self {
            Self::One(one) => pair(one),
            Self::Many(many) => many.iter().map(pair).sum(),
        }
    }
}

impl Example {
    /// A point costs its look-up, the condition that leaves it out of the hits, and a vector, whatever it turns out to be.
    fn cost(&self) -> u64 {
        match self {
            Self::Id(_) => 3,
            Self::Vector(Vector::Sparse(sparse)) => sparse.indices.len().div_ceil(INDICES).max(1) as u64,
            Self::Vector(Vector::Multi(rows)) => rows.len().max(1) as u64,
            Self::Vector(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::strict::Facts;

    #[test]
    fn a_query_costs_what_it_compares() {
        let tokens = |query: Value| {
            let search = serde_json::from_value::<Query>(query).unwrap().facts();
            Facts { searches: vec![search], ..Facts::default() }.tokens()
        };
        let condition = json!({"key": "n", "match": {"value": 1}});
        for (query, cost) in [
            (json!({"query": [0.1, 0.2]}), 1),
            (json!({"query": [[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]]}), 3),
            (json!({"query": 7}), 3),
            (json!({"query": [0.1], "filter": {"must": [condition, condition]}}), 3),
            (json!({"query": {"recommend": {"positive": [1, 2], "negative": [3]}}}), 9),
            (json!({"prefetch": [{"query": [0.1]}, {"query": [0.2]}], "query": {"fusion": "rrf"}}), 3),
        ] {
            assert_eq!(tokens(query.clone()), cost, "{query}");
        }
    }

    #[test]
    fn what_is_limited_is_found_in_a_query() {
        let query =
            json!({"query": [0.1], "params": {"exact": true, "hnsw_ef": 5, "quantization": {"oversampling": 2.0}}});
        let search = serde_json::from_value::<Query>(query).unwrap().facts();
        assert_eq!((search.limit, search.exact, search.hnsw_ef, search.oversampling), (10, true, Some(5), Some(2.0)));
    }
}
