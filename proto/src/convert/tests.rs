//! What is written reads back equal, through bytes; what is malformed is refused by field.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::fmt::Debug;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::collection::{
    Collection, CollectionSpec, CollectionUpdate, DocumentSpec, FieldKind, IndexSpec, Modifier, MultiSpec, SparseSpec,
    VectorSpec,
};
use crate::coverage::{Coverage, ShardCoverage};
use crate::examples::{Examples, Pair};
use crate::filter::{Filter, Range, Scalar};
use crate::hit::Hit;
use crate::ids::{
    ClusterId, CollectionId, Epoch, Incarnation, NodeId, PointId, ReplicaId, RequestId, SessionId, ShardId, Version,
};
use crate::placement::table::{AliasAction, Change, Node, Shard, ShardState, Table};
use crate::position::{Position, ReadLevel, ReadToken};
use crate::query::{SearchQuery, Target};
use crate::vector::{Metric, ScalarKind};
use crate::write::{Outcome, PayloadMode, Point, PointRecord, Precondition};

/// Through the bytes, as a peer sees it.
fn reread<W: Message + Default, T>(value: &T) -> Result<T, DecodeError>
where
    T: Clone + Into<W> + TryFrom<W>,
    DecodeError: From<<T as TryFrom<W>>::Error>,
{
    let bytes = Into::<W>::into(value.clone()).encode_to_vec();
    Ok(T::try_from(W::decode(bytes.as_slice()).unwrap())?)
}

fn id() -> impl Strategy<Value = PointId> {
    prop_oneof![
        any::<u64>().prop_map(PointId::Number),
        any::<u128>().prop_map(|bits| PointId::Uuid(Uuid::from_u128(bits))),
        ".{1,20}".prop_map(PointId::Text),
        // Text that looks like the other kinds stays text.
        any::<u64>().prop_map(|number| PointId::Text(number.to_string())),
        any::<u128>().prop_map(|bits| PointId::Text(Uuid::from_u128(bits).to_string())),
    ]
}

fn version() -> impl Strategy<Value = Version> {
    (any::<u64>(), any::<u64>()).prop_map(|(epoch, index)| Version { epoch, index })
}

fn position() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<u64>()).prop_map(|(shard, index)| Position { shard: ShardId(shard), index })
}

fn float() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("NaN equals nothing", |value| !value.is_nan())
}

fn any_vector() -> impl Strategy<Value = Vector> {
    let finite = || float().prop_filter("infinite", |value| value.is_finite());
    let sparse = btree_map(any::<u32>(), finite(), 0..5).prop_map(|entries| {
        let (indices, values) = entries.into_iter().unzip();
        Vector::from(SparseVector::new(indices, values).unwrap())
    });
    let multi = (1..4_u32).prop_flat_map(|dimension| (Just(dimension), vec(vec(float(), dimension as usize), 1..4)));
    let multi = multi.prop_map(|(dimension, rows)| MultiVector::new(dimension, rows.concat()).unwrap().into());
    prop_oneof![2 => vec(float(), 0..5).prop_map(Vector::Dense), 1 => sparse, 1 => multi]
}

fn named_vectors() -> impl Strategy<Value = BTreeMap<String, Vector>> {
    btree_map("[a-z]{0,4}", any_vector(), 0..4)
}

fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn point() -> impl Strategy<Value = Point> {
    (id(), named_vectors(), payload()).prop_map(|(id, vectors, payload_json)| Point { id, vectors, payload_json })
}

fn number() -> impl Strategy<Value = Scalar> {
    let float = any::<f64>().prop_filter("NaN is refused", |value| !value.is_nan());
    prop_oneof![any::<i64>().prop_map(Scalar::Int), float.prop_map(Scalar::Float)]
}

fn scalar() -> impl Strategy<Value = Scalar> {
    prop_oneof![number(), ".{0,8}".prop_map(Scalar::Text), any::<bool>().prop_map(Scalar::Bool)]
}

fn range() -> impl Strategy<Value = Range> {
    (number(), option::of(number()), option::of(number()), option::of(number())).prop_map(|(gt, gte, lt, lte)| Range {
        gt: Some(gt),
        gte,
        lt,
        lte,
    })
}

fn filter() -> impl Strategy<Value = Filter> {
    let path = || "[a-z.]{1,8}";
    let leaf = prop_oneof![
        (path(), scalar()).prop_map(|(path, value)| Filter::Equals { path, value }),
        (path(), vec(scalar(), 0..4)).prop_map(|(path, values)| Filter::In { path, values }),
        (path(), range()).prop_map(|(path, range)| Filter::Range { path, range }),
        path().prop_map(Filter::Exists),
        path().prop_map(Filter::IsNull),
        "[a-z]{0,8}".prop_map(Filter::HasVector),
        vec(id(), 0..4).prop_map(Filter::Ids),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Filter::All),
            vec(inner.clone(), 0..4).prop_map(Filter::Any),
            inner.prop_map(|inner| Filter::Not(Box::new(inner))),
        ]
    })
}

fn kinds() -> impl Strategy<Value = BTreeMap<String, FieldKind>> {
    use FieldKind::*;
    btree_map("[a-z]{1,6}", prop::sample::select(vec![Keyword, Integer, Float, Bool, Datetime]), 0..5)
}

fn vector_spec() -> impl Strategy<Value = VectorSpec> {
    let metric = prop::sample::select(vec![Metric::Cosine, Metric::Dot, Metric::L2, Metric::L1]);
    let scalar = prop::sample::select(vec![ScalarKind::F32, ScalarKind::F16, ScalarKind::I8]);
    (any::<u32>(), metric, scalar).prop_map(|(dimension, metric, scalar)| VectorSpec { dimension, metric, scalar })
}

fn collection_spec() -> impl Strategy<Value = CollectionSpec> {
    let index = (1..=u32::MAX, 1..=u32::MAX, 1..=u32::MAX, 1..=u32::MAX).prop_map(
        |(m, ef_construction, ef_search, seal_points)| IndexSpec { m, ef_construction, ef_search, seal_points },
    );
    let documents = (".{0,6}", ".{0,6}", ".{0,6}").prop_map(|(embedder, vector, text_field)| DocumentSpec {
        embedder,
        vector,
        text_field,
    });
    let modifier = prop::sample::select(vec![Modifier::None, Modifier::Idf]);
    let sparse = btree_map(".{0,6}", modifier.prop_map(|modifier| SparseSpec { modifier }), 0..3);
    let multi = vector_spec().prop_map(|spec| MultiSpec { dimension: spec.dimension, metric: spec.metric });
    let vectors = (btree_map(".{0,6}", vector_spec(), 0..4), sparse, btree_map(".{0,6}", multi, 0..3));
    (".{0,8}", vectors, kinds(), any::<u32>(), any::<u32>(), ".{0,3}", index, option::of(documents)).prop_map(
        |(name, vectors, payload_indexes, shard_count, replication_factor, routing_separator, index, documents)| {
            let (vectors, sparse_vectors, multi_vectors) = vectors;
            CollectionSpec {
                name,
                vectors,
                payload_indexes,
                shard_count,
                replication_factor,
                routing_separator,
                index,
                documents,
                sparse_vectors,
                multi_vectors,
            }
        },
    )
}

fn update() -> impl Strategy<Value = CollectionUpdate> {
    let parts = (".{0,8}", kinds(), vec(".{0,4}", 0..3), any::<[u32; 4]>(), ".{0,4}");
    parts.prop_map(|(name, add, drop, settings, name_of_sparse)| CollectionUpdate {
        name,
        add_payload_indexes: add,
        drop_payload_indexes: drop,
        m: settings[0],
        ef_construction: settings[1],
        ef_search: settings[2],
        seal_points: settings[3],
        sparse_vectors: [(name_of_sparse.clone(), SparseSpec { modifier: Modifier::Idf })].into(),
        add_vectors: [(
            name_of_sparse.clone(),
            VectorSpec { dimension: settings[0], metric: Metric::L1, scalar: ScalarKind::F32 },
        )]
        .into(),
        add_sparse_vectors: [(format!("{name_of_sparse}s"), SparseSpec { modifier: Modifier::None })].into(),
        add_multi_vectors: [(name_of_sparse, MultiSpec { dimension: settings[1], metric: Metric::Dot })].into(),
    })
}

fn target() -> impl Strategy<Value = Target> {
    let pairs = || {
        let pair = (any_vector(), any_vector()).prop_map(|(liked, disliked)| Pair { liked, disliked });
        vec(pair, 0..3)
    };
    let lists = || (vec(any_vector(), 0..3), vec(any_vector(), 0..3));
    prop_oneof![
        any_vector().prop_map(Target::Near),
        lists().prop_map(|(liked, disliked)| Target::Examples(Examples::Best { liked, disliked })),
        lists().prop_map(|(liked, disliked)| Target::Examples(Examples::Sum { liked, disliked })),
        (any_vector(), pairs()).prop_map(|(target, pairs)| Target::Examples(Examples::Discover { target, pairs })),
        pairs().prop_map(|pairs| Target::Examples(Examples::Context { pairs })),
        vec((any_vector(), float()), 0..3).prop_map(|examples| Target::Examples(Examples::Weighted { examples })),
    ]
}

fn query() -> impl Strategy<Value = SearchQuery> {
    let ef = option::of((1..=u32::MAX).prop_map(|ef| ef as usize));
    (".{0,4}", target(), any::<u32>(), option::of(filter()), any::<[bool; 3]>(), ef, option::of(float())).prop_map(
        |(vector_name, target, limit, filter, flags, ef, score_threshold)| SearchQuery {
            vector_name,
            target,
            limit: limit as usize,
            filter,
            exact: flags[0],
            ef,
            with_payload: flags[1],
            with_vectors: flags[2],
            score_threshold,
        },
    )
}

fn coverage() -> impl Strategy<Value = Coverage> {
    let shard = prop_oneof![
        (any::<u64>(), any::<u64>(), vec(payload(), 0..3))
            .prop_map(|(node, index, segments)| { ShardCoverage::Searched { node: NodeId(node), index, segments } }),
        float().prop_map(|estimated_loss| ShardCoverage::Skipped { estimated_loss }),
        ".{0,8}".prop_map(|reason| ShardCoverage::Failed { reason }),
    ];
    btree_map(any::<u64>().prop_map(ShardId), shard, 0..5).prop_map(Coverage)
}

fn outcome() -> impl Strategy<Value = (usize, Outcome)> {
    let outcome = prop_oneof![
        Just(Outcome::Applied),
        Just(Outcome::NotFound),
        version().prop_map(Outcome::AlreadyExists),
        option::of(version()).prop_map(Outcome::VersionMismatch),
        Just(Outcome::FilterMismatch),
    ];
    (any::<u32>().prop_map(|position| position as usize), outcome)
}

fn node() -> impl Strategy<Value = Node> {
    (any::<u64>(), any::<u64>(), ".{0,8}", ".{0,4}").prop_map(|(id, incarnation, address, zone)| Node {
        id: NodeId(id),
        incarnation: Incarnation(incarnation),
        address,
        zone,
    })
}

fn replicas() -> impl Strategy<Value = Vec<ReplicaId>> {
    let replica = (any::<u64>(), any::<u64>())
        .prop_map(|(node, incarnation)| ReplicaId { node: NodeId(node), incarnation: Incarnation(incarnation) });
    vec(replica, 0..4)
}

fn shard() -> impl Strategy<Value = Shard> {
    let state = prop::sample::select(vec![ShardState::Creating, ShardState::Active]);
    (any::<[u64; 3]>(), state, replicas()).prop_map(|(numbers, state, replicas)| Shard {
        id: ShardId(numbers[0]),
        collection: CollectionId(numbers[1]),
        state,
        replicas,
        home_epoch: numbers[2],
    })
}

fn collection() -> impl Strategy<Value = Collection> {
    (any::<u64>(), collection_spec(), vec(any::<u64>().prop_map(ShardId), 0..4))
        .prop_map(|(id, spec, shards)| Collection { id: CollectionId(id), spec, shards })
}

fn table() -> impl Strategy<Value = Table> {
    let dropped = btree_map(any::<u64>().prop_map(ShardId), replicas(), 0..3);
    (any::<u128>(), any::<[u64; 2]>(), vec(node(), 0..4), vec(collection(), 0..3), vec(shard(), 0..4), dropped)
        .prop_map(|(cluster, numbers, nodes, collections, shards, dropped)| Table {
            cluster: ClusterId(Uuid::from_u128(cluster)),
            epoch: Epoch(numbers[0]),
            nodes: nodes.into_iter().map(|node| (node.id, node)).collect(),
            collections: collections.into_iter().map(|collection| (collection.id, collection)).collect(),
            shards: shards.into_iter().map(|shard| (shard.id, shard)).collect(),
            dropped,
            next_id: numbers[1],
            aliases: [("a".to_owned(), CollectionId(numbers[0]))].into(),
            attributes: [(CollectionId(numbers[1]), [("k".to_owned(), "v".to_owned())].into())].into(),
        })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        node().prop_map(Change::Join),
        collection_spec().prop_map(Change::CreateCollection),
        update().prop_map(Change::UpdateCollection),
        ".{0,8}".prop_map(Change::DeleteCollection),
        any::<u64>().prop_map(|shard| Change::ShardReady(ShardId(shard))),
        vec(alias_action(), 0..3).prop_map(Change::ChangeAliases),
        (".{0,8}", btree_map(".{0,3}", ".{0,3}", 0..3))
            .prop_map(|(collection, values)| Change::SetAttributes { collection, values }),
    ]
}

fn alias_action() -> impl Strategy<Value = AliasAction> {
    prop_oneof![
        (".{0,8}", ".{0,8}").prop_map(|(alias, collection)| AliasAction::Assign { alias, collection }),
        ".{0,8}".prop_map(AliasAction::Remove),
        (".{0,8}", ".{0,8}").prop_map(|(from, to)| AliasAction::Rename { from, to }),
    ]
}

impl From<std::convert::Infallible> for DecodeError {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

fn same<W: Message + Default, T>(value: T) -> Result<(), TestCaseError>
where
    T: Clone + Debug + PartialEq + Into<W> + TryFrom<W>,
    DecodeError: From<<T as TryFrom<W>>::Error>,
{
    let read = reread::<W, T>(&value);
    prop_assert_eq!(read, Ok(value));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn points_round_trip(
        id in id(), version in version(), position in position(), point in point(), score in float(),
    ) {
        same::<wire::PointId, _>(id.clone())?;
        same::<wire::Version, _>(version)?;
        same::<wire::Position, _>(position)?;
        same::<wire::Point, _>(point.clone())?;
        let Point { vectors, payload_json, .. } = point;
        let record = PointRecord { id: id.clone(), version, payload_json: payload_json.clone(), vectors: vectors.clone() };
        same::<wire::PointRecord, _>(record)?;
        same::<wire::Hit, _>(Hit { id, score, version, payload_json, vectors })?;
    }

    #[test]
    fn filters_round_trip(filter in filter(), scalar in scalar(), range in range()) {
        prop_assert_eq!(decode_filter(&encode_filter(&filter)), Ok(filter.clone()));
        same::<wire::Filter, _>(filter)?;
        same::<wire::Scalar, _>(scalar)?;
        same::<wire::Range, _>(range)?;
    }

    #[test]
    fn queries_and_coverage_round_trip(query in query(), coverage in coverage(), positions in vec(position(), 0..5)) {
        same::<wire::SearchQuery, _>(query)?;
        same::<wire::Coverage, _>(coverage)?;
        let token: ReadToken = positions.into_iter().collect();
        prop_assert_eq!(ReadToken::from(Vec::<wire::Position>::from(&token)), token);
    }

    #[test]
    fn writes_round_trip(outcome in outcome(), version in version(), session in any::<u128>(), seqs in any::<[u64; 2]>()) {
        same::<wire::PointOutcome, _>(outcome)?;
        same::<wire::Precondition, _>(Precondition::IfVersion(version))?;
        same::<wire::Precondition, _>(Precondition::InsertOnly)?;
        let session = SessionId(Uuid::from_u128(session));
        same::<wire::RequestId, _>(RequestId { session, seq: seqs[0], settled_below: seqs[1] })?;
    }

    #[test]
    fn collections_and_tables_round_trip(
        collection in collection(), update in update(), table in table(), change in change(),
    ) {
        same::<wire::VectorSpec, _>(VectorSpec { dimension: 3, metric: Metric::L2, scalar: ScalarKind::F32 })?;
        same::<wire::IndexSpec, _>(collection.spec.index)?;
        same::<wire::CollectionSpec, _>(collection.spec.clone())?;
        same::<wire::CollectionInfo, _>(collection)?;
        same::<wire::UpdateCollection, _>(update)?;
        let bytes = wire::ClusterTable::from(table.clone()).encode_to_vec();
        prop_assert_eq!(wire::ClusterTable::from(table.clone()).encode_to_vec(), bytes, "equal tables are equal bytes");
        same::<wire::ClusterTable, _>(table)?;
        let read = Change::try_from(wire::propose_meta_request::Change::from(change.clone()));
        prop_assert_eq!(read, Ok(change));
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode_filter(&bytes);
        let _ = wire::ClusterTable::decode(bytes.as_slice()).map(Table::try_from);
        let _ = wire::Point::decode(bytes.as_slice()).map(Point::try_from);
    }
}

#[test]
fn enums_round_trip() {
    for level in [ReadLevel::Eventual, ReadLevel::Session, ReadLevel::Linearizable] {
        assert_eq!(read_level(wire::ReadLevel::from(level).into()), Ok(Some(level)));
    }
    assert_eq!(read_level(0), Ok(None));
    for mode in [PayloadMode::Merge, PayloadMode::Overwrite, PayloadMode::DeleteKeys] {
        assert_eq!(payload_mode(wire::PayloadMode::from(mode).into()), Ok(mode));
    }
    assert_eq!(payload_mode(0), Ok(PayloadMode::Merge));
}

fn field<T: Debug>(read: Result<T, DecodeError>) -> String {
    read.unwrap_err().field
}

#[test]
fn malformed_messages_are_refused_by_field() {
    use wire::point_id::Id;
    let id = |id| wire::PointId { id: Some(id) };
    assert_eq!(field(PointId::try_from(wire::PointId { id: None })), "id");
    assert_eq!(field(PointId::try_from(id(Id::Uuid(Bytes::from_static(&[1; 15]))))), "uuid");
    assert_eq!(field(PointId::try_from(id(Id::Text(String::new())))), "text");
    assert_eq!(field(PointId::try_from(id(Id::Text("x".repeat(1025))))), "text");
    let vector = wire::NamedVector { name: "a".into(), values: vec![1.0], ..Default::default() };
    let sparse = wire::SparseVector { indices: vec![1, 1], values: vec![1.0; 2] };
    let multi = wire::MultiVector { dimension: 2, values: vec![1.0; 3] };
    let bad = [
        ("sparse", wire::NamedVector { values: vec![], sparse: Some(sparse.clone()), ..vector.clone() }),
        ("sparse", wire::NamedVector { sparse: Some(wire::SparseVector::default()), ..vector.clone() }),
        ("multi", wire::NamedVector { values: vec![], multi: Some(multi.clone()), ..vector.clone() }),
        ("multi", wire::NamedVector { multi: Some(multi.clone()), ..vector.clone() }),
        ("multi", wire::NamedVector { sparse: Some(sparse.clone()), multi: Some(multi.clone()), ..vector.clone() }),
    ];
    for (wanted, vector) in bad {
        let point = wire::Point { id: Some(id(Id::Number(1))), vectors: vec![vector], payload_json: Bytes::new() };
        assert_eq!(field(Point::try_from(point)), format!("vectors[0].{wanted}"));
    }
    let query = wire::SearchQuery { vector: vec![1.0], sparse: Some(sparse), ..Default::default() };
    assert_eq!(field(SearchQuery::try_from(query)), "sparse");
    let point = wire::Point { id: Some(id(Id::Number(1))), vectors: vec![vector; 2], payload_json: Bytes::new() };
    assert_eq!(field(Point::try_from(point.clone())), "vectors[1].name");
    assert_eq!(field(Point::try_from(wire::Point { id: None, ..point.clone() })), "id");
    assert_eq!(field(Point::try_from(wire::Point { id: Some(id(Id::Text(String::new()))), ..point })), "id.text");
    let request = wire::RequestId { session: Bytes::from_static(b"short"), ..Default::default() };
    assert_eq!(field(RequestId::try_from(request)), "session");
    let not_only = wire::Precondition { kind: Some(wire::precondition::Kind::InsertOnly(false)) };
    assert_eq!(field(precondition(Some(not_only))), "insert_only");
    assert_eq!(precondition(Some(wire::Precondition { kind: None })), Ok(None));
    assert_eq!(precondition(None), Ok(None));
    let kind = wire::point_outcome::Kind::AlreadyExists.into();
    let outcome = wire::PointOutcome { position: 0, kind, current: None };
    assert_eq!(field(<(usize, Outcome)>::try_from(outcome)), "current");
    assert_eq!(field(<(usize, Outcome)>::try_from(wire::PointOutcome { kind: 99, ..outcome })), "kind");
    assert_eq!(field(read_level(9)), "level");
    assert_eq!(field(payload_mode(9)), "mode");
    assert_eq!(field(field_kind(0)), "kind");
    assert_eq!(field(Hit::try_from(wire::Hit { id: Some(id(Id::Number(1))), ..Default::default() })), "version");
}

#[test]
fn malformed_filters_are_refused_by_field() {
    use wire::filter::{Equals, Ids, Kind, List};
    let filter = |kind| wire::Filter { kind: Some(kind) };
    let list = |filters| filter(Kind::All(List { filters }));
    assert_eq!(field(Filter::try_from(wire::Filter { kind: None })), "filter");
    assert_eq!(field(Filter::try_from(list(vec![wire::Filter { kind: None }]))), "filter.all[0]");
    let equals = Equals { path: "a".into(), value: None };
    assert_eq!(field(Filter::try_from(list(vec![filter(Kind::Equals(equals))]))), "filter.all[0].equals.value");
    let ids = Ids { ids: vec![wire::PointId { id: None }] };
    assert_eq!(field(Filter::try_from(filter(Kind::Ids(ids)))), "filter.ids[0].id");
    let unchecked = filter(Kind::Exists(String::new()));
    assert_eq!(field(Filter::try_from(unchecked.clone())), "filter.exists", "what is read is checked as well");
    let query = wire::SearchQuery { filter: Some(unchecked), ..Default::default() };
    assert_eq!(field(SearchQuery::try_from(query)), "filter.exists");
    assert_eq!(field(decode_filter(&[0xff])), "filter");
    let nested = |depth: usize| {
        let leaf = filter(Kind::Exists("a".into()));
        (1..depth).fold(leaf, |inner, _| list(vec![inner]))
    };
    let deepest = nested(Filter::DEPTH_MAX);
    let through_bytes = wire::Filter::decode(deepest.encode_to_vec().as_slice()).unwrap();
    assert!(Filter::try_from(through_bytes).is_ok(), "the deepest filter allowed passes the decoder's own limit");
    assert!(Filter::try_from(nested(Filter::DEPTH_MAX + 1)).is_err());
}

#[test]
fn malformed_collections_and_tables_are_refused_by_field() {
    let vector = |metric, scalar| wire::VectorSpec { dimension: 3, metric, scalar };
    let read = |spec| CollectionSpec::try_from(spec);
    let with_vector =
        |spec| wire::CollectionSpec { vectors: [("v".to_owned(), spec)].into_iter().collect(), ..Default::default() };
    assert_eq!(field(read(with_vector(vector(0, 0)))), "vectors[\"v\"].metric");
    assert_eq!(field(read(with_vector(vector(77, 0)))), "vectors[\"v\"].metric");
    assert_eq!(field(read(with_vector(vector(1, 77)))), "vectors[\"v\"].scalar");
    let kinds =
        wire::CollectionSpec { payload_indexes: [("lang".to_owned(), 0)].into_iter().collect(), ..Default::default() };
    assert_eq!(field(read(kinds)), "payload_indexes[\"lang\"]");
    let sparse_vectors = [("w".to_owned(), wire::SparseSpec { modifier: 7 })].into();
    assert_eq!(
        field(read(wire::CollectionSpec { sparse_vectors, ..Default::default() })),
        "sparse_vectors[\"w\"].modifier"
    );
    let multi_vectors = [("t".to_owned(), wire::MultiSpec { dimension: 2, metric: 0 })].into();
    assert_eq!(
        field(read(wire::CollectionSpec { multi_vectors, ..Default::default() })),
        "multi_vectors[\"t\"].metric"
    );
    assert_eq!(field(Table::try_from(wire::ClusterTable::default())), "cluster_id");
    let newer = wire::ClusterTable { format: WIRE_FORMAT + 1, ..Default::default() };
    assert_eq!(field(Table::try_from(newer)), "format");
    let shards = vec![wire::ShardInfo::default()];
    assert_eq!(field(Table::try_from(wire::ClusterTable { shards, ..Default::default() })), "shards[0].state");
    assert_eq!(check_format(0), Ok(()));
    assert_eq!(check_format(WIRE_FORMAT), Ok(()));
}

#[test]
fn what_the_wire_leaves_out_gets_its_default() {
    let vector = |metric: wire::Metric| {
        VectorSpec::try_from(wire::VectorSpec { dimension: 3, metric: metric.into(), scalar: 0 }).unwrap().scalar
    };
    assert_eq!(vector(wire::Metric::Cosine), ScalarKind::I8);
    assert_eq!(vector(wire::Metric::Dot), ScalarKind::F16);
    assert_eq!(vector(wire::Metric::L1), ScalarKind::F32);
    let index = IndexSpec::from(wire::IndexSpec { ef_search: 64, ..Default::default() });
    assert_eq!(index, IndexSpec { ef_search: 64, ..IndexSpec::default() });
    assert_eq!(CollectionSpec::try_from(wire::CollectionSpec::default()).unwrap().index, IndexSpec::default());
}
