//! REST as Qdrant's own clients speak it.
//!
//! The problem: there is code that talks to Qdrant, and it is to talk to this store instead, unchanged. **Rules:**
//! - Paths, bodies, answers and status codes are those of Qdrant's OpenAPI document. Every answer is
//!   `{"result", "status", "time"}`; an error is `{"status": {"error"}, "time"}`.
//! - A door decides nothing: it decodes, calls the [pipeline](crate::pipeline), encodes. Where Qdrant's operation is made of
//!   several of ours (payloads by filter, vectors of a point), this module says how far it is atomic.
//! - Guarantees are equal or stronger: every write is durable on a majority before it is answered, so `wait` and `ordering`
//!   have nothing to add; reads are linearizable and of every shard, so `consistency` has not either.
//! - Settings that have no effect here are stored and echoed, never an error. What is not supported answers 501 and its name.
//! - A superset: ids may be any text.
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::http::{HeaderValue, StatusCode, header, request::Parts};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use nearring_proto::position::ReadLevel;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;
use crate::plan::ReadOptions;

mod collections;
pub mod copy;
mod filter;
mod groups;
pub mod grpc;
mod points;
mod query;
mod values;

/// The version of Qdrant whose clients this door was tested with; they compare theirs with it.
pub const VERSION: &str = "1.20.0";
/// What this says it is.
const TITLE: &str = "nearring - a store that speaks Qdrant's API";

/// What handlers share.
#[derive(Clone)]
struct Door {
    pipeline: Pipeline,
    in_flight: Arc<Semaphore>,
}

impl Door {
    fn new(pipeline: Pipeline) -> Self {
        let in_flight = Arc::new(Semaphore::new(pipeline.settings().limits.in_flight));
        Self { pipeline, in_flight }
    }
}

/// The whole API over HTTP.
pub fn app(pipeline: Pipeline) -> Router {
    let limits = pipeline.settings().limits;
    let door = Door::new(pipeline);
    let of_collection = Router::new()
        .route("/", get(collections::describe).put(collections::create))
        .route("/", axum::routing::patch(collections::update).delete(collections::delete))
        .route("/exists", get(collections::exists))
        .route("/aliases", get(collections::aliases_of))
        .route("/index", put(collections::create_index))
        .route("/index/{field}", axum::routing::delete(collections::delete_index))
        .route("/points", put(points::upsert).post(points::retrieve))
        .route("/points/{id}", get(points::one))
        .route("/points/delete", post(points::delete))
        .route("/points/payload", post(points::set_payload).put(points::overwrite_payload))
        .route("/points/payload/delete", post(points::delete_payload))
        .route("/points/payload/clear", post(points::clear_payload))
        .route("/points/vectors", put(points::update_vectors))
        .route("/points/vectors/delete", post(points::delete_vectors))
        .route("/points/batch", post(points::batch))
        .route("/points/scroll", post(points::scroll))
        .route("/points/count", post(points::count))
        .route("/points/search", post(query::search))
        .route("/points/search/batch", post(query::search_batch))
        .route("/points/query", post(query::query))
        .route("/points/query/batch", post(query::query_batch))
        .route("/points/query/groups", post(groups::query))
        .route("/points/search/groups", post(groups::search))
        .route("/points/recommend", post(query::recommend))
        .route("/points/recommend/batch", post(query::recommend_batch))
        .route("/points/recommend/groups", post(groups::recommend))
        .route("/facet", post(points::facet));
    Router::new()
        .route("/", get(root))
        .route("/healthz", get(healthy))
        .route("/livez", get(healthy))
        .route("/readyz", get(ready))
        .route("/collections", get(collections::list))
        .route("/collections/aliases", post(collections::change_aliases))
        .route("/aliases", get(collections::aliases))
        .nest("/collections/{collection}", of_collection)
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(limits.message_bytes))
        .layer(middleware::from_fn_with_state(door.clone(), admit))
        .with_state(door)
}

/// Refuses at once what is one too many, rather than keep it waiting with all its memory.
async fn admit(State(door): State<Door>, request: Request, next: Next) -> Response {
    match door.in_flight.clone().try_acquire_owned() {
        Ok(_permit) => next.run(request).await,
        Err(_) => Refused(Error::new(Kind::Overloaded, "too many requests are under way; slow down and repeat"))
            .into_response(),
    }
}

async fn root() -> Json<Value> {
    Json(json!({"title": TITLE, "version": VERSION}))
}

async fn healthy() -> &'static str {
    "healthz check passed"
}

async fn ready(State(door): State<Door>) -> Response {
    match door.pipeline.view().table() {
        Some(_) => "all shards are ready".into_response(),
        None => Refused(Error::new(Kind::NotDone, "no node was reached yet")).into_response(),
    }
}

async fn unknown(request: Request) -> Response {
    let known = [
        ("/telemetry", "telemetry"),
        ("/metrics", "metrics"),
        ("/locks", "locks"),
        ("/issues", "issues"),
        ("/snapshots", "snapshots"),
        ("/cluster", "cluster"),
        ("/discover", "discover"),
        ("/search/matrix", "search matrix"),
        ("/shards", "shard keys"),
        ("/vectors/", "named vectors added to a collection or taken from it"),
    ];
    let path = request.uri().path();
    match known.iter().find(|(part, _)| path.contains(part)) {
        Some((_, name)) => not_supported(name).into_response(),
        None => status(StatusCode::NOT_FOUND, format!("there is no {path}")),
    }
}

async fn not_allowed(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    status(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes no {method}"))
}

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct Refused(Error);

/// What every handler answers.
pub(crate) type Answer<T> = Result<Told<T>, Refused>;

/// A result, and when its request came.
pub(crate) struct Told<T>(T, Instant);

impl<E: Into<Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl<T: Serialize> IntoResponse for Told<T> {
    fn into_response(self) -> Response {
        let time = self.1.elapsed().as_secs_f64();
        Json(json!({"result": self.0, "status": "ok", "time": time})).into_response()
    }
}

/// What is not there, by name. The message begins so that [`Refused`] knows it.
fn not_supported(name: &str) -> Refused {
    Refused(Error::new(Kind::Precondition, format!("{NOT_SUPPORTED}{name}")))
}

const NOT_SUPPORTED: &str = "not supported: ";

fn status(code: StatusCode, error: impl Into<String>) -> Response {
    let body = Json(json!({"status": {"error": error.into()}, "time": 0.0}));
    (code, body).into_response()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(Error { kind, message }) = self;
        let code = match kind {
            Kind::Precondition if message.starts_with(NOT_SUPPORTED) => StatusCode::NOT_IMPLEMENTED,
            Kind::Invalid | Kind::NewerFormat | Kind::Precondition | Kind::SessionExpired => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::AlreadyExists => StatusCode::CONFLICT,
            Kind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Kind::Deadline | Kind::Unavailable | Kind::NotDone => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = status(code, message);
        if matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON body. What is wrong with it is told as Qdrant tells it.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|rejection: BytesRejection| {
            let code = rejection.status();
            status(code, rejection.body_text())
        })?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        serde_path_to_error::deserialize(&mut reader)
            .map(Self)
            .map_err(|error| status(StatusCode::BAD_REQUEST, format!("Format error in JSON body: {error}")))
    }
}

/// Reads a body that is kept as it was sent as well.
fn typed<T: DeserializeOwned>(body: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(body)
        .map_err(|error| Error::new(Kind::Invalid, format!("Format error in JSON body: {error}")))
}

/// The parameters that requests have in common.
#[derive(Clone, Deserialize, Default, Debug)]
struct Parameters {
    /// Seconds.
    timeout: Option<u64>,
    consistency: Option<String>,
    // Every write waits for a majority's disks, in one order for each shard: `wait` and `ordering` can ask for no more.
    #[serde(rename = "wait")]
    _wait: Option<String>,
    #[serde(rename = "ordering")]
    _ordering: Option<String>,
}

/// When the request came, and its parameters.
struct Asked {
    at: Instant,
    parameters: Parameters,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let at = Instant::now();
        let read = axum::extract::Query::<Parameters>::from_request_parts(parts, state).await;
        let axum::extract::Query(parameters) =
            read.map_err(|rejection: QueryRejection| status(StatusCode::BAD_REQUEST, rejection.body_text()))?;
        if parameters.timeout == Some(0) {
            return Err(status(StatusCode::UNPROCESSABLE_ENTITY, "timeout: must be at least 1 second"));
        }
        Ok(Self { at, parameters })
    }
}

impl Asked {
    fn deadline(&self) -> Option<Duration> {
        self.parameters.timeout.map(Duration::from_secs)
    }

    /// Qdrant's consistency is a number of replicas, or how many of them must agree; here one replica's answer is as good
    /// as a read through the log.
    fn reads(&self) -> Result<ReadOptions, Error> {
        let level = match self.parameters.consistency.as_deref() {
            None => ReadLevel::Linearizable,
            Some("majority" | "quorum" | "all") => ReadLevel::Linearizable,
            Some(number) if number.parse::<u32>().is_ok_and(|number| number > 0) => ReadLevel::Linearizable,
            Some(other) => {
                let reason = format!("is {other:?}; give a number of replicas, majority, quorum or all");
                return Err(Error::invalid("consistency", reason));
            }
        };
        Ok(ReadOptions { level: Some(level), deadline: self.deadline(), full_coverage: true, ..Default::default() })
    }

    fn told<T: Serialize>(&self, result: T) -> Told<T> {
        Told(result, self.at)
    }
}
