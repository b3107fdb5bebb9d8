//! One Raft log for all groups of a node, in one sequence of files.
//!
//! A node carries many groups, and a sync costs the same whatever it makes durable. So all groups append to one file, and
//! one task writes: it takes what has queued up, appends it at once, syncs once, and then tells every group. Under load a
//! hundred writers share a sync.
//!
//! ```text
//! GroupLog ─┐ accept: image changes at once                    ┌─► callbacks, votes
//! GroupLog ─┼──► image ──► queue ──► writer task: append, sync ┤
//! GroupLog ─┘      ▲ readers see what was accepted             └─► old files go
//! ```
//! Rules:
//! - one order for everything: votes and entries reach the disk in the order in which they were accepted;
//! - nobody is told that something is durable before its sync has returned. After a failed write or sync nothing is
//!   written any more and nothing retried: [`SharedLog::failed`] resolves, and the process must end;
//! - behind every batch, once it is synced, a mark says up to where everything is; so a torn tail, which a crash may
//!   leave, is told from damage, which nothing may leave. The mark is in memory until the next sync: where the power fails
//!   right then *and* the newest batch is damaged, that is taken for a torn tail;
//! - truncation and purging are frames; files are removed oldest first once no group needs an entry in them. Every file
//!   opens with all groups' votes, purge marks and committed ids, so only entries keep a file. A group that keeps the
//!   oldest one while the log is over its budget is named by [`SharedLog::pinning`]; its owner must snapshot and purge.
//!
//! It deliberately does not: compress, bound its queue (whoever proposes is bounded), watch free space (whoever accepts
//! proposals does), or repair anything.
mod frame;
mod image;
mod recover;
mod writer;

#[cfg(test)]
pub(crate) mod fault;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nearring_proto::ids::ShardId;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{Notify, oneshot, watch};

use self::frame::Frame;
use self::image::{Images, Place};
use self::writer::{Job, Writer};
use super::{Entry, LogId, TypeConfig, Vote};
use crate::compute::Compute;
use crate::medium::{Medium, create_dir_durably};

/// Entries of one replication message together: about this many bytes.
const MESSAGE_BYTES: u64 = 4 << 20;
/// Entries written by one sync together: about this many bytes, so that the first of many do not wait for the last.
const BATCH_BYTES: u64 = 16 << 20;
/// Entries are read back in pieces of at most this many bytes, or one entry.
const READ_BYTES: u64 = 1 << 20;

/// How large the log and its parts may grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// A file that has reached this many bytes is continued in a new one.
    pub file_bytes: u64,
    /// Above this many bytes [`SharedLog::pinning`] names the group that keeps the oldest file.
    pub budget_bytes: u64,
    /// Bytes of recent entries held in memory, besides those that are not durable yet.
    pub cache_bytes: u64,
}

impl Default for LogSettings {
    /// Files of 64 MiB, 1 GiB in all, 16 MiB in memory: a follower that is near reads from there, others from the files.
    fn default() -> Self {
        Self { file_bytes: 64 << 20, budget_bytes: 1 << 30, cache_bytes: 16 << 20 }
    }
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes that had been durable are wrong or missing. Votes and entries may be lost, so no replica of this node may go
    /// on under its identity: the node must come back with an empty log and a new incarnation.
    #[error(
        "log file {file:?} is damaged at byte {offset}: {reason}; what this node promised may be lost, so it must rejoin \
         with empty replicas under a new incarnation"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in it the first wrong byte may be.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer version.
    #[error("log file {file:?} has format {found}, this version knows {known}; upgrade this node")]
    NewerFormat {
        /// The file.
        file: PathBuf,
        /// The format found: the file's, or of a message in it.
        found: u32,
        /// The newest file format that is understood.
        known: u32,
    },
    /// The medium failed.
    #[error("the log cannot be opened: {0}")]
    Io(#[from] io::Error),
}

/// The log of all groups of a node. Cheap to clone; clones are the same log.
#[derive(Clone)]
pub struct SharedLog(Arc<Inner>);

struct Inner {
    medium: Arc<dyn Medium>,
    dir: PathBuf,
    compute: Compute,
    settings: LogSettings,
    /// Guards the image and the queue together: what is accepted enters both in one order. Never held while waiting.
    state: Mutex<State>,
    /// There is something to write.
    wake: Notify,
    /// Why nothing is written any more.
    failed: watch::Sender<Option<String>>,
    /// The writer has ended.
    stopped: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    images: Images,
    queue: VecDeque<Job>,
    failed: Option<String>,
    closed: bool,
    size_bytes: u64,
    pinning: Option<ShardId>,
}

impl State {
    /// Whether anything is accepted.
    fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some(reason) => Err(failure(reason)),
            None if self.closed => Err(io::Error::other("the log is closed")),
            None => Ok(()),
        }
    }
}

fn failure(reason: &str) -> io::Error {
    io::Error::other(format!("the log cannot be written: {reason}; the process must end"))
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, reason: &str) {
        let queue = {
            let mut state = self.state();
            state.failed.get_or_insert_with(|| reason.to_owned());
            std::mem::take(&mut state.queue)
        };
        for job in queue {
            job.complete(Err(failure(reason)));
        }
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| reason.to_owned());
            first
        });
    }
}

impl SharedLog {
    /// Opens the log in `dir`, which is created where it does not exist: reads what is there, cuts a torn tail, begins a new
    /// file, and starts the task that writes (it ends with [`SharedLog::close`] or a failure).
    ///
    /// # Errors
    /// Damage, a newer format, or the medium fails. Nothing was lost by trying.
    ///
    /// # Panics
    /// Outside a [`scope`](super::scope).
    pub async fn open(
        medium: Arc<dyn Medium>,
        dir: PathBuf,
        compute: Compute,
        settings: LogSettings,
    ) -> Result<SharedLog, LogError> {
        let (recovered, writer) = {
            let (medium, dir) = (medium.clone(), dir.clone());
            compute
                .io(move || {
                    create_dir_durably(&*medium, &dir, 1)?;
                    let recovered = recover::recover(&*medium, &dir)?;
                    let writer = Writer::begin(medium, dir, settings.file_bytes, &recovered)?;
                    Ok::<_, LogError>((recovered, writer))
                })
                .await?
        };
        let mut state = State { size_bytes: writer.size_bytes(), ..State::default() };
        for (group, replayed) in recovered.groups {
            state.images.restore(group, replayed);
        }
        state.pinning = writer.pinning();
        let log = SharedLog(Arc::new(Inner {
            medium,
            dir,
            compute,
            settings,
            state: Mutex::new(state),
            wake: Notify::new(),
            failed: watch::Sender::new(None),
            stopped: watch::Sender::new(false),
        }));
        super::spawn(write(log.0.clone(), writer));
        Ok(log)
    }

    /// One group's part of the log. It need not exist yet.
    pub fn group(&self, group: ShardId) -> GroupLog {
        GroupLog { log: self.clone(), group }
    }

    /// The groups of which anything is stored: a vote, entries, a purge mark or a committed id. In order.
    pub fn groups(&self) -> Vec<ShardId> {
        let state = self.0.state();
        state.images.groups.iter().filter(|(_, image)| !image.is_empty()).map(|(group, _)| *group).collect()
    }

    /// Drops everything of a group that was deleted; returns once that is durable. Its Raft must have stopped.
    ///
    /// # Errors
    /// The log has failed or is closed.
    pub async fn forget(&self, group: ShardId) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        {
            let mut state = self.0.state();
            state.check()?;
            state.images.forget(group);
            state.queue.push_back(Job::Forget(group, done));
        }
        self.written(durable).await
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.0.state().size_bytes
    }

    /// While the log is over its budget: the group whose entries keep the oldest file (the lowest of several). Its owner
    /// must snapshot and purge; then the next one is named.
    pub fn pinning(&self) -> Option<ShardId> {
        let state = self.0.state();
        if state.size_bytes > self.0.settings.budget_bytes { state.pinning } else { None }
    }

    /// Resolves when a write or sync has failed, with the reason: the process must end, since what the disk holds is
    /// unknown until it is read again. Never resolves otherwise.
    pub async fn failed(&self) -> String {
        let mut failed = self.0.failed.subscribe();
        match failed.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            _ => std::future::pending().await,
        }
    }

    /// Writes what was accepted and ends the writer. Whatever is asked of the log afterwards fails, reading excepted.
    pub async fn close(&self) {
        self.0.state().closed = true;
        self.0.wake.notify_one();
        // The sender is in `self`.
        let _ = self.0.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Waits for a job's end.
    async fn written(&self, durable: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        self.0.wake.notify_one();
        durable.await.unwrap_or_else(|_| Err(failure("the writer has ended")))
    }
}

impl Debug for SharedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLog").field("dir", &self.0.dir).finish_non_exhaustive()
    }
}

/// The writer task: owns the writer; ends when the log is closed and everything written, or when writing fails.
async fn write(log: Arc<Inner>, mut writer: Writer) {
    // Whatever ends this task, nobody may wait for it for ever.
    struct End(Arc<Inner>);
    impl Drop for End {
        fn drop(&mut self) {
            let finished = {
                let state = self.0.state();
                state.closed && state.queue.is_empty()
            };
            if !finished {
                self.0.fail("the writer has ended");
            }
            self.0.stopped.send_replace(true);
        }
    }
    let end = End(log.clone());
    let batch_bytes = BATCH_BYTES.min(log.settings.file_bytes);
    loop {
        let (jobs, closed) = take(&mut log.state(), batch_bytes);
        if jobs.is_empty() && !closed {
            log.wake.notified().await;
            continue;
        }
        // At the end an empty batch: it makes the last mark durable.
        let ending = jobs.is_empty();
        let (back, jobs, result) = log
            .compute
            .io(move || {
                let result = writer.write(&jobs);
                (writer, jobs, result)
            })
            .await;
        writer = back;
        match result {
            Ok(placed) => {
                {
                    let mut state = log.state();
                    for entry in placed {
                        state.images.placed(entry.group, entry.index, entry.serial, entry.place);
                    }
                    state.images.evict(log.settings.cache_bytes);
                }
                for job in jobs {
                    job.complete(Ok(()));
                }
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(reason, dir = ?log.dir, "writing the Raft log failed");
                // Refuse first: nobody who learns of the failure can then have something accepted.
                log.state().failed = Some(reason.clone());
                for job in jobs {
                    job.complete(Err(failure(&reason)));
                }
                log.fail(&reason);
                break;
            }
        }
        let (back, cleaned) = log
            .compute
            .io(move || {
                let cleaned = writer.clean();
                (writer, cleaned)
            })
            .await;
        writer = back;
        {
            let mut state = log.state();
            (state.size_bytes, state.pinning) = (writer.size_bytes(), writer.pinning());
        }
        if let Err(error) = cleaned {
            log.fail(&format!("removing an old file: {error}"));
            break;
        }
        if ending {
            break;
        }
    }
    drop(end);
}

/// The next batch, and whether the log is closed.
fn take(state: &mut State, bytes: u64) -> (Vec<Job>, bool) {
    let (mut jobs, mut taken) = (Vec::new(), 0);
    while taken < bytes
        && let Some(job) = state.queue.pop_front()
    {
        taken += match &job {
            Job::Append(_, entries, _) => entries.iter().map(|(_, entry)| image::size_of(entry)).sum(),
            _ => 64,
        };
        jobs.push(job);
    }
    (jobs, state.closed)
}

/// One group's part of the shared log: what its Raft writes to and reads from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GroupLog {
    log: SharedLog,
    group: ShardId,
}

/// An entry to answer with: in memory, or to be read.
enum Source {
    Memory(Entry),
    Disk(LogId, Place),
}

impl GroupLog {
    /// The entries of the range that are there: without those purged, up to the last accepted one.
    ///
    /// # Errors
    /// What was read back is not what was written, or the medium fails.
    pub async fn entries(&self, range: RangeInclusive<u64>) -> io::Result<Vec<Entry>> {
        self.read(*range.start(), *range.end(), u64::MAX).await
    }

    /// The last entry known durable, or the purge mark where that is later. Right after opening: the last entry.
    pub fn last_durable(&self) -> Option<LogId> {
        let state = self.log.0.state();
        let image = state.images.groups.get(&self.group)?;
        let purged_later = image.purged.map(|id| id.index) > image.durable.map(|id| id.index);
        if purged_later { image.purged } else { image.durable }
    }

    /// The last entry purged.
    pub fn purged(&self) -> Option<LogId> {
        self.log.0.state().images.groups.get(&self.group)?.purged
    }

    /// Entries from `first` to `last`, both included, until they are more than `bytes` together; at least one if there is.
    async fn read(&self, first: u64, last: u64, bytes: u64) -> io::Result<Vec<Entry>> {
        let mut tried = Vec::new();
        loop {
            let sources = self.sources(first, last, bytes);
            let places: Vec<Place> = sources
                .iter()
                .filter_map(|source| match source {
                    Source::Memory(_) => None,
                    Source::Disk(_, place) => Some(*place),
                })
                .collect();
            let inner = &self.log.0;
            let result = if places.is_empty() {
                fetch(&*inner.medium, &inner.dir, self.group, sources)
            } else {
                let (medium, dir, group) = (inner.medium.clone(), inner.dir.clone(), self.group);
                inner.compute.io(move || fetch(&*medium, &dir, group, sources)).await
            };
            match result {
                // Purged meanwhile, and the file removed: look again at what there is now.
                Err(error) if error.kind() == io::ErrorKind::NotFound && places != tried => tried = places,
                result => return result,
            }
        }
    }

    fn sources(&self, first: u64, last: u64, bytes: u64) -> Vec<Source> {
        let state = self.log.0.state();
        let Some(image) = state.images.groups.get(&self.group) else { return Vec::new() };
        let (mut sources, mut taken) = (Vec::new(), 0u64);
        for slot in image.range(first, last) {
            taken = taken.saturating_add(slot.size);
            if taken > bytes && !sources.is_empty() {
                break;
            }
            match (&slot.entry, slot.place) {
                (Some(entry), _) => sources.push(Source::Memory((**entry).clone())),
                (None, Some(place)) => sources.push(Source::Disk(slot.log_id, place)),
                // Not evicted before it has a place.
                (None, None) => break,
            }
        }
        sources
    }
}

/// Reads what is on disk, neighbours together.
fn fetch(medium: &dyn Medium, dir: &Path, group: ShardId, sources: Vec<Source>) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(sources.len());
    // File, offset and bytes of the piece read last.
    let mut piece: Option<(u64, u64, Bytes)> = None;
    let mut sources = sources.into_iter().peekable();
    let mut ahead: VecDeque<Source> = VecDeque::new();
    while let Some(source) = ahead.pop_front().or_else(|| sources.next()) {
        let (log_id, place) = match source {
            Source::Memory(entry) => {
                entries.push(entry);
                continue;
            }
            Source::Disk(log_id, place) => (log_id, place),
        };
        let held = piece.as_ref().filter(|(seq, start, bytes)| {
            *seq == place.seq && *start <= place.offset && place.offset + place.len <= start + bytes.len() as u64
        });
        let (start, bytes) = match held {
            Some((_, start, bytes)) => (*start, bytes.clone()),
            None => {
                let mut end = place.offset + place.len;
                while let Some(Source::Disk(_, next)) = sources.peek()
                    && next.seq == place.seq
                    && next.offset >= end
                    && next.offset + next.len - place.offset <= READ_BYTES
                    && let Some(next_source) = sources.next()
                {
                    if let Source::Disk(_, next) = &next_source {
                        end = next.offset + next.len;
                    }
                    ahead.push_back(next_source);
                }
                let len = usize::try_from(end - place.offset).map_err(io::Error::other)?;
                let bytes = medium.read_range(&recover::path_of(dir, place.seq), place.offset, len)?;
                piece = Some((place.seq, place.offset, bytes.clone()));
                (place.offset, bytes)
            }
        };
        entries.push(entry_at(&bytes, place, start, group, log_id).map_err(|reason| {
            let file = recover::path_of(dir, place.seq);
            let message = format!("log file {file:?} is damaged at byte {}: {reason}; restart this node", place.offset);
            io::Error::new(io::ErrorKind::InvalidData, message)
        })?);
    }
    Ok(entries)
}

fn entry_at(bytes: &Bytes, place: Place, start: u64, group: ShardId, log_id: LogId) -> Result<Entry, String> {
    let at = usize::try_from(place.offset - start).map_err(|error| error.to_string())?;
    // Copied: an entry that is kept must not keep the whole piece.
    let len = usize::try_from(place.len).map_err(|error| error.to_string())?;
    let one = bytes.get(at..at.saturating_add(len)).ok_or("cut off")?;
    let raw = frame::frame_at(&Bytes::copy_from_slice(one), 0)?;
    let found = raw.group;
    match raw.decode() {
        Ok(Frame::Entry(entry)) if found == group && entry.log_id == log_id => Ok(entry),
        Ok(_) => Err(format!("this is not entry {log_id} of group {group}")),
        Err(error) => Err(error.to_string()),
    }
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let first = match range.start_bound() {
            Bound::Included(&first) => Some(first),
            Bound::Excluded(&before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let last = match range.end_bound() {
            Bound::Included(&last) => Some(last),
            Bound::Excluded(&end) => end.checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        match (first, last) {
            (Some(first), Some(last)) => self.read(first, last, u64::MAX).await,
            _ => Ok(Vec::new()),
        }
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.0.state().images.groups.get(&self.group).and_then(|image| image.vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        match end.checked_sub(1) {
            Some(last) => self.read(start, last, MESSAGE_BYTES).await,
            None => Ok(Vec::new()),
        }
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.0.state();
        let image = state.images.groups.get(&self.group);
        Ok(LogState {
            last_purged_log_id: image.and_then(|image| image.purged),
            last_log_id: image.and_then(|image| image.last()),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// Returns once the vote is durable.
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, durable) = oneshot::channel();
        {
            let mut state = self.log.0.state();
            state.check()?;
            state.images.groups.entry(self.group).or_default().vote = Some(*vote);
            state.queue.push_back(Job::Vote(self.group, *vote, done));
        }
        self.log.written(durable).await
    }

    /// Written with the next batch; without one it is lost, which costs applying again what was applied.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut state = self.log.0.state();
        state.check()?;
        let image = state.images.groups.entry(self.group).or_default();
        if image.committed != committed {
            image.committed = committed;
            state.queue.push_back(Job::Committed(self.group, committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.0.state().images.groups.get(&self.group).and_then(|image| image.committed))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let accepted = {
            let mut state = self.log.0.state();
            let serials = match state.check() {
                Ok(()) => state.images.append(self.group, &entries).map_err(io::Error::other),
                Err(error) => Err(error),
            };
            match serials {
                Ok(serials) => {
                    let entries = serials.into_iter().zip(entries).collect();
                    state.queue.push_back(Job::Append(self.group, entries, callback));
                    Ok(())
                }
                Err(error) => Err((error, callback)),
            }
        };
        match accepted {
            Ok(()) => {
                self.log.0.wake.notify_one();
                Ok(())
            }
            Err((error, callback)) => {
                callback.io_completed(Err(io::Error::new(error.kind(), error.to_string())));
                Err(error)
            }
        }
    }

    /// Written before whatever is accepted next; lost alone it brings back entries that nobody was promised.
    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let after = last_log_id.map(|last| last.index);
        let mut state = self.log.0.state();
        state.check()?;
        state.images.truncate(self.group, after);
        state.queue.push_back(Job::Truncate(self.group, after));
        Ok(())
    }

    /// Files go once the purge is durable, which is not waited for.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        {
            let mut state = self.log.0.state();
            state.check()?;
            if state.images.purge(self.group, log_id) {
                state.queue.push_back(Job::Purge(self.group, log_id));
            }
        }
        self.log.0.wake.notify_one();
        Ok(())
    }
}
