//! A cluster of one node and a router in this process, and requests to its HTTP.
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nearring_node::node::NodeBuilder;
use nearring_node::store::EngineKind;
use nearring_proto::ids::NodeId;
use nearring_router::router::RouterBuilder;
use nearring_router::settings::Settings;
use serde_json::Value;
use tokio_stream::wrappers::TcpListenerStream;

pub(crate) struct Running {
    http: Client<HttpConnector, Full<Bytes>>,
    /// Of the router's HTTP.
    pub(crate) url: String,
    /// Of the router's gRPC, `host:port`.
    pub(crate) router: String,
    _data: tempfile::TempDir,
}

pub(crate) async fn start(seed: u64) -> Running {
    let bind = || async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let data = tempfile::tempdir().unwrap();
    let (node, http, grpc) = (bind().await, bind().await, bind().await);
    let address = node.local_addr().unwrap().to_string();
    let seeds = vec![(NodeId(1), address.clone())];
    let of_node = nearring_node::settings::Settings::new(NodeId(1), data.path().join("1"), address.clone(), seeds);
    let node_builder = NodeBuilder::new(of_node).engine(EngineKind::Memory).seed(seed);
    tokio::spawn(node_builder.serve(TcpListenerStream::new(node), std::future::pending()));
    let mut settings = Settings::new(vec![address]);
    settings.deadlines.read = Duration::from_secs(20);
    let router = RouterBuilder::new(settings).seed(seed).start().unwrap();
    let url = format!("http://{}", http.local_addr().unwrap());
    let at = grpc.local_addr().unwrap().to_string();
    tokio::spawn(router.clone().serve(TcpListenerStream::new(grpc), std::future::pending()));
    tokio::spawn(router.serve_rest(http, std::future::pending()));
    Running { http: Client::builder(TokioExecutor::new()).build_http(), url, router: at, _data: data }
}

impl Running {
    pub(crate) async fn send(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let (head, body) = self.http.request(request).await.unwrap().into_parts();
        (head.status, serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap())
    }

    /// The result of a request that succeeds.
    pub(crate) async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, mut answer) = self.send(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {answer}");
        answer["result"].take()
    }

    /// Creates a collection, once the node has formed its cluster.
    pub(crate) async fn create(&self, name: &str, settings: Value) {
        for _ in 0..200 {
            if self.send("PUT", &format!("/collections/{name}"), settings.clone()).await.0 == StatusCode::OK {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.ok("PUT", &format!("/collections/{name}"), settings).await;
    }

    pub(crate) async fn count(&self, name: &str) -> u64 {
        self.ok("POST", &format!("/collections/{name}/points/count"), serde_json::json!({})).await["count"]
            .as_u64()
            .unwrap()
    }
}
