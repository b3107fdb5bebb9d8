//! Qdrant's REST API over HTTP, before a real node, in the bodies that Qdrant's own clients send.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/running.rs"]
mod running;

use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use nearring_proto::qdrant as pb;
use nearring_proto::qdrant::collections_client::CollectionsClient;
use nearring_proto::qdrant::points_client::PointsClient;
use nearring_proto::qdrant::qdrant_client::QdrantClient;
use running::Running;
use serde_json::{Value, json};

async fn start() -> Running {
    running::start("", |_| ()).await
}

/// The calls, and what is expected of every answer.
trait Qdrant {
    /// The result of a call that must succeed.
    async fn result(&self, call: &str, body: Value) -> Value;
    /// The error of a call that must be refused.
    async fn refused(&self, call: &str, body: Value) -> (StatusCode, String);
    /// Creates `things` once the node has formed its cluster, with seven points.
    async fn with_things(self) -> Self;
    /// The ids that a filter finds, by scroll and count alike.
    async fn found(&self, filter: Value) -> Vec<u64>;
}

fn split(call: &str) -> (&str, &str) {
    call.split_once(' ').unwrap()
}

impl Qdrant for Running {
    async fn result(&self, call: &str, body: Value) -> Value {
        let (method, path) = split(call);
        let (status, mut answer) = self.json(method, path, body).await;
        assert_eq!((status, &answer["status"]), (StatusCode::OK, &json!("ok")), "{call}: {answer}");
        assert!(answer["time"].as_f64().unwrap() >= 0.0);
        answer["result"].take()
    }

    async fn refused(&self, call: &str, body: Value) -> (StatusCode, String) {
        let (method, path) = split(call);
        let (status, answer) = self.json(method, path, body).await;
        assert!(!status.is_success(), "{call}: {answer}");
        (status, answer["status"]["error"].as_str().unwrap().to_owned())
    }

    async fn with_things(self) -> Self {
        let vectors = json!({"vectors": {"size": 2, "distance": "Dot"}});
        for _ in 0..200 {
            if self.json("PUT", "/collections/things", vectors.clone()).await.0 == StatusCode::OK {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (field, kind) in [("n", "integer"), ("kind", "keyword")] {
            self.result("PUT /collections/things/index?wait=true", json!({"field_name": field, "field_schema": kind}))
                .await;
        }
        let text = |n: u64| if n.is_multiple_of(2) { "The quick brown fox" } else { "A lazy dog" };
        let point = |n: u64| {
            json!({"id": n, "vector": [n, 1], "payload": {
                "n": n, "kind": if n < 4 { "small" } else { "large" }, "text": text(n),
                "at": format!("2024-05-0{n}T12:00:00Z"), "list": vec![n; n as usize], "none": null,
                "place": {"lon": 13.0 + n as f64, "lat": 52.0},
                "parts": [{"name": "bolt", "count": n}, {"name": "nut", "count": 10 - n}],
            }})
        };
        let points: Vec<Value> = (1..=7).map(point).collect();
        let written = self.result("PUT /collections/things/points?wait=true", json!({"points": points})).await;
        assert_eq!(written["status"], "completed");
        self
    }

    async fn found(&self, filter: Value) -> Vec<u64> {
        let page = self.result("POST /collections/things/points/scroll", json!({"filter": filter, "limit": 100})).await;
        let ids: Vec<u64> =
            page["points"].as_array().unwrap().iter().map(|point| point["id"].as_u64().unwrap()).collect();
        let count =
            self.result("POST /collections/things/points/count", json!({"filter": filter, "exact": true})).await;
        assert_eq!(count["count"], ids.len(), "{filter}");
        ids
    }
}

/// The ids of hits, in their order.
fn ids(hits: &Value) -> Vec<u64> {
    hits.as_array().unwrap().iter().map(|hit| hit["id"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_of_every_kind_find_what_they_say() {
    let running = start().await.with_things().await;
    let must = |condition: Value| json!({"must": [condition]});
    let is = |key: &str, what: &str, value: Value| json!({"key": key, what: value});
    for (filter, wanted) in [
        (json!({}), vec![1, 2, 3, 4, 5, 6, 7]),
        (must(is("kind", "match", json!({"value": "small"}))), vec![1, 2, 3]),
        (must(is("n", "match", json!({"any": [2, 5, 99]}))), vec![2, 5]),
        (must(is("kind", "match", json!({"except": ["small"]}))), vec![4, 5, 6, 7]),
        (must(is("text", "match", json!({"text": "quick"}))), vec![2, 4, 6]),
        (must(is("n", "range", json!({"gt": 2, "lte": 4}))), vec![3, 4]),
        (must(is("at", "range", json!({"gte": "2024-05-06T00:00:00+00:00"}))), vec![6, 7]),
        (must(is("at", "range", json!({"lt": "2024-05-02"}))), vec![1]),
        (must(is("list", "values_count", json!({"gte": 6}))), vec![6, 7]),
        (must(json!({"is_null": {"key": "none"}})), vec![1, 2, 3, 4, 5, 6, 7]),
        (must(json!({"is_empty": {"key": "nowhere"}})), vec![1, 2, 3, 4, 5, 6, 7]),
        (must(json!({"has_id": [7, 3, 1000]})), vec![3, 7]),
        (must(json!({"has_vector": ""})), vec![1, 2, 3, 4, 5, 6, 7]),
        (
            must(is(
                "place",
                "geo_bounding_box",
                json!({
                    "top_left": {"lon": 13.5, "lat": 53.0}, "bottom_right": {"lon": 15.5, "lat": 51.0}
                }),
            )),
            vec![1, 2],
        ),
        (
            must(is("place", "geo_radius", json!({"center": {"lon": 20.0, "lat": 52.0}, "radius": 70_000.0}))),
            vec![6, 7],
        ),
        (
            must(is(
                "place",
                "geo_polygon",
                json!({"exterior": {"points": [
                    {"lon": 15.5, "lat": 51.0}, {"lon": 17.5, "lat": 51.0}, {"lon": 17.5, "lat": 53.0},
                    {"lon": 15.5, "lat": 53.0}, {"lon": 15.5, "lat": 51.0}
                ]}}),
            )),
            vec![3, 4],
        ),
        // One part alone must match both; over any of the parts it would be all but one.
        (
            must(json!({"nested": {"key": "parts", "filter": {"must": [
                {"key": "name", "match": {"value": "bolt"}}, {"key": "count", "range": {"gte": 6}}
            ]}}})),
            vec![6, 7],
        ),
        (must(is("parts[].count", "match", json!({"value": 9}))), vec![1]),
        (
            json!({"must_not": [{"has_id": [1, 2, 3]}], "should": [
            {"key": "n", "match": {"value": 2}}, {"key": "n", "match": {"value": 5}}]}),
            vec![5],
        ),
        (
            json!({"min_should": {"min_count": 2, "conditions": [
                {"key": "n", "range": {"gt": 3}}, {"key": "n", "range": {"lt": 6}}, {"key": "kind", "match": {"value": "small"}}
            ]}}),
            vec![1, 2, 3, 4, 5],
        ),
        (must(json!({"should": [{"has_id": [1]}, {"must": [{"has_id": [4]}]}]})), vec![1, 4]),
    ] {
        assert_eq!(running.found(filter.clone()).await, wanted, "{filter}");
        let body = json!({"query": [1, 0], "filter": filter, "limit": 10, "params": {"exact": true}});
        let hits = running.result("POST /collections/things/points/query", body).await;
        let hits: BTreeSet<u64> = ids(&hits["points"]).into_iter().collect();
        assert_eq!(hits, wanted.iter().copied().collect(), "a search finds the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_rank_fuse_and_group() {
    let running = start().await.with_things().await;
    let ask = |body: Value| {
        let running = &running;
        async move { running.result("POST /collections/things/points/query", body).await["points"].take() }
    };
    let hits = ask(json!({"query": [1, 0], "limit": 3, "with_payload": ["n"], "with_vector": true})).await;
    assert_eq!(ids(&hits), [7, 6, 5]);
    assert_eq!((&hits[0]["score"], &hits[0]["payload"]), (&json!(7.0), &json!({"n": 7})));
    assert_eq!(hits[0]["vector"], json!([7.0, 1.0]));
    assert_eq!(ids(&ask(json!({"query": {"nearest": [-1, 0]}, "limit": 2, "offset": 1})).await), [2, 3]);
    assert_eq!(ids(&ask(json!({"query": 1, "limit": 2})).await), [7, 6], "by a point, which is not among them");
    assert_eq!(ids(&ask(json!({"query": [1, 0], "score_threshold": 5.5})).await), [7, 6]);
    assert_eq!(ids(&ask(json!({"query": {"order_by": {"key": "n", "direction": "asc"}}, "limit": 2})).await), [1, 2]);
    assert_eq!(ids(&ask(json!({"query": {"sample": "random"}, "limit": 100})).await).len(), 7);
    let recommend = json!({"query": {"recommend": {"positive": [7], "negative": [1]}}, "limit": 2});
    assert_eq!(ids(&ask(recommend).await), [6, 5]);
    // Products with the things [n, 1]: by the likest example, by all of them added up, and by sides of pairs.
    let recommend = |strategy: &str| json!({"query": {"recommend": {"positive": [[1, 0]], "negative": [[-1, 8]], "strategy": strategy}}, "limit": 2});
    let hits = ask(recommend("best_score")).await;
    assert_eq!((ids(&hits), &hits[0]["score"]), (vec![7, 6], &json!(0.9375)));
    let hits = ask(recommend("sum_scores")).await;
    assert_eq!((ids(&hits), &hits[0]["score"]), (vec![7, 6], &json!(6.0)));
    let pair = json!({"positive": [-1, 4], "negative": [1, -4]});
    let hits = ask(json!({"query": {"discover": {"target": [1, 0], "context": [pair]}}, "limit": 2})).await;
    assert_eq!((ids(&hits), &hits[0]["score"]), (vec![3, 2], &json!(1.875)), "beyond 4 it is on the other side");
    let hits = ask(json!({"query": {"context": pair}, "limit": 7})).await;
    let inside: BTreeSet<u64> = ids(&hits).into_iter().take(3).collect();
    assert_eq!((inside, &hits[2]["score"]), (BTreeSet::from([1, 2, 3]), &json!(0.0)));
    let older = json!({"target": [1, 0], "context": [pair], "limit": 2, "filter": {"must_not": [{"has_id": [3]}]}});
    assert_eq!(ids(&running.result("POST /collections/things/points/discover", older).await), [2, 1]);
    // Who is second in both lists wins over those who lead one.
    let lists = json!([
        {"query": [1, 0], "limit": 3, "filter": {"must": [{"has_id": [3, 4]}]}},
        {"query": [-1, 0], "limit": 3, "filter": {"must": [{"has_id": [2, 3]}]}},
    ]);
    for fusion in ["rrf", "dbsf"] {
        let hits = ask(json!({"prefetch": lists, "query": {"fusion": fusion}, "limit": 10})).await;
        assert_eq!(ids(&hits)[0], 3, "{fusion}: {hits}");
        assert_eq!(ids(&hits).len(), 3);
    }
    let nested = json!({"prefetch": {"query": [-1, 0], "limit": 3}, "query": [1, 0], "limit": 2});
    assert_eq!(ids(&ask(nested).await), [3, 2], "the best of the first three");
    let two = json!({"searches": [{"query": [1, 0], "limit": 1}, {"query": [-1, 0], "limit": 1}]});
    let two = running.result("POST /collections/things/points/query/batch", two).await;
    assert_eq!([ids(&two[0]["points"]), ids(&two[1]["points"])], [[7], [1]]);
    let groups = json!({"query": [1, 0], "group_by": "kind", "group_size": 2, "limit": 2});
    let groups = running.result("POST /collections/things/points/query/groups", groups).await;
    let of = |at: usize| (groups["groups"][at]["id"].as_str().unwrap().to_owned(), ids(&groups["groups"][at]["hits"]));
    assert_eq!([of(0), of(1)], [("large".to_owned(), vec![7, 6]), ("small".to_owned(), vec![3, 2])]);
    let facet = running.result("POST /collections/things/facet", json!({"key": "kind", "exact": true})).await;
    assert_eq!(facet["hits"], json!([{"value": "large", "count": 4}, {"value": "small", "count": 3}]));
    let older = json!({"vector": [1, 0], "limit": 2, "with_payload": false});
    assert_eq!(ids(&running.result("POST /collections/things/points/search", older).await), [7, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_go_on_where_they_ended() {
    let running = start().await.with_things().await;
    let (mut seen, mut offset) = (Vec::new(), Value::Null);
    loop {
        let body = json!({"limit": 3, "offset": offset, "with_payload": false});
        let page = running.result("POST /collections/things/points/scroll", body).await;
        seen.extend(ids(&page["points"]));
        offset = page["next_page_offset"].clone();
        if offset.is_null() {
            break;
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
    let body = json!({"order_by": {"key": "n", "direction": "desc", "start_from": 5}, "limit": 2});
    let page = running.result("POST /collections/things/points/scroll", body).await;
    assert_eq!(ids(&page["points"]), [5, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn points_change_as_they_are_told_to() {
    let running = start().await.with_things().await;
    let points = "/collections/things/points";
    let one = |id: &'static str| {
        let running = &running;
        async move { running.result(&format!("GET {points}/{id}"), json!({})).await }
    };
    let columns = json!({"batch": {"ids": [8, "0b4b0c5e-6c5a-4f0e-8b8e-000000000001", "any text"],
        "vectors": [[8, 1], [9, 1], [10, 1]], "payloads": [{"n": 8}, null, {"n": 10}]}});
    running.result(&format!("PUT {points}"), columns).await;
    assert_eq!(one("any%20text").await["payload"]["n"], 10);
    assert_eq!(one("0b4b0c5e-6c5a-4f0e-8b8e-000000000001").await["vector"], json!([9.0, 1.0]));

    running.result(&format!("POST {points}/payload"), json!({"payload": {"more": {"deep": 1}}, "points": [8]})).await;
    running
        .result(&format!("POST {points}/payload"), json!({"payload": {"next": 2}, "key": "more", "points": [8]}))
        .await;
    assert_eq!(one("8").await["payload"], json!({"n": 8, "more": {"deep": 1, "next": 2}}));
    running.result(&format!("POST {points}/payload/delete"), json!({"keys": ["more.deep"], "points": [8]})).await;
    assert_eq!(one("8").await["payload"], json!({"n": 8, "more": {"next": 2}}));
    // A null takes a key away.
    let nulls = [
        json!({"payload": {"next": null, "last": 3}, "key": "more", "points": [8]}),
        json!({"payload": {"n": null, "m": 9, "none": null}, "filter": {"must": [{"has_id": [8]}]}}),
        json!({"payload": {"m": null, "n": 8}, "points": [8]}),
    ];
    for body in nulls {
        running.result(&format!("POST {points}/payload"), body).await;
    }
    assert_eq!(one("8").await["payload"], json!({"n": 8, "more": {"last": 3}}));
    let by_filter = json!({"payload": {"only": true}, "filter": {"must": [{"key": "n", "match": {"value": 8}}]}});
    running.result(&format!("PUT {points}/payload"), by_filter).await;
    assert_eq!(one("8").await["payload"], json!({"only": true}));
    running.result(&format!("POST {points}/payload/clear"), json!({"points": [8]})).await;
    assert_eq!(one("8").await["payload"], json!({}));
    running.result(&format!("PUT {points}/vectors"), json!({"points": [{"id": 8, "vector": [80, 2]}]})).await;
    assert_eq!(one("8").await["vector"], json!([80.0, 2.0]));

    let batch = json!({"operations": [
        {"upsert": {"points": [{"id": 20, "vector": [1, 1], "payload": {"a": 1}}]}},
        {"set_payload": {"payload": {"b": 2}, "points": [20]}},
        {"delete": {"points": [8, "any text"]}},
    ]});
    running.result(&format!("POST {points}/batch"), batch).await;
    assert_eq!(one("20").await["payload"], json!({"a": 1, "b": 2}));
    assert_eq!(running.refused(&format!("GET {points}/8"), json!({})).await.0, StatusCode::NOT_FOUND);
    running
        .result(
            &format!("POST {points}/delete"),
            json!({"filter": {"must": [{"key": "kind", "match": {"value": "small"}}]}}),
        )
        .await;
    let left = running.result(&format!("POST {points}"), json!({"ids": [1, 4, 20], "with_vector": false})).await;
    assert_eq!(ids(&left), [4, 20], "what is not there is left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_keep_what_was_asked_of_them() {
    let running = start().await.with_things().await;
    let asked = json!({
        "vectors": {"small": {"size": 3, "distance": "Cosine", "on_disk": true}, "rows": {"size": 2, "distance": "Euclid",
            "multivector_config": {"comparator": "max_sim"}}},
        "sparse_vectors": {"words": {"modifier": "idf"}},
        "hnsw_config": {"m": 24, "ef_construct": 120, "full_scan_threshold": 1000},
        "optimizers_config": {"indexing_threshold": 5000},
        "quantization_config": {"scalar": {"type": "int8", "always_ram": true}},
        "shard_number": 3, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": true,
    });
    running.result("PUT /collections/full", asked.clone()).await;
    let told = running.result("GET /collections/full", json!({})).await;
    let (params, config) = (&told["config"]["params"], &told["config"]);
    assert_eq!((&params["shard_number"], &config["hnsw_config"]["m"]), (&json!(3), &json!(24)));
    assert_eq!(params["vectors"]["small"]["distance"], "Cosine");
    assert_eq!(params["sparse_vectors"], asked["sparse_vectors"]);
    assert_eq!(config["quantization_config"], asked["quantization_config"]);
    assert_eq!(config["optimizer_config"]["indexing_threshold"], 5000);
    assert_eq!((&told["status"], &told["points_count"]), (&json!("green"), &json!(0)));

    let change = json!({"actions": [{"create_alias": {"collection_name": "full", "alias_name": "current"}}]});
    running.result("POST /collections/aliases", change).await;
    assert_eq!(running.result("GET /collections/current", json!({})).await["config"], told["config"]);
    let point = json!({"points": [{"id": 1, "vector": {"small": [1, 0, 0], "rows": [[1, 2], [3, 4]],
        "words": {"indices": [7, 3], "values": [0.5, 1.5]}}}]});
    running.result("PUT /collections/current/points", point).await;
    let held = running.result("GET /collections/full/points/1", json!({})).await;
    assert_eq!(held["vector"]["words"], json!({"indices": [3, 7], "values": [1.5, 0.5]}));
    let swap = json!({"actions": [{"rename_alias": {"old_alias_name": "current", "new_alias_name": "newest"}}]});
    running.result("POST /collections/aliases", swap).await;
    let aliases = running.result("GET /aliases", json!({})).await;
    assert_eq!(aliases["aliases"], json!([{"alias_name": "newest", "collection_name": "full"}]));
    assert_eq!(running.result("GET /collections/newest/exists", json!({})).await["exists"], true);

    let names = running.result("GET /collections", json!({})).await;
    let names: BTreeSet<&str> =
        names["collections"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["full", "things"]));
    assert_eq!(running.result("DELETE /collections/full", json!({})).await, true);
    assert_eq!(running.result("GET /collections/full/exists", json!({})).await["exists"], false);
    assert_eq!(running.result("GET /aliases", json!({})).await["aliases"], json!([]), "they went with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_have_words_where_an_index_says_so() {
    let running = start().await.with_things().await;
    let text = |how: &str, text: &str| json!({"must": [{"key": "text", "match": {how: text}}]});
    let (none, even, all) = (vec![], vec![2, 4, 6], vec![1, 2, 3, 4, 5, 6, 7]);
    for (how, given, by_letters, by_words) in [
        ("text", "quick brown", &even, &even),
        ("text", "brown quick", &none, &even),
        ("text", "QUICK", &none, &even),
        ("text", "uick bro", &even, &none),
        ("text_any", "cat ck", &even, &none),
        ("text_any", "cat dog fox", &all, &all),
        ("phrase", "quick brown", &even, &even),
    ] {
        running.result("DELETE /collections/things/index/text?wait=true", json!({})).await;
        assert_eq!(running.found(text(how, given)).await, *by_letters, "{how} {given:?} without an index");
        let index = json!({"field_name": "text", "field_schema": {"type": "text", "tokenizer": "word"}});
        running.result("PUT /collections/things/index?wait=true", index).await;
        assert_eq!(running.found(text(how, given)).await, *by_words, "{how} {given:?} with one");
    }
    let told = running.result("GET /collections/things", json!({})).await;
    assert_eq!(told["payload_schema"]["text"]["points"], 7, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_are_disjoint_and_cover_all() {
    let running = start().await.with_things().await;
    let mut seen = Vec::new();
    for index in 0..3 {
        seen.extend(running.found(json!({"must": [{"slice": {"total": 3, "index": index}}]})).await);
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_are_added_to_a_collection_with_points() {
    let running = start().await.with_things().await;
    let vectors = "/collections/things/vectors";
    let taxi = json!({"dense": {"size": 3, "distance": "Manhattan"}});
    running.result(&format!("PUT {vectors}/taxi?wait=true"), taxi.clone()).await;
    running.result(&format!("PUT {vectors}/taxi"), taxi).await;
    running.result(&format!("PUT {vectors}/words"), json!({"sparse": {"modifier": "idf"}})).await;
    let rows = json!({"dense": {"size": 2, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}});
    running.result(&format!("PUT {vectors}/rows"), rows).await;
    let other = json!({"dense": {"size": 4, "distance": "Manhattan"}});
    let (code, error) = running.refused(&format!("PUT {vectors}/taxi"), other).await;
    assert!((code, error.contains("taxi")) == (StatusCode::BAD_REQUEST, true), "{error}");

    // At once, without a pause: shards that have not heard yet are asked again.
    let given = json!({"points": [
        {"id": 3, "vector": {"taxi": [1, 2, 3], "rows": [[1, 0], [0, 1]]}},
        {"id": 4, "vector": {"taxi": [0, 0, 0], "words": {"indices": [5], "values": [2.0]}}},
    ]});
    running.result("PUT /collections/things/points/vectors?wait=true", given).await;
    let ask = async |query: Value, using: &str| {
        let body = json!({"query": query, "using": using, "limit": 5});
        running.result("POST /collections/things/points/query", body).await["points"].clone()
    };
    let near = ask(json!([1, 1, 1]), "taxi").await;
    assert_eq!((ids(&near), near[0]["score"].as_f64(), near[1]["score"].as_f64()), (vec![3, 4], Some(3.0), Some(3.0)));
    assert_eq!(ids(&ask(json!({"indices": [5], "values": [1.0]}), "words").await), [4]);
    assert_eq!(ids(&ask(json!([[1, 1]]), "rows").await), [3]);
    let held = running.result("GET /collections/things/points/3", json!({})).await;
    assert_eq!((&held["vector"]["taxi"], &held["vector"][""]), (&json!([1.0, 2.0, 3.0]), &json!([3.0, 1.0])));
    let params = running.result("GET /collections/things", json!({})).await["config"]["params"].clone();
    assert_eq!(params["vectors"]["taxi"], json!({"size": 3, "distance": "Manhattan"}));
    assert_eq!(
        (&params["vectors"][""]["size"], &params["sparse_vectors"]["words"]["modifier"]),
        (&json!(2), &json!("idf"))
    );
    assert_eq!(running.found(json!({"must": [{"has_vector": "taxi"}]})).await, [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_and_changes_nothing() {
    let running = start().await.with_things().await;
    let points = "/collections/things/points";
    let (bad, range) = (StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY);
    for (call, body, code, part) in [
        ("PUT /collections/things", json!({"vectors": {"size": 2, "distance": "Dot"}}), StatusCode::CONFLICT, "things"),
        ("PUT /collections/odd", json!({"vectors": {"size": 0, "distance": "Dot"}}), range, "vectors.size"),
        ("PUT /collections/odd", json!({"shard_number": 0}), bad, "shard_number"),
        ("PUT /collections/odd", json!({"hnsw_config": {"ef_construct": 3}}), range, "ef_construct"),
        ("PUT /collections/odd", json!({"vectors": {"size": 2, "distance": "Taxi"}}), bad, "Taxi"),
        ("DELETE /collections/things/vectors/old", json!({}), StatusCode::NOT_IMPLEMENTED, "vector"),
        ("PUT /collections/things/vectors/new", json!({"dense": {"size": 0, "distance": "Dot"}}), range, "size"),
        ("PUT /collections/things/vectors/new", json!({}), bad, "dense or sparse"),
        (
            "PUT /collections/things/vectors/",
            json!({"dense": {"size": 3, "distance": "Dot"}}),
            StatusCode::NOT_FOUND,
            "",
        ),
        ("GET /collections/nowhere", json!({}), StatusCode::NOT_FOUND, "nowhere"),
        ("POST /collections/nowhere/points/query", json!({"query": [1, 0]}), StatusCode::NOT_FOUND, "nowhere"),
        (
            &format!("PUT {points}"),
            json!({"points": [{"id": 50, "vector": [1, 1]}, {"id": 51, "vector": [1]}]}),
            bad,
            "points[1]",
        ),
        (&format!("PUT {points}"), json!({"points": [{"id": -1, "vector": [1, 1]}]}), bad, "id"),
        (&format!("PUT {points}"), json!({"points": 3}), bad, "JSON"),
        (&format!("PUT {points}"), json!({"points": [{"id": 50, "vector": {"other": [1, 1]}}]}), bad, "other"),
        (&format!("POST {points}/query"), json!({"query": [1, 0, 0]}), bad, "expected dim: 2, got 3"),
        (&format!("POST {points}/query"), json!({"query": {"formula": {"mult": [2.0, "$score"]}}}), bad, "Formula"),
        (&format!("POST {points}/query"), json!({"query": 999}), StatusCode::NOT_FOUND, "999"),
        (&format!("POST {points}/query"), json!({"query": [1, 0], "using": "other"}), bad, "other"),
        (&format!("POST {points}/scroll"), json!({"filter": {"must": [{"key": "n", "rang": {}}]}}), bad, "JSON"),
        (&format!("POST {points}/delete"), json!({"filter": {"must": [{"key": "n"}]}}), bad, "asks nothing"),
        (
            &format!("POST {points}/payload/clear"),
            json!({"filter": {"must_not": [{"key": "n", "match": null}]}}),
            bad,
            "asks nothing",
        ),
        (&format!("POST {points}/payload"), json!({"payload": {"a": 1}, "points": [1], "key": ""}), bad, "key"),
        (&format!("POST {points}/payload/delete"), json!({"keys": ["n", "a["], "points": [1]}), bad, "keys[1]"),
        (&format!("POST {points}/scroll"), json!({"limit": 0}), range, "limit"),
        (
            &format!("POST {points}/scroll"),
            json!({"filter": {"must": [{"slice": {"total": 2, "index": 2}}]}}),
            range,
            "slice",
        ),
        (&format!("POST {points}/scroll?consistency=none"), json!({}), bad, "consistency"),
        (&format!("POST {points}/scroll?timeout=0"), json!({}), StatusCode::UNPROCESSABLE_ENTITY, "timeout"),
        ("GET /nothing/here", json!({}), StatusCode::NOT_FOUND, "/nothing/here"),
        ("PATCH /collections", json!({}), StatusCode::METHOD_NOT_ALLOWED, "PATCH"),
    ] {
        let (status, error) = running.refused(call, body.clone()).await;
        assert_eq!(status, code, "{call} {body}: {error}");
        assert!(error.contains(part), "{call} {body}: {error}");
    }
    assert_eq!(running.found(json!({})).await, [1, 2, 3, 4, 5, 6, 7], "nothing was written");

    let (status, _, body) = running.send("PUT", &format!("{points}?wait=true"), "{\"points\": [").await;
    assert_eq!(status, bad, "{body:?}");
    let large = vec![b' '; 65 << 20];
    let (status, ..) = running.send("PUT", points, large).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

fn pb_id(number: u64) -> pb::PointId {
    pb::PointId { point_id_options: Some(pb::point_id::PointIdOptions::Num(number)) }
}

fn pb_ids(hits: &[pb::ScoredPoint]) -> Vec<u64> {
    let number = |hit: &pb::ScoredPoint| match hit.id.as_ref()?.point_id_options.as_ref()? {
        pb::point_id::PointIdOptions::Num(number) => Some(*number),
        pb::point_id::PointIdOptions::Uuid(_) => None,
    };
    hits.iter().filter_map(number).collect()
}

fn nearest(values: &[f32]) -> pb::Query {
    let dense = pb::vector_input::Variant::Dense(pb::DenseVector { data: values.to_vec() });
    pb::Query { variant: Some(pb::query::Variant::Nearest(pb::VectorInput { variant: Some(dense) })) }
}

fn of_kind(kind: &str) -> pb::Filter {
    let matching = pb::Match { match_value: Some(pb::r#match::MatchValue::Keyword(kind.to_owned())) };
    let field = pb::FieldCondition { key: "kind".to_owned(), r#match: Some(matching), ..Default::default() };
    let condition = pb::Condition { condition_one_of: Some(pb::condition::ConditionOneOf::Field(field)) };
    pb::Filter { must: vec![condition], ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_grpc_it_is_the_same_store() {
    let running = start().await.with_things().await;
    let channel = tonic::transport::Endpoint::from_shared(running.grpc.clone()).unwrap().connect().await.unwrap();
    let (mut points, mut collections) = (PointsClient::new(channel.clone()), CollectionsClient::new(channel.clone()));
    let name = || "things".to_owned();
    let health = QdrantClient::new(channel.clone()).health_check(pb::HealthCheckRequest {}).await.unwrap();
    assert_eq!(health.into_inner().version, nearring_router::gateway::qdrant::VERSION);

    let query = pb::QueryPoints {
        collection_name: name(),
        query: Some(nearest(&[1.0, 0.0])),
        filter: Some(of_kind("small")),
        limit: Some(2),
        with_payload: Some(pb::WithPayloadSelector {
            selector_options: Some(pb::with_payload_selector::SelectorOptions::Enable(true)),
        }),
        with_vectors: Some(pb::WithVectorsSelector {
            selector_options: Some(pb::with_vectors_selector::SelectorOptions::Enable(true)),
        }),
        ..Default::default()
    };
    let hits = points.query(query.clone()).await.unwrap().into_inner().result;
    assert_eq!(pb_ids(&hits), [3, 2]);
    assert_eq!((hits[0].score, hits[0].payload["n"].kind.clone()), (3.0, Some(pb::value::Kind::IntegerValue(3))));
    let Some(pb::vectors_output::VectorsOptions::Vector(vector)) = hits[0].vectors.clone().unwrap().vectors_options
    else {
        panic!("{hits:?}");
    };
    assert_eq!(vector.vector, Some(pb::vector_output::Vector::Dense(pb::DenseVector { data: vec![3.0, 1.0] })));
    let prefetch = |values: &[f32], ids: [u64; 2]| {
        let has_id = pb::HasIdCondition { has_id: ids.map(pb_id).to_vec() };
        let only = pb::Condition { condition_one_of: Some(pb::condition::ConditionOneOf::HasId(has_id)) };
        pb::PrefetchQuery {
            query: Some(nearest(values)),
            filter: Some(pb::Filter { must: vec![only], ..Default::default() }),
            ..Default::default()
        }
    };
    let fused = pb::QueryPoints {
        collection_name: name(),
        prefetch: vec![prefetch(&[1.0, 0.0], [3, 4]), prefetch(&[-1.0, 0.0], [2, 3])],
        query: Some(pb::Query { variant: Some(pb::query::Variant::Fusion(pb::Fusion::Rrf.into())) }),
        ..Default::default()
    };
    assert_eq!(pb_ids(&points.query(fused).await.unwrap().into_inner().result)[0], 3);
    let groups = pb::QueryPointGroups {
        collection_name: name(),
        query: Some(nearest(&[1.0, 0.0])),
        group_by: "kind".to_owned(),
        group_size: Some(1),
        ..Default::default()
    };
    let groups = points.query_groups(groups).await.unwrap().into_inner().result.unwrap().groups;
    assert_eq!(groups.iter().flat_map(|group| pb_ids(&group.hits)).collect::<Vec<_>>(), [7, 3]);

    // Written over gRPC, read over REST.
    let payload = [(
        "list".to_owned(),
        pb::Value {
            kind: Some(pb::value::Kind::ListValue(pb::ListValue {
                values: vec![pb::Value { kind: Some(pb::value::Kind::DoubleValue(0.1)) }],
            })),
        },
    )];
    let vector = pb::Vector {
        vector: Some(pb::vector::Vector::Dense(pb::DenseVector { data: vec![0.1, 0.7] })),
        ..Default::default()
    };
    let vectors = pb::Vectors { vectors_options: Some(pb::vectors::VectorsOptions::Vector(vector)) };
    let point = |number, vectors| pb::PointStruct { id: Some(pb_id(number)), payload: payload.clone().into(), vectors };
    let write = |points, mode: Option<pb::UpdateMode>| pb::UpsertPoints {
        collection_name: name(),
        wait: Some(true),
        points,
        update_mode: mode.map(Into::into),
        ..Default::default()
    };
    points.upsert(write(vec![point(9, Some(vectors.clone()))], None)).await.unwrap();
    let held = running.result("GET /collections/things/points/9", json!({})).await;
    assert_eq!((&held["payload"], &held["vector"]), (&json!({"list": [0.1]}), &json!([0.1, 0.7])));
    for (mode, ids) in [(pb::UpdateMode::InsertOnly, [9, 10]), (pb::UpdateMode::UpdateOnly, [10, 11])] {
        let both = ids.map(|number| point(number, Some(vectors.clone())));
        points.upsert(write(both.to_vec(), Some(mode))).await.unwrap();
    }
    assert_eq!(running.found(json!({"must": [{"has_id": [9, 10, 11]}]})).await, [9, 10]);
    let selector = pb::PointsSelector {
        points_selector_one_of: Some(pb::points_selector::PointsSelectorOneOf::Filter(of_kind("small"))),
    };
    let delete = pb::DeletePoints { collection_name: name(), points: Some(selector), ..Default::default() };
    points.delete(delete).await.unwrap();
    let count = pb::CountPoints { collection_name: name(), ..Default::default() };
    assert_eq!(points.count(count).await.unwrap().into_inner().result.unwrap().count, 6);

    // A collection with everything, told again as it was asked for.
    let params = pb::VectorParams { size: 3, distance: pb::Distance::Cosine.into(), ..Default::default() };
    let scalar =
        pb::ScalarQuantization { r#type: pb::QuantizationType::Int8.into(), quantile: Some(0.5), ..Default::default() };
    let quantization = pb::quantization_config::Quantization::Scalar(scalar);
    let create = pb::CreateCollection {
        collection_name: "full".to_owned(),
        vectors_config: Some(pb::VectorsConfig {
            config: Some(pb::vectors_config::Config::ParamsMap(pb::VectorParamsMap {
                map: [("a".to_owned(), params)].into(),
            })),
        }),
        hnsw_config: Some(pb::HnswConfigDiff { m: Some(24), ..Default::default() }),
        quantization_config: Some(pb::QuantizationConfig { quantization: Some(quantization) }),
        shard_number: Some(2),
        ..Default::default()
    };
    collections.create(create.clone()).await.unwrap();
    let get = pb::GetCollectionInfoRequest { collection_name: "full".to_owned() };
    let config = collections.get(get).await.unwrap().into_inner().result.unwrap().config.unwrap();
    assert_eq!(config.params.clone().unwrap().vectors_config, create.vectors_config);
    assert_eq!((config.params.unwrap().shard_number, config.hnsw_config.unwrap().m), (2, Some(24)));
    assert_eq!(config.quantization_config, create.quantization_config);
    let over_rest = running.result("GET /collections/full", json!({})).await;
    assert_eq!(over_rest["config"]["quantization_config"], json!({"scalar": {"type": "int8", "quantile": 0.5}}));

    // Errors have their codes, and change nothing.
    let code = |answer: Result<tonic::Response<pb::PointsOperationResponse>, tonic::Status>| {
        let status = answer.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let (status, message) = code(points.upsert(write(vec![point(50, None), pb::PointStruct::default()], None)).await);
    assert_eq!((status, message.contains("points[1].id")), (tonic::Code::InvalidArgument, true), "{message}");
    let elsewhere = pb::UpsertPoints {
        collection_name: "nowhere".to_owned(),
        points: vec![point(50, Some(vectors))],
        ..Default::default()
    };
    assert_eq!(code(points.upsert(elsewhere).await).0, tonic::Code::NotFound);
    let status = collections.create(create).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
    let formula = pb::Query { variant: Some(pb::query::Variant::Formula(pb::Formula::default())) };
    let status = points.query(pb::QueryPoints { query: Some(formula), ..query }).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    assert_eq!(running.found(json!({"must": [{"has_id": [50]}]})).await, [0_u64; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_grpc_what_cannot_be_said_in_json_is_refused_and_changes_nothing() {
    let running = start().await.with_things().await;
    let channel = tonic::transport::Endpoint::from_shared(running.grpc.clone()).unwrap().connect().await.unwrap();
    let mut points = PointsClient::new(channel);
    let name = || "things".to_owned();
    let n = |condition: pb::FieldCondition| {
        let field = pb::FieldCondition { key: "n".to_owned(), ..condition };
        pb::Condition { condition_one_of: Some(pb::condition::ConditionOneOf::Field(field)) }
    };
    let range = |range| n(pb::FieldCondition { range: Some(range), ..Default::default() });
    // Left out, a number that is none, a date that is none, what a newer client would send: none of it is met by every point.
    let never = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
    let dates = pb::DatetimeRange { lt: Some(never), ..Default::default() };
    for condition in [
        n(pb::FieldCondition::default()),
        n(pb::FieldCondition { r#match: Some(pb::Match::default()), ..Default::default() }),
        range(pb::Range { lt: Some(f64::NAN), ..Default::default() }),
        n(pb::FieldCondition { datetime_range: Some(dates), ..Default::default() }),
        pb::Condition::default(),
    ] {
        for filter in [
            pb::Filter { must: vec![condition.clone()], ..Default::default() },
            pb::Filter { must_not: vec![condition.clone()], ..Default::default() },
        ] {
            let selector = pb::points_selector::PointsSelectorOneOf::Filter(filter.clone());
            let selector = pb::PointsSelector { points_selector_one_of: Some(selector) };
            let delete = pb::DeletePoints { collection_name: name(), points: Some(selector), ..Default::default() };
            let status = points.delete(delete).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{filter:?}: {status}");
            assert!(status.message().contains("filter"), "{status}");
        }
    }
    for selector in [None, Some(pb::PointsSelector::default())] {
        let delete = pb::DeletePoints { collection_name: name(), points: selector, ..Default::default() };
        assert_eq!(points.delete(delete).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    let number = |number| pb::Value { kind: Some(pb::value::Kind::DoubleValue(number)) };
    let list = pb::ListValue { values: vec![number(f64::INFINITY)] };
    let list = pb::Value { kind: Some(pb::value::Kind::ListValue(list)) };
    for (field, value) in [("plain", number(f64::NAN)), ("list", list)] {
        let point = pb::PointStruct { id: Some(pb_id(1)), payload: [(field.to_owned(), value)].into(), vectors: None };
        let upsert = pb::UpsertPoints { collection_name: name(), points: vec![point], ..Default::default() };
        let status = points.upsert(upsert).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with(&format!("points[0].payload.{field}: ")), "{status}");
    }
    let point = pb::PointStruct { id: Some(pb_id(1)), ..Default::default() };
    let newer =
        pb::UpsertPoints { collection_name: name(), points: vec![point], update_mode: Some(17), ..Default::default() };
    let status = points.upsert(newer).await.unwrap_err();
    assert_eq!((status.code(), status.message().contains("update_mode")), (tonic::Code::InvalidArgument, true));
    let query = pb::QueryPoints { collection_name: name(), query: Some(pb::Query::default()), ..Default::default() };
    assert_eq!(points.query(query).await.unwrap_err().code(), tonic::Code::InvalidArgument);

    // Infinite bounds are bounds.
    for (bounds, count) in [
        (pb::Range { gt: Some(3.0), lte: Some(f64::INFINITY), ..Default::default() }, 4),
        (pb::Range { gt: Some(f64::NEG_INFINITY), ..Default::default() }, 7),
        (pb::Range { gt: Some(f64::INFINITY), ..Default::default() }, 0),
        (pb::Range::default(), 7),
    ] {
        let filter = pb::Filter { must: vec![range(bounds)], ..Default::default() };
        let asked = pb::CountPoints { collection_name: name(), filter: Some(filter), ..Default::default() };
        assert_eq!(points.count(asked).await.unwrap().into_inner().result.unwrap().count, count, "{bounds:?}");
    }
    assert_eq!(running.found(json!({"must": [{"key": "n", "range": {"gte": 1}}]})).await, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(running.found(json!({"must": [{"key": "kind", "range": {}}]})).await, [0_u64; 0], "a word is no number");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_lists_what_is_served() {
    let running = start().await.with_things().await;
    let (status, document) = running.json("GET", "/openapi.json", Value::Null).await;
    assert_eq!((status, &document["openapi"]), (StatusCode::OK, &json!("3.1.0")));
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 25, "{} paths", paths.len());
    for (path, entry) in paths {
        for method in entry.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            // Names a collection that is not there, so that nothing is changed; a list is no body of any operation.
            let asked = path.replace("{collection}", "missing").replace("{id}", "1").replace("{field}", "f");
            let asked = asked.replace("{vector}", "v").replace("{snapshot}", "s.snapshot");
            let (status, _, answer) = running.send(&method.to_uppercase(), &asked, "[]").await;
            let answer = String::from_utf8(answer.to_vec()).unwrap();
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert!(!answer.contains("there is no /"), "{method} {path}: {answer}");
            // This router was given no directory for snapshots, and says so.
            let no_directory = path.contains("/snapshots") && status == StatusCode::NOT_IMPLEMENTED;
            assert!(no_directory || !status.is_server_error(), "{method} {path}: {answer}");
        }
    }
}
