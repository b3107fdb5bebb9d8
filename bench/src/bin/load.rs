//! Loads vectors through the client into a cluster and measures what that and searching cost, beside usearch in this
//! process in the same run.
//!
//! CPU is the nodes' and the router's, as they report it; this program's own is left out. A ratio is the cluster's figure
//! over that of usearch with f32. Run it on a quiet machine: everything shares the cores.
#![allow(clippy::print_stdout, reason = "figures are the product")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use futures::stream;
use nearring_bench::baseline::{self, Baseline, Graph};
use nearring_bench::cluster::Cluster;
use nearring_bench::data::{recall, repeated, truth, unit_rows};
use nearring_bench::figures::{disk_bytes, quantile};
use nearring_client::{Client, ImportOptions, RetryPolicy, wire};
use serde::Serialize;
use serde_json::json;

/// Measures import and search of a cluster beside in-process usearch.
#[derive(Parser)]
struct Arguments {
    /// The router of a running cluster.
    #[arg(long, default_value = "127.0.0.1:6334", conflicts_with = "spawn")]
    router: String,
    /// Start three nodes and a router on this folder instead, and stop them at the end.
    #[arg(long, value_name = "FOLDER")]
    spawn: Option<PathBuf>,
    /// With --spawn: where nearring-node and nearring-router lie; without it, beside this program.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// With --spawn: the router's port; the nodes take the next three.
    #[arg(long, default_value_t = 16334)]
    port_base: u16,
    /// Vectors to load (.npy or .fvecs); ids are row numbers.
    #[arg(long)]
    base: PathBuf,
    /// Vectors to search for; none = no searches.
    #[arg(long)]
    queries: Option<PathBuf>,
    /// The true nearest rows of every query (.npy, int32); none = no recall.
    #[arg(long)]
    truth: Option<PathBuf>,
    /// Load so many vectors: fewer than the file holds, or more, repeated with noise (then recall means nothing).
    #[arg(long)]
    rows: Option<usize>,
    /// Amplitude of that noise.
    #[arg(long, default_value_t = 0.02)]
    noise: f32,
    /// Shards; 0 = the cluster's default.
    #[arg(long, default_value_t = 0)]
    shards: u32,
    /// Replicas; 0 = the cluster's default.
    #[arg(long, default_value_t = 0)]
    replication: u32,
    /// Graph neighbours, for both.
    #[arg(long, default_value_t = 16)]
    m: u32,
    /// Breadth of building, for both.
    #[arg(long, default_value_t = 128)]
    ef_construction: u32,
    /// Breadths of the cluster's searches, every one measured in turn; 0 = the collection's default.
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    ef: Vec<u32>,
    /// Breadth of the baseline's searches.
    #[arg(long, default_value_t = 128)]
    baseline_ef: usize,
    /// Leave the baseline out; there are no ratios then.
    #[arg(long)]
    skip_baseline: bool,
    /// Only the baseline.
    #[arg(long)]
    skip_cluster: bool,
    /// Clients at once, one round of searches each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    clients: Vec<usize>,
    /// Seconds a round of searches lasts.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Batches under way at once while loading.
    #[arg(long, default_value_t = ImportOptions::default().in_flight)]
    in_flight: usize,
    /// How long to wait for the index at the most, in seconds.
    #[arg(long, default_value_t = 900)]
    patience: u64,
    /// The collection; it must not exist, and is deleted at the end.
    #[arg(long, default_value = "bench_load")]
    collection: String,
    /// Leave the collection in place.
    #[arg(long)]
    keep: bool,
    /// JSON on stdout instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Loading {
    vectors: usize,
    dimension: usize,
    shards: usize,
    replicas: usize,
    acknowledged_s: f64,
    acknowledged_cpu_s: f64,
    indexed_s: f64,
    indexed_cpu_s: f64,
    /// Vectors in no segment, over all replicas, when the cluster came to rest; 0 = everything indexed.
    tail_left: u64,
    segments: usize,
    segment_bytes: u64,
    log_bytes: u64,
    rss_bytes: u64,
    peak_rss_bytes: u64,
    disk_bytes: Option<u64>,
}

/// Searches of one breadth.
#[derive(Clone, Debug, Serialize)]
struct Searching {
    ef: u32,
    recall_at_10: Option<f64>,
    rounds: Vec<Round>,
}

#[derive(Clone, Debug, Serialize)]
struct Round {
    clients: usize,
    queries: usize,
    qps: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us_per_query: f64,
}

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let base = Arc::new(unit_rows(&arguments.base)?);
    if base.is_empty() {
        return Err("--base holds no vectors".into());
    }
    let count = arguments.rows.unwrap_or(base.len());
    let queries = arguments.queries.as_deref().map(unit_rows).transpose()?.unwrap_or_default();
    // Truth is that of the file as it is.
    let truth = match &arguments.truth {
        Some(path) if count == base.len() => Some(truth(path)?),
        _ => None,
    };

    let mut report = json!({});
    let mut measured = None;
    if !arguments.skip_cluster {
        let (loading, searching) = measure_cluster(&arguments, base.clone(), count, &queries, truth.as_deref()).await?;
        report["loading"] = json!(loading);
        report["searching"] = json!(searching);
        measured = Some((loading, searching));
    }
    if !arguments.skip_baseline {
        eprintln!("measuring usearch in this process");
        let graph = Graph {
            m: arguments.m as usize,
            ef_construction: arguments.ef_construction as usize,
            ef_search: arguments.baseline_ef,
        };
        let noise = arguments.noise;
        let baselines = baseline::measure(&|at| repeated(&base, at, noise), count, &queries, truth.as_deref(), graph)?;
        if let (Some((loading, searching)), Some(f32s)) = (&measured, baselines.first()) {
            report["ratios_to_usearch_f32"] = ratios(loading, searching, f32s);
        }
        report["usearch"] = json!(baselines);
    }
    if arguments.json {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}

fn ratios(loading: &Loading, searching: &[Searching], f32s: &Baseline) -> serde_json::Value {
    let rounds: Vec<_> = searching
        .iter()
        .flat_map(|searching| searching.rounds.iter().map(|round| (searching.ef, searching.recall_at_10, round)))
        .map(|(ef, recall, round)| {
            json!({
                "ef": ef, "recall_at_10": recall, "clients": round.clients, "qps": round.qps / f32s.qps,
                "cpu_per_query": round.cpu_us_per_query / f32s.query_us,
            })
        })
        .collect();
    json!({
        "cpu_to_acknowledged": loading.acknowledged_cpu_s / f32s.build_cpu_s,
        "cpu_to_indexed": loading.indexed_cpu_s / f32s.build_cpu_s,
        "seconds_to_indexed": loading.indexed_s / f32s.build_s,
        "rss": loading.rss_bytes as f64 / f32s.memory_bytes as f64,
        "disk": loading.disk_bytes.map(|bytes| bytes as f64 / f32s.disk_bytes as f64),
        "searching": rounds,
    })
}

/// Sums over the servers of one moment.
struct Moment {
    cpu: Duration,
    rss: u64,
    log: u64,
    tail: u64,
    building: bool,
    behind: bool,
    replicas: usize,
    segments: BTreeMap<Vec<u8>, u64>,
    segment_copies: usize,
}

async fn moment(client: &Client, shards: &BTreeSet<u64>) -> Result<Moment, Failure> {
    let status = client.cluster_status().await?;
    let mut moment = Moment {
        cpu: Duration::from_millis(status.router_cpu_ms),
        rss: status.router_rss_bytes,
        log: 0,
        tail: 0,
        building: false,
        behind: false,
        replicas: 0,
        segments: BTreeMap::new(),
        segment_copies: 0,
    };
    let mut applied: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for node in &status.nodes {
        if !node.reachable {
            return Err(format!("node {} is out of reach: {}", node.node, node.error).into());
        }
        moment.cpu += Duration::from_millis(node.cpu_ms);
        moment.rss += node.rss_bytes;
        moment.log += node.log_bytes;
        for replica in node.replicas.iter().filter(|replica| shards.contains(&replica.shard)) {
            moment.replicas += 1;
            moment.tail += replica.tail_vectors;
            moment.building |= replica.pending_seals > 0;
            moment.behind |= replica.applied_index < replica.last_index;
            applied.entry(replica.shard).or_default().insert(replica.applied_index);
            for segment in &replica.segments {
                moment.behind |= !segment.local;
                moment.segment_copies += 1;
                moment.segments.insert(segment.hash.to_vec(), segment.bytes);
            }
        }
    }
    moment.behind |= applied.values().any(|indexes| indexes.len() > 1);
    Ok(moment)
}

async fn measure_cluster(
    arguments: &Arguments,
    base: Arc<Vec<Vec<f32>>>,
    count: usize,
    queries: &[Vec<f32>],
    truth: Option<&[Vec<u64>]>,
) -> Result<(Loading, Vec<Searching>), Failure> {
    let mut cluster = match &arguments.spawn {
        Some(folder) => Some(Cluster::start(arguments.binaries.clone(), folder, arguments.port_base)?),
        None => None,
    };
    if let Some(cluster) = &mut cluster {
        cluster.ready(Duration::from_secs(60)).await?;
    }
    let router = cluster.as_ref().map_or_else(|| arguments.router.clone(), Cluster::router);
    let retry = RetryPolicy::OneEffect { attempts: 20, pause: Duration::from_millis(50) };
    let client = || Client::builder(router.clone()).retry(retry).deadline(Duration::from_secs(60)).build();
    let writer = client()?;

    let dimension = base[0].len();
    let vector = wire::VectorSpec {
        dimension: u32::try_from(dimension)?,
        metric: wire::Metric::Cosine as i32,
        scalar: wire::ScalarKind::Unspecified as i32,
    };
    let spec = wire::CollectionSpec {
        name: arguments.collection.clone(),
        vectors: [(String::new(), vector)].into(),
        shard_count: arguments.shards,
        replication_factor: arguments.replication,
        index: Some(wire::IndexSpec {
            m: arguments.m,
            ef_construction: arguments.ef_construction,
            ..Default::default()
        }),
        ..Default::default()
    };
    let info = writer.create_collection(spec).await?;
    let shards: BTreeSet<u64> = info.shards.iter().copied().collect();
    eprintln!("loading {count} vectors of {dimension} into {} shards", shards.len());

    let before = moment(&writer, &shards).await?;
    let start = Instant::now();
    let noise = arguments.noise;
    let points = stream::iter((0..count).map(|at| {
        let id = wire::PointId { id: Some(wire::point_id::Id::Number(at as u64)) };
        let vectors =
            vec![wire::NamedVector { name: String::new(), values: repeated(&base, at, noise), ..Default::default() }];
        let point = wire::Point { id: Some(id), vectors, ..Default::default() };
        wire::UpsertPoint { point: Some(point), precondition: None }
    }));
    let options = ImportOptions { in_flight: arguments.in_flight, ..ImportOptions::default() };
    let tenth = (count / 10).max(1) as u64;
    let mut shown = 0;
    let loading = writer.import(&arguments.collection, points, options, |done| {
        if done / tenth > shown {
            shown = done / tenth;
            eprintln!("  {done} acknowledged after {:.1} s", start.elapsed().as_secs_f64());
        }
    });
    let (report, mut peak) = {
        // Memory is sampled while the import runs.
        let mut loading = std::pin::pin!(loading);
        let mut peak = 0;
        let mut clock = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                report = &mut loading => break (report?, peak),
                _ = clock.tick() => {
                    if let Ok(now) = moment(&writer, &shards).await {
                        peak = peak.max(now.rss);
                    }
                }
            }
        }
    };
    if report.applied != count as u64 {
        return Err(format!("{} of {count} points were applied", report.applied).into());
    }
    let acknowledged_s = start.elapsed().as_secs_f64();
    let acknowledged = moment(&writer, &shards).await?;
    let acknowledged_cpu_s = acknowledged.cpu.saturating_sub(before.cpu).as_secs_f64();

    // Indexed: every tail is empty, or stands still for so long that nothing more is coming.
    let patience = Duration::from_secs(arguments.patience);
    let mut changed = (Instant::now(), acknowledged.tail, acknowledged.segment_copies);
    let (mut rested, mut indexed_s) = (acknowledged, acknowledged_s);
    let mut rested_cpu = rested.cpu;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = moment(&writer, &shards).await?;
        peak = peak.max(now.rss);
        if (now.tail, now.segment_copies) != (changed.1, changed.2) || now.behind || now.building {
            changed = (Instant::now(), now.tail, now.segment_copies);
            indexed_s = start.elapsed().as_secs_f64();
            rested_cpu = now.cpu;
        }
        let done = now.tail == 0 && !now.behind && !now.building;
        rested = now;
        if done || changed.0.elapsed() > Duration::from_secs(15) {
            break;
        }
        if start.elapsed().as_secs_f64() > acknowledged_s + patience.as_secs_f64() {
            return Err(format!("not indexed after {} s: {} vectors in tails", patience.as_secs(), rested.tail).into());
        }
    }
    if rested.tail == 0 && !rested.behind && !rested.building {
        indexed_s = start.elapsed().as_secs_f64();
        rested_cpu = rested.cpu;
    }
    let folder = arguments.spawn.as_deref();
    let loading = Loading {
        vectors: count,
        dimension,
        shards: shards.len(),
        replicas: rested.replicas,
        acknowledged_s,
        acknowledged_cpu_s,
        indexed_s,
        indexed_cpu_s: rested_cpu.saturating_sub(before.cpu).as_secs_f64(),
        tail_left: rested.tail,
        segments: rested.segments.len(),
        segment_bytes: rested.segments.values().sum(),
        log_bytes: rested.log,
        rss_bytes: rested.rss,
        peak_rss_bytes: peak,
        disk_bytes: folder.map(disk_bytes),
    };
    let mut searching = Vec::new();
    if !queries.is_empty() {
        for &ef in &arguments.ef {
            let ask = |vector: &Vec<f32>| {
                let query = wire::SearchQuery { vector: vector.clone(), limit: 10, ef, ..Default::default() };
                let collection = arguments.collection.clone();
                wire::SearchRequest { collection, query: Some(query), ..Default::default() }
            };
            let queries: Arc<Vec<wire::SearchRequest>> = Arc::new(queries.iter().map(ask).collect());
            // This round warms caches too.
            let reader = client()?;
            let mut answers = Vec::with_capacity(queries.len());
            for query in queries.iter() {
                answers.push(ids(reader.search(query.clone()).await?)?);
            }
            let recall_at_10 = truth.map(|truth| recall(&answers, truth, 10));
            let mut rounds = Vec::new();
            for &clients in &arguments.clients {
                let readers = (0..clients).map(|_| client()).collect::<Result<Vec<_>, _>>()?;
                rounds.push(round(&writer, readers, &queries, Duration::from_secs(arguments.seconds)).await?);
            }
            searching.push(Searching { ef, recall_at_10, rounds });
        }
    }
    if !arguments.keep {
        writer.delete_collection(&arguments.collection).await?;
    }
    Ok((loading, searching))
}

/// The hits' row numbers; an answer that does not cover every shard is no measurement.
fn ids(reply: wire::SearchReply) -> Result<Vec<u64>, Failure> {
    let searched = wire::shard_coverage::State::Searched as i32;
    if reply.coverage.iter().flat_map(|coverage| &coverage.shards).any(|shard| shard.state != searched) {
        return Err(format!("a search did not cover every shard: {:?}", reply.coverage).into());
    }
    reply
        .hits
        .into_iter()
        .map(|hit| match hit.id.and_then(|id| id.id) {
            Some(wire::point_id::Id::Number(number)) => Ok(number),
            other => Err(format!("unexpected id {other:?}").into()),
        })
        .collect()
}

/// Every client asks one query after the other, all together each query in turn.
async fn round(
    writer: &Client,
    readers: Vec<Client>,
    queries: &Arc<Vec<wire::SearchRequest>>,
    time: Duration,
) -> Result<Round, Failure> {
    let clients = readers.len();
    let next = Arc::new(AtomicUsize::new(0));
    let none = BTreeSet::new();
    let before = moment(writer, &none).await?.cpu;
    let start = Instant::now();
    let tasks: Vec<_> = readers
        .into_iter()
        .map(|reader| {
            let (queries, next) = (queries.clone(), next.clone());
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while start.elapsed() < time {
                    let at = next.fetch_add(1, Ordering::Relaxed) % queries.len();
                    let asked = Instant::now();
                    let hits = reader.search(queries[at].clone()).await.map_err(|error| error.to_string())?.hits.len();
                    taken.push(asked.elapsed());
                    if hits == 0 {
                        return Err("a search found nothing".to_owned());
                    }
                }
                Ok(taken)
            })
        })
        .collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await??);
    }
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = moment(writer, &none).await?.cpu.saturating_sub(before);
    let queries = taken.len();
    Ok(Round {
        clients,
        queries,
        qps: queries as f64 / elapsed,
        p50_us: quantile(&mut taken, 0.5).as_secs_f64() * 1e6,
        p99_us: quantile(&mut taken, 0.99).as_secs_f64() * 1e6,
        cpu_us_per_query: cpu.as_secs_f64() * 1e6 / queries.max(1) as f64,
    })
}
