//! What is written, under which conditions, and with what outcome.
use super::{DecodeError, required, unknown_enum, uuid, uuid_bytes};
use crate::ids::{RequestId, SessionId};
use crate::wire;
use crate::wire::point_outcome::Kind;
use crate::write::{Outcome, PayloadMode, Precondition};

impl TryFrom<wire::Precondition> for Precondition {
    type Error = DecodeError;

    fn try_from(message: wire::Precondition) -> Result<Self, DecodeError> {
        match required(message.kind, "kind")? {
            wire::precondition::Kind::InsertOnly(true) => Ok(Precondition::InsertOnly),
            wire::precondition::Kind::InsertOnly(false) => {
                Err(DecodeError::new("insert_only", "is false; leave the precondition out"))
            }
            wire::precondition::Kind::IfVersion(version) => Ok(Precondition::IfVersion(version.into())),
        }
    }
}

/// Reads a precondition where none is as good as an empty one.
///
/// # Errors
/// [`DecodeError`] where it says `insert_only: false`.
pub fn precondition(message: Option<wire::Precondition>) -> Result<Option<Precondition>, DecodeError> {
    message.filter(|message| message.kind.is_some()).map(TryInto::try_into).transpose()
}

impl From<Precondition> for wire::Precondition {
    fn from(precondition: Precondition) -> Self {
        let kind = match precondition {
            Precondition::InsertOnly => wire::precondition::Kind::InsertOnly(true),
            Precondition::IfVersion(version) => wire::precondition::Kind::IfVersion(version.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl From<wire::PayloadMode> for PayloadMode {
    fn from(message: wire::PayloadMode) -> Self {
        match message {
            wire::PayloadMode::Unspecified | wire::PayloadMode::Merge => PayloadMode::Merge,
            wire::PayloadMode::Overwrite => PayloadMode::Overwrite,
            wire::PayloadMode::DeleteKeys => PayloadMode::DeleteKeys,
        }
    }
}

/// Reads a payload mode as it stands in a message.
///
/// # Errors
/// [`DecodeError`] on the field `mode` where it is unknown.
pub fn payload_mode(value: i32) -> Result<PayloadMode, DecodeError> {
    Ok(wire::PayloadMode::try_from(value).map_err(|_| unknown_enum(value, "mode"))?.into())
}

impl From<PayloadMode> for wire::PayloadMode {
    fn from(mode: PayloadMode) -> Self {
        match mode {
            PayloadMode::Merge => wire::PayloadMode::Merge,
            PayloadMode::Overwrite => wire::PayloadMode::Overwrite,
            PayloadMode::DeleteKeys => wire::PayloadMode::DeleteKeys,
        }
    }
}

impl TryFrom<wire::RequestId> for RequestId {
    type Error = DecodeError;

    fn try_from(message: wire::RequestId) -> Result<Self, DecodeError> {
        let session = SessionId(uuid(&message.session, "session")?);
        Ok(Self { session, seq: message.seq, settled_below: message.settled_below })
    }
}

impl From<RequestId> for wire::RequestId {
    fn from(request: RequestId) -> Self {
        Self { session: uuid_bytes(request.session.0), seq: request.seq, settled_below: request.settled_below }
    }
}

/// A place in a batch, and what happened to the point there.
impl TryFrom<wire::PointOutcome> for (usize, Outcome) {
    type Error = DecodeError;

    fn try_from(message: wire::PointOutcome) -> Result<Self, DecodeError> {
        let current = message.current.map(Into::into);
        let outcome = match Kind::try_from(message.kind).map_err(|_| unknown_enum(message.kind, "kind"))? {
            Kind::Applied => Outcome::Applied,
            Kind::NotFound => Outcome::NotFound,
            Kind::AlreadyExists => Outcome::AlreadyExists(required(current, "current")?),
            Kind::VersionMismatch => Outcome::VersionMismatch(current),
            Kind::FilterMismatch => Outcome::FilterMismatch,
        };
        Ok((message.position as usize, outcome))
    }
}

/// Batches are far smaller than the 32 bits of a position; one beyond them is written as the largest that fits.
impl From<(usize, Outcome)> for wire::PointOutcome {
    fn from((position, outcome): (usize, Outcome)) -> Self {
        let (kind, current) = match outcome {
            Outcome::Applied => (Kind::Applied, None),
            Outcome::NotFound => (Kind::NotFound, None),
            Outcome::AlreadyExists(version) => (Kind::AlreadyExists, Some(version)),
            Outcome::VersionMismatch(version) => (Kind::VersionMismatch, version),
            Outcome::FilterMismatch => (Kind::FilterMismatch, None),
        };
        Self {
            position: u32::try_from(position).unwrap_or(u32::MAX),
            kind: kind.into(),
            current: current.map(Into::into),
        }
    }
}
