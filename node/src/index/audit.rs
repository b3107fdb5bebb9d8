//! Whether a graph finds what is in it.
//!
//! A graph can lose members without any sign: they are in the file and no walk reaches them. So before a file leaves the builder, a
//! sample of members is searched for: 1 %, at least 100. Under cosine and L2 a member's nearest is itself, or the many that the
//! rounded graph cannot tell from it, should they fill the walk. Under dot it is not (the longest vectors win), so there the walk
//! must find a member that scores within 1 % of the best. As many as 1 % of the sample may be missed: HNSW is approximate, and lost
//! members come in larger numbers.
//!
//! Deliberately not here: recall of live queries, which is measured elsewhere.
use nearring_proto::vector::Metric;

use super::graph::{Graph, GraphError};
use super::kernel;
use super::segment::SealWork;

/// A distance between vectors that a cosine graph cannot tell apart. L2 has exactly 0 between them.
const SAME_DIRECTION: f32 = 1e-5;

/// What an audit found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Report {
    pub(super) sampled: usize,
    pub(super) missed: usize,
}

impl Report {
    pub(super) fn passed(&self) -> bool {
        self.missed * 100 <= self.sampled
    }
}

/// Searches for a sample of the members, evenly spread over the rows.
pub(super) fn audit(work: &SealWork, graph: &Graph) -> Result<Report, GraphError> {
    let rows = work.members.len();
    let sampled = (rows / 100).max(100).min(rows);
    let breadth = work.index.ef_search.max(work.index.ef_construction).max(64) as usize;
    let mut missed = 0;
    for sample in 0..sampled {
        let row = sample * rows / sampled;
        let query = work.members[row].values();
        let walked = graph.walk(query, breadth)?;
        let mut members = walked.keys.iter().filter_map(|found| work.members.get(usize::try_from(*found).ok()?));
        let found = match work.spec.metric {
            Metric::Cosine | Metric::L2 | Metric::L1 => {
                let tolerance = if work.spec.metric == Metric::Cosine { SAME_DIRECTION } else { 0.0 };
                let as_near = graph.own_distance(query) + tolerance;
                let no_room =
                    walked.keys.len() >= breadth && walked.distances.last().is_some_and(|last| *last <= as_near);
                no_room || members.any(|member| member.values() == query)
            }
            Metric::Dot => {
                let scores = work.members.iter().map(|member| kernel::dot(query, member.values()));
                let best = scores.max_by(f32::total_cmp).unwrap_or_default();
                members.any(|member| kernel::dot(query, member.values()) >= best - best.abs() / 100.0)
            }
        };
        missed += usize::from(!found);
    }
    Ok(Report { sampled, missed })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use nearring_proto::collection::{IndexSpec, VectorSpec};
    use nearring_proto::ids::{PointId, Version};
    use nearring_proto::vector::{ScalarKind, normalize};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::index::segment::Member;

    #[test]
    fn a_graph_that_lacks_members_fails() {
        for (metric, scalar) in [
            (Metric::Cosine, ScalarKind::I8),
            (Metric::L2, ScalarKind::F16),
            (Metric::Dot, ScalarKind::F16),
            (Metric::L1, ScalarKind::F32),
        ] {
            let rng = &mut SmallRng::seed_from_u64(5);
            let members = (0..1_000_u64).map(|number| {
                let mut values: Vec<f32> = (0..16).map(|_| rng.random_range(-1.0_f32..1.0)).collect();
                if metric == Metric::Cosine {
                    normalize(&mut values);
                }
                Member::new(PointId::Number(number), Version::default(), values)
            });
            let spec = VectorSpec { dimension: 16, metric, scalar };
            let (vector, index) = (String::new(), IndexSpec::default());
            let work = SealWork { segment: 1, vector, spec, index, members: members.collect() };
            let graph_over = |order: &[u32]| {
                Graph::build(&work.spec, &work.index, order, |row| work.members[row as usize].values()).unwrap()
            };
            let all: Vec<u32> = (0..1_000).collect();
            let whole = audit(&work, &graph_over(&all)).unwrap();
            assert!(whole.passed(), "{metric:?} {whole:?}");
            let best = all.iter().copied().max_by(|a, b| {
                let length =
                    |row: &u32| kernel::dot(work.members[*row as usize].values(), work.members[*row as usize].values());
                length(a).total_cmp(&length(b))
            });
            // For dot the long vectors are what everyone finds; for the others every member is found by itself.
            let lacking: Vec<u32> = match metric {
                Metric::Dot => all.iter().copied().filter(|row| row % 4 != 0 && Some(*row) != best).collect(),
                Metric::Cosine | Metric::L2 | Metric::L1 => all.iter().copied().filter(|row| row % 20 != 0).collect(),
            };
            let lacking = audit(&work, &graph_over(&lacking)).unwrap();
            assert!(!lacking.passed(), "{metric:?} {lacking:?}");
        }
    }
}
