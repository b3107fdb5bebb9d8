//! What is asked.
use crate::filter::Filter;
use crate::vector::Vector;

/// One nearest-neighbour question. Validate with [`crate::collection::CollectionSpec::check_query`].
#[derive(Clone, PartialEq, Debug)]
pub struct SearchQuery {
    /// Which named vector; "" is the default one.
    pub vector_name: String,
    /// The query vector, of the named vector's kind.
    pub vector: Vector,
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

impl SearchQuery {
    /// The most hits one query may ask for.
    pub const LIMIT_MAX: usize = 10_000;
    /// The widest graph walk one query may ask for.
    pub const EF_MAX: usize = 16_384;
}
