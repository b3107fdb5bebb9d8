//! Identifiers: newtypes that print well and sort the way the system sorts.
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
            rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

number_id!(
    /// A storage node, as its operator numbers it. At least 1.
    NodeId, "n"
);
number_id!(
    /// One life of a node's data directory. A wiped or damaged directory comes back under a new one, so that a voter
    /// which forgot its vote can never be taken for the old one.
    Incarnation, "i"
);
number_id!(
    /// A shard: one Raft group. Never reused. [`ShardId::META`] is the meta group.
    ShardId, "s"
);
number_id!(
    /// A collection's identity behind its name; a name that is deleted and created again gets a new one.
    CollectionId, "c"
);
number_id!(
    /// How often the placement table has changed.
    Epoch, "e"
);

impl ShardId {
    /// The Raft group that keeps placement, collections and nodes.
    pub const META: ShardId = ShardId(0);
}

/// The Raft identity of one replica: a node in one of its lives.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct ReplicaId {
    /// The node.
    pub node: NodeId,
    /// Which life of its data directory.
    pub incarnation: Incarnation,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.node, self.incarnation.0)
    }
}

impl From<u64> for ReplicaId {
    /// The replica of `node` in its first life; what a storage test suite counts with.
    fn from(node: u64) -> Self {
        Self { node: NodeId(node), incarnation: Incarnation(0) }
    }
}

/// Minted once per cluster and checked on every internal call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ClusterId(pub Uuid);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point's id: a number, a UUID, or any non-empty string of at most [`PointId::TEXT_BYTES_MAX`] bytes.
///
/// Ids of different kinds are different ids (`7` is not `"7"`) and sort numbers, then UUIDs, then strings.
#[derive(
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
#[serde(untagged)]
pub enum PointId {
    /// An unsigned number.
    Number(u64),
    /// A UUID, whichever way it was spelt.
    Uuid(Uuid),
    /// Any other string.
    Text(String),
}

impl PointId {
    /// The longest string id, in bytes.
    pub const TEXT_BYTES_MAX: usize = 1024;
    const TAG_NUMBER: u8 = 1; // forever: these bytes are in every store and snapshot
    const TAG_UUID: u8 = 2;
    const TAG_TEXT: u8 = 3;

    /// Bytes that sort as the ids do: a tag, then the number or UUID big-endian, or the string's UTF-8.
    pub fn to_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(17);
        match self {
            PointId::Number(number) => {
                key.push(Self::TAG_NUMBER);
                key.extend_from_slice(&number.to_be_bytes());
            }
            PointId::Uuid(uuid) => {
                key.push(Self::TAG_UUID);
                key.extend_from_slice(uuid.as_bytes());
            }
            PointId::Text(text) => {
                key.push(Self::TAG_TEXT);
                key.extend_from_slice(text.as_bytes());
            }
        }
        key
    }

    /// The inverse of [`PointId::to_key`]; `None` where the bytes are not such a key.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (tag, rest) = key.split_first()?;
        match *tag {
            Self::TAG_NUMBER => Some(PointId::Number(u64::from_be_bytes(rest.try_into().ok()?))),
            Self::TAG_UUID => Some(PointId::Uuid(Uuid::from_bytes(rest.try_into().ok()?))),
            Self::TAG_TEXT => Some(PointId::Text(std::str::from_utf8(rest).ok()?.to_owned())),
            _ => None,
        }
    }

    /// Whether it can be stored.
    ///
    /// # Errors
    /// [`PointIdError`] for a string that is empty or too long.
    pub fn check(&self) -> Result<(), PointIdError> {
        match self {
            PointId::Text(text) if text.is_empty() => Err(PointIdError::Empty),
            PointId::Text(text) if text.len() > Self::TEXT_BYTES_MAX => Err(PointIdError::TooLong { got: text.len() }),
            _ => Ok(()),
        }
    }

    /// What a person typed: digits become a number, a hyphenated UUID a UUID, anything else a string.
    pub fn parse(text: &str) -> Self {
        if let Ok(number) = text.parse::<u64>()
            && number.to_string() == text
        {
            return PointId::Number(number);
        }
        if text.len() == 36
            && let Ok(uuid) = Uuid::try_parse(text)
        {
            return PointId::Uuid(uuid);
        }
        PointId::Text(text.to_owned())
    }
}

/// Why an id cannot be stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PointIdError {
    /// An empty string.
    #[error("is an empty string; give a number, a UUID or a non-empty string")]
    Empty,
    /// A string beyond [`PointId::TEXT_BYTES_MAX`].
    #[error("has {got} bytes, at most {} are allowed", PointId::TEXT_BYTES_MAX)]
    TooLong {
        /// Its bytes.
        got: usize,
    },
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PointId::Number(number) => number.fmt(f),
            PointId::Uuid(uuid) => uuid.fmt(f),
            PointId::Text(text) => text.fmt(f),
        }
    }
}

impl From<u64> for PointId {
    fn from(number: u64) -> Self {
        PointId::Number(number)
    }
}

impl From<&str> for PointId {
    fn from(text: &str) -> Self {
        PointId::parse(text)
    }
}

/// When the point's home shard accepted its last user write: totally ordered per id, also across a change of home.
/// The only stamp that preconditions see. The same type stamps each named vector (DESIGN §2, "vector stamp").
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct Version {
    /// The home epoch: grows when the id gets another home shard.
    pub epoch: u64,
    /// The index of the log entry in the home shard.
    pub index: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.index)
    }
}

/// A client session: the scope in which sequence numbers name writes.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct SessionId(pub Uuid);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one write for retries: repeated, it has one effect.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Serialize,
    Deserialize,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub struct RequestId {
    /// The session, opened beforehand.
    pub session: SessionId,
    /// Unique within the session.
    pub seq: u64,
    /// The caller has seen the replies to all lower sequence numbers; the shard may forget them.
    pub settled_below: u64,
}
