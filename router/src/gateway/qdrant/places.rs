//! Where in a payload something is set or taken away, as Qdrant writes it: `a.b`, `a[0].b`, `a[].b`, `"a.b".c`.
//!
//! Setting makes what is missing on the way, and what stands in its way gives way to it; but no item is added to an array.
//! Taking away never moves an array's items: an item by number stays, and `a[]` empties the array.
use nearring_proto::payload::Payload;
use serde_json::Value;

use crate::failure::Error;

/// One step into a payload.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Step {
    Key(String),
    Item(usize),
    EachItem,
}

/// Steps that begin at a key of the payload. A key of the payload that is spelt like the whole place is meant before anything
/// else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    whole: String,
    first: String,
    rest: Vec<Step>,
}

impl Place {
    /// # Errors
    /// Where a key is empty without being quoted, or a bracket holds no number, or something is left over.
    pub(super) fn read(field: &str, text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| {
            let reason = format!("is {text:?}, no path; write keys joined by dots, as a.b, a[0].b, a[].b or \"a.b\".c");
            Error::invalid(field, reason)
        })
    }

    /// Merges `given` into the object at the place. A null takes its key away.
    pub(super) fn merge(&self, into: &mut Payload, given: &Payload) {
        match into.get_mut(&self.whole) {
            Some(value) => merge(value, &[], given),
            None => merge(into.entry(self.first.clone()).or_insert(Value::Null), &self.rest, given),
        }
    }

    /// Takes away what stands at the place. A key behind an array without brackets is one of each of its items.
    pub(super) fn remove(&self, from: &mut Payload) {
        if from.remove(&self.whole).is_none() {
            remove(from, &self.first, &self.rest);
        }
    }
}

/// What is given replaces what stands there; what is given as null is taken away.
pub(super) fn set(into: &mut Payload, given: &Payload) {
    for (key, value) in given {
        match value {
            Value::Null => drop(into.remove(key)),
            value => drop(into.insert(key.clone(), value.clone())),
        }
    }
}

fn parse(text: &str) -> Option<Place> {
    let (first, mut left) = key(text)?;
    let mut rest = Vec::new();
    while !left.is_empty() {
        if let Some(behind) = left.strip_prefix('.') {
            let (name, behind) = key(behind)?;
            rest.push(Step::Key(name));
            left = behind;
        } else {
            let (item, behind) = left.strip_prefix('[')?.split_once(']')?;
            rest.push(if item.is_empty() { Step::EachItem } else { Step::Item(item.parse().ok()?) });
            left = behind;
        }
    }
    Some(Place { whole: text.to_owned(), first, rest })
}

/// A key at the beginning, and what follows it.
pub(super) fn key(text: &str) -> Option<(String, &str)> {
    if let Some((quoted, behind)) = text.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
        return Some((quoted.to_owned(), behind));
    }
    let end = text.find(['.', '[']).unwrap_or(text.len());
    let (key, behind) = text.split_at_checked(end)?;
    (!key.is_empty()).then(|| (key.to_owned(), behind))
}

fn merge(value: &mut Value, steps: &[Step], given: &Payload) {
    let becomes: fn() -> Value = match steps.first() {
        None | Some(Step::Key(_)) => || Value::Object(Payload::new()),
        Some(Step::Item(_) | Step::EachItem) => || Value::Array(Vec::new()),
    };
    if std::mem::discriminant(value) != std::mem::discriminant(&becomes()) {
        *value = becomes();
    }
    match (value, steps.split_first()) {
        (Value::Object(object), None) => set(object, given),
        (Value::Object(object), Some((Step::Key(key), rest))) => {
            merge(object.entry(key.clone()).or_insert(Value::Null), rest, given);
        }
        (Value::Array(items), Some((Step::Item(at), rest))) => {
            items.get_mut(*at).into_iter().for_each(|item| merge(item, rest, given));
        }
        (Value::Array(items), Some((Step::EachItem, rest))) => {
            items.iter_mut().for_each(|item| merge(item, rest, given));
        }
        _ => {}
    }
}

fn remove(from: &mut Payload, key: &str, rest: &[Step]) {
    match rest {
        [] => drop(from.remove(key)),
        rest => from.get_mut(key).into_iter().for_each(|value| remove_in(value, rest)),
    }
}

fn remove_in(value: &mut Value, steps: &[Step]) {
    match (steps.split_first(), value) {
        (Some((Step::Key(key), rest)), Value::Object(object)) => remove(object, key, rest),
        (Some((Step::Key(_), _)), Value::Array(items)) => items.iter_mut().for_each(|item| remove_in(item, steps)),
        (Some((Step::EachItem, [])), Value::Array(items)) => items.clear(),
        (Some((Step::EachItem, rest)), Value::Array(items)) => {
            items.iter_mut().for_each(|item| remove_in(item, rest));
        }
        (Some((Step::Item(at), rest)), Value::Array(items)) if !rest.is_empty() => {
            items.get_mut(*at).into_iter().for_each(|item| remove_in(item, rest));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use serde_json::json;

    use super::*;

    fn changed(before: Value, change: impl Fn(&mut Payload)) -> Value {
        let mut payload = before.as_object().unwrap().clone();
        change(&mut payload);
        Value::Object(payload)
    }

    #[test]
    fn merges_where_the_path_leads() {
        let given = json!({"x": 1, "gone": null});
        for (place, before, after) in [
            ("a", json!({}), json!({"a": {"x": 1}})),
            ("a", json!({"a": {"gone": 2, "b": 3}}), json!({"a": {"b": 3, "x": 1}})),
            ("a", json!({"a": [1]}), json!({"a": {"x": 1}})),
            ("a.b", json!({"a.b": {}, "a": 5}), json!({"a.b": {"x": 1}, "a": 5})),
            ("a.b", json!({"a": 5}), json!({"a": {"b": {"x": 1}}})),
            ("a[1]", json!({"a": [1, 2]}), json!({"a": [1, {"x": 1}]})),
            ("a[2]", json!({"a": [1, 2]}), json!({"a": [1, 2]})),
            ("a[0]", json!({"a": {"b": 1}}), json!({"a": []})),
            ("a[].b", json!({"a": [{"c": 1}, 2]}), json!({"a": [{"c": 1, "b": {"x": 1}}, {"b": {"x": 1}}]})),
            ("a[0][1]", json!({"a": [[1, 2]]}), json!({"a": [[1, {"x": 1}]]})),
            ("\"a.b\"", json!({"a.b": {"y": 2}}), json!({"a.b": {"y": 2, "x": 1}})),
            ("\"\".c", json!({"": {}}), json!({"": {"c": {"x": 1}}})),
        ] {
            let path = Place::read("key", place).unwrap();
            let found = changed(before.clone(), |payload| path.merge(payload, given.as_object().unwrap()));
            assert_eq!(found, after, "{place} in {before}");
        }
    }

    #[test]
    fn takes_away_without_moving_items() {
        for (place, before, after) in [
            ("a", json!({"a": 1, "b": 2}), json!({"b": 2})),
            ("a.b", json!({"a": {"b": 1, "c": 2}}), json!({"a": {"c": 2}})),
            ("a.b", json!({"a": [{"b": 1}, {"b": 2, "c": 3}]}), json!({"a": [{}, {"c": 3}]})),
            ("a[1].b", json!({"a": [{"b": 1}, {"b": 2}]}), json!({"a": [{"b": 1}, {}]})),
            ("a[0]", json!({"a": [1, 2]}), json!({"a": [1, 2]})),
            ("a[]", json!({"a": [1, 2]}), json!({"a": []})),
            ("\"a.b\"", json!({"a.b": 1, "a": {"b": 2}}), json!({"a": {"b": 2}})),
            ("x.y", json!({"a": 1}), json!({"a": 1})),
        ] {
            let path = Place::read("keys[0]", place).unwrap();
            assert_eq!(changed(before.clone(), |payload| path.remove(payload)), after, "{place} in {before}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["", ".", "a.", ".a", "a[", "a[x]", "a[0]b", "[0]", "a..b", "a[-1]"] {
            assert!(Place::read("key", text).is_err(), "{text}");
        }
    }
}
