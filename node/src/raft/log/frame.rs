//! The bytes of a log file: a header, then frames.
//!
//! ```text
//! file   = "nearlog\0" · format u32 · seq u64 · crc32 u32 of what precedes · frame…      all numbers little-endian
//! frame  = len u32 · crc32 u32 · group u64 · kind u8 · message       len counts from group on; crc32 covers len and that
//! mark   = own seq u64 · own offset u64 · seq u64 and offset u64 up to which everything was synced when it was written
//! state  = list of (group, vote?, purge mark?, committed?): everything but entries, of every group
//! ```
//! Messages are those of [`codec`], which carry their own format. Kinds are forever.
use bytes::Bytes;
use nearring_proto::ids::ShardId;

use crate::raft::codec::{self, DecodeError, Reader, Wire};
use crate::raft::{Entry, LogId, Vote};

/// The file format written, and the newest that is understood.
pub(super) const FORMAT: u32 = 1;
/// Bytes before a file's first frame.
pub(super) const HEADER: usize = 24;
/// Bytes of a frame before what its length counts.
const PREFIX: usize = 8;
/// Bytes of a frame before its message.
const HEAD: usize = PREFIX + 9;
/// Bytes of a mark: head, codec format, four numbers.
const MARK: usize = HEAD + 33;

const MAGIC: [u8; 8] = *b"nearlog\0";

/// What a frame does to its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Vote = 1,
    Entry = 2,
    Truncate = 3,
    Purge = 4,
    Committed = 5,
    Forget = 6,
    State = 7,
    Mark = 8,
}

/// A decoded frame.
#[derive(Clone, Debug)]
pub(super) enum Frame {
    Vote(Vote),
    Entry(Entry),
    /// Entries after this index are gone; all of them for `None`.
    Truncate(Option<u64>),
    /// Entries up to this one are gone.
    Purge(LogId),
    Committed(Option<LogId>),
    Forget,
    State(Vec<GroupState>),
    Mark(Mark),
}

/// Everything of a group but its entries.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct GroupState {
    pub(super) group: ShardId,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
}

/// Where it stands, and up to where everything is known to be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) seq: u64,
    pub(super) offset: u64,
    pub(super) synced_seq: u64,
    pub(super) synced_offset: u64,
}

impl Wire for GroupState {
    fn put(&self, out: &mut Vec<u8>) {
        self.group.0.put(out);
        self.vote.put(out);
        self.purged.put(out);
        self.committed.put(out);
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            group: ShardId(u64::read(from)?),
            vote: Option::read(from)?,
            purged: Option::read(from)?,
            committed: Option::read(from)?,
        })
    }
}

impl Wire for Mark {
    fn put(&self, out: &mut Vec<u8>) {
        for number in [self.seq, self.offset, self.synced_seq, self.synced_offset] {
            number.put(out);
        }
    }
    fn read(from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            seq: u64::read(from)?,
            offset: u64::read(from)?,
            synced_seq: u64::read(from)?,
            synced_offset: u64::read(from)?,
        })
    }
}

/// The body of a frame that says everything by its kind.
pub(super) struct Nothing;

impl Wire for Nothing {
    fn put(&self, _out: &mut Vec<u8>) {}
    fn read(_from: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

/// The header of file `seq`.
pub(super) fn put_header(seq: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Why a header is not one of ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Newer(u32),
    Bad(&'static str),
}

/// Checks the header of what should be file `seq`.
pub(super) fn check_header(file: &[u8], seq: u64) -> Result<(), BadHeader> {
    let (Some(magic), Some(format)) = (file.get(..8), number::<4>(file, 8).map(u32::from_le_bytes)) else {
        return Err(BadHeader::Bad("the file header is cut off"));
    };
    if magic != MAGIC {
        return Err(BadHeader::Bad("this is no log file"));
    }
    if format > FORMAT {
        return Err(BadHeader::Newer(format));
    }
    let mut right = Vec::with_capacity(HEADER);
    put_header(seq, &mut right);
    match file.get(..HEADER) {
        Some(found) if found == right => Ok(()),
        Some(_) => Err(BadHeader::Bad("the file header is wrong")),
        None => Err(BadHeader::Bad("the file header is cut off")),
    }
}

/// Appends a frame.
pub(super) fn put_frame<T: Wire>(group: ShardId, kind: Kind, body: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    out.extend_from_slice(&group.0.to_le_bytes());
    out.push(kind as u8);
    out.push(codec::FORMAT);
    body.put(out);
    // A frame of 4 GiB cannot be: proposals are refused long before.
    let len = u32::try_from(out.len() - start - PREFIX).unwrap_or(u32::MAX).to_le_bytes();
    let crc = crc_of(len, &out[start + PREFIX..]).to_le_bytes();
    out[start..start + 4].copy_from_slice(&len);
    out[start + 4..start + PREFIX].copy_from_slice(&crc);
}

/// A frame whose checksum is right; its message is not decoded yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RawFrame {
    pub(super) group: ShardId,
    pub(super) kind: u8,
    pub(super) message: Bytes,
    /// Where the next frame begins.
    pub(super) end: usize,
}

/// The frame at `at`, or why there is none.
pub(super) fn frame_at(bytes: &Bytes, at: usize) -> Result<RawFrame, &'static str> {
    let (Some(len), Some(crc)) = (number::<4>(bytes, at), number::<4>(bytes, at + 4).map(u32::from_le_bytes)) else {
        return Err("a frame's head is cut off");
    };
    let body_len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if body_len < HEAD - PREFIX {
        return Err("a frame is shorter than frames are");
    }
    let start = at + PREFIX;
    let end = start.saturating_add(body_len);
    let Some(body) = bytes.get(start..end) else {
        return Err("a frame is longer than its file");
    };
    if crc_of(len, body) != crc {
        return Err("a frame's checksum is wrong");
    }
    let (Some(group), Some(kind)) = (number::<8>(body, 0), body.get(8)) else {
        return Err("a frame is shorter than frames are");
    };
    let message = bytes.slice(start + 9..end);
    Ok(RawFrame { group: ShardId(u64::from_le_bytes(group)), kind: *kind, message, end })
}

impl RawFrame {
    /// What the frame says.
    ///
    /// # Errors
    /// Unknown kind, or a message that is not of its kind: damage that checksums do not see, or a newer version's.
    pub(super) fn decode(self) -> Result<Frame, DecodeError> {
        let message = self.message;
        Ok(match self.kind {
            kind if kind == Kind::Vote as u8 => Frame::Vote(codec::decode(message)?),
            kind if kind == Kind::Entry as u8 => Frame::Entry(codec::decode(message)?),
            kind if kind == Kind::Truncate as u8 => Frame::Truncate(codec::decode(message)?),
            kind if kind == Kind::Purge as u8 => Frame::Purge(codec::decode(message)?),
            kind if kind == Kind::Committed as u8 => Frame::Committed(codec::decode(message)?),
            kind if kind == Kind::Forget as u8 => codec::decode(message).map(|Nothing| Frame::Forget)?,
            kind if kind == Kind::State as u8 => Frame::State(codec::decode(message)?),
            kind if kind == Kind::Mark as u8 => Frame::Mark(codec::decode(message)?),
            _ => return Err(DecodeError::Malformed { field: "frame kind", reason: "unknown" }),
        })
    }
}

/// Where a mark behind `from` proves that bytes beyond `from` in file `seq` were durable once.
pub(super) fn mark_confirming(bytes: &Bytes, seq: u64, from: usize) -> Option<usize> {
    let len = u32::try_from(MARK - PREFIX).ok()?.to_le_bytes();
    (from + 1..bytes.len().saturating_sub(MARK - 1)).find(|&at| {
        // The length and kind first: a checksum at every byte would cost too much.
        if bytes.get(at..at + 4) != Some(&len) || bytes.get(at + HEAD - 1) != Some(&(Kind::Mark as u8)) {
            return false;
        }
        let Ok(Ok(Frame::Mark(mark))) = frame_at(bytes, at).map(RawFrame::decode) else { return false };
        let confirmed = usize::try_from(mark.synced_offset).unwrap_or(usize::MAX);
        (mark.seq, mark.offset) == (seq, at as u64) && mark.synced_seq == seq && confirmed > from
    })
}

fn crc_of(len: [u8; 4], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len);
    hasher.update(body);
    hasher.finalize()
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
