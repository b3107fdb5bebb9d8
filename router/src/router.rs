//! The router as a process part: builder, the task that follows the table, and the server.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware;
use futures::Stream;
use nearring_proto::clock::Clock;
use nearring_proto::collection::InvalidInput;
use nearring_proto::wire::Dial;
use nearring_proto::wire::nearring_server::{self, NearringServer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::cluster_view::ClusterView;
use crate::compute::Compute;
use crate::embed::{self, EmbedError, Embedder, Embedders, Static256};
use crate::gateway::count;
use crate::gateway::native::Native;
use crate::gateway::qdrant::grpc;
use crate::generate::{self, Extractive, Generator};
use crate::pipeline::Pipeline;
use crate::settings::Settings;
use crate::snapshot::Snapshots;

/// Puts a router together from its settings and its replaceable parts.
pub struct RouterBuilder {
    settings: Settings,
    dial: Option<Dial>,
    seed: Option<u64>,
    embedder: Option<Arc<dyn Embedder>>,
    more_embedders: Vec<Arc<dyn Embedder>>,
    generator: Option<Arc<dyn Generator>>,
    compute: Compute,
    clock: Clock,
}

/// Why a router does not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// A setting is out of bounds.
    #[error("settings: {0}")]
    Settings(#[from] InvalidInput),
    /// The built-in embedder does not load.
    #[error(transparent)]
    Embedder(#[from] EmbedError),
    /// The directory of snapshots cannot be used.
    #[error("the directory of snapshots: {0}")]
    Snapshots(io::Error),
    /// The server failed.
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The HTTP server failed.
    #[error("the HTTP server failed: {0}")]
    Http(io::Error),
    /// The descriptors of the gRPC services cannot be read.
    #[error("reflection: {0}")]
    Reflection(String),
}

impl RouterBuilder {
    /// A router with these settings, TCP, a random seed, and what ships for embedding and generating.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            dial: None,
            seed: None,
            embedder: None,
            more_embedders: Vec::new(),
            generator: None,
            compute: Compute::Pool,
            clock: Clock::system(),
        }
    }

    /// Reads wall time from this. Sessions with shards say when they began.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Reaches nodes this way.
    pub fn dial(mut self, dial: Dial) -> Self {
        self.dial = Some(dial);
        self
    }

    /// Every random choice follows from this.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Embeds with this first, rather than with what the settings say.
    pub fn embedder(mut self, embedder: Arc<dyn Embedder>) -> Self {
        self.embedder = Some(embedder);
        self
    }

    /// Embeds with these too, where they are named.
    pub fn more_embedders(mut self, embedders: Vec<Arc<dyn Embedder>>) -> Self {
        self.more_embedders = embedders;
        self
    }

    /// Writes answers with this, rather than with what the settings say.
    pub fn generator(mut self, generator: Arc<dyn Generator>) -> Self {
        self.generator = Some(generator);
        self
    }

    /// Where texts are embedded.
    pub fn compute(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// Starts following the table; call within a tokio runtime. Nodes need not be there yet.
    ///
    /// # Errors
    /// [`RouterError`] for settings or an embedder that cannot work.
    pub fn start(self) -> Result<Router, RouterError> {
        self.settings.check()?;
        let dial = self.dial.unwrap_or_else(tcp);
        #[allow(clippy::disallowed_methods, reason = "the seed of a router that is given none")]
        let seed = self.seed.unwrap_or_else(rand::random);
        let built_in: Arc<dyn Embedder> = Static256::shared()?;
        let first: Arc<dyn Embedder> = match (self.embedder, &self.settings.embedder) {
            (Some(embedder), _) => embedder,
            (None, None) => built_in.clone(),
            (None, Some(settings)) => {
                let server = embed::OpenAi::new(settings.server.clone(), settings.dimension, seed);
                Arc::new(server.map_err(|error| within("embedder", error))?)
            }
        };
        let generator: Arc<dyn Generator> = match (self.generator, &self.settings.generator) {
            (Some(generator), _) => generator,
            // It compares hundreds of sentences for each question: not with a server.
            (None, None) => Arc::new(Extractive::new(built_in.clone())),
            (None, Some(settings)) => {
                let server = generate::OpenAi::new(settings.clone(), seed);
                Arc::new(server.map_err(|error| within("generator", error))?)
            }
        };
        let embedders = Embedders::new(first, self.more_embedders.into_iter().chain([built_in]));
        let message_bytes = self.settings.limits.message_bytes;
        let view = ClusterView::new(dial, self.settings.nodes.clone(), message_bytes, seed);
        let watch = Arc::new(AbortOnDropHandle::new(tokio::spawn(view.clone().follow())));
        let snapshots = Snapshots::open(self.settings.snapshots.as_ref(), self.clock.clone());
        let snapshots = snapshots.map_err(RouterError::Snapshots)?;
        let (compute, clock) = (self.compute, self.clock.clone());
        let pipeline = Pipeline::new(view, self.settings, embedders, generator, compute, clock, snapshots);
        Ok(Router { native: Native::new(pipeline), clock: self.clock, _watch: watch })
    }

    /// Starts, and serves `incoming` connections until `shutdown` is done; requests under way are finished.
    ///
    /// # Errors
    /// [`RouterError`].
    pub async fn serve<I, IO, F>(self, incoming: I, shutdown: F) -> Result<(), RouterError>
    where
        I: Stream<Item = io::Result<IO>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        F: Future<Output = ()>,
    {
        self.start()?.serve(incoming, shutdown).await
    }
}

/// A running router. Cheap to clone; when the last clone is gone, it no longer follows the table.
#[derive(Clone)]
pub struct Router {
    native: Native,
    clock: Clock,
    _watch: Arc<AbortOnDropHandle<()>>,
}

impl Router {
    /// What it can do, for callers in the same process.
    pub fn pipeline(&self) -> &Pipeline {
        self.native.pipeline()
    }

    /// The gRPC service, to be added to a server.
    pub fn service(&self) -> NearringServer<Native> {
        let most = self.pipeline().settings().limits.message_bytes;
        NearringServer::new(self.native.clone()).max_decoding_message_size(most).max_encoding_message_size(most)
    }

    /// Everything that is served over gRPC: the service `Nearring`, those of Qdrant, health and reflection (also as it was
    /// called before it was a standard, since many tools ask for that).
    ///
    /// # Errors
    /// [`RouterError::Reflection`], which would be a fault of the build.
    async fn grpc(&self) -> Result<(tonic::service::Routes, HealthReporter), RouterError> {
        let (health, healthy) = tonic_health::server::health_reporter();
        for service in services() {
            health.set_service_status(service, ServingStatus::Serving).await;
        }
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(nearring_proto::wire::DESCRIPTORS)
                .register_encoded_file_descriptor_set(nearring_proto::qdrant::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let failed = |error: tonic_reflection::server::Error| RouterError::Reflection(error.to_string());
        let routes = tonic::service::Routes::new(self.service())
            .add_service(healthy)
            .add_service(reflection().build_v1().map_err(failed)?)
            .add_service(reflection().build_v1alpha().map_err(failed)?);
        let routes = grpc::add_to(routes, self.pipeline().clone()).into_axum_router();
        let counted = middleware::from_fn_with_state(self.pipeline().clone(), count::grpc);
        Ok((routes.layer(counted).into(), health))
    }

    /// The HTTP APIs, to be served on a listener of their own: that of Qdrant's clients, under `/v1` that of OpenAI's, and under
    /// `/ui` a page, with what it asks under `/nearring`.
    pub fn rest(&self) -> axum::Router {
        let openai = crate::gateway::openai::app(self.pipeline().clone(), self.clock.clone());
        crate::gateway::qdrant::app(self.pipeline().clone())
            .nest("/v1", openai)
            .merge(crate::gateway::console::app(self.pipeline().clone()))
            .merge(crate::gateway::ui::app())
            .layer(middleware::from_fn_with_state(self.pipeline().clone(), count::rest))
    }

    /// Serves [`Router::rest`] on a listener until `shutdown` is done; requests under way are finished.
    ///
    /// # Errors
    /// [`RouterError::Http`].
    pub async fn serve_rest<F>(self, listener: TcpListener, shutdown: F) -> Result<(), RouterError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            // Without it the pieces of an answer wait for each other. A connection that cannot be told so works all the same.
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, self.rest()).with_graceful_shutdown(shutdown).await.map_err(RouterError::Http)
    }

    /// Serves `incoming` connections until `shutdown` is done; requests under way are finished, as long as one may take that
    /// gives no deadline of its own.
    ///
    /// # Errors
    /// [`RouterError::Server`].
    pub async fn serve<I, IO, F>(self, incoming: I, shutdown: F) -> Result<(), RouterError>
    where
        I: Stream<Item = io::Result<IO>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        F: Future<Output = ()>,
    {
        let (routes, mut health) = self.grpc().await?;
        let deadlines = self.pipeline().settings().deadlines;
        let stopped = CancellationToken::new();
        let stopping = async {
            shutdown.await;
            for service in services() {
                health.set_service_status(service, ServingStatus::NotServing).await;
                // Whoever watches is told so, and its stream ends: the server waits for every stream.
                health.clear_service_status(service).await;
            }
            stopped.cancel();
        };
        let server = tonic::transport::Server::builder().add_routes(routes);
        tokio::select! {
            served = server.serve_with_incoming_shutdown(incoming, stopping) => Ok(served?),
            // Streams whose clients neither ask nor leave, as those of reflection, would keep it for ever.
            () = async {
                stopped.cancelled().await;
                tokio::time::sleep(deadlines.write.max(deadlines.read)).await;
            } => Ok(()),
        }
    }
}

/// The services whose health is told. The empty name stands for the whole router.
fn services() -> impl Iterator<Item = &'static str> {
    ["", nearring_server::SERVICE_NAME].into_iter().chain(grpc::SERVICES)
}

fn within(outer: &str, error: InvalidInput) -> InvalidInput {
    InvalidInput::new(format!("{outer}.{}", error.field), error.reason)
}

/// Reaches nodes over TCP. A connection whose peer has vanished without a word is noticed by unanswered pings, so that
/// calls on it end long before their deadline.
pub fn tcp() -> Dial {
    Arc::new(|address: &str| -> Channel {
        // An address that is no URI reaches nobody: port 0 refuses every connection.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .unwrap_or_else(|_| Endpoint::from_static("http://0.0.0.0:0"));
        endpoint
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_lazy()
    })
}
