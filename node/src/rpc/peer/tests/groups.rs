//! Real Raft groups over this transport, with a log and a state machine in memory.
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::Stream;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{LogState, OptionalSend, RaftLogReader};

use super::*;
use crate::raft::{Raft, Response};

type FileSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotFile>;

#[derive(Default)]
struct LogData {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

#[derive(Clone, Default)]
struct MemLog(Arc<Mutex<LogData>>);

impl RaftLogReader<TypeConfig> for MemLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let bounds: (Bound<u64>, Bound<u64>) = (range.start_bound().cloned(), range.end_bound().cloned());
        Ok(self.0.lock().unwrap().entries.range(bounds).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.lock().unwrap().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let log = self.0.lock().unwrap();
        let last = log.entries.last_key_value().map(|(_, entry)| entry.log_id).or(log.purged);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.0.lock().unwrap().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.lock().unwrap().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.0.lock().unwrap().entries.split_off(&last.map_or(0, |last| last.index + 1));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut log = self.0.lock().unwrap();
        log.entries = log.entries.split_off(&(upto.index + 1));
        log.purged = Some(upto);
        Ok(())
    }
}

#[derive(Clone, Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    values: Vec<u64>,
}

/// Keeps every number it was told, in order; a snapshot is those numbers in a file.
#[derive(Clone)]
struct Numbers {
    state: Arc<Mutex<State>>,
    snapshot: Arc<Mutex<Option<FileSnapshot>>>,
    installed: Arc<AtomicUsize>,
    dir: PathBuf,
}

impl RaftSnapshotBuilder<TypeConfig> for Numbers {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<FileSnapshot, io::Error> {
        let state = self.state.lock().unwrap().clone();
        let bytes: Vec<u8> = state.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let path = self.dir.join("numbers");
        std::fs::write(&path, &bytes)?;
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership };
        let file = SnapshotFile { path, len: bytes.len() as u64, source: None, guard: None };
        let snapshot = openraft::Snapshot { meta, snapshot: file };
        *self.snapshot.lock().unwrap() = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl RaftStateMachine<TypeConfig> for Numbers {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let mut state = self.state.lock().unwrap();
            state.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(Proposal(bytes)) => {
                    state.values.push(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
                }
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            drop(state);
            if let Some(responder) = responder {
                responder.send(Response::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> Result<(), io::Error> {
        let bytes = std::fs::read(&file.path)?;
        assert!(file.source.is_some(), "who sent it?");
        let values = bytes.chunks_exact(8).map(|value| u64::from_le_bytes(value.try_into().unwrap())).collect();
        *self.state.lock().unwrap() =
            State { applied: meta.last_log_id, membership: meta.last_membership.clone(), values };
        *self.snapshot.lock().unwrap() = Some(openraft::Snapshot { meta: meta.clone(), snapshot: file });
        self.installed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<FileSnapshot>, io::Error> {
        Ok(self.snapshot.lock().unwrap().clone())
    }
}

struct Member {
    id: ReplicaId,
    node: TestNode,
    peers: Peers,
    rafts: Vec<(Raft<Numbers>, Numbers)>,
    _dir: tempfile::TempDir,
}

const GROUPS: u64 = 8;

impl Member {
    async fn start(n: u64) -> Self {
        let id = replica(n, n * 10);
        let node = TestNode::start(id).await;
        let peers = peers_in(cluster(1), id);
        let config = crate::raft::config(HEARTBEAT, (HEARTBEAT * 12, HEARTBEAT * 24)).unwrap();
        let mut rafts = Vec::new();
        let data = tempfile::tempdir().unwrap();
        for group in (1..=GROUPS).map(ShardId) {
            let dir = data.path().join(format!("group-{}", group.0));
            std::fs::create_dir_all(&dir).unwrap();
            let numbers = Numbers { state: Arc::default(), snapshot: Arc::default(), installed: Arc::default(), dir };
            let raft =
                Raft::new(id, config.clone(), peers.network(group), MemLog::default(), numbers.clone()).await.unwrap();
            node.host.groups.lock().unwrap().insert(group, Arc::new(raft.clone()));
            rafts.push((raft, numbers));
        }
        Self { id, node, peers, rafts, _dir: data }
    }

    fn values(&self, group: usize) -> Vec<u64> {
        self.rafts[group].1.state.lock().unwrap().values.clone()
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not in time");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn leader(members: &[Member], group: usize) -> &Raft<Numbers> {
    let start = Instant::now();
    loop {
        for member in members {
            let raft = &member.rafts[group].0;
            if raft.current_leader().await == Some(member.id) {
                return raft;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no leader in time");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Writes numbers to every group, many at a time, until each was acknowledged once.
async fn write(members: &[Member], numbers: std::ops::Range<u64>) {
    let mut writes = FuturesUnordered::new();
    for group in 0..GROUPS as usize {
        for number in numbers.clone() {
            writes.push(async move {
                let start = Instant::now();
                loop {
                    let mut bytes = number.to_le_bytes().to_vec();
                    bytes.resize(2000, 0);
                    let raft = leader(members, group).await;
                    if raft.client_write(Proposal(Bytes::from(bytes))).await.is_ok() {
                        break;
                    }
                    assert!(start.elapsed() < Duration::from_secs(60), "not written in time");
                    sleep(Duration::from_millis(10)).await;
                }
            });
        }
    }
    while writes.next().await.is_some() {}
}

async fn agree(members: &[Member], count: u64) {
    for group in 0..GROUPS as usize {
        until("all replicas have applied everything", async || {
            let first = members[0].values(group);
            first.len() as u64 >= count && members.iter().all(|member| member.values(group) == first)
        })
        .await;
        let mut values = members[0].values(group);
        values.sort_unstable();
        // A write whose leader fell was repeated, and may be there twice.
        values.dedup();
        assert!(values.into_iter().eq(0..count), "group {group} lost a write");
    }
}

#[test]
fn raft_groups_agree_over_it_through_broken_connections_a_snapshot_and_a_change_of_leader() {
    test(async {
        let mut members = Vec::new();
        for n in 1..=3 {
            members.push(Member::start(n).await);
        }
        let node = |member: &Member| BasicNode { addr: member.node.addr.to_string() };
        for group in 0..GROUPS as usize {
            let all: BTreeMap<_, _> = members.iter().map(|member| (member.id, node(member))).collect();
            members[group % 3].rafts[group].0.initialize(all).await.unwrap();
        }
        write(&members, 0..100).await;
        agree(&members, 100).await;

        // The third member cannot be reached for a while; it still reaches the others.
        let (me, addr) = (members[2].id, members[2].node.addr);
        let before = std::mem::replace(&mut members[2].node, TestNode::start(me).await);
        let (groups, unused) = (before.host.groups.lock().unwrap().clone(), members[2].node.addr);
        assert_ne!(unused, addr);
        before.stop().await;
        write(&members, 100..150).await;
        let back = TestNode::start_at(addr, me).await;
        *back.host.groups.lock().unwrap() = groups;
        members[2].node = back;
        write(&members, 150..200).await;
        agree(&members, 200).await;

        // A fourth finds the log purged, and gets snapshots.
        for group in 0..GROUPS as usize {
            let raft = leader(&members, group).await;
            raft.trigger().snapshot().await.unwrap();
            let applied = raft.metrics().borrow_watched().last_applied.unwrap();
            until("a snapshot", async || raft.metrics().borrow_watched().snapshot >= Some(applied)).await;
            raft.trigger().purge_log(applied.index).await.unwrap();
            until("a purge", async || raft.metrics().borrow_watched().purged >= Some(applied)).await;
        }
        let fourth = Member::start(4).await;
        for group in 0..GROUPS as usize {
            let raft = leader(&members, group).await;
            raft.add_learner(fourth.id, node(&fourth), true).await.unwrap();
        }
        members.push(fourth);
        agree(&members, 200).await;
        for (_, numbers) in &members[3].rafts {
            assert_eq!(numbers.installed.load(Ordering::SeqCst), 1);
        }

        for group in 0..GROUPS as usize {
            let raft = leader(&members, group).await;
            let from = raft.current_leader().await.unwrap();
            let to = members[..3].iter().map(|member| member.id).find(|id| *id != from).unwrap();
            raft.trigger().transfer_leader(to).await.unwrap();
            until("the new leader", async || {
                leader(&members, group).await.current_leader().await.is_some_and(|leader| leader != from)
            })
            .await;
        }
        write(&members, 200..250).await;
        agree(&members, 250).await;
        let (batches, items) = members[0].peers.sent();
        assert!(batches > 0 && items > batches, "{items} requests in {batches} messages");
        for member in &members {
            for (raft, _) in &member.rafts {
                raft.shutdown().await.unwrap();
            }
        }
        for member in members {
            member.node.stop().await;
        }
    });
}
