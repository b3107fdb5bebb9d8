//! The page at `/ui` as a browser gets it, and what it asks below `/nearring`, before a real node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/running.rs"]
mod running;

use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use nearring_router::gateway::ui::{FILES, POLICY};
use running::Running;
use serde_json::{Value, json};

async fn start() -> Running {
    running::start("", |_| ()).await
}

fn is_guarded(headers: &HeaderMap) {
    assert_eq!(headers["content-security-policy"], POLICY);
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["referrer-policy"], "no-referrer");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_is_served_as_what_it_is_and_nothing_else_is_there() {
    let running = start().await;
    let lies: BTreeSet<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/ui"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let served: BTreeSet<String> = FILES.iter().map(|file| file.name.to_owned()).collect();
    assert_eq!(served, lies, "a file of router/ui that is not served, or the other way round");
    for file in FILES {
        let kind = match file.name.rsplit_once('.').unwrap().1 {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("what type is {other}?"),
        };
        let (status, headers, body) = running.send("GET", &format!("/ui/{}", file.name), "").await;
        assert_eq!((status, &headers["content-type"]), (StatusCode::OK, &kind.parse().unwrap()), "{}", file.name);
        assert_eq!(body, file.text);
        assert!(!body.is_empty());
        is_guarded(&headers);
    }
    let (status, headers, body) = running.send("GET", "/ui/", "").await;
    assert_eq!((status, &headers["content-type"]), (StatusCode::OK, &"text/html; charset=utf-8".parse().unwrap()));
    assert!(body.starts_with(b"<!doctype html>"));
    is_guarded(&headers);
    for path in ["/ui", "/dashboard", "/dashboard/"] {
        let (status, headers, _) = running.send("GET", path, "").await;
        assert_eq!(
            (status, &headers["location"]),
            (StatusCode::TEMPORARY_REDIRECT, &"/ui/".parse().unwrap()),
            "{path}"
        );
    }
    for path in ["/ui/nothing.js", "/ui/../Cargo.toml", "/ui/%2e%2e/Cargo.toml", "/ui/app.js/", "/ui/UI.css"] {
        let (status, headers, _) = running.send("GET", path, "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        is_guarded(&headers);
    }
    assert_eq!(running.send("POST", "/ui/", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

/// What the policy forbids would only be noticed in a browser, and files of other hosts only without internet.
#[test]
fn the_files_need_nothing_that_the_policy_forbids() {
    let names: Vec<&str> = FILES.iter().map(|file| file.name).collect();
    let between = |text: &'static str, before: &'static str| {
        text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap()).collect::<Vec<_>>()
    };
    for file in FILES {
        // The name of SVG's namespace is no address.
        let text = file.text.replace("http://www.w3.org/2000/svg", "");
        for forbidden in
            ["http://", "https://", "eval(", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"]
        {
            assert!(!text.contains(forbidden), "{} has {forbidden}", file.name);
        }
        for forbidden in ["<style", " style=", " onclick=", " onload=", "javascript:"] {
            assert!(!text.contains(forbidden), "{} has {forbidden}", file.name);
        }
        if file.name.ends_with(".js") {
            for import in between(file.text, "from \"./") {
                assert!(names.contains(&import), "{} imports {import}", file.name);
            }
        }
        if file.name.ends_with(".html") {
            let wanted = between(file.text, "href=\"").into_iter().chain(between(file.text, "src=\""));
            for wanted in wanted.filter(|wanted| !wanted.starts_with('#')) {
                assert!(names.contains(&wanted), "{} wants {wanted}", file.name);
            }
        }
    }
}

/// A collection whose vectors the built-in embedder gives, with a point for each text.
async fn with_notes(running: &Running) {
    let settings = json!({"vectors": {"size": 256, "distance": "Cosine"}, "shard_number": 2});
    for _ in 0..200 {
        if running.json("PUT", "/collections/notes", settings.clone()).await.0 == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let texts = ["Ants live in colonies.", "A queen ant lays eggs.", "Ships sail the sea."];
    let (status, embedded) =
        running.json("POST", "/v1/embeddings", json!({"model": "static256", "input": texts})).await;
    assert_eq!(status, StatusCode::OK, "{embedded}");
    let ids = [json!(1), json!(u64::MAX), json!("ship")];
    let point = |(at, text): (usize, &&str)| json!({"id": ids[at], "vector": embedded["data"][at]["embedding"], "payload": {"text": text, "at": at}});
    let points: Vec<Value> = texts.iter().enumerate().map(point).collect();
    let (status, written) = running.json("PUT", "/collections/notes/points", json!({"points": points})).await;
    assert_eq!(status, StatusCode::OK, "{written}");
}

fn ids(answer: &Value) -> Vec<Value> {
    answer["hits"].as_array().unwrap().iter().map(|hit| hit["id"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_by_text_vector_or_point_tells_what_it_covers() {
    let running = start().await;
    with_notes(&running).await;
    let search = "/nearring/collections/notes/search";

    let (status, by_text) = running.json("POST", search, json!({"text": "which ant lays the eggs"})).await;
    assert_eq!(status, StatusCode::OK, "{by_text}");
    assert_eq!(ids(&by_text)[0], json!(u64::MAX), "an id beyond what a double holds stays itself");
    assert_eq!(by_text["hits"][0]["payload"], json!({"text": "A queen ant lays eggs.", "at": 1}));
    assert_eq!((&by_text["embedder"], &by_text["metric"]), (&json!("static256"), &json!("cosine")));
    assert_eq!(by_text["higher_is_nearer"], json!(true));
    let coverage = &by_text["coverage"];
    assert_eq!((&coverage["complete"], coverage["shards"].as_array().unwrap().len()), (&json!(true), 2));
    assert!(coverage["shards"].as_array().unwrap().iter().all(|shard| shard["state"] == "searched"));

    let filter = json!({"must_not": [{"key": "at", "match": {"value": 1}}]});
    let (_, filtered) = running.json("POST", search, json!({"text": "ant", "filter": filter, "limit": 1})).await;
    assert_eq!(ids(&filtered), [json!(1)]);

    let (_, like) = running.json("POST", search, json!({"id": 1})).await;
    assert_eq!(ids(&like), [json!(u64::MAX), json!("ship")], "not the point itself");

    let (_, point) = running.json("GET", "/collections/notes/points/ship", json!({})).await;
    let vector = point["result"]["vector"].clone();
    let (_, by_vector) = running.json("POST", search, json!({"vector": vector, "limit": 1})).await;
    assert_eq!(ids(&by_vector), [json!("ship")]);
    assert!((by_vector["hits"][0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-4);

    for (body, status, says) in [
        (json!({}), 400, "text: give exactly one"),
        (json!({"text": "a", "id": 1}), 400, "text: give exactly one"),
        (json!({"text": "ant", "using": "x"}), 400, "using:"),
        (json!({"vector": [1.0, 2.0]}), 400, "the collection wants 256"),
        (json!({"vector": {"indices": [1], "values": [1.0]}}), 400, "sparse"),
        (json!({"id": 2}), 404, "no point with id 2"),
        (json!({"id": 1, "using": "title"}), 400, "using:"),
        (json!({"text": "ant", "limit": 0}), 400, "limit"),
        (json!({"text": "ant", "filter": {"must": [{"key": "at"}]}}), 400, ""),
        (json!({"texts": "ant"}), 400, "texts"),
    ] {
        let (got, answer) = running.json("POST", search, body.clone()).await;
        let error = answer["status"]["error"].as_str().unwrap();
        assert_eq!(got, status, "{body}: {error}");
        assert!(error.contains(says), "{body}: {error}");
    }
    let (status, answer) = running.json("POST", "/nearring/collections/none/search", json!({"text": "ant"})).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_and_its_collections_are_described() {
    let running = start().await;
    with_notes(&running).await;
    // Shards tell of a leader's entry, and thereby their last position, a moment later.
    let mut cluster = Value::Null;
    for _ in 0..100 {
        cluster = running.json("GET", "/nearring/cluster", json!({})).await.1;
        if cluster["problems"] == json!([]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster["problems"], json!([]), "{cluster}");
    assert_eq!((&cluster["nodes"][0]["node"], &cluster["nodes"][0]["reachable"]), (&json!(1), &json!(true)));
    let shards = cluster["shards"].as_array().unwrap();
    let kinds: Vec<(&Value, &Value, &Value)> =
        shards.iter().map(|shard| (&shard["kind"], &shard["collection"], &shard["leader"])).collect();
    let (meta, data, notes, one) = (json!("meta"), json!("data"), json!("notes"), json!(1));
    assert_eq!(kinds, [(&meta, &Value::Null, &one), (&data, &notes, &one), (&data, &notes, &one)]);
    let replicas = || shards.iter().map(|shard| &shard["replicas"][0]);
    assert!(replicas().all(|replica| replica["role"] == "leader" && replica["reported"] == true), "{cluster}");
    let points: u64 = replicas().skip(1).map(|replica| replica["points"].as_u64().unwrap()).sum();
    assert_eq!(points, 3);
    for replica in replicas() {
        let (applied, committed) = (&replica["applied_index"], &replica["committed_index"]);
        assert!(applied.as_u64().unwrap() > 0 && applied.as_u64() <= committed.as_u64(), "{replica}");
    }

    let sparse = json!({"sparse_vectors": {"words": {}}, "shard_number": 1});
    assert_eq!(running.json("PUT", "/collections/words", sparse).await.0, StatusCode::OK);
    let alias = json!({"actions": [{"create_alias": {"alias_name": "jottings", "collection_name": "notes"}}]});
    assert_eq!(running.json("POST", "/collections/aliases", alias).await.0, StatusCode::OK);
    let (_, told) = running.json("GET", "/nearring/collections", json!({})).await;
    let dense = json!({"name": "", "kind": "dense", "dimension": 256, "metric": "cosine"});
    let words = json!({"name": "words", "kind": "sparse", "dimension": null, "metric": "dot"});
    let expected = json!([
        {"name": "notes", "aliases": ["jottings"], "shards": 2, "replication_factor": 1, "vectors": [dense],
         "text": {"vector": "", "embedder": "static256"}},
        {"name": "words", "aliases": [], "shards": 1, "replication_factor": 1, "vectors": [words], "text": null},
    ]);
    assert_eq!(told["collections"], expected);
    let (status, refused) = running.json("POST", "/nearring/collections/words/search", json!({"text": "ant"})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refused["status"]["error"].as_str().unwrap().contains("search it by vector"), "{refused}");
}
