//! Queries by example: what a vector, or a point, stands for, and what several of them speak for.
use nearring_proto::examples::{Examples, Pair};
use nearring_proto::ids::PointId;
use nearring_proto::query::Target;
use nearring_proto::vector::Vector as Stored;
use nearring_proto::write::PointRecord;
use schemars::JsonSchema;
use serde::Deserialize;

use super::super::collections::find;
use super::super::out_of_bounds;
use super::super::values::{Id, Vector, recommended};
use super::feedback::Feedback;
use super::{Search, has_vector};
use crate::failure::{Error, Kind};
use crate::pipeline::Wants;

#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
pub(super) enum Example {
    Id(Id),
    Vector(Vector),
}

/// To be near to the target, on the positive side of as many pairs as can be.
#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct Discover {
    pub(super) target: Example,
    #[serde(default)]
    pub(super) context: Option<Pairs>,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
#[serde(untagged)]
pub(super) enum Pairs {
    Many(Vec<PairOf>),
    One(PairOf),
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct PairOf {
    pub(super) positive: Example,
    pub(super) negative: Example,
}

#[derive(Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Strategy {
    AverageVector,
    BestScore,
    SumScores,
}

#[derive(Deserialize, JsonSchema, Debug, Clone)]
pub(super) struct Recommend {
    #[serde(default)]
    positive: Option<Vec<Example>>,
    #[serde(default)]
    negative: Option<Vec<Example>>,
    #[serde(default)]
    strategy: Option<Strategy>,
}

impl Recommend {
    /// Liked or not.
    pub(super) fn all(&self) -> impl Iterator<Item = &Example> {
        self.positive.iter().chain(&self.negative).flatten()
    }
}

/// Where the ids of a query are looked up.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) collection: &'a str,
    pub(super) vector: &'a str,
}

impl Search<'_> {
    /// The vector that an example stands for, and its id where it is a point of this collection.
    pub(super) async fn example(
        &self,
        example: Example,
        source: Source<'_>,
    ) -> Result<(Stored, Option<PointId>), Error> {
        match example {
            Example::Vector(vector) => Ok((vector.read("query")?, None)),
            Example::Id(id) => {
                let id = PointId::from(id);
                let wants = Wants { payload: false, vectors: true };
                let read = self.pipeline.get(source.collection, vec![id.clone()], wants, &self.reads).await?;
                let missing = || Error::new(Kind::NotFound, format!("Not found: No point with id {id} found"));
                let record: &PointRecord = read.points.first().ok_or_else(missing)?;
                if !record.vectors.contains_key(source.vector) {
                    let spec = find(self.pipeline, source.collection).await?.spec;
                    has_vector(&spec, source.vector)?;
                }
                let vector = record.vectors.get(source.vector).cloned().ok_or_else(missing)?;
                Ok((vector, (source.collection == self.collection).then_some(id)))
            }
        }
    }

    /// What examples speak for: by default the average of what is liked, moved away from the average of what is not.
    pub(super) async fn recommend(
        &self,
        wanted: Recommend,
        source: Source<'_>,
    ) -> Result<(Target, Vec<PointId>), Error> {
        let strategy = wanted.strategy.unwrap_or(Strategy::AverageVector);
        let (positive, negative) = (wanted.positive.unwrap_or_default(), wanted.negative.unwrap_or_default());
        if positive.is_empty() && negative.is_empty() {
            return Err(out_of_bounds("query.recommend", "has no example; give at least one"));
        }
        if positive.is_empty() && strategy == Strategy::AverageVector {
            return Err(Error::invalid("recommend.positive", "is empty; give at least one example"));
        }
        let mut seen = Vec::new();
        let mut sides = [Vec::new(), Vec::new()];
        for (examples, vectors) in [positive, negative].into_iter().zip(&mut sides) {
            for example in examples {
                let (vector, id) = self.example(example, source).await?;
                seen.extend(id);
                vectors.push(vector);
            }
        }
        let [liked, disliked] = sides;
        let target = match strategy {
            Strategy::AverageVector => Target::Near(recommended(liked, disliked)?),
            Strategy::BestScore => Target::Examples(Examples::Best { liked, disliked }),
            Strategy::SumScores => Target::Examples(Examples::Sum { liked, disliked }),
        };
        Ok((target, seen))
    }

    /// What was found before, as somebody scored it.
    pub(super) async fn feedback(
        &self,
        feedback: Feedback,
        source: Source<'_>,
    ) -> Result<(Target, Vec<PointId>), Error> {
        let weights = feedback.weights()?;
        let mut seen = Vec::new();
        let mut examples = Vec::with_capacity(weights.len());
        for (example, weight) in feedback.examples().zip(weights) {
            let (vector, id) = self.example(example, source).await?;
            seen.extend(id);
            examples.push((vector, weight));
        }
        // The target says what is looked for, whatever it weighs; of the others only those count that do.
        let mut at = 0;
        examples.retain(|(_, weight)| {
            at += 1;
            at == 1 || *weight != 0.0
        });
        Ok((Target::Examples(Examples::Weighted { examples }), seen))
    }

    /// Pairs of examples, each with a side to be on, and perhaps a target.
    pub(super) async fn discover(
        &self,
        target: Option<Example>,
        context: Option<Pairs>,
        source: Source<'_>,
    ) -> Result<(Target, Vec<PointId>), Error> {
        let context = match context {
            None => Vec::new(),
            Some(Pairs::One(one)) => vec![one],
            Some(Pairs::Many(many)) => many,
        };
        if target.is_none() && context.is_empty() {
            return Err(Error::invalid("context", "is empty; give at least one pair"));
        }
        let mut seen = Vec::new();
        let mut pairs = Vec::with_capacity(context.len());
        for PairOf { positive, negative } in context {
            let (liked, first) = self.example(positive, source).await?;
            let (disliked, second) = self.example(negative, source).await?;
            seen.extend([first, second].into_iter().flatten());
            pairs.push(Pair { liked, disliked });
        }
        let examples = match target {
            None => Examples::Context { pairs },
            Some(target) => {
                let (target, id) = self.example(target, source).await?;
                seen.extend(id);
                Examples::Discover { target, pairs }
            }
        };
        Ok((Target::Examples(examples), seen))
    }
}
