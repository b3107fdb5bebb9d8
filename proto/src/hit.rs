//! Hits and the one order in which everyone ranks them.
use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::ids::{PointId, Version};
use crate::vector::{Metric, Vector};

/// One answer to a search.
#[derive(Clone, PartialEq, Debug)]
pub struct Hit {
    /// The point.
    pub id: PointId,
    /// Similarity (cosine, dot, sparse) or distance (L2).
    pub score: f32,
    /// The point's version where it was read.
    pub version: Version,
    /// Payload bytes; empty where not asked for.
    pub payload_json: bytes::Bytes,
    /// Vectors; empty where not asked for.
    pub vectors: BTreeMap<String, Vector>,
}

/// Nearer first; equal scores by id. Total, also over NaN.
pub fn rank(metric: Metric, a: (f32, &PointId), b: (f32, &PointId)) -> Ordering {
    let by_score = if metric.higher_is_nearer() { b.0.total_cmp(&a.0) } else { a.0.total_cmp(&b.0) };
    by_score.then_with(|| a.1.cmp(b.1))
}
