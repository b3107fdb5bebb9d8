//! What is logged for a shard, and what applying it answers.
//!
//! ```text
//! entry  = 1 · rkyv(Envelope)
//!        | 2 · length u32 · rkyv(Later) · rkyv(Envelope)
//! answer = 1 · repeated u8 · rkyv(Reply)
//! ```
//! Little-endian, unaligned, 32-bit offsets, validated before use. Ids, tags and field order are forever: they are in every
//! log. What sparse and multi-vectors add, points and settings alike, has no place in the envelope's form and travels in front
//! of it, as `Later`. An entry that needs none of that is of format 1, as ever.
//!
//! Decoding is total: whatever the bytes, it answers a value or a [`CommandError`], and allocates in proportion to its
//! input.
// rkyv's derive makes types for the fields of variants, without documentation.
#![allow(missing_docs)]
use bytes::Bytes;
use nearring_proto::collection::{CollectionSpec, LaterSpec};
use nearring_proto::ids::{PointId, ReplicaId, RequestId, SessionId, Version};
use nearring_proto::vector::Vector;
use nearring_proto::write::{Outcome, PayloadMode, Precondition};

/// The format of answers, and of entries that hold nothing beyond it.
pub const FORMAT: u8 = 1;
/// The newest format of entries that is written and understood.
pub const FORMAT_LATER: u8 = 2;

/// blake3 of a segment file's contents, without its footer.
pub type SegmentHash = [u8; 32];

/// One entry of a shard's log.
#[derive(Clone, PartialEq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Envelope {
    /// The leader's wall clock when it proposed, in milliseconds since 1970. Logged time never goes back: a smaller one
    /// counts as the largest before it.
    pub now_ms: u64,
    /// Set where the writer wants one effect however often it repeats the request.
    pub request: Option<RequestId>,
    /// What to do.
    pub command: Command,
}

/// A point as it is logged.
#[derive(Clone, PartialEq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PointWrite {
    /// Its id.
    pub id: PointId,
    /// Name → components of a dense vector; cosine vectors at unit length.
    pub vectors: Vec<(String, Vec<f32>)>,
    /// A JSON object; empty means `{}`.
    pub payload: Vec<u8>,
    /// Name → sparse or multi-vector; rows for cosine at unit length. Archived in `Later`.
    #[rkyv(with = rkyv::with::Skip)]
    pub others: Vec<(String, Vector)>,
}

/// What an envelope's archived form has no place for.
#[derive(Clone, PartialEq, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Later {
    /// `PointWrite::others`, by the point's place among the command's.
    points: Vec<(u32, Vec<(String, Vector)>)>,
    /// Of `Configure`.
    spec: Option<LaterSpec>,
}

/// What an entry does.
#[derive(Clone, PartialEq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Command {
    /// Writes whole points. `preconditions` is empty, or as long as `points`. No id twice.
    Upsert {
        /// The points.
        points: Vec<PointWrite>,
        /// What each point must fulfil first.
        preconditions: Vec<Option<Precondition>>,
    },
    /// Changes payloads, no vectors. No id twice.
    SetPayload {
        /// Whose.
        ids: Vec<PointId>,
        /// A JSON object, or with `DeleteKeys` an array of keys.
        payload: Vec<u8>,
        /// How.
        mode: PayloadMode,
        /// Judged for every id.
        precondition: Option<Precondition>,
    },
    /// Deletes points.
    Delete {
        /// Which.
        ids: Vec<PointId>,
        /// Judged for every id.
        precondition: Option<Precondition>,
    },
    /// A part of a deletion by filter: deletes those of the points that match and that were there before it began.
    DeleteIf {
        /// Which the leader found.
        ids: Vec<PointId>,
        /// `convert::encode_filter`.
        filter: Vec<u8>,
        /// What `BeginDelete` answered.
        begun: Version,
        /// Whether this part ends it.
        last: bool,
    },
    /// Afterwards exactly `points` carry the routing key; none = the group is deleted.
    ReplaceGroup {
        /// The text before the separator.
        routing_key: String,
        /// The collection's separator; not empty.
        separator: String,
        /// The group's points; each id starts with `routing_key` + `separator`.
        points: Vec<PointWrite>,
    },
    /// Makes a session known, so that its requests are answered once.
    OpenSession {
        /// Which.
        session: SessionId,
        /// When its owner began to open it: an old request that comes late must not bring an expired session back.
        opened_at_ms: u64,
    },
    /// Fixes the members of a segment: of `sources` empty, every live vector of the tail at this entry; otherwise the live
    /// members of those installed segments. The segment's number is the entry's index. Replaces an unfinished seal of the
    /// same vector.
    Seal {
        /// Which named vector.
        vector: String,
        /// The installed segments to merge.
        sources: Vec<SegmentHash>,
        /// Who is to build it.
        builder: ReplicaId,
    },
    /// Puts a sealed segment in place of its sources. The first of a seal wins.
    Install {
        /// The seal's number.
        segment: u64,
        /// The file.
        hash: SegmentHash,
        /// Members in the file.
        members: u64,
        /// Bytes of the file.
        bytes: u64,
    },
    /// Gives a seal up.
    AbandonSeal {
        /// The seal's number.
        segment: u64,
    },
    /// Sets the collection's settings; the first entry a shard takes.
    Configure {
        /// With every default filled in.
        spec: CollectionSpec,
        /// The epoch that the shard's versions carry from here on (the placement table's `home_epoch`).
        home_epoch: u64,
    },
    /// Begins a deletion by filter. Nothing is deleted yet.
    BeginDelete,
}

/// What applying an entry answers.
#[derive(Clone, PartialEq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Reply {
    /// A write was carried out.
    Written {
        /// Points changed or written.
        applied: u64,
        /// Points removed.
        removed: u64,
        /// Of the points, those that are not `Applied`, by position in the command.
        outcomes: Vec<(u32, Outcome)>,
        /// What the points written now carry.
        version: Version,
    },
    /// The session is open and lives so long after its last request.
    Session {
        /// In milliseconds.
        ttl_ms: u64,
    },
    /// Seal, install, abandon or configure was carried out.
    Done,
    /// Nothing was changed.
    Refused(Refusal),
    /// A deletion by filter has begun and has not ended.
    Begun {
        /// Points that came to the shard later are none of its business.
        at: Version,
        /// Points removed so far, on behalf of this request.
        removed: u64,
    },
}

/// Why an entry changed nothing.
#[derive(Clone, PartialEq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The session is not, or no longer, known: whether the request was carried out before cannot be told.
    #[error("the session has expired; open a new one, and read before writing again")]
    SessionExpired,
    /// The reply to this request has been forgotten, as its owner allowed.
    #[error("request {seq} was settled before; its reply is gone")]
    Settled {
        /// Its number.
        seq: u64,
    },
    /// The table of sessions is full of sessions in use.
    #[error("too many open sessions on this shard; try again later")]
    TooManySessions,
    /// The command contradicts the collection or itself.
    #[error("{field}: {reason}")]
    Invalid {
        /// What is wrong.
        field: String,
        /// Why.
        reason: String,
    },
    /// The shard has no settings yet.
    #[error("the shard is not configured yet; try again")]
    NotConfigured,
    /// The seal is not pending any more.
    #[error("segment {segment} is not pending")]
    NotPending {
        /// Its number.
        segment: u64,
    },
}

/// Bytes that are no command or no reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// Written by a newer version.
    #[error("format {found} is newer than {newest}, which this version understands; upgrade this node")]
    NewerFormat {
        /// The format found.
        found: u8,
        /// The newest known.
        newest: u8,
    },
    /// Cut off, damaged, or something else.
    #[error("malformed: {0}")]
    Malformed(String),
}

impl Envelope {
    /// The entry's bytes. An entry of 2 GiB or more, which every limit on requests excludes, becomes no bytes at all, and
    /// those are refused when decoded.
    pub fn encode(&self) -> Bytes {
        let later = self.command.later();
        let head = if later == Later::default() { Some(vec![FORMAT]) } else { head(&later) };
        let bytes = head.and_then(|head| rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Failure>(self, head).ok());
        bytes.map(Bytes::from).unwrap_or_default()
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// Where the bytes are not an entry of a format that is understood.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        let Some((&FORMAT_LATER, body)) = bytes.split_first() else {
            return rkyv::from_bytes::<Self, rkyv::rancor::Error>(check_format(bytes, FORMAT_LATER)?)
                .map_err(malformed);
        };
        let (length, body) = body.split_first_chunk::<4>().ok_or_else(|| malformed("cut off"))?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(malformed)?;
        let (later, body) = body.split_at_checked(length).ok_or_else(|| malformed("cut off"))?;
        let later = rkyv::from_bytes::<Later, rkyv::rancor::Error>(later).map_err(malformed)?;
        let mut envelope = rkyv::from_bytes::<Self, rkyv::rancor::Error>(body).map_err(malformed)?;
        envelope.command.set_later(later)?;
        Ok(envelope)
    }
}

fn head(later: &Later) -> Option<Vec<u8>> {
    let later = rkyv::to_bytes::<rkyv::rancor::Failure>(later).ok()?;
    let mut head = vec![FORMAT_LATER];
    head.extend_from_slice(&u32::try_from(later.len()).ok()?.to_le_bytes());
    head.extend_from_slice(&later);
    Some(head)
}

impl Command {
    /// The points that it writes.
    pub fn points(&self) -> &[PointWrite] {
        match self {
            Command::Upsert { points, .. } | Command::ReplaceGroup { points, .. } => points,
            _ => &[],
        }
    }

    fn later(&self) -> Later {
        let points = (0..).zip(self.points()).filter(|(_, point)| !point.others.is_empty());
        let points = points.map(|(at, point)| (at, point.others.clone())).collect();
        let spec = if let Command::Configure { spec, .. } = self { spec.later() } else { None };
        Later { points, spec }
    }

    fn set_later(&mut self, later: Later) -> Result<(), CommandError> {
        let strange = || malformed("it holds vectors or settings for what it does not write");
        let points: &mut [PointWrite] = match self {
            Command::Upsert { points, .. } | Command::ReplaceGroup { points, .. } => points,
            Command::Configure { spec, .. } => {
                spec.set_later(later.spec.ok_or_else(strange)?);
                return if later.points.is_empty() { Ok(()) } else { Err(strange()) };
            }
            _ => return Err(strange()),
        };
        for (at, others) in later.points {
            points.get_mut(at as usize).ok_or_else(strange)?.others = others;
        }
        if later.spec.is_none() { Ok(()) } else { Err(strange()) }
    }
}

/// An answer's bytes; `repeated` says that the request had been carried out before.
pub fn encode_reply(reply: &Reply, repeated: bool) -> Bytes {
    let prefix = vec![FORMAT, u8::from(repeated)];
    rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Failure>(reply, prefix).map(Bytes::from).unwrap_or_default()
}

/// Reads an answer, and whether it repeats an earlier one.
///
/// # Errors
/// Where the bytes are not an answer of a format that is understood.
pub fn decode_reply(bytes: &[u8]) -> Result<(Reply, bool), CommandError> {
    let (repeated, body) = match check_format(bytes, FORMAT)?.split_first() {
        Some((0, body)) => (false, body),
        Some((1, body)) => (true, body),
        _ => return Err(malformed("neither first nor repeated")),
    };
    rkyv::from_bytes::<Reply, rkyv::rancor::Error>(body).map(|reply| (reply, repeated)).map_err(malformed)
}

fn malformed(reason: impl std::fmt::Display) -> CommandError {
    CommandError::Malformed(reason.to_string())
}

/// The body of format 1. `newest` is what else would be understood here.
fn check_format(bytes: &[u8], newest: u8) -> Result<&[u8], CommandError> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => Ok(body),
        None | Some((0, _)) => Err(malformed("no format")),
        Some((&found, _)) => Err(CommandError::NewerFormat { found, newest }),
    }
}
