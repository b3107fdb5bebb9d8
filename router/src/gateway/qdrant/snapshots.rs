//! Snapshots: see [`crate::snapshot`] for what they are and what restoring one does.
//!
//! As in Qdrant, but: restoring goes into a collection that is missing or empty (409 otherwise), so `priority` has nothing to decide;
//! what is uploaded is not kept once it is restored; a collection that was deleted keeps its snapshots. `shard_number` beside them
//! is our own: how many shards a collection gets that is created.
use axum::body::Body as Bytes;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Body, Door, Refused, Told, not_supported, status};
use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;
use crate::snapshot::multipart::{Multipart, Piece};
use crate::snapshot::{Described, Failed, How, Source, Upload, store};

/// What a form's head and delimiters may add to a file.
const FORM_BYTES: u64 = 64 << 10;

/// A query of its own kind, and when the request came.
pub(super) struct AskedFor<P> {
    at: Instant,
    parameters: P,
}

impl<S: Send + Sync, P: DeserializeOwned> FromRequestParts<S> for AskedFor<P> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let at = Instant::now();
        match axum::extract::Query::<P>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(parameters)) => Ok(Self { at, parameters }),
            Err(rejection) => Err(status(StatusCode::BAD_REQUEST, rejection.body_text())),
        }
    }
}

impl<P> AskedFor<P> {
    fn told<T: Serialize>(&self, result: T) -> Response {
        Told(result, self.at).into_response()
    }

    /// Told before it is done. How it ends stands in the log.
    fn accepted<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Response {
        tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::warn!("{what}, which nobody waits for, failed: {error}");
            }
        });
        let body = axum::Json(json!({"status": "accepted", "time": self.at.elapsed().as_secs_f64()}));
        (StatusCode::ACCEPTED, body).into_response()
    }
}

/// Whether to wait.
#[derive(Deserialize, JsonSchema, Default)]
pub(super) struct Waiting {
    wait: Option<bool>,
}

impl Waiting {
    fn waits(&self) -> bool {
        self.wait.unwrap_or(true)
    }
}

/// How a collection is restored.
#[derive(Deserialize, JsonSchema, Default)]
pub(super) struct Restoring {
    wait: Option<bool>,
    /// SHA-256 of the snapshot, in hexadecimal.
    checksum: Option<String>,
    /// Shards of a collection that is created; as archived without it.
    shard_number: Option<u32>,
    // What is restored into has no points: neither side could win.
    #[serde(rename = "priority")]
    _priority: Option<Priority>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Priority {
    NoSync,
    Snapshot,
    Replica,
}

/// `PUT …/snapshots/recover`.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Recover {
    /// `file:///…` in the directory of snapshots, `http://…` or `https://…`.
    location: String,
    #[serde(default)]
    checksum: Option<String>,
    /// Sent to the server.
    #[serde(default)]
    api_key: Option<String>,
    #[serde(default, rename = "priority")]
    _priority: Option<Priority>,
}

/// An answer that is an error.
pub(super) struct NoSnapshot(pub(super) Failed);

impl<E: Into<Failed>> From<E> for NoSnapshot {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for NoSnapshot {
    fn into_response(self) -> Response {
        match self.0 {
            error @ Failed::Off => not_supported(&error.to_string()).into_response(),
            Failed::Forbidden(message) => status(StatusCode::FORBIDDEN, message),
            error @ Failed::TooLarge(_) => status(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            Failed::Other(error) => Refused(error).into_response(),
        }
    }
}

type Answered = Result<Response, NoSnapshot>;

fn told(described: &Described) -> Value {
    json!({
        "name": described.name,
        "creation_time": seconds(described).strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        "size": described.bytes,
        "checksum": described.sha256,
    })
}

/// When it was written.
pub(super) fn seconds(described: &Described) -> Timestamp {
    let ms = i64::try_from(described.created_ms).ok();
    ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default()
}

/// The collection's own name, or the words that Qdrant's clients know.
async fn find(pipeline: &Pipeline, name: &str) -> Result<(), Failed> {
    Ok(super::collections::find(pipeline, name).await.map(|_| ())?)
}

pub(super) async fn list(State(door): State<Door>, Path(name): Path<String>, given: AskedFor<Waiting>) -> Answered {
    let listed = door.pipeline.list_snapshots(&name).await?;
    Ok(given.told(listed.iter().map(told).collect::<Vec<_>>()))
}

pub(super) async fn create(State(door): State<Door>, Path(name): Path<String>, given: AskedFor<Waiting>) -> Answered {
    door.pipeline.snapshots().check()?;
    find(&door.pipeline, &name).await?;
    if given.parameters.waits() {
        return Ok(given.told(told(&door.pipeline.create_snapshot(&name).await?)));
    }
    let pipeline = door.pipeline;
    Ok(given.accepted("a snapshot", async move { pipeline.create_snapshot(&name).await }))
}

pub(super) async fn download(State(door): State<Door>, Path((collection, name)): Path<(String, String)>) -> Answered {
    let (length, bytes) = door.pipeline.download_snapshot(&collection, &name).await?;
    let mut response = Response::new(Bytes::from_stream(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

pub(super) async fn delete(
    State(door): State<Door>,
    Path((collection, name)): Path<(String, String)>,
    given: AskedFor<Waiting>,
) -> Answered {
    door.pipeline.snapshots().check()?;
    let work = async move {
        match door.pipeline.delete_snapshot(&collection, &name).await? {
            true => Ok(true),
            false => Err(Error::new(Kind::NotFound, format!("Not found: Snapshot {name:?} not found")).into()),
        }
    };
    match given.parameters.waits() {
        true => Ok(given.told(work.await?)),
        false => Ok(given.accepted("the deletion of a snapshot", work)),
    }
}

pub(super) async fn recover(
    State(door): State<Door>,
    Path(name): Path<String>,
    given: AskedFor<Restoring>,
    Body(body): Body<Recover>,
) -> Answered {
    door.pipeline.snapshots().check()?;
    let Recover { location, checksum, api_key, .. } = body;
    restore(door, name, &given, Source::Location(location, api_key), checksum).await
}

pub(super) async fn upload(
    State(door): State<Door>,
    Path(name): Path<String>,
    given: AskedFor<Restoring>,
    request: Request,
) -> Answered {
    let upload = received(&door.pipeline, request).await?;
    restore(door, name, &given, Source::Received(upload), None).await
}

async fn restore(
    door: Door,
    name: String,
    given: &AskedFor<Restoring>,
    source: Source,
    checksum: Option<String>,
) -> Answered {
    let Restoring { wait, checksum: of_query, shard_number, .. } = &given.parameters;
    let how = How { sha256: checksum.or_else(|| of_query.clone()), shards: shard_number.unwrap_or(0) };
    let work = async move { door.pipeline.restore_snapshot(&name, source, how).await.map(|_| true) };
    match wait.unwrap_or(true) {
        true => Ok(given.told(work.await?)),
        false => Ok(given.accepted("a restore", work)),
    }
}

/// Takes the form's file to disk.
async fn received(pipeline: &Pipeline, request: Request) -> Result<Upload, Failed> {
    let malformed = |reason: String| Failed::from(Error::new(Kind::Invalid, format!("Format error in form: {reason}")));
    let (head, body) = request.into_parts();
    let header = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let mut form = Multipart::new(header(header::CONTENT_TYPE).unwrap_or_default()).map_err(malformed)?;
    let length = header(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let mut upload = pipeline.receive_snapshot().await?;
    if length.is_some_and(|length| length > upload.most().saturating_add(FORM_BYTES)) {
        return Err(Failed::TooLarge(upload.most()));
    }
    let mut body = body.into_data_stream();
    let (mut inside, mut seen) = (false, false);
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|error| malformed(error.to_string()))?;
        for piece in form.feed(&bytes).map_err(malformed)? {
            match piece {
                Piece::Part(name) => {
                    inside = name == "snapshot";
                    if inside && std::mem::replace(&mut seen, true) {
                        return Err(malformed("it has two parts named snapshot".to_owned()));
                    }
                }
                Piece::Data(data) if inside => upload = upload.write(data).await?,
                Piece::Data(_) => {}
            }
        }
    }
    form.finish().map_err(malformed)?;
    if seen { Ok(upload) } else { Err(malformed("it has no part named snapshot".to_owned())) }
}

/// What to answer on other paths of snapshots; `None` on paths of something else.
pub(super) fn unknown(path: &str) -> Option<Response> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        ["snapshots"] => Some(not_supported("snapshots of the whole storage").into_response()),
        ["snapshots", name] if store::is_name(name) || *name == "recover" => {
            Some(not_supported("snapshots of the whole storage").into_response())
        }
        ["collections", _, "shards", _, "snapshots" | "snapshot", ..] => {
            Some(not_supported("snapshots of single shards").into_response())
        }
        ["snapshots", ..] | ["collections", _, "snapshots", ..] => {
            Some(status(StatusCode::NOT_FOUND, format!("there is no {path}")))
        }
        _ => None,
    }
}
