//! One coarse error that says what to do next; the detail stays in its message.
use tonic::{Code, Status};

/// What a caller can do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong; the message names the field. Repeating it cannot help, and nothing was changed.
    InvalidInput,
    /// The collection, point or document does not exist.
    NotFound,
    /// It exists already.
    AlreadyExists,
    /// The cluster protects itself; slow down and repeat.
    Overloaded,
    /// The cluster could not be reached, or not enough replicas could. A read may be repeated; a write's outcome is
    /// unknown unless the message says that nothing was changed.
    Unavailable,
    /// The deadline passed. As [`ErrorKind::Unavailable`].
    DeadlineExceeded,
    /// The request does not fit the state of the cluster or speaks a newer format; the message says what to change.
    FailedPrecondition,
    /// The write may or may not have happened, and can no longer be repeated with one effect: the session that numbered
    /// it is gone. Read the points it concerns, then decide whether to write again.
    UnknownOutcome,
    /// The shards have forgotten the session (it was idle for long, or they were full); the request had no effect. The
    /// client opens a new one by itself, so callers see this only where that fails twice in a row.
    SessionExpired,
    /// The server does not do this.
    Unsupported,
    /// A fault on the server's side.
    Internal,
}

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What to do next.
    pub kind: ErrorKind,
    /// What happened, in words.
    pub message: String,
}

/// Metadata key under which a status names its reason for machines.
pub(crate) const REASON: &str = "nearring-reason";
/// The reason of a write whose session the shards no longer know; also stands in the message of a single shard's error.
pub(crate) const SESSION_EXPIRED: &str = "session_expired";

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let reason = status.metadata().get(REASON).and_then(|reason| reason.to_str().ok());
        let kind = match status.code() {
            Code::FailedPrecondition if reason == Some(SESSION_EXPIRED) => ErrorKind::SessionExpired,
            Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidInput,
            Code::NotFound => ErrorKind::NotFound,
            Code::AlreadyExists => ErrorKind::AlreadyExists,
            Code::ResourceExhausted => ErrorKind::Overloaded,
            // Unknown is what the transport makes of a connection that broke; no server of ours says it.
            Code::Unavailable | Code::Cancelled | Code::Aborted | Code::Unknown => ErrorKind::Unavailable,
            Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Code::FailedPrecondition => ErrorKind::FailedPrecondition,
            Code::Unimplemented => ErrorKind::Unsupported,
            _ => ErrorKind::Internal,
        };
        Self { kind, message: status.message().to_owned() }
    }
}

impl ErrorKind {
    /// Whether the same request may succeed a moment later.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::DeadlineExceeded)
    }

    /// What to do next, in one line for people.
    pub fn advice(self) -> &'static str {
        match self {
            ErrorKind::InvalidInput => "correct the named field; nothing was changed",
            ErrorKind::NotFound => "check the name, or create it first",
            ErrorKind::AlreadyExists => "use it as it is, choose another name, or delete it first",
            ErrorKind::Overloaded => "slow down and repeat",
            ErrorKind::Unavailable => "check that the router and a majority of the nodes are up, then repeat",
            ErrorKind::DeadlineExceeded => "repeat, with a longer deadline if it happens again",
            ErrorKind::FailedPrecondition => "change what the message names, then repeat",
            ErrorKind::UnknownOutcome => "read the points concerned, then decide whether to write again",
            ErrorKind::SessionExpired => "repeat; nothing was changed",
            ErrorKind::Unsupported => "use a server that offers this, or another way",
            ErrorKind::Internal => "look at the servers' logs",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_field_is_the_callers_to_mend_and_an_overload_is_not() {
        let refused = Error::from(Status::invalid_argument("points[0].vectors: has 3 components"));
        assert_eq!(refused.kind, ErrorKind::InvalidInput);
        assert_eq!(refused.to_string(), "points[0].vectors: has 3 components");
        assert!(!refused.kind.is_transient());
        assert!(Error::from(Status::resource_exhausted("writes in flight")).kind.is_transient());
        assert!(Error::from(Status::unknown("transport error")).kind.is_transient(), "a router that was killed");
        assert!(!Error::from(Status::internal("a fault")).kind.is_transient());
    }
}
