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

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::http::{Method, StatusCode, header, request::Parts};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get};
use axum::{Json, Router};
use nearring_proto::position::ReadLevel;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::openapi::{Answers, Operations};
use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;
use crate::plan::ReadOptions;

mod cluster;
mod collections;
pub mod copy;
mod facets;
pub(super) mod filter;
mod formula;
mod groups;
pub mod grpc;
mod metrics;
mod openapi;
mod places;
mod points;
mod query;
mod snapshots;
mod strict;
mod telemetry;
pub(super) mod values;

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
    let (routes, document) = operations().finish(TITLE, VERSION);
    // Spelt once, and shared: handlers are cloned for every connection and request, with all that they hold.
    let document = Bytes::from(document.to_string());
    let document = move || std::future::ready(([(header::CONTENT_TYPE, "application/json")], document.clone()));
    routes
        .route("/openapi.json", get(document))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(limits.message_bytes))
        .layer(middleware::from_fn_with_state(door.clone(), admit))
        .with_state(door)
}

/// Everything that is served, and described in `/openapi.json`.
fn operations() -> Operations {
    use Answers::{Bare, File, Flag, List, Object, Text, Written};
    const GET: MethodFilter = MethodFilter::GET;
    const PUT: MethodFilter = MethodFilter::PUT;
    const POST: MethodFilter = MethodFilter::POST;
    const PATCH: MethodFilter = MethodFilter::PATCH;
    const DELETE: MethodFilter = MethodFilter::DELETE;
    let at = |rest: &str| format!("/collections/{{collection}}{rest}");
    Operations::new()
        .on(GET, "/", "Name and version", Bare, root)
        .on(GET, "/healthz", "Healthy", Text, healthy)
        .on(GET, "/livez", "Alive", Text, healthy)
        .on(GET, "/readyz", "Ready", Text, ready)
        .on(GET, "/metrics", "Metrics", Text, metrics::metrics)
        .on(GET, "/telemetry", "Telemetry", Object, telemetry::telemetry)
        .on(GET, "/issues", "Issues", Object, cluster::issues)
        .on(DELETE, "/issues", "Clear issues", Flag, cluster::clear_issues)
        .on(GET, "/cluster", "Cluster", Object, cluster::cluster)
        .on(GET, &at("/cluster"), "Collection's shards", Object, cluster::of_collection)
        .on(GET, &at("/optimizations"), "Collection's segments", Object, cluster::optimizations)
        .on(GET, "/collections", "List collections", Object, collections::list)
        .on(POST, "/collections/aliases", "Change aliases", Flag, collections::change_aliases)
        .on(GET, "/aliases", "List aliases", Object, collections::aliases)
        .on(GET, &at(""), "Describe collection", Object, collections::describe)
        .on(PUT, &at(""), "Create collection", Flag, collections::create)
        .read_as::<collections::Create>(PUT, &at(""))
        .on(PATCH, &at(""), "Update collection", Flag, collections::update)
        .read_as::<collections::Update>(PATCH, &at(""))
        .on(DELETE, &at(""), "Delete collection", Flag, collections::delete)
        .on(GET, &at("/exists"), "Collection exists", Object, collections::exists)
        .on(GET, &at("/aliases"), "List collection's aliases", Object, collections::aliases_of)
        .on(PUT, &at("/vectors/{vector}"), "Add vector", Written, collections::add_vector)
        .read_as::<collections::AddVector>(PUT, &at("/vectors/{vector}"))
        .on(PUT, &at("/index"), "Create index", Written, collections::create_index)
        .read_as::<collections::CreateIndex>(PUT, &at("/index"))
        .on(DELETE, &at("/index/{field}"), "Delete index", Written, collections::delete_index)
        .on(PUT, &at("/points"), "Upsert points", Written, points::upsert)
        .on(POST, &at("/points"), "Retrieve points", List, points::retrieve)
        .on(GET, &at("/points/{id}"), "Retrieve point", Object, points::one)
        .on(POST, &at("/points/delete"), "Delete points", Written, points::delete)
        .on(POST, &at("/points/payload"), "Set payload", Written, points::set_payload)
        .on(PUT, &at("/points/payload"), "Overwrite payload", Written, points::overwrite_payload)
        .on(POST, &at("/points/payload/delete"), "Delete payload", Written, points::delete_payload)
        .on(POST, &at("/points/payload/clear"), "Clear payload", Written, points::clear_payload)
        .on(PUT, &at("/points/vectors"), "Update vectors", Written, points::update_vectors)
        .on(POST, &at("/points/vectors/delete"), "Delete vectors", Written, points::delete_vectors)
        .on(POST, &at("/points/batch"), "Batch of updates", List, points::batch)
        .on(POST, &at("/points/scroll"), "Scroll points", Object, points::scroll)
        .on(POST, &at("/points/count"), "Count points", Object, points::count)
        .on(POST, &at("/points/search"), "Search points", List, query::older::search)
        .on(POST, &at("/points/search/batch"), "Batch of searches", List, query::older::search_batch)
        .on(POST, &at("/points/query"), "Query points", Object, query::query)
        .on(POST, &at("/points/query/batch"), "Batch of queries", List, query::query_batch)
        .on(POST, &at("/points/query/groups"), "Query groups", Object, groups::query)
        .on(POST, &at("/points/search/groups"), "Search groups", Object, groups::search)
        .on(POST, &at("/points/recommend"), "Recommend points", List, query::older::recommend)
        .on(POST, &at("/points/recommend/batch"), "Batch of recommendations", List, query::older::recommend_batch)
        .on(POST, &at("/points/recommend/groups"), "Recommend groups", Object, groups::recommend)
        .on(POST, &at("/points/search/matrix/pairs"), "Distances in pairs", Object, query::matrix::pairs)
        .on(POST, &at("/points/search/matrix/offsets"), "Distances by offsets", Object, query::matrix::offsets)
        .on(POST, &at("/points/discover"), "Discover points", List, query::older::discover)
        .on(POST, &at("/points/discover/batch"), "Batch of discoveries", List, query::older::discover_batch)
        .on(POST, &at("/facet"), "Count values", Object, facets::facet)
        .on(GET, &at("/snapshots"), "List snapshots", List, snapshots::list)
        .on(POST, &at("/snapshots"), "Create snapshot", Object, snapshots::create)
        .or_accepted(POST, &at("/snapshots"))
        .on(GET, &at("/snapshots/{snapshot}"), "Download snapshot", File, snapshots::download)
        .on(DELETE, &at("/snapshots/{snapshot}"), "Delete snapshot", Flag, snapshots::delete)
        .or_accepted(DELETE, &at("/snapshots/{snapshot}"))
        .on(PUT, &at("/snapshots/recover"), "Restore snapshot", Flag, snapshots::recover)
        .or_accepted(PUT, &at("/snapshots/recover"))
        .on(POST, &at("/snapshots/upload"), "Restore uploaded snapshot", Flag, snapshots::upload)
        .or_accepted(POST, &at("/snapshots/upload"))
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
    let known = [("/locks", "locks"), ("/cluster", "cluster"), ("/shards", "shard keys")];
    let path = request.uri().path();
    if let Some(answer) = snapshots::unknown(path) {
        return answer;
    }
    match known.iter().find(|(part, _)| path.contains(part)) {
        Some((_, name)) => not_supported(name).into_response(),
        None => status(StatusCode::NOT_FOUND, format!("there is no {path}")),
    }
}

async fn not_allowed(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    if method == Method::DELETE && path.contains("/vectors/") {
        return not_supported("a vector taken from its collection").into_response();
    }
    // It is there to be read only.
    if path.ends_with("/cluster") {
        return not_supported("cluster").into_response();
    }
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

/// What keeps no bound of the API, in Qdrant's words. The message begins so that [`Refused`] knows it.
fn out_of_bounds(field: impl std::fmt::Display, rule: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("{OUT_OF_BOUNDS}[internal.{field}: {rule}]"))
}

const OUT_OF_BOUNDS: &str = "Validation error in JSON body: ";

/// A limit, which must not be 0.
fn limit(field: &str, given: Option<usize>, otherwise: usize) -> Result<usize, Error> {
    match given.unwrap_or(otherwise) {
        0 => Err(out_of_bounds(field, "value 0 invalid, must be 1 or larger")),
        limit => Ok(limit),
    }
}

fn status(code: StatusCode, error: impl Into<String>) -> Response {
    let body = Json(json!({"status": {"error": error.into()}, "time": 0.0}));
    (code, body).into_response()
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(Error { kind, message, retry_after }) = self;
        let code = match kind {
            Kind::Precondition if message.starts_with(NOT_SUPPORTED) => StatusCode::NOT_IMPLEMENTED,
            Kind::Invalid if message.starts_with(OUT_OF_BOUNDS) => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Invalid | Kind::NewerFormat | Kind::Precondition | Kind::SessionExpired => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::AlreadyExists => StatusCode::CONFLICT,
            Kind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Kind::Deadline | Kind::Unavailable | Kind::NotDone => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = status(code, message);
        let passes = matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if let Some(seconds) = retry_after.or(passes.then_some(1)).filter(|seconds| *seconds > 0) {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A JSON body. What is wrong with it is told as Qdrant tells it.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection: BytesRejection| {
            let code = rejection.status();
            status(code, rejection.body_text())
        })?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| error.to_string());
        read.and_then(|read| reader.end().map(|()| Self(read)).map_err(|error| error.to_string()))
            .map_err(|error| status(StatusCode::BAD_REQUEST, format!("Format error in JSON body: {error}")))
    }
}

/// Reads a body that is kept as it was sent as well.
fn typed<T: DeserializeOwned>(body: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(body)
        .map_err(|error| Error::new(Kind::Invalid, format!("Format error in JSON body: {error}")))
}

/// The parameters that requests have in common.
#[derive(Clone, Deserialize, JsonSchema, Default, Debug)]
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

/// Parameters of one operation's own, beside those in common.
struct Given<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Given<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(given)) => Ok(Self(given)),
            Err(rejection) => Err(status(StatusCode::BAD_REQUEST, rejection.body_text())),
        }
    }
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
