#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::convert::Infallible;

use nearring_proto::convert::encode_filter;
use nearring_proto::filter::Filter;
use nearring_proto::ids::RequestId;
use nearring_proto::vector::Vector;
use proptest::prelude::*;
use serde_json::json;

use super::command::{CommandError, decode_reply, encode_reply};
use super::session::{REPLIES_MAX, SESSIONS_MAX, TTL_MS};
use super::testing::{configure, entry, log_id, plain, request, session, spec};
use super::*;

/// Records as they are after the entries so far.
#[derive(Clone, Default, PartialEq, Debug)]
struct Records(BTreeMap<PointId, Record>);

impl Facts for Records {
    type Error = Infallible;

    fn record(&self, id: &PointId) -> Result<Option<Record>, Infallible> {
        Ok(self.0.get(id).cloned())
    }

    fn group(&self, key: &str, separator: &str) -> Result<Vec<(PointId, Record)>, Infallible> {
        let prefix = format!("{key}{separator}");
        let member = |id: &PointId| matches!(id, PointId::Text(text) if text == key || text.starts_with(&prefix));
        Ok(self.0.iter().filter(|(id, _)| member(id)).map(|(id, record)| (id.clone(), record.clone())).collect())
    }
}

impl Records {
    fn take(&mut self, applied: &Applied) {
        for (id, record) in &applied.records {
            match record {
                Some(record) => self.0.insert(id.clone(), record.clone()),
                None => self.0.remove(id),
            };
        }
    }

    fn digest(&self) -> u128 {
        self.0.iter().fold(0, |sum, (id, record)| sum.wrapping_add(digest_of(id, record)))
    }
}

/// Facts that cannot be read.
struct Broken;

impl Facts for Broken {
    type Error = ();

    fn record(&self, _: &PointId) -> Result<Option<Record>, ()> {
        Err(())
    }

    fn group(&self, _: &str, _: &str) -> Result<Vec<(PointId, Record)>, ()> {
        Err(())
    }
}

struct Shard {
    machine: Machine,
    records: Records,
    index: u64,
}

impl Shard {
    fn new() -> Self {
        let mut shard = Self { machine: Machine::default(), records: Records::default(), index: 0 };
        assert_eq!(shard.run(configure()), Reply::Done);
        shard
    }

    fn apply(&mut self, envelope: &Envelope) -> Applied {
        self.index += 1;
        let applied = self.machine.apply(&self.records, log_id(self.index), envelope).unwrap();
        self.records.take(&applied);
        applied
    }

    fn run(&mut self, command: Command) -> Reply {
        self.apply(&plain(command)).reply
    }

    fn at(&mut self, now_ms: u64, request: Option<RequestId>, command: Command) -> Applied {
        self.apply(&Envelope { now_ms, request, command })
    }
}

/// What the rules say, told another way: whole points in a map, sessions as a list of what was answered.
#[derive(Default)]
struct Model {
    points: BTreeMap<PointId, ModelPoint>,
    sessions: BTreeMap<SessionId, ModelSession>,
    now_ms: u64,
}

#[derive(Clone, PartialEq, Debug)]
struct ModelPoint {
    version: Version,
    placement: Version,
    vectors: BTreeMap<String, (Version, Vector)>,
    payload: Payload,
}

struct ModelSession {
    opened_at_ms: u64,
    until_ms: u64,
    floor: u64,
    answers: BTreeMap<u64, Reply>,
}

impl Model {
    /// Judges what the machine answered, and takes the entry over.
    fn step(&mut self, index: u64, envelope: &Envelope, valid: bool, applied: &Applied) {
        let refused = |refusal| Reply::Refused(refusal);
        self.now_ms = self.now_ms.max(envelope.now_ms);
        let now = self.now_ms;
        if let Command::OpenSession { session, opened_at_ms } = &envelope.command {
            let opened_at_ms = *opened_at_ms;
            self.sessions.retain(|_, known| known.until_ms >= now || known.opened_at_ms + TTL_MS >= now);
            if opened_at_ms + TTL_MS < now || self.sessions.get(session).is_some_and(|known| known.until_ms < now) {
                assert_eq!(applied.reply, refused(Refusal::SessionExpired));
            } else if opened_at_ms > now + TTL_MS {
                assert!(matches!(applied.reply, Reply::Refused(Refusal::Invalid { .. })));
            } else {
                assert_eq!(applied.reply, Reply::Session { ttl_ms: TTL_MS });
                let fresh = ModelSession { opened_at_ms, until_ms: 0, floor: 0, answers: BTreeMap::new() };
                let known = self.sessions.entry(*session).or_insert(fresh);
                known.until_ms = now + TTL_MS;
                known.opened_at_ms = known.opened_at_ms.max(opened_at_ms);
            }
            assert!(applied.records.is_empty() && applied.changes.is_empty());
            return;
        }
        let mut before = 0;
        if let Some(request) = &envelope.request {
            let Some(known) = self.sessions.get_mut(&request.session).filter(|known| known.until_ms >= now) else {
                assert_eq!(applied.reply, refused(Refusal::SessionExpired));
                return self.nothing(applied);
            };
            known.until_ms = now + TTL_MS;
            known.floor = known.floor.max(request.settled_below);
            if request.seq < known.floor {
                assert_eq!(applied.reply, refused(Refusal::Settled { seq: request.seq }));
                return self.nothing(applied);
            }
            let part = matches!(envelope.command, Command::DeleteIf { .. });
            match known.answers.get(&request.seq) {
                Some(Reply::Begun { removed, .. }) if part => before = *removed,
                Some(answer) => {
                    assert_eq!((&applied.reply, applied.repeated), (answer, true));
                    return self.nothing(applied);
                }
                None if part => {
                    assert!(matches!(applied.reply, Reply::Refused(Refusal::Invalid { .. })), "{:?}", applied.reply);
                    return self.nothing(applied);
                }
                None => {}
            }
            known.answers.insert(request.seq, applied.reply.clone());
        }
        assert!(!applied.repeated);
        if !valid {
            assert!(matches!(applied.reply, Reply::Refused(Refusal::Invalid { .. })), "{:?}", applied.reply);
            return self.nothing(applied);
        }
        let version = Version { epoch: 1, index };
        if envelope.command == Command::BeginDelete {
            assert_eq!(applied.reply, Reply::Begun { at: version, removed: 0 });
            return self.nothing(applied);
        }
        let (mut outcomes, written, removed) = self.execute(version, &envelope.command);
        if let Command::DeleteIf { begun, last, .. } = &envelope.command {
            outcomes.clear();
            if !last {
                assert_eq!(applied.reply, Reply::Begun { at: *begun, removed: before + removed });
                return;
            }
        }
        let outcomes: Vec<(u32, Outcome)> =
            (0..).zip(outcomes).filter(|(_, outcome)| *outcome != Outcome::Applied).collect();
        assert_eq!(applied.reply, Reply::Written { applied: written, removed: before + removed, outcomes, version });
    }

    fn nothing(&self, applied: &Applied) {
        assert!(applied.records.is_empty() && applied.changes.is_empty());
    }

    fn judge(&self, id: &PointId, precondition: Option<&Precondition>) -> Outcome {
        let version = self.points.get(id).map(|point| point.version);
        match (precondition, version) {
            (Some(Precondition::InsertOnly), Some(version)) => Outcome::AlreadyExists(version),
            (Some(Precondition::IfVersion(wanted)), found) if found != Some(*wanted) => Outcome::VersionMismatch(found),
            _ => Outcome::Applied,
        }
    }

    fn write(&mut self, version: Version, point: &PointWrite) {
        let placement = self.points.get(&point.id).map_or(version, |old| old.placement);
        let dense = point.vectors.iter().map(|(name, values)| (name.clone(), Vector::Dense(values.clone())));
        let all = dense.chain(point.others.iter().cloned());
        let vectors = all.map(|(name, vector)| (name, (version, vector))).collect();
        let payload = payload::parse(&point.payload).unwrap();
        self.points.insert(point.id.clone(), ModelPoint { version, placement, vectors, payload });
    }

    /// Outcomes by position, points written, points removed.
    fn execute(&mut self, version: Version, command: &Command) -> (Vec<Outcome>, u64, u64) {
        let mut outcomes = Vec::new();
        match command {
            Command::Upsert { points, preconditions } => {
                for (at, point) in points.iter().enumerate() {
                    let outcome = self.judge(&point.id, preconditions.get(at).and_then(Option::as_ref));
                    if outcome == Outcome::Applied {
                        self.write(version, point);
                    }
                    outcomes.push(outcome);
                }
            }
            Command::SetPayload { ids, payload, mode, precondition } => {
                for id in ids {
                    let mut outcome = self.judge(id, precondition.as_ref());
                    if outcome == Outcome::Applied && !self.points.contains_key(id) {
                        outcome = Outcome::NotFound;
                    }
                    if outcome == Outcome::Applied {
                        let point = self.points.get_mut(id).unwrap();
                        point.version = version;
                        match mode {
                            PayloadMode::Overwrite => point.payload = payload::parse(payload).unwrap(),
                            PayloadMode::Merge => {
                                for (key, value) in payload::parse(payload).unwrap() {
                                    point.payload.insert(key, value);
                                }
                            }
                            PayloadMode::DeleteKeys => {
                                point.payload.remove("n");
                            }
                        }
                    }
                    outcomes.push(outcome);
                }
            }
            Command::Delete { ids, precondition } => {
                for id in ids {
                    let mut outcome = self.judge(id, precondition.as_ref());
                    if outcome == Outcome::Applied && self.points.remove(id).is_none() {
                        outcome = Outcome::NotFound;
                    }
                    outcomes.push(outcome);
                }
                let removed = outcomes.iter().filter(|outcome| **outcome == Outcome::Applied).count();
                return (outcomes, 0, removed as u64);
            }
            Command::DeleteIf { ids, begun, .. } => {
                for id in ids {
                    outcomes.push(match self.points.get(id) {
                        None => Outcome::NotFound,
                        Some(point) if point.placement > *begun => Outcome::FilterMismatch,
                        Some(point) if point.payload.get("n") == Some(&json!(2)) => {
                            self.points.remove(id);
                            Outcome::Applied
                        }
                        Some(_) => Outcome::FilterMismatch,
                    });
                }
                let removed = outcomes.iter().filter(|outcome| **outcome == Outcome::Applied).count();
                return (outcomes, 0, removed as u64);
            }
            Command::ReplaceGroup { points, .. } => {
                let before = self.points.len();
                let kept: BTreeSet<&PointId> = points.iter().map(|point| &point.id).collect();
                let in_group =
                    |id: &PointId| matches!(id, PointId::Text(text) if text == "a" || text.starts_with("a#"));
                self.points.retain(|id, _| kept.contains(id) || !in_group(id));
                let removed = before - self.points.len();
                points.iter().for_each(|point| self.write(version, point));
                return (outcomes, points.len() as u64, removed as u64);
            }
            other => panic!("no write: {other:?}"),
        }
        let written = outcomes.iter().filter(|outcome| **outcome == Outcome::Applied).count();
        (outcomes, written as u64, 0)
    }
}

/// What the index would hold after the changes so far: stamps and components, and the payload.
type Indexed = BTreeMap<PointId, (Version, BTreeMap<String, (Version, Vector)>, Payload)>;

fn index(indexed: &mut Indexed, changes: &[IndexChange]) {
    for change in changes {
        match change {
            IndexChange::Put { id, version, vectors, payload } => {
                let old = indexed.remove(id);
                let components = |name: &String, (stamp, brought): &VectorChange| match brought {
                    Some(components) => Vector::from(components),
                    None => {
                        let (held, values) = &old.as_ref().unwrap().1[name];
                        assert_eq!(held, stamp, "a stamp changed without components");
                        values.clone()
                    }
                };
                let vectors =
                    vectors.iter().map(|(name, change)| (name.clone(), (change.0, components(name, change)))).collect();
                let payload = payload.clone().unwrap_or_else(|| old.as_ref().unwrap().2.clone());
                indexed.insert(id.clone(), (*version, vectors, payload));
            }
            IndexChange::Remove { id } => assert!(indexed.remove(id).is_some(), "removed what was not there"),
            other => panic!("no change of a point: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn entries_do_what_the_rules_say(entries in prop::collection::vec(entry(), 1..60)) {
        let (mut shard, mut model, mut indexed) = (Shard::new(), Model::default(), Indexed::new());
        let mut twin = Shard::new();
        for (envelope, valid) in &entries {
            let applied = shard.apply(envelope);
            model.step(shard.index, envelope, *valid, &applied);
            index(&mut indexed, &applied.changes);
            let meta = &shard.machine.meta;
            assert_eq!((meta.applied, meta.time_ms), (Some(log_id(shard.index)), model.now_ms));
            assert_eq!((meta.points, meta.digest), (shard.records.0.len() as u64, shard.records.digest()));
            // Another replica, which came by the entries through the log's bytes.
            twin.apply(&Envelope::decode(&envelope.encode()).unwrap());
        }
        let held: BTreeMap<PointId, ModelPoint> = shard.records.0.iter().map(|(id, record)| {
            let (_, vectors, _) = &indexed[id];
            let stamps: BTreeMap<String, Version> = vectors.iter().map(|(name, held)| (name.clone(), held.0)).collect();
            assert_eq!(stamps, record.vectors);
            let payload = payload::parse(&record.payload).unwrap();
            let (version, placement) = (record.version, record.placement);
            (id.clone(), ModelPoint { version, placement, vectors: vectors.clone(), payload })
        }).collect();
        assert_eq!(held, model.points);
        let found: BTreeMap<PointId, (Version, Payload)> =
            indexed.into_iter().map(|(id, (version, _, payload))| (id, (version, payload))).collect();
        assert_eq!(found, held.into_iter().map(|(id, point)| (id, (point.version, point.payload))).collect());
        assert_eq!((&shard.machine, &shard.records), (&twin.machine, &twin.records));
        assert_eq!(Machine::decode(&shard.machine.encode()).unwrap(), shard.machine);
    }

    #[test]
    fn where_facts_fail_nothing_has_changed(before in prop::collection::vec(entry(), 0..20), last in entry()) {
        let mut shard = Shard::new();
        before.iter().for_each(|(envelope, _)| drop(shard.apply(envelope)));
        let mut machine = shard.machine.clone();
        if machine.apply(&Broken, log_id(shard.index + 1), &last.0).is_err() {
            assert_eq!(machine, shard.machine);
        } else {
            assert_eq!(machine.meta.points, shard.machine.meta.points);
        }
    }

    #[test]
    fn any_bytes_decode_to_a_value_or_an_error(
        (envelope, _) in entry(), mut noise in prop::collection::vec(any::<u8>(), 0..120),
        at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let mut shard = Shard::new();
        shard.at(1, None, Command::OpenSession { session: session(0), opened_at_ms: 1 });
        shard.at(1, Some(request(0, 1, 0)), envelope.command.clone());
        let reply = shard.apply(&envelope).reply;
        assert_eq!(decode_reply(&encode_reply(&reply, true)).unwrap(), (reply.clone(), true));
        let record = Record {
            version: Version { epoch: 1, index: 2 }, placement: Version::default(),
            vectors: BTreeMap::from([("a".to_owned(), Version::default()), (String::new(), Version::default())]),
            payload: Bytes::from_static(b"{}"),
        };
        assert_eq!(Record::decode(&Bytes::from(record.encode())).unwrap(), record);
        if let Some(first) = noise.first_mut() {
            *first = FORMAT;
        }
        try_all(&noise);
        let whole = [
            envelope.encode().to_vec(), encode_reply(&reply, false).to_vec(), record.encode(),
            shard.machine.meta.encode(), shard.machine.encode(), shard.machine.sessions.encode(&session(0)).unwrap_or(vec![0]),
        ];
        for bytes in whole {
            try_all(&bytes[..at.index(bytes.len())]);
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            try_all(&flipped);
        }
        // rkyv reads its root at the end of the bytes, so what is cut off is missed.
        let bytes = envelope.encode();
        assert!(Envelope::decode(&bytes[..at.index(bytes.len()).min(4)]).is_err());
    }
}

fn try_all(bytes: &[u8]) {
    let _ = Envelope::decode(bytes);
    let _ = decode_reply(bytes);
    let _ = Record::decode(&Bytes::copy_from_slice(bytes));
    let _ = MachineMeta::decode(bytes);
    let _ = Machine::decode(bytes);
    let _ = Session::decode(bytes);
}

#[test]
fn newer_formats_are_named() {
    let mut bytes = plain(configure()).encode().to_vec();
    bytes[0] = 3;
    assert_eq!(Envelope::decode(&bytes), Err(CommandError::NewerFormat { found: 3, newest: 2 }));
    assert_eq!(Record::decode(&Bytes::from(bytes.clone())), Err(StateError::NewerFormat { found: 3, newest: 1 }));
    assert_eq!(Session::decode(&bytes), Err(StateError::NewerFormat { found: 3, newest: 1 }));
    assert_eq!(MachineMeta::decode(&bytes), Err(StateError::NewerFormat { found: 3, newest: 2 }));
}

fn delete(id: u64) -> Command {
    Command::Delete { ids: vec![PointId::Number(id)], precondition: None }
}

#[test]
fn a_deletion_by_filter_that_is_sent_again_deletes_no_point_twice_and_its_parts_end_with_it() {
    let mut shard = Shard::new();
    let filter = encode_filter(&serde_json::from_str::<Filter>(r#"{"equals":{"path":"n","value":2}}"#).unwrap());
    let put = |id: u64, n: u64| Command::Upsert {
        points: vec![PointWrite {
            id: PointId::Number(id),
            vectors: vec![],
            payload: format!(r#"{{"n":{n}}}"#).into_bytes(),
            others: vec![],
        }],
        preconditions: vec![],
    };
    let part = |begun: Version, ids: &[u64], last: bool| Command::DeleteIf {
        ids: ids.iter().map(|id| PointId::Number(*id)).collect(),
        filter: filter.clone(),
        begun,
        last,
    };
    let removed = |applied: &Applied| match applied.reply {
        Reply::Begun { removed, .. } | Reply::Written { removed, .. } => removed,
        ref other => panic!("{other:?}"),
    };
    for id in 1..=4 {
        shard.run(put(id, 2));
    }
    shard.run(put(5, 1));
    shard.at(0, None, Command::OpenSession { session: session(0), opened_at_ms: 0 });
    let asked = Some(request(0, 1, 0));
    let Reply::Begun { at: begun, .. } = shard.at(1, asked, Command::BeginDelete).reply else { panic!("not begun") };
    assert_eq!(removed(&shard.at(1, asked, part(begun, &[1, 2], false))), 2);
    // Written anew while the request is on its way a second time: that is another point.
    shard.run(put(1, 2));
    // Only changed: it was there all the time.
    shard.run(put(3, 2));
    let again = shard.at(2, asked, Command::BeginDelete);
    assert_eq!((again.reply, again.repeated), (Reply::Begun { at: begun, removed: 2 }, true));
    assert_eq!(removed(&shard.at(2, asked, part(begun, &[1, 2, 3], false))), 3);
    let ended = shard.at(2, asked, part(begun, &[4], true));
    assert_eq!((removed(&ended), ended.repeated), (4, false));
    // It matches now, and it was there before; but the request has been answered.
    shard.run(put(5, 2));
    let late = shard.at(3, asked, part(begun, &[1, 5], true));
    assert_eq!((removed(&late), late.repeated, late.records.len()), (4, true, 0));
    assert_eq!(shard.at(3, asked, Command::BeginDelete).reply, ended.reply);
    assert_eq!(shard.machine.meta.points, 2);
    // A part of what never began here.
    let stray = shard.at(4, Some(request(0, 2, 0)), part(begun, &[5], true));
    assert!(matches!(stray.reply, Reply::Refused(Refusal::Invalid { .. })), "{:?}", stray.reply);
    // Without a request id nothing adds the parts up.
    let Reply::Begun { at: begun, .. } = shard.run(Command::BeginDelete) else { panic!("not begun") };
    assert_eq!(removed(&shard.at(5, None, part(begun, &[1], false))), 1);
    assert_eq!(removed(&shard.at(5, None, part(begun, &[5], true))), 1);
}

#[test]
fn before_it_is_configured_a_shard_asks_to_try_again_and_then_carries_out() {
    let mut shard = Shard { machine: Machine::default(), records: Records::default(), index: 0 };
    shard.at(0, None, Command::OpenSession { session: session(1), opened_at_ms: 0 });
    assert_eq!(shard.at(0, Some(request(1, 1, 0)), delete(1)).reply, Reply::Refused(Refusal::NotConfigured));
    shard.run(configure());
    let applied = shard.at(0, Some(request(1, 1, 0)), delete(1));
    assert!(!applied.repeated && matches!(applied.reply, Reply::Written { .. }));
}

#[test]
fn settings_that_points_depend_on_cannot_change() {
    let mut shard = Shard::new();
    let other = |change: &dyn Fn(&mut CollectionSpec), home_epoch| {
        let mut spec = spec();
        change(&mut spec);
        Command::Configure { spec, home_epoch }
    };
    let refused = |reply| matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
    assert!(refused(shard.run(other(&|spec| spec.vectors.retain(|name, _| name.is_empty()), 1))));
    assert!(refused(shard.run(other(&|spec| spec.vectors.get_mut("").unwrap().dimension = 3, 1))));
    assert!(refused(shard.run(other(&|spec| spec.sparse_vectors.clear(), 1))));
    assert!(refused(shard.run(other(&|spec| spec.multi_vectors.get_mut("tokens").unwrap().dimension = 3, 1))));
    let sparse_instead = |spec: &mut CollectionSpec| {
        spec.multi_vectors.clear();
        spec.sparse_vectors.insert("tokens".to_owned(), Default::default());
    };
    assert!(refused(shard.run(other(&sparse_instead, 1))));
    assert!(refused(shard.run(other(&|spec| spec.routing_separator = "/".to_owned(), 1))));
    assert!(refused(shard.run(other(&|_| (), 0))));
    assert_eq!(shard.run(other(&|spec| spec.index.ef_search = 99, 4)), Reply::Done);
    let meta = &shard.machine.meta;
    assert_eq!((meta.home_epoch, meta.spec.as_ref().unwrap().index.ef_search), (4, 99));
}

#[test]
fn what_only_dense_vectors_need_is_written_as_the_first_format_has_it() {
    let mut dense = spec();
    (dense.sparse_vectors, dense.multi_vectors) = Default::default();
    let point = PointWrite {
        id: PointId::Number(1),
        vectors: vec![(String::new(), vec![0.6, 0.8])],
        payload: vec![],
        others: vec![],
    };
    let sparse = nearring_proto::vector::SparseVector::new(vec![3], vec![1.0]).unwrap();
    let with = PointWrite { others: vec![("words".to_owned(), sparse.into())], ..point.clone() };
    let upsert = |point: &PointWrite| Command::Upsert { points: vec![point.clone()], preconditions: vec![] };
    let cases = [
        (Command::Configure { spec: dense.clone(), home_epoch: 1 }, 1),
        (Command::Configure { spec: spec(), home_epoch: 1 }, 2),
        (upsert(&point), 1),
        (upsert(&with), 2),
    ];
    for (command, format) in cases {
        let envelope = plain(command);
        let bytes = envelope.encode();
        assert_eq!((bytes[0], Envelope::decode(&bytes)), (format, Ok(envelope)));
        let mut newer = bytes.to_vec();
        newer[0] = 3;
        assert_eq!(Envelope::decode(&newer), Err(CommandError::NewerFormat { found: 3, newest: 2 }));
    }
    for (spec, format) in [(dense, 1), (spec(), 2)] {
        let meta = MachineMeta { spec: Some(spec), ..MachineMeta::default() };
        let bytes = meta.encode();
        assert_eq!((bytes[0], MachineMeta::decode(&bytes)), (format, Ok(meta)));
    }
    // What belongs to points that are not there is damage.
    let (two, one) = (plain(upsert(&with)).encode(), plain(Command::BeginDelete).encode());
    let head = 5 + u32::from_le_bytes(two[1..5].try_into().unwrap()) as usize;
    let spliced = [&two[..head], &one[1..]].concat();
    assert!(matches!(Envelope::decode(&spliced), Err(CommandError::Malformed(_))));
}

#[test]
fn a_merge_leaves_the_numbers_that_it_does_not_name() {
    let mut shard = Shard::new();
    let id = PointId::Number(1);
    let payload = br#"{"a":2.2163263283120599e+173}"#.to_vec();
    let points = vec![PointWrite { id: id.clone(), vectors: vec![], payload, others: vec![] }];
    shard.run(Command::Upsert { points, preconditions: vec![] });
    let (ids, payload) = (vec![id.clone()], br#"{"b":1}"#.to_vec());
    shard.run(Command::SetPayload { ids, payload, mode: PayloadMode::Merge, precondition: None });
    let held = String::from_utf8(shard.records.0[&id].payload.to_vec()).unwrap();
    assert!(held.contains("2.2163263283120599e+173"), "{held}");
}

#[test]
fn a_payload_that_a_merge_makes_too_large_changes_nothing() {
    let mut shard = Shard::new();
    let half = |key: &str| format!("{{{key:?}:{:?}}}", "x".repeat(CollectionSpec::PAYLOAD_BYTES_MAX / 2)).into_bytes();
    let point = |id, payload| PointWrite { id: PointId::Number(id), vectors: vec![], payload, others: vec![] };
    let points = vec![point(1, vec![]), point(2, half("a"))];
    shard.run(Command::Upsert { points, preconditions: vec![] });
    let before = shard.records.clone();
    let ids = vec![PointId::Number(1), PointId::Number(2)];
    let merge =
        |payload| Command::SetPayload { ids: ids.clone(), payload, mode: PayloadMode::Merge, precondition: None };
    assert!(matches!(shard.run(merge(half("b"))), Reply::Refused(Refusal::Invalid { .. })));
    assert_eq!(shard.records, before);
    assert!(matches!(shard.run(merge(half("a"))), Reply::Written { applied: 2, .. }));
}

#[test]
fn bounds_on_sessions_refuse_and_never_forget_what_is_in_use() {
    let mut shard = Shard::new();
    shard.at(0, None, Command::OpenSession { session: session(0), opened_at_ms: 0 });
    for seq in 0..REPLIES_MAX as u64 {
        assert!(matches!(shard.at(0, Some(request(0, seq, 0)), delete(1)).reply, Reply::Written { .. }));
    }
    let next = REPLIES_MAX as u64;
    let refused = shard.at(0, Some(request(0, next, 0)), delete(1)).reply;
    assert!(matches!(refused, Reply::Refused(Refusal::Invalid { .. })));
    assert!(shard.at(0, Some(request(0, 5, 0)), delete(1)).repeated);
    let settled = shard.at(0, Some(request(0, next, 1)), delete(1));
    assert!(!settled.repeated && matches!(settled.reply, Reply::Written { .. }));

    let open = |number: usize, opened_at_ms| {
        let session = SessionId(uuid::Uuid::from_u128(number as u128 + 1000));
        Command::OpenSession { session, opened_at_ms }
    };
    for number in 1..SESSIONS_MAX {
        assert_eq!(shard.at(1, None, open(number, 1)).reply, Reply::Session { ttl_ms: TTL_MS });
    }
    assert_eq!(shard.at(1, None, open(0, 1)).reply, Reply::Refused(Refusal::TooManySessions));
    assert_eq!(shard.at(1, None, open(1, 1)).reply, Reply::Session { ttl_ms: TTL_MS }, "open already");
    // All but one used at 1; that one keeps its replies.
    shard.at(TTL_MS, Some(request(0, next + 1, 2)), delete(1));
    let applied = shard.at(TTL_MS + 2, None, open(0, TTL_MS));
    assert_eq!(applied.reply, Reply::Session { ttl_ms: TTL_MS });
    assert_eq!((applied.sessions.len(), shard.machine.sessions.len()), (SESSIONS_MAX, 2));
    assert!(shard.at(TTL_MS + 2, Some(request(0, 5, 0)), delete(1)).repeated);
}

#[test]
fn an_expired_session_is_not_brought_back_by_the_message_that_opened_it() {
    let mut shard = Shard::new();
    let open = |opened_at_ms| Command::OpenSession { session: session(0), opened_at_ms };
    // Its owner's clock is ahead of the shard's.
    let opened_at_ms = 500_000;
    shard.at(0, None, open(opened_at_ms));
    shard.at(1, Some(request(0, 0, 0)), delete(1));
    for now_ms in [TTL_MS + 2, opened_at_ms + TTL_MS, opened_at_ms + TTL_MS + 1] {
        assert_eq!(shard.at(now_ms, None, open(opened_at_ms)).reply, Reply::Refused(Refusal::SessionExpired));
        let late = shard.at(now_ms, Some(request(0, 0, 0)), delete(1));
        assert_eq!(late.reply, Reply::Refused(Refusal::SessionExpired));
    }
}

#[test]
fn segments_are_sealed_installed_merged_and_given_up() {
    let mut shard = Shard::new();
    let seal =
        |vector: &str, sources| Command::Seal { vector: vector.to_owned(), sources, builder: ReplicaId::from(1) };
    let install = |segment, hash| Command::Install { segment, hash: [hash; 32], members: 1, bytes: 9 };
    let invalid = |reply| matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
    assert!(invalid(shard.run(seal("nose", vec![]))));
    assert!(invalid(shard.run(seal("", vec![[1; 32]]))));
    let first = shard.apply(&plain(seal("", vec![])));
    let replaced = shard.index;
    assert!(matches!(first.changes[..], [IndexChange::Seal { segment, .. }] if segment == replaced));
    shard.run(seal("title", vec![]));
    let title = shard.index;
    let second = shard.apply(&plain(seal("", vec![])));
    let number = shard.index;
    assert!(matches!(
        second.changes[..],
        [IndexChange::Abandon { segment: a }, IndexChange::Seal { segment: b, .. }] if a == replaced && b == number
    ));
    assert_eq!(shard.machine.meta.seals.keys().copied().collect::<Vec<_>>(), [title, number]);
    assert_eq!(shard.run(install(replaced, 1)), Reply::Refused(Refusal::NotPending { segment: replaced }));
    assert_eq!(shard.run(install(number, 1)), Reply::Done);
    assert_eq!(shard.run(install(number, 2)), Reply::Refused(Refusal::NotPending { segment: number }));
    assert_eq!(shard.run(install(title, 3)), Reply::Done);
    let hashes = |shard: &Shard| shard.machine.meta.manifest.iter().map(|held| held.hash[0]).collect::<Vec<_>>();
    assert_eq!(hashes(&shard), [3, 1], "by number");
    assert!(invalid(shard.run(seal("", vec![[3; 32]]))), "another vector's");
    assert!(invalid(shard.run(seal("", vec![[1; 32], [1; 32]]))), "twice");
    shard.run(seal("", vec![[1; 32]]));
    let merged = shard.apply(&plain(install(shard.index, 4)));
    assert!(matches!(&merged.changes[..], [IndexChange::Install(held)] if held.sources == [[1; 32]]));
    assert_eq!(hashes(&shard), [3, 4]);
    assert!(shard.machine.meta.manifest.iter().all(|held| held.sources.is_empty()));
    shard.run(seal("", vec![]));
    let last = shard.index;
    assert_eq!(shard.run(Command::AbandonSeal { segment: last }), Reply::Done);
    let again = Command::AbandonSeal { segment: last };
    assert_eq!(shard.run(again), Reply::Refused(Refusal::NotPending { segment: last }));
    assert_eq!(Machine::decode(&shard.machine.encode()).unwrap(), shard.machine);
}

#[test]
fn blank_and_membership_entries_advance_what_is_applied() {
    let mut shard = Shard::new();
    shard.machine.apply_blank(log_id(7));
    assert_eq!(shard.machine.meta.applied, Some(log_id(7)));
    let membership = Membership::new_with_defaults(vec![BTreeSet::from([ReplicaId::from(1)])], []);
    shard.machine.apply_membership(log_id(8), membership.clone());
    let meta = &shard.machine.meta;
    assert_eq!((meta.applied, *meta.membership.log_id()), (Some(log_id(8)), Some(log_id(8))));
    assert_eq!(meta.membership.membership(), &membership);
    assert_eq!(&MachineMeta::decode(&meta.encode()).unwrap(), meta);
}
