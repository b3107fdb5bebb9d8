#![allow(clippy::unwrap_used, clippy::expect_used)]
use nearring_proto::collection::FieldKind;
use nearring_proto::ids::CollectionId;
use serde_json::{Value, json};

use super::*;

fn limits(value: Value) -> Limits {
    serde_json::from_value(value).unwrap()
}

fn refusal(limits: Value, facts: Facts) -> String {
    let declared = Declared::new(&[("n".to_owned(), FieldKind::Integer)].into(), None);
    super::tests::limits(limits).verdict(&facts, &declared).unwrap_err().message
}

fn searching(search: Search) -> Facts {
    Facts { searches: vec![search], ..Facts::default() }
}

#[test]
fn each_limit_refuses_what_is_over_it_and_nothing_else() {
    let filter = |largest, fields: &[(&str, Ability)]| Filter {
        conditions: fields.len() as u64,
        largest,
        fields: fields.iter().map(|(field, ability)| ((*field).to_owned(), vec![*ability])).collect(),
    };
    let unindexed = filter(3, &[("n", Ability::IntegerRange), ("place", Ability::Geo)]);
    let whole = |rows: u64, indices: u64| Written {
        points: 4,
        whole: true,
        rows: [("m".to_owned(), rows)].into(),
        indices: [("s".to_owned(), indices)].into(),
    };
    let write = |written| Facts { access: Access::Write, written: Some(written), ..Facts::default() };
    let nested = Search { prefetches: vec![Search { limit: 11, ..Search::default() }], ..Search::default() };
    for (limit, facts, says) in [
        (json!({"max_query_limit": 10}), searching(Search { limit: 11, ..Search::default() }), "11 > 10 for \"limit\""),
        (json!({"max_query_limit": 10}), searching(nested), "11 > 10 for \"limit\""),
        (json!({"max_query_limit": 10}), Facts { limit: Some(11), ..Facts::default() }, "11 > 10 for \"limit\""),
        (json!({"max_timeout": 2}), Facts { timeout: Some(3), ..Facts::default() }, "3 > 2 for \"timeout\""),
        (json!({"search_max_batchsize": 2}), Facts { batch: Some(3), ..Facts::default() }, "\"search batch size\""),
        (
            json!({"search_max_hnsw_ef": 4}),
            searching(Search { hnsw_ef: Some(5), ..Search::default() }),
            "5 > 4 for \"hnsw_ef\"",
        ),
        (
            json!({"search_max_oversampling": 1.9}),
            searching(Search { oversampling: Some(2.0), ..Search::default() }),
            "\"oversampling\"",
        ),
        (
            json!({"search_allow_exact": false}),
            searching(Search { exact: true, ..Search::default() }),
            "Exact search disabled!",
        ),
        (json!({"upsert_max_batchsize": 3}), write(whole(0, 0)), "\"upsert limit\""),
        (
            json!({"upsert_max_batchsize": 3}),
            write(Written { whole: false, ..whole(0, 0) }),
            "4 > 3 for \"update limit\"",
        ),
        (
            json!({"multivector_config": {"m": {"max_vectors": 5}}}),
            write(whole(6, 0)),
            "Multivector 'm' has a limit of 5 vectors, but 6 were provided!",
        ),
        (
            json!({"sparse_config": {"s": {"max_length": 5}}}),
            write(whole(0, 6)),
            "Sparse vector 's' has a limit of 5 indices, but 6 were provided!",
        ),
        (
            json!({"unindexed_filtering_retrieve": false}),
            Facts { filter: Some(unindexed.clone()), ..Facts::default() },
            "Index required but not found for \"place\" of one of the following types: [geo]",
        ),
        (
            json!({"unindexed_filtering_update": false}),
            Facts { access: Access::Write, filter: Some(unindexed.clone()), ..Facts::default() },
            "\"place\"",
        ),
        (
            json!({"unindexed_filtering_retrieve": false}),
            searching(Search { group_by: Some("who".into()), ..Search::default() }),
            "not found for \"who\". Help: Create an index supporting `match`",
        ),
        (
            json!({"filter_max_conditions": 1}),
            searching(Search { filter: Some(unindexed.clone()), ..Search::default() }),
            "Filter condition limit reached (2 > 1)",
        ),
        (
            json!({"condition_max_size": 2}),
            Facts { filter: Some(unindexed.clone()), ..Facts::default() },
            "Condition size limit reached (3 > 2)",
        ),
    ] {
        let message = refusal(limit.clone(), facts.clone());
        assert!(message.contains(says), "{limit}: {message}");
        let others = limits(json!({"enabled": true, "unindexed_filtering_retrieve": true, "search_allow_exact": true}));
        assert_eq!(others.verdict(&facts, &Declared::default()), Ok(()));
    }
}

#[test]
fn limits_of_the_wrong_kind_are_no_limits() {
    for wrong in [json!({"max_query_limit": 0}), json!({"max_timeout": "2"}), json!({"upsert_max_batchsize": -1})] {
        assert!(serde_json::from_value::<Limits>(wrong.clone()).is_err(), "{wrong}");
    }
    assert!(!limits(json!({"max_query_limit": 1})).in_force());
}

#[test]
fn an_index_serves_what_its_settings_say() {
    let indexes = [("n".to_owned(), FieldKind::Integer), ("list[].name".to_owned(), FieldKind::Keyword)].into();
    let settings = json!({"n": {"type": "integer", "lookup": false}, "t": {"type": "text"}, "at": {"type": "geo"}});
    let declared = Declared::new(&indexes, Some(&settings));
    assert_eq!(declared.len(), 4);
    assert!(declared.serves("n", &[Ability::IntegerLookup, Ability::IntegerRange]));
    assert!(!declared.serves("n", &[Ability::IntegerLookup]) && !declared.matches("n"));
    assert!(declared.serves("list.name", &[Ability::Keyword]) && declared.matches("list[].name"));
    assert!(declared.serves("t", &[Ability::Text]) && !declared.serves("t", &[Ability::Phrase]));
    assert_eq!(declared.kind("at").as_deref(), Some("Geo"));
}

#[tokio::test(start_paused = true)]
async fn a_bucket_gives_what_it_has_and_says_when_it_has_more() {
    let now = Instant::now();
    let mut bucket = Bucket::new(NonZeroU64::new(6).unwrap(), now);
    let never = bucket.take(7, Access::Write, now).unwrap_err();
    assert!(never.message.contains("Write rate limit exceeded, request larger"), "{never}");
    assert_eq!(bucket.take(6, Access::Read, now), Ok(()));
    let later = bucket.take(2, Access::Read, now).unwrap_err();
    assert!(later.message.ends_with("requires 2 tokens but only 0.0 were available. Retry after 20s"), "{later}");
    assert_eq!((later.kind, later.retry_after), (Kind::Overloaded, Some(20)));
    assert_eq!(bucket.take(2, Access::Read, now + Duration::from_secs(20)), Ok(()));
    assert!(bucket.take(6, Access::Read, now + Duration::from_secs(3600)).is_ok(), "never fuller than full");
    assert!(bucket.take(1, Access::Read, now + Duration::from_secs(3600)).is_err());
}

#[tokio::test(start_paused = true)]
async fn rules_are_read_once_for_a_table_and_rates_begin_anew_when_they_change() {
    let (strict, id, now) = (Strict::default(), CollectionId(1), Instant::now());
    let rules = |rate: u64| Rules {
        limits: limits(json!({"enabled": true, "read_rate_limit": rate})),
        declared: Declared::default(),
    };
    let known = strict.rules(id, 1, now, || Some(rules(1))).unwrap();
    assert!(strict.rules(id, 1, now, || panic!("it is known")).is_some());
    assert!(strict.take(id, &known.limits, Access::Read, 1, now).is_ok());
    assert!(strict.take(id, &known.limits, Access::Read, 1, now).is_err());
    assert!(strict.take(id, &known.limits, Access::Write, 99, now).is_ok(), "writes have no rate");
    let known = strict.rules(id, 2, now, || Some(rules(2))).unwrap();
    assert!(strict.take(id, &known.limits, Access::Read, 2, now).is_ok());
    assert!(strict.rules(id, 3, now, || None).is_none());
    assert_eq!(strict.sizes(id, now), None);
    strict.measured(id, Sizes { points: 3, vector_bytes: 48 }, now);
    assert_eq!(strict.sizes(id, now).unwrap().points, 3);
    assert_eq!(strict.sizes(id, now + Duration::from_secs(2)), None);
}
