//! Formulas, relevance feedback, distances within a sample, and what queries refuse: over REST and over gRPC, before a real node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/running.rs"]
mod running;

use std::time::Duration;

use http::StatusCode;
use nearring_proto::qdrant as pb;
use nearring_proto::qdrant::points_client::PointsClient;
use running::Running;
use serde_json::{Value, json};

const QUERY: &str = "/collections/things/points/query";

/// A collection of seven points: `n` from 1 to 7 at (n, 1), by dot product; odd ones have no price.
async fn start() -> Running {
    let running = running::start("", |_| ()).await;
    let vectors = json!({"vectors": {"size": 2, "distance": "Dot"}});
    for _ in 0..200 {
        if running.json("PUT", "/collections/things", vectors.clone()).await.0 == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let point = |n: u64| match n % 2 {
        0 => json!({"id": n, "vector": [n, 1], "payload": {"n": n, "price": n as f64 / 2.0, "at": "2024-05-01"}}),
        _ => json!({"id": n, "vector": [n, 1], "payload": {"n": n, "at": "2024-05-02T00:00:00Z"}}),
    };
    let points: Vec<Value> = (1..=7).map(point).collect();
    let (status, answer) = running.json("PUT", "/collections/things/points", json!({"points": points})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    running
}

async fn result(running: &Running, path: &str, body: Value) -> Value {
    let (status, mut answer) = running.json("POST", path, body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{body}: {answer}");
    answer["result"].take()
}

async fn hits(running: &Running, body: Value) -> Vec<(u64, f64)> {
    let found = result(running, QUERY, body).await;
    let hit = |hit: &Value| (hit["id"].as_u64().unwrap(), hit["score"].as_f64().unwrap());
    found["points"].as_array().unwrap().iter().map(hit).collect()
}

async fn refused(running: &Running, path: &str, body: Value) -> (StatusCode, String) {
    let (status, answer) = running.json("POST", path, body.clone()).await;
    assert!(!status.is_success(), "{body}: {answer}");
    (status, answer["status"]["error"].as_str().unwrap().to_owned())
}

fn same(found: &[pb::ScoredPoint], expected: &[(u64, f64)]) {
    let number = |hit: &pb::ScoredPoint| match hit.id.clone().unwrap().point_id_options.unwrap() {
        pb::point_id::PointIdOptions::Num(number) => number,
        other => panic!("{other:?}"),
    };
    let found: Vec<(u64, f64)> = found.iter().map(|hit| (number(hit), f64::from(hit.score))).collect();
    assert_eq!(found, expected);
}

fn expression(variant: pb::expression::Variant) -> pb::Expression {
    pb::Expression { variant: Some(variant) }
}

fn nearest(values: &[f32]) -> pb::VectorInput {
    pb::VectorInput { variant: Some(pb::vector_input::Variant::Dense(pb::DenseVector { data: values.to_vec() })) }
}

async fn grpc(running: &Running, query: pb::query::Variant, prefetch: Vec<pb::PrefetchQuery>) -> Vec<pb::ScoredPoint> {
    let mut points = PointsClient::connect(running.grpc.clone()).await.unwrap();
    let query = pb::QueryPoints {
        collection_name: "things".to_owned(),
        prefetch,
        query: Some(pb::Query { variant: Some(query) }),
        limit: Some(3),
        ..Default::default()
    };
    points.query(query).await.unwrap().into_inner().result
}

#[tokio::test(flavor = "multi_thread")]
async fn formulas_weigh_what_prefetches_found() {
    let running = start().await;
    let prefetch = json!({"query": [1, 0], "limit": 4});
    let boosted = json!({"sum": ["$score", {"mult": [10, {"key": "n", "match": {"value": 5}}]}, "price"]});
    let query = json!({"formula": boosted, "defaults": {"price": -1}});
    let body = json!({"prefetch": prefetch, "query": query, "limit": 3});
    let expected = vec![(5, 14.0), (6, 9.0), (4, 6.0)];
    // 7 has 6 as well: equal scores by id.
    assert_eq!(hits(&running, body.clone()).await, expected);
    let more = |key: &str, value: Value| {
        let mut body = body.clone();
        body[key] = value;
        body
    };
    assert_eq!(hits(&running, more("limit", json!(9))).await.len(), 4, "only what was found");
    assert_eq!(hits(&running, more("score_threshold", json!(9))).await, [(5, 14.0), (6, 9.0)]);
    assert_eq!(hits(&running, more("offset", json!(2))).await, [(4, 6.0), (7, 6.0)]);
    let filtered = hits(&running, more("filter", json!({"must": [{"key": "n", "range": {"lte": 4}}]}))).await;
    assert_eq!(filtered, [(4, 6.0), (2, 3.0), (3, 2.0)], "a query's filter holds for its prefetches");
    let found = result(&running, QUERY, more("with_payload", json!(["n"]))).await;
    assert_eq!(found["points"][0]["payload"], json!({"n": 5}));
    // A formula over two prefetches, of which one is a formula.
    let inner = json!({"prefetch": prefetch, "query": {"formula": {"neg": "n"}}, "limit": 2});
    let outer = json!({"sum": ["$score[0]", {"mult": ["$score[1]", 100]}]});
    let nested = json!({"prefetch": [inner, {"query": [1, 0], "limit": 1}], "query": {"formula": outer}});
    assert_eq!(hits(&running, nested).await, [(7, 700.0), (4, -4.0), (5, -5.0)]);
    let day = json!({"div": {"left": {"sum": [{"datetime_key": "at"}, {"neg": {"datetime": "2024-05-01"}}]}, "right": 86_400}});
    let by_day = json!({"prefetch": prefetch, "query": {"formula": {"sum": [day, {"has_vector": ""}]}}});
    assert_eq!(hits(&running, by_day).await, [(5, 2.0), (7, 2.0), (4, 1.0), (6, 1.0)]);
    let groups = json!({"prefetch": prefetch, "query": query, "group_by": "at", "group_size": 1});
    let groups = result(&running, "/collections/things/points/query/groups", groups).await;
    assert_eq!(groups["groups"][1]["hits"][0]["id"], 6);

    let variable = |name: &str| expression(pb::expression::Variant::Variable(name.to_owned()));
    let keyed = pb::FieldCondition {
        key: "n".to_owned(),
        r#match: Some(pb::Match { match_value: Some(pb::r#match::MatchValue::Integer(5)) }),
        ..Default::default()
    };
    let condition = pb::Condition { condition_one_of: Some(pb::condition::ConditionOneOf::Field(keyed)) };
    let mult = vec![
        expression(pb::expression::Variant::Constant(10.0)),
        expression(pb::expression::Variant::Condition(condition)),
    ];
    let mult = expression(pb::expression::Variant::Mult(pb::MultExpression { mult }));
    let sum = pb::SumExpression { sum: vec![variable("$score"), mult, variable("price")] };
    let formula = pb::Formula {
        expression: Some(expression(pb::expression::Variant::Sum(sum))),
        defaults: [("price".to_owned(), pb::Value { kind: Some(pb::value::Kind::IntegerValue(-1)) })].into(),
    };
    let asked = pb::PrefetchQuery {
        query: Some(pb::Query { variant: Some(pb::query::Variant::Nearest(nearest(&[1.0, 0.0]))) }),
        limit: Some(4),
        ..Default::default()
    };
    same(&grpc(&running, pb::query::Variant::Formula(formula), vec![asked]).await, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_turns_the_search() {
    let running = start().await;
    let feedback = json!([{"example": 2, "score": 0.5}, {"example": [0, 8], "score": 1.0}]);
    let naive = json!({"naive": {"a": 1, "b": 1, "c": 2}});
    let body = json!({"query": {"relevance_feedback": {"target": [1, 0], "feedback": feedback, "strategy": naive}}, "limit": 3});
    // n + 0.5 · 2 · (8 − (2n + 1)): those far away are pushed off.
    let expected = vec![(1, 6.0), (3, 4.0), (4, 3.0)];
    assert_eq!(hits(&running, body).await, expected, "and the example is left out");
    let item = |example, score| pb::FeedbackItem { example: Some(example), score };
    let id = pb::PointId { point_id_options: Some(pb::point_id::PointIdOptions::Num(2)) };
    let point = pb::VectorInput { variant: Some(pb::vector_input::Variant::Id(id)) };
    let naive = pb::NaiveFeedbackStrategy { a: 1.0, b: 1.0, c: 2.0 };
    let feedback = pb::RelevanceFeedbackInput {
        target: Some(nearest(&[1.0, 0.0])),
        feedback: vec![item(point, 0.5), item(nearest(&[0.0, 8.0]), 1.0)],
        strategy: Some(pb::FeedbackStrategy { variant: Some(pb::feedback_strategy::Variant::Naive(naive)) }),
    };
    same(&grpc(&running, pb::query::Variant::RelevanceFeedback(feedback), Vec::new()).await, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_compared_with_itself() {
    let running = start().await;
    let small = json!({"must": [{"key": "n", "range": {"lte": 3}}]});
    let body = json!({"sample": 100, "limit": 1, "filter": small});
    let pairs = result(&running, "/collections/things/points/search/matrix/pairs", body.clone()).await;
    let expected = json!([
        {"a": 1, "b": 3, "score": 4.0}, {"a": 2, "b": 3, "score": 7.0}, {"a": 3, "b": 2, "score": 7.0},
    ]);
    assert_eq!(pairs["pairs"], expected);
    let offsets = result(&running, "/collections/things/points/search/matrix/offsets", body).await;
    let expected = json!({
        "offsets_row": [0, 1, 2], "offsets_col": [2, 2, 1], "scores": [4.0, 7.0, 7.0], "ids": [1, 2, 3],
    });
    assert_eq!(offsets, expected);
    let drawn = result(&running, "/collections/things/points/search/matrix/offsets", json!({"sample": 4})).await;
    assert_eq!(drawn["ids"].as_array().unwrap().len(), 4);
    assert_eq!(drawn["scores"].as_array().unwrap().len(), 12);
    let alone = json!({"filter": {"must": [{"has_id": [1]}]}});
    assert_eq!(result(&running, "/collections/things/points/search/matrix/pairs", alone).await["pairs"], json!([]));

    let mut points = PointsClient::connect(running.grpc.clone()).await.unwrap();
    let asked = pb::SearchMatrixPoints {
        collection_name: "things".to_owned(),
        sample: Some(100),
        limit: Some(6),
        ..Default::default()
    };
    let pairs = points.search_matrix_pairs(asked.clone()).await.unwrap().into_inner().result.unwrap().pairs;
    let offsets = points.search_matrix_offsets(asked.clone()).await.unwrap().into_inner().result.unwrap();
    assert_eq!((pairs.len(), offsets.ids.len(), offsets.scores.len()), (42, 7, 42));
    for ((pair, row), column) in pairs.iter().zip(&offsets.offsets_row).zip(&offsets.offsets_col) {
        let at = |place: &u64| offsets.ids.get(usize::try_from(*place).unwrap()).cloned();
        assert_eq!((pair.a.clone(), pair.b.clone()), (at(row), at(column)));
    }
    let status = points.search_matrix_pairs(pb::SearchMatrixPoints { sample: Some(1), ..asked }).await.unwrap_err();
    assert_eq!((status.code(), status.message().contains("sample")), (tonic::Code::InvalidArgument, true), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_told_with_their_values() {
    let running = start().await;
    let found = result(
        &running,
        QUERY,
        json!({"query": {"order_by": {"key": "n", "direction": "desc"}}, "limit": 2, "offset": 1}),
    )
    .await;
    let told: Vec<&Value> = found["points"].as_array().unwrap().iter().map(|hit| &hit["order_value"]).collect();
    assert_eq!(told, [&json!(6), &json!(5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_query_may_not_ask_is_refused() {
    let running = start().await;
    let (bad, bounds) = (StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY);
    let all = json!({"query": [1, 0], "limit": 7});
    let formula = |formula: Value| json!({"prefetch": all, "query": {"formula": formula}});
    let feedback = |feedback: Value, b: f64| {
        let naive = json!({"naive": {"a": 1, "b": b, "c": 1}});
        json!({"query": {"relevance_feedback": {"target": [1, 0], "feedback": feedback, "strategy": naive}}})
    };
    for (body, status, word) in [
        (formula(json!("price")), bad, "number value for price in the payload and/or in the formula defaults"),
        (formula(json!({"ln": {"neg": "n"}})), bad, "produced a non-finite number"),
        (formula(json!({"div": {"left": 1}})), bad, "query.formula.div.right"),
        (json!({"query": {"formula": 1}}), bad, "without prefetches"),
        (json!({"query": {"fusion": "rrf"}}), bad, "without prefetches"),
        (json!({"prefetch": all, "query": {"fusion": "rrf"}, "using": "a"}), bad, "'using' field"),
        (json!({"prefetch": all}), bad, "Can't have prefetches without defining a query."),
        (json!({"score_threshold": 1}), bad, "Can't have score_threshold without defining a query."),
        (json!({"query": {"order_by": "n"}, "score_threshold": 1}), bad, "score_threshold with an order_by query"),
        (json!({"query": [1, 0], "limit": 0}), bounds, "[internal.limit: value 0 invalid, must be 1 or larger]"),
        (json!({"query": [1, 0], "params": {"hnsw_ef": 0}}), bounds, "params.hnsw_ef"),
        (json!({"query": {"recommend": {"positive": []}}}), bounds, "recommend"),
        (feedback(json!([]), 1.0), bounds, "feedback elements must be non-empty"),
        (feedback(json!([{"example": 1, "score": 1}]), -1.0), bounds, "naive.b: value -1.0 invalid"),
        (feedback(json!([{"example": 99, "score": 1}]), 1.0), StatusCode::NOT_FOUND, "No point with id 99 found"),
        (json!({"query": [1, 0, 0]}), bad, "Vector dimension error: expected dim: 2, got 3"),
        (json!({"query": [1, 0], "using": "a"}), bad, "Not existing vector name error: a"),
        (json!({"query": [1, 0], "with_vector": ["a"]}), bad, "Not existing vector name error: a"),
        (json!({"query": [1, 0], "lookup_from": {"collection": "nowhere"}}), StatusCode::NOT_FOUND, "nowhere"),
    ] {
        let (told, message) = refused(&running, QUERY, body.clone()).await;
        assert_eq!((told, message.contains(word)), (status, true), "{body}: {message}");
    }
    for (path, body) in [
        ("/collections/things/points/scroll", json!({"with_vector": ["a"]})),
        ("/collections/things/points", json!({"ids": [1], "with_vector": ["a"]})),
        ("/collections/things/points/search/matrix/pairs", json!({"using": "a"})),
    ] {
        let (told, message) = refused(&running, path, body).await;
        assert_eq!((told, message.contains("Not existing vector name error: a")), (bad, true), "{path}: {message}");
    }
}
