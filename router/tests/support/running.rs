//! A router before one real node, and a client of its HTTP.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nearring_node::node::NodeBuilder;
use nearring_node::store::EngineKind;
use nearring_proto::ids::NodeId;
use nearring_router::pipeline::Pipeline;
use nearring_router::router::RouterBuilder;
use nearring_router::settings::Settings;
use serde_json::Value;
use tokio_stream::wrappers::TcpListenerStream;

/// One node and a router before it.
pub(crate) struct Running {
    // Not every test goes behind the door.
    #[allow(dead_code)]
    pub(crate) pipeline: Pipeline,
    pub(crate) http: Client<HttpConnector, Full<Bytes>>,
    /// What paths are appended to.
    pub(crate) url: String,
    /// Where gRPC is served.
    #[allow(dead_code)]
    pub(crate) grpc: String,
    _data: tempfile::TempDir,
}

/// Starts both; `door` is where the paths of requests begin.
pub(crate) async fn start(door: &str, change: impl FnOnce(&mut Settings)) -> Running {
    let bind = || async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let data = tempfile::tempdir().unwrap();
    let (node, http, grpc) = (bind().await, bind().await, bind().await);
    let address = node.local_addr().unwrap().to_string();
    let seeds = vec![(NodeId(1), address.clone())];
    let of_node = nearring_node::settings::Settings::new(NodeId(1), data.path().join("1"), address.clone(), seeds);
    let node_builder = NodeBuilder::new(of_node).engine(EngineKind::Memory).seed(1);
    tokio::spawn(node_builder.serve(TcpListenerStream::new(node), std::future::pending()));
    let mut settings = Settings::new(vec![address]);
    settings.deadlines.read = Duration::from_secs(20);
    change(&mut settings);
    let router = RouterBuilder::new(settings).seed(3).start().unwrap();
    let pipeline = router.pipeline().clone();
    let url = format!("http://{}{door}", http.local_addr().unwrap());
    let at = format!("http://{}", grpc.local_addr().unwrap());
    tokio::spawn(router.clone().serve(TcpListenerStream::new(grpc), std::future::pending()));
    tokio::spawn(router.serve_rest(http, std::future::pending()));
    Running { pipeline, http: Client::builder(TokioExecutor::new()).build_http(), url, grpc: at, _data: data }
}

impl Running {
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .header("authorization", "Bearer sk-anything")
            .body(Full::new(body.into()))
            .unwrap();
        let (head, body) = self.http.request(request).await.unwrap().into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn json(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let (status, _, body) = self.send(method, path, body.to_string()).await;
        (status, serde_json::from_slice(&body).unwrap())
    }
}
