//! Snapshots of a real cluster of three nodes: consistent while writes go on, restorable into others, and whole or not there.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#[allow(dead_code)]
#[path = "support/cluster.rs"]
mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::{Cluster, Door};
use http::StatusCode;
use nearring_proto::ids::{PointId, ShardId};
use nearring_proto::placement::ring::HomeRing;
use nearring_proto::write::Point;
use nearring_router::snapshot::archive::{Part, Reader};
use serde_json::{Value, json};

/// Points that no test changes.
const STILL: u64 = 400;
/// Written one after another while snapshots are taken: numbers from here on.
const FIRST: u64 = 1_000_000;

fn settings() -> Value {
    json!({
        "vectors": {
            "": {"size": 16, "distance": "Cosine", "on_disk": true},
            "rows": {"size": 4, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}},
        },
        "sparse_vectors": {"words": {"modifier": "idf"}},
        "shard_number": 3,
        "hnsw_config": {"m": 24},
        "metadata": {"owner": "tests"},
    })
}

fn point(number: u64) -> Value {
    let id = match number % 3 {
        0 => json!(number),
        1 => json!(uuid::Uuid::from_u128(u128::from(number) << 64)),
        _ => json!(format!("text-{number}")),
    };
    let at = number as f64;
    let dense: Vec<f64> = (0..16).map(|row| (at * 0.37 + f64::from(row)).sin()).collect();
    let mut vector = json!({"": dense, "rows": [[at, 1.0, 2.0, 3.0], [0.5, at, 0.0, 1.0]]});
    if !number.is_multiple_of(4) {
        vector["words"] = json!({"indices": [number % 50, 60 + number % 7], "values": [0.5, 1.0 + at]});
    }
    let lang = if number.is_multiple_of(2) { "en" } else { "de" };
    json!({"id": id, "vector": vector, "payload": {"number": number, "lang": lang, "deep": {"x": [1.5, null]}}})
}

async fn fill(door: &Door, name: &str) {
    door.create(name, settings()).await;
    door.ok("PUT", &format!("/collections/{name}/index"), json!({"field_name": "lang", "field_schema": "keyword"}))
        .await;
    let all: Vec<Value> = (0..STILL).map(point).collect();
    for points in all.chunks(100) {
        door.ok("PUT", &format!("/collections/{name}/points?wait=true"), json!({"points": points})).await;
    }
}

/// Every point of a collection, by id.
async fn all(door: &Door, name: &str) -> BTreeMap<String, Value> {
    let (mut found, mut offset) = (BTreeMap::new(), Value::Null);
    loop {
        let body = json!({"limit": 500, "with_payload": true, "with_vector": true, "offset": offset});
        let mut page = door.ok("POST", &format!("/collections/{name}/points/scroll"), body).await;
        for point in page["points"].as_array().unwrap() {
            found.insert(point["id"].to_string(), point.clone());
        }
        offset = page["next_page_offset"].take();
        if offset.is_null() {
            return found;
        }
    }
}

/// What an archive holds, by shard.
fn read(path: &Path) -> BTreeMap<ShardId, BTreeMap<PointId, Point>> {
    let mut reader = Reader::open(File::open(path).unwrap()).unwrap();
    let (mut shards, mut shard) = (BTreeMap::<_, BTreeMap<_, _>>::new(), ShardId(0));
    while let Some(part) = reader.next_part().unwrap() {
        match part {
            Part::Shard { position, .. } => {
                shard = position.shard;
                shards.entry(shard).or_default();
            }
            Part::Points(points) => {
                shards.entry(shard).or_default().extend(points.into_iter().map(|point| (point.id.clone(), point)));
            }
        }
    }
    shards
}

async fn snapshot(door: &Door, name: &str) -> (String, PathBuf) {
    let made = door.ok("POST", &format!("/collections/{name}/snapshots"), Value::Null).await;
    let file = made["name"].as_str().unwrap().to_owned();
    assert!(file.starts_with(&format!("{name}-")) && file.ends_with(".snapshot"), "{file}");
    let path = door.snapshots.join(name).join(&file);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), made["size"].as_u64().unwrap());
    (file, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_writes_is_a_prefix_of_every_shard_and_becomes_collections_of_any_size_anywhere() {
    let cluster = Cluster::start(3, 1).await;
    let door = Arc::new(cluster.door());
    fill(&door, "source").await;
    let shards = cluster.pipeline().describe_collection("source").await.unwrap().shards;
    let ring = HomeRing::new(&shards);
    let home = |number: u64| ring.home_of(&PointId::Number(number), "");

    // One after another: where a shard holds a later one, it holds all earlier ones of its own.
    let (acknowledged, stop) = (Arc::new(AtomicU64::new(FIRST)), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn({
        let (door, acknowledged, stop) = (door.clone(), acknowledged.clone(), stop.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let number = acknowledged.load(Ordering::Relaxed);
                let mut point = point(number);
                point["id"] = json!(number);
                door.ok("PUT", "/collections/source/points?wait=true", json!({"points": [point]})).await;
                acknowledged.store(number + 1, Ordering::Relaxed);
            }
        }
    });
    let mut taken = Vec::new();
    for _ in 0..3 {
        let before = acknowledged.load(Ordering::Relaxed);
        let (name, path) = snapshot(&door, "source").await;
        let after = acknowledged.load(Ordering::Relaxed) + 1;
        for (shard, points) in read(&path) {
            let number = |id: &PointId| match id {
                PointId::Number(number) if *number >= FIRST => Some(*number),
                _ => None,
            };
            let found: BTreeSet<u64> = points.keys().filter_map(number).collect();
            let until = found.last().map_or(FIRST, |last| last + 1);
            let of_shard =
                |until: u64| (FIRST..until).filter(|number| home(*number) == shard).collect::<BTreeSet<u64>>();
            assert_eq!(found, of_shard(until), "no prefix");
            assert!(found.is_superset(&of_shard(before)), "lacks what was acknowledged before");
            assert!(until <= after);
        }
        taken.push((name, path));
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    assert!(acknowledged.load(Ordering::Relaxed) > FIRST + 10, "nothing was written meanwhile");
    let listed = door.ok("GET", "/collections/source/snapshots", Value::Null).await;
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(BTreeSet::from_iter(names), taken.iter().map(|(name, _)| name.as_str()).collect());

    let (name, path) = taken.pop().unwrap();
    let archived: usize = read(&path).values().map(BTreeMap::len).sum();
    let source = all(&door, "source").await;
    let described = door.ok("GET", "/collections/source", Value::Null).await;
    let other = Cluster::start(1, 2).await;
    let elsewhere = Arc::new(other.door());
    let (status, head, bytes) =
        door.send("GET", &format!("/collections/source/snapshots/{name}"), Bytes::new(), "").await;
    assert_eq!((status, bytes.len()), (StatusCode::OK, std::fs::metadata(&path).unwrap().len() as usize));
    assert_eq!(head["content-length"], bytes.len().to_string().as_str());
    for (target, shards) in [(&door, 1), (&door, 2), (&door, 5), (&elsewhere, 4)] {
        let into = format!("into{shards}");
        let sent = if Arc::ptr_eq(target, &elsewhere) {
            target
                .upload(
                    &format!("/collections/{into}/snapshots/upload?shard_number={shards}&priority=snapshot"),
                    &bytes,
                )
                .await
        } else {
            let body = json!({"location": format!("file://{}", path.display()), "priority": "snapshot"});
            target.json("PUT", &format!("/collections/{into}/snapshots/recover?shard_number={shards}"), body).await
        };
        assert_eq!(sent.0, StatusCode::OK, "{}", sent.1);
        assert_eq!(sent.1["result"], true);
        let restored = all(target, &into).await;
        assert_eq!(restored.len(), archived);
        for (id, point) in &restored {
            // Nothing that is in the snapshot was changed later.
            assert_eq!(point, &source[id], "point {id} in {shards} shards");
        }
        let info = target.ok("GET", &format!("/collections/{into}"), Value::Null).await;
        assert_eq!(info["config"]["params"]["shard_number"], shards);
        assert!(info.get("warnings").is_none(), "{info}");
        for part in
            ["/config/hnsw_config", "/config/metadata", "/config/params/vectors", "/config/params/sparse_vectors"]
        {
            assert_eq!(info.pointer(part), described.pointer(part), "{part}");
        }
        assert_eq!(info["payload_schema"]["lang"]["data_type"], "keyword");
        let query = json!({"query": {"indices": [7, 61], "values": [1.0, 1.0]}, "using": "words", "limit": 5});
        let found = target.ok("POST", &format!("/collections/{into}/points/query"), query).await;
        assert_eq!(found["points"].as_array().unwrap().len(), 5);
    }
    // An empty collection takes one too, and keeps its own number of shards.
    let mut empty = settings();
    empty["shard_number"] = json!(7);
    door.create("empty", empty).await;
    let body = json!({"location": format!("file://localhost{}", path.display())});
    door.ok("PUT", "/collections/empty/snapshots/recover", body).await;
    assert_eq!(all(&door, "empty").await.len(), archived);
    assert_eq!(door.ok("GET", "/collections/empty", Value::Null).await["config"]["params"]["shard_number"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_changes_nothing_and_says_why() {
    let cluster = Cluster::start(1, 3).await;
    let door = cluster.door_with(|settings| settings.snapshots.as_mut().unwrap().upload_bytes_max = 4 << 20);
    fill(&door, "books").await;
    let (name, path) = snapshot(&door, "books").await;
    let bytes = std::fs::read(&path).unwrap();
    let sha256 = door.ok("GET", "/collections/books/snapshots", Value::Null).await[0]["checksum"].clone();
    assert_eq!(std::fs::read_to_string(format!("{}.checksum", path.display())).unwrap(), sha256.as_str().unwrap());
    let exists =
        async |name: &str| door.ok("GET", &format!("/collections/{name}/exists"), Value::Null).await["exists"] == true;
    let location = format!("file://{}", path.display());

    let (status, told) = door.json("PUT", "/collections/books/snapshots/recover", json!({"location": location})).await;
    assert_eq!(status, StatusCode::CONFLICT, "{told}");
    assert!(told["status"]["error"].as_str().unwrap().contains("400 points"), "{told}");
    for (broken, words) in [(&bytes[..bytes.len() - 1], "cut off"), (&b"no archive at all"[..], "no archive")] {
        let (status, told) = door.upload("/collections/new/snapshots/upload", broken).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{told}");
        assert!(told["status"]["error"].as_str().unwrap().contains(words), "{told}");
    }
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(door.upload("/collections/new/snapshots/upload", &flipped).await.0, StatusCode::BAD_REQUEST);
    let wrong = "3".repeat(64);
    let body = json!({"location": location, "checksum": wrong});
    assert_eq!(door.json("PUT", "/collections/new/snapshots/recover", body).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(
        door.upload(&format!("/collections/new/snapshots/upload?checksum={wrong}"), &bytes).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        door.upload("/collections/new/snapshots/upload", &vec![0; 5 << 20]).await.0,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    let (status, _) =
        door.json("PUT", "/collections/new/snapshots/recover", json!({"location": "file:///etc/passwd"})).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    for name in ["..%2F..%2Fetc%2Fpasswd", "none.snapshot", "%2Fetc%2Fpasswd"] {
        for method in ["GET", "DELETE"] {
            let (status, ..) =
                door.send(method, &format!("/collections/books/snapshots/{name}"), Bytes::new(), "").await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{method} {name}");
        }
    }
    assert_eq!(
        door.json("PUT", "/collections/..%2Fnew/snapshots/recover", json!({"location": location})).await.0,
        StatusCode::BAD_REQUEST
    );
    assert!(!exists("new").await);
    let left: Vec<_> = std::fs::read_dir(door.snapshots.join(".partial")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    for (method, path, status) in [
        ("GET", "/snapshots", 501),
        ("POST", "/snapshots", 501),
        ("GET", "/snapshots/%2Fetc%2Fpasswd", 404),
        ("GET", "/collections/books/shards/0/snapshots", 501),
        ("POST", "/collections/none/snapshots", 404),
        ("GET", "/collections/none/snapshots", 404),
    ] {
        assert_eq!(door.send(method, path, Bytes::new(), "").await.0.as_u16(), status, "{method} {path}");
    }

    // Restored with its checksum, over HTTP, under another name, though its own collection is gone.
    door.ok("DELETE", "/collections/books", Value::Null).await;
    let url = format!("{}/collections/books/snapshots/{name}", door.url);
    door.ok("PUT", "/collections/new/snapshots/recover", json!({"location": url, "checksum": sha256})).await;
    assert_eq!(all(&door, "new").await.len(), STILL as usize);
    assert_eq!(
        door.json("DELETE", &format!("/collections/books/snapshots/{name}?wait=false"), Value::Null).await.0,
        StatusCode::ACCEPTED
    );
    let until = Instant::now() + Duration::from_secs(10);
    while path.exists() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!path.exists());
    let off = cluster.door_with(|settings| settings.snapshots = None);
    let (status, told) = off.json("GET", "/collections/new/snapshots", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(told["status"]["error"].as_str().unwrap().contains("--snapshots"), "{told}");
}

/// Numbers with large payloads, so that reading them takes a moment.
async fn fill_large(door: &Door, name: &str, count: u64) {
    door.create(name, json!({"vectors": {"size": 64, "distance": "Dot"}, "shard_number": 3})).await;
    for from in (0..count).step_by(500) {
        let points: Vec<Value> = (from..(from + 500).min(count))
            .map(|number| json!({"id": number, "vector": vec![number as f32 / 7.0; 64], "payload": {"text": "x".repeat(700)}}))
            .collect();
        door.ok("PUT", &format!("/collections/{name}/points?wait=true"), json!({"points": points})).await;
    }
}

/// Bytes of what is being written or received.
fn partial(door: &Door) -> u64 {
    let files = std::fs::read_dir(door.snapshots.join(".partial")).unwrap();
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_during_an_export_costs_an_attempt_and_a_majority_that_is_gone_an_error() {
    let mut cluster = Cluster::start(3, 4).await;
    let door = Arc::new(cluster.door_with(|settings| settings.deadlines.read = Duration::from_secs(3)));
    fill_large(&door, "large", 12_000).await;
    let making = tokio::spawn({
        let door = door.clone();
        async move { door.json("POST", "/collections/large/snapshots", Value::Null).await }
    });
    let until = Instant::now() + Duration::from_secs(20);
    while partial(&door) < 1 << 20 && !making.is_finished() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!making.is_finished(), "it was over before a node could die");
    cluster.kill(2);
    let (status, made) = making.await.unwrap();
    assert_eq!(status, StatusCode::OK, "{made}");
    let path = door.snapshots.join("large").join(made["result"]["name"].as_str().unwrap());
    let points: usize = read(&path).values().map(BTreeMap::len).sum();
    assert_eq!(points, 12_000);

    cluster.kill(1);
    let (status, told) = door.json("POST", "/collections/large/snapshots", Value::Null).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{told}");
    assert_eq!(partial(&door), 0);
    assert_eq!(std::fs::read_dir(door.snapshots.join("large")).unwrap().count(), 2, "the first one and its checksum");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_cut_off_is_repeated_with_the_same_snapshot_only() {
    let cluster = Cluster::start(1, 5).await;
    let door = cluster.door();
    fill_large(&door, "large", 12_000).await;
    fill(&door, "books").await;
    let (_, large) = snapshot(&door, "large").await;
    let (_, books) = snapshot(&door, "books").await;
    let (large, books) = (std::fs::read(large).unwrap(), std::fs::read(books).unwrap());
    // A router of its own, which dies on the way.
    let dying = Arc::new(cluster.door());
    let cut = tokio::spawn({
        let (dying, large) = (dying.clone(), large.clone());
        async move { dying.try_upload("/collections/again/snapshots/upload", &large).await }
    });
    let count = async || {
        let (status, told) = door.json("POST", "/collections/again/points/count", json!({})).await;
        if status == StatusCode::OK { told["result"]["count"].as_u64().unwrap() } else { 0 }
    };
    while count().await == 0 {
        assert!(!cut.is_finished());
    }
    dying.kill();
    assert!(cut.await.unwrap().is_none(), "it was over before its router could die");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(count().await < 12_000);
    let info = door.ok("GET", "/collections/again", Value::Null).await;
    assert!(info["warnings"][0]["message"].as_str().unwrap().contains("being restored"), "{info}");
    let (status, told) = door.upload("/collections/again/snapshots/upload", &books).await;
    assert_eq!(status, StatusCode::CONFLICT, "{told}");
    let (status, told) = door.json("POST", "/collections/again/snapshots", Value::Null).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "half a collection is nothing to keep: {told}");
    let (status, told) = door.upload("/collections/again/snapshots/upload", &large).await;
    assert_eq!(status, StatusCode::OK, "{told}");
    assert_eq!(count().await, 12_000);
    assert!(door.ok("GET", "/collections/again", Value::Null).await.get("warnings").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_creates_lists_downloads_restores_and_deletes() {
    let cluster = Cluster::start(1, 6).await;
    let door = cluster.door();
    fill(&door, "books").await;
    let folder = tempfile::tempdir().unwrap();
    let nearring = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_nearring"))
            .args(["--router", &door.grpc, "--json"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), text, String::from_utf8(output.stderr).unwrap())
    };
    let ok = |arguments: &[&str]| -> Value {
        let (success, text, error) = nearring(arguments);
        assert!(success, "{arguments:?}: {error}");
        serde_json::from_str(&text).unwrap()
    };
    let made = ok(&["snapshot", "create", "books"]);
    let name = made["name"].as_str().unwrap();
    assert_eq!(ok(&["snapshot", "list", "books"]), json!([made]));
    let file = folder.path().join("copy").to_str().unwrap().to_owned();
    assert_eq!(ok(&["snapshot", "download", "books", name, "--output", &file])["bytes"], made["bytes"]);
    let sha256 = made["sha256"].as_str().unwrap();
    let restored = ok(&["snapshot", "restore", "copied", &file, "--shards", "2", "--sha256", sha256]);
    assert_eq!(restored, json!({"collection": "copied", "points": STILL, "shards": 2}));
    assert_eq!(ok(&["snapshot", "restore", "listed", name, "--of", "books"])["points"], STILL);
    let url = format!("{}/collections/books/snapshots/{name}", door.url);
    assert_eq!(ok(&["snapshot", "restore", "fetched", &url])["points"], STILL);
    assert_eq!(all(&door, "copied").await, all(&door, "books").await);
    let (success, _, error) = nearring(&["snapshot", "restore", "books", &file]);
    assert!(!success && error.contains("400 points"), "{error}");
    assert_eq!(ok(&["snapshot", "delete", "books", name])["deleted"], name);
    assert!(!nearring(&["snapshot", "delete", "books", name]).0);
    assert_eq!(ok(&["snapshot", "list", "books"]), json!([]));
}
