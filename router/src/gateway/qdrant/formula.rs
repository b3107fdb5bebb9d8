//! Scores by a formula over what a point holds and the scores that prefetches gave it.
//!
//! The problem: a ranking is to weigh more than likeness (price, age, distance, a condition), as Qdrant's formulas say it.
//! **Rules**, those of Qdrant 1.19 (`acosh`, `max` and `min` are of a later one):
//! - Numbers of a request are `f32`, as are scores; everything is computed in `f64`, and the result is an `f32` again.
//! - `$score` and `$score[n]` are the scores of the nth prefetch; one that a point lacks is the default given, or else 0.
//! - A path is the value of the payload, or else the default given; an array of one item is that item,
//!   and a null of a field that has an index is nothing, as it is to the index; of others it is a value that is no number. Neither of them, or one
//!   of another kind than the place wants, fails the whole query: a point that dropped out would not be missed.
//! - A condition is 1 where it holds and 0 where not. A moment is seconds since 1970-01-01T00:00:00Z, a distance metres.
//! - A product ends at its first factor of 0 and a quotient at a dividend of 0: what follows is not looked at.
//! - A result that is not finite fails the query.
//!
//! What this deliberately does not do: read requests ([`read`] does) or points (whoever calls has them).
use std::collections::{BTreeMap, BTreeSet};

use nearring_proto::filter::{Filter, Place, datetime_micros};
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::payload::{self, Payload};
use serde_json::Value;

pub(super) mod read;
#[cfg(test)]
mod tests;

/// What is computed.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Expression {
    /// This number.
    Constant(f64),
    /// The score that the prefetch of this number gave.
    Score(usize),
    /// The number at this path.
    Number(String),
    /// 1 where it holds, otherwise 0.
    Condition(Filter),
    /// Metres from `origin` to the place at the path `to`.
    Distance { origin: Place, to: String },
    /// Seconds since 1970 of the moment at this path.
    Moment(String),
    /// All multiplied; 1 without any.
    Product(Vec<Expression>),
    /// All added up.
    Sum(Vec<Expression>),
    /// The largest of at least one.
    Largest(Vec<Expression>),
    /// The smallest of at least one.
    Smallest(Vec<Expression>),
    /// The dividend by the divisor; `by_zero` where that is 0.
    Quotient { dividend: Box<Expression>, divisor: Box<Expression>, by_zero: Option<f64> },
    /// The base to the power of the exponent.
    Power { base: Box<Expression>, exponent: Box<Expression> },
    /// A function of one number.
    Function(Function, Box<Expression>),
    /// 1 at the target, less the farther from it, never below 0. See [`Decay::steepness`].
    Decay { decay: Decay, of: Box<Expression>, target: Box<Expression>, steepness: f64 },
}

/// A function of one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Function {
    Negative,
    Absolute,
    SquareRoot,
    Exponential,
    DecimalLogarithm,
    NaturalLogarithm,
    InverseHyperbolicCosine,
}

/// How a value decays with its distance from a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decay {
    Linear,
    Exponential,
    Gaussian,
}

/// An expression, and what stands in for values that a point lacks.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Formula {
    pub(super) expression: Expression,
    /// By number of prefetch.
    pub(super) scores: BTreeMap<usize, f64>,
    /// By path.
    pub(super) values: BTreeMap<String, Value>,
    /// Paths that have an index.
    pub(super) indexed: BTreeSet<String>,
}

/// Why a formula has no value for a point.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub(super) enum FormulaError {
    /// A step gave no finite number.
    #[error("The expression {0} produced a non-finite number")]
    NotFinite(String),
    /// There is no value, or it is not one that the place wants.
    #[error("Expected {wanted} value for {path} in the payload and/or in the formula defaults. Error: {reason}")]
    Value {
        /// Where it was looked for.
        path: String,
        /// What was wanted.
        wanted: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// What a node sent is no payload.
    #[error("a stored payload {0}")]
    Payload(#[from] payload::PayloadError),
}

/// What a formula looks at of a point.
pub(super) struct Looked<'a> {
    pub(super) id: &'a PointId,
    pub(super) payload: &'a Payload,
    pub(super) has_vector: &'a dyn Fn(&str) -> bool,
    /// By prefetch; `None` where it did not find the point.
    pub(super) scores: &'a [Option<f32>],
}

impl Formula {
    /// The score of a point.
    ///
    /// # Errors
    /// [`FormulaError`] where it has none.
    pub(super) fn score(&self, point: &Looked<'_>) -> Result<f32, FormulaError> {
        let score = self.value(&self.expression, point)?;
        let single = score as f32;
        if single.is_finite() { Ok(single) } else { Err(FormulaError::NotFinite(format!("{score} as f32 = {single}"))) }
    }

    /// What the prefetches found, each point once, by its score here, best first; equal scores by id. Hits must carry payloads,
    /// and vectors where [`Expression::asks_for_vectors`].
    ///
    /// # Errors
    /// [`FormulaError`] where one of the points has no score.
    pub(super) fn rank(
        &self,
        lists: Vec<Vec<Hit>>,
        least: Option<f32>,
        limit: usize,
    ) -> Result<Vec<Hit>, FormulaError> {
        let mut points: BTreeMap<PointId, (Hit, Vec<Option<f32>>)> = BTreeMap::new();
        let count = lists.len();
        for (at, list) in lists.into_iter().enumerate() {
            for hit in list {
                let score = hit.score;
                let (_, scores) = points.entry(hit.id.clone()).or_insert_with(|| (hit, vec![None; count]));
                if let Some(place) = scores.get_mut(at) {
                    *place = Some(score);
                }
            }
        }
        let mut hits = Vec::with_capacity(points.len());
        for (hit, scores) in points.into_values() {
            let payload = payload::parse(&hit.payload_json)?;
            let has_vector = |name: &str| hit.vectors.contains_key(name);
            let looked = Looked { id: &hit.id, payload: &payload, has_vector: &has_vector, scores: &scores };
            let score = self.score(&looked)?;
            if least.is_none_or(|least| score >= least) {
                hits.push(Hit { score, ..hit });
            }
        }
        // Ids are in order already, and the sort is stable.
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        hits.truncate(limit);
        Ok(hits)
    }

    fn value(&self, expression: &Expression, point: &Looked<'_>) -> Result<f64, FormulaError> {
        Ok(match expression {
            Expression::Constant(number) => *number,
            Expression::Score(at) => match point.scores.get(*at) {
                Some(Some(score)) => f64::from(*score),
                _ => self.scores.get(at).copied().unwrap_or(0.0),
            },
            Expression::Number(path) => self.found(path, point, "number", "it is no number", |value| value.as_f64())?,
            Expression::Condition(filter) => {
                f64::from(u8::from(filter.matches(point.id, point.payload, point.has_vector)))
            }
            Expression::Distance { origin, to } => {
                origin.distance_m(&self.found(to, point, "geo point", "it is no place", Place::from_json)?)
            }
            Expression::Moment(path) => {
                let moment = |value: &Value| datetime_micros(value.as_str()?);
                seconds(self.found(path, point, "datetime", "it is no RFC 3339 datetime", moment)?)
            }
            Expression::Product(factors) => {
                let mut product = 1.0;
                for factor in factors {
                    let factor = self.value(factor, point)?;
                    if factor == 0.0 {
                        return Ok(0.0);
                    }
                    product *= factor;
                }
                product
            }
            Expression::Sum(terms) => {
                terms.iter().try_fold(0.0, |sum, term| Ok::<_, FormulaError>(sum + self.value(term, point)?))?
            }
            Expression::Largest(all) => self.fold(all, point, f64::max)?,
            Expression::Smallest(all) => self.fold(all, point, f64::min)?,
            Expression::Quotient { dividend, divisor, by_zero } => {
                let dividend = self.value(dividend, point)?;
                if dividend == 0.0 {
                    return Ok(0.0);
                }
                let divisor = self.value(divisor, point)?;
                match by_zero {
                    Some(by_zero) if divisor == 0.0 => *by_zero,
                    _ => finite(dividend / divisor, || format!("{dividend}/{divisor}"))?,
                }
            }
            Expression::Power { base, exponent } => {
                let (base, exponent) = (self.value(base, point)?, self.value(exponent, point)?);
                finite(base.powf(exponent), || format!("{base}^{exponent}"))?
            }
            Expression::Function(function, of) => function.of(self.value(of, point)?)?,
            Expression::Decay { decay, of, target, steepness } => {
                let distance = self.value(of, point)? - self.value(target, point)?;
                decay.at(distance, *steepness)
            }
        })
    }

    fn fold(
        &self,
        all: &[Expression],
        point: &Looked<'_>,
        chosen: impl Fn(f64, f64) -> f64,
    ) -> Result<f64, FormulaError> {
        let values = all.iter().map(|one| self.value(one, point)).collect::<Result<Vec<f64>, _>>()?;
        values.into_iter().reduce(chosen).ok_or_else(|| FormulaError::NotFinite("of no values".to_owned()))
    }

    /// What stands at a path, or its default, as what is wanted there.
    fn found<T>(
        &self,
        path: &str,
        point: &Looked<'_>,
        wanted: &'static str,
        not: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, FormulaError> {
        let mut found: Vec<&Value> = Vec::new();
        payload::visit_written(point.payload, path, &mut |value| match value {
            Value::Array(items) => found.extend(items),
            other => found.push(other),
        });
        if self.indexed.contains(path) {
            found.retain(|value| !value.is_null());
        }
        let error = |reason| FormulaError::Value { path: path.to_owned(), wanted, reason };
        let value = match found.as_slice() {
            [] => self.values.get(path).ok_or_else(|| error("there is none"))?,
            [one] => one,
            [..] => return Err(error("there are several")),
        };
        read(value).ok_or_else(|| error(not))
    }
}

impl Expression {
    /// Whether it asks which vectors a point has.
    pub(super) fn asks_for_vectors(&self) -> bool {
        fn asks(filter: &Filter) -> bool {
            match filter {
                Filter::HasVector(_) => true,
                Filter::All(filters) | Filter::Any(filters) | Filter::AtLeast { filters, .. } => {
                    filters.iter().any(asks)
                }
                Filter::Not(filter) | Filter::Nested { filter, .. } => asks(filter),
                _ => false,
            }
        }
        match self {
            Self::Condition(filter) => asks(filter),
            Self::Product(all) | Self::Sum(all) | Self::Largest(all) | Self::Smallest(all) => {
                all.iter().any(Self::asks_for_vectors)
            }
            Self::Quotient { dividend: a, divisor: b, .. }
            | Self::Power { base: a, exponent: b }
            | Self::Decay { of: a, target: b, .. } => a.asks_for_vectors() || b.asks_for_vectors(),
            Self::Function(_, of) => of.asks_for_vectors(),
            Self::Constant(_) | Self::Score(_) | Self::Number(_) | Self::Distance { .. } | Self::Moment(_) => false,
        }
    }
}

impl Function {
    fn of(self, value: f64) -> Result<f64, FormulaError> {
        match self {
            Self::Negative => Ok(-value),
            Self::Absolute => Ok(value.abs()),
            Self::SquareRoot => finite(value.sqrt(), || format!("√{value}")),
            Self::Exponential => finite(value.exp(), || format!("exp({value})")),
            Self::DecimalLogarithm => finite(value.log10(), || format!("log10({value})")),
            Self::NaturalLogarithm => finite(value.ln(), || format!("ln({value})")),
            Self::InverseHyperbolicCosine => finite(value.acosh(), || format!("acosh({value})")),
        }
    }
}

impl Decay {
    /// What [`Expression::Decay`] is multiplied with, so that the value is `midpoint` at the distance `scale` from the target.
    ///
    /// # Errors
    /// The field and why it is refused: `midpoint` must lie between 0 and 1 (of a linear decay it may be both), `scale` above 0.
    pub(super) fn steepness(self, midpoint: f64, scale: f64) -> Result<f64, (&'static str, String)> {
        let fits = match self {
            Self::Linear => (0.0..=1.0).contains(&midpoint),
            Self::Exponential | Self::Gaussian => midpoint > 0.0 && midpoint < 1.0,
        };
        if !fits {
            return Err(("midpoint", format!("is {midpoint}, must lie between 0.0 and 1.0")));
        }
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(("scale", format!("is {scale}, must be above 0.0")));
        }
        Ok(match self {
            Self::Linear => (1.0 - midpoint) / scale,
            Self::Exponential => midpoint.ln() / scale,
            Self::Gaussian => midpoint.ln() / (scale * scale),
        })
    }

    fn at(self, distance: f64, steepness: f64) -> f64 {
        match self {
            Self::Linear => (1.0 - steepness * distance.abs()).max(0.0),
            Self::Exponential => (steepness * distance.abs()).exp(),
            Self::Gaussian => (steepness * distance * distance).exp(),
        }
    }
}

/// Microseconds as seconds.
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1_000_000.0
}

fn finite(value: f64, step: impl Fn() -> String) -> Result<f64, FormulaError> {
    if value.is_finite() { Ok(value) } else { Err(FormulaError::NotFinite(format!("{} = {value}", step()))) }
}
