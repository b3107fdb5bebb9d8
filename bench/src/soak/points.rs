//! Points of the soak: what is written under a key, how it comes back, and conditions over it.
//!
//! A value decides vector and payload, so an answer that mixes two writes shows itself. Components are whole numbers, whose
//! distances every precision holds exactly: scores can be compared bit by bit. Conditions have a meaning of their own here,
//! so that the store's filters are judged by something else than themselves.
use nearring_client::wire::{self, filter, point_id, scalar};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Components of a vector.
pub const DIMENSION: usize = 16;
/// Keys of one client lie below this; the next client's begin here.
pub const KEYS_PER_CLIENT: u64 = 1 << 32;

/// What a point holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contents {
    /// Decides the vector and most of the payload.
    pub value: u64,
    /// What a change of the payload alone has set.
    pub mark: Option<u64>,
}

/// The id of a key: numbers, UUIDs and texts by turns.
pub fn wire_id(key: u64) -> wire::PointId {
    let id = match key % 3 {
        0 => point_id::Id::Number(key),
        1 => point_id::Id::Uuid(u128::from(key).to_be_bytes().to_vec().into()),
        _ => point_id::Id::Text(format!("key-{key}")),
    };
    wire::PointId { id: Some(id) }
}

fn key_of(id: Option<&wire::PointId>) -> Option<u64> {
    let key = match id?.id.as_ref()? {
        point_id::Id::Number(number) => *number,
        point_id::Id::Uuid(bytes) => u64::try_from(u128::from_be_bytes(bytes.as_ref().try_into().ok()?)).ok()?,
        point_id::Id::Text(text) => text.strip_prefix("key-")?.parse().ok()?,
    };
    (wire_id(key).id.as_ref() == id?.id.as_ref()).then_some(key)
}

/// The vector that follows from a value.
pub fn vector(value: u64) -> Vec<f32> {
    let mut random = SmallRng::seed_from_u64(value);
    (0..DIMENSION).map(|_| f32::from(random.random_range(0..=250_u8))).collect()
}

/// The distance of two vectors of whole numbers.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}

fn payload(key: u64, contents: Contents) -> Value {
    let Contents { value, mark } = contents;
    let mut payload = json!({
        "value": value,
        "owner": key / KEYS_PER_CLIENT,
        "group": value % 10,
        "name": format!("name-{}", value % 7),
        "weight": (value % 1000) as f64 / 8.0,
        "even": value.is_multiple_of(2),
        // Logs must outgrow their budget, so that snapshots are taken.
        "padding": "x".repeat((value % 1500) as usize),
    });
    if let Some(mark) = mark {
        payload["mark"] = mark.into();
    }
    payload
}

/// A write of a whole point.
pub fn point(key: u64, value: u64, precondition: Option<wire::precondition::Kind>) -> wire::UpsertPoint {
    let vectors = vec![wire::NamedVector { name: String::new(), values: vector(value), ..Default::default() }];
    let payload_json = payload(key, Contents { value, mark: None }).to_string().into_bytes().into();
    let point = wire::Point { id: Some(wire_id(key)), vectors, payload_json };
    wire::UpsertPoint {
        point: Some(point),
        precondition: precondition.map(|kind| wire::Precondition { kind: Some(kind) }),
    }
}

/// The key and the contents of what was read.
///
/// # Errors
/// Where they were never written together.
pub fn decode(
    id: Option<&wire::PointId>,
    payload_json: &[u8],
    vectors: &[wire::NamedVector],
) -> Result<(u64, Contents), String> {
    let key = key_of(id).ok_or_else(|| format!("an id nobody wrote: {id:?}"))?;
    let found: Value = serde_json::from_slice(payload_json).map_err(|error| format!("key {key}: {error}"))?;
    let value = found["value"].as_u64().ok_or_else(|| format!("key {key}: no value in {found}"))?;
    let contents = Contents { value, mark: found["mark"].as_u64() };
    if found != payload(key, contents) {
        return Err(format!("key {key}: a payload nobody wrote: {found}"));
    }
    match vectors {
        [only] if only.values == vector(value) => Ok((key, contents)),
        other => Err(format!("key {key} has the payload of {value} and the vectors {other:?}")),
    }
}

/// A condition over contents.
#[derive(Clone, PartialEq, Debug)]
pub enum Condition {
    /// Every point.
    Any,
    /// Its group is this one.
    Group(u64),
    /// Its name is one of these, by number.
    Named(Vec<u64>),
    /// Its weight, in eighths, is at least the first and below the second.
    Weight(u64, u64),
    /// Its value is even.
    Even,
    /// It has a mark.
    Marked,
    /// The condition does not hold.
    Not(Box<Condition>),
    /// Both hold.
    Both(Box<Condition>, Box<Condition>),
    /// One of them holds.
    Either(Box<Condition>, Box<Condition>),
}

impl Condition {
    /// One of any shape, with `depth` levels of groups at most.
    pub fn draw(random: &mut SmallRng, depth: u32) -> Self {
        let inner = |random: &mut SmallRng| Box::new(Self::draw(random, depth.saturating_sub(1)));
        match random.random_range(0..if depth > 0 { 9 } else { 5 }) {
            0 => Self::Group(random.random_range(0..11)),
            1 => Self::Named((0..random.random_range(1..4)).map(|_| random.random_range(0..8)).collect()),
            2 => {
                let from = random.random_range(0..1000);
                Self::Weight(from, from + random.random_range(1..500))
            }
            3 => Self::Even,
            4 => Self::Marked,
            5 | 6 => Self::Both(inner(random), inner(random)),
            7 => Self::Either(inner(random), inner(random)),
            _ => Self::Not(inner(random)),
        }
    }

    /// Whether the contents satisfy it.
    pub fn holds(&self, contents: Contents) -> bool {
        let value = contents.value;
        match self {
            Self::Any => true,
            Self::Group(group) => value % 10 == *group,
            Self::Named(names) => names.contains(&(value % 7)),
            Self::Weight(from, below) => (*from..*below).contains(&(value % 1000)),
            Self::Even => value.is_multiple_of(2),
            Self::Marked => contents.mark.is_some(),
            Self::Not(inner) => !inner.holds(contents),
            Self::Both(one, other) => one.holds(contents) && other.holds(contents),
            Self::Either(one, other) => one.holds(contents) || other.holds(contents),
        }
    }

    /// The same for the store; of one client's points only where `owner` names it.
    pub fn filter(&self, owner: Option<u64>) -> wire::Filter {
        let mut filters = vec![self.inner_filter()];
        filters.extend(owner.map(|owner| equals("owner", integer(owner))));
        wire::Filter { kind: Some(filter::Kind::All(filter::List { filters })) }
    }

    fn inner_filter(&self) -> wire::Filter {
        let list = |filters: &[&Condition]| filter::List {
            filters: filters.iter().map(|condition| condition.inner_filter()).collect(),
        };
        let kind = match self {
            Self::Any => filter::Kind::All(filter::List::default()),
            Self::Group(group) => return equals("group", integer(*group)),
            Self::Named(names) => filter::Kind::In(filter::In {
                path: "name".to_owned(),
                values: names.iter().map(|name| scalar::Value::Text(format!("name-{name}"))).map(scalar).collect(),
            }),
            Self::Weight(from, below) => filter::Kind::Range(filter::InRange {
                path: "weight".to_owned(),
                range: Some(wire::Range {
                    gte: Some(scalar(scalar::Value::Number(*from as f64 / 8.0))),
                    lt: Some(scalar(scalar::Value::Number(*below as f64 / 8.0))),
                    ..Default::default()
                }),
            }),
            Self::Even => return equals("even", scalar(scalar::Value::Boolean(true))),
            Self::Marked => filter::Kind::Exists("mark".to_owned()),
            Self::Not(inner) => filter::Kind::Negated(Box::new(inner.inner_filter())),
            Self::Both(one, other) => filter::Kind::All(list(&[one, other])),
            Self::Either(one, other) => filter::Kind::Any(list(&[one, other])),
        };
        wire::Filter { kind: Some(kind) }
    }
}

fn scalar(value: scalar::Value) -> wire::Scalar {
    wire::Scalar { value: Some(value) }
}

fn integer(value: u64) -> wire::Scalar {
    scalar(scalar::Value::Integer(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn equals(path: &str, value: wire::Scalar) -> wire::Filter {
    wire::Filter { kind: Some(filter::Kind::Equals(filter::Equals { path: path.to_owned(), value: Some(value) })) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn what_was_written_together_is_recognised_and_a_mixture_is_not() {
        for key in 5..8 {
            let of = |value| point(key, value, None).point.unwrap();
            let (seven, eight) = (of(7), of(8));
            let found = decode(seven.id.as_ref(), &seven.payload_json, &seven.vectors);
            assert_eq!(found, Ok((key, Contents { value: 7, mark: None })));
            assert!(decode(seven.id.as_ref(), &seven.payload_json, &eight.vectors).is_err());
            assert!(decode(seven.id.as_ref(), b"{\"value\":7}", &seven.vectors).is_err());
            assert!(decode(None, &seven.payload_json, &seven.vectors).is_err());
        }
    }

    #[test]
    fn conditions_mean_what_they_say() {
        let of = |value| Contents { value, mark: None };
        let both = Condition::Both(Box::new(Condition::Even), Box::new(Condition::Weight(10, 20)));
        assert!(both.holds(of(1012)) && !both.holds(of(1013)) && !both.holds(of(1020)));
        assert!(Condition::Not(Box::new(Condition::Marked)).holds(of(1)));
        assert!(Condition::Named(vec![3]).holds(of(10)) && !Condition::Group(3).holds(of(10)));
    }
}
