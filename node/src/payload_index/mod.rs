//! Payload indexes: which points of a shard can match a filter, without reading their payloads.
//!
//! A filter means what [`Filter::matches`] says, and the indexes know only some fields, and only what a field's kind holds.
//! So every condition is answered by two bitmaps: slots that *certainly* match and slots that *may*. Their order is what
//! makes negation safe (what may match and what certainly does change places), and where the two are equal the answer is
//! exact and no payload needs to be read.
//!
//! Rules: a field remembers which slots it has been told about; a slot it has not seen may match anything, so an index that
//! is still being filled is slow, never wrong. Beside its values a field knows where anything but null stands, where a null
//! stands, and where scalars of another kind stand: a number stored in a keyword field makes conditions on numbers inexact
//! for that slot only.
//!
//! Memory, measured with a million slots of one value each (`memory_per_entry` in the tests prints it): a number takes 152
//! bytes a slot where all differ and 78 where a hundred do; a datetime 76 and 46; a keyword of 12 bytes 172 and 61; the
//! four bitmaps of a field are within these figures. Removing a slot frees what it held.
//!
//! Deliberately not here: full text, geography, persistence (derived data, rebuilt from the store), and any limit on
//! distinct values, which are bounded by what the shard stores.
mod keyword;
mod postings;
mod range;

use std::collections::BTreeMap;

use nearring_proto::collection::FieldKind;
use nearring_proto::filter::{Filter, Range, Scalar};
use nearring_proto::ids::PointId;
use nearring_proto::payload::{self, Payload};
use roaring::RoaringBitmap;
use serde_json::Value;

use keyword::KeywordIndex;
use range::{BoolIndex, DatetimeIndex, NumberIndex};

/// The indexes of one shard replica, by payload path.
#[derive(Clone, Default, Debug)]
pub struct PayloadIndexes {
    fields: BTreeMap<String, Field>,
}

/// What the indexes know about a filter.
#[derive(Clone, PartialEq, Debug)]
pub struct Narrowed {
    /// Contains every slot whose point matches, and only slots of the points asked about.
    pub slots: RoaringBitmap,
    /// Whether every slot in it matches.
    pub exact: bool,
}

impl PayloadIndexes {
    /// No indexes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the indexes those of `spec` (path → kind): drops those not in it, and those whose kind changed, and adds what
    /// is missing. Returns the paths added; fill them with [`PayloadIndexes::set_paths`] for every slot in use. Until that
    /// is done they narrow less and are never wrong.
    pub fn configure(&mut self, spec: &BTreeMap<String, FieldKind>) -> Vec<String> {
        self.fields.retain(|path, field| spec.get(path) == Some(&field.kind));
        let new: Vec<String> = spec.keys().filter(|path| !self.fields.contains_key(*path)).cloned().collect();
        for path in &new {
            if let Some(kind) = spec.get(path) {
                self.fields.insert(path.clone(), Field::new(*kind));
            }
        }
        new
    }

    /// Whether there is no index.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Indexes what `slot` holds now, in place of what it held. `_id` is not kept: conditions on ids ask the caller.
    pub fn set(&mut self, slot: u32, _id: &PointId, payload: &Payload) {
        for (path, field) in &mut self.fields {
            field.set(slot, path, payload);
        }
    }

    /// Like [`PayloadIndexes::set`], for some paths only. Paths without an index are ignored.
    pub fn set_paths(&mut self, slot: u32, payload: &Payload, paths: &[String]) {
        for path in paths {
            if let Some(field) = self.fields.get_mut(path) {
                field.set(slot, path, payload);
            }
        }
    }

    /// Forgets a slot. Does nothing where it holds nothing.
    pub fn remove(&mut self, slot: u32) {
        for field in self.fields.values_mut() {
            field.remove(slot);
        }
    }

    /// Which of the slots in `all` can match. `slot_of` finds an id's slot, `None` where there is no such point; `having` the slots
    /// with a vector of a name, `None` where nobody has one.
    ///
    /// `None` where the indexes say nothing: every slot of `all` may match.
    pub fn narrow<'a>(
        &self,
        filter: &Filter,
        all: &RoaringBitmap,
        slot_of: &dyn Fn(&PointId) -> Option<u32>,
        having: &dyn Fn(&str) -> Option<&'a RoaringBitmap>,
    ) -> Option<Narrowed> {
        match self.answer(filter, all, slot_of, having) {
            Answer::Unknown => None,
            Answer::Exact(slots) => Some(Narrowed { slots, exact: true }),
            Answer::Between { upper, .. } if upper.len() == all.len() => None,
            Answer::Between { upper, .. } => Some(Narrowed { slots: upper, exact: false }),
        }
    }

    fn answer<'a>(
        &self,
        filter: &Filter,
        all: &RoaringBitmap,
        slot_of: &dyn Fn(&PointId) -> Option<u32>,
        having: &dyn Fn(&str) -> Option<&'a RoaringBitmap>,
    ) -> Answer {
        let field = |path: &String| self.fields.get(path);
        match filter {
            Filter::All(filters) => filters.iter().fold(Answer::Exact(all.clone()), |answer, filter| match answer {
                Answer::Exact(slots) if slots.is_empty() => Answer::Exact(slots),
                answer => answer.and(self.answer(filter, all, slot_of, having)),
            }),
            Filter::Any(filters) => filters.iter().fold(Answer::Exact(RoaringBitmap::new()), |answer, filter| {
                answer.or(self.answer(filter, all, slot_of, having), all)
            }),
            Filter::Not(filter) => self.answer(filter, all, slot_of, having).not(all),
            Filter::Equals { path, value } => {
                field(path).map_or(Answer::Unknown, |field| field.equals(std::slice::from_ref(value), all))
            }
            Filter::In { path, values } => field(path).map_or(Answer::Unknown, |field| field.equals(values, all)),
            Filter::Range { path, range } => field(path).map_or(Answer::Unknown, |field| field.range(range, all)),
            Filter::Exists(path) => {
                field(path).map_or(Answer::Unknown, |field| field.certain(field.present.clone(), all))
            }
            Filter::IsNull(path) => field(path).map_or(Answer::Unknown, |field| field.certain(field.null.clone(), all)),
            Filter::AtLeast { .. }
            | Filter::NotIn { .. }
            | Filter::Contains { .. }
            | Filter::StartsWith { .. }
            | Filter::Words { .. }
            | Filter::GeoBox { .. }
            | Filter::GeoRadius { .. }
            | Filter::GeoPolygon { .. }
            | Filter::ValuesCount { .. }
            | Filter::Nested { .. }
            | Filter::Slice { .. } => Answer::Unknown, // no index says more than the payload does
            Filter::HasVector(name) => Answer::Exact(having(name).map_or_else(RoaringBitmap::new, |slots| slots & all)),
            Filter::Ids(ids) => Answer::Exact(ids.iter().filter_map(slot_of).collect::<RoaringBitmap>() & all),
        }
    }
}

/// How complete a field's values answered a condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// What was found is all that matches.
    All,
    /// What was found may match, nothing else does.
    Maybe,
    /// Only scalars of another kind may match.
    MaybeOthers,
    /// Any value may match.
    MaybeAny,
}

#[derive(Clone, Debug)]
enum Values {
    Keyword(KeywordIndex),
    Number(NumberIndex),
    Bool(BoolIndex),
    Datetime(DatetimeIndex),
}

/// The index of one path.
#[derive(Clone, Debug)]
struct Field {
    kind: FieldKind,
    values: Values,
    /// Slots it has been told about.
    known: RoaringBitmap,
    /// Slots with a value other than null.
    present: RoaringBitmap,
    /// Slots with a null.
    null: RoaringBitmap,
    /// Slots with a scalar that `values` does not hold.
    others: RoaringBitmap,
}

impl Field {
    fn new(kind: FieldKind) -> Self {
        let values = match kind {
            FieldKind::Keyword => Values::Keyword(KeywordIndex::default()),
            FieldKind::Integer | FieldKind::Float => Values::Number(NumberIndex::default()),
            FieldKind::Bool => Values::Bool(BoolIndex::default()),
            FieldKind::Datetime => Values::Datetime(DatetimeIndex::default()),
        };
        let empty = RoaringBitmap::new;
        Self { kind, values, known: empty(), present: empty(), null: empty(), others: empty() }
    }

    fn set(&mut self, slot: u32, path: &str, payload: &Payload) {
        self.remove(slot);
        self.known.insert(slot);
        let (mut present, mut null, mut others) = (false, false, false);
        /// Collects the keys of the values that an index holds; tells of the rest.
        fn keys<K>(
            payload: &Payload,
            path: &str,
            key: impl Fn(&Value) -> Option<K>,
            rest: &mut dyn FnMut(&Value, bool),
        ) -> Vec<K> {
            let mut keys = Vec::new();
            payload::visit(payload, path, &mut |value| {
                let found = key(value);
                rest(value, found.is_some());
                keys.extend(found);
            });
            keys
        }
        let mut note = |value: &Value, held: bool| {
            present |= !value.is_null();
            null |= value.is_null();
            // An object equals nothing and lies in no range.
            others |= !held && !value.is_null() && !value.is_object();
        };
        match &mut self.values {
            Values::Keyword(index) => index.postings_mut().add(slot, keys(payload, path, KeywordIndex::key, &mut note)),
            Values::Number(index) => index.postings_mut().add(slot, keys(payload, path, NumberIndex::key, &mut note)),
            Values::Bool(index) => index.postings_mut().add(slot, keys(payload, path, BoolIndex::key, &mut note)),
            Values::Datetime(index) => {
                index.postings_mut().add(slot, keys(payload, path, DatetimeIndex::key, &mut note))
            }
        }
        for (holds, bitmap) in [(present, &mut self.present), (null, &mut self.null), (others, &mut self.others)] {
            if holds {
                bitmap.insert(slot);
            }
        }
    }

    fn remove(&mut self, slot: u32) {
        if !self.known.remove(slot) {
            return;
        }
        for bitmap in [&mut self.present, &mut self.null, &mut self.others] {
            bitmap.remove(slot);
        }
        match &mut self.values {
            Values::Keyword(index) => index.postings_mut().remove(slot),
            Values::Number(index) => index.postings_mut().remove(slot),
            Values::Bool(index) => index.postings_mut().remove(slot),
            Values::Datetime(index) => index.postings_mut().remove(slot),
        }
    }

    fn equals(&self, wanted: &[Scalar], all: &RoaringBitmap) -> Answer {
        let (mut certain, mut maybe) = (RoaringBitmap::new(), RoaringBitmap::new());
        for scalar in wanted {
            let mut slots = RoaringBitmap::new();
            let found = match &self.values {
                Values::Keyword(index) => index.equals(scalar, &mut slots),
                Values::Number(index) => index.equals(scalar, &mut slots),
                Values::Bool(index) => index.equals(scalar, &mut slots),
                Values::Datetime(index) => index.equals(scalar, &mut slots),
            };
            self.sort_in(found, slots, &mut certain, &mut maybe);
        }
        self.between(certain, maybe, all)
    }

    fn range(&self, range: &Range, all: &RoaringBitmap) -> Answer {
        let Some(bounds) = range.bounds() else {
            return Answer::Exact(RoaringBitmap::new()); // malformed: matches nothing, here as in Filter::matches
        };
        let (mut certain, mut maybe) = (RoaringBitmap::new(), RoaringBitmap::new());
        let mut slots = RoaringBitmap::new();
        let found = match &self.values {
            Values::Keyword(index) => index.range(&bounds),
            Values::Number(index) => index.range(&bounds, &mut slots),
            Values::Bool(_) => Found::MaybeOthers, // a boolean lies in no range
            Values::Datetime(index) => index.range(&bounds, &mut slots),
        };
        self.sort_in(found, slots, &mut certain, &mut maybe);
        self.between(certain, maybe, all)
    }

    fn sort_in(&self, found: Found, slots: RoaringBitmap, certain: &mut RoaringBitmap, maybe: &mut RoaringBitmap) {
        match found {
            Found::All => *certain |= slots,
            Found::Maybe => *maybe |= slots,
            Found::MaybeOthers => *maybe |= &self.others,
            Found::MaybeAny => *maybe |= &self.present,
        }
    }

    fn certain(&self, slots: RoaringBitmap, all: &RoaringBitmap) -> Answer {
        self.between(slots, RoaringBitmap::new(), all)
    }

    fn between(&self, mut certain: RoaringBitmap, mut maybe: RoaringBitmap, all: &RoaringBitmap) -> Answer {
        certain &= all;
        maybe |= &certain;
        maybe &= all;
        maybe |= all - &self.known;
        Answer::between(certain, maybe)
    }
}

/// What is known of a condition. All bitmaps are subsets of the slots asked about, and `lower` is one of `upper`.
#[derive(Clone, Debug)]
enum Answer {
    /// Nothing: none certainly, any maybe.
    Unknown,
    /// These match and no others.
    Exact(RoaringBitmap),
    /// Those in `lower` match, those not in `upper` do not.
    Between { lower: RoaringBitmap, upper: RoaringBitmap },
}

impl Answer {
    fn between(lower: RoaringBitmap, upper: RoaringBitmap) -> Self {
        if lower.len() == upper.len() { Answer::Exact(upper) } else { Answer::Between { lower, upper } }
    }

    fn and(self, other: Self) -> Self {
        use Answer::{Between, Exact, Unknown};
        match (self, other) {
            (Unknown, Unknown) => Unknown,
            (Unknown, Exact(upper) | Between { upper, .. }) | (Exact(upper) | Between { upper, .. }, Unknown) => {
                Self::between(RoaringBitmap::new(), upper)
            }
            (Exact(a), Exact(b)) => Exact(a & b),
            (Exact(slots), Between { lower, upper }) | (Between { lower, upper }, Exact(slots)) => {
                Self::between(lower & &slots, upper & slots)
            }
            (Between { lower: a_lower, upper: a_upper }, Between { lower, upper }) => {
                Self::between(a_lower & lower, a_upper & upper)
            }
        }
    }

    fn or(self, other: Self, all: &RoaringBitmap) -> Self {
        use Answer::{Between, Exact, Unknown};
        match (self, other) {
            (Unknown, Unknown) => Unknown,
            (Unknown, Exact(lower) | Between { lower, .. }) | (Exact(lower) | Between { lower, .. }, Unknown) => {
                Self::between(lower, all.clone())
            }
            (Exact(a), Exact(b)) => Exact(a | b),
            (Exact(slots), Between { lower, upper }) | (Between { lower, upper }, Exact(slots)) => {
                Self::between(lower | &slots, upper | slots)
            }
            (Between { lower: a_lower, upper: a_upper }, Between { lower, upper }) => {
                Self::between(a_lower | lower, a_upper | upper)
            }
        }
    }

    fn not(self, all: &RoaringBitmap) -> Self {
        match self {
            Answer::Unknown => Answer::Unknown,
            Answer::Exact(slots) => Answer::Exact(all - slots),
            Answer::Between { lower, upper } => Answer::Between { lower: all - upper, upper: all - lower },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde_json::json;

    const PATHS: [&str; 5] = ["a", "b", "a.x", "n.x", "a.b"];
    /// Two spellings of one instant, one a microsecond later, and one that names no instant.
    const DATES: [&str; 4] =
        ["2024-05-01T10:00:00Z", "2024-05-01T12:00:00+02:00", "2024-05-01T10:00:00.000001Z", "2024-05-01"];

    fn number() -> impl Strategy<Value = Value> {
        prop_oneof![
            4 => (-2i64..3).prop_map(Value::from),
            2 => prop_oneof![Just(-1.5), Just(0.5), Just(2.0), Just(-0.0)].prop_map(Value::from),
            1 => prop_oneof![
                Just(json!(u64::MAX)),
                Just(json!(9_007_199_254_740_993_i64)),
                Just(json!(9_007_199_254_740_992.0)),
                Just(json!(1e300))
            ],
        ]
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[pq]{1,2}", proptest::sample::select(DATES.to_vec()).prop_map(str::to_owned), Just("1".to_owned())]
    }

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            3 => number(),
            3 => text().prop_map(Value::from),
            1 => any::<bool>().prop_map(Value::from),
            1 => Just(Value::Null),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        scalar().prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                btree_map("[xb]", inner, 0..3).prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    fn payload() -> impl Strategy<Value = Payload> {
        let key = proptest::sample::select(vec!["a", "b", "n", "a.x"]);
        btree_map(key, value(), 0..4).prop_map(|map| map.into_iter().map(|(key, v)| (key.to_owned(), v)).collect())
    }

    fn wanted() -> impl Strategy<Value = Scalar> {
        prop_oneof![
            (-2i64..3).prop_map(Scalar::Int),
            prop_oneof![Just(2.0), Just(0.5), Just(f64::NAN), Just(9_007_199_254_740_992.0)].prop_map(Scalar::Float),
            any::<bool>().prop_map(Scalar::Bool),
            text().prop_map(Scalar::Text),
        ]
    }

    fn bounds() -> impl Strategy<Value = Range> {
        let of = |scalar: BoxedStrategy<Scalar>| {
            let bound = move || proptest::option::of(scalar.clone());
            (bound(), bound(), bound(), bound()).prop_map(|(gt, gte, lt, lte)| Range { gt, gte, lt, lte })
        };
        let numbers =
            prop_oneof![(-2i64..3).prop_map(Scalar::Int), Just(Scalar::Float(0.5)), Just(Scalar::Float(1e18))];
        let dates = proptest::sample::select(DATES[..3].to_vec()).prop_map(|date| Scalar::Text(date.to_owned()));
        prop_oneof![4 => of(numbers.boxed()), 4 => of(dates.boxed()), 1 => of(wanted().boxed())]
    }

    fn id() -> impl Strategy<Value = PointId> {
        (0u64..20).prop_map(PointId::Number)
    }

    fn filter() -> impl Strategy<Value = Filter> {
        let path = || proptest::sample::select(PATHS.to_vec()).prop_map(str::to_owned);
        let leaf = prop_oneof![
            3 => (path(), wanted()).prop_map(|(path, value)| Filter::Equals { path, value }),
            2 => (path(), vec(wanted(), 0..4)).prop_map(|(path, values)| Filter::In { path, values }),
            3 => (path(), bounds()).prop_map(|(path, range)| Filter::Range { path, range }),
            1 => path().prop_map(Filter::Exists),
            1 => path().prop_map(Filter::IsNull),
            1 => proptest::sample::select(vec!["even", "none"]).prop_map(|name| Filter::HasVector(name.to_owned())),
            1 => vec(id(), 0..6).prop_map(Filter::Ids),
        ];
        leaf.prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Filter::All),
                vec(inner.clone(), 0..4).prop_map(Filter::Any),
                inner.prop_map(|filter| Filter::Not(Box::new(filter))),
            ]
        })
    }

    fn spec() -> impl Strategy<Value = BTreeMap<String, FieldKind>> {
        let kind = proptest::sample::select(vec![
            FieldKind::Keyword,
            FieldKind::Integer,
            FieldKind::Float,
            FieldKind::Bool,
            FieldKind::Datetime,
        ]);
        btree_map(proptest::sample::select(PATHS.to_vec()).prop_map(str::to_owned), kind, 0..5)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, Payload),
        Remove(u32),
        Configure(BTreeMap<String, FieldKind>),
        /// Fills new fields for slots below this only, as an interrupted fill does.
        ConfigurePartly(BTreeMap<String, FieldKind>, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u32..20, payload()).prop_map(|(slot, payload)| Step::Set(slot, payload)),
            2 => (0u32..20).prop_map(Step::Remove),
            1 => spec().prop_map(Step::Configure),
            1 => (spec(), 0u32..20).prop_map(|(spec, below)| Step::ConfigurePartly(spec, below)),
        ]
    }

    fn id_of(slot: u32) -> PointId {
        PointId::Number(u64::from(slot))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn narrowing_keeps_every_match_and_is_exact_where_it_says_so(
            spec in spec(),
            steps in vec(step(), 1..40),
            filters in vec(filter(), 8),
        ) {
            let mut indexes = PayloadIndexes::new();
            indexes.configure(&spec);
            let mut points: BTreeMap<u32, Payload> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(slot, payload) => {
                        indexes.set(slot, &id_of(slot), &payload);
                        points.insert(slot, payload);
                    }
                    Step::Remove(slot) => {
                        indexes.remove(slot);
                        points.remove(&slot);
                    }
                    Step::Configure(spec) => {
                        let new = indexes.configure(&spec);
                        points.iter().for_each(|(slot, payload)| indexes.set_paths(*slot, payload, &new));
                    }
                    Step::ConfigurePartly(spec, below) => {
                        let new = indexes.configure(&spec);
                        points.range(..below).for_each(|(slot, payload)| indexes.set_paths(*slot, payload, &new));
                    }
                }
            }
            let all: RoaringBitmap = points.keys().copied().collect();
            let even: RoaringBitmap = (0..100).filter(|slot| slot % 2 == 0).collect();
            let slot_of = |id: &PointId| match id {
                PointId::Number(n) => u32::try_from(*n).ok().filter(|slot| points.contains_key(slot)),
                _ => None,
            };
            for filter in &filters {
                let matching: RoaringBitmap =
                    points.iter().filter(|(slot, payload)| filter.matches(&id_of(**slot), payload, &|name| name == "even" && **slot % 2 == 0)).map(|(s, _)| *s).collect();
                if let Some(narrowed) = indexes.narrow(filter, &all, &slot_of, &|name| (name == "even").then_some(&even)) {
                    prop_assert!(narrowed.slots.is_subset(&all));
                    prop_assert!(matching.is_subset(&narrowed.slots), "{filter:?} lost {:?}", &matching - &narrowed.slots);
                    prop_assert!(!narrowed.exact || narrowed.slots == matching, "{filter:?} is not exact");
                    prop_assert!(narrowed.exact || narrowed.slots != all, "inexact and all: says nothing");
                }
            }
            // Everything removed: nothing is left in memory.
            for slot in 0..20 {
                indexes.remove(slot);
            }
            for field in indexes.fields.values() {
                let counts = match &field.values {
                    Values::Keyword(index) => index.counts(),
                    Values::Number(index) => index.counts(),
                    Values::Bool(index) => index.counts(),
                    Values::Datetime(index) => index.counts(),
                };
                prop_assert_eq!(counts, (0, 0));
                prop_assert!(field.present.is_empty() && field.null.is_empty() && field.others.is_empty());
            }
        }
    }

    /// The property above would hold of indexes that never say anything: these conditions must be answered, and exactly.
    #[test]
    fn what_a_field_is_indexed_for_is_answered_exactly() {
        let mut indexes = PayloadIndexes::new();
        let spec = json!({"lang": "keyword", "year": "integer", "price": "float", "new": "bool", "at": "datetime"});
        let new = indexes.configure(&serde_json::from_value(spec).unwrap());
        assert_eq!(new, ["at", "lang", "new", "price", "year"]);
        for slot in 0..100u32 {
            let payload = json!({
                "lang": if slot % 2 == 0 { json!(["en", "fr"]) } else { json!("de") },
                "year": 1900 + slot,
                "price": f64::from(slot) / 2.0,
                "new": slot >= 90,
                "at": format!("2024-05-01T10:{:02}:00Z", slot % 60),
            });
            indexes.set(slot, &id_of(slot), payload.as_object().unwrap());
        }
        let all: RoaringBitmap = (0..100).collect();
        let narrow = |filter: Value| {
            let filter: Filter = serde_json::from_value(filter).unwrap();
            let slot_of = |id: &PointId| match id {
                PointId::Number(n) if *n < 100 => Some(*n as u32),
                _ => None,
            };
            indexes.narrow(&filter, &all, &slot_of, &|_| None)
        };
        for (filter, count) in [
            (json!({"equals": {"path": "lang", "value": "fr"}}), 50),
            (json!({"in": {"path": "lang", "values": ["en", "fr", "xx", 3]}}), 50),
            (json!({"not": {"in": {"path": "lang", "values": ["en"]}}}), 50),
            (json!({"range": {"path": "year", "gte": 1990, "lt": 1995.5}}), 6),
            (json!({"equals": {"path": "price", "value": 7}}), 1),
            (json!({"range": {"path": "price", "gt": 2, "lte": 2}}), 0),
            (json!({"equals": {"path": "new", "value": true}}), 10),
            (json!({"range": {"path": "at", "gte": "2024-05-01T12:30:00+02:00"}}), 40),
            (json!({"exists": "year"}), 100),
            (json!({"is_null": "year"}), 0),
            (json!({"ids": [1, 2, 500]}), 2),
            (json!({"all": [{"equals": {"path": "new", "value": true}}, {"range": {"path": "year", "lt": 1993}}]}), 3),
            (json!({"all": [{"equals": {"path": "lang", "value": "xx"}}, {"exists": "unindexed"}]}), 0),
        ] {
            let narrowed = narrow(filter.clone()).unwrap();
            assert!(narrowed.exact, "{filter}");
            assert_eq!(narrowed.slots.len(), count, "{filter}");
        }
        // Half known: narrowed and inexact; its negation knows nothing.
        let half = json!({"all": [{"equals": {"path": "new", "value": true}}, {"exists": "unindexed"}]});
        let narrowed = narrow(half.clone()).unwrap();
        assert_eq!((narrowed.slots.len(), narrowed.exact), (10, false));
        assert_eq!(narrow(json!({"not": half})), None);
        // Another spelling of the instant is another string.
        let narrowed = narrow(json!({"equals": {"path": "at", "value": "2024-05-01T10:30:00Z"}})).unwrap();
        assert_eq!((narrowed.slots.len(), narrowed.exact), (2, false));
    }

    #[test]
    fn one_stored_number_in_a_keyword_field_costs_exactness_for_that_slot_only() {
        let mut indexes = PayloadIndexes::new();
        indexes.configure(&BTreeMap::from([("lang".to_owned(), FieldKind::Keyword)]));
        indexes.set(0, &id_of(0), json!({"lang": "en"}).as_object().unwrap());
        indexes.set(1, &id_of(1), json!({"lang": 3}).as_object().unwrap());
        let (all, three) = ((0..2).collect(), Filter::Equals { path: "lang".to_owned(), value: Scalar::Int(3) });
        let narrowed = indexes.narrow(&three, &all, &|_| None, &|_| None).unwrap();
        assert_eq!(narrowed, Narrowed { slots: [1].into_iter().collect(), exact: false });
    }

    /// Prints resident bytes a slot (Linux); run by hand with `--ignored --nocapture`.
    #[test]
    #[ignore = "measures"]
    fn memory_per_entry() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        type Case = (&'static str, FieldKind, fn(u32) -> Value);
        let cases: [Case; 6] = [
            ("numbers, distinct", FieldKind::Integer, |slot| json!(slot.wrapping_mul(2_654_435_761))),
            ("numbers, 100", FieldKind::Integer, |slot| json!(slot.wrapping_mul(2_654_435_761) % 100)),
            ("datetimes, distinct", FieldKind::Datetime, |slot| {
                json!(format!(
                    "2024-05-01T{:02}:{:02}:{:02}.{:03}Z",
                    slot % 24,
                    slot / 24 % 60,
                    slot / 1440 % 60,
                    slot / 86400
                ))
            }),
            ("datetimes, 100", FieldKind::Datetime, |slot| json!(format!("2024-05-01T10:00:{:02}Z", slot % 60))),
            ("keywords, distinct", FieldKind::Keyword, |slot| json!(format!("key-{slot:08}"))),
            ("keywords, 100", FieldKind::Keyword, |slot| json!(format!("key-{:08}", slot % 100))),
        ];
        let mut kept = Vec::new();
        for (name, kind, value) in cases {
            let before = resident();
            let mut indexes = PayloadIndexes::new();
            indexes.configure(&BTreeMap::from([("v".to_owned(), kind)]));
            for slot in 0..1_000_000 {
                indexes.set(slot, &id_of(slot), json!({ "v": value(slot) }).as_object().unwrap());
            }
            println!("{name}: {} bytes a slot", (resident() - before) / 1_000_000);
            kept.push(indexes);
        }
    }
}
