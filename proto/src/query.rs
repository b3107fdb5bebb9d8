//! What is asked.
use crate::examples::Examples;
use crate::filter::Filter;
use crate::vector::{Metric, Vector};

/// One nearest-neighbour question. Validate with [`crate::collection::CollectionSpec::check_query`].
#[derive(Clone, PartialEq, Debug)]
pub struct SearchQuery {
    /// Which named vector; "" is the default one.
    pub vector_name: String,
    /// What is looked for.
    pub target: Target,
    /// Hits wanted, 1 to [`SearchQuery::LIMIT_MAX`].
    pub limit: usize,
    /// Only points that match.
    pub filter: Option<Filter>,
    /// Compare with every live vector instead of walking graphs.
    pub exact: bool,
    /// Breadth of a walk through one graph over the whole collection; shards and segments, which hold a part of the hits each,
    /// are walked less wide. `None` = the collection's.
    pub ef: Option<usize>,
    /// Return payloads.
    pub with_payload: bool,
    /// Return vectors.
    pub with_vectors: bool,
    /// Drop hits that score worse.
    pub score_threshold: Option<f32>,
}

/// What a query looks for, in vectors of the named vector's kind.
#[derive(Clone, PartialEq, Debug)]
pub enum Target {
    /// What is near to this vector.
    Near(Vector),
    /// What several examples speak for. Answered exactly, at the cost of comparing every vector with each of them: the best
    /// scored need not be near to any example, so no graph leads to them.
    Examples(Examples),
}

impl<V: Into<Vector>> From<V> for Target {
    fn from(vector: V) -> Self {
        Self::Near(vector.into())
    }
}

impl SearchQuery {
    /// Every vector that is given.
    pub fn vectors(&self) -> Vec<&Vector> {
        match &self.target {
            Target::Near(vector) => vec![vector],
            Target::Examples(examples) => examples.vectors(),
        }
    }

    /// As [`SearchQuery::vectors`].
    pub fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        match &mut self.target {
            Target::Near(vector) => vec![vector],
            Target::Examples(examples) => examples.vectors_mut(),
        }
    }

    /// How its scores rank, over vectors of this metric: those that follow from examples are better the higher they are.
    pub fn ranking(&self, metric: Metric) -> Metric {
        match self.target {
            Target::Near(_) => metric,
            Target::Examples(_) => Metric::Dot,
        }
    }

    /// The most hits one query may ask for.
    pub const LIMIT_MAX: usize = 10_000;
    /// The widest graph walk one query may ask for.
    pub const EF_MAX: usize = 16_384;
}
