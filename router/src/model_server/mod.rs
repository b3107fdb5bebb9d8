//! A server that speaks OpenAI's protocol, as its client sees it: what [`crate::generate::OpenAi`] and
//! [`crate::embed::OpenAi`] send their requests with.
//!
//! The problem: such a server is slow, busy, cut off or wrong at times, and a question waits for it. **Rules:**
//! - Every wait ends: for a connection, for the head of a reply, for the next piece of one, and for all of it, repeats included.
//! - What may pass (no connection, 408, 429, 5xx, a reply that breaks off or comes late) is tried again after a pause that
//!   grows and is drawn at random, or after what `Retry-After` asks for; [`retry`] decides. What will not pass (other 4xx) is
//!   told at once.
//! - A stream is repeated only until its head has come: afterwards a reader may have seen a part, which is not taken back.
//! - Replies are read up to a bound.
//! - The key goes into one header and nowhere else: not into messages, not into `Debug`, not into what a server echoes.
//!
//! What it deliberately does not do: follow redirects (they would carry the key elsewhere), use proxies, keep several servers
//! (put a balancer before them).
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use nearring_proto::collection::InvalidInput;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

pub mod retry;
mod sse;

use crate::failure::ModelFailure;
use crate::http_client::{self, HttpClient, Reply};
use retry::{Attempt, Retries};
use sse::Events;

/// A secret that a server knows its callers by. Prints as dots.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes a key; `None` for one of blanks only.
    pub fn new(key: &str) -> Option<Self> {
        let key = key.trim();
        (!key.is_empty()).then(|| Self(key.to_owned()))
    }

    /// The key itself, for a header.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Where a server is, and how patient its callers are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelServerSettings {
    /// The part of its addresses before `/chat/completions`, for example `http://10.0.0.7:8000/v1`.
    pub url: String,
    /// The model asked of it.
    pub model: String,
    /// Sent as `Authorization: Bearer`; none where the server wants none.
    pub key: Option<ApiKey>,
    /// The longest wait for a connection.
    pub connect: Duration,
    /// The longest wait for a reply's head, and then for each next piece.
    pub idle: Duration,
    /// The longest wait for all of a reply, repeats included.
    pub total: Duration,
    /// When to try again.
    pub retries: Retries,
}

impl ModelServerSettings {
    /// A server with the default patience: 2 s for a connection, 30 s between pieces, 5 minutes for all.
    pub fn new(url: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            model: model.into(),
            key: None,
            connect: Duration::from_secs(2),
            idle: Duration::from_secs(30),
            total: Duration::from_secs(300),
            retries: Retries::default(),
        }
    }

    /// Checks what can be checked without calling it.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field.
    pub fn check(&self) -> Result<(), InvalidInput> {
        let wrong = |reason: &str| Err(InvalidInput::new("url", format!("{:?} {reason}", self.url)));
        let uri: Uri = match self.url.parse() {
            Ok(uri) => uri,
            // Not repeated in the message: a key may stand in it.
            Err(_) => return Err(InvalidInput::new("url", "is no URL; give one as http://host:port/v1")),
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(InvalidInput::new("url", "holds a user or password; give the key in the environment instead"));
        }
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return wrong("is not of the form http://host:port/v1 or https://host/v1");
        }
        if uri.query().is_some() {
            return Err(InvalidInput::new("url", "has a query; give only the part before /chat/completions"));
        }
        if self.model.trim().is_empty() {
            return Err(InvalidInput::new("model", "is empty; name a model of the server"));
        }
        let key = self.key.as_ref().map(|key| HeaderValue::from_str(&format!("Bearer {}", key.0)));
        if key.is_some_and(|header| header.is_err()) {
            return Err(InvalidInput::new("key", "holds characters that no header can carry"));
        }
        for (field, wait) in [("connect", self.connect), ("idle", self.idle), ("total", self.total)] {
            if wait.is_zero() {
                return Err(InvalidInput::new(field, "must be above zero"));
            }
        }
        self.retries.check()
    }
}

/// Why a request to a server failed, after whatever repeats it was given.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Failed {
    /// What can be done about it.
    pub failure: ModelFailure,
    /// What happened, in words.
    pub reason: String,
}

impl Failed {
    /// What came does not make sense.
    pub fn broken(reason: impl Into<String>) -> Self {
        Self { failure: ModelFailure::Broken, reason: reason.into() }
    }
}

/// A server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct ModelServer(Arc<Inner>);

struct Inner {
    settings: ModelServerSettings,
    http: HttpClient,
    /// Spreads the repeats of callers that failed together. No await happens while it is held.
    random: Mutex<SmallRng>,
}

impl fmt::Debug for ModelServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelServer").field(&self.0.settings).finish()
    }
}

/// The most bytes read of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// The most bytes read of a stream, framing included: some hundred times the longest answer that models give.
const STREAM_BYTES_MAX: usize = 64 << 20;
/// The most characters of a server's message that are passed on.
const MESSAGE_CHARACTERS_MAX: usize = 400;

impl ModelServer {
    /// A client of this server; `seed` spreads its repeats. Connects when first used.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field; `url` also where it asks for TLS and the machine has no certificates.
    pub fn new(settings: ModelServerSettings, seed: u64) -> Result<Self, InvalidInput> {
        settings.check()?;
        let http = HttpClient::new(&settings.url, settings.connect)?;
        let random = Mutex::new(SmallRng::seed_from_u64(seed));
        Ok(Self(Arc::new(Inner { settings, http, random })))
    }

    /// The model that requests ask for.
    pub fn model(&self) -> &str {
        &self.0.settings.model
    }

    /// Sends a request and reads all of its reply, which must be JSON of at most so many bytes.
    ///
    /// # Errors
    /// [`Failed`], after the repeats.
    pub async fn call(&self, path: &str, body: &Value, bytes_max: usize) -> Result<Value, Failed> {
        let until = Instant::now() + self.0.settings.total;
        let body = Bytes::from(body.to_string());
        let once = || async {
            let reply = self.once(path, body.clone(), until).await?;
            let bytes = self.read(reply, bytes_max, until).await?;
            let parsed = serde_json::from_slice(&bytes);
            parsed.map_err(|error| Attempt::passing(ModelFailure::Broken, format!("its reply is not JSON: {error}")))
        };
        self.repeated(until, once).await
    }

    /// Sends a request and returns the data of the events of its reply as they come. The stream ends where the reply does,
    /// or with its first error.
    ///
    /// # Errors
    /// [`Failed`], after the repeats, where there is no reply at all.
    pub async fn stream(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<impl Stream<Item = Result<String, Failed>> + Send + use<>, Failed> {
        let until = Instant::now() + self.0.settings.total;
        let body = Bytes::from(body.to_string());
        let reply = self.repeated(until, || self.once(path, body.clone(), until)).await?;
        let reading = Reading { server: self.clone(), reply: Some(reply), events: Events::default(), bytes: 0, until };
        let pieces = stream::unfold(reading, |mut reading| async move {
            let events = reading.next().await?;
            let events: Vec<_> = match events {
                Ok(events) => events.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            Some((stream::iter(events), reading))
        });
        Ok(pieces.flatten())
    }

    async fn repeated<T, W, F>(&self, until: Instant, once: W) -> Result<T, Failed>
    where
        W: Fn() -> F,
        F: Future<Output = Result<T, Attempt>>,
    {
        let mut attempt = 0;
        loop {
            let failed = match once().await {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            attempt += 1;
            let share = self.0.random.lock().unwrap_or_else(PoisonError::into_inner).random::<f64>();
            match self.0.settings.retries.pause(attempt, &failed, share) {
                Some(pause) if Instant::now() + pause < until => {
                    tracing::debug!(attempt, ?pause, "asking again: {}", failed.reason);
                    sleep(pause).await;
                }
                _ => return Err(Failed { failure: failed.failure, reason: failed.reason }),
            }
        }
    }

    /// One attempt, up to the head of a successful reply.
    async fn once(&self, path: &str, body: Bytes, until: Instant) -> Result<Reply, Attempt> {
        let settings = &self.0.settings;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{path}", settings.url.trim_end_matches('/')))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("nearring/", env!("CARGO_PKG_VERSION")));
        if let Some(ApiKey(key)) = &settings.key {
            request = request.header(header::AUTHORIZATION, http_client::secret(&format!("Bearer {key}"))?);
        }
        let request = request.body(Full::new(body));
        let request = request.map_err(|error| Attempt::lasting(ModelFailure::Refused, format!("its URL: {error}")))?;
        let reply = self.0.http.send(request, until.min(Instant::now() + settings.idle)).await?;
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let wait = retry::wanted_wait(reply.headers());
        let failure = http_client::failure_of(status);
        // A refusal that cannot be read is a refusal all the same.
        let said = self.read(reply, REFUSAL_BYTES_MAX, until).await.unwrap_or_default();
        let reason = format!("it answered {}{}", status.as_u16(), self.message(&said));
        let passing = failure != ModelFailure::Refused;
        Err(Attempt { failure, reason, passing, wait })
    }

    async fn read(&self, reply: Reply, bytes_max: usize, until: Instant) -> Result<Vec<u8>, Attempt> {
        http_client::read(reply, bytes_max, self.0.settings.idle, until).await
    }

    /// What a refusal says, as an end of a sentence: short, on one line, and without the key should the server repeat it.
    fn message(&self, body: &[u8]) -> String {
        let told = serde_json::from_slice::<Value>(body).ok().and_then(|value| said(&value));
        let told = told.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
        let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
        let told = match &self.0.settings.key {
            Some(ApiKey(key)) => told.replace(key.as_str(), "…"),
            None => told,
        };
        let told: String = told.chars().take(MESSAGE_CHARACTERS_MAX).collect();
        if told.is_empty() { told } else { format!(": {told}") }
    }

    /// The message of an error that came within a reply, if this is one.
    pub fn error_in(&self, value: &Value) -> Option<Failed> {
        let error = value.get("error").filter(|error| !error.is_null())?;
        let reason = format!("it reported an error{}", self.message(error.to_string().as_bytes()));
        Some(Failed::broken(reason))
    }
}

/// The message of an error as OpenAI writes it, and as others do.
fn said(value: &Value) -> Option<String> {
    let inner = [value.pointer("/error/message"), value.get("message"), value.get("error"), value.get("detail")];
    let text = inner.into_iter().flatten().find_map(Value::as_str)?;
    Some(text.to_owned())
}

/// A reply on its way.
struct Reading {
    server: ModelServer,
    /// `None` after its end.
    reply: Option<Reply>,
    events: Events,
    /// Read so far.
    bytes: usize,
    until: Instant,
}

impl Reading {
    /// The events that the next piece completes; `None` at the end.
    async fn next(&mut self) -> Option<Result<Vec<String>, Failed>> {
        let reply = self.reply.as_mut()?;
        let until = self.until.min(Instant::now() + self.server.0.settings.idle);
        let failed = match timeout_at(until, reply.body_mut().frame()).await {
            Ok(None) => {
                self.reply = None;
                return None;
            }
            Ok(Some(Ok(frame))) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                self.bytes += data.len();
                match self.events.push(data) {
                    _ if self.bytes > STREAM_BYTES_MAX => {
                        Failed::broken(format!("its reply is longer than {STREAM_BYTES_MAX} bytes"))
                    }
                    Ok(events) => return Some(Ok(events)),
                    Err(error) => Failed::broken(error.to_string()),
                }
            }
            Ok(Some(Err(_))) => Failed::broken("its reply broke off"),
            Err(_) => Failed { failure: ModelFailure::Late, reason: "it fell silent within its reply".to_owned() },
        };
        self.reply = None;
        Some(Err(failed))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn each_mistake_in_the_settings_names_its_field_and_shows_no_key() {
        let good = ModelServerSettings::new("https://models.example/v1/", "m");
        assert_eq!(good.check(), Ok(()));
        for url in
            ["", "models.example/v1", "ftp://x/v1", "http:///v1", "http://x/v1?key=s3cret", "http://me:s3cret@x/v1"]
        {
            let error = ModelServerSettings { url: url.into(), ..good.clone() }.check().unwrap_err();
            assert_eq!(error.field, "url", "{url}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        assert_eq!(ModelServerSettings { model: " ".into(), ..good.clone() }.check().unwrap_err().field, "model");
        assert_eq!(ModelServerSettings { idle: Duration::ZERO, ..good.clone() }.check().unwrap_err().field, "idle");
        let keyed = ModelServerSettings { key: ApiKey::new("s3cret"), ..good };
        assert!(!format!("{keyed:?}").contains("s3cret"));
        let broken = ModelServerSettings { key: ApiKey::new("a\nb"), ..keyed };
        assert_eq!(broken.check().unwrap_err().field, "key");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_short_and_without_the_key() {
        let settings = ModelServerSettings {
            key: ApiKey::new("s3cret"),
            ..ModelServerSettings::new("http://127.0.0.1:1/v1", "m")
        };
        let server = ModelServer::new(settings, 1).unwrap();
        let body = br#"{"error": {"message": "bad key s3cret\n given", "type": "x"}}"#;
        assert_eq!(server.message(body), ": bad key … given");
        assert_eq!(server.message(br#"{"detail": "no such model"}"#), ": no such model");
        assert_eq!(server.message(b""), "");
        assert!(server.message("long ".repeat(1000).as_bytes()).chars().count() <= MESSAGE_CHARACTERS_MAX + 2);
    }
}
