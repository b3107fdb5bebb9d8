//! The shared log: directories of any content, and logs that a disk damaged after they were written.
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use nearring_node::compute::Compute;
use nearring_node::medium::Medium;
use nearring_node::raft::log::{GroupLog, LogError, LogSettings, SharedLog};
use nearring_node::raft::{Entry, LogId, Membership, Proposal, TypeConfig, Vote, codec, scope};
use nearring_proto::ids::{ReplicaId, ShardId};
use openraft::storage::{IOFlushed, RaftLogReader as _, RaftLogStorage as _};
use openraft::vote::RaftLeaderId as _;
use openraft::{BasicNode, EntryPayload};

use super::{Burst, done, put, read};
use crate::disk::SimDisk;

const DIR: &str = "/log";
/// A group that nothing is ever stored of: forgetting it changes nothing and returns once all before it is durable.
const NOBODY: ShardId = ShardId(u64::MAX);
const HEADER: usize = 24;

/// What is stored of a group.
#[derive(Clone, PartialEq, Debug, Default)]
struct Held {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

type Groups = BTreeMap<ShardId, Held>;

/// Runs on this thread's runtime. Nothing in it waits for time or for files.
fn run<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = done(tokio::runtime::Builder::new_current_thread().build());
    }
    RUNTIME.with(|runtime| runtime.block_on(scope(1, future)))
}

async fn open(disk: &SimDisk, settings: LogSettings) -> Result<SharedLog, LogError> {
    SharedLog::open(Arc::new(disk.clone()), PathBuf::from(DIR), Compute::Inline, settings).await
}

/// Everything that is stored, read as its users read it.
async fn held(log: &SharedLog) -> io::Result<Groups> {
    let mut groups = Groups::new();
    for group in log.groups() {
        let mut of = log.group(group);
        let held = Held {
            vote: of.read_vote().await?,
            committed: of.read_committed().await?,
            purged: of.purged(),
            entries: of.entries(0..=u64::MAX).await?,
        };
        groups.insert(group, held);
    }
    Ok(groups)
}

/// Reads everything, and checks what no log may break.
async fn sound(log: &SharedLog) -> Groups {
    let groups = done(held(log).await);
    for (group, held) in &groups {
        let first = held.purged.map(|purged| purged.index);
        let indexes = first.into_iter().chain(held.entries.iter().map(|entry| entry.log_id.index));
        let indexes: Vec<u64> = indexes.collect();
        assert!(
            indexes.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1])),
            "{group} has a gap: {indexes:?}"
        );
        let last = done(log.group(*group).get_log_state().await).last_log_id;
        assert_eq!(last, held.entries.last().map(|entry| entry.log_id).or(held.purged));
    }
    groups
}

/// What was read once is read again after a restart, and after more was written.
async fn goes_on(disk: &SimDisk, log: SharedLog, settings: LogSettings, mut groups: Groups) {
    log.close().await;
    drop(log);
    let again = done(open(disk, settings).await);
    assert_eq!(sound(&again).await, groups, "a second start reads something else");
    let group = groups.keys().next().copied().unwrap_or(ShardId(1));
    let held = groups.entry(group).or_default();
    let mut of = again.group(group);
    let vote = vote(u64::MAX);
    done(of.save_vote(&vote).await);
    held.vote = Some(vote);
    let next = match held.entries.last().map(|entry| entry.log_id).or(held.purged) {
        Some(last) => last.index.checked_add(1),
        None => Some(0),
    };
    // The largest number is the index of no entry.
    if let Some(next) = next.filter(|next| *next < u64::MAX) {
        let entry = Entry { log_id: log_id(u64::MAX, next), payload: EntryPayload::Blank };
        done(of.append([entry.clone()], IOFlushed::noop()).await);
        held.entries.push(entry);
    }
    again.close().await;
    drop(again);
    let last = done(open(disk, settings).await);
    assert_eq!(sound(&last).await, groups, "what was written after a recovery is not read");
    last.close().await;
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::alias::LeaderIdOf::<TypeConfig>::new(term, ReplicaId::default()).to_committed(), index)
}

fn vote(term: u64) -> Vote {
    Vote::new(term, ReplicaId::from(3))
}

fn membership() -> Membership {
    let (id, node) = (ReplicaId::from(1), BasicNode { addr: "a:1".to_owned() });
    done(Membership::new(vec![[id].into()], BTreeMap::from([(id, node)])))
}

fn settings(file_bytes: u64) -> LogSettings {
    LogSettings { file_bytes, budget_bytes: 1 << 20, cache_bytes: 0 }
}

// ---- directories of any content ----

/// A file of a directory that nobody wrote: its name, what its header says, what follows.
#[derive(Arbitrary, Debug)]
struct AnyFile {
    gap: bool,
    header: Header,
    pieces: Vec<Piece>,
}

#[derive(Arbitrary, Debug)]
enum Header {
    Right,
    OfAnother(u8),
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Piece {
    Vote {
        group: u8,
        term: u8,
    },
    Entry {
        group: u8,
        at: Index,
        payload: Vec<u8>,
    },
    Membership {
        group: u8,
        at: Index,
    },
    Truncate {
        group: u8,
        after: Option<Index>,
    },
    Purge {
        group: u8,
        upto: Index,
    },
    Committed {
        group: u8,
        upto: Option<Index>,
    },
    Forget {
        group: u8,
    },
    State(Vec<OfGroup>),
    /// A mark: where it says that it stands, and up to where everything is durable. `None`: as a writer would have it.
    Mark {
        own: Option<(u8, u16)>,
        synced: Option<(u8, u16)>,
    },
    /// A frame of any kind and message, with a right checksum.
    Frame {
        group: u8,
        kind: u8,
        message: Vec<u8>,
    },
    Raw(Vec<u8>),
}

/// Group, vote, purge mark, committed id.
type OfGroup = (u8, Option<u8>, Option<Index>, Option<Index>);

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Index {
    Small(u8),
    FromTheEnd(u8),
}

impl Index {
    fn id(self) -> LogId {
        match self {
            Index::Small(index) => log_id(1, index.into()),
            Index::FromTheEnd(back) => log_id(1, u64::MAX - u64::from(back)),
        }
    }
}

fn put_header(seq: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(b"nearlog\0");
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(&seq.to_le_bytes());
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

fn put_frame(group: u64, kind: u8, message: &[u8], out: &mut Vec<u8>) {
    let len = done(u32::try_from(message.len() + 9)).to_le_bytes();
    let mut body = group.to_le_bytes().to_vec();
    body.push(kind);
    body.extend_from_slice(message);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&len);
    crc.update(&body);
    out.extend_from_slice(&len);
    out.extend_from_slice(&crc.finalize().to_le_bytes());
    out.extend_from_slice(&body);
}

impl Piece {
    fn put(&self, seq: u64, out: &mut Vec<u8>) {
        let at = out.len() as u64;
        let id = |index: &Option<Index>| index.map(Index::id);
        let (group, kind, message) = match self {
            Piece::Vote { group, term } => (*group, 1, codec::encode(&vote((*term).into()))),
            Piece::Entry { group, at, payload } => {
                let payload = EntryPayload::Normal(Proposal(Bytes::copy_from_slice(payload)));
                (*group, 2, codec::encode(&Entry { log_id: at.id(), payload }))
            }
            Piece::Membership { group, at } => {
                (*group, 2, codec::encode(&Entry { log_id: at.id(), payload: EntryPayload::Membership(membership()) }))
            }
            Piece::Truncate { group, after } => (*group, 3, codec::encode(&id(after).map(|id| id.index))),
            Piece::Purge { group, upto } => (*group, 4, codec::encode(&upto.id())),
            Piece::Committed { group, upto } => (*group, 5, codec::encode(&id(upto))),
            Piece::Forget { group } => (*group, 6, Bytes::from_static(&[codec::FORMAT])),
            Piece::State(groups) => {
                // Tuples have the bytes of their parts.
                let of = |(group, term, purged, committed): &OfGroup| {
                    ((u64::from(*group), term.map(|term| vote(term.into()))), (id(purged), id(committed)))
                };
                (0, 7, codec::encode(&groups.iter().map(of).collect::<Vec<_>>()))
            }
            Piece::Mark { own, synced } => {
                let wide = |(seq, offset): &(u8, u16)| (u64::from(*seq), u64::from(*offset));
                let own = own.as_ref().map_or((seq, at), wide);
                (0, 8, codec::encode(&(own, synced.as_ref().map_or((seq, at), wide))))
            }
            Piece::Frame { group, kind, message } => (*group, *kind, Bytes::copy_from_slice(message)),
            Piece::Raw(bytes) => {
                out.extend_from_slice(bytes);
                return;
            }
        };
        put_frame(group.into(), kind, &message, out);
    }
}

/// Recovery over a directory of any content: it ends in an error, or in a log that can be read, written and opened again.
pub fn log_files(data: &[u8]) -> bool {
    let mut input = Unstructured::new(data);
    let Ok((first, files)) = <(u8, Vec<AnyFile>)>::arbitrary(&mut input) else { return false };
    let disk = SimDisk::new(1);
    done(disk.create_dir_all(Path::new(DIR)));
    let mut seq = u64::from(first);
    for file in files.iter().take(6) {
        seq += 1 + u64::from(file.gap);
        let mut bytes = Vec::new();
        match &file.header {
            Header::Right => put_header(seq, &mut bytes),
            Header::OfAnother(other) => put_header((*other).into(), &mut bytes),
            Header::Raw(raw) => bytes.extend_from_slice(raw),
        }
        file.pieces.iter().for_each(|piece| piece.put(seq, &mut bytes));
        put(&disk, &path_of(seq), &bytes);
    }
    run(async {
        let settings = settings(512);
        match open(&disk, settings).await {
            Ok(log) => {
                let groups = sound(&log).await;
                let any = !groups.is_empty();
                goes_on(&disk, log, settings, groups).await;
                any
            }
            Err(LogError::Damaged { .. } | LogError::NewerFormat { .. }) => false,
            Err(LogError::Io(error)) => panic!("the disk is sound, and yet: {error}"),
        }
    })
}

fn path_of(seq: u64) -> PathBuf {
    Path::new(DIR).join(format!("{seq:016x}.log"))
}

// ---- real logs, damaged ----

#[derive(Arbitrary, Debug)]
struct Damaged {
    file_bytes: u8,
    operations: Vec<Operation>,
    closed: bool,
    damage: Damage,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Vote {
        group: u8,
        term: u8,
    },
    Append {
        group: u8,
        term: u8,
        payloads: Vec<Payload>,
    },
    Truncate {
        group: u8,
        back: u8,
    },
    Purge {
        group: u8,
        ahead: u8,
    },
    Committed {
        group: u8,
        back: u8,
    },
    Forget {
        group: u8,
    },
    /// Everything so far becomes durable before anything else is accepted.
    Sync,
    Restart,
}

#[derive(Arbitrary, Debug)]
enum Payload {
    Blank,
    Normal(u8),
    Membership,
}

#[derive(Arbitrary, Debug)]
enum Damage {
    None,
    /// The last file ends here.
    Cut(u16),
    /// Wrong bits in any file.
    Burst {
        file: u8,
        at: u16,
        flips: [u8; 4],
    },
    /// What is behind this place in the last file became zeros.
    Zeros(u16),
    /// Anything behind the end of the last file.
    Garbage(Vec<u8>),
    /// A file between others is gone.
    Gone(u8),
}

/// Frames of a file as the format's description has them: where each begins and ends, and its kind.
struct Walked {
    frames: Vec<(usize, usize, u8)>,
    /// Its own marks: where each begins, and up to where it says that the file was durable.
    marks: Vec<(usize, usize)>,
    /// Where its opening, without which it does not count, ends.
    opened: usize,
}

fn walk(file: &[u8], seq: u64) -> Walked {
    let mut walked = Walked { frames: Vec::new(), marks: Vec::new(), opened: file.len() };
    let number = |at: usize| u64::from_le_bytes(done(file[at..at + 8].try_into()));
    let mut at = HEADER;
    while at < file.len() {
        let len = u32::from_le_bytes(done(file[at..at + 4].try_into())) as usize;
        let (end, kind) = (at + 8 + len, file[at + 16]);
        if kind == 8 && number(at + 34) == seq {
            walked.marks.push((at, done(usize::try_from(number(at + 42)))));
        }
        if kind == 7 {
            walked.opened = end;
        }
        walked.frames.push((at, end, kind));
        at = end;
    }
    assert_eq!(at, file.len());
    walked
}

impl Walked {
    /// Where the frame with this byte begins; 0 for the header.
    fn frame_of(&self, at: usize) -> usize {
        let frame = self.frames.iter().rfind(|(start, end, _)| *start <= at && at < *end);
        if at < HEADER { 0 } else { frame.map_or(at, |(start, ..)| *start) }
    }

    /// Up to where the marks from `from` on say that the file was durable.
    fn confirmed(&self, from: usize) -> usize {
        self.marks.iter().filter(|(at, _)| *at >= from).map(|(_, confirmed)| *confirmed).max().unwrap_or(0)
    }

    /// Frames that change something, from the first one that does not end before `from`.
    fn changes_lost(&self, from: usize) -> usize {
        self.frames.iter().filter(|(_, end, kind)| *end > from && *kind < 7).count()
    }
}

/// A log that was really written, then damaged: it is refused, or it is the log as it was after some operation, and no
/// operation that a later mark or file confirms is missing from it.
pub fn log_damage(data: &[u8]) -> bool {
    let mut input = Unstructured::new(data);
    let Ok(damaged) = Damaged::arbitrary(&mut input) else { return false };
    run(check_damaged(&damaged))
}

async fn check_damaged(input: &Damaged) -> bool {
    let settings = settings(128 + 8 * u64::from(input.file_bytes));
    let disk = SimDisk::new(1);
    let mut log = done(open(&disk, settings).await);
    let mut history = History { disk: disk.clone(), states: Vec::new() };
    history.push(Groups::new());
    for operation in input.operations.iter().take(40) {
        if matches!(operation, Operation::Restart) {
            log.close().await;
            log = done(open(&disk, settings).await);
            let found = sound(&log).await;
            assert_eq!(found, history.now(), "an undisturbed restart lost or invented something");
            continue;
        }
        carry_out(operation, &log, &mut history).await;
        assert_eq!(done(held(&log).await), history.now(), "readers see something else than was accepted");
    }
    done(log.forget(NOBODY).await);
    history.push(history.now());
    if input.closed {
        log.close().await;
    }
    // What the disk holds now. Where the log was not closed, this is what a process that was killed leaves.
    let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for name in done(disk.list(Path::new(DIR))) {
        let seq = name.strip_suffix(".log").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        files.insert(seq.unwrap_or_else(|| panic!("a file {name}")), read(&disk, &Path::new(DIR).join(&name)).to_vec());
    }
    log.close().await;
    judge(input, settings, files, &history).await
}

/// What is stored after each frame, and the oldest file at that time.
struct History {
    disk: SimDisk,
    states: Vec<(Groups, Option<String>)>,
}

impl History {
    fn push(&mut self, groups: Groups) {
        let oldest = done(self.disk.list(Path::new(DIR))).into_iter().next();
        self.states.push((groups, oldest));
    }

    fn now(&self) -> Groups {
        self.states.last().map(|(groups, _)| groups.clone()).unwrap_or_default()
    }

    /// What was stored before the last `lost` frames. `None` where a file has been removed since: then those frames were durable
    /// for certain, and a disk that lost them lost more than a crash takes.
    fn before(&self, lost: usize) -> Option<&Groups> {
        let (groups, oldest) = &self.states[self.states.len() - 1 - lost];
        (lost == 0 || Some(oldest) == self.states.last().map(|(_, oldest)| oldest)).then_some(groups)
    }
}

/// Does to the log, and to what is expected of it, one operation. One element of history for every frame.
async fn carry_out(operation: &Operation, log: &SharedLog, history: &mut History) {
    let number = |group: &u8| ShardId(u64::from(*group) % 3);
    let mut now = history.now();
    let part = |group: ShardId, now: &Groups| -> (GroupLog, Held) {
        (log.group(group), now.get(&group).cloned().unwrap_or_default())
    };
    match operation {
        Operation::Vote { group, term } => {
            let group = number(group);
            let (mut of, mut held) = part(group, &now);
            held.vote = Some(vote((*term).into()));
            done(of.save_vote(&vote((*term).into())).await);
            now.insert(group, held);
            history.push(now);
        }
        Operation::Append { group, term, payloads } => {
            let group = number(group);
            let (mut of, mut held) = part(group, &now);
            let mut entries = Vec::new();
            for (payload, index) in payloads.iter().take(8).zip(held.next()..) {
                let payload = match payload {
                    Payload::Blank => EntryPayload::Blank,
                    Payload::Normal(len) => EntryPayload::Normal(Proposal(Bytes::from(vec![*len; usize::from(*len)]))),
                    Payload::Membership => EntryPayload::Membership(membership()),
                };
                let entry = Entry { log_id: log_id((*term).into(), index), payload };
                held.entries.push(entry.clone());
                now.insert(group, held.clone());
                history.push(now.clone());
                entries.push(entry);
            }
            if !entries.is_empty() {
                done(of.append(entries, IOFlushed::noop()).await);
            }
        }
        Operation::Truncate { group, back } => {
            let group = number(group);
            let (mut of, mut held) = part(group, &now);
            let keep = held.entries.len().saturating_sub(usize::from(*back));
            held.entries.truncate(keep);
            let last = held.entries.last().map(|entry| entry.log_id).or(held.purged);
            done(of.truncate_after(last).await);
            now.insert(group, held);
            now.retain(|_, held| *held != Held::default());
            history.push(now);
        }
        Operation::Purge { group, ahead } => {
            let group = number(group);
            let (mut of, mut held) = part(group, &now);
            let from = held.purged.map_or(0, |purged| purged.index + 1);
            let upto = from + u64::from(*ahead % 16);
            let known = held.entries.iter().find(|entry| entry.log_id.index == upto);
            let upto = known.map_or_else(|| log_id(7, upto), |entry| entry.log_id);
            done(of.purge(upto).await);
            held.purged = Some(upto);
            held.entries.retain(|entry| entry.log_id.index > upto.index);
            now.insert(group, held);
            history.push(now);
        }
        Operation::Committed { group, back } => {
            let group = number(group);
            let (mut of, mut held) = part(group, &now);
            let entry = held.entries.len().checked_sub(1 + usize::from(*back)).map(|at| held.entries[at].log_id);
            if entry != held.committed {
                done(of.save_committed(entry).await);
                held.committed = entry;
                now.insert(group, held);
                now.retain(|_, held| *held != Held::default());
                history.push(now);
            }
        }
        Operation::Forget { group } => {
            let group = number(group);
            done(log.forget(group).await);
            now.remove(&group);
            history.push(now);
        }
        Operation::Sync => {
            done(log.forget(NOBODY).await);
            history.push(now);
        }
        Operation::Restart => {}
    }
}

impl Held {
    fn next(&self) -> u64 {
        self.entries.last().map(|entry| entry.log_id).or(self.purged).map_or(0, |last| last.index + 1)
    }
}

/// What recovery may make of a damaged log.
enum Verdict {
    /// It must be refused.
    Refused,
    /// It must be accepted without the last so many frames.
    Without(usize),
    /// It may be refused; where it is accepted, it is so much.
    AtMostWithout(usize),
}

async fn judge(input: &Damaged, settings: LogSettings, mut files: BTreeMap<u64, Vec<u8>>, history: &History) -> bool {
    let (Some((&first, _)), Some((&last, end))) = (files.first_key_value(), files.last_key_value()) else {
        panic!("a log without files");
    };
    let walked = walk(end, last);
    // The opening of the oldest file had been synced if it is not the very first: then it may not be torn.
    let alone = first == last && first > 1;
    let lost = |from: usize| {
        let lost = walked.changes_lost(if from < walked.opened { 0 } else { from });
        if from < walked.opened && alone { Verdict::Refused } else { Verdict::Without(lost) }
    };
    let mut bytes = files.remove(&last).unwrap_or_default();
    let verdict = match &input.damage {
        Damage::None => Verdict::Without(0),
        Damage::Cut(at) => {
            let at = usize::from(*at) % (bytes.len() + 1);
            bytes.truncate(at);
            match lost(at) {
                // Disks do not take back what they synced. One that did, to the end of a frame, is not found out; and still
                // the log is one that was.
                Verdict::Without(lost) if at < walked.confirmed(0) => Verdict::AtMostWithout(lost),
                verdict => verdict,
            }
        }
        Damage::Burst { file, at, flips } => {
            let seqs: Vec<u64> = files.keys().copied().chain([last]).collect();
            let seq = seqs[usize::from(*file) % seqs.len()];
            let burst = Burst { at: (*at).into(), flips: [flips[0].max(1), flips[1], flips[2], flips[3]] };
            match files.get_mut(&seq) {
                Some(earlier) => {
                    burst.strike(earlier);
                    Verdict::Refused
                }
                None => {
                    let at = burst.strike(&mut bytes);
                    match (walked.frame_of(at), lost(walked.frame_of(at))) {
                        // Only by a mark that the burst has not reached.
                        (from, _) if from < walked.confirmed(at + burst.flips.len()) => Verdict::Refused,
                        (from, Verdict::Without(lost)) if from < walked.confirmed(0) => Verdict::AtMostWithout(lost),
                        // The bits that make a format a newer one.
                        (0, Verdict::Without(lost)) => Verdict::AtMostWithout(lost),
                        (_, verdict) => verdict,
                    }
                }
            }
        }
        Damage::Zeros(at) => {
            let at = usize::from(*at) % (bytes.len() + 1);
            let from = bytes[at..].iter().position(|byte| *byte != 0).map_or(bytes.len(), |zeros| at + zeros);
            bytes[at..].fill(0);
            let from = walked.frame_of(from);
            match lost(from) {
                // The marks behind went as well.
                Verdict::Without(lost) if from < walked.confirmed(0) => Verdict::AtMostWithout(lost),
                verdict => verdict,
            }
        }
        Damage::Garbage(garbage) => {
            bytes.extend_from_slice(garbage);
            // It may hold frames that are right.
            if garbage.len() < 17 { Verdict::Without(0) } else { Verdict::AtMostWithout(0) }
        }
        Damage::Gone(at) => {
            let between: Vec<u64> = files.keys().copied().skip(1).collect();
            match between.get(usize::from(*at) % between.len().max(1)) {
                Some(seq) => {
                    files.remove(seq);
                    Verdict::Refused
                }
                None => Verdict::Without(0),
            }
        }
    };
    files.insert(last, bytes);
    let disk = SimDisk::new(1);
    done(disk.create_dir_all(Path::new(DIR)));
    files.iter().for_each(|(seq, bytes)| put(&disk, &path_of(*seq), bytes));
    match (open(&disk, settings).await, verdict) {
        (Err(LogError::Io(error)), _) => panic!("the disk is sound, and yet: {error}"),
        (Err(_), Verdict::Refused | Verdict::AtMostWithout(_)) => false,
        (Err(error), Verdict::Without(lost)) => {
            assert!(history.before(lost).is_none(), "a torn tail was taken for damage: {error}");
            false
        }
        (Ok(log), Verdict::Refused) => panic!("accepted although damaged, as {:?}", sound(&log).await),
        (Ok(log), Verdict::Without(lost) | Verdict::AtMostWithout(lost)) => {
            let found = sound(&log).await;
            if let Some(expected) = history.before(lost) {
                assert_eq!(found, *expected, "another log than the one that was written");
            }
            goes_on(&disk, log, settings, found).await;
            true
        }
    }
}

// ---- seeds ----

/// `arbitrary` reads structure from an input's bytes but cannot write it, so these are bytes at random; of many, those are
/// kept that lead to a log.
fn drawn(check: fn(&[u8]) -> bool, lengths: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    use rand::{Rng, RngCore, SeedableRng};
    let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
    let draw = || {
        let mut bytes = vec![0; rng.random_range(lengths.clone())];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    std::iter::repeat_with(draw).take(4_000).filter(|bytes| check(bytes)).take(12).collect()
}

pub(super) fn files_seeds() -> Vec<Vec<u8>> {
    drawn(log_files, 60..400)
}

pub(super) fn damage_seeds() -> Vec<Vec<u8>> {
    drawn(log_damage, 60..400)
}
