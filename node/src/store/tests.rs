#![allow(clippy::unwrap_used, clippy::expect_used)]
use proptest::prelude::*;

use super::*;
use crate::machine::command::{Command, Envelope, PointWrite, Reply};
use crate::machine::testing::{configure, entry, ids, log_id, plain, valid_write};

type Held = BTreeMap<PointId, Record>;

/// A shard as its driver runs it: entries in batches, and beside it what its records must be.
struct Shard {
    store: Store,
    machine: Machine,
    index: u64,
    held: Held,
}

impl Shard {
    fn new(kind: EngineKind, dir: &Path) -> Self {
        let store = Store::open(kind, dir).unwrap();
        let mut shard = Self { store, machine: Machine::default(), index: 0, held: Held::new() };
        shard.commit(&[plain(configure())]);
        shard
    }

    fn commit(&mut self, entries: &[Envelope]) -> Vec<Reply> {
        let mut batch = self.store.begin();
        let mut replies = Vec::new();
        for envelope in entries {
            self.index += 1;
            let applied = self.machine.apply(&batch, log_id(self.index), envelope).unwrap();
            batch.stage(&applied);
            for (id, record) in applied.records {
                match record {
                    Some(record) => self.held.insert(id, record),
                    None => self.held.remove(&id),
                };
            }
            replies.push(applied.reply);
        }
        batch.commit(&self.machine).unwrap();
        replies
    }

    fn upsert(&mut self, ids: impl Iterator<Item = u64>, payload: &str) {
        let point = |id| PointWrite {
            id: PointId::Number(id),
            vectors: vec![],
            payload: payload.as_bytes().to_vec(),
            others: vec![],
        };
        let command = Command::Upsert { points: ids.map(point).collect(), preconditions: vec![] };
        assert!(matches!(self.commit(&[plain(command)])[..], [Reply::Written { .. }]));
    }

    fn check(&self) {
        let mut read = Held::new();
        let machine = self.store.verify(&mut |id, record| drop(read.insert(id, record))).unwrap();
        assert_eq!((machine.as_ref(), &read), (Some(&self.machine), &self.held));
        assert_eq!(self.store.load().unwrap().as_ref(), Some(&self.machine));
        for id in ids() {
            assert_eq!(self.store.record(&id).unwrap().as_ref(), self.held.get(&id));
        }
        let group = |id: &&PointId| matches!(id, PointId::Text(text) if text == "a" || text.starts_with("a#"));
        let wanted: Vec<_> = self.held.iter().filter(|(id, _)| group(id)).map(|(id, _)| id.clone()).collect();
        let found: Vec<_> = self.store.group("a", "#").unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, wanted);
        let (mut paged, mut after) = (Held::new(), None);
        loop {
            let page = self.store.range(after.as_ref(), 3).unwrap();
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            paged.extend(page);
        }
        assert_eq!(paged, self.held);
    }

    fn reopen(&mut self, dir: &Path) {
        self.store.close();
        // The files are locked until nothing holds the store.
        self.store = Store::open(EngineKind::Memory, dir).unwrap();
        self.store = Store::open(EngineKind::Sled, dir).unwrap();
    }
}

fn batches() -> impl Strategy<Value = Vec<Vec<Envelope>>> {
    let batch = prop::collection::vec(entry().prop_map(|(envelope, _)| envelope), 1..5);
    prop::collection::vec(batch, 1..12)
}

/// All that an export still gives, in chunks of `limit`.
fn rest(export: &mut Export, limit: usize) -> Vec<(PointId, Record)> {
    let mut all = Vec::new();
    loop {
        let chunk = export.next(limit).unwrap();
        if chunk.is_empty() {
            return all;
        }
        all.extend(chunk);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_is_committed_is_read_in_memory(batches in batches()) {
        let mut shard = Shard::new(EngineKind::Memory, Path::new("nowhere"));
        for batch in &batches {
            shard.commit(batch);
            shard.check();
        }
    }

    #[test]
    fn an_export_shows_the_moment_it_began(
        before in prop::collection::vec(valid_write(), 0..12), during in prop::collection::vec(valid_write(), 0..12),
        limit in 1usize..5,
    ) {
        let mut shard = Shard::new(EngineKind::Memory, Path::new("nowhere"));
        before.into_iter().for_each(|command| drop(shard.commit(&[plain(command)])));
        let wanted: Vec<(PointId, Record)> = shard.held.clone().into_iter().collect();
        let mut export = shard.store.begin_export();
        let mut found = Vec::new();
        for command in during {
            shard.commit(&[plain(command)]);
            found.extend(export.next(limit).unwrap());
        }
        found.extend(rest(&mut export, limit));
        assert_eq!(found, wanted);
        drop(export);
        assert!(shard.store.0.exports().running.is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]

    #[test]
    fn what_is_committed_is_read_after_sled_is_opened_again(batches in batches(), at in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = Shard::new(EngineKind::Sled, dir.path());
        let at = at.index(batches.len());
        for (number, batch) in batches.iter().enumerate() {
            shard.commit(batch);
            if number == at {
                shard.reopen(dir.path());
                shard.check();
            }
        }
        shard.check();
        shard.reopen(dir.path());
        shard.check();
    }
}

#[test]
fn verify_finds_a_flipped_a_missing_an_old_and_a_foreign_value() {
    for kind in [EngineKind::Memory, EngineKind::Sled] {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = Shard::new(kind, dir.path());
        shard.upsert(1..50, r#"{"n":1}"#);
        let open = Command::OpenSession { session: crate::machine::testing::session(1), opened_at_ms: 0 };
        shard.commit(&[plain(open)]);
        let engine = &shard.store.clone().0.engine;
        let key = keys::record(&PointId::Number(7));
        let old = engine.get(&key).unwrap().unwrap();
        shard.upsert(7..8, r#"{"n":2}"#);
        shard.check();
        let store = shard.store.clone();
        let intact = || store.verify(&mut |_, _| ()).unwrap().is_some();
        let session = keys::session(&crate::machine::testing::session(1));
        for key in [key.as_slice(), keys::META, session.as_slice()] {
            let value = engine.get(key).unwrap().unwrap();
            for at in [0, 4, value.len() / 2, value.len() - 1] {
                let mut flipped = value.to_vec();
                flipped[at] ^= 1;
                engine.write(vec![(key.to_vec(), Some(flipped))]).unwrap();
                assert!(!intact(), "byte {at} of {}", key.escape_ascii());
            }
            engine.write(vec![(key.to_vec(), Some(value.to_vec()))]).unwrap();
            assert!(intact());
        }
        // A session as of an earlier commit, and one that is missing, though records and meta are whole.
        let known = engine.get(&session).unwrap().unwrap();
        let request = |seq| Some(crate::machine::testing::request(1, seq, 0));
        let delete = || Command::Delete { ids: vec![PointId::Number(99)], precondition: None };
        shard.commit(&[Envelope { now_ms: 0, request: request(1), command: delete() }]);
        shard.check();
        let newest = engine.get(&session).unwrap().unwrap();
        for stale in [Some(known.to_vec()), None] {
            engine.write(vec![(session.clone(), stale)]).unwrap();
            assert!(!intact());
            engine.write(vec![(session.clone(), Some(newest.to_vec()))]).unwrap();
            assert!(intact());
        }
        let now = engine.get(&key).unwrap().unwrap();
        // Whole values all, and yet not the state that was committed last.
        engine.write(vec![(key.clone(), Some(old.to_vec()))]).unwrap();
        assert!(!intact());
        engine.write(vec![(key.clone(), None)]).unwrap();
        assert!(!intact());
        engine.write(vec![(keys::record(&PointId::Number(8)), Some(now.to_vec()))]).unwrap();
        assert!(!intact());
        assert!(matches!(shard.store.record(&PointId::Number(8)), Err(StoreError::Damaged(_))));
        engine.write(vec![(keys::META.to_vec(), None)]).unwrap();
        assert!(!intact());
    }
}

#[test]
fn damaged_files_are_noticed_or_read_as_a_state_that_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut shard = Shard::new(EngineKind::Sled, dir.path());
    let mut states = BTreeMap::from([(Some(log_id(1)), Held::new())]);
    for round in 0..6 {
        shard.upsert(round * 20..round * 20 + 40, &format!(r#"{{"n":{round}}}"#));
        states.insert(shard.machine.meta.applied, shard.held.clone());
        shard.store.close();
    }
    drop(shard);
    let db = dir.path().join("db");
    let whole = fs::read(&db).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let (mut intact, mut noticed) = (0, 0);
    for step in 0..40 {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        let mut damaged = whole.clone();
        let at = used * step / 40;
        match step % 4 {
            0 => damaged.truncate(at),
            1 => damaged[at..used.min(at + 4096)].fill(0),
            _ => damaged[at] ^= 0x55,
        }
        fs::write(copy.path().join("db"), damaged).unwrap();
        let mut read = Held::new();
        let store = Store::open(EngineKind::Sled, copy.path());
        match store.and_then(|store| store.verify(&mut |id, record| drop(read.insert(id, record)))) {
            Ok(Some(machine)) => {
                assert_eq!(states.get(&machine.meta.applied), Some(&read), "step {step}");
                intact += 1;
            }
            Ok(None) | Err(_) => noticed += 1,
        }
    }
    assert!(noticed > 0, "{intact} read, {noticed} noticed");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn a_later_export_ends_an_earlier_one() {
    let mut shard = Shard::new(EngineKind::Memory, Path::new("nowhere"));
    shard.upsert(1..10, "");
    let mut first = shard.store.begin_export();
    assert_eq!(first.next(2).unwrap().len(), 2);
    let mut second = shard.store.begin_export();
    assert_eq!(first.next(2), Err(StoreError::ExportEnded));
    drop(first);
    shard.upsert(1..10, r#"{"n":1}"#);
    assert!(rest(&mut second, 4).iter().all(|(_, record)| record.payload.is_empty()));
}

#[test]
fn an_import_takes_what_the_snapshot_is_and_leaves_nothing_of_what_it_is_not() {
    for kind in [EngineKind::Memory, EngineKind::Sled] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let into = dir.path().join("store");
        let mut source = Shard::new(kind, other.path());
        source.upsert(100..1500, r#"{"n":1}"#);
        let open = Command::OpenSession { session: crate::machine::testing::session(1), opened_at_ms: 0 };
        source.commit(&[plain(open)]);
        let (machine, mut export) = (source.machine.clone(), source.store.begin_export());
        source.upsert(100..1500, r#"{"n":2}"#);
        let records = rest(&mut export, 100);

        let short = records.iter().skip(1).cloned();
        let refused = Store::import(kind, &into, &machine, short).err();
        assert_eq!(refused, Some(StoreError::ImportMismatch { found: 1399, wanted: 1400 }));
        assert!(!into.exists());

        let store = Store::import(kind, &into, &machine, records.clone().into_iter()).unwrap();
        let held: Held = records.into_iter().collect();
        let mut imported = Shard { store, machine, index: source.index, held };
        imported.check();
        imported.upsert(1..2, "");
        if kind == EngineKind::Sled {
            imported.reopen(&into);
        }
        imported.check();
        assert!(imported.store.bloat() >= 1.0);
    }
}

#[test]
fn a_discarded_store_is_read_until_nobody_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("store");
    let mut shard = Shard::new(EngineKind::Sled, &into);
    shard.upsert(1..20, "");
    let export = shard.store.begin_export();
    shard.store.discard();
    shard.check();
    drop(shard);
    assert!(into.exists());
    drop(export);
    assert!(!into.exists());
}

/// `cargo test --release -p nearring-node --lib store::tests::cost -- --ignored --nocapture`
#[test]
#[ignore = "measures; prints CPU time a point"]
fn cost_of_tiny_upserts() {
    // Of this thread in microseconds, and of the whole process (with sled's own threads) in ticks of 10 ms.
    let cpu = || {
        let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split_once(' ').unwrap().0.parse::<f64>().unwrap() / 1e3
    };
    let process = || {
        let text = fs::read_to_string("/proc/self/stat").unwrap();
        let times: Vec<f64> = text.split(' ').skip(13).take(2).map(|field| field.parse().unwrap()).collect();
        times.iter().sum::<f64>() / 100.0
    };
    for kind in [EngineKind::Memory, EngineKind::Sled] {
        let dir = tempfile::tempdir().unwrap();
        let mut shard = Shard::new(kind, dir.path());
        for round in ["insert", "overwrite"] {
            let mut spent = [0.0; 2];
            let began = process();
            for batch in 0..1000u64 {
                let point = |number: u64| PointWrite {
                    // Spread over the key space, as hashed or foreign ids are.
                    id: PointId::Number((batch * 100 + number).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                    vectors: vec![(String::new(), vec![1.0, 2.0])],
                    payload: br#"{"n":1}"#.to_vec(),
                    others: vec![],
                };
                let command = Command::Upsert { points: (0..100).map(point).collect(), preconditions: vec![] };
                let envelope = plain(command);
                shard.index += 1;
                let start = cpu();
                let mut batch = shard.store.begin();
                let applied = shard.machine.apply(&batch, log_id(shard.index), &envelope).unwrap();
                batch.stage(&applied);
                spent[0] += cpu() - start;
                let start = cpu();
                batch.commit(&shard.machine).unwrap();
                spent[1] += cpu() - start;
            }
            let [apply, commit] = spent.map(|micros| micros / 100_000.0);
            println!(
                "{kind:?} {round}: apply {apply:.2} + commit {commit:.2} us CPU a point ({:.2} s in all), bloat {:.2}",
                process() - began,
                shard.store.bloat()
            );
        }
        let start = cpu();
        assert!(shard.store.verify(&mut |_, _| ()).unwrap().is_some());
        println!("{kind:?} verify: {:.2} us CPU a point", (cpu() - start) / 100_000.0);
        assert_eq!(shard.machine.meta.points, 100_000);
    }
}
