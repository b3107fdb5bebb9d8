//! Snapshots of shards and of the meta group, and what the meta group logs.
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::{FutureExt, stream};
use nearring_node::compute::Compute;
use nearring_node::index::change::Components;
use nearring_node::medium::Medium;
use nearring_node::meta::machine::{Machine as MetaMachine, OpenError, decode_change, decode_reply, encode_change};
use nearring_node::raft::{Entry, Proposal};
use nearring_node::shard::snapshot::{Snapshot, SnapshotError, SnapshotVector, Writer};
use nearring_proto::ids::{ClusterId, Incarnation, NodeId, PointId, ShardId, Version};
use nearring_proto::placement::table::{Change, Node, Table};
use nearring_proto::wire;
use openraft::EntryPayload;
use openraft::storage::{RaftSnapshotBuilder as _, RaftStateMachine as _};
use prost::Message as _;
use tokio::sync::watch;

use super::machine::{machine, spec};
use super::messages::{log_id, shown};
use super::{Burst, choice, chosen, done, put, read};
use crate::disk::SimDisk;
use nearring_node::machine::Machine;
use nearring_node::machine::record::Record;

// ---- shards ----

const FILE: &str = "/snapshot";

type Contents = (Machine, Vec<(PointId, Record)>, Vec<SnapshotVector>);

/// Everything in a file; an error where any of it cannot be read.
fn contents(disk: &SimDisk) -> Result<Contents, SnapshotError> {
    let snapshot = Snapshot::open(disk, Path::new(FILE))?;
    let records = snapshot.records().collect::<Result<_, _>>()?;
    let vectors = snapshot.vectors().collect::<Result<_, _>>()?;
    Ok((snapshot.machine().clone(), records, vectors))
}

fn written((machine, records, vectors): &Contents) -> Bytes {
    let disk = SimDisk::new(1);
    let mut writer = done(Writer::create(&disk, Path::new(FILE), machine));
    records.iter().for_each(|(id, record)| done(writer.record(id, record)));
    vectors.iter().for_each(|(id, name, stamp, values)| done(writer.vector(id, name, *stamp, values)));
    let length = done(writer.finish());
    let bytes = read(&disk, Path::new(FILE));
    assert_eq!(bytes.len() as u64, length);
    bytes
}

/// A real snapshot.
fn real() -> &'static Bytes {
    static REAL: OnceLock<Bytes> = OnceLock::new();
    REAL.get_or_init(|| {
        let (machine, records) = machine();
        let vector = |id: &PointId, name: &str| {
            (id.clone(), name.to_owned(), Version { epoch: 1, index: 3 }, Components::from([0.6, 0.8].as_slice()))
        };
        let others = |id: &PointId| {
            let others = super::machine::others().into_iter();
            let stamped = |(name, vector)| (id.clone(), name, Version { epoch: 1, index: 3 }, Components::from(vector));
            others.map(stamped).collect::<Vec<_>>()
        };
        let dense = records.keys().flat_map(|id| [vector(id, ""), vector(id, "title")]);
        let vectors = dense.chain(records.keys().flat_map(others)).collect();
        written(&(machine, records.into_iter().collect(), vectors))
    })
}

/// A shard's snapshot: any bytes; any bytes with a right checksum; a real one that was damaged, which must be noticed.
pub fn shard_snapshots(data: &[u8]) -> bool {
    let (which, bytes) = choice(data);
    let file = match which % 3 {
        0 => bytes.to_vec(),
        1 => {
            let mut file = bytes.to_vec();
            file.extend_from_slice(blake3::hash(bytes).as_bytes());
            file
        }
        _ => {
            let Some(file) = damaged(real(), bytes) else { return false };
            file
        }
    };
    let disk = SimDisk::new(1);
    put(&disk, Path::new(FILE), &file);
    let Ok(found) = contents(&disk) else { return false };
    assert!(which % 3 != 2, "damage was not noticed");
    put(&disk, Path::new(FILE), &written(&found));
    assert_eq!(shown(&done(contents(&disk))), shown(&found), "not the same after a second reading");
    true
}

/// A file of which some bits are wrong, or the end is missing. `None` where the bytes do not say what is to happen.
fn damaged(file: &[u8], bytes: &[u8]) -> Option<Vec<u8>> {
    let burst = Burst::of(bytes)?;
    let mut file = file.to_vec();
    let at = burst.strike(&mut file);
    if bytes.get(Burst::BYTES).is_some_and(|cut| cut % 2 == 1) {
        file.truncate(at);
    }
    Some(file)
}

pub(super) fn shard_seeds() -> Vec<Vec<u8>> {
    let file = real();
    let body = &file[..file.len() - 32];
    vec![
        chosen(0, file),
        chosen(1, body),
        chosen(2, &[0, 1, 0, 0, 1, 0, 0, 0, 0]),
        chosen(2, &[9, 0, 0, 0, 1, 2, 3, 4, 1]),
    ]
}

// ---- the meta group ----

const META_DIR: &str = "/meta";

fn cluster() -> ClusterId {
    ClusterId(uuid::Uuid::from_u128(5))
}

fn changes() -> Vec<Change> {
    let node = |id: u64| Node {
        id: NodeId(id),
        incarnation: Incarnation(id),
        address: format!("{id}:7000"),
        zone: "z".to_owned(),
    };
    let mut changes: Vec<Change> = (1..=3).map(|id| Change::Join(node(id))).collect();
    let named =
        |name: &str| nearring_proto::collection::CollectionSpec { name: name.to_owned(), shard_count: 2, ..spec() };
    changes.push(Change::CreateCollection(named("c")));
    changes.push(Change::CreateCollection(named("d")));
    changes.push(Change::ShardReady(ShardId(2)));
    let name = "c".to_owned();
    changes.push(Change::UpdateCollection(nearring_proto::collection::CollectionUpdate {
        name: name.clone(),
        ef_search: 99,
        ..Default::default()
    }));
    changes.push(Change::DeleteCollection(name));
    changes
}

/// A table with nodes, a collection and its shards, and shards that are gone.
pub(super) fn table() -> Table {
    let mut table = Table::new(cluster());
    changes().iter().for_each(|change| drop(table.apply(change)));
    table
}

/// The machine of a directory, the tables it publishes, and what it was refused for.
fn open(disk: &SimDisk) -> Result<(MetaMachine, watch::Receiver<Arc<Table>>), OpenError> {
    let (publish, tables) = watch::channel(Arc::new(Table::new(cluster())));
    let medium = Arc::new(disk.clone());
    MetaMachine::open(medium, Compute::Inline, Path::new(META_DIR), cluster(), publish).map(|machine| (machine, tables))
}

/// Inline work never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().unwrap_or_else(|| panic!("inline work waited"))
}

/// Writes a snapshot and answers its file.
fn snapshot(machine: &mut MetaMachine) -> PathBuf {
    let built = now(async { machine.get_snapshot_builder().await.build_snapshot().await });
    done(built).snapshot.path
}

fn apply(machine: &mut MetaMachine, (term, index): (u64, u64), change: &Change) {
    let payload = EntryPayload::Normal(Proposal(encode_change(change)));
    let entry = Entry { log_id: log_id(term, index), payload };
    done(now(machine.apply(stream::iter([Ok((entry, None))]))));
}

/// A real snapshot's file.
fn real_meta() -> &'static Bytes {
    static REAL: OnceLock<Bytes> = OnceLock::new();
    REAL.get_or_init(|| {
        let disk = SimDisk::new(1);
        let (mut machine, _tables) = done(open(&disk));
        changes().iter().enumerate().for_each(|(at, change)| apply(&mut machine, (3, at as u64), change));
        let path = snapshot(&mut machine);
        read(&disk, &path)
    })
}

/// The meta group: a snapshot of any bytes, of any body with a right checksum, a real one that was damaged; a logged change,
/// applied to a real table; an answer.
pub fn meta_group(data: &[u8]) -> bool {
    const HEAD: usize = 7;
    let (which, bytes) = choice(data);
    let file = match which % 5 {
        0 => bytes.to_vec(),
        1 => {
            let mut file = real_meta()[..HEAD].to_vec();
            file.extend_from_slice(blake3::hash(bytes).as_bytes());
            file.extend_from_slice(bytes);
            file
        }
        2 => {
            let Some(file) = damaged(real_meta(), bytes) else { return false };
            file
        }
        3 => {
            let Ok(change) = decode_change(bytes) else { return false };
            assert_eq!(done(decode_change(&encode_change(&change))), change);
            let (mut one, mut other) = (table(), table());
            assert_eq!(one.apply(&change), other.apply(&change));
            assert_eq!(one, other);
            let sent = wire::ClusterTable::from(one.clone()).encode_to_vec();
            assert_eq!(done(Table::try_from(done(wire::ClusterTable::decode(sent.as_slice())))), one);
            return true;
        }
        _ => return decode_reply(bytes).is_ok(),
    };
    let disk = SimDisk::new(1);
    done(disk.create_dir_all(Path::new(META_DIR)));
    // A name that no snapshot written below gets: what has its name already is not written again.
    put(&disk, &Path::new(META_DIR).join("snapshot-00000000000000000000-0"), &file);
    let Ok((mut machine, tables)) = open(&disk) else { return false };
    assert!(which % 5 != 2, "damage was not noticed");
    let (applied, membership) = done(now(machine.applied_state()));
    // A later entry has no lower term.
    let term = applied.map_or(3, |applied| applied.committed_leader_id().term.max(3));
    if let Some(index) = applied.map_or(Some(0), |applied| applied.index.checked_add(1)) {
        changes().iter().take(4).for_each(|change| apply(&mut machine, (term, index), change));
        drop(snapshot(&mut machine));
        let table = tables.borrow().clone();
        let (mut again, tables) = done(open(&disk));
        // A table that no change makes (epoch 0 and not empty) is not published; any other must be the one that was.
        if table.epoch.0 > 0 {
            assert_eq!(*tables.borrow(), table, "not the same after a second reading");
        }
        assert_eq!(done(now(again.applied_state())), (Some(log_id(term, index)), membership));
    }
    true
}

pub(super) fn meta_seeds() -> Vec<Vec<u8>> {
    let file = real_meta();
    let mut seeds = vec![chosen(0, file), chosen(1, &file[39..]), chosen(2, &[0, 1, 0, 0, 1, 0, 0, 0, 0])];
    seeds.extend(changes().iter().map(|change| chosen(3, &encode_change(change))));
    let mut table = table();
    for change in &changes() {
        let mut reply = vec![1];
        reply.extend(done(serde_json::to_vec(&table.apply(change))));
        seeds.push(chosen(4, &reply));
    }
    seeds
}
