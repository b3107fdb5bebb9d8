//! Where an archive lies that a client names by its location, and getting it from there.
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use tokio::time::Instant;

use super::Failed;
use crate::failure::{Error, Kind, ModelFailure};
use crate::http_client::{self, HttpClient};
use crate::model_server::retry::Attempt;

/// The longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest silence of the server.
const IDLE: Duration = Duration::from_secs(60);

/// Where an archive is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Location {
    /// On this router's machine.
    File(PathBuf),
    /// At a server.
    Http(String),
}

impl Location {
    /// Reads `file:///…`, `file://localhost/…`, `http://…` or `https://…`.
    ///
    /// # Errors
    /// [`Kind::Invalid`].
    pub(super) fn read(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("file://") {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                let message = "Bad request: Invalid snapshot URI, file path must be absolute or on localhost";
                return Err(Error::new(Kind::Invalid, message));
            }
            return match percent_decoded(path) {
                Some(path) => Ok(Self::File(path.into())),
                None => Err(Error::invalid("location", "has a % that begins no byte, or is not UTF-8")),
            };
        }
        let uri = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
        match uri.as_ref().and_then(Uri::scheme_str) {
            Some("http" | "https") => Ok(Self::Http(text.to_owned())),
            _ => Err(Error::invalid("location", "is no URL; give file:///…, http://… or https://…")),
        }
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, more) = rest.split_at_checked(2)?;
        let digits =
            std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = more;
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Writes what a server answers into a file, up to `most` bytes.
///
/// # Errors
/// [`Failed::TooLarge`]; [`Kind::Invalid`] where the server refuses; [`Kind::Unavailable`] where it may do better later.
pub(super) async fn fetch(url: &str, key: Option<&str>, file: &mut File, most: u64) -> Result<(), Failed> {
    let told = |attempt: Attempt| {
        let kind = if attempt.passing { Kind::Unavailable } else { Kind::Invalid };
        Failed::from(Error::new(kind, format!("location: {}", attempt.reason)))
    };
    let http = HttpClient::new(url, CONNECT).map_err(|error| Error::invalid("location", error.reason))?;
    let mut request = Request::get(url).header(header::USER_AGENT, concat!("nearring/", env!("CARGO_PKG_VERSION")));
    if let Some(key) = key {
        request = request.header("api-key", http_client::secret(key).map_err(told)?);
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| Error::invalid("location", error))?;
    let mut reply = http.send(request, Instant::now() + IDLE).await.map_err(told)?;
    let status = reply.status();
    if !status.is_success() {
        let passing = http_client::failure_of(status) != ModelFailure::Refused;
        let kind = if passing { Kind::Unavailable } else { Kind::Invalid };
        return Err(Error::new(kind, format!("location: the server answered {}", status.as_u16())).into());
    }
    let mut left = most;
    while let Some(piece) = http_client::piece(&mut reply, Instant::now() + IDLE).await.map_err(told)? {
        left = left.checked_sub(piece.len() as u64).ok_or(Failed::TooLarge(most))?;
        file.write_all(&piece).map_err(super::io_failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn locations_are_files_or_servers() {
        let file = |text: &str| match Location::read(text).unwrap() {
            Location::File(path) => path.to_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(file("file:///a/b.snapshot"), "/a/b.snapshot");
        assert_eq!(file("file://localhost/a%20b%2Fc"), "/a b/c");
        for text in [
            "file://host/a",
            "file://./a",
            "file://a",
            "file:///%4",
            "file:///%zz",
            "file:///%+1",
            "file:///%ff",
            "ftp://h/a",
            "",
            "/a",
            "http://",
        ] {
            assert_eq!(Location::read(text).unwrap_err().kind, Kind::Invalid, "{text}");
        }
        assert!(matches!(Location::read("https://h:1/a?b").unwrap(), Location::Http(_)));
    }
}
