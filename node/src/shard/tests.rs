//! A replica without Raft: entries in, stops of every kind, and the same state afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nearring_proto::collection::{CollectionSpec, IndexSpec, Modifier, MultiSpec, SparseSpec, VectorSpec};
use nearring_proto::ids::{Incarnation, NodeId, PointId, ReplicaId, ShardId};
use nearring_proto::query::{SearchQuery, Target};
use nearring_proto::vector::{Metric, MultiVector, ScalarKind, SparseVector, Vector, normalize};
use openraft::EntryPayload;
use openraft::vote::RaftLeaderId as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::maintain::write_segment;
use super::state::{Opened, ShardState};
use super::view::{View, ViewError};
use crate::index::segment::Segment;
use crate::machine::Machine;
use crate::machine::command::{Command, Envelope, PointWrite};
use crate::medium::{Medium, OsMedium};
use crate::raft::{Entry, LogId, Proposal, TypeConfig};
use crate::store::EngineKind;

const DIMENSION: usize = 8;

fn me() -> ReplicaId {
    ReplicaId { node: NodeId(1), incarnation: Incarnation(7) }
}

fn log_id(index: u64) -> LogId {
    let leader: openraft::alias::LeaderIdOf<TypeConfig> = RaftLeader::new(1, ReplicaId::default());
    LogId::new(leader.to_committed(), index)
}

type RaftLeader = openraft::impls::leader_id_std::LeaderId<u64, ReplicaId>;

fn spec() -> CollectionSpec {
    let vector = VectorSpec { dimension: DIMENSION as u32, metric: Metric::Cosine, scalar: ScalarKind::I8 };
    CollectionSpec {
        name: "c".into(),
        vectors: BTreeMap::from([(String::new(), vector)]),
        payload_indexes: BTreeMap::new(),
        shard_count: 1,
        replication_factor: 3,
        routing_separator: String::new(),
        index: IndexSpec::default(),
        documents: None,
        sparse_vectors: BTreeMap::from([("words".to_owned(), SparseSpec { modifier: Modifier::Idf })]),
        multi_vectors: BTreeMap::from([("tokens".to_owned(), MultiSpec { dimension: 2, metric: Metric::L2 })]),
    }
}

struct Replica {
    state: Arc<ShardState>,
    machine: Machine,
    log: Vec<Entry>,
}

impl Replica {
    fn open(dir: &Path, engine: EngineKind, log: Vec<Entry>) -> Self {
        let medium: Arc<dyn Medium> = Arc::new(OsMedium);
        let last = log.last().map(|entry| entry.log_id);
        let Opened { state, mut machine, replay, home_epoch } =
            ShardState::open(medium, engine, dir, ShardId(3), me(), last, None).unwrap();
        if let Some((from, to)) = replay {
            state.restore_from_entries(&log[from as usize - 1..to as usize], home_epoch).unwrap();
        }
        let applied = machine.meta.applied.map_or(0, |log_id| log_id.index) as usize;
        if applied < log.len() {
            state.apply(&mut machine, &log[applied..]).unwrap();
        }
        Self { state, machine, log }
    }

    fn apply(&mut self, command: Command) -> u64 {
        let envelope = Envelope { now_ms: 1, request: None, command };
        let index = self.log.len() as u64 + 1;
        self.log.push(Entry { log_id: log_id(index), payload: EntryPayload::Normal(Proposal(envelope.encode())) });
        self.state.apply(&mut self.machine, &self.log[index as usize - 1..]).unwrap();
        index
    }

    /// Everything a caller could see, as text.
    fn seen(&self) -> String {
        let body = self.state.read();
        let mut vector: Vec<f32> = (0..DIMENSION).map(|at| at as f32 - 2.5).collect();
        normalize(&mut vector);
        let mut query = SearchQuery {
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
        let exact = body.index.search(&query, &|id| body.payload(id)).unwrap();
        query.exact = false;
        let found = body.index.search(&query, &|id| body.payload(id)).unwrap();
        let others = other_queries(&query).map(|query| body.index.search(&query, &|id| body.payload(id)).unwrap());
        let counts = body.index.frequencies("words", &[1, 2, 3]);
        let segments: Vec<_> = body.index.manifest().iter().map(|segment| segment.hash).collect();
        format!(
            "{} {} {:x} {:x} {exact:?} {found:?} {others:?} {counts:?} {segments:?}",
            body.applied(),
            body.meta.points,
            body.meta.digest,
            body.index.vectors_digest()
        )
    }

    fn seal_and_install(&mut self, sources: Vec<[u8; 32]>) {
        let segment = self.apply(Command::Seal { vector: String::new(), sources, builder: me() });
        let Some(Some(work)) = self.state.take_work(segment) else { return };
        let file = Segment::build(&work).unwrap();
        let written = write_segment(&OsMedium, &self.state, segment, &file).unwrap();
        self.apply(Command::Install { segment, hash: written.hash, members: written.members, bytes: written.bytes });
    }
}

/// A sparse and a multi-vector, each there or not.
fn others(rng: &mut StdRng) -> Vec<(String, Vector)> {
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

fn random_write(rng: &mut StdRng) -> Command {
    let id = |rng: &mut StdRng| PointId::Number(rng.random_range(0..60));
    if rng.random_bool(0.2) {
        return Command::Delete { ids: vec![id(rng)], precondition: None };
    }
    let mut values: Vec<f32> = (0..DIMENSION).map(|_| rng.random_range(-1.0..1.0)).collect();
    normalize(&mut values);
    let payload = format!("{{\"n\": {}}}", rng.random_range(0..9)).into_bytes();
    let id = id(rng);
    let point = PointWrite { id, vectors: vec![(String::new(), values)], payload, others: others(rng) };
    Command::Upsert { points: vec![point], preconditions: Vec::new() }
}

#[test]
fn a_replica_is_the_same_after_every_kind_of_stop() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let engine = if seed % 3 == 0 { EngineKind::Memory } else { EngineKind::Sled };
        let mut replica = Replica::open(dir.path(), engine, Vec::new());
        replica.apply(Command::Configure { spec: spec(), home_epoch: 1 });
        for round in 0..8 {
            for _ in 0..rng.random_range(5..60) {
                let command = random_write(&mut rng);
                replica.apply(command);
            }
            match rng.random_range(0..4) {
                0 => replica.seal_and_install(Vec::new()),
                1 => {
                    let sources = replica.state.read().index.manifest().iter().map(|segment| segment.hash).collect();
                    replica.seal_and_install(sources);
                }
                2 => {
                    replica.state.capture(&replica.machine).write().unwrap();
                    replica.state.collect_garbage().unwrap();
                }
                _ => {}
            }
            let before = replica.seen();
            if rng.random_bool(0.5) {
                replica.state.close();
            }
            let lost_store = rng.random_bool(0.3);
            let Replica { log, state, machine } = replica;
            drop((state, machine));
            if lost_store {
                for name in OsMedium.list(&dir.path().join("shards/3")).unwrap() {
                    if name.starts_with("store-") {
                        OsMedium.remove_dir_all(&dir.path().join("shards/3").join(name)).unwrap();
                    }
                }
            }
            replica = Replica::open(dir.path(), engine, log);
            assert_eq!(before, replica.seen(), "seed {seed}, round {round}, store lost: {lost_store}");
        }
    }
}

#[test]
fn a_snapshot_taken_while_writes_go_on_and_installed_elsewhere_gives_the_same_state() {
    let (from_dir, to_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut rng = StdRng::seed_from_u64(5);
    let mut from = Replica::open(from_dir.path(), EngineKind::Sled, Vec::new());
    from.apply(Command::Configure { spec: spec(), home_epoch: 1 });
    for _ in 0..100 {
        let command = random_write(&mut rng);
        from.apply(command);
    }
    from.seal_and_install(Vec::new());
    for _ in 0..30 {
        let command = random_write(&mut rng);
        from.apply(command);
    }
    let at_capture = from.seen();
    let capture = from.state.capture(&from.machine);
    for _ in 0..50 {
        let command = random_write(&mut rng);
        from.apply(command);
    }
    let snapshot = capture.write().unwrap();

    let to = Replica::open(to_dir.path(), EngineKind::Sled, Vec::new());
    // The receiver first fetches the segment files.
    for segment in from.state.read().index.manifest() {
        let copy = to.state.incoming_dir().join("copy");
        std::fs::copy(from.state.find_segment(&segment.hash).unwrap(), &copy).unwrap();
        to.state.adopt_segment(segment.segment, segment.hash, &copy).unwrap();
    }
    let received = to.state.incoming_dir().join("received");
    std::fs::copy(&snapshot.path, &received).unwrap();
    let machine = to.state.install(&received).unwrap();
    let mut to = Replica { state: to.state, machine, log: from.log.clone() };
    assert_eq!(at_capture, to.seen());
    let applied = to.machine.meta.applied.unwrap().index as usize;
    to.state.apply(&mut to.machine, &to.log[applied..]).unwrap();
    assert_eq!(from.seen(), to.seen());

    // And it starts again from there, though its log begins later.
    let (log, newest) = (to.log.clone(), to.seen());
    drop(to);
    assert_eq!(newest, Replica::open(to_dir.path(), EngineKind::Sled, log).seen());
}

#[test]
fn a_store_that_is_held_is_asked_for_again_and_a_failing_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut replica = Replica::open(dir.path(), EngineKind::Sled, Vec::new());
    replica.apply(Command::Configure { spec: spec(), home_epoch: 1 });
    let stores = || -> Vec<String> {
        let names = OsMedium.list(&dir.path().join("shards/3")).unwrap();
        names.into_iter().filter(|name| name.starts_with("store-")).collect()
    };
    // Whoever still holds the replica holds the store.
    let open = || {
        let last = replica.log.last().map(|entry| entry.log_id);
        ShardState::open(Arc::new(OsMedium), EngineKind::Sled, dir.path(), ShardId(3), me(), last, None)
    };
    assert_eq!(open().err().unwrap().kind(), std::io::ErrorKind::ResourceBusy);
    assert_eq!(stores(), ["store-1"]);
    // What an export reads stays while it does, though the store has been built anew.
    for seed in 0..50 {
        let command = random_write(&mut StdRng::seed_from_u64(seed));
        replica.apply(command);
    }
    let before = replica.seen();
    let capture = replica.state.capture(&replica.machine);
    replica.state.compact(&replica.machine).unwrap();
    assert_eq!(stores(), ["store-1", "store-2"]);
    assert_eq!(before, replica.seen());
    let command = random_write(&mut StdRng::seed_from_u64(50));
    replica.apply(command);
    capture.write().unwrap();
    assert_eq!(stores(), ["store-2"]);
    // Closed, it is found again; failed, it is built anew.
    for failed in [false, true] {
        let before = replica.seen();
        if failed {
            replica.state.read().store.discard();
        }
        replica.state.close();
        let Replica { log, state, machine } = replica;
        drop((state, machine));
        assert_eq!(stores().len(), usize::from(!failed));
        replica = Replica::open(dir.path(), EngineKind::Sled, log);
        assert_eq!(before, replica.seen());
    }
}

#[test]
fn a_damaged_snapshot_is_not_used_and_lost_data_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut replica = Replica::open(dir.path(), EngineKind::Sled, Vec::new());
    replica.apply(Command::Configure { spec: spec(), home_epoch: 1 });
    for seed in 0..20 {
        let command = random_write(&mut StdRng::seed_from_u64(seed));
        replica.apply(command);
    }
    let before = replica.seen();
    let snapshot = replica.state.capture(&replica.machine).write().unwrap();
    let mut bytes = std::fs::read(&snapshot.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot.path, Bytes::from(bytes)).unwrap();
    let log = replica.log.clone();
    drop(replica);
    // With the whole log nothing is lost.
    assert_eq!(before, Replica::open(dir.path(), EngineKind::Sled, log.clone()).seen());
    // With the log purged up to the snapshot it is, and that is said.
    let purged = Some(log_id(10));
    let medium: Arc<dyn Medium> = Arc::new(OsMedium);
    let last = log.last().map(|entry| entry.log_id);
    let lost = ShardState::open(medium, EngineKind::Sled, dir.path(), ShardId(3), me(), last, purged);
    assert!(lost.err().unwrap().to_string().contains("data is lost"));
}

#[test]
fn a_snapshot_whose_segment_is_gone_is_told_from_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut replica = Replica::open(dir.path(), EngineKind::Sled, Vec::new());
    replica.apply(Command::Configure { spec: spec(), home_epoch: 1 });
    assert!(!replica.state.snapshot_lacks_segments().unwrap(), "there is no snapshot");
    let write = |replica: &mut Replica, seeds: std::ops::Range<u64>| {
        for seed in seeds {
            let command = random_write(&mut StdRng::seed_from_u64(seed));
            replica.apply(command);
        }
    };
    write(&mut replica, 0..30);
    replica.seal_and_install(Vec::new());
    let old: Vec<_> = replica.state.read().index.manifest().iter().map(|segment| segment.hash).collect();
    replica.state.capture(&replica.machine).write().unwrap();
    // Merged away, the segment is there for the snapshot only.
    write(&mut replica, 30..40);
    replica.seal_and_install(Vec::new());
    let sources = replica.state.read().index.manifest().iter().map(|segment| segment.hash).collect();
    replica.seal_and_install(sources);
    replica.state.collect_garbage().unwrap();
    assert!(!replica.state.snapshot_lacks_segments().unwrap());
    for hash in &old {
        std::fs::remove_file(replica.state.find_segment(hash).unwrap()).unwrap();
    }
    assert!(replica.state.read().index.missing().is_empty(), "the state does not need it");
    assert!(replica.state.snapshot_lacks_segments().unwrap());
    replica.state.capture(&replica.machine).write().unwrap();
    assert!(!replica.state.snapshot_lacks_segments().unwrap());
}

/// Everything the replica holds, read in one go.
fn held(state: &Arc<ShardState>) -> (u64, Vec<nearring_proto::write::PointRecord>) {
    let mut view = View::begin(state.clone()).unwrap();
    let index = view.index();
    let mut points = Vec::new();
    loop {
        let more = view.next(usize::MAX).unwrap();
        if more.is_empty() {
            assert_eq!(points.len() as u64, view.points());
            return (index, points);
        }
        points.extend(more);
    }
}

#[test]
fn a_view_shows_the_moment_it_began_whatever_is_written_sealed_or_compacted_meanwhile() {
    for seed in 0..24 {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let engine = if seed % 2 == 0 { EngineKind::Memory } else { EngineKind::Sled };
        let mut replica = Replica::open(dir.path(), engine, Vec::new());
        replica.apply(Command::Configure { spec: spec(), home_epoch: 1 });
        for _ in 0..rng.random_range(1..150) {
            let command = random_write(&mut rng);
            replica.apply(command);
        }
        if rng.random_bool(0.5) {
            replica.seal_and_install(Vec::new());
        }
        // Two that began at different moments go on side by side.
        let mut views: Vec<_> = Vec::new();
        for _ in 0..2 {
            let expected = held(&replica.state);
            views.push((expected, View::begin(replica.state.clone()).unwrap(), Vec::new(), false));
            replica.apply(random_write(&mut rng));
        }
        for _ in 0..10_000 {
            for ((index, _), view, found, ended) in &mut views {
                assert_eq!(view.index(), *index);
                if !*ended && rng.random_bool(0.6) {
                    let more = view.next(rng.random_range(1..4_000)).unwrap();
                    *ended = more.is_empty();
                    found.extend(more);
                }
            }
            if views.iter().all(|(.., ended)| *ended) {
                break;
            }
            match rng.random_range(0..12) {
                0 => replica.seal_and_install(Vec::new()),
                1 => replica.state.compact(&replica.machine).unwrap(),
                2 => drop(replica.state.capture(&replica.machine).write().unwrap()),
                _ => {
                    replica.apply(random_write(&mut rng));
                }
            }
        }
        for ((index, points), _, found, ended) in views {
            assert!(ended);
            assert_eq!(found, points, "seed {seed}, entry {index}");
        }
    }
}

#[test]
fn a_view_ends_where_the_state_is_replaced_and_there_are_only_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut replica = Replica::open(dir.path(), EngineKind::Memory, Vec::new());
    replica.apply(Command::Configure { spec: spec(), home_epoch: 1 });
    for _ in 0..100 {
        replica.apply(random_write(&mut rng));
    }
    let mut views: Vec<View> = (0..View::MOST).map(|_| View::begin(replica.state.clone()).unwrap()).collect();
    assert_eq!(View::begin(replica.state.clone()).err(), Some(ViewError::TooMany(View::MOST)));
    views.pop();
    assert!(View::begin(replica.state.clone()).is_ok(), "one that is dropped makes room");
    let written = replica.state.capture(&replica.machine).write().unwrap();
    let copy = replica.state.incoming_dir().join("copy");
    std::fs::copy(&written.path, &copy).unwrap();
    replica.state.install(&copy).unwrap();
    assert_eq!(views[0].next(1), Err(ViewError::Replaced));
}
