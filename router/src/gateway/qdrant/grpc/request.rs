//! Requests in protobuf as the bodies that the same requests are over REST.
//!
//! What is left out stays left out, so that both doors have the same defaults. What is there and cannot be said in JSON (a number
//! that is none, an empty choice, a choice that a newer client knows) must not look as if it were left out: it becomes what
//! whoever reads the body refuses by its place. A condition that vanished would let a deletion have every point.
use std::collections::BTreeMap;

use nearring_proto::qdrant as pb;
use serde_json::{Map, Value, json};

use super::super::points::{How, Mode, PointStruct, PointVectors, Upsert};
use super::super::values::{Id, Sparse, Vector, Vectors};
use super::plain;
use crate::failure::Error;

mod formula;

/// An object of what is there.
fn object<const N: usize>(parts: [(&str, Option<Value>); N]) -> Value {
    let there = parts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(there.collect())
}

fn list<T>(items: Vec<T>, one: impl Fn(T) -> Value) -> Value {
    items.into_iter().map(one).collect()
}

/// A list, where it has anything.
fn some_list<T>(items: Vec<T>, one: impl Fn(T) -> Value) -> Option<Value> {
    (!items.is_empty()).then(|| list(items, one))
}

/// A number as a bound or a weight. An infinite one is the largest there is, since stored numbers are finite; one that is none is
/// a text, which no reader of numbers takes.
fn number(value: f64) -> Value {
    if value.is_nan() { json!("NaN") } else { json!(value.clamp(f64::MIN, f64::MAX)) }
}

fn single(value: f32) -> Value {
    number(value.clamp(f32::MIN, f32::MAX).into())
}

/// The name of an enum's value as JSON has it, lower case. One that is not known stays a number, which no reader of names takes.
fn word<E: TryFrom<i32>>(value: i32, name: impl Fn(&E) -> &'static str) -> Value {
    E::try_from(value).map_or(json!(value), |known| json!(name(&known).to_lowercase()))
}

/// A value of a payload. `Err`: a number in it that JSON does not have.
fn value(value: pb::Value) -> Result<Value, f64> {
    use pb::value::Kind;
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::DoubleValue(value)) if !value.is_finite() => return Err(value),
        Some(Kind::DoubleValue(value)) => json!(value),
        Some(Kind::IntegerValue(value)) => json!(value),
        Some(Kind::StringValue(value)) => Value::String(value),
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        Some(Kind::StructValue(of)) => Value::Object(
            of.fields.into_iter().map(|(key, of)| Ok((key, self::value(of)?))).collect::<Result<_, f64>>()?,
        ),
        Some(Kind::ListValue(of)) => Value::Array(of.values.into_iter().map(self::value).collect::<Result<_, f64>>()?),
    })
}

/// A payload, which stands in this field.
///
/// # Errors
/// Where it has a number that JSON does not have.
pub(super) fn payload(fields: BTreeMap<String, pb::Value>, field: &str) -> Result<Map<String, Value>, Error> {
    let read = |(key, of): (String, pb::Value)| match value(of) {
        Ok(value) => Ok((key, value)),
        Err(number) => Err(Error::invalid(format!("{field}.{key}"), format!("has {number}, which JSON cannot say"))),
    };
    fields.into_iter().map(read).collect()
}

fn metadata(fields: BTreeMap<String, pb::Value>) -> Result<Option<Value>, Error> {
    Ok(if fields.is_empty() { None } else { Some(Value::Object(payload(fields, "metadata")?)) })
}

/// An id; null where it is left out.
pub(super) fn id(id: pb::PointId) -> Value {
    match id.point_id_options {
        Some(pb::point_id::PointIdOptions::Num(number)) => json!(number),
        Some(pb::point_id::PointIdOptions::Uuid(text)) => json!(text),
        None => Value::Null,
    }
}

fn typed_id(id: Option<pb::PointId>) -> Option<Id> {
    match id?.point_id_options? {
        pb::point_id::PointIdOptions::Num(number) => Some(Id::Number(number)),
        pb::point_id::PointIdOptions::Uuid(text) => Some(Id::Text(text)),
    }
}

fn vector(vector: pb::Vector) -> Vector {
    use pb::vector::Vector as Kind;
    #[allow(deprecated, reason = "older clients send them")]
    let pb::Vector { data, indices, vectors_count, vector } = vector;
    match vector {
        Some(Kind::Dense(dense)) => Vector::Dense(dense.data),
        Some(Kind::Sparse(sparse)) => Vector::Sparse(Sparse { indices: sparse.indices, values: sparse.values }),
        Some(Kind::MultiDense(rows)) => Vector::Multi(rows.vectors.into_iter().map(|row| row.data).collect()),
        Some(Kind::Document(_) | Kind::Image(_) | Kind::Object(_)) => Vector::Other(serde::de::IgnoredAny),
        None => match (indices, vectors_count.filter(|count| *count > 0)) {
            (Some(indices), _) => Vector::Sparse(Sparse { indices: indices.data, values: data }),
            (None, Some(count)) => {
                let width = (data.len() / count as usize).max(1);
                Vector::Multi(data.chunks(width).map(<[f32]>::to_vec).collect())
            }
            (None, None) => Vector::Dense(data),
        },
    }
}

fn vectors(vectors: Option<pb::Vectors>) -> Vectors {
    match vectors.and_then(|vectors| vectors.vectors_options) {
        // A point may have no vector at all.
        None => Vectors::Named(BTreeMap::new()),
        Some(pb::vectors::VectorsOptions::Vector(one)) => {
            Vectors::Named(BTreeMap::from([(String::new(), vector(one))]))
        }
        Some(pb::vectors::VectorsOptions::Vectors(named)) => {
            Vectors::Named(named.vectors.into_iter().map(|(name, one)| (name, vector(one))).collect())
        }
    }
}

/// Points to be written. They are not sent through JSON, since they are what is large.
///
/// # Errors
/// Where one has no id, or no payload that JSON can say.
pub(super) fn upsert(points: Vec<pb::PointStruct>, how: How) -> Result<Upsert, Error> {
    let read = |(at, point): (usize, pb::PointStruct)| {
        let id = typed_id(point.id).ok_or_else(|| no_id(at))?;
        let payload = match point.payload {
            fields if fields.is_empty() => None,
            fields => Some(payload(fields, &format!("points[{at}].payload"))?),
        };
        Ok(PointStruct { id, vector: vectors(point.vectors), payload })
    };
    let points = points.into_iter().enumerate().map(read).collect::<Result<_, Error>>()?;
    Ok(Upsert::List { points, how })
}

fn no_id(at: usize) -> Error {
    Error::invalid(format!("points[{at}].id"), "is missing")
}

/// Whether points that exist are replaced, and others made.
///
/// # Errors
/// Where it is something else.
pub(super) fn mode(mode: Option<i32>) -> Result<Option<Mode>, Error> {
    let Some(mode) = mode else { return Ok(None) };
    match pb::UpdateMode::try_from(mode) {
        Ok(pb::UpdateMode::Upsert) => Ok(Some(Mode::Upsert)),
        Ok(pb::UpdateMode::InsertOnly) => Ok(Some(Mode::InsertOnly)),
        Ok(pb::UpdateMode::UpdateOnly) => Ok(Some(Mode::UpdateOnly)),
        Err(_) => Err(Error::invalid("update_mode", format!("is {mode}, which is not known here"))),
    }
}

/// Vectors to be written.
///
/// # Errors
/// Where a point has no id.
pub(super) fn point_vectors(points: Vec<pb::PointVectors>) -> Result<Vec<PointVectors>, Error> {
    let read = |(at, point): (usize, pb::PointVectors)| {
        let id = typed_id(point.id).ok_or_else(|| no_id(at))?;
        Ok(PointVectors { id, vector: vectors(point.vectors) })
    };
    points.into_iter().enumerate().map(read).collect()
}

/// Which shards are meant; they are refused where they are read.
pub(super) fn shard_key(selector: Option<pb::ShardKeySelector>) -> Option<Value> {
    let keys = selector?.shard_keys;
    (!keys.is_empty()).then(|| json!(keys.len()))
}

fn vector_json(given: pb::Vector) -> Value {
    match vector(given) {
        Vector::Dense(values) => json!(values),
        Vector::Sparse(Sparse { indices, values }) => json!({"indices": indices, "values": values}),
        Vector::Multi(rows) => json!(rows),
        Vector::Other(_) => json!({"text": ""}),
    }
}

fn example(input: Option<pb::VectorInput>) -> Value {
    use pb::vector_input::Variant;
    match input.and_then(|input| input.variant) {
        None => Value::Null,
        Some(Variant::Id(point)) => id(point),
        Some(Variant::Dense(dense)) => json!(dense.data),
        Some(Variant::Sparse(sparse)) => json!({"indices": sparse.indices, "values": sparse.values}),
        Some(Variant::MultiDense(rows)) => list(rows.vectors, |row| json!(row.data)),
        Some(Variant::Document(_) | Variant::Image(_) | Variant::Object(_)) => json!({"text": ""}),
    }
}

/// A filter.
pub(super) fn filter(filter: pb::Filter) -> Value {
    object([
        ("must", some_list(filter.must, condition)),
        ("should", some_list(filter.should, condition)),
        ("must_not", some_list(filter.must_not, condition)),
        (
            "min_should",
            filter
                .min_should
                .map(|least| json!({"conditions": list(least.conditions, condition), "min_count": least.min_count})),
        ),
    ])
}

fn condition(condition: pb::Condition) -> Value {
    use pb::condition::ConditionOneOf;
    match condition.condition_one_of {
        None => Value::Null,
        Some(ConditionOneOf::Field(of)) => field(of),
        Some(ConditionOneOf::IsEmpty(of)) => json!({"is_empty": {"key": of.key}}),
        Some(ConditionOneOf::IsNull(of)) => json!({"is_null": {"key": of.key}}),
        Some(ConditionOneOf::HasId(of)) => json!({"has_id": list(of.has_id, id)}),
        Some(ConditionOneOf::HasVector(of)) => json!({"has_vector": of.has_vector}),
        Some(ConditionOneOf::Nested(of)) => {
            json!({"nested": {"key": of.key, "filter": of.filter.map_or(Value::Null, filter)}})
        }
        Some(ConditionOneOf::Filter(of)) => filter(of),
        Some(ConditionOneOf::Slice(of)) => json!({"slice": {"total": of.total, "index": of.index}}),
    }
}

fn field(of: pb::FieldCondition) -> Value {
    let bounds = |gt: Option<Value>, gte: Option<Value>, lt: Option<Value>, lte: Option<Value>| {
        object([("gt", gt), ("gte", gte), ("lt", lt), ("lte", lte)])
    };
    let number = |value: Option<f64>| value.map(number);
    let count = |value: Option<u64>| value.map(|value| json!(value));
    let range = of.range.map(|range| bounds(number(range.gt), number(range.gte), number(range.lt), number(range.lte)));
    let datetimes = of.datetime_range.map(|range| {
        bounds(range.gt.map(instant), range.gte.map(instant), range.lt.map(instant), range.lte.map(instant))
    });
    object([
        ("key", Some(json!(of.key))),
        ("match", of.r#match.map(matching)),
        ("range", range.or(datetimes)),
        (
            "geo_bounding_box",
            of.geo_bounding_box
                .map(|corners| json!({"top_left": place(corners.top_left), "bottom_right": place(corners.bottom_right)})),
        ),
        (
            "geo_radius",
            of.geo_radius.map(|circle| json!({"center": place(circle.center), "radius": circle.radius})),
        ),
        (
            "geo_polygon",
            of.geo_polygon.map(|polygon| {
                json!({"exterior": ring(polygon.exterior.unwrap_or_default()), "interiors": list(polygon.interiors, ring)})
            }),
        ),
        (
            "values_count",
            of.values_count.map(|range| bounds(count(range.gt), count(range.gte), count(range.lt), count(range.lte))),
        ),
        ("is_empty", of.is_empty.map(Value::Bool)),
        ("is_null", of.is_null.map(Value::Bool)),
    ])
}

fn matching(of: pb::Match) -> Value {
    use pb::r#match::MatchValue;
    match of.match_value {
        None => json!({}),
        Some(MatchValue::Keyword(text)) => json!({"value": text}),
        Some(MatchValue::Integer(number)) => json!({"value": number}),
        Some(MatchValue::Boolean(flag)) => json!({"value": flag}),
        Some(MatchValue::Text(text)) => json!({"text": text}),
        Some(MatchValue::Phrase(text)) => json!({"phrase": text}),
        Some(MatchValue::TextAny(text)) => json!({"text_any": text}),
        Some(MatchValue::Keywords(texts)) => json!({"any": texts.strings}),
        Some(MatchValue::Integers(numbers)) => json!({"any": numbers.integers}),
        Some(MatchValue::ExceptKeywords(texts)) => json!({"except": texts.strings}),
        Some(MatchValue::ExceptIntegers(numbers)) => json!({"except": numbers.integers}),
        // These two are not supported, which is said where they are read.
        Some(MatchValue::Prefix(text)) => json!({"prefix": text}),
        Some(MatchValue::Substring(text)) => json!({"substring": text}),
    }
}

fn place(point: Option<pb::GeoPoint>) -> Value {
    point.map_or(Value::Null, |point| json!({"lon": point.lon, "lat": point.lat}))
}

fn ring(line: pb::GeoLineString) -> Value {
    json!({"points": list(line.points, |point| place(Some(point)))})
}

/// A time as text; one that no calendar has as a text that is no time.
fn instant(time: prost_types::Timestamp) -> Value {
    match jiff::Timestamp::new(time.seconds, time.nanos) {
        Ok(time) => json!(time.to_string()),
        Err(_) => json!(format!("{} seconds and {} nanoseconds after 1970", time.seconds, time.nanos)),
    }
}

/// Points by id or by filter; null without either.
pub(super) fn selector(selector: Option<pb::PointsSelector>, shard: Option<pb::ShardKeySelector>) -> Value {
    let Value::Object(mut chosen) = chosen(selector) else { return Value::Null };
    chosen.extend(shard_key(shard).map(|key| ("shard_key".to_owned(), key)));
    Value::Object(chosen)
}

fn chosen(selector: Option<pb::PointsSelector>) -> Value {
    use pb::points_selector::PointsSelectorOneOf;
    match selector.and_then(|selector| selector.points_selector_one_of) {
        None => json!({}),
        Some(PointsSelectorOneOf::Points(points)) => json!({"points": list(points.ids, id)}),
        Some(PointsSelectorOneOf::Filter(of)) => json!({"filter": filter(of)}),
    }
}

/// A selector with more beside it.
pub(super) fn selector_and<const N: usize>(
    points: Option<pb::PointsSelector>,
    shard: Option<pb::ShardKeySelector>,
    parts: [(&str, Option<Value>); N],
) -> Value {
    let mut body = selector(points, shard);
    if let (Value::Object(body), Value::Object(parts)) = (&mut body, object(parts)) {
        body.extend(parts);
    }
    body
}

/// Which part of the payload is wanted.
pub(super) fn with_payload(selector: Option<pb::WithPayloadSelector>) -> Option<Value> {
    use pb::with_payload_selector::SelectorOptions;
    Some(match selector?.selector_options? {
        SelectorOptions::Enable(all) => json!(all),
        SelectorOptions::Include(paths) => json!({"include": paths.fields}),
        SelectorOptions::Exclude(paths) => json!({"exclude": paths.fields}),
    })
}

/// Which vectors are wanted.
pub(super) fn with_vectors(selector: Option<pb::WithVectorsSelector>) -> Option<Value> {
    use pb::with_vectors_selector::SelectorOptions;
    Some(match selector?.selector_options? {
        SelectorOptions::Enable(all) => json!(all),
        SelectorOptions::Include(names) => json!(names.names),
    })
}

fn params(params: Option<pb::SearchParams>) -> Option<Value> {
    let params = params?;
    Some(object([("hnsw_ef", params.hnsw_ef.map(|ef| json!(ef))), ("exact", params.exact.map(|exact| json!(exact)))]))
}

fn lookup_from(location: Option<pb::LookupLocation>) -> Option<Value> {
    let location = location?;
    let vector = location.vector_name.map(|name| json!(name));
    Some(object([("collection", Some(json!(location.collection_name))), ("vector", vector)]))
}

/// What to order by.
pub(super) fn order_by(order: pb::OrderBy) -> Value {
    use pb::start_from::Value as From;
    let direction = order.direction.map(|direction| word(direction, pb::Direction::as_str_name));
    let start_from = order.start_from.and_then(|from| from.value).map(|from| match from {
        From::Float(value) => number(value),
        From::Integer(value) => json!(value),
        From::Timestamp(time) => instant(time),
        From::Datetime(text) => json!(text),
    });
    object([("key", Some(json!(order.key))), ("direction", direction), ("start_from", start_from)])
}

fn strategy(strategy: Option<i32>) -> Option<Value> {
    Some(match pb::RecommendStrategy::try_from(strategy?) {
        Ok(pb::RecommendStrategy::AverageVector) => json!("average_vector"),
        Ok(pb::RecommendStrategy::BestScore) => json!("best_score"),
        Ok(pb::RecommendStrategy::SumScores) => json!("sum_scores"),
        Err(_) => json!("unknown"),
    })
}

fn pair(pair: pb::ContextInputPair) -> Value {
    json!({"positive": example(pair.positive), "negative": example(pair.negative)})
}

fn query(query: pb::Query) -> Value {
    use pb::query::Variant;
    match query.variant {
        // Null would be no query, which lists points.
        None => json!({}),
        Some(Variant::Nearest(input)) => json!({"nearest": example(Some(input))}),
        Some(Variant::Recommend(of)) => json!({"recommend": object([
            ("positive", Some(list(of.positive, |input| example(Some(input))))),
            ("negative", Some(list(of.negative, |input| example(Some(input))))),
            ("strategy", strategy(of.strategy)),
        ])}),
        Some(Variant::Discover(of)) => json!({"discover": {
            "target": example(of.target), "context": list(of.context.unwrap_or_default().pairs, pair),
        }}),
        Some(Variant::Context(of)) => json!({"context": list(of.pairs, pair)}),
        Some(Variant::OrderBy(of)) => json!({"order_by": order_by(of)}),
        Some(Variant::Fusion(fusion)) => match pb::Fusion::try_from(fusion) {
            Ok(pb::Fusion::Rrf) => json!({"fusion": "rrf"}),
            Ok(pb::Fusion::Dbsf) => json!({"fusion": "dbsf"}),
            Err(_) => json!({"fusion": null}),
        },
        Some(Variant::Sample(_)) => json!({"sample": "random"}),
        Some(Variant::NearestWithMmr(of)) => json!({
            "nearest": example(of.nearest),
            "mmr": of.mmr.map_or(json!({}), |mmr| object([
                ("diversity", mmr.diversity.map(single)),
                ("candidates_limit", mmr.candidates_limit.map(|limit| json!(limit))),
            ])),
        }),
        Some(Variant::Rrf(of)) => json!({"rrf": object([
            ("k", of.k.map(|k| json!(k))), ("weights", some_list(of.weights, single)),
        ])}),
        Some(Variant::Formula(of)) => formula::formula(of),
        Some(Variant::RelevanceFeedback(of)) => json!({"relevance_feedback": {
            "target": example(of.target),
            "feedback": list(of.feedback, |one| json!({"example": example(one.example), "score": single(one.score)})),
            "strategy": of.strategy.and_then(|strategy| strategy.variant).map_or(Value::Null, |variant| match variant {
                pb::feedback_strategy::Variant::Naive(naive) => {
                    json!({"naive": {"a": single(naive.a), "b": single(naive.b), "c": single(naive.c)}})
                }
            }),
        }}),
        Some(Variant::Text(_)) => json!({"text": {}}),
    }
}

fn prefetch(of: pb::PrefetchQuery) -> Value {
    object([
        ("prefetch", some_list(of.prefetch, prefetch)),
        ("query", of.query.map(query)),
        ("using", of.using.map(|using| json!(using))),
        ("filter", of.filter.map(filter)),
        ("params", params(of.params)),
        ("score_threshold", of.score_threshold.map(single)),
        ("limit", of.limit.map(|limit| json!(limit))),
        ("lookup_from", lookup_from(of.lookup_from)),
    ])
}

/// A query.
pub(super) fn query_points(of: pb::QueryPoints) -> Value {
    object([
        ("prefetch", some_list(of.prefetch, prefetch)),
        ("query", of.query.map(query)),
        ("using", of.using.map(|using| json!(using))),
        ("filter", of.filter.map(filter)),
        ("params", params(of.params)),
        ("score_threshold", of.score_threshold.map(single)),
        ("limit", of.limit.map(|limit| json!(limit))),
        ("offset", of.offset.map(|offset| json!(offset))),
        ("with_vector", with_vectors(of.with_vectors)),
        ("with_payload", with_payload(of.with_payload)),
        ("shard_key", shard_key(of.shard_key_selector)),
        ("lookup_from", lookup_from(of.lookup_from)),
    ])
}

/// How hits are grouped, added to a query.
fn grouped(mut query: Value, of: (String, Option<u64>), lookup: Option<pb::WithLookup>) -> Value {
    query["group_by"] = json!(of.0);
    if let Some(size) = of.1 {
        query["group_size"] = json!(size);
    }
    if let Some(lookup) = lookup {
        query["with_lookup"] = object([
            ("collection", Some(json!(lookup.collection))),
            ("with_payload", with_payload(lookup.with_payload)),
            ("with_vectors", with_vectors(lookup.with_vectors)),
        ]);
    }
    query
}

/// A query whose hits are grouped.
pub(super) fn query_groups(of: pb::QueryPointGroups) -> Value {
    let query = query_points(pb::QueryPoints {
        prefetch: of.prefetch,
        query: of.query,
        using: of.using,
        filter: of.filter,
        params: of.params,
        score_threshold: of.score_threshold,
        limit: of.limit,
        with_payload: of.with_payload,
        with_vectors: of.with_vectors,
        lookup_from: of.lookup_from,
        shard_key_selector: of.shard_key_selector,
        ..Default::default()
    });
    grouped(query, (of.group_by, of.group_size), of.with_lookup)
}

fn nearest(vector: Vec<f32>, indices: Option<pb::SparseIndices>) -> Value {
    match indices {
        None => json!({"nearest": vector}),
        Some(indices) => json!({"nearest": {"indices": indices.data, "values": vector}}),
    }
}

/// The older search, as a query.
pub(super) fn search(of: pb::SearchPoints) -> Value {
    object([
        ("query", Some(nearest(of.vector, of.sparse_indices))),
        ("using", of.vector_name.map(|name| json!(name))),
        ("filter", of.filter.map(filter)),
        ("params", params(of.params)),
        ("score_threshold", of.score_threshold.map(single)),
        ("limit", Some(json!(of.limit))),
        ("offset", of.offset.map(|offset| json!(offset))),
        ("with_vector", with_vectors(of.with_vectors)),
        ("with_payload", with_payload(of.with_payload)),
        ("shard_key", shard_key(of.shard_key_selector)),
    ])
}

/// The older search whose hits are grouped, as a query.
pub(super) fn search_groups(of: pb::SearchPointGroups) -> Value {
    let query = search(pb::SearchPoints {
        vector: of.vector,
        filter: of.filter,
        limit: of.limit.into(),
        with_payload: of.with_payload,
        params: of.params,
        score_threshold: of.score_threshold,
        vector_name: of.vector_name,
        with_vectors: of.with_vectors,
        shard_key_selector: of.shard_key_selector,
        sparse_indices: of.sparse_indices,
        ..Default::default()
    });
    grouped(query, (of.group_by, Some(of.group_size.into())), of.with_lookup)
}

/// The older recommendation, as a query.
pub(super) fn recommend(of: pb::RecommendPoints) -> Value {
    let examples = |ids: Vec<pb::PointId>, vectors: Vec<pb::Vector>| -> Value {
        ids.into_iter().map(id).chain(vectors.into_iter().map(vector_json)).collect()
    };
    object([
        (
            "query",
            Some(json!({"recommend": object([
                ("positive", Some(examples(of.positive, of.positive_vectors))),
                ("negative", Some(examples(of.negative, of.negative_vectors))),
                ("strategy", strategy(of.strategy)),
            ])})),
        ),
        ("using", of.using.map(|using| json!(using))),
        ("filter", of.filter.map(filter)),
        ("params", params(of.params)),
        ("score_threshold", of.score_threshold.map(single)),
        ("limit", Some(json!(of.limit))),
        ("offset", of.offset.map(|offset| json!(offset))),
        ("with_vector", with_vectors(of.with_vectors)),
        ("with_payload", with_payload(of.with_payload)),
        ("lookup_from", lookup_from(of.lookup_from)),
        ("shard_key", shard_key(of.shard_key_selector)),
    ])
}

/// The older recommendation whose hits are grouped, as a query.
pub(super) fn recommend_groups(of: pb::RecommendPointGroups) -> Value {
    let query = recommend(pb::RecommendPoints {
        positive: of.positive,
        negative: of.negative,
        filter: of.filter,
        limit: of.limit.into(),
        with_payload: of.with_payload,
        params: of.params,
        score_threshold: of.score_threshold,
        using: of.using,
        with_vectors: of.with_vectors,
        lookup_from: of.lookup_from,
        strategy: of.strategy,
        positive_vectors: of.positive_vectors,
        negative_vectors: of.negative_vectors,
        shard_key_selector: of.shard_key_selector,
        ..Default::default()
    });
    grouped(query, (of.group_by, Some(of.group_size.into())), of.with_lookup)
}

/// The older discovery, as a query.
pub(super) fn discover(of: pb::DiscoverPoints) -> Value {
    let one = |of: Option<pb::VectorExample>| match of.and_then(|of| of.example) {
        None => Value::Null,
        Some(pb::vector_example::Example::Id(point)) => id(point),
        Some(pb::vector_example::Example::Vector(vector)) => vector_json(vector),
    };
    let pairs = list(of.context, |pair| json!({"positive": one(pair.positive), "negative": one(pair.negative)}));
    let target = of.target.and_then(|target| target.target).map(|pb::target_vector::Target::Single(target)| target);
    let query = match target {
        Some(target) => json!({"discover": {"target": one(Some(target)), "context": pairs}}),
        None => json!({"context": pairs}),
    };
    object([
        ("query", Some(query)),
        ("using", of.using.map(|using| json!(using))),
        ("filter", of.filter.map(filter)),
        ("params", params(of.params)),
        ("limit", Some(json!(of.limit))),
        ("offset", of.offset.map(|offset| json!(offset))),
        ("with_vector", with_vectors(of.with_vectors)),
        ("with_payload", with_payload(of.with_payload)),
        ("lookup_from", lookup_from(of.lookup_from)),
        ("shard_key", shard_key(of.shard_key_selector)),
    ])
}

/// A page.
pub(super) fn scroll(of: pb::ScrollPoints) -> Value {
    object([
        ("filter", of.filter.map(filter)),
        ("offset", of.offset.map(id)),
        ("limit", of.limit.map(|limit| json!(limit))),
        ("with_vector", with_vectors(of.with_vectors)),
        ("with_payload", with_payload(of.with_payload)),
        ("order_by", of.order_by.map(order_by)),
        ("shard_key", shard_key(of.shard_key_selector)),
    ])
}

/// Points by their ids.
pub(super) fn retrieve(of: pb::GetPoints) -> Value {
    object([
        ("ids", Some(list(of.ids, id))),
        ("with_vector", with_vectors(of.with_vectors)),
        ("with_payload", with_payload(of.with_payload)),
        ("shard_key", shard_key(of.shard_key_selector)),
    ])
}

/// A sample whose points are compared.
pub(super) fn matrix(of: pb::SearchMatrixPoints) -> Value {
    object([
        ("filter", of.filter.map(filter)),
        ("sample", of.sample.map(|sample| json!(sample))),
        ("limit", of.limit.map(|limit| json!(limit))),
        ("using", of.using.map(|using| json!(using))),
        ("shard_key", shard_key(of.shard_key_selector)),
    ])
}

/// Points of some kind counted.
pub(super) fn count(of: pb::CountPoints) -> Value {
    object([("filter", of.filter.map(filter)), ("shard_key", shard_key(of.shard_key_selector))])
}

/// Values of a field counted.
pub(super) fn facet(of: pb::FacetCounts) -> Value {
    object([
        ("key", Some(json!(of.key))),
        ("filter", of.filter.map(filter)),
        ("limit", of.limit.map(|limit| json!(limit))),
        ("shard_key", shard_key(of.shard_key_selector)),
    ])
}

fn quantization(config: pb::QuantizationConfig) -> Value {
    use pb::quantization_config::Quantization;
    match config.quantization {
        None => Value::Null,
        Some(Quantization::Scalar(settings)) => json!({"scalar": plain::to_json(&settings)}),
        Some(Quantization::Product(settings)) => {
            let mut told = plain::to_json(&settings);
            // The first of them is the default, which protobuf does not send.
            let ratio = pb::CompressionRatio::try_from(settings.compression).unwrap_or_default();
            told["compression"] = json!(ratio.as_str_name());
            json!({"product": told})
        }
        Some(Quantization::Binary(settings)) => json!({"binary": plain::to_json(&settings)}),
        Some(Quantization::Turboquant(settings)) => json!({"turbo": plain::to_json(&settings)}),
    }
}

fn vector_params(of: pb::VectorParams) -> Value {
    let distance = match pb::Distance::try_from(of.distance) {
        Ok(pb::Distance::UnknownDistance) | Err(_) => Value::Null,
        Ok(distance) => json!(distance.as_str_name()),
    };
    let datatype = of.datatype.filter(|kind| *kind != pb::Datatype::Default as i32);
    #[allow(deprecated, reason = "clients send it")]
    object([
        ("size", Some(json!(of.size))),
        ("distance", Some(distance)),
        ("hnsw_config", of.hnsw_config.map(|config| plain::to_json(&config))),
        ("quantization_config", of.quantization_config.map(quantization)),
        ("on_disk", of.on_disk.map(Value::Bool)),
        ("datatype", datatype.map(|kind| word(kind, pb::Datatype::as_str_name))),
        ("multivector_config", of.multivector_config.map(multivector)),
    ])
}

fn multivector(of: pb::MultiVectorConfig) -> Value {
    let comparator = match pb::MultiVectorComparator::try_from(of.comparator) {
        Ok(pb::MultiVectorComparator::MaxSim) => json!("max_sim"),
        Err(_) => json!(of.comparator),
    };
    json!({"comparator": comparator})
}

fn sparse_params(of: pb::SparseVectorParams) -> Value {
    object([
        ("index", of.index.map(|index| plain::to_json(&index))),
        ("modifier", of.modifier.map(|modifier| word(modifier, pb::Modifier::as_str_name))),
    ])
}

fn named<T>(map: BTreeMap<String, T>, one: impl Fn(T) -> Value) -> Value {
    Value::Object(map.into_iter().map(|(name, of)| (name, one(of))).collect())
}

/// A collection to be created.
///
/// # Errors
/// Where its metadata has what JSON cannot say.
pub(super) fn create(of: pb::CreateCollection) -> Result<Value, Error> {
    use pb::vectors_config::Config;
    let vectors = of.vectors_config.and_then(|config| config.config).map(|config| match config {
        Config::Params(one) => vector_params(one),
        Config::ParamsMap(map) => named(map.map, vector_params),
    });
    #[allow(deprecated, reason = "clients send it")]
    Ok(object([
        ("vectors", vectors),
        ("sparse_vectors", of.sparse_vectors_config.map(|config| named(config.map, sparse_params))),
        ("hnsw_config", of.hnsw_config.map(|config| plain::to_json(&config))),
        ("wal_config", of.wal_config.map(|config| plain::to_json(&config))),
        ("optimizers_config", of.optimizers_config.map(|config| plain::to_json(&config))),
        ("quantization_config", of.quantization_config.map(quantization)),
        ("strict_mode_config", of.strict_mode_config.map(|config| plain::to_json(&config))),
        ("shard_number", of.shard_number.map(|count| json!(count))),
        ("replication_factor", of.replication_factor.map(|count| json!(count))),
        ("write_consistency_factor", of.write_consistency_factor.map(|count| json!(count))),
        ("on_disk_payload", of.on_disk_payload.map(Value::Bool)),
        ("sharding_method", of.sharding_method.map(|method| word(method, pb::ShardingMethod::as_str_name))),
        ("metadata", metadata(of.metadata)?),
    ]))
}

/// A collection to be changed.
///
/// # Errors
/// Where its metadata has what JSON cannot say.
pub(super) fn update(of: pb::UpdateCollection) -> Result<Value, Error> {
    use pb::quantization_config_diff::Quantization as Diff;
    use pb::vectors_config_diff::Config;
    let quantized = |diff: pb::QuantizationConfigDiff| {
        let kind = |kind| quantization(pb::QuantizationConfig { quantization: Some(kind) });
        match diff.quantization {
            None => Value::Null,
            Some(Diff::Disabled(_)) => json!("Disabled"),
            Some(Diff::Scalar(of)) => kind(pb::quantization_config::Quantization::Scalar(of)),
            Some(Diff::Product(of)) => kind(pb::quantization_config::Quantization::Product(of)),
            Some(Diff::Binary(of)) => kind(pb::quantization_config::Quantization::Binary(of)),
            Some(Diff::Turboquant(of)) => kind(pb::quantization_config::Quantization::Turboquant(of)),
        }
    };
    #[allow(deprecated, reason = "clients send it")]
    let vector = |diff: pb::VectorParamsDiff| {
        object([
            ("hnsw_config", diff.hnsw_config.map(|config| plain::to_json(&config))),
            ("quantization_config", diff.quantization_config.map(quantized)),
            ("on_disk", diff.on_disk.map(Value::Bool)),
        ])
    };
    let vectors = of.vectors_config.and_then(|config| config.config).map(|config| match config {
        Config::Params(one) => json!({"": vector(one)}),
        Config::ParamsMap(map) => named(map.map, vector),
    });
    Ok(object([
        ("vectors", vectors),
        ("sparse_vectors", of.sparse_vectors_config.map(|config| named(config.map, sparse_params))),
        ("hnsw_config", of.hnsw_config.map(|config| plain::to_json(&config))),
        ("optimizers_config", of.optimizers_config.map(|config| plain::to_json(&config))),
        ("params", of.params.map(|params| plain::to_json(&params))),
        ("quantization_config", of.quantization_config.map(quantized)),
        ("strict_mode_config", of.strict_mode_config.map(|config| plain::to_json(&config))),
        ("metadata", metadata(of.metadata)?),
    ]))
}

/// A vector to be added.
pub(super) fn add_vector(of: pb::create_vector_name_request::VectorConfig) -> Value {
    use pb::create_vector_name_request::VectorConfig;
    match of {
        VectorConfig::DenseConfig(of) => {
            let pb::DenseVectorCreationConfig { size, distance, multivector_config, datatype } = of;
            let dense = pb::VectorParams { size, distance, multivector_config, datatype, ..Default::default() };
            json!({"dense": vector_params(dense)})
        }
        VectorConfig::SparseConfig(of) => {
            json!({"sparse": sparse_params(pb::SparseVectorParams { modifier: of.modifier, ..Default::default() })})
        }
    }
}

/// An index to be created.
pub(super) fn create_index(of: pb::CreateFieldIndexCollection) -> Value {
    use pb::payload_index_params::IndexParams;
    let parameters = of.field_index_params.and_then(|params| params.index_params).map(|params| {
        let (kind, mut told) = match &params {
            IndexParams::KeywordIndexParams(of) => ("keyword", plain::to_json(of)),
            IndexParams::IntegerIndexParams(of) => ("integer", plain::to_json(of)),
            IndexParams::FloatIndexParams(of) => ("float", plain::to_json(of)),
            IndexParams::GeoIndexParams(of) => ("geo", plain::to_json(of)),
            IndexParams::TextIndexParams(of) => ("text", plain::to_json(of)),
            IndexParams::BoolIndexParams(of) => ("bool", plain::to_json(of)),
            IndexParams::DatetimeIndexParams(of) => ("datetime", plain::to_json(of)),
            IndexParams::UuidIndexParams(of) => ("uuid", plain::to_json(of)),
        };
        told["type"] = json!(kind);
        told
    });
    let name = |kind: &pb::FieldType| kind.as_str_name().trim_start_matches("FieldType");
    let kind = of.field_type.map(|kind| word(kind, name));
    object([("field_name", Some(json!(of.field_name))), ("field_schema", parameters.or(kind))])
}

/// Changes of aliases.
pub(super) fn aliases(of: pb::ChangeAliases) -> Value {
    use pb::alias_operations::Action;
    let action = |of: pb::AliasOperations| match of.action {
        None => Value::Null,
        Some(Action::CreateAlias(of)) => {
            json!({"create_alias": {"collection_name": of.collection_name, "alias_name": of.alias_name}})
        }
        Some(Action::RenameAlias(of)) => {
            json!({"rename_alias": {"old_alias_name": of.old_alias_name, "new_alias_name": of.new_alias_name}})
        }
        Some(Action::DeleteAlias(of)) => json!({"delete_alias": {"alias_name": of.alias_name}}),
    };
    json!({"actions": list(of.actions, action)})
}
