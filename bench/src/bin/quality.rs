//! What a cluster answers, beside what it should: the same from every replica, all matches of a filter, and documents that
//! people judged relevant.
//!
//! Starts three nodes and a router on a folder, or (all but `answers`) uses a running router. Exits non-zero where an answer is
//! wrong; speeds are for people.
#![allow(clippy::print_stdout, reason = "figures are the product")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use futures::stream;
use nearring_bench::cluster::{Cluster, NODES};
use nearring_bench::data::unit_rows;
use nearring_client::{Client, ImportOptions, wire};

/// Judges a cluster's answers.
#[derive(Parser)]
struct Arguments {
    /// A folder for the data of a cluster that is started here.
    #[arg(long, global = true, value_name = "FOLDER", default_value = "quality-data")]
    spawn: PathBuf,
    /// Where nearring-node and nearring-router lie; without it, beside this program.
    #[arg(long, global = true)]
    binaries: Option<PathBuf>,
    /// The router's port; the nodes take the next three.
    #[arg(long, global = true, default_value_t = 17334)]
    port_base: u16,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The three replicas' answers to the same queries at one position, byte for byte: with a tail, several segments, dead
    /// members, and a segment file that one node lost.
    Answers {
        /// Vectors (.npy).
        #[arg(long)]
        base: PathBuf,
        /// Queries (.npy); the first 1,000 are asked.
        #[arg(long)]
        queries: PathBuf,
    },
    /// Filtered searches at several selectivities: min(k, matches) hits, and what they cost beside the unfiltered one.
    Filtered {
        /// Vectors (.npy).
        #[arg(long)]
        base: PathBuf,
        /// Queries (.npy).
        #[arg(long)]
        queries: PathBuf,
    },
    /// nDCG@10 of the built-in embedder over a judged collection of documents, through the cluster.
    Cranfield {
        /// Holds corpus.jsonl, queries.jsonl, qrels.tsv.
        folder: PathBuf,
    },
}

/// Tails of so many vectors are sealed when writing pauses.
const SEALED_FROM: u64 = 256;

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Outcome<()> {
    let mut cluster = Cluster::start(arguments.binaries.clone(), &arguments.spawn, arguments.port_base)?;
    cluster.ready(Duration::from_secs(60)).await?;
    let client = Client::builder(cluster.router()).deadline(Duration::from_secs(60)).build().map_err(text)?;
    match arguments.task {
        Task::Answers { base, queries } => answers(&mut cluster, &client, &base, &queries).await,
        Task::Filtered { base, queries } => filtered(&client, &base, &queries).await,
        Task::Cranfield { folder } => cranfield(&client, &folder).await,
    }
}

fn id(number: u64) -> Option<wire::PointId> {
    Some(wire::PointId { id: Some(wire::point_id::Id::Number(number)) })
}

fn point(number: u64, vector: Vec<f32>, payload: String) -> wire::UpsertPoint {
    let vectors = vec![wire::NamedVector { name: String::new(), values: vector, ..Default::default() }];
    let point = wire::Point { id: id(number), vectors, payload_json: payload.into_bytes().into() };
    wire::UpsertPoint { point: Some(point), precondition: None }
}

async fn create(client: &Client, name: &str, dimension: usize, seal_points: u32) -> Outcome<()> {
    let dimension = u32::try_from(dimension).map_err(text)?;
    let vector = wire::VectorSpec { dimension, metric: wire::Metric::Cosine as i32, scalar: 0 };
    let spec = wire::CollectionSpec {
        name: name.to_owned(),
        vectors: [(String::new(), vector)].into(),
        payload_indexes: [("n".to_owned(), wire::FieldKind::Integer as i32)].into(),
        index: Some(wire::IndexSpec { seal_points, ..Default::default() }),
        ..Default::default()
    };
    client.create_collection(spec).await.map(|_| ()).map_err(text)
}

async fn load(client: &Client, name: &str, points: Vec<wire::UpsertPoint>) -> Outcome<()> {
    client.import(name, stream::iter(points), ImportOptions::default(), |_| ()).await.map(|_| ()).map_err(text)
}

/// Waits until all replicas stand at one position each, and nothing is sealed or fetched any more.
async fn at_rest(client: &Client) -> Outcome<()> {
    let (mut last, mut since) = (None, Instant::now());
    for _ in 0..600 {
        let status = client.cluster_status().await.map_err(text)?;
        let mut now = BTreeMap::<u64, Vec<(u64, u64, Vec<(bool, Vec<u8>)>)>>::new();
        let mut building = false;
        for replica in status.nodes.iter().flat_map(|node| &node.replicas).filter(|replica| replica.shard != 0) {
            let segments = replica.segments.iter().map(|segment| (segment.local, segment.hash.to_vec())).collect();
            now.entry(replica.shard).or_default().push((replica.applied_index, replica.tail_vectors, segments));
            building |= replica.pending_seals > 0;
        }
        let equal = !building
            && now.values().all(|replicas| {
                replicas.len() == usize::try_from(NODES).unwrap_or(0)
                && replicas.windows(2).all(|pair| pair[0] == pair[1])
                // A tail as large as this is going to be sealed.
                && replicas.iter().all(|replica| replica.1 < SEALED_FROM && replica.2.iter().all(|(local, _)| *local))
            });
        if last.as_ref() != Some(&now) || !equal {
            since = Instant::now();
        }
        if since.elapsed() >= Duration::from_secs(3) && !now.is_empty() {
            return Ok(());
        }
        last = Some(now);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Err("the replicas did not come to rest".to_owned())
}

fn query(vector: &[f32], limit: u32, filter: Option<wire::Filter>) -> wire::SearchQuery {
    wire::SearchQuery { vector: vector.to_vec(), limit, filter, ..Default::default() }
}

async fn search(client: &Client, name: &str, query: wire::SearchQuery, node: u64) -> Outcome<wire::SearchReply> {
    let level = if node == 0 { wire::ReadLevel::Unspecified } else { wire::ReadLevel::Eventual } as i32;
    let read = wire::ReadOptions { replica_node: node, level, full_coverage: true, ..Default::default() };
    let request = wire::SearchRequest { format: 0, collection: name.to_owned(), query: Some(query), read: Some(read) };
    client.search(request).await.map_err(text)
}

async fn answers(cluster: &mut Cluster, client: &Client, base: &Path, queries: &Path) -> Outcome<()> {
    let (rows, queries) = (unit_rows(base).map_err(text)?, unit_rows(queries).map_err(text)?);
    let rows = &rows[..rows.len().min(30_000)];
    let name = "answers";
    create(client, name, rows.first().map_or(0, Vec::len), 3_000).await?;
    let all = |from: usize, to: usize, shift: usize| {
        let of = |at: usize| point(at as u64, rows[(at + shift) % rows.len()].clone(), format!("{{\"n\":{at}}}"));
        (from..to.min(rows.len())).map(of).collect::<Vec<_>>()
    };
    load(client, name, all(0, 25_000, 0)).await?;
    at_rest(client).await?;
    // Dead members in every segment, some of them deleted and some written again.
    let dead = (0..25_000).step_by(7).map(|number| wire::PointId { id: Some(wire::point_id::Id::Number(number)) });
    client.delete(name, dead.collect()).await.map_err(text)?;
    load(client, name, all(1_000, 3_000, 5)).await?;
    at_rest(client).await?;
    // One node loses a segment file while it is down, and fetches it again.
    cluster.kill_node(3);
    let lost = lose_a_segment(&cluster.data(3))?;
    // Too few to be sealed: the tail.
    load(client, name, all(25_000, 25_400, 0)).await?;
    cluster.start_node(3)?;
    at_rest(client).await?;
    let status = client.cluster_status().await.map_err(text)?;
    let replicas: Vec<_> = status
        .nodes
        .iter()
        .filter(|node| node.node == 1)
        .flat_map(|node| &node.replicas)
        .filter(|r| r.shard != 0)
        .collect();
    let tail: u64 = replicas.iter().map(|replica| replica.tail_vectors).sum();
    let segments: usize = replicas.iter().map(|replica| replica.segments.len()).sum();
    let members: u64 = replicas.iter().flat_map(|replica| &replica.segments).map(|segment| segment.members).sum();
    let live: u64 = replicas.iter().flat_map(|replica| &replica.segments).map(|segment| segment.live).sum();
    println!(
        "{} shards: tail {tail}, {segments} segments, {} dead members; node 3 lost {lost} and fetched it",
        replicas.len(),
        members - live
    );
    if tail == 0 || segments < 2 || members == live {
        return Err("the cluster is not in the state that was to be tested".to_owned());
    }
    let asked = queries.len().min(1_000);
    let (mut different, mut asked_again) = (0, 0);
    for vector in &queries[..asked] {
        // Between two answers a replica may apply an entry (a new leader's first one, say): only equal views compare.
        let seen = loop {
            let mut seen = Vec::new();
            for node in 1..=NODES {
                let reply = search(client, name, query(vector, 10, None), node).await?;
                let shards = reply.coverage.unwrap_or_default().shards.into_iter();
                let mut view: Vec<_> = shards.map(|shard| (shard.shard, shard.index, shard.segments)).collect();
                view.sort();
                let hits: Vec<_> =
                    reply.hits.into_iter().map(|hit| (hit.id, hit.score.to_bits(), hit.version)).collect();
                seen.push((view, hits));
            }
            if seen.windows(2).all(|pair| pair[0].0 == pair[1].0) {
                break seen;
            }
            asked_again += 1;
            if asked_again > asked {
                return Err("the replicas do not stay at one position".to_owned());
            }
        };
        if seen.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            different += 1;
            println!("differ: {seen:?}");
        }
    }
    println!(
        "{asked} queries on {NODES} replicas each, at equal positions and segments ({asked_again} asked again until so): \
         {different} answers differ"
    );
    if different == 0 { Ok(()) } else { Err("replicas answer differently".to_owned()) }
}

fn lose_a_segment(data: &Path) -> Outcome<String> {
    for shard in std::fs::read_dir(data.join("shards")).map_err(text)?.flatten() {
        let mut files = std::fs::read_dir(shard.path().join("segments")).map_err(text)?.flatten();
        if let Some(file) = files.next() {
            std::fs::remove_file(file.path()).map_err(text)?;
            return Ok(file.file_name().to_string_lossy().chars().take(28).collect());
        }
    }
    Err("there is no segment file to lose".to_owned())
}

async fn filtered(client: &Client, base: &Path, queries: &Path) -> Outcome<()> {
    let (rows, queries) = (unit_rows(base).map_err(text)?, unit_rows(queries).map_err(text)?);
    let name = "filtered";
    create(client, name, rows.first().map_or(0, Vec::len), 0).await?;
    let points = rows.iter().enumerate().map(|(at, row)| point(at as u64, row.clone(), format!("{{\"n\":{at}}}")));
    load(client, name, points.collect()).await?;
    at_rest(client).await?;
    let (k, asked) = (10, queries.len().min(300));
    let mut unfiltered = 0.0;
    println!("selectivity   matches   hits wanted = found   recall@{k}   CPU a query, ratio to unfiltered");
    for part in [1_u64, 2, 10, 100, 1_000, 10_000, 50_000] {
        // Rows are in random order: a range of numbers is a random sample.
        let matches = rows.len() as u64 / part;
        let bound = wire::Scalar { value: Some(wire::scalar::Value::Integer(i64::try_from(matches).map_err(text)?)) };
        let range = wire::Range { lt: Some(bound), ..Default::default() };
        let kind = wire::filter::Kind::Range(wire::filter::InRange { path: "n".to_owned(), range: Some(range) });
        let filter = (part > 1).then_some(wire::Filter { kind: Some(kind) });
        let (mut complete, mut right) = (0, 0);
        let before = cpu(client).await?;
        for vector in &queries[..asked] {
            let reply = search(client, name, query(vector, k, filter.clone()), 0).await?;
            complete += usize::from(reply.hits.len() as u64 == matches.min(u64::from(k)));
            let wrong = reply.hits.iter().any(|hit| match hit.id.as_ref().and_then(|id| id.id.as_ref()) {
                Some(wire::point_id::Id::Number(number)) => *number >= matches,
                _ => true,
            });
            if wrong {
                return Err("a hit does not match the filter".to_owned());
            }
        }
        let cost = (cpu(client).await? - before) as f64 / asked as f64;
        for vector in &queries[..asked] {
            let found = search(client, name, query(vector, k, filter.clone()), 0).await?.hits;
            let mut exact = query(vector, k, filter.clone());
            exact.exact = true;
            let exact = search(client, name, exact, 0).await?.hits;
            right += exact.iter().filter(|hit| found.iter().any(|found| found.id == hit.id)).count();
        }
        if part == 1 {
            unfiltered = cost;
        }
        let recall = right as f64 / (asked as f64 * matches.min(u64::from(k)) as f64);
        println!(
            "1/{part:<10} {matches:>8}   {complete:>9} of {asked}        {recall:>8.3}   {cost:>6.2} ms, {:.2}",
            cost / unfiltered
        );
        if complete != asked {
            return Err("a filtered search returned fewer hits than there are".to_owned());
        }
    }
    Ok(())
}

/// CPU of nodes and router so far, in milliseconds.
async fn cpu(client: &Client) -> Outcome<u64> {
    let status = client.cluster_status().await.map_err(text)?;
    Ok(status.router_cpu_ms + status.nodes.iter().map(|node| node.cpu_ms).sum::<u64>())
}

#[derive(serde::Deserialize)]
struct Text {
    id: String,
    text: String,
}

fn texts(path: &Path) -> Outcome<Vec<Text>> {
    let read = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    read.lines().map(|line| serde_json::from_str(line).map_err(text)).collect()
}

async fn cranfield(client: &Client, folder: &Path) -> Outcome<()> {
    const EMBEDDER: &str = "static256";
    let (documents, questions) = (texts(&folder.join("corpus.jsonl"))?, texts(&folder.join("queries.jsonl"))?);
    let mut grades = BTreeMap::<String, BTreeMap<String, i32>>::new();
    let judged = std::fs::read_to_string(folder.join("qrels.tsv")).map_err(text)?;
    for line in judged.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
        let [question, document, grade] = fields.as_slice() else { return Err(format!("qrels.tsv: {line}")) };
        let grade: i32 = grade.parse().map_err(text)?;
        if grade > 0 {
            grades.entry((*question).to_owned()).or_default().insert((*document).to_owned(), grade);
        }
    }
    let name = "cranfield";
    create(client, name, 256, 1_000).await?;
    let mut ids = BTreeMap::new();
    for (chunk_at, chunk) in documents.chunks(100).enumerate() {
        // Empty abstracts have no vector.
        let some: Vec<(usize, &Text)> =
            chunk.iter().enumerate().filter(|(_, document)| !document.text.trim().is_empty()).collect();
        let vectors = client.embed(EMBEDDER, some.iter().map(|(_, document)| document.text.clone()).collect()).await;
        let mut points = Vec::new();
        for ((at, document), vector) in some.into_iter().zip(vectors.map_err(text)?) {
            let number = (chunk_at * 100 + at) as u64;
            ids.insert(number, document.id.clone());
            points.push(point(number, vector, String::new()));
        }
        load(client, name, points).await?;
    }
    at_rest(client).await?;
    for exact in [true, false] {
        let (mut sum, mut count) = (0.0, 0);
        for question in &questions {
            let Some(grades) = grades.get(&question.id) else { continue };
            let vectors = client.embed(EMBEDDER, vec![question.text.clone()]).await.map_err(text)?;
            let mut asked = query(vectors.first().ok_or("the question has no vector")?, 10, None);
            asked.exact = exact;
            let hits = search(client, name, asked, 0).await?.hits;
            let grade = |hit: &wire::Hit| match hit.id.as_ref().and_then(|id| id.id.as_ref()) {
                Some(wire::point_id::Id::Number(number)) => {
                    ids.get(number).and_then(|id| grades.get(id)).copied().unwrap_or(0)
                }
                _ => 0,
            };
            let mut best: Vec<i32> = grades.values().copied().collect();
            best.sort_unstable_by(|a, b| b.cmp(a));
            sum += gain(hits.iter().map(grade)) / gain(best.into_iter().take(10));
            count += 1;
        }
        let how = if exact { "exact" } else { "index" };
        println!("{how}: {} documents, {count} questions: nDCG@10 {:.4}", ids.len(), sum / f64::from(count));
    }
    Ok(())
}

fn gain(grades: impl Iterator<Item = i32>) -> f64 {
    (2_u32..).zip(grades).map(|(place, grade)| (f64::from(grade).exp2() - 1.0) / f64::from(place).log2()).sum()
}
