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
/// that itself contains a dot is found where the whole remaining path names it.
pub fn visit<'a>(payload: &'a Payload, path: &str, found: &mut dyn FnMut(&'a Value)) {
    descend(payload, path, &mut |value| visit_leaf(value, found));
}

/// As [`visit`], but visits what stands at the end of the path as it is written: an array once, not its elements.
pub fn visit_written<'a>(payload: &'a Payload, path: &str, found: &mut dyn FnMut(&'a Value)) {
    descend(payload, path, found);
}

fn descend<'a>(object: &'a Payload, path: &str, found: &mut dyn FnMut(&'a Value)) {
    if let Some(value) = object.get(path) {
        found(value);
        return;
    }
    let mut from = 0;
    while let Some(dot) = path[from..].find('.') {
        let (key, rest) = (&path[..from + dot], &path[from + dot + 1..]);
        if let Some(value) = object.get(key) {
            descend_value(value, rest, found);
            return;
        }
        from += dot + 1;
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
    fn a_number_is_read_as_the_one_that_was_written() {
        let number = 2.216_326_328_312_06e173_f64.next_down();
        let payload = parse(format!("{{\"a\":{number:e}}}").as_bytes()).unwrap();
        assert_eq!(payload["a"].as_f64(), Some(number));
        let filter = Filter::Equals { path: "a".to_owned(), value: Scalar::Float(number) };
        assert!(filter.matches(&PointId::Number(1), &payload, &|_| false));
    }
}
