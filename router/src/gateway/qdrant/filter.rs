//! Qdrant's filters, in our terms.
use std::collections::BTreeSet;
use std::num::NonZeroU32;

use nearring_proto::filter::{Filter, Place, Range, Scalar, WantedWords};
use nearring_proto::ids::PointId;
use schemars::JsonSchema;
use serde::Deserialize;

use super::openapi::{Degrees, Plain};
use super::values::Id;
use crate::failure::Error;
use crate::pipeline::Pipeline;

mod facts;

/// A filter as it is sent.
#[derive(Deserialize, JsonSchema, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(in crate::gateway) struct QdrantFilter {
    #[serde(default)]
    must: Some<Condition>,
    #[serde(default)]
    should: Some<Condition>,
    #[serde(default)]
    must_not: Some<Condition>,
    min_should: Option<MinShould>,
}

/// One, several, or null.
#[derive(Deserialize, JsonSchema, Clone, Debug, Default)]
#[serde(
    untagged,
    expecting = "has what is no condition here; give one such as {\"key\": …, \"match\": …}, or a list of them"
)]
enum Some<T> {
    Many(Vec<T>),
    One(Box<T>),
    #[default]
    None,
}

impl<T> Some<T> {
    fn list(self) -> Option<Vec<T>> {
        match self {
            Self::Many(all) => Option::Some(all),
            Self::One(one) => Option::Some(vec![*one]),
            Self::None => None,
        }
    }
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
struct MinShould {
    conditions: Vec<Condition>,
    min_count: u32,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(untagged)]
enum Condition {
    Field(Box<Field>),
    IsEmpty { is_empty: Key },
    IsNull { is_null: Key },
    HasId { has_id: Vec<Id> },
    HasVector { has_vector: String },
    Slice { slice: Slice },
    Nested { nested: Box<NestedFilter> },
    Filter(Box<QdrantFilter>),
}

/// Part `index` of `total` even ones.
#[derive(Deserialize, JsonSchema, Clone, Copy, Debug)]
#[serde(deny_unknown_fields)]
struct Slice {
    total: NonZeroU32,
    index: u32,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
struct Key {
    key: String,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
struct NestedFilter {
    key: String,
    filter: QdrantFilter,
}

/// Everything a field may be asked; what is given must hold.
#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
struct Field {
    key: String,
    r#match: Option<Match>,
    range: Option<Bounds>,
    geo_bounding_box: Option<GeoBox>,
    geo_radius: Option<GeoRadius>,
    geo_polygon: Option<GeoPolygon>,
    values_count: Option<Bounds>,
    is_empty: Option<bool>,
    is_null: Option<bool>,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(untagged)]
enum Match {
    Value {
        #[schemars(with = "Plain")]
        value: Scalar,
    },
    Text {
        text: String,
    },
    TextAny {
        text_any: String,
    },
    Phrase {
        phrase: String,
    },
    Prefix {
        prefix: String,
    },
    Substring {
        substring: String,
    },
    Any {
        #[schemars(with = "Vec<Plain>")]
        any: Vec<Scalar>,
    },
    Except {
        #[schemars(with = "Vec<Plain>")]
        except: Vec<Scalar>,
    },
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
struct Bounds {
    #[schemars(with = "Option<Plain>")]
    gt: Option<Scalar>,
    #[schemars(with = "Option<Plain>")]
    gte: Option<Scalar>,
    #[schemars(with = "Option<Plain>")]
    lt: Option<Scalar>,
    #[schemars(with = "Option<Plain>")]
    lte: Option<Scalar>,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
struct GeoBox {
    #[schemars(with = "Degrees")]
    top_left: Place,
    #[schemars(with = "Degrees")]
    bottom_right: Place,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
struct GeoRadius {
    #[schemars(with = "Degrees")]
    center: Place,
    radius: f64,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
struct GeoPolygon {
    exterior: Ring,
    #[serde(default)]
    interiors: Option<Vec<Ring>>,
}

#[derive(Deserialize, JsonSchema, Clone, Debug)]
struct Ring {
    #[schemars(with = "Vec<Degrees>")]
    points: Vec<Place>,
}

/// Paths through arrays need no empty brackets here, but where others follow: those choose among the items of each item.
pub(super) fn path(key: &str) -> String {
    let mut parts = key.split("[]").peekable();
    let mut path = String::with_capacity(key.len());
    while let Option::Some(part) = parts.next() {
        path.push_str(part);
        if parts.peek().is_some_and(|next| next.starts_with('[')) {
            path.push_str("[]");
        }
    }
    path
}

impl QdrantFilter {
    /// What matches, where there is something at this path.
    pub(super) fn with(filter: Option<Self>, path: &str) -> Self {
        let empty = Condition::IsEmpty { is_empty: Key { key: path.to_owned() } };
        let must = match filter {
            Option::Some(filter) => Some::One(Box::new(Condition::Filter(Box::new(filter)))),
            None => Some::None,
        };
        Self { must, must_not: Some::One(Box::new(empty)), ..Self::default() }
    }

    /// The filter in our terms, checked. Texts are matched by their words where a full-text index is declared for their path,
    /// and otherwise letter by letter.
    ///
    /// # Errors
    /// Where [`Filter::check`] refuses it, a condition is not supported, or the collection is not there.
    pub(in crate::gateway) async fn read(
        filter: Option<Self>,
        pipeline: &Pipeline,
        collection: &str,
    ) -> Result<Option<Filter>, Error> {
        let Some(filter) = filter else { return Ok(None) };
        let mut filter = filter.convert()?;
        let mut asks = false;
        each_words(&mut filter, "", &mut |_, _| asks = true);
        let texts = match asks {
            true => super::collections::declared(pipeline, collection, "text").await?,
            false => BTreeSet::new(),
        };
        settled(filter, &texts).map(Option::Some)
    }

    /// As [`QdrantFilter::read`], where it is known for which paths a full-text index is declared.
    pub(super) fn with_texts(self, texts: &BTreeSet<String>) -> Result<Filter, Error> {
        settled(self.convert()?, texts)
    }

    fn convert(self) -> Result<Filter, Error> {
        let list = |conditions: Vec<Condition>| -> Result<Vec<Filter>, Error> {
            conditions.into_iter().map(Condition::convert).collect()
        };
        let mut all: Vec<Filter> = list(self.must.list().unwrap_or_default())?;
        if let Option::Some(should) = self.should.list()
            && !should.is_empty()
        {
            all.push(Filter::Any(list(should)?));
        }
        for condition in self.must_not.list().unwrap_or_default() {
            all.push(Filter::Not(Box::new(condition.convert()?)));
        }
        if let Option::Some(MinShould { conditions, min_count }) = self.min_should {
            let filters: Vec<Filter> = list(conditions)?;
            all.push(match min_count {
                0 => Filter::All(Vec::new()),
                // More than there are is never reached; in Qdrant that is no error.
                count if count as usize > filters.len() => Filter::Any(Vec::new()),
                count => Filter::AtLeast { count, filters },
            });
        }
        Ok(Filter::All(all))
    }
}

/// The filter once it is settled which texts are made of words, checked.
fn settled(mut filter: Filter, texts: &BTreeSet<String>) -> Result<Filter, Error> {
    each_words(&mut filter, "", &mut |path, condition| {
        if !texts.contains(path) {
            by_letters(condition);
        }
    });
    filter.check()?;
    Ok(filter)
}

/// Calls with every condition on words, and its whole path; `at` is where the filter's own paths begin.
fn each_words(filter: &mut Filter, at: &str, change: &mut dyn FnMut(&str, &mut Filter)) {
    let whole = |path: &str| if at.is_empty() { path.to_owned() } else { format!("{at}.{path}") };
    match filter {
        Filter::All(filters) | Filter::Any(filters) | Filter::AtLeast { filters, .. } => {
            filters.iter_mut().for_each(|filter| each_words(filter, at, change));
        }
        Filter::Not(filter) => each_words(filter, at, change),
        Filter::Nested { path, filter } => each_words(filter, &whole(path), change),
        Filter::Words { path, .. } => {
            let path = whole(path);
            change(&path, filter);
        }
        _ => {}
    }
}

/// What a condition on words means where nothing says that the text is made of words.
fn by_letters(condition: &mut Filter) {
    let Filter::Words { path, text, wanted } = condition else { return };
    *condition = match wanted {
        WantedWords::All | WantedWords::Phrase => containing(path, text),
        WantedWords::Any => Filter::Any(text.split_whitespace().map(|part| containing(path, part)).collect()),
    };
}

/// Strings that have the text in them. Every string has the empty one in it.
fn containing(path: &str, text: &str) -> Filter {
    let (path, text) = (path.to_owned(), text.to_owned());
    if text.is_empty() { Filter::StartsWith { path, text } } else { Filter::Contains { path, text } }
}

impl Condition {
    fn convert(self) -> Result<Filter, Error> {
        Ok(match self {
            Self::Field(field) => field.convert()?,
            Self::IsEmpty { is_empty } => empty(&is_empty.key),
            Self::IsNull { is_null } => Filter::IsNull(path(&is_null.key)),
            Self::HasId { has_id } => Filter::Ids(has_id.into_iter().map(PointId::from).collect()),
            Self::HasVector { has_vector } => Filter::HasVector(has_vector),
            Self::Slice { slice: Slice { total, index } } if index < total.get() => {
                Filter::Slice { total: total.get(), index }
            }
            Self::Slice { slice: Slice { total, index } } => {
                let reason = format!("value {index} invalid, must be below the total of {total}");
                return Err(super::out_of_bounds("filter.slice.index", reason));
            }
            Self::Nested { nested } => {
                Filter::Nested { path: path(&nested.key), filter: Box::new(nested.filter.convert()?) }
            }
            Self::Filter(filter) => filter.convert()?,
        })
    }
}

/// Missing, null, or an empty array.
fn empty(key: &str) -> Filter {
    Filter::Not(Box::new(filled(key)))
}

/// Not empty: there is a value, or an array that holds nothing but nulls. An index can answer the former.
fn filled(key: &str) -> Filter {
    let range = Range { gte: Option::Some(Scalar::Int(1)), ..Range::default() };
    // What is counted depends on brackets at the end of the path.
    Filter::Any(vec![Filter::Exists(path(key)), Filter::ValuesCount { path: key.to_owned(), range }])
}

impl Field {
    /// # Errors
    /// Where it asks nothing, which every point would satisfy: a client left something out, or is newer than this.
    fn convert(self) -> Result<Filter, Error> {
        let path = path(&self.key);
        let mut all = Vec::new();
        if let Option::Some(matching) = self.r#match {
            let words = |text: String, wanted| Filter::Words { path: path.clone(), text, wanted };
            all.push(match matching {
                Match::Value { value } => Filter::Equals { path: path.clone(), value },
                Match::Text { text } => words(text, WantedWords::All),
                Match::TextAny { text_any } => words(text_any, WantedWords::Any),
                Match::Phrase { phrase } => words(phrase, WantedWords::Phrase),
                Match::Prefix { prefix } => Filter::StartsWith { path: path.clone(), text: prefix },
                Match::Substring { substring } => containing(&path, &substring),
                Match::Any { any } => Filter::In { path: path.clone(), values: any },
                Match::Except { except } => Filter::NotIn { path: path.clone(), values: except },
            });
        }
        if let Option::Some(range) = self.range {
            // Without a bound it asks for a number.
            let any = Range { gte: Option::Some(Scalar::Float(f64::MIN)), ..Range::default() };
            let range = range.read().unwrap_or(any);
            all.push(Filter::Range { path: path.clone(), range });
        }
        if let Option::Some(GeoBox { top_left, bottom_right }) = self.geo_bounding_box {
            all.push(match top_left.lat < bottom_right.lat {
                // Nothing lies in a box that is upside down; in Qdrant that is no error.
                true => Filter::Any(Vec::new()),
                false => Filter::GeoBox { path: path.clone(), top_left, bottom_right },
            });
        }
        if let Option::Some(GeoRadius { center, radius }) = self.geo_radius {
            all.push(Filter::GeoRadius { path: path.clone(), center, radius_m: radius });
        }
        if let Option::Some(GeoPolygon { exterior, interiors }) = self.geo_polygon {
            let holes = interiors.unwrap_or_default().into_iter().map(|ring| ring.points);
            let rings: Vec<Vec<Place>> = std::iter::once(exterior.points).chain(holes).collect();
            if rings.iter().any(|ring| ring.len() < 4 || ring.first() != ring.last()) {
                let reason = "has a ring that is not closed: give at least 4 points, the last of which is the first";
                return Err(Error::invalid(format!("filter: geo_polygon of {path:?}"), reason));
            }
            all.push(Filter::GeoPolygon { path: path.clone(), rings });
        }
        if let Option::Some(range) = self.values_count {
            let count = |range| Filter::ValuesCount { path: self.key.clone(), range };
            all.push(range.read().map_or(Filter::All(Vec::new()), count));
        }
        match self.is_empty {
            Option::Some(true) => all.push(empty(&self.key)),
            Option::Some(false) => all.push(filled(&self.key)),
            None => {}
        }
        match self.is_null {
            Option::Some(true) => all.push(Filter::IsNull(path)),
            Option::Some(false) => all.push(Filter::Not(Box::new(Filter::IsNull(path)))),
            None => {}
        }
        if all.is_empty() {
            return Err(Error::invalid(format!("filter: condition of {:?}", self.key), "asks nothing of the field"));
        }
        Ok(match <[Filter; 1]>::try_from(all) {
            Ok([one]) => one,
            Err(all) => Filter::All(all),
        })
    }
}

impl Bounds {
    /// `None` where nothing is bounded.
    fn read(self) -> Option<Range> {
        let Self { gt, gte, lt, lte } = self;
        let range = Range { gt, gte, lt, lte };
        (range != Range::default()).then_some(range)
    }
}
