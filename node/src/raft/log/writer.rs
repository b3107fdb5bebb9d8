//! The writing side of the log: files, frames, and which files can go.
//!
//! Blocking; runs where file work runs. It decides by what it has written, in the order in which it wrote it, and never by
//! what readers see: they are ahead of it, and a file must not go because of a purge that is still queued.
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nearring_proto::ids::ShardId;
use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::frame::{self, GroupState, Kind, Mark, Nothing};
use super::image::Place;
use super::recover::{Recovered, path_of};
use crate::medium::{AppendFile, Medium};
use crate::raft::{Entry, LogId, TypeConfig, Vote};

/// One accepted operation, in the order of acceptance.
pub(super) enum Job {
    Vote(ShardId, Vote, oneshot::Sender<io::Result<()>>),
    /// Entries with their serials.
    Append(ShardId, Vec<(u64, Entry)>, IOFlushed<TypeConfig>),
    Truncate(ShardId, Option<u64>),
    Purge(ShardId, LogId),
    Committed(ShardId, Option<LogId>),
    Forget(ShardId, oneshot::Sender<io::Result<()>>),
}

impl Job {
    /// Tells whoever waits how it went.
    pub(super) fn complete(self, result: io::Result<()>) {
        match self {
            Job::Vote(_, _, done) | Job::Forget(_, done) => {
                // Whoever asked may be gone.
                let _ = done.send(result);
            }
            Job::Append(_, _, callback) => callback.io_completed(result),
            Job::Truncate(..) | Job::Purge(..) | Job::Committed(..) => {}
        }
    }
}

/// An entry that is on disk now.
pub(super) struct Placed {
    pub(super) group: ShardId,
    pub(super) index: u64,
    pub(super) serial: u64,
    pub(super) place: Place,
}

/// What of a group has been written.
#[derive(Default, Debug)]
struct Written {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    /// Which file holds which entries: each run is (file, first index) and goes up to the next one. Ascending in both.
    runs: VecDeque<(u64, u64)>,
    /// The index after the last entry; means nothing where there are no runs.
    next: u64,
}

impl Written {
    fn append(&mut self, seq: u64, index: u64) {
        if self.runs.back().is_none_or(|run| run.0 != seq) {
            self.runs.push_back((seq, index));
        }
        self.next = index + 1;
    }

    fn truncate(&mut self, after: Option<u64>) {
        let next = after.map_or(0, |after| after + 1);
        while self.runs.pop_back_if(|run| run.1 >= next).is_some() {}
        self.next = self.next.min(next);
    }

    fn purge(&mut self, upto: LogId) {
        self.purged = Some(upto);
        let next = upto.index + 1;
        if next >= self.next {
            self.runs.clear();
        }
        while self.runs.get(1).is_some_and(|run| run.1 <= next) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.1 = run.1.max(next);
        }
    }

    /// The oldest file that this group needs.
    fn pin(&self) -> Option<u64> {
        self.runs.front().map(|run| run.0)
    }
}

/// Writes batches to the last file and removes the oldest ones.
pub(super) struct Writer {
    medium: Arc<dyn Medium>,
    dir: PathBuf,
    file_bytes: u64,
    file: Option<Box<dyn AppendFile>>,
    /// The file written to.
    seq: u64,
    /// Length of each file.
    files: BTreeMap<u64, u64>,
    groups: BTreeMap<ShardId, Written>,
}

impl Writer {
    /// Continues after what was recovered, in a new file: after a recovered end nothing is ever appended.
    pub(super) fn begin(
        medium: Arc<dyn Medium>,
        dir: PathBuf,
        file_bytes: u64,
        recovered: &Recovered,
    ) -> io::Result<Writer> {
        let groups = recovered.groups.iter().map(|(group, replayed)| {
            let mut written = Written {
                vote: replayed.vote,
                purged: replayed.purged,
                committed: replayed.committed,
                ..Written::default()
            };
            for (index, (_, place)) in &replayed.entries {
                written.append(place.seq, *index);
            }
            (*group, written)
        });
        let mut writer = Writer {
            medium,
            dir,
            file_bytes,
            file: None,
            seq: recovered.files.keys().next_back().copied().unwrap_or(0),
            files: recovered.files.clone(),
            groups: groups.collect(),
        };
        writer.write(&[])?;
        writer.clean()?;
        Ok(writer)
    }

    /// Makes the jobs durable, in their order: one append, one sync. Behind them goes a mark that says so, itself not
    /// synced: unless the power fails right then, damage to the newest batch is told from a torn tail too. After an error
    /// nothing may be written any more.
    pub(super) fn write(&mut self, jobs: &[Job]) -> io::Result<Vec<Placed>> {
        let mut out = Vec::new();
        let mut base = self.files.get(&self.seq).copied().unwrap_or(0);
        let new = self.file.is_none() || base >= self.file_bytes;
        if new {
            if let Some(full) = &mut self.file {
                // Only the last file may end badly, and its last mark may be in memory only.
                full.sync()?;
            }
            self.seq += 1;
            self.file = Some(self.medium.open_append(&path_of(&self.dir, self.seq))?);
            base = 0;
            frame::put_header(self.seq, &mut out);
            frame::put_frame(ShardId::META, Kind::State, &self.states(), &mut out);
        }
        let placed = self.put_jobs(jobs, base, &mut out);
        let Some(file) = &mut self.file else { return Err(io::Error::other("no log file is open")) };
        if file.len() != base {
            return Err(io::Error::other(format!("log file {} is {} long, not {base}", self.seq, file.len())));
        }
        file.append(&out)?;
        file.sync()?;
        if new {
            self.medium.sync_dir(&self.dir)?;
        }
        let synced = base + out.len() as u64;
        let mark = Mark { seq: self.seq, offset: synced, synced_seq: self.seq, synced_offset: synced };
        out.clear();
        frame::put_frame(ShardId::META, Kind::Mark, &mark, &mut out);
        file.append(&out)?;
        self.files.insert(self.seq, synced + out.len() as u64);
        Ok(placed)
    }

    /// Removes the oldest files while no group needs anything in them.
    pub(super) fn clean(&mut self) -> io::Result<()> {
        let pinned = self.groups.values().filter_map(Written::pin).min().unwrap_or(u64::MAX).min(self.seq);
        while let Some((&oldest, _)) = self.files.first_key_value() {
            if oldest >= pinned {
                break;
            }
            self.medium.remove_file(&path_of(&self.dir, oldest))?;
            // One by one: a crash must not bring an older file back without its successor.
            self.medium.sync_dir(&self.dir)?;
            self.files.remove(&oldest);
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(super) fn size_bytes(&self) -> u64 {
        self.files.values().sum()
    }

    /// The group that needs entries of the oldest file; the lowest of several. None while the only file is the one that is
    /// written to: no purge would make it go.
    pub(super) fn pinning(&self) -> Option<ShardId> {
        let (&oldest, _) = self.files.first_key_value().filter(|(oldest, _)| **oldest < self.seq)?;
        self.groups.iter().find(|(_, written)| written.pin() == Some(oldest)).map(|(group, _)| *group)
    }

    fn states(&self) -> Vec<GroupState> {
        let state = |(group, written): (&ShardId, &Written)| GroupState {
            group: *group,
            vote: written.vote,
            purged: written.purged,
            committed: written.committed,
        };
        self.groups.iter().map(state).collect()
    }

    fn put_jobs(&mut self, jobs: &[Job], base: u64, out: &mut Vec<u8>) -> Vec<Placed> {
        let (seq, groups) = (self.seq, &mut self.groups);
        let mut placed = Vec::new();
        for job in jobs {
            match job {
                Job::Vote(group, vote, _) => {
                    frame::put_frame(*group, Kind::Vote, vote, out);
                    groups.entry(*group).or_default().vote = Some(*vote);
                }
                Job::Append(group, entries, _) => {
                    let written = groups.entry(*group).or_default();
                    for (serial, entry) in entries {
                        let start = out.len();
                        frame::put_frame(*group, Kind::Entry, entry, out);
                        let (offset, len) = (base + start as u64, (out.len() - start) as u64);
                        let index = entry.log_id.index;
                        placed.push(Placed {
                            group: *group,
                            index,
                            serial: *serial,
                            place: Place { seq, offset, len },
                        });
                        written.append(seq, index);
                    }
                }
                Job::Truncate(group, after) => {
                    frame::put_frame(*group, Kind::Truncate, after, out);
                    groups.entry(*group).or_default().truncate(*after);
                }
                Job::Purge(group, upto) => {
                    frame::put_frame(*group, Kind::Purge, upto, out);
                    groups.entry(*group).or_default().purge(*upto);
                }
                Job::Committed(group, committed) => {
                    frame::put_frame(*group, Kind::Committed, committed, out);
                    groups.entry(*group).or_default().committed = *committed;
                }
                Job::Forget(group, _) => {
                    frame::put_frame(*group, Kind::Forget, &Nothing, out);
                    groups.remove(group);
                }
            }
        }
        placed
    }
}
