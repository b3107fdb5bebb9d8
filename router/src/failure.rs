//! What can go wrong: how a request to the router ends ([`Error`]), and what a node's refusal means ([`NodeFailure`]).
//!
//! The one question that a router must never guess about is whether a write may have happened. So a node's status is
//! read in one place, here, and [`Meaning::nothing_happened`] holds only where the node, or the failed connection
//! attempt, proves it.
use nearring_proto::collection::InvalidInput;
use nearring_proto::convert::DecodeError;
use nearring_proto::ids::NodeId;
use nearring_proto::status::never_connected;
use tonic::{Code, Status};

/// Metadata key under which a status names its reason for programs.
pub const REASON: &str = "nearring-reason";
/// Metadata key of the seconds after which a request may be repeated.
pub const RETRY_AFTER: &str = "retry-after";
/// Metadata key of the leader's node beside the reason `not_leader`.
pub const LEADER_NODE: &str = "nearring-leader-node";

/// What a caller can do about a failed request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The request is wrong; the message begins with the field.
    Invalid,
    /// The request speaks a newer message format.
    NewerFormat,
    /// No such collection.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request does not fit the cluster's or the collection's state.
    Precondition,
    /// The session is not known any more; nothing was written.
    SessionExpired,
    /// Too much at once; nothing was written.
    Overloaded,
    /// The deadline passed; a write may have happened.
    Deadline,
    /// Not enough replicas were reached; a write may have happened.
    Unavailable,
    /// As `Unavailable`, and certainly nothing was written.
    NotDone,
    /// A fault.
    Internal,
}

/// How a model that the router calls (an embedder, a generator) failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModelFailure {
    /// It has too much to do.
    Busy,
    /// It did not answer in time.
    Late,
    /// There is no connection to it.
    Unreachable,
    /// It refuses what the router asks: a key or a setting is wrong.
    Refused,
    /// It broke off, or what it says makes no sense.
    Broken,
}

impl From<ModelFailure> for Kind {
    fn from(failure: ModelFailure) -> Self {
        match failure {
            ModelFailure::Busy => Self::Overloaded,
            ModelFailure::Late => Self::Deadline,
            // Nothing is written before a model has answered.
            ModelFailure::Unreachable | ModelFailure::Refused | ModelFailure::Broken => Self::NotDone,
        }
    }
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What to do about it.
    pub kind: Kind,
    /// What happened, in words.
    pub message: String,
    /// Seconds after which the same request may succeed, where that is known; 0 where it never will.
    pub retry_after: Option<u32>,
}

impl Error {
    /// Kind and message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None }
    }

    /// The same, with the seconds after which the request may succeed; 0 where it never will.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// A field that is refused.
    pub fn invalid(field: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::new(Kind::Invalid, format!("{field}: {reason}"))
    }
}

impl From<InvalidInput> for Error {
    fn from(invalid: InvalidInput) -> Self {
        Self::new(Kind::Invalid, invalid.to_string())
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        let kind = if error.field == "format" { Kind::NewerFormat } else { Kind::Invalid };
        Self::new(kind, error.to_string())
    }
}

/// The one table of errors and statuses.
impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, reason) = match error.kind {
            Kind::Invalid => (Code::InvalidArgument, "invalid"),
            Kind::NewerFormat => (Code::FailedPrecondition, "newer_format"),
            Kind::NotFound => (Code::NotFound, "not_found"),
            Kind::AlreadyExists => (Code::AlreadyExists, "exists"),
            Kind::Precondition => (Code::FailedPrecondition, "precondition"),
            Kind::SessionExpired => (Code::FailedPrecondition, "session_expired"),
            Kind::Overloaded => (Code::ResourceExhausted, "overloaded"),
            Kind::Deadline => (Code::DeadlineExceeded, "deadline"),
            Kind::Unavailable => (Code::Unavailable, "unavailable"),
            Kind::NotDone => (Code::Unavailable, "not_proposed"),
            Kind::Internal => (Code::Internal, "internal"),
        };
        let mut status = Status::new(code, error.message);
        status.metadata_mut().insert(REASON, tonic::metadata::MetadataValue::from_static(reason));
        if let Some(seconds) = error.retry_after.filter(|seconds| *seconds > 0) {
            status.metadata_mut().insert(RETRY_AFTER, seconds.into());
        }
        status
    }
}

/// What a node's refusal, or its silence, says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// Another replica leads, perhaps this one.
    NotLeader(Option<NodeId>),
    /// The node does not hold the shard, or is of another cluster: the table is out of date.
    WrongShard,
    /// The replica has not applied what the read asks for, or is still fetching a segment.
    Behind,
    /// The node protects itself; nothing was proposed.
    Overloaded,
    /// The node says that nothing was proposed.
    NotProposed,
    /// No connection was made.
    Unreachable,
    /// The connection broke, or the answer cannot be read.
    Lost,
    /// No answer in time.
    Late,
    /// The write's session is gone; nothing was executed this time.
    SessionExpired,
    /// The request itself is refused, and would be by every replica.
    Refused(Kind),
    /// The node failed at it.
    Broken,
}

impl Meaning {
    /// Whether it is certain that a write was not proposed in this attempt.
    pub fn nothing_happened(self) -> bool {
        match self {
            Self::NotLeader(_)
            | Self::WrongShard
            | Self::Overloaded
            | Self::NotProposed
            | Self::Unreachable
            | Self::SessionExpired
            | Self::Refused(_) => true,
            Self::Behind | Self::Lost | Self::Late | Self::Broken => false,
        }
    }

    /// Whether another table may help.
    pub fn table_is_stale(self) -> bool {
        matches!(self, Self::NotLeader(_) | Self::WrongShard | Self::Unreachable)
    }

    /// Whether the node itself is to be avoided for a while.
    pub fn node_is_away(self) -> bool {
        matches!(self, Self::Unreachable | Self::Lost)
    }

    /// A word for coverage and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotLeader(_) => "not_leader",
            Self::WrongShard => "wrong_shard",
            Self::Behind => "behind",
            Self::Overloaded => "overloaded",
            Self::NotProposed => "not_proposed",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
            Self::Late => "deadline",
            Self::SessionExpired => "session_expired",
            Self::Refused(_) => "refused",
            Self::Broken => "internal",
        }
    }

    /// How a request ends that this is the last word on.
    pub fn kind(self) -> Kind {
        match self {
            Self::Overloaded => Kind::Overloaded,
            Self::Late => Kind::Deadline,
            Self::SessionExpired => Kind::SessionExpired,
            Self::Refused(kind) => kind,
            Self::Broken => Kind::Internal,
            _ => Kind::Unavailable,
        }
    }
}

/// One failed attempt at one shard.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {message}", .meaning.word())]
pub struct NodeFailure {
    /// What it says.
    pub meaning: Meaning,
    /// In words.
    pub message: String,
}

impl NodeFailure {
    /// Meaning and message.
    pub fn new(meaning: Meaning, message: impl Into<String>) -> Self {
        Self { meaning, message: message.into() }
    }

    /// Reads the error of one shard in a search reply.
    pub fn from_search(code: &str, message: String, leader: u64) -> Self {
        let meaning = match code {
            "not_leader" => Meaning::NotLeader((leader != 0).then_some(NodeId(leader))),
            "wrong_shard" => Meaning::WrongShard,
            "behind" | "segment_missing" => Meaning::Behind,
            "overloaded" => Meaning::Overloaded,
            "deadline" => Meaning::Late,
            _ => Meaning::Broken,
        };
        Self { meaning, message }
    }
}

impl From<Status> for NodeFailure {
    fn from(status: Status) -> Self {
        let reason = status.metadata().get(REASON).and_then(|value| value.to_str().ok());
        let leader = || {
            let value = status.metadata().get(LEADER_NODE)?.to_str().ok()?.parse().ok()?;
            (value != 0).then_some(NodeId(value))
        };
        let meaning = match (status.code(), reason) {
            (_, Some("not_leader")) => Meaning::NotLeader(leader()),
            (_, Some("wrong_shard" | "wrong_cluster" | "other_cluster")) => Meaning::WrongShard,
            (_, Some("session_expired")) => Meaning::SessionExpired,
            (_, Some("not_proposed" | "not_done")) => Meaning::NotProposed,
            (_, Some("behind" | "segment_missing" | "stopped")) => Meaning::Behind,
            (_, Some("newer_format")) => Meaning::Refused(Kind::NewerFormat),
            (_, Some("no_leader" | "unknown_outcome" | "unclear")) => Meaning::Late,
            (Code::ResourceExhausted, _) => Meaning::Overloaded,
            (Code::InvalidArgument | Code::OutOfRange, _) => Meaning::Refused(Kind::Invalid),
            (Code::NotFound, _) => Meaning::Refused(Kind::NotFound),
            (Code::AlreadyExists, _) => Meaning::Refused(Kind::AlreadyExists),
            (Code::FailedPrecondition, _) => Meaning::Refused(Kind::Precondition),
            (Code::DeadlineExceeded, _) => Meaning::Late,
            (Code::Unavailable, _) if never_connected(&status) => Meaning::Unreachable,
            (Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted, _) => Meaning::Lost,
            _ => Meaning::Broken,
        };
        Self { meaning, message: status.message().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn only_proof_counts_as_nothing_happened() {
        let status = |code, reason: &'static str| {
            let mut status = Status::new(code, "scripted");
            if !reason.is_empty() {
                status.metadata_mut().insert(REASON, tonic::metadata::MetadataValue::from_static(reason));
            }
            NodeFailure::from(status).meaning
        };
        for (code, reason, proof) in [
            (Code::Unavailable, "", false),
            (Code::Unavailable, "not_proposed", true),
            (Code::DeadlineExceeded, "", false),
            (Code::DeadlineExceeded, "unknown_outcome", false),
            (Code::Internal, "", false),
            (Code::Unknown, "", false),
            (Code::ResourceExhausted, "overloaded", true),
            (Code::FailedPrecondition, "not_leader", true),
            (Code::InvalidArgument, "", true),
        ] {
            assert_eq!(status(code, reason).nothing_happened(), proof, "{code:?} {reason}");
        }
        let mut hinted = Status::failed_precondition("elsewhere");
        hinted.metadata_mut().insert(REASON, "not_leader".parse().unwrap());
        hinted.metadata_mut().insert(LEADER_NODE, 7_u64.into());
        assert_eq!(NodeFailure::from(hinted).meaning, Meaning::NotLeader(Some(NodeId(7))));
    }

    #[tokio::test]
    async fn a_refused_connection_proves_that_nothing_was_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        let mut client = nearring_proto::wire::node_data_client::NodeDataClient::new(channel);
        let status = client.status(nearring_proto::wire::NodeStatusRequest::default()).await.unwrap_err();
        assert_eq!(NodeFailure::from(status).meaning, Meaning::Unreachable);
    }
}
