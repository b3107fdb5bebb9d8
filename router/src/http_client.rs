//! Requests to HTTP servers of others: what [`crate::model_server`] and [`crate::qdrant_server`] send theirs with.
//!
//! **Rules:** every wait ends, and replies are read up to a bound. What failed is told as an [`Attempt`], which says whether
//! another one may end otherwise; the callers repeat. What it deliberately does not do: follow redirects (they would carry keys
//! elsewhere), use proxies.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use nearring_proto::collection::InvalidInput;
use tokio::time::{Instant, timeout_at};

use crate::failure::ModelFailure;
use crate::model_server::retry::Attempt;

/// A reply's head that came in time, and its body.
pub(crate) type Reply = Response<hyper::body::Incoming>;

/// Connections to servers. A server without TLS needs no certificates, and works on a machine that has none.
pub(crate) enum HttpClient {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl HttpClient {
    /// For servers whose URL begins as this one does. Connects when first used, and waits so long for it.
    ///
    /// # Errors
    /// [`InvalidInput`] naming `url` where it asks for TLS and the machine has no certificates.
    pub(crate) fn new(url: &str, connect: Duration) -> Result<Self, InvalidInput> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(connect));
        tcp.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(30));
        if !url.starts_with("https:") {
            return Ok(Self::Plain(builder.build(tcp)));
        }
        tcp.enforce_http(false);
        let tls = HttpsConnectorBuilder::new().with_native_roots().map_err(|error| {
            let reason = format!("asks for TLS, but this machine's certificates cannot be read: {error}");
            InvalidInput::new("url", reason)
        })?;
        Ok(Self::Tls(builder.build(tls.https_only().enable_http1().wrap_connector(tcp))))
    }

    /// One attempt, up to the head of the reply, whatever its status.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>, until: Instant) -> Result<Reply, Attempt> {
        let reply = async {
            match self {
                Self::Plain(http) => http.request(request).await,
                Self::Tls(http) => http.request(request).await,
            }
        };
        match timeout_at(until, reply).await {
            Err(_) => Err(Attempt::passing(ModelFailure::Late, "it did not reply in time")),
            Ok(Err(error)) if error.is_connect() => {
                let reason = format!("it cannot be reached: {}", cause(&error));
                Err(Attempt::passing(ModelFailure::Unreachable, reason))
            }
            Ok(Err(error)) => {
                Err(Attempt::passing(ModelFailure::Broken, format!("the connection broke: {}", cause(&error))))
            }
            Ok(Ok(reply)) => Ok(reply),
        }
    }
}

/// The next piece of a body, waited for until then at the latest; `None` at its end.
pub(crate) async fn piece(reply: &mut Reply, until: Instant) -> Result<Option<Bytes>, Attempt> {
    loop {
        match timeout_at(until, reply.body_mut().frame()).await {
            Err(_) => return Err(Attempt::passing(ModelFailure::Late, "its reply did not end in time")),
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(Attempt::passing(ModelFailure::Broken, "its reply broke off")),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// All of a body, up to a bound, with at most `idle` between two pieces.
pub(crate) async fn read(
    mut reply: Reply,
    bytes_max: usize,
    idle: Duration,
    until: Instant,
) -> Result<Vec<u8>, Attempt> {
    let mut bytes = Vec::new();
    while let Some(data) = piece(&mut reply, until.min(Instant::now() + idle)).await? {
        if bytes.len() + data.len() > bytes_max {
            let reason = format!("its reply is longer than {bytes_max} bytes");
            return Err(Attempt::lasting(ModelFailure::Broken, reason));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// What a status that is no success means.
pub(crate) fn failure_of(status: StatusCode) -> ModelFailure {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => ModelFailure::Busy,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => ModelFailure::Late,
        _ if status.is_server_error() => ModelFailure::Broken,
        _ => ModelFailure::Refused,
    }
}

/// A header's value that no log shows.
pub(crate) fn secret(text: &str) -> Result<HeaderValue, Attempt> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| Attempt::lasting(ModelFailure::Refused, "its key fits no header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What lies at the bottom of an error: the layers above it say only where it was met.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
