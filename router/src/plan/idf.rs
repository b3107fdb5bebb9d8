//! Weights for sparse queries whose vector has the IDF modifier. [core]
//!
//! An index that few vectors have says more about them than one that all have. How many have it is known to nobody alone: each
//! shard counts its own. Were each to weigh a query by its own counts, the same query would rank differently from shard to
//! shard, and the joined ranking would mean nothing. So a search of such a vector takes two rounds: the counts of every shard,
//! then the search, with the same weights everywhere. **Rules:**
//! - The weight of an index is ln((N − n + 0.5) / (n + 0.5) + 1): N vectors of the name, n of them with the index (BM25's, as
//!   Robertson and Zaragoza give it in "The Probabilistic Relevance Framework", 2009, with the 1 that keeps it above zero).
//! - The counts are read at the level, and at or after the positions, that the search asks for. The search itself may run at
//!   later ones: scores then are by counts some writes old, of one moment for each shard, and the same for all hits.
//! - Counts are of all vectors, whatever the filter.
//! - A shard whose counts are not to be had is not searched either: an answer's coverage says what its counts rest on, too.
use nearring_proto::vector::SparseVector;

/// How often indices occur; of one shard, or of several together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frequencies {
    /// Vectors.
    pub vectors: u64,
    /// Of each of the query's indices, vectors that have it.
    pub with: Vec<u64>,
}

impl Frequencies {
    /// Adds another shard's, of the same query.
    pub fn add(&mut self, other: &Frequencies) {
        self.vectors = self.vectors.saturating_add(other.vectors);
        self.with.resize(self.with.len().max(other.with.len()), 0);
        for (sum, with) in self.with.iter_mut().zip(&other.with) {
            *sum = sum.saturating_add(*with);
        }
    }

    /// The query with its values weighted.
    pub fn weigh(&self, query: &SparseVector) -> SparseVector {
        query.map_values(|at, _, value| {
            let weight = inverse_frequency(self.vectors, self.with.get(at).copied().unwrap_or(0));
            (f64::from(value) * weight) as f32
        })
    }
}

/// ln((N − n + 0.5) / (n + 0.5) + 1), above zero. More of an index than there are vectors count as all.
pub fn inverse_frequency(vectors: u64, with: u64) -> f64 {
    let (all, with) = (vectors as f64, with.min(vectors) as f64);
    ((all - with + 0.5) / (with + 0.5)).ln_1p()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_are_the_formulas() {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(inverse_frequency(10, 1), (9.5_f64 / 1.5 + 1.0).ln()));
        assert!(near(inverse_frequency(10, 10), (0.5_f64 / 10.5 + 1.0).ln()));
        assert!(near(inverse_frequency(0, 0), 2.0_f64.ln()));
        assert_eq!(inverse_frequency(3, 9), inverse_frequency(3, 3));
        let query = SparseVector::new(vec![9, 4], vec![2.0, f32::MAX]).unwrap();
        let weighed = Frequencies { vectors: 1_000_000, with: vec![0, 10] }.weigh(&query);
        assert_eq!(weighed.indices(), [4, 9]);
        assert_eq!(weighed.values()[0], f32::MAX, "a weighted value stays finite");
        assert_eq!(weighed.values()[1], (2.0 * inverse_frequency(1_000_000, 10)) as f32);
        assert_eq!(weighed.check(), Ok(()));
    }

    proptest! {
        /// However points are spread over shards, the weights are those of all of them together.
        #[test]
        fn weights_do_not_depend_on_the_spread(
            points in prop::collection::vec((0_usize..4, prop::collection::btree_set(0_u32..8, 0..5)), 0..40),
        ) {
            let query = SparseVector::new((0..8).collect(), vec![1.0; 8]).unwrap();
            let count = |of: &dyn Fn(usize) -> bool| {
                let here = || points.iter().filter(|(shard, _)| of(*shard));
                let with = query.indices().iter().map(|index| here().filter(|(_, has)| has.contains(index)).count() as u64);
                Frequencies { vectors: here().count() as u64, with: with.collect() }
            };
            let mut sum = Frequencies::default();
            (0..4).for_each(|wanted| sum.add(&count(&|shard| shard == wanted)));
            prop_assert_eq!(sum.weigh(&query), count(&|_| true).weigh(&query));
        }
    }
}
