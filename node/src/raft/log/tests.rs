#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;
use std::future::Future;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use nearring_proto::ids::ReplicaId;
use openraft::storage::{EntryResponder, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId as _;
use openraft::{EntryPayload, StorageError};
use proptest::prelude::*;

use super::fault::FaultMedium;
use super::*;
use crate::medium::OsMedium;
use crate::raft::{Proposal, StoredMembership, scope};

const SMALL: LogSettings = LogSettings { file_bytes: 512, budget_bytes: 2048, cache_bytes: 0 };

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scope(7, future))
}

fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

async fn open(medium: &FaultMedium, settings: LogSettings) -> Result<SharedLog, LogError> {
    SharedLog::open(Arc::new(medium.clone()), dir(), Compute::Inline, settings).await
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::alias::LeaderIdOf::<TypeConfig>::new(term, ReplicaId::default()).to_committed(), index)
}

fn vote(term: u64) -> Vote {
    Vote::new(term, ReplicaId::from(3))
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let payload = if bytes == 0 {
        EntryPayload::Blank
    } else {
        EntryPayload::Normal(Proposal(Bytes::from(vec![index as u8; bytes])))
    };
    Entry { log_id: log_id(term, index), payload }
}

type Done = <openraft::alias::OneshotReceiverOf<TypeConfig, io::Result<()>> as Future>::Output;

/// Appends without waiting; the answer resolves with the callback.
async fn append(log: &mut GroupLog, entries: Vec<Entry>) -> io::Result<impl Future<Output = Done> + use<>> {
    let (tx, rx) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(tx)).await?;
    Ok(rx)
}

// ---- openraft's own suite ----

struct Builder;

/// What the suite asks of a state machine, which is not what is tested here.
#[derive(Clone, Default)]
struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<Snapshot>,
}

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, ()>;
type Meta = openraft::alias::SnapshotMetaOf<TypeConfig>;

impl RaftSnapshotBuilder<TypeConfig> for Arc<Mutex<Machine>> {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut machine = self.lock().unwrap();
        let meta = Meta { last_log_id: machine.applied, last_membership: machine.membership.clone() };
        machine.snapshot = Some(Snapshot { meta, snapshot: () });
        Ok(machine.snapshot.clone().unwrap())
    }
}

impl RaftStateMachine<TypeConfig> for Arc<Mutex<Machine>> {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let machine = self.lock().unwrap();
        Ok((machine.applied, machine.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let mut machine = self.lock().unwrap();
            machine.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                machine.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(crate::raft::Response::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &Meta, (): ()) -> Result<(), io::Error> {
        let mut machine = self.lock().unwrap();
        (machine.applied, machine.membership) = (meta.last_log_id, meta.last_membership.clone());
        machine.snapshot = Some(Snapshot { meta: meta.clone(), snapshot: () });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.lock().unwrap().snapshot.clone())
    }
}

impl StoreBuilder<TypeConfig, GroupLog, Arc<Mutex<Machine>>, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupLog, Arc<Mutex<Machine>>), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        // Small files and no cache: entries are read back from several files.
        let path = dir.path().join("log");
        let log = SharedLog::open(Arc::new(OsMedium), path, Compute::pool_of(1), SMALL).await.unwrap();
        Ok((dir, log.group(ShardId(5)), Arc::default()))
    }
}

#[test]
fn openrafts_own_suite_passes_on_real_files() {
    run(Suite::test_all(Builder)).unwrap();
}

// ---- against a model, through crashes ----

#[derive(Clone, Default, PartialEq, Debug)]
struct ModelGroup {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

type Model = BTreeMap<ShardId, ModelGroup>;

impl ModelGroup {
    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.log_id).or(self.purged)
    }
}

/// Everything the log answers.
async fn observe(log: &SharedLog) -> Model {
    let mut model = Model::new();
    for group in log.groups() {
        let mut reader = log.group(group);
        let observed = ModelGroup {
            vote: reader.read_vote().await.unwrap(),
            committed: reader.read_committed().await.unwrap(),
            purged: reader.purged(),
            entries: reader.entries(0..=u64::MAX).await.unwrap(),
        };
        let state = reader.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (observed.purged, observed.last()));
        model.insert(group, observed);
    }
    model
}

#[derive(Clone, Debug)]
enum Op {
    Vote(u64),
    Append { count: u64, bytes: usize },
    Truncate { back: u64 },
    Purge { ahead: u64 },
    Committed,
    Forget,
    Wait,
    Read { first: u64, count: u64 },
    StopAfter(u64),
    Crash { keep: u8, spoil: Option<u8>, names_stay: bool },
    Close,
}

fn op() -> impl Strategy<Value = (u64, Op)> {
    let op = prop_oneof![
        2 => (1..9u64).prop_map(Op::Vote),
        8 => (1..6u64, prop_oneof![0..40usize, 100..300usize]).prop_map(|(count, bytes)| Op::Append { count, bytes }),
        2 => (0..8u64).prop_map(|back| Op::Truncate { back }),
        3 => (0..12u64).prop_map(|ahead| Op::Purge { ahead }),
        2 => Just(Op::Committed),
        1 => Just(Op::Forget),
        4 => Just(Op::Wait),
        3 => (0..20u64, 1..9u64).prop_map(|(first, count)| Op::Read { first, count }),
        2 => (0..6u64).prop_map(Op::StopAfter),
        2 => (any::<u8>(), any::<Option<u8>>(), any::<bool>())
            .prop_map(|(keep, spoil, names_stay)| Op::Crash { keep, spoil, names_stay }),
        1 => Just(Op::Close),
    ];
    (1..4u64, op)
}

/// The log under test beside every state that it may come back with after a crash.
struct Run {
    medium: FaultMedium,
    settings: LogSettings,
    log: SharedLog,
    /// The states after each frame in the order of acceptance; the last one is what readers must see.
    history: Vec<Model>,
    /// The first one that may come back: whatever led to it was acknowledged.
    acknowledged: usize,
    term: u64,
}

impl Run {
    fn now(&self) -> Model {
        self.history.last().unwrap().clone()
    }

    fn then(&mut self, group: ShardId, change: impl FnOnce(&mut ModelGroup)) {
        let mut model = self.now();
        change(model.entry(group).or_default());
        model.retain(|_, group| *group != ModelGroup::default());
        self.history.push(model);
    }

    /// A failure must be one of the medium's making; then the process ends.
    async fn result(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.acknowledged = self.history.len() - 1,
            Err(_) => self.log.failed().now_or_never().map(|_| ()).expect("an error without a failure"),
        }
    }

    async fn apply(&mut self, group: ShardId, op: &Op) {
        self.term += 1;
        let mut log = self.log.group(group);
        let held = self.now().remove(&group).unwrap_or_default();
        let next = held.last().map_or(self.term % 2, |last| last.index + 1);
        match *op {
            Op::Vote(term) => {
                self.then(group, |model| model.vote = Some(vote(term)));
                let result = log.save_vote(&vote(term)).await;
                self.result(result).await;
            }
            Op::Append { count, bytes } => {
                let entries: Vec<Entry> = (next..next + count).map(|index| entry(self.term, index, bytes)).collect();
                if append(&mut log, entries.clone()).await.is_ok() {
                    for entry in entries {
                        self.then(group, |model| model.entries.push(entry));
                    }
                }
            }
            Op::Truncate { back } => {
                let keep = held.entries.len().saturating_sub(back as usize);
                let after = held.entries.get(keep.wrapping_sub(1)).map(|entry| entry.log_id);
                if log.truncate_after(after).await.is_ok() {
                    self.then(group, |model| model.entries.truncate(keep));
                }
            }
            Op::Purge { ahead } => {
                let first = held.entries.first().map_or(next, |entry| entry.log_id.index);
                // An entry's own id, or one beyond the log as after a snapshot.
                let upto =
                    held.entries.get(ahead as usize).map_or(log_id(self.term, first + ahead), |entry| entry.log_id);
                if log.purge(upto).await.is_ok() {
                    self.then(group, |model| {
                        model.purged = Some(upto);
                        model.entries.retain(|entry| entry.log_id.index > upto.index);
                    });
                }
            }
            Op::Committed => {
                if log.save_committed(held.last()).await.is_ok() {
                    self.then(group, |model| model.committed = held.last());
                }
            }
            Op::Forget => {
                self.then(group, |model| *model = ModelGroup::default());
                let result = self.log.forget(group).await;
                self.result(result).await;
            }
            Op::Wait => {
                let appended = append(&mut log, vec![]).await;
                let result = match appended {
                    Ok(done) => done.await.unwrap(),
                    Err(error) => Err(error),
                };
                self.result(result).await;
                if self.log.failed().now_or_never().is_none() {
                    assert_eq!(log.last_durable(), held.last());
                }
            }
            Op::Read { first, count } => {
                let range = first..first + count;
                let inside = held.entries.into_iter().filter(|entry| range.contains(&entry.log_id.index));
                assert_eq!(log.try_get_log_entries(range.clone()).await.unwrap(), inside.collect::<Vec<_>>());
            }
            Op::StopAfter(syncs) => self.medium.stop_after(syncs),
            Op::Crash { keep, spoil, names_stay } => self.crash(keep, spoil, names_stay).await,
            Op::Close => {
                self.log.close().await;
                if self.log.failed().now_or_never().is_none() {
                    self.acknowledged = self.history.len() - 1;
                }
                self.reopen(0, None, false).await;
            }
        }
    }

    async fn crash(&mut self, keep: u8, spoil: Option<u8>, names_stay: bool) {
        self.medium = self.medium.crash(names_stay, |unsynced| {
            if let (Some(at), false) = (spoil, unsynced.is_empty()) {
                let at = usize::from(at) % unsynced.len();
                unsynced[at] ^= 0x41;
            }
            unsynced.len() * usize::from(keep) / 255
        });
        self.reopen(keep, spoil, names_stay).await;
    }

    async fn reopen(&mut self, keep: u8, spoil: Option<u8>, names_stay: bool) {
        match open(&self.medium, self.settings).await {
            Ok(log) => self.log = log,
            // Stopped while it was opened; nobody wrote anything that can be torn but the opening.
            Err(LogError::Io(_)) => return Box::pin(self.crash(keep, spoil, names_stay)).await,
            Err(error) => panic!("a crash was taken for damage: {error}"),
        }
        let found = observe(&self.log).await;
        let at = self.history.iter().rposition(|state| *state == found);
        assert!(
            at.is_some_and(|at| at >= self.acknowledged),
            "came back with state {at:?}, {} was acknowledged of {:#?}\n{found:#?}",
            self.acknowledged,
            self.history
        );
        for (group, model) in &found {
            assert_eq!(self.log.group(*group).last_durable(), model.last());
        }
        self.history = vec![found];
        self.acknowledged = 0;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_survives_and_nothing_comes_back_out_of_order(
        ops in prop::collection::vec(op(), 1..80), cache in prop_oneof![Just(0u64), Just(600), Just(1 << 20)],
    ) {
        run(async {
            let medium = FaultMedium::default();
            let settings = LogSettings { cache_bytes: cache, ..SMALL };
            let log = open(&medium, settings).await.unwrap();
            let mut run = Run { medium, settings, log, history: vec![Model::new()], acknowledged: 0, term: 1 };
            for (group, op) in &ops {
                run.apply(ShardId(*group), op).await;
                if run.log.failed().now_or_never().is_some() {
                    run.crash(200, None, false).await;
                }
                assert_eq!(observe(&run.log).await, run.now(), "after {op:?}");
            }
            run.apply(ShardId(1), &Op::Crash { keep: 0, spoil: None, names_stay: false }).await;
            // A file stays only for an entry that somebody needs.
            for group in run.log.groups() {
                run.log.forget(group).await.unwrap();
            }
            run.log.close().await;
            assert_eq!(run.medium.list(&dir()).unwrap().len(), 1);
        });
    }
}

// ---- damage ----

fn last_len(medium: &FaultMedium) -> usize {
    medium.read(&dir().join(medium.list(&dir()).unwrap().pop().unwrap())).unwrap().len()
}

/// A log of several files that was closed; and its contents.
async fn closed_log() -> (FaultMedium, Model) {
    let medium = FaultMedium::default();
    let log = open(&medium, SMALL).await.unwrap();
    for round in 0..6 {
        for group in 1..3 {
            let mut log = log.group(ShardId(group));
            log.save_vote(&vote(round + 1)).await.unwrap();
            log.blocking_append([entry(round, 2 * round, 50), entry(round, 2 * round + 1, 0)]).await.unwrap();
        }
    }
    // In the last file something that a mark confirms.
    for term in 7.. {
        if (300..SMALL.file_bytes as usize).contains(&last_len(&medium)) {
            break;
        }
        log.group(ShardId(1)).save_vote(&vote(term)).await.unwrap();
    }
    log.close().await;
    (medium, observe(&log).await)
}

#[test]
fn any_byte_that_turns_over_is_damage_except_in_the_last_mark() {
    run(async {
        let (medium, model) = closed_log().await;
        let names = medium.list(&dir()).unwrap();
        assert!(names.len() > 2);
        let mut refused = 0;
        for (at, name) in names.iter().enumerate() {
            let path = dir().join(name);
            let len = medium.read(&path).unwrap().len();
            // Nothing follows the last mark that would confirm it.
            let confirmed = if at + 1 == names.len() { len - 50 } else { len };
            assert!(confirmed > 200, "the last mark is in a file of its own; choose other sizes");
            for offset in 0..len {
                let medium = medium.copy();
                medium.flip(&path, offset, 1 << (offset % 8));
                match open(&medium, SMALL).await {
                    Err(LogError::Damaged { file, .. }) => {
                        assert_eq!(file, path);
                        assert!(offset < confirmed);
                        refused += 1;
                    }
                    Err(LogError::NewerFormat { file, .. }) => assert!(file == path && (8..12).contains(&offset)),
                    Err(LogError::Io(error)) => panic!("{error}"),
                    Ok(log) => {
                        assert!(offset >= confirmed, "{name} {offset} of {len}");
                        assert_eq!(observe(&log).await, model);
                    }
                }
            }
        }
        assert!(refused > 1000, "{refused}");
    });
}

#[test]
fn damage_to_the_newest_batch_is_no_torn_tail_where_only_the_process_ended() {
    run(async {
        let medium = FaultMedium::default();
        let log = open(&medium, LogSettings { file_bytes: 1 << 20, ..SMALL }).await.unwrap();
        let mut group = log.group(ShardId(1));
        group.blocking_append([entry(1, 0, 50)]).await.unwrap();
        let before = last_len(&medium);
        group.blocking_append([entry(1, 1, 50)]).await.unwrap();
        let path = dir().join(medium.list(&dir()).unwrap().pop().unwrap());
        let after = last_len(&medium);
        for offset in before..after - 50 {
            let image = medium.copy();
            image.flip(&path, offset, 4);
            let outcome = open(&image, SMALL).await;
            assert!(matches!(outcome, Err(LogError::Damaged { .. })), "{offset} of {before}..{after}: {outcome:?}");
        }
        // The machine ended too, before the mark was on the disk: then there is nothing behind the batch to go by.
        let image = medium.copy();
        image.truncate(&path, after as u64 - 50).unwrap();
        assert_eq!(observe(&open(&image, SMALL).await.unwrap()).await, observe(&log).await);
    });
}

#[test]
fn a_missing_file_is_damage_and_a_newer_one_is_named() {
    run(async {
        let (medium, _) = closed_log().await;
        let names = medium.list(&dir()).unwrap();
        let missing = dir().join(&names[1]);
        let copy = medium.copy();
        copy.remove_file(&missing).unwrap();
        assert!(matches!(open(&copy, SMALL).await, Err(LogError::Damaged { file, .. }) if file == missing));
        medium.flip(&dir().join(&names[0]), 8, 1 ^ 9);
        assert!(matches!(open(&medium, SMALL).await, Err(LogError::NewerFormat { found: 9, known: 1, .. })));
    });
}

#[test]
fn damage_behind_a_running_log_is_an_error_of_the_reader_and_never_another_entry() {
    run(async {
        let medium = FaultMedium::default();
        let log = open(&medium, LogSettings { file_bytes: 1 << 20, ..SMALL }).await.unwrap();
        let mut group = log.group(ShardId(1));
        group.blocking_append([entry(1, 0, 500), entry(1, 1, 500)]).await.unwrap();
        let path = dir().join(medium.list(&dir()).unwrap().pop().unwrap());
        let len = medium.read(&path).unwrap().len();
        medium.flip(&path, len - 100, 4);
        assert_eq!(group.entries(0..=0).await.unwrap(), vec![entry(1, 0, 500)]);
        assert_eq!(group.entries(0..=1).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    });
}

// ---- size ----

#[test]
fn an_idle_group_that_keeps_old_files_is_named_and_its_purge_frees_them() {
    run(async {
        let medium = FaultMedium::default();
        let log = open(&medium, SMALL).await.unwrap();
        let (mut idle, mut busy) = (log.group(ShardId(9)), log.group(ShardId(4)));
        idle.save_vote(&vote(1)).await.unwrap();
        idle.blocking_append([entry(1, 1, 10)]).await.unwrap();
        assert_eq!(log.pinning(), None);
        for index in 1..100 {
            busy.blocking_append([entry(1, index, 100)]).await.unwrap();
            busy.purge(log_id(1, index)).await.unwrap();
        }
        assert!(log.size_bytes() > SMALL.budget_bytes);
        assert_eq!(log.pinning(), Some(ShardId(9)));
        idle.purge(log_id(1, 1)).await.unwrap();
        busy.blocking_append([entry(1, 100, 100)]).await.unwrap();
        assert!(log.size_bytes() < 2 * SMALL.file_bytes, "{}", log.size_bytes());
        assert_eq!(log.pinning(), None);
        // The vote was in the first file; every file since has it.
        let medium = medium.crash(false, |_| 0);
        let log = open(&medium, SMALL).await.unwrap();
        assert_eq!(log.group(ShardId(9)).read_vote().await.unwrap(), Some(vote(1)));
        assert_eq!(log.groups(), vec![ShardId(4), ShardId(9)]);
    });
}

#[test]
fn messages_and_memory_are_bounded_by_bytes() {
    run(async {
        let medium = FaultMedium::default();
        let settings = LogSettings { cache_bytes: 3 << 20, ..LogSettings::default() };
        let log = open(&medium, settings).await.unwrap();
        let mut group = log.group(ShardId(1));
        let all: Vec<Entry> =
            (0..10).map(|index| entry(1, index, if index == 9 { 5 << 20 } else { 1 << 20 })).collect();
        group.blocking_append(all.clone()).await.unwrap();
        assert!(log.0.state().images.held_bytes() <= settings.cache_bytes);
        assert_eq!(group.limited_get_log_entries(0, 10).await.unwrap(), all[..3]);
        assert_eq!(group.limited_get_log_entries(9, 10).await.unwrap(), all[9..]);
        assert_eq!(group.try_get_log_entries(..).await.unwrap(), all);
    });
}

// ---- the writer ----

#[test]
fn what_queued_up_shares_a_sync() {
    run(async {
        let medium = FaultMedium::default();
        let log = open(&medium, LogSettings::default()).await.unwrap();
        let before = medium.syncs();
        let mut waiting = Vec::new();
        for number in 0..100 {
            waiting.push(append(&mut log.group(ShardId(number)), vec![entry(1, 1, 100)]).await.unwrap());
        }
        for done in waiting {
            done.await.unwrap().unwrap();
        }
        assert_eq!(medium.syncs() - before, 1);
    });
}

#[test]
fn after_a_failed_sync_or_a_full_disk_nobody_is_told_otherwise() {
    run(async {
        for full in [false, true] {
            let medium = FaultMedium::default();
            let log = open(&medium, LogSettings::default()).await.unwrap();
            let mut group = log.group(ShardId(1));
            group.save_vote(&vote(1)).await.unwrap();
            group.blocking_append([entry(1, 1, 100)]).await.unwrap();
            assert!(log.failed().now_or_never().is_none());
            if full {
                medium.set_capacity(Some(400))
            } else {
                medium.fail_syncs(true)
            }
            let first = append(&mut group, vec![entry(1, 2, 100)]).await.unwrap();
            let second = append(&mut log.group(ShardId(2)), vec![entry(1, 1, 100)]).await.unwrap();
            assert!(first.await.unwrap().is_err());
            assert!(second.await.unwrap().is_err());
            // It has passed for the medium, not for the log.
            medium.set_capacity(None);
            medium.fail_syncs(false);
            assert!(!log.failed().await.is_empty());
            assert!(group.save_vote(&vote(2)).await.is_err());
            assert!(append(&mut group, vec![entry(1, 3, 100)]).await.is_err());
            assert!(log.forget(ShardId(1)).await.is_err());
            assert_eq!(group.last_durable(), Some(log_id(1, 1)));
            log.close().await;
            let medium = medium.crash(false, |_| 0);
            let group = open(&medium, LogSettings::default()).await.unwrap().group(ShardId(1));
            assert_eq!(group.last_durable(), Some(log_id(1, 1)));
        }
    });
}

#[test]
fn a_log_with_a_gap_is_refused() {
    run(async {
        let log = open(&FaultMedium::default(), SMALL).await.unwrap();
        let mut group = log.group(ShardId(1));
        group.blocking_append([entry(1, 7, 0)]).await.unwrap();
        assert!(append(&mut group, vec![entry(1, 9, 0)]).await.is_err());
        assert!(append(&mut group, vec![entry(1, 7, 0)]).await.is_err());
        assert!(append(&mut group, vec![entry(1, 8, 0), entry(1, 10, 0)]).await.is_err());
        assert_eq!(group.entries(0..=99).await.unwrap(), vec![entry(1, 7, 0)]);
        assert!(log.failed().now_or_never().is_none());
    });
}
