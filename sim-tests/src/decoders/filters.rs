//! Filters, payloads and the indexes over them, against what `Filter::matches` says.
use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use nearring_node::payload_index::PayloadIndexes;
use nearring_proto::collection::FieldKind;
use nearring_proto::convert::{decode_filter, encode_filter};
use nearring_proto::filter::{Filter, Range, Scalar, datetime_micros};
use nearring_proto::ids::PointId;
use nearring_proto::payload::{self, Payload};
use roaring::RoaringBitmap;
use serde_json::{Number, Value};

use super::messages::shown;
use super::{choice, chosen, done};

/// Few, so that filters meet payloads; one is a key with a dot, and a path as well.
const PATHS: [&str; 6] = ["a", "b", "a.b", "b.c", "t", "b.b.b"];
const TEXTS: [&str; 8] = [
    "x",
    "7",
    "",
    "2024-05-01T10:00:00Z",
    "2024-05-01T12:00:00+02:00",
    "2024-05-01T10:00:00.0000001Z",
    "-000001-01-01T00:00:00Z",
    "+2024",
];

fn path(number: u8) -> &'static str {
    PATHS[usize::from(number) % PATHS.len()]
}

#[derive(Arbitrary, Clone, Debug)]
enum AnyScalar {
    Bool(bool),
    Small(i8),
    Int(i64),
    Float(f64),
    Known(u8),
    Text(String),
}

impl AnyScalar {
    fn scalar(self) -> Scalar {
        match self {
            Self::Bool(value) => Scalar::Bool(value),
            Self::Small(value) => Scalar::Int(value.into()),
            Self::Int(value) => Scalar::Int(value),
            Self::Float(value) => Scalar::Float(value),
            Self::Known(at) => Scalar::Text(TEXTS[usize::from(at) % TEXTS.len()].to_owned()),
            Self::Text(value) => Scalar::Text(value),
        }
    }

    fn value(self) -> Value {
        match self.scalar() {
            Scalar::Bool(value) => value.into(),
            Scalar::Int(value) => value.into(),
            Scalar::Float(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
            Scalar::Text(value) => value.into(),
        }
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum AnyFilter {
    All(Vec<AnyFilter>),
    Any(Vec<AnyFilter>),
    Not(Box<AnyFilter>),
    Equals(u8, AnyScalar),
    In(u8, Vec<AnyScalar>),
    Range(u8, [Option<AnyScalar>; 4]),
    Exists(u8),
    IsNull(u8),
    Ids(Vec<u8>),
}

impl AnyFilter {
    fn filter(self, depth: usize) -> Filter {
        let deeper = |filters: Vec<Self>| {
            // Cut where `check` would refuse it anyway; a little beyond, so that refusing is tried as well.
            let filters = if depth > Filter::DEPTH_MAX { Vec::new() } else { filters };
            filters.into_iter().map(|filter| filter.filter(depth + 1)).collect()
        };
        match self {
            Self::All(filters) => Filter::All(deeper(filters)),
            Self::Any(filters) => Filter::Any(deeper(filters)),
            Self::Not(_) if depth > Filter::DEPTH_MAX => Filter::All(Vec::new()),
            Self::Not(filter) => Filter::Not(Box::new(filter.filter(depth + 1))),
            Self::Equals(at, value) => Filter::Equals { path: path(at).to_owned(), value: value.scalar() },
            Self::In(at, values) => {
                Filter::In { path: path(at).to_owned(), values: values.into_iter().map(AnyScalar::scalar).collect() }
            }
            Self::Range(at, [gt, gte, lt, lte]) => {
                let bound = |bound: Option<AnyScalar>| bound.map(AnyScalar::scalar);
                let range = Range { gt: bound(gt), gte: bound(gte), lt: bound(lt), lte: bound(lte) };
                Filter::Range { path: path(at).to_owned(), range }
            }
            Self::Exists(at) => Filter::Exists(path(at).to_owned()),
            Self::IsNull(at) => Filter::IsNull(path(at).to_owned()),
            Self::Ids(ids) => Filter::Ids(ids.into_iter().map(|id| PointId::Number((id % 8).into())).collect()),
        }
    }
}

/// Fields of an object, by the number of their path.
type Fields = Vec<(u8, AnyValue)>;

#[derive(Arbitrary, Clone, Debug)]
enum AnyValue {
    Null,
    Scalar(AnyScalar),
    Array(Vec<AnyValue>),
    Object(Fields),
}

fn object(fields: Fields, depth: usize) -> Payload {
    fields.into_iter().map(|(at, value)| (path(at).to_owned(), value.value(depth + 1))).collect()
}

impl AnyValue {
    fn value(self, depth: usize) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Scalar(scalar) => scalar.value(),
            _ if depth > 6 => Value::Null,
            Self::Array(items) => items.into_iter().map(|item| item.value(depth + 1)).collect(),
            Self::Object(fields) => Value::Object(object(fields, depth)),
        }
    }
}

/// The payload as it is stored and read again.
fn stored(payload: &Payload) -> Payload {
    let bytes = done(serde_json::to_vec(payload));
    let again = done(payload::parse(&bytes));
    assert_eq!(again, *payload, "a payload changes when it is stored");
    again
}

/// A filter that passes its check goes over the wire unchanged; one that does not is refused there too.
fn over_the_wire(filter: &Filter) -> Option<Filter> {
    let bytes = encode_filter(filter);
    match (filter.check(), decode_filter(&bytes)) {
        (Ok(()), Ok(again)) => {
            assert_eq!(shown(&again), shown(filter));
            assert_eq!(encode_filter(&again), bytes);
            Some(again)
        }
        (Err(_), Err(_)) => None,
        (checked, read) => panic!("checking says {checked:?}, reading says {read:?}"),
    }
}

/// Filters as messages, as JSON and built, with payloads as bytes and built.
pub fn filters(data: &[u8]) -> bool {
    let (which, bytes) = choice(data);
    match which % 4 {
        0 => {
            let Ok(filter) = decode_filter(bytes) else { return false };
            assert!(filter.check().is_ok());
            over_the_wire(&filter).is_some()
        }
        1 => {
            let Ok(filter) = serde_json::from_slice::<Filter>(bytes) else { return false };
            over_the_wire(&filter).is_some()
        }
        2 => {
            let Ok(payload) = payload::parse(bytes) else { return false };
            for path in payload.keys().map(String::as_str).chain(PATHS) {
                payload::visit(&payload, path, &mut |value| {
                    let again = value.as_str().and_then(datetime_micros);
                    assert_eq!(again, value.as_str().and_then(datetime_micros));
                });
            }
            true
        }
        _ => {
            let mut input = Unstructured::new(bytes);
            let Ok((filter, fields)) = <(AnyFilter, Fields)>::arbitrary(&mut input) else { return false };
            let (filter, payload) = (filter.filter(1), object(fields, 1));
            let (id, again) = (PointId::Number(3), stored(&payload));
            let none = |_: &str| false;
            let matches = filter.matches(&id, &payload, &none);
            assert_eq!(matches, filter.matches(&id, &again, &none));
            assert_ne!(matches, Filter::Not(Box::new(filter.clone())).matches(&id, &payload, &none));
            if let Filter::All(parts) = &filter {
                let parts = parts.iter().map(|part| Filter::Not(Box::new(part.clone()))).collect();
                assert_ne!(matches, Filter::Any(parts).matches(&id, &payload, &none));
            }
            over_the_wire(&filter).is_some_and(|read| {
                assert_eq!(read.matches(&id, &payload, &none), matches, "another filter behind the wire");
                true
            })
        }
    }
}

pub(super) fn filter_seeds() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"equals":{"path":"lang","value":"en"}}"#,
        r#"{"all":[{"exists":"a"},{"any":[{"is_null":"b.c"},{"not":{"ids":[7,"x"]}}]}]}"#,
        r#"{"range":{"path":"n","gte":1,"lt":2.5}}"#,
        r#"{"range":{"path":"t","gt":"2024-05-01T10:00:00Z","lte":"2024-05-01T12:00:00+02:00"}}"#,
        r#"{"in":{"path":"tags","values":["a",3,true,0.5]}}"#,
    ];
    let filters = texts.iter().map(|text| done(serde_json::from_str::<Filter>(text)));
    let mut seeds: Vec<Vec<u8>> = filters.map(|filter| chosen(0, &encode_filter(&filter))).collect();
    seeds.extend(texts.iter().map(|text| chosen(1, text.as_bytes())));
    seeds.push(chosen(2, br#"{"a":{"b":[1,null,{"c":"x"}]},"t":"2024-05-01T10:00:00Z","u":18446744073709551615}"#));
    seeds.extend(drawn(filters_built).into_iter().map(|bytes| chosen(3, &bytes)));
    seeds
}

fn filters_built(bytes: &[u8]) -> bool {
    filters(&chosen(3, bytes))
}

/// What indexes are told, and then asked.
#[derive(Arbitrary, Debug)]
struct Asked {
    kinds: [Option<u8>; 3],
    kinds_before: [Option<u8>; 3],
    steps: Vec<(u8, Option<Fields>)>,
    /// The step before which the indexes become those of `kinds`.
    configured: u8,
    /// Whether an index that was added is told what is there.
    filled: bool,
    filters: Vec<AnyFilter>,
}

fn spec(kinds: &[Option<u8>; 3]) -> BTreeMap<String, FieldKind> {
    use FieldKind::{Bool, Datetime, Float, Integer, Keyword};
    let kind = |number: u8| [Keyword, Integer, Float, Bool, Datetime][usize::from(number) % 5];
    PATHS.iter().zip(kinds).filter_map(|(path, number)| Some(((*path).to_owned(), kind((*number)?)))).collect()
}

/// Whatever the indexes are told and asked: no slot that matches is left out, and where they say that they are exact, they are.
pub fn payload_indexes(data: &[u8]) -> bool {
    let Ok(asked) = Asked::arbitrary(&mut Unstructured::new(data)) else { return false };
    let mut indexes = PayloadIndexes::new();
    indexes.configure(&spec(&asked.kinds_before));
    let mut points: BTreeMap<u32, Payload> = BTreeMap::new();
    let steps = asked.steps.into_iter().take(48);
    for (at, (slot, fields)) in steps.enumerate() {
        if at == usize::from(asked.configured % 48) {
            let added = indexes.configure(&spec(&asked.kinds));
            if asked.filled {
                points.iter().for_each(|(slot, payload)| indexes.set_paths(*slot, payload, &added));
            }
        }
        let slot = u32::from(slot % 8);
        match fields {
            Some(fields) => {
                let payload = object(fields, 1);
                indexes.set(slot, &PointId::Number(slot.into()), &payload);
                points.insert(slot, payload);
            }
            None => {
                indexes.remove(slot);
                points.remove(&slot);
            }
        }
    }
    let all: RoaringBitmap = points.keys().copied().collect();
    let slot_of = |id: &PointId| match id {
        PointId::Number(number) => u32::try_from(*number).ok().filter(|slot| points.contains_key(slot)),
        _ => None,
    };
    let mut narrowed = false;
    for filter in asked.filters.into_iter().take(8) {
        let filter = filter.filter(1);
        let matching = points
            .iter()
            .filter(|(slot, payload)| filter.matches(&PointId::Number((**slot).into()), payload, &|_| false));
        let matching: RoaringBitmap = matching.map(|(slot, _)| *slot).collect();
        if let Some(found) = indexes.narrow(&filter, &all, &slot_of, &|_| None) {
            narrowed = true;
            assert!(found.slots.is_subset(&all), "{filter:?} finds slots that were not asked about");
            assert!(matching.is_subset(&found.slots), "{filter:?} leaves out {:?}", &matching - &found.slots);
            if found.exact {
                assert_eq!(found.slots, matching, "{filter:?}");
            }
        }
    }
    narrowed
}

/// Bytes at random that were accepted: `arbitrary` reads structure from bytes and cannot write it.
fn drawn(check: fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    use rand::{Rng, RngCore, SeedableRng};
    let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
    let draw = || {
        let mut bytes = vec![0; rng.random_range(40..300)];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    std::iter::repeat_with(draw).take(2_000).filter(|bytes| check(bytes)).take(12).collect()
}

pub(super) fn index_seeds() -> Vec<Vec<u8>> {
    drawn(payload_indexes)
}
