//! `nearring import --from`: from one cluster's REST door, which speaks Qdrant's API, into another cluster.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/running.rs"]
mod running;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use running::Running;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

struct Done {
    success: bool,
    stdout: String,
    stderr: String,
}

fn spawn(target: &Running, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_nearring"))
        .env_remove("NEARRING_ROUTER")
        .args(["--router", &target.router, "--json", "import"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn import(target: &Running, arguments: &[&str]) -> Done {
    let output = spawn(target, arguments).wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn settings() -> Value {
    json!({
        "vectors": {
            "dense": {"size": 4, "distance": "Cosine", "on_disk": true},
            "far": {"size": 3, "distance": "Euclid"},
            "late": {"size": 2, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
        },
        "sparse_vectors": {"words": {"modifier": "idf"}},
        "shard_number": 2,
        "hnsw_config": {"m": 24, "ef_construct": 200, "full_scan_threshold": 5000},
        "optimizers_config": {"deleted_threshold": 0.3},
        "quantization_config": {"scalar": {"type": "int8", "always_ram": true}},
    })
}

/// Of all three kinds of ids; some lack vectors, some have no payload.
fn points(count: u64) -> Vec<Value> {
    let point = |number: u64| {
        let id = match number % 5 {
            3 => json!(format!("00000000-0000-0000-0000-{number:012}")),
            4 => json!(format!("text {number}")),
            _ => json!(number),
        };
        let at = number as f32 / 7.0;
        let mut vector = json!({
            "dense": [at.sin(), at.cos(), 0.25, -1.5],
            "late": [[at, 1.0], [2.0, -at]],
            "words": {"indices": [number % 11, 20 + number], "values": [0.5, 1.25]},
        });
        if !number.is_multiple_of(3) {
            vector["far"] = json!([at, 0.1, 0.3]);
        }
        let payload = match number % 7 {
            0 => Value::Null,
            _ => {
                json!({"lang": if number.is_multiple_of(2) { "en" } else { "de" }, "body": format!("point {number}"), "n": {"x": [number, 0.1]}})
            }
        };
        json!({"id": id, "vector": vector, "payload": payload})
    };
    (0..count).map(point).collect()
}

async fn fill(source: &Running, name: &str, count: u64) {
    source.create(name, settings()).await;
    for batch in points(count).chunks(256) {
        source.ok("PUT", &format!("/collections/{name}/points"), json!({"points": batch})).await;
    }
}

async fn all(of: &Running, name: &str) -> Vec<Value> {
    let body = json!({"limit": 5000, "with_payload": true, "with_vector": true});
    let mut told = of.ok("POST", &format!("/collections/{name}/points/scroll"), body).await;
    serde_json::from_value(told["points"].take()).unwrap()
}

/// Numbers may differ by rounding: unit vectors are brought to unit length again.
fn close(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-6,
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| close(a, b)))
        }
        (a, b) => a == b,
    }
}

fn path(of: &Path) -> String {
    of.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_collection_comes_with_its_settings_points_indexes_and_aliases() {
    let (source, target) = (running::start(1).await, running::start(2).await);
    let folder = tempfile::tempdir().unwrap();
    let state = path(&folder.path().join("state.json"));
    fill(&source, "books", 700).await;
    fill(&source, "other", 3).await;
    let index = |field: &str, schema: Value| json!({"field_name": field, "field_schema": schema});
    source.ok("PUT", "/collections/books/index", index("lang", json!("keyword"))).await;
    source.ok("PUT", "/collections/books/index", index("body", json!({"type": "text", "tokenizer": "word"}))).await;
    let alias = json!({"create_alias": {"collection_name": "books", "alias_name": "library"}});
    source.ok("POST", "/collections/aliases", json!({"actions": [alias]})).await;
    target.create("mine", json!({"vectors": {"size": 2, "distance": "Dot"}})).await;

    let arguments = ["--from", &source.url, "-c", "books", "--state", &state, "--batch-points", "64"];
    let done = import(&target, &arguments).await;
    assert!(done.success, "{}", done.stderr);
    let told: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(
        told["collections"],
        json!([{"collection": "books", "source": 700, "target": 700, "equal": true, "difference": null}])
    );
    assert_eq!(told["aliases"], json!({"library": "books"}));
    assert!(!Path::new(&state).exists(), "nothing is left to go on with");

    let there = source.ok("GET", "/collections/books", json!({})).await;
    let here = target.ok("GET", "/collections/books", json!({})).await;
    assert_eq!(here["config"], there["config"]);
    assert_eq!(here["payload_schema"], there["payload_schema"]);
    assert_eq!(here["payload_schema"]["lang"]["points"], 600);
    let (there, here) = (all(&source, "books").await, all(&target, "books").await);
    assert_eq!(here.len(), 700);
    for (there, here) in there.iter().zip(&here) {
        assert!(close(there, here), "{there}\n{here}");
    }
    assert_eq!(target.count("library").await, 700);
    let (status, _) = target.send("GET", "/collections/other", json!({})).await;
    assert_eq!(status, 404, "only what was picked");

    // Again, of everything: what is here is written over, what is not comes too.
    let done = import(&target, &["--from", &source.url, "--state", &state]).await;
    assert!(done.success, "{}", done.stderr);
    assert_eq!((target.count("books").await, target.count("other").await), (700, 3));

    // What is gone there is not taken away here: it is told.
    source.ok("POST", "/collections/books/points/delete", json!({"points": [5, 6, "text 9"]})).await;
    let done = import(&target, &arguments).await;
    assert!(!done.success);
    assert!(done.stderr.contains("697 points there, 700 here; 3 only here: 5, 6, text 9"), "{}", done.stderr);
    assert_eq!(serde_json::from_str::<Value>(&done.stdout).unwrap()["collections"][0]["equal"], false);
    target.ok("POST", "/collections/books/points/delete", json!({"points": [5, 6, "text 9"]})).await;
    assert!(import(&target, &arguments).await.success);

    // An alias that means something else here is left alone.
    let taken = json!({"create_alias": {"collection_name": "mine", "alias_name": "library"}});
    target.ok("POST", "/collections/aliases", json!({"actions": [taken]})).await;
    let done = import(&target, &arguments).await;
    assert!(!done.success && done.stderr.contains("\"library\" means \"mine\" here"), "{}", done.stderr);
    assert_eq!(target.count("library").await, 0);

    // Files go in as before.
    let lines = folder.path().join("points.jsonl");
    std::fs::write(
        &lines,
        "{\"id\": 1, \"vector\": [1, 2], \"payload\": {\"a\": 1}}\n{\"id\": 2, \"vector\": [2, 1]}\n",
    )
    .unwrap();
    let done = import(&target, &["-c", "mine", &path(&lines)]).await;
    assert!(done.success, "{}", done.stderr);
    assert_eq!(target.count("mine").await, 2);
}

#[tokio::test]
async fn an_interrupted_import_goes_on_where_it_ended() {
    let (source, target) = (running::start(3).await, running::start(4).await);
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    fill(&source, "books", 3000).await;
    let state_path = path(&state);
    let arguments = ["--from", &source.url, "--state", &state_path, "--batch-points", "20"];
    let mut child = spawn(&target, &arguments);
    let written = |state: &Path| -> u64 {
        let kept = std::fs::read(state).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        kept.and_then(|kept| kept["collections"]["books"]["written"].as_u64()).unwrap_or(0)
    };
    while written(&state) < 200 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    child.kill().await.unwrap();
    let before = written(&state);
    assert!((200..3000).contains(&before), "{before}");
    assert!(target.count("books").await >= before, "what the file says is here is here");

    let done = import(&target, &arguments).await;
    assert!(done.success, "{}", done.stderr);
    assert!(done.stderr.contains(&format!("after {before} points")), "{}", done.stderr);
    assert_eq!(target.count("books").await, 3000);

    // A file of another cluster's import says nothing of this one.
    let stale = json!({"format": 1, "source": source.url, "cluster": "", "collections": {}});
    std::fs::write(&state, stale.to_string()).unwrap();
    let done = import(&target, &arguments).await;
    assert!(!done.success && done.stderr.contains("belongs to an import from"), "{}", done.stderr);
}

#[tokio::test]
async fn what_cannot_be_copied_is_told_before_anything_is_written() {
    let (source, target) = (running::start(5).await, running::start(6).await);
    let folder = tempfile::tempdir().unwrap();
    let state = path(&folder.path().join("state.json"));
    fill(&source, "apples", 3).await;
    fill(&source, "books", 3).await;
    target.create("books", json!({"vectors": {"dense": {"size": 5, "distance": "Cosine"}}})).await;
    let done = import(&target, &["--from", &source.url, "--state", &state]).await;
    assert!(!done.success && done.stderr.contains("exists here with another vector \"dense\""), "{}", done.stderr);
    assert_eq!(target.send("GET", "/collections/apples", json!({})).await.0, 404);
    let done = import(&target, &["--from", &source.url, "--state", &state, "-c", "pears"]).await;
    assert!(!done.success && done.stderr.contains("no collection \"pears\"; it has apples, books"), "{}", done.stderr);
    let done = import(&target, &["--from", "localhost", "--state", &state]).await;
    assert!(!done.success && done.stderr.contains("--from"), "{}", done.stderr);
    let done = import(&target, &["--from", &source.url, "--create", "x.npy"]).await;
    assert!(!done.success && done.stderr.contains("cannot be used with"), "{}", done.stderr);
}
