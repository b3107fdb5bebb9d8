//! What operators ask of a router, and what collections refuse: metrics, telemetry, cluster, strict mode, over REST and gRPC.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/running.rs"]
mod running;

use std::time::Duration;

use http::StatusCode;
use nearring_proto::qdrant as pb;
use nearring_proto::qdrant::collections_client::CollectionsClient;
use nearring_proto::qdrant::points_client::PointsClient;
use running::Running;
use serde_json::{Value, json};
use tonic::Code;

/// A router before a node, with three points in `things`.
async fn start() -> Running {
    let running = running::start("", |_| ()).await;
    let body = json!({"vectors": {"size": 2, "distance": "Dot"}, "sparse_vectors": {"words": {}}});
    for _ in 0..200 {
        if running.json("PUT", "/collections/things", body.clone()).await.0 == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let points: Vec<Value> =
        (1..=3).map(|n| json!({"id": n, "vector": [n, 1], "payload": {"n": n, "city": "Berlin"}})).collect();
    assert_eq!(running.json("PUT", "/collections/things/points", json!({"points": points})).await.0, StatusCode::OK);
    running
}

async fn text(running: &Running, path: &str) -> String {
    let (status, headers, body) = running.send("GET", path, "").await;
    assert_eq!(status, StatusCode::OK, "{path}");
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/plain"), "{headers:?}");
    String::from_utf8(body.to_vec()).unwrap()
}

async fn result(running: &Running, path: &str) -> Value {
    let (status, mut answer) = running.json("GET", path, json!({})).await;
    assert_eq!(status, StatusCode::OK, "{path}: {answer}");
    answer["result"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_of_what_happened_and_nobody_outside_names_them() {
    let running = start().await;
    let channel = tonic::transport::Endpoint::from_shared(running.grpc.clone()).unwrap().connect().await.unwrap();
    let mut points = PointsClient::new(channel);
    let count = pb::CountPoints { collection_name: "things".into(), ..Default::default() };
    assert_eq!(points.count(count).await.unwrap().into_inner().result.unwrap().count, 3);
    let none = pb::CountPoints { collection_name: "none".into(), ..Default::default() };
    assert_eq!(points.count(none).await.unwrap_err().code(), Code::NotFound);
    for path in ["/collections/made-up", "/made/up", "/collections/made-up/made-up"] {
        running.send("GET", path, "").await;
    }
    let told = text(&running, "/metrics").await;
    for line in [
        "# TYPE app_info gauge",
        "collections_total 1",
        "collection_points{id=\"things\"} 3",
        "collection_vectors{collection=\"things\"} 3",
        "collections_vector_total 3",
        "cluster_enabled 1",
        "cluster_peers_total 1",
        "cluster_commit{peer_id=\"1\"} ",
        "nearring_node_up{node=\"1\"} 1",
        "nearring_shard_leader{collection=\"\",shard=\"0\"} 1",
        "rest_responses_total{method=\"PUT\",endpoint=\"/collections/{collection_name}/points\",status=\"200\"} 1",
        "rest_responses_fail_total{method=\"GET\",endpoint=\"/collections/{collection_name}\",status=\"404\"} 1",
        "rest_responses_total{method=\"GET\",endpoint=\"other\",status=\"404\"} 2",
        "grpc_responses_total{endpoint=\"/qdrant.Points/Count\",status=\"0\"} 1",
        "grpc_responses_fail_total{endpoint=\"/qdrant.Points/Count\",status=\"5\"} 1",
        "grpc_responses_duration_seconds_count{endpoint=\"/qdrant.Points/Count\",status=\"0\"} 1",
    ] {
        assert!(told.lines().any(|told| told.starts_with(line)), "{line} in {told}");
    }
    assert!(!told.contains("made-up"), "{told}");
    let told = text(&running, "/metrics?per_collection=true").await;
    assert!(told.contains("status=\"200\",collection=\"things\"} 1"), "{told}");
    assert!(!text(&running, "/metrics?per_collection=true&anonymize=true").await.contains("things"));
    let (status, _, _) = running.send("GET", "/metrics?per_collection=perhaps", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_tells_more_with_each_level() {
    let running = start().await;
    for (level, keys) in [
        (1, vec!["optimizers_status", "params", "vectors"]),
        (2, vec!["config", "id"]),
        (3, vec!["config", "id", "resharding", "shards", "transfers"]),
        (10, vec!["config", "id", "resharding", "shards", "transfers"]),
    ] {
        let told = result(&running, &format!("/telemetry?details_level={level}")).await;
        let collection = told["collections"]["collections"][0].as_object().unwrap();
        assert_eq!(collection.keys().collect::<Vec<_>>(), keys, "{level}");
        assert_eq!(told["cluster"]["status"]["consensus_thread_status"]["consensus_thread_status"], "working");
    }
    let told = result(&running, "/telemetry").await;
    assert_eq!(told["collections"], json!({"number_of_collections": 1}));
    let upsert = &told["requests"]["rest"]["responses"]["PUT /collections/{collection_name}/points"]["200"];
    assert_eq!(upsert["count"], 1);
    assert!(upsert["avg_duration_micros"].as_f64().unwrap() > 0.0);
    assert!(upsert["last_responded"].as_str().unwrap().starts_with("20"));
    assert!(told["requests"]["rest"].get("per_collection_responses").is_none());
    let told = result(&running, "/telemetry?per_collection=true").await;
    assert!(told["requests"]["rest"]["per_collection_responses"].get("things").is_some());
    let told = result(&running, "/telemetry?details_level=10&per_collection=true&anonymize=true").await;
    assert!(!told.to_string().contains("things") && !told.to_string().contains("127.0.0.1"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_told_by_its_replicas() {
    let running = start().await;
    let cluster = result(&running, "/cluster").await;
    assert_eq!((&cluster["status"], &cluster["peer_id"]), (&json!("enabled"), &json!(1)));
    assert!(cluster["peers"]["1"]["uri"].as_str().unwrap().starts_with("http://127.0.0.1:"));
    assert_eq!((&cluster["raft_info"]["role"], &cluster["raft_info"]["is_voter"]), (&json!("Leader"), &json!(true)));
    assert_eq!(cluster["message_send_failures"], json!({}));
    let shards = result(&running, "/collections/things/cluster").await;
    let local = shards["local_shards"].as_array().unwrap();
    assert_eq!((shards["shard_count"].as_u64().unwrap() as usize, &shards["remote_shards"]), (local.len(), &json!([])));
    let points: u64 = local.iter().map(|shard| shard["points_count"].as_u64().unwrap()).sum();
    assert_eq!(points, 3);
    assert!(local.iter().all(|shard| shard["state"] == "Active"));
    assert_eq!(running.json("GET", "/collections/none/cluster", json!({})).await.0, StatusCode::NOT_FOUND);
    let change = json!({"move_shard": {"shard_id": 1, "from_peer_id": 1, "to_peer_id": 2}});
    for (method, path) in [("POST", "/collections/things/cluster"), ("DELETE", "/cluster/peer/1")] {
        let (status, answer) = running.json(method, path, change.clone()).await;
        assert_eq!(status, StatusCode::NOT_IMPLEMENTED, "{path}");
        assert_eq!(answer["status"]["error"], "not supported: cluster");
    }
    let mut collections = CollectionsClient::connect(running.grpc.clone()).await.unwrap();
    let wanted = pb::CollectionClusterInfoRequest { collection_name: "things".into() };
    let told = collections.collection_cluster_info(wanted).await.unwrap().into_inner();
    assert_eq!((told.peer_id, told.local_shards.len()), (1, local.len()));
    assert_eq!(told.local_shards.iter().map(|shard| shard.points_count).sum::<u64>(), 3);
    assert_eq!(told.local_shards[0].state(), pb::ReplicaState::Active);

    assert_eq!(result(&running, "/issues").await, json!({"issues": []}));
    let (status, answer) = running.json("DELETE", "/issues", json!({})).await;
    assert_eq!((status, &answer["result"]), (StatusCode::OK, &json!(true)));
    let told = result(&running, "/collections/things/optimizations").await;
    assert_eq!((&told["running"], told.get("idle_segments")), (&json!([]), None));
    let told = result(&running, "/collections/things/optimizations?with=queued,%20completed%20,idle_segments").await;
    assert_eq!((&told["queued"], &told["completed"]), (&json!([]), &json!([])));
    let idle = told["idle_segments"].as_array().unwrap().iter();
    assert_eq!(idle.map(|segment| segment["points_count"].as_u64().unwrap()).sum::<u64>(), 3);
    let odd = running.json("GET", "/collections/things/optimizations?with=odd", json!({})).await;
    assert_eq!(odd.0, StatusCode::BAD_REQUEST);
}

async fn limit(running: &Running, limits: Value) {
    let body = json!({"strict_mode_config": limits});
    let (status, answer) = running.json("PATCH", "/collections/things", body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_in_strict_mode_refuses_what_is_over_its_limits() {
    let running = start().await;
    let condition = json!({"key": "city", "match": {"value": "Berlin"}});
    let berlin = json!({"must": [condition]});
    let sparse = |count: u32| {
        let (indices, values): (Vec<u32>, Vec<f32>) = (0..count).map(|n| (n, 1.0)).unzip();
        json!({"points": [{"id": 1, "vector": {"": [1, 1], "words": {"indices": indices, "values": values}}}]})
    };
    let many: Vec<Value> = (1..=3).map(|n| json!({"id": n, "vector": [n, 1]})).collect();
    for (limits, call, within, over, says) in [
        (
            json!({"max_query_limit": 4}),
            "POST points/query",
            json!({"query": [1, 0], "limit": 4}),
            json!({"query": [1, 0], "limit": 5}),
            "Limit exceeded 5 > 4 for \"limit\"",
        ),
        (
            json!({"max_query_limit": 4}),
            "POST points/scroll",
            json!({"limit": 4}),
            json!({"limit": 5}),
            "Limit exceeded 5 > 4",
        ),
        (
            json!({"max_query_limit": 15}),
            "POST points/query/groups",
            json!({"query": [1, 0], "group_by": "n", "limit": 5, "group_size": 3}),
            json!({"query": [1, 0], "group_by": "n", "limit": 10, "group_size": 3}),
            "Limit exceeded 30 > 15 for \"limit\"",
        ),
        (
            json!({"unindexed_filtering_retrieve": false}),
            "POST points/count",
            json!({}),
            json!({"filter": berlin}),
            "Index required but not found for \"city\" of one of the following types: [keyword]",
        ),
        (
            json!({"unindexed_filtering_update": false}),
            "POST points/payload",
            json!({"payload": {"a": 1}, "points": [1]}),
            json!({"payload": {"a": 1}, "filter": berlin}),
            "\"city\"",
        ),
        (
            json!({"search_max_hnsw_ef": 5}),
            "POST points/query",
            json!({"query": [1, 0], "params": {"hnsw_ef": 5}}),
            json!({"query": [1, 0], "params": {"hnsw_ef": 6}}),
            "hnsw_ef",
        ),
        (
            json!({"search_allow_exact": false}),
            "POST points/search",
            json!({"vector": [1, 0], "limit": 1}),
            json!({"vector": [1, 0], "limit": 1, "params": {"exact": true}}),
            "Exact search disabled!",
        ),
        (
            json!({"search_max_oversampling": 1.5}),
            "POST points/query",
            json!({"query": [1, 0], "params": {"quantization": {"oversampling": 1.5}}}),
            json!({"query": [1, 0], "params": {"quantization": {"oversampling": 2.0}}}),
            "oversampling",
        ),
        (
            json!({"search_max_batchsize": 1}),
            "POST points/query/batch",
            json!({"searches": [{"query": [1, 0]}]}),
            json!({"searches": [{"query": [1, 0]}, {"query": [0, 1]}]}),
            "search batch size",
        ),
        (
            json!({"upsert_max_batchsize": 2}),
            "PUT points",
            json!({"points": many[..2]}),
            json!({"points": many}),
            "upsert limit",
        ),
        (
            json!({"upsert_max_batchsize": 2}),
            "PUT points/vectors",
            json!({"points": many[..2]}),
            json!({"points": many}),
            "update limit",
        ),
        (
            json!({"sparse_config": {"words": {"max_length": 4}}}),
            "PUT points",
            sparse(4),
            sparse(5),
            "Sparse vector 'words' has a limit of 4 indices, but 5 were provided!",
        ),
        (
            json!({"filter_max_conditions": 1}),
            "POST points/scroll",
            json!({"filter": berlin}),
            json!({"filter": {"must": [condition, condition]}}),
            "Filter condition limit reached (2 > 1)",
        ),
        (
            json!({"condition_max_size": 2}),
            "POST points/scroll",
            json!({"filter": {"must": [{"has_id": [1, 2]}]}}),
            json!({"filter": {"must": [{"has_id": [1, 2, 3]}]}}),
            "Condition size limit reached (3 > 2)",
        ),
        (
            json!({"max_points_count": 4}),
            "PUT points",
            json!({"points": [{"id": 4, "vector": [1, 1]}]}),
            json!({"points": [{"id": 5, "vector": [1, 1]}]}),
            "Max points count limit of 4 reached!",
        ),
        (
            json!({"max_payload_index_count": 1}),
            "PUT index",
            json!({"field_name": "n", "field_schema": "integer"}),
            json!({"field_name": "city", "field_schema": "keyword"}),
            "maximum number of payload indices (1)",
        ),
    ] {
        let (method, path) = call.split_once(' ').unwrap();
        let path = format!("/collections/things/{path}");
        let mut all = json!({"enabled": true, "max_query_limit": 1000, "unindexed_filtering_retrieve": true,
            "unindexed_filtering_update": true, "search_max_hnsw_ef": 1000, "search_allow_exact": true,
            "search_max_oversampling": 9.0, "search_max_batchsize": 99, "upsert_max_batchsize": 99,
            "filter_max_conditions": 99, "condition_max_size": 99, "max_points_count": 1000,
            "sparse_config": {"words": {"max_length": 99}}, "max_payload_index_count": 99});
        for (name, limit) in limits.as_object().unwrap() {
            all[name] = limit.clone();
        }
        limit(&running, all.clone()).await;
        let (status, answer) = running.json(method, &path, within).await;
        assert_eq!(status, StatusCode::OK, "{limits}: {answer}");
        // What was measured for the last write is good for a second.
        if limits.get("max_points_count").is_some() {
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        let (status, answer) = running.json(method, &path, over.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{limits}: {answer}");
        let error = answer["status"]["error"].as_str().unwrap();
        assert!(error.contains(says), "{limits}: {error}");
        all["enabled"] = json!(false);
        limit(&running, all).await;
        let (status, answer) = running.json(method, &path, over).await;
        assert_eq!(status, StatusCode::OK, "{limits}: {answer}");
    }
    let (status, answer) =
        running.json("PATCH", "/collections/things", json!({"strict_mode_config": {"max_timeout": "2"}})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    limit(&running, json!({"enabled": true, "max_timeout": 2})).await;
    for (timeout, wanted) in [(2, StatusCode::OK), (3, StatusCode::BAD_REQUEST)] {
        let path = format!("/collections/things/points/query?timeout={timeout}");
        assert_eq!(running.json("POST", &path, json!({"query": [1, 0]})).await.0, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_shared_by_both_doors() {
    let running = start().await;
    limit(&running, json!({"enabled": true, "read_rate_limit": 2, "write_rate_limit": 1})).await;
    let query = json!({"query": [1, 0]});
    let path = "/collections/things/points/query";
    assert_eq!(running.json("POST", path, query.clone()).await.0, StatusCode::OK);
    let mut points = PointsClient::connect(running.grpc.clone()).await.unwrap();
    let count = pb::CountPoints { collection_name: "things".into(), ..Default::default() };
    assert!(points.count(count.clone()).await.is_ok());
    let refused = points.count(count).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let wait: u32 = refused.metadata().get("retry-after").unwrap().to_str().unwrap().parse().unwrap();
    assert!((25..=30).contains(&wait), "{wait}");
    let (status, headers, body) = running.send("POST", path, query.to_string()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!((25..=30).contains(&headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap()));
    let error: Value = serde_json::from_slice(&body).unwrap();
    let error = error["status"]["error"].as_str().unwrap();
    assert!(
        error.starts_with("Rate limiting exceeded: Read rate limit exceeded: Operation requires 1 tokens"),
        "{error}"
    );
    let two: Vec<Value> = (1..=2).map(|n| json!({"id": n, "vector": [n, 1]})).collect();
    let (status, headers, _) =
        running.send("PUT", "/collections/things/points", json!({"points": two}).to_string()).await;
    assert_eq!((status, headers.get("retry-after")), (StatusCode::TOO_MANY_REQUESTS, None), "it never will fit");
    // What is not limited goes on.
    assert_eq!(running.json("GET", "/collections", json!({})).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_told_alike_by_both_doors() {
    let running = start().await;
    let mut collections = CollectionsClient::connect(running.grpc.clone()).await.unwrap();
    let of_words = pb::StrictModeSparse { max_length: Some(4) };
    let strict = pb::StrictModeConfig {
        enabled: Some(true),
        sparse_config: Some(pb::StrictModeSparseConfig { sparse_config: [("words".to_owned(), of_words)].into() }),
        ..Default::default()
    };
    let update = pb::UpdateCollection {
        collection_name: "things".into(),
        strict_mode_config: Some(strict.clone()),
        ..Default::default()
    };
    assert!(collections.update(update).await.unwrap().into_inner().result);
    let told = result(&running, "/collections/things").await;
    assert_eq!(
        told["config"]["strict_mode_config"],
        json!({"enabled": true, "sparse_config": {"words": {"max_length": 4}}})
    );
    let told = collections.get(pb::GetCollectionInfoRequest { collection_name: "things".into() }).await.unwrap();
    assert_eq!(told.into_inner().result.unwrap().config.unwrap().strict_mode_config, Some(strict));
}
