//! A model server that speaks OpenAI's protocol on loopback, and fails as told: the next requests meet the next faults, in
//! order; without one left it works. Its chat answers with the words it is given; its vectors depend on the text's letters.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Nothing comes at all.
    Silent,
    /// The first piece comes, and then nothing.
    FallsSilent,
    /// The connection breaks after the first piece.
    Cut,
    /// The reply ends in good order, without saying that it is complete.
    EndsEarly,
    /// 429, and so many seconds in `Retry-After`.
    Busy(u64),
    /// 500.
    Broken,
    /// 401, whose message repeats the key.
    Refuses,
    /// 200, and what is no reply.
    Garbage,
    /// An error as an event, after the first piece.
    ErrorWithin,
    /// It ends for the length.
    TooLong,
}

/// Components of its vectors.
pub(crate) const DIMENSION: usize = 8;

/// A running server.
#[derive(Clone)]
pub(crate) struct ModelServer {
    pub(crate) url: String,
    state: Arc<Shared>,
}

struct Shared {
    faults: Mutex<VecDeque<Fault>>,
    /// The pieces of an answer.
    pieces: Vec<&'static str>,
    /// What was asked: path, key, body.
    requests: Mutex<Vec<(String, Option<String>, Value)>>,
}

impl ModelServer {
    /// Starts one whose answers consist of these pieces.
    pub(crate) async fn start(pieces: &[&'static str]) -> Self {
        let state = Arc::new(Shared { faults: Mutex::default(), pieces: pieces.to_vec(), requests: Mutex::default() });
        let app = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/embeddings", post(embeddings))
            .with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, state }
    }

    /// The next requests meet these.
    pub(crate) fn script(&self, faults: &[Fault]) {
        *self.state.faults.lock().unwrap() = faults.iter().copied().collect();
        self.state.requests.lock().unwrap().clear();
    }

    /// What was asked since the last script.
    pub(crate) fn requests(&self) -> Vec<(String, Option<String>, Value)> {
        self.state.requests.lock().unwrap().clone()
    }
}

impl Shared {
    fn took(&self, path: &str, headers: &HeaderMap, body: &Value) -> Option<Fault> {
        let key = headers.get(header::AUTHORIZATION).map(|key| key.to_str().unwrap().to_owned());
        self.requests.lock().unwrap().push((path.to_owned(), key, body.clone()));
        self.faults.lock().unwrap().pop_front()
    }
}

/// The faults that need no reply of one kind or the other.
async fn plain(fault: Fault, headers: &HeaderMap) -> Option<Response> {
    let told = |message: String| Json(json!({"error": {"message": message, "type": "x", "code": null}}));
    Some(match fault {
        Fault::Silent => std::future::pending().await,
        Fault::Busy(seconds) => {
            let wait = [(header::RETRY_AFTER, seconds.to_string())];
            (StatusCode::TOO_MANY_REQUESTS, wait, told("slow down".to_owned())).into_response()
        }
        Fault::Broken => (StatusCode::INTERNAL_SERVER_ERROR, told("out of memory".to_owned())).into_response(),
        Fault::Refuses => {
            let key = headers.get(header::AUTHORIZATION).map_or("", |key| key.to_str().unwrap());
            (StatusCode::UNAUTHORIZED, told(format!("no such key: {key}"))).into_response()
        }
        _ => return None,
    })
}

async fn chat(State(state): State<Arc<Shared>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let fault = state.took("chat", &headers, &body);
    if let Some(fault) = fault
        && let Some(response) = plain(fault, &headers).await
    {
        return response;
    }
    assert_eq!(body["stream"], true);
    let event = |value: Value| format!("data: {value}\n\n");
    let chunk = |delta: Value, finish: Value| {
        event(
            json!({"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}),
        )
    };
    let mut events = vec![": ready\n\n".to_owned(), chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
    events.extend(state.pieces.iter().map(|piece| chunk(json!({"content": piece}), Value::Null)));
    let first = 3;
    match fault {
        Some(Fault::Garbage) => events = vec!["data: <html>it works</html>\n\n".to_owned()],
        Some(Fault::Cut | Fault::FallsSilent | Fault::EndsEarly) => events.truncate(first),
        Some(Fault::ErrorWithin) => {
            events.truncate(first);
            events.push(event(json!({"error": {"message": "the model crashed"}})));
        }
        _ => {
            let finish = if fault == Some(Fault::TooLong) { "length" } else { "stop" };
            events.push(chunk(json!({}), json!(finish)));
            events.push("data: [DONE]\n\n".to_owned());
        }
    }
    let events = stream::iter(events.into_iter().map(Ok::<_, std::io::Error>));
    let body = match fault {
        Some(Fault::Cut) => {
            // What came before must have left when the connection breaks.
            let pause = stream::once(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(std::io::Error::other("cut"))
            });
            Body::from_stream(events.chain(pause))
        }
        Some(Fault::FallsSilent) => Body::from_stream(events.chain(stream::pending())),
        _ => Body::from_stream(events),
    };
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

async fn embeddings(State(state): State<Arc<Shared>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let fault = state.took("embeddings", &headers, &body);
    if let Some(fault) = fault
        && let Some(response) = plain(fault, &headers).await
    {
        return response;
    }
    let texts: Vec<&str> = body["input"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    // In an order of its own: the index counts.
    let one = |(index, text): (usize, &&str)| json!({"object": "embedding", "index": index, "embedding": vector(text)});
    let data: Vec<Value> = texts.iter().enumerate().rev().map(one).collect();
    let reply = json!({"object": "list", "data": data, "model": body["model"]}).to_string();
    match fault {
        Some(Fault::Garbage) => "<html>it works</html>".into_response(),
        Some(Fault::Cut) => {
            let half = reply[..reply.len() / 2].to_owned();
            let cut = stream::iter([Ok(half), Err(std::io::Error::other("cut"))]);
            Body::from_stream(cut).into_response()
        }
        _ => reply.into_response(),
    }
}

/// How often each of eight groups of letters occurs; not of unit length.
pub(crate) fn vector(text: &str) -> Vec<f32> {
    let mut vector = vec![0.5; DIMENSION];
    for byte in text.bytes() {
        vector[usize::from(byte) % DIMENSION] += 1.0;
    }
    vector
}
