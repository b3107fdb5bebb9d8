#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;

use bytes::Bytes;
use nearring_proto::collection::{FieldKind, Modifier, MultiSpec, SparseSpec, VectorSpec};
use nearring_proto::examples::Pair;
use nearring_proto::hit::rank;
use nearring_proto::vector::{Metric, MultiVector, ScalarKind, SparseVector, normalize};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::*;

const SPECS: [(Metric, ScalarKind); 5] = [
    (Metric::Cosine, ScalarKind::I8),
    (Metric::Dot, ScalarKind::F16),
    (Metric::L2, ScalarKind::F16),
    (Metric::L2, ScalarKind::F32),
    (Metric::L1, ScalarKind::F32),
];

fn collection(dimension: u32, (metric, scalar): (Metric, ScalarKind), indexed: bool) -> CollectionSpec {
    let vector = VectorSpec { dimension, metric, scalar };
    let indexes = BTreeMap::from([("n".to_owned(), FieldKind::Integer)]);
    CollectionSpec {
        name: "test".into(),
        vectors: BTreeMap::from([(String::new(), vector.clone()), ("other".into(), vector)]),
        payload_indexes: if indexed { indexes } else { BTreeMap::new() },
        shard_count: 1,
        replication_factor: 1,
        routing_separator: String::new(),
        index: IndexSpec { m: 8, ef_construction: 64, ef_search: 8, ..IndexSpec::default() },
        documents: None,
        sparse_vectors: BTreeMap::from([("words".into(), SparseSpec { modifier: Modifier::Idf })]),
        multi_vectors: BTreeMap::from([("tokens".into(), MultiSpec { dimension: 2, metric })]),
    }
}

fn configured(spec: &CollectionSpec) -> ShardIndex {
    let mut index = ShardIndex::new();
    index.apply(IndexChange::Configure(spec.clone()));
    index
}

fn id(number: u64) -> PointId {
    if number.is_multiple_of(3) { PointId::Text(format!("id {number}")) } else { PointId::Number(number) }
}

fn stamp(entry: u64) -> Stamp {
    Version { epoch: 1, index: entry }
}

/// Coarse values, so that equal scores occur.
fn random_vector(rng: &mut SmallRng, dimension: u32, metric: Metric) -> Vec<f32> {
    let mut values: Vec<f32> = (0..dimension).map(|_| rng.random_range(-3_i32..=3) as f32).collect();
    values[0] += 0.5;
    if metric == Metric::Cosine {
        normalize(&mut values);
    }
    values
}

/// Few indices and coarse values: many points share some, and many scores are equal.
fn random_sparse(rng: &mut SmallRng) -> SparseVector {
    let indices: Vec<u32> = (0..8).filter(|_| rng.random_bool(0.3)).collect();
    let values = indices.iter().map(|_| rng.random_range(-2_i32..=3) as f32 / 3.0).collect();
    SparseVector::new(indices, values).unwrap()
}

fn random_multi(rng: &mut SmallRng, metric: Metric) -> MultiVector {
    let rows = rng.random_range(1..4);
    let rows: Vec<Vec<f32>> = (0..rows).map(|_| random_vector(rng, 2, metric)).collect();
    MultiVector::from_rows(&rows).unwrap()
}

fn random_examples(rng: &mut SmallRng, vector: impl Fn(&mut SmallRng) -> Vector) -> Target {
    let list = |rng: &mut SmallRng, least: usize| (least..3).map(|_| vector(rng)).collect::<Vec<Vector>>();
    let pairs = |rng: &mut SmallRng| (0..2).map(|_| Pair { liked: vector(rng), disliked: vector(rng) }).collect();
    Target::Examples(match rng.random_range(0..5) {
        0 => Examples::Best { liked: list(rng, 1), disliked: list(rng, 2) },
        1 => Examples::Sum { liked: list(rng, 0), disliked: list(rng, 1) },
        2 => Examples::Discover { target: vector(rng), pairs: pairs(rng) },
        3 => Examples::Weighted { examples: vec![(vector(rng), 0.5), (vector(rng), -1.5)] },
        _ => Examples::Context { pairs: pairs(rng) },
    })
}

fn query(vector: impl Into<Vector>, limit: usize) -> SearchQuery {
    SearchQuery {
        vector_name: String::new(),
        target: Target::Near(vector.into()),
        limit,
        filter: None,
        exact: false,
        ef: None,
        with_payload: false,
        with_vectors: false,
        score_threshold: None,
    }
}

/// What the shard holds, kept as simply as can be.
#[derive(Default)]
struct Oracle(BTreeMap<PointId, OraclePoint>);

#[derive(Clone)]
struct OraclePoint {
    version: Version,
    vectors: BTreeMap<String, (Stamp, Components)>,
    payload: Payload,
}

impl OraclePoint {
    fn matches(&self, id: &PointId, filter: &Filter) -> bool {
        filter.matches(id, &self.payload, &|name| self.vectors.contains_key(name))
    }
}

impl Oracle {
    fn search(&self, metric: Metric, query: &SearchQuery) -> Vec<Found> {
        let metric = if matches!(query.target, Target::Near(Vector::Sparse(_))) { Metric::Dot } else { metric };
        let ranking = query.ranking(metric);
        let mut found: Vec<Found> = Vec::new();
        for (id, point) in &self.0 {
            let Some((_, values)) = point.vectors.get(&query.vector_name) else { continue };
            if query.filter.as_ref().is_some_and(|filter| !point.matches(id, filter)) {
                continue;
            }
            let score = match &query.target {
                Target::Near(vector) => score(metric, vector, values),
                Target::Examples(examples) => Some(examples.score(|example| likeness(metric, example, values))),
            };
            let Some(score) = score else { continue };
            let worse = |threshold: f32| if ranking.higher_is_nearer() { score < threshold } else { score > threshold };
            if !query.score_threshold.is_some_and(worse) {
                found.push(Found { id: id.clone(), score, version: point.version });
            }
        }
        found.sort_by(|a, b| rank(ranking, (a.score, &a.id), (b.score, &b.id)));
        found.truncate(query.limit);
        found
    }

    fn payload(&self, id: &PointId) -> Option<Payload> {
        self.0.get(id).map(|point| point.payload.clone())
    }
}

/// By the definitions.
/// As [`score`], more being nearer; 0 where nothing can be said.
fn likeness(metric: Metric, example: &Vector, held: &Components) -> f32 {
    match (example, held) {
        (Vector::Dense(example), Components::Dense(values)) => kernel::likeness(metric, example, values),
        (Vector::Multi(example), Components::Multi(vector)) => {
            let likest = |row: &[f32]| {
                vector.rows().map(|held| kernel::likeness(metric, row, held)).fold(f32::NEG_INFINITY, f32::max)
            };
            example.rows().fold(0.0, |sum, row| sum + likest(row))
        }
        _ => score(metric, example, held).unwrap_or(0.0),
    }
}

fn score(metric: Metric, query: &Vector, held: &Components) -> Option<f32> {
    match (query, held) {
        (Vector::Dense(query), Components::Dense(values)) => Some(kernel::score(metric, query, values)),
        (Vector::Sparse(query), Components::Sparse(vector)) => {
            let value = |index: u32| vector.entries().find(|(held, _)| *held == index).map(|(_, value)| value);
            let products: Vec<f32> =
                query.entries().filter_map(|(index, weight)| Some(weight * value(index)?)).collect();
            (!products.is_empty()).then(|| products.iter().fold(0.0, |sum, product| sum + product))
        }
        (Vector::Multi(query), Components::Multi(vector)) => {
            let best = |row: &[f32]| match metric {
                Metric::L2 => vector.rows().map(|held| kernel::squared_l2(row, held)).fold(f32::MAX, f32::min),
                Metric::L1 => vector.rows().map(|held| kernel::l1(row, held)).fold(f32::MAX, f32::min),
                _ => vector.rows().map(|held| kernel::dot(row, held)).fold(f32::MIN, f32::max),
            };
            let sum = query.rows().fold(0.0, |sum, row| sum + best(row));
            Some(if metric == Metric::L2 { sum.sqrt() } else { sum })
        }
        (query, held) => panic!("{query:?} asks {held:?}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put { id: u64, names: u8, seed: u64 },
    Payload { id: u64 },
    Remove { id: u64 },
    Seal { other: bool },
    Merge { other: bool },
    Install,
    Abandon,
    AttachLate,
    AddIndex,
    Check { seed: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (0_u64..50, 0_u8..16, any::<u64>()).prop_map(|(id, names, seed)| Step::Put { id, names, seed }),
        2 => (0_u64..50).prop_map(|id| Step::Payload { id }),
        4 => (0_u64..50).prop_map(|id| Step::Remove { id }),
        2 => any::<bool>().prop_map(|other| Step::Seal { other }),
        1 => any::<bool>().prop_map(|other| Step::Merge { other }),
        3 => Just(Step::Install),
        1 => Just(Step::Abandon),
        2 => Just(Step::AttachLate),
        1 => Just(Step::AddIndex),
        3 => any::<u64>().prop_map(|seed| Step::Check { seed }),
    ];
    prop::collection::vec(step, 1..250)
}

fn checks(seed: u64, metric: Metric, dimension: u32) -> Vec<SearchQuery> {
    let rng = &mut SmallRng::seed_from_u64(seed);
    let mut checks = Vec::new();
    let words = json!({"has_vector": "words"});
    for filter in [
        None,
        Some(json!({"equals": {"path": "n", "value": 1}})),
        Some(json!({"ids": [1, 2, "id 3", 99]})),
        Some(json!({"all": [words, {"not": {"has_vector": ""}}]})),
        Some(json!({"any": [{"has_vector": "tokens"}, {"equals": {"path": "n", "value": 1}}]})),
    ] {
        for exact in [true, false] {
            let mut query = query(random_vector(rng, dimension, metric), rng.random_range(1..12));
            query.exact = exact;
            query.filter = filter.clone().map(|filter| serde_json::from_value(filter).unwrap());
            query.score_threshold = rng.random_bool(0.2).then_some(0.25);
            query.vector_name = if rng.random_bool(0.3) { "other".into() } else { String::new() };
            let (vector_name, target) = ("words".into(), Target::Near(random_sparse(rng).into()));
            checks.push(SearchQuery { vector_name, target, ..query.clone() });
            let (vector_name, target) = ("tokens".into(), Target::Near(random_multi(rng, metric).into()));
            checks.push(SearchQuery { vector_name, target, ..query.clone() });
            let target = random_examples(rng, |rng| random_vector(rng, dimension, metric).into());
            checks.push(SearchQuery { target, ..query.clone() });
            let (vector_name, target) = ("words".into(), random_examples(rng, |rng| random_sparse(rng).into()));
            checks.push(SearchQuery { vector_name, target, ..query.clone() });
            let (vector_name, target) = ("tokens".into(), random_examples(rng, |rng| random_multi(rng, metric).into()));
            checks.push(SearchQuery { vector_name, target, ..query.clone() });
            checks.push(query);
        }
    }
    checks
}

/// Feeds two replicas with the same changes: `prompt` has every file before the entry that installs it, `late` when it pleases.
fn run(steps: Vec<Step>, kind: (Metric, ScalarKind)) {
    let (metric, dimension) = (kind.0, 6);
    let mut spec = collection(dimension, kind, false);
    let (mut prompt, mut late) = (configured(&spec), configured(&spec));
    let mut oracle = Oracle::default();
    let mut pending: BTreeMap<String, (SealWork, Vec<SegmentHash>)> = BTreeMap::new();
    let mut installed: Vec<InstalledSegment> = Vec::new();
    let mut held_back: Vec<Arc<Segment>> = Vec::new();
    let mut files: BTreeMap<SegmentHash, Arc<Segment>> = BTreeMap::new();
    for (step, entry) in steps.into_iter().zip(1_u64..) {
        let mut both = |change: IndexChange| {
            late.apply(change.clone());
            prompt.apply(change)
        };
        match step {
            Step::Put { id: number, names, seed } => {
                let rng = &mut SmallRng::seed_from_u64(seed);
                let mut vectors = BTreeMap::new();
                for (bit, name) in [(1, ""), (2, "other")] {
                    if names & bit != 0 {
                        let values = Vector::from(random_vector(rng, dimension, metric));
                        vectors.insert(name.to_owned(), (stamp(entry), Components::from(values)));
                    }
                }
                if names & 4 != 0 {
                    let vector = Vector::from(random_sparse(rng));
                    vectors.insert("words".to_owned(), (stamp(entry), vector.into()));
                }
                if names & 8 != 0 {
                    let vector = Vector::from(random_multi(rng, metric));
                    vectors.insert("tokens".to_owned(), (stamp(entry), vector.into()));
                }
                let payload = json!({"n": number % 4}).as_object().unwrap().clone();
                let changes = vectors.iter().map(|(name, (at, values))| (name.clone(), (*at, Some(values.clone()))));
                let (id, version, changes) = (id(number), stamp(entry), changes.collect());
                both(IndexChange::Put { id: id.clone(), version, vectors: changes, payload: Some(payload.clone()) });
                oracle.0.insert(id, OraclePoint { version, vectors, payload });
            }
            Step::Payload { id: number } => {
                let id = id(number);
                let Some(point) = oracle.0.get_mut(&id) else { continue };
                point.version = stamp(entry);
                point.payload.insert("n".into(), json!(1));
                let vectors = point.vectors.iter().map(|(name, (at, _))| (name.clone(), (*at, None))).collect();
                let (version, payload) = (point.version, Some(point.payload.clone()));
                both(IndexChange::Put { id, version, vectors, payload });
            }
            Step::Remove { id: number } => {
                oracle.0.remove(&id(number));
                both(IndexChange::Remove { id: id(number) });
            }
            Step::Seal { other } | Step::Merge { other } => {
                let vector = if other { "other" } else { "" }.to_owned();
                let mut sources = Vec::new();
                if matches!(step, Step::Merge { .. }) {
                    let installed = prompt.manifest().into_iter().filter(|entry| entry.vector == vector);
                    sources.extend(installed.take(2).map(|entry| entry.hash));
                }
                let mut both = |change: IndexChange| {
                    late.apply(change.clone());
                    prompt.apply(change)
                };
                let seal = both(IndexChange::Seal { segment: entry, vector: vector.clone(), sources: sources.clone() });
                pending.remove(&vector);
                if let Some(work) = seal {
                    pending.insert(vector, (work, sources));
                }
            }
            Step::Install => {
                let Some((vector, (mut work, sources))) = pending.pop_first() else { continue };
                if entry.is_multiple_of(3) && work.members.len() > 1 {
                    // What a file leaves out belongs to the tail.
                    let mut number = 0;
                    work.members.retain(|_| {
                        number += 1;
                        !u32::is_multiple_of(number, 4)
                    });
                }
                let file = Segment::build_with(&work, 16).unwrap();
                let segment = Arc::new(Segment::open(Bytes::from(file), None).unwrap());
                assert_eq!(segment.number(), work.segment);
                let (hash, bytes) = (segment.hash(), segment.bytes());
                prompt.attach(segment.clone());
                held_back.push(segment.clone());
                files.insert(hash, segment);
                let (segment, members) = (work.segment, work.members.len() as u64);
                let entry = InstalledSegment { segment, hash, vector, sources: sources.clone(), members, bytes };
                installed.retain(|entry: &InstalledSegment| !sources.contains(&entry.hash));
                installed.push(InstalledSegment { sources: Vec::new(), ..entry.clone() });
                late.apply(IndexChange::Install(entry.clone()));
                prompt.apply(IndexChange::Install(entry));
                assert_eq!(prompt.manifest(), by_number(installed.iter()));
                assert_eq!(late.manifest(), prompt.manifest());
            }
            Step::Abandon => {
                if let Some((_, (work, _))) = pending.pop_last() {
                    both(IndexChange::Abandon { segment: work.segment });
                }
            }
            Step::AttachLate => {
                if !held_back.is_empty() {
                    late.attach(held_back.remove(held_back.len() / 2));
                }
            }
            Step::AddIndex => {
                spec.payload_indexes.insert("n".into(), FieldKind::Integer);
                both(IndexChange::Configure(spec.clone()));
                if entry % 2 == 0 {
                    let paths = prompt.unfilled().to_vec();
                    oracle.0.iter().for_each(|(id, point)| prompt.fill_payload(id, &point.payload, &paths));
                    prompt.filled(&paths);
                }
            }
            Step::Check { seed } => check(&prompt, &late, &oracle, metric, checks(seed, metric, dimension)),
        }
    }
    for segment in held_back {
        late.attach(segment);
    }
    assert!(prompt.missing().is_empty() && prompt.wanted().is_empty());
    assert_eq!(late.missing(), prompt.missing());
    for name in ["", "other"] {
        assert_eq!(late.tail_len(name), prompt.tail_len(name));
    }
    check(&prompt, &late, &oracle, metric, checks(1, metric, dimension));
    for manifest_first in [false, true] {
        restored(&spec, &prompt, &oracle, &files, metric, manifest_first);
    }
}

fn check(prompt: &ShardIndex, late: &ShardIndex, oracle: &Oracle, metric: Metric, queries: Vec<SearchQuery>) {
    let payload = |id: &PointId| oracle.payload(id);
    for query in queries {
        let found = prompt.search(&query, &payload).unwrap();
        let wanted = oracle.search(metric, &query);
        if query.exact || !matches!(query.target, Target::Near(Vector::Dense(_))) {
            assert_eq!(found, wanted);
        } else if query.score_threshold.is_none() {
            assert_eq!(found.len(), wanted.len(), "min(k, matches) hits");
        }
        match late.search(&query, &payload) {
            Ok(late) => assert_eq!(late, found),
            Err(SearchError::SegmentMissing { .. }) => assert!(!late.missing().is_empty()),
            Err(error) => panic!("{error}"),
        }
        if let Some(filter) = &query.filter {
            let matching: Vec<PointId> =
                oracle.0.iter().filter(|(id, point)| point.matches(id, filter)).map(|(id, _)| id.clone()).collect();
            let after = matching.get(matching.len() / 3);
            let behind: Vec<PointId> =
                matching.iter().filter(|id| after.is_none_or(|after| *id > after)).take(5).cloned().collect();
            for index in [prompt, late] {
                assert_eq!(index.count(Some(filter), &payload), matching.len() as u64);
                assert_eq!(index.matching(filter, after, 5, &payload), behind);
            }
        }
    }
    assert_eq!(prompt.vectors_digest(), late.vectors_digest());
    let words = || oracle.0.values().filter_map(|point| point.vectors.get("words"));
    let has = |index: u32| {
        words().filter(move |(_, held)| matches!(held, Components::Sparse(v) if v.indices().contains(&index)))
    };
    let frequencies = (words().count() as u64, vec![has(0).count() as u64, has(5).count() as u64, 0]);
    for index in [prompt, late] {
        assert_eq!(index.frequencies("words", &[0, 5, 99]), Some(frequencies.clone()));
    }
    let held: usize = oracle.0.values().map(|point| point.vectors.len()).sum();
    for index in [prompt, late] {
        assert_eq!(index.points(), oracle.0.len() as u64);
        let live: u64 = index.manifest().iter().map(|entry| index.live_members(&entry.hash)).sum();
        let outside = index.tail_vectors().count() as u64;
        assert_eq!(live + outside, held as u64, "every vector lies in one place");
        for (id, point) in &oracle.0 {
            for (name, (_, values)) in &point.vectors {
                assert_eq!(index.vector(id, name).as_ref(), Some(values));
            }
        }
    }
}

/// A restart from records, some of the files and the vectors that are then wanted gives the same answers.
fn restored(
    spec: &CollectionSpec,
    running: &ShardIndex,
    oracle: &Oracle,
    files: &BTreeMap<SegmentHash, Arc<Segment>>,
    metric: Metric,
    manifest_first: bool,
) {
    let manifest = running.manifest();
    let local: BTreeMap<_, _> =
        manifest.iter().step_by(2).map(|entry| (entry.hash, files[&entry.hash].clone())).collect();
    let mut index = configured(spec);
    if manifest_first {
        index.restore_manifest(&manifest, local.clone());
    }
    for (id, point) in &oracle.0 {
        let stamps = point.vectors.iter().map(|(name, (stamp, _))| (name.clone(), *stamp)).collect();
        index.restore_record(id.clone(), point.version, &stamps, Some(&point.payload));
    }
    if !manifest_first {
        index.restore_manifest(&manifest, local);
    }
    assert_eq!(index.manifest(), manifest);
    for (id, name, stamp, values) in running.tail_vectors() {
        assert!(index.wants(&id, &name, stamp));
        index.restore_vector(&id, &name, stamp, values);
        assert!(!index.wants(&id, &name, stamp));
    }
    for (id, name, stamp) in index.wanted() {
        assert_eq!(oracle.0[&id].vectors[&name].0, stamp);
    }
    for entry in index.missing() {
        index.attach(files[&entry.hash].clone());
    }
    assert!(index.wanted().is_empty());
    check(running, &index, oracle, metric, checks(2, metric, spec.vectors[""].dimension));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn replicas_agree_with_each_other_and_with_brute_force(steps in steps(), kind in prop::sample::select(&SPECS[..])) {
        run(steps, kind);
    }
}

fn put(entry: u64, id: PointId, values: Vec<f32>, payload: Option<Payload>) -> IndexChange {
    let vectors = BTreeMap::from([(String::new(), (stamp(entry), Some(Vector::from(values).into())))]);
    IndexChange::Put { id, version: stamp(entry), vectors, payload }
}

/// Seals, builds, opens and installs at once.
fn seal_and_install(index: &mut ShardIndex, entry: u64, sources: Vec<SegmentHash>) -> Arc<Segment> {
    let (vector, seal_sources) = (String::new(), sources.clone());
    let work = index.apply(IndexChange::Seal { segment: entry, vector, sources: seal_sources }).unwrap();
    let segment = Arc::new(Segment::open(Bytes::from(Segment::build(&work).unwrap()), None).unwrap());
    let (hash, members, bytes) = (segment.hash(), segment.len() as u64, segment.bytes());
    index.attach(segment.clone());
    let (segment_number, vector) = (entry, String::new());
    index.apply(IndexChange::Install(InstalledSegment {
        segment: segment_number,
        hash,
        vector,
        sources,
        members,
        bytes,
    }));
    segment
}

/// 60 clusters, as real embeddings have.
fn clustered(rng: &mut SmallRng, centres: &[Vec<f32>], spec: &VectorSpec) -> Vec<f32> {
    let centre = &centres[rng.random_range(0..centres.len())];
    let mut values: Vec<f32> = centre.iter().map(|at| at + rng.random_range(-0.6_f32..0.6)).collect();
    if spec.metric == Metric::Cosine {
        normalize(&mut values);
    }
    values
}

/// Two segments with graphs and a tail of about 300, some points written twice; payload `n` counts.
fn populated(kind: (Metric, ScalarKind), indexed: bool) -> (ShardIndex, Oracle, Vec<Vec<f32>>) {
    let rng = &mut SmallRng::seed_from_u64(7);
    let mut spec = collection(32, kind, indexed);
    spec.index = IndexSpec { ef_search: 96, ..IndexSpec::default() };
    let vector = spec.vectors[""].clone();
    let centres: Vec<Vec<f32>> = (0..60).map(|_| (0..32).map(|_| rng.random_range(-1.0_f32..1.0)).collect()).collect();
    let mut index = configured(&spec);
    let mut oracle = Oracle::default();
    for entry in 1..=5_000_u64 {
        if matches!(entry, 2_600 | 4_700) {
            seal_and_install(&mut index, entry, Vec::new());
            continue;
        }
        let number = if entry % 10 == 0 { entry / 2 } else { entry };
        let values = clustered(rng, &centres, &vector);
        let payload = json!({"n": number}).as_object().cloned();
        index.apply(put(entry, PointId::Number(number), values.clone(), payload.clone()));
        let vectors = BTreeMap::from([(String::new(), (stamp(entry), Vector::from(values).into()))]);
        let point = OraclePoint { version: stamp(entry), vectors, payload: payload.unwrap() };
        oracle.0.insert(PointId::Number(number), point);
    }
    let queries = (0..100).map(|_| clustered(rng, &centres, &vector)).collect();
    (index, oracle, queries)
}

#[test]
fn walks_find_what_brute_force_finds() {
    for (metric, scalar) in SPECS {
        let (index, oracle, queries) = populated((metric, scalar), false);
        assert!(index.manifest().iter().any(|entry| index.live_members(&entry.hash) < entry.members), "some are dead");
        let (mut right, mut all) = (0, 0);
        for vector in queries {
            let query = query(vector, 10);
            let wanted = oracle.search(metric, &query);
            let found = index.search(&query, &|_| None).unwrap();
            assert_eq!(found.len(), 10);
            for hit in &found {
                let (_, values) = &oracle.0[&hit.id].vectors[""];
                assert_eq!(hit.score.to_bits(), score(metric, query.vectors()[0], values).unwrap().to_bits());
            }
            right += found.iter().filter(|hit| wanted.contains(hit)).count();
            all += wanted.len();
        }
        assert!(right * 100 >= all * 95, "{metric:?} {scalar:?}: {right} of {all}");
    }
}

#[test]
fn filtered_searches_bring_as_many_as_there_are() {
    for indexed in [true, false] {
        let (index, oracle, queries) = populated((Metric::Cosine, ScalarKind::I8), indexed);
        for share in [2, 5, 20, 100, 1000, 100_000] {
            let filter = json!({"range": {"path": "n", "gt": 1000, "lte": 1000 + 4000 / share}});
            let (mut right, mut all) = (0, 0);
            for vector in &queries[..20] {
                let mut query = query(vector.clone(), 10);
                query.filter = Some(serde_json::from_value(filter.clone()).unwrap());
                let asked = std::cell::Cell::new(0);
                let payload = |id: &PointId| {
                    asked.set(asked.get() + 1);
                    oracle.payload(id)
                };
                let found = index.search(&query, &payload).unwrap();
                let wanted = oracle.search(Metric::Cosine, &query);
                assert_eq!(found.len(), wanted.len(), "1/{share}");
                assert!(!indexed || asked.get() == 0, "the indexes know");
                if !indexed {
                    assert_eq!(found, wanted);
                }
                right += found.iter().filter(|hit| wanted.contains(hit)).count();
                all += wanted.len();
            }
            assert!(right * 100 >= all * 95, "1/{share}: {right} of {all}");
        }
    }
}

#[test]
fn merging_leaves_one_segment_with_the_living() {
    let (mut index, oracle, queries) = populated((Metric::Cosine, ScalarKind::I8), false);
    let digest = index.vectors_digest();
    let sources: Vec<SegmentHash> = index.manifest().iter().map(|entry| entry.hash).collect();
    let living: u64 = sources.iter().map(|hash| index.live_members(hash)).sum();
    let merged = seal_and_install(&mut index, 6_000, sources);
    assert_eq!(index.manifest().len(), 1);
    assert_eq!((merged.len() as u64, index.live_members(&merged.hash())), (living, living));
    assert_eq!(index.vectors_digest(), digest);
    let tail = index.tail_len("");
    assert_eq!(tail as u64 + living, oracle.0.len() as u64);
    let query = query(queries[0].clone(), 10);
    assert_eq!(index.search(&query, &|_| None).unwrap()[0], oracle.search(Metric::Cosine, &query)[0]);
}

#[test]
fn one_build_is_like_the_next() {
    let (mut index, ..) = populated((Metric::Cosine, ScalarKind::I8), false);
    let sources: Vec<SegmentHash> = index.manifest().iter().map(|entry| entry.hash).collect();
    let work = index.apply(IndexChange::Seal { segment: 6_000, vector: String::new(), sources }).unwrap();
    assert!(Segment::build(&work).unwrap() == Segment::build(&work).unwrap());
}

#[test]
fn concurrent_searches_wait_for_one_another_and_agree() {
    let (index, _, queries) = populated((Metric::Cosine, ScalarKind::I8), false);
    let wanted: Vec<_> =
        queries.iter().map(|vector| index.search(&query(vector.clone(), 10), &|_| None).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for (vector, wanted) in queries.iter().zip(&wanted) {
                    assert_eq!(&index.search(&query(vector.clone(), 10), &|_| None).unwrap(), wanted);
                }
            });
        }
    });
}

#[test]
fn values_that_half_precision_cannot_hold_are_found() {
    for scale in [1e9_f32, 1e-9] {
        let mut index = configured(&collection(2, (Metric::L2, ScalarKind::F16), false));
        for entry in 1..=2_100_u64 {
            let values = vec![(entry % 50) as f32 * scale, (entry / 50) as f32 * scale];
            index.apply(put(entry, PointId::Number(entry), values, None));
        }
        seal_and_install(&mut index, 3_000, Vec::new());
        let mut query = query(vec![7.0 * scale, 20.0 * scale], 3);
        query.ef = Some(64);
        let found = index.search(&query, &|_| None).unwrap();
        query.exact = true;
        assert_eq!(found, index.search(&query, &|_| None).unwrap());
        assert_eq!((&found[0].id, found[0].score), (&PointId::Number(1_007), 0.0));
    }
}

#[test]
fn what_a_graph_cannot_tell_apart_is_sealed_all_the_same() {
    let mut index = configured(&collection(4, (Metric::Cosine, ScalarKind::I8), false));
    for entry in 1..=2_100_u64 {
        let mut values = vec![1.0, 1.0, 1.0, 1.0 + entry as f32 * 1e-7];
        normalize(&mut values);
        index.apply(put(entry, PointId::Number(entry), values, None));
    }
    seal_and_install(&mut index, 3_000, Vec::new());
    assert_eq!(index.search(&query(vec![0.5; 4], 10), &|_| None).unwrap().len(), 10);
}

/// Many windows of slots and blocks of lists, written in one order here and in another there, with deletions.
#[test]
fn a_large_sparse_vector_is_searched_exactly_and_alike_whatever_came_when() {
    let rng = &mut SmallRng::seed_from_u64(3);
    let spec = collection(2, (Metric::Dot, ScalarKind::F32), true);
    // Few points have one of the later indices, nearly all the first.
    let vectors: Vec<SparseVector> = (0..40_000)
        .map(|_| {
            let indices: std::collections::BTreeSet<u32> =
                (0..4).map(|_| (rng.random_range(0.0_f32..1.0).powi(6) * 2_000.0) as u32).collect();
            let values = indices.iter().map(|_| rng.random_range(0.0_f32..1.0)).collect();
            SparseVector::new(indices.into_iter().collect(), values).unwrap()
        })
        .collect();
    let change = |number: usize, entry: u64| {
        let held = Components::from(Vector::from(vectors[number].clone()));
        IndexChange::Put {
            id: PointId::Number(number as u64),
            version: stamp(number as u64),
            vectors: BTreeMap::from([("words".to_owned(), (stamp(entry), Some(held)))]),
            payload: json!({"n": number % 100, "m": number % 100}).as_object().cloned(),
        }
    };
    let (mut one, mut other) = (configured(&spec), configured(&spec));
    (0..vectors.len()).for_each(|number| drop(one.apply(change(number, number as u64))));
    for number in (0..vectors.len()).rev() {
        other.apply(change(number, 7));
        if number % 3 == 0 {
            other.apply(IndexChange::Remove { id: PointId::Number(number as u64) });
        }
    }
    // Written again, also where nothing was removed: another stamp.
    (0..vectors.len()).for_each(|number| drop(other.apply(change(number, number as u64))));
    assert_eq!(one.vectors_digest(), other.vectors_digest());
    assert_eq!(one.resident_bytes(), other.resident_bytes());
    let payload = |id: &PointId| match id {
        PointId::Number(number) => json!({"n": number % 100, "m": number % 100}).as_object().cloned(),
        _ => None,
    };
    for filter in [json!(null), json!({"equals": {"path": "n", "value": 7}}), json!({"range": {"path": "m", "lt": 50}})]
    {
        let filter: Option<Filter> = serde_json::from_value(filter).unwrap();
        for indices in [vec![0, 1, 5, 40, 900], vec![1_500, 1_501, 1_777], vec![], vec![9_999]] {
            let values = indices.iter().map(|_| rng.random_range(0.0_f32..2.0)).collect();
            let asked = SparseVector::new(indices, values).unwrap();
            let mut wanted: Vec<Found> = Vec::new();
            for (number, vector) in (0..).zip(&vectors) {
                let id = PointId::Number(number);
                if filter.as_ref().is_none_or(|filter| filter.matches(&id, &payload(&id).unwrap(), &|_| false))
                    && let Some(score) = asked.dot(vector)
                {
                    wanted.push(Found { id, score, version: stamp(number) });
                }
            }
            wanted.sort_by(|a, b| rank(Metric::Dot, (a.score, &a.id), (b.score, &b.id)));
            wanted.truncate(50);
            let mut query = query(asked, 50);
            query.vector_name = "words".into();
            query.filter = filter.clone();
            for index in [&one, &other] {
                assert_eq!(index.search(&query, &payload).unwrap(), wanted);
            }
        }
    }
    (0..vectors.len()).for_each(|number| drop(one.apply(IndexChange::Remove { id: PointId::Number(number as u64) })));
    assert_eq!((one.resident_bytes(), one.vectors_digest()), (0, 0));
    assert_eq!(one.frequencies("words", &[0, 1]), Some((0, vec![0, 0])));
}

#[test]
fn what_cannot_be_answered_is_refused_by_name() {
    let mut index = configured(&collection(2, (Metric::L2, ScalarKind::F32), false));
    let ask = |index: &ShardIndex, query: &SearchQuery| index.search(query, &|_| None);
    let unknown = SearchQuery { vector_name: "none".into(), ..query(vec![0.0; 2], 1) };
    assert_eq!(ask(&index, &unknown), Err(SearchError::UnknownVector("none".into())));
    assert_eq!(ask(&index, &query(vec![0.0; 3], 1)), Err(SearchError::Dimension { got: 3, want: 2 }));
    let sparse = SparseVector::new(vec![1], vec![1.0]).unwrap();
    assert_eq!(ask(&index, &query(sparse.clone(), 1)), Err(SearchError::UnknownVector(String::new())), "of its kind");
    let words = SearchQuery { vector_name: "words".into(), ..query(sparse, 1) };
    index.restore_record(id(2), stamp(1), &BTreeMap::from([("words".to_owned(), stamp(1))]), None);
    assert_eq!(ask(&index, &words), Err(SearchError::Restoring { vector: "words".into(), wanted: 1 }));
    assert_eq!(index.frequencies("words", &[1]), None);
    index.apply(IndexChange::Remove { id: id(2) });
    assert_eq!(ask(&index, &words), Ok(vec![]));
    let vector = String::new();
    index.restore_record(id(1), stamp(1), &BTreeMap::from([(vector.clone(), stamp(1))]), None);
    let here = query(vec![0.0; 2], 1);
    assert_eq!(ask(&index, &here), Err(SearchError::Restoring { vector: vector.clone(), wanted: 1 }));
    assert!(index.apply(IndexChange::Seal { segment: 2, vector: vector.clone(), sources: vec![] }).is_none());
    let lost =
        InstalledSegment { segment: 9, hash: [9; 32], vector: vector.clone(), sources: vec![], members: 1, bytes: 1 };
    index.apply(IndexChange::Install(lost));
    assert_eq!(ask(&index, &here), Err(SearchError::SegmentMissing { vector, segments: vec![9] }));
}

fn small_file(graph_from: usize) -> Vec<u8> {
    let rng = &mut SmallRng::seed_from_u64(3);
    let members = (0..40_u64).map(|number| {
        let values = random_vector(rng, 5, Metric::L2);
        Member::new(PointId::Number(number * 2), stamp(number), values)
    });
    let work = SealWork {
        segment: 77,
        vector: "name".into(),
        spec: VectorSpec { dimension: 5, metric: Metric::L2, scalar: ScalarKind::F16 },
        index: IndexSpec::default(),
        members: members.collect(),
    };
    let file = Segment::build_with(&work, graph_from).unwrap();
    let segment = Segment::open(Bytes::from(file.clone()), None).unwrap();
    assert!(segment.members().eq(work.members.iter().map(|member| (member.id.clone(), member.stamp))));
    for (member, row) in work.members.iter().zip(0..) {
        assert_eq!(segment.row(row), member.values());
        assert_eq!(segment.row_of(&member.id, member.stamp), Some(row));
        assert_eq!(segment.row_of(&member.id, stamp(1_000)), None);
    }
    assert_eq!(segment.row_of(&PointId::Number(1), stamp(0)), None);
    file
}

#[test]
fn a_file_is_what_it_says_or_an_error() {
    let file = small_file(usize::MAX);
    let hash = Segment::file_hash(&file).unwrap();
    assert!(Segment::open(Bytes::from(file.clone()), Some(hash)).is_ok());
    assert_eq!(Segment::open(Bytes::from(file.clone()), Some([0; 32])).unwrap_err(), SegmentError::Other);
    // At an odd address rows are copied rather than used in place.
    let odd = Bytes::from([&[0; 1], file.as_slice()].concat()).slice(1..);
    assert_eq!(
        Segment::open(odd, None).unwrap().row(3),
        Segment::open(Bytes::from(file.clone()), None).unwrap().row(3)
    );
    let mut newer = file.clone();
    newer[8] = 2;
    assert_eq!(Segment::open(rehashed(newer), None).unwrap_err(), SegmentError::Newer { found: 2, known: 1 });
    assert!(matches!(Segment::open(Bytes::new(), None), Err(SegmentError::Corrupt(_))));
}

/// Gives altered contents the footer they deserve, so that the checks behind the hash are reached.
fn rehashed(mut file: Vec<u8>) -> Bytes {
    let end = file.len() - 48;
    let hash = blake3::hash(&file[..end]);
    file.truncate(end);
    file.extend_from_slice(&(end as u64).to_le_bytes());
    file.extend_from_slice(b"NRSEGEND");
    file.extend_from_slice(hash.as_bytes());
    Bytes::from(file)
}

proptest! {
    #[test]
    fn damaged_files_are_errors(at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<prop::sample::Index>()) {
        let mut file = small_file(16);
        let cut = cut.index(file.len());
        prop_assert!(Segment::open(Bytes::copy_from_slice(&file[..cut]), None).is_err());
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        prop_assert!(Segment::open(Bytes::from(file), None).is_err());
    }

    #[test]
    fn contents_that_lie_are_errors_or_harmless(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        in_header in any::<bool>(),
        cut in 0_usize..40,
    ) {
        let mut file = small_file(usize::MAX);
        let content = if in_header { 64 } else { file.len() - 48 };
        for (at, value) in damage {
            file[at.index(content)] = value;
        }
        // A flag that promises a graph would hand damaged bytes to usearch, which the hash alone guards.
        file[12] &= !1;
        file.truncate(file.len() - cut);
        if let Ok(segment) = Segment::open(rehashed(file), None) {
            for ((id, stamp), row) in segment.members().zip(0..) {
                prop_assert_eq!(segment.row(row).len(), segment.spec().dimension as usize);
                prop_assert_eq!(segment.row_of(&id, stamp), Some(row));
            }
        }
    }
}
