//! Payloads: JSON objects, and how a path reads one.
use serde_json::{Map, Value};

/// A point's payload.
pub type Payload = Map<String, Value>;

/// Why bytes are not a payload.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayloadError {
    /// Not JSON.
    #[error("is not valid JSON: {0}")]
    Json(String),
    /// JSON, but not an object.
    #[error("must be a JSON object")]
    NotAnObject,
}

/// Parses payload bytes; empty bytes are an empty payload.
///
/// # Errors
/// [`PayloadError`] where they are not a JSON object.
pub fn parse(bytes: &[u8]) -> Result<Payload, PayloadError> {
    if bytes.is_empty() {
        return Ok(Payload::new());
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(PayloadError::NotAnObject),
        Err(error) => Err(PayloadError::Json(error.to_string())),
    }
}

/// Visits every value that `path` names: keys joined by dots, descending through arrays element by element (`tags`
/// over `["a","b"]` visits the array's elements as well as paths like `items.name` over an array of objects). A key
/// that itself contains a dot is found where the whole remaining path names it. Brackets behind a key choose among the
/// items of its array: `tags[0]` the first, `tags[]` each. A key in quotes is meant letter for letter: `"a.b".c`.
pub fn visit<'a>(payload: &'a Payload, path: &str, found: &mut dyn FnMut(&'a Value)) {
    descend(payload, path, &mut |value| visit_leaf(value, found));
}

/// As [`visit`], but visits what stands at the end of the path as it is written: an array once, not its elements.
pub fn visit_written<'a>(payload: &'a Payload, path: &str, found: &mut dyn FnMut(&'a Value)) {
    descend(payload, path, found);
}

fn descend<'a>(object: &'a Payload, path: &str, found: &mut dyn FnMut(&'a Value)) {
    if at_key(object, path, found) {
        return;
    }
    if let Some((key, rest)) = path.strip_prefix('"').and_then(|path| path.split_once('"')) {
        let (places, rest) = rest.split_once('.').map_or((rest, None), |(places, rest)| (places, Some(rest)));
        if let Some(value) = object.get(key) {
            at_places(value, places, &mut |value| match rest {
                Some(rest) => descend_value(value, rest, found),
                None => found(value),
            });
        }
        return;
    }
    let mut from = 0;
    while let Some(dot) = path[from..].find('.') {
        let (key, rest) = (&path[..from + dot], &path[from + dot + 1..]);
        if at_key(object, key, &mut |value| descend_value(value, rest, found)) {
            return;
        }
        from += dot + 1;
    }
}

/// Visits what a key with its brackets names; whether there is such a key.
fn at_key<'a>(object: &'a Payload, key: &str, found: &mut dyn FnMut(&'a Value)) -> bool {
    if let Some(value) = object.get(key) {
        found(value);
        return true;
    }
    let Some((key, places)) = key.find('[').map(|at| key.split_at(at)) else { return false };
    if places.contains('.') {
        return false; // more than a key with its brackets
    }
    let value = if key.is_empty() { None } else { object.get(key) };
    value.map(|value| at_places(value, places, found)).is_some()
}

/// Visits the items that brackets, and nothing but brackets, name.
fn at_places<'a>(value: &'a Value, places: &str, found: &mut dyn FnMut(&'a Value)) {
    if places.is_empty() {
        return found(value);
    }
    let place = places.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (Some((place, rest)), Value::Array(items)) = (place, value) else { return };
    match (place, place.parse::<usize>()) {
        ("", _) => items.iter().for_each(|item| at_places(item, rest, found)),
        (_, Ok(at)) => items.get(at).into_iter().for_each(|item| at_places(item, rest, found)),
        (_, Err(_)) => {}
    }
}

fn descend_value<'a>(value: &'a Value, path: &str, found: &mut dyn FnMut(&'a Value)) {
    match value {
        Value::Object(object) => descend(object, path, found),
        Value::Array(items) => items.iter().for_each(|item| descend_value(item, path, found)),
        _ => {}
    }
}

fn visit_leaf<'a>(value: &'a Value, found: &mut dyn FnMut(&'a Value)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| visit_leaf(item, found)),
        other => found(other),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::filter::{Filter, Scalar};
    use crate::ids::PointId;

    #[test]
    fn brackets_choose_items() {
        let payload = parse(br#"{"a":[[1,2],[3,4,5]],"b":[{"c":[6,7]},{"c":[8]}],"d[0]":9,"e":1}"#).unwrap();
        let seen = |path: &str| {
            let mut seen = Vec::new();
            visit(&payload, path, &mut |value| seen.push(value.as_i64().unwrap()));
            seen
        };
        assert_eq!(seen("a[0]"), [1, 2]);
        assert_eq!(seen("a[1][2]"), [5]);
        assert_eq!(seen("a[][1]"), [2, 4]);
        assert_eq!(seen("a[][]"), [1, 2, 3, 4, 5]);
        assert_eq!(seen("b[1].c"), [8]);
        assert_eq!(seen("b[].c[0]"), [6, 8]);
        assert_eq!(seen("b[].c"), [6, 7, 8]);
        assert_eq!(seen("d[0]"), [9]);
        for nothing in ["a[2]", "a[x]", "a[0", "e[0]", "e[]", "[0]", "a[0]x", "f[0]"] {
            assert!(seen(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn keys_in_quotes_are_meant_letter_for_letter() {
        let payload = parse(br#"{"a.b":{"c":1},"a":{"b":{"c":2}},"":[{"d.e":3}]}"#).unwrap();
        for (path, wanted) in
            [("\"a.b\".c", vec![1]), ("a.b.c", vec![2]), ("\"a\".b.c", vec![2]), ("\"\"[0].\"d.e\"", vec![3])]
        {
            let mut seen = Vec::new();
            visit(&payload, path, &mut |value| seen.push(value.as_i64().unwrap()));
            assert_eq!(seen, wanted, "{path}");
        }
        for nothing in ["\"a", "\"b\"", "\"a\"b", "\"a\"[0]"] {
            visit(&payload, nothing, &mut |value| panic!("{nothing} is {value}"));
        }
    }

    #[test]
    fn a_number_is_read_as_the_one_that_was_written() {
        let number = 2.216_326_328_312_06e173_f64.next_down();
        let payload = parse(format!("{{\"a\":{number:e}}}").as_bytes()).unwrap();
        assert_eq!(payload["a"].as_f64(), Some(number));
        let filter = Filter::Equals { path: "a".to_owned(), value: Scalar::Float(number) };
        assert!(filter.matches(&PointId::Number(1), &payload, &|_| false));
    }
}
