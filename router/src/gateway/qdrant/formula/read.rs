//! Formulas as they are sent.
//!
//! A number, a variable, a condition, or an object whose one key is an operation. Read by hand, since what is wrong with one
//! is told by its place in it: `query.formula.sum[1].div.left: is missing`.
use std::collections::BTreeSet;

use nearring_proto::collection::InvalidInput;
use nearring_proto::filter::{Filter, Place, datetime_micros};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::filter::{QdrantFilter, path};
use super::super::openapi::Degrees;
use super::{Decay, Expression, Formula, Function, seconds};
use crate::failure::Error;

/// How deep operations may nest; the outermost one is at depth 1.
const DEPTH_MAX: usize = 64;
/// The most numbers, variables, conditions and operations of one formula.
const PARTS_MAX: usize = 1024;

/// A formula as it is sent.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes what is read by hand")]
pub(in super::super) enum Written {
    Number(f32),
    /// `$score`, `$score[n]`, or a path.
    Variable(String),
    Operation(Box<Operation>),
    Condition(Box<QdrantFilter>),
}

/// An operation, by its key.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "describes what is read by hand")]
pub(in super::super) enum Operation {
    Sum(Vec<Written>),
    Mult(Vec<Written>),
    Max(Vec<Written>),
    Min(Vec<Written>),
    Neg(Written),
    Abs(Written),
    Div { left: Written, right: Written, by_zero_default: Option<f32> },
    Sqrt(Written),
    Pow { base: Written, exponent: Written },
    Exp(Written),
    Log10(Written),
    Ln(Written),
    Acosh(Written),
    GeoDistance { origin: Degrees, to: String },
    Datetime(String),
    DatetimeKey(String),
    LinDecay(Decays),
    ExpDecay(Decays),
    GaussDecay(Decays),
}

/// What of, from where and how fast.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "describes what is read by hand")]
pub(in super::super) struct Decays {
    x: Written,
    target: Option<Written>,
    midpoint: Option<f32>,
    scale: Option<f32>,
}

impl Formula {
    /// Reads a formula and its defaults. `texts`: where a full-text index is declared.
    ///
    /// # Errors
    /// What is wrong, by its place.
    pub(in super::super) fn read(
        formula: &Value,
        defaults: Option<&Map<String, Value>>,
        texts: &BTreeSet<String>,
    ) -> Result<Self, Error> {
        let mut reader = Reader { parts: 0, checked: Vec::new(), texts };
        let expression = reader.expression(formula, "query.formula", 1)?;
        let mut read =
            Self { expression, scores: Default::default(), values: Default::default(), indexed: Default::default() };
        for (name, value) in defaults.into_iter().flatten() {
            let field = || format!("query.defaults.{name}");
            match variable(name).map_err(|reason| Error::invalid(field(), reason))? {
                Expression::Score(at) => {
                    let number = value.as_f64().ok_or_else(|| Error::invalid(field(), "must be a number"))?;
                    read.scores.insert(at, number);
                }
                _ => {
                    read.values.insert(path(name), value.clone());
                }
            }
        }
        // All at once, so that all of them together keep the limits of one filter.
        let checked = Filter::All(reader.checked).check();
        checked.map_err(|InvalidInput { field, reason }| Error::invalid(format!("query.formula: {field}"), reason))?;
        Ok(read)
    }
}

/// A variable by its name. `Err`: why it is none.
fn variable(name: &str) -> Result<Expression, String> {
    let Some(reserved) = name.strip_prefix('$') else { return Ok(Expression::Number(path(name))) };
    let unknown = || format!("Invalid reserved variable: {name}; there is $score and $score[n]");
    match reserved.strip_prefix("score").ok_or_else(unknown)? {
        "" => Ok(Expression::Score(0)),
        place => {
            let number = place.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or_else(unknown)?;
            number.parse().map(Expression::Score).map_err(|_| unknown())
        }
    }
}

/// A number in single precision, as all numbers of requests are.
fn single(value: &Value) -> Option<f64> {
    let number = value.as_f64()? as f32;
    number.is_finite().then_some(f64::from(number))
}

struct Reader<'t> {
    texts: &'t BTreeSet<String>,
    parts: usize,
    /// Conditions, and paths as conditions.
    checked: Vec<Filter>,
}

impl Reader<'_> {
    fn expression(&mut self, value: &Value, at: &str, depth: usize) -> Result<Expression, Error> {
        self.parts += 1;
        if depth > DEPTH_MAX || self.parts > PARTS_MAX {
            let reason = format!("nests deeper than {DEPTH_MAX}, or has more than {PARTS_MAX} parts");
            return Err(Error::invalid("query.formula", reason));
        }
        match value {
            Value::Number(number) => single(value)
                .map(Expression::Constant)
                .ok_or_else(|| Error::invalid(at, format!("is {number}, too large"))),
            Value::String(name) => {
                let variable = variable(name).map_err(|reason| Error::invalid(at, reason))?;
                if let Expression::Number(path) = &variable {
                    self.checked.push(Filter::Exists(path.clone()));
                }
                Ok(variable)
            }
            Value::Object(object) => {
                let mut entries = object.iter();
                match (entries.next(), entries.next()) {
                    (Some((key, of)), None) => {
                        let within = format!("{at}.{key}");
                        match self.operation(key, of, &within, depth + 1)? {
                            Some(operation) => Ok(operation),
                            None => self.condition(value, at),
                        }
                    }
                    _ => self.condition(value, at),
                }
            }
            Value::Null => Err(Error::invalid(at, "is missing")),
            _ => Err(Error::invalid(at, "is no number, variable, condition or operation")),
        }
    }

    /// `None` where the key is no operation's.
    fn operation(&mut self, key: &str, of: &Value, at: &str, depth: usize) -> Result<Option<Expression>, Error> {
        Ok(Some(match key {
            "sum" => Expression::Sum(self.list(of, at, depth)?),
            "mult" => Expression::Product(self.list(of, at, depth)?),
            "max" => Expression::Largest(self.some(of, at, depth)?),
            "min" => Expression::Smallest(self.some(of, at, depth)?),
            "neg" => self.function(Function::Negative, of, at, depth)?,
            "abs" => self.function(Function::Absolute, of, at, depth)?,
            "sqrt" => self.function(Function::SquareRoot, of, at, depth)?,
            "exp" => self.function(Function::Exponential, of, at, depth)?,
            "log10" => self.function(Function::DecimalLogarithm, of, at, depth)?,
            "ln" => self.function(Function::NaturalLogarithm, of, at, depth)?,
            "acosh" => self.function(Function::InverseHyperbolicCosine, of, at, depth)?,
            "div" => Expression::Quotient {
                dividend: self.part(of, "left", at, depth)?,
                divisor: self.part(of, "right", at, depth)?,
                by_zero: number(of, "by_zero_default", at)?,
            },
            "pow" => Expression::Power {
                base: self.part(of, "base", at, depth)?,
                exponent: self.part(of, "exponent", at, depth)?,
            },
            "geo_distance" => {
                let origin = Place::from_json(&of["origin"]).ok_or_else(|| {
                    let reason = "is no place; give lon, -180 to 180, and lat, -90 to 90";
                    Error::invalid(format!("{at}.origin"), reason)
                })?;
                Expression::Distance { origin, to: self.path(&of["to"], &format!("{at}.to"))? }
            }
            "datetime" => {
                let moment = of.as_str().and_then(datetime_micros);
                let moment = moment.ok_or_else(|| Error::invalid(at, "is no RFC 3339 datetime"))?;
                Expression::Constant(seconds(moment))
            }
            "datetime_key" => Expression::Moment(self.path(of, at)?),
            "lin_decay" => self.decay(Decay::Linear, of, at, depth)?,
            "exp_decay" => self.decay(Decay::Exponential, of, at, depth)?,
            "gauss_decay" => self.decay(Decay::Gaussian, of, at, depth)?,
            _ => return Ok(None),
        }))
    }

    fn list(&mut self, of: &Value, at: &str, depth: usize) -> Result<Vec<Expression>, Error> {
        let items = of.as_array().ok_or_else(|| Error::invalid(at, "is no list of expressions"))?;
        items.iter().enumerate().map(|(i, item)| self.expression(item, &format!("{at}[{i}]"), depth)).collect()
    }

    /// A list of at least one.
    fn some(&mut self, of: &Value, at: &str, depth: usize) -> Result<Vec<Expression>, Error> {
        let all = self.list(of, at, depth)?;
        if all.is_empty() { Err(Error::invalid(at, "is empty")) } else { Ok(all) }
    }

    fn part(&mut self, of: &Value, key: &str, at: &str, depth: usize) -> Result<Box<Expression>, Error> {
        self.expression(&of[key], &format!("{at}.{key}"), depth).map(Box::new)
    }

    fn function(&mut self, function: Function, of: &Value, at: &str, depth: usize) -> Result<Expression, Error> {
        Ok(Expression::Function(function, Box::new(self.expression(of, at, depth)?)))
    }

    fn path(&mut self, of: &Value, at: &str) -> Result<String, Error> {
        let read = of.as_str().map(path).ok_or_else(|| Error::invalid(at, "is no path"))?;
        self.checked.push(Filter::Exists(read.clone()));
        Ok(read)
    }

    fn decay(&mut self, decay: Decay, of: &Value, at: &str, depth: usize) -> Result<Expression, Error> {
        let target = match &of["target"] {
            Value::Null => Box::new(Expression::Constant(0.0)),
            _ => self.part(of, "target", at, depth)?,
        };
        let (midpoint, scale) = (number(of, "midpoint", at)?, number(of, "scale", at)?);
        let steepness = decay.steepness(midpoint.unwrap_or(0.5), scale.unwrap_or(1.0));
        let steepness = steepness.map_err(|(field, reason)| Error::invalid(format!("{at}.{field}"), reason))?;
        Ok(Expression::Decay { decay, of: self.part(of, "x", at, depth)?, target, steepness })
    }

    fn condition(&mut self, value: &Value, at: &str) -> Result<Expression, Error> {
        let must = Value::Object(Map::from_iter([("must".to_owned(), Value::Array(vec![value.clone()]))]));
        let filter = QdrantFilter::deserialize(&must).map_err(|_| {
            let keys: Vec<&str> = value.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
            Error::invalid(at, format!("has the keys {keys:?}: neither a condition nor one operation known here"))
        })?;
        let filter = filter.with_texts(self.texts).map_err(|error| Error::invalid(at, error.message))?;
        self.checked.push(filter.clone());
        Ok(Expression::Condition(filter))
    }
}

fn number(of: &Value, key: &str, at: &str) -> Result<Option<f64>, Error> {
    match &of[key] {
        Value::Null => Ok(None),
        value => single(value).map(Some).ok_or_else(|| Error::invalid(format!("{at}.{key}"), "is no number")),
    }
}
