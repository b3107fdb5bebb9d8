//! Points in another order than that of their ids, and the values of a path counted: what every shard must do alike, so that a
//! router can join what they answer.
use std::collections::BTreeMap;

use serde_json::Value;
use siphasher::sip::SipHasher13;

use crate::collection::InvalidInput;
use crate::filter::{Number, Scalar, check_path, datetime_micros};
use crate::ids::PointId;
use crate::payload::{self, Payload};

/// The order of a listing.
#[derive(Clone, PartialEq, Debug)]
pub enum Order {
    /// By the numbers, or RFC 3339 datetimes, at a path: once for each value that a point has there, and not at all where it
    /// has none. Numbers come before datetimes; equal values are in the order of ids.
    ByPayload {
        /// The path.
        path: String,
        /// Largest first.
        descending: bool,
        /// Begins at this value. A number begins among datetimes, too: it is what they are told as, microseconds.
        start_from: Option<Scalar>,
    },
    /// By chance that follows from this number: the first n are a sample of which every n points are as likely as others.
    Random(u64),
}

/// A value to order by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OrderKey {
    /// A number.
    Number(Number),
    /// Microseconds since 1970-01-01T00:00:00Z.
    Moment(i64),
}

/// A place in an order: smaller is earlier.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    key: Key,
    id: PointId,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Key {
    Up(OrderKey),
    Down(std::cmp::Reverse<OrderKey>),
    Chance(u64),
}

impl OrderKey {
    /// What a value is ordered by; `None` where it is no number and no datetime.
    pub fn of(value: &Scalar) -> Option<Self> {
        match value {
            Scalar::Text(text) => datetime_micros(text).map(Self::Moment),
            number => number.number().map(Self::Number),
        }
    }
}

impl OrderKey {
    /// The same start among values of another kind: of datetimes a number is microseconds.
    fn among(self, other: Self) -> Self {
        match (self, other) {
            (Self::Number(number), Self::Moment(at)) => match Number::from_int(at).cmp(&number) {
                // Only which side it is on counts; a fraction lies between two of them.
                std::cmp::Ordering::Less => Self::Moment(at.saturating_add(1)),
                std::cmp::Ordering::Equal => Self::Moment(at),
                std::cmp::Ordering::Greater => Self::Moment(at.saturating_sub(1)),
            },
            (start, _) => start,
        }
    }
}

impl Order {
    /// Checks path and start.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field.
    pub fn check(&self) -> Result<(), InvalidInput> {
        let Self::ByPayload { path, start_from, .. } = self else { return Ok(()) };
        check_path(path, "order.path")?;
        match start_from {
            Some(start) if OrderKey::of(start).is_none() => {
                Err(InvalidInput::new("order.start_from", "is no number and no RFC 3339 datetime"))
            }
            _ => Ok(()),
        }
    }

    /// Every place that a point has, with the value that puts it there; `None` where chance does.
    pub fn places(&self, id: &PointId, payload: &Payload) -> Vec<(Place, Option<Scalar>)> {
        match self {
            Self::Random(seed) => vec![(Place { key: Key::Chance(chance(*seed, id)), id: id.clone() }, None)],
            Self::ByPayload { path, descending, start_from } => {
                let start = start_from.as_ref().and_then(OrderKey::of);
                let mut places = Vec::new();
                payload::visit(payload, path, &mut |value| {
                    let Some(value) = scalar(value) else { return };
                    let Some(key) = OrderKey::of(&value) else { return };
                    let start = start.map(|start| start.among(key));
                    let key = if *descending { Key::Down(std::cmp::Reverse(key)) } else { Key::Up(key) };
                    let before = start.is_some_and(|start| match key {
                        Key::Up(key) => key < start,
                        Key::Down(key) => key.0 > start,
                        Key::Chance(_) => false,
                    });
                    if !before {
                        places.push((Place { key, id: id.clone() }, Some(value)));
                    }
                });
                places
            }
        }
    }

    /// The place of a point at a value that [`Order::places`] gave with it, or in an order by chance; `None` for a value that
    /// cannot be ordered by.
    pub fn place(&self, id: &PointId, value: Option<&Scalar>) -> Option<Place> {
        let key = match self {
            Self::Random(seed) => Key::Chance(chance(*seed, id)),
            Self::ByPayload { descending: true, .. } => Key::Down(std::cmp::Reverse(OrderKey::of(value?)?)),
            Self::ByPayload { .. } => Key::Up(OrderKey::of(value?)?),
        };
        Some(Place { key, id: id.clone() })
    }
}

/// The first few of many places, in order, in memory for no more than those.
#[derive(Debug)]
pub struct First {
    limit: usize,
    places: BTreeMap<Place, Option<Scalar>>,
}

impl First {
    /// Keeps so many.
    pub fn new(limit: usize) -> Self {
        Self { limit, places: BTreeMap::new() }
    }

    /// One more.
    pub fn push(&mut self, place: Place, value: Option<Scalar>) {
        let full = self.places.len() >= self.limit;
        if full && self.places.last_key_value().is_none_or(|(last, _)| *last <= place) {
            return;
        }
        self.places.insert(place, value);
        if self.places.len() > self.limit {
            self.places.pop_last();
        }
    }

    /// What was kept, in order.
    pub fn into_ids(self) -> impl Iterator<Item = (PointId, Option<Scalar>)> {
        self.places.into_iter().map(|(place, value)| (place.id, value))
    }
}

/// Points that have a value at a path, counted for each value.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Facet {
    counts: BTreeMap<FacetValue, u64>,
}

/// A value that points are counted by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FacetValue {
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A string.
    Text(String),
}

impl Facet {
    /// The most different values that are counted.
    pub const VALUES_MAX: usize = 100_000;

    /// Counts a point, once for each different value. Floats, nulls and objects are not counted.
    pub fn count(&mut self, payload: &Payload, path: &str) {
        let mut values = Vec::new();
        payload::visit(payload, path, &mut |value| {
            values.extend(match value {
                Value::Bool(value) => Some(FacetValue::Bool(*value)),
                Value::Number(number) => number.as_i64().map(FacetValue::Int),
                Value::String(text) => Some(FacetValue::Text(text.clone())),
                _ => None,
            });
        });
        values.sort_unstable();
        values.dedup();
        values.into_iter().for_each(|value| self.add(value, 1));
    }

    /// Adds to a value's count.
    pub fn add(&mut self, value: FacetValue, count: u64) {
        *self.counts.entry(value).or_default() += count;
    }

    /// Different values so far.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether no value was counted.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Every value with its count, in the order of values.
    pub fn into_counts(self) -> impl Iterator<Item = (FacetValue, u64)> {
        self.counts.into_iter()
    }

    /// The `limit` values of most points; of as many, in the order of values.
    pub fn most_frequent(self, limit: usize) -> Vec<(FacetValue, u64)> {
        let mut counts: Vec<_> = self.counts.into_iter().collect();
        counts.sort_by(|(_, a), (_, b)| b.cmp(a));
        counts.truncate(limit);
        counts
    }
}

fn scalar(value: &Value) -> Option<Scalar> {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Some(Scalar::Int(integer)),
            None => number.as_f64().map(Scalar::Float),
        },
        Value::String(text) => Some(Scalar::Text(text.clone())),
        _ => None,
    }
}

/// Well mixed, and the same wherever it is computed.
fn chance(seed: u64, id: &PointId) -> u64 {
    let bytes = serde_json::to_vec(id).unwrap_or_default();
    SipHasher13::new_with_keys(seed, 0).hash(&bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::json;

    use super::*;

    fn listed(order: &Order, limit: usize, points: &[(u64, Value)]) -> Vec<(u64, Option<Scalar>)> {
        let mut first = First::new(limit);
        for (id, payload) in points {
            for (place, value) in order.places(&PointId::Number(*id), payload.as_object().unwrap()) {
                assert_eq!(order.place(&PointId::Number(*id), value.as_ref()).as_ref(), Some(&place));
                first.push(place, value);
            }
        }
        let number = |id| if let PointId::Number(number) = id { number } else { 0 };
        first.into_ids().map(|(id, value)| (number(id), value)).collect()
    }

    #[test]
    fn points_come_by_value_then_id_once_for_each_value() {
        let points = [
            (1, json!({"n": 5})),
            (2, json!({"n": [1, 9]})),
            (3, json!({"n": "x"})),
            (4, json!({"n": 5.0})),
            (5, json!({"n": "2024-01-01T00:00:00Z"})),
            (6, json!({})),
        ];
        let order = |descending, start_from| Order::ByPayload { path: "n".into(), descending, start_from };
        let ids =
            |order: Order, limit| listed(&order, limit, &points).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(order(false, None), 10), [2, 1, 4, 2, 5]);
        assert_eq!(ids(order(true, None), 10), [5, 2, 1, 4, 2]);
        assert_eq!(ids(order(true, None), 2), [5, 2]);
        assert_eq!(ids(order(false, Some(Scalar::Int(5))), 10), [1, 4, 2, 5]);
        assert_eq!(ids(order(true, Some(Scalar::Float(5.0))), 10), [1, 4, 2]);
        // Of datetimes a number is microseconds.
        let new_year = 1_704_067_200_000_000;
        assert_eq!(ids(order(false, Some(Scalar::Int(new_year))), 10), [5]);
        assert_eq!(ids(order(false, Some(Scalar::Float(new_year as f64 + 0.5))), 10), [0; 0]);
        assert_eq!(ids(order(true, Some(Scalar::Int(new_year))), 1), [5]);
        assert_eq!(ids(order(true, Some(Scalar::Int(new_year - 1))), 1), [2]);
        assert_eq!(listed(&order(false, None), 1, &points), [(2, Some(Scalar::Int(1)))]);
        assert!(order(false, Some(Scalar::Text("x".into()))).check().is_err());
        assert!(Order::ByPayload { path: String::new(), descending: false, start_from: None }.check().is_err());
    }

    #[test]
    fn chance_follows_from_its_seed_and_gives_every_point_its_turn() {
        let points: Vec<(u64, Value)> = (0..50).map(|id| (id, json!({}))).collect();
        let firsts = |seed| listed(&Order::Random(seed), 5, &points);
        assert_eq!(firsts(1), firsts(1));
        let seen: std::collections::BTreeSet<u64> =
            (0..200).flat_map(|seed| firsts(seed).into_iter().map(|(id, _)| id)).collect();
        assert_eq!(seen.len(), 50);
    }

    #[test]
    fn a_facet_counts_a_point_once_for_each_value() {
        let mut facet = Facet::default();
        for payload in
            [json!({"a": ["x", "x", "y"]}), json!({"a": "y"}), json!({"a": 3}), json!({"a": [true, 1.5, null]})]
        {
            facet.count(payload.as_object().unwrap(), "a");
        }
        let text = |text: &str| FacetValue::Text(text.to_owned());
        assert_eq!(facet.clone().most_frequent(2), [(text("y"), 2), (FacetValue::Bool(true), 1)]);
        assert_eq!(facet.len(), 4);
    }
}
