//! Scores that follow from several examples, of which some are liked and some are not: what every shard must compute alike.
//!
//! All rest on the likeness of a stored vector to one example, of which more is nearer: the score of cosine and dot, the negative
//! square of a distance. They are those of Qdrant (documentation, "Explore"): best and summed scores of recommendations, and
//! discovery by a target and a context of pairs; relevance feedback comes as weights. More is better whatever the metric.
use crate::vector::Vector;

/// A direction: towards the first, away from the second.
#[derive(Clone, PartialEq, Debug)]
pub struct Pair {
    /// What is liked.
    pub liked: Vector,
    /// What is not.
    pub disliked: Vector,
}

/// What a stored vector is compared with.
#[derive(Clone, PartialEq, Debug)]
pub enum Examples {
    /// The likeness to the likest example, squeezed into (0, 1); counted negative where that is one that is not liked.
    Best {
        /// At least one of both lists.
        liked: Vec<Vector>,
        /// See `liked`.
        disliked: Vec<Vector>,
    },
    /// The likenesses to what is liked, less those to what is not.
    Sum {
        /// At least one of both lists.
        liked: Vec<Vector>,
        /// See `liked`.
        disliked: Vec<Vector>,
    },
    /// In how many more pairs it is on the liked side than on the other; among as many, the nearer to the target.
    Discover {
        /// What to be near to.
        target: Vector,
        /// May be empty.
        pairs: Vec<Pair>,
    },
    /// 0 where it is on the liked side of every pair, less for every pair where it is not.
    Context {
        /// At least one.
        pairs: Vec<Pair>,
    },
    /// Each likeness times its weight, added up in double precision.
    Weighted {
        /// At least one. Weights are finite, and negative for what is not liked.
        examples: Vec<(Vector, f32)>,
    },
}

impl Examples {
    /// The most vectors that one query may hold.
    pub const VECTORS_MAX: usize = 256;

    /// Every vector of it, in order.
    pub fn vectors(&self) -> Vec<&Vector> {
        fn of_pairs(pairs: &[Pair]) -> impl Iterator<Item = &Vector> {
            pairs.iter().flat_map(|pair| [&pair.liked, &pair.disliked])
        }
        match self {
            Self::Best { liked, disliked } | Self::Sum { liked, disliked } => liked.iter().chain(disliked).collect(),
            Self::Discover { target, pairs } => std::iter::once(target).chain(of_pairs(pairs)).collect(),
            Self::Context { pairs } => of_pairs(pairs).collect(),
            Self::Weighted { examples } => examples.iter().map(|(vector, _)| vector).collect(),
        }
    }

    /// As [`Examples::vectors`].
    pub fn vectors_mut(&mut self) -> Vec<&mut Vector> {
        fn of_pairs(pairs: &mut [Pair]) -> impl Iterator<Item = &mut Vector> {
            pairs.iter_mut().flat_map(|pair| [&mut pair.liked, &mut pair.disliked])
        }
        match self {
            Self::Best { liked, disliked } | Self::Sum { liked, disliked } => {
                liked.iter_mut().chain(disliked).collect()
            }
            Self::Discover { target, pairs } => std::iter::once(target).chain(of_pairs(pairs)).collect(),
            Self::Context { pairs } => of_pairs(pairs).collect(),
            Self::Weighted { examples } => examples.iter_mut().map(|(vector, _)| vector).collect(),
        }
    }

    /// The score of a stored vector, given its likeness to each example.
    pub fn score(&self, likeness: impl Fn(&Vector) -> f32) -> f32 {
        match self {
            Self::Best { liked, disliked } => {
                let best = |all: &[Vector]| all.iter().map(&likeness).fold(f32::NEG_INFINITY, f32::max);
                let (liked, disliked) = (best(liked), best(disliked));
                if liked > disliked { squeezed(liked) } else { -squeezed(disliked) }
            }
            Self::Sum { liked, disliked } => {
                let sum = |all: &[Vector]| all.iter().map(&likeness).sum::<f32>();
                sum(liked) - sum(disliked)
            }
            Self::Discover { target, pairs } => {
                let side = |pair: &Pair| match likeness(&pair.liked).total_cmp(&likeness(&pair.disliked)) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.0,
                    std::cmp::Ordering::Less => -1.0,
                };
                pairs.iter().map(side).sum::<f32>() + squeezed(likeness(target))
            }
            Self::Context { pairs } => {
                let lost =
                    |pair: &Pair| sigmoid((likeness(&pair.liked) - likeness(&pair.disliked) - f32::EPSILON).min(0.0));
                pairs.iter().map(lost).sum()
            }
            Self::Weighted { examples } => {
                let weighed = |(vector, weight): &(Vector, f32)| f64::from(*weight) * f64::from(likeness(vector));
                examples.iter().map(weighed).sum::<f64>() as f32
            }
        }
    }
}

/// Into (−1, 1), cheaply and in order.
fn sigmoid(value: f32) -> f32 {
    if value.is_finite() { value / (1.0 + value.abs()) } else { value }
}

/// Into (0, 1).
fn squeezed(value: f32) -> f32 {
    0.5 * (sigmoid(value) + 1.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn dense(values: &[f32]) -> Vector {
        Vector::Dense(values.to_vec())
    }

    fn score(examples: &Examples, stored: &[f32]) -> f32 {
        examples.score(|example| example.dense().unwrap().iter().zip(stored).map(|(a, b)| a * b).sum())
    }

    #[test]
    fn the_likest_example_decides_by_its_side() {
        let best = Examples::Best { liked: vec![dense(&[1.0, 0.0])], disliked: vec![dense(&[0.0, 1.0])] };
        assert_eq!(score(&best, &[1.0, 0.0]), 0.75);
        assert_eq!(score(&best, &[0.0, 1.0]), -0.75);
        assert_eq!(score(&best, &[0.0, 0.0]), -0.5, "a draw counts against it");
        let only = Examples::Best { liked: vec![], disliked: vec![dense(&[0.0, 1.0])] };
        assert_eq!(score(&only, &[0.0, -1.0]), -0.25);
        assert_eq!(best.vectors().len(), 2);
    }

    #[test]
    fn sums_and_pairs() {
        let sum = Examples::Sum { liked: vec![dense(&[1.0, 0.0]); 2], disliked: vec![dense(&[0.0, 1.0])] };
        assert_eq!(score(&sum, &[3.0, 1.0]), 5.0);
        let pair = |liked: &[f32], disliked: &[f32]| Pair { liked: dense(liked), disliked: dense(disliked) };
        let pairs = vec![pair(&[1.0, 0.0], &[0.0, 1.0]), pair(&[0.0, 1.0], &[1.0, 0.0])];
        let discover = |pairs| Examples::Discover { target: dense(&[1.0, 0.0]), pairs };
        assert_eq!(score(&discover(pairs.clone()), &[1.0, 0.0]), 0.75, "one for, one against");
        assert_eq!(score(&discover(pairs[..1].to_vec()), &[1.0, 0.0]), 1.75);
        assert_eq!(score(&discover(vec![]), &[1.0, 0.0]), 0.75);
        let weighted = vec![(dense(&[1.0, 0.0]), 2.0), (dense(&[0.0, 1.0]), -0.5)];
        assert_eq!(score(&Examples::Weighted { examples: weighted }, &[3.0, 4.0]), 4.0);
        let context = |pairs: &[Pair]| Examples::Context { pairs: pairs.to_vec() };
        assert_eq!(score(&context(&pairs[..1]), &[1.0, 0.0]), 0.0);
        assert!((score(&context(&pairs), &[1.0, 0.0]) + 0.5).abs() < 1e-6);
    }
}
