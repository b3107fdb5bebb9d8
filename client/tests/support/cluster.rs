//! Nodes and routers, each in a runtime of its own, so that each can die alone.
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
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
use nearring_router::snapshot::SnapshotSettings;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;

/// Ends what runs in it at once, and does not wait.
struct Life(Mutex<Option<Runtime>>);

impl Life {
    fn new() -> Self {
        Self(Mutex::new(Some(Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())))
    }

    fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) {
        self.0.lock().unwrap().as_ref().unwrap().spawn(work);
    }

    fn end(&self) {
        if let Some(runtime) = self.0.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) struct Cluster {
    nodes: Vec<Life>,
    addresses: Vec<String>,
    seed: u64,
    pipeline: Mutex<Option<Pipeline>>,
    _data: tempfile::TempDir,
}

/// A router, and a client of its HTTP.
pub(crate) struct Door {
    http: Client<HttpConnector, Full<Bytes>>,
    pub(crate) url: String,
    pub(crate) grpc: String,
    pub(crate) snapshots: PathBuf,
    life: Arc<Life>,
    _place: tempfile::TempDir,
}

fn bind() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

impl Cluster {
    pub(crate) async fn start(nodes: u64, seed: u64) -> Self {
        let data = tempfile::tempdir().unwrap();
        let listeners: Vec<_> = (0..nodes).map(|_| bind()).collect();
        let addresses: Vec<String> = listeners.iter().map(|(_, address)| address.clone()).collect();
        let seeds: Vec<(NodeId, String)> = (1..).map(NodeId).zip(addresses.iter().cloned()).collect();
        let mut lives = Vec::new();
        for ((listener, address), number) in listeners.into_iter().zip(1..) {
            let folder = data.path().join(number.to_string());
            let settings = nearring_node::settings::Settings::new(NodeId(number), folder, address, seeds.clone());
            let life = Life::new();
            life.run(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let builder = NodeBuilder::new(settings).engine(EngineKind::Memory).seed(seed * 10 + number);
                builder.serve(TcpListenerStream::new(listener), std::future::pending()).await
            });
            lives.push(life);
        }
        Self { nodes: lives, addresses, seed, pipeline: Mutex::new(None), _data: data }
    }

    pub(crate) fn door(&self) -> Door {
        self.door_with(|_| ())
    }

    pub(crate) fn door_with(&self, change: impl FnOnce(&mut Settings)) -> Door {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().canonicalize().unwrap().join("snapshots");
        let mut settings = Settings::new(self.addresses.clone());
        settings.deadlines.read = Duration::from_secs(10);
        settings.snapshots = Some(SnapshotSettings { directory: directory.clone(), upload_bytes_max: 1 << 30 });
        change(&mut settings);
        let life = Arc::new(Life::new());
        let ((http, http_at), (grpc, grpc_at)) = (bind(), bind());
        let (tell, told) = std::sync::mpsc::channel();
        let seed = self.seed;
        life.run(async move {
            let router = RouterBuilder::new(settings).seed(seed).start().unwrap();
            tell.send(router.pipeline().clone()).unwrap();
            let grpc = TcpListenerStream::new(tokio::net::TcpListener::from_std(grpc).unwrap());
            let http = tokio::net::TcpListener::from_std(http).unwrap();
            tokio::join!(
                router.clone().serve(grpc, std::future::pending()),
                router.serve_rest(http, std::future::pending())
            )
        });
        *self.pipeline.lock().unwrap() = Some(told.recv().unwrap());
        let http = Client::builder(TokioExecutor::new()).build_http();
        Door { http, url: format!("http://{http_at}"), grpc: grpc_at, snapshots: directory, life, _place: place }
    }

    /// Of the newest router.
    pub(crate) fn pipeline(&self) -> Pipeline {
        self.pipeline.lock().unwrap().clone().unwrap()
    }

    /// Ends a node, by number, without a word.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node - 1].end();
    }
}

impl Door {
    pub(crate) fn kill(&self) {
        self.life.end();
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        kind: &str,
    ) -> Option<(StatusCode, HeaderMap, Bytes)> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let (head, body) = self.http.request(request.body(Full::new(body)).unwrap()).await.ok()?.into_parts();
        Some((head.status, head.headers, body.collect().await.ok()?.to_bytes()))
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        kind: &str,
    ) -> (StatusCode, HeaderMap, Bytes) {
        self.request(method, path, body, kind).await.unwrap()
    }

    pub(crate) async fn json(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let (status, _, bytes) = self.send(method, path, bytes, "application/json").await;
        (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{method} {path}: {bytes:?}")))
    }

    /// The result of a request that succeeds.
    pub(crate) async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, mut answer) = self.json(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {answer}");
        answer["result"].take()
    }

    /// Creates a collection, once the nodes have formed their cluster.
    pub(crate) async fn create(&self, name: &str, settings: Value) {
        for _ in 0..400 {
            if self.json("PUT", &format!("/collections/{name}"), settings.clone()).await.0 == StatusCode::OK {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.ok("PUT", &format!("/collections/{name}"), settings).await;
    }

    /// Sends a file as a form; `None` where the connection breaks.
    pub(crate) async fn try_upload(&self, path: &str, file: &[u8]) -> Option<(StatusCode, Value)> {
        let mut form =
            b"--edge\r\nContent-Disposition: form-data; name=\"snapshot\"; filename=\"a.snapshot\"\r\n\r\n".to_vec();
        form.extend_from_slice(file);
        form.extend_from_slice(b"\r\n--edge--\r\n");
        let (status, _, bytes) = self.request("POST", path, form.into(), "multipart/form-data; boundary=edge").await?;
        Some((status, serde_json::from_slice(&bytes).unwrap()))
    }

    pub(crate) async fn upload(&self, path: &str, file: &[u8]) -> (StatusCode, Value) {
        self.try_upload(path, file).await.unwrap()
    }
}
