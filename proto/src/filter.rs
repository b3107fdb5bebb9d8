//! Filters: what a payload condition means. Every index and every plan must reproduce [`Filter::matches`] exactly.
//!
//! Rules: a path that names several values (through arrays) satisfies a condition when *any* of them does; a missing
//! path satisfies nothing but a `Not`. `Equals` and `In` compare strings exactly, booleans exactly, and numbers by
//! value (an integer 3 equals 3.0). A range compares numbers, or RFC 3339 datetimes when its bounds are text.
//! `Exists` wants at least one value that is not null; `IsNull` wants a null. An empty array holds no value. `NotIn` wants a
//! value other than null that equals none of those given, and is not the opposite of `In`. A place on Earth is an object
//! with the numbers `lat` and `lon`, in degrees; distances are great-circle ones on a sphere of [`EARTH_RADIUS_M`].
//! `ValuesCount` counts what stands at the path as it is written: an array its items, null and what is missing none, anything
//! else one; where the path names several of them, any may have the count.
//! `Words` compares texts by their words: what stands between letters and digits is no part of any, nor is case.
//! `Nested` reads each object at the path as if it were a payload of its own.
//!
//! Numbers are compared by [`Number`], datetimes by [`datetime_micros`], everywhere: an index that keys its entries by
//! these two cannot disagree with [`Filter::matches`]. Call [`Filter::check`] once on what a caller sent; `matches`
//! itself accepts anything and treats a malformed condition as one that nothing satisfies.
use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use siphasher::sip::SipHasher13;

use crate::collection::{CollectionSpec, InvalidInput};
use crate::ids::PointId;
use crate::payload::{self, Payload};

/// A value that a condition compares with.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// Exactly this boolean.
    Bool(bool),
    /// Exactly this integer (or a float of the same value).
    Int(i64),
    /// Exactly this float (or an integer of the same value). Never NaN.
    Float(f64),
    /// Exactly this string.
    Text(String),
}

/// Bounds of a range; absent ones do not constrain. All given bounds are numbers, or all are RFC 3339 texts.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Greater than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gt: Option<Scalar>,
    /// Greater than or equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gte: Option<Scalar>,
    /// Less than.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lt: Option<Scalar>,
    /// Less than or equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lte: Option<Scalar>,
}

/// Which words of a text [`Filter::Words`] wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedWords {
    /// Every one, in any order.
    All,
    /// At least one.
    Any,
    /// Every one, one behind the other.
    Phrase,
}

/// A condition over id, payload and which vectors there are. As JSON (in the command line): `{"equals":{"path":"lang","value":"en"}}`,
/// `{"all":[…]}`, `{"any":[…]}`, `{"not":…}`, `{"in":{"path":…,"values":[…]}}`, `{"range":{"path":…,"gte":1}}`,
/// `{"exists":"path"}`, `{"is_null":"path"}`, `{"ids":[…]}`, `{"has_vector":"name"}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Filter {
    /// Every one of them; an empty list matches everything.
    All(Vec<Filter>),
    /// At least one of them; an empty list matches nothing.
    Any(Vec<Filter>),
    /// Not this.
    Not(Box<Filter>),
    /// A value at `path` equals `value`.
    Equals {
        /// Dotted path.
        path: String,
        /// What to equal.
        value: Scalar,
    },
    /// A value at `path` equals one of `values`.
    In {
        /// Dotted path.
        path: String,
        /// The candidates.
        values: Vec<Scalar>,
    },
    /// A value at `path` lies within the range.
    Range {
        /// Dotted path.
        path: String,
        /// The bounds.
        #[serde(flatten)]
        range: Range,
    },
    /// A value other than null stands at the path.
    Exists(String),
    /// A null stands at the path.
    IsNull(String),
    /// The id is one of these.
    Ids(Vec<PointId>),
    /// At least so many of them.
    AtLeast {
        /// How many.
        count: u32,
        /// Of which.
        filters: Vec<Filter>,
    },
    /// A value at `path`, not null, equals none of `values`.
    NotIn {
        /// Dotted path.
        path: String,
        /// What not to equal.
        values: Vec<Scalar>,
    },
    /// A string at `path` contains `text`, letter for letter.
    Contains {
        /// Dotted path.
        path: String,
        /// Not empty.
        text: String,
    },
    /// A string at `path` begins with `text`, byte by byte.
    StartsWith {
        /// Dotted path.
        path: String,
        /// May be empty: then every string does.
        text: String,
    },
    /// A string at `path` has words of `text` among its own. Texts without a word match nothing.
    Words {
        /// Dotted path.
        path: String,
        /// Where the words are taken from.
        text: String,
        /// Which of them it has to have.
        wanted: WantedWords,
    },
    /// A place at `path` lies in the box; its edges are not part of it, as they are not in Qdrant. A box whose west is east of its east crosses the
    /// antimeridian.
    GeoBox {
        /// Dotted path.
        path: String,
        /// North-west corner.
        top_left: Place,
        /// South-east corner.
        bottom_right: Place,
    },
    /// A place at `path` lies within `radius_m` metres of `center`.
    GeoRadius {
        /// Dotted path.
        path: String,
        /// From where.
        center: Place,
        /// Metres, 0 or more.
        radius_m: f64,
    },
    /// A place at `path` lies within the first ring and in none of the others.
    GeoPolygon {
        /// Dotted path.
        path: String,
        /// The outline, then holes. Each at least 3 places; whether the last repeats the first does not matter.
        rings: Vec<Vec<Place>>,
    },
    /// The number of values at `path` lies within the range.
    ValuesCount {
        /// Dotted path.
        path: String,
        /// Numbers only.
        #[serde(flatten)]
        range: Range,
    },
    /// An object at `path` satisfies `filter`, whose paths begin there. Ids are no part of such an object.
    Nested {
        /// Dotted path.
        path: String,
        /// What one object must satisfy.
        filter: Box<Filter>,
    },
    /// The point has a vector of this name.
    HasVector(String),
    /// The id falls into part `index` of the `total` that ids fall into evenly and forever, by a hash of their own.
    Slice {
        /// How many parts, at least 1.
        total: u32,
        /// Which, below `total`.
        index: u32,
    },
}

/// A place on Earth, in degrees.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Longitude, -180 to 180.
    pub lon: f64,
    /// Latitude, -90 to 90.
    pub lat: f64,
}

/// The mean radius of Earth (IUGG), in metres.
pub const EARTH_RADIUS_M: f64 = 6_371_008.8;

impl Place {
    /// The place that a payload value names.
    pub fn from_json(value: &Value) -> Option<Self> {
        let (lon, lat) = (value.get("lon")?.as_f64()?, value.get("lat")?.as_f64()?);
        Some(Self { lon, lat }).filter(Self::is_valid)
    }

    fn is_valid(&self) -> bool {
        (-180.0..=180.0).contains(&self.lon) && (-90.0..=90.0).contains(&self.lat)
    }

    /// The great-circle distance, in metres (haversine).
    pub fn distance_m(&self, other: &Place) -> f64 {
        let (a, b) = (self.lat.to_radians(), other.lat.to_radians());
        let half = |degrees: f64| (degrees.to_radians() / 2.0).sin().powi(2);
        let h = half(other.lat - self.lat) + a.cos() * b.cos() * half(other.lon - self.lon);
        2.0 * EARTH_RADIUS_M * h.min(1.0).sqrt().asin()
    }

    fn within_box(&self, top_left: &Place, bottom_right: &Place) -> bool {
        let (east_of, west_of) = (self.lon > top_left.lon, self.lon < bottom_right.lon);
        let lon = if top_left.lon <= bottom_right.lon { east_of && west_of } else { east_of || west_of };
        lon && self.lat > bottom_right.lat && self.lat < top_left.lat
    }

    /// Even-odd rule on the plane of degrees.
    fn within_ring(&self, ring: &[Place]) -> bool {
        let mut inside = false;
        let mut last = ring.last();
        for corner in ring {
            if let Some(last) = last.replace(corner)
                && (corner.lat > self.lat) != (last.lat > self.lat)
                && self.lon < (last.lon - corner.lon) * (self.lat - corner.lat) / (last.lat - corner.lat) + corner.lon
            {
                inside = !inside;
            }
        }
        inside
    }
}

impl Filter {
    /// How deep conditions may nest; the outermost one is at depth 1.
    pub const DEPTH_MAX: usize = 32;
    /// The most conditions in one filter, groups included.
    pub const CONDITIONS_MAX: usize = 1024;
    /// The most values and ids in one filter, over all its lists.
    pub const VALUES_MAX: usize = 65_536;
    /// The longest path, in bytes.
    pub const PATH_BYTES_MAX: usize = 1024;
    /// The longest string to compare with, in bytes.
    pub const TEXT_BYTES_MAX: usize = 65_536;

    /// Whether a point with this id and payload, and vectors of these names, satisfies the filter. This is the definition of
    /// every condition.
    pub fn matches(&self, id: &PointId, payload: &Payload, has_vector: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Filter::All(filters) => filters.iter().all(|filter| filter.matches(id, payload, has_vector)),
            Filter::Any(filters) => filters.iter().any(|filter| filter.matches(id, payload, has_vector)),
            Filter::Not(filter) => !filter.matches(id, payload, has_vector),
            Filter::Equals { path, value } => any_value(payload, path, |found| value.equals(found)),
            Filter::In { path, values } => {
                any_value(payload, path, |found| values.iter().any(|value| value.equals(found)))
            }
            Filter::Range { path, range } => match range.bounds() {
                Some(bounds) => any_value(payload, path, |found| bounds.contain(found)),
                None => false,
            },
            Filter::Exists(path) => any_value(payload, path, |found| !found.is_null()),
            Filter::IsNull(path) => any_value(payload, path, Value::is_null),
            Filter::Ids(ids) => ids.contains(id),
            Filter::AtLeast { count, filters } => {
                let wanted = usize::try_from(*count).unwrap_or(usize::MAX);
                filters.iter().filter(|filter| filter.matches(id, payload, has_vector)).take(wanted).count() >= wanted
            }
            Filter::NotIn { path, values } => {
                any_value(payload, path, |found| !found.is_null() && !values.iter().any(|value| value.equals(found)))
            }
            Filter::Contains { path, text } => {
                any_value(payload, path, |found| found.as_str().is_some_and(|found| found.contains(text)))
            }
            Filter::StartsWith { path, text } => {
                any_value(payload, path, |found| found.as_str().is_some_and(|found| found.starts_with(text)))
            }
            Filter::Words { path, text, wanted } => {
                let asked = words(text);
                any_value(payload, path, |found| {
                    found.as_str().is_some_and(|found| wanted.are_among(&asked, &words(found)))
                })
            }
            Filter::GeoBox { path, top_left, bottom_right } => {
                any_place(payload, path, |place| place.within_box(top_left, bottom_right))
            }
            Filter::GeoRadius { path, center, radius_m } => {
                any_place(payload, path, |place| place.distance_m(center) <= *radius_m)
            }
            Filter::GeoPolygon { path, rings } => any_place(payload, path, |place| {
                let mut rings = rings.iter().map(|ring| place.within_ring(ring));
                rings.next().unwrap_or(false) && !rings.any(|within| within)
            }),
            Filter::ValuesCount { path, range } => match range.bounds() {
                Some(Bounds::Numbers(interval)) => any_count(payload, path, |count| interval.contains(&count)),
                _ => false,
            },
            Filter::Nested { path, filter } => any_value(payload, path, |found| match found {
                Value::Object(object) => filter.matches(id, object, has_vector),
                _ => false,
            }),
            Filter::HasVector(name) => has_vector(name),
            Filter::Slice { total, index } => {
                // Keys of its own, so that a slice is not a shard.
                let hash = SipHasher13::new_with_keys(0x736c_6963_6573, 0).hash(&id.to_key());
                hash.checked_rem(u64::from(*total)) == Some(u64::from(*index))
            }
        }
    }

    /// Refuses what could not be meant or could not be afforded.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the condition, as `filter.all[1].range`, where it nests deeper than
    /// [`Filter::DEPTH_MAX`], is larger than the other limits of this type, has an empty path, compares with NaN, has a
    /// range without bounds or with bounds that are not all numbers or all RFC 3339 datetimes, or lists an invalid id.
    pub fn check(&self) -> Result<(), InvalidInput> {
        check_condition(self, "filter", 1, &mut Budget { conditions: Self::CONDITIONS_MAX, values: Self::VALUES_MAX })
    }

    /// Every payload path the filter reads.
    pub fn paths(&self) -> BTreeSet<&str> {
        let mut paths = BTreeSet::new();
        collect_paths(self, &mut paths);
        paths
    }
}

impl Scalar {
    /// Whether a payload value equals this one: numbers by value, everything else by kind and value.
    pub fn equals(&self, value: &Value) -> bool {
        match (self, value) {
            (Scalar::Bool(wanted), Value::Bool(found)) => wanted == found,
            (Scalar::Text(wanted), Value::String(found)) => wanted == found,
            (Scalar::Int(_) | Scalar::Float(_), Value::Number(found)) => {
                self.number().is_some_and(|wanted| Number::from_json(found) == Some(wanted))
            }
            _ => false,
        }
    }

    /// This scalar as a number; `None` where it is none, or NaN.
    pub fn number(&self) -> Option<Number> {
        match self {
            Scalar::Int(integer) => Some(Number::from_int(*integer)),
            Scalar::Float(float) => Number::from_float(*float),
            Scalar::Bool(_) | Scalar::Text(_) => None,
        }
    }
}

impl Range {
    /// The bounds in comparable form; `None` where they are not all numbers or all RFC 3339 datetimes. A range without
    /// any bound spans all numbers.
    pub fn bounds(&self) -> Option<Bounds> {
        let is_text = |bound: &Option<Scalar>| matches!(bound, Some(Scalar::Text(_)));
        if [&self.gt, &self.gte, &self.lt, &self.lte].into_iter().any(is_text) {
            let datetime = |bound: &Option<Scalar>| match bound {
                None => Some(None),
                Some(Scalar::Text(text)) => datetime_micros(text).map(Some),
                Some(_) => None,
            };
            Some(Bounds::Datetimes(Interval {
                gt: datetime(&self.gt)?,
                gte: datetime(&self.gte)?,
                lt: datetime(&self.lt)?,
                lte: datetime(&self.lte)?,
            }))
        } else {
            let number = |bound: &Option<Scalar>| match bound {
                None => Some(None),
                Some(scalar) => scalar.number().map(Some),
            };
            Some(Bounds::Numbers(Interval {
                gt: number(&self.gt)?,
                gte: number(&self.gte)?,
                lt: number(&self.lt)?,
                lte: number(&self.lte)?,
            }))
        }
    }
}

/// A range ready for comparing; every bound given must hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bounds {
    /// Over numbers.
    Numbers(Interval<Number>),
    /// Over datetimes, as [`datetime_micros`] gives them.
    Datetimes(Interval<i64>),
}

impl Bounds {
    /// Whether a payload value is of the range's kind and within it.
    pub fn contain(&self, value: &Value) -> bool {
        match (self, value) {
            (Bounds::Numbers(interval), Value::Number(number)) => {
                Number::from_json(number).is_some_and(|number| interval.contains(&number))
            }
            (Bounds::Datetimes(interval), Value::String(text)) => {
                datetime_micros(text).is_some_and(|micros| interval.contains(&micros))
            }
            _ => false,
        }
    }
}

/// Up to four bounds over one ordered type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interval<T> {
    /// Greater than.
    pub gt: Option<T>,
    /// Greater than or equal.
    pub gte: Option<T>,
    /// Less than.
    pub lt: Option<T>,
    /// Less than or equal.
    pub lte: Option<T>,
}

impl<T: Ord> Interval<T> {
    /// Whether every bound given holds.
    pub fn contains(&self, value: &T) -> bool {
        self.gt.as_ref().is_none_or(|bound| value > bound)
            && self.gte.as_ref().is_none_or(|bound| value >= bound)
            && self.lt.as_ref().is_none_or(|bound| value < bound)
            && self.lte.as_ref().is_none_or(|bound| value <= bound)
    }
}

/// A number by value, ordered and compared exactly: an integer never passes through a float, so 2^53 + 1 is not 2^53.
///
/// A float that is a whole number is held as that integer, so equal values are equal here however they were spelt. What
/// stays a float is a fraction, an infinity, or larger than any integer that JSON numbers can hold.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Number(Repr);

#[derive(Clone, Copy, PartialEq, Debug)]
enum Repr {
    Whole(i128),
    Float(f64), // never NaN, never a whole number below WHOLE_FLOAT_BELOW
}

/// Floats beyond this lie outside the range of i64 and u64, and everything below it fits an i128 exactly.
const WHOLE_FLOAT_BELOW: f64 = 1.2676506002282294e30; // 2^100

impl Number {
    /// An integer.
    pub fn from_int(integer: i64) -> Self {
        Number(Repr::Whole(integer.into()))
    }

    /// A float; `None` for NaN, which compares with nothing.
    pub fn from_float(float: f64) -> Option<Self> {
        if float.is_nan() {
            None
        } else if float.abs() < WHOLE_FLOAT_BELOW && float.trunc() == float {
            Some(Number(Repr::Whole(float as i128)))
        } else {
            Some(Number(Repr::Float(float)))
        }
    }

    /// A number of a payload.
    pub fn from_json(number: &serde_json::Number) -> Option<Self> {
        if let Some(integer) = number.as_i64() {
            Some(Self::from_int(integer))
        } else if let Some(integer) = number.as_u64() {
            Some(Number(Repr::Whole(integer.into())))
        } else {
            Self::from_float(number.as_f64()?)
        }
    }

    /// The whole number, where it is one and fits.
    pub fn as_int(&self) -> Option<i64> {
        match self.0 {
            Repr::Whole(integer) => integer.try_into().ok(),
            Repr::Float(_) => None,
        }
    }
}

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0, other.0) {
            (Repr::Whole(a), Repr::Whole(b)) => a.cmp(&b),
            (Repr::Float(a), Repr::Float(b)) => a.total_cmp(&b), // neither NaN nor zero, so this is the order by value
            (Repr::Whole(whole), Repr::Float(float)) => compare_whole(whole, float),
            (Repr::Float(float), Repr::Whole(whole)) => compare_whole(whole, float).reverse(),
        }
    }
}

/// Compares with a float that is a fraction or beyond every whole number held.
fn compare_whole(whole: i128, float: f64) -> Ordering {
    if float >= WHOLE_FLOAT_BELOW {
        return Ordering::Less;
    }
    if float <= -WHOLE_FLOAT_BELOW {
        return Ordering::Greater;
    }
    // A fraction is never equal, and floor(float) < float < floor(float) + 1.
    if whole <= float.floor() as i128 { Ordering::Less } else { Ordering::Greater }
}

/// An RFC 3339 datetime (of UTC where it has no offset; at midnight where it is a date) as microseconds since
/// 1970-01-01T00:00:00Z, finer digits cut off; `None` where the text is not one or its year lies outside −9999 to 9999.
pub fn datetime_micros(text: &str) -> Option<i64> {
    // A date starts with its year. Most strings of a payload are no dates, and this spares them the parser.
    if !text.starts_with(|first: char| first.is_ascii_digit() || first == '-' || first == '+') {
        return None;
    }
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Some(instant.as_microsecond());
    }
    // As it is taken elsewhere too (Qdrant): a space may stand before the offset, and a datetime without an offset, or a
    // date, is one of UTC.
    if let Some((before, offset)) = text.rsplit_once(' ')
        && offset.starts_with(['+', '-'])
        && let Ok(instant) = format!("{before}{offset}").parse::<jiff::Timestamp>()
    {
        return Some(instant.as_microsecond());
    }
    let civil = text.parse::<jiff::civil::DateTime>().ok()?;
    civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp().as_microsecond())
}

/// The words of a text, in order, in lower case.
fn words(text: &str) -> Vec<String> {
    let between = |letter: char| !letter.is_alphanumeric();
    text.split(between).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

impl WantedWords {
    fn are_among(self, asked: &[String], words: &[String]) -> bool {
        match self {
            Self::All => !asked.is_empty() && asked.iter().all(|word| words.contains(word)),
            Self::Any => asked.iter().any(|word| words.contains(word)),
            Self::Phrase => !asked.is_empty() && words.windows(asked.len()).any(|run| run == asked),
        }
    }
}

fn any_value(payload: &Payload, path: &str, mut wanted: impl FnMut(&Value) -> bool) -> bool {
    let mut any = false;
    payload::visit(payload, path, &mut |found| any = any || wanted(found));
    any
}

fn any_place(payload: &Payload, path: &str, mut wanted: impl FnMut(Place) -> bool) -> bool {
    any_value(payload, path, |found| Place::from_json(found).is_some_and(&mut wanted))
}

fn any_count(payload: &Payload, path: &str, mut wanted: impl FnMut(Number) -> bool) -> bool {
    let (mut any, mut missing) = (false, true);
    payload::visit_written(payload, path, &mut |found| {
        missing = false;
        let count = match found {
            Value::Array(items) => i64::try_from(items.len()).unwrap_or(i64::MAX),
            Value::Null => 0,
            _ => 1,
        };
        any = any || wanted(Number::from_int(count));
    });
    any || (missing && wanted(Number::from_int(0)))
}

fn collect_paths<'a>(filter: &'a Filter, paths: &mut BTreeSet<&'a str>) {
    match filter {
        Filter::All(filters) | Filter::Any(filters) => filters.iter().for_each(|filter| collect_paths(filter, paths)),
        Filter::Not(filter) => collect_paths(filter, paths),
        Filter::Equals { path, .. } | Filter::In { path, .. } | Filter::Range { path, .. } => {
            paths.insert(path);
        }
        Filter::Exists(path) | Filter::IsNull(path) => {
            paths.insert(path);
        }
        Filter::NotIn { path, .. }
        | Filter::Contains { path, .. }
        | Filter::StartsWith { path, .. }
        | Filter::Words { path, .. }
        | Filter::GeoBox { path, .. }
        | Filter::GeoRadius { path, .. }
        | Filter::GeoPolygon { path, .. }
        | Filter::ValuesCount { path, .. }
        | Filter::Nested { path, .. } => {
            paths.insert(path);
        }
        Filter::AtLeast { filters, .. } => filters.iter().for_each(|filter| collect_paths(filter, paths)),
        Filter::Ids(_) | Filter::HasVector(_) | Filter::Slice { .. } => {}
    }
}

/// What is left of the filter's limits while it is checked.
struct Budget {
    conditions: usize,
    values: usize,
}

impl Budget {
    fn take_condition(&mut self, field: &str) -> Result<(), InvalidInput> {
        let left = self.conditions.checked_sub(1);
        self.conditions = left.ok_or_else(|| {
            InvalidInput::new(field, format!("is one condition more than the {} allowed", Filter::CONDITIONS_MAX))
        })?;
        Ok(())
    }

    fn take_values(&mut self, field: &str, count: usize) -> Result<(), InvalidInput> {
        let left = self.values.checked_sub(count);
        self.values = left.ok_or_else(|| {
            let most = Filter::VALUES_MAX;
            InvalidInput::new(field, format!("brings the filter over the {most} values and ids allowed in all"))
        })?;
        Ok(())
    }
}

fn check_condition(filter: &Filter, field: &str, depth: usize, budget: &mut Budget) -> Result<(), InvalidInput> {
    if depth > Filter::DEPTH_MAX {
        return Err(InvalidInput::new("filter", format!("nests deeper than {} conditions", Filter::DEPTH_MAX)));
    }
    budget.take_condition(field)?;
    match filter {
        Filter::All(filters) => check_list(filters, &format!("{field}.all"), depth, budget),
        Filter::Any(filters) => check_list(filters, &format!("{field}.any"), depth, budget),
        Filter::Not(inner) => check_condition(inner, &format!("{field}.not"), depth + 1, budget),
        Filter::Equals { path, value } => {
            let field = format!("{field}.equals");
            check_path(path, &format!("{field}.path"))?;
            check_scalar(value, || format!("{field}.value"))
        }
        Filter::In { path, values } => {
            let field = format!("{field}.in");
            check_path(path, &format!("{field}.path"))?;
            budget.take_values(&field, values.len())?;
            values
                .iter()
                .enumerate()
                .try_for_each(|(at, value)| check_scalar(value, || format!("{field}.values[{at}]")))
        }
        Filter::Range { path, range } => {
            let field = format!("{field}.range");
            check_path(path, &format!("{field}.path"))?;
            check_range(range, &field)
        }
        Filter::Exists(path) => check_path(path, &format!("{field}.exists")),
        Filter::IsNull(path) => check_path(path, &format!("{field}.is_null")),
        Filter::HasVector(name) if name.len() > CollectionSpec::NAME_BYTES_MAX => {
            let reason =
                format!("has {} bytes, no vector's name has more than {}", name.len(), CollectionSpec::NAME_BYTES_MAX);
            Err(InvalidInput::new(format!("{field}.has_vector"), reason))
        }
        Filter::HasVector(_) => Ok(()),
        Filter::Slice { total, index } if index < total => Ok(()),
        Filter::Slice { total, index } => {
            let reason = format!("is {index}, must be below the total of {total} slices");
            Err(InvalidInput::new(format!("{field}.slice.index"), reason))
        }
        Filter::Ids(ids) => {
            let field = format!("{field}.ids");
            budget.take_values(&field, ids.len())?;
            ids.iter().enumerate().try_for_each(|(at, id)| {
                id.check().map_err(|reason| InvalidInput::new(format!("{field}[{at}]"), reason.to_string()))
            })
        }
        Filter::AtLeast { count, filters } => {
            let field = format!("{field}.at_least");
            if *count == 0 || usize::try_from(*count).unwrap_or(usize::MAX) > filters.len() {
                let reason = format!("is {count}, must be 1 to {}, the number of its filters", filters.len());
                return Err(InvalidInput::new(format!("{field}.count"), reason));
            }
            check_list(filters, &format!("{field}.filters"), depth, budget)
        }
        Filter::NotIn { path, values } => {
            let field = format!("{field}.not_in");
            check_path(path, &format!("{field}.path"))?;
            budget.take_values(&field, values.len())?;
            values
                .iter()
                .enumerate()
                .try_for_each(|(at, value)| check_scalar(value, || format!("{field}.values[{at}]")))
        }
        Filter::Contains { path, text } => {
            let field = format!("{field}.contains");
            check_path(path, &format!("{field}.path"))?;
            let field = format!("{field}.text");
            if text.is_empty() {
                return Err(InvalidInput::new(field, "is empty; give what to look for"));
            }
            check_scalar(&Scalar::Text(text.clone()), move || field.clone())
        }
        Filter::StartsWith { path, text } | Filter::Words { path, text, .. } => {
            let kind = if matches!(filter, Filter::Words { .. }) { "words" } else { "starts_with" };
            let field = format!("{field}.{kind}");
            check_path(path, &format!("{field}.path"))?;
            check_scalar(&Scalar::Text(text.clone()), move || format!("{field}.text"))
        }
        Filter::GeoBox { path, top_left, bottom_right } => {
            let field = format!("{field}.geo_box");
            check_path(path, &format!("{field}.path"))?;
            check_place(top_left, || format!("{field}.top_left"))?;
            check_place(bottom_right, || format!("{field}.bottom_right"))?;
            if top_left.lat < bottom_right.lat {
                return Err(InvalidInput::new(field, "has its top below its bottom"));
            }
            Ok(())
        }
        Filter::GeoRadius { path, center, radius_m } => {
            let field = format!("{field}.geo_radius");
            check_path(path, &format!("{field}.path"))?;
            check_place(center, || format!("{field}.center"))?;
            if !(radius_m.is_finite() && *radius_m >= 0.0) {
                return Err(InvalidInput::new(format!("{field}.radius_m"), "must be 0 or more metres"));
            }
            Ok(())
        }
        Filter::GeoPolygon { path, rings } => {
            let field = format!("{field}.geo_polygon");
            check_path(path, &format!("{field}.path"))?;
            if rings.is_empty() {
                return Err(InvalidInput::new(format!("{field}.rings"), "is empty; give the outline"));
            }
            for (at, ring) in rings.iter().enumerate() {
                let field = format!("{field}.rings[{at}]");
                budget.take_values(&field, ring.len())?;
                if ring.len() < 3 {
                    return Err(InvalidInput::new(field, format!("has {} places, give at least 3", ring.len())));
                }
                ring.iter().enumerate().try_for_each(|(at, place)| check_place(place, || format!("{field}[{at}]")))?;
            }
            Ok(())
        }
        Filter::ValuesCount { path, range } => {
            let field = format!("{field}.values_count");
            check_path(path, &format!("{field}.path"))?;
            check_range(range, &field)?;
            match range.bounds() {
                Some(Bounds::Numbers(_)) => Ok(()),
                _ => Err(InvalidInput::new(field, "counts are numbers; give numbers as bounds")),
            }
        }
        Filter::Nested { path, filter } => {
            let field = format!("{field}.nested");
            check_path(path, &format!("{field}.path"))?;
            check_condition(filter, &format!("{field}.filter"), depth + 1, budget)
        }
    }
}

fn check_place(place: &Place, field: impl Fn() -> String) -> Result<(), InvalidInput> {
    match place.is_valid() {
        true => Ok(()),
        false => Err(InvalidInput::new(field(), "is no place on Earth: lon is -180 to 180, lat -90 to 90, in degrees")),
    }
}

fn check_list(filters: &[Filter], field: &str, depth: usize, budget: &mut Budget) -> Result<(), InvalidInput> {
    filters
        .iter()
        .enumerate()
        .try_for_each(|(at, filter)| check_condition(filter, &format!("{field}[{at}]"), depth + 1, budget))
}

/// Checks one payload path, of a filter or of an index.
pub(crate) fn check_path(path: &str, field: &str) -> Result<(), InvalidInput> {
    if path.is_empty() {
        return Err(InvalidInput::new(field, "is empty; name a payload field"));
    }
    if path.len() > Filter::PATH_BYTES_MAX {
        let (got, most) = (path.len(), Filter::PATH_BYTES_MAX);
        return Err(InvalidInput::new(field, format!("has {got} bytes, at most {most} are allowed")));
    }
    Ok(())
}

fn check_scalar(value: &Scalar, field: impl Fn() -> String) -> Result<(), InvalidInput> {
    match value {
        Scalar::Float(float) if float.is_nan() => {
            Err(InvalidInput::new(field(), "is NaN, which equals nothing; give a number"))
        }
        Scalar::Text(text) if text.len() > Filter::TEXT_BYTES_MAX => {
            let (got, most) = (text.len(), Filter::TEXT_BYTES_MAX);
            Err(InvalidInput::new(field(), format!("has {got} bytes, at most {most} are allowed")))
        }
        _ => Ok(()),
    }
}

fn check_range(range: &Range, field: &str) -> Result<(), InvalidInput> {
    let bounds = [("gt", &range.gt), ("gte", &range.gte), ("lt", &range.lt), ("lte", &range.lte)];
    let (mut numbers, mut texts) = (0, 0);
    for (name, bound) in bounds {
        match bound {
            None => {}
            Some(Scalar::Bool(_)) => {
                return Err(InvalidInput::new(
                    format!("{field}.{name}"),
                    "is a boolean; give a number or an RFC 3339 datetime",
                ));
            }
            Some(Scalar::Text(text)) => {
                texts += 1;
                if datetime_micros(text).is_none() {
                    return Err(InvalidInput::new(
                        format!("{field}.{name}"),
                        "is not an RFC 3339 datetime such as 2024-05-01T12:00:00Z",
                    ));
                }
            }
            Some(scalar) => {
                numbers += 1;
                check_scalar(scalar, || format!("{field}.{name}"))?;
            }
        }
    }
    match (numbers, texts) {
        (0, 0) => Err(InvalidInput::new(field, "has no bound; give at least one of gt, gte, lt, lte")),
        (0, _) | (_, 0) => Ok(()),
        _ => Err(InvalidInput::new(field, "mixes numbers and datetimes; give bounds of one kind")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;

    fn matches(filter: Value, payload: Value) -> bool {
        let filter: Filter = serde_json::from_value(filter).unwrap();
        filter.check().unwrap();
        filter.matches(&PointId::Number(7), payload.as_object().unwrap(), &|name| name == "words")
    }

    #[test]
    fn a_vector_is_there_or_not_whatever_the_payload() {
        assert!(matches(json!({"has_vector": "words"}), json!({})));
        assert!(!matches(json!({"has_vector": ""}), json!({"": 1, "words": 1})));
        assert!(matches(json!({"all": [{"not": {"has_vector": "title"}}, {"exists": "a"}]}), json!({"a": 1})));
        let long = Filter::HasVector("x".repeat(129));
        assert_eq!(long.check().unwrap_err().field, "filter.has_vector");
    }

    #[test]
    fn groups() {
        assert!(matches(json!({"all": []}), json!({})));
        assert!(!matches(json!({"any": []}), json!({})));
        assert!(matches(json!({"not": {"equals": {"path": "a", "value": 1}}}), json!({})));
        assert!(matches(
            json!({"any": [{"exists": "b"}, {"all": [{"exists": "a"}, {"is_null": "c"}]}]}),
            json!({"a": 1, "c": null})
        ));
    }

    #[test]
    fn equality_is_by_kind_and_numbers_by_value() {
        let payload = json!({"n": 3, "f": 3.0, "s": "3", "b": true, "tags": ["x", "y"], "items": [{"k": 1}, {"k": 2}]});
        for (path, value, wanted) in [
            ("n", json!(3.0), true),
            ("f", json!(3), true),
            ("s", json!(3), false),
            ("s", json!("3"), true),
            ("b", json!(1), false),
            ("b", json!(true), true),
            ("tags", json!("y"), true),
            ("tags", json!("z"), false),
            ("items.k", json!(2), true),
            ("missing", json!(2), false),
        ] {
            assert_eq!(matches(json!({"equals": {"path": path, "value": value}}), payload.clone()), wanted, "{path}");
        }
        assert!(matches(json!({"in": {"path": "n", "values": ["q", 3]}}), payload.clone()));
        assert!(!matches(json!({"in": {"path": "n", "values": []}}), payload));
    }

    #[test]
    fn large_integers_are_not_rounded() {
        let exact = json!({"n": 9_007_199_254_740_993_i64, "u": u64::MAX});
        assert!(!matches(json!({"equals": {"path": "n", "value": 9_007_199_254_740_992.0}}), exact.clone()));
        assert!(matches(json!({"range": {"path": "n", "gt": 9_007_199_254_740_992.0}}), exact.clone()));
        assert!(!matches(json!({"range": {"path": "u", "gte": 18_446_744_073_709_551_616.0}}), exact));
    }

    #[test]
    fn number_orders_by_value() {
        let float = |value| Number::from_float(value).unwrap();
        let ascending = [
            float(f64::NEG_INFINITY),
            float(-1e300),
            Number::from_int(i64::MIN),
            float(-1.5),
            Number::from_int(-1),
            float(-0.5),
            float(-0.0),
            float(0.5),
            Number::from_int(1),
            Number::from_int(i64::MAX),
            float(1e300),
            float(f64::INFINITY),
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(a.cmp(b), i.cmp(&j), "{a:?} {b:?}");
            }
        }
        assert_eq!(float(-0.0), Number::from_int(0));
        assert!(float(i64::MAX as f64) > Number::from_int(i64::MAX), "2^63 is above the largest i64");
        assert_eq!(Number::from_float(f64::NAN), None);
    }

    #[test]
    fn ranges_over_datetimes_compare_instants() {
        let payload = json!({"at": "2024-05-01T12:00:00+02:00", "name": "zebra"});
        assert!(matches(json!({"range": {"path": "at", "lte": "2024-05-01T10:00:00Z"}}), payload.clone()));
        assert!(!matches(json!({"range": {"path": "at", "lt": "2024-05-01T10:00:00Z"}}), payload.clone()));
        assert!(!matches(json!({"range": {"path": "name", "gt": "2024-05-01T10:00:00Z"}}), payload.clone()));
        assert!(!matches(json!({"range": {"path": "at", "gt": 0}}), payload));
        assert_eq!(datetime_micros("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(datetime_micros("2024-05-01"), datetime_micros("2024-05-01T00:00:00Z"));
        assert_eq!(datetime_micros("2024-05-01T10:00:00"), datetime_micros("2024-05-01T10:00:00Z"));
        assert_eq!(datetime_micros("2024-05"), None);
    }

    #[test]
    fn null_and_existence() {
        assert!(!matches(json!({"exists": "a"}), json!({"a": null})));
        assert!(!matches(json!({"exists": "a"}), json!({"a": []})));
        assert!(matches(json!({"exists": "a"}), json!({"a": [null, 1]})));
        assert!(matches(json!({"exists": "a"}), json!({"a": {}})));
        assert!(!matches(json!({"is_null": "a"}), json!({})));
    }

    #[test]
    fn ids_compare_with_the_id() {
        assert!(matches(json!({"ids": [1, 7]}), json!({})));
        assert!(!matches(json!({"ids": ["7"]}), json!({})));
    }

    #[test]
    fn malformed_filters_are_refused_by_name() {
        let path = || "a".to_owned();
        let refused = |filter: Filter| filter.check().unwrap_err();
        assert_eq!(refused(Filter::All(vec![Filter::Exists(String::new())])).field, "filter.all[0].exists");
        let nan = Filter::Equals { path: path(), value: Scalar::Float(f64::NAN) };
        assert_eq!(refused(nan).field, "filter.equals.value");
        let range = |range| refused(Filter::Range { path: path(), range });
        assert_eq!(range(Range::default()).field, "filter.range");
        let (number, date) = (Some(Scalar::Int(1)), Some(Scalar::Text("2024-05-01T10:00:00Z".into())));
        assert_eq!(range(Range { gt: number, lt: date, ..Range::default() }).field, "filter.range");
        let word = Some(Scalar::Text("soon".into()));
        assert_eq!(range(Range { gt: word, ..Range::default() }).field, "filter.range.gt");
        assert_eq!(range(Range { lt: Some(Scalar::Bool(true)), ..Range::default() }).field, "filter.range.lt");
        assert_eq!(range(Range { lte: Some(Scalar::Float(f64::NAN)), ..Range::default() }).field, "filter.range.lte");
        let ids = Filter::Ids(vec![PointId::Number(1), PointId::Text(String::new())]);
        assert_eq!(refused(ids).field, "filter.ids[1]");
        let values = Filter::In { path: path(), values: vec![Scalar::Int(1); Filter::VALUES_MAX + 1] };
        assert_eq!(refused(values).field, "filter.in");
        let many = Filter::Any(vec![Filter::Exists(path()); Filter::CONDITIONS_MAX]);
        assert!(refused(many).reason.contains("1024"));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| (1..depth).fold(Filter::Ids(vec![]), |inner, _| Filter::Not(Box::new(inner)));
        assert_eq!(nested(Filter::DEPTH_MAX).check(), Ok(()));
        assert!(nested(Filter::DEPTH_MAX + 1).check().is_err());
    }

    #[test]
    fn unknown_json_fields_are_refused() {
        for text in
            [r#"{"equals":{"path":"a","value":1,"x":2}}"#, r#"{"range":{"path":"a","above":2}}"#, r#"{"near":1}"#]
        {
            assert!(serde_json::from_str::<Filter>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_are_all_of_them_once() {
        let filter =
            json!({"all": [{"exists": "b"}, {"not": {"equals": {"path": "a", "value": 1}}}, {"is_null": "b"}]});
        let filter: Filter = serde_json::from_value(filter).unwrap();
        assert_eq!(filter.paths().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
