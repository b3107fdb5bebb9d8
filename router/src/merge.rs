//! Joins the answers of several shards into one ranking. [core]
//!
//! Rules: hits rank by [`nearring_proto::hit::rank`], so the result does not depend on the order in which shards
//! answer. A point seen twice (a copy that has just moved between shards) counts once, with its highest version: an
//! older copy is not a worse hit but an untrue one, and is dropped whatever its score.
use std::collections::BTreeMap;

use nearring_proto::coverage::{Coverage, ShardCoverage};
use nearring_proto::hit::{Hit, rank};
use nearring_proto::ids::{PointId, ShardId};
use nearring_proto::vector::Metric;

/// Collects the answers to one query.
///
/// A shard's list holds its own best `limit` hits. A superseded copy may have pushed a true hit off such a list; the
/// merge cannot bring it back, so shards are asked for a few hits more while points are moving.
#[derive(Clone, Debug)]
pub struct Merge {
    metric: Metric,
    limit: usize,
    best: BTreeMap<PointId, Hit>,
    coverage: Coverage,
}

impl Merge {
    /// A merge of answers about `shards`, of which none has answered yet.
    pub fn new(metric: Metric, limit: usize, shards: impl IntoIterator<Item = ShardId>) -> Self {
        let unanswered = || ShardCoverage::Failed { reason: "not answered".to_owned() };
        let coverage = Coverage(shards.into_iter().map(|shard| (shard, unanswered())).collect());
        Self { metric, limit, best: BTreeMap::new(), coverage }
    }

    /// Takes one shard's answer. A second answer of the same shard is ignored, so that a late duplicate of a repeated
    /// call cannot mix two states of one shard.
    pub fn push(&mut self, shard: ShardId, answered: ShardCoverage, hits: Vec<Hit>) {
        if matches!(self.coverage.0.get(&shard), Some(ShardCoverage::Searched { .. })) {
            return;
        }
        self.coverage.0.insert(shard, answered);
        for hit in hits {
            match self.best.get(&hit.id) {
                Some(known) if known.version >= hit.version => {}
                _ => {
                    self.best.insert(hit.id.clone(), hit);
                }
            }
        }
    }

    /// Records that a shard was not asked or could not be reached; an answer that is already here stays.
    pub fn push_absent(&mut self, shard: ShardId, why: ShardCoverage) {
        if !matches!(self.coverage.0.get(&shard), Some(ShardCoverage::Searched { .. })) {
            self.coverage.0.insert(shard, why);
        }
    }

    /// The score a further hit must beat, once there are as many hits as asked for.
    pub fn worst_kept(&self) -> Option<f32> {
        let mut scores: Vec<(f32, &PointId)> = self.best.values().map(|hit| (hit.score, &hit.id)).collect();
        let last = self.limit.checked_sub(1)?;
        (scores.len() > last).then(|| scores.select_nth_unstable_by(last, |a, b| rank(self.metric, *a, *b)).1.0)
    }

    /// The best hits, nearest first, and what they rest on.
    pub fn finish(self) -> (Vec<Hit>, Coverage) {
        let mut hits: Vec<Hit> = self.best.into_values().collect();
        hits.sort_by(|a, b| rank(self.metric, (a.score, &a.id), (b.score, &b.id)));
        hits.truncate(self.limit);
        (hits, self.coverage)
    }
}

#[cfg(test)]
mod tests {
    use nearring_proto::ids::{NodeId, Version};
    use proptest::prelude::*;

    use super::*;

    fn hit(id: u64, score: f32, index: u64) -> Hit {
        Hit {
            id: PointId::Number(id),
            score,
            version: Version { epoch: 1, index },
            payload_json: Default::default(),
            vectors: Default::default(),
        }
    }

    fn searched(index: u64) -> ShardCoverage {
        ShardCoverage::Searched { node: NodeId(1), index, segments: vec![] }
    }

    fn ids(hits: &[Hit]) -> Vec<String> {
        hits.iter().map(|hit| hit.id.to_string()).collect()
    }

    #[test]
    fn equal_scores_fall_in_id_order_and_l2_ranks_the_other_way() {
        let answers = [(ShardId(1), vec![hit(9, 0.5, 1), hit(3, 0.2, 1)]), (ShardId(2), vec![hit(4, 0.5, 1)])];
        for (metric, expected) in [(Metric::Cosine, ["4", "9", "3"]), (Metric::L2, ["3", "4", "9"])] {
            let mut merge = Merge::new(metric, 3, [ShardId(1), ShardId(2)]);
            answers.clone().into_iter().for_each(|(shard, hits)| merge.push(shard, searched(1), hits));
            assert_eq!(ids(&merge.finish().0), expected);
        }
    }

    #[test]
    fn a_superseded_copy_is_dropped_even_where_it_scores_better() {
        for order in [[0, 1], [1, 0]] {
            let copies = [(ShardId(1), hit(7, 0.9, 1)), (ShardId(2), hit(7, 0.1, 2))];
            let mut merge = Merge::new(Metric::Cosine, 10, [ShardId(1), ShardId(2)]);
            order.iter().for_each(|at| merge.push(copies[*at].0, searched(2), vec![copies[*at].1.clone()]));
            assert_eq!(merge.finish().0, vec![hit(7, 0.1, 2)]);
        }
    }

    #[test]
    fn coverage_never_claims_a_shard_that_did_not_answer() {
        let mut merge = Merge::new(Metric::Dot, 1, [ShardId(1), ShardId(2), ShardId(3)]);
        merge.push(ShardId(1), searched(5), vec![hit(1, 1.0, 1)]);
        merge.push(ShardId(1), searched(6), vec![hit(2, 2.0, 1)]);
        merge.push_absent(ShardId(1), ShardCoverage::Failed { reason: "late".into() });
        merge.push_absent(ShardId(2), ShardCoverage::Skipped { estimated_loss: 0.01 });
        assert_eq!(merge.worst_kept(), Some(1.0));
        let (hits, coverage) = merge.finish();
        assert_eq!(ids(&hits), ["1"]);
        assert!(!coverage.is_full());
        assert_eq!(coverage.0[&ShardId(1)], searched(5));
        assert!(matches!(coverage.0[&ShardId(2)], ShardCoverage::Skipped { .. }));
        assert!(matches!(coverage.0[&ShardId(3)], ShardCoverage::Failed { .. }));
    }

    proptest! {
        /// The model: put every newest copy in one list and sort it.
        #[test]
        fn any_order_of_answers_gives_the_model_ranking(
            raw in proptest::collection::vec((0_u64..5, 0_u64..20, 0_i8..4, 1_u64..4), 0..60),
            limit in 1_usize..12,
            reversed: bool,
        ) {
            let mut by_shard: BTreeMap<ShardId, Vec<Hit>> = BTreeMap::new();
            // One state of a point per version, as in a log.
            for (shard, id, score, index) in &raw {
                let score = f32::from(*score) + (*index as f32) * 10.0;
                by_shard.entry(ShardId(*shard + 1)).or_default().push(hit(*id, score, *index));
            }
            let mut newest: BTreeMap<PointId, Hit> = BTreeMap::new();
            let mut order: Vec<_> = by_shard.into_iter().collect();
            if reversed { order.reverse(); }
            for hit in order.iter().flat_map(|(_, hits)| hits) {
                let known = newest.entry(hit.id.clone()).or_insert_with(|| hit.clone());
                if hit.version > known.version { *known = hit.clone(); }
            }
            let mut model: Vec<Hit> = newest.into_values().collect();
            model.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
            model.truncate(limit);
            let mut merge = Merge::new(Metric::Cosine, limit, order.iter().map(|(shard, _)| *shard));
            order.into_iter().for_each(|(shard, hits)| merge.push(shard, searched(1), hits));
            prop_assert_eq!(merge.worst_kept(), (model.len() == limit).then(|| model[limit - 1].score));
            let (hits, coverage) = merge.finish();
            prop_assert_eq!(hits, model);
            prop_assert!(coverage.is_full());
        }
    }
}
