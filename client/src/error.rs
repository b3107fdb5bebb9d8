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

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let kind = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidInput,
            Code::NotFound => ErrorKind::NotFound,
            Code::AlreadyExists => ErrorKind::AlreadyExists,
            Code::ResourceExhausted => ErrorKind::Overloaded,
            Code::Unavailable | Code::Cancelled | Code::Aborted => ErrorKind::Unavailable,
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
    }
}
