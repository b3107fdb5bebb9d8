//! The placement table as a Raft state machine, and the bytes it is logged and kept in.
//!
//! ```text
//! entry    = format u8 (1, 2, 3) · ProposeMetaRequest (protobuf) with nothing but its change
//! answer   = format u8 (1) · Result<Applied, Rejected> (JSON); only ever read by the process that wrote it
//! snapshot = "nrmeta" · format u8 (1, 2) · BLAKE3 of the body, 32 bytes · body
//! body     = length u32 · applied log id and membership (raft/codec.rs) · ClusterTable (protobuf)
//! ```
//! Format 2 tells of sparse or multi-vectors, which a build that knows only 1 would leave out; without them it is 1. An entry of
//! format 3 adds vectors to a collection.
//! The table lives in memory. What is durable is the last snapshot, one file `snapshot-INDEX-TERM` that is complete or
//! absent, and the log after it: a restart loads the one, Raft replays the other. **Rules:** what an entry does follows
//! from table and entry alone; an entry that this build cannot read stops the replica, since skipping it would make the
//! replicas differ; the table is published before the proposer is answered; a snapshot file stays while anybody sends it.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use nearring_proto::collection::CollectionSpec;
use nearring_proto::ids::ClusterId;
use nearring_proto::placement::table::{Applied, Change, Rejected, Table};
use nearring_proto::wire;
use openraft::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use prost::Message;
use tokio::sync::watch;

use crate::compute::Compute;
use crate::medium::{Medium, create_dir_durably, write_durably};
use crate::raft::group::{SnapshotFile, SnapshotMeta};
use crate::raft::{Entry, LogId, Response, StoredMembership, TypeConfig, codec};

/// The newest format of snapshots that is written and understood.
pub const FORMAT: u8 = 2;
/// The newest format of entries.
pub const FORMAT_OF_ENTRIES: u8 = 3;
/// The format of answers, and of entries and snapshots that need no newer one.
const FORMAT_FIRST: u8 = 1;
const SNAPSHOT_MAGIC: &[u8; 6] = b"nrmeta";
const SNAPSHOT_PREFIX: &str = "snapshot-";

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// Bytes of the meta group cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// Written by a newer version.
    #[error("{what} has format {found}, this version understands up to {understood}; upgrade this node")]
    NewerFormat {
        /// What was read.
        what: &'static str,
        /// The format found.
        found: u8,
        /// The newest known.
        understood: u8,
    },
    /// Not what was once written.
    #[error("{what} cannot be read: {reason}")]
    Damaged {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

fn damaged(what: &'static str, reason: impl ToString) -> ReadError {
    ReadError::Damaged { what, reason: reason.to_string() }
}

/// The bytes that are logged for `change`.
pub fn encode_change(change: &Change) -> Bytes {
    let request = wire::ProposeMetaRequest { change: Some(change.clone().into()), ..Default::default() };
    let mut bytes = vec![match change {
        Change::CreateCollection(spec) => format_of(spec),
        Change::UpdateCollection(update) if update.adds_vectors() => FORMAT_OF_ENTRIES,
        Change::UpdateCollection(update) if !update.sparse_vectors.is_empty() => FORMAT,
        _ => FORMAT_FIRST,
    }];
    bytes.extend_from_slice(&request.encode_to_vec());
    Bytes::from(bytes)
}

/// The change that was logged as `bytes`.
///
/// # Errors
/// A newer format, or not such bytes.
pub fn decode_change(bytes: &[u8]) -> Result<Change, ReadError> {
    const WHAT: &str = "an entry of the meta group";
    let request = wire::ProposeMetaRequest::decode(body(WHAT, bytes, FORMAT_OF_ENTRIES)?);
    let request = request.map_err(|error| damaged(WHAT, error))?;
    let change = request.change.ok_or_else(|| damaged(WHAT, "it holds no change that this version knows"))?;
    Change::try_from(change).map_err(|error| damaged(WHAT, error))
}

fn format_of(spec: &CollectionSpec) -> u8 {
    if spec.later().is_some() { FORMAT } else { FORMAT_FIRST }
}

fn encode_reply(reply: &Result<Applied, Rejected>) -> Bytes {
    let mut bytes = vec![FORMAT_FIRST];
    // Writing these types as JSON into memory has no way to fail; an empty answer is reported by its reader.
    bytes.extend(serde_json::to_vec(reply).unwrap_or_default());
    Bytes::from(bytes)
}

/// What the machine answered.
///
/// # Errors
/// Not such bytes.
pub fn decode_reply(bytes: &[u8]) -> Result<Result<Applied, Rejected>, ReadError> {
    const WHAT: &str = "an answer of the meta group";
    serde_json::from_slice(body(WHAT, bytes, FORMAT_FIRST)?).map_err(|error| damaged(WHAT, error))
}

fn body<'a>(what: &'static str, bytes: &'a [u8], understood: u8) -> Result<&'a [u8], ReadError> {
    match bytes.split_first() {
        None | Some((0, _)) => Err(damaged(what, "it has no format")),
        Some((&found, _)) if found > understood => Err(ReadError::NewerFormat { what, found, understood }),
        Some((_, body)) => Ok(body),
    }
}

/// Everything a snapshot holds.
#[derive(Clone, PartialEq, Debug)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    table: Arc<Table>,
}

impl State {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    /// Carries out one entry. Answers what the proposer is told: nothing for entries that carry no change.
    fn apply(&mut self, entry: Entry) -> Result<Bytes, ReadError> {
        let reply = match entry.payload {
            EntryPayload::Blank => Bytes::new(),
            EntryPayload::Normal(proposal) => {
                let change = decode_change(&proposal.0)?;
                encode_reply(&Arc::make_mut(&mut self.table).apply(&change))
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Bytes::new()
            }
        };
        self.applied = Some(entry.log_id);
        Ok(reply)
    }

    fn encode(&self) -> Vec<u8> {
        let raft = codec::encode(&(self.applied, self.membership.clone()));
        let mut body = u32::try_from(raft.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        body.extend_from_slice(&raft);
        body.extend_from_slice(&wire::ClusterTable::from(Table::clone(&self.table)).encode_to_vec());
        let mut file = SNAPSHOT_MAGIC.to_vec();
        let formats = self.table.collections.values().map(|collection| format_of(&collection.spec));
        file.push(formats.max().unwrap_or(FORMAT_FIRST));
        file.extend_from_slice(blake3::hash(&body).as_bytes());
        file.extend_from_slice(&body);
        file
    }

    fn decode(file: &Bytes) -> Result<Self, ReadError> {
        const WHAT: &str = "a snapshot of the meta group";
        let rest = file.strip_prefix(SNAPSHOT_MAGIC).ok_or_else(|| damaged(WHAT, "it is no such file"))?;
        let rest = self::body(WHAT, rest, FORMAT)?;
        let (hash, body) = rest.split_first_chunk::<32>().ok_or_else(|| damaged(WHAT, "it is cut off"))?;
        if blake3::hash(body).as_bytes() != hash {
            return Err(damaged(WHAT, "its checksum does not match"));
        }
        let (len, body) = body.split_first_chunk::<4>().ok_or_else(|| damaged(WHAT, "it is cut off"))?;
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (raft, table) = body.split_at_checked(len).ok_or_else(|| damaged(WHAT, "it is cut off"))?;
        let (applied, membership) =
            codec::decode(Bytes::copy_from_slice(raft)).map_err(|error| damaged(WHAT, error))?;
        let table = wire::ClusterTable::decode(table).map_err(|error| damaged(WHAT, error))?;
        let table = Table::try_from(table).map_err(|error| damaged(WHAT, error))?;
        Ok(Self { applied, membership, table: Arc::new(table) })
    }
}

/// The meta group's state cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The medium failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the medium said.
        source: io::Error,
    },
    /// The snapshot is not intact. The log before it is gone, so this life of the node has lost part of its state.
    #[error("{path}: {source}")]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// Another cluster's snapshot.
    #[error("{path} belongs to cluster {found}, this node to {expected}; check the data directory")]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose node this is.
        expected: ClusterId,
    },
}

/// A durable snapshot file. It is removed once a newer one has taken its place and nobody uses it any more.
#[derive(Debug)]
struct Kept {
    medium: Arc<dyn Medium>,
    path: PathBuf,
    len: u64,
    meta: SnapshotMeta,
    superseded: AtomicBool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.superseded.load(Ordering::Acquire)
            && let Err(error) = self.medium.remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an old snapshot of the meta group stays behind");
        }
    }
}

/// The newest snapshot; shared between the machine and the builder that runs beside it.
#[derive(Clone, Debug)]
struct Shelf {
    medium: Arc<dyn Medium>,
    compute: Compute,
    dir: PathBuf,
    current: Arc<Mutex<Option<Arc<Kept>>>>,
}

impl Shelf {
    fn path(&self, meta: &SnapshotMeta) -> PathBuf {
        let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.committed_leader_id().term));
        self.dir.join(format!("{SNAPSHOT_PREFIX}{index:020}-{term}"))
    }

    fn current(&self) -> Option<Snapshot> {
        let kept = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (path, len, meta) = (kept.path.clone(), kept.len, kept.meta.clone());
        Some(Snapshot { meta, snapshot: SnapshotFile { path, len, source: None, guard: Some(kept) } })
    }

    /// Puts a durable file in the place of the one before, unless that is newer: a builder may finish after an install.
    fn put(&self, path: PathBuf, len: u64, meta: SnapshotMeta) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = current.as_ref() {
            if before.path == path {
                return;
            }
            if before.meta.last_log_id > meta.last_log_id {
                let late = Kept { medium: self.medium.clone(), path, len, meta, superseded: AtomicBool::new(true) };
                drop(late);
                return;
            }
            before.superseded.store(true, Ordering::Release);
        }
        let kept = Kept { medium: self.medium.clone(), path, len, meta, superseded: AtomicBool::new(false) };
        *current = Some(Arc::new(kept));
    }
}

/// The meta group's state machine. Publishes every table it reaches.
#[derive(Debug)]
pub struct Machine {
    state: State,
    shelf: Shelf,
    publish: watch::Sender<Arc<Table>>,
}

impl Machine {
    /// Loads the newest snapshot in `dir`, or begins with the empty table of `cluster`. Blocks on the medium.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::Snapshot`] means that this life of the node has to end.
    pub fn open(
        medium: Arc<dyn Medium>,
        compute: Compute,
        dir: &Path,
        cluster: ClusterId,
        publish: watch::Sender<Arc<Table>>,
    ) -> Result<Self, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        // Its own name, and that of the directory of all lives.
        create_dir_durably(&*medium, dir, 2).map_err(io(dir))?;
        let mut names = medium.list(dir).map_err(io(dir))?;
        // Names sort by index. All but the newest are leftovers of a stop between writing one and removing another.
        let newest = names.iter().rposition(|name| name.starts_with(SNAPSHOT_PREFIX) && !name.ends_with(".tmp"));
        let newest = newest.map(|at| dir.join(names.remove(at)));
        for name in names {
            medium.remove_file(&dir.join(&name)).map_err(io(&dir.join(&name)))?;
        }
        let shelf = Shelf { medium, compute, dir: dir.to_owned(), current: Arc::default() };
        let empty =
            State { applied: None, membership: StoredMembership::default(), table: Arc::new(Table::new(cluster)) };
        let Some(path) = newest else { return Ok(Self { state: empty, shelf, publish }) };
        let bytes = shelf.medium.read(&path).map_err(io(&path))?;
        let state = State::decode(&bytes).map_err(|source| OpenError::Snapshot { path: path.clone(), source })?;
        if state.table.cluster != cluster {
            return Err(OpenError::OtherCluster { path, found: state.table.cluster, expected: cluster });
        }
        shelf.put(path, bytes.len() as u64, state.meta());
        let machine = Self { state, shelf, publish };
        machine.publish();
        Ok(machine)
    }

    /// Readers see tables in the order of their epochs, also when the log is replayed after a restart.
    fn publish(&self) {
        self.publish.send_if_modified(|published| {
            let newer = self.state.table.epoch > published.epoch || self.state.table.cluster != published.cluster;
            if newer {
                *published = self.state.table.clone();
            }
            newer
        });
    }
}

/// Writes one snapshot of the state as it was when the builder was made.
#[derive(Debug)]
pub struct SnapshotBuilder {
    state: State,
    shelf: Shelf,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (meta, shelf) = (self.state.meta(), self.shelf.clone());
        let path = shelf.path(&meta);
        if shelf.current().is_none_or(|snapshot| snapshot.snapshot.path != path) {
            let bytes = self.state.encode();
            let len = bytes.len() as u64;
            let (medium, target) = (shelf.medium.clone(), path.clone());
            shelf.compute.io(move || write_durably(&*medium, &target, &bytes)).await?;
            shelf.put(path, len, meta);
        }
        shelf.current().ok_or_else(|| io::Error::other("the snapshot just written is gone"))
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.state.applied, self.state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let log_id = entry.log_id;
            let reply = self
                .state
                .apply(entry)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("log entry {log_id}: {error}")))?;
            answers.extend(responder.map(|responder| (responder, Response(reply))));
        }
        self.publish();
        for (responder, reply) in answers {
            responder.send(reply);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { state: self.state.clone(), shelf: self.shelf.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let (shelf, target) = (self.shelf.clone(), self.shelf.path(meta));
        let expected = meta.last_log_id;
        let (medium, from, to) = (shelf.medium.clone(), snapshot.path.clone(), target.clone());
        let install = move || -> Result<(State, u64), io::Error> {
            let bytes = medium.read(&from)?;
            let state = State::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if state.applied != expected {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is of another log position"));
            }
            if from != to {
                medium.rename(&from, &to)?;
                to.parent().map_or(Ok(()), |dir| medium.sync_dir(dir))?;
            }
            Ok((state, bytes.len() as u64))
        };
        let (state, len) = shelf.compute.io(install).await?;
        if state.table.cluster != self.state.table.cluster {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot is of another cluster"));
        }
        self.shelf.put(target, len, state.meta());
        self.state = state;
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.shelf.current())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::{BTreeMap, BTreeSet};

    use futures::{FutureExt, stream};
    use nearring_proto::collection::CollectionUpdate;
    use nearring_proto::ids::{Incarnation, NodeId, ReplicaId, ShardId};
    use nearring_proto::placement::table::Node;
    use openraft::BasicNode;
    use openraft::vote::RaftLeaderId as _;
    use proptest::prelude::*;

    use super::*;
    use crate::medium::OsMedium;
    use crate::raft::{Membership, Proposal};

    type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;

    /// Inline work never waits.
    fn now<T>(future: impl Future<Output = T>) -> T {
        future.now_or_never().expect("no waiting")
    }

    fn cluster() -> ClusterId {
        ClusterId(uuid::Uuid::from_u128(5))
    }

    fn open(dir: &Path) -> Result<(Machine, watch::Receiver<Arc<Table>>), OpenError> {
        let (publish, tables) = watch::channel(Arc::new(Table::new(cluster())));
        Machine::open(Arc::new(OsMedium), Compute::Inline, dir, cluster(), publish).map(|machine| (machine, tables))
    }

    fn entry(index: u64, payload: crate::raft::Payload) -> Entry {
        let leader = LeaderId::new(3, ReplicaId::default()).to_committed();
        Entry { log_id: LogId::new(leader, index), payload }
    }

    fn apply(machine: &mut Machine, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
        let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
        now(machine.apply(stream::iter(entries)))
    }

    fn snapshot(machine: &mut Machine) -> Snapshot {
        now(async { machine.get_snapshot_builder().await.build_snapshot().await }).unwrap()
    }

    fn node(id: u64, incarnation: u64) -> Node {
        let (id, incarnation) = (NodeId(id), Incarnation(incarnation));
        Node { id, incarnation, address: format!("{id}:7000"), zone: String::new() }
    }

    fn spec(name: String) -> CollectionSpec {
        let vector = wire::VectorSpec { dimension: 4, metric: wire::Metric::Cosine.into(), ..Default::default() };
        let vectors = [(String::new(), vector)].into();
        let sparse_vectors = if name == "b" { [("words".to_owned(), Default::default())].into() } else { [].into() };
        let spec = wire::CollectionSpec { name, vectors, sparse_vectors, ..Default::default() };
        CollectionSpec::try_from(spec).unwrap()
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (1..5u64, 1..4u64).prop_map(|(id, life)| Change::Join(node(id, life))),
            "[ab]".prop_map(|name| Change::CreateCollection(spec(name))),
            ("[ab]", 0..200u32).prop_map(|(name, ef_search)| {
                Change::UpdateCollection(CollectionUpdate { name, ef_search, ..Default::default() })
            }),
            "[ab]".prop_map(Change::DeleteCollection),
            (1..20u64).prop_map(|id| Change::ShardReady(ShardId(id))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
        /// Whatever is applied, snapshotted, restarted, replayed and sent to another replica: the table is what the
        /// changes make of it.
        #[test]
        fn replicas_agree_with_the_changes_whatever_happens_between(
            changes in prop::collection::vec((change(), 0..4u8), 1..40),
        ) {
            let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (mut machine, mut tables) = open(here.path()).unwrap();
            let (mut other, others) = open(there.path()).unwrap();
            let mut oracle = Table::new(cluster());
            let mut log: Vec<Entry> = Vec::new();
            for (at, (change, event)) in changes.iter().enumerate() {
                prop_assert_eq!(&decode_change(&encode_change(change)).unwrap(), change);
                let reply = oracle.apply(change);
                prop_assert_eq!(decode_reply(&encode_reply(&reply)).unwrap(), reply);
                let entry = entry(at as u64, EntryPayload::Normal(Proposal(encode_change(change))));
                log.push(entry.clone());
                apply(&mut machine, [entry]).unwrap();
                prop_assert_eq!(&**tables.borrow(), &oracle);
                match event {
                    1 => drop(snapshot(&mut machine)),
                    2 => {
                        drop(machine);
                        (machine, tables) = open(here.path()).unwrap();
                        let from = machine.state.applied.map_or(0, |id| id.index as usize + 1);
                        apply(&mut machine, log[from..].to_vec()).unwrap();
                    }
                    3 => {
                        let snapshot = snapshot(&mut machine);
                        let received = there.path().join("received");
                        std::fs::copy(&snapshot.snapshot.path, &received).unwrap();
                        let file = SnapshotFile { path: received, ..snapshot.snapshot };
                        now(other.install_snapshot(&snapshot.meta, file)).unwrap();
                        prop_assert_eq!(&**others.borrow(), &oracle);
                        prop_assert_eq!(&other.state, &machine.state);
                        prop_assert!(std::fs::read_dir(there.path()).unwrap().count() == 1);
                    }
                    _ => {}
                }
                prop_assert_eq!(&*machine.state.table, &oracle);
            }
        }
    }

    #[test]
    fn a_snapshot_keeps_the_membership_and_stays_while_it_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, _tables) = open(dir.path()).unwrap();
        let id = ReplicaId { node: NodeId(1), incarnation: Incarnation(9) };
        let members =
            Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, BasicNode { addr: "a:1".into() })]))
                .unwrap();
        apply(&mut machine, [entry(1, EntryPayload::Membership(members)), entry(2, EntryPayload::Blank)]).unwrap();
        let sent = snapshot(&mut machine);
        assert_eq!(snapshot(&mut machine).snapshot.path, sent.snapshot.path, "nothing new to write");
        apply(&mut machine, [entry(3, EntryPayload::Normal(Proposal(encode_change(&Change::Join(node(1, 1))))))])
            .unwrap();
        let newer = snapshot(&mut machine);
        assert_ne!(newer.snapshot.path, sent.snapshot.path);
        assert!(sent.snapshot.path.exists());
        let before = sent.snapshot.path.clone();
        drop(sent);
        assert!(!before.exists() && newer.snapshot.path.exists());
        drop((machine, newer));
        let (mut machine, tables) = open(dir.path()).unwrap();
        let (applied, membership) = now(machine.applied_state()).unwrap();
        assert_eq!((applied.unwrap().index, membership.voter_ids().next()), (3, Some(id)));
        assert_eq!(tables.borrow().nodes.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_stops_the_replica() {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, _tables) = open(dir.path()).unwrap();
        for bytes in [&b""[..], b"\x04of tomorrow", b"\x01", b"\x01\xff\xff"] {
            let entry = entry(1, EntryPayload::Normal(Proposal(Bytes::copy_from_slice(bytes))));
            assert!(apply(&mut machine, [entry]).is_err(), "{bytes:?}");
        }
        let newer = decode_change(b"\x04of tomorrow");
        assert!(matches!(newer, Err(ReadError::NewerFormat { found: 4, understood: 3, .. })));
        apply(&mut machine, [entry(1, EntryPayload::Normal(Proposal(encode_change(&Change::Join(node(1, 1))))))])
            .unwrap();
        let path = snapshot(&mut machine).snapshot.path;
        drop(machine);
        let intact = std::fs::read(&path).unwrap();
        for at in 0..intact.len() {
            let mut bytes = intact.clone();
            bytes[at] ^= 0x40;
            assert!(State::decode(&Bytes::from(bytes)).is_err(), "byte {at}");
            assert!(State::decode(&Bytes::copy_from_slice(&intact[..at])).is_err(), "cut to {at}");
        }
        std::fs::write(&path, &intact[..intact.len() - 1]).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Snapshot { .. })));
        std::fs::write(&path, &intact).unwrap();
        let (publish, _tables) = watch::channel(Arc::new(Table::new(cluster())));
        let other = ClusterId(uuid::Uuid::from_u128(6));
        let opened = Machine::open(Arc::new(OsMedium), Compute::Inline, dir.path(), other, publish);
        assert!(matches!(opened, Err(OpenError::OtherCluster { .. })));
    }
}
