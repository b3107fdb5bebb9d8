//! Relevance feedback: what was found before, as somebody scored it, turns the search.
//!
//! Qdrant's naive strategy: a · likeness to the target, and for every pair of examples of which one has the higher score
//! (difference in score)^b · c · (likeness to the better − likeness to the worse). That is linear in the likenesses, so each
//! example is left with one weight, and shards compare with every example once, however many pairs there are.
use schemars::JsonSchema;
use serde::Deserialize;

use super::super::out_of_bounds;
use super::examples::Example;
use crate::failure::Error;

/// `query.relevance_feedback`.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct Feedback {
    target: Example,
    feedback: Vec<Scored>,
    strategy: Strategy,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
struct Scored {
    example: Example,
    score: f32,
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Strategy {
    Naive(Naive),
}

/// Coefficients.
#[derive(Deserialize, JsonSchema, Debug, Clone, Copy)]
struct Naive {
    a: f32,
    b: f32,
    c: f32,
}

impl Feedback {
    /// The target and what was scored.
    pub(super) fn all(&self) -> impl Iterator<Item = &Example> {
        std::iter::once(&self.target).chain(self.feedback.iter().map(|scored| &scored.example))
    }

    /// The weight of the target, and of each example.
    ///
    /// # Errors
    /// Where there is no example, or `b` is negative.
    pub(super) fn weights(&self) -> Result<Vec<f32>, Error> {
        let Strategy::Naive(Naive { a, b, c }) = self.strategy;
        if self.feedback.is_empty() {
            return Err(out_of_bounds("query.relevance_feedback", "feedback elements must be non-empty"));
        }
        if b < 0.0 {
            let rule = format!("value {b:?} invalid, must be 0.0 or larger");
            return Err(out_of_bounds("query.relevance_feedback.strategy.naive.b", rule));
        }
        let weight = |of: &Scored| {
            let pair = |other: &Scored| {
                let ahead = f64::from(of.score) - f64::from(other.score);
                match ahead {
                    0.0 => 0.0,
                    _ => ahead.signum() * ahead.abs().powf(f64::from(b)) * f64::from(c),
                }
            };
            self.feedback.iter().map(pair).sum::<f64>() as f32
        };
        Ok(std::iter::once(a).chain(self.feedback.iter().map(weight)).collect())
    }

    /// The target, and each example.
    pub(super) fn examples(self) -> impl Iterator<Item = Example> {
        std::iter::once(self.target).chain(self.feedback.into_iter().map(|scored| scored.example))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::json;

    use super::*;

    fn weights(scores: &[f32], a: f32, b: f32, c: f32) -> Result<Vec<f32>, Error> {
        let feedback: Vec<_> = scores.iter().map(|score| json!({"example": 1, "score": score})).collect();
        let naive = json!({"a": a, "b": b, "c": c});
        let feedback = json!({"target": [1.0], "feedback": feedback, "strategy": {"naive": naive}});
        serde_json::from_value::<Feedback>(feedback).unwrap().weights()
    }

    #[test]
    fn weights_add_up_every_pair() {
        assert_eq!(weights(&[0.5], 2.0, 3.0, 4.0).unwrap(), [2.0, 0.0], "one example makes no pair");
        assert_eq!(weights(&[0.5, 0.5], 2.0, 0.0, 4.0).unwrap(), [2.0, 0.0, 0.0], "nor do equals, whatever b");
        // Pairs (1, 0): 1^2 · 0.5; (1, 3): 2^2 · 0.5; (0, 3): 3^2 · 0.5.
        assert_eq!(weights(&[1.0, 0.0, 3.0], 1.0, 2.0, 0.5).unwrap(), [1.0, 0.5 - 2.0, -0.5 - 4.5, 2.0 + 4.5]);
    }

    #[test]
    fn bounds_are_kept() {
        assert!(weights(&[], 1.0, 1.0, 1.0).unwrap_err().message.contains("must be non-empty"));
        let error = weights(&[1.0], 1.0, -1.0, 1.0).unwrap_err();
        assert!(error.message.ends_with("naive.b: value -1.0 invalid, must be 0.0 or larger]"), "{error}");
    }
}
