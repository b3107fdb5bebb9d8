//! Filters.
use prost::Message;

use super::{DecodeError, required};
use crate::filter::{Filter, Place, Range, Scalar, WantedWords};
use crate::ids::PointId;
use crate::wire;
use crate::wire::filter::Kind;

/// The bytes of a filter in a log entry or a file: its wire message. Unlike JSON they keep every float bit for bit and
/// every string id a string.
pub fn encode_filter(filter: &Filter) -> Vec<u8> {
    wire::Filter::from(filter.clone()).encode_to_vec()
}

/// Reads what [`encode_filter`] wrote.
///
/// # Errors
/// [`DecodeError`] on the field `filter` where the bytes are not a filter or [`Filter::check`] refuses it.
pub fn decode_filter(bytes: &[u8]) -> Result<Filter, DecodeError> {
    wire::Filter::decode(bytes).map_err(|error| DecodeError::new("filter", error))?.try_into()
}

/// Reads and [checks](Filter::check) the filter. Errors name fields from `filter` on, which is what every request calls
/// it.
impl TryFrom<wire::Filter> for Filter {
    type Error = DecodeError;

    fn try_from(message: wire::Filter) -> Result<Self, DecodeError> {
        let filter = read(message, "filter", 1)?;
        filter.check()?;
        Ok(filter)
    }
}

fn read(message: wire::Filter, field: &str, depth: usize) -> Result<Filter, DecodeError> {
    // Judged while reading as well as in `check`: reading is what recurses first.
    if depth > Filter::DEPTH_MAX {
        return Err(DecodeError::new("filter", format!("nests deeper than {} conditions", Filter::DEPTH_MAX)));
    }
    let list = |list: wire::filter::List, name: &str| {
        let read_one = |(at, message)| read(message, &format!("{field}.{name}[{at}]"), depth + 1);
        list.filters.into_iter().enumerate().map(read_one).collect::<Result<Vec<_>, _>>()
    };
    Ok(match required(message.kind, field)? {
        Kind::All(filters) => Filter::All(list(filters, "all")?),
        Kind::Any(filters) => Filter::Any(list(filters, "any")?),
        Kind::Negated(inner) => Filter::Not(Box::new(read(*inner, &format!("{field}.not"), depth + 1)?)),
        Kind::Equals(equals) => {
            let field = format!("{field}.equals.value");
            Filter::Equals { path: equals.path, value: scalar(required(equals.value, &field)?, &field)? }
        }
        Kind::In(within) => {
            let read_one = |(at, value)| scalar(value, &format!("{field}.in.values[{at}]"));
            let values = within.values.into_iter().enumerate().map(read_one).collect::<Result<_, _>>()?;
            Filter::In { path: within.path, values }
        }
        Kind::Range(range) => {
            let field = format!("{field}.range");
            let bounds = required(range.range, &field)?;
            Filter::Range { path: range.path, range: read_range(bounds, &field)? }
        }
        Kind::Exists(path) => Filter::Exists(path),
        Kind::IsNull(path) => Filter::IsNull(path),
        Kind::HasVector(name) => Filter::HasVector(name),
        Kind::Slice(wire::filter::Slice { total, index }) => Filter::Slice { total, index },
        Kind::Ids(ids) => {
            let read_one = |(at, id)| {
                PointId::try_from(id).map_err(|error: DecodeError| error.within(format_args!("{field}.ids[{at}]")))
            };
            Filter::Ids(ids.ids.into_iter().enumerate().map(read_one).collect::<Result<_, _>>()?)
        }
        Kind::AtLeast(wire::filter::AtLeast { count, filters }) => {
            Filter::AtLeast { count, filters: list(wire::filter::List { filters }, "at_least.filters")? }
        }
        Kind::NotIn(without) => {
            let read_one = |(at, value)| scalar(value, &format!("{field}.not_in.values[{at}]"));
            let values = without.values.into_iter().enumerate().map(read_one).collect::<Result<_, _>>()?;
            Filter::NotIn { path: without.path, values }
        }
        Kind::Contains(wire::filter::Contains { path, text }) => Filter::Contains { path, text },
        Kind::StartsWith(wire::filter::StartsWith { path, text }) => Filter::StartsWith { path, text },
        Kind::Words(words) => {
            let wanted = match words.wanted() {
                wire::filter::WantedWords::All => WantedWords::All,
                wire::filter::WantedWords::Any => WantedWords::Any,
                wire::filter::WantedWords::Phrase => WantedWords::Phrase,
                wire::filter::WantedWords::Unspecified => {
                    return Err(DecodeError::new(
                        format!("{field}.words.wanted"),
                        "is missing; give all, any or phrase",
                    ));
                }
            };
            Filter::Words { path: words.path, text: words.text, wanted }
        }
        Kind::GeoBox(geo) => Filter::GeoBox {
            path: geo.path,
            top_left: place(required(geo.top_left, &format!("{field}.geo_box.top_left"))?),
            bottom_right: place(required(geo.bottom_right, &format!("{field}.geo_box.bottom_right"))?),
        },
        Kind::GeoRadius(geo) => Filter::GeoRadius {
            path: geo.path,
            center: place(required(geo.center, &format!("{field}.geo_radius.center"))?),
            radius_m: geo.radius_m,
        },
        Kind::GeoPolygon(geo) => Filter::GeoPolygon {
            path: geo.path,
            rings: geo.rings.into_iter().map(|ring| ring.places.into_iter().map(place).collect()).collect(),
        },
        Kind::ValuesCount(counted) => {
            let field = format!("{field}.values_count");
            let bounds = required(counted.range, &field)?;
            Filter::ValuesCount { path: counted.path, range: read_range(bounds, &field)? }
        }
        Kind::Nested(nested) => {
            let field = format!("{field}.nested.filter");
            let inner = read(*required(nested.filter, &field)?, &field, depth + 1)?;
            Filter::Nested { path: nested.path, filter: Box::new(inner) }
        }
    })
}

fn place(message: wire::filter::Place) -> Place {
    Place { lon: message.lon, lat: message.lat }
}

fn scalar(message: wire::Scalar, field: &str) -> Result<Scalar, DecodeError> {
    Scalar::try_from(message).map_err(|error| DecodeError { field: field.to_owned(), ..error })
}

fn read_range(message: wire::Range, field: &str) -> Result<Range, DecodeError> {
    let bound = |bound: Option<wire::Scalar>, name: &str| {
        bound.map(|bound| scalar(bound, &format!("{field}.{name}"))).transpose()
    };
    Ok(Range {
        gt: bound(message.gt, "gt")?,
        gte: bound(message.gte, "gte")?,
        lt: bound(message.lt, "lt")?,
        lte: bound(message.lte, "lte")?,
    })
}

impl From<Filter> for wire::Filter {
    fn from(filter: Filter) -> Self {
        let list = |filters: Vec<Filter>| wire::filter::List { filters: filters.into_iter().map(Self::from).collect() };
        let kind = match filter {
            Filter::All(filters) => Kind::All(list(filters)),
            Filter::Any(filters) => Kind::Any(list(filters)),
            Filter::Not(inner) => Kind::Negated(Box::new((*inner).into())),
            Filter::Equals { path, value } => Kind::Equals(wire::filter::Equals { path, value: Some(value.into()) }),
            Filter::In { path, values } => {
                Kind::In(wire::filter::In { path, values: values.into_iter().map(Into::into).collect() })
            }
            Filter::Range { path, range } => Kind::Range(wire::filter::InRange { path, range: Some(range.into()) }),
            Filter::Exists(path) => Kind::Exists(path),
            Filter::IsNull(path) => Kind::IsNull(path),
            Filter::HasVector(name) => Kind::HasVector(name),
            Filter::Slice { total, index } => Kind::Slice(wire::filter::Slice { total, index }),
            Filter::Ids(ids) => Kind::Ids(wire::filter::Ids { ids: ids.into_iter().map(Into::into).collect() }),
            Filter::AtLeast { count, filters } => {
                Kind::AtLeast(wire::filter::AtLeast { count, filters: list(filters).filters })
            }
            Filter::NotIn { path, values } => {
                Kind::NotIn(wire::filter::In { path, values: values.into_iter().map(Into::into).collect() })
            }
            Filter::Contains { path, text } => Kind::Contains(wire::filter::Contains { path, text }),
            Filter::StartsWith { path, text } => Kind::StartsWith(wire::filter::StartsWith { path, text }),
            Filter::Words { path, text, wanted } => {
                let wanted = match wanted {
                    WantedWords::All => wire::filter::WantedWords::All,
                    WantedWords::Any => wire::filter::WantedWords::Any,
                    WantedWords::Phrase => wire::filter::WantedWords::Phrase,
                };
                Kind::Words(wire::filter::Words { path, text, wanted: wanted.into() })
            }
            Filter::GeoBox { path, top_left, bottom_right } => Kind::GeoBox(wire::filter::GeoBox {
                path,
                top_left: Some(put_place(top_left)),
                bottom_right: Some(put_place(bottom_right)),
            }),
            Filter::GeoRadius { path, center, radius_m } => {
                Kind::GeoRadius(wire::filter::GeoRadius { path, center: Some(put_place(center)), radius_m })
            }
            Filter::GeoPolygon { path, rings } => {
                let ring = |ring: Vec<Place>| wire::filter::Ring { places: ring.into_iter().map(put_place).collect() };
                Kind::GeoPolygon(wire::filter::GeoPolygon { path, rings: rings.into_iter().map(ring).collect() })
            }
            Filter::ValuesCount { path, range } => {
                Kind::ValuesCount(wire::filter::InRange { path, range: Some(range.into()) })
            }
            Filter::Nested { path, filter } => {
                Kind::Nested(Box::new(wire::filter::Nested { path, filter: Some(Box::new((*filter).into())) }))
            }
        };
        Self { kind: Some(kind) }
    }
}

fn put_place(place: Place) -> wire::filter::Place {
    wire::filter::Place { lon: place.lon, lat: place.lat }
}

impl TryFrom<wire::Scalar> for Scalar {
    type Error = DecodeError;

    fn try_from(message: wire::Scalar) -> Result<Self, DecodeError> {
        Ok(match required(message.value, "value")? {
            wire::scalar::Value::Text(text) => Scalar::Text(text),
            wire::scalar::Value::Integer(integer) => Scalar::Int(integer),
            wire::scalar::Value::Number(number) => Scalar::Float(number),
            wire::scalar::Value::Boolean(boolean) => Scalar::Bool(boolean),
        })
    }
}

impl From<Scalar> for wire::Scalar {
    fn from(scalar: Scalar) -> Self {
        let value = match scalar {
            Scalar::Text(text) => wire::scalar::Value::Text(text),
            Scalar::Int(integer) => wire::scalar::Value::Integer(integer),
            Scalar::Float(number) => wire::scalar::Value::Number(number),
            Scalar::Bool(boolean) => wire::scalar::Value::Boolean(boolean),
        };
        Self { value: Some(value) }
    }
}

impl TryFrom<wire::Range> for Range {
    type Error = DecodeError;

    fn try_from(message: wire::Range) -> Result<Self, DecodeError> {
        read_range(message, "range")
    }
}

impl From<Range> for wire::Range {
    fn from(range: Range) -> Self {
        Self {
            gt: range.gt.map(Into::into),
            gte: range.gte.map(Into::into),
            lt: range.lt.map(Into::into),
            lte: range.lte.map(Into::into),
        }
    }
}
