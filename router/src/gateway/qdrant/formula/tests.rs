#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;

use bytes::Bytes;
use nearring_proto::hit::Hit;
use nearring_proto::ids::PointId;
use nearring_proto::payload;
use serde_json::{Value, json};

use super::{Formula, FormulaError, Looked};

fn formula(formula: Value, defaults: Value) -> Formula {
    Formula::read(&formula, defaults.as_object(), &Default::default()).unwrap()
}

fn score(written: Value, defaults: Value, held: Value, scores: &[Option<f32>]) -> Result<f32, FormulaError> {
    let payload = payload::parse(held.to_string().as_bytes()).unwrap();
    let has_vector = |name: &str| name == "there";
    let looked = Looked { id: &PointId::Number(7), payload: &payload, has_vector: &has_vector, scores };
    formula(written, defaults).score(&looked)
}

fn value(written: Value) -> f32 {
    let held = json!({
        "n": 3, "half": 0.5, "one": [4], "several": [1, 2], "none": [], "null": null, "text": "x",
        "inner": {"n": -2}, "items": [{"n": 1}, {"n": 9}],
        "berlin": {"lon": 13.4050, "lat": 52.52}, "day": "2024-05-01", "instant": "1970-01-01T00:00:01.5Z",
    });
    score(written, json!({}), held, &[Some(0.25), None, Some(2.0)]).unwrap()
}

#[test]
fn every_expression_has_its_value() {
    for (written, expected) in [
        (json!(2.5), 2.5),
        (json!("$score"), 0.25),
        (json!("$score[0]"), 0.25),
        (json!("$score[1]"), 0.0),
        (json!("$score[2]"), 2.0),
        (json!("$score[9]"), 0.0),
        (json!("n"), 3.0),
        (json!("one"), 4.0),
        (json!("inner.n"), -2.0),
        (json!("several[1]"), 2.0),
        (json!("items[1].n"), 9.0),
        (json!({"sum": ["n", 1, "half"]}), 4.5),
        (json!({"sum": []}), 0.0),
        (json!({"mult": ["n", 2, "half"]}), 3.0),
        (json!({"mult": []}), 1.0),
        (json!({"max": ["n", 7, "half"]}), 7.0),
        (json!({"min": ["n", 7, "half"]}), 0.5),
        (json!({"acosh": 1}), 0.0),
        (json!({"neg": "n"}), -3.0),
        (json!({"abs": "inner.n"}), 2.0),
        (json!({"div": {"left": "n", "right": 2}}), 1.5),
        (json!({"div": {"left": 0, "right": 0}}), 0.0),
        (json!({"div": {"left": "n", "right": 0, "by_zero_default": 8}}), 8.0),
        (json!({"sqrt": 16}), 4.0),
        (json!({"pow": {"base": "n", "exponent": 2}}), 9.0),
        (json!({"pow": {"base": "inner.n", "exponent": 3}}), -8.0),
        (json!({"exp": 0}), 1.0),
        (json!({"log10": 1000}), 3.0),
        (json!({"ln": 1}), 0.0),
        (json!({"datetime": "1970-01-02T00:00:00Z"}), 86_400.0),
        (json!({"datetime_key": "instant"}), 1.5),
        (json!({"sum": [{"datetime_key": "day"}, {"neg": {"datetime": "2024-04-30 23:00:00"}}]}), 3600.0),
        (json!({"lin_decay": {"x": 0}}), 1.0),
        (json!({"lin_decay": {"x": 1}}), 0.5),
        (json!({"lin_decay": {"x": 7, "target": 3, "midpoint": 0.25, "scale": 4}}), 0.25),
        (json!({"lin_decay": {"x": 100}}), 0.0),
        (json!({"exp_decay": {"x": 8, "target": "n", "scale": 5}}), 0.5),
        (json!({"gauss_decay": {"x": -2, "target": "n", "scale": 5, "midpoint": 0.125}}), 0.125),
        (json!({"key": "n", "range": {"gte": 3}}), 1.0),
        (json!({"key": "text", "match": {"value": "y"}}), 0.0),
        (json!({"must_not": [{"has_id": [8]}]}), 1.0),
        (json!({"has_vector": "there"}), 1.0),
        (json!({"has_vector": "elsewhere"}), 0.0),
        (json!({"is_null": {"key": "null"}}), 1.0),
        (json!({}), 1.0),
    ] {
        assert_eq!(value(written.clone()), expected, "{written}");
    }
    let london = json!({"geo_distance": {"origin": {"lon": -0.1278, "lat": 51.5074}, "to": "berlin"}});
    assert!((value(london) - 931_600.0).abs() < 1000.0);
}

#[test]
fn numbers_of_requests_are_single_precision_and_steps_are_not() {
    assert_eq!(value(json!({"mult": [{"sum": [0.4, {"neg": 0.4}]}, 1e30]})), 0.0);
    let third = f64::from(0.1_f32) * f64::from(0.1_f32) * 1e9;
    assert_eq!(value(json!({"mult": [0.1, 0.1, 1e9]})), third as f32);
}

#[test]
fn what_is_not_reached_may_be_missing() {
    assert_eq!(value(json!({"mult": [0, "nowhere"]})), 0.0);
    assert_eq!(value(json!({"div": {"left": 0, "right": "nowhere"}})), 0.0);
}

#[test]
fn defaults_stand_in() {
    let defaults = json!({"n": 5, "$score[1]": 0.75, "place": {"lon": 0, "lat": 0}, "list[]": 2, "day": "1970-01-01"});
    let with = |written, held| score(written, defaults.clone(), held, &[None]).unwrap();
    assert_eq!(with(json!("n"), json!({})), 5.0);
    assert_eq!(with(json!("n"), json!({"n": []})), 5.0);
    let held = payload::parse(br#"{"n": null}"#).unwrap();
    let looked = Looked { id: &PointId::Number(7), payload: &held, has_vector: &|_| false, scores: &[] };
    let mut of_null = formula(json!("n"), json!({"n": 5}));
    assert!(of_null.score(&looked).is_err(), "a null is a value");
    of_null.indexed.insert("n".to_owned());
    assert_eq!(of_null.score(&looked), Ok(5.0), "but not to an index");
    assert_eq!(with(json!("n"), json!({"n": 1})), 1.0);
    assert_eq!(with(json!("$score[1]"), json!({})), 0.75);
    assert_eq!(with(json!("$score"), json!({})), 0.0);
    assert_eq!(with(json!("list"), json!({})), 2.0);
    assert_eq!(with(json!({"datetime_key": "day"}), json!({})), 0.0);
    assert_eq!(with(json!({"geo_distance": {"origin": {"lon": 0, "lat": 0}, "to": "place"}}), json!({})), 0.0);
}

#[test]
fn a_point_without_the_value_fails() {
    for (written, held) in [
        (json!("n"), json!({})),
        (json!("n"), json!({"n": "3"})),
        (json!("n"), json!({"n": null})),
        (json!("n"), json!({"n": true})),
        (json!("n"), json!({"n": [1, 2]})),
        (json!({"datetime_key": "n"}), json!({"n": 3})),
        (json!({"datetime_key": "n"}), json!({"n": "soon"})),
        (json!({"geo_distance": {"origin": {"lon": 0, "lat": 0}, "to": "n"}}), json!({"n": {"lon": 200, "lat": 0}})),
    ] {
        let error = score(written.clone(), json!({}), held, &[]).unwrap_err();
        assert!(matches!(error, FormulaError::Value { ref path, .. } if path == "n"), "{written}: {error}");
        assert!(error.to_string().contains("in the payload and/or in the formula defaults"), "{error}");
    }
}

#[test]
fn what_is_not_finite_fails() {
    for written in [
        json!({"div": {"left": 1, "right": 0}}),
        json!({"sqrt": -1}),
        json!({"pow": {"base": 0, "exponent": -5}}),
        json!({"pow": {"base": -1, "exponent": 0.5}}),
        json!({"exp": 1000}),
        json!({"log10": 0}),
        json!({"ln": -1}),
        json!({"acosh": 0.5}),
        json!({"mult": [1e38, 1e38]}),
    ] {
        let error = score(written.clone(), json!({}), json!({}), &[]).unwrap_err();
        assert!(matches!(error, FormulaError::NotFinite(_)), "{written}: {error}");
        assert!(error.to_string().ends_with("produced a non-finite number"), "{error}");
    }
}

#[test]
fn malformed_formulas_are_refused_by_their_place() {
    let nested = (0..70).fold(json!(1), |inner, _| json!({"neg": inner}));
    let many = json!({"sum": vec![1; 1024]});
    for (written, defaults, place) in [
        (json!({"sum": [1, {"div": {"right": 2}}]}), json!({}), "query.formula.sum[1].div.left: is missing"),
        (json!({"sum": 1}), json!({}), "query.formula.sum: "),
        (json!({"max": []}), json!({}), "query.formula.max: "),
        (json!([1]), json!({}), "query.formula: "),
        (json!(true), json!({}), "query.formula: "),
        (json!("$scores"), json!({}), "query.formula: Invalid reserved variable"),
        (json!("$score[x]"), json!({}), "query.formula: Invalid reserved variable"),
        (json!("$score[1].a"), json!({}), "query.formula: Invalid reserved variable"),
        (json!(""), json!({}), "query.formula: "),
        (json!({"cube": 2}), json!({}), "query.formula: has the keys [\"cube\"]"),
        (json!({"sum": [1], "mult": [1]}), json!({}), "query.formula: has the keys"),
        (json!({"neg": {"key": "a", "match": {"valeu": 1}}}), json!({}), "query.formula.neg: has the keys"),
        (json!({"datetime": "soon"}), json!({}), "query.formula.datetime: "),
        (json!({"geo_distance": {"origin": {"lon": 0, "lat": 91}, "to": "a"}}), json!({}), "geo_distance.origin: "),
        (json!({"geo_distance": {"origin": {"lon": 0, "lat": 0}}}), json!({}), "geo_distance.to: "),
        (json!({"lin_decay": {"x": 1, "midpoint": 1.5}}), json!({}), "lin_decay.midpoint: "),
        (json!({"exp_decay": {"x": 1, "midpoint": 0}}), json!({}), "exp_decay.midpoint: "),
        (json!({"gauss_decay": {"x": 1, "scale": 0}}), json!({}), "gauss_decay.scale: "),
        (json!({"gauss_decay": {"scale": 1}}), json!({}), "gauss_decay.x: is missing"),
        (json!({"div": {"left": 1, "right": 1, "by_zero_default": "a"}}), json!({}), "div.by_zero_default: "),
        (json!(1e300), json!({}), "query.formula: "),
        (json!(1), json!({"$score": "high"}), "query.defaults.$score: "),
        (json!(1), json!({"$unknown": 1}), "query.defaults.$unknown: "),
        (nested, json!({}), "nests deeper"),
        (many, json!({}), "parts"),
    ] {
        let error = Formula::read(&written, defaults.as_object(), &Default::default()).unwrap_err();
        assert!(error.message.contains(place), "{written}: {error}");
    }
}

#[test]
fn points_are_ranked_once_each() {
    let hit = |number: u64, score: f32, n: i64| Hit {
        id: PointId::Number(number),
        score,
        version: Default::default(),
        payload_json: Bytes::from(json!({"n": n}).to_string()),
        vectors: BTreeMap::new(),
    };
    let lists = || vec![vec![hit(1, 0.5, 1), hit(2, 0.25, 9)], vec![hit(3, 4.0, 1), hit(1, 2.0, 1)]];
    let ranked = |formula: &Formula, least, limit| {
        let hits = formula.rank(lists(), least, limit).unwrap();
        hits.into_iter().map(|hit| (hit.id.to_string(), hit.score)).collect::<Vec<_>>()
    };
    let id = |number: u64| PointId::Number(number).to_string();
    let sum = formula(json!({"sum": ["$score", "$score[1]", "n"]}), json!({"$score": 0.5}));
    assert_eq!(ranked(&sum, None, 10), [(id(2), 9.25), (id(3), 5.5), (id(1), 3.5)]);
    assert_eq!(ranked(&sum, Some(5.5), 10), [(id(2), 9.25), (id(3), 5.5)]);
    assert_eq!(ranked(&sum, None, 1), [(id(2), 9.25)]);
    let flat = formula(json!(1), json!({}));
    assert_eq!(ranked(&flat, None, 2), [(id(1), 1.0), (id(2), 1.0)], "equal scores by id");
    assert!(formula(json!({"ln": {"sum": ["n", -1]}}), json!({})).rank(lists(), None, 1).is_err(), "any point");
}
