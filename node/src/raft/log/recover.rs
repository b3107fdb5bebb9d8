//! Reading the log's files after a start: what they hold, and whether what is wrong with them may be.
//!
//! Only the last file may end badly: a crash tears what was not synced. So at a bad frame in the last file the rest of it
//! is searched for a mark that says that bytes beyond the bad place had been synced. There is one: durable bytes were
//! damaged, and nothing may be concluded from what is left. There is none: that is the torn tail; it is cut.
//! Every other file was synced to its end before its successor was begun: a bad frame there is damage.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nearring_proto::ids::ShardId;

use super::LogError;
use super::frame::{self, BadHeader, Frame, GroupState};
use super::image::Place;
use crate::medium::Medium;
use crate::raft::codec::DecodeError;
use crate::raft::{LogId, Vote};

/// A group as its frames left it.
#[derive(Default, Debug)]
pub(super) struct Replayed {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// By index.
    pub(super) entries: BTreeMap<u64, (LogId, Place)>,
}

/// What the files hold.
#[derive(Default, Debug)]
pub(super) struct Recovered {
    pub(super) groups: BTreeMap<ShardId, Replayed>,
    /// Length of each file.
    pub(super) files: BTreeMap<u64, u64>,
}

/// The file of a number.
pub(super) fn path_of(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{seq:016x}.log"))
}

fn seq_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// Reads all files, cuts a torn tail, and makes what was read durable. `dir` must exist.
pub(super) fn recover(medium: &dyn Medium, dir: &Path) -> Result<Recovered, LogError> {
    // Names that are not ours are left alone.
    let mut seqs: Vec<u64> = medium.list(dir)?.iter().filter_map(|name| seq_of(name)).collect();
    seqs.sort_unstable();
    let mut recovered = Recovered::default();
    let (Some(&first), Some(&last)) = (seqs.first(), seqs.last()) else { return Ok(recovered) };
    for (seq, expected) in seqs.iter().copied().zip(first..) {
        if seq != expected {
            let reason = "the file is missing".to_owned();
            return Err(LogError::Damaged { file: path_of(dir, expected), offset: 0, reason });
        }
    }
    for seq in seqs {
        let path = path_of(dir, seq);
        let bytes = medium.read(&path)?;
        let Walk { end, opened, bad } = recovered.walk(&path, seq, &bytes)?;
        let Some(reason) = bad else {
            recovered.files.insert(seq, end as u64);
            continue;
        };
        let damaged = |reason| LogError::Damaged { file: path.clone(), offset: end as u64, reason };
        if seq != last {
            return Err(damaged(format!("{reason}, and a later file shows that it was synced")));
        }
        if let Some(at) = frame::mark_confirming(&bytes, seq, end) {
            return Err(damaged(format!("{reason}, and the mark at {at} shows that it was synced")));
        }
        if opened {
            medium.truncate(&path, end as u64)?;
            recovered.files.insert(seq, end as u64);
        } else if seq == first && seq > 1 {
            // Its predecessors were removed, so its opening had been synced.
            return Err(damaged(format!("{reason}, and no earlier file is left")));
        } else {
            // A crash while it was begun. Gone, so that every file that stays opens with all groups' state.
            medium.remove_file(&path)?;
            medium.sync_dir(dir)?;
        }
    }
    if recovered.files.contains_key(&last) {
        // What was read may have been in memory only, if the process ended and the machine did not.
        medium.open_append(&path_of(dir, last))?.sync()?;
    }
    recovered.check(dir)?;
    Ok(recovered)
}

/// How far a file is good.
struct Walk {
    /// Where it ends, or where the first bad frame begins.
    end: usize,
    /// Whether the state of all groups, with which it opens, is there.
    opened: bool,
    bad: Option<String>,
}

impl Recovered {
    fn walk(&mut self, path: &Path, seq: u64, bytes: &Bytes) -> Result<Walk, LogError> {
        let newer = |found| LogError::NewerFormat { file: path.to_owned(), found, known: frame::FORMAT };
        match frame::check_header(bytes, seq) {
            Ok(()) => {}
            Err(BadHeader::Newer(found)) => return Err(newer(found)),
            Err(BadHeader::Bad(reason)) => return Ok(Walk { end: 0, opened: false, bad: Some(reason.to_owned()) }),
        }
        let (mut at, mut opened) = (frame::HEADER, false);
        while at < bytes.len() {
            let raw = match frame::frame_at(bytes, at) {
                Ok(raw) => raw,
                Err(reason) => return Ok(Walk { end: at, opened, bad: Some(reason.to_owned()) }),
            };
            let (group, end) = (raw.group, raw.end);
            let place = Place { seq, offset: at as u64, len: (end - at) as u64 };
            match raw.decode() {
                Ok(Frame::Mark(mark)) if (mark.seq, mark.offset) != (seq, at as u64) => {
                    let reason = format!("a mark that belongs to file {} at {}", mark.seq, mark.offset);
                    return Ok(Walk { end: at, opened, bad: Some(reason) });
                }
                Ok(frame) if beyond(&frame) => {
                    let reason = "an index that no log reaches".to_owned();
                    return Err(LogError::Damaged { file: path.to_owned(), offset: at as u64, reason });
                }
                // A file without its opening is removed, and nothing in it may have counted.
                Ok(frame) if !opened && !matches!(frame, Frame::State(_) | Frame::Mark(_)) => {
                    let reason = "a frame before the file's opening".to_owned();
                    return Ok(Walk { end: at, opened, bad: Some(reason) });
                }
                Ok(frame) => {
                    opened |= matches!(frame, Frame::State(_));
                    self.apply(group, frame, place);
                }
                Err(DecodeError::NewerFormat { found }) => return Err(newer(u32::from(found))),
                Err(DecodeError::Malformed { field, reason }) => {
                    // The checksum is right: this is what was written.
                    let reason = format!("{field}: {reason}");
                    return Err(LogError::Damaged { file: path.to_owned(), offset: at as u64, reason });
                }
            }
            at = end;
        }
        let bad = (!opened).then(|| "the file ends before its opening does".to_owned());
        Ok(Walk { end: at, opened, bad })
    }

    /// Earlier files may be gone, so entries may come without those before them until a purge or truncation that follows
    /// explains it; [`Recovered::check`] looks at the end.
    fn apply(&mut self, group: ShardId, frame: Frame, place: Place) {
        match frame {
            Frame::Vote(vote) => self.group(group).vote = Some(vote),
            Frame::Committed(committed) => self.group(group).committed = committed,
            Frame::Purge(upto) => self.group(group).purge(upto),
            Frame::Truncate(after) => {
                self.group(group).entries.split_off(&after.map_or(0, |after| after.saturating_add(1)));
            }
            Frame::Entry(entry) => {
                let entries = &mut self.group(group).entries;
                entries.split_off(&entry.log_id.index);
                entries.insert(entry.log_id.index, (entry.log_id, place));
            }
            Frame::Forget => {
                self.groups.remove(&group);
            }
            Frame::State(states) => {
                for GroupState { group, vote, purged, committed } in states {
                    let replayed = self.group(group);
                    (replayed.vote, replayed.committed) = (vote, committed);
                    if let Some(upto) = purged {
                        replayed.purge(upto);
                    }
                }
            }
            Frame::Mark(_) => {}
        }
    }

    fn group(&mut self, group: ShardId) -> &mut Replayed {
        self.groups.entry(group).or_default()
    }

    /// No group's log may have a gap.
    fn check(&mut self, dir: &Path) -> Result<(), LogError> {
        for (group, replayed) in &self.groups {
            let mut expected = replayed.purged.map(|purged| purged.index.saturating_add(1));
            for (index, (_, place)) in &replayed.entries {
                if expected.is_some_and(|expected| expected != *index) {
                    let reason = format!("entry {index} of group {group} follows none");
                    return Err(LogError::Damaged { file: path_of(dir, place.seq), offset: place.offset, reason });
                }
                expected = Some(index.saturating_add(1));
            }
        }
        Ok(())
    }
}

/// Whether a frame names the largest number as the index of an entry: whoever counts on from there overflows.
fn beyond(frame: &Frame) -> bool {
    let last = |id: &LogId| id.index == u64::MAX;
    match frame {
        Frame::Entry(entry) => last(&entry.log_id),
        Frame::Purge(upto) => last(upto),
        Frame::State(states) => states.iter().any(|state| state.purged.as_ref().is_some_and(last)),
        Frame::Vote(_) | Frame::Truncate(_) | Frame::Committed(_) | Frame::Forget | Frame::Mark(_) => false,
    }
}

impl Replayed {
    fn purge(&mut self, upto: LogId) {
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
            self.entries = self.entries.split_off(&upto.index.saturating_add(1));
        }
    }
}
