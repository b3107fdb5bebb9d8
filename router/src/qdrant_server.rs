//! Another server that speaks Qdrant's REST API, as a reader sees it: what `nearring import --from` and the restoring of an
//! archive that lies elsewhere read with.
//!
//! **Rules:** only requests that change nothing are sent, so each is repeated as [`Retries`] say; every wait ends; replies are
//! read up to a bound; the key goes into one header (`api-key`) and nowhere else. Names of collections go into paths as they
//! are: only those that a collection can have here are asked for.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::Full;
use nearring_proto::collection::InvalidInput;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::http_client::{self, HttpClient, Reply};
use crate::model_server::retry::{Attempt, Retries, wanted_wait};
use crate::model_server::{ApiKey, Failed};

/// The most bytes read of one reply: a page of large points.
const REPLY_BYTES_MAX: usize = 512 << 20;
/// The most bytes read of a refusal.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// The most characters of a server's message that are passed on.
const MESSAGE_CHARACTERS_MAX: usize = 400;

/// Where the server is, and how patient its reader is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QdrantServerSettings {
    /// The part of its addresses before `/collections`, for example `http://10.0.0.7:6333`.
    pub url: String,
    /// Sent as `api-key`; none where the server wants none.
    pub key: Option<ApiKey>,
    /// The longest wait for a connection.
    pub connect: Duration,
    /// The longest wait for a reply's head, and then for each next piece.
    pub idle: Duration,
    /// When to try again.
    pub retries: Retries,
}

impl QdrantServerSettings {
    /// A server with the default patience: 5 s for a connection, 60 s between pieces, six attempts.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            key: None,
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            retries: Retries { attempts: 6, ..Retries::default() },
        }
    }

    /// Checks what can be checked without calling it.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field.
    pub fn check(&self) -> Result<(), InvalidInput> {
        // Not repeated in the message: a key may stand in it.
        let wrong = |reason: &str| Err(InvalidInput::new("url", reason));
        let Ok(uri) = self.url.parse::<Uri>() else { return wrong("is no URL; give one as http://host:6333") };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return wrong("holds a user or password; give the key in the environment instead");
        }
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return wrong("is not of the form http://host:6333 or https://host:6333");
        }
        if uri.query().is_some() {
            return wrong("has a query; give only the part before /collections");
        }
        self.retries.check()
    }
}

/// A page of points, as they came.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PointsPage {
    /// The points: `id`, and `payload` and `vector` where they were asked for.
    pub points: Vec<Value>,
    /// The id at which the next page begins; `None` at the end.
    pub next: Option<Value>,
}

/// A server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct QdrantServer(Arc<Inner>);

struct Inner {
    settings: QdrantServerSettings,
    http: HttpClient,
    /// Spreads repeats. No await happens while it is held.
    random: Mutex<SmallRng>,
}

impl fmt::Debug for QdrantServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QdrantServer").field(&self.0.settings).finish()
    }
}

impl QdrantServer {
    /// A reader of this server; `seed` spreads its repeats. Connects when first used.
    ///
    /// # Errors
    /// [`InvalidInput`] naming the field; `url` also where it asks for TLS and the machine has no certificates.
    pub fn new(settings: QdrantServerSettings, seed: u64) -> Result<Self, InvalidInput> {
        settings.check()?;
        let http = HttpClient::new(&settings.url, settings.connect)?;
        let random = Mutex::new(SmallRng::seed_from_u64(seed));
        Ok(Self(Arc::new(Inner { settings, http, random })))
    }

    /// The names of its collections, in order.
    ///
    /// # Errors
    /// [`Failed`], after the repeats.
    pub async fn collections(&self) -> Result<Vec<String>, Failed> {
        let told = self.call(Method::GET, "/collections", None).await?;
        let mut names = list(&told, "collections")?
            .iter()
            .map(|one| Ok(text(one, "name")?.to_owned()))
            .collect::<Result<Vec<String>, Failed>>()?;
        names.sort();
        Ok(names)
    }

    /// What it says of a collection: `config`, `payload_schema` and more.
    ///
    /// # Errors
    /// [`Failed`], after the repeats.
    pub async fn collection(&self, name: &str) -> Result<Value, Failed> {
        self.call(Method::GET, &format!("/collections/{name}"), None).await
    }

    /// Every alias with its collection.
    ///
    /// # Errors
    /// [`Failed`], after the repeats.
    pub async fn aliases(&self) -> Result<BTreeMap<String, String>, Failed> {
        let told = self.call(Method::GET, "/aliases", None).await?;
        let pair = |one: &Value| Ok((text(one, "alias_name")?.to_owned(), text(one, "collection_name")?.to_owned()));
        list(&told, "aliases")?.iter().map(pair).collect()
    }

    /// How many points a collection has, exactly.
    ///
    /// # Errors
    /// [`Failed`], after the repeats.
    pub async fn count(&self, name: &str) -> Result<u64, Failed> {
        let path = format!("/collections/{name}/points/count");
        let told = self.call(Method::POST, &path, Some(json!({"exact": true}))).await?;
        told["count"].as_u64().ok_or_else(|| unlike("count"))
    }

    /// The points from an id on, by id; `None` = from the first.
    ///
    /// # Errors
    /// [`Failed`], after the repeats.
    pub async fn scroll(
        &self,
        name: &str,
        from: Option<&Value>,
        limit: usize,
        only_ids: bool,
    ) -> Result<PointsPage, Failed> {
        let mut body = json!({"limit": limit, "with_payload": !only_ids, "with_vector": !only_ids});
        if let Some(from) = from {
            body["offset"] = from.clone();
        }
        let mut told = self.call(Method::POST, &format!("/collections/{name}/points/scroll"), Some(body)).await?;
        let points = match told["points"].take() {
            Value::Array(points) => points,
            _ => return Err(unlike("points")),
        };
        let next = Some(told["next_page_offset"].take()).filter(|next| !next.is_null());
        Ok(PointsPage { points, next })
    }

    /// The `result` of a request's answer.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Failed> {
        let settings = &self.0.settings;
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let mut attempt = 0;
        loop {
            let once = async {
                let reply = self.once(&method, path, body.clone()).await?;
                let until = Instant::now() + settings.idle * 10;
                let bytes = http_client::read(reply, REPLY_BYTES_MAX, settings.idle, until).await?;
                let parsed = serde_json::from_slice::<Value>(&bytes);
                parsed.map_err(|error| {
                    let failure = crate::failure::ModelFailure::Broken;
                    Attempt::passing(failure, format!("its reply is not JSON: {error}"))
                })
            };
            let failed = match once.await {
                Ok(mut reply) => {
                    return match reply["result"].take() {
                        Value::Null => Err(unlike("result")),
                        result => Ok(result),
                    };
                }
                Err(failed) => failed,
            };
            attempt += 1;
            let share = self.0.random.lock().unwrap_or_else(PoisonError::into_inner).random::<f64>();
            match settings.retries.pause(attempt, &failed, share) {
                Some(pause) => {
                    tracing::debug!(attempt, ?pause, path, "asking again: {}", failed.reason);
                    sleep(pause).await;
                }
                None => {
                    let reason = format!("{method} {path}: {}", failed.reason);
                    return Err(Failed { failure: failed.failure, reason });
                }
            }
        }
    }

    /// One attempt, up to the head of a successful reply.
    async fn once(&self, method: &Method, path: &str, body: Bytes) -> Result<Reply, Attempt> {
        let settings = &self.0.settings;
        let refused = |reason: String| Attempt::lasting(crate::failure::ModelFailure::Refused, reason);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", settings.url.trim_end_matches('/')))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("nearring/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &settings.key {
            request = request.header("api-key", http_client::secret(key.text())?);
        }
        let request = request.body(Full::new(body)).map_err(|error| refused(format!("its URL: {error}")))?;
        let reply = self.0.http.send(request, Instant::now() + settings.idle).await?;
        let status = reply.status();
        if status.is_success() {
            return Ok(reply);
        }
        let wait = wanted_wait(reply.headers());
        let failure = http_client::failure_of(status);
        // A refusal that cannot be read is a refusal all the same.
        let said = http_client::read(reply, REFUSAL_BYTES_MAX, settings.idle, Instant::now() + settings.idle).await;
        let reason = format!("it answered {}{}", status.as_u16(), self.message(&said.unwrap_or_default()));
        let passing = failure != crate::failure::ModelFailure::Refused;
        Err(Attempt { failure, reason, passing, wait })
    }

    /// What a refusal says, as an end of a sentence: short, on one line, and without the key should the server repeat it.
    fn message(&self, body: &[u8]) -> String {
        let told = serde_json::from_slice::<Value>(body).ok();
        let told = told.as_ref().and_then(|value| value.pointer("/status/error").and_then(Value::as_str));
        let told = told.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
        let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
        let told = match &self.0.settings.key {
            Some(key) => told.replace(key.text(), "…"),
            None => told,
        };
        let told: String = told.chars().take(MESSAGE_CHARACTERS_MAX).collect();
        if told.is_empty() { told } else { format!(": {told}") }
    }
}

fn unlike(part: &str) -> Failed {
    Failed::broken(format!("its reply has no {part} as Qdrant's have; is it a Qdrant?"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>, Failed> {
    value[key].as_array().ok_or_else(|| unlike(key))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str, Failed> {
    value[key].as_str().ok_or_else(|| unlike(key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[tokio::test]
    async fn each_mistake_in_the_settings_names_its_field_and_no_key_is_shown() {
        let good = QdrantServerSettings::new("http://10.0.0.7:6333/");
        assert_eq!(good.check(), Ok(()));
        for url in ["", "10.0.0.7:6333", "ftp://x", "http:///x", "http://x?key=s3cret", "http://me:s3cret@x"] {
            let error = QdrantServerSettings { url: url.into(), ..good.clone() }.check().unwrap_err();
            assert_eq!(error.field, "url", "{url}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let server = QdrantServer::new(QdrantServerSettings { key: ApiKey::new("s3cret"), ..good }, 1).unwrap();
        assert!(!format!("{server:?}").contains("s3cret"));
        let told = br#"{"status": {"error": "Forbidden:\n s3cret"}, "time": 0}"#;
        assert_eq!(server.message(told), ": Forbidden: …");
        assert_eq!(server.message(b"gateway"), ": gateway");
    }
}
