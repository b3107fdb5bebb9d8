//! OpenAI's API, as its clients speak it, under `/v1`.
//!
//! The problem: there is code that talks to OpenAI, and it is to be answered from this store instead, unchanged. **Rules:**
//! - A model is a pipeline: `nearring/<collection>` answers a chat's last question from that collection, and an embedder's name
//!   embeds. `models` lists both.
//! - Bodies, streams, errors (`{"error": {"message", "type", "param", "code"}}`) and status codes are OpenAI's. What is ours
//!   stands in fields called `nearring`, which clients that do not know it pass over.
//! - A setting that says how words are chosen goes to the model that chooses them; the built-in generator quotes and has no use
//!   for it. A setting that asks for what is not there (tools, several answers, another output than text) is refused by name: an
//!   answer without it would not be what was asked for.
//! - An answer that fails before its passages are found has an error's status; one that fails later ends its stream with an
//!   error instead of `[DONE]`.
//! - Any key is accepted: who may ask is decided before the router.
//!
//! What it deliberately does not do: keep conversations, store completions, run tools, take images, sound or files.
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use nearring_proto::clock::Clock;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::{Error, Kind};
use crate::pipeline::Pipeline;

mod chat;
mod embeddings;
mod models;
mod tokens;

/// What handlers share.
#[derive(Clone)]
struct Door {
    pipeline: Pipeline,
    in_flight: Arc<Semaphore>,
    clock: Clock,
}

/// The API without its prefix. `clock` gives the `created` of answers.
pub fn app(pipeline: Pipeline, clock: Clock) -> Router {
    let limits = pipeline.settings().limits;
    let door = Door { pipeline, in_flight: Arc::new(Semaphore::new(limits.in_flight)), clock };
    Router::new()
        .route("/chat/completions", post(chat::complete))
        .route("/embeddings", post(embeddings::embed))
        .route("/models", get(models::list))
        // Names of pipelines hold a slash.
        .route("/models/{*model}", get(models::one))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(limits.message_bytes))
        .layer(middleware::from_fn_with_state(door.clone(), admit))
        .with_state(door)
}

/// Counts a request as under way; an answer's stream takes it along.
#[derive(Clone)]
struct Permit(#[allow(dead_code, reason = "held until dropped")] Arc<OwnedSemaphorePermit>);

/// Refuses at once what is one too many, rather than keep it waiting with all its memory.
async fn admit(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    match door.in_flight.clone().try_acquire_owned() {
        Ok(permit) => {
            let permit = Permit(Arc::new(permit));
            request.extensions_mut().insert(permit.clone());
            let response = next.run(request).await;
            drop(permit);
            response
        }
        Err(_) => Refused::from(Error::new(Kind::Overloaded, "too many requests are under way; slow down and repeat"))
            .into_response(),
    }
}

async fn unknown(request: Request) -> Response {
    let message = format!("{} {} is not part of this API", request.method(), request.uri().path());
    Refused { status: StatusCode::NOT_FOUND, code: Some("unknown_url"), param: None, message }.into_response()
}

async fn not_allowed(request: Request) -> Response {
    let message = format!("{} takes no {}", request.uri().path(), request.method());
    Refused { status: StatusCode::METHOD_NOT_ALLOWED, code: None, param: None, message }.into_response()
}

/// An answer that is an error.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Refused {
    status: StatusCode,
    /// For programs.
    code: Option<&'static str>,
    /// The request's field.
    param: Option<String>,
    message: String,
}

impl Refused {
    /// A field that is refused.
    fn field(param: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("{param}: {reason}");
        Self { status: StatusCode::BAD_REQUEST, code: Some("invalid_value"), param: Some(param), message }
    }

    /// A field that asks for what is not there.
    fn unsupported(param: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::field(param, reason) }
    }

    /// A model that is not there; clients know this one by its code.
    fn no_model(model: &str, instead: impl std::fmt::Display) -> Self {
        let message = format!("the model {model:?} does not exist: {instead}");
        let (status, param) = (StatusCode::NOT_FOUND, Some("model".to_owned()));
        Self { status, code: Some("model_not_found"), param, message }
    }

    fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<Error> for Refused {
    fn from(Error { kind, message, retry_after: _ }: Error) -> Self {
        let (status, code) = match kind {
            Kind::Invalid => (StatusCode::BAD_REQUEST, "invalid_value"),
            Kind::NewerFormat => (StatusCode::BAD_REQUEST, "newer_format"),
            Kind::Precondition | Kind::SessionExpired => (StatusCode::BAD_REQUEST, "precondition_failed"),
            Kind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Kind::AlreadyExists => (StatusCode::CONFLICT, "already_exists"),
            Kind::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded"),
            Kind::Deadline => (StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded"),
            Kind::Unavailable | Kind::NotDone => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Kind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        // Such a message begins with the field.
        let field = message.split_once(':').map(|(field, _)| field).filter(|_| kind == Kind::Invalid);
        Self { status, code: Some(code), param: field.map(str::to_owned), message }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A JSON body.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection: BytesRejection| Refused {
            status: rejection.status(),
            code: None,
            param: None,
            message: rejection.body_text(),
        })?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        serde_path_to_error::deserialize(&mut reader).map(Self).map_err(|error| {
            let path = error.path().to_string();
            // "." is the whole body.
            let param = (path != ".").then_some(path);
            let message = format!("the body cannot be read: {error}");
            Refused { status: StatusCode::BAD_REQUEST, code: Some("invalid_type"), param, message }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn errors_have_openais_form() {
        let refused = Refused::from(Error::invalid("texts[3]", "is empty"));
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let expected = json!({"error": {
            "message": "texts[3]: is empty", "type": "invalid_request_error", "param": "texts[3]", "code": "invalid_value",
        }});
        assert_eq!(refused.body(), expected);
        let busy = Refused::from(Error::new(Kind::Overloaded, "slow: down")).into_response();
        assert_eq!(busy.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(busy.headers()[header::RETRY_AFTER], "1");
        let late = Refused::from(Error::new(Kind::Deadline, "late: very")).body();
        assert_eq!((&late["error"]["type"], &late["error"]["param"]), (&json!("server_error"), &Value::Null));
    }
}
