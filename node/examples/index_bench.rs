//! Measures the index of a shard on real vectors: `cargo run --release --example index_bench -- DIRECTORY [SEGMENTS...]`.
//!
//! DIRECTORY holds `base.f16.npy` (rows × dimension), `queries.f16.npy` and `truth_ids.npy` (exact neighbours by cosine). For each
//! number of segments (1 and 3 unless told otherwise) it prints CPU seconds of the build, and recall@10 and CPU time a query at
//! several breadths; then exact, filtered, and plain usearch without scoring for comparison. Linux only: CPU time of the thread is
//! read from /proc.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nearring_node::index::change::{IndexChange, InstalledSegment};
use nearring_node::index::{Segment, ShardIndex};
use nearring_proto::collection::{CollectionSpec, FieldKind, IndexSpec, VectorSpec};
use nearring_proto::ids::{PointId, Version};
use nearring_proto::query::SearchQuery;
use nearring_proto::vector::{Metric, ScalarKind, normalize};
use serde_json::json;

fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("/proc, as on Linux");
    text.split(' ').next().and_then(|field| field.parse().ok()).expect("nanoseconds")
}

fn read<T: npyz::Deserialize>(path: &Path) -> (Vec<T>, usize) {
    let file = npyz::NpyFile::new(std::io::BufReader::new(std::fs::File::open(path).expect("open"))).expect("npy");
    let width = file.shape()[1] as usize;
    (file.into_vec().expect("values"), width)
}

fn vectors(path: &Path) -> Vec<Vec<f32>> {
    let (values, width) = read::<half::f16>(path);
    let rows = values.chunks_exact(width).map(|row| {
        let mut row: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
        normalize(&mut row);
        row
    });
    rows.collect()
}

fn query(vector: &[f32], ef: usize) -> SearchQuery {
    SearchQuery {
        vector_name: String::new(),
        target: vector.to_vec().into(),
        limit: 10,
        filter: None,
        exact: false,
        ef: Some(ef),
        with_payload: false,
        with_vectors: false,
        score_threshold: None,
    }
}

fn recall(found: &[u64], truth: &[i32]) -> usize {
    truth.iter().take(10).filter(|id| found.contains(&(**id as u64))).count()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("a directory");
    let directory = Path::new(&directory);
    let mut segment_counts: Vec<usize> = arguments.map(|count| count.parse().expect("a number")).collect();
    if segment_counts.is_empty() {
        segment_counts = vec![1, 3];
    }
    let base = vectors(&directory.join("base.f16.npy"));
    let queries = vectors(&directory.join("queries.f16.npy"));
    let (truth, truth_width) = read::<i32>(&directory.join("truth_ids.npy"));
    let dimension = base[0].len() as u32;
    println!("{} × {dimension}, {} queries", base.len(), queries.len());
    let plain = plain_usearch(&base);
    for segments in segment_counts {
        let vector = VectorSpec { dimension, metric: Metric::Cosine, scalar: ScalarKind::I8 };
        let mut index = ShardIndex::new();
        index.apply(IndexChange::Configure(CollectionSpec {
            name: "bench".into(),
            vectors: BTreeMap::from([(String::new(), vector)]),
            payload_indexes: BTreeMap::from([("n".into(), FieldKind::Integer)]),
            shard_count: 1,
            replication_factor: 1,
            routing_separator: String::new(),
            index: IndexSpec::default(),
            documents: None,
            sparse_vectors: BTreeMap::new(),
            multi_vectors: BTreeMap::new(),
        }));
        let (mut put, mut build, mut install, mut bytes) = (0, 0, 0, 0);
        let mut entry = 0;
        for part in 0..segments {
            let rows = part * base.len() / segments..(part + 1) * base.len() / segments;
            for row in rows {
                entry += 1;
                let version = Version { epoch: 1, index: entry };
                let values: Arc<[f32]> = base[row].as_slice().into();
                let payload = json!({"n": row % 1000}).as_object().cloned();
                let vectors = BTreeMap::from([(String::new(), (version, Some(values.into())))]);
                let from = cpu_ns();
                index.apply(IndexChange::Put { id: PointId::Number(row as u64), version, vectors, payload });
                put += cpu_ns() - from;
            }
            if part == 0 {
                let from = cpu_ns();
                queries[..200].iter().for_each(|vector| drop(index.search(&query(vector, 128), &|_| None).unwrap()));
                println!("tail of {}: {} µs a query", index.points(), (cpu_ns() - from) / 200_000);
            }
            let from = cpu_ns();
            let work =
                index.apply(IndexChange::Seal { segment: entry, vector: String::new(), sources: vec![] }).unwrap();
            let sealed = cpu_ns();
            let file = Segment::build(&work).unwrap();
            let built = cpu_ns();
            let segment = Arc::new(Segment::open(Bytes::from(file), None).unwrap());
            let opened = cpu_ns();
            index.attach(segment.clone());
            index.apply(IndexChange::Install(InstalledSegment {
                segment: entry,
                hash: segment.hash(),
                vector: String::new(),
                sources: vec![],
                members: segment.len() as u64,
                bytes: segment.bytes(),
            }));
            let done = cpu_ns();
            println!("seal {} ms, open {} ms", (sealed - from) / 1_000_000, (opened - built) / 1_000_000);
            (build, install, bytes) = (build + built - sealed, install + done - opened, bytes + segment.bytes());
        }
        println!(
            "{segments} segment(s): put {:.2} µs a point, build {:.1} CPU-s, install {} ms, {} MB of files",
            put as f64 / 1e3 / base.len() as f64,
            build as f64 / 1e9,
            install / 1_000_000,
            bytes / 1_000_000
        );
        let measure = |label: &str, adjust: &dyn Fn(&mut SearchQuery), truth_known: bool, count: usize| {
            let (mut spent, mut right, mut hits) = (0, 0, 0);
            for (number, vector) in queries.iter().enumerate().take(count) {
                let mut query = query(vector, 128);
                adjust(&mut query);
                let from = cpu_ns();
                let found = index.search(&query, &|_| None).unwrap();
                spent += cpu_ns() - from;
                let ids: Vec<u64> = found
                    .iter()
                    .filter_map(|found| if let PointId::Number(id) = found.id { Some(id) } else { None })
                    .collect();
                right += recall(&ids, &truth[number * truth_width..][..truth_width]);
                hits += found.len();
            }
            let micros = spent as f64 / 1e3 / count as f64;
            if truth_known {
                println!("  {label}: recall@10 {:.4}, {micros:.0} µs a query", right as f64 / (10 * count) as f64);
            } else {
                println!("  {label}: {:.2} hits, {micros:.0} µs a query", hits as f64 / count as f64);
            }
        };
        for ef in [32, 48, 64, 96, 128, 192, 256] {
            measure(&format!("ef {ef}"), &|query| query.ef = Some(ef), true, queries.len());
            let (mut spent, mut right) = (0, 0);
            for (number, vector) in queries.iter().enumerate() {
                let from = cpu_ns();
                let found = plain.search(vector.as_slice(), ef).unwrap();
                spent += cpu_ns() - from;
                right += recall(&found.keys, &truth[number * truth_width..][..truth_width]);
            }
            let (share, micros) =
                (right as f64 / queries.len() as f64 / 10.0, spent as f64 / 1e3 / queries.len() as f64);
            println!(
                "    plain usearch, one graph: {micros:.0} µs a query, {share:.4} of the 10 are among its candidates"
            );
        }
        measure("exact", &|query| query.exact = true, true, 200);
        for most in [500, 300, 100, 10, 1] {
            let filter = json!({"range": {"path": "n", "lt": most}});
            let set = |query: &mut SearchQuery| query.filter = serde_json::from_value(filter.clone()).ok();
            measure(&format!("filter that {most} of 1000 match"), &set, false, 500);
            let filter = serde_json::from_value(filter.clone()).unwrap();
            let from = cpu_ns();
            for _ in 0..50 {
                std::hint::black_box(index.count(Some(&filter), &|_| None));
            }
            println!("    of which the payload index {} µs", (cpu_ns() - from) / 50_000);
        }
    }
}

/// What usearch itself takes for candidates, without f32 scores.
fn plain_usearch(base: &[Vec<f32>]) -> usearch::Index {
    let options = usearch::IndexOptions {
        dimensions: base[0].len(),
        metric: usearch::MetricKind::Cos,
        quantization: usearch::ScalarKind::I8,
        connectivity: 16,
        expansion_add: 128,
        expansion_search: 1,
        multi: false,
    };
    let index = usearch::Index::new(&options).unwrap();
    index.reserve_capacity_and_threads(base.len(), 1).unwrap();
    let from = cpu_ns();
    base.iter().zip(0..).for_each(|(vector, row)| index.add(row, vector.as_slice()).unwrap());
    println!(
        "plain usearch i8: build {:.1} CPU-s, {}",
        (cpu_ns() - from) as f64 / 1e9,
        usearch::hardware_acceleration_available()
    );
    index
}
