//! The key-value store judged apart: what a crash may leave of its files must lead to a rebuild, never to a wrong answer.
//!
//! Simulated nodes keep records in memory, so what sled makes of damaged files is judged here. A replica on sled lives
//! through random entries, flushes, clean stops, snapshots and purges of its log, and beside it one that keeps records in
//! memory says what every position must look like. At random moments the directory is copied, also while an entry is
//! being applied, and out of such copies come images as a crash may leave them: all since the last flush dropped, blocks
//! of old and new mixed, files cut, renames and removals undone or lost, bits flipped. Each image is then started with
//! the log and the snapshot that belong to it, as production starts. Rules:
//!
//! - The start succeeds, and soon. sled's panics do not come through.
//! - A store that is kept is equal to the state at its applied entry, which the log holds: every record, every session,
//!   every vector, the digest, what searches find. Anything else is built anew from the snapshot.
//! - With the rest of the log every image arrives at the end of it, with the replies that the entries had before.
//! - After a clean stop the store is kept.
//!
//! Snapshots, segment files and the log are synced when they are named, so images keep them whole.
//!
//! `NEARRING_CRASH_LIVES=100 cargo test --release -p nearring-node --test crash_images -- --nocapture` runs longer;
//! `NEARRING_CRASH_SEED=7` runs that one life.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nearring_node::index::segment::Segment;
use nearring_node::machine::Machine;
use nearring_node::machine::command::{Command, Envelope, PointWrite};
use nearring_node::machine::record::Record;
use nearring_node::medium::{Medium, OsMedium};
use nearring_node::raft::{Entry, LogId, Proposal, TypeConfig};
use nearring_node::shard::files;
use nearring_node::shard::state::{Opened, ShardState};
use nearring_node::store::EngineKind;
use nearring_proto::collection::{CollectionSpec, FieldKind, IndexSpec, Modifier, MultiSpec, SparseSpec, VectorSpec};
use nearring_proto::ids::{Incarnation, NodeId, PointId, ReplicaId, RequestId, SessionId, ShardId};
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::{Metric, MultiVector, ScalarKind, SparseVector, Vector, normalize};
use nearring_proto::write::PayloadMode;
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId as _;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use uuid::Uuid;

const SHARD: ShardId = ShardId(3);
const DIMENSION: usize = 4;
/// Few, so that values are overwritten often and sled reuses its file segments.
const IDS: u64 = 160;
const SESSIONS: u8 = 60;
/// What one start may take before it counts as none.
const PATIENCE: Duration = Duration::from_secs(60);

fn me() -> ReplicaId {
    ReplicaId { node: NodeId(1), incarnation: Incarnation(7) }
}

fn log_id(index: u64) -> LogId {
    let leader: openraft::alias::LeaderIdOf<TypeConfig> =
        openraft::impls::leader_id_std::LeaderId::new(1, ReplicaId::default());
    LogId::new(leader.to_committed(), index)
}

fn spec() -> CollectionSpec {
    let vector = VectorSpec { dimension: DIMENSION as u32, metric: Metric::Cosine, scalar: ScalarKind::I8 };
    CollectionSpec {
        name: "c".into(),
        vectors: BTreeMap::from([(String::new(), vector)]),
        payload_indexes: BTreeMap::from([("n".to_owned(), FieldKind::Integer)]),
        shard_count: 1,
        replication_factor: 3,
        routing_separator: String::new(),
        index: IndexSpec::default(),
        documents: None,
        sparse_vectors: BTreeMap::from([("words".to_owned(), SparseSpec { modifier: Modifier::Idf })]),
        multi_vectors: BTreeMap::from([("tokens".to_owned(), MultiSpec { dimension: 2, metric: Metric::L2 })]),
    }
}

/// A sparse and a multi-vector, each there or not.
fn others(rng: &mut SmallRng) -> Vec<(String, Vector)> {
    let mut others = Vec::new();
    if rng.random_bool(0.6) {
        let indices: BTreeSet<u32> = (0..rng.random_range(0..6)).map(|_| rng.random_range(0..9)).collect();
        let values = indices.iter().map(|_| rng.random_range(-1.0..3.0)).collect();
        let vector = SparseVector::new(indices.into_iter().collect(), values).unwrap();
        others.push(("words".to_owned(), vector.into()));
    }
    if rng.random_bool(0.4) {
        let components = (0..2 * rng.random_range(1..4)).map(|_| rng.random_range(-1.0..1.0)).collect();
        others.push(("tokens".to_owned(), MultiVector::new(2, components).unwrap().into()));
    }
    others
}

/// Queries of the other kinds.
fn other_queries(query: &SearchQuery) -> [SearchQuery; 2] {
    let words = SparseVector::new(vec![1, 3, 4, 7], vec![1.0, 0.5, 0.25, 2.0]).unwrap();
    let tokens = MultiVector::new(2, vec![0.5, -0.5, 0.25, 1.0]).unwrap();
    [("words", Vector::from(words)), ("tokens", tokens.into())].map(|(name, vector)| SearchQuery {
        vector_name: name.to_owned(),
        target: Target::Near(vector),
        ..query.clone()
    })
}

type Records = BTreeMap<PointId, Arc<Record>>;

/// What a replica must be at one position.
#[derive(Clone)]
struct Expected {
    machine: Machine,
    records: Records,
    seen: String,
}

/// A replica without Raft.
struct Replica {
    state: Arc<ShardState>,
    machine: Machine,
}

impl Replica {
    /// Starts on `data` as [`nearring_node::shard::Shard::start`] does.
    fn open(
        data: &Path,
        kind: EngineKind,
        log: &[Entry],
        durable: u64,
        purged: u64,
    ) -> Result<(Self, Records), String> {
        let medium: Arc<dyn Medium> = Arc::new(OsMedium);
        let id = |index: u64| (index > 0).then(|| log_id(index));
        let Opened { state, machine, replay, home_epoch } =
            ShardState::open(medium, kind, data, SHARD, me(), id(durable), id(purged)).map_err(|e| e.to_string())?;
        if let Some((from, to)) = replay {
            if from <= purged || to > durable {
                return Err(format!("wants entries {from} to {to} of a log that holds {purged} to {durable}"));
            }
            let entries = &log[from as usize - 1..to as usize];
            state.restore_from_entries(entries, home_epoch).map_err(|error| error.to_string())?;
        }
        let replica = Self { state, machine };
        let records = replica.records()?;
        Ok((replica, records))
    }

    fn applied(&self) -> u64 {
        self.machine.meta.applied.map_or(0, |log_id| log_id.index)
    }

    fn records(&self) -> Result<Records, String> {
        let store = self.state.read().store.clone();
        let mut records = Records::new();
        loop {
            let after = records.keys().next_back();
            let page = store.range(after, 64).map_err(|error| error.to_string())?;
            if page.is_empty() {
                return Ok(records);
            }
            records.extend(page.into_iter().map(|(id, record)| (id, Arc::new(record))));
        }
    }

    /// What searches answer, which vectors there are, and what the body says of itself.
    fn seen(&self) -> String {
        let body = self.state.read();
        let mut vector: Vec<f32> = (0..DIMENSION).map(|at| at as f32 - 1.5).collect();
        normalize(&mut vector);
        let query = SearchQuery {
            vector_name: String::new(),
            target: vector.into(),
            limit: 20,
            filter: None,
            exact: true,
            ef: None,
            with_payload: false,
            with_vectors: false,
            score_threshold: None,
        };
        let found = body.index.search(&query, &|id| body.payload(id));
        let others = other_queries(&query).map(|query| body.index.search(&query, &|id| body.payload(id)));
        let mut seen = format!(
            "{} {:x} {found:?} {others:?} {}",
            body.applied(),
            body.index.vectors_digest(),
            body.index.points()
        );
        for n in 0..3 {
            let filter = serde_json::from_value(serde_json::json!({"equals": {"path": "n", "value": n}})).unwrap();
            let _ = write!(seen, " {}", body.index.count(Some(&filter), &|id| body.payload(id)));
        }
        seen
    }

    fn expected(&self, records: Records) -> Expected {
        Expected { machine: self.machine.clone(), records, seen: self.seen() }
    }

    /// Why this is not what it must be.
    fn differs(&self, expected: &Expected, records: &Records) -> Option<String> {
        if self.machine != expected.machine {
            return Some(format!("machine {:?}\n instead of {:?}", self.machine, expected.machine));
        }
        if *records != expected.records {
            let ids: BTreeSet<_> = records.keys().chain(expected.records.keys()).collect();
            let wrong: Vec<_> = ids.into_iter().filter(|id| records.get(*id) != expected.records.get(*id)).collect();
            return Some(format!("records of {wrong:?} differ"));
        }
        // What is stored must agree with what was loaded.
        let store = self.state.read().store.clone();
        match store.load() {
            Ok(Some(machine)) if machine == expected.machine => {}
            other => return Some(format!("the store holds the machine {other:?}")),
        }
        let seen = self.seen();
        (seen != expected.seen).then(|| format!("{seen}\n instead of {}", expected.seen))
    }
}

/// The files of a shard's directory, by path below it.
type Files = BTreeMap<PathBuf, Arc<Vec<u8>>>;

/// Copies what is there; of a file that is written or removed meanwhile, some of it.
fn copy_of(dir: &Path) -> Files {
    fn walk(root: &Path, dir: &Path, into: &mut Files) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, into);
            } else if let Ok(bytes) = fs::read(&path) {
                into.insert(path.strip_prefix(root).unwrap().to_owned(), Arc::new(bytes));
            }
        }
    }
    let mut files = Files::new();
    walk(dir, dir, &mut files);
    files
}

fn is_store(path: &Path) -> bool {
    path.iter().next().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("store-"))
}

fn generations(dir: &Path) -> BTreeSet<u64> {
    let names = fs::read_dir(dir).unwrap().flatten();
    names.filter_map(|entry| files::store_generation(entry.file_name().to_str()?)).collect()
}

/// How an image differs from the files that were there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Damage {
    /// The process ended, the disk did not.
    Killed,
    /// Nothing since the last flush has reached the disk.
    Dropped,
    /// Some blocks since the last flush have, others have not.
    Torn,
    /// The same, over several flushes: sled's do not make disks write.
    TornFarBack,
    /// A file ends at some block.
    Cut,
    /// Blocks read as zeros.
    Zeroed,
    /// Bits have changed.
    Flipped,
    /// Files are there, or are not, or are as they were.
    Names,
    /// A large value's own file is missing.
    NoBlob,
    /// An interrupted rebuild, or a removal that was lost.
    TwoGenerations,
    /// All of the store is gone.
    Gone,
    /// Left by an earlier life of the node, which must not count.
    EarlierLife,
}

const DAMAGES: [Damage; 12] = [
    Damage::Killed,
    Damage::Dropped,
    Damage::Torn,
    Damage::TornFarBack,
    Damage::Cut,
    Damage::Zeroed,
    Damage::Flipped,
    Damage::Names,
    Damage::NoBlob,
    Damage::TwoGenerations,
    Damage::Gone,
    Damage::EarlierLife,
];

/// Blocks of `new` over `old`, each with the given chance.
fn mixed(rng: &mut SmallRng, old: &[u8], new: &[u8]) -> Vec<u8> {
    let block = if rng.random_bool(0.5) { 512 } else { 4096 };
    let chance = [0.03, 0.3, 0.7, 0.97][rng.random_range(0..4)];
    let len = if rng.random_bool(0.7) { new.len() } else { old.len() };
    let mut out = old.to_vec();
    out.resize(len, 0);
    for start in (0..len.min(new.len())).step_by(block) {
        if rng.random_bool(chance) {
            let end = (start + block).min(len).min(new.len());
            out[start..end].copy_from_slice(&new[start..end]);
        }
    }
    out
}

/// A place in one of the store's files that is not just zeros, if there is any.
fn place(rng: &mut SmallRng, image: &Files) -> Option<(PathBuf, usize)> {
    let paths: Vec<&PathBuf> =
        image.iter().filter(|(path, bytes)| is_store(path) && !bytes.is_empty()).map(|(path, _)| path).collect();
    let path = (!paths.is_empty()).then(|| paths[rng.random_range(0..paths.len())].clone())?;
    let bytes = &image[&path];
    let used: Vec<usize> =
        (0..bytes.len()).step_by(512).filter(|at| bytes[*at..].iter().take(512).any(|byte| *byte != 0)).collect();
    let block = if used.is_empty() { 0 } else { used[rng.random_range(0..used.len())] };
    Some((path, (block + rng.random_range(0..512)).min(bytes.len() - 1)))
}

/// What a crash leaves of the store where `flushed` was there at each of the last flushes, oldest first, and `now` at the
/// end. Everything else is as it was at the end.
fn image(rng: &mut SmallRng, damage: Damage, flushed: &[Files], now: &Files) -> Files {
    let mut image = now.clone();
    let last = flushed.last().unwrap();
    let keep_durable = |of: &Files| -> Files {
        let store = of.iter().filter(|(path, _)| is_store(path));
        let rest = now.iter().filter(|(path, _)| !is_store(path));
        store.chain(rest).map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
    };
    match damage {
        Damage::Killed | Damage::EarlierLife => {}
        Damage::Dropped => image = keep_durable(last),
        Damage::Torn | Damage::TornFarBack => {
            let from = if damage == Damage::Torn { last } else { &flushed[rng.random_range(0..flushed.len())] };
            let old = keep_durable(from);
            image = old.clone();
            let empty = Arc::new(Vec::new());
            for (path, new) in now.iter().filter(|(path, _)| is_store(path)) {
                let old = old.get(path).unwrap_or(&empty);
                if old != new {
                    image.insert(path.clone(), Arc::new(mixed(rng, old, new)));
                }
            }
        }
        Damage::Names => {
            let old = keep_durable(last);
            let paths: BTreeSet<&PathBuf> = now.keys().chain(old.keys()).filter(|path| is_store(path)).collect();
            for path in paths {
                let kept = match rng.random_range(0..6) {
                    0 => None,
                    1 | 2 => old.get(path),
                    _ => now.get(path),
                };
                match kept {
                    Some(bytes) => image.insert(path.clone(), bytes.clone()),
                    None => image.remove(path),
                };
            }
        }
        Damage::Cut => {
            if let Some((path, at)) = place(rng, &image) {
                let len = at / 512 * 512;
                image.insert(path.clone(), Arc::new(now[&path][..len].to_vec()));
            }
        }
        Damage::Zeroed => {
            if let Some((path, at)) = place(rng, &image) {
                let mut bytes = now[&path].to_vec();
                let (start, end) = (at / 512 * 512, (at / 512 + rng.random_range(1..9)) * 512);
                let end = end.min(bytes.len());
                bytes[start..end].fill(0);
                image.insert(path, Arc::new(bytes));
            }
        }
        Damage::Flipped => {
            for _ in 0..rng.random_range(1..5) {
                if let Some((path, at)) = place(rng, &image) {
                    let mut bytes = image[&path].to_vec();
                    bytes[at] ^= 1 << rng.random_range(0..8);
                    image.insert(path, Arc::new(bytes));
                }
            }
        }
        Damage::NoBlob => {
            let is_blob = |path: &Path| path.iter().any(|part| part == "blobs");
            let blobs: Vec<PathBuf> = image.keys().filter(|path| is_store(path) && is_blob(path)).cloned().collect();
            if !blobs.is_empty() {
                image.remove(&blobs[rng.random_range(0..blobs.len())]);
            }
        }
        Damage::TwoGenerations => {
            let of = &flushed[rng.random_range(0..flushed.len())];
            let number = |path: &Path| files::store_generation(path.iter().next()?.to_str()?);
            let newest = now.keys().filter_map(|path| number(path)).max().unwrap_or(1);
            let other = if rng.random_bool(0.6) { newest + 1 } else { newest.saturating_sub(1) };
            for (path, bytes) in of.iter().filter(|(path, _)| number(path) == Some(newest)) {
                let below: PathBuf = path.iter().skip(1).collect();
                let bytes = match rng.random_range(0..4) {
                    0 => continue,
                    1 => Arc::new(mixed(rng, &[], bytes)),
                    _ => bytes.clone(),
                };
                image.insert(Path::new(&format!("store-{other}")).join(below), bytes);
            }
        }
        Damage::Gone => image.retain(|path, _| !is_store(path)),
    }
    image
}

/// How often what happened.
#[derive(Default, Debug)]
struct Tally {
    kept: u64,
    rebuilt: u64,
    /// Kept, and then the rest of the log could not be applied, so that the next start had to mend it.
    given_up_later: u64,
}

struct Life {
    rng: SmallRng,
    data: tempfile::TempDir,
    reference_data: tempfile::TempDir,
    subject: Replica,
    reference: Replica,
    log: Vec<Entry>,
    replies: Vec<Bytes>,
    purged: u64,
    snapshot: u64,
    /// By applied index, at every end of a batch.
    states: BTreeMap<u64, Expected>,
    flushed: Vec<Files>,
    tallies: BTreeMap<Damage, Tally>,
    panics: Arc<Mutex<Vec<String>>>,
}

impl Life {
    fn begin(seed: u64, panics: Arc<Mutex<Vec<String>>>) -> Self {
        let (data, reference_data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |dir: &tempfile::TempDir, kind| Replica::open(dir.path(), kind, &[], 0, 0).unwrap().0;
        let (subject, reference) = (open(&data, EngineKind::Sled), open(&reference_data, EngineKind::Memory));
        let mut life = Self {
            rng: SmallRng::seed_from_u64(seed),
            flushed: vec![copy_of(&files::shard_dir(data.path(), SHARD.0))],
            states: BTreeMap::from([(0, reference.expected(Records::new()))]),
            data,
            reference_data,
            subject,
            reference,
            log: Vec::new(),
            replies: Vec::new(),
            purged: 0,
            snapshot: 0,
            tallies: BTreeMap::new(),
            panics,
        };
        life.apply(vec![(None, Command::Configure { spec: spec(), home_epoch: 1 })], false);
        life
    }

    fn dir(&self) -> PathBuf {
        files::shard_dir(self.data.path(), SHARD.0)
    }

    fn end(&self) -> u64 {
        self.log.len() as u64
    }

    /// Applies one batch to both replicas. With `copy`, answers the directory as it was at some moment meanwhile.
    fn apply(&mut self, batch: Vec<(Option<RequestId>, Command)>, copy: bool) -> Option<Files> {
        let from = self.log.len();
        for (request, command) in batch {
            let envelope = Envelope { now_ms: self.end(), request, command };
            let payload = EntryPayload::Normal(Proposal(envelope.encode()));
            self.log.push(Entry { log_id: log_id(self.end() + 1), payload });
        }
        let entries = &self.log[from..];
        let dir = self.dir();
        let applying = AtomicBool::new(true);
        let wanted = self.rng.random_range(0..4);
        let (replies, copied) = std::thread::scope(|scope| {
            let copier = copy.then(|| {
                scope.spawn(|| {
                    let mut copied = copy_of(&dir);
                    for _ in 0..wanted {
                        if applying.load(Ordering::Relaxed) {
                            copied = copy_of(&dir);
                        }
                    }
                    copied
                })
            });
            let replies = self.subject.state.apply(&mut self.subject.machine, entries).unwrap();
            applying.store(false, Ordering::Relaxed);
            (replies, copier.map(|copier| copier.join().unwrap()))
        });
        assert_eq!(replies, self.reference.state.apply(&mut self.reference.machine, entries).unwrap());
        self.replies.extend(replies);
        let mut records = self.reference.records().unwrap();
        if let Some((_, before)) = self.states.last_key_value() {
            for (id, record) in &mut records {
                if let Some(same) = before.records.get(id).filter(|same| *same == record) {
                    record.clone_from(same);
                }
            }
        }
        self.states.insert(self.end(), self.reference.expected(records));
        copied
    }

    fn command(&mut self) -> (Option<RequestId>, Command) {
        let rng = &mut self.rng;
        let session = |rng: &mut SmallRng| SessionId(Uuid::from_bytes([rng.random_range(0..SESSIONS); 16]));
        let id = |rng: &mut SmallRng| PointId::Number(rng.random_range(0..IDS));
        let payload = |rng: &mut SmallRng| {
            let len = match rng.random_range(0..40) {
                0 => rng.random_range(130_000..200_000), // sled keeps such values in files of their own
                1..20 => rng.random_range(1_000..8_000),
                _ => rng.random_range(0..60),
            };
            let text = format!("{:x}", rng.next_u64()).repeat(len / 16);
            format!(r#"{{"n":{},"t":"{text}"}}"#, rng.random_range(0..3)).into_bytes()
        };
        let request = rng.random_bool(0.4).then(|| RequestId {
            session: session(rng),
            seq: rng.random_range(0..30),
            settled_below: if rng.random_bool(0.2) { rng.random_range(0..20) } else { 0 },
        });
        let command = match rng.random_range(0..20) {
            0..3 => {
                let (session, opened_at_ms) = (session(rng), self.log.len() as u64);
                return (None, Command::OpenSession { session, opened_at_ms });
            }
            3..6 => Command::Delete { ids: vec![id(rng)], precondition: None },
            6..8 => {
                let payload = payload(rng);
                Command::SetPayload { ids: vec![id(rng)], payload, mode: PayloadMode::Merge, precondition: None }
            }
            _ => {
                let ids: BTreeSet<PointId> = (0..rng.random_range(1..6)).map(|_| id(rng)).collect();
                let mut points = Vec::new();
                for id in ids {
                    let mut values: Vec<f32> = (0..DIMENSION).map(|_| rng.random_range(-1.0..1.0)).collect();
                    normalize(&mut values);
                    let vectors = if rng.random_bool(0.7) { vec![(String::new(), values)] } else { Vec::new() };
                    points.push(PointWrite { id, vectors, payload: payload(rng), others: others(rng) });
                }
                Command::Upsert { points, preconditions: Vec::new() }
            }
        };
        (request, command)
    }

    /// Remembers what a flush has left; a later crash may undo what comes after.
    fn note_flush(&mut self) {
        if self.flushed.len() >= 3 {
            self.flushed.remove(0);
        }
        self.flushed.push(copy_of(&self.dir()));
    }

    fn stop_and_start(&mut self) {
        self.subject.state.close();
        let none = tempfile::tempdir().unwrap();
        self.subject = Replica::open(none.path(), EngineKind::Memory, &[], 0, 0).unwrap().0; // the store is let go
        let before = generations(&self.dir());
        let (subject, records) =
            Replica::open(self.data.path(), EngineKind::Sled, &self.log, self.end(), self.purged).unwrap();
        assert_eq!(before, generations(&self.dir()), "after a clean stop the store is kept");
        assert_eq!(subject.differs(&self.states[&self.end()], &records), None);
        self.subject = subject;
        self.note_flush();
    }

    fn take_snapshot(&mut self) {
        self.subject.state.capture(&self.subject.machine).write().unwrap();
        self.snapshot = self.end();
        self.subject.state.collect_garbage().unwrap();
        if self.rng.random_bool(0.5) {
            self.purged = self.snapshot;
        }
    }

    fn seal_and_install(&mut self) {
        let sources = match self.rng.random_bool(0.3) {
            true => self.subject.state.read().index.manifest().iter().map(|segment| segment.hash).collect(),
            false => Vec::new(),
        };
        self.apply(vec![(None, Command::Seal { vector: String::new(), sources, builder: me() })], false);
        let segment = self.end();
        self.reference.state.take_work(segment);
        let Some(Some(work)) = self.subject.state.take_work(segment) else { return };
        let members = work.members.len() as u64;
        let file = Segment::build(&work).unwrap();
        let hash = Segment::file_hash(&file).unwrap();
        for state in [&self.subject.state, &self.reference.state] {
            let path = state.incoming_dir().join("built");
            fs::write(&path, &file).unwrap();
            state.adopt_segment(segment, hash, &path).unwrap();
        }
        self.apply(vec![(None, Command::Install { segment, hash, members, bytes: file.len() as u64 })], false);
    }

    fn step(&mut self) -> Result<(), String> {
        let mut copied = None;
        match self.rng.random_range(0..100) {
            0..8 => {
                self.subject.state.close();
                self.note_flush();
            }
            8..11 => self.stop_and_start(),
            11..14 => self.take_snapshot(),
            14..17 => self.seal_and_install(),
            _ => {
                let batch = (0..self.rng.random_range(1..5)).map(|_| self.command()).collect();
                let copy = self.rng.random_bool(0.2);
                copied = self.apply(batch, copy);
            }
        }
        if copied.is_none() && self.rng.random_bool(0.3) {
            copied = Some(copy_of(&self.dir()));
        }
        match copied {
            Some(now) => self.judge(&now),
            None => Ok(()),
        }
    }

    /// Starts one image out of `now`, and says what is wrong with what comes of it.
    fn judge(&mut self, now: &Files) -> Result<(), String> {
        let damage = DAMAGES[self.rng.random_range(0..DAMAGES.len())];
        let image = image(&mut self.rng, damage, &self.flushed, now);
        // What was applied may not have been durable here yet: others made the majority.
        let floor = self.snapshot.max(self.purged).max(self.end().saturating_sub(8));
        let durable = if self.rng.random_bool(0.5) { self.end() } else { self.rng.random_range(floor..=self.end()) };
        let data = tempfile::tempdir().unwrap();
        let dir = files::shard_dir(data.path(), SHARD.0);
        for (path, bytes) in &image {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes.as_slice()).unwrap();
        }
        let judged = catch_unwind(AssertUnwindSafe(|| {
            if damage == Damage::EarlierLife {
                let earlier = ReplicaId { node: NodeId(1), incarnation: Incarnation(6) };
                fs::write(dir.join("owner"), files::owner_text(earlier)).unwrap();
                return self.starts_empty(data.path()).map(|()| Tally { rebuilt: 1, ..Tally::default() });
            }
            self.starts(data.path(), durable)
        }));
        let outcome = match judged {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("a panic came through: {:?}", self.panics.lock().unwrap().last())),
        };
        self.panics.lock().unwrap().clear();
        let at = format!("{damage:?} at entry {} with {durable} durable", self.end());
        let counted = outcome.map_err(|wrong| format!("{at}: {wrong}"))?;
        let tally = self.tallies.entry(damage).or_default();
        tally.kept += counted.kept;
        tally.rebuilt += counted.rebuilt;
        tally.given_up_later += counted.given_up_later;
        Ok(())
    }

    fn starts_empty(&self, data: &Path) -> Result<(), String> {
        let (replica, records) = Replica::open(data, EngineKind::Sled, &[], 0, 0)?;
        if replica.applied() != 0 || !records.is_empty() || !replica.machine.sessions.is_empty() {
            return Err(format!("an earlier life's state counts: {} records", records.len()));
        }
        Ok(())
    }

    fn starts(&self, data: &Path, durable: u64) -> Result<Tally, String> {
        let dir = files::shard_dir(data, SHARD.0);
        let before = generations(&dir);
        let open = |durable| Replica::open(data, EngineKind::Sled, &self.log, durable, self.purged);
        let (mut replica, records) = open(durable)?;
        let kept = generations(&dir).is_subset(&before);
        let applied = replica.applied();
        let mut tally = Tally { kept: kept.into(), rebuilt: (!kept).into(), given_up_later: 0 };
        if kept && !(self.snapshot..=durable).contains(&applied) {
            return Err(format!("a store at {applied} is kept, beyond snapshot {} or log", self.snapshot));
        }
        if !kept && applied != self.snapshot {
            return Err(format!("built anew from snapshot {}, and yet at {applied}", self.snapshot));
        }
        let Some(expected) = self.states.get(&applied) else {
            return Err(format!("at {applied}, in the midst of a batch"));
        };
        if let Some(wrong) = replica.differs(expected, &records) {
            return Err(format!("{} at {applied} is wrong: {wrong}", if kept { "kept" } else { "built anew" }));
        }
        // The leader sends again what this log had lost.
        let rest = |replica: &mut Replica| -> Result<(), String> {
            while replica.applied() < self.end() {
                let from = replica.applied() as usize;
                let until = (from + 1 + from % 7).min(self.log.len());
                let replies = replica.state.apply(&mut replica.machine, &self.log[from..until]);
                if replies.map_err(|error| format!("refused: {error}"))? != self.replies[from..until] {
                    return Err(format!("entries {from} to {until} are answered otherwise than before"));
                }
            }
            Ok(())
        };
        if let Err(wrong) = rest(&mut replica) {
            if !wrong.starts_with("refused") {
                return Err(wrong);
            }
            // As production does it: the replica ends, and is started again from what is on disk.
            tally.given_up_later += 1;
            drop(replica);
            replica = open(self.end())?.0;
            rest(&mut replica)?;
        }
        let last = &self.states[&self.end()];
        let arrived = |replica: &Replica| match replica.records() {
            Ok(records) => replica.differs(last, &records),
            Err(error) => Some(error),
        };
        if let Some(wrong) = arrived(&replica) {
            return Err(format!("wrong at the end: {wrong}"));
        }
        replica.state.close();
        let before = generations(&dir);
        drop(replica);
        let (replica, _) = open(self.end())?;
        if let Some(wrong) = arrived(&replica) {
            return Err(format!("wrong after a clean stop: {wrong}"));
        }
        if before != generations(&dir) {
            return Err("built anew after a clean stop".to_owned());
        }
        Ok(tally)
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn what_a_crash_leaves_is_rebuilt_or_is_what_was_committed() {
    let (first, lives) = match std::env::var("NEARRING_CRASH_SEED") {
        Ok(_) => (number("NEARRING_CRASH_SEED", 0), 1),
        Err(_) => (0, number("NEARRING_CRASH_LIVES", 2)),
    };
    let steps = number("NEARRING_CRASH_STEPS", 160);
    // sled panics on what it cannot read; what matters is that it does not come through.
    let panics = Arc::new(Mutex::new(Vec::new()));
    let (kept, hook) = (panics.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| kept.lock().unwrap().push(panic.to_string())));
    let (now, began) = (Arc::new(AtomicU64::new(u64::MAX)), Instant::now());
    let watched = now.clone();
    std::thread::spawn(move || {
        let mut seen = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let step = watched.load(Ordering::Relaxed);
            if step != seen.0 {
                seen = (step, Instant::now());
            } else if seen.1.elapsed() > PATIENCE {
                eprintln!("a start hangs; NEARRING_CRASH_SEED={} shows it", step >> 32);
                std::process::abort();
            }
        }
    });
    let mut tallies: BTreeMap<Damage, Tally> = BTreeMap::new();
    let mut wrong = Vec::new();
    for seed in first..first + lives {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let mut life = Life::begin(seed, panics.clone());
            for step in 0..steps {
                now.store(seed << 32 | step, Ordering::Relaxed);
                life.step()?;
            }
            drop(life.reference_data);
            Ok::<_, String>(life.tallies)
        }));
        match ended {
            Ok(Ok(counted)) => {
                for (damage, more) in counted {
                    let tally = tallies.entry(damage).or_default();
                    tally.kept += more.kept;
                    tally.rebuilt += more.rebuilt;
                    tally.given_up_later += more.given_up_later;
                }
            }
            Ok(Err(reason)) => wrong.push(format!("NEARRING_CRASH_SEED={seed}: {reason}")),
            Err(_) => wrong.push(format!("NEARRING_CRASH_SEED={seed}: {:?}", panics.lock().unwrap().last())),
        }
    }
    std::panic::set_hook(hook);
    now.store(u64::MAX - 1, Ordering::Relaxed);
    for (damage, tally) in &tallies {
        println!("{:15} {tally:?}", format!("{damage:?}"));
    }
    let sum = |of: fn(&Tally) -> u64| tallies.values().map(of).sum::<u64>();
    println!("{} kept, {} rebuilt, in {:.1?}", sum(|tally| tally.kept), sum(|tally| tally.rebuilt), began.elapsed());
    assert!(wrong.is_empty(), "{} lives of {lives} went wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tallies[&Damage::Killed].kept > 0, "no store is ever kept");
    // Of one kind of damage there are few images, and when sled writes is its own affair: together they must not all be kept.
    let damaged = [Damage::Torn, Damage::TornFarBack, Damage::Cut, Damage::Zeroed, Damage::Flipped];
    let rebuilt: u64 = damaged.iter().filter_map(|damage| tallies.get(damage)).map(|tally| tally.rebuilt).sum();
    assert!(rebuilt > 0, "no damaged store is ever rebuilt");
}
